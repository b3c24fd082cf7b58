//! Reads of connections: how often, and how much at once. However small the pieces are in which a client sends, others are served in between.

use std::io;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::egress::{Conn, Token, Valve};
use crate::limits::{
    PUBLISHER_READ_BYTES_MAX, PUBLISHER_READ_BYTES_MIN, PUBLISHER_READ_MAX_US, READ_BYTES_MAX, READS_PAUSE_MS,
    READS_WINDOW_MAX, READS_WINDOW_MS,
};

/// What a connection is read with.
pub(super) struct Reading {
    pub(super) token: Token,
    pub(super) conn: Conn,
    /// What the last read has returned.
    pub(super) buffer: Vec<u8>,
    /// Bytes read and discarded since the connection is being closed.
    pub(super) dropped: usize,
    pace: Pace,
}

/// Bytes that were read from a connection; nothing more is read from it until they have been absorbed.
pub(super) struct Read {
    pub(super) reading: Reading,
    pub(super) result: io::Result<usize>,
}

impl Reading {
    pub(super) fn new(token: Token, conn: Conn) -> Reading {
        let buffer = Vec::with_capacity(READ_BYTES_MAX);
        Reading { token, conn, buffer, dropped: 0, pace: Pace { since: Instant::now(), reads: 0 } }
    }

    /// Reads what has arrived, or waits for something, while the valve is open.
    pub(super) async fn read(mut self, valve: &Valve) -> Read {
        if self.pace.is_too_fast(Instant::now()) {
            sleep(Duration::from_millis(READS_PAUSE_MS)).await;
        }
        let (result, buffer) = valve.pass(self.conn.read(self.buffer)).await;
        self.buffer = buffer;
        Read { reading: self, result }
    }

    /// Sizes a publisher's next read, after one returned `count` bytes that took so long to process.
    pub(super) fn fit(&mut self, count: usize, took: Duration) {
        let next = next_read_bytes(self.buffer.capacity(), count, took);
        if self.buffer.capacity() != next {
            self.buffer = Vec::with_capacity(next);
        }
    }
}

/// The reads in the current window.
struct Pace {
    since: Instant,
    reads: u32,
}

impl Pace {
    /// Counts a read that starts at `now`; whether it should wait.
    fn is_too_fast(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_millis(READS_WINDOW_MS) {
            *self = Pace { since: now, reads: 0 };
        }
        self.reads += 1;
        self.reads > READS_WINDOW_MAX
    }
}

/// The size of a publisher's next read, after one of up to `last` bytes returned `count`, which took so long to process: a packet of one byte
/// costs as much as one of a kilobyte.
fn next_read_bytes(last: usize, count: usize, took: Duration) -> usize {
    let most = Duration::from_micros(PUBLISHER_READ_MAX_US);
    let fitting = (count as u128 * most.as_nanos() / took.as_nanos().max(1)) as usize;
    let last = last.max(PUBLISHER_READ_BYTES_MIN);
    let next = if took > most {
        fitting
    } else if fitting >= 2 * last {
        2 * last
    } else {
        last
    };
    next.clamp(PUBLISHER_READ_BYTES_MIN, PUBLISHER_READ_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_reads_are_made_fewer() {
        let started = Instant::now();
        let mut pace = Pace { since: started, reads: 0 };
        // As often as it can, or pauses, for a second; then like a player, or a camera with a few reads a frame.
        let (mut now, mut reads) = (started, 0);
        while now < started + Duration::from_secs(1) {
            reads += 1;
            let pause = if pace.is_too_fast(now) { 1_000 } else { 20 };
            now += Duration::from_micros(pause);
        }
        assert!((1_500..2_000).contains(&reads), "{reads} reads");
        now += Duration::from_secs(1);
        for _ in 0..300 {
            assert!((0..8).all(|_| !pace.is_too_fast(now)));
            now += Duration::from_millis(33);
        }
    }

    #[test]
    fn a_publisher_whose_packets_cost_much_is_read_in_small_steps() {
        let us = Duration::from_micros;
        // Large packets: 64 KiB in 30 us.
        let mut size = READ_BYTES_MAX;
        let sizes: Vec<usize> = std::iter::repeat_with(|| {
            size = next_read_bytes(size, size, us(1 + size as u64 / 2_000));
            size / 1_024
        })
        .take(6)
        .collect();
        assert_eq!(sizes, [8, 16, 32, 64, 64, 64]);
        // Packets of one byte, a microsecond for 17: at once a step that takes no longer than it should.
        size = next_read_bytes(size, size, us(size as u64 / 17));
        assert!((3_400..=PUBLISHER_READ_BYTES_MIN).contains(&size), "{size}");
        assert_eq!(next_read_bytes(size, size, us(240)), PUBLISHER_READ_BYTES_MIN);
        // A few bytes show nothing, and neither does one read that was interrupted.
        assert_eq!(next_read_bytes(32_768, 20, us(3)), 32_768);
        assert_eq!(next_read_bytes(65_536, 65_536, us(400)), 32_768);
        assert_eq!(next_read_bytes(32_768, 32_768, us(15)), 65_536);
    }
}
