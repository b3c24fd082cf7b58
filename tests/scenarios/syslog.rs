//! `report.syslog`: logs and reports go to the local syslog, and nothing blocks if it is absent, restarts or hangs.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::machine::{beside_others, cannot_run, is_root};
use crate::harness::relay::{BINARY, Relay};
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, scratch_file, wait_until};

/// A syslogd as seen by the relay: a socket that receives lines.
struct Syslogd(UnixDatagram);

impl Syslogd {
    fn start(path: &Path) -> Syslogd {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Syslogd(socket)
    }

    /// Waits for a line that contains `word`.
    fn hears(&self, word: &str) -> String {
        let mut line = String::new();
        wait_until(&format!("syslogd hears {word:?}"), DEADLINE, || {
            let mut buffer = [0; 2048];
            let count = self.0.recv(&mut buffer).unwrap_or(0);
            line = String::from_utf8_lossy(&buffer[..count]).into_owned();
            line.contains(word)
        });
        line
    }
}

#[test]
fn an_absent_restarted_or_hanging_syslogd_holds_up_nothing() {
    let _turn = beside_others();
    if !is_root() {
        return cannot_run("a /dev/log of its own needs a mount namespace, and that root");
    }
    // The path of a socket must be short.
    let log: PathBuf = std::env::temp_dir().join(format!("rtsprelay-log-{}", fastrand::u64(..)));
    let config = scratch_file("syslog.toml");
    let text = "listen = [\"127.0.0.1:0\"]\n[report]\nevery = \"200ms\"\nsyslog = true\n[[stream]]\nname = \"t\"\nsource = \"test\"\n";
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("unshare");
    let own_dev = "mount -t tmpfs tmpfs /dev && ln -s \"$0\" /dev/log && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", own_dev]).arg(&log);
    command.args([BINARY, "run", "--config"]).arg(&config);
    // There is no syslogd yet.
    let relay = Relay::start(command).serving("/t");
    assert!(relay.printed().contains("no daemon serves /dev/log"), "{}", relay.printed());
    let mut client = relay.player("/t");

    let syslogd = Syslogd::start(&log);
    let line = syslogd.hears("1 stream: 1 live; 1 client; in ");
    // Facility daemon (3), severity info (6): 3 * 8 + 6.
    assert!(line.starts_with("<30>") && line.contains("rtsprelay["), "{line}");

    drop(syslogd);
    std::fs::remove_file(&log).unwrap();
    for _ in 0..30 {
        client.frame_on(0);
    }
    let syslogd = Syslogd::start(&log);
    syslogd.hears("1 stream: 1 live; 1 client; in ");
    let mut another = Client::connect(relay.address());
    another.play_everything(&relay.url("/t"));
    let line = syslogd.hears("started playing");
    assert!(line.starts_with("<30>") && line.contains("session="), "{line}");

    // It stops reading: its queue fills up within a few reports.
    for _ in 0..90 {
        client.frame_on(0);
    }
    relay.signal(nix::sys::signal::Signal::SIGTERM);
    let (status, took, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    println!("with a syslogd that hangs it stopped in {took:?}");
    drop(syslogd);
    std::fs::remove_file(&log).unwrap();
    std::fs::remove_file(&config).unwrap();
}
