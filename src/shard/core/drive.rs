//! The hot path: from the log into operations, and from completions to the next ones.

use std::io;
use std::time::{Duration, Instant};

use super::Core;
use super::link::{Closing, Kind, Playing};
use crate::egress::{Completion, Conn, Egress, Token, is_shortage};
use crate::limits::{
    AGE_LAGGING_DIVISOR, LAGGED_S, NOTSENT_LOWAT_BYTES, NOTSENT_LOWAT_LAGGING_BYTES, OP_BYTES_LAGGING_MAX,
    OP_BYTES_MAX, OP_IOVECS_MAX,
};
use crate::metrics::{DropReason, ShardMetrics};
use crate::session::{ConnId, EndReason};
use crate::shard::player::Notes;
use crate::stream::chunk::ChunkKind;

/// Completions that one pass takes in at most.
const REAP_MAX: usize = 4096;

/// Links that one pass serves at most besides the members of streams with new chunks.
const READY_MAX: usize = 1024;

/// Answers that one operation carries at most.
const ANSWERS_MAX: usize = OP_IOVECS_MAX / 2;

/// Bytes that a UDP client is sent within [`BURST_EVERY`]: the default receive buffer takes about twice as much.
const BURST_BYTES: usize = 64 * 1024;

/// Arrivals above which a link gives back the memory for them after the operation.
const ARRIVALS_KEPT_MAX: usize = 16;

/// How many turns before a client's own its memory is asked for.
const PREFETCH_AHEAD: usize = 4;

/// How often a UDP client is sent [`BURST_BYTES`] at most; together 131 Mbit/s.
const BURST_EVERY: Duration = Duration::from_millis(4);

impl<E: Egress> Core<E> {
    /// Acts on everything that was taken in: offers new chunks to their clients, serves links that became idle, hands all
    /// operations over at once and takes in what completed. Returns whether more can be done at once.
    pub fn drive(&mut self, now: Instant) -> bool {
        for index in 0..self.streams.len() {
            if std::mem::take(&mut self.streams[index].dirty) {
                self.walk(now, index);
                self.trim(now, index);
            }
        }
        for _ in 0..self.ready.len().min(READY_MAX) {
            let Some(slot) = self.ready.pop_front() else { break };
            if let Some(link) = self.links.get_mut(slot as usize) {
                link.queued = false;
            }
            self.at = Some(slot);
            self.serve(now, slot);
        }
        self.at = None;
        self.egress.flush();
        !self.ready.is_empty()
    }

    /// Takes in what completed; `now` is when that was learnt, if the egress does not know better. Returns whether there was anything.
    pub fn reap(&mut self, now: Instant) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        // There are some already if that has happened.
        completions.reverse();
        self.egress.reap(REAP_MAX, &mut completions);
        let any = !completions.is_empty();
        // In their order, and none is lost if one of their clients' code fails.
        completions.reverse();
        self.completions = completions;
        while let Some(completion) = self.completions.pop() {
            if let Some(ahead) = self.completions.len().checked_sub(PREFETCH_AHEAD) {
                self.links.prefetch(self.completions[ahead].token.slot);
            }
            self.at = Some(completion.token.slot);
            self.completed(now, completion);
        }
        self.at = None;
        if any {
            self.process_events(now);
        }
        any
    }

    /// Offers the head of the log to every client of the stream that is idle.
    fn walk(&mut self, now: Instant, index: usize) {
        self.wake_group(now, index);
        let count = self.streams[index].members.len();
        if count == 0 {
            return;
        }
        let start = self.streams[index].rotate % count;
        self.streams[index].rotate = start + 1;
        for offset in 0..count {
            let at = start + offset;
            // Serving a client never changes the members: whoever goes does so when events are processed.
            let members = &self.streams[index].members;
            let Some(&slot) = members.get(if at < count { at } else { at - count }) else { break };
            let (soon, next) = (at + 2 * PREFETCH_AHEAD, at + PREFETCH_AHEAD);
            let (soon, next) = (members[soon % members.len()], members[next % members.len()]);
            self.links.prefetch(next);
            self.egress.prefetch(soon, next);
            if self.links[slot as usize].busy.is_none() {
                self.at = Some(slot);
                self.serve(now, slot);
            }
        }
        self.at = None;
    }

    fn trim(&mut self, now: Instant, index: usize) {
        let stream = &mut self.streams[index];
        let links = &mut self.links;
        let members = &stream.members;
        stream.log.trim(now, |mut entry| {
            // Only what continues a frame can be missed by someone who has begun it.
            if entry.chunk().frame_start || entry.chunk().kind == ChunkKind::Report {
                return;
            }
            let chunk = std::sync::Arc::clone(entry.chunk());
            for slot in members {
                if let Some(playing) = &mut links[*slot as usize].playing {
                    playing.player.pin(&chunk, |channel| entry.piece(channel));
                }
            }
        });
        if !stream.log.cached_start() && !stream.told_no_cached_start {
            stream.told_no_cached_start = true;
            tracing::warn!(
                stream = %stream.name,
                "the last keyframe passed queue.log_bytes: new clients wait for the next one; raise queue.log_bytes or shorten the camera's keyframe interval"
            );
        }
    }

    /// Starts the next operation of an idle link, or closes it if that is what it waits for.
    fn serve(&mut self, now: Instant, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        if link.busy.is_some() {
            return;
        }
        let token = Token { slot, generation: link.generation };
        debug_assert!(link.arrivals.is_empty() && link.media_bytes == 0, "an idle client has no operation in flight");
        match &mut link.kind {
            Kind::Tcp { conn, answers, answer_bytes, .. } => {
                let pieces = &mut self.pieces;
                let mut bytes = 0;
                while pieces.len() < ANSWERS_MAX && bytes < OP_BYTES_MAX {
                    let Some(answer) = answers.pop_front() else { break };
                    bytes += answer.len();
                    pieces.push(answer.into());
                }
                *answer_bytes -= bytes;
                let answered = answers.is_empty();
                if let Some(playing) = link.playing.as_mut().filter(|playing| answered && !playing.paused) {
                    let log = &mut self.streams[usize::from(playing.stream.0)].log;
                    let age = if playing.lagging_until.is_some() { self.age / AGE_LAGGING_DIVISOR } else { self.age };
                    link.media_bytes = playing.player.fill(log, age, now, bytes, pieces, &mut link.arrivals);
                    bytes += link.media_bytes;
                    let skipped = playing.count_notes(&mut self.metrics);
                    playing.narrow(now, conn, skipped);
                }
                let rest_left = link.playing.as_ref().is_some_and(|p| !p.paused && p.player.is_rest_left());
                if answered
                    && !rest_left
                    && let Some(farewell) = link.farewell.take()
                {
                    bytes += farewell.len();
                    pieces.push(farewell.into());
                }
                if !pieces.is_empty() {
                    link.op_bytes = bytes;
                    link.busy = Some(now);
                    let lags = link.playing.as_ref().is_some_and(|playing| playing.lagging_until.is_some());
                    self.egress.send(token, conn, pieces, lags);
                } else if link.closing == Closing::Flush {
                    self.remove(slot);
                }
            }
            Kind::Udp { .. } => self.serve_udp(now, slot, token),
            Kind::Receiver { .. } => {
                if link.closing == Closing::Flush {
                    self.remove(slot);
                }
            }
        }
    }

    fn serve_udp(&mut self, now: Instant, slot: u32, token: Token) {
        let Some(sockets) = &self.udp else { return };
        let link = &mut self.links[slot as usize];
        let Kind::Udp { targets, own, own_sockets, plain, burst_bytes, burst_from, paced } = &mut link.kind else {
            return;
        };
        // A BYE comes after the rest of the frame begun; a first report before anything.
        let rest_first = link.closing == Closing::Flush
            && link.playing.as_ref().is_some_and(|playing| !playing.paused && playing.player.is_rest_left());
        if !rest_first && let Some((to, datagrams)) = own.pop_front() {
            link.op_bytes = datagrams.bytes().len();
            link.op_track = None;
            link.busy = Some(now);
            let rtcp = own_sockets.as_ref().and_then(|own| own.rtcp.as_ref()).unwrap_or(&sockets.rtcp);
            self.egress.send_datagrams(token, rtcp, to, &datagrams, false);
            return;
        }
        if now.saturating_duration_since(*burst_from) >= BURST_EVERY {
            *burst_from = now;
            *burst_bytes = 0;
        }
        if let Some(playing) = link.playing.as_mut().filter(|playing| !playing.paused) {
            let log = &mut self.streams[usize::from(playing.stream.0)].log;
            if *burst_bytes >= BURST_BYTES && playing.player.is_behind(log) {
                if self.paced.is_empty() {
                    self.paced_until = now + BURST_EVERY;
                }
                if !std::mem::replace(paced, true) {
                    self.paced.push(slot);
                }
                return;
            }
            *paced = false;
            let next = playing.player.next_chunk(log, self.age, now);
            playing.count_notes(&mut self.metrics);
            if let Some((chunk, taken, arrival)) = next {
                let target = targets.iter().find(|target| target.track == taken.track);
                let target = target.expect("a player is made of the tracks that have targets");
                link.op_bytes = chunk.bytes().len();
                link.op_track = (taken.kind == ChunkKind::Media).then_some(taken.track);
                link.busy = Some(now);
                let (socket, to) = match taken.kind {
                    ChunkKind::Media => {
                        link.arrivals.push(arrival);
                        link.media_bytes = chunk.bytes().len();
                        *burst_bytes += chunk.bytes().len();
                        let own = own_sockets.as_ref().and_then(|own| own.of(taken.track));
                        (own.unwrap_or(&sockets.rtp), target.rtp)
                    }
                    ChunkKind::Report => {
                        let own = own_sockets.as_ref().and_then(|own| own.rtcp.as_ref());
                        (own.unwrap_or(&sockets.rtcp), target.rtcp())
                    }
                };
                self.egress.send_datagrams(token, socket, to, &chunk, *plain);
                return;
            }
        }
        if link.closing == Closing::Flush {
            self.remove(slot);
        }
    }

    /// An operation has ended: what it carried is counted, and the link goes on, or is closed if it failed.
    fn completed(&mut self, now: Instant, completion: Completion) {
        let slot = completion.token.slot;
        if let Some(error) = &completion.error
            && is_shortage(error)
            && self.shortage(now, completion.token, error)
        {
            return;
        }
        let Some(link) =
            self.links.get_mut(slot as usize).filter(|link| link.generation == completion.token.generation)
        else {
            debug_assert!(false, "a link is removed only when its operation was joined");
            return;
        };
        link.busy = None;
        let media_bytes = std::mem::take(&mut link.media_bytes);
        let whole = completion.error.is_none();
        if whole
            && self.metrics.is_measuring()
            && let Some(playing) = &mut link.playing
        {
            playing.bytes += media_bytes as u64;
            let mut bytes = media_bytes as u64;
            let at = completion.at.unwrap_or(now);
            for arrival in &link.arrivals {
                let latency = at.saturating_duration_since(*arrival);
                playing.latency.record(latency);
                self.metrics.sent(playing.stream, latency, std::mem::take(&mut bytes));
            }
        }
        // Whoever has caught up needs no more room than there is in the link itself, which is at hand.
        let len = link.arrivals.len();
        link.arrivals.clear();
        if len > ARRIVALS_KEPT_MAX || len <= link.arrivals.inline_size() {
            link.arrivals.shrink_to_fit();
        }
        if link.closing == Closing::Join {
            self.remove(slot);
            return;
        }
        if let (Kind::Udp { plain, .. }, true) = (&mut link.kind, completion.unsegmented) {
            *plain = true;
        }
        match (&mut link.kind, completion.error) {
            (_, None) | (Kind::Receiver { .. }, _) => {}
            (Kind::Tcp { .. }, Some(error)) => {
                self.send_failed(now, slot, &error);
                return;
            }
            (Kind::Udp { own_sockets, .. }, Some(error)) => {
                let reason = if error.raw_os_error() == Some(libc::EMSGSIZE) {
                    DropReason::UdpMessageSize
                } else {
                    // Of other errors, such as a route that is gone, a socket of its own would cure nothing.
                    self.path_refused |= is_shortage(&error) && own_sockets.is_none();
                    DropReason::UdpSend
                };
                if let (Some(playing), Some(track)) = (&mut link.playing, link.op_track) {
                    playing.player.abandon_frame(track);
                    self.metrics.dropped(playing.stream, reason, 1);
                }
            }
        }
        self.ready_again(slot);
    }

    /// Has the link served in the next pass.
    pub(super) fn wake(&mut self, slot: u32) {
        if let Some(link) = self.links.get_mut(slot as usize)
            && !std::mem::replace(&mut link.queued, true)
        {
            self.ready.push_back(slot);
        }
    }

    /// Serves the link again in the next pass if it has something to send or to finish.
    fn ready_again(&mut self, slot: u32) {
        let link = &self.links[slot as usize];
        let waiting = match &link.kind {
            Kind::Tcp { answers, .. } => !answers.is_empty(),
            Kind::Udp { own, .. } => !own.is_empty(),
            Kind::Receiver { .. } => false,
        };
        let behind = link.playing.as_ref().is_some_and(|playing| {
            !playing.paused && playing.player.is_behind(&self.streams[usize::from(playing.stream.0)].log)
        });
        if waiting || behind || link.farewell.is_some() || link.closing == Closing::Flush {
            self.wake(slot);
        }
    }

    fn send_failed(&mut self, now: Instant, slot: u32, error: &io::Error) {
        let gone = matches!(
            error.raw_os_error(),
            Some(libc::EPIPE | libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH)
        );
        if let (false, Some(playing)) = (gone, &self.links[slot as usize].playing) {
            tracing::warn!(
                stream = %self.streams[usize::from(playing.stream.0)].name,
                client = %playing.peer,
                session = %playing.session,
                next_seq = self.next_seq(now, slot),
                %error,
                "sending failed: closed"
            );
            self.remove_player(slot, EndReason::SendFailed);
        }
        self.server.disconnected(now, ConnId(slot));
        self.close(slot, Closing::Join);
    }
}

impl Playing {
    /// Counts what the player has passed over; whether it has skipped.
    fn count_notes(&mut self, metrics: &mut ShardMetrics) -> bool {
        let notes = self.player.take_notes();
        if notes == Notes::default() {
            return false;
        }
        self.skips += u64::from(notes.skips);
        for _ in 0..notes.skips {
            metrics.skipped(self.stream);
        }
        metrics.dropped(self.stream, DropReason::Lagging, notes.lagging_frames);
        metrics.dropped(self.stream, DropReason::LogBytes, notes.log_bytes_frames);
        notes.skips > 0
    }

    /// What is on its way to a client can't be skipped any more: one that has `skipped` is sent little at a time, until it has
    /// kept up for a while.
    fn narrow(&mut self, now: Instant, conn: &Conn, skipped: bool) {
        let (until, op_bytes, lowat) = match self.lagging_until {
            None if skipped => {
                (Some(now + Duration::from_secs(LAGGED_S)), OP_BYTES_LAGGING_MAX, NOTSENT_LOWAT_LAGGING_BYTES)
            }
            Some(_) if skipped => {
                self.lagging_until = Some(now + Duration::from_secs(LAGGED_S));
                return;
            }
            Some(until) if until <= now => {
                assert!(!self.panics, "a test wants it so");
                (None, OP_BYTES_MAX, NOTSENT_LOWAT_BYTES)
            }
            _ => return,
        };
        self.lagging_until = until;
        self.player.set_op_bytes_max(op_bytes);
        // A connection that is gone says so when it is sent to.
        let _ = conn.set_notsent_lowat(lowat);
    }
}
