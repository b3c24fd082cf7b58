//! Reports as a table for people.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::DropReason;
use super::report::{Flow, HISTOGRAM_OCTAVES, Percentiles, Report, Scope, StreamReport};
use super::status::printable;
use crate::media::SourceState;

/// What is printed above the table, and the available size.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The first line, after the name and the uptime.
    pub title: String,
    /// Commands that play a stream.
    pub play: Vec<String>,
    /// Columns of the terminal; 80 if unknown.
    pub columns: usize,
    /// Rows of the terminal, or `None` for unlimited.
    pub rows: Option<usize>,
}

/// Columns for everything to the right of the stream's name.
const FIXED: usize = 67;

/// What the columns mean.
const LEGEND: &str = "FPS: frames received; IN, OUT: media received, sent; P50 to MAX: latency of the relay; \
                      LAG: of the slowest client; SKIPS: slow clients moved on to a keyframe";

/// The same for the clients' columns.
const LEGEND_OF_CLIENTS: &str = "P99: latency of the relay; RTT: round-trip time; RETR: TCP segments sent again";

/// The report as a table of at most [`Frame::columns`] columns and [`Frame::rows`] rows.
pub fn table(report: &Report, frame: &Frame) -> String {
    let columns = frame.columns;
    let name_width = columns
        .saturating_sub(FIXED + 1)
        .clamp(6, report.streams.iter().map(|stream| stream.name.len()).max().unwrap_or(0).max(6));
    let mut lines =
        vec![format!("rtsprelay {}  up {}  {}", env!("CARGO_PKG_VERSION"), clock(report.uptime), frame.title)];
    if report.scope == Scope::Summary {
        lines[0] =
            format!("rtsprelay {} ran for {}; totals since the start", env!("CARGO_PKG_VERSION"), clock(report.uptime));
    } else if !frame.play.is_empty() {
        lines.extend(frame.play.iter().enumerate().map(|(index, command)| {
            let head = if index == 0 { "play it:" } else { "     or:" };
            format!("{head} {command}")
        }));
    }
    lines.push(String::new());
    lines.push(format!(
        "{:<name_width$} {:<4} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5}",
        "STREAM", "IS", "FPS", "IN", "CLNTS", "OUT", "P50", "P99", "P99.9", "MAX", "LAG", "SKIPS"
    ));
    lines.push(format!("{:<name_width$} {:<4} {:>5} {:>5} {:>5} {:>5}", "", "", "1/s", "bit/s", "", "bit/s"));
    let tail = tail(report, columns);
    // A stream takes one row, and more if it has a problem.
    let room = frame.rows.map_or(usize::MAX, |rows| rows.saturating_sub(lines.len() + tail.len() + 1));
    let mut streams: Vec<Vec<String>> = report.streams.iter().map(|stream| rows(stream, name_width, columns)).collect();
    if streams.iter().map(Vec::len).sum::<usize>() > room {
        streams.iter_mut().for_each(|rows| rows.truncate(1));
    }
    let shown = if streams.iter().map(Vec::len).sum::<usize>() > room { room.saturating_sub(1) } else { streams.len() };
    let hidden = streams.len() - shown;
    lines.extend(streams.into_iter().take(shown).flatten());
    if hidden > 0 {
        lines.push(format!("… and {hidden} more; a taller terminal shows them"));
    }
    lines.extend(tail);
    let legend = wrapped(LEGEND, columns, ["", ""]);
    if report.scope == Scope::Interval && frame.rows.is_none_or(|rows| lines.len() + legend.len() < rows) {
        lines.extend(legend);
    }
    // A terminal too small for head and tail shows what fits.
    lines.truncate(frame.rows.map_or(usize::MAX, |rows| rows.saturating_sub(1).max(1)));
    let mut out = String::new();
    for line in lines {
        let cut: String = line.chars().take(columns).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}", cut.trim_end());
    }
    out
}

/// The clients of a status in at most `rows` rows, the most lagging first; empty if there are none.
pub fn clients(clients: &[Value], columns: usize, rows: usize) -> String {
    let number = |client: &Value, name: &str| client.get(name).and_then(Value::as_u64);
    let text =
        |client: &Value, name: &str| -> String { printable(client.get(name).and_then(Value::as_str).unwrap_or("-")) };
    let mut clients: Vec<&Value> = clients.iter().collect();
    clients.sort_by_key(|client| std::cmp::Reverse((number(client, "lag_ms"), number(client, "p99_us"))));
    if clients.is_empty() || rows < 3 {
        return String::new();
    }
    let shown = if clients.len() > rows - 2 { rows - 3 } else { clients.len() };
    // An IPv4 address with its port takes 21 columns, an IPv6 address up to 47.
    let widest = clients[..shown].iter().map(|client| text(client, "address").len()).max().unwrap_or(0);
    let address_width = widest.clamp(15, 47);
    let mut lines = vec![String::new()];
    lines.push(format!(
        "{:<address_width$} {:<8} {:<3} {:>8} {:>5} {:>5} {:>5} {:>5} {:>5} {}",
        "CLIENT", "STREAM", "VIA", "FOR", "LAG", "SKIPS", "P99", "RTT", "RETR", "PLAYER"
    ));
    let micros = |client: &Value, name: &str| span(number(client, name).map(Duration::from_micros));
    for client in &clients[..shown] {
        lines.push(format!(
            "{:<address_width$} {:<8.8} {:<3} {:>8} {:>5} {:>5} {:>5} {:>5} {:>5} {}",
            text(client, "address"),
            text(client, "stream"),
            if text(client, "transport") == "multicast" { "mc".into() } else { text(client, "transport") },
            clock(Duration::from_secs(number(client, "playing_s").unwrap_or(0))),
            span(number(client, "lag_ms").map(Duration::from_millis)),
            si(number(client, "skips_total").unwrap_or(0) as f64),
            micros(client, "p99_us"),
            micros(client, "rtt_us"),
            number(client, "retransmits_total").map_or("-".into(), |count| si(count as f64)),
            text(client, "user_agent"),
        ));
    }
    if shown < clients.len() {
        lines.push(format!("… and {} more with less lag", clients.len() - shown));
    } else if lines.len() < rows {
        lines.push(LEGEND_OF_CLIENTS.into());
    }
    let mut out = String::new();
    for line in lines {
        let cut: String = line.chars().take(columns).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}", cut.trim_end());
    }
    out
}

fn rows(stream: &StreamReport, name_width: usize, columns: usize) -> Vec<String> {
    let state = match stream.state {
        SourceState::Connecting => "conn",
        SourceState::Live => "live",
        SourceState::Silent => "mute",
        SourceState::Down => "down",
        SourceState::Idle => "idle",
    };
    let name: String = if stream.name.len() > name_width {
        // Names are ASCII.
        format!("{}…", &stream.name[..name_width - 1])
    } else {
        stream.name.clone()
    };
    let numbers = numbers(&stream.flow);
    let mut rows = vec![format!("{name:<name_width$} {state:<4} {:>5} {numbers}", fps(stream.fps))];
    let mut trouble = Vec::new();
    if let Some(fault) = &stream.fault {
        trouble.push(printable(fault));
    }
    if stream.flow.lost_total > 0 {
        trouble.push(format!("{} packets lost at the source", stream.flow.lost_total));
    }
    if stream.flow.reconnects_total > 0 {
        trouble.push(format!("{} reconnects", stream.flow.reconnects_total));
    }
    let dropped = DropReason::ALL.iter().filter(|reason| stream.drops[reason.index()] > 0);
    let dropped: Vec<_> = dropped.map(|reason| format!("{} {}", reason.name(), stream.drops[reason.index()])).collect();
    if !dropped.is_empty() {
        trouble.push(format!("frames dropped: {}", dropped.join(", ")));
    }
    if !trouble.is_empty() {
        rows.extend(wrapped(&trouble.join("; "), columns, ["  └", "   "]));
    }
    rows
}

/// A remark below a stream's row, in as many rows as needed, because the fix is at its end. `heads` start the first row and the
/// following ones.
fn wrapped(text: &str, columns: usize, heads: [&str; 2]) -> Vec<String> {
    let mut rows = vec![heads[0].to_owned()];
    let head = heads[0].chars().count();
    for word in text.split(' ') {
        let last = rows.last().map_or(0, |row| row.chars().count());
        if last > head && last + 1 + word.len() > columns {
            rows.push(heads[1].into());
        }
        if let Some(row) = rows.last_mut() {
            if !row.is_empty() {
                row.push(' ');
            }
            row.push_str(word);
        }
    }
    rows
}

/// The columns that exist both for a stream and for all together.
fn numbers(flow: &Flow) -> String {
    let Percentiles { p50, p99, p999, max, .. } = flow.latency;
    format!(
        "{:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5}",
        si(flow.in_bps),
        si(flow.clients() as f64),
        si(flow.out_bps),
        span(p50),
        span(p99),
        span(p999),
        span(max),
        span(Some(flow.lag)),
        si(flow.skips as f64),
    )
}

/// What is printed below the streams.
fn tail(report: &Report, columns: usize) -> Vec<String> {
    let flow = &report.total.flow;
    let mut lines = vec![String::new()];
    let whole = report.scope == Scope::Summary;
    if report.streams.len() > 1 || whole {
        lines.push(format!(
            "{}; {} sent at {}bit/s",
            clients_by_transport(flow),
            si(flow.bytes_total as f64) + "B",
            si(flow.out_bps),
        ));
        lines.push(format!(
            "latency  p50 {}  p99 {}  p99.9 {}  max {}",
            span(flow.latency.p50),
            span(flow.latency.p99),
            span(flow.latency.p999),
            span(flow.latency.max),
        ));
    } else {
        lines.push(clients_by_transport(flow));
    }
    lines.extend(histogram(report, columns));
    if report.total.silent_shards > 0 {
        lines
            .push(format!("{} shards did not answer in time; their last counts are shown", report.total.silent_shards));
    }
    lines
}

fn clients_by_transport(flow: &Flow) -> String {
    let noun = if flow.clients() == 1 { "client" } else { "clients" };
    let multicast =
        if flow.clients_multicast > 0 { format!(", {} multicast", flow.clients_multicast) } else { String::new() };
    let web = if flow.clients_websocket > 0 { format!(", {} web", flow.clients_websocket) } else { String::new() };
    let (all, tcp, udp) = (flow.clients(), flow.clients_tcp, flow.clients_udp);
    format!("{all} {noun} ({tcp} TCP, {udp} UDP{multicast}{web}), {} ever", flow.joined)
}

/// The sends of the span by their latency, one bar per octave.
fn histogram(report: &Report, columns: usize) -> Vec<String> {
    /// Columns for the labels and numbers before and after the bars, at most 5 characters each.
    const BESIDE_BARS: usize = "latency  16.8s ▕▏ 33.6s  (99.9k sends, log scale)".len() - 2 * ('▕'.len_utf8() - 1);
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let counts = &report.histogram;
    let most = counts.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return vec!["latency  nothing was sent".into()];
    }
    let first = counts.iter().position(|&count| count > 0).unwrap_or(0);
    let last = counts.iter().rposition(|&count| count > 0).unwrap_or(HISTOGRAM_OCTAVES - 1);
    let bar_width = if (last - first + 1) * 2 + BESIDE_BARS <= columns { 2 } else { 1 };
    let bars: String = (first..=last)
        .flat_map(|octave| {
            // On a logarithmic scale: a bar that is not empty is visible, however long the run.
            let height = match counts[octave] {
                0 => 0,
                count => 1 + ((count as f64).ln_1p() / (most as f64).ln_1p() * 7.0).round() as usize,
            };
            std::iter::repeat_n(BARS[height.min(8)], bar_width)
        })
        .collect();
    let edge = |octave: usize| span(Some(Duration::from_micros(1 << octave)));
    vec![format!(
        "latency  {} ▕{bars}▏ {}  ({} sends, log scale)",
        edge(first),
        edge(last + 1),
        si(report.total.flow.latency.count as f64)
    )]
}

pub(super) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds / 86_400 {
        0 => format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60),
        days => format!("{days}d {:02}:{:02}", seconds / 3_600 % 24, seconds / 60 % 60),
    }
}

fn fps(value: f64) -> String {
    if value < 999.95 { format!("{value:.1}") } else { si(value) }
}

/// A number in at most 5 characters, with k, M, G, T for thousands.
pub(super) fn si(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 999.5 {
            return match unit {
                "" => format!("{value:.0}"),
                _ if value < 9.995 => format!("{value:.2}{unit}"),
                _ if value < 99.95 => format!("{value:.1}{unit}"),
                _ => format!("{value:.0}{unit}"),
            };
        }
        value /= 1_000.0;
    }
    ">999T".into()
}

/// A duration in at most 5 characters.
pub(super) fn span(duration: Option<Duration>) -> String {
    let Some(duration) = duration else { return "-".into() };
    let us = duration.as_micros() as f64;
    match us {
        _ if us < 0.5 => "0".into(),
        _ if us < 999.5 => format!("{us:.0}µs"),
        _ if us < 9_950.0 => format!("{:.1}ms", us / 1e3),
        _ if us < 999_500.0 => format!("{:.0}ms", us / 1e3),
        _ if us < 99_950_000.0 => format!("{:.1}s", us / 1e6),
        _ => format!("{:.0}s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::report;

    fn frame(columns: usize, rows: Option<usize>) -> Frame {
        Frame {
            title: "io_uring, 2 shards, rtsp://127.0.0.1:8554".into(),
            play: vec!["ffplay -rtsp_transport tcp rtsp://127.0.0.1:8554/front".into()],
            columns,
            rows,
        }
    }

    #[test]
    fn every_number_fits_its_column() {
        for value in
            [0.0, 9.0, 999.4, 999.6, 1_000.0, 9_994.0, 9_996.0, 99_949.0, 99_951.0, 999_499.0, 999_501.0, 1e12, 1e18]
        {
            assert!(si(value).chars().count() <= 5, "{value}: {}", si(value));
        }
        for us in [0, 1, 999, 1_000, 9_949, 9_951, 999_499, 999_501, 99_949_000, 99_951_000, 3_600_000_000_u64] {
            let text = span(Some(Duration::from_micros(us)));
            assert!(text.chars().count() <= 5, "{us} µs: {text}");
        }
        assert_eq!((si(4_012_000.0).as_str(), si(12_345.0).as_str(), span(None).as_str()), ("4.01M", "12.3k", "-"));
    }

    #[test]
    fn the_table_at_80_columns() {
        let text = table(&report(), &frame(80, None));
        println!("{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let rows: Vec<_> = text.lines().collect();
        assert!(rows[0].contains("up 00:01:23") && rows[0].contains("io_uring"));
        assert_eq!(rows[1], "play it: ffplay -rtsp_transport tcp rtsp://127.0.0.1:8554/front");
        let front: Vec<_> = rows[5].split_whitespace().collect();
        assert_eq!(
            front,
            ["front", "live", "30.0", "4.01M", "12", "48.0M", "130µs", "950µs", "2.4ms", "31ms", "45ms", "1"]
        );
        // Columns are aligned with their headings.
        let end = |row: &str, word: &str| row.find(word).map(|at| row[..at].chars().count() + word.chars().count());
        assert_eq!(end(rows[3], "P99.9"), end(rows[5], "2.4ms"));
        assert_eq!(end(rows[3], "IN"), end(rows[4], "bit/s"));
        assert!(text.contains("LAG: of the slowest client"), "{text}");
        assert!(text.contains("frames dropped: lagging 30"), "{text}");
        assert!(text.contains("connection refused"), "{text}");
        assert!(text.contains('█'), "{text}");
    }

    #[test]
    fn the_histogram_of_a_long_run_fits_too() {
        let mut report = report();
        // From the fastest send to one that waited for a client for seconds.
        report.histogram = [1; HISTOGRAM_OCTAVES];
        for first in 0..10 {
            let text = table(&report, &frame(80, None));
            let line = text.lines().find(|line| line.contains("log scale")).unwrap_or_default();
            assert!(line.ends_with("log scale)"), "{line}");
            report.histogram[first] = 0;
        }
    }

    #[test]
    fn a_small_terminal_gets_no_more_than_fits() {
        let mut report = report();
        for n in 0..200 {
            let stream = StreamReport { name: format!("camera-with-a-long-name-{n}"), ..report.streams[0].clone() };
            report.streams.push(stream);
        }
        for (columns, rows) in [(80, 24), (200, 50), (40, 12), (20, 12), (80, 6), (1, 1)] {
            let text = table(&report, &frame(columns, Some(rows)));
            assert!(text.lines().count() < rows.max(2), "{columns}x{rows}:\n{text}");
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}x{rows}:\n{text}");
            assert!(rows < 12 || columns < 40 || text.contains("more; a taller terminal"), "{text}");
        }
    }

    #[test]
    fn a_summary_is_about_the_whole_run() {
        let report = Report { scope: Scope::Summary, ..report() };
        let text = table(&report, &frame(80, None));
        assert!(text.starts_with(&format!("rtsprelay {} ran for 00:01:23", env!("CARGO_PKG_VERSION"))), "{text}");
        assert!(!text.contains("play it"), "{text}");
    }
}
