//! The client's side of authentication: challenges as cameras write them, and the responses to them (RFC 7616, 7617, and what cameras
//! of RFC 2617 and 2069 omit).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::auth::{Algorithm, quoted_string};

/// Maximum number of challenges that are read from a response.
const CHALLENGES_MAX: usize = 16;

/// A camera's challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password in clear.
    Basic,
    /// A hash.
    Digest(DigestChallenge),
}

/// The parameters of a Digest challenge (RFC 7616 section 3.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestChallenge {
    /// The realm; echoed.
    pub realm: String,
    /// Echoed.
    pub nonce: String,
    /// Echoed, if present.
    pub opaque: Option<String>,
    /// What to hash with.
    pub algorithm: Algorithm,
    /// The algorithm in the camera's spelling, if present.
    pub named: Option<String>,
    /// Whether the key is a session key (`-sess`).
    pub session: bool,
    /// Whether and how the response counts requests.
    pub quality: Option<Quality>,
    /// Whether the credentials were right and only the nonce has expired.
    pub stale: bool,
}

/// `qop`: what a response protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quality {
    /// Method and URL.
    Auth,
    /// The body as well.
    AuthInt,
}

impl Quality {
    const fn name(self) -> &'static str {
        match self {
            Quality::Auth => "auth",
            Quality::AuthInt => "auth-int",
        }
    }
}

/// The inputs for a response to a challenge.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The request's method.
    pub method: &'a str,
    /// The request's URL, exactly as in the request.
    pub uri: &'a str,
    /// The request's body.
    pub body: &'a str,
    /// How many requests have used this nonce, including this one.
    pub count: u32,
    /// A random text chosen by the client.
    pub cnonce: &'a str,
}

/// Parses the values of `WWW-Authenticate` headers, each with one or several challenges. Challenges that cannot be answered are
/// omitted.
pub fn read<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in values {
        for (scheme, parameters) in split(value) {
            if found.len() < CHALLENGES_MAX {
                found.extend(challenge(&scheme, &parameters));
            }
        }
    }
    found
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    if scheme.eq_ignore_ascii_case("Basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("Digest") {
        return None;
    }
    let get = |name: &str| parameters.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str());
    let named = get("algorithm").map(str::trim).filter(|name| !name.is_empty());
    let upper = named.unwrap_or("MD5").to_ascii_uppercase();
    let (base, session) = match upper.strip_suffix("-SESS") {
        Some(base) => (base, true),
        None => (&upper[..], false),
    };
    let algorithm = Algorithm::OFFERED.into_iter().find(|known| {
        let known = known.name();
        base == known || base.replace(['-', '_'], "") == known.replace('-', "")
    })?;
    let offers =
        |wanted: &str| get("qop").is_some_and(|qop| qop.split(',').any(|one| one.trim().eq_ignore_ascii_case(wanted)));
    let quality = match () {
        () if offers("auth") => Some(Quality::Auth),
        () if offers("auth-int") => Some(Quality::AuthInt),
        () => None,
    };
    Some(Challenge::Digest(DigestChallenge {
        realm: get("realm").unwrap_or_default().to_owned(),
        nonce: get("nonce")?.to_owned(),
        opaque: get("opaque").map(str::to_owned),
        algorithm,
        named: named.map(str::to_owned),
        session,
        quality,
        stale: get("stale").is_some_and(|stale| stale.trim().eq_ignore_ascii_case("true")),
    }))
}

impl DigestChallenge {
    /// The value of the `Authorization` header.
    pub fn answer(&self, user: &str, password: &str, asked: &Asked<'_>) -> String {
        let hash = |parts: &[&str]| self.algorithm.hash(parts);
        let mut ha1 = self.algorithm.ha1(user, &self.realm, password);
        if self.session {
            ha1 = hash(&[&ha1, &self.nonce, asked.cnonce]);
        }
        let ha2 = match self.quality {
            Some(Quality::AuthInt) => hash(&[asked.method, asked.uri, &hash(&[asked.body])]),
            _ => hash(&[asked.method, asked.uri]),
        };
        let count = format!("{:08x}", asked.count);
        let response = match self.quality {
            Some(quality) => hash(&[&ha1, &self.nonce, &count, asked.cnonce, quality.name(), &ha2]),
            None => hash(&[&ha1, &self.nonce, &ha2]),
        };
        let mut out = format!(
            "Digest username={}, realm={}, nonce={}, uri={}, response=\"{response}\"",
            quoted(user),
            quoted(&self.realm),
            quoted(&self.nonce),
            quoted(asked.uri)
        );
        if let Some(named) = &self.named {
            out += &format!(", algorithm={named}");
        }
        if let Some(quality) = self.quality {
            out += &format!(", qop={}, nc={count}", quality.name());
        }
        if self.quality.is_some() || self.session {
            out += &format!(", cnonce={}", quoted(asked.cnonce));
        }
        if let Some(opaque) = &self.opaque {
            out += &format!(", opaque={}", quoted(opaque));
        }
        out
    }
}

/// The value of the `Authorization` header for Basic (RFC 7617 section 2).
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
}

/// A quoted string, escaped so that it cannot end early.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars().filter(|char| !char.is_control()) {
        if matches!(char, '"' | '\\') {
            out.push('\\');
        }
        out.push(char);
    }
    out.push('"');
    out
}

/// The challenges of one header: the scheme of each, and its parameters with lower-case names.
///
/// Cameras write values without quotes and with spaces in them, omit the comma between parameters, and put several challenges into one
/// header.
fn split(value: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',', ';']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        if word.is_empty() && behind.is_empty() {
            return found;
        }
        let after = behind.trim_start_matches([' ', '\t']);
        let Some(value) = after.strip_prefix('=') else {
            found.push((word.to_owned(), Vec::new()));
            rest = behind;
            continue;
        };
        let value = value.trim_start_matches([' ', '\t']);
        let (value, left) = match value.strip_prefix('"') {
            // Without a closing quote it extends to the end of the header.
            Some(quoted) => quoted_string(quoted).unwrap_or_else(|| (quoted.to_owned(), "")),
            None => {
                let end = unquoted_end(value);
                (value[..end].trim_end().to_owned(), &value[end..])
            }
        };
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_ascii_lowercase(), value));
        }
        rest = left;
    }
}

/// Where an unquoted value ends: at a comma, or before the next parameter.
fn unquoted_end(text: &str) -> usize {
    let comma = text.find(',').unwrap_or(text.len());
    let names_next = |at: usize| {
        let next = text[at..comma].trim_start();
        let name = next.split('=').next().unwrap_or_default().trim_end();
        name.len() < next.len()
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text[..comma].match_indices([' ', '\t']).map(|(at, _)| at).find(|at| names_next(*at)).unwrap_or(comma)
}

/// The body of the fuzz target: any header can be read, and whatever was read can be answered.
#[cfg(feature = "testing")]
pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for challenge in read(text.lines()) {
        if let Challenge::Digest(digest) = challenge {
            let asked = Asked { method: "PLAY", uri: &text, body: "", count: 1, cnonce: "c" };
            let answer = digest.answer(&text, "password", &asked);
            assert!(!answer.contains(['\r', '\n']), "{answer:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(value: &str) -> DigestChallenge {
        match &read([value])[..] {
            [Challenge::Digest(digest)] => digest.clone(),
            other => panic!("{value}: {other:?}"),
        }
    }

    fn response(answer: &str) -> &str {
        answer.split("response=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a response")
    }

    #[test]
    fn the_examples_of_the_rfcs_are_answered() {
        let asked = Asked { method: "GET", uri: "/dir/index.html", body: "", count: 1, cnonce: "0a4f113b" };
        let challenge = digest(
            "Digest realm=\"testrealm@host.com\", qop=\"auth,auth-int\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", \
             opaque=\"5ccc069c403ebaf9f0171e9517f40e41\"",
        );
        let answer = challenge.answer("Mufasa", "Circle Of Life", &asked);
        assert_eq!(response(&answer), "6629fae49393a05397450978507c4ef1");
        assert!(answer.contains("qop=auth, nc=00000001, cnonce=\"0a4f113b\", opaque=\"5ccc"), "{answer}");
        let cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
        for (algorithm, expected) in [
            ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
            ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ] {
            let challenge = digest(&format!(
                "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm={algorithm}, \
                 nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"x\""
            ));
            let answer = challenge.answer("Mufasa", "Circle of Life", &Asked { cnonce, ..asked });
            assert_eq!(response(&answer), expected, "{algorithm}");
        }
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn sessions_and_bodies_are_hashed_in() {
        let asked = Asked { method: "SETUP", uri: "rtsp://h/t", body: "", count: 2, cnonce: "c" };
        let md5 = |parts: &[&str]| Algorithm::Md5.hash(parts);
        let ha1 = md5(&[&md5(&["u", "r", "p"]), "n", "c"]);
        let ha2 = md5(&["SETUP", "rtsp://h/t", &md5(&[""])]);
        let challenge = digest("Digest realm=\"r\", nonce=\"n\", algorithm=MD5-sess, qop=\"auth-int\"");
        let answer = challenge.answer("u", "p", &asked);
        assert_eq!(response(&answer), md5(&[&ha1, "n", "00000002", "c", "auth-int", &ha2]));
        let challenge = digest("Digest realm=\"r\", nonce=\"n\", algorithm=MD5-sess");
        let answer = challenge.answer("u", "p", &asked);
        assert_eq!(response(&answer), md5(&[&ha1, "n", &md5(&["SETUP", "rtsp://h/t"])]));
        assert!(answer.contains("cnonce=\"c\"") && !answer.contains("qop"), "{answer}");
    }

    #[test]
    fn challenges_are_read_as_cameras_write_them() {
        for value in [
            "Digest realm=\"IP Camera(12345)\", nonce=\"abc\", stale=\"FALSE\"",
            "digest realm=IP Camera(12345),nonce=abc,stale=false",
            "DIGEST   nonce = \"abc\" realm = \"IP Camera(12345)\"",
            "Digest realm=IP Camera(12345) nonce=abc",
            "Digest realm=\"IP Camera(12345)\", nonce=\"abc",
            "Digest ,, realm=\"IP Camera(12345)\";nonce=\"abc\", algorithm=\"\", domain=/",
        ] {
            let got = digest(value);
            assert_eq!(
                (got.realm.as_str(), got.nonce.as_str(), got.stale),
                ("IP Camera(12345)", "abc", false),
                "{value}"
            );
            assert_eq!((got.algorithm, got.session, got.quality), (Algorithm::Md5, false, None), "{value}");
        }
        let several =
            read(["Basic realm=\"a\", Digest realm=\"b\", nonce=\"n\", stale=TRUE, algorithm=SHA256, Bearer x=y"]);
        let [Challenge::Basic, Challenge::Digest(digest)] = &several[..] else { panic!("{several:?}") };
        assert_eq!((digest.algorithm, digest.stale), (Algorithm::Sha256, true));
        for value in
            ["", "Digest", "Digest realm=\"no nonce\"", "Digest nonce=x, algorithm=SHA-512-256", "Negotiate", "=,=x"]
        {
            assert_eq!(read([value]), [], "{value}");
        }
    }

    #[test]
    fn what_a_user_is_called_ends_no_quotes() {
        let asked = Asked { method: "PLAY", uri: "u", body: "", count: 1, cnonce: "c" };
        let challenge = digest("Digest realm=\"a\\\"b\", nonce=\"n\"");
        let answer = challenge.answer("x\"\\\r\ny", "p", &asked);
        assert!(answer.starts_with("Digest username=\"x\\\"\\\\y\", realm=\"a\\\"b\""), "{answer}");
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read(text in "(Digest|Basic|realm|nonce|=|,|\"|\\\\| |a|;|qop|auth){0,40}") {
            fuzz(text.as_bytes());
        }
    }
}
