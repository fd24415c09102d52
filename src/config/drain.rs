//! `[drain]`: how a server ends without ending calls.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::check::Check;
use crate::config::document::Node;
use crate::config::external::is_host_name;
use crate::config::network::Listen;
use crate::config::units::DURATION;
use crate::protocol::alternates::{Alternates, Siblings};

/// `[drain]`; a reload changes all of it, also while the server drains.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DrainConfig {
    /// Whether SIGTERM drains.
    pub on_term: bool,
    /// How long calls may go on; `None` waits for the last one.
    pub deadline: Option<Duration>,
    /// Where clients are sent.
    pub alternates: Alternates,
}

fn addresses(siblings: &Siblings) -> impl Iterator<Item = String> {
    siblings.ipv4.map(|address| address.to_string()).into_iter().chain(siblings.ipv6.map(|address| address.to_string()))
}

impl DrainConfig {
    /// In words, for `check-config`.
    pub(crate) fn describe(&self) -> String {
        let when = if self.on_term { "by SIGTERM and on request" } else { "on request" };
        let deadline = self.deadline.map_or_else(
            || "calls may last".to_owned(),
            |deadline| format!("calls may go on for {}", DURATION.show(deadline.as_secs())),
        );
        let mut text = format!("{when}; {deadline}");
        let plain = addresses(&self.alternates.plain);
        let tls = addresses(&self.alternates.tls).map(|address| format!("{address} (TLS)"));
        let alternates: Vec<String> = plain.chain(tls).collect();
        if !alternates.is_empty() {
            text += &format!("; new clients are sent to {}", alternates.join(", "));
        }
        text
    }

    /// The same for machines, without what its rows say.
    pub(crate) fn describe_json(&self) -> serde_json::Value {
        serde_json::json!({
            "alternate": addresses(&self.alternates.plain).collect::<Vec<_>>(),
            "alternate_tls": addresses(&self.alternates.tls).collect::<Vec<_>>(),
            "alternate_domain": self.alternates.domain.as_deref(),
        })
    }
}

impl Check {
    pub(crate) fn drain(&mut self, listen: &[(Listen, Node)]) -> DrainConfig {
        let plain = self.siblings("drain.alternate", listen);
        let tls = self.siblings("drain.alternate_tls", listen);
        let domain = self.alternate_domain(&tls);
        DrainConfig {
            on_term: self.flag_of("drain.on_term"),
            deadline: self.limit("drain.deadline").map(Duration::from_secs),
            alternates: Alternates { plain, tls, domain },
        }
    }

    fn siblings(&mut self, path: &str, listen: &[(Listen, Node)]) -> Siblings {
        let mut siblings = Siblings::default();
        for node in self.list(path) {
            let Some(text) = self.text(&node) else { continue };
            let Ok(address) = text.parse::<SocketAddr>() else {
                let message = "expected ADDRESS:PORT of another server, such as \"203.0.113.8:3478\"; clients are told \
                     an address, so it can't be a name";
                self.wrong(&node, message);
                continue;
            };
            let ip = address.ip();
            if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
                self.wrong(&node, "is not an address clients can reach");
            } else if listen.iter().any(|(listen, _)| listen.address == address) {
                self.wrong(&node, "is a listener of this server; name another server");
            } else if let Some(there) = siblings.add(address) {
                self.wrong(&node, format!("{there} is listed already; list one address per family"));
            }
        }
        siblings
    }

    // [8489-14.16-1]
    fn alternate_domain(&mut self, tls: &Siblings) -> Option<Box<str>> {
        let (name, node) = self.text_of("drain.alternate_domain")?;
        if !is_host_name(&name) {
            self.wrong(&node, "expected the name in the other server's certificate, such as \"turn2.example.org\"");
        } else if *tls == Siblings::default() && !self.has_problem_with("drain.alternate_tls") {
            self.wrong(&node, "has no effect without drain.alternate_tls");
        }
        Some(name.into())
    }
}
