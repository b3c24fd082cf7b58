//! How long a ring's slot keeps a client's connection.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::*;
use crate::egress::probe::probe;
use crate::egress::runtime::Runtime;
use crate::egress::tests::{ENTRIES, Rig, datagrams, token};
use crate::egress::*;

#[test]
fn a_slot_keeps_its_clients_descriptor_from_all_others_until_the_client_is_forgotten() {
    if probe().is_err() {
        return;
    }
    Runtime::new(IoKind::Uring).unwrap().block_on(async {
        let egress = Box::new(UringEgress::new(ENTRIES).unwrap());
        let mut rig = Rig { kind: IoKind::Uring, egress, done: HashMap::new() };
        let (conn, mut far) = rig.connect();
        rig.send(0, &conn, &[b"media"]);
        rig.wait_ok(0, 5).await;
        far.read_exact(&mut [0; 5]).unwrap();
        far.set_nonblocking(true).unwrap();
        let number = conn.fd().unwrap().as_raw_fd();
        drop(conn);
        // The end of another client has no effect.
        rig.egress.forget(Token { generation: token(0).generation + 1, ..token(0) });
        for _ in 0..100 {
            // Whatever closes when it is dropped is closed by then.
            tokio::task::yield_now().await;
        }
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        let (next, _far) = rig.connect();
        assert_ne!(next.fd().unwrap().as_raw_fd(), number);
        rig.egress.forget(token(0));
        let closed = async {
            while far.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("nothing else keeps the connection");
    });
}

#[test]
fn the_memory_of_a_burst_of_clients_is_given_back() {
    const CLIENTS: u32 = 200;
    if probe().is_err() {
        return;
    }
    Runtime::new(IoKind::Uring).unwrap().block_on(async {
        let mut egress = UringEgress::new(ENTRIES).unwrap();
        let (to, from) = Datagram::bind_pair([127, 0, 0, 1].into(), None, IoKind::Uring).unwrap();
        let route = Route { to: to.local_addr().unwrap(), from: None };
        let datagrams = datagrams(&[5]);
        let client = |slot: u32| Token { slot, generation: 1 };
        let mut completed = Vec::new();
        for slot in 0..CLIENTS {
            egress.send_datagrams(client(slot), &from, route, &datagrams, false);
        }
        while completed.len() < CLIENTS as usize {
            egress.flush();
            egress.reap(usize::MAX, &mut completed);
        }
        assert!(completed.iter().all(|completion| completion.error.is_none()));
        let most = egress.slots.capacity();
        // The last one stays until the end.
        for slot in 1..CLIENTS {
            assert_eq!(egress.slots.len(), CLIENTS as usize);
            egress.forget(client(slot));
        }
        assert_eq!(egress.slots.len(), 1);
        assert!(egress.slots.capacity() < most && !egress.slots[0].is_free());
        // A slot of that burst can be used again.
        egress.send_datagrams(Token { generation: 2, ..client(7) }, &from, route, &datagrams, false);
        egress.flush();
        egress.reap(usize::MAX, &mut completed);
        assert_eq!(completed.last().map(|completion| completion.token.slot), Some(7));
    });
}
