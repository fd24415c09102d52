//! Finds the address under which the demo's relay is reached and relays from.
//!
//! Browsers want a relayed address that is not loopback: Firefox ignores an Allocate success with
//! one. So the demo relays from the machine's own address on its network, here called LAN, found
//! without sending a packet.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::net::interfaces::{self, InterfaceAddress};

/// Addresses of documentation ranges (RFC 5737, RFC 3849): a route lookup towards them takes the
/// default route, and nothing is ever sent.
const SOMEWHERE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 9);
const SOMEWHERE_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9);

/// This machine's addresses as the demo uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lan {
    /// The IPv4 address to relay from; 127.0.0.1 if there is no other.
    pub ipv4: Ipv4Addr,
    /// How `ipv4` was found.
    pub found: AddressOrigin,
    /// A global or unique local IPv6 address, if there is one.
    pub ipv6: Option<Ipv6Addr>,
}

/// How the IPv4 address was found; browsers differ in what they make of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressOrigin {
    /// The default route leaves from it: works in every browser that was tried.
    Route,
    /// An interface has it, but there is no default route: Firefox considers itself offline.
    Interface(String),
    /// There is nothing but loopback: no browser connects.
    LoopbackOnly,
}

impl Lan {
    /// Looks at routes and interfaces of this moment.
    pub fn find() -> Self {
        let routed = route_lookup(SOMEWHERE_V4).ok();
        let routed_v6 = route_lookup(SOMEWHERE_V6).ok();
        let interfaces = interfaces::addresses().unwrap_or_default();
        Self::choose(routed, routed_v6, &interfaces)
    }

    fn choose(routed: Option<IpAddr>, routed_v6: Option<IpAddr>, interfaces: &[InterfaceAddress]) -> Self {
        let (ipv4, found) = match routed.and_then(usable_v4) {
            Some(address) => (address, AddressOrigin::Route),
            None => first_interface(interfaces).unwrap_or((Ipv4Addr::LOCALHOST, AddressOrigin::LoopbackOnly)),
        };
        let ipv6 = routed_v6.and_then(usable_v6).or_else(|| {
            interfaces.iter().filter(|entry| entry.up && !entry.loopback).find_map(|entry| usable_v6(entry.address))
        });
        Self { ipv4, found, ipv6 }
    }

    /// What the user must know before wondering why a browser does not connect.
    pub fn warning(&self) -> Option<String> {
        match &self.found {
            AddressOrigin::Route => None,
            AddressOrigin::Interface(name) => Some(format!(
                "there is no default route, so {} of interface {name} is used. Chromium works, but Firefox thinks that the machine is offline. Connect to a network, or use Chromium.",
                self.ipv4
            )),
            AddressOrigin::LoopbackOnly => Some(
                "this machine has no active network interface except loopback, and browsers make no relayed call over loopback alone. Connect to any network (internet is not needed), or give the container a network. Then start the demo again."
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Display for Lan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.ipv4)?;
        if let Some(ipv6) = self.ipv6 {
            write!(out, " and {ipv6}")?;
        }
        Ok(())
    }
}

/// The source address the kernel would use towards `towards`. Connecting a UDP socket only looks
/// up the route.
fn route_lookup(towards: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match towards {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(towards)?;
    Ok(socket.local_addr()?.ip())
}

/// The first IPv4 address of an interface that is up, those with a carrier before idle ones.
fn first_interface(interfaces: &[InterfaceAddress]) -> Option<(Ipv4Addr, AddressOrigin)> {
    let candidates = || {
        interfaces
            .iter()
            .filter(|entry| entry.up && !entry.loopback)
            .filter_map(|entry| Some((entry, usable_v4(entry.address)?)))
    };
    candidates()
        .find(|(entry, _)| entry.running)
        .or_else(|| candidates().next())
        .map(|(entry, address)| (address, AddressOrigin::Interface(entry.interface.clone())))
}

fn usable_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_unspecified() && !v4.is_link_local() => Some(v4),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn usable_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local() => Some(v6),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(interface: &str, address: &str, running: bool) -> InterfaceAddress {
        InterfaceAddress {
            interface: interface.to_owned(),
            address: address.parse().expect("address"),
            up: true,
            running,
            loopback: interface == "lo",
        }
    }

    #[test]
    fn the_default_route_wins_over_interfaces() {
        let lan = Lan::choose(
            Some("192.0.2.7".parse().unwrap()),
            None,
            &[entry("lo", "127.0.0.1", true), entry("docker0", "172.17.0.1", true)],
        );

        assert_eq!(lan.ipv4, Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(lan.found, AddressOrigin::Route);
        assert_eq!(lan.warning(), None);
    }

    #[test]
    fn without_a_route_an_interface_with_carrier_is_preferred() {
        let lan = Lan::choose(
            None,
            None,
            &[
                entry("lo", "127.0.0.1", true),
                entry("docker0", "172.17.0.1", false),
                entry("wlan0", "192.168.1.20", true),
            ],
        );

        assert_eq!(lan.ipv4, Ipv4Addr::new(192, 168, 1, 20));
        assert_eq!(lan.found, AddressOrigin::Interface("wlan0".to_owned()));
        assert!(lan.warning().expect("warning").contains("wlan0"));
    }

    #[test]
    fn an_interface_that_is_down_is_not_used() {
        let mut down = entry("eth0", "192.0.2.7", false);
        down.up = false;

        let lan = Lan::choose(None, None, &[entry("lo", "127.0.0.1", true), down]);

        assert_eq!(lan.ipv4, Ipv4Addr::LOCALHOST);
        assert_eq!(lan.found, AddressOrigin::LoopbackOnly);
        assert!(lan.warning().expect("warning").contains("Connect to any network"));
    }

    #[test]
    fn a_loopback_route_counts_as_no_route() {
        let lan = Lan::choose(Some("127.0.0.1".parse().unwrap()), None, &[]);

        assert_eq!(lan.found, AddressOrigin::LoopbackOnly);
    }

    #[test]
    fn link_local_ipv6_is_not_offered() {
        let link_local = [entry("eth0", "fe80::1", true)];
        let unique_local = [entry("eth0", "fe80::1", true), entry("eth0", "fd00::2", true)];

        assert_eq!(Lan::choose(None, None, &link_local).ipv6, None);
        assert_eq!(Lan::choose(None, None, &unique_local).ipv6, Some("fd00::2".parse().unwrap()));
    }
}
