//! Reads a relay's own counts from `/metrics`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Reads of cameras' connections.
const READS: &str = "rtsprelay_source_reads_total";

/// Bytes of media copied between the receive buffer and the chunk.
const COPIED: &str = "rtsprelay_source_copied_bytes_total";

/// Time that an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Counters that only the relay itself can know; `None` for those that it does not publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Reads of cameras' connections (`rtsprelay_source_reads_total`).
    pub source_reads: Option<u64>,
    /// Bytes copied on the way in (`rtsprelay_source_copied_bytes_total`).
    pub copied_bytes: Option<u64>,
}

impl Told {
    /// Asks the relay whose pages are at `address`.
    pub fn by(address: SocketAddr) -> Result<Told, String> {
        let fail = |e: std::io::Error| format!("http://{address}/metrics cannot be read: {e}");
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX).map_err(fail)?;
        stream.set_read_timeout(Some(ANSWER_MAX)).map_err(fail)?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").map_err(fail)?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(fail)?;
        if text.split(' ').nth(1) != Some("200") {
            return Err(format!("http://{address}/metrics: {:?}", text.lines().next().unwrap_or_default()));
        }
        Ok(Told::of(&text))
    }

    fn of(text: &str) -> Told {
        Told { source_reads: sum(text, READS), copied_bytes: sum(text, COPIED) }
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Told) -> Told {
        let less = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        Told {
            source_reads: less(self.source_reads, earlier.source_reads),
            copied_bytes: less(self.copied_bytes, earlier.copied_bytes),
        }
    }
}

/// The sum of a counter over all labels, in the text format of Prometheus; `None` if it does not occur.
fn sum(text: &str, name: &str) -> Option<u64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
        rest.rsplit_once(' ')?.1.parse::<f64>().ok()
    });
    values.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value)).map(|sum| sum as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_their_labels() {
        let text = "HTTP/1.0 200 OK\r\n\r\n# TYPE rtsprelay_source_reads_total counter\n\
                    rtsprelay_source_reads_total{stream=\"a\"} 5\nrtsprelay_source_reads_total{stream=\"b c\"} 7\n\
                    rtsprelay_source_reads_total_other 9\n";
        let told = Told::of(text);
        assert_eq!(told, Told { source_reads: Some(12), copied_bytes: None });
        let before = Told { source_reads: Some(2), copied_bytes: Some(1) };
        assert_eq!(told.since(&before), Told { source_reads: Some(10), copied_bytes: None });
    }
}
