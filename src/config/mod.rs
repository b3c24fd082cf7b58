//! The configuration: TOML, validated once into types that cannot hold invalid values.

pub mod added;
mod auth_url;
mod bad_value;
mod read;
mod site;
mod stream;
mod tls;
mod url;
mod user;
mod value;
mod variables;

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

pub use auth_url::AuthUrl;
pub use bad_value::BadValue;
pub use read::Fault;
use read::{Faults, Field, Section};
pub use site::{Part, Site};
pub use stream::{Multicast, OnDemandConfig, PatternConfig, StreamConfig};
pub use tls::TlsConfig;
pub use url::camera as parse_camera;
pub use user::user_name;
pub use value::{duration as parse_duration, http as parse_http, listen as parse_listen};

use crate::access::User;
pub use crate::egress::ZeroCopy;
use crate::file;
use crate::limits::{
    CLIENTS_MAX, DSCP_MAX, LOG_BYTES_MAX, LOG_BYTES_MIN, LOG_BYTES_TOTAL_MAX, QUEUE_AGE_MAX_MS, QUEUE_AGE_MIN_MS,
    REPORT_EVERY_MIN_MS, WORKERS_MAX, clients_per_address_share,
};
pub use crate::redact::redact;
pub use crate::shard::core::Start;
pub use crate::source::spec::SourceKind;
use crate::testing::Testing;

/// All settings of the relay.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Addresses to serve RTSP on; never empty.
    pub listen: Vec<SocketAddr>,
    /// Settings for RTSPS; `None` to disable it.
    pub tls: Option<TlsConfig>,
    /// Address of `/metrics`, `/status` and `/healthz`; `None` for no HTTP.
    pub http: Option<SocketAddr>,
    /// Address of the same over HTTPS; `None` for none. If set, [`Config::tls`] is set too.
    pub http_tls: Option<SocketAddr>,
    /// Host names that browsers may request the pages by, besides addresses and localhost.
    pub http_hosts: Vec<String>,
    /// Origins whose pages may embed the relay's.
    pub http_embed: Vec<String>,
    /// Number of shards; 0 for one per core.
    pub workers: usize,
    /// How data is sent.
    pub io: IoChoice,
    /// Which sends lend their pages to the kernel.
    pub zero_copy: ZeroCopy,
    /// The differentiated services code point (RFC 2474) for clients, at most [`DSCP_MAX`]; 0 for none.
    pub dscp: u8,
    /// The UDP ports for sending to players, inclusive: two per shard. `None` for any free ports.
    pub udp_ports: Option<(u16, u16)>,
    /// What is kept for clients.
    pub queue: Queue,
    /// What clients may take.
    pub limits: Limits,
    /// Reports and logs.
    pub report: ReportConfig,
    /// Where streams that are added at run time are saved; without it they are lost when the relay stops.
    pub state: Option<PathBuf>,
    /// Settings for tests, from the command line only.
    pub testing: Testing,
    /// The configured streams, with unique names. Empty only if there are patterns, or all belong to other relays ([`Site::only`]).
    pub streams: Vec<StreamConfig>,
    /// The patterns for streams created by name; no two are equal.
    pub patterns: Vec<PatternConfig>,
    /// The users, with unique names; without any, anyone may read.
    pub users: Vec<Arc<User>>,
    /// Whether users may use Basic authentication.
    pub basic: bool,
    /// Settings for a relay that is one of several.
    pub site: Site,
    /// The files that it was read from, including those that it names.
    pub files: Vec<PathBuf>,
    /// Warnings, in the order of the lines.
    pub warnings: Vec<Fault>,
}

/// How data is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring if it works, otherwise epoll with a warning.
    Auto,
    /// io_uring, or no start.
    Uring,
    /// epoll.
    Epoll,
}

/// `[queue]`: what is kept for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Lag at which a client skips to a keyframe.
    pub age: Duration,
    /// Maximum size of a stream's log in bytes.
    pub log_bytes: u64,
    /// Maximum size of all streams' logs in bytes; each stream gets at least [`LOG_BYTES_MIN`].
    pub log_bytes_total: u64,
    /// Maximum time for one operation, after which its client is closed; at least [`Queue::age`].
    pub stall_timeout: Duration,
}

/// `[limits]`: limits for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of connections, over all shards.
    pub clients: usize,
    /// The same for one address, or one IPv6 network.
    pub clients_per_address: PerAddress,
    /// Maximum time for a connection's first complete request.
    pub handshake_timeout: Duration,
    /// Silence after which a session ends; whole seconds, because players are told whole seconds.
    pub session_timeout: Duration,
}

/// The maximum number of connections for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerAddress {
    /// The default: a quarter of all ([`clients_per_address_share`]). No limit if the relay listens only on loopback, where all clients
    /// have the same address.
    Share,
    /// 0: no limit.
    All,
    /// At most this many.
    Most(usize),
}

/// `[report]`: reports on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportConfig {
    /// Whether logs and reports also go to the local syslog.
    pub syslog: bool,
    /// Time between two reports; zero for only the summary at exit. `None`: a minute for [`ReportFormat::Line`], otherwise a second.
    pub every: Option<Duration>,
    /// How a report looks.
    pub format: ReportFormat,
    /// Whether events are printed as they happen, one JSON object per line.
    pub events: bool,
}

/// How a report looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// A live table on a terminal, otherwise a line.
    Auto,
    /// One short line for all streams.
    Line,
    /// A table.
    Table,
    /// `key=value` lines.
    Logfmt,
    /// One JSON object per line.
    Json,
}

/// The default path for `run` and `check`.
pub const DEFAULT_PATH: &str = "/etc/rtsprelay/rtsprelay.toml";

impl Config {
    /// The defaults, with one stream.
    fn with_stream(stream: StreamConfig) -> Config {
        Config {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 8554))],
            tls: None,
            http: None,
            http_tls: None,
            http_hosts: Vec::new(),
            http_embed: Vec::new(),
            workers: 0,
            io: IoChoice::Auto,
            zero_copy: ZeroCopy::Auto,
            dscp: 0,
            udp_ports: None,
            queue: Queue {
                age: Duration::from_secs(1),
                log_bytes: 32 * 1024 * 1024,
                log_bytes_total: 4 * 1024 * 1024 * 1024,
                stall_timeout: Duration::from_secs(10),
            },
            limits: Limits {
                clients: 10_000,
                clients_per_address: PerAddress::Share,
                handshake_timeout: Duration::from_secs(10),
                session_timeout: Duration::from_secs(60),
            },
            report: ReportConfig { syslog: false, every: None, format: ReportFormat::Auto, events: false },
            state: None,
            testing: Testing::default(),
            streams: vec![stream],
            patterns: Vec::new(),
            users: Vec::new(),
            basic: false,
            site: Site::default(),
            files: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// One source without a file: the defaults with the stream `live`, and anything published from this machine.
    pub fn for_source(source: SourceKind) -> Config {
        let config = Config::with_stream(StreamConfig::new("live", source));
        Config { patterns: vec![PatternConfig::of_all()], ..config }
    }

    /// No source and no file: the defaults, and anything published from this machine under any name.
    pub fn for_publishers() -> Config {
        let config = Config::for_source(SourceKind::Test);
        Config { streams: Vec::new(), ..config }
    }

    /// The built-in test pattern on loopback, as the stream `test`.
    pub fn demo() -> Config {
        let stream = StreamConfig::new("test", SourceKind::Test);
        Config { listen: vec![SocketAddr::from(([127, 0, 0, 1], 8554))], ..Config::with_stream(stream) }
    }

    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError`] with all errors in the file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let fail = |faults| ConfigError { path: path.to_owned(), faults };
        // It may be a pipe, such as a shell's `<(…)`.
        let read = |mut file: File| {
            let exposed = file::is_exposed(&file.metadata()?);
            let mut text = Vec::new();
            file.read_to_end(&mut text).map(|_| (text, exposed))
        };
        let (text, exposed) = File::open(path).and_then(read).map_err(|error| {
            let cure = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "give another with --config, or serve a camera without a file: rtsprelay run --source rtsp://HOST/PATH"
                }
                std::io::ErrorKind::PermissionDenied => "let the user that runs rtsprelay read it",
                _ => "check that it is a readable file",
            };
            fail(vec![Fault { line: None, message: format!("cannot be read ({error}); {cure}") }])
        })?;
        let text = String::from_utf8(text).map_err(|error| {
            let bad = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = bad.iter().filter(|&&byte| byte == b'\n').count() + 1;
            fail(vec![Fault { line: Some(line), message: "is not UTF-8; save the file as UTF-8".into() }])
        })?;
        let (mut config, secret) = from_text(&text).map_err(fail)?;
        config.files.insert(0, path.to_owned());
        if exposed && secret.is_some() {
            let message =
                format!("contains a password or a user's name, and {}", file::exposed_of_relay(path.display()));
            config.warnings.push(Fault { line: secret, message });
        }
        Ok(config)
    }

    /// Parses and validates a document.
    ///
    /// # Errors
    /// All errors in it, in the order of their lines.
    pub fn from_toml(text: &str) -> Result<Config, Vec<Fault>> {
        from_text(text).map(|(config, _)| config)
    }

    /// All addresses that players connect to.
    fn served_at(&self) -> impl Iterator<Item = &SocketAddr> {
        self.listen.iter().chain(self.tls.iter().flat_map(|tls| &tls.listen))
    }

    /// Maximum number of connections for one address; `None` for no limit.
    pub fn clients_per_address(&self) -> Option<usize> {
        match self.limits.clients_per_address {
            PerAddress::Most(most) => Some(most),
            PerAddress::All => None,
            PerAddress::Share if self.served_at().all(|address| address.ip().to_canonical().is_loopback()) => None,
            PerAddress::Share => Some(clients_per_address_share(self.limits.clients)),
        }
    }

    /// Size of each stream's log if this many streams share the total.
    pub fn log_bytes(&self, streams: usize) -> u64 {
        let share = self.queue.log_bytes_total / (streams.max(1) as u64);
        share.clamp(LOG_BYTES_MIN, self.queue.log_bytes)
    }

    /// The number of shards to start: as configured, or one per core.
    pub fn shards(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.workers == 0 { cores().min(WORKERS_MAX) } else { self.workers }
    }
}

/// A file that cannot be used.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// The errors; never empty.
    pub faults: Vec<Fault>,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            match fault.line {
                Some(line) => write!(f, "{newline}{}:{line}: {}", self.path.display(), fault.message)?,
                None => write!(f, "{newline}{}: {}", self.path.display(), fault.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

const TOP: Section = Section {
    name: "",
    keys: &[
        "listen",
        "listen_tls",
        "tls_certificate",
        "tls_key",
        "http",
        "http_tls",
        "http_hosts",
        "http_embed",
        "workers",
        "io",
        "zero_copy",
        "dscp",
        "udp_ports",
        "basic",
        "auth_url",
        "auth_timeout",
        "auth_cache",
        "proxy_protocol_from",
        "drain",
        "drain_delay",
        "only",
        "reload_on_change",
        "state",
        "queue",
        "limits",
        "report",
        "user",
        "stream",
    ],
};
const QUEUE: Section = Section { name: "queue", keys: &["age", "log_bytes", "log_bytes_total", "stall_timeout"] };
const LIMITS: Section =
    Section { name: "limits", keys: &["clients", "clients_per_address", "handshake_timeout", "session_timeout"] };
const REPORT: Section = Section { name: "report", keys: &["every", "format", "syslog", "events"] };
const SECTIONS: &[Section] = &[TOP, QUEUE, LIMITS, REPORT, user::USER, stream::STREAM];

/// A document, and the line of the first secret in it.
fn from_text(text: &str) -> Result<(Config, Option<usize>), Vec<Fault>> {
    from_text_in(text, &|name| std::env::var(name).ok())
}

/// The same, with a function that returns environment variables.
fn from_text_in(
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, Option<usize>), Vec<Fault>> {
    let mut faults = Faults::new(text);
    let (mut document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            let message = format!("not valid TOML: {}", redact(error.message()));
            match error.span() {
                Some(span) => faults.at(span, message),
                None => faults.whole(message),
            }
        }
        let mut found = faults.into_sorted();
        // Further errors on the same line are consequences.
        found.dedup_by(|next, first| next.line.is_some() && next.line == first.line);
        return Err(found);
    }
    variables::expand(document.get_mut(), environment, &mut faults);
    if faults.are_some() {
        // A string without its variable would cause further errors.
        return Err(faults.into_sorted());
    }
    let mut config = top(document.get_ref(), &mut faults);
    config.files = faults.take_files();
    config.warnings = faults.take_warnings();
    let secret = faults.first_secret();
    let faults = faults.into_sorted();
    if faults.is_empty() { Ok((config, secret)) } else { Err(faults) }
}

fn top(table: &DeTable<'_>, faults: &mut Faults<'_>) -> Config {
    TOP.refuse_unknown(table, SECTIONS, faults);
    let get = |key| Field::of(&TOP, table, key);
    let mut config = Config::demo();
    config.listen = vec![SocketAddr::from(([0, 0, 0, 0], 8554))];
    listening(&get, &mut config, faults);
    machine(&get, &mut config, faults);
    if let Some(table) = get("queue").and_then(|field| field.table(faults)) {
        queue(table, &mut config.queue, faults);
    }
    if let Some(table) = get("limits").and_then(|field| field.table(faults)) {
        limits(table, &mut config.limits, faults);
    }
    if let Some(table) = get("report").and_then(|field| field.table(faults)) {
        report(table, &mut config.report, faults);
    }
    config.state = get("state").and_then(|field| {
        let path = PathBuf::from(field.string(faults, "the path of a file in quotes")?);
        if path.is_relative() {
            field.fault(faults, "is a relative path; write an absolute path, starting with /");
        }
        Some(path)
    });
    config.streams.clear();
    match get("stream") {
        Some(field) => stream::streams(&field, &mut config.streams, &mut config.patterns, faults),
        None => {
            faults.whole("there is no stream; add [[stream]] with name = \"front\" and source = \"rtsp://HOST/PATH\"")
        }
    }
    if let Some(field) = get("user") {
        config.users = user::users(&field, &config.streams, &config.patterns, faults);
    }
    config.site = site::site(&get, faults);
    site::keep_part(config.site.only, get("only"), &mut config.streams, faults);
    config.basic = basic(&get, &config, faults);
    config
}

/// Where the relay listens, and by which names its pages are reached.
fn listening<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    config: &mut Config,
    faults: &mut Faults<'_>,
) {
    if let Some(listen) = get("listen").and_then(|field| addresses(&field, "0.0.0.0:8554", value::listen, faults)) {
        config.listen = listen;
    }
    let https = get("http_tls");
    config.tls = tls::tls(get, &config.listen, https.as_ref(), faults);
    config.http_tls =
        https.as_ref().and_then(|field| field.parsed(faults, "an address such as \"0.0.0.0:8443\"", value::http_tls));
    config.http =
        get("http").and_then(|field| field.parsed(faults, "an address such as \"127.0.0.1:8580\"", value::http));
    if let (Some(http), Some(field)) = (config.http, get("http"))
        && let Some(listen) = config.served_at().find(|listen| value::clash(**listen, http))
    {
        field.fault(
            faults,
            format!("players connect to {listen}, so {http} cannot be used as well; write another port"),
        );
    }
    if let (Some(address), Some(field)) = (config.http_tls, &https)
        && let Some(other) = config.served_at().chain(&config.http).find(|other| value::clash(**other, address))
    {
        field
            .fault(faults, format!("{other} has another use, so {address} cannot be used as well; write another port"));
    }
    config.http_hosts =
        get("http_hosts").map(|field| list(&field, "cams.example.org", value::host, faults)).unwrap_or_default();
    config.http_embed = get("http_embed")
        .map(|field| list(&field, "https://home.example.org", value::origin, faults))
        .unwrap_or_default();
}

/// What of the machine the relay takes, and how it does its input and output.
fn machine<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    config: &mut Config,
    faults: &mut Faults<'_>,
) {
    let workers = get("workers").and_then(|field| field.integer(faults, 0..WORKERS_MAX as u64 + 1));
    config.workers = workers.unwrap_or_default() as usize;
    config.udp_ports =
        get("udp_ports").and_then(|field| field.parsed(faults, "a range such as \"20000-20999\"", value::ports));
    if let (Some(ports), Some(field)) = (config.udp_ports, get("udp_ports"))
        && value::pairs(ports) < config.shards()
    {
        let (has, needs) = (value::pairs(ports), config.shards());
        field.fault(
            faults,
            format!("has room for {has} pairs of ports, but {needs} shards need one each; widen it, or lower workers"),
        );
    }
    let kinds = [("auto", IoChoice::Auto), ("uring", IoChoice::Uring), ("epoll", IoChoice::Epoll)];
    config.io = get("io").and_then(|field| field.word(faults, &kinds)).unwrap_or(config.io);
    let kinds = [("auto", ZeroCopy::Auto), ("on", ZeroCopy::On), ("off", ZeroCopy::Off)];
    config.zero_copy = get("zero_copy").and_then(|field| field.word(faults, &kinds)).unwrap_or(config.zero_copy);
    if let Some(dscp) = get("dscp").and_then(|field| field.integer(faults, 0..u64::from(DSCP_MAX) + 1)) {
        config.dscp = dscp as u8;
    }
}

/// Whether users may use Basic authentication.
fn basic<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    config: &Config,
    faults: &mut Faults<'_>,
) -> bool {
    let Some(field) = get("basic") else { return false };
    let basic = field.boolean(faults).unwrap_or(false);
    if basic && config.users.is_empty() {
        field.fault(faults, "has no effect without users; add [[user]], or remove the key");
    }
    basic
}

/// `listen` and `listen_tls`: an address such as `example`, or a list of them.
fn addresses(
    field: &Field<'_, '_>,
    example: &str,
    read: fn(&str) -> Result<SocketAddr, BadValue>,
    faults: &mut Faults<'_>,
) -> Option<Vec<SocketAddr>> {
    let wanted = format!("an address such as {example:?}, or a list of them");
    let items = match field.value.get_ref() {
        toml::de::DeValue::Array(items) => items.iter().collect(),
        _ => vec![field.value],
    };
    if items.is_empty() {
        field.fault(faults, format!("is empty; write {wanted}"));
    }
    let mut found: Vec<SocketAddr> = Vec::new();
    for value in items {
        let item = Field { path: field.path.clone(), value };
        let Some(addr) = item.parsed(faults, &wanted, read) else { continue };
        if addr.port() != 0 && found.contains(&addr) {
            item.fault(faults, format!("{addr} is there twice; remove one"));
        }
        found.push(addr);
    }
    let both = found.iter().find(|addr| addr.is_ipv6() && addr.ip().is_unspecified() && addr.port() != 0);
    if let Some(both) = both
        && let Some(v4) = found.iter().find(|addr| addr.is_ipv4() && addr.port() == both.port())
    {
        field.fault(faults, format!("{both} also accepts IPv4, so {v4} cannot be used as well; remove {v4}"));
    }
    (!found.is_empty()).then_some(found)
}

/// A list of words, or a single one.
fn list(
    field: &Field<'_, '_>,
    example: &str,
    read: fn(&str) -> Result<String, BadValue>,
    faults: &mut Faults<'_>,
) -> Vec<String> {
    let wanted = format!("a list such as [{example:?}]");
    let items = match field.value.get_ref() {
        toml::de::DeValue::Array(items) => items.iter().collect(),
        _ => vec![field.value],
    };
    let read = |value| Field { path: field.path.clone(), value }.parsed(faults, &wanted, read);
    items.into_iter().filter_map(read).collect()
}

/// A duration within limits in milliseconds.
fn bounded(field: &Field<'_, '_>, faults: &mut Faults<'_>, min_ms: u64, max_ms: u64) -> Option<Duration> {
    let got = field.parsed(faults, "a duration in quotes, such as \"200ms\" or \"1s\"", value::duration)?;
    let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(max_ms));
    if got < min || got > max {
        field.fault(faults, format!("is {got:?}; write a duration from {min:?} to {max:?}"));
        return None;
    }
    Some(got)
}

fn queue(table: &DeTable<'_>, queue: &mut Queue, faults: &mut Faults<'_>) {
    QUEUE.refuse_unknown(table, SECTIONS, faults);
    let get = |key| Field::of(&QUEUE, table, key);
    if let Some(age) = get("age").and_then(|field| bounded(&field, faults, QUEUE_AGE_MIN_MS, QUEUE_AGE_MAX_MS)) {
        queue.age = age;
    }
    if let Some(bytes) = get("log_bytes").and_then(|field| log_size(&field, LOG_BYTES_MAX, faults)) {
        queue.log_bytes = bytes;
    }
    let total = get("log_bytes_total");
    if let Some(bytes) = total.as_ref().and_then(|field| log_size(field, LOG_BYTES_TOTAL_MAX, faults)) {
        queue.log_bytes_total = bytes;
    }
    if queue.log_bytes_total < queue.log_bytes {
        let field = total.or_else(|| get("log_bytes")).expect("the defaults agree with each other");
        field.fault(
            faults,
            format!(
                "log_bytes_total ({} MiB) is for all streams, log_bytes ({} MiB) for one; raise it to at least log_bytes",
                queue.log_bytes_total >> 20,
                queue.log_bytes >> 20
            ),
        );
    }
    let stall = get("stall_timeout");
    if let Some(timeout) = stall.as_ref().and_then(|field| bounded(field, faults, 100, 600_000)) {
        queue.stall_timeout = timeout;
    }
    if queue.stall_timeout < queue.age {
        // Only one of the two was given, and conflicts with the other's default.
        let field = stall.or_else(|| get("age")).expect("the defaults agree with each other");
        field.fault(
            faults,
            format!(
                "stall_timeout ({:?}) is less than age ({:?}): a client would be closed before it could skip; \
                 make stall_timeout at least age",
                queue.stall_timeout, queue.age
            ),
        );
    }
}

/// The size of one log or of all.
fn log_size(field: &Field<'_, '_>, most: u64, faults: &mut Faults<'_>) -> Option<u64> {
    let bytes = match field.value.get_ref() {
        toml::de::DeValue::Integer(_) => field.integer(faults, 0..u64::MAX),
        _ => field.parsed(faults, "a size, such as \"32MiB\"", value::size),
    }?;
    if (LOG_BYTES_MIN..=most).contains(&bytes) {
        return Some(bytes);
    }
    field.fault(
        faults,
        format!("is {bytes} bytes; write a size from \"{}MiB\" to \"{}GiB\"", LOG_BYTES_MIN >> 20, most >> 30),
    );
    None
}

fn limits(table: &DeTable<'_>, limits: &mut Limits, faults: &mut Faults<'_>) {
    LIMITS.refuse_unknown(table, SECTIONS, faults);
    let get = |key| Field::of(&LIMITS, table, key);
    if let Some(clients) = get("clients").and_then(|field| field.integer(faults, 1..CLIENTS_MAX + 1)) {
        limits.clients = clients as usize;
    }
    if let Some(limit) = get("clients_per_address").and_then(|field| field.integer(faults, 0..CLIENTS_MAX + 1)) {
        limits.clients_per_address = if limit == 0 { PerAddress::All } else { PerAddress::Most(limit as usize) };
    }
    if let Some(timeout) = get("handshake_timeout").and_then(|field| bounded(&field, faults, 100, 600_000)) {
        limits.handshake_timeout = timeout;
    }
    if let Some(field) = get("session_timeout")
        && let Some(timeout) = bounded(&field, faults, 1_000, 86_400_000)
    {
        if timeout.subsec_nanos() == 0 {
            limits.session_timeout = timeout;
        } else {
            field.fault(faults, format!("is {timeout:?}; write whole seconds, because players are sent whole seconds"));
        }
    }
}

fn report(table: &DeTable<'_>, report: &mut ReportConfig, faults: &mut Faults<'_>) {
    REPORT.refuse_unknown(table, SECTIONS, faults);
    let get = |key| Field::of(&REPORT, table, key);
    if let Some(field) = get("every")
        && let Some(every) = bounded(&field, faults, 0, 86_400_000)
    {
        if every.is_zero() || every >= Duration::from_millis(REPORT_EVERY_MIN_MS) {
            report.every = Some(every);
        } else {
            field.fault(
                faults,
                format!("is {every:?}; write at least \"{REPORT_EVERY_MIN_MS}ms\", or \"0s\" for no reports"),
            );
        }
    }
    let formats = [
        ("auto", ReportFormat::Auto),
        ("line", ReportFormat::Line),
        ("table", ReportFormat::Table),
        ("logfmt", ReportFormat::Logfmt),
        ("json", ReportFormat::Json),
    ];
    if let Some(format) = get("format").and_then(|field| field.word(faults, &formats)) {
        report.format = format;
    }
    if let Some(events) = get("events").and_then(|field| field.boolean(faults)) {
        report.events = events;
    }
    if let Some(syslog) = get("syslog").and_then(|field| field.boolean(faults)) {
        report.syslog = syslog;
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod user_tests;
