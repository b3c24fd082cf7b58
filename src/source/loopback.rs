//! What lies between the RTSP library's connection on loopback and the camera.
//!
//! The library speaks plain RTSP alone, drops every datagram that comes late, and believes whatever SSRC an answer to SETUP
//! announces. So TLS ends here ([`tunnel`](super::tunnel)); where media are to come as datagrams, SETUP asks the camera for them
//! although the library asks for its own connection, in which they then go on in their order; a wrong SSRC is left out; and answers
//! that it does not understand are put in order ([`mend`](super::mend)).

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::UdpSocket;
use tokio::time::sleep_until;

use super::mend;
use super::reorder::Reorder;
use super::supervisor::DroppedDatagrams;
use super::timeline::{Order, Place};
use crate::egress::datagram_pair;
use crate::limits::{CAMERA_ANSWER_BYTES_MAX, INTERLEAVED_HEADER_BYTES};
use crate::wire::rtp::Header;
use crate::wire::{rtcp, transport};

/// Bytes that one read takes at most.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Datagrams that are taken from a socket before others get their turn.
const ABSORB_MAX: usize = 64;

/// A receiver report about nobody (RFC 3550 section 6.4.2), to open the camera's path through a firewall with.
const EMPTY_REPORT: [u8; 8] = [0x80, 201, 0, 1, 0, 0, 0, 0];

/// How a camera's session differs from what the library asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// Media come as datagrams.
    pub(super) udp: bool,
    /// What the camera says of SSRCs is wrong, and not passed on.
    pub(super) without_ssrc: bool,
    /// The camera's answers are put in order.
    pub(super) mended: bool,
}

/// The two ends' addresses on the camera's side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Ours.
    pub(super) local: IpAddr,
    /// The camera's.
    pub(super) camera: IpAddr,
}

/// Carries a session between the library, `near`, and the camera until either ends it. Datagrams that are not passed on are
/// counted in `dropped`.
///
/// # Errors
/// Those of the connections and of making sockets; the library sees each as the end of its connection.
pub(super) async fn carry<N, C>(
    mut near: N,
    mut camera: C,
    ends: Ends,
    way: Way,
    dropped: Arc<DroppedDatagrams>,
) -> io::Result<()>
where
    N: AsyncRead + AsyncWrite + Unpin,
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut bridge = Bridge::new(ends, way, dropped);
    let (mut asked, mut answered) = (BytesMut::new(), BytesMut::new());
    let (mut to_near, mut to_camera) = (Vec::new(), Vec::new());
    loop {
        asked.reserve(READ_BYTES_MAX / 16);
        answered.reserve(READ_BYTES_MAX);
        let due = bridge.deadline();
        tokio::select! {
            read = near.read_buf(&mut asked) => {
                if read? == 0 {
                    return Ok(());
                }
                bridge.asked(&mut asked, &mut to_camera)?;
            }
            read = camera.read_buf(&mut answered) => {
                if read? == 0 {
                    return Ok(());
                }
                if bridge.is_plain() {
                    near.write_all_buf(&mut answered).await?;
                } else {
                    bridge.answered(&mut answered, &mut to_near);
                }
            }
            () = poll_fn(|cx| bridge.poll_media(cx, &mut to_near)) => {}
            () = async { match due { Some(due) => sleep_until(due.into()).await, None => pending().await } } => {
                bridge.tick(Instant::now(), &mut to_near);
            }
        }
        camera.write_all(&to_camera).await?;
        near.write_all(&to_near).await?;
        to_camera.clear();
        to_near.clear();
        bridge.open_paths().await;
    }
}

/// The translation, with the sockets that datagrams come by.
pub(super) struct Bridge {
    ends: Ends,
    way: Way,
    /// A SETUP is on its way to the camera.
    pending: Option<Pending>,
    /// The numbers of the requests that the camera has not answered, where its answers are put in order; and whether each is a
    /// SETUP.
    unanswered: VecDeque<(String, bool)>,
    /// PLAY has been asked for: no answer to a SETUP comes any more.
    begun: bool,
    tracks: Vec<Datagrams>,
    buffer: Vec<u8>,
    dropped: Arc<DroppedDatagrams>,
}

struct Pending {
    channels: (u8, u8),
    sockets: Option<(UdpSocket, UdpSocket)>,
}

/// A track that comes as datagrams.
struct Datagrams {
    channels: (u8, u8),
    rtp: UdpSocket,
    rtcp: UdpSocket,
    /// Who says that it sends them: the camera itself, as a rule.
    source: IpAddr,
    /// Where they come from, if the camera has told and the path there is not open yet.
    unopened: Option<(u16, u16)>,
    sequence: Sequence,
}

/// The order of a track's packets.
#[derive(Default)]
struct Sequence {
    reorder: Reorder,
    order: Order,
}

impl Bridge {
    pub(super) fn new(ends: Ends, way: Way, dropped: Arc<DroppedDatagrams>) -> Self {
        Bridge {
            ends,
            way,
            pending: None,
            unanswered: VecDeque::new(),
            begun: false,
            tracks: Vec::new(),
            buffer: Vec::new(),
            dropped,
        }
    }

    /// Whether all that the camera sends passes as it is.
    fn is_plain(&self) -> bool {
        !self.way.udp && !self.way.mended && (self.begun || !self.way.without_ssrc)
    }

    /// Requests of the library.
    pub(super) fn asked(&mut self, asked: &mut BytesMut, out: &mut Vec<u8>) -> io::Result<()> {
        while let Some(message) = message(asked, false, false) {
            let bytes = asked.split_to(message.end);
            let head = &bytes[..message.head];
            self.begun |= head.starts_with(b"PLAY ");
            if let Some(cseq) = header(head, "cseq").filter(|_| self.way.mended) {
                let cseq = String::from_utf8_lossy(head[cseq].trim_ascii()).into_owned();
                self.unanswered.push_back((cseq, head.starts_with(b"SETUP ")));
            }
            let transport = header(head, "transport").filter(|_| head.starts_with(b"SETUP "));
            let Some(value) = transport.filter(|_| self.way != Way::default()) else {
                out.extend_from_slice(&bytes);
                continue;
            };
            let wanted = transport::parse(&String::from_utf8_lossy(&head[value.clone()]));
            let channels = wanted.first().and_then(|spec| spec.interleaved).unwrap_or((0, 1));
            let mut pending = Pending { channels, sockets: None };
            if self.way.udp {
                let (rtp, rtcp) = datagram_pair(self.ends.local)?;
                let port = rtp.local_addr()?.port();
                let told = format!("RTP/AVP/UDP;unicast;client_port={port}-{}", port + 1);
                replace(&bytes, value, &told, out);
                pending.sockets = Some((UdpSocket::from_std(rtp)?, UdpSocket::from_std(rtcp)?));
            } else {
                out.extend_from_slice(&bytes);
            }
            self.pending = Some(pending);
        }
        Ok(())
    }

    /// Answers of the camera, and whatever else it sends.
    pub(super) fn answered(&mut self, answered: &mut BytesMut, out: &mut Vec<u8>) {
        while let Some(mut message) = message(answered, true, self.way.mended) {
            let mut bytes = answered.split_to(message.end);
            let mut sets_up = message.head > 0;
            if self.way.mended && message.head > 0 {
                let Some((asked, mended)) = self.mend(&bytes, message.head) else { continue };
                (sets_up, bytes, message.head) = (asked, mended.0, mended.1);
            }
            let head = &bytes[..message.head];
            let pending = if sets_up { self.pending.take() } else { None };
            let value = header(head, "transport").filter(|_| succeeds(head));
            let (Some(pending), Some(value)) = (pending, value) else {
                out.extend_from_slice(&bytes);
                continue;
            };
            let told = String::from_utf8_lossy(&head[value.clone()]).into_owned();
            replace(&bytes, value, &self.set_up(pending, &told), out);
        }
    }

    /// Whether an answer is one to SETUP; and the answer put in order, with the bytes of its head. None for one that nobody waits
    /// for, over which the library would end the session.
    fn mend(&mut self, answer: &[u8], head: usize) -> Option<(bool, (BytesMut, usize))> {
        let (head, body) = answer.split_at(head);
        let number = |digits: &str| digits.parse::<u32>().ok();
        let said = header(head, "cseq").and_then(|value| number(std::str::from_utf8(head[value].trim_ascii()).ok()?));
        // They come in the order of the requests, if they do not say which they are to. Some always say 0.
        let is_to = |said| self.unanswered.iter().position(|(cseq, _)| number(cseq) == Some(said));
        let at = said.filter(|said| *said != 0).map_or(Some(0), is_to)?;
        let (cseq, sets_up) = self.unanswered.remove(at)?;
        let (mended, head) = mend::answer(head, body, &cseq, sets_up);
        Some((sets_up, (mended[..].into(), head)))
    }

    /// A track is set up, by the transport that the camera tells; gives the one to tell the library.
    fn set_up(&mut self, pending: Pending, told: &str) -> String {
        let parameters = || told.split(';').map(str::trim);
        let named = |name: &str| {
            let value = move |part: &str| {
                let (key, value) = part.split_once('=')?;
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
            };
            parameters().find_map(value)
        };
        // One that was asked for datagrams may insist on its connection all the same.
        let datagrams = pending.sockets.filter(|_| named("interleaved").is_none());
        let Some((rtp, rtcp)) = datagrams else {
            let kept = parameters().filter(|part| !part.to_ascii_lowercase().starts_with("ssrc"));
            let mut told = kept.collect::<Vec<_>>().join(";");
            // One that names no channels means those that were asked for, unless it names ports.
            let named_none = ["interleaved", "client_port", "server_port"].iter().all(|name| named(name).is_none());
            if self.way.mended && named_none {
                let (rtp, rtcp) = pending.channels;
                told += &format!(";interleaved={rtp}-{rtcp}");
            }
            return told;
        };
        let source = named("source").and_then(|source| source.parse().ok()).unwrap_or(self.ends.camera);
        let ports = named("server_port").and_then(|ports| {
            let (rtp, rtcp) = ports.split_once('-').unwrap_or((&ports, ""));
            let rtp: u16 = rtp.trim().parse().ok().filter(|port| *port != 0)?;
            Some((rtp, rtcp.trim().parse().unwrap_or(rtp.wrapping_add(1))))
        });
        let channels = pending.channels;
        let sequence = Sequence::default();
        self.tracks.push(Datagrams { channels, rtp, rtcp, source, unopened: ports, sequence });
        format!("RTP/AVP/TCP;unicast;interleaved={}-{}", channels.0, channels.1)
    }

    /// Sends something to the camera's ports, so that firewalls on the way let its datagrams in. To the camera itself, whoever it
    /// says will send: nobody is to be sent something because a camera names him.
    async fn open_paths(&mut self) {
        let camera = self.ends.camera;
        for track in &mut self.tracks {
            let Some((rtp, rtcp)) = track.unopened.take() else { continue };
            let opening = Header::write(false, 0, 0, 0, 0);
            // It is worth a try, no more.
            let _ = track.rtp.send_to(&opening, (camera, rtp)).await;
            let _ = track.rtcp.send_to(&EMPTY_REPORT, (camera, rtcp)).await;
        }
    }

    /// Takes datagrams in; pending if there are none.
    fn poll_media(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<()> {
        if self.tracks.is_empty() {
            return Poll::Pending;
        }
        let mut any = false;
        self.buffer.resize(READ_BYTES_MAX, 0);
        for track in &mut self.tracks {
            for is_rtcp in [false, true] {
                let socket = if is_rtcp { &track.rtcp } else { &track.rtp };
                for _ in 0..ABSORB_MAX {
                    let mut read = ReadBuf::new(&mut self.buffer);
                    let Poll::Ready(result) = socket.poll_recv_from(cx, &mut read) else { break };
                    any = true;
                    // Errors are ICMP's about what opened the path; they concern no read.
                    let Ok(from) = result else { continue };
                    let from = from.ip().to_canonical();
                    let is_its = [track.source, self.ends.camera].iter().any(|one| one.to_canonical() == from);
                    if is_its && !is_rtcp {
                        track.sequence.take(track.channels.0, Instant::now(), read.filled(), &self.dropped, out);
                    } else if is_its && rtcp::parse(read.filled()).all(|part| part.is_ok()) {
                        frame(track.channels.1, read.filled(), out);
                    } else {
                        self.dropped.count_stranger();
                    }
                }
            }
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    }

    fn deadline(&self) -> Option<Instant> {
        self.tracks.iter().filter_map(|track| track.sequence.reorder.deadline()).min()
    }

    /// Waits no longer for what should have come by `now`.
    fn tick(&mut self, now: Instant, out: &mut Vec<u8>) {
        for track in &mut self.tracks {
            let Sequence { reorder, order } = &mut track.sequence;
            reorder.tick(now, &mut |_, packet| pass(order, &self.dropped, track.channels.0, &packet, out));
        }
    }
}

impl Sequence {
    /// A datagram that should be an RTP packet.
    fn take(&mut self, channel: u8, now: Instant, packet: &[u8], dropped: &DroppedDatagrams, out: &mut Vec<u8>) {
        // Over a connection that would be the camera's fault; here anybody can have sent it.
        if Header::parse(packet).is_err() {
            return dropped.count_stranger();
        }
        let Sequence { reorder, order } = self;
        reorder.push(now, Bytes::copy_from_slice(packet), &mut |_, packet| pass(order, dropped, channel, &packet, out));
    }
}

/// Passes a packet on unless it is late: the library ends a session over one that comes by a connection. Where numbers begin
/// anew it is to do so.
fn pass(order: &mut Order, dropped: &DroppedDatagrams, channel: u8, packet: &[u8], out: &mut Vec<u8>) {
    let Ok(header) = Header::parse(packet) else { return };
    match order.place(header.sequence, header.ssrc) {
        Place::Late => dropped.count_late(),
        _ => frame(channel, packet, out),
    }
}

/// Appends an interleaved packet (RFC 2326 section 10.12).
fn frame(channel: u8, packet: &[u8], out: &mut Vec<u8>) {
    let Ok(len) = u16::try_from(packet.len()) else { return };
    out.extend([b'$', channel]);
    out.extend(len.to_be_bytes());
    out.extend_from_slice(packet);
}

/// A message at the front of a buffer: how far its head reaches (0 for what is no message of RTSP), and how far all of it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    head: usize,
    end: usize,
}

/// The first message, if it is whole. What is no RTSP goes on as it is: the library has words for it.
///
/// With `mended` the head's lines may end in whatever way.
fn message(buffer: &[u8], answer: bool, mended: bool) -> Option<Message> {
    let raw = |end: usize| Some(Message { head: 0, end });
    let first = *buffer.first()?;
    if first == b'$' {
        let header = buffer.get(..INTERLEAVED_HEADER_BYTES)?;
        let end = INTERLEAVED_HEADER_BYTES + usize::from(u16::from_be_bytes([header[2], header[3]]));
        return (buffer.len() >= end).then_some(Message { head: 0, end });
    }
    if matches!(first, b'\r' | b'\n') {
        return raw(1);
    }
    let begin = b"RTSP/";
    let seen = begin.len().min(buffer.len());
    if answer && buffer[..seen] != begin[..seen] {
        return raw(buffer.len());
    }
    let strict = || buffer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    let Some(head) = (if mended { mend::head_end(buffer) } else { strict() }) else {
        return if buffer.len() > CAMERA_ANSWER_BYTES_MAX { raw(buffer.len()) } else { None };
    };
    let length = header(&buffer[..head], "content-length");
    let length = length.and_then(|value| std::str::from_utf8(&buffer[value]).ok()?.trim().parse().ok());
    let end = head.checked_add(length.unwrap_or(0)).filter(|end| *end <= CAMERA_ANSWER_BYTES_MAX);
    match end {
        Some(end) if buffer.len() < end => None,
        Some(end) => Some(Message { head, end }),
        None => raw(buffer.len()),
    }
}

/// Where the value of a header is, `name` in lower case.
fn header(head: &[u8], name: &str) -> Option<Range<usize>> {
    let mut at = 0;
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let text = line.trim_ascii_end();
        let colon = text.iter().position(|byte| *byte == b':');
        if let Some(colon) = colon
            && text[..colon].trim_ascii().eq_ignore_ascii_case(name.as_bytes())
        {
            return Some(at + colon + 1..at + text.len());
        }
        at += line.len();
    }
    None
}

/// Whether an answer's status is a good one.
fn succeeds(head: &[u8]) -> bool {
    head.split(|byte| *byte == b' ').nth(1).is_some_and(|status| status.starts_with(b"2"))
}

/// Appends a message with another value for one of its headers.
fn replace(message: &[u8], value: Range<usize>, with: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&message[..value.start]);
    out.push(b' ');
    out.extend_from_slice(with.as_bytes());
    out.extend_from_slice(&message[value.end..]);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const ENDS: Ends = Ends { local: IpAddr::V4(Ipv4Addr::LOCALHOST), camera: IpAddr::V4(Ipv4Addr::LOCALHOST) };
    const UDP: Way = Way { udp: true, without_ssrc: true, mended: false };

    fn in_runtime<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), test).await }).expect("in time")
    }

    fn asked(bridge: &mut Bridge, text: &str) -> String {
        let mut out = Vec::new();
        bridge.asked(&mut text.as_bytes().into(), &mut out).expect("sockets");
        String::from_utf8(out).expect("text")
    }

    fn answered(bridge: &mut Bridge, text: &str) -> String {
        let mut out = Vec::new();
        bridge.answered(&mut text.as_bytes().into(), &mut out);
        String::from_utf8(out).expect("text")
    }

    const SETUP: &str =
        "SETUP rtsp://c/t RTSP/1.0\r\nCSeq: 3\r\nTransport: RTP/AVP/TCP;unicast;interleaved=2-3\r\n\r\n";

    #[test]
    fn setup_asks_for_datagrams_and_is_answered_with_the_channels_that_were_asked_for() {
        in_runtime(async {
            let mut bridge = Bridge::new(ENDS, UDP, Arc::default());
            let setup = asked(&mut bridge, SETUP);
            assert!(
                setup.contains("Transport: RTP/AVP/UDP;unicast;client_port=") && setup.ends_with("\r\n\r\n"),
                "{setup}"
            );
            // One without credentials first, as the library does it.
            let refused = "RTSP/1.0 401 Unauthorized\r\nCSeq: 3\r\n\r\n";
            assert_eq!(answered(&mut bridge, refused), refused);
            asked(&mut bridge, SETUP);
            let answer =
                "RTSP/1.0 200 OK\r\ntransport:RTP/AVP;unicast;client_port=1-2;server_port=6000-6001;ssrc=1\r\n\r\n";
            let told = answered(&mut bridge, answer);
            assert_eq!(told, "RTSP/1.0 200 OK\r\ntransport: RTP/AVP/TCP;unicast;interleaved=2-3\r\n\r\n");
            assert_eq!((bridge.tracks.len(), bridge.tracks[0].unopened), (1, Some((6000, 6001))));
        });
    }

    #[test]
    fn a_camera_that_insists_on_its_connection_is_let_have_it_and_the_ssrc_is_left_out() {
        in_runtime(async {
            for way in [UDP, Way { udp: false, ..UDP }] {
                let mut bridge = Bridge::new(ENDS, way, Arc::default());
                asked(&mut bridge, SETUP);
                let answer = "RTSP/1.0 200 OK\r\nTransport: RTP/AVP/TCP;unicast;interleaved=4-5; ssrc=0BAD\r\n\r\n";
                let told = answered(&mut bridge, answer);
                assert_eq!(told, "RTSP/1.0 200 OK\r\nTransport: RTP/AVP/TCP;unicast;interleaved=4-5\r\n\r\n");
                assert!(bridge.tracks.is_empty());
            }
        });
    }

    #[test]
    fn nobody_but_the_camera_is_sent_something() {
        in_runtime(async {
            let ends = Ends { local: IpAddr::V4(Ipv4Addr::UNSPECIFIED), camera: IpAddr::V4(Ipv4Addr::LOCALHOST) };
            let (camera, named) = ("127.0.0.1", "127.0.0.2");
            // The camera's port, and somebody else's of the same number.
            let (camera, other) = loop {
                let camera = UdpSocket::bind((camera, 0)).await.expect("a port");
                let port = camera.local_addr().expect("bound").port();
                if let Ok(other) = UdpSocket::bind((named, port)).await {
                    break (camera, other);
                }
            };
            let port = camera.local_addr().expect("bound").port();
            let mut bridge = Bridge::new(ends, UDP, Arc::default());
            asked(&mut bridge, SETUP);
            let answer = format!(
                "RTSP/1.0 200 OK\r\nTransport: RTP/AVP;unicast;source={named};server_port={port}-{port}\r\n\r\n"
            );
            answered(&mut bridge, &answer);
            bridge.open_paths().await;
            for _ in 0..2 {
                camera.recv_from(&mut [0; 64]).await.expect("something");
            }
            // On loopback both would have come by now.
            assert!(other.try_recv_from(&mut [0; 64]).is_err());
        });
    }

    #[test]
    fn what_comes_late_or_from_elsewhere_is_counted() {
        in_runtime(async {
            let mut bridge = Bridge::new(ENDS, UDP, Arc::default());
            let port = {
                let setup = asked(&mut bridge, SETUP);
                let port = setup.split("client_port=").nth(1).and_then(|rest| rest.split('-').next()).expect("a port");
                port.parse::<u16>().expect("a number")
            };
            answered(&mut bridge, "RTSP/1.0 200 OK\r\nTransport: RTP/AVP;unicast;server_port=6000-6001\r\n\r\n");
            let camera = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
            let stranger = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.expect("a port");
            let to = (Ipv4Addr::LOCALHOST, port);
            let packet = |sequence: u16| [&Header::write(true, 96, sequence, 0, 7)[..], b"x"].concat();
            for sequence in [10, 11, 10] {
                camera.send_to(&packet(sequence), to).await.expect("sent");
            }
            stranger.send_to(&packet(12), to).await.expect("sent");
            camera.send_to(b"no packet", to).await.expect("sent");
            let mut out = Vec::new();
            while bridge.dropped.late() < 1 || bridge.dropped.strangers() < 2 {
                poll_fn(|cx| bridge.poll_media(cx, &mut out)).await;
            }
            assert_eq!((bridge.dropped.late(), bridge.dropped.strangers()), (1, 2));
            assert_eq!(out.len(), 2 * (4 + packet(10).len()), "two are passed on");
        });
    }

    #[test]
    fn answers_are_put_in_order_and_those_to_nothing_left_out() {
        in_runtime(async {
            let way = Way { mended: true, ..Way::default() };
            let mut bridge = Bridge::new(ENDS, way, Arc::default());
            asked(&mut bridge, "OPTIONS rtsp://c/t RTSP/1.0\r\nCSeq: 2\r\n\r\n");
            asked(&mut bridge, SETUP);
            // The one to OPTIONS says so, the one to SETUP does not, and the third is to nothing.
            let told = answered(
                &mut bridge,
                "RTSP/1.0 200 OK\nCSeq: 2\n\nRTSP/1.0 200\r\nRange:\r\nSession: 5\r\n\r\n$\x00\x00\x01x\
                RTSP/1.0 200 OK\r\nCSeq: 77\r\n\r\nRTSP/1.0 200 OK\r\n\r\n",
            );
            let options = "RTSP/1.0 200 -\r\nCSeq: 2\r\n\r\n";
            let setup =
                "RTSP/1.0 200 -\r\nCSeq: 3\r\nSession: 5\r\nTransport: RTP/AVP/TCP;unicast;interleaved=2-3\r\n\r\n";
            assert_eq!(told, format!("{options}{setup}$\x00\x00\x01x"));
            // Whoever names ports means datagrams, and the library has its own words for that.
            asked(&mut bridge, SETUP);
            let told = answered(&mut bridge, "RTSP/1.0 200 OK\r\nTransport: RTP/AVP;unicast;client_port=1-2\r\n\r\n");
            assert!(!told.contains("interleaved"), "{told}");
        });
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_camera_sends_goes_on_byte_for_byte_in_whatever_pieces_it_comes(
            cuts in proptest::collection::vec(1usize..40, 1..60),
            garbage in proptest::collection::vec(0u8.., 0..40),
        ) {
            let mut all = b"\r\nRTSP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello$\x00\x00\x03abcRTSP/1.0 404 No\r\n\r\n".to_vec();
            all.extend(&garbage);
            let mut bridge = Bridge::new(ENDS, Way { udp: false, ..UDP }, Arc::default());
            let (mut buffer, mut out) = (BytesMut::new(), Vec::new());
            let mut rest = &all[..];
            for cut in cuts.iter().cycle() {
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                buffer.extend_from_slice(piece);
                bridge.answered(&mut buffer, &mut out);
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
            out.extend_from_slice(&buffer);
            proptest::prop_assert_eq!(out, all);
        }
    }

    #[test]
    fn a_camera_that_hangs_keeps_nothing_open_once_the_library_has_gone() {
        in_runtime(async {
            let (library, near) = tokio::io::duplex(1_024);
            // Its other end neither reads nor closes.
            let (_hangs, camera) = tokio::io::duplex(1_024);
            drop(library);
            carry(near, camera, ENDS, Way::default(), Arc::default()).await.expect("the end");
        });
    }
}
