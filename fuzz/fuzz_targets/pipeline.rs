//! Any packets through the pipeline, and any breaks of the source.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::source::fuzz::pipeline(data);
});
