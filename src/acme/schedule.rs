//! When a certificate is ordered: at two thirds of the life of the one that is there, and after failures later and later.

use crate::config::acme::AcmeConfig;
use crate::tls::certificates::Loaded;

/// After a first failure, in seconds; twice as long after each more.
const RETRY_FIRST: u64 = 60;
const RETRY_MOST: u64 = 12 * 3_600;

/// The longest that an authority can make us wait, in seconds.
pub(super) const WAIT_MOST: u64 = 7 * 86_400;

/// When the next order is due, in seconds since 1970: `now` if there is no certificate, or one for other names.
pub(super) fn due_at(config: &AcmeConfig, certificate: Option<&Loaded>, now: u64) -> u64 {
    let Some(certificate) = certificate else { return now };
    if !config.domains.iter().all(|name| certificate.summary().is_for(name)) {
        return now;
    }
    let life = certificate.not_after.saturating_sub(certificate.not_before);
    certificate.not_before + life / 3 * 2
}

/// Orders that failed in a row.
#[derive(Default, Debug)]
pub(super) struct Failures {
    count: u32,
    retry_at: Option<u64>,
}

impl Failures {
    /// When to try again; nothing if the last one succeeded.
    pub(super) const fn retry_at(&self) -> Option<u64> {
        self.retry_at
    }

    /// Tries again then, and not before.
    pub(super) const fn wait_until(&mut self, retry_at: u64) {
        self.retry_at = Some(retry_at);
    }

    /// One more, at `now`; gives when to try again: not before the authority allows it, and never all servers at once.
    pub(super) fn add(&mut self, now: u64, not_before: Option<u64>) -> u64 {
        let wait = (RETRY_FIRST << self.count.min(16)).min(RETRY_MOST);
        self.count += 1;
        let retry_at = (now + wait + random_up_to(wait / 10)).max(not_before.unwrap_or(0).min(now + WAIT_MOST));
        self.retry_at = Some(retry_at);
        retry_at
    }
}

fn random_up_to(most: u64) -> u64 {
    let mut bytes = [0; 8];
    // Without random bytes all of them come at once, no more.
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes) % (most + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_longer_and_longer_and_as_long_as_the_authority_says() {
        let mut failures = Failures::default();
        assert_eq!(failures.retry_at(), None);
        let mut least = RETRY_FIRST;
        for _ in 0..30 {
            let at = failures.add(1_000, None);
            assert!((1_000 + least..=1_000 + least + least / 10).contains(&at), "{at}, {least}");
            assert_eq!(failures.retry_at(), Some(at));
            least = (least * 2).min(RETRY_MOST);
        }
        assert_eq!(Failures::default().add(1_000, Some(100_000)), 100_000);
        // An authority can't stop us for good.
        assert_eq!(Failures::default().add(1_000, Some(u64::MAX)), 1_000 + WAIT_MOST);
    }
}
