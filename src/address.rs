//! Addresses that can't be confused: the client's, ours, the peer's, the relayed one.
//!
//! Owns the compact address (20 bytes, no scope) and one newtype per side. Bare socket
//! addresses live in `net`, which converts at its edge.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use minicbor::{Decode, Encode};

/// An IP address and a port, without scope or flow label.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Address {
    /// The IP address; never an IPv4-mapped IPv6 form where `net` produced it.
    #[n(0)]
    pub ip: IpAddr,
    /// The port, 1 to 65535 for anything that can be sent to.
    #[n(1)]
    pub port: u16,
}

impl Address {
    /// An address from its parts.
    #[must_use]
    pub const fn new(ip: IpAddr, port: u16) -> Self {
        Self { ip, port }
    }

    /// The family as RFC 8656 counts it.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.ip {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

// One write for IPv4: measured at half the cost of hashing a `SocketAddr`.
impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.ip {
            IpAddr::V4(ip) => state.write_u64(u64::from(u32::from(ip)) << 16 | u64::from(self.port)),
            IpAddr::V6(ip) => {
                state.write_u128(u128::from(ip));
                state.write_u16(self.port);
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Address> for SocketAddr {
    fn from(address: Address) -> Self {
        Self::new(address.ip, address.port)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { ip: address.ip(), port: address.port() }
    }
}

macro_rules! side {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub Address);

        impl $name {
            /// From IP address and port.
            #[must_use]
            pub const fn new(ip: IpAddr, port: u16) -> Self {
                Self(Address::new(ip, port))
            }
            /// The IP address.
            #[must_use]
            pub const fn ip(&self) -> IpAddr {
                self.0.ip
            }
            /// The port.
            #[must_use]
            pub const fn port(&self) -> u16 {
                self.0.port
            }
            /// The address family.
            #[must_use]
            pub const fn family(&self) -> Family {
                self.0.family()
            }
        }

        impl From<SocketAddr> for $name {
            fn from(address: SocketAddr) -> Self {
                Self(address.into())
            }
        }

        impl From<$name> for SocketAddr {
            fn from(address: $name) -> Self {
                address.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

side!(
    /// The address of ours that a client's packets were sent to, and that replies leave from.
    ServerAddress
);
side!(
    /// The other end of relaying.
    PeerAddress
);
side!(
    /// The relayed transport address, in its advertised form (RFC 8656 section 2).
    RelayedTransportAddress
);

/// Where a client's packets come from, as the server sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct ClientAddress {
    #[n(0)]
    address: Address,
    /// The interface behind an IPv6 link-local address, which means nothing without it (RFC 4007); else 0.
    #[n(1)]
    #[cbor(default)]
    scope: u32,
}

impl ClientAddress {
    /// From IP address and port.
    #[must_use]
    pub const fn new(ip: IpAddr, port: u16) -> Self {
        Self { address: Address::new(ip, port), scope: 0 }
    }

    /// What is told of it, to the client itself first of all.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.address
    }

    /// The IP address.
    #[must_use]
    pub const fn ip(&self) -> IpAddr {
        self.address.ip
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port
    }

    /// The address family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.address.family()
    }

    /// The number of the interface behind an IPv6 link-local address; else 0.
    #[must_use]
    pub const fn scope(&self) -> u32 {
        self.scope
    }
}

// The address alone tells nearly all clients apart; equality does the rest.
impl Hash for ClientAddress {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address.hash(state);
    }
}

impl From<SocketAddr> for ClientAddress {
    fn from(from: SocketAddr) -> Self {
        let scope = match from {
            SocketAddr::V6(v6) => v6.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        Self { address: from.into(), scope }
    }
}

impl From<ClientAddress> for SocketAddr {
    fn from(client: ClientAddress) -> Self {
        let mut address = Self::from(client.address);
        if let Self::V6(v6) = &mut address {
            v6.set_scope_id(client.scope);
        }
        address
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientAddress({self})")
    }
}

/// An address family (RFC 8489 section 14.1 numbers them 1 and 2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Family {
    /// IPv4.
    #[n(0)]
    V4,
    /// IPv6.
    #[n(1)]
    V6,
}

impl Family {
    /// The family of an IP address.
    #[must_use]
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `ipv4` or `ipv6`, as metrics and logs name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// What carries a client's messages to us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Transport {
    /// UDP datagrams.
    #[n(0)]
    Udp,
    /// A TCP stream.
    #[n(1)]
    Tcp,
    /// A TLS stream over TCP.
    #[n(2)]
    Tls,
}

impl Transport {
    /// Every transport, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Tls];

    /// `udp`, `tcp` or `tls`, as metrics and logs name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// Client address, server address and transport (RFC 8656 section 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct FiveTuple {
    /// The client's side.
    #[n(0)]
    pub client: ClientAddress,
    /// Our side.
    #[n(1)]
    pub server: ServerAddress,
    /// What carries the messages.
    #[n(2)]
    pub transport: Transport,
}

impl FiveTuple {
    /// Whether the client has an IPv6 link-local address, which needs the number of an interface (RFC 4007).
    #[must_use]
    pub const fn is_link_local(&self) -> bool {
        self.client.scope() != 0
    }
}

// The client's address alone tells nearly all five-tuples of a worker apart; equality does the rest.
impl Hash for FiveTuple {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.client.hash(state);
    }
}

/// Names a client's byte stream within one worker; never reused while the process lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct StreamId(#[n(0)] pub u64);

/// How a message came and how its answer goes back.
///
/// A five-tuple does not identify a stream (a proxied connection shares it), so a stream has its
/// own number; its five-tuple goes along for the mapped address, the nonce and the quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Via {
    /// One datagram.
    #[n(0)]
    Datagram(#[n(0)] FiveTuple),
    /// A byte stream.
    #[n(1)]
    Stream(#[n(0)] StreamId, #[n(1)] FiveTuple),
}

impl Via {
    /// The addresses and the transport.
    #[must_use]
    pub const fn five_tuple(&self) -> &FiveTuple {
        match self {
            Self::Datagram(five_tuple) | Self::Stream(_, five_tuple) => five_tuple,
        }
    }

    /// As [`FiveTuple::is_link_local`].
    #[must_use]
    pub const fn is_link_local(&self) -> bool {
        self.five_tuple().is_link_local()
    }

    /// Whether messages are cut out of a byte stream, so that ChannelData is padded (RFC 8656 section 12.5).
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(..))
    }
}
