//! Access to a scripted camera: Basic and Digest (RFC 2617, RFC 7616), with nonces that expire and addresses that are locked out.

use std::time::{Duration, Instant};

use base64::Engine as _;
use md5::{Digest as _, Md5};

/// An authentication scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// The password itself.
    Basic,
    /// A hash of it and the nonce.
    Digest,
}

/// A camera's realm.
const REALM: &str = "camera";

/// Whom a camera admits, and how it asks for credentials.
#[derive(Clone, Debug)]
pub struct Login {
    /// The user.
    pub user: &'static str,
    /// The password.
    pub password: &'static str,
    /// The schemes it offers, in this order.
    pub offers: &'static [Scheme],
    /// The schemes it really accepts.
    pub takes: Scheme,
    /// The `algorithm` of its Digest; `None` means MD5.
    pub algorithm: Option<&'static str>,
    /// The `qop` that its Digest offers.
    pub qop: Option<&'static str>,
    /// Changes its challenges, because cameras write them in different ways.
    pub spelling: fn(String) -> String,
    /// The lifetime of a nonce.
    pub nonce_lifetime: Option<Duration>,
    /// How many wrong passwords lock an address out, and for how long, restarted by each further try.
    pub locks: Option<(usize, Duration)>,
}

impl Login {
    /// `admin` with `hunter2secret`, by Digest.
    pub fn digest() -> Login {
        Login {
            user: "admin",
            password: "hunter2secret",
            offers: &[Scheme::Digest],
            takes: Scheme::Digest,
            algorithm: None,
            qop: None,
            spelling: |challenge| challenge,
            nonce_lifetime: None,
            locks: None,
        }
    }

    /// The user information in the URL of a camera with this login.
    pub fn userinfo(&self) -> String {
        format!("{}:{}@", self.user, self.password)
    }
}

/// What a camera remembers of its clients' attempts.
#[derive(Default)]
pub struct Door {
    nonces: Vec<(String, Instant)>,
    /// Nonces with the last count (`nc`) used with them.
    counts: Vec<(String, String)>,
    /// Requests with a wrong password.
    pub wrong: usize,
    /// Requests that arrived while their address was locked out.
    pub while_locked: usize,
    locked_until: Option<Instant>,
}

/// The verdict on a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is admitted.
    In,
    /// It is answered 401, with these challenges.
    Out(Vec<String>),
}

impl Door {
    /// Judges a request by its `Authorization` header field.
    pub fn judge(&mut self, login: &Login, method: &str, url: &str, header: Option<&str>, now: Instant) -> Verdict {
        if self.locked_until.is_some_and(|until| now < until) {
            self.while_locked += usize::from(header.is_some());
            self.locked_until = login.locks.map(|(_, lasts)| now + lasts);
            return self.challenge(login, false, now);
        }
        match header.map(|header| self.look(login, method, url, header, now)) {
            Some(Some(true)) => return Verdict::In,
            // The password is right, the nonce is not.
            Some(None) => return self.challenge(login, true, now),
            Some(Some(false)) => {
                self.wrong += 1;
                if let Some((most, lasts)) = login.locks
                    && self.wrong >= most
                {
                    self.locked_until = Some(now + lasts);
                }
            }
            None => {}
        }
        self.challenge(login, false, now)
    }

    /// Whether the header field proves the password; `None` if its nonce is too old.
    fn look(&mut self, login: &Login, method: &str, url: &str, header: &str, now: Instant) -> Option<bool> {
        if let Some(basic) = header.strip_prefix("Basic ") {
            let expected =
                base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", login.user, login.password));
            return Some(login.takes == Scheme::Basic && basic.trim() == expected);
        }
        let Some(fields) = header.strip_prefix("Digest ").map(parameters) else { return Some(false) };
        let field =
            |name: &str| fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, v)| v.as_str());
        let nonce = field("nonce");
        let right = field("response").eq_ignore_ascii_case(&response(login, method, url, &field))
            && field("uri") == url
            && field("username") == login.user
            && field("realm") == REALM
            && login.takes == Scheme::Digest
            && self.counts_on(login, nonce, field("nc"));
        if !right {
            return Some(false);
        }
        let made = self.nonces.iter().find(|(known, _)| known == nonce)?.1;
        let fresh = login.nonce_lifetime.is_none_or(|lifetime| now < made + lifetime);
        fresh.then_some(true)
    }

    /// Whether a nonce is used with a new count, as `qop` requires.
    fn counts_on(&mut self, login: &Login, nonce: &str, count: &str) -> bool {
        let count = (nonce.to_owned(), count.to_owned());
        if login.qop.is_some() && (count.1.len() != 8 || self.counts.contains(&count)) {
            return false;
        }
        self.counts.push(count);
        true
    }

    fn challenge(&mut self, login: &Login, stale: bool, now: Instant) -> Verdict {
        let mut challenges = Vec::new();
        for scheme in login.offers {
            challenges.push(match scheme {
                Scheme::Basic => format!("Basic realm=\"{REALM}\""),
                Scheme::Digest => {
                    let nonce = format!("{:032x}", fastrand::u128(..));
                    let stale = if stale { ", stale=TRUE" } else { "" };
                    let algorithm = login.algorithm.map_or(String::new(), |name| format!(", algorithm={name}"));
                    let qop = login.qop.map_or(String::new(), |names| format!(", qop=\"{names}\""));
                    let challenge = format!("Digest realm=\"{REALM}\", nonce=\"{nonce}\"{algorithm}{qop}{stale}");
                    self.nonces.push((nonce, now));
                    (login.spelling)(challenge)
                }
            });
        }
        Verdict::Out(challenges)
    }
}

/// The expected `response`. Requests have no body.
fn response<'a>(login: &Login, method: &str, url: &str, field: &impl Fn(&str) -> &'a str) -> String {
    let algorithm = login.algorithm.unwrap_or("MD5");
    let hash = |text: &str| match algorithm.trim_end_matches("-sess") {
        "MD5" => hex(&Md5::digest(text.as_bytes())),
        "SHA-256" => hex(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref()),
        other => panic!("no {other}"),
    };
    let (nonce, cnonce, qop) = (field("nonce"), field("cnonce"), field("qop"));
    let mut ha1 = hash(&format!("{}:{REALM}:{}", login.user, login.password));
    if algorithm.ends_with("-sess") {
        ha1 = hash(&format!("{ha1}:{nonce}:{cnonce}"));
    }
    let body = if qop == "auth-int" { format!(":{}", hash("")) } else { String::new() };
    let ha2 = hash(&format!("{method}:{url}{body}"));
    match login.qop {
        None => hash(&format!("{ha1}:{nonce}:{ha2}")),
        Some(offered) if offered.split(',').any(|name| name.trim() == qop) && !cnonce.is_empty() => {
            hash(&format!("{ha1}:{nonce}:{}:{cnonce}:{qop}:{ha2}", field("nc")))
        }
        Some(_) => "a qop that was offered is missing".to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses `name="value"` or `name=value`, separated by commas.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while let Some((name, value)) = rest.split_once('=') {
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => value.split_at(value.find(',').unwrap_or(value.len())),
        };
        found.push((name.trim().to_owned(), value.trim().to_owned()));
        rest = after.trim_start_matches([',', ' ']);
    }
    found
}
