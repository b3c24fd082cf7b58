//! What the scenarios do with a real headless browser.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::DEADLINE;

/// A browser with one page.
pub trait Browser {
    /// Opens a page.
    fn open(&self, url: &str);

    /// Runs a function body in the page and returns its result.
    fn run(&self, script: &str) -> Value;

    /// Waits until an expression is true in the page.
    fn wait(&self, what: &str, expression: &str) {
        let mut last = Value::Null;
        let script = format!(
            "return [Boolean({expression}), JSON.stringify([window.view && {{...window.view, ages: undefined, tracks: undefined}}, document.getElementById('says').textContent, document.getElementById('why').textContent])];"
        );
        let started = Instant::now();
        while last[0] != true {
            assert!(started.elapsed() < DEADLINE, "{what}: {last}");
            last = self.run(&script);
            // Until the next look, which takes time from the browser.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
