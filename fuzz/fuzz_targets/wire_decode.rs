//! The RTSP decoder finds the same messages whatever pieces the bytes come in; the first byte says which.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let [step, bytes @ ..] = data
        && !bytes.is_empty()
    {
        rtsprelay::wire::fuzz::decode(bytes, usize::from(*step) + 1);
    }
});
