use std::net::Ipv4Addr;

use super::*;
use crate::wire::interleaved::frame;
use crate::wire::rtp::Header;

#[derive(Default)]
struct Got {
    playing: Vec<SourceTrack>,
    packets: Vec<(usize, u16)>,
    reports: usize,
    dropped: Vec<SourceDrop>,
}

impl Media for Got {
    fn playing(&mut self, tracks: Vec<SourceTrack>) {
        self.playing = tracks;
    }

    fn packet(&mut self, track: usize, _received: Instant, rtp: &[u8]) {
        self.packets.push((track, u16::from_be_bytes([rtp[2], rtp[3]])));
    }

    fn report(&mut self, _track: usize, _received: Instant, _report: SenderReport) {
        self.reports += 1;
    }

    fn dropped(&mut self, why: SourceDrop, _count: u64) {
        self.dropped.push(why);
    }
}

const SDP: &str = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=control:*\r\n\
    m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:track1\r\n\
    m=audio 0 RTP/AVP 0\r\na=control:track2\r\n";

/// A camera that answers requests step by step.
struct Rig {
    now: Instant,
    settings: Settings,
    client: Client,
    got: Got,
}

impl Rig {
    fn new(change: impl FnOnce(&mut Settings)) -> Rig {
        let now = Instant::now();
        let mut settings = Settings {
            url: "rtsp://cam/live".to_owned(),
            secure: false,
            credentials: Some(Credentials { username: "u".to_owned(), password: "p".to_owned() }),
            basic: false,
            camera: Ipv4Addr::LOCALHOST.into(),
            datagrams_from: DatagramsFrom::Camera,
            timeouts: Timeouts::default(),
            learned: Learned::default(),
            had_video: false,
            seed: 7,
            relaying: None,
        };
        change(&mut settings);
        let client = Client::new(now, now, settings.clone());
        Rig { now, settings, client, got: Got::default() }
    }

    fn plain() -> Rig {
        Rig::new(|_| {})
    }

    /// What the client has sent since the last call, as text.
    fn sent(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(self.client.out())).into_owned()
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.client.receive(self.now, bytes, &mut self.got);
    }

    /// Answers the last request with its own number.
    fn answer(&mut self, head: &str, body: &str) -> String {
        let sent = self.sent();
        let cseq = sent.rsplit("CSeq: ").next().and_then(|rest| rest.split('\r').next()).expect("a request").to_owned();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let (status, headers) = head.split_once('\n').unwrap_or((head, ""));
        let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
        self.receive(format!("RTSP/1.0 {status}\r\nCSeq: {cseq}\r\n{headers}{length}\r\n{body}").as_bytes());
        sent
    }

    /// Up to the answer to the last SETUP: PLAY has been sent.
    fn set_up(&mut self) {
        assert!(
            self.answer("200 OK\nPublic: OPTIONS, DESCRIBE, GET_PARAMETER", "").starts_with("OPTIONS rtsp://cam/live")
        );
        assert!(self.answer("200 OK\nContent-Base: rtsp://cam/live/", SDP).starts_with("DESCRIBE "));
        let first = self.answer("200 OK\nSession: 12;timeout=20\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1", "");
        assert!(first.starts_with("SETUP rtsp://cam/live/track1 RTSP/1.0"), "{first}");
        let second = self.answer("200 OK\nSession: 12\nTransport: RTP/AVP/TCP;unicast;source=;interleaved=4-5", "");
        assert!(second.contains("interleaved=2-3") && second.contains("Session: 12\r\n"), "{second}");
    }

    /// The same without the first request, which has been sent.
    fn play_on(&mut self) {
        self.set_up();
        self.answer("200 OK", "");
    }

    /// Replaces the client with one restored from its saved state.
    fn hand_over(&mut self) {
        let state = self.client.save(self.now).expect("it plays");
        let written = serde_json::to_string(&state).expect("plain data");
        let state = serde_json::from_str(&written).expect("what was written");
        self.client = Client::restore(self.now, state, self.settings.clone());
    }

    fn play(&mut self) {
        self.set_up();
        let play = self.answer("200 OK", "");
        assert!(play.starts_with("PLAY rtsp://cam/live/ RTSP/1.0"), "{play}");
        assert_eq!(self.got.playing.len(), 2);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.client.tick(self.now, &mut self.got);
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.client.poll_event()).filter(|event| *event != Event::Described).collect()
    }

    fn fault(&mut self) -> Option<Fault> {
        self.events().into_iter().find_map(|event| if let Event::Ended(fault) = event { Some(fault) } else { None })
    }
}

fn packet(channel: u8, sequence: u16, ssrc: u32) -> Vec<u8> {
    let mut packet = Header::write(true, 96, sequence, 0, ssrc).to_vec();
    packet.push(1);
    frame(channel, &packet)
}

#[test]
fn a_session_goes_from_options_to_packets_and_back() {
    let mut rig = Rig::plain();
    rig.play();
    rig.receive(&packet(0, 1, 9));
    rig.receive(&packet(4, 5, 10));
    rig.receive(&packet(0, 3, 9));
    rig.receive(&packet(0, 2, 9));
    rig.receive(&packet(0, 2, 9));
    // What arrived in the wrong order is sorted; the pipeline drops duplicates.
    assert_eq!(rig.got.packets, [(0, 1), (1, 5), (0, 2), (0, 3), (0, 2)]);
    rig.client.leave();
    let teardown = rig.sent();
    assert!(teardown.starts_with("TEARDOWN rtsp://cam/live/ RTSP/1.0") && teardown.contains("Session: 12\r\n"));
    rig.receive(b"RTSP/1.0 200 OK\r\n\r\n");
    assert_eq!(rig.events(), [Event::TornDown]);
    assert!(rig.client.is_over());
}

#[test]
fn packets_before_the_answer_to_play_are_taken_and_what_asks_is_answered() {
    let mut rig = Rig::plain();
    rig.set_up();
    let play = rig.sent();
    assert!(play.starts_with("PLAY"));
    rig.receive(&packet(0, 1, 9));
    rig.receive(b"OPTIONS * RTSP/1.0\r\nCSeq: 77\r\n\r\n");
    rig.receive(b"REDIRECT rtsp://elsewhere/ RTSP/1.0\r\nCSeq: 78\r\n\r\n");
    let answers = rig.sent();
    assert!(
        answers.contains("RTSP/1.0 200 OK\r\nCSeq: 77\r\n") && answers.contains("501 Not Implemented\r\nCSeq: 78\r\n")
    );
    rig.receive(b"RTSP/1.0 200 OK\r\nCSeq: 5\r\n\r\n");
    rig.receive(&packet(0, 2, 9));
    assert_eq!((rig.got.playing.len(), rig.got.packets.len()), (2, 2));
    rig.receive(b"TEARDOWN rtsp://cam/live RTSP/1.0\r\nCSeq: 79\r\n\r\n");
    assert_eq!(rig.fault(), Some(Fault::Left));
}

#[test]
fn rtcp_that_is_none_concerns_nobody() {
    let mut rig = Rig::plain();
    rig.play();
    for rtcp in [&b""[..], b"\x80\xc8\x00", &[0x80, 200, 0, 6, 0, 0, 0, 1], b"junkjunk"] {
        rig.receive(&frame(1, rtcp));
    }
    rig.receive(&frame(1, &crate::wire::rtcp::sender_report(9, 1 << 32, 0, 0, 0, "c")));
    rig.receive(&frame(9, b"nobody set it up"));
    rig.receive(&frame(0, b"junk"));
    rig.receive(&packet(0, 1, 9));
    assert_eq!((rig.got.reports, rig.got.packets.len()), (1, 1));
    use SourceDrop::{Malformed, Rtcp, Unassigned};
    assert_eq!(rig.got.dropped, [Rtcp, Rtcp, Rtcp, Rtcp, Unassigned, Malformed]);
    assert_eq!(rig.events(), []);
}

#[test]
fn a_session_is_kept_alive_by_what_the_camera_takes() {
    let mut rig = Rig::plain();
    rig.play();
    let mut sequence = 0;
    let mut alive = |rig: &mut Rig| {
        let mut asked = String::new();
        for _ in 0..10 {
            rig.wait(Duration::from_secs(1));
            sequence += 1;
            rig.receive(&packet(0, sequence, 9));
            asked += &rig.sent();
        }
        asked
    };
    let asked = alive(&mut rig);
    assert!(asked.contains("GET_PARAMETER rtsp://cam/live/ RTSP/1.0") && !asked.contains("OPTIONS"), "{asked}");
    // Reports are sent besides: two in ten seconds.
    assert!(asked.matches("$\u{1}").count() >= 2, "{asked:?}");
    // Refused, with another number than the request's.
    rig.receive(b"RTSP/1.0 400 Bad Request\r\nCSeq: 1\r\n\r\n");
    assert!(alive(&mut rig).contains("OPTIONS rtsp"));
    rig.receive(b"RTSP/1.0 501 Not Implemented\r\n\r\n");
    assert!(alive(&mut rig).contains("SET_PARAMETER rtsp"));
    rig.receive(b"RTSP/1.0 451 No\r\n\r\n");
    for _ in 0..20 {
        // Never answered again: arriving media are a sufficient sign of life.
        assert!(alive(&mut rig).contains("OPTIONS rtsp"));
    }
    assert_eq!(rig.events(), []);
    rig.wait(Duration::from_secs(3));
    assert_eq!(rig.events(), [Event::Silent]);
    rig.wait(Duration::from_secs(10));
    assert!(matches!(rig.fault(), Some(Fault::Silent { from: None, .. })));
}

#[test]
fn a_session_that_ends_after_one_timeout_is_kept_alive_by_all_kinds_next_time() {
    for (age, learned) in [(5, false), (20, true), (200, false)] {
        let mut rig = Rig::plain();
        rig.play();
        for step in 0..age {
            rig.wait(Duration::from_secs(1));
            rig.receive(&packet(0, step, 9));
        }
        rig.client.closed(rig.now);
        assert_eq!(rig.client.learned().every_keepalive, learned, "after {age} s");
    }
    let mut rig = Rig::new(|settings| settings.learned.every_keepalive = true);
    rig.play();
    rig.wait(Duration::from_secs(1));
    rig.receive(&packet(0, 1, 9));
    rig.wait(Duration::from_secs(9));
    let asked = rig.sent();
    assert!(asked.contains("OPTIONS rtsp") && asked.contains("GET_PARAMETER rtsp"), "{asked}");
}

const DIGEST: &str = "WWW-Authenticate: Digest realm=\"r\", nonce=\"n1\"";

#[test]
fn a_nonce_that_grows_old_is_answered_anew_and_a_wrong_password_once() {
    let mut rig = Rig::plain();
    rig.answer(&format!("401 Unauthorized\n{DIGEST}"), "");
    let again = rig.answer("200 OK", "");
    assert!(again.contains("Authorization: Digest username=\"u\", realm=\"r\", nonce=\"n1\""), "{again}");
    rig.answer("200 OK\nContent-Base: rtsp://cam/live/", SDP);
    rig.answer("200 OK\nTransport: RTP/AVP/TCP;interleaved=0-1", "");
    rig.answer("200 OK\nTransport: RTP/AVP/TCP;interleaved=2-3", "");
    rig.answer("200 OK", "");
    rig.receive(&packet(0, 1, 9));
    for sequence in 2..17 {
        rig.wait(Duration::from_secs(2));
        rig.receive(&packet(0, sequence, 9));
    }
    rig.answer("401 Unauthorized\nWWW-Authenticate: Digest realm=\"r\", nonce=\"n2\"", "");
    assert!(rig.sent().contains("nonce=\"n2\""));
    assert_eq!(rig.fault(), None);

    let mut rig = Rig::plain();
    rig.answer(&format!("401 Unauthorized\n{DIGEST}"), "");
    rig.answer(&format!("401 Unauthorized\n{DIGEST}"), "");
    assert_eq!((rig.fault(), rig.sent()), (Some(Fault::Unauthorized { given: true }), String::new()));

    let mut rig = Rig::new(|settings| settings.credentials = None);
    rig.answer(&format!("401 Unauthorized\n{DIGEST}"), "");
    assert_eq!(rig.fault(), Some(Fault::Unauthorized { given: false }));
}

#[test]
fn basic_follows_a_refused_digest_only_where_it_may() {
    let both = format!("401 Unauthorized\n{DIGEST}\nWWW-Authenticate: Basic realm=\"r\"");
    let mut rig = Rig::plain();
    rig.answer(&both, "");
    assert!(rig.answer(&both, "").contains("Authorization: Digest"));
    assert_eq!((rig.fault(), rig.sent()), (Some(Fault::BasicWanted), String::new()));
    for change in [|settings: &mut Settings| settings.basic = true, |settings: &mut Settings| settings.secure = true] {
        let mut rig = Rig::new(change);
        rig.answer(&both, "");
        rig.answer(&both, "");
        assert!(rig.answer("200 OK", "").contains("Authorization: Basic dTpw"));
        assert!(rig.sent().starts_with("DESCRIBE"));
    }
    // Only once.
    let mut rig = Rig::new(|settings| settings.basic = true);
    for _ in 0..3 {
        rig.answer(&both, "");
    }
    assert_eq!(rig.fault(), Some(Fault::Unauthorized { given: true }));
    // SHA-256 first; the next session does without it.
    let sha = "401 Unauthorized\nWWW-Authenticate: Digest realm=\"r\", nonce=\"n\", algorithm=SHA-256\n\
        WWW-Authenticate: Digest realm=\"r\", nonce=\"n\", algorithm=MD5";
    let mut rig = Rig::plain();
    rig.answer(sha, "");
    assert!(rig.answer(sha, "").contains("algorithm=SHA-256"));
    assert!(rig.client.learned().md5_first);
    let mut rig = Rig::new(|settings| settings.learned.md5_first = true);
    rig.answer(sha, "");
    assert!(rig.sent().contains("algorithm=MD5"));
}

#[test]
fn answers_that_leave_things_out_are_enough() {
    let mut rig = Rig::plain();
    // No answer to OPTIONS in time, no session, no transport, no base URL.
    rig.sent();
    rig.wait(Duration::from_secs(3));
    // It arrives late, and is no answer to DESCRIBE.
    rig.receive(b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\nWWW-Authenticate: Digest realm=\"r\", nonce=\"n\"\r\n\r\n");
    let asked = rig.sent();
    assert!(asked.contains("DESCRIBE") && asked.contains("OPTIONS"), "{asked}");
    let described = format!("Content-Base: /\r\nContent-Length: {}\r\n\r\n{SDP}", SDP.len());
    rig.receive(format!("RTSP/1.0 200 OK\r\nCSeq: 2\r\n{described}").as_bytes());
    assert!(rig.answer("200 OK", "").starts_with("SETUP rtsp://cam/live/track1"));
    rig.answer("200 OK\nTransport: RTP/AVP/UDP;unicast;server_port=1-2;source=camera.local", "");
    let play = rig.answer("200 OK\nSession: late", "");
    assert!(play.starts_with("PLAY rtsp://cam/live RTSP/1.0") && !play.contains("Session"), "{play}");
    rig.receive(&packet(2, 1, 9));
    assert_eq!(rig.got.packets, [(1, 1)]);
    rig.client.leave();
    assert!(rig.sent().contains("Session: late\r\n"));
}

#[test]
fn tracks_are_left_out_for_a_reason_and_asked_for_by_another_reading_of_their_url() {
    let sdp = "v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:t1\r\n\
        m=audio 0 RTP/AVP 8\r\na=sendonly\r\na=control:t2\r\nm=application 0 RTP/AVP 107\r\na=control:t3\r\n\
        m=audio 0 RTP/AVP 0\r\na=control:t4\r\n";
    let mut rig = Rig::plain();
    rig.answer("200 OK", "");
    rig.answer("200 OK", sdp);
    assert!(rig.answer("404 Not Found", "").starts_with("SETUP rtsp://cam/live/t1 "));
    assert!(rig.answer("200 OK", "").starts_with("SETUP rtsp://cam/t1 "));
    assert!(rig.answer("500 No", "").starts_with("SETUP rtsp://cam/live/t4 "));
    let left_out: Vec<_> = rig
        .events()
        .into_iter()
        .filter_map(
            |event| if let Event::TrackLeftOut { track, reason } = event { Some((track, reason)) } else { None },
        )
        .collect();
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    assert!(left_out[0].1.contains("back channel") && left_out[1].1.contains("a=rtpmap"), "{left_out:?}");
    assert_eq!(left_out[2].0, "3 (audio PCMU)");
    assert!(rig.sent().starts_with("PLAY"));
    // A video track that worked before is not given up.
    let mut rig = Rig::new(|settings| settings.had_video = true);
    rig.answer("200 OK", "");
    rig.answer("200 OK\nContent-Base: rtsp://cam/", sdp);
    rig.answer("500 No", "");
    assert_eq!(rig.fault(), Some(Fault::Status(500, Step::Setup)));
}

#[test]
fn each_step_has_its_time() {
    let mut rig = Rig::plain();
    rig.wait(Duration::from_secs(10));
    assert!(matches!(rig.fault(), Some(Fault::TimedOut(Step::Describe, _))));
    let mut rig = Rig::plain();
    rig.answer("200 OK", "");
    rig.answer("200 OK", SDP);
    rig.wait(Duration::from_secs(9));
    assert_eq!(rig.fault(), None);
    rig.answer("200 OK\nSession: 1", "");
    rig.wait(Duration::from_secs(9));
    assert_eq!(rig.fault(), None);
    rig.wait(Duration::from_secs(1));
    assert!(matches!(rig.fault(), Some(Fault::TimedOut(Step::Setup, _))));
    // The second track's SETUP, after the video's: it may do without it.
    assert_eq!(rig.client.learned().suspects, [1]);
    assert!(rig.sent().contains("TEARDOWN"));
    let mut rig = Rig::plain();
    rig.set_up();
    rig.wait(Duration::from_secs(10));
    assert!(matches!(rig.fault(), Some(Fault::TimedOut(Step::Play, _))));
}

#[test]
fn redirects_are_the_callers_to_judge() {
    let mut rig = Rig::plain();
    rig.answer("200 OK", "");
    rig.answer("302 Moved\nLocation: rtsp://other/live", "");
    assert_eq!(rig.events(), [Event::Redirected("rtsp://other/live".to_owned())]);
    assert!(rig.client.is_over());
}

#[test]
fn datagrams_are_the_cameras_or_nobodys() {
    let camera: IpAddr = Ipv4Addr::LOCALHOST.into();
    let other: IpAddr = Ipv4Addr::new(127, 0, 0, 2).into();
    let rtp = |sequence| Header::write(true, 96, sequence, 0, 9).to_vec();
    for (from, taken) in [
        (DatagramsFrom::Camera, 1),
        (DatagramsFrom::Address(other), 2),
        (DatagramsFrom::Any, 2),
        (DatagramsFrom::Address(Ipv4Addr::new(127, 0, 0, 3).into()), 1),
    ] {
        let mut rig = Rig::new(|settings| (settings.learned.udp, settings.datagrams_from) = (true, from));
        rig.answer("200 OK", "");
        rig.answer("200 OK", SDP);
        assert_eq!(rig.events(), [Event::WantsPorts(0)]);
        rig.client.ports(rig.now, 6_000);
        let asked = rig.answer("200 OK\nTransport: RTP/AVP;unicast;client_port=6000-6001;server_port=7000-7001", "");
        assert!(asked.contains("RTP/AVP;unicast;client_port=6000-6001"), "{asked}");
        rig.client.ports(rig.now, 6_002);
        rig.answer("461 Unsupported Transport", "");
        rig.answer("200 OK", "");
        assert_eq!(rig.client.poll_datagram().map(|datagram| (datagram.rtcp, datagram.port)), Some((false, 7_000)));
        rig.client.datagram(rig.now, 0, false, camera, &rtp(1), &mut rig.got);
        rig.client.datagram(rig.now, 0, false, other, &rtp(2), &mut rig.got);
        rig.client.datagram(rig.now, 0, false, camera, b"none", &mut rig.got);
        assert_eq!(rig.got.packets.len(), taken, "{from:?}");
        let told = rig.events().contains(&Event::ForeignDatagrams(other));
        assert_eq!(told, taken == 1);
        rig.wait(Duration::from_secs(10));
        let Some(Fault::Silent { from, .. }) = rig.fault() else { panic!("no silence") };
        assert_eq!(from, told.then_some(other));
    }
}

#[test]
fn what_no_camera_says_ends_the_session() {
    let mut rig = Rig::plain();
    rig.receive(b"SSH-2.0-OpenSSH_9.2\r\n");
    assert!(matches!(rig.fault(), Some(Fault::NotRtsp(what)) if what.starts_with("SSH-2.0")));
    let mut rig = Rig::plain();
    rig.play();
    let flood: Vec<u8> = (0..30_000).flat_map(|_| frame(200, b"x")).collect();
    rig.receive(&flood);
    assert_eq!(rig.fault(), Some(Fault::TooMuch(Step::Playing)));
}

/// A session that is saved and restored at any byte continues as if it had not been.
#[test]
fn a_session_that_plays_is_saved_and_restored_at_any_byte() {
    let challenge = format!("401 Unauthorized\n{DIGEST}");
    let mut media: Vec<u8> = (1..6).flat_map(|sequence| packet(0, sequence, 9)).collect();
    media.extend(packet(4, 8, 10));
    media.extend(frame(1, &crate::wire::rtcp::sender_report(9, 1 << 32, 0, 0, 0, "c")));
    media.extend(b"OPTIONS * RTSP/1.0\r\nCSeq: 9\r\n\r\n");
    // Two in swapped order.
    media.extend([packet(0, 7, 9), packet(0, 6, 9), packet(0, 8, 9)].concat());
    let run = |cut: Option<usize>| {
        let mut rig = Rig::plain();
        rig.answer(&challenge, "");
        rig.play_on();
        rig.sent();
        for (at, byte) in media.iter().enumerate() {
            if Some(at) == cut {
                rig.hand_over();
            }
            rig.receive(&[*byte]);
        }
        for _ in 0..11 {
            rig.wait(Duration::from_secs(1));
            rig.receive(&packet(4, 9, 10));
        }
        (rig.got.packets.clone(), rig.got.reports, rig.sent())
    };
    let whole = run(None);
    assert_eq!(whole.0[..9], [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 8), (0, 6), (0, 7), (0, 8)]);
    assert!(whole.2.contains("GET_PARAMETER") && whole.2.contains("nc=") == DIGEST.contains("qop"));
    for cut in 0..media.len() {
        assert_eq!(run(Some(cut)), whole, "handed over before byte {cut}");
    }
    // Only a playing session can be saved.
    assert!(Rig::plain().client.save(Instant::now()).is_none());
}

proptest::proptest! {
    #[test]
    fn any_camera_is_survived(said in "(RTSP/1.0 200 OK|RTSP/1.0 401 No|Session: 1|\r\n|\r\n\r\n|CSeq: [1-6]|Content-Length: 9|\
        Transport: RTP/AVP/TCP;interleaved=0-1|WWW-Authenticate: Digest nonce=n|m=video 0 RTP/AVP 96|a=rtpmap:96 H264/90000|\\$| |a)\
        {0,60}", first in 0u8..) {
        let mut data = vec![first];
        data.extend(said.bytes());
        fuzz(&data);
    }
}
