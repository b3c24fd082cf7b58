//! Streams in browsers: other programs can read the MP4 in the WebSocket, and a real browser shows the right picture, with sound.

use std::collections::BTreeMap;
use std::process::Command;

use mp4_atom::{Any, DecodeMaybe};
use serde_json::Value;

use crate::harness::browser::Browser;
use crate::harness::chromium::{self, Chromium};
use crate::harness::firefox::{self, Firefox};
use crate::harness::http::{get, http_address};
use crate::harness::machine::{beside_others, cannot_run};
use crate::harness::program::{Program, run};
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::websocket::{Said, watch};
use crate::harness::{DEADLINE, scratch_file, test_file, wait_until};

/// A relay with these streams and HTTP.
pub fn relay_of(streams: &[(&str, &str)], keys: &str) -> Relay {
    let mut config = format!("listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n{keys}\n");
    for (name, source) in streams {
        config += &format!("[[stream]]\nname = \"{name}\"\nsource = \"{source}\"\n");
    }
    Relay::configured(&config)
}

pub fn atoms(mut bytes: &[u8]) -> Vec<Any> {
    let mut atoms = Vec::new();
    while let Some(atom) = Any::decode_maybe(&mut bytes).unwrap() {
        atoms.push(atom);
    }
    assert!(bytes.is_empty(), "{} bytes behind the last box", bytes.len());
    atoms
}

/// The decoding times of a file's fragments, and their durations, in ticks.
pub fn times(file: &[u8]) -> Vec<(u64, u64)> {
    let mut times = Vec::new();
    for atom in atoms(file) {
        if let Any::Moof(moof) = atom {
            let traf = &moof.traf[0];
            let lasts: u64 =
                traf.trun.iter().flat_map(|trun| &trun.samples).map(|entry| u64::from(entry.duration.unwrap())).sum();
            times.push((traf.tfdt.as_ref().unwrap().base_media_decode_time, lasts));
        }
    }
    times
}

/// What ffprobe reports about a file's frames, all of which it decodes.
pub fn probed(file: &[u8], name: &str) -> Value {
    let path = scratch_file(&format!("{name}.mp4"));
    std::fs::write(&path, file).unwrap();
    let show = ["-v", "error", "-count_frames", "-show_entries"];
    let what = ["stream=codec_name,codec_tag_string,width,height,nb_read_frames,has_b_frames", "-of", "json"];
    let finished = run(DEADLINE, "ffprobe", &[&show[..], &what[..], &[path.to_str().unwrap()]].concat());
    assert_eq!(finished.stderr, "", "{name}");
    std::fs::remove_file(path).unwrap();
    let seen: Value = serde_json::from_str(&finished.stdout).unwrap();
    seen["streams"][0].clone()
}

#[test]
fn a_stream_comes_as_mp4_that_others_read() {
    let _turn = beside_others();
    let relay = relay_of(&[("test", "test")], "").serving("/test");
    let http = http_address(&relay);
    let mut watcher = watch(http, "/+live/test?sound=1");
    let hello = watcher.text("hello");
    assert_eq!((&hello["stream"], &hello["tracks"][0]["plays"]), (&"test".into(), &true.into()), "{hello}");
    let video = watcher.file(0, 45);
    let told = watcher.texts.iter().find(|text| text["type"] == "track" && text["track"] == 0).unwrap();
    assert_eq!((&told["width"], &told["height"]), (&640.into(), &360.into()), "{told}");
    assert!(told["mime"].as_str().unwrap().starts_with("video/mp4; codecs=\"avc1."), "{told}");
    // One frame per fragment, none missing, each with a duration of 300 ms.
    let all = times(&video);
    assert!(all.windows(2).all(|pair| pair[1].0 > pair[0].0), "{all:?}");
    assert!(all.iter().all(|(_, lasts)| *lasts == 27_000), "{all:?}");
    let arrivals = atoms(&video).iter().filter(|atom| matches!(atom, Any::Prft(_))).count();
    assert_eq!(arrivals, 45, "each has its arrival time");
    let seen = probed(&video, "video");
    let seen = (&seen["codec_name"], &seen["width"], &seen["nb_read_frames"]);
    assert_eq!(seen, (&"h264".into(), &640.into(), &"45".into()));
    // The sound is G.711, without a gap.
    let sound = watcher.file(1, 40);
    let all = times(&sound);
    assert!(all.windows(2).all(|pair| pair[1].0 == pair[0].0 + pair[0].1), "{all:?}");
    assert_eq!(probed(&sound, "sound")["codec_name"], "flac");
    // A keyframe is a separate file.
    let (status, _) = get(http, "/+keyframe/nothing");
    assert_eq!(status, 404);
}

/// Streams that ffmpeg publishes: the name, the encoder's arguments, and the resulting video and audio.
const PUBLISHED: [(&str, &[&str], &str, &str); 5] = [
    (
        "hevc",
        &["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:bframes=0", "-c:a", "aac"],
        "hevc",
        "aac",
    ),
    (
        "bframes",
        &["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-c:a", "pcm_alaw", "-ar", "8000"],
        "h264",
        "flac",
    ),
    (
        "vp9",
        &[
            "-c:v",
            "libvpx-vp9",
            "-deadline",
            "realtime",
            "-cpu-used",
            "8",
            "-strict",
            "experimental",
            "-c:a",
            "libopus",
        ],
        "vp9",
        "opus",
    ),
    (
        "l16",
        &["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-c:a", "pcm_s16be", "-ar", "44100"],
        "h264",
        "flac",
    ),
    (
        "jpeg",
        &[
            "-c:v",
            "mjpeg",
            "-huffman",
            "default",
            "-pix_fmt",
            "yuvj420p",
            "-q:v",
            "8",
            "-force_duplicated_matrix",
            "1",
            "-an",
        ],
        "mjpeg",
        "",
    ),
];

pub fn publisher(relay: &Relay, name: &str, more: &[&str]) -> Program {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25"]);
    command.args(["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-map", "0", "-map", "1?"]);
    command.args(["-g", "25"]).args(more);
    command.args(["-f", "rtsp", "-rtsp_transport", "tcp", &relay.url(&format!("/{name}"))]);
    Program::start(command)
}

#[test]
fn every_codec_that_browsers_play_comes_so_that_ffmpeg_decodes_it() {
    let _turn = beside_others();
    let streams: Vec<_> = PUBLISHED.iter().map(|(name, ..)| (*name, "publish")).collect();
    let relay = relay_of(&streams, "");
    let http = http_address(&relay);
    let _publishers: Vec<_> = PUBLISHED.iter().map(|(name, more, ..)| publisher(&relay, name, more)).collect();
    for (name, _, video, sound) in PUBLISHED {
        let url = relay.url(&format!("/{name}"));
        wait_until(name, DEADLINE, || Client::connect(relay.address()).describe(&url).status == 200);
        let mut watcher = watch(http, &format!("/+live/{name}?sound=1"));
        let hello = watcher.text("hello");
        let track = |media: &str| {
            let tracks = hello["tracks"].as_array().unwrap();
            tracks.iter().position(|track| track["media"] == media).map(|at| at as u8)
        };
        if video == "mjpeg" {
            loop {
                if let Said::Picture(picture) = watcher.next() {
                    assert!(picture.starts_with(&[0xff, 0xd8]) && picture.ends_with(&[0xff, 0xd9]));
                    assert_eq!(probed(&picture, name)["width"], 320);
                    break;
                }
            }
            continue;
        }
        let file = watcher.file(track("video").unwrap(), 60);
        let seen = probed(&file, name);
        assert_eq!((&seen["codec_name"], &seen["width"]), (&video.into(), &320.into()), "{name}: {seen}");
        assert_eq!(seen["nb_read_frames"], "60", "{name}");
        let sound_file = watcher.file(track("audio").unwrap(), 30);
        assert_eq!(probed(&sound_file, name)["codec_name"], sound, "{name}");
        let all = times(&sound_file);
        assert!(all.windows(2).all(|pair| pair[1].0 == pair[0].0 + pair[0].1), "{name}: a gap in {all:?}");
    }
}

#[test]
fn a_browser_is_sent_what_it_asks_for() {
    let _turn = beside_others();
    let relay = relay_of(&[("test", "test")], "").serving("/test");
    let http = http_address(&relay);
    // Muted: no audio at all.
    let mut watcher = watch(http, "/+live/test");
    let mut of_tracks = BTreeMap::new();
    while of_tracks.get(&0).copied().unwrap_or(0) < 40 {
        if let Said::Fragment(track, is_sync, _) = watcher.next() {
            if of_tracks.is_empty() {
                assert!(is_sync, "it begins at a keyframe");
            }
            *of_tracks.entry(track).or_insert(0) += 1;
        }
    }
    assert_eq!(of_tracks.len(), 1, "{of_tracks:?}");
    // It can be requested later.
    watcher.say("{\"type\":\"sound\",\"on\":true}");
    watcher.fragment(1);
    // The clock is the one in `hello`.
    watcher.say("{\"type\":\"clock\",\"sent\":12.5}");
    let clock = watcher.text("clock");
    assert_eq!(clock["sent"], 12.5);
    assert!(clock["relay"].as_f64().unwrap() >= watcher.texts[0]["clock"].as_f64().unwrap(), "{clock}");
    // While it pauses nothing arrives; it resumes where it stopped, or at a keyframe.
    let last = times(&watcher.fragment(0).1)[0].0;
    watcher.say("{\"type\":\"pause\"}");
    watcher.say("{\"type\":\"clock\",\"sent\":1}");
    watcher.text("clock");
    watcher.say("{\"type\":\"clock\",\"sent\":2}");
    assert!(matches!(watcher.next(), Said::Text(text) if text["sent"] == 2.0));
    watcher.say("{\"type\":\"play\"}");
    let (is_sync, fragment) = watcher.fragment(0);
    assert!(is_sync || times(&fragment)[0].0 - last <= 3_003, "goes on in the middle");
    // It ignores messages that it does not understand, and closes on bytes that are no WebSocket frame.
    watcher.say("{\"type\":\"of a newer page\"}");
    watcher.say("no JSON");
    watcher.fragment(0);
    watcher.send_raw(&[0x81, 0x01, b'x']);
    assert_eq!(watcher.end().0, 1002);
    // A stream that never existed.
    let (status, _) = get(http, "/+live/test");
    assert_eq!(status, 426);
}

#[test]
fn browsers_that_do_not_read_skip_and_keep_nobody_up() {
    let _turn = beside_others();
    let relay = relay_of(&[("test", "test")], "[queue]\nage = \"300ms\"\nstall_timeout = \"60s\"\n").serving("/test");
    let http = http_address(&relay);
    let mut slow = watch(http, "/+live/test");
    slow.fragment(0);
    socket2::SockRef::from(slow.stream()).set_recv_buffer_size(4_096).unwrap();
    let mut good = watch(http, "/+live/test");
    let file = good.file(0, 300);
    let all = times(&file);
    assert!(all.windows(2).all(|pair| pair[1].0 - pair[0].0 <= 3_003), "a frame is missing");
    let told = slow.text("skipped");
    assert!(told["skips"].as_u64().unwrap() > 0);
    // Whatever it was sent before, after a gap comes a keyframe.
    let mut last = None;
    for _ in 0..60 {
        let (is_sync, fragment) = slow.fragment(0);
        let (time, _) = times(&fragment)[0];
        assert!(is_sync || last.is_none_or(|last| time - last <= 3_003), "goes on in the middle");
        last = Some(time);
    }
}

#[test]
fn streams_that_come_up_later_are_waited_for() {
    let _turn = beside_others();
    let camera = Relay::demo();
    let keys = "";
    let source = camera.url("/");
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n{keys}[[stream]]\nname = \"far\"\nsource = \"{source}\"\non_demand = true\n"
    );
    let relay = Relay::configured(&config);
    let http = http_address(&relay);
    let (status, _) = get(http, "/+keyframe/far");
    assert_eq!(status, 503, "a tile starts a stream");
    let mut watcher = watch(http, "/+live/far");
    watcher.text("waiting");
    watcher.text("hello");
    assert!(watcher.fragment(0).0);
}

/// Whether the fields at the bottom of the test pattern, drawn from `source`, are alternately light and dark. Which is first changes.
fn right_pixels(source: &str) -> String {
    format!(
        "(() => {{ const from = {source}, c = document.createElement('canvas'); c.width = 640; c.height = 360;
        const t = c.getContext('2d'); t.drawImage(from, 0, 0, 640, 360); const right = [0, 0];
        for (let i = 0; i < 32; i++) {{ const [r, g, b] = t.getImageData(i * 20 + 10, 350, 1, 1).data;
        const grey = Math.max(r, g, b) - Math.min(r, g, b) < 24; if (grey && r > 190 && r < 240) right[i % 2]++;
        if (grey && r > 30 && r < 80) right[1 - i % 2]++; }} return Math.max(...right); }})() >= 31"
    )
}

#[test]
fn chromium_shows_the_right_picture_with_sound() {
    if !chromium::is_there() {
        return cannot_run("chromium and chromedriver are not installed (tests/run installs them)");
    }
    let _turn = beside_others();
    let relay = relay_of(&[("test", "test"), ("two", "test")], "").serving("/test");
    let http = http_address(&relay);
    let browser = Chromium::start(1280, 900);
    // All streams at a glance.
    browser.open(&format!("http://{http}/"));
    browser.wait("tiles have pictures", "window.pictures >= 2");
    let tile = "document.querySelector('.tile canvas:not([hidden])')";
    browser.wait("a tile shows the pattern", &right_pixels(tile));
    // One live, with WebCodecs: the picture's age is known and small.
    browser.open(&format!("http://{http}/two/"));
    browser.wait("pictures are drawn", "view.mode === 'codecs' && view.frames > 30 && view.state === 'playing'");
    browser.wait("it is the pattern", &right_pixels("document.getElementById('canvas')"));
    browser.wait("the picture is of now", "view.ages.length > 20 && Math.min(...view.ages) >= -5 && view.age < 1000");
    // With Media Source, without sound and with it.
    browser.open(&format!("http://{http}/test/?mode=mse"));
    browser.wait("it plays", "view.mode === 'mse' && view.frames > 30 && view.state === 'playing'");
    browser.wait("it is the pattern", &right_pixels("document.getElementById('video')"));
    browser.wait("the picture is of now", "view.age !== null && view.age < 1500");
    browser.run("document.getElementById('sound').click(); view.frames = 0;");
    browser.wait(
        "there is sound",
        "view.frames > 30 && !document.getElementById('video').muted && document.getElementById('video').webkitAudioDecodedByteCount > 10000",
    );
    browser.wait("it is still the pattern", &right_pixels("document.getElementById('video')"));
    // A name that does not exist.
    browser.open(&format!("http://{http}/nowhere/"));
    browser.wait("it says so", "document.getElementById('says').textContent.includes('no such stream')");
}

/// A publisher with PyAV, which sends AV1.
fn av1_publisher(relay: &Relay) -> Program {
    let mut command = Command::new(test_file("../.venv/bin/python"));
    command.arg(test_file("players/pyav_player.py")).args(["publish", &relay.url("/av1"), "tcp"]);
    Program::start(command)
}

/// ffmpeg's test picture, in H.264 without B frames.
pub fn picture(relay: &Relay, name: &str, size: &str, fps: u32, more: &[&str]) -> Program {
    let mut command = Command::new("ffmpeg");
    let source = format!("testsrc2=size={size}:rate={fps}");
    command.args(["-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", &source]);
    command.args(["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-g", "15"]);
    command.args(["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency"]).args(more);
    command.args(["-f", "rtsp", "-rtsp_transport", "tcp", &relay.url(&format!("/{name}"))]);
    Program::start(command)
}

#[test]
fn chromium_plays_what_cameras_send() {
    if !chromium::is_there() {
        return cannot_run("chromium and chromedriver are not installed (tests/run installs them)");
    }
    let _turn = beside_others();
    let names = ["aac", "slow", "change", "jpeg", "av1"];
    let relay = relay_of(&names.map(|name| (name, "publish")), "");
    let http = http_address(&relay);
    let _aac = picture(&relay, "aac", "320x240", 25, &["-c:a", "aac"]);
    let _slow = picture(&relay, "slow", "320x240", 5, &["-an"]);
    let change = picture(&relay, "change", "640x360", 25, &["-an"]);
    let (_, jpeg, ..) = PUBLISHED[4];
    let (_jpeg, _av1) = (publisher(&relay, "jpeg", jpeg), av1_publisher(&relay));
    for name in names {
        let url = relay.url(&format!("/{name}"));
        wait_until(name, DEADLINE, || Client::connect(relay.address()).describe(&url).status == 200);
    }
    let browser = Chromium::start(1280, 900);
    let open = |path: &str| browser.open(&format!("http://{http}{path}"));
    let plays = "view.frames > 20 && view.state === 'playing'";
    let sound = "document.getElementById('video').webkitAudioDecodedByteCount > 10000";
    open("/aac/");
    browser.wait("a picture", plays);
    browser.run("document.getElementById('sound').click(); view.frames = 0;");
    browser.wait("a picture with AAC", &format!("{plays} && {sound}"));
    for path in ["/slow/?mode=mse", "/slow/?mode=codecs", "/jpeg/", "/av1/?mode=mse", "/av1/?mode=codecs"] {
        open(path);
        browser.wait(path, &format!("{plays} && view.age !== null && view.age < 3000"));
    }
    // Another resolution, without any action by the viewer.
    open("/change/?mode=mse");
    browser.wait("the first picture", &format!("{plays} && view.width === 640"));
    drop(change);
    let _change = picture(&relay, "change", "320x240", 25, &["-an"]);
    browser.wait("the other one", "view.width === 320");
    browser.run("view.frames = 0;");
    browser.wait("it goes on", &format!("{plays} && document.getElementById('video').videoWidth === 320"));
}

#[test]
fn firefox_plays_what_cameras_send() {
    if !firefox::is_there() {
        return cannot_run("firefox-esr is not installed (tests/run installs it)");
    }
    let _turn = beside_others();
    let relay = relay_of(&[("test", "test"), ("aac", "publish"), ("hevc", "publish")], "");
    let http = http_address(&relay);
    let _aac = picture(&relay, "aac", "320x240", 25, &["-c:a", "aac"]);
    let (_, hevc, ..) = PUBLISHED[0];
    let _hevc = publisher(&relay, "hevc", hevc);
    for name in ["test", "aac", "hevc"] {
        let url = relay.url(&format!("/{name}"));
        wait_until(name, DEADLINE, || Client::connect(relay.address()).describe(&url).status == 200);
    }
    let browser = Firefox::start(1280, 900);
    let plays = "view.frames > 20 && view.state === 'playing' && view.age !== null && view.age < 3000";
    let sound = "document.getElementById('video').mozHasAudio && !document.getElementById('video').muted \
        && document.getElementById('sound').getAttribute('aria-pressed') === 'true'";
    for name in ["test", "aac", "hevc"] {
        browser.open(&format!("http://{http}/{name}/?mode=mse"));
        browser.wait(name, &format!("view.mode === 'mse' && {plays}"));
        if name == "test" {
            browser.wait("it is the pattern", &right_pixels("document.getElementById('video')"));
        }
        browser.run("document.getElementById('sound').click(); view.frames = 0;");
        browser.wait(&format!("{name} with sound"), &format!("{plays} && {sound}"));
    }
}
