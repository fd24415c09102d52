//! Bytes used within a day (UTC), remembered so that a clock that goes away and comes back gives none back.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::time::UnixSeconds;

/// A day of the wall clock, in seconds.
pub(super) const SECONDS_PER_DAY: u64 = 86_400;

/// Days that are remembered: today, and three that a clock may go to and come back from.
pub(super) const DAYS: usize = 4;

/// The bytes of a day fill the low bits of a word, the day the high ones: 256 TiB a day, until the year 2149.
const DAY_SHIFT: u32 = 48;
const BYTES: u64 = (1 << DAY_SHIFT) - 1;

pub(super) const fn day_of(unix: UnixSeconds) -> u64 {
    unix.0 / SECONDS_PER_DAY
}

/// The bytes of some days; a word for each, so that one exchange decides.
#[derive(Debug, Default)]
pub(super) struct DayBytes {
    words: [AtomicU64; DAYS],
    /// The word that was changed last.
    last: AtomicU8,
}

impl DayBytes {
    /// The words, and which of them was changed last.
    pub(super) fn to_state(&self) -> ([u64; DAYS], u8) {
        (self.words.each_ref().map(|word| word.load(Ordering::Relaxed)), self.last.load(Ordering::Relaxed))
    }

    /// Goes on where [`DayBytes::to_state`] was.
    pub(super) fn set(&self, (words, last): ([u64; DAYS], u8)) {
        self.words.iter().zip(words).for_each(|(own, word)| own.store(word, Ordering::Relaxed));
        self.last.store(last % DAYS as u8, Ordering::Relaxed);
    }

    /// Changes what was used on a day; tells whether `change` had an answer. No more than 256 TiB are counted.
    pub(super) fn change(&self, unix: UnixSeconds, change: impl Fn(u64) -> Option<u64>) -> bool {
        let today = day_of(unix);
        loop {
            let (at, word) = self.place(today);
            let used = if word >> DAY_SHIFT == today { word & BYTES } else { 0 };
            let Some(used) = change(used).filter(|used| *used <= BYTES) else { return false };
            let new = today << DAY_SHIFT | used;
            if self.words[at].compare_exchange_weak(word, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                if self.last.load(Ordering::Relaxed) != at as u8 {
                    self.last.store(at as u8, Ordering::Relaxed);
                }
                return true;
            }
        }
    }

    /// Takes bytes back that were counted a moment ago. What was counted before midnight may be given back to the day
    /// after: never more than it used.
    pub(super) fn give_back(&self, bytes: u64) {
        let last = &self.words[usize::from(self.last.load(Ordering::Relaxed))];
        let less = |word: u64| Some(word - (word & BYTES).min(bytes));
        // The closure always has an answer.
        let _ = last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// What was used on a day.
    pub(super) fn used(&self, unix: UnixSeconds) -> u64 {
        let (_, word) = self.place(day_of(unix));
        if word >> DAY_SHIFT == day_of(unix) { word & BYTES } else { 0 }
    }

    /// Whether anything was used on any day that is remembered.
    pub(super) fn is_used(&self) -> bool {
        self.words.iter().any(|word| word.load(Ordering::Relaxed) & BYTES > 0)
    }

    /// The word of a day, else the one of the day that is farthest from it: the days near by are those that come back.
    fn place(&self, day: u64) -> (usize, u64) {
        let mut farthest = (0, 0, 0);
        for (at, word) in self.words.iter().enumerate() {
            let word = word.load(Ordering::Relaxed);
            let distance = day.abs_diff(word >> DAY_SHIFT);
            if distance == 0 {
                return (at, word);
            }
            if at == 0 || distance > farthest.2 {
                farthest = (at, word, distance);
            }
        }
        (farthest.0, farthest.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: u64 = 20_000;

    fn day(number: u64) -> UnixSeconds {
        UnixSeconds(number * SECONDS_PER_DAY + 100)
    }

    /// Up to 1,000 bytes a day.
    fn spend(bytes: &DayBytes, at: UnixSeconds, count: u64) -> bool {
        bytes.change(at, |used| Some(used + count).filter(|used| *used <= 1000))
    }

    // F-A15: a clock that is days ahead for a moment fills day budgets again.
    #[test]
    fn a_clock_that_goes_away_and_comes_back_gives_nothing_back() {
        let bytes = DayBytes::default();
        assert!(spend(&bytes, day(TODAY), 1000));
        for away in [TODAY + 3, TODAY - 2, TODAY + 1000] {
            spend(&bytes, day(away), 600);
            assert!(!spend(&bytes, day(away), 600), "what was used there stays used too");
            assert!(!spend(&bytes, day(TODAY), 1), "back from {away}");
        }
        assert_eq!(bytes.used(day(TODAY)), 1000);
    }

    #[test]
    fn each_day_has_its_own_for_years() {
        let bytes = DayBytes::default();
        for number in TODAY..TODAY + 1000 {
            assert_eq!(bytes.used(day(number)), 0);
            assert!(spend(&bytes, day(number), 1000) && !spend(&bytes, day(number), 1), "{number}");
        }
        // The day that the clock was on by mistake is far away soon.
        assert!(spend(&bytes, day(TODAY + 5000), 1000));
        for number in TODAY + 1000..TODAY + 1010 {
            assert!(spend(&bytes, day(number), 1000), "{number}");
        }
        assert!(bytes.is_used() && !DayBytes::default().is_used());
    }

    #[test]
    fn many_threads_at_midnight_spend_no_more_than_there_is() {
        let bytes = DayBytes::default();
        spend(&bytes, day(TODAY - 1), 1000);
        let spent = std::thread::scope(|scope| {
            let run = || (0..2000).filter(|_| spend(&bytes, day(TODAY), 1)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(spent, 1000);
    }
}
