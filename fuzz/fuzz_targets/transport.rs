//! The Transport header.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::wire::fuzz::transports(data);
});
