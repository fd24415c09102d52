//! The drain of a server: no new sessions; calls end by themselves, and then the process does.
//!
//! Owns how it begins, what is told while it goes on, and when it is over. What a draining server answers is the
//! core's (`protocol::drain`). Begun by `run` for SIGTERM, and by other holders of a [`Drain`].

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::drain::DrainConfig;
use crate::net::Running;
use crate::ops::log;
use crate::ops::notify::Notifier;
use crate::ops::status::{Phase, Status};

/// How often it is looked whether the last allocation has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often people on a terminal and the service manager are told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How long the service manager shall wait for the next message; more than a busy machine may be late.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the log is told.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// How a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// The last allocation has ended.
    Empty,
    /// `drain.deadline`: so many are left.
    Deadline(u32),
}

/// How far a drain is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Allocations that still live.
    pub allocations: u32,
    /// How long until those that are left are ended; `None` without a time limit.
    pub ends_in: Option<Duration>,
}

impl Progress {
    /// Whole seconds until the deadline, the one that has begun included.
    #[must_use]
    pub fn seconds_left(&self) -> Option<u64> {
        self.ends_in.map(|ends_in| ends_in.as_secs() + u64::from(ends_in.subsec_nanos() > 0))
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let allocations = match self.allocations {
            1 => "1 allocation".to_owned(),
            count => format!("{count} allocations"),
        };
        match self.seconds_left() {
            Some(seconds) => format!("draining: {allocations} left, at most {seconds} s more"),
            None => format!("draining: {allocations} left, without a time limit"),
        }
    }
}

/// Begins a drain and tells of it.
pub struct Drain {
    running: Arc<Running>,
    status: Arc<Status>,
    notifier: Arc<Notifier>,
    config: Mutex<DrainConfig>,
    began_at: watch::Sender<Option<Instant>>,
    over: watch::Sender<Option<Over>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drain {
    /// Not begun.
    #[must_use]
    pub fn new(running: Arc<Running>, status: Arc<Status>, notifier: Arc<Notifier>, config: DrainConfig) -> Arc<Self> {
        let (config, began_at) = (Mutex::new(config), watch::Sender::new(None));
        Arc::new(Self { running, status, notifier, config, began_at, over: watch::Sender::new(None) })
    }

    /// Takes `on_term` and `deadline` over; the deadline counts from the beginning of the drain.
    pub fn reconfigure(&self, config: &DrainConfig) {
        lock(&self.config).clone_from(config);
    }

    /// Whether SIGTERM drains.
    #[must_use]
    pub fn is_wanted_on_term(&self) -> bool {
        lock(&self.config).on_term
    }

    /// No new sessions from when this returns; `false` if it was begun before. `by` is for the log.
    pub async fn begin(self: &Arc<Self>, by: &str) -> bool {
        let is_first = self.began_at.send_if_modified(|began_at| {
            let is_first = began_at.is_none();
            began_at.get_or_insert_with(Instant::now);
            is_first
        });
        if !is_first {
            return false;
        }
        self.status.set(Phase::Draining);
        self.running.drain().await;
        let Some(progress) = self.progress() else { return false };
        tracing::info!(by, allocations = progress.allocations, deadline_s = progress.seconds_left(), "draining");
        tokio::spawn(Arc::clone(self).follow());
        true
    }

    /// Goes on with a drain that another process began so long ago; its sessions are here, and its workers' draining is too.
    pub fn go_on(self: &Arc<Self>, since: Duration) {
        self.began_at.send_replace(Instant::now().checked_sub(since));
        self.status.set(Phase::Draining);
        tokio::spawn(Arc::clone(self).follow());
    }

    /// How long ago it began; `None` before.
    #[must_use]
    pub fn since(&self) -> Option<Duration> {
        Some((*self.began_at.borrow())?.elapsed())
    }

    /// Waits for its beginning.
    pub async fn began(&self) {
        // Its sender lives as long as this does.
        let _ = self.began_at.subscribe().wait_for(Option::is_some).await;
    }

    /// How far it is; `None` before it has begun.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        let began_at = (*self.began_at.borrow())?;
        let ends_in = lock(&self.config).deadline.map(|deadline| deadline.saturating_sub(began_at.elapsed()));
        // Openings under way are counted too.
        Some(Progress { allocations: self.running.usage().0, ends_in })
    }

    /// Waits for the end of a drain, or for ever if none begins.
    pub async fn over(&self) -> Over {
        let mut over = self.over.subscribe();
        loop {
            if let Some(over) = *over.borrow_and_update() {
                return over;
            }
            // The sender lives as long as we do.
            let _ = over.changed().await;
        }
    }

    async fn follow(self: Arc<Self>) {
        let is_shown = std::io::stderr().is_terminal();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut told_at, mut logged_at) = (None::<Instant>, Instant::now());
        while let Some(progress) = self.progress() {
            if progress.allocations == 0 {
                return self.end(Over::Empty);
            }
            if progress.ends_in.is_some_and(|ends_in| ends_in.is_zero()) {
                return self.end(Over::Deadline(progress.allocations));
            }
            if told_at.is_none_or(|told_at| told_at.elapsed() >= TELL_EVERY) {
                told_at = Some(Instant::now());
                let text = progress.text();
                self.notifier.draining(&text, PATIENCE);
                if is_shown {
                    log::show_progress(&text);
                }
            }
            if logged_at.elapsed() >= LOG_EVERY {
                logged_at = Instant::now();
                let (allocations, deadline_s) = (progress.allocations, progress.seconds_left());
                tracing::info!(allocations, deadline_s, "still draining");
            }
            looks.tick().await;
        }
    }

    fn end(&self, over: Over) {
        match over {
            Over::Empty => tracing::info!("drained: the last allocation has ended"),
            Over::Deadline(allocations) => {
                tracing::warn!(allocations, "drain.deadline reached: ending the remaining allocations");
            }
        }
        self.over.send_replace(Some(over));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_sentence() {
        let text = |allocations, ends_in| Progress { allocations, ends_in }.text();
        assert_eq!(text(1, Some(Duration::from_millis(61_500))), "draining: 1 allocation left, at most 62 s more");
        assert_eq!(text(20, None), "draining: 20 allocations left, without a time limit");
        assert_eq!(Progress { allocations: 1, ends_in: Some(Duration::from_secs(5)) }.seconds_left(), Some(5));
    }
}
