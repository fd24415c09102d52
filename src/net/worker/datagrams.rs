//! A worker's datagrams: from clients, from peers, from the other workers, and all that is sent.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;

use super::listeners::Listener;
use super::{BATCH, LISTENER_SLOT, Worker};
use crate::net::handover::Handed;
use crate::net::sys::{self, Arena, Part, Received, Segmentation};
use crate::net::tcp::Sent;
use crate::net::udp::{InPlace, drop_reason};
use crate::net::{listen, relay_socket};
use crate::protocol::address::{FiveTuple, PeerAddress, ServerAddress, Transport, Via};
use crate::protocol::binding::ANSWER_BYTES_MAX;
use crate::protocol::border::{AllocationId, DropReason, Input, PacketMeta, Relay, Way};
use crate::protocol::time::Now;
use crate::wire::{Class, classify};

/// Requests read at once: each costs as much as many packets, and what is never used takes no memory.
const CONTROL_BATCH: usize = 16;

/// Datagrams read at once from a relayed socket that is ready again and again.
const RELAY_BATCH: usize = 16;

/// What may wait at the data socket of a listener while its worker never sleeps.
const LISTENER_BUSY_BYTES: usize = 512 << 10;

/// Slots read at once from a socket whose datagrams are coalesced: each may hold dozens.
const COALESCED_BATCH: usize = 4;

/// Datagrams of a batch that must have the neighbour's sender and size to count as coming in a row.
const IN_A_ROW: usize = 3;

/// Whether a batch would have been fewer pieces, had the kernel coalesced it.
#[derive(Default)]
struct Row {
    last: Option<(SocketAddr, usize)>,
    neighbours: usize,
    pieces: usize,
}

impl Row {
    fn add(&mut self, received: &Received) {
        let this = (received.from, received.segment);
        self.neighbours += usize::from(self.last == Some(this)) + received.len.saturating_sub(1) / received.segment;
        self.last = Some(this);
        self.pieces += 1;
    }

    const fn is_one(&self) -> bool {
        self.neighbours >= IN_A_ROW && self.neighbours * 2 >= self.pieces
    }
}

impl Worker {
    // ---- clients

    pub(super) fn on_listener(&mut self, now: Now, at: usize) {
        let Some(listener) = self.listeners.get_mut(at) else { return };
        if let Some(bytes) = self.room.on_read(&mut listener.roominess, listen::RECEIVE_BUFFER)
            && listener.control.is_some()
        {
            // The one of its kind may hold more than one of many. What was passed has the size that its owner chose.
            let _ = sys::set_receive_buffer(listener.socket.as_fd(), bytes.max(LISTENER_BUSY_BYTES));
        }
        let most = if listener.appetite.coalesces() { COALESCED_BATCH } else { BATCH };
        let wanted = listener.appetite.ready(self.loops, most);
        self.read_listener(now, at, wanted);
    }

    /// What is not data has a socket of its own, which a flood of data can't fill.
    pub(super) fn on_control(&mut self, now: Now, at: usize) {
        // What came before a request was sent before it: mostly, that is. Only the kernel knew for sure.
        self.read_listener(now, at, BATCH);
        let Some(listener) = self.listeners.get_mut(at) else { return };
        let wanted = listener.control_appetite.ready(self.loops, CONTROL_BATCH);
        self.make_room();
        let Some(control) = self.listeners.get(at).and_then(|listener| listener.control.as_ref()) else { return };
        let Ok(count) = self.receive.receive(control.as_fd(), &mut self.arena, LISTENER_SLOT, wanted) else { return };
        if let Some(listener) = self.listeners.get_mut(at) {
            listener.control_appetite.took(count);
        }
        self.on_received(now, at, count);
        self.flush_to_peer();
    }

    /// Every listener has its turn before more is read from relayed sockets: however many of those are ready, a request
    /// waits for no more than one batch of theirs.
    pub(super) fn visit_listeners(&mut self, now: Now) {
        self.since_listeners = 0;
        for at in self.listeners.places() {
            let Some(listener) = self.listeners.get(at) else { continue };
            if listener.control.is_some() {
                self.on_control(now, at);
            } else {
                self.read_listener(now, at, BATCH);
            }
        }
    }

    /// The listeners' slots are free afterwards.
    fn make_room(&mut self) {
        if self.pinned {
            self.flush();
        }
    }

    fn read_listener(&mut self, now: Now, at: usize, wanted: usize) {
        self.make_room();
        // A message of this very turn may have closed it.
        let Some(listener) = self.listeners.get(at) else { return };
        let coalesces = listener.appetite.coalesces() || listener.users.coalesces();
        if wanted == 1 && !listener.is_wildcard() && !coalesces {
            return self.read_listener_once(now, at);
        }
        let received = self.receive.receive(listener.socket.as_fd(), &mut self.arena, LISTENER_SLOT, wanted);
        let count = received.unwrap_or(0);
        if let Some(listener) = self.listeners.get_mut(at) {
            listener.appetite.took(count);
        }
        if count == 0 {
            return;
        }
        let row = self.on_received(now, at, count);
        self.flush_to_peer();
        if self.settings.segmentation_offload
            && let Some(listener) = self.listeners.get_mut(at)
        {
            listener.adapt(row);
        }
    }

    /// A plain receive touches less than a batch of one; it can tell neither which address of ours was asked nor what was
    /// coalesced.
    fn read_listener_once(&mut self, now: Now, at: usize) {
        let Some(listener) = self.listeners.get(at) else { return };
        let (address, slot) = (listener.address, LISTENER_SLOT);
        let Ok((len, from)) = listener.socket.recv_from(self.arena.slot_mut(slot)) else { return };
        self.net.listener_batches.add(1);
        let five_tuple = FiveTuple { client: from.into(), server: address.into(), transport: Transport::Udp };
        self.on_datagram(now, Via::Datagram(five_tuple), at, Arena::part_of(slot, 0, len));
        self.flush_to_peer();
    }

    /// Handles what fills the listeners' slots; tells whether it came in a row.
    fn on_received(&mut self, now: Now, at: usize, count: usize) -> bool {
        let Some(address) = self.listeners.get(at).map(|listener| listener.address) else { return false };
        let (mut row, mut datagrams) = (Row::default(), 0);
        for index in 0..count {
            let Some(received) = self.receive.get(index, LISTENER_SLOT) else {
                self.counters.dropped(DropReason::TooBig, 1, 0);
                continue;
            };
            row.add(&received);
            let server = match received.to {
                Some(ip) => ServerAddress::new(ip, address.port()),
                None => address.into(),
            };
            let via = Via::Datagram(FiveTuple { client: received.from.into(), server, transport: Transport::Udp });
            for (start, len) in received.datagrams() {
                datagrams += 1;
                self.on_datagram(now, via, at, Arena::part_of(received.slot, start, len));
            }
        }
        self.net.listener_batches.add(datagrams);
        self.net.coalesced.add((datagrams - count.min(datagrams)) as u64);
        row.is_one()
    }

    fn on_datagram(&mut self, now: Now, via: Via, listener: usize, part: Part) {
        let bytes = self.arena.part(part);
        match classify(bytes) {
            Class::ChannelData | Class::SendIndication => self.on_data(now, &via, part),
            Class::Stun if self.is_closed_to(listener, &via) => {
                self.counters.dropped(DropReason::ListenerLeaving, 1, part.len as u64);
            }
            Class::Stun => {
                let mut answer = [0; ANSWER_BYTES_MAX];
                match self.server.answer_binding(&via, bytes, &mut answer) {
                    Some(0) => {}
                    Some(len) => self.reply_datagram(listener, via.five_tuple(), &answer[..len]),
                    None => {
                        self.flush_payload();
                        let bytes = self.arena.part(part);
                        self.server.handle_input(now, Input::Message { via, bytes });
                        self.drain(now);
                    }
                }
            }
            Class::Neither => self.counters.dropped(DropReason::NotStun, 1, part.len as u64),
        }
    }

    /// ChannelData or a Send indication, of whatever client.
    pub(super) fn on_data(&mut self, now: Now, via: &Via, part: Part) {
        let bytes = self.arena.part(part);
        match self.server.relay_from_client(now, via, PacketMeta::default(), bytes) {
            Relay::ToPeer { allocation, to, meta, payload } => {
                let (to, part) = (self.relays.to_local(to), self.arena.locate(payload));
                self.queue_to_peer(allocation, to, meta, part);
            }
            Relay::ToRelayed { allocation, from, to, payload } => {
                let payload = self.arena.locate(payload);
                // What framed it is read by now; of a stream the frames before it may still wait.
                let room = (!via.is_stream()).then(|| payload.start - part.start);
                self.hand_over(now, allocation, (from, to), payload, room);
            }
            Relay::ToClient { .. } | Relay::Drop(_) => {}
        }
    }

    /// Whether the configuration has this listener no more, and this client no session there.
    fn is_closed_to(&self, listener: usize, via: &Via) -> bool {
        self.listeners.get(listener).is_some_and(|listener| listener.is_leaving) && !self.server.has_allocation(via)
    }

    fn queue_to_peer(&mut self, allocation: AllocationId, to: SocketAddr, meta: PacketMeta, part: Part) {
        if meta.dont_fragment {
            self.flush_to_peer();
            self.send_unfragmented(allocation, to, part);
            return;
        }
        if self.to_peer.is_long() {
            self.flush_to_peer();
        }
        match self.relays.get_mut(allocation) {
            Some(relay) => self.to_peer.push_to_peer(to, part, allocation, &mut relay.to_peer),
            None => self.server.not_sent(allocation, Way::ToPeer, 1, part.len as u64, DropReason::RelayClosed),
        }
    }

    /// RFC 8656 §15: DF for this packet alone; it is an option of the socket, so it is set and taken back.
    fn send_unfragmented(&mut self, allocation: AllocationId, to: SocketAddr, part: Part) {
        let why = match self.relays.get(allocation) {
            None => Some(DropReason::RelayClosed),
            Some(relay) => {
                let (fd, ipv6) = (relay.socket.as_fd(), to.is_ipv6());
                let sent = sys::set_dont_fragment(fd, ipv6, true)
                    .and_then(|()| relay.socket.send_to(self.arena.part(part), to));
                // Without DF again, large datagrams of the others are fragmented as they should be.
                let restored = sys::set_dont_fragment(fd, ipv6, false);
                sent.err().or(restored.err()).map(|error| drop_reason(&error))
            }
        };
        if let Some(why) = why {
            self.server.not_sent(allocation, Way::ToPeer, 1, part.len as u64, why);
        }
    }

    // ---- relayed address to relayed address

    /// Gives a payload to the allocation behind another relayed address of this server: at once if it is this worker's,
    /// else through a ring. The kernel has it only if neither knows the address any more.
    fn hand_over(
        &mut self,
        now: Now,
        allocation: AllocationId,
        (from, to): (PeerAddress, PeerAddress),
        part: Part,
        room: Option<usize>,
    ) {
        let owner = self.relays.owner(to);
        if let Some(owner) = owner.filter(|owner| owner.worker != self.id) {
            if self.givers.give(owner.worker, Handed { from, to, len: part.len }, self.arena.part(part)) {
                self.net.handed_over.add(1);
            } else {
                self.server.not_sent(allocation, Way::ToPeer, 1, part.len as u64, DropReason::InboxFull);
            }
        } else if let Some(id) = owner.and_then(|owner| self.relays.id_at(owner.index, to)) {
            self.net.handed_over.add(1);
            self.pinned = true;
            self.on_peer_datagram(now, id, from, part, room);
        } else {
            self.queue_to_peer(allocation, self.relays.to_local(to), PacketMeta::default(), part);
        }
    }

    /// Takes what other workers gave, a batch at the most.
    pub(super) fn take_over(&mut self, now: Now) {
        for _ in 0..BATCH {
            if self.takers.is_empty() {
                return;
            }
            if self.next_slot == BATCH {
                self.flush();
            }
            let slot = self.next_slot;
            let Some(Handed { from, to, len }) = self.takers.take(self.arena.slot_mut(slot)) else { return };
            self.since_listeners += 1;
            match self.relays.owner(to).and_then(|owner| self.relays.id_at(owner.index, to)) {
                Some(id) => {
                    self.next_slot = slot + 1;
                    self.on_peer_datagram(now, id, from, Arena::part_of(slot, 0, len), Some(0));
                }
                // It closed in the meantime; the kernel would find nobody either.
                None => self.counters.dropped(DropReason::RelayClosed, 1, len as u64),
            }
        }
    }

    // ---- peers

    pub(super) fn on_relay(&mut self, now: Now, at: usize) {
        let loops = self.loops;
        let Some(relay) = self.relays.at_mut(at) else { return };
        let coalesces = relay.appetite.coalesces();
        let wanted = relay.appetite.ready(loops, if coalesces { COALESCED_BATCH } else { RELAY_BATCH });
        let id = relay.id;
        if let Some(bytes) = self.room.on_read(&mut relay.roominess, relay_socket::RECEIVE_BUFFER) {
            // As far as the system lets us: it is about delay, nothing depends on it.
            let _ = sys::set_receive_buffer(relay.socket.as_fd(), bytes);
        }
        if self.next_slot + wanted > BATCH {
            self.flush();
        }
        if wanted > 1 || coalesces { self.read_relay_batch(now, id, wanted) } else { self.read_relay_once(now, id) }
    }

    fn read_relay_once(&mut self, now: Now, id: AllocationId) {
        let slot = self.next_slot;
        let Some(relay) = self.relays.get(id) else { return };
        if let Ok((len, from)) = relay.socket.recv_from(self.arena.slot_mut(slot)) {
            self.net.relayed_batches.add(1);
            self.since_listeners += 1;
            self.next_slot = slot + 1;
            let peer = self.relays.to_advertised(from);
            self.on_peer_datagram(now, id, peer, Arena::part_of(slot, 0, len), Some(0));
        }
    }

    fn read_relay_batch(&mut self, now: Now, id: AllocationId, wanted: usize) {
        let first = self.next_slot;
        let Some(relay) = self.relays.get(id) else { return };
        let received = self.receive.receive(relay.socket.as_fd(), &mut self.arena, first, wanted);
        let count = received.unwrap_or(0);
        let (mut row, mut datagrams) = (Row::default(), 0);
        self.next_slot = first + count;
        for index in 0..count {
            let Some(received) = self.receive.get(index, first) else {
                self.counters.dropped(DropReason::TooBig, 1, 0);
                continue;
            };
            row.add(&received);
            let peer = self.relays.to_advertised(received.from);
            for (start, len) in received.datagrams() {
                datagrams += 1;
                self.on_peer_datagram(now, id, peer, Arena::part_of(received.slot, start, len), Some(0));
            }
        }
        self.net.relayed_batches.add(datagrams);
        self.net.coalesced.add((datagrams - count.min(datagrams)) as u64);
        self.since_listeners += datagrams;
        let offload = self.settings.segmentation_offload;
        if let Some(relay) = self.relays.get_mut(id) {
            relay.appetite.took(count);
            if offload && !relay.appetite.coalesces() && relay.appetite.note(row.is_one()) {
                relay.appetite.coalesce(relay.socket.as_fd());
            }
        }
    }

    /// `room` are bytes before the payload that nobody needs any more; `None` where other datagrams lie close before it.
    fn on_peer_datagram(&mut self, now: Now, id: AllocationId, peer: PeerAddress, part: Part, room: Option<usize>) {
        let payload = self.arena.part(part);
        let verdict = self.server.relay_from_peer(now, id, peer, PacketMeta::default(), payload);
        let Relay::ToClient { allocation, via, head, .. } = verdict else { return };
        match via {
            Via::Datagram(five_tuple) => {
                let at = self.listeners.serving(&five_tuple.server);
                if let Some(at) = at.filter(|at| self.listeners.get(*at).is_some_and(|of| of.queue.is_long())) {
                    self.flush_listener(at);
                }
                let (Some(listener), Some(relay)) =
                    (at.and_then(|at| self.listeners.get_mut(at)), self.relays.get_mut(allocation))
                else {
                    self.server.not_sent(allocation, Way::ToClient, 1, part.len as u64, DropReason::RelayClosed);
                    return;
                };
                let from = listener.is_wildcard().then(|| five_tuple.server.ip());
                let to = (five_tuple.client.into(), from);
                let whole = room.and_then(|room| self.arena.write_head(head.bytes(), part, room));
                let payload = whole.map_or(InPlace::Bare(part), InPlace::WithHead);
                listener.queue.push_to_client(to, &head, payload, allocation, &mut relay.to_client);
            }
            Via::Stream(stream, _) => self.send_to_stream(now, stream, allocation, &head, part),
        }
    }

    // ---- sending

    fn reply_datagram(&mut self, listener: usize, five_tuple: &FiveTuple, bytes: &[u8]) {
        let Some(listener) = self.listeners.get_mut(listener) else { return };
        let from: Option<IpAddr> = listener.is_wildcard().then(|| five_tuple.server.ip());
        listener.queue.push_reply(five_tuple.client.into(), from, bytes);
    }

    pub(super) fn reply(&mut self, now: Now, via: Via, bytes: &[u8]) {
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

    pub(super) fn flush_to_peer(&mut self) {
        for at in 0..self.to_peer.chains() {
            let Some(id) = self.to_peer.select(at) else { continue };
            let (server, arena) = (&mut self.server, &self.arena);
            let mut not_sent = |allocation, bytes, why| server.not_sent(allocation, Way::ToPeer, 1, bytes, why);
            let Some(relay) = self.relays.get_mut(id) else {
                self.to_peer.selected().for_each(|(of, bytes)| not_sent(of, bytes, DropReason::RelayClosed));
                continue;
            };
            let segmentation = if self.settings.segmentation_offload {
                &mut relay.segmentation
            } else {
                &mut Segmentation::OFF.clone()
            };
            let report = self.to_peer.send(&relay.socket, &mut self.send, arena, segmentation, not_sent);
            self.net.note_sent(report);
        }
        self.to_peer.clear();
    }

    pub(super) fn flush_listener(&mut self, at: usize) {
        let server = &mut self.server;
        let Some(listener) = self.listeners.get_mut(at).filter(|listener| !listener.queue.is_empty()) else { return };
        let segmentation = if self.settings.segmentation_offload {
            &mut listener.segmentation
        } else {
            &mut Segmentation::OFF.clone()
        };
        listener.queue.select_all();
        let report = listener.queue.send(
            &listener.socket,
            &mut self.send,
            &self.arena,
            segmentation,
            |allocation, bytes, why| {
                server.not_sent(allocation, Way::ToClient, 1, bytes, why);
            },
        );
        listener.queue.clear();
        self.net.note_sent(report);
    }

    /// Sends all payload that waits: a request is answered, and an allocation ends, after what came before it.
    pub(super) fn flush_payload(&mut self) {
        self.flush_to_peer();
        for at in self.listeners.places() {
            if self.listeners.get(at).is_some_and(|listener| listener.queue.has_payload()) {
                self.flush_listener(at);
            }
        }
    }

    /// Sends everything; the arena is free afterwards.
    pub(super) fn flush(&mut self) {
        self.flush_to_peer();
        for at in self.listeners.places() {
            self.flush_listener(at);
        }
        self.next_slot = 0;
        self.pinned = false;
    }
}

impl Listener {
    /// After a batch that came in a row or did not.
    fn adapt(&mut self, in_a_row: bool) {
        if !self.appetite.coalesces() && self.appetite.note(in_a_row) {
            self.users.coalesce();
        }
        if self.users.coalesces() && !self.appetite.coalesces() {
            self.appetite.coalesce(self.socket.as_fd());
            if let Some(control) = &self.control {
                self.control_appetite.coalesce(control.as_fd());
            }
        }
    }
}
