//! `serve`: check, bind, report, serve, stop, in this order. A wrong configuration never binds a port.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::admin::{self, Admin};
use crate::api::host::AllowedHosts;
use crate::api::rest::counts::Counts;
use crate::api::rest::{self, Door, Rest};
use crate::api::{Bound, health};
use crate::cli::Failure;
use crate::config::accounting::AccountingConfig;
use crate::config::admin::AdminConfig;
use crate::config::checked::HttpConfig;
use crate::config::{Config, Environment};
use crate::net::{self, Running, clock};
use crate::ops::advice;
use crate::ops::command::{self, Command, Commands, DrainAnswer, Reloaded};
use crate::ops::drain::Drain;
use crate::ops::log::{self, Level, OnEnded};
use crate::ops::metrics::Metrics;
use crate::ops::notify::{self, Notifier};
use crate::ops::refusals::Refusals;
use crate::ops::revocations::{self, Store};
use crate::ops::status::{Phase, Status};
use crate::ops::usage::{self, Usage};
use crate::protocol::revocation::Revocations;

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
    pub(crate) issuing: Arc<Counts>,
    pub(crate) refusals: Arc<Refusals>,
    usage: Option<Usage>,
    log: tokio::task::JoinHandle<()>,
}

/// Binds and starts the workers; `on_ended` hears of each ended session besides the log.
pub(crate) fn start(
    config: &Config,
    http: &[SocketAddr],
    revocations: Revocations,
    on_ended: Option<OnEnded>,
) -> Result<Started, Failure> {
    log::file_limit(net::raise_file_limit());
    let usage = usage::start(&config.accounting, &config.realm).map_err(Failure::Run)?;
    let (running, events) = net::start(config, http, revocations).map_err(|error| Failure::Run(error.to_string()))?;
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
    let issuing = Arc::new(Counts::default());
    let feed = usage.as_ref().map(Usage::feed);
    let refusals = Arc::new(Refusals::default());
    let log = tokio::spawn(log::follow(events, Arc::downgrade(&running), on_ended, feed, Arc::clone(&refusals)));
    let usage_metrics = usage.as_ref().map(Usage::metrics);
    let status = Arc::new(Status::default());
    let metrics =
        Arc::new(Metrics::new(Arc::clone(&running), Arc::clone(&status), Arc::clone(&issuing), usage_metrics));
    Ok(Started { running, metrics, status, issuing, refusals, usage, log })
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
    let level = log::start(&config.log).map_err(Failure::Run)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let (granted, wanted) = net::granted_receive_buffer();
    for advice in advice::machine(&config.relay.ports, granted, wanted) {
        tracing::warn!("{advice}");
    }
    let notifier =
        Arc::new(Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref()).map_err(|error| {
            Failure::Run(format!("NOTIFY_SOCKET: {error}; systemd sets it, don't set it yourself"))
        })?);
    let http = config.http.listen.as_ref().map(Bound::bind).transpose().map_err(|e| Failure::Run(e.to_string()))?;
    let public = config.http.public.iter().map(|listen| Bound::bind_public(*listen)).collect::<Result<Vec<_>, _>>();
    let public = public.map_err(|error| Failure::Run(error.to_string()))?;
    let http_addresses: Vec<SocketAddr> = http.iter().chain(&public).filter_map(Bound::address).collect();
    let mut signals = Signals::new()?;
    let kept = revocations::path_of(
        config.admin.revocations_file.as_deref(),
        std::env::var("STATE_DIRECTORY").ok().as_deref(),
    );
    let revoked = revocations::load(kept.as_deref(), clock::unix_seconds()).map_err(Failure::Run)?;
    let started = start(&config, &http_addresses, revoked, None)?;
    let (commands, mut asked) = command::channel();
    let admin = Arc::new(admin(&config, &started, kept, commands, level.clone()));
    let rest = Arc::new(Rest::new(
        &config,
        rest::uris_of(&started.running, &config),
        Arc::clone(&started.issuing),
        clock::now,
    ));
    let running = Arc::clone(&started.running);
    rest.shut_out(move |party, now| running.revocations().includes(party, now));
    serve_http(&config, &started, &rest, &admin, http, public);
    started.status.set(Phase::Ready);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), realm = %config.realm, workers = started.running.counters().count(), "ready");
    notifier.ready("serving");
    let variable = |name| std::env::var(name).ok();
    let (interval, pid) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    let watchdog = notify::watchdog(interval.as_deref(), pid.as_deref(), std::process::id());
    let following = tokio::spawn(Arc::clone(&notifier).follow(Arc::clone(&started.running), watchdog));
    let drain = Drain::new(
        Arc::clone(&started.running),
        Arc::clone(&started.status),
        Arc::clone(&notifier),
        config.drain.clone(),
    );
    let mut config = config;
    let mut was_terminated = false;
    let signal = loop {
        let (told, answer) = tokio::select! {
            told = signals.next() => (told, None),
            Some(command) = asked.recv() => match command {
                Command::Reload(answer) => (Told::Reload, Some(answer)),
                Command::Drain(answer) => {
                    let is_already_under_way = !drain.begin("admin API").await;
                    let sessions = started.running.usage().0.into();
                    // Whoever asked may have gone.
                    let _ = answer.send(DrainAnswer { is_already_under_way, sessions });
                    continue;
                }
            },
            _ = drain.over() => break None,
        };
        match told {
            Told::Reload => {
                notifier.reloading();
                if let Some(usage) = &started.usage {
                    usage.reopen();
                }
                let done = match reload(&config, &started.running, &level) {
                    Ok((new, done)) => {
                        started.running.renew_certificates(&new).await;
                        drain.reconfigure(&new.drain);
                        config = new;
                        rest.reconfigure(&config, rest::uris_of(&started.running, &config));
                        admin.reconfigure(&config);
                        Ok(done)
                    }
                    Err(error) => Err(error),
                };
                if let Some(answer) = answer {
                    // Whoever asked may have gone.
                    let _ = answer.send(done);
                }
                notifier.ready("serving");
            }
            // Only the first one: whoever sends another does not want to wait.
            Told::Stop(Told::TERMINATE) if drain.is_wanted_on_term() && !was_terminated => {
                was_terminated = true;
                drain.begin(Told::TERMINATE).await;
            }
            Told::Stop(name) => break Some(name),
        }
    };
    tracing::info!(signal, "stopping");
    // The stop is bounded by the unit's TimeoutStopSec; joining the workers must not look like a stuck one.
    following.abort();
    notifier.stopping();
    started.stop().await;
    Ok(())
}

fn hosts(config: &Config) -> AllowedHosts {
    AllowedHosts::new(config.http.hosts.iter().map(ToString::to_string))
}

fn admin(config: &Config, started: &Started, kept: Option<PathBuf>, commands: Commands, level: Level) -> Admin {
    let running = Arc::clone(&started.running);
    let parts = admin::Parts {
        revocations: Arc::new(Store::new(Arc::clone(&running), kept)),
        running,
        status: Arc::clone(&started.status),
        refusals: Arc::clone(&started.refusals),
        commands,
        level,
        clock: clock::now,
    };
    Admin::new(config, hosts(config), parts)
}

/// Everything on `http.listen`; credentials and `/healthz` alone on `http.public`.
fn serve_http(
    config: &Config,
    started: &Started,
    rest: &Arc<Rest>,
    admin: &Arc<Admin>,
    http: Option<Bound>,
    public: Vec<Bound>,
) {
    let hosts = hosts(config);
    if let Some(http) = http {
        let (status, metrics) = (Arc::clone(&started.status), Arc::clone(&started.metrics));
        let health = health::Health { status, metrics, hosts: hosts.clone() };
        tracing::info!(address = http.name(), "metrics and health");
        let routes =
            health::router(health).merge(rest::router(rest, &Door::Private(hosts))).merge(admin::router(admin));
        tokio::spawn(http.serve(routes, None));
    }
    for listener in public {
        tracing::info!(address = listener.name(), "credentials for everybody who has a key");
        let routes = health::public_router().merge(rest::router(rest, &Door::Public));
        tokio::spawn(listener.serve(routes, started.running.tls().cloned()));
    }
}

/// Takes over what can change without dropping a call; a wrong file changes nothing.
fn reload(old: &Config, running: &Running, level: &Level) -> Result<(Config, Reloaded), String> {
    let new = match old.reload(&Environment::of_process()) {
        Ok(new) => new,
        Err(error) => {
            tracing::warn!("reload: the configuration is wrong, the old one stays: {error}");
            return Err(format!("the configuration is wrong, the old one stays: {error}"));
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
        http: HttpConfig { issuing: new.http.issuing.clone(), ..old.http.clone() },
        admin: AdminConfig { revocations_file: old.admin.revocations_file.clone(), ..new.admin.clone() },
        accounting: AccountingConfig { interval: new.accounting.interval, ..old.accounting.clone() },
        ..new
    };
    if let Err(error) = running.reconfigure(&effective) {
        tracing::warn!("reload: {error}; the old settings stay");
        return Err(format!("{error}; the old settings stay"));
    }
    level.set(effective.log.level);
    tracing::info!(
        users = effective.auth.users.len(),
        secrets = effective.auth.secrets.len(),
        "reload: users, secrets, peers, lifetimes, limits and log level are taken over"
    );
    let needs_restart = needs_restart.into_iter().map(str::to_owned).collect();
    Ok((effective, Reloaded { changed: Vec::new(), needs_restart }))
}

/// What a signal asks for.
pub(crate) enum Told {
    Reload,
    Stop(&'static str),
}

impl Told {
    const TERMINATE: &'static str = "SIGTERM";
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
            _ = self.terminate.recv() => Told::Stop(Told::TERMINATE),
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
        }
    }
}
