//! What clients are sent while their source is away, and when.

use std::net::SocketAddr;

use super::super::paths::tests::core;
use super::super::{Core, Start, StreamSetup};
use super::*;
use crate::egress::sim::{Reading, SimEgress};
use crate::egress::{Conn, Datagram, Token};
use crate::media::StreamId;
use crate::session::fuzz;
use crate::shard::types::Group;
use crate::wire::interleaved;
use crate::wire::rtcp::Packet;

const STREAM: StreamId = StreamId::first(0);
const VIDEO: TrackId = TrackId(0);
const NTP: u64 = 0xffff_fffe_8000_0000;
const RTP_TIME: u32 = u32::MAX - 1_000;
/// Payload bytes of each media packet.
const PAYLOAD: usize = 50;

struct Rig {
    core: Core<SimEgress>,
    now: Instant,
    number: u64,
    cseq: u32,
}

impl Rig {
    fn new() -> Rig {
        let now = Instant::now();
        let mut core = core(now);
        let name = "a".to_owned();
        let setup = StreamSetup::plain(STREAM, name, Start::Cached);
        core.set_stream(now, &setup);
        core.described(now, STREAM, fuzz::description("H264", now));
        let mut rig = Rig { core, now, number: 0, cseq: 0 };
        rig.state(SourceState::Live);
        rig
    }

    fn state(&mut self, state: SourceState) {
        self.core.source(self.now, STREAM, state);
    }

    fn settle(&mut self) {
        while self.core.drive(self.now) | self.core.reap(self.now) {}
    }

    /// Advances the time, and runs the shard's timers when they are due.
    fn wait(&mut self, for_so_long: Duration) {
        let end = self.now + for_so_long;
        loop {
            self.now = self.core.next_timeout(self.now).clamp(self.now, end);
            self.core.timeout(self.now);
            self.settle();
            if self.now == end {
                return;
            }
            self.now = (self.now + Duration::from_millis(1)).min(end);
        }
    }

    fn chunk(&mut self, chunk: Chunk) {
        let chunk = Chunk { number: self.number, ..chunk };
        self.number += 1;
        self.core.chunk(self.now, STREAM, Arc::new(chunk));
        self.settle();
    }

    /// A complete keyframe of three packets.
    fn media(&mut self) {
        let mut bytes = Vec::new();
        for seq in 0..3 {
            let len = (rtp::HEADER_BYTES + PAYLOAD) as u16;
            bytes.extend_from_slice(&[b'$', 0, 0, len as u8]);
            bytes.extend_from_slice(&[0x80, 96, 0, seq]);
            bytes.resize(bytes.len() + usize::from(len) - 4, 7);
        }
        let report = Chunk::report(0, VIDEO, self.now, 5, &[]);
        let (kind, bytes) = (ChunkKind::Media, bytes.into());
        self.chunk(Chunk { kind, keyframe: true, frame_start: true, frame: self.number, bytes, packets: 3, ..report });
    }

    /// The source's report on the video: 7 packets have been sent.
    fn report(&mut self) {
        let compound = rtcp::sender_report(0xa, NTP, RTP_TIME, 7, 700, "of the source");
        self.chunk(Chunk::report(0, VIDEO, self.now, RTP_TIME, &compound));
    }

    fn connect(&mut self, last: u8) -> Token {
        let at = |last: u8| SocketAddr::from(([192, 0, 2, last], 5_000));
        self.core.connected(self.now, Conn::Scripted, at(last), at(9), &[]).expect("it does not stop")
    }

    fn ask(&mut self, token: Token, line: &str, header: &str) -> String {
        self.cseq += 1;
        let text = format!("{line} RTSP/1.0\r\nCSeq: {}\r\n{header}\r\n\r\n", self.cseq);
        self.core.input(self.now, token, text.as_bytes());
        self.settle();
        let bytes = self.core.egress_mut().take_received(token.slot);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer");
        let answer = String::from_utf8(bytes[..end].to_vec()).unwrap();
        assert!(answer.starts_with("RTSP/1.0 200"), "{answer}");
        answer
    }

    /// Plays these tracks over these transports; returns the connection, and the `Session` header.
    fn play(&mut self, last: u8, transports: &[(u8, &str)]) -> (Token, String) {
        let token = self.connect(last);
        let mut session = "X: y".to_owned();
        for (track, transport) in transports {
            let header = format!("Transport: {transport}\r\n{session}");
            let answer = self.ask(token, &format!("SETUP rtsp://h/a/trackID={track}"), &header);
            let id = answer.split_once("Session: ").and_then(|(_, rest)| rest.split_once(';'));
            session = format!("Session: {}", id.expect("a session").0);
        }
        self.ask(token, "PLAY rtsp://h/a", &session);
        (token, session)
    }

    /// What a TCP client was sent since the last call: each packet with its channel.
    fn received(&mut self, token: Token) -> Vec<(u8, Vec<u8>)> {
        let bytes = self.core.egress_mut().take_received(token.slot);
        let (mut rest, mut packets) = (&bytes[..], Vec::new());
        while let Some((channel, len)) = interleaved::parse(rest) {
            packets.push((channel, rest[4..4 + len].to_vec()));
            rest = &rest[4 + len..];
        }
        assert!(rest.is_empty());
        packets
    }
}

fn parts(compound: &[u8]) -> Vec<Packet> {
    rtcp::parse(compound).collect::<Result<_, _>>().unwrap()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn reports_go_on_from_the_sources_last_one_until_it_is_back() {
    let mut rig = Rig::new();
    let (token, _) = rig.play(1, &[(0, "RTP/AVP/TCP;interleaved=8-9"), (1, "RTP/AVP/TCP;interleaved=2-3")]);
    rig.report();
    rig.wait(SECOND);
    rig.media();
    rig.state(SourceState::Down);
    let head = rig.core.streams[0].log.head();
    rig.core.metrics.snapshot();
    rig.received(token);
    rig.wait(SECOND * 2 - Duration::from_millis(1));
    assert_eq!(rig.received(token), [], "nothing so soon after the media");
    for seconds in [3, 5, 7] {
        rig.wait(Duration::from_millis(250));
        let got = rig.received(token);
        let [(9, video), (3, sound)] = &got[..] else { panic!("{got:?}") };
        let [Packet::SenderReport { ssrc, ntp, rtp_time, packets, octets, .. }, Packet::SourceDescription] =
            parts(video)[..]
        else {
            panic!("{video:?}")
        };
        // The time since the report: the 250 ms are the shard's own interval.
        let elapsed = ntp.wrapping_sub(NTP) as f64 / f64::from(u32::MAX);
        assert!((f64::from(seconds)..=f64::from(seconds) + 0.25).contains(&elapsed), "{elapsed}");
        let ticks = rtp_time.wrapping_sub(RTP_TIME) as f64;
        assert!((ticks - elapsed * 90_000.0).abs() <= 1.0, "{ticks} ticks in {elapsed} s");
        assert_eq!((ssrc, packets, octets), (0xa, 7 + 3, 700 + 3 * PAYLOAD as u32));
        // The CNAME that connects the tracks stays.
        assert!(video.windows(13).any(|window| window == b"of the source"));
        let silent = Packet::ReceiverReport { ssrc: 0xb, reports: Vec::new() };
        assert_eq!(parts(sound), [silent, Packet::SourceDescription]);
        rig.wait(Duration::from_millis(1_750) - Duration::from_millis(1));
        assert_eq!(rig.received(token), []);
        rig.wait(Duration::from_millis(1));
    }
    // None of it is in the log or in the counts of media.
    assert_eq!(rig.core.streams[0].log.head(), head);
    let after = rig.core.metrics.snapshot();
    assert!(after.streams[0].latency.is_none(), "no media was sent since");
    rig.received(token);
    rig.state(SourceState::Live);
    rig.wait(SECOND * 10);
    assert_eq!(rig.received(token), [], "the source reports by itself");
    // The next outage starts over.
    rig.media();
    rig.received(token);
    rig.state(SourceState::Silent);
    rig.wait(SECOND + SECOND / 2);
    rig.media();
    assert_eq!(rig.received(token).len(), 3);
    rig.wait(SECOND + SECOND / 2);
    assert_eq!(rig.received(token), [], "something was sent");
    rig.wait(SECOND);
    assert_eq!(rig.received(token).len(), 2);
}

#[test]
fn whoever_begins_after_a_silent_source_has_reported_is_sent_nothing_older() {
    let mut rig = Rig::new();
    let (first, _) = rig.play(1, &[(0, "RTP/AVP/TCP;interleaved=0-1")]);
    rig.report();
    rig.media();
    rig.state(SourceState::Silent);
    rig.received(first);
    rig.wait(SECOND * 2 + SECOND / 4);
    assert_eq!(rig.received(first).len(), 1, "a report of the outage");
    // The source reports its clock when the report of the outage is half a second old.
    rig.wait(SECOND / 2);
    let compound = rtcp::sender_report(0xa, NTP.wrapping_add(3 << 32), RTP_TIME, 7, 700, "of the source");
    rig.chunk(Chunk::report(0, VIDEO, rig.now, RTP_TIME, &compound));
    let (second, _) = rig.play(2, &[(0, "RTP/AVP/TCP;interleaved=0-1")]);
    for token in [first, second] {
        let got = rig.received(token);
        let reports: Vec<_> = got.iter().filter(|(channel, _)| *channel == 1).collect();
        assert!(reports.iter().all(|(_, report)| *report == compound), "{reports:?}");
    }
}

#[test]
fn datagrams_and_a_group_get_their_reports_at_the_rtcp_ports() {
    let mut rig = Rig::new();
    let group: SocketAddr = "239.77.0.1:5000".parse().unwrap();
    let socket = Some(Datagram::Scripted);
    rig.core.set_group(STREAM, Group { address: group, ttl: 1, receivers: Arc::default(), socket });
    rig.core.described(rig.now, STREAM, fuzz::description("H264", rig.now));
    // One receives only the audio, one has joined the group.
    rig.play(1, &[(1, "RTP/AVP;unicast;client_port=6002-6003")]);
    rig.play(2, &[(0, "RTP/AVP;multicast")]);
    rig.media();
    rig.state(SourceState::Down);
    rig.core.egress_mut().datagrams.clear();
    rig.wait(SECOND * 3);
    let sent = std::mem::take(&mut rig.core.egress_mut().datagrams);
    let mut to: Vec<_> = sent.iter().map(|(_, to, packet)| (to.to_string(), parts(packet).len())).collect();
    to.sort();
    let expected = [("192.0.2.1:6003", 2), ("239.77.0.1:5001", 2), ("239.77.0.1:5003", 2)];
    assert_eq!(to, expected.map(|(to, parts)| (to.to_owned(), parts)));
}

#[test]
fn a_client_that_does_not_read_is_sent_the_newest_reports_alone_and_one_that_pauses_none() {
    let mut rig = Rig::new();
    let (paused, session) = rig.play(1, &[(0, "RTP/AVP/TCP")]);
    rig.ask(paused, "PAUSE rtsp://h/a", &session);
    let (slow, _) = rig.play(2, &[(0, "RTP/AVP/TCP")]);
    rig.report();
    rig.state(SourceState::Down);
    // It takes nothing, as if its socket were full.
    rig.core.egress_mut().set_reading(slow.slot, Reading::Rate(0));
    rig.core.egress_mut().fill(slow.slot);
    rig.received(slow);
    rig.wait(SECOND * 9);
    assert_eq!((rig.received(paused).len(), rig.received(slow).len()), (0, 0));
    rig.core.egress_mut().set_reading(slow.slot, Reading::AtOnce);
    rig.core.egress_mut().advance(Duration::ZERO);
    rig.settle();
    let got = rig.received(slow);
    let ages = got.iter().map(|(_, packet)| SenderInfo::of(packet).unwrap().ntp.wrapping_sub(NTP) >> 32);
    // The one that was in flight, and the newest.
    assert_eq!(ages.collect::<Vec<_>>(), [2, 8]);
}

#[test]
fn whoever_begins_in_an_outage_is_sent_the_newest_reports_at_once_and_those_of_other_tracks_never() {
    let mut rig = Rig::new();
    rig.play(1, &[(0, "RTP/AVP/TCP")]);
    rig.report();
    rig.media();
    rig.state(SourceState::Down);
    rig.wait(SECOND * 3);
    let (token, session) = rig.play(2, &[(0, "RTP/AVP/TCP")]);
    rig.wait(Duration::from_millis(1));
    // It was sent with the answer, which was taken.
    assert_eq!(rig.received(token), []);
    rig.ask(token, "PAUSE rtsp://h/a", &session);
    // Other tracks: sessions with the previous ones end, and get no report.
    rig.core.described(rig.now, STREAM, fuzz::description("H265", rig.now));
    rig.settle();
    for slot in 0..2 {
        rig.core.egress_mut().renew(slot);
    }
    let (token, _) = rig.play(3, &[(0, "RTP/AVP/TCP")]);
    rig.wait(SECOND * 2);
    let got = rig.received(token);
    assert!(matches!(&got[..], [(1, packet)] if SenderInfo::of(packet).is_none()), "{got:?}");
}
