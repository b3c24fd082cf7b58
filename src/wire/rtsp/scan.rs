//! Splits what a camera sends into responses, requests and packets.
//!
//! Cameras violate the syntax in many ways: lines end in LF only, a frame is cut short by the next one, or there is rubbish between two
//! frames. The [`Scanner`] checks only what it needs to find the next piece. When it has lost synchronization, it looks for the next
//! frame that is certainly one, and reports how many bytes it skipped. The server's [`Decoder`](super::Decoder) is strict instead,
//! because clients have no such excuse.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Request;
use super::decode::{METHODS, lines};
use crate::limits::{CAMERA_BODY_BYTES_MAX, CAMERA_HEAD_BYTES_MAX, INTERLEAVED_HEADER_BYTES};
use crate::wire::{interleaved, rtp};

/// Capacity of the carry buffer that is kept when it is empty, in bytes.
const CARRY_KEPT_BYTES: usize = 16 * 1024;

/// Maximum number of header lines that are read; no camera sends as many.
const HEADERS_MAX: usize = 128;

/// Bytes that are added to a text message at a time, because its length is unknown.
const TEXT_STEP_BYTES: usize = 1_024;

/// Bytes of the shortest RTCP packet.
const RTCP_BYTES_MIN: usize = 8;

/// The contents of an interleaved channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// It was not set up.
    #[default]
    Unassigned,
    /// RTP, with the SSRC of its newest packet once there was one.
    Rtp(Option<u32>),
    /// RTCP.
    Rtcp,
}

/// A camera's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code; 0 if it was not a number.
    pub status: u16,
    /// Names and values in order, with folded lines joined by one space.
    pub headers: Vec<(String, String)>,
    /// The body; empty without `Content-Length`.
    pub body: Bytes,
}

impl Answer {
    /// The first value of a header; names are compared case-insensitively.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All values of a header.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.headers.iter().filter(move |(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// One piece of what a camera sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// An answer.
    Answer(Answer),
    /// A request from the camera.
    Request(Request),
    /// An interleaved packet.
    Frame {
        /// Its channel.
        channel: u8,
        /// The packet.
        packet: &'a [u8],
    },
    /// A frame that another one cut short, and the number of lost bytes.
    Torn(usize),
    /// The number of bytes that belong to nothing.
    Rubbish(usize),
}

/// The bytes cannot come from a camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotRtsp {
    /// The connection starts with something else; its first bytes, printable.
    Foreign(String),
    /// The head or body of a message exceeds its limit.
    TooLarge,
}

/// Splits what a camera sends into pieces. Copies only pieces that are split across two reads.
#[derive(Clone, Debug)]
pub struct Scanner {
    /// The start of an incomplete piece, from `at` on.
    carry: Vec<u8>,
    at: usize,
    /// Bytes copied into it since [`Scanner::take_carried`].
    carried: u64,
    channels: Box<[Channel; 256]>,
    /// Whether the connection is known to be RTSP.
    known: bool,
    /// How far the message at the start of the pending bytes has been scanned.
    text: Text,
}

/// How far an incomplete message has been scanned.
#[derive(Clone, Copy, Debug, Default)]
struct Text {
    /// Bytes in which the head does not end, and the start of the line in which they end.
    scanned: usize,
    line: usize,
    /// Size of the head, and of the whole message, once known.
    whole: Option<(usize, usize)>,
}

impl Default for Scanner {
    fn default() -> Self {
        Scanner {
            carry: Vec::new(),
            at: 0,
            carried: 0,
            channels: Box::new([Channel::Unassigned; 256]),
            known: false,
            text: Text::default(),
        }
    }
}

/// A scanner in the middle of a connection, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScannerState {
    /// The start of a piece.
    #[serde(with = "crate::wire::saved_bytes")]
    carry: Vec<u8>,
    /// The channels that were set up.
    channels: Vec<(u8, Channel)>,
}

/// What is at the start of a window.
enum Found {
    /// More bytes are needed; how many in all, if known.
    More(Option<usize>),
    Frame(usize),
    Text {
        head: usize,
        end: usize,
    },
    /// Line ends before a message, which are ignored (RFC 2326 section 4.1).
    Blank(usize),
    Torn(usize),
    Rubbish(usize),
}

impl Scanner {
    /// Sets the contents of a channel.
    pub fn assign(&mut self, channel: u8, what: Channel) {
        self.channels[usize::from(channel)] = what;
    }

    /// What a channel carries.
    pub fn channel(&self, channel: u8) -> Channel {
        self.channels[usize::from(channel)]
    }

    /// The scanner as plain data, for a connection that is known to be RTSP.
    pub fn save(&self) -> ScannerState {
        let channels = (0u8..=255).map(|channel| (channel, self.channel(channel)));
        let channels = channels.filter(|(_, what)| *what != Channel::Unassigned).collect();
        ScannerState { carry: self.carry[self.at..].to_vec(), channels }
    }

    /// Whether a piece is incomplete.
    pub fn is_in_piece(&self) -> bool {
        self.at < self.carry.len()
    }

    /// Bytes copied since the last call because their piece was incomplete.
    pub fn take_carried(&mut self) -> u64 {
        std::mem::take(&mut self.carried)
    }

    /// Restores a saved scanner.
    pub fn restore(state: ScannerState) -> Scanner {
        let mut scanner = Scanner { carry: state.carry, known: true, ..Scanner::default() };
        for (channel, what) in state.channels {
            scanner.assign(channel, what);
        }
        scanner
    }

    /// Bytes of an incomplete piece.
    pub fn pending(&self) -> usize {
        self.carry.len() - self.at
    }

    /// The next piece of `input`, which continues the previous input. Removes the bytes that it used from `input`; `None` when all are
    /// used.
    ///
    /// # Errors
    /// [`NotRtsp`]; there are no further pieces then.
    pub fn next<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Result<Option<Piece<'s>>, NotRtsp> {
        loop {
            self.release();
            let carried = !self.carry.is_empty();
            let window: &[u8] = if carried { &self.carry[self.at..] } else { input };
            if window.is_empty() {
                return Ok(None);
            }
            let found = look(&self.channels, self.known, &mut self.text, window)?;
            let used = match found {
                Found::More(needed) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let has = if carried { window.len() } else { 0 };
                    self.take(needed.map_or(TEXT_STEP_BYTES, |needed| needed.saturating_sub(has)), input);
                    continue;
                }
                Found::Frame(end) | Found::Text { end, .. } => end,
                Found::Blank(bytes) | Found::Torn(bytes) | Found::Rubbish(bytes) => bytes,
            };
            self.text = Text::default();
            match found {
                Found::Text { .. } => self.known = true,
                Found::Frame(_) => {
                    let (channel, ssrc) = (window[1], ssrc_of(&window[INTERLEAVED_HEADER_BYTES..used]));
                    if let (Channel::Rtp(known), Some(ssrc)) = (&mut self.channels[usize::from(channel)], ssrc) {
                        *known = Some(ssrc);
                    }
                }
                _ => {}
            }
            let blank = matches!(found, Found::Blank(_));
            let from = self.at;
            if carried {
                self.at += used;
                if !blank {
                    return Ok(Some(piece(&found, &self.carry[from..from + used])));
                }
            } else {
                let (bytes, rest) = input.split_at(used);
                *input = rest;
                if !blank {
                    return Ok(Some(piece(&found, bytes)));
                }
            }
        }
    }

    /// Frees the carry buffer when it is empty.
    fn release(&mut self) {
        if self.at == self.carry.len() {
            self.carry.clear();
            self.at = 0;
            if self.carry.capacity() > CARRY_KEPT_BYTES {
                self.carry = Vec::new();
            }
        }
    }

    /// Moves up to `bytes` bytes, at least one, from the input to the carry buffer.
    fn take(&mut self, bytes: usize, input: &mut &[u8]) {
        let (more, rest) = input.split_at(bytes.clamp(1, input.len()));
        self.carry.drain(..std::mem::take(&mut self.at));
        self.carry.extend_from_slice(more);
        self.carried += more.len() as u64;
        *input = rest;
    }
}

/// What is known about the connection's channels.
struct View<'a> {
    channels: &'a [Channel; 256],
    known: bool,
}

/// What is at the start of the window.
fn look(channels: &[Channel; 256], known: bool, text: &mut Text, window: &[u8]) -> Result<Found, NotRtsp> {
    View { channels, known }.look(text, window)
}

impl View<'_> {
    fn look(&self, text: &mut Text, window: &[u8]) -> Result<Found, NotRtsp> {
        if text.scanned > 0 {
            return text.go_on(window);
        }
        match window[0] {
            b'\r' | b'\n' => {
                Ok(Found::Blank(window.iter().take_while(|&&byte| byte == b'\r' || byte == b'\n').count()))
            }
            interleaved::MAGIC if self.known => Ok(self.frame(window)),
            _ => match begins_text(window) {
                Some(true) => text.go_on(window),
                None => Ok(Found::More(None)),
                Some(false) if self.known => Ok(self.rubbish(window)),
                Some(false) => Err(NotRtsp::Foreign(excerpt(window))),
            },
        }
    }

    /// Handles a window that starts with `$`.
    fn frame(&self, window: &[u8]) -> Found {
        let Some((channel, len)) = interleaved::parse(window) else {
            return Found::More(Some(INTERLEAVED_HEADER_BYTES));
        };
        let end = INTERLEAVED_HEADER_BYTES + len;
        // A `$` within rubbish does not start a frame. If a certain frame follows, it was rubbish.
        let doubtful = match self.channels[usize::from(channel)] {
            Channel::Unassigned => !self.unassigned_goes_on(window) || window.len() < end,
            _ => window.get(INTERLEAVED_HEADER_BYTES).is_some_and(|first| first >> 6 != 2),
        };
        if doubtful && self.find(window, 1..end, true).is_some() {
            return self.rubbish(window);
        }
        if window.len() < end {
            return Found::More(Some(end));
        }
        if self.goes_on(&window[end..]) {
            return Found::Frame(end);
        }
        // What follows is not the start of anything: this frame was cut short by another one, or is followed by rubbish.
        match self.find(window, INTERLEAVED_HEADER_BYTES..end, true) {
            Some(at) => Found::Torn(at),
            None => Found::Frame(end),
        }
    }

    /// Whether these bytes can follow a complete piece. If there are too few to tell, yes.
    fn goes_on(&self, rest: &[u8]) -> bool {
        match rest {
            [] | [b'\r' | b'\n', ..] => true,
            [interleaved::MAGIC, channel, ..] => {
                self.channels.iter().all(|channel| *channel == Channel::Unassigned)
                    || self.channels[usize::from(*channel)] != Channel::Unassigned
                    || self.unassigned_goes_on(rest)
            }
            [interleaved::MAGIC] => true,
            _ => begins_text(rest) != Some(false),
        }
    }

    /// Whether a frame on a channel that was not set up (cameras send such frames) ends where something else starts.
    fn unassigned_goes_on(&self, rest: &[u8]) -> bool {
        let Some((_, len)) = interleaved::parse(rest) else { return true };
        match rest.get(INTERLEAVED_HEADER_BYTES + len) {
            None => true,
            Some(next) => matches!(next, &interleaved::MAGIC | b'\r' | b'\n') || next.is_ascii_uppercase(),
        }
    }

    /// Where in this part of the window a frame or text message certainly starts. With `inner` it must be completely visible. Looks at
    /// each byte once, and at a few bytes after it.
    fn find(&self, window: &[u8], part: Range<usize>, inner: bool) -> Option<usize> {
        (part.start..part.end.min(window.len())).find(|&at| match window[at] {
            interleaved::MAGIC => self.is_frame(&window[at..], inner),
            byte if byte.is_ascii_uppercase() => {
                let inside = window[at - 1].is_ascii_alphanumeric() || b" _-/".contains(&window[at - 1]);
                !inside && is_usual_text(&window[at..])
            }
            _ => false,
        })
    }

    /// Whether these bytes start a frame of a channel that was set up, with RTP of a known SSRC or with RTCP.
    fn is_frame(&self, bytes: &[u8], inner: bool) -> bool {
        let Some((channel, len)) = interleaved::parse(bytes) else { return !inner };
        let (least, ssrc) = match self.channels[usize::from(channel)] {
            Channel::Unassigned => return false,
            Channel::Rtp(ssrc) => (rtp::HEADER_BYTES, ssrc),
            Channel::Rtcp => (RTCP_BYTES_MIN, None),
        };
        if len < least {
            return false;
        }
        let packet = &bytes[INTERLEAVED_HEADER_BYTES..];
        if packet.len() < least {
            return !inner && packet.first().is_none_or(|first| first >> 6 == 2);
        }
        let rtcp = self.channels[usize::from(channel)] == Channel::Rtcp;
        packet[0] >> 6 == 2
            && (!rtcp || (192..=223).contains(&packet[1]) && rtcp_bytes(packet) <= len)
            && match ssrc {
                Some(ssrc) => ssrc_of(packet) == Some(ssrc),
                // If the SSRC is not known yet, what follows must be present and valid.
                None => bytes
                    .get(INTERLEAVED_HEADER_BYTES + len)
                    .is_none_or(|next| *next == interleaved::MAGIC || matches!(next, b'\r' | b'\n' | b'R')),
            }
    }

    /// Bytes that start nothing, up to the next frame or message.
    fn rubbish(&self, window: &[u8]) -> Found {
        match self.find(window, 1..window.len(), false) {
            Some(at) => Found::Rubbish(at),
            // The last bytes may be the start of an incomplete message.
            None if window.len() <= 16 => Found::More(Some(17)),
            None => Found::Rubbish(window.len() - 16),
        }
    }
}

impl Text {
    /// Continues scanning a response or request.
    fn go_on(&mut self, window: &[u8]) -> Result<Found, NotRtsp> {
        let (head, end) = match self.whole {
            Some(whole) => whole,
            None => {
                let Some(head) = self.head_end(window) else {
                    let too_large = window.len() > CAMERA_HEAD_BYTES_MAX;
                    return if too_large { Err(NotRtsp::TooLarge) } else { Ok(Found::More(None)) };
                };
                let length = content_length(&window[..head]);
                if head > CAMERA_HEAD_BYTES_MAX || length > CAMERA_BODY_BYTES_MAX {
                    return Err(NotRtsp::TooLarge);
                }
                *self.whole.insert((head, head + length))
            }
        };
        Ok(if window.len() < end { Found::More(Some(end)) } else { Found::Text { head, end } })
    }

    /// Size of the head including the empty line after it. A line of spaces is a folded one (RFC 2326 section 4.2 by way of RFC 822),
    /// and LF alone also ends a line.
    fn head_end(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(&byte) = bytes.get(self.scanned) {
            let at = self.scanned;
            self.scanned += 1;
            if byte == b'\n' {
                if self.line > 0 && (at == self.line || bytes[self.line..at] == *b"\r") {
                    return Some(at + 1);
                }
                self.line = at + 1;
            }
        }
        None
    }
}

/// The value of `Content-Length`; if it is not a number there is no body, and a number out of range counts as too large.
fn content_length(head: &[u8]) -> usize {
    let value = lines(head).find_map(|(_, line)| {
        let (name, value) = line.split_at_checked(line.iter().position(|byte| *byte == b':')?)?;
        name.trim_ascii().eq_ignore_ascii_case(b"Content-Length").then(|| value[1..].trim_ascii())
    });
    let value = value.unwrap_or_default();
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&value[..digits]).unwrap_or_default();
    if digits == 0 { 0 } else { number.parse().unwrap_or(usize::MAX) }
}

/// Whether these bytes start a response, or a request as most cameras write it.
fn is_usual_text(bytes: &[u8]) -> bool {
    bytes.starts_with(b"RTSP/1.")
        || METHODS.iter().any(|method| {
            bytes.strip_prefix(method.as_bytes()).is_some_and(|rest| rest.starts_with(b" "))
                && begins_text(bytes) == Some(true)
        })
}

fn piece<'a>(found: &Found, bytes: &'a [u8]) -> Piece<'a> {
    match *found {
        Found::Frame(_) => Piece::Frame { channel: bytes[1], packet: &bytes[INTERLEAVED_HEADER_BYTES..] },
        Found::Text { head, .. } => text_piece(&bytes[..head], &bytes[head..]),
        Found::Torn(len) => Piece::Torn(len),
        Found::Rubbish(_) | Found::Blank(_) | Found::More(_) => Piece::Rubbish(bytes.len()),
    }
}

fn text_piece(head: &[u8], body: &[u8]) -> Piece<'static> {
    let body = Bytes::copy_from_slice(body);
    let first = String::from_utf8_lossy(lines(head).next().map_or(&[][..], |(_, line)| line)).into_owned();
    let headers = headers(head);
    let mut words = first.split_ascii_whitespace();
    if first.starts_with("RTSP/") {
        let status = words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        return Piece::Answer(Answer { status, headers, body });
    }
    let mut word = || words.next().unwrap_or_default().to_owned();
    let (method, url, version) = (word(), word(), word());
    Piece::Request(Request { method, url, version_1_0: version == "RTSP/1.0", headers, body, raw: Bytes::new() })
}

/// The SSRC of an RTP packet.
fn ssrc_of(packet: &[u8]) -> Option<u32> {
    let ssrc = packet.get(8..rtp::HEADER_BYTES)?;
    Some(u32::from_be_bytes([ssrc[0], ssrc[1], ssrc[2], ssrc[3]]))
}

/// The size that an RTCP packet claims.
fn rtcp_bytes(packet: &[u8]) -> usize {
    packet.get(2..4).map_or(0, |words| (usize::from(u16::from_be_bytes([words[0], words[1]])) + 1) * 4)
}

/// Maximum length of a request's first line, and of its method, in bytes.
const REQUEST_LINE_BYTES_MAX: usize = 2_048;
const METHOD_BYTES_MAX: usize = 32;

/// Whether these bytes start a response or request; `None` if there are too few to tell. A request is recognized by its whole first
/// line, because cameras have methods of their own.
fn begins_text(bytes: &[u8]) -> Option<bool> {
    let answer = b"RTSP/";
    let seen = answer.len().min(bytes.len());
    if bytes[..seen] == answer[..seen] {
        return (seen == answer.len()).then_some(true);
    }
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"_-".contains(byte);
    let method = bytes.iter().take(METHOD_BYTES_MAX + 1).take_while(|byte| is_method(byte)).count();
    if method == 0 || method > METHOD_BYTES_MAX || !bytes[0].is_ascii_uppercase() {
        return Some(false);
    }
    match bytes.get(method) {
        None => return None,
        Some(b' ') => {}
        Some(_) => return Some(false),
    }
    let line = &bytes[..bytes.len().min(REQUEST_LINE_BYTES_MAX)];
    let end = line.iter().position(|byte| *byte == b'\n');
    let line = line[..end.unwrap_or(line.len())].trim_ascii_end();
    if line.iter().any(u8::is_ascii_control) {
        return Some(false);
    }
    match end {
        Some(_) => Some(line.rsplit(|byte| *byte == b' ').next().is_some_and(|version| version.starts_with(answer))),
        None => (bytes.len() >= REQUEST_LINE_BYTES_MAX).then_some(false),
    }
}

/// The headers of a head; lines without a colon are ignored.
fn headers(head: &[u8]) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for (_, line) in lines(head).skip(1) {
        // Some of it is sent back to the camera, so a character that could end a line is not part of a value.
        let text = String::from_utf8_lossy(line).replace(|char: char| char.is_control() && char != '\t', " ");
        if text.starts_with([' ', '\t']) {
            if let (Some((_, value)), more) = (headers.last_mut(), text.trim())
                && !more.is_empty()
            {
                value.push(' ');
                value.push_str(more);
            }
        } else if let (Some((name, value)), true) = (text.split_once(':'), headers.len() < HEADERS_MAX) {
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    headers
}

/// The first bytes of something unknown, in printable form.
fn excerpt(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    line[..line.len().min(40)].escape_ascii().to_string()
}

/// Body of a fuzz target: the result must not depend on how the bytes are split, except after rubbish.
#[cfg(feature = "testing")]
pub fn fuzz(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else { return };
    let mut scanner = Scanner::default();
    scanner.assign(0, Channel::Rtp(None));
    scanner.assign(1, Channel::Rtcp);
    let mut used = 0;
    for mut input in data.chunks(usize::from(step).max(1)) {
        loop {
            let before = scanner.pending() + input.len();
            let next = scanner.next(&mut input);
            let more = match next {
                Ok(Some(piece)) => {
                    let bytes = match piece {
                        Piece::Frame { packet, .. } => INTERLEAVED_HEADER_BYTES + packet.len(),
                        Piece::Torn(bytes) | Piece::Rubbish(bytes) => bytes,
                        Piece::Answer(answer) => answer.body.len() + 1,
                        Piece::Request(request) => request.body.len() + 1,
                    };
                    assert!(bytes > 0);
                    true
                }
                Ok(None) => false,
                Err(_) => return,
            };
            let after = scanner.pending() + input.len();
            assert!(after < before || !more);
            used += before - after;
            if !more {
                break;
            }
        }
        assert!(input.is_empty());
    }
    assert_eq!(used + scanner.pending(), data.len());
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
