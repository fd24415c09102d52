//! A review of live allocations under new settings, as far as it has come.

use minicbor::{Decode, Encode};

use super::settings::Settings;
use crate::time::Ticks;

/// A review under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Review {
    #[n(0)]
    pub(super) next_slot: u32,
    #[n(1)]
    pub(super) since: Ticks,
    #[n(2)]
    pub(super) changed: Changed,
}

/// What allocations must be looked at for, beside their deadlines: times of the wall clock mean another time of ours
/// after each look at both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct Changed {
    /// The policy, or this machine's addresses.
    #[n(0)]
    pub(super) peers: bool,
    #[n(1)]
    pub(super) limits: bool,
}

impl Changed {
    pub(super) fn between(old: &Settings, new: &Settings) -> Self {
        Self { peers: old.peers != new.peers || old.tcp != new.tcp, limits: old.limits != new.limits }
    }

    pub(super) const fn or(self, other: Self) -> Self {
        Self { peers: self.peers || other.peers, limits: self.limits || other.limits }
    }
}

impl Review {
    /// When the next piece is due: at once.
    pub(super) const fn due(&self) -> Ticks {
        self.since
    }
}
