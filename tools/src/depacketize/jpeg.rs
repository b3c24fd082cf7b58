//! JPEG (RFC 2435): reconstructs the header that the packets omit.

use rtsprelay::media::codec::jpeg::{Header, begin};

use super::{FRAME_BYTES_MAX, PacketInfo};
use crate::frame::Frame;

/// Puts pictures together.
#[derive(Default)]
pub struct Jpeg {
    open: Option<Open>,
    pub(super) malformed: u64,
}

struct Open {
    info: PacketInfo,
    data: Vec<u8>,
    /// Bytes of the made-up header at the front of `data`.
    header: usize,
    damaged: bool,
}

impl Jpeg {
    /// Processes one payload.
    pub fn push(&mut self, info: PacketInfo, payload: &[u8], out: &mut dyn FnMut(Frame)) {
        if self.open.as_ref().is_some_and(|open| open.info.timestamp != info.timestamp) {
            // Its end never came.
            if let Some(open) = &mut self.open {
                open.damaged = true;
            }
            self.close(out);
        }
        if info.lost > 0
            && let Some(open) = &mut self.open
        {
            open.damaged = true;
        }
        if self.piece(info, payload).is_none() {
            self.malformed += 1;
            if let Some(open) = &mut self.open {
                open.damaged = true;
            }
        }
        if info.marker {
            self.close(out);
        }
    }

    /// Adds one packet's piece; none if it breaks the rules.
    fn piece(&mut self, info: PacketInfo, payload: &[u8]) -> Option<()> {
        let header = Header::parse(payload)?;
        if header.offset == 0 {
            let (data, scan) = begin(&header)?;
            let length = data.len();
            self.open = Some(Open { info, header: length, data, damaged: false });
            self.open.as_mut()?.data.extend_from_slice(scan);
            return Some(());
        }
        let open = self.open.get_or_insert_with(|| Open { info, data: Vec::new(), header: 0, damaged: true });
        open.info = info;
        if open.data.len() - open.header != header.offset || open.data.len() + header.rest.len() > FRAME_BYTES_MAX {
            // A loss that the sequence numbers have already shown.
            open.damaged = true;
            return Some(());
        }
        open.data.extend_from_slice(header.rest);
        Some(())
    }

    fn close(&mut self, out: &mut dyn FnMut(Frame)) {
        let Some(mut open) = self.open.take() else { return };
        if !open.data.ends_with(&[0xff, 0xd9]) {
            open.data.extend_from_slice(&[0xff, 0xd9]);
        }
        out(Frame {
            data: open.data,
            timestamp: open.info.timestamp,
            arrived: open.info.arrived,
            arrived_wall: open.info.arrived_wall,
            stamp: None,
            age: None,
            keyframe: true,
            damaged: open.damaged,
            after_loss: false,
            catching_up: false,
        });
    }
}
