//! The log: a line per ended session, within a user's limit; one summary line per window for refusals.
//!
//! Lines are made where something happens and written by a thread of their own ([`output`]): neither a worker nor the
//! control runtime ever waits for a terminal, a pipe or the journal.

pub(super) mod output;
mod sessions;

use std::io::{self, IsTerminal as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

pub use self::sessions::left_out as session_lines_left_out;

use self::output::{LineClass, LineMaker, Output, Queue, SESSION_TARGET};
use self::sessions::Minute;
use crate::clock;
use crate::config::checked::{LogConfig, LogFormat, LogLevel};
use crate::failure;
use crate::net::{EventReceivers, Running};
use crate::ops::journal::{self, Journal};
use crate::ops::port_watch::{self, PortGroup, PortWatch};
use crate::ops::refusals::Refusals;
use crate::protocol::accounting::{Amount, SessionRecord};
use crate::protocol::border::Event;
use crate::protocol::reason::{DropReason, EndReason};
use crate::protocol::reject::RejectReason;

/// How often refusals are summed up in one line.
const WINDOW: Duration = Duration::from_secs(60);

/// How long events may wait for more of them, so that a busy worker does not wake this task for each.
const REST: Duration = Duration::from_millis(5);

/// How many events of each kind are taken before the next rest: others run on this runtime too.
const AT_ONCE: usize = 1024;

/// Changes the level of a running server.
#[derive(Clone)]
pub struct Level(reload::Handle<LevelFilter, Registry>);

impl Level {
    /// From now on.
    pub fn set(&self, level: LogLevel) {
        // The subscriber lives as long as the process; without it there is nothing to set.
        let _ = self.0.modify(|filter| *filter = filter_of(level));
    }

    /// The level now, by the name that the configuration has for it.
    #[must_use]
    pub fn get(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

const fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Starts logging: to the journal if standard error is the journal's, else as text on a terminal and JSON
/// elsewhere, unless told.
///
/// # Errors
/// When the journal is wanted and can't be reached.
pub fn start(config: &LogConfig) -> Result<Level, String> {
    let terminal = io::stderr().is_terminal();
    let (filter, level) = reload::Layer::new(filter_of(config.level));
    let reach = || config.journal.as_deref().map_or(Err(io::ErrorKind::NotFound.into()), Journal::reach);
    let journal = match config.format {
        LogFormat::Auto if std::env::var("JOURNAL_STREAM").is_ok_and(|of| is_standard_error(&of)) => reach().ok(),
        LogFormat::Journal => Some(reach().map_err(|error| {
            let path = config.journal.as_deref().unwrap_or(Path::new("")).display();
            format!("log.journal: can't reach a journal at {path}: {error}; start one, or set log.format to auto")
        })?),
        LogFormat::Auto | LogFormat::Text | LogFormat::Json => None,
    };
    let is_text = config.format == LogFormat::Text || (config.format == LogFormat::Auto && terminal);
    let is_json = journal.is_none() && !is_text;
    let writer = LineMaker { queue: &QUEUE, is_json };
    let lines = if journal.is_some() {
        journal::Layer::new(&QUEUE).boxed()
    } else if is_text {
        fmt::layer().with_ansi(terminal).with_target(false).log_internal_errors(false).with_writer(writer).boxed()
    } else {
        fmt::layer()
            .json()
            .flatten_event(true)
            .with_target(false)
            .log_internal_errors(false)
            .with_writer(writer)
            .boxed()
    };
    sessions::configure(config);
    // A second start in one process (tests) keeps the first log.
    if tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().is_ok() {
        let output = Output::new(journal, io::stderr());
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(|| QUEUE.write_to(output));
        thread.map_err(|error| format!("log: can't start a thread: {error}"))?;
        HAS_BEGUN.store(true, Ordering::Relaxed);
        std::panic::set_hook(Box::new(log_panic));
        failure::before_exit(flush);
    }
    Ok(Level(level))
}

/// What waits for the log's thread, from everywhere in the process.
static QUEUE: Queue = Queue::new();

/// Whether the log's thread runs.
static HAS_BEGUN: AtomicBool = AtomicBool::new(false);

/// Takes over what a reload may change besides the level.
pub fn reconfigure(config: &LogConfig) {
    sessions::configure(config);
}

/// Lines that were lost since the start, by reason: no room in the queue, or the output refused them.
#[must_use]
pub fn lines_lost() -> [(&'static str, u64); 2] {
    let [overflowed, refused] = QUEUE.lost();
    [("queue_full", overflowed), ("output_failed", refused)]
}

/// Why the process ends, on standard error as it stands; `false` if there is no log yet, so that the caller writes it.
#[must_use]
pub fn write_last(text: &str) -> bool {
    let has_begun = HAS_BEGUN.load(Ordering::Relaxed);
    if has_begun {
        QUEUE.push_text(LineClass::Urgent, format!("{text}\n"));
        flush();
    }
    has_begun
}

/// Waits for the lines that were logged up to now, but not for an output that takes none: the last thing that a
/// process does.
pub fn flush() {
    QUEUE.flush();
}

/// A panic's message takes the same way as every other line: standard error may be a pipe without a reader, and
/// a panicking thread must not wait for it.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let location = panic.location().map(ToString::to_string);
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(thread = thread.name(), location, panic = text, backtrace, "a part of the server panicked");
}

/// Whether standard error is the stream that systemd names in $JOURNAL_STREAM, and not one that it was inherited beside.
fn is_standard_error(stream: &str) -> bool {
    let file = std::fs::metadata("/proc/self/fd/2");
    file.is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

/// A line of progress on a terminal, in the place of the last one.
pub fn show_progress(text: &str) {
    QUEUE.push_progress(text);
}

/// Hears of each ended session besides the log.
pub type OnEnded = Box<dyn Fn(&SessionRecord) + Send + Sync>;

/// Makes lines of what the workers tell until they are gone.
pub async fn follow(
    mut events: EventReceivers,
    running: Weak<Running>,
    on_ended: Option<OnEnded>,
    memory: Arc<Refusals>,
) {
    let mut window = tokio::time::interval(WINDOW);
    window.set_missed_tick_behavior(MissedTickBehavior::Delay);
    window.tick().await;
    let mut port_check = tokio::time::interval(port_watch::INTERVAL);
    port_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ports = PortWatch::default();
    let (mut withheld_before, mut unanswered_before) = (0, 0);
    let (mut refusals, mut minute) = (Window::default(), Minute::new());
    let of_session = |minute: &mut Minute, event: &Event| {
        if !matches!(event, Event::AllocationEnded(record) if !minute.admit(record)) {
            write(event);
        }
        if let (Event::AllocationEnded(record), Some(on_ended)) = (event, &on_ended) {
            on_ended(record);
        }
    };
    let of_refusal = |refusals: &mut Window, event: &Event| {
        write(event);
        memory.hear(event, clock::unix_seconds().0);
        refusals.count(event);
    };
    loop {
        tokio::select! {
            biased;
            _ = window.tick() => {
                refusals.write();
                minute.write();
                if let Some(running) = running.upgrade() {
                    warn_of_one_address(&running);
                    withheld_before = tell_withheld(running.withheld_replies(), withheld_before);
                    unanswered_before = tell_unanswered(running.unanswered_failures(), unanswered_before);
                }
                continue;
            }
            _ = port_check.tick() => {
                if let Some(running) = running.upgrade() {
                    // One that is left to its calls has no other ports than theirs.
                    let serving: Vec<_> = running.relay_addresses().collect();
                    let of_tenants = running.tenant_ports();
                    // With parts for tenants each part runs short for itself.
                    let all = running.relay_ports().filter(|(address, ..)| of_tenants.is_empty() && serving.contains(address));
                    let all = all.map(|(address, counts, _)| (PortGroup::All, address, counts));
                    let of_tenants = of_tenants.iter().cloned();
                    let of_tenants = of_tenants.map(|(tenant, address, counts)| (PortGroup::of(tenant), address, counts));
                    ports.look(clock::now().ticks, all.chain(of_tenants));
                }
                continue;
            }
            event = events.sessions.recv() => match event {
                Some(event) => of_session(&mut minute, &event),
                None => break,
            },
            Some(event) = events.refusals.recv() => of_refusal(&mut refusals, &event),
        }
        for _ in 0..AT_ONCE {
            let Ok(event) = events.sessions.try_recv() else { break };
            of_session(&mut minute, &event);
        }
        for _ in 0..AT_ONCE {
            let Ok(event) = events.refusals.try_recv() else { break };
            of_refusal(&mut refusals, &event);
        }
        // Events that come meanwhile wake no thread.
        tokio::time::sleep(REST).await;
    }
    refusals.write();
    minute.write();
}

fn write(event: &Event) {
    match event {
        Event::AllocationCreated(record) => {
            let five_tuple = record.via.five_tuple();
            tracing::debug!(
                target: SESSION_TARGET,
                session = %record.session,
                user = &*record.identity,
                client = %five_tuple.client,
                transport = five_tuple.transport.name(),
                relayed = %record.relayed,
                additional_relayed = record.additional.map(|of| tracing::field::display(of.relayed)),
                relay_transport = tcp_only(record),
                "allocation created"
            );
        }
        // The usage file has these; a line per minute and session would bury the others.
        Event::AllocationInterim(_) => {}
        Event::AllocationMoved { record, from } => {
            let five_tuple = record.via.five_tuple();
            tracing::debug!(
                target: SESSION_TARGET,
                session = %record.session,
                client = %five_tuple.client,
                transport = five_tuple.transport.name(),
                before = %from.five_tuple().client,
                "allocation moved to another address of its client"
            );
        }
        Event::AllocationEnded(record) => write_session(record),
        Event::Refused { via, reason, username } => {
            let client = via.five_tuple().client;
            tracing::debug!(target: SESSION_TARGET, %client, reason = reason.name(), code = reason.code().0, username = username.as_deref(), "request refused");
        }
    }
}

fn write_session(record: &SessionRecord) {
    let (to_peers, to_client) = (record.traffic.to_peers, record.traffic.to_client);
    let five_tuple = record.via.five_tuple();
    tracing::info!(
        target: SESSION_TARGET,
        session = %record.session,
        user = &*record.identity,
        username = &*record.username,
        secret = record.secret.as_deref(),
        tenant = record.tenant.as_deref(),
        realm = record.realm.as_deref(),
        client = %five_tuple.client,
        transport = five_tuple.transport.name(),
        relayed = %record.relayed,
        additional_relayed = record.additional.map(|of| tracing::field::display(of.relayed)),
        relay_transport = tcp_only(record),
        duration_s = record.ended_at.since(record.created_at) as f64 / 1000.0,
        bytes_from_client = to_peers.received.bytes,
        packets_from_client = to_peers.received.packets,
        bytes_to_peers = to_peers.sent().bytes,
        packets_to_peers = to_peers.sent().packets,
        bytes_from_peers = to_client.received.bytes,
        packets_from_peers = to_client.received.packets,
        bytes_to_client = to_client.sent().bytes,
        packets_to_client = to_client.sent().packets,
        dropped = dropped(record),
        reason = record.reason.map(EndReason::name),
        "session ended"
    );
}

/// What is relayed, if it is not UDP.
fn tcp_only(record: &SessionRecord) -> Option<&'static str> {
    Some(record.relay_transport()).filter(|transport| *transport != "udp")
}

/// What was received and not sent: packets and bytes by reason.
fn dropped(record: &SessionRecord) -> Option<String> {
    let each = |(why, amount): &(DropReason, Amount)| format!("{}={}/{}", why.name(), amount.packets, amount.bytes);
    let all: Vec<String> = record.dropped.iter().map(each).collect();
    (!all.is_empty()).then(|| all.join(" "))
}

/// Refusals of one window, by reason: one line, however many there were.
#[derive(Default)]
struct Window {
    by_reason: Vec<u64>,
    total: u64,
    /// The last quota that was full: whose, and which key holds it.
    quota: Option<(String, &'static str)>,
}

impl Window {
    fn count(&mut self, event: &Event) {
        let Event::Refused { reason, username, .. } = event else { return };
        self.by_reason.resize(RejectReason::ALL.len(), 0);
        self.by_reason[*reason as usize] += 1;
        self.total += 1;
        if let Some(key) = reason.limit_key() {
            self.quota = Some((username.as_deref().unwrap_or_default().to_owned(), key));
        }
    }

    fn write(&mut self) {
        if self.total == 0 {
            return;
        }
        let reasons: Vec<String> = self
            .by_reason
            .iter()
            .zip(RejectReason::ALL)
            .filter(|(count, _)| **count > 0)
            .map(|(count, reason)| format!("{}={count}", reason.name()))
            .collect();
        let (user, key) = self.quota.take().unzip();
        tracing::info!(
            refused = self.total,
            reasons = reasons.join(" "),
            quota_user = user.as_deref(),
            quota_key = key,
            "requests refused in the last minute; set the level to debug for a line each"
        );
        *self = Self::default();
    }
}

/// Most clients behind one address usually means a proxy that hides them all: one quota for everybody.
fn warn_of_one_address(running: &Running) {
    static SAID: std::sync::Once = std::sync::Once::new();
    if let Some((client, of_client, total)) = running.busiest_client()
        && total >= 20
        && u64::from(of_client) * 10 > u64::from(total) * 9
    {
        SAID.call_once(|| {
            tracing::warn!(
                %client,
                allocations = of_client,
                of = total,
                "over 90 % of the allocations come from one address; behind a proxy limits.allocations_per_client counts all its clients as one"
            );
        });
    }
}

/// One line for a window in which answers were withheld; gives how many there are by now.
fn tell_withheld((withheld, network): (u64, String), before: u64) -> u64 {
    if let Some(withheld @ 1..) = withheld.checked_sub(before) {
        tracing::warn!(
            withheld,
            network,
            seconds = WINDOW.as_secs(),
            "more UDP requests without proof came from a network than limits.replies_per_network answers: somebody floods this \
             server, or forges that network's addresses to flood it; clients there still get in"
        );
    }
    withheld
}

/// One line for a window in which networks were silenced; gives how many answers stayed away by now.
fn tell_unanswered((unanswered, network): (u64, String), before: u64) -> u64 {
    if let Some(unanswered @ 1..) = unanswered.checked_sub(before) {
        tracing::warn!(
            unanswered,
            network,
            seconds = WINDOW.as_secs(),
            "more wrong passwords or user names came from a network than limits.failures allows: a client with an old password, \
             or somebody guesses; only what is wrong gets no answer. `throughway sessions --refused` shows them, \
             `throughway forgive` answers again"
        );
    }
    unanswered
}

/// Says at the start how much fits.
pub fn file_limit(limit: std::io::Result<u64>) {
    match limit {
        // Those that are kept back are for listeners, HTTP and the runtime's own.
        Ok(limit) => tracing::info!(
            open_files = limit,
            // By how their clients come; connections to peers need two more files each.
            allocations_udp = limit.saturating_sub(64),
            allocations_tcp = limit.saturating_sub(64) / 2,
            "room for this many allocations under the limit of open files"
        ),
        Err(error) => tracing::warn!(%error, "can't raise the limit of open files"),
    }
}
