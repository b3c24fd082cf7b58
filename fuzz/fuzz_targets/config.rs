//! A configuration is read or refused; no text is too odd.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = rtsprelay::config::Config::from_toml(text);
    }
});
