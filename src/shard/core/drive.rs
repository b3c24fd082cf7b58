//! The hot path: from the log to operations, and from completions to the next operations.

use std::io;
use std::time::{Duration, Instant};

use super::browser::skipped as skipped_text;
use super::link::{Closing, Kind, Playing};
use super::pacing::BURST_EVERY;
use super::state::Core;
use super::streams::Stream;
use crate::egress::{Completion, Conn, Egress, Route, Token, is_shortage};
use crate::limits::{
    AGE_LAGGING_DIVISOR, LAGGED_S, NOTSENT_LOWAT_BYTES, NOTSENT_LOWAT_LAGGING_BYTES, OP_BYTES_LAGGING_MAX,
    OP_BYTES_MAX, OP_IOVECS_MAX,
};
use crate::media::chunk::{Chunk, ChunkKind};
use crate::metrics::{DropReason, ShardMetrics};
use crate::session::{ConnId, EndReason};
use crate::shard::player::{Notes, Taken};

/// Maximum number of completions per pass.
const REAP_MAX: usize = 4096;

/// Maximum number of links served per pass, besides the members of streams with new chunks.
const READY_MAX: usize = 1024;

/// Maximum number of answers per operation.
const ANSWERS_MAX: usize = OP_IOVECS_MAX / 2;

/// Bytes sent to a UDP client within [`BURST_EVERY`]: the default receive buffer holds about twice as much.
const BURST_BYTES: usize = 64 * 1024;

/// A link with more arrivals than this frees the memory for them after the operation.
const ARRIVALS_KEPT_MAX: usize = 16;

/// How many turns ahead a client's memory is prefetched.
const PREFETCH_AHEAD: usize = 4;

impl<E: Egress> Core<E> {
    /// Acts on everything that was absorbed: offers new chunks to their clients, serves links that became idle, submits all operations
    /// at once and processes completions. Returns whether there is more to do at once.
    pub fn drive(&mut self, now: Instant) -> bool {
        if self.frozen {
            return false;
        }
        while let Some(index) = self.streams.next_dirty() {
            self.walk(now, index);
            self.trim(now, index);
        }
        while let Some(index) = self.streams.next_reporting() {
            self.walk(now, index);
        }
        for _ in 0..self.links.ready().min(READY_MAX) {
            let Some(slot) = self.links.next_ready() else { break };
            self.at = Some(slot);
            self.serve(now, slot);
        }
        self.at = None;
        self.egress.flush();
        self.links.ready() > 0
    }

    /// Whether there is something to do at once: the last [`Core::reap`] has left completions, or clients can be sent something.
    pub fn has_more(&self) -> bool {
        !self.reaped_all || (!self.frozen && (self.links.ready() > 0 || self.streams.has_more()))
    }

    /// Processes completions; `now` is when they were noticed, if the egress has no better time. Returns whether there were any.
    pub fn reap(&mut self, now: Instant) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        // There are already some if that has happened.
        completions.reverse();
        self.egress.reap(REAP_MAX, &mut completions);
        let any = !completions.is_empty();
        self.reaped_all = completions.len() < REAP_MAX;
        // In order, and none is lost if one of their clients' code panics.
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

    /// Serves every idle client of the stream with new chunks.
    fn walk(&mut self, now: Instant, index: usize) {
        self.wake_group(now, index);
        let Some((start, count)) = self.streams[index].next_walk() else { return };
        for offset in 0..count {
            let at = start + offset;
            // Serving a client never changes the members: clients are removed when events are processed.
            let members = self.streams[index].members();
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

    pub(super) fn trim(&mut self, now: Instant, index: usize) {
        let stream = &mut self.streams[index];
        let links = &mut self.links;
        let (log, members) = stream.log_and_members();
        log.trim(now, |mut entry| {
            // Only a client that has started a frame can miss the rest of it.
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
                "the newest keyframe does not fit into queue.log_bytes: new clients wait for the next one; raise queue.log_bytes or shorten the camera's keyframe interval"
            );
        }
    }

    /// Starts the next operation of an idle link, or closes it if it is only waiting for that.
    fn serve(&mut self, now: Instant, slot: u32) {
        let age = self.streams.age();
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        if link.busy.is_some() {
            return;
        }
        let token = Token { slot, generation: link.generation };
        debug_assert!(link.arrivals.is_empty() && link.media_bytes == 0, "an idle client has no operation in flight");
        match &mut link.kind {
            Kind::Tcp { conn, answers, answer_bytes, web, .. } => {
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
                    let Stream { log, outage, web: of_web, .. } = &mut self.streams[playing.stream.index()];
                    let age = if playing.lagging_until.is_some() { age / AGE_LAGGING_DIVISOR } else { age };
                    let arrivals = &mut link.arrivals;
                    link.media_bytes = match of_web.fragments().filter(|_| web.is_some()) {
                        Some(fragments) => {
                            playing.player.fill_fragments(log, (age, now), bytes, fragments, pieces, arrivals)
                        }
                        None => playing.player.fill(log, age, now, bytes, pieces, arrivals),
                    };
                    bytes += link.media_bytes;
                    // A client that lacks media gets that first.
                    if web.is_none() && link.media_bytes == 0 && !playing.player.is_behind(log) {
                        bytes += outage.fill(playing, pieces);
                    }
                    let skipped = playing.count_notes(&mut self.metrics);
                    if skipped && web.is_some() {
                        let told = skipped_text(playing.skips);
                        *answer_bytes += told.len();
                        answers.push_back(told);
                    }
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
                    link.farewell_sent |= link.closing == Closing::Flush;
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
        let Some(sockets) = self.paths.shared() else { return };
        let age = self.streams.age();
        let link = &mut self.links[slot as usize];
        let Kind::Udp { targets, from, own, own_sockets, plain, burst_bytes, burst_from, paced } = &mut link.kind
        else {
            return;
        };
        let route = |to| Route { to, from: *from };
        // A BYE follows the rest of the current frame; a first report precedes everything.
        let rest_first = link.closing == Closing::Flush
            && link.playing.as_ref().is_some_and(|playing| !playing.paused && playing.player.is_rest_left());
        if !rest_first && let Some((to, datagrams)) = own.pop_front() {
            link.op_bytes = datagrams.bytes().len();
            link.op_track = None;
            link.busy = Some(now);
            let rtcp = own_sockets.as_ref().and_then(|own| own.rtcp.as_ref()).unwrap_or(&sockets.rtcp);
            self.egress.send_datagrams(token, rtcp, route(to), &datagrams, false);
            return;
        }
        if now.saturating_duration_since(*burst_from) >= BURST_EVERY {
            *burst_from = now;
            *burst_bytes = 0;
        }
        if let Some(playing) = link.playing.as_mut().filter(|playing| !playing.paused) {
            let Stream { log, outage, .. } = &mut self.streams[playing.stream.index()];
            if *burst_bytes >= BURST_BYTES && playing.player.is_behind(log) {
                if !std::mem::replace(paced, true) {
                    self.pacing.wait(now, slot);
                }
                return;
            }
            *paced = false;
            let next = playing.player.next_chunk(log, age, now);
            playing.count_notes(&mut self.metrics);
            let next = next.or_else(|| {
                let entry = outage.next(playing)?;
                let Chunk { track, kind, arrival, .. } = **entry.chunk();
                let taken = Taken { track, channel: track.rtcp_channel(), kind, since: arrival };
                Some((entry.datagrams(), taken, arrival))
            });
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
                self.egress.send_datagrams(token, socket, route(to), &chunk, *plain);
                return;
            }
        }
        if link.closing == Closing::Flush {
            self.remove(slot);
        }
    }

    /// An operation has completed: what it carried is counted, and the link continues, or is closed if the operation failed.
    fn completed(&mut self, now: Instant, completion: Completion) {
        let slot = completion.token.slot;
        if let Some(error) = &completion.error
            && self.goes_on_later(now, completion.token, error)
        {
            return;
        }
        let Some(link) = self.links.of_token_mut(completion.token) else {
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
        // A client that has caught up needs no more memory than the link itself has, which is in the cache.
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
                    // For other errors, such as a missing route, a separate socket would not help.
                    if is_shortage(&error) && own_sockets.is_none() {
                        self.paths.note_refused();
                    }
                    DropReason::UdpSend
                };
                if let (Some(playing), Some(track)) = (&mut link.playing, link.op_track) {
                    playing.player.abandon_frame(track);
                    self.metrics.dropped(playing.stream, reason, 1);
                }
            }
        }
        if let (Kind::Tcp { answer_bytes, .. }, None) = (&link.kind, &link.playing) {
            // It has received what was in flight.
            self.server.set_unread(ConnId(slot), *answer_bytes);
        }
        self.ready_again(slot);
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
            let stream = &self.streams[playing.stream.index()];
            let owed = !playing.player.wants_fragments() && stream.outage.is_owed(playing);
            !playing.paused && (playing.player.is_behind(&stream.log) || owed)
        });
        if waiting || behind || link.farewell.is_some() || link.closing == Closing::Flush {
            self.links.wake(slot);
        }
    }

    fn send_failed(&mut self, now: Instant, slot: u32, error: &io::Error) {
        let gone = matches!(
            error.raw_os_error(),
            Some(libc::EPIPE | libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH)
        );
        if let (false, Some(playing)) = (gone, &self.links[slot as usize].playing) {
            tracing::warn!(
                stream = %self.streams[playing.stream.index()].name,
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
    /// Counts what the player has skipped; returns whether it has skipped.
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

    /// What has been sent to a client can no longer be skipped: one that has `skipped` is sent small operations until it has kept up
    /// for a while.
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
                #[cfg(feature = "testing")]
                assert!(!self.panics, "a test wants it so");
                (None, OP_BYTES_MAX, NOTSENT_LOWAT_BYTES)
            }
            _ => return,
        };
        self.lagging_until = until;
        self.player.set_op_bytes_max(op_bytes);
        // If the connection is gone, the next send reports it.
        let _ = conn.set_notsent_lowat(lowat);
    }
}
