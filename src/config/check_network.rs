//! `[listen]`, `[relay]` and `[http]`: addresses that exist once and don't get in each other's way.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::config::check::Check;
use crate::config::checked::{External, HttpConfig, HttpListen, Listen, PublicListen, RelayConfig, TlsConfig};
use crate::config::document::{self, Node, Value};
use crate::config::error::{Place, Problem};
use crate::config::units;
use crate::protocol::address::{Family, Transport};

/// The longest time that packets may gather, in microseconds: beyond it, buffers overflow and calls notice.
const COALESCE_MAX: i64 = 200;

/// Fields of a listener's table in later versions.
const LATER_LISTENER_FIELDS: [&str; 5] = ["relay", "external", "proxy_from", "certificate", "realm"];

impl Check {
    /// The listeners of one transport, each with its place.
    pub(crate) fn listen(&mut self, transport: Transport, path: &'static str) -> Vec<(Listen, Node)> {
        let mut listeners: Vec<(Listen, Node)> = Vec::new();
        for node in self.list(path) {
            let Some(address) = self.listener_address(&node, path) else { continue };
            let clash =
                listeners.iter().find(|(other, _)| overlap(other.address, address)).map(|(other, _)| other.address);
            match clash {
                Some(other) if other == address => self.wrong(&node, path, "stands there twice"),
                Some(other) => self.wrong(
                    &node,
                    path,
                    format!("overlaps with \"{other}\": an unspecified address stands for all of its family"),
                ),
                None => listeners.push((Listen { transport, address, is_auto: false }, node)),
            }
        }
        listeners
    }

    fn listener_address(&mut self, node: &Node, path: &str) -> Option<SocketAddr> {
        let Value::Table(fields) = &node.value else {
            let text = self.text(node, path)?;
            return self.socket_address(node, path, &text);
        };
        let mut address = None;
        let mut all_known = true;
        for field in fields {
            let key = format!("{path}.{}", document::bare_or_quoted(&field.key));
            if field.key == "address" {
                address = Some(&field.node);
            } else if LATER_LISTENER_FIELDS.contains(&field.key.as_str()) {
                self.report(
                    Problem::new(field.place.clone(), key, "not in this version; leave it out")
                        .with_value(field.node.render()),
                );
            } else {
                all_known = false;
                let nearest = document::nearest(&field.key, ["address"].into_iter());
                self.report(
                    Problem::new(field.place.clone(), key, "unknown field; a listener has an address")
                        .with_suggestion(nearest.map(|name| format!("`{name}`"))),
                );
            }
        }
        let Some(address) = address else {
            if all_known {
                self.wrong(node, path, "has no address; write { address = \"0.0.0.0:3478\" }");
            }
            return None;
        };
        let text = self.text(address, path)?;
        self.socket_address(address, path, &text)
    }

    fn socket_address(&mut self, node: &Node, path: &str, text: &str) -> Option<SocketAddr> {
        let Ok(address) = text.parse::<SocketAddr>() else {
            let message = match text.parse::<IpAddr>() {
                Ok(ip) => format!("the port is missing; write \"{}\"", SocketAddr::new(ip, 3478)),
                Err(_) => "expected an IP address and a port, such as \"0.0.0.0:3478\" or \"[::]:3478\"".to_owned(),
            };
            self.wrong(node, path, message);
            return None;
        };
        if let Some(message) = unfit(address.ip()) {
            self.wrong(node, path, message);
            return None;
        }
        Some(address)
    }

    /// `[relay]`.
    pub(crate) fn relay(&mut self, listen: &[(Listen, Node)]) -> RelayConfig {
        let addresses = self.relay_addresses();
        let external = self.external(&addresses);
        let ports = self.relay_ports(&addresses, listen);
        let segmentation_offload = self.get("relay.segmentation_offload");
        let segmentation_offload = self.flag(&segmentation_offload, "relay.segmentation_offload");
        let coalesce_microseconds = self.coalesce_microseconds();
        RelayConfig { addresses, external, ports, segmentation_offload, coalesce_microseconds }
    }

    fn coalesce_microseconds(&mut self) -> u32 {
        let path = "relay.coalesce_microseconds";
        let node = self.get(path);
        if let Value::Integer(Some(number @ 0..=COALESCE_MAX), _) = &node.value {
            return *number as u32;
        }
        let message =
            format!("expected a whole number from 1 to {COALESCE_MAX}, or 0 to send at once; a good start is 50");
        self.wrong(&node, path, message);
        0
    }

    fn relay_addresses(&mut self) -> Vec<IpAddr> {
        let path = "relay.addresses";
        let mut addresses = Vec::new();
        for node in self.list(path) {
            let Some(ip) = self.ip(&node, path) else { continue };
            if ip.is_unspecified() {
                self.wrong(
                    &node,
                    path,
                    "peers can't answer to an unspecified address; name one of this machine, or leave the list empty",
                );
            } else if addresses.contains(&ip) {
                self.wrong(&node, path, "stands there twice");
            } else {
                addresses.push(ip);
            }
        }
        addresses
    }

    fn ip(&mut self, node: &Node, path: &str) -> Option<IpAddr> {
        let text = self.text(node, path)?;
        let Ok(ip) = text.parse::<IpAddr>() else {
            let message = match text.parse::<SocketAddr>() {
                Ok(address) => format!("takes no port; write \"{}\"", address.ip()),
                Err(_) => "expected an IP address such as \"192.0.2.7\" or \"2001:db8::7\"".to_owned(),
            };
            self.wrong(node, path, message);
            return None;
        };
        if let Some(message) = unfit(ip) {
            self.wrong(node, path, message);
            return None;
        }
        Some(ip)
    }

    fn public_ip(&mut self, node: &Node, path: &str) -> Option<IpAddr> {
        let ip = self.ip(node, path)?;
        if ip.is_unspecified() {
            self.wrong(node, path, "clients can't be told an unspecified address");
            return None;
        }
        Some(ip)
    }

    fn external(&mut self, addresses: &[IpAddr]) -> External {
        let path = "relay.external";
        let node = self.get(path);
        match &node.value {
            Value::Text(text) if text.is_empty() => External::Same,
            Value::Text(_) => self.external_per_family(std::slice::from_ref(&node), addresses),
            Value::List(items) if items.is_empty() => External::Same,
            Value::List(items) => self.external_per_family(items, addresses),
            Value::Table(entries) => {
                let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
                for entry in entries {
                    let key = format!("{path}.{}", document::bare_or_quoted(&entry.key));
                    let local = Node { place: entry.place.clone(), value: Value::Text(entry.key.clone()) };
                    let (Some(local), Some(public)) = (self.ip(&local, path), self.public_ip(&entry.node, &key)) else {
                        continue;
                    };
                    if Family::of(local) != Family::of(public) {
                        self.wrong(&entry.node, &key, "both addresses must be of one family");
                    } else if !addresses.is_empty() && !addresses.contains(&local) {
                        self.wrong(&entry.node, &key, format!("{local} is not in relay.addresses"));
                    } else if pairs.iter().any(|(_, other)| *other == public) {
                        self.wrong(
                            &entry.node,
                            &key,
                            "stands for two local addresses, so a packet to it would have two owners",
                        );
                    } else {
                        pairs.push((local, public));
                    }
                }
                External::PerAddress(pairs)
            }
            Value::Integer(..) | Value::Other(_) => {
                self.wrong(
                    &node,
                    path,
                    "expected an address, a list of one per family, or { \"10.0.0.5\" = \"203.0.113.7\" }",
                );
                External::Same
            }
        }
    }

    fn external_per_family(&mut self, items: &[Node], addresses: &[IpAddr]) -> External {
        let path = "relay.external";
        let (mut ipv4, mut ipv6) = (None, None);
        for node in items {
            let Some(public) = self.public_ip(node, path) else { continue };
            let family = Family::of(public);
            let locals = addresses.iter().filter(|local| Family::of(**local) == family).count();
            let taken = match family {
                Family::V4 => ipv4.is_some(),
                Family::V6 => ipv6.is_some(),
            };
            if taken {
                self.wrong(
                    node,
                    path,
                    format!(
                        "a second {} address; a list holds one per family, for more write {{ \"local\" = \"public\" }}",
                        family.name()
                    ),
                );
            } else if !addresses.is_empty() && locals == 0 {
                self.wrong(
                    node,
                    path,
                    format!("no {} address in relay.addresses that it could stand for", family.name()),
                );
            } else if locals > 1 {
                self.wrong(node, path, format!("stands for {locals} addresses of relay.addresses, so a packet to it would have two owners; write {{ \"local\" = \"public\" }}"));
            }
            match public {
                IpAddr::V4(ip) => ipv4 = Some(ip),
                IpAddr::V6(ip) => ipv6 = Some(ip),
            }
        }
        External::PerFamily { ipv4, ipv6 }
    }

    fn relay_ports(&mut self, addresses: &[IpAddr], listen: &[(Listen, Node)]) -> RangeInclusive<u16> {
        let path = "relay.ports";
        let node = self.get(path);
        let Some(text) = self.text(&node, path) else { return 49152..=65535 };
        let ports = match units::ports(&text) {
            Ok(ports) => ports,
            Err(message) => {
                self.wrong(&node, path, message);
                return 49152..=65535;
            }
        };
        for (listener, listener_node) in listen {
            let address = listener.address;
            // Relayed sockets are UDP: a stream listener's port is free for them.
            if listener.transport != Transport::Udp || !ports.contains(&address.port()) {
                continue;
            }
            let same_host = if addresses.is_empty() {
                !address.ip().is_loopback()
            } else {
                addresses.iter().any(|ip| overlap(SocketAddr::new(*ip, address.port()), address))
            };
            if same_host {
                // The line to blame is the one that was written.
                if node.place == Place::Nowhere {
                    self.wrong(
                        listener_node,
                        "listen.udp",
                        format!(
                            "its port lies in relay.ports = {} on the same address; move one of them",
                            node.render()
                        ),
                    );
                } else {
                    let message =
                        format!("holds the port of the listener {address} on the same address; move one of them");
                    self.wrong(&node, path, message);
                    break;
                }
            }
        }
        ports
    }

    /// `[http]`.
    pub(crate) fn http(&mut self, listen: &[(Listen, Node)], tls: &TlsConfig) -> HttpConfig {
        let mut hosts = Vec::new();
        for node in self.list("http.hosts") {
            let Some(host) = self.text(&node, "http.hosts") else { continue };
            if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
                self.wrong(
                    &node,
                    "http.hosts",
                    "expected a host name without scheme, port or path, such as \"metrics.example.org\"",
                );
            } else {
                hosts.push(host.to_ascii_lowercase().into());
            }
        }
        let private = self.http_listen(listen);
        let public = self.http_public(listen, private.as_ref());
        let issuing = self.issuing();
        self.public_needs_a_method(&public, &issuing);
        self.public_needs_tls(&public, tls, &issuing);
        HttpConfig { listen: private, hosts, public, issuing }
    }

    fn http_public(&mut self, listen: &[(Listen, Node)], private: Option<&HttpListen>) -> Vec<PublicListen> {
        let path = "http.public";
        let mut public: Vec<PublicListen> = Vec::new();
        for node in self.list(path) {
            let Some(text) = self.text(&node, path) else { continue };
            let (is_https, place) = match text.split_once("://") {
                Some(("https", place)) => (true, place.strip_suffix('/').unwrap_or(place)),
                Some(("http", place)) => (false, place.strip_suffix('/').unwrap_or(place)),
                Some(_) => {
                    self.wrong(&node, path, "expected \"https://address:port\", or \"address:port\" without TLS");
                    continue;
                }
                None => (false, text.as_str()),
            };
            let Some(address) = self.socket_address(&node, path, place) else { continue };
            let taken = listen
                .iter()
                .find(|(other, _)| other.transport != Transport::Udp && overlap(other.address, address))
                .map(|(other, _)| format!("{} = \"{}\"", other.key(), other.address));
            let private = match private {
                Some(HttpListen::Tcp(other)) if overlap(*other, address) => Some(format!("http.listen = \"{other}\"")),
                Some(HttpListen::Tcp(_) | HttpListen::Unix(_)) | None => None,
            };
            let twice = public.iter().find(|other| overlap(other.address, address)).map(|other| format!("\"{other}\""));
            match taken.or(private).or(twice) {
                Some(by) => self.wrong(&node, path, format!("is taken by {by}")),
                None => public.push(PublicListen { address, is_https }),
            }
        }
        public
    }

    pub(crate) fn http_listen(&mut self, listen: &[(Listen, Node)]) -> Option<HttpListen> {
        let path = "http.listen";
        let node = self.get(path);
        let text = self.text(&node, path)?;
        if text.is_empty() {
            return None;
        }
        if let Some(socket) = text.strip_prefix("unix:") {
            let socket = PathBuf::from(socket);
            if !socket.is_absolute() || socket.file_name().is_none() {
                self.wrong(
                    &node,
                    path,
                    "expected an absolute path after unix:, such as \"unix:/run/throughway/http.sock\"",
                );
            }
            return Some(HttpListen::Unix(socket));
        }
        let address = self.socket_address(&node, path, &text)?;
        if !address.ip().is_loopback() {
            self.wrong(
                &node,
                path,
                "this page of metrics has no lock, so it must be loopback (\"127.0.0.1:8080\", \"[::1]:8080\") or \"unix:/path\"; put a reverse proxy in front to show it elsewhere",
            );
        } else if let Some((other, _)) =
            listen.iter().find(|(other, _)| other.transport != Transport::Udp && overlap(other.address, address))
        {
            self.wrong(&node, path, format!("is taken by {} = \"{}\"", other.key(), other.address));
        }
        Some(HttpListen::Tcp(address))
    }
}

impl Listen {
    /// The key that it came from.
    pub(crate) const fn key(&self) -> &'static str {
        match (self.is_auto, self.transport) {
            (true, _) => "listen.auto",
            (false, Transport::Udp) => "listen.udp",
            (false, Transport::Tcp) => "listen.tcp",
            (false, Transport::Tls) => "listen.tls",
        }
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
