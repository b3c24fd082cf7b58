//! Puts packets that came in another order than they were sent in back into it, within narrow bounds of time and number.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::limits::REORDER_PACKETS_MAX;

/// How long a packet that has come waits for one before it.
pub const WAIT_MAX: Duration = Duration::from_millis(20);

/// Steps of the sequence beyond which nothing is waited for: a new beginning, not a packet that is late.
const STEP_MAX: u16 = 256;

/// One track's packets. A packet in its turn passes at once; only behind a gap is anything kept.
#[derive(Debug, Default)]
pub struct Reorder {
    /// The sequence number that is next.
    next: Option<u16>,
    /// What came ahead of its turn, in the order of the sequence.
    kept: VecDeque<(u16, Instant, Bytes)>,
}

fn sequence(packet: &[u8]) -> Option<u16> {
    packet.get(2..4).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

impl Reorder {
    /// A packet was read at `received`; what is in its turn now goes to `out`, with the moment it was read at. What is no RTP and
    /// what comes late passes as it is: the timeline counts it.
    pub fn push(&mut self, received: Instant, packet: Bytes, out: &mut impl FnMut(Instant, Bytes)) {
        let Some(seq) = sequence(&packet) else { return out(received, packet) };
        let ahead = seq.wrapping_sub(*self.next.get_or_insert(seq));
        if ahead == 0 {
            self.next = Some(seq.wrapping_add(1));
            out(received, packet);
            return self.follow(out);
        }
        if ahead >= STEP_MAX {
            // Late, or the sequence begins anew.
            if ahead < u16::MAX - STEP_MAX {
                self.flush(out);
                self.next = Some(seq.wrapping_add(1));
            }
            return out(received, packet);
        }
        let place = |have: &u16| have.wrapping_sub(seq.wrapping_sub(ahead));
        let at = self.kept.partition_point(|(have, ..)| place(have) < ahead);
        if self.kept.get(at).is_some_and(|(have, ..)| *have == seq) {
            return out(received, packet);
        }
        self.kept.insert(at, (seq, received, packet));
        if self.kept.len() > REORDER_PACKETS_MAX {
            self.skip(out);
        }
    }

    /// When [`Reorder::tick`] is due, if anything is kept.
    pub fn deadline(&self) -> Option<Instant> {
        self.kept.iter().map(|(_, received, _)| *received + WAIT_MAX).min()
    }

    /// Waits no longer for what should have come by `now`.
    pub fn tick(&mut self, now: Instant, out: &mut impl FnMut(Instant, Bytes)) {
        while self.deadline().is_some_and(|due| due <= now) {
            self.skip(out);
        }
    }

    /// Goes on behind the gap.
    fn skip(&mut self, out: &mut impl FnMut(Instant, Bytes)) {
        self.next = self.kept.front().map(|(seq, ..)| *seq);
        self.follow(out);
    }

    fn follow(&mut self, out: &mut impl FnMut(Instant, Bytes)) {
        while self.kept.front().is_some_and(|(seq, ..)| Some(*seq) == self.next)
            && let Some((seq, received, packet)) = self.kept.pop_front()
        {
            self.next = Some(seq.wrapping_add(1));
            out(received, packet);
        }
    }

    fn flush(&mut self, out: &mut impl FnMut(Instant, Bytes)) {
        for (_, received, packet) in self.kept.drain(..) {
            out(received, packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(seq: u16) -> Bytes {
        let mut packet = vec![0x80, 96];
        packet.extend(seq.to_be_bytes());
        packet.extend([0; 8]);
        packet.into()
    }

    fn pushed(reorder: &mut Reorder, now: Instant, seqs: &[u16]) -> Vec<u16> {
        let mut out = Vec::new();
        for seq in seqs {
            reorder.push(now, packet(*seq), &mut |_, packet| out.push(sequence(&packet).unwrap()));
        }
        out
    }

    #[test]
    fn what_comes_in_order_passes_at_once() {
        let mut reorder = Reorder::default();
        assert_eq!(pushed(&mut reorder, Instant::now(), &[65_534, 65_535, 0, 1]), [65_534, 65_535, 0, 1]);
        assert_eq!(reorder.deadline(), None);
    }

    #[test]
    fn what_overtook_waits_for_what_it_overtook() {
        let now = Instant::now();
        let mut reorder = Reorder::default();
        assert_eq!(pushed(&mut reorder, now, &[65_533, 0, 65_535]), [65_533]);
        assert_eq!(reorder.deadline(), Some(now + WAIT_MAX));
        assert_eq!(pushed(&mut reorder, now, &[65_534]), [65_534, 65_535, 0]);
        assert_eq!(reorder.deadline(), None);
    }

    #[test]
    fn what_never_comes_is_not_waited_for_longer_than_the_bounds() {
        let now = Instant::now();
        let mut reorder = Reorder::default();
        assert_eq!(pushed(&mut reorder, now, &[1, 3, 4, 6]), [1]);
        let mut out = Vec::new();
        reorder.tick(now + WAIT_MAX, &mut |_, packet| out.push(sequence(&packet).unwrap()));
        assert_eq!(out, [3, 4, 6]);
        // Late: it passes, to be counted.
        assert_eq!(pushed(&mut reorder, now, &[2, 7]), [2, 7]);
        let many: Vec<u16> = (9..9 + REORDER_PACKETS_MAX as u16 + 1).collect();
        assert_eq!(pushed(&mut reorder, now, &many), many);
    }

    #[test]
    fn a_new_beginning_passes_at_once() {
        let now = Instant::now();
        let mut reorder = Reorder::default();
        assert_eq!(pushed(&mut reorder, now, &[100, 102, 30_000, 30_001]), [100, 102, 30_000, 30_001]);
    }

    #[test]
    fn in_whatever_order_they_come_each_passes_once() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..500 {
            let data: Vec<u8> = (0..random.usize(..900)).map(|_| random.u8(..)).collect();
            crate::source::fuzz::reorder(&data);
        }
    }
}
