//! The PROXY protocol's header.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::wire::fuzz::proxy_headers(data);
    rtsprelay::wire::fuzz::proxy_header_lengths(data);
    rtsprelay::daemon::fuzz::proxy_headers(data);
});
