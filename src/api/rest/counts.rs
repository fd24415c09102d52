//! How many credentials were issued and refused, and their metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::refused::IssueRefused;
use crate::clock;
use crate::ops::metrics::Text;

/// What became of fetching the keys that check tokens.
#[derive(Debug, Default)]
pub struct Fetches {
    /// Whether they are fetched at all.
    pub is_on: AtomicBool,
    /// Fetches that brought keys.
    pub ok: AtomicU64,
    /// Fetches that did not.
    pub failed: AtomicU64,
    /// Keys in use.
    pub keys: AtomicU64,
    /// When they came, in milliseconds of the boot clock; 0 is never.
    fetched_at: AtomicU64,
}

impl Fetches {
    pub(super) fn succeed(&self, keys: usize) {
        self.ok.fetch_add(1, Ordering::Relaxed);
        self.keys.store(keys as u64, Ordering::Relaxed);
        self.fetched_at.store(clock::now().ticks.0.max(1), Ordering::Relaxed);
    }

    pub(super) fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Seconds since keys came; `None` if they never did.
    #[must_use]
    pub fn age(&self) -> Option<u64> {
        let at = self.fetched_at.load(Ordering::Relaxed);
        (at > 0).then(|| clock::now().ticks.0.saturating_sub(at) / 1000)
    }
}

/// Counts of the endpoint.
#[derive(Debug, Default)]
pub struct IssueCounts {
    /// By the name of the key: operators choose them, so there are few.
    issued: Mutex<BTreeMap<Box<str>, u64>>,
    refused: [AtomicU64; IssueRefused::ALL.len()],
    /// Of the keys that check tokens.
    pub fetches: Arc<Fetches>,
}

impl IssueCounts {
    /// Makes a line for each key, at 0 until it is used.
    pub(super) fn know<'a>(&self, keys: impl Iterator<Item = &'a str>) {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            issued.entry(key.into()).or_default();
        }
    }

    pub(super) fn issue(&self, key: &str) {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        *issued.entry(key.into()).or_default() += 1;
    }

    pub(crate) fn refuse(&self, refused: &IssueRefused) {
        self.refused[refused.number()].fetch_add(1, Ordering::Relaxed);
    }

    /// Every key with what it was given.
    #[must_use]
    pub fn issued(&self) -> Vec<(Box<str>, u64)> {
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        issued.iter().map(|(key, count)| (key.clone(), *count)).collect()
    }

    /// How often this was the reason.
    #[must_use]
    pub fn refused(&self, refused: &IssueRefused) -> u64 {
        self.refused[refused.number()].load(Ordering::Relaxed)
    }
    /// Shows them; registered with [`Metrics::with`](crate::ops::metrics::Metrics::with).
    pub fn publish(&self, text: &mut Text) {
        text.counter("throughway_credentials_issued_total", "Credentials issued over HTTP, by the key that asked")
            .each("key", self.issued());
        text.counter("throughway_credentials_refused_total", "Credentials refused over HTTP, by reason")
            .each("reason", IssueRefused::ALL.iter().map(|refused| (refused.name(), self.refused(refused))));
        let fetches = &self.fetches;
        if fetches.is_on.load(Ordering::Relaxed) {
            let results = [("ok", &fetches.ok), ("failed", &fetches.failed)];
            text.counter("throughway_jwt_key_fetches_total", "Fetches of the keys that check tokens, by result")
                .each("result", results.map(|(result, count)| (result, count.load(Ordering::Relaxed))));
            text.gauge("throughway_jwt_keys", "Fetched keys that check tokens")
                .value(fetches.keys.load(Ordering::Relaxed));
            if let Some(age) = fetches.age() {
                text.gauge("throughway_jwt_keys_age_seconds", "Age of the fetched keys, in seconds").value(age);
            }
        }
    }
}
