//! How many credentials were issued and refused; read by `ops::metrics`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::refused::IssueRefused;

/// Counts of the endpoint.
#[derive(Debug, Default)]
pub struct Counts {
    /// By the name of the key: operators choose them, so there are few.
    issued: Mutex<BTreeMap<Box<str>, u64>>,
    refused: [AtomicU64; IssueRefused::ALL.len()],
}

impl Counts {
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
}
