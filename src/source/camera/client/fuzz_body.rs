//! The body of the fuzz target for a camera's side of a session.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::{Client, Event, Learned, Media, Settings};
use crate::limits::{CAMERA_BODY_BYTES_MAX, CAMERA_HEAD_BYTES_MAX, CAMERA_OUT_BYTES_MAX};
use crate::media::SourceTrack;
use crate::metrics::SourceDrop;
use crate::source::camera::Timeouts;
use crate::source::camera::address::Credentials;
use crate::source::timeline::SenderReport;
use crate::wire::rtp::Header;

/// Checks what a client hands on.
#[derive(Default)]
struct Judge {
    tracks: Option<usize>,
}

impl Media for Judge {
    fn playing(&mut self, tracks: Vec<SourceTrack>) {
        assert!(self.tracks.is_none(), "a session plays once");
        assert!(!tracks.is_empty());
        self.tracks = Some(tracks.len());
    }

    fn packet(&mut self, track: usize, _received: Instant, rtp: &[u8]) {
        assert!(self.tracks.is_some_and(|tracks| track < tracks), "a packet of a track that plays");
        assert!(Header::parse(rtp).is_ok());
    }

    fn report(&mut self, track: usize, _received: Instant, _report: SenderReport) {
        assert!(self.tracks.is_some_and(|tracks| track < tracks), "a report of a track that plays");
    }

    fn dropped(&mut self, _why: SourceDrop, count: u64) {
        assert!(count > 0);
    }
}

/// Whatever a camera says, in pieces, with time passing between them: the first byte has their length, and what the session begins
/// with. Every request is text of one form, nothing grows without bound, and the password is in no URL.
pub fn fuzz(data: &[u8]) {
    crate::wire::rtsp::fuzz_scanner(data);
    let Some((&first, said)) = data.split_first() else { return };
    let password = unsaid_password(said);
    let mut now = Instant::now();
    let camera = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let credentials =
        (first & 1 != 0).then(|| Credentials { username: "admin".to_owned(), password: password.clone() });
    let learned = Learned { udp: first & 2 != 0, ..Learned::default() };
    let settings = Settings {
        url: "rtsp://127.0.0.1/cam".to_owned(),
        secure: first & 4 != 0,
        credentials,
        basic: false,
        camera,
        datagrams_from: super::DatagramsFrom::Camera,
        timeouts: Timeouts::default(),
        learned,
        had_video: false,
        seed: 1,
        relaying: None,
    };
    let mut client = Client::new(now, now, settings.clone());
    let mut judge = Judge::default();
    let mut ended = 0;
    for piece in said.chunks(usize::from(first >> 3) * 8 + 1) {
        client.receive(now, piece, &mut judge);
        if piece.first() == Some(&0xee) {
            now += Duration::from_secs(3);
            client.tick(now, &mut judge);
        }
        if let (Some(0xdd), Some(1..)) = (piece.first(), judge.tracks) {
            client.datagram(now, 0, piece.len() % 2 == 0, camera, piece, &mut judge);
        }
        while let Some(event) = client.poll_event() {
            match event {
                Event::WantsPorts(_) => client.ports(now, 5_000),
                Event::Ended(_) => ended += 1,
                _ => {}
            }
        }
        while let Some(datagram) = client.poll_datagram() {
            assert!(datagram.bytes.len() < 256);
        }
        if let (Some(0xcc), Some(state)) = (piece.first(), client.save(now)) {
            client = Client::restore(now, state, settings.clone());
        }
        judge_requests(client.out(), &password);
        assert!(client.scanner.pending() <= CAMERA_HEAD_BYTES_MAX + CAMERA_BODY_BYTES_MAX + 64 * 1024);
    }
    assert!(ended <= 1, "a session ends once");
    client.closed(now);
    client.leave();
}

/// A password that the camera does not say itself: what it says, its session's id for one, goes back to it as it came.
fn unsaid_password(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    (0..).map(|n| format!("secret-word-{n}-")).find(|password| !said.contains(password)).expect("an input has an end")
}

/// Takes out what goes to the camera: requests, answers and reports.
fn judge_requests(out: &mut Vec<u8>, password: &str) {
    assert!(out.len() <= CAMERA_OUT_BYTES_MAX * 2);
    let text = String::from_utf8_lossy(out);
    assert!(!text.contains(password), "{text}");
    for line in text.split("\r\n") {
        assert!(line.starts_with('$') || !line.contains(['\r', '\n']) || line.contains('\0'), "{line:?}");
    }
    out.clear();
}
