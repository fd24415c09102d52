//! Lines of ended sessions: so many a minute for each user, and one line for all the others.
//!
//! One user who makes and ends sessions without end must not fill the log. Usage records and counters have all of them.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::config::checked::LogConfig;
use crate::protocol::accounting::SessionRecord;

/// Counters of users. A fixed number, so that no number of users takes memory; two users who meet in one share its limit.
const PLACES: usize = 16_384;

/// `log.session_lines_per_user`; 0 means no limit.
static PER_MINUTE: AtomicU32 = AtomicU32::new(0);

/// Sessions without a line of their own since the start.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Takes the limit over, at the start and by a reload.
pub(super) fn configure(config: &LogConfig) {
    PER_MINUTE.store(config.session_lines_per_user.unwrap_or(0), Ordering::Relaxed);
}

/// Sessions that ended without a line of their own, because their user had too many within a minute.
#[must_use]
pub fn left_out() -> u64 {
    LEFT_OUT.load(Ordering::Relaxed)
}

/// The lines of one minute.
pub(super) struct Minute {
    keys: RandomState,
    lines: Box<[u32]>,
    left_out: u64,
    /// The user whose session was left out last, and the tenant.
    last: Option<(Box<str>, Option<Box<str>>)>,
}

impl Minute {
    pub(super) fn new() -> Self {
        Self { keys: RandomState::new(), lines: vec![0; PLACES].into(), left_out: 0, last: None }
    }

    /// Whether this session has a line of its own.
    pub(super) fn admit(&mut self, record: &SessionRecord) -> bool {
        let max = PER_MINUTE.load(Ordering::Relaxed);
        self.admit_within(max, &record.identity, record.tenant.as_deref())
    }

    fn admit_within(&mut self, max: u32, user: &str, tenant: Option<&str>) -> bool {
        let place = self.keys.hash_one((tenant, user)) as usize % PLACES;
        if max == 0 || self.lines[place] < max {
            self.lines[place] = self.lines[place].saturating_add(1);
            return true;
        }
        self.left_out += 1;
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        if self.last.as_ref().is_none_or(|(last, of)| **last != *user || of.as_deref() != tenant) {
            self.last = Some((user.into(), tenant.map(Into::into)));
        }
        false
    }

    /// The minute is over.
    pub(super) fn write(&mut self) {
        self.lines.fill(0);
        let Some((user, tenant)) = self.last.take() else { return };
        tracing::info!(
            sessions = std::mem::take(&mut self.left_out),
            user = &*user,
            tenant = tenant.as_deref(),
            "sessions left out of the log in the last minute: a user had more than log.session_lines_per_user"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // F-A12: one user who churns does not fill the log, and another one loses no line by that.
    #[test]
    fn each_user_has_so_many_lines_a_minute() {
        let mut minute = Minute::new();
        let written =
            |minute: &mut Minute, user, tenant| (0..50).filter(|_| minute.admit_within(7, user, tenant)).count();
        assert_eq!(written(&mut minute, "bob", None), 7);
        assert_eq!(written(&mut minute, "bob", Some("acme")), 7, "another user of the same name");
        assert_eq!(written(&mut minute, "bob", None), 0);
        assert_eq!(
            (minute.left_out, minute.last.as_ref().map(|(user, _)| &**user)),
            (50 - 7 + 50 - 7 + 50, Some("bob"))
        );
        minute.write();
        assert_eq!(written(&mut minute, "bob", None), 7, "a minute later");
        assert!((0..1000).all(|_| minute.admit_within(0, "carol", None)), "0 is no limit");
    }
}
