//! Values in the configuration: durations, sizes, addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::bad_value::BadValue;
use crate::media::name::{self, BadName};
use crate::redact::redact;

/// Parses a duration such as `"1s"`, `"200ms"`, `"1.5s"`, `"2m"`, `"1h"` or `"500us"`.
///
/// # Errors
/// A sentence that says how to fix it.
pub fn duration(text: &str) -> Result<Duration, BadValue> {
    const UNITS: [(&str, u64); 6] = [
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let cure = || -> BadValue {
        format!("{:?} is not a duration; write a number and a unit, such as \"200ms\", \"1s\" or \"2m\"", redact(text))
            .into()
    };
    let (number, unit) = split_unit(text);
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let nanos = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, nanos)| *nanos).ok_or_else(cure)?;
    scale(number, nanos).map(Duration::from_nanos).ok_or_else(cure)
}

/// Parses a number of bytes such as `"32MiB"`, `"500kB"`, `"1GiB"` or `"4096"`.
///
/// # Errors
/// A sentence that says how to fix it.
pub(super) fn size(text: &str) -> Result<u64, BadValue> {
    const UNITS: [(&str, u64); 9] = [
        ("", 1),
        ("B", 1),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];
    let cure = || -> BadValue {
        format!(
            "{:?} is not a size; write a number and a unit, such as \"512KiB\", \"32MiB\" or \"1GiB\"",
            redact(text)
        )
        .into()
    };
    let (number, unit) = split_unit(text);
    let bytes = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, bytes)| *bytes).ok_or_else(cure)?;
    scale(number, bytes).ok_or_else(cure)
}

/// Whether the system cannot listen on both addresses: they are equal, or one includes the other.
pub(super) fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let holds = |all: SocketAddr, it: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || it.is_ipv4());
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || holds(one, other) || holds(other, one))
}

/// Parses an address to serve RTSP on, `IP:PORT`; port 0 chooses a free one.
///
/// # Errors
/// A sentence that says how to fix it.
pub fn listen(text: &str) -> Result<SocketAddr, BadValue> {
    address(text, 8554)
}

/// The same for RTSPS.
///
/// # Errors
/// As [`listen`].
pub(super) fn listen_tls(text: &str) -> Result<SocketAddr, BadValue> {
    address(text, 8322)
}

/// The same for HTTP.
///
/// # Errors
/// As [`listen`].
pub fn http(text: &str) -> Result<SocketAddr, BadValue> {
    address(text, 8580)
}

/// The same for HTTPS.
///
/// # Errors
/// As [`listen`].
pub(super) fn http_tls(text: &str) -> Result<SocketAddr, BadValue> {
    address(text, 8443)
}

/// Parses an address; `usual` is the port suggested in errors.
fn address(text: &str, usual: u16) -> Result<SocketAddr, BadValue> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr);
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let cure = if let Ok(ip) = text.parse::<IpAddr>() {
        format!("it has no port; write \"{}\"", SocketAddr::from((ip, usual)))
    } else if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        format!(
            "write \"127.0.0.1:{port}\" for this machine only, \"0.0.0.0:{port}\" for every IPv4 address, \"[::]:{port}\" for \
             both families"
        )
    } else {
        format!("write an IP address and a port, such as \"127.0.0.1:{usual}\" or \"[::]:{usual}\"")
    };
    Err(format!("{:?} is not an address with a port; {cure}", redact(text)).into())
}

/// Parses a range of ports, inclusive. RTP uses the even ports and RTCP the odd ones after them (RFC 3550 section 11).
///
/// # Errors
/// A sentence that says how to fix it.
pub(super) fn ports(text: &str) -> Result<(u16, u16), BadValue> {
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match text.split_once('-').and_then(|(first, last)| Some((port(first)?, port(last)?))) {
        Some((first, last)) if pairs((first, last)) > 0 => Ok((first, last)),
        Some(_) => {
            Err(format!("{:?} has no even port followed by an odd one; write \"20000-20999\"", redact(text)).into())
        }
        None => Err(format!("{:?} is not a range of ports; write \"20000-20999\"", redact(text)).into()),
    }
}

/// The number of pairs of an even port and the next odd one in a range.
pub(super) fn pairs((first, last): (u16, u16)) -> usize {
    let first = usize::from(first).next_multiple_of(2);
    (usize::from(last) + 1).saturating_sub(first) / 2
}

/// Checks a host name that browsers request the pages by.
///
/// # Errors
/// A sentence that says how to fix it.
pub(super) fn host(text: &str) -> Result<String, BadValue> {
    let is_label =
        |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if text.trim_end_matches('.').split('.').all(is_label) {
        return Ok(text.trim_end_matches('.').to_ascii_lowercase());
    }
    Err(format!(
        "{:?} is not a host name; write it without scheme and port, such as \"cams.example.org\"",
        redact(text)
    )
    .into())
}

/// Checks an origin (RFC 6454): scheme, host, and optionally a port.
///
/// # Errors
/// A sentence that says how to fix it.
pub(super) fn origin(text: &str) -> Result<String, BadValue> {
    let parts = text.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    match parts {
        Some((_, rest)) if !rest.is_empty() && rest.chars().all(is_plain) => Ok(text.to_owned()),
        _ => Err(format!(
            "{:?} is not an origin; write only scheme and host, such as \"https://home.example.org\"",
            redact(text)
        )
        .into()),
    }
}

/// Checks the name of a stream, which is the path of its URL.
///
/// # Errors
/// A sentence that says how to fix it.
pub(super) fn stream_name(text: &str) -> Result<&str, BadValue> {
    match name::check(text) {
        Ok(()) => Ok(text),
        Err(bad @ (BadName::Empty | BadName::Long(_))) => Err(bad.to_string().into()),
        Err(bad) => Err(format!("{:?} {bad}", redact(text)).into()),
    }
}

/// Splits `1.5s` into `1.5` and `s`; a space between them is allowed.
fn split_unit(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..at], text[at..].trim_start_matches(' '))
}

/// A decimal number times `unit`; `None` if it is invalid, too large, or has more than 9 decimals.
fn scale(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / 10u128.pow(fraction.len() as u32);
    whole.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [("1s", 1000), ("200ms", 200), ("1.5s", 1500), ("2m", 120_000), ("1h", 3_600_000), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(duration("10 s"), Ok(Duration::from_secs(10)));
        for text in
            ["", "1", "s", "1 day", "-1s", "1s2", "1.s", ".5s", "1..5s", "99999999999999999999s", "99999999999h"]
        {
            assert!(duration(text).unwrap_err().to_string().contains("200ms"), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("32MiB", 32 << 20), ("500kB", 500_000), ("1.5KiB", 1536), ("4096", 4096), ("1GiB", 1 << 30), ("7B", 7)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "1mib", "1 TB", "-1", "1e6", "99999999999999GiB"] {
            assert!(size(text).unwrap_err().to_string().contains("32MiB"), "{text}");
        }
    }

    #[test]
    fn listen_addresses() {
        assert_eq!(listen("0.0.0.0:8554"), Ok("0.0.0.0:8554".parse().unwrap()));
        assert_eq!(listen("[::]:0"), Ok("[::]:0".parse().unwrap()));
        assert_eq!(listen("localhost:8554"), Ok("127.0.0.1:8554".parse().unwrap()));
        for (text, cure) in [
            ("127.0.0.1", "\"127.0.0.1:8554\""),
            ("::1", "\"[::1]:8554\""),
            (":8554", "\"0.0.0.0:8554\""),
            ("8554", "\"[::]:8554\""),
            ("camera.lan:8554", "\"127.0.0.1:8554\""),
            ("0.0.0.0:99999", "\"[::]:8554\""),
        ] {
            assert!(listen(text).unwrap_err().to_string().contains(cure), "{text}: {:?}", listen(text));
        }
        // The suggested ports do not conflict with each other.
        assert!(http("127.0.0.1").unwrap_err().to_string().contains("\"127.0.0.1:8580\""));
        assert!(listen_tls("0.0.0.0").unwrap_err().to_string().contains("\"0.0.0.0:8322\""));
    }

    #[test]
    fn stream_names() {
        for name in ["front", "Cam_2.main-0~", "a", "live/cam1"] {
            assert_eq!(stream_name(name), Ok(name));
        }
        for name in ["", "a b", "a//b", "/a", "ä", "..", ".", "a?b", &"x".repeat(201)] {
            assert!(stream_name(name).is_err(), "{name}");
        }
    }
}
