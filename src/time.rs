//! Time as the core sees it: passed in, never read.

use minicbor::{Decode, Encode};

/// Milliseconds of a clock that starts at boot and never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Ticks(#[n(0)] pub u64);

impl Ticks {
    /// This point in time and so many seconds more.
    #[must_use]
    pub const fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1000)))
    }

    /// Whole milliseconds since `earlier`; 0 if it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Seconds since 1970-01-01 UTC; for credentials and the time in records, never for a deadline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct UnixSeconds(#[n(0)] pub u64);

/// Both clocks, read once per batch by `clock`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// For lifetimes and deadlines.
    pub ticks: Ticks,
    /// For expiry times inside credentials.
    pub unix: UnixSeconds,
}
