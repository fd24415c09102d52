//! Deadlines in order.
//!
//! Holds only what must act by itself: the end of an allocation, of a held port, of a wait for an answer. Permissions
//! and channels are judged by their own expiry when used; traffic never comes here.

use std::collections::BTreeSet;

use super::ids::AllocationId;
use crate::time::Ticks;
use crate::wire::attribute::{ConnectionId, ReservationToken};

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(super) enum Due {
    /// The lifetime of the allocation in this slot.
    Allocation(u32),
    /// A held port's 30 seconds.
    Reservation([u8; 8]),
    /// A question to another worker.
    Question(u64),
    /// The question whether the quotas let an allocation in.
    Admission(AllocationId),
    /// A way of a client whose allocation is another worker's: data came by it, or it is forgotten.
    Path(u64),
    /// A connection to a peer, which is not there yet or not bound.
    Connection(ConnectionId),
}

impl From<ReservationToken> for Due {
    fn from(token: ReservationToken) -> Self {
        Self::Reservation(token.0)
    }
}

/// An allocation's deadline in twelve bytes, which sort as they should: the time, high half first, and the slot.
type Packed = [u32; 3];

const fn pack(at: Ticks, slot: u32) -> Packed {
    [(at.0 >> 32) as u32, at.0 as u32, slot]
}

const fn unpack([high, low, slot]: Packed) -> (Ticks, Due) {
    (Ticks((high as u64) << 32 | low as u64), Due::Allocation(slot))
}

/// Every deadline once, in order; each change costs a logarithm, none a scan.
#[derive(Clone, Debug, Default)]
pub(super) struct Timers {
    allocations: BTreeSet<Packed>,
    others: BTreeSet<(Ticks, Due)>,
}

impl Timers {
    pub(super) fn arm(&mut self, at: Ticks, due: Due) {
        match due {
            Due::Allocation(slot) => self.allocations.insert(pack(at, slot)),
            Due::Reservation(_) | Due::Question(_) | Due::Admission(_) | Due::Path(_) | Due::Connection(_) => {
                self.others.insert((at, due))
            }
        };
    }

    pub(super) fn disarm(&mut self, at: Ticks, due: Due) {
        match due {
            Due::Allocation(slot) => self.allocations.remove(&pack(at, slot)),
            Due::Reservation(_) | Due::Question(_) | Due::Admission(_) | Due::Path(_) | Due::Connection(_) => {
                self.others.remove(&(at, due))
            }
        };
    }

    fn first(&self) -> Option<(Ticks, Due)> {
        let allocation = self.allocations.first().map(|first| unpack(*first));
        allocation.into_iter().chain(self.others.first().copied()).min()
    }

    /// Takes the next thing that is due at `now`.
    pub(super) fn pop(&mut self, now: Ticks) -> Option<Due> {
        let (at, due) = self.first().filter(|(at, _)| *at <= now)?;
        self.disarm(at, due);
        Some(due)
    }

    pub(super) fn next(&self) -> Option<Ticks> {
        self.first().map(|(at, _)| at)
    }

    pub(super) fn len(&self) -> usize {
        self.allocations.len() + self.others.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_first_comes_first_whatever_it_is() {
        let mut timers = Timers::default();
        let far = Ticks(1 << 40);
        for (at, due) in [
            (far, Due::Allocation(1)),
            (Ticks(70), Due::Question(9)),
            (Ticks(u64::from(u32::MAX)), Due::Allocation(2)),
            (Ticks(70), Due::Allocation(4)),
            (Ticks(70), Due::Allocation(3)),
            (Ticks(5), Due::Allocation(6)),
            (Ticks(60), Due::Reservation([2; 8])),
        ] {
            timers.arm(at, due);
        }
        timers.disarm(Ticks(5), Due::Allocation(6));
        assert_eq!((timers.len(), timers.next()), (6, Some(Ticks(60))));
        assert_eq!(timers.pop(Ticks(59)), None);
        let order = std::iter::from_fn(|| timers.pop(far)).collect::<Vec<_>>();
        let expected = [
            Due::Reservation([2; 8]),
            Due::Allocation(3),
            Due::Allocation(4),
            Due::Question(9),
            Due::Allocation(2),
            Due::Allocation(1),
        ];
        assert_eq!(order, expected);
        assert_eq!((timers.len(), timers.next()), (0, None));
    }
}
