//! RTP headers and RTCP compounds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::wire::fuzz::packets(data);
});
