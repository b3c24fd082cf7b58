//! What can be wrong with a camera, in words that name the fault and its cure.

use std::fmt;
use std::time::Duration;

use super::address::CameraAddress;
use crate::limits::CAMERA_SILENT_BYTES_MAX;

/// What a session with a camera was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connecting, and asking for the description (the RTSP library does both in one).
    Describe,
    /// Setting up a track.
    Setup,
    /// Asking for the media to begin.
    Play,
    /// Receiving media.
    Playing,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Describe => "DESCRIBE",
            Step::Setup => "SETUP",
            Step::Play => "PLAY",
            Step::Playing => "playing",
        })
    }
}

/// Why a session with a camera ended, or never began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The TCP connection was refused.
    Refused,
    /// The TCP connection failed in another way; the system's words.
    Unreachable(String),
    /// No TLS with the camera, or no trust in it.
    Tls(String),
    /// What is at the camera's port broke off the handshake, or speaks no TLS.
    NoTls(String),
    /// The camera did not answer.
    TimedOut(Step, Duration),
    /// The session played, but no packet came.
    Silent(Duration),
    /// More came than any camera has to say, and no packet.
    TooMuch(Step),
    /// 401. Whether the URL has credentials.
    Unauthorized(bool),
    /// Another status than 200.
    Status(u16, Step),
    /// 461 to SETUP.
    NoTransport {
        /// Whether datagrams were asked for.
        udp: bool,
    },
    /// What came is not RTSP.
    NotRtsp(String),
    /// Packets carry another SSRC than before.
    ChangedSsrc,
    /// Packets carry another SSRC than the answer to SETUP announced.
    WrongSsrc,
    /// A packet that is no RTP; the RTSP library's words.
    BadPacket(String),
    /// No answer to a keep-alive request.
    NoKeepAlive,
    /// Packets came in another order than their sequence numbers, over TCP.
    Disordered,
    /// The camera closed the connection.
    Closed(Step),
    /// The publisher went; why.
    PublisherGone(String),
    /// The description has no track that could be set up.
    NoTracks,
    /// Anything else; the RTSP library's words.
    Other(Step, String),
}

impl Fault {
    /// The fault behind an error of the RTSP library, which tells its errors apart only by status and text.
    pub(super) fn from_retina(error: &retina::Error, step: Step, address: &CameraAddress) -> Fault {
        let text = error.to_string();
        // The first line has the reason, the others name the connection.
        let line: String = text.lines().next().unwrap_or_default().chars().take(300).collect();
        let line = address.redact(&line);
        match error.status_code() {
            Some(401) => return Fault::Unauthorized(address.has_credentials()),
            // A good status with an answer that the library can't use; its words say what is wrong with it.
            Some(200..300) | None => {}
            Some(status) => return Fault::Status(status, step),
        }
        if let Some(reason) = line.strip_prefix("Unable to connect to RTSP server: ") {
            return if reason.starts_with("Connection refused") {
                Fault::Refused
            } else {
                Fault::Unreachable(reason.to_owned())
            };
        }
        if line.starts_with("wrong ssrc after 0 RTP pkts") {
            return Fault::WrongSsrc;
        }
        if line.starts_with("wrong ssrc") {
            return Fault::ChangedSsrc;
        }
        if line.starts_with("Out-of-order packet or large loss") {
            return Fault::Disordered;
        }
        if let Some(reason) = line.strip_prefix("corrupt RTP header") {
            return Fault::BadPacket(reason.rsplit(": ").next().unwrap_or(reason).trim_matches('"').to_owned());
        }
        let reading = line.strip_prefix("Error reading from RTSP peer: ");
        let writing = line.strip_prefix("Error writing to RTSP peer: ");
        if let Some(reason) = reading.or(writing)
            && ["EOF", "Connection reset", "Broken pipe"].iter().any(|start| reason.starts_with(start))
        {
            return Fault::Closed(step);
        }
        if reading.or(writing).is_some_and(|reason| reason.contains("keepalive")) {
            return Fault::NoKeepAlive;
        }
        if let Some(reason) = line.strip_prefix("RTSP framing error: ")
            && reason.starts_with("Invalid RTSP message")
        {
            return Fault::NotRtsp(reason.trim_end_matches("; buffered:").to_owned());
        }
        Fault::Other(step, line)
    }

    /// Whether the camera is not there, as while it restarts; as opposed to one that refuses.
    pub fn is_absence(&self) -> bool {
        matches!(self, Fault::Refused | Fault::Unreachable(_) | Fault::Closed(_))
    }

    /// Whether an answer is not in the form that the RTSP library takes, which may be cured by putting it in order
    /// ([`mend`](super::mend)).
    pub(super) fn is_of_form(&self) -> bool {
        match self {
            // Not one that was never read.
            Fault::Other(Step::Describe | Step::Setup | Step::Play, reason) => {
                !["Error reading", "Error writing"].iter().any(|start| reason.starts_with(start))
            }
            Fault::Other(Step::Playing, reason) => reason.contains("Unexpected RTSP response"),
            Fault::NotRtsp(reason) => ["response >", "status-line"].iter().any(|part| reason.contains(part)),
            _ => false,
        }
    }

    /// Whether a new session is likely to cure it at once: the library ends the session over something that the camera does
    /// once, as when it restarts its encoder.
    pub fn cured_by_reconnect(&self) -> bool {
        matches!(self, Fault::ChangedSsrc | Fault::WrongSsrc | Fault::Disordered)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Refused => write!(
                f,
                "connection refused: nothing listens there; check host and port, and that RTSP is switched on in the camera"
            ),
            Fault::Unreachable(reason) => write!(f, "cannot connect: {reason}; check host, network and firewall"),
            Fault::NoTls(reason) => write!(
                f,
                "no TLS connection: {reason}; see that the URL has the port of the camera's RTSPS ({} without one). A port that \
                 speaks no TLS wants rtsp://, which encrypts nothing",
                super::tunnel::PORT
            ),
            Fault::Tls(reason) => write!(
                f,
                "no TLS connection: {reason}; name the authority that signed the camera's certificate (tls_ca), or the \
                 certificate itself (tls_fingerprint)"
            ),
            Fault::TimedOut(Step::Describe, limit) => write!(
                f,
                "no answer to connecting and DESCRIBE within {} s; check that the camera is up, and the firewall",
                limit.as_secs_f32()
            ),
            Fault::TimedOut(step, limit) => {
                write!(f, "no answer to {step} within {} s", limit.as_secs_f32())
            }
            Fault::Silent(limit) => {
                write!(f, "the camera sent no media for {} s, though the connection stands", limit.as_secs_f32())
            }
            Fault::TooMuch(step) => write!(
                f,
                "{step}: the camera sent {} MiB without a packet or the end of an answer; check that the URL is a camera's",
                CAMERA_SILENT_BYTES_MAX / (1024 * 1024)
            ),
            Fault::Unauthorized(true) => {
                write!(f, "401: the camera refuses the user name and password in the URL")
            }
            Fault::Unauthorized(false) => {
                write!(f, "401: the camera wants a user name and a password; write rtsp://USER:PASSWORD@HOST/…")
            }
            Fault::Status(403, step) => {
                write!(f, "403 to {step}: the camera does not let this user see the stream")
            }
            Fault::Status(404, step) => {
                write!(f, "404 to {step}: the camera has no stream under this path; check the URL's path")
            }
            Fault::Status(status @ (453 | 503), step) => {
                write!(f, "{status} to {step}: the camera is busy; it may serve no further client, or not be ready yet")
            }
            Fault::NoTransport { udp: false } => write!(
                f,
                "461 to SETUP: the camera does not offer RTP over TCP; write transport = \"udp\", or \"auto\" for both"
            ),
            Fault::NoTransport { udp: true } => write!(
                f,
                "461 to SETUP: the camera does not offer RTP over UDP; write transport = \"tcp\", or \"auto\" for both"
            ),
            Fault::Status(status, step) => write!(f, "the camera answers {status} to {step}"),
            Fault::NotRtsp(reason) => write!(f, "what the camera sends is not RTSP ({reason}); check the port"),
            Fault::ChangedSsrc => write!(f, "the camera changed its SSRC in mid-session"),
            Fault::WrongSsrc => write!(f, "the camera sends another SSRC than its answer to SETUP announced"),
            Fault::BadPacket(reason) => write!(f, "the camera sent a packet that is not RTP ({reason})"),
            Fault::NoKeepAlive => write!(f, "the camera does not answer the requests that keep its session alive"),
            Fault::Disordered => {
                write!(f, "the camera's packets came out of order over TCP, or their numbers began again")
            }
            Fault::Closed(Step::Playing) => write!(f, "the camera closed the connection"),
            Fault::Closed(step) => write!(f, "the camera closed the connection instead of answering {step}"),
            Fault::PublisherGone(why) => write!(f, "the publisher is gone: {why}; waiting for the next one"),
            Fault::NoTracks => write!(f, "the camera's description has no track that can be played"),
            Fault::Other(step, reason) => write!(f, "{step} failed: {reason}"),
        }
    }
}
