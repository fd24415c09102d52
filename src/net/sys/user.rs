//! Users of this machine: who we are, who is at the other end of a unix socket, and becoming another user for the rest of the
//! process.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::process::Pid;

use super::check;

/// Room for a line of the database of users.
const ENTRY_BYTES: usize = 16 * 1024;

/// A user of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    name: CString,
    uid: u32,
    gid: u32,
}

/// The effective user id of this process.
#[must_use]
pub fn effective_uid() -> u32 {
    // SAFETY: no arguments, and it never fails.
    unsafe { libc::geteuid() }
}

/// The process that connected the other end of a unix socket, or made both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::net) struct PeerCredentials {
    /// `None` for a process of another PID namespace: it has no number here.
    pub(in crate::net) pid: Option<Pid>,
    pub(in crate::net) uid: u32,
}

impl PeerCredentials {
    /// What the kernel noted when the socket was connected. The face of rustix has no place for a process without a number.
    pub(in crate::net) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        let into = (&raw mut found).cast();
        // SAFETY: both pointers are to values that live across the call, and the first one's size is given.
        check(unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut len)
        })?;
        Ok(Self { pid: Pid::from_raw(found.pid), uid: found.uid })
    }
}

impl User {
    /// Looks a user up by name, in whatever database the system has.
    ///
    /// # Errors
    /// What the system says; `Ok(None)` if there is no such user.
    pub fn find(name: &str) -> io::Result<Option<Self>> {
        let Ok(name) = CString::new(name) else { return Ok(None) };
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut text = vec![0; ENTRY_BYTES];
        let mut found = std::ptr::null_mut();
        // SAFETY: every pointer is to memory that lives across the call, and the buffer's length is given.
        let error = unsafe {
            libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &raw mut found)
        };
        if error != 0 && error != libc::ENOENT {
            return Err(io::Error::from_raw_os_error(error));
        }
        if found.is_null() {
            return Ok(None);
        }
        // SAFETY: a result that is not null points to `entry`, which is filled in then.
        let entry = unsafe { entry.assume_init() };
        Ok(Some(Self { name, uid: entry.pw_uid, gid: entry.pw_gid }))
    }

    /// The user's number.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// The number of the user's own group.
    #[must_use]
    pub const fn gid(&self) -> u32 {
        self.gid
    }

    /// Takes this user's rights to files, groups included, until [`give_back`]. Only root can take another's.
    ///
    /// # Errors
    /// What the system says.
    pub fn take_rights(&self) -> io::Result<()> {
        if effective_uid() == self.uid {
            return Ok(());
        }
        effective(&self.name, self.gid, self.uid)
    }
}

/// Ends what [`User::take_rights`] began, in a process that root started.
///
/// # Errors
/// What the system says.
pub fn give_back() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::seteuid(0) })?;
    effective(c"root", 0, 0)
}

/// Changes groups, group and user in this order: once the user is another one, the groups can't be changed any more.
fn effective(name: &CStr, gid: u32, uid: u32) -> io::Result<()> {
    // SAFETY: the name ends with a zero byte; the others have no pointers.
    unsafe {
        check(libc::initgroups(name.as_ptr(), gid))?;
        check(libc::setegid(gid))?;
        check(libc::seteuid(uid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_unix_socket_tells_who_made_it_and_others_tell_of_nobody() {
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let found = PeerCredentials::of(end.as_fd()).unwrap();
        assert_eq!(found, PeerCredentials { pid: Some(rustix::process::getpid()), uid: effective_uid() });
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let of_none = PeerCredentials::of(udp.as_fd()).unwrap();
        assert_eq!(of_none, PeerCredentials { pid: None, uid: u32::MAX });
    }

    #[test]
    fn users_are_found_by_name() {
        assert_eq!(User::find("root").unwrap().map(|user| user.uid), Some(0));
        assert_eq!(User::find("no-such-user-here").unwrap(), None);
        assert_eq!(User::find("a\0b").unwrap(), None);
    }
}
