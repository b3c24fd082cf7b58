//! The behaviour of rtsprelay as seen from outside: the real binary, real players, real encoders and raw sockets.
//!
//! `tests/run` installs what these scenarios need. With `RTSPRELAY_TEST_IO=seccomp` in the environment every relay runs under
//! a filter that refuses `io_uring_setup`, so every scenario also runs with epoll. With `RTSPRELAY_TEST_ZERO_COPY=on` every
//! send to a TCP client is zero-copy (`RTSPRELAY_TEST_ZERO_COPY=on cargo test --test scenarios` runs all scenarios this way).

mod harness;

mod abuse;
mod attacks;
mod auth;
mod auth_url;
mod besieged;
mod bridges;
mod browser;
mod browser_cameras;
mod browser_list;
mod browser_rights;
mod browser_soak;
mod camera_quirks;
mod changes;
mod chaos;
mod codecs;
mod compose;
mod config;
mod container;
mod controls;
mod datagrams;
mod delivery;
mod exhaustion;
mod families;
mod fd_store;
mod first_keyframe;
mod hostile_camera;
mod io_blocked;
mod leaving;
mod limits;
mod links;
mod mid_frame;
mod names;
mod names_http;
mod names_many;
mod orchestration;
mod outages;
mod players;
mod printing;
mod protocol;
mod proxied;
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
mod tls_flood;
mod tree;
mod tshark;
mod upgrade;
mod upgrade_counts;
mod upgrade_datagrams;
mod upgrade_killed;
mod upgrade_logs;
mod upgrade_names;
mod upgrade_players;
mod upgrade_recorded;
mod upgrade_stop;
mod upgrade_tls;
mod upgrade_web;
mod zero_copy;
