//! Streams created by name: messages from the control thread about names that no stream has.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::state::Core;
use crate::egress::Egress;
use crate::media::StreamId;
use crate::media::name::NameRules;
use crate::metrics::{LeaveReason, Transport};
use crate::session::{EndReason, NotMade, SessionKey};
use crate::shard::inbox::{ClientNews, ToControl};

impl<E: Egress> Core<E> {
    /// Sets the rules for names that no stream has.
    pub fn set_names(&mut self, names: Arc<NameRules>) {
        self.server.set_names(names);
    }

    /// There is no stream of that name, for all requests that wait for it, or for those from one origin.
    pub fn not_made(&mut self, now: Instant, name: &str, from: Option<IpAddr>, why: &NotMade) {
        self.server.refuse_named(now, name, from, why);
        self.process_events(now);
    }

    /// A stream does not come up: the requests that wait for it are refused.
    pub fn not_up(&mut self, now: Instant, id: StreamId, why: &NotMade) {
        self.server.refuse_stream(now, id, why);
        self.process_events(now);
    }

    /// Notifies the control thread about a client.
    pub(super) fn tell_client(
        &mut self,
        id: StreamId,
        client: SocketAddr,
        session: SessionKey,
        what: Result<Transport, LeaveReason>,
    ) {
        let stream = self.streams[id.index()].name.clone();
        self.out.tell(ToControl::Client(ClientNews { stream, client, session, what }));
    }

    /// Ends a session on request; returns whether it existed.
    pub fn end_by_key(&mut self, now: Instant, session: SessionKey) -> bool {
        let was_there = self.server.session_keys().any(|key| key == session);
        let slot = self.links.of_session(session);
        match slot.filter(|slot| self.links.get(*slot as usize).is_some_and(|link| link.playing.is_some())) {
            Some(slot) => self.end_client(now, slot, EndReason::Asked),
            // A publisher, a session that does not play, or one that receives a group.
            None if was_there => self.server.end_told(now, session, EndReason::Asked),
            None => {}
        }
        self.process_events(now);
        was_there
    }

    /// The relays that a stream has passed through on its way to this one.
    pub fn set_path(&mut self, id: StreamId, path: Arc<str>) {
        self.server.set_path(id, path);
    }
}
