//! Runs every command of the README as written there.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::camera::Camera;
use crate::harness::machine::{beside_others, has_own_network};
use crate::harness::program::{Program, run};
use crate::harness::relay::BINARY;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, test_file, wait_until};

/// The test of the service, which runs what needs its own system.
const SERVICE: &str = "systemd/service.sh";

/// Panics unless the test in `file` contains `text`, so that it covers `line`, which cannot run here.
#[track_caller]
fn in_test(line: &str, file: &str, text: &str) {
    let test = std::fs::read_to_string(test_file(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert!(test.contains(text), "{line}: no {text:?} in {file}");
}

/// The lines of the README's shell blocks.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(test_file("../README.md")).expect("README.md");
    let mut commands = Vec::new();
    let mut shell = false;
    for line in readme.lines() {
        if let Some(language) = line.strip_prefix("```") {
            shell = language == "sh";
        } else if shell && !line.trim().is_empty() {
            commands.push(line.split(" #").next().unwrap().trim().to_string());
        }
    }
    commands
}

#[test]
fn every_command_works() {
    let _turn = beside_others();
    let commands = commands();
    assert!(commands.len() >= 4, "{commands:?}");
    // A network for this thread and its children, in which the README's ports and its camera's address are free.
    if !has_own_network() {
        return;
    }
    run(DEADLINE, "ip", &["address", "add", "192.0.2.10/32", "dev", "lo"]).expect_silent_success();
    let camera = Camera::start_at("192.0.2.10:554".parse().unwrap());
    let directory = std::path::Path::new(BINARY).parent().unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());

    let mut relay: Option<Program> = None;
    let mut seen = Vec::new();
    for line in &commands {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec {line}")]).env("PATH", &path).current_dir(test_file(".."));
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["cargo", "run", "--release", "--", verb @ ("demo" | "run"), ..] => {
                if let Some(before) = relay.take() {
                    stop(before, line);
                }
                // The command is tested, not how long the optimizer takes.
                let mut build = Command::new("cargo");
                build.args(["build", "--release", "--locked"]).current_dir(test_file(".."));
                for command in [&mut build, &mut command] {
                    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").env("CARGO_PROFILE_RELEASE_LTO", "off");
                    command.env("CARGO_TARGET_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/readme"));
                    command.env("CARGO_NET_OFFLINE", "true");
                }
                let built = Program::start(build).finish(Duration::from_secs(900));
                assert!(built.status.success(), "{built:#?}");
                let mut started = Program::start(command);
                wait_until(&format!("{line} serves"), DEADLINE, || {
                    let ended = started.ended();
                    assert!(ended.is_none(), "{line}: {ended:?}\n{}", started.stderr.text());
                    let Ok(stream) = std::net::TcpStream::connect("127.0.0.1:8554") else { return false };
                    let address = stream.peer_addr().unwrap();
                    let status = Client::connect(address).describe("rtsp://127.0.0.1:8554/").status;
                    if verb == "run" {
                        camera.keyframe(1_000);
                    }
                    status == 200
                });
                relay = Some(started);
                seen.push(if verb == "demo" { "demo" } else { "run" });
            }
            ["rtsprelay", "check", ..] => {
                let finished = Program::start(command).finish(DEADLINE);
                assert!(finished.status.success(), "{line}: {finished:#?}");
            }
            ["ffplay", url] => {
                // There is no screen: the same URL, decoded.
                assert!(relay.is_some(), "{line} comes after a relay");
                let player = ["-nostdin", "-v", "error", "-i", url, "-t", "1", "-f", "null", "-"];
                run(DEADLINE, "ffmpeg", &player).expect_silent_success();
                seen.push("play");
            }
            // The test of the service runs these in its own system.
            ["cargo", "deb"] => in_test(line, "service.rs", "cargo_deb()"),
            ["sudo", "dpkg", "-i", _] => in_test(line, SERVICE, "guest dpkg -i "),
            // What an editor would write.
            ["sudo", "editor", file] => in_test(line, SERVICE, &format!("root{file}\"")),
            ["sudo", "systemctl", "enable", "--now", unit] => {
                in_test(line, SERVICE, "guest systemctl enable ");
                in_test(line, SERVICE, &format!("guest systemctl start {unit}"));
            }
            ["sudo", "systemctl", verb, unit] => in_test(line, SERVICE, &format!("guest systemctl {verb} {unit}")),
            // The test of the image builds its last stage, and runs it like this.
            ["docker", "build", .., file, "."] => in_test(line, "scenarios/container.rs", file),
            ["docker", "run", .., "demo", "--listen", "0.0.0.0:8554"] => {
                in_test(line, "scenarios/container.rs", "[\"demo\", \"--listen\", ");
            }
            ["tests/run"] => assert!(test_file("run").exists(), "{line}"),
            _ => panic!("this scenario does not know how to try {line:?}"),
        }
    }
    if let Some(last) = relay {
        stop(last, "the last command");
    }
    for wanted in ["demo", "run", "play"] {
        assert!(seen.contains(&wanted), "the README has no {wanted}: {commands:?}");
    }
}

fn stop(relay: Program, before: &str) {
    relay.signal(Signal::SIGINT);
    let finished = relay.finish(DEADLINE);
    assert_eq!(finished.status.code(), Some(0), "before {before}: {finished:#?}");
}
