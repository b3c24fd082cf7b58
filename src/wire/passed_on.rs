//! Which parts of a source's description are passed on to players: only what is known. A list of what is forbidden could never be
//! complete: `127.1`, digits of other scripts and bidirectional marks can form addresses too.

/// Maximum length of an attribute's value in bytes.
const ATTRIBUTE_BYTES_MAX: usize = 64;

/// The form of an attribute's value.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// One number, possibly with a fraction.
    Number,
    /// Whole numbers with separators.
    Numbers,
    /// A word.
    Word,
}

/// Attributes that players need (RFC 8866 section 6, RFC 6064 section 4, and cameras' variants of these).
const ATTRIBUTES: [(&str, Form); 11] = [
    ("cliprect", Form::Numbers),
    ("framerate", Form::Number),
    ("framesize", Form::Numbers),
    ("lang", Form::Word),
    ("maxptime", Form::Number),
    ("orient", Form::Word),
    ("ptime", Form::Number),
    ("quality", Form::Number),
    ("sdplang", Form::Word),
    ("x-dimensions", Form::Numbers),
    ("x-framerate", Form::Number),
];

/// Format parameters that decoders need, in lower case: H.264 (RFC 6184), H.265 (RFC 7798), H.266 (RFC 9328), AV1, VP8
/// (RFC 7741), VP9 (RFC 9628), MPEG-4 (RFC 3640, RFC 6416), H.263 (RFC 4629), JPEG 2000 and XS (RFC 5371, RFC 9134), raw video
/// (RFC 4175), Opus (RFC 7587), Vorbis and Theora (RFC 5215), AMR (RFC 4867), iLBC (RFC 3952), G.729 and others (RFC 4856), Speex
/// (RFC 5574), L16 and its like (RFC 3190), ancillary data (RFC 8331),
/// and GStreamer's own payload (`rtpgstpay`).
const PARAMETERS: [&str; 135] = [
    "aac-config",
    "annexb",
    "auxiliarydatasizelength",
    "bitrate",
    "bpp",
    "caps",
    "capsversion",
    "cbr",
    "channel-order",
    "channels",
    "cif",
    "cif16",
    "cif4",
    "colorimetry",
    "config",
    "configuration",
    "constantduration",
    "constantsize",
    "cpresent",
    "crc",
    "ctsdeltalength",
    "custom",
    "cvbr",
    "d",
    "delivery-method",
    "depth",
    "did_sdid",
    "dtsdeltalength",
    "dual-mono",
    "emphasis",
    "eptype",
    "exactframerate",
    "fbitrate",
    "framerate",
    "height",
    "in-band-parameter-sets",
    "indexdeltalength",
    "indexlength",
    "interlace",
    "interleaving",
    "interop-constraints",
    "k",
    "layout",
    "level",
    "level-asymmetry-allowed",
    "level-id",
    "level-idx",
    "lfe",
    "max-br",
    "max-cpb",
    "max-dpb",
    "max-dps",
    "max-fps",
    "max-fr",
    "max-fs",
    "max-lbr",
    "max-lcu",
    "max-lps",
    "max-lsps",
    "max-lsr",
    "max-mbps",
    "max-rcmd-nalu-size",
    "max-recv-level-id",
    "max-red",
    "max-smbps",
    "max-tc",
    "max-tr",
    "maxaveragebitrate",
    "maxdisplacement",
    "maxplaybackrate",
    "maxptime",
    "mime",
    "minptime",
    "mode",
    "mode-change-capability",
    "mode-change-neighbor",
    "mode-change-period",
    "mode-set",
    "object",
    "objecttype",
    "octet-align",
    "p",
    "packetization-mode",
    "packetization-supported",
    "packetmode",
    "pm",
    "profile",
    "profile-compatibility-indicator",
    "profile-id",
    "profile-level-id",
    "profile-space",
    "ps-asc",
    "ptime",
    "qcif",
    "range",
    "rap",
    "rate",
    "robust-sorting",
    "sampling",
    "sar-supported",
    "sar-understood",
    "sbr-enabled",
    "segmented",
    "sizelength",
    "sprop-depack-buf-bytes",
    "sprop-depack-buf-nalus",
    "sprop-interleaving-depth",
    "sprop-max-don-diff",
    "sprop-maxcapturerate",
    "sprop-parameter-sets",
    "sprop-pps",
    "sprop-sei",
    "sprop-sps",
    "sprop-stereo",
    "sprop-vps",
    "sqcif",
    "ssn",
    "stereo",
    "streamstateindication",
    "streamtype",
    "subframecount",
    "tcs",
    "tier",
    "tier-flag",
    "tp",
    "transmode",
    "tx",
    "tx-mode",
    "usedtx",
    "useinbandfec",
    "vad",
    "vbr",
    "width",
    "x-framerate",
    "xheaac-config",
];

/// Parameters whose values may contain a dot or colon that is not part of an address: a fraction or a ratio.
const WITH_POINTS: [&str; 6] = ["exactframerate", "framerate", "max-fps", "max-fr", "sampling", "x-framerate"];

/// Media types in `m=` lines (RFC 8866 section 5.14).
const MEDIA: [&str; 6] = ["application", "audio", "image", "message", "text", "video"];

/// Whether an attribute of a source's media may be passed on to players: it must be one that players need, with a value of the right
/// form.
pub fn may_pass(attribute: &str) -> bool {
    let (name, value) = attribute.split_once(':').unwrap_or((attribute, ""));
    let (name, value) = (name.trim(), value.trim());
    let Some((_, form)) = ATTRIBUTES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) else { return false };
    let is_of = |allowed: fn(u8) -> bool| value.bytes().all(allowed);
    let is_of_form = match form {
        Form::Number => is_of(|byte| byte.is_ascii_digit() || byte == b'.') && value.parse::<f64>().is_ok(),
        Form::Numbers => is_of(|byte| byte.is_ascii_digit() || b" ,-x".contains(&byte)),
        Form::Word => is_of(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
    };
    (1..=ATTRIBUTE_BYTES_MAX).contains(&value.len()) && is_of_form
}

/// The known format parameters with valid values; `None` if there are none.
pub fn format_parameters(fmtp: &str) -> Option<String> {
    let known: Vec<&str> = fmtp.split(';').map(str::trim).filter(|item| may_pass_parameter(item)).collect();
    (!known.is_empty()).then(|| known.join("; "))
}

fn may_pass_parameter(item: &str) -> bool {
    let Some((name, value)) = item.split_once('=') else {
        // Events and redundant payload types have no name.
        let is_list = item.bytes().all(|byte| byte.is_ascii_digit() || b",-/".contains(&byte));
        return !item.is_empty() && (is_list || is_known(item));
    };
    let (name, value) = (name.trim(), value.trim());
    let has_points = WITH_POINTS.iter().any(|with| with.eq_ignore_ascii_case(name));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=,_-\"".contains(&byte);
    is_known(name) && value.bytes().all(|byte| is_plain(byte) || (has_points && b".:".contains(&byte)))
}

fn is_known(name: &str) -> bool {
    PARAMETERS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The media type, or a placeholder for others.
pub fn media(name: &str) -> &'static str {
    let name: String = name.chars().filter(char::is_ascii_alphabetic).collect();
    MEDIA.into_iter().find(|known| known.eq_ignore_ascii_case(&name)).unwrap_or("application")
}

/// An encoding name: only letters, digits and punctuation that these use (RFC 8866 section 9, token; those that media types use).
pub fn encoding(name: &str) -> String {
    let is_part = |char: &char| char.is_ascii_alphanumeric() || "-_.+".contains(*char);
    let name: String = name.chars().filter(is_part).take(ATTRIBUTE_BYTES_MAX).collect();
    if name.bytes().any(|byte| byte.is_ascii_alphabetic()) { name } else { "unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_players_need_pass_and_no_others() {
        for good in [
            "framerate:25",
            "framerate:29.970000",
            "x-dimensions: 1280, 720",
            "cliprect:0,0,1080,1920",
            "ptime:20",
            "framesize:96 640-360",
            "SdpLang:en-US",
        ] {
            assert!(may_pass(good), "{good}");
        }
        for bad in [
            "source-filter: incl IN IP4 232.1.1.1 10.0.0.1",
            "x-url:rtsp://camera/stream",
            "x-host:192.168.1.10:554",
            "x-host:127.1",
            "x-host:fe80::1",
            "framerate:127.0.0.1",
            "framerate:\u{ff11}\u{ff12}\u{ff17}.\u{ff11}",
            "framerate:\u{202e}52",
            "framerate:inf",
            "framerate:",
            "framerate",
            "lang:camera.example.org",
            "lang:fe80::1",
            "mediaclk:direct=0",
            "rtcp:5001 IN IP4 1.2.3.4",
            "tool:LIVE555",
            "control:trackID=1",
            "framerate:25\r\nm=video 0 RTP/AVP 1",
            &format!("lang:{}", "x".repeat(100)),
            "",
        ] {
            assert!(!may_pass(bad), "{bad}");
        }
    }

    #[test]
    fn format_parameters_pass_by_name_and_form() {
        for (given, passed) in [
            ("packetization-mode=1;profile-level-id=64000D;sprop-parameter-sets=Z2QADaw=,aOvjyw==", None),
            ("streamtype=5; profile-level-id=1; mode=AAC-hbr; config=1408; SizeLength=13; indexlength=3", None),
            ("sampling=YCbCr-4:2:2; width=1920; exactframerate=30000/1001; colorimetry=BT709", None),
            ("0-15,66,70", None),
            ("packetization-mode=1; x=127.1; host=camera; y", Some("packetization-mode=1")),
            ("config=10.0.0.1;profile=\u{ff11}27.1; mode=a\u{202e}b; bitrate=64000", Some("bitrate=64000")),
            ("profile-level-id=rtsp://127.1/", Some("")),
        ] {
            let expected = passed.map_or_else(|| given.replace("; ", ";").replace(';', "; "), str::to_owned);
            let got = format_parameters(given);
            assert_eq!(got.as_deref().unwrap_or_default(), expected, "{given}");
            assert_eq!(got.as_deref().and_then(format_parameters), got, "what has passed passes again");
        }
    }

    #[test]
    fn media_and_encodings_are_words() {
        assert_eq!(
            ["Video", "au\u{b}dio", "127.1", "\u{202e}text", ""].map(media),
            ["video", "audio", "application", "text", "application"]
        );
        for (name, shown) in [
            ("H264", "H264"),
            ("vnd.onvif.metadata", "vnd.onvif.metadata"),
            ("L\u{1}16", "L16"),
            ("127.1", "unknown"),
            ("\u{ff11}27.1", "unknown"),
            ("rtsp://x", "rtspx"),
        ] {
            assert_eq!(encoding(name), shown);
        }
        assert_eq!(encoding(&"x".repeat(1_000)).len(), ATTRIBUTE_BYTES_MAX);
    }

    #[test]
    fn the_lists_are_what_they_say() {
        assert!(PARAMETERS.iter().all(|name| *name == name.to_ascii_lowercase()));
        assert!(WITH_POINTS.iter().all(|name| is_known(name)));
    }
}
