//! The names of streams, and patterns for names.
//!
//! A name is a path: segments of letters, digits, `-`, `_`, `.` and `~` (the unreserved characters of RFC 3986 section 2.3), separated
//! by `/`. So no name needs encoding in a URL, and none can contain `trackID=0`.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::STREAM_NAME_BYTES_MAX;

/// Why a name is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// It has no characters.
    #[error("a stream's name is empty; give it a name, which becomes the path of its URL")]
    Empty,
    /// It has too many.
    #[error("a stream's name has {0} characters; use at most {STREAM_NAME_BYTES_MAX}")]
    Long(usize),
    /// A segment is empty: a slash at the start, at the end, or next to another.
    #[error("has an empty segment; write one / between two segments, and none at the ends")]
    EmptySegment,
    /// A segment is `.` or `..`, which have a special meaning in URLs.
    #[error("has a segment . or .., which has a special meaning in URLs; use another name")]
    Dots,
    /// A character that is not allowed in a name.
    #[error(
        "cannot be the path of a URL; name a stream with letters, digits and - _ . ~ (a to z, A to Z, 0 to 9), / between segments"
    )]
    Character,
}

/// Why a pattern is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Something follows the `*`.
    #[error("has something behind its *; write * as the last character alone")]
    AfterStar,
    /// What precedes the `*` cannot start a name.
    #[error(transparent)]
    Prefix(BadName),
}

/// Checks a name.
///
/// # Errors
/// What is wrong with it.
pub fn check(name: &str) -> Result<(), BadName> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | '/');
    match name {
        "" => Err(BadName::Empty),
        long if long.len() > STREAM_NAME_BYTES_MAX => Err(BadName::Long(long.len())),
        odd if !odd.chars().all(safe) => Err(BadName::Character),
        name if name.split('/').any(str::is_empty) => Err(BadName::EmptySegment),
        name if name.split('/').any(|segment| matches!(segment, "." | "..")) => Err(BadName::Dots),
        _ => Ok(()),
    }
}

/// A path from a URL, decoded once and without empty segments. Use [`check`] to find out whether it is a name.
pub fn of_path(path: &str) -> Vec<u8> {
    let decoded = percent_decoded(path);
    let segments = decoded.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty());
    segments.collect::<Vec<_>>().join(&b'/')
}

/// Decodes `%40` and the like; a `%` that starts no valid code stays.
pub fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let hex = (byte == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
            u8::from_str_radix(hex, 16).ok()
        });
        match hex {
            Some(decoded) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            None => out.push(byte),
        }
    }
    out
}

/// A pattern: a prefix, and `*` for one or more characters, including slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    prefix: String,
}

impl Pattern {
    /// Parses a pattern; `None` for a text without `*`, which is a name.
    ///
    /// # Errors
    /// `*` is not the last character, or what precedes it cannot start a name.
    pub fn parse(text: &str) -> Option<Result<Pattern, BadPattern>> {
        let at = text.find('*')?;
        let prefix = &text[..at];
        if at + 1 != text.len() {
            return Some(Err(BadPattern::AfterStar));
        }
        // A valid prefix becomes a name with one more character.
        let read = match check(&format!("{prefix}x")) {
            Err(bad) if !prefix.is_empty() => Err(BadPattern::Prefix(bad)),
            _ => Ok(Pattern { prefix: prefix.to_owned() }),
        };
        Some(read)
    }

    /// What `*` matches in this name, if the name matches the pattern.
    pub fn part<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_prefix(&self.prefix).filter(|part| !part.is_empty())
    }

    /// The length of the prefix: if a name matches two patterns, the longer prefix wins.
    pub fn begins(&self) -> usize {
        self.prefix.len()
    }

    /// The pattern that matches every name.
    pub fn all() -> Pattern {
        Pattern { prefix: String::new() }
    }

    /// Whether some name matches both.
    pub fn meets(&self, other: &Pattern) -> bool {
        self.prefix.starts_with(&other.prefix) || other.prefix.starts_with(&self.prefix)
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}*", self.prefix)
    }
}

/// What is known in advance about the streams of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// Their names.
    pub pattern: Pattern,
    /// Whether they are published; otherwise they are pulled.
    pub published: bool,
    /// How long a request waits for a stream that does not exist yet.
    pub wait: Duration,
}

/// The rules for names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRules {
    /// The relay's own id, for detecting loops of relays; empty for a relay without one.
    pub relay: Arc<str>,
    /// The patterns, in no particular order.
    pub patterns: Vec<NamePattern>,
}

impl NameRules {
    /// The pattern that a name matches, if it is a valid name and there is one.
    pub fn pattern<'n>(&self, name: &'n [u8]) -> Option<(&'n str, &NamePattern)> {
        let name = std::str::from_utf8(name).ok().filter(|name| check(name).is_ok())?;
        Some((name, longest(&self.patterns, |one| &one.pattern, name)?))
    }
}

/// Whether a name equals `entry`, or matches it if it ends with `*`.
pub fn belongs(name: &str, entry: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(prefix) => name.len() > prefix.len() && name.starts_with(prefix),
        None => name == entry,
    }
}

/// The pattern with the longest prefix among those that a name matches.
pub fn longest<'p, T>(patterns: &'p [T], pattern: impl Fn(&T) -> &Pattern, name: &str) -> Option<&'p T> {
    let fits = patterns.iter().filter(|one| pattern(one).part(name).is_some());
    fits.max_by_key(|one| pattern(one).begins())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_of_unreserved_characters() {
        for name in ["front", "live/cam1", "Streaming/Channels/101", "Cam_2.main-0~", "a", "...", "a/.b"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        let long = "x".repeat(STREAM_NAME_BYTES_MAX + 1);
        for (name, bad) in [
            ("", BadName::Empty),
            ("a b", BadName::Character),
            ("ä", BadName::Character),
            ("a?b", BadName::Character),
            ("a/trackID=0", BadName::Character),
            ("+events", BadName::Character),
            ("a%41", BadName::Character),
            ("/a", BadName::EmptySegment),
            ("a/", BadName::EmptySegment),
            ("a//b", BadName::EmptySegment),
            ("..", BadName::Dots),
            ("a/./b", BadName::Dots),
            (&long, BadName::Long(STREAM_NAME_BYTES_MAX + 1)),
        ] {
            assert_eq!(check(name), Err(bad), "{name}");
        }
    }

    #[test]
    fn paths_are_decoded_once_and_lose_their_empty_segments() {
        for (path, name) in [
            ("/live//cam1/", "live/cam1"),
            ("live%2Fcam1", "live/cam1"),
            ("%2f%2Flive%2f", "live"),
            ("%6Cive/c%61m1", "live/cam1"),
            ("a%2541", "a%41"),
            ("", ""),
            ("///", ""),
        ] {
            assert_eq!(String::from_utf8(of_path(path)).unwrap(), name, "{path}");
        }
    }

    #[test]
    fn a_star_is_the_last_character_and_stands_for_one_or_more() {
        let pattern = |text: &str| Pattern::parse(text).expect("a star").expect("a pattern");
        assert_eq!(pattern("edge/*").part("edge/a/b"), Some("a/b"));
        assert_eq!(pattern("edge*").part("edge1"), Some("1"));
        assert_eq!(pattern("*").part("a"), Some("a"));
        for (text, name) in [("edge/*", "edge/"), ("edge/*", "edge"), ("edge*", "edge"), ("*", ""), ("a/*", "b/c")] {
            assert_eq!(pattern(text).part(name), None, "{text} {name}");
        }
        assert!(Pattern::parse("edge").is_none());
        for text in ["*a", "a*b", "**", "a b*", "//*", "a//*", "/*", "./*"] {
            assert!(Pattern::parse(text).unwrap().is_err(), "{text}");
        }
        let some = ["*", "a/*", "a/b*"].map(pattern);
        for (name, expected) in [("a/bc", "a/b*"), ("a/b", "a/*"), ("a/", "*"), ("z", "*")] {
            assert_eq!(longest(&some, |one| one, name).map(Pattern::to_string).as_deref(), Some(expected), "{name}");
        }
        assert!(some[1].meets(&some[2]) && !some[1].meets(&pattern("b/*")));
        assert!(belongs("live/a", "live/*") && !belongs("live/", "live/*") && belongs("x", "*") && !belongs("x", "y"));
    }
}
