//! An eturnal.yml becomes a configuration.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{PASSWORD_BYTES_MIN, SECRETS_MAX, nearest, weakness};
use crate::credentials::published::is_published;
use crate::import::draft::{Draft, quote, quote_all};
use crate::import::lines::Setting;
use crate::import::listeners::KEY_RIGHTS;
use crate::import::peers::{self, Peers, Rule};
use crate::import::placeholder;
use crate::import::ranges::Range;
use crate::import::verdict::{Outcome, Place};
use crate::import::yaml::{self, Node};

/// The word for what it denies if nothing is said of peers.
const RECOMMENDED: &str = "recommended";

/// What that word stands for; all of it is denied here too.
#[rustfmt::skip]
const RECOMMENDED_PREFIXES: &[&str] = &[
    "127.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
    "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
    "240.0.0.0/4", "::1/128", "64:ff9b::/96", "100::/64", "fc00::/7", "fe80::/10", "ff00::/8",
];

/// What it denies in any case.
const NEVER: &[&str] = &["0.0.0.0/8", "::/128", "2001::/32", "2002::/16"];

/// Keys that nothing corresponds to, each with the reason.
const DROPPED: &[(&str, &str)] = &[
    ("tls_dh_file", "no finite-field key exchange is used"),
    ("tls_options", "TLS 1.2 and 1.3 with fixed cipher suites"),
    ("tls_ciphers", "the cipher suites are fixed: those of TLS 1.3, and of TLS 1.2 with forward secrecy"),
    ("software_name", "SOFTWARE is never sent"),
    ("run_dir", "the unit gives the server its directories"),
    ("log_dir", "the log goes to the journal under systemd, and to standard error otherwise"),
    ("log_rotate_size", "the journal rotates"),
    ("log_rotate_count", "the journal rotates"),
];

/// Keys that are read below.
const KNOWN: &[&str] = &[
    "secret",
    "listen",
    "relay_ipv4_addr",
    "relay_ipv6_addr",
    "relay_min_port",
    "relay_max_port",
    "tls_crt_file",
    "tls_key_file",
    "max_allocations",
    "max_permissions",
    "max_bps",
    "blacklist",
    "whitelist",
    "blacklist_clients",
    "whitelist_clients",
    "blacklist_peers",
    "whitelist_peers",
    "strict_expiry",
    "credentials",
    "realm",
    "log_level",
    "modules",
];

struct Import {
    name: Arc<str>,
    draft: Draft,
}

/// Makes a configuration of a text; `name` stands for the file in verdicts.
///
/// # Errors
/// If it is no YAML with the section `eturnal`.
pub fn import(name: &str, text: &str) -> Result<Draft, String> {
    let document = yaml::parse(text)?;
    let root = document.get("eturnal").ok_or("has no section `eturnal:`, so it is no eturnal.yml")?;
    let mut import = Import { name: name.into(), draft: Draft::default() };
    import.unknown(root);
    import.realm(root);
    let udp_ports = import.listen(root);
    import.tls(root);
    let own = import.relay(root, &udp_ports);
    import.secrets(root);
    import.users(root);
    import.limits(root);
    import.peers(root, &own);
    import.log_and_modules(root);
    Ok(import.draft)
}

impl Import {
    fn setting(&self, name: &str, node: &Node) -> Setting {
        let value = node.text().map(ToOwned::to_owned);
        Setting { place: Place::Line(self.name.clone(), node.line), name: name.to_owned(), value, note: "" }
    }

    fn say(&mut self, name: &str, node: &Node, outcome: Outcome, message: impl Into<String>) {
        let setting = self.setting(name, node);
        self.draft.say(&setting, outcome, message);
    }

    fn key(&mut self, path: &str, value: String, node: &Node) {
        let place = Place::Line(self.name.clone(), node.line);
        self.draft.key(path, value, &[place]);
    }

    /// Whether a value holds a placeholder, with its question.
    fn asks(&mut self, name: &str, node: &Node, section: &str, example: &str) -> bool {
        let Some(found) = node.text().and_then(placeholder::find).map(ToOwned::to_owned) else { return false };
        let place = Place::Line(self.name.clone(), node.line);
        self.draft.question(section, &place, &format!("{name} holds {found}: what is it?"), example);
        self.say(name, node, Outcome::NeedsYou, format!("{found} is not filled in"));
        true
    }

    fn unknown(&mut self, root: &Node) {
        for (name, node) in root.entries() {
            if let Some((_, reason)) = DROPPED.iter().find(|(known, _)| known == name) {
                self.say(name, node, Outcome::Dropped, *reason);
            } else if !KNOWN.contains(&name.as_str()) {
                let meant = nearest(name, KNOWN.iter().copied())
                    .map_or_else(String::new, |name| format!("; did you mean {name}?"));
                self.say(name, node, Outcome::NeedsYou, format!("is no key of eturnal that is known here{meant}"));
            }
        }
    }

    fn realm(&mut self, root: &Node) {
        let Some(node) = root.get("realm") else { return };
        if !self.asks("realm", node, "", "realm = \"turn.example.org\"") {
            self.key("realm", quote(node.text().unwrap_or_default()), node);
            self.say("realm", node, Outcome::Carried, "realm");
        }
    }

    /// Returns the ports of UDP listeners.
    fn listen(&mut self, root: &Node) -> Vec<u16> {
        let Some(list) = root.get("listen") else { return vec![3478] };
        let mut lists: [(&str, Vec<SocketAddr>); 4] = ["udp", "tcp", "tls", "auto"].map(|name| (name, Vec::new()));
        for entry in list.items() {
            let Some((transport, addresses)) = self.listener(entry) else { continue };
            if let Some((_, list)) = lists.iter_mut().find(|(name, _)| *name == transport) {
                list.extend(addresses.into_iter().filter(|address| !list.contains(address)).collect::<Vec<_>>());
            }
        }
        let place = [Place::Line(self.name.clone(), list.line)];
        let default = ["0.0.0.0:3478", "[::]:3478"].map(|text| text.parse::<SocketAddr>().expect("an address"));
        for (name, list) in &lists {
            let is_default = if ["udp", "tcp"].contains(name) { list.as_slice() == default } else { list.is_empty() };
            if !is_default {
                self.draft.key(&format!("listen.{name}"), quote_all(list), &place);
            }
        }
        lists[0].1.iter().map(SocketAddr::port).collect()
    }

    /// One listener: its transport and its addresses, as `::` stands for both families there.
    fn listener(&mut self, entry: &Node) -> Option<(String, Vec<SocketAddr>)> {
        let text = |name: &str| entry.get(name).and_then(Node::text).map(ToOwned::to_owned);
        let transport = text("transport").unwrap_or_else(|| "udp".to_owned());
        let default = if transport == "tls" { "5349" } else { "3478" };
        let port = text("port").unwrap_or_else(|| default.to_owned());
        let ip = text("ip").unwrap_or_else(|| "::".to_owned());
        let (Ok(ip), Ok(port), true) =
            (ip.parse::<IpAddr>(), port.parse::<u16>(), ["udp", "tcp", "tls", "auto"].contains(&transport.as_str()))
        else {
            self.say(
                "listen",
                entry,
                Outcome::NeedsYou,
                "an entry needs an IP address, a port, and udp, tcp, tls or auto; write it into [listen]",
            );
            return None;
        };
        let ips = if ip == IpAddr::from([0_u16; 8]) { vec![IpAddr::from([0_u8; 4]), ip] } else { vec![ip] };
        let addresses = ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        let is = |name: &str, word: &str| entry.get(name).and_then(Node::text) == Some(word);
        if is("proxy_protocol", "true") {
            let message = "here it belongs to a listener and names the proxies: write { address = \"IP:PORT\", proxy_from = [\"IP OF THE PROXY\"] } into listen.tcp";
            self.say("listen", entry, Outcome::NeedsYou, message);
        } else {
            let stun = if is("enable_turn", "false") { "; it relays too, for those who have a credential" } else { "" };
            self.say("listen", entry, Outcome::Carried, format!("listen.{transport}, port {port}{stun}"));
        }
        Some((transport, addresses))
    }

    fn tls(&mut self, root: &Node) {
        let chain = root.get("tls_crt_file");
        let private = root.get("tls_key_file");
        if let Some(node) = chain.filter(|node| node.text() != Some("none"))
            && !self.asks("tls_crt_file", node, "tls", "certificate = \"fullchain.pem\"")
        {
            self.key("tls.certificate", quote(node.text().unwrap_or_default()), node);
            if private.is_none() {
                self.key("tls.private_key", quote(node.text().unwrap_or_default()), node);
            }
            self.say("tls_crt_file", node, Outcome::Carried, "tls.certificate");
        }
        if let Some(node) = private.filter(|node| node.text() != Some("none"))
            && !self.asks("tls_key_file", node, "tls", "private_key = \"privkey.pem\"")
        {
            self.key("tls.private_key", quote(node.text().unwrap_or_default()), node);
            self.say("tls_key_file", node, Outcome::Carried, format!("tls.private_key{KEY_RIGHTS}"));
        }
        if chain.is_none() && (self.draft.has("listen.tls") || self.draft.has("listen.auto")) {
            let place = Place::File(self.name.clone());
            let message = "without a certificate eturnal makes one that browsers refuse; name a real one: certificate and private_key";
            self.draft.question(
                "tls",
                &place,
                message,
                "certificate = \"fullchain.pem\"\nprivate_key = \"privkey.pem\"",
            );
            self.draft.say_of(place, "tls_crt_file", Outcome::NeedsYou, message);
        }
    }

    /// Returns the public addresses.
    fn relay(&mut self, root: &Node, udp_ports: &[u16]) -> Vec<IpAddr> {
        let mut public: Vec<IpAddr> = Vec::new();
        let mut from: Vec<Place> = Vec::new();
        for name in ["relay_ipv4_addr", "relay_ipv6_addr"] {
            let Some(node) = root.get(name) else { continue };
            if self.asks(name, node, "relay", "external = \"203.0.113.7\"") {
                continue;
            }
            match node.text().unwrap_or_default().parse::<IpAddr>() {
                Ok(ip) if !ip.is_unspecified() => {
                    public.push(ip);
                    from.push(Place::Line(self.name.clone(), node.line));
                    self.say(name, node, Outcome::Carried, "relay.external");
                }
                _ if node.text() == Some("none") => {
                    self.say(
                        name,
                        node,
                        Outcome::NeedsYou,
                        "no relaying in this family: list the addresses of the other one in relay.addresses",
                    );
                }
                _ => self.say(name, node, Outcome::NeedsYou, "is no address; set relay.external"),
            }
        }
        match public.as_slice() {
            [] => {}
            [one] => self.draft.key("relay.external", quote(&one.to_string()), &from),
            all => self.draft.key("relay.external", quote_all(all), &from),
        }
        self.ports(root, udp_ports);
        public
    }

    fn ports(&mut self, root: &Node, udp_ports: &[u16]) {
        let min = self.number(root, "relay_min_port", "relay", "ports = \"49152-65535\"");
        let max = self.number(root, "relay_max_port", "relay", "ports = \"49152-65535\"");
        let (first, last) = (min.unwrap_or(49152), max.unwrap_or(65535));
        if (min.is_some() || max.is_some()) && first <= last && last <= 65535 && (first, last) != (49152, 65535) {
            self.draft.key("relay.ports", quote(&format!("{first}-{last}")), &[]);
        }
        for name in ["relay_min_port", "relay_max_port"] {
            if let Some(node) =
                root.get(name).filter(|node| node.text().is_some_and(|text| text.parse::<u16>().is_ok()))
            {
                let is_taken = udp_ports.iter().any(|port| (first..=last).contains(&u64::from(*port)));
                let (outcome, message) = if is_taken || first > last {
                    (Outcome::NeedsYou, "relay.ports must hold ports, and none of a UDP listener")
                } else {
                    (Outcome::Carried, "relay.ports")
                };
                self.say(name, node, outcome, message);
            }
        }
    }

    /// A whole number, or `None` after a verdict.
    fn number(&mut self, root: &Node, name: &str, section: &str, example: &str) -> Option<u64> {
        let node = root.get(name)?;
        if self.asks(name, node, section, example) {
            return None;
        }
        let number = node.text().and_then(|text| text.parse().ok());
        if number.is_none() && node.text() != Some("unlimited") {
            self.say(name, node, Outcome::NeedsYou, "is no number");
        }
        number
    }

    fn secrets(&mut self, root: &Node) {
        let Some(list) = root.get("secret") else {
            let place = Place::File(self.name.clone());
            if root.get("credentials").is_none() {
                let message = "the secret is not in the file: it is in ETURNAL_SECRET, or made anew at each start";
                let example = "[[auth.secrets]]\nid = \"main\"\nvalue = \"the output of `openssl rand -hex 32`\"";
                self.draft.question("auth.secrets", &place, message, example);
                self.draft.say_of(place, "secret", Outcome::NeedsYou, message);
            }
            return;
        };
        let mut written = 0;
        for node in list.items() {
            let value = node.text().unwrap_or_default();
            if self.asks("secret", node, "auth.secrets", "[[auth.secrets]]\nid = \"imported-1\"\nvalue = \"...\"") {
                continue;
            }
            if let Some(weakness) = weakness(value.as_bytes()) {
                let setting = self.setting("secret", node);
                self.draft.say_unsafe(
                    &setting,
                    Outcome::NeedsYou,
                    format!("a secret that is refused: it {weakness}, and give it to the issuers too"),
                );
            } else if written == SECRETS_MAX {
                self.say("secret", node, Outcome::NeedsYou, format!("a server has {SECRETS_MAX} secrets at most"));
            } else {
                written += 1;
                let lines = format!(
                    "[[auth.secrets]]  # {}:{}\nid = \"imported-{written}\"\nvalue = {}\n",
                    self.name,
                    node.line,
                    quote(value)
                );
                self.draft.block("auth.secrets", lines);
                self.say("secret", node, Outcome::Carried, format!("[[auth.secrets]], id = \"imported-{written}\""));
            }
        }
        if written > 0 {
            let message = "a credential that ends more than 48 hours ahead is refused here: let the issuers shorten their lifetime, or raise auth.max_ttl";
            self.draft.say_of(Place::File(self.name.clone()), "auth.max_ttl", Outcome::Changed, message);
        }
    }

    fn users(&mut self, root: &Node) {
        let Some(users) = root.get("credentials") else { return };
        for (name, node) in users.entries() {
            let password = node.text().unwrap_or_default();
            if self.asks("credentials", node, "auth.users", "alice = \"...\"") {
                continue;
            }
            if password.is_empty() {
                self.say("credentials", node, Outcome::NeedsYou, format!("{name} has no password"));
                continue;
            }
            self.draft
                .block("auth.users", format!("{} = {}  # {}:{}\n", quote(name), quote(password), self.name, node.line));
            if password.len() < PASSWORD_BYTES_MIN || is_published(password.as_bytes()) {
                let setting = self.setting("credentials", node);
                let message = format!(
                    "auth.users: the password of {name} can be guessed; `openssl rand -base64 15` makes a good one"
                );
                self.draft.say_unsafe(&setting, Outcome::Carried, message);
            } else {
                self.say("credentials", node, Outcome::Carried, format!("auth.users: {name}"));
            }
        }
    }

    fn limits(&mut self, root: &Node) {
        for (name, key) in [
            ("max_allocations", "limits.allocations_per_user"),
            ("max_permissions", "limits.permissions_per_allocation"),
        ] {
            let Some(node) = root.get(name) else { continue };
            let number = self.number(root, name, "limits", "");
            let value = if node.text() == Some("unlimited") { Some(0) } else { number };
            if let Some(value) = value {
                self.key(key, value.to_string(), node);
                self.say(name, node, Outcome::Carried, key);
            }
        }
        if let Some(node) = root.get("max_bps") {
            if let Some(bytes) = self.number(root, "max_bps", "limits", "") {
                let rate = format!("{}bit/s", bytes.saturating_mul(8));
                self.key("limits.bandwidth_per_allocation", quote(&rate), node);
                self.say(
                    "max_bps",
                    node,
                    Outcome::Carried,
                    "limits.bandwidth_per_allocation, in bits, and over UDP too",
                );
            } else if node.text() == Some("unlimited") {
                self.say("max_bps", node, Outcome::Implied, "no limit, as by default");
            }
        }
        if let Some(node) = root.get("strict_expiry") {
            if node.text() == Some("true") {
                self.key("auth.on_expiry", quote("close"), node);
                self.say("strict_expiry", node, Outcome::Carried, "auth.on_expiry = \"close\"");
            } else {
                self.say("strict_expiry", node, Outcome::Implied, "auth.on_expiry is \"keep\" by default");
            }
        }
    }

    fn peers(&mut self, root: &Node, own: &[IpAddr]) {
        let mut peers = Peers::default();
        let mut is_recommended = true;
        for name in ["blacklist_peers", "blacklist"] {
            let Some(list) = root.get(name) else { continue };
            is_recommended = false;
            for node in list.items() {
                if node.text() == Some(RECOMMENDED) {
                    is_recommended = true;
                    self.say(name, node, Outcome::Implied, "all of it is denied by default");
                    continue;
                }
                match self.rule(name, node) {
                    Some(rule) => peers.denied.push(rule),
                    None => peers.unread.push(self.setting(name, node)),
                }
            }
        }
        for name in ["whitelist_peers", "whitelist"] {
            for node in root.get(name).map(Node::items).unwrap_or_default() {
                let Some(rule) = self.rule(name, node) else { continue };
                if rule.range.address(rule.range.first).is_loopback() {
                    let nets = rule.range.prefixes();
                    // What is listed here wins over what is denied.
                    peers.denied.retain(|denied| !denied.range.covers(&rule.range));
                    peers.loopback.push((rule.setting, nets));
                } else {
                    peers.allowed.push(rule);
                }
            }
        }
        for name in ["blacklist_clients", "whitelist_clients"] {
            if let Some(list) = root.get(name).filter(|list| !list.items().is_empty()) {
                self.say(
                    name,
                    list,
                    Outcome::NeedsYou,
                    "clients are not judged by their address here; let a firewall do it",
                );
            }
        }
        let recommended = RECOMMENDED_PREFIXES.iter().filter(|_| is_recommended);
        let built_in = recommended.chain(NEVER).filter_map(|net| net.parse::<IpNet>().ok());
        peers.built_in = built_in.map(|net| Range::of(&net)).collect();
        let source = self.name.to_string();
        peers::carry(peers, own, &source, &mut self.draft);
    }

    fn rule(&mut self, name: &str, node: &Node) -> Option<Rule> {
        let text = node.text().unwrap_or_default();
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        match net {
            Some(net) => Some(Rule { range: Range::of(&net), setting: self.setting(name, node) }),
            None => {
                self.say(name, node, Outcome::NeedsYou, "is no address and no prefix");
                None
            }
        }
    }

    fn log_and_modules(&mut self, root: &Node) {
        if let Some(node) = root.get("log_level") {
            let level = match node.text().unwrap_or_default() {
                "critical" | "error" => "error",
                "warning" | "notice" => "warn",
                "debug" => "debug",
                _ => "info",
            };
            if level == "info" {
                self.say("log_level", node, Outcome::Implied, "log.level is \"info\" by default");
            } else {
                self.key("log.level", quote(level), node);
                self.say("log_level", node, Outcome::Carried, format!("log.level = \"{level}\""));
            }
        }
        let Some(modules) = root.get("modules") else { return };
        for (name, node) in modules.entries() {
            match name.as_str() {
                "mod_stats_prometheus" => {
                    let port =
                        node.get("port").and_then(Node::text).and_then(|text| text.parse::<u16>().ok()).unwrap_or(8081);
                    self.key("http.listen", quote(&format!("127.0.0.1:{port}")), node);
                    let message = format!(
                        "http.listen = \"127.0.0.1:{port}\", /metrics: on this machine only, a Prometheus elsewhere needs a reverse proxy in front"
                    );
                    self.say(name, node, Outcome::Carried, message);
                }
                "mod_log_stun" => {
                    self.say(name, node, Outcome::Dropped, "requests for a Binding are counted in /metrics")
                }
                "mod_stats_influx" => self.say(
                    name,
                    node,
                    Outcome::Dropped,
                    "/metrics has the totals, and [accounting] a record for each session",
                ),
                _ => self.say(name, node, Outcome::NeedsYou, "is no module that is known here"),
            }
        }
    }
}
