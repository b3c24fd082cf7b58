//! What a camera answers, in pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::source::fuzz::answers(data);
});
