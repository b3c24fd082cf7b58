//! The runtime for a thread's futures.

use std::future::Future;
use std::io;

use super::probe;
use crate::memory;

/// How a thread's sockets send. Reading always uses epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoKind {
    /// io_uring: the shard's ring.
    Uring,
    /// System calls per client, for machines where io_uring is not available.
    Epoll,
}

/// A runtime on the calling thread with timers, tokio's sockets and [`tokio::task::spawn_local`].
pub struct Runtime {
    kind: IoKind,
    runtime: tokio::runtime::Runtime,
    tasks: tokio::task::LocalSet,
}

impl Runtime {
    /// Creates a runtime of this kind.
    ///
    /// # Errors
    /// Why it could not be created; for [`IoKind::Uring`] with an [`IoUringUnavailable`](probe::IoUringUnavailable) inside.
    pub fn new(kind: IoKind) -> io::Result<Runtime> {
        if kind == IoKind::Uring {
            probe::probe().map_err(|why| io::Error::new(io::ErrorKind::Unsupported, why))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tasks = tokio::task::LocalSet::new();
        tasks.spawn_local(memory::give_cached());
        Ok(Runtime { kind, runtime, tasks })
    }

    /// Which kind it is.
    pub fn kind(&self) -> IoKind {
        self.kind
    }

    /// Drops all tasks; threads that still wait for something, such as a name's address, are left to themselves.
    pub fn abandon(self) {
        let Runtime { runtime, tasks, .. } = self;
        {
            let _within = runtime.enter();
            drop(tasks);
        }
        runtime.shutdown_background();
    }

    /// Runs the future on this thread until it completes; locally spawned tasks run meanwhile, and are dropped with the runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(self.tasks.run_until(future))
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
