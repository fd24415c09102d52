//! A token bucket, as the one time at which it will be full again: it needs no look between two uses, and no more than a
//! word.
//!
//! Times and costs are in one unit, which the caller chooses. Code that shares a bucket between threads keeps the word in an
//! atomic, as `protocol::meter::Meter` does; the packets of an allocation have a smaller one,
//! `protocol::packet_bucket::PacketBucket`.

/// A bucket; the default has been full since ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TokenBucket {
    full_at: u64,
}

impl TokenBucket {
    /// The bucket that is full again then.
    #[must_use]
    pub const fn full_at(time: u64) -> Self {
        Self { full_at: time }
    }

    /// When it is full again; the past if it is full.
    #[must_use]
    pub const fn time(self) -> u64 {
        self.full_at
    }

    /// Whether it is full.
    #[must_use]
    pub const fn is_full(self, now: u64) -> bool {
        self.full_at <= now
    }

    /// What it is after it gave `cost`: then it is at most `burst` ahead of `now`.
    ///
    /// # Errors
    /// How long it is until it can give that.
    #[inline]
    pub fn after(self, now: u64, cost: u64, burst: u64) -> Result<Self, u64> {
        // What is larger than the burst passes a bucket that is full, or it never would.
        let limit = now.saturating_add(burst.max(cost));
        let full_at = self.full_at.max(now).saturating_add(cost);
        if full_at <= limit { Ok(Self { full_at }) } else { Err(full_at - limit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_at_once_then_what_runs_in_and_the_wait_is_exact() {
        let mut bucket = TokenBucket::default();
        let mut take = |now, cost| bucket.after(now, cost, 100).map(|after| bucket = after);
        for _ in 0..10 {
            assert_eq!(take(1_000, 10), Ok(()));
        }
        assert_eq!(take(1_000, 10), Err(10));
        assert_eq!(take(1_009, 10), Err(1), "a refusal takes nothing");
        assert_eq!(take(1_010, 10), Ok(()));
        assert_eq!(take(5_000, 100), Ok(()), "no more than the burst is saved up");
        assert_eq!(take(5_000, 1), Err(1));
        assert_eq!(take(5_099, 300), Err(1), "it is not full");
        assert_eq!(take(5_100, 300), Ok(()), "what is larger than the burst passes a full bucket");
        assert_eq!(take(5_200, 1), Err(101));
        assert!(!bucket.is_full(5_399) && bucket.is_full(5_400));
        assert_eq!(TokenBucket::full_at(bucket.time()), bucket);
    }

    #[test]
    fn nothing_overflows_at_the_end_of_time() {
        assert_eq!(TokenBucket::default().after(u64::MAX, 7, 5), Ok(TokenBucket::full_at(u64::MAX)));
        assert_eq!(TokenBucket::full_at(u64::MAX).after(0, u64::MAX, 1), Ok(TokenBucket::full_at(u64::MAX)));
        assert_eq!(TokenBucket::full_at(u64::MAX).after(0, 1, 1), Err(u64::MAX - 1));
    }
}
