//! Addresses that can't be confused: the client's, ours, the peer's, the relayed one.
//!
//! Owns the compact address (20 bytes, no scope) and one newtype per side. Bare socket
//! addresses live in `net`, which converts at its edge.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// An IP address and a port, without scope or flow label.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The IP address; never an IPv4-mapped IPv6 form where `net` produced it.
    pub ip: IpAddr,
    /// The port, 1 to 65535 for anything that can be sent to.
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
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub Address);

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
    /// Where a client's packets come from, as the server sees it.
    ClientAddress
);
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

/// An address family (RFC 8656 section 18.9 numbers them 1 and 2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
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
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    /// UDP datagrams.
    Udp,
    /// A TCP stream.
    Tcp,
    /// A TLS stream over TCP.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FiveTuple {
    /// The client's side.
    pub client: ClientAddress,
    /// Our side.
    pub server: ServerAddress,
    /// What carries the messages.
    pub transport: Transport,
}

// The client's address alone tells nearly all five-tuples of a worker apart; equality does the rest.
impl Hash for FiveTuple {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.client.hash(state);
    }
}

/// Names a client's byte stream within one worker; never reused while the process lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamId(pub u64);

/// How a message came and how its answer goes back.
///
/// A five-tuple does not identify a stream (a proxied connection shares it), so a stream has its
/// own number; its five-tuple goes along for the mapped address, the nonce and the quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Via {
    /// One datagram.
    Datagram(FiveTuple),
    /// A byte stream.
    Stream(StreamId, FiveTuple),
}

impl Via {
    /// The addresses and the transport.
    #[must_use]
    pub const fn five_tuple(&self) -> &FiveTuple {
        match self {
            Self::Datagram(five_tuple) | Self::Stream(_, five_tuple) => five_tuple,
        }
    }

    /// Whether messages are cut out of a byte stream, so that ChannelData is padded (RFC 8656 section 12.5).
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(..))
    }
}
