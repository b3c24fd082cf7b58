//! The running relay's side of an upgrade: it starts the program that now lies at its path, and hands everything over to it.
//!
//! Whatever goes wrong before the commit, the relay takes everything back and goes on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout, timeout_at};
use tracing::{error, info, warn};

use super::carrying::Carrying;
use super::console::Console;
use super::failure::Failure;
use super::passed::source_text;
use super::{FLUSH_MAX, Relay, ask_upgrade, fold};
use crate::egress::IoKind;
use crate::limits::STOP_MAX_MS;
use crate::shard::core::Uncarried;
use crate::shard::inbox::ToShard;
use crate::shard::saved::{Carrier, Freezing, HandOver, SavedClients, Saving};
use crate::shard::thread::ShardHandle;
use crate::upgrade::{self, Answer, Channel, Frozen, Hello, Ready, StreamKnown, Taken};

/// How long the other program may take to check its configuration and to start its threads.
const START_MAX: Duration = Duration::from_secs(30);

/// How long clients may be served nothing.
const FREEZE_MAX: Duration = Duration::from_secs(5);

/// How long HTTP requests in progress may take; idle connections are closed at once.
const PAGES_MAX: Duration = Duration::from_secs(2);

/// Maximum number of rounds in which messages between shards come to rest.
const ROUNDS_MAX: usize = 64;

/// How long a shard may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Interval of checks whether the shards have ended.
const END_STEP: Duration = Duration::from_millis(2);

/// What was handed over.
struct Handed {
    clients: SavedClients,
    /// How long the clients were served nothing.
    frozen: Duration,
    /// The socket pair's end, after the commit.
    control: UnixStream,
}

/// The clients were served nothing from then on.
struct Rest {
    begun: Instant,
    reference: Instant,
}

impl Relay {
    /// Hands everything over and ends the process; or logs why not, and returns `None`. Returns what leads to the new process if this one
    /// has to carry TLS connections on for it, and nothing else.
    pub(super) async fn hand_over(&mut self) -> Option<UnixStream> {
        let begun = Instant::now();
        let (told, control) = match self.try_hand_over(begun).await {
            Ok((told, control)) => (Ok(told), control),
            Err(why) => (Err(why), None),
        };
        ask_upgrade::tell(&told);
        match told {
            Ok(_) if control.is_some() => {}
            Ok(_) => {
                Console::get().flush(FLUSH_MAX);
                // Not a stop: whatever is still open here is open there as well, and is neither shut down nor flushed.
                std::process::exit(0);
            }
            Err(why) => error!("the upgrade was not done, and nothing has changed: {why}"),
        }
        control
    }

    /// Returns what is to be told, and what leads to the new process if there is something to carry on for it.
    async fn try_hand_over(&mut self, begun: Instant) -> Result<(String, Option<UnixStream>), Failure> {
        if let Some(why) = ends_with_this_process() {
            return Err(why.into());
        }
        let program = self.passing.program.clone().ok_or("the path of the program is unknown; restart instead")?;
        self.can_hand_over().await?;
        info!(program = %program.display(), "upgrading: starting the new program");
        let channel = upgrade::start(&program).map_err(|error| {
            format!("{} cannot be started ({error}); install the new program there", program.display())
        })?;
        let (channel, ready) = self.introduce(channel).await?;
        let started = begun.elapsed();
        self.passing.ending.send_replace(true);
        self.passing.valve.close();
        let done = self.freeze_and_send(channel, &ready).await;
        if done.is_err() {
            for shard in self.shards.iter() {
                shard.tell(ToShard::HandOver(Box::new(HandOver::Thaw)));
            }
            self.passing.valve.open();
            self.passing.ending.send_replace(false);
        }
        let Handed { clients: SavedClients { all: clients, carried }, frozen, control } = done?;
        let (start_ms, frozen_ms) = (started.as_millis() as u64, frozen.as_millis() as u64);
        info!(pid = ready.pid, version = %ready.version, clients, carried, start_ms, frozen_ms, "handed over to the new program");
        // The service manager listens only to its main process, which is still this one.
        self.notifier.tell(&format!("MAINPID={}", ready.pid));
        fold::tell_all_left_out();
        let mut told = format!(
            "handed over to process {} (version {}): {clients} connections, which were served nothing for {frozen_ms} ms",
            ready.pid, ready.version
        );
        if carried == 0 {
            return Ok((told, None));
        }
        told += &format!(
            "; {carried} of them use TLS, and process {} stays to carry their bytes until they end",
            std::process::id()
        );
        Ok((told, Some(control)))
    }

    /// Drops everything but the TLS connections, without a word to clients or cameras, because another process has them. `control`
    /// leads to that. `None` if there is no TLS.
    pub(super) async fn leave_all_to(
        mut self,
        control: UnixStream,
        handles: Vec<ShardHandle>,
        mut tasks: JoinSet<()>,
    ) -> Option<Carrying> {
        let tls = self.tls.take()?;
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        for shard in self.shards.iter() {
            shard.tell(ToShard::HandOver(Box::new(HandOver::End)));
        }
        let deadline = Instant::now() + Duration::from_millis(STOP_MAX_MS);
        while handles.iter().any(|handle| !handle.thread.is_finished()) && Instant::now() < deadline {
            sleep(END_STEP).await;
        }
        for (shard, _) in handles.iter().enumerate().filter(|(_, handle)| !handle.thread.is_finished()) {
            warn!(shard, "a shard did not end in time; its thread is abandoned");
        }
        Some(Carrying::new(tls.carry_on(), control))
    }

    /// Whether everything that there is can be handed over. Nothing has been touched.
    async fn can_hand_over(&self) -> Result<(), Failure> {
        let made: Vec<&str> = self
            .streams
            .configs()
            .filter(|stream| stream.made || stream.added)
            .map(|stream| stream.name.as_str())
            .collect();
        if !made.is_empty() {
            let made = made.join(", ");
            return Err(format!(
                "streams that are not in the configuration cannot be handed over yet ({made}); wait until they are gone, or restart"
            )
            .into());
        }
        let mut found = Uncarried::default();
        for shard in self.shards.iter() {
            let (reply, answer) = oneshot::channel();
            shard.tell(ToShard::HandOver(Box::new(HandOver::Survey(reply))));
            let answer = timeout(ANSWER_MAX, answer).await.ok().and_then(Result::ok);
            found.add(answer.ok_or("a shard does not answer; restart instead")?);
        }
        match found.told() {
            Some(told) => {
                Err(format!("these cannot be handed over yet ({told}); wait until they are gone, or restart").into())
            }
            None => Ok(()),
        }
    }

    /// Tells the other process what there is, and waits until it is ready.
    async fn introduce(&self, mut channel: Channel) -> Result<(Channel, Ready), Failure> {
        let (carriers, controls) = self.passing.carriers.passed_on().map_err(|error| error.to_string())?;
        let hello = Hello {
            shards: self.shards.len(),
            uring: self.passing.io == IoKind::Uring,
            streams: self.streams.known(),
            listeners: self.passing.listening.iter().map(|listening| (listening.purpose, listening.address)).collect(),
            nonces: self.doors.secret(),
            id: self.id.to_string(),
            pid: std::process::id(),
            carriers,
        };
        let sockets = self.passing.listening.iter().map(|listening| listening.socket.try_clone());
        let sockets = sockets.chain(controls.into_iter().map(Ok)).collect::<io::Result<Vec<OwnedFd>>>();
        let sockets = sockets.map_err(|error| error.to_string())?;
        let asked = spawn_blocking(move || {
            channel.set_deadline(Instant::now() + START_MAX);
            channel.greet()?;
            let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
            channel.send(&hello, &[], &descriptors)?;
            let answer = channel.receive::<Answer>()?.message;
            Ok::<_, io::Error>((channel, answer))
        });
        let asked = asked.await.map_err(|error| error.to_string())?;
        let (channel, answer) =
            asked.map_err(|error| format!("the new program was not ready ({error}); its messages say why"))?;
        match answer {
            Answer::Ready(ready) => Ok((channel, ready)),
            Answer::Refused(why) => Err(format!("the new program cannot take over: {why}").into()),
        }
    }

    /// From the freeze to the commit.
    async fn freeze_and_send(&mut self, channel: Channel, ready: &Ready) -> Result<Handed, Failure> {
        let control = channel.to_socket().map_err(|error| error.to_string())?;
        let pages = Instant::now() + PAGES_MAX;
        while self.passing.ending.receiver_count() > 0 && Instant::now() < pages {
            sleep(Duration::from_millis(1)).await;
        }
        let cut_off = self.passing.ending.receiver_count();
        if cut_off > 0 {
            info!(connections = cut_off, "HTTP connections that last longer are closed with the upgrade");
        }
        let rest = self.freeze().await?;
        let deadline = rest.begun + FREEZE_MAX;
        let channel = Arc::new(Mutex::new(channel));
        let frozen = Frozen { reference_ns: upgrade::monotonic_ns(rest.reference), shards: self.shards.len() };
        let lost = |error: io::Error| Failure::from(format!("the new program (pid {}) failed ({error})", ready.pid));
        on(&channel, |channel| {
            channel.set_deadline(deadline);
            channel.send(&frozen, &[], &[])
        })
        .map_err(lost)?;
        let mut clients = SavedClients::default();
        for (number, shard) in self.shards.iter().enumerate() {
            let (reply, answer) = oneshot::channel();
            let carrier = carrier(Arc::clone(&channel));
            shard.tell(ToShard::HandOver(Box::new(HandOver::Save(Saving {
                reference: rest.reference,
                carrier,
                reply,
            }))));
            let saved = timeout_at((deadline + ANSWER_MAX).into(), answer).await.ok().and_then(Result::ok);
            let saved = saved
                .unwrap_or_else(|| Err("it does not answer".into()))
                .map_err(|why| format!("shard {number} was not handed over: {why}; try again"))?;
            clients.all += saved.all;
            clients.carried += saved.carried;
        }
        let taking = Arc::clone(&channel);
        let taken = spawn_blocking(move || on(&taking, |channel| channel.receive::<Taken>()));
        taken.await.map_err(|error| error.to_string())?.map_err(lost)?;
        on(&channel, Channel::commit).map_err(lost)?;
        Ok(Handed { clients, frozen: rest.begun.elapsed(), control })
    }

    /// Brings all shards to rest: nothing is sent or read, nothing is in flight, and no message is on its way between them.
    async fn freeze(&self) -> Result<Rest, Failure> {
        let begun = Instant::now();
        let deadline = begun + FREEZE_MAX / 2;
        let reference = begun;
        // A source's answer to a publisher does not count as a message, but it is there one round later.
        let mut quiet = 0;
        for _ in 0..ROUNDS_MAX {
            let answers: Vec<_> = self
                .shards
                .iter()
                .map(|shard| {
                    let (reply, answer) = oneshot::channel();
                    shard.tell(ToShard::HandOver(Box::new(HandOver::Freeze(Freezing { reference, reply }))));
                    answer
                })
                .collect();
            let mut told = 0;
            for (number, answer) in answers.into_iter().enumerate() {
                let answer = timeout_at(deadline.into(), answer).await.ok().and_then(Result::ok);
                told += answer.ok_or_else(|| format!("shard {number} did not come to rest in time; try again"))?;
            }
            quiet = if told == 0 { quiet + 1 } else { 0 };
            if quiet == 2 {
                return Ok(Rest { begun, reference });
            }
        }
        Err("the shards do not come to rest; try again".into())
    }
}

/// The first processes of containers that end when the process does that they have started.
const INITS: [&str; 5] = ["tini", "docker-init", "dumb-init", "catatonit", "pause"];

/// Why everything would end with this process, the successor too; as far as that can be seen.
fn ends_with_this_process() -> Option<&'static str> {
    let init = || std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    if std::process::id() == 1 || INITS.contains(&init().trim_end()) {
        return Some("the container ends with this process; start a new container instead");
    }
    let is_service = std::env::var_os("INVOCATION_ID").is_some() && nix::unistd::getppid().as_raw() == 1;
    (is_service && std::env::var_os("NOTIFY_SOCKET").is_none())
        .then_some("the service ends with this process unless its unit has Type=notify; restart instead")
}

/// Works with the channel, which one thread uses at a time.
fn on<T>(channel: &Mutex<Channel>, work: impl FnOnce(&mut Channel) -> T) -> T {
    work(&mut channel.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Carries a shard's state to the other process, with the media beside it.
fn carrier(channel: Arc<Mutex<Channel>>) -> Carrier {
    Box::new(move |mut state, descriptors| {
        let mut blocks: Vec<Bytes> = Vec::new();
        state.each_bytes(|bytes| blocks.push(std::mem::take(bytes)));
        on(&channel, |channel| channel.send(&state, &blocks, descriptors))
    })
}

impl super::streams::Streams {
    /// The streams, as two processes compare them.
    pub(super) fn known(&self) -> Vec<StreamKnown> {
        self.with_homes()
            .map(|(stream, home)| StreamKnown { name: stream.name.clone(), source: source_text(stream), home })
            .collect()
    }
}
