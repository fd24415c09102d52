//! Numbers that were seen, as stretches without a gap, each with the times of its two ends.
//!
//! So a session's records, or a server's lines, take the same memory however many they are, as long as none is missing.

/// Numbers without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stretch {
    pub(super) first: u64,
    pub(super) last: u64,
    /// The time of `first`, in seconds since 1970.
    pub(super) from: u64,
    /// The time of `last`.
    pub(super) until: u64,
}

/// Numbers that are missing between two stretches, or before the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hole {
    pub(super) first: u64,
    pub(super) last: u64,
    /// The time of the number before; `None` before the first stretch.
    pub(super) after: Option<u64>,
    /// The time of the number that follows.
    pub(super) before: u64,
}

/// Stretches in order, with a hole between any two.
#[derive(Default, Debug)]
pub(super) struct Stretches(Vec<Stretch>);

impl Stretches {
    /// Notes a number with its time; `false` if it was there already.
    pub(super) fn see(&mut self, number: u64, time: u64) -> bool {
        let at = self.0.partition_point(|stretch| stretch.last < number);
        if self.0.get(at).is_some_and(|stretch| stretch.first <= number) {
            return false;
        }
        let after = at.checked_sub(1).is_some_and(|before| self.0[before].last + 1 == number);
        let before = self.0.get(at).is_some_and(|stretch| number + 1 == stretch.first);
        match (after, before) {
            (true, true) => {
                let next = self.0.remove(at);
                self.0[at - 1] = Stretch { last: next.last, until: next.until, ..self.0[at - 1] };
            }
            (true, false) => self.0[at - 1] = Stretch { last: number, until: time, ..self.0[at - 1] },
            (false, true) => self.0[at] = Stretch { first: number, from: time, ..self.0[at] },
            (false, false) => {
                if self.0.is_empty() {
                    // Most have one stretch, and there may be millions of them.
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, Stretch { first: number, last: number, from: time, until: time });
            }
        }
        true
    }

    /// Whether all numbers from 0 to this one were seen.
    pub(super) fn is_whole_to(&self, last: u64) -> bool {
        matches!(self.0[..], [Stretch { first: 0, last: seen, .. }] if seen == last)
    }

    /// The stretches, in order.
    pub(super) fn all(&self) -> &[Stretch] {
        &self.0
    }

    /// What is missing, from 0 to the last number that was seen.
    pub(super) fn holes(&self) -> impl Iterator<Item = Hole> {
        let ends = std::iter::once(None).chain(self.0.iter().map(Some));
        ends.zip(&self.0).filter_map(|(before, stretch)| {
            let first = before.map_or(0, |before| before.last + 1);
            let last = stretch.first.checked_sub(1).filter(|last| *last >= first)?;
            Some(Hole { first, last, after: before.map(|before| before.until), before: stretch.from })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_join_in_whatever_order_and_holes_have_the_times_around_them() {
        let mut seen = Stretches::default();
        for number in [5, 2, 9, 1, 6, 5, 10] {
            assert_eq!(seen.see(number, number * 100), number != 5 || seen.all().len() < 3, "{number}");
        }
        let holes: Vec<Hole> = seen.holes().collect();
        assert_eq!(
            holes,
            [
                Hole { first: 0, last: 0, after: None, before: 100 },
                Hole { first: 3, last: 4, after: Some(200), before: 500 },
                Hole { first: 7, last: 8, after: Some(600), before: 900 },
            ]
        );
        for number in [8, 4, 3, 7, 0] {
            assert!(!seen.is_whole_to(10));
            assert!(seen.see(number, number * 100));
        }
        assert!(seen.is_whole_to(10) && !seen.is_whole_to(9));
        assert_eq!(seen.all(), [Stretch { first: 0, last: 10, from: 0, until: 1000 }]);
        assert_eq!(seen.holes().count(), 0);
        assert!(seen.see(u64::MAX, 1) && !seen.see(u64::MAX, 1), "the largest number overflows nothing");
    }
}
