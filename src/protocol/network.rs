//! The networks that what clients do is charged to where an address proves too little: IPv4 /24 and IPv6 /56.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An IPv4 /24 or an IPv6 /56, as a number: addresses of one network can be forged by all of them, and one person
/// may have them all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Network(u64);

const IPV4: u64 = 4 << 56;
const IPV6: u64 = 6 << 56;

impl Network {
    /// The one of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self(IPV4 | u64::from(ip.to_bits() & 0xFFFF_FF00)),
            IpAddr::V6(ip) => Self(IPV6 | (ip.to_bits() >> 72) as u64),
        }
    }

    /// As one word; 0 is no network's.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// The network that [`Network::to_word`] gave.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The lowest address, without the prefix length.
    fn first(self) -> IpAddr {
        if self.0 & IPV6 == IPV6 {
            Ipv6Addr::from_bits(u128::from(self.0 & !(0xFF << 56)) << 72).into()
        } else {
            Ipv4Addr::from_bits(self.0 as u32).into()
        }
    }

    const fn length(self) -> u8 {
        if self.0 & IPV6 == IPV6 { 56 } else { 24 }
    }

    /// Whether it and a prefix have an address in common.
    #[must_use]
    pub fn meets(self, prefix: &IpNet) -> bool {
        let own = IpNet::new_assert(self.first(), self.length());
        own.contains(prefix) || prefix.contains(&own)
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first(), self.length())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(ip: &str) -> Network {
        Network::of(ip.parse().unwrap())
    }

    #[test]
    fn it_is_written_as_a_prefix_and_comes_back_from_its_word() {
        for (ip, text) in [
            ("192.0.2.77", "192.0.2.0/24"),
            ("0.0.0.0", "0.0.0.0/24"),
            ("2001:db8:0:1ff:1::1", "2001:db8:0:100::/56"),
            ("::", "::/56"),
            ("ffff::1", "ffff::/56"),
        ] {
            assert_eq!(network(ip).to_string(), text);
            assert_eq!(Network::from_word(network(ip).to_word()), network(ip));
            assert_ne!(network(ip).to_word(), 0);
        }
    }

    #[test]
    fn it_meets_what_is_inside_and_around_it() {
        let meets = |ip, prefix: &str| network(ip).meets(&prefix.parse().unwrap());
        for prefix in ["192.0.2.0/24", "192.0.2.9/32", "192.0.0.0/16", "0.0.0.0/0"] {
            assert!(meets("192.0.2.1", prefix), "{prefix}");
        }
        for prefix in ["192.0.3.0/24", "10.0.0.0/8", "::/0"] {
            assert!(!meets("192.0.2.1", prefix), "{prefix}");
        }
        for prefix in ["2001:db8::/32", "2001:db8:0:1ab::5/128", "2001:db8:0:100::/56"] {
            assert!(meets("2001:db8:0:1ff::1", prefix), "{prefix}");
        }
        assert!(!meets("2001:db8:0:1ff::1", "2001:db8:0:200::/56"));
    }
}
