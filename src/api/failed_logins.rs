//! Wrong keys and tokens over HTTP, charged to where they come from.
//!
//! A source may fail so often at once and then so often a minute. Beyond that a wrong login gets 429 and its connection is
//! closed; a right one passes at any time, so that no client locks out others behind the same address. What a login is, and
//! whether it is right, is left to `rest::access` and `admin::access`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::api::Peer;
use crate::net::fair_limit::Source;

/// Failures of a source at once.
const FAILURES_BURST: u64 = 60;

/// One more after each so many milliseconds.
const FAILURE_EVERY: u64 = 1_000;

/// More are not remembered; the one that is nearest to having no failures gives way.
const SOURCES_MAX: usize = 16_384;

/// Who failed to log in: the client's address, or the process at the other end of a unix socket. `None` if a proxy in
/// front hides it; then nothing is charged, because it would be charged to everybody behind that proxy.
pub(super) fn source(client: Option<IpAddr>, peer: Peer) -> Option<Source> {
    match (client, peer) {
        (Some(ip), _) => Some(ip.into()),
        (None, Peer::Unix(uid)) => Some(Source::User(uid)),
        (None, Peer::Tcp(_)) => None,
    }
}

#[derive(Default)]
struct FailureTable {
    /// When each source has no failures any more, in milliseconds.
    clear_at: BTreeMap<Source, u64>,
    by_time: BTreeSet<(u64, Source)>,
}

/// The failures of all sources.
#[derive(Default)]
pub(super) struct FailedLogins(Mutex<FailureTable>);

impl FailedLogins {
    /// Counts a failure at `now`, in milliseconds; the error is the seconds until the next one is an ordinary one.
    pub(super) fn charge(&self, source: Source, now: u64) -> Result<(), u64> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = table.clear_at.get(&source).copied();
        let next = before.unwrap_or(0).max(now).saturating_add(FAILURE_EVERY);
        let latest = now.saturating_add(FAILURE_EVERY * FAILURES_BURST);
        if next > latest {
            return Err((next - latest).div_ceil(1000));
        }
        match before {
            Some(before) => drop(table.by_time.remove(&(before, source))),
            None if table.clear_at.len() >= SOURCES_MAX => {
                if let Some((_, forgotten)) = table.by_time.pop_first() {
                    table.clear_at.remove(&forgotten);
                }
            }
            None => {}
        }
        table.clear_at.insert(source, next);
        table.by_time.insert((next, source));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u32) -> Source {
        Source::V4(number)
    }

    #[test]
    fn a_source_fails_sixty_times_and_then_as_time_goes_by() {
        let failed = FailedLogins::default();
        for number in 0..FAILURES_BURST {
            assert_eq!(failed.charge(source(1), 5_000), Ok(()), "{number}");
        }
        assert_eq!(failed.charge(source(1), 5_000), Err(1));
        assert_eq!(failed.charge(source(1), 5_999), Err(1));
        assert_eq!(failed.charge(source(2), 5_999), Ok(()), "another source");
        assert_eq!(failed.charge(source(1), 6_000), Ok(()));
        assert_eq!(failed.charge(source(1), 6_000), Err(1), "refusals cost nothing more");
        assert_eq!((0..100).filter(|_| failed.charge(source(1), 900_000).is_ok()).count(), 60);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_those_who_failed_most() {
        let failed = FailedLogins::default();
        while failed.charge(source(0), 1_000).is_ok() {}
        for number in 1..=2 * SOURCES_MAX as u32 {
            assert_eq!(failed.charge(source(number), 1_000), Ok(()));
        }
        assert_eq!(failed.charge(source(0), 1_000), Err(1), "still known");
        let table = failed.0.lock().unwrap();
        assert_eq!((table.clear_at.len(), table.by_time.len()), (SOURCES_MAX, SOURCES_MAX));
    }
}
