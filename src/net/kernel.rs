//! What the kernel counts about us: drops at a socket, processor time.
//!
//! Asked at a scrape, by the thread that scrapes; no packet pays for it.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Places of the answer to SO_MEMINFO, and where the drops stand in it (linux/sock_diag.h).
const MEMINFO_PLACES: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// How many packets the kernel dropped at a socket since it was opened, most of them because its buffer was
/// full. The count wraps.
pub(super) fn socket_drops(fd: RawFd) -> io::Result<u32> {
    let mut info = [0_u32; MEMINFO_PLACES];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info` and the length to `len`; both live across the call.
    // A descriptor that is none, or no socket, is an error.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < size_of_val(&info) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(info[MEMINFO_DROPS])
}

/// Asks the allocator to give pages without anything in use back to the system. Takes milliseconds, during which
/// others may have to wait for memory: not for a worker, and not often.
pub(super) fn give_back_memory() {
    // Other libraries than glibc give back by themselves, or have no way to be asked.
    // SAFETY: it takes a number, and every lock that it needs.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The clock that tells how long one thread has been on a processor.
#[derive(Debug, Default)]
pub struct ThreadClock {
    id: AtomicI32,
    /// What it said when the thread ended.
    at_end: AtomicU64,
}

impl ThreadClock {
    /// From now on this is the clock of the calling thread.
    pub(super) fn adopt(&self) {
        let mut id = MaybeUninit::<libc::clockid_t>::uninit();
        // SAFETY: the calling thread exists; `id` is written on success, and read only then.
        let id = unsafe {
            if libc::pthread_getcpuclockid(libc::pthread_self(), id.as_mut_ptr()) != 0 {
                return;
            }
            id.assume_init()
        };
        self.id.store(id, Ordering::Relaxed);
    }

    /// The calling thread is about to end: the kernel knows it for a moment longer, and may give its number to another.
    pub(super) fn give_up(&self) {
        self.at_end.store(self.nanoseconds().unwrap_or_default(), Ordering::Relaxed);
        self.id.store(0, Ordering::Release);
    }

    /// Nanoseconds of processor time, the kernel's work for the thread included; `None` before its start.
    pub(super) fn nanoseconds(&self) -> Option<u64> {
        // Clocks of threads are negative numbers.
        let now = Some(self.id.load(Ordering::Acquire)).filter(|id| *id < 0).and_then(nanoseconds);
        now.or_else(|| Some(self.at_end.load(Ordering::Relaxed)).filter(|at_end| *at_end > 0))
    }
}

fn nanoseconds(clock: libc::clockid_t) -> Option<u64> {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the kernel fills `time` on success, and it is read only then; a clock that is none is an error.
    let time = unsafe {
        if libc::clock_gettime(clock, time.as_mut_ptr()) != 0 {
            return None;
        }
        time.assume_init()
    };
    Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_threads_clock_is_read_by_others_while_it_lives() {
        let clock = Arc::new(ThreadClock::default());
        assert_eq!(clock.nanoseconds(), None, "it has no thread yet");
        let ((done, is_done), (stop, stopped)) = (channel(), channel());
        let of_thread = Arc::clone(&clock);
        let thread = std::thread::spawn(move || {
            of_thread.adopt();
            let began = of_thread.nanoseconds().unwrap();
            while of_thread.nanoseconds().unwrap() < began + 20_000_000 {}
            done.send(()).unwrap();
            let told = stopped.recv();
            of_thread.give_up();
            told
        });
        is_done.recv().unwrap();
        let worked = clock.nanoseconds().unwrap();
        assert!(worked >= 20_000_000, "{worked}");
        assert!(crate::clock::processor_nanoseconds() >= worked);
        std::thread::sleep(std::time::Duration::from_millis(60));
        let slept = clock.nanoseconds().unwrap();
        assert!(slept < worked + 30_000_000, "a thread that sleeps takes no processor time: {worked}, {slept}");
        stop.send(()).unwrap();
        thread.join().unwrap().unwrap();
        assert!(clock.nanoseconds() >= Some(slept), "what it took in all stays");
    }

    #[test]
    fn what_is_no_socket_has_no_drops() {
        assert!(socket_drops(-1).is_err());
        assert!(socket_drops(std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").unwrap())).is_err());
    }
}
