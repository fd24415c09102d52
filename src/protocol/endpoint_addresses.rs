//! The addresses of an allocation, packed: the client's, ours that it talks to, the relayed one.

use std::net::{IpAddr, Ipv4Addr};

use crate::address::{
    Address, ClientAddress, Family, FiveTuple, RelayedTransportAddress, ServerAddress, Transport, Via,
};

/// Three times IPv4 and UDP in 18 bytes, which is nearly every allocation; anything else is kept aside.
#[derive(Clone, Debug)]
pub(super) enum EndpointAddresses {
    Ipv4Endpoint { client: Ipv4Endpoint, server: Ipv4Endpoint, relayed: Ipv4Endpoint },
    Wide(Box<(Via, RelayedTransportAddress, IsTcp)>),
}

/// Whether an allocation is one of TCP (RFC 6062).
type IsTcp = bool;

const _: () = assert!(size_of::<EndpointAddresses>() == 24);

/// An IPv4 address and a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ipv4Endpoint {
    ip: [u8; 4],
    port: u16,
}

impl Ipv4Endpoint {
    #[inline]
    const fn of(address: Address) -> Option<Self> {
        match address.ip {
            IpAddr::V4(ip) => Some(Self { ip: ip.octets(), port: address.port }),
            IpAddr::V6(_) => None,
        }
    }

    #[inline]
    fn is(self, address: Address) -> bool {
        Self::of(address) == Some(self)
    }

    #[inline]
    fn address(self) -> Address {
        Address::new(IpAddr::V4(Ipv4Addr::from(self.ip)), self.port)
    }
}

impl EndpointAddresses {
    pub(super) fn new(via: Via, relayed: RelayedTransportAddress) -> Self {
        if let Via::Datagram(FiveTuple { client, server, transport: Transport::Udp }) = via
            && let [Some(client), Some(server), Some(relayed)] =
                [client.address(), server.0, relayed.0].map(Ipv4Endpoint::of)
        {
            return Self::Ipv4Endpoint { client, server, relayed };
        }
        Self::Wide(Box::new((via, relayed, false)))
    }

    /// The same of a TCP allocation.
    pub(super) fn tcp(via: Via, relayed: RelayedTransportAddress) -> Self {
        Self::Wide(Box::new((via, relayed, true)))
    }

    /// Whether the relayed address is one of TCP.
    #[inline]
    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Wide(endpoints) if endpoints.2)
    }

    #[inline]
    pub(super) fn via(&self) -> Via {
        match self {
            Self::Ipv4Endpoint { client, server, .. } => Via::Datagram(FiveTuple {
                client: ClientAddress::new(client.address().ip, client.port),
                server: ServerAddress(server.address()),
                transport: Transport::Udp,
            }),
            Self::Wide(endpoints) => endpoints.0,
        }
    }

    /// Whether the client comes this way. A stream is known by its number alone.
    #[inline]
    pub(super) fn comes(&self, via: &Via) -> bool {
        match (self, via) {
            (Self::Ipv4Endpoint { client, server, .. }, Via::Datagram(five_tuple)) => {
                client.is(five_tuple.client.address())
                    && server.is(five_tuple.server.0)
                    && five_tuple.transport == Transport::Udp
            }
            (Self::Wide(endpoints), Via::Datagram(_)) => endpoints.0 == *via,
            (Self::Wide(endpoints), Via::Stream(stream, _)) => {
                matches!(&endpoints.0, Via::Stream(own, _) if own == stream)
            }
            (Self::Ipv4Endpoint { .. }, Via::Stream(..)) => false,
        }
    }

    #[inline]
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Wide(endpoints) if endpoints.0.is_stream())
    }

    #[inline]
    pub(super) fn relayed(&self) -> RelayedTransportAddress {
        match self {
            Self::Ipv4Endpoint { relayed, .. } => RelayedTransportAddress(relayed.address()),
            Self::Wide(endpoints) => endpoints.1,
        }
    }

    /// The family of the client's address.
    pub(super) fn client_family(&self) -> Family {
        match self {
            Self::Ipv4Endpoint { .. } => Family::V4,
            Self::Wide(endpoints) => endpoints.0.five_tuple().client.family(),
        }
    }

    #[inline]
    pub(super) fn family(&self) -> Family {
        match self {
            Self::Ipv4Endpoint { .. } => Family::V4,
            Self::Wide(endpoints) => endpoints.1.family(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::StreamId;

    #[test]
    fn whatever_goes_in_comes_out_and_is_told_from_what_is_not_the_same() {
        let five_tuple = |client: &str, server: &str, transport| FiveTuple {
            client: client.parse::<std::net::SocketAddr>().unwrap().into(),
            server: server.parse::<std::net::SocketAddr>().unwrap().into(),
            transport,
        };
        let (v4, v6) = (("9.9.9.9:1", "9.9.9.8:3478"), ("[2a00::1]:1", "[2a00::2]:3478"));
        let vias = [
            Via::Datagram(five_tuple(v4.0, v4.1, Transport::Udp)),
            Via::Datagram(five_tuple("9.9.9.9:2", v4.1, Transport::Udp)),
            Via::Datagram(five_tuple(v4.0, "9.9.9.7:3478", Transport::Udp)),
            Via::Datagram(five_tuple(v4.0, v4.1, Transport::Tcp)),
            Via::Datagram(five_tuple(v6.0, v6.1, Transport::Udp)),
            Via::Datagram(five_tuple("[::ffff:9.9.9.9]:1", v4.1, Transport::Udp)),
            Via::Stream(StreamId(1), five_tuple(v4.0, v4.1, Transport::Tcp)),
            Via::Stream(StreamId(2), five_tuple(v4.0, v4.1, Transport::Tcp)),
        ];
        for relayed in ["7.7.7.7:50000", "[2a00::7]:50000"] {
            let relayed: RelayedTransportAddress = relayed.parse::<std::net::SocketAddr>().unwrap().into();
            for via in vias {
                let endpoints = EndpointAddresses::new(via, relayed);
                assert_eq!(
                    (endpoints.via(), endpoints.relayed(), endpoints.family()),
                    (via, relayed, relayed.family())
                );
                assert_eq!(endpoints.client_family(), via.five_tuple().client.family());
                assert_eq!(vias.iter().filter(|other| endpoints.comes(other)).collect::<Vec<_>>(), [&via]);
            }
        }
    }
}
