//! What an operator asks of a running server besides signals: it is done where signals are handled, in one order with them.

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
