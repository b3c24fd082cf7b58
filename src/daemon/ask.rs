//! Adds and removes streams, and disconnects clients, for users with the right to administer.

use std::time::Instant;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::events::Event;
use super::failure::Failure;
use super::manage::{Ask, Reply};
use super::registry::Gone;
use super::{Relay, state};
use crate::config::added::{self, Added};
use crate::config::{Config, Fault, SourceKind, StreamConfig};
use crate::limits::STREAMS_MAX;
use crate::metrics::{Counter, process};
use crate::session::SessionKey;
use crate::shard::inbox::ToShard;

/// Where a stream comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// In the configuration.
    File,
    /// It was added at run time.
    Added,
    /// It was created by name.
    Pattern,
}

impl From {
    fn of(stream: &StreamConfig) -> From {
        match (stream.made, stream.added) {
            (true, _) => From::Pattern,
            (false, true) => From::Added,
            (false, false) => From::File,
        }
    }
}

fn said(status: StatusCode, text: impl Into<String>) -> Reply {
    (status, text.into() + "\n")
}

impl Relay {
    /// Does what is requested, and replies.
    pub(super) async fn on_ask(&mut self, ask: Ask, reply: oneshot::Sender<Reply>) {
        let done = match ask {
            Ask::List(name) => self.list(name.as_deref()),
            Ask::Add(name, keys) => self.add(&name, &keys).await,
            Ask::Remove(name) => self.remove(&name).await,
            Ask::End(session) => return self.end(session, reply),
        };
        // The requester may be gone.
        let _ = reply.send(done);
    }

    fn list(&self, name: Option<&str>) -> Reply {
        let one = |stream: &StreamConfig| {
            let from = match From::of(stream) {
                From::File => "file",
                From::Added => "added",
                From::Pattern => "pattern",
            };
            let source = match stream.source {
                SourceKind::Cameras(_) => "pulled",
                SourceKind::Publisher { .. } => "published",
                SourceKind::Test => "test",
            };
            json!({"stream": stream.name, "from": from, "source": source})
        };
        if let Some(name) = name {
            return match self.streams.find(name) {
                Some((_, stream)) => said(StatusCode::OK, one(stream).to_string()),
                None => said(StatusCode::NOT_FOUND, "there is no stream of that name"),
            };
        }
        let streams: Vec<Value> = self.streams.configs().map(one).collect();
        let pattern = |pattern: &crate::config::PatternConfig| json!({"pattern": pattern.pattern.to_string(), "source": if pattern.is_published() { "published" } else { "pulled" }});
        let patterns: Vec<Value> = self.config.patterns.iter().map(pattern).collect();
        said(StatusCode::OK, json!({"streams": streams, "patterns": patterns}).to_string())
    }

    async fn add(&mut self, name: &str, keys: &str) -> Reply {
        let added = match added::read(name, keys) {
            Ok(added) => added,
            Err(faults) => {
                let lines: Vec<_> = faults.iter().map(Fault::to_string).collect();
                return said(StatusCode::BAD_REQUEST, lines.join("\n"));
            }
        };
        let there = self.streams.find(name).map(|(_, stream)| From::of(stream));
        let why = match there {
            Some(From::File) => "the configuration has that stream; change it there and reload",
            Some(From::Added) => "it has been added already; remove it first",
            Some(From::Pattern) => "a stream of that name was created under a pattern; remove it first",
            None if self.streams.len() >= STREAMS_MAX => {
                return said(StatusCode::SERVICE_UNAVAILABLE, format!("there are {STREAMS_MAX} streams already"));
            }
            None => "",
        };
        if !why.is_empty() {
            return said(StatusCode::CONFLICT, why);
        }
        self.added.push(added.clone());
        if let Err(why) = self.keep() {
            self.added.pop();
            return said(StatusCode::INTERNAL_SERVER_ERROR, why.to_string());
        }
        if self.streams.add(&added.config, None, None).await.is_none() {
            self.added.pop();
            if let Err(why) = self.keep() {
                warn!("{why}");
            }
            return said(StatusCode::SERVICE_UNAVAILABLE, "removed streams still have clients; try again later");
        }
        self.share_logs();
        process::count(Counter::StreamsMade);
        info!(stream = %name, "added");
        self.events.tell(name, &Event::Made);
        let url = self.reporter.lock().await.url(name).unwrap_or_default();
        said(StatusCode::CREATED, url)
    }

    async fn remove(&mut self, name: &str) -> Reply {
        let Some((id, from)) = self.streams.find(name).map(|(id, stream)| (id, From::of(stream))) else {
            return said(StatusCode::NOT_FOUND, "there is no stream of that name");
        };
        match from {
            From::File => {
                return said(StatusCode::CONFLICT, "the configuration has that stream; remove it there and reload");
            }
            From::Added => {
                let before = self.added.clone();
                self.added.retain(|added| added.config.name != name);
                if let Err(why) = self.keep() {
                    self.added = before;
                    return said(StatusCode::INTERNAL_SERVER_ERROR, why.to_string());
                }
            }
            From::Pattern => self.registry.forget(Instant::now(), name),
        }
        self.unmake(id, name, Gone::Removed).await;
        self.act().await;
        said(StatusCode::OK, "removed")
    }

    /// Disconnects a client; its shard replies.
    fn end(&self, session: SessionKey, reply: oneshot::Sender<Reply>) {
        let shard = self.shards.get((session.0 % self.shards.len() as u64) as usize);
        let (ended, was_there) = oneshot::channel();
        if let Some(shard) = shard {
            shard.tell(ToShard::EndClient(session, ended));
        }
        tokio::task::spawn_local(async move {
            let done = match was_there.await {
                Ok(true) => said(StatusCode::OK, "ended"),
                _ => said(StatusCode::NOT_FOUND, "there is no client with that session; /status lists them"),
            };
            let _ = reply.send(done);
        });
    }

    /// Writes the state file, if there is one.
    fn keep(&self) -> Result<(), Failure> {
        self.config.state.as_deref().map_or(Ok(()), |path| state::write(path, &self.added))
    }

    /// Starts the streams that were added in earlier runs.
    pub(super) async fn start_added(&mut self, added: Vec<Added>) {
        self.added = added;
        self.drop_written(&self.config.clone());
        for added in self.added.clone() {
            match self.streams.add(&added.config, None, None).await {
                Some(_) => process::count(Counter::StreamsMade),
                None => warn!(stream = %added.config.name, "not served, because there are too many streams"),
            }
        }
        self.share_logs();
    }

    /// The configuration takes precedence over added streams.
    pub(super) fn drop_written(&mut self, config: &Config) {
        let before = self.added.len();
        self.added.retain(|added| {
            let is_written = config.streams.iter().any(|stream| stream.name == added.config.name);
            if is_written {
                warn!(stream = %added.config.name, "was added at run time and is now in the configuration, which takes precedence");
            }
            !is_written
        });
        if self.added.len() < before
            && let Err(why) = self.keep()
        {
            warn!("{why}");
        }
    }
}
