//! What released versions hand over is taken in: the running relay's side of upgrades is recorded in `tests/data/upgrade/`, a file for each
//! version, and played here to the program under test, with sockets of new clients.
//!
//! `RTSPRELAY_KEEP_RECORDING=1 cargo test --test scenarios -- upgrade_recorded` writes the file of the current version.

use std::collections::HashMap;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rtsprelay::sys::spawn_detached;
use rtsprelay::upgrade::{self, Channel, Successor, VERSION, VERSION_OLDEST};
use serde_json::{Value, json};

use crate::harness::camera::{Camera, rtp};
use crate::harness::machine::beside_others;
use crate::harness::publisher::Publisher;
use crate::harness::relay::{BINARY, Relay, Uring, command};
use crate::harness::rtsp::{Client, Packet};
use crate::harness::{DEADLINE, scratch_file, test_file, wait_until};
use crate::upgrade::{has_ended, serving_at};

/// The published packets' source.
const PUBLISHED_SSRC: u32 = 0x3333;

/// The first bytes of a recording's head line tell where everything stood.
///
/// - `video`: channel, number and time of the camera's next packet; `published`: number and time of the publisher's next one
/// - `next`: for each stream, the number and the source of the next packet that its players are sent
struct Recording {
    head: Value,
    version: u32,
    messages: Vec<Message>,
}

/// A message of the running relay.
#[derive(Clone)]
struct Message {
    data: Value,
    blocks: Vec<Bytes>,
    descriptors: usize,
}

/// Takes so many bytes.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(count);
    *rest = left;
    taken
}

fn number(rest: &mut &[u8]) -> usize {
    u32::from_le_bytes(take(rest, 4).try_into().unwrap()) as usize
}

impl Recording {
    fn read(path: &Path) -> Recording {
        let all = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let end = all.iter().position(|byte| *byte == b'\n').expect("a head");
        let mut rest = &all[end + 1..];
        let head = serde_json::from_slice(&all[..end]).expect("a head");
        assert_eq!(take(&mut rest, 8), b"rtsprly\n");
        let version = number(&mut rest) as u32;
        let mut messages = Vec::new();
        // Up to the byte that commits.
        while rest.len() > 1 {
            let [text, blocks, descriptors] = std::array::from_fn(|_| number(&mut rest));
            let lengths: Vec<usize> = (0..blocks).map(|_| number(&mut rest)).collect();
            take(&mut rest, descriptors.div_ceil(rtsprelay::sys::MESSAGE_FDS_MAX));
            let data = serde_json::from_slice(take(&mut rest, text)).expect("JSON");
            let blocks = lengths.into_iter().map(|length| Bytes::copy_from_slice(take(&mut rest, length))).collect();
            messages.push(Message { data, blocks, descriptors });
        }
        Recording { head, version, messages }
    }

    /// Moves all times so that the freeze is now.
    fn move_to_now(&mut self) {
        let now = upgrade::monotonic_ns(Instant::now());
        let frozen = self.messages.iter().find_map(|message| message.data.pointer("/Frozen/reference_ns"));
        let frozen = frozen.and_then(Value::as_u64).expect("the time of the freeze");
        let moved = |at: &Value| json!((now - frozen.min(now)) + at.as_u64().unwrap() - frozen.saturating_sub(now));
        for message in &mut self.messages {
            for pointer in ["/Frozen/reference_ns", "/Part/0"] {
                if let Some(at) = message.data.pointer_mut(pointer) {
                    *at = moved(at);
                }
            }
        }
    }

    /// A configuration with the streams that were configured, and with the patterns of those that were created.
    fn config(&self) -> String {
        let mut config = "listen = [\"127.0.0.1:0\"]\nworkers = 2\nio = \"epoll\"\nqueue.age = \"60s\"\nqueue.stall_timeout = \"60s\"\n".to_owned();
        for stream in self.messages[0].data["streams"].as_array().expect("streams") {
            let name = match stream.get("origin") {
                None | Some(Value::Null) => &stream["name"],
                Some(origin) => match origin.pointer("/Made/pattern") {
                    Some(pattern) => pattern,
                    None => continue,
                },
            };
            config += &format!("[[stream]]\nname = {name}\nsource = {}\n", stream["source"]);
        }
        config
    }
}

/// A connected pair: the relay's end, and the other.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let near = listener.accept().unwrap().0;
    near.set_nonblocking(true).unwrap();
    (near, far)
}

/// The program under test, which has been started as a successor.
struct Taking {
    channel: Channel,
    successor: Successor,
    printed: PathBuf,
    config: PathBuf,
}

impl Taking {
    fn command(config: &Path, printed: &Path) -> Command {
        let mut command = Command::new(BINARY);
        let output = File::create(printed).unwrap();
        command.args(["run", "--config", config.to_str().unwrap()]).stdin(Stdio::null()).env_remove("RUST_LOG");
        command.stdout(output.try_clone().unwrap()).stderr(output);
        command
    }

    fn start(config: &str) -> Taking {
        let (path, printed) = (scratch_file("recorded.toml"), scratch_file("recorded.txt"));
        std::fs::write(&path, config).unwrap();
        let (mut channel, successor) = upgrade::start_command(&mut Taking::command(&path, &printed)).unwrap();
        channel.set_deadline(Instant::now() + DEADLINE);
        Taking { channel, successor, printed, config: path }
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(&self.printed).unwrap_or_default()
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the relay printed:\n{}---", self.printed());
        }
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.successor.pid() as i32), Signal::SIGKILL);
        for file in [&self.printed, &self.config] {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The other ends of what has been handed over.
#[derive(Default)]
struct Ends {
    players: Vec<(String, Client)>,
    publishers: HashMap<String, Client>,
    cameras: Vec<TcpStream>,
}

impl Ends {
    /// Makes the sockets of a shard's state, in their order.
    fn of_shard(&mut self, state: &Value, count: usize) -> Vec<TcpStream> {
        let mut sockets = Vec::new();
        let sessions = state["core"]["server"]["sessions"].as_array().expect("sessions");
        for link in state["core"]["links"].as_array().expect("links") {
            let (near, far) = pair();
            let mut client = Client::over(far);
            sockets.push(near);
            let session = sessions.iter().find(|session| session["conn"] == link["slot"]);
            let Some(session) = session else { continue };
            client.session = Some(format!("{:016x}", session["key"].as_u64().unwrap()));
            let stream = session["stream"].as_str().unwrap().to_owned();
            if link["playing"].is_null() {
                self.publishers.insert(stream, client);
            } else {
                self.players.push((stream, client));
            }
        }
        for source in state["sources"].as_array().expect("sources") {
            for _ in 0..source[1]["sockets"].as_u64().expect("a number of sockets") {
                let (near, far) = pair();
                self.cameras.push(far);
                sockets.push(near);
            }
        }
        assert_eq!(sockets.len(), count);
        sockets
    }
}

/// Hands over what the recording has, and lets the program serve; every message is passed to `change` before.
fn played(recording: &Recording, mut change: impl FnMut(&mut Value)) -> (Taking, Ends, TcpListener) {
    let mut taking = Taking::start(&recording.config());
    let (listener, mut ends) = (TcpListener::bind("127.0.0.1:0").unwrap(), Ends::default());
    let channel = &mut taking.channel;
    channel.greet_with(recording.version).expect("a version that is read");
    for (place, message) in recording.messages.iter().enumerate() {
        let Message { mut data, blocks, descriptors } = message.clone();
        let is_state = data.get("core").is_some();
        let sockets = if is_state { ends.of_shard(&data, descriptors) } else { Vec::new() };
        if place == 0 {
            data["listeners"] = json!([["Rtsp", listener.local_addr().unwrap().to_string()]]);
            data["datagrams"] = json!([]);
        } else if place + 1 == recording.messages.len() {
            let taken = channel.receive::<Value>().expect("it takes everything").message;
            assert_eq!(taken, "All");
        }
        change(&mut data);
        let mut fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        if place == 0 {
            fds.push(listener.as_fd());
        }
        channel.send(&data, &blocks, &fds).expect("it receives everything");
        if place == 0 {
            let answer = channel.receive::<Value>().expect("an answer").message;
            assert_eq!(answer["Ready"]["version"], env!("CARGO_PKG_VERSION"), "{answer}");
        }
    }
    channel.commit().unwrap();
    (taking, ends, listener)
}

/// The next packet of media, on whichever channel.
fn media(client: &mut Client) -> Packet {
    loop {
        let packet = client.packet();
        if packet.channel.is_multiple_of(2) {
            return packet;
        }
    }
}

/// Whether clients, camera and publisher go on where they were.
fn goes_on(recording: &Recording, ends: &mut Ends, address: std::net::SocketAddr) {
    let numbers = |name: &str| -> Vec<u64> {
        recording.head[name].as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
    };
    let video = numbers("video");
    let camera =
        Camera::going_on(ends.cameras.pop().expect("a camera"), (video[0] as u8, video[1] as u16, video[2] as u32));
    assert!(ends.cameras.is_empty());
    camera.delta_frame(200);
    camera.keyframe(500);
    let published = numbers("published");
    let publisher = ends.publishers.get_mut("by/name").expect("a publisher");
    publish(publisher, (published[0] as u16, published[1] as u32), 2);
    assert!(ends.players.len() >= 3);
    for (stream, client) in &mut ends.players {
        let url = format!("rtsp://{address}/{stream}");
        client.request("GET_PARAMETER", &url, &[]).expect(200);
        let next = &recording.head["next"][stream.as_str()];
        for step in 0..2u16 {
            let packet = media(client);
            let expected = (next[0].as_u64().unwrap() as u16).wrapping_add(step);
            assert_eq!((packet.seq(), u64::from(packet.ssrc())), (expected, next[1].as_u64().unwrap()), "{stream}");
        }
    }
    // For somebody new, too.
    for stream in ["cam", "by/name"] {
        serving_at(address, &format!("rtsp://{address}/{stream}"));
        let mut client = Client::connect(address);
        client.play_everything(&format!("rtsp://{address}/{stream}"));
        media(&mut client);
    }
    // Nobody may publish this name unless the stream is there.
    Publisher::start(address, &format!("rtsp://{address}/yard"));
}

/// Publishes keyframes from this number and time on. Returns the next.
fn publish(client: &mut Client, (mut seq, mut time): (u16, u32), frames: usize) -> (u16, u32) {
    for _ in 0..frames {
        let mut wire = Vec::new();
        rtp(&mut wire, 0, 0x80 | 96, seq, time, PUBLISHED_SSRC, &[0x65, 0x88, 1, 2, seq as u8]);
        client.send_raw(&wire);
        (seq, time) = (seq.wrapping_add(1), time.wrapping_add(3_000));
    }
    (seq, time)
}

/// Has a relay hand everything over, and records that.
fn record() -> PathBuf {
    let (path, config, state) = (scratch_file("recording"), scratch_file("recorded.toml"), scratch_file("added.toml"));
    let camera = Camera::start();
    std::fs::write(&state, "[[stream]]\nname = \"yard\"\nsource = \"publish\"\n").unwrap();
    std::fs::write(
        &config,
        format!(
            "listen = [\"127.0.0.1:0\"]\nworkers = 2\nio = \"epoll\"\nstate = \"{}\"\nqueue.age = \"60s\"\nqueue.stall_timeout = \"60s\"\n\
             [[stream]]\nname = \"cam\"\nsource = \"{}\"\n[[stream]]\nname = \"by/*\"\nsource = \"publish\"\n",
            state.display(),
            camera.url()
        ),
    )
    .unwrap();
    let to = format!("--test-record={}", path.display());
    let relay = Relay::start(command(Uring::Unused, &["run", "--config", config.to_str().unwrap(), &to]));
    camera.wait_playing();
    camera.keyframe(600);
    serving_at(relay.address(), &relay.url("/cam"));
    let mut publisher = Publisher::start(relay.address(), &relay.url("/by/name"));
    let mut published = publish(&mut publisher.client, (700, 90_000), 1);
    serving_at(relay.address(), &relay.url("/by/name"));
    let mut players: Vec<(&str, Client)> = ["cam", "cam", "by/name"]
        .map(|stream| {
            let mut client = Client::connect(relay.address());
            client.play_everything(&relay.url(&format!("/{stream}")));
            (stream, client)
        })
        .into();
    for _ in 0..12 {
        camera.delta_frame(200);
    }
    camera.keyframe(500);
    published = publish(&mut publisher.client, published, 5);
    let mut next = serde_json::Map::new();
    for (stream, client) in &mut players {
        // The last packet of each: the only slice of that size, and the last number that was published.
        let is_last = |payload: &[u8]| match *stream {
            "cam" => payload.len() == 502,
            _ => payload.last() == Some(&(published.0.wrapping_sub(1) as u8)),
        };
        let last = loop {
            let packet = media(client);
            if is_last(packet.payload()) {
                break packet;
            }
        };
        next.insert((*stream).to_owned(), json!([last.seq().wrapping_add(1), last.ssrc()]));
    }
    let (channel, seq, time) = camera.next_video();
    let head = json!({"program": env!("CARGO_PKG_VERSION"), "video": [channel, seq, time],
        "published": [published.0, published.1], "next": next});
    relay.signal(Signal::SIGUSR2);
    wait_until("it is handed over", DEADLINE, || relay.printed().contains(" took over from the relay that ran before"));
    let printed = relay.printed();
    let pid = printed.lines().find_map(|line| line.split_once("handed over to the new program pid=")).expect("a pid").1;
    let pid: i32 = pid.split(' ').next().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_until("the successor has ended", DEADLINE, || has_ended(pid));
    let recorded = std::fs::read(&path).unwrap();
    std::fs::write(&path, [head.to_string().as_bytes(), b"\n", &recorded].concat()).unwrap();
    for file in [config, state] {
        let _ = std::fs::remove_file(file);
    }
    path
}

/// The recordings of released versions, and of the current one as far as it has been kept.
fn kept() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(test_file("data/upgrade")).expect("recordings").map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn what_this_version_hands_over_is_recorded_and_taken_in() {
    let _turn = beside_others();
    let path = record();
    let mut recording = Recording::read(&path);
    assert_eq!(recording.version, VERSION);
    recording.move_to_now();
    let (_taking, mut ends, listener) = played(&recording, |_| {});
    goes_on(&recording, &mut ends, listener.local_addr().unwrap());
    if std::env::var_os("RTSPRELAY_KEEP_RECORDING").is_some() {
        let kept = test_file("data/upgrade").join(concat!(env!("CARGO_PKG_VERSION"), ".recording"));
        std::fs::copy(&path, kept).unwrap();
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_released_versions_hand_over_is_taken_in() {
    let _turn = beside_others();
    for path in kept() {
        let mut recording = Recording::read(&path);
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(recording.head["program"], name, "{}", path.display());
        recording.move_to_now();
        let (_taking, mut ends, listener) = played(&recording, |_| {});
        goes_on(&recording, &mut ends, listener.local_addr().unwrap());
    }
}

/// Adds a field that no version knows to each object that has this field.
fn add_unknown(data: &mut Value, beside: &[&str]) -> usize {
    match data {
        Value::Array(items) => items.iter_mut().map(|item| add_unknown(item, beside)).sum(),
        Value::Object(fields) => {
            let within: usize = fields.values_mut().map(|value| add_unknown(value, beside)).sum();
            let is_one = beside.iter().any(|name| fields.contains_key(*name));
            if is_one {
                fields.insert("of_a_later_version".to_owned(), json!({"any": [1, "thing"]}));
            }
            within + usize::from(is_one)
        }
        _ => 0,
    }
}

#[test]
fn unknown_fields_are_passed_over_and_missing_ones_have_defaults() {
    let _turn = beside_others();
    let path = kept().pop().expect("one");
    let mut recording = Recording::read(&path);
    recording.move_to_now();
    // Of all kinds: the first message, the freeze, a part of a log, shards, streams, logs, clients, players, sessions, sources.
    let beside = [
        "nonces",
        "reference_ns",
        "oldest",
        "sources",
        "known",
        "forced_below",
        "playing",
        "cursor",
        "key",
        "pipeline",
    ];
    let mut added = 0;
    let (_taking, mut ends, listener) = played(&recording, |data| added += add_unknown(data, &beside));
    assert!(added > beside.len(), "{added}");
    goes_on(&recording, &mut ends, listener.local_addr().unwrap());
    // What has a default may be missing: of a stream its origin, and how long everything took.
    let mut without = 0;
    let (_taking, mut ends, listener) = played(&recording, |data| {
        let streams = ["/streams", "/Frozen/streams"].map(|at| data.pointer(at).and_then(Value::as_array).cloned());
        for (at, streams) in ["/streams", "/Frozen/streams"].into_iter().zip(streams) {
            let Some(mut streams) = streams else { continue };
            for stream in &mut streams {
                if stream["origin"].is_null() {
                    without += usize::from(stream.as_object_mut().unwrap().remove("origin").is_some());
                }
            }
            *data.pointer_mut(at).unwrap() = Value::Array(streams);
        }
        if let Some(fields) = data.as_object_mut() {
            without += usize::from(fields.remove("restore").is_some());
        }
    });
    assert!(without >= 3, "{without}");
    goes_on(&recording, &mut ends, listener.local_addr().unwrap());
}

#[test]
fn a_later_version_of_the_format_is_refused_with_a_message() {
    let _turn = beside_others();
    let (config, printed) = (scratch_file("later.toml"), scratch_file("later.txt"));
    std::fs::write(&config, "listen = [\"127.0.0.1:0\"]\n[[stream]]\nname = \"cam\"\nsource = \"test\"\n").unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    let pid = spawn_detached(&mut Taking::command(&config, &printed), far.as_fd()).unwrap();
    drop(far);
    let later = VERSION + 1;
    std::io::Write::write_all(&mut near, &[&b"rtsprly\n"[..], &later.to_le_bytes()].concat()).unwrap();
    let mut answer = [0; 12];
    std::io::Read::read_exact(&mut near, &mut answer).unwrap();
    assert_eq!(answer, *b"rtsprly\n\0\0\0\0", "none is accepted");
    wait_until("it has ended", DEADLINE, || has_ended(pid as i32));
    let printed_text = std::fs::read_to_string(&printed).unwrap();
    let why = format!(
        "speaks version {later} of the format, and this program reads {VERSION_OLDEST} to {VERSION}; restart instead"
    );
    assert!(printed_text.contains(&why), "{printed_text}");
    for file in [config, printed] {
        std::fs::remove_file(file).unwrap();
    }
}
