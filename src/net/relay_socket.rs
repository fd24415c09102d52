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
use crate::protocol::slots::Slots;
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

/// The socket of a relayed transport address. There is one per allocation, so it is kept small: the core knows the rest.
pub(super) struct RelaySocket {
    pub(super) id: AllocationId,
    pub(super) socket: Watched<UdpSocket>,
    /// The relayed port, at the address with this number.
    port: u16,
    address: u16,
    pub(super) appetite: Appetite,
    pub(super) roominess: Roominess,
    pub(super) segmentation: Segmentation,
    /// Where its payload stands among what waits for peers, and for its client.
    pub(super) to_peer: Place,
    pub(super) to_client: Place,
}

const _: () = assert!(size_of::<Option<RelaySocket>>() == 48);

/// The relayed sockets of one worker.
pub(super) struct Relays {
    worker: WorkerId,
    process: Arc<Process>,
    pools: Arc<Pools>,
    sockets: Slots<RelaySocket>,
    held: HashMap<RelayedTransportAddress, Watched<UdpSocket>>,
    turn: usize,
    translates: bool,
}

impl Relays {
    pub(super) fn new(worker: WorkerId, process: Arc<Process>, pools: Arc<Pools>) -> Self {
        let translates = process.addresses().any(|address| address.local != address.advertised);
        Self { worker, process, pools, sockets: Slots::default(), held: HashMap::new(), turn: 0, translates }
    }

    #[inline]
    pub(super) fn get(&self, id: AllocationId) -> Option<&RelaySocket> {
        self.sockets.get(id.index).filter(|socket| socket.id == id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut RelaySocket> {
        self.sockets.get_mut(id.index).filter(|socket| socket.id == id)
    }

    /// Who has a relayed address of this server now, whichever worker.
    #[inline]
    pub(super) fn owner(&self, address: PeerAddress) -> Option<RelayOwner> {
        self.process.relay_owner(address)
    }

    /// The allocation in a slot of this worker, if that address is still its own.
    #[inline]
    pub(super) fn id_at(&self, index: u32, address: PeerAddress) -> Option<AllocationId> {
        let socket = self.sockets.get(index)?;
        let is_it = socket.port == address.port() && self.is_ours(socket.address, address.ip());
        is_it.then_some(socket.id)
    }

    /// Whether a relay address goes by this IP address too: its own, or its local one.
    fn is_ours(&self, address: u16, ip: IpAddr) -> bool {
        let address = self.process.addresses().nth(usize::from(address));
        address.is_some_and(|address| address.local == ip || address.advertised == ip)
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
            RelayRequest::Fresh { family, parity, client } => self.open_fresh(id, family, parity, client, now),
            RelayRequest::Reserved { relayed, .. } => {
                let socket = self.held.remove(&relayed).ok_or(RelayRefused::NotHeld)?;
                self.keep(id, socket, relayed);
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
                    self.keep(id, socket, relayed);
                    return Ok(OpenedRelay { relayed, held });
                }
                Err(RelayRefused::NoPort) => {}
                Err(other) => return Err(other),
            }
        }
        Err(RelayRefused::NoPort)
    }

    fn keep(&mut self, id: AllocationId, socket: Watched<UdpSocket>, relayed: RelayedTransportAddress) {
        self.process.set_relayed(relayed, Some(RelayOwner { worker: self.worker, index: id.index }));
        let address = self.process.addresses().position(|address| address.advertised == relayed.ip());
        let socket = RelaySocket {
            id,
            socket,
            port: relayed.port(),
            address: address.unwrap_or_default() as u16,
            appetite: Appetite::default(),
            roominess: Roominess::default(),
            segmentation: Segmentation::ON,
            to_peer: Place::default(),
            to_client: Place::default(),
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
            self.process.set_relayed(relayed, None);
            // The socket closes here, before another can get its port.
            self.sockets.remove(id.index);
            self.rest(relayed, client, now);
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
    // Non-blocking and closed on exec from its first moment: one call.
    let domain = Domain::for_address(SocketAddr::new(ip, port));
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    sys::set_dont_fragment(socket.as_fd(), ip.is_ipv6(), false)?;
    // A burst of video must wait somewhere while the worker has its turn elsewhere. It is a limit, not memory.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&SocketAddr::new(ip, port).into())?;
    Ok(socket.into())
}
