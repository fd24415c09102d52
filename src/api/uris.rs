//! The URIs that clients are given (RFC 7064, RFC 7065): made from listeners, so that none can be wrong.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::protocol::address::Transport;

/// Browsers are slow to gather, and warn, with five servers or more.
const URIS_MAX: usize = 4;

/// One way to reach a listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uri {
    /// A host name, or an address without brackets.
    pub host: Box<str>,
    /// Its port.
    pub port: u16,
    /// What carries the messages.
    pub transport: Transport,
}

impl Uri {
    /// `turn:` or `turns:` with its transport, which is never left out.
    #[must_use]
    pub fn turn(&self) -> String {
        match self.transport {
            Transport::Udp => format!("turn:{self}?transport=udp"),
            Transport::Tcp => format!("turn:{self}?transport=tcp"),
            Transport::Tls => format!("turns:{self}?transport=tcp"),
        }
    }

    /// `stun:`, for UDP only; it takes no transport.
    #[must_use]
    pub fn stun(&self) -> Option<String> {
        match self.transport {
            Transport::Udp => Some(format!("stun:{self}")),
            Transport::Tcp | Transport::Tls => None,
        }
    }
}

/// Host and port; IPv6 in brackets.
impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.parse::<Ipv6Addr>().is_ok() {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What clients must be told instead of an address.
#[derive(Clone, Copy, Default, Debug)]
pub struct Names<'a> {
    /// `http.public_name`.
    pub public: Option<&'a str>,
    /// A name in the certificate: a client checks it against what it was told, and hardly one holds an address.
    pub certificate: Option<&'a str>,
}

/// The names of a configuration.
#[must_use]
pub fn names(config: &Config) -> Names<'_> {
    Names { public: config.http.issuing.public_name.as_deref(), certificate: config.tls.name.as_deref() }
}

/// Each listener once: UDP first, TLS last, within a transport IPv4 first, else in the order given.
///
/// With a public name every listener goes by it. Otherwise `told` says what clients are told for a local address,
/// or for the unspecified one of a family; a loopback listener is left out if there are others.
pub fn of_listeners(
    listeners: impl IntoIterator<Item = (Transport, SocketAddr)>,
    names: &Names<'_>,
    told: impl Fn(IpAddr) -> Option<IpAddr>,
) -> Vec<Uri> {
    let mut listeners: Vec<_> = listeners.into_iter().filter(|(_, address)| address.port() != 0).collect();
    if listeners.iter().any(|(_, address)| !address.ip().is_loopback()) {
        listeners.retain(|(_, address)| !address.ip().is_loopback());
    }
    listeners.sort_by_key(|(transport, address)| (*transport, address.is_ipv6()));
    let mut uris: Vec<Uri> = Vec::new();
    for (transport, address) in listeners {
        let name = match transport {
            Transport::Udp | Transport::Tcp => names.public,
            Transport::Tls => names.certificate.or(names.public),
        };
        let host = name.map(Box::from).or_else(|| told(address.ip()).map(|ip| ip.to_string().into()));
        let Some(host) = host else { continue };
        let uri = Uri { host, port: address.port(), transport };
        if !uris.contains(&uri) {
            uris.push(uri);
        }
    }
    uris
}

/// At most four of them: the first of each transport, and then whichever come first.
#[must_use]
pub fn few(uris: Vec<Uri>) -> Vec<Uri> {
    let is_first = |at: usize| !uris[..at].iter().any(|other| other.transport == uris[at].transport);
    let (mut kept, others): (Vec<usize>, Vec<usize>) = (0..uris.len()).partition(|at| is_first(*at));
    kept.truncate(URIS_MAX);
    let room = URIS_MAX - kept.len();
    kept.extend(others.into_iter().take(room));
    uris.iter().enumerate().filter(|(at, _)| kept.contains(at)).map(|(_, uri)| uri.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(listeners: &[(Transport, &str)], name: Option<&str>) -> Vec<String> {
        let listeners = listeners.iter().map(|(transport, address)| (*transport, address.parse().unwrap()));
        let told = |ip: IpAddr| match ip {
            IpAddr::V4(v4) if v4.is_unspecified() => Some("203.0.113.7".parse().unwrap()),
            IpAddr::V6(v6) if v6.is_unspecified() => None,
            IpAddr::V4(_) | IpAddr::V6(_) => Some(ip),
        };
        of_listeners(listeners, &Names { public: name, certificate: Some("turn.example.net") }, told)
            .iter()
            .map(Uri::turn)
            .collect()
    }

    #[test]
    fn udp_comes_first_and_ipv6_stands_in_brackets() {
        use Transport::{Tcp, Udp};
        assert_eq!(
            texts(&[(Tcp, "0.0.0.0:443"), (Udp, "[2001:db8::7]:3478"), (Udp, "0.0.0.0:3478"), (Udp, "[::]:1")], None),
            [
                "turn:203.0.113.7:3478?transport=udp",
                "turn:[2001:db8::7]:3478?transport=udp",
                "turn:203.0.113.7:443?transport=tcp"
            ]
        );
    }

    #[test]
    fn a_public_name_stands_for_every_listener_once() {
        use Transport::{Tcp, Udp};
        let both = [(Udp, "0.0.0.0:3478"), (Udp, "[::]:3478"), (Tcp, "0.0.0.0:3478"), (Tcp, "[::]:3478")];
        assert_eq!(
            texts(&both, Some("turn.example.org")),
            ["turn:turn.example.org:3478?transport=udp", "turn:turn.example.org:3478?transport=tcp"]
        );
        assert_eq!(texts(&both[..1], Some("2001:db8::9")), ["turn:[2001:db8::9]:3478?transport=udp"]);
    }

    #[test]
    fn tls_comes_last_and_goes_by_a_name_of_the_certificate() {
        use Transport::{Tcp, Tls};
        assert_eq!(
            texts(&[(Tls, "0.0.0.0:443"), (Tcp, "0.0.0.0:443")], Some("turn.example.org")),
            ["turn:turn.example.org:443?transport=tcp", "turns:turn.example.net:443?transport=tcp"]
        );
    }

    #[test]
    fn loopback_is_given_only_where_there_is_nothing_else() {
        let udp = Transport::Udp;
        assert_eq!(texts(&[(udp, "127.0.0.1:1"), (udp, "192.0.2.1:2")], None), ["turn:192.0.2.1:2?transport=udp"]);
        assert_eq!(texts(&[(udp, "127.0.0.1:1")], None), ["turn:127.0.0.1:1?transport=udp"]);
        assert_eq!(texts(&[(udp, "127.0.0.1:0")], None), [""; 0]);
    }

    #[test]
    fn of_many_the_first_of_each_transport_stays() {
        let uri = |port, transport| Uri { host: "h".into(), port, transport };
        let mut many: Vec<Uri> = (1..=5).map(|port| uri(port, Transport::Udp)).collect();
        many.push(uri(9, Transport::Tcp));
        let ports: Vec<u16> = few(many).iter().map(|uri| uri.port).collect();
        assert_eq!(ports, [1, 2, 3, 9]);
    }

    #[test]
    fn stun_is_udp_without_a_transport() {
        let uri = |transport| Uri { host: "2001:db8::7".into(), port: 3478, transport };
        assert_eq!(uri(Transport::Udp).stun().unwrap(), "stun:[2001:db8::7]:3478");
        assert_eq!(uri(Transport::Tcp).stun(), None);
    }
}
