//! The URIs that clients are given (RFC 7064, RFC 7065): made from listeners, so that none can be wrong.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::address::Transport;
use crate::config::Config;
use crate::protocol::tenancy::Tenancy;
use crate::turn_uri::{Scheme, TurnUri};

/// Browsers are slow to gather, and warn, with five servers or more.
const URIS_MAX: usize = 4;

/// What clients must be told instead of an address.
#[derive(Clone, Copy, Default, Debug)]
pub struct UriNames<'a> {
    /// `http.public_name`.
    pub public: Option<&'a str>,
    /// A name in the certificate: a client checks it against what it was told, and hardly one holds an address.
    pub certificate: Option<&'a str>,
}

/// The names of a configuration.
#[must_use]
pub fn names(config: &Config) -> UriNames<'_> {
    UriNames { public: config.http.issuing.public_name.as_deref(), certificate: config.tls.name.as_deref() }
}

/// The URIs of a server, each with the realm and the tenant of its listener.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerUris(Vec<(TurnUri, Arc<Tenancy>)>);

impl From<Vec<TurnUri>> for ServerUris {
    /// Of listeners of the server's own realm and of no tenant.
    fn from(uris: Vec<TurnUri>) -> Self {
        Self(uris.into_iter().map(|uri| (uri, Arc::default())).collect())
    }
}

impl ServerUris {
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a credential of this tenant, or of none, is good: [`few`] of the tenant's own listeners; without any, of those of
    /// no tenant; with the realm of the first if it is not the server's own.
    ///
    /// A credential of no tenant is good everywhere, so it gets others' where there are no such.
    #[must_use]
    pub fn for_tenant(&self, tenant: Option<&str>) -> (Vec<TurnUri>, Option<&str>) {
        let of = |meant: &dyn Fn(Option<&str>) -> bool| -> Vec<&(TurnUri, Arc<Tenancy>)> {
            self.0.iter().filter(|(_, of)| meant(of.tenant.as_deref())).collect()
        };
        let mut found = of(&|of| of == tenant);
        if found.is_empty() {
            found = of(&|of| of.is_none() || tenant.is_none());
        }
        let realm = found.first().and_then(|(_, of)| of.realm.as_deref());
        (few(found.into_iter().map(|(uri, _)| uri.clone()).collect()), realm)
    }
}

/// Each listener once: UDP first, TLS last, within a transport IPv4 first, else in the order given.
///
/// With a public name every listener goes by it. Otherwise `told` says what clients are told for a local address,
/// or for the unspecified one of a family; a loopback listener is left out if there are others.
pub fn of_listeners(
    listeners: impl IntoIterator<Item = (Transport, SocketAddr, Arc<Tenancy>)>,
    names: &UriNames<'_>,
    told: impl Fn(IpAddr) -> Option<IpAddr>,
) -> ServerUris {
    let mut listeners: Vec<_> = listeners.into_iter().filter(|(_, address, _)| address.port() != 0).collect();
    if listeners.iter().any(|(_, address, _)| !address.ip().is_loopback()) {
        listeners.retain(|(_, address, _)| !address.ip().is_loopback());
    }
    listeners.sort_by_key(|(transport, address, _)| (*transport, address.is_ipv6()));
    let mut uris: Vec<(TurnUri, Arc<Tenancy>)> = Vec::new();
    for (transport, address, tenancy) in listeners {
        let name = match transport {
            Transport::Udp | Transport::Tcp => names.public,
            Transport::Tls => names.certificate.or(names.public),
        };
        let host = name.map(Box::from).or_else(|| told(address.ip()).map(|ip| ip.to_string().into()));
        let Some(host) = host else { continue };
        let uri = (TurnUri { scheme: Scheme::Turn, host, port: address.port(), transport }, tenancy);
        if !uris.contains(&uri) {
            uris.push(uri);
        }
    }
    ServerUris(uris)
}

/// At most four of them: the first of each transport, and then whichever come first.
#[must_use]
pub fn few(uris: Vec<TurnUri>) -> Vec<TurnUri> {
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
        let listeners =
            listeners.iter().map(|(transport, address)| (*transport, address.parse().unwrap(), Arc::default()));
        let told = |ip: IpAddr| match ip {
            IpAddr::V4(v4) if v4.is_unspecified() => Some("203.0.113.7".parse().unwrap()),
            IpAddr::V6(v6) if v6.is_unspecified() => None,
            IpAddr::V4(_) | IpAddr::V6(_) => Some(ip),
        };
        of_listeners(listeners, &UriNames { public: name, certificate: Some("turn.example.net") }, told)
            .0
            .iter()
            .map(|(uri, _)| uri.to_string())
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

    // [8656-4.1-1]
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
    fn a_credential_gets_the_servers_where_it_is_good() {
        let of = |port: u16, realm: &str, tenant: &str| {
            let text = |text: &str| (!text.is_empty()).then(|| text.into());
            let address = SocketAddr::from(([192, 0, 2, 1], port));
            (Transport::Udp, address, Arc::new(Tenancy { realm: text(realm), tenant: text(tenant) }))
        };
        let listeners = vec![of(1, "", ""), of(2, "a.example", "a"), of(3, "a.example", "a"), of(4, "", "b")];
        let names = UriNames::default();
        let all = |listeners: Vec<_>| of_listeners(listeners, &names, Some);
        let ports = |servers: &ServerUris, tenant| {
            let (uris, realm) = servers.for_tenant(tenant);
            (uris.iter().map(|uri| uri.port).collect::<Vec<_>>(), realm.map(ToOwned::to_owned))
        };
        let servers = all(listeners.clone());
        assert_eq!(ports(&servers, Some("a")), (vec![2, 3], Some("a.example".to_owned())));
        assert_eq!(ports(&servers, Some("b")), (vec![4], None));
        assert_eq!(ports(&servers, Some("c")), (vec![1], None));
        assert_eq!(ports(&servers, None), (vec![1], None));
        let servers = all(listeners[1..].to_vec());
        assert_eq!(ports(&servers, Some("c")), (vec![], None), "good nowhere");
        assert_eq!(ports(&servers, None), (vec![2, 3, 4], Some("a.example".to_owned())), "good everywhere");
    }

    #[test]
    fn of_many_the_first_of_each_transport_stays() {
        let uri = |port, transport| TurnUri { scheme: Scheme::Turn, host: "h".into(), port, transport };
        let mut many: Vec<TurnUri> = (1..=5).map(|port| uri(port, Transport::Udp)).collect();
        many.push(uri(9, Transport::Tcp));
        let ports: Vec<u16> = few(many).iter().map(|uri| uri.port).collect();
        assert_eq!(ports, [1, 2, 3, 9]);
    }
}
