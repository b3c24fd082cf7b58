//! The session description that players receive (RFC 8866).

use std::fmt::Write as _;

use super::{Description, Track};
use crate::wire::passed_on::{self, may_pass};
use crate::wire::sdp::{PATH_ATTRIBUTE, TRACK_PREFIX};

/// Text for a single line: control characters, including line ends, become spaces.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The description that players of a stream receive. It contains no address: players use that of the control connection. `ipv6` says
/// which family that is, because GStreamer opens its UDP ports for the family given here. `path` lists the relays that the stream has
/// passed through.
pub fn describe(name: &str, description: &Description, ipv6: bool, path: Option<&str>) -> String {
    let mut media = String::new();
    for (index, track) in description.tracks.iter().enumerate() {
        write_track(&mut media, index, track);
    }
    // The session id and version are derived from the content, so that players notice a changed description (RFC 8866 section 5.2).
    let version = media
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
        >> 16;
    let name = line(name);
    let name = if name.trim().is_empty() { "-" } else { name.trim() };
    let path = path.map_or(String::new(), |path| format!("a={PATH_ATTRIBUTE}:{}\r\n", line(path)));
    let nowhere = if ipv6 { "IP6 ::" } else { "IP4 0.0.0.0" };
    format!(
        "v=0\r\no=- {version} {version} IN {nowhere}\r\ns={name}\r\nc=IN {nowhere}\r\nt=0 0\r\na=control:*\r\n\
         a=range:npt=0-\r\n{path}{media}"
    )
}

fn write_track(out: &mut String, index: usize, track: &Track) {
    let pt = track.payload_type;
    // Writing to a string cannot fail.
    let _ = write!(out, "m={} 0 RTP/AVP {pt}\r\n", passed_on::media(&track.media));
    let _ = write!(out, "a=rtpmap:{pt} {}/{}", passed_on::encoding(&track.encoding), track.clock_rate);
    if let Some(channels) = track.channels.filter(|channels| *channels != 1) {
        let _ = write!(out, "/{channels}");
    }
    out.push_str("\r\n");
    if let Some(fmtp) = track.fmtp.as_deref().and_then(passed_on::format_parameters) {
        let _ = write!(out, "a=fmtp:{pt} {fmtp}\r\n");
    }
    for attribute in track.attributes.iter().filter(|attribute| may_pass(attribute)) {
        let _ = write!(out, "a={attribute}\r\n");
    }
    let _ = write!(out, "a=control:{TRACK_PREFIX}{index}\r\n");
}

/// Body of a fuzz target: any description from a camera can be read, and nothing in it can start a line of its own in the relay's
/// description.
#[cfg(feature = "testing")]
pub fn fuzz(now: std::time::Instant, bytes: &[u8]) {
    use crate::wire::sdp::media_attributes;
    let medias = media_attributes(bytes);
    assert!(medias.len() <= bytes.len() / 2);
    let clock = (now, 0);
    let mut tracks = Vec::new();
    for media in medias {
        assert!(media.attributes.iter().all(|attribute| passed_on::may_pass(attribute)));
        assert!(media.payload_type.is_none_or(|number| number < 128));
        let Some(rtpmap) = media.rtpmap else { continue };
        assert!(media.payload_type.is_some() && rtpmap.clock_rate > 0 && !rtpmap.encoding.is_empty());
        tracks.push(Track {
            media: media.media,
            encoding: rtpmap.encoding,
            payload_type: media.payload_type.unwrap_or_default(),
            clock_rate: rtpmap.clock_rate,
            channels: rtpmap.channels,
            fmtp: media.fmtp,
            attributes: media.attributes,
            ssrc: 1,
            first_seq: 1,
            clock,
        });
    }
    let name = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]);
    let written = describe(&name, &Description { tracks: tracks.clone() }, false, None);
    let known = ["v=", "o=", "s=", "c=", "t=", "a=", "m="];
    assert!(written.split("\r\n").all(|line| line.is_empty() || known.iter().any(|kind| line.starts_with(kind))));
    assert!(!written.replace("\r\n", "").contains(['\r', '\n']));
    let read = media_attributes(written.as_bytes());
    assert_eq!(read.len(), tracks.len(), "{written}");
    for (index, (read, track)) in read.iter().zip(&tracks).enumerate() {
        assert_eq!(read.control.as_deref(), Some(format!("{}{index}", TRACK_PREFIX).as_str()));
        assert_eq!(read.payload_type, Some(track.payload_type));
        assert_eq!(read.attributes.len(), track.attributes.len());
    }
}

#[cfg(test)]
#[path = "sdp_tests.rs"]
mod tests;
