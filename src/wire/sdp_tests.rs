use std::path::Path;

use super::*;

#[test]
fn parameter_sets_and_quirks_come_through() {
    let find = |name: &str| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cameras");
        media_attributes(&std::fs::read(directory.join(name)).unwrap())
    };
    let medias = find("ubiquiti_sdp.txt");
    assert_eq!(medias[1].rtpmap, Some(RtpMap { encoding: "opus".into(), clock_rate: 48_000, channels: Some(2) }));
    assert_eq!(medias[1].fmtp, None);
    assert!(medias[2].fmtp.as_ref().unwrap().contains("sprop-parameter-sets=Z01A"));
    assert_eq!(medias[2].direction, Some(Direction::ReceiveOnly));
    let medias = find("dahua_describe_h264_aac_onvif.txt");
    assert_eq!(medias[0].attributes, ["framerate:15.000000"]);
    assert_eq!(medias[2].rtpmap.as_ref().unwrap().encoding, "vnd.onvif.metadata");
}

#[test]
fn what_is_wrong_is_left_out() {
    let text =
        b"v=0\no=-\nc=IN c=IN\na=sendrecv\nm=video -5 RTP/AVP 96 97\nb=AS:99999999999999999999\na=rtpmap:97 X/1\n\
        a=rtpmap:96 H264/0\na=rtpmap:96 H264/90000\na=fmtp:96\na=fmtp:96 x=y\na=fmtp:96 mode=b\na=fmtp:97 mode=d\na=caf\xe9\n\
        m=audio 0 RTP/AVP 300\na=rtpmap:300 X/8000\na=sendonly\nm=\nnonsense\n=\na\na=\nm=audio 0 RTP/AVP 8";
    let medias = media_attributes(text);
    assert_eq!(medias.len(), 4);
    assert_eq!(medias[0].rtpmap, Some(RtpMap { encoding: "H264".into(), clock_rate: 90_000, channels: None }));
    assert_eq!((medias[0].fmtp.as_deref(), medias[0].direction), (Some("mode=b"), Some(Direction::Both)));
    assert_eq!((medias[1].payload_type, medias[1].direction), (None, Some(Direction::SendOnly)));
    assert_eq!((medias[2].media.as_str(), medias[2].payload_type), ("", None));
    assert_eq!(static_payload(medias[3].payload_type.unwrap()), Some(("PCMA", 8_000, Some(1))));
}
