//! From measurements to medians, ratios, and the Markdown table.

use std::fmt::Write as _;

use serde::Serialize;

use super::Measurement;
use crate::load::report::Report;

/// Rounds from which on a ratio is told.
pub const RATIO_ROUNDS_MIN: usize = 5;

/// Percent of a core that other processes (the camera among them) may use before a round counts as disturbed.
const OTHERS_PERCENT_MAX: f64 = 15.0;

/// The middle of some values, with the smallest and the largest.
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
    /// Of these values; all zero if there are none.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else { return Spread::default() };
        let middle = values.len() / 2;
        let median =
            if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] };
        Spread { median, min, max }
    }

    /// The median with so many digits, and the two others behind it.
    pub fn text(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.min, self.max)
    }
}

/// One server in one scene, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The scene's kind: `TCP`, `UDP`, …
    pub kind: String,
    /// Players.
    pub clients: usize,
    /// The server's name.
    pub server: String,
    /// Rounds measured.
    pub rounds: usize,
    /// Runs that failed.
    pub failed: usize,
    /// CPU time per client and frame, in µs; `None` if no frame came in any round.
    pub cpu_us: Option<Spread>,
    /// The same as a multiple of the floor's in the same round.
    pub cpu_ratio: Option<Spread>,
    /// CPU, percent of a core.
    pub cpu_percent: Spread,
    /// Median latency in ms; `None` if no frame with a stamp came in any round.
    pub p50_ms: Option<Spread>,
    /// 99 % latency in ms.
    pub p99_ms: Option<Spread>,
    /// The same as a multiple of the floor's in the same round.
    pub p99_ratio: Option<Spread>,
    /// Frames a second of the worst player.
    pub fps_worst: Spread,
    /// Frames missing or damaged, over all rounds.
    pub frames_lost: u64,
    /// Memory per client in KB (1,000 bytes).
    pub kb_per_client: Spread,
    /// Rounds in which other processes used much of a CPU, so that times mean little.
    pub disturbed: usize,
    /// Rounds in which the generator was the bottleneck.
    pub generator_limited: usize,
}

/// Summaries in the order of kinds, clients and servers as they first occur.
pub fn summarize(measurements: &[Measurement]) -> Vec<Summary> {
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
    keys.iter().map(|&(kind, clients, server)| summary(measurements, kind, clients, server)).collect()
}

fn summary(all: &[Measurement], kind: &str, clients: usize, server: &str) -> Summary {
    let of = |name: &'_ str| {
        let name = name.to_string();
        all.iter().filter(move |m| m.kind == kind && m.clients == clients && m.server == name)
    };
    let reports: Vec<_> = of(server).filter_map(|m| m.report.as_ref()).collect();
    let spread = |value: &dyn Fn(&Report) -> f64| Spread::of(reports.iter().map(|r| value(r)).collect());
    // Of the rounds that have such a value at all: what did not come was neither cheap nor fast.
    let known = |value: &dyn Fn(&Report) -> Option<f64>| {
        let values: Vec<f64> = reports.iter().filter_map(|r| value(r)).collect();
        (!values.is_empty()).then(|| Spread::of(values))
    };
    let cpu = |r: &Report| r.server.as_ref()?.cpu_us_per_client_frame;
    let latency = |r: &Report, us: u64| (r.normal.latency_us.count > 0).then_some(us as f64 / 1e3);
    let p99 = |r: &Report| latency(r, r.normal.latency_us.p99);
    // Paired by round, because what disturbs a machine disturbs a round.
    let ratio = |value: &dyn Fn(&Report) -> Option<f64>| {
        let pairs: Vec<f64> = of(server)
            .filter_map(|m| {
                let floor = of("floor").find(|f| f.round == m.round)?.report.as_ref()?;
                let below = value(floor).filter(|below| *below > 0.0)?;
                Some(value(m.report.as_ref()?)? / below)
            })
            .collect();
        (server != "floor" && pairs.len() >= RATIO_ROUNDS_MIN).then(|| Spread::of(pairs))
    };
    Summary {
        kind: kind.into(),
        clients,
        server: server.into(),
        rounds: reports.len(),
        failed: of(server).filter(|m| m.error.is_some()).count(),
        cpu_us: known(&cpu),
        cpu_ratio: ratio(&cpu),
        cpu_percent: spread(&|r| r.server.as_ref().map_or(0.0, |s| s.cpu_percent)),
        p50_ms: known(&|r| latency(r, r.normal.latency_us.p50)),
        p99_ms: known(&p99),
        p99_ratio: ratio(&p99),
        fps_worst: spread(&|r| r.normal.fps_worst),
        frames_lost: reports.iter().map(|r| r.normal.frames_missing + r.normal.frames_damaged).sum(),
        kb_per_client: spread(&|r| r.server.as_ref().map_or(0.0, |s| s.rss_per_client / 1e3)),
        disturbed: reports.iter().filter(|r| r.generator.others_percent > OTHERS_PERCENT_MAX).count(),
        generator_limited: reports.iter().filter(|r| r.generator.bottleneck.is_some()).count(),
    }
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
        let told = |spread: &Option<Spread>| spread.map_or_else(|| "–".to_string(), |s| s.text(2));
        // Without a single report nothing is known, and a zero would be a claim.
        let measured = |text: String| if s.rounds == 0 { "–".to_string() } else { text };
        let mut remarks = Vec::new();
        if s.failed > 0 {
            remarks.push(format!("{} runs failed", s.failed));
        }
        if s.generator_limited > 0 {
            remarks.push(format!("generator at its limit in {} of {} rounds", s.generator_limited, s.rounds));
        }
        if s.disturbed > 0 {
            remarks.push(format!("other work on the machine in {} of {} rounds", s.disturbed, s.rounds));
        }
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            s.clients,
            s.server,
            told(&s.cpu_us),
            told(&s.cpu_ratio),
            measured(format!("{:.1}", s.cpu_percent.median)),
            told(&s.p50_ms),
            told(&s.p99_ms),
            told(&s.p99_ratio),
            measured(format!("{:.1}", s.fps_worst.min)),
            measured(s.frames_lost.to_string()),
            measured(format!("{:.1}", s.kb_per_client.median)),
            remarks.join("; "),
        );
    }
    out
}

/// What spreading frames over time costs each server: CPU of the paced scenes as a multiple of the unpaced ones with as many
/// players, paired by round.
pub fn pacing(measurements: &[Measurement], paced_kind: &str) -> String {
    let cpu = |m: &Measurement| m.report.as_ref()?.server.as_ref()?.cpu_us_per_client_frame;
    let mut rows: Vec<(usize, String, Vec<f64>)> = Vec::new();
    for paced in measurements.iter().filter(|m| m.kind == paced_kind) {
        let same = |m: &&Measurement| {
            m.kind == "TCP" && m.clients == paced.clients && m.server == paced.server && m.round == paced.round
        };
        let Some(plain) = measurements.iter().find(same).and_then(cpu).filter(|c| *c > 0.0) else { continue };
        let Some(ratio) = cpu(paced).map(|c| c / plain) else { continue };
        match rows.iter_mut().find(|r| r.0 == paced.clients && r.1 == paced.server) {
            Some(row) => row.2.push(ratio),
            None => rows.push((paced.clients, paced.server.clone(), vec![ratio])),
        }
    }
    rows.retain(|row| row.2.len() >= RATIO_ROUNDS_MIN);
    if rows.is_empty() {
        return String::new();
    }
    let mut out = format!(
        "\n### {paced_kind}, against TCP with whole frames\n\n| clients | server | CPU × unpaced |\n|--:|---|---|\n"
    );
    for (clients, server, ratios) in rows {
        let _ = writeln!(out, "| {clients} | {server} | {} |", Spread::of(ratios).text(2));
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
