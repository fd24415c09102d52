//! `serve`: check, bind, report, serve, stop, in this order. A wrong configuration never binds a port.

mod http_listeners;
pub mod reload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Weak};

use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;

use self::http_listeners::{BoundHttpListeners, HttpListeners};
use self::reload::{Follower, Reloader};
use crate::api;
use crate::api::admin::{self, Admin};
use crate::api::health::{self, Health};
use crate::api::host::AllowedHosts;
use crate::api::not_found::with_fallback;
use crate::api::rest::counts::IssueCounts;
use crate::api::rest::{self, Exposure, Rest};
use crate::clock;
use crate::config::Config;
use crate::failure::Failure;
use crate::net::passed::Passed;
use crate::net::{self, Running};
use crate::ops::advice;
use crate::ops::command::{self, Command, Commands, DrainAnswer, UpgradeReport};
use crate::ops::drain::Drain;
use crate::ops::log::{self, Level, OnEnded};
use crate::ops::metrics::Metrics;
use crate::ops::notify::{self, Notifier};
use crate::ops::refusals::Refusals;
use crate::ops::revocations::{self, Store};
use crate::ops::status::{Phase, Status};
use crate::ops::upgrades::Upgrades;
use crate::ops::usage::{self, Usage};
use crate::protocol::revocation::Revocations;

/// Where the process is that a new one takes over from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TakeOver {
    /// It started this one, and left it a channel under this number.
    Descriptor(i32),
    /// It listens at this absolute path.
    Socket(PathBuf),
}

impl FromStr for TakeOver {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text.parse(), Path::new(text)) {
            // The first three are those of every process.
            (Ok(number @ 3..), _) => Ok(Self::Descriptor(number)),
            (_, path) if path.is_absolute() => Ok(Self::Socket(path.to_owned())),
            _ => Err("expected an absolute path, or the number of an inherited descriptor"),
        }
    }
}

/// Runs the server until SIGTERM or SIGINT; with `take_over` it takes the clients of another process over first.
///
/// # Errors
/// [`Failure::Run`] with key, value and remedy when something can't be bound.
pub fn serve(config: Config, take_over: Option<&TakeOver>) -> Result<(), Failure> {
    if take_over.is_some() {
        return Err(Failure::Run("--take-over: this version can't take over from another process yet".to_owned()));
    }
    // Before there is a second thread.
    let passed = Passed::take().map_err(Failure::Run)?;
    passed.check(net::worker_count(&config), |place| config.has_listener(place)).map_err(Failure::Run)?;
    let runtime = runtime()?;
    let result = runtime.block_on(serve_until_signal(config, passed));
    end(runtime);
    result
}

/// How long a file that is being written, or a name that is being looked up, may keep the process at its end.
const LAST_TASKS: std::time::Duration = std::time::Duration::from_secs(1);

/// The end of the process, which waits for no disk and for no reader of the log.
pub(crate) fn end(runtime: tokio::runtime::Runtime) {
    runtime.shutdown_timeout(LAST_TASKS);
    log::flush();
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
    pub(crate) issuing: Arc<IssueCounts>,
    pub(crate) refusals: Arc<Refusals>,
    upgrades: Arc<Upgrades>,
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
    let sinks = usage::open(&config.accounting, &config.realm).map_err(Failure::Run)?;
    let running = net::start(config, http, passed, revocations);
    let (running, mut events) = running.map_err(|error| Failure::Run(error.to_string()))?;
    let running = Arc::new(running);
    for (transport, address) in running.listeners() {
        tracing::info!(%address, transport = transport.name(), "listening");
    }
    let issuing = Arc::new(IssueCounts::default());
    let usage = sinks.and_then(|sinks| Some(sinks.follow(events.record()?))).transpose().map_err(Failure::Run)?;
    if on_ended.is_some() {
        events.hear();
    }
    let refusals = Arc::new(Refusals::default());
    let log = tokio::spawn(log::follow(events, Arc::downgrade(&running), on_ended, Arc::clone(&refusals)));
    tokio::spawn(net::memory::follow(Arc::downgrade(&running)));
    let usage_metrics = usage.as_ref().map(Usage::metrics);
    let status = Arc::new(Status::default());
    status.set_relaying(running.has_relay_address());
    let metrics = Metrics::new(Arc::clone(&running), Arc::clone(&status), usage_metrics);
    let counts = Arc::clone(&issuing);
    let upgrades = Arc::new(Upgrades::new(config.upgrade.clone()));
    let of_upgrades = Arc::clone(&upgrades);
    let metrics = metrics.with(move |text| counts.publish(text)).with(api::publish);
    let metrics = Arc::new(metrics.with(move |text| of_upgrades.publish(text)));
    Ok(Started { running, metrics, status, issuing, refusals, upgrades, usage, log })
}

impl Started {
    /// Ends every allocation and waits until the last session's line and record are written.
    pub(crate) async fn stop(self) {
        self.status.set(Phase::Draining);
        let running = Arc::clone(&self.running);
        // Joining threads blocks; the runtime must go on, because the lines of the log are made on it.
        let _ = tokio::task::spawn_blocking(move || running.stop()).await;
        let _ = self.log.await;
        if let Some(usage) = self.usage {
            usage.finish().await;
        }
    }
}

async fn serve_until_signal(config: Config, passed: Passed) -> Result<(), Failure> {
    let level = start_log(&config)?;
    let notifier =
        Arc::new(Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref()).map_err(|error| {
            Failure::Run(format!("NOTIFY_SOCKET: {error}; systemd sets it, don't set it yourself"))
        })?);
    if passed.count() > 0 {
        tracing::info!(sockets = passed.count(), "using the sockets that were passed by the service manager");
    }
    let http = BoundHttpListeners::bind(&config.http, &passed).map_err(|error| Failure::Run(error.to_string()))?;
    let mut signals = Signals::new()?;
    let kept = revocations::path_of(
        config.admin.revocations_file.as_deref(),
        std::env::var("STATE_DIRECTORY").ok().as_deref(),
    );
    let revoked = revocations::load(kept.as_deref()).map_err(Failure::Run)?;
    let started = start(&config, &http.addresses(), passed, revoked, None)?;
    for (key, text) in advice::reach(&config, &started.running.relay_addresses().collect::<Vec<_>>()) {
        tracing::warn!("{key}: {text}");
    }
    let (commands, mut asked) = command::channel();
    let hosts = AllowedHosts::default();
    let admin = Arc::new(admin(&config, &started, hosts.clone(), kept, commands, level.clone()));
    let rest = rest(&config, &started);
    let mut http_listeners = http_listeners(&started, &rest, &admin, hosts);
    http_listeners.serve(&config.http, http, started.running.tls().as_ref());
    started.status.set(Phase::Ready);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), realm = %config.realm, workers = started.running.counters().count(), "ready");
    let waits = if started.running.has_relay_address() { "" } else { notify::WAITS };
    notifier.ready(&format!("serving{waits}"));
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
    let (draining, upgrades) = (Arc::clone(&drain), Arc::clone(&started.upgrades));
    let followers: Vec<Follower> = vec![
        Box::new(move |config, running| rest.reconfigure(config, rest::uris_of(running, config))),
        Box::new(move |config, _| admin.reconfigure(config)),
        Box::new(move |config, _| draining.reconfigure(&config.drain)),
        Box::new(move |config, _| upgrades.reconfigure(&config.upgrade)),
        Box::new(|config, _| log::reconfigure(&config.log)),
    ];
    let running = Arc::clone(&started.running);
    let reloader = Arc::new(Reloader::new(running, level, Arc::clone(&notifier), followers, http_listeners));
    let status = Arc::clone(&started.status);
    tokio::spawn(follow_addresses(&started.running, status, Arc::downgrade(&reloader)));
    let signal = serve_until_stopped(&started, &mut signals, &mut asked, &drain, &reloader).await;
    tracing::info!(signal, "stopping");
    // The stop is bounded by the unit's TimeoutStopSec; joining the workers must not look like a stuck one.
    following.abort();
    notifier.stopping();
    started.stop().await;
    Ok(())
}

/// Starts the log, with what an operator should look at first.
fn start_log(config: &Config) -> Result<Level, Failure> {
    let level = log::start(&config.log).map_err(Failure::Run)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let (granted, wanted) = net::granted_receive_buffer();
    for advice in advice::machine(granted, wanted) {
        tracing::warn!("{advice}");
    }
    Ok(level)
}

/// The credential API, which refuses the same users as the relay.
fn rest(config: &Config, started: &Started) -> Arc<Rest> {
    let uris = rest::uris_of(&started.running, config);
    let rest = Rest::new(config, uris, Arc::clone(&started.issuing), clock::now);
    let running = Arc::clone(&started.running);
    rest.shut_out(move |party, now| running.revocations().includes(party, now));
    Arc::new(rest)
}

/// What is served on the HTTP listeners.
fn http_listeners(started: &Started, rest: &Arc<Rest>, admin: &Arc<Admin>, hosts: AllowedHosts) -> HttpListeners {
    let (status, metrics) = (Arc::clone(&started.status), Arc::clone(&started.metrics));
    let private = health::router(Health { status, metrics, hosts: hosts.clone() })
        .merge(rest::router(rest, &Exposure::Private(hosts.clone())))
        .merge(admin::router(admin));
    let private = with_fallback(private, health::PATHS.into_iter().chain(rest::paths()).chain(admin::paths()));
    let public = health::public_router().merge(rest::router(rest, &Exposure::Public));
    let public = with_fallback(public, health::PATHS.into_iter().take(1).chain(rest::paths()));
    HttpListeners::new(private, public, hosts)
}

/// Does what signals and operators ask, in one order. Returns the signal that ends the server, or `None` when a drain is
/// over.
async fn serve_until_stopped(
    started: &Started,
    signals: &mut Signals,
    asked: &mut mpsc::Receiver<Command>,
    drain: &Arc<Drain>,
    reloader: &Arc<Reloader>,
) -> Option<&'static str> {
    let mut was_terminated = false;
    loop {
        let (signal, answer) = tokio::select! {
            signal = signals.next() => (signal, None),
            Some(command) = asked.recv() => match command {
                Command::Reload(answer) => (Signal::Reload, Some(answer)),
                Command::Drain(answer) => {
                    let is_already_under_way = !drain.begin("admin API").await;
                    let sessions = started.running.usage().0.into();
                    let ends_in_s = drain.progress().and_then(|progress| progress.seconds_left());
                    // The asker may have gone.
                    let _ = answer.send(DrainAnswer { is_already_under_way, sessions, ends_in_s });
                    continue;
                }
                Command::Upgrade(_, answer) => {
                    let report = UpgradeReport::refused("not built");
                    started.upgrades.ended(report.result);
                    // The asker may have gone.
                    let _ = answer.send(report);
                    continue;
                }
            },
            _ = drain.over() => return None,
        };
        match signal {
            Signal::Reload => {
                if let Some(usage) = &started.usage {
                    usage.reopen();
                }
                let reloader = Arc::clone(reloader);
                // One after the other; a disk that hangs must not keep a signal waiting.
                tokio::spawn(async move {
                    // The log has what came of it.
                    let done = reloader.reload().await;
                    if let Some(answer) = answer {
                        // The asker may have gone.
                        let _ = answer.send(done.map(|report| report.into()));
                    }
                });
            }
            // Only the first one: a second one means that the sender does not want to wait.
            Signal::Stop(Signal::TERMINATE) if drain.is_wanted_on_term() && !was_terminated => {
                was_terminated = true;
                drain.begin(Signal::TERMINATE).await;
            }
            Signal::Stop(name) => return Some(name),
        }
    }
}

/// Follows this machine's addresses; readiness and the URIs of credentials follow them.
fn follow_addresses(
    running: &Arc<Running>,
    status: Arc<Status>,
    reloader: Weak<Reloader>,
) -> impl Future<Output = ()> + Send + 'static {
    net::follow_addresses(Arc::downgrade(running), move |running| {
        status.set_relaying(running.has_relay_address());
        if let Some(reloader) = reloader.upgrade() {
            tokio::spawn(async move { reloader.addresses_changed().await });
        }
    })
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
    let store = Arc::new(Store::new(Arc::clone(&running), kept));
    tokio::spawn(revocations::sweep_now_and_then(Arc::downgrade(&store)));
    let parts = admin::AdminParts {
        revocations: store,
        running,
        status: Arc::clone(&started.status),
        usage: started.usage.as_ref().map(Usage::metrics),
        refusals: Arc::clone(&started.refusals),
        commands,
        level,
        clock: clock::now,
    };
    Admin::new(config, hosts, parts)
}

/// What a signal asks for.
pub(crate) enum Signal {
    Reload,
    Stop(&'static str),
}

impl Signal {
    const TERMINATE: &'static str = "SIGTERM";
}

/// SIGHUP, SIGTERM and SIGINT.
pub(crate) struct Signals {
    hangup: unix::Signal,
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| unix::signal(kind).map_err(|error| Failure::Run(format!("can't listen for signals: {error}")));
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// The next of them.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.terminate.recv() => Signal::Stop(Signal::TERMINATE),
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
        }
    }
}
