//! The RTSP decoder finds the same messages whatever pieces the bytes come in.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::wire::fuzz::requests(data);
});
