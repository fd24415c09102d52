//! What an operator asks of a running server besides signals: it is done where signals are handled, in one order with them.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait; more are told to come again.
const WAITING_MAX: usize = 16;

/// What is asked, and where the answer goes.
#[derive(Debug)]
pub enum Command {
    /// The same as SIGHUP.
    Reload(oneshot::Sender<ReloadAnswer>),
    /// No new allocations from now on.
    Drain(oneshot::Sender<DrainAnswer>),
    /// The installed program takes over from this process.
    Upgrade(UpgradeRequest, oneshot::Sender<UpgradeReport>),
}

/// What a reload changed, or why it changed nothing.
pub type ReloadAnswer = Result<Reloaded, String>;

/// What a reload did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reloaded {
    /// What is different now, a line each.
    pub changed: Vec<String>,
    /// Keys that differ and take effect at the next start only.
    pub needs_restart: Vec<String>,
}

/// What draining began with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DrainAnswer {
    /// Whether it was under way already.
    pub is_already_under_way: bool,
    /// How many sessions still live.
    pub sessions: u64,
    /// How long until those that are left are ended; `None` without a time limit.
    pub ends_in_s: Option<u64>,
}

/// How an upgrade is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// Only find out whether it would be done: the new process plans and ends.
    #[serde(default)]
    pub check: bool,
    /// End sessions that use what the new version does not know, rather than refuse.
    #[serde(default)]
    pub drop_unknown: bool,
}

/// How an upgrade ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeResult {
    /// The new process serves, this one ends.
    Confirmed,
    /// It would be done; only that was asked.
    Checked,
    /// This process serves on, and has served all the time.
    Refused,
    /// The new process had begun to serve and failed; this one serves again.
    RolledBack,
}

impl UpgradeResult {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Confirmed, Self::Checked, Self::Refused, Self::RolledBack];

    /// As metrics and JSON name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Checked => "checked",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// What became of an upgrade.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct UpgradeReport {
    /// How it ended.
    pub result: UpgradeResult,
    /// The version of this process.
    pub from: String,
    /// That of the other one, if it said so.
    pub to: Option<String>,
    /// The step at which it failed.
    pub step: Option<String>,
    /// Why it failed, and what to do.
    pub reason: Option<String>,
    /// The new program rejects its configuration.
    pub is_configuration: bool,
    /// Allocations that moved, or would.
    pub allocations: Option<u64>,
    /// Client streams that moved, or would.
    pub streams: Option<u64>,
    /// How long neither process read the sockets, in microseconds.
    pub gap_us: Option<u64>,
    /// TLS handshakes that the old process finished after the new one had begun to serve.
    pub late: Option<u64>,
}

impl UpgradeReport {
    /// Of this version, with nothing else known.
    #[must_use]
    pub fn new(result: UpgradeResult) -> Self {
        Self {
            result,
            from: env!("CARGO_PKG_VERSION").to_owned(),
            to: None,
            step: None,
            reason: None,
            is_configuration: false,
            allocations: None,
            streams: None,
            gap_us: None,
            late: None,
        }
    }

    /// Refused for this reason.
    #[must_use]
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..Self::new(UpgradeResult::Refused) }
    }
}

/// The end that asks.
#[derive(Clone, Debug)]
pub struct Commands(mpsc::Sender<Command>);

/// Both ends; the loop that handles signals reads the second.
#[must_use]
pub fn channel() -> (Commands, mpsc::Receiver<Command>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Commands(sender), receiver)
}

impl Commands {
    /// Asks and waits for the answer; `None` if the server is stopping, or too many wait before us.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.0.try_send(command(sender)).ok()?;
        answer.await.ok()
    }
}
