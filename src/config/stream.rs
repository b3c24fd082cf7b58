//! `[[stream]]`: a named source, and how it is pulled.

use std::net::SocketAddr;
use std::time::Duration;

use toml::de::DeTable;

use super::read::{Faults, Field, Section};
use super::{SECTIONS, SourceKind, Start, bounded, site, url, value};
use crate::limits::{
    INTERFACE_NAME_BYTES_MAX, MULTICAST_PORTS, PATTERNS_MAX, SOURCES_MAX, STREAMS_MAX, STREAMS_UNDER_PATTERN,
};
use crate::media::name::Pattern;
use crate::redact::redact;
use crate::source::backoff::Waits;
use crate::source::camera::address::{CameraAddress, NAME};
use crate::source::camera::tls::{TlsOptions, parse_fingerprint};
use crate::source::camera::{CameraOptions, DatagramsFrom, PullTransport};

pub(super) const STREAM: Section = Section {
    name: "stream",
    keys: &[
        "name",
        "source",
        "transport",
        "tls_ca",
        "tls_fingerprint",
        "basic",
        "udp_from",
        "source_timeout",
        "retry",
        "retry_max",
        "password_retry_max",
        "on_demand",
        "on_demand_start",
        "on_demand_stop",
        "takeover",
        "linger",
        "streams_max",
        "start",
        "tile",
        "multicast",
        "multicast_ttl",
        "multicast_interface",
    ],
};

/// `[[stream]]`: a named source.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamConfig {
    /// The name, which is the path of its URL.
    pub name: String,
    /// Whether it is created by name, under a pattern, instead of configured.
    pub made: bool,
    /// Whether it was added while the relay runs, and is not written down either.
    pub added: bool,
    /// Where it comes from.
    pub source: SourceKind,
    /// How to talk to its cameras.
    pub camera: CameraOptions,
    /// Delays between attempts to reach one.
    pub waits: Waits,
    /// Silence after which a connected source counts as dead.
    pub source_timeout: Duration,
    /// For a source that is pulled on demand.
    pub on_demand: Option<OnDemandConfig>,
    /// How long a client's request waits for a pulled source that is not up yet, before it is answered 503.
    pub on_demand_start: Duration,
    /// Where a new client starts.
    pub start: Start,
    /// The stream shown in its tile on the home page.
    pub tile: Option<String>,
    /// The multicast group to which it is also offered.
    pub multicast: Option<Multicast>,
}

/// A stream's multicast group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multicast {
    /// The group, with the even port for the first track's RTP; each track takes two.
    pub group: SocketAddr,
    /// Maximum number of routers that a packet passes, at least 1: the local network.
    pub ttl: u8,
    /// The network interface to send on; `None` for what routing chooses.
    pub interface: Option<String>,
}

impl Multicast {
    /// Whether two groups would use the same ports ([`MULTICAST_PORTS`] each).
    fn overlaps(&self, other: &Multicast) -> bool {
        self.group.ip() == other.group.ip() && self.group.port().abs_diff(other.group.port()) < MULTICAST_PORTS
    }
}

/// How a source is pulled on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDemandConfig {
    /// How long it is kept after the last client left.
    pub stop: Duration,
}

impl Default for OnDemandConfig {
    fn default() -> Self {
        OnDemandConfig { stop: Duration::from_secs(10) }
    }
}

impl StreamConfig {
    /// A stream with the defaults.
    pub fn new(name: impl Into<String>, source: SourceKind) -> StreamConfig {
        StreamConfig {
            name: name.into(),
            made: false,
            added: false,
            source,
            camera: CameraOptions::default(),
            waits: Waits::default(),
            source_timeout: Duration::from_secs(10),
            on_demand: None,
            on_demand_start: Duration::from_secs(10),
            start: Start::Cached,
            tile: None,
            multicast: None,
        }
    }
}

/// A `[[stream]]` whose name is a pattern: the template for its streams.
#[derive(Clone, Debug, PartialEq)]
pub struct PatternConfig {
    /// The names.
    pub pattern: Pattern,
    /// The template; its name is the pattern, and its cameras' paths have a placeholder for what `*` matches.
    like: StreamConfig,
    /// Maximum number of its streams at a time.
    pub streams_max: usize,
    /// How long a stream remains after its publisher left, or after its origin no longer has it.
    pub linger: Duration,
}

impl PatternConfig {
    /// A pattern with the defaults.
    pub fn new(pattern: Pattern, source: SourceKind) -> PatternConfig {
        let is_pulled = !matches!(source, SourceKind::Publisher { .. });
        let mut like = StreamConfig::new(pattern.to_string(), source);
        like.on_demand = is_pulled.then(OnDemandConfig::default);
        PatternConfig { pattern, like, streams_max: STREAMS_UNDER_PATTERN, linger: Duration::from_secs(60) }
    }

    /// Every name that no other stream has, for anyone who may publish.
    pub fn of_all() -> PatternConfig {
        PatternConfig::new(Pattern::all(), SourceKind::Publisher { takeover: false })
    }

    /// Whether its streams are published to the relay; otherwise they are pulled.
    pub fn is_published(&self) -> bool {
        matches!(self.like.source, SourceKind::Publisher { .. })
    }

    /// How long a request waits for a stream that is not up.
    pub fn wait(&self) -> Duration {
        self.like.on_demand_start
    }

    /// The stream with that name, if it matches the pattern.
    pub fn stream(&self, name: &str) -> Option<StreamConfig> {
        let part = self.pattern.part(name)?;
        let mut stream = StreamConfig { name: name.to_owned(), made: true, ..self.like.clone() };
        if let SourceKind::Cameras(cameras) = &mut stream.source {
            cameras.iter_mut().for_each(|camera| *camera = camera.named(part));
        }
        Some(stream)
    }
}

/// What `[[stream]]` names.
enum Named {
    One(String),
    Many(Pattern),
}

/// `name`, if it is valid and unique.
fn name(
    field: &Field<'_, '_>,
    streams: &[StreamConfig],
    patterns: &[PatternConfig],
    faults: &mut Faults<'_>,
) -> Option<Named> {
    let text = field.string(faults, "a name in quotes")?;
    let read = match Pattern::parse(text) {
        Some(Ok(pattern)) => Ok(Named::Many(pattern)),
        Some(Err(why)) => Err(format!("{:?} {why}", redact(text)).into()),
        None => value::stream_name(text).map(|name| Named::One(name.to_owned())),
    };
    let taken = |named: &Named| match named {
        Named::One(name) => streams.iter().any(|stream| stream.name == *name),
        Named::Many(pattern) => patterns.iter().any(|other| other.pattern == *pattern),
    };
    match read {
        Ok(named) => {
            if taken(&named) {
                field.fault(faults, format!("{text:?} is the name of another stream; choose a different one"));
            }
            Some(named)
        }
        Err(message) => {
            field.fault(faults, message);
            None
        }
    }
}

/// The keys that only patterns have, and those that they cannot have.
fn pattern<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    pattern: Pattern,
    mut like: StreamConfig,
    faults: &mut Faults<'_>,
) -> PatternConfig {
    if let Some(field) = get("multicast") {
        let cure = "write a separate [[stream]] for each stream to be sent to a group";
        field.fault(faults, format!("is one group, but {:?} stands for many streams; {cure}", like.name));
    }
    if let (SourceKind::Cameras(cameras), Some(field)) = (&like.source, get("source"))
        && !cameras.iter().any(CameraAddress::takes_name)
    {
        let cure = "write {name} in its path, such as \"rtsp://HOST/{name}\"; it expands to what * matched";
        field.fault(faults, format!("is the same for every stream of {:?}; {cure}", like.name));
    }
    if !matches!(like.source, SourceKind::Publisher { .. }) {
        if let Some(field) = get("on_demand").filter(|_| like.on_demand.is_none()) {
            field.fault(
                faults,
                "cannot be false for a pattern, because its streams are pulled on demand; remove the key",
            );
        }
        like.on_demand.get_or_insert_default();
    }
    let streams_max = get("streams_max").and_then(|field| field.integer(faults, 1..STREAMS_MAX as u64 + 1));
    let linger = get("linger").and_then(|field| bounded(&field, faults, 0, 86_400_000));
    let usual = PatternConfig::new(pattern, SourceKind::Test);
    PatternConfig {
        like,
        streams_max: streams_max.map_or(usual.streams_max, |most| most as usize),
        linger: linger.unwrap_or(usual.linger),
        ..usual
    }
}

/// Refuses keys that only patterns may have.
fn no_pattern<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    source: &SourceKind,
    faults: &mut Faults<'_>,
) {
    for key in ["streams_max", "linger"] {
        if let Some(field) = get(key) {
            field.fault(faults, "is for patterns, whose names end with *; remove the key");
        }
    }
    if let (SourceKind::Cameras(cameras), Some(field)) = (source, get("source"))
        && cameras.iter().any(CameraAddress::takes_name)
    {
        field.fault(
            faults,
            "contains {name}, which expands to what the * of a pattern's name matched; write a name that ends with *",
        );
    }
}

pub(super) fn streams(
    field: &Field<'_, '_>,
    streams: &mut Vec<StreamConfig>,
    patterns: &mut Vec<PatternConfig>,
    faults: &mut Faults<'_>,
) {
    let tables = field.tables(faults);
    if tables.len() > STREAMS_MAX {
        field.fault(faults, format!("there are {} streams; the maximum is {STREAMS_MAX}", tables.len()));
    }
    for (span, table) in tables {
        stream(span, table, streams, patterns, faults);
    }
    if patterns.len() > PATTERNS_MAX {
        field.fault(faults, format!("there are {} patterns; the maximum is {PATTERNS_MAX}", patterns.len()));
    }
}

/// One `[[stream]]`.
pub(super) fn stream(
    span: std::ops::Range<usize>,
    table: &DeTable<'_>,
    streams: &mut Vec<StreamConfig>,
    patterns: &mut Vec<PatternConfig>,
    faults: &mut Faults<'_>,
) {
    STREAM.refuse_unknown(table, SECTIONS, faults);
    let get = |key| Field::of(&STREAM, table, key);
    if get("name").is_none() {
        faults.at(span.clone(), "stream.name is missing; add the name, which is the path of the stream's URL");
    }
    let named = get("name").and_then(|field| name(&field, streams, patterns, faults));
    if get("source").is_none() {
        faults.at(span, "stream.source is missing; write \"rtsp://HOST/PATH\", or \"test\" for the test pattern");
    }
    let multicast = multicast(table, faults);
    let overlaps = |other: &&StreamConfig| {
        other.multicast.as_ref().zip(multicast.as_ref()).is_some_and(|(other, this)| other.overlaps(this))
    };
    if let (Some(field), Some(other)) = (get("multicast"), streams.iter().find(overlaps)) {
        field.fault(
            faults,
            format!(
                "stream {:?} sends to the same group, and each track takes two ports; choose another group, or a port at \
                 least {MULTICAST_PORTS} away",
                other.name
            ),
        );
    }
    // A stream with errors still occupies its name, so that a duplicate is found.
    let text = match &named {
        Some(Named::One(name)) => name.clone(),
        Some(Named::Many(pattern)) => pattern.to_string(),
        None => String::new(),
    };
    let stream = StreamConfig { multicast, ..self::keys(&get, text, matches!(named, Some(Named::Many(_))), faults) };
    match named {
        Some(Named::Many(pattern)) => patterns.push(self::pattern(&get, pattern, stream, faults)),
        _ => {
            no_pattern(&get, &stream.source, faults);
            streams.push(stream);
        }
    }
}

/// The keys that streams and patterns have in common.
fn keys<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    name: String,
    is_pattern: bool,
    faults: &mut Faults<'_>,
) -> StreamConfig {
    let mut source = get("source").and_then(|field| source(&field, &name, faults));
    let transports = [("tcp", PullTransport::Tcp), ("udp", PullTransport::Udp), ("auto", PullTransport::Auto)];
    let transport = get("transport").and_then(|field| field.word(faults, &transports)).unwrap_or_default();
    let tls = tls(get, &source, faults);
    if let (true, Some(field)) = (any_secure(&source) && transport != PullTransport::Tcp, get("transport")) {
        field.fault(
            faults,
            "is for rtsp:// sources; an rtsps:// camera sends media in the TLS connection: remove the key",
        );
    }
    let camera = CameraOptions {
        transport,
        tls,
        basic: get("basic").and_then(|field| field.boolean(faults)).unwrap_or(false),
        datagrams_from: datagrams_from(get, &source, transport, faults),
        ..CameraOptions::default()
    };
    let waits = waits(get, faults);
    let source_timeout = get("source_timeout").and_then(|field| bounded(&field, faults, 500, 600_000));
    let on_demand = on_demand(get, is_pattern, faults);
    if let Some(field) = get("takeover") {
        let wanted = field.boolean(faults).unwrap_or(false);
        match &mut source {
            Some(SourceKind::Publisher { takeover }) => *takeover = wanted,
            _ => field.fault(faults, "is for streams with source = \"publish\"; remove the key"),
        }
    }
    let on_demand_start = get("on_demand_start").and_then(|field| bounded(&field, faults, 100, 3_600_000));
    let is_published = matches!(source, Some(SourceKind::Publisher { .. }));
    // Under a pattern, requests wait for the publisher.
    let waits_in_vain = on_demand_start.is_some() && !is_pattern;
    for (key, given) in [("on_demand", on_demand.is_some()), ("on_demand_start", waits_in_vain)] {
        if let (true, true, Some(field)) = (is_published, given, get(key)) {
            field.fault(faults, "is for sources that are pulled; a publisher connects by itself: remove the key");
        }
    }
    let starts = [("cached", Start::Cached), ("live", Start::Live)];
    let start = get("start").and_then(|field| field.word(faults, &starts)).unwrap_or(Start::Cached);
    let named = "a name in quotes";
    let tile =
        get("tile").and_then(|field| field.parsed(faults, named, |text| value::stream_name(text).map(str::to_owned)));
    let usual = StreamConfig::new(name, source.unwrap_or(SourceKind::Test));
    StreamConfig {
        camera,
        waits,
        on_demand,
        start,
        tile,
        source_timeout: source_timeout.unwrap_or(usual.source_timeout),
        on_demand_start: on_demand_start.unwrap_or(usual.on_demand_start),
        ..usual
    }
}

fn multicast(table: &DeTable<'_>, faults: &mut Faults<'_>) -> Option<Multicast> {
    let get = |key| Field::of(&STREAM, table, key);
    let ttl = get("multicast_ttl").and_then(|field| field.integer(faults, 1..256));
    let interface = get("multicast_interface").and_then(|field| {
        let name = field.string(faults, "the name of an interface in quotes, such as \"eth0\"")?;
        if name.is_empty() || name.len() > INTERFACE_NAME_BYTES_MAX {
            field.fault(
                faults,
                format!("is not the name of an interface; write 1 to {INTERFACE_NAME_BYTES_MAX} characters"),
            );
        }
        Some(name.to_owned())
    });
    let Some(field) = get("multicast") else {
        for key in ["multicast_ttl", "multicast_interface"] {
            if let Some(field) = get(key) {
                field.fault(faults, "has no effect without stream.multicast; add the group, or remove the key");
            }
        }
        return None;
    };
    let wanted = "a group and an even port in quotes, such as \"239.1.2.3:5000\"";
    let group = field.parsed(faults, wanted, |text| {
        text.parse::<SocketAddr>()
            .map_err(|_| format!("{:?} is not an address with a port; write {wanted}", redact(text)))
    })?;
    if !group.ip().is_multicast() {
        field.fault(
            faults,
            format!("{} is not a multicast address; write one from 239.0.0.0 to 239.255.255.255", group.ip()),
        );
    }
    if group.port() == 0 || group.port() % 2 != 0 {
        field.fault(faults, format!("RTP needs an even port, and {} is odd; write {wanted}", group.port()));
    }
    Some(Multicast { group, ttl: ttl.unwrap_or(1) as u8, interface })
}

/// `retry`, `retry_max` and `password_retry_max`.
fn waits<'d, 'i: 'd>(get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>, faults: &mut Faults<'_>) -> Waits {
    let usual = Waits::default();
    let mut wait = |key, most_ms| get(key).and_then(|field| bounded(&field, faults, 50, most_ms));
    let first = wait("retry", 60_000).unwrap_or(usual.first);
    let max = wait("retry_max", 3_600_000).unwrap_or(usual.max.max(first));
    let refused_max = wait("password_retry_max", 86_400_000).unwrap_or(usual.refused_max);
    if let (true, Some(field)) = (max < first, get("retry_max").or_else(|| get("retry"))) {
        field.fault(faults, "retry is the first delay and retry_max the longest; make retry_max longer than retry");
    }
    Waits { first, max, refused_max }
}

/// `udp_from`.
fn datagrams_from<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    source: &Option<SourceKind>,
    transport: PullTransport,
    faults: &mut Faults<'_>,
) -> DatagramsFrom {
    let Some(field) = get("udp_from") else { return DatagramsFrom::Camera };
    if transport == PullTransport::Tcp || !matches!(source, Some(SourceKind::Cameras(_)) | None) {
        field.fault(faults, "is for cameras that send media over UDP; add transport = \"udp\", or remove the key");
    }
    let wanted = "an address in quotes, or \"any\"";
    let from = field.parsed(faults, wanted, |text| match text.parse() {
        Ok(address) => Ok(DatagramsFrom::Address(address)),
        Err(_) if text == "any" => Ok(DatagramsFrom::Any),
        Err(_) => Err(format!("{:?} is not an address; write {wanted}", redact(text))),
    });
    from.unwrap_or_default()
}

/// Whether a source uses TLS.
fn any_secure(source: &Option<SourceKind>) -> bool {
    matches!(source, Some(SourceKind::Cameras(cameras)) if cameras.iter().any(CameraAddress::is_secure))
}

/// `tls_ca` and `tls_fingerprint`.
fn tls<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    source: &Option<SourceKind>,
    faults: &mut Faults<'_>,
) -> TlsOptions {
    let mut tls = TlsOptions::default();
    let (ca, fingerprint) = (get("tls_ca"), get("tls_fingerprint"));
    for field in [&ca, &fingerprint].into_iter().flatten() {
        if source.is_some() && !any_secure(source) {
            field.fault(faults, "is for rtsps:// sources; remove the key");
        }
    }
    if let Some(field) = &ca {
        let path = field.string(faults, "the path of a PEM file in quotes");
        tls.ca = path.map(std::path::PathBuf::from);
    }
    if let Some(field) = &fingerprint {
        tls.fingerprint = field.parsed(faults, "64 hexadecimal digits in quotes", parse_fingerprint);
        if ca.is_some() {
            field.fault(faults, "accepts one certificate, whoever signed it; write this or tls_ca, not both");
        }
    }
    tls
}

/// `on_demand` and `on_demand_stop`.
fn on_demand<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    is_pattern: bool,
    faults: &mut Faults<'_>,
) -> Option<OnDemandConfig> {
    let given = get("on_demand").and_then(|field| field.boolean(faults));
    // A pattern's streams are always pulled on demand.
    let implied = is_pattern && given.is_none() && get("on_demand_stop").is_some();
    let wanted = given.unwrap_or(implied);
    let mut config = OnDemandConfig::default();
    if let Some(field) = get("on_demand_stop") {
        if let Some(given) = bounded(&field, faults, 0, 3_600_000) {
            config.stop = given;
        }
        if !wanted {
            field.fault(faults, "is for streams with on_demand = true; write that as well, or remove the key");
        }
    }
    wanted.then_some(config)
}

/// `source` of the stream `name`: one, or a list of cameras in the order in which they are tried.
fn source(field: &Field<'_, '_>, name: &str, faults: &mut Faults<'_>) -> Option<SourceKind> {
    let toml::de::DeValue::Array(items) = field.value.get_ref() else {
        let text = field.string(faults, "a URL in quotes, \"rtsp://HOST/PATH\", or \"publish\" or \"test\"")?;
        return match text {
            "test" => Some(SourceKind::Test),
            "publish" => Some(SourceKind::Publisher { takeover: false }),
            _ => camera(field, text, name, faults).map(|camera| SourceKind::Cameras(vec![camera])),
        };
    };
    if items.is_empty() || items.len() > SOURCES_MAX {
        field.fault(faults, format!("has {} entries; write from 1 to {SOURCES_MAX} URLs", items.len()));
        return None;
    }
    let mut cameras: Vec<CameraAddress> = Vec::new();
    let mut sound = true;
    for value in items.iter() {
        let item = Field { path: field.path.clone(), value };
        let text = item.string(faults, "a URL in quotes, \"rtsp://HOST/PATH\"");
        match text {
            Some("test" | "publish") => {
                item.fault(faults, "a list of sources may contain only URLs of cameras; write one source, or URLs");
                sound = false;
            }
            Some(text) => match camera(&item, text, name, faults) {
                Some(camera) => cameras.push(camera),
                None => sound = false,
            },
            None => sound = false,
        }
    }
    sound.then_some(SourceKind::Cameras(cameras))
}

fn camera(field: &Field<'_, '_>, text: &str, name: &str, faults: &mut Faults<'_>) -> Option<CameraAddress> {
    if redact(text) != text {
        faults.secret(field);
    }
    let path = text.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    if text.matches(NAME).count() != path.matches(NAME).count() {
        field.fault(faults, "has {name} outside of its path, which would let clients choose the host that the relay connects to; write it after the host's /");
        return None;
    }
    if name.contains('*') && text.contains("{part:") {
        field.fault(
            faults,
            "has {part:N}, which needs a configured name; write each stream's name, or list the origins in order",
        );
        return None;
    }
    match site::with_part(text, name).and_then(|text| url::camera(&text)) {
        Ok(camera) => Some(camera),
        Err(message) => {
            field.fault(faults, message);
            None
        }
    }
}
