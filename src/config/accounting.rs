//! `[accounting]`: where usage records go.

use std::path::PathBuf;

use crate::config::check::Check;
use crate::config::document::Node;
use crate::config::units::{DURATION, SIZE};
use crate::credentials::Secret;
use crate::fetch::{Authorities, Url};
use crate::files;

/// The system's whole list has a fifth of that.
const CA_BYTES_MAX: u64 = 1 << 20;

/// As long as a host's name in the DNS may be (RFC 1035 section 2.3.4).
const SERVER_NAME_BYTES: usize = 253;

/// `[accounting]`. Without a file, a journal and a webhook nothing is recorded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AccountingConfig {
    /// Seconds between two records of a live session; 0 means none between start and stop.
    pub interval: u32,
    /// A file of JSON lines.
    pub file: Option<UsageFileConfig>,
    /// The journal's socket.
    pub journal: Option<PathBuf>,
    /// Where records are posted to.
    pub webhook: Option<WebhookConfig>,
    /// Signs each line.
    pub sign_key: Option<Secret>,
    /// The server's name in records; `None` is the host's.
    pub server: Option<String>,
}

/// A file of JSON lines and its rotation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageFileConfig {
    /// Its path.
    pub path: PathBuf,
    /// Beyond so many bytes it is renamed; `None` never renames it.
    pub rotate_bytes: Option<u64>,
    /// How many renamed files stay; `None` keeps all.
    pub rotate_count: Option<u32>,
}

/// An HTTP endpoint that takes records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WebhookConfig {
    /// Where it is.
    pub url: Url,
    /// `accounting.webhook_ca_file`: the authorities that must certify it, in place of those that the system trusts.
    pub authorities: Option<Authorities>,
    /// Sent as a bearer token.
    pub token: Option<Secret>,
    /// The directory in which records wait.
    pub spool: PathBuf,
    /// How many bytes may wait there.
    pub spool_bytes: u64,
}

impl AccountingConfig {
    /// Whether anything is recorded.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.file.is_some() || self.journal.is_some() || self.webhook.is_some()
    }

    /// What the core is told: without a place to go no interim records are made.
    #[must_use]
    pub const fn interim_seconds(&self) -> u32 {
        if self.is_on() { self.interval } else { 0 }
    }

    /// For `check-config`.
    #[must_use]
    pub fn describe(&self) -> String {
        if !self.is_on() {
            return "off: neither accounting.file nor journal nor webhook is set".to_owned();
        }
        let mut parts = Vec::new();
        if let Some(file) = &self.file {
            let rotated = file.rotate_bytes.map_or_else(String::new, |bytes| {
                let kept = file.rotate_count.map_or_else(|| "all".to_owned(), |count| count.to_string());
                format!(" (a new one beyond {}, {kept} kept)", SIZE.show(bytes))
            });
            parts.push(format!("file {}{rotated}", file.path.display()));
        }
        if let Some(journal) = &self.journal {
            parts.push(format!("journal {}", journal.display()));
        }
        if let Some(webhook) = &self.webhook {
            parts.push(format!(
                "webhook {} by {} (at most {})",
                webhook.url,
                webhook.spool.display(),
                SIZE.show(webhook.spool_bytes)
            ));
        }
        if self.sign_key.is_some() {
            parts.push("each line signed".to_owned());
        }
        let interim = match self.interval {
            0 => "at start and stop only".to_owned(),
            seconds => format!("at start, stop and every {}", DURATION.show(seconds.into())),
        };
        format!("{interim}; {}", parts.join("; "))
    }
}

impl Check {
    pub(crate) fn accounting(&mut self) -> AccountingConfig {
        let file = self.path_of("accounting.file").map(|path| UsageFileConfig {
            path,
            rotate_bytes: self.limit("accounting.rotate_size"),
            rotate_count: self.limit("accounting.rotate_count"),
        });
        AccountingConfig {
            interval: self.number("accounting.interval"),
            file,
            journal: self.path_of("accounting.journal"),
            webhook: self.webhook(),
            sign_key: self.secret_of("accounting.sign_key_file"),
            server: self.server_name(),
        }
    }

    fn server_name(&mut self) -> Option<String> {
        let (name, node) = self.text_of("accounting.server")?;
        let fits = name.len() <= SERVER_NAME_BYTES && name.chars().all(|c| c.is_ascii_graphic());
        self.ok(&node, fits.then_some(name).ok_or("must be 1 to 253 printable ASCII characters without a space"))
    }

    fn webhook(&mut self) -> Option<WebhookConfig> {
        let token = self.text_of("accounting.webhook_token_file").and_then(|(path, node)| {
            let token = self.secret_file(&node, &path)?;
            let is_printable = token.expose().iter().all(u8::is_ascii_graphic);
            self.ok(&node, is_printable.then_some(token).ok_or("holds characters that are not printable ASCII"))
        });
        let (text, node) = self.text_of("accounting.webhook")?;
        let url = self.ok(&node, Url::parse(&text))?;
        let authorities = self.authorities("accounting.webhook_ca_file", &url, &node.key);
        let spool = self.path_of("accounting.spool");
        let spool =
            self.ok(&node, spool.ok_or("needs accounting.spool, the directory in which records wait for it"))?;
        Some(WebhookConfig { url, authorities, token, spool, spool_bytes: self.number("accounting.spool_max") })
    }

    /// A file of the certificates that the server behind a URL must be certified by.
    pub(crate) fn authorities(&mut self, path: &str, url: &Url, url_key: &str) -> Option<Authorities> {
        let (text, node) = self.text_of(path)?;
        if !url.is_https() {
            self.wrong(&node, format!("has no effect: {url_key} is not an https URL"));
            return None;
        }
        self.authorities_in(&node, &text)
    }

    /// The certificates in a file.
    pub(crate) fn authorities_in(&mut self, node: &Node, path: &str) -> Option<Authorities> {
        let path = self.beside(node, path);
        let read = files::read(&path, CA_BYTES_MAX).map_err(|error| format!("can't be read: {error}"));
        let authorities = read.and_then(|pem| Authorities::parse(&pem));
        self.ok(node, authorities.map_err(|what| format!("{} {what}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn check(text: &str) -> Result<AccountingConfig, String> {
        let text = format!("[accounting]\n{text}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n");
        Config::from_toml("/etc/t/c.toml", &text).map(|config| config.accounting).map_err(|error| error.to_string())
    }

    #[test]
    fn without_a_place_to_go_nothing_is_recorded() {
        let config = check("").unwrap();
        assert!(!config.is_on());
        assert_eq!((config.interval, config.interim_seconds()), (60, 0));
        assert!(config.describe().starts_with("off"));
    }

    #[test]
    fn paths_are_beside_the_file_and_sizes_are_read() {
        let config =
            check("file = \"usage.jsonl\"\nrotate_size = \"1MiB\"\nrotate_count = 0\ninterval = \"5s\"").unwrap();
        let file = config.file.as_ref().unwrap();
        assert_eq!(file.path, PathBuf::from("/etc/t/usage.jsonl"));
        assert_eq!((file.rotate_bytes, file.rotate_count), (Some(1 << 20), None));
        assert_eq!(config.interim_seconds(), 5);
        assert_eq!(check("file = \"u\"\ninterval = \"0s\"").unwrap().interim_seconds(), 0);
    }

    #[test]
    fn a_webhook_is_a_url_with_a_spool() {
        let config = check("webhook = \"http://[::1]/u?x=1\"\nspool = \"/s\"").unwrap();
        let webhook = config.webhook.unwrap();
        assert_eq!((&*webhook.url.to_string(), webhook.spool_bytes), ("http://[::1]/u", 64 << 20));
        let webhook = check("webhook = \"https://bill.example/u\"\nspool = \"/s\"").unwrap().webhook.unwrap();
        assert!(webhook.url.is_https() && webhook.authorities.is_none());
        for (text, word) in [
            ("webhook = \"http://a/\"", "needs accounting.spool"),
            ("webhook = \"https://a/\"\nspool = \"/s\"\nwebhook_ca_file = \"/nowhere\"", "/nowhere can't be read"),
            ("webhook = \"https://a/\"\nspool = \"/s\"\nwebhook_ca_file = \"/etc/hostname\"", "holds no certificate"),
            ("webhook = \"http://a/\"\nspool = \"/s\"\nwebhook_ca_file = \"/nowhere\"", "is not an https URL"),
            ("webhook = \"ftp://a/\"\nspool = \"/s\"", "expected a URL"),
            ("webhook = \"http://a:b/\"\nspool = \"/s\"", "invalid port"),
            ("webhook = \"http://a/\"\nspool = \"/s\"\nspool_max = \"0B\"", "1MiB and more"),
            ("spool_max = \"1KiB\"", "1MiB and more"),
            ("rotate_size = \"1B\"", "4KiB and more"),
            ("interval = \"2d\"", "allowed are 1s to 1d"),
            ("sign_key_file = \"/nowhere/key\"", "/nowhere/key"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
