//! A session gives the same answers however the bytes are split; the first byte says how.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let [step, bytes @ ..] = data {
        rtsprelay::session::fuzz::split(std::time::Instant::now(), bytes, usize::from(*step) + 1);
    }
});
