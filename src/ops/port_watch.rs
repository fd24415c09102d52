//! Tells in the log when the ports of a relay address run short, before the first client is refused: all of them, or where
//! `relay.ports_by_tenant` splits them, those of each tenant and those that are in no part.
//!
//! Clients take and free ports as they like, so each of these has at most one line a minute.

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

/// At least this long between two lines about the same ports, in milliseconds.
const QUIET_MILLIS: u64 = 60_000;

/// A shortage that was told.
#[derive(Clone, Copy)]
struct Shortage {
    told_at: Ticks,
    is_over: bool,
}

/// Which ports of an address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum PortGroup {
    /// All: no tenant has ports of its own.
    All,
    /// Those of a tenant in `relay.ports_by_tenant`.
    Tenant(Box<str>),
    /// Those that are in no tenant's part.
    NoTenant,
}

impl PortGroup {
    /// The ports of a tenant, or those in no part.
    pub(super) fn of(tenant: Option<Box<str>>) -> Self {
        tenant.map_or(Self::NoTenant, Self::Tenant)
    }
}

/// Which ports run short, as far as the log has told.
#[derive(Default)]
pub(super) struct PortWatch {
    /// By local address.
    told: BTreeMap<(IpAddr, PortGroup), Shortage>,
}

impl PortWatch {
    /// Writes a line for each group of ports that has become short.
    pub(super) fn look(&mut self, now: Ticks, ports: impl Iterator<Item = (PortGroup, RelayAddress, PortCounts)>) {
        // What is gone from the list is forgotten, so the memory stays as small as the list.
        let before = std::mem::take(&mut self.told);
        for (group, address, counts) in ports {
            let key = (address.local, group);
            let (shortage, is_due) = judge(now, before.get(&key).copied(), counts);
            if is_due {
                warn(&key.1, address.advertised, counts);
            }
            if let Some(shortage) = shortage {
                self.told.insert(key, shortage);
            }
        }
    }
}

fn warn(group: &PortGroup, address: IpAddr, counts: PortCounts) {
    let (used, of) = (counts.used, total(counts));
    match group {
        PortGroup::All => tracing::warn!(
            %address,
            used,
            of,
            "over 90 % of the relay ports of this address are in use; when none is free, Allocate is refused with 508 \
             (no_port): widen relay.ports, add relay.addresses, or add a server"
        ),
        PortGroup::Tenant(tenant) => tracing::warn!(
            tenant = &**tenant,
            %address,
            used,
            of,
            "over 90 % of this tenant's relay ports of this address are in use; when none is free, its Allocate requests are \
             refused with 508 (no_port), those of others are not: give it more ports in relay.ports_by_tenant, or add \
             relay.addresses"
        ),
        PortGroup::NoTenant => tracing::warn!(
            %address,
            used,
            of,
            "over 90 % of the relay ports of this address that are no tenant's are in use; when none is free, Allocate is \
             refused with 508 (no_port), but not for tenants with ports of their own: widen relay.ports, give tenants fewer in \
             relay.ports_by_tenant, or add relay.addresses"
        ),
    }
}

fn total(counts: PortCounts) -> usize {
    counts.used + counts.free + counts.resting
}

/// What is remembered of ports from now on, and whether a line is due.
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
        let all = |last| (PortGroup::All, address(last), full);
        watch.look(Ticks(0), [all(1), all(2)].into_iter());
        watch.look(Ticks(1), std::iter::once(all(2)));
        assert_eq!(watch.told.keys().collect::<Vec<_>>(), [&(IpAddr::from([192, 0, 2, 2]), PortGroup::All)]);
        // Tenants are judged each for itself.
        let of = |tenant: Option<&str>, used| {
            (PortGroup::of(tenant.map(Into::into)), address(2), PortCounts { used, free: 10 - used, resting: 0 })
        };
        watch.look(Ticks(2), [of(Some("a"), 9), of(Some("b"), 8), of(None, 10)].into_iter());
        let told: Vec<&PortGroup> = watch.told.keys().map(|(_, group)| group).collect();
        assert_eq!(told, [&PortGroup::Tenant("a".into()), &PortGroup::NoTenant]);
    }
}
