//! `rtsprelay streams`: lists a running relay's streams, from its `/status`.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::Value;

use super::failure::Failure;
use super::top::Target;
use crate::metrics::status::printable;

/// Prints a line for each stream.
///
/// # Errors
/// A sentence with the fix, if no relay answers there.
pub fn list_streams(target: &Target) -> Result<(), Failure> {
    let text = listing(&target.ask()?).ok_or_else(|| target.is_none_of_ours())?;
    // If nobody reads standard output any more, that is fine.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Adds a stream with these keys of a `[[stream]]` table, and prints its URL.
///
/// # Errors
/// The relay's objection, or a sentence with the fix if no relay answers.
pub fn add_stream(target: &Target, name: &str, keys: &str) -> Result<(), Failure> {
    target.change("POST", &format!("/+streams/{}", path(name)?), keys).map(|said| print(&said))
}

/// Removes a stream.
///
/// # Errors
/// As [`add_stream`].
pub fn remove_stream(target: &Target, name: &str) -> Result<(), Failure> {
    target.change("DELETE", &format!("/+streams/{}", path(name)?), "").map(|_| ())
}

/// Disconnects a client.
///
/// # Errors
/// As [`add_stream`].
pub fn end_client(target: &Target, session: &str) -> Result<(), Failure> {
    let is_session = session.len() == 16 && session.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_session {
        return Err("a session is 16 hexadecimal digits, as shown by /status".into());
    }
    target.change("DELETE", &format!("/+clients/{session}"), "").map(|_| ())
}

/// An invalid name would be another path, and the relay could not say what is wrong with it.
fn path(name: &str) -> Result<&str, Failure> {
    match crate::media::name::check(name) {
        Ok(()) => Ok(name),
        Err(bad) => Err(format!("{:?}: {bad}", crate::config::redact(name)).into()),
    }
}

fn print(text: &str) {
    // If nobody reads standard output any more, that is fine.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// The streams of a status; `None` if it is something else.
fn listing(status: &Value) -> Option<String> {
    let streams = status.get("streams")?.as_array()?;
    let text = |stream: &Value, name: &str| stream.get(name).and_then(Value::as_str).map(printable);
    let name = |stream: &Value| text(stream, "stream").unwrap_or_default();
    let width = streams.iter().map(|stream| name(stream).len()).max().unwrap_or(0).max("STREAM".len());
    let mut out = format!("{:<width$}  {:<10}  {:>7}  URL\n", "STREAM", "STATE", "CLIENTS");
    for stream in streams {
        let (state, clients) = (text(stream, "state")?, stream.get("clients")?.as_u64()?);
        let urls = stream.get("urls")?.as_array()?.iter().filter_map(Value::as_str).map(printable);
        // Writing to a string cannot fail.
        let _ = write!(out, "{:<width$}  {state:<10}  {clients:>7}", name(stream));
        for (index, url) in urls.enumerate() {
            let _ = if index == 0 {
                write!(out, "  {url}")
            } else {
                write!(out, "\n{:<indent$}{url}", "", indent = width + 23)
            };
        }
        out.push('\n');
        if let Some(fault) = text(stream, "fault") {
            let _ = writeln!(out, "{:<width$}  {fault}", "");
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn streams_are_listed_with_what_is_wrong() {
        let status = json!({"streams": [
            {"stream": "front", "state": "live", "clients": 12, "urls": ["rtsp://h:1/front", "rtsps://h:2/front"], "fault": null},
            {"stream": "yard", "state": "down", "clients": 0, "urls": ["rtsp://h:1/yard"], "fault": "connection \u{1b}[31mrefused"},
        ]});
        assert_eq!(
            listing(&status).as_deref(),
            Some(
                "STREAM  STATE       CLIENTS  URL\n\
                 front   live             12  rtsp://h:1/front\n\
                 \x20                            rtsps://h:2/front\n\
                 yard    down              0  rtsp://h:1/yard\n\
                 \x20       connection ?[31mrefused\n"
            )
        );
        assert_eq!(listing(&json!({"streams": [{"stream": "of an older relay"}]})), None);
    }
}
