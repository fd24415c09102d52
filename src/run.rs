//! `serve`: check, bind, report, serve, stop, in this order. A wrong configuration never binds a port.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::host::AllowedHosts;
use crate::api::{Bound, health};
use crate::cli::Failure;
use crate::config::accounting::AccountingConfig;
use crate::config::{Config, Environment};
use crate::net::{self, Running};
use crate::ops::log::{self, Level, OnEnded};
use crate::ops::metrics::Metrics;
use crate::ops::status::{Phase, Status};
use crate::ops::usage::{self, Usage};

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// [`Failure::Run`] with key, value and remedy when something can't be bound.
pub fn serve(config: Config) -> Result<(), Failure> {
    runtime()?.block_on(serve_until_told(config))
}

/// The control runtime: HTTP, signals, accepting, the log. No packet of an established client comes here.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Failure::Run(format!("can't start the control threads: {error}")))
}

/// A started relay with its log and its HTTP face.
pub(crate) struct Started {
    pub(crate) running: Arc<Running>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: Arc<Status>,
    usage: Option<Usage>,
    log: tokio::task::JoinHandle<()>,
}

/// Binds and starts the workers; `on_ended` hears of each ended session besides the log.
pub(crate) fn start(config: &Config, http: &[SocketAddr], on_ended: Option<OnEnded>) -> Result<Started, Failure> {
    log::file_limit(net::raise_file_limit());
    let usage = usage::start(&config.accounting, &config.realm).map_err(Failure::Run)?;
    let (running, events) = net::start(config, http).map_err(|error| Failure::Run(error.to_string()))?;
    let running = Arc::new(running);
    for (transport, address) in running.listeners() {
        tracing::info!(%address, transport = transport.name(), "listening");
    }
    for address in running.relay_addresses() {
        tracing::info!(
            local = %address.local,
            advertised = %address.advertised,
            ports = %format_args!("{}-{}", config.relay.ports.start(), config.relay.ports.end()),
            "relaying from"
        );
    }
    let feed = usage.as_ref().map(Usage::feed);
    let log = tokio::spawn(log::follow(events, Arc::downgrade(&running), on_ended, feed));
    let metrics = Arc::new(Metrics::new(Arc::clone(&running), usage.as_ref().map(Usage::metrics)));
    Ok(Started { running, metrics, status: Arc::new(Status::default()), usage, log })
}

impl Started {
    /// Ends every allocation and waits until the last session's line and record are written.
    pub(crate) async fn stop(self) {
        self.status.set(Phase::Draining);
        let running = Arc::clone(&self.running);
        // Joining threads blocks; the runtime must go on, because the log writes on it.
        let _ = tokio::task::spawn_blocking(move || running.stop()).await;
        let _ = self.log.await;
        if let Some(usage) = self.usage {
            usage.finish().await;
        }
    }
}

async fn serve_until_told(config: Config) -> Result<(), Failure> {
    let level = log::start(config.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let http = config.http.listen.as_ref().map(Bound::bind).transpose().map_err(|e| Failure::Run(e.to_string()))?;
    let http_address: Vec<SocketAddr> = http.as_ref().and_then(Bound::address).into_iter().collect();
    let mut signals = Signals::new()?;
    let started = start(&config, &http_address, None)?;
    if let Some(http) = http {
        let hosts = AllowedHosts::new(config.http.hosts.iter().map(ToString::to_string));
        let health =
            health::Health { status: Arc::clone(&started.status), metrics: Arc::clone(&started.metrics), hosts };
        tracing::info!(address = http.name(), "metrics and health");
        tokio::spawn(http.serve(health::router(health)));
    }
    started.status.set(Phase::Ready);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), realm = %config.realm, workers = started.running.counters().count(), "ready");
    let mut config = config;
    loop {
        match signals.next().await {
            Told::Reload => {
                if let Some(usage) = &started.usage {
                    usage.reopen();
                }
                if let Some(new) = reload(&config, &started.running, &level) {
                    config = new;
                }
            }
            Told::Stop(name) => {
                tracing::info!(signal = name, "stopping");
                started.stop().await;
                return Ok(());
            }
        }
    }
}

/// Takes over what can change without dropping a call; a wrong file changes nothing.
fn reload(old: &Config, running: &Running, level: &Level) -> Option<Config> {
    let new = match old.reload(&Environment::of_process()) {
        Ok(new) => new,
        Err(error) => {
            tracing::warn!("reload: the configuration is wrong, the old one stays: {error}");
            return None;
        }
    };
    for warning in &new.warnings {
        tracing::warn!("{warning}");
    }
    let needs_restart = old.needs_restart(&new);
    if !needs_restart.is_empty() {
        tracing::warn!(keys = needs_restart.join(", "), "reload: these keys take effect at the next start only");
    }
    // The realm is in every client's key: it stays until the restart.
    let effective = Config {
        realm: old.realm.clone(),
        workers: old.workers,
        listen: old.listen.clone(),
        relay: old.relay.clone(),
        http: old.http.clone(),
        accounting: AccountingConfig { interval: new.accounting.interval, ..old.accounting.clone() },
        ..new
    };
    if let Err(error) = running.reconfigure(&effective) {
        tracing::warn!("reload: {error}; the old settings stay");
        return None;
    }
    level.set(effective.log.level);
    tracing::info!(
        users = effective.auth.users.len(),
        secrets = effective.auth.secrets.len(),
        "reload: users, secrets, peers, lifetimes, limits and log level are taken over"
    );
    Some(effective)
}

/// What a signal asks for.
pub(crate) enum Told {
    Reload,
    Stop(&'static str),
}

/// SIGHUP, SIGTERM and SIGINT.
pub(crate) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::Run(format!("can't listen for signals: {error}")));
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// The next of them.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.hangup.recv() => Told::Reload,
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
        }
    }
}
