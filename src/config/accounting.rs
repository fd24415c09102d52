//! `[accounting]`: where usage records go.

use std::path::PathBuf;

use crate::config::check::{Check, is_zero};
use crate::config::check_auth::read_at_most;
use crate::config::document::{Node, Value};
use crate::config::units;
use crate::credentials::Secret;
use crate::fetch::{Authorities, Url};

/// The least that a signing key may hold, in bytes.
const SIGN_KEY_BYTES_MIN: usize = 16;

/// A spool below this could not hold one batch.
const SPOOL_BYTES_MIN: u64 = 1 << 20;

/// The system's whole list has a fifth of that.
const CA_BYTES_MAX: u64 = 1 << 20;

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
    /// `accounting.webhook_ca_file`: whom it must be certified by, in place of those that the system trusts.
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
                format!(" (a new one beyond {}, {kept} kept)", units::show_bytes(bytes))
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
                units::show_bytes(webhook.spool_bytes)
            ));
        }
        if self.sign_key.is_some() {
            parts.push("each line signed".to_owned());
        }
        let interim = match self.interval {
            0 => "at start and stop only".to_owned(),
            seconds => format!("at start, stop and every {}", units::show_seconds(seconds.into())),
        };
        format!("{interim}; {}", parts.join("; "))
    }
}

impl Check {
    pub(crate) fn accounting(&mut self) -> AccountingConfig {
        let interval = self.get("accounting.interval");
        let interval = if is_zero(&interval) {
            0
        } else {
            u32::try_from(self.seconds("accounting.interval", 1..=86_400)).unwrap_or(0)
        };
        let rotate_bytes = self.bytes("accounting.rotate_size", 4096);
        let rotate_count = self.count("accounting.rotate_count", u32::MAX);
        let file = self.place("accounting.file").map(|(_, path)| UsageFileConfig {
            path,
            rotate_bytes,
            rotate_count: (rotate_count != 0).then_some(rotate_count),
        });
        AccountingConfig {
            interval,
            file,
            journal: self.place("accounting.journal").map(|(_, path)| path),
            webhook: self.webhook(),
            sign_key: self.sign_key(),
        }
    }

    /// A path, unless it is empty.
    pub(super) fn place(&mut self, key: &'static str) -> Option<(Node, PathBuf)> {
        let node = self.get(key);
        let path = self.text(&node, key).filter(|path| !path.is_empty())?;
        let path = self.beside(&node.place, &path);
        Some((node, path))
    }

    fn bytes(&mut self, path: &'static str, min: u64) -> Option<u64> {
        let node = self.get(path);
        if is_zero(&node) {
            return None;
        }
        let message = match &node.value {
            Value::Text(text) => match units::size(text) {
                Ok(bytes) if bytes >= min => return Some(bytes),
                Ok(_) => format!("allowed are {} and more, or 0 for no limit", units::show_bytes(min)),
                Err(message) => message,
            },
            Value::Integer(_, text) => units::size(text).err().unwrap_or_default(),
            Value::Other(_) | Value::List(_) | Value::Table(_) => {
                format!("expected a size such as \"64MiB\", found {}", node.kind())
            }
        };
        self.wrong(&node, path, message);
        None
    }

    fn webhook(&mut self) -> Option<WebhookConfig> {
        let spool_bytes = self.bytes("accounting.spool_max", SPOOL_BYTES_MIN);
        let spool = self.place("accounting.spool").map(|(_, path)| path);
        let token_key = "accounting.webhook_token_file";
        let token_node = self.get(token_key);
        let token = self
            .text(&token_node, token_key)
            .filter(|path| !path.is_empty())
            .and_then(|path| self.secret_file(&token_node, token_key, &path));
        if token.as_ref().is_some_and(|token| !token.expose().iter().all(u8::is_ascii_graphic)) {
            self.wrong(&token_node, token_key, "holds something else than printable ASCII characters");
        }
        let key = "accounting.webhook";
        let node = self.get(key);
        let url = self.text(&node, key).filter(|url| !url.is_empty())?;
        let url = match Url::parse(&url) {
            Ok(url) => url,
            Err(message) => {
                self.wrong(&node, key, message);
                return None;
            }
        };
        let authorities = self.authorities("accounting.webhook_ca_file", &url, key);
        let Some(spool) = spool else {
            self.wrong(&node, key, "needs accounting.spool, the directory in which records wait for it");
            return None;
        };
        let spool_bytes = spool_bytes.unwrap_or_else(|| {
            if !self.has_problem_with("accounting.spool_max") {
                self.wrong(
                    &self.get("accounting.spool_max"),
                    "accounting.spool_max",
                    "must not be 0: the spool is bounded",
                );
            }
            SPOOL_BYTES_MIN
        });
        Some(WebhookConfig { url, authorities, token, spool, spool_bytes })
    }

    /// A file of the certificates that the server behind a URL must be certified by.
    pub(crate) fn authorities(&mut self, key: &'static str, url: &Url, url_key: &str) -> Option<Authorities> {
        let node = self.get(key);
        let path = self.text(&node, key).filter(|path| !path.is_empty())?;
        if !url.is_https {
            self.wrong(&node, key, format!("certifies nobody: {url_key} is not https"));
            return None;
        }
        let path = self.beside(&node.place, &path);
        let read = read_at_most(&path, CA_BYTES_MAX).map_err(|error| format!("can't be read: {error}"));
        match read.and_then(|pem| Authorities::parse(&pem)) {
            Ok(authorities) => Some(authorities),
            Err(what) => {
                self.wrong(&node, key, format!("{} {what}", path.display()));
                None
            }
        }
    }

    fn sign_key(&mut self) -> Option<Secret> {
        let key = "accounting.sign_key_file";
        let node = self.get(key);
        let path = self.text(&node, key).filter(|path| !path.is_empty())?;
        let secret = self.secret_file(&node, key, &path)?;
        if secret.expose().len() < SIGN_KEY_BYTES_MIN {
            let message = format!(
                "holds {} bytes; at least {SIGN_KEY_BYTES_MIN} are needed, `openssl rand -hex 32` makes a good one",
                secret.expose().len()
            );
            self.wrong(&node, key, message);
        }
        Some(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn check(text: &str) -> Result<AccountingConfig, String> {
        let text = format!("[accounting]\n{text}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north\"\n");
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
        assert!(webhook.url.is_https && webhook.authorities.is_none());
        for (text, word) in [
            ("webhook = \"http://a/\"", "needs accounting.spool"),
            ("webhook = \"https://a/\"\nspool = \"/s\"\nwebhook_ca_file = \"/nowhere\"", "/nowhere can't be read"),
            ("webhook = \"https://a/\"\nspool = \"/s\"\nwebhook_ca_file = \"/etc/hostname\"", "holds no certificate"),
            ("webhook = \"http://a/\"\nspool = \"/s\"\nwebhook_ca_file = \"/nowhere\"", "is not https"),
            ("webhook = \"ftp://a/\"\nspool = \"/s\"", "expected a URL"),
            ("webhook = \"http://a:b/\"\nspool = \"/s\"", "is no port"),
            ("webhook = \"http://a/\"\nspool = \"/s\"\nspool_max = \"0B\"", "must not be 0"),
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
