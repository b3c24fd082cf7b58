//! Frames into fragments of MP4, of any packets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::media::rendering::fmp4::fuzz::fragments(data);
});
