//! The configuration: a valid one is served, an invalid one is rejected with the line and the fix.

use crate::harness::camera::Camera;
use crate::harness::machine::beside_others;
use crate::harness::program::{Finished, run};
use crate::harness::relay::{BINARY, Relay};
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, h264, scratch_file};

fn check(config: &str) -> Finished {
    let path = scratch_file("check.toml");
    std::fs::write(&path, config).unwrap();
    let finished = run(DEADLINE, BINARY, &["check", "--config", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    finished
}

#[track_caller]
fn refused(config: &str, words: &[&str]) {
    let finished = check(config);
    let printed = finished.stdout + &finished.stderr;
    assert_eq!(finished.status.code(), Some(2), "{printed}");
    for word in words {
        assert!(printed.contains(word), "{word:?} is not in: {printed}");
    }
}

const STREAM: &str = "[[stream]]\nname = \"front\"\nsource = \"test\"\n";

#[test]
fn what_is_right_passes() {
    let _turn = beside_others();
    let finished = check(&format!("listen = [\"127.0.0.1:0\"]\nworkers = 2\n\n[queue]\nage = \"2s\"\n\n{STREAM}"));
    assert_eq!(finished.status.code(), Some(0), "{finished:#?}");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_right_one_and_its_line() {
    let _turn = beside_others();
    refused(
        &format!("listen = [\"127.0.0.1:0\"]\nworker = 2\n\n{STREAM}"),
        &["unknown key worker;", "did you mean workers", ":2:"],
    );
    refused(&format!("[queue]\nagee = \"1s\"\n\n{STREAM}"), &["agee", "did you mean queue.age"]);
    refused("[[stream]]\nname = \"front\"\nsorce = \"test\"\n", &["sorce", "did you mean stream.source", ":3:"]);
}

#[test]
fn every_fault_is_told_at_once() {
    let _turn = beside_others();
    refused(
        "workrs = 2\nio = \"kqueue\"\n\n[[stream]]\nname = \"a\"\nsource = \"test\"\n",
        &["workers", "kqueue", "epoll"],
    );
}

#[test]
fn bad_values_are_refused() {
    let _turn = beside_others();
    refused(&format!("[queue]\nage = \"soon\"\n\n{STREAM}"), &["age", "soon"]);
    refused(&format!("{STREAM}\n{STREAM}"), &["front"]);
    refused("[[stream]]\nname = \"front\"\nsource = \"http://192.0.2.1/\"\n", &["source", "rtsp"]);
    refused("this is no TOML", &[":1:"]);
}

#[test]
fn a_missing_file_and_wrong_arguments_exit_with_2() {
    let _turn = beside_others();
    for arguments in [
        &["check", "--config", "/nonexistent/rtsprelay.toml"][..],
        &["run", "--config", "/nonexistent/rtsprelay.toml"],
        &["run", "--sauce", "rtsp://127.0.0.1/"],
        &["run", "--source", "not a url", "--listen", "127.0.0.1:0"],
        &["fly"],
    ] {
        let finished = run(DEADLINE, BINARY, arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {finished:#?}");
        assert!(!finished.stderr.is_empty(), "{arguments:?} tells why");
    }
}

#[test]
fn a_port_that_is_taken_exits_with_1_and_the_address() {
    let _turn = beside_others();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let finished = run(DEADLINE, BINARY, &["demo", "--listen", &address]);
    let printed = finished.stdout.clone() + &finished.stderr;
    assert_eq!(finished.status.code(), Some(1), "{printed}");
    assert!(printed.contains(&address), "{printed}");
}

#[test]
fn several_streams_are_served_by_their_names() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\n\n[[stream]]\nname = \"pattern\"\nsource = \"test\"\n\n\
         [[stream]]\nname = \"cam\"\nsource = \"{}\"\n",
        camera.url()
    ))
    .serving("/pattern");
    camera.wait_playing();
    camera.keyframe(5_000);
    let relay = relay.serving("/cam");
    for path in ["/pattern", "/cam"] {
        let mut client = Client::connect(relay.address());
        client.play_everything(&relay.url(path));
        assert!(h264::is_complete_keyframe(&client.frame_on(0)));
    }
    // With several streams the root is none of them.
    Client::connect(relay.address()).describe(&relay.url("/")).expect(404);
    Client::connect(relay.address()).describe(&relay.url("/other")).expect(404);
}
