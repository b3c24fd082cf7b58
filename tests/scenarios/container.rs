//! The image: only the relay and CA certificates, under the runtime's own seccomp profile and under ours.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use crate::harness::machine::{alone, cannot_run, is_root};
use crate::harness::program::{Program, run};
use crate::harness::relay::{Relay, address_after};
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, wait_until};

/// The relay's image, under its name in the compose file.
pub const RELAY: &str = "rtsprelay";

/// How long a player may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The static build compiles all of the relay's dependencies.
const BUILD_MAX: Duration = Duration::from_secs(900);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// podman with its own directory for everything; removed when dropped.
pub struct Podman {
    place: PathBuf,
}

impl Podman {
    /// The directory is still empty.
    pub fn new() -> Podman {
        // Its sockets' paths must be short.
        let place = std::env::temp_dir().join(format!("rtsprelay-podman-{}", std::process::id()));
        let podman = Podman { place };
        let place = podman.place.display();
        std::fs::create_dir_all(&podman.place).unwrap();
        // podman asks by itself for more than the machine allows, which is refused.
        let files = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit").1.min(65_536);
        // Debian's crun fails on some machines on which runc works.
        let engine = format!(
            "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc=4096:4096\"]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\ntmp_dir = \"{place}/tmp\"\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{place}/networks\"\n"
        );
        let storage = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{place}/root\"\nrunroot = \"{place}/run\"\n");
        std::fs::write(podman.place.join("containers.conf"), engine).unwrap();
        std::fs::write(podman.place.join("storage.conf"), storage).unwrap();
        podman
    }

    /// Points a command to the directory.
    pub fn around(&self, mut command: Command) -> Command {
        command.env("CONTAINERS_CONF", self.place.join("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.place.join("storage.conf"));
        command
    }

    fn command(&self) -> Command {
        self.around(Command::new("podman"))
    }

    /// The output of podman.
    ///
    /// # Errors
    /// The same, if it fails.
    pub fn output(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command().args(arguments).output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(said) } else { Err(said + &String::from_utf8_lossy(&output.stderr)) }
    }

    /// A new directory to build an image from.
    pub fn context(&self, name: &str) -> PathBuf {
        let context = self.place.join(name);
        std::fs::create_dir_all(&context).unwrap();
        context
    }

    /// Builds an image of that name.
    ///
    /// # Errors
    /// podman's output if it fails.
    pub fn build(&self, image: &str, context: &Path) -> Result<(), String> {
        self.output(&["build", "-q", "-t", image, context.to_str().unwrap()]).map(drop)
    }

    /// Builds the relay's image: the last stage of the Containerfile, around a static program built here.
    ///
    /// # Errors
    /// podman's output if it fails.
    pub fn build_relay(&self) -> Result<(), String> {
        let context = self.context("relay");
        let containerfile = std::fs::read_to_string(root().join("packaging/container/Containerfile")).unwrap();
        let (_, last) = containerfile.split_once("\nFROM scratch\n").expect("the last stage is from scratch");
        let last = format!("FROM scratch\n{}", last.replace("--from=build ", ""));
        for file in last.lines().filter_map(|line| line.strip_prefix("COPY ")) {
            let from = file.split(' ').next().unwrap().trim_start_matches('/');
            let into = context.join(from);
            std::fs::create_dir_all(into.parent().unwrap()).unwrap();
            match from {
                "image/rtsprelay" => static_program(&into),
                own if root().join(own).exists() => drop(std::fs::copy(root().join(own), &into).unwrap()),
                debians => drop(std::fs::copy(Path::new("/").join(debians), &into).unwrap()),
            }
        }
        std::fs::write(context.join("Containerfile"), last).unwrap();
        self.build(RELAY, &context)
    }

    /// Runs the image's program until it is stopped.
    fn start(&self, name: &str, options: &[&str], arguments: &[&str]) -> Program {
        let mut command = self.command();
        command.args(["run", "--rm", "--name", name, "--network", "host", "--read-only", "--cap-drop", "all"]);
        command.args(options).arg(RELAY).args(arguments);
        Program::start(command)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.output(&["rm", "--force", "--all", "--time", "0"]);
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

/// Builds the relay as the Containerfile does, but without the time for optimizing: its dependencies are compiled by the README's test,
/// or will be.
fn static_program(into: &Path) {
    let target = concat!(env!("CARGO_TARGET_TMPDIR"), "/readme");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "rustc",
        "-q",
        "--release",
        "--locked",
        "--bin",
        "rtsprelay",
        "--",
        "-C",
        "target-feature=+crt-static",
    ]);
    cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").env("CARGO_PROFILE_RELEASE_LTO", "off");
    cargo.env("CARGO_TARGET_DIR", target).env("CARGO_NET_OFFLINE", "true").current_dir(root());
    let built = Program::start(cargo).finish(BUILD_MAX);
    assert!(built.status.success(), "{built:#?}");
    let program = format!("{target}/release/rtsprelay");
    run(PATIENCE, "strip", &["-o", into.to_str().unwrap(), &program]).expect_silent_success();
}

fn listening(program: &Program) -> SocketAddr {
    let mut found = None;
    wait_until("the relay says where it listens", DEADLINE, || {
        let printed = program.stdout.text() + &program.stderr.text();
        found = address_after(&printed, |line| line.contains("listening") && !line.contains("http"));
        found.is_some()
    });
    found.unwrap()
}

/// Answers DNS queries for `name` with 127.0.0.1 (RFC 1035 section 4.1), and others with an empty response, until told to stop.
fn serve_names(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let wanted: Vec<u8> =
        name.split('.').flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes())).chain([0]).collect();
    let mut query = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut query) else { continue };
        let question_end = 12 + query[12..len].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
        let question = &query[12..question_end.min(len)];
        let is_it = question.to_ascii_lowercase().starts_with(&wanted) && question.ends_with(&[0, 1, 0, 1]);
        let mut answer = [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_it), 0, 0, 0, 0], question].concat();
        if is_it {
            answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        // The client may be gone.
        let _ = socket.send_to(&answer, from);
    }
}

#[test]
fn the_image_plays_under_both_profiles_finds_names_and_stops_in_time() {
    let _turn = alone();
    if !is_root() || Command::new("podman").arg("--version").output().is_err() {
        return cannot_run("the image takes podman and root (Debian's packages podman and runc)");
    }
    let podman = Podman::new();
    podman.build_relay().unwrap_or_else(|why| panic!("the image is not built: {why}"));
    if let Err(why) = podman.output(&["run", "--rm", "--network", "host", RELAY, "--version"]) {
        return cannot_run(&format!("podman with runc starts nothing here: {why}"));
    }
    what_is_in_it(&podman);

    let ours = format!("seccomp={}", root().join("packaging/container/seccomp.json").display());
    let has_uring = rtsprelay::egress::probe::probe().is_ok();
    for (name, options, io) in [
        ("default", &[][..], "epoll"),
        ("ours", &["--security-opt", &ours][..], if has_uring { "io_uring" } else { "epoll" }),
    ] {
        let program = podman.start(name, options, &["demo", "--listen", "127.0.0.1:0"]);
        let address = listening(&program);
        assert!(
            program.stderr.text().contains(&format!("io=\"{io}\""))
                || program.stdout.text().contains(&format!("io=\"{io}\"")),
            "{name}"
        );
        let url = format!("rtsp://{address}/");
        let of = ["-v", "error", "-read_intervals", "%+1", "-show_entries", "frame=media_type", "-of", "csv"];
        for transport in ["tcp", "udp"] {
            let played = run(PATIENCE, "ffprobe", &[&of[..], &["-rtsp_transport", transport, &url]].concat());
            let frames = played.stdout.lines().filter(|line| line.contains("video")).count();
            assert!(frames > 20, "{name}, {transport}: {frames} frames: {played:#?}");
        }
        podman.output(&["stop", "--time", "10", name]).unwrap();
        let ended = program.finish(DEADLINE);
        assert_eq!(ended.status.code(), Some(0), "{name}: {ended:#?}");
        assert!((ended.stdout + &ended.stderr).contains("stopping"), "it was not killed");
    }
    it_finds_names(&podman);
}

fn what_is_in_it(podman: &Podman) {
    let archive = podman.place.join("image.tar");
    let made = podman.output(&["create", "--name", "look", RELAY]).unwrap();
    podman.output(&["export", "-o", archive.to_str().unwrap(), made.trim()]).unwrap();
    let listed = run(PATIENCE, "tar", &["-tf", archive.to_str().unwrap()]).expect_silent_success();
    let mut files: Vec<&str> = listed.stdout.lines().filter(|line| !line.ends_with('/')).collect();
    // What the runtime mounts over the root.
    files.retain(|file| {
        !file.starts_with("dev/")
            && !["etc/hosts", "etc/resolv.conf", "etc/hostname", "run/.containerenv", "etc/mtab"].contains(file)
    });
    files.sort_unstable();
    assert_eq!(files, ["etc/rtsprelay/rtsprelay.toml", "etc/ssl/certs/ca-certificates.crt", "usr/bin/rtsprelay"]);
    let config = podman.output(&["inspect", "--format", "{{.Config.User}} {{.Config.StopSignal}}", "look"]).unwrap();
    assert!(config.starts_with("65532:65532 "), "{config}");
    podman.output(&["rm", "look"]).unwrap();
}

/// With /etc/hosts and with DNS: a static program contains glibc's code for both.
fn it_finds_names(podman: &Podman) {
    let origin = Relay::demo();
    let dns = UdpSocket::bind("127.0.0.77:53").expect("a port for names");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve_names(&dns, "camera.example", &stop));
        for (way, options, host) in [
            ("hosts", ["--add-host", "camera.test:127.0.0.1"], "camera.test"),
            ("dns", ["--dns", "127.0.0.77"], "camera.example"),
        ] {
            let source = format!("rtsp://{host}:{}/", origin.address().port());
            let program = podman.start(way, &options, &["run", "--listen", "127.0.0.1:0", "--source", &source]);
            let address = listening(&program);
            let mut said = String::new();
            let start = std::time::Instant::now();
            let found = loop {
                let answer = Client::connect(address).describe(&format!("rtsp://{address}/"));
                if answer.status == 200 {
                    break true;
                }
                if start.elapsed() > DEADLINE {
                    said = program.stdout.text() + &program.stderr.text();
                    break false;
                }
            };
            let _ = podman.output(&["stop", "--time", "10", way]);
            if !found {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(found, "{way}: {said}");
            program.finish(DEADLINE);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
