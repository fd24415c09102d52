//! Deadlines in order.
//!
//! Holds only what must act by itself: the end of an allocation, of a held port, of a question. Permissions
//! and channels are judged by their own expiry when used; traffic never comes here.

use std::collections::BTreeSet;

use super::border::AllocationId;
use super::time::Ticks;
use crate::wire::attribute::ReservationToken;

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(super) enum Due {
    /// An allocation's lifetime.
    Allocation(AllocationId),
    /// A held port's 30 seconds.
    Reservation([u8; 8]),
    /// A question to another worker.
    Question(u64),
}

impl From<ReservationToken> for Due {
    fn from(token: ReservationToken) -> Self {
        Self::Reservation(token.0)
    }
}

/// Every deadline once, in order; each change costs a logarithm, none a scan.
#[derive(Clone, Debug, Default)]
pub(super) struct Timers {
    deadlines: BTreeSet<(Ticks, Due)>,
}

impl Timers {
    pub(super) fn arm(&mut self, at: Ticks, due: Due) {
        self.deadlines.insert((at, due));
    }

    pub(super) fn disarm(&mut self, at: Ticks, due: Due) {
        self.deadlines.remove(&(at, due));
    }

    /// Takes the next thing that is due at `now`.
    pub(super) fn pop(&mut self, now: Ticks) -> Option<Due> {
        let first = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.deadlines.remove(&first);
        Some(first.1)
    }

    pub(super) fn next(&self) -> Option<Ticks> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.deadlines.len()
    }
}
