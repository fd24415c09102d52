//! The addresses of this machine's interfaces, read from the kernel once per question.
//!
//! `getifaddrs` is the only call here; what an address is good for is decided by the caller
//! (`demo::lan`).

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's name, such as `eth0`.
    pub interface: String,
    /// The address; an IPv6 scope is not kept.
    pub address: IpAddr,
    /// The interface is administratively up (`IFF_UP`).
    pub up: bool,
    /// The interface has a carrier (`IFF_RUNNING`); an idle bridge has none.
    pub running: bool,
    /// The interface is a loopback (`IFF_LOOPBACK`).
    pub loopback: bool,
}

/// All IPv4 and IPv6 addresses of this machine, in the kernel's order.
pub fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    let mut head: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: `head` is a valid place for one pointer. On success the list belongs to us until
    // `freeifaddrs`, which `List` calls exactly once.
    if unsafe { libc::getifaddrs(&mut head) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let list = List(head);

    let mut found = Vec::new();
    let mut entry = list.0;
    while !entry.is_null() {
        // SAFETY: `entry` is a node of the list that `list` keeps alive, and nothing writes to it.
        let node = unsafe { &*entry };
        entry = node.ifa_next;
        // SAFETY: `ifa_addr` is null or points to a socket address inside the same list.
        let Some(address) = (unsafe { address_of(node.ifa_addr) }) else {
            continue;
        };
        // SAFETY: `ifa_name` is a C string inside the same list.
        let name = unsafe { CStr::from_ptr(node.ifa_name) };
        found.push(InterfaceAddress {
            interface: name.to_string_lossy().into_owned(),
            address,
            up: node.ifa_flags & libc::IFF_UP as u32 != 0,
            running: node.ifa_flags & libc::IFF_RUNNING as u32 != 0,
            loopback: node.ifa_flags & libc::IFF_LOOPBACK as u32 != 0,
        });
    }
    Ok(found)
}

/// Owns what `getifaddrs` returned.
struct List(*mut libc::ifaddrs);

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a successful `getifaddrs` and is freed only here.
        unsafe { libc::freeifaddrs(self.0) }
    }
}

/// The IP address behind a socket address, or `None` for other families and for null.
///
/// # Safety
/// `raw` is null or points to a socket address whose length fits its family.
unsafe fn address_of(raw: *const libc::sockaddr) -> Option<IpAddr> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: not null, and every socket address starts with its family. The kernel aligns the
    // entries for any of them; `read_unaligned` does not even need that.
    let family = unsafe { ptr::addr_of!((*raw).sa_family).read_unaligned() };
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a `sockaddr_in`.
            let v4 = unsafe { raw.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is a `sockaddr_in6`.
            let v6 = unsafe { raw.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_listed_as_such() {
        let all = addresses().expect("getifaddrs");

        let lo = all
            .iter()
            .find(|entry| entry.address == IpAddr::V4(Ipv4Addr::LOCALHOST))
            .expect("127.0.0.1 on some interface");

        assert!(lo.loopback);
        assert!(lo.up);
        assert!(!lo.interface.is_empty());
    }
}
