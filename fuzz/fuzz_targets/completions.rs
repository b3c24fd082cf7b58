//! A shard's operations complete in any order, whole, short, failed or cancelled.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::shard::fuzz::completions(std::time::Instant::now(), data);
});
