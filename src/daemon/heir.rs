//! The new program's side of an upgrade: it gets ready beside the running relay, and takes everything over from it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::passed::{Before, HomesByName, check_streams};
use crate::config::Config;
use crate::egress::IoKind;
use crate::media::rendering::fmp4::Clock;
use crate::shard::types::SocketFds;
use crate::testing::Testing;
use crate::upgrade::{self, Answer, CarrierKnown, Channel, Hello, Purpose};

/// How long the running relay may take for each of its steps; longer than it waits itself.
const STEP_MAX: Duration = Duration::from_secs(60);

/// What this process was started with, to take over from a running relay.
pub(super) struct Heir {
    channel: Channel,
    hello: Hello,
    listeners: Vec<(Purpose, SocketAddr, OwnedFd)>,
    /// The UDP sockets, by shard.
    sockets: Vec<SocketFds>,
    /// The control connections of its carriers.
    controls: Vec<UnixStream>,
}

/// The shards' sockets, from the descriptors that come with them.
fn sockets(hello: &Hello, mut descriptors: impl Iterator<Item = OwnedFd>) -> Option<Vec<SocketFds>> {
    let mut all = Vec::new();
    for known in &hello.datagrams {
        let pair = if known.pair { Some((descriptors.next()?, descriptors.next()?)) } else { None };
        let group = |(name, group): &(String, SocketAddr)| Some((name.clone(), *group, descriptors.next()?));
        let groups = known.groups.iter().map(group).collect::<Option<_>>()?;
        all.push(SocketFds { pair, groups });
    }
    Some(all)
}

impl Heir {
    /// Hears what the running relay is like, if one has started this process.
    ///
    /// # Errors
    /// Why this process cannot take over.
    pub(super) fn find(testing: Testing) -> Result<Option<Heir>, Failure> {
        let Some(mut channel) = upgrade::taken_over() else { return Ok(None) };
        if let Some(file) = testing.recording() {
            channel.record(file);
        }
        channel.set_deadline(Instant::now() + STEP_MAX);
        let heard = channel.greeted().and_then(|_| channel.receive::<Hello>());
        let heard = heard.map_err(|error| format!("cannot take over from the running relay ({error})"))?;
        let (hello, mut descriptors) = (heard.message, heard.descriptors.into_iter());
        let listeners = hello.listeners.iter().zip(descriptors.by_ref());
        let listeners = listeners.map(|((purpose, address), socket)| (*purpose, *address, socket)).collect();
        let sockets = sockets(&hello, descriptors.by_ref())
            .ok_or("cannot take over from the running relay (descriptors are missing)")?;
        let controls = descriptors.map(UnixStream::from).collect();
        Ok(Some(Heir { channel, hello, listeners, sockets, controls }))
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

    /// The addresses of all listening sockets.
    pub(super) fn addresses(&self) -> &[(Purpose, SocketAddr)] {
        &self.hello.listeners
    }

    /// The listening sockets for a purpose.
    pub(super) fn listeners(&mut self, purpose: Purpose) -> Vec<std::net::TcpListener> {
        let taken = self.listeners.extract_if(.., |(of, ..)| *of == purpose);
        taken.map(|(.., socket)| socket.into()).collect()
    }

    /// The listening sockets that nobody has asked for.
    pub(super) fn unused(&mut self) -> Vec<(Purpose, SocketAddr, OwnedFd)> {
        std::mem::take(&mut self.listeners)
    }

    /// What its shards are continued with.
    ///
    /// # Errors
    /// As [`Heir::check`], or this process has too many descriptors.
    pub(super) fn before(&self, config: &Config, io: IoKind) -> Result<Before, Failure> {
        // Its sockets must not be put into the mode that another way of sending needs.
        self.check(config, io)?;
        let homes: HomesByName = self.hello.streams.iter().map(|stream| (stream.name.clone(), stream.home)).collect();
        let sockets = self.sockets.iter().map(SocketFds::try_clone).collect::<io::Result<_>>();
        let sockets = sockets.map_err(|error| format!("cannot take over the sockets ({error}); raise `ulimit -n`"))?;
        Ok(Before { homes, sockets })
    }

    /// The secret of its nonces, and when their time began.
    pub(super) fn nonces(&self) -> ([u8; 32], Instant) {
        let (secret, age) = self.hello.nonces;
        let now = Instant::now();
        (secret, now.checked_sub(Duration::from_nanos(age)).unwrap_or(now))
    }

    /// Its clock for browsers.
    pub(super) fn clock(&self) -> Option<Clock> {
        self.hello.clock.map(|(ns, unix)| Clock::new(upgrade::monotonic_at(ns), unix))
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
        self.check_groups(config)?;
        check_streams(config, &self.hello.streams)
    }

    /// Whether the multicast groups are the same.
    fn check_groups(&self, config: &Config) -> Result<(), Failure> {
        let goes_on = |name: &str, group: SocketAddr| {
            let of = config.streams.iter().find(|stream| stream.name == name);
            of.is_none_or(|stream| stream.multicast.as_ref().is_some_and(|multicast| multicast.group == group))
        };
        let mut known = self.hello.datagrams.iter().flat_map(|shard| &shard.groups);
        match known.find(|(name, group)| !goes_on(name, *group)) {
            None => Ok(()),
            Some((name, group)) => Err(format!(
                "the configuration has another multicast group for {name} than {group}; change it back, or restart"
            )
            .into()),
        }
    }

    /// Tells the running relay why this process cannot take over.
    pub(super) fn refuse(&mut self, why: &Failure) {
        // If it has ended, nobody needs to know.
        let _ = self.channel.send(&Answer::Refused(why.to_string()), &[], &[]);
    }
}
