//! Formats the fields of a log line: the message first, then `name=value`. Untrusted text can end neither its value nor the line.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::escape::{Escaped, FieldValue, beginning};
use crate::limits::LOG_VALUE_BYTES_MAX;

/// Formats for all outputs: a terminal, a file, the journal and syslog.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer, first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'writer> {
    writer: Writer<'writer>,
    first: bool,
    result: fmt::Result,
}

/// As much of a text as is allowed in a line.
fn cut(text: &str) -> &str {
    beginning(text, LOG_VALUE_BYTES_MAX)
}

impl Visitor<'_> {
    fn put(&mut self, name: &str, value: &str) -> fmt::Result {
        let space = if std::mem::take(&mut self.first) { "" } else { " " };
        if name == "message" {
            return write!(self.writer, "{space}{}", Escaped(cut(value)));
        }
        // Italic and dim: these escapes are our own.
        let (name_in, name_out, equals_out) =
            if self.writer.has_ansi_escapes() { ("\x1b[3m", "\x1b[0m\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        write!(self.writer, "{space}{name_in}{name}{name_out}={equals_out}{}", FieldValue(cut(value)))
    }
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_ok() {
            self.result = self.put(field.name(), &format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::layer;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(ansi: bool, say: impl FnOnce()) -> String {
        let said = Said::default();
        let writer = said.clone();
        let lines = layer()
            .with_ansi(ansi)
            .without_time()
            .with_target(false)
            .with_level(false)
            .fmt_fields(Fields)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), say);
        String::from_utf8(said.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn what_a_stranger_wrote_is_in_quotes_and_on_its_line() {
        let words = "ok\nauthentication failed client=203.0.113.9 user=\u{202e}";
        let line = said(false, || {
            tracing::info!(stream = "front", fault = %words, debug = ?words, count = 7, none = None::<u8>, "it said {words}");
        });
        let escaped = "ok\\nauthentication failed client=203.0.113.9 user=\\u{202e}";
        assert_eq!(
            line.trim_end(),
            format!("it said {escaped} stream=\"front\" fault=\"{escaped}\" debug=\"{escaped}\" count=7")
        );
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn a_terminal_gets_no_escapes_but_ours() {
        let line = said(true, || tracing::info!(fault = %"\u{1b}]0;x\u{7}", "said"));
        assert!(line.contains("\\u{1b}]0;x\\u{7}") && !line.contains("\u{1b}]"), "{line:?}");
    }

    #[test]
    fn a_long_value_is_cut() {
        let line = said(false, || tracing::info!(fault = "ä".repeat(100_000), "said"));
        assert!(line.len() < 2 * LOG_VALUE_BYTES_MAX, "{} bytes", line.len());
    }
}
