//! Names under a pattern: requests for them wait until the control thread has created the stream, or has said why not.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::connections::Waits;
use super::methods::{PUBLIC, Refusal, refusal};
use super::server::{RETRY_AFTER_S, Server};
use super::types::ConnId;
use crate::media::StreamId;
use crate::media::name::NameRules;
use crate::wire::relay_path;
use crate::wire::rtsp::{Request, Status};

/// Why a stream that was requested by name does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotMade {
    /// The status of the answer, 400 to 599.
    pub status: u16,
    /// The relays that the stream would have passed through, if that is why.
    pub path: Option<Arc<str>>,
}

impl Server {
    /// Sets the rules for names.
    pub fn set_names(&mut self, names: Arc<NameRules>) {
        self.names = names;
    }

    /// The relays that a stream has passed through on its way to this one.
    pub fn set_path(&mut self, id: StreamId, path: Arc<str>) {
        self.streams.set_path(id, path);
    }

    /// A stream of that name exists now: the requests that wait for it are answered.
    pub fn answer_named(&mut self, now: Instant, name: &str) {
        for conn in self.connections.waiting_for(name, None) {
            self.ask_again(now, conn);
        }
        self.process_released(now);
    }

    /// There is no stream of that name, for all requests that wait for it, or for those from one [`origin`](crate::crowd::origin).
    pub fn refuse_named(&mut self, now: Instant, name: &str, from: Option<IpAddr>, why: &NotMade) {
        for conn in self.connections.waiting_for(name, from) {
            self.refuse_held(now, conn, why);
        }
        self.process_released(now);
    }

    /// A stream does not come up: the requests that wait for it are refused.
    pub fn refuse_stream(&mut self, now: Instant, id: StreamId, why: &NotMade) {
        for conn in self.connections.held_for(id) {
            self.refuse_held(now, conn, why);
        }
        self.process_released(now);
    }

    fn refuse_held(&mut self, now: Instant, conn: ConnId, why: &NotMade) {
        let Some(held) = self.take_held(conn) else { return };
        let refused = match why.status {
            503 => Refusal { path: why.path.clone().map(|path| self.path_from(&path)), ..unavailable() },
            status => Status(status).into(),
        };
        self.refusal(conn, &held.request, None, refused);
        self.process(now, conn);
    }

    /// Handles a name that no stream has: the pattern's streams are created and waited for.
    pub(super) fn unknown(&self, name: &[u8], request: &Request) -> Refusal {
        let Some((name, rule)) = self.names.pattern(name) else { return Status::NOT_FOUND.into() };
        match request.method.as_str() {
            "ANNOUNCE" if !rule.published => refusal(Status::METHOD_NOT_ALLOWED, "Allow", PUBLIC),
            "ANNOUNCE" | "DESCRIBE" | "SETUP" => {
                Refusal { wait_for: Some((Waits::Name(name.into()), rule.wait)), ..Status::UNAVAILABLE.into() }
            }
            _ => Status::NOT_FOUND.into(),
        }
    }

    /// Refuses a request that has passed through this relay before, because the relay would be pulling from itself.
    pub(super) fn no_loop(&self, request: &Request) -> Result<(), Refusal> {
        let Some(via) = request.list("Via").filter(|_| !self.names.relay.is_empty()) else { return Ok(()) };
        if !relay_path::via_ids(&via).any(|id| id == &*self.names.relay) {
            return Ok(());
        }
        Err(Refusal { path: Some(relay_path::joined(relay_path::via_ids(&via))), ..unavailable() })
    }

    /// The relays that a stream has passed through, this one last; `None` for a server without an id.
    pub(super) fn path_of(&self, stream: StreamId) -> Option<String> {
        let upstream = self.streams.path(stream);
        (!self.names.relay.is_empty()).then(|| self.path_from(upstream.as_deref().unwrap_or_default()))
    }

    fn path_from(&self, upstream: &str) -> String {
        let own = std::iter::once(&*self.names.relay).filter(|own| !relay_path::ids(upstream).any(|id| id == *own));
        relay_path::joined(relay_path::ids(upstream).chain(own))
    }
}

fn unavailable() -> Refusal {
    refusal(Status::UNAVAILABLE, "Retry-After", RETRY_AFTER_S)
}
