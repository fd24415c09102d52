//! `[stun]`: what Binding does beyond RFC 8489.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::address::Transport;
use crate::config::check::Check;
use crate::config::document::Node;
use crate::config::network::{Listen, RelayConfig};
use crate::protocol::discovery::Discovery;
use crate::protocol::settings::StunSettings;

const EXPECTED: &str =
    "expected two addresses with different ports, such as [\"203.0.113.1:3478\", \"203.0.113.2:3479\"]";

impl Check {
    pub(crate) fn stun(&mut self, listen: &[(Listen, Node)], relay: &RelayConfig) -> StunSettings {
        StunSettings { classic: self.flag_of("stun.classic"), discovery: self.discovery(listen, relay) }
    }

    // [5780-6-1, -2]
    fn discovery(&mut self, listen: &[(Listen, Node)], relay: &RelayConfig) -> Option<Discovery> {
        let items = self.list("stun.discovery");
        let whole = self.get("stun.discovery");
        if items.is_empty() {
            return None;
        }
        let [first, second] = items.as_slice() else {
            self.wrong(&whole, EXPECTED);
            return None;
        };
        let (first, second) = (self.discovery_address(first)?, self.discovery_address(second)?);
        let (ips, ports) = ([*first.ip(), *second.ip()], [first.port(), second.port()]);
        let Some(discovery) = Discovery::new(ips, ports, has_all(ips, ports, listen, Transport::Tcp)) else {
            self.wrong(&whole, format!("has the same address or the same port twice; {EXPECTED}"));
            return None;
        };
        if self.has_problem_with("listen") || self.has_problem_with("relay.external") {
            return Some(discovery);
        }
        if let Some(missing) = all(ips, ports).find(|address| !is_listener(*address, listen, Transport::Udp)) {
            let message = format!(
                "needs each of the two addresses with each of the two ports, but \"{missing}\" is no listener; add it to listen.udp"
            );
            self.wrong(&whole, message);
        }
        let public = |ip: Ipv4Addr| relay.external.advertised(IpAddr::V4(ip));
        if public(ips[0]).is_some() && public(ips[0]) == public(ips[1]) {
            self.wrong(
                &whole,
                "needs two public addresses, and relay.external gives both the same one; write relay.external as a table with one for each",
            );
        }
        Some(discovery)
    }

    fn discovery_address(&mut self, node: &Node) -> Option<SocketAddrV4> {
        let text = self.text(node)?;
        let address = match text.parse::<SocketAddr>() {
            Ok(SocketAddr::V4(address)) => address,
            Ok(SocketAddr::V6(_)) => {
                self.wrong(node, "is IPv6; discovery is about NATs of IPv4: name an IPv4 address");
                return None;
            }
            Err(_) => {
                self.wrong(node, EXPECTED);
                return None;
            }
        };
        let ip = address.ip();
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            self.wrong(
                node,
                "clients are told this address and port: name one of this machine, and a port that is not 0",
            );
            return None;
        }
        Some(address)
    }
}

/// Each of two addresses with each of two ports.
fn all(ips: [Ipv4Addr; 2], ports: [u16; 2]) -> impl Iterator<Item = SocketAddrV4> {
    ips.into_iter().flat_map(move |ip| ports.into_iter().map(move |port| SocketAddrV4::new(ip, port)))
}

fn has_all(ips: [Ipv4Addr; 2], ports: [u16; 2], listen: &[(Listen, Node)], transport: Transport) -> bool {
    all(ips, ports).all(|address| is_listener(address, listen, transport))
}

/// Whether clients reach a listener there, without a proxy, be it one for all addresses.
fn is_listener(address: SocketAddrV4, listen: &[(Listen, Node)], transport: Transport) -> bool {
    let fits = |of: SocketAddr| of == address.into() || of == SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    listen.iter().any(|(of, _)| of.transport == transport && of.proxy_from.is_empty() && fits(of.address))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::protocol::discovery::Discovery;

    const FOUR: &str =
        "listen.udp = [\"192.0.2.1:3478\", \"192.0.2.1:3479\", \"192.0.2.2:3478\", \"192.0.2.2:3479\"]\n";

    fn discovery(lines: &str, pair: &str) -> Result<Option<Discovery>, String> {
        let config = Config::with_a_secret(&format!("{lines}\nstun.discovery = {pair}"));
        config.map(|config| config.stun.discovery).map_err(|error| error.to_string())
    }

    #[test]
    fn two_addresses_with_two_ports_are_four_listeners() {
        let pair = "[\"192.0.2.1:3478\", \"192.0.2.2:3479\"]";
        let (ips, ports) = ([[192, 0, 2, 1].into(), [192, 0, 2, 2].into()], [3478, 3479]);
        assert_eq!(discovery(FOUR, pair).unwrap(), Discovery::new(ips, ports, false));
        let all = "listen.udp = [\"0.0.0.0:3478\", \"0.0.0.0:3479\"]\n";
        assert_eq!(discovery(all, pair).unwrap(), Discovery::new(ips, ports, false));
        let with_tcp = format!("{all}{}", all.replace("udp", "tcp"));
        assert_eq!(discovery(&with_tcp, pair).unwrap(), Discovery::new(ips, ports, true));
        assert_eq!(discovery(FOUR, "[]").unwrap(), None);
    }

    #[test]
    fn each_mistake_in_a_pair_is_told() {
        let one = "relay.external = \"203.0.113.1\"\n";
        for (lines, pair, says) in [
            ("", "[\"192.0.2.1:3478\"]", "two addresses with different ports"),
            ("", "[\"192.0.2.1\", \"192.0.2.2:3479\"]", "two addresses with different ports"),
            ("", "[\"192.0.2.1:3478\", \"192.0.2.1:3479\"]", "same address or the same port twice"),
            ("", "[\"192.0.2.1:3478\", \"192.0.2.2:3478\"]", "same address or the same port twice"),
            ("", "[\"[2001:db8::1]:3478\", \"192.0.2.2:3479\"]", "is IPv6"),
            ("", "[\"0.0.0.0:3478\", \"192.0.2.2:3479\"]", "name one of this machine"),
            ("", "[\"192.0.2.1:0\", \"192.0.2.2:3479\"]", "name one of this machine"),
            ("", "[\"192.0.2.1:3478\", \"192.0.2.2:3479\"]", "\"192.0.2.1:3479\" is no listener; add it to listen.udp"),
            (one, "[\"192.0.2.1:3478\", \"192.0.2.2:3479\"]", "relay.external gives both the same one"),
        ] {
            let error = discovery(&format!("{}{lines}", if lines.is_empty() { "" } else { FOUR }), pair).unwrap_err();
            assert!(error.contains(says) && error.contains("stun.discovery"), "{pair}: {error}");
        }
    }
}
