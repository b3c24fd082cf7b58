//! Browsers: WebSocket connections from the HTTP server, and their messages.
//!
//! A browser is a client like any other, with a cursor and one operation at a time. Only the form of the data differs, and what it
//! sends is not RTSP.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use super::browser::{Web, text};
use super::link::{Closing, Kind};
use super::state::Core;
use super::streams::Stream;
use crate::egress::{Conn, Egress, Token};
use crate::limits::{WEBSOCKET_MESSAGES_PER_S_MAX, WEBSOCKET_PING_EVERY_S};
use crate::media::chunk::{Chunk, ChunkKind};
use crate::media::rendering::fmp4::{self, Clock, Fragments};
use crate::media::{StreamId, TrackId};
use crate::metrics::Counter;
use crate::session::{ConnId, EndReason};
use crate::shard::player::Player;
use crate::shard::types::{Still, WebClient};
use crate::wire::websocket::{self, CloseCode, Decoder, Message, Opcode};

impl<E: Egress> Core<E> {
    /// Takes over a browser's connection, with its peer's and its local address. `unread` is what it has sent after its request.
    pub fn web_connected(
        &mut self,
        now: Instant,
        conn: Conn,
        (peer, local): (SocketAddr, SocketAddr),
        unread: &[u8],
        client: WebClient,
    ) -> Option<Token> {
        if self.stopping.is_some() || self.streams.find(client.stream).is_none() {
            return None;
        }
        self.metrics.count(Counter::Connections, 1);
        let is_secure = conn.tls().is_some();
        let web =
            Web { decoder: Decoder::default(), waits: None, pinged: now, messages: (now, 0), client: client.clone() };
        let kind =
            Kind::Tcp { conn, peer, answers: VecDeque::new(), answer_bytes: 0, moves: 0, web: Some(Box::new(web)) };
        let token = self.links.insert(kind);
        self.at = Some(token.slot);
        let id = ConnId(token.slot);
        self.server.connected(now, id, peer, local);
        if is_secure {
            self.server.set_secure(id);
        }
        self.server.web_client(now, id, client.user);
        match self.server.web_wait(now, client.stream) {
            Some(wait) => {
                self.server.web_wants(client.stream, true);
                if let Some(web) = self.web(token.slot) {
                    web.waits = Some(now + wait);
                }
                self.web_text(now, token.slot, &json!({ "type": "waiting" }));
            }
            None => self.web_start(now, token.slot),
        }
        if !unread.is_empty() {
            self.web_input(now, token.slot, unread);
        }
        self.process_events(now);
        Some(token)
    }

    fn web(&mut self, slot: u32) -> Option<&mut Web> {
        match &mut self.links.get_mut(slot as usize)?.kind {
            Kind::Tcp { web, .. } => web.as_deref_mut(),
            _ => None,
        }
    }

    /// Whether a connection is a browser's.
    pub(super) fn is_web(&self, slot: u32) -> bool {
        matches!(self.links.get(slot as usize).map(|link| &link.kind), Some(Kind::Tcp { web: Some(_), .. }))
    }

    /// Sends a text message to a browser.
    fn web_text(&mut self, now: Instant, slot: u32, message: &Value) {
        self.answer(now, slot, text(message));
    }

    /// Ends a browser's connection after its pending data and a reason.
    fn web_end(&mut self, now: Instant, slot: u32, code: CloseCode, why: &str) {
        if let Some(web) = self.web(slot)
            && web.waits.take().is_some()
        {
            let stream = web.client.stream;
            self.server.web_wants(stream, false);
        }
        self.answer(now, slot, Bytes::from(websocket::close(code, why)));
        self.server.disconnected(now, ConnId(slot));
        self.close(slot, Closing::Flush);
    }

    /// Starts sending a browser its stream.
    fn web_start(&mut self, now: Instant, slot: u32) {
        let Some(web) = self.web(slot) else { return };
        let client = web.client.clone();
        if web.waits.take().is_some() {
            self.server.web_wants(client.stream, false);
        }
        let stream = &mut self.streams[client.stream.index()];
        let Some(description) = &stream.description else {
            return self.web_end(now, slot, CloseCode::TryAgain, "the stream is not up yet");
        };
        if stream.web.fragments.as_ref().is_none_or(|fragments| !fragments.is_of(description)) {
            let mut fragments = Fragments::new(now, client.clock, Arc::clone(description));
            stream.reports().for_each(|report| fragments.report(report));
            stream.web.fragments = Some(fragments);
        }
        let Some(fragments) = &stream.web.fragments else { return };
        let hello = fragments.hello(now, &stream.name);
        let tracks = (0u8..).map(TrackId).take(description.tracks.len());
        let tracks: Vec<_> = tracks.filter(|track| fragments.plays(*track)).collect();
        self.answer(now, slot, Bytes::from(websocket::frame(Opcode::Text, hello.as_bytes())));
        if tracks.is_empty() {
            return self.web_end(now, slot, CloseCode::Normal, "the stream has no track that browsers can play");
        }
        let agent = client.user_agent.as_deref();
        match self.server.web_session(now, ConnId(slot), client.stream, &tracks, agent) {
            Ok(()) => {}
            Err(403) => self.web_end(now, slot, CloseCode::Policy, "this user has no right to the stream"),
            Err(453) => self.web_end(now, slot, CloseCode::TryAgain, "the maximum number of clients is connected"),
            Err(_) => self.web_end(now, slot, CloseCode::TryAgain, "the stream is not up yet"),
        }
    }

    /// A browser's session starts playing: it gets whole frames, and no audio unless it wants it.
    pub(super) fn web_plays(&mut self, slot: u32) {
        let Some(web) = self.web(slot) else { return };
        let sound = web.client.sound;
        let Some(playing) = &mut self.links[slot as usize].playing else { return };
        playing.player.want_fragments();
        Self::mute(&mut self.streams[playing.stream.index()], &mut playing.player, !sound);
    }

    fn mute(stream: &mut Stream, player: &mut Player, muted: bool) {
        let tracks = stream.description.iter().flat_map(|description| &description.tracks);
        for (track, _) in (0u8..).map(TrackId).zip(tracks).filter(|(_, described)| described.is_audio()) {
            player.set_muted(track, muted);
        }
    }

    /// A browser has sent something.
    pub(super) fn web_input(&mut self, now: Instant, slot: u32, bytes: &[u8]) {
        let Some(web) = self.web(slot) else { return };
        web.decoder.feed(bytes);
        loop {
            let Some(web) = self.web(slot) else { return };
            let message = match web.decoder.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(fault) => {
                    return self.web_end(now, slot, fault.code(), &fault.to_string());
                }
            };
            if now.saturating_duration_since(web.messages.0) >= Duration::from_secs(1) {
                web.messages = (now, 0);
            }
            web.messages.1 += 1;
            if web.messages.1 > WEBSOCKET_MESSAGES_PER_S_MAX {
                return self.web_end(now, slot, CloseCode::Policy, "too many messages");
            }
            match message {
                Message::Text(text) => self.web_message(now, slot, &text),
                Message::Ping(payload) => {
                    self.answer(now, slot, Bytes::from(websocket::frame(Opcode::Pong, &payload)));
                }
                Message::Pong | Message::Binary(_) => {}
                Message::Close => return self.web_end(now, slot, CloseCode::Normal, ""),
            }
        }
    }

    /// A text message from a browser. Unknown messages are ignored: a newer page may send more.
    fn web_message(&mut self, now: Instant, slot: u32, text: &str) {
        let Ok(message) = serde_json::from_str::<Value>(text) else { return };
        match message.get("type").and_then(Value::as_str) {
            Some("clock") => {
                let Some(clock) = self.web(slot).map(|web| web.client.clock) else { return };
                let relay = clock.unix(now).as_secs_f64() * 1_000.0;
                let sent = message.get("sent").and_then(Value::as_f64);
                self.web_text(now, slot, &json!({ "type": "clock", "sent": sent, "relay": relay }));
            }
            Some("pause") => {
                if let Some(playing) = &mut self.links[slot as usize].playing {
                    playing.paused = true;
                }
            }
            Some("play") => {
                let Some(playing) = &mut self.links[slot as usize].playing else { return };
                if std::mem::take(&mut playing.paused) {
                    playing.player.resume(&mut self.streams[playing.stream.index()].log, now);
                    self.links.wake(slot);
                }
            }
            Some("sound") => {
                let Some(playing) = &mut self.links[slot as usize].playing else { return };
                let muted = message.get("on").and_then(Value::as_bool) != Some(true);
                Self::mute(&mut self.streams[playing.stream.index()], &mut playing.player, muted);
            }
            _ => {}
        }
    }

    /// A stream may have started: browsers that wait for it start, too.
    pub(super) fn web_up(&mut self, now: Instant, id: StreamId) {
        for slot in self.web_waiting(|web| web.client.stream == id) {
            if self.server.web_wait(now, id).is_none() {
                self.web_start(now, slot);
            }
        }
    }

    /// A stream was removed: browsers that wait for it stop waiting.
    pub(super) fn end_web_waiting(&mut self, now: Instant, id: StreamId) {
        for slot in self.web_waiting(|web| web.client.stream == id) {
            self.web_end(now, slot, CloseCode::TryAgain, &EndReason::StreamRemoved.to_string());
        }
    }

    fn web_waiting(&self, which: impl Fn(&Web) -> bool) -> Vec<u32> {
        let waiting = self.links.iter().filter(|(_, link)| match &link.kind {
            Kind::Tcp { web: Some(web), .. } => web.waits.is_some() && which(web),
            _ => false,
        });
        waiting.map(|(slot, _)| slot as u32).collect()
    }

    /// Pings browsers, and disconnects those that have waited long enough.
    pub(super) fn check_web(&mut self, now: Instant) {
        if !self.links.has_webs() {
            return;
        }
        for slot in self.web_waiting(|web| web.waits.is_some_and(|until| self.spared(until) <= now)) {
            self.web_end(now, slot, CloseCode::TryAgain, "the stream did not come up in time");
        }
        let (mut due, mut expired) = (Vec::new(), Vec::new());
        for (slot, link) in self.links.iter_mut() {
            let Kind::Tcp { web: Some(web), .. } = &mut link.kind else { continue };
            if link.closing == Closing::No && web.client.expires.is_some_and(|at| at <= now) {
                expired.push(slot as u32);
            } else if link.closing == Closing::No
                && now.saturating_duration_since(web.pinged).as_secs() >= WEBSOCKET_PING_EVERY_S
            {
                web.pinged = now;
                due.push(slot as u32);
            }
        }
        for slot in expired {
            self.web_end(now, slot, CloseCode::Policy, "the login or link has expired");
        }
        for slot in due {
            self.answer(now, slot, Bytes::from(websocket::frame(Opcode::Ping, &[])));
        }
    }

    /// A browser's connection is gone.
    pub(super) fn web_gone(&mut self, web: &Web) {
        if web.waits.is_some() {
            self.server.web_wants(web.client.stream, false);
        }
    }

    /// The newest keyframe of a stream that is complete in the log; made once.
    pub fn still(&mut self, now: Instant, id: StreamId, clock: Clock) -> Option<Still> {
        let stream = self.streams.get_mut(id.index()).filter(|stream| !stream.is_removed())?;
        let description = stream.description.as_ref()?;
        let tracks = (0u8..).map(TrackId).zip(&description.tracks).filter(|(_, track)| track.is_video());
        let number = tracks.filter_map(|(track, _)| stream.log.newest_keyframe(track)).max()?;
        if let Some(still) = stream.web.still.as_ref().filter(|still| still.number == number) {
            return Some(still.clone());
        }
        let first = stream.log.get(number)?.chunk();
        let of_frame =
            |chunk: &&Chunk| (chunk.kind, chunk.track, chunk.frame) == (ChunkKind::Media, first.track, first.frame);
        let mut chunks: Vec<&Chunk> = stream.log.newest_first(number..stream.log.head()).filter(of_frame).collect();
        chunks.reverse();
        if !chunks.last()?.frame_end {
            // The next one is arriving; the previous one is good enough until then.
            return stream.web.still.clone();
        }
        let (mime, bytes) = fmp4::still(clock, now, description, &chunks)?;
        let still = Still { number, mime, bytes };
        stream.web.still = Some(still.clone());
        Some(still)
    }
}
