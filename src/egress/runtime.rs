//! The runtime that a thread's futures run on, over io_uring or epoll, behind one face.

use std::future::Future;
use std::io;

use super::probe;

/// What a thread's sockets are driven by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoKind {
    /// io_uring: reads through tokio-uring, sends through the shard's own ring.
    Uring,
    /// epoll, for machines where io_uring is blocked.
    Epoll,
}

/// Entries of the submission queue that a thread's reads go through.
const READ_RING_ENTRIES: u32 = 1024;

/// Entries of its completion queue: reads of many idle clients may end at once (a source's players leaving).
const READ_RING_COMPLETIONS: u32 = 8 * 1024;

/// A runtime on the calling thread with timers, tokio's sockets and [`tokio::task::spawn_local`].
pub struct Runtime(Inner);

enum Inner {
    Uring(tokio_uring::Runtime),
    Epoll(Box<(tokio::runtime::Runtime, tokio::task::LocalSet)>),
}

impl Runtime {
    /// Makes the runtime of the kind.
    ///
    /// # Errors
    /// Whatever kept it from being made; for [`IoKind::Uring`] with an
    /// [`IoUringUnavailable`](probe::IoUringUnavailable) inside.
    pub fn new(kind: IoKind) -> io::Result<Runtime> {
        match kind {
            IoKind::Uring => {
                probe::probe().map_err(|why| io::Error::new(io::ErrorKind::Unsupported, why))?;
                // Cooperative task running spares the thread an interrupt for every read that completes while it works;
                // kernels before 5.19 refuse it.
                let mut ring = tokio_uring::uring_builder();
                ring.setup_cqsize(READ_RING_COMPLETIONS);
                let mut cooperative = ring.clone();
                cooperative.setup_coop_taskrun();
                let build = |ring| {
                    tokio_uring::Runtime::new(tokio_uring::builder().entries(READ_RING_ENTRIES).uring_builder(ring))
                };
                let runtime = build(&cooperative).or_else(|_| build(&ring)).map_err(probe::explained)?;
                Ok(Runtime(Inner::Uring(runtime)))
            }
            IoKind::Epoll => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Ok(Runtime(Inner::Epoll(Box::new((runtime, tokio::task::LocalSet::new())))))
            }
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> IoKind {
        match self.0 {
            Inner::Uring(_) => IoKind::Uring,
            Inner::Epoll(_) => IoKind::Epoll,
        }
    }

    /// Runs the future on this thread until it ends; tasks spawned locally run meanwhile, and are dropped with the runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match &self.0 {
            Inner::Uring(runtime) => runtime.block_on(future),
            Inner::Epoll(runtime) => runtime.0.block_on(runtime.1.run_until(future)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_run_local_tasks_timers_and_sockets() {
        for kind in crate::egress::tests::kinds() {
            let runtime = Runtime::new(kind).unwrap();
            assert_eq!(runtime.kind(), kind);
            let done = Rc::new(Cell::new(0));
            let seen = done.clone();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let addr = listener.local_addr().unwrap();
                let task = tokio::task::spawn_local(async move {
                    tokio::net::TcpStream::connect(addr).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    done.set(done.get() + 1);
                });
                listener.accept().await.unwrap();
                task.await.unwrap();
            });
            assert_eq!(seen.get(), 1);
        }
    }
}
