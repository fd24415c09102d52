//! `tls.acme`: certificates that the server asks an authority for itself (RFC 8555).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::address::Transport;
use crate::config::check::Check;
use crate::config::document::{Node, Value};
use crate::config::http::{HttpConfig, HttpListen, PublicListen};
use crate::config::network::{Listen, overlap};
use crate::fetch::{Authorities, Url};
use crate::tls::certificates::Files;

/// The authority that most know.
const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Where an authority looks for proof by HTTP (RFC 8555 section 8.3) and by TLS (RFC 8737 section 3).
const HTTP: &str = "[::]:80";
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Names in one certificate; Let's Encrypt takes no more.
const DOMAINS_MAX: usize = 100;

/// How control over a name is proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// In the handshake of a listener on port 443.
    TlsAlpn01,
    /// By HTTP on this address.
    Http01(SocketAddr),
}

/// `tls.acme`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcmeConfig {
    /// The names that the certificate is for, in small letters.
    pub domains: Vec<Box<str>>,
    /// Where the authority may write to.
    pub email: Option<Box<str>>,
    /// The authority's directory.
    pub directory: Url,
    /// Who must certify it, in place of those that the system trusts.
    pub authorities: Option<Authorities>,
    /// How control is proved.
    pub proof: Proof,
    /// The configuration leaves that to the server.
    is_proof_by_itself: bool,
    /// The directory of the account and of the certificate.
    pub state: PathBuf,
    /// Ports of our own listeners of plain HTTP.
    pub http_ports: Vec<u16>,
}

impl AcmeConfig {
    /// The file that holds the chain and its key.
    #[must_use]
    pub fn pair(&self) -> PathBuf {
        self.state.join("certificate.pem")
    }

    /// Both are in one file; until it is there a stand-in is presented.
    #[must_use]
    pub fn files(&self) -> Files {
        let names: Vec<String> = self.domains.iter().map(ToString::to_string).collect();
        Files { certificate: self.pair(), private_key: self.pair(), stand_in: Some(Arc::from(names)) }
    }

    /// Whether the authority looks for its proof in a handshake on this port.
    pub(crate) fn is_proved_on(&self, address: SocketAddr) -> bool {
        self.proof == Proof::TlsAlpn01 && address.port() == HTTPS_PORT
    }

    /// Whether a listener of ours answers over plain HTTP on this port.
    #[must_use]
    pub fn is_public_http(&self, address: SocketAddr) -> bool {
        self.http_ports.contains(&address.port())
    }
}

impl Proof {
    /// The name of the challenge (RFC 8555 section 8, RFC 8737 section 3).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01(_) => "http-01",
        }
    }

    /// The TCP port that the authority connects to, which must be open to the internet.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::TlsAlpn01 => HTTPS_PORT,
            Self::Http01(_) => HTTP_PORT,
        }
    }
}

/// Whether a listener has the port of a proof by HTTP; `[::]` of the latter stands for both families.
fn clashes(proof: SocketAddr, other: SocketAddr) -> bool {
    let is_any = proof.is_ipv6() && proof.ip().is_unspecified() && proof.port() == other.port();
    is_any || overlap(proof, other)
}

impl Check {
    /// The directory of the account and of the certificate.
    fn state_of_acme(&mut self, node: &Node, path: &str) -> Option<PathBuf> {
        if path.trim().is_empty() {
            self.wrong(
                node,
                "state is empty; name a directory of the server's own, such as \"/var/lib/throughway/acme\"",
            );
            return None;
        }
        let path = self.beside(node, path);
        match std::fs::metadata(&path) {
            Ok(found) if !found.is_dir() => {
                self.wrong(node, "is no directory; the account and the certificate are files in it");
                None
            }
            // It is made when it is needed.
            Ok(_) | Err(_) => Some(path),
        }
    }

    /// What keeps an authority from proving control, or the certificate from being used; a warning where a NAT or a proxy
    /// may help.
    pub(crate) fn acme_can_work(&mut self, acme: &AcmeConfig, listen: &[(Listen, Node)], http: &HttpConfig) {
        let node = self.get("tls.acme");
        let tls = listen.iter().map(|(of, _)| of).filter(|of| of.transport == Transport::Tls).map(|of| of.address);
        let https = http.public.iter().filter(|of| of.is_https).map(|of| of.address);
        let tls: Vec<SocketAddr> = tls.chain(https).collect();
        if tls.is_empty() {
            self.note(&node, "no listener needs the certificate, so none is asked for; add listen.tls or listen.auto");
            return;
        }
        let address = match acme.proof {
            Proof::TlsAlpn01 => {
                if !tls.iter().any(|of| of.port() == HTTPS_PORT && !of.ip().is_loopback()) {
                    let message = format!(
                        "the authority proves tls-alpn-01 on port {HTTPS_PORT}, which no listener for TLS has; it works only if a NAT or a proxy hands that port on to one of them, with TLS untouched"
                    );
                    self.note(&node, message);
                }
                return;
            }
            Proof::Http01(address) => address,
        };
        let private = match &http.listen {
            Some(HttpListen::Tcp(own)) if clashes(address, *own) => Some(format!("http.listen = \"{own}\"")),
            Some(HttpListen::Tcp(_) | HttpListen::Unix(_)) | None => None,
        };
        let of_clients =
            listen.iter().map(|(of, _)| of).find(|of| of.transport != Transport::Udp && clashes(address, of.address));
        let of_clients = of_clients.map(|of| format!("{} = \"{}\"", of.key(), of.address));
        let https = http.public.iter().find(|of| of.is_https && clashes(address, of.address));
        let https = https.map(|of| format!("http.public = \"{of}\""));
        if let Some(by) = of_clients.or(private).or(https) {
            let message = format!(
                "http-01 is answered on {address} (http_listen), which {by} has, so no certificate can be obtained; give that listener another port, or let one for TLS have port {HTTPS_PORT}"
            );
            self.wrong(&node, message);
            return;
        }
        // A listener of our own for HTTP answers too.
        let own =
            http.public.iter().filter(|of| !of.is_https && clashes(address, of.address)).map(|of| of.address.ip());
        let own: Vec<IpAddr> = own.collect();
        let is_loopback = if own.is_empty() { address.ip().is_loopback() } else { own.iter().all(IpAddr::is_loopback) };
        if is_loopback {
            let message = format!(
                "http-01 is answered on loopback; it works only if a proxy hands /.well-known/acme-challenge/ of port {HTTP_PORT} on to it"
            );
            self.note(&node, message);
        }
    }

    /// `tls.acme`; nothing if it names no domain.
    pub(crate) fn acme(&mut self, listen: &[(Listen, Node)]) -> Option<AcmeConfig> {
        let node = self.get("tls.acme");
        let of = self.table(&node, "tls.acme")?;
        let of_nothing = matches!(&node.value, Value::Table(fields) if fields.is_empty());
        let texts = |name: &str| of.text(name).map(|(node, text)| (node.clone(), text.to_owned()));
        let listed = of.get("domains").cloned();
        let (email, directory, ca, challenge) =
            (texts("email"), texts("directory"), texts("ca_file"), texts("challenge"));
        let (http_listen, state) = (texts("http_listen"), texts("state"));
        if of_nothing {
            return None;
        }
        let Some(listed) = listed else {
            return self.lacks(&of, "needs domains, the names that the certificate is for");
        };
        drop(of);
        let domains = self.domains(&listed)?;
        let email = email.and_then(|(node, email)| {
            let is_address = email.split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains('.'));
            let is_plain = is_address && email.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
            self.ok(&node, is_plain.then(|| email.into()).ok_or("is not an e-mail address"))
        });
        let (url_node, url) = directory.unwrap_or_else(|| (node.clone(), DIRECTORY.to_owned()));
        let directory = self.ok(&url_node, Url::parse(&url))?;
        if !directory.is_https() {
            self.wrong(&url_node, "expected an https URL: what an authority says must come from it");
        }
        let authorities = ca.and_then(|(node, path)| self.authorities_in(&node, &path));
        let http_listen = http_listen.unwrap_or_else(|| (node.clone(), HTTP.to_owned()));
        let http_listen = self.ok(
            &http_listen.0,
            http_listen.1.parse().map_err(|_| "expected an address and a port, such as \"[::]:80\""),
        )?;
        let is_on_443 = |of: &Listen| {
            of.transport == Transport::Tls && of.address.port() == HTTPS_PORT && !of.address.ip().is_loopback()
        };
        let may_alpn = listen.iter().any(|(of, _)| is_on_443(of));
        let chosen = challenge.as_ref().map(|(_, word)| word.as_str()).filter(|word| *word != "auto");
        let proof = match chosen {
            Some("tls-alpn-01") => Proof::TlsAlpn01,
            None if may_alpn => Proof::TlsAlpn01,
            Some(_) | None => Proof::Http01(http_listen),
        };
        let is_proof_by_itself = chosen.is_none();
        let state = match state {
            Some((node, path)) => self.state_of_acme(&node, &path)?,
            None => self.ok(
                &node,
                self.state_directory.as_ref().map(|directory| directory.join("acme")).ok_or(
                    "needs state, a directory of the server's own for the account and the certificate; under systemd it is in /var/lib/throughway by itself",
                ),
            )?,
        };
        Some(AcmeConfig {
            domains,
            email,
            directory,
            authorities,
            proof,
            is_proof_by_itself,
            state,
            http_ports: Vec::new(),
        })
    }

    fn domains(&mut self, listed: &Node) -> Option<Vec<Box<str>>> {
        let items = match &listed.value {
            Value::List(items) => items.clone(),
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::Table(_) => Vec::new(),
        };
        if items.is_empty() || items.len() > DOMAINS_MAX {
            self.wrong(listed, format!("expected 1 to {DOMAINS_MAX} names, such as [\"turn.example.org\"]"));
            return None;
        }
        let mut domains: Vec<Box<str>> = Vec::new();
        for item in &items {
            let name = self.text(item)?.to_ascii_lowercase();
            let is_label = |label: &str| {
                (1..=63).contains(&label.len())
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            };
            let is_name = name.len() <= 253 && name.contains('.') && name.split('.').all(is_label);
            if name.starts_with("*.") {
                self.wrong(
                    item,
                    "an authority proves a wildcard by DNS only, which throughway does not do: name the hosts",
                );
            } else if !is_name || name.parse::<std::net::IpAddr>().is_ok() {
                self.wrong(item, "is not a host name such as turn.example.org");
            } else if domains.iter().any(|known| **known == *name) {
                self.wrong(item, "is listed twice");
            } else {
                domains.push(name.into());
            }
        }
        (domains.len() == items.len()).then_some(domains)
    }
}

impl AcmeConfig {
    /// Listeners of HTTP can prove too.
    pub(crate) fn know_http(&mut self, http: &HttpConfig) {
        let is_on_443 =
            |of: &PublicListen| of.is_https && of.address.port() == HTTPS_PORT && !of.address.ip().is_loopback();
        if self.is_proof_by_itself && http.public.iter().any(is_on_443) {
            self.proof = Proof::TlsAlpn01;
        }
        self.http_ports = http.public.iter().filter(|of| !of.is_https).map(|of| of.address.port()).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::environment::Environment;

    fn check(listen: &str, acme: &str) -> Result<AcmeConfig, String> {
        let text = format!(
            "[listen]\n{listen}\n[tls]\nacme = {{ {acme} }}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n"
        );
        let environment: Environment = [("STATE_DIRECTORY", "/var/lib/t:/other")].into_iter().collect();
        let config = Config::of_text(std::path::Path::new("/etc/t/c.toml"), &text, &environment);
        config.map(|config| config.tls.acme.unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_has_a_good_value() {
        let acme = check("auto = [\"0.0.0.0:443\"]", "domains = [\"Turn.Example.org\"]").unwrap();
        assert_eq!((&*acme.domains[0], acme.proof, acme.email), ("turn.example.org", Proof::TlsAlpn01, None));
        assert_eq!(acme.directory.to_string(), DIRECTORY);
        assert_eq!(acme.state, std::path::Path::new("/var/lib/t/acme"));
        let elsewhere = check("tls = [\"0.0.0.0:5349\"]", "domains = [\"a.example.org\"], state = \"s\"").unwrap();
        assert_eq!((elsewhere.proof, elsewhere.state), (Proof::Http01(HTTP.parse().unwrap()), "/etc/t/s".into()));
        let chosen =
            check("auto = [\"0.0.0.0:443\"]", "domains = [\"a.example.org\"], challenge = \"http-01\"").unwrap();
        assert_eq!(chosen.proof, Proof::Http01(HTTP.parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (acme, expected) in [
            ("email = \"a@b.c\"", "tls.acme = { email = \"a@b.c\" }: needs domains"),
            ("domains = []", "expected 1 to 100 names"),
            ("domains = [\"*.example.org\"]", "by DNS only"),
            ("domains = [\"example\"]", "is not a host name"),
            ("domains = [\"10.0.0.1\"]", "is not a host name"),
            ("domains = [\"a_b.example.org\"]", "is not a host name"),
            ("domains = [\"a.example.org\", \"A.example.org\"]", "is listed twice"),
            ("domains = [\"a.example.org\"], email = \"nobody\"", "is not an e-mail address"),
            ("domains = [\"a.example.org\"], directory = \"http://a.example.org/\"", "expected an https URL"),
            (
                "domains = [\"a.example.org\"], challenge = \"dns-01\"",
                "allowed are \"auto\", \"tls-alpn-01\", \"http-01\"",
            ),
            ("domains = [\"a.example.org\"], http_listen = \"80\"", "expected an address and a port"),
            ("domains = [\"a.example.org\"], state = \"\"", "state is empty"),
            ("domains = [\"a.example.org\"], state = \" \"", "state is empty"),
            ("domains = [\"a.example.org\"], state = \"/dev/null\"", "is no directory"),
            ("domains = [\"a.example.org\"], ca_file = \"/nowhere.pem\"", "/nowhere.pem can't be read"),
            ("domain = \"a.example.org\"", "domains"),
        ] {
            let error = check("auto = [\"0.0.0.0:443\"]", acme).unwrap_err();
            assert!(error.contains(expected), "{acme}: {error}");
        }
    }
    fn warnings(listen: &str, acme: &str) -> String {
        let text = format!(
            "{listen}\n[tls]\nacme = {{ domains = [\"a.example.org\"], state = \"s\"{acme} }}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n"
        );
        match Config::of_text(std::path::Path::new("/etc/t/c.toml"), &text, &Environment::default()) {
            Ok(config) => config.warnings.iter().map(|warning| format!("warning: {}\n", warning.message)).collect(),
            Err(error) => format!("error: {error}"),
        }
    }

    const PORT_80: &str = ", http_listen = \"0.0.0.0:80\"";

    #[test]
    fn a_port_of_the_proof_that_a_listener_has_is_an_error() {
        for (listen, acme, by) in [
            ("listen.tls = [\"0.0.0.0:5349\"]\nlisten.tcp = [\"0.0.0.0:80\"]", "", "listen.tcp = \"0.0.0.0:80\""),
            ("listen.tls = [\"0.0.0.0:5349\"]\nlisten.tcp = [\"[::]:80\"]", "", "listen.tcp = \"[::]:80\""),
            ("listen.auto = [\"192.0.2.7:80\"]", PORT_80, "listen.auto = \"192.0.2.7:80\""),
            ("listen.tls = [\"0.0.0.0:5349\"]", ", http_listen = \"[::]:5349\"", "listen.tls = \"0.0.0.0:5349\""),
            (
                "listen.tls = [\"0.0.0.0:5349\"]\nhttp.listen = \"127.0.0.1:8080\"",
                ", http_listen = \"0.0.0.0:8080\"",
                "http.listen = \"127.0.0.1:8080\"",
            ),
        ] {
            let said = warnings(listen, acme);
            assert!(said.starts_with("error: ") && said.contains(&format!("which {by} has")), "{listen}: {said}");
        }
        // UDP, another family and another address are no clash.
        for (listen, acme) in [
            ("listen.tls = [\"0.0.0.0:5349\"]\nlisten.udp = [\"0.0.0.0:80\"]", PORT_80),
            ("listen.tls = [\"0.0.0.0:5349\"]\nlisten.tcp = [\"[::]:80\"]", PORT_80),
            ("listen.tls = [\"0.0.0.0:443\"]\nlisten.tcp = [\"0.0.0.0:80\"]", ""),
            ("listen.tls = [\"0.0.0.0:5349\"]", ""),
        ] {
            assert_eq!(warnings(listen, acme), "", "{listen} {acme}");
        }
    }

    #[test]
    fn what_needs_help_from_outside_is_a_warning() {
        for (listen, acme, words) in [
            ("", "", "no listener needs the certificate"),
            ("listen.tls = [\"0.0.0.0:5349\"]", ", challenge = \"tls-alpn-01\"", "on port 443, which no listener"),
            ("listen.tls = [\"127.0.0.1:443\"]", ", challenge = \"tls-alpn-01\"", "on port 443, which no listener"),
            ("listen.tls = [\"0.0.0.0:5349\"]", ", http_listen = \"127.0.0.1:80\"", "answered on loopback"),
        ] {
            let said = warnings(listen, acme);
            assert!(said.starts_with("warning: ") && said.contains(words), "{listen} {acme}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        // An authority does not reach loopback: the server does not choose it by itself.
        let chosen = check("tls = [\"127.0.0.1:443\"]", "domains = [\"a.example.org\"]").unwrap();
        assert_eq!(chosen.proof.name(), "http-01");
    }

    #[test]
    fn the_description_tells_what_the_authority_needs() {
        let text = "listen.tls = [\"0.0.0.0:5349\"]\n[tls]\nacme = { domains = [\"a.example.org\"], state = \"s\" }\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n";
        let config = Config::of_text(std::path::Path::new("/etc/t/c.toml"), text, &Environment::default()).unwrap();
        let said = config.describe();
        for words in [
            "for a.example.org from https://acme-v02.api.letsencrypt.org/directory, by http-01",
            "TCP port 80 must be open to the internet; answered on [::]:80",
            "account and certificate in /etc/t/s",
            "a stand-in, which clients refuse",
        ] {
            assert!(said.contains(words), "{said}\nlacks {words}");
        }
        let json = config.describe_json();
        let acme = &json["tls"]["acme"];
        assert_eq!((&acme["challenge"], &acme["port"]), (&"http-01".into(), &80.into()));
        assert_eq!(acme["state"], "/etc/t/s");
        assert_eq!(json["tls"]["certificates"][0]["stand_in"], true);
    }
}
