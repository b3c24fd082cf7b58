//! Folds log lines that repeat themselves: of those from one place about one stream, the first few of a while are shown and
//! the others counted; nobody outside can make the log grow as he likes.

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

/// Warnings and errors of one kind that are shown within [`WHILE`].
const SHOWN_MAX: u32 = 5;

/// The same of lines about one client each: as many as there may be in a rush, and not more than a log can hold.
const INFO_SHOWN_MAX: u32 = 2_000;

/// The while.
const WHILE: Duration = Duration::from_secs(10);

/// Kinds that are kept track of at most; beyond them nothing is folded.
const KINDS_MAX: usize = 4_096;

struct Kind {
    since: Instant,
    seen: u32,
    shown_max: u32,
    /// The last one left out.
    last: String,
}

static KINDS: LazyLock<Mutex<HashMap<(Identifier, String), Kind>>> = LazyLock::new(Mutex::default);

/// The layer that leaves lines out.
pub struct Fold;

impl<S: Subscriber> Layer<S> for Fold {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let level = *event.metadata().level();
        if level > Level::INFO || event.metadata().target() == module_path!() {
            return true;
        }
        let mut told = Told::default();
        event.record(&mut told);
        let Ok(mut kinds) = KINDS.lock() else { return true };
        // Those about authentication are for a program that counts them by their clients.
        let of_clients = level > Level::WARN || event.metadata().target() == LOG_TARGET;
        let shown_max = if of_clients { INFO_SHOWN_MAX } else { SHOWN_MAX };
        is_shown(&mut kinds, Instant::now(), event.metadata().callsite(), told, shown_max)
    }
}

fn is_shown(
    kinds: &mut HashMap<(Identifier, String), Kind>,
    now: Instant,
    callsite: Identifier,
    told: Told,
    shown_max: u32,
) -> bool {
    if kinds.len() >= KINDS_MAX {
        return true;
    }
    let kind =
        kinds.entry((callsite, told.stream)).or_insert(Kind { since: now, seen: 0, shown_max, last: String::new() });
    kind.seen += 1;
    if kind.seen > shown_max {
        kind.last = told.message;
    }
    kind.seen <= shown_max
}

/// Says how many lines were left out, once their while is over. To be called now and then.
pub fn tell_left_out() {
    for (stream, count, last) in left_out(Instant::now(), WHILE) {
        tracing::warn!(
            stream = about(&stream),
            "{count} more lines like this one in the last {} s: {last}",
            WHILE.as_secs()
        );
    }
}

/// Says how many lines were left out, before the end.
pub fn tell_all_left_out() {
    for (stream, count, last) in left_out(Instant::now(), Duration::ZERO) {
        tracing::warn!(stream = about(&stream), "{count} more lines like this one: {last}");
    }
}

/// The field of a line about this stream; none for a line about no stream.
fn about(stream: &str) -> Option<DisplayValue<&str>> {
    (!stream.is_empty()).then(|| display(stream))
}

fn left_out(now: Instant, after: Duration) -> Vec<(String, u32, String)> {
    let mut found = Vec::new();
    if let Ok(mut kinds) = KINDS.lock() {
        kinds.retain(|(_, stream), kind| {
            let over = now.saturating_duration_since(kind.since) >= after;
            if over && kind.seen > kind.shown_max {
                found.push((stream.clone(), kind.seen - kind.shown_max, std::mem::take(&mut kind.last)));
            }
            !over
        });
    }
    found
}

/// What an event says.
#[derive(Default)]
struct Told {
    stream: String,
    message: String,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let into = match field.name() {
            "stream" => &mut self.stream,
            "message" => &mut self.message,
            _ => return,
        };
        // Writing to a string cannot fail.
        let _ = write!(into, "{value:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_repeats_itself_is_counted_from_the_sixth_on() {
        let said = std::sync::Arc::new(Mutex::new(Vec::new()));
        struct Keep(std::sync::Arc<Mutex<Vec<Told>>>);
        impl<S: Subscriber> Layer<S> for Keep {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                let mut told = Told::default();
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
                let folded = |told: &&Told| told.stream == stream && told.message.starts_with("15 more lines");
                assert_eq!(said.iter().filter(folded).count(), 1, "about {stream}");
            }
        });
    }
}
