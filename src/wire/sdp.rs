//! Session descriptions (RFC 8866): the one that players get, and a forgiving reader for those that cameras send.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::stream::{Description, Track};

/// The name of a track in `a=control` and in URLs, before its number.
pub const TRACK_PREFIX: &str = "trackID=";

/// Which way a media flows, seen from whoever wrote the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The camera's `recvonly`, which cameras write for what they send.
    ReceiveOnly,
    /// `sendonly`; ONVIF cameras mark the back channel with it.
    SendOnly,
    /// Both ways.
    Both,
    /// Neither.
    Inactive,
}

/// `a=rtpmap` (RFC 8866 section 6.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RtpMap {
    /// The encoding name as spelled.
    pub encoding: String,
    /// Ticks a second; never 0.
    pub clock_rate: u32,
    /// Channels of audio, when told.
    pub channels: Option<u16>,
}

/// What a camera's description tells of one media.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaAttrs {
    /// The media of its `m=` line.
    pub media: String,
    /// The first format of its `m=` line, if that is a payload type.
    pub payload_type: Option<u8>,
    /// What that payload type is.
    pub rtpmap: Option<RtpMap>,
    /// Its format parameters, without the payload type.
    pub fmtp: Option<String>,
    /// The attributes that may be passed on ([`may_pass`]), without `a=`.
    pub attributes: Vec<String>,
    /// Its direction, or the whole session's.
    pub direction: Option<Direction>,
    /// Its control URL as spelled.
    pub control: Option<String>,
}

fn direction(attribute: &str) -> Option<Direction> {
    match attribute {
        "recvonly" => Some(Direction::ReceiveOnly),
        "sendonly" => Some(Direction::SendOnly),
        "sendrecv" => Some(Direction::Both),
        "inactive" => Some(Direction::Inactive),
        _ => None,
    }
}

/// A value that begins with this payload type, without it.
fn of_payload(value: &str, payload_type: Option<u8>) -> Option<&str> {
    let value = value.trim_start();
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = value.split_at(digits);
    (number.parse().ok() == payload_type && payload_type.is_some()).then(|| rest.trim())
}

fn rtpmap(value: &str) -> Option<RtpMap> {
    let mut parts = value.split_ascii_whitespace().next()?.split('/');
    let encoding = parts.next().filter(|name| !name.is_empty())?.to_owned();
    let clock_rate = parts.next()?.parse().ok().filter(|rate| *rate != 0)?;
    let channels = parts.next().and_then(|channels| channels.parse().ok());
    Some(RtpMap { encoding, clock_rate, channels })
}

/// Reads the media of a camera's description, one for each `m=` line, in their order, whatever else is wrong with it.
///
/// What cannot be understood is left out: cameras write `c=IN c=IN`, `o=` without an address, numbers past 64 bits,
/// negative ports, and Latin-1.
pub fn media_attributes(sdp: &[u8]) -> Vec<MediaAttrs> {
    let mut session_direction = None;
    let mut medias: Vec<MediaAttrs> = Vec::new();
    // Attributes may come in any order, so those of a payload type wait until the media's lines are all read.
    for line in sdp.split(|&byte| byte == b'\n' || byte == b'\r') {
        let line = String::from_utf8_lossy(line);
        let Some((kind, value)) = line.trim().split_once('=') else { continue };
        match (kind, medias.last_mut()) {
            ("m", _) => {
                let mut words = value.split_ascii_whitespace();
                let media = words.next().unwrap_or_default().to_ascii_lowercase();
                // Port and protocol are between.
                let payload_type = words.nth(2).and_then(|word| word.parse().ok()).filter(|number| *number < 128);
                medias.push(MediaAttrs {
                    media,
                    payload_type,
                    rtpmap: None,
                    fmtp: None,
                    attributes: Vec::new(),
                    direction: session_direction,
                    control: None,
                });
            }
            ("a", None) => session_direction = direction(value.trim()).or(session_direction),
            ("a", Some(media)) => attribute(media, value.trim()),
            _ => {}
        }
    }
    medias
}

fn attribute(media: &mut MediaAttrs, text: &str) {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    match name.trim().to_ascii_lowercase().as_str() {
        "rtpmap" => {
            let found = of_payload(value, media.payload_type).and_then(rtpmap);
            media.rtpmap = media.rtpmap.take().or(found);
        }
        "fmtp" => {
            let found = of_payload(value, media.payload_type).filter(|value| !value.is_empty());
            media.fmtp = media.fmtp.take().or(found.map(str::to_owned));
        }
        "control" => media.control = Some(value.trim().to_owned()),
        other => match direction(other) {
            Some(direction) => media.direction = Some(direction),
            None if may_pass(text) => media.attributes.push(text.to_owned()),
            None => {}
        },
    }
}

/// Whether an attribute of a camera's media may be shown to players: it is not one that the relay writes itself or that
/// speaks of the camera's own transport, and it names no address.
pub fn may_pass(attribute: &str) -> bool {
    const OWN: [&str; 24] = [
        "control",
        "rtpmap",
        "fmtp",
        "recvonly",
        "sendonly",
        "sendrecv",
        "inactive",
        "range",
        "rtcp",
        "rtcp-mux",
        "rtcp-fb",
        "rtcp-rsize",
        "candidate",
        "source-filter",
        "ssrc",
        "ssrc-group",
        "crypto",
        "key-mgmt",
        "fingerprint",
        "setup",
        "ice-ufrag",
        "ice-pwd",
        "mid",
        "tool",
    ];
    let name = attribute.split(':').next().unwrap_or_default().trim();
    !name.is_empty()
        && !attribute.chars().any(char::is_control)
        && !OWN.iter().any(|own| own.eq_ignore_ascii_case(name))
        && !names_address(attribute)
}

/// Whether a text holds a URL or an IP address.
fn names_address(text: &str) -> bool {
    let word = |is_part: fn(char) -> bool, is_address: fn(&str) -> bool| {
        text.split(|c| !is_part(c)).any(|word| !word.is_empty() && is_address(word))
    };
    text.contains("://")
        || word(|c| c.is_ascii_digit() || c == '.', |word| word.trim_matches('.').parse::<Ipv4Addr>().is_ok())
        // The attribute's own colon may be at the word's beginning.
        || word(
            |c| c.is_ascii_hexdigit() || c == ':',
            |word| [word, word.strip_prefix(':').unwrap_or("")].iter().any(|word| word.parse::<Ipv6Addr>().is_ok()),
        )
}

/// Encoding, clock rate and channels of a static payload type (RFC 3551 section 6).
pub fn static_payload(payload_type: u8) -> Option<(&'static str, u32, Option<u16>)> {
    Some(match payload_type {
        0 => ("PCMU", 8_000, Some(1)),
        3 => ("GSM", 8_000, Some(1)),
        4 => ("G723", 8_000, Some(1)),
        5 => ("DVI4", 8_000, Some(1)),
        6 => ("DVI4", 16_000, Some(1)),
        7 => ("LPC", 8_000, Some(1)),
        8 => ("PCMA", 8_000, Some(1)),
        9 => ("G722", 8_000, Some(1)),
        10 => ("L16", 44_100, Some(2)),
        11 => ("L16", 44_100, Some(1)),
        12 => ("QCELP", 8_000, Some(1)),
        13 => ("CN", 8_000, Some(1)),
        14 => ("MPA", 90_000, None),
        15 => ("G728", 8_000, Some(1)),
        16 => ("DVI4", 11_025, Some(1)),
        17 => ("DVI4", 22_050, Some(1)),
        18 => ("G729", 8_000, Some(1)),
        25 => ("CelB", 90_000, None),
        26 => ("JPEG", 90_000, None),
        28 => ("nv", 90_000, None),
        31 => ("H261", 90_000, None),
        32 => ("MPV", 90_000, None),
        33 => ("MP2T", 90_000, None),
        34 => ("H263", 90_000, None),
        _ => return None,
    })
}

/// Text for one line: control characters, line ends among them, become spaces.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Text for one word of a line: what would end it is left out.
fn word(text: &str) -> String {
    let word: String = text.chars().filter(|c| !c.is_control() && !c.is_whitespace()).collect();
    if word.is_empty() { "-".to_owned() } else { word }
}

/// The description that players of a stream get. It names no address: players take that of the control connection. But
/// `ipv6` tells which kind that is: GStreamer opens its UDP ports for the kind that stands here.
pub fn describe(name: &str, description: &Description, ipv6: bool) -> String {
    let mut media = String::new();
    for (index, track) in description.tracks.iter().enumerate() {
        write_track(&mut media, index, track);
    }
    // Number and version follow from the content, so that a changed description is seen as one (RFC 8866 section 5.2).
    let version = media
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
        >> 16;
    let name = line(name);
    let name = if name.trim().is_empty() { "-" } else { name.trim() };
    let nowhere = if ipv6 { "IP6 ::" } else { "IP4 0.0.0.0" };
    format!(
        "v=0\r\no=- {version} {version} IN {nowhere}\r\ns={name}\r\nc=IN {nowhere}\r\nt=0 0\r\na=control:*\r\n\
         a=range:npt=0-\r\n{media}"
    )
}

fn write_track(out: &mut String, index: usize, track: &Track) {
    let pt = track.payload_type;
    // Writing to a string cannot fail.
    let _ = write!(out, "m={} 0 RTP/AVP {pt}\r\n", word(&track.media));
    let _ = write!(out, "a=rtpmap:{pt} {}/{}", word(&track.encoding), track.clock_rate);
    if let Some(channels) = track.channels.filter(|channels| *channels != 1) {
        let _ = write!(out, "/{channels}");
    }
    out.push_str("\r\n");
    if let Some(fmtp) = track.fmtp.as_deref().map(str::trim).filter(|fmtp| !fmtp.is_empty()) {
        let _ = write!(out, "a=fmtp:{pt} {}\r\n", line(fmtp));
    }
    for attribute in track.attributes.iter().filter(|attribute| may_pass(attribute)) {
        let _ = write!(out, "a={attribute}\r\n");
    }
    let _ = write!(out, "a=control:{TRACK_PREFIX}{index}\r\n");
}

#[cfg(test)]
#[path = "sdp_tests.rs"]
mod tests;
