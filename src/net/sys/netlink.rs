//! A socket for rtnetlink(7).

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::check;

/// Opens one that hears of these groups (`RTMGRP_*`) and does not block; dressed as a UDP socket, which receives and sends
/// as well: whole datagrams.
pub(in crate::net) fn netlink(groups: u32) -> io::Result<UdpSocket> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; the descriptor that comes back is ours alone.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
    // SAFETY: as above.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero bytes are a valid address: the kernel's, which then chooses ours.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = groups;
    let size = size_of::<libc::sockaddr_nl>() as u32;
    // SAFETY: the kernel reads `size` bytes of `address` during the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) })?;
    // What is sent goes to the kernel.
    address.nl_groups = 0;
    // SAFETY: the kernel reads `size` bytes of `address` during the call.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(fd.into())
}

/// Lets the kernel leave out of a dump what was not asked for (Linux 4.20).
pub(in crate::net) fn strict(socket: &UdpSocket) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    super::set_option(socket.as_fd(), libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, &1_i32)
}
