//! Suppresses repeated log lines: of those from one place about one stream, the first few in a period are shown and the others counted.
//! Lines about clients have a budget of lines and bytes, so that clients cannot make the log grow without limit.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{DisplayValue, Field, Visit, display};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::access::LOG_TARGET;
use crate::limits::{
    LOG_CLIENT_BYTES_MAX, LOG_CLIENT_BYTES_PER_MIN, LOG_CLIENT_LINES_MAX, LOG_CLIENT_LINES_PER_MIN, LOG_VALUE_BYTES_MAX,
};

/// Warnings and errors of one kind that are shown within [`WHILE`].
const SHOWN_MAX: u32 = 5;

/// The same for lines that are about one client each; these are limited by their [`Allowance`].
const INFO_SHOWN_MAX: u32 = LOG_CLIENT_LINES_MAX;

/// Approximate size of a line without its message and fields: time and level, or what the journal adds.
const LINE_BYTES: u32 = 48;

/// The while.
const WHILE: Duration = Duration::from_secs(10);

/// Maximum number of kinds that are tracked; beyond that, nothing is suppressed.
const KINDS_MAX: usize = 4_096;

struct Kind {
    since: Instant,
    seen: u32,
    left_out: u32,
    /// The last suppressed line.
    last: String,
}

/// The budget for lines about clients: a burst, which refills slowly every minute.
struct Allowance {
    lines: f64,
    bytes: f64,
    at: Option<Instant>,
}

impl Allowance {
    const WHOLE: Allowance =
        Allowance { lines: LOG_CLIENT_LINES_MAX as f64, bytes: LOG_CLIENT_BYTES_MAX as f64, at: None };

    /// Takes a line of this size from the budget; false if there is not enough left.
    fn take(&mut self, now: Instant, bytes: u32) -> bool {
        let before = self.at.replace(now).unwrap_or(now);
        let minutes = now.saturating_duration_since(before).as_secs_f64() / 60.0;
        self.lines = (self.lines + minutes * f64::from(LOG_CLIENT_LINES_PER_MIN)).min(f64::from(LOG_CLIENT_LINES_MAX));
        self.bytes = (self.bytes + minutes * f64::from(LOG_CLIENT_BYTES_PER_MIN)).min(f64::from(LOG_CLIENT_BYTES_MAX));
        let has_room = self.lines >= 1.0 && self.bytes >= f64::from(bytes);
        if has_room {
            self.lines -= 1.0;
            self.bytes -= f64::from(bytes);
        }
        has_room
    }
}

struct Known {
    kinds: HashMap<(Identifier, String), Kind>,
    /// Of lines about clients.
    clients: Allowance,
    /// The budget for lines about wrong passwords, so that other lines cannot keep them from the program that reads them.
    authentication: Allowance,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(|| {
    Mutex::new(Known { kinds: HashMap::new(), clients: Allowance::WHOLE, authentication: Allowance::WHOLE })
});

/// The layer that suppresses lines.
pub(super) struct Fold;

impl<S: Subscriber> Layer<S> for Fold {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let level = *event.metadata().level();
        if level > Level::INFO || event.metadata().target() == module_path!() {
            return true;
        }
        let mut told = Line::default();
        event.record(&mut told);
        let Ok(mut known) = KNOWN.lock() else { return true };
        let is_authentication = event.metadata().target() == LOG_TARGET;
        // Lines about authentication are not suppressed by repetition, because programs count them per client.
        let shown_max = if level > Level::WARN || is_authentication { INFO_SHOWN_MAX } else { SHOWN_MAX };
        known.is_shown(Instant::now(), event.metadata().callsite(), told, shown_max, is_authentication)
    }
}

impl Known {
    fn is_shown(
        &mut self,
        now: Instant,
        callsite: Identifier,
        told: Line,
        shown_max: u32,
        is_authentication: bool,
    ) -> bool {
        let Line { stream, message, bytes, of_client } = told;
        let allowance = match (is_authentication, of_client) {
            (true, _) => Some(&mut self.authentication),
            (false, true) => Some(&mut self.clients),
            (false, false) => None,
        };
        let is_shown = || allowance.is_none_or(|allowance| allowance.take(now, bytes + LINE_BYTES));
        if self.kinds.len() >= KINDS_MAX {
            return is_shown();
        }
        let new = Kind { since: now, seen: 0, left_out: 0, last: String::new() };
        let kind = self.kinds.entry((callsite, stream)).or_insert(new);
        kind.seen += 1;
        if kind.seen <= shown_max && is_shown() {
            return true;
        }
        kind.left_out += 1;
        kind.last = message;
        false
    }
}

/// Reports how many lines were suppressed in periods that have ended. Call it periodically.
pub(super) fn tell_left_out() {
    for (stream, count, last) in left_out(Instant::now(), WHILE) {
        tracing::warn!(
            stream = about(&stream),
            "{count} more lines like this one in the last {} s: {last}",
            WHILE.as_secs()
        );
    }
}

/// Reports how many lines were suppressed, before the exit.
pub(super) fn tell_all_left_out() {
    for (stream, count, last) in left_out(Instant::now(), Duration::ZERO) {
        tracing::warn!(stream = about(&stream), "{count} more lines like this one: {last}");
    }
}

/// The field with the line's stream; `None` for a line about no stream.
fn about(stream: &str) -> Option<DisplayValue<&str>> {
    (!stream.is_empty()).then(|| display(stream))
}

fn left_out(now: Instant, after: Duration) -> Vec<(String, u32, String)> {
    let mut found = Vec::new();
    if let Ok(mut known) = KNOWN.lock() {
        known.kinds.retain(|(_, stream), kind| {
            let over = now.saturating_duration_since(kind.since) >= after;
            if over && kind.left_out > 0 {
                found.push((stream.clone(), kind.left_out, std::mem::take(&mut kind.last)));
            }
            !over
        });
    }
    found
}

/// What an event says.
#[derive(Default)]
struct Line {
    stream: String,
    message: String,
    /// All fields together, as written.
    bytes: u32,
    /// Whether the line is about a client.
    of_client: bool,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(text, "{value:?}");
        self.bytes += (field.name().len() + 2 + text.len().min(LOG_VALUE_BYTES_MAX)) as u32;
        self.of_client |= matches!(field.name(), "client" | "publisher");
        match field.name() {
            "stream" => self.stream = text,
            "message" => self.message = text,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_clients_have_an_allowance_that_comes_back_slowly() {
        let start = Instant::now();
        let minute = |count: u32| start + Duration::from_secs(60) * count;
        let mut short = Allowance::WHOLE;
        let taken =
            |allowance: &mut Allowance, now, bytes| (0..).take_while(|_| allowance.take(now, bytes)).count() as u32;
        assert_eq!(taken(&mut short, start, 100), LOG_CLIENT_LINES_MAX);
        assert_eq!(taken(&mut short, minute(1), 100), LOG_CLIENT_LINES_PER_MIN);
        let mut long = Allowance::WHOLE;
        assert_eq!(taken(&mut long, start, 1_024), LOG_CLIENT_BYTES_MAX / 1_024);
        assert_eq!(taken(&mut long, minute(1), 1_024), LOG_CLIENT_BYTES_PER_MIN / 1_024);
        // After a day of flood and a long silence, no more than the full budget is available.
        let day: u32 = (2..=1_440).map(|at| taken(&mut long, minute(at), 1_024) * 1_024).sum();
        assert!(day <= 100_000_000, "{day} bytes a day");
        assert_eq!(taken(&mut long, minute(100_000), 1_024), LOG_CLIENT_BYTES_MAX / 1_024);
    }

    #[test]
    fn a_line_that_repeats_itself_is_counted_from_the_sixth_on() {
        let said = std::sync::Arc::new(Mutex::new(Vec::new()));
        struct Keep(std::sync::Arc<Mutex<Vec<Line>>>);
        impl<S: Subscriber> Layer<S> for Keep {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                let mut told = Line::default();
                event.record(&mut told);
                self.0.lock().unwrap().push(told);
            }
        }
        use tracing_subscriber::layer::SubscriberExt;
        let subscriber = tracing_subscriber::registry().with(Fold).with(Keep(said.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..20 {
                for stream in ["a", "b"] {
                    tracing::warn!(%stream, "trouble {number}");
                }
                tracing::info!("a client");
            }
            assert_eq!(said.lock().unwrap().len(), 5 + 5 + 20);
            tell_all_left_out();
            let said = said.lock().unwrap();
            assert!(said.len() >= 5 + 5 + 20 + 2);
            for stream in ["a", "b"] {
                let folded = |told: &&Line| told.stream == stream && told.message.starts_with("15 more lines");
                assert_eq!(said.iter().filter(folded).count(), 1, "about {stream}");
            }
        });
    }
}
