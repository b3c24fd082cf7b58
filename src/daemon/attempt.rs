//! The first part of an upgrade, while all runs on: the program that now lies at the relay's path is started, says that it is ready, and
//! is sent the logs. Until the freeze, an attempt is given up at any moment by dropping it.

use std::cell::OnceCell;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use tokio::time::timeout;
use tracing::info;

use super::copying::Copier;
use super::failure::Failure;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::shard::saved::HandOver;
use crate::shard::types::SocketFds;
use crate::upgrade::{self, Answer, Channel, DatagramSockets, Hello, Ready, Spent, Successor};

/// How long the other program may take to check its configuration and to start its threads.
const START_MAX: Duration = Duration::from_secs(30);

/// How long a shard may take to answer; meanwhile all runs on.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// An upgrade that has begun. The other process is killed when this is dropped.
pub(super) struct Attempt {
    successor: Rc<OnceCell<Successor>>,
    task: JoinHandle<Result<Prepared, Failure>>,
    /// The other process serves.
    done: bool,
}

/// The other process is ready and has the logs.
pub(super) struct Prepared {
    pub(super) ready: Ready,
    pub(super) copier: Copier,
    pub(super) spent: Spent,
    /// The cameras that the other process connects to anew, for a sentence.
    pub(super) reconnecting: Option<String>,
}

/// What an attempt needs.
pub(super) struct Plan {
    pub(super) shards: Rc<[ShardSender]>,
    /// The program to start.
    pub(super) program: Option<PathBuf>,
    /// Without the UDP sockets.
    pub(super) hello: Hello,
    /// The listening sockets, in the order of `hello`.
    pub(super) sockets: Vec<OwnedFd>,
    /// The control connections of the carriers, in the order of `hello`.
    pub(super) controls: Vec<OwnedFd>,
}

impl Attempt {
    /// Begins.
    pub(super) fn begin(plan: Plan) -> Attempt {
        let successor = Rc::new(OnceCell::new());
        let task = spawn_local(plan.carry_out(Rc::clone(&successor)));
        Attempt { successor, task, done: false }
    }

    /// The other process serves, and is not killed.
    pub(super) fn done(mut self) {
        self.done = true;
    }

    /// The other process, once it has been started.
    pub(super) fn successor(&self) -> Option<&Successor> {
        self.successor.get()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(successor) = self.successor.get().filter(|_| !self.done) {
            successor.kill();
        }
    }
}

/// Resolves when the attempt, if there is one, has come to the freeze or has failed.
pub(super) async fn prepared(attempt: &mut Option<Attempt>) -> Result<Prepared, Failure> {
    match attempt {
        Some(attempt) => (&mut attempt.task).await.unwrap_or_else(|error| Err(error.to_string().into())),
        None => pending().await,
    }
}

impl Plan {
    async fn carry_out(self, successor: Rc<OnceCell<Successor>>) -> Result<Prepared, Failure> {
        let begun = Instant::now();
        if let Some(why) = ends_with_this_process() {
            return Err(why.into());
        }
        let program = self.program.ok_or("the path of the program is unknown; restart instead")?;
        let reconnecting = reconnecting(&self.shards).await?;
        info!(program = %program.display(), "upgrading: starting the new program");
        let (channel, process) = upgrade::start(&program).map_err(|error| {
            format!("{} cannot be started ({error}); install the new program there", program.display())
        })?;
        // It is set once.
        let _ = successor.set(process);
        let (mut hello, mut sockets) = (self.hello, self.sockets);
        for SocketFds { pair, groups } in datagram_sockets(&self.shards).await? {
            let known = groups.iter().map(|(name, group, _)| (name.clone(), *group)).collect();
            hello.datagrams.push(DatagramSockets { pair: pair.is_some(), groups: known });
            sockets.extend(pair.into_iter().flat_map(|(rtp, rtcp)| [rtp, rtcp]));
            sockets.extend(groups.into_iter().map(|(.., socket)| socket));
        }
        sockets.extend(self.controls);
        let (channel, ready) = introduce(channel, hello, sockets).await?;
        let spent = Spent { start: begun.elapsed(), ..Spent::default() };
        let mut copier = Copier::new(self.shards, channel);
        copier.catch_up().await?;
        Ok(Prepared { ready, copier, spent, reconnecting })
    }
}

/// The cameras that the other process connects to anew, and why, for a sentence; `None` if there are none.
async fn reconnecting(shards: &[ShardSender]) -> Result<Option<String>, Failure> {
    let mut cameras = Vec::new();
    for shard in shards {
        let (reply, answer) = oneshot::channel();
        shard.tell(ToShard::HandOver(Box::new(HandOver::Survey(reply))));
        let answer = timeout(ANSWER_MAX, answer).await.ok().and_then(Result::ok);
        cameras.extend(answer.ok_or("a shard does not answer; restart instead")?);
    }
    let told: Vec<_> = cameras.iter().map(|(stream, why)| format!("{stream} ({why})")).collect();
    Ok((!told.is_empty()).then(|| told.join(", ")))
}

/// Further descriptors of the shards' UDP sockets.
async fn datagram_sockets(shards: &[ShardSender]) -> Result<Vec<SocketFds>, Failure> {
    let mut all = Vec::new();
    for shard in shards {
        let (reply, answer) = oneshot::channel();
        shard.tell(ToShard::HandOver(Box::new(HandOver::Sockets(reply))));
        let answer = timeout(ANSWER_MAX, answer).await.ok().and_then(Result::ok);
        let sockets = answer.ok_or("a shard does not answer; restart instead")?;
        all.push(sockets.map_err(|error| format!("the UDP sockets cannot be passed on ({error})"))?);
    }
    Ok(all)
}

/// Tells the other process what there is, and waits until it is ready.
async fn introduce(mut channel: Channel, hello: Hello, sockets: Vec<OwnedFd>) -> Result<(Channel, Ready), Failure> {
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
