//! Reports as served by `/status`, and parsed by `rtsprelay top`.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::lines;
use super::report::{Flow, HISTOGRAM_OCTAVES, Percentiles, Report, Scope, StreamReport, Totals};
use super::{ClientSnapshot, DropReason, SourceDrop, TlsCounts, TlsOutcome};
use crate::egress::EgressStats;
use crate::media::SourceState;

/// The report's JSON with its histogram and the clients. `name` returns a stream's name.
pub fn status(
    report: &Report,
    clients: &[ClientSnapshot],
    name: impl Fn(&ClientSnapshot) -> String,
) -> Map<String, Value> {
    let mut object = lines::object(report);
    object.insert("histogram".into(), json!(report.histogram.as_slice()));
    let micros = |duration: Option<Duration>| duration.map(|duration| duration.as_micros() as u64);
    let now = report.at;
    let clients = clients.iter().map(|client| {
        json!({
            "address": client.peer.to_string(),
            "stream": name(client),
            "session": client.session,
            "transport": client.transport.name(),
            "tls": client.tls,
            "user_agent": client.user_agent,
            "since": lines::rfc3339(now.checked_sub(client.playing).unwrap_or(now)),
            "playing_s": client.playing.as_secs(),
            "bytes_total": client.bytes,
            "lag_ms": client.lag.as_millis() as u64,
            "skips_total": client.skips,
            "p99_us": micros(client.p99),
            "rtt_us": micros(client.rtt),
            "retransmits_total": client.retransmits,
            "rr_fraction_lost": client.reception.map(|is| is.fraction_lost),
            "rr_lost_total": client.reception.map(|is| is.lost),
            "rr_jitter_us": client.reception.map(|is| is.jitter.as_micros() as u64),
        })
    });
    object.insert("clients".into(), clients.collect());
    object
}

/// The processes that carry TLS connections on for this one, and those connections.
pub fn carriers(processes: usize, connections: usize) -> Value {
    json!({ "processes": processes, "connections": connections })
}

/// The state of TLS: current connections, and counts since startup by [`TlsOutcome`].
pub fn tls(counts: &TlsCounts) -> Value {
    let outcomes = TlsOutcome::ALL.iter().map(|&outcome| (outcome.name().to_owned(), json!(counts.total(outcome))));
    json!({
        "half_open": counts.half_open(),
        "connections": counts.carried(),
        "handshakes_total": Map::from_iter(outcomes),
    })
}

/// Parses the output of [`status`]; `None` if it is something else.
pub fn report(status: &Value) -> Option<Report> {
    let seconds = |name: &str| Duration::try_from_secs_f64(status.get(name)?.as_f64()?).ok();
    let streams = status.get("streams")?.as_array()?.iter().map(stream).collect::<Option<Vec<_>>>()?;
    let total = status.get("total")?;
    let number = |name: &str| total.get(name).and_then(Value::as_u64).unwrap_or(0);
    let mut histogram = [0; HISTOGRAM_OCTAVES];
    for (into, count) in histogram.iter_mut().zip(status.get("histogram")?.as_array()?) {
        *into = count.as_u64()?;
    }
    Some(Report {
        scope: Scope::Interval,
        at: SystemTime::now(),
        uptime: seconds("uptime_s")?,
        span: seconds("span_s")?,
        streams,
        total: Totals {
            flow: flow(total)?,
            connections: number("connections"),
            sessions: number("sessions"),
            in_flight: number("sends_in_flight"),
            egress: EgressStats {
                operations: number("operations_total"),
                submits: number("submits_total"),
                submits_refused: number("submits_refused_total"),
                zero_copy: number("zero_copy_total"),
                zero_copy_copied: number("zero_copy_copied_total"),
                zero_copy_refused: number("zero_copy_refused_total"),
            },
            silent_shards: number("silent_shards") as usize,
        },
        histogram,
    })
}

fn stream(value: &Value) -> Option<StreamReport> {
    let name = value.get("stream")?.as_str()?;
    let state = value.get("state")?.as_str()?;
    let state = SourceState::ALL.iter().copied().find(|known| known.name() == state).unwrap_or(SourceState::Down);
    let mut drops = [0; DropReason::COUNT];
    for reason in DropReason::ALL {
        let count = value.get(format!("dropped_{}_total", reason.name()));
        drops[reason.index()] = count.and_then(Value::as_u64).unwrap_or(0);
    }
    let mut source_drops = [0; SourceDrop::COUNT];
    for reason in SourceDrop::ALL {
        let count = value.get(format!("source_dropped_{}_total", reason.name()));
        source_drops[reason.index()] = count.and_then(Value::as_u64).unwrap_or(0);
    }
    Some(StreamReport {
        // A server that answers must not be able to write arbitrary data to the terminal.
        name: name.chars().filter(char::is_ascii_graphic).collect(),
        state,
        // For a report that was parsed, only the state is shown.
        since: None,
        next_try_in: None,
        fault: value.get("fault").and_then(Value::as_str).map(printable),
        failures: value.get("failures_total").and_then(Value::as_u64).unwrap_or(0),
        fps: value.get("fps")?.as_f64()?,
        unread: value.get("unread_bytes").and_then(Value::as_u64),
        flow: flow(value)?,
        drops,
        source_drops,
        encodings: [None, None],
    })
}

/// Text from elsewhere in a form that is safe for a terminal: one column per character, and no control characters.
pub fn printable(text: &str) -> String {
    text.chars().map(|char| if char == ' ' || char.is_ascii_graphic() { char } else { '?' }).collect()
}

fn flow(value: &Value) -> Option<Flow> {
    let count = |name: &str| value.get(name).and_then(Value::as_u64);
    let latency = |name: &str| count(name).map(Duration::from_micros);
    Some(Flow {
        in_bps: value.get("in_bps")?.as_f64()?,
        out_bps: value.get("out_bps")?.as_f64()?,
        clients_tcp: count("clients_tcp")?,
        clients_udp: count("clients_udp")?,
        clients_multicast: count("clients_multicast")?,
        clients_websocket: count("clients_websocket").unwrap_or(0),
        joined: count("joined_total")?,
        latency: Percentiles {
            count: count("sends")?,
            p50: latency("p50_us"),
            p90: latency("p90_us"),
            p99: latency("p99_us"),
            p999: latency("p999_us"),
            max: latency("max_us"),
        },
        lag: Duration::from_millis(count("lag_ms")?),
        skips: count("skips")?,
        skips_total: count("skips_total")?,
        lost_total: count("lost_total")?,
        reconnects_total: count("reconnects_total")?,
        dropped_total: count("dropped_total")?,
        bytes_total: count("bytes_total")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{StreamId, TrackId};
    use crate::metrics::testing;
    use crate::metrics::{Reception, Transport};

    #[test]
    fn what_is_served_is_read_back() {
        let client = ClientSnapshot {
            peer: "192.0.2.7:4711".parse().unwrap(),
            session: "00000000000000ff".into(),
            user_agent: Some("ffplay".into()),
            playing: Duration::from_secs(90),
            stream: StreamId::first(0),
            transport: Transport::Tcp,
            tls: false,
            bytes: 12,
            lag: Duration::from_millis(3),
            skips: 1,
            p99: Some(Duration::from_micros(400)),
            rtt: None,
            retransmits: None,
            reception: Some(Reception {
                track: TrackId(0),
                fraction_lost: 0.25,
                lost: 7,
                jitter: Duration::from_millis(2),
            }),
        };
        let was = testing::report();
        let served = Value::Object(status(&was, &[client], |_| "front".into()));
        assert_eq!(served["clients"][0]["since"], "2023-11-14T22:11:50.000Z");
        assert_eq!(served["clients"][0]["user_agent"], "ffplay");
        let documented = include_str!("../../docs/METRICS.md");
        for name in served["clients"][0].as_object().unwrap().keys() {
            assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/METRICS.md");
        }
        let reported = ["rr_fraction_lost", "rr_lost_total", "rr_jitter_us"].map(|name| &served["clients"][0][name]);
        assert_eq!(reported, [&json!(0.25), &json!(7), &json!(2_000)]);
        let is = report(&served).expect("a report");
        assert_eq!((is.streams[0].flow.latency, is.histogram), (was.streams[0].flow.latency, was.histogram));
        assert_eq!((is.streams[1].state, &is.streams[1].fault), (was.streams[1].state, &was.streams[1].fault));
        assert_eq!(is.total, Totals { flow: Flow { in_bps: 4_012_000.0, ..was.total.flow.clone() }, ..was.total });
        assert_eq!(report(&json!({"streams": []})), None);
        for state in [SourceState::Silent, SourceState::Idle, SourceState::Connecting] {
            let mut was = testing::report();
            was.streams[0].state = state;
            let served = Value::Object(status(&was, &[], |_| String::new()));
            assert_eq!(report(&served).expect("a report").streams[0].state, state);
        }
    }
}
