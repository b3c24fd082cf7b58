//! A panic in code that works for one client ends only that client.

use std::time::Instant;

use super::link::{Closing, Kind};
use super::state::Core;
use crate::egress::{Egress, Token};
use crate::metrics::{Limited, Panicked, process};
use crate::session::{CloseReason, ConnId, EndReason};
use crate::testing::Testing;

/// What a client of a relay under test sends to make its code panic while a request is processed …
#[cfg(feature = "testing")]
const ON_REQUEST: &[u8] = b"X-Test-Panic: request";

/// … and while it is sent media.
#[cfg(feature = "testing")]
const ON_SEND: &[u8] = b"X-Test-Panic: send";

impl<E: Egress> Core<E> {
    /// Does as tests ask.
    pub fn set_testing(&mut self, testing: Testing) {
        #[cfg(feature = "testing")]
        {
            self.testing = testing;
        }
        self.metrics.set_testing(testing);
    }

    /// The code below has panicked and unwound to the caller. Ends the client that it worked for; `false` if it worked for none, so
    /// that the shard cannot continue.
    pub fn panicked(&mut self, now: Instant) -> bool {
        let Some(slot) = self.at.take() else { return false };
        process::panicked(Panicked::Client);
        self.pieces.clear();
        // The walk over the clients ended early.
        self.streams.offer_all();
        let Some(link) = self.links.get_mut(slot as usize) else { return true };
        let token = Token { slot, generation: link.generation };
        let (session, stream) = match &link.playing {
            Some(playing) => (Some(playing.session), Some(playing.stream)),
            None => (None, None),
        };
        let peer = match (&link.kind, &link.playing) {
            (Kind::Tcp { peer, .. } | Kind::Receiver { peer, .. }, _) => Some(*peer),
            (_, playing) => playing.as_ref().map(|playing| playing.peer),
        };
        tracing::error!(
            stream =
                stream.and_then(|id| self.streams.get(id.index())).map(|stream| tracing::field::display(&stream.name)),
            client = peer.map(tracing::field::display),
            session = session.map(tracing::field::display),
            "a bug in the relay ended this client; other clients are not affected"
        );
        // The egress knows whether there is an operation to wait for.
        if !self.egress.is_busy(token) && !self.completions.iter().any(|completion| completion.token == token) {
            link.busy = None;
            link.arrivals.clear();
            link.media_bytes = 0;
        }
        link.farewell = None;
        let is_conn = matches!(link.kind, Kind::Tcp { .. });
        if let Some(session) = session {
            self.remove_player(slot, EndReason::Panicked);
            self.server.end_session(now, session, EndReason::Panicked);
        }
        if is_conn {
            self.server.disconnected(now, ConnId(slot));
        }
        self.close(slot, Closing::Join);
        self.process_events(now);
        true
    }

    /// Does what a test's client requests.
    #[cfg(feature = "testing")]
    pub(super) fn panic_if_asked(&mut self, now: Instant, slot: u32, bytes: &[u8]) {
        assert!(!self.testing.is_asked(bytes, ON_REQUEST), "a test wants it so");
        if self.testing.is_asked(bytes, ON_SEND)
            && let Some(playing) = self.links.get_mut(slot as usize).and_then(|link| link.playing.as_mut())
        {
            (playing.panics, playing.lagging_until) = (true, Some(now));
        }
    }

    /// Adds the RTSP server's counts of limits.
    pub(super) fn add_limited(&self, limited: &mut [u64; Limited::COUNT]) {
        let counters = self.server.counters();
        for (into, count) in limited.iter_mut().zip(counters.limited) {
            *into += count;
        }
        for (reason, count) in &counters.closed {
            let of = match reason {
                CloseReason::Flood => Limited::RequestRate,
                CloseReason::Crowded => Limited::WithoutSession,
                CloseReason::Handshake => Limited::Handshake,
                CloseReason::Idle => Limited::Idle,
                CloseReason::TooLarge(_) => Limited::RequestSize,
                CloseReason::NotRtsp(_) | CloseReason::Malformed(_) | CloseReason::SessionEnded(_) => continue,
            };
            limited[of.index()] += count;
        }
    }
}
