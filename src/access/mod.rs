//! Users, their password hashes and rights; nonces; and addresses with wrong passwords.
//!
//! One [`Access`] is shared by all shards and the HTTP server, and replaced as a whole on a reload. State that must survive this and be
//! common to all is in its [`Guard`]: a nonce from one shard is accepted by another, and failures are counted wherever they happen.
//! Nothing here waits or locks, and the time is an argument.
#![forbid(unsafe_code)]

mod failures;
mod nonce;
pub mod outside;
mod user;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use failures::Failures;
use nonce::{Nonces, Validity};
pub use user::{AddressRange, Right, Secrets, User};

use crate::wire::auth::{self, Algorithm, Authorization};
use crate::wire::rtsp::METHODS;

/// The realm (RFC 7616 section 3.3). It is part of every stored hash, so it must never change.
pub const REALM: &str = "rtsprelay";

/// The target of log lines about authentication; they are logged one by one, so that programs can read them.
pub const LOG_TARGET: &str = "rtsprelay::auth";

/// State that all shards share for as long as the relay runs.
pub struct Guard {
    nonces: Nonces,
    failures: Failures,
}

impl Guard {
    /// With a random secret; `epoch` is any time in the past.
    pub fn new(secret: &[u8; 32], epoch: Instant) -> Arc<Guard> {
        Arc::new(Guard { nonces: Nonces::new(secret, epoch), failures: Failures::new(epoch) })
    }
}

/// The users, and how they authenticate.
pub struct Access {
    users: Vec<Arc<User>>,
    basic: bool,
    nonce_lifetime: Duration,
    guard: Arc<Guard>,
}

/// The relevant parts of a request.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The client's address.
    pub peer: IpAddr,
    /// The method.
    pub method: &'a str,
    /// The URL in the client's spelling.
    pub url: &'a str,
    /// The value of the `Authorization` header.
    pub authorization: Option<&'a str>,
    /// The user whose right password was shown on this connection before; that user is accepted even if others fail at the same
    /// address.
    pub known: Option<&'a str>,
    /// Whether it has waited ([`Checked::Later`]).
    pub waited: bool,
}

/// The result of checking a request's credentials.
#[derive(Debug)]
pub enum Checked {
    /// They are this user's.
    Granted(Arc<User>),
    /// They are this user's, but the nonce has expired, or (`expired` is false) was not issued by this relay, for this address, or for
    /// this request.
    Stale {
        /// Who.
        user: Arc<User>,
        /// Whether the nonce was once valid for this address, and the credentials match this request.
        expired: bool,
    },
    /// There are none, or they are malformed.
    Missing,
    /// They are wrong.
    Wrong {
        /// The user name, if that user exists.
        user: Option<Arc<User>>,
        /// The reason, for the log.
        reason: &'static str,
        /// Whether the address is refused from now on.
        last: bool,
    },
    /// This user has failed too often at this address; the credentials were not checked.
    Refused,
    /// The same, but the user was there recently and may not be the one who fails; check again at that time.
    Later(Instant),
}

impl Access {
    /// At least one user; `basic` allows Basic authentication. Nonces are valid for `nonce_lifetime`.
    pub fn new(users: Vec<Arc<User>>, basic: bool, nonce_lifetime: Duration, guard: Arc<Guard>) -> Arc<Access> {
        Arc::new(Access { users, basic, nonce_lifetime, guard })
    }

    /// The user with that name.
    pub fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The values of the `WWW-Authenticate` headers for a client at this address.
    pub fn challenges(&self, now: Instant, peer: IpAddr, stale: bool) -> Vec<String> {
        auth::challenges(REALM, &self.guard.nonces.draw(now, peer), stale, self.basic)
    }

    /// Checks a name and password that somebody typed in, like [`Access::check`] does for a request. Whether passwords may be sent in
    /// clear is up to the caller.
    pub fn check_login(&self, now: Instant, peer: IpAddr, (name, password): (&str, &str), waited: bool) -> Checked {
        let user = self.user(name).map(|user| user.name.as_str());
        if !waited && self.guard.failures.is_refused(now, peer, user) {
            let turn = user.and_then(|user| self.guard.failures.turn(now, peer, user));
            return turn.map_or(Checked::Refused, Checked::Later);
        }
        let checked = self.check_basic(name, password);
        self.settled(now, peer, checked)
    }

    /// Whether users may use Basic authentication.
    pub fn is_basic(&self) -> bool {
        self.basic
    }

    /// Checks the credentials of a request.
    pub fn check(&self, now: Instant, presented: &Presented<'_>) -> Checked {
        let Some(authorization) = presented.authorization else { return Checked::Missing };
        let parsed = auth::parse(authorization);
        // A user who is logged in has no more attempts at another user's password than anyone else.
        let name = parsed.as_ref().map(Authorization::user);
        let is_known = presented.known.is_some() && presented.known == name;
        let user = name.and_then(|name| self.user(name)).map(|user| user.name.as_str());
        if !is_known && !presented.waited && self.guard.failures.is_refused(now, presented.peer, user) {
            let turn = user.and_then(|user| self.guard.failures.turn(now, presented.peer, user));
            return turn.map_or(Checked::Refused, Checked::Later);
        }
        let checked = match parsed {
            Some(Authorization::Digest(digest)) if digest.realm == REALM => self.check_digest(now, presented, &digest),
            Some(Authorization::Basic { user, password }) if self.basic => self.check_basic(&user, &password),
            _ => return Checked::Missing,
        };
        self.settled(now, presented.peer, checked)
    }

    /// Counts the result of a check; credentials are valid only from the user's addresses.
    fn settled(&self, now: Instant, peer: IpAddr, checked: Checked) -> Checked {
        let user = match &checked {
            Checked::Granted(user) | Checked::Stale { user, .. } => user,
            _ => return self.failed(now, peer, checked),
        };
        if !user.may_come_from(peer) {
            let wrong = wrong(Some(user), "not from this address");
            return self.failed(now, peer, wrong);
        }
        if let Checked::Granted(user) = &checked {
            self.guard.failures.saw(now, peer, &user.name);
        }
        checked
    }

    fn failed(&self, now: Instant, peer: IpAddr, checked: Checked) -> Checked {
        match checked {
            Checked::Wrong { user, reason, .. } => {
                let last = self.guard.failures.record(now, peer, user.as_ref().map(|user| user.name.as_str()));
                Checked::Wrong { user, reason, last }
            }
            other => other,
        }
    }

    fn check_digest(&self, now: Instant, presented: &Presented<'_>, digest: &auth::Digest) -> Checked {
        let user = self.user(&digest.user);
        // An unknown user takes as long to check as a known one.
        let stand_in = "0".repeat(digest.algorithm.digits());
        let ha1 = user.and_then(|user| user.secrets.ha1(digest.algorithm));
        let is_for = |method: &str| -> bool {
            let expected = digest.expected(ha1.unwrap_or(&stand_in), method);
            expected.as_bytes().ct_eq(digest.response.as_bytes()).into()
        };
        let right = is_for(presented.method);
        let repeated = !right && METHODS.iter().fold(false, |found, method| found | is_for(method));
        let Some(user) = user else { return wrong(None, "unknown user") };
        if ha1.is_none() {
            return wrong(Some(user), "no hash for this algorithm is configured");
        }
        if !right && !repeated {
            return wrong(Some(user), "wrong password");
        }
        let user = Arc::clone(user);
        // Some players repeat the credentials of their last request with the next one. Such a client knows the password and is asked
        // for the right credentials; these ones grant nothing.
        if repeated || !auth::same_resource(presented.url, &digest.uri) {
            return Checked::Stale { user, expired: false };
        }
        match self.guard.nonces.check(now, presented.peer, &digest.nonce, self.nonce_lifetime) {
            Validity::Fresh => Checked::Granted(user),
            Validity::Expired => Checked::Stale { user, expired: true },
            Validity::Foreign => Checked::Stale { user, expired: false },
        }
    }

    fn check_basic(&self, name: &str, password: &str) -> Checked {
        let user = self.user(name);
        let known = |algorithm: Algorithm| Some((algorithm, user?.secrets.ha1(algorithm)?));
        let stand_in = "0".repeat(Algorithm::Sha256.digits());
        let (algorithm, ha1) = Algorithm::OFFERED.into_iter().find_map(known).unwrap_or((Algorithm::Sha256, &stand_in));
        let given = algorithm.ha1(name, REALM, password);
        let right: bool = given.as_bytes().ct_eq(ha1.as_bytes()).into();
        match user {
            Some(user) if right => Checked::Granted(Arc::clone(user)),
            Some(user) => wrong(Some(user), "wrong password"),
            None => wrong(None, "unknown user"),
        }
    }
}

fn wrong(user: Option<&Arc<User>>, reason: &'static str) -> Checked {
    Checked::Wrong { user: user.map(Arc::clone), reason, last: false }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("users", &self.users).field("basic", &self.basic).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
