//! Upgrades: other workers learn most of what there is early, in slices, while this world goes on; the rest at one moment. Or
//! it comes to nothing, and the old ones go on as if nothing had been. Neither a client nor a peer nor an operator may
//! notice.

use std::sync::Arc;

use throughway::net::shared::{SharedChanges, SharedState};
use throughway::protocol::authenticated::{AuthenticatedCounts, AuthenticatedCountsState};
use throughway::protocol::changes::{EarlyAllocations, ServerChanges};
use throughway::protocol::counters::Counters;
use throughway::protocol::ids::WorkerId;
use throughway::protocol::quota::{Quotas, ScopeKey};
use throughway::protocol::quota_state::QuotasState;
use throughway::protocol::revocation::Revocations;
use throughway::protocol::{Parts, Server};
use throughway::state::State;

use super::quota::SharedTables;
use super::restart::through_bytes;
use super::world::{Worker, World, trace};

/// One that is under way.
pub struct HandOver {
    format: u32,
    shared: Arc<SharedTables>,
    /// Scopes of quotas that have not come yet, and those that have.
    keys: Vec<ScopeKey>,
    early: Option<QuotasState>,
    servers: Vec<Successor>,
}

struct Successor {
    server: Server,
    counters: Arc<Counters>,
    /// The slot to go on with.
    next: Option<usize>,
}

/// How it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// The others take over.
    Taken,
    /// The others have everything, and fail: the old ones go on.
    Failed,
}

impl World {
    pub fn begin_hand_over(&mut self) {
        trace!(self, "hand-over begins");
        let format = self.format();
        let shared = Arc::new(SharedTables::default());
        let mut keys = self.shared.real.lock().unwrap().begin_early_export();
        keys.sort_unstable();
        let servers = (0..self.workers.len()).map(|index| {
            self.workers[index].server.begin_early_export();
            let counters = Arc::new(Counters::default());
            let parts = Parts {
                worker: WorkerId(index as u8),
                workers: self.workers.len(),
                shared: shared.clone(),
                counters: Arc::clone(&counters),
                nonce_key: Box::new([8; 32]),
                seed: self.rng.bytes(),
            };
            Successor { server: Server::new(parts, self.config.settings()), counters, next: Some(0) }
        });
        let servers = servers.collect();
        self.hand_over = Some(HandOver { format, shared, keys, early: Some(QuotasState::default()), servers });
    }

    /// Does a piece of the one that is under way.
    pub fn go_on_with_hand_over(&mut self) {
        let Some(mut under_way) = self.hand_over.take() else { return };
        if self.rng.percent(1) {
            self.give_up_hand_over();
            if self.rng.percent(50) {
                self.begin_hand_over();
            }
            return;
        }
        if under_way.early.is_some() {
            self.hand_over_scopes(&mut under_way);
        } else if let Some(index) = under_way.servers.iter().position(|of| of.next.is_some()) {
            self.hand_over_slots(&mut under_way, index);
        } else if self.rng.percent(10) {
            let how = if self.rng.percent(30) { Cut::Failed } else { Cut::Taken };
            return self.cut(under_way, how);
        }
        self.hand_over = Some(under_way);
    }

    /// It comes to nothing.
    pub fn give_up_hand_over(&mut self) {
        trace!(self, "no hand-over");
        self.hand_over = None;
        self.shared.real.lock().unwrap().end_early_export();
        self.workers.iter_mut().for_each(|worker| worker.server.end_early_export());
    }

    fn hand_over_scopes(&mut self, under_way: &mut HandOver) {
        let Some(mut early) = under_way.early.take() else { return };
        let mut quotas = self.shared.real.lock().unwrap();
        let count = self.rng.range(1, 12) as usize;
        let slice: Vec<ScopeKey> = under_way.keys.drain(..count.min(under_way.keys.len())).collect();
        early.scopes.extend(quotas.early_scopes(&slice));
        let more = quotas.early_lingering(early.lingering.last(), count);
        let is_last = more.len() < count && under_way.keys.is_empty();
        early.lingering.extend(more);
        if !is_last {
            under_way.early = Some(early);
            return;
        }
        let state = SharedState {
            quotas: early,
            revocations: self.shared.revoked.lock().unwrap().early_export(),
            authenticated: AuthenticatedCountsState::default(),
            resting_ports: Vec::new(),
            overrides: None,
        };
        let read = through_bytes(&state, under_way.format);
        *under_way.shared.real.lock().unwrap() = Quotas::from_early_state(read.quotas);
        *under_way.shared.revoked.lock().unwrap() = Revocations::from_state(read.revocations);
    }

    fn hand_over_slots(&mut self, under_way: &mut HandOver, index: usize) {
        let successor = &mut under_way.servers[index];
        let from = successor.next.expect("there are more");
        let (allocations, next) = self.workers[index].server.early_export(from, self.rng.range(1, 6) as usize);
        trace!(self, "worker {index} from slot {from}: {allocations:?}");
        let slice = EarlyAllocations { worker: WorkerId(index as u8), allocations };
        let read: EarlyAllocations = through_bytes(&slice, under_way.format);
        successor.server.import_early(read.allocations).expect("its own allocations");
        // Slots may come again.
        successor.next = if self.rng.percent(5) { Some(self.rng.below(from as u64 + 1) as usize) } else { next };
    }

    fn cut(&mut self, under_way: HandOver, how: Cut) {
        trace!(self, "cut: {how:?}");
        let HandOver { format, shared, mut servers, .. } = under_way;
        let is_shared_first = self.rng.percent(50);
        if is_shared_first {
            self.hand_over_what_is_shared(&shared, format);
        }
        for (index, successor) in servers.iter_mut().enumerate() {
            let changes: ServerChanges = through_bytes(&self.workers[index].server.export_changes(), format);
            trace!(self, "worker {index}: {changes:?}");
            successor.server.import_changes(changes).expect("its own changes");
        }
        if !is_shared_first {
            self.hand_over_what_is_shared(&shared, format);
        }
        let (quotas, old_quotas) = (shared.real.lock().unwrap(), self.shared.real.lock().unwrap());
        assert_eq!(quotas.to_state(), old_quotas.to_state(), "quotas come as they are");
        assert_eq!(quotas.usage(), old_quotas.usage());
        drop((quotas, old_quotas));
        for (Successor { server, .. }, old) in servers.iter().zip(&self.workers) {
            server.check_invariants();
            let (new, mut old) = (server.export(), old.server.export());
            old.keep_for(format);
            assert!(new == old, "a server that takes over is as the old one: {new:?} {old:?}");
        }
        if how == Cut::Failed {
            self.rollbacks += 1;
            return self.give_up_hand_over();
        }
        self.hand_overs += 1;
        std::mem::swap(&mut *shared.quota.lock().unwrap(), &mut *self.shared.quota.lock().unwrap());
        std::mem::swap(&mut *shared.held.lock().unwrap(), &mut *self.shared.held.lock().unwrap());
        std::mem::swap(&mut *shared.relayed.lock().unwrap(), &mut *self.shared.relayed.lock().unwrap());
        std::mem::swap(&mut *shared.relayed_tcp.lock().unwrap(), &mut *self.shared.relayed_tcp.lock().unwrap());
        self.shared = shared;
        self.workers = servers.into_iter().map(|of| Worker::new(of.server, of.counters)).collect();
    }

    fn hand_over_what_is_shared(&self, shared: &SharedTables, format: u32) {
        let changes = SharedChanges {
            quotas: self.shared.real.lock().unwrap().export_changes(),
            revocations: self.shared.revoked.lock().unwrap().export_changes(),
            authenticated: self.shared.authenticated.lock().unwrap().to_state(),
            resting_ports: Vec::new(),
            overrides: None,
        };
        let read = through_bytes(&changes, format);
        shared.real.lock().unwrap().import_changes(read.quotas).expect("its own changes");
        if let Some(revocations) = read.revocations {
            *shared.revoked.lock().unwrap() = Revocations::from_state(revocations);
        }
        *shared.authenticated.lock().unwrap() = AuthenticatedCounts::from_state(&read.authenticated);
        let (revoked, old) = (shared.revoked.lock().unwrap(), self.shared.revoked.lock().unwrap());
        assert_eq!(revoked.to_state(), old.to_state(), "revocations come as they are");
        let authenticated = shared.authenticated.lock().unwrap().to_state();
        assert_eq!(authenticated, self.shared.authenticated.lock().unwrap().to_state());
    }
}
