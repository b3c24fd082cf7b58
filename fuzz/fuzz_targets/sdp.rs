//! A camera's or publisher's description, and the one that is made of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::media::sdp::fuzz(std::time::Instant::now(), data);
});
