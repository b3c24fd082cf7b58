//! The compose file as it is: an origin, two edges, HAProxy and Prometheus start in a network of their own, and players play through the
//! host's port.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::container::{Podman, RELAY};
use crate::harness::http::get;
use crate::harness::machine::{alone, cannot_run, is_root};
use crate::harness::net::{Net, SERVER};
use crate::harness::program::{Finished, Program, run};
use crate::harness::wait_until;
use crate::harness::websocket::watch;

/// How long each step may take: containers are copied completely, and Prometheus scrapes every 15 s.
const PATIENCE: Duration = Duration::from_secs(120);

/// The project's directory for containers.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/container")
}

/// The same tree started by podman-compose; stopped when dropped.
struct Compose<'a> {
    podman: &'a Podman,
}

impl Compose<'_> {
    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"));
        // From there, as the file's header says: the path of the seccomp profile is relative to where podman is started.
        command.args(["-m", "podman_compose"]).args(arguments).current_dir(directory());
        command.env("EDGE_PASSWORD", "between5them");
        Program::start(self.podman.around(command)).finish(PATIENCE)
    }

    /// The container of a service.
    fn container(&self, service: &str) -> String {
        let filter = format!("label=com.docker.compose.service={service}");
        self.podman.output(&["ps", "--all", "--quiet", "--filter", &filter]).unwrap().trim().to_owned()
    }

    fn inspect(&self, service: &str, format: &str) -> String {
        self.podman.output(&["inspect", "--format", format, &self.container(service)]).unwrap().trim().to_owned()
    }

    fn address(&self, service: &str) -> IpAddr {
        let address = self.inspect(service, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
        address.parse().unwrap_or_else(|_| panic!("{service} has the address {address:?}"))
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.run(&["logs"]);
            eprintln!("{}{}", said.stdout, said.stderr);
        }
        let _ = self.run(&["down", "--timeout", "0"]);
    }
}

/// An image with a program of Debian's and its libraries, in place of the one from its authors, which is not available
/// everywhere. It is started in the same way.
fn stand_in(podman: &Podman, image: &str, program: &str, how: &str) {
    let context = podman.context(image.rsplit('/').next().unwrap().split(':').next().unwrap());
    let linked = run(PATIENCE, "ldd", &[program]).expect_silent_success().stdout;
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain([program]) {
        let into = context.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(into.parent().unwrap()).unwrap();
        std::fs::copy(file, into).unwrap();
    }
    std::fs::create_dir(context.join("empty")).unwrap();
    std::fs::write(context.join("Containerfile"), format!("FROM scratch\nCOPY . /\n{how}")).unwrap();
    podman.build(image, &context).unwrap_or_else(|why| panic!("{image} is not built: {why}"));
}

#[test]
fn the_compose_file_comes_up_plays_is_watched_and_stops() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let has = |program: &str, argument: &str| Command::new(program).arg(argument).output().is_ok();
    let programs = [("podman", "--version"), ("haproxy", "-v"), ("prometheus", "--version")];
    if !is_root() || !python.exists() || !programs.iter().all(|(program, argument)| has(program, argument)) {
        return cannot_run(
            "the compose file takes root, podman, haproxy, prometheus and .venv, which tests/run installs",
        );
    }
    let _turn = alone();
    let net = Net::new(1);
    net.enter_server();
    let podman = Podman::new();
    podman.build_relay().unwrap_or_else(|why| panic!("the image is not built: {why}"));
    if let Err(why) = podman.output(&["run", "--rm", "--network", "host", RELAY, "--version"]) {
        return cannot_run(&format!("podman with runc starts nothing here: {why}"));
    }
    let haproxy = "USER 99:99\nSTOPSIGNAL SIGUSR1\nENTRYPOINT [\"/usr/sbin/haproxy\", \"-W\", \"-db\"]\n\
                   CMD [\"-f\", \"/usr/local/etc/haproxy/haproxy.cfg\"]\n";
    stand_in(&podman, "docker.io/library/haproxy:lts", "/usr/sbin/haproxy", haproxy);
    let prometheus = "COPY --chown=65534:65534 empty /prometheus\nUSER 65534:65534\nENTRYPOINT [\"/usr/bin/prometheus\"]\n\
                      CMD [\"--config.file=/etc/prometheus/prometheus.yml\", \"--storage.tsdb.path=/prometheus\"]\n";
    stand_in(&podman, "docker.io/prom/prometheus:latest", "/usr/bin/prometheus", prometheus);

    let compose = Compose { podman: &podman };
    let up = compose.run(&["up", "--detach"]);
    assert!(up.status.success(), "{up:#?}");
    it_plays(&net, &compose);
    all_is_watched();

    // No clients are left for the edges to disconnect.
    let stopped = compose.run(&["stop"]);
    assert!(stopped.status.success(), "{stopped:#?}");
    for relay in ["origin", "edge-a", "edge-b"] {
        assert_eq!(compose.inspect(relay, "{{.State.ExitCode}}"), "0", "{relay}");
    }
}

/// A player on another machine uses the host's port: it gets pictures, an edge knows its address, and the page is there.
fn it_plays(net: &Net, compose: &Compose<'_>) {
    let page = SocketAddr::from((SERVER, 8080));
    wait_until("HAProxy has found the edges", PATIENCE, || {
        std::net::TcpStream::connect(page).is_ok() && get(page, "/").0 == 200
    });
    watch(page, "/+live/front").fragment(0);
    assert_eq!(get(page, "/metrics").0, 403, "metrics must be requested from each edge");
    for relay in ["origin", "edge-a", "edge-b"] {
        let io = if rtsprelay::egress::probe::probe().is_ok() { "io=\"io_uring\"" } else { "io=\"epoll\"" };
        let said = compose.run(&["logs", relay]);
        assert!((said.stdout.clone() + &said.stderr).contains(io), "{relay}: {said:#?}");
    }
    let url = format!("rtsp://{SERVER}:8554/front");
    let of = [
        "-v",
        "error",
        "-rtsp_transport",
        "tcp",
        "-read_intervals",
        "%+20",
        "-show_entries",
        "frame=media_type",
        "-of",
        "csv",
    ];
    let player = Net::address(0);
    let edges = ["edge-a", "edge-b"].map(|edge| SocketAddr::new(compose.address(edge), 8580));
    let played = std::thread::scope(|scope| {
        let playing = scope.spawn(|| net.at_client(0, || run(PATIENCE, "ffprobe", &[&of[..], &[&url]].concat())));
        wait_until("an edge knows the player by its own address", PATIENCE, || {
            edges.iter().any(|edge| {
                let status: Value = serde_json::from_str(&get(*edge, "/status").1).expect("JSON");
                let clients = status["clients"].as_array().unwrap();
                clients.iter().any(|client| client["address"].as_str().unwrap().starts_with(&format!("{player}:")))
            })
        });
        playing.join().unwrap()
    });
    let frames = played.stdout.lines().filter(|line| line.contains("video")).count();
    assert!(frames > 450, "{frames} frames: {played:#?}");
}

/// Prometheus reports all three relays as up, and has their metrics.
fn all_is_watched() {
    let prometheus = SocketAddr::from(([127, 0, 0, 1], 9090));
    let mut targets = Vec::new();
    wait_until("Prometheus has looked at every relay", PATIENCE, || {
        let (status, body) = get(prometheus, "/api/v1/targets?state=active");
        let told: Value = if status == 200 { serde_json::from_str(&body).expect("JSON") } else { Value::Null };
        let active = told["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
        targets = active.iter().map(|target| format!("{} {}", target["scrapePool"], target["health"])).collect();
        targets.iter().filter(|target| target.ends_with("\"up\"")).count() == 3
    });
    assert_eq!(targets.len(), 3, "{targets:?}");
    let (_, body) = get(prometheus, "/api/v1/query?query=count(rtsprelay_build_info)");
    let told: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(told["data"]["result"][0]["value"][1], "3", "{told}");
}
