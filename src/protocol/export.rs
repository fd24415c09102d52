//! A server as plain values and back, so that another process can take its allocations over.
//!
//! As bytes they are a [`State`].
//!
//! Sockets and streams are the shell's: it passes them itself and knows them by [`AllocationId`], token and
//! [`StreamId`](crate::address::StreamId). What spans the workers is not in here: [`Quotas`](super::quota::Quotas),
//! [`Revocations`](super::revocation::Revocations) and the counts of credentials go along once for the whole process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minicbor::{Decode, Encode};

use super::allocation::{Allocation, AllocationState};
use super::connection::PeerConnection;
use super::counters::Counters;
use super::ids::{AllocationId, WorkerId};
use super::meter::Meters;
use super::opening::{Opening, OpeningState, Stage};
use super::owner::OwnerState;
use super::paths::ForeignPathState;
use super::reservation::Reservation;
use super::review::Review;
use super::settings::Settings;
use super::timer::Due;
use super::{Parts, Server};
use crate::address::Via;
use crate::credentials::SecretId;
use crate::state::{
    DUAL_ALLOCATIONS, Features, Kind, LINK_LOCAL_CLIENTS, MOBILE_ALLOCATIONS, OTHER_REALMS, SHA256_KEYS, State,
    TCP_ALLOCATIONS,
};
use crate::wire::attribute::ReservationToken;

/// Slots that an import makes room for; a number beyond it is no slot of ours.
const SLOTS_MAX: u32 = 1 << 22;

/// One worker's server as plain values.
#[derive(Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct ServerState {
    /// Its number, which tokens carry.
    #[n(0)]
    pub worker: WorkerId,
    /// How many workers there are.
    #[n(1)]
    pub workers: usize,
    /// Allocations so far, modulo 2^32: none gets the id of one that ended before.
    #[n(2)]
    pub generation: u32,
    /// Questions to other workers so far.
    #[n(3)]
    pub questions: u64,
    /// No new allocations.
    #[n(4)]
    pub draining: bool,
    /// The key of nonces.
    #[n(5)]
    #[cbor(with = "minicbor::bytes")]
    pub nonce_key: Box<[u8]>,
    /// Live allocations, in the order of their slots.
    #[n(6)]
    pub allocations: Vec<AllocationState>,
    /// Allocate requests under way.
    #[n(7)]
    pub openings: Vec<OpeningState>,
    /// Ports held for a token.
    #[n(8)]
    pub reservations: Vec<(ReservationToken, Reservation)>,
    /// A review of live allocations that is under way.
    #[n(9)]
    pub review: Option<Review>,
    /// Everything counted so far, by name.
    #[n(10)]
    pub counters: BTreeMap<String, u64>,
    /// Ways of clients whose allocations are other workers'.
    #[n(11)]
    pub paths: Option<Vec<ForeignPathState>>,
    /// Connections to peers, in the order of their ids, if there are any.
    #[n(12)]
    pub connections: Option<Vec<PeerConnection>>,
}

impl std::fmt::Debug for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerState")
            .field("worker", &self.worker)
            .field("allocations", &self.allocations.len())
            .finish_non_exhaustive()
    }
}

impl State for ServerState {
    const KIND: Kind = Kind::Worker;

    fn add_features(&self, features: &mut Features) {
        let clients = self.allocations.iter().map(|allocation| &allocation.via);
        let clients = clients.chain(self.openings.iter().map(|opening| &opening.via));
        add_features_of(clients.chain(self.reservations.iter().map(|(_, reservation)| &reservation.via)), features);
        add_dual(&self.allocations, &self.openings, features);
        add_sha256(&self.allocations, &self.openings, features);
        add_other_realms(&self.allocations, &self.openings, features);
        add_mobile(&self.allocations, &self.openings, features);
        add_tcp(&self.allocations, &self.openings, features);
    }

    fn keep_for(&mut self, format: u32) {
        keep_openings_for(&mut self.openings, format);
    }
}

/// The features that clients which come these ways use.
pub(super) fn add_features_of<'a>(clients: impl Iterator<Item = &'a Via>, features: &mut Features) {
    let link_local = clients.filter(|via| via.is_link_local()).count();
    features.add(LINK_LOCAL_CLIENTS, link_local as u64);
}

/// Second relayed addresses, and requests for them.
pub(super) fn add_dual(allocations: &[AllocationState], openings: &[OpeningState], features: &mut Features) {
    let dual = allocations.iter().filter(|allocation| allocation.is_dual()).count();
    let asked = openings.iter().filter(|opening| opening.requested.additional.is_some()).count();
    features.add(DUAL_ALLOCATIONS, (dual + asked) as u64);
}

/// TCP allocations, and requests for them.
pub(super) fn add_tcp(allocations: &[AllocationState], openings: &[OpeningState], features: &mut Features) {
    let live = allocations.iter().filter(|allocation| allocation.is_tcp()).count();
    let asked = openings.iter().filter(|opening| opening.requested.is_tcp == Some(true)).count();
    features.add(TCP_ALLOCATIONS, (live + asked) as u64);
}

/// Clients that prove themselves by SHA-256.
pub(super) fn add_sha256(allocations: &[AllocationState], openings: &[OpeningState], features: &mut Features) {
    let live = allocations.iter().filter(|allocation| allocation.owner.has_sha256_key()).count();
    let asked = openings.iter().filter(|opening| opening.uses_sha256()).count();
    features.add(SHA256_KEYS, (live + asked) as u64);
}

/// Clients of a realm that is not the server's own.
pub(super) fn add_other_realms(allocations: &[AllocationState], openings: &[OpeningState], features: &mut Features) {
    let live = allocations.iter().filter(|allocation| allocation.owner.has_other_realm()).count();
    let asked = openings.iter().filter(|opening| opening.owner.has_other_realm()).count();
    features.add(OTHER_REALMS, (live + asked) as u64);
}

/// Clients that may change their network.
pub(super) fn add_mobile(allocations: &[AllocationState], openings: &[OpeningState], features: &mut Features) {
    let live = allocations.iter().filter(|allocation| allocation.mobility.is_some()).count();
    let asked = openings.iter().filter(|opening| opening.requested.is_mobile == Some(true)).count();
    features.add(MOBILE_ALLOCATIONS, (live + asked) as u64);
}

/// Takes out of openings what only formats after this one have.
pub(super) fn keep_openings_for(openings: &mut [OpeningState], format: u32) {
    if format < 2 {
        for opening in openings {
            if let Stage::Admission { overdue_at } = &mut opening.stage {
                *overdue_at = None;
            }
        }
    }
}

/// Why a state can't be taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImportError {
    /// It is another worker's.
    #[error("the state is that of worker {} of {workers}", worker.0)]
    Worker {
        /// Whose it is.
        worker: WorkerId,
        /// How many there were.
        workers: usize,
    },
    /// Two of its allocations or openings have one slot, or the slot is beyond any that we give out.
    #[error("slot {} is in the state twice, or is no slot", id.index)]
    Slot {
        /// The second.
        id: AllocationId,
    },
    /// Two of them have the same client.
    #[error("allocation {} has the five-tuple or stream of another one", id.index)]
    Client {
        /// The second.
        id: AllocationId,
    },
    /// A connection to a peer that belongs to no TCP allocation, or is there twice.
    #[error("a connection to a peer belongs to allocation {}, which has none like it", id.index)]
    Connection {
        /// Whose it should be.
        id: AllocationId,
    },
    /// What is told of an allocation that should have come early, and did not come or was another one.
    #[error("allocation {} should have come before, and did not", id.index)]
    Missing {
        /// The one that is told of.
        id: AllocationId,
    },
    /// In the end there are more or fewer allocations than there were.
    #[error("there are {found} allocations where there were {expected}")]
    Live {
        /// How many are here.
        found: u64,
        /// How many there were.
        expected: u64,
    },
}

impl Server {
    /// Everything, as plain values; [`Server::poll_output`] must have been drained.
    ///
    /// This server may go on afterwards, if the other one does not: nothing changes.
    #[must_use]
    pub fn export(&self) -> ServerState {
        debug_assert!(self.outputs.is_empty(), "what the core wants done is done before the export");
        let mut allocations: Vec<AllocationState> = self.table.iter().map(Allocation::to_state).collect();
        allocations.sort_unstable_by_key(|allocation| allocation.id.index);
        ServerState {
            worker: self.worker,
            workers: self.workers,
            generation: self.table.generation(),
            questions: self.openings.asked(),
            draining: self.draining,
            nonce_key: self.nonces.key().into(),
            allocations,
            openings: self.openings.to_state(),
            reservations: self.reservations.to_state(),
            review: self.review,
            counters: self.counters.to_state(),
            paths: self.foreign.to_state(),
            connections: self.connections_state(),
        }
    }

    /// Connections to peers, if there are any.
    pub(super) fn connections_state(&self) -> Option<Vec<PeerConnection>> {
        (self.connections.len() > 0).then(|| self.connections.iter().copied().collect())
    }

    /// The server that [`Server::export`] described, under these settings; they are applied as they are, so a
    /// configuration that differs is given to it with [`Input::Reconfigure`](super::border::Input::Reconfigure)
    /// afterwards. Seeds are new, the nonce key and the counters are the old ones; give `parts.counters` as
    /// [`Counters::from_state`] made them of [`ServerState::counters`]. The quotas must have been taken over before.
    ///
    /// # Errors
    /// [`ImportError`]; nothing was made then.
    pub fn import(parts: Parts, settings: Arc<Settings>, state: ServerState) -> Result<Self, ImportError> {
        if (state.worker, state.workers) != (parts.worker, parts.workers) {
            return Err(ImportError::Worker { worker: state.worker, workers: state.workers });
        }
        let parts = Parts { nonce_key: state.nonce_key, ..parts };
        let mut server = Self::new(parts, settings);
        server.draining = state.draining;
        server.review = state.review;
        server.import_allocations(state.allocations)?;
        server.import_requests(state.openings, state.reservations)?;
        server.import_paths(state.paths);
        server.import_connections(state.connections)?;
        server.table.set_generation(state.generation);
        server.openings.set_asked(state.questions);
        Ok(server)
    }

    pub(super) fn import_allocations(&mut self, allocations: Vec<AllocationState>) -> Result<(), ImportError> {
        // Those of the configuration first: what comes in slices shares one text all the same.
        let mut secrets: BTreeSet<SecretId> = self.settings.auth.secrets.iter().map(|of| of.id.clone()).collect();
        for mut allocation in allocations {
            share_secret(&mut secrets, &mut allocation.owner);
            self.import_allocation(allocation)?;
        }
        Ok(())
    }

    /// Requests under way, and ports that are held.
    pub(super) fn import_requests(
        &mut self,
        openings: Vec<OpeningState>,
        reservations: Vec<(ReservationToken, Reservation)>,
    ) -> Result<(), ImportError> {
        for opening in openings {
            self.import_opening(opening)?;
        }
        for (token, reservation) in reservations {
            self.timers.arm(reservation.expires_at, token.into());
            self.reservations.insert(token, reservation);
        }
        Ok(())
    }

    /// Ways of clients whose allocations are other workers'.
    pub(super) fn import_paths(&mut self, paths: Option<Vec<ForeignPathState>>) {
        for ForeignPathState { via, session, expires_at } in paths.into_iter().flatten() {
            if !self.has_allocation(&via) {
                let (_, (at, number)) = self.foreign.note(via, session, expires_at);
                self.timers.arm(at, Due::Path(number));
            }
        }
    }

    /// Connections, after the allocations that they belong to.
    pub(super) fn import_connections(&mut self, connections: Option<Vec<PeerConnection>>) -> Result<(), ImportError> {
        for connection in connections.into_iter().flatten() {
            let id = connection.allocation;
            let is_of_tcp = self.table.get(id).is_some_and(Allocation::is_tcp);
            if !is_of_tcp || !self.connections.insert(connection) {
                return Err(ImportError::Connection { id });
            }
            let due = Due::Connection(connection.id);
            connection.stage.overdue_at().into_iter().for_each(|at| self.timers.arm(at, due));
        }
        Ok(())
    }

    fn reserve_exactly(&mut self, id: AllocationId) -> Result<(), ImportError> {
        let is_free = id.index < SLOTS_MAX && self.table.reserve_exactly(id);
        is_free.then_some(()).ok_or(ImportError::Slot { id })
    }

    fn import_allocation(&mut self, state: AllocationState) -> Result<(), ImportError> {
        let id = state.id;
        for (socket, _) in state.sockets() {
            self.reserve_exactly(socket)?;
        }
        let pending = state.mobility.as_ref().and_then(|mobility| mobility.pending);
        if self.has_allocation(&state.via) || pending.is_some_and(|path| self.has_allocation(&path.via)) {
            return Err(ImportError::Client { id });
        }
        self.take_in(state);
        Ok(())
    }

    /// Makes an allocation of a state, whose slots are reserved.
    pub(super) fn take_in(&mut self, state: AllocationState) {
        let mut allocation = Allocation::from_state(state, self.secret);
        let meters = {
            let owner = &allocation.owner;
            let old = owner.meters();
            self.shared.meters(&allocation.claim(), owner.counted(), &self.settings.limits, &old)
        };
        allocation.owner.set_meters(meters);
        if allocation.mobility().is_some() {
            self.shared.set_worker(allocation.session, self.worker);
        }
        self.timers.arm(allocation.armed_at, Due::Allocation(allocation.id.index));
        self.cold_pool.prepare();
        self.table.insert(allocation);
    }

    fn import_opening(&mut self, state: OpeningState) -> Result<(), ImportError> {
        let id = state.id;
        self.reserve_exactly(id)?;
        let mut opening = Opening::from(state);
        if !opening.is_abandoned && self.has_allocation(&opening.via) {
            return Err(ImportError::Client { id });
        }
        match opening.stage {
            Stage::Admission { overdue_at } => {
                overdue_at.into_iter().for_each(|at| self.timers.arm(at, Due::Admission(id)));
            }
            Stage::Reservation { question, overdue_at } => self.timers.arm(overdue_at, Due::Question(question)),
            Stage::Additional { socket, .. } => self.reserve_exactly(socket)?,
            Stage::Relay => {}
        }
        if !opening.stage.is_admission() {
            let claim = opening.owner.claim(&opening.via);
            let old = opening.owner.meters();
            let meters: Meters = self.shared.meters(&claim, opening.owner.counted(), &self.settings.limits, &old);
            opening.owner.set_meters(meters);
        }
        self.openings.insert(id, opening);
        Ok(())
    }
}

/// Lets all that came in with one secret share the text of its id, as where it came from.
fn share_secret(known: &mut BTreeSet<SecretId>, owner: &mut OwnerState) {
    if let Some(limit) = &mut owner.time_limited {
        match known.get(&limit.secret) {
            Some(same) => limit.secret = same.clone(),
            None => drop(known.insert(limit.secret.clone())),
        }
    }
}

/// The counters of a server that is taken over: for [`Parts::counters`](super::Parts::counters).
#[must_use]
pub fn counters_of(state: &ServerState) -> Arc<Counters> {
    Arc::new(Counters::from_state(&state.counters))
}
