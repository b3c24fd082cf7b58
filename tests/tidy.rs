//! Rules of the project that a program can check.

#[path = "tidy/rooms.rs"]
mod rooms;

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files under `directory`.
fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn all_sources() -> Vec<PathBuf> {
    ["src", "bench", "tools", "tests", "fuzz"].into_iter().flat_map(sources).collect()
}

/// The code of a file without its comments and without what follows `#[cfg(test)]`, by line number.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines
        .take_while(|(_, line)| !line.contains("#[cfg(test)]"))
        .map(|(number, line)| (number, line.split("//").next().unwrap().to_string()))
        .collect()
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.ends_with("metrics/testing.rs")
        || path.file_stem().is_some_and(|stem| {
            let stem = stem.to_string_lossy();
            // Fuzz bodies are tests that live in the library.
            stem.ends_with("tests") || stem.contains("fuzz")
        })
}

#[test]
fn no_file_is_too_long_to_be_read() {
    let long: Vec<_> = all_sources()
        .into_iter()
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "over {LINES_MAX} lines: {long:#?}");
}

#[test]
fn protocol_cores_are_told_the_time() {
    let mut found = Vec::new();
    let directories =
        ["src/access", "src/wire", "src/session", "src/media", "src/shard/core", "src/source/camera/client"];
    let files = ["src/shard/player.rs", "src/source/input.rs", "src/source/pipeline.rs", "src/source/reorder.rs"];
    let files = files
        .into_iter()
        .chain(["src/source/timeline.rs", "src/source/fault_log.rs", "src/crowd.rs", "src/told.rs"])
        .map(|file| root().join(file));
    for path in directories.into_iter().flat_map(sources).chain(files).filter(|path| !is_test(path)) {
        for (number, line) in code(&path) {
            if line.contains("Instant::now") || line.contains("SystemTime::now") || line.contains(".elapsed()") {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "these modules must also run on a virtual clock: {found:#?}");
}

#[test]
fn lines_of_the_log_write_the_stream_alike() {
    let mut found = Vec::new();
    for path in sources("src") {
        for (number, line) in code(&path) {
            // A macro on one line, or with one field per line.
            let field = ["debug!(", "info!(", "warn!(", "error!("]
                .iter()
                .find_map(|start| line.split_once(start).map(|(_, rest)| rest))
                .or_else(|| line.trim().strip_suffix(','))
                .and_then(|field| field.strip_prefix("stream"));
            let value = field.and_then(|rest| rest.strip_prefix(" = ").or(rest.starts_with(',').then_some(rest)));
            let quoted = value.is_some_and(|value| {
                !["%", "about("].iter().any(|right| value.starts_with(right)) && !value.contains("display")
            });
            if quoted {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "write `stream = %name`, not in quotes: {found:#?}");
}

#[test]
fn unsafe_code_stays_in_its_place() {
    let src = root().join("src");
    let mut found = Vec::new();
    for path in all_sources() {
        let within = path.strip_prefix(&src).unwrap_or(&path).to_string_lossy().into_owned();
        if within.starts_with("egress/uring/") || within == "sys.rs" || within.starts_with("sys/") {
            continue;
        }
        for (number, line) in code(&path) {
            let allows = line.contains("allow(unsafe_code)");
            let uses = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| line.contains(word));
            if allows || uses {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    // These are the lines above that look for it.
    found.retain(|line| !line.contains("tests/tidy.rs"));
    assert!(found.is_empty(), "unsafe code belongs in src/egress/uring/ and src/sys.rs: {found:#?}");
}

#[test]
fn every_dependency_has_its_reason() {
    let document = fs::read_to_string(root().join("docs/architecture/dependencies.md")).unwrap();
    let mut missing = Vec::new();
    for path in ["Cargo.toml", "bench/Cargo.toml", "tools/Cargo.toml", "fuzz/Cargo.toml"] {
        let manifest: toml::Table = fs::read_to_string(root().join(path)).unwrap().parse().unwrap();
        // The table under the manifest's name, up to the next manifest's; the text in its first column.
        let (_, reasons) = document.split_once(&format!("(`{path}`):")).unwrap_or_else(|| panic!("no table of {path}"));
        let reasons = reasons.split("Cargo.toml`):").next().unwrap();
        let names: Vec<&str> = reasons.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next()).collect();
        let mut used = Vec::new();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            used.extend(
                manifest.get(section).and_then(|deps| deps.as_table()).into_iter().flat_map(|deps| deps.keys()),
            );
        }
        let named = |name: &str| names.iter().any(|cell| cell.contains(&format!("`{name}`")));
        missing.extend(used.iter().filter(|name| !named(name)).map(|name| format!("{path}: {name}")));
        for name in names.iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
            assert!(used.iter().any(|dependency| *dependency == name), "{path} has no {name} any more");
        }
    }
    assert!(missing.is_empty(), "docs/architecture/dependencies.md does not say why these are there: {missing:?}");
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut open = vec![root().join("README.md"), root().join("SECURITY.md")];
    for directory in ["docs", "docs/architecture"] {
        open.extend(fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path()));
    }
    let mut broken = Vec::new();
    for document in open.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let local = !link.is_empty() && !link.contains("://");
            if local && !document.parent().unwrap().join(link).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Whether an SPDX expression can be met with the licences in `allowed`: any of an OR, all of an AND.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.trim();
    // Operators outside parentheses, the weaker one first; older manifests write "/" for OR.
    for (operator, any) in [(" OR ", true), ("/", true), (" AND ", false)] {
        let mut depth = 0;
        let (mut parts, mut start) = (Vec::new(), 0);
        for (at, c) in expression.char_indices() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ if depth == 0 && at >= start && expression[at..].starts_with(operator) => {
                    parts.push(&expression[start..at]);
                    start = at + operator.len();
                }
                _ => {}
            }
        }
        if !parts.is_empty() {
            parts.push(&expression[start..]);
            let mut met = parts.iter().map(|part| is_met(part, allowed));
            return if any { met.any(|met| met) } else { met.all(|met| met) };
        }
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_met(inner, allowed),
        None => allowed.contains(&expression),
    }
}

#[test]
fn expressions_of_licences_are_understood() {
    let allowed = ["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
    for met in ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "Apache-2.0 WITH LLVM-exception AND ISC", "(X OR MIT) AND ISC"]
    {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND X", "X OR MIT AND Y", ""] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}

#[test]
fn dependencies_come_from_one_registry_under_licences_that_are_allowed() {
    let rules: toml::Table = fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let strings = |section: &str, key: &str| -> Vec<String> {
        rules[section][key].as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    };
    let allowed = strings("licenses", "allow");
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    // Crates for other platforms only need not be checked.
    let arguments =
        ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform=x86_64-unknown-linux-gnu"];
    let mut packages = Vec::new();
    for place in ["", "fuzz"] {
        let mut cargo = std::process::Command::new(env!("CARGO"));
        let output = cargo.args(arguments).current_dir(root().join(place)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        packages.extend(metadata["packages"].as_array().unwrap().iter().cloned());
    }
    assert!(packages.len() > 50);
    let mut wrong = Vec::new();
    let mut sources = std::collections::BTreeSet::new();
    for package in &packages {
        let licence = package["license"].as_str().unwrap_or_default();
        if !is_met(licence, &allowed) {
            wrong.push(format!("{} is under {licence:?}", package["name"]));
        }
        // Members of the workspace have no source.
        if let Some(source) = package["source"].as_str() {
            sources.insert(source);
        }
    }
    let registry = |source: &&str| source.starts_with("registry+");
    assert!(sources.len() == 1 && sources.iter().all(registry), "dependencies come from {sources:?}");
    assert!(wrong.is_empty(), "deny.toml does not allow: {wrong:#?}");
}
