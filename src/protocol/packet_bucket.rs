//! The packets a second of one allocation: all of its packets are counted here, so that it must cost little.

use super::reason::Direction;
use crate::time::Ticks;

/// A limit of packets per second as what [`PacketBucket`] needs of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PacketRate {
    /// What a packet costs, in microseconds; 0 is no limit.
    cost: u32,
    /// How far the bucket may be ahead, in microseconds; at least one packet.
    burst: u32,
}

impl PacketRate {
    /// Beyond a million packets a second there is no limit.
    pub(super) fn new(per_second: Option<u64>, burst_ms: u64) -> Self {
        let cost = per_second.map_or(0, |rate| 1_000_000_u64.checked_div(rate).unwrap_or(1_000_000)) as u32;
        let burst = burst_ms.saturating_mul(1000).min(u64::from(FURTHEST_AHEAD)) as u32;
        Self { cost, burst: burst.max(cost) }
    }
}

/// No bucket is further ahead: a minute of burst, and a packet. What seems to be is older than the clock of 32 bits.
const FURTHEST_AHEAD: u32 = 61_000_000;

/// The token buckets for one allocation's packets, each way: when each is full again, in microseconds modulo 2^32.
///
/// It is not a [`TokenBucket`](super::token_bucket::TokenBucket): every packet of every allocation passes it, so both ways
/// fit into one word of the 256 bytes of an allocation, and as one worker owns it it needs no atomic.
///
/// That clock goes round in 71 minutes. A packet needs a permission, which is renewed every five minutes at least, and
/// [`PacketBucket::settle`] is called then, so no packet meets a value that has gone round.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PacketBucket([u32; 2]);

impl PacketBucket {
    /// As a plain value.
    pub(super) const fn to_state(self) -> [u32; 2] {
        self.0
    }

    /// The bucket that [`PacketBucket::to_state`] described.
    pub(super) const fn from_state(state: [u32; 2]) -> Self {
        Self(state)
    }

    /// Two full buckets.
    pub(super) fn new(now: Ticks) -> Self {
        Self([clock(now); 2])
    }

    /// How far a bucket is ahead; none is where it was full long ago.
    fn ahead(self, direction: Direction, now: Ticks) -> u32 {
        let ahead = self.0[direction as usize].wrapping_sub(clock(now));
        if ahead <= FURTHEST_AHEAD { ahead } else { 0 }
    }

    /// Takes one packet, if the bucket then is at most the burst ahead.
    #[inline]
    pub(super) fn take(&mut self, now: Ticks, direction: Direction, rate: PacketRate) -> bool {
        if rate.cost == 0 {
            return true;
        }
        let after = self.ahead(direction, now) + rate.cost;
        if after > rate.burst {
            return false;
        }
        self.0[direction as usize] = clock(now).wrapping_add(after);
        true
    }

    /// The packet was stopped elsewhere.
    pub(super) fn give_back(&mut self, direction: Direction, rate: PacketRate) {
        let full_at = &mut self.0[direction as usize];
        *full_at = full_at.wrapping_sub(rate.cost);
    }

    /// Brings what was full long ago up to date.
    pub(super) fn settle(&mut self, now: Ticks) {
        for direction in [Direction::ToPeer, Direction::ToClient] {
            if self.ahead(direction, now) == 0 {
                self.0[direction as usize] = clock(now);
            }
        }
    }
}

const fn clock(now: Ticks) -> u32 {
    now.0.wrapping_mul(1000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_in_an_allocation_is_a_bucket_as_long_as_it_is_settled_in_time() {
        let rate = PacketRate::new(Some(5_000), 1_000);
        let sent = |bucket: &mut PacketBucket, ms| {
            (0..100_000).filter(|_| bucket.take(Ticks(ms), Direction::ToPeer, rate)).count()
        };
        // Whatever the clock of 32 bits shows when it begins.
        for start in [0, 4_294_900, 1 << 40] {
            let mut bucket = PacketBucket::new(Ticks(start));
            assert_eq!(sent(&mut bucket, start), 5_000);
            assert_eq!(sent(&mut bucket, start + 10), 50);
            bucket.give_back(Direction::ToPeer, rate);
            assert_eq!(sent(&mut bucket, start + 10), 1);
            assert!(bucket.take(Ticks(start + 10), Direction::ToClient, rate), "the other way has its own");
            assert_eq!(sent(&mut bucket, start + 400_000), 5_000);
            for minutes in 1..400 {
                let now = Ticks(start + 400_000 + minutes * 60_000);
                bucket.settle(now);
                assert_eq!(bucket.ahead(Direction::ToPeer, now), 0, "{minutes}");
            }
            assert_eq!(sent(&mut bucket, start + 400_000 + 400 * 60_000), 5_000);
        }
        let none = PacketRate::new(None, 1_000);
        let mut bucket = PacketBucket::default();
        assert!((0..100_000).all(|_| bucket.take(Ticks(5), Direction::ToPeer, none)));
        let slow = PacketRate::new(Some(1), 100);
        assert!(bucket.take(Ticks(5), Direction::ToPeer, slow) && !bucket.take(Ticks(1_004), Direction::ToPeer, slow));
        assert!(
            bucket.take(Ticks(1_005), Direction::ToPeer, slow),
            "a packet larger than the burst passes a full bucket"
        );
    }
}
