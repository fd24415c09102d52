//! `[tls]`, `listen.tls` and `listen.auto`: listeners that need certificates, and certificates that are good.

use std::net::IpAddr;

use crate::address::Transport;
use crate::config::acme::AcmeConfig;
use crate::config::check::Check;
use crate::config::document::Node;
use crate::config::http::{HttpConfig, taken};
use crate::config::initial_secret::is_world_readable;
use crate::config::network::Listen;
use crate::tls::certificates::{Files, Loaded, Summary};
use crate::tls::provider;

/// `[tls]`; not empty if a listener needs it, and every file was good when it was checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsConfig {
    /// `tls.certificate` first.
    pub files: Vec<Files>,
    /// What they held when they were checked, in the same order.
    pub certificates: Vec<Summary>,
    /// The first DNS name in a certificate that is no wildcard: what clients must be told for `turns:`.
    pub name: Option<Box<str>>,
    /// `tls.acme`: one of the files comes from an authority by itself.
    pub acme: Option<AcmeConfig>,
}

impl Check {
    /// Adds the listeners of `listen.tls`, `listen.auto` and `listen.shared`; those of `auto` are listed once for each transport.
    pub(crate) fn listen_tls(&mut self, listen: &mut Vec<(Listen, Node)>) {
        for (path, is_auto) in [("listen.tls", false), ("listen.auto", true)] {
            for (found, node) in self.listen(Transport::Tls, path) {
                if let Some(by) = taken(listen, found.address) {
                    self.wrong(&node, format!("is taken by {by}; listen.auto takes both on one port"));
                    continue;
                }
                let found = Listen { is_auto, ..found };
                if is_auto {
                    listen.push((Listen { transport: Transport::Tcp, ..found.clone() }, node.clone()));
                }
                listen.push((found, node));
            }
        }
        self.listen_shared(listen);
    }

    /// `[tls]`.
    pub(crate) fn tls(&mut self, listen: &[(Listen, Node)]) -> TlsConfig {
        let mut tls = TlsConfig::default();
        match (self.text_of("tls.certificate"), self.text_of("tls.private_key")) {
            (None, None) => {}
            (Some(_), None) if self.has_problem_with("tls.private_key") => {}
            (None, Some(_)) if self.has_problem_with("tls.certificate") => {}
            (Some((_, node)), None) => {
                self.wrong(&node, "has no key; tls.private_key names the file that holds it");
            }
            (None, Some((_, node))) => self.wrong(&node, "has no certificate; tls.certificate names its file"),
            (Some((chain, at)), Some((private, key_at))) => {
                self.certificate((&at, &chain), (&key_at, &private), &mut tls);
            }
        }
        self.certificates(&mut tls);
        tls.acme = self.acme(listen);
        if let Some(files) = tls.acme.as_ref().map(AcmeConfig::files) {
            let node = self.get("tls.acme");
            self.certificate_in(&node, &node, files, &mut tls);
        }
        let needing = listen.iter().find(|(listen, _)| listen.transport == Transport::Tls);
        if let Some((_, node)) = needing
            && tls.files.is_empty()
            && !self.has_problem_with("tls")
        {
            self.wrong(node, "needs a certificate: set tls.certificate and tls.private_key to PEM files, or tls.acme to get one from an authority");
        }
        tls
    }

    fn certificates(&mut self, tls: &mut TlsConfig) {
        for item in self.list("tls.certificates") {
            let Some(of) = self.table(&item, "tls.certificates") else { continue };
            match (of.text("certificate"), of.text("private_key")) {
                (Some(certificate), Some(private_key)) => self.certificate(certificate, private_key, tls),
                _ => self.lacks(&of, "needs both certificate and private_key").unwrap_or_default(),
            }
        }
    }

    /// Reads a pair, so that a wrong one is found before any port is bound.
    fn certificate(
        &mut self,
        (certificate, chain): (&Node, &str),
        (private_key, private): (&Node, &str),
        tls: &mut TlsConfig,
    ) {
        let (Some(chain), Some(private)) = (self.file(certificate, chain), self.file(private_key, private)) else {
            return;
        };
        let stand_in = self.is_after_crash.then(Files::stand_in_for_lost);
        let files = Files { certificate: chain, private_key: private, stand_in };
        self.certificate_in(certificate, private_key, files, tls);
    }

    fn certificate_in(&mut self, certificate: &Node, private_key: &Node, files: Files, tls: &mut TlsConfig) {
        if tls.files.contains(&files) {
            self.wrong(certificate, "is listed twice");
            return;
        }
        let loaded = match Loaded::read(&files, &provider()) {
            Ok(loaded) => loaded,
            Err(error) if error.is_key => return self.wrong(private_key, error.to_string()),
            Err(error) => return self.wrong(certificate, error.to_string()),
        };
        let is_lost = self.is_after_crash && loaded.is_stand_in;
        if is_lost {
            let shown = files.certificate.display();
            self.note(
                certificate,
                format!("{shown} and its key can't be used now; until they can, clients over TLS are shown a certificate that they refuse"),
            );
        } else if loaded.days_left() < 0 && files.stand_in.is_none() {
            self.note(certificate, format!("ended {} days ago; clients will refuse it", -loaded.days_left()));
        }
        for warning in loaded.warnings() {
            self.note(certificate, warning);
        }
        if is_world_readable(&files.private_key) {
            let shown = files.private_key.display();
            self.note(private_key, format!("every user of this machine can read {shown}; chmod 0640 it"));
        }
        if tls.name.is_none() && !is_lost {
            tls.name = loaded.names.iter().find(|name| !name.starts_with('*')).map(|name| name.as_str().into());
        }
        tls.certificates.push(loaded.summary());
        tls.files.push(files);
    }

    /// Warns of a public name that no certificate is for: clients compare it with the certificate that they are shown.
    pub(crate) fn public_name_needs_a_certificate(
        &mut self,
        listen: &[(Listen, Node)],
        http: &HttpConfig,
        tls: &TlsConfig,
    ) {
        let speaks_tls = http.has_https() || listen.iter().any(|(listen, _)| listen.transport == Transport::Tls);
        let Some(name) = http.issuing.public_name.as_deref().filter(|name| name.parse::<IpAddr>().is_err()) else {
            return;
        };
        let lower = name.to_ascii_lowercase();
        if !speaks_tls || tls.certificates.is_empty() || tls.certificates.iter().any(|of| of.is_for(&lower)) {
            return;
        }
        let names: Vec<_> = tls.certificates.iter().flat_map(|of| of.names.iter().map(String::as_str)).collect();
        let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
        let node = self.get("http.public_name");
        let message = format!(
            "no certificate is for this name, so clients refuse turns: URIs with it; the certificates of [tls] are for {names}"
        );
        self.note(&node, message);
    }
}
