//! The viewer with servers that refuse, restart, or are not the relay; and what scripts learn about it.

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Instant;

use common::{Demo, Folder, GstServer, Running, play, summary, turn, viewer};
use serde_json::Value;

/// Live 1080p30 with motion, cheaply encoded.
const SOURCE: &str =
    "videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=1920,height=1080,framerate=30/1";

#[test]
fn another_server_with_login_plays_in_1080p() {
    let _turn = turn();
    let h264 = format!(
        "{SOURCE} ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=4000 key-int-max=30 ! rtph264pay name=pay0 pt=96 \
         audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay1 pt=8"
    );
    let h265 = format!(
        "{SOURCE} ! x265enc tune=zerolatency speed-preset=ultrafast bitrate=4000 key-int-max=30 ! rtph265pay name=pay0 pt=96"
    );
    let server = GstServer::start(Some("viewer:correct horse"), &[("h264", &h264), ("h265", &h265)]);
    let folder = Folder::new("login");
    let (right, wrong) = (folder.file("right"), folder.file("wrong"));
    std::fs::write(&right, "correct horse\n").expect("it can be written");
    std::fs::write(&wrong, "battery staple\n").expect("it can be written");
    for (name, transport) in [("h264", "tcp"), ("h264", "udp"), ("h265", "tcp"), ("h265", "udp")] {
        let address = format!("{}/{name}", server.address);
        let arguments = [&address, "--transport", transport, "--user", "viewer", "--password-file", &right];
        let (lines, code) = play(&[&arguments[..], &["--frames", "60", "--patience", "30"]].concat());
        let sum = summary(&lines);
        println!("{name} over {transport}: {sum}");
        assert_eq!(code, 0, "{sum}");
        assert_eq!((&sum["width"], &sum["height"]), (&Value::from(1920), &Value::from(1080)));
        assert_eq!((&sum["errors"], &sum["malformed"]), (&Value::from(0), &Value::from(0)), "{sum}");
    }
    let address = format!("{}/h264", server.address);
    let refused = [&[address.as_str(), "--user", "viewer", "--password-file", wrong.as_str()][..], &[address.as_str()]];
    for arguments in refused {
        let output = viewer(arguments).arg("--headless").output().expect("the viewer runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("401") && !said.contains("battery"), "{said}");
    }
}

#[test]
fn motion_jpeg_plays() {
    let _turn = turn();
    let launch = "videotestsrc is-live=true ! video/x-raw,format=I420,width=640,height=368,framerate=30/1 ! jpegenc quality=80 \
                  ! rtpjpegpay name=pay0 pt=26";
    let server = GstServer::start(None, &[("jpeg", launch)]);
    let (lines, code) = play(&[&format!("{}/jpeg", server.address), "--frames", "60", "--patience", "30"]);
    let sum = summary(&lines);
    assert_eq!((code, &sum["codec"], &sum["width"]), (0, &Value::from("MJPEG"), &Value::from(640)), "{sum}");
    assert_eq!((&sum["errors"], &sum["malformed"]), (&Value::from(0), &Value::from(0)), "{sum}");
}

#[test]
fn a_codec_that_is_not_known_is_named() {
    let _turn = turn();
    let launch = "videotestsrc is-live=true ! video/x-raw,format=I420,width=160,height=120,framerate=10/1 ! vp8enc deadline=1 \
                  ! rtpvp8pay name=pay0 pt=96";
    let server = GstServer::start(None, &[("vp8", launch)]);
    let address = format!("{}/vp8", server.address);
    let output = viewer(&[&address, "--headless", "--patience", "30"]).output().expect("the viewer runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("VP8") && said.contains("H.264"), "{said}");
}

#[test]
fn a_relay_that_restarts_is_found_again() {
    let _turn = turn();
    let demo = Demo::start();
    let address = demo.address.clone();
    let mut process = viewer(&[&address, "--json", "--patience", "60"]);
    let mut process = Running(process.stdout(Stdio::piped()).spawn().expect("the viewer starts"));
    let stdout = process.0.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout)
        .lines()
        .map(|line| -> Value { serde_json::from_str(&line.expect("it can be read")).expect("JSON") });
    let mut until = |what: &str, condition: &dyn Fn(&Value) -> bool| {
        lines.by_ref().find(condition).unwrap_or_else(|| panic!("the viewer ended before: {what}"))
    };
    until("pictures", &|line| line["fps_decoded"].as_f64() > Some(1.0));
    drop(demo);
    let away = until("it is away", &|line| line["state"] == "away");
    assert!(away["reason"].as_str().is_some_and(|reason| reason.contains(&address)), "{away}");
    let _again = Demo::start_at(&address);
    let listens = Instant::now();
    until("it plays again", &|line| line["state"] == "playing");
    println!("playing {:?} after the relay listens again", listens.elapsed());
    let second = until("pictures again", &|line| line["fps_decoded"].as_f64() > Some(1.0));
    assert_eq!(second["reconnects"], 1);
}

#[test]
fn scripts_learn_from_the_exit_code() {
    let _turn = turn();
    let demo = Demo::start();
    // While a connection exists from this port, no other program can listen on it.
    let taken = std::net::TcpStream::connect(&demo.address).expect("the relay listens");
    let nobody = taken.local_addr().expect("connected").to_string();
    let nothing = format!("{}/nothing", demo.address);
    let cases: [(&[&str], i32); 10] = [
        (&[&demo.address, "--headless", "--seconds", "5"], 0),
        (&[&demo.address, "--headless", "--frames", "100000", "--seconds", "5"], 5),
        (&[&nobody, "--headless", "--patience", "1"], 3),
        (&[&nobody, "--headless", "--seconds", "1"], 3),
        (&[&nothing, "--headless"], 3),
        (&["rtsps://127.0.0.1/", "--headless"], 2),
        (&["http://127.0.0.1/", "--headless"], 2),
        (&[&demo.address, "--headless", "--frames", "0"], 2),
        (&[&demo.address, "--headless", "--user", "somebody"], 2),
        (&[&demo.address, "--snapshot", "/nowhere/at/all.png"], 1),
    ];
    for (arguments, wanted) in cases {
        let output = viewer(arguments).output().expect("the viewer runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(wanted), "{arguments:?}: {said}");
        assert_eq!(wanted == 0 || wanted == 5, said.is_empty(), "{arguments:?}: {said}");
    }
}
