//! `[drain]`: how a server ends without ending calls.

use std::time::Duration;

use crate::config::units::show_seconds;
use crate::protocol::drain::{Alternates, Siblings};

/// `[drain]`; a reload changes all of it, also while the server drains.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DrainConfig {
    /// Whether SIGTERM drains.
    pub on_term: bool,
    /// How long calls may go on; `None` waits for the last one.
    pub deadline: Option<Duration>,
    /// Where clients are sent.
    pub alternates: Alternates,
}

fn addresses(siblings: &Siblings) -> impl Iterator<Item = String> {
    siblings.ipv4.map(|address| address.to_string()).into_iter().chain(siblings.ipv6.map(|address| address.to_string()))
}

impl DrainConfig {
    /// In words, for `check-config`.
    pub(crate) fn describe(&self) -> String {
        let when = if self.on_term { "by SIGTERM and on request" } else { "on request" };
        let deadline = self.deadline.map_or_else(
            || "calls may last".to_owned(),
            |deadline| format!("calls may go on for {}", show_seconds(deadline.as_secs())),
        );
        let mut text = format!("{when}; {deadline}");
        let plain = addresses(&self.alternates.plain);
        let tls = addresses(&self.alternates.tls).map(|address| format!("{address} (TLS)"));
        let alternates: Vec<String> = plain.chain(tls).collect();
        if !alternates.is_empty() {
            text += &format!("; new clients are sent to {}", alternates.join(", "));
        }
        text
    }

    /// The same for machines.
    pub(crate) fn describe_json(&self) -> serde_json::Value {
        serde_json::json!({
            "on_term": self.on_term,
            "deadline": self.deadline.map(|deadline| deadline.as_secs()),
            "alternate": addresses(&self.alternates.plain).collect::<Vec<_>>(),
            "alternate_tls": addresses(&self.alternates.tls).collect::<Vec<_>>(),
            "alternate_domain": self.alternates.domain.as_deref(),
        })
    }
}
