//! What a worker tells a ledger is enough for another one like it.

use std::sync::Arc;

use throughway::protocol::Server;
use throughway::protocol::allocation::AllocationState;
use throughway::protocol::counters::Counters;
use throughway::protocol::ledger::LedgerSum;

use super::world::Worker;

impl Worker {
    /// A worker, and a ledger that knows all that it has.
    pub fn new(mut server: Server, counters: Arc<Counters>) -> Self {
        server.begin_ledger();
        let mut ledger = LedgerSum::default();
        let mut next = Some(0);
        while let Some(from) = next {
            let (slice, after) = server.slice(from, 5);
            ledger.add(slice, std::iter::repeat(()));
            next = after;
        }
        Self { server, counters, ledger }
    }

    /// Tells what was touched since; then the ledger knows of each allocation all but what packets change.
    pub fn check_ledger(&mut self) {
        loop {
            let entry = self.server.touched(3);
            if entry.is_empty() {
                break;
            }
            self.ledger.add(entry, std::iter::repeat(()));
        }
        let known = self.ledger.clone().finish();
        let real = self.server.export().allocations;
        assert_eq!(known.len(), real.len(), "the ledger knows of as many allocations as there are");
        for ((known, ()), real) in known.into_iter().zip(real) {
            let mut counted = AllocationState {
                traffic: real.traffic,
                dropped: real.dropped.clone(),
                packets: real.packets,
                ..known
            };
            counted.owner.own_meter.clone_from(&real.owner.own_meter);
            if let (Some(known), Some(real)) = (&mut counted.additional, &real.additional) {
                known.packets = real.packets;
            }
            assert!(counted == real, "the ledger knows {counted:?} where there is {real:?}");
        }
    }
}
