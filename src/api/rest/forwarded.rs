//! Where a client is that came through proxies: X-Forwarded-For, as far as trusted proxies wrote it.
//!
//! Each proxy appends the address that it heard. So the list is read from its end, and the rightmost address that is no
//! trusted proxy's is the client's: what stands left of it may be invented. A hop that can't be read leaves the client
//! unknown; it never makes the proxy the client.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, header};
use ipnet::IpNet;

use crate::api::Peer;

/// Where a request comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ClientAddress {
    /// An address; IPv4 in IPv6 is IPv4.
    At(IpAddr),
    /// A trusted proxy wrote something that is no address.
    Unknown,
    /// A process of this machine, and its user if the system tells it.
    Unix(Option<u32>),
}

impl ClientAddress {
    /// The address, where there is one.
    pub(super) const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::At(ip) => Some(ip),
            Self::Unknown | Self::Unix(_) => None,
        }
    }
}

/// For the log.
impl std::fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(ip) => ip.fmt(f),
            Self::Unknown => f.write_str("unknown"),
            Self::Unix(Some(uid)) => write!(f, "unix:{uid}"),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

/// The connection's other end, or what trusted proxies say of it.
pub(super) fn client(proxies: &[IpNet], peer: Peer, headers: &HeaderMap) -> ClientAddress {
    let address = match peer {
        Peer::Tcp(address) => address.ip().to_canonical(),
        Peer::Unix(user) => return ClientAddress::Unix(user),
    };
    let is_proxy = |ip: IpAddr| proxies.iter().any(|net| net.contains(&ip));
    let lines: Vec<&[u8]> = headers.get_all("x-forwarded-for").iter().map(|line| line.as_bytes()).collect();
    if lines.is_empty() && is_proxy(address) && headers.contains_key(header::FORWARDED) {
        // RFC 7239 is not read here, so this proxy's word is lost; taken for itself it would be another's.
        return ClientAddress::Unknown;
    }
    let mut hops = lines.iter().flat_map(|line| line.split(|byte| *byte == b',')).rev();
    let mut client = address;
    while is_proxy(client) {
        let Some(hop) = hops.next() else { break };
        match parse_hop(hop) {
            Some(ip) => client = ip,
            None => return ClientAddress::Unknown,
        }
    }
    ClientAddress::At(client)
}

/// An address, with or without a port, brackets and quotes: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`,
/// `[2001:db8::1]`, `"[2001:db8::1]:443"`.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let text = match text.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => text,
    };
    let ip = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        if !port.is_empty() {
            check_port(port.strip_prefix(':')?)?;
        }
        IpAddr::V6(address.parse::<Ipv6Addr>().ok()?)
    } else {
        match text.split_once(':') {
            // More than one colon is IPv6, which has no port without brackets.
            Some((address, port)) if !port.contains(':') => {
                check_port(port)?;
                IpAddr::V4(address.parse().ok()?)
            }
            Some(_) | None => text.parse().ok()?,
        }
    };
    Some(ip.to_canonical())
}

fn check_port(text: &str) -> Option<()> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && text.parse::<u16>().is_ok()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(proxies: &str, peer: &str, lines: &[&[u8]]) -> ClientAddress {
        let proxies: Vec<IpNet> = proxies.split_whitespace().map(|net| net.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", axum::http::HeaderValue::from_bytes(line).unwrap());
        }
        client(&proxies, Peer::Tcp(peer.parse().unwrap()), &headers)
    }

    // F-A10, F-E11
    #[test]
    fn a_hop_is_read_in_every_form_that_proxies_write() {
        for (hop, address) in [
            ("8.8.8.8", Some("8.8.8.8")),
            (" 8.8.8.8\t", Some("8.8.8.8")),
            ("8.8.8.8:4711", Some("8.8.8.8")),
            ("\"8.8.8.8:4711\"", Some("8.8.8.8")),
            ("\"8.8.8.8\"", Some("8.8.8.8")),
            ("::ffff:8.8.8.8", Some("8.8.8.8")),
            ("[::ffff:8.8.8.8]:1", Some("8.8.8.8")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("\"[2001:db8::1]:443\"", Some("2001:db8::1")),
            ("8.8.8.8:", None),
            ("8.8.8.8:x", None),
            ("8.8.8.8:+1", None),
            ("8.8.8.8:65536", None),
            ("8.8.8.8:1:2", None),
            ("8.8.8", None),
            ("08.8.8.8", None),
            ("[8.8.8.8]:1", None),
            ("[2001:db8::1", None),
            ("[2001:db8::1]443", None),
            ("[2001:db8::1]:", None),
            ("2001:db8::1]", None),
            ("fe80::1%eth0", None),
            ("\"8.8.8.8", None),
            ("8.8.8.8 8.8.4.4", None),
            ("for=8.8.8.8", None),
            ("unknown", None),
            ("_hidden", None),
            ("localhost", None),
            ("", None),
        ] {
            assert_eq!(parse_hop(hop.as_bytes()), address.map(|text| text.parse().unwrap()), "{hop:?}");
        }
        assert_eq!(parse_hop(b"8.8.8.8\xff"), None);
    }

    // F-A10
    #[test]
    fn the_rightmost_stranger_is_the_client_and_what_can_not_be_read_is_unknown() {
        let at = |text: &str| ClientAddress::At(text.parse().unwrap());
        let proxies = "10.0.0.0/8 ::1/128";
        for (peer, lines, client) in [
            ("198.51.100.1:1", &[&b"192.0.2.9"[..]][..], at("198.51.100.1")),
            ("198.51.100.1:1", &[b"nonsense"], at("198.51.100.1")),
            ("10.0.0.1:1", &[], at("10.0.0.1")),
            ("10.0.0.1:1", &[b"192.0.2.9"], at("192.0.2.9")),
            ("[::ffff:10.0.0.1]:1", &[b"192.0.2.9"], at("192.0.2.9")),
            ("10.0.0.1:1", &[b"1.2.3.4, 192.0.2.9:80, 10.9.9.9"], at("192.0.2.9")),
            ("10.0.0.1:1", &[b"1.2.3.4", b"192.0.2.9", b"10.9.9.9, 10.8.8.8:1"], at("192.0.2.9")),
            ("[::1]:1", &[b"192.0.2.9, [2001:db8::1]:443"], at("2001:db8::1")),
            // Only proxies: the first of them asks for itself.
            ("10.0.0.1:1", &[b"10.7.7.7, 10.9.9.9"], at("10.7.7.7")),
            // What stands left of the client does not matter.
            ("10.0.0.1:1", &[b"\xff, nonsense, 192.0.2.9"], at("192.0.2.9")),
            ("10.0.0.1:1", &[b"192.0.2.9, nonsense"], ClientAddress::Unknown),
            ("10.0.0.1:1", &[b"192.0.2.9, nonsense, 10.9.9.9"], ClientAddress::Unknown),
            ("10.0.0.1:1", &[b"192.0.2.9, \xff"], ClientAddress::Unknown),
            ("10.0.0.1:1", &[b"192.0.2.9\xff"], ClientAddress::Unknown),
            ("10.0.0.1:1", &[b"192.0.2.9", b""], ClientAddress::Unknown),
            ("10.0.0.1:1", &[b"192.0.2.9,"], ClientAddress::Unknown),
            ("10.0.0.1:1", &[b"unknown"], ClientAddress::Unknown),
        ] {
            assert_eq!(said(proxies, peer, lines), client, "{peer} {lines:?}");
        }
        assert_eq!(super::client(&[], Peer::Unix(Some(5)), &HeaderMap::new()), ClientAddress::Unix(Some(5)));
    }

    #[test]
    fn a_proxy_that_speaks_of_its_client_in_another_header_is_not_the_client() {
        let mut headers = HeaderMap::new();
        headers.insert(header::FORWARDED, "for=192.0.2.9".parse().unwrap());
        let client = |peer: &str| client(&["10.0.0.0/8".parse().unwrap()], Peer::Tcp(peer.parse().unwrap()), &headers);
        assert_eq!(client("10.0.0.1:1"), ClientAddress::Unknown);
        assert_eq!(client("192.0.2.1:1"), ClientAddress::At("192.0.2.1".parse().unwrap()));
    }
}
