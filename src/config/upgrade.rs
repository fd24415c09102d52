//! `[upgrade]`: how a new version takes over from a running server.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::check::Check;
use crate::config::checked::HttpListen;
use crate::config::http::HttpConfig;
use crate::config::units::DURATION;

/// `[upgrade]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpgradeConfig {
    /// Whether SIGHUP upgrades if the file of the program has changed.
    pub on_reload: bool,
    /// How long a new process must serve before the old one exits; until then the old one can take over again.
    pub probation: Duration,
    /// Where a new process that the old one did not start can ask for the clients; an absolute path.
    pub socket: Option<PathBuf>,
}

impl UpgradeConfig {
    /// In words, for `check-config`.
    pub(crate) fn describe(&self) -> String {
        let when =
            if self.on_reload { "by SIGHUP if the program's file has changed, and on request" } else { "on request" };
        let mut text = format!("{when}; confirmed after {}", DURATION.show(self.probation.as_secs()));
        if let Some(path) = &self.socket {
            text += &format!("; another process can take over at {}", path.display());
        }
        text
    }
}

impl Check {
    pub(crate) fn upgrade(&mut self, http: &HttpConfig) -> UpgradeConfig {
        UpgradeConfig {
            on_reload: self.flag_of("upgrade.on_reload"),
            probation: Duration::from_secs(self.number("upgrade.probation")),
            socket: self.upgrade_socket(http),
        }
    }

    fn upgrade_socket(&mut self, http: &HttpConfig) -> Option<PathBuf> {
        let (text, node) = self.text_of("upgrade.socket")?;
        let path = PathBuf::from(text.strip_prefix("unix:").unwrap_or(&text));
        if !path.is_absolute() || path.file_name().is_none() {
            self.wrong(&node, "expected an absolute path, such as \"/run/throughway/upgrade.sock\"");
            return None;
        }
        let taken = [
            ("http.admin_socket", http.admin_socket.as_ref()),
            ("http.chatmail_socket", http.chatmail_socket.as_ref()),
            (
                "http.listen",
                match &http.listen {
                    Some(HttpListen::Unix(path)) => Some(path),
                    Some(HttpListen::Tcp(_)) | None => None,
                },
            ),
        ];
        if let Some((key, _)) = taken.into_iter().find(|(_, other)| *other == Some(&path)) {
            self.wrong(&node, format!("is the socket of {key}; name another one"));
        }
        Some(path)
    }
}
