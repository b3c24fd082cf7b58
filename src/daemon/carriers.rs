//! The carriers: processes of the relay before an upgrade that stay because they have the keys of TLS connections, and which carry those
//! for this process. It limits their number, and they end with it.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::limits::{CARRIER_FAREWELL_MS, CARRIERS_MAX};
use crate::metrics::process;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::upgrade::{CarrierKnown, Control, Order};

/// The carriers of this process, oldest first. No borrow is held across an `await`.
#[derive(Clone)]
pub(super) struct Carriers {
    all: Rc<RefCell<Vec<Carrier>>>,
    /// Which have their clients.
    shards: Rc<[ShardSender]>,
}

struct Carrier {
    known: CarrierKnown,
    control: Rc<Control>,
    /// Listens to it.
    listens: AbortHandle,
    /// It was told to end.
    ends: bool,
}

impl Carriers {
    /// None yet.
    pub(super) fn new(shards: Rc<[ShardSender]>) -> Carriers {
        Carriers { all: Rc::default(), shards }
    }

    /// Those that the process before had, and that process itself, which perhaps becomes one: its number of connections says so.
    pub(super) fn take_over(&self, carriers: impl IntoIterator<Item = (CarrierKnown, UnixStream)>) {
        for (known, socket) in carriers {
            match Control::new(socket) {
                Ok(control) => self.add(known, control),
                // It ends without its control, and its clients connect anew.
                Err(error) => warn!(pid = known.pid, "cannot control a process that carries TLS connections ({error})"),
            }
        }
        self.count();
    }

    fn add(&self, known: CarrierKnown, control: Control) {
        let control = Rc::new(control);
        // What it has said to the process before may have been lost.
        control.order(Order::Tell);
        let (carriers, heard) = (self.clone(), Rc::clone(&control));
        let listening = spawn_local(async move {
            while let Some(connections) = heard.told().await {
                carriers.told(known.pid, connections);
            }
            carriers.ended(known.pid);
        });
        self.all.borrow_mut().push(Carrier { known, control, listens: listening.abort_handle(), ends: false });
    }

    /// Another process has them now, and what they say is for that one.
    pub(super) fn let_go(&self) {
        self.all.borrow_mut().drain(..).for_each(|carrier| carrier.listens.abort());
    }

    /// The carriers, and for each a further handle on its control connection, for the next process.
    ///
    /// # Errors
    /// The error of `dup`.
    pub(super) fn passed_on(&self) -> io::Result<(Vec<CarrierKnown>, Vec<OwnedFd>)> {
        let all = self.all.borrow();
        let controls = all.iter().map(|carrier| carrier.control.to_owned_fd()).collect::<io::Result<_>>()?;
        Ok((all.iter().map(|carrier| carrier.known).collect(), controls))
    }

    fn told(&self, pid: u32, connections: usize) {
        if let Some(carrier) = self.all.borrow_mut().iter_mut().find(|carrier| carrier.known.pid == pid) {
            let before = std::mem::replace(&mut carrier.known.connections, connections);
            if before == 0 && connections > 0 {
                info!(pid, connections, "the process before stays and carries its TLS connections");
            }
        }
        self.limit();
        self.count();
    }

    fn ended(&self, pid: u32) {
        let mut all = self.all.borrow_mut();
        if let Some(at) = all.iter().position(|carrier| carrier.known.pid == pid)
            && all.remove(at).known.connections > 0
        {
            info!(pid, carriers = all.len(), "a process that carried TLS connections has ended");
        }
        drop(all);
        self.count();
    }

    /// Tells the oldest to end while there are too many.
    fn limit(&self) {
        let mut all = self.all.borrow_mut();
        let carry = |carrier: &&mut Carrier| carrier.known.connections > 0 && !carrier.ends;
        while all.iter_mut().filter(carry).count() > CARRIERS_MAX
            && let Some(oldest) = all.iter_mut().find(carry)
        {
            oldest.ends = true;
            let CarrierKnown { pid, connections } = oldest.known;
            warn!(
                pid,
                connections,
                "more than {CARRIERS_MAX} processes of relays before this one carry TLS connections: the clients of the oldest are sent away, and may connect again"
            );
            for shard in self.shards.iter() {
                shard.tell(ToShard::SendAwayCarried(pid));
            }
            let control = Rc::clone(&oldest.control);
            spawn_local(async move {
                sleep(Duration::from_millis(CARRIER_FAREWELL_MS)).await;
                control.order(Order::End);
            });
        }
    }

    fn count(&self) {
        let all = self.all.borrow();
        let carry = all.iter().filter(|carrier| carrier.known.connections > 0);
        let (processes, connections) =
            carry.fold((0, 0), |(count, sum), carrier| (count + 1, sum + carrier.known.connections));
        process::set_carriers(processes, connections);
    }
}
