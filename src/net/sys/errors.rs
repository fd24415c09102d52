//! What ICMP said of the datagrams that a socket sent: its error queue (ip(7): IP_RECVERR).

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::address::{CONTROL_BYTES, Control, socket_address};
use super::check;
use crate::protocol::icmp::IcmpError;

/// Fragmentation needed and DF set, or packet too big: what this machine's own link says where a datagram with DF is too
/// large for it.
const IPV4_TOO_BIG: (u8, u8) = (3, 4);
const IPV6_TOO_BIG: (u8, u8) = (2, 0);

/// One entry of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::net) enum SocketError {
    /// An ICMP error about a datagram to this address; without a port, where this machine itself found it too large.
    Icmp(SocketAddr, IcmpError),
    /// Something else, which says nothing about a way.
    Other,
}

/// Takes the oldest entry of a socket's error queue; `None` if there is none.
pub(in crate::net) fn socket_error(fd: BorrowedFd<'_>) -> io::Result<Option<SocketError>> {
    // SAFETY: all-zero bytes are a valid value of each of these plain C structures.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = Control([0; CONTROL_BYTES]);
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL_BYTES;
    // SAFETY: the header points to `name` and `control`, which live across the call, and to no bytes of a payload.
    let received =
        check(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) as _ });
    match received {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let told = error_of(&header).and_then(|error| Some((socket_address(&name)?, error)));
    let Some((to, error)) = told else { return Ok(Some(SocketError::Other)) };
    let (icmp_type, code) = match (error.ee_origin, error.ee_errno as i32, to) {
        (libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6, ..) => (error.ee_type, error.ee_code),
        (libc::SO_EE_ORIGIN_LOCAL, libc::EMSGSIZE, SocketAddr::V4(_)) => IPV4_TOO_BIG,
        (libc::SO_EE_ORIGIN_LOCAL, libc::EMSGSIZE, SocketAddr::V6(_)) => IPV6_TOO_BIG,
        _ => return Ok(Some(SocketError::Other)),
    };
    Ok(Some(SocketError::Icmp(to, IcmpError { icmp_type, code, mtu: error.ee_info })))
}

fn error_of(header: &libc::msghdr) -> Option<libc::sock_extended_err> {
    // SAFETY: the kernel filled `msg_control` and set `msg_controllen` to what it wrote; the CMSG functions stay inside
    // it, and the payload is read unaligned and only where the kinds say that it is that structure.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(head) = message.as_ref() {
            if matches!(
                (head.cmsg_level, head.cmsg_type),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            ) {
                return Some(libc::CMSG_DATA(message).cast::<libc::sock_extended_err>().read_unaligned());
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::*;
    use crate::net::sys::{LargeDatagrams, set_large_datagrams, tell_icmp_errors};

    fn next(socket: &UdpSocket) -> Option<SocketError> {
        for _ in 0..100 {
            if let Some(error) = socket_error(socket.as_fd()).unwrap() {
                return Some(error);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    #[test]
    fn a_closed_port_and_a_datagram_that_is_too_large_are_told() {
        for (address, refused, too_big) in [("127.0.0.1:0", (3, 3), (3, 4)), ("[::1]:0", (1, 4), (2, 0))] {
            let (socket, closed) = (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
            let to = closed.local_addr().unwrap();
            tell_icmp_errors(socket.as_fd(), to.is_ipv6()).unwrap();
            assert_eq!(socket_error(socket.as_fd()).unwrap(), None);
            drop(closed);
            socket.send_to(b"x", to).unwrap();
            let error = |(icmp_type, code), mtu| Some(SocketError::Icmp(to, IcmpError { icmp_type, code, mtu }));
            assert_eq!(next(&socket), error(refused, 0));
            set_large_datagrams(socket.as_fd(), to.is_ipv6(), LargeDatagrams::Whole).unwrap();
            // The loopback link takes 65,536 bytes, and with IPv6 the headers don't count in a datagram's 65,535.
            let mut large = socket.send_to(&[0; 65_507], to);
            if large.as_ref().is_err_and(crate::net::sys::may_be_pending) {
                large = socket.send_to(&[0; 65_507], to);
            }
            match large {
                Ok(_) => assert_eq!(next(&socket), error(refused, 0)),
                Err(told) => {
                    assert_eq!(told.raw_os_error(), Some(libc::EMSGSIZE));
                    assert!(matches!(next(&socket), Some(SocketError::Icmp(of, told))
                        if of.ip() == to.ip() && (told.icmp_type, told.code) == too_big && told.mtu > 1_000));
                }
            }
        }
    }
}
