//! Who may do what: users, their passwords' hashes and rights; nonces; addresses that fail too often.
//!
//! One [`Access`] is shared by all shards and the HTTP server, and replaced as a whole when the configuration is read again. What
//! has to outlive that, and to be the same for all of them, is its [`Guard`]: a nonce that one shard gave out is checked by
//! another, and failures are counted wherever they happen. Nothing here waits or locks, and time comes in as an argument.
#![forbid(unsafe_code)]

mod failures;
mod nonce;
mod user;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use failures::Failures;
use nonce::{Nonces, Validity};
pub use user::{AddressRange, Right, Secrets, User};

use crate::wire::auth::{self, Algorithm, Authorization};

/// What users are known in (RFC 7616 section 3.3). Part of every stored hash, so it never changes.
pub const REALM: &str = "rtsprelay";

/// What log lines about authentication go by; they are told one by one, for a program to read them.
pub const LOG_TARGET: &str = "rtsprelay::auth";

/// What all shards share for as long as the relay runs.
pub struct Guard {
    nonces: Nonces,
    failures: Failures,
}

impl Guard {
    /// With a secret that nobody can guess; `epoch` is any moment in the past.
    pub fn new(secret: &[u8; 32], epoch: Instant) -> Arc<Guard> {
        Arc::new(Guard { nonces: Nonces::new(secret, epoch), failures: Failures::new(epoch) })
    }
}

/// The users there are, and how they prove who they are.
pub struct Access {
    users: Vec<Arc<User>>,
    basic: bool,
    nonce_lifetime: Duration,
    guard: Arc<Guard>,
}

/// A request, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The client's address.
    pub peer: IpAddr,
    /// The method.
    pub method: &'a str,
    /// The URL as the client wrote it.
    pub url: &'a str,
    /// The value of the `Authorization` header.
    pub authorization: Option<&'a str>,
    /// The user whose right password its connection has shown before: as that one it is heard even if others fail at the same
    /// address.
    pub known: Option<&'a str>,
}

/// What comes of a request's credentials.
#[derive(Debug)]
pub enum Checked {
    /// They are this user's.
    Granted(Arc<User>),
    /// They are this user's, but for a nonce that is too old, or (`expired` is false) not ours or for another address.
    Stale {
        /// Who.
        user: Arc<User>,
        /// Whether the nonce was good once, for this address.
        expired: bool,
    },
    /// There are none, or none that can be understood.
    Missing,
    /// They are wrong.
    Wrong {
        /// The user they name, if there is one.
        user: Option<Arc<User>>,
        /// What is wrong, for the log.
        reason: &'static str,
        /// Whether the address is refused from now on.
        last: bool,
    },
    /// The address has failed too often: whether they are right has not been looked at.
    Refused,
}

impl Access {
    /// Users, of which there is at least one; `basic` lets them send their passwords as they are. Nonces are good for `nonce_lifetime`.
    pub fn new(users: Vec<Arc<User>>, basic: bool, nonce_lifetime: Duration, guard: Arc<Guard>) -> Arc<Access> {
        Arc::new(Access { users, basic, nonce_lifetime, guard })
    }

    /// The user of that name.
    pub fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The values of the `WWW-Authenticate` headers for a client at this address.
    pub fn challenges(&self, now: Instant, peer: IpAddr, stale: bool) -> Vec<String> {
        auth::challenges(REALM, &self.guard.nonces.draw(now, peer), stale, self.basic)
    }

    /// Looks at the credentials of a request.
    pub fn check(&self, now: Instant, presented: &Presented<'_>) -> Checked {
        let Some(authorization) = presented.authorization else { return Checked::Missing };
        let parsed = auth::parse(authorization);
        // Who is one user has no more tries at another one's password than a stranger.
        let is_known = presented.known.is_some() && presented.known == parsed.as_ref().map(Authorization::user);
        if !is_known && self.guard.failures.is_refused(now, presented.peer) {
            return Checked::Refused;
        }
        let checked = match parsed {
            Some(Authorization::Digest(digest)) if digest.realm == REALM => self.check_digest(now, presented, &digest),
            Some(Authorization::Basic { user, password }) if self.basic => self.check_basic(&user, &password),
            _ => return Checked::Missing,
        };
        let user = match &checked {
            Checked::Granted(user) | Checked::Stale { user, .. } => user,
            _ => return self.failed(now, presented.peer, checked),
        };
        if !user.may_come_from(presented.peer) {
            let wrong = wrong(Some(user), "not from this address");
            return self.failed(now, presented.peer, wrong);
        }
        checked
    }

    fn failed(&self, now: Instant, peer: IpAddr, checked: Checked) -> Checked {
        match checked {
            Checked::Wrong { user, reason, .. } => {
                Checked::Wrong { user, reason, last: self.guard.failures.record(now, peer) }
            }
            other => other,
        }
    }

    fn check_digest(&self, now: Instant, presented: &Presented<'_>, digest: &auth::Digest) -> Checked {
        let user = self.user(&digest.user);
        // Somebody unknown takes as long as somebody known.
        let stand_in = "0".repeat(digest.algorithm.digits());
        let ha1 = user.and_then(|user| user.secrets.ha1(digest.algorithm));
        let expected = digest.expected(ha1.unwrap_or(&stand_in), presented.method);
        let right: bool = expected.as_bytes().ct_eq(digest.response.as_bytes()).into();
        let Some(user) = user else { return wrong(None, "unknown user") };
        if ha1.is_none() {
            return wrong(Some(user), "no hash for this algorithm is configured");
        }
        if !right {
            return wrong(Some(user), "wrong password");
        }
        if !auth::same_resource(presented.url, &digest.uri) {
            return wrong(Some(user), "credentials of another request");
        }
        let user = Arc::clone(user);
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
