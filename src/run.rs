//! `serve`: check, bind, report, serve, stop, in this order. A wrong configuration never binds a port.

mod http_listeners;
mod inherited;
mod kept;
mod ledger_note;
mod out_of_memory;
pub mod reload;
mod revive;
mod signals;
mod successors;
mod supervise;
pub mod take_over;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use self::http_listeners::{BoundHttpListeners, HttpListeners};
use self::inherited::Inherited;
use self::kept::KeptPaths;
use self::reload::{Follower, Reloader};
use self::revive::Recovery;
pub(crate) use self::signals::{Signal, Signals};
use self::successors::Successors;
use self::supervise::Death;
pub use self::take_over::TakeOver;
use self::take_over::TakenOver;
use self::upgrade::{Confirmed, Done, LastWords, Leaving, Program, Upgrader};
use crate::acme::{self, Acme};
use crate::api;
use crate::api::admin::{self, Admin};
use crate::api::connectivity;
use crate::api::health::{self, Health};
use crate::api::host::AllowedHosts;
use crate::api::not_found::with_fallback;
use crate::api::rest::counts::IssueCounts;
use crate::api::rest::{self, Exposure, Rest};
use crate::api::revoker::Revoker;
use crate::clock;
use crate::config::Config;
use crate::config::checked::LogFormat;
use crate::config::upgrade::UpgradeConfig;
use crate::failure::{self, Failure};
use crate::net::ledger::Ledger;
use crate::net::passed::Passed;
use crate::net::upgrade_messages::UpgradeTimes;
use crate::net::{self, EventReceivers, KeptSets, Running};
use crate::ops::advice;
use crate::ops::alternates::Alternates;
use crate::ops::command::{self, Command, Commands, DrainAnswer, UpgradeRequest};
use crate::ops::drain::Drain;
use crate::ops::external;
use crate::ops::limits::LimitStore;
use crate::ops::log::{self, Level, OnEnded};
use crate::ops::metrics::Metrics;
use crate::ops::notify::{self, Notifier};
use crate::ops::refusals::Refusals;
use crate::ops::revocations::{self, Store};
use crate::ops::status::{Phase, Status};
use crate::ops::upgrades::Upgrades;
use crate::ops::usage::chain::Code;
use crate::ops::usage::{self, Sinks, Usage};

/// Runs the server until SIGTERM or SIGINT, or until another process has its sessions. `from` is a process to take over from.
///
/// # Errors
/// [`Failure::Run`] with key, value and remedy when something can't be bound.
pub fn serve(config: Config, from: Option<&TakeOver>) -> Result<(), Failure> {
    if config.supervise {
        return supervise::supervise(config, from);
    }
    // Before there is a second thread.
    let passed = Passed::take().map_err(Failure::Run)?;
    let program = Program::of_process(config.source.file.as_deref()).ok();
    serve_from(config, from.map_or(Origin::Fresh, Origin::TakeOver), passed, program, None)
}

/// What a server begins with.
enum Origin<'a> {
    /// Nothing.
    Fresh,
    /// What a process has that is still there.
    TakeOver(&'a TakeOver),
    /// What a process left that was killed.
    Recovery(Box<Recovery>),
    /// Nothing, though there was a process that was killed.
    Anew { death: Death, why: String },
}

/// What a server knows of its supervisor.
struct Supervised {
    ledger: Arc<Ledger>,
    /// Its process id.
    supervisor: u32,
}

/// Serves in this process.
fn serve_from(
    config: Config,
    origin: Origin<'_>,
    passed: Passed,
    program: Option<Program>,
    supervised: Option<Supervised>,
) -> Result<(), Failure> {
    let ledger = supervised.as_ref().map(|of| Arc::clone(&of.ledger));
    let is_first = matches!(origin, Origin::Fresh | Origin::TakeOver(_));
    if is_first {
        // A reload may have taken listeners away since.
        passed.check(net::worker_count(&config), |place| config.has_listener(place)).map_err(Failure::Run)?;
    }
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut config = config;
        if matches!(origin, Origin::Fresh | Origin::Anew { .. }) {
            external::at_start(&mut config).await;
        }
        let level = start_log(&config)
            .or_else(|failure| if is_first { Err(failure) } else { start_any_log(&config, &failure) })?;
        let main = supervised.as_ref().map_or_else(std::process::id, |of| of.supervisor);
        let notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref(), main);
        let notifier = Arc::new(notifier.map_err(|error| {
            Failure::Run(format!("NOTIFY_SOCKET: {error}; systemd sets it, don't set it yourself"))
        })?);
        log::file_limit(net::raise_file_limit());
        if supervised.is_some() {
            supervise::warn_if_unheard();
        }
        // Before calls come: a signal that is sent while this process takes over is followed when it serves.
        let signals = Signals::new()?;
        let begun = match origin {
            Origin::Fresh => begin(config, passed, ledger)?,
            Origin::Anew { death, why } => {
                tracing::error!(
                    signal = death.signal,
                    why,
                    "the server was killed, and its calls can't be gone on with: it starts anew"
                );
                let begun = begin(config, passed, ledger)?;
                begun.started.upgrades.recovered(1, UpgradeTimes::default());
                begun
            }
            Origin::TakeOver(from) => match from.connect().map_err(Failure::Run)? {
                None => begin(config, passed, ledger)?,
                // It waits for another process; nothing else is to be done here meanwhile.
                Some(old) => match tokio::task::block_in_place(|| take_over::take_over(config, old, ledger))? {
                    Some(taken) => go_on(taken)?,
                    // Another process only wanted to know whether this one could take over.
                    None => return Ok(()),
                },
            },
            Origin::Recovery(recovery) => {
                // What is used of them came with the rest; a supervisor may need them once more.
                std::mem::forget(passed);
                let taken = tokio::task::block_in_place(|| recovery.go_on(config, ledger));
                go_on(taken.unwrap_or_else(|failure| {
                    tracing::error!(%failure, "what a killed server left can't be gone on with");
                    // The supervisor starts a server that does not try.
                    failure::abort()
                }))?
            }
        };
        serve_until_signal(begun, signals, level, notifier, program, supervised).await
    });
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
    acme: Arc<Acme>,
    alternates: Arc<Alternates>,
    upgrades: Arc<Upgrades>,
    usage: Option<Usage>,
    log: tokio::task::JoinHandle<()>,
}

/// Binds and starts the workers; `on_ended` hears of each ended session besides the log.
pub(crate) fn start(
    config: &Config,
    http: &[SocketAddr],
    passed: Passed,
    kept: KeptSets,
    on_ended: Option<OnEnded>,
    ledger: Option<Arc<Ledger>>,
) -> Result<Started, Failure> {
    let sinks = usage::open(&config.accounting, &config.realm).map_err(Failure::Run)?;
    let running = net::start(config, http, passed, kept, ledger);
    let (running, events) = running.map_err(|error| Failure::Run(error.to_string()))?;
    let running = Arc::new(running);
    Started::follow(running, events, sinks, on_ended, config.upgrade.clone())
}

impl Started {
    /// Follows a relay whose workers run: its log, its usage records, its memory.
    fn follow(
        running: Arc<Running>,
        mut events: EventReceivers,
        sinks: Option<Sinks>,
        on_ended: Option<OnEnded>,
        upgrade: UpgradeConfig,
    ) -> Result<Self, Failure> {
        for (transport, address) in running.listeners() {
            tracing::info!(%address, transport = transport.name(), "listening");
        }
        let issuing = Arc::new(IssueCounts::default());
        let usage = sinks.and_then(|sinks| Some(sinks.follow(events.record()?))).transpose().map_err(Failure::Run)?;
        if usage.is_none() {
            events.record_nothing();
        }
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
        let upgrades = Arc::new(Upgrades::new(upgrade));
        let of_upgrades = Arc::clone(&upgrades);
        let metrics = metrics.with(move |text| counts.publish(text)).with(api::publish);
        let relay = Arc::downgrade(&running);
        let acme = Acme::start(move || relay.upgrade()?.tls());
        let of_acme = Arc::clone(&acme);
        let alternates = Alternates::start(&running);
        let of_alternates = Arc::clone(&alternates);
        let metrics = metrics.with(move |text| of_alternates.publish(text));
        let relay = Arc::downgrade(&running);
        let not_passed = move || relay.upgrade().map_or(0, |running| running.streams_not_passed());
        let metrics = metrics.with(move |text| of_upgrades.publish(text, not_passed()));
        let metrics = Arc::new(metrics.with(move |text| of_acme.publish(text)));
        Ok(Self { running, metrics, status, issuing, refusals, acme, alternates, upgrades, usage, log })
    }

    /// Waits until the last session's line and record are written; the workers must have ended. Gives the code of the last
    /// signed record.
    async fn finish(self) -> Option<Code> {
        let _ = self.log.await;
        match self.usage {
            Some(usage) => usage.finish().await,
            None => None,
        }
    }

    /// Ends every allocation and waits until the last session's line and record are written.
    pub(crate) async fn stop(self) {
        self.status.set(Phase::Draining);
        let running = Arc::clone(&self.running);
        // Joining threads blocks; the runtime must go on, because the lines of the log are made on it.
        let _ = tokio::task::spawn_blocking(move || running.stop()).await;
        self.finish().await;
    }
}

/// A relay that serves clients, and what is not served yet.
struct Begun {
    config: Config,
    started: Started,
    http: BoundHttpListeners,
    /// Where its revocations and limits are kept.
    kept: KeptPaths,
    /// From another process.
    inherited: Option<Inherited>,
}

/// Binds everything and starts the workers of a fresh server.
fn begin(config: Config, passed: Passed, ledger: Option<Arc<Ledger>>) -> Result<Begun, Failure> {
    if passed.count() > 0 {
        tracing::info!(sockets = passed.count(), "using the sockets that were passed by the service manager");
    }
    let http = BoundHttpListeners::bind(&config.http, &passed).map_err(|error| Failure::Run(error.to_string()))?;
    let kept = KeptPaths::of(&config);
    let sets = kept.load(&config)?;
    let started = start(&config, &http.addresses(), passed, sets, None, ledger)?;
    Ok(Begun { config, started, http, kept, inherited: None })
}

/// Goes on with what another process had.
fn go_on(taken: TakenOver) -> Result<Begun, Failure> {
    let TakenOver { config, running, events, http, metrics, own_metrics, chain, passage, draining } = taken;
    let mut sinks = usage::open(&config.accounting, &config.realm).unwrap_or_else(|error| {
        tracing::error!("{error}; no usage records are written until the server is restarted");
        None
    });
    if let (Some(sinks), Some(last)) = (&mut sinks, chain) {
        sinks.go_on_after(last);
    }
    let kept = KeptPaths::of(&config);
    kept.go_on(&config, &running, passage.recovered.is_some());
    let started = Started::follow(running, events, sinks, None, config.upgrade.clone())?;
    Ok(Begun { config, started, http, kept, inherited: Some(Inherited { metrics, own_metrics, passage, draining }) })
}

async fn serve_until_signal(
    begun: Begun,
    mut signals: Signals,
    level: Level,
    notifier: Arc<Notifier>,
    program: Option<Program>,
    supervised: Option<Supervised>,
) -> Result<(), Failure> {
    let Begun { config, started, http, kept, inherited } = begun;
    let has_taken_over = inherited.is_some();
    for (key, text) in advice::reach(&config, &started.running.relay_addresses().collect::<Vec<_>>()) {
        tracing::warn!("{key}: {text}");
    }
    let (commands, mut asked) = command::channel();
    let hosts = AllowedHosts::default();
    let limits = Arc::new(LimitStore::new(Arc::clone(&started.running), kept.limits));
    let revoker = revoker(&started, kept.revocations);
    let admin =
        Arc::new(admin(&config, &started, hosts.clone(), (Arc::clone(&revoker), limits), commands, level.clone()));
    let rest = rest(&config, &started, revoker);
    let mut http_listeners = http_listeners(&started, &rest, &admin, hosts);
    if let Some(inherited) = &inherited {
        inherited.go_on_counting(&started);
    }
    // Before the first answer over HTTP: the clients' listeners are open, and an upgrade is no moment of "starting".
    let is_draining = inherited.as_ref().is_some_and(|inherited| inherited.draining.is_some());
    started.status.set(if is_draining { Phase::Draining } else { Phase::Ready });
    http_listeners.serve(&config.http, http, started.running.tls().as_ref());
    let following =
        tokio::spawn(Arc::clone(&notifier).follow(Arc::clone(&started.running), watchdog(supervised.as_ref())));
    let (running, status) = (Arc::clone(&started.running), Arc::clone(&started.status));
    let drain = Drain::new(running, status, Arc::clone(&notifier), config.drain.clone());
    if let Some(since) = inherited.and_then(|inherited| inherited.draining) {
        drain.go_on(since);
    }
    let (draining, upgrades) = (Arc::clone(&drain), Arc::clone(&started.upgrades));
    started.acme.reconfigure(config.tls.acme.as_ref());
    let acme = Arc::clone(&started.acme);
    let followers: Vec<Follower> = vec![
        Box::new(move |config, running| rest.reconfigure(config, rest::uris_of(running, config))),
        Box::new(move |config, _| admin.reconfigure(config)),
        Box::new(move |config, _| draining.reconfigure(&config.drain)),
        Box::new(move |config, _| upgrades.reconfigure(&config.upgrade)),
        Box::new(move |config, _| acme.reconfigure(config.tls.acme.as_ref())),
        Box::new(|config, _| log::reconfigure(&config.log)),
    ];
    let running = Arc::clone(&started.running);
    let reloader = Arc::new(Reloader::new(running, level, Arc::clone(&notifier), followers, http_listeners));
    follow_addresses(&started.running, &started.status, &reloader);
    let upgrader = Upgrader::new(program, &started, Arc::clone(&drain), Arc::clone(&reloader), Arc::clone(&notifier));
    let successors = Successors::invite(&config, &upgrader, has_taken_over)?;
    if let Some(supervised) = &supervised {
        supervise::keep(Arc::clone(&supervised.ledger), &started, Arc::clone(&upgrader)).await;
    }
    let generation = started.upgrades.generation();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), realm = %config.realm, workers = started.running.counters().count(), generation, "ready");
    let waits = if started.running.has_relay_address() { "" } else { notify::WAITS };
    notifier.ready(&format!("serving{waits}"));
    let end = serve_until_stopped(&started, &mut signals, &mut asked, &drain, &reloader, &upgrader).await;
    match end {
        End::Signal(signal) => {
            // The stop is bounded by the unit's TimeoutStopSec; joining the workers must not look like a stuck one.
            following.abort();
            started.running.set_recoverable(false);
            tracing::info!(signal, "stopping");
            notifier.stopping();
            started.stop().await;
        }
        End::HandedOver(confirmed) => {
            // An order under way ends here, and the new process makes its own.
            started.acme.leave();
            successors.close();
            let Some((leaving, last)) = finish_for(confirmed, started).await else { return Ok(()) };
            leave(leaving, last, notifier, following, &mut signals).await;
            return Ok(());
        }
    }
    successors.close();
    Ok(())
}

/// How long requests under way over HTTP may take before the process ends.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// How long TLS handshakes under way may take then.
const LAST_HANDSHAKES: Duration = Duration::from_secs(1);
const HANDSHAKES_LOOK: Duration = Duration::from_millis(10);

/// Does all that must be done before another process goes on: what is under way over HTTP is answered, the last record is written.
async fn finish_for(confirmed: Box<Confirmed>, started: Started) -> Option<(Leaving, LastWords)> {
    confirmed.leave_listeners();
    let metrics = Arc::clone(&started.metrics);
    let recovery_gap_us = started.upgrades.times().recovery_gap_us;
    // Those who shake hands when it is over are passed on to the new process.
    let until = tokio::time::Instant::now() + LAST_HANDSHAKES;
    while started.running.handshakes_under_way() > 0 && tokio::time::Instant::now() < until {
        tokio::time::sleep(HANDSHAKES_LOOK).await;
    }
    let before_end = metrics.render();
    // Joining threads blocks.
    let leaving = tokio::task::spawn_blocking(move || (*confirmed).end_workers()).await;
    let chain = started.finish().await.map(|code| code.to_string());
    api::requests_answered(LAST_ANSWERS).await;
    // Threads that have ended show no processor time any more; of two samples of a series the last one counts.
    Some((leaving.ok()?, LastWords { chain, metrics: before_end + &metrics.render(), recovery_gap_us }))
}

/// Ends a process whose sessions are another one's; one that the other did not come from waits for SIGTERM.
async fn leave(
    leaving: Leaving,
    last: LastWords,
    notifier: Arc<Notifier>,
    following: tokio::task::JoinHandle<()>,
    signals: &mut Signals,
) {
    let (is_of_child, is_stopped) = (leaving.is_of_child(), leaving.is_stopped());
    let Done { to, pid, .. } = leaving.done.clone();
    let main = pid.filter(|_| is_of_child);
    if main.is_some() {
        // The manager takes nothing more from this process when another one is the main one.
        following.abort();
    }
    // Waits for the new process and for the manager.
    let told = tokio::task::spawn_blocking(move || {
        if let Some(pid) = main {
            notifier.main_process(pid);
        }
        let held = leaving.say_goodbye(last);
        match main {
            Some(_) => notifier.wait_until_heard(),
            None => notifier.handed_over(),
        }
        held
    });
    let _held = told.await;
    if is_of_child {
        tracing::info!(to, pid, "this process ends; its sessions are the new one's");
        return;
    }
    if is_stopped {
        tracing::info!(to, "this process ends, as it was asked to; its sessions are the new one's");
        return;
    }
    tracing::info!(to, "the sessions are the new process's; this one waits for SIGTERM");
    while let Signal::Reload = signals.next().await {}
}

/// How often the service manager's watchdog wants to be fed.
fn watchdog(supervised: Option<&Supervised>) -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    let (interval, pid) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    // The manager knows the supervisor; what it watches is this process.
    let own = supervised.map_or_else(std::process::id, |of| of.supervisor);
    notify::watchdog(interval.as_deref(), pid.as_deref(), own)
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

/// A log on standard error, for a server that goes on for one that was killed: calls are worth more than where its lines go.
fn start_any_log(config: &Config, failure: &Failure) -> Result<Level, Failure> {
    let mut config = config.clone();
    config.log.format = LogFormat::Auto;
    let level = start_log(&config)?;
    tracing::error!(%failure, "the log goes to standard error until the server is restarted");
    Ok(level)
}

/// The credential API, which refuses the same users as the relay.
fn rest(config: &Config, started: &Started, revoker: Arc<Revoker>) -> Arc<Rest> {
    let uris = rest::uris_of(&started.running, config);
    let rest = Rest::new(config, uris, Arc::clone(&started.issuing), clock::now);
    let running = Arc::clone(&started.running);
    rest.shut_out(move |party, now| running.revocations().includes(party, now));
    rest.revoke_with(revoker);
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
    let public = public.merge(connectivity::public_router()).merge(acme::router(started.acme.tokens()));
    let public =
        with_fallback(public, health::PATHS.into_iter().take(1).chain(rest::paths()).chain([connectivity::PATH]));
    HttpListeners::new(private, public, Arc::clone(rest), hosts, Arc::clone(started.running.http_front()))
}

/// How a server ends.
enum End {
    /// By a signal, or, without one, because a drain is over.
    Signal(Option<&'static str>),
    /// Another process has its sessions.
    HandedOver(Box<Confirmed>),
}

/// Does what signals and operators ask, in one order.
async fn serve_until_stopped(
    started: &Started,
    signals: &mut Signals,
    asked: &mut mpsc::Receiver<Command>,
    drain: &Arc<Drain>,
    reloader: &Arc<Reloader>,
    upgrader: &Arc<Upgrader>,
) -> End {
    let mut was_terminated = false;
    loop {
        let (signal, answer) = tokio::select! {
            signal = signals.next() => (signal, None),
            Some(command) = asked.recv() => match command {
                Command::Reload(answer) => (Signal::Reload, Some(answer)),
                Command::Upgrade(request, answer) => {
                    upgrader.begin(request, Some(answer));
                    continue;
                }
                Command::Drain(answer) => {
                    if let Some(confirmed) = upgrader.wait_for_end().await {
                        // Its asker hears that this process ends, and asks the new one.
                        return End::HandedOver(confirmed);
                    }
                    let is_already_under_way = !drain.begin("admin API").await;
                    let sessions = started.running.usage().0.into();
                    let ends_in_s = drain.progress().and_then(|progress| progress.seconds_left());
                    // The asker may have gone.
                    let _ = answer.send(DrainAnswer { is_already_under_way, sessions, ends_in_s });
                    continue;
                }
            },
            confirmed = upgrader.confirmed() => return End::HandedOver(confirmed),
            _ = drain.over() => return End::Signal(None),
        };
        match signal {
            Signal::Reload if answer.is_none() && upgrader.is_wanted_on_reload() => {
                upgrader.begin(UpgradeRequest::default(), None);
            }
            Signal::Reload => {
                if let Some(mut confirmed) = upgrader.wait_for_end().await {
                    // It may have read the configuration before that was changed. An operator asks it by himself.
                    if answer.is_none() {
                        confirmed.pass_on("SIGHUP");
                    }
                    return End::HandedOver(confirmed);
                }
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
            Signal::Stop(name) => {
                // While another process may have the sessions nothing can be stopped here.
                if let Some(mut confirmed) = upgrader.wait_for_end().await {
                    confirmed.pass_on(name);
                    return End::HandedOver(confirmed);
                }
                // Only the first one: a second one means that the sender does not want to wait.
                if name != Signal::TERMINATE || was_terminated || !drain.is_wanted_on_term() {
                    return End::Signal(Some(name));
                }
                was_terminated = true;
                drain.begin(Signal::TERMINATE).await;
            }
        }
    }
}

/// Follows this machine's addresses, its own ones and the public ones; readiness and the URIs of credentials follow them.
fn follow_addresses(running: &Arc<Running>, status: &Arc<Status>, reloader: &Arc<Reloader>) {
    let changed = || {
        let (status, reloader) = (Arc::clone(status), Arc::downgrade(reloader));
        move |running: &Arc<Running>| {
            status.set_relaying(running.has_relay_address());
            if let Some(reloader) = reloader.upgrade() {
                tokio::spawn(async move { reloader.addresses_changed().await });
            }
        }
    };
    tokio::spawn(net::follow_addresses(Arc::downgrade(running), changed()));
    tokio::spawn(external::follow(Arc::downgrade(running), changed()));
}

/// What revokes, with the file that keeps it.
fn revoker(started: &Started, kept: Option<std::path::PathBuf>) -> Arc<Revoker> {
    let running = Arc::clone(&started.running);
    let store = Arc::new(Store::new(Arc::clone(&running), kept));
    tokio::spawn(revocations::sweep_now_and_then(Arc::downgrade(&store)));
    Arc::new(Revoker::new(running, store, clock::now))
}

fn admin(
    config: &Config,
    started: &Started,
    hosts: AllowedHosts,
    (revoker, limits): (Arc<Revoker>, Arc<LimitStore>),
    commands: Commands,
    level: Level,
) -> Admin {
    let parts = admin::AdminParts {
        revoker,
        limits,
        running: Arc::clone(&started.running),
        status: Arc::clone(&started.status),
        usage: started.usage.as_ref().map(Usage::metrics),
        refusals: Arc::clone(&started.refusals),
        acme: Arc::clone(&started.acme),
        alternates: Arc::clone(&started.alternates),
        commands,
        level,
        clock: clock::now,
    };
    Admin::new(config, hosts, parts)
}
