//! Cameras that redirect the relay.

use super::{HEAD, Variant, Viewer, WHOLE, metric, play, stream, wait_told};
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::scripted::auth::{Login, Scheme};
use crate::harness::scripted::{Camera, Reply, Request, Script};
use crate::harness::wait_until;

use super::{FRAMES, PATIENCE};

/// Another host, by its name.
const ELSEWHERE: &str = "127.0.0.2:0";

/// How many redirects of a camera are followed.
const FOLLOWED_MAX: usize = 5;

/// Redirects requests for `/cam` to `/live`, which needs a password.
pub(super) fn row_10_same_host() -> Vec<Variant> {
    fn with(status: u16) -> Script {
        Script::default().for_user(Login::digest()).answers(move |request, reply| {
            if request.method == "DESCRIBE" && request.url.ends_with("/cam") {
                reply.refuse(status, "Moved");
                reply.set("Location", request.url.replace("/cam", "/live"));
            }
        })
    }
    vec![("r10-301", with(301)), ("r10-302", with(302))]
}

/// Redirects DESCRIBE to `location`.
fn to(location: String) -> impl Fn(&Request, &mut Reply) + Send + Sync {
    move |request, reply| {
        if request.method == "DESCRIBE" && request.authorized {
            reply.refuse(302, "Found");
            reply.set("Location", location.clone());
        }
    }
}

/// A relay of one camera, `cam`.
fn relay_of(camera: &Camera, script: &Script) -> Relay {
    Relay::configured(&format!("{HEAD}{}", stream("cam", camera, script, "")))
}

/// Asserts that no request to `camera` contains a password.
fn assert_no_credentials(camera: &Camera) {
    for request in &camera.record().requests {
        assert!(request.header("Authorization").is_none() && !request.url.contains("hunter2"), "{request:?}");
    }
}

#[test]
fn row_10_a_redirect_is_followed() {
    let _turn = beside_others();
    let played = play(row_10_same_host(), WHOLE);
    for camera in &played.cameras {
        let record = camera.record();
        assert!(record.requests.iter().filter(|request| request.method == "SETUP").all(|it| it.url.contains("/live")));
    }
}

#[test]
fn row_10_a_redirect_to_another_host_is_followed_without_credentials() {
    let _turn = beside_others();
    let other = Camera::start_at(ELSEWHERE.parse().unwrap(), Script::default());
    let script = Script::default().for_user(Login::digest()).answers(to(other.url()));
    let camera = Camera::start(script.clone());
    let relay = relay_of(&camera, &script);
    let viewer = Viewer::start(&relay, "cam").unwrap_or_else(|fault| panic!("{fault}\n{}", relay.printed()));
    viewer.gets(FRAMES, PATIENCE).unwrap();
    let faults = viewer.finish().faults(&other, 0);
    assert!(faults.is_empty() && other.count("PLAY") == 1, "{faults:?}");
    assert_no_credentials(&other);
}

#[test]
fn row_10_another_host_that_asks_for_the_password_does_not_get_it() {
    let _turn = beside_others();
    let thief = Login { offers: &[Scheme::Basic, Scheme::Digest], ..Login::digest() };
    let other = Camera::start_at(ELSEWHERE.parse().unwrap(), Script::default().for_user(thief));
    // As in every output, without the password.
    let location = format!("rtsp://{}/cam", other.address());
    let script = Script::default().for_user(Login::digest()).answers(to(location));
    let camera = Camera::start(script.clone());
    let relay = relay_of(&camera, &script);
    wait_until("the other one is asked", PATIENCE, || other.count("DESCRIBE") >= 1);
    wait_told(&relay, "cam", &["401"]);
    // It is asked again, and again without a password.
    wait_until("the camera is asked again", PATIENCE, || camera.count("DESCRIBE") >= 3);
    assert_no_credentials(&other);
}

#[test]
fn row_10_a_circle_of_redirects_ends() {
    let _turn = beside_others();
    let script = Script::default().answers(|request, reply| {
        if request.method == "DESCRIBE" {
            reply.refuse(302, "Found");
            reply.set("Location", format!("{}0", request.url));
        }
    });
    let camera = Camera::start(script.clone());
    let relay = relay_of(&camera, &script);
    wait_told(&relay, "cam", &["redirect"]);
    wait_until("several tries", PATIENCE, || {
        metric(&relay, "rtsprelay_source_failures_total", "stream=\"cam\"") >= 2.0
    });
    let longest = camera.record().requests.iter().map(|request| request.url.len()).max().unwrap();
    let first = camera.record().requests[0].url.len();
    assert_eq!(longest - first, FOLLOWED_MAX, "each redirect makes the URL longer by one");
}

#[test]
fn row_10_a_redirect_never_leads_from_tls_to_plain() {
    let _turn = beside_others();
    for same_host in [true, false] {
        let plain_at = if same_host { "127.0.0.1:0" } else { ELSEWHERE };
        let plain = Camera::start_at(plain_at.parse().unwrap(), Script::default());
        let script = Script::default().by_tls().for_user(Login::digest()).answers(to(plain.url()));
        let camera = Camera::start(script.clone());
        let relay = relay_of(&camera, &script);
        wait_told(&relay, "cam", &["redirect"]);
        wait_until("several tries", PATIENCE, || camera.count("DESCRIBE") >= 3);
        assert!(plain.record().opened.is_empty(), "it was asked without TLS: {:?}", plain.record().requests);
    }
}
