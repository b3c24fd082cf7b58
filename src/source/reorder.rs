//! Restores the order of packets that were reordered on the way, within narrow limits of time and number.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::limits::REORDER_PACKETS_MAX;
use crate::media::saved::Moment;

/// How long a packet waits for a missing one before it.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(20);

/// Sequence jumps beyond which nothing waits: this is a restart, not a late packet.
const STEP_MAX: u16 = 256;

/// The packets of one track. A packet that is in order passes at once; packets are kept only after a gap.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Reorder<T = Instant> {
    /// The next expected sequence number.
    next: Option<u16>,
    /// Packets that arrived early, in order.
    kept: VecDeque<(u16, T, Kept)>,
}

/// A packet that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept(#[serde(with = "crate::media::saved::bytes")] Box<[u8]>);

impl<T> Default for Reorder<T> {
    fn default() -> Self {
        Reorder { next: None, kept: VecDeque::new() }
    }
}

/// The waiting packets as plain data.
pub(super) type ReorderState = Reorder<Moment>;

impl<T: Copy> Reorder<T> {
    fn with_moments<U>(&self, to: impl Fn(T) -> U) -> Reorder<U> {
        let kept = self.kept.iter().map(|(sequence, at, packet)| (*sequence, to(*at), packet.clone()));
        Reorder { next: self.next, kept: kept.collect() }
    }
}

fn sequence(packet: &[u8]) -> Option<u16> {
    packet.get(2..4).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

impl Reorder {
    /// The waiting packets as plain data.
    pub(super) fn save(&self, now: Instant) -> ReorderState {
        self.with_moments(|at| Moment::of(at, now))
    }

    /// Restores waiting packets.
    pub(super) fn restore(now: Instant, state: &ReorderState) -> Reorder {
        state.with_moments(|at| at.at(now))
    }

    /// A packet was read at `received`; what is now in order goes to `out`, with the time it was read. Packets that are not RTP or are
    /// late pass unchanged: the timeline counts them. Only packets that have to wait are copied.
    pub(super) fn push(&mut self, received: Instant, packet: &[u8], out: &mut impl FnMut(Instant, &[u8])) {
        let Some(seq) = sequence(packet) else { return out(received, packet) };
        let ahead = seq.wrapping_sub(*self.next.get_or_insert(seq));
        if ahead == 0 {
            self.next = Some(seq.wrapping_add(1));
            out(received, packet);
            return self.follow(out);
        }
        if ahead >= STEP_MAX {
            // Late, or the sequence restarts.
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
        self.kept.insert(at, (seq, received, Kept(packet.into())));
        if self.kept.len() > REORDER_PACKETS_MAX {
            self.skip(out);
        }
    }

    /// When [`Reorder::tick`] is due, if packets are waiting.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.kept.iter().map(|(_, received, _)| *received + WAIT_MAX).min()
    }

    /// Stops waiting for packets that should have arrived by `now`.
    pub(super) fn tick(&mut self, now: Instant, out: &mut impl FnMut(Instant, &[u8])) {
        while self.deadline().is_some_and(|due| due <= now) {
            self.skip(out);
        }
    }

    /// Continues after the gap.
    fn skip(&mut self, out: &mut impl FnMut(Instant, &[u8])) {
        self.next = self.kept.front().map(|(seq, ..)| *seq);
        self.follow(out);
    }

    fn follow(&mut self, out: &mut impl FnMut(Instant, &[u8])) {
        while self.kept.front().is_some_and(|(seq, ..)| Some(*seq) == self.next)
            && let Some((seq, received, packet)) = self.kept.pop_front()
        {
            self.next = Some(seq.wrapping_add(1));
            out(received, &packet.0);
        }
    }

    fn flush(&mut self, out: &mut impl FnMut(Instant, &[u8])) {
        for (_, received, packet) in self.kept.drain(..) {
            out(received, &packet.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(seq: u16) -> Vec<u8> {
        let mut packet = vec![0x80, 96];
        packet.extend(seq.to_be_bytes());
        packet.extend([0; 8]);
        packet
    }

    fn pushed(reorder: &mut Reorder, now: Instant, seqs: &[u16]) -> Vec<u16> {
        let mut out = Vec::new();
        for seq in seqs {
            reorder.push(now, &packet(*seq), &mut |_, packet| out.push(sequence(packet).unwrap()));
        }
        out
    }

    #[test]
    fn what_comes_in_order_passes_at_once() {
        let mut reorder = Reorder::<Instant>::default();
        assert_eq!(pushed(&mut reorder, Instant::now(), &[65_534, 65_535, 0, 1]), [65_534, 65_535, 0, 1]);
        assert_eq!(reorder.deadline(), None);
    }

    #[test]
    fn what_overtook_waits_for_what_it_overtook() {
        let now = Instant::now();
        let mut reorder = Reorder::<Instant>::default();
        assert_eq!(pushed(&mut reorder, now, &[65_533, 0, 65_535]), [65_533]);
        assert_eq!(reorder.deadline(), Some(now + WAIT_MAX));
        assert_eq!(pushed(&mut reorder, now, &[65_534]), [65_534, 65_535, 0]);
        assert_eq!(reorder.deadline(), None);
    }

    #[test]
    fn what_never_comes_is_not_waited_for_longer_than_the_bounds() {
        let now = Instant::now();
        let mut reorder = Reorder::<Instant>::default();
        assert_eq!(pushed(&mut reorder, now, &[1, 3, 4, 6]), [1]);
        let mut out = Vec::new();
        reorder.tick(now + WAIT_MAX, &mut |_, packet| out.push(sequence(packet).unwrap()));
        assert_eq!(out, [3, 4, 6]);
        // Late: it passes, to be counted.
        assert_eq!(pushed(&mut reorder, now, &[2, 7]), [2, 7]);
        let many: Vec<u16> = (9..9 + REORDER_PACKETS_MAX as u16 + 1).collect();
        assert_eq!(pushed(&mut reorder, now, &many), many);
    }

    #[test]
    fn what_is_in_its_turn_is_not_copied() {
        let (mut reorder, packet) = (Reorder::<Instant>::default(), packet(5));
        let mut same = false;
        reorder.push(Instant::now(), &packet, &mut |_, passed| same = std::ptr::eq(passed, &packet[..]));
        assert!(same);
    }

    #[test]
    fn a_new_beginning_passes_at_once() {
        let now = Instant::now();
        let mut reorder = Reorder::<Instant>::default();
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
