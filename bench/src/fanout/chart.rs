//! Charts: values of servers, such as CPU and latency, against a number of clients or cameras.

use std::fmt::Write as _;

use super::summary::{Spread, Summary};

/// Colours that are distinguishable on white, also with most kinds of colour blindness.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;

/// A value axis, from 0 or from a power of ten.
struct Axis {
    log: bool,
    low: f64,
    high: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, log: bool) -> Axis {
        let values: Vec<f64> = values.filter(|v| v.is_finite() && (!log || *v > 0.0)).collect();
        let max = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        if log {
            let min = values.iter().copied().fold(max, f64::min);
            return Axis { log, low: 10f64.powf(min.log10().floor()), high: 10f64.powf(max.log10().ceil()).max(1e-9) };
        }
        Axis { log, low: 0.0, high: round_up(max * 1.05) }
    }

    /// The position of a value, 0 at the low end, 1 at the high.
    fn place(&self, value: f64) -> f64 {
        if self.log {
            let span = (self.high.log10() - self.low.log10()).max(1e-9);
            (value.max(self.low).log10() - self.low.log10()) / span
        } else {
            value / self.high
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.log {
            return (0..=5).map(|i| self.high * f64::from(i) / 5.0).collect();
        }
        let mut ticks = vec![self.low];
        while ticks[ticks.len() - 1] < self.high * 0.99 {
            ticks.push(ticks[ticks.len() - 1] * 10.0);
        }
        ticks
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|v| *v >= value).unwrap_or(value)
}

/// What a chart shows: values of servers over a number of something.
pub struct Chart<'a> {
    /// The description for screen readers.
    pub title: String,
    /// The unit of the x axis: `clients`, `cameras`.
    pub counted: &'a str,
    /// What stands below it.
    pub caption: &'a str,
    /// The servers, in the order of their colours.
    pub servers: Vec<&'a str>,
    /// What is drawn side by side.
    pub panels: Vec<Panel<'a>>,
}

/// One value of every server.
pub struct Panel<'a> {
    /// The value's name, with its unit.
    pub title: &'a str,
    /// Whether its axis is logarithmic.
    pub log: bool,
    /// For each server, in the chart's order, its values over the number.
    pub lines: Vec<Vec<(usize, Spread)>>,
}

impl<'a> Panel<'a> {
    /// Of points with their servers.
    pub fn of<'p>(
        title: &'a str,
        log: bool,
        servers: &[&str],
        points: impl Iterator<Item = (&'p str, usize, Spread)> + Clone,
    ) -> Panel<'a> {
        let line = |server: &&str| {
            let of_server = points.clone().filter(|(of, ..)| of == server);
            of_server.map(|(_, number, value)| (number, value)).collect()
        };
        Panel { title, log, lines: servers.iter().map(line).collect() }
    }
}

/// The chart of one kind of scene; `None` if there are fewer than two numbers of clients.
pub fn svg(summaries: &[Summary], kind: &str, caption: &str) -> Option<String> {
    let of_kind: Vec<&Summary> = summaries.iter().filter(|s| s.kind == kind && s.rounds > 0).collect();
    let servers = distinct(of_kind.iter().map(|s| s.server.as_str()));
    let panel = |title, value: fn(&Summary) -> Option<Spread>, log| {
        let points = of_kind.iter().filter_map(|s| Some((s.server.as_str(), s.clients, value(s)?)));
        Panel::of(title, log, &servers, points)
    };
    let panels =
        vec![panel("CPU per client and frame, µs", |s| s.cpu_us, false), panel("p99 latency, ms", |s| s.p99_ms, true)];
    let title = format!("Cost and latency against clients, {kind}");
    Chart { title, counted: "clients", caption, servers, panels }.svg()
}

/// The words, each once, in the order in which they first occur.
pub fn distinct<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all = Vec::new();
    for word in words {
        if !all.contains(&word) {
            all.push(word);
        }
    }
    all
}

impl Chart<'_> {
    /// As SVG; `None` if there are fewer than two numbers to put under it.
    pub fn svg(&self) -> Option<String> {
        let mut counts: Vec<usize> =
            self.panels.iter().flat_map(|p| &p.lines).flatten().map(|&(count, _)| count).collect();
        counts.sort_unstable();
        counts.dedup();
        if counts.len() < 2 {
            return None;
        }
        let total_width = self.panels.len() as f64 * (WIDTH + LEFT + 20.0);
        let total_height = HEIGHT + TOP + 90.0;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total_width} {total_height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<title>{}</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            escape(&self.title)
        );
        for (index, Panel { title, log, lines }) in self.panels.iter().enumerate() {
            let left = LEFT + index as f64 * (WIDTH + LEFT + 20.0);
            let axis = Axis::new(lines.iter().flatten().flat_map(|(_, s)| [s.min, s.max]), *log);
            panel(&mut out, left, title, &axis, &counts, self.counted);
            for (number, points) in lines.iter().enumerate() {
                line(&mut out, left, COLOURS[number % COLOURS.len()], &axis, &counts, points);
            }
        }
        let mut x = LEFT;
        let y = TOP + HEIGHT + 52.0;
        for (number, server) in self.servers.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{y}\">{}</text>",
                y - 6.0,
                x + 20.0,
                escape(server)
            );
            x += 40.0 + 8.0 * server.len() as f64;
        }
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">{}</text>", y + 22.0, escape(self.caption));
        out.push_str("</svg>\n");
        Some(out)
    }
}

/// Numbers lie evenly by their logarithm.
fn x_of(left: f64, counts: &[usize], count: usize) -> f64 {
    let (first, last) = (counts[0] as f64, counts[counts.len() - 1] as f64);
    left + 20.0 + (WIDTH - 40.0) * ((count as f64).ln() - first.ln()) / (last.ln() - first.ln())
}

fn y_of(axis: &Axis, value: f64) -> f64 {
    TOP + HEIGHT * (1.0 - axis.place(value))
}

fn panel(out: &mut String, left: f64, title: &str, axis: &Axis, counts: &[usize], counted: &str) {
    let _ = writeln!(out, "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>", TOP - 14.0);
    for tick in axis.ticks() {
        let y = y_of(axis, tick);
        let label = if tick >= 1.0 || tick == 0.0 { format!("{tick:.0}") } else { format!("{tick}") };
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            left + WIDTH,
            left - 6.0,
            y + 4.0
        );
    }
    for &count in counts {
        let x = x_of(left, counts, count);
        let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{count}</text>", TOP + HEIGHT + 18.0);
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{counted}</text>",
        left + WIDTH,
        TOP + HEIGHT + 34.0
    );
}

/// The medians joined by a line, and the span of the rounds at each.
fn line(out: &mut String, left: f64, colour: &str, axis: &Axis, counts: &[usize], points: &[(usize, Spread)]) {
    let mut path = String::new();
    for (count, spread) in points {
        let (x, y) = (x_of(left, counts, *count), y_of(axis, spread.median));
        let _ = write!(path, "{x:.1},{y:.1} ");
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-opacity=\"0.5\"/>\
             <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>",
            y_of(axis, spread.min),
            y_of(axis, spread.max)
        );
    }
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
        path.trim_end()
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_values() {
        let axis = Axis::new([3.0, 7.2].into_iter(), false);
        assert_eq!((axis.high, axis.place(0.0), axis.place(10.0)), (10.0, 0.0, 1.0));
        let axis = Axis::new([0.4, 70.0].into_iter(), true);
        assert_eq!(axis.ticks().len(), 4);
        assert!((axis.place(0.1) - 0.0).abs() < 1e-9 && (axis.place(100.0) - 1.0).abs() < 1e-9);
    }
}
