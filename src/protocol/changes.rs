//! A server as plain values in two parts: allocations early, in slices, while packets pass; the rest at one moment, when
//! nothing is read and every microsecond delays all calls.
//!
//! In the process that gives its allocations away: [`Server::begin_early_export`], [`Server::early_export`] until there
//! are no more slots, and [`Server::export_changes`] at the cut. In the one that takes them: [`Server::new`],
//! [`Server::import_early`] with each slice in the same order, [`Server::import_changes`]; the process's quotas must have
//! been imported early before. Decision 0211.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use super::Server;
use super::accounting::Amount;
use super::allocation::{Allocation, AllocationState};
use super::connection::PeerConnection;
use super::early_marks::EarlyMark;
use super::export::{
    ImportError, add_dual, add_features_of, add_mobile, add_other_realms, add_sha256, add_tcp, keep_openings_for,
};
use super::ids::{AllocationId, WorkerId};
use super::meter::MeterWords;
use super::mobility_ticket::Tickets;
use super::nonce::Nonces;
use super::opening::OpeningState;
use super::packet_bucket::PacketBucket;
use super::paths::ForeignPathState;
use super::reason::DropReason;
use super::reservation::Reservation;
use super::review::Review;
use super::rows::{Row, Rows};
use super::timer::Due;
use crate::state::{Features, Kind, State};
use crate::wire::attribute::ReservationToken;

/// One slice of [`Server::early_export`].
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct EarlyAllocations {
    /// Whose they are.
    #[n(0)]
    pub worker: WorkerId,
    /// In the order of their slots.
    #[n(1)]
    pub allocations: Vec<AllocationState>,
}

impl State for EarlyAllocations {
    const KIND: Kind = Kind::EarlyAllocations;

    fn add_features(&self, features: &mut Features) {
        add_features_of(self.allocations.iter().map(|allocation| &allocation.via), features);
        add_dual(&self.allocations, &[], features);
        add_sha256(&self.allocations, &[], features);
        add_other_realms(&self.allocations, &[], features);
        add_mobile(&self.allocations, &[], features);
        add_tcp(&self.allocations, &[], features);
    }

    // Nothing of it came after the first format.
    fn keep_for(&mut self, _: u32) {}
}

/// What data lanes change in an allocation that was exported early, got packets since, and has not changed otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocationCounts {
    /// Which one.
    pub id: AllocationId,
    /// What came in: from the client, and from peers.
    pub received: [Amount; 2],
    /// Its buckets of packets, each way.
    pub packets: [u32; 2],
}

const fn join(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

const fn split(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl Row for AllocationCounts {
    type Words = [u64; 6];

    fn to_words(&self) -> Self::Words {
        let [from_client, from_peers] = self.received;
        [
            join(self.id.generation, self.id.index),
            from_client.packets,
            from_client.bytes,
            from_peers.packets,
            from_peers.bytes,
            join(self.packets[0], self.packets[1]),
        ]
    }

    fn from_words(words: &Self::Words) -> Self {
        let [id, client_packets, client_bytes, peer_packets, peer_bytes, buckets] = *words;
        let (generation, index) = split(id);
        let (to_peer, to_client) = split(buckets);
        let from_client = Amount { packets: client_packets, bytes: client_bytes };
        let from_peers = Amount { packets: peer_packets, bytes: peer_bytes };
        Self {
            id: AllocationId { index, generation },
            received: [from_client, from_peers],
            packets: [to_peer, to_client],
        }
    }
}

/// What one such allocation has dropped, if it dropped anything since then.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct AllocationDrops {
    /// Its slot.
    #[n(0)]
    pub slot: u32,
    /// Towards peers, and towards the client.
    #[n(1)]
    pub dropped: [Amount; 2],
    /// The same by reason.
    #[n(2)]
    pub by_reason: Box<[(DropReason, Amount)]>,
}

/// What one such allocation has used of a limit of its own, if it has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnMeterWords {
    /// Its slot.
    pub slot: u32,
    pub(super) words: MeterWords,
}

impl Row for OwnMeterWords {
    type Words = [u64; 12];

    fn to_words(&self) -> Self::Words {
        let mut words = [u64::from(self.slot); 12];
        words[1..].copy_from_slice(&self.words);
        words
    }

    fn from_words([slot, words @ ..]: &Self::Words) -> Self {
        Self { slot: *slot as u32, words: *words }
    }
}

/// A worker's server as plain values, without what was exported early and has not changed.
#[derive(Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct ServerChanges {
    /// Its number, which tokens carry.
    #[n(0)]
    pub worker: WorkerId,
    /// How many workers there are.
    #[n(1)]
    pub workers: usize,
    /// Allocations so far, modulo 2^32.
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
    /// Live allocations that are new or have changed since their early export, in the order of their slots.
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
    /// Nothing is known of an early export, so that `allocations` are all: those imported early count for nothing.
    #[n(11)]
    pub is_whole: bool,
    /// Allocations that were exported early and have ended since.
    #[n(12)]
    pub ended: Vec<AllocationId>,
    /// Of every other live allocation that got packets since what they change.
    #[n(13)]
    pub counts: Rows<AllocationCounts>,
    /// Those of the others that dropped something since their early export: all that they ever dropped.
    #[n(14)]
    pub drops: Vec<AllocationDrops>,
    /// Those of them that have a meter of their own.
    #[n(15)]
    pub own_meters: Rows<OwnMeterWords>,
    /// How many allocations live.
    #[n(16)]
    pub live: u64,
    /// Ways of clients whose allocations are other workers'.
    #[n(17)]
    pub paths: Option<Vec<ForeignPathState>>,
    /// Connections to peers, in the order of their ids, if there are any.
    #[n(18)]
    pub connections: Option<Vec<PeerConnection>>,
}

impl std::fmt::Debug for ServerChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerChanges")
            .field("worker", &self.worker)
            .field("allocations", &self.allocations.len())
            .field("counts", &self.counts.0.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl State for ServerChanges {
    const KIND: Kind = Kind::WorkerChanges;

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

impl ServerChanges {
    /// Notes of an allocation only what packets change as they come in.
    fn note_counts(&mut self, allocation: &Allocation) {
        let (id, slot) = (allocation.id, allocation.id.index);
        let packets = allocation.packets.to_state();
        self.counts.0.push(AllocationCounts { id, received: allocation.received, packets });
        if let Some(meter) = allocation.owner.own_meter() {
            self.own_meters.0.push(OwnMeterWords { slot, words: meter.words() });
        }
    }

    /// Notes what it dropped; the last packet may have come in long before.
    fn note_drops(&mut self, allocation: &Allocation) {
        if let Some(cold) = allocation.cold.as_ref().filter(|cold| cold.is_untold) {
            let (slot, by_reason) = (allocation.id.index, cold.list());
            self.drops.push(AllocationDrops { slot, dropped: cold.dropped, by_reason });
        }
    }
}

impl Server {
    /// From now on the server notes which allocations change, so that they can be exported before everything else.
    /// What was noted for an earlier attempt is forgotten.
    pub fn begin_early_export(&mut self) {
        self.table.early.begin();
    }

    /// The allocations in so many slots from one on as they are now, and the slot to go on with if there are more; a
    /// slot may be exported again. [`Server::begin_early_export`] comes first, or [`Server::export_changes`] will give
    /// all of them once more.
    pub fn early_export(&mut self, from: usize, count: usize) -> (Vec<AllocationState>, Option<usize>) {
        let (allocations, next) = self.table.slots(from, count);
        let states: Vec<AllocationState> = allocations.map(Allocation::to_state).collect();
        for AllocationState { id, .. } in &states {
            let Some(allocation) = self.table.lane_mut(*id) else { continue };
            if let Some(cold) = &mut allocation.cold {
                cold.is_untold = false;
            }
            let packets = allocation.packets_received();
            self.table.early.note_sent(*id, packets);
        }
        (states, next)
    }

    /// The other process failed, or there is none any more: nothing is noted from now on.
    pub fn end_early_export(&mut self) {
        self.table.early.end();
    }

    /// What belongs to no single allocation. Requests under way and held ports are not among it: their clients ask again.
    #[must_use]
    pub fn totals(&self) -> ServerChanges {
        ServerChanges {
            worker: self.worker,
            workers: self.workers,
            generation: self.table.generation(),
            questions: self.openings.asked(),
            draining: self.draining,
            nonce_key: self.nonces.key().into(),
            allocations: Vec::new(),
            openings: Vec::new(),
            reservations: Vec::new(),
            review: None,
            counters: self.counters.to_state(),
            is_whole: false,
            ended: Vec::new(),
            counts: Rows::default(),
            drops: Vec::new(),
            own_meters: Rows::default(),
            live: self.table.len() as u64,
            paths: None,
            connections: None,
        }
    }

    /// Everything that the early export lacks, as plain values; [`Server::poll_output`] must have been drained. Without
    /// an early export, and after a restart of this server, that is all there is.
    ///
    /// This server may go on afterwards, if the other one does not: nothing changes.
    #[must_use]
    pub fn export_changes(&self) -> ServerChanges {
        debug_assert!(self.outputs.is_empty(), "what the core wants done is done before the export");
        let mut changes = ServerChanges {
            openings: self.openings.to_state(),
            reservations: self.reservations.to_state(),
            review: self.review,
            paths: self.foreign.to_state(),
            is_whole: !self.table.early.is_on(),
            ended: self.table.ended_since().collect(),
            counts: Rows(Vec::with_capacity(self.table.len())),
            connections: self.connections_state(),
            ..self.totals()
        };
        // In the order of their slots.
        for allocation in self.table.iter() {
            let mark = self.table.early_mark(allocation);
            // Packets change more of one with two addresses than counts tell, and there are few.
            let is_untold = allocation.cold.as_ref().is_some_and(|cold| cold.is_untold);
            let is_dual = allocation.additional().is_some() && (is_untold || mark != EarlyMark::Unchanged);
            match if is_dual { EarlyMark::Changed } else { mark } {
                EarlyMark::Unchanged => changes.note_drops(allocation),
                EarlyMark::Counting => {
                    changes.note_counts(allocation);
                    changes.note_drops(allocation);
                }
                EarlyMark::Unsent | EarlyMark::Changed => changes.allocations.push(allocation.to_state()),
            }
        }
        changes
    }

    /// Takes one slice of another process's [`Server::early_export`] over, into a server that does nothing else yet: it
    /// must be given nothing to handle before [`Server::import_changes`].
    ///
    /// What a later slice tells of a slot or of a client is what holds: the one known before has ended there meanwhile.
    ///
    /// # Errors
    /// [`ImportError`]; the server must not be used then.
    pub fn import_early(&mut self, allocations: Vec<AllocationState>) -> Result<(), ImportError> {
        for allocation in &allocations {
            self.forget_for(allocation);
        }
        self.import_allocations(allocations)
    }

    /// Takes over what [`Server::export_changes`] gave, after all slices; then it is that server. Seeds stay those that
    /// it was made with, the nonce key and the counters are the old ones.
    ///
    /// # Errors
    /// [`ImportError`]; the server must not be used then.
    pub fn import_changes(&mut self, changes: ServerChanges) -> Result<(), ImportError> {
        if (changes.worker, changes.workers) != (self.worker, self.workers) {
            return Err(ImportError::Worker { worker: changes.worker, workers: changes.workers });
        }
        self.forget_outdated(&changes);
        self.import_allocations(changes.allocations)?;
        self.import_counts(&changes.counts.0, &changes.drops, &changes.own_meters.0)?;
        self.import_requests(changes.openings, changes.reservations)?;
        self.import_paths(changes.paths);
        self.import_connections(changes.connections)?;
        self.nonces = Nonces::new(&changes.nonce_key);
        self.tickets = Tickets::new(&changes.nonce_key);
        self.draining = changes.draining;
        self.review = changes.review;
        self.counters.set(&changes.counters);
        self.table.set_generation(changes.generation);
        self.openings.set_asked(changes.questions);
        let found = self.table.len() as u64;
        if found != changes.live {
            return Err(ImportError::Live { found, expected: changes.live });
        }
        Ok(())
    }

    /// Forgets those imported early that have ended since, and those that come once more.
    fn forget_outdated(&mut self, changes: &ServerChanges) {
        let all = self.table.iter().filter(|_| changes.is_whole).map(|allocation| allocation.id);
        let outdated: Vec<AllocationId> = all.chain(changes.ended.iter().copied()).collect();
        for id in outdated {
            self.forget_imported(id);
        }
        for allocation in &changes.allocations {
            self.forget_for(allocation);
        }
    }

    /// Forgets what had the slots of an allocation, or its client.
    fn forget_for(&mut self, allocation: &AllocationState) {
        let slots = allocation.sockets().flat_map(|(socket, _)| {
            let slot = socket.index;
            [self.table.at(slot), self.table.of_additional_slot(slot)].into_iter().flatten().map(|known| known.id)
        });
        let pending = allocation.mobility.as_ref().and_then(|mobility| mobility.pending).map(|path| path.via);
        let vias = pending.iter().chain([&allocation.via]);
        let of_client = vias.filter_map(|via| self.table.by_path(via)).map(|known| known.id);
        let outdated: Vec<AllocationId> = slots.chain(of_client).collect();
        for id in outdated {
            self.forget_imported(id);
        }
    }

    /// As if it had never been imported: nothing is told, closed or released.
    fn forget_imported(&mut self, id: AllocationId) {
        if let Some(allocation) = self.table.remove(id) {
            self.shared.unset_worker(allocation.session, self.worker);
            self.timers.disarm(allocation.armed_at, Due::Allocation(id.index));
            self.cold_pool.take_back(allocation.into_aside());
        }
    }

    fn import_counts(
        &mut self,
        counts: &[AllocationCounts],
        drops: &[AllocationDrops],
        own_meters: &[OwnMeterWords],
    ) -> Result<(), ImportError> {
        for AllocationCounts { id, received, packets } in counts {
            let allocation = self.table.lane_mut(*id).ok_or(ImportError::Missing { id: *id })?;
            allocation.received = *received;
            allocation.packets = PacketBucket::from_state(*packets);
        }
        let missing = |slot| ImportError::Missing { id: AllocationId { index: slot, generation: 0 } };
        for AllocationDrops { slot, dropped, by_reason } in drops {
            let allocation = self.table.at_mut(*slot).ok_or(missing(*slot))?;
            allocation.cold.get_or_insert_default().set(*dropped, by_reason);
        }
        for OwnMeterWords { slot, words } in own_meters {
            let meter = self.table.at(*slot).and_then(|allocation| allocation.owner.own_meter());
            meter.ok_or(missing(*slot))?.set_words(words);
        }
        Ok(())
    }
}
