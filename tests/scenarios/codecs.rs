//! Whatever a camera or a publisher sends passes, whether anybody has heard of it or not.

use std::process::Command;

use serde_json::Value;

use crate::harness::machine::beside_others;
use crate::harness::program::{Program, run};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Packet};
use crate::harness::servers::Encoder;
use crate::harness::{DEADLINE, test_file, wait_until};

/// Paths of the encoders' server, with what ffprobe calls the codec, if it knows one.
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

/// What is wrong with what came of a path, if anything is.
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
    // The camera's SDP, as far as it says how to read the payload.
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
