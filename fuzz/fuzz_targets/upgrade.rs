//! Requests for WebSockets, of any path and headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::web::fuzz::request(data);
});
