//! Places for HTTP connections. Connections without a request, those for pages, and those for monitoring have separate places, so that a
//! crowd of one kind does not block the others.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use tokio::task::AbortHandle;

use crate::crowd::{Crowd, Place, origin};
use crate::web::route;

/// What a connection last requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requested {
    /// Nothing yet.
    Unknown,
    /// Pages, or data about streams.
    Pages,
    /// Health or metrics.
    Probe,
}

impl Requested {
    /// A request for this path.
    pub(super) fn of(path: &str) -> Requested {
        if route::is_probe(path) { Requested::Probe } else { Requested::Pages }
    }

    /// Connections at a time; one more evicts the oldest of the address that has most, so that silent clients do not block others.
    const fn places(self) -> usize {
        match self {
            Requested::Unknown | Requested::Pages => 32,
            Requested::Probe => 16,
        }
    }
}

/// The open connections, by what they last requested.
#[derive(Debug, Default)]
pub(super) struct Places(RefCell<[Crowd<AbortHandle>; 3]>);

/// A connection's place, which is released when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    places: Rc<Places>,
    origin: Cell<IpAddr>,
    at: Cell<Option<(Requested, Place)>>,
}

impl Seat {
    /// A connection from that address. It has no place until its task is known.
    pub(super) fn new(places: &Rc<Places>, peer: IpAddr) -> Rc<Seat> {
        Rc::new(Seat { places: Rc::clone(places), origin: Cell::new(origin(peer)), at: Cell::new(None) })
    }

    /// This task serves the connection; it is aborted when the place is needed for another.
    pub(super) fn is_of(&self, task: AbortHandle) {
        self.take(Requested::Unknown, task);
    }

    /// The connection received a request for this path.
    pub(super) fn asked(&self, requested: Requested) {
        if self.at.get().is_some_and(|(of, _)| of != requested)
            && let Some(task) = self.leave()
        {
            self.take(requested, task);
        }
    }

    /// The connection turns out to be from that address.
    pub(super) fn is_from(&self, peer: IpAddr) {
        if self.origin.replace(origin(peer)) != origin(peer)
            && let Some((requested, _)) = self.at.get()
            && let Some(task) = self.leave()
        {
            self.take(requested, task);
        }
    }

    fn take(&self, requested: Requested, task: AbortHandle) {
        let mut crowds = self.places.0.borrow_mut();
        let crowd = &mut crowds[requested as usize];
        while crowd.len() >= requested.places() {
            let oldest = crowd.first_to_go(fastrand::u64(..)).map(|(place, _)| place);
            let Some(connection) = oldest.and_then(|place| crowd.remove(place)) else { break };
            connection.abort();
        }
        self.at.set(Some((requested, crowd.add(task, self.origin.get()))));
    }

    /// The task, if the place has not been given to another.
    fn leave(&self) -> Option<AbortHandle> {
        let (requested, place) = self.at.take()?;
        self.places.0.borrow_mut()[requested as usize].remove(place)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_crowd_of_pages_leaves_probes_their_places() {
        let tasks = tokio::task::LocalSet::new();
        tasks
            .run_until(async {
                let places = Rc::default();
                let come = |last: u8, path: Option<&str>| {
                    let seat = Seat::new(&places, IpAddr::from([192, 0, 2, last]));
                    let task = tokio::task::spawn_local(std::future::pending::<()>());
                    seat.is_of(task.abort_handle());
                    path.into_iter().for_each(|path| seat.asked(Requested::of(path)));
                    (seat, task)
                };
                let (_probe, scrape) = come(1, Some("/metrics"));
                let (_late, asks) = come(1, None);
                let crowd: Vec<_> = (0..100).map(|last| come(last + 2, Some("/+tiles"))).collect();
                while crowd.iter().filter(|(_, task)| task.is_finished()).count() < 100 - Requested::Pages.places() {
                    tokio::task::yield_now().await;
                }
                assert!(!scrape.is_finished() && !asks.is_finished());
                let left = crowd.iter().filter(|(_, task)| !task.is_finished()).count();
                assert_eq!(left, Requested::Pages.places());
                let taken = |requested: Requested| places.0.borrow()[requested as usize].len();
                assert_eq!((taken(Requested::Pages), taken(Requested::Probe), taken(Requested::Unknown)), (left, 1, 1));
                // Another kind of request changes the place, and a closed connection leaves nothing behind.
                crowd.last().unwrap().0.asked(Requested::Probe);
                assert_eq!((taken(Requested::Pages), taken(Requested::Probe)), (left - 1, 2));
                drop(crowd);
                assert_eq!((taken(Requested::Pages), taken(Requested::Probe)), (0, 1));
            })
            .await;
    }
}
