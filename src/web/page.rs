//! The page: one HTML file with its script and style, compiled in. Nothing is loaded from elsewhere, and the Content-Security-Policy
//! allows nothing else to run.

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

/// The page itself.
pub const HTML: &str = include_str!("page.html");

/// The hash of the text between two tags, as used in a policy (Content Security Policy Level 3 section 2.3.1).
fn hash_between(start: &str, end: &str) -> String {
    let content = HTML.split_once(start).and_then(|(_, rest)| rest.split_once(end)).map_or("", |(content, _)| content);
    format!("'sha256-{}'", STANDARD.encode(digest::digest(&digest::SHA256, content.as_bytes())))
}

/// The `Content-Security-Policy` for a page requested by this host name, which may be embedded by those origins besides its own.
pub fn policy(host: &str, embedders: &[String]) -> String {
    static HASHES: OnceLock<(String, String)> = OnceLock::new();
    let hashes = HASHES.get_or_init(|| (hash_between("<script>", "</script>"), hash_between("<style>", "</style>")));
    let (script, style) = hashes;
    // Some browsers do not count WebSockets on the same host as 'self'.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    let sockets = if host.chars().all(is_plain) && !host.is_empty() {
        format!(" ws://{host} wss://{host}")
    } else {
        String::new()
    };
    let ancestors = embedders.iter().fold("'self'".to_owned(), |all, origin| all + " " + origin);
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'{sockets}; img-src 'self' blob: data:; \
         media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_script_and_one_style_and_calls_nobody() {
        for tag in ["<script", "<style"] {
            assert_eq!(HTML.matches(tag).count(), 1, "{tag}");
        }
        for elsewhere in ["http://", "https://", " onclick=", " style=", "@import", "<link rel=\"stylesheet"] {
            assert!(!HTML.contains(elsewhere), "{elsewhere}");
        }
        let policy = policy("cam:8580", &["https://home.example".into()]);
        assert!(policy.contains("script-src 'sha256-") && policy.contains(" ws://cam:8580 "), "{policy}");
        assert!(policy.ends_with("frame-ancestors 'self' https://home.example"), "{policy}");
        assert!(!super::policy("a; script-src *", &[]).contains("script-src *"));
    }
}
