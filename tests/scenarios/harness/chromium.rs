//! Headless Chromium, controlled by WebDriver (W3C), as far as the scenarios need it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use serde_json::{Value, json};

use super::browser::Browser;
use super::program::Program;
use super::{DEADLINE, wait_until};

/// A session in its own browser.
pub struct Chromium {
    driver: SocketAddr,
    session: String,
    _program: Program,
}

/// Whether it is installed.
pub fn is_there() -> bool {
    ["chromedriver", "chromium"].iter().all(|name| Command::new(name).arg("--version").output().is_ok())
}

impl Chromium {
    /// Starts one whose window has that size.
    pub fn start(width: u32, height: u32) -> Chromium {
        let mut command = Command::new("chromedriver");
        command.args(["--port=0", "--log-level=WARNING"]);
        let program = Program::start(command);
        let mut port = None;
        wait_until("chromedriver listens", DEADLINE, || {
            let text = program.stdout.text();
            port = text
                .split("successfully on port ")
                .nth(1)
                .and_then(|rest| rest.split(['.', '\n']).next()?.trim().parse().ok());
            port.is_some()
        });
        let driver = SocketAddr::from(([127, 0, 0, 1], port.unwrap()));
        let arguments = [
            "--headless=new".into(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-dev-shm-usage".into(),
            "--autoplay-policy=no-user-gesture-required".into(),
            format!("--window-size={width},{height}"),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": { "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments } } } });
        let mut chromium = Chromium { driver, session: String::new(), _program: program };
        let made = chromium.command("POST", "/session", &wanted);
        chromium.session = made["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {made}")).to_owned();
        chromium
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(self.driver).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let body = if method == "POST" { body.to_string() } else { String::new() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        // It keeps the connection open, whatever is requested.
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        answer["value"].clone()
    }

    /// Slows its scripts and drawing down by this factor (with the debugger's protocol).
    pub fn slow_down(&self, times: u32) {
        let path = format!("/session/{}/goog/cdp/execute", self.session);
        let command = json!({ "cmd": "Emulation.setCPUThrottlingRate", "params": { "rate": times } });
        let answer = self.command("POST", &path, &command);
        assert!(answer["error"].is_null(), "{answer}");
    }
}

impl Browser for Chromium {
    fn open(&self, url: &str) {
        let answer = self.command("POST", &format!("/session/{}/url", self.session), &json!({ "url": url }));
        assert!(answer.is_null(), "{answer}");
    }

    fn run(&self, script: &str) -> Value {
        let path = format!("/session/{}/execute/sync", self.session);
        let answer = self.command("POST", &path, &json!({ "script": script, "args": [] }));
        assert!(answer["error"].is_null(), "{script}: {answer}");
        answer
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The browser ends with its session; the driver is killed.
        if !std::thread::panicking() && !self.session.is_empty() {
            self.command("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
    }
}
