//! The formats on the wire: RTSP, interleaved framing, RTP, RTCP, SDP. No input or output happens here.
#![forbid(unsafe_code)]

pub mod rtcp;
pub mod rtp;
