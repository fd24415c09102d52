//! `[limits]`, and the tables of limits that users, secrets and keys may have.

use std::time::Duration;

use crate::address::Transport;
use crate::config::check::{Check, Table};
use crate::config::document::{Node, Value};
use crate::config::keys::CHANNELS_MAX;
use crate::credentials::claims::{Claim, ClaimSet, Grant};
use crate::credentials::limits::{LimitValue, PrefixForm};
use crate::protocol::meter::Rates;
use crate::protocol::settings::Limits;

/// The longest name of a tenant, in bytes.
const TENANT_BYTES_MAX: usize = 64;

/// `[limits]`; `None` means no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitsConfig {
    /// What the core counts.
    pub tables: Limits,
    /// Bytes that may wait for one TCP client; then packets are dropped and counted.
    pub tcp_queue: Option<usize>,
    /// How long a TCP connection may stay without an authenticated request.
    pub tcp_unauthenticated: Option<Duration>,
    /// TCP and TLS connections without an allocation at once.
    pub tcp_half_open: Option<u32>,
    /// How long a TLS handshake may take.
    pub tls_handshake: Option<Duration>,
    /// TLS handshakes under way at once.
    pub tls_half_open: Option<u32>,
    /// Connections that are passed on to web servers at once.
    pub shared_connections: Option<u32>,
    /// How long one of them may carry nothing.
    pub shared_idle: Option<Duration>,
}

impl Check {
    pub(crate) fn limits(&self) -> LimitsConfig {
        let rates = |bandwidth: &str, packet_rate: &str| Rates {
            bits_per_second: self.limit(bandwidth),
            packets_per_second: self.limit(packet_rate),
        };
        let tables = Limits {
            allocations: self.limit("limits.allocations"),
            allocations_per_user: self.limit("limits.allocations_per_user"),
            allocations_per_user_per_minute: self.limit("limits.allocations_per_user_per_minute"),
            reservations_per_user: self.limit("limits.reservations_per_user"),
            allocations_per_credential: self.limit("limits.allocations_per_credential"),
            allocations_per_tenant: self.limit("limits.allocations_per_tenant"),
            allocations_per_client: self.limit("limits.allocations_per_client"),
            allocations_per_client_per_minute: self.limit("limits.allocations_per_client_per_minute"),
            replies_per_network: self.limit("limits.replies_per_network"),
            requests_per_allocation: self.limit("limits.requests_per_allocation"),
            failures: self.limit("limits.failures"),
            server: rates("limits.bandwidth", "limits.packet_rate"),
            tenant: rates("limits.bandwidth_per_tenant", "limits.packet_rate_per_tenant"),
            client: rates("limits.bandwidth_per_client", "limits.packet_rate_per_client"),
            user: rates("limits.bandwidth_per_user", "limits.packet_rate_per_user"),
            credential: rates("limits.bandwidth_per_credential", "limits.packet_rate_per_credential"),
            allocation: rates("limits.bandwidth_per_allocation", "limits.packet_rate_per_allocation"),
            burst_ms: self.number::<u64>("limits.burst") * 1000,
            bytes_per_credential: self.limit("limits.bytes_per_credential"),
            bytes_per_user_per_day: self.limit("limits.bytes_per_user_per_day"),
            permissions_per_allocation: self.limit("limits.permissions_per_allocation").unwrap_or(u32::MAX),
            // There are no more channel numbers, so this is no limit.
            connections_per_allocation: self.limit("limits.connections_per_allocation").unwrap_or(u32::MAX),
            channels_per_allocation: self.limit("limits.channels_per_allocation").unwrap_or(CHANNELS_MAX),
        };
        LimitsConfig {
            tables,
            tcp_queue: self.limit("limits.tcp_queue"),
            tcp_unauthenticated: self.limit("limits.tcp_unauthenticated").map(Duration::from_secs),
            tcp_half_open: self.limit("limits.tcp_half_open"),
            tls_handshake: self.limit("limits.tls_handshake").map(Duration::from_secs),
            tls_half_open: self.limit("limits.tls_half_open"),
            shared_connections: self.limit("limits.shared_connections"),
            shared_idle: self.limit("limits.shared_idle").map(Duration::from_secs),
        }
    }

    /// The `limits` of a user, a secret or a key.
    pub(crate) fn grant(&mut self, of: &Table<'_>) -> Grant {
        let mut grant = Grant::default();
        let limits = of.get("limits").and_then(|node| self.table(node, "*.limits"));
        let Some(limits) = limits else { return grant };
        grant.packets_per_second = limits.number("packet_rate");
        grant.bytes_per_day = limits.number("bytes_per_day");
        for (limit, name) in [
            (Claim::Allocations, "allocations"),
            (Claim::Bitrate, "bandwidth"),
            (Claim::Bytes, "bytes"),
            (Claim::Peers, "peers"),
            (Claim::Transports, "transports"),
        ] {
            let Some(node) = limits.get(name) else { continue };
            let value = match (&node.value, node.text(), limits.number(name)) {
                (Value::List(items), ..) => LimitValue::of_texts(items.iter().map(Node::text)),
                (_, _, Some(number)) => LimitValue::Number(number),
                (_, word, None) => word.map_or(LimitValue::Other, LimitValue::Text),
            };
            if grant.set(limit, &value, PrefixForm::ExactOrAddress).is_err() {
                self.wrong_limit(limit, node);
            }
        }
        grant
    }

    /// What is wrong with a list: its items, or that it has none.
    fn wrong_limit(&mut self, limit: Claim, node: &Node) {
        let transports = Transport::ALL.map(|transport| (transport.name(), transport));
        let Value::List(items) = &node.value else { return };
        for item in items {
            if limit == Claim::Peers {
                self.net(item);
            } else {
                self.word(item, &transports);
            }
        }
        if items.is_empty() {
            self.wrong(node, "an empty list allows nothing; leave it out for no limit");
        }
    }

    /// The name of a tenant.
    pub(crate) fn tenant(&mut self, of: &Table<'_>) -> Option<Box<str>> {
        let (node, text) = of.text("tenant")?;
        self.tenant_name(node, text)
    }

    /// The name of a tenant, wherever one is named.
    pub(crate) fn tenant_name(&mut self, node: &Node, text: &str) -> Option<Box<str>> {
        if text.is_empty() || text.len() > TENANT_BYTES_MAX || text.chars().any(char::is_control) {
            let message = format!("a tenant's name has 1 to {TENANT_BYTES_MAX} bytes and no control characters");
            self.wrong(node, message);
            return None;
        }
        Some(text.into())
    }

    /// `claims` of a secret: true, false, or a list of their names.
    pub(crate) fn claims(&mut self, of: &Table<'_>) -> ClaimSet {
        let words = Claim::ALL.map(|claim| (claim.name(), claim));
        match of.get("claims").map(|node| &node.value) {
            Some(Value::List(items)) => {
                let named: Vec<Claim> = items.iter().map(|item| self.word(item, &words)).collect();
                ClaimSet::of(&named)
            }
            _ if of.flag("claims") => ClaimSet::LIMITS,
            _ => ClaimSet::default(),
        }
    }
}
