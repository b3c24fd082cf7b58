//! Cameras that require a password in unusual ways.

use super::{HEAD, PATIENCE, Terms, Variant, WHOLE, play, stream, wait_told};
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::scripted::auth::{Login, Scheme};
use crate::harness::scripted::{Camera, Script};
use crate::harness::wait_until;

/// Offers Digest first, but accepts only Basic.
fn deceived() -> Login {
    Login { offers: &[Scheme::Digest, Scheme::Basic], takes: Scheme::Basic, ..Login::digest() }
}

/// What most cameras require, and what the oldest do.
pub(super) fn digest_and_basic() -> Vec<Variant> {
    let basic = Login { offers: &[Scheme::Basic], takes: Scheme::Basic, ..Login::digest() };
    let either = Login { offers: &[Scheme::Basic, Scheme::Digest], ..Login::digest() };
    vec![
        ("digest", Script::default().for_user(Login::digest())),
        ("basic", Script::default().for_user(basic)),
        ("either", Script::default().for_user(either)),
    ]
}

/// The forms of Digest that cameras use, in their notation.
fn all_kinds_of_digest() -> Vec<Variant> {
    let with = |algorithm, qop| Login { algorithm, qop, ..Login::digest() };
    let spelled = |spelling| Login { spelling, qop: Some("auth"), algorithm: Some("MD5"), ..Login::digest() };
    let logins = [
        ("md5-auth", with(None, Some("auth"))),
        ("md5-int", with(Some("MD5"), Some("auth-int"))),
        ("md5-both", with(Some("MD5"), Some("auth-int,auth"))),
        ("md5-sess", with(Some("MD5-sess"), Some("auth"))),
        ("sha-none", with(Some("SHA-256"), None)),
        ("sha-auth", with(Some("SHA-256"), Some("auth"))),
        ("sha-sess", with(Some("SHA-256-sess"), Some("auth"))),
        ("unquoted", spelled(|it| it.replace('"', ""))),
        ("quoted", spelled(|it| it.replace("algorithm=MD5", "algorithm=\"MD5\""))),
        ("tight", spelled(|it| it.replace(", ", ",").replace("Digest ", "digest  "))),
        ("capitals", spelled(|it| it.replace("qop=", "QOP=").replace("nonce=", "Nonce="))),
        ("trailing", spelled(|it| format!("{it}, opaque=\"\", domain=\"/\","))),
    ];
    logins.into_iter().map(|(name, login)| (name, Script::default().for_user(login))).collect()
}

fn with_basic(camera: &Camera) -> usize {
    let record = camera.record();
    record.requests.iter().filter(|it| it.header("Authorization").is_some_and(|it| it.starts_with("Basic"))).count()
}

#[test]
fn the_usual_passwords_are_shown_once() {
    let _turn = beside_others();
    let played = play(digest_and_basic(), WHOLE);
    assert_eq!(played.cameras.iter().map(Camera::wrong_passwords).collect::<Vec<_>>(), [0, 0, 0]);
}

#[test]
fn digest_is_known_in_all_its_forms() {
    let _turn = beside_others();
    let played = play(all_kinds_of_digest(), Terms { frames: 20, ..WHOLE });
    let wrong = played.names.iter().zip(&played.cameras).filter(|(_, camera)| camera.wrong_passwords() > 0);
    assert_eq!(wrong.map(|(name, _)| *name).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn row_20_a_camera_that_takes_basic_alone_is_played_by_tls() {
    let _turn = beside_others();
    let played = play(vec![("r20", Script::default().by_tls().for_user(deceived()))], WHOLE);
    let wrong = played.cameras[0].wrong_passwords();
    assert!(wrong <= 1, "{wrong} requests in a form that it had refused before");
}

#[test]
fn row_20_a_camera_that_takes_basic_alone_is_played_in_the_clear_if_its_stream_says_so() {
    let _turn = beside_others();
    let script = Script::default().for_user(deceived());
    let played = play(vec![("r20", script)], Terms { more: "basic = true", ..WHOLE });
    let wrong = played.cameras[0].wrong_passwords();
    assert!(wrong <= 1, "{wrong} requests in a form that it had refused before");
}

#[test]
fn row_20_nobody_is_given_the_password_in_the_clear_unasked_and_the_fault_names_the_key() {
    let _turn = beside_others();
    let script = Script::default().for_user(deceived());
    let camera = Camera::start(script.clone());
    let relay = Relay::configured(&format!("{HEAD}{}", stream("r20", &camera, &script, "")));
    wait_until("the password is refused", PATIENCE, || camera.wrong_passwords() >= 1);
    wait_told(&relay, "r20", &["401", "basic = true"]);
    assert_eq!(with_basic(&camera), 0);
}
