//! tshark finds no malformed packet and no sequence error in what the relay sends, and sees the configured DSCP mark.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::machine::{beside_others, has_own_network};
use crate::harness::program::{Program, run};
use crate::harness::{DEADLINE, scratch_file, servers, wait_until};

/// UDP ports of the player.
const PORTS: (u16, u16) = (20_000, 20_003);

/// Expedited forwarding (RFC 3246).
const DSCP: u8 = 46;

fn read_without_fault(transport: &str) {
    // A network for this thread and its children.
    if !has_own_network() {
        return;
    }
    // Datagrams are captured, not the runs of them that a sender passes to the kernel.
    run(DEADLINE, "ethtool", &["-K", "lo", "tx-udp-segmentation", "off"]).expect_silent_success();
    // Not the demo: tshark misreads the emulation prevention bytes in its SPS, in the SDP and in RTP alike.
    let relay = servers::relayed_with(&["x264"], &format!("dscp = {DSCP}"));
    let (url, port, (first, last)) = (relay.url("/"), relay.address().port(), PORTS);
    let file = scratch_file("capture.pcapng");
    let mut command = Command::new("dumpcap");
    let filter = format!("tcp port {port} or udp portrange {first}-{last}");
    command.args(["-q", "-i", "lo", "-B", "64", "-f", &filter, "-w"]).arg(&file);
    let mut capture = Program::start(command);
    wait_until("dumpcap captures", DEADLINE, || {
        assert!(capture.ended().is_none(), "dumpcap ended: {}", capture.stderr.text());
        capture.stderr.text().contains("File:")
    });
    let (min, max) = (first.to_string(), last.to_string());
    let mut arguments = vec!["-nostdin", "-v", "error", "-rtsp_transport", transport];
    if transport == "udp" {
        arguments.extend(["-min_port", &min, "-max_port", &max]);
    }
    arguments.extend(["-i", &url, "-t", "5", "-f", "null", "-"]);
    run(DEADLINE, "ffmpeg", &arguments).expect_silent_success();
    // When dumpcap has ended, everything that it took from the kernel is in the file; nothing shows when it has taken all.
    std::thread::sleep(Duration::from_millis(200));
    capture.signal(Signal::SIGINT);
    let captured = capture.finish(DEADLINE);
    assert!(captured.status.success(), "{captured:#?}");
    assert!(captured.stderr.contains("(100.0%)"), "the capture has holes: {captured:#?}");

    let path = file.to_str().unwrap();
    let as_rtsp = format!("tcp.port=={port},rtsp");
    let tshark = |arguments: &[&str]| {
        let mut all = vec!["-n", "-r", path, "-d", &as_rtsp];
        all.extend(arguments);
        let finished = run(DEADLINE * 2, "tshark", &all);
        assert!(finished.status.success(), "{finished:#?}");
        finished.stdout
    };
    let faults = tshark(&["-Y", "_ws.malformed or _ws.short or (_ws.expert.severity == error)"]);
    assert_eq!(faults, "", "faults of {path}");
    for method in ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"] {
        assert_ne!(tshark(&["-Y", &format!("rtsp.method == \"{method}\"")]), "", "no {method} in {path}");
    }
    assert_ne!(tshark(&["-Y", "rtcp.pt == 200"]), "", "no sender report in {path}");

    let marks = tshark(&[
        "-Y",
        &format!("(tcp.srcport == {port} and tcp.len > 0) or udp.dstport in {{{first}..{last}}}"),
        "-T",
        "fields",
        "-e",
        "ip.dsfield.dscp",
    ]);
    let marks: std::collections::BTreeSet<&str> = marks.lines().collect();
    assert_eq!(marks.into_iter().collect::<Vec<_>>(), [DSCP.to_string()], "marks in {path}");

    // Checks every packet of every stream ourselves.
    // Those to the player: ffmpeg itself sends an empty packet from each of its ports, to open firewalls.
    let to_player = format!("rtp and (tcp.srcport == {port} or udp.dstport in {{{first}..{last}}})");
    let fields = tshark(&["-Y", &to_player, "-T", "fields", "-e", "rtp.ssrc", "-e", "rtp.seq"]);
    let mut streams = std::collections::BTreeMap::<String, Vec<u16>>::new();
    for line in fields.lines() {
        let (ssrcs, seqs) = line.split_once('\t').expect("two columns");
        for (ssrc, seq) in ssrcs.split(',').zip(seqs.split(',')) {
            streams.entry(ssrc.to_string()).or_default().push(seq.parse().expect("a sequence number"));
        }
    }
    assert_eq!(streams.len(), 2, "video and audio: {:?}", streams.keys());
    for (ssrc, seqs) in &streams {
        assert!(seqs.len() > 100, "{ssrc}: {} packets", seqs.len());
        for pair in seqs.windows(2) {
            assert_eq!(pair[1], pair[0].wrapping_add(1), "{ssrc} in {path}");
        }
    }
    // tshark's statistics miscount packets that share a TCP segment (for any server); for datagrams they are right.
    if transport == "udp" {
        let judgement = tshark(&["-q", "-z", "rtp,streams"]);
        for ssrc in streams.keys() {
            let lost_nothing = |line: &str| line.to_lowercase().contains(ssrc.as_str()) && line.contains(" 0 (0.0%)");
            assert!(judgement.lines().any(lost_nothing), "{ssrc}: {judgement}");
        }
    }
    std::fs::remove_file(&file).expect("the capture file");
}

#[test]
fn reads_interleaved_packets_without_fault() {
    let _turn = beside_others();
    read_without_fault("tcp");
}

#[test]
fn reads_datagrams_without_fault() {
    let _turn = beside_others();
    read_without_fault("udp");
}
