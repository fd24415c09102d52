//! Restarts: every worker ends, and others take over what they exported, as bytes and back. Neither a client nor a peer nor
//! an operator may notice.

use std::sync::Arc;

use throughway::net::shared::SharedState;
use throughway::protocol::authenticated::AuthenticatedCounts;
use throughway::protocol::export::{ServerState, counters_of};
use throughway::protocol::ids::WorkerId;
use throughway::protocol::quota::Quotas;
use throughway::protocol::revocation::Revocations;
use throughway::protocol::{Parts, Server};
use throughway::state::{self, State};

use super::world::{Worker, World, trace};

/// As bytes and back, in the format of this release or the one before.
pub fn through_bytes<T: State>(state: &T, format: u32) -> T {
    state::read(&state::write(state, format).unwrap()).unwrap()
}

impl World {
    pub fn restart(&mut self) {
        trace!(self, "restart");
        self.restarts += 1;
        // Link-local clients, which the older format can't carry, are not among the simulation's.
        let format = self.format();
        self.restart_what_is_shared(format);
        for index in 0..self.workers.len() {
            let state = self.workers[index].server.export();
            let read: ServerState = through_bytes(&state, format);
            let counters = counters_of(&read);
            let parts = Parts {
                worker: WorkerId(index as u8),
                workers: self.workers.len(),
                shared: self.shared.clone(),
                counters: Arc::clone(&counters),
                nonce_key: Box::new([9; 32]),
                seed: self.rng.bytes(),
            };
            let server = Server::import(parts, self.config.settings(), read).expect("its own state");
            server.check_invariants();
            assert!(server.export() == state, "a server exports what it imported: {state:?}");
            self.workers[index] = Worker::new(server, counters);
        }
    }

    fn restart_what_is_shared(&mut self, format: u32) {
        let mut quotas = self.shared.real.lock().unwrap();
        let mut revoked = self.shared.revoked.lock().unwrap();
        let mut counts = self.shared.authenticated.lock().unwrap();
        let state = SharedState {
            quotas: quotas.to_state(),
            revocations: revoked.to_state(),
            authenticated: counts.to_state(),
            resting_ports: Vec::new(),
            overrides: None,
        };
        let read = through_bytes(&state, format);
        *quotas = Quotas::from_state(read.quotas);
        *revoked = Revocations::from_state(read.revocations);
        *counts = AuthenticatedCounts::from_state(&read.authenticated);
        assert_eq!(quotas.to_state(), state.quotas, "quotas come back as they were");
        assert_eq!(revoked.to_state(), state.revocations, "revocations come back as they were");
        assert_eq!(counts.to_state(), state.authenticated, "counts of credentials come back as they were");
    }
}
