//! Tells in the log when the ports of a relay address run short, before the first client is refused.
//!
//! Clients take and free ports as they like, so an address has at most one line a minute.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::net::{PortCounts, RelayAddress};
use crate::time::Ticks;

/// How often the ports are counted.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Per cent of an address's ports in use from which on they are short.
const SHORT_PERCENT: usize = 90;

/// Below this many per cent in use the shortage is over, and the next one is told again.
const ENOUGH_PERCENT: usize = 80;

/// At least this long between two lines about one address, in milliseconds.
const QUIET_MILLIS: u64 = 60_000;

/// A shortage that was told.
#[derive(Clone, Copy)]
struct Shortage {
    told_at: Ticks,
    is_over: bool,
}

/// Which addresses are short of ports, as far as the log has told.
#[derive(Default)]
pub(super) struct PortWatch {
    /// By local address.
    told: BTreeMap<IpAddr, Shortage>,
}

impl PortWatch {
    /// Writes a line for each address whose ports have become short.
    pub(super) fn look(&mut self, now: Ticks, ports: impl Iterator<Item = (RelayAddress, PortCounts)>) {
        // What is gone from the list is forgotten, so the memory stays as small as the list.
        let before = std::mem::take(&mut self.told);
        for (address, counts) in ports {
            let (shortage, is_due) = judge(now, before.get(&address.local).copied(), counts);
            if let Some(shortage) = shortage {
                self.told.insert(address.local, shortage);
            }
            if is_due {
                tracing::warn!(
                    address = %address.advertised,
                    used = counts.used,
                    of = total(counts),
                    "over 90 % of the relay ports of this address are in use; when none is free, Allocate is refused with 508 \
                     (no_port): widen relay.ports, add relay.addresses, or add a server"
                );
            }
        }
    }
}

fn total(counts: PortCounts) -> usize {
    counts.used + counts.free + counts.resting
}

/// What is remembered of an address from now on, and whether a line is due.
fn judge(now: Ticks, before: Option<Shortage>, counts: PortCounts) -> (Option<Shortage>, bool) {
    let percent = counts.used * 100 / total(counts).max(1);
    match before {
        None if percent >= SHORT_PERCENT => (Some(Shortage { told_at: now, is_over: false }), true),
        None => (None, false),
        Some(told) if !told.is_over => (Some(Shortage { is_over: percent < ENOUGH_PERCENT, ..told }), false),
        Some(told) if now.since(told.told_at) < QUIET_MILLIS => (Some(told), false),
        Some(_) => judge(now, None, counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds in which a line was due, for a history of (second, ports in use of 100).
    fn lines(history: &[(u64, usize)]) -> Vec<u64> {
        let mut told = None;
        let mut due = Vec::new();
        for &(second, used) in history {
            let counts = PortCounts {
                used,
                free: 60_usize.saturating_sub(used),
                resting: 100 - used - 60_usize.saturating_sub(used),
            };
            let (next, is_due) = judge(Ticks(second * 1000), told, counts);
            told = next;
            if is_due {
                due.push(second);
            }
        }
        due
    }

    #[test]
    fn one_line_when_ports_become_short() {
        assert_eq!(lines(&[(0, 0), (1, 89), (2, 90), (3, 100), (4, 95), (400, 100)]), [2]);
    }

    #[test]
    fn a_shortage_that_was_over_is_told_again() {
        assert_eq!(lines(&[(0, 90), (30, 81), (70, 95), (71, 79), (72, 90)]), [0, 72]);
    }

    #[test]
    fn a_client_that_takes_and_frees_ports_makes_a_line_a_minute() {
        let history: Vec<_> = (0..300).map(|second| (second, if second % 2 == 0 { 100 } else { 0 })).collect();
        assert_eq!(lines(&history), [0, 60, 120, 180, 240]);
    }

    #[test]
    fn an_address_that_is_gone_is_forgotten() {
        let address = |last| {
            let local = IpAddr::from([192, 0, 2, last]);
            RelayAddress { local, advertised: local }
        };
        let full = PortCounts { used: 9, free: 0, resting: 1 };
        let mut watch = PortWatch::default();
        watch.look(Ticks(0), [(address(1), full), (address(2), full)].into_iter());
        watch.look(Ticks(1), std::iter::once((address(2), full)));
        assert_eq!(watch.told.keys().collect::<Vec<_>>(), [&IpAddr::from([192, 0, 2, 2])]);
    }
}
