//! `listen.shared`: ports that a web server has too, told apart by the first message of TLS.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::address::Transport;
use crate::config::check::Check;
use crate::config::document::{Node, Value};
use crate::config::http::{HttpConfig, HttpListen, taken};
use crate::config::network::{Listen, overlap};
use crate::config::tls::TlsConfig;
use crate::tls::ALPN;

/// What the web server hears in front of each connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendProxy {
    /// Nothing: it sees this server's address.
    Off,
    /// A PROXY header of version 1, a line.
    V1,
    /// One of version 2.
    V2,
}

impl SendProxy {
    /// The words of the configuration.
    pub const WORDS: [(&str, Self); 3] = [("off", Self::Off), ("v1", Self::V1), ("v2", Self::V2)];

    /// As the configuration has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::WORDS.iter().find(|(_, of)| *of == self).map_or("off", |(word, _)| word)
    }
}

/// A web server that has a port too, and which connections to it are ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedPort {
    /// Where the others are passed on to.
    pub backend: SocketAddr,
    /// Our server names, in lower case.
    pub names: Box<[Box<str>]>,
    /// What stands in front of them there.
    pub send_proxy: SendProxy,
}

impl SharedPort {
    /// Whether a client that asks for this is ours: by an application protocol of STUN (RFC 7443), by one of our names, or
    /// because it says neither.
    #[must_use]
    pub fn is_ours(&self, server_name: Option<&str>, protocols: &[Vec<u8>]) -> bool {
        let speaks_turn = protocols.iter().any(|protocol| ALPN.contains(&protocol.as_slice()));
        let by_name = server_name.map_or(protocols.is_empty(), |name| self.names.iter().any(|own| **own == *name));
        speaks_turn || by_name
    }
}

impl Check {
    /// Adds the listeners of `listen.shared`.
    pub(crate) fn listen_shared(&mut self, listen: &mut Vec<(Listen, Node)>) {
        for item in self.list("listen.shared") {
            let told = self.problems.len();
            let Some(of) = self.table(&item, "listen.shared") else { continue };
            let (Some(address), Some(backend)) = (of.text("address"), of.text("backend")) else {
                let message = "needs address, where clients connect, and backend, where the web server listens, such as \
                               { address = \"0.0.0.0:443\", backend = \"127.0.0.1:8443\", names = [\"turn.example.org\"] }";
                self.lacks::<()>(&of, message);
                continue;
            };
            let send_proxy = of.get("send_proxy").map_or(SendProxy::Off, |node| self.word(node, &SendProxy::WORDS));
            let names = self.shared_names(of.get("names"));
            let proxy_from = match of.get("proxy_from") {
                None => Some(Arc::default()),
                Some(from) => self.proxy_from(from, Transport::Tls),
            };
            let (address_node, backend_node) = (address.0, backend.0);
            let address = self.socket_address(address_node, address.1);
            let backend = self.backend(backend_node, backend.1);
            let tenancy = self.tenancy(of.get("realm").cloned(), of.get("tenant").cloned());
            let (Some(address), Some(backend), Some(names), Some(proxy_from), Some(tenancy)) =
                (address, backend, names, proxy_from, tenancy)
            else {
                continue;
            };
            if self.problems.len() > told {
                // One mistake, one line: what else it lacks is seen when that is mended.
                continue;
            }
            if let Some(by) = taken(listen, address) {
                self.wrong(
                    address_node,
                    format!("is taken by {by}; leave it out there: clients over TLS are served here too"),
                );
                continue;
            }
            if names.is_empty() {
                self.note(
                    &item,
                    "has no names, and browsers say nothing else: they reach this server only if their URI has an address \
                     in place of a name; write names = [\"turn.example.org\"]",
                );
            }
            let shared = Some(Arc::new(SharedPort { backend, names, send_proxy }));
            let found = Listen {
                transport: Transport::Tls,
                address,
                is_auto: false,
                is_default: false,
                proxy_from,
                shared,
                tenancy,
            };
            listen.push((found, item));
        }
    }

    fn shared_names(&mut self, node: Option<&Node>) -> Option<Box<[Box<str>]>> {
        let Some(Value::List(items)) = node.map(|node| &node.value) else { return Some(Box::default()) };
        let names: Vec<Option<Box<str>>> = items
            .iter()
            .map(|item| {
                let text = self.text(item)?;
                let name = if text.parse::<IpAddr>().is_ok() {
                    Err("is an address, which no client sends as a server name; leave it out: clients that name none are \
                         served here"
                        .to_owned())
                } else if is_host_name(&text) {
                    Ok(text.to_ascii_lowercase().into_boxed_str())
                } else {
                    Err("expected a whole host name, such as \"turn.example.org\"".to_owned())
                };
                self.ok(item, name)
            })
            .collect();
        names.into_iter().collect()
    }

    fn backend(&mut self, node: &Node, text: &str) -> Option<SocketAddr> {
        let backend = match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() => Err(
                "is nothing to connect to; write the address and the port of the web server, such as \"127.0.0.1:8443\"",
            ),
            Ok(address) => Ok(address),
            Err(_) => Err(
                "expected the IP address and the port of the web server, such as \"127.0.0.1:8443\" or \"[::1]:8443\"; names are not \
                 looked up",
            ),
        };
        self.ok(node, backend)
    }

    /// No connection may go round in a circle, or come to what is for this machine only.
    pub(crate) fn shared_backends_are_others(&mut self, listen: &[(Listen, Node)], http: &HttpConfig) {
        for (own, node) in listen {
            let Some(shared) = &own.shared else { continue };
            let backend = shared.backend;
            let is_backend = |address: SocketAddr| overlap(backend, address);
            if let Some(by) = taken(listen, backend) {
                self.wrong(
                    node,
                    format!("would pass on to {by} of this server; name the port of the web server in backend"),
                );
            } else if matches!(http.listen, Some(HttpListen::Tcp(address)) if is_backend(address)) {
                let message = format!(
                    "would show http.listen = \"{backend}\" to everybody, which is for this machine only; name the port of the web server in backend"
                );
                self.wrong(node, message);
            } else if shared.send_proxy != SendProxy::Off
                && http.public.iter().any(|of| of.proxy_from.is_empty() && is_backend(of.address))
            {
                let message = format!(
                    "http.public = \"{backend}\" reads no PROXY header; write send_proxy = \"off\", or give it proxy_from"
                );
                self.wrong(node, message);
            }
        }
    }

    /// Warns of names that would not work: those that clients are told and that lead to the web server, and those that no
    /// certificate is for.
    pub(crate) fn shared_names_lead_here(&mut self, listen: &[(Listen, Node)], http: &HttpConfig, tls: &TlsConfig) {
        for (own, node) in listen {
            let Some(shared) = &own.shared else { continue };
            let told = tls.name.as_deref().or(http.issuing.public_name.as_deref());
            let told = told.filter(|name| name.parse::<IpAddr>().is_err()).map(str::to_ascii_lowercase);
            if let Some(told) = told.filter(|told| !shared.names.is_empty() && !shared.is_ours(Some(told), &[])) {
                let message = format!(
                    "clients are told turns:{told}:{}, and that name leads to the web server at {}; add \"{told}\" to names",
                    own.address.port(),
                    shared.backend
                );
                self.note(node, message);
            }
            let has_certificate = |name: &str| tls.certificates.iter().any(|of| of.is_for(name));
            for name in shared.names.iter().filter(|name| !tls.certificates.is_empty() && !has_certificate(name)) {
                self.note(
                    node,
                    format!(
                        "no certificate of [tls] is for \"{name}\", so clients that ask for it refuse this server; take the name out, \
                         or add a certificate to tls.certificates"
                    ),
                );
            }
            let Some(acme) = tls.acme.as_ref().filter(|acme| acme.is_proved_on(own.address)) else { continue };
            for domain in acme.domains.iter().filter(|domain| !shared.is_ours(Some(domain), &[])) {
                let message = format!(
                    "the authority of tls.acme asks for \"{domain}\" on this port, and that name leads to the web server; add it to names"
                );
                self.note(node, message);
            }
        }
    }
}

/// Letters, digits and hyphens in labels, as a server name has them (RFC 6066 section 3).
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn turn_our_names_and_those_who_say_nothing_are_ours() {
        let port = SharedPort {
            backend: "127.0.0.1:8443".parse().unwrap(),
            names: ["turn.example.org".into()].into(),
            send_proxy: SendProxy::Off,
        };
        let protocols = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>();
        for (name, offered, is_ours) in [
            (None, &[][..], true),
            (Some("turn.example.org"), &[], true),
            (Some("turn.example.org"), &["h2", "http/1.1"], true),
            (Some("www.example.org"), &["stun.turn"], true),
            (Some("www.example.org"), &["h2", "stun.turn"], true),
            (Some("www.example.org"), &["stun.nat-discovery"], true),
            (None, &["stun.turn"], true),
            (None, &["h2"], false),
            (Some("www.example.org"), &["h2"], false),
            (Some("www.example.org"), &[], false),
            (Some("a.turn.example.org"), &[], false),
            (Some("www.example.org"), &["acme-tls/1"], false),
        ] {
            assert_eq!(port.is_ours(name, &protocols(offered)), is_ours, "{name:?} {offered:?}");
        }
    }

    #[test]
    fn host_names_are_told_from_everything_else() {
        assert!(["turn.example.org", "a", "xn--bcher-kva.example", "9.example"].into_iter().all(is_host_name));
        let bad = ["", ".", "a.", ".a", "a..b", "https://a", "a:443", "*.example.org", "a b", "b\u{fc}cher.example"];
        assert!(!bad.into_iter().any(is_host_name));
        assert!(!is_host_name(&"a".repeat(64)));
    }

    const CERTIFICATE: &str =
        "tls.acme = { domains = [\"turn.example.org\"], state = \"s\", challenge = \"http-01\" }\n";

    fn said(fields: &str, more: &str) -> String {
        let text = format!(
            "{CERTIFICATE}{more}\n[[listen.shared]]\naddress = \"0.0.0.0:443\"\n{fields}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n"
        );
        match Config::from_toml("c.toml", &text) {
            Ok(config) => config.warnings.iter().map(|note| format!("warning: {note}\n")).collect(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn no_connection_goes_round_in_a_circle_or_to_what_is_for_this_machine() {
        let names = "names = [\"turn.example.org\"]\n";
        for (backend, more, says) in [
            ("127.0.0.1:443", "", "would pass on to listen.shared = \"0.0.0.0:443\" of this server"),
            ("127.0.0.1:3478", "", "would pass on to listen.tcp = \"0.0.0.0:3478\" of this server"),
            ("127.0.0.1:8080", "", "would show http.listen = \"127.0.0.1:8080\" to everybody"),
            (
                "127.0.0.1:8443",
                "http = { public = [\"https://127.0.0.1:8443\"], proxies = [\"127.0.0.1\"], identity_header = \"X-User\" }",
                "reads no PROXY header; write send_proxy = \"off\"",
            ),
        ] {
            let said = said(&format!("backend = \"{backend}\"\n{names}send_proxy = \"v2\""), more);
            assert!(said.starts_with("error: c.toml:") && said.contains(says), "{backend}: {said}");
            assert!(said.contains("listen.shared[0]"), "{said}");
        }
        assert_eq!(said(&format!("backend = \"127.0.0.1:8443\"\n{names}"), ""), "");
    }

    #[test]
    fn names_that_do_not_lead_here_are_a_warning() {
        let backend = "backend = \"127.0.0.1:8443\"\n";
        let says = said(backend, "");
        assert!(says.contains("has no names") && says.lines().count() == 1, "{says}");
        let says = said(&format!("{backend}names = [\"relay.example.org\"]"), "");
        assert!(
            says.contains("clients are told turns:turn.example.org:443")
                && says.contains("add \"turn.example.org\" to names"),
            "{says}"
        );
        assert!(says.contains("no certificate of [tls] is for \"relay.example.org\""), "{says}");
    }
}
