//! A session whose every PLAY is answered at once; the first byte says in which pieces the others come.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let [step, bytes @ ..] = data {
        rtsprelay::session::fuzz::conversation(std::time::Instant::now(), bytes, usize::from(*step) + 1);
    }
});
