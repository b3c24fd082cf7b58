//! What publishers announce, set up and send, in any order.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::session::fuzz_publish::publishers(std::time::Instant::now(), data);
});
