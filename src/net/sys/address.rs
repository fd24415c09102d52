//! Socket addresses as the kernel writes them, and as it wants them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::c_int;

/// Room for IP_PKTINFO or IPV6_PKTINFO, a traffic class and a segment size; or for an error with the address that it is of.
pub(super) const CONTROL_BYTES: usize = 96;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control(pub(super) [u8; CONTROL_BYTES]);

pub(super) fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is, and the storage is larger and aligned for all.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(address.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id)))
        }
        _ => None,
    }
}

/// Gives the length of what it wrote.
pub(super) fn write_socket_address(storage: &mut libc::sockaddr_storage, address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(address) => {
            // SAFETY: the storage is larger than and aligned for every socket address.
            let place = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in>() };
            place.sin_family = libc::AF_INET as u16;
            place.sin_port = address.port().to_be();
            place.sin_addr.s_addr = u32::from(*address.ip()).to_be();
            size_of::<libc::sockaddr_in>() as u32
        }
        SocketAddr::V6(address) => {
            // SAFETY: as above.
            let place = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in6>() };
            place.sin6_family = libc::AF_INET6 as u16;
            place.sin6_port = address.port().to_be();
            place.sin6_flowinfo = 0;
            place.sin6_addr.s6_addr = address.ip().octets();
            place.sin6_scope_id = address.scope_id();
            size_of::<libc::sockaddr_in6>() as u32
        }
    }
}

/// Ancillary data of one message to be sent, piece behind piece.
pub(super) struct ControlWriter<'a> {
    control: &'a mut Control,
    len: usize,
}

impl<'a> ControlWriter<'a> {
    pub(super) const fn new(control: &'a mut Control) -> Self {
        Self { control, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    fn put<T>(&mut self, level: c_int, kind: c_int, payload: T) {
        // SAFETY: plain arithmetic on a constant.
        let space = unsafe { libc::CMSG_SPACE(size_of::<T>() as u32) } as usize;
        assert!(self.len + space <= CONTROL_BYTES, "the buffer holds every piece that is ever put together");
        // SAFETY: the buffer is aligned for `cmsghdr`, every space is a multiple of that alignment, and it has room as
        // asserted; the payload is written unaligned.
        unsafe {
            let head = self.control.0.as_mut_ptr().add(self.len).cast::<libc::cmsghdr>();
            (*head).cmsg_level = level;
            (*head).cmsg_type = kind;
            (*head).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as usize;
            libc::CMSG_DATA(head).cast::<T>().write_unaligned(payload);
        }
        self.len += space;
    }

    /// The address that the message leaves from.
    pub(super) fn source(&mut self, from: IpAddr) {
        match from {
            IpAddr::V4(ip) => self.put(
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                },
            ),
            IpAddr::V6(ip) => self.put(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 },
            ),
        }
    }

    /// DSCP and ECN of a message to that address.
    pub(super) fn traffic_class(&mut self, to: &SocketAddr, class: u8) {
        let (level, kind) = match to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        self.put(level, kind, c_int::from(class));
    }

    /// The kernel, or the network card, cuts the message into datagrams of this size.
    pub(super) fn segment(&mut self, bytes: u16) {
        self.put(libc::SOL_UDP, libc::UDP_SEGMENT, bytes);
    }
}

/// What ancillary data of a received message say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RecvMeta {
    /// Which address of ours it was sent to.
    pub(super) to: Option<IpAddr>,
    /// The size of each datagram in it but the last; 0 if it is one.
    pub(super) segment: usize,
    /// DSCP and ECN.
    pub(super) class: u8,
}

pub(super) fn read_control(header: &libc::msghdr) -> RecvMeta {
    let mut told = RecvMeta::default();
    // SAFETY: the kernel filled `msg_control` and set `msg_controllen` to what it wrote; the CMSG functions stay
    // inside it, and each payload is read unaligned and only for its own type.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(head) = message.as_ref() {
            match (head.cmsg_level, head.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = libc::CMSG_DATA(message).cast::<libc::in_pktinfo>().read_unaligned();
                    told.to = Some(IpAddr::V4(u32::from_be(info.ipi_addr.s_addr).into()));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = libc::CMSG_DATA(message).cast::<libc::in6_pktinfo>().read_unaligned();
                    told.to = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                // One byte over IPv4, a number over IPv6.
                (libc::IPPROTO_IP, libc::IP_TOS) => told.class = libc::CMSG_DATA(message).read(),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    let class: c_int = libc::CMSG_DATA(message).cast::<c_int>().read_unaligned();
                    told.class = class as u8;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let segment: c_int = libc::CMSG_DATA(message).cast::<c_int>().read_unaligned();
                    told.segment = usize::try_from(segment).unwrap_or(0);
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    told
}
