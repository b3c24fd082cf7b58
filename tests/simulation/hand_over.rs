//! The shard is handed over to another process at random moments: what is saved and read is all that the next one gets.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use rtsprelay::egress::Conn;
use rtsprelay::shard::core::{Core, CoreState, StreamSetup, UdpSockets};

use super::*;

/// State as another process reads it, with the bytes beside it.
fn carried(mut state: CoreState) -> CoreState {
    let mut blocks = VecDeque::new();
    state.each_bytes(&mut |bytes| blocks.push_back(std::mem::take(bytes)));
    let mut state: CoreState = written_and_read(&state);
    state.each_bytes(&mut |bytes| *bytes = blocks.pop_front().expect("as many as were taken"));
    assert!(blocks.is_empty());
    state
}

impl Simulation {
    /// Hands the shard over, or takes it back half-way.
    pub(super) fn hand_over(&mut self) {
        self.core.freeze();
        while self.core.reap(self.now) {}
        assert!(self.core.is_frozen());
        let saved = self.core.save(self.now);
        if self.rng.u8(0..3) == 0 {
            self.core.thaw(self.now);
            return;
        }
        let state = carried(saved.expect("nothing is in between"));
        // Those that are being closed stay behind.
        let (kept, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.clients).into_iter().partition(|(_, client)| self.core.is_open(client.token));
        for (slot, client) in left {
            self.retire(slot, client);
        }
        let egress = std::mem::take(self.core.egress_mut());
        let udp = UdpSockets { rtp: Datagram::Scripted, rtcp: Datagram::Scripted };
        let setup = StreamSetup::plain(STREAM, "cam", self.start);
        self.core = Core::new(self.now, config(self.seed, setup, self.log_bytes), egress, Some(udp));
        self.core.freeze();
        let conns = vec![Conn::Scripted; kept.len()];
        let restored = self.core.restore(self.now, self.now, state, conns).expect("the same streams");
        assert_eq!(restored.len(), kept.len());
        let mut slots = BTreeMap::new();
        for ((slot, mut client), (token, _)) in kept.into_iter().zip(restored) {
            client.token = token;
            slots.insert(slot, token.slot);
            if let Some(udp) = client.udp {
                self.by_address.insert(udp.ip(), token.slot);
            }
            self.clients.insert(token.slot, client);
        }
        self.core.egress_mut().renumber(|slot| slots.get(&slot).copied());
        self.core.go_on(self.now);
        self.handed_over += 1;
    }
}
