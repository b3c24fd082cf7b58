//! Hides passwords in user-supplied text before it is shown or logged.

use std::borrow::Cow;

/// The replacement for a secret.
const HIDDEN: &str = "***";

/// `text` with every possible password of a URL hidden, whether or not the URL is valid.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // Everything up to the *last* @ of the line may belong to a password that was not encoded.
        let (url, tail) = after.split_at(after.find('\n').unwrap_or(after.len()));
        match url.rsplit_once('@') {
            Some((user, host)) => {
                if let Some((name, _)) = user.split_once(':') {
                    push_without_secrets(&mut out, name);
                    out.push(':');
                }
                out.push_str(HIDDEN);
                out.push('@');
                push_without_secrets(&mut out, host);
            }
            None => {
                // The line may contain another URL.
                let next = url.find("://").unwrap_or(url.len());
                push_without_secrets(&mut out, &url[..next]);
                rest = &after[next..];
                continue;
            }
        }
        rest = tail;
    }
    push_without_secrets(&mut out, rest);
    out
}

/// A URL as [`redact`] leaves it, and without what its query says: of that the names alone, for many of the values are secrets
/// (`?jwt=…`).
pub(crate) fn without_query_values(url: &str) -> String {
    let url = redact(url);
    let Some((path, query)) = url.split_once('?') else { return url };
    let item = |item: &str| match item.split_once('=') {
        Some((name, _)) => format!("{name}={HIDDEN}"),
        None if item.is_empty() => String::new(),
        None => HIDDEN.into(),
    };
    let items: Vec<String> = query.split('&').map(item).collect();
    format!("{path}?{}", items.join("&"))
}

/// `user:password@host` as `user:***@host`; any other text as it is.
pub(crate) fn without_userinfo(text: &str) -> Cow<'_, str> {
    let Some((name, rest)) = text.split_once(':') else { return text.into() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{name}:{HIDDEN}@{host}").into(),
        None => text.into(),
    }
}

/// Hides the passwords of URLs without scheme or with a missing slash, and the values in `password=…` and similar: some cameras expect
/// it in the path or query.
fn push_without_secrets(out: &mut String, text: &str) {
    const NAMES: [&str; 7] = ["password=", "passwd=", "pass=", "pwd=", "token=", "secret=", "auth="];
    let text: String = text.split_inclusive(char::is_whitespace).map(without_userinfo).collect();
    let lower = text.to_ascii_lowercase();
    let (mut from, mut at) = (0, 0);
    while let Some(found) = text[at..].find('=') {
        let value = at + found + 1;
        at = value;
        if !NAMES.iter().any(|name| lower[..value].ends_with(name)) {
            continue;
        }
        out.push_str(&text[from..value]);
        let ends = |c: char| matches!(c, '&' | '/' | '?' | '#' | ';' | '"' | '\'') || c.is_whitespace();
        let end = text[value..].find(ends).map_or(text.len(), |at| value + at);
        if end > value {
            out.push_str(HIDDEN);
        }
        (from, at) = (end, end);
    }
    out.push_str(&text[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_and_other_text_stays() {
        assert_eq!(redact("see 'rtsp://a:hunter2@b/' and a:hunter2@c/"), "see 'rtsp://a:***@c/");
        assert_eq!(redact("rtsp://h/x?pwd=hunter2&a=b"), "rtsp://h/x?pwd=***&a=b");
        assert_eq!(redact("no URL here: a@b"), "no URL here: a@b");
    }

    #[test]
    fn of_a_query_the_names_alone_are_shown() {
        for (url, shown) in [
            ("rtsp://h/front", "rtsp://h/front"),
            ("rtsp://h/front?jwt=hunter2.x.y&a=hunter2", "rtsp://h/front?jwt=***&a=***"),
            ("rtsp://h/front?hunter2", "rtsp://h/front?***"),
            ("rtsp://h/front?jwt=hunter2/trackID=0", "rtsp://h/front?jwt=***"),
            ("rtsp://h/front?jwt=hunter2?x=hunter2#hunter2", "rtsp://h/front?jwt=***"),
            ("/front?jwt=hunter2", "/front?jwt=***"),
            ("rtsp://h/front?jwt=a://hunter2&x&", "rtsp://h/front?jwt=***&***&"),
            ("rtsp://a:hunter?2@h/front?", "rtsp://a:***@h/front?"),
        ] {
            assert_eq!(without_query_values(url), shown, "{url}");
        }
    }
}
