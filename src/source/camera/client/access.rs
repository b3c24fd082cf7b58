//! Authentication to a camera: which challenge is answered, how often, and how. A 401 ends up here.

use serde::{Deserialize, Serialize};

use crate::wire::auth::Algorithm;
use crate::wire::challenge::{self, Asked, Challenge};
use crate::wire::rtsp::Answer;

use super::super::address::Credentials;
use super::super::fault::Fault;

/// Maximum number of times that a request is repeated with a new nonce.
const NONCES_MAX: u8 = 2;

/// The credentials that are sent with each request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Chosen {
    Basic,
    Digest(challenge::DigestChallenge),
}

/// The client's side of authentication in one session. Saved as plain data it does not include the password, which the restorer has
/// from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Access {
    #[serde(skip)]
    credentials: Option<Credentials>,
    /// Whether Basic may be used after a refused Digest; it sends the password in clear.
    basic_allowed: bool,
    /// MD5 is used instead of SHA-256, which was refused.
    md5_first: bool,
    chosen: Option<Chosen>,
    /// Requests that have used the chosen nonce.
    count: u32,
    cnonce: String,
    /// The camera has accepted a request with these credentials.
    accepted: bool,
    basic_tried: bool,
}

/// How a request was sent, for judging its response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sent {
    /// With credentials.
    with_credentials: bool,
    /// Number of repetitions.
    again: u8,
}

impl Access {
    pub(super) fn new(credentials: Option<Credentials>, basic_allowed: bool, md5_first: bool, cnonce: String) -> Self {
        Access {
            credentials,
            basic_allowed,
            md5_first,
            chosen: None,
            count: 0,
            cnonce,
            accepted: false,
            basic_tried: false,
        }
    }

    /// Restores a saved state, with the password.
    pub(super) fn with_credentials(self, credentials: Option<Credentials>) -> Self {
        Access { credentials, ..self }
    }

    /// The `Authorization` header of a request, and how it was made; `before` says how the same request was sent before.
    pub(super) fn header(&mut self, method: &str, uri: &str, before: Option<Sent>) -> (Option<String>, Sent) {
        let again = before.map_or(0, |sent| sent.again.saturating_add(1));
        let (Some(credentials), Some(chosen)) = (&self.credentials, &self.chosen) else {
            return (None, Sent { with_credentials: false, again });
        };
        let Credentials { username, password } = credentials;
        let value = match chosen {
            Chosen::Basic => challenge::basic(username, password),
            Chosen::Digest(digest) => {
                self.count += 1;
                let asked = Asked { method, uri, body: "", count: self.count, cnonce: &self.cnonce };
                digest.answer(username, password, &asked)
            }
        };
        (Some(value), Sent { with_credentials: true, again })
    }

    /// The camera answered a request with a status other than 401.
    pub(super) fn taken(&mut self, sent: Sent) {
        self.accepted |= sent.with_credentials;
    }

    /// Whether SHA-256 was used last.
    pub(super) fn used_sha256(&self) -> bool {
        matches!(&self.chosen, Some(Chosen::Digest(digest)) if digest.algorithm == Algorithm::Sha256)
    }

    /// The camera answered 401. `Ok` if the request should be sent again.
    ///
    /// # Errors
    /// The fault that ends the session, because each further attempt with the same password may lead to a lock-out.
    pub(super) fn challenged(&mut self, sent: Sent, answer: &Answer) -> Result<(), Fault> {
        if self.credentials.is_none() {
            return Err(Fault::Unauthorized { given: false });
        }
        let offered = challenge::read(answer.all("WWW-Authenticate"));
        let basic = offered.contains(&Challenge::Basic);
        let digest = self.best(&offered);
        let refused = Fault::Unauthorized { given: true };
        if !sent.with_credentials {
            self.chosen = match digest {
                Some(digest) => Some(Chosen::Digest(digest)),
                None if basic => {
                    self.basic_tried = true;
                    Some(Chosen::Basic)
                }
                None => return Err(Fault::NoChallenge),
            };
            self.count = 0;
            return Ok(());
        }
        // An expired nonce says nothing about the password: the camera says that it is stale, or has accepted it before.
        let renewed = digest.filter(|digest| (digest.stale || self.accepted) && sent.again < NONCES_MAX);
        if let Some(digest) = renewed {
            self.chosen = Some(Chosen::Digest(digest));
            self.count = 0;
            return Ok(());
        }
        if basic && !self.basic_tried && matches!(self.chosen, Some(Chosen::Digest(_))) {
            if !self.basic_allowed {
                return Err(Fault::BasicWanted);
            }
            self.basic_tried = true;
            self.chosen = Some(Chosen::Basic);
            return Ok(());
        }
        Err(refused)
    }

    /// The Digest challenge to answer: SHA-256 before MD5 (RFC 7616 section 3.7), unless the camera has refused that.
    fn best(&self, offered: &[Challenge]) -> Option<challenge::DigestChallenge> {
        let mut order = Algorithm::OFFERED;
        if self.md5_first {
            order.reverse();
        }
        let of = |algorithm: Algorithm| {
            offered.iter().find_map(|challenge| match challenge {
                Challenge::Digest(digest) if digest.algorithm == algorithm => Some(digest.clone()),
                _ => None,
            })
        };
        order.into_iter().find_map(of)
    }
}
