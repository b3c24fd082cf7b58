//! What times out: connections that send no whole request, sessions that nothing is heard of.

use std::time::Instant;

use super::server::{Connection, Server, Session, State};
use super::types::{CloseReason, ConnId, EndReason, SessionKey};
use crate::wire::transport::Lower;

/// Whose moment it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Conn(ConnId),
    Session(SessionKey),
}

impl Server {
    /// Ends what has timed out by `now`.
    pub fn timeout(&mut self, now: Instant) {
        for key in self.own_ports.take_replaced(self.config.shard) {
            self.remove_session(key, EndReason::Replaced, true);
            self.process_released(now);
        }
        while let Some(&(due, timer)) = self.timers.first() {
            if due > now {
                break;
            }
            match timer {
                Timer::Conn(conn) => self.conn_due(now, conn),
                Timer::Session(key) => self.session_due(now, key),
            }
            // An end may let a connection go on, which then has a moment of its own.
            self.process_released(now);
        }
    }

    /// When [`Server::timeout`] wants to be called; it may be called earlier.
    pub fn next_timeout(&self) -> Option<Instant> {
        let due = self.timers.first().map(|(due, _)| *due);
        due.into_iter().chain(self.own_ports.replaced_at(self.config.shard)).min()
    }

    pub(super) fn conn_deadline(&self, connection: &Connection) -> Option<(Instant, CloseReason)> {
        if connection.waiting.is_some() {
            return None;
        }
        if let Some(denied) = &connection.denied {
            return Some((denied.until, CloseReason::Idle));
        }
        if let Some(until) = connection.delayed {
            return Some((until, CloseReason::Flood));
        }
        if let Some(held) = &connection.held {
            return Some((held.until, CloseReason::Idle));
        }
        let Some(heard) = connection.heard else {
            return Some((connection.since + self.config.handshake_timeout, CloseReason::Handshake));
        };
        let partial =
            connection.partial_since.map(|since| (since + self.config.handshake_timeout, CloseReason::Handshake));
        let idle = connection.sessions.is_empty().then(|| (heard + self.config.session_timeout, CloseReason::Idle));
        partial.into_iter().chain(idle).min()
    }

    pub(super) fn session_deadline(&self, session: &Session) -> Option<Instant> {
        // A connection that takes the media is a sign of life by itself: some players never send anything.
        let carried = session.lower == Lower::Tcp && session.state != State::Ready;
        (!carried).then(|| session.heard + self.config.session_timeout)
    }

    /// Brings a connection's timer forward if it must; it is put off when it comes too early.
    pub(super) fn arm_conn(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get(&conn) else { return };
        let Some((due, _)) = self.conn_deadline(connection) else { return };
        let armed = connection.timer;
        if armed.is_none_or(|armed| due < armed) {
            self.set_conn_timer(conn, Some(due));
        }
    }

    fn set_conn_timer(&mut self, conn: ConnId, due: Option<Instant>) {
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        if let Some(old) = std::mem::replace(&mut connection.timer, due) {
            self.timers.remove(&(old, Timer::Conn(conn)));
        }
        if let Some(due) = due {
            self.timers.insert((due, Timer::Conn(conn)));
        }
    }

    pub(super) fn arm_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(due) = self.session_deadline(session) else { return };
        let armed = session.timer;
        if armed.is_none_or(|armed| due < armed) {
            self.set_session_timer(key, Some(due));
        }
    }

    fn set_session_timer(&mut self, key: SessionKey, due: Option<Instant>) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if let Some(old) = std::mem::replace(&mut session.timer, due) {
            self.timers.remove(&(old, Timer::Session(key)));
        }
        if let Some(due) = due {
            self.timers.insert((due, Timer::Session(key)));
        }
    }

    fn conn_due(&mut self, now: Instant, conn: ConnId) {
        let deadline = self.conns.get(&conn).and_then(|connection| self.conn_deadline(connection));
        let delayed = self.conns.get_mut(&conn).and_then(|have| have.delayed.take_if(|until| *until <= now));
        match deadline {
            Some(_) if delayed.is_some() => {
                self.set_conn_timer(conn, None);
                self.released.push(conn);
            }
            Some((due, _)) if due <= now && self.conns.get(&conn).is_some_and(|have| have.held.is_some()) => {
                self.set_conn_timer(conn, None);
                if let Some(held) = self.take_held(conn) {
                    self.give_up(conn, &held);
                }
                self.released.push(conn);
            }
            Some((due, _)) if due <= now && self.conns.get(&conn).is_some_and(|have| have.denied.is_some()) => {
                self.set_conn_timer(conn, None);
                self.answer_denied(conn);
            }
            Some((due, reason)) if due <= now => self.close(conn, reason),
            Some((due, _)) => self.set_conn_timer(conn, Some(due)),
            None => self.set_conn_timer(conn, None),
        }
    }

    fn session_due(&mut self, now: Instant, key: SessionKey) {
        let deadline = self.sessions.get(&key).and_then(|session| self.session_deadline(session));
        match deadline {
            Some(due) if due <= now => {
                let carrier = self.sessions.get(&key).filter(|session| session.lower == Lower::Tcp);
                let carrier = carrier.and_then(|session| session.conn);
                self.remove_session(key, EndReason::Timeout, true);
                if let Some(conn) = carrier {
                    self.close(conn, CloseReason::SessionEnded(EndReason::Timeout));
                }
            }
            due => self.set_session_timer(key, due),
        }
    }
}
