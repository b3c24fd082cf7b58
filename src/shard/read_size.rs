//! How much is read at once from a publisher's connection.
//!
//! What was read is processed in one go, before the shard continues with the media of others. A large read of packets of the usual size is
//! cheap, and the same number of bytes in packets of one byte takes milliseconds. So the size follows the number of packets.

use crate::limits::{PUBLISHER_READ_BYTES_MAX, PUBLISHER_READ_PACKETS_MAX, READ_BYTES_MAX};

/// The size grows only after a full read with fewer than this part of [`PUBLISHER_READ_PACKETS_MAX`]: twice as many must be well within the
/// limit, or the size would alternate.
const GROWS_BELOW_PART: usize = 4;

/// The size of the next read, in bytes, after one of this `size` that brought `bytes` with `packets` in them. Also packets that nobody asked
/// for count: they are processed as well.
pub(super) fn next(size: usize, bytes: usize, packets: usize) -> usize {
    if packets > PUBLISHER_READ_PACKETS_MAX {
        (bytes * PUBLISHER_READ_PACKETS_MAX / packets).max(READ_BYTES_MAX)
    } else if bytes >= size && packets < PUBLISHER_READ_PACKETS_MAX / GROWS_BELOW_PART {
        (size * 2).min(PUBLISHER_READ_BYTES_MAX)
    } else {
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of reads of packets of this size, that always find as much as they ask for.
    fn sizes(packet_bytes: usize, first: usize) -> Vec<usize> {
        let mut sizes = vec![first];
        for _ in 0..20 {
            let size = sizes[sizes.len() - 1];
            sizes.push(next(size, size, size / packet_bytes));
        }
        sizes
    }

    #[test]
    fn packets_of_the_usual_size_are_soon_read_in_large_pieces() {
        let sizes = sizes(1_400, READ_BYTES_MAX);
        assert_eq!(sizes[6..], [PUBLISHER_READ_BYTES_MAX; 15]);
    }

    #[test]
    fn tiny_packets_never_come_in_more_than_the_limit_for_long() {
        let of_tiny = sizes(17, READ_BYTES_MAX);
        assert!(of_tiny.iter().all(|size| size / 17 <= PUBLISHER_READ_PACKETS_MAX), "{of_tiny:?}");
        let from_large = sizes(17, PUBLISHER_READ_BYTES_MAX);
        assert!(from_large[1..].iter().all(|size| size / 17 <= PUBLISHER_READ_PACKETS_MAX), "{from_large:?}");
    }

    #[test]
    fn the_size_settles() {
        for packet_bytes in 1..3_000 {
            let sizes = sizes(packet_bytes, READ_BYTES_MAX);
            assert_eq!(sizes[10], sizes[20], "packets of {packet_bytes} bytes: {sizes:?}");
        }
    }

    #[test]
    fn a_read_that_finds_little_changes_nothing() {
        assert_eq!(next(4_096, 100, 1), 4_096);
        assert_eq!(next(READ_BYTES_MAX, 200, 1), READ_BYTES_MAX);
    }
}
