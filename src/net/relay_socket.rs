//! Opens and closes relayed addresses: family, port range, parity, held ports, 1:1 NAT.
//!
//! One worker owns its relayed sockets; the ports are shared by all. The core knows an address in its
//! advertised form only, the local form exists here.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use socket2::{Domain, Protocol, Socket, Type};

use super::files;
use super::overflow::{Overflow, SocketKind, Watched};
use super::relay_addresses::{RelayAddressEntry, RelayAddresses, RelayOwner};
use super::sys::{self, LargeDatagrams, RelaySegmentation};
use super::udp::ChainPlace;
use super::worker::{ReadBudget, ReceiveBufferState};
use crate::address::{Family, PeerAddress, RelayedTransportAddress};
use crate::protocol::border::{OpenedRelay, Parity, RelayRefused, RelayRequest};
use crate::protocol::ids::{AllocationId, WorkerId};
use crate::protocol::slots::Slots;
use crate::protocol::tenancy::PortPart;
use crate::time::Ticks;

/// How many ports that some other process holds are stepped over for one request.
const BIND_TRIES: usize = 64;

/// What a relayed socket asks the kernel to buffer, in bytes; the default overflowed under bursts of 1,200 bytes.
pub(super) const RECEIVE_BUFFER: usize = 1 << 20;

/// The socket of a relayed transport address. There is one per allocation, so it is kept small: the core knows the rest.
pub(super) struct RelaySocket {
    pub(super) id: AllocationId,
    pub(super) socket: Watched<UdpSocket>,
    /// The relayed port, at the address with this number.
    port: u16,
    address: u16,
    pub(super) read_budget: ReadBudget,
    pub(super) buffer_state: ReceiveBufferState,
    pub(super) segmentation: RelaySegmentation,
    /// Where its payload stands among what waits for peers, and for its client.
    pub(super) to_peer: ChainPlace,
    pub(super) to_client: ChainPlace,
}

const _: () = assert!(size_of::<Option<RelaySocket>>() == 48);

/// The relayed sockets of one worker.
pub(super) struct Relays {
    worker: WorkerId,
    addresses: Arc<RelayAddresses>,
    overflow: Arc<Overflow>,
    sockets: Slots<RelaySocket>,
    held: HashMap<RelayedTransportAddress, Watched<UdpSocket>>,
    turn: usize,
}

impl Relays {
    pub(super) fn new(worker: WorkerId, addresses: Arc<RelayAddresses>, overflow: Arc<Overflow>) -> Self {
        Self { worker, addresses, overflow, sockets: Slots::default(), held: HashMap::new(), turn: 0 }
    }

    #[inline]
    pub(super) fn get(&self, id: AllocationId) -> Option<&RelaySocket> {
        self.sockets.get(id.index).filter(|socket| socket.id == id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut RelaySocket> {
        self.sockets.get_mut(id.index).filter(|socket| socket.id == id)
    }

    /// Whether a socket is that of this relayed address.
    pub(super) fn is_at(&self, id: AllocationId, relayed: RelayedTransportAddress) -> bool {
        self.id_at(id.index, PeerAddress(relayed.0)) == Some(id)
    }

    /// Who has a relayed address of this server now, whichever worker.
    #[inline]
    pub(super) fn owner(&self, address: PeerAddress) -> Option<RelayOwner> {
        self.addresses.relay_owner(address)
    }

    /// The allocation in a slot of this worker, if that address is still its own.
    #[inline]
    pub(super) fn id_at(&self, index: u32, address: PeerAddress) -> Option<AllocationId> {
        let socket = self.sockets.get(index)?;
        let is_it = socket.port == address.port() && self.addresses.is(socket.address, address.ip());
        is_it.then_some(socket.id)
    }

    /// The socket behind an epoll token.
    #[inline]
    pub(super) fn at_mut(&mut self, index: usize) -> Option<&mut RelaySocket> {
        self.sockets.get_mut(index as u32)
    }

    pub(super) fn open(
        &mut self,
        id: AllocationId,
        request: RelayRequest,
        now: Ticks,
    ) -> Result<OpenedRelay, RelayRefused> {
        match request {
            RelayRequest::Fresh { family, parity, part, client } => {
                self.open_fresh(id, family, WantedPort { parity, part, client }, now)
            }
            // `net::peers` opens those.
            RelayRequest::Tcp { .. } => Err(RelayRefused::System),
            RelayRequest::Reserved { relayed, .. } => {
                let socket = self.held.remove(&relayed).ok_or(RelayRefused::NotHeld)?;
                // Another worker, or another process, may have read it before.
                let read_budget = ReadBudget::of_socket(socket.as_fd());
                self.keep(id, socket, relayed);
                if let Some(socket) = self.get_mut(id) {
                    (socket.read_budget, socket.buffer_state) = (read_budget, ReceiveBufferState::unknown());
                }
                Ok(OpenedRelay { relayed, held: None })
            }
        }
    }

    fn open_fresh(
        &mut self,
        id: AllocationId,
        family: Family,
        wanted: WantedPort,
        now: Ticks,
    ) -> Result<OpenedRelay, RelayRefused> {
        let bind = |entry: &RelayAddressEntry| bind_free(entry, wanted, now, bind);
        let (advertised, (port, socket, held)) = bind_somewhere(&self.addresses, &mut self.turn, family, bind)?;
        let relayed = RelayedTransportAddress::new(advertised, port);
        let socket = self.overflow.watch(SocketKind::Relayed, socket);
        let held = held.map(|socket| {
            let socket = self.overflow.watch(SocketKind::Relayed, socket);
            let next = RelayedTransportAddress::new(advertised, port + 1);
            self.held.insert(next, socket);
            next
        });
        self.keep(id, socket, relayed);
        Ok(OpenedRelay { relayed, held })
    }

    /// Keeps the socket of an allocation of another process, in place of what it had there.
    ///
    /// # Errors
    /// When it is not bound to that relayed address.
    pub(super) fn adopt(
        &mut self,
        id: AllocationId,
        relayed: RelayedTransportAddress,
        socket: OwnedFd,
        now: Ticks,
    ) -> Result<(), String> {
        let socket = UdpSocket::from(socket);
        self.addresses.check_bound(relayed, socket.local_addr())?;
        if let Some(old) = self.sockets.get(id.index).map(|old| old.id) {
            self.close_ended(old, now);
        }
        // The other process may have been busy, and have let less wait.
        let _ = sys::set_receive_buffer(socket.as_fd(), RECEIVE_BUFFER);
        self.keep_adopted(id, relayed, socket.into(), ReceiveBufferState::default());
        Ok(())
    }

    /// As [`RelaySockets::adopt`], of a socket that is known to be bound to that relayed address, and for which calls wait.
    pub(super) fn adopt_bound(&mut self, id: AllocationId, relayed: RelayedTransportAddress, socket: OwnedFd) {
        self.keep_adopted(id, relayed, socket, ReceiveBufferState::unknown());
    }

    fn keep_adopted(
        &mut self,
        id: AllocationId,
        relayed: RelayedTransportAddress,
        socket: OwnedFd,
        buffer_state: ReceiveBufferState,
    ) {
        let (socket, read_budget) = self.adopted(relayed, socket);
        self.keep(id, socket, relayed);
        if let Some(socket) = self.get_mut(id) {
            (socket.read_budget, socket.buffer_state) = (read_budget, buffer_state);
        }
    }

    /// Holds a socket that another process held for a RESERVATION-TOKEN.
    ///
    /// # Errors
    /// When it is not bound to that relayed address.
    pub(super) fn adopt_held(&mut self, relayed: RelayedTransportAddress, socket: OwnedFd) -> Result<(), String> {
        let socket = UdpSocket::from(socket);
        self.addresses.check_bound(relayed, socket.local_addr())?;
        let (socket, _) = self.adopted(relayed, socket.into());
        self.held.insert(relayed, socket);
        Ok(())
    }

    fn adopted(&self, relayed: RelayedTransportAddress, socket: OwnedFd) -> (Watched<UdpSocket>, ReadBudget) {
        let socket = UdpSocket::from(socket);
        self.addresses.take_exactly(relayed);
        let budget = ReadBudget::of_socket(socket.as_fd());
        (self.overflow.watch(SocketKind::Relayed, socket), budget)
    }

    /// The sockets that are held for a RESERVATION-TOKEN.
    #[allow(clippy::disallowed_methods, reason = "the order does not matter: each goes with its address")]
    pub(super) fn held(&self) -> impl Iterator<Item = (RelayedTransportAddress, BorrowedFd<'_>)> {
        self.held.iter().map(|(relayed, socket)| (*relayed, socket.as_fd()))
    }

    fn keep(&mut self, id: AllocationId, socket: Watched<UdpSocket>, relayed: RelayedTransportAddress) {
        self.addresses.set_relayed(relayed, RelayOwner { worker: self.worker, index: id.index });
        let address = self.addresses.with(relayed.ip(), |entry| entry.number);
        let socket = RelaySocket {
            id,
            socket,
            port: relayed.port(),
            address: address.unwrap_or_default(),
            read_budget: ReadBudget::default(),
            buffer_state: ReceiveBufferState::default(),
            segmentation: RelaySegmentation::default(),
            to_peer: ChainPlace::default(),
            to_client: ChainPlace::default(),
        };
        self.sockets.insert(id.index, socket);
    }

    /// Closes an allocation's socket; its port rests.
    pub(super) fn close(
        &mut self,
        id: AllocationId,
        relayed: RelayedTransportAddress,
        client: Option<IpAddr>,
        now: Ticks,
    ) {
        if self.get(id).is_some() {
            // In a process that takes over, another worker may have got the allocation meanwhile.
            let was_ours = self.addresses.unset_relayed(relayed, RelayOwner { worker: self.worker, index: id.index });
            // The socket closes here, before another can get its port.
            self.sockets.remove(id.index);
            if was_ours {
                self.rest(relayed, client, now);
            }
        }
    }

    /// Makes sure that each relayed address is known to be this worker's, and its port taken: a worker that had it before
    /// may have noted that later than this one did.
    pub(super) fn claim(&self) {
        let entries = self.addresses.all();
        for socket in self.sockets.iter() {
            let owner = RelayOwner { worker: self.worker, index: socket.id.index };
            let Some(entry) = entries.iter().find(|entry| entry.number == socket.address) else { continue };
            let relayed = RelayedTransportAddress::new(entry.address.advertised, socket.port);
            if self.addresses.relay_owner(PeerAddress(relayed.0)) != Some(owner) {
                self.addresses.set_relayed(relayed, owner);
                self.addresses.take_exactly(relayed);
            }
        }
    }

    /// Knows a socket by another id from now on.
    pub(super) fn rename(&mut self, from: AllocationId, to: AllocationId, relayed: RelayedTransportAddress) {
        if self.get(from).is_none() {
            return;
        }
        if let Some(socket) = self.sockets.remove(from.index) {
            self.addresses.set_relayed(relayed, RelayOwner { worker: self.worker, index: to.index });
            self.sockets.insert(to.index, RelaySocket { id: to, ..socket });
        }
    }

    /// Takes the socket of an allocation out, for another worker; its port stays taken.
    pub(super) fn take(&mut self, id: AllocationId) -> Option<Watched<UdpSocket>> {
        self.get(id)?;
        Some(self.sockets.remove(id.index)?.socket)
    }

    /// How many sockets there are.
    pub(super) const fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Closes the socket of an allocation that has ended elsewhere; its port rests.
    pub(super) fn close_ended(&mut self, id: AllocationId, now: Ticks) {
        let Some((address, port)) = self.get(id).map(|socket| (socket.address, socket.port)) else { return };
        let entry = self.addresses.all().iter().find(|entry| entry.number == address).cloned();
        if let Some(entry) = entry {
            self.close(id, RelayedTransportAddress::new(entry.address.advertised, port), None, now);
        }
    }

    /// Closes the sockets of all allocations but these.
    pub(super) fn close_others(&mut self, owned: &HashSet<AllocationId>, now: Ticks) {
        let others = self.sockets.iter().filter(|socket| !owned.contains(&socket.id));
        let others: Vec<AllocationId> = others.map(|socket| socket.id).collect();
        others.into_iter().for_each(|id| self.close_ended(id, now));
    }

    /// Closes a held socket whose token was never used.
    pub(super) fn close_held(&mut self, relayed: RelayedTransportAddress, now: Ticks) {
        if self.held.remove(&relayed).is_some() {
            self.rest(relayed, None, now);
        }
    }

    fn rest(&self, relayed: RelayedTransportAddress, client: Option<IpAddr>, now: Ticks) {
        self.addresses.with(relayed.ip(), |entry| entry.ports().rest(relayed.port(), client, now));
    }

    /// Takes a held socket out, for the worker that asked for it.
    pub(super) fn take_held(&mut self, relayed: RelayedTransportAddress) -> Option<Watched<UdpSocket>> {
        self.held.remove(&relayed)
    }

    /// Takes a held socket in that another worker handed over.
    pub(super) fn put_held(&mut self, relayed: RelayedTransportAddress, socket: Watched<UdpSocket>) {
        self.held.insert(relayed, socket);
    }

    /// Where the kernel finds a relayed address of ours.
    #[inline]
    pub(super) fn to_local(&self, peer: PeerAddress) -> SocketAddr {
        self.addresses.to_local(peer).unwrap_or(peer).into()
    }

    /// Under which address a peer is judged and reported: a local relayed address under its advertised form.
    #[inline]
    pub(super) fn to_advertised(&self, from: SocketAddr) -> PeerAddress {
        let from = PeerAddress::from(from);
        self.addresses.to_advertised(from).unwrap_or(from)
    }
}

/// What a fresh relayed port must be like.
#[derive(Clone, Copy)]
pub(super) struct WantedPort {
    pub(super) parity: Parity,
    /// The tenant's, if it has one of its own.
    pub(super) part: Option<PortPart>,
    pub(super) client: IpAddr,
}

/// A port, the socket that is bound to it, and the one of the next port, if that is held.
pub(super) type Bound<S> = (u16, S, Option<S>);

/// Binds at one of the serving addresses of a family, each in turn; gives its advertised form too.
pub(super) fn bind_somewhere<S>(
    addresses: &RelayAddresses,
    turn: &mut usize,
    family: Family,
    bind: impl Fn(&RelayAddressEntry) -> Result<Bound<S>, RelayRefused>,
) -> Result<(IpAddr, Bound<S>), RelayRefused> {
    let all = addresses.all();
    let of_family: Vec<_> =
        all.iter().filter(|of| of.is_serving && Family::of(of.address.advertised) == family).collect();
    *turn = turn.wrapping_add(1);
    let mut refused = RelayRefused::NoAddress;
    for offset in 0..of_family.len() {
        let entry = of_family[(*turn + offset) % of_family.len()];
        match bind(entry) {
            Ok(bound) => return Ok((entry.address.advertised, bound)),
            // Another address may do; if none does, full ones are the reason that an operator can mend.
            Err(RelayRefused::NoAddress) => {}
            Err(RelayRefused::NoPort) => refused = RelayRefused::NoPort,
            Err(other) => return Err(other),
        }
    }
    Err(refused)
}

/// Takes free ports until one can be bound; those that another process holds rest like used ones.
pub(super) fn bind_free<S: AsFd>(
    entry: &RelayAddressEntry,
    wanted: WantedPort,
    now: Ticks,
    bind: impl Fn(IpAddr, u16) -> io::Result<S>,
) -> Result<Bound<S>, RelayRefused> {
    let WantedPort { parity, part, client } = wanted;
    for _ in 0..BIND_TRIES {
        let local = entry.address.local;
        let port = entry.ports().take(part, parity, client, now).ok_or(RelayRefused::NoPort)?;
        let pair = parity == Parity::EvenAndHoldNext;
        let bound =
            bind(local, port).and_then(|socket| Ok((socket, if pair { Some(bind(local, port + 1)?) } else { None })));
        let bound = bound.and_then(|(socket, held)| {
            let takes_reserve = files::is_reserved(&socket) || held.as_ref().is_some_and(files::is_reserved);
            if takes_reserve { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok((socket, held)) }
        });
        let error = match bound {
            Ok((socket, held)) => return Ok((port, socket, held)),
            Err(error) => error,
        };
        let mut ports = entry.ports();
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        for port in [Some(port), pair.then(|| port + 1)].into_iter().flatten() {
            if taken {
                ports.rest(port, None, now);
            } else {
                ports.give_back(port);
            }
        }
        match error.raw_os_error() {
            _ if taken => {}
            Some(libc::EMFILE | libc::ENFILE) => return Err(RelayRefused::NoFiles),
            // The address went this very moment, or the notice of it is under way.
            Some(libc::EADDRNOTAVAIL) => return Err(RelayRefused::NoAddress),
            _ => return Err(RelayRefused::System),
        }
    }
    Err(RelayRefused::NoPort)
}

// [8656-13-2, 8656-13.2-1, 8656-14-2, -5, 8656-15-2]
fn bind(ip: IpAddr, port: u16) -> io::Result<UdpSocket> {
    // Non-blocking and closed on exec from its first moment: one call.
    let domain = Domain::for_address(SocketAddr::new(ip, port));
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    sys::set_large_datagrams(socket.as_fd(), ip.is_ipv6(), LargeDatagrams::InFragmentsOfLink)?;
    sys::tell_class(socket.as_fd(), true)?;
    sys::tell_icmp_errors(socket.as_fd(), ip.is_ipv6())?;
    // A burst of video must wait somewhere while the worker has its turn elsewhere. It is a limit, not memory.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&SocketAddr::new(ip, port).into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::relay_addresses::RelayAddress;

    fn id(index: u32) -> AllocationId {
        AllocationId { index, generation: 0 }
    }

    /// Workers with one relay address, and a relayed address of it.
    fn workers() -> (Arc<RelayAddresses>, [Relays; 2], RelayedTransportAddress) {
        let addresses = Arc::new(RelayAddresses::new(&(1024..=65_535), [1; 32]));
        let ip: IpAddr = [127, 0, 0, 9].into();
        addresses.serve(&[RelayAddress { local: ip, advertised: ip }]);
        let relays = [0, 1].map(|worker| Relays::new(WorkerId(worker), Arc::clone(&addresses), Arc::default()));
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        (addresses, relays, RelayedTransportAddress::new(ip, socket.local_addr().unwrap().port()))
    }

    fn socket(relayed: RelayedTransportAddress) -> Watched<UdpSocket> {
        let socket = UdpSocket::bind((relayed.ip(), relayed.port())).unwrap();
        Arc::<Overflow>::default().watch(SocketKind::Relayed, socket)
    }

    // An allocation that moves with its client brings a socket whose datagrams may come glued together.
    #[test]
    fn a_socket_that_another_worker_read_is_read_as_it_was_left() {
        let (_, [_, mut relays], relayed) = workers();
        let socket = socket(relayed);
        sys::coalesce(socket.as_fd()).unwrap();
        relays.put_held(relayed, socket);
        let request = RelayRequest::Reserved { relayed, client: [9, 9, 9, 9].into() };
        relays.open(id(3), request, Ticks(0)).unwrap();
        assert!(relays.get(id(3)).unwrap().read_budget.coalesces());
    }

    // In a process that takes over: the allocation moved between the old workers, and both told of it.
    #[test]
    fn what_two_workers_were_told_of_is_the_ones_that_keeps_it() {
        for is_last in [false, true] {
            let (addresses, [mut left, mut now], relayed) = workers();
            let original = socket(relayed);
            let copy = || original.as_fd().try_clone_to_owned().unwrap();
            if is_last {
                now.adopt(id(3), relayed, copy(), Ticks(0)).unwrap();
            }
            left.adopt(id(5), relayed, copy(), Ticks(0)).unwrap();
            if !is_last {
                now.adopt(id(3), relayed, copy(), Ticks(0)).unwrap();
            }
            left.close_ended(id(5), Ticks(0));
            now.claim();
            let owner = RelayOwner { worker: WorkerId(1), index: 3 };
            assert_eq!(now.owner(PeerAddress(relayed.0)), Some(owner));
            assert!(addresses.resting().iter().all(|(_, ports)| ports.is_empty()), "its port is in use");
            now.close(id(3), relayed, None, Ticks(0));
            assert_eq!(now.owner(PeerAddress(relayed.0)), None);
        }
    }
}
