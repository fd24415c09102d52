//! Credentials a minute, for each key and for each user of a key: token buckets in a table of limited size.

use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;

/// A bucket holds a minute's worth, counted in such units to the token, so that each millisecond adds whole ones.
const TOKEN: u64 = 60_000;

/// A bucket that is full again says nothing and is dropped; more than so many others are not remembered.
const BUCKETS_MAX: usize = 50_000;

#[derive(Clone, Copy)]
struct Bucket {
    units: u64,
    at: u64,
    per_minute: u32,
}

impl Bucket {
    const fn capacity(per_minute: u32) -> u64 {
        per_minute as u64 * TOKEN
    }

    /// What has run in since, and no more than the present rate allows.
    fn refill(&mut self, now: u64, per_minute: u32) {
        let added = now.saturating_sub(self.at).saturating_mul(u64::from(per_minute));
        self.units = self.units.saturating_add(added).min(Self::capacity(per_minute));
        (self.at, self.per_minute) = (now, per_minute);
    }
}

/// A key's name and a user id of it; the key's own bucket has an empty one.
type Name = (Box<str>, Box<str>);

/// All buckets.
#[derive(Default)]
pub(super) struct Rates(Mutex<HashMap<Name, Bucket>>);

impl Rates {
    /// Takes one token of a key, or of a user of it; the error is the seconds until there is one.
    ///
    /// `now` is in milliseconds.
    pub(super) fn take(&self, key: &str, user: Option<&str>, per_minute: Option<u32>, now: u64) -> Result<(), u64> {
        let Some(per_minute) = per_minute else { return Ok(()) };
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name: Name = (key.into(), user.unwrap_or_default().into());
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(&name) {
            buckets.retain(|_, bucket| {
                let mut then = *bucket;
                then.refill(now, bucket.per_minute);
                then.units < Bucket::capacity(then.per_minute)
            });
            if buckets.len() >= BUCKETS_MAX {
                // Someone asks in the name of ever new users; in a minute the first of them are forgotten.
                return Err(60);
            }
        }
        let full = Bucket { units: Bucket::capacity(per_minute), at: now, per_minute };
        let bucket = buckets.entry(name).or_insert(full);
        bucket.refill(now, per_minute);
        if bucket.units < TOKEN {
            let milliseconds = (TOKEN - bucket.units).div_ceil(u64::from(per_minute));
            return Err(milliseconds.div_ceil(1000).max(1));
        }
        bucket.units -= TOKEN;
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
    fn a_lower_rate_holds_at_once() {
        let rates = Rates::default();
        assert_eq!(rates.take("web", None, Some(100), 0), Ok(()));
        assert_eq!(rates.take("web", None, Some(1), 0), Ok(()));
        assert_eq!(rates.take("web", None, Some(1), 0), Err(60));
    }

    #[test]
    fn a_clock_that_does_not_move_or_jumps_far_gives_no_more_than_a_minutes_worth() {
        let rates = Rates::default();
        assert_eq!(rates.take("web", None, Some(1), u64::MAX - 1), Ok(()));
        assert_eq!(rates.take("web", None, Some(1), 5), Err(60));
        assert_eq!(rates.take("web", None, Some(1), u64::MAX), Ok(()));
        assert_eq!(rates.take("web", None, Some(1), u64::MAX), Err(60));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_those_who_are_full_again() {
        let rates = Rates::default();
        for user in 0..BUCKETS_MAX {
            assert_eq!(rates.take("web", Some(&user.to_string()), Some(2), 0), Ok(()));
        }
        assert_eq!(rates.take("web", Some("one more"), Some(2), 0), Err(60));
        assert_eq!(rates.take("web", Some("7"), Some(2), 0), Ok(()), "who is known goes on");
        assert_eq!(rates.take("web", Some("one more"), Some(2), 30_000), Ok(()));
        assert_eq!(rates.0.lock().unwrap().len(), 2, "those who were full are gone");
    }
}
