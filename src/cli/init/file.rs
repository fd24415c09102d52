//! The configuration that `init` writes: what differs from the defaults, each with a comment.

use std::fmt::Write as _;
use std::path::Path;

use super::{Certificate, PORT, Plan, RELAY_PORTS};
use crate::config::quote;

/// Where packages put the schema.
const SCHEMA: &str = "/usr/share/throughway/config.schema.json";

const HEAD: &str = "\
# Configuration of throughway, written by `throughway init`. It says only what differs from the defaults.
# Every key, what it does and its default: `throughway config example`, or throughway.toml(5).
#
#   throughway check-config FILE    checks this file: explains its effect or its errors
#   throughway reload               applies changes to the running server; calls go on
";

const SECRET: &str = "
# Your application makes credentials with this secret: username = EXPIRY:USERID, password = base64(HMAC-SHA1(secret, username)).
# The key is this text, not the bytes that its digits stand for. `throughway credentials mint --user alice` makes one by hand.
";

impl Plan {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if Path::new(SCHEMA).exists() {
            let _ = writeln!(text, "#:schema file://{SCHEMA}");
        }
        text += HEAD;
        self.listen(&mut text);
        self.relay(&mut text);
        if let Some(host) = &self.host {
            let name = quote(host);
            let _ = write!(
                text,
                "\n[http]\n# The name in the `turn:` URIs that clients are given.\npublic_name = {name}\n"
            );
        }
        text += SECRET;
        let _ = write!(text, "[[auth.secrets]]\nid = \"main\"\nvalue = {}\n", quote(&self.secret));
        text
    }

    fn listen(&self, text: &mut String) {
        let list = |port: u16| match self.has_ipv6 {
            true => format!("[\"0.0.0.0:{port}\", \"[::]:{port}\"]"),
            false => format!("[\"0.0.0.0:{port}\"]"),
        };
        if self.port != PORT || self.tls.is_some() {
            text.push_str("\n[listen]\n");
        }
        if self.port != PORT {
            let _ = write!(text, "# Clients over UDP and TCP.\nudp = {0}\ntcp = {0}\n", list(self.port));
        }
        let Some(certificate) = &self.tls else { return };
        let _ = write!(text, "# Clients behind firewalls that let only TLS pass.\ntls = {}\n", list(self.tls_port));
        let quoted = |path: &Path| quote(&path.display().to_string());
        match certificate {
            Certificate::Files { chain, key } => {
                let [chain, key] = [chain, key].map(|path| quoted(path));
                let _ = write!(
                    text,
                    "\n[tls]\n# A changed certificate is used at once. The user throughway must be able to read both files.\n\
                     certificate = {chain}\nprivate_key = {key}\n"
                );
            }
            Certificate::Authority { email, state } => {
                let (domain, email) = (quote(self.host.as_deref().unwrap_or_default()), quote(email));
                let _ = write!(
                    text,
                    "\n[tls.acme]\n# The server gets its certificate from Let's Encrypt and renews it; by this you accept the authority's terms.\n\
                     domains = [{domain}]\nemail = {email}\n# The account and the certificate.\nstate = {}\n",
                    quoted(state)
                );
            }
        }
    }

    fn relay(&self, text: &mut String) {
        let external = self.behind_nat();
        let hidden = self.hidden(true).filter(|_| external.is_empty());
        if external.is_empty() && hidden.is_none() && self.relay_ports == RELAY_PORTS && !self.relay_tcp {
            return;
        }
        text.push_str("\n[relay]\n");
        let external: Vec<String> = external.iter().map(|ip| format!("\"{ip}\"")).collect();
        match (&*external, hidden) {
            ([one], _) => {
                let _ = write!(text, "# The public address of this machine, which is behind NAT.\nexternal = {one}\n");
            }
            ([], Some(local)) => {
                let _ = write!(
                    text,
                    "# This machine has the private address {local}. If clients on the internet reach it by another one, as in most\n\
                     # clouds, remove the '#' and write that one.\n#external = \"203.0.113.7\"\n"
                );
            }
            ([], None) => {}
            (_, _) => {
                let all = external.join(", ");
                let _ =
                    write!(text, "# The public addresses of this machine, which is behind NAT.\nexternal = [{all}]\n");
            }
        }
        if self.relay_ports != RELAY_PORTS {
            let ports = quote(&self.relay_ports);
            let _ = write!(text, "# UDP ports of relayed traffic: each call uses one per side.\nports = {ports}\n");
        }
        if self.relay_tcp {
            text.push_str("# Clients over TCP and TLS may have TCP connections relayed (RFC 6062), over the same ports.\ntcp = true\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, KEYS};

    fn plan() -> Plan {
        Plan {
            host: None,
            external: Vec::new(),
            local: vec!["8.8.8.8".parse().unwrap()],
            port: PORT,
            relay_ports: RELAY_PORTS.to_owned(),
            relay_tcp: false,
            tls: None,
            tls_port: 5349,
            has_ipv6: true,
            secret: "north-of-everything".to_owned(),
        }
    }

    /// The keys that the text sets.
    fn keys(text: &str) -> Vec<&'static str> {
        let table: toml::Table = text.parse().unwrap();
        let is_set = |path: &str| {
            path.split('.').try_fold(&toml::Value::Table(table.clone()), |value, part| value.get(part)).is_some()
        };
        KEYS.iter().map(|key| key.path).filter(|path| is_set(path)).collect()
    }

    #[test]
    fn it_says_only_what_differs_from_the_defaults() {
        let private = || vec!["10.0.0.5".parse().unwrap(), "2a00::5".parse().unwrap()];
        for (plan, wanted) in [
            (plan(), vec!["auth.secrets"]),
            (Plan { local: private(), ..plan() }, vec!["auth.secrets"]),
            (Plan { host: Some("turn.example.org".to_owned()), ..plan() }, vec!["auth.secrets", "http.public_name"]),
            (
                Plan { local: private(), external: vec!["45.0.0.7".parse().unwrap()], ..plan() },
                vec!["relay.external", "auth.secrets"],
            ),
            (
                Plan {
                    external: vec!["45.0.0.7".parse().unwrap(), "2a00::7".parse().unwrap()],
                    relay_ports: "50000-50100".to_owned(),
                    ..plan()
                },
                vec!["relay.external", "relay.ports", "auth.secrets"],
            ),
            (Plan { port: 443, ..plan() }, vec!["listen.udp", "listen.tcp", "auth.secrets"]),
        ] {
            let text = plan.text();
            let config = Config::from_toml("c.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert!(config.warnings.is_empty(), "{:?}\n{text}", config.warnings);
            assert_eq!(keys(&text), wanted, "{text}");
            assert!(text.lines().all(|line| line.len() < 130), "{text}");
        }
    }

    #[test]
    fn a_private_address_is_told_with_the_line_that_mends_it() {
        let text = Plan { local: vec!["10.0.0.5".parse().unwrap()], ..plan() }.text();
        assert!(text.contains("private address 10.0.0.5") && text.contains("\n#external = \""), "{text}");
        let mended = text.replace("#external", "external");
        assert_eq!(Config::from_toml("c.toml", &mended).unwrap().relay.external.public().len(), 1);
    }

    #[test]
    fn a_certificate_makes_a_listener() {
        let tls = Some(Certificate::Files { chain: "/etc/a b/chain.pem".into(), key: "key.pem".into() });
        let text = Plan { tls, ..plan() }.text();
        assert_eq!(keys(&text), ["listen.tls", "tls.certificate", "tls.private_key", "auth.secrets"], "{text}");
        assert!(text.contains("certificate = \"/etc/a b/chain.pem\"\nprivate_key = \"key.pem\""), "{text}");
    }

    #[test]
    fn a_kernel_without_ipv6_gets_no_listener_of_it() {
        let tls = Some(Certificate::Files { chain: "chain.pem".into(), key: "key.pem".into() });
        let plan = Plan { tls, port: 3479, ..plan() };
        assert_eq!(plan.text().matches("\"[::]:").count(), 3, "{}", plan.text());
        let without = Plan { has_ipv6: false, ..plan }.text();
        assert!(!without.contains("[::]") && without.contains("tls = [\"0.0.0.0:5349\"]"), "{without}");
        assert_eq!(keys(&without)[..3], ["listen.udp", "listen.tcp", "listen.tls"], "{without}");
    }

    #[test]
    fn an_email_makes_a_listener_and_a_certificate_from_an_authority() {
        let host = Some("turn.example.org".to_owned());
        let at = |path: &str| Some(Certificate::of_authority("ops@example.org", Path::new(path)));
        let text = Plan { host: host.clone(), tls: at("/etc/throughway/config.toml"), ..plan() }.text();
        assert_eq!(keys(&text), ["listen.tls", "tls.acme", "auth.secrets", "http.public_name"], "{text}");
        let config = Config::from_toml("c.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(config.warnings.is_empty(), "{:?}\n{text}", config.warnings);
        let acme = config.tls.acme.unwrap();
        assert_eq!((&*acme.domains[0], acme.email.as_deref()), ("turn.example.org", Some("ops@example.org")));
        assert_eq!(acme.state, Path::new("/var/lib/throughway/acme"));
        // Another configuration than the unit's has a directory of its own.
        let text = Plan { host, tls: at("/srv/turn/c.toml"), ..plan() }.text();
        let acme = Config::from_toml("c.toml", &text).unwrap().tls.acme.unwrap();
        assert_eq!(acme.state, Path::new("/srv/turn/acme"));
        assert!(text.lines().all(|line| line.len() < 130), "{text}");
    }

    /// A name comes from a person: it can't add lines of its own.
    #[test]
    fn a_value_stays_a_value() {
        let wrong = Plan { host: Some("a\"\n[auth]\nusers = {}\n".to_owned()), ..plan() };
        let error = Config::from_toml("c.toml", &wrong.text()).unwrap_err();
        assert_eq!(error.problems[0].key, "http.public_name", "{error}");
        let tls = Some(Certificate::of_authority("a@b.c\"\n[auth]\n", Path::new("c.toml")));
        let wrong = Plan { host: Some("turn.example.org".to_owned()), tls, ..plan() };
        let error = Config::from_toml("c.toml", &wrong.text()).unwrap_err();
        assert!(error.to_string().contains("is not an e-mail address"), "{error}");
    }
}
