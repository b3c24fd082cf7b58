//! Authentication and authorization of requests. Every request except OPTIONS passes here before anything else is checked, so that an
//! unauthenticated client does not even learn whether a stream or session exists.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::auth::{current, tell_failure};
use super::connections::{Denied, Then};
use super::methods::{shown_url, with_timestamp};
use super::resource::{self, Resource};
use super::server::Server;
use super::sessions::Session;
use super::types::{ConnId, EndReason, SessionKey};
use crate::access::{Access, Checked, Presented, Right, User};
use crate::limits::{AUTH_DELAY_MS, AUTH_REFUSED_S};
use crate::wire::rtsp::{Request, Response, Status};

impl Server {
    /// Sets the users and rights from now on; `None` if no users are configured. Sessions whose users lost their rights to them are
    /// ended: because the user was removed, has another password or fewer rights, or because there was no user before.
    pub fn set_access(&mut self, now: Instant, access: Option<Arc<Access>>) {
        let before = self.auth.set_access(access);
        let Some(access) = self.auth.access() else { return };
        // After a password change, the new one must be shown.
        let still = |user: &Option<Arc<User>>| current(&access, user.as_ref()?);
        for user in self.connections.users_mut() {
            *user = still(user);
        }
        let mut ended = Vec::new();
        for (key, session) in self.sessions.iter_mut() {
            let user = still(&session.user);
            let name = self.streams.name(session.stream);
            let right = if session.publishes { Right::Publish } else { Right::Read };
            let may = |user: &User| user.may(right, name) && user.may_come_from(session.peer.ip());
            match user.filter(|user| may(user)) {
                Some(user) => session.user = Some(user),
                None => ended.push(key),
            }
        }
        // The same order for the same seed.
        ended.sort();
        if !ended.is_empty() {
            let why = if before.is_some() { "their users lost the right to them" } else { "users are configured now" };
            tracing::info!(sessions = ended.len(), "sessions end: {why}");
        }
        for key in ended {
            self.end(key, EndReason::Unauthorized, true);
        }
        self.process_released(now);
    }

    /// Whether a request may proceed to its method. If not, it has been answered, or will be.
    pub(super) fn admit(&mut self, now: Instant, conn: ConnId, request: &Request) -> bool {
        let Some(access) = self.auth.access() else { return true };
        let Some(connection) = self.connections.get_mut(conn) else { return false };
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
            waited: std::mem::take(&mut connection.waited),
        };
        match access.check(now, &presented) {
            Checked::Granted(user) => {
                connection.user = Some(user);
                let may = self.may(conn, request);
                if !may {
                    self.refusal(conn, request, None, Status::FORBIDDEN.into());
                }
                may
            }
            Checked::Stale { user, expired } => {
                let known = connection.user.as_ref().is_some_and(|known| known.name == user.name);
                if expired && known && request.method == "TEARDOWN" {
                    // A client that sends TEARDOWN will not come back to answer a challenge. Overheard credentials grant nothing on
                    // another connection.
                    return true;
                }
                // The request still shows that the client is there, even if it never accepts the new nonce.
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
                self.put_off(conn, now + Duration::from_millis(AUTH_DELAY_MS), Then::Answer(answer));
                false
            }
            Checked::Later(until) => {
                self.put_off(conn, until, Then::Look(request.clone()));
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
        let Some(peer) = self.connections.get(conn).map(|connection| connection.peer.ip()) else { return };
        self.answer(conn, challenged(access, now, peer, request, stale));
    }

    /// Logs why a user may not do what was requested, if the answer is 403 or 405 for that reason.
    pub(super) fn tell_not_allowed(&self, conn: ConnId, request: &Request, status: Status) {
        let Some(connection) = self.connections.get(conn) else { return };
        let (client, method, url) = (connection.peer, request.method.as_str(), shown_url(&request.url));
        let publishes = connection.announced.is_some() || matches!(method, "ANNOUNCE" | "RECORD");
        match (status, &connection.user, publishes) {
            (Status::FORBIDDEN, Some(user), true) => {
                tracing::warn!(%client, user = user.name, method, ?url, "refused (403): this user may not publish that stream; it needs may = [\"publish\"] and the stream in its streams");
            }
            (Status::FORBIDDEN, Some(user), false) => {
                tracing::warn!(%client, user = user.name, method, ?url, "refused (403): this user may not watch that stream; it needs may = [\"read\"] and the stream in its streams");
            }
            (Status::FORBIDDEN, None, _) => {
                tracing::warn!(%client, method, ?url, "refused (403): without users in the configuration only clients on this machine may publish; add a [[user]] with may = [\"publish\"]");
            }
            (Status::METHOD_NOT_ALLOWED, _, true) => {
                tracing::warn!(%client, method, ?url, "refused (405): no stream of that name accepts a publisher; it may be one that is pulled; set source = \"publish\" for it");
            }
            _ => {}
        }
    }

    /// Delays a request until then. Its connection stays on this shard, because it is read meanwhile, and what was read would not move
    /// with it.
    pub(super) fn look_later(&mut self, conn: ConnId, until: Instant, request: Request) {
        self.set_settled(conn);
        self.put_off(conn, until, Then::Look(request));
    }

    /// Delays the answer to a request until then.
    pub(super) fn answer_later(&mut self, conn: ConnId, until: Instant, answer: Response) {
        self.put_off(conn, until, Then::Answer(answer));
    }

    fn put_off(&mut self, conn: ConnId, until: Instant, then: Then) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.deny(Denied { until, then });
            self.arm_conn(conn);
        }
    }

    /// The delay of a connection is over.
    pub(super) fn answer_denied(&mut self, now: Instant, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Some(denied) = connection.take_denied() else { return };
        match denied.then {
            Then::Answer(answer) => self.answer(conn, answer),
            Then::Look(request) => {
                connection.waited = true;
                self.request(now, conn, request);
            }
        }
        self.connections.release(conn);
    }

    /// Whether the session belongs to the connection's user, if users are configured.
    pub(super) fn is_users(&self, session: &Session, conn: ConnId) -> bool {
        self.is_user(session.user.as_ref(), conn)
    }

    /// Whether that user is the connection's, if users are configured.
    pub(super) fn is_user(&self, user: Option<&Arc<User>>, conn: ConnId) -> bool {
        self.connections.get(conn).is_some_and(|connection| self.auth.is_same(user, connection.user.as_ref()))
    }

    /// Whether a request came without credentials on a connection that has never shown any; only OPTIONS gets this far then.
    pub(super) fn is_strangers(&self, conn: ConnId) -> bool {
        self.auth.has_users() && self.connections.get(conn).is_none_or(|connection| connection.user.is_none())
    }

    fn alive(&mut self, now: Instant, conn: ConnId, request: &Request, user: &User) {
        let id = request.header("Session").and_then(|value| value.split(';').next()).unwrap_or_default().trim();
        let Ok(key) = u64::from_str_radix(id, 16).map(SessionKey) else { return };
        let Some(session) = self.sessions.get(key) else { return };
        let own = session.conn() == Some(conn) && session.user.as_ref().is_some_and(|owner| owner.name == user.name);
        if own {
            self.heard(now, key, conn);
        }
    }

    /// Whether the connection's user has the right to a request. Requests about a session only are not checked here, because the
    /// session belongs to the user.
    fn may(&self, conn: ConnId, request: &Request) -> bool {
        let Some(connection) = self.connections.get(conn) else { return false };
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
            // The tracks' URLs are chosen by the publisher.
            return user.may(right, self.streams.name(announced.stream));
        }
        let Resource::Stream { name, .. } = resource::parse(&request.url, connection.local, connection.secure) else {
            return true;
        };
        let known = self.streams.find(&name).map(|stream| self.streams.name(stream));
        // Unknown streams are refused like existing ones, so that a client without a right cannot tell which exist.
        user.may(right, known.unwrap_or(&String::from_utf8_lossy(&name)))
    }
}

fn answer_to(status: Status, request: &Request) -> Response {
    with_timestamp(Response::new(status, request.cseq()), request)
}

/// The 401 with a challenge for each algorithm in a header of its own, because no player splits a list of them.
fn challenged(access: &Access, now: Instant, peer: IpAddr, request: &Request, stale: bool) -> Response {
    let challenges = access.challenges(now, peer, stale);
    let answer = answer_to(Status::UNAUTHORIZED, request);
    challenges.iter().fold(answer, |answer, value| answer.header("WWW-Authenticate", value))
}
