//! The new program's side of an upgrade: it gets ready beside the running relay, and takes everything over from it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::passed::{HomesByName, source_text};
use crate::config::Config;
use crate::egress::IoKind;
use crate::upgrade::{self, Answer, CarrierKnown, Channel, Hello, Purpose};

/// How long the running relay may take for each of its steps; longer than it waits itself.
const STEP_MAX: Duration = Duration::from_secs(60);

/// What this process was started with, to take over from a running relay.
pub(super) struct Heir {
    channel: Channel,
    hello: Hello,
    listeners: Vec<(Purpose, SocketAddr, OwnedFd)>,
    /// The control connections of its carriers.
    controls: Vec<UnixStream>,
}

impl Heir {
    /// Hears what the running relay is like, if one has started this process.
    ///
    /// # Errors
    /// Why this process cannot take over.
    pub(super) fn find() -> Result<Option<Heir>, Failure> {
        let Some(mut channel) = upgrade::taken_over() else { return Ok(None) };
        channel.set_deadline(Instant::now() + STEP_MAX);
        let heard = channel.greeted().and_then(|_| channel.receive::<Hello>());
        let heard = heard.map_err(|error| format!("cannot take over from the running relay ({error})"))?;
        let mut descriptors = heard.descriptors.into_iter();
        let listeners = heard.message.listeners.iter().zip(&mut descriptors);
        let listeners = listeners.map(|((purpose, address), socket)| (*purpose, *address, socket)).collect();
        let controls = descriptors.map(UnixStream::from).collect();
        Ok(Some(Heir { channel, hello: heard.message, listeners, controls }))
    }

    /// After the commit: its carriers and what controls them, oldest first, and itself as the last, because it may become one.
    pub(super) fn into_carriers(self) -> impl Iterator<Item = (CarrierKnown, UnixStream)> {
        let itself = (CarrierKnown { pid: self.hello.pid, connections: 0 }, self.channel.into_socket());
        self.hello.carriers.into_iter().zip(self.controls).chain([itself])
    }

    /// The channel to it.
    pub(super) fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// The listening sockets for a purpose.
    pub(super) fn listeners(&mut self, purpose: Purpose) -> Vec<std::net::TcpListener> {
        let taken = self.listeners.extract_if(.., |(of, ..)| *of == purpose);
        taken.map(|(.., socket)| socket.into()).collect()
    }

    /// The homes of its streams.
    pub(super) fn homes(&self) -> HomesByName {
        self.hello.streams.iter().map(|stream| (stream.name.clone(), stream.home)).collect()
    }

    /// The secret of its nonces, and when their time began.
    pub(super) fn nonces(&self) -> ([u8; 32], Instant) {
        let (secret, age) = self.hello.nonces;
        let now = Instant::now();
        (secret, now.checked_sub(Duration::from_nanos(age)).unwrap_or(now))
    }

    /// How other relays know it.
    pub(super) fn id(&self) -> Arc<str> {
        self.hello.id.as_str().into()
    }

    /// Whether a relay with this configuration can continue what there is.
    ///
    /// # Errors
    /// Why not, and the cure.
    pub(super) fn check(&self, config: &Config, io: IoKind) -> Result<(), Failure> {
        if config.shards() != self.hello.shards {
            return Err(format!(
                "it would have {} shards instead of {}; set workers = {}, or restart",
                config.shards(),
                self.hello.shards,
                self.hello.shards
            )
            .into());
        }
        if (io == IoKind::Uring) != self.hello.uring {
            return Err("it would send in another way (`io`); restart instead".into());
        }
        let goes_on = |name: &str, source: &str| {
            config.streams.iter().any(|stream| stream.name == name && source_text(stream) == source)
        };
        let others = self.hello.streams.iter().filter(|stream| !goes_on(&stream.name, &stream.source));
        let others: Vec<&str> = others.map(|stream| stream.name.as_str()).collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(format!(
            "the configuration has other streams than the running relay, or other sources for them ({}); reload it first (SIGHUP)",
            others.join(", ")
        )
        .into())
    }

    /// Tells the running relay why this process cannot take over.
    pub(super) fn refuse(&mut self, why: &Failure) {
        // If it has ended, nobody needs to know.
        let _ = self.channel.send(&Answer::Refused(why.to_string()), &[], &[]);
    }
}
