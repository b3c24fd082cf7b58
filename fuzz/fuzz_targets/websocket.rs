//! WebSocket frames of clients, in any pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    rtsprelay::wire::fuzz::websocket(data);
});
