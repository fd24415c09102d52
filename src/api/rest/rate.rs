//! Credentials a minute, for each key and for each user of a key: token buckets in a table of limited size, in which no
//! key's users push out another's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;

use crate::protocol::token_bucket::TokenBucket;

/// A bucket holds a minute's worth, in nanoseconds.
const MINUTE: u64 = 60_000_000_000;

/// More are not remembered. Buckets that are full again say nothing and go first; then the key with the most loses its
/// emptiest, whose user will find it full: what one key costs concerns that key.
const BUCKETS_MAX: usize = 50_000;

/// Buckets of a key that are looked at for full ones when the table has no room; a request costs no more than that.
const SWEEP: usize = 64;

/// The buckets of a key's users, and its own under an empty name.
#[derive(Default)]
struct KeyBuckets {
    buckets: HashMap<Box<str>, TokenBucket>,
    /// In the order in which they came; the first are looked at first.
    order: VecDeque<Box<str>>,
}

#[derive(Default)]
struct BucketTable {
    keys: BTreeMap<Box<str>, KeyBuckets>,
    /// How many buckets each key has.
    sizes: BTreeSet<(usize, Box<str>)>,
    len: usize,
}

impl BucketTable {
    fn resize(&mut self, key: &str, before: usize, after: usize) {
        self.sizes.remove(&(before, key.into()));
        if after > 0 {
            self.sizes.insert((after, key.into()));
        } else {
            self.keys.remove(key);
        }
        self.len = self.len - before + after;
    }

    /// Makes room for one bucket, at the cost of the key that has the most.
    fn make_room(&mut self, now: u64) {
        let Some((before, key)) = self.sizes.last().cloned() else { return };
        let Some(of_key) = self.keys.get_mut(&key) else { return };
        for _ in 0..SWEEP.min(before) {
            let Some(name) = of_key.order.pop_front() else { break };
            if of_key.buckets.get(&name).is_some_and(|bucket| bucket.is_full(now)) {
                of_key.buckets.remove(&name);
            } else {
                of_key.order.push_back(name);
            }
        }
        if of_key.buckets.len() == before
            && let Some(oldest) = of_key.order.pop_front()
        {
            of_key.buckets.remove(&oldest);
        }
        let after = of_key.buckets.len();
        self.resize(&key, before, after);
    }

    fn bucket(&mut self, key: &str, user: &str, now: u64) -> &mut TokenBucket {
        let is_known = self.keys.get(key).is_some_and(|of_key| of_key.buckets.contains_key(user));
        if !is_known {
            if self.len >= BUCKETS_MAX {
                self.make_room(now);
            }
            let of_key = self.keys.entry(key.into()).or_default();
            let before = of_key.buckets.len();
            of_key.order.push_back(user.into());
            of_key.buckets.insert(user.into(), TokenBucket::default());
            self.resize(key, before, before + 1);
        }
        self.keys.entry(key.into()).or_default().buckets.entry(user.into()).or_default()
    }
}

/// All buckets.
#[derive(Default)]
pub(super) struct Rates(Mutex<BucketTable>);

impl Rates {
    /// Takes one token of a key, or of a user of it; the error is the seconds until there is one.
    ///
    /// `now` is in milliseconds.
    pub(super) fn take(&self, key: &str, user: Option<&str>, per_minute: Option<u32>, now: u64) -> Result<(), u64> {
        let Some(per_minute) = per_minute else { return Ok(()) };
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now.saturating_mul(MINUTE / 60_000);
        let bucket = table.bucket(key, user.unwrap_or_default(), now);
        // Under another rate, or a clock that went back, it is empty at the most.
        let known = TokenBucket::full_at(bucket.time().min(now.saturating_add(MINUTE)));
        let after = known.after(now, MINUTE / u64::from(per_minute), MINUTE);
        *bucket = after.map_err(|wait| wait.div_ceil(1_000_000_000))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_may_come_at_once_and_then_as_it_runs_in() {
        let rates = Rates::default();
        let take = |now| rates.take("web", Some("bob"), Some(6), now);
        assert_eq!((0..6).map(|_| take(1000)).collect::<Result<Vec<_>, _>>().map(|all| all.len()), Ok(6));
        assert_eq!(take(1000), Err(10));
        assert_eq!(take(10_999), Err(1));
        assert_eq!(take(11_000), Ok(()));
        assert_eq!(take(11_000), Err(10));
        assert_eq!(rates.take("web", Some("carol"), Some(6), 11_000), Ok(()), "another user");
        assert_eq!(rates.take("app", Some("bob"), Some(6), 11_000), Ok(()), "another key");
        assert_eq!(rates.take("web", Some("bob"), None, 11_000), Ok(()), "no limit");
    }

    #[test]
    fn a_lower_rate_holds_at_once_and_what_was_used_of_the_minute_stays_used() {
        let rates = Rates::default();
        assert_eq!(rates.take("web", None, Some(100), 0), Ok(()));
        assert_eq!(rates.take("web", None, Some(1), 0), Err(1));
        assert_eq!(rates.take("web", None, Some(1), 600), Ok(()));
        assert_eq!(rates.take("web", None, Some(1), 600), Err(60));
        assert_eq!(rates.take("web", None, Some(100), 600), Err(1));
    }

    #[test]
    fn a_clock_that_does_not_move_or_jumps_far_gives_no_more_than_a_minutes_worth() {
        let rates = Rates::default();
        // 278 years.
        let far = 1 << 43;
        assert_eq!(rates.take("web", None, Some(1), far), Ok(()));
        assert_eq!(rates.take("web", None, Some(1), 5), Err(60));
        assert_eq!(rates.take("web", None, Some(1), far), Err(60));
        assert_eq!(rates.take("web", None, Some(1), far + 60_000), Ok(()));
        assert_eq!(rates.take("web", None, Some(1), far + 60_000), Err(60));
    }

    /// Kind 2 of the findings of November 2026: a share for each source.
    #[test]
    fn the_table_is_bounded_and_a_key_with_many_users_pushes_out_its_own_only() {
        let rates = Rates::default();
        for _ in 0..2 {
            assert_eq!(rates.take("app", Some("alice"), Some(2), 0), Ok(()));
        }
        for user in 0..2 * BUCKETS_MAX {
            assert_eq!(rates.take("web", Some(&user.to_string()), Some(2), 0), Ok(()), "{user}");
        }
        assert_eq!(rates.0.lock().unwrap().len, BUCKETS_MAX);
        assert_eq!(rates.take("app", Some("bob"), Some(2), 0), Ok(()), "another key finds room");
        assert_eq!(rates.take("app", Some("alice"), Some(2), 0), Err(30), "and keeps what it had");
        // Half a minute later all but alice's are full again, and room is made of those.
        for user in 0..100 {
            assert_eq!(rates.take("third", Some(&user.to_string()), Some(2), 30_000), Ok(()));
        }
        let table = rates.0.lock().unwrap();
        let counted: usize = table.keys.values().map(|of_key| of_key.buckets.len()).sum();
        let listed: usize = table.sizes.iter().map(|(size, _)| size).sum();
        let ordered: usize = table.keys.values().map(|of_key| of_key.order.len()).sum();
        assert_eq!((counted, listed, ordered), (table.len, table.len, table.len));
        assert!(table.len < BUCKETS_MAX, "full ones were forgotten, several at a time");
    }
}
