//! What the kernel's routing tells of this machine's addresses: which prefixes it delivers here, and when that changes.
//!
//! rtnetlink(7), spoken on the control runtime; no worker comes here. Addresses of interfaces are read by `interfaces`.
//! Every message comes from our own kernel; one that is not understood counts as a change, and is never trusted.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::sys;

/// The table that the kernel looks into first, where `ip route add local` and every address of an interface end up.
const TABLE_LOCAL: u8 = libc::RT_TABLE_LOCAL;

/// What one read takes: the kernel fills up to 32 KiB of a dump.
const BUFFER: usize = 32 << 10;

/// Prefixes this short decide where most of the world is reached from, so they may change the address to relay from.
const SHORT: u8 = 8;

/// Changes of links, of addresses and of routes, both families.
const GROUPS: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE) as u32;

/// struct nlmsghdr: length, type, flags, sequence, port.
const HEAD: usize = 16;

/// struct rtmsg: family, two prefix lengths, type of service, table, protocol, scope, type, flags.
const ROUTE_HEAD: usize = 12;

/// One message: its type, and what follows its header.
#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The messages of one datagram; `None` for one that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Option<Message<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = u32_at(bytes, 0).zip(u16_at(bytes, 4)).and_then(|(len, kind)| {
            let len = len as usize;
            let body = bytes.get(HEAD..len)?;
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some(Message { kind, body })
        });
        if message.is_none() {
            bytes = &[];
        }
        Some(message)
    })
}

/// struct rtmsg and its attributes.
#[derive(Clone, Copy, Debug)]
struct Route<'a> {
    family: i32,
    prefix_len: u8,
    table: u8,
    kind: u8,
    attributes: &'a [u8],
}

impl<'a> Route<'a> {
    fn parse(body: &'a [u8]) -> Option<Self> {
        let (head, attributes) = body.split_at_checked(ROUTE_HEAD)?;
        Some(Self { family: i32::from(head[0]), prefix_len: head[1], table: head[4], kind: head[7], attributes })
    }

    /// Whether packets for it come to this machine's own sockets.
    const fn is_delivered(&self) -> bool {
        matches!(self.kind, libc::RTN_LOCAL | libc::RTN_ANYCAST)
    }

    /// Its destination; without one it is the default route.
    fn prefix(&self) -> Option<IpNet> {
        let mut left = self.attributes;
        let mut to: Option<&[u8]> = None;
        while let (Some(len), Some(kind)) = (u16_at(left, 0), u16_at(left, 2)) {
            let len = usize::from(len);
            if kind == libc::RTA_DST {
                to = Some(left.get(4..len)?);
            }
            left = left.get(len.next_multiple_of(4).max(4)..).unwrap_or_default();
        }
        let ip: IpAddr = match (self.family, to) {
            (libc::AF_INET, None) => Ipv4Addr::UNSPECIFIED.into(),
            (libc::AF_INET, Some(to)) => <[u8; 4]>::try_from(to).ok()?.into(),
            (libc::AF_INET6, None) => Ipv6Addr::UNSPECIFIED.into(),
            (libc::AF_INET6, Some(to)) => <[u8; 16]>::try_from(to).ok()?.into(),
            _ => return None,
        };
        IpNet::new(ip, self.prefix_len).ok()
    }
}

/// The prefixes that are delivered to this machine by its table `local`: addresses of interfaces, and what
/// `ip route add local` put there.
///
/// # Errors
/// What the system says; a kernel without a family has no prefix of it.
pub(super) fn local_routes() -> io::Result<Vec<IpNet>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family, &mut found)?;
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn dump(family: i32, found: &mut Vec<IpNet>) -> io::Result<()> {
    let socket = sys::netlink(0)?;
    // The kernel answers while it is asked; what there is to read is there at once.
    socket.set_nonblocking(false)?;
    // The kernel then leaves all other tables out; what one that is too old sends is sorted out below.
    let _ = sys::strict(&socket);
    let mut request = [0; HEAD + ROUTE_HEAD];
    request[..4].copy_from_slice(&((HEAD + ROUTE_HEAD) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETROUTE.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request[HEAD] = family as u8;
    request[HEAD + 4] = TABLE_LOCAL;
    socket.send(&request)?;
    let mut buffer = vec![0; BUFFER];
    let unread = || io::Error::new(io::ErrorKind::InvalidData, "an answer of rtnetlink that can't be read");
    loop {
        let len = socket.recv(&mut buffer)?;
        for message in messages(&buffer[..len]) {
            let Message { kind, body } = message.ok_or_else(unread)?;
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let error = u32_at(body, 0).ok_or_else(unread)? as i32;
                    return match error.wrapping_neg() {
                        // No such table, or no such family in this kernel.
                        libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP => Ok(()),
                        error => Err(io::Error::from_raw_os_error(error)),
                    };
                }
                _ if kind == libc::RTM_NEWROUTE => {
                    let route = Route::parse(body).ok_or_else(unread)?;
                    if route.table == TABLE_LOCAL && route.is_delivered() && route.family == family {
                        found.push(route.prefix().ok_or_else(unread)?);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether a notice may mean another answer of [`local_routes`], of the interfaces' addresses or of the routes towards
/// the world. A router's thousands of other routes may come and go.
fn matters(message: Option<Message<'_>>) -> bool {
    let Some(message) = message else { return true };
    match message.kind {
        libc::RTM_NEWADDR | libc::RTM_DELADDR | libc::RTM_NEWLINK | libc::RTM_DELLINK => true,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            Route::parse(message.body).is_none_or(|route| route.is_delivered() || route.prefix_len <= SHORT)
        }
        _ => false,
    }
}

/// Notices of changed addresses and routes.
pub(super) struct Notices(tokio::net::UdpSocket);

impl Notices {
    /// Hears of all changes from now on. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// What the system says; a sandbox may forbid AF_NETLINK.
    pub(super) fn open() -> io::Result<Self> {
        tokio::net::UdpSocket::from_std(sys::netlink(GROUPS)?).map(Self)
    }

    /// Waits for a change that matters, and takes all notices that wait.
    ///
    /// # Errors
    /// The socket can't be waited for.
    pub(super) async fn next(&self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            self.0.readable().await?;
            let mut has_changed = false;
            loop {
                match self.0.try_recv(&mut buffer) {
                    Ok(len) => has_changed |= messages(&buffer[..len]).any(matters),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Some notices were lost: any of them may have mattered.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_changed = true,
                    Err(error) => return Err(error),
                }
            }
            if has_changed {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_local_has_the_loopback() {
        let routes = local_routes().unwrap();
        assert!(routes.contains(&"127.0.0.0/8".parse().unwrap()), "{routes:?}");
        assert!(routes.iter().all(|net| net.prefix_len() > 0), "{routes:?}");
    }

    fn route(kind: u8, prefix_len: u8, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 6];
        bytes[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        bytes.resize(HEAD, 0);
        bytes.extend([libc::AF_INET as u8, prefix_len, 0, 0, TABLE_LOCAL, 0, 0, kind, 0, 0, 0, 0]);
        bytes.extend(attributes);
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_notice_matters_if_the_answer_may_differ_or_if_it_can_not_be_read() {
        let one = |bytes: &[u8]| messages(bytes).map(matters).collect::<Vec<_>>();
        let (local, unicast) = (libc::RTN_LOCAL, libc::RTN_UNICAST);
        assert_eq!(
            one(&[route(unicast, 24, &[]), route(local, 32, &[]), route(unicast, 0, &[])].concat()),
            [false, true, true]
        );
        for len in 1..HEAD + ROUTE_HEAD {
            assert_eq!(one(&route(unicast, 24, &[])[..len]), [true], "cut to {len} bytes");
        }
        let mut no_length = route(unicast, 24, &[]);
        no_length[..4].fill(0);
        assert_eq!(one(&no_length), [true]);
    }

    #[test]
    fn attributes_of_any_length_end() {
        let to = [8, 0, libc::RTA_DST as u8, 0, 45, 0, 0, 0];
        let parse = |attributes: &[u8]| {
            let bytes = route(libc::RTN_LOCAL, 24, attributes);
            Route::parse(&bytes[HEAD..]).unwrap().prefix().map(|net| net.to_string())
        };
        assert_eq!(parse(&to), Some("45.0.0.0/24".to_owned()));
        assert_eq!(parse(&[]), Some("0.0.0.0/24".to_owned()));
        assert_eq!(parse(&[[0, 0, 9, 0].as_slice(), &to].concat()), Some("45.0.0.0/24".to_owned()));
        assert_eq!(parse(&[7, 0, libc::RTA_DST as u8, 0, 45, 0, 0]), None, "three bytes are no address");
        assert_eq!(parse(&[255, 255, libc::RTA_DST as u8, 0, 45]), None);
    }
}
