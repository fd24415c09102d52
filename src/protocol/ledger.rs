//! What a server tells a ledger, from which another process can make one like it when this one is gone without a word: each
//! allocation when control traffic changed it, and all of them once more, in slices, again and again.
//!
//! Counts in a ledger are as old as the last slice with them, all else as old as the last entry. Decision 0213.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use minicbor::{Decode, Encode};

use super::Server;
use super::allocation::{Allocation, AllocationState};
use super::changes::ServerChanges;
use super::counters::{ARRIVED, CREATED, ENDED, LEFT, LIVE, ended_name, live_name};
use super::ids::AllocationId;
use super::quota::{Counted, QuotaClaim};
use super::reason::EndReason;
use crate::address::{Family, Transport, Via};

/// Allocations that may have begun in a worker after its last word, so that none gets an id that was given already.
const GENERATIONS_AHEAD: u32 = 1 << 16;

/// What changed, or a slice of what there is.
#[derive(Clone, PartialEq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct LedgerEntry {
    /// Live allocations as they are now.
    #[n(0)]
    pub allocations: Vec<AllocationState>,
    /// Slots that are free now.
    #[n(1)]
    pub free: Vec<u32>,
}

impl LedgerEntry {
    /// Whether it tells of nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allocations.is_empty() && self.free.is_empty()
    }
}

/// All entries of one worker taken together; with each allocation goes what the shell says of it. Calls wait while this is
/// made, and a state is half a kilobyte, so each is moved as seldom as can be.
#[derive(Clone, Debug)]
pub struct LedgerSum<T> {
    /// By slot: the place in `allocations`.
    places: BTreeMap<u32, usize>,
    allocations: Vec<Option<(AllocationState, T)>>,
}

impl<T> Default for LedgerSum<T> {
    fn default() -> Self {
        Self { places: BTreeMap::new(), allocations: Vec::new() }
    }
}

impl<T> LedgerSum<T> {
    /// What comes later holds. `with` is what goes with each allocation of the entry, in the same order.
    pub fn add(&mut self, entry: LedgerEntry, with: impl IntoIterator<Item = T>) {
        for slot in entry.free {
            if let Some(place) = self.places.remove(&slot) {
                self.allocations[place] = None;
            }
        }
        for (allocation, with) in entry.allocations.into_iter().zip(with) {
            let place = *self.places.entry(allocation.id.index).or_insert(self.allocations.len());
            let known = Some((allocation, with));
            match self.allocations.get_mut(place) {
                Some(old) => *old = known,
                None => self.allocations.push(known),
            }
        }
    }

    /// The allocations that there were by their slots, for [`Server::import_early`]. Of two of one client the later one holds.
    #[must_use]
    pub fn finish(mut self) -> Vec<(AllocationState, T)> {
        let mut by_client: HashMap<&Via, AllocationId> = HashMap::with_capacity(self.places.len());
        let mut others = Vec::new();
        for (AllocationState { id, via, .. }, _) in self.allocations.iter().flatten() {
            let known = by_client.entry(via).or_insert(*id);
            if is_later(id.generation, known.generation) {
                others.push(std::mem::replace(known, *id));
            } else if known != id {
                others.push(*id);
            }
        }
        drop(by_client);
        for id in others {
            self.places.remove(&id.index);
        }
        let Self { places, mut allocations } = self;
        let mut all: Vec<(AllocationState, T)> =
            places.into_values().filter_map(|place| allocations[place].take()).collect();
        lose_taken_sockets(&mut all);
        all
    }
}

/// A second socket whose slot another allocation has by now was closed after its allocation was told of.
fn lose_taken_sockets<T>(allocations: &mut [(AllocationState, T)]) {
    if allocations.iter().all(|(allocation, _)| allocation.sockets().count() == 1) {
        return;
    }
    let mut latest: BTreeMap<u32, u32> = BTreeMap::new();
    for (socket, _) in allocations.iter().flat_map(|(allocation, _)| allocation.sockets()) {
        let known = latest.entry(socket.index).or_insert(socket.generation);
        if is_later(socket.generation, *known) {
            *known = socket.generation;
        }
    }
    for (allocation, _) in allocations {
        let second = allocation.sockets().nth(1);
        if second.is_some_and(|(socket, _)| latest.get(&socket.index) != Some(&socket.generation)) {
            allocation.lose_second_socket();
        }
    }
}

/// Whether an allocation began after another one.
const fn is_later(generation: u32, than: u32) -> bool {
    (generation.wrapping_sub(than) as i32) > 0
}

/// Makes the last totals that a worker told, for [`Server::import_changes`], fit the allocations that there are: some may have
/// begun since, and some may have ended, of which nothing but that is known.
pub fn settle<'a>(totals: &mut ServerChanges, allocations: impl Iterator<Item = &'a AllocationState> + Clone) {
    for (id, _) in allocations.clone().flat_map(AllocationState::sockets) {
        if is_later(id.generation, totals.generation) {
            totals.generation = id.generation;
        }
    }
    totals.generation = totals.generation.wrapping_add(GENERATIONS_AHEAD);
    totals.live = allocations.clone().count() as u64;
    let counters = &mut totals.counters;
    counters.retain(|name, _| !name.starts_with(LIVE));
    let mut live: BTreeMap<(Transport, Family), u64> = BTreeMap::new();
    for AllocationState { via, relayed, .. } in allocations {
        *live.entry((via.five_tuple().transport, Family::of(relayed.ip()))).or_default() += 1;
    }
    counters.extend(live.into_iter().map(|((transport, family), count)| (live_name(transport, family), count)));
    let ended = counters.iter().filter(|(name, _)| name.starts_with(ENDED)).map(|(_, count)| count).sum::<u64>();
    let [arrived, left] = [ARRIVED, LEFT].map(|name| counters.get(name).copied().unwrap_or(0));
    let known = (ended + totals.live + left).saturating_sub(arrived);
    let created = counters.entry(CREATED.to_owned()).or_default();
    *created = (*created).max(known);
    let unknown = *created - known;
    if unknown > 0 {
        *counters.entry(ended_name(EndReason::Crash)).or_default() += unknown;
    }
}

impl Server {
    /// From now on the server notes which allocations change.
    pub fn begin_ledger(&mut self) {
        self.table.touched.begin();
    }

    /// Up to so many of the allocations that control traffic has touched since they were told last.
    pub fn touched(&mut self, count: usize) -> LedgerEntry {
        let mut entry = LedgerEntry::default();
        for _ in 0..count {
            let Some(slot) = self.table.touched.pop() else { break };
            match self.table.at(slot) {
                Some(allocation) => entry.allocations.push(allocation.to_state()),
                None => entry.free.push(slot),
            }
        }
        entry
    }

    /// The allocations in so many slots from one on, and the slot to go on with if there are more.
    #[must_use]
    pub fn slice(&self, from: usize, count: usize) -> (LedgerEntry, Option<usize>) {
        let (allocations, next) = self.table.slots(from, count);
        let allocations = allocations.map(Allocation::to_state).collect();
        (LedgerEntry { allocations, free: Vec::new() }, next)
    }

    /// Calls `count` for each allocation with what it is counted under.
    pub fn each_claim(&self, mut count: impl FnMut(&QuotaClaim<'_>, Counted)) {
        for allocation in self.table.iter() {
            count(&allocation.claim(), allocation.owner.counted());
        }
    }
}
