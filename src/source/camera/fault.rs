//! What can go wrong with a camera, as messages that name the cause and the fix.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::limits::{CAMERA_PIECES_PER_S_MAX, CAMERA_REDIRECTS_MAX, CAMERA_SILENT_BYTES_MAX};
use crate::wire::rtsp::SECURE_PORT;

/// The step that a session was at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connecting and DESCRIBE.
    Describe,
    /// Setting up a track.
    Setup,
    /// PLAY.
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

/// Why a session with a camera ended, or could not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The TCP connection was refused.
    #[error("connection refused: nothing listens there; check host and port, and that RTSP is enabled in the camera")]
    Refused,
    /// The TCP connection failed for another reason, in the system's words.
    #[error("cannot connect: {0}; check host, network and firewall")]
    Unreachable(String),
    /// TLS failed, or the certificate is not trusted.
    #[error(
        "no TLS connection: {0}; set tls_ca to the CA that signed the camera's certificate, or tls_fingerprint to the certificate's own"
    )]
    Tls(String),
    /// The server at the camera's port closed the connection during the handshake, or does not use TLS.
    #[error(
        "no TLS connection: {0}; check that the URL has the camera's RTSPS port (default {SECURE_PORT}). For a port without TLS use rtsp://, which is not encrypted"
    )]
    NoTls(String),
    /// The camera did not answer.
    #[error("{}", no_answer(*.0, *.1))]
    TimedOut(Step, Duration),
    /// The session played, but no packet arrived.
    #[error("{}", no_media(*limit, *from))]
    Silent {
        /// For this long.
        limit: Duration,
        /// Datagrams from this address were ignored.
        from: Option<IpAddr>,
    },
    /// It sent more than any camera needs to, besides packets.
    #[error("{}: the camera sent {} MiB without a packet or the end of an answer, or more than {CAMERA_PIECES_PER_S_MAX} useless messages a second; check that the URL is a camera's", .0, CAMERA_SILENT_BYTES_MAX / (1024 * 1024))]
    TooMuch(Step),
    /// 401.
    #[error("401: the camera {}", if *given { "refuses the user name and password in the URL" } else { "requires a user name and a password; write rtsp://USER:PASSWORD@HOST/…" })]
    Unauthorized {
        /// Whether the URL has a user name and a password, which were refused.
        given: bool,
    },
    /// 401 to a Digest, from a camera that also offers Basic, which may not be used.
    #[error(
        "401: the camera refuses the Digest of the user name and password in the URL; some cameras that also offer Basic accept only that: basic = true in the stream allows it, and sends the password in clear"
    )]
    BasicWanted,
    /// 401 without a challenge that could be answered.
    #[error("401: the camera requires an authentication scheme other than Digest (MD5, SHA-256) and Basic")]
    NoChallenge,
    /// Another status than 200.
    #[error("{}", refusal(*.0, *.1))]
    Status(u16, Step),
    /// 461 to SETUP.
    #[error("461 to SETUP: the camera does not offer RTP over {}; write transport = \"{}\", or \"auto\" for both", if *udp { "UDP" } else { "TCP" }, if *udp { "tcp" } else { "udp" })]
    NoTransport {
        /// Whether UDP was requested.
        udp: bool,
    },
    /// It sent something that is not RTSP; the first bytes, printable.
    #[error("the camera sent something that is not RTSP (\"{0}\"); check the port")]
    NotRtsp(String),
    /// The camera closed the connection.
    #[error("the camera closed the connection{}", instead_of(*.0))]
    Closed(Step),
    /// The camera sent TEARDOWN.
    #[error("the camera ended the session (TEARDOWN)")]
    Left,
    /// The publisher went; why.
    #[error("the publisher is gone: {0}; waiting for the next one")]
    PublisherGone(String),
    /// The description has no usable track.
    #[error("the camera's description has no track that can be played")]
    NoTracks,
    /// A redirect that is not followed, and why.
    #[error("the camera redirects to {0}")]
    Redirect(String),
    /// More redirects than are followed.
    #[error("the camera redirected more than {CAMERA_REDIRECTS_MAX} times; configure the final URL")]
    Redirects,
    /// No sockets for datagrams, in the system's words.
    #[error("no UDP ports for the camera's media: {0}")]
    NoPorts(String),
    /// Relays that pull the stream from each other in a loop that includes this one: their ids.
    #[error(
        "loop: {0}: these relays, including this one, pull the stream from each other; give one of them the stream's real source"
    )]
    Loop(String),
}

/// How a fault affects the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The camera is unreachable, such as during a restart.
    Absent,
    /// Something answers in place of the camera and has no stream at present.
    Unready,
    /// The password was refused: each further attempt may lock out the address.
    Refused,
    /// Anything else.
    Other,
}

impl Fault {
    /// How the fault affects the next attempt.
    pub fn retry(&self) -> Retry {
        match self {
            Fault::Refused | Fault::Unreachable(_) | Fault::Closed(_) => Retry::Absent,
            Fault::Status(404 | 453 | 500 | 503, _) => Retry::Unready,
            Fault::Unauthorized { given: true } | Fault::BasicWanted => Retry::Refused,
            _ => Retry::Other,
        }
    }
}

/// The message for a step that was not answered.
fn no_answer(step: Step, limit: Duration) -> String {
    let limit = limit.as_secs_f32();
    match step {
        Step::Describe => format!(
            "no answer to connecting and DESCRIBE within {limit} s; check that the camera is up, and check the firewall"
        ),
        step => format!("no answer to {step} within {limit} s"),
    }
}

/// The message for a session in which no packet arrived.
fn no_media(limit: Duration, from: Option<IpAddr>) -> String {
    let limit = limit.as_secs_f32();
    match from {
        None => format!("the camera sent no media for {limit} s, although the connection is open"),
        Some(from) => format!(
            "no media from the camera's address for {limit} s, but from {from}; write udp_from = \"{from}\" if that is also \
             the camera"
        ),
    }
}

/// The message for a status other than 200.
fn refusal(status: u16, step: Step) -> String {
    match status {
        403 => format!("403 to {step}: the camera does not allow this user to see the stream"),
        404 => format!("404 to {step}: the camera has no stream under this path; check the URL's path"),
        453 | 503 => {
            format!("{status} to {step}: the camera is busy; it may serve no more clients, or not be ready yet")
        }
        _ => format!("the camera answers {status} to {step}"),
    }
}

/// What the camera did not answer before it closed the connection.
fn instead_of(step: Step) -> String {
    match step {
        Step::Playing => String::new(),
        step => format!(" instead of answering {step}"),
    }
}
