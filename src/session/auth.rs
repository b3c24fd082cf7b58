//! Who may ask for what. Every request but OPTIONS passes here before anything else is looked at, so that a stranger is not
//! told even whether a stream or a session exists.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::methods::with_timestamp;
use super::resource::{self, Resource};
use super::server::{Server, Session};
use super::types::{CloseReason, ConnId, EndReason, SessionKey};
use crate::access::{Access, Checked, LOG_TARGET, Presented, Right, User};
use crate::limits::{AUTH_DELAY_MS, AUTH_FAILURES_MAX, AUTH_REFUSED_S};
use crate::wire::rtsp::{Request, Response, Status};

/// The answer to wrong credentials, which is put off, and the connection's further requests with it.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) until: Instant,
    pub(super) answer: Response,
}

impl Server {
    /// Sets who may do what from now on; `None` where no users are configured. Sessions that their users may not have any more
    /// end: the user is gone, has another password, or fewer rights; or there was none.
    pub fn set_access(&mut self, now: Instant, access: Option<Arc<Access>>) {
        let before = std::mem::replace(&mut self.access, access);
        let Some(access) = self.access.clone() else { return };
        // One whose password is another has to show it.
        let still = |user: &Option<Arc<User>>| {
            let user = user.as_ref()?;
            access.user(&user.name).filter(|new| new.secrets == user.secrets).map(Arc::clone)
        };
        for connection in self.conns.values_mut() {
            connection.user = still(&connection.user);
        }
        let mut ended = Vec::new();
        for (key, session) in &mut self.sessions {
            let user = still(&session.user);
            let name = self.streams.name(session.stream);
            let right = if session.publishes { Right::Publish } else { Right::Read };
            let may = |user: &User| user.may(right, name) && user.may_come_from(session.peer.ip());
            match user.filter(|user| may(user)) {
                Some(user) => session.user = Some(user),
                None => ended.push(*key),
            }
        }
        // The same order for the same seed.
        ended.sort();
        if !ended.is_empty() {
            let why =
                if before.is_some() { "their users may not have them any more" } else { "users are configured now" };
            tracing::info!(sessions = ended.len(), "sessions end: {why}");
        }
        for key in ended {
            // One that shared a connection may be gone already.
            let Some(conn) = self.sessions.get(&key).map(|session| session.conn) else { continue };
            self.remove_session(key, EndReason::Unauthorized, true);
            if let Some(conn) = conn {
                self.close(conn, CloseReason::SessionEnded(EndReason::Unauthorized));
            }
        }
        self.process_released(now);
    }

    /// Whether a request may go on to its method. If not, it has been answered, or will be.
    pub(super) fn admit(&mut self, now: Instant, conn: ConnId, request: &Request) -> bool {
        let Some(access) = self.access.clone() else { return true };
        let Some(connection) = self.conns.get_mut(&conn) else { return false };
        let (peer, authorization) = (connection.peer, request.header("Authorization"));
        if request.method == "OPTIONS" && authorization.is_none() {
            return true;
        }
        let presented = Presented {
            peer: peer.ip(),
            method: &request.method,
            url: &request.url,
            authorization,
            known: connection.user.as_ref().map(|user| user.name.as_str()),
        };
        match access.check(now, &presented) {
            Checked::Granted(user) => {
                connection.user = Some(user);
                let may = self.may(conn, request);
                if !may {
                    self.answer(conn, answer_to(Status::FORBIDDEN, request));
                }
                may
            }
            Checked::Stale { user, expired } => {
                let known = connection.user.as_ref().is_some_and(|known| known.name == user.name);
                if expired && known && request.method == "TEARDOWN" {
                    // Whoever says goodbye does not come again. One that was overheard opens nothing on another connection.
                    return true;
                }
                // It shows all the same that the client is there, even if it should never come to terms with the new nonce.
                self.alive(now, conn, request, &user);
                self.challenge(now, conn, &access, request, true);
                false
            }
            Checked::Missing => {
                self.challenge(now, conn, &access, request, false);
                false
            }
            Checked::Wrong { user, reason, last } => {
                self.counters.auth_failed += 1;
                tell_failure(peer.ip(), user.as_deref(), reason, last);
                let answer = challenged(&access, now, peer.ip(), request, false);
                self.put_off(now, conn, answer);
                false
            }
            Checked::Refused => {
                self.counters.auth_refused += 1;
                let retry = AUTH_REFUSED_S.to_string();
                self.answer(conn, answer_to(Status::FORBIDDEN, request).header("Retry-After", &retry));
                false
            }
        }
    }

    fn challenge(&mut self, now: Instant, conn: ConnId, access: &Access, request: &Request, stale: bool) {
        let Some(peer) = self.conns.get(&conn).map(|connection| connection.peer.ip()) else { return };
        self.answer(conn, challenged(access, now, peer, request, stale));
    }

    /// Puts the answer to wrong credentials off.
    fn put_off(&mut self, now: Instant, conn: ConnId, answer: Response) {
        if let Some(connection) = self.conns.get_mut(&conn) {
            let until = now + Duration::from_millis(AUTH_DELAY_MS);
            connection.denied = Some(Box::new(Denied { until, answer }));
            self.arm_conn(conn);
        }
    }

    /// The time of a connection's put-off answer has come.
    pub(super) fn answer_denied(&mut self, conn: ConnId) {
        if let Some(denied) = self.conns.get_mut(&conn).and_then(|connection| connection.denied.take()) {
            self.answer(conn, denied.answer);
            self.released.push(conn);
        }
    }

    /// Whether the session's user is the connection's, where users are configured.
    pub(super) fn is_users(&self, session: &Session, conn: ConnId) -> bool {
        self.is_user(session.user.as_ref(), conn)
    }

    /// Whether that user is the connection's, where users are configured.
    pub(super) fn is_user(&self, user: Option<&Arc<User>>, conn: ConnId) -> bool {
        let is = |have: Option<&Arc<User>>| have.map(|have| &have.name) == user.map(|user| &user.name);
        self.access.is_none() || self.conns.get(&conn).is_some_and(|conn| is(conn.user.as_ref()))
    }

    /// Whether a request without credentials came on a connection that has never shown any; only OPTIONS gets so far.
    pub(super) fn is_strangers(&self, conn: ConnId) -> bool {
        self.access.is_some() && self.conns.get(&conn).is_none_or(|connection| connection.user.is_none())
    }

    fn alive(&mut self, now: Instant, conn: ConnId, request: &Request, user: &User) {
        let id = request.header("Session").and_then(|value| value.split(';').next()).unwrap_or_default().trim();
        let Ok(key) = u64::from_str_radix(id, 16).map(SessionKey) else { return };
        let Some(session) = self.sessions.get(&key) else { return };
        let own = session.conn == Some(conn) && session.user.as_ref().is_some_and(|owner| owner.name == user.name);
        if own {
            self.heard(now, key, conn);
        }
    }

    /// Whether the connection's user may do what a request is about. What is about a session alone is not asked here: the session
    /// is its user's own.
    fn may(&self, conn: ConnId, request: &Request) -> bool {
        let Some(connection) = self.conns.get(&conn) else { return false };
        let Some(user) = &connection.user else { return false };
        let right = match request.method.as_str() {
            "ANNOUNCE" | "RECORD" => Right::Publish,
            "SETUP" if connection.announced.is_some() => Right::Publish,
            "DESCRIBE" | "SETUP" | "PLAY" => Right::Read,
            _ => return true,
        };
        if let (Right::Publish, Some(announced)) = (right, connection.announced.as_ref())
            && request.method != "ANNOUNCE"
        {
            // The tracks' URLs are the publisher's own.
            return user.may(right, self.streams.name(announced.stream));
        }
        let Resource::Stream { name, .. } = resource::parse(&request.url, connection.local, connection.secure) else {
            return true;
        };
        let known = self.streams.find(&name).map(|stream| self.streams.name(stream));
        // A stream that is not there is refused like one that is: who may not have it is not told which it is.
        user.may(right, known.unwrap_or(&String::from_utf8_lossy(&name)))
    }
}

fn answer_to(status: Status, request: &Request) -> Response {
    with_timestamp(Response::new(status, request.cseq()), request)
}

/// The 401 with a challenge for each algorithm, in a header of its own: no player splits a list of them.
fn challenged(access: &Access, now: Instant, peer: IpAddr, request: &Request, stale: bool) -> Response {
    let challenges = access.challenges(now, peer, stale);
    let answer = answer_to(Status::UNAUTHORIZED, request);
    challenges.iter().fold(answer, |answer, value| answer.header("WWW-Authenticate", value))
}

/// Tells the log of wrong credentials, in a form that programs read. Nothing that the client has sent is in it: a name that
/// nobody has may be a password in the wrong place, or a line made up for the reader.
pub(crate) fn tell_failure(peer: IpAddr, user: Option<&User>, reason: &str, last: bool) {
    let client = peer.to_canonical();
    let user = user.map_or("-", |user| user.name.as_str());
    tracing::warn!(target: LOG_TARGET, %client, user, reason, "authentication failed");
    if last {
        tracing::warn!(
            target: LOG_TARGET,
            %client,
            "refused for {AUTH_REFUSED_S} s: {AUTH_FAILURES_MAX} wrong credentials in a row"
        );
    }
}
