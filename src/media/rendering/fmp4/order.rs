//! Finds out whether an H.264 stream shows its pictures in decoding order, if its parameter sets do not say.

use serde::{Deserialize, Serialize};

/// A frame as received.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Came {
    /// Its number on the track, and the sequence numbers of its first packet and of the one after its last.
    pub(super) frame: u64,
    pub(super) sequence: (u16, u16),
    /// When it is shown, in ticks.
    pub(super) shown: i64,
    /// Whether decoding can start at it.
    pub(super) is_key: bool,
    /// Whether it is complete.
    pub(super) is_whole: bool,
    /// Whether it has a B slice.
    pub(super) has_b: bool,
}

/// What the frames since a sequence parameter set have shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Order {
    sps: Vec<u8>,
    /// The newest frame since a keyframe, if none of the frames in between is missing.
    unbroken: Option<Came>,
    /// A B slice was seen. An encoder that makes some will make more, so the next GOP without one proves nothing.
    reorders: bool,
    /// A complete GOP without one was seen.
    is_certain: bool,
}

impl Order {
    /// The parameter set of the next frame; a different one invalidates what is known.
    pub(super) fn set(&mut self, sps: &[u8]) {
        if self.sps != sps {
            *self = Order { sps: sps.to_vec(), ..Order::default() };
        }
    }

    /// The track's next frame.
    pub(super) fn take(&mut self, came: Came) {
        if came.has_b {
            self.reorders = true;
        }
        let follows = self.unbroken.is_some_and(|last| {
            last.frame + 1 == came.frame && last.sequence.1 == came.sequence.0 && last.shown < came.shown
        });
        // The GOP before a keyframe ends with it.
        self.is_certain = !self.reorders && (self.is_certain || (came.is_key && follows));
        self.unbroken = Some(came).filter(|_| came.is_whole && (came.is_key || follows));
    }

    /// Whether pictures are known to be shown in decoding order.
    pub(super) fn is_certain(&self) -> bool {
        self.is_certain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u64) -> Came {
        let sequence = (number as u16 * 3, number as u16 * 3 + 3);
        Came {
            frame: number,
            sequence,
            shown: number as i64,
            is_key: number.is_multiple_of(5),
            is_whole: true,
            has_b: false,
        }
    }

    /// After which frames it is known, for frames changed by `change`; with a second parameter set from frame `sets` on.
    fn certain(change: impl Fn(&mut Came), sets: Option<u64>) -> Vec<u64> {
        let mut order = Order::default();
        let mut found = Vec::new();
        for number in 0..25 {
            order.set(&[7, u8::from(sets.is_some_and(|from| number >= from))]);
            let mut came = frame(number);
            change(&mut came);
            order.take(came);
            if order.is_certain() {
                found.push(number);
            }
        }
        found
    }

    #[test]
    fn it_takes_a_whole_gop_without_b_slices() {
        assert_eq!(certain(|_| (), None), (5..25).collect::<Vec<_>>());
        // The first GOP is incomplete: the second decides.
        for missing in [
            (|came: &mut Came| came.is_whole = came.frame != 3) as fn(&mut Came),
            |came| came.frame += u64::from(came.frame > 3),
            |came| came.sequence.0 += u16::from(came.frame == 3),
            |came| came.shown -= i64::from(came.frame == 3),
            |came| came.is_key = came.is_key && came.frame > 0,
        ] {
            let from = certain(missing, None)[0];
            assert!((10..=11).contains(&from), "{from}");
        }
    }

    #[test]
    fn a_b_slice_ends_it_for_these_parameter_sets() {
        assert!(certain(|came| came.has_b = came.frame == 3, None).is_empty());
        assert_eq!(certain(|came| came.has_b = came.frame == 12, None), (5..12).collect::<Vec<_>>());
        let again = certain(|came| came.has_b = came.frame == 3, Some(10));
        assert_eq!(again, (15..25).collect::<Vec<_>>());
    }
}
