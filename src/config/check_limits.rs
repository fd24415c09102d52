//! `[limits]`, and the tables of limits that users and secrets may have.

use std::time::Duration;

use ipnet::IpNet;

use crate::config::check::{Check, is_zero};
use crate::config::checked::LimitsConfig;
use crate::config::document::{Entry, Node, Value};
use crate::config::error::Problem;
use crate::config::units;
use crate::credentials::claims::{Claim, ClaimSet, Grant, PeerScope, Transports};
use crate::protocol::address::Transport;
use crate::protocol::meter::Rates;
use crate::protocol::settings::Limits;

/// All channel numbers there are (RFC 8656 section 12: 0x4000 to 0x4FFF).
const CHANNELS_MAX: u32 = 4096;

/// The longest frame on a TCP connection: a Send indication with a datagram of 65,507 bytes.
const TCP_FRAME_BYTES: u64 = 65_556;

/// The fields of a table of limits.
pub(crate) const GRANT_FIELDS: [&str; 7] =
    ["allocations", "bandwidth", "packet_rate", "bytes", "bytes_per_day", "peers", "transports"];

/// The longest name of a tenant, in bytes.
const TENANT_BYTES_MAX: usize = 64;

impl Check {
    pub(crate) fn limits(&mut self) -> LimitsConfig {
        let none = |count: u32| (count != 0).then_some(count);
        let tables = Limits {
            allocations: none(self.count("limits.allocations", u32::MAX)),
            allocations_per_user: none(self.count("limits.allocations_per_user", u32::MAX)),
            allocations_per_credential: none(self.count("limits.allocations_per_credential", u32::MAX)),
            allocations_per_tenant: none(self.count("limits.allocations_per_tenant", u32::MAX)),
            allocations_per_client: none(self.count("limits.allocations_per_client", u32::MAX)),
            server: self.rates("limits.bandwidth", "limits.packet_rate"),
            tenant: self.rates("limits.bandwidth_per_tenant", "limits.packet_rate_per_tenant"),
            client: self.rates("limits.bandwidth_per_client", "limits.packet_rate_per_client"),
            user: self.rates("limits.bandwidth_per_user", "limits.packet_rate_per_user"),
            credential: self.rates("limits.bandwidth_per_credential", "limits.packet_rate_per_credential"),
            allocation: self.rates("limits.bandwidth_per_allocation", "limits.packet_rate_per_allocation"),
            burst_ms: self.seconds("limits.burst", 1..=60) * 1000,
            bytes_per_credential: self.budget("limits.bytes_per_credential"),
            bytes_per_user_per_day: self.budget("limits.bytes_per_user_per_day"),
            permissions_per_allocation: none(self.count("limits.permissions_per_allocation", u32::MAX))
                .unwrap_or(u32::MAX),
            // There are no more channel numbers, so this is no limit.
            channels_per_allocation: none(self.count("limits.channels_per_allocation", CHANNELS_MAX))
                .unwrap_or(CHANNELS_MAX),
        };
        LimitsConfig {
            tables,
            tcp_queue: self.tcp_queue(),
            tcp_unauthenticated: self.patience(
                "limits.tcp_unauthenticated",
                86_400,
                "connections that never authenticate stay for ever",
            ),
            tls_handshake: self.patience(
                "limits.tls_handshake",
                600,
                "connections that never shake hands stay for ever",
            ),
            tls_half_open: none(self.count("limits.tls_half_open", u32::MAX)),
        }
    }

    pub(crate) fn count(&mut self, path: &'static str, max: u32) -> u32 {
        let node = self.get(path);
        self.whole_number(&node, path, max, 0)
    }

    /// A whole number up to `max`, where 0 means no limit if `least` is 0.
    fn whole_number(&mut self, node: &Node, path: &str, max: u32, least: u32) -> u32 {
        if let Value::Integer(Some(number), _) = &node.value
            && let Ok(number) = u32::try_from(*number)
            && (least..=max).contains(&number)
        {
            return number;
        }
        let none = if least == 0 { ", or 0 for no limit" } else { "; leave it out for no limit" };
        self.wrong(node, path, format!("expected a whole number from 1 to {max}{none}"));
        0
    }

    fn rates(&mut self, bandwidth: &'static str, packets: &'static str) -> Rates {
        let node = self.get(bandwidth);
        let bits_per_second = if is_zero(&node) { None } else { self.rate(&node, bandwidth) };
        let packets = self.count(packets, u32::MAX);
        Rates { bits_per_second, packets_per_second: (packets != 0).then_some(u64::from(packets)) }
    }

    fn rate(&mut self, node: &Node, path: &str) -> Option<u64> {
        let message = match &node.value {
            Value::Text(text) => match units::rate(text) {
                Ok(0) => "a rate of 0 lets nothing pass; leave it out for no limit".to_owned(),
                Ok(rate) => return Some(rate),
                Err(message) => message,
            },
            Value::Integer(_, text) => units::rate(text).err().unwrap_or_default(),
            Value::Other(_) | Value::List(_) | Value::Table(_) => {
                format!("expected a rate such as \"3Mbit/s\", found {}", node.kind())
            }
        };
        self.wrong(node, path, message);
        None
    }

    fn budget(&mut self, path: &'static str) -> Option<u64> {
        let node = self.get(path);
        if is_zero(&node) { None } else { self.budget_of(&node, path) }
    }

    fn budget_of(&mut self, node: &Node, path: &str) -> Option<u64> {
        let message = match &node.value {
            Value::Text(text) => match units::size(text) {
                Ok(0) => "a budget of 0 lets nothing pass; leave it out for no limit".to_owned(),
                Ok(bytes) => return Some(bytes),
                Err(message) => message,
            },
            Value::Integer(_, text) => units::size(text).err().unwrap_or_default(),
            Value::Other(_) | Value::List(_) | Value::Table(_) => {
                format!("expected a size such as \"10GiB\", found {}", node.kind())
            }
        };
        self.wrong(node, path, message);
        None
    }

    fn tcp_queue(&mut self) -> Option<usize> {
        let path = "limits.tcp_queue";
        let node = self.get(path);
        if is_zero(&node) {
            self.unbounded(&node, path, "one slow TCP client can take all memory");
            return None;
        }
        let message = match &node.value {
            Value::Text(text) => match units::size(text) {
                Ok(bytes) if bytes >= TCP_FRAME_BYTES => return usize::try_from(bytes).ok(),
                Ok(_) => format!(
                    "a frame has up to {TCP_FRAME_BYTES} bytes; allowed are \"{TCP_FRAME_BYTES}B\" and more, or 0 for no limit"
                ),
                Err(message) => message,
            },
            Value::Integer(_, text) => units::size(text).err().unwrap_or_default(),
            Value::Other(_) | Value::List(_) | Value::Table(_) => {
                format!("expected a size such as \"256KiB\", found {}", node.kind())
            }
        };
        self.wrong(&node, path, message);
        None
    }

    fn patience(&mut self, path: &'static str, seconds_max: u64, otherwise: &str) -> Option<Duration> {
        let node = self.get(path);
        if is_zero(&node) {
            self.unbounded(&node, path, otherwise);
            return None;
        }
        Some(Duration::from_secs(self.seconds(path, 1..=seconds_max)))
    }

    fn unbounded(&mut self, node: &Node, path: &str, what: &str) {
        self.notes.push(Problem::new(node.place.clone(), path, format!("no limit: {what}")).with_value(node.render()));
    }

    /// The `limits` of a user, a secret or a key.
    pub(crate) fn grant(&mut self, node: &Node, key: &str) -> Grant {
        let mut grant = Grant::default();
        let Value::Table(fields) = &node.value else {
            let message = format!(
                "expected a table such as {{ bandwidth = \"3Mbit/s\", bytes = \"10GiB\" }}, found {}",
                node.kind()
            );
            self.wrong(node, key, message);
            return grant;
        };
        self.fields(fields, key, &GRANT_FIELDS, &[]);
        for Entry { key: name, node, .. } in fields {
            let path = format!("{key}.{name}");
            match name.as_str() {
                "allocations" => {
                    let count = self.whole_number(node, &path, u32::MAX, 1);
                    grant.allocations = (count != 0).then_some(count);
                }
                "bandwidth" => grant.bits_per_second = self.rate(node, &path),
                "packet_rate" => {
                    let count = self.whole_number(node, &path, u32::MAX, 1);
                    grant.packets_per_second = (count != 0).then_some(u64::from(count));
                }
                "bytes" => grant.bytes = self.budget_of(node, &path),
                "bytes_per_day" => grant.bytes_per_day = self.budget_of(node, &path),
                "peers" => grant.peers.extend(self.scope(node, &path)),
                "transports" => grant.transports = self.transports(node, &path),
                _ => {}
            }
        }
        grant
    }

    fn scope(&mut self, node: &Node, key: &str) -> Option<PeerScope> {
        match &node.value {
            Value::Text(word) if word == "relay" => Some(PeerScope::Relay),
            Value::List(items) if !items.is_empty() => {
                let prefixes: Vec<IpNet> = items.iter().filter_map(|item| self.net(item, key)).collect();
                (prefixes.len() == items.len()).then(|| PeerScope::Prefixes(prefixes.into()))
            }
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_) | Value::Table(_) => {
                let message = "expected a list of prefixes such as [\"198.51.100.0/24\"], or \"relay\" for relayed addresses of this server only";
                self.wrong(node, key, message);
                None
            }
        }
    }

    fn transports(&mut self, node: &Node, key: &str) -> Option<Transports> {
        let words = Transport::ALL.map(|transport| (transport.name(), transport));
        match &node.value {
            Value::List(items) if !items.is_empty() => {
                let known: Vec<Transport> = items.iter().map(|item| self.word(item, key, &words)).collect();
                Some(Transports::of(&known))
            }
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_) | Value::Table(_) => {
                self.wrong(node, key, "expected a list of \"udp\", \"tcp\" and \"tls\", such as [\"tls\"]");
                None
            }
        }
    }

    /// The name of a tenant.
    pub(crate) fn tenant(&mut self, node: &Node, key: &str) -> Option<Box<str>> {
        let text = self.text(node, key)?;
        if text.is_empty() || text.len() > TENANT_BYTES_MAX || text.chars().any(char::is_control) {
            let message = format!("a tenant's name has 1 to {TENANT_BYTES_MAX} bytes and no control characters");
            self.wrong(node, key, message);
            return None;
        }
        Some(text.into())
    }

    /// `claims` of a secret: true, false, or a list of their names.
    pub(crate) fn claims(&mut self, node: &Node, key: &str) -> ClaimSet {
        let words = Claim::ALL.map(|claim| (claim.name(), claim));
        match &node.value {
            Value::Other(word) if word == "true" => ClaimSet::LIMITS,
            Value::Other(word) if word == "false" => ClaimSet::default(),
            Value::List(items) => {
                let named: Vec<Claim> = items.iter().map(|item| self.word(item, key, &words)).collect();
                ClaimSet::of(&named)
            }
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::Table(_) => {
                let names: Vec<_> = words.iter().map(|(name, _)| format!("\"{name}\"")).collect();
                let message = format!("expected true, false or a list of {}", names.join(", "));
                self.wrong(node, key, message);
                ClaimSet::default()
            }
        }
    }

    /// A yes or no.
    pub(crate) fn flag(&mut self, node: &Node, key: &str) -> bool {
        match &node.value {
            Value::Other(word) if word == "true" => true,
            Value::Other(word) if word == "false" => false,
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_) | Value::Table(_) => {
                self.wrong(node, key, "expected true or false");
                false
            }
        }
    }

    /// A point in time, in seconds since 1970: a day lasts to its end.
    pub(crate) fn instant(&mut self, node: &Node, key: &str) -> Option<u64> {
        if let Value::Text(text) | Value::Other(text) = &node.value
            && let Some(unix) = units::instant(text)
        {
            return Some(unix);
        }
        self.wrong(
            node,
            key,
            "expected a day such as \"2026-12-31\", which counts to its end, or a time such as \"2026-12-31T12:00:00Z\" (UTC)",
        );
        None
    }
}
