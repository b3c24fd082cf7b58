//! `[[stream]]`: a named source, and how it is pulled.

use std::net::SocketAddr;
use std::time::Duration;

use toml::de::DeTable;

use super::read::{Faults, Field, Section};
use super::url::redact;
use super::{SECTIONS, SourceKind, Start, bounded, url, value};
use crate::limits::{INTERFACE_NAME_BYTES_MAX, MULTICAST_PORTS, SOURCES_MAX, STREAMS_MAX};
use crate::source::address::CameraAddress;
use crate::source::camera::PullTransport;
use crate::source::tunnel::{TlsOptions, parse_fingerprint};

pub(super) const STREAM: Section = Section {
    name: "stream",
    keys: &[
        "name",
        "source",
        "transport",
        "tls_ca",
        "tls_fingerprint",
        "source_timeout",
        "on_demand",
        "on_demand_start",
        "on_demand_stop",
        "takeover",
        "start",
        "multicast",
        "multicast_ttl",
        "multicast_interface",
    ],
};

/// `[[stream]]`: a named source.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamConfig {
    /// The name, the last part of its URL.
    pub name: String,
    /// Where it comes from.
    pub source: SourceKind,
    /// How a camera's media come.
    pub transport: PullTransport,
    /// How the certificates of `rtsps://` cameras are judged.
    pub tls: TlsOptions,
    /// Silence after which a source that is connected counts as dead.
    pub source_timeout: Duration,
    /// For a source that is pulled only while somebody asks for it.
    pub on_demand: Option<OnDemandConfig>,
    /// Where a new client starts.
    pub start: Start,
    /// The multicast group that it is offered to as well.
    pub multicast: Option<Multicast>,
}

/// A stream's multicast group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multicast {
    /// The group, with the even port of the first track's RTP; each track takes two.
    pub group: SocketAddr,
    /// Routers that a packet may pass, at least 1: the local network.
    pub ttl: u8,
    /// The interface that it is sent by; `None` for what the routes say.
    pub interface: Option<String>,
}

impl Multicast {
    /// Whether streams in both groups would send to the same ports ([`MULTICAST_PORTS`] each).
    fn overlaps(&self, other: &Multicast) -> bool {
        self.group.ip() == other.group.ip() && self.group.port().abs_diff(other.group.port()) < MULTICAST_PORTS
    }
}

/// How a source is pulled on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDemandConfig {
    /// How long a client waits for it before it is answered 503.
    pub start: Duration,
    /// How long it is kept after the last client has left.
    pub stop: Duration,
}

impl Default for OnDemandConfig {
    fn default() -> Self {
        OnDemandConfig { start: Duration::from_secs(10), stop: Duration::from_secs(10) }
    }
}

impl StreamConfig {
    /// A stream with the defaults.
    pub fn new(name: impl Into<String>, source: SourceKind) -> StreamConfig {
        StreamConfig {
            name: name.into(),
            source,
            transport: PullTransport::Tcp,
            tls: TlsOptions::default(),
            source_timeout: Duration::from_secs(10),
            on_demand: None,
            start: Start::Cached,
            multicast: None,
        }
    }
}

pub(super) fn streams(field: &Field<'_, '_>, streams: &mut Vec<StreamConfig>, faults: &mut Faults<'_>) {
    let tables = field.tables(faults);
    if tables.len() > STREAMS_MAX {
        field.fault(faults, format!("there are {} streams; keep to {STREAMS_MAX}", tables.len()));
    }
    for (span, table) in tables {
        STREAM.refuse_unknown(table, SECTIONS, faults);
        let get = |key| Field::of(&STREAM, table, key);
        if get("name").is_none() {
            faults.at(span.clone(), "stream.name is missing; name the stream, it is the last part of its URL");
        }
        let named = "a name in quotes";
        let name = get("name").and_then(|field| {
            let name = field.parsed(faults, named, |text| value::stream_name(text).map(str::to_owned))?;
            if streams.iter().any(|stream| stream.name == name) {
                field.fault(faults, format!("{name:?} is the name of another stream; choose a different one"));
            }
            Some(name)
        });
        if get("source").is_none() {
            faults.at(span, "stream.source is missing; write \"rtsp://HOST/PATH\", or \"test\" for the test pattern");
        }
        let source = get("source").and_then(|field| source(&field, faults));
        let transports = [("tcp", PullTransport::Tcp), ("udp", PullTransport::Udp), ("auto", PullTransport::Auto)];
        let transport = get("transport").and_then(|field| field.word(faults, &transports)).unwrap_or_default();
        let tls = tls(&get, &source, faults);
        if let (true, Some(field)) = (any_secure(&source) && transport != PullTransport::Tcp, get("transport")) {
            field.fault(
                faults,
                "is for rtsp:// sources; an rtsps:// camera's media come by the TLS connection: remove the key",
            );
        }
        let source_timeout = get("source_timeout").and_then(|field| bounded(&field, faults, 500, 600_000));
        let on_demand = on_demand(&get, faults);
        let mut source = source;
        if let Some(field) = get("takeover") {
            let wanted = field.boolean(faults).unwrap_or(false);
            match &mut source {
                Some(SourceKind::Publisher { takeover }) => *takeover = wanted,
                _ => field.fault(faults, "is for streams with source = \"publish\"; remove the key"),
            }
        }
        if on_demand.is_some()
            && let (Some(SourceKind::Publisher { .. }), Some(field)) = (&source, get("on_demand"))
        {
            field.fault(faults, "is for sources that are pulled; a publisher comes by itself: remove the key");
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
        let starts = [("cached", Start::Cached), ("live", Start::Live)];
        let start = get("start").and_then(|field| field.word(faults, &starts)).unwrap_or(Start::Cached);
        // A stream with a fault stands for its name, so that the next one of that name is found.
        let (name, source) = (name.unwrap_or_default(), source.unwrap_or(SourceKind::Test));
        let mut stream =
            StreamConfig { transport, tls, on_demand, start, multicast, ..StreamConfig::new(name, source) };
        stream.source_timeout = source_timeout.unwrap_or(stream.source_timeout);
        streams.push(stream);
    }
}

fn multicast(table: &DeTable<'_>, faults: &mut Faults<'_>) -> Option<Multicast> {
    let get = |key| Field::of(&STREAM, table, key);
    let ttl = get("multicast_ttl").and_then(|field| field.integer(faults, 1..256));
    let interface = get("multicast_interface").and_then(|field| {
        let name = field.string(faults, "the name of an interface in quotes, such as \"eth0\"")?;
        if name.is_empty() || name.len() > INTERFACE_NAME_BYTES_MAX {
            field.fault(faults, format!("is no interface's name; write 1 to {INTERFACE_NAME_BYTES_MAX} characters"));
        }
        Some(name.to_owned())
    });
    let Some(field) = get("multicast") else {
        for key in ["multicast_ttl", "multicast_interface"] {
            if let Some(field) = get(key) {
                field.fault(faults, "says nothing without stream.multicast; add the group, or remove the key");
            }
        }
        return None;
    };
    let wanted = "a group and an even port in quotes, such as \"239.1.2.3:5000\"";
    let group = field.parsed(faults, wanted, |text| {
        text.parse::<SocketAddr>().map_err(|_| format!("{:?} is no address with a port; write {wanted}", redact(text)))
    })?;
    if !group.ip().is_multicast() {
        field.fault(
            faults,
            format!("{} is no multicast address; write one from 239.0.0.0 to 239.255.255.255", group.ip()),
        );
    }
    if group.port() == 0 || group.port() % 2 != 0 {
        field.fault(faults, format!("RTP needs an even port, and {} is none; write {wanted}", group.port()));
    }
    Some(Multicast { group, ttl: ttl.unwrap_or(1) as u8, interface })
}

/// Whether a source speaks TLS.
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
            field.fault(faults, "trusts one certificate, whoever signed it; write this or tls_ca, not both");
        }
    }
    tls
}

/// `on_demand`, `on_demand_start` and `on_demand_stop`.
fn on_demand<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    faults: &mut Faults<'_>,
) -> Option<OnDemandConfig> {
    let wanted = get("on_demand").and_then(|field| field.boolean(faults)).unwrap_or(false);
    let mut config = OnDemandConfig::default();
    for (key, value, least) in [("on_demand_start", &mut config.start, 100), ("on_demand_stop", &mut config.stop, 0)] {
        let Some(field) = get(key) else { continue };
        if let Some(given) = bounded(&field, faults, least, 3_600_000) {
            *value = given;
        }
        if !wanted {
            field.fault(faults, "is for streams with on_demand = true; write that as well, or remove the key");
        }
    }
    wanted.then_some(config)
}

/// `source`: one, or a list of cameras in the order in which they are tried.
fn source(field: &Field<'_, '_>, faults: &mut Faults<'_>) -> Option<SourceKind> {
    let toml::de::DeValue::Array(items) = field.value.get_ref() else {
        let text = field.string(faults, "a URL in quotes, \"rtsp://HOST/PATH\", or \"publish\" or \"test\"")?;
        return match text {
            "test" => Some(SourceKind::Test),
            "publish" => Some(SourceKind::Publisher { takeover: false }),
            _ => camera(field, text, faults).map(|camera| SourceKind::Cameras(vec![camera])),
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
                item.fault(faults, "a list of sources holds URLs of cameras alone; write one source, or URLs");
                sound = false;
            }
            Some(text) => match camera(&item, text, faults) {
                Some(camera) => cameras.push(camera),
                None => sound = false,
            },
            None => sound = false,
        }
    }
    sound.then_some(SourceKind::Cameras(cameras))
}

fn camera(field: &Field<'_, '_>, text: &str, faults: &mut Faults<'_>) -> Option<CameraAddress> {
    if redact(text) != text {
        faults.secret(field);
    }
    match url::camera(text) {
        Ok(camera) => Some(camera),
        Err(message) => {
            field.fault(faults, message);
            None
        }
    }
}
