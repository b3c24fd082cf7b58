//! Browsers and cameras with problems: B frames that appear later, lost or late frames, audio that stops, another picture
//! size, other tracks, a stream that is removed.

use std::sync::Arc;

use mp4_atom::{Any, Codec};
use nix::sys::signal::Signal;
use rtsprelay::media::codec::sps::Sps;

use crate::browser::{atoms, picture, probed, publisher, relay_of, times};
use crate::harness::browser::Browser;
use crate::harness::chromium::{self, Chromium};
use crate::harness::http::http_address;
use crate::harness::machine::{beside_others, cannot_run};
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::scripted::media::Clip;
use crate::harness::scripted::{Camera, Kind, Outgoing, Piece, Script};
use crate::harness::servers::Encoder;
use crate::harness::websocket::{Said, watch};
use crate::harness::{DEADLINE, scratch_file, wait_until};

const FPS: u32 = 25;

const FRAME_TICKS: u32 = 90_000 / FPS;

/// A camera that shows this clip; `change` may change its packets.
fn camera(clip: Clip, change: impl FnMut(&mut Outgoing) -> Vec<Piece> + Send + 'static) -> Camera {
    Camera::start(Script { clip: Arc::new(clip), fps: FPS, ..Script::default() }.packets(change))
}

/// The sequence parameter set of an initialization segment.
fn sps_of(segment: &[u8]) -> Vec<u8> {
    let moov = atoms(segment).into_iter().find_map(|atom| if let Any::Moov(moov) = atom { Some(moov) } else { None });
    match &moov.expect("moov").trak[0].mdia.minf.stbl.stsd.codecs[0] {
        Codec::Avc1(avc1) => avc1.avcc.sequence_parameter_sets[0].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn browsers_are_told_anew_when_b_frames_come() {
    let _turn = beside_others();
    // One parameter set, which leaves B frames open as cameras' do: there is no room for one in two frames.
    let encoded = |frames, interval: u32| {
        let options = format!(
            "keyint={interval}:min-keyint={interval}:scenecut=0:bframes=1:b-adapt=0:b-pyramid=0:ref=1:open-gop=0"
        );
        let clip = Clip::encoded(320, 240, frames, &["-preset", "veryfast", "-x264-params", &options]);
        clip.with_sps(|sps| Sps::without_restriction(sps).expect("x264 says how many frames are reordered"))
    };
    let (plain, reordered) = (encoded(20, 2), encoded(100, 10));
    assert_eq!((&plain.sps, &plain.pps), (&reordered.sps, &reordered.pps));
    assert!((0..20).all(|at| !plain.is_b(at)) && (0..100).any(|at| reordered.is_b(at)));
    let sps = plain.sps.clone();
    let clip = Arc::new(plain.then(reordered));
    let shown = Arc::clone(&clip);
    let camera = Camera::start(Script { clip, fps: FPS, ..Script::default() }.packets(move |packet| {
        if packet.kind == Kind::Video && !packet.rtcp {
            // A B frame arrives after the frame that is shown after it.
            let later = u32::from(shown.is_b(packet.frame + 1)) * FRAME_TICKS;
            let earlier = u32::from(shown.is_b(packet.frame)) * FRAME_TICKS;
            let time = u32::from_be_bytes(packet.bytes[4..8].try_into().unwrap());
            packet.bytes[4..8].copy_from_slice(&time.wrapping_add(later).wrapping_sub(earlier).to_be_bytes());
        }
        packet.whole()
    }));
    // It starts with its first frame when the stream is requested.
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\non_demand = true\n",
        camera.url()
    ));
    let mut watcher = watch(http_address(&relay), "/+live/cam");
    // Each segment with the frames that follow it.
    let mut parts: Vec<(Vec<u8>, Vec<u8>, usize)> = Vec::new();
    while parts.len() < 3 || parts[2].2 < 30 {
        match watcher.next() {
            Said::Init(_, segment) => parts.push((sps_of(&segment), segment, 0)),
            Said::Fragment(_, is_sync, fragment) => {
                let (_, file, frames) = parts.last_mut().expect("a segment comes first");
                assert!(*frames > 0 || is_sync, "a segment comes before a keyframe");
                file.extend(fragment);
                *frames += 1;
            }
            Said::Closed(code, reason) => panic!("closed: {code} {reason}"),
            _ => {}
        }
    }
    let in_order = Sps::without_reordering(&sps, true).unwrap();
    let told: Vec<_> = parts.iter().map(|(sps, ..)| sps.clone()).collect();
    assert_eq!(told, [sps.clone(), in_order, sps]);
    // A GOP of two frames; then the other GOPs without a B frame, and the one with the first B frame.
    assert!(parts[0].2 == 2 && (10..=18 + 10).contains(&parts[1].2), "{} {}", parts[0].2, parts[1].2);
    for (at, (_, file, frames)) in parts.iter().enumerate() {
        let seen = probed(file, &format!("order{at}"));
        // A decoder that was told the order drops the four B frames of the one GOP that breaks it.
        let decoded = if at == 1 { frames - 4 } else { *frames };
        assert_eq!(seen["nb_read_frames"], decoded.to_string(), "{at}: {seen}");
    }
}

/// Loses every seventh frame, but no keyframe.
fn losing() -> Camera {
    camera(Clip::made(320, 240), |packet| {
        let is_lost = packet.kind == Kind::Video && !packet.rtcp && !packet.key && packet.frame % 7 == 3;
        if is_lost { Vec::new() } else { packet.whole() }
    })
}

/// Delays packets by up to 300 ms, in order.
fn jittering() -> Camera {
    let mut held = Vec::new();
    camera(Clip::made(320, 240), move |packet| {
        held.extend(packet.whole());
        let waits = packet.kind == Kind::Audio || packet.rtcp || !packet.last || packet.frame % 8 != 7;
        if waits { Vec::new() } else { std::mem::take(&mut held) }
    })
}

/// Its audio stops for one second in four.
fn losing_sound() -> Camera {
    camera(Clip::made(320, 240), |packet| {
        let is_lost = packet.kind == Kind::Audio && !packet.rtcp && packet.frame / 50 % 4 == 3;
        if is_lost { Vec::new() } else { packet.whole() }
    })
}

/// Changes the picture size every two seconds.
fn resizing() -> Camera {
    camera(Clip::made(640, 360).then(Clip::made(320, 240)), |packet| packet.whole())
}

#[test]
fn chromium_plays_what_troubled_cameras_send() {
    if !chromium::is_there() {
        return cannot_run("chromium and chromedriver are not installed (tests/run installs them)");
    }
    let _turn = beside_others();
    let cameras = [("losing", losing()), ("jitter", jittering()), ("sound", losing_sound()), ("size", resizing())];
    let urls: Vec<_> = cameras.iter().map(|(name, camera)| (*name, camera.url())).collect();
    let streams: Vec<_> = urls.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let relay = relay_of(&streams, "");
    let http = http_address(&relay);
    for (name, _) in &streams {
        let url = relay.url(&format!("/{name}"));
        wait_until(name, DEADLINE, || Client::connect(relay.address()).describe(&url).status == 200);
    }
    let browser = Chromium::start(1280, 900);
    let open = |path: &str| browser.open(&format!("http://{http}{path}"));
    let is_playing = "view.state === 'playing' && view.age !== null && view.age < 3000";
    for name in ["losing", "jitter"] {
        for mode in ["mse", "codecs"] {
            open(&format!("/{name}/?mode={mode}"));
            // Several seconds, and without falling back to the other mode.
            browser.wait(name, &format!("view.mode === '{mode}' && view.frames > 75 && {is_playing}"));
        }
    }
    let lost = cameras[0].1.record().packets.iter().filter(|packet| packet.left_out).count();
    assert!(lost > 10, "{lost} packets were lost");

    open("/sound/?mode=mse");
    browser.wait("a picture", &format!("view.frames > 20 && {is_playing}"));
    browser.run("document.getElementById('sound').click(); view.frames = 0;");
    // Across two of the gaps. The audio stays on, without a hole.
    browser.wait(
        "a picture with sound",
        "view.frames > 200 && view.state === 'playing' && document.getElementById('video').webkitAudioDecodedByteCount > 10000",
    );
    let heard = browser.run(
        "return [document.getElementById('sound').getAttribute('aria-pressed'),
            [...player.buffers.values()].map(buffer => buffer.buffered.length)];",
    );
    assert_eq!(heard, serde_json::json!(["true", [1, 1]]));

    for (mode, width) in
        [("mse", "document.getElementById('video').videoWidth"), ("codecs", "document.getElementById('canvas').width")]
    {
        open(&format!("/size/?mode={mode}"));
        for size in [640, 320, 640] {
            browser.wait(&format!("{size} by {mode}"), &format!("{width} === {size} && view.mode === '{mode}'"));
            browser.run("view.frames = 0;");
            browser.wait("it plays on", &format!("view.frames > 5 && {is_playing}"));
        }
    }
}

#[test]
fn another_source_ends_browsers_with_a_reason() {
    let _turn = beside_others();
    let relay = relay_of(&[("live", "publish")], "");
    let http = http_address(&relay);
    let live = || Client::connect(relay.address()).describe(&relay.url("/live")).status == 200;
    let first = picture(&relay, "live", "320x240", FPS, &["-c:a", "pcm_mulaw", "-ar", "8000"]);
    wait_until("the first is there", DEADLINE, live);
    let mut watcher = watch(http, "/+live/live");
    assert_eq!(watcher.text("hello")["tracks"][0]["encoding"], "H264");
    watcher.fragment(0);
    drop(first);
    let hevc = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:bframes=0", "-an"];
    let _second = publisher(&relay, "live", &hevc);
    assert_eq!(watcher.end(), (1013, "the source's tracks or codecs changed".into()));
    // A client that reconnects gets the current description.
    let mut watcher = watch(http, "/+live/live");
    assert_eq!(watcher.text("hello")["tracks"][0]["encoding"], "H265");
    let file = watcher.file(0, 10);
    assert!(times(&file).len() == 10 && probed(&file, "changed")["codec_name"] == "hevc");
}

#[test]
fn what_no_browser_plays_is_said_in_words() {
    let _turn = beside_others();
    let encoder = Encoder::start(&["others"]);
    let relay = relay_of(&[("nothing", &encoder.url_of("unknown"))], "");
    wait_until("it is up", DEADLINE, || {
        Client::connect(relay.address()).describe(&relay.url("/nothing")).status == 200
    });
    let mut watcher = watch(http_address(&relay), "/+live/nothing");
    let hello = watcher.text("hello");
    assert_eq!((&hello["tracks"][0]["plays"], hello["tracks"][0]["why"].is_string()), (&false.into(), true), "{hello}");
    assert!(watcher.end().1.contains("browsers can play"));
}

#[test]
fn who_waits_for_a_stream_is_told_when_it_is_removed() {
    let _turn = beside_others();
    let config = scratch_file("waiting.toml");
    let head = "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[[stream]]\nname = \"other\"\nsource = \"test\"\n";
    // Nothing listens there; the relay keeps trying.
    let far =
        "[[stream]]\nname = \"far\"\nsource = \"rtsp://127.0.0.1:9/x\"\non_demand = true\non_demand_start = \"50s\"\n";
    std::fs::write(&config, format!("{head}{far}")).unwrap();
    let relay = Relay::start(command(Uring::AsAsked, &["run", "--config", config.to_str().unwrap()]));
    let mut waiting = watch(http_address(&relay), "/+live/far");
    waiting.text("waiting");
    std::fs::write(&config, head).unwrap();
    relay.signal(Signal::SIGHUP);
    assert_eq!(waiting.end(), (1013, "the stream was removed".into()));
    std::fs::remove_file(config).unwrap();
}
