//! The RTSP server's sessions: a state machine without sockets or a clock. Bytes and time go in, answers and events come out.
#![forbid(unsafe_code)]
