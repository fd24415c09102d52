//! A worker's datagrams: from clients, from peers, from the other workers, and all that is sent.
//!
//! [`Worker`] itself stands in `net::worker`.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;

use super::listeners::Listener;
use super::{BATCH, LISTENER_SLOT, STREAM_SLOT, STREAM_SLOTS, Worker};
use crate::address::{FiveTuple, PeerAddress, ServerAddress, Transport, Via};
use crate::net::fair_limit::Source;
use crate::net::payload_rings::Item;
use crate::net::sys::{
    self, Arena, LargeDatagrams, Part, ReceiveBatch, Received, Segmentation as _, SendBatch, Unsegmented,
};
use crate::net::tcp::Sent;
use crate::net::udp::{DatagramQueue, PayloadPart};
use crate::net::{listen, relay_socket};
use crate::protocol::binding::ANSWER_BYTES_MAX;
use crate::protocol::border::{Input, PacketMeta, Relay};
use crate::protocol::ids::AllocationId;
use crate::protocol::reason::{Direction, DropReason};
use crate::time::Now;
use crate::wire::{Class, classify};

/// Requests read at once: each costs as much as many packets, and what is never used takes no memory.
const CONTROL_BATCH: usize = 16;

/// Datagrams read at once from a relayed socket that is ready again and again.
const RELAY_BATCH: usize = 16;

/// Datagrams handed to the kernel in one call: a burst's worth of segments.
const SEND_BATCH: usize = 256;

/// What may wait at the data socket of a listener while its worker never sleeps.
const LISTENER_BUSY_BYTES: usize = 512 << 10;

/// Datagrams of a batch that must have the neighbour's sender and size to count as coming in a row.
const IN_A_ROW: usize = 3;

/// Whether a batch would have been fewer pieces, had the kernel coalesced it.
#[derive(Default)]
struct BatchShape {
    last: Option<(SocketAddr, usize)>,
    neighbours: usize,
    pieces: usize,
}

impl BatchShape {
    /// One more piece; only what was relayed may form a row.
    fn add(&mut self, received: &Received, is_relayed: bool) {
        let this = (received.from, received.segment);
        if is_relayed {
            let others = received.len.saturating_sub(1) / received.segment;
            self.neighbours += usize::from(self.last == Some(this)) + others;
        }
        self.last = is_relayed.then_some(this);
        self.pieces += 1;
    }

    const fn is_one(&self) -> bool {
        self.neighbours >= IN_A_ROW && self.neighbours * 2 >= self.pieces
    }
}

/// Datagrams that were received together.
#[derive(Clone, Copy)]
enum Batch {
    /// So many buffers from the listener at this place.
    Listener { at: usize, count: usize },
    /// So many buffers from an allocation's relayed socket, from this slot of the arena on.
    Relay { id: AllocationId, first: usize, count: usize },
}

/// Where a worker's datagrams lie between their receipt and their sending.
///
/// The slots of the arena are filled in order. What was queued refers to them, so that a slot is filled again only after a
/// flush: [`Worker::flush`] for those of relayed sockets and of clients, whose payload waits for clients,
/// [`Worker::flush_to_peer`] for those of listeners and streams.
pub(super) struct Datagrams {
    pub(super) arena: Arena,
    receive: ReceiveBatch,
    send: SendBatch,
    /// The next slot for what relayed sockets and other workers bring.
    next_slot: usize,
    to_peer: DatagramQueue,
    /// Whether what waits for a client lies where listeners or streams are read to.
    pub(super) pinned: bool,
    /// The batch that is being handled, and how many of its datagrams have had their turn.
    batch: Option<Batch>,
    handled: usize,
    /// Packets are on their way to the kernel: whether they have left is not known if something goes wrong now.
    pub(super) is_sending: bool,
    /// All datagrams that ever came behind another one of the same sender and size.
    pub(super) in_rows: u64,
    /// Datagrams read since the listeners had their turn.
    pub(super) since_listeners: usize,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self {
            arena: Arena::new(STREAM_SLOT + STREAM_SLOTS),
            receive: ReceiveBatch::new(BATCH),
            send: SendBatch::new(SEND_BATCH),
            next_slot: 0,
            to_peer: DatagramQueue::default(),
            pinned: false,
            batch: None,
            handled: 0,
            is_sending: false,
            in_rows: 0,
            since_listeners: 0,
        }
    }

    /// Whether a batch was given up in the middle.
    pub(super) const fn has_batch(&self) -> bool {
        self.batch.is_some()
    }
}

impl Worker {
    // ---- clients

    pub(super) fn on_listener(&mut self, now: Now, at: usize) {
        let Some(listener) = self.listeners.get_mut(at) else { return };
        if let Some(bytes) = self.receive_buffers.on_read(&mut listener.buffer_state, listen::RECEIVE_BUFFER)
            && listener.control.is_some()
        {
            // The one of its kind may hold more than one of many. What was passed has the size that its owner chose.
            let _ = sys::set_receive_buffer(listener.socket.as_fd(), bytes.max(LISTENER_BUSY_BYTES));
        }
        let most = listener.read_budget.most(BATCH);
        let wanted = listener.read_budget.ready(self.loops, most);
        self.read_listener(now, at, wanted);
    }

    /// What is not data has a socket of its own, which a flood of data can't fill.
    pub(super) fn on_control(&mut self, now: Now, at: usize) {
        // What came before a request was sent before it: mostly, that is. Only the kernel knew for sure.
        self.read_listener(now, at, BATCH);
        let Some(listener) = self.listeners.get_mut(at) else { return };
        // What the kernel coalesced may hold 64 requests.
        let most = if listener.control_read_budget.coalesces() { 1 } else { CONTROL_BATCH };
        let wanted = listener.control_read_budget.ready(self.loops, most);
        let coalesces = listener.control_read_budget.coalesces() || listener.users.coalesces();
        let asks = listener.is_wildcard() || coalesces;
        self.make_room();
        let Some(control) = self.listeners.get(at).and_then(|listener| listener.control.as_ref()) else { return };
        let Ok(count) =
            self.datagrams.receive.receive(control.as_fd(), &mut self.datagrams.arena, LISTENER_SLOT, wanted, asks)
        else {
            return;
        };
        if let Some(listener) = self.listeners.get_mut(at) {
            listener.control_read_budget.took(count);
        }
        self.on_received(now, at, count, 0);
        self.flush_to_peer();
    }

    /// Every listener has its turn before more is read from relayed sockets: however many of those are ready, a request
    /// waits for no more than one batch of theirs.
    pub(super) fn visit_listeners(&mut self, now: Now) {
        self.datagrams.since_listeners = 0;
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
        if self.datagrams.pinned {
            self.flush();
        }
    }

    fn read_listener(&mut self, now: Now, at: usize, wanted: usize) {
        self.make_room();
        // A message of this very turn may have closed it.
        let Some(listener) = self.listeners.get_mut(at) else { return };
        let coalesces = listener.read_budget.coalesces() || listener.users.coalesces();
        let reads_control = listener.is_wildcard() || coalesces;
        let asks = listener.read_budget.asks(listener.socket.as_fd(), reads_control);
        if wanted == 1 && !asks {
            return self.read_listener_once(now, at);
        }
        let (fd, arena) = (listener.socket.as_fd(), &mut self.datagrams.arena);
        let received = self.datagrams.receive.receive(fd, arena, LISTENER_SLOT, wanted, asks);
        let count = received.unwrap_or(0);
        if let Some(listener) = self.listeners.get_mut(at) {
            listener.read_budget.took(count);
        }
        if count == 0 {
            return;
        }
        let row = self.on_received(now, at, count, 0);
        self.flush_to_peer();
        if self.may_coalesce()
            && let Some(listener) = self.listeners.get_mut(at)
        {
            listener.adapt(row);
        }
    }

    /// A plain receive touches less than a batch of one; it can tell neither which address of ours was asked, nor what was
    /// coalesced, nor a traffic class.
    fn read_listener_once(&mut self, now: Now, at: usize) {
        let Some(listener) = self.listeners.get(at) else { return };
        let (address, slot) = (listener.address, LISTENER_SLOT);
        let Ok((len, from)) = listener.socket.recv_from(self.datagrams.arena.slot_mut(slot)) else { return };
        self.net.listener_batches.add(1);
        let five_tuple = FiveTuple { client: from.into(), server: address.into(), transport: Transport::Udp };
        self.on_datagram(now, Via::Datagram(five_tuple), at, (self.datagrams.arena.part_of(slot, 0, len), 0));
        self.flush_to_peer();
    }

    /// Handles what fills the listeners' slots, but for the first `skip` datagrams; tells whether it came in a row.
    fn on_received(&mut self, now: Now, at: usize, count: usize, skip: usize) -> bool {
        let Some(address) = self.listeners.get(at).map(|listener| listener.address) else { return false };
        let (mut row, mut datagrams, mut is_marked) = (BatchShape::default(), 0, false);
        self.datagrams.batch = Some(Batch::Listener { at, count });
        for index in 0..count {
            let Some(received) = self.datagrams.receive.get(index, LISTENER_SLOT) else {
                self.counters.dropped(DropReason::TooBig, 1, 0);
                continue;
            };
            let server = match received.to {
                Some(ip) => ServerAddress::new(ip, address.port()),
                None => address.into(),
            };
            let via = Via::Datagram(FiveTuple { client: received.from.into(), server, transport: Transport::Udp });
            let mut is_relayed = false;
            is_marked |= received.class != 0;
            for (start, len) in received.datagrams() {
                datagrams += 1;
                if datagrams <= skip {
                    continue;
                }
                self.datagrams.handled = datagrams;
                let part = self.datagrams.arena.part_of(received.slot, start, len);
                is_relayed |= self.on_datagram(now, via, at, (part, received.class));
            }
            row.add(&received, is_relayed);
        }
        self.datagrams.batch = None;
        self.datagrams.in_rows += row.neighbours as u64;
        self.net.listener_batches.add(datagrams);
        self.net.coalesced.add((datagrams - count.min(datagrams)) as u64);
        if let Some(listener) = self.listeners.get_mut(at) {
            listener.read_budget.came(datagrams, count);
            if is_marked {
                listener.read_budget.class_came();
            }
        }
        row.is_one()
    }

    /// A datagram with its traffic class. Tells whether it was data of an allocation that may pass.
    fn on_datagram(&mut self, now: Now, via: Via, listener: usize, (part, class): (Part, u8)) -> bool {
        let bytes = self.datagrams.arena.part(part);
        if via.five_tuple().client.port() == 0 {
            // Nothing can be sent there, and the kernel's refusal would look like one of the socket.
            self.counters.dropped(DropReason::NoSourcePort, 1, part.len as u64);
            return false;
        }
        if self.drops_suspect(via.five_tuple(), part.len) {
            return false;
        }
        match classify(bytes) {
            Class::ChannelData | Class::SendIndication => return self.on_data(now, &via, part, class),
            Class::Stun if self.is_closed_to(listener, &via) => {
                self.counters.dropped(DropReason::ListenerLeaving, 1, part.len as u64);
            }
            Class::Stun => {
                let mut answer = [0; ANSWER_BYTES_MAX];
                match self.server.answer_binding(now, &via, bytes, &mut answer) {
                    Some(0) => {}
                    Some(len) => self.reply_datagram(listener, via.five_tuple(), &answer[..len]),
                    None => {
                        self.flush_payload();
                        self.take_in_hand(&via);
                        let bytes = self.datagrams.arena.part(part);
                        self.server.handle_input(now, Input::Message { via, bytes });
                        self.drain(now);
                    }
                }
            }
            Class::Neither => self.counters.dropped(DropReason::NotStun, 1, part.len as u64),
        }
        false
    }

    /// ChannelData or a Send indication, of whatever client, and the traffic class of its datagram; tells whether it may
    /// pass.
    // [8656-14-1]
    pub(super) fn on_data(&mut self, now: Now, via: &Via, part: Part, class: u8) -> bool {
        let bytes = self.datagrams.arena.part(part);
        let meta = PacketMeta { traffic_class: class, dont_fragment: false };
        match self.server.relay_from_client(now, via, meta, bytes) {
            Relay::ToPeer { allocation, to, meta, payload } => {
                // Not a relayed address of ours: where it goes is the routes' business, also if the IP address is.
                let (to, part) = (SocketAddr::from(to), self.datagrams.arena.locate(payload));
                self.queue_to_peer(now, allocation, to, meta, part);
            }
            Relay::ToRelayed { allocation, from, to, meta, payload } => {
                let payload = self.datagrams.arena.locate(payload);
                // What framed it is read by now; of a stream the frames before it may still wait.
                let room = (!via.is_stream()).then(|| payload.start - part.start);
                let source = via.five_tuple().client.ip().into();
                self.hand_over(now, allocation, source, (from, to), meta, (payload, room));
            }
            Relay::Drop(DropReason::Moving) => {
                // Its allocation is asked for at the start of the next turn, which must not wait for an alarm.
                self.waker.wake();
                return false;
            }
            Relay::ToClient { .. } | Relay::Drop(_) => return false,
        }
        true
    }

    /// Whether the configuration has this listener no more, and this client no session there.
    fn is_closed_to(&self, listener: usize, via: &Via) -> bool {
        self.listeners.get(listener).is_some_and(|listener| listener.is_leaving) && !self.server.has_allocation(via)
    }

    fn queue_to_peer(&mut self, now: Now, allocation: AllocationId, to: SocketAddr, meta: PacketMeta, part: Part) {
        if self.datagrams.to_peer.is_long() || meta.dont_fragment {
            self.flush_to_peer();
        }
        let Some(relay) = self.relays.get_mut(allocation) else {
            return self.server.not_sent(allocation, Direction::ToPeer, 1, part.len as u64, DropReason::RelayClosed);
        };
        self.datagrams.to_peer.push_to_peer((to, meta.traffic_class), part, allocation, &mut relay.to_peer);
        if meta.dont_fragment {
            self.send_unfragmented(now, allocation, to);
        }
    }

    /// RFC 8656 §14, §15: DF for the packet alone that waits; it is an option of the socket, so it is set and taken back.
    // [8656-14-3, 8656-15-3]
    fn send_unfragmented(&mut self, now: Now, allocation: AllocationId, to: SocketAddr) {
        let ipv6 = to.is_ipv6();
        // Of a socket of ours it never fails; should it, a datagram in fragments is better than none.
        if let Some(relay) = self.relays.get(allocation) {
            let _ = sys::set_large_datagrams(relay.socket.as_fd(), ipv6, LargeDatagrams::Whole);
        }
        self.flush_to_peer();
        // Without DF again, large datagrams of the others are fragmented as they should be.
        if let Some(relay) = self.relays.get(allocation) {
            let _ = sys::set_large_datagrams(relay.socket.as_fd(), ipv6, LargeDatagrams::InFragmentsOfLink);
        }
        // If it was too large for this machine's own link, that waits there now.
        self.on_icmp_errors(now, allocation, Some(to));
    }

    // ---- relayed address to relayed address

    /// Gives a payload to the allocation behind another relayed address of this server: at once if it is this worker's,
    /// else through a ring. The kernel has it only if neither knows the address any more.
    fn hand_over(
        &mut self,
        now: Now,
        allocation: AllocationId,
        source: Source,
        (from, to): (PeerAddress, PeerAddress),
        meta: PacketMeta,
        (part, room): (Part, Option<usize>),
    ) {
        let owner = self.relays.owner(to);
        if let Some(owner) = owner.filter(|owner| owner.worker != self.id) {
            let item = Item { from, to, len: part.len, class: meta.traffic_class };
            if self.producers.push(owner.worker, source, item, self.datagrams.arena.part(part)) {
                self.net.handed_over.add(1);
            } else {
                self.server.not_sent(allocation, Direction::ToPeer, 1, part.len as u64, DropReason::InboxFull);
            }
        } else if let Some(id) = owner.and_then(|owner| self.relays.id_at(owner.index, to)) {
            self.net.handed_over.add(1);
            self.datagrams.pinned = true;
            self.on_peer_datagram(now, id, from, (part, room), meta.traffic_class);
        } else {
            self.queue_to_peer(now, allocation, self.relays.to_local(to), meta, part);
        }
    }

    /// Takes what other workers gave, a batch at the most.
    pub(super) fn take_over(&mut self, now: Now) {
        for _ in 0..BATCH {
            if self.consumers.is_empty() {
                return;
            }
            if self.datagrams.next_slot == BATCH {
                self.flush();
            }
            let slot = self.datagrams.next_slot;
            let Some(Item { from, to, len, class }) = self.consumers.pop(self.datagrams.arena.slot_mut(slot)) else {
                return;
            };
            self.datagrams.since_listeners += 1;
            match self.relays.owner(to).and_then(|owner| self.relays.id_at(owner.index, to)) {
                Some(id) => {
                    self.datagrams.next_slot = slot + 1;
                    let part = self.datagrams.arena.part_of(slot, 0, len);
                    self.on_peer_datagram(now, id, from, (part, Some(0)), class);
                }
                // It closed in the meantime; the kernel would find no socket either.
                None => self.counters.dropped(DropReason::RelayClosed, 1, len as u64),
            }
        }
    }

    // ---- peers

    pub(super) fn on_relay(&mut self, now: Now, at: usize, failed: bool) {
        let loops = self.loops;
        if failed && let Some(id) = self.relays.at_mut(at).map(|relay| relay.id) {
            self.on_icmp_errors(now, id, None);
        }
        let Some(relay) = self.relays.at_mut(at) else { return };
        let asks = relay.read_budget.asks(relay.socket.as_fd(), relay.read_budget.coalesces());
        let wanted = relay.read_budget.ready(loops, relay.read_budget.most(RELAY_BATCH));
        let id = relay.id;
        if let Some(bytes) = self.receive_buffers.on_read(&mut relay.buffer_state, relay_socket::RECEIVE_BUFFER) {
            // As far as the system lets us: it is about delay, nothing depends on it.
            let _ = sys::set_receive_buffer(relay.socket.as_fd(), bytes);
        }
        if self.datagrams.next_slot + wanted > BATCH {
            self.flush();
        }
        if wanted > 1 || asks { self.read_relay_batch(now, id, wanted, asks) } else { self.read_relay_once(now, id) }
    }

    fn read_relay_once(&mut self, now: Now, id: AllocationId) {
        let slot = self.datagrams.next_slot;
        let Some(relay) = self.relays.get(id) else { return };
        let mut received = relay.socket.recv_from(self.datagrams.arena.slot_mut(slot));
        if received.as_ref().is_err_and(sys::may_be_pending) {
            received = relay.socket.recv_from(self.datagrams.arena.slot_mut(slot));
        }
        if let Ok((len, from)) = received {
            self.net.relayed_batches.add(1);
            self.datagrams.since_listeners += 1;
            self.datagrams.next_slot = slot + 1;
            let peer = self.relays.to_advertised(from);
            let part = self.datagrams.arena.part_of(slot, 0, len);
            self.on_peer_datagram(now, id, peer, (part, Some(0)), 0);
        }
    }

    fn read_relay_batch(&mut self, now: Now, id: AllocationId, wanted: usize, asks: bool) {
        let first = self.datagrams.next_slot;
        let Some(relay) = self.relays.get(id) else { return };
        let (fd, arena) = (relay.socket.as_fd(), &mut self.datagrams.arena);
        let mut received = self.datagrams.receive.receive(fd, arena, first, wanted, asks);
        if received.as_ref().is_err_and(sys::may_be_pending) {
            received = self.datagrams.receive.receive(fd, arena, first, wanted, asks);
        }
        let count = received.unwrap_or(0);
        self.datagrams.next_slot = first + count;
        self.on_relay_batch(now, id, first, count, 0);
    }

    /// Handles what was read from a relayed socket, but for the first `skip` datagrams.
    fn on_relay_batch(&mut self, now: Now, id: AllocationId, first: usize, count: usize, skip: usize) {
        let (mut row, mut datagrams, mut is_marked) = (BatchShape::default(), 0, false);
        self.datagrams.batch = Some(Batch::Relay { id, first, count });
        for index in 0..count {
            let Some(received) = self.datagrams.receive.get(index, first) else {
                self.counters.dropped(DropReason::TooBig, 1, 0);
                continue;
            };
            row.add(&received, true);
            is_marked |= received.class != 0;
            let peer = self.relays.to_advertised(received.from);
            for (start, len) in received.datagrams() {
                datagrams += 1;
                if datagrams <= skip {
                    continue;
                }
                self.datagrams.handled = datagrams;
                let part = self.datagrams.arena.part_of(received.slot, start, len);
                self.on_peer_datagram(now, id, peer, (part, Some(0)), received.class);
            }
        }
        self.datagrams.batch = None;
        self.datagrams.in_rows += row.neighbours as u64;
        self.net.relayed_batches.add(datagrams);
        self.net.coalesced.add((datagrams - count.min(datagrams)) as u64);
        self.datagrams.since_listeners += datagrams;
        let offload = self.may_coalesce();
        if let Some(relay) = self.relays.get_mut(id) {
            relay.read_budget.took(count);
            relay.read_budget.came(datagrams, count);
            if is_marked {
                relay.read_budget.class_came();
            }
            if offload && !relay.read_budget.coalesces() && relay.read_budget.note(row.is_one()) {
                relay.read_budget.coalesce(relay.socket.as_fd());
            }
        }
    }

    /// Whether sockets may begin to coalesce. Not while a new process is told of them: it asks each of its sockets once.
    const fn may_coalesce(&self) -> bool {
        self.settings.segmentation_offload && self.handing.is_none()
    }

    /// `room` are bytes before the payload that are not needed any more; `None` where other datagrams lie close before it.
    /// `class` is its DSCP and ECN.
    // [8656-14-1]
    fn on_peer_datagram(
        &mut self,
        now: Now,
        id: AllocationId,
        peer: PeerAddress,
        (part, room): (Part, Option<usize>),
        class: u8,
    ) {
        if peer.port() == 0 {
            self.counters.dropped(DropReason::NoSourcePort, 1, part.len as u64);
            return;
        }
        let payload = self.datagrams.arena.part(part);
        let meta = PacketMeta { traffic_class: class, dont_fragment: false };
        let verdict = self.server.relay_from_peer(now, id, peer, meta, payload);
        let Relay::ToClient { allocation, via, head, meta, .. } = verdict else { return };
        match via {
            Via::Datagram(five_tuple) => {
                let at = self.listeners.serving(&five_tuple.server);
                if let Some(at) = at.filter(|at| self.listeners.get(*at).is_some_and(|of| of.queue.is_long())) {
                    self.flush_listener(at);
                }
                let (Some(listener), Some(relay)) =
                    (at.and_then(|at| self.listeners.get_mut(at)), self.relays.get_mut(allocation))
                else {
                    self.server.not_sent(allocation, Direction::ToClient, 1, part.len as u64, DropReason::RelayClosed);
                    return;
                };
                let from = listener.is_wildcard().then(|| five_tuple.server.ip());
                let to = (five_tuple.client.into(), from, meta.traffic_class);
                let whole = room.and_then(|room| self.datagrams.arena.write_head(head.bytes(), part, room));
                let payload = whole.map_or(PayloadPart::Bare(part), PayloadPart::WithHead);
                listener.queue.push_to_client(to, &head, payload, allocation, &mut relay.to_client);
            }
            Via::Stream(stream, _) => self.send_to_stream(stream, allocation, &head, part),
        }
    }

    /// Handles what stood behind a datagram that was given up: it is others' packets.
    pub(super) fn finish_batch(&mut self, now: Now) {
        let handled = self.datagrams.handled;
        match self.datagrams.batch.take() {
            Some(Batch::Listener { at, count }) => {
                self.on_received(now, at, count, handled);
            }
            Some(Batch::Relay { id, first, count }) => self.on_relay_batch(now, id, first, count, handled),
            None => {}
        }
        // The next read begins at the first slot.
        self.flush();
    }

    // ---- sending

    // [8489-6.3.1.2-1]
    fn reply_datagram(&mut self, listener: usize, five_tuple: &FiveTuple, bytes: &[u8]) {
        let Some(listener) = self.listeners.get_mut(listener) else { return };
        let from: Option<IpAddr> = listener.is_wildcard().then(|| five_tuple.server.ip());
        listener.queue.push_reply(five_tuple.client.into(), from, bytes);
    }

    // [8489-6.2.2-3, 8489-6.3.1.2-2]
    pub(super) fn reply(&mut self, via: Via, bytes: &[u8]) {
        match via {
            Via::Datagram(five_tuple) => {
                if let Some(at) = self.listeners.serving(&five_tuple.server) {
                    self.reply_datagram(at, &five_tuple, bytes);
                }
            }
            Via::Stream(stream, _) => {
                if let Some(at) = self.streams.find(stream) {
                    let sent = self.streams.send(at, [bytes, &[], &[]], None);
                    // A client that does not even read its replies is cut off: nothing else bounds it.
                    if let Some(stream) = self.streams.get_mut(at).filter(|_| sent != Some(Sent::Taken)) {
                        stream.cut_off();
                        self.streams.make_dirty(at);
                    }
                }
            }
        }
    }

    pub(super) fn flush_to_peer(&mut self) {
        self.datagrams.is_sending = true;
        for at in 0..self.datagrams.to_peer.chains() {
            let Some(id) = self.datagrams.to_peer.select(at) else { continue };
            let (server, arena) = (&mut self.server, &self.datagrams.arena);
            let mut not_sent = |allocation, bytes, why| server.not_sent(allocation, Direction::ToPeer, 1, bytes, why);
            let Some(relay) = self.relays.get_mut(id) else {
                self.datagrams.to_peer.selected().for_each(|(of, bytes)| not_sent(of, bytes, DropReason::RelayClosed));
                continue;
            };
            let (socket, send) = (&relay.socket, &mut self.datagrams.send);
            self.net.note_sent(if self.settings.segmentation_offload {
                relay.segmentation.refresh(self.now);
                self.datagrams.to_peer.send(socket, send, arena, &mut relay.segmentation, not_sent)
            } else {
                self.datagrams.to_peer.send(socket, send, arena, &mut Unsegmented, not_sent)
            });
        }
        self.datagrams.to_peer.clear();
        self.datagrams.is_sending = false;
    }

    pub(super) fn flush_listener(&mut self, at: usize) {
        let server = &mut self.server;
        let Some(listener) = self.listeners.get_mut(at).filter(|listener| !listener.queue.is_empty()) else { return };
        self.datagrams.is_sending = true;
        listener.queue.select_all();
        let (queue, socket, send) = (&listener.queue, &listener.socket, &mut self.datagrams.send);
        let not_sent = |allocation, bytes, why| server.not_sent(allocation, Direction::ToClient, 1, bytes, why);
        let report = if self.settings.segmentation_offload {
            listener.segmentation.refresh(self.now);
            queue.send(socket, send, &self.datagrams.arena, &mut listener.segmentation, not_sent)
        } else {
            queue.send(socket, send, &self.datagrams.arena, &mut Unsegmented, not_sent)
        };
        listener.queue.clear();
        self.datagrams.is_sending = false;
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
        self.datagrams.next_slot = 0;
        self.datagrams.pinned = false;
    }
}

impl Listener {
    /// After a batch that came in a row or did not.
    fn adapt(&mut self, in_a_row: bool) {
        if !self.read_budget.coalesces() && self.read_budget.note(in_a_row) {
            self.users.coalesce();
        }
        if self.users.coalesces() && !self.read_budget.coalesces() {
            self.read_budget.coalesce(self.socket.as_fd());
            if let Some(control) = &self.control {
                self.control_read_budget.coalesce(control.as_fd());
            }
        }
    }
}
