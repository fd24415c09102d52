//! Gives memory back to the system after many sessions have ended.
//!
//! Tables shrink by themselves, but what they free lies in pieces between what is still in use, and the allocator
//! keeps it. Asking it to give whole pages back takes a walk over its free pieces, so no worker does it.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::kernel;
use super::running::Running;

/// How often the number of allocations is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks after which it is done once more: by then what told of the ends, lines and records, is gone as well.
const ONCE_MORE_AFTER: u32 = 3;

/// Fewer allocations than this are not worth a walk.
const FEWER: u32 = 1000;

/// How many allocations there were, and when it pays to give back what they had.
#[derive(Debug, Default)]
struct TrimPolicy {
    high: u32,
    last: u32,
}

impl TrimPolicy {
    /// Whether many are gone since the last time, and no more are going.
    fn is_over(&mut self, (live, peak): (u32, u32)) -> bool {
        let is_falling = live < self.last;
        self.last = live;
        self.high = self.high.max(peak);
        let gone = self.high - live;
        if is_falling || gone < FEWER || gone < self.high / 4 {
            return false;
        }
        self.high = live;
        true
    }
}

/// Looks every second, until there are no workers any more.
pub(crate) async fn follow(running: Weak<Running>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ebb = TrimPolicy::default();
    let mut once_more = None;
    loop {
        looks.tick().await;
        let Some(seen) = running.upgrade().map(|running| running.process.take_peak()) else { return };
        if ebb.is_over(seen) {
            kernel::give_back_memory();
            once_more = Some(ONCE_MORE_AFTER);
        } else if let Some(looks) = once_more {
            once_more = (looks > 1).then(|| looks - 1);
            if once_more.is_none() {
                kernel::give_back_memory();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_each_ebb() {
        let mut ebb = TrimPolicy::default();
        let seen =
            [0, 10_000, 10_000, 9_500, 9_500, 8_000, 7_000, 3_000, 3_000, 3_000, 2_500, 2_500, 1_400, 1_400, 0, 0, 0];
        let given: Vec<usize> =
            (0..).zip(seen).filter(|(_, live)| ebb.is_over((*live, *live))).map(|(at, _)| at).collect();
        assert_eq!(given, [8, 13, 15], "when none goes any more");
        assert!(ebb.is_over((20, 5000)), "they came and went between two looks");
    }
}
