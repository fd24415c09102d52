//! The keys of `[drain]`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::check::{Check, is_zero};
use crate::config::checked::Listen;
use crate::config::document::Node;
use crate::config::drain::DrainConfig;
use crate::protocol::drain::{Alternates, Siblings};

/// A call longer than that is no call.
const DEADLINE_SECONDS_MAX: u64 = 30 * 86_400;

impl Check {
    pub(crate) fn drain(&mut self, listen: &[(Listen, Node)]) -> DrainConfig {
        let plain = self.siblings("drain.alternate", listen);
        let tls = self.siblings("drain.alternate_tls", listen);
        let domain = self.alternate_domain(&tls);
        let deadline = self.get("drain.deadline");
        let deadline = (!is_zero(&deadline))
            .then(|| Duration::from_secs(self.seconds("drain.deadline", 1..=DEADLINE_SECONDS_MAX)));
        let on_term = self.get("drain.on_term");
        DrainConfig {
            on_term: self.flag(&on_term, "drain.on_term"),
            deadline,
            alternates: Alternates { plain, tls, domain },
        }
    }

    fn siblings(&mut self, path: &'static str, listen: &[(Listen, Node)]) -> Siblings {
        let mut siblings = Siblings::default();
        for node in self.list(path) {
            let Some(text) = self.text(&node, path) else { continue };
            let Ok(address) = text.parse::<SocketAddr>() else {
                let message = "expected ADDRESS:PORT of another server, such as \"203.0.113.8:3478\"; clients are told \
                     an address, so it can't be a name";
                self.wrong(&node, path, message);
                continue;
            };
            let ip = address.ip();
            if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
                self.wrong(&node, path, "is nothing that a client can send to");
            } else if listen.iter().any(|(listen, _)| listen.address == address) {
                self.wrong(&node, path, "is a listener of this very server; name another server");
            } else if let Some(there) = siblings.add(address) {
                self.wrong(&node, path, format!("{there} is there already; one address per family"));
            }
        }
        siblings
    }

    fn alternate_domain(&mut self, tls: &Siblings) -> Option<Box<str>> {
        const PATH: &str = "drain.alternate_domain";
        let node = self.get(PATH);
        let name = self.text(&node, PATH).filter(|name| !name.is_empty())?;
        let is_label = |label: &str| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            let message = "expected the name in the other server's certificate, such as \"turn2.example.org\"";
            self.wrong(&node, PATH, message);
        } else if *tls == Siblings::default() && !self.has_problem_with("drain.alternate_tls") {
            self.wrong(&node, PATH, "is for clients over TLS, and drain.alternate_tls sends them nowhere");
        }
        Some(name.into())
    }
}
