//! Counters of one worker: written by it alone, read by anyone at any time.
//!
//! Plain relaxed cells: one writer needs no atomic addition, so that counting costs an ordinary store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::accounting::Amount;
use super::connection::ConnectionResult;
use super::reason::{Direction, DropReason, EndReason};
use super::reject::RejectReason;
use crate::address::{Family, Transport};
use crate::wire::message::{
    METHOD_ALLOCATE, METHOD_BINDING, METHOD_CHANNEL_BIND, METHOD_CONNECT, METHOD_CONNECTION_BIND,
    METHOD_CREATE_PERMISSION, METHOD_REFRESH, Method,
};

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds; for the owning worker only.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Subtracts; for the owning worker only.
    #[inline]
    pub fn sub(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value at some moment.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets and bytes.
#[derive(Debug, Default)]
pub struct AmountCell {
    /// Datagrams.
    pub packets: Cell,
    /// Payload bytes.
    pub bytes: Cell,
}

impl AmountCell {
    #[inline]
    pub(super) fn add(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }

    /// The values at some moment.
    #[must_use]
    pub fn get(&self) -> Amount {
        Amount { packets: self.packets.get(), bytes: self.bytes.get() }
    }
}

/// The methods that are answered, as `requests` counts them.
pub const METHODS: [(Method, &str); 7] = [
    (METHOD_BINDING, "binding"),
    (METHOD_ALLOCATE, "allocate"),
    (METHOD_REFRESH, "refresh"),
    (METHOD_CREATE_PERMISSION, "create_permission"),
    (METHOD_CHANNEL_BIND, "channel_bind"),
    (METHOD_CONNECT, "connect"),
    (METHOD_CONNECTION_BIND, "connection_bind"),
];

/// All that one worker counts.
#[derive(Debug)]
pub struct Counters {
    /// Requests that were answered with success, by [`METHODS`].
    pub successes: [Cell; METHODS.len()],
    /// Requests that were answered with an error, by [`RejectReason`].
    pub rejects: Box<[Cell]>,
    /// Packets that went nowhere, by [`DropReason`].
    pub drops: Box<[AmountCell]>,
    /// Payload from clients on allocations.
    pub from_clients: AmountCell,
    /// Payload sent to peers; what a send refused is taken back.
    pub to_peers: AmountCell,
    /// Payload from peers on relayed addresses.
    pub from_peers: AmountCell,
    /// Payload sent to clients; what a send refused is taken back.
    pub to_clients: AmountCell,
    /// Live allocations by [`Transport`] and family (IPv4, IPv6).
    pub live: [[Cell; 2]; Transport::ALL.len()],
    /// Allocations ever made.
    pub created: Cell,
    /// Moves of allocations to another address of their client.
    pub moves: Cell,
    /// ICMP errors about relayed datagrams that were told to clients.
    pub icmp_errors: Cell,
    /// Allocations that came from another worker with their client, and those that went to one.
    pub arrived: Cell,
    /// See [`Counters::arrived`].
    pub left: Cell,
    /// Ended allocations by [`EndReason`].
    pub ended: [Cell; EndReason::ALL.len()],
    /// Connections to peers by [`ConnectionResult`].
    pub connections: [Cell; ConnectionResult::ALL.len()],
}

/// What the names of counters begin with, or are.
pub(super) const LIVE: &str = "live.";
pub(super) const ENDED: &str = "ended.";
pub(super) const CREATED: &str = "created";
pub(super) const ARRIVED: &str = "arrived";
pub(super) const LEFT: &str = "left";

/// The name of the counter of live allocations of a kind.
pub(super) fn live_name(transport: Transport, family: Family) -> String {
    format!("{LIVE}{}.{}", transport.name(), family.name())
}

/// The name of the counter of those that ended for this reason.
pub(super) fn ended_name(why: EndReason) -> String {
    format!("{ENDED}{}", why.name())
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            successes: Default::default(),
            rejects: RejectReason::ALL.iter().map(|_| Cell::default()).collect(),
            drops: DropReason::ALL.iter().map(|_| AmountCell::default()).collect(),
            from_clients: AmountCell::default(),
            to_peers: AmountCell::default(),
            from_peers: AmountCell::default(),
            to_clients: AmountCell::default(),
            live: Default::default(),
            created: Cell::default(),
            moves: Cell::default(),
            icmp_errors: Cell::default(),
            arrived: Cell::default(),
            left: Cell::default(),
            ended: Default::default(),
            connections: Default::default(),
        }
    }
}

impl Counters {
    /// Every cell with its name.
    fn cells(&self) -> impl Iterator<Item = (String, &Cell)> {
        fn amount(name: String, AmountCell { packets, bytes }: &AmountCell) -> [(String, &Cell); 2] {
            [(format!("{name}.packets"), packets), (format!("{name}.bytes"), bytes)]
        }
        let successes = METHODS.iter().zip(&self.successes).map(|((_, name), cell)| (format!("success.{name}"), cell));
        let rejects =
            RejectReason::ALL.iter().zip(&self.rejects).map(|(why, cell)| (format!("reject.{}", why.name()), cell));
        let drops =
            DropReason::ALL.iter().zip(&self.drops).map(|(why, cell)| amount(format!("drop.{}", why.name()), cell));
        let payload = [
            ("from_clients", &self.from_clients),
            ("to_peers", &self.to_peers),
            ("from_peers", &self.from_peers),
            ("to_clients", &self.to_clients),
        ];
        let live = Transport::ALL.iter().zip(&self.live).flat_map(|(transport, [ipv4, ipv6])| {
            [(live_name(*transport, Family::V4), ipv4), (live_name(*transport, Family::V6), ipv6)]
        });
        let ended = EndReason::ALL.iter().zip(&self.ended).map(|(why, cell)| (ended_name(*why), cell));
        let connections = ConnectionResult::ALL.iter().zip(&self.connections);
        let connections = connections.map(|(result, cell)| (format!("connection.{}", result.name()), cell));
        successes
            .chain(rejects)
            .chain(drops.flatten())
            .chain(payload.into_iter().flat_map(|(name, cell)| amount(name.to_owned(), cell)))
            .chain(live)
            .chain([
                (CREATED.to_owned(), &self.created),
                ("moves".to_owned(), &self.moves),
                ("icmp_errors".to_owned(), &self.icmp_errors),
            ])
            .chain([(ARRIVED.to_owned(), &self.arrived), (LEFT.to_owned(), &self.left)])
            .chain(ended)
            .chain(connections)
    }

    /// Every counter that is not 0, by name: a release with other counters reads what it knows.
    #[must_use]
    pub fn to_state(&self) -> BTreeMap<String, u64> {
        self.cells().map(|(name, cell)| (name, cell.get())).filter(|(_, value)| *value != 0).collect()
    }

    /// The counters that [`Counters::to_state`] described.
    #[must_use]
    pub fn from_state(state: &BTreeMap<String, u64>) -> Self {
        let counters = Self::default();
        counters.set(state);
        counters
    }

    /// Goes on where those that [`Counters::to_state`] described were; for the owning worker only.
    pub(super) fn set(&self, state: &BTreeMap<String, u64>) {
        for (name, cell) in self.cells() {
            cell.set(state.get(&name).copied().unwrap_or(0));
        }
    }

    /// Counts packets that go nowhere and belong to no allocation, or whose payload is unknown.
    #[inline]
    pub fn dropped(&self, why: DropReason, packets: u64, bytes: u64) {
        self.drops[why as usize].add(packets, bytes);
    }

    pub(super) fn connection(&self, result: ConnectionResult) {
        self.connections[result as usize].add(1);
    }

    pub(super) fn rejected(&self, why: RejectReason) {
        self.rejects[why as usize].add(1);
    }

    pub(super) fn succeeded(&self, method: Method) {
        if let Some(at) = METHODS.iter().position(|(known, _)| *known == method) {
            self.successes[at].add(1);
        }
    }

    pub(super) fn live(&self, transport: Transport, family: Family) -> &Cell {
        &self.live[transport as usize][family as usize]
    }

    #[inline]
    pub(super) fn received(&self, direction: Direction, bytes: usize) {
        match direction {
            Direction::ToPeer => self.from_clients.add(1, bytes as u64),
            Direction::ToClient => self.from_peers.add(1, bytes as u64),
        }
    }

    #[inline]
    pub(super) fn sent(&self, direction: Direction, bytes: usize) {
        match direction {
            Direction::ToPeer => self.to_peers.add(1, bytes as u64),
            Direction::ToClient => self.to_clients.add(1, bytes as u64),
        }
    }

    pub(super) fn take_back(&self, direction: Direction, packets: u64, bytes: u64) {
        let cell = match direction {
            Direction::ToPeer => &self.to_peers,
            Direction::ToClient => &self.to_clients,
        };
        cell.packets.sub(packets);
        cell.bytes.sub(bytes);
    }

    /// How often a drop of this kind was counted.
    #[must_use]
    pub fn drops_of(&self, why: DropReason) -> Amount {
        self.drops[why as usize].get()
    }

    /// How often a request was refused for this reason.
    #[must_use]
    pub fn rejects_of(&self, why: RejectReason) -> u64 {
        self.rejects[why as usize].get()
    }
}
