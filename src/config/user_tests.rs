//! `[[user]]`: every way to give a password, every error.

use super::Config;
use super::tests::{config, faults, refused};
use crate::wire::auth::Algorithm;

const USER: &str = "[[user]]\nname = \"viewer\"\n";

/// A file in its own directory, with these permissions.
fn file(name: &str, text: &str, mode: u32) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let name = format!("rtsprelay-test-{}-{}-{name}", std::process::id(), fastrand::u32(..));
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn a_user_has_every_stream_from_anywhere_and_may_read() {
    let config = config(&format!("basic = true\n{USER}password = \"hunter2\""));
    let [user] = &config.users[..] else { panic!("{config:?}") };
    assert!(config.basic && config.warnings.is_empty());
    assert_eq!((user.name.as_str(), &user.streams, user.from.len()), ("viewer", &None, 0));
    assert!(user.read && !user.publish);
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn streams_addresses_and_rights_are_one_or_a_list() {
    let keys = "streams = [\"front\"]\nfrom = [\"10.0.0.0/8\", \"::1\"]\nmay = [\"read\", \"publish\"]\n";
    let config = config(&format!("{USER}password = \"p\"\n{keys}"));
    let user = &config.users[0];
    assert_eq!((user.streams.as_deref(), user.from.len()), (Some(&["front".to_owned()][..]), 2));
    assert!(user.read && user.publish);
    let config = super::tests::config(&format!("{USER}password = \"p\"\nstreams = \"*\"\nmay = \"publish\""));
    assert!(config.users[0].streams.is_none() && !config.users[0].read && config.users[0].publish);
}

#[test]
fn a_password_may_be_in_a_file_or_not_be_there_at_all() {
    let path = file("good", "secret\r\nthe rest\n", 0o600);
    let from_file = config(&format!("{USER}password_file = \"{}\"", path.display()));
    let clear = config(&format!("{USER}password = \"secret\""));
    assert_eq!(from_file.users, clear.users);
    assert!(from_file.warnings.is_empty());
    std::fs::remove_file(&path).unwrap();
    let secrets = &clear.users[0].secrets;
    let [sha256, md5] = Algorithm::OFFERED.map(|algorithm| secrets.ha1(algorithm).unwrap());
    let hashed = config(&format!("{USER}ha1_sha256 = \"{}\"\nha1_md5 = \"{md5}\"", sha256.to_uppercase()));
    assert_eq!(hashed.users, clear.users);
    let half = config(&format!("{USER}ha1_sha256 = \"{sha256}\""));
    assert!(half.warnings[0].message.contains("need ha1_md5"), "{half:?}");
}

#[test]
fn a_file_that_others_read_is_warned_of() {
    let path = file("open", "secret", 0o644);
    let config = config(&format!("{USER}password_file = \"{}\"", path.display()));
    std::fs::remove_file(&path).unwrap();
    let [warning] = &config.warnings[..] else { panic!("{config:?}") };
    assert!(warning.line == Some(3) && warning.message.contains("chmod 640"), "{warning}");
}

#[test]
fn a_configuration_that_others_read_is_warned_of_where_it_holds_a_secret() {
    let stream = |source: &str| format!("[[stream]]\nname = \"a\"\nsource = {source}\n");
    let (open, hashed) = (stream("\"test\""), "0".repeat(32));
    for (text, mode, line) in [
        (stream("\"rtsp://user:secret@192.0.2.1/\""), 0o644, Some(3)),
        (stream("[\"rtsp://192.0.2.1/\",\n\"rtsp://192.0.2.1/?password=secret\"]"), 0o644, Some(4)),
        (format!("{open}[[user]]\nname = \"a\"\npassword = \"secret\""), 0o644, Some(6)),
        (format!("{open}[[user]]\nname = \"a\"\nha1_md5 = \"{hashed}\""), 0o604, Some(6)),
        (format!("{open}[[user]]\nname = \"a\"\nha1_md5 = \"{hashed}\""), 0o640, None),
        (format!("# rtsp://user:secret@192.0.2.1/\n{}", stream("\"rtsp://192.0.2.1/\"")), 0o644, None),
        (open, 0o644, None),
    ] {
        let path = file("config", &text, mode);
        let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        std::fs::remove_file(&path).unwrap();
        let warned: Vec<_> = config.warnings.iter().map(|warning| warning.line).collect();
        assert_eq!(warned, Vec::from_iter(line.map(Some)), "{text}: {:?}", config.warnings);
        assert!(config.warnings.iter().all(|warning| warning.message.contains("chmod 640")));
        assert!(!format!("{:?}", config.warnings).contains("secret"));
    }
}

#[test]
fn what_is_wrong_with_a_user_is_said() {
    let long = "x".repeat(65);
    for (keys, line, said) in [
        ("", 1, &["no password", "hash-password"][..]),
        ("password = \"\"", 3, &["0 bytes"]),
        ("password = 5", 3, &["a number"]),
        ("password = \"p\"\nha1_md5 = \"00\"", 1, &["2 passwords"]),
        ("ha1_md5 = \"00\"", 3, &["32 hexadecimal digits", "hash-password"]),
        ("password_file = \"viewer.pass\"", 3, &["an absolute path"]),
        ("password_file = \"/nowhere/viewer.pass\"", 3, &["cannot be read", "give another path"]),
        ("password_file = \"/dev/zero\"", 3, &["not a file"]),
        ("password_credential = \"../viewer\"", 3, &["LoadCredential="]),
        (
            "password = \"p\"\nstreams = [\"front\", \"back\"]",
            4,
            &["no stream \"back\"", "write one of front, or \"*\""],
        ),
        ("password = \"p\"\nstreams = []", 4, &["is empty"]),
        ("password = \"p\"\nfrom = \"10.0.0.1/8\"", 4, &["\"10.0.0.0/8\""]),
        ("password = \"p\"\nfrom = [\"lan\"]", 4, &["not an address or network"]),
        ("password = \"p\"\nmay = [\"write\"]", 4, &["\"read\" or \"publish\""]),
        ("pasword = \"p\"\npassword = \"p\"", 3, &["did you mean user.password?"]),
    ] {
        refused(&format!("{USER}{keys}"), line, said);
    }
    refused("[[user]]\npassword = \"p\"", 1, &["user.name is missing"]);
    refused(&format!("[[user]]\nname = \"{long}\"\npassword = \"p\""), 2, &["1 to 64"]);
    refused("[[user]]\nname = \"a:b\"\npassword = \"p\"", 2, &["':'"]);
    refused(&format!("{USER}password = \"p\"\n{USER}password = \"p\""), 5, &["another user"]);
    refused("basic = true", 1, &["without users"]);
    assert!(faults(&format!("{USER}password = \"p\"")).is_empty());
}

#[test]
fn rights_may_be_by_pattern_and_by_the_users_own_name() {
    let published =
        "[[stream]]\nname = \"live/*\"\nsource = \"publish\"\n[[stream]]\nname = \"cam/*\"\nsource = \"publish\"\n";
    let user = |name: &str, streams: &str| {
        format!("{published}[[user]]\nname = \"{name}\"\npassword = \"p\"\nmay = \"publish\"\nstreams = {streams}\n")
    };
    let given = config(&user("ann", "[\"live/{user}/*\", \"live/x\", \"fro*\"]"));
    let ann = &given.users[0];
    for (name, may) in
        [("live/ann/1", true), ("live/bob/1", false), ("live/ann", false), ("live/x", true), ("front", true)]
    {
        assert_eq!(ann.may(crate::access::Right::Publish, name), may, "{name}");
    }
    refused(&user("ann", "\"yard/*\""), 11, &["no stream \"yard/*\"", "live/*"]);
    refused(&user("ann", "\"yard\""), 11, &["no stream \"yard\""]);
    for name in ["an n", "*", "a/b"] {
        refused(&user(name, "\"live/{user}/*\""), 11, &["{user}", "cannot be part of a stream's"]);
    }
}
