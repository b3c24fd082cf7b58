//! What the relay reports over HTTP.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rtsprelay::source::stamp;

use crate::harness::http::{get, http_address, value};
use crate::harness::machine::{beside_others, snmp};
use crate::harness::program::run;
use crate::harness::relay::{BINARY, Relay, Uring, command};
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, wait_until};

fn demo() -> Relay {
    let arguments = ["demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--report-every", "200ms"];
    Relay::start(command(Uring::AsAsked, &arguments)).serving("/")
}

#[test]
fn metrics_status_and_health_tell_of_a_client() {
    let _turn = beside_others();
    let relay = demo();
    let http = http_address(&relay);
    let retransmitted_segments = || snmp("Tcp", "RetransSegs");
    let retransmitted = retransmitted_segments();
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/"));
    for _ in 0..5 {
        client.frame_on(0);
    }
    assert_eq!(get(http, "/healthz"), (200, "ok\n".into()));
    assert_eq!(get(http, "/nothing").0, 404);

    let mut status = serde_json::Value::Null;
    wait_until("the status knows the client's latency", DEADLINE, || {
        client.frame_on(0);
        status = serde_json::from_str(&get(http, "/status").1).expect("JSON");
        status["total"]["clients"] == 1 && status["clients"][0]["p99_us"].as_u64() > Some(0)
    });
    let told = &status["clients"][0];
    assert_eq!((told["stream"].as_str(), told["transport"].as_str()), (Some("test"), Some("tcp")), "{status}");
    assert_eq!(told["address"].as_str(), Some(client.stream().local_addr().unwrap().to_string().as_str()));
    assert!(told["rtt_us"].as_u64() > Some(0), "{status}");
    assert!(told["bytes_total"].as_u64() > Some(0), "{status}");
    // None, except on a machine so busy that acknowledgements are late.
    let retransmitted = retransmitted_segments() - retransmitted;
    assert!(told["retransmits_total"].as_u64().is_some_and(|told| told <= retransmitted), "{status}");

    let mut metrics = String::new();
    wait_until("an interval with sends is over", DEADLINE, || {
        client.frame_on(0);
        metrics = get(http, "/metrics").1;
        metrics.contains("rtsprelay_relay_latency_p99_seconds{")
    });
    assert_eq!(value(&metrics, "rtsprelay_clients{stream=\"test\",transport=\"tcp\"}"), 1.0);
    assert_eq!(value(&metrics, "rtsprelay_source_up{stream=\"test\"}"), 1.0);
    assert!(value(&metrics, "rtsprelay_relay_latency_p99_seconds{stream=\"test\"}") > 0.0);
    assert!(value(&metrics, "rtsprelay_requests_total") >= 4.0);
    let all = value(&metrics, "rtsprelay_relay_latency_seconds_bucket{stream=\"test\",le=\"+Inf\"}");
    assert_eq!(all, value(&metrics, "rtsprelay_relay_latency_seconds_count"));
}

#[test]
fn promtool_has_nothing_to_say_about_the_metrics() {
    let _turn = beside_others();
    let relay = demo();
    let _client = relay.player("/");
    let http = http_address(&relay);
    wait_until("the first interval is over", DEADLINE, || get(http, "/metrics").1.contains("latency_p99_seconds{"));
    let metrics = get(http, "/metrics").1;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of the package prometheus");
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn top_shows_the_table_of_a_running_relay() {
    let _turn = beside_others();
    let relay = demo();
    let client = relay.player("/");
    let http = http_address(&relay).to_string();
    wait_until("top shows the stream and its client", DEADLINE, || {
        let shown = run(DEADLINE, BINARY, &["top", "--http", &http]);
        assert_eq!(shown.status.code(), Some(0), "{shown:#?}");
        assert!(shown.stdout.contains("STREAM") && shown.stdout.contains("test"), "{shown:#?}");
        shown.stdout.contains(&client.stream().local_addr().unwrap().to_string())
    });
    let nobody = run(DEADLINE, BINARY, &["top", "--http", "127.0.0.1:9"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(nobody.stderr.contains("http ="), "{nobody:#?}");
}

#[test]
fn the_histogram_tells_of_twenty_milliseconds_put_in() {
    let _turn = crate::harness::machine::alone();
    let arguments =
        ["demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--report-every", "1s", "--test-delay", "20ms"];
    let relay = Relay::start(command(Uring::AsAsked, &arguments)).serving("/");
    let http = http_address(&relay);
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/"));
    let mut p50 = 0;
    // The first interval contains the cached start; a busy machine may need another.
    wait_until("an interval whose p50 is 20 ms ± 1", DEADLINE, || {
        for _ in 0..10 {
            client.frame_on(0);
        }
        let status: serde_json::Value = serde_json::from_str(&get(http, "/status").1).expect("JSON");
        let sends = status["total"]["sends"].as_u64().unwrap_or(0);
        p50 = status["total"]["p50_us"].as_u64().unwrap_or(0);
        sends >= 20 && (19_000..=21_000).contains(&p50)
    });
    println!("p50 of the relay latency with 20 ms put in: {p50} µs");
}

/// The 99th percentile of the values.
fn p99(mut latencies: Vec<Duration>) -> Duration {
    latencies.sort();
    latencies[(latencies.len() * 99).div_ceil(100) - 1]
}

/// The relay's measurement and its players', for the same frames, in windows of a second. The median of the p99s' ratio
/// decides. If it is too large, more windows follow: on a machine with other load a single one measures that load.
#[test]
fn the_relay_tells_of_no_more_than_fifty_players_measure() {
    const PLAYERS: usize = 50;
    const WINDOWS: usize = 3;
    const WINDOWS_MAX: usize = 9;
    // No more than the rounding of the histogram's buckets.
    const RATIO_MAX: f64 = 1.002;
    let _turn = crate::harness::machine::alone();
    let addresses = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    // Two shards with about 25 players each: submissions that are long enough to timestamp their end, and concurrent players.
    let arguments = [&["demo", "--report-every", "5s", "--workers", "2"], &addresses[..]].concat();
    let relay = Relay::start(command(Uring::AsAsked, &arguments)).serving("/");
    let http = http_address(&relay);
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let measured = std::thread::scope(|scope| {
        for _ in 0..PLAYERS {
            scope.spawn(|| {
                let mut client = Client::connect(relay.address());
                // Only frames with a stamp, so that both sides measure the same sends.
                let video = tracks(&client.describe(&relay.url("/")).expect(200)).remove(0);
                client.setup(&video, 0, 1).expect(200);
                client.play(&relay.url("/")).expect(200);
                while !stop.load(Ordering::Relaxed) {
                    let frame = client.frame_on(0);
                    let stamp = frame.iter().find_map(|packet| stamp::find(packet.payload())).expect("a stamp");
                    let mine = (Instant::now(), stamp.age(SystemTime::now()));
                    seen.lock().unwrap().push(mine);
                }
            });
        }
        let (mut told, mut measured): (_, Vec<(f64, Duration, Duration)>) = (Vec::new(), Vec::new());
        let decided = |measured: &[(f64, Duration, Duration)]| {
            measured.len() >= WINDOWS && (measured[measured.len() / 2].0 <= RATIO_MAX || measured.len() >= WINDOWS_MAX)
        };
        while !decided(&measured) {
            assert!(told.len() < 4 * WINDOWS_MAX, "hardly a second in which every player got its frames");
            let mut status = serde_json::Value::Null;
            wait_until("another report", DEADLINE, || {
                status = serde_json::from_str(&get(http, "/status").1).expect("JSON");
                status["report"] == "interval" && told.last() != Some(&status["ts"])
            });
            let end = Instant::now();
            told.push(status["ts"].clone());
            let sends = status["total"]["sends"].as_u64().unwrap_or(0);
            // The first intervals contain the players' starts.
            if told.len() < 2 || sends < PLAYERS as u64 * 120 {
                continue;
            }
            let inside = Duration::from_micros(status["total"]["p99_us"].as_u64().expect("a p99"));
            let begin = end - Duration::from_secs_f64(status["span_s"].as_f64().expect("a span"));
            let within = |(at, latency): &(Instant, Duration)| (*at >= begin && *at < end).then_some(*latency);
            let outside = p99(seen.lock().unwrap().iter().filter_map(within).collect());
            println!("p99 of {sends} sends: {inside:?} told, {outside:?} measured by {PLAYERS} players");
            measured.push((inside.as_secs_f64() / outside.as_secs_f64(), inside, outside));
            measured.sort_by(|one, other| one.0.total_cmp(&other.0));
        }
        stop.store(true, Ordering::Relaxed);
        measured
    });
    let (ratio, inside, outside) = measured[measured.len() / 2];
    println!("the median window: the relay tells {inside:?}, players measure {outside:?}, {ratio:.2} of it");
    assert!(ratio <= RATIO_MAX, "the relay reports {ratio:.2} of what players measure: {measured:?}");
}
