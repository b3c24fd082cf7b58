//! The URLs of streams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tracing::info;

use crate::config::{Config, SourceKind};
use crate::limits::URLS_LOGGED_MAX;

/// Makes URLs of streams.
#[derive(Clone, Debug)]
pub(super) struct Urls {
    /// `rtsp://HOST:PORT`, then `rtsps://HOST:PORT` if that is served.
    servers: Vec<String>,
    /// The stream that is permanently served at the server's root.
    single: Option<String>,
}

impl Urls {
    /// For streams served on these addresses, without and with TLS. The first address of each kind is used. `single` is for a relay
    /// without a file: its only configured stream has the shortest URL.
    pub(super) fn new(plain: &[SocketAddr], encrypted: &[SocketAddr], single: Option<String>) -> Urls {
        let server = |scheme: &str, addresses: &[SocketAddr]| {
            let address = addresses.first()?;
            Some(format!("{scheme}://{}", SocketAddr::new(reachable(address.ip()), address.port())))
        };
        let servers = [server("rtsp", plain), server("rtsps", encrypted)];
        Urls { servers: servers.into_iter().flatten().collect(), single }
    }

    /// The stream's URLs, the one without TLS first.
    pub(super) fn of(&self, name: &str) -> Vec<String> {
        let path = if self.single.as_deref() == Some(name) { "" } else { name };
        self.servers.iter().map(|server| format!("{server}/{path}")).collect()
    }

    /// Logs the streams' URLs.
    pub(super) fn tell(&self, config: &Config) {
        for stream in config.streams.iter().take(URLS_LOGGED_MAX) {
            for url in self.of(&stream.name) {
                info!(stream = %stream.name, %url, "serving");
            }
        }
        for pattern in config.patterns.iter().take(URLS_LOGGED_MAX) {
            for url in self.of(&pattern.pattern.to_string()) {
                info!(pattern = %pattern.pattern, %url, "serving streams by name");
            }
        }
        if let Some(more @ 1..) = config.streams.len().checked_sub(URLS_LOGGED_MAX) {
            info!("serving {more} more streams; with `http` in the configuration `rtsprelay streams` lists them");
        }
    }

    /// The command to play the first stream, shown for the test pattern, which people start in order to look at it.
    pub(super) fn play_commands(&self, config: &Config) -> Vec<String> {
        let Some(stream) = config.streams.first() else { return Vec::new() };
        let Some(url) = self.of(&stream.name).into_iter().next() else { return Vec::new() };
        match stream.source {
            SourceKind::Test => {
                vec![format!("ffplay -rtsp_transport tcp {url}"), format!("gst-play-1.0 {url}")]
            }
            SourceKind::Cameras(_) | SourceKind::Publisher { .. } => vec![format!("ffplay -rtsp_transport tcp {url}")],
        }
    }
}

/// An address at which a socket bound to `ip` can be reached: for a wildcard, this machine's address towards others, or loopback if it
/// has none.
fn reachable(ip: IpAddr) -> IpAddr {
    if !ip.is_unspecified() {
        return ip;
    }
    // Addresses for documentation (RFC 5737, RFC 3849): the route to them is the default route.
    let v4 = || outward(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = || outward(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    // If it is the IPv6 wildcard, both accept connections.
    let found = if ip.is_ipv6() { v4().or_else(v6) } else { v4() };
    found.unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// The source address for datagrams to `to`. Queries the kernel's routing table; nothing is sent.
fn outward(from: IpAddr, to: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((from, 0)).ok()?;
    // Port 9 is discard; any would do.
    socket.connect((to, 9)).ok()?;
    socket.local_addr().ok().map(|local| local.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_a_url_for_each_scheme() {
        let plain = ["192.0.2.7:8554", "127.0.0.1:8554"].map(|text| text.parse().unwrap());
        let encrypted = ["[2001:db8::7]:8322".parse().unwrap()];
        let urls = Urls::new(&plain, &encrypted, None);
        assert_eq!(urls.of("front"), ["rtsp://192.0.2.7:8554/front", "rtsps://[2001:db8::7]:8322/front"]);
        assert_eq!(Urls::new(&plain, &[], Some("live".into())).of("live"), ["rtsp://192.0.2.7:8554/"]);
    }

    #[test]
    fn a_wildcard_is_no_address_to_connect_to() {
        for wildcard in ["0.0.0.0:1", "[::]:1"] {
            let [url] = &Urls::new(&[wildcard.parse().unwrap()], &[], None).of("a")[..] else { panic!("one URL") };
            assert!(!url.contains("//0.0.0.0:") && !url.contains("[::]"), "{url}");
        }
    }

    #[test]
    fn the_commands_can_be_typed_here() {
        let commands =
            Urls::new(&["127.0.0.1:8554".parse().unwrap()], &[], Some("test".into())).play_commands(&Config::demo());
        assert_eq!(commands[0], "ffplay -rtsp_transport tcp rtsp://127.0.0.1:8554/");
        let commands = Urls::new(&["[::1]:9".parse().unwrap()], &[], None).play_commands(&Config::demo());
        assert!(commands[1].ends_with(" rtsp://[::1]:9/test"), "{commands:?}");
    }
}
