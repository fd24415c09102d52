//! The new process's side of an upgrade in one worker: it takes everything in, and does not read before it is told to.
//!
//! [`Worker`] itself stands in `net::worker`; who directs it is `net::take_over`.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::{Listener, ListenerChange, ListenerId, RELAY, STREAM, Users, Worker, token};
use crate::address::{FiveTuple, RelayedTransportAddress, Via};
use crate::clock;
use crate::net::handoff::{Channel, STATE_BYTES_MAX, from_memory};
use crate::net::ledger::{LeftSockets, LeftWorker};
use crate::net::meeting::Meeting;
use crate::net::overflow::{Overflow, SocketKind};
use crate::net::stream_state::{PeerState, StreamsState};
use crate::net::upgrade_messages::WorkerPart;
use crate::net::{listen, sys};
use crate::protocol::accounting::Amount;
use crate::protocol::allocation::AllocationState;
use crate::protocol::changes::{EarlyAllocations, ServerChanges};
use crate::protocol::ids::AllocationId;
use crate::state;

/// How long the old process may be silent before the cut, and how long the new one may wait for its director.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What the director of the new process has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::net) enum Reached {
    /// What the workers share is there as it was at the cut.
    Shared,
    /// The sockets are ours: read.
    Go,
    /// It is off: end without a word.
    Off,
}

/// What a worker has taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::net) struct TakenOver {
    pub(in crate::net) allocations: u64,
    pub(in crate::net) streams: u64,
}

/// Where the workers of the new process and their director meet: one report when all is there that was told early, one when all is.
pub(in crate::net) type TakeOver = Meeting<Reached, Result<TakenOver, String>>;

/// A UDP listener whose sockets an old worker passes.
#[derive(Clone)]
pub(in crate::net) struct AdoptedListener {
    pub(in crate::net) id: ListenerId,
    pub(in crate::net) address: SocketAddr,
    pub(in crate::net) users: Arc<Users>,
    pub(in crate::net) is_leaving: bool,
}

/// Who had the allocations before.
pub(crate) enum Before {
    /// A worker of a process that lives and tells of them over a channel.
    Process(Channel),
    /// One of a process that was killed.
    Killed {
        left: Box<LeftWorker>,
        /// Clients that are not heard any more: their messages were in hand twice.
        silenced: Vec<FiveTuple>,
    },
}

/// What one worker takes over from.
pub(in crate::net) struct TakingOver {
    pub(in crate::net) before: Before,
    pub(in crate::net) listeners: Vec<AdoptedListener>,
    pub(in crate::net) overflow: Arc<Overflow>,
    pub(in crate::net) common: Arc<TakeOver>,
}

/// What comes before the changes do.
#[derive(Default)]
struct Passed {
    /// By slot.
    relayed: HashMap<u32, OwnedFd>,
    held: Vec<(RelayedTransportAddress, OwnedFd)>,
    streams: Vec<OwnedFd>,
    peers: Vec<OwnedFd>,
}

fn told_of(listeners: &[AdoptedListener], id: u32) -> Result<&AdoptedListener, &'static str> {
    listeners.iter().find(|of| of.id.0 == id).ok_or("a listener that was not told of")
}

fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn read_state<T: state::State>(memory: Option<OwnedFd>) -> Result<T, String> {
    let bytes = from_memory(memory.ok_or("memory is missing from a message")?, STATE_BYTES_MAX).map_err(failed)?;
    state::read(&bytes).map_err(failed)
}

/// Whether a relayed socket is one of TCP.
fn is_stream_socket(socket: &OwnedFd) -> bool {
    socket2::SockRef::from(socket).r#type().is_ok_and(|of| of == socket2::Type::STREAM)
}

impl Worker {
    /// Takes everything in; `false` if it is off.
    pub(in crate::net) fn take_over_from_process(&mut self, from: TakingOver) -> bool {
        let TakingOver { before, listeners, overflow, common } = from;
        let is_reported = |result: Result<TakenOver, String>| {
            let is_there = result.is_ok();
            common.report(result);
            is_there
        };
        let is_there = match before {
            Before::Process(mut channel) => {
                is_reported(self.take_early(&mut channel, &listeners, &overflow))
                    && is_reported(self.take_rest(&mut channel, &common))
            }
            Before::Killed { left, silenced } => {
                let LeftWorker { sockets, totals, streams } = *left;
                is_reported(self.take_left(sockets, silenced, &listeners, &overflow))
                    && is_reported(self.take_totals(totals, streams, &common))
            }
        };
        let is_ours = is_there && common.decision(1, SILENCE_MAX) == Some(Reached::Go);
        if is_ours {
            // All workers have their sockets, and let nothing go any more.
            self.relays.claim();
            self.has_taken_over = true;
            self.begin_streams();
        }
        is_ours
    }

    /// Counts the sessions over datagrams at the listeners that they came through; before anything else in the first turn.
    pub(super) fn count_users(&self) {
        for via in self.server.clients() {
            if let Via::Datagram(five_tuple) = via {
                self.listeners.count(&five_tuple.server, true);
            }
        }
    }

    /// Takes over what a worker of a process that was killed had open.
    fn take_left(
        &mut self,
        left: LeftSockets,
        silenced: Vec<FiveTuple>,
        listeners: &[AdoptedListener],
        overflow: &Arc<Overflow>,
    ) -> Result<TakenOver, String> {
        let LeftSockets { epoll, listeners: sockets, allocations } = left;
        self.adopt_epoll(epoll, silenced).map_err(failed)?;
        for (id, data, control) in sockets {
            let sockets: Vec<OwnedFd> = [Some(data), control].into_iter().flatten().collect();
            // They are waited for in places that may be others now.
            sockets.iter().for_each(|socket| self.epoll.remove(socket.as_fd()));
            self.adopt_listener(told_of(listeners, id)?, overflow, sockets)?;
        }
        let (states, sockets): (Vec<AllocationState>, Vec<Vec<OwnedFd>>) = allocations.into_iter().unzip();
        let known: Vec<_> = states.iter().flat_map(AllocationState::sockets).collect();
        self.server.import_early(states).map_err(failed)?;
        for ((id, relayed), socket) in known.into_iter().zip(sockets.into_iter().flatten()) {
            if is_stream_socket(&socket) {
                // Its client's stream is gone, and the allocation ends as soon as that is told.
                self.peers.adopt(id, relayed, socket, clock::now().ticks)?;
            } else {
                self.relays.adopt_bound(id, relayed, socket);
            }
        }
        Ok(TakenOver { allocations: self.server.allocations() as u64, streams: 0 })
    }

    /// Takes over what belongs to no single allocation of them.
    fn take_totals(&mut self, totals: ServerChanges, streams: u64, common: &TakeOver) -> Result<TakenOver, String> {
        if common.decision(0, SILENCE_MAX) != Some(Reached::Shared) {
            return Err("it was given up".to_owned());
        }
        self.apply(totals, &mut Passed::default())?;
        self.server.each_claim(|claim, counted| self.process.count_in(claim, counted));
        self.streams.go_on_after(streams);
        Ok(TakenOver { allocations: self.server.allocations() as u64, streams: 0 })
    }

    fn take_early(
        &mut self,
        channel: &mut Channel,
        listeners: &[AdoptedListener],
        overflow: &Arc<Overflow>,
    ) -> Result<TakenOver, String> {
        loop {
            let (part, descriptors) = channel.receive::<WorkerPart>(SILENCE_MAX).map_err(failed)?;
            match part {
                WorkerPart::Listener(id) => {
                    self.adopt_listener(told_of(listeners, id)?, overflow, descriptors)?;
                }
                WorkerPart::Early => self.adopt_allocations(descriptors)?,
                WorkerPart::EarlyEnd => break,
                WorkerPart::Sockets(_)
                | WorkerPart::Held(_)
                | WorkerPart::Streams
                | WorkerPart::Peers
                | WorkerPart::Changes => {
                    return Err("the old worker told of the cut before it had told all".to_owned());
                }
            }
        }
        Ok(TakenOver { allocations: self.server.allocations() as u64, streams: 0 })
    }

    fn adopt_listener(
        &mut self,
        listener: &AdoptedListener,
        overflow: &Arc<Overflow>,
        sockets: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let watch = |socket| overflow.watch(SocketKind::Listener, UdpSocket::from(socket));
        let mut sockets = sockets.into_iter().map(watch);
        let data = sockets.next().ok_or("a listener without a socket")?;
        let control = sockets.next();
        let bound = data.local_addr().map_err(failed)?;
        if bound.port() != listener.address.port() || bound.ip() != listener.address.ip() {
            return Err(format!("the socket of the listener {} is bound to {bound}", listener.address));
        }
        if control.is_some() {
            let _ = sys::set_receive_buffer(data.as_fd(), listen::RECEIVE_BUFFER);
        }
        let mut adopted = Listener::new(listener.id, data, control, listener.address, Arc::clone(&listener.users));
        adopted.remember_coalescing();
        let change = ListenerChange::Open(Box::new(adopted));
        self.change_listener(change).map_err(failed)?;
        if listener.is_leaving {
            self.change_listener(ListenerChange::Leave(listener.id)).map_err(failed)?;
        }
        Ok(())
    }

    fn adopt_allocations(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let mut descriptors = descriptors.into_iter();
        let EarlyAllocations { worker, allocations: states } = read_state(descriptors.next())?;
        if worker != self.id {
            return Err(format!("allocations of worker {} came to worker {}", worker.0, self.id.0));
        }
        let known: Vec<_> = states.iter().flat_map(AllocationState::sockets).collect();
        if known.len() != descriptors.len() {
            let allocations = states.len();
            return Err(format!("{} sockets of {allocations} allocations came as {}", known.len(), descriptors.len()));
        }
        self.server.import_early(states).map_err(failed)?;
        known.into_iter().zip(descriptors).try_for_each(|((id, relayed), socket)| self.adopt_relay(id, relayed, socket))
    }

    fn adopt_relay(
        &mut self,
        id: AllocationId,
        relayed: RelayedTransportAddress,
        socket: OwnedFd,
    ) -> Result<(), String> {
        if is_stream_socket(&socket) {
            self.peers.adopt(id, relayed, socket, clock::now().ticks)?;
            return self.watch_tcp_relay(id).map_err(failed);
        }
        self.relays.adopt(id, relayed, socket, clock::now().ticks)?;
        let relay = self.relays.get(id).ok_or("a relayed socket without a place")?;
        self.epoll.add(relay.socket.as_fd(), token(RELAY, id.index as usize)).map_err(failed)
    }

    fn take_rest(&mut self, channel: &mut Channel, common: &TakeOver) -> Result<TakenOver, String> {
        let mut passed = Passed::default();
        let mut memory = loop {
            let (part, descriptors) = channel.receive::<WorkerPart>(SILENCE_MAX).map_err(failed)?;
            match part {
                WorkerPart::Sockets(slots) if slots.len() == descriptors.len() => {
                    passed.relayed.extend(slots.into_iter().zip(descriptors));
                }
                WorkerPart::Held(relayed) if relayed.len() == descriptors.len() => {
                    passed.held.extend(relayed.into_iter().zip(descriptors));
                }
                WorkerPart::Streams => passed.streams.extend(descriptors),
                WorkerPart::Peers => passed.peers.extend(descriptors),
                WorkerPart::Changes => break descriptors.into_iter(),
                WorkerPart::Sockets(_)
                | WorkerPart::Held(_)
                | WorkerPart::Listener(_)
                | WorkerPart::Early
                | WorkerPart::EarlyEnd => return Err("the old worker's messages contradict each other".to_owned()),
            }
        };
        let (changes, streams) = (read_state(memory.next())?, read_state(memory.next())?);
        if common.decision(0, SILENCE_MAX) != Some(Reached::Shared) {
            return Err("the upgrade was given up".to_owned());
        }
        self.apply(changes, &mut passed)?;
        let mut streams: StreamsState = streams;
        self.adopt_peers(streams.peers.take().unwrap_or_default(), passed.peers)?;
        self.adopt_streams(streams, passed.streams)?;
        Ok(TakenOver { allocations: self.server.allocations() as u64, streams: self.streams.len() as u64 })
    }

    fn apply(&mut self, changes: ServerChanges, passed: &mut Passed) -> Result<(), String> {
        // Those that have ended since leave their slots to others.
        let (ended, is_whole) = (changes.ended.clone(), changes.is_whole);
        let changed: Vec<_> = changes.allocations.iter().flat_map(AllocationState::sockets).collect();
        self.server.import_changes(changes).map_err(failed)?;
        for (relayed, socket) in passed.held.drain(..) {
            self.relays.adopt_held(relayed, socket)?;
        }
        let now = clock::now();
        if is_whole {
            // The old worker's server was restarted in between, and tells of all once more.
            let owned = changed.iter().map(|(id, _)| *id).collect();
            self.relays.close_others(&owned, now.ticks);
            self.peers.close_others(&owned, now.ticks);
        } else {
            for id in ended {
                self.relays.close_ended(id, now.ticks);
                self.peers.close(id, None, now.ticks);
            }
        }
        for (id, relayed) in changed {
            if let Some(socket) = passed.relayed.remove(&id.index) {
                self.adopt_relay(id, relayed, socket)?;
            } else if !self.relays.is_at(id, relayed) && !self.peers.is_at(id, relayed) {
                return Err(format!("the socket of {relayed} is missing"));
            }
        }
        let addresses = self.server.socket_count();
        if self.relays.len() + self.peers.relays() != addresses {
            // Second addresses that were given back, or whose allocation has ended.
            let owned = self.server.sockets().map(|(socket, _, _)| socket).collect();
            self.relays.close_others(&owned, now.ticks);
            self.peers.close_others(&owned, now.ticks);
        }
        let sockets = self.relays.len() + self.peers.relays();
        if sockets != addresses {
            return Err(format!("there are {sockets} relayed sockets for {addresses} relayed addresses"));
        }
        Ok(())
    }

    /// Takes over the connections to peers; nothing is read of them yet.
    fn adopt_peers(&mut self, states: Vec<PeerState>, sockets: Vec<OwnedFd>) -> Result<(), String> {
        let connections: HashMap<_, _> = self.server.connections().map(|of| (of.id, of.allocation)).collect();
        if (states.len(), sockets.len()) != (connections.len(), connections.len()) {
            let (states, sockets) = (states.len(), sockets.len());
            return Err(format!("{sockets} sockets and {states} states came for {} connections", connections.len()));
        }
        for (state, socket) in states.into_iter().zip(sockets) {
            let allocation = connections.get(&state.id).ok_or("a connection to a peer that was not told of")?;
            self.peers.import(&state, *allocation, socket)?;
        }
        Ok(())
    }

    fn adopt_streams(&mut self, state: StreamsState, sockets: Vec<OwnedFd>) -> Result<(), String> {
        if state.streams.len() != sockets.len() {
            return Err(format!("{} streams came with {} sockets", state.streams.len(), sockets.len()));
        }
        let now = clock::now();
        let StreamsState { next_id, streams, peers: _ } = state;
        let mut bound: HashMap<_, _> = HashMap::new();
        for at in self.peers.all() {
            let peer = self.peers.get(at);
            bound.extend(peer.and_then(|peer| Some((peer.stream()?, peer.id))));
        }
        self.streams.go_on_after(next_id);
        for (state, socket) in streams.into_iter().zip(sockets) {
            let connection = bound.remove(&state.id);
            let via = Via::Stream(state.id, state.five_tuple);
            let has_allocation = connection.is_some() || self.server.has_allocation(&via);
            let socket = TcpStream::from(socket);
            let at = self.streams.import(next_id, state, socket, has_allocation, now.ticks).map_err(failed)?;
            self.net.streams_adopted.add(1);
            self.net.streams_open.add(1);
            let Some(stream) = self.streams.get_mut(at) else { continue };
            connection.into_iter().for_each(|connection| stream.carry(connection));
            self.net.waits(Amount::default(), stream.waiting());
            stream.input_counted = stream.input_bytes();
            self.net.stream_input_bytes.add(stream.input_counted as u64);
            self.epoll.add(stream.socket.as_fd(), token(STREAM, at)).map_err(failed)?;
        }
        if bound.is_empty() { Ok(()) } else { Err("a connection to a peer has lost its stream".to_owned()) }
    }

    /// Handles what the old process had read of its streams, once this one may.
    fn begin_streams(&mut self) {
        let now = clock::now();
        for at in self.streams.all() {
            self.read_early(now, at);
        }
        self.begin_peers(now);
        self.flush();
        self.flush_streams(now);
        self.flush();
        self.producers.wake();
        // What one turn leaves to the next does not wait for a packet.
        self.waker.wake();
    }
}
