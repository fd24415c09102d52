//! One worker: a thread, an epoll set, a [`Server`], and everything that belongs to its clients.
//!
//! The loop: wait, read the clock once, take each ready descriptor (bounded work each), judge what came,
//! send in batches, drain the core, sleep until the next deadline. Level-triggered, so a descriptor that was
//! not emptied comes again, after the others had their turn.

mod inbox;
mod listeners;
mod stream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tokio::sync::mpsc;

pub(super) use self::inbox::{Mailbox, Message};
use self::listeners::Listeners;
pub(super) use self::listeners::{Listener, ListenerChange, ListenerId, Users};

use super::clock;
use super::counters::NetCounters;
use super::relay_socket::Relays;
use super::streams::Streams;
use super::sys::{Arena, Epoll, Ready, ReceiveBatch, SendBatch, Waker};
use super::tcp::Sent;
use super::tls_session::CIPHER_BYTES;
use super::udp::{Queue, drop_reason};
use crate::protocol::Server;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::address::{FiveTuple, RelayedTransportAddress, ServerAddress, Transport, Via};
use crate::protocol::binding::ANSWER_BYTES_MAX;
use crate::protocol::border::{
    AllocationId, Answer, AskId, DropReason, Event, Input, Output, PacketMeta, Question, Relay, Way, WorkerId,
};
use crate::protocol::counters::Counters;
use crate::protocol::time::Now;
use crate::wire::{Class, classify};

/// Datagrams of one batch: after so many, TCP, timers and messages get their turn.
pub(super) const BATCH: usize = 64;

/// Datagrams read at once from a relayed socket that proved bursty.
const RELAY_BATCH: usize = 16;

/// So many loops in a row a relayed socket must be ready to count as bursty.
const BURSTY_AFTER: u8 = 3;

/// Arena slots behind the batch, where streams are read: the longest message and as much again.
const STREAM_SLOTS: usize = 2;

const KIND_BITS: u32 = 56;
const LISTENER: u64 = 0;
const RELAY: u64 = 1;
const STREAM: u64 = 2;
const INBOX: u64 = 3;

const fn token(kind: u64, index: usize) -> u64 {
    kind << KIND_BITS | index as u64
}

/// Limits of client streams.
#[derive(Clone, Copy, Debug)]
pub struct TcpLimits {
    /// Bytes that may wait for one client.
    pub queue_bytes: usize,
    /// Milliseconds that a stream may live without an allocation; 0 means for ever.
    pub unauthenticated_ms: u64,
}

/// Where events go: two bounded channels, so that a flood of refusals can't push out a session's record.
#[derive(Clone)]
pub(super) struct Events {
    pub(super) sessions: mpsc::Sender<Event>,
    pub(super) refusals: mpsc::Sender<Event>,
}

/// What a worker is made of.
pub(super) struct Setup {
    pub(super) id: WorkerId,
    pub(super) server: Server,
    pub(super) counters: Arc<Counters>,
    pub(super) net: Arc<NetCounters>,
    pub(super) listeners: Vec<ListenerChange>,
    pub(super) relays: Relays,
    pub(super) inbox: Receiver<Message>,
    pub(super) waker: Arc<Waker>,
    pub(super) mailboxes: Arc<Vec<Mailbox>>,
    pub(super) events: Events,
    pub(super) tcp: TcpLimits,
}

pub(super) struct Worker {
    id: WorkerId,
    server: Server,
    counters: Arc<Counters>,
    net: Arc<NetCounters>,
    epoll: Epoll,
    listeners: Listeners,
    relays: Relays,
    streams: Streams,
    inbox: Receiver<Message>,
    waker: Arc<Waker>,
    mailboxes: Arc<Vec<Mailbox>>,
    events: Events,
    arena: Arena,
    /// What TLS streams are read to.
    cipher: Box<[u8]>,
    receive: ReceiveBatch,
    send: SendBatch,
    next_slot: usize,
    to_peer: Queue,
    to_peer_of: Option<AllocationId>,
    loops: u64,
    stopping: bool,
}

impl Worker {
    pub(super) fn new(setup: Setup) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(setup.waker.fd(), token(INBOX, 0))?;
        let mut worker = Self {
            id: setup.id,
            server: setup.server,
            counters: setup.counters,
            net: setup.net,
            epoll,
            listeners: Listeners::default(),
            relays: setup.relays,
            streams: Streams::new(setup.tcp),
            inbox: setup.inbox,
            waker: setup.waker,
            mailboxes: setup.mailboxes,
            events: setup.events,
            arena: Arena::new(BATCH + STREAM_SLOTS),
            cipher: vec![0; CIPHER_BYTES].into(),
            receive: ReceiveBatch::new(BATCH),
            send: SendBatch::new(BATCH),
            next_slot: 0,
            to_peer: Queue::default(),
            to_peer_of: None,
            loops: 0,
            stopping: false,
        };
        for change in setup.listeners {
            worker.change_listener(change)?;
        }
        Ok(worker)
    }

    /// Runs until [`Message::Stop`].
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut ready = Ready::new(BATCH);
        self.net.processor.adopt();
        let mut now = clock::now();
        while !self.stopping {
            self.epoll.wait(&mut ready, self.timeout(now))?;
            now = clock::now();
            self.loops += 1;
            self.net.loops.add(1);
            self.on_deadlines(now);
            for index in 0..ready.len() {
                let Some(event) = ready.get(index) else { break };
                let at = (event.token & ((1 << KIND_BITS) - 1)) as usize;
                match event.token >> KIND_BITS {
                    LISTENER => self.on_listener(now, at),
                    RELAY => self.on_relay(now, at),
                    STREAM => self.on_stream(now, at, event.readable, event.writable),
                    _ => self.on_inbox(now),
                }
            }
            self.flush();
        }
        self.net.processor.give_up();
        Ok(())
    }

    /// Milliseconds until something must be done by itself.
    fn timeout(&self, now: Now) -> i32 {
        let next = [self.server.poll_timeout(), self.streams.next_deadline()].into_iter().flatten().min();
        next.map_or(-1, |at| at.since(now.ticks).min(60_000) as i32)
    }

    fn on_deadlines(&mut self, now: Now) {
        if self.server.poll_timeout().is_some_and(|at| at <= now.ticks) {
            self.flush_payload();
            self.server.handle_timeout(now);
            self.drain(now);
        }
        while let Some(at) = self.streams.pop_overdue(now.ticks) {
            self.net.streams_overdue.add(1);
            self.close_stream(now, at);
        }
    }

    // ---- clients over UDP

    fn on_listener(&mut self, now: Now, at: usize) {
        // The batch fills the arena from its start, so nothing may wait there.
        self.flush();
        // A message of this very turn may have closed it.
        let Some(listener) = self.listeners.get(at) else { return };
        let address = listener.address;
        let received = self.receive.receive(listener.socket.as_fd(), &mut self.arena, 0, BATCH);
        let Ok(count) = received else { return };
        self.net.listener_batches.add(count);
        for index in 0..count {
            let Some(datagram) = self.receive.get(index, 0) else {
                self.counters.dropped(DropReason::TooBig, 1, 0);
                continue;
            };
            let server = match datagram.to {
                Some(ip) => ServerAddress::new(ip, address.port()),
                None => address.into(),
            };
            let five_tuple = FiveTuple { client: datagram.from.into(), server, transport: Transport::Udp };
            self.on_datagram(now, Via::Datagram(five_tuple), at, datagram.slot, datagram.len);
        }
        self.flush_to_peer();
    }

    fn on_datagram(&mut self, now: Now, via: Via, listener: usize, slot: usize, len: usize) {
        let bytes = self.arena.get(slot, len);
        match classify(bytes) {
            Class::ChannelData | Class::SendIndication => {
                let verdict = self.server.relay_from_client(now, &via, PacketMeta::default(), bytes);
                if let Relay::ToPeer { allocation, to, meta, payload } = verdict {
                    let (to, part) = (self.relays.to_local(to), self.arena.locate(payload));
                    self.queue_to_peer(allocation, to, meta, part);
                }
            }
            Class::Stun if self.is_closed_to(listener, &via) => {
                self.counters.dropped(DropReason::ListenerLeaving, 1, len as u64);
            }
            Class::Stun => {
                let mut answer = [0; ANSWER_BYTES_MAX];
                match self.server.answer_binding(&via, bytes, &mut answer) {
                    Some(0) => {}
                    Some(len) => self.reply_datagram(listener, via.five_tuple(), &answer[..len]),
                    None => {
                        self.flush_payload();
                        let bytes = self.arena.get(slot, len);
                        self.server.handle_input(now, Input::Message { via, bytes });
                        self.drain(now);
                    }
                }
            }
            Class::Neither => self.counters.dropped(DropReason::NotStun, 1, len as u64),
        }
    }

    /// Whether the configuration has this listener no more, and this client no session there.
    fn is_closed_to(&self, listener: usize, via: &Via) -> bool {
        self.listeners.get(listener).is_some_and(|listener| listener.is_leaving) && !self.server.has_allocation(via)
    }

    fn queue_to_peer(&mut self, allocation: AllocationId, to: SocketAddr, meta: PacketMeta, part: super::sys::Part) {
        if self.to_peer_of != Some(allocation) || self.to_peer.len() == BATCH {
            self.flush_to_peer();
        }
        if meta.dont_fragment {
            self.flush_to_peer();
            self.send_unfragmented(allocation, to, part);
            return;
        }
        self.to_peer_of = Some(allocation);
        self.to_peer.push_to_peer(to, part, allocation);
    }

    /// RFC 8656 §15: DF for this packet alone; it is an option of the socket, so it is set and taken back.
    fn send_unfragmented(&mut self, allocation: AllocationId, to: SocketAddr, part: super::sys::Part) {
        let why = match self.relays.get(allocation) {
            None => Some(DropReason::RelayClosed),
            Some(relay) => {
                let (fd, ipv6) = (relay.socket.as_fd(), to.is_ipv6());
                let sent = super::sys::set_dont_fragment(fd, ipv6, true)
                    .and_then(|()| relay.socket.send_to(self.arena.part(part), to));
                // Without DF again, large datagrams of the others are fragmented as they should be.
                let restored = super::sys::set_dont_fragment(fd, ipv6, false);
                sent.err().or(restored.err()).map(|error| drop_reason(&error))
            }
        };
        if let Some(why) = why {
            self.server.not_sent(allocation, Way::ToPeer, 1, part.len as u64, why);
        }
    }

    // ---- peers

    fn on_relay(&mut self, now: Now, at: usize) {
        let loops = self.loops;
        let Some(relay) = self.relays.at_mut(at) else { return };
        relay.streak = if relay.ready_in + 1 == loops { relay.streak.saturating_add(1) } else { 0 };
        relay.ready_in = loops;
        let (id, bursty) = (relay.id, relay.streak >= BURSTY_AFTER);
        let wanted = if bursty { RELAY_BATCH } else { 1 };
        if self.next_slot + wanted > BATCH {
            self.flush();
        }
        if bursty { self.read_relay_batch(now, id) } else { self.read_relay_once(now, id) }
    }

    fn read_relay_once(&mut self, now: Now, id: AllocationId) {
        let slot = self.next_slot;
        let Some(relay) = self.relays.get(id) else { return };
        if let Ok((len, from)) = relay.socket.recv_from(self.arena.slot_mut(slot)) {
            self.net.relayed_batches.add(1);
            self.on_peer_datagram(now, id, from, slot, len);
        }
    }

    fn read_relay_batch(&mut self, now: Now, id: AllocationId) {
        let first = self.next_slot;
        let Some(relay) = self.relays.get(id) else { return };
        let Ok(count) = self.receive.receive(relay.socket.as_fd(), &mut self.arena, first, RELAY_BATCH) else { return };
        self.net.relayed_batches.add(count);
        if count == 1
            && let Some(relay) = self.relays.at_mut(id.index as usize)
        {
            relay.streak = 0;
        }
        for index in 0..count {
            match self.receive.get(index, first) {
                Some(datagram) => self.on_peer_datagram(now, id, datagram.from, datagram.slot, datagram.len),
                None => self.counters.dropped(DropReason::TooBig, 1, 0),
            }
        }
    }

    fn on_peer_datagram(&mut self, now: Now, id: AllocationId, from: SocketAddr, slot: usize, len: usize) {
        let peer = self.relays.to_advertised(from);
        let payload = self.arena.get(slot, len);
        let verdict = self.server.relay_from_peer(now, id, peer, PacketMeta::default(), payload);
        let Relay::ToClient { allocation, via, head, payload, .. } = verdict else { return };
        match via {
            Via::Datagram(five_tuple) => {
                let part = self.arena.locate(payload);
                let at = self.listeners.serving(&five_tuple.server);
                let Some(listener) = at.and_then(|at| self.listeners.get_mut(at)) else {
                    self.server.not_sent(allocation, Way::ToClient, 1, part.len as u64, DropReason::RelayClosed);
                    return;
                };
                let from = listener.is_wildcard().then(|| five_tuple.server.ip());
                listener.queue.push_to_client(five_tuple.client.into(), from, &head, part, allocation);
                // The slot is taken until the batch is out.
                self.next_slot = slot + 1;
            }
            Via::Stream(stream, _) => self.send_to_stream(now, stream, allocation, &head, slot, len),
        }
    }

    // ---- sending

    fn reply_datagram(&mut self, listener: usize, five_tuple: &FiveTuple, bytes: &[u8]) {
        let Some(listener) = self.listeners.get_mut(listener) else { return };
        let from: Option<IpAddr> = listener.is_wildcard().then(|| five_tuple.server.ip());
        listener.queue.push_reply(five_tuple.client.into(), from, bytes);
    }

    fn reply(&mut self, now: Now, via: Via, bytes: &[u8]) {
        match via {
            Via::Datagram(five_tuple) => {
                if let Some(at) = self.listeners.serving(&five_tuple.server) {
                    self.reply_datagram(at, &five_tuple, bytes);
                }
            }
            Via::Stream(stream, _) => {
                if let Some(at) = self.streams.find(stream) {
                    // A client that does not even read its replies is cut off: nothing else bounds it.
                    let sent = self.streams.get_mut(at).map(|stream| stream.send([bytes, &[], &[]], None));
                    self.after_send(now, at, sent != Some(Sent::Taken));
                }
            }
        }
    }

    fn flush_to_peer(&mut self) {
        let Some(id) = self.to_peer_of.take() else { return };
        let (server, arena) = (&mut self.server, &self.arena);
        match self.relays.get(id) {
            Some(relay) => {
                let mut not_sent = |allocation, bytes, why| {
                    server.not_sent(allocation, Way::ToPeer, 1, u64::from(bytes), why);
                };
                if let Some((to, payload)) = self.to_peer.take_single() {
                    if let Err(error) = relay.socket.send_to(arena.part(payload), to) {
                        not_sent(id, payload.len as u32, drop_reason(&error));
                    }
                    return;
                }
                self.to_peer.flush(relay.socket.as_fd(), &mut self.send, arena, &mut not_sent);
            }
            None => self.to_peer.discard(|allocation, bytes| {
                server.not_sent(allocation, Way::ToPeer, 1, u64::from(bytes), DropReason::RelayClosed);
            }),
        }
    }

    fn flush_listener(&mut self, at: usize) {
        let server = &mut self.server;
        let Some(listener) = self.listeners.get_mut(at).filter(|listener| !listener.queue.is_empty()) else { return };
        listener.queue.flush(listener.socket.as_fd(), &mut self.send, &self.arena, |allocation, bytes, why| {
            server.not_sent(allocation, Way::ToClient, 1, u64::from(bytes), why);
        });
    }

    /// Sends all payload that waits: a request is answered, and an allocation ends, after what came before it.
    fn flush_payload(&mut self) {
        self.flush_to_peer();
        for at in self.listeners.places() {
            if self.listeners.get(at).is_some_and(|listener| listener.queue.has_payload()) {
                self.flush_listener(at);
            }
        }
    }

    /// Sends everything; the arena is free afterwards.
    fn flush(&mut self) {
        self.flush_to_peer();
        for at in self.listeners.places() {
            self.flush_listener(at);
        }
        self.next_slot = 0;
    }

    // ---- the core's wishes

    fn drain(&mut self, now: Now) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Reply { via, bytes } => self.reply(now, via, &bytes),
                Output::OpenRelay { allocation, request } => {
                    let result = self.open_relay(now, allocation, request);
                    // What else the core wants comes first: one input, then drain.
                    self.streams.opened.push((allocation, result));
                }
                Output::CloseRelay { allocation, .. } => self.relays.close(allocation, now.ticks),
                Output::CloseReserved { relayed } => self.relays.close_held(relayed, now.ticks),
                Output::Ask { worker, ticket, question } => self.ask(now, worker, ticket, question),
                Output::Answer { ticket, answer } => self.answer(now, ticket, answer),
                Output::Happened(event) => self.tell(now, event),
            }
        }
        if let Some((allocation, result)) = self.streams.opened.pop() {
            self.server.handle_input(now, Input::RelayOpened { allocation, result });
            self.drain(now);
        }
    }

    fn open_relay(
        &mut self,
        now: Now,
        allocation: AllocationId,
        request: crate::protocol::border::RelayRequest,
    ) -> Result<crate::protocol::border::OpenedRelay, crate::protocol::border::RelayRefused> {
        use crate::protocol::border::RelayRefused;
        let opened = self.relays.open(allocation, request, now.ticks)?;
        let registered = self.relays.get(allocation).ok_or(RelayRefused::System).and_then(|relay| {
            let token = token(RELAY, allocation.index as usize);
            self.epoll.add(relay.socket.as_fd(), token).map_err(|_| RelayRefused::System)
        });
        match registered {
            Ok(()) => Ok(opened),
            Err(refused) => {
                self.relays.close(allocation, now.ticks);
                if let Some(held) = opened.held {
                    self.relays.close_held(held, now.ticks);
                }
                Err(refused)
            }
        }
    }

    fn ask(&mut self, now: Now, worker: WorkerId, ticket: AskId, question: Question) {
        let sent = self
            .mailboxes
            .get(usize::from(worker.0))
            .is_some_and(|mailbox| mailbox.send(Message::Ask { ticket, question }).is_ok());
        if !sent {
            self.counters.dropped(DropReason::InboxFull, 1, 0);
            self.server.handle_input(now, Input::Answered { ticket, answer: Answer::Reservation(None) });
        }
    }

    fn answer(&mut self, now: Now, ticket: AskId, answer: Answer) {
        let Answer::Reservation(relayed) = answer;
        let socket = relayed.and_then(|relayed| self.relays.take_held(relayed));
        let Some(mailbox) = self.mailboxes.get(usize::from(ticket.worker.0)) else { return };
        if let Err(message) = mailbox.send(Message::Answer { ticket, answer, socket }) {
            self.counters.dropped(DropReason::InboxFull, 1, 0);
            self.take_back(now, relayed, message);
        }
    }

    /// An answer that could not be delivered: the held socket is closed here.
    fn take_back(&mut self, now: Now, relayed: Option<RelayedTransportAddress>, message: Message) {
        if let (Some(relayed), Message::Answer { socket: Some(socket), .. }) = (relayed, message) {
            self.relays.put_held(relayed, socket);
            self.relays.close_held(relayed, now.ticks);
        }
    }

    fn tell(&mut self, now: Now, event: Event) {
        match event {
            Event::AllocationCreated(record) => {
                match record.via {
                    Via::Stream(stream, _) => self.streams.keep_alive(stream),
                    Via::Datagram(five_tuple) => self.listeners.count(&five_tuple.server, true),
                }
                self.tell_session(Event::AllocationCreated(record));
            }
            Event::AllocationGoesOn(_) => self.tell_session(event),
            Event::AllocationEnded(record) => self.tell_end(now, record),
            Event::Refused { .. } => {
                // Lost first in a flood; the counters have them all.
                let _ = self.events.refusals.try_send(event);
            }
        }
    }

    /// Tells of an end once every byte of it is decided: a slow reader may still get what waits in its queue.
    fn tell_end(&mut self, now: Now, record: Box<SessionRecord>) {
        if let Via::Datagram(five_tuple) = record.via {
            self.listeners.count(&five_tuple.server, false);
        }
        let mut record = Some(record);
        if let Some(Via::Stream(stream, _)) = record.as_ref().map(|record| record.via) {
            self.streams.expect_allocation(stream, now.ticks);
            if let Some(stream) = self.streams.find(stream).and_then(|at| self.streams.get_mut(at)) {
                record = record.and_then(|record| stream.hold_back(record));
            }
        }
        if let Some(record) = record {
            self.tell_session(Event::AllocationEnded(record));
        }
    }

    fn tell_session(&self, event: Event) {
        if self.events.sessions.try_send(event).is_err() {
            self.net.events_lost.add(1);
        }
    }

    /// Tells of the ends that waited for a stream's queue.
    fn tell_decided(&mut self, at: usize) {
        while let Some(record) = self.streams.get_mut(at).and_then(super::tcp::Stream::decided) {
            self.tell_session(Event::AllocationEnded(record));
        }
    }
}
