//! The formats on the wire: RTSP and its authentication, interleaved framing, RTP, RTCP, SDP. No input or output happens here.
#![forbid(unsafe_code)]

pub mod auth;
#[doc(hidden)]
pub mod fuzz;
pub mod interleaved;
pub mod rtcp;
pub mod rtp;
pub mod rtsp;
pub mod sdp;
pub mod transport;
