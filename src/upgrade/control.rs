//! What the serving process and a carrier say to each other after the commit, on the socket pair that was their channel. The serving
//! process says single bytes ([`Order`]); a carrier says how many connections it has, in 32 bits (little-endian). When the serving
//! process ends, however, the carrier's end closes, and the carrier ends too: it has nothing to carry any more.
//!
//! An upgrade passes the serving process's end on; then two processes have it for a moment, and only one speaks.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use tokio::net::UnixStream;

/// What the serving process wants from a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Say how many connections there are.
    Tell,
    /// Send the clients away, and end.
    End,
}

impl Order {
    const fn byte(self) -> u8 {
        match self {
            Order::Tell => b'?',
            Order::End => b'!',
        }
    }
}

/// One end of a control connection, of either side.
#[derive(Debug)]
pub struct Control(UnixStream);

impl Control {
    /// Takes an end over, within a runtime.
    ///
    /// # Errors
    /// The error of `fcntl` or of the registration with epoll.
    pub fn new(socket: StdUnixStream) -> io::Result<Control> {
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket).map(Control)
    }

    /// Another handle on it, for the next process.
    ///
    /// # Errors
    /// The error of `dup`.
    pub fn to_owned_fd(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Tells a carrier what to do. One that does not listen has ended, or is about to.
    pub fn order(&self, order: Order) {
        let _ = self.write(&[order.byte()]);
    }

    /// Waits for the next order; `None` if the serving process has ended. Unknown ones are passed over. May be dropped without losing
    /// anything.
    pub async fn ordered(&self) -> Option<Order> {
        loop {
            let mut byte = [0];
            if self.read(&mut byte).await? == 1
                && let Some(order) = [Order::Tell, Order::End].into_iter().find(|order| order.byte() == byte[0])
            {
                return Some(order);
            }
        }
    }

    /// Tells the serving process how many connections there are. Returns whether it was told: a later number replaces it anyway.
    pub fn tell(&self, connections: usize) -> bool {
        let count = u32::try_from(connections).unwrap_or(u32::MAX).to_le_bytes();
        self.write(&count).is_ok()
    }

    /// Without tokio, which does not write before it has been told that there is room.
    fn write(&self, bytes: &[u8]) -> nix::Result<usize> {
        nix::unistd::write(self.0.as_fd(), bytes)
    }

    /// Waits for the next number of a carrier's connections; `None` if it has ended. May be dropped without losing anything.
    pub async fn told(&self) -> Option<usize> {
        loop {
            let mut count = [0; 4];
            // Each is written at once, and nothing else ever is.
            if self.read(&mut count).await? == count.len() {
                return usize::try_from(u32::from_le_bytes(count)).ok();
            }
        }
    }

    async fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            self.0.readable().await.ok()?;
            match self.0.try_read(buffer) {
                Ok(0) => return None,
                Ok(count) => return Some(count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::IoKind;
    use crate::egress::runtime::Runtime;

    #[test]
    fn orders_and_numbers_arrive_and_an_end_is_noticed_when_the_last_has_it_no_more() {
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            let (serving, carrier) = StdUnixStream::pair().unwrap();
            let (serving, carrier) = (Control::new(serving).unwrap(), Control::new(carrier).unwrap());
            assert!(carrier.tell(7) && carrier.tell(3));
            assert_eq!((serving.told().await, serving.told().await), (Some(7), Some(3)));
            let next = Control::new(serving.to_owned_fd().unwrap().into()).unwrap();
            serving.order(Order::Tell);
            drop(serving);
            next.order(Order::End);
            assert_eq!((carrier.ordered().await, carrier.ordered().await), (Some(Order::Tell), Some(Order::End)));
            drop(next);
            assert_eq!(carrier.ordered().await, None);
        });
    }
}
