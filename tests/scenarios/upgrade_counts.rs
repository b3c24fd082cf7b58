//! SIGUSR2: counts go on in another process, and the command is told the truth about it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;

use crate::harness::http::{get, http_address};
use crate::harness::machine::{beside_others, cannot_run, is_root};
use crate::harness::program::Program;
use crate::harness::relay::{Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::websocket::watch;
use crate::harness::{DEADLINE, SYSTEM_PYTHON, wait_until};
use crate::upgrade::{PATIENT, STREAMS, Upgraded, serving};

/// The series of `/metrics` that only grow, with their values.
fn growing(metrics: &str) -> BTreeMap<String, f64> {
    let kind = |line: &str, kind: &str| {
        let named = line.strip_prefix("# TYPE ")?.strip_suffix(kind)?;
        Some(named.trim_end().to_owned())
    };
    let counters: BTreeSet<_> = metrics.lines().filter_map(|line| kind(line, " counter")).collect();
    let histograms: BTreeSet<_> = metrics.lines().filter_map(|line| kind(line, " histogram")).collect();
    let grows = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"].into_iter().filter_map(|part| name.strip_suffix(part));
        counters.contains(name) || parts.into_iter().any(|name| histograms.contains(name))
    };
    let series = metrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        grows(series.split('{').next()?).then(|| (series.to_owned(), value.parse().expect("a number")))
    });
    series.collect()
}

#[test]
fn counts_do_not_go_back() {
    let _turn = beside_others();
    let relay = Upgraded::start(&format!("http = \"127.0.0.1:0\"\n{PATIENT}{STREAMS}"));
    let http = http_address(&relay.relay);
    serving(&relay, "/pattern");
    let mut player = relay.relay.player("/pattern");
    let mut watcher = watch(http, "/+live/pattern");
    watcher.fragment(0);
    // One that has left, an unknown stream, and what is no RTSP.
    let mut gone = relay.relay.player("/pattern");
    gone.request("TEARDOWN", &relay.relay.url("/pattern"), &[]).expect(200);
    Client::connect(relay.relay.address()).describe(&relay.relay.url("/nowhere")).expect(404);
    let mut noise = Client::connect(relay.relay.address());
    noise.send_raw(b"noise\r\n\r\n");
    assert!(noise.is_closed());
    let counts = || growing(&get(http, "/metrics").1);
    let of = |counts: &BTreeMap<String, f64>, series: &str| {
        *counts.get(&format!("rtsprelay_{series}")).unwrap_or_else(|| panic!("no {series} in {counts:?}"))
    };
    let teardowns = "clients_left_total{stream=\"pattern\",reason=\"teardown\"}";
    wait_until("all of that is counted", DEADLINE, || {
        let counts = counts();
        let frames = of(&counts, "source_frames_total{stream=\"pattern\"}");
        frames > 120.0 && of(&counts, teardowns) == 1.0 && of(&counts, "malformed_total") == 1.0
    });
    for _ in 0..2 {
        let before = counts();
        relay.upgrade();
        let after = counts();
        for (series, value) in &before {
            let now = after.get(series).unwrap_or_else(|| panic!("there is no {series} any more"));
            assert!(now >= value, "{series} went back from {value} to {now}");
        }
        (0..30).for_each(|_| drop(player.frame_on(0)));
        player.request("GET_PARAMETER", &relay.relay.url("/pattern"), &[]).expect(200);
        watcher.fragment(0);
        let later = counts();
        for series in [
            "all_sent_bytes_total",
            "send_operations_total",
            "requests_total",
            "sent_bytes_total{stream=\"pattern\"}",
            "source_frames_total{stream=\"pattern\"}",
            "relay_latency_seconds_count{stream=\"pattern\"}",
        ] {
            assert!(of(&later, series) > of(&before, series) && of(&before, series) > 0.0, "{series}");
        }
        for (series, count) in [
            (teardowns, 1.0),
            ("clients_joined_total{stream=\"pattern\",transport=\"tcp\"}", 2.0),
            ("clients_joined_total{stream=\"pattern\",transport=\"websocket\"}", 1.0),
            ("limited_total{reason=\"unknown_stream\"}", 1.0),
            ("malformed_total", 1.0),
        ] {
            assert_eq!(of(&later, series), count, "{series}");
        }
        // What the process before has counted does not look like a burst.
        let fps = || serde_json::from_str::<Value>(&get(http, "/status").1).unwrap()["streams"][0]["fps"].as_f64();
        wait_until("frames are counted for an interval", DEADLINE, || {
            let fps = fps().unwrap_or(0.0);
            assert!(fps < of(&before, "source_frames_total{stream=\"pattern\"}"), "{fps} frames a second");
            fps > 10.0
        });
    }
}

#[test]
fn strangers_are_not_believed_about_the_outcome() {
    if !is_root() {
        return cannot_run("another user needs root");
    }
    let _turn = beside_others();
    let relay = Upgraded::start(STREAMS);
    serving(&relay, "/pattern");
    relay.has_other_shards();
    // Somebody else says that all went well, all the time.
    let says = format!(
        "import socket, time\n\
         s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         print('says so', flush=True)\n\
         heard = False\n\
         while True:\n\
         \x20   try:\n\
         \x20       s.sendto(b'+a lie', socket.MSG_DONTWAIT, '\\0rtsprelay-upgrade-{}')\n\
         \x20       if not heard: print('heard', flush=True)\n\
         \x20       heard = True\n\
         \x20   except OSError: pass\n\
         \x20   time.sleep(0.0005)\n",
        relay.pid()
    );
    let mut stranger = Command::new(SYSTEM_PYTHON);
    stranger.args(["-c", &says]).uid(65_534).gid(65_534);
    let stranger = Program::start(stranger);
    wait_until("the stranger speaks", DEADLINE, || stranger.stdout.text().contains("says so"));
    // Until the stranger has been heard.
    wait_until("the stranger is heard", DEADLINE, || {
        let asked = command(Uring::Unused, &["upgrade", "--pid", &relay.pid().to_string()]);
        let refused = Program::start(asked).finish(DEADLINE);
        let told = refused.stderr.contains("it would have 3 shards");
        assert!(refused.status.code() == Some(1) && told && !refused.stdout.contains("a lie"), "{refused:?}");
        stranger.stdout.text().contains("heard")
    });
}
