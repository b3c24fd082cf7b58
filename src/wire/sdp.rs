//! Session descriptions (RFC 8866): a tolerant parser for those from cameras and publishers. [`media::sdp`](crate::media::sdp) writes
//! those for players.

use super::passed_on::{self, may_pass};
/// The prefix of a track's name in `a=control` and in URLs, before its number.
pub const TRACK_PREFIX: &str = "trackID=";

/// The attribute that lists the relays that a stream has passed through.
pub const PATH_ATTRIBUTE: &str = "x-rtsprelay-path";

/// The direction of a media, from the point of view of the description's author.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The camera's `recvonly`, which cameras use for what they send.
    ReceiveOnly,
    /// `sendonly`, with which ONVIF cameras mark the back channel.
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
    /// Ticks per second; never 0.
    pub clock_rate: u32,
    /// Audio channels, if given.
    pub channels: Option<u16>,
}

/// One media of a camera's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaAttrs {
    /// The media type of its `m=` line.
    pub media: String,
    /// The first format of its `m=` line, if that is a payload type.
    pub payload_type: Option<u8>,
    /// The encoding of that payload type.
    pub rtpmap: Option<RtpMap>,
    /// The known ones of its format parameters, without the payload type.
    pub fmtp: Option<String>,
    /// The attributes that may be passed on ([`may_pass`]), without `a=`.
    pub attributes: Vec<String>,
    /// Its direction, or that of the session.
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

/// A value that starts with this payload type, without it.
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

/// Maximum number of sections that are read.
const MEDIAS_MAX: usize = 64;

/// Parses the media of a camera's description, one for each `m=` line, in order, whatever else is wrong with it.
///
/// What is not understood is ignored: cameras write `c=IN c=IN`, `o=` without an address, numbers over 64 bits, negative ports, and
/// Latin-1.
pub fn media_attributes(sdp: &[u8]) -> Vec<MediaAttrs> {
    let mut session_direction = None;
    let mut medias: Vec<MediaAttrs> = Vec::new();
    // Attributes may come in any order, so those of a payload type wait until all lines of the media are read.
    for line in sdp.split(|&byte| byte == b'\n' || byte == b'\r') {
        let line = String::from_utf8_lossy(line);
        let Some((kind, value)) = line.trim().split_once('=') else { continue };
        // No camera has as many, and each costs a line in the log.
        if kind == "m" && medias.len() == MEDIAS_MAX {
            break;
        }
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

/// The control URL of the session, as spelled (RFC 2326 section C.1.1).
pub fn session_control(sdp: &[u8]) -> Option<String> {
    let lines = sdp.split(|&byte| byte == b'\n' || byte == b'\r').map(String::from_utf8_lossy);
    let session = lines.take_while(|line| !line.trim_start().starts_with("m="));
    session.filter_map(|line| Some(line.trim().strip_prefix("a=control:")?.trim().to_owned())).last()
}

/// The value of a session-level attribute.
pub fn session_attribute(sdp: &[u8], name: &str) -> Option<String> {
    let lines = sdp.split(|&byte| byte == b'\n' || byte == b'\r').map(String::from_utf8_lossy);
    let mut session = lines.take_while(|line| !line.trim_start().starts_with("m="));
    session.find_map(|line| {
        let (key, value) = line.trim().strip_prefix("a=")?.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn attribute(media: &mut MediaAttrs, text: &str) {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    match name.trim().to_ascii_lowercase().as_str() {
        "rtpmap" => {
            let found = of_payload(value, media.payload_type).and_then(rtpmap);
            media.rtpmap = media.rtpmap.take().or(found);
        }
        "fmtp" => {
            let found = of_payload(value, media.payload_type).and_then(passed_on::format_parameters);
            media.fmtp = media.fmtp.take().or(found);
        }
        "control" => media.control = Some(value.trim().to_owned()),
        other => match direction(other) {
            Some(direction) => media.direction = Some(direction),
            None if may_pass(text) => media.attributes.push(text.to_owned()),
            None => {}
        },
    }
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

#[cfg(test)]
#[path = "sdp_tests.rs"]
mod tests;
