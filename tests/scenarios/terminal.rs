//! The live table in a terminal.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::machine::beside_others;
use crate::harness::relay::BINARY;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, scratch_file, wait_until};

/// A terminal of its own tmux server, which ends with it.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    fn running(command: &str, columns: usize, rows: usize) -> Terminal {
        // The path of a socket must be short.
        let terminal = Terminal { socket: std::env::temp_dir().join(format!("rtsprelay-tmux-{}", fastrand::u64(..))) };
        let size = [columns.to_string(), rows.to_string()];
        terminal.tmux(&["new-session", "-d", "-x", &size[0], "-y", &size[1], command]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-u", "-f", "/dev/null", "-S"]).arg(&self.socket).args(arguments);
        let output = command.output().expect("tmux, of the package tmux");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Its contents, with wrapped lines joined again.
    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J"])
    }

    fn resize(&self, columns: usize, rows: usize) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// Waits for tables with another uptime, and checks the second, which was not started for another size: one table, no remains
    /// of another, and no line wider than the terminal.
    fn shows_one_table(&self, columns: usize, rows: usize) -> String {
        let mut times = std::collections::BTreeSet::new();
        let (mut screen, mut stood) = (String::new(), false);
        wait_until(&format!("tables in {columns}x{rows}"), DEADLINE, || {
            let now = self.screen();
            // Between two tables there is none.
            let Some(up) = now.lines().find_map(|line| line.strip_prefix("rtsprelay ")?.split_once("up ")) else {
                return false;
            };
            // The terminal receives a table line by line. It was complete if it remained until the next one.
            let is_next = times.insert(up.1.chars().take(8).collect::<String>());
            if is_next && stood && times.len() > 2 {
                return true;
            }
            stood = now == screen;
            screen = now;
            false
        });
        for word in ["STREAM", "rtsprelay "] {
            let count = screen.lines().filter(|line| line.starts_with(word)).count();
            assert_eq!(count, 1, "{word:?} in {columns}x{rows}:\n{screen}");
        }
        let table = screen.lines().skip_while(|line| !line.starts_with("rtsprelay "));
        assert!(table.clone().all(|line| line.chars().count() <= columns), "{columns}x{rows}:\n{screen}");
        assert!(table.count() <= rows, "{columns}x{rows}:\n{screen}");
        println!("{columns}x{rows}:\n{screen}");
        screen
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
        // It is gone with the server, if that existed.
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[test]
fn the_table_is_redrawn_in_place_in_terminals_of_any_size() {
    let _turn = beside_others();
    let config = scratch_file("terminal.toml");
    let long = "a-name-that-is-longer-than-its-column-has-room-for";
    std::fs::write(
        &config,
        format!(
            "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[[stream]]\nname = \"yard\"\nsource = \"test\"\n\
             [[stream]]\nname = \"{long}\"\nsource = \"rtsp://127.0.0.1:9/nobody\"\n"
        ),
    )
    .unwrap();
    let relay = Terminal::running(&format!("{BINARY} run --config {}", config.display()), 80, 24);
    let said = |word: &str| {
        let mut found = None;
        wait_until(word, DEADLINE, || {
            let screen = relay.tmux(&["capture-pane", "-p", "-J", "-S", "-"]);
            // The last line may be incomplete.
            let (whole, _) = screen.trim_end().rsplit_once('\n').unwrap_or_default();
            let of = whole.lines().find_map(|line| line.split_once(word));
            found = of.and_then(|(_, rest)| rest.split_once("=")?.1.split_whitespace().next()?.parse().ok());
            found.is_some()
        });
        found.unwrap()
    };
    let (address, http): (std::net::SocketAddr, std::net::SocketAddr) =
        (said(" listening address"), said("listening for http"));
    let screen = relay.shows_one_table(80, 24);
    assert!(screen.contains(&format!("play it: ffplay -rtsp_transport tcp rtsp://{address}/yard")), "{screen}");
    let mut client = Client::connect(address);
    client.play_everything(&format!("rtsp://{address}/yard"));
    // Keeps up, as a player does.
    let player = std::thread::spawn(move || while client.packet_or_end().is_some() {});
    for (columns, rows) in [(50, 14), (200, 50), (80, 24)] {
        relay.resize(columns, rows);
        relay.shows_one_table(columns, rows);
    }
    let top = Terminal::running(&format!("{BINARY} top --http {http}"), 80, 24);
    for (columns, rows) in [(80, 24), (200, 50), (50, 14)] {
        top.resize(columns, rows);
        let screen = top.shows_one_table(columns, rows);
        assert!(rows < 20 || screen.contains("CLIENT"), "{screen}");
    }
    drop((top, relay));
    player.join().expect("the player ends with the relay");
    std::fs::remove_file(&config).unwrap();
}
