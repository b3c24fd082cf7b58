//! Credentials, right and wrong.

use super::*;
use crate::limits::{AUTH_FAILURES_MAX, AUTH_REFUSED_S};

const URL: &str = "rtsp://h/front";

fn peer(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn user(name: &str) -> User {
    User::viewer(name, "secret")
}

fn access_of(users: Vec<User>, basic: bool, now: Instant) -> Arc<Access> {
    let users = users.into_iter().map(Arc::new).collect();
    Access::new(users, basic, Duration::from_secs(10), Guard::new(&[1; 32], now))
}

/// A client's answer to the challenge at this index.
fn digest(access: &Access, now: Instant, challenge: usize, user: &str, password: &str) -> String {
    let challenges = access.challenges(now, peer(1), false);
    auth::answer(&challenges[challenge], user, password, "DESCRIBE", URL).unwrap()
}

fn presented(authorization: &str) -> Presented<'_> {
    Presented {
        peer: peer(1),
        method: "DESCRIBE",
        url: URL,
        authorization: Some(authorization),
        known: None,
        waited: false,
    }
}

fn reason(checked: Checked) -> &'static str {
    match checked {
        Checked::Wrong { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_algorithms_are_taken_and_others_are_not() {
    let now = Instant::now();
    let access = access_of(vec![user("viewer")], false, now);
    for challenge in [0, 1] {
        let right = digest(&access, now, challenge, "viewer", "secret");
        assert!(matches!(access.check(now, &presented(&right)), Checked::Granted(user) if user.name == "viewer"));
        let wrong = digest(&access, now, challenge, "viewer", "Secret");
        assert_eq!(reason(access.check(now, &presented(&wrong))), "wrong password");
        let unknown = digest(&access, now, challenge, "nobody", "secret");
        assert_eq!(reason(access.check(now, &presented(&unknown))), "unknown user");
    }
    let right = digest(&access, now, 0, "viewer", "secret");
    for not_understood in ["Digest", "Bearer x", "Basic dmlld2VyOnNlY3JldA==", &right.replace("rtsprelay", "other")] {
        assert!(matches!(access.check(now, &presented(not_understood)), Checked::Missing), "{not_understood}");
    }
    assert!(matches!(access.check(now, &Presented { authorization: None, ..presented("") }), Checked::Missing));
}

#[test]
fn credentials_are_for_one_request_address_and_while() {
    let now = Instant::now();
    let access = access_of(vec![user("viewer")], false, now);
    let right = digest(&access, now, 0, "viewer", "secret");
    let granted = |now, presented: Presented<'_>| matches!(access.check(now, &presented), Checked::Granted(_));
    assert!(granted(now, presented(&right)));
    assert!(granted(now, Presented { url: "rtsp://other.name:554/front/", ..presented(&right) }));
    // For another request: they grant nothing, and do not count as a guess.
    let other_method = Presented { method: "SETUP", ..presented(&right) };
    assert!(matches!(access.check(now, &other_method), Checked::Stale { expired: false, .. }));
    let other_url = Presented { url: "rtsp://h/back", ..presented(&right) };
    assert!(matches!(access.check(now, &other_url), Checked::Stale { expired: false, .. }));
    let neither = Presented { method: "PLAY", url: "rtsp://h/back", ..presented(&right) };
    assert!(matches!(access.check(now, &neither), Checked::Stale { expired: false, .. }));
    let other_address = Presented { peer: peer(2), ..presented(&right) };
    assert!(matches!(access.check(now, &other_address), Checked::Stale { expired: false, .. }));
    let later = now + Duration::from_secs(11);
    assert!(matches!(access.check(later, &presented(&right)), Checked::Stale { expired: true, .. }));
    // A relay that has restarted does not know the nonce.
    let restarted = Access::new(access.users.clone(), false, Duration::from_secs(10), Guard::new(&[2; 32], now));
    assert!(matches!(restarted.check(now, &presented(&right)), Checked::Stale { expired: false, .. }));
    // A client that does not know the password is not told that the nonce is old.
    let wrong = digest(&access, now, 0, "viewer", "guess");
    assert_eq!(reason(access.check(later, &presented(&wrong))), "wrong password");
}

#[test]
fn basic_is_taken_where_it_is_switched_on() {
    let now = Instant::now();
    let mut only_md5 = user("old");
    only_md5.secrets.sha256 = None;
    let access = access_of(vec![user("viewer"), only_md5], true, now);
    let check = |value| access.check(now, &presented(value));
    assert!(matches!(check("Basic dmlld2VyOnNlY3JldA=="), Checked::Granted(_)));
    assert!(matches!(check("Basic b2xkOnNlY3JldA=="), Checked::Granted(_)));
    assert_eq!(reason(check("Basic dmlld2VyOndyb25n")), "wrong password");
    assert_eq!(reason(check("Basic bm9ib2R5OnNlY3JldA==")), "unknown user");
    assert_eq!(access.challenges(now, peer(1), false).len(), 3);
    // A missing hash is not compared.
    let sha256 = digest(&access, now, 0, "old", "secret");
    assert_eq!(reason(check(&sha256)), "no hash for this algorithm is configured");
    assert!(matches!(check(&digest(&access, now, 1, "old", "secret")), Checked::Granted(_)));
}

#[test]
fn who_comes_from_elsewhere_is_no_wiser() {
    let now = Instant::now();
    let mut local = user("viewer");
    local.from = vec![AddressRange::parse("192.0.2.0/31").unwrap()];
    let access = access_of(vec![local], true, now);
    let basic = "Basic dmlld2VyOnNlY3JldA==";
    assert!(matches!(access.check(now, &presented(basic)), Checked::Granted(_)));
    assert_eq!(reason(access.check(now, &Presented { peer: peer(2), ..presented(basic) })), "not from this address");
}

#[test]
fn a_user_who_fails_often_at_an_address_is_not_heard_there_for_a_while() {
    let now = Instant::now();
    let access = access_of(vec![user("viewer"), user("guest")], false, now);
    let wrong = digest(&access, now, 0, "viewer", "guess");
    let right = digest(&access, now, 0, "viewer", "secret");
    for count in 1..=AUTH_FAILURES_MAX {
        match access.check(now, &presented(&wrong)) {
            Checked::Wrong { last, .. } => assert_eq!(last, count == AUTH_FAILURES_MAX),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(access.check(now, &presented(&right)), Checked::Refused));
    assert!(matches!(access.check(now, &Presented { authorization: None, ..presented("") }), Checked::Missing));
    // Other users, and users who were here before, are not affected.
    let known = |name| Presented { known: Some(name), ..presented(&right) };
    assert!(matches!(access.check(now, &known("guest")), Checked::Refused));
    let other = digest(&access, now, 0, "guest", "secret");
    assert!(matches!(access.check(now, &presented(&other)), Checked::Granted(_)));
    let elsewhere = access.challenges(now, peer(2), false);
    let elsewhere = auth::answer(&elsewhere[0], "viewer", "secret", "DESCRIBE", URL).unwrap();
    assert!(matches!(access.check(now, &Presented { peer: peer(2), ..presented(&elsewhere) }), Checked::Granted(_)));
    assert!(matches!(access.check(now, &known("viewer")), Checked::Granted(_)));
    let later = now + Duration::from_secs(AUTH_REFUSED_S);
    let right = digest(&access, later, 0, "viewer", "secret");
    assert!(matches!(access.check(later, &presented(&right)), Checked::Granted(_)));
}

#[test]
fn a_user_who_was_seen_there_is_heard_later_instead() {
    let now = Instant::now();
    let access = access_of(vec![user("viewer")], false, now);
    let right = digest(&access, now, 0, "viewer", "secret");
    assert!(matches!(access.check(now, &presented(&right)), Checked::Granted(_)));
    let wrong = digest(&access, now, 0, "viewer", "guess");
    for _ in 0..AUTH_FAILURES_MAX {
        assert!(matches!(access.check(now, &presented(&wrong)), Checked::Wrong { .. }));
    }
    let Checked::Later(at) = access.check(now, &presented(&right)) else { panic!("not later") };
    assert!(at > now);
    let waited = |value| access.check(at, &Presented { waited: true, ..presented(value) });
    assert!(matches!(waited(&right), Checked::Granted(_)));
    // A client that guesses waits as well, and learns no more than before.
    assert!(matches!(access.check(at, &presented(&wrong)), Checked::Later(_)));
    assert_eq!(reason(waited(&wrong)), "wrong password");
}

#[test]
fn rights_are_by_kind_and_stream() {
    let mut user = user("viewer");
    assert!(user.may(Right::Read, "front") && !user.may(Right::Publish, "front") && user.may_read_all());
    user.streams = Some(vec!["front".to_owned()]);
    user.publish = true;
    assert!(user.may(Right::Publish, "front") && !user.may(Right::Read, "back") && !user.may_read_all());
    assert!(!format!("{user:?}").contains(user.secrets.md5.as_deref().unwrap()));
}
