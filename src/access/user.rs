//! A user: the password's hashes, and the rights.

use std::fmt;
use std::net::IpAddr;

use super::REALM;
use crate::media::name::belongs;
use crate::wire::auth::Algorithm;

/// The hashes of a password; the password itself is not stored. Never shown, because anyone who has them can log in as the user.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// `HA1` with SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: Option<String>,
    /// `HA1` with MD5, 32 of them.
    pub md5: Option<String>,
}

impl Secrets {
    /// Those of a password.
    pub fn of(user: &str, password: &str) -> Secrets {
        let ha1 = |algorithm: Algorithm| Some(algorithm.ha1(user, REALM, password));
        Secrets { sha256: ha1(Algorithm::Sha256), md5: ha1(Algorithm::Md5) }
    }

    /// The hash for an algorithm, if there is one.
    pub fn ha1(&self, algorithm: Algorithm) -> Option<&str> {
        match algorithm {
            Algorithm::Sha256 => self.sha256.as_deref(),
            Algorithm::Md5 => self.md5.as_deref(),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A right that a user may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// Play streams.
    Read,
    /// Publish streams to the relay.
    Publish,
    /// Add and remove streams, and disconnect clients, at run time.
    Administer,
}

impl Right {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Right::Read => "read",
            Right::Publish => "publish",
            Right::Administer => "administer",
        }
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name: no colon, quote, backslash or control character.
    pub name: String,
    /// The hashes of its password.
    pub secrets: Secrets,
    /// The streams that it has rights to: names, or prefixes followed by `*`; `None` for all.
    pub streams: Option<Vec<String>>,
    /// Addresses that it may connect from; empty for any.
    pub from: Vec<AddressRange>,
    /// Whether it may play.
    pub read: bool,
    /// Whether it may publish.
    pub publish: bool,
    /// Whether it may add and remove streams, and disconnect clients.
    pub administer: bool,
}

impl User {
    /// A user that may watch everything, from anywhere.
    #[cfg(feature = "testing")]
    pub fn viewer(name: &str, password: &str) -> User {
        User {
            name: name.to_owned(),
            secrets: Secrets::of(name, password),
            streams: None,
            from: Vec::new(),
            read: true,
            publish: false,
            administer: false,
        }
    }

    /// Whether it has this right for the stream with this name.
    pub fn may(&self, right: Right, stream: &str) -> bool {
        self.has(right)
            && self.streams.as_ref().is_none_or(|streams| streams.iter().any(|entry| belongs(stream, entry)))
    }

    /// Whether it may play every stream, and so read the relay's status.
    pub fn may_read_all(&self) -> bool {
        self.read && self.streams.is_none()
    }

    /// Whether it may connect from this address.
    pub fn may_come_from(&self, peer: IpAddr) -> bool {
        self.from.is_empty() || self.from.iter().any(|range| range.contains(peer))
    }

    fn has(&self, right: Right) -> bool {
        match right {
            Right::Read => self.read,
            Right::Publish => self.publish,
            Right::Administer => self.administer,
        }
    }
}

/// Why a range of addresses is invalid, and how to fix it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// The part before the slash is not an address.
    #[error("{0:?} is not an address or network; {WRITE_A_RANGE}")]
    NoAddress(String),
    /// The part after the slash is not a number of bits up to this maximum.
    #[error("{0:?} needs a prefix length from 0 to {1} after the slash; {WRITE_A_RANGE}")]
    Length(String, u8),
    /// The address has bits outside of the network's prefix.
    #[error(
        "{text:?} has bits set after the first {prefix}; write \"{first}/{prefix}\" for the network, or only the address"
    )]
    BitsBehind {
        /// The text.
        text: String,
        /// The network's first address.
        first: IpAddr,
        /// Its bits.
        prefix: u8,
    },
}

const WRITE_A_RANGE: &str = "write an address, or a network such as \"10.0.0.0/8\" or \"2001:db8::/32\"";

/// An address range: `10.0.0.0/8`, `2001:db8::/32`, or a single address (RFC 4632 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    prefix: u8,
}

impl AddressRange {
    /// Parses a range.
    ///
    /// # Errors
    /// What is wrong with the text, and how to fix it.
    pub fn parse(text: &str) -> Result<AddressRange, BadRange> {
        let of = || text.to_owned();
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| BadRange::NoAddress(of()))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let digits = |prefix: &str| prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|length| *length <= bits && digits(prefix)),
            None => Some(bits),
        };
        let prefix = prefix.ok_or_else(|| BadRange::Length(of(), bits))?;
        let range = AddressRange { first: masked(address, prefix), prefix };
        if range.first != address {
            return Err(BadRange::BitsBehind { text: of(), first: range.first, prefix });
        }
        Ok(range)
    }

    /// Whether it contains the address. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.prefix) == self.first
    }
}

/// The address with all but its first `prefix` bits cleared.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_begins_alike() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"][..], &["11.0.0.0", "a::"][..]),
            ("192.0.2.7", &["192.0.2.7"], &["192.0.2.6"]),
            ("192.0.2.128/25", &["192.0.2.200"], &["192.0.2.127"]),
            ("0.0.0.0/0", &["255.1.2.3"], &["::1"]),
            ("::/0", &["2001:db8::1"], &["127.0.0.1"]),
            ("2001:db8::/32", &["2001:db8:ffff::1"], &["2001:db9::"]),
            ("::1", &["::1"], &["::2"]),
        ] {
            let parsed = AddressRange::parse(range).unwrap();
            for address in inside {
                assert!(parsed.contains(address.parse().unwrap()), "{range} {address}");
            }
            for address in outside {
                assert!(!parsed.contains(address.parse().unwrap()), "{range} {address}");
            }
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_a_cure() {
        for (text, cure) in [
            ("10.0.0.1/8", "\"10.0.0.0/8\""),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.0.0.0/", "from 0 to 32"),
            ("lan", "10.0.0.0/8"),
            ("", "10.0.0.0/8"),
        ] {
            let refused = AddressRange::parse(text).unwrap_err().to_string();
            assert!(refused.contains(cure), "{text}: {refused}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let secrets = Secrets::of("viewer", "open sesame");
        assert_eq!(format!("{secrets:?}"), "***");
        assert_eq!(secrets.ha1(Algorithm::Md5), Some("f11e7cc6177d52ff93a0bf384e4c95a7"));
    }
}
