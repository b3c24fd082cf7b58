//! The PROXY protocol, version 2: the header with which a load balancer says who its client is (HAProxy's `doc/proxy-protocol.txt`,
//! section 2.2).
//!
//! After the first [`HEAD_BYTES`] the reader knows how many bytes follow, and reads exactly those. What comes next belongs to the
//! client: TLS or RTSP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::limits::PROXY_HEADER_BYTES_MAX;

/// Size of the fixed part in bytes.
pub const HEAD_BYTES: usize = 16;

/// The start of every header. RTSP, HTTP and TLS never start like this.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The start of version 1, which is text.
const VERSION_1: &[u8] = b"PROXY ";

/// Bytes of the addresses for TCP over IPv4, and over IPv6.
const V4_BYTES: usize = 12;
const V6_BYTES: usize = 36;

/// Why a header is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Something else came.
    #[error(
        "begins without a PROXY protocol header; have the balancer send it (HAProxy: send-proxy-v2), or take its address out of proxy_protocol_from"
    )]
    Missing,
    /// Version 1, which is text.
    #[error("sends version 1 of the PROXY protocol; configure it to send version 2 (HAProxy: send-proxy-v2)")]
    Version1,
    /// An unknown version.
    #[error("sends version {0} of the PROXY protocol; configure it to send version 2")]
    Version(u8),
    /// Neither LOCAL nor PROXY.
    #[error("sends a PROXY protocol header with the unknown command {0}")]
    Command(u8),
    /// Not TCP over IPv4 or IPv6.
    #[error(
        "passes on a connection of family and protocol {0:#04x}; TCP over IPv4 (0x11) and IPv6 (0x21) can be served"
    )]
    Family(u8),
    /// Less than the addresses.
    #[error("sends a PROXY protocol header of {0} bytes, too short for its addresses")]
    Short(usize),
    /// More than is read.
    #[error(
        "sends a PROXY protocol header of {0} bytes, more than {PROXY_HEADER_BYTES_MAX}; have it send fewer fields (TLV)"
    )]
    Long(usize),
}

/// The fixed part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    from: From,
    rest: usize,
}

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// The balancer's own connection (LOCAL), such as a health check, or that of a client whose address it does not know.
    Sender,
    V4,
    V6,
}

impl Head {
    /// Parses the fixed part.
    ///
    /// # Errors
    /// If it is invalid or not supported.
    pub fn parse(bytes: &[u8; HEAD_BYTES]) -> Result<Head, Fault> {
        let [signature @ .., version_command, family, high, low] = bytes;
        if *signature != SIGNATURE {
            return Err(if bytes.starts_with(VERSION_1) { Fault::Version1 } else { Fault::Missing });
        }
        if version_command >> 4 != 2 {
            return Err(Fault::Version(version_command >> 4));
        }
        let rest = usize::from(u16::from_be_bytes([*high, *low]));
        let from = match (version_command & 0xF, family) {
            // Further fields about its own connections are ignored.
            (0, _) | (1, 0x00) => From::Sender,
            (1, 0x11) => From::V4,
            (1, 0x21) => From::V6,
            (1, family) => return Err(Fault::Family(*family)),
            (command, _) => return Err(Fault::Command(command)),
        };
        if rest > PROXY_HEADER_BYTES_MAX - HEAD_BYTES {
            return Err(Fault::Long(HEAD_BYTES + rest));
        }
        let least = match from {
            From::Sender => 0,
            From::V4 => V4_BYTES,
            From::V6 => V6_BYTES,
        };
        if rest < least {
            return Err(Fault::Short(HEAD_BYTES + rest));
        }
        Ok(Head { from, rest })
    }

    /// Bytes of the header that follow; at most [`PROXY_HEADER_BYTES_MAX`] - [`HEAD_BYTES`].
    pub fn rest_bytes(&self) -> usize {
        self.rest
    }

    /// The client's address, from what follows the fixed part; `None` for the balancer's own connections.
    pub fn client(&self, rest: &[u8]) -> Option<SocketAddr> {
        // Source address, destination address, source port, destination port; then fields that are ignored.
        let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        match self.from {
            From::Sender => None,
            From::V4 => {
                let octets: [u8; 4] = rest.get(..4)?.try_into().ok()?;
                Some((Ipv4Addr::from(octets), port(8)?).into())
            }
            From::V6 => {
                let octets: [u8; 16] = rest.get(..16)?.try_into().ok()?;
                Some((Ipv6Addr::from(octets), port(32)?).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with that version and command, family, and rest.
    fn header(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[version_command, family], &len, rest].concat()
    }

    fn read(bytes: &[u8]) -> Result<Option<SocketAddr>, Fault> {
        let (head, rest) = bytes.split_first_chunk().expect("a whole head");
        let head = Head::parse(head)?;
        Ok(head.client(&rest[..head.rest_bytes()]))
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xC0, 0x01, 0x21, 0x6A];

    fn v6() -> [u8; 36] {
        let mut rest = [0; 36];
        rest[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        rest[15] = 9;
        rest[32..].copy_from_slice(&[0, 7, 0x21, 0x6A]);
        rest
    }

    #[test]
    fn the_client_of_either_family_is_read() {
        assert_eq!(read(&header(0x21, 0x11, &V4)), Ok(Some("192.0.2.7:49153".parse().unwrap())));
        assert_eq!(read(&header(0x21, 0x21, &v6())), Ok(Some("[2001:db8::9]:7".parse().unwrap())));
        // Fields after the addresses: a CRC, padding, future fields.
        let with_fields = [&V4[..], &[0x03, 0, 4, 1, 2, 3, 4, 0x04, 0, 1, 0]].concat();
        assert_eq!(read(&header(0x21, 0x11, &with_fields)), Ok(Some("192.0.2.7:49153".parse().unwrap())));
    }

    #[test]
    fn a_connection_of_the_sender_itself_keeps_its_address() {
        for (version_command, family, rest) in
            [(0x20, 0x00, &[][..]), (0x20, 0x11, &V4), (0x20, 0x99, &[1]), (0x21, 0x00, &[]), (0x21, 0x00, &[1, 2, 3])]
        {
            assert_eq!(read(&header(version_command, family, rest)), Ok(None), "{version_command:#x} {family:#x}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_with_a_cure() {
        let mut broken = header(0x21, 0x11, &V4);
        broken[11] = b'\r';
        for (bytes, fault, part) in [
            (b"OPTIONS * RTSP/1.0\r\n".to_vec(), Fault::Missing, "send-proxy-v2"),
            (broken, Fault::Missing, "proxy_protocol_from"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), Fault::Version1, "version 2"),
            (header(0x11, 0x11, &V4), Fault::Version(1), "version 2"),
            (header(0x22, 0x11, &V4), Fault::Command(2), "command 2"),
            (header(0x21, 0x12, &V4), Fault::Family(0x12), "0x12"),
            (header(0x21, 0x31, &[0; 216]), Fault::Family(0x31), "0x31"),
            (header(0x21, 0x11, &V4[..11]), Fault::Short(27), "27"),
            (header(0x21, 0x21, &v6()[..35]), Fault::Short(51), "51"),
            (header(0x21, 0x11, &[0; PROXY_HEADER_BYTES_MAX]), Fault::Long(PROXY_HEADER_BYTES_MAX + 16), "TLV"),
        ] {
            assert_eq!(read(&bytes), Err(fault));
            assert!(fault.to_string().contains(part), "{fault}");
        }
    }
}
