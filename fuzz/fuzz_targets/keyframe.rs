//! The search for keyframes, in any payload.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::media::codec::fuzz(data);
});
