//! The readers of credentials and challenges.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::wire::fuzz::authorization(data);
});
