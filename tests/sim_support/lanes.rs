//! Data both ways: each verdict, and every byte of it counted.

use throughway::address::{Family, PeerAddress, RelayedTransportAddress};
use throughway::protocol::accounting::{Amount, Flow};
use throughway::protocol::border::{PacketMeta, Relay};
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::wire::message::{Known, Message};

use super::config::{RELAY_IPV4, RELAY_IPV6};
use super::model::{Key, Lane};

use super::world::{Due, Packet, World, add, trace};

/// All that a shell may report of a send.
const SEND_FAILURES: [DropReason; 11] = [
    DropReason::Unreachable,
    DropReason::Refused,
    DropReason::Forbidden,
    DropReason::MessageSize,
    DropReason::NoBuffers,
    DropReason::SendFailed,
    DropReason::SlowClient,
    DropReason::StreamClosed,
    DropReason::RelayClosed,
    DropReason::InboxFull,
    DropReason::TooBig,
];

/// Expedited forwarding, ECN-capable.
const CLASS: u8 = 0xBA;

impl World {
    pub fn deliver_data(&mut self, worker: usize, packet: &Packet) {
        let lane = self.model.predict_from_client(&self.config, self.now, &packet.via, &packet.bytes);
        let lane = self.meter(lane);
        trace!(self, "worker {worker} <- {:?} data: {lane:?}", packet.via.five_tuple().client);
        let clock = self.clock();
        let meta = PacketMeta { traffic_class: CLASS, dont_fragment: false };
        let verdict = self.workers[worker].server.relay_from_client(clock, &packet.via, meta, &packet.bytes);
        match (&lane, verdict) {
            (Lane::Stranger(due, _) | Lane::Drop(_, due, _), Relay::Drop(why)) => assert_eq!(why, *due),
            (
                Lane::ToPeer { key, to, start, len, dont_fragment },
                Relay::ToPeer { allocation, to: found, meta, payload },
            ) => {
                let (socket, _) = self.model.sessions[key].socket(key.1, to.family());
                assert_eq!((socket, *to, *dont_fragment), (allocation, found, meta.dont_fragment));
                assert_eq!(meta.traffic_class, CLASS);
                assert!(std::ptr::eq(payload, &packet.bytes[*start..start + len]), "the payload that was sent");
                assert!(!self.model.is_relayed(*to), "what is relayed to ourselves takes no way through the kernel");
            }
            (
                Lane::ToPeer { key, to, start, len, .. },
                Relay::ToRelayed { allocation, from, to: found, meta, payload },
            ) => {
                assert_eq!(meta.traffic_class, CLASS);
                let (socket, relayed) = self.model.sessions[key].socket(key.1, to.family());
                assert_eq!((socket, relayed.0, *to), (allocation, from.0, found));
                assert!(std::ptr::eq(payload, &packet.bytes[*start..start + len]), "the payload that was sent");
                assert!(self.model.is_relayed(*to), "only a relayed address is behind ourselves");
            }
            (due, verdict) => panic!("{due:?} was due, but it was {verdict:?}"),
        }
        if let Lane::ToPeer { key, to, len, .. } = lane {
            let (_, relayed) = self.model.sessions[&key].socket(key.1, to.family());
            if self.sent(key, Direction::ToPeer, to.family(), len) {
                let hairpin = to.ip() == RELAY_IPV4 || to.ip() == RELAY_IPV6;
                let (at, len) = (self.rng.below(1000) as usize, len.min(1200));
                if hairpin {
                    let (to, from) = (RelayedTransportAddress(to.0), PeerAddress(relayed.0));
                    self.after(0, 5, Due::FromPeer { to, from, at, len });
                } else if self.rng.percent(40) {
                    self.after(1, 200, Due::FromPeer { to: relayed, from: to, at, len });
                }
            }
        } else {
            self.count_lane(worker, &lane, Direction::ToPeer);
        }
    }

    pub fn deliver_from_peer(&mut self, key: Key, from: PeerAddress, at: usize, len: usize) {
        let (worker, socket) = key;
        let key = self.model.session_behind(key);
        let lane = self.model.predict_from_peer(&self.config, self.now, key, &from, len);
        let lane = self.meter(lane);
        trace!(self, "worker {worker} <- {from:?} to {key:?} {len} bytes: {lane:?}");
        let clock = self.clock();
        let noise = self.noise.clone();
        let datagram = &noise[at..at + len];
        let verdict = self.workers[worker].server.relay_from_peer(clock, socket, from, PacketMeta::default(), datagram);
        match (&lane, verdict) {
            (Lane::Stranger(due, _) | Lane::Drop(_, due, _), Relay::Drop(why)) => assert_eq!(why, *due),
            (Lane::ToClient { channel, padding, .. }, Relay::ToClient { allocation, via, head, payload, .. }) => {
                assert_eq!((allocation, via), (key.1, self.model.sessions[&key].via), "to the right client");
                assert!(std::ptr::eq(payload, datagram), "the payload that was sent");
                assert_eq!(head.padding(), *padding);
                if let Some(number) = channel {
                    let [n1, n2] = number.to_be_bytes();
                    let [l1, l2] = (len as u16).to_be_bytes();
                    assert_eq!(head.bytes(), [n1, n2, l1, l2]);
                } else {
                    let whole = [head.bytes(), payload, &[0; 3][..head.padding()]].concat();
                    let indication = Message::parse(&whole).expect("a Data indication is well-formed");
                    assert_eq!(indication.message_type().value(), 0x0017);
                    assert_eq!(indication.peer(), Ok(Some(from)));
                    assert_eq!(indication.get(Known::Data), Some(datagram));
                }
            }
            (due, verdict) => panic!("{due:?} was due, but it was {verdict:?}"),
        }
        match lane {
            Lane::ToClient { key, .. } => {
                self.sent(key, Direction::ToClient, from.family(), len);
            }
            lane => self.count_lane(worker, &lane, Direction::ToClient),
        }
    }

    /// What may pass is charged to everybody whose limits it passes.
    pub fn meter(&mut self, lane: Lane) -> Lane {
        let (key, way, peer, len) = match lane {
            Lane::ToPeer { key, len, to, .. } => (key, Direction::ToPeer, to.family(), len),
            Lane::ToClient { key, len, .. } => (key, Direction::ToClient, Family::V4, len),
            Lane::Stranger(..) | Lane::Drop(..) => return lane,
        };
        let session = self.model.sessions.get_mut(&key).expect("it is alive");
        let whose = (key, &session.who, session.client());
        let charged = session.on_the_wire(way, peer, len);
        match self.model.ledger.charge(&self.config, whose, self.now, way, charged) {
            Ok(()) => lane,
            Err(why) => {
                if why == DropReason::OverBudget {
                    session.ends_by = Some((self.now, EndReason::Budget));
                }
                Lane::Drop(key, why, len)
            }
        }
    }

    pub fn count_lane(&mut self, worker: usize, lane: &Lane, way: Direction) {
        match *lane {
            Lane::Stranger(why, bytes) => self.drop_counted(worker, why, bytes),
            Lane::Drop(key, why, len) => {
                self.drop_counted(worker, why, len);
                self.received(key, way, len);
                add(&mut self.flow(key, way).expect("it is alive").dropped, len);
                self.drop_reasoned(key, why, len);
            }
            Lane::ToPeer { .. } | Lane::ToClient { .. } => unreachable!("counted by sent"),
        }
    }

    pub fn flow(&mut self, key: Key, way: Direction) -> Option<&mut Flow> {
        let traffic = &mut self.model.sessions.get_mut(&key)?.traffic;
        Some(match way {
            Direction::ToPeer => &mut traffic.to_peers,
            Direction::ToClient => &mut traffic.to_client,
        })
    }

    pub fn received(&mut self, key: Key, way: Direction, len: usize) {
        let totals = &mut self.model.totals[key.0];
        add(if way == Direction::ToPeer { &mut totals.from_clients } else { &mut totals.from_peers }, len);
        add(&mut self.flow(key, way).expect("it is alive").received, len);
    }

    /// Counts a packet out; `false` when the send failed, or will have.
    pub fn sent(&mut self, key: Key, way: Direction, peer: Family, len: usize) -> bool {
        self.received(key, way, len);
        let session = self.model.sessions.get_mut(&key).expect("it is alive");
        if way == Direction::ToPeer {
            session.wire_to_peers += session.on_the_wire(way, peer, len);
        }
        // What waits for peers is sent before an address is given back.
        let is_at_once = way == Direction::ToPeer && session.named.is_some();
        let totals = &mut self.model.totals[key.0];
        add(if way == Direction::ToPeer { &mut totals.to_peers } else { &mut totals.to_clients }, len);
        self.delivered += 1;
        if !self.rng.percent(12) {
            return true;
        }
        let why = *self.rng.pick(&SEND_FAILURES);
        match self.rng.below(4) {
            _ if is_at_once => self.not_sent(key, way, peer, len, why),
            // A queue is flushed later, sometimes after the allocation's end.
            0 => {
                *self.queued.entry(key).or_default() += 1;
                self.after(0, 100, Due::NotSent(key, way, peer, len, why));
            }
            1 if self.rng.percent(20) => {
                *self.queued.entry(key).or_default() += 1;
                self.after(0, 2_000_000, Due::NotSent(key, way, peer, len, why));
            }
            _ => self.not_sent(key, way, peer, len, why),
        }
        false
    }

    pub fn not_sent(&mut self, key: Key, way: Direction, peer: Family, len: usize, why: DropReason) {
        trace!(self, "worker {} could not send {len} bytes of {key:?}: {why:?}", key.0);
        let socket = match (way, self.model.sessions.get(&key)) {
            (Direction::ToPeer, Some(session)) => session.socket(key.1, peer).0,
            (Direction::ToPeer, None) | (Direction::ToClient, _) => key.1,
        };
        self.workers[key.0].server.not_sent(socket, way, 1, len as u64, why);
        let totals = &mut self.model.totals[key.0];
        let out = if way == Direction::ToPeer { &mut totals.to_peers } else { &mut totals.to_clients };
        *out = *out - Amount { packets: 1, bytes: len as u64 };
        self.drop_counted(key.0, why, len);
        if let Some(session) = self.model.sessions.get_mut(&key) {
            let charged = session.on_the_wire(way, peer, len);
            if way == Direction::ToPeer {
                session.wire_to_peers -= charged;
            }
            self.model.ledger.refund(&self.config, &session.who, session.client(), charged);
        }
        if let Some(flow) = self.flow(key, way) {
            add(&mut flow.dropped, len);
            self.drop_reasoned(key, why, len);
        } else if let Some(record) = self.held_back.get_mut(&key) {
            record.not_sent(way, 1, len as u64, why);
        }
    }

    /// What was queued is decided; the last of it lets a record go that waited for it.
    pub fn decided(&mut self, key: Key) {
        let left = self.queued.get_mut(&key).expect("it was queued");
        *left -= 1;
        if *left == 0 {
            self.queued.remove(&key);
            if let Some(record) = self.held_back.remove(&key) {
                self.written(key.0, record);
            }
        }
    }
}
