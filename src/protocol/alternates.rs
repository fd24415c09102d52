//! Alternate servers: where clients of a draining server are sent (RFC 8489 section 10).

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::address::{Address, Transport, Via};

/// Where a client is sent: one address per family, since a client may have no other than the one it came by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Siblings {
    /// For those that came by IPv4.
    pub ipv4: Option<SocketAddrV4>,
    /// For those that came by IPv6.
    pub ipv6: Option<SocketAddrV6>,
}

impl Siblings {
    /// Adds the one of its family; gives the one that was there, which stays.
    pub const fn add(&mut self, address: SocketAddr) -> Option<SocketAddr> {
        match (address, &mut *self) {
            (SocketAddr::V4(_), Self { ipv4: Some(there), .. }) => Some(SocketAddr::V4(*there)),
            (SocketAddr::V6(_), Self { ipv6: Some(there), .. }) => Some(SocketAddr::V6(*there)),
            (SocketAddr::V4(address), Self { ipv4, .. }) => {
                *ipv4 = Some(address);
                None
            }
            (SocketAddr::V6(address), Self { ipv6, .. }) => {
                *ipv6 = Some(address);
                None
            }
        }
    }

    fn for_client(&self, client: Address) -> Option<SocketAddr> {
        // RFC 8489 §14.15: the family is that of the request's source. [8489-10-2]
        if client.ip.is_ipv4() { self.ipv4.map(SocketAddr::V4) } else { self.ipv6.map(SocketAddr::V6) }
    }
}

/// The servers that take the clients of a draining one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Alternates {
    /// For clients over UDP and TCP: a client keeps its transport.
    pub plain: Siblings,
    /// For clients over TLS, which is another port.
    pub tls: Siblings,
    /// The name that the certificate there is for, if it is not the one that clients know already; up to 253 bytes.
    pub domain: Option<Box<str>>,
}

impl Alternates {
    // [8489-10-4]
    pub(super) fn for_client(&self, via: &Via) -> Option<(SocketAddr, Option<&str>)> {
        let five_tuple = via.five_tuple();
        let (siblings, domain) = match five_tuple.transport {
            Transport::Udp | Transport::Tcp => (&self.plain, None),
            Transport::Tls => (&self.tls, self.domain.as_deref()),
        };
        siblings.for_client(five_tuple.client.address()).map(|address| (address, domain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddress, FiveTuple, ServerAddress};

    // [8489-10-4]
    #[test]
    fn clients_over_tls_have_a_port_and_a_name_of_their_own() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut alternates = Alternates { domain: Some("turn2.example".into()), ..Alternates::default() };
        alternates.plain.add(address("198.51.100.8:3478"));
        let of = |alternates: &Alternates, transport, client: &str| {
            let (client, server) =
                (ClientAddress::from(address(client)), ServerAddress::from(address("192.0.2.7:3478")));
            let found = alternates.for_client(&Via::Datagram(FiveTuple { client, server, transport }));
            found.map(|(address, domain)| (address.to_string(), domain.map(str::to_owned)))
        };
        let plain = Some(("198.51.100.8:3478".to_owned(), None));
        for transport in [Transport::Udp, Transport::Tcp] {
            assert_eq!(of(&alternates, transport, "203.0.113.9:5"), plain);
            assert_eq!(of(&alternates, transport, "[2001:db8::9]:5"), None);
        }
        assert_eq!(of(&alternates, Transport::Tls, "203.0.113.9:5"), None, "no TLS is known to be on that port");
        alternates.tls.add(address("198.51.100.8:5349"));
        let tls = Some(("198.51.100.8:5349".to_owned(), Some("turn2.example".to_owned())));
        assert_eq!(of(&alternates, Transport::Tls, "203.0.113.9:5"), tls);
        assert_eq!(of(&alternates, Transport::Udp, "203.0.113.9:5"), plain);
        // The first one of a family stays.
        assert_eq!(alternates.tls.add(address("198.51.100.9:1")), Some(address("198.51.100.8:5349")));
        assert_eq!(of(&alternates, Transport::Tls, "203.0.113.9:5"), tls);
    }
}
