//! The four addresses of NAT behaviour discovery (RFC 5780): two IPv4 addresses with the same two ports each.

use std::net::{IpAddr, Ipv4Addr};

use crate::address::{Address, FiveTuple, ServerAddress, Transport};
use crate::wire::behavior::Change;

/// `stun.discovery`: neither the addresses nor the ports are equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Discovery {
    local: [Ipv4Addr; 2],
    advertised: [Ipv4Addr; 2],
    ports: [u16; 2],
    over_tcp: bool,
}

/// One of the four addresses: which IP address, and which port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corner {
    ip: bool,
    port: bool,
}

/// What a response says of this server's addresses, as clients know them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origins {
    /// Where the response comes from.
    pub origin: Address,
    /// Where it would come from with another address and another port than those that were asked.
    pub other: Option<Address>,
}

impl Corner {
    /// The one that a response leaves from.
    #[must_use]
    pub const fn changed(self, change: Change) -> Self {
        Self { ip: self.ip != change.ip, port: self.port != change.port }
    }
}

const fn pick<T: Copy>([first, second]: [T; 2], is_second: bool) -> T {
    if is_second { second } else { first }
}

fn place<T: PartialEq>(pair: &[T; 2], wanted: &T) -> Option<bool> {
    pair.iter().position(|one| one == wanted).map(|at| at == 1)
}

impl Discovery {
    /// The addresses as they are bound; `over_tcp` if all four are listeners for TCP as well. `None` unless both differ.
    #[must_use]
    pub fn new(ips: [Ipv4Addr; 2], ports: [u16; 2], over_tcp: bool) -> Option<Self> {
        let all_differ = ips[0] != ips[1] && ports[0] != ports[1];
        all_differ.then_some(Self { local: ips, advertised: ips, ports, over_tcp })
    }

    /// The same with the public addresses that clients are told. `None` as long as one is unknown, or if both are one.
    #[must_use]
    pub fn advertised_as(self, public: impl Fn(IpAddr) -> Option<IpAddr>) -> Option<Self> {
        let of = |ip: Ipv4Addr| match public(ip.into())? {
            IpAddr::V4(public) => Some(public),
            IpAddr::V6(_) => None,
        };
        let advertised = [of(self.local[0])?, of(self.local[1])?];
        (advertised[0] != advertised[1]).then_some(Self { advertised, ..self })
    }

    /// Both IP addresses, both ports, and whether TCP is part of it.
    #[must_use]
    pub const fn parts(&self) -> ([Ipv4Addr; 2], [u16; 2], bool) {
        (self.local, self.ports, self.over_tcp)
    }

    /// Which of the four a request came to over UDP; `None` for another listener.
    #[must_use]
    pub fn corner(&self, five_tuple: &FiveTuple) -> Option<Corner> {
        match five_tuple.transport {
            Transport::Udp => self.corner_of(&five_tuple.server),
            Transport::Tcp | Transport::Tls => None,
        }
    }

    fn corner_of(&self, server: &ServerAddress) -> Option<Corner> {
        let IpAddr::V4(ip) = server.ip() else { return None };
        Some(Corner { ip: place(&self.local, &ip)?, port: place(&self.ports, &server.port())? })
    }

    /// The address that such a response leaves from.
    #[must_use]
    pub fn server(&self, corner: Corner) -> ServerAddress {
        ServerAddress::new(pick(self.local, corner.ip).into(), pick(self.ports, corner.port))
    }

    fn advertised(&self, corner: Corner) -> Address {
        Address::new(pick(self.advertised, corner.ip).into(), pick(self.ports, corner.port))
    }

    /// What the response to a request at one of the four says that leaves from another one, or the same.
    // [5780-6.1-3, -4]
    #[must_use]
    pub fn origins(&self, asked: Corner, from: Corner) -> Origins {
        let other = asked.changed(Change { ip: true, port: true });
        Origins { origin: self.advertised(from), other: Some(self.advertised(other)) }
    }

    /// What a response says that leaves from where the request came to, over UDP or plain TCP.
    // [5780-6-4, 5780-7.4-1]
    #[must_use]
    pub fn origins_at(&self, five_tuple: &FiveTuple) -> Option<Origins> {
        if five_tuple.transport == Transport::Tls {
            return None;
        }
        let corner = self.corner_of(&five_tuple.server)?;
        let origins = self.origins(corner, corner);
        let has_other = five_tuple.transport == Transport::Udp || self.over_tcp;
        Some(Origins { other: origins.other.filter(|_| has_other), ..origins })
    }
}
