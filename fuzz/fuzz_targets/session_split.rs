//! A session says the same whatever pieces the bytes come in; the first byte says which.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let [step, bytes @ ..] = data {
        rtsprelay::session::fuzz::split(std::time::Instant::now(), bytes, usize::from(*step) + 1);
    }
});
