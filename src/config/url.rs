//! Parses the URL of a camera, with helpful errors.

use url::Url;

use super::bad_value::BadValue;
use crate::redact::{redact, without_userinfo};
use crate::source::camera::address::{CameraAddress, without_zone};

/// How to fix a user name or password that makes the URL invalid.
const ENCODE: &str =
    "percent-encode special characters in the user name or password (@ as %40, : as %3A, / as %2F, # as %23, ? as %3F)";

/// Parses `rtsp://[user[:password]@]host[:port]/path`.
///
/// # Errors
/// A sentence with the problem and the fix, without any secret of `text`.
pub fn camera(text: &str) -> Result<CameraAddress, BadValue> {
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err("a source's URL must not have spaces around it or control characters in it; remove them".into());
    }
    let shown = || redact(text);
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!(
            "{:?} is not a source; write a URL (\"rtsp://HOST/PATH\") or \"test\" for the built-in test pattern",
            redact(&without_userinfo(text))
        )
        .into());
    };
    match scheme.to_ascii_lowercase().as_str() {
        "rtsp" | "rtsps" => {}
        _ => {
            return Err(
                format!("{:?} is not an RTSP source; its URL must start with rtsp:// or rtsps://", shown()).into()
            );
        }
    }
    let url = Url::parse(&without_zone(text).0)
        .map_err(|error| format!("{:?} is not a valid URL: {error}; {ENCODE}", shown()))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{:?} has no host; write rtsp://HOST/PATH", shown()).into());
    }
    if url.fragment().is_some() {
        return Err(format!("{:?} has a part after \"#\", which is not sent to the camera; {ENCODE}", shown()).into());
    }
    if url.port() == Some(0) {
        return Err(format!("{:?} has port 0; write the camera's port, or none for 554", shown()).into());
    }
    // `rtsp://user:12/34@host/` is a valid URL with the host `user`, which nobody means.
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    if !authority.contains('@')
        && authority.rsplit(']').next().is_some_and(|port| port.contains(':'))
        && rest.contains('@')
    {
        return Err(format!("{:?} has its @ after a / or ?; {ENCODE}, and an @ of the path as %40", shown()).into());
    }
    CameraAddress::parse(text).map_err(|error| format!("{:?}: {error}", shown()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_ever_shown() {
        let secrets = [
            "rtsp://admin:hunter2@host/x",
            "rtsp://admin:hun@hunter2@host/x",
            "rtsp://admin:hunter2/@host/x",
            "rtsp://admin:12/hunter2@host/x",
            "rtsp://admin:12?hunter2@host/x",
            "rtsp://admin:#hunter2@host/x",
            "rtsp://admin:hunter2@",
            "rtsp://admin:hunter2@host:99999/x",
            "rtsp://admin:hunter2@host:port/x",
            "RTSP://admin:hunter2@host/x",
            "rtsps://admin:hunter2@host/x",
            "http://admin:hunter2@host/x",
            "rtsp://host/user=admin&password=hunter2&channel=1",
            "rtsp://host/user=admin_password=hunter2_channel=1_stream=0.sdp",
            "rtsp://host/x?pwd=hunter2&a=b",
            "rtsp://host/x?PassWord=hunter2",
            "rtsp://:hunter2@host/x",
            "rtsp://admin:%ff%68unter2hunter2@host/",
            " rtsp://admin:hunter2@host/x",
            "rtsp://admin:hun hunter2@host/x",
            "rtsp://admin:hun\"hunter2@host/x",
            "rtsp://host/x?pwd=hunter2:foo@y",
            "rtsp:/admin:hunter2@host/x",
            "admin:hunter2@host/x",
            "admin:12@hunter2@host/x",
            "error: unexpected argument 'admin:hunter2@host/x' found",
            "rtsp:admin:hunter2@host/x?password=a",
            "admin:hunter2?pwd=x@host/x",
            "192.0.2.10/ch0?user=admin&password=hunter2",
            "rtsp:/u:p@h/x?pwd=hunter2",
            "see 'rtsp://a:hunter2@b/' and rtsp://c:hunter2@d/.",
        ];
        for text in secrets {
            assert!(!redact(text).contains("hunter2"), "redact({text:?}) is {:?}", redact(text));
            match camera(text) {
                Ok(source) => {
                    let shown = format!("{source} {source:?}");
                    assert!(!shown.contains("hunter2"), "{text:?} is shown as {shown:?}");
                }
                Err(why) => assert!(!why.to_string().contains("hunter2"), "{text:?} is refused with {why:?}"),
            }
        }
        assert!(camera("rtsp://[::1]:554/a?b=c").is_ok() && camera("rtsp://u:p%40@[::1]/a@b").is_ok());
        assert_eq!(redact("no URL here: a@b"), "no URL here: a@b");
    }

    #[test]
    fn a_bad_url_is_refused_with_a_cure() {
        for (text, part) in [
            ("192.0.2.10/stream1", "rtsp://HOST/PATH"),
            ("rtsp:///stream1", "host"),
            ("http://h/", "start with rtsp://"),
            ("rtsp://h/a#b", "%23"),
            ("rtsp://h:0/a", "554"),
            (" rtsp://h/a", "spaces"),
            ("rtsp://u:p:q/a", "percent-encode"),
            ("rtsp://u:12/34@h/a", "%2F"),
        ] {
            let why = camera(text).expect_err(text);
            assert!(why.to_string().contains(part), "{text:?}: {why}");
        }
    }
}
