//! Headless Firefox, controlled by WebDriver BiDi (W3C) over a WebSocket, as far as the scenarios need it.

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::browser::Browser;
use super::program::Program;
use super::{DEADLINE, scratch_file, wait_until};

/// Debian's long-term release.
const PROGRAM: &str = "firefox-esr";

/// Pages may play with sound without a click, and the browser contacts no server by itself.
const PREFERENCES: &str = "user_pref(\"media.autoplay.default\", 0);
user_pref(\"media.autoplay.blocking_policy\", 0);
user_pref(\"datareporting.policy.dataSubmissionEnabled\", false);
user_pref(\"network.captive-portal-service.enabled\", false);
user_pref(\"network.connectivity-service.enabled\", false);
";

/// A session in its own browser.
pub struct Firefox {
    socket: RefCell<WebSocket<TcpStream>>,
    asked: Cell<u64>,
    /// The page.
    context: String,
    profile: PathBuf,
    program: Program,
}

/// Whether it is installed.
pub fn is_there() -> bool {
    Command::new(PROGRAM).arg("--version").output().is_ok()
}

impl Firefox {
    /// Starts one whose page has that size.
    pub fn start(width: u32, height: u32) -> Firefox {
        let profile = scratch_file("firefox");
        std::fs::create_dir_all(&profile).unwrap();
        std::fs::write(profile.join("user.js"), PREFERENCES).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["--headless", "--no-remote", "--remote-debugging-port", "0", "--profile"]).arg(&profile);
        // It refuses to run as root in another user's home.
        command.env("HOME", &profile);
        let program = Program::start(command);
        let mut address: Option<SocketAddr> = None;
        wait_until("Firefox listens", DEADLINE, || {
            let text = program.stderr.text() + &program.stdout.text();
            let rest = text.split("WebDriver BiDi listening on ws://").nth(1);
            address = rest.and_then(|rest| rest.split_once('\n')?.0.trim().parse().ok());
            address.is_some()
        });
        let stream = TcpStream::connect(address.unwrap()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (socket, _) = tungstenite::client(format!("ws://{}/session", address.unwrap()), stream).expect("BiDi");
        let mut firefox =
            Firefox { socket: RefCell::new(socket), asked: Cell::new(0), context: String::new(), profile, program };
        firefox.command("session.new", &json!({ "capabilities": {} }));
        let tree = firefox.command("browsingContext.getTree", &json!({}));
        firefox.context = tree["contexts"][0]["context"].as_str().expect("a page").to_owned();
        let viewport = json!({ "context": firefox.context, "viewport": { "width": width, "height": height } });
        firefox.command("browsingContext.setViewport", &viewport);
        firefox
    }

    fn command(&self, method: &str, params: &Value) -> Value {
        let id = self.asked.get() + 1;
        self.asked.set(id);
        let mut socket = self.socket.borrow_mut();
        socket.send(Message::text(json!({ "id": id, "method": method, "params": params }).to_string())).unwrap();
        loop {
            let Message::Text(text) = socket.read().expect("an answer") else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            // Events may arrive between responses.
            if answer["id"] == id {
                assert_eq!(answer["type"], "success", "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }
}

impl Browser for Firefox {
    fn open(&self, url: &str) {
        let params = json!({ "context": self.context, "url": url, "wait": "complete" });
        self.command("browsingContext.navigate", &params);
    }

    fn run(&self, script: &str) -> Value {
        // Values have their own format, so they are passed as text.
        let expression = format!("JSON.stringify((() => {{ {script} }})() ?? null)");
        let target = json!({ "context": self.context });
        let params = json!({ "expression": expression, "target": target, "awaitPromise": false });
        let answer = self.command("script.evaluate", &params);
        let text = answer["result"]["value"].as_str().unwrap_or_else(|| panic!("{script}: {answer}"));
        serde_json::from_str(text).unwrap()
    }
}

impl Drop for Firefox {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.command("browser.close", &json!({}));
            wait_until("Firefox ends", DEADLINE, || self.program.ended().is_some());
        }
        // A scratch directory; cleaning the build directory removes it if it stays.
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
