//! `turn.alternates` and when clients are sent there.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::address::Transport;
use crate::config::check::Check;
use crate::config::document::Node;
use crate::config::external::is_host_name;
use crate::config::network::Listen;
use crate::protocol::pool::{LOAD_MAX, MEMBERS_MAX, Member, Pool, Redirect, WEIGHT_MAX};

impl Pool {
    /// In words, for `check-config`; nothing without members.
    pub(crate) fn describe(&self) -> Option<String> {
        if self.members.is_empty() {
            return None;
        }
        let when = match self.redirect {
            Redirect::Draining => "while this server drains".to_owned(),
            Redirect::Full { above } => format!("while this server drains, or is more than {} % full", above / 10),
            Redirect::Always => "always, as long as one of them takes clients".to_owned(),
        };
        let members = self.members.iter().map(|member| {
            let tls = member.tls.map(|tls| format!("{tls} (TLS)"));
            let addresses: Vec<String> = member.plain.map(|plain| plain.to_string()).into_iter().chain(tls).collect();
            format!("{} (weight {})", addresses.join(" and "), member.weight)
        });
        Some(format!("new clients are sent to {}, {when}", members.collect::<Vec<_>>().join(", ")))
    }

    /// The same for machines, without what its rows say.
    pub(crate) fn describe_json(&self) -> Value {
        let members = self.members.iter().map(|member| {
            json!({ "address": member.plain, "tls": member.tls, "name": member.name, "weight": member.weight })
        });
        Value::Array(members.collect())
    }
}

impl Check {
    pub(crate) fn pool(&mut self, listen: &[(Listen, Node)]) -> Pool {
        let mut members: Vec<Member> = Vec::new();
        for node in self.list("turn.alternates") {
            if members.len() == MEMBERS_MAX {
                self.wrong(&node, format!("is one too many: a pool has at most {MEMBERS_MAX} servers"));
                break;
            }
            if let Some(member) = self.member(&node, listen, &members) {
                members.push(member);
            }
        }
        let above = (self.number::<u16>("turn.redirect_percent") * 10).min(LOAD_MAX);
        let redirect = match self.word_of("turn.redirect") {
            "full" => Redirect::Full { above },
            "always" => Redirect::Always,
            _ => Redirect::Draining,
        };
        if redirect != Redirect::Draining && members.is_empty() && !self.has_problem_with("turn.alternates") {
            let node = self.get("turn.redirect");
            self.wrong(&node, "has no effect without turn.alternates");
        }
        Pool { members, redirect }
    }

    fn member(&mut self, node: &Node, listen: &[(Listen, Node)], others: &[Member]) -> Option<Member> {
        let of = self.table(node, "turn.alternates")?;
        let mut member = Member { plain: None, tls: None, name: None, weight: 1 };
        for (name, is_tls) in [("address", false), ("tls", true)] {
            let Some((field, text)) = of.text(name) else { continue };
            let address = self.alternate(field, text, is_tls, listen)?;
            if others.iter().any(|other| other.plain == Some(address) || other.tls == Some(address)) {
                self.wrong(field, "is listed twice; give the server a larger weight");
                return None;
            }
            let place = if is_tls { &mut member.tls } else { &mut member.plain };
            *place = Some(address);
        }
        if member.plain.is_none() && member.tls.is_none() {
            return self
                .lacks(&of, "has no address; write address = \"198.51.100.2:3478\", or tls = \"198.51.100.2:5349\"");
        }
        if let Some((field, name)) = of.text("name") {
            if !is_host_name(name) {
                self.wrong(field, "expected the name in that server's certificate, such as \"turn2.example.org\"");
            } else if member.tls.is_none() {
                self.wrong(field, "has no effect without tls");
            }
            member.name = Some(name.into());
        }
        if of.get("weight").is_some() {
            let weight = of.number("weight").and_then(|weight| u32::try_from(weight).ok());
            member.weight = weight.unwrap_or(1).clamp(1, WEIGHT_MAX);
        }
        Some(member)
    }

    /// Another server's address.
    fn alternate(&mut self, node: &Node, text: &str, is_tls: bool, listen: &[(Listen, Node)]) -> Option<SocketAddr> {
        let Ok(address) = text.parse::<SocketAddr>() else {
            let message = "expected ADDRESS:PORT of another server, such as \"198.51.100.2:3478\"; clients are told an \
                 address, so it can't be a name";
            self.wrong(node, message);
            return None;
        };
        let ip = address.ip();
        let is_own = |listen: &Listen| listen.address == address && (listen.transport == Transport::Tls) == is_tls;
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            self.wrong(node, "is not an address clients can reach");
        } else if listen.iter().any(|(listen, _)| is_own(listen)) {
            self.wrong(node, "is a listener of this server; name another server");
        } else {
            return Some(address);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn pool(lines: &str) -> Result<super::Pool, String> {
        Config::with_a_secret(lines).map(|config| config.pool).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pool_has_servers_with_weights_and_says_when_it_takes_clients() {
        let two = "turn.alternates = [{ address = \"198.51.100.2:3478\", tls = \"198.51.100.2:5349\", name = \
            \"turn2.example.org\", weight = 3 }, { address = \"[2001:db8::2]:3478\" }]";
        let found = pool(&format!("{two}\nturn.redirect = \"full\"\nturn.redirect_percent = 80")).unwrap();
        assert_eq!(found.redirect, super::Redirect::Full { above: 800 });
        assert_eq!((found.members[0].weight, found.members[1].weight), (3, 1));
        let told = found.describe().unwrap();
        assert!(told.contains("198.51.100.2:3478 and 198.51.100.2:5349 (TLS) (weight 3)"), "{told}");
        assert!(told.contains("more than 80 % full"), "{told}");
        assert_eq!(pool("").unwrap(), super::Pool::default());
    }

    #[test]
    fn each_mistake_in_a_pool_is_told() {
        for (lines, says) in [
            ("turn.redirect = \"always\"", "no effect without turn.alternates"),
            ("turn.alternates = [{ address = \"turn2.example.org:3478\" }]", "can't be a name"),
            ("turn.alternates = [{ address = \"0.0.0.0:3478\" }]", "not an address clients can reach"),
            ("turn.alternates = [{ weight = 2 }]", "has no address"),
            ("turn.alternates = [{ address = \"192.0.2.1:1\", weight = 0 }]", "1 to 1000"),
            ("turn.alternates = [{ address = \"192.0.2.1:1\", name = \"a\" }]", "no effect without tls"),
            ("turn.alternates = [{ tls = \"192.0.2.1:1\", name = \"a b\" }]", "certificate"),
            ("turn.alternates = [{ address = \"192.0.2.1:1\" }, { address = \"192.0.2.1:1\" }]", "listed twice"),
            ("turn.alternates = [{ address = \"192.0.2.1:1\", wieght = 2 }]", "`weight`"),
            ("listen.udp = [\"192.0.2.1:1\"]\nturn.alternates = [{ address = \"192.0.2.1:1\" }]", "a listener of this"),
        ] {
            let error = pool(lines).unwrap_err();
            assert!(error.contains(says), "{lines}: {error}");
        }
        let many: Vec<String> = (1..=17).map(|at| format!("{{ address = \"192.0.2.{at}:1\" }}")).collect();
        assert!(pool(&format!("turn.alternates = [{}]", many.join(", "))).unwrap_err().contains("at most 16"));
    }
}
