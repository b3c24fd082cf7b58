//! Consistency checks of the server's state, for tests and fuzzing.

use super::server::Server;
use super::sessions::{Session, State};
use super::streams;
use super::timers::Timer;
use super::types::{Delivery, SessionKey};
use crate::limits::RENDERINGS_MAX;
use crate::wire::transport::Lower;

impl Server {
    /// Panics if the server's state is inconsistent.
    pub fn check(&self) {
        self.connections.check();
        self.ports.check(|key, publishes| {
            self.sessions.get(key).is_some_and(|have| publishes.is_none_or(|publishes| have.publishes == publishes))
        });
        let timers = self.check_connections() + self.check_sessions();
        assert_eq!(self.timers.len(), timers);
        let players = self.sessions.matching(|session| !session.publishes);
        let rendered: usize = players.iter().map(|key| self.check_player(*key, &self.sessions[key])).sum();
        let (sessions, most) = self.streams.rendered();
        assert_eq!(sessions, rendered);
        assert!(most <= RENDERINGS_MAX);
        assert!(self.sessions.len() <= self.config.limit.open());
    }

    /// Returns the number of timers that are set.
    fn check_connections(&self) -> usize {
        let mut timers = 0;
        for (id, connection) in self.connections.iter() {
            let deadline = self.conn_deadline(connection).map(|(due, _)| due);
            timers += usize::from(self.timers.check(Timer::Conn(id), &connection.timer, deadline));
            for key in connection.sessions() {
                assert_eq!(self.sessions[key].conn(), Some(id));
            }
            if let Some(session) = connection.waits_for() {
                assert_eq!(self.sessions[&session].state(), State::Starting);
            }
        }
        timers
    }

    /// Returns the number of timers that are set.
    fn check_sessions(&self) -> usize {
        let mut timers = 0;
        for key in self.sessions.keys() {
            let session = &self.sessions[&key];
            let deadline = self.session_deadline(session);
            timers += usize::from(self.timers.check(Timer::Session(key), &session.timer, deadline));
            assert_eq!(key.0 % u64::from(self.config.shards), u64::from(self.config.shard));
            assert!(!session.tracks().is_empty() && session.tracks().is_sorted_by(|a, b| a.track < b.track));
            let connection = session.conn().map(|conn| self.connections.get(conn).expect("a connection that is open"));
            assert!(connection.is_none_or(|connection| connection.sessions().contains(&key)));
            if session.lower == Lower::Tcp || session.publishes {
                let connection = connection.expect("interleaved media and publishers have a connection");
                assert_eq!(connection.interleaved(), Some(key));
            }
        }
        timers
    }

    /// Returns the number of tracks that are rendered with other channels than their own.
    fn check_player(&self, key: SessionKey, session: &Session) -> usize {
        let mut rendered = 0;
        let mut channels = Vec::new();
        for set_up in session.tracks() {
            match set_up.delivery {
                Delivery::Interleaved { rtp_channel, rtcp_channel } => {
                    channels.extend([rtp_channel, rtcp_channel]);
                    rendered += usize::from((rtp_channel, rtcp_channel) != streams::own(set_up.track));
                }
                Delivery::Multicast { rtp } => assert!(rtp.ip().is_multicast()),
                Delivery::Udp { rtp, rtcp } => {
                    assert_eq!((rtp.ip(), rtcp.ip()), (session.peer.ip(), session.peer.ip()));
                    assert_eq!((self.ports.session_at(rtp), self.ports.session_at(rtcp)), (Some(key), Some(key)));
                }
            }
        }
        let before = channels.len();
        channels.sort_unstable();
        channels.dedup();
        assert_eq!(channels.len(), before, "a channel twice in a connection");
        rendered
    }
}
