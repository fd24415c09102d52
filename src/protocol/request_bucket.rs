//! The requests a second that the owner of an allocation may make on it.
//!
//! A request is charged when its key was right: a stranger who forges the client's address can't use up what its owner has.

use crate::time::Ticks;

/// A limit of requests per second, and twice as many at once, as what [`RequestBucket`] needs of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct RequestRate {
    /// What a request costs, in 1/16 ms; 0 is no limit.
    cost: u32,
}

/// Parts of a millisecond that are told apart.
const PER_MS: u32 = 16;

/// How far a bucket may be ahead, in 1/16 ms: two seconds.
const BURST: u32 = 2 * 1000 * PER_MS;

impl RequestRate {
    /// Beyond 16,000 requests a second there is no limit.
    pub(super) fn new(per_second: Option<u32>) -> Self {
        let cost = per_second.map_or(0, |rate| (1000 * PER_MS).checked_div(rate).unwrap_or(1000 * PER_MS));
        Self { cost }
    }
}

/// The token bucket of one allocation's requests: when it is full again, in 1/16 ms modulo 2^32. It fills within two seconds, so no
/// other process is told of it.
///
/// That clock goes round in three days, and an allocation without a request ends long before that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RequestBucket(u32);

impl RequestBucket {
    /// A full one.
    pub(super) fn new(now: Ticks) -> Self {
        Self(clock(now))
    }

    fn ahead(self, now: Ticks) -> u32 {
        let ahead = self.0.wrapping_sub(clock(now));
        if ahead <= BURST { ahead } else { 0 }
    }

    /// Takes one request, if the bucket then is at most the burst ahead.
    pub(super) fn take(&mut self, now: Ticks, rate: RequestRate) -> bool {
        if rate.cost == 0 {
            return true;
        }
        let after = self.ahead(now) + rate.cost;
        let may = after <= BURST;
        if may {
            self.0 = clock(now).wrapping_add(after);
        }
        may
    }
}

const fn clock(now: Ticks) -> u32 {
    (now.0 as u32).wrapping_mul(PER_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seconds_of_requests_pass_at_once_then_as_many_as_run_in() {
        for (rate, each_second) in [(1, 1), (100, 100), (16_000, 16_000)] {
            let rate = RequestRate::new(Some(rate));
            let passed = |bucket: &mut RequestBucket, ms| (0..50_000).filter(|_| bucket.take(Ticks(ms), rate)).count();
            // Also where the clock of 32 bits goes round.
            for start in [5_000, (1 << 28) - 500, 1 << 40] {
                let mut bucket = RequestBucket::new(Ticks(start));
                assert_eq!(passed(&mut bucket, start), 2 * each_second);
                assert_eq!(passed(&mut bucket, start + 1_000), each_second);
                assert_eq!(passed(&mut bucket, start + 3_600_000), 2 * each_second);
            }
        }
    }

    #[test]
    fn without_a_limit_all_pass_and_nothing_is_noted() {
        let mut bucket = RequestBucket::new(Ticks(5));
        for none in [None, Some(16_001)] {
            assert!((0..50_000).all(|_| bucket.take(Ticks(7), RequestRate::new(none))));
        }
        assert_eq!(bucket, RequestBucket::new(Ticks(5)));
    }
}
