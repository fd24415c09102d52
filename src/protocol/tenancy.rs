//! What belongs to one of several products on one server: the realm and the tenant of a listener, and a tenant's ports.
//!
//! Looked up once for each request that is no data, never for a packet. Decision 0233.

use std::net::IpAddr;

use crate::address::{FiveTuple, Transport};

/// The realm and the tenant of a listener, as far as they are not the server's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tenancy {
    /// The realm of its challenges; `None` means [`Settings::realm`](crate::protocol::settings::Settings::realm).
    pub realm: Option<Box<str>>,
    /// Whose sessions are those that come by it.
    pub tenant: Option<Box<str>>,
}

impl Tenancy {
    /// Whether it says nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.realm.is_none() && self.tenant.is_none()
    }
}

type Place = (Transport, IpAddr, u16);

/// The listeners that have a realm or a tenant of their own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tenancies(Box<[(Place, Tenancy)]>);

impl Tenancies {
    /// Of listeners as they are bound; an unspecified address stands for all of its family. Of two at one place the first
    /// counts.
    #[must_use]
    pub fn new(listeners: impl IntoIterator<Item = (Transport, IpAddr, u16, Tenancy)>) -> Self {
        let places = listeners.into_iter().map(|(transport, ip, port, tenancy)| ((transport, ip, port), tenancy));
        let mut places: Vec<(Place, Tenancy)> = places.filter(|(_, tenancy)| !tenancy.is_empty()).collect();
        places.sort_by_key(|(place, _)| *place);
        places.dedup_by_key(|(place, _)| *place);
        Self(places.into())
    }

    /// That of the listener which a client came by; `None` if it has none of its own.
    #[must_use]
    pub fn of(&self, five_tuple: &FiveTuple) -> Option<&Tenancy> {
        if self.0.is_empty() {
            return None;
        }
        let FiveTuple { server, transport, .. } = *five_tuple;
        let unspecified = match server.ip() {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        [server.ip(), unspecified].into_iter().find_map(|ip| {
            let at = self.0.binary_search_by_key(&(transport, ip, server.port()), |(place, _)| *place).ok()?;
            self.0.get(at).map(|(_, tenancy)| tenancy)
        })
    }
}

/// A part of the relayed ports, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortPart {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortPart {
    /// Whether a port lies in it.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// The relayed ports that are one tenant's alone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortParts(Box<[(Box<str>, PortPart)]>);

impl PortParts {
    /// Parts that don't overlap, each with its tenant; a tenant has one.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = (Box<str>, PortPart)>) -> Self {
        let mut parts: Vec<(Box<str>, PortPart)> = parts.into_iter().collect();
        parts.sort();
        Self(parts.into())
    }

    /// That of a tenant; `None` stands for the ports that are in no part.
    #[must_use]
    pub fn of(&self, tenant: Option<&str>) -> Option<PortPart> {
        let tenant = tenant.filter(|_| !self.0.is_empty())?;
        let at = self.0.binary_search_by_key(&tenant, |(name, _)| name).ok()?;
        self.0.get(at).map(|(_, part)| *part)
    }

    /// Every tenant that has one, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, PortPart)> {
        self.0.iter().map(|(tenant, part)| (&**tenant, *part))
    }

    /// The parts themselves.
    #[must_use]
    pub fn ranges(&self) -> Vec<PortPart> {
        self.0.iter().map(|(_, part)| *part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ServerAddress;

    fn tenancy(realm: &str, tenant: &str) -> Tenancy {
        let text = |text: &str| (!text.is_empty()).then(|| text.into());
        Tenancy { realm: text(realm), tenant: text(tenant) }
    }

    #[test]
    fn a_listener_is_found_by_transport_port_and_its_own_or_the_unspecified_address() {
        let listener = |transport, address: &str, of| {
            let address: std::net::SocketAddr = address.parse().unwrap();
            (transport, address.ip(), address.port(), of)
        };
        let all = Tenancies::new([
            listener(Transport::Udp, "192.0.2.1:3478", tenancy("a.example", "a")),
            listener(Transport::Udp, "0.0.0.0:3479", tenancy("b.example", "")),
            listener(Transport::Tcp, "[::]:3478", tenancy("", "c")),
            listener(Transport::Tls, "192.0.2.1:5349", tenancy("", "")),
        ]);
        let of = |transport, server: &str| {
            let server: std::net::SocketAddr = server.parse().unwrap();
            let client = "203.0.113.9:1".parse::<std::net::SocketAddr>().unwrap().into();
            all.of(&FiveTuple { client, server: ServerAddress::from(server), transport }).cloned()
        };
        assert_eq!(of(Transport::Udp, "192.0.2.1:3478"), Some(tenancy("a.example", "a")));
        assert_eq!(of(Transport::Udp, "192.0.2.2:3478"), None);
        assert_eq!(of(Transport::Tcp, "192.0.2.1:3478"), None);
        assert_eq!(of(Transport::Udp, "192.0.2.2:3479"), Some(tenancy("b.example", "")));
        assert_eq!(of(Transport::Udp, "[2001:db8::1]:3479"), None, "another family");
        assert_eq!(of(Transport::Tcp, "[2001:db8::1]:3478"), Some(tenancy("", "c")));
        assert_eq!(of(Transport::Tls, "192.0.2.1:5349"), None, "nothing of its own");
    }

    #[test]
    fn ports_of_a_tenant_are_found_by_its_name_only() {
        let part = |first, last| PortPart { first, last };
        let parts = PortParts::new([("b".into(), part(50_100, 50_199)), ("a".into(), part(50_000, 50_099))]);
        assert_eq!(
            (parts.of(Some("a")), parts.of(Some("b"))),
            (Some(part(50_000, 50_099)), Some(part(50_100, 50_199)))
        );
        assert_eq!((parts.of(Some("c")), parts.of(None)), (None, None));
        assert!(part(5, 7).contains(5) && part(5, 7).contains(7) && !part(5, 7).contains(8));
    }
}
