//! Taking over a changed configuration while calls go on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::http_listeners::HttpListeners;
use crate::config::diff::Change;
use crate::config::{Config, Environment};
use crate::net::Running;
use crate::net::listener_plan::OpenSockets;
use crate::net::upgrade_messages::PassedSocket;
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

/// How long a reload waits for its files: an operator's request over HTTP waits ten seconds.
const READ_TIME: Duration = Duration::from_secs(5);

/// Who besides the relay follows a configuration.
pub(crate) type Follower = Box<dyn Fn(&Config, &Running) + Send + Sync>;

/// Rereads the configuration, for a signal or for an operator over HTTP.
pub(crate) struct Reloader {
    running: Arc<Running>,
    level: Level,
    notifier: Arc<Notifier>,
    followers: Vec<Follower>,
    /// Held while a reload or an upgrade goes on; before what [`Running`] holds meanwhile.
    listeners: Arc<Mutex<HttpListeners>>,
    /// Files are being read: one that hangs keeps one thread, however often a reload is asked for.
    is_reading: Arc<AtomicBool>,
}

/// While it lives files are being read.
struct Reading(Arc<AtomicBool>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The HTTP listeners of a server that is being handed over: while it lives no reload begins.
pub(crate) struct HeldListeners(OwnedMutexGuard<HttpListeners>);

impl HeldListeners {
    /// The sockets, for a process that takes over.
    pub(crate) fn sockets(&self) -> Vec<(PassedSocket, OwnedFd)> {
        self.0.sockets()
    }

    /// Another process has them: no more connections here, and the files of unix sockets stay.
    pub(crate) fn leave(&self) {
        self.0.gate().close();
        self.0.leave_files();
    }
}

impl Reloader {
    /// For a server that runs with this configuration; `followers` hear of each new one, in their order.
    pub(crate) fn new(
        running: Arc<Running>,
        level: Level,
        notifier: Arc<Notifier>,
        followers: Vec<Follower>,
        listeners: HttpListeners,
    ) -> Self {
        Self {
            running,
            level,
            notifier,
            followers,
            listeners: Arc::new(Mutex::new(listeners)),
            is_reading: Arc::default(),
        }
    }

    /// Takes over what can change without dropping a call; systemd and the log hear of it.
    ///
    /// # Errors
    /// Says what is wrong and where; nothing has changed then, because all that can fail is done before the first change.
    pub(crate) async fn reload(&self) -> Result<ReloadReport, String> {
        let mut listeners = self.listeners.lock().await;
        self.notifier.reloading();
        let result = self.take_over(&mut listeners).await;
        self.notifier.ready("serving");
        match &result {
            Ok(report) => tell(report),
            Err(error) => tracing::warn!("reload: {error}; the old settings stay"),
        }
        result
    }

    /// Waits for a reload that is under way, and lets none begin.
    pub(crate) async fn hold_listeners(&self) -> HeldListeners {
        HeldListeners(Arc::clone(&self.listeners).lock_owned().await)
    }

    /// This machine's addresses changed: what is made of them follows.
    pub(crate) async fn addresses_changed(&self) {
        let config = self.running.config().await;
        for follower in &self.followers {
            follower(&config, &self.running);
        }
    }

    /// Reads and checks the configuration and the files that it names. A disk may hang: neither the control runtime nor the
    /// next reload waits for that.
    async fn read(&self, old: Arc<Config>) -> Result<Config, String> {
        if self.is_reading.swap(true, Ordering::Relaxed) {
            let why = "an earlier reload is still reading the configuration or a file that it names: a disk hangs; if \
                       that does not end, restart the server";
            return Err(why.to_owned());
        }
        let reading = Reading(Arc::clone(&self.is_reading));
        let read = tokio::task::spawn_blocking(move || {
            let _reading = reading;
            old.reload(&Environment::of_process())
        });
        match tokio::time::timeout(READ_TIME, read).await {
            Ok(Ok(config)) => config.map_err(|error| format!("the configuration is wrong, the old one stays: {error}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "the configuration, or a file that it names, could not be read within {} s",
                READ_TIME.as_secs()
            )),
        }
    }

    async fn take_over(&self, listeners: &mut HttpListeners) -> Result<ReloadReport, String> {
        // Keys that wait for a restart are in it as they were at the start.
        let old = self.running.config().await;
        let new = self.read(Arc::clone(&old)).await?;
        let changes = old.changes(&new);
        let warnings = new.warnings.iter().map(ToString::to_string).collect();
        let new = new.until_restart(&old);
        // A port may go from the relay to HTTP, or back.
        let freed = self.running.freed(&new).and_then(|of_relay| Ok((of_relay, listeners.freed(&new.http)?)));
        let (of_relay, of_http) = freed.map_err(|error| format!("the sockets of listeners that go: {error}"))?;
        let mut sockets = OpenSockets::passed(self.running.passed()).with(of_relay).with(of_http);
        let bound = listeners.plan(&new.http, &mut sockets).map_err(|error| error.to_string())?;
        let prepared = self.running.prepare(new, bound.addresses(), sockets).await?;
        // Nothing can fail, and nothing is refused, from here on.
        prepared.commit().await;
        let new = self.running.config().await;
        listeners.serve(&new.http, bound, self.running.tls().as_ref());
        self.level.set(new.log.level);
        for follower in &self.followers {
            follower(&new, &self.running);
        }
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
        tracing::info!(changed, "reload: changes applied");
    } else {
        tracing::warn!(changed, restart, "reload: changes applied, but some keys take effect at the next start only");
    }
}
