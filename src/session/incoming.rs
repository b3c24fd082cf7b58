//! What a connection sends.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::rate::Rate;
use super::types::CloseReason;
use crate::wire::rtsp::{Decoder, Invalid, Message};

/// Splits what a connection sends into messages, and limits their rate.
#[derive(Debug)]
pub(super) struct Incoming {
    decoder: Decoder,
    /// Its remaining burst of requests.
    rate: Rate,
    /// When the connection was opened.
    since: Instant,
    /// When its last complete request arrived, if any.
    heard: Option<Instant>,
    /// When the first bytes of the current incomplete message arrived.
    partial_since: Option<Instant>,
    /// Until when its further requests are delayed because of its request rate.
    delayed: Option<Instant>,
}

impl Incoming {
    /// For a new connection.
    pub(super) fn new(now: Instant, rate: Rate) -> Incoming {
        let decoder = Decoder::new();
        Incoming { decoder, rate, since: now, heard: None, partial_since: None, delayed: None }
    }

    /// Bytes were read.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.decoder.feed(bytes);
    }

    /// Bytes that have not been processed yet.
    pub(super) fn pending(&self) -> usize {
        self.decoder.pending()
    }

    /// Bytes of memory that it uses.
    pub(super) fn held(&self) -> usize {
        self.decoder.held()
    }

    /// Takes the unprocessed bytes.
    pub(super) fn take_unread(&mut self) -> BytesMut {
        self.decoder.take_unread()
    }

    /// The unprocessed bytes.
    pub(super) fn unread(&self) -> &[u8] {
        self.decoder.unread()
    }

    /// When it was opened, when its last complete request arrived, and when its allowance will be whole.
    pub(super) fn times(&self) -> (Instant, Option<Instant>, Instant) {
        (self.since, self.heard, self.rate.whole_at())
    }

    /// Restores a connection's times.
    pub(super) fn set_times(&mut self, (since, heard, whole_at): (Instant, Option<Instant>, Instant)) {
        (self.since, self.heard, self.rate) = (since, heard, Rate::whole(whole_at));
    }

    /// When the client was last heard from: its last complete request, or its connecting.
    pub(super) fn last_heard(&self) -> Instant {
        self.heard.unwrap_or(self.since)
    }

    /// A request arrived in another way.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Whether further requests are delayed because of the request rate.
    pub(super) fn is_delayed(&self) -> bool {
        self.delayed.is_some()
    }

    /// Ends a delay that is over; returns whether there was one.
    pub(super) fn end_delay(&mut self, now: Instant) -> bool {
        self.delayed.take_if(|until| *until <= now).is_some()
    }

    /// Delays the requests that are there if there were too many before them; returns whether it did.
    pub(super) fn delay(&mut self, now: Instant) -> bool {
        let until = if self.decoder.pending() > 0 { self.rate.wait(now) } else { None };
        if until.is_some() {
            self.delayed = until;
            // Unprocessed bytes do not mean that the client is slow while the relay itself does not read.
            self.partial_since = None;
        }
        until.is_some()
    }

    /// The next complete message, with a body of at most `body_max`. `publishes`: frames do not count towards the rate, because a
    /// publisher may send any amount.
    pub(super) fn next_message(
        &mut self,
        now: Instant,
        body_max: usize,
        publishes: bool,
    ) -> Result<Option<Message>, Invalid> {
        let before = self.decoder.consumed();
        self.decoder.set_body_max(body_max);
        let message = self.decoder.next_message();
        if self.decoder.pending() == 0 {
            self.partial_since = None;
        } else if self.partial_since.is_none() || self.decoder.consumed() > before {
            self.partial_since = Some(now);
        }
        match &message {
            Ok(Some(Message::Request(_))) => {
                self.rate.spend(now);
                self.heard = Some(now);
            }
            Ok(Some(Message::Frame { .. })) if !publishes => self.rate.spend_frame(now),
            Ok(Some(Message::Response)) => self.rate.spend(now),
            _ => {}
        }
        message
    }

    /// When it is closed if nothing more arrives, and why. `has_session`: then it may be silent.
    pub(super) fn deadline(
        &self,
        handshake_timeout: Duration,
        session_timeout: Duration,
        has_session: bool,
    ) -> Option<(Instant, CloseReason)> {
        if let Some(until) = self.delayed {
            return Some((until, CloseReason::Flood));
        }
        let Some(heard) = self.heard else { return Some((self.since + handshake_timeout, CloseReason::Handshake)) };
        let partial = self.partial_since.map(|since| (since + handshake_timeout, CloseReason::Handshake));
        let idle = (!has_session).then(|| (heard + session_timeout, CloseReason::Idle));
        partial.into_iter().chain(idle).min()
    }
}
