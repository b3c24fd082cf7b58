//! A socket pair with messages: plain data as JSON, the bytes of media beside it as they are, and descriptors.
//!
//! A message is a header of three numbers of 32 bits (little-endian: bytes of JSON, blocks of bytes, descriptors), the length of each
//! block, the JSON, and the blocks. The descriptors come before the JSON, with one byte for each part of at most
//! [`MESSAGE_FDS_MAX`]. Both sides wait at most until the deadline.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::iter::once;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{VERSION, VERSION_OLDEST};
use crate::sys::{MESSAGE_FDS_MAX, recv_descriptors};

/// The first bytes on the channel, in both directions; the version follows.
const MAGIC: [u8; 8] = *b"rtsprly\n";

/// The version of a process that accepts none.
const NONE: u32 = 0;

/// The byte that commits.
const COMMIT: u8 = 0xC0;

/// The byte that descriptors come with.
const PART: u8 = 0xFD;

/// Maximum size of a message's JSON and of a block, against nonsense.
const PART_BYTES_MAX: usize = 1 << 30;

/// Maximum number of a message's blocks and descriptors.
const PARTS_MAX: usize = 1 << 24;

/// Maximum number of buffers in a call (`UIO_MAXIOV`, readv(2)).
const AT_ONCE_MAX: usize = 1_024;

/// How often descriptors are sent again while too many are in flight (`ETOOMANYREFS`, unix(7)).
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    deadline: Instant,
    descriptors: VecDeque<OwnedFd>,
    recording: Option<File>,
}

/// A message that has been received.
#[derive(Debug)]
pub struct Received<T> {
    /// Its data.
    pub message: T,
    /// The bytes beside it, in order.
    pub blocks: VecDeque<Bytes>,
    /// Its descriptors, in order.
    pub descriptors: Vec<OwnedFd>,
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the other process sends {what}"))
}

/// Writes the first `count` bytes of these buffers to the file.
fn record(file: &mut File, buffers: &[IoSliceMut<'_>], mut count: usize) -> io::Result<()> {
    for buffer in buffers {
        let part = &buffer[..count.min(buffer.len())];
        file.write_all(part)?;
        count -= part.len();
        if count == 0 {
            break;
        }
    }
    Ok(())
}

/// A message as it is sent, without what comes beside it.
///
/// # Errors
/// It cannot be written as JSON.
pub fn written<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(message)?)
}

impl Channel {
    pub(super) fn new(socket: UnixStream) -> Channel {
        Channel { socket, deadline: Instant::now(), descriptors: VecDeque::new(), recording: None }
    }

    /// From now on, what is received is also written to the file, for tests.
    pub fn record(&mut self, file: File) {
        self.recording = Some(file);
    }

    /// Another handle on the socket pair's end, for what follows the commit.
    ///
    /// # Errors
    /// The error of `dup`.
    pub fn to_socket(&self) -> io::Result<UnixStream> {
        self.socket.try_clone()
    }

    /// The socket pair's end, for what follows the commit.
    pub fn into_socket(self) -> UnixStream {
        self.socket
    }

    /// From now on, sending and receiving end with `TimedOut` at that time.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Says which version this process writes, and waits for the other to accept it.
    ///
    /// # Errors
    /// A sentence, if it does not; otherwise the error of the socket.
    pub fn greet(&mut self) -> io::Result<()> {
        self.greet_with(VERSION)
    }

    /// As [`Channel::greet`], for a process that writes that version.
    ///
    /// # Errors
    /// As there.
    pub fn greet_with(&mut self, version: u32) -> io::Result<()> {
        self.say_version(version)?;
        match self.hear_version()? {
            heard if heard == version => Ok(()),
            _ => Err(io::Error::new(
                ErrorKind::Unsupported,
                format!("the other program does not understand the format of this one ({version}); restart instead"),
            )),
        }
    }

    /// Waits for the version of the other process, and says whether this one reads it.
    ///
    /// # Errors
    /// A sentence, if it does not; otherwise the error of the socket.
    pub fn greeted(&mut self) -> io::Result<u32> {
        let theirs = self.hear_version()?;
        if (VERSION_OLDEST..=VERSION).contains(&theirs) {
            self.say_version(theirs)?;
            return Ok(theirs);
        }
        self.say_version(NONE)?;
        Err(io::Error::new(
            ErrorKind::Unsupported,
            format!(
                "the running relay speaks version {theirs} of the format, and this program reads {VERSION_OLDEST} to {VERSION}; restart instead"
            ),
        ))
    }

    fn say_version(&mut self, version: u32) -> io::Result<()> {
        self.write(&[&MAGIC[..], &version.to_le_bytes()].concat())
    }

    fn hear_version(&mut self) -> io::Result<u32> {
        let mut head = [0; 12];
        self.read(&mut head)?;
        if head[..8] != MAGIC {
            return Err(nonsense("something that is not the start of a hand-over"));
        }
        Ok(u32::from_le_bytes([head[8], head[9], head[10], head[11]]))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The error of the socket, `TimedOut` at the deadline.
    pub fn send<T: Serialize>(
        &mut self,
        message: &T,
        blocks: &[Bytes],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.send_written(&written(message)?, blocks, descriptors)
    }

    /// As [`Channel::send`], of a message that is [`written`] already.
    ///
    /// # Errors
    /// As there.
    pub fn send_written(&mut self, text: &[u8], blocks: &[Bytes], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut head = Vec::with_capacity(12 + 4 * blocks.len());
        for number in [text.len(), blocks.len(), descriptors.len()].into_iter().chain(blocks.iter().map(Bytes::len)) {
            let number = u32::try_from(number).map_err(|_| io::Error::other("there is too much to hand over"))?;
            head.extend_from_slice(&number.to_le_bytes());
        }
        self.write(&head)?;
        for part in descriptors.chunks(MESSAGE_FDS_MAX) {
            self.send_part(part)?;
        }
        self.write_all(
            &mut once(text).chain(blocks.iter().map(|block| &block[..])).map(IoSlice::new).collect::<Vec<_>>(),
        )
    }

    /// Receives a message.
    ///
    /// # Errors
    /// The error of the socket: `TimedOut` at the deadline, `UnexpectedEof` if the other process has ended; `InvalidData` for what is not
    /// such a message.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Received<T>> {
        let [text, blocks, descriptors] = self.read_numbers()?;
        if text > PART_BYTES_MAX || blocks > PARTS_MAX || descriptors > PARTS_MAX {
            return Err(nonsense("a message of an impossible size"));
        }
        let mut lengths = vec![0; 4 * blocks];
        self.read(&mut lengths)?;
        let mut parts = vec![0; descriptors.div_ceil(MESSAGE_FDS_MAX)];
        self.read(&mut parts)?;
        if parts.iter().any(|part| *part != PART) || self.descriptors.len() != descriptors {
            return Err(nonsense("descriptors that it has not announced"));
        }
        let mut json = vec![0; text];
        let mut blocks = Vec::with_capacity(blocks);
        for length in lengths.chunks_exact(4) {
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
            if length > PART_BYTES_MAX {
                return Err(nonsense("a block of an impossible size"));
            }
            blocks.push(vec![0; length]);
        }
        let buffers = once(&mut json).chain(&mut blocks);
        self.read_all(&mut buffers.map(|buffer| IoSliceMut::new(buffer)).collect::<Vec<_>>())?;
        let message = serde_json::from_slice(&json)?;
        let blocks = blocks.into_iter().map(Bytes::from).collect();
        Ok(Received { message, blocks, descriptors: self.descriptors.drain(..).collect() })
    }

    /// Says the byte after which the other process serves and this one ends.
    ///
    /// # Errors
    /// The other process has ended: nothing has been handed over.
    pub fn commit(&mut self) -> io::Result<()> {
        self.write(&[COMMIT])
    }

    /// Waits for that byte.
    ///
    /// # Errors
    /// It will not come, and the running relay goes on.
    pub fn committed(&mut self) -> io::Result<()> {
        let mut byte = [0];
        self.read(&mut byte)?;
        if byte == [COMMIT] { Ok(()) } else { Err(nonsense("something else than the commit")) }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "the other process took too long"));
        }
        Ok(left)
    }

    fn read_numbers(&mut self) -> io::Result<[usize; 3]> {
        let mut head = [0; 12];
        self.read(&mut head)?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        Ok([number(0), number(4), number(8)])
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.read_all(&mut [IoSliceMut::new(buffer)])
    }

    /// Fills all of these, in as few calls as there can be.
    fn read_all(&mut self, mut buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        // The empty ones at the start.
        IoSliceMut::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            self.socket.set_read_timeout(Some(self.left()?))?;
            let at_once = buffers.len().min(AT_ONCE_MAX);
            match recv_descriptors(self.socket.as_fd(), &mut buffers[..at_once], &mut self.descriptors) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the other process has ended")),
                Ok(count) => {
                    if let Some(file) = &mut self.recording {
                        record(file, buffers, count)?;
                    }
                    IoSliceMut::advance_slices(&mut buffers, count);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(&mut [IoSlice::new(bytes)])
    }

    /// Writes all of these, in as few calls as there can be.
    fn write_all(&mut self, mut buffers: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            let count = self.send_some(&buffers[..buffers.len().min(AT_ONCE_MAX)], &[])?;
            IoSlice::advance_slices(&mut buffers, count);
        }
        Ok(())
    }

    fn send_part(&mut self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        self.send_some(&[IoSlice::new(&[PART])], &[ControlMessage::ScmRights(&numbers)]).map(drop)
    }

    /// Sends what there is room for, and waits for some. A send that waits by itself would have the whole time for each of the pieces that the
    /// kernel makes of it (unix(7), `SO_SNDTIMEO`).
    fn send_some(&self, buffers: &[IoSlice<'_>], rights: &[ControlMessage<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            let left = self.left()?;
            match sendmsg::<()>(self.socket.as_raw_fd(), buffers, rights, flags, None) {
                Ok(count) => return Ok(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let mut room = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    // Rounded up, or the last millisecond would be spent without waiting.
                    let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
                    if let Err(error) = poll(&mut room, left)
                        && error != Errno::EINTR
                    {
                        return Err(error.into());
                    }
                }
                // The other side has not received those before.
                Err(Errno::ETOOMANYREFS) => std::thread::sleep(REFUSED_PAUSE),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (near, far) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let [mut near, mut far] = [near, far].map(Channel::new);
        near.set_deadline(deadline);
        far.set_deadline(deadline);
        (near, far)
    }

    #[test]
    fn data_bytes_and_hundreds_of_descriptors_arrive_in_order() {
        let (mut near, mut far) = pair();
        let sockets: Vec<UnixStream> = (0..300).map(|_| UnixStream::pair().unwrap().0).collect();
        let inode = |fd: &dyn AsFd| nix::sys::stat::fstat(fd.as_fd()).unwrap().st_ino;
        let sent: Vec<_> = sockets.iter().map(|socket| inode(socket)).collect();
        let thread = std::thread::spawn(move || {
            let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            near.send(&"all", &[Bytes::from(vec![7; 1 << 20]), Bytes::new()], &descriptors).unwrap();
            near.send(&1u32, &[], &descriptors[..1]).unwrap();
            near
        });
        let Received { message, blocks, descriptors } = far.receive::<String>().unwrap();
        assert_eq!((message.as_str(), blocks.len()), ("all", 2));
        assert!(blocks[0].len() == 1 << 20 && blocks[0].iter().all(|byte| *byte == 7) && blocks[1].is_empty());
        let came: Vec<_> = descriptors.iter().map(|descriptor| inode(descriptor)).collect();
        assert_eq!(came, sent);
        assert_eq!(far.receive::<u32>().unwrap().descriptors.len(), 1);
        drop(thread.join().unwrap());
        assert_eq!(far.committed().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn versions_are_compared_before_anything_else() {
        let (mut near, mut far) = pair();
        let thread = std::thread::spawn(move || far.greeted().unwrap());
        near.greet().unwrap();
        assert_eq!(thread.join().unwrap(), VERSION);
        let (mut near, mut far) = pair();
        near.say_version(VERSION + 1).unwrap();
        assert_eq!(far.greeted().unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(near.hear_version().unwrap(), NONE);
    }

    #[test]
    fn a_silent_process_is_not_waited_for_beyond_the_deadline() {
        let (mut near, _far) = pair();
        near.set_deadline(Instant::now() + Duration::from_millis(30));
        assert_eq!(near.committed().unwrap_err().kind(), ErrorKind::TimedOut);
        // Nor if it does not read.
        near.set_deadline(Instant::now() + Duration::from_millis(30));
        let blocks = vec![Bytes::from(vec![7; 1 << 20]); 8];
        assert_eq!(near.send(&"all", &blocks, &[]).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn nonsense_is_refused() {
        let (mut near, mut far) = pair();
        near.write(&[0xff; 64]).unwrap();
        assert_eq!(far.receive::<u32>().unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
