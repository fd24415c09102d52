//! Starting, ready or draining: what `/readyz` answers.

use std::sync::atomic::{AtomicU8, Ordering};

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

/// The process's phase, for everyone to read.
#[derive(Debug, Default)]
pub struct Status(AtomicU8);

impl Status {
    /// Enters a phase.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    /// The phase.
    #[must_use]
    pub fn get(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }
}
