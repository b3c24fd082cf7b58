//! Which room of `src/` may use which, which files may depend on each other, and how long a function may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{is_test, root, sources};

/// The rooms from top to bottom. A room uses those below it and never one above. What two of them share is in
/// the lower one.
const FLOORS: [&str; 13] = [
    "daemon", "upgrade", "config", "web", "tls", "shard", "source", "session", "access", "metrics", "egress", "media",
    "wire",
];

/// Rooms that every room may use, and that use none.
const GROUND: [&str; 11] =
    ["burst", "crowd", "escape", "file", "limits", "memory", "redact", "sys", "testing", "told", "trust"];

/// Maximum lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// A module of the library, by its path without `crate`, such as `["media", "log"]`.
type Module = Vec<String>;

fn name_of(module: &[String]) -> String {
    module.join("/")
}

/// The library's modules, each with the code that a release compiles: no comments, no tests.
fn modules() -> BTreeMap<Module, (String, String)> {
    let mut found = BTreeMap::new();
    for path in sources("src").into_iter().filter(|path| !is_test(path)) {
        let file = path.strip_prefix(root().join("src")).unwrap().to_string_lossy().into_owned();
        if ["main.rs", "cli.rs", "lib.rs"].contains(&file.as_str()) {
            continue;
        }
        let stem = file.trim_end_matches(".rs");
        let module = stem.strip_suffix("/mod").unwrap_or(stem).split('/').map(str::to_owned).collect();
        let text = fs::read_to_string(&path).unwrap();
        let end = ["#[cfg(test)]\nmod tests {", "#[cfg(all(test"].into_iter().filter_map(|mark| text.find(mark)).min();
        let lines = text[..end.unwrap_or(text.len())].lines().map(|line| line.split("//").next().unwrap());
        let code = lines.collect::<Vec<_>>().join("\n");
        found.insert(module, (file, code));
    }
    found
}

/// The paths of a `use` without its braces: for `a::{b, c::{d, e}}` they are `a::b`, `a::c::d` and `a::c::e`.
fn spread(tree: &str, out: &mut Vec<String>) {
    let Some((before, inner)) = tree.split_once('{') else {
        return out.push(tree.split(" as ").next().unwrap().trim().to_owned());
    };
    let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inner[start..at].trim();
                if !part.is_empty() {
                    spread(&format!("{}{part}", before.trim()), out);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The paths that a file uses. Names that a folder's `mod.rs` only re-exports (`pub use`) do not count.
fn paths(file: &str, code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        let at = statement.rfind("use ").filter(|at| {
            let before = statement[..*at].trim_end_matches(' ');
            before.is_empty() || before.ends_with(['\n', ')']) || before.ends_with("pub")
        });
        let Some(at) = at else {
            rest.push_str(statement);
            continue;
        };
        rest.push_str(&statement[..at]);
        let handed_on = statement[..at].lines().next_back().is_some_and(|line| line.trim_start().starts_with("pub"));
        if !(handed_on && file.ends_with("mod.rs")) {
            let tree = statement[at + 4..].trim_end_matches(';').split_whitespace().collect::<Vec<_>>().join(" ");
            spread(&tree, &mut found);
        }
    }
    for root in ["crate::", "super::"] {
        for (at, _) in rest.match_indices(root) {
            let is_start = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            let end = rest[at..].find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            if is_start {
                found.push(rest[at..at + end.unwrap_or(rest.len() - at)].to_owned());
            }
        }
    }
    found
}

/// The module of the item that `path` names in `from`; `None` if it is in another crate.
fn target(modules: &BTreeMap<Module, (String, String)>, from: &[String], path: &str) -> Option<Module> {
    let mut parts: Vec<&str> = path.split("::").collect();
    let mut module = match parts[0] {
        "crate" => Vec::new(),
        "super" | "self" => from.to_vec(),
        child => {
            let module: Module = from.iter().cloned().chain([child.to_owned()]).collect();
            return modules.contains_key(&module).then_some(module);
        }
    };
    while parts.first() == Some(&"super") {
        module.pop();
        parts.remove(0);
    }
    let skip = usize::from(["crate", "self"].contains(parts.first().unwrap_or(&"")));
    module.extend(parts[skip..].iter().map(|part| (*part).to_owned()));
    while !module.is_empty() && !modules.contains_key(&module) {
        module.pop();
    }
    (!module.is_empty()).then_some(module)
}

/// Which module uses which.
fn uses() -> BTreeMap<Module, BTreeSet<Module>> {
    let modules = modules();
    let of = |module: &Module, file: &str, code: &str| {
        let named = paths(file, code);
        let used = named.iter().filter_map(|path| target(&modules, module, path));
        used.filter(|used| used != module).collect::<BTreeSet<_>>()
    };
    modules.iter().map(|(module, (file, code))| (module.clone(), of(module, file, code))).collect()
}

#[test]
fn a_room_uses_only_the_rooms_below_it() {
    let modules = modules();
    // The top has 0; everything at the bottom has the last number.
    let floor = |room: &str| {
        let floor = FLOORS.iter().position(|of| *of == room);
        floor.or(GROUND.contains(&room).then_some(FLOORS.len())).unwrap_or_else(|| {
            panic!("src/{room} is a room without a floor: give it a place in FLOORS, or in GROUND if it uses no room")
        })
    };
    let uses = uses();
    let read = uses.values().map(BTreeSet::len).sum::<usize>();
    assert!(modules.len() > 100 && read > 500, "{read} imports of {} files are read", modules.len());
    let mut up = BTreeSet::new();
    for (module, used) in uses {
        for used in used.iter().filter(|used| floor(&used[0]) < floor(&module[0])) {
            up.insert((modules[&module].0.clone(), used[0].clone()));
        }
    }
    assert!(up.is_empty(), "these use a room above their own; put what both need into the lower one: {up:#?}");
}

/// Every file of its own room that is reachable from `start`.
fn reach<'a>(uses: &'a BTreeMap<Module, BTreeSet<Module>>, start: &'a Module) -> BTreeSet<&'a Module> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(module) = open.pop() {
        for next in uses.get(module).into_iter().flatten().filter(|next| next[0] == start[0]) {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    seen
}

#[test]
fn files_of_a_room_use_each_other_in_no_circle() {
    let uses = uses();
    let reached: BTreeMap<_, _> = uses.keys().map(|module| (module, reach(&uses, module))).collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (module, reaches) in reached.iter().filter(|(module, reaches)| reaches.contains(*module)) {
        let back = reaches.iter().filter(|other| reached[*other].contains(*module));
        circles.insert(back.map(|module| name_of(module)).collect());
    }
    assert!(circles.is_empty(), "put what they share into a file below both: {circles:#?}");
}

/// The functions of a file with their lines, as formatted by rustfmt, without those of its tests.
fn functions(path: &Path) -> Vec<(String, usize)> {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some((before, after)) = code.split_once("fn ") else { continue };
        let words = ["pub", "const", "async", "unsafe", "extern"];
        if !before.split_whitespace().all(|word| words.iter().any(|known| word.starts_with(known)) || word == "\"C\"") {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - code.len()]);
        let name = after.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
        // One on a single line, or without a body, ends before any such brace.
        let own = lines[start..].iter().take_while(|line| **line != close).count() + 1;
        let is_short = code.ends_with(['}', ';']);
        found.push((name.to_owned(), if is_short { 1 } else { own }));
    }
    found
}

#[test]
fn a_function_fits_a_screen() {
    let mut long = BTreeSet::new();
    for path in ["src", "bench/src", "tools/src"].into_iter().flat_map(sources).filter(|path| !is_test(path)) {
        let file = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let over = functions(&path).into_iter().filter(|(_, lines)| *lines > FUNCTION_LINES_MAX);
        long.extend(over.map(|(name, _)| (file.clone(), name)));
    }
    assert!(long.is_empty(), "over {FUNCTION_LINES_MAX} lines; cut them where the sense changes: {long:#?}");
}
