//! HTTP authentication as used by RTSP (RFC 2326 section 14): Basic (RFC 7617), and Digest (RFC 7616), tolerating what clients of RFC
//! 2617 and 2069 omit.
//!
//! Two design decisions follow from real clients. Clients that read only one challenge read the first or the last, and some compute MD5
//! whatever the challenge says. So all challenges in a response have the same nonce, and the algorithm is recognized by the length of
//! the hash, not by its name.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use md5::{Digest as _, Md5};

/// Maximum number of parameters in a header; only about a dozen have a meaning.
const PARAMETERS_MAX: usize = 24;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The hash algorithm of a Digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Algorithm {
    /// MD5; many players support nothing else.
    Md5,
    /// SHA-256.
    Sha256,
}

impl Algorithm {
    /// Both, in the order in which they are offered: the better one first (RFC 7616 section 3.7). Players that use the last challenge,
    /// such as ffmpeg and VLC, get MD5, which all players support.
    pub const OFFERED: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Md5];

    /// Its name in a header.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Md5 => "MD5",
            Algorithm::Sha256 => "SHA-256",
        }
    }

    /// Number of hexadecimal digits of its hashes.
    pub const fn digits(self) -> usize {
        match self {
            Algorithm::Md5 => 32,
            Algorithm::Sha256 => 64,
        }
    }

    /// The hash of the parts joined by colons, in lower-case hexadecimal digits.
    pub fn hash(self, parts: &[&str]) -> String {
        let text = parts.join(":");
        match self {
            Algorithm::Md5 => hex(&Md5::digest(text.as_bytes())),
            Algorithm::Sha256 => hex(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref()),
        }
    }

    /// The hash of a password (`HA1` in RFC 7616 section 3.4.2).
    pub fn ha1(self, user: &str, realm: &str, password: &str) -> String {
        self.hash(&[user, realm, password])
    }
}

/// Bytes in lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The contents of an `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub enum Authorization {
    /// A name and a password, readable by anyone who sees the request.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A hash that proves knowledge of the password.
    Digest(Digest),
}

impl Authorization {
    /// The user name in it.
    pub fn user(&self) -> &str {
        match self {
            Authorization::Basic { user, .. } => user,
            Authorization::Digest(digest) => &digest.user,
        }
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authorization::Basic { user, .. } => f.debug_struct("Basic").field("user", user).finish_non_exhaustive(),
            Authorization::Digest(digest) => digest.fmt(f),
        }
    }
}

/// The parameters of a Digest (RFC 7616 section 3.4), unquoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The user's name.
    pub user: String,
    /// The realm that the user belongs to.
    pub realm: String,
    /// What the challenge gave.
    pub nonce: String,
    /// The request's URL as the client hashed it.
    pub uri: String,
    /// The hash, in lower-case hexadecimal digits; its length depends on the algorithm.
    pub response: String,
    /// The algorithm, recognized by the length.
    pub algorithm: Algorithm,
    /// `nc` and `cnonce`, if the client used `qop=auth`.
    pub counted: Option<(String, String)>,
}

impl Digest {
    /// The hash that a client sends if it knows the password with hash `ha1` (RFC 7616 section 3.4.1; without `qop`, RFC 2617 section
    /// 3.2.2.1).
    pub fn expected(&self, ha1: &str, method: &str) -> String {
        let ha2 = self.algorithm.hash(&[method, &self.uri]);
        match &self.counted {
            Some((nc, cnonce)) => self.algorithm.hash(&[ha1, &self.nonce, nc, cnonce, "auth", &ha2]),
            None => self.algorithm.hash(&[ha1, &self.nonce, &ha2]),
        }
    }
}

/// Parses an `Authorization` header. `None` for other schemes, and for values that are invalid or were not offered.
pub fn parse(value: &str) -> Option<Authorization> {
    let (scheme, rest) = scheme(value)?;
    if scheme.eq_ignore_ascii_case("Basic") {
        let decoded = LENIENT.decode(rest.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        return Some(Authorization::Basic { user: user.to_owned(), password: password.to_owned() });
    }
    if !scheme.eq_ignore_ascii_case("Digest") {
        return None;
    }
    let mut parameters = parameters(rest)?;
    let mut take = |name: &str| {
        let at = parameters.iter().position(|(have, _)| have == name)?;
        Some(parameters.swap_remove(at).1)
    };
    let response = take("response")?.to_ascii_lowercase();
    let algorithm = Algorithm::OFFERED.into_iter().find(|known| known.digits() == response.len())?;
    let named = take("algorithm");
    let session = named.is_some_and(|name| name.to_ascii_lowercase().ends_with("-sess"));
    if session || !response.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let counted = match take("qop") {
        Some(qop) if qop.eq_ignore_ascii_case("auth") => Some((take("nc")?, take("cnonce")?)),
        Some(qop) if !qop.is_empty() => return None,
        _ => None,
    };
    Some(Authorization::Digest(Digest {
        user: take("username")?,
        realm: take("realm")?,
        nonce: take("nonce")?,
        uri: take("uri")?,
        response,
        algorithm,
        counted,
    }))
}

/// The values of the `WWW-Authenticate` headers, one each, the best first.
///
/// VLC reads `realm`, `nonce` and `stale` only in this order, and only with one space between them.
pub fn challenges(realm: &str, nonce: &str, stale: bool, basic: bool) -> Vec<String> {
    let stale = if stale { ", stale=true" } else { "" };
    let digest = |algorithm: Algorithm| {
        format!("Digest realm=\"{realm}\", nonce=\"{nonce}\"{stale}, algorithm={}", algorithm.name())
    };
    let mut values: Vec<String> = Algorithm::OFFERED.into_iter().map(digest).collect();
    if basic {
        values.push(format!("Basic realm=\"{realm}\", charset=\"UTF-8\""));
    }
    values
}

/// A client's answer to one of our challenges: the value of its `Authorization` header. `None` if the challenge is not a Digest, or
/// requires something that the relay does not support.
pub fn answer(challenge: &str, user: &str, password: &str, method: &str, uri: &str) -> Option<String> {
    let (scheme, rest) = scheme(challenge)?;
    if !scheme.eq_ignore_ascii_case("Digest") {
        return None;
    }
    let parameters = parameters(rest)?;
    let get = |name: &str| parameters.iter().find(|(have, _)| have == name).map(|(_, value)| value.clone());
    let named = get("algorithm").unwrap_or_else(|| "MD5".to_owned());
    let algorithm = Algorithm::OFFERED.into_iter().find(|known| known.name().eq_ignore_ascii_case(&named))?;
    let (realm, nonce) = (get("realm")?, get("nonce")?);
    let ha1 = algorithm.ha1(user, &realm, password);
    let mut digest = Digest {
        user: user.to_owned(),
        realm,
        nonce,
        uri: uri.to_owned(),
        response: String::new(),
        algorithm,
        counted: None,
    };
    digest.response = digest.expected(&ha1, method);
    let Digest { user, realm, nonce, uri, response, .. } = &digest;
    Some(format!(
        "Digest username=\"{user}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", response=\"{response}\", algorithm={named}"
    ))
}

/// Whether the URL that a client hashed matches the request's, as tolerantly as real clients require: with or without scheme and host
/// (which a proxy may have changed), with or without a trailing slash, and the stream's URL for one of its tracks.
pub fn same_resource(requested: &str, hashed: &str) -> bool {
    let path = |url: &str| {
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?']) => rest.find(['/', '?']).map_or("", |at| &rest[at..]),
            _ => url,
        };
        rest.trim_matches('/').to_owned()
    };
    let (requested, hashed) = (path(requested), path(hashed));
    let Some(rest) = requested.strip_prefix(hashed.as_str()) else { return false };
    // The name of a track: `trackID=0`, or a publisher's `streamid=0`.
    let is_track = |rest: &str| {
        let named = rest.split_once('=').is_some_and(|(name, number)| {
            let known = ["trackID", "streamid", "track", "stream"].iter().any(|known| known.eq_ignore_ascii_case(name));
            known && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        named && !rest.contains('/')
    };
    rest.is_empty() || rest.strip_prefix('/').or(hashed.is_empty().then_some(rest)).is_some_and(is_track)
}

/// Splits `Digest realm=…` after its first word.
fn scheme(value: &str) -> Option<(&str, &str)> {
    let value = value.trim();
    let (scheme, rest) = value.split_once([' ', '\t'])?;
    (!scheme.is_empty()).then_some((scheme, rest))
}

/// Lower-case names, and values, of `name=value, name="value"`. `None` if it is malformed or has a name twice.
fn parameters(text: &str) -> Option<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Some(found);
        }
        let (name, after) = rest.split_once('=')?;
        let name = name.trim().to_ascii_lowercase();
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) || found.len() == PARAMETERS_MAX {
            return None;
        }
        if found.iter().any(|(have, _)| *have == name) {
            return None;
        }
        let after = after.trim_start_matches([' ', '\t']);
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted)?,
            None => {
                let end = after.find([',', ' ', '\t']).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        found.push((name, value));
        rest = left;
    }
}

/// Reads up to the closing quote. Returns the text without backslashes, and the rest.
pub(super) fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(value: &str) -> Digest {
        match parse(value) {
            Some(Authorization::Digest(digest)) => digest,
            other => panic!("{value}: {other:?}"),
        }
    }

    /// RFC 2617 section 3.5.
    #[test]
    fn the_example_of_rfc_2617() {
        let digest = digest(
            "Digest username=\"Mufasa\", realm=\"testrealm@host.com\", \
             nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", uri=\"/dir/index.html\", qop=auth, nc=00000001, \
             cnonce=\"0a4f113b\", response=\"6629fae49393a05397450978507c4ef1\", \
             opaque=\"5ccc069c403ebaf9f0171e9517f40e41\"",
        );
        let ha1 = Algorithm::Md5.ha1("Mufasa", "testrealm@host.com", "Circle Of Life");
        assert_eq!(digest.expected(&ha1, "GET"), digest.response);
        assert_ne!(digest.expected(&ha1, "HEAD"), digest.response);
    }

    /// RFC 7616 section 3.9.1.
    #[test]
    fn the_examples_of_rfc_7616() {
        for (algorithm, response) in [
            (Algorithm::Md5, "8ca523f5e9506fed4657c9700eebdbec"),
            (Algorithm::Sha256, "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ] {
            let digest = digest(&format!(
                "Digest username=\"Mufasa\", realm=\"http-auth@example.org\", uri=\"/dir/index.html\", algorithm={}, \
                 nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", nc=00000001, \
                 cnonce=\"f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ\", qop=auth, response=\"{response}\", \
                 opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"",
                algorithm.name()
            ));
            assert_eq!(digest.algorithm, algorithm);
            let ha1 = algorithm.ha1("Mufasa", "http-auth@example.org", "Circle of Life");
            assert_eq!(digest.expected(&ha1, "GET"), response);
        }
    }

    #[test]
    fn basic_is_read_with_and_without_padding() {
        for value in ["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "basic   QWxhZGRpbjpvcGVuIHNlc2FtZQ"] {
            let expected = Authorization::Basic { user: "Aladdin".to_owned(), password: "open sesame".to_owned() };
            assert_eq!(parse(value), Some(expected), "{value}");
        }
        assert!(!format!("{:?}", parse("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")).contains("sesame"));
        for value in ["Basic", "Basic !", "Basic QWxhZGRpbg==", "Bearer abc", ""] {
            assert_eq!(parse(value), None, "{value}");
        }
    }

    #[test]
    fn a_digest_may_be_written_in_many_ways() {
        let response = "0123456789abcdef0123456789abcdef";
        let expected = Digest {
            user: "a\"b".to_owned(),
            realm: "r".to_owned(),
            nonce: "n".to_owned(),
            uri: "rtsp://h/a,b".to_owned(),
            response: response.to_owned(),
            algorithm: Algorithm::Md5,
            counted: None,
        };
        for value in [
            "Digest username=\"a\\\"b\", realm=\"r\", nonce=\"n\", uri=\"rtsp://h/a,b\", response=\"RESP\"",
            "DIGEST  response=RESP,uri=\"rtsp://h/a,b\",nonce=n,realm=r,username=\"a\\\"b\"",
            "Digest ,, Username = \"a\\\"b\" ,realm=\"r\" nonce=n uri=\"rtsp://h/a,b\", algorithm=\"md5\", response=\"RESP\",",
            "digest username=\"a\\\"b\", realm=r, nonce=n, uri=\"rtsp://h/a,b\", response=RESP, qop=\"\", opaque=\"\"",
            // It claims SHA-256, but computed MD5.
            "Digest username=\"a\\\"b\", realm=\"r\", nonce=\"n\", uri=\"rtsp://h/a,b\", algorithm=SHA-256, response=\"RESP\"",
        ] {
            assert_eq!(digest(&value.replace("RESP", response)), expected, "{value}");
            assert_eq!(digest(&value.replace("RESP", &response.to_uppercase())), expected, "{value}");
        }
    }

    #[test]
    fn what_is_no_digest_is_none() {
        let good = "Digest username=u, realm=r, nonce=n, uri=/, response=0123456789abcdef0123456789abcdef";
        assert!(parse(good).is_some());
        for value in [
            good.replace("username=u, ", ""),
            good.replace("nonce=n, ", ""),
            good.replace("uri=/, ", ""),
            good.replace("realm=r", "realm=\"r"),
            good.replace("realm=r", "realm"),
            good.replace("realm=r", "realm=r, realm=s"),
            good.replace("abcdef", "abcdeg"),
            good.replace("abcdef", "abcd"),
            format!("{good}, qop=auth"),
            format!("{good}, qop=auth-int, nc=1, cnonce=c"),
            format!("{good}, algorithm=MD5-sess"),
            format!("{good}, {}", (0..30).map(|n| format!("x{n}=1")).collect::<Vec<_>>().join(", ")),
        ] {
            assert_eq!(parse(&value), None, "{value}");
        }
    }

    #[test]
    fn an_answer_fits_its_challenge() {
        for challenge in challenges("relay", "abc", true, true) {
            let Some(value) = answer(&challenge, "u", "p", "DESCRIBE", "rtsp://h/front") else {
                assert_eq!(challenge, "Basic realm=\"relay\", charset=\"UTF-8\"");
                continue;
            };
            let digest = digest(&value);
            assert!(challenge.starts_with("Digest realm=\"relay\", nonce=\"abc\", stale=true, algorithm="));
            let ha1 = digest.algorithm.ha1("u", "relay", "p");
            assert_eq!(digest.expected(&ha1, "DESCRIBE"), digest.response);
        }
        assert_eq!(challenges("r", "n", false, false).len(), 2);
    }

    #[test]
    fn the_url_that_was_hashed_is_the_requests() {
        for (requested, hashed) in [
            ("rtsp://h/front", "rtsp://h/front"),
            ("rtsp://h/front/", "rtsp://h/front"),
            ("rtsp://h/front", "rtsp://h/front/"),
            ("rtsp://h:554/front", "/front"),
            ("rtsp://10.0.0.1/front", "rtsp://relay.example.org:8554/front"),
            ("rtsp://h/front/trackID=0", "rtsp://h/front/"),
            ("rtsp://h/front/trackID=0", "rtsp://h/front"),
            ("rtsp://h/live/streamid=1", "rtsp://h/live"),
            ("rtsp://h/front?a=b/trackID=0", "rtsp://h/front?a=b"),
            ("rtsp://h/trackID=1", "rtsp://h/"),
            ("rtsp://h", "rtsp://h/"),
            ("rtsp://h/trackID=0", "rtsp://h"),
            ("/status", "/status"),
        ] {
            assert!(same_resource(requested, hashed), "{requested} {hashed}");
        }
        for (requested, hashed) in [
            ("rtsp://h/front", "rtsp://h/back"),
            ("rtsp://h/front", "rtsp://h/"),
            ("rtsp://h/frontdoor", "rtsp://h/front"),
            ("rtsp://h/front/trackID=1", "rtsp://h/front/trackID=0"),
            ("rtsp://h/front", "rtsp://h/front/trackID=0"),
            ("rtsp://h/front/back", "rtsp://h/front"),
            ("/metrics", "/status"),
        ] {
            assert!(!same_resource(requested, hashed), "{requested} {hashed}");
        }
    }
}
