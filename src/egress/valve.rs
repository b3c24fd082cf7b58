//! Stops the reads and accepts of a thread's tasks, without losing anything that arrives meanwhile.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A valve between sockets and the tasks of a thread that read them. Initially open.
#[derive(Clone, Debug, Default)]
pub struct Valve(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    closed: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Valve {
    /// Nothing passes from now on.
    pub fn close(&self) {
        self.0.closed.set(true);
    }

    /// Everything passes again.
    pub fn open(&self) {
        self.0.closed.set(false);
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Waits for the future, which makes progress only while the valve is open. It must take nothing from a socket unless it
    /// completes.
    pub async fn pass<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if self.0.closed.get() {
                self.0.waiting.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            future.as_mut().poll(cx)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn nothing_is_read_while_it_is_closed_and_nothing_is_lost() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut near = tokio::net::UnixStream::from_std(near).unwrap();
        let valve = Valve::default();
        let mut byte = [0];
        {
            let mut read = pin!(valve.pass(near.read_exact(&mut byte)));
            // It waits in the socket when the valve is closed.
            assert!(timeout(Duration::from_millis(1), read.as_mut()).await.is_err());
            valve.close();
            far.write_all(b"x").unwrap();
            assert!(timeout(Duration::from_millis(20), read.as_mut()).await.is_err());
            valve.open();
            read.await.unwrap();
        }
        assert_eq!(byte, *b"x");
    }
}
