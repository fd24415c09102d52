//! `relay.external` and its sisters: what clients are told instead of a local address, written down or found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::address::Family;
use crate::config::check::{Check, or_nearest};
use crate::config::document::{Node, TableEntry, Value};
use crate::fetch::Url;
use crate::protocol::peer_policy::is_global;

/// The port of STUN (RFC 8489 section 8).
const STUN_PORT: u16 = 3478;

/// Servers of `relay.external_servers`: a few are enough to find one that is wrong.
pub const SERVERS_MAX: usize = 8;

/// The public face of local addresses (1:1 NAT).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum External {
    /// Clients are told the local address.
    Same,
    /// One public address per family, at least one of them.
    PerFamily {
        /// For local IPv4 addresses.
        ipv4: Option<Ipv4Addr>,
        /// For local IPv6 addresses.
        ipv6: Option<Ipv6Addr>,
    },
    /// (local, public), each local and each public address at most once.
    PerAddress(Vec<(IpAddr, IpAddr)>),
    /// Others are asked, at the start and from time to time.
    Found {
        /// Who is asked.
        source: ExternalSource,
        /// (local, public), as they said last; empty in a configuration that was just read.
        pairs: Vec<(IpAddr, IpAddr)>,
    },
}

/// Who tells the public addresses of this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExternalSource {
    /// The STUN servers of `relay.external_servers`.
    Stun,
    /// Amazon EC2's metadata service, version 2.
    Aws,
    /// Google Compute Engine's.
    Gcp,
    /// Azure's.
    Azure,
    /// Hetzner Cloud's.
    Hetzner,
    /// DigitalOcean's.
    DigitalOcean,
}

impl ExternalSource {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Stun, Self::Aws, Self::Gcp, Self::Azure, Self::Hetzner, Self::DigitalOcean];

    /// As `relay.external` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stun => "auto",
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::Hetzner => "hetzner",
            Self::DigitalOcean => "digitalocean",
        }
    }
}

/// A STUN server that is asked how it sees us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StunServer {
    /// A name or an address.
    pub host: Box<str>,
    /// Its port.
    pub port: u16,
}

impl std::fmt::Display for StunServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl StunServer {
    /// Reads HOST, HOST:PORT, or a `stun:` URI of that.
    ///
    /// # Errors
    /// What is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || "expected HOST or HOST:PORT of a STUN server, such as \"stun.example.org:3478\"".to_owned();
        let bare = text.strip_prefix("stun:").unwrap_or(text);
        let (host, port) = if let Ok(address) = bare.parse::<SocketAddr>() {
            (address.ip().to_string(), address.port())
        } else if let Ok(ip) = bare.trim_matches(['[', ']']).parse::<IpAddr>() {
            (ip.to_string(), STUN_PORT)
        } else {
            let (name, port) = match bare.rsplit_once(':') {
                Some((name, port)) => (name, port.parse().map_err(|_| expected())?),
                None => (bare, STUN_PORT),
            };
            if !is_host_name(name) {
                return Err(expected());
            }
            (name.to_owned(), port)
        };
        if port == 0 { Err(expected()) } else { Ok(Self { host: host.into(), port }) }
    }
}

/// Whether a text can be a name in DNS.
pub(crate) fn is_host_name(name: &str) -> bool {
    let is_label =
        |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name.len() <= 253 && name.split('.').all(is_label)
}

impl External {
    /// What clients are told for a local address; nothing while that is not known yet.
    ///
    /// Where others are asked, a global address needs no answer: it is told as it is until they say something else.
    #[must_use]
    pub fn advertised(&self, local: IpAddr) -> Option<IpAddr> {
        let of = |pairs: &[(IpAddr, IpAddr)]| pairs.iter().find(|(from, _)| *from == local).map(|(_, public)| *public);
        match (self, local) {
            (Self::PerFamily { ipv4: Some(public), .. }, IpAddr::V4(_)) => Some(IpAddr::V4(*public)),
            (Self::PerFamily { ipv6: Some(public), .. }, IpAddr::V6(_)) => Some(IpAddr::V6(*public)),
            (Self::PerAddress(pairs), _) => Some(of(pairs).unwrap_or(local)),
            (Self::Found { pairs, .. }, _) => of(pairs).or_else(|| is_global(local).then_some(local)),
            (Self::Same | Self::PerFamily { .. }, _) => Some(local),
        }
    }

    /// Every public address that is written down, or was found.
    #[must_use]
    pub fn public(&self) -> Vec<IpAddr> {
        match self {
            Self::Same => Vec::new(),
            Self::PerFamily { ipv4, ipv6 } => {
                ipv4.iter().copied().map(IpAddr::V4).chain(ipv6.iter().copied().map(IpAddr::V6)).collect()
            }
            Self::PerAddress(pairs) | Self::Found { pairs, .. } => pairs.iter().map(|(_, public)| *public).collect(),
        }
    }

    /// Who is asked, if anybody is.
    #[must_use]
    pub const fn source(&self) -> Option<ExternalSource> {
        match self {
            Self::Found { source, .. } => Some(*source),
            Self::Same | Self::PerFamily { .. } | Self::PerAddress(_) => None,
        }
    }

    /// What was found last.
    #[must_use]
    pub fn found(&self) -> &[(IpAddr, IpAddr)] {
        match self {
            Self::Found { pairs, .. } => pairs,
            Self::Same | Self::PerFamily { .. } | Self::PerAddress(_) => &[],
        }
    }

    /// Takes over what was found; whether that is something else than before. What is written down stays.
    pub fn set_found(&mut self, new: &[(IpAddr, IpAddr)]) -> bool {
        match self {
            Self::Found { pairs, .. } if *pairs != new => {
                *pairs = new.to_vec();
                true
            }
            Self::Found { .. } | Self::Same | Self::PerFamily { .. } | Self::PerAddress(_) => false,
        }
    }
}

/// Who else is asked, and how often.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExternalLook {
    /// `relay.external_servers`.
    pub servers: Vec<StunServer>,
    /// `relay.external_metadata`, in place of the provider's own addresses.
    pub metadata: Option<Url>,
    /// `relay.external_interval`.
    pub interval: Duration,
}

impl Check {
    pub(crate) fn external(&mut self, addresses: &[IpAddr]) -> External {
        let node = self.get("relay.external");
        match &node.value {
            Value::Text(text) if text.is_empty() => External::Same,
            Value::Text(text) => match self.external_source(&node, text) {
                Some(external) => external,
                None => self.external_per_family(std::slice::from_ref(&node), addresses),
            },
            Value::List(items) if items.is_empty() => External::Same,
            Value::List(items) => self.external_per_family(items, addresses),
            Value::Table(entries) => self.external_per_address(&node.key, entries, addresses),
            Value::Integer(..) | Value::Other(_) => External::Same,
        }
    }

    /// A word for who is asked, right or wrong; nothing if it looks like an address.
    fn external_source(&mut self, node: &Node, text: &str) -> Option<External> {
        if !text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return None;
        }
        let names = ExternalSource::ALL.map(ExternalSource::name);
        let source = ExternalSource::ALL.into_iter().find(|source| source.name() == text);
        let Some(source) = source else {
            let problem = or_nearest(node, text, &names);
            self.problems.extend(problem.map(|mut problem| {
                problem.message += ", and public addresses";
                problem
            }));
            return Some(External::Same);
        };
        if source == ExternalSource::Stun && self.list("relay.external_servers").is_empty() {
            self.wrong(
                node,
                "has no server to ask; name STUN servers in relay.external_servers, better two of different operators",
            );
        }
        Some(External::Found { source, pairs: Vec::new() })
    }

    /// The keys beside it.
    pub(crate) fn external_look(&mut self, external: &External) -> ExternalLook {
        let mut servers: Vec<StunServer> = Vec::new();
        for node in self.list("relay.external_servers") {
            let Some(text) = self.text(&node) else { continue };
            let Some(server) = self.ok(&node, StunServer::parse(&text)) else { continue };
            if servers.contains(&server) {
                self.wrong(&node, "is listed twice");
            } else if servers.len() == SERVERS_MAX {
                self.wrong(&node, format!("is one too many: at most {SERVERS_MAX} servers are asked"));
                break;
            } else {
                servers.push(server);
            }
        }
        let metadata = self.text_of("relay.external_metadata").and_then(|(text, node)| {
            let url = self.ok(&node, Url::parse(&text))?;
            if url.is_https() {
                self.wrong(&node, "metadata services speak plain HTTP; write http://");
            } else if external.source().is_none_or(|source| source == ExternalSource::Stun) {
                self.wrong(&node, "has no effect unless relay.external names a provider, such as \"aws\"");
            }
            Some(url)
        });
        let interval = Duration::from_secs(self.number("relay.external_interval"));
        ExternalLook { servers, metadata, interval }
    }

    fn public_ip(&mut self, node: &Node) -> Option<IpAddr> {
        let ip = self.ip(node)?;
        self.ok(node, if ip.is_unspecified() { Err("is not an address clients can reach") } else { Ok(ip) })
    }

    fn external_per_address(&mut self, path: &str, entries: &[TableEntry], addresses: &[IpAddr]) -> External {
        let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
        for TableEntry { name, location, node } in entries {
            let local = Node { key: path.to_owned(), location: location.clone(), value: Value::Text(name.clone()) };
            let (Some(local), Some(public)) = (self.ip(&local), self.public_ip(node)) else { continue };
            if Family::of(local) != Family::of(public) {
                self.wrong(node, "both addresses must be of one family");
            } else if !addresses.is_empty() && !addresses.contains(&local) {
                self.wrong(node, format!("{local} is not in relay.addresses"));
            } else if pairs.iter().any(|(_, other)| *other == public) {
                self.wrong(node, "stands for two local addresses, so a packet to it would have two owners");
            } else {
                pairs.push((local, public));
            }
        }
        External::PerAddress(pairs)
    }

    fn external_per_family(&mut self, items: &[Node], addresses: &[IpAddr]) -> External {
        let (mut ipv4, mut ipv6) = (None, None);
        for node in items {
            if let Value::Text(word) = &node.value
                && ExternalSource::ALL.iter().any(|source| source.name() == word)
            {
                self.wrong(node, format!("stands alone: write external = \"{word}\", without brackets"));
                continue;
            }
            let Some(public) = self.public_ip(node) else { continue };
            let family = Family::of(public);
            let locals = addresses.iter().filter(|local| Family::of(**local) == family).count();
            let is_second = match family {
                Family::V4 => ipv4.is_some(),
                Family::V6 => ipv6.is_some(),
            };
            if is_second {
                let name = family.name();
                let message = format!(
                    "a second {name} address; a list holds one per family, for more write {{ \"local\" = \"public\" }}"
                );
                self.wrong(node, message);
            } else if !addresses.is_empty() && locals == 0 {
                self.wrong(node, format!("no {} address in relay.addresses that it could stand for", family.name()));
            } else if locals > 1 {
                self.wrong(node, format!("stands for {locals} addresses of relay.addresses, so a packet to it would have two owners; write {{ \"local\" = \"public\" }}"));
            }
            match public {
                IpAddr::V4(ip) => ipv4 = Some(ip),
                IpAddr::V6(ip) => ipv6 = Some(ip),
            }
        }
        External::PerFamily { ipv4, ipv6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn external_addresses_stand_for_their_own_family_or_address() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let external = |lines: &str| Config::with_a_secret(lines).unwrap().relay.external;
        let family = external("relay.external = \"203.0.113.7\"");
        assert_eq!(family.advertised(ip("10.0.0.5")), Some(ip("203.0.113.7")));
        assert_eq!(family.advertised(ip("2001:db8::5")), Some(ip("2001:db8::5")));
        let table = external("relay.external = { \"10.0.0.5\" = \"203.0.113.7\", \"fd00::5\" = \"2001:db8::7\" }");
        assert_eq!(table.advertised(ip("10.0.0.5")), Some(ip("203.0.113.7")));
        assert_eq!(table.advertised(ip("fd00::5")), Some(ip("2001:db8::7")));
        assert_eq!(table.advertised(ip("10.0.0.6")), Some(ip("10.0.0.6")));
        assert_eq!(table.public().len(), 2);
    }
    fn errors(lines: &str) -> String {
        Config::with_a_secret(lines).unwrap_err().to_string()
    }

    #[test]
    fn a_word_names_who_is_asked_and_a_wrong_one_is_told_the_nearest() {
        for source in ExternalSource::ALL {
            let lines = format!("relay.external = \"{}\"\nrelay.external_servers = [\"192.0.2.1\"]", source.name());
            let external = Config::with_a_secret(&lines).unwrap().relay.external;
            assert_eq!(external, External::Found { source, pairs: Vec::new() });
        }
        let error = errors("relay.external = \"amazon\"");
        assert!(error.contains("\"auto\", \"aws\"") && error.contains("public addresses"), "{error}");
        assert!(errors("relay.external = \"hetzne\"").contains("\"hetzner\""));
        assert!(errors("relay.external = \"auto\"").contains("relay.external_servers"));
        assert!(errors("relay.external = [\"auto\"]").contains("write external = \"auto\", without brackets"));
        assert!(errors("relay.external = \"auto.example\"").contains("expected an IP address"));
    }

    #[test]
    fn what_is_found_is_told_and_a_private_address_is_unknown_until_then() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut external = External::Found { source: ExternalSource::Aws, pairs: Vec::new() };
        assert_eq!(external.advertised(ip("10.0.0.5")), None);
        assert_eq!(external.advertised(ip("45.0.0.7")), Some(ip("45.0.0.7")), "it needs no answer");
        let pairs = [(ip("10.0.0.5"), ip("45.0.0.7"))];
        assert!(external.set_found(&pairs) && !external.set_found(&pairs));
        assert_eq!(external.advertised(ip("10.0.0.5")), Some(ip("45.0.0.7")));
        assert!(!External::Same.set_found(&pairs));
    }

    #[test]
    fn servers_are_names_or_addresses_with_a_port_or_without() {
        for (text, shown) in [
            ("stun.example.org", "stun.example.org:3478"),
            ("stun:stun.example.org:19302", "stun.example.org:19302"),
            ("192.0.2.1", "192.0.2.1:3478"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
            ("2001:db8::1", "[2001:db8::1]:3478"),
        ] {
            assert_eq!(StunServer::parse(text).unwrap().to_string(), shown);
        }
        for wrong in ["", "a b", "stun.example.org:0", "stun.example.org:70000", "-.x_y", "https://a.example"] {
            assert!(StunServer::parse(wrong).is_err(), "{wrong}");
        }
        let many: Vec<String> = (0..=SERVERS_MAX).map(|at| format!("\"192.0.2.{at}\"")).collect();
        assert!(errors(&format!("relay.external_servers = [{}]", many.join(", "))).contains("at most 8"));
        assert!(errors("relay.external_metadata = \"http://127.0.0.1:1\"").contains("has no effect"));
        assert!(errors("relay.external = \"aws\"\nrelay.external_metadata = \"https://a\"").contains("http://"));
    }
}
