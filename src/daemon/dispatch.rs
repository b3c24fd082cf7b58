//! Passes what the shards tell the control thread on to the sources that it is about.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::{mpsc, watch};

use super::admission::SharedAdmission;
use crate::shard::inbox::ToControl;
use crate::source::on_demand::Demand;
use crate::source::publisher::FromShard;

/// One stream's source, as the shards' messages reach it.
#[derive(Debug, Default)]
pub struct Outlet {
    /// What clients want of it, for one that is pulled on demand.
    pub demand: Option<watch::Sender<Demand>>,
    /// Where its publishers' doings go, for one that is published.
    pub publishing: Option<mpsc::UnboundedSender<FromShard>>,
    /// The shards that want it.
    wanting: Vec<bool>,
}

impl Outlet {
    /// The stream has another source now; what clients want of it is as it was.
    pub fn replace(&mut self, with: Outlet) {
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

/// The outlets of all streams, by number. No borrow is held across an `await`.
pub type Outlets = Rc<RefCell<Vec<Outlet>>>;

/// Passes messages on until the task is dropped.
pub async fn dispatch(
    mut messages: mpsc::UnboundedReceiver<(u16, ToControl)>,
    outlets: Outlets,
    admission: SharedAdmission,
) {
    while let Some((shard, message)) = messages.recv().await {
        let mut outlets = outlets.borrow_mut();
        match message {
            ToControl::Gone { peer } => admission.borrow_mut().gone(peer),
            ToControl::Demand { stream, wanted } => {
                if let Some(outlet) = outlets.get_mut(usize::from(stream.0)) {
                    outlet.demand(shard, wanted);
                }
            }
            ToControl::Publishing { stream, session, what } => {
                let outlet = outlets.get(usize::from(stream.0));
                if let Some(publishing) = outlet.and_then(|outlet| outlet.publishing.as_ref()) {
                    // The source ends only at a stop.
                    let _ = publishing.send((shard, session, what));
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
