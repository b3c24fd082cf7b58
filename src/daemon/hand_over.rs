//! The running relay's side of an upgrade: an [`Attempt`] prepares it while all runs on; then everything is frozen and handed over.
//!
//! Whatever goes wrong before the commit, the relay takes everything back and goes on.

use std::io;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout_at};
use tracing::{error, info, warn};

use super::attempt::{Attempt, Plan, Prepared};
use super::carrying::Carrying;
use super::console::Console;
use super::copying::{Copier, on};
use super::failure::Failure;
use super::passed::{Finished, source_text};
use super::signals::Asked;
use super::{FLUSH_MAX, Relay, ask_upgrade, fold};
use crate::config::StreamConfig;
use crate::egress::IoKind;
use crate::limits::STOP_MAX_MS;
use crate::shard::inbox::ToShard;
use crate::shard::saved::{Carrier, Freezing, HandOver, SavedClients, Saving};
use crate::shard::thread::ShardHandle;
use crate::shard::turn::Turn;
use crate::upgrade::{self, Channel, Frozen, Hello, Next, Origin, Ready, Spent, StreamKnown, Taken};

/// How long clients may be served nothing.
const FREEZE_MAX: Duration = Duration::from_secs(5);

/// How long HTTP requests in progress may take; idle connections are closed at once.
const PAGES_MAX: Duration = Duration::from_secs(2);

/// Maximum number of rounds in which messages between shards come to rest.
const ROUNDS_MAX: usize = 64;

/// Maximum number of freezes that are taken back because a stream is just being removed.
const FREEZES_MAX: usize = 4;

/// How long a shard may take to answer after the deadline.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Interval of checks whether the shards have ended.
const END_STEP: Duration = Duration::from_millis(2);

/// How long it takes at most to hear why the other process has ended.
const REASON_MAX: Duration = Duration::from_millis(100);

/// The clients were served nothing from then on.
struct Rest {
    begun: Instant,
    reference: Instant,
}

impl Relay {
    /// Begins an upgrade, which goes on beside everything else. [`Relay::finish_upgrade`] is to follow.
    pub(super) fn begin_upgrade(&mut self) {
        if self.passing.attempt.is_some() {
            return info!("an upgrade is already under way");
        }
        let plan = self.plan_upgrade();
        match plan {
            Ok(plan) => self.passing.attempt = Some(Attempt::begin(plan)),
            Err(error) => tell_failure(&error.to_string().into()),
        }
    }

    fn plan_upgrade(&self) -> io::Result<Plan> {
        let sockets = self.passing.listening.iter().map(|listening| listening.socket.try_clone());
        let (at, unix) = self.site.clock().origin();
        let (carriers, controls) = self.passing.carriers.passed_on()?;
        let hello = Hello {
            shards: self.shards.len(),
            uring: self.passing.io == IoKind::Uring,
            streams: self.known_streams(Instant::now()),
            listeners: self.passing.listening.iter().map(|listening| (listening.purpose, listening.address)).collect(),
            datagrams: Vec::new(),
            nonces: self.doors.secret(),
            id: self.id.to_string(),
            clock: Some((upgrade::monotonic_ns(at), unix)),
            pid: std::process::id(),
            carriers,
        };
        Ok(Plan {
            shards: Rc::clone(&self.shards),
            program: self.passing.program.clone(),
            hello,
            sockets: sockets.collect::<io::Result<Vec<_>>>()?,
            controls,
        })
    }

    /// Gives up an upgrade that has begun, if there is one, and kills the other process.
    pub(super) fn abandon_upgrade(&mut self, why: &str) {
        if self.passing.attempt.take().is_some() {
            tell_failure(&why.into());
        }
    }

    /// Hands everything over, and ends the process unless it has to carry TLS connections on; or logs why not.
    pub(super) async fn finish_upgrade(
        &mut self,
        prepared: Result<Prepared, Failure>,
        asked: &mut UnboundedReceiver<Asked>,
    ) -> Finished {
        let attempt = self.passing.attempt.take();
        let mut later = Vec::new();
        let done = match prepared {
            Ok(prepared) => self.hand_over_unless_stopped(prepared, asked, &mut later).await,
            Err(why) => Err(why),
        };
        match done {
            Ok((done, control)) => {
                later.extend(std::iter::from_fn(|| asked.try_recv().ok()));
                pass_on(&later, attempt.as_ref());
                self.passing.carriers.let_go();
                ask_upgrade::tell(&Ok(done));
                Console::get().flush(FLUSH_MAX);
                pass_on(&Vec::from_iter(std::iter::from_fn(|| asked.try_recv().ok())), attempt.as_ref());
                attempt.into_iter().for_each(Attempt::done);
                if let Some(control) = control {
                    return Finished::Carrying(control);
                }
                // Not a stop: whatever is still open here is open there as well, and is neither shut down nor flushed.
                std::process::exit(0);
            }
            Err(why) => {
                // First the other process ends, because a shard may be waiting for it.
                drop(attempt);
                self.take_back();
                tell_failure(&why);
            }
        }
        Finished::GoesOn(later)
    }

    async fn hand_over_unless_stopped(
        &mut self,
        prepared: Prepared,
        asked: &mut UnboundedReceiver<Asked>,
        later: &mut Vec<Asked>,
    ) -> Result<(String, Option<UnixStream>), Failure> {
        let mut handing = pin!(self.hand_over(prepared));
        loop {
            tokio::select! {
                biased;
                done = &mut handing => return done,
                asked = asked.recv() => {
                    let asked = asked.unwrap_or(Asked::Stop);
                    later.push(asked);
                    if matches!(asked, Asked::Stop | Asked::Restart) {
                        return Err("the relay was asked to stop".into());
                    }
                }
            }
        }
    }

    /// Everything goes on as before.
    fn take_back(&self) {
        for shard in self.shards.iter() {
            shard.tell(ToShard::HandOver(Box::new(HandOver::Thaw)));
        }
        self.passing.valve.open();
        self.passing.ending.send_replace(false);
    }

    /// From the end of HTTP connections to the commit. Nothing is awaited after that. Returns what is to be told, and what leads to the new
    /// process if there is something to carry on for it.
    async fn hand_over(&mut self, prepared: Prepared) -> Result<(String, Option<UnixStream>), Failure> {
        let Prepared { ready, mut copier, mut spent, reconnecting } = prepared;
        self.close_pages().await;
        copier.catch_up_last().await?;
        spent.copy = copier.took();
        let rest = self.come_to_rest().await?;
        spent.freeze = rest.begun.elapsed();
        let bytes = Arc::default();
        let control = on(copier.channel(), |channel| channel.to_socket()).map_err(|error| error.to_string())?;
        let SavedClients { all: clients, carried } =
            self.send_states(&rest, (&copier, &bytes), &ready, &mut spent).await?;
        let ms = |took: Duration| took.as_millis() as u64;
        info!(
            pid = ready.pid,
            version = %ready.version,
            clients,
            carried,
            start_ms = ms(spent.start),
            copy_ms = ms(spent.copy),
            freeze_ms = ms(spent.freeze),
            save_ms = ms(spent.save),
            restore_ms = ms(spent.restore),
            frozen_ms = ms(spent.frozen()),
            copied_bytes = copier.bytes(),
            frozen_bytes = bytes.load(Ordering::Relaxed),
            "handed over to the new program"
        );
        if let Some(cameras) = &reconnecting {
            info!(%cameras, "the new program connects to these cameras anew");
        }
        // The service manager listens only to its main process, which is still this one.
        self.notifier.tell(&format!("MAINPID={}", ready.pid));
        fold::tell_all_left_out();
        let anew =
            reconnecting.map_or(String::new(), |cameras| format!("; it connects to these cameras anew: {cameras}"));
        let mut told = format!(
            "handed over to process {} (version {}): {clients} connections, which were served nothing for {} ms{anew}",
            ready.pid,
            ready.version,
            ms(spent.frozen())
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

    /// Accepts nothing more, and closes HTTP connections that are idle, others when they have been answered.
    async fn close_pages(&mut self) {
        self.passing.ending.send_replace(true);
        self.passing.valve.close();
        let deadline = Instant::now() + PAGES_MAX;
        while self.passing.ending.receiver_count() > 0 && Instant::now() < deadline {
            tokio::select! {
                Some((ask, reply)) = self.asked_for.recv() => self.on_ask(ask, reply).await,
                () = sleep(Duration::from_millis(1)) => {}
            }
        }
        let cut_off = self.passing.ending.receiver_count();
        if cut_off > 0 {
            info!(connections = cut_off, "HTTP connections that last longer are closed with the upgrade");
        }
    }

    /// Sends the shards' states and commits; counts the bytes beside them. Returns how many clients were handed over.
    async fn send_states(
        &mut self,
        rest: &Rest,
        (copier, bytes): (&Copier, &Arc<AtomicUsize>),
        ready: &Ready,
        spent: &mut Spent,
    ) -> Result<SavedClients, Failure> {
        let deadline = rest.begun + FREEZE_MAX;
        let channel = copier.channel();
        let begun = Instant::now();
        let frozen = Next::Frozen(Box::new(Frozen {
            reference_ns: upgrade::monotonic_ns(rest.reference),
            shards: self.shards.len(),
            streams: self.known_streams(rest.reference),
            counts: self.reporter.lock().await.save().await,
        }));
        with(channel, move |channel| {
            channel.set_deadline(deadline);
            channel.send(&frozen, &[], &[])
        })
        .await?
        .map_err(|error| lost(channel, ready, &error))?;
        let mut answers = Vec::new();
        let turns = || Turn::all(self.shards.len(), deadline);
        for (shard, (turn, goes)) in self.shards.iter().zip(turns().zip(turns())) {
            let (reply, answer) = oneshot::channel();
            let saving = Saving {
                reference: rest.reference,
                sent: Arc::clone(copier.sent()),
                turn,
                carrier: carrier(Arc::clone(channel), Arc::clone(bytes), goes),
                reply,
            };
            shard.tell(ToShard::HandOver(Box::new(HandOver::Save(saving))));
            answers.push(answer);
        }
        let mut clients = SavedClients::default();
        for (number, answer) in answers.into_iter().enumerate() {
            let saved = timeout_at((deadline + ANSWER_MAX).into(), answer).await.ok().and_then(Result::ok);
            let saved = saved.unwrap_or_else(|| Err("it does not answer".into())).map_err(|why| {
                let why = refusal(channel).unwrap_or(why);
                format!("shard {number} was not handed over: {why}; try again")
            })?;
            clients.all += saved.all;
            clients.carried += saved.carried;
        }
        spent.save = begun.elapsed();
        let taken = with(channel, |channel| channel.receive::<Taken>()).await?;
        if let Taken::Refused(why) = taken.map_err(|error| lost(channel, ready, &error))?.message {
            return Err(format!("the new program cannot take over: {why}").into());
        }
        spent.restore = begun.elapsed() - spent.save;
        on(channel, |channel| {
            channel.send(spent, &[], &[])?;
            channel.commit()
        })
        .map_err(|error| lost(channel, ready, &error))?;
        Ok(clients)
    }

    /// Brings all shards to rest, at a moment when no stream is to be created or removed.
    async fn come_to_rest(&mut self) -> Result<Rest, Failure> {
        for _ in 0..FREEZES_MAX {
            while let Ok(wanted) = self.wanted.try_recv() {
                self.on_wanted(wanted).await;
            }
            while let Ok((id, news)) = self.news.try_recv() {
                self.on_news(id, news).await;
            }
            let rest = self.freeze().await?;
            // Clients' requests are read again by the other process; what sources have told is not told again.
            while let Ok((id, news)) = self.news.try_recv() {
                self.note_news(id, &news);
            }
            if !self.registry.has_acts() {
                return Ok(rest);
            }
            for shard in self.shards.iter() {
                shard.tell(ToShard::HandOver(Box::new(HandOver::Thaw)));
            }
            self.act().await;
        }
        Err("streams are created and removed all the time; try again".into())
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

    /// The streams, as two processes compare them; times are relative to `reference`.
    fn known_streams(&self, reference: Instant) -> Vec<StreamKnown> {
        let known = |(stream, home, via): (&StreamConfig, u16, Option<&str>)| StreamKnown {
            name: stream.name.clone(),
            source: source_text(stream),
            home,
            origin: self.origin(stream, via, reference),
        };
        self.streams.with_homes().map(known).collect()
    }

    fn origin(&self, stream: &StreamConfig, via: Option<&str>, reference: Instant) -> Option<Origin> {
        if stream.made {
            return self.registry.save(reference, &stream.name, via).map(Origin::Made);
        }
        let added = self.added.iter().find(|added| added.config.name == stream.name);
        added.map(|added| Origin::Added(added.keys.clone()))
    }
}

fn tell_failure(why: &Failure) {
    ask_upgrade::tell(&Err(why.to_string().into()));
    error!("the upgrade was not done, and nothing has changed: {why}");
}

/// Passes on what was asked for when everything had been handed over.
fn pass_on(asked: &[Asked], attempt: Option<&Attempt>) {
    let Some(successor) = attempt.and_then(Attempt::successor) else { return };
    for asked in asked {
        let signal = match asked {
            Asked::Stop => Signal::SIGTERM,
            Asked::Restart => Signal::SIGINT,
            Asked::Reload => Signal::SIGHUP,
            Asked::Summary => Signal::SIGUSR1,
            Asked::Upgrade => continue,
        };
        warn!(%signal, "passed on to the new program");
        successor.signal(signal);
    }
}

/// Works with the channel on another thread, where it may wait.
async fn with<T: Send + 'static>(
    channel: &Arc<Mutex<Channel>>,
    work: impl FnOnce(&mut Channel) -> T + Send + 'static,
) -> Result<T, Failure> {
    let channel = Arc::clone(channel);
    spawn_blocking(move || on(&channel, work)).await.map_err(|error| error.to_string().into())
}

/// Why the other process has ended, if it has said so.
fn refusal(channel: &Mutex<Channel>) -> Option<String> {
    let heard = on(channel, |channel| {
        channel.set_deadline(Instant::now() + REASON_MAX);
        channel.receive::<Taken>()
    });
    match heard.ok()?.message {
        Taken::Refused(why) => Some(why),
        Taken::All => None,
    }
}

fn lost(channel: &Mutex<Channel>, ready: &Ready, error: &io::Error) -> Failure {
    match refusal(channel) {
        Some(why) => format!("the new program cannot take over: {why}").into(),
        None => format!("the new program (pid {}) failed ({error})", ready.pid).into(),
    }
}

/// Sends a shard's state when it is its turn, and counts the bytes beside it.
fn carrier(channel: Arc<Mutex<Channel>>, carried: Arc<AtomicUsize>, turn: Turn) -> Carrier {
    Box::new(move |mut state, descriptors| {
        let mut blocks: Vec<Bytes> = Vec::new();
        state.each_bytes(|bytes| blocks.push(std::mem::take(bytes)));
        carried.fetch_add(blocks.iter().map(Bytes::len).sum(), Ordering::Relaxed);
        let text = upgrade::written(&state)?;
        turn.wait().map_err(io::Error::other)?;
        on(&channel, |channel| channel.send_written(&text, &blocks, descriptors))?;
        turn.pass();
        Ok(())
    })
}
