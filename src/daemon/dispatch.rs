//! Passes the shards' messages to the control thread on to the sources concerned.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::{mpsc, watch};

use super::admission::SharedAdmission;
use super::events::{Event, Events};
use super::registry::Wanted;
use super::stream_ids::StreamIds;
use crate::media::StreamId;
use crate::session::NameWanted;
use crate::shard::inbox::{ClientNews, ToControl};
use crate::source::spec::Demand;

/// The connection from the shards' messages to one stream's source.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    /// What clients want from it, if it is pulled on demand.
    pub demand: Option<watch::Sender<Demand>>,
    /// Counts requests while it was down, if it is pulled.
    pub asked: Option<watch::Sender<u64>>,
    /// The shards that want it.
    wanting: Vec<bool>,
}

impl Outlet {
    /// The stream has another source now; what clients want is unchanged.
    pub(super) fn replace(&mut self, with: Outlet) {
        let wanting = std::mem::take(&mut self.wanting);
        *self = Outlet { wanting, ..with };
        let shards = self.wanting.iter().filter(|wanted| **wanted).count();
        if let Some(demand) = &self.demand {
            demand.send_modify(|demand| demand.shards = shards);
        }
    }

    fn demand(&mut self, shard: u16, wanted: bool) {
        let index = usize::from(shard);
        if self.wanting.len() <= index {
            self.wanting.resize(index + 1, false);
        }
        self.wanting[index] = wanted;
        let shards = self.wanting.iter().filter(|wanted| **wanted).count();
        let Some(demand) = &self.demand else { return };
        demand.send_modify(|demand| {
            demand.shards = shards;
            demand.asked += u64::from(wanted);
        });
    }
}

/// The outlets of all streams. No borrow is held across an `await`.
pub(super) type Outlets = Rc<RefCell<HashMap<StreamId, Outlet>>>;

/// Whom the shards' messages concern.
pub(super) struct Desk {
    /// The streams' sources.
    pub outlets: Outlets,
    /// The streams' ids.
    pub ids: Rc<RefCell<StreamIds>>,
    /// The connections.
    pub admission: SharedAdmission,
    /// Requests for names that no stream has.
    pub wanted: mpsc::UnboundedSender<Wanted>,
    /// The readers of events.
    pub events: Events,
}

/// Passes messages on until the task is dropped.
pub(super) async fn dispatch(mut messages: mpsc::UnboundedReceiver<(u16, ToControl)>, desk: Desk) {
    while let Some((shard, message)) = messages.recv().await {
        desk.pass_on(shard, message);
    }
}

impl Desk {
    /// Passes on one message.
    pub(super) fn pass_on(&self, shard: u16, message: ToControl) {
        let Desk { outlets, ids, admission, wanted, events } = self;
        let mut outlets = outlets.borrow_mut();
        match message {
            ToControl::Gone { peer } => admission.borrow_mut().gone(peer),
            ToControl::Demand { stream, wanted } => {
                if let Some(outlet) = outlets.get_mut(&stream) {
                    outlet.demand(shard, wanted);
                }
            }
            ToControl::Client(ClientNews { stream, client, session, what }) => {
                let session = session.to_string();
                let event = match what {
                    Ok(transport) => Event::ClientCame { client, session, transport: transport.name() },
                    Err(reason) => Event::ClientGone { client, session, reason: reason.name() },
                };
                events.tell(&stream, &event);
            }
            ToControl::Wanted(NameWanted { name, peer, publish, via }) => {
                // Nobody listens during a stop.
                let _ = wanted.send(Wanted { name, peer: peer.ip(), publish, via, shard });
            }
            ToControl::Asked { stream } => {
                if let Some(asked) = outlets.get(&stream).and_then(|outlet| outlet.asked.as_ref()) {
                    asked.send_modify(|times| *times = times.wrapping_add(1));
                }
            }
            ToControl::Released { stream } => {
                if ids.borrow_mut().released(stream) {
                    outlets.remove(&stream);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_wanted_as_long_as_one_shard_wants_it() {
        let (sender, seen) = watch::channel(Demand::default());
        let mut outlet = Outlet { demand: Some(sender), ..Outlet::default() };
        for (shard, wanted, expected) in [(3, true, (1, 1)), (0, true, (2, 2)), (3, false, (1, 2)), (0, false, (0, 2))]
        {
            outlet.demand(shard, wanted);
            let demand = *seen.borrow();
            assert_eq!((demand.shards, demand.asked), expected);
        }
    }
}
