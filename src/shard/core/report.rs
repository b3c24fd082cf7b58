//! The core's answers to the reporter.

use std::time::{Duration, Instant};

use super::link::Kind;
use super::state::Core;
use crate::egress::Egress;
use crate::metrics::{Counter, ReportRequest, ShardSnapshot};
use crate::session::{CloseReason, ConnId};

impl<E: Egress> Core<E> {
    /// Answers the reporter, without the sources' counts.
    pub fn report(&mut self, now: Instant, request: ReportRequest) {
        let snapshot = self.snapshot(now, request.clients);
        // If the reporter is gone meanwhile, no answer is needed.
        let _ = request.reply.send(snapshot);
    }

    /// The shard's counts, and its clients if requested.
    pub fn snapshot(&mut self, now: Instant, clients: bool) -> ShardSnapshot {
        self.count_requests();
        let mut snapshot = self.metrics.snapshot();
        self.add_limited(&mut snapshot.limited);
        snapshot.egress = self.egress.stats();
        snapshot.sessions = self.server.sessions() as u64;
        snapshot.in_flight = self.egress.in_flight() as u64;
        for (slot, link) in self.links.iter() {
            if let Kind::Tcp { conn, .. } = &link.kind {
                snapshot.connections += 1;
                let published = (!self.publishers.is_empty()).then(|| self.server.published_in(ConnId(slot as u32)));
                if let Some(Some(stream)) = published {
                    let unread = conn.fd().and_then(|fd| crate::sys::unread_bytes(&fd).ok());
                    snapshot.stream_mut(stream).unread = unread.map(|bytes| bytes as u64);
                }
            }
            if let Some(playing) = &link.playing {
                let log = &self.streams[playing.stream.index()].log;
                // A paused client, or a group without receivers, is not behind.
                let lag = if playing.paused { Duration::ZERO } else { playing.player.lag(log, now) };
                let stream = snapshot.stream_mut(playing.stream);
                stream.worst_lag = stream.worst_lag.max(lag);
                if clients {
                    snapshot.clients.push(self.client_snapshot(now, link, playing, lag));
                }
            }
        }
        for stream in self.streams.iter() {
            snapshot.stream_mut(stream.id).log_bytes = stream.log.bytes() as u64;
        }
        snapshot
    }

    /// Copies the RTSP server's counts.
    fn count_requests(&mut self) {
        let counters = self.server.counters();
        let answers = |statuses: std::ops::Range<u16>| counters.answers.range(statuses).map(|(_, count)| count).sum();
        let closed = |wanted: fn(&CloseReason) -> bool| {
            counters.closed.iter().filter(|(reason, _)| wanted(reason)).map(|(_, count)| count).sum()
        };
        self.metrics.set(Counter::Requests, answers(100..600));
        self.metrics.set(Counter::RequestsFailed, answers(400..600));
        self.metrics.set(Counter::ClientsRefused, answers(453..454));
        self.metrics.set(Counter::AuthFailed, counters.auth_failed);
        self.metrics.set(Counter::AuthRefused, counters.auth_refused);
        self.metrics.set(Counter::HandshakeTimeouts, closed(|reason| *reason == CloseReason::Handshake));
        let malformed = |reason: &CloseReason| {
            matches!(reason, CloseReason::NotRtsp(_) | CloseReason::Malformed(_) | CloseReason::TooLarge(_))
        };
        self.metrics.set(Counter::Malformed, closed(malformed));
    }
}
