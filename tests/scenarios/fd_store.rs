//! The service manager's file descriptor store (sd_notify(3), `FDSTORE=1`): a relay puts its listening sockets there, and the next relay
//! accepts on the very same sockets. The manager is `tests/servers/fd_store.py`; `tests/systemd` does the same under a real systemd.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde_json::Value;

use crate::harness::http::{http_address, https_address};
use crate::harness::machine::beside_others;
use crate::harness::program::Program;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::{DEADLINE, SYSTEM_PYTHON, scratch_file, test_file, wait_until};
use crate::tls::Certificate;

const OPTIONS: &str = "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n";
const GET: &str = "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n";

/// What the manager keeps: the inode of each descriptor, by its name.
type Kept = BTreeMap<String, u64>;

struct Manager {
    program: Program,
    name: String,
}

impl Manager {
    fn start() -> Manager {
        let name = format!("rtsprelay-test-{}-{}", std::process::id(), fastrand::u32(..));
        let mut command = Command::new(SYSTEM_PYTHON);
        command.arg(test_file("servers/fd_store.py")).args(["keep", &name]);
        let manager = Manager { program: Program::start(command), name };
        wait_until("the manager is there", DEADLINE, || !manager.messages().is_empty());
        manager
    }

    /// The command that runs a relay with this configuration, as the manager would.
    fn command(&self, config: &str) -> Command {
        let path = scratch_file("fd-store.toml");
        std::fs::write(&path, config).unwrap();
        let relay = command(Uring::AsAsked, &["run", "--config", path.to_str().unwrap()]);
        let mut command = Command::new(SYSTEM_PYTHON);
        command.arg(test_file("servers/fd_store.py")).args(["start", &self.name]).arg(relay.get_program());
        command.args(relay.get_args()).env_remove("RUST_LOG");
        command
    }

    /// Runs a relay with this configuration; returns when it serves.
    fn run(&self, config: &str) -> Relay {
        let before = self.messages().len();
        let relay = Relay::start(self.command(config)).serving("/t");
        wait_until("the relay is ready", DEADLINE, || {
            self.messages()[before..].iter().any(|message| message["told"]["READY"] == "1")
        });
        relay
    }

    /// Sends the manager a message, as a service would.
    fn tell(&self, lines: &str, descriptor: Option<&dyn AsFd>) {
        let socket = UnixDatagram::unbound().unwrap();
        let descriptors: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_fd().as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights };
        let address = UnixAddr::new_abstract(self.name.as_bytes()).unwrap();
        let lines = [IoSlice::new(lines.as_bytes())];
        sendmsg(socket.as_raw_fd(), &lines, rights, MsgFlags::empty(), Some(&address)).unwrap();
    }

    fn store(&self, name: &str, descriptor: &dyn AsFd) {
        self.tell(&format!("FDSTORE=1\nFDNAME={name}"), Some(descriptor));
    }

    /// What it has been told, and what it kept after each message.
    fn messages(&self) -> Vec<Value> {
        let printed = self.program.stdout.text();
        let whole = printed.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What it keeps after everything that it has been sent.
    fn kept(&self) -> Kept {
        let mark = fastrand::u64(..).to_string();
        self.tell(&format!("X_TEST={mark}"), None);
        let mut kept = Kept::new();
        wait_until("the manager has received everything", DEADLINE, || {
            let messages = self.messages();
            let marked = messages.iter().find(|message| message["told"]["X_TEST"] == *mark);
            kept = marked.map_or_else(Kept::new, |message| serde_json::from_value(message["kept"].clone()).unwrap());
            marked.is_some()
        });
        kept
    }
}

/// Listens on all these addresses, for each kind.
fn configuration(kinds: &BTreeMap<&str, Vec<SocketAddr>>, certificate: &Certificate, more: &str) -> String {
    let list = |kind| format!("{:?}", kinds[kind].iter().map(ToString::to_string).collect::<Vec<_>>());
    format!(
        "listen = {}\nlisten_tls = {}\nhttp = \"{}\"\nhttp_tls = \"{}\"\n{}\n{more}\n[[stream]]\nname = \"t\"\nsource = \"test\"\n",
        list("rtsp"),
        list("rtsps"),
        kinds["http"][0],
        kinds["https"][0],
        certificate.keys()
    )
}

fn any_ports() -> BTreeMap<&'static str, Vec<SocketAddr>> {
    let (v4, v6) = ("127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap());
    [("rtsp", vec![v4, v6]), ("rtsps", vec![v4]), ("http", vec![v4]), ("https", vec![v6])].into()
}

fn name(kind: &str, address: SocketAddr) -> String {
    format!("{kind}/{}", address.to_string().replace(':', "_"))
}

/// The addresses that the names of what is kept say.
fn addresses(kept: &Kept) -> BTreeMap<&str, Vec<SocketAddr>> {
    let mut kinds = BTreeMap::<_, Vec<SocketAddr>>::new();
    for name in kept.keys() {
        let (kind, address) = name.split_once('/').unwrap();
        kinds.entry(kind).or_default().push(address.replace('_', ":").parse().unwrap());
    }
    kinds
}

/// The inodes of a process' sockets.
fn sockets(pid: i32) -> BTreeSet<u64> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // Others may be closed in the meantime.
    let links = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    let inode = |link: std::path::PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    links.filter_map(inode).collect()
}

fn inode(socket: &impl AsFd) -> u64 {
    let file = std::fs::File::from(socket.as_fd().try_clone_to_owned().unwrap());
    file.metadata().unwrap().ino()
}

/// A connection with a request that has not been answered yet.
fn asked(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn is_answered(mut stream: TcpStream) -> bool {
    let mut answer = [0; 256];
    let count = stream.read(&mut answer).expect("an answer");
    answer[..count].windows(5).any(|bytes| bytes == b" 200 ")
}

#[test]
fn after_a_crash_the_next_relay_accepts_on_the_very_same_sockets() {
    let _turn = beside_others();
    let (manager, certificate) = (Manager::start(), Certificate::new());
    let relay = manager.run(&configuration(&any_ports(), &certificate, ""));
    let kept = manager.kept();
    let at = [
        ("rtsp", relay.address()),
        ("rtsps", relay.tls_address()),
        ("http", http_address(&relay)),
        ("https", https_address(&relay)),
    ];
    for (kind, address) in at {
        let socket = kept.get(&name(kind, address)).unwrap_or_else(|| panic!("no {kind} {address} in {kept:?}"));
        assert!(sockets(relay.pid()).contains(socket), "{kind} {address} in {kept:?} is another socket");
    }
    assert_eq!(kept.len(), 5, "{kept:?}");
    relay.signal(Signal::SIGKILL);
    relay.finish(DEADLINE);

    // Nobody accepts them now.
    let mut waiting: Vec<TcpStream> = Vec::new();
    let kinds = addresses(&kept);
    waiting.extend(kinds["rtsp"].iter().map(|&address| asked(address, OPTIONS)));
    // More than have places at a time.
    waiting.extend((0..100).map(|_| asked(kinds["http"][0], GET)));
    let relay = manager.run(&configuration(&kinds, &certificate, ""));
    assert!(waiting.into_iter().all(is_answered));
    assert_eq!((relay.tls_address(), https_address(&relay)), (kinds["rtsps"][0], kinds["https"][0]));
    let sockets = sockets(relay.pid());
    assert!(kept.values().all(|socket| sockets.contains(socket)), "{kept:?}");
    assert_eq!(manager.kept(), kept);
}

#[test]
fn what_is_not_wanted_or_is_not_what_its_name_says_is_closed() {
    let _turn = beside_others();
    let (manager, certificate) = (Manager::start(), Certificate::new());
    let [unwanted, false_port, unknown] = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let unwanted_at = unwanted.local_addr().unwrap();
    let connection = TcpStream::connect(false_port.local_addr().unwrap()).unwrap();
    let connected = connection.local_addr().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let names = [
        name("rtsp", unwanted_at),
        "rtsp/127.0.0.1_1".to_owned(),
        "srt/127.0.0.1_2".to_owned(),
        name("http", connected),
        "rtsps/127.0.0.1_3".to_owned(),
    ];
    let descriptors: [&dyn AsFd; 5] = [&unwanted, &false_port, &unknown, &connection, &null];
    names.iter().zip(descriptors).for_each(|(name, descriptor)| manager.store(name, descriptor));
    assert_eq!(manager.kept().len(), 5);
    let relay = manager.run(&configuration(&any_ports(), &certificate, ""));
    let (kept, printed) = (manager.kept(), relay.printed());
    assert!(kept.len() == 5 && names.iter().all(|name| !kept.contains_key(name)), "{kept:?}\n{printed}");
    let sockets = sockets(relay.pid());
    for inode in [inode(&unwanted), inode(&false_port), inode(&unknown), inode(&connection)] {
        assert!(!sockets.contains(&inode), "{printed}");
    }
    for line in [
        format!("does not have this address for rtsp any more; its socket is closed address={unwanted_at}"),
        format!(
            "is bound to {}, unlike its name says; it is closed name=rtsp/127.0.0.1_1",
            false_port.local_addr().unwrap()
        ),
        "has an unknown name; it is closed name=\"srt/127.0.0.1_2\"".to_owned(),
        format!("does not listen, unlike its name says; it is closed name={}", names[3]),
        "cannot be examined (Socket operation on non-socket (os error 88)); it is closed name=rtsps/127.0.0.1_3"
            .to_owned(),
    ] {
        assert!(printed.contains(&line), "{line} is not in:\n{printed}");
    }
    // Refused, although this process has the socket too; the others are left as they were.
    TcpStream::connect(unwanted_at).expect_err("nobody would accept it");
    for other in [false_port, unknown] {
        TcpStream::connect(other.local_addr().unwrap()).unwrap();
    }
}

#[test]
fn a_stop_for_good_leaves_no_socket_behind_and_one_for_a_restart_does() {
    let _turn = beside_others();
    let (manager, certificate) = (Manager::start(), Certificate::new());
    let stopped = |relay: Relay, signal| {
        relay.signal(signal);
        let (status, _, printed) = relay.finish(DEADLINE);
        assert_eq!(status.code(), Some(0), "{printed}");
        manager.kept()
    };
    let relay = manager.run(&configuration(&any_ports(), &certificate, ""));
    let kept = manager.kept();
    // The signal of `RestartKillSignal=`.
    assert_eq!(stopped(relay, Signal::SIGINT), kept);
    let kinds = addresses(&kept);
    let waiting = asked(kinds["rtsp"][0], OPTIONS);
    let relay = manager.run(&configuration(&kinds, &certificate, ""));
    assert!(is_answered(waiting));
    assert_eq!(stopped(relay, Signal::SIGTERM), Kept::new());
    for &address in kinds.values().flatten() {
        TcpStream::connect(address).expect_err("nobody would accept it");
    }
    // With `drain` other relays take over, and here a connection would wait for all of it.
    let relay = manager.run(&configuration(&any_ports(), &certificate, "drain = \"1s\""));
    assert_eq!(manager.kept().len(), 5);
    assert_eq!(stopped(relay, Signal::SIGINT), Kept::new());
}

#[test]
fn a_relay_that_cannot_start_leaves_no_socket_behind() {
    let _turn = beside_others();
    let (manager, certificate) = (Manager::start(), Certificate::new());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut kinds = any_ports();
    kinds.insert("http", vec![taken.local_addr().unwrap()]);
    let finished = Program::start(manager.command(&configuration(&kinds, &certificate, ""))).finish(DEADLINE);
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert_eq!(manager.kept(), Kept::new());
    assert!(manager.messages().iter().all(|message| message["told"]["FDSTORE"].is_null()));
}
