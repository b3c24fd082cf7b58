//! `rtsprelay top`: a running relay's live table, from its `/status`.

use std::io::{self, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::failure::Failure;
use super::redraw::Redraw;
use crate::config::parse_http;
use crate::file;
use crate::limits::PASSWORD_BYTES_MAX;
use crate::metrics::status;
use crate::metrics::table::{Frame, clients, table};
use crate::sys;
use crate::wire::auth;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// How long the relay may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Maximum size of a status in bytes.
const STATUS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Shows the table until it is interrupted; once, if standard output is not a terminal.
///
/// # Errors
/// A sentence with the fix, if no relay answers there.
pub fn top(target: &Target) -> Result<(), Failure> {
    let out = io::stdout();
    let live = out.is_terminal();
    let mut shown = Redraw::default();
    loop {
        let (columns, rows) = sys::terminal_size(&out).unwrap_or((80, 24));
        let status = target.ask()?;
        let text = render(&status, columns, live.then_some(rows)).ok_or_else(|| target.is_none_of_ours())?;
        let bytes = if live { shown.table(text, (columns, rows)) } else { text };
        let mut lock = out.lock();
        let printed = lock.write_all(bytes.as_bytes()).and_then(|()| lock.flush());
        if printed.is_err() || !live {
            // If nobody reads standard output any more, that is fine.
            return Ok(());
        }
        std::thread::sleep(EVERY);
    }
}

/// The password in a file.
fn password_of(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let (password, by_all) = file::first_line(path, PASSWORD_BYTES_MAX).map_err(|error| {
        format!("--password-file: {shown} cannot be read ({error}); give a file with the password on its first line")
    })?;
    if by_all {
        // Without standard error, the table alone must do.
        let _ = writeln!(io::stderr(), "{}", file::exposed(shown));
    }
    Ok(password)
}

fn render(status: &Value, columns: usize, rows: Option<usize>) -> Option<String> {
    let report = status::report(status)?;
    let title = status::printable(status.get("title").and_then(Value::as_str)?);
    let frame = Frame { title, play: Vec::new(), columns, rows };
    let mut text = table(&report, &frame);
    let room = rows.map_or(usize::MAX, |rows| rows.saturating_sub(text.lines().count() + 1));
    text.push_str(&clients(status.get("clients").and_then(Value::as_array).map_or(&[], Vec::as_slice), columns, room));
    Some(text)
}

/// The server's address and the user.
pub struct Target {
    address: SocketAddr,
    user: Option<(String, String)>,
}

impl Target {
    /// Parses `[http://][USER[:PASSWORD]@]IP:PORT[/]`. The password may be on the first line of a file instead.
    ///
    /// # Errors
    /// A sentence with the fix, without any password, if the arguments are wrong.
    pub fn new(text: &str, password_file: Option<&Path>) -> Result<Target, Failure> {
        Target::parse(text, password_file.map(password_of).transpose()?)
    }

    /// Parses `[http://][USER[:PASSWORD]@]IP:PORT[/]`, with percent-encoded name and password. A password from a file is used
    /// unchanged.
    fn parse(text: &str, password: Option<String>) -> Result<Target, Failure> {
        let rest = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        let address = parse_http(address).map_err(|message| format!("--http: {message}"))?;
        let user = match (user.map(|user| user.split_once(':').ok_or(user)), password) {
            (None, None) => None,
            (Some(Ok((name, password))), None) => Some((percent_decoded(name), percent_decoded(password))),
            (Some(Err(name)), Some(password)) => Some((percent_decoded(name), password)),
            (Some(Err(_)), None) => {
                return Err(
                    "--http: a user needs a password; add --password-file FILE, or write USER:PASSWORD@IP:PORT".into(),
                );
            }
            (Some(Ok(_)), Some(_)) => {
                return Err("--http: there are two passwords; with --password-file write USER@IP:PORT".into());
            }
            (None, Some(_)) => return Err("--http: --password-file needs a user; write USER@IP:PORT".into()),
        };
        Ok(Target { address, user })
    }

    /// The error if the answer is not a relay's.
    pub(super) fn is_none_of_ours(&self) -> Failure {
        format!("the server at {} is not an rtsprelay of this version", self.address).into()
    }

    /// Requests a change, and returns the answer.
    pub(super) fn change(&self, method: &str, path: &str, body: &str) -> Result<String, Failure> {
        let answer = self.request(method, path, body)?;
        let said = String::from_utf8_lossy(&answer.body);
        let said: String = said.lines().map(|line| status::printable(line) + "\n").collect();
        match answer.status {
            200..300 => Ok(said),
            0 => Err(self.is_none_of_ours()),
            _ => Err(said.trim_end().into()),
        }
    }

    /// Sends a request, with credentials if the relay requires them.
    fn request(&self, method: &str, path: &str, body: &str) -> Result<Answer, Failure> {
        let address = self.address;
        let mut answer = self.send(method, path, body, "")?;
        if let (401, Some((user, password))) = (answer.status, &self.user) {
            let answered = |challenge: &String| auth::answer(challenge, user, password, method, path);
            if let Some(value) = answer.challenges.iter().find_map(answered) {
                answer = self.send(method, path, body, &format!("Authorization: {value}\r\n"))?;
            }
        }
        match (answer.status, &self.user) {
            (401, None) => Err(format!(
                "the relay at {address} requires a user; write --http USER@{address} --password-file FILE, or --http USER:PASSWORD@{address}"
            ).into()),
            (401, _) => Err(format!("the relay at {address} rejects that name and password").into()),
            _ => Ok(answer),
        }
    }

    /// Gets `/status`.
    pub(super) fn ask(&self) -> Result<Value, Failure> {
        let address = self.address;
        let answer = self.request("GET", "/status", "")?;
        match (answer.status, &self.user) {
            (403, _) => {
                Err(format!("the relay at {address} shows that only to users who may read every stream").into())
            }
            _ => serde_json::from_slice(&answer.body)
                .map_err(|_| format!("the server at {address} is not an rtsprelay").into()),
        }
    }

    fn send(&self, method: &str, path: &str, body: &str, header: &str) -> Result<Answer, Failure> {
        let address = self.address;
        let fail = |error: io::Error| {
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
                return format!(
                    "the relay at {address} has not answered for {} s; it hangs or is stopped, or its machine cannot be reached: check its log",
                    ANSWER_MAX.as_secs()
                );
            }
            format!(
                "no relay answers at {address} ({error}); set `http = \"{address}\"` in its configuration, or give its address with --http"
            )
        };
        let mut bytes = Vec::new();
        let got = TcpStream::connect_timeout(&address, ANSWER_MAX).and_then(|mut stream| {
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            // HTTP 1.0 has no chunked encoding.
            let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
            write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\n{length}{header}\r\n{body}")?;
            stream.take(STATUS_BYTES_MAX).read_to_end(&mut bytes)
        });
        got.map_err(fail)?;
        Ok(Answer::read(bytes))
    }
}

/// The relay's answer.
struct Answer {
    status: u16,
    challenges: Vec<String>,
    body: Vec<u8>,
}

impl Answer {
    fn read(mut bytes: Vec<u8>) -> Answer {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(bytes.len());
        let body = bytes.split_off((end + 4).min(bytes.len()));
        let head = String::from_utf8_lossy(&bytes);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let challenge = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("www-authenticate").then(|| value.trim().to_owned())
        };
        Answer { status: status.unwrap_or(0), challenges: lines.filter_map(challenge).collect(), body }
    }
}

/// `%40` and the like as what they stand for.
fn percent_decoded(text: &str) -> String {
    String::from_utf8_lossy(&crate::media::name::percent_decoded(text)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_hangs_is_told_from_one_that_is_not_there() {
        // The kernel accepts connections for a stopped process, which never answers.
        let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ask = |address: SocketAddr| Target { address, user: None }.ask().unwrap_err().to_string();
        let address = hangs.local_addr().unwrap();
        let error = ask(address);
        assert!(error.contains("has not answered for 5 s"), "{error}");
        // While a connection exists from this port, no other program can listen on it.
        let taken = std::net::TcpStream::connect(address).unwrap();
        let error = ask(taken.local_addr().unwrap());
        assert!(error.starts_with("no relay answers") && error.contains("Connection refused"), "{error}");
    }

    #[test]
    fn a_target_may_name_a_user() {
        let read = |text| Target::parse(text, None).map(|target| (target.address.to_string(), target.user));
        assert_eq!(read("127.0.0.1:8580"), Ok(("127.0.0.1:8580".into(), None)));
        let user = Some(("a".into(), "p@:w".into()));
        assert_eq!(read("http://a:p%40%3aw@[::1]:1/"), Ok(("[::1]:1".into(), user.clone())));
        assert_eq!(read("a:p@:w@[::1]:1"), Ok(("[::1]:1".into(), user)));
        for text in ["secret@127.0.0.1:1", "a:secret@nowhere", "a:secret@127.0.0.1"] {
            let refused = read(text).unwrap_err().to_string();
            assert!(refused.starts_with("--http: ") && !refused.contains("secret"), "{refused}");
        }
        // A password from a file is used unchanged, and needs a user name.
        let from_file = |text| Target::parse(text, Some("p%40".into())).map(|target| target.user);
        assert_eq!(from_file("a%40@127.0.0.1:1"), Ok(Some(("a@".into(), "p%40".into()))));
        for (text, said) in [("a:secret@127.0.0.1:1", "two passwords"), ("127.0.0.1:1", "needs a user")] {
            let refused = from_file(text).unwrap_err().to_string();
            assert!(refused.contains(said) && !refused.contains("secret"), "{refused}");
        }
    }
}
