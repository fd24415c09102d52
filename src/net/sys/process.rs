//! Two processes with one table of descriptors: a parent that only waits, and its child that serves.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use libc::c_int;
use rustix::process::{Resource, getrlimit};

use super::check;

/// The highest number that is looked at without /proc.
const NUMBERS_MAX: RawFd = 1 << 20;

/// What a clone of this process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cloned {
    /// This is the new process.
    Child,
    /// This is the old one, and that is the new one's number.
    Parent(libc::pid_t),
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// Makes a copy of this process whose descriptors are the same table: what one opens or closes, the other has opened or
/// closed, and what the child had open stays open when it is killed (CLONE_FILES of clone(2)).
///
/// Must be called while the process has one thread.
pub(crate) fn clone_with_descriptors() -> io::Result<Cloned> {
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: without a stack of its own the child goes on here with a copy of this process's memory, as after fork(2). There
    // is one thread, so no lock is held by a thread that the child does not have.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    match pid {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => Ok(Cloned::Parent(pid as libc::pid_t)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// This process is killed when its parent, which is `parent`, ends.
pub(crate) fn end_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: prctl(2) with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    if std::os::unix::process::parent_id() == parent {
        Ok(())
    } else {
        Err(io::Error::other("the supervisor has gone"))
    }
}

/// Signals that wait until somebody asks for them.
pub(crate) struct HeldSignals(libc::sigset_t);

fn change_mask(how: c_int, signals: &[c_int]) -> io::Result<libc::sigset_t> {
    // SAFETY: all bits zero are a signal set, which sigemptyset fills anyway; the pointers are of this function.
    unsafe {
        let mut set = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut set))?;
        for signal in signals {
            check(libc::sigaddset(&raw mut set, *signal))?;
        }
        match libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) {
            0 => Ok(set),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// From now on these are heard by this thread, whatever the process that started this one had held back: a process inherits that.
pub(crate) fn hear(signals: &[c_int]) -> io::Result<()> {
    change_mask(libc::SIG_UNBLOCK, signals).map(drop)
}

impl HeldSignals {
    /// Holds these back from now on, in this thread and those that it starts. The end of a child is heard, whatever the process
    /// that started this one did not want to hear.
    pub(crate) fn hold(signals: &[c_int]) -> io::Result<Self> {
        // SAFETY: the default action, which runs no code of this process.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        change_mask(libc::SIG_BLOCK, signals).map(Self)
    }

    /// Waits for the next of those held back.
    pub(crate) fn next(&self) -> io::Result<c_int> {
        loop {
            // SAFETY: the set is whole; no information about the signal is asked for.
            let signal = unsafe { libc::sigwaitinfo(&raw const self.0, std::ptr::null_mut()) };
            match check(signal) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// How this child ended; nothing if it lives.
pub(crate) fn ended(child: libc::pid_t) -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: the pointer is of this function.
    let found = check(unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) })?;
    Ok((found == child).then(|| {
        if libc::WIFSIGNALED(status) {
            Ended::Killed(libc::WTERMSIG(status))
        } else {
            Ended::Exited(libc::WEXITSTATUS(status))
        }
    }))
}

/// Sends a signal to a child that was not waited for yet.
pub(crate) fn signal(child: libc::pid_t, signal: c_int) {
    // SAFETY: kill(2) with plain numbers. The child may have ended.
    unsafe { libc::kill(child, signal) };
}

/// Takes a descriptor that a process with the same table opened, and that no part of this one owns; nothing if it is closed.
pub(crate) fn adopt_descriptor(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl(2) with plain numbers.
    let is_open = number > 2 && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    // SAFETY: it is open, and the caller says that it has no owner.
    is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes a socket as [`adopt_descriptor`] does, if it is bound to an address that fits: a number that was closed may have been given to
/// something else, which owns it.
pub(crate) fn adopt_if(number: RawFd, fits: impl FnOnce(SocketAddr) -> bool) -> Option<OwnedFd> {
    if number <= 2 {
        return None;
    }
    // SAFETY: it is used for one call, which fails if it is closed.
    let address = rustix::net::getsockname(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    let does_fit = SocketAddr::try_from(address).is_ok_and(fits);
    // SAFETY: it is open, and the caller says that it has no owner.
    does_fit.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor but the first three and those to `keep`: none of them may have an owner in this process.
pub(crate) fn close_all_but(mut keep: Vec<RawFd>) {
    keep.sort_unstable();
    let mut from = 3;
    for number in keep.iter().copied().chain([RawFd::MAX]) {
        if from < number && !close_range(from, number - 1) {
            // The kernel is older than 5.9.
            let others = open_descriptors().into_iter().filter(|number| keep.binary_search(number).is_err());
            return others.filter_map(adopt_descriptor).for_each(drop);
        }
        from = from.max(number.saturating_add(1));
    }
}

fn close_range(first: RawFd, last: RawFd) -> bool {
    // SAFETY: close_range(2) with plain numbers; the caller says that none of them has an owner.
    unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, last as libc::c_uint, 0) == 0 }
}

/// Every open descriptor but the first three.
fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        // No /proc, or no descriptor left to read it.
        let end = getrlimit(Resource::Nofile)
            .maximum
            .map_or(NUMBERS_MAX, |end| end.min(u64::from(NUMBERS_MAX.unsigned_abs())) as RawFd);
        return (3..end).collect();
    };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // That of the directory itself is closed by now, and is looked at before it is adopted.
    numbers.filter(|number| *number > 2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_descriptors_are_adopted() {
        use std::os::fd::IntoRawFd as _;
        let number = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        assert!(open_descriptors().contains(&number));
        assert!(adopt_descriptor(number).is_some());
        assert!(adopt_descriptor(1 << 24).is_none() && adopt_descriptor(-1).is_none() && adopt_descriptor(1).is_none());
    }
}
