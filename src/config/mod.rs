//! The configuration: TOML, validated once into types that can only hold what is valid.

mod read;
mod stream;
mod tls;
mod url;
mod user;
mod value;

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

pub use read::Fault;
use read::{Faults, Field, Section};
pub use stream::{Multicast, OnDemandConfig, StreamConfig};
pub use tls::TlsConfig;
pub use url::{camera as parse_camera, redact};
pub use user::user_name;
pub use value::{duration as parse_duration, http as parse_http, listen as parse_listen};

use crate::access::User;
pub use crate::egress::ZeroCopy;
use crate::file;
use crate::limits::{
    CLIENTS_MAX, DSCP_MAX, LOG_BYTES_MAX, LOG_BYTES_MIN, NONCE_LIFETIME_S, QUEUE_AGE_MAX_MS, QUEUE_AGE_MIN_MS,
    REPORT_EVERY_MIN_MS, WORKERS_MAX,
};
pub use crate::shard::core::Start;
pub use crate::source::supervisor::SourceKind;

/// Everything that the relay can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Addresses that RTSP is served at; never empty.
    pub listen: Vec<SocketAddr>,
    /// What RTSPS is served with; `None` for no RTSPS.
    pub tls: Option<TlsConfig>,
    /// Address of `/metrics`, `/status` and `/healthz`; `None` for no HTTP.
    pub http: Option<SocketAddr>,
    /// Shards; 0 for one per core.
    pub workers: usize,
    /// What drives the sockets.
    pub io: IoChoice,
    /// Which sends lend their pages to the kernel.
    pub zero_copy: ZeroCopy,
    /// The differentiated services code point (RFC 2474) of what clients are sent, at most [`DSCP_MAX`]; 0 for no mark.
    pub dscp: u8,
    /// What is kept for clients.
    pub queue: Queue,
    /// What clients may take.
    pub limits: Limits,
    /// What is told of it.
    pub report: ReportConfig,
    /// For tests: time that chunks are held back between chunker and shards; usually none.
    pub test_delay: Duration,
    /// For tests: sources fail so long after their start, and clients that ask for it.
    pub test_panic: Option<Duration>,
    /// For tests: nothing is counted of what is sent, and nothing reported.
    pub test_unmeasured: bool,
    /// The streams. Never empty, names unique.
    pub streams: Vec<StreamConfig>,
    /// The users, names unique; without any, reading is open.
    pub users: Vec<Arc<User>>,
    /// Whether users may send their passwords as they are (Basic).
    pub basic: bool,
    /// For tests: how long nonces are good.
    pub test_nonce_lifetime: Duration,
    /// What is not wrong and yet should be known, in the order of the lines.
    pub warnings: Vec<Fault>,
}

/// What drives the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where it works, else epoll with a warning.
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
    /// Bytes of a stream's log at most.
    pub log_bytes: u64,
    /// Time for one operation, after which its client is closed; at least [`Queue::age`].
    pub stall_timeout: Duration,
}

/// `[limits]`: what clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, over all shards.
    pub clients: usize,
    /// The same of one address, or of one network of IPv6 addresses; `None` for no limit.
    pub clients_per_address: Option<usize>,
    /// Time for a connection's first full request.
    pub handshake_timeout: Duration,
    /// Silence after which a session ends; whole seconds, for players are told.
    pub session_timeout: Duration,
}

/// `[report]`: what is told on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportConfig {
    /// Whether logs and reports go to the local syslog as well.
    pub syslog: bool,
    /// Time between two reports; zero for none but the summary at the end.
    pub every: Duration,
    /// How a report looks.
    pub format: ReportFormat,
}

/// How a report looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// A live table on a terminal, else logfmt.
    Auto,
    /// A table.
    Table,
    /// `key=value` lines.
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// Where `run` and `check` look for the configuration if they are not told.
pub const DEFAULT_PATH: &str = "/etc/rtsprelay/rtsprelay.toml";

impl Config {
    /// The defaults, with one stream.
    fn with_stream(stream: StreamConfig) -> Config {
        Config {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 8554))],
            tls: None,
            http: None,
            workers: 0,
            io: IoChoice::Auto,
            zero_copy: ZeroCopy::Auto,
            dscp: 0,
            queue: Queue {
                age: Duration::from_secs(1),
                log_bytes: 32 * 1024 * 1024,
                stall_timeout: Duration::from_secs(10),
            },
            limits: Limits {
                clients: 10_000,
                clients_per_address: None,
                handshake_timeout: Duration::from_secs(10),
                session_timeout: Duration::from_secs(60),
            },
            report: ReportConfig { syslog: false, every: Duration::from_secs(1), format: ReportFormat::Auto },
            test_delay: Duration::ZERO,
            test_panic: None,
            test_unmeasured: false,
            streams: vec![stream],
            users: Vec::new(),
            basic: false,
            test_nonce_lifetime: Duration::from_secs(NONCE_LIFETIME_S),
            warnings: Vec::new(),
        }
    }

    /// One source, no file: the defaults with the stream `live`.
    pub fn for_source(source: SourceKind) -> Config {
        Config::with_stream(StreamConfig::new("live", source))
    }

    /// The built-in test pattern on loopback, as the stream `test`.
    pub fn demo() -> Config {
        let stream = StreamConfig::new("test", SourceKind::Test);
        Config { listen: vec![SocketAddr::from(([127, 0, 0, 1], 8554))], ..Config::with_stream(stream) }
    }

    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault of the file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let fail = |faults| ConfigError { path: path.to_owned(), faults };
        // It may be a pipe, as of a shell's `<(…)`.
        let read = |mut file: File| {
            let exposed = file::is_exposed(&file.metadata()?);
            let mut text = Vec::new();
            file.read_to_end(&mut text).map(|_| (text, exposed))
        };
        let (text, exposed) = File::open(path).and_then(read).map_err(|error| {
            let cure = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "name another with --config, or serve a camera without a file: rtsprelay run --source rtsp://HOST/PATH"
                }
                std::io::ErrorKind::PermissionDenied => "let the user that runs rtsprelay read it",
                _ => "see that it is a readable file",
            };
            fail(vec![Fault { line: None, message: format!("cannot be read ({error}); {cure}") }])
        })?;
        let text = String::from_utf8(text).map_err(|error| {
            let bad = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = bad.iter().filter(|&&byte| byte == b'\n').count() + 1;
            fail(vec![Fault { line: Some(line), message: "is not UTF-8; save the file as UTF-8".into() }])
        })?;
        let (mut config, secret) = from_text(&text).map_err(fail)?;
        if exposed && secret.is_some() {
            let message = format!("holds a password or a user's name, and {}", file::exposed_of_relay(path.display()));
            config.warnings.push(Fault { line: secret, message });
        }
        Ok(config)
    }

    /// Reads and validates a document.
    ///
    /// # Errors
    /// Every fault in it, in the order of their lines.
    pub fn from_toml(text: &str) -> Result<Config, Vec<Fault>> {
        from_text(text).map(|(config, _)| config)
    }

    /// Every address that players connect to.
    fn served_at(&self) -> impl Iterator<Item = &SocketAddr> {
        self.listen.iter().chain(self.tls.iter().flat_map(|tls| &tls.listen))
    }

    /// The shards to start: what was asked for, or one per core.
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
    /// What is wrong with it; never empty.
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
        "workers",
        "io",
        "zero_copy",
        "dscp",
        "basic",
        "queue",
        "limits",
        "report",
        "user",
        "stream",
    ],
};
const QUEUE: Section = Section { name: "queue", keys: &["age", "log_bytes", "stall_timeout"] };
const LIMITS: Section =
    Section { name: "limits", keys: &["clients", "clients_per_address", "handshake_timeout", "session_timeout"] };
const REPORT: Section = Section { name: "report", keys: &["every", "format", "syslog"] };
const SECTIONS: &[Section] = &[TOP, QUEUE, LIMITS, REPORT, user::USER, stream::STREAM];

/// A document, and the line of the first secret in it.
fn from_text(text: &str) -> Result<(Config, Option<usize>), Vec<Fault>> {
    let mut faults = Faults::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            let message = format!("not valid TOML: {}", redact(error.message()));
            match error.span() {
                Some(span) => faults.at(span, message),
                None => faults.whole(message),
            }
        }
        let mut found = faults.into_sorted();
        // What follows one on its line, it has brought about.
        found.dedup_by(|next, first| next.line.is_some() && next.line == first.line);
        return Err(found);
    }
    let mut config = top(document.get_ref(), &mut faults);
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

    if let Some(listen) = get("listen").and_then(|field| addresses(&field, "0.0.0.0:8554", value::listen, faults)) {
        config.listen = listen;
    }
    config.tls = tls::tls(&get, &config.listen, faults);
    config.http =
        get("http").and_then(|field| field.parsed(faults, "an address such as \"127.0.0.1:8580\"", value::http));
    if let (Some(http), Some(field)) = (config.http, get("http"))
        && let Some(listen) = config.served_at().find(|listen| value::clash(**listen, http))
    {
        field.fault(
            faults,
            format!("players connect to {listen}, so {http} cannot be had beside it; write another port"),
        );
    }
    let workers = get("workers").and_then(|field| field.integer(faults, 0..WORKERS_MAX as u64 + 1));
    config.workers = workers.unwrap_or_default() as usize;
    let kinds = [("auto", IoChoice::Auto), ("uring", IoChoice::Uring), ("epoll", IoChoice::Epoll)];
    config.io = get("io").and_then(|field| field.word(faults, &kinds)).unwrap_or(config.io);
    let kinds = [("auto", ZeroCopy::Auto), ("on", ZeroCopy::On), ("off", ZeroCopy::Off)];
    config.zero_copy = get("zero_copy").and_then(|field| field.word(faults, &kinds)).unwrap_or(config.zero_copy);
    if let Some(dscp) = get("dscp").and_then(|field| field.integer(faults, 0..u64::from(DSCP_MAX) + 1)) {
        config.dscp = dscp as u8;
    }
    if let Some(table) = get("queue").and_then(|field| field.table(faults)) {
        queue(table, &mut config.queue, faults);
    }
    if let Some(table) = get("limits").and_then(|field| field.table(faults)) {
        limits(table, &mut config.limits, faults);
    }
    if let Some(table) = get("report").and_then(|field| field.table(faults)) {
        report(table, &mut config.report, faults);
    }
    config.streams.clear();
    match get("stream") {
        Some(field) => stream::streams(&field, &mut config.streams, faults),
        None => {
            faults.whole("there is no stream; add [[stream]] with name = \"front\" and source = \"rtsp://HOST/PATH\"")
        }
    }
    if let Some(field) = get("user") {
        config.users = user::users(&field, &config.streams, faults);
    }
    if let Some(field) = get("basic") {
        config.basic = field.boolean(faults).unwrap_or(false);
        if config.basic && config.users.is_empty() {
            field.fault(
                faults,
                "is how users may prove who they are, and there are none; add [[user]], or remove the key",
            );
        }
    }
    config
}

/// `listen` and `listen_tls`: an address such as `example`, or a list of them.
fn addresses(
    field: &Field<'_, '_>,
    example: &str,
    read: fn(&str) -> Result<SocketAddr, String>,
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
        field.fault(faults, format!("{both} takes IPv4 as well, so {v4} cannot be had beside it; remove {v4}"));
    }
    (!found.is_empty()).then_some(found)
}

/// A duration within bounds of milliseconds.
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
    if let Some(field) = get("log_bytes") {
        let wanted = "a size, such as \"32MiB\"";
        let bytes = match field.value.get_ref() {
            toml::de::DeValue::Integer(_) => field.integer(faults, 0..u64::MAX),
            _ => field.parsed(faults, wanted, value::size),
        };
        match bytes {
            Some(bytes) if !(LOG_BYTES_MIN..=LOG_BYTES_MAX).contains(&bytes) => field.fault(
                faults,
                format!(
                    "is {bytes} bytes; write a size from \"{}MiB\" to \"{}GiB\"",
                    LOG_BYTES_MIN >> 20,
                    LOG_BYTES_MAX >> 30
                ),
            ),
            Some(bytes) => queue.log_bytes = bytes,
            None => {}
        }
    }
    let stall = get("stall_timeout");
    if let Some(timeout) = stall.as_ref().and_then(|field| bounded(field, faults, 100, 600_000)) {
        queue.stall_timeout = timeout;
    }
    if queue.stall_timeout < queue.age {
        // With only one of the two given, the other one's default is in the way.
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

fn limits(table: &DeTable<'_>, limits: &mut Limits, faults: &mut Faults<'_>) {
    LIMITS.refuse_unknown(table, SECTIONS, faults);
    let get = |key| Field::of(&LIMITS, table, key);
    if let Some(clients) = get("clients").and_then(|field| field.integer(faults, 1..CLIENTS_MAX + 1)) {
        limits.clients = clients as usize;
    }
    if let Some(limit) = get("clients_per_address").and_then(|field| field.integer(faults, 0..CLIENTS_MAX + 1)) {
        limits.clients_per_address = (limit > 0).then_some(limit as usize);
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
            field.fault(faults, format!("is {timeout:?}; write whole seconds, for players are told so"));
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
            report.every = every;
        } else {
            field.fault(
                faults,
                format!("is {every:?}; write at least \"{REPORT_EVERY_MIN_MS}ms\", or \"0s\" for no reports"),
            );
        }
    }
    let formats = [
        ("auto", ReportFormat::Auto),
        ("table", ReportFormat::Table),
        ("logfmt", ReportFormat::Logfmt),
        ("json", ReportFormat::Json),
    ];
    if let Some(format) = get("format").and_then(|field| field.word(faults, &formats)) {
        report.format = format;
    }
    if let Some(syslog) = get("syslog").and_then(|field| field.boolean(faults)) {
        report.syslog = syslog;
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod user_tests;
