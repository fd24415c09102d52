//! `listen.tls`, `listen.auto` and `[tls]`: listeners that need certificates, and certificates that are good.

use crate::config::check::Check;
use crate::config::check_network::overlap;
use crate::config::checked::{Listen, TlsConfig};
use crate::config::document::{Node, Value};
use crate::config::error::{Place, Problem};
use crate::config::initial_secret::is_world_readable;
use crate::protocol::address::Transport;
use crate::tls::certificates::{Files, Loaded};
use crate::tls::provider;

const FIELDS: [&str; 2] = ["certificate", "private_key"];

impl Check {
    /// Adds the listeners of `listen.tls` and `listen.auto`; the latter stand there once for each transport.
    pub(crate) fn listen_tls(&mut self, listen: &mut Vec<(Listen, Node)>) {
        for (path, is_auto) in [("listen.tls", false), ("listen.auto", true)] {
            for (found, node) in self.listen(Transport::Tls, path) {
                let clash = listen
                    .iter()
                    .find(|(other, _)| other.transport != Transport::Udp && overlap(other.address, found.address));
                if let Some((other, _)) = clash {
                    let hint = "; listen.auto takes both on one port";
                    self.wrong(&node, path, format!("is taken by {} = \"{}\"{hint}", other.key(), other.address));
                    continue;
                }
                let found = Listen { is_auto, ..found };
                if is_auto {
                    listen.push((Listen { transport: Transport::Tcp, ..found }, node.clone()));
                }
                listen.push((found, node));
            }
        }
    }

    /// `[tls]`.
    pub(crate) fn tls(&mut self, listen: &[(Listen, Node)]) -> TlsConfig {
        let mut tls = TlsConfig::default();
        let (certificate, private_key) = (self.get("tls.certificate"), self.get("tls.private_key"));
        let pair = (self.text(&certificate, "tls.certificate"), self.text(&private_key, "tls.private_key"));
        match (pair.0.as_deref(), pair.1.as_deref()) {
            (Some(""), Some("")) | (None, _) | (_, None) => {}
            (Some(_), Some("")) => {
                self.wrong(&certificate, "tls.certificate", "has no key; tls.private_key names the file that holds it");
            }
            (Some(""), Some(_)) => {
                self.wrong(&private_key, "tls.private_key", "has no certificate; tls.certificate names its file");
            }
            (Some(_), Some(_)) => self.certificate(&certificate, &private_key, "tls", &mut tls),
        }
        self.certificates(&mut tls);
        let needing = listen.iter().find(|(listen, _)| listen.transport == Transport::Tls);
        if let Some((listen, node)) = needing
            && tls.files.is_empty()
            && !self.has_problem_with("tls")
        {
            let message = "needs a certificate: set tls.certificate and tls.private_key to PEM files";
            self.wrong(node, listen.key(), message);
        }
        tls
    }

    fn certificates(&mut self, tls: &mut TlsConfig) {
        let path = "tls.certificates";
        let node = self.get(path);
        let Value::List(items) = &node.value else {
            self.wrong(
                &node,
                path,
                "expected tables: write [[tls.certificates]] and below it certificate = \"...\" and private_key = \"...\"",
            );
            return;
        };
        for (index, item) in items.iter().enumerate() {
            let key = format!("{path}[{index}]");
            let Value::Table(fields) = &item.value else {
                self.wrong(item, &key, "expected a table of certificate and private_key");
                continue;
            };
            let all_known = self.fields(fields, &key, &FIELDS, &[]);
            let field = |name: &str| fields.iter().find(|field| field.key == name).map(|field| &field.node);
            match (field("certificate"), field("private_key")) {
                (Some(certificate), Some(private_key)) => self.certificate(certificate, private_key, &key, tls),
                _ if all_known => self.wrong(item, &key, "needs both certificate and private_key"),
                _ => {}
            }
        }
    }

    /// Reads a pair, so that a wrong one is found before any port is bound.
    fn certificate(&mut self, certificate: &Node, private_key: &Node, key: &str, tls: &mut TlsConfig) {
        let (certificate_key, private_key_key) = (format!("{key}.certificate"), format!("{key}.private_key"));
        let (Some(certificate_path), Some(key_path)) =
            (self.text(certificate, &certificate_key), self.text(private_key, &private_key_key))
        else {
            return;
        };
        let (Some(chain), Some(private)) = (
            self.file(certificate, &certificate_key, &certificate_path),
            self.file(private_key, &private_key_key, &key_path),
        ) else {
            return;
        };
        let files = Files { certificate: chain, private_key: private };
        if tls.files.contains(&files) {
            self.wrong(certificate, &certificate_key, "stands there twice");
            return;
        }
        match Loaded::read(&files, &provider()) {
            Ok(loaded) => {
                if loaded.days_left() < 0 {
                    let message = format!("ended {} days ago; clients will refuse it", -loaded.days_left());
                    self.note(certificate, &certificate_key, message);
                }
                if is_world_readable(&files.private_key) {
                    let shown = files.private_key.display();
                    self.note(
                        private_key,
                        &private_key_key,
                        format!("every user of this machine can read {shown}; chmod 0640 it"),
                    );
                }
                if tls.name.is_none() {
                    tls.name = loaded.names.iter().find(|name| !name.starts_with('*')).map(|name| name.as_str().into());
                }
                tls.files.push(files);
            }
            Err(error) if error.is_key => self.wrong(private_key, &private_key_key, error.to_string()),
            Err(error) => self.wrong(certificate, &certificate_key, error.to_string()),
        }
    }

    /// Something to look at that stops nothing.
    pub(crate) fn note(&mut self, node: &Node, key: &str, message: String) {
        let place: Place = node.place.clone();
        self.notes.push(Problem::new(place, key, message).with_value(node.render()));
    }
}
