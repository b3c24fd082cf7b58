//! A source as plain data, for the same source in another process, which continues its session.
//!
//! While a source is held, its task reads nothing more, leaves the state of its session in [`Source::deposit`], and waits. What cannot be
//! continued, such as an attempt to connect, is not left there: the other process starts anew.

use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::held::{Deposit, Resume, Running};
use super::pipeline::{Pipeline, PipelineState};
use super::shared::{Source, SourceStatus};
use crate::media::SourceState as State;

/// A source as plain data, without its descriptors.
#[derive(Clone, Serialize, Deserialize)]
pub struct SavedSource {
    pipeline: PipelineState,
    state: State,
    since: Option<SystemTime>,
    sessions: u64,
    failures: u64,
    fault: Option<String>,
    dropped: Vec<u64>,
    reads: u64,
    copied: u64,
    session: Option<Value>,
    /// How many descriptors belong to it.
    sockets: usize,
}

impl SavedSource {
    /// All of its media, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.pipeline.each_bytes(each);
    }

    /// How many descriptors belong to it.
    pub fn descriptors(&self) -> usize {
        self.sockets
    }
}

impl Source {
    /// Its task stops and leaves its session, with times relative to `reference`; [`Source::is_held`] says when it has.
    pub fn hold(&self, reference: Instant) {
        self.held.send_replace(Some(reference));
    }

    /// Its task continues as if nothing had happened.
    pub fn release(&self) {
        self.held.send_replace(None);
        self.deposit.take();
    }

    /// Whether the task has stopped, or has no session to leave.
    pub fn is_held(&self) -> bool {
        self.held.borrow().is_some() && (!self.running.get().leaves() || self.deposit.borrow().is_some())
    }

    /// The held source's task has more to process before it leaves its session.
    pub fn has_more(&self) {
        self.deposit.take();
    }

    /// What a held source's task does.
    pub fn running(&self) -> Running {
        self.running.get()
    }

    /// Takes the held source as plain data, and the descriptors that belong to it.
    pub fn save(&self, reference: Instant) -> (SavedSource, Vec<OwnedFd>) {
        let (session, sockets) = self.deposit.take().map(Deposit::into_parts).unzip();
        let sockets = sockets.unwrap_or_default();
        let status = self.status.borrow();
        let saved = SavedSource {
            pipeline: self.pipeline.borrow().save(reference),
            state: status.state,
            since: status.since,
            sessions: status.sessions,
            failures: status.failures,
            fault: status.fault.clone(),
            dropped: self.dropped.borrow().to_vec(),
            reads: self.reads.get(),
            copied: self.copied.get(),
            session,
            sockets: sockets.len(),
        };
        (saved, sockets)
    }

    /// Restores a saved source, whose task then continues the session.
    pub fn restore(reference: Instant, saved: SavedSource, sockets: Vec<OwnedFd>) -> std::rc::Rc<Source> {
        let source = Source::new(Pipeline::restore(reference, saved.pipeline));
        source.status.replace(SourceStatus {
            state: saved.state,
            since: saved.since,
            sessions: saved.sessions,
            failures: saved.failures,
            fault: saved.fault,
            next_try: None,
        });
        for (count, saved) in source.dropped.borrow_mut().iter_mut().zip(saved.dropped) {
            *count = saved;
        }
        source.reads.set(saved.reads);
        source.copied.set(saved.copied);
        source.resume.replace(saved.session.map(|session| Resume { session, sockets, reference }));
        source.restored.set(true);
        source
    }

    /// Resolves when the source is held, with the time that its times are to be relative to.
    pub(super) async fn held(&self) -> Instant {
        let mut held = self.held.subscribe();
        let held = held.wait_for(Option::is_some).await.map(|held| *held);
        match held {
            Ok(Some(reference)) => reference,
            // The source is gone, and its task with it.
            _ => std::future::pending().await,
        }
    }

    /// Leaves the session, and waits until the source is released.
    pub(super) async fn wait_held(&self, deposit: Option<Deposit>) {
        let before = self.running.get();
        if deposit.is_none() && before.leaves() {
            self.running.set(Running::Nothing);
        }
        self.deposit.replace(deposit);
        let mut held = self.held.subscribe();
        // It fails only if the source is gone.
        let _ = held.wait_for(Option::is_none).await;
        self.running.set(before);
    }
}

/// Marks what a source's task does, until it is dropped.
pub(super) struct Runs<'a>(&'a Source);

impl<'a> Runs<'a> {
    pub(super) fn new(source: &'a Source, what: Running) -> Runs<'a> {
        source.running.set(what);
        Runs(source)
    }
}

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        self.0.running.set(Running::Nothing);
    }
}
