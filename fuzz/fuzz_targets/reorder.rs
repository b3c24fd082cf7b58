//! A publisher's packets in any order.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::source::fuzz::reorder(data);
});
