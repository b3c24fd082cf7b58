//! Formats on the wire: RTSP and its authentication, interleaved framing, RTP, RTCP, SDP, WebSocket frames, the PROXY protocol. No I/O
//! happens here.
#![forbid(unsafe_code)]

pub mod auth;
pub mod challenge;
#[cfg(feature = "testing")]
pub mod fuzz;
pub mod interleaved;
pub mod passed_on;
pub mod proxy_protocol;
pub mod relay_path;
pub mod rtcp;
pub mod rtp;
pub mod rtsp;
pub mod saved_bytes;
pub mod sdp;
pub mod transport;
pub mod websocket;
