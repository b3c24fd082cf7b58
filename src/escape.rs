//! Makes untrusted text harmless in logs, reports and terminals: a camera's reason phrase or a player's name must neither start a new
//! line nor reverse the surrounding text.

use std::fmt::{self, Write as _};

/// Whether a character has side effects: control characters, Unicode line ends, bidirectional marks, and invisible characters (those
/// that Rust's `escape_debug` escapes).
pub(crate) fn is_harmful(char: char) -> bool {
    if char.is_ascii() { char.is_ascii_control() } else { matches!(char.escape_debug().next(), Some('\\')) }
}

/// The longest prefix of whole characters that fits in this many bytes.
pub(crate) fn beginning(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Displays a text with every harmful character escaped (`\n`, `\u{202e}`).
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(is_harmful) {
            let (plain, from) = rest.split_at(at);
            f.write_str(plain)?;
            let mut chars = from.chars();
            if let Some(harmful) = chars.next() {
                write!(f, "{}", harmful.escape_debug())?;
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

/// Whether the text can be the unquoted value of `name=value`: nothing in it ends the value or starts another name.
pub(crate) fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || is_harmful(c) || matches!(c, '"' | '='))
}

/// Whether the text is a quoted string as written by `{:?}`.
fn is_quoted(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else { return false };
    let mut escaped = false;
    for char in inner.chars() {
        match char {
            _ if is_harmful(char) => return false,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return false,
            _ => {}
        }
    }
    !escaped
}

/// Displays the value of `name=value`: unchanged if it is a word or already quoted, otherwise quoted and escaped.
pub(crate) struct FieldValue<'a>(pub(crate) &'a str);

impl fmt::Display for FieldValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0;
        if is_word(text) || is_quoted(text) { f.write_str(text) } else { write!(f, "{text:?}") }
    }
}

/// A JSON text in which harmful characters are escaped (RFC 8259 section 7): `serde_json` escapes only the first 32 ASCII characters.
pub(crate) fn json(text: String) -> String {
    // Such characters occur only in strings.
    let is_left = |char: char| char >= '\u{7f}' && is_harmful(char);
    if !text.contains(is_left) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if !is_left(char) {
            out.push(char);
            continue;
        }
        for unit in char.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right to left, two line ends of Unicode, an isolate, a byte order mark, a tag outside of the basic plane.
    const HARMFUL: [char; 12] = [
        '\0',
        '\n',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{9b}',
        '\u{202e}',
        '\u{2028}',
        '\u{2029}',
        '\u{2066}',
        '\u{feff}',
        '\u{e0041}',
    ];

    #[test]
    fn harmful_characters_are_escaped_and_others_left() {
        for char in HARMFUL {
            let escaped = Escaped(&format!("a{char}b")).to_string();
            assert!(escaped.starts_with("a\\") && escaped.ends_with('b') && escaped.is_ascii(), "{escaped}");
            let value = FieldValue(&format!("a{char}b")).to_string();
            assert!(value.starts_with("\"a\\") && value.is_ascii(), "{value}");
        }
        let fine = "Türkamera 1 – 日本 \\ 'x'";
        assert_eq!(Escaped(fine).to_string(), fine);
    }

    #[test]
    fn a_value_is_one_word_or_quoted() {
        for (text, shown) in [
            ("127.0.0.1:554", "127.0.0.1:554"),
            ("", "\"\""),
            ("no route to host", "\"no route to host\""),
            ("x client=192.0.2.1", "\"x client=192.0.2.1\""),
            ("\"quoted \\\" already\"", "\"quoted \\\" already\""),
            ("\"not\" client=192.0.2.1 \"quoted\"", "\"\\\"not\\\" client=192.0.2.1 \\\"quoted\\\"\""),
            ("\"ends\\\"", "\"\\\"ends\\\\\\\"\""),
            ("\"\u{202e}\"", "\"\\\"\\u{202e}\\\"\""),
        ] {
            assert_eq!(FieldValue(text).to_string(), shown, "{text}");
        }
    }

    #[test]
    fn json_says_the_same_without_them() {
        let said: String = HARMFUL.iter().collect::<String>() + "ä";
        let text = json(serde_json::Value::from(said.as_str()).to_string());
        assert!(text.chars().all(|char| !is_harmful(char)) && text.contains('ä'), "{text}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), said);
    }
}
