//! The new program's side of an upgrade, from its being ready to the commit.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::info;

use super::failure::Failure;
use super::heir::Heir;
use super::passed::{check_streams, continued};
use super::{Opening, Relay, outside};
use crate::config::added::Added;
use crate::metrics::process;
use crate::shard::core::KeptLogs;
use crate::shard::inbox::ToShard;
use crate::shard::saved::{Freezing, HandOver, Restoring, ShardState};
use crate::upgrade::{self, Answer, Channel, Frozen, Next, Origin, Ready, Received, Spent, StreamKnown, Taken};

/// How long the running relay may take for each of its steps; longer than it waits itself.
const STEP_MAX: Duration = Duration::from_secs(60);

fn failed(error: &io::Error) -> Failure {
    format!("the running relay goes on: nothing was taken over ({error})").into()
}

fn not_taken(shard: usize, why: &str) -> Failure {
    format!("shard {shard} cannot be taken over ({why}); restart instead").into()
}

/// The next message.
fn receive<T: DeserializeOwned>(channel: &mut Channel) -> Result<Received<T>, Failure> {
    channel.set_deadline(Instant::now() + STEP_MAX);
    channel.receive().map_err(|error| failed(&error))
}

impl Relay {
    /// Takes everything over. Nothing has been sent or read when this returns, except that from then on all shards do.
    ///
    /// # Errors
    /// The running relay goes on, or has failed itself.
    pub(super) async fn take_over(&mut self, mut heir: Heir, opening: &mut Opening) -> Result<(), Failure> {
        let testing = self.config.testing;
        testing.hand_over_step("ready");
        // Requests that have been read already are not to be answered without it.
        outside::set(self.config.site.auth.as_ref(), &self.shards);
        let channel = heir.channel();
        let ready = Ready { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").into() };
        channel.set_deadline(Instant::now() + STEP_MAX);
        channel.send(&Answer::Ready(ready), &[], &[]).map_err(|error| failed(&error))?;
        testing.hand_over_step("told");
        let mut kept = KeptLogs::new();
        let mut frozen = self.take_logs(channel, &mut kept)?;
        let counts = std::mem::take(&mut frozen.counts);
        testing.hand_over_step("frozen");
        if let Err(why) = self.take_states(channel, frozen, kept).await {
            // It may have ended.
            let _ = channel.send(&Taken::Refused(why.to_string()), &[], &[]);
            return Err(why);
        }
        testing.hand_over_step("restored");
        channel.send(&Taken::All, &[], &[]).map_err(|error| failed(&error))?;
        let spent = receive::<Spent>(channel)?.message;
        channel.committed().map_err(|error| failed(&error))?;
        testing.hand_over_step("committed");
        // What clients want, before any source looks at it.
        while let Ok((shard, message)) = opening.messages.try_recv() {
            opening.desk.pass_on(shard, message);
        }
        // Whoever asks the shards next is answered after they have gone on.
        let mut reporter = self.reporter.lock().await;
        reporter.restore(counts);
        for shard in self.shards.iter() {
            shard.tell(ToShard::HandOver(Box::new(HandOver::GoOn)));
        }
        drop(reporter);
        for (purpose, address, socket) in heir.unused() {
            self.store.close_passed(purpose, address, socket);
        }
        self.passing.carriers.take_over(heir.into_carriers());
        self.tell_taken(spent);
        Ok(())
    }

    fn tell_taken(&self, spent: Spent) {
        let clients: usize = self.shards.iter().map(|shard| shard.connections()).sum();
        let Spent { start, copy, freeze, save, restore } = spent;
        process::took_over([start, copy, freeze, save, restore]);
        let ms = |took: Duration| took.as_millis() as u64;
        info!(
            clients,
            start_ms = ms(start),
            copy_ms = ms(copy),
            freeze_ms = ms(freeze),
            save_ms = ms(save),
            restore_ms = ms(restore),
            "took over from the relay that ran before"
        );
    }

    /// Keeps what comes of the logs, until the running relay freezes.
    fn take_logs(&self, channel: &mut Channel, kept: &mut KeptLogs) -> Result<Frozen, Failure> {
        loop {
            let Received { message, mut blocks, .. } = receive::<Next>(channel)?;
            match message {
                Next::Part(ns, mut part) => {
                    part.each_bytes(|bytes| *bytes = blocks.pop_front().unwrap_or_default());
                    part.keep(upgrade::monotonic_at(ns), kept);
                    self.config.testing.hand_over_step("copying");
                }
                Next::Frozen(frozen) => return Ok(*frozen),
            }
        }
    }

    /// Restores streams and shards.
    async fn take_states(&mut self, channel: &mut Channel, frozen: Frozen, kept: KeptLogs) -> Result<(), Failure> {
        let reference = upgrade::monotonic_at(frozen.reference_ns);
        self.take_streams(&frozen.streams, reference).await?;
        let kept = Arc::new(RwLock::new(kept));
        // A shard is restored while the next one is still received.
        let mut answers = Vec::new();
        for number in 0..frozen.shards {
            answers.push(self.take_shard((number, reference), channel, &kept)?);
        }
        for (number, answer) in answers.into_iter().enumerate() {
            let answer = timeout(STEP_MAX, answer).await.ok().and_then(Result::ok);
            let restored = answer.unwrap_or_else(|| Err("it does not answer".into()));
            restored.map_err(|error| not_taken(number, &error))?;
        }
        self.settle(reference).await?;
        // Those that no log has any more.
        kept.write().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// Creates the streams that are not in the configuration.
    async fn take_streams(&mut self, known: &[StreamKnown], reference: Instant) -> Result<(), Failure> {
        check_streams(&self.config, known)?;
        for known in known {
            if self.streams.find(&known.name).is_some() {
                continue;
            }
            let Some(config) = continued(&self.config, known) else { continue };
            let via = match &known.origin {
                Some(Origin::Made(made)) => made.via.as_deref().map(Arc::from),
                _ => None,
            };
            let home = Some(known.home).filter(|home| usize::from(*home) < self.shards.len());
            let id = self.streams.add(&config, via, home).await.ok_or("there are too many streams; restart instead")?;
            match &known.origin {
                Some(Origin::Added(keys)) => self.added.push(Added { config, keys: keys.clone() }),
                Some(Origin::Made(made)) => self.registry.restore(reference, &known.name, id, made),
                None => {}
            }
        }
        self.share_logs();
        Ok(())
    }

    /// Receives a shard's state and has it restored, which ends with the answer.
    fn take_shard(
        &mut self,
        (number, reference): (usize, Instant),
        channel: &mut Channel,
        kept: &Arc<RwLock<KeptLogs>>,
    ) -> Result<oneshot::Receiver<Result<(), String>>, Failure> {
        let mut received = receive::<ShardState>(channel)?;
        let mut state = received.message;
        state.each_bytes(|bytes| *bytes = received.blocks.pop_front().unwrap_or_default());
        if state.descriptors() != received.descriptors.len() {
            return Err(not_taken(number, "descriptors are missing"));
        }
        state.keep(reference, &mut kept.write().unwrap_or_else(PoisonError::into_inner));
        for peer in state.peers() {
            self.admission.borrow_mut().restore(peer);
        }
        let shard = self.shards.get(number).ok_or_else(|| not_taken(number, "there is no such shard"))?;
        let (reply, answer) = oneshot::channel();
        let restoring =
            Restoring { reference, state, descriptors: received.descriptors, kept: Arc::clone(kept), reply };
        shard.tell(ToShard::HandOver(Box::new(HandOver::Restore(restoring))));
        Ok(answer)
    }

    /// Waits until the shards have told the control thread everything.
    async fn settle(&self, reference: Instant) -> Result<(), Failure> {
        for shard in self.shards.iter() {
            let (reply, answer) = oneshot::channel();
            shard.tell(ToShard::HandOver(Box::new(HandOver::Freeze(Freezing { reference, reply }))));
            timeout(STEP_MAX, answer).await.ok().and_then(Result::ok).ok_or("a shard does not answer")?;
        }
        Ok(())
    }
}
