//! Answers of a camera, put in order for the RTSP library. It takes no origin without an address, no number past its type, no
//! header without a value, and gives a session up over each of them, though nothing of it matters to the media.
//!
//! Nobody is judged here: what cannot be understood is left out. Only a camera whose answers the library has refused is read
//! through this.

use std::fmt::Write as _;

/// The session's part of every description: the library looks at none of it but its form.
const SESSION: &str = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n";

/// The bytes of an answer's head with the empty line behind it, whatever ends its lines; none if it is not whole.
pub(super) fn head_end(buffer: &[u8]) -> Option<usize> {
    let mut line = 0;
    for (at, _) in buffer.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        if buffer[line..at].trim_ascii().is_empty() && line > 0 {
            return Some(at + 1);
        }
        line = at + 1;
    }
    None
}

/// An answer to the request numbered `cseq`, in order, and the bytes of its head. `sets_up`: the request was SETUP.
pub(super) fn answer(head: &[u8], body: &[u8], cseq: &str, sets_up: bool) -> (Vec<u8>, usize) {
    let text = readable(head);
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default();
    let mut out = format!("RTSP/1.0 {status} -\r\nCSeq: {cseq}\r\n");
    let mut describes = false;
    let mut transport = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let (name, value) = (name.trim(), value.trim());
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name) {
            continue;
        }
        let value = match name.to_ascii_lowercase().as_str() {
            // The number is known, the length follows, and where the media begin is what they say themselves.
            "cseq" | "content-length" | "rtp-info" => continue,
            "content-type" if value.to_ascii_lowercase().starts_with("application/sdp") => {
                describes = true;
                "application/sdp".to_owned()
            }
            "session" => session(value),
            "transport" => {
                transport = true;
                value.to_owned()
            }
            _ => value.replace('\r', " "),
        };
        if !value.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(out, "{name}: {value}\r\n");
        }
    }
    if sets_up && !transport && status.starts_with('2') {
        out.push_str("Transport: RTP/AVP/TCP;unicast\r\n");
    }
    // Some do not say what their description is.
    let described = (describes || body.trim_ascii_start().starts_with(b"v=")).then(|| description(&readable(body)));
    let body = described.as_deref().map_or(body, str::as_bytes);
    if !body.is_empty() {
        let _ = write!(out, "Content-Length: {}\r\n", body.len());
    }
    out.push_str("\r\n");
    let head = out.len();
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    (out, head)
}

/// Bytes as text without what no reader takes.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .filter(|c| matches!(c, '\t' | '\r' | '\n') || !c.is_control() && *c != char::REPLACEMENT_CHARACTER)
        .collect()
}

/// A session's number, and how long it lives if that can be understood.
fn session(value: &str) -> String {
    let mut parts = value.split(';').map(str::trim);
    let id = parts.next().unwrap_or_default();
    let seconds = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let digits = value.trim().split(|c: char| !c.is_ascii_digit()).next()?;
        name.trim().eq_ignore_ascii_case("timeout").then(|| digits.parse().ok()).flatten().filter(|s: &u32| *s > 0)
    });
    seconds.map_or_else(|| id.to_owned(), |seconds| format!("{id};timeout={seconds}"))
}

/// A description with what matters to media: its media, and all attributes.
fn description(text: &str) -> String {
    let mut out = SESSION.to_owned();
    // Those of a media that cannot be understood go with it.
    let mut is_kept = true;
    for line in text.lines() {
        match line.trim().split_once('=') {
            Some(("m", value)) => {
                let words: Vec<&str> = value.split_ascii_whitespace().collect();
                is_kept = words.len() >= 4;
                if is_kept {
                    let _ = write!(out, "m={} 0 {}\r\n", words[0], words[2..].join(" "));
                }
            }
            Some(("a", value)) if is_kept && !value.trim().is_empty() => {
                let _ = write!(out, "a={}\r\n", value.trim());
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(answer_text: &str, sets_up: bool) -> String {
        let bytes = answer_text.as_bytes();
        let end = head_end(bytes).expect("a whole head");
        let (out, head) = answer(&bytes[..end], &bytes[end..], "7", sets_up);
        assert!(out[..head].ends_with(b"\r\n\r\n"));
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_head_ends_with_an_empty_line_whatever_ends_its_lines() {
        for (text, end) in [
            ("RTSP/1.0 200 OK\r\nA: b\r\n\r\nbody", Some(25)),
            ("RTSP/1.0 200 OK\nA: b\n\nbody", Some(22)),
            ("RTSP/1.0 200 OK\nA: b\n \r\nbody", Some(24)),
            ("RTSP/1.0 200 OK\r\nA: b\r\n", None),
            ("", None),
        ] {
            assert_eq!(head_end(text.as_bytes()), end, "{text:?}");
        }
    }

    #[test]
    fn headers_that_are_out_of_order_are_put_right_or_left_out() {
        for (text, wanted) in [
            (
                "RTSP/1.0 200\nSession : 1 ; Timeout = 60.5\n\n",
                "RTSP/1.0 200 -\r\nCSeq: 7\r\nSession: 1;timeout=60\r\n\r\n",
            ),
            (
                "RTSP/1.1 200 OK\r\nCSeq: 9\r\nSession: a;timeout=0\r\n\r\n",
                "RTSP/1.0 200 -\r\nCSeq: 7\r\nSession: a\r\n\r\n",
            ),
            (
                "RTSP/1.0 200 OK\r\nRange:\r\nno header\r\nRTP-Info: seq=-1\r\nX y: z\r\n\r\n",
                "RTSP/1.0 200 -\r\nCSeq: 7\r\n\r\n",
            ),
            (
                "RTSP/1.0 200 OK\r\nServer: Caf\u{e9} \u{1}x\r\n\r\n",
                "RTSP/1.0 200 -\r\nCSeq: 7\r\nServer: Caf\u{e9} x\r\n\r\n",
            ),
            (
                "RTSP/1.0 401 No\r\nWWW-Authenticate: Digest realm=\"a\", nonce=\"b\"\r\nContent-Length: 2\r\n\r\nno",
                "RTSP/1.0 401 -\r\nCSeq: 7\r\nWWW-Authenticate: Digest realm=\"a\", nonce=\"b\"\r\nContent-Length: 2\r\n\r\nno",
            ),
        ] {
            assert_eq!(mended(text, false), wanted);
        }
        let setup = mended("RTSP/1.0 200 OK\r\nSession: 1\r\n\r\n", true);
        assert_eq!(setup, "RTSP/1.0 200 -\r\nCSeq: 7\r\nSession: 1\r\nTransport: RTP/AVP/TCP;unicast\r\n\r\n");
        assert!(!mended("RTSP/1.0 461 No\r\n\r\n", true).contains("Transport"));
    }

    /// Each line is of a camera that has been reported.
    #[test]
    fn of_a_description_the_media_and_their_attributes_are_kept() {
        let body = "v=0\r\no=- 99999999999999999999 1 IN IP4\nc=IN c=IN\ni=\nb=AS:-1\nt=99999999999999999999 0\na=control:*\n\
            \nrubbish\nm=video -1 RTP/AVP 96\nc=IN IP4\na=rtpmap:96 H264/90000\na=\na=control:trackID=0\nm=audio\na=control:x\n\
            m=audio 70000 RTP/AVP 0 8\na=recvonly\n";
        let text = format!("RTSP/1.0 200 OK\r\nContent-type: Application/SDP;x\r\nContent-Length: 1\r\n\r\n{body}");
        let (head, sdp) =
            mended(&text, false).split_once("\r\n\r\n").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert_eq!(
            head,
            format!("RTSP/1.0 200 -\r\nCSeq: 7\r\nContent-type: application/sdp\r\nContent-Length: {}", sdp.len())
        );
        let kept = "a=control:*\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n\
            m=audio 0 RTP/AVP 0 8\r\na=recvonly\r\n";
        assert_eq!(sdp, format!("{SESSION}{kept}"));
        assert!(sdp_types::Session::parse(sdp.as_bytes()).is_ok());
    }

    #[test]
    fn a_description_that_does_not_say_so_is_one() {
        assert!(mended("RTSP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nv=0\no=-\n", false).ends_with(SESSION));
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_becomes_an_answer(first in 0u8.., head in "RTSP/1[.]0 (200|4|)[ -~\r\n\u{e9}]{0,150}", body in "\r?\n\r?\n(v=0\n)?[$-~\n]{0,150}") {
            crate::source::fuzz::answers(&[&[first], head.as_bytes(), body.as_bytes()].concat());
        }
    }
}
