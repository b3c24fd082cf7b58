//! Reads a parsed TOML document and collects all errors in it, each with its line and how to fix it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::redact::redact;

/// An error in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line in the file, from 1; `None` if it concerns no particular line.
    pub line: Option<usize>,
    /// What is wrong, and how to fix it. Contains no secret.
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

/// Collects errors while the document is read.
pub(super) struct Faults<'t> {
    text: &'t str,
    found: Vec<Fault>,
    warnings: Vec<Fault>,
    /// Position of the first secret in the text.
    secret: Option<usize>,
    /// Positions of strings whose values come from the environment.
    expanded: Vec<usize>,
    /// Files that the document names.
    files: Vec<PathBuf>,
}

impl<'t> Faults<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Faults { text, found: Vec::new(), warnings: Vec::new(), secret: None, expanded: Vec::new(), files: Vec::new() }
    }

    /// Adds an error at a position in the text.
    pub(super) fn at(&mut self, span: Range<usize>, message: impl Into<String>) {
        let line = self.line(span);
        self.found.push(Fault { line: Some(line), message: message.into() });
    }

    fn line(&self, span: Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// Adds a warning.
    pub(super) fn warn(&mut self, field: &Field<'_, '_>, message: impl fmt::Display) {
        let line = self.line(field.value.span());
        self.warnings.push(Fault { line: Some(line), message: format!("{}: {message}", field.path) });
    }

    /// Records that the text itself contains a password or its equivalent.
    pub(super) fn secret(&mut self, field: &Field<'_, '_>) {
        if self.expanded.contains(&field.value.span().start) {
            return;
        }
        let line = self.line(field.value.span());
        self.secret = Some(self.secret.map_or(line, |first| first.min(line)));
    }

    /// Records that the string there has its value from the environment, so that the text itself does not reveal it.
    pub(super) fn expanded(&mut self, span: Range<usize>) {
        self.expanded.push(span.start);
    }

    /// Records that the document names a file whose contents belong to it.
    pub(super) fn reads(&mut self, path: &Path) {
        self.files.push(path.to_owned());
    }

    /// Takes the names of these files.
    pub(super) fn take_files(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.files)
    }

    /// Whether there are any.
    pub(super) fn are_some(&self) -> bool {
        !self.found.is_empty()
    }

    /// The line of the first secret.
    pub(super) fn first_secret(&self) -> Option<usize> {
        self.secret
    }

    /// Takes the warnings.
    pub(super) fn take_warnings(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.warnings)
    }

    /// Adds an error about the whole document.
    pub(super) fn whole(&mut self, message: impl Into<String>) {
        self.found.push(Fault { line: None, message: message.into() });
    }

    /// All errors, in the order of their lines.
    pub(super) fn into_sorted(mut self) -> Vec<Fault> {
        self.found.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        self.found
    }
}

/// A kind of table in the configuration: its name in messages (`queue`, or empty for the top level), and its keys.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) keys: &'static [&'static str],
}

impl Section {
    /// A key of the section as named in messages.
    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Adds an error for every unknown key of `table`, with the most similar known one.
    pub(super) fn refuse_unknown(&self, table: &DeTable<'_>, all: &[Section], faults: &mut Faults<'_>) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if self.keys.contains(&name) {
                continue;
            }
            let others_word = |key: &&(&str, &'static str)| same_word(key.0, name) && self.keys.contains(&key.1);
            let meant = WORDS_OF_OTHERS.iter().find(others_word).map(|(_, key)| self.path(key));
            let here = || nearest(name, self.keys.iter().map(|&key| (key, self.path(key))));
            let elsewhere = || {
                let keys = all.iter().flat_map(|section| section.keys.iter().map(|&key| (key, section.path(key))));
                nearest(name, keys)
            };
            let cure = match meant.or_else(here).or_else(elsewhere) {
                Some(right) => format!("did you mean {right}?"),
                None if self.name.is_empty() => format!("the keys are {}", self.keys.join(", ")),
                None => format!("the keys of {} are {}", self.name, self.keys.join(", ")),
            };
            // The key may contain a URL that was put there by mistake.
            faults.at(key.span(), format!("unknown key {}; {cure}", redact(&self.path(name))));
        }
    }
}

/// A value of the document with its key.
pub(super) struct Field<'d, 'i> {
    pub(super) path: String,
    pub(super) value: &'d Spanned<DeValue<'i>>,
}

impl<'d, 'i> Field<'d, 'i> {
    /// The key's value in a table of the section.
    pub(super) fn of(section: &Section, table: &'d DeTable<'i>, key: &str) -> Option<Field<'d, 'i>> {
        debug_assert!(section.keys.contains(&key), "{key} is not a key of [{}]", section.name);
        Some(Field { path: section.path(key), value: table.get(key)? })
    }

    /// Adds an error about the value.
    pub(super) fn fault(&self, faults: &mut Faults<'_>, message: impl fmt::Display) {
        faults.at(self.value.span(), format!("{}: {message}", self.path));
    }

    /// Adds the error that the value has the wrong type. Does not show the value, which may be a secret.
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

    /// A whole number within limits.
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

    /// One of a few words, each with its meaning.
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

    /// A string, converted by a function.
    pub(super) fn parsed<T, E: std::fmt::Display>(
        &self,
        faults: &mut Faults<'_>,
        wanted: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match read(self.string(faults, wanted)?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(faults, error.to_string());
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

    /// The tables of `[[name]]`, each with its position.
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

/// What other programs call some keys, and the names here.
const WORDS_OF_OTHERS: &[(&str, &str)] = &[
    ("url", "source"),
    ("uri", "source"),
    ("input", "source"),
    ("camera", "source"),
    ("src", "source"),
    ("source_on_demand", "on_demand"),
    ("rtsp_transport", "transport"),
    ("timeout", "source_timeout"),
    ("port", "listen"),
    ("bind", "listen"),
    ("address", "listen"),
    ("rtsp_address", "listen"),
    ("cameras", "stream"),
    ("paths", "stream"),
    ("users", "user"),
    ("interval", "every"),
];

/// A key without the characters in which spellings differ.
fn plain(text: &str) -> String {
    text.to_ascii_lowercase().replace(['-', '_'], "")
}

fn same_word(one: &str, other: &str) -> bool {
    plain(one) == plain(other)
}

/// The most similar of the candidates (a key, and how to name it), if it is similar enough for a typing error.
fn nearest(name: &str, candidates: impl Iterator<Item = (&'static str, String)>) -> Option<String> {
    let name = plain(name);
    candidates
        .map(|(key, path)| (edits(&name, &plain(key)), key.len(), path))
        .filter(|(edits, len, _)| *edits <= (len.max(&name.len()) / 3).clamp(1, 3))
        .min_by_key(|(edits, _, _)| *edits)
        .map(|(_, _, path)| path)
}

/// Number of insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string alignment).
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
