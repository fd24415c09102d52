//! Payload from one worker to another: two clients whose relayed addresses are each other's peers.
//!
//! One ring of bytes for each pair of workers and each way, bounded; nothing waits for it and nothing is
//! allocated. What finds no room is dropped and counted by the producer. The last quarter of a ring is
//! for client networks that had less than a quarter of what it took lately, so none can fill it alone.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rtrb::chunks::ChunkError;
use rtrb::{Consumer, Producer, RingBuffer};

use super::fair_limit::Source;
use super::sys::Waker;
use crate::address::PeerAddress;
use crate::protocol::ids::WorkerId;

/// Bytes of one ring: some 2,500 packets of audio, or 400 of video.
const RING_BYTES: usize = 512 * 1024;

/// The last so many bytes are for client networks that had less than as many of the last [`RING_BYTES`].
const NETWORK_BYTES_MAX: usize = RING_BYTES / 4;

/// Networks are told apart by hash only, with a key of the process; those that fall together share.
const NETWORK_CELLS: usize = 256;

const ADDRESS_BYTES: usize = 18;

/// Before each payload: its length, its traffic class, its sender, its receiver.
const HEAD_BYTES: usize = 2 + 1 + 2 * ADDRESS_BYTES;

/// Two relayed addresses, and how much goes from the one to the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) from: PeerAddress,
    pub(super) to: PeerAddress,
    pub(super) len: usize,
    /// DSCP and ECN.
    pub(super) class: u8,
}

fn write_address(bytes: &mut [u8], address: PeerAddress) {
    // IPv4 as a mapped address: relayed addresses are never mapped ones.
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
}

fn read_address(bytes: &[u8; ADDRESS_BYTES]) -> PeerAddress {
    let [ip @ .., high, low] = *bytes;
    let ip = IpAddr::from(ip).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes([high, low])).into()
}

impl Item {
    fn write(self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..2].copy_from_slice(&(self.len as u16).to_be_bytes());
        head[2] = self.class;
        write_address(&mut head[3..3 + ADDRESS_BYTES], self.from);
        write_address(&mut head[3 + ADDRESS_BYTES..], self.to);
        head
    }

    fn read(head: [u8; HEAD_BYTES]) -> Self {
        let [high, low, class, addresses @ ..] = head;
        let [from, to]: [[u8; ADDRESS_BYTES]; 2] = [0, ADDRESS_BYTES].map(|start| {
            let mut address = [0; ADDRESS_BYTES];
            address.copy_from_slice(&addresses[start..start + ADDRESS_BYTES]);
            address
        });
        Self {
            from: read_address(&from),
            to: read_address(&to),
            len: usize::from(u16::from_be_bytes([high, low])),
            class,
        }
    }
}

/// How many of the bytes that a ring took lately were of which client network.
struct RecentBytes {
    key: RandomState,
    of_network: Box<[u32; NETWORK_CELLS]>,
    of_all: u32,
}

impl RecentBytes {
    fn new() -> Self {
        Self { key: RandomState::new(), of_network: Box::new([0; NETWORK_CELLS]), of_all: 0 }
    }

    fn cell(&self, source: Source) -> usize {
        self.key.hash_one(source) as usize % NETWORK_CELLS
    }

    fn is_over_share(&self, source: Source, bytes: usize) -> bool {
        self.of_network[self.cell(source)] as usize + bytes > NETWORK_BYTES_MAX
    }

    /// What lies back further counts half, and half of that.
    fn add(&mut self, source: Source, bytes: usize) {
        let cell = self.cell(source);
        self.of_network[cell] += bytes as u32;
        self.of_all += bytes as u32;
        if self.of_all as usize >= RING_BYTES {
            self.of_network.iter_mut().for_each(|bytes| *bytes /= 2);
            self.of_all /= 2;
        }
    }
}

/// The way to one other worker.
struct RingProducer {
    ring: Producer<u8>,
    recent: RecentBytes,
    waker: Arc<Waker>,
    /// It has something that its consumer was not woken for.
    has_pushed: bool,
}

/// One worker's ways to the others.
#[derive(Default)]
pub(super) struct Producers {
    by_worker: Vec<Option<RingProducer>>,
    has_pushed: bool,
}

impl Producers {
    /// Gives a payload of this client network to the worker of `item.to`; `false` if there is no room, or none for it.
    pub(super) fn push(&mut self, worker: WorkerId, source: Source, item: Item, payload: &[u8]) -> bool {
        let Some(Some(producer)) = self.by_worker.get_mut(usize::from(worker.0)) else { return false };
        let bytes = HEAD_BYTES + payload.len();
        if producer.ring.slots() < NETWORK_BYTES_MAX + bytes && producer.recent.is_over_share(source, bytes) {
            return false;
        }
        let Ok(mut chunk) = producer.ring.write_chunk(bytes) else { return false };
        let (first, second) = chunk.as_mut_slices();
        let head = item.write();
        let mut places = first.iter_mut().chain(second.iter_mut());
        head.iter().zip(&mut places).for_each(|(byte, place)| *place = *byte);
        let (first, second) = chunk.as_mut_slices();
        copy_in(first, second, HEAD_BYTES, payload);
        chunk.commit_all();
        producer.recent.add(source, bytes);
        producer.has_pushed = true;
        self.has_pushed = true;
        true
    }

    /// Wakes the consumers that were given something; once per turn.
    pub(super) fn wake(&mut self) {
        if !std::mem::take(&mut self.has_pushed) {
            return;
        }
        for producer in self.by_worker.iter_mut().flatten() {
            if std::mem::take(&mut producer.has_pushed) {
                producer.waker.wake();
            }
        }
    }
}

/// Copies behind the first `skip` bytes of two slices that are one.
fn copy_in(first: &mut [u8], second: &mut [u8], skip: usize, bytes: &[u8]) {
    let (first, second) = match first.get_mut(skip..) {
        Some(first) => (first, second),
        None => {
            let gone = skip - first.len();
            (&mut [][..], &mut second[gone..])
        }
    };
    let (here, there) = bytes.split_at(first.len().min(bytes.len()));
    first[..here.len()].copy_from_slice(here);
    second[..there.len()].copy_from_slice(there);
}

/// What the other workers give to one.
#[derive(Default)]
pub(super) struct Consumers {
    rings: Vec<Consumer<u8>>,
    next: usize,
}

impl Consumers {
    /// Whether something waits.
    pub(super) fn is_empty(&self) -> bool {
        self.rings.iter().all(Consumer::is_empty)
    }

    /// Takes the next payload into `slot`, the other workers in turn.
    pub(super) fn pop(&mut self, slot: &mut [u8]) -> Option<Item> {
        for _ in 0..self.rings.len() {
            self.next = (self.next + 1) % self.rings.len();
            if let Ok(item) = pop(&mut self.rings[self.next], slot) {
                return Some(item);
            }
        }
        None
    }
}

fn pop(ring: &mut Consumer<u8>, slot: &mut [u8]) -> Result<Item, ChunkError> {
    let mut head = [0; HEAD_BYTES];
    {
        let chunk = ring.read_chunk(HEAD_BYTES)?;
        let (first, second) = chunk.as_slices();
        head[..first.len()].copy_from_slice(first);
        head[first.len()..].copy_from_slice(second);
        // Not committed: it is read again, together with what follows.
    }
    let item = Item::read(head);
    let chunk = ring.read_chunk(HEAD_BYTES + item.len)?;
    let (first, second) = chunk.as_slices();
    let (first, second) = match first.get(HEAD_BYTES..) {
        Some(first) => (first, second),
        None => (&[][..], &second[HEAD_BYTES - first.len()..]),
    };
    slot[..first.len()].copy_from_slice(first);
    slot[first.len()..item.len].copy_from_slice(second);
    chunk.commit_all();
    Ok(item)
}

/// Rings between all pairs of workers, in the order of their wakers.
pub(super) fn rings(wakers: &[Arc<Waker>]) -> Vec<(Producers, Consumers)> {
    let mut ends: Vec<(Producers, Consumers)> = wakers.iter().map(|_| Default::default()).collect();
    for from in 0..wakers.len() {
        for (to, waker) in wakers.iter().enumerate() {
            let way = (from != to).then(|| {
                let (ring, consumer) = RingBuffer::new(RING_BYTES);
                ends[to].1.rings.push(consumer);
                RingProducer { ring, recent: RecentBytes::new(), waker: Arc::clone(waker), has_pushed: false }
            });
            ends[from].0.by_worker.push(way);
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> [(Producers, Consumers); 2] {
        let wakers: Vec<_> = (0..2).map(|_| Arc::new(Waker::new().unwrap())).collect();
        rings(&wakers).try_into().ok().unwrap()
    }

    fn source(number: u8) -> Source {
        IpAddr::from([192, 0, 2, number]).into()
    }

    fn item(from: &str, to: &str, len: usize) -> Item {
        let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().unwrap().into());
        Item { from, to, len, class: 0xB8 }
    }

    #[test]
    fn payloads_arrive_whole_and_in_order_around_the_end_of_the_ring() {
        let [(mut producers, _), (_, mut consumers)] = two();
        let mut slot = vec![0; 65_536];
        assert_eq!(consumers.pop(&mut slot), None);
        for number in 0..3_000_usize {
            let len = [0, 1, 160, 1_200, 37, 65_507][number % 6];
            let payload: Vec<u8> = (0..len).map(|at| (at + number) as u8).collect();
            let item = if number % 2 == 0 {
                item("9.9.9.9:50000", "9.9.9.9:65535", len)
            } else {
                item("[2a00::1]:1", "[2a00::2]:50001", len)
            };
            assert!(producers.push(WorkerId(1), source(1), item, &payload));
            assert!(!consumers.is_empty());
            assert_eq!(consumers.pop(&mut slot), Some(item));
            assert_eq!(slot[..len], payload, "{number}");
        }
        assert!(consumers.is_empty());
    }

    #[test]
    fn a_full_ring_takes_nothing_more_and_loses_nothing_that_it_took() {
        let [(mut producers, _), (_, mut consumers)] = two();
        let mut given = 0_u32;
        let mut network = 0;
        let mut push = |network, given: u32| {
            let item = item("1.1.1.1:1", "2.2.2.2:2", 1_200);
            producers.push(WorkerId(1), source(network), item, &given.to_be_bytes().repeat(300))
        };
        while network < 9 {
            if push(network, given) {
                given += 1;
            } else {
                network += 1;
            }
        }
        assert!((400..450).contains(&given), "{given}");
        let mut slot = vec![0; 65_536];
        for number in 0..given {
            assert!(consumers.pop(&mut slot).is_some());
            assert_eq!(slot[..4], number.to_be_bytes());
        }
        assert_eq!(consumers.pop(&mut slot), None);
        assert!(producers.push(WorkerId(1), source(1), item("1.1.1.1:1", "2.2.2.2:2", 4), b"more"));
    }

    #[test]
    fn a_network_that_floods_leaves_room_for_another() {
        let [(mut producers, _), (_, mut consumers)] = two();
        let mut slot = vec![0; 65_536];
        let mut push = |network, len| {
            let item = item("1.1.1.1:1", "2.2.2.2:2", len);
            producers.push(WorkerId(1), source(network), item, &vec![0; len])
        };
        let mut kept_out = 0;
        for turn in 0..200 {
            let flood = (0..1_000).take_while(|_| push(1, 1_200)).count();
            assert!(turn > 0 || (300..330).contains(&flood), "three quarters: {flood}");
            // A hundred calls' worth of audio in the same turn.
            kept_out += (0..100).filter(|_| !push(2, 160)).count();
            // The worker behind takes what it can in a turn, which is less than comes.
            let _ = (0..250).filter(|_| consumers.pop(&mut slot).is_some()).count();
        }
        assert_eq!(kept_out, 0);
    }

    #[test]
    fn there_is_no_way_to_oneself_or_to_nobody() {
        let [(mut producers, _), _] = two();
        for worker in [0, 2] {
            assert!(!producers.push(WorkerId(worker), source(1), item("1.1.1.1:1", "2.2.2.2:2", 1), b"x"));
        }
    }
}
