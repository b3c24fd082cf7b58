//! Malformed or unusual answers.

use super::{Variant, WHOLE, play};
use crate::harness::machine::beside_others;
use crate::harness::scripted::auth::Login;
use crate::harness::scripted::{Reply, Request, Script};

/// Requires TLS; redirects requests for any URL other than `rtsps://`.
pub(super) fn row_1() -> Vec<Variant> {
    let script = Script::default().by_tls().answers(|request, reply| {
        if !request.url.starts_with("rtsps://") && request.url != "*" {
            reply.refuse(301, "Moved Permanently");
            reply.set("Location", request.url.replacen("rtsp://", "rtsps://", 1));
        }
    });
    vec![("r1", script)]
}

/// A line with one space in the head of its answer to PLAY.
pub(super) fn row_3() -> Vec<Variant> {
    let script = Script::default().answers(|request, reply| {
        if request.method == "PLAY" {
            reply.edit = Some(Box::new(|text| text.replacen("\r\nSession:", "\r\n \r\nSession:", 1)));
        }
    });
    vec![("r3", script)]
}

/// No `Session` before the answer to PLAY, or none at all.
pub(super) fn row_4() -> Vec<Variant> {
    let late = |request: &Request, reply: &mut Reply| {
        if request.method == "SETUP" {
            reply.remove("Session");
        }
    };
    let never = |_: &Request, reply: &mut Reply| reply.remove("Session");
    vec![("r4-late", Script::default().answers(late)), ("r4-never", Script::default().answers(never))]
}

/// Parameters in `Transport` that make no sense for a connection.
pub(super) fn row_5() -> Vec<Variant> {
    fn with(change: fn(&str) -> String) -> Script {
        Script::default().answers(move |request, reply| {
            if request.method == "SETUP" {
                let transport =
                    reply.headers.iter().find(|(name, _)| name == "Transport").expect("Transport").1.clone();
                reply.set("Transport", change(&transport));
            }
        })
    }
    vec![
        ("r5-empty", with(|transport| transport.replace("unicast;", "unicast;source=;"))),
        ("r5-name", with(|transport| transport.replace("unicast;", "unicast;source=front-door.local;"))),
        (
            "r5-ports",
            with(|transport| transport.replace("unicast;", "unicast;client_port=6970-6971;server_port=6972-6973;")),
        ),
        // As if datagrams had been requested; the packets come on the requested channels.
        ("r5-no-channels", with(|_| "RTP/AVP/TCP;unicast;client_port=6970-6971;server_port=6972-6973".to_owned())),
    ]
}

/// Lines that end with LF only; its 401 has neither body nor `Content-Length`.
pub(super) fn row_6() -> Vec<Variant> {
    let script = Script::default().for_user(Login::digest()).answers(|_, reply| reply.newline = "\n");
    vec![("r6", script)]
}

/// A `Content-Base` that is no URL.
pub(super) fn row_21() -> Vec<Variant> {
    fn with(base: &'static str) -> Script {
        Script::default().answers(move |request, reply| {
            if request.method == "DESCRIBE" {
                reply.set("Content-Base", base);
            }
        })
    }
    vec![("r21-slash", with("/")), ("r21-empty", with(""))]
}

#[test]
fn row_1_a_tls_camera_is_asked_by_the_url_that_was_configured() {
    let _turn = beside_others();
    let played = play(row_1(), WHOLE);
    let record = played.cameras[0].record();
    let other: Vec<&str> =
        record.requests.iter().map(|it| it.url.as_str()).filter(|url| !url.starts_with("rtsps://")).collect();
    assert!(other.is_empty(), "asked for {other:?}");
}

#[test]
fn row_3_a_line_of_one_space_does_not_end_a_head() {
    let _turn = beside_others();
    play(row_3(), WHOLE);
}

#[test]
fn row_4_a_session_may_be_named_late_or_never() {
    let _turn = beside_others();
    play(row_4(), WHOLE);
}

#[test]
fn row_5_of_a_tcp_answer_only_the_channels_matter() {
    let _turn = beside_others();
    play(row_5(), WHOLE);
}

#[test]
fn row_6_lines_may_end_in_lf_and_a_401_may_have_no_length() {
    let _turn = beside_others();
    play(row_6(), WHOLE);
}

#[test]
fn row_21_a_base_that_is_no_url_is_none() {
    let _turn = beside_others();
    let played = play(row_21(), WHOLE);
    for camera in &played.cameras {
        let expected = camera.url();
        for request in &camera.record().requests {
            assert!(request.url.starts_with(&expected), "{} {}", request.method, request.url);
        }
    }
}
