//! Payload from one worker to another: two clients whose relayed addresses are each other's peers.
//!
//! One ring of bytes for each pair of workers and each way, bounded; nothing waits for it and nothing is
//! allocated. What finds no room is dropped and counted by whoever gives.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rtrb::chunks::ChunkError;
use rtrb::{Consumer, Producer, RingBuffer};

use super::sys::Waker;
use crate::protocol::address::PeerAddress;
use crate::protocol::border::WorkerId;

/// Bytes of one ring: some 2,500 packets of audio, or 400 of video.
const RING_BYTES: usize = 512 * 1024;

const ADDRESS_BYTES: usize = 18;

/// Before each payload: its length, from whom, to whom.
const HEAD_BYTES: usize = 2 + 2 * ADDRESS_BYTES;

/// Two relayed addresses, and how much goes from the one to the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Handed {
    pub(super) from: PeerAddress,
    pub(super) to: PeerAddress,
    pub(super) len: usize,
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

impl Handed {
    fn write(self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..2].copy_from_slice(&(self.len as u16).to_be_bytes());
        write_address(&mut head[2..2 + ADDRESS_BYTES], self.from);
        write_address(&mut head[2 + ADDRESS_BYTES..], self.to);
        head
    }

    fn read(head: [u8; HEAD_BYTES]) -> Self {
        let [high, low, addresses @ ..] = head;
        let [from, to]: [[u8; ADDRESS_BYTES]; 2] = [0, ADDRESS_BYTES].map(|start| {
            let mut address = [0; ADDRESS_BYTES];
            address.copy_from_slice(&addresses[start..start + ADDRESS_BYTES]);
            address
        });
        Self { from: read_address(&from), to: read_address(&to), len: usize::from(u16::from_be_bytes([high, low])) }
    }
}

/// The way to one other worker.
struct Giver {
    ring: Producer<u8>,
    waker: Arc<Waker>,
    /// It has something that its taker was not woken for.
    gave: bool,
}

/// One worker's ways to the others.
#[derive(Default)]
pub(super) struct Givers {
    by_worker: Vec<Option<Giver>>,
    gave: bool,
}

impl Givers {
    /// Gives a payload to the worker of `handed.to`; `false` if there is no room.
    pub(super) fn give(&mut self, worker: WorkerId, handed: Handed, payload: &[u8]) -> bool {
        let Some(Some(giver)) = self.by_worker.get_mut(usize::from(worker.0)) else { return false };
        let Ok(mut chunk) = giver.ring.write_chunk(HEAD_BYTES + payload.len()) else { return false };
        let (first, second) = chunk.as_mut_slices();
        let head = handed.write();
        let mut places = first.iter_mut().chain(second.iter_mut());
        head.iter().zip(&mut places).for_each(|(byte, place)| *place = *byte);
        let (first, second) = chunk.as_mut_slices();
        copy_in(first, second, HEAD_BYTES, payload);
        chunk.commit_all();
        giver.gave = true;
        self.gave = true;
        true
    }

    /// Wakes whoever was given something; once per turn.
    pub(super) fn wake(&mut self) {
        if !std::mem::take(&mut self.gave) {
            return;
        }
        for giver in self.by_worker.iter_mut().flatten() {
            if std::mem::take(&mut giver.gave) {
                giver.waker.wake();
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
pub(super) struct Takers {
    rings: Vec<Consumer<u8>>,
    next: usize,
}

impl Takers {
    /// Whether something waits.
    pub(super) fn is_empty(&self) -> bool {
        self.rings.iter().all(Consumer::is_empty)
    }

    /// Takes the next payload into `slot`, the other workers in turn.
    pub(super) fn take(&mut self, slot: &mut [u8]) -> Option<Handed> {
        for _ in 0..self.rings.len() {
            self.next = (self.next + 1) % self.rings.len();
            if let Ok(handed) = take(&mut self.rings[self.next], slot) {
                return Some(handed);
            }
        }
        None
    }
}

fn take(ring: &mut Consumer<u8>, slot: &mut [u8]) -> Result<Handed, ChunkError> {
    let mut head = [0; HEAD_BYTES];
    {
        let chunk = ring.read_chunk(HEAD_BYTES)?;
        let (first, second) = chunk.as_slices();
        head[..first.len()].copy_from_slice(first);
        head[first.len()..].copy_from_slice(second);
        // Not committed: it is read again, together with what follows.
    }
    let handed = Handed::read(head);
    let chunk = ring.read_chunk(HEAD_BYTES + handed.len)?;
    let (first, second) = chunk.as_slices();
    let (first, second) = match first.get(HEAD_BYTES..) {
        Some(first) => (first, second),
        None => (&[][..], &second[HEAD_BYTES - first.len()..]),
    };
    slot[..first.len()].copy_from_slice(first);
    slot[first.len()..handed.len].copy_from_slice(second);
    chunk.commit_all();
    Ok(handed)
}

/// Rings between all pairs of workers, in the order of their wakers.
pub(super) fn rings(wakers: &[Arc<Waker>]) -> Vec<(Givers, Takers)> {
    let mut ends: Vec<(Givers, Takers)> = wakers.iter().map(|_| Default::default()).collect();
    for giver in 0..wakers.len() {
        for (taker, waker) in wakers.iter().enumerate() {
            let way = (giver != taker).then(|| {
                let (ring, consumer) = RingBuffer::new(RING_BYTES);
                ends[taker].1.rings.push(consumer);
                Giver { ring, waker: Arc::clone(waker), gave: false }
            });
            ends[giver].0.by_worker.push(way);
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> [(Givers, Takers); 2] {
        let wakers: Vec<_> = (0..2).map(|_| Arc::new(Waker::new().unwrap())).collect();
        rings(&wakers).try_into().ok().unwrap()
    }

    fn handed(from: &str, to: &str, len: usize) -> Handed {
        let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().unwrap().into());
        Handed { from, to, len }
    }

    #[test]
    fn payloads_arrive_whole_and_in_order_around_the_end_of_the_ring() {
        let [(mut givers, _), (_, mut takers)] = two();
        let mut slot = vec![0; 65_536];
        assert_eq!(takers.take(&mut slot), None);
        for number in 0..3_000_usize {
            let len = [0, 1, 160, 1_200, 37, 65_507][number % 6];
            let payload: Vec<u8> = (0..len).map(|at| (at + number) as u8).collect();
            let handed = if number % 2 == 0 {
                handed("9.9.9.9:50000", "9.9.9.9:65535", len)
            } else {
                handed("[2a00::1]:1", "[2a00::2]:50001", len)
            };
            assert!(givers.give(WorkerId(1), handed, &payload));
            assert!(!takers.is_empty());
            assert_eq!(takers.take(&mut slot), Some(handed));
            assert_eq!(slot[..len], payload, "{number}");
        }
        assert!(takers.is_empty());
    }

    #[test]
    fn a_full_ring_takes_nothing_more_and_loses_nothing_that_it_took() {
        let [(mut givers, _), (_, mut takers)] = two();
        let mut given = 0_u32;
        while givers.give(WorkerId(1), handed("1.1.1.1:1", "2.2.2.2:2", 1_200), &given.to_be_bytes().repeat(300)) {
            given += 1;
        }
        assert!((400..450).contains(&given), "{given}");
        let mut slot = vec![0; 65_536];
        for number in 0..given {
            assert!(takers.take(&mut slot).is_some());
            assert_eq!(slot[..4], number.to_be_bytes());
        }
        assert_eq!(takers.take(&mut slot), None);
        assert!(givers.give(WorkerId(1), handed("1.1.1.1:1", "2.2.2.2:2", 4), b"more"));
    }

    #[test]
    fn there_is_no_way_to_oneself_or_to_nobody() {
        let [(mut givers, _), _] = two();
        for worker in [0, 2] {
            assert!(!givers.give(WorkerId(worker), handed("1.1.1.1:1", "2.2.2.2:2", 1), b"x"));
        }
    }
}
