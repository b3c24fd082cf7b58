//! Requests that an external server must allow (`auth_url`), after the relay's own users and rights.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::methods::with_timestamp;
use super::resource::{self, Resource};
use super::server::Server;
use super::types::ConnId;
use crate::access::outside::{Look, Outside, Question, Verdict};
use crate::access::{REALM, Right};
use crate::escape::beginning;
use crate::limits::{AUTH_DELAY_MS, STREAM_NAME_BYTES_MAX, URL_QUERY_BYTES_MAX};
use crate::metrics::{Counter, process};
use crate::wire::auth::{self, Authorization};
use crate::wire::rtsp::{Request, Response, Status};

impl Server {
    /// Sets the external server; `None` for none.
    pub fn set_outside(&mut self, outside: Option<Arc<Outside>>) {
        self.auth.set_outside(outside);
    }

    /// Whether a request that the relay itself allows may proceed to its method. If not, it has been answered, or will be.
    pub(super) fn admit_outside(&mut self, now: Instant, conn: ConnId, request: &Request) -> bool {
        let Some(outside) = self.auth.outside() else { return true };
        let Some((question, has_shown)) = self.question(conn, request) else { return true };
        let Some(peer) = self.connections.get(conn).map(|connection| connection.peer) else { return false };
        let answer = |status: Status| with_timestamp(Response::new(status, request.cseq()), request);
        let (answer, counter) = match outside.look(now, peer, &question) {
            Look::Known(Verdict::May) => return true,
            Look::Again(at) => {
                self.look_later(conn, at, request.clone());
                return false;
            }
            Look::Known(Verdict::Unknown) => {
                let answer = answer(Status::UNAUTHORIZED);
                let challenge = format!("Basic realm=\"{REALM}\"");
                (answer.header("WWW-Authenticate", &challenge), Counter::AuthUrlRefused)
            }
            Look::Known(Verdict::MayNot) => (answer(Status::FORBIDDEN), Counter::AuthUrlRefused),
            Look::Known(Verdict::Unanswered) => (answer(Status::UNAVAILABLE), Counter::AuthUrlUnanswered),
        };
        if !has_shown && answer.status() == Status::UNAUTHORIZED {
            // A client without credentials has not guessed anything.
            self.answer(conn, answer);
            return false;
        }
        process::count(counter);
        tracing::warn!(client = %peer, user = question.user.as_deref().unwrap_or("-"), action = question.action.name(), status = answer.status().0, "refused by auth_url, or because it did not answer");
        self.answer_later(conn, now + Duration::from_millis(AUTH_DELAY_MS), answer);
        false
    }

    /// The query for a request, if one is needed, and whether the client has shown credentials for it.
    fn question(&self, conn: ConnId, request: &Request) -> Option<(Question, bool)> {
        let connection = self.connections.get(conn)?;
        let action = match request.method.as_str() {
            "ANNOUNCE" => Right::Publish,
            // A publisher's tracks belong to its announcement.
            "SETUP" if connection.announced.is_some() => return None,
            // A session also cannot get tracks of another stream than its own.
            "SETUP" if request.header("Session").is_some() => return None,
            "DESCRIBE" | "SETUP" => Right::Read,
            _ => return None,
        };
        let Resource::Stream { name, .. } = resource::parse(&request.url, connection.local, connection.secure) else {
            return None;
        };
        let stream = match self.streams.find(&name) {
            Some(stream) => self.streams.name(stream).to_owned(),
            // Longer than any name, so it is not one.
            None if name.len() > STREAM_NAME_BYTES_MAX => return None,
            None => String::from_utf8_lossy(&name).into_owned(),
        };
        let shown = match request.header("Authorization").map(auth::parse) {
            // If the relay has users, it has checked the password itself, and does not pass it on.
            Some(Some(Authorization::Basic { user, password }))
                if !self.auth.has_users() && user.len().max(password.len()) <= CREDENTIAL_BYTES_MAX =>
            {
                Some((user, password))
            }
            _ => None,
        };
        let has_shown = shown.is_some();
        let (user, password) = match (shown, &connection.user) {
            (Some((user, password)), _) => (Some(user), Some(password)),
            (None, user) => (user.as_ref().map(|user| user.name.clone()), None),
        };
        let query = request.url.split_once('?').map_or("", |(_, query)| query);
        let query = beginning(query, URL_QUERY_BYTES_MAX).to_owned();
        let address = connection.peer.ip().to_canonical();
        Some((Question { user, password, address, stream, action, query }, has_shown))
    }
}

/// Maximum length of a name or password that is passed on; longer ones count as absent.
const CREDENTIAL_BYTES_MAX: usize = 256;
