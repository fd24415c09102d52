//! Taking over a changed configuration while calls go on.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::Mutex;

use super::faces::Faces;
use crate::config::diff::Change;
use crate::config::{Config, Environment};
use crate::net::Running;
use crate::ops::command::Reloaded;
use crate::ops::log::Level;
use crate::ops::notify::Notifier;

/// What a reload changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ReloadReport {
    /// Every key that differs, with what waits for a restart and why.
    pub changes: Vec<Change>,
    /// What an operator should look at.
    pub warnings: Vec<String>,
}

impl From<ReloadReport> for Reloaded {
    fn from(report: ReloadReport) -> Self {
        let (waiting, changed): (Vec<Change>, Vec<Change>) =
            report.changes.into_iter().partition(|change| change.needs_restart.is_some());
        let lines = |changes: Vec<Change>| changes.iter().map(ToString::to_string).collect();
        Self { changed: lines(changed), needs_restart: lines(waiting) }
    }
}

/// Who besides the relay follows a configuration.
pub(crate) type Follower = Box<dyn Fn(&Config, &Running) + Send + Sync>;

/// Rereads the configuration, for whoever asks: a signal or an operator over HTTP.
pub(crate) struct Reloader {
    running: Arc<Running>,
    level: Level,
    notifier: Arc<Notifier>,
    followers: Vec<Follower>,
    state: Mutex<State>,
}

struct State {
    /// What holds now; keys that wait for a restart are as they were at the start.
    config: Config,
    faces: Faces,
}

impl Reloader {
    /// For a server that runs with this configuration; `followers` hear of each new one, in their order.
    pub(crate) fn new(
        running: Arc<Running>,
        level: Level,
        notifier: Arc<Notifier>,
        followers: Vec<Follower>,
        config: Config,
        faces: Faces,
    ) -> Self {
        Self { running, level, notifier, followers, state: Mutex::new(State { config, faces }) }
    }

    /// Takes over what can change without dropping a call; systemd and the log hear of it.
    ///
    /// # Errors
    /// Says what is wrong and where; nothing has changed then.
    pub(crate) async fn reload(&self) -> Result<ReloadReport, String> {
        let mut state = self.state.lock().await;
        self.notifier.reloading();
        let result = self.take_over(&mut state).await;
        self.notifier.ready("serving");
        match &result {
            Ok(report) => tell(report),
            Err(error) => tracing::warn!("reload: {error}; the old settings stay"),
        }
        result
    }

    async fn take_over(&self, state: &mut State) -> Result<ReloadReport, String> {
        let old = &state.config;
        let new = old
            .reload(&Environment::of_process())
            .map_err(|error| format!("the configuration is wrong, the old one stays: {error}"))?;
        let changes = old.changes(&new);
        let warnings = new.warnings.iter().map(ToString::to_string).collect();
        let new = new.until_restart(old);
        let bound = state.faces.plan(&new.http, self.running.passed()).map_err(|error| error.to_string())?;
        self.running.reconfigure(&new, &bound.addresses()).await?;
        state.faces.serve(&new.http, bound, self.running.tls().as_ref());
        self.level.set(new.log.level);
        self.running.renew_certificates(&new).await;
        for follower in &self.followers {
            follower(&new, &self.running);
        }
        state.config = new;
        Ok(ReloadReport { changes, warnings })
    }
}

/// One line: what changed from what to what, and what waits for a restart.
fn tell(report: &ReloadReport) {
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    let list = |waits: bool| {
        let of_kind = report.changes.iter().filter(|change| change.needs_restart.is_some() == waits);
        of_kind.map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let (changed, restart) = (list(false), list(true));
    if restart.is_empty() {
        tracing::info!(changed, "reload: the changes are taken over");
    } else {
        tracing::warn!(
            changed,
            restart,
            "reload: the changes are taken over, but some keys take effect at the next start only"
        );
    }
}
