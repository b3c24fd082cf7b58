use std::path::Path;
use std::time::Instant;

use super::*;
use crate::wire::sdp::{MediaAttrs, RtpMap, media_attributes, static_payload};

/// Every camera transcript in the test data, with its name.
fn cameras() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cameras");
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .filter(|(name, _)| name.ends_with("_sdp.txt") || name.contains("describe"))
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect();
    found.sort();
    assert!(found.len() >= 19, "only {} transcripts", found.len());
    found
}

/// The track for a media, unless its payload type is missing or unknown.
fn track(media: &str, attrs: &MediaAttrs) -> Option<Track> {
    let map = attrs.rtpmap.clone().or_else(|| {
        let (encoding, clock_rate, channels) = static_payload(attrs.payload_type?)?;
        Some(RtpMap { encoding: encoding.to_owned(), clock_rate, channels })
    })?;
    Some(Track {
        media: media.to_owned(),
        encoding: map.encoding,
        payload_type: attrs.payload_type.unwrap(),
        clock_rate: map.clock_rate,
        channels: map.channels,
        fmtp: attrs.fmtp.clone(),
        attributes: attrs.attributes.clone(),
        ssrc: 1,
        first_seq: 2,
        clock: (Instant::now(), 3),
    })
}

#[test]
fn every_camera_is_understood_and_served_on_without_its_address() {
    for (name, text) in cameras() {
        let mut medias = media_attributes(&text);
        let asked = text.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"m=")).count();
        assert_eq!(medias.len(), asked, "{name}");
        // One camera offers a media of a proprietary kind without a payload type.
        medias.retain(|media| track(&media.media, media).is_some());
        assert_eq!(medias.len(), asked - usize::from(name == "tplink_sdp.txt"), "{name}");
        let description =
            Description { tracks: medias.iter().filter_map(|media| track(&media.media, media)).collect() };
        let served = describe(&name, &description, false, None);
        for forbidden in ["192.168", "10.0.", "rtsp://", "wowza"] {
            assert!(!served.contains(forbidden), "{name}: {served}");
        }
        // A strict parser accepts it, and ours finds everything again.
        let strict =
            sdp_types::Session::parse(served.as_bytes()).unwrap_or_else(|err| panic!("{name}: {err}\n{served}"));
        assert_eq!(strict.medias.len(), medias.len());
        for (index, (again, media)) in media_attributes(served.as_bytes()).iter().zip(&medias).enumerate() {
            assert_eq!(again.control, Some(format!("trackID={index}")));
            assert_eq!((&again.fmtp, &again.attributes), (&media.fmtp, &media.attributes), "{name}");
            assert_eq!(again.payload_type, media.payload_type);
        }
    }
}

#[test]
fn the_description_has_what_players_need() {
    let media = MediaAttrs {
        media: "audio".into(),
        payload_type: Some(97),
        rtpmap: Some(RtpMap { encoding: "MPEG4-GENERIC".into(), clock_rate: 48_000, channels: Some(2) }),
        fmtp: Some("mode=AAC-hbr".into()),
        attributes: vec!["ptime:20".into(), "x-from:10.0.0.1".into()],
        direction: None,
        control: None,
    };
    let description = Description { tracks: vec![track("audio", &media).unwrap()] };
    let text = describe("front\r\ndoor", &description, false, None);
    let lines: Vec<_> = text.split("\r\n").collect();
    assert_eq!(lines[0], "v=0");
    assert!(lines[1].starts_with("o=- ") && lines[1].ends_with(" IN IP4 0.0.0.0"));
    assert_eq!(
        lines[2..],
        [
            "s=front  door",
            "c=IN IP4 0.0.0.0",
            "t=0 0",
            "a=control:*",
            "a=range:npt=0-",
            "m=audio 0 RTP/AVP 97",
            "a=rtpmap:97 MPEG4-GENERIC/48000/2",
            "a=fmtp:97 mode=AAC-hbr",
            "a=ptime:20",
            "a=control:trackID=0",
            ""
        ]
    );
    let other = Description { tracks: vec![Track { fmtp: None, ..description.tracks[0].clone() }] };
    assert_ne!(describe("front", &other, false, None).split("\r\n").nth(1), Some(lines[1]));
}

#[test]
fn control_characters_in_names_do_not_break_them_in_two() {
    let sdp = b"m=au\x0bdio 0 RTP/AVP 97\r\na=rtpmap:97 L\x0116/8000\r\n";
    let read = media_attributes(sdp).remove(0);
    let rtpmap = read.rtpmap.unwrap();
    let track = Track {
        media: read.media,
        encoding: rtpmap.encoding,
        payload_type: 97,
        clock_rate: rtpmap.clock_rate,
        channels: None,
        fmtp: None,
        attributes: Vec::new(),
        ssrc: 1,
        first_seq: 1,
        clock: (std::time::Instant::now(), 0),
    };
    let text = describe("x", &Description { tracks: vec![track] }, false, None);
    assert!(text.contains("m=audio 0 RTP/AVP 97\r\na=rtpmap:97 L16/8000\r\n"), "{text}");
}

proptest::proptest! {
    #[test]
    fn descriptions_may_be_anything(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        fuzz(Instant::now(), &bytes);
    }

    #[test]
    fn descriptions_that_look_right_are_read(text in "(m=[a-z]{1,5} 0 RTP/AVP (96|0|8)\r\n(a=(rtpmap:96 [A-Z0-9]{1,4}/[0-9]{1,5}|fmtp:96 [a-z=;\u{1}]{0,5}|[a-z]{1,4}:[ -~]{0,9}|control:[a-z/]{0,5})\r?\n){0,5}){0,3}") {
        fuzz(Instant::now(), text.as_bytes());
    }
}
