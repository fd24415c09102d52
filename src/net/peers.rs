//! Relayed addresses of TCP and the connections to their peers, in one worker (RFC 6062).
//!
//! The worker of an allocation has all of its connections, and the clients' streams that they are bound to (decision 0209).
//! Here is what it holds; what it does with it stands in `net::worker::connections`. A connection holds at most one read of
//! bytes each way: what can't go on is not read.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

use super::files;
use super::relay_addresses::RelayAddresses;
use super::relay_socket::{WantedPort, bind_free, bind_somewhere};
use super::stream_state::{HELD_BYTES_MAX, PeerState};
use crate::address::{Family, PeerAddress, RelayedTransportAddress, StreamId};
use crate::protocol::border::{OpenedRelay, RelayRefused};
use crate::protocol::ids::AllocationId;
use crate::time::Ticks;
use crate::wire::attribute::ConnectionId;

/// Connections that the kernel keeps until they are accepted, for each relayed address.
const BACKLOG: i32 = 16;

/// A relayed address of TCP.
pub(super) struct TcpRelay {
    pub(super) id: AllocationId,
    pub(super) listener: TcpListener,
    relayed: RelayedTransportAddress,
}

/// How far a connection has come, as its socket sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PeerStage {
    /// The kernel is connecting it.
    Connecting,
    /// It is not read; what comes waits in the kernel.
    Waiting,
    /// It is carried to and from this stream.
    Bound(StreamId),
}

/// What epoll is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Interest {
    pub(super) bytes: bool,
    pub(super) room: bool,
}

impl Interest {
    /// Whether it is watched at all: where nothing is wanted, the kernel would still tell of an end, again and again.
    pub(super) const fn is_any(self) -> bool {
        self.bytes || self.room
    }
}

/// Bytes on their way, one way.
#[derive(Debug, Default)]
pub(super) struct HeldBytes {
    bytes: Vec<u8>,
    start: usize,
    /// How many of them were let pass already.
    pub(super) passed: usize,
    /// None of those has left yet.
    pub(super) is_whole: bool,
}

impl HeldBytes {
    pub(super) fn put(&mut self, bytes: &[u8]) {
        debug_assert!(self.is_empty(), "nothing is read while something waits");
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// All that waits.
    pub(super) fn get(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// What was let pass.
    pub(super) fn passed(&self) -> &[u8] {
        let waiting = self.get();
        waiting.get(..self.passed).unwrap_or(waiting)
    }

    /// So many of them may go.
    pub(super) const fn let_pass(&mut self, count: usize) {
        (self.passed, self.is_whole) = (count, true);
    }

    /// So many of those that may go are gone.
    pub(super) fn gone(&mut self, count: usize) {
        self.start += count;
        self.passed -= count.min(self.passed);
        self.is_whole = false;
        if self.is_empty() {
            // One that has been long gives its memory back.
            self.bytes = Vec::new();
            self.start = 0;
        }
    }
}

/// The socket of a connection to a peer.
pub(super) struct Peer {
    pub(super) id: ConnectionId,
    pub(super) allocation: AllocationId,
    pub(super) socket: TcpStream,
    pub(super) stage: PeerStage,
    pub(super) interest: Interest,
    /// From the client.
    pub(super) to_peer: HeldBytes,
    /// From the peer; what was let pass is in the queue of the stream.
    pub(super) to_client: HeldBytes,
    /// The client sends no more.
    pub(super) client_ended: bool,
    /// The peer was told so.
    pub(super) peer_told: bool,
    /// The peer sends no more.
    pub(super) peer_ended: bool,
    /// The client was told so.
    pub(super) client_told: bool,
    /// When it is tried again what a limit did not let pass.
    pub(super) retry_at: Option<Ticks>,
    /// How long it waits then, in milliseconds.
    hold_back: u16,
}

/// How long something waits that a limit does not let pass, at first and at the most, in milliseconds.
const HOLD_BACK: u16 = 10;
const HOLD_BACK_MAX: u16 = 160;

impl Peer {
    pub(super) fn new(id: ConnectionId, allocation: AllocationId, socket: TcpStream, stage: PeerStage) -> Self {
        Self {
            id,
            allocation,
            socket,
            stage,
            interest: Interest::default(),
            to_peer: HeldBytes::default(),
            to_client: HeldBytes::default(),
            client_ended: false,
            peer_told: false,
            peer_ended: false,
            client_told: false,
            retry_at: None,
            hold_back: HOLD_BACK,
        }
    }

    /// The stream that it is bound to.
    pub(super) const fn stream(&self) -> Option<StreamId> {
        match self.stage {
            PeerStage::Bound(stream) => Some(stream),
            PeerStage::Connecting | PeerStage::Waiting => None,
        }
    }

    /// Whether the client is to be read.
    pub(super) fn reads_client(&self) -> bool {
        self.to_peer.is_empty() && !self.client_ended
    }

    /// Whether both sides have said all, and heard so.
    pub(super) const fn is_done(&self) -> bool {
        self.peer_told && self.client_told
    }

    fn to_state(&self) -> PeerState {
        PeerState {
            id: self.id,
            stream: self.stream(),
            to_peer: self.to_peer.get().to_vec(),
            to_peer_passed: self.to_peer.passed,
            to_client: self.to_client.get().to_vec(),
            client_ended: [self.client_ended, self.peer_told],
            peer_ended: [self.peer_ended, self.client_told],
            is_connecting: self.stage == PeerStage::Connecting,
        }
    }

    fn from_state(state: &PeerState, allocation: AllocationId, socket: TcpStream) -> Result<Self, String> {
        if state.to_peer.len().max(state.to_client.len()) > HELD_BYTES_MAX || state.to_peer_passed > state.to_peer.len()
        {
            return Err("a connection to a peer holds more than one may".to_owned());
        }
        let stage = match state.stream {
            Some(stream) => PeerStage::Bound(stream),
            None if state.is_connecting => PeerStage::Connecting,
            None => PeerStage::Waiting,
        };
        let mut peer = Self::new(state.id, allocation, socket, stage);
        peer.to_peer.put(&state.to_peer);
        peer.to_peer.passed = state.to_peer_passed;
        peer.to_client.put(&state.to_client);
        [peer.client_ended, peer.peer_told] = state.client_ended;
        [peer.peer_ended, peer.client_told] = state.peer_ended;
        Ok(peer)
    }
}

/// One worker's.
pub(super) struct Peers {
    addresses: Arc<RelayAddresses>,
    turn: usize,
    relays: HashMap<u32, TcpRelay>,
    sockets: Slab<Peer>,
    by_id: HashMap<ConnectionId, usize>,
    /// Those that a limit holds back.
    held_back: BTreeSet<(Ticks, ConnectionId)>,
}

impl Peers {
    pub(super) fn new(addresses: Arc<RelayAddresses>) -> Self {
        Self {
            addresses,
            turn: 0,
            relays: HashMap::new(),
            sockets: Slab::new(),
            by_id: HashMap::new(),
            held_back: BTreeSet::new(),
        }
    }

    // ---- relayed addresses

    /// Opens a relayed address at which connections are accepted. [6062-5.1-6, -8]
    pub(super) fn open(
        &mut self,
        id: AllocationId,
        family: Family,
        wanted: WantedPort,
        now: Ticks,
    ) -> Result<OpenedRelay, RelayRefused> {
        let (advertised, (port, listener, _)) =
            bind_somewhere(&self.addresses, &mut self.turn, family, |entry| bind_free(entry, wanted, now, listen))?;
        let relayed = RelayedTransportAddress::new(advertised, port);
        self.keep(id, relayed, listener);
        Ok(OpenedRelay { relayed, held: None })
    }

    fn keep(&mut self, id: AllocationId, relayed: RelayedTransportAddress, listener: TcpListener) {
        self.addresses.set_relayed_tcp(relayed, true);
        self.relays.insert(id.index, TcpRelay { id, listener, relayed });
    }

    /// Keeps the relayed address of an allocation of another process, in place of what it had there.
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
        let listener = TcpListener::from(socket);
        self.addresses.check_bound(relayed, listener.local_addr())?;
        if let Some(old) = self.relays.get(&id.index).map(|old| old.id) {
            self.close(old, None, now);
        }
        self.addresses.take_exactly(relayed);
        self.keep(id, relayed, listener);
        Ok(())
    }

    pub(super) fn relay(&self, id: AllocationId) -> Option<&TcpRelay> {
        self.relays.get(&id.index).filter(|relay| relay.id == id)
    }

    pub(super) fn relay_at(&self, slot: u32) -> Option<&TcpRelay> {
        self.relays.get(&slot)
    }

    /// Whether a socket is that of this relayed address.
    pub(super) fn is_at(&self, id: AllocationId, relayed: RelayedTransportAddress) -> bool {
        self.relay(id).is_some_and(|relay| relay.relayed == relayed)
    }

    /// How many relayed addresses there are.
    pub(super) fn relays(&self) -> usize {
        self.relays.len()
    }

    /// Closes an allocation's relayed address; its port rests.
    pub(super) fn close(&mut self, id: AllocationId, client: Option<IpAddr>, now: Ticks) {
        if self.relay(id).is_none() {
            return;
        }
        let Some(TcpRelay { relayed, listener, .. }) = self.relays.remove(&id.index) else { return };
        self.addresses.set_relayed_tcp(relayed, false);
        drop(listener);
        self.addresses.with(relayed.ip(), |entry| entry.ports().rest(relayed.port(), client, now));
    }

    /// Closes the relayed addresses of all allocations but these.
    #[allow(clippy::disallowed_methods, reason = "each is closed for itself, in any order")]
    pub(super) fn close_others(&mut self, owned: &HashSet<AllocationId>, now: Ticks) {
        let others = self.relays.values().map(|relay| relay.id).filter(|id| !owned.contains(id));
        let others: Vec<AllocationId> = others.collect();
        others.into_iter().for_each(|id| self.close(id, None, now));
    }

    // ---- connections

    /// Begins to connect to a peer from a relayed address.
    ///
    /// # Errors
    /// Of the system; what takes time is told by epoll.
    // [6062-5.2-6]
    pub(super) fn connect(&self, relayed: RelayedTransportAddress, peer: PeerAddress) -> io::Result<TcpStream> {
        let local = self.addresses.with(relayed.ip(), |entry| SocketAddr::new(entry.address.local, relayed.port()));
        let local = local.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = shared_port(local)?;
        if files::is_reserved(&socket) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let to = SocketAddr::from(self.addresses.tcp_to_local(peer));
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        Ok(socket.into())
    }

    /// The next connection that a peer made to a relayed address, and who that is; `None` if there is none.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn accept(&self, slot: u32) -> io::Result<Option<(AllocationId, TcpStream, PeerAddress)>> {
        let Some(relay) = self.relays.get(&slot) else { return Ok(None) };
        match relay.listener.accept() {
            Ok((socket, from)) => {
                if files::is_reserved(&socket) {
                    return Err(io::Error::from_raw_os_error(libc::EMFILE));
                }
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                Ok(Some((relay.id, socket, self.addresses.tcp_to_advertised(PeerAddress::from(from)))))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes a connection in; gives its place.
    pub(super) fn insert(&mut self, peer: Peer) -> usize {
        let id = peer.id;
        let at = self.sockets.insert(peer);
        self.by_id.insert(id, at);
        at
    }

    pub(super) fn find(&self, id: ConnectionId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn get(&self, at: usize) -> Option<&Peer> {
        self.sockets.get(at)
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Peer> {
        self.sockets.get_mut(at)
    }

    /// Takes a connection out: its socket closes with it.
    pub(super) fn remove(&mut self, at: usize) -> Option<Peer> {
        let peer = self.sockets.try_remove(at)?;
        self.by_id.remove(&peer.id);
        if let Some(retry_at) = peer.retry_at {
            self.held_back.remove(&(retry_at, peer.id));
        }
        Some(peer)
    }

    /// Tries again in a while what a limit holds back: later each time, up to [`HOLD_BACK_MAX`].
    pub(super) fn hold_back(&mut self, at: usize, now: Ticks) {
        if let Some(peer) = self.sockets.get_mut(at)
            && peer.retry_at.is_none()
        {
            let until = Ticks(now.0 + u64::from(peer.hold_back));
            peer.hold_back = (peer.hold_back * 2).min(HOLD_BACK_MAX);
            peer.retry_at = Some(until);
            self.held_back.insert((until, peer.id));
        }
    }

    /// A limit let something pass.
    pub(super) fn passes(&mut self, at: usize) {
        if let Some(peer) = self.sockets.get_mut(at) {
            peer.hold_back = HOLD_BACK;
        }
    }

    /// When something is to be tried again.
    pub(super) fn next_deadline(&self) -> Option<Ticks> {
        self.held_back.first().map(|(at, _)| *at)
    }

    /// One whose time to be tried again has come.
    pub(super) fn pop_held_back(&mut self, now: Ticks) -> Option<usize> {
        let first = *self.held_back.first().filter(|(at, _)| *at <= now)?;
        self.held_back.remove(&first);
        let at = self.find(first.1)?;
        self.sockets.get_mut(at)?.retry_at = None;
        Some(at)
    }

    /// Every connection's place.
    pub(super) fn all(&self) -> Vec<usize> {
        self.sockets.iter().map(|(at, _)| at).collect()
    }

    // ---- to another process

    /// Every connection as plain values, and the sockets in the same order.
    pub(super) fn export(&self) -> (Vec<PeerState>, Vec<BorrowedFd<'_>>) {
        self.sockets.iter().map(|(_, peer)| (peer.to_state(), peer.socket.as_fd())).unzip()
    }

    /// Takes over a connection that [`Peers::export`] described, with its socket; gives its place.
    ///
    /// # Errors
    /// When the state contradicts itself.
    pub(super) fn import(
        &mut self,
        state: &PeerState,
        allocation: AllocationId,
        socket: OwnedFd,
    ) -> Result<usize, String> {
        if self.by_id.contains_key(&state.id) {
            return Err("a connection to a peer came twice".to_owned());
        }
        Ok(self.insert(Peer::from_state(state, allocation, TcpStream::from(socket))?))
    }

    /// The number of an allocation's socket.
    pub(super) fn number(&self, id: AllocationId) -> Option<RawFd> {
        self.relay(id).map(|relay| relay.listener.as_raw_fd())
    }
}

/// A socket that can be bound beside the one that listens at the same address; each of these has its peer.
fn shared_port(local: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(local)?;
    socket.set_reuse_port(true)?;
    socket.bind(&local.into())?;
    Ok(socket)
}

fn new_socket(local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Bound alone, so that no other process of this user can have the port; only then others of ours may be bound beside it.
fn listen(ip: IpAddr, port: u16) -> io::Result<TcpListener> {
    let local = SocketAddr::new(ip, port);
    let socket = new_socket(local)?;
    socket.bind(&local.into())?;
    socket.listen(BACKLOG)?;
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relayed_port_is_of_one_server_and_connections_leave_from_it() {
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let ours = listen(ip, 0).unwrap();
        let local = ours.local_addr().unwrap();
        assert_eq!(listen(ip, local.port()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let peers = [TcpListener::bind((ip, 0)).unwrap(), TcpListener::bind((ip, 0)).unwrap()];
        let connections = peers.each_ref().map(|peer| {
            let socket = shared_port(local).unwrap();
            socket.set_nonblocking(false).unwrap();
            socket.connect(&peer.local_addr().unwrap().into()).unwrap();
            assert_eq!(peer.accept().unwrap().1, local);
            socket
        });
        let _coming = TcpStream::connect(local).unwrap();
        ours.set_nonblocking(false).unwrap();
        ours.accept().unwrap();
        drop(ours);
        drop(connections);
    }

    #[test]
    fn what_a_limit_holds_back_is_tried_less_and_less_often() {
        let mut peers = Peers::new(Arc::new(RelayAddresses::new(&(50_000..=50_009), [1; 32])));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let of = AllocationId { index: 0, generation: 0 };
        let at = peers.insert(Peer::new(ConnectionId(1), of, socket, PeerStage::Waiting));
        let mut wait = |passes: bool| {
            if passes {
                peers.passes(at);
            }
            peers.hold_back(at, Ticks(1_000));
            let until = peers.next_deadline().unwrap();
            assert_eq!(peers.pop_held_back(until), Some(at));
            until.since(Ticks(1_000))
        };
        let waits: Vec<u64> = (0..6).map(|_| wait(false)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 160]);
        assert_eq!(wait(true), 10);
    }

    #[test]
    fn what_waits_leaves_in_order_and_gives_its_memory_back() {
        let mut held = HeldBytes::default();
        held.put(b"0123456789");
        assert_eq!((held.get(), held.passed()), (&b"0123456789"[..], &b""[..]));
        held.let_pass(4);
        assert!(held.is_whole && held.passed() == b"0123");
        held.gone(3);
        assert!(!held.is_whole && held.passed() == b"3" && held.get() == b"3456789");
        held.gone(1);
        held.let_pass(6);
        held.gone(6);
        assert!(held.is_empty() && held.bytes.capacity() == 0 && held.passed == 0);
    }

    #[test]
    fn a_port_that_listens_can_be_connected_from_and_to() {
        let listener = listen([127, 0, 0, 1].into(), 0).unwrap();
        let at = listener.local_addr().unwrap();
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let out = shared_port(at).unwrap();
        let _ = out.connect(&far.local_addr().unwrap().into());
        let (_, from) = far.accept().unwrap();
        assert_eq!(from, at, "it leaves from the port that listens");
        let into = TcpStream::connect(at).unwrap();
        while listener.accept().is_err() {
            std::thread::yield_now();
        }
        drop(into);
    }
}
