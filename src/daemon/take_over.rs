//! The new program's side of an upgrade, from its being ready to the commit.

use std::io;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::info;

use super::failure::Failure;
use super::heir::Heir;
use super::{Opening, Relay, outside};
use crate::shard::inbox::ToShard;
use crate::shard::saved::{Freezing, HandOver, Restoring, ShardState};
use crate::upgrade::{self, Answer, Channel, Frozen, Ready, Taken};

/// How long the running relay may take for each of its steps; longer than it waits itself.
const STEP_MAX: Duration = Duration::from_secs(60);

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
        let failed =
            |error: io::Error| Failure::from(format!("the running relay goes on: nothing was taken over ({error})"));
        let channel = heir.channel();
        let ready = Ready { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").into() };
        channel.set_deadline(Instant::now() + STEP_MAX);
        channel.send(&Answer::Ready(ready), &[], &[]).map_err(failed)?;
        testing.hand_over_step("told");
        let Frozen { reference_ns, shards } = channel.receive::<Frozen>().map_err(failed)?.message;
        let reference = upgrade::monotonic_at(reference_ns);
        testing.hand_over_step("frozen");
        for number in 0..shards {
            self.take_shard(number, reference, channel).await?;
        }
        self.settle(reference).await?;
        testing.hand_over_step("restored");
        channel.send(&Taken, &[], &[]).map_err(failed)?;
        channel.committed().map_err(failed)?;
        // What clients want, before any source looks at it.
        while let Ok((shard, message)) = opening.messages.try_recv() {
            opening.desk.pass_on(shard, message);
        }
        for shard in self.shards.iter() {
            shard.tell(ToShard::HandOver(Box::new(HandOver::GoOn)));
        }
        self.passing.carriers.take_over(heir.into_carriers());
        let clients: usize = self.shards.iter().map(|shard| shard.connections()).sum();
        info!(clients, "took over from the relay that ran before");
        Ok(())
    }

    async fn take_shard(&mut self, number: usize, reference: Instant, channel: &mut Channel) -> Result<(), Failure> {
        let failed =
            |error: &str| Failure::from(format!("shard {number} cannot be taken over ({error}); restart instead"));
        let mut received = channel.receive::<ShardState>().map_err(|error| failed(&error.to_string()))?;
        let mut state = received.message;
        state.each_bytes(|bytes| *bytes = received.blocks.pop_front().unwrap_or_default());
        if state.descriptors() != received.descriptors.len() {
            return Err(failed("descriptors are missing"));
        }
        for peer in state.peers() {
            self.admission.borrow_mut().restore(peer);
        }
        let shard = self.shards.get(number).ok_or_else(|| failed("there is no such shard"))?;
        let (reply, answer) = oneshot::channel();
        let restoring = Restoring { reference, state, descriptors: received.descriptors, reply };
        shard.tell(ToShard::HandOver(Box::new(HandOver::Restore(restoring))));
        let answer = timeout(STEP_MAX, answer).await.ok().and_then(Result::ok);
        answer.ok_or_else(|| failed("it does not answer"))?.map_err(|error| failed(&error))
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
