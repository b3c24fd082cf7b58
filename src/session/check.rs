//! The server's books compared with one another, for tests and fuzzing.

use super::server::{Server, State};
use super::streams;
use super::timers::Timer;
use super::types::Delivery;
use crate::limits::RENDERINGS_MAX;
use crate::wire::transport::Lower;

impl Server {
    /// Panics if the server's books do not agree with one another.
    #[doc(hidden)]
    pub fn check(&self) {
        let mut timers = 0;
        let mut rendered = 0;
        let strangers = self.conns.values().filter(|connection| connection.stranger.is_some()).count();
        assert_eq!(strangers, self.strangers.len());
        for (id, connection) in &self.conns {
            assert_eq!(connection.stranger.is_some(), connection.sessions.is_empty());
            timers += usize::from(connection.timer.is_some());
            assert!(connection.timer.is_none_or(|due| self.timers.contains(&(due, Timer::Conn(*id)))));
            if let Some((due, _)) = self.conn_deadline(connection) {
                assert!(connection.timer.is_some_and(|timer| timer <= due), "a timer too late");
            }
            for key in &connection.sessions {
                assert_eq!(self.sessions[key].conn, Some(*id));
            }
            assert!(connection.interleaved.is_none_or(|key| connection.sessions.contains(&key)));
            if let Some(waiting) = &connection.waiting {
                assert_eq!(self.sessions[&waiting.session].state, State::Starting);
            }
        }
        for (key, session) in &self.sessions {
            timers += usize::from(session.timer.is_some());
            assert!(session.timer.is_none_or(|due| self.timers.contains(&(due, Timer::Session(*key)))));
            if let Some(due) = self.session_deadline(session) {
                assert!(session.timer.is_some_and(|timer| timer <= due), "a timer too late");
            }
            assert_eq!(key.0 % u64::from(self.config.shards), u64::from(self.config.shard));
            assert!(!session.tracks.is_empty() && session.tracks.is_sorted_by(|a, b| a.track < b.track));
            assert!(session.conn.is_none_or(|conn| self.conns[&conn].sessions.contains(key)));
            if session.lower == Lower::Tcp {
                let conn = session.conn.expect("interleaved media have a connection");
                assert_eq!(self.conns[&conn].interleaved, Some(*key));
            }
            if session.publishes {
                let conn = session.conn.expect("a publisher goes with its connection");
                assert_eq!(self.conns[&conn].interleaved, Some(*key));
                continue;
            }
            let mut channels = Vec::new();
            for set_up in &session.tracks {
                match set_up.delivery {
                    Delivery::Interleaved { rtp_channel, rtcp_channel } => {
                        channels.extend([rtp_channel, rtcp_channel]);
                        rendered += usize::from((rtp_channel, rtcp_channel) != streams::own(set_up.track));
                    }
                    Delivery::Multicast { rtp } => assert!(rtp.ip().is_multicast()),
                    Delivery::Udp { rtp, rtcp } => {
                        assert_eq!((rtp.ip(), rtcp.ip()), (session.peer.ip(), session.peer.ip()));
                        assert_eq!((self.session_at(rtp), self.session_at(rtcp)), (Some(*key), Some(*key)));
                    }
                }
            }
            let before = channels.len();
            channels.sort_unstable();
            channels.dedup();
            assert_eq!(channels.len(), before, "a channel twice in a connection");
        }
        assert_eq!(self.timers.len(), timers);
        let (sessions, most) = self.streams.rendered();
        assert_eq!(sessions, rendered);
        assert!(most <= RENDERINGS_MAX);
        assert!(self.sessions.len() <= self.config.limit.open() && self.released.is_empty());
        assert!(self.by_publisher.values().all(|(key, ..)| self.sessions.get(key).is_some_and(|have| have.publishes)));
        let held = self.own_ports.held_by(self.config.shard);
        assert!(held.iter().all(|key| self.sessions.contains_key(key)));
        for key in self.by_port.values().map(|(key, _)| key).chain(self.by_address.values().flatten()) {
            assert!(self.sessions.contains_key(key));
        }
    }
}
