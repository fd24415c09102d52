//! What is kept back of the open files, so that a server whose allocations took all others still accepts and answers.
//!
//! The kernel gives the lowest free number to each new file. So the number of a new one tells, without any count of ours,
//! how few are left: it lies within the last of the limit only when all below are in use.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::sys;

/// Files for HTTP, for clients that are accepted and hear why they get nothing, and for our own files.
const RESERVE: u64 = 64;

/// RLIMIT_NOFILE as it was found at the start; 0 before that.
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// Raises the limit of open files to its hard maximum.
///
/// # Errors
/// What the system said; nothing is kept back then.
pub fn raise_file_limit() -> io::Result<u64> {
    let limit = sys::raise_file_limit()?;
    LIMIT.store(limit, Ordering::Relaxed);
    Ok(limit)
}

/// Whether accepting failed for one connection, which is gone, and not for want of anything: the next may follow at once.
/// Such errors come as a client likes, so no listener may rest for them (accept(2), "Error handling").
pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    const GONE: [i32; 9] = [
        libc::ECONNABORTED,
        libc::ECONNRESET,
        libc::EINTR,
        libc::EPROTO,
        libc::EPERM,
        libc::ETIMEDOUT,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::ENETDOWN,
    ];
    error.raw_os_error().is_some_and(|code| GONE.contains(&code))
}

/// How many files of a limit are kept back: few of a small one.
pub(crate) const fn reserve(limit: u64) -> u64 {
    let eighth = limit / 8;
    if eighth < RESERVE { eighth } else { RESERVE }
}

/// Whether so few files are left behind this new one that an allocation must not have it.
pub(crate) fn is_reserved(file: &impl AsFd) -> bool {
    is_within(file, 0)
}

/// The same, of the second half of what is kept back.
pub(crate) fn is_nearly_last(file: &impl AsFd) -> bool {
    let limit = LIMIT.load(Ordering::Relaxed);
    is_within(file, reserve(limit) / 2)
}

fn is_within(file: &impl AsFd, less: u64) -> bool {
    let limit = LIMIT.load(Ordering::Relaxed);
    let number = file.as_fd().as_raw_fd() as u64;
    limit > 0 && number >= limit - reserve(limit) + less
}

/// How many of the files may be streams of clients who have not proven anything: a quarter.
pub(crate) fn unproven_max() -> u64 {
    match LIMIT.load(Ordering::Relaxed) {
        0 => u64::MAX,
        limit => (limit / 4).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_gone_lets_no_listener_rest() {
        let is_gone = |code| is_of_one_connection(&io::Error::from_raw_os_error(code));
        assert!([libc::ECONNABORTED, libc::EPROTO, libc::EPERM].into_iter().all(is_gone));
        assert!(![libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EINVAL].into_iter().any(is_gone));
    }

    #[test]
    fn a_small_limit_keeps_few_back_and_a_large_one_64() {
        assert_eq!([80, 256, 512, 1024, 1 << 20].map(reserve), [10, 32, 64, 64, 64]);
    }
}
