//! Streams that are added at run time: one from a request, or all from the state file.

use toml::de::{DeTable, DeValue};

use super::bad_value::BadValue;
use super::read::Faults;
use super::stream::{self, StreamConfig};
use super::{Fault, value};

/// A stream that was added at run time.
#[derive(Clone, Debug, PartialEq)]
pub struct Added {
    /// What it is like.
    pub config: StreamConfig,
    /// Its keys as given, without the name.
    pub keys: String,
}

/// Lines of the document that precede the keys of a request.
const LINES_BEFORE: usize = 2;

/// Parses the keys of a stream with this name, in the format of a `[[stream]]` table.
///
/// # Errors
/// All errors, in the order of their lines.
pub fn read(name: &str, keys: &str) -> Result<Added, Vec<Fault>> {
    let fault = |message: String| Fault { line: None, message };
    value::stream_name(name).map_err(|why| vec![fault(why.to_string())])?;
    let text = format!("[[stream]]\nname = \"{name}\"\n{keys}\n");
    let mut faults = Faults::new(&text);
    let (document, errors) = DeTable::parse_recoverable(&text);
    for error in errors {
        let message = format!("not valid TOML: {}", super::redact(error.message()));
        faults.at(error.span().unwrap_or_default(), message);
    }
    let table = document.get_ref();
    let others = table.keys().any(|key| key.get_ref() != "stream");
    let mut streams = Vec::new();
    match table.get("stream").map(|tables| tables.get_ref()) {
        Some(DeValue::Array(items)) if items.len() == 1 && !others => {
            if let Some(DeValue::Table(table)) = items.iter().next().map(|item| item.get_ref()) {
                for key in table.keys().filter(|key| key.get_ref().starts_with("multicast")) {
                    let cure = "groups are set up at startup: add the stream to the configuration";
                    faults.at(key.span(), format!("stream.{}: {cure}", key.get_ref()));
                }
                stream::stream(0..0, table, &mut streams, &mut Vec::new(), &mut faults);
            }
        }
        _ => faults.whole("contains more than the keys of one stream; write only the keys of a [[stream]] table"),
    }
    if keys.contains(MARK) {
        faults.whole("contains [[stream]] in a comment or string, which would corrupt the state file; remove it");
    }
    let mut found = faults.into_sorted();
    for fault in &mut found {
        fault.line = fault.line.map(|line| line.saturating_sub(LINES_BEFORE).max(1));
    }
    match streams.pop() {
        Some(config) if found.is_empty() => {
            Ok(Added { config: StreamConfig { added: true, ..config }, keys: keys.trim().to_owned() })
        }
        _ => Err(found),
    }
}

/// The marker that starts each stream in the file.
const MARK: &str = "[[stream]]";

/// Parses the output of [`write`].
///
/// # Errors
/// The first stream that cannot be parsed, and why.
pub fn read_all(text: &str) -> Result<Vec<Added>, BadValue> {
    let mut added: Vec<Added> = Vec::new();
    // A comment precedes the first one; keys that contain the marker are refused ([`read`]).
    for part in text.split(MARK).skip(1) {
        let (line, keys) = part.trim_start().split_once('\n').unwrap_or((part.trim(), ""));
        let name = line.split_once('=').filter(|(key, _)| key.trim() == "name").map(|(_, name)| name.trim());
        let name = name.and_then(|name| name.strip_prefix('"')?.strip_suffix('"'));
        let name = name.ok_or("a [[stream]] does not start with its name; write name = \"…\" below it")?;
        let one = read(name, keys).map_err(|faults| {
            let faults: Vec<_> = faults.iter().map(Fault::to_string).collect();
            format!("stream {name:?}: {}", faults.join("; "))
        })?;
        if added.iter().any(|other| other.config.name == one.config.name) {
            return Err(format!("stream {name:?} is there twice; remove one").into());
        }
        added.push(one);
    }
    Ok(added)
}

/// Streams in the format of the configuration.
pub fn write(added: &[Added]) -> String {
    let one = |added: &Added| format!("\n[[stream]]\nname = \"{}\"\n{}\n", added.config.name, added.keys);
    let head = "# Streams that were added while rtsprelay ran (`rtsprelay streams add`). It rewrites this file with each change.\n";
    head.to_owned() + &added.iter().map(one).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SourceKind;

    #[test]
    fn what_is_written_is_read_again() {
        let one = read("yard/a", "source = \"rtsp://u:p@h/x\"\non_demand = true\n").unwrap();
        let two = read("b", "source = \"publish\"").unwrap();
        assert_eq!(two.config.source, SourceKind::Publisher { takeover: false });
        let both = vec![one, two];
        let text = write(&both);
        assert_eq!(read_all(&text).as_ref(), Ok(&both));
        assert_eq!(read_all(&write(&[])), Ok(Vec::new()));
        assert!(read_all(&(text.clone() + &text)).unwrap_err().to_string().contains("twice"));
        // Keys that would be read as two streams.
        assert!(read("a/x", "source = \"test\"\n# [[stream]]").is_err());
        assert!(read_all("[[stream]]\nsource = \"test\"\n").unwrap_err().to_string().contains("name"));
        assert!(
            read_all("[[stream]]\nname = \"a\"\nsource = \"tset\"\n").unwrap_err().to_string().contains("stream \"a\"")
        );
    }

    #[test]
    fn a_request_is_read_like_the_file_with_its_own_lines() {
        let refused = |name: &str, keys: &str| {
            let faults = read(name, keys).expect_err(keys);
            faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
        };
        assert!(
            refused("a", "sorce = \"test\"").contains("line 1: unknown key stream.sorce; did you mean stream.source?")
        );
        assert!(refused("a", "source = \"test\"\nstart = \"x\"").contains("line 2: stream.start"));
        assert!(refused("a", "name = \"b\"\nsource = \"test\"").contains("not valid TOML"));
        assert!(refused("a", "source = \"test\"\n[[stream]]\nname = \"b\"\nsource = \"test\"").contains("one stream"));
        assert!(refused("a", "source = \"test\"\n[limits]\nclients = 1").contains("one stream"));
        assert!(refused("a", "source = \"test\"\nmulticast = \"239.1.1.1:5000\"").contains("at startup"));
        assert!(refused("a b", "source = \"test\"").contains("letters"));
        assert!(refused("a*", "source = \"publish\"").contains("letters"));
        assert!(!refused("a", "source = \"rtsp://u:hunter2@h:x/\"").contains("hunter2"));
        assert!(!refused("a", "source = \"rtsp://u:hunter2@h").contains("hunter2"));
    }
}
