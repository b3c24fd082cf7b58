//! Every key, and every error.

use super::*;

const STREAM_TOML: &str = "[[stream]]\nname = \"front\"\nsource = \"rtsp://192.0.2.10/stream1\"\n";

/// The faults of a document with a valid stream after `text`.
pub(super) fn faults(text: &str) -> Vec<String> {
    match Config::from_toml(&format!("{text}\n{STREAM_TOML}")) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(Fault::to_string).collect(),
    }
}

pub(super) fn config(text: &str) -> Config {
    Config::from_toml(&format!("{text}\n{STREAM_TOML}")).unwrap_or_else(|faults| panic!("{text}: {faults:?}"))
}

/// Asserts that `text` has exactly one fault, which starts with `line N: ` and contains all of `parts`.
#[track_caller]
pub(super) fn refused(text: &str, line: usize, parts: &[&str]) {
    let found = faults(text);
    assert_eq!(found.len(), 1, "{text}: {found:?}");
    assert!(found[0].starts_with(&format!("line {line}: ")), "{text}: {found:?}");
    for part in parts {
        assert!(found[0].contains(part), "{text}: {part:?} is not said in {found:?}");
    }
}

#[test]
fn one_address_leaves_room_for_others() {
    let per_address = |keys: &str| config(keys).clients_per_address();
    assert_eq!(per_address(""), Some(2_500));
    assert_eq!(per_address("limits.clients = 100"), Some(25));
    assert_eq!(per_address("limits.clients = 8"), Some(16), "a small relay is not made smaller");
    assert_eq!(per_address("limits.clients_per_address = 0"), None);
    assert_eq!(per_address("limits.clients_per_address = 7"), Some(7));
    // All clients on loopback have one address.
    assert_eq!(per_address("listen = [\"127.0.0.1:8554\", \"[::1]:8554\"]"), None);
    assert_eq!(per_address("listen = [\"127.0.0.1:8554\", \"192.0.2.1:8554\"]"), Some(2_500));
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = config("");
    assert_eq!(config.listen, ["0.0.0.0:8554".parse().unwrap()]);
    assert_eq!((config.workers, config.io, config.dscp), (0, IoChoice::Auto, 0));
    assert_eq!(config.queue.age, Duration::from_secs(1));
    assert_eq!(config.queue.log_bytes, 32 << 20);
    assert_eq!(config.queue.stall_timeout, Duration::from_secs(10));
    assert_eq!(config.limits.clients, 10_000);
    assert_eq!(config.limits.handshake_timeout, Duration::from_secs(10));
    assert_eq!(config.limits.session_timeout, Duration::from_secs(60));
    assert_eq!(config.report, ReportConfig { syslog: false, every: None, format: ReportFormat::Auto, events: false });
    assert_eq!(config.streams.len(), 1);
    assert_eq!(config.streams[0].start, Start::Cached);
    let SourceKind::Cameras(cameras) = &config.streams[0].source else { panic!("{config:?}") };
    let [camera] = &cameras[..] else { panic!("{config:?}") };
    assert_eq!(camera.to_string(), "rtsp://192.0.2.10/stream1");
    assert!(config.shards() >= 1);
}

#[test]
fn every_key_is_taken() {
    let text = r#"
        listen = ["[::]:8554", "127.0.0.1:0"]
        http = "127.0.0.1:8580"
        workers = 3
        dscp = 34
        io = "epoll"
        zero_copy = "on"
        [queue]
        age = "500ms"
        log_bytes = "64MiB"
        log_bytes_total = "1GiB"
        stall_timeout = "3s"
        [limits]
        clients = 5
        clients_per_address = 0
        handshake_timeout = "2s"
        session_timeout = "30s"
        [report]
        every = "5s"
        format = "json"
        syslog = true
        events = true
        [[stream]]
        name = "a"
        source = "test"
        transport = "tcp"
        on_demand = false
        start = "live"
    "#;
    let config = config(text);
    assert_eq!(config.listen.len(), 2);
    assert_eq!((config.workers, config.shards(), config.io, config.dscp), (3, 3, IoChoice::Epoll, 34));
    assert_eq!(config.zero_copy, ZeroCopy::On);
    let second = Duration::from_secs(1);
    assert_eq!(
        config.queue,
        Queue { age: second / 2, log_bytes: 64 << 20, log_bytes_total: 1 << 30, stall_timeout: 3 * second }
    );
    assert_eq!(
        config.limits,
        Limits {
            clients: 5,
            clients_per_address: PerAddress::All,
            handshake_timeout: 2 * second,
            session_timeout: 30 * second
        }
    );
    assert_eq!(
        config.report,
        ReportConfig { syslog: true, every: Some(5 * second), format: ReportFormat::Json, events: true }
    );
    assert_eq!(config.http, Some("127.0.0.1:8580".parse().unwrap()));
    let names: Vec<_> = config.streams.iter().map(|stream| stream.name.as_str()).collect();
    assert_eq!(names, ["a", "front"]);
    assert_eq!((&config.streams[0].source, config.streams[0].start), (&SourceKind::Test, Start::Live));
}

#[test]
fn an_address_may_be_alone_or_in_a_list() {
    assert_eq!(config("listen = \"[::1]:554\"").listen, ["[::1]:554".parse().unwrap()]);
    refused("listen = []", 1, &["listen", "empty"]);
    refused("listen = 8554", 1, &["a number", "0.0.0.0:8554"]);
    refused("listen = [\"127.0.0.1:8554\",\n \"127.0.0.1:8554\"]", 2, &["twice"]);
    refused("listen = [\"0.0.0.0:8554\", \"[::]:8554\"]", 1, &["remove 0.0.0.0:8554"]);
    refused("\nlisten = \":8554\"", 2, &["\"[::]:8554\""]);
}

#[test]
fn sources_are_one_or_a_list_and_may_be_pulled_on_demand() {
    let stream = |keys: &str| {
        let mut config = Config::from_toml(&format!("[[stream]]\nname = \"a\"\n{keys}")).unwrap();
        config.streams.remove(0)
    };
    let list = stream("source = [\"rtsp://main/\", \"rtsp://backup/\"]\nsource_timeout = \"3s\"");
    let SourceKind::Cameras(cameras) = &list.source else { panic!("{list:?}") };
    assert_eq!((cameras.len(), list.source_timeout, list.on_demand), (2, Duration::from_secs(3), None));
    assert_eq!(list.on_demand_start, Duration::from_secs(10));
    let lazy = stream("source = \"test\"\non_demand = true\non_demand_stop = \"0s\"").on_demand.unwrap();
    assert_eq!(lazy.stop, Duration::ZERO);
    // When the relay has just started, a client may have to wait for any pulled stream.
    let waited_for = stream("source = \"test\"\non_demand_start = \"1s\"");
    assert_eq!((waited_for.on_demand, waited_for.on_demand_start), (None, Duration::from_secs(1)));
    let secure = stream(&format!("source = \"rtsps://a/\"\ntls_fingerprint = \"{}\"", "ab".repeat(32))).camera.tls;
    assert_eq!(secure.fingerprint, Some([0xab; 32]));
    let published = stream("source = \"publish\"\ntakeover = true").source;
    assert_eq!(published, SourceKind::Publisher { takeover: true });
    let all = "[[stream]]\nname = \"a\"\n";
    refused(&format!("{all}source = \"rtsps://a/\"\ntls_fingerprint = \"ab\""), 4, &["openssl"]);
    refused(&format!("{all}source = \"rtsp://a/\"\ntls_ca = \"/x\""), 4, &["rtsps://"]);
    refused(&format!("{all}source = \"rtsps://a/\"\ntransport = \"udp\""), 4, &["TLS connection"]);
    refused(&format!("{all}source = \"test\"\ntakeover = true"), 4, &["publish"]);
    refused(&format!("{all}source = \"publish\"\non_demand = true"), 4, &["pulled"]);
    refused(&format!("{all}source = []"), 3, &["from 1 to 8"]);
    refused(&format!("{all}source = [\"rtsp://a/\", \"test\"]"), 3, &["only URLs of cameras"]);
    refused(&format!("{all}source = \"publish\"\non_demand_start = \"1s\""), 4, &["pulled"]);
    refused(&format!("{all}source = \"test\"\non_demand_stop = \"1s\""), 4, &["on_demand = true"]);
    refused(&format!("{all}source = \"test\"\nsource_timeout = \"1ms\""), 4, &["500ms"]);
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_right_one() {
    refused("liste = \"0.0.0.0:1\"", 1, &["unknown key liste;", "did you mean listen?"]);
    refused("worker = 1", 1, &["did you mean workers?"]);
    refused("zerocopy = \"auto\"", 1, &["did you mean zero_copy?"]);
    refused("[queue]\nagee = \"1s\"", 2, &["unknown key queue.agee", "did you mean queue.age?"]);
    refused("[queue]\n\nlog-bytes = \"1MiB\"", 3, &["did you mean queue.log_bytes?"]);
    refused("[limits]\nclient = 1", 2, &["did you mean limits.clients?"]);
    refused("[report]\nevry = \"1s\"", 2, &["did you mean report.every?"]);
    // The name that other programs use.
    let found = faults("[[stream]]\nname = \"a\"\nurl = \"rtsp://h/\"");
    assert!(found.contains(&"line 3: unknown key stream.url; did you mean stream.source?".into()), "{found:?}");
    let stream = "[[stream]]\nname = \"a\"\nsource = \"test\"\n";
    refused(&format!("{stream}sourceOnDemand = true"), 4, &["did you mean stream.on_demand?"]);
    refused("port = 8554", 1, &["did you mean listen?"]);
}

#[test]
fn a_key_in_the_wrong_table_is_answered_with_the_right_table() {
    refused("stall_timeout = \"3s\"", 1, &["did you mean queue.stall_timeout?"]);
    refused("[queue]\nclients = 3", 2, &["did you mean limits.clients?"]);
    refused("[limits]\nsource = \"test\"", 2, &["did you mean stream.source?"]);
    refused("frobnicate = 1", 1, &["the keys are listen, listen_tls,"]);
    refused("[report]\nfrobnicate = 1", 2, &["the keys of report are every, format, syslog, events"]);
}

#[test]
fn players_and_http_need_addresses_of_their_own() {
    for (listen, http) in
        [("127.0.0.1:8554", "127.0.0.1:8554"), ("0.0.0.0:8554", "127.0.0.1:8554"), ("[::]:8554", "127.0.0.1:8554")]
    {
        refused(&format!("listen = \"{listen}\"\nhttp = \"{http}\""), 2, &[listen, "another port"]);
    }
    let stream = "[[stream]]\nname = \"a\"\nsource = \"test\"";
    for (listen, http) in
        [("127.0.0.1:8554", "127.0.0.1:8580"), ("127.0.0.2:8554", "127.0.0.1:8554"), ("127.0.0.1:0", "127.0.0.1:0")]
    {
        Config::from_toml(&format!("listen = \"{listen}\"\nhttp = \"{http}\"\n{stream}")).expect("two addresses");
    }
}

#[test]
fn streams_are_checked_one_by_one() {
    refused("[[stream]]\nname = \"b\"\nsource = \"test\"\nstrat = \"live\"", 4, &["did you mean stream.start?"]);
    refused("[[stream]]\nname = \"b\"\nsource = \"test\"\nstart = \"alive\"", 4, &["\"cached\" or \"live\""]);
    refused("[[stream]]\nsource = \"test\"", 1, &["stream.name is missing"]);
    refused("[[stream]]\nname = \"b\"", 1, &["stream.source is missing", "rtsp://HOST/PATH"]);
    refused("[[stream]]\nname = \"a b\"\nsource = \"test\"", 2, &["\"a b\"", "letters"]);
    refused("[[stream]]\nname = \"\"\nsource = \"test\"", 2, &["empty"]);
    refused("[[stream]]\nname = \"b\"\nsource = 1", 3, &["stream.source: is a number"]);
    refused("[[stream]]\nname = \"b\"\nsource = \"10.0.0.1/x\"", 3, &["rtsp://HOST/PATH"]);
    let twice = format!("{STREAM_TOML}{STREAM_TOML}");
    let found = Config::from_toml(&twice).unwrap_err();
    assert_eq!((found.len(), found[0].line), (1, Some(5)), "{found:?}");
    assert!(found[0].message.contains("another stream"));
    let single = STREAM_TOML.replace("[[", "[").replace("]]", "]");
    let found = Config::from_toml(&single).unwrap_err();
    assert!(found[0].message.contains("write [[stream]] with double brackets"), "{found:?}");
    let none = Config::from_toml("workers = 1").unwrap_err();
    assert!(none[0].message.contains("add [[stream]]"), "{none:?}");
}

#[test]
fn values_out_of_their_bounds_are_refused_with_the_bounds() {
    refused("workers = -1", 1, &["0 to 256"]);
    refused("workers = 257", 1, &["0 to 256"]);
    refused("workers = \"two\"", 1, &["is a string"]);
    refused("io = \"urign\"", 1, &["\"urign\"", "\"auto\" or \"uring\" or \"epoll\""]);
    refused("zero_copy = true", 1, &["true or false"]);
    refused("queue.age = 1", 1, &["queue.age", "\"200ms\""]);
    refused("queue.age = \"1ms\"", 1, &["20ms to 60s"]);
    refused("queue.age = \"soon\"", 1, &["not a duration"]);
    refused("queue.log_bytes = \"1023KiB\"", 1, &["\"1MiB\" to \"16GiB\""]);
    refused("queue.log_bytes = 5", 1, &["is 5 bytes"]);
    refused("queue.log_bytes = 1.5", 1, &["with decimals"]);
    refused("queue = 1", 1, &["[queue]"]);
    refused("[[queue]]\nage = \"1s\"", 1, &["single brackets"]);
    refused("limits.clients = 0", 1, &["from 1 to 1000000"]);
    refused("limits.handshake_timeout = \"0s\"", 1, &["100ms"]);
    refused("limits.session_timeout = \"1500ms\"", 1, &["whole seconds"]);
    refused("report.every = \"10ms\"", 1, &["\"100ms\"", "\"0s\""]);
    refused("report.format = \"xml\"", 1, &["\"json\""]);
    refused("report.syslog = \"no\"", 1, &["true or false"]);
    assert_eq!(config("report.every = \"0s\"").report.every, Some(Duration::ZERO));
    assert_eq!(config("queue.log_bytes = 1048576").queue.log_bytes, 1 << 20);
}

#[test]
fn relations_between_values_are_checked() {
    refused("[queue]\nage = \"5s\"\nstall_timeout = \"4s\"", 3, &["stall_timeout (4s) is less than age (5s)"]);
    refused("[queue]\nage = \"11s\"", 2, &["stall_timeout (10s)"]);
    refused("[queue]\nlog_bytes = \"64MiB\"\nlog_bytes_total = \"63MiB\"", 3, &["for all streams", "64 MiB"]);
    refused("[queue]\nlog_bytes = \"8GiB\"", 2, &["log_bytes_total (4096 MiB)"]);
    refused("[queue]\nstall_timeout = \"500ms\"", 2, &["age (1s)"]);
}

#[test]
fn streams_share_what_there_is_for_all_logs() {
    let config = config("queue.log_bytes_total = \"100MiB\"");
    let shares = [0, 1, 3, 4, 10, 200].map(|streams| config.log_bytes(streams) >> 20);
    assert_eq!(shares, [32, 32, 32, 25, 10, 1]);
}

#[test]
fn every_fault_is_told_not_only_the_first() {
    let text = "listen = \"x\"\nworkres = 2\n[queue]\nage = 3\n[[stream]]\nname = \"b\"\nsource = \"ftp://b\"";
    let lines: Vec<_> = Config::from_toml(text).unwrap_err().iter().map(|fault| fault.line.unwrap()).collect();
    assert_eq!(lines, [1, 2, 4, 7]);
}

#[test]
fn broken_toml_is_told_with_its_lines() {
    let found = Config::from_toml("workers = \n[queue\nage = \"1s\"\n").unwrap_err();
    assert_eq!(found[0].line, Some(1), "{found:?}");
    assert!(found.len() >= 2 && found[1].line == Some(2), "{found:?}");
    let found =
        Config::from_toml("listen = [\"127.0.0.1:8554\"\n[[stream]]\nname = \"a\"\nsource = \"test\"\n").unwrap_err();
    let lines: Vec<_> = found.iter().map(|fault| fault.line.unwrap()).collect();
    assert!(lines[0] == 2 && lines.is_sorted_by(|one, next| one < next), "one a line: {found:?}");
    let found = Config::from_toml("io = \"auto\"\nio = \"auto\"\n").unwrap_err();
    assert_eq!((found.len(), found[0].line), (1, Some(2)), "{found:?}");
}

#[test]
fn no_fault_shows_a_password() {
    for text in [
        "source = \"rtsp://a:hunter2@b/\"",
        "io = \"rtsp://a:hunter2@b/\"",
        "\"rtsp://a:hunter2@b/\" = 1",
        "listen = \"rtsp://a:hunter2@b/\"",
        "queue.age = \"rtsp://a:hunter2@b/\"",
        "queue.log_bytes = \"rtsp://a:hunter2@b/\"",
        "[[stream]]\nname = \"rtsp://a:hunter2@b/\"\nsource = \"test\"",
        "[[stream]]\nname = \"b\"\nsource = \"rtsp://a:hunter2@b/",
        "[[stream]]\nname = \"b\"\nsource = 'rtsp://a:hunter2@b:x/'",
        "[[stream]]\nname = \"b\"\nsource = rtsp://a:hunter2@b/",
        "[[stream]]\nname = \"b\"\nsource = [\"rtsp://a:hunter2@b:x/\"]",
        "[[stream]]\nname = \"b\"\nsource = \"test\"\n\"rtsp://a:hunter2@b/\" = 1",
        "[[user]]\nname = \"x\"\npassword = [\"hunter2\"]",
        "[[user]]\nname = \"x\"\nha1_md5 = \"hunter2\"",
        "[[user]]\npassword = \"hunter2\"",
        "[[user]]\nname = \"rtsp://a:hunter2@b/\"\npassword = \"hunter2\"",
        "[[user]]\nname = \"x\"\npassword = \"p\"\nfrom = \"rtsp://a:hunter2@b/\"",
        "[[user]]\nname = \"x\"\npassword = \"p\"\nstreams = \"rtsp://a:hunter2@b/\"",
        "[[user]]\nname = \"x\"\npassword = \"hunter2",
        "[[user]]\nname = \"x\"\npassword = hunter2",
    ] {
        let found = faults(text);
        assert!(!found.is_empty(), "{text} was taken");
        assert!(!found.iter().any(|fault| fault.contains("hunter2")), "{text}: {found:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_told_with_a_cure() {
    let error = Config::load(Path::new("/nonexistent/rtsprelay.toml")).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("/nonexistent/rtsprelay.toml: cannot be read") && text.contains("--config"), "{text}");
}

#[test]
fn the_sample_is_valid_and_says_the_defaults() {
    let text = include_str!("../../systemd/rtsprelay.toml");
    let sample = Config::from_toml(text).unwrap_or_else(|faults| panic!("{faults:?}"));
    let defaults = config("");
    assert_eq!(Config { streams: Vec::new(), ..sample }, Config { streams: Vec::new(), ..defaults });
    // Every documented key is in it, active or commented out.
    for section in SECTIONS {
        for key in section.keys.iter().filter(|key| **key != "multicast") {
            let written = |prefix: &str| text.lines().any(|line| line.trim_start_matches("# ").starts_with(prefix));
            assert!(
                written(&format!("{key} ")) || written(&format!("[{key}]")) || written(&format!("[[{key}]]")),
                "{key} of [{}] is not in the sample",
                section.name
            );
        }
    }
}

#[test]
fn a_code_point_has_six_bits() {
    assert_eq!(config("dscp = 63").dscp, 63);
    refused("dscp = 64", 1, &["dscp", "from 0 to 63"]);
}

#[test]
fn ports_for_datagrams_are_enough_for_all_shards() {
    assert_eq!(config("workers = 2\nudp_ports = \"20000-20003\"").udp_ports, Some((20_000, 20_003)));
    for (ports, said) in [
        ("20001-20004", "room for 1 pairs"),
        ("20000-20000", "no even port"),
        ("20003-20000", "no even port"),
        ("20000", "not a range"),
        ("0-9", "not a range"),
        ("20000-70000", "not a range"),
    ] {
        refused(&format!("workers = 2\nudp_ports = \"{ports}\""), 2, &["udp_ports", said]);
    }
}

#[test]
fn a_multicast_group_has_a_group_address_and_an_even_port() {
    let stream = |keys: &str| format!("[[stream]]\nname = \"b\"\nsource = \"test\"\n{keys}");
    let given = config(&stream("multicast = \"239.1.2.3:5000\"\nmulticast_ttl = 8\nmulticast_interface = \"eth0\""));
    let group = "239.1.2.3:5000".parse().unwrap();
    assert_eq!(given.streams[0].multicast, Some(Multicast { group, ttl: 8, interface: Some("eth0".into()) }));
    let given = config(&stream("multicast = \"[ff15::1]:5000\"")).streams[0].multicast.clone().unwrap();
    assert_eq!((given.ttl, given.interface), (1, None));
    refused(&stream("multicast = \"192.0.2.1:5000\""), 4, &["not a multicast address", "239.0.0.0"]);
    refused(&stream("multicast = \"239.1.2.3:5001\""), 4, &["even port"]);
    refused(&stream("multicast = \"239.1.2.3\""), 4, &["not an address with a port", "\"239.1.2.3:5000\""]);
    refused(&stream("multicast_ttl = 4"), 4, &["without stream.multicast"]);
    refused(&stream("multicast = \"239.1.2.3:5000\"\nmulticast_ttl = 0"), 5, &["from 1 to 255"]);
    let two = |second: &str| {
        let other = format!("[[stream]]\nname = \"other\"\nsource = \"test\"\nmulticast = \"{second}\"\n");
        stream("multicast = \"239.1.2.3:5000\"") + "\n" + &other
    };
    refused(&two("239.1.2.3:5004"), 8, &["\"b\"", "another group", "least 8 away"]);
    assert!(faults(&two("239.1.2.3:5008")).is_empty() && faults(&two("239.1.2.4:5000")).is_empty());
}

#[test]
fn a_pattern_says_what_streams_made_by_name_are_like() {
    let keys = "[[stream]]\nname = \"edge/*\"\nsource = [\"rtsp://u:p@a/live/{name}\", \"rtsp://b/{name}?x=1\"]\n\
                streams_max = 7\nlinger = \"5s\"\non_demand_stop = \"2s\"\nstart = \"live\"\n\
                [[stream]]\nname = \"edge/x*\"\nsource = \"publish\"\non_demand_start = \"3s\"\ntakeover = true\n";
    let config = config(keys);
    let [edge, published] = &config.patterns[..] else { panic!("{config:?}") };
    assert_eq!(config.streams.len(), 1);
    assert_eq!((edge.streams_max, edge.linger, edge.is_published()), (7, Duration::from_secs(5), false));
    let stream = edge.stream("edge/a/b").unwrap();
    let SourceKind::Cameras(cameras) = &stream.source else { panic!("{stream:?}") };
    let shown: Vec<_> = cameras.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["rtsp://a/live/a/b", "rtsp://b/a/b?…"]);
    assert!(stream.made && cameras[0].has_credentials() && stream.start == Start::Live);
    assert_eq!(stream.on_demand, Some(OnDemandConfig { stop: Duration::from_secs(2) }));
    assert_eq!((stream.name.as_str(), edge.stream("edge/")), ("edge/a/b", None));
    assert!(published.is_published() && published.wait() == Duration::from_secs(3));
    assert_eq!(published.stream("edge/xy").unwrap().on_demand, None);
    assert_eq!((published.streams_max, published.linger), (1_000, Duration::from_secs(60)));
    // No other stream is needed.
    let alone = Config::from_toml("[[stream]]\nname = \"*\"\nsource = \"publish\"").unwrap();
    assert_eq!((alone.streams.len(), alone.patterns.len()), (0, 1));
}

#[test]
fn a_pattern_that_cannot_be_meant_is_refused() {
    let pattern = |name: &str, keys: &str| format!("[[stream]]\nname = \"{name}\"\n{keys}");
    refused(&pattern("*a", "source = \"publish\""), 2, &["\"*a\"", "last character"]);
    refused(&pattern("a b/*", "source = \"publish\""), 2, &["letters"]);
    refused(&pattern("a//*", "source = \"publish\""), 2, &["empty segment"]);
    refused(&pattern("e/*", "source = \"rtsp://a/x\""), 3, &["same for every stream", "{name}"]);
    refused(&pattern("e", "source = \"rtsp://a/{name}\""), 3, &["ends with *"]);
    refused(&pattern("e/*", "source = \"rtsp://{name}/x\""), 3, &["outside of its path"]);
    refused(&pattern("e/*", "source = \"rtsp://a:{name}@b/{name}\""), 3, &["outside of its path"]);
    refused(&pattern("e/*", "source = \"rtsp://a/{name}?x={name}\""), 3, &["outside of its path"]);
    refused(&pattern("e/*", "source = \"rtsp://a/{name}\"\non_demand = false"), 4, &["cannot be false", "remove"]);
    refused(&pattern("e/*", "source = \"publish\"\non_demand = true"), 4, &["pulled"]);
    refused(&pattern("e/*", "source = \"publish\"\nmulticast = \"239.1.2.3:5000\""), 4, &["one group", "many streams"]);
    refused(&pattern("e/*", "source = \"publish\"\nstreams_max = 0"), 4, &["from 1 to"]);
    refused(&pattern("e", "source = \"publish\"\nstreams_max = 5"), 4, &["is for patterns"]);
    refused(&pattern("e", "source = \"publish\"\nlinger = \"5s\""), 4, &["is for patterns"]);
    let twice = pattern("e/*", "source = \"publish\"\n") + &pattern("e/*", "source = \"test\"");
    refused(&twice, 5, &["another stream"]);
}
