//! The formats on the wire: RTSP, interleaved framing, RTP, RTCP, SDP. No input or output happens here.
#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod fuzz;
pub mod interleaved;
pub mod rtcp;
pub mod rtp;
pub mod rtsp;
pub mod sdp;
pub mod transport;
