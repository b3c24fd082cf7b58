//! Real encoders behind gst-rtsp-server, as cameras.

use std::process::{Command, Stdio};
use std::time::Instant;

use super::program::Program;
use super::relay::Relay;
use super::rtsp::Client;
use super::{DEADLINE, SYSTEM_PYTHON, test_file, wait_until};

/// Frame rate of every encoder's video.
const FPS: u32 = 30;

/// RTP ticks from one to the next.
const FRAME_TICKS: u32 = 90_000 / FPS;

/// A gst-rtsp-server child with its own encoder.
pub struct Encoder {
    program: Program,
    port: u16,
    // The server exits when this closes, however the scenario ends.
    _stdin: std::process::ChildStdin,
}

impl Encoder {
    /// Starts one with these `arguments` of `tests/servers/gst_server.py`.
    pub fn start(arguments: &[&str]) -> Encoder {
        let mut command = Command::new(SYSTEM_PYTHON);
        command.arg(test_file("servers/gst_server.py")).args(arguments).stdin(Stdio::piped());
        let mut program = Program::start_fed(command);
        let stdin = program.stdin().expect("a pipe");
        let mut port = None;
        wait_until("gst-rtsp-server is ready", DEADLINE, || {
            assert!(program.ended().is_none(), "gst-rtsp-server ended: {}", program.stderr.text());
            port = program.stdout.text().split_once('\n').and_then(|(l, _)| l.strip_prefix("ready ")?.parse().ok());
            port.is_some()
        });
        Encoder { program, port: port.unwrap(), _stdin: stdin }
    }

    /// The URL of its stream.
    pub fn url(&self) -> String {
        self.url_of("cam")
    }

    /// The URL of `path`.
    pub fn url_of(&self, path: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{path}", self.port)
    }

    /// What it has complained about.
    pub fn complaints(&self) -> String {
        self.program.stderr.text()
    }
}

/// A relay with its own encoder. (gst-rtsp-server hangs when one client of a shared encoder leaves while another joins.)
pub struct Relayed {
    relay: Relay,
    _encoder: Encoder,
}

impl std::ops::Deref for Relayed {
    type Target = Relay;

    fn deref(&self) -> &Relay {
        &self.relay
    }
}

/// Relays an encoder. Returns when players can start: when each track's first packets and sender report have arrived.
///
/// Until then `RTP-Info` is an estimate, and the relation of the tracks' clocks is unknown: players shift their
/// timestamps when they learn it.
pub fn relayed(arguments: &[&str]) -> Relayed {
    relayed_with(arguments, "")
}

/// The same with a relay that is configured with these additional keys.
pub fn relayed_with(arguments: &[&str], keys: &str) -> Relayed {
    let encoder = Encoder::start(arguments);
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\n{keys}\n\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\n",
        encoder.url()
    ));
    let relay = relay.serving("/");
    let mut client = Client::connect(relay.address());
    let (tracks, _) = client.play_everything(&relay.url("/"));
    let mut channels: Vec<u8> = (0..tracks.len() as u8 * 2).collect();
    // On a busy machine the encoder may be slow with its first frames, and a live source drops what is late.
    let (mut last, mut at_rate) = (0, 0);
    let end = Instant::now() + DEADLINE;
    while !channels.is_empty() || at_rate < FPS {
        assert!(Instant::now() < end, "no second of video without a gap, or no reports of {channels:?}");
        let packet = client.packet();
        channels.retain(|channel| *channel != packet.channel);
        if packet.channel == 0 && packet.marker() {
            at_rate = if packet.rtp_time().wrapping_sub(last) < FRAME_TICKS * 3 / 2 { at_rate + 1 } else { 0 };
            last = packet.rtp_time();
        }
    }
    Relayed { relay, _encoder: encoder }
}
