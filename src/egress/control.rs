//! Control messages of a datagram (cmsg(3)): the local source address, and the segment size for GSO.
//!
//! The layout is the kernel's: a header with a length and two numbers, then the data, and the next header at the next multiple of a
//! word. They are built in place, because every message of every client needs them.

use std::net::{IpAddr, SocketAddr};

/// Destination and source of an operation's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The receiver.
    pub to: SocketAddr,
    /// The local address to send from; `None` for the one that the socket is bound to, or that routing chooses.
    pub from: Option<IpAddr>,
}

impl From<SocketAddr> for Route {
    fn from(to: SocketAddr) -> Self {
        Route { to, from: None }
    }
}

const WORD: usize = size_of::<usize>();

/// `struct cmsghdr`: its length as a word, its level and its type.
const HEADER_BYTES: usize = WORD + 8;

/// Bytes of `struct in_pktinfo` (ip(7)) and of `struct in6_pktinfo` (ipv6(7)).
const PKTINFO_V4_BYTES: usize = 12;
const PKTINFO_V6_BYTES: usize = 20;

/// Size of a control message with this much data.
const fn space(data: usize) -> usize {
    (HEADER_BYTES + data).next_multiple_of(WORD)
}

const BYTES_MAX: usize = space(PKTINFO_V6_BYTES) + space(size_of::<u16>());

/// The control messages of one datagram, or of one run that the kernel splits.
#[derive(Clone)]
#[repr(C, align(8))]
pub(super) struct Control {
    bytes: [u8; BYTES_MAX],
    /// Size of the part that is the same for all messages of an operation.
    route: u8,
    len: u8,
}

impl Control {
    /// None yet.
    pub(super) const fn new() -> Control {
        Control { bytes: [0; BYTES_MAX], route: 0, len: 0 }
    }

    /// Sets the route for an operation's messages. An IPv6 socket that carries IPv4 also uses `IP_PKTINFO`.
    pub(super) fn set_route(&mut self, route: &Route) {
        self.len = 0;
        match route.from.map(|from| from.to_canonical()) {
            None => {}
            Some(IpAddr::V4(from)) => {
                let mut data = [0; PKTINFO_V4_BYTES];
                // Routing chooses the interface; then the source address.
                data[4..8].copy_from_slice(&from.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
            }
            Some(IpAddr::V6(from)) => {
                let mut data = [0; PKTINFO_V6_BYTES];
                data[..16].copy_from_slice(&from.octets());
                // A link-local address is meaningful only with its interface.
                let interface = match route.to {
                    SocketAddr::V6(to) if from.is_unicast_link_local() => to.scope_id(),
                    _ => 0,
                };
                data[16..].copy_from_slice(&interface.to_ne_bytes());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
            }
        }
        self.route = self.len;
    }

    /// Sets the segment size into which the kernel splits the next message (`UDP_SEGMENT`, udp(7)), or none.
    pub(super) fn set_segment(&mut self, segment: Option<u16>) {
        self.len = self.route;
        if let Some(segment) = segment {
            self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
    }

    /// The control messages; empty if there are none.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let start = usize::from(self.len);
        let mut put = |at: usize, bytes: &[u8]| self.bytes[start + at..][..bytes.len()].copy_from_slice(bytes);
        put(0, &(HEADER_BYTES + data.len()).to_ne_bytes());
        put(WORD, &level.to_ne_bytes());
        put(WORD + 4, &kind.to_ne_bytes());
        put(HEADER_BYTES, data);
        self.len = (start + space(data.len())) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(HEADER_BYTES, size_of::<libc::cmsghdr>());
        assert_eq!(
            (PKTINFO_V4_BYTES, PKTINFO_V6_BYTES),
            (size_of::<libc::in_pktinfo>(), size_of::<libc::in6_pktinfo>())
        );
        let to = "192.0.2.1:5000".parse().unwrap();
        let mut control = Control::new();
        control.set_route(&Route { to, from: Some("::ffff:198.51.100.1".parse().unwrap()) });
        control.set_segment(Some(1400));
        let header = |at: usize| {
            let word = |at: usize| i32::from_ne_bytes(control.bytes[at..at + 4].try_into().unwrap());
            let len = usize::from_ne_bytes(control.bytes[at..at + WORD].try_into().unwrap());
            (len, word(at + WORD), word(at + WORD + 4))
        };
        assert_eq!(header(0), (HEADER_BYTES + 12, libc::IPPROTO_IP, libc::IP_PKTINFO));
        assert_eq!(header(space(12)), (HEADER_BYTES + 2, libc::SOL_UDP, libc::UDP_SEGMENT));
        assert_eq!(control.as_bytes().len(), space(12) + space(2));
        control.set_segment(None);
        assert_eq!(control.as_bytes().len(), space(12));
        control.set_route(&to.into());
        control.set_segment(None);
        assert!(control.as_bytes().is_empty());
    }
}
