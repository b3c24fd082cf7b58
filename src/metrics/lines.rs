//! Reports as lines for programs: logfmt and JSON, with the same names.
//!
//! Names end in their unit (`_us`, `_ms`, `_bps`, `_s`), or in `_total` for counts since startup, and never change their meaning. Rates
//! and latencies cover `span_s` seconds: the time since the last report, or the whole run in a summary.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::report::{Flow, Percentiles, Report, Scope, StreamReport};
use super::{DropReason, SourceDrop};
use crate::escape::{self, is_word};

/// A time in RFC 3339, UTC, with milliseconds.
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a Gregorian date, in eras of 400 years that start on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// `name=value` lines: one per stream, then one for all. Values with spaces are quoted. Drop reasons with a count of zero are omitted.
pub fn logfmt(report: &Report) -> String {
    let mut out = String::new();
    for fields in lines(report) {
        for (index, (name, value)) in fields.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            if (name.contains("dropped_") && name != "dropped_total" && text == "0") || value.is_null() {
                continue;
            }
            // Writing to a string cannot fail.
            let _ = if is_word(&text) {
                write!(out, "{space}{name}={text}")
            } else {
                write!(out, "{space}{name}={text:?}")
            };
        }
        out.push('\n');
    }
    out
}

/// One JSON object on one line: the fields of the logfmt lines under `streams` and `total`.
pub fn json(report: &Report) -> String {
    escape::json(format!("{}\n", Value::Object(object(report))))
}

/// The object of [`json`].
pub fn object(report: &Report) -> Map<String, Value> {
    let mut lines = lines(report);
    let mut total = lines.pop().expect("the last line is that of all streams");
    let mut object = Map::new();
    for name in ["ts", "report", "uptime_s", "span_s"] {
        if let Some(at) = total.iter().position(|(field, _)| field == name) {
            object.insert(name.into(), total.remove(at).1);
        }
    }
    let streams = lines.into_iter().map(|fields| {
        let own = fields.into_iter().filter(|(name, _)| !object.contains_key(name));
        Value::Object(own.collect())
    });
    let streams = streams.collect();
    object.insert("streams".into(), Value::Array(streams));
    object.insert("total".into(), Value::Object(total.into_iter().collect()));
    object
}

type Fields = Vec<(String, Value)>;

/// The fields of every line, in their order.
fn lines(report: &Report) -> Vec<Fields> {
    let scope = match report.scope {
        Scope::Interval => "interval",
        Scope::Summary => "summary",
    };
    let head = |fields: &mut Fields| {
        put(fields, "ts", rfc3339(report.at));
        put(fields, "report", scope);
        put(fields, "uptime_s", seconds(report.uptime));
        put(fields, "span_s", seconds(report.span));
    };
    let mut lines: Vec<_> = report
        .streams
        .iter()
        .map(|stream| {
            let mut fields = Fields::new();
            head(&mut fields);
            stream_fields(&mut fields, stream);
            fields
        })
        .collect();
    let mut fields = Fields::new();
    head(&mut fields);
    put(&mut fields, "streams", report.streams.len());
    flow(&mut fields, &report.total.flow);
    put(&mut fields, "connections", report.total.connections);
    put(&mut fields, "sessions", report.total.sessions);
    put(&mut fields, "sends_in_flight", report.total.in_flight);
    put(&mut fields, "operations_total", report.total.egress.operations);
    put(&mut fields, "submits_total", report.total.egress.submits);
    put(&mut fields, "submits_refused_total", report.total.egress.submits_refused);
    put(&mut fields, "zero_copy_total", report.total.egress.zero_copy);
    put(&mut fields, "zero_copy_copied_total", report.total.egress.zero_copy_copied);
    put(&mut fields, "zero_copy_refused_total", report.total.egress.zero_copy_refused);
    put(&mut fields, "silent_shards", report.total.silent_shards);
    lines.push(fields);
    lines
}

fn stream_fields(fields: &mut Fields, stream: &StreamReport) {
    put(fields, "stream", stream.name.as_str());
    put(fields, "state", stream.state.name());
    put(fields, "since", stream.since.map(rfc3339));
    put(fields, "fps", tenths(stream.fps));
    put(fields, "unread_bytes", stream.unread);
    flow(fields, &stream.flow);
    for reason in DropReason::ALL {
        put(fields, &format!("dropped_{}_total", reason.name()), stream.drops[reason.index()]);
    }
    for reason in SourceDrop::ALL {
        put(fields, &format!("source_dropped_{}_total", reason.name()), stream.source_drops[reason.index()]);
    }
    put(fields, "failures_total", stream.failures);
    if let Some(fault) = &stream.fault {
        put(fields, "fault", fault.as_str());
    }
    if let Some(next) = stream.next_try_in {
        put(fields, "next_try_in_s", next.as_millis().div_ceil(1_000) as u64);
    }
}

fn flow(fields: &mut Fields, flow: &Flow) {
    put(fields, "in_bps", flow.in_bps.round() as u64);
    put(fields, "out_bps", flow.out_bps.round() as u64);
    put(fields, "clients", flow.clients());
    put(fields, "clients_tcp", flow.clients_tcp);
    put(fields, "clients_udp", flow.clients_udp);
    put(fields, "clients_multicast", flow.clients_multicast);
    put(fields, "clients_websocket", flow.clients_websocket);
    put(fields, "joined_total", flow.joined);
    let Percentiles { count, p50, p90, p99, p999, max } = flow.latency;
    put(fields, "sends", count);
    for (name, value) in [("p50_us", p50), ("p90_us", p90), ("p99_us", p99), ("p999_us", p999), ("max_us", max)] {
        put(fields, name, value.map(|latency| latency.as_micros() as u64));
    }
    put(fields, "lag_ms", flow.lag.as_millis() as u64);
    put(fields, "skips", flow.skips);
    put(fields, "skips_total", flow.skips_total);
    put(fields, "lost_total", flow.lost_total);
    put(fields, "reconnects_total", flow.reconnects_total);
    put(fields, "dropped_total", flow.dropped_total);
    put(fields, "bytes_total", flow.bytes_total);
}

fn put(fields: &mut Fields, name: &str, value: impl Into<Value>) {
    fields.push((name.to_owned(), value.into()));
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000.0).round() / 1_000.0
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::report;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_704_067_199, "2023-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn logfmt_is_one_line_a_stream_and_one_for_all() {
        let text = logfmt(&report());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("ts=2023-11-14T22:13:20.000Z report=interval uptime_s=83.5 span_s=1"), "{text}");
        for field in [
            " stream=front state=live since=2023-11-14T22:12:00.000Z fps=30.0 unread_bytes=1460 in_bps=4012000 out_bps=48000000 clients=12 clients_tcp=10 clients_udp=2 clients_multicast=0 clients_websocket=0",
            " sends=360 p50_us=130 p90_us=400 p99_us=950 p999_us=2400 max_us=31000 lag_ms=45 skips=1 skips_total=3",
            " dropped_total=30",
            " dropped_lagging_total=30",
            " source_dropped_late_total=4 failures_total=2",
        ] {
            assert!(lines[0].contains(field), "{field} is not in {text}");
        }
        assert!(!lines[0].contains("dropped_inbox_full"), "{text}");
        assert!(lines[1].contains("fault=\"connection refused by 192.0.2.10:554\""), "{text}");
        assert!(!lines[1].contains("p50_us"), "nothing was sent: {text}");
        assert!(lines[2].contains("streams=2") && lines[2].contains("connections=14"), "{text}");
    }

    #[test]
    fn what_a_camera_wrote_is_escaped_in_both_formats() {
        let mut report = report();
        report.streams[1].fault = Some("404 \u{202e}front\u{2028}stream=x\n".into());
        for text in [logfmt(&report), json(&report)] {
            assert!(!text.trim_end().replace('\n', "").contains(escape::is_harmful), "{text}");
            assert!(text.contains("202e") && text.contains("2028"), "{text}");
        }
        assert_eq!(logfmt(&report).lines().count(), 3);
        let value: Value = serde_json::from_str(&json(&report)).unwrap();
        assert_eq!(value["streams"][1]["fault"].as_str(), report.streams[1].fault.as_deref());
    }

    #[test]
    fn the_documentation_names_them_all() {
        let documented = include_str!("../../docs/METRICS.md");
        for (name, _) in lines(&report()).iter().flatten().filter(|(name, _)| !name.contains("dropped_")) {
            assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/METRICS.md");
        }
    }

    #[test]
    fn json_is_one_object_with_the_same_names() {
        let text = json(&report());
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1);
        let value: Value = serde_json::from_str(&text).expect("valid JSON");
        assert_eq!(value["report"], "interval");
        assert_eq!(value["streams"][0]["stream"], "front");
        assert_eq!(value["streams"][0]["p99_us"], 950);
        assert_eq!(value["streams"][0]["dropped_inbox_full_total"], 0);
        assert_eq!(value["streams"][1]["p99_us"], Value::Null);
        assert_eq!(value["total"]["clients"], 12);
        assert!(value["streams"][0].get("ts").is_none(), "told once");
    }
}
