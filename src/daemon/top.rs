//! `rtsprelay top`: the live table of a relay that runs, from its `/status`.

use std::io::{self, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::metrics::status;
use crate::metrics::table::{Frame, clients, table};
use crate::sys;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// How long the relay may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Bytes of a status that are read at most.
const STATUS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Shows the table until it is interrupted; once, where standard output is no terminal.
///
/// # Errors
/// A sentence with the cure, when nothing answers there.
pub fn top(address: SocketAddr) -> Result<(), String> {
    let out = io::stdout();
    let live = out.is_terminal();
    let mut shown = 0;
    loop {
        let (columns, rows) = sys::terminal_size(&out).unwrap_or((80, 24));
        let status = ask(address)?;
        let text = render(&status, columns, live.then_some(rows))
            .ok_or_else(|| format!("what answers at {address} is no rtsprelay of this version"))?;
        // Up to the first line of the table before, then erase all below (ECMA-48 CUU and ED).
        let erase = if shown > 0 { format!("\x1b[{shown}A\r\x1b[J") } else { String::new() };
        let mut lock = out.lock();
        let printed = lock.write_all((erase + &text).as_bytes()).and_then(|()| lock.flush());
        if printed.is_err() || !live {
            // A reader that has gone has seen enough.
            return Ok(());
        }
        // What does not fit has scrolled away, and cannot be erased.
        shown = text.lines().count().min(rows.saturating_sub(1));
        std::thread::sleep(EVERY);
    }
}

fn render(status: &Value, columns: usize, rows: Option<usize>) -> Option<String> {
    let report = status::report(status)?;
    let title: String =
        status.get("title").and_then(Value::as_str)?.chars().filter(|char| !char.is_control()).collect();
    let frame = Frame { title, play: Vec::new(), columns, rows };
    let mut text = table(&report, &frame);
    let room = rows.map_or(usize::MAX, |rows| rows.saturating_sub(text.lines().count() + 1));
    text.push_str(&clients(status.get("clients").and_then(Value::as_array).map_or(&[], Vec::as_slice), columns, room));
    Some(text)
}

/// Gets `/status`.
fn ask(address: SocketAddr) -> Result<Value, String> {
    let fail = |error: io::Error| {
        format!(
            "no relay answers at {address} ({error}); give a running one `http = \"{address}\"` in its configuration, or name its address with --http"
        )
    };
    let mut answer = Vec::new();
    let got = TcpStream::connect_timeout(&address, ANSWER_MAX).and_then(|mut stream| {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        // HTTP 1.0 has no chunks.
        write!(stream, "GET /status HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        stream.take(STATUS_BYTES_MAX).read_to_end(&mut answer)
    });
    got.map_err(fail)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(answer.len());
    let body = answer.get(end + 4..).unwrap_or_default();
    serde_json::from_slice(body).map_err(|_| format!("what answers at {address} is no rtsprelay"))
}
