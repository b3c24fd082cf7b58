//! The relay's output when it is not a terminal: short lines, the streams' URLs, and why it refused a request.

use crate::harness::http::http_address;
use crate::harness::machine::beside_others;
use crate::harness::program::run;
use crate::harness::relay::{BINARY, Relay, Uring, command};
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, wait_until};

/// The first line that contains all of `parts`, once it is printed.
fn line(relay: &Relay, parts: &[&str]) -> String {
    let mut found = None;
    wait_until(&format!("a line with {parts:?}"), DEADLINE, || {
        let printed = relay.printed();
        // The last line may be incomplete.
        let (whole, _) = printed.rsplit_once('\n').unwrap_or_default();
        found = whole.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
        found.is_some()
    });
    found.unwrap()
}

/// The URL in a log line about what is served.
fn url(line: &str) -> &str {
    line.split_once("url=").and_then(|(_, rest)| rest.split_whitespace().next()).expect("a URL")
}

#[test]
fn a_short_line_tells_how_all_streams_are_and_a_command_lists_them() {
    let _turn = beside_others();
    let relay = Relay::configured(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[report]\nevery = \"200ms\"\n\
         [[stream]]\nname = \"pattern\"\nsource = \"test\"\n\
         [[stream]]\nname = \"studio\"\nsource = \"publish\"\n\
         [[stream]]\nname = \"absent\"\nsource = \"rtsp://u:hunter2@127.0.0.1:9/\"\n",
    );
    let relay = relay.serving("/pattern");
    let http = http_address(&relay).to_string();
    // Each stream's URL is printed, and plays.
    for name in ["pattern", "studio", "absent"] {
        let told = line(&relay, &["serving", &format!("stream={name} ")]);
        assert_eq!(url(&told), relay.url(&format!("/{name}")), "{told}");
    }
    let _client = relay.player("/pattern");
    let told = line(&relay, &["3 streams: 1 live, 2 down (studio, absent); 1 client;", "p99"]);
    assert!(told.len() < 250 && told.contains("bit/s, out ") && !told.contains("_us="), "{told}");
    line(&relay, &["waiting for a publisher", "stream=studio"]);

    let listed = run(DEADLINE, BINARY, &["streams", "--http", &http]).expect_silent_success().stdout;
    let row = |name: &str| {
        listed.lines().find(|line| line.starts_with(name)).expect(name).split_whitespace().collect::<Vec<_>>()
    };
    let (pattern, studio) = (relay.url("/pattern"), relay.url("/studio"));
    assert_eq!(row("pattern"), ["pattern", "live", "1", &pattern], "{listed}");
    assert_eq!(row("studio"), ["studio", "down", "0", &studio], "{listed}");
    assert!(listed.contains("waiting for a publisher") && listed.contains("connection refused"), "{listed}");
    assert!(!listed.contains("hunter2") && !relay.printed().contains("hunter2"), "{listed}");
    let nobody = run(DEADLINE, BINARY, &["streams", "--http", "127.0.0.1:9"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(nobody.stderr.contains("http ="), "{nobody:#?}");
}

#[test]
fn without_a_file_one_url_is_printed_and_plays() {
    let _turn = beside_others();
    for arguments in [&["demo"][..], &["run", "--source", "test"]] {
        let arguments = [arguments, &["--listen", "127.0.0.1:0"]].concat();
        let relay = Relay::start(command(Uring::AsAsked, &arguments));
        let told = line(&relay, &["serving"]);
        assert_eq!(url(&told), relay.url("/"), "{told}");
        let relay = relay.serving("/");
        let mut client = Client::connect(relay.address());
        client.play_everything(url(&told));
        client.frame_on(0);
    }
}

#[test]
fn the_log_says_which_of_the_reasons_a_refusal_has() {
    let _turn = beside_others();
    let relay = Relay::demo();
    let mut client = Client::connect(relay.address());
    let track = tracks(&client.describe(&relay.url("/"))).remove(0);
    for (transport, reason) in [
        ("RTP/AVP;multicast", "no multicast group"),
        ("RTP/SAVP;unicast;client_port=5000-5001", "only RTP/AVP"),
        ("RTP/AVP;unicast;client_port=22-23", "belong to other services"),
        ("RTP/AVP;unicast", "without client_port"),
    ] {
        client.request("SETUP", &track.url, &[("Transport", transport)]).expect(461);
        line(&relay, &["refused (461)", transport, reason]);
    }
    client.request("SETUP", &relay.url("/"), &[("Transport", "RTP/AVP/TCP;interleaved=0-1")]).expect(459);
    line(&relay, &["refused (459)", "one track"]);
    client.setup(&track, 0, 1).expect(200);
    client.request("PLAY", &format!("{}/trackID=1", relay.url("/test")), &[]).expect(459);
    line(&relay, &["refused (459)", "was set up"]);
}
