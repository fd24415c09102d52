//! Starting, ready or draining: what `/readyz` answers.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Where the process is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Not every listener is bound yet.
    Starting = 0,
    /// Serving.
    Ready = 1,
    /// No new allocations.
    Draining = 2,
}

impl Phase {
    /// The word on `/readyz`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// The process's phase, for everyone to read, and what keeps a server that is ready from serving.
#[derive(Debug, Default)]
pub struct Status {
    phase: AtomicU8,
    lacks_relay_address: AtomicBool,
}

impl Status {
    /// Enters a phase.
    pub fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Notes whether there is an address to relay from.
    pub fn set_relaying(&self, has_relay_address: bool) {
        self.lacks_relay_address.store(!has_relay_address, Ordering::Relaxed);
    }

    /// Whether every Allocate is refused for want of an address to relay from.
    #[must_use]
    pub fn lacks_relay_address(&self) -> bool {
        self.lacks_relay_address.load(Ordering::Relaxed)
    }

    /// The phase.
    #[must_use]
    pub fn get(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }
}
