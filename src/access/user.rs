//! A user: what stands for the password, and what it opens.

use std::fmt;
use std::net::IpAddr;

use super::REALM;
use crate::wire::auth::Algorithm;

/// The hashes that stand for a password; the password itself is not kept. Never shown: who has them can be the user.
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

    /// The one for an algorithm, if there is one.
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

/// Something that a user may be let do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Play streams.
    Read,
    /// Send streams to the relay.
    Publish,
}

impl Right {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Right::Read => "read",
            Right::Publish => "publish",
        }
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name: no colon, quote, backslash or control character.
    pub name: String,
    /// What stands for its password.
    pub secrets: Secrets,
    /// The names of the streams it has to do with; `None` for all of them.
    pub streams: Option<Vec<String>>,
    /// Where it may come from; empty for anywhere.
    pub from: Vec<AddressRange>,
    /// Whether it may play.
    pub read: bool,
    /// Whether it may publish.
    pub publish: bool,
}

impl User {
    /// Whether it may do that with the stream of this name.
    pub fn may(&self, right: Right, stream: &str) -> bool {
        self.has(right) && self.streams.as_ref().is_none_or(|streams| streams.iter().any(|name| name == stream))
    }

    /// Whether it may play every stream there is, and so see what the relay tells of all of them.
    pub fn may_read_all(&self) -> bool {
        self.read && self.streams.is_none()
    }

    /// Whether it may come from this address.
    pub fn may_come_from(&self, peer: IpAddr) -> bool {
        self.from.is_empty() || self.from.iter().any(|range| range.contains(peer))
    }

    fn has(&self, right: Right) -> bool {
        match right {
            Right::Read => self.read,
            Right::Publish => self.publish,
        }
    }
}

/// Addresses that begin alike: `10.0.0.0/8`, `2001:db8::/32`, or a single one (RFC 4632 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    prefix: u8,
}

impl AddressRange {
    /// Reads one.
    ///
    /// # Errors
    /// A sentence with the cure.
    pub fn parse(text: &str) -> Result<AddressRange, String> {
        let cure = "write an address, or a network such as \"10.0.0.0/8\" or \"2001:db8::/32\"";
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| format!("{text:?} is no range of addresses; {cure}"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let digits = |prefix: &str| prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|length| *length <= bits && digits(prefix)),
            None => Some(bits),
        };
        let prefix =
            prefix.ok_or_else(|| format!("{text:?} needs a length from 0 to {bits} after the slash; {cure}"))?;
        let range = AddressRange { first: masked(address, prefix), prefix };
        if range.first != address {
            return Err(format!(
                "{text:?} has bits set behind its first {prefix}; write \"{}/{prefix}\" for the network, or the address alone",
                range.first
            ));
        }
        Ok(range)
    }

    /// Whether the address is in it. An IPv4 address written as an IPv6 one counts as what it is.
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
            let refused = AddressRange::parse(text).unwrap_err();
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
