//! The payload types of a track's packets.
//!
//! Some cameras announce a wrong type. Others send unrelated packets on a track's channel, with a different SSRC. The announced type is
//! right as soon as one packet with it has arrived.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::wire::rtp::Header;

/// How long only packets with other types must have arrived before the first of those types is used for the track.
pub(super) const ADOPT_AFTER: Duration = Duration::from_millis(500);

/// Whose a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The track's.
    Ours,
    /// The packet belongs to the track, and earlier ones that were accepted did not.
    OursAfterAll,
    /// None of the track's.
    Foreign,
}

/// The payload types of one track in one session.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct PayloadTypes<T = Instant> {
    announced: u8,
    /// Whether a packet with the announced type has arrived.
    seen: bool,
    /// A type that is accepted as long as no packet with the announced one arrives.
    adopted: Option<u8>,
    /// The first packet with another type: its type, sequence number and arrival.
    stranger: Option<(u8, u16, T)>,
}

impl<T> PayloadTypes<T> {
    pub(super) fn with_moments<U>(self, to: impl Fn(T) -> U) -> PayloadTypes<U> {
        let PayloadTypes { announced, seen, adopted, stranger } = self;
        let stranger = stranger.map(|(payload_type, sequence, at)| (payload_type, sequence, to(at)));
        PayloadTypes { announced, seen, adopted, stranger }
    }
}

impl PayloadTypes {
    pub(super) fn new(announced: u8) -> Self {
        PayloadTypes { announced, seen: false, adopted: None, stranger: None }
    }

    /// Classifies the next packet, read at `received`.
    pub(super) fn judge(&mut self, header: &Header, received: Instant) -> Whose {
        if header.payload_type == self.announced {
            let is_first = !std::mem::replace(&mut self.seen, true);
            let had_other = self.adopted.take().is_some();
            return if is_first && had_other { Whose::OursAfterAll } else { Whose::Ours };
        }
        let (_, _, since) = *self.stranger.get_or_insert((header.payload_type, header.sequence, received));
        if self.seen {
            return Whose::Foreign;
        }
        if self.adopted.is_none() && received.saturating_duration_since(since) >= ADOPT_AFTER {
            self.adopted = Some(header.payload_type);
        }
        if self.adopted == Some(header.payload_type) { Whose::Ours } else { Whose::Foreign }
    }

    /// Type and sequence number of the first foreign packet, once it is certain that it is not the track's.
    pub(super) fn foreign(&self) -> Option<(u8, u16)> {
        let (payload_type, sequence, _) = self.stranger?;
        self.seen.then_some((payload_type, sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(types: &mut PayloadTypes, at: Instant, payload_type: u8) -> Whose {
        let packet = [&Header::write(false, payload_type, 7, 0, 1)[..], &[1]].concat();
        types.judge(&Header::parse(&packet).unwrap(), at)
    }

    #[test]
    fn the_announced_type_is_right_once_it_has_come() {
        let now = Instant::now();
        let mut types = PayloadTypes::new(96);
        assert_eq!(judged(&mut types, now, 107), Whose::Foreign);
        assert_eq!(types.foreign(), None);
        assert_eq!(judged(&mut types, now, 96), Whose::Ours);
        assert_eq!(types.foreign(), Some((107, 7)));
        assert_eq!(judged(&mut types, now + 10 * ADOPT_AFTER, 107), Whose::Foreign);
        assert_eq!(judged(&mut types, now + 10 * ADOPT_AFTER, 96), Whose::Ours);
    }

    #[test]
    fn where_only_another_type_comes_it_is_adopted_until_the_announced_one_does() {
        let now = Instant::now();
        let mut types = PayloadTypes::new(96);
        assert_eq!(judged(&mut types, now, 98), Whose::Foreign);
        assert_eq!(judged(&mut types, now + ADOPT_AFTER, 98), Whose::Ours);
        assert_eq!(judged(&mut types, now + ADOPT_AFTER, 99), Whose::Foreign);
        assert_eq!(types.foreign(), None);
        assert_eq!(judged(&mut types, now + ADOPT_AFTER, 96), Whose::OursAfterAll);
        assert_eq!(judged(&mut types, now + ADOPT_AFTER, 98), Whose::Foreign);
        assert_eq!(judged(&mut types, now + ADOPT_AFTER, 96), Whose::Ours);
    }
}
