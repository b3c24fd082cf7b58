//! What rtsprelay does, seen from outside: the real binary, real players, real encoders and raw sockets.
//!
//! `tests/run` installs what these scenarios need. With `RTSPRELAY_TEST_IO=seccomp` in the environment every relay runs under
//! a filter that refuses `io_uring_setup`, so that all of them are seen on epoll too. With `RTSPRELAY_TEST_ZERO_COPY=on` every
//! send to a TCP client is a zero-copy one (`RTSPRELAY_TEST_ZERO_COPY=on cargo test --test scenarios` runs all of them so).

mod harness;

mod attacks;
mod auth;
mod changes;
mod chaos;
mod codecs;
mod config;
mod controls;
mod datagrams;
mod delivery;
mod exhaustion;
mod families;
mod first_keyframe;
mod hostile_camera;
mod io_blocked;
mod limits;
mod links;
mod mid_frame;
mod players;
mod protocol;
mod publishers;
mod quirks;
mod readme;
mod reconnect;
mod reload;
mod seeing;
mod slow_client;
mod sources;
mod stopping;
mod subset;
mod syslog;
mod terminal;
mod tls;
mod tshark;
mod zero_copy;
