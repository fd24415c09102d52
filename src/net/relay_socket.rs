//! Opens and closes relayed addresses: family, port range, parity, held ports, 1:1 NAT.
//!
//! One worker owns its relayed sockets; the ports are shared by all. The core knows an address in its
//! advertised form only, the local form exists here.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use socket2::{Domain, Protocol, Socket, Type};

use super::overflow::{Overflow, SocketKind, Watched};
use super::ports::{Census, Ports};
use super::shared::{Process, RelayAddress, RelayOwner};
use super::sys::{self, Segmentation};
use super::udp::Place;
use super::worker::{Appetite, Roominess};
use crate::protocol::address::{Family, PeerAddress, RelayedTransportAddress};
use crate::protocol::border::{AllocationId, OpenedRelay, Parity, RelayRefused, RelayRequest, WorkerId};
use crate::protocol::random::Random;
use crate::protocol::time::Ticks;

/// How many ports that some other process holds are stepped over for one request.
const BIND_TRIES: usize = 64;

/// What a relayed socket asks the kernel to buffer, in bytes; the default overflowed under bursts of 1,200 bytes.
pub(super) const RECEIVE_BUFFER: usize = 1 << 20;

/// The free ports of every relay address, and what was dropped at relayed sockets; shared by all workers.
pub(super) struct Pools {
    pools: Vec<(RelayAddress, Mutex<Ports>)>,
    overflow: Arc<Overflow>,
}

impl Pools {
    pub(super) fn new(
        addresses: &[RelayAddress],
        range: &RangeInclusive<u16>,
        random: &mut Random,
        overflow: Arc<Overflow>,
    ) -> Self {
        let mut ports = || {
            let mut seed = [0; 32];
            random.fill(&mut seed);
            Mutex::new(Ports::new(range, Random::new(seed)))
        };
        Self { pools: addresses.iter().map(|address| (*address, ports())).collect(), overflow }
    }

    /// The range of every address from now on.
    pub(super) fn set_range(&self, range: &RangeInclusive<u16>) {
        for (_, ports) in &self.pools {
            lock(ports).set_range(range);
        }
    }

    fn by_advertised(&self, ip: IpAddr) -> Option<(&RelayAddress, MutexGuard<'_, Ports>)> {
        let (address, ports) = self.pools.iter().find(|(address, _)| address.advertised == ip)?;
        Some((address, lock(ports)))
    }

    /// What the ports of each relay address do.
    pub(super) fn census(&self, now: Ticks) -> impl Iterator<Item = (RelayAddress, Census)> {
        self.pools.iter().map(move |(address, ports)| (*address, lock(ports).census(now)))
    }
}

fn lock(ports: &Mutex<Ports>) -> MutexGuard<'_, Ports> {
    // A list of ports is whole between calls whatever became of the caller.
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A relayed transport address and its socket.
pub(super) struct RelaySocket {
    pub(super) id: AllocationId,
    pub(super) socket: Watched<UdpSocket>,
    relayed: RelayedTransportAddress,
    client: IpAddr,
    pub(super) appetite: Appetite,
    pub(super) roominess: Roominess,
    pub(super) segmentation: Segmentation,
    /// Where its payload stands among what waits for peers, and for its client.
    pub(super) to_peer: Place,
    pub(super) to_client: Place,
}

/// The relayed sockets of one worker.
pub(super) struct Relays {
    worker: WorkerId,
    process: Arc<Process>,
    pools: Arc<Pools>,
    sockets: Vec<Option<RelaySocket>>,
    held: HashMap<RelayedTransportAddress, Watched<UdpSocket>>,
    turn: usize,
    translates: bool,
}

impl Relays {
    pub(super) fn new(worker: WorkerId, process: Arc<Process>, pools: Arc<Pools>) -> Self {
        let translates = process.addresses().any(|address| address.local != address.advertised);
        Self { worker, process, pools, sockets: Vec::new(), held: HashMap::new(), turn: 0, translates }
    }

    #[inline]
    pub(super) fn get(&self, id: AllocationId) -> Option<&RelaySocket> {
        self.sockets.get(id.index as usize)?.as_ref().filter(|socket| socket.id == id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut RelaySocket> {
        self.sockets.get_mut(id.index as usize)?.as_mut().filter(|socket| socket.id == id)
    }

    /// Who has a relayed address of this server now, whichever worker.
    #[inline]
    pub(super) fn owner(&self, address: PeerAddress) -> Option<RelayOwner> {
        self.process.relay_owner(address)
    }

    /// The allocation in a slot of this worker, if that address is still its own.
    #[inline]
    pub(super) fn id_at(&self, index: u32, address: PeerAddress) -> Option<AllocationId> {
        let socket = self.sockets.get(index as usize)?.as_ref()?;
        let is_it = socket.relayed.port() == address.port() && self.is_ours(socket.relayed, address.ip());
        is_it.then_some(socket.id)
    }

    /// Whether a relayed address goes by this IP address too: its own, or its local one.
    fn is_ours(&self, relayed: RelayedTransportAddress, ip: IpAddr) -> bool {
        relayed.ip() == ip
            || self.process.addresses().any(|address| address.local == ip && address.advertised == relayed.ip())
    }

    /// The socket behind an epoll token.
    #[inline]
    pub(super) fn at_mut(&mut self, index: usize) -> Option<&mut RelaySocket> {
        self.sockets.get_mut(index)?.as_mut()
    }

    pub(super) fn open(
        &mut self,
        id: AllocationId,
        request: RelayRequest,
        now: Ticks,
    ) -> Result<OpenedRelay, RelayRefused> {
        match request {
            RelayRequest::Fresh { family, parity, client } => self.open_fresh(id, family, parity, client, now),
            RelayRequest::Reserved { relayed, client } => {
                let socket = self.held.remove(&relayed).ok_or(RelayRefused::NotHeld)?;
                self.keep(id, socket, relayed, client);
                Ok(OpenedRelay { relayed, held: None })
            }
        }
    }

    fn open_fresh(
        &mut self,
        id: AllocationId,
        family: Family,
        parity: Parity,
        client: IpAddr,
        now: Ticks,
    ) -> Result<OpenedRelay, RelayRefused> {
        let pools = Arc::clone(&self.pools);
        let of_family: Vec<_> =
            pools.pools.iter().filter(|(address, _)| Family::of(address.advertised) == family).collect();
        self.turn = self.turn.wrapping_add(1);
        for offset in 0..of_family.len() {
            let (address, ports) = of_family[(self.turn + offset) % of_family.len()];
            match bind_free(*address, ports, parity, client, now) {
                Ok((port, socket, held)) => {
                    let relayed = RelayedTransportAddress::new(address.advertised, port);
                    let socket = pools.overflow.watch(SocketKind::Relayed, socket);
                    let held = held.map(|socket| {
                        let socket = pools.overflow.watch(SocketKind::Relayed, socket);
                        let next = RelayedTransportAddress::new(address.advertised, port + 1);
                        self.held.insert(next, socket);
                        next
                    });
                    self.keep(id, socket, relayed, client);
                    return Ok(OpenedRelay { relayed, held });
                }
                Err(RelayRefused::NoPort) => {}
                Err(other) => return Err(other),
            }
        }
        Err(RelayRefused::NoPort)
    }

    fn keep(&mut self, id: AllocationId, socket: Watched<UdpSocket>, relayed: RelayedTransportAddress, client: IpAddr) {
        let index = id.index as usize;
        if self.sockets.len() <= index {
            self.sockets.resize_with(index + 1, || None);
        }
        self.process.set_relayed(relayed, Some(RelayOwner { worker: self.worker, index: id.index }));
        self.sockets[index] = Some(RelaySocket {
            id,
            socket,
            relayed,
            client,
            appetite: Appetite::default(),
            roominess: Roominess::default(),
            segmentation: Segmentation::ON,
            to_peer: Place::default(),
            to_client: Place::default(),
        });
    }

    /// Closes an allocation's socket; its port rests.
    pub(super) fn close(&mut self, id: AllocationId, now: Ticks) {
        let Some(place) = self.sockets.get_mut(id.index as usize).filter(|s| s.as_ref().is_some_and(|s| s.id == id))
        else {
            return;
        };
        if let Some(socket) = place.take() {
            self.process.set_relayed(socket.relayed, None);
            self.rest(socket.relayed, Some(socket.client), now);
        }
    }

    /// Closes a held socket that nobody came for.
    pub(super) fn close_held(&mut self, relayed: RelayedTransportAddress, now: Ticks) {
        if self.held.remove(&relayed).is_some() {
            self.rest(relayed, None, now);
        }
    }

    fn rest(&self, relayed: RelayedTransportAddress, client: Option<IpAddr>, now: Ticks) {
        if let Some((_, mut ports)) = self.pools.by_advertised(relayed.ip()) {
            ports.rest(relayed.port(), client, now);
        }
    }

    /// Takes a held socket out, for the worker that asked for it.
    pub(super) fn take_held(&mut self, relayed: RelayedTransportAddress) -> Option<Watched<UdpSocket>> {
        self.held.remove(&relayed)
    }

    /// Takes a held socket in that another worker handed over.
    pub(super) fn put_held(&mut self, relayed: RelayedTransportAddress, socket: Watched<UdpSocket>) {
        self.held.insert(relayed, socket);
    }

    /// Where to send what goes to a peer: an advertised address of ours is reached under its local form,
    /// because clouds rarely hairpin.
    #[inline]
    pub(super) fn to_local(&self, peer: PeerAddress) -> SocketAddr {
        if self.translates
            && let Some(address) = self.process.addresses().find(|address| address.advertised == peer.ip())
        {
            return SocketAddr::new(address.local, peer.port());
        }
        peer.into()
    }

    /// Under which address a peer is judged and reported: a local relayed address under its advertised form.
    #[inline]
    pub(super) fn to_advertised(&self, from: SocketAddr) -> PeerAddress {
        if self.translates
            && let Some(address) = self.process.addresses().find(|address| address.local == from.ip())
        {
            return PeerAddress::new(address.advertised, from.port());
        }
        from.into()
    }
}

type Bound = (u16, UdpSocket, Option<UdpSocket>);

/// Takes free ports until one can be bound; those that another process holds rest like used ones.
fn bind_free(
    address: RelayAddress,
    ports: &Mutex<Ports>,
    parity: Parity,
    client: IpAddr,
    now: Ticks,
) -> Result<Bound, RelayRefused> {
    for _ in 0..BIND_TRIES {
        let port = lock(ports).take(parity, client, now).ok_or(RelayRefused::NoPort)?;
        let pair = parity == Parity::EvenAndHoldNext;
        let bound = bind(address.local, port)
            .and_then(|socket| Ok((socket, if pair { Some(bind(address.local, port + 1)?) } else { None })));
        let error = match bound {
            Ok((socket, held)) => return Ok((port, socket, held)),
            Err(error) => error,
        };
        let mut ports = lock(ports);
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
            _ => return Err(RelayRefused::System),
        }
    }
    Err(RelayRefused::NoPort)
}

fn bind(ip: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(ip, port)), Type::DGRAM, Some(Protocol::UDP))?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    sys::set_dont_fragment(socket.as_fd(), ip.is_ipv6(), false)?;
    // A burst of video must wait somewhere while the worker has its turn elsewhere. It is a limit, not memory.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&SocketAddr::new(ip, port).into())?;
    Ok(socket.into())
}
