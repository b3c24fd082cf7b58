//! What happens when the kernel is short of memory.

use std::collections::HashMap;
use std::io::Read;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::slot::{Outcome, Slot};
use super::*;
use crate::egress::probe::probe;
use crate::egress::runtime::Runtime;
use crate::egress::tests::{ENTRIES, Rig, token};
use crate::egress::*;
use crate::limits::SHORTAGE_PAUSE_MS;

fn pieces() -> Vec<Piece> {
    ["abc", "defg", "h"].map(|text| Piece::from(Bytes::from_static(text.as_bytes()))).into()
}

/// A ring whose next submissions fail with these errors.
fn refusing(errors: impl IntoIterator<Item = i32>) -> Rig {
    let mut egress = UringEgress::new(ENTRIES).unwrap();
    egress.refusals.script.extend(errors);
    Rig { kind: IoKind::Uring, egress: Box::new(egress), done: HashMap::new() }
}

fn bytes_of(pieces: &[Piece]) -> Vec<u8> {
    pieces.iter().flat_map(|piece| piece.as_slice()).copied().collect()
}

#[test]
fn what_is_left_of_pieces_begins_where_the_rest_ended() {
    for sent in 0..=8 {
        let rest = rest_of(pieces().into_iter(), sent);
        assert_eq!(bytes_of(&rest), b"abcdefgh"[sent..]);
        assert!(rest.iter().all(|piece| !piece.is_empty()));
    }
}

#[test]
fn an_operation_that_ends_with_a_shortage_gives_back_what_it_did_not_send() {
    if probe().is_err() {
        return;
    }
    Runtime::new(IoKind::Uring).unwrap().block_on(async {
        let rig = refusing([]);
        let (Conn::Uring(stream, _), _far) = rig.connect() else { panic!("of that kind") };
        for (errno, rest) in [(libc::ENOBUFS, &b"fgh"[..]), (libc::ENOMEM, b"fgh"), (libc::ECONNRESET, b"")] {
            let mut slot = Slot::new();
            slot.begin_stream(token(0), &stream, &mut pieces(), false);
            assert!(matches!(slot.complete(5), Outcome::More));
            assert!(matches!(slot.complete(-errno), Outcome::Done(5, Some(told)) if told == errno));
            assert_eq!(bytes_of(&slot.unsent), rest);
            assert!(slot.is_idle());
        }
    });
}

#[test]
fn refused_submissions_are_counted_and_tried_again_at_leisure() {
    const REFUSED: usize = 64;
    if probe().is_err() {
        return;
    }
    Runtime::new(IoKind::Uring).unwrap().block_on(async {
        let mut rig = refusing([libc::EAGAIN, libc::ENOMEM].repeat(REFUSED / 2));
        let (conn, mut far) = rig.connect();
        rig.send(0, &conn, &[b"frame"]);
        let begun = Instant::now();
        rig.wait_ok(0, 5).await;
        far.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(rig.egress.stats().submits_refused, REFUSED as u64);
        // A pass tries a few times, with a pause between any two attempts.
        assert!(begun.elapsed() >= Duration::from_millis(4 * SHORTAGE_PAUSE_MS), "{:?}", begun.elapsed());
        assert_eq!(rig.egress.in_flight(), 0);
    });
}

#[test]
fn a_submission_refused_for_another_reason_is_tried_again_and_not_counted_as_a_shortage() {
    if probe().is_err() {
        return;
    }
    Runtime::new(IoKind::Uring).unwrap().block_on(async {
        let mut rig = refusing([libc::EINVAL; 64]);
        let (conn, mut far) = rig.connect();
        rig.send(0, &conn, &[b"frame"]);
        let begun = Instant::now();
        rig.wait_ok(0, 5).await;
        far.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(rig.egress.stats().submits_refused, 0);
        // With pauses as well: a lasting failure must not keep the shard from everything else.
        assert!(begun.elapsed() >= Duration::from_millis(4 * SHORTAGE_PAUSE_MS), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_ring_is_refused_until_it_has_taken_everything() {
    if probe().is_err() {
        return;
    }
    Runtime::new(IoKind::Uring).unwrap().block_on(async {
        let mut rig = refusing([libc::ENOMEM; 4]);
        let (conn, _far) = rig.connect();
        rig.send(0, &conn, &[b"frame"]);
        rig.egress.flush();
        assert!(rig.egress.is_refused());
        // Before the pause is over, another flush retries.
        rig.egress.flush();
        assert!(!rig.egress.is_refused());
        rig.wait_ok(0, 5).await;
    });
}
