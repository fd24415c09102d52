//! `[listen]` and `[relay]`: addresses that exist once and don't get in each other's way.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use crate::address::Transport;
use crate::config::check::Check;
use crate::config::document::{self, Node, Value};
use crate::config::error::Problem;
use crate::config::external::{External, ExternalLook};
use crate::config::shared::SharedPort;
use crate::config::units;
use crate::protocol::settings::TcpRelaySettings;
use crate::protocol::tenancy::{PortParts, Tenancy};

/// A socket that clients talk to. `[::]` means IPv6 only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listen {
    /// What carries the messages.
    pub transport: Transport,
    /// The local address; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// From `listen.auto`: one socket that is listed here twice, once as TCP and once as TLS.
    pub is_auto: bool,
    /// From the default: where the kernel has no IPv6, a default IPv6 listener is left out.
    pub is_default: bool,
    /// Only proxies with these addresses connect here, and each connection begins with a PROXY header; empty for any client.
    pub proxy_from: Arc<[IpNet]>,
    /// From `listen.shared`: a web server has the port too.
    pub shared: Option<Arc<SharedPort>>,
    /// Its realm and its tenant.
    pub tenancy: Arc<Tenancy>,
}

impl Listen {
    /// The key that it came from.
    pub(crate) const fn key(&self) -> &'static str {
        match (self.is_auto, self.transport) {
            _ if self.shared.is_some() => "listen.shared",
            (true, _) => "listen.auto",
            (false, Transport::Udp) => "listen.udp",
            (false, Transport::Tcp) => "listen.tcp",
            (false, Transport::Tls) => "listen.tls",
        }
    }
}

/// `[relay]`: where relayed sockets are opened and what clients are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayConfig {
    /// Local addresses to relay from; empty means: find one per family from the routes.
    pub addresses: Vec<IpAddr>,
    /// What clients are told instead of the local address.
    pub external: External,
    /// Who is asked for public addresses, and how often.
    pub external_look: ExternalLook,
    /// The ports of relayed sockets.
    pub ports: RangeInclusive<u16>,
    /// Which of them are one tenant's alone.
    pub port_parts: PortParts,
    /// Whether the kernel may coalesce and segment (UDP_GRO, UDP_SEGMENT).
    pub segmentation_offload: bool,
    /// TCP allocations.
    pub tcp: TcpRelaySettings,
    /// Microseconds that a busy worker lets packets gather; 0 means not at all.
    pub coalesce_microseconds: u32,
    /// Whether clients may change their network (RFC 8016).
    pub mobility: bool,
}

/// The port that most people want there.
fn usual_port(key: &str) -> u16 {
    match key {
        _ if key.starts_with("listen.tls") => 5349,
        _ if key.starts_with("listen.auto") || key.starts_with("listen.shared") => 443,
        _ if key.starts_with("http.public") => 8443,
        _ if key.starts_with("http.") => 8080,
        _ => 3478,
    }
}

type ListenerFields = (SocketAddr, Arc<[IpNet]>, Arc<Tenancy>);

impl Check {
    /// The listeners of one transport, each with its value.
    pub(crate) fn listen(&mut self, transport: Transport, path: &str) -> Vec<(Listen, Node)> {
        let mut listeners: Vec<(Listen, Node)> = Vec::new();
        for node in self.list(path) {
            let Some((address, proxy_from, tenancy)) = self.listener_address(&node, transport) else { continue };
            let clash =
                listeners.iter().find(|(other, _)| overlap(other.address, address)).map(|(other, _)| other.address);
            match clash {
                Some(other) if other == address => self.wrong(&node, "is listed twice"),
                Some(other) => self.wrong(
                    &node,
                    format!("overlaps with \"{other}\": an unspecified address stands for all of its family"),
                ),
                None => {
                    let is_default = node.is_default();
                    let found =
                        Listen { transport, address, is_auto: false, is_default, proxy_from, shared: None, tenancy };
                    listeners.push((found, node));
                }
            }
        }
        listeners
    }

    /// A server without listeners runs, and may be meant to give credentials only; a reload to nothing rarely is.
    pub(crate) fn note_no_listener(&mut self, listen: &[(Listen, Node)]) {
        if listen.is_empty() && !self.has_problem_with("listen.") {
            let message = "every list of [listen] is empty, so no client can connect; add an address, such as udp = [\"0.0.0.0:3478\"]";
            self.notes.push(Problem::new(self.whole(), "listen", message));
        }
    }

    fn listener_address(&mut self, node: &Node, transport: Transport) -> Option<ListenerFields> {
        let Value::Table(fields) = &node.value else {
            let text = self.text(node)?;
            return Some((self.socket_address(node, &text)?, Arc::default(), Arc::default()));
        };
        let all_known = self.fields(fields, node, &["address", "proxy_from", "realm", "tenant"]);
        let Some(address) = document::field(fields, "address") else {
            if all_known {
                self.wrong(node, "has no address; write { address = \"0.0.0.0:3478\" }");
            }
            return None;
        };
        let text = self.text(address)?;
        let address = self.socket_address(address, &text);
        let proxy_from = match document::field(fields, "proxy_from") {
            None => Some(Arc::default()),
            Some(from) => self.proxy_from(from, transport),
        };
        let named = |name: &str| document::field(fields, name).cloned();
        let tenancy = self.tenancy(named("realm"), named("tenant"));
        Some((address?, proxy_from?, tenancy?))
    }

    pub(crate) fn proxy_from(&mut self, node: &Node, transport: Transport) -> Option<Arc<[IpNet]>> {
        if transport == Transport::Udp {
            self.wrong(
                node,
                "stands for proxies of connections; UDP has none: use listen.tcp, listen.tls, listen.auto or listen.shared",
            );
            return None;
        }
        let Value::List(items) = &node.value else {
            self.wrong(node, "expected a list of the proxies' addresses, such as [\"10.0.0.5\", \"10.1.0.0/16\"]");
            return None;
        };
        if items.is_empty() {
            self.wrong(node, "is empty, so nothing could connect; name the proxies' addresses, or leave it out");
            return None;
        }
        let nets: Vec<Option<IpNet>> = items.iter().map(|item| self.proxy_prefix(item)).collect();
        let nets: Option<Vec<IpNet>> = nets.into_iter().collect();
        nets.map(Into::into)
    }

    /// Some proxies: what they announce is believed.
    fn proxy_prefix(&mut self, item: &Node) -> Option<IpNet> {
        let net = self.net(item)?;
        if let IpNet::V6(mapped) = net
            && let Some(ipv4) = mapped.addr().to_ipv4_mapped()
        {
            self.wrong(item, format!("no connection comes from such an address: write it as IPv4, such as \"{ipv4}\""));
            return None;
        }
        if net.prefix_len() == 0 {
            let message = "lets everybody connect and claim any address, so limits, records and blocks can be evaded: name the proxies' own \
                 addresses, unless a firewall lets nothing else through";
            self.notes.push(Problem::new(item.location.clone(), &item.key, message));
        }
        Some(net)
    }

    pub(crate) fn socket_address(&mut self, node: &Node, text: &str) -> Option<SocketAddr> {
        let port = usual_port(&node.key);
        // What stands before the address, as in "https://0.0.0.0:8443".
        let whole = node.text().unwrap_or_default().trim_end_matches('/');
        let scheme = whole.strip_suffix(text).unwrap_or_default();
        let address = text.parse::<SocketAddr>().map_err(|_| match text.parse::<IpAddr>() {
            Ok(ip) => format!("the port is missing; write \"{scheme}{}\"", SocketAddr::new(ip, port)),
            Err(_) => {
                format!(
                    "expected an IP address and a port, such as \"{scheme}0.0.0.0:{port}\" or \"{scheme}[::]:{port}\""
                )
            }
        });
        let fit = address.and_then(|address| unfit(address.ip()).map_or(Ok(address), Err));
        self.ok(node, fit)
    }

    /// `[relay]`.
    pub(crate) fn relay(&mut self, listen: &[(Listen, Node)]) -> RelayConfig {
        let addresses = self.relay_addresses();
        self.note_only_loopback(&addresses, listen);
        let external = self.external(&addresses);
        let ports = self.relay_ports(&addresses, listen);
        RelayConfig {
            external_look: self.external_look(&external),
            external,
            port_parts: self.port_parts(&ports),
            ports,
            segmentation_offload: self.flag_of("relay.segmentation_offload"),
            tcp: TcpRelaySettings { is_on: self.flag_of("relay.tcp"), low_ports: self.flag_of("relay.tcp_low_ports") },
            coalesce_microseconds: self.number("relay.coalesce_microseconds"),
            mobility: self.flag_of("relay.mobility"),
            addresses,
        }
    }

    fn relay_addresses(&mut self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for node in self.list("relay.addresses") {
            let Some(ip) = self.ip(&node) else { continue };
            if ip.is_unspecified() {
                let message =
                    "peers can't answer to an unspecified address; name one of this machine, or leave the list empty";
                self.wrong(&node, message);
            } else if addresses.contains(&ip) {
                self.wrong(&node, "is listed twice");
            } else {
                addresses.push(ip);
            }
        }
        addresses
    }

    /// Where the listeners are on loopback too, all of it is for this machine, as in a test.
    fn note_only_loopback(&mut self, addresses: &[IpAddr], listen: &[(Listen, Node)]) {
        let is_for_others = listen.iter().any(|(listener, _)| !listener.address.ip().is_loopback());
        if is_for_others && !addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback) {
            let node = self.get("relay.addresses");
            self.note(
                &node,
                "has loopback addresses only, so no peer on another machine can be reached; name an address of this machine \
                 that others reach, or leave the list empty",
            );
        }
    }

    pub(crate) fn ip(&mut self, node: &Node) -> Option<IpAddr> {
        let text = self.text(node)?;
        let ip = text.parse::<IpAddr>().map_err(|_| match text.parse::<SocketAddr>() {
            Ok(address) => format!("takes no port; write \"{}\"", address.ip()),
            Err(_) => "expected an IP address such as \"192.0.2.7\" or \"2001:db8::7\"".to_owned(),
        });
        self.ok(node, ip.and_then(|ip| unfit(ip).map_or(Ok(ip), Err)))
    }

    // [8656-7.2-26, -27]
    fn relay_ports(&mut self, addresses: &[IpAddr], listen: &[(Listen, Node)]) -> RangeInclusive<u16> {
        let node = self.get("relay.ports");
        let Value::Text(text) = &node.value else { return 49152..=65535 };
        let Some(ports) = self.ok(&node, units::ports(text)) else { return 49152..=65535 };
        for (listener, listener_node) in listen {
            let address = listener.address;
            let same_host = if addresses.is_empty() {
                !address.ip().is_loopback()
            } else {
                addresses.iter().any(|ip| overlap(SocketAddr::new(*ip, address.port()), address))
            };
            // Relayed sockets are UDP: a stream listener's port is free for them.
            if listener.transport != Transport::Udp || !ports.contains(&address.port()) || !same_host {
                continue;
            }
            // The line to blame is the one that was written.
            if node.is_default() {
                let ports = node.render();
                let message = format!("its port lies in relay.ports = {ports} on the same address; move one of them");
                self.wrong(listener_node, message);
            } else {
                self.wrong(
                    &node,
                    format!("holds the port of the listener {address} on the same address; move one of them"),
                );
                break;
            }
        }
        ports
    }
}

/// Whether two sockets of one protocol could not both be bound; port 0 is whatever is free.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Why an address can be neither a listener's nor a relay's.
fn unfit(ip: IpAddr) -> Option<String> {
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some(format!(
            "is IPv4 in disguise; write {}",
            v6.to_ipv4_mapped().map(|v4| v4.to_string()).unwrap_or_default()
        )),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("link-local addresses need a scope, which is not in this version".to_owned())
        }
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is the broadcast address".to_owned()),
        _ if ip.is_multicast() => Some("is a multicast address".to_owned()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
