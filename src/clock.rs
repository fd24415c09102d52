//! The only reader of clocks.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::time::{Now, Ticks, UnixSeconds};

/// Both clocks; a worker reads them once per batch.
#[must_use]
pub fn now() -> Now {
    Now { ticks: Ticks(boot_milliseconds()), unix: unix_seconds() }
}

/// Seconds since 1970; 0 for a clock that stands before.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the one reader of clocks")]
pub fn unix_seconds() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Microseconds of the monotonic clock, as the service manager counts them.
#[must_use]
pub fn monotonic_microseconds() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    tv_sec as u64 * 1_000_000 + tv_nsec as u64 / 1000
}

/// Nanoseconds of processor time that this process took.
#[must_use]
pub fn processor_nanoseconds() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    tv_sec as u64 * 1_000_000_000 + tv_nsec as u64
}

/// Milliseconds since the machine started, sleep included: the same clock in every process.
fn boot_milliseconds() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    tv_sec as u64 * 1000 + tv_nsec as u64 / 1_000_000
}
