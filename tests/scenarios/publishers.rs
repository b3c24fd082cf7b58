//! Encoders that publish to the relay: ffmpeg and GStreamer, over TCP and UDP, and what happens to readers when they stop.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::datagrams::Ports;
use crate::harness::machine::beside_others;
use crate::harness::program::{Program, run};
use crate::harness::publisher::{Publisher, VIDEO};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, tracks};
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

/// Reads the stream until `frames` video frames were decoded; returns their widths.
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
        // The same session, and the sequence continues, up to the first packet of the new size.
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
    wait_until("the player plays", DEADLINE, || relay.printed().matches(" started playing ").count() >= 2);
    // As if the plug was pulled: no TEARDOWN.
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
    let refused = "refused: another publisher is active";
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
    // Longer than an encoder on a busy machine takes from RECORD to its first frame.
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

#[test]
fn a_sound_track_that_ffmpeg_cannot_name_is_left_out_and_the_picture_is_published() {
    let _turn = beside_others();
    let relay = relay("");
    let mut command = Command::new("ffmpeg");
    let inputs = "-v error -re -f lavfi -i sine=sample_rate=48000 -f lavfi -i testsrc2=size=320x240:rate=25";
    let encoders =
        "-map 0 -map 1 -c:a pcm_s16le -c:v libx264 -preset ultrafast -tune zerolatency -g 25 -pix_fmt yuv420p";
    command.args(inputs.split(' ')).args(encoders.split(' '));
    // Little-endian samples have no encoding name in RTP, so ffmpeg announces a payload type without one.
    command.args(["-f", "rtsp", "-rtsp_transport", "tcp", &relay.url("/live")]);
    let _publisher = Program::start(command);
    let relay = relay.serving("/live");
    let described = Client::connect(relay.address()).describe(&relay.url("/live")).expect(200);
    let media: Vec<_> = tracks(&described).into_iter().map(|track| track.media).collect();
    assert_eq!(media, ["video"]);
    assert!(widths(&relay.url("/live"), 50).iter().filter(|width| **width == 320).count() >= 40);
    assert_eq!(
        relay.printed().matches("the track is accepted, but its packets are discarded").count(),
        1,
        "{}",
        relay.printed()
    );
}

/// How many of GStreamer 1.22's exits may fail through its own fault, with any receiver. In about one of twenty its RTP session sends
/// BYE and then does not pass on the end of the stream; in about one of five its thread writes the BYE while another thread has flushed
/// the connection for PAUSE, which it reports as a failed write, and then continues with PAUSE and TEARDOWN on the same connection.
const SPOILT_MAX: usize = 9;

/// What it prints then. Any other error is one of the relay's answers.
const WRITES_WHILE_FLUSHING: [&str; 2] =
    ["Could not write to resource.", "Could not send message. (Received end-of-file)"];

#[test]
fn gstreamers_clean_end_is_no_failure() {
    let _turn = beside_others();
    let relay = relay("source_timeout = \"4s\"");
    let pipeline = format!(
        "videotestsrc is-live=true num-buffers=25 ! video/x-raw,width=320,height=240,framerate=25/1 ! \
         x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! h264parse ! \
         rtspclientsink location={} protocols=tcp",
        relay.url("/live")
    );
    let (mut ends, mut spoilt) = (0, 0);
    for attempt in 1..=SPOILT_MAX + 3 {
        let mut command = Command::new("gst-launch-1.0");
        command.args(pipeline.split_whitespace());
        let publisher = Program::start(command);
        let gone = || relay.printed().matches("stopped publishing").count() == attempt;
        // One that hangs after its BYE is disconnected by the relay, because it is silent.
        wait_until("the relay has seen it go", DEADLINE, || {
            relay.printed().contains("the publisher is gone") || gone()
        });
        let printed = relay.printed();
        assert!(!printed.contains("the publisher is gone"), "{printed}");
        let hangs = printed.matches("stopped publishing: it sent RTCP BYE;").count();
        if hangs + spoilt + ends == attempt {
            continue;
        }
        let finished = publisher.finish(DEADLINE);
        let said = finished.stdout + &finished.stderr;
        if said.matches("ERROR").count() == 1 && WRITES_WHILE_FLUSHING.iter().all(|line| said.contains(line)) {
            spoilt += 1;
            continue;
        }
        assert!(finished.status.success() && !said.contains("ERROR"), "{said}");
        ends += 1;
        if ends == 3 {
            return;
        }
    }
    panic!("GStreamer came to its end {ends} times of {}, and spoilt {spoilt}", SPOILT_MAX + 3);
}

#[test]
fn who_may_not_publish_is_told_of_in_the_log() {
    let _turn = beside_others();
    let relay = Relay::configured(
        "listen = [\"127.0.0.1:0\"]\n\n[[stream]]\nname = \"live\"\nsource = \"publish\"\n\n\
         [[stream]]\nname = \"pulled\"\nsource = \"test\"\n\n\
         [[user]]\nname = \"viewer\"\npassword = \"secret\"\n",
    );
    for (path, status, line) in [
        ("/live", "403", "refused (403): this user may not publish that stream"),
        ("/pulled", "403", "refused (403): this user may not publish that stream"),
    ] {
        let url = format!("rtsp://viewer:secret@{}{path}", relay.address());
        let refused = ffmpeg(&url, "tcp", "320x240").finish(DEADLINE);
        assert!(!refused.status.success() && refused.stderr.contains(status), "{refused:#?}");
        wait_until(line, DEADLINE, || relay.printed().contains(line));
        assert!(!relay.printed().contains("secret"), "{}", relay.printed());
    }
    let open = self::relay("\n[[stream]]\nname = \"pulled\"\nsource = \"test\"");
    let refused = ffmpeg(&open.url("/pulled"), "tcp", "320x240").finish(DEADLINE);
    assert!(!refused.status.success() && refused.stderr.contains("405"), "{refused:#?}");
    let line = "refused (405): no stream of that name accepts a publisher";
    wait_until(line, DEADLINE, || open.printed().contains(line));
}

#[test]
fn datagrams_from_another_port_than_announced_are_told_of_once() {
    let _turn = beside_others();
    let relay = relay("");
    let url = relay.url("/live");
    let (announced, other) = (Ports::bind(), Ports::bind());
    let mut publisher = Publisher { client: Client::connect(relay.address()) };
    publisher.announce(&url, VIDEO).expect(200);
    let answer = publisher.set_up(&url, 0, &announced.transport()).expect(200);
    publisher.client.request("RECORD", &url, &[]).expect(200);
    let ports = answer.transport("server_port").expect("server_port").to_owned();
    let port: u16 = ports.split('-').next().unwrap().parse().unwrap();
    let line = "another port than the publisher announced";
    wait_until("the relay says so", DEADLINE, || {
        other.rtp.send_to(b"\x80\xe0\0\x01\0\0\0\0\0\0\0\x07\x65\x88\x80", (relay.address().ip(), port)).unwrap();
        relay.printed().contains(line)
    });
    assert!(relay.printed().contains(&format!("announced={}", announced.pair())), "{}", relay.printed());
    assert_eq!(relay.printed().matches(line).count(), 1);
}
