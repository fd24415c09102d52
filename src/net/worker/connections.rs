//! Connections to peers as a worker sees them (RFC 6062): connecting, accepting, and carrying both ways.
//!
//! [`Worker`] itself stands in `net::worker`; the sockets are in [`Peers`](crate::net::peers::Peers), the clients' streams
//! where all streams are. Each way carries what was read before anything more is read, so a slow end slows the other one
//! down and nothing piles up.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;

use super::budget::Work;
use super::{PEER, STREAM, STREAM_SLOT, STREAM_SLOTS, TCP_RELAY, Worker, token};
use crate::address::{Family, PeerAddress, RelayedTransportAddress, Via};
use crate::net::files;
use crate::net::peers::{Interest, Peer, PeerStage};
use crate::net::relay_socket::WantedPort;
use crate::net::tcp::{Sent, Stopped, Stream};
use crate::protocol::accounting::{Amount, SessionRecord};
use crate::protocol::border::{Carry, ConnectRefused, Input, OpenedRelay, RelayRefused};
use crate::protocol::ids::AllocationId;
use crate::protocol::reason::{Direction, DropReason};
use crate::time::{Now, Ticks};
use crate::wire::attribute::ConnectionId;

/// Peers that are accepted at one relayed address in one turn.
const ACCEPTED_PER_TURN: usize = 16;

/// Connections that a limit held back, and that are tried again in one turn.
const TRIED_AGAIN_PER_TURN: usize = 16;

/// Bytes of a peer that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// The least that is offered to a limit which lets not all of it pass.
const PIECE_BYTES_MIN: usize = 1024;

/// How long a relayed address accepts nothing where there were no files for it, in milliseconds.
const REST: u64 = 100;

/// What the limits say of bytes that wait.
enum Passing {
    /// So many of them may pass now.
    Bytes(usize),
    /// None at this moment.
    Later,
    /// None ever: the connection or its allocation is over.
    Never,
}

/// Payload that was counted as sent and was not, of an allocation that has ended: its record is corrected.
pub(super) struct Lost {
    allocation: AllocationId,
    direction: Direction,
    packets: u32,
    bytes: u64,
}

impl Worker {
    // ---- relayed addresses

    pub(super) fn open_tcp_relay(
        &mut self,
        now: Now,
        allocation: AllocationId,
        family: Family,
        wanted: WantedPort,
    ) -> Result<OpenedRelay, RelayRefused> {
        let opened = self.peers.open(allocation, family, wanted, now.ticks)?;
        if self.watch_tcp_relay(allocation).is_err() {
            self.peers.close(allocation, None, now.ticks);
            return Err(RelayRefused::System);
        }
        Ok(opened)
    }

    pub(super) fn watch_tcp_relay(&self, allocation: AllocationId) -> io::Result<()> {
        let relay = self.peers.relay(allocation).ok_or(io::ErrorKind::NotFound)?;
        self.epoll.add(relay.listener.as_fd(), token(TCP_RELAY, allocation.index as usize))
    }

    /// Accepts peers. One that has no permission is closed at once. [6062-5.3-1, -2, -3]
    pub(super) fn on_tcp_relay(&mut self, now: Now, slot: usize) {
        for _ in 0..ACCEPTED_PER_TURN {
            if self.budget.is_spent() {
                return;
            }
            match self.peers.accept(slot as u32) {
                Ok(Some((allocation, socket, from))) => {
                    self.budget.begin_visit();
                    self.budget.take(Work::Request);
                    self.flush_payload();
                    if let Some(id) = self.server.accept_peer(now, allocation, from) {
                        self.peers.insert(Peer::new(id, allocation, socket, PeerStage::Waiting));
                    }
                    self.drain(now);
                }
                Ok(None) => return,
                Err(error) if files::is_of_one_connection(&error) => {}
                // There are no files. What waits would wake us again and again, so the listener rests; the peer's
                // connection stays in its queue meanwhile.
                Err(_) => return self.rest_tcp_relay(slot as u32),
            }
        }
    }

    fn rest_tcp_relay(&mut self, slot: u32) {
        if let Some(relay) = self.peers.relay_at(slot) {
            self.epoll.remove(relay.listener.as_fd());
            self.resting_relays.push((Ticks(self.now.0 + REST), relay.id));
        }
    }

    /// Listens again where there were no files a while ago.
    fn wake_tcp_relays(&mut self, now: Ticks) {
        let due = self.resting_relays.iter().filter(|(at, _)| *at <= now).map(|(_, id)| *id);
        for id in due.collect::<Vec<_>>() {
            // One that has ended since is not there.
            let _ = self.watch_tcp_relay(id);
        }
        self.resting_relays.retain(|(at, _)| *at > now);
    }

    // ---- connecting

    pub(super) fn connect(
        &mut self,
        connection: ConnectionId,
        allocation: AllocationId,
        relayed: RelayedTransportAddress,
        peer: PeerAddress,
    ) {
        let begun = self.peers.connect(relayed, peer).and_then(|socket| {
            let at = self.peers.insert(Peer::new(connection, allocation, socket, PeerStage::Connecting));
            self.watch_peer(at, Interest { bytes: false, room: true })
        });
        if let Err(error) = begun {
            if let Some(at) = self.peers.find(connection) {
                self.peers.remove(at);
            }
            let is_full = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
            let refused = if is_full { ConnectRefused::NoFiles } else { ConnectRefused::Failed };
            self.answers.push_back(Input::Connected { connection, result: Err(refused) });
        }
    }

    fn watch_peer(&mut self, at: usize, wanted: Interest) -> io::Result<()> {
        let Some(peer) = self.peers.get_mut(at) else { return Ok(()) };
        let before = std::mem::replace(&mut peer.interest, wanted);
        set_interest(&self.epoll, &peer.socket, token(PEER, at), before, wanted)
    }

    /// The kernel is done with connecting.
    fn on_connecting(&mut self, now: Now, at: usize) {
        let Some(peer) = self.peers.get_mut(at) else { return };
        let connection = peer.id;
        let failed = match (peer.socket.take_error(), peer.socket.peer_addr()) {
            (Ok(None), Ok(_)) => false,
            // What was told was of another socket, which had this place a moment ago.
            (Ok(None), Err(error)) if error.kind() == io::ErrorKind::NotConnected => return,
            (Ok(_) | Err(_), _) => true,
        };
        if failed {
            self.peers.remove(at);
        } else {
            peer.stage = PeerStage::Waiting;
            // What it sends waits in the kernel, and nothing of it is looked at before somebody wants it.
            let _ = self.watch_peer(at, Interest::default());
        }
        let result = if failed { Err(ConnectRefused::Failed) } else { Ok(()) };
        self.flush_payload();
        self.server.handle_input(now, Input::Connected { connection, result });
        self.drain(now);
    }

    pub(super) fn on_peer(&mut self, now: Now, at: usize, readable: bool, writable: bool) {
        match self.peers.get(at).map(|peer| peer.stage) {
            None | Some(PeerStage::Waiting) => {}
            Some(PeerStage::Connecting) => {
                if readable || writable {
                    self.on_connecting(now, at);
                }
            }
            Some(PeerStage::Bound(_)) => {
                if writable {
                    self.carry_to_peer(now, at);
                }
                if readable {
                    self.read_peer(now, at);
                }
            }
        }
    }

    // ---- binding

    /// From now on the stream carries the peer's bytes and no messages.
    pub(super) fn bind_connection(&mut self, connection: ConnectionId, via: Via) {
        let Via::Stream(stream, _) = via else { return };
        let (Some(peer), Some(at)) = (self.peers.find(connection), self.streams.find(stream)) else {
            self.answers.push_back(Input::ConnectionEnded { connection });
            return;
        };
        self.streams.keep_alive(stream);
        if let Some(stream) = self.streams.get_mut(at) {
            stream.carry(connection);
        }
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.stage = PeerStage::Bound(stream);
        }
    }

    /// The first bytes behind the request that bound the connection have been read already.
    pub(super) fn begin_to_carry(&mut self, now: Now, at: usize, len: usize, done: usize) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        stream.handled(&self.datagrams.arena.region(STREAM_SLOT, STREAM_SLOTS)[..len], done, Stopped::OutOfBudget);
        let rest = stream.take_input();
        let counted = std::mem::take(&mut stream.input_counted);
        self.net.stream_input_bytes.sub(counted as u64);
        let Some(peer) = self.bound_to(at) else { return };
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.to_peer.put(&rest);
        }
        self.carry_to_peer(now, peer);
        if self.streams.get(at).is_some_and(Stream::has_ended) {
            return self.on_client_end(now, at);
        }
        self.update_interest(now, at);
        self.update_peer_interest(now, peer);
    }

    /// The peer that a stream is bound to.
    pub(super) fn bound_to(&self, at: usize) -> Option<usize> {
        self.peers.find(self.streams.get(at)?.connection?)
    }

    /// Whether epoll shall tell of bytes of a data connection: its peer has taken what came before.
    pub(super) fn reads_for_peer(&self, at: usize) -> bool {
        self.bound_to(at).and_then(|at| self.peers.get(at)).is_some_and(Peer::reads_client)
    }

    // ---- from the client to the peer

    /// A data connection has its turn: reads once, if the peer took what came before.
    pub(super) fn visit_data_connection(&mut self, now: Now, at: usize) {
        let Some(peer) = self.bound_to(at) else { return self.close_stream(now, at) };
        if !self.peers.get(peer).is_some_and(Peer::reads_client) {
            return;
        }
        self.make_stream_room();
        let Some(stream) = self.streams.get_mut(at) else { return };
        let read = stream.read(self.datagrams.arena.region_mut(STREAM_SLOT, STREAM_SLOTS), true, now.ticks);
        self.budget.charge_records(stream.take_records());
        match read {
            Ok(Some(len)) => {
                self.budget.charge_bytes(len);
                self.on_client_bytes(now, at, len);
            }
            Ok(None) => self.on_client_end(now, at),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.close_stream(now, at),
        }
    }

    /// Takes the first `len` bytes of the streams' region, which came over a data connection.
    pub(super) fn on_client_bytes(&mut self, now: Now, at: usize, len: usize) {
        let Some(peer_at) = self.bound_to(at) else { return self.close_stream(now, at) };
        let bytes = &self.datagrams.arena.region(STREAM_SLOT, STREAM_SLOTS)[..len];
        if let Some(stream) = self.streams.get_mut(at) {
            stream.handled(bytes, len, Stopped::NeedsMore);
        }
        if let Some(peer) = self.peers.get_mut(peer_at)
            && len > 0
        {
            peer.to_peer.put(bytes);
        }
        self.carry_to_peer(now, peer_at);
        if self.streams.get(at).is_some_and(Stream::has_ended) {
            self.on_client_end(now, at);
        }
        self.update_interest(now, at);
    }

    /// The client sends no more. [6062-5.5-2]
    fn on_client_end(&mut self, now: Now, at: usize) {
        let Some(peer_at) = self.bound_to(at) else { return self.close_stream(now, at) };
        if let Some(peer) = self.peers.get_mut(peer_at) {
            peer.client_ended = true;
        }
        self.carry_to_peer(now, peer_at);
        self.update_interest(now, at);
    }

    /// Writes to the peer what the limits let pass and the kernel takes, and tells it when that was all. [6062-5.4-3]
    fn carry_to_peer(&mut self, now: Now, at: usize) {
        while let Some(peer) = self.peers.get_mut(at) {
            let Some(stream) = peer.stream() else { return };
            if peer.to_peer.is_empty() {
                if peer.client_ended && !peer.peer_told {
                    peer.peer_told = true;
                    // One that is gone is found out by reading.
                    let _ = peer.socket.shutdown(Shutdown::Write);
                }
                if peer.is_done() {
                    return self.end_connection(now, at);
                }
                break;
            }
            if peer.to_peer.passed == 0 {
                match self.ask_to_pass(now, at, Direction::ToPeer) {
                    Passing::Bytes(count) => {
                        self.peers.get_mut(at).into_iter().for_each(|peer| peer.to_peer.let_pass(count));
                    }
                    Passing::Later => break,
                    Passing::Never => return self.end_connection(now, at),
                }
                continue;
            }
            match (&peer.socket).write(peer.to_peer.passed()) {
                Ok(count) if count > 0 => peer.to_peer.gone(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => return self.end_connection(now, at),
            }
            if self.peers.get(at).is_some_and(|peer| peer.to_peer.is_empty())
                && let Some(stream) = self.streams.find(stream)
            {
                // It is read again.
                self.update_interest(now, stream);
            }
        }
        self.update_peer_interest(now, at);
    }

    /// How many of the bytes that wait may pass.
    fn ask_to_pass(&mut self, now: Now, at: usize, direction: Direction) -> Passing {
        let Some(peer) = self.peers.get(at) else { return Passing::Never };
        let (id, held) = match direction {
            Direction::ToPeer => (peer.id, &peer.to_peer),
            Direction::ToClient => (peer.id, &peer.to_client),
        };
        let mut count = held.get().len().min(READ_BYTES);
        loop {
            let Some(bytes) = held.get().get(..count) else { return Passing::Never };
            match self.server.carry(now, id, direction, bytes).0 {
                Carry::Send => {
                    self.peers.passes(at);
                    return Passing::Bytes(count);
                }
                Carry::Stop => return Passing::Never,
                Carry::Wait if count > PIECE_BYTES_MIN => count /= 2,
                Carry::Wait => {
                    self.peers.hold_back(at, now.ticks);
                    return Passing::Later;
                }
            }
        }
    }

    // ---- from the peer to the client

    fn read_peer(&mut self, now: Now, at: usize) {
        if self.budget.is_spent() {
            // It waits in the kernel for the next turn.
            return;
        }
        self.make_stream_room();
        let Some(peer) = self.peers.get_mut(at) else { return };
        let Some(stream) = peer.stream().and_then(|stream| self.streams.find(stream)) else {
            return self.end_connection(now, at);
        };
        let is_free = peer.to_client.is_empty() && !peer.peer_ended;
        if !is_free || self.streams.get(stream).is_none_or(Stream::has_backlog) {
            return self.update_peer_interest(now, at);
        }
        let room = &mut self.datagrams.arena.region_mut(STREAM_SLOT, STREAM_SLOTS)[..READ_BYTES];
        match (&peer.socket).read(room) {
            Ok(0) => peer.peer_ended = true,
            Ok(count) => {
                self.budget.charge_bytes(count);
                peer.to_client.put(&room[..count]);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => return self.end_connection(now, at),
        }
        self.carry_to_client(now, at);
    }

    /// Queues for the client what the limits let pass, and tells it when that was all. [6062-5.4-4, 6062-5.5-3]
    pub(super) fn carry_to_client(&mut self, now: Now, at: usize) {
        while let Some(peer) = self.peers.get_mut(at) {
            let Some(stream_at) = peer.stream().and_then(|stream| self.streams.find(stream)) else { return };
            let Some(stream) = self.streams.get_mut(stream_at) else { return };
            if stream.has_backlog() {
                break;
            }
            if peer.to_client.is_empty() {
                if peer.peer_ended && !peer.client_told {
                    peer.client_told = true;
                    stream.end_writing();
                }
                if peer.is_done() {
                    return self.end_connection(now, at);
                }
                break;
            }
            let count = match self.ask_to_pass(now, at, Direction::ToClient) {
                Passing::Bytes(count) => count,
                Passing::Later => break,
                Passing::Never => return self.end_connection(now, at),
            };
            let Some(peer) = self.peers.get_mut(at) else { return };
            peer.to_client.let_pass(count);
            let payload = Some((peer.allocation, count as u32));
            let sent = self.streams.send(stream_at, [peer.to_client.passed(), &[], &[]], payload);
            let allocation = peer.allocation;
            peer.to_client.gone(count);
            if sent != Some(Sent::Taken) {
                self.server.not_sent(allocation, Direction::ToClient, 1, count as u64, DropReason::SlowClient);
                return self.end_connection(now, at);
            }
            // At once: what the kernel takes need not be waited for.
            self.streams.flush(stream_at);
            self.net.waits(Amount::default(), self.streams.get(stream_at).map(Stream::waiting).unwrap_or_default());
        }
        self.update_peer_interest(now, at);
    }

    /// Asks epoll for what can go on.
    fn update_peer_interest(&mut self, now: Now, at: usize) {
        let Some(peer) = self.peers.get(at) else { return };
        let Some(stream) = peer.stream() else { return };
        let has_backlog = self.streams.find(stream).and_then(|at| self.streams.get(at)).is_none_or(Stream::has_backlog);
        let wanted = Interest {
            bytes: peer.to_client.is_empty() && !peer.peer_ended && !has_backlog,
            room: peer.to_peer.passed > 0,
        };
        if wanted != peer.interest && self.watch_peer(at, wanted).is_err() {
            self.end_connection(now, at);
        }
    }

    /// Asks epoll for what a data connection's stream can go on with.
    pub(super) fn update_data_interest(&mut self, now: Now, at: usize) {
        let reads = self.reads_for_peer(at);
        let Some(stream) = self.streams.get_mut(at) else { return };
        let before = Interest { bytes: stream.awaits_bytes, room: stream.awaits_room };
        let wanted = Interest { bytes: reads && !stream.is_ready, room: stream.has_backlog() && !stream.is_dirty };
        if before != wanted {
            (stream.awaits_bytes, stream.awaits_room) = (wanted.bytes, wanted.room);
            if set_interest(&self.epoll, &stream.socket, token(STREAM, at), before, wanted).is_err() {
                self.close_stream(now, at);
            }
        }
    }

    /// Tries again what limits held back, and listens where there were no files.
    pub(super) fn go_on_carrying(&mut self, now: Now) {
        for _ in 0..TRIED_AGAIN_PER_TURN {
            let Some(at) = self.peers.pop_held_back(now.ticks) else { break };
            self.carry_to_peer(now, at);
            self.carry_to_client(now, at);
        }
        if !self.resting_relays.is_empty() {
            self.wake_tcp_relays(now.ticks);
        }
    }

    /// When something of it is due by itself.
    pub(super) fn carrying_deadline(&self) -> Option<Ticks> {
        let relays = self.resting_relays.iter().map(|(at, _)| *at).min();
        [self.peers.next_deadline(), relays].into_iter().flatten().min()
    }

    // ---- the end

    /// Closes both sides of a bound connection, and tells the core.
    pub(super) fn end_connection(&mut self, now: Now, at: usize) {
        let Some(connection) = self.peers.get(at).map(|peer| peer.id) else { return };
        self.close_connection(now, connection);
        self.server.handle_input(now, Input::ConnectionEnded { connection });
        self.drain(now);
    }

    /// Closes both sides of a connection: what is on its way is counted as not sent.
    pub(super) fn close_connection(&mut self, now: Now, connection: ConnectionId) {
        let Some(at) = self.peers.find(connection) else { return };
        let Some(peer) = self.peers.remove(at) else { return };
        let unsent = peer.to_peer.passed().len();
        if unsent > 0 {
            self.lose(peer.allocation, Direction::ToPeer, u32::from(peer.to_peer.is_whole), unsent as u64);
        }
        let stream = peer.stream();
        drop(peer);
        if let Some(at) = stream.and_then(|stream| self.streams.find(stream)) {
            if let Some(stream) = self.streams.get_mut(at) {
                stream.connection = None;
            }
            self.close_stream(now, at);
        }
    }

    /// A data connection's stream closes: so does the peer.
    pub(super) fn on_data_stream_closed(&mut self, now: Now, connection: ConnectionId) {
        let Some(at) = self.peers.find(connection) else { return };
        if let Some(peer) = self.peers.get_mut(at) {
            // It is closed already.
            peer.stage = PeerStage::Waiting;
        }
        self.end_connection(now, at);
    }

    /// Payload of a connection was counted as sent and will never be.
    pub(super) fn lose(&mut self, allocation: AllocationId, direction: Direction, packets: u32, bytes: u64) {
        self.server.not_sent(allocation, direction, packets, bytes, DropReason::StreamClosed);
        if !self.server.is_live(allocation) {
            self.lost.push(Lost { allocation, direction, packets, bytes });
        }
    }

    /// Takes out of a record what its connections had on their way when it was written.
    pub(super) fn correct(&mut self, record: &mut SessionRecord) {
        let of = record.allocation;
        for lost in self.lost.extract_if(.., |lost| lost.allocation == of) {
            record.not_sent(lost.direction, u64::from(lost.packets), lost.bytes, DropReason::StreamClosed);
        }
    }

    /// Goes on with a stream of a connection when its queue is empty.
    pub(super) fn on_data_stream_written(&mut self, now: Now, at: usize) {
        if let Some(peer) = self.bound_to(at) {
            self.carry_to_client(now, peer);
        }
    }

    /// Closes sockets that belong to no connection, and tells of connections that have none.
    pub(super) fn match_connections(&mut self, now: Now) {
        // In the order of their ids.
        let known: Vec<ConnectionId> = self.server.connections().map(|connection| connection.id).collect();
        for at in self.peers.all() {
            if let Some(id) = self.peers.get(at).map(|peer| peer.id).filter(|id| known.binary_search(id).is_err()) {
                self.close_connection(now, id);
            }
        }
        for connection in known {
            if self.peers.find(connection).is_none() {
                self.server.handle_input(now, Input::ConnectionEnded { connection });
            }
        }
        self.drain(now);
    }

    /// Goes on with connections that came from another process.
    pub(super) fn begin_peers(&mut self, now: Now) {
        for at in self.peers.all() {
            match self.peers.get(at).map(|peer| peer.stage) {
                None | Some(PeerStage::Waiting) => {}
                Some(PeerStage::Connecting) => {
                    if self.watch_peer(at, Interest { bytes: false, room: true }).is_err() {
                        self.end_connection(now, at);
                    }
                }
                Some(PeerStage::Bound(stream)) => {
                    self.carry_to_peer(now, at);
                    self.carry_to_client(now, at);
                    if let Some(at) = self.streams.find(stream) {
                        self.update_interest(now, at);
                    }
                }
            }
        }
    }
}

/// Watches a socket for what is wanted, and not at all where that is nothing.
fn set_interest(
    epoll: &crate::net::sys::Epoll,
    socket: &TcpStream,
    token: u64,
    before: Interest,
    wanted: Interest,
) -> io::Result<()> {
    match (before.is_any(), wanted.is_any()) {
        (_, false) => {
            epoll.remove(socket.as_fd());
            Ok(())
        }
        (true, true) => epoll.modify(socket.as_fd(), token, wanted.bytes, wanted.room),
        (false, true) => {
            match epoll.add(socket.as_fd(), token) {
                // Before it carried anything it stayed watched whatever was wanted.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                added => added?,
            }
            epoll.modify(socket.as_fd(), token, wanted.bytes, wanted.room)
        }
    }
}
