//! Whatever a camera or a publisher sends is relayed, whether the relay knows the codec or not.

use std::process::Command;

use serde_json::Value;

use crate::harness::machine::beside_others;
use crate::harness::program::{Program, run};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Packet};
use crate::harness::servers::Encoder;
use crate::harness::{DEADLINE, test_file, wait_until};

/// Paths of the encoders' server, with ffprobe's name for the codec, if it has one.
const OTHERS: [(&str, &str); 9] = [
    ("g722", "adpcm_g722"),
    ("g726", "adpcm_g726le"),
    ("l16", "pcm_s16be"),
    ("l24", "pcm_s24be"),
    ("opus", "opus"),
    ("pcma", "pcm_alaw"),
    ("pcmu", "pcm_mulaw"),
    ("ac3", "ac3"),
    ("unknown", ""),
];

#[test]
fn sound_and_data_of_every_kind_pass() {
    let _turn = beside_others();
    let encoder = Encoder::start(&["others"]);
    let mut config = "listen = [\"127.0.0.1:0\"]\nworkers = 2\n".to_owned();
    for (path, _) in OTHERS {
        config += &format!("[[stream]]\nname = \"{path}\"\nsource = \"{}\"\n", encoder.url_of(path));
    }
    let relay = Relay::configured(&config);
    // Most of the time ffprobe waits for more of the stream.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let judges: Vec<_> = OTHERS.map(|(path, codec)| scope.spawn(|| judge(&relay, path, codec))).into();
        judges.into_iter().filter_map(|judge| judge.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), encoder.complaints());
    what_nobody_knows_passes_untouched(&relay, &encoder);
}

/// What is wrong with the stream at a path, if anything.
fn judge(relay: &Relay, path: &str, codec: &str) -> Option<String> {
    let url = relay.url(&format!("/{path}"));
    wait_until(path, DEADLINE, || Client::connect(relay.address()).describe(&url).status == 200);
    let arguments = ["-v", "error", "-rtsp_transport", "tcp", "-analyzeduration", "500000", "-read_intervals", "%+2"];
    let show = ["-show_entries", "stream=codec_name:packet=size", "-of", "json", &url];
    let finished = run(DEADLINE, "ffprobe", &[&arguments[..], &show[..]].concat());
    let seen: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    let packets = seen["packets"].as_array().map_or(0, Vec::len);
    let good = seen["streams"][0]["codec_name"].as_str().unwrap_or_default() == codec && packets >= 4;
    (!good).then(|| format!("{path}: {packets} packets, {finished:?}"))
}

/// The payloads on a client's channel 0.
fn payloads(client: &mut Client) -> Vec<Vec<u8>> {
    (0..20).map(|_| client.packet_on(0)).map(|packet: Packet| packet.payload().to_vec()).collect()
}

fn what_nobody_knows_passes_untouched(relay: &Relay, encoder: &Encoder) {
    let mut direct =
        Client::connect(encoder.url_of("").trim_start_matches("rtsp://").trim_end_matches('/').parse().unwrap());
    let mut relayed = Client::connect(relay.address());
    let (tracks, _) = relayed.play_everything(&relay.url("/unknown"));
    assert_eq!((tracks[0].media.as_str(), tracks[0].encoding.as_str()), ("application", "X-GST"));
    direct.play_everything(&encoder.url_of("unknown"));
    let ours = payloads(&mut relayed);
    let its = payloads(&mut direct);
    // The camera's SDP, as far as it concerns the payload format.
    let direct_attributes = |line: &&String| line.starts_with("fmtp:") || line.starts_with("rtpmap:");
    assert_eq!(tracks[0].attributes.iter().filter(direct_attributes).count(), 2, "{tracks:?}");
    assert!(ours.iter().any(|payload| its.contains(payload)), "{ours:?}\n{its:?}");
}

fn pyav(arguments: &[&str]) -> Command {
    let mut command = Command::new(test_file("../.venv/bin/python"));
    command.arg(test_file("players/pyav_player.py")).args(arguments);
    command
}

#[test]
fn av1_is_published_pulled_and_played() {
    let _turn = beside_others();
    let config = "listen = [\"127.0.0.1:0\"]\nworkers = 1\n[[stream]]\nname = \"live\"\nsource = \"publish\"\n";
    let camera = Relay::configured(config);
    let _publisher = Program::start(pyav(&["publish", &camera.url("/live"), "tcp"]));
    let camera = camera.serving("/live");
    let relay = Relay::of(&camera.url("/live"));
    for transport in ["tcp", "udp"] {
        let player = Program::start(pyav(&["play", &relay.url("/"), transport, "50"]));
        let finished = player.finish(DEADLINE);
        let seen: Value =
            serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:#?}"));
        assert_eq!(
            (&seen["codec"], &seen["width"], &seen["height"]),
            (&"av1".into(), &320.into(), &240.into()),
            "{seen}"
        );
        let times: Vec<f64> = seen["times"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
        assert!(times.len() >= 50 && times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
        let span = times[times.len() - 1] - times[0];
        assert!(span < 1.2 * times.len() as f64 / 25.0, "frames are missing: {times:?}");
    }
}

/// ffmpeg's arguments, by the codecs' names in ffprobe.
const OLDER: [(&str, &str, &[&str]); 5] = [
    ("vp9", "libvpx-vp9", &["-deadline", "realtime", "-cpu-used", "8", "-strict", "experimental"]),
    ("mpeg4", "mpeg4", &["-bf", "2"]),
    ("mpeg2video", "mpeg2video", &["-bf", "2"]),
    ("h263", "h263", &["-ps", "1", "-rtpflags", "rfc2190"]),
    ("h263", "h263p", &[]),
];

#[test]
fn players_start_at_keyframes_of_codecs_that_few_cameras_send() {
    let _turn = beside_others();
    let mut config = "listen = [\"127.0.0.1:0\"]\nworkers = 1\n".to_owned();
    for (_, encoder, _) in OLDER {
        config += &format!("[[stream]]\nname = \"{encoder}\"\nsource = \"publish\"\n");
    }
    let relay = Relay::configured(&config);
    let _encoders: Vec<Program> = OLDER
        .iter()
        .map(|(_, encoder, more)| {
            let mut command = Command::new("ffmpeg");
            command.args(["-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=352x288:rate=25"]);
            command.args(["-c:v", encoder, "-g", "40", "-b:v", "300k"]).args(*more);
            command.args(["-f", "rtsp", "-rtsp_transport", "tcp", &relay.url(&format!("/{encoder}"))]);
            Program::start(command)
        })
        .collect();
    let relay = &relay;
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let judges: Vec<_> = OLDER
            .iter()
            .map(|(codec, encoder, _)| scope.spawn(move || starts_wrongly(relay, encoder, codec)))
            .collect();
        judges.into_iter().filter_map(|judge| judge.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is wrong with the first packets of players that start one after another, within groups of pictures.
fn starts_wrongly(relay: &Relay, encoder: &str, codec: &str) -> Option<String> {
    let url = relay.url(&format!("/{encoder}"));
    wait_until(encoder, DEADLINE, || Client::connect(relay.address()).describe(&url).status == 200);
    // A complete group of pictures.
    relay.has_sent(&format!("/{encoder}"), 50);
    if codec == "vp9" {
        // ffprobe has no flag for it. The descriptor of a picture's first packet, then frame_marker 2 and, in this
        // profile, show_existing_frame and frame_type, both 0.
        return (0..3).find_map(|_| {
            let mut client = Client::connect(relay.address());
            client.play_everything(&url);
            let first = client.packet_on(0);
            let good = first.payload()[0] & 0x08 != 0 && first.payload()[1] & 0xcc == 0x80;
            (!good).then(|| format!("{encoder}: {:x?}", &first.payload()[..8]))
        });
    }
    (0..3).find_map(|_| {
        let arguments =
            ["-v", "error", "-rtsp_transport", "tcp", "-analyzeduration", "300000", "-read_intervals", "%+#2"];
        let show = ["-show_entries", "stream=codec_name:packet=flags", "-of", "json", &url];
        let finished = run(DEADLINE, "ffprobe", &[&arguments[..], &show[..]].concat());
        let seen: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
        let flags = seen["packets"][0]["flags"].as_str().unwrap_or_default();
        let good = seen["streams"][0]["codec_name"] == codec && flags.starts_with('K');
        (!good).then(|| format!("{encoder}: {finished:?}"))
    })
}
