//! State as plain data, for saving and for another process.
//!
//! Types that contain times have them as a type parameter: an [`Instant`] in use, a [`Moment`] when saved.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A time in nanoseconds relative to a reference that the saver and the restorer agree on; negative before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(i64);

impl Moment {
    /// `at` relative to `reference`. Differences of centuries are clamped.
    pub fn of(at: Instant, reference: Instant) -> Moment {
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        match at.checked_duration_since(reference) {
            Some(after) => Moment(nanos(after)),
            None => Moment(-nanos(reference.saturating_duration_since(at))),
        }
    }

    /// The time in this process, where `reference` is the agreed reference. Times that the clock cannot represent become `reference`.
    pub fn at(self, reference: Instant) -> Instant {
        let away = Duration::from_nanos(self.0.unsigned_abs());
        let at = if self.0 < 0 { reference.checked_sub(away) } else { reference.checked_add(away) };
        at.unwrap_or(reference)
    }
}

/// For `#[serde(with)]`: bytes where the format supports them, otherwise numbers.
pub mod bytes {
    use std::fmt;

    use ::bytes::Bytes;
    use serde::de::{SeqAccess, Visitor};
    use serde::{Deserializer, Serializer};

    /// Writes them.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    /// Reads them.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_byte_buf(Reader)
    }

    struct Reader;

    impl<'de> Visitor<'de> for Reader {
        type Value = Bytes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(bytes))
        }

        fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
            Ok(Bytes::from(bytes))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Bytes, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = sequence.next_element()? {
                bytes.push(byte);
            }
            Ok(Bytes::from(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_comes_back_to_the_nanosecond() {
        let now = Instant::now();
        for away in [0, 1, 999_999_999, 86_400_000_000_000] {
            let away = Duration::from_nanos(away);
            for at in [now + away, now.checked_sub(away).unwrap_or(now)] {
                assert_eq!(Moment::of(at, now).at(now), at);
            }
        }
    }
}
