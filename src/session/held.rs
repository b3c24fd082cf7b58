//! Requests that wait for their stream to come up, and the demand for streams that are not up.

use std::time::{Duration, Instant};

use super::connections::{Held, Waits};
use super::server::Server;
use super::types::{ConnId, Event, NameWanted};
use crate::media::{SourceState, StreamId};
use crate::wire::relay_path;

impl Server {
    /// Makes a stream one that is pulled on demand, or with `None` one that is not: requests for it wait this long while it sleeps,
    /// which it does until [`Server::set_asleep`] says otherwise.
    pub fn set_on_demand(&mut self, id: StreamId, wait: Option<Duration>) {
        if self.streams.set_on_demand(id, wait) {
            self.push(Event::Demand { stream: id, wanted: true });
        }
    }

    /// Makes requests for a stream wait this long if it has never been up; with `None` they do not wait.
    pub fn set_first_wait(&mut self, id: StreamId, wait: Option<Duration>) {
        self.streams.set_first_wait(id, wait);
    }

    /// A stream's source has another state.
    ///
    /// While it is down, an [`Event::Asked`] reports requests for it. While it is not live, sessions that play it over UDP do not time
    /// out as long as their connections are open, because ffmpeg sends nothing while no media arrive.
    pub fn set_source(&mut self, now: Instant, id: StreamId, state: SourceState) {
        self.streams.set_down(id, state == SourceState::Down);
        let away = state != SourceState::Live;
        if !self.streams.set_away(id, away) || away {
            return;
        }
        for key in self.sessions.matching(|session| session.stream == id && session.waits_for_media()) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.heard = now;
            }
            self.arm_session(key);
        }
    }

    /// An on-demand stream has come up, or is no longer pulled. In the first case the requests that wait for it are answered.
    pub fn set_asleep(&mut self, now: Instant, id: StreamId, asleep: bool) {
        self.streams.set_asleep(id, asleep);
        self.answer_held(now, id);
    }

    /// Answers the requests that wait for a stream, if it has been described or removed.
    pub fn answer_held(&mut self, now: Instant, id: StreamId) {
        if self.streams.wait_for(id).is_some() {
            return;
        }
        for conn in self.connections.held_for(id) {
            self.ask_again(now, conn);
        }
        self.process_released(now);
    }

    /// Processes a waiting request again. If it must wait again, then only for the remaining time.
    pub(super) fn ask_again(&mut self, now: Instant, conn: ConnId) {
        let Some(held) = self.take_held(conn) else { return };
        self.held_until = Some(held.until);
        self.request(now, conn, held.request);
        self.held_until = None;
        self.process(now, conn);
    }

    /// Delays a request until its stream comes up, and the connection's further requests with it.
    pub(super) fn hold(&mut self, conn: ConnId, held: Held) {
        let Some(peer) = self.connections.get(conn).map(|connection| connection.peer) else { return };
        let until = self.held_until.map_or(held.until, |until| until.min(held.until));
        let waits = held.waits.clone();
        let (publish, via) = (held.request.method == "ANNOUNCE", held.request.list("Via").unwrap_or_default());
        let via = relay_path::joined(relay_path::via_ids(&via)).into();
        self.connections.hold(conn, Held { until, ..held });
        match waits {
            Waits::Stream(stream) => self.want(stream, true),
            Waits::Name(name) => self.push(Event::Wanted(NameWanted { name, peer, publish, via })),
        }
    }

    /// Takes the request of a connection that waits for a stream.
    pub(super) fn take_held(&mut self, conn: ConnId) -> Option<Box<Held>> {
        let held = self.connections.take_held(conn)?;
        if let Waits::Stream(stream) = held.waits {
            self.want(stream, false);
        }
        Some(held)
    }

    /// A client requests the stream.
    pub(super) fn ask(&mut self, now: Instant, stream: StreamId) {
        if self.streams.ask(now, stream) {
            self.push(Event::Asked { stream });
        }
    }

    pub(super) fn want(&mut self, stream: StreamId, wanted: bool) {
        if let Some(wanted) = self.streams.want(stream, wanted) {
            self.push(Event::Demand { stream, wanted });
        }
    }
}
