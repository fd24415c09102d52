//! `stun:`, `stuns:`, `turn:` and `turns:` URIs (RFC 7064, RFC 7065), as clients are given them and as `check` reads them.

use std::fmt;
use std::net::Ipv6Addr;

use crate::address::Transport;

/// What is asked of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Scheme {
    /// `stun:` and `stuns:`: Binding only.
    Stun,
    /// `turn:` and `turns:`.
    Turn,
}

/// A server as clients are told of it.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct TurnUri {
    /// What is asked of it.
    pub scheme: Scheme,
    /// Name or address, without brackets.
    pub host: Box<str>,
    /// 3478, or 5349 for the TLS schemes, unless it says otherwise.
    pub port: u16,
    /// From scheme and `?transport=`.
    pub transport: Transport,
}

impl TurnUri {
    /// `turn` or `turns`, `stun` or `stuns`.
    #[must_use]
    pub const fn scheme_name(&self) -> &'static str {
        match (self.scheme, self.transport) {
            (Scheme::Stun, Transport::Udp | Transport::Tcp) => "stun",
            (Scheme::Stun, Transport::Tls) => "stuns",
            (Scheme::Turn, Transport::Udp | Transport::Tcp) => "turn",
            // [8656-4.1-1]
            (Scheme::Turn, Transport::Tls) => "turns",
        }
    }

    /// The same server for STUN, over UDP only: `stun:` takes no transport.
    #[must_use]
    pub fn as_stun(&self) -> Option<Self> {
        (self.transport == Transport::Udp).then(|| Self { scheme: Scheme::Stun, ..self.clone() })
    }
}

/// The port stands in it always, and so does the transport of `turn:`.
impl fmt::Display for TurnUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        let brackets = if host.contains(':') { ["[", "]"] } else { [""; 2] };
        write!(f, "{}:{}{host}{}:{port}", self.scheme_name(), brackets[0], brackets[1])?;
        match (self.scheme, self.transport) {
            (Scheme::Turn, Transport::Udp) => f.write_str("?transport=udp"),
            (Scheme::Turn, Transport::Tcp | Transport::Tls) => f.write_str("?transport=tcp"),
            (Scheme::Stun, Transport::Udp | Transport::Tcp | Transport::Tls) => Ok(()),
        }
    }
}

/// Takes a URI apart.
///
/// # Errors
/// What is wrong with it, in words for its author.
pub fn parse(text: &str) -> Result<TurnUri, String> {
    let wrong = |why: &str| format!("{text}: {why}; a server looks like turn:turn.example.org:3478?transport=udp");
    let (scheme, rest) = text.split_once(':').ok_or_else(|| wrong("no scheme"))?;
    let (kind, is_secure) = match scheme.to_ascii_lowercase().as_str() {
        "turn" => (Scheme::Turn, false),
        "turns" => (Scheme::Turn, true),
        "stun" => (Scheme::Stun, false),
        "stuns" => (Scheme::Stun, true),
        _ => return Err(wrong("the scheme must be turn, turns, stun or stuns")),
    };
    if rest.starts_with("//") {
        return Err(wrong("such a URI has no //"));
    }
    if rest.contains('@') {
        return Err(wrong("leave credentials out of the URI; give them with --username and --password"));
    }
    let (authority, query) = rest.split_once('?').map_or((rest, None), |(authority, query)| (authority, Some(query)));
    let transport = match (query, is_secure) {
        (None, false) => Transport::Udp,
        (None, true) => Transport::Tls,
        (Some(query), _) => match (query.to_ascii_lowercase().as_str(), is_secure) {
            ("transport=udp", false) => Transport::Udp,
            ("transport=tcp", false) => Transport::Tcp,
            ("transport=tcp", true) => Transport::Tls,
            ("transport=udp", true) => return Err(wrong("this version does not support DTLS")),
            _ => return Err(wrong("only transport=udp or transport=tcp can follow the ?")),
        },
    };
    let (host, port) = split_port(authority).ok_or_else(|| wrong("the host or the port is not valid"))?;
    let port = port.unwrap_or(if is_secure { 5349 } else { 3478 });
    Ok(TurnUri { scheme: kind, host: host.into(), port, transport })
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(number(port)?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    let is_name = |host: &str| {
        !host.is_empty() && host.len() < 254 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(number(port)?)),
        None => (authority, None),
    };
    is_name(host).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_and_query_give_transport_and_port() {
        let rows = [
            ("turn:t.example", "turn:t.example:3478?transport=udp"),
            ("turn:t.example:80?transport=tcp", "turn:t.example:80?transport=tcp"),
            ("TURNS:t.example?transport=tcp", "turns:t.example:5349?transport=tcp"),
            ("turns:192.0.2.7:443", "turns:192.0.2.7:443?transport=tcp"),
            ("turn:[2001:db8::7]:3479?transport=udp", "turn:[2001:db8::7]:3479?transport=udp"),
            ("stun:[2001:db8::7]", "stun:[2001:db8::7]:3478"),
            ("stuns:t.example", "stuns:t.example:5349"),
        ];
        for (text, shown) in rows {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
        assert_eq!(parse("stun:t.example").unwrap().scheme, Scheme::Stun);
    }

    #[test]
    fn stun_is_udp_without_a_transport() {
        let of = |text| parse(text).unwrap().as_stun().map(|uri| uri.to_string());
        assert_eq!(of("turn:[2001:db8::7]").unwrap(), "stun:[2001:db8::7]:3478");
        assert_eq!((of("turn:t.example?transport=tcp"), of("turns:t.example")), (None, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("t.example", "no scheme"),
            ("turn://t.example", "no //"),
            ("sip:t.example", "scheme"),
            ("turn:alice@t.example", "--username"),
            ("turn:t.example:0", "port"),
            ("turn:t.example:99999", "port"),
            ("turn:2001:db8::7", "port"),
            ("turn:[2001:db8::7", "host"),
            ("turn:?transport=udp", "host"),
            ("turn:t.example?transport=sctp", "transport=udp"),
            ("turns:t.example?transport=udp", "DTLS"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why) && error.contains(text), "{text}: {error}");
        }
    }
}
