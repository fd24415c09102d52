//! `[http]`: where it is served, and what that needs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::address::Transport;
use crate::config::check::Check;
use crate::config::document::{self, Node, Value};
use crate::config::issuing::IssuingConfig;
use crate::config::network::{Listen, overlap};
use crate::config::tls::TlsConfig;

/// `[http]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpConfig {
    /// Where metrics and health are served; `None` serves none.
    pub listen: Option<HttpListen>,
    /// Further Host names, in lower case; loopback names are always allowed.
    pub hosts: Vec<Box<str>>,
    /// Where credentials are served to other machines.
    pub public: Vec<PublicListen>,
    /// Who gets credentials.
    pub issuing: IssuingConfig,
    /// Where the admin API is served besides: a unix socket for root, the server's own user and `http.admin_uids`.
    pub admin_socket: Option<PathBuf>,
    /// Where credentials are served as lines, to `http.unix_uids`.
    pub chatmail_socket: Option<PathBuf>,
}

/// One of `http.public`; `[::]` means IPv6 only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicListen {
    /// Where.
    pub address: SocketAddr,
    /// Over TLS, with the certificates of `[tls]`.
    pub is_https: bool,
    /// Only proxies with these addresses connect here, and each connection begins with a PROXY header; empty for any client.
    pub proxy_from: Arc<[IpNet]>,
}

impl std::fmt::Display for PublicListen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.is_https { "https" } else { "http" }, self.address)
    }
}

impl HttpConfig {
    /// Whether it needs certificates.
    #[must_use]
    pub fn has_https(&self) -> bool {
        self.public.iter().any(|listen| listen.is_https)
    }
}

/// Where HTTP is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HttpListen {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A unix socket at an absolute path.
    Unix(PathBuf),
}

impl Check {
    /// `[http]`.
    pub(crate) fn http(&mut self, listen: &[(Listen, Node)], tls: &TlsConfig) -> HttpConfig {
        let hosts = self.hosts();
        let private = self.http_listen(listen);
        let public = self.http_public(listen, private.as_ref());
        let issuing = self.issuing();
        self.public_needs_a_method(&public, &issuing);
        self.public_needs_tls(&public, tls, &issuing);
        let admin_socket = self.admin_socket();
        if let (Some(own), Some(HttpListen::Unix(taken))) = (&admin_socket, &private)
            && own == taken
        {
            let node = self.get("http.admin_socket");
            self.wrong(&node, "is taken by http.listen, which serves the admin API too; write \"none\"");
        }
        let chatmail_socket = self.chatmail_socket(private.as_ref(), admin_socket.as_ref(), &issuing);
        HttpConfig { listen: private, hosts, public, issuing, admin_socket, chatmail_socket }
    }

    /// `http.chatmail_socket`, a path of its own; its callers are known by their user only.
    fn chatmail_socket(
        &mut self,
        private: Option<&HttpListen>,
        admin: Option<&PathBuf>,
        issuing: &IssuingConfig,
    ) -> Option<PathBuf> {
        let (text, node) = self.text_of("http.chatmail_socket")?;
        let path = PathBuf::from(text.strip_prefix("unix:").unwrap_or(&text));
        if !path.is_absolute() || path.file_name().is_none() {
            self.wrong(&node, "expected an absolute path, such as \"/run/throughway/chatmail.sock\"");
            return None;
        }
        let of_listen = matches!(private, Some(HttpListen::Unix(own)) if *own == path);
        let taken = [("http.listen", of_listen), ("http.admin_socket", admin == Some(&path))];
        if let Some((key, _)) = taken.into_iter().find(|(_, is_taken)| *is_taken) {
            self.wrong(&node, format!("is the socket of {key}; name another one"));
        } else if issuing.unix_uids.is_empty() && !self.has_problem_with("http.unix_uids") {
            let message = "has no caller: put the user of the relay's metadata service into http.unix_uids, the number that \
                 `id -u vmail` prints";
            self.wrong(&node, message);
        }
        Some(path)
    }

    fn hosts(&mut self) -> Vec<Box<str>> {
        self.each("http.hosts", |check, node| {
            let host = check.text(node)?;
            let fits = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            let message = "expected a host name without scheme, port or path, such as \"metrics.example.org\"";
            check.ok(node, fits.then(|| host.to_ascii_lowercase().into()).ok_or(message))
        })
    }

    fn http_public(&mut self, listen: &[(Listen, Node)], private: Option<&HttpListen>) -> Vec<PublicListen> {
        let mut public: Vec<PublicListen> = Vec::new();
        for node in self.list("http.public") {
            let Some(found) = self.public_listen(&node) else { continue };
            let address = found.address;
            let private = match private {
                Some(HttpListen::Tcp(other)) if overlap(*other, address) => Some(format!("http.listen = \"{other}\"")),
                Some(HttpListen::Tcp(_) | HttpListen::Unix(_)) | None => None,
            };
            let twice = public.iter().find(|other| overlap(other.address, address)).map(|other| format!("\"{other}\""));
            match taken(listen, address).or(private).or(twice) {
                Some(by) => self.wrong(&node, format!("is taken by {by}")),
                None => public.push(found),
            }
        }
        public
    }

    /// An address, or a table of it and its proxies.
    fn public_listen(&mut self, node: &Node) -> Option<PublicListen> {
        let Value::Table(fields) = &node.value else {
            let (is_https, address) = self.public_address(node)?;
            return Some(PublicListen { address, is_https, proxy_from: Arc::default() });
        };
        let all_known = self.fields(fields, node, &["address", "proxy_from"]);
        let Some(address) = document::field(fields, "address") else {
            if all_known {
                self.wrong(
                    node,
                    "has no address; write { address = \"https://0.0.0.0:8443\", proxy_from = [\"10.0.0.5\"] }",
                );
            }
            return None;
        };
        let address = self.public_address(address);
        let proxy_from = match document::field(fields, "proxy_from") {
            None => Some(Arc::default()),
            Some(from) => self.proxy_from(from, Transport::Tcp),
        };
        let ((is_https, address), proxy_from) = (address?, proxy_from?);
        Some(PublicListen { address, is_https, proxy_from })
    }

    /// Whether it is over TLS, and where.
    fn public_address(&mut self, node: &Node) -> Option<(bool, SocketAddr)> {
        let text = self.text(node)?;
        let (is_https, address) = match text.split_once("://") {
            Some((scheme @ ("https" | "http"), rest)) => (scheme == "https", rest.strip_suffix('/').unwrap_or(rest)),
            Some(_) => {
                self.wrong(node, "expected \"https://address:port\", or \"address:port\" without TLS");
                return None;
            }
            None => (false, text.as_str()),
        };
        Some((is_https, self.socket_address(node, address)?))
    }

    pub(crate) fn http_listen(&mut self, listen: &[(Listen, Node)]) -> Option<HttpListen> {
        let (text, node) = self.text_of("http.listen")?;
        if let Some(socket) = text.strip_prefix("unix:") {
            let socket = PathBuf::from(socket);
            if !socket.is_absolute() || socket.file_name().is_none() {
                self.wrong(&node, "expected an absolute path after unix:, such as \"unix:/run/throughway/http.sock\"");
            }
            return Some(HttpListen::Unix(socket));
        }
        let address = self.socket_address(&node, &text)?;
        if !address.ip().is_loopback() {
            let message = "metrics have no login, so this must be loopback (\"127.0.0.1:8080\", \"[::1]:8080\") or \
                 \"unix:/path\"; put a reverse proxy in front to show them elsewhere";
            self.wrong(&node, message);
        } else if let Some(by) = taken(listen, address) {
            self.wrong(&node, format!("is taken by {by}"));
        }
        Some(HttpListen::Tcp(address))
    }

    /// An endpoint that gives credentials to any caller would be an open relay with one more step.
    fn public_needs_a_method(&mut self, public: &[PublicListen], issuing: &IssuingConfig) {
        if !public.is_empty() && !issuing.can_identify_callers() && !self.has_problem_with("http.") {
            let message = "needs a way to authenticate callers: add [[http.keys]] with name and sha256 \
                 (printf %s KEY | sha256sum), or http.jwt_keys, or http.identity_header and http.proxies";
            let node = self.get("http.public");
            self.wrong(&node, message);
        }
    }

    /// Certificates for `https://`, and a word about keys that pass in the clear.
    fn public_needs_tls(&mut self, public: &[PublicListen], tls: &TlsConfig, issuing: &IssuingConfig) {
        let node = self.get("http.public");
        if public.iter().any(|listen| listen.is_https) && tls.files.is_empty() && !self.has_problem_with("tls") {
            self.wrong(&node, "https:// needs a certificate: set tls.certificate and tls.private_key to PEM files");
        }
        let is_open = |listen: &&PublicListen| !listen.is_https && !listen.address.ip().is_loopback();
        // With http.proxies another program does TLS.
        if let Some(listen) = public.iter().find(is_open).filter(|_| issuing.proxies.is_empty()) {
            let message = format!(
                "API keys and passwords pass over {listen} in the clear; write \"https://{}\", or bind loopback behind a proxy",
                listen.address
            );
            self.note(&node, message);
        }
    }
}

/// The stream listener that has an address already.
pub(crate) fn taken(listen: &[(Listen, Node)], address: SocketAddr) -> Option<String> {
    listen
        .iter()
        .find(|(other, _)| other.transport != Transport::Udp && overlap(other.address, address))
        .map(|(other, _)| format!("{} = \"{}\"", other.key(), other.address))
}
