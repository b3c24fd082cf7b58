//! From measurements to medians, ratios, and the Markdown table.

use std::fmt::Write as _;

use serde::Serialize;

use super::Measurement;
use crate::load::report::Report;

/// Minimum number of rounds for printing ratios.
pub const RATIO_ROUNDS_MIN: usize = 5;

/// CPU in percent of a core that other processes (including the camera) may use before a round counts as disturbed.
const OTHERS_PERCENT_MAX: f64 = 15.0;

/// The median of some values, with the smallest and the largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of these values; all zero if there are none.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else { return Spread::default() };
        let middle = values.len() / 2;
        let median =
            if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] };
        Spread { median, min, max }
    }

    /// The median with this many digits, followed by the two others.
    pub fn text(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.min, self.max)
    }
}

/// One server in one scene, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The scene's kind: `TCP`, `UDP`, …
    pub kind: String,
    /// Number of players.
    pub clients: usize,
    /// The server's name.
    pub server: String,
    /// Rounds measured.
    pub rounds: usize,
    /// Runs that failed.
    pub failed: usize,
    /// CPU time per client and frame, in µs; `None` if no frame arrived in any round.
    pub cpu_us: Option<Spread>,
    /// The same as a multiple of the floor's in the same round.
    pub cpu_ratio: Option<Spread>,
    /// CPU, percent of a core.
    pub cpu_percent: Spread,
    /// Median latency in ms; `None` if no frame with a stamp arrived in any round.
    pub p50_ms: Option<Spread>,
    /// 99 % latency in ms.
    pub p99_ms: Option<Spread>,
    /// The same as a multiple of the floor's in the same round.
    pub p99_ratio: Option<Spread>,
    /// Frames per second of the worst player.
    pub fps_worst: Spread,
    /// Frames missing or damaged, over all rounds.
    pub frames_lost: u64,
    /// Memory per client in KB (1,000 bytes).
    pub kb_per_client: Spread,
    /// Rounds in which other processes used much of a CPU, so that times mean little.
    pub disturbed: usize,
    /// Rounds in which the generator was the bottleneck.
    pub generator_limited: usize,
    /// The same in words.
    pub remarks: String,
}

/// Kind, clients and server of each summary, in the order of kinds, clients and servers as they first occur.
pub fn keys<'a>(measurements: impl Iterator<Item = &'a Measurement>) -> Vec<(&'a str, usize, &'a str)> {
    let mut keys: Vec<(&str, usize, &str)> = Vec::new();
    for m in measurements {
        let key = (m.kind.as_str(), m.clients, m.server.as_str());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let kinds: Vec<&str> = keys.iter().map(|k| k.0).collect();
    let servers: Vec<&str> = keys.iter().map(|k| k.2).collect();
    let place = |list: &[&str], word: &str| list.iter().position(|w| *w == word);
    keys.sort_by_key(|k| (place(&kinds, k.0), k.1, place(&servers, k.2)));
    keys
}

/// The measurements of one server in one scene, and the floor's for comparison.
pub struct Rounds<'a> {
    of_server: Vec<&'a Measurement>,
    /// Empty for the floor itself.
    of_floor: Vec<&'a Measurement>,
}

impl<'a> Rounds<'a> {
    /// Those of this kind, number of clients and server.
    pub fn of(
        all: impl Iterator<Item = &'a Measurement> + Clone,
        kind: &str,
        clients: usize,
        server: &str,
    ) -> Rounds<'a> {
        let of = |name: &str| {
            let is_its = |m: &&Measurement| m.kind == kind && m.clients == clients && m.server == name;
            all.clone().filter(is_its).collect()
        };
        Rounds { of_server: of(server), of_floor: if server == "floor" { Vec::new() } else { of("floor") } }
    }

    /// What was reported.
    pub fn reports(&self) -> impl Iterator<Item = &'a Report> + '_ {
        self.of_server.iter().filter_map(|m| m.report.as_ref())
    }

    /// Runs that failed.
    pub fn failed(&self) -> usize {
        self.of_server.iter().filter(|m| m.error.is_some()).count()
    }

    /// Rounds in which other processes used much of a CPU, so that times mean little.
    pub fn disturbed(&self) -> usize {
        self.reports().filter(|r| r.generator.others_percent > OTHERS_PERCENT_MAX).count()
    }

    /// Rounds in which the generator was the bottleneck.
    pub fn generator_limited(&self) -> usize {
        self.reports().filter(|r| r.generator.bottleneck.is_some()).count()
    }

    /// A value that every round has.
    pub fn spread(&self, value: impl Fn(&Report) -> f64) -> Spread {
        Spread::of(self.reports().map(value).collect())
    }

    /// A value of those rounds that have it: a server that sent nothing was neither cheap nor fast.
    pub fn known(&self, value: impl Fn(&Report) -> Option<f64>) -> Option<Spread> {
        let values: Vec<f64> = self.reports().filter_map(value).collect();
        (!values.is_empty()).then(|| Spread::of(values))
    }

    /// The value as a multiple of the floor's, paired by round because disturbances affect a whole round. `None` for the floor itself,
    /// and with too few rounds.
    pub fn ratio(&self, value: impl Fn(&Report) -> Option<f64>) -> Option<Spread> {
        let of_round = |m: &&Measurement| {
            let floor = self.of_floor.iter().find(|f| f.round == m.round)?.report.as_ref()?;
            let below = value(floor).filter(|below| *below > 0.0)?;
            Some(value(m.report.as_ref()?)? / below)
        };
        let pairs: Vec<f64> = self.of_server.iter().filter_map(of_round).collect();
        (pairs.len() >= RATIO_ROUNDS_MIN).then(|| Spread::of(pairs))
    }

    /// Remarks that are needed to interpret the figures.
    pub fn remarks(&self) -> String {
        let rounds = self.reports().count();
        let mut remarks = Vec::new();
        if self.failed() > 0 {
            remarks.push(format!("{} runs failed", self.failed()));
        }
        if self.generator_limited() > 0 {
            remarks.push(format!("generator at its limit in {} of {rounds} rounds", self.generator_limited()));
        }
        if self.disturbed() > 0 {
            remarks.push(format!("other work on the machine in {} of {rounds} rounds", self.disturbed()));
        }
        remarks.join("; ")
    }
}

/// CPU time of the server per client and frame, in µs.
pub fn cpu_us(report: &Report) -> Option<f64> {
    report.server.as_ref()?.cpu_us_per_client_frame
}

/// The median latency in ms.
pub fn p50_ms(report: &Report) -> Option<f64> {
    let latency = &report.normal.latency_us;
    (latency.count > 0).then_some(latency.p50 as f64 / 1e3)
}

/// The latency that 99 % of the frames have at most, in ms.
pub fn p99_ms(report: &Report) -> Option<f64> {
    let latency = &report.normal.latency_us;
    (latency.count > 0).then_some(latency.p99 as f64 / 1e3)
}

/// Summaries in the order of kinds, clients and servers as they first occur.
pub fn summarize(measurements: &[Measurement]) -> Vec<Summary> {
    keys(measurements.iter())
        .iter()
        .map(|&(kind, clients, server)| summary(measurements, kind, clients, server))
        .collect()
}

fn summary(all: &[Measurement], kind: &str, clients: usize, server: &str) -> Summary {
    let rounds = Rounds::of(all.iter(), kind, clients, server);
    Summary {
        kind: kind.into(),
        clients,
        server: server.into(),
        rounds: rounds.reports().count(),
        failed: rounds.failed(),
        cpu_us: rounds.known(cpu_us),
        cpu_ratio: rounds.ratio(cpu_us),
        cpu_percent: rounds.spread(|r| r.server.as_ref().map_or(0.0, |s| s.cpu_percent)),
        p50_ms: rounds.known(p50_ms),
        p99_ms: rounds.known(p99_ms),
        p99_ratio: rounds.ratio(p99_ms),
        fps_worst: rounds.spread(|r| r.normal.fps_worst),
        frames_lost: rounds.reports().map(|r| r.normal.frames_missing + r.normal.frames_damaged).sum(),
        kb_per_client: rounds.spread(|r| r.server.as_ref().map_or(0.0, |s| s.rss_per_client / 1e3)),
        disturbed: rounds.disturbed(),
        generator_limited: rounds.generator_limited(),
        remarks: rounds.remarks(),
    }
}

/// A value for a table, or a dash if it is unknown.
pub fn told(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "–".to_string(), |s| s.text(2))
}

/// The tables, one for each kind of scene.
pub fn markdown(summaries: &[Summary]) -> String {
    let mut out = String::new();
    let mut kind = "";
    for s in summaries {
        if s.kind != kind {
            kind = &s.kind;
            let _ = write!(
                out,
                "\n### {kind}\n\n| clients | server | CPU µs per client and frame | × floor | CPU % | p50 ms | p99 ms | × floor \
                 | worst fps | frames lost | KB per client | remarks |\n|--:|---|---|---|--:|---|---|---|--:|--:|--:|---|\n",
            );
        }
        // Without any report the value is unknown, and zero would be wrong.
        let measured = |text: String| if s.rounds == 0 { "–".to_string() } else { text };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            s.clients,
            s.server,
            told(s.cpu_us),
            told(s.cpu_ratio),
            measured(format!("{:.1}", s.cpu_percent.median)),
            told(s.p50_ms),
            told(s.p99_ms),
            told(s.p99_ratio),
            measured(format!("{:.1}", s.fps_worst.min)),
            measured(s.frames_lost.to_string()),
            measured(format!("{:.1}", s.kb_per_client.median)),
            s.remarks,
        );
    }
    out
}

/// CPU of scenes of one kind as a multiple of that of scenes of another kind with as many players, paired by round: clients, server,
/// ratios. Empty with too few rounds.
pub fn against<'a>(
    measurements: impl Iterator<Item = &'a Measurement> + Clone,
    kind: &str,
    plain: &str,
) -> Vec<(usize, &'a str, Spread)> {
    let of_report = |m: &Measurement| m.report.as_ref().and_then(cpu_us);
    let mut rows: Vec<(usize, &str, Vec<f64>)> = Vec::new();
    for m in measurements.clone().filter(|m| m.kind == kind) {
        let same =
            |p: &&Measurement| p.kind == plain && p.clients == m.clients && p.server == m.server && p.round == m.round;
        let Some(plain) = measurements.clone().find(same).and_then(of_report).filter(|c| *c > 0.0) else { continue };
        let Some(ratio) = of_report(m).map(|c| c / plain) else { continue };
        match rows.iter_mut().find(|r| r.0 == m.clients && r.1 == m.server) {
            Some(row) => row.2.push(ratio),
            None => rows.push((m.clients, &m.server, vec![ratio])),
        }
    }
    rows.retain(|row| row.2.len() >= RATIO_ROUNDS_MIN);
    rows.into_iter().map(|(clients, server, ratios)| (clients, server, Spread::of(ratios))).collect()
}

/// What spreading frames over time costs each server: CPU of the paced scenes as a multiple of the unpaced ones with as many players.
pub fn pacing(measurements: &[Measurement], paced_kind: &str) -> String {
    let rows = against(measurements.iter(), paced_kind, "TCP");
    if rows.is_empty() {
        return String::new();
    }
    let mut out = format!(
        "\n### {paced_kind}, against TCP with whole frames\n\n| clients | server | CPU × unpaced |\n|--:|---|---|\n"
    );
    for (clients, server, ratio) in rows {
        let _ = writeln!(out, "| {clients} | {server} | {} |", ratio.text(2));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::Server;

    fn measurement(server: &str, round: usize, cpu: f64, p99: u64) -> Measurement {
        let mut report = Report::default();
        (report.normal.latency_us.count, report.normal.latency_us.p99) = (1, p99);
        report.server = Some(Server { cpu_us_per_client_frame: Some(cpu), ..Server::default() });
        Measurement {
            kind: "TCP".into(),
            clients: 100,
            server: server.into(),
            round,
            report: Some(report),
            error: None,
        }
    }

    #[test]
    fn ratios_are_paired_by_round() {
        let mut all = Vec::new();
        for round in 0..5 {
            // The machine gets slower from round to round; the ratio stays.
            let slower = (round + 1) as f64;
            all.push(measurement("floor", round, 4.0 * slower, 1000));
            all.push(measurement("uring", round, 3.0 * slower, 1500));
        }
        let summaries = summarize(&all);
        assert_eq!((summaries[0].server.as_str(), summaries[0].cpu_ratio), ("floor", None));
        let ratio = summaries[1].cpu_ratio.unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.75, 0.75, 0.75));
        assert_eq!(summaries[1].p99_ratio.unwrap().median, 1.5);
        assert_eq!(summaries[1].cpu_us.unwrap().median, 9.0);
        let table = markdown(&summaries);
        assert!(table.contains("| 100 | uring | 9.00 (3.00–15.00) | 0.75 (0.75–0.75) |"), "{table}");
    }

    #[test]
    fn what_did_not_come_was_neither_cheap_nor_fast() {
        let mut all = vec![measurement("floor", 0, 4.0, 1000), measurement("silent", 0, 0.0, 0)];
        let report = all[1].report.as_mut().unwrap();
        (report.server, report.normal.latency_us.count) = (Some(Server::default()), 0);
        all[1].error = Some("no media".into());
        let table = markdown(&summarize(&all));
        assert!(
            table.contains("| 100 | silent | – | – | 0.0 | – | – | – | 0.0 | 0 | 0.0 | 1 runs failed |"),
            "{table}"
        );
    }

    #[test]
    fn what_was_not_measured_is_not_zero() {
        let mut all = vec![measurement("floor", 0, 4.0, 1000), measurement("gone", 0, 4.0, 1000)];
        all[1].report = None;
        all[1].error = Some("it ended".into());
        let table = markdown(&summarize(&all));
        assert!(table.contains("| 100 | gone | – | – | – | – | – | – | – | – | – | 1 runs failed |"), "{table}");
    }

    #[test]
    fn few_rounds_make_no_ratio() {
        let all: Vec<_> =
            (0..4).flat_map(|r| [measurement("floor", r, 4.0, 1), measurement("uring", r, 3.0, 1)]).collect();
        assert_eq!(summarize(&all)[1].cpu_ratio, None);
    }
}
