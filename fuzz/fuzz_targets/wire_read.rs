//! The readers of RTP, RTCP, SDP and Transport.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::wire::fuzz::read(data);
});
