//! The metrics in the text format of Prometheus (exposition format 0.0.4). `docs/METRICS.md` lists the names, which are stable.

use std::fmt::{Display, Write as _};
use std::time::SystemTime;

use super::report::{Report, StreamReport};
use super::scrape::{BUCKETS, Scrape, StreamScrape, bucket_end_us};
use super::{
    Counter, DropReason, LeaveReason, Limited, Panicked, SourceDrop, TlsCounts, TlsOutcome, Transport, process,
};
use crate::media::SourceState;

/// The media type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The exposition: everything since startup, and gauges of the last interval.
pub fn text(scrape: &Scrape, last: Option<&Report>, secured: Option<&TlsCounts>) -> String {
    let mut out = Text::default();
    let streams: Vec<(&StreamReport, &StreamScrape)> = scrape.summary.streams.iter().zip(&scrape.streams).collect();
    relay(&mut out, scrape);
    upgrade(&mut out);
    all(&mut out, scrape);
    if let Some(counts) = secured {
        tls(&mut out, counts);
    }
    source(&mut out, &streams, last);
    clients(&mut out, &streams);
    latency(&mut out, &streams, last);
    out.0
}

fn relay(out: &mut Text, scrape: &Scrape) {
    let total = &scrape.summary.total;
    out.family("build_info", "gauge", "The running version; always 1.");
    out.value("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    out.single("uptime_seconds", "gauge", "Time since startup.", scrape.summary.uptime.as_secs_f64());
    let leaving = u8::from(process::leaves_until().is_some());
    out.single("leaving", "gauge", "1 while the relay is leaving (drain).", leaving);
    out.single("shards", "gauge", "Threads that serve clients.", scrape.shards);
    out.single("silent_shards", "gauge", "Shards that did not answer in time.", total.silent_shards);
    out.single("connections", "gauge", "Open RTSP connections, playing or not.", total.connections);
    out.single("sessions", "gauge", "RTSP sessions, playing or not.", total.sessions);
    out.single("sends_in_flight", "gauge", "Send operations that are queued or in progress.", total.in_flight);
    out.single("send_operations_total", "counter", "Send operations.", total.egress.operations);
    out.single("submits_total", "counter", "System calls that submitted send operations.", total.egress.submits);
    out.single(
        "submits_refused_total",
        "counter",
        "Such system calls that the kernel refused for lack of memory; they are retried.",
        total.egress.submits_refused,
    );
    out.single(
        "zero_copy_sends_total",
        "counter",
        "Zero-copy sends that the kernel did without copying.",
        total.egress.zero_copy,
    );
    out.single(
        "zero_copy_copied_total",
        "counter",
        "Zero-copy sends that the kernel copied anyway.",
        total.egress.zero_copy_copied,
    );
    out.single(
        "zero_copy_refused_total",
        "counter",
        "Zero-copy sends that were refused and repeated as normal sends.",
        total.egress.zero_copy_refused,
    );
    for &counter in Counter::ALL {
        out.single(&format!("{}_total", counter.name()), "counter", help(counter), scrape.counters[counter.index()]);
    }
    out.family(
        "limited_total",
        "counter",
        "Requests, connections and packets that exceeded a limit or were not asked for, by reason.",
    );
    for &limited in Limited::ALL {
        out.value("limited_total", &[("reason", limited.name())], scrape.limited[limited.index()]);
    }
    out.family("panics_total", "counter", "Bugs in the relay's own code, by what they ended.");
    for &panicked in Panicked::ALL {
        out.value("panics_total", &[("where", panicked.name())], process::panicked_total(panicked));
    }
    let (carriers, carried) = process::carriers();
    let help = "Processes of relays before an upgrade that carry TLS connections on for this one.";
    out.single("tls_carriers", "gauge", help, carriers);
    out.single("tls_carrier_connections", "gauge", "TLS connections that they carry.", carried);
    let dropped = process::lines_dropped_total();
    out.single("lines_dropped_total", "counter", "Lines of log and reports that could not be written.", dropped);
}

/// Counts over all streams, which keep counting when streams are removed.
fn all(out: &mut Text, scrape: &Scrape) {
    let Scrape { all, sources, .. } = scrape;
    out.single("streams", "gauge", "Current number of streams.", scrape.streams.len());
    for (name, help, value) in [
        ("all_source_bytes_total", "Bytes of RTP received for all streams, including removed ones.", sources.bytes),
        ("all_source_packets_lost_total", "RTP packets lost, for all sources.", sources.lost),
        (
            "all_source_failures_total",
            "Sessions with sources, or attempts to start one, that failed.",
            sources.failures,
        ),
        ("all_sent_bytes_total", "Bytes of media sent to clients, for all streams.", all.bytes),
        ("all_skips_total", "Times that a lagging client skipped to a keyframe, for all streams.", all.skips),
        ("all_clients_joined_total", "Clients that started to play, for all streams.", all.joined.iter().sum()),
    ] {
        out.single(name, "counter", help, value);
    }
}

/// The upgrade by which this process has taken over, if it has.
fn upgrade(out: &mut Text) {
    let Some(took) = process::upgrade_took() else { return };
    let help = "How long each part of the upgrade took by which this process replaced the one before it.";
    out.family("upgrade_seconds", "gauge", help);
    for (part, took) in process::UPGRADE_PARTS.into_iter().zip(took) {
        out.value("upgrade_seconds", &[("part", part)], took.as_secs_f64());
    }
}

fn tls(out: &mut Text, counts: &TlsCounts) {
    out.single("tls_half_open", "gauge", "TLS handshakes in progress.", counts.half_open());
    out.single("tls_connections", "gauge", "TLS connections after the handshake.", counts.carried());
    out.family("tls_handshakes_total", "counter", "Connections to TLS listeners, by outcome.");
    for outcome in TlsOutcome::ALL {
        out.value("tls_handshakes_total", &[("outcome", outcome.name())], counts.total(outcome));
    }
}

fn help(counter: Counter) -> &'static str {
    match counter {
        Counter::Connections => "Connections handed to shards.",
        Counter::ClientsRefused => "SETUPs answered 453 because a limit on sessions was reached.",
        Counter::HandshakeTimeouts => "Connections closed because no complete request arrived in time.",
        Counter::Requests => "RTSP requests read.",
        Counter::RequestsFailed => "RTSP requests answered with an error status.",
        Counter::AuthFailed => "RTSP requests with wrong credentials.",
        Counter::AuthRefused => "RTSP requests refused without checking the credentials, because of earlier failures.",
        Counter::AuthUrlRefused => "RTSP requests refused by auth_url.",
        Counter::AuthUrlUnanswered => "RTSP requests refused because auth_url did not answer in time.",
        Counter::Malformed => "Connections closed because they sent something that is not RTSP.",
        Counter::ReceiverReports => "RTCP receiver reports received.",
        Counter::Moved => "Connections handed to the shard that owns their session.",
        Counter::StreamsMade => "Streams created by name, or added.",
        Counter::StreamsGone => "Streams that were created by name, or added, and removed again.",
        Counter::SendsPutOff => "TCP sends that ended early for lack of memory and are retried.",
    }
}

fn source(out: &mut Text, streams: &[(&StreamReport, &StreamScrape)], last: Option<&Report>) {
    source_state(out, streams);
    let mut counter = |name: &'static str, help: &'static str, of: fn(&StreamReport, &StreamScrape) -> u64| {
        out.family(name, "counter", help);
        for (stream, more) in streams {
            out.value(name, &[("stream", &stream.name)], of(stream, more));
        }
    };
    counter("source_frames_total", "Frames received on the video track.", |_, more| more.frames);
    counter("source_bytes_total", "Bytes of RTP received from the source.", |_, more| more.source_bytes);
    let help = "RTP packets of the source that never arrived.";
    counter("source_packets_lost_total", help, |stream, _| stream.flow.lost_total);
    let help = "Steps of the camera's clock by more than 100 ms; sender reports to players do not show them.";
    counter("source_clock_steps_total", help, |_, more| more.clock_steps);
    let help = "Reads of the camera's connection or sockets that returned data.";
    counter("source_reads_total", help, |_, more| more.source_reads);
    let help = "Bytes of media copied from the receive buffer to chunks.";
    counter("source_copied_bytes_total", help, |_, more| more.source_copied);
    let help = "Sessions with the source after the first one.";
    counter("source_reconnects_total", help, |stream, _| stream.flow.reconnects_total);
    let help = "Sessions with the source, or attempts to start one, that failed.";
    counter("source_failures_total", help, |stream, _| stream.failures);
    out.family(
        "source_packets_dropped_total",
        "counter",
        "Packets of the source that arrived but are not in the stream, by reason.",
    );
    for (stream, _) in streams {
        for &reason in SourceDrop::ALL {
            let labels = [("stream", stream.name.as_str()), ("reason", reason.name())];
            out.value("source_packets_dropped_total", &labels, stream.source_drops[reason.index()]);
        }
    }
    out.family("source_unread_bytes", "gauge", "Bytes that the source has sent and the relay has not read yet.");
    for (stream, _) in streams {
        if let Some(bytes) = stream.unread {
            out.value("source_unread_bytes", &[("stream", &stream.name)], bytes);
        }
    }
    out.family("log_bytes", "gauge", "Bytes of media kept for new and slow clients.");
    for (stream, more) in streams {
        out.value("log_bytes", &[("stream", &stream.name)], more.log_bytes);
    }
    out.family("source_fps", "gauge", "Frames per second of the video track over the last report interval.");
    for stream in last.iter().flat_map(|report| &report.streams) {
        out.value("source_fps", &[("stream", &stream.name)], stream.fps);
    }
}

fn source_state(out: &mut Text, streams: &[(&StreamReport, &StreamScrape)]) {
    out.family("source_up", "gauge", "1 while packets arrive from the source.");
    for (stream, _) in streams {
        out.value("source_up", &[("stream", &stream.name)], u8::from(stream.state == SourceState::Live));
    }
    out.family("source_state", "gauge", "1 for the source's current state.");
    for (stream, _) in streams {
        for &state in SourceState::ALL {
            let labels = [("stream", stream.name.as_str()), ("state", state.name())];
            out.value("source_state", &labels, u8::from(stream.state == state));
        }
    }
    out.family("source_state_since_seconds", "gauge", "When the source entered its state, as Unix time.");
    for (stream, _) in streams {
        let since = stream.since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let Some(since) = since {
            let seconds = format!("{}.{:03}", since.as_secs(), since.subsec_millis());
            out.value("source_state_since_seconds", &[("stream", &stream.name)], seconds);
        }
    }
}

fn clients(out: &mut Text, streams: &[(&StreamReport, &StreamScrape)]) {
    out.family("clients", "gauge", "Clients that are playing.");
    for (stream, more) in streams {
        for &transport in Transport::ALL {
            let labels = [("stream", stream.name.as_str()), ("transport", transport.name())];
            out.value("clients", &labels, more.counts.clients[transport.index()]);
        }
    }
    out.family("clients_joined_total", "counter", "Clients that started to play.");
    for (stream, more) in streams {
        for &transport in Transport::ALL {
            let labels = [("stream", stream.name.as_str()), ("transport", transport.name())];
            out.value("clients_joined_total", &labels, more.counts.joined[transport.index()]);
        }
    }
    out.family("clients_left_total", "counter", "Clients that stopped playing, by reason.");
    for (stream, more) in streams {
        for &reason in LeaveReason::ALL {
            let labels = [("stream", stream.name.as_str()), ("reason", reason.name())];
            out.value("clients_left_total", &labels, more.counts.left[reason.index()]);
        }
    }
    out.family("sent_chunks_total", "counter", "Chunks sent to clients completely.");
    for (stream, more) in streams {
        out.value("sent_chunks_total", &[("stream", &stream.name)], more.counts.sends);
    }
    out.family("sent_bytes_total", "counter", "Bytes of media sent to clients.");
    for (stream, more) in streams {
        out.value("sent_bytes_total", &[("stream", &stream.name)], more.counts.bytes);
    }
    out.family("skips_total", "counter", "Times that a lagging client skipped to a keyframe.");
    for (stream, more) in streams {
        out.value("skips_total", &[("stream", &stream.name)], more.counts.skips);
    }
    out.family("frames_dropped_total", "counter", "Frames that clients missed, counted once per client, by reason.");
    for (stream, _) in streams {
        for &reason in DropReason::ALL {
            let labels = [("stream", stream.name.as_str()), ("reason", reason.name())];
            out.value("frames_dropped_total", &labels, stream.drops[reason.index()]);
        }
    }
    out.family("worst_lag_seconds", "gauge", "Current lag of the slowest client.");
    for (stream, _) in streams {
        out.value("worst_lag_seconds", &[("stream", &stream.name)], stream.flow.lag.as_secs_f64());
    }
}

fn latency(out: &mut Text, streams: &[(&StreamReport, &StreamScrape)], last: Option<&Report>) {
    const NAME: &str = "relay_latency_seconds";
    let what = "From reading a chunk's last packet to its last byte in a client's socket.";
    out.family(NAME, "histogram", what);
    for (stream, more) in streams {
        let mut below = 0;
        for bucket in 0..BUCKETS {
            below += more.buckets[bucket];
            let end = format!("{:.3e}", bucket_end_us(bucket) / 1e6);
            out.value(&format!("{NAME}_bucket"), &[("stream", &stream.name), ("le", &end)], below);
        }
        out.value(&format!("{NAME}_bucket"), &[("stream", &stream.name), ("le", "+Inf")], more.sends);
        out.value(&format!("{NAME}_sum"), &[("stream", &stream.name)], more.sum_us / 1e6);
        out.value(&format!("{NAME}_count"), &[("stream", &stream.name)], more.sends);
    }
    for (name, quantile) in [("p50", 0), ("p99", 1)] {
        let name = format!("relay_latency_{name}_seconds");
        out.family(&name, "gauge", "The percentile of the relay latency over the last report interval.");
        for stream in last.iter().flat_map(|report| &report.streams) {
            let latency = [stream.flow.latency.p50, stream.flow.latency.p99][quantile];
            if let Some(latency) = latency {
                out.value(&name, &[("stream", &stream.name)], latency.as_secs_f64());
            }
        }
    }
}

/// Writes the format. Names are given without their prefix.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP rtsprelay_{name} {help}\n# TYPE rtsprelay_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "rtsprelay_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            // Values are stream names, reasons and numbers, which need no escaping.
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.value(name, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use crate::media::StreamId;
    use crate::metrics::{Collector, ShardMetrics};

    fn exposition() -> String {
        let now = Instant::now();
        let mut collector = Collector::new(now, 1);
        collector.add_stream(StreamId::first(0), "front");
        let mut metrics = ShardMetrics::new();
        metrics.client_joined(StreamId::first(0), Transport::Tcp);
        metrics.sent(StreamId::first(0), Duration::from_millis(20), 1_000);
        metrics.dropped(StreamId::first(0), DropReason::Lagging, 3);
        collector.absorb(vec![Some(metrics.snapshot())], Vec::new());
        let report = collector.interval(now + Duration::from_secs(1), SystemTime::UNIX_EPOCH);
        text(
            &collector.scrape(now + Duration::from_secs(1), SystemTime::UNIX_EPOCH),
            Some(&report),
            Some(&TlsCounts::default()),
        )
    }

    #[test]
    fn names_and_values() {
        let text = exposition();
        for line in [
            "rtsprelay_clients{stream=\"front\",transport=\"tcp\"} 1",
            "rtsprelay_frames_dropped_total{stream=\"front\",reason=\"lagging\"} 3",
            "rtsprelay_sent_bytes_total{stream=\"front\"} 1000",
            "rtsprelay_relay_latency_seconds_bucket{stream=\"front\",le=\"+Inf\"} 1",
            "rtsprelay_relay_latency_seconds_count{stream=\"front\"} 1",
            "# TYPE rtsprelay_relay_latency_seconds histogram",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is not in\n{text}");
        }
        let p99 =
            text.lines().find_map(|line| line.strip_prefix("rtsprelay_relay_latency_p99_seconds{stream=\"front\"} "));
        assert!((0.0199..0.0203).contains(&p99.unwrap().parse::<f64>().unwrap()), "{p99:?}");
    }

    #[test]
    fn the_documentation_names_them_all() {
        let documented = include_str!("../../docs/METRICS.md");
        for line in exposition().lines() {
            let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) else { continue };
            assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/METRICS.md");
        }
        let labels = (LeaveReason::ALL.iter().map(|is| is.name()))
            .chain(DropReason::ALL.iter().map(|is| is.name()))
            .chain(SourceDrop::ALL.iter().map(|is| is.name()))
            .chain(Limited::ALL.iter().map(|is| is.name()))
            .chain(Transport::ALL.iter().map(|is| is.name()))
            .chain(Panicked::ALL.iter().map(|is| is.name()))
            .chain(SourceState::ALL.iter().map(|is| is.name()))
            .chain(TlsOutcome::ALL.iter().map(|is| is.name()));
        for label in labels {
            assert!(documented.contains(&format!("`{label}`")), "{label} is not in docs/METRICS.md");
        }
    }
}
