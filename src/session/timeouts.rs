//! Timeouts of connections that send no complete request, and of silent sessions.

use std::time::{Duration, Instant};

use super::connections::Connection;
use super::server::Server;
use super::sessions::Session;
use super::timers::Timer;
use super::types::{CloseReason, ConnId, EndReason, SessionKey};
use crate::limits::CONNECTION_KEPT_S;
use crate::wire::transport::Lower;

impl Server {
    /// Ends what has timed out by `now`.
    pub fn timeout(&mut self, now: Instant) {
        for key in self.ports.take_replaced() {
            self.remove_session(key, EndReason::Replaced, true);
            self.process_released(now);
        }
        while let Some((due, timer)) = self.timers.first() {
            if due > now {
                break;
            }
            match timer {
                Timer::Conn(conn) => self.conn_due(now, conn),
                Timer::Session(key) => self.session_due(now, key),
            }
            // Ending something may let a connection continue, which then has its own deadline.
            self.process_released(now);
        }
    }

    /// When [`Server::timeout`] should be called; it may be called earlier.
    pub fn next_timeout(&self) -> Option<Instant> {
        let due = self.timers.first().map(|(due, _)| due);
        due.into_iter().chain(self.ports.replaced_at()).min()
    }

    pub(super) fn conn_deadline(&self, connection: &Connection) -> Option<(Instant, CloseReason)> {
        connection.deadline(self.config.handshake_timeout, self.config.session_timeout)
    }

    pub(super) fn session_deadline(&self, session: &Session) -> Option<Instant> {
        session.deadline(self.config.session_timeout, self.streams.is_away(session.stream))
    }

    /// A connection ends without TEARDOWN. A player that kept it open while it played over UDP has probably been killed; if not, it
    /// sends reports. A player with a connection for each request closes it soon after the answer.
    pub(super) fn orphan(&mut self, now: Instant, conn: ConnId) {
        let Some(connection) = self.connections.get(conn) else { return };
        if now.saturating_duration_since(connection.last_heard()) < Duration::from_secs(CONNECTION_KEPT_S) {
            return;
        }
        for key in connection.sessions().to_vec() {
            if self.sessions.get_mut(key).is_some_and(|session| session.orphan(now)) {
                self.arm_session(key);
            }
        }
    }

    /// Moves a connection's timer forward if needed; a timer that fires too early is rescheduled then.
    pub(super) fn arm_conn(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get(conn) else { return };
        if let Some((due, _)) = self.conn_deadline(connection)
            && let Some(connection) = self.connections.get_mut(conn)
        {
            self.timers.arm(Timer::Conn(conn), &mut connection.timer, due);
        }
    }

    fn set_conn_timer(&mut self, conn: ConnId, due: Option<Instant>) {
        if let Some(connection) = self.connections.get_mut(conn) {
            self.timers.set(Timer::Conn(conn), &mut connection.timer, due);
        }
    }

    pub(super) fn arm_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(key) else { return };
        if let Some(due) = self.session_deadline(session)
            && let Some(session) = self.sessions.get_mut(key)
        {
            self.timers.arm(Timer::Session(key), &mut session.timer, due);
        }
    }

    fn set_session_timer(&mut self, key: SessionKey, due: Option<Instant>) {
        if let Some(session) = self.sessions.get_mut(key) {
            self.timers.set(Timer::Session(key), &mut session.timer, due);
        }
    }

    fn conn_due(&mut self, now: Instant, conn: ConnId) {
        let Some(connection) = self.connections.get(conn) else { return };
        let (deadline, held, denied) = (self.conn_deadline(connection), connection.is_held(), connection.is_denied());
        let delayed = self.connections.get_mut(conn).is_some_and(|connection| connection.end_delay(now));
        match deadline {
            Some(_) if delayed => {
                self.set_conn_timer(conn, None);
                self.connections.release(conn);
            }
            Some((due, _)) if due <= now && held => {
                self.set_conn_timer(conn, None);
                if let Some(held) = self.take_held(conn) {
                    self.give_up(conn, &held);
                }
                self.connections.release(conn);
            }
            Some((due, _)) if due <= now && denied => {
                self.set_conn_timer(conn, None);
                self.answer_denied(now, conn);
            }
            Some((due, reason)) if due <= now => self.close(conn, reason),
            due => self.set_conn_timer(conn, due.map(|(due, _)| due)),
        }
    }

    fn session_due(&mut self, now: Instant, key: SessionKey) {
        let Some(session) = self.sessions.get(key) else { return };
        let due = self.session_deadline(session);
        if due.is_none_or(|due| due > now) {
            return self.set_session_timer(key, due);
        }
        let carrier = session.conn().filter(|_| session.lower == Lower::Tcp);
        let is_orphan = session.orphaned_until().is_some();
        let reason = if is_orphan { EndReason::Disconnected } else { EndReason::Timeout };
        self.remove_session(key, reason, true);
        if let Some(conn) = carrier {
            self.close(conn, CloseReason::SessionEnded(EndReason::Timeout));
        }
    }
}
