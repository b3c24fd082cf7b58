//! Which memory zero-copy sends lend to the kernel, and when the kernel returns it.

use std::collections::HashMap;
use std::future::poll_fn;

use bytes::Bytes;

use super::*;
use crate::egress::probe::probe;
use crate::egress::runtime::Runtime;
use crate::egress::tests::{ENTRIES, Rig, pattern, read_on_thread, token};
use crate::egress::*;

/// A ring that lends according to `mode`; `None` on a machine without io_uring or zero-copy sends.
fn lending(mode: ZeroCopy) -> Option<UringEgress> {
    probe().ok()?;
    let mut egress = UringEgress::new(ENTRIES).unwrap();
    egress.set_zero_copy(mode).then_some(egress)
}

#[test]
fn what_was_lent_is_kept_until_the_kernel_lets_go_of_it() {
    if probe().is_err() {
        return;
    }
    Runtime::new(IoKind::Uring).unwrap().block_on(async {
        let Some(egress) = lending(ZeroCopy::On) else { return };
        let mut rig = Rig { kind: IoKind::Uring, egress: Box::new(egress), done: HashMap::new() };
        let (conn, far) = rig.connect();
        let piece = Piece::from(Bytes::from(pattern(40_000, 3)));
        // The client reads nothing: the data that the kernel accepted wait in the socket's queue, in the lent pages.
        let mut sent = 0;
        while rig.egress.in_flight() == 0 {
            rig.egress.send(token(0), &conn, &mut vec![piece.clone()], false);
            rig.egress.flush();
            rig.reap();
            sent += usize::from(rig.done.remove(&0).is_some());
        }
        assert!(sent > 0);
        rig.egress.cancel(token(0));
        rig.wait(0).await;
        assert_eq!(rig.egress.in_flight(), 0);
        assert!(rig.egress.holds(token(0)));
        assert!(!rig.egress.holds(Token { slot: 0, generation: 8 }), "another client's");
        assert!(piece.holders() > 1, "the kernel still reads them");
        // A reset returns them.
        conn.reset_on_close().unwrap();
        conn.shutdown();
        drop(conn);
        rig.egress.forget(token(0));
        while rig.egress.holds(token(0)) {
            poll_fn(|cx| rig.egress.poll_ready(cx)).await;
            rig.reap();
            tokio::task::yield_now().await;
        }
        assert_eq!(piece.holders(), 1);
        drop(far);
    });
}

#[test]
fn auto_lends_nothing_to_a_client_of_this_machine() {
    if probe().is_err() {
        return;
    }
    Runtime::new(IoKind::Uring).unwrap().block_on(async {
        for (mode, copied) in [(ZeroCopy::Auto, 0), (ZeroCopy::On, 2)] {
            let Some(egress) = lending(mode) else { return };
            let mut rig = Rig { kind: IoKind::Uring, egress: Box::new(egress), done: HashMap::new() };
            let (conn, far) = rig.connect();
            let part = pattern(30_000, 1);
            for parts in [&[part.as_slice()][..], &[&part, &part]] {
                let len = parts.iter().map(|part| part.len()).sum();
                let reader = read_on_thread(far.try_clone().unwrap(), len);
                rig.send(0, &conn, parts);
                rig.wait_ok(0, len).await;
                assert!(reader.join().unwrap().1 == parts.concat());
            }
            while rig.egress.holds(token(0)) {
                poll_fn(|cx| rig.egress.poll_ready(cx)).await;
                rig.reap();
            }
            let stats = rig.egress.stats();
            assert_eq!((stats.zero_copy, stats.zero_copy_copied, stats.zero_copy_refused), (0, copied, 0));
        }
    });
}
