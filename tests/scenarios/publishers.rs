//! Encoders that publish to the relay: ffmpeg and GStreamer, over TCP and UDP, and what becomes of readers when they go.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::machine::beside_others;
use crate::harness::program::{Program, run};
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, wait_until};

fn relay(keys: &str) -> Relay {
    Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nworkers = 2\n\n[[stream]]\nname = \"live\"\nsource = \"publish\"\n{keys}\n"
    ))
}

fn ffmpeg(url: &str, transport: &str, size: &str) -> Program {
    let mut command = Command::new("ffmpeg");
    let picture = format!("testsrc2=size={size}:rate=25");
    command.args(["-v", "error", "-re", "-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", "sine=sample_rate=48000"]);
    command.args([
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        "-tune",
        "zerolatency",
        "-g",
        "25",
        "-pix_fmt",
        "yuv420p",
    ]);
    command.args(["-c:a", "aac", "-f", "rtsp", "-rtsp_transport", transport, url]);
    Program::start(command)
}

fn gstreamer(url: &str, protocol: &str) -> Program {
    let mut command = Command::new("gst-launch-1.0");
    let pipeline = format!(
        "-q videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=25/1 ! \
         x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! h264parse ! \
         rtspclientsink location={url} protocols={protocol}"
    );
    command.args(pipeline.split_whitespace());
    Program::start(command)
}

/// Reads the stream until `frames` video frames were decoded; gives their widths.
fn widths(url: &str, frames: usize) -> Vec<u32> {
    let interval = format!("%+#{frames}");
    let arguments = ["-v", "error", "-rtsp_transport", "tcp", "-select_streams", "v", "-read_intervals", &interval];
    let show = ["-show_entries", "frame=width", "-of", "csv=p=0", url];
    let finished = run(Duration::from_secs(60), "ffprobe", &[&arguments[..], &show[..]].concat());
    assert!(finished.status.success(), "{finished:#?}");
    finished.stdout.lines().filter_map(|line| line.trim_matches(',').parse().ok()).collect()
}

#[test]
fn ffmpeg_publishes_over_tcp() {
    let _turn = beside_others();
    let relay = relay("");
    let _publisher = ffmpeg(&relay.url("/live"), "tcp", "320x240");
    let relay = relay.serving("/live");
    assert!(widths(&relay.url("/live"), 50).iter().filter(|width| **width == 320).count() >= 40);
}

#[test]
fn ffmpeg_publishes_over_udp() {
    let _turn = beside_others();
    let relay = relay("");
    let _publisher = ffmpeg(&relay.url("/live"), "udp", "320x240");
    let relay = relay.serving("/live");
    assert!(widths(&relay.url("/live"), 50).iter().filter(|width| **width == 320).count() >= 40);
}

#[test]
fn gstreamer_publishes_over_tcp() {
    let _turn = beside_others();
    let relay = relay("");
    let _publisher = gstreamer(&relay.url("/live"), "tcp");
    let relay = relay.serving("/live");
    assert!(widths(&relay.url("/live"), 50).iter().filter(|width| **width == 320).count() >= 40);
}

#[test]
fn gstreamer_publishes_over_udp() {
    let _turn = beside_others();
    let relay = relay("");
    let _publisher = gstreamer(&relay.url("/live"), "udp");
    let relay = relay.serving("/live");
    assert!(widths(&relay.url("/live"), 50).iter().filter(|width| **width == 320).count() >= 40);
}

#[test]
fn readers_stay_while_the_publisher_is_away_and_see_its_new_size() {
    let _turn = beside_others();
    let relay = relay("");
    let first = ffmpeg(&relay.url("/live"), "tcp", "320x240");
    let relay = relay.serving("/live");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/live"));
    let first_packet = client.frame_on(0)[0].clone();
    let reader = std::thread::spawn(move || {
        // The same session, and the sequence goes on, up to the first packet of the new size.
        let (mut last, mut packets) = (client.packet_on(0), 0);
        assert_eq!(last.ssrc(), first_packet.ssrc());
        while packets < 500 {
            let packet = client.packet_on(0);
            assert_eq!((packet.seq(), packet.ssrc()), (last.seq().wrapping_add(1), last.ssrc()));
            (last, packets) = (packet, packets + 1);
        }
    });
    let url = relay.url("/live");
    let player = std::thread::spawn(move || widths(&url, 100));
    wait_until("the player plays", DEADLINE, || relay.printed().matches(" plays ").count() >= 2);
    // Pulling the plug: no TEARDOWN.
    first.signal(Signal::SIGKILL);
    wait_until("the relay says so", DEADLINE, || relay.printed().contains("the publisher is gone"));
    let _second = ffmpeg(&relay.url("/live"), "tcp", "640x480");
    let widths = player.join().unwrap();
    assert!(widths.contains(&320) && widths.contains(&640), "{widths:?}");
    reader.join().unwrap();
}

#[test]
fn a_second_publisher_is_refused() {
    let _turn = beside_others();
    let relay = relay("");
    let _first = ffmpeg(&relay.url("/live"), "tcp", "320x240");
    let relay = relay.serving("/live");
    let second = ffmpeg(&relay.url("/live"), "tcp", "640x480").finish(DEADLINE);
    assert!(!second.status.success() && second.stderr.contains("503"), "{second:#?}");
    let refused = "refused: another publisher sends";
    wait_until(refused, DEADLINE, || relay.printed().contains(refused));
    assert!(widths(&relay.url("/live"), 30).iter().all(|width| *width == 320));
}

#[test]
fn a_second_publisher_takes_over_where_that_is_allowed() {
    let _turn = beside_others();
    let relay = relay("takeover = true");
    let first = ffmpeg(&relay.url("/live"), "tcp", "320x240");
    let relay = relay.serving("/live");
    let _second = ffmpeg(&relay.url("/live"), "tcp", "640x480");
    let first = first.finish(DEADLINE);
    assert!(!first.status.success(), "{first:#?}");
    wait_until("the new picture", DEADLINE, || widths(&relay.url("/live"), 30).contains(&640));
}

#[test]
fn a_publisher_that_hangs_is_ended() {
    let _turn = beside_others();
    // Longer than an encoder on a busy machine may take from RECORD to its first frame.
    let relay = relay("source_timeout = \"4s\"");
    let publisher = ffmpeg(&relay.url("/live"), "tcp", "320x240");
    let relay = relay.serving("/live");
    publisher.signal(Signal::SIGSTOP);
    wait_until("the relay says so", DEADLINE, || {
        relay.printed().contains("the publisher sent nothing for the source timeout")
    });
    publisher.signal(Signal::SIGCONT);
    let ended = publisher.finish(DEADLINE);
    assert!(!ended.status.success(), "{ended:#?}");
}
