//! Values of the configuration as people write them: durations, sizes, addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::url::redact;

/// Reads a duration such as `"1s"`, `"200ms"`, `"1.5s"`, `"2m"`, `"1h"` or `"500us"`.
///
/// # Errors
/// A sentence with the cure.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 6] = [
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let cure = || {
        format!("{:?} is not a duration; write a number and a unit, such as \"200ms\", \"1s\" or \"2m\"", redact(text))
    };
    let (number, unit) = split_unit(text);
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let nanos = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, nanos)| *nanos).ok_or_else(cure)?;
    scale(number, nanos).map(Duration::from_nanos).ok_or_else(cure)
}

/// Reads a number of bytes such as `"32MiB"`, `"500kB"`, `"1GiB"` or `"4096"`.
///
/// # Errors
/// A sentence with the cure.
pub fn size(text: &str) -> Result<u64, String> {
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
    let cure = || {
        format!(
            "{:?} is not a size; write a number and a unit, such as \"512KiB\", \"32MiB\" or \"1GiB\"",
            redact(text)
        )
    };
    let (number, unit) = split_unit(text);
    let bytes = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, bytes)| *bytes).ok_or_else(cure)?;
    scale(number, bytes).ok_or_else(cure)
}

/// Whether the system refuses one of these addresses because of the other: they are the same, or one holds all of the other's
/// kind.
pub(super) fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let holds = |all: SocketAddr, it: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || it.is_ipv4());
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || holds(one, other) || holds(other, one))
}

/// Reads an address to serve RTSP at, `IP:PORT`; port 0 takes any free one.
///
/// # Errors
/// A sentence with the cure.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    address(text, 8554)
}

/// The same for RTSPS.
///
/// # Errors
/// As [`listen`].
pub fn listen_tls(text: &str) -> Result<SocketAddr, String> {
    address(text, 8322)
}

/// The same for HTTP.
///
/// # Errors
/// As [`listen`].
pub fn http(text: &str) -> Result<SocketAddr, String> {
    address(text, 8580)
}

/// Reads an address; `usual` is the port that a cure names.
fn address(text: &str, usual: u16) -> Result<SocketAddr, String> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr);
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let cure = if let Ok(ip) = text.parse::<IpAddr>() {
        format!("it lacks the port; write \"{}\"", SocketAddr::from((ip, usual)))
    } else if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        format!(
            "write \"127.0.0.1:{port}\" for this machine alone, \"0.0.0.0:{port}\" for every IPv4 address, \"[::]:{port}\" for \
             both families"
        )
    } else {
        format!("write an IP address and a port, such as \"127.0.0.1:{usual}\" or \"[::]:{usual}\"")
    };
    Err(format!("{:?} is not an address with a port; {cure}", redact(text)))
}

/// Checks the name of a stream, the last part of its URL.
///
/// # Errors
/// A sentence with the cure.
pub fn stream_name(text: &str) -> Result<&str, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
    if text.is_empty() {
        return Err("a stream's name is empty; name it, it is the last part of its URL".into());
    }
    if text.len() > crate::limits::STREAM_NAME_BYTES_MAX {
        return Err(format!(
            "a stream's name has {} characters; use at most {}",
            text.len(),
            crate::limits::STREAM_NAME_BYTES_MAX
        ));
    }
    if !text.chars().all(safe) || text == "." || text == ".." {
        return Err(format!(
            "{:?} cannot be part of a URL; name a stream with letters, digits and - _ . ~ (a to z, A to Z, 0 to 9)",
            redact(text)
        ));
    }
    Ok(text)
}

/// Splits `1.5s` into `1.5` and `s`; a space between them is let through.
fn split_unit(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..at], text[at..].trim_start_matches(' '))
}

/// A decimal number times `unit`, or nothing if it is none, or too large, or has more than 9 decimals.
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
            assert!(duration(text).unwrap_err().contains("200ms"), "{text}");
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
            assert!(size(text).unwrap_err().contains("32MiB"), "{text}");
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
            assert!(listen(text).unwrap_err().contains(cure), "{text}: {:?}", listen(text));
        }
        // What is proposed can be had beside the others.
        assert!(http("127.0.0.1").unwrap_err().contains("\"127.0.0.1:8580\""));
        assert!(listen_tls("0.0.0.0").unwrap_err().contains("\"0.0.0.0:8322\""));
    }

    #[test]
    fn stream_names() {
        for name in ["front", "Cam_2.main-0~", "a"] {
            assert_eq!(stream_name(name), Ok(name));
        }
        for name in ["", "a b", "a/b", "ä", "..", ".", "a?b", &"x".repeat(65)] {
            assert!(stream_name(name).is_err(), "{name}");
        }
    }
}
