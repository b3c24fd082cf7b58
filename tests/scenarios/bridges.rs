//! Runs every command of docs/BRIDGES.md as written there: RTMP and SRT encoders publish to the relay, and SRT players and RTMP
//! platforms receive from it.

use std::process::Command;

use crate::harness::machine::{beside_others, has_own_network};
use crate::harness::program::{Program, run};
use crate::harness::relay::Relay;
use crate::harness::{DEADLINE, test_file, wait_until};

/// The page's commands, by the heading above them.
fn commands() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(test_file("../docs/BRIDGES.md")).expect("docs/BRIDGES.md");
    let (mut heading, mut shell, mut commands) = (String::new(), false, Vec::new());
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title.to_owned();
        } else if let Some(language) = line.strip_prefix("```") {
            shell = language == "sh";
        } else if shell {
            commands.push((heading.clone(), line.to_owned()));
        }
    }
    commands
}

fn start(line: &str) -> Program {
    let mut command = Command::new("bash");
    // It must not read from the tests' standard input.
    command.args(["-c", &format!("exec {}", line.replacen("ffmpeg ", "ffmpeg -nostdin -v warning ", 1))]);
    Program::start(command)
}

fn under<'a>(commands: &'a [(String, String)], heading: &str) -> Vec<&'a str> {
    let found: Vec<&str> = commands.iter().filter(|(of, _)| of == heading).map(|(_, line)| line.as_str()).collect();
    assert!(!found.is_empty(), "no command under {heading:?}");
    found
}

/// Video frames received within two seconds of stream time.
fn frames(url: &str) -> usize {
    let of =
        ["-v", "error", "-read_intervals", "%+2", "-select_streams", "v", "-show_entries", "packet=pts", "-of", "csv"];
    let seen = run(DEADLINE, "ffprobe", &[&of[..], &[url]].concat());
    seen.stdout.lines().filter(|line| line.starts_with("packet")).count()
}

#[test]
fn every_command_passes_pictures_on() {
    let _turn = beside_others();
    // The page's ports are free in there.
    if !has_own_network() {
        return;
    }
    let commands = commands();
    let mut tried = 0;
    let streams = "[[stream]]\nname = \"obs\"\nsource = \"publish\"\n[[stream]]\nname = \"front\"\nsource = \"test\"\n";
    let relay = Relay::configured(&format!("listen = \"127.0.0.1:8554\"\n{streams}")).serving("/front");
    for heading in ["An encoder sends RTMP", "An encoder sends SRT"] {
        let [bridge, encoder] = under(&commands, heading)[..] else { panic!("{commands:?}") };
        let _bridge = start(bridge);
        // A caller that comes before the listener exits; a person would try again.
        let mut sends = start(encoder);
        wait_until(&format!("{heading}: its stream is described"), DEADLINE, || {
            if sends.ended().is_some() {
                sends = start(encoder);
            }
            let mut client = crate::harness::rtsp::Client::connect(relay.address());
            client.describe(&relay.url("/obs")).status == 200
        });
        let frames = frames(&relay.url("/obs"));
        assert!(frames >= 25, "{heading}: {frames} frames");
        tried += 2;
    }
    let [bridge] = under(&commands, "A player wants SRT")[..] else { panic!("{commands:?}") };
    let _bridge = start(bridge);
    let mut seen = 0;
    wait_until("a player of SRT sees it", DEADLINE, || {
        seen = frames("srt://127.0.0.1:9001?mode=caller");
        seen >= 20
    });
    let [bridge] = under(&commands, "A platform wants RTMP")[..] else { panic!("{commands:?}") };
    let mut platform = Command::new("ffmpeg");
    let listens = [
        "-nostdin",
        "-v",
        "error",
        "-listen",
        "1",
        "-i",
        "rtmp://127.0.0.1:1936/live/key",
        "-t",
        "1",
        "-f",
        "null",
        "-",
    ];
    platform.args(listens);
    let mut platform = Program::start(platform);
    let mut sends = start(&bridge.replace("-c copy", "-c copy -an"));
    wait_until("the platform has received a second of it", DEADLINE, || {
        if sends.ended().is_some() {
            sends = start(&bridge.replace("-c copy", "-c copy -an"));
        }
        platform.ended().is_some()
    });
    let had = platform.finish(DEADLINE);
    assert!(had.status.success(), "{had:#?}");
    assert_eq!(tried + 2, commands.len(), "not every command was run: {commands:?}");
}
