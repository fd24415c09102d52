//! Which `Host` headers our HTTP answers.
//!
//! A page of another site can make its own name resolve to 127.0.0.1 (DNS rebinding) and would
//! then read `/config` as if it were ours. Its browser still sends that name as `Host`, so only
//! loopback literals, `localhost` and names the operator listed are answered. A WebSocket is not
//! bound by the same-origin rule at all: its `Origin` must be the very host it calls.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, header};

/// The names under which the page may be asked for, besides loopback.
///
/// Clones share their names, so that a reload changes them everywhere.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts(Arc<ArcSwap<Vec<String>>>);

impl AllowedHosts {
    /// Allows `names` (without port; IPv6 literals with or without brackets) besides loopback.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let hosts = Self::default();
        hosts.set(names);
        hosts
    }

    /// Allows these from now on, and those before no more.
    pub fn set(&self, names: impl IntoIterator<Item = String>) {
        self.0.store(Arc::new(names.into_iter().map(|name| normal(&name)).collect()));
    }

    /// The host a request names, if it may: without port, brackets kept for IPv6 literals.
    pub(crate) fn check<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let mut values = headers.get_all(header::HOST).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        let host = without_port(value)?;
        self.allows(host).then_some(host)
    }

    fn allows(&self, host: &str) -> bool {
        let host = normal(host);
        let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        loopback || host == "localhost" || self.0.load().contains(&host)
    }
}

/// True if there is no `Origin` (not a browser) or it is the origin of this very host.
pub(crate) fn same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")));
    match (origin, host) {
        (Some(origin), Some(host)) => origin.eq_ignore_ascii_case(host),
        (None, _) | (_, None) => false,
    }
}

fn normal(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase()
}

/// Cuts `:port` off; `None` for what is no host at all.
fn without_port(value: &str) -> Option<&str> {
    if value.starts_with('[') {
        let end = value.find(']')?;
        value[1..end].parse::<Ipv6Addr>().ok()?;
        let rest = &value[end + 1..];
        return port_is_fine(rest).then_some(&value[..=end]);
    }
    let end = value.find(':').unwrap_or(value.len());
    let (host, rest) = value.split_at(end);
    let fine =
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    (fine && port_is_fine(rest)).then_some(host)
}

fn port_is_fine(rest: &str) -> bool {
    rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    #[test]
    fn loopback_and_listed_names_are_answered() {
        let hosts = AllowedHosts::new(["Laptop.Example".to_owned(), "[fd00::2]".to_owned()]);

        for (value, host) in [
            ("127.0.0.1:8080", "127.0.0.1"),
            ("127.9.9.9", "127.9.9.9"),
            ("[::1]:8080", "[::1]"),
            ("localhost:8080", "localhost"),
            ("LOCALHOST", "LOCALHOST"),
            ("laptop.example:80", "laptop.example"),
            ("[fd00::2]:80", "[fd00::2]"),
        ] {
            assert_eq!(hosts.check(&headers(value, None)), Some(host), "{value}");
        }
    }

    #[test]
    fn rebound_and_malformed_names_are_refused() {
        let hosts = AllowedHosts::default();

        for value in [
            "attacker.example:8080",
            "127.0.0.1.attacker.example",
            "localhost.attacker.example",
            "192.0.2.7:8080",
            "0.0.0.0:8080",
            "[::]:8080",
            "[::1]x",
            "[::1",
            "127.0.0.1:99999",
            "127.0.0.1:80:80",
            "user@127.0.0.1",
            "",
            ":8080",
        ] {
            assert_eq!(hosts.check(&headers(value, None)), None, "{value}");
        }
        assert_eq!(hosts.check(&HeaderMap::new()), None);
    }

    #[test]
    fn two_host_headers_are_refused() {
        let mut twice = headers("127.0.0.1", None);
        twice.append(header::HOST, "attacker.example".parse().unwrap());

        assert_eq!(AllowedHosts::default().check(&twice), None);
    }

    #[test]
    fn a_websocket_of_another_origin_is_refused() {
        assert!(same_origin(&headers("127.0.0.1:8080", None)));
        assert!(same_origin(&headers("127.0.0.1:8080", Some("http://127.0.0.1:8080"))));
        for origin in ["http://127.0.0.1:9090", "http://attacker.example", "null", "file://"] {
            assert!(!same_origin(&headers("127.0.0.1:8080", Some(origin))), "{origin}");
        }
    }
}
