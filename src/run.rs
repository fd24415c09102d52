//! `serve`: check, bind, report, serve, stop, in this order. A wrong configuration never binds a port.

mod faces;
pub mod reload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::faces::{BoundFaces, Faces};
use self::reload::{Follower, Reloader};
use crate::api::admin::{self, Admin};
use crate::api::health::{self, Health};
use crate::api::host::AllowedHosts;
use crate::api::rest::counts::Counts;
use crate::api::rest::{self, Door, Rest};
use crate::cli::Failure;
use crate::config::Config;
use crate::net::passed::Passed;
use crate::net::{self, Running, clock};
use crate::ops::advice;
use crate::ops::command::{self, Command, Commands, DrainAnswer};
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
    // Before there is a second thread.
    let passed = Passed::take().map_err(Failure::Run)?;
    passed.check(net::worker_count(&config), |place| config.has_listener(place)).map_err(Failure::Run)?;
    runtime()?.block_on(serve_until_told(config, passed))
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
    passed: Passed,
    revocations: Revocations,
    on_ended: Option<OnEnded>,
) -> Result<Started, Failure> {
    log::file_limit(net::raise_file_limit());
    let usage = usage::start(&config.accounting, &config.realm).map_err(Failure::Run)?;
    let running = net::start(config, http, passed, revocations);
    let (running, events) = running.map_err(|error| Failure::Run(error.to_string()))?;
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
    if feed.is_none() && on_ended.is_none() {
        events.for_the_log_alone();
    }
    let refusals = Arc::new(Refusals::default());
    let log = tokio::spawn(log::follow(events, Arc::downgrade(&running), on_ended, feed, Arc::clone(&refusals)));
    tokio::spawn(net::memory::follow(Arc::downgrade(&running)));
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

async fn serve_until_told(config: Config, passed: Passed) -> Result<(), Failure> {
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
    if passed.count() > 0 {
        tracing::info!(sockets = passed.count(), "taking over sockets that were passed");
    }
    let http = BoundFaces::bind(&config.http, &passed).map_err(|error| Failure::Run(error.to_string()))?;
    let mut signals = Signals::new()?;
    let kept = revocations::path_of(
        config.admin.revocations_file.as_deref(),
        std::env::var("STATE_DIRECTORY").ok().as_deref(),
    );
    let revoked = revocations::load(kept.as_deref(), clock::unix_seconds()).map_err(Failure::Run)?;
    let started = start(&config, &http.addresses(), passed, revoked, None)?;
    let hosts = AllowedHosts::default();
    let (commands, mut asked) = command::channel();
    let admin = Arc::new(admin(&config, &started, hosts.clone(), kept, commands, level.clone()));
    let rest = Arc::new(Rest::new(
        &config,
        rest::uris_of(&started.running, &config),
        Arc::clone(&started.issuing),
        clock::now,
    ));
    let running = Arc::clone(&started.running);
    rest.shut_out(move |party, now| running.revocations().includes(party, now));
    let (status, metrics) = (Arc::clone(&started.status), Arc::clone(&started.metrics));
    let private = health::router(Health { status, metrics, hosts: hosts.clone() })
        .merge(rest::router(&rest, &Door::Private(hosts.clone())))
        .merge(admin::router(&admin));
    let public = health::public_router().merge(rest::router(&rest, &Door::Public));
    let mut faces = Faces::new(private, public, hosts);
    faces.serve(&config.http, http, started.running.tls().as_ref());
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
    let draining = Arc::clone(&drain);
    let followers: Vec<Follower> = vec![
        Box::new(move |config, running| rest.reconfigure(config, rest::uris_of(running, config))),
        Box::new(move |config, _| admin.reconfigure(config)),
        Box::new(move |config, _| draining.reconfigure(&config.drain)),
    ];
    let running = Arc::clone(&started.running);
    let reloader = Reloader::new(running, level, Arc::clone(&notifier), followers, config, faces);
    let mut was_terminated = false;
    let signal = loop {
        let (told, answer) = tokio::select! {
            told = signals.next() => (told, None),
            Some(command) = asked.recv() => match command {
                Command::Reload(answer) => (Told::Reload, Some(answer)),
                Command::Drain(answer) => {
                    let is_already_under_way = !drain.begin("admin API").await;
                    let sessions = started.running.usage().0.into();
                    let ends_in_s = drain.progress().and_then(|progress| progress.seconds_left());
                    // Whoever asked may have gone.
                    let _ = answer.send(DrainAnswer { is_already_under_way, sessions, ends_in_s });
                    continue;
                }
            },
            _ = drain.over() => break None,
        };
        match told {
            Told::Reload => {
                if let Some(usage) = &started.usage {
                    usage.reopen();
                }
                // The log has what came of it.
                let done = reloader.reload().await;
                if let Some(answer) = answer {
                    // Whoever asked may have gone.
                    let _ = answer.send(done.map(|report| report.into()));
                }
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

fn admin(
    config: &Config,
    started: &Started,
    hosts: AllowedHosts,
    kept: Option<PathBuf>,
    commands: Commands,
    level: Level,
) -> Admin {
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
    Admin::new(config, hosts, parts)
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
