//! Packs H.264 NAL units into RTP packets (RFC 6184, packetization mode 1), for sources without a camera.

/// Maximum payload of a packet in bytes: with the headers of RTP and UDP it fits well into an Ethernet frame.
pub const PAYLOAD_BYTES_MAX: usize = 1_400;

/// `nal_unit_type` of a fragmentation unit without a decoding order number (RFC 6184 section 5.8).
const FU_A: u8 = 28;

/// Writes the RTP packets of one track, with consecutive numbers.
#[derive(Clone, Debug)]
pub struct Packetizer {
    payload_type: u8,
    ssrc: u32,
    next_seq: u16,
    buffer: Vec<u8>,
}

impl Packetizer {
    /// A track whose packets have `payload_type` (below 128), `ssrc`, and sequence numbers from `first_seq`.
    pub fn new(payload_type: u8, ssrc: u32, first_seq: u16) -> Self {
        debug_assert!(payload_type < 128);
        Packetizer { payload_type, ssrc, next_seq: first_seq, buffer: Vec::new() }
    }

    /// Passes `out` the packets of one NAL unit (without its start code): the unit itself if it fits into [`PAYLOAD_BYTES_MAX`],
    /// otherwise its FU-A fragments, all full except the last. An empty unit yields none.
    ///
    /// `last` says that the access unit ends with it, which sets the marker of the last packet.
    pub fn nal(&mut self, nal: &[u8], rtp_time: u32, last: bool, mut out: impl FnMut(&[u8])) {
        let Some((&header, body)) = nal.split_first() else { return };
        if nal.len() <= PAYLOAD_BYTES_MAX {
            self.begin(rtp_time, last);
            self.buffer.extend_from_slice(nal);
            out(self.end());
            return;
        }
        let fragments = body.len().div_ceil(PAYLOAD_BYTES_MAX - 2);
        for (index, fragment) in body.chunks(PAYLOAD_BYTES_MAX - 2).enumerate() {
            let (start, end) = (index == 0, index + 1 == fragments);
            self.begin(rtp_time, last && end);
            self.buffer.push(header & 0xe0 | FU_A);
            self.buffer.push(u8::from(start) << 7 | u8::from(end) << 6 | header & 0x1f);
            self.buffer.extend_from_slice(fragment);
            out(self.end());
        }
    }

    /// A packet with `payload`.
    pub fn packet(&mut self, payload: &[u8], rtp_time: u32, marker: bool) -> &[u8] {
        self.begin(rtp_time, marker);
        self.buffer.extend_from_slice(payload);
        self.end()
    }

    /// The sequence number of the next packet.
    pub fn next_seq(&self) -> u16 {
        self.next_seq
    }

    fn begin(&mut self, rtp_time: u32, marker: bool) {
        self.buffer.clear();
        self.buffer.extend_from_slice(&[2 << 6, u8::from(marker) << 7 | self.payload_type]);
        self.buffer.extend_from_slice(&self.next_seq.to_be_bytes());
        self.buffer.extend_from_slice(&rtp_time.to_be_bytes());
        self.buffer.extend_from_slice(&self.ssrc.to_be_bytes());
    }

    fn end(&mut self) -> &[u8] {
        self.next_seq = self.next_seq.wrapping_add(1);
        &self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rtp::HEADER_BYTES;

    /// Puts NAL units together again from payloads: single units and FU-A only.
    fn reassemble(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut nals: Vec<Vec<u8>> = Vec::new();
        for packet in packets {
            let payload = &packet[HEADER_BYTES..];
            assert!(payload.len() <= PAYLOAD_BYTES_MAX);
            if payload[0] & 0x1f == FU_A {
                if payload[1] & 0x80 != 0 {
                    nals.push(vec![payload[0] & 0xe0 | payload[1] & 0x1f]);
                }
                nals.last_mut().expect("a start came first").extend_from_slice(&payload[2..]);
            } else {
                nals.push(payload.to_vec());
            }
        }
        nals
    }

    fn nal(len: usize) -> Vec<u8> {
        (0..len).map(|index| if index == 0 { 0x65 } else { (index * 7) as u8 }).collect()
    }

    #[test]
    fn every_size_comes_back_whole() {
        let around = |n: usize| n - 2..=n + 2;
        let sizes = [1, 2, 3, 60].into_iter();
        for len in sizes.chain(around(1400)).chain(around(1399 + 1398)).chain(around(1 + 3 * 1398)).chain([60_000]) {
            let mut packetizer = Packetizer::new(96, 7, 65_534);
            let mut packets = Vec::new();
            packetizer.nal(&nal(len), 90, true, |packet| packets.push(packet.to_vec()));
            assert_eq!(reassemble(&packets), [nal(len)], "{len} bytes");
            let markers: Vec<_> = packets.iter().map(|packet| packet[1] >> 7 == 1).collect();
            assert_eq!(markers.iter().filter(|marker| **marker).count(), 1);
            assert!(markers.last().is_some_and(|marker| *marker));
            for (index, packet) in packets.iter().enumerate() {
                let seq = u16::from_be_bytes([packet[2], packet[3]]);
                assert_eq!(seq, 65_534u16.wrapping_add(index as u16));
                let fu = packet[HEADER_BYTES] & 0x1f == FU_A;
                let bits = if fu { packet[HEADER_BYTES + 1] >> 6 } else { 3 };
                let want = u8::from(index == 0) << 1 | u8::from(index + 1 == packets.len());
                assert_eq!(bits, want, "start and end bits of fragment {index} of {len} bytes");
            }
        }
    }

    #[test]
    fn an_empty_unit_gives_no_packet() {
        let mut packetizer = Packetizer::new(96, 7, 0);
        packetizer.nal(&[], 0, true, |_| panic!("a packet of nothing"));
        assert_eq!(packetizer.next_seq(), 0);
    }
}
