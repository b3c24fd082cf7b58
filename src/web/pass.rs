//! What a browser presents instead of a password: a cookie after a login, or a token in a link to one stream.
//!
//! Both are signed (HMAC-SHA-256) with a key derived from the password's hash. So every relay that knows the user accepts them, also
//! after a restart, and changing the password invalidates them. Nothing is stored.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::access::{Secrets, User};
use crate::wire::auth::Algorithm;

/// The name of the cookie.
pub const COOKIE: &str = "rtsprelay";

/// The query parameter of a link.
pub const PARAMETER: &str = "token";

/// Maximum length of a pass in bytes.
const PASS_BYTES_MAX: usize = 1_024;

/// The user that a pass is for, and what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The user.
    pub user: String,
    /// When it expires, as Unix time in seconds.
    pub expires: u64,
    /// The only stream that it allows; `None` for all that its user may watch.
    pub stream: Option<String>,
}

fn key(secrets: &Secrets) -> Option<hmac::Key> {
    let ha1 = [Algorithm::Sha256, Algorithm::Md5].into_iter().find_map(|algorithm| secrets.ha1(algorithm))?;
    // Not the hash itself, so that signatures made with it elsewhere are useless here.
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, ha1.as_bytes()), b"rtsprelay pass");
    Some(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
}

impl Pass {
    /// The signed text: no part can contain a dot, so it is unambiguous.
    fn claims(&self) -> String {
        let stream = self.stream.as_ref().map_or_else(|| "-".to_owned(), |stream| URL_SAFE_NO_PAD.encode(stream));
        format!("{}.{}.{stream}", URL_SAFE_NO_PAD.encode(&self.user), self.expires)
    }

    /// The pass as text for URLs and cookies; `None` for a user without a hash.
    pub fn sign(&self, secrets: &Secrets) -> Option<String> {
        let claims = self.claims();
        let mac = hmac::sign(&key(secrets)?, claims.as_bytes());
        Some(format!("{claims}.{}", URL_SAFE_NO_PAD.encode(mac)))
    }

    /// Verifies a pass at `now` (Unix time in seconds), and returns it with its user.
    pub fn open(text: &str, now: u64, find: impl Fn(&str) -> Option<Arc<User>>) -> Option<(Pass, Arc<User>)> {
        if text.len() > PASS_BYTES_MAX {
            return None;
        }
        let (claims, mac) = text.rsplit_once('.')?;
        let [user, expires, stream] = claims.split('.').collect::<Vec<_>>().try_into().ok()?;
        let decoded = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        let stream = match stream {
            "-" => None,
            stream => Some(decoded(stream)?),
        };
        let pass = Pass { user: decoded(user)?, expires: expires.parse().ok()?, stream };
        let user = find(&pass.user)?;
        hmac::verify(&key(&user.secrets)?, claims.as_bytes(), &URL_SAFE_NO_PAD.decode(mac).ok()?).ok()?;
        (now < pass.expires && pass.claims() == claims).then_some((pass, user))
    }
}

/// The cookie's value in a `Cookie` header (RFC 6265 section 4.2.1).
pub fn cookie(header: &str) -> Option<&str> {
    header.split(';').find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// A `Set-Cookie` header (RFC 6265 section 4.1) with this lifetime in seconds.
pub fn set_cookie(pass: &str, seconds: u64, is_secure: bool) -> String {
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{COOKIE}={pass}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(password: &str) -> Arc<User> {
        Arc::new(User::viewer("viewer.1", password))
    }

    #[test]
    fn a_pass_opens_until_it_expires_or_the_password_changes() {
        for stream in [None, Some("live/cam1".to_owned()), Some("-".to_owned())] {
            let pass = Pass { user: "viewer.1".into(), expires: 1_000, stream };
            let text = pass.sign(&user("secret").secrets).unwrap();
            let open = |text: &str, now, password: &str| {
                Pass::open(text, now, |name| (name == "viewer.1").then(|| user(password))).map(|(pass, _)| pass)
            };
            assert_eq!(open(&text, 999, "secret"), Some(pass.clone()));
            assert_eq!(open(&text, 1_000, "secret"), None, "expired");
            assert_eq!(open(&text, 999, "another"), None, "another password");
            let later = text.replacen(".1000.", ".9000.", 1);
            assert_eq!(open(&later, 999, "secret"), None, "claims that were changed");
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
                assert_eq!(open(&String::from_utf8(bytes).unwrap(), 999, "secret"), None, "byte {at}");
            }
        }
        assert_eq!(Pass::open("", 0, |_| Some(user("x"))), None);
        assert_eq!(Pass::open("a.b.c.d", 0, |_| Some(user("x"))), None);
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        assert_eq!(cookie("a=b; rtsprelay=x.y; c=d"), Some("x.y"));
        assert_eq!(cookie("xrtsprelay=1; rtsprelays=2"), None);
        assert!(set_cookie("p", 60, true).ends_with("HttpOnly; SameSite=Lax; Secure"));
    }
}
