//! `stun:`, `stuns:`, `turn:` and `turns:` URIs (RFC 7064, RFC 7065).

use std::fmt;
use std::net::Ipv6Addr;

/// How bytes reach the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Transport {
    /// UDP
    Udp,
    /// TCP
    Tcp,
    /// TLS over TCP
    Tls,
}

impl Transport {
    /// The word in the report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// A server as clients are told of it.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Uri {
    /// A TURN server; else only Binding is asked for.
    pub is_turn: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// 3478, or 5349 for the TLS schemes, unless it says otherwise.
    pub port: u16,
    /// From scheme and `?transport=`.
    pub transport: Transport,
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.transport == Transport::Tls { "s" } else { "" };
        let scheme = if self.is_turn { "turn" } else { "stun" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "{scheme}{secure}:{host}:{}", self.port)?;
        match self.transport {
            Transport::Udp if self.is_turn => f.write_str("?transport=udp"),
            Transport::Tcp | Transport::Tls if self.is_turn => f.write_str("?transport=tcp"),
            Transport::Udp | Transport::Tcp | Transport::Tls => Ok(()),
        }
    }
}

/// Takes a URI apart.
///
/// # Errors
/// What is wrong with it, in words for its author.
pub fn parse(text: &str) -> Result<Uri, String> {
    let wrong = |why: &str| format!("{text}: {why}; a server looks like turn:turn.example.org:3478?transport=udp");
    let (scheme, rest) = text.split_once(':').ok_or_else(|| wrong("no scheme"))?;
    let (is_turn, is_secure) = match scheme.to_ascii_lowercase().as_str() {
        "turn" => (true, false),
        "turns" => (true, true),
        "stun" => (false, false),
        "stuns" => (false, true),
        _ => return Err(wrong("the scheme is none of turn, turns, stun, stuns")),
    };
    if rest.starts_with("//") {
        return Err(wrong("there is no // in such a URI"));
    }
    if rest.contains('@') {
        return Err(wrong("credentials don't belong into the URI, give them with --username and --password"));
    }
    let (authority, query) = rest.split_once('?').map_or((rest, None), |(authority, query)| (authority, Some(query)));
    let transport = match (query, is_secure) {
        (None, false) => Transport::Udp,
        (None, true) => Transport::Tls,
        (Some(query), _) => match (query.to_ascii_lowercase().as_str(), is_secure) {
            ("transport=udp", false) => Transport::Udp,
            ("transport=tcp", false) => Transport::Tcp,
            ("transport=tcp", true) => Transport::Tls,
            ("transport=udp", true) => return Err(wrong("DTLS is not spoken by this version")),
            _ => return Err(wrong("after ? only transport=udp or transport=tcp may stand")),
        },
    };
    let (host, port) = split_port(authority).ok_or_else(|| wrong("host or port is not right"))?;
    let port = port.unwrap_or(if is_secure { 5349 } else { 3478 });
    Ok(Uri { is_turn, host: host.to_owned(), port, transport })
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
pub(super) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
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
        assert!(!parse("stun:t.example").unwrap().is_turn);
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
