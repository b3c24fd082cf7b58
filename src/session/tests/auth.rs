use super::*;
use crate::access::{Access, Guard, Secrets, User};
use crate::limits::{AUTH_DELAY_MS, AUTH_FAILURES_MAX};
use crate::wire::auth;

const FRONT: &str = "rtsp://h/front";
const LIFETIME: Duration = Duration::from_secs(30);

fn user(name: &str) -> User {
    User::viewer(name, "secret")
}

/// `viewer` may read all, `guest` may read `audio`, `camera` may publish `back`.
fn users() -> Vec<User> {
    let guest = User { streams: Some(vec!["audio".to_owned()]), ..user("guest") };
    let camera = User { streams: Some(vec!["back".to_owned()]), read: false, publish: true, ..user("camera") };
    vec![user("viewer"), guest, camera]
}

struct Guarded {
    rig: Rig,
    guard: Arc<Guard>,
    nonces: [String; 3],
}

fn guarded() -> Guarded {
    let rig = rig();
    let guard = Guard::new(&[3; 32], rig.now);
    let mut guarded = Guarded { rig, guard, nonces: Default::default() };
    guarded.set_users(users());
    guarded
}

fn transport(track: u8) -> String {
    format!("Transport: RTP/AVP/TCP;unicast;interleaved={}-{}", 2 * track, 2 * track + 1)
}

fn challenges(reply: &Reply) -> Vec<String> {
    let named = reply.headers.iter().filter(|(name, _)| name == "WWW-Authenticate");
    named.map(|(_, value)| value.clone()).collect()
}

impl Guarded {
    fn set_users(&mut self, users: Vec<User>) {
        let users = users.into_iter().map(Arc::new).collect();
        self.rig.server.set_access(self.rig.now, Some(Access::new(users, false, LIFETIME, Arc::clone(&self.guard))));
        self.rig.drain(0);
    }

    /// The credentials for a request, for the connection's last challenge.
    fn credentials(&mut self, conn: u32, who: &str, line: &str) -> String {
        if self.nonces[conn as usize].is_empty() {
            let reply = self.rig.ask(conn, "DESCRIBE rtsp://h/", &[]);
            assert_eq!(reply.status, 401);
            self.nonces[conn as usize] = challenges(&reply)[1].clone();
        }
        let (method, url) = line.split_once(' ').unwrap();
        let (name, password) = who.split_once(':').unwrap_or((who, "secret"));
        let value = auth::answer(&self.nonces[conn as usize], name, password, method, url).unwrap();
        format!("Authorization: {value}")
    }

    fn ask(&mut self, conn: u32, who: &str, line: &str, headers: &[&str]) -> Reply {
        let credentials = self.credentials(conn, who, line);
        let headers: Vec<&str> = headers.iter().copied().chain([credentials.as_str()]).collect();
        self.rig.ask(conn, line, &headers)
    }

    /// Announces `back`.
    fn announce(&mut self, conn: u32, who: &str) -> u16 {
        let line = "ANNOUNCE rtsp://h/back";
        let credentials = self.credentials(conn, who, line);
        let sdp = "v=0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=0\r\n";
        let head = format!("{line} RTSP/1.0\r\nCSeq: 9\r\n{credentials}\r\nContent-Length: {}\r\n\r\n", sdp.len());
        self.rig.send(conn, format!("{head}{sdp}").as_bytes())[0].status
    }

    /// Plays `front` over TCP.
    fn play(&mut self, conn: u32, who: &str) -> String {
        assert_eq!(self.ask(conn, who, &format!("DESCRIBE {FRONT}"), &[]).status, 200);
        let mut session = String::new();
        for track in 0..2 {
            let (transport, named) = (transport(track), format!("Session: {session}"));
            let headers: Vec<&str> = [transport.as_str(), &named].into_iter().take(1 + usize::from(track)).collect();
            let reply = self.ask(conn, who, &format!("SETUP {FRONT}/trackID={track}"), &headers);
            assert_eq!(reply.status, 200, "{reply:?}");
            session = reply.session().to_string();
        }
        let reply = self.ask(conn, who, &format!("PLAY {FRONT}/"), &[&format!("Session: {session}")]);
        assert_eq!(reply.status, 200, "{reply:?}");
        session
    }

    /// A request with wrong credentials, which is not answered yet.
    fn wrong(&mut self, conn: u32, who: &str) {
        let line = format!("DESCRIBE {FRONT}");
        let credentials = self.credentials(conn, who, &line);
        self.rig.cseq += 1;
        let text = format!("{line} RTSP/1.0\r\nCSeq: {}\r\n{credentials}\r\n\r\n", self.rig.cseq);
        assert!(self.rig.send(conn, text.as_bytes()).is_empty());
    }
}

#[test]
fn a_stranger_is_asked_and_told_nothing() {
    let mut guarded = guarded();
    let rig = &mut guarded.rig;
    assert_eq!(rig.status(0, "OPTIONS *", &[]), 200);
    for line in [
        "DESCRIBE rtsp://h/front",
        "DESCRIBE rtsp://h/nothing",
        "SETUP rtsp://h/front/trackID=0",
        "PLAY rtsp://h/front",
        "TEARDOWN rtsp://h/front",
        "GET_PARAMETER *",
        "PAUSE rtsp://h/nothing",
    ] {
        let reply = rig.ask(0, line, &["Session: 0000000000000001"]);
        let challenges = challenges(&reply);
        assert_eq!((reply.status, challenges.len()), (401, 2), "{line}");
        assert!(challenges[0].contains("algorithm=SHA-256") && challenges[1].contains("algorithm=MD5"));
        assert!(!challenges[0].contains("stale"));
    }
    // Nor does OPTIONS reveal whether a session exists.
    assert_eq!(rig.status(0, "OPTIONS *", &["Session: 0000000000000001"]), 200);
    assert_eq!(rig.server.counters().auth_failed, 0);
}

#[test]
fn who_knows_the_password_plays() {
    let mut guarded = guarded();
    let session = guarded.play(0, "viewer");
    let named = format!("Session: {session}");
    assert_eq!(guarded.ask(0, "viewer", &format!("GET_PARAMETER {FRONT}"), &[&named]).status, 200);
    // A player that sends OPTIONS as keep-alive, and credentials only after a challenge.
    assert_eq!(guarded.rig.status(0, "OPTIONS *", &[&named]), 200);
    assert_eq!(guarded.rig.status(0, &format!("PAUSE {FRONT}"), &[&named]), 401);
    assert_eq!(guarded.ask(0, "viewer", &format!("TEARDOWN {FRONT}"), &[&named]).status, 200);
}

#[test]
fn rights_are_asked_for_without_telling_what_there_is() {
    let mut guarded = guarded();
    for (who, line, status) in [
        ("guest", "DESCRIBE rtsp://h/audio", 200),
        ("guest", "DESCRIBE rtsp://h/front", 403),
        ("guest", "DESCRIBE rtsp://h/nothing", 403),
        ("guest", "SETUP rtsp://h/front/trackID=0", 403),
        ("guest", "ANNOUNCE rtsp://h/audio", 403),
        ("viewer", "DESCRIBE rtsp://h/nothing", 404),
        ("viewer", "ANNOUNCE rtsp://h/back", 403),
        ("camera", "DESCRIBE rtsp://h/back", 403),
        ("camera", "ANNOUNCE rtsp://h/front", 403),
    ] {
        guarded.rig.server.set_published(StreamId::first(1), true);
        assert_eq!(guarded.ask(0, who, line, &[]).status, status, "{who} {line}");
    }
}

#[test]
fn a_publisher_with_the_right_may_come_from_anywhere() {
    let mut guarded = guarded();
    guarded.rig.server.set_published(StreamId::first(1), true);
    let sdp = "v=0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=0\r\n";
    let line = "ANNOUNCE rtsp://h/back";
    let credentials = guarded.credentials(0, "camera", line);
    let head = format!("{line} RTSP/1.0\r\nCSeq: 9\r\nContent-Type: application/sdp\r\n{credentials}\r\n");
    let text = format!("{head}Content-Length: {}\r\n\r\n{sdp}", sdp.len());
    assert_eq!(guarded.rig.send(0, text.as_bytes())[0].status, 200);
    let setup = "SETUP rtsp://h/back/streamid=0";
    let record = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1;mode=record";
    assert_eq!(guarded.ask(0, "guest", setup, &[record]).status, 403);
    let session = guarded.ask(0, "camera", setup, &[record]).session();
    let line = "RECORD rtsp://h/back";
    let credentials = guarded.credentials(0, "camera", line);
    let text = format!("{line} RTSP/1.0\r\nCSeq: 10\r\nSession: {session}\r\n{credentials}\r\n\r\n");
    assert!(guarded.rig.send(0, text.as_bytes()).is_empty());
    assert!(matches!(&guarded.rig.take_events()[..], [Event::Record { session: key, .. }] if *key == session));
}

#[test]
fn a_wrong_password_delays_its_own_connection_alone() {
    let mut guarded = guarded();
    guarded.rig.connect(1);
    guarded.wrong(0, "viewer:guess");
    // Requests after it wait as well.
    guarded.rig.cseq += 1;
    let text = format!("OPTIONS * RTSP/1.0\r\nCSeq: {}\r\n\r\n", guarded.rig.cseq);
    assert!(guarded.rig.send(0, text.as_bytes()).is_empty());
    assert_eq!(guarded.ask(1, "viewer", &format!("DESCRIBE {FRONT}"), &[]).status, 200);
    guarded.rig.wait(Duration::from_millis(AUTH_DELAY_MS - 1));
    assert!(guarded.rig.take_events().is_empty());
    guarded.rig.wait(Duration::from_millis(1));
    let answers = guarded.rig.take_events();
    let [Event::Answer { conn: ConnId(0), bytes: first }, Event::Answer { conn: ConnId(0), bytes: second }] =
        &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!((Reply::read(first).status, Reply::read(second).status), (401, 200));
    assert_eq!(guarded.rig.server.counters().auth_failed, 1);
    // The right one is accepted at once.
    assert_eq!(guarded.ask(0, "viewer", &format!("DESCRIBE {FRONT}"), &[]).status, 200);
    // A connection that closes while its request waits leaves nothing behind.
    guarded.wrong(1, "viewer:guess");
    guarded.rig.server.disconnected(guarded.rig.now, ConnId(1));
    guarded.rig.wait(seconds(2));
}

#[test]
fn a_user_who_fails_often_at_an_address_is_refused_there_and_others_are_not() {
    let mut guarded = guarded();
    guarded.rig.connect(1);
    for _ in 0..AUTH_FAILURES_MAX {
        guarded.wrong(1, "viewer:guess");
        guarded.rig.wait(seconds(1));
        guarded.rig.take_events();
    }
    let refused = guarded.ask(1, "viewer", &format!("DESCRIBE {FRONT}"), &[]);
    assert_eq!((refused.status, refused.header("Retry-After")), (403, "60"));
    assert_eq!(guarded.rig.server.counters().auth_refused, 1);
    // Other users at the same address are admitted, and the same user at another address.
    guarded.rig.connect(0);
    assert_eq!(guarded.ask(0, "guest", "DESCRIBE rtsp://h/audio", &[]).status, 200);
    guarded.rig.connect_from(2, "192.0.2.99:5".parse().unwrap());
    assert_eq!(guarded.ask(2, "viewer", &format!("DESCRIBE {FRONT}"), &[]).status, 200);
}

#[test]
fn a_user_who_was_there_comes_in_later_while_others_fail_in_that_name() {
    let mut guarded = guarded();
    let playing = guarded.play(0, "viewer");
    guarded.rig.connect(1);
    for _ in 0..AUTH_FAILURES_MAX {
        guarded.wrong(1, "viewer:guess");
        guarded.rig.wait(seconds(1));
        guarded.rig.take_events();
    }
    // Clients that play already continue, also at the same address.
    let named = format!("Session: {playing}");
    assert_eq!(guarded.ask(0, "viewer", &format!("GET_PARAMETER {FRONT}"), &[&named]).status, 200);
    // A new connection is not answered at once, with the right password or not, and then gets the proper answer.
    for (who, status) in [("viewer", "200"), ("viewer:guess", "401")] {
        guarded.rig.connect(2);
        guarded.wrong(2, who);
        let mut answered = String::new();
        for _ in 0..20 {
            guarded.rig.wait(Duration::from_millis(AUTH_DELAY_MS / 4));
            for event in guarded.rig.take_events() {
                if let Event::Answer { conn: ConnId(2), bytes } = event {
                    answered += str::from_utf8(&bytes).unwrap();
                }
            }
        }
        assert!(answered.starts_with(&format!("RTSP/1.0 {status}")), "{who}: {answered}");
        guarded.rig.server.disconnected(guarded.rig.now, ConnId(2));
    }
    assert_eq!(guarded.rig.server.counters().auth_refused, 0);
}

#[test]
fn a_stale_nonce_is_replaced_and_the_session_lives_on() {
    let mut guarded = guarded();
    let line = format!("SETUP {FRONT}/trackID=0");
    let udp = "Transport: RTP/AVP;unicast;client_port=5000-5001";
    let session = guarded.ask(0, "viewer", &line, &[udp]).session();
    let named = format!("Session: {session}");
    assert_eq!(guarded.ask(0, "viewer", &format!("PLAY {FRONT}"), &[&named]).status, 200);
    for _ in 0..3 {
        guarded.rig.wait(seconds(45));
        let line = format!("GET_PARAMETER {FRONT}");
        let reply = guarded.ask(0, "viewer", &line, &[&named]);
        assert_eq!(reply.status, 401);
        let challenges = challenges(&reply);
        assert!(challenges.iter().all(|value| value.contains(", stale=true")), "{challenges:?}");
        guarded.nonces[0] = challenges[0].clone();
        // It counts as a sign of life, though it was refused: a player that never handles nonces right is not cut off during playback.
        assert_eq!(guarded.rig.server.sessions(), 1);
    }
    assert_eq!(guarded.ask(0, "viewer", &format!("GET_PARAMETER {FRONT}"), &[&named]).status, 200);
    // A client that ends its session is not asked for credentials again.
    guarded.rig.wait(seconds(45));
    assert_eq!(guarded.ask(0, "viewer", &format!("TEARDOWN {FRONT}"), &[&named]).status, 200);
    assert_eq!(guarded.rig.server.counters().auth_failed, 0);
}

#[test]
fn an_overheard_goodbye_opens_nothing_once_its_nonce_is_old() {
    let mut guarded = guarded();
    guarded.rig.connect(1);
    let line = format!("TEARDOWN {FRONT}");
    let overheard = guarded.credentials(1, "viewer", &line);
    guarded.rig.wait(seconds(45));
    guarded.rig.connect(2);
    let named = format!("Session: {}", guarded.play(2, "viewer"));
    // A connection from the same address that has presented nothing that is still valid.
    let reply = guarded.rig.ask(1, &line, &[&overheard, &named]);
    assert!(reply.status == 401 && challenges(&reply)[0].contains("stale=true"), "{reply:?}");
    assert_eq!(guarded.rig.server.sessions(), 1);
    // Nor does it count as the user's from then on.
    for _ in 0..AUTH_FAILURES_MAX {
        guarded.nonces[1] = challenges(&reply)[1].clone();
        guarded.wrong(1, "viewer:guess");
        guarded.rig.wait(seconds(1));
        guarded.rig.take_events();
    }
    // It has to wait for its turn like any other.
    guarded.wrong(1, "viewer");
}

#[test]
fn who_is_one_user_cannot_go_on_guessing_at_another() {
    let mut guarded = guarded();
    guarded.rig.connect(1);
    assert_eq!(guarded.ask(1, "guest", "DESCRIBE rtsp://h/audio", &[]).status, 200);
    for _ in 0..AUTH_FAILURES_MAX {
        guarded.wrong(1, "viewer:guess");
        guarded.rig.wait(seconds(1));
        guarded.rig.take_events();
    }
    // Even the right one is refused now, while its own user is admitted.
    assert_eq!(guarded.ask(1, "viewer", &format!("DESCRIBE {FRONT}"), &[]).status, 403);
    assert_eq!(guarded.ask(1, "guest", "DESCRIBE rtsp://h/audio", &[]).status, 200);
}

#[test]
fn ports_of_another_user_are_not_taken_over() {
    let mut guarded = guarded();
    let mut users = users();
    users.push(user("other"));
    guarded.set_users(users);
    let line = format!("SETUP {FRONT}/trackID=0");
    let udp = "Transport: RTP/AVP;unicast;client_port=5000-5001";
    let session = guarded.ask(0, "viewer", &line, &[udp]).session();
    // The same address: translated, or another user of the machine.
    guarded.rig.connect(1);
    assert_eq!(guarded.ask(1, "other", &line, &[udp]).status, 461);
    assert_eq!(guarded.rig.limited(Limited::UdpPorts), 1);
    assert!(guarded.rig.server.session_info(session).is_some());
    // Its own user's player, restarted.
    assert_eq!(guarded.ask(1, "viewer", &line, &[udp]).status, 200);
    assert_eq!((guarded.rig.server.sessions(), guarded.rig.server.session_info(session).is_some()), (1, false));
}

#[test]
fn a_player_is_sent_nothing_at_a_port_that_another_user_has() {
    let mut guarded = guarded();
    guarded.rig.server.set_published(StreamId::first(1), true);
    guarded.set_users(vec![user("viewer"), user("other"), User { publish: true, ..user("camera") }]);
    guarded.rig.connect(1);
    guarded.rig.connect(2);
    let line = format!("SETUP {FRONT}/trackID=0");
    let udp = |ports: &str| format!("Transport: RTP/AVP;unicast;client_port={ports}");
    let session = guarded.ask(0, "viewer", &line, &[&udp("5000-5001")]).session();
    assert_eq!(guarded.announce(1, "camera"), 200);
    let record = format!("{};mode=record", udp("6000-6001"));
    assert_eq!(guarded.ask(1, "camera", "SETUP rtsp://h/back/streamid=0", &[&record]).status, 200);
    let taken =
        ["5000-5003", "5001-5003", "5003-5000", "5003-5001", "6000-6003", "6001-6003", "6003-6000", "6003-6001"];
    for ports in taken {
        assert_eq!(guarded.ask(2, "other", &line, &[&udp(ports)]).status, 461, "{ports}");
    }
    assert_eq!(guarded.rig.limited(Limited::UdpPorts), taken.len() as u64);
    assert!(guarded.rig.server.session_info(session).is_some());
    // Its own user's player, restarted, which got one of the ports by chance.
    assert_eq!(guarded.ask(2, "viewer", &line, &[&udp("5003-5000")]).status, 200);
    assert_eq!((guarded.rig.server.sessions(), guarded.rig.server.session_info(session).is_some()), (2, false));
}

#[test]
fn a_publisher_does_not_take_what_another_users_player_sends() {
    let mut guarded = guarded();
    guarded.rig.server.set_published(StreamId::first(1), true);
    guarded.set_users(vec![user("viewer"), User { publish: true, ..user("camera") }]);
    let udp = "Transport: RTP/AVP;unicast;client_port=5000-5001";
    assert_eq!(guarded.ask(0, "viewer", &format!("SETUP {FRONT}/trackID=0"), &[udp]).status, 200);
    guarded.rig.connect(1);
    assert_eq!(guarded.announce(1, "camera"), 200);
    let mut set_up = |ports: &str| {
        let transport = format!("Transport: RTP/AVP;unicast;client_port={ports};mode=record");
        guarded.ask(1, "camera", "SETUP rtsp://h/back/streamid=0", &[&transport]).status
    };
    assert_eq!((set_up("5000-5001"), set_up("5002-5003")), (461, 200));
}

#[test]
fn a_setup_that_is_refused_for_its_ports_ends_nobody() {
    let mut guarded = guarded();
    guarded.rig.server.set_published(StreamId::first(1), true);
    guarded.set_users(vec![user("viewer"), User { publish: true, ..user("camera") }]);
    let udp = "Transport: RTP/AVP;unicast;client_port=5000-5001";
    let player = guarded.ask(0, "viewer", &format!("SETUP {FRONT}/trackID=0"), &[udp]).session();
    let set_up = |guarded: &mut Guarded, conn, ports: &str| {
        let transport = format!("Transport: RTP/AVP;unicast;client_port={ports};mode=record");
        guarded.ask(conn, "camera", "SETUP rtsp://h/back/streamid=0", &[&transport])
    };
    guarded.rig.connect(1);
    assert_eq!(guarded.announce(1, "camera"), 200);
    let publisher = set_up(&mut guarded, 1, "5004-5005").session();
    // One port belongs to its own user, the other to another user.
    guarded.rig.connect(2);
    assert_eq!(guarded.announce(2, "camera"), 200);
    assert_eq!(set_up(&mut guarded, 2, "5004-5001").status, 461);
    for session in [player, publisher] {
        assert!(guarded.rig.server.session_info(session).is_some());
    }
    assert_eq!(set_up(&mut guarded, 2, "5004-5005").status, 200);
    assert!(guarded.rig.server.session_info(publisher).is_none());
}

#[test]
fn credentials_cannot_be_used_for_anything_else() {
    let mut guarded = guarded();
    let line = format!("DESCRIBE {FRONT}");
    let seen = guarded.credentials(0, "viewer", &line);
    // From another address: the nonce is not valid for it.
    guarded.rig.connect_from(1, "192.0.2.77:1000".parse().unwrap());
    let reply = guarded.rig.ask(1, &line, &[&seen]);
    assert!(reply.status == 401 && challenges(&reply)[0].contains("stale=true"));
    assert_eq!(guarded.rig.status(0, &line, &[&seen]), 200);
    // For another stream or method: they grant nothing, but the client that sends them knows the password.
    for line in ["DESCRIBE rtsp://h/audio", "SETUP rtsp://h/front/trackID=0"] {
        assert_eq!(guarded.rig.status(0, line, &[&seen]), 401);
    }
    assert_eq!((guarded.rig.server.counters().auth_failed, guarded.rig.server.sessions()), (0, 0));
}

#[test]
fn a_player_that_repeats_its_last_credentials_is_asked_at_once_and_never_refused() {
    let mut guarded = guarded();
    let mut last = guarded.credentials(0, "viewer", &format!("DESCRIBE {FRONT}"));
    assert_eq!(guarded.rig.status(0, &format!("DESCRIBE {FRONT}"), &[&last]), 200);
    let mut named = String::new();
    for round in 0..3 * u32::from(AUTH_FAILURES_MAX) {
        let line = match round {
            0 => format!("SETUP {FRONT}/trackID=0"),
            1 => format!("PLAY {FRONT}/"),
            _ => [format!("GET_PARAMETER {FRONT}/"), format!("OPTIONS {FRONT}/")][round as usize % 2].clone(),
        };
        let transport = transport(0);
        let headers: Vec<&str> = [&transport, &named].into_iter().filter(|is| !is.is_empty()).map(|is| &**is).collect();
        let repeated = guarded.rig.ask(0, &line, &[&headers[..], &[last.as_str()]].concat());
        assert_eq!(repeated.status, 401, "{line}");
        let challenge = &challenges(&repeated)[1];
        assert!(challenge.contains("stale=true"), "no reason to ask for another password: {challenge}");
        let (method, url) = line.split_once(' ').unwrap();
        last = format!("Authorization: {}", auth::answer(challenge, "viewer", "secret", method, url).unwrap());
        let answered = guarded.rig.ask(0, &line, &[&headers[..], &[last.as_str()]].concat());
        assert_eq!(answered.status, 200, "{line}");
        if round == 0 {
            named = format!("Session: {}", answered.session());
        }
        guarded.rig.wait(Duration::from_millis(500));
    }
    assert_eq!(guarded.rig.server.counters().auth_failed, 0);
}

#[test]
fn a_session_is_its_users_own() {
    let mut guarded = guarded();
    let session = guarded.play(0, "viewer");
    guarded.rig.connect(1);
    let named = format!("Session: {session}");
    // The same address, and another user with all rights to the stream.
    let mut users = users();
    users.push(user("other"));
    guarded.set_users(users);
    for method in ["PAUSE", "TEARDOWN", "GET_PARAMETER"] {
        assert_eq!(guarded.ask(1, "other", &format!("{method} {FRONT}"), &[&named]).status, 454, "{method}");
    }
    assert_eq!(guarded.rig.server.sessions(), 1);
    assert_eq!(guarded.ask(1, "viewer", &format!("TEARDOWN {FRONT}"), &[&named]).status, 200);
}

#[test]
fn a_reload_ends_what_is_not_allowed_any_more() {
    type Change = fn(&mut User);
    let kept: [Change; 3] = [|_| {}, |user| user.publish = true, |user| user.streams = Some(vec!["front".into()])];
    let ended: [Change; 5] = [
        |user| user.name = "renamed".into(),
        |user| user.secrets = Secrets::of("viewer", "other"),
        |user| user.read = false,
        |user| user.streams = Some(vec!["audio".into()]),
        |user| user.from = vec![crate::access::AddressRange::parse("10.0.0.0/8").unwrap()],
    ];
    let all = kept.iter().map(|change| (change, true)).chain(ended.iter().map(|change| (change, false)));
    for (number, (change, stays)) in all.enumerate() {
        let mut guarded = guarded();
        let session = guarded.play(0, "viewer");
        let mut users = users();
        change(&mut users[0]);
        guarded.set_users(users);
        let events = guarded.rig.take_events();
        assert_eq!(guarded.rig.server.sessions(), usize::from(stays), "{number}");
        if stays {
            assert!(events.is_empty());
            let line = format!("GET_PARAMETER {FRONT}");
            assert_eq!(guarded.ask(0, "viewer", &line, &[&format!("Session: {session}")]).status, 200);
            continue;
        }
        let reason = EndReason::Unauthorized;
        assert!(
            matches!(&events[..], [Event::End { reason: why, .. }, Event::Close { reason: closed, .. }]
                if *why == reason && *closed == CloseReason::SessionEnded(reason)),
            "{number}: {events:?}"
        );
    }
}

#[test]
fn users_that_come_end_what_was_open_and_users_that_go_end_nothing() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    rig.play(0, key);
    let guard = Guard::new(&[3; 32], rig.now);
    let access = Access::new(vec![Arc::new(user("viewer"))], true, LIFETIME, guard);
    rig.server.set_access(rig.now, Some(access));
    rig.drain(0);
    assert_eq!(rig.server.sessions(), 0);
    rig.connect(1);
    let basic = "Authorization: Basic dmlld2VyOnNlY3JldA==";
    let reply = rig.ask(1, "SETUP rtsp://h/front/trackID=0", &[basic, &transport(0)]);
    let named = format!("Session: {}", reply.session());
    rig.server.set_access(rig.now, None);
    assert_eq!(rig.status(1, "PLAY rtsp://h/front", &[&named]), 200);
}
