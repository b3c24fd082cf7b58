//! Walks a parsed TOML document and collects every fault in it, each with its line and its cure.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::url::redact;

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line in the file, from 1; `None` when it is about no particular line.
    pub line: Option<usize>,
    /// What is wrong, and what to do about it. Holds no secret.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Collects faults while the document is read.
pub(super) struct Faults<'t> {
    text: &'t str,
    found: Vec<Fault>,
    warnings: Vec<Fault>,
    /// Where the first secret stands in the text.
    secret: Option<usize>,
}

impl<'t> Faults<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Faults { text, found: Vec::new(), warnings: Vec::new(), secret: None }
    }

    /// Adds a fault at a place in the text.
    pub(super) fn at(&mut self, span: Range<usize>, message: impl Into<String>) {
        let line = self.line(span);
        self.found.push(Fault { line: Some(line), message: message.into() });
    }

    fn line(&self, span: Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// Adds something that is not wrong, and yet should be known.
    pub(super) fn warn(&mut self, field: &Field<'_, '_>, message: impl fmt::Display) {
        let line = self.line(field.value.span());
        self.warnings.push(Fault { line: Some(line), message: format!("{}: {message}", field.path) });
    }

    /// Notes that a password stands in the text itself, or what is as good as one.
    pub(super) fn secret(&mut self, field: &Field<'_, '_>) {
        let line = self.line(field.value.span());
        self.secret = Some(self.secret.map_or(line, |first| first.min(line)));
    }

    /// The line of the first secret.
    pub(super) fn first_secret(&self) -> Option<usize> {
        self.secret
    }

    /// Takes what is not wrong.
    pub(super) fn take_warnings(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.warnings)
    }

    /// Adds a fault of the whole document.
    pub(super) fn whole(&mut self, message: impl Into<String>) {
        self.found.push(Fault { line: None, message: message.into() });
    }

    /// All of them, in the order of their lines.
    pub(super) fn into_sorted(mut self) -> Vec<Fault> {
        self.found.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        self.found
    }
}

/// A kind of table that the configuration knows: what messages call it (`queue`, or nothing for the top), and its keys.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) keys: &'static [&'static str],
}

impl Section {
    /// A key of the section as messages name it.
    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Adds a fault for every key of `table` that the section does not have, with the nearest one that exists.
    pub(super) fn refuse_unknown(&self, table: &DeTable<'_>, all: &[Section], faults: &mut Faults<'_>) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if self.keys.contains(&name) {
                continue;
            }
            let here = nearest(name, self.keys.iter().map(|&key| (key, self.path(key))));
            let elsewhere = || {
                let keys = all.iter().flat_map(|section| section.keys.iter().map(|&key| (key, section.path(key))));
                nearest(name, keys)
            };
            let cure = match here.or_else(elsewhere) {
                Some(right) => format!("did you mean {right}?"),
                None if self.name.is_empty() => format!("the keys are {}", self.keys.join(", ")),
                None => format!("the keys of {} are {}", self.name, self.keys.join(", ")),
            };
            // Somebody may have written a URL where a key belongs.
            faults.at(key.span(), format!("unknown key {}; {cure}", redact(&self.path(name))));
        }
    }
}

/// One value of the document with the key it was found under.
pub(super) struct Field<'d, 'i> {
    pub(super) path: String,
    pub(super) value: &'d Spanned<DeValue<'i>>,
}

impl<'d, 'i> Field<'d, 'i> {
    /// The key's value in a table of the section.
    pub(super) fn of(section: &Section, table: &'d DeTable<'i>, key: &str) -> Option<Field<'d, 'i>> {
        debug_assert!(section.keys.contains(&key), "{key} is no key of [{}]", section.name);
        Some(Field { path: section.path(key), value: table.get(key)? })
    }

    /// Adds a fault about the value.
    pub(super) fn fault(&self, faults: &mut Faults<'_>, message: impl fmt::Display) {
        faults.at(self.value.span(), format!("{}: {message}", self.path));
    }

    /// Adds the fault that the value is of the wrong type. Says nothing of the value itself, which may be a secret.
    pub(super) fn wrong_type<T>(&self, faults: &mut Faults<'_>, wanted: &str) -> Option<T> {
        let got = match self.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a number with decimals",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.fault(faults, format!("is {got}; write {wanted}"));
        None
    }

    pub(super) fn string(&self, faults: &mut Faults<'_>, wanted: &str) -> Option<&'d str> {
        match self.value.get_ref().as_str() {
            Some(text) => Some(text),
            None => self.wrong_type(faults, wanted),
        }
    }

    pub(super) fn boolean(&self, faults: &mut Faults<'_>) -> Option<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong_type(faults, "true or false"),
        }
    }

    /// A whole number within bounds.
    pub(super) fn integer(&self, faults: &mut Faults<'_>, bounds: Range<u64>) -> Option<u64> {
        let wanted = format!("a whole number from {} to {}", bounds.start, bounds.end - 1);
        let DeValue::Integer(integer) = self.value.get_ref() else {
            return self.wrong_type(faults, &wanted);
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) if bounds.contains(&value) => Some(value),
            _ => {
                self.fault(faults, format!("is {integer}; write {wanted}"));
                None
            }
        }
    }

    /// One of a few words, each with what it stands for.
    pub(super) fn word<T: Copy>(&self, faults: &mut Faults<'_>, words: &[(&str, T)]) -> Option<T> {
        let wanted = words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
        let text = self.string(faults, &wanted)?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => {
                self.fault(faults, format!("is {:?}; write {wanted}", redact(text)));
                None
            }
        }
    }

    /// What a reader makes of a string.
    pub(super) fn parsed<T>(
        &self,
        faults: &mut Faults<'_>,
        wanted: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match read(self.string(faults, wanted)?) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(faults, message);
                None
            }
        }
    }

    pub(super) fn table(&self, faults: &mut Faults<'_>) -> Option<&'d DeTable<'i>> {
        match self.value.get_ref() {
            DeValue::Table(table) => Some(table),
            DeValue::Array(_) => {
                self.fault(faults, format!("is a list; write [{}] once, with single brackets", self.path));
                None
            }
            _ => self.wrong_type(faults, &format!("a table, [{}]", self.path)),
        }
    }

    /// The tables of `[[name]]`, each with its place.
    pub(super) fn tables(&self, faults: &mut Faults<'_>) -> Vec<(Range<usize>, &'d DeTable<'i>)> {
        let mut tables = Vec::new();
        let cure = format!("write [[{}]] with double brackets, once for each", self.path);
        match self.value.get_ref() {
            DeValue::Array(items) => {
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::Table(table) => tables.push((item.span(), table)),
                        _ => faults.at(item.span(), format!("{}: {cure}", self.path)),
                    }
                }
            }
            _ => self.fault(faults, cure),
        }
        tables
    }
}

/// The nearest of the candidates (a key, and how to name it), if one is near enough to be a slip of the pen.
fn nearest(name: &str, candidates: impl Iterator<Item = (&'static str, String)>) -> Option<String> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let name = plain(name);
    candidates
        .map(|(key, path)| (edits(&name, &plain(key)), key.len(), path))
        .filter(|(edits, len, _)| *edits <= (len.max(&name.len()) / 3).clamp(1, 3))
        .min_by_key(|(edits, _, _)| *edits)
        .map(|(_, _, path)| path)
}

/// Insertions, deletions, replacements and swaps of neighbours that make `a` from `b` (optimal string alignment).
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: [Vec<usize>; 3] = [Vec::new(), (0..=b.len()).collect(), vec![0; b.len() + 1]];
    for i in 1..=a.len() {
        let [older, last, next] = &mut rows;
        next[0] = i;
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            next[j] = replaced.min(last[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                next[j] = next[j].min(older[j - 2] + 1);
            }
        }
        rows.rotate_left(1);
        rows[2] = vec![0; b.len() + 1];
    }
    rows[1][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, n) in
            [("age", "age", 0), ("agee", "age", 1), ("aeg", "age", 1), ("", "ab", 2), ("workres", "workers", 1)]
        {
            assert_eq!((edits(a, b), edits(b, a)), (n, n), "{a} {b}");
        }
    }
}
