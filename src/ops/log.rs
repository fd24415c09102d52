//! The log: one line per ended session, one summary line per window for refusals.
//!
//! Written on the control runtime, so that a slow terminal never stops a worker.

use std::io::{self, IsTerminal as _, Stderr, Write as _};
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

use crate::config::checked::{LogConfig, LogFormat, LogLevel};
use crate::net::{EventReceivers, Running, clock};
use crate::ops::journal::{self, Journal};
use crate::ops::refusals::Refusals;
use crate::ops::usage::Feed;
use crate::protocol::accounting::{Amount, SessionRecord};
use crate::protocol::border::{DropReason, EndReason, Event};
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
    let lines = match journal {
        Some(journal) => journal::Layer::new(journal).boxed(),
        None if is_text => fmt::layer().with_ansi(terminal).with_target(false).with_writer(below_progress).boxed(),
        None => fmt::layer().json().flatten_event(true).with_target(false).with_writer(below_progress).boxed(),
    };
    // A second start in one process (tests) keeps the first log.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    Ok(Level(level))
}

/// Whether standard error is the stream that systemd names in $JOURNAL_STREAM, and not one that it was inherited beside.
fn is_standard_error(stream: &str) -> bool {
    let file = std::fs::metadata("/proc/self/fd/2");
    file.is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

/// Whether the last line on the terminal is one of progress, which the next line takes the place of.
static IS_PROGRESS_SHOWN: AtomicBool = AtomicBool::new(false);

const ERASE_LINE: &[u8] = b"\r\x1b[K";

/// A line of progress on a terminal, in the place of the last one.
pub fn show_progress(text: &str) {
    let mut terminal = io::stderr().lock();
    // A terminal that went away changes nothing.
    let _ = terminal.write_all(ERASE_LINE).and_then(|()| terminal.write_all(text.as_bytes()));
    IS_PROGRESS_SHOWN.store(true, Ordering::Relaxed);
}

/// Where log lines go.
fn below_progress() -> Stderr {
    if IS_PROGRESS_SHOWN.swap(false, Ordering::Relaxed) {
        let _ = io::stderr().write_all(ERASE_LINE);
    }
    io::stderr()
}

/// Hears of each ended session besides the log.
pub type OnEnded = Box<dyn Fn(&SessionRecord) + Send + Sync>;

/// Writes what the workers tell until they are gone.
pub async fn follow(
    mut events: EventReceivers,
    running: Weak<Running>,
    on_ended: Option<OnEnded>,
    usage: Option<Feed>,
    memory: Arc<Refusals>,
) {
    let mut window = tokio::time::interval(WINDOW);
    window.set_missed_tick_behavior(MissedTickBehavior::Delay);
    window.tick().await;
    let mut refusals = Window::default();
    let of_session = |event: &Event| {
        // The record first: a log that hangs must not hold it up.
        if let Some(usage) = &usage {
            usage.take(event);
        }
        write(event);
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
                if let Some(running) = running.upgrade() {
                    warn_of_one_address(&running);
                }
                continue;
            }
            event = events.sessions.recv() => match event {
                Some(event) => of_session(&event),
                None => break,
            },
            Some(event) = events.refusals.recv() => of_refusal(&mut refusals, &event),
        }
        for _ in 0..AT_ONCE {
            let Ok(event) = events.sessions.try_recv() else { break };
            of_session(&event);
        }
        for _ in 0..AT_ONCE {
            let Ok(event) = events.refusals.try_recv() else { break };
            of_refusal(&mut refusals, &event);
        }
        // Whoever tells something meanwhile wakes nobody.
        tokio::time::sleep(REST).await;
    }
    refusals.write();
}

fn write(event: &Event) {
    match event {
        Event::AllocationCreated(record) => {
            let five_tuple = record.via.five_tuple();
            tracing::debug!(
                session = %record.session,
                user = &*record.identity,
                client = %five_tuple.client,
                transport = five_tuple.transport.name(),
                relayed = %record.relayed,
                "allocation created"
            );
        }
        // The usage file has these; a line per minute and session would bury the others.
        Event::AllocationGoesOn(_) => {}
        Event::AllocationEnded(record) => write_session(record),
        Event::Refused { via, reason, username } => {
            let client = via.five_tuple().client;
            tracing::debug!(%client, reason = reason.name(), code = reason.code().0, username = username.as_deref(), "request refused");
        }
    }
}

fn write_session(record: &SessionRecord) {
    let (to_peers, to_client) = (record.traffic.to_peers, record.traffic.to_client);
    let five_tuple = record.via.five_tuple();
    tracing::info!(
        session = %record.session,
        user = &*record.identity,
        username = &*record.username,
        secret = record.secret.as_deref(),
        tenant = record.tenant.as_deref(),
        client = %five_tuple.client,
        transport = five_tuple.transport.name(),
        relayed = %record.relayed,
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
            "requests refused in the last minute; at level debug each has a line"
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
                "over 90 % of the allocations come from one address; if a proxy stands before this server, limits.allocations_per_client counts all its clients as one"
            );
        });
    }
}

/// Says at the start how much fits.
pub fn file_limit(limit: std::io::Result<u64>) {
    match limit {
        // Some descriptors are listeners, HTTP and the runtime's own.
        Ok(limit) => tracing::info!(
            open_files = limit,
            allocations_udp = limit.saturating_sub(64),
            allocations_tcp = limit.saturating_sub(64) / 2,
            "so many allocations fit under the limit of open files"
        ),
        Err(error) => tracing::warn!(%error, "can't raise the limit of open files"),
    }
}
