//! Usage records: a line for each session's start, interims and stop, to a file, the journal and a webhook.
//!
//! The workers tell of sessions on a channel of its own, which neither log lines nor refusals can fill. One thread makes
//! records of that, signs them and hands them to the sinks; each sink has a thread and a bounded queue of its own
//! ([`writer`], [`waiting`]), and the webhook is fed from a spool on disk. Whatever is lost all the same is counted by
//! sink and reason, and leaves a gap in `seq`.
//! Decision: docs/decisions/0156-each-sink-of-usage-records-has-its-own-thread.md.

pub mod chain;
mod file;
mod journal;
pub mod record;
pub mod report;
mod series;
mod spool;
mod waiting;
mod webhook;
mod writer;

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::Access;
use tokio::sync::{mpsc, oneshot};

use self::chain::{Chain, Code};
use self::file::UsageFile;
use self::series::Series;
use self::spool::Spool;
use self::waiting::RecordQueue;
use self::writer::{Feeder, Rotation, Signer, Sink, give_up};
use crate::clock;
use crate::config::accounting::AccountingConfig;
use crate::fetch::Client;
use crate::ops::journal::Journal;
use crate::protocol::border::Event;

/// At the end the webhook gets so long for what still waits.
const LAST_DELIVERY: Duration = Duration::from_secs(2);

/// At the end a disk, or a journal, gets so long; one that hangs must not keep the process.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// Why a sink has not got a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Records came faster than they can be signed.
    Overload,
    /// The sink took nothing for so long that no more could wait, or none of this user.
    QueueFull,
    /// The journal takes no datagram of this size.
    TooLarge,
    /// A batch of the spool could not be read back.
    Unreadable,
    /// The process ended first.
    Shutdown,
}

impl Loss {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Overload, Self::QueueFull, Self::TooLarge, Self::Unreadable, Self::Shutdown];

    /// For metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overload => "overload",
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::Unreadable => "unreadable",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What became of the records of one sink.
#[derive(Debug, Default)]
pub struct SinkCounters {
    /// Written, or delivered.
    pub written: AtomicU64,
    /// Lost for good, by reason.
    lost: [AtomicU64; Loss::ALL.len()],
}

impl SinkCounters {
    fn lose(&self, why: Loss, records: u64) {
        self.lost[why as usize].fetch_add(records, Ordering::Relaxed);
    }

    /// Lost for good, whatever the reason.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.iter().map(|lost| lost.load(Ordering::Relaxed)).sum()
    }
}

/// What became of all records.
#[derive(Debug, Default)]
pub struct Counters {
    /// `accounting.file`.
    pub file: Arc<SinkCounters>,
    /// `accounting.journal`.
    pub journal: Arc<SinkCounters>,
    /// `accounting.webhook`.
    pub webhook: Arc<SinkCounters>,
    /// Deliveries that failed; they are tried again.
    pub webhook_failures: AtomicU64,
    webhook_failing: AtomicBool,
}

/// What waits for the webhook.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    /// Records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest waits, in seconds.
    pub lag_seconds: u64,
}

/// Every sink, opened before anything else happens.
pub struct Sinks {
    open: Vec<Sink>,
    chain: Option<Chain>,
    series: Series,
    spool: Option<Arc<Spool>>,
    webhook: Option<(crate::config::accounting::WebhookConfig, Client)>,
    realm: Arc<str>,
}

/// A sink's thread.
struct Working {
    name: &'static str,
    waiting: Arc<RecordQueue>,
    counters: Arc<SinkCounters>,
    is_awaited: Arc<AtomicBool>,
    /// Closed when the thread has ended.
    ended: oneshot::Receiver<()>,
}

/// Everybody who works on records.
pub struct Usage {
    counters: Arc<Counters>,
    working: Vec<Working>,
    spool: Option<Arc<Spool>>,
    webhook: Option<tokio::task::JoinHandle<()>>,
    /// The code of the last line, once there will be no more.
    last: oneshot::Receiver<Code>,
}

/// What `/metrics` asks for.
#[derive(Clone)]
pub struct UsageMetrics {
    counters: Arc<Counters>,
    spool: Option<Arc<Spool>>,
    sinks: Vec<&'static str>,
}

impl UsageMetrics {
    fn on(&self) -> impl Iterator<Item = (&'static str, &SinkCounters)> {
        let Counters { file, journal, webhook, .. } = &*self.counters;
        [("file", &**file), ("journal", journal), ("webhook", webhook)]
            .into_iter()
            .filter(|(name, _)| self.sinks.contains(name))
    }

    /// Every sink that is on, and the records that were written to it.
    pub fn written(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.on().map(|(name, sink)| (name, sink.written.load(Ordering::Relaxed)))
    }

    /// Every sink that is on, and the records that it lost by each reason; `overload` are those that no sink got.
    pub fn lost(&self, overload: u64) -> impl Iterator<Item = (&'static str, Loss, u64)> {
        self.on().flat_map(move |(name, sink)| {
            Loss::ALL.into_iter().map(move |why| {
                let of_sink = sink.lost[why as usize].load(Ordering::Relaxed);
                (name, why, of_sink + if why == Loss::Overload { overload } else { 0 })
            })
        })
    }

    /// Failed deliveries, and what waits; `None` without a webhook.
    #[must_use]
    pub fn webhook(&self) -> Option<(u64, Backlog)> {
        let (records, bytes, since) = self.spool.as_ref()?.backlog();
        let lag_seconds = since.map_or(0, |since| clock::unix_seconds().0.saturating_sub(since));
        Some((self.counters.webhook_failures.load(Ordering::Relaxed), Backlog { records, bytes, lag_seconds }))
    }
}

/// Whether every sink could be opened; nothing is, and nothing is changed.
///
/// # Errors
/// What can't be, by its key.
pub fn check(config: &AccountingConfig) -> Result<(), String> {
    let may_write = |path: &Path| rustix::fs::access(path, Access::WRITE_OK);
    if let Some(file) = &config.file {
        if let Some(why) = obstacle(&file.path) {
            return Err(format!("accounting.file: {} {why}", file.path.display()));
        }
        let directory = file.path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let checked = if file.path.exists() { may_write(&file.path) } else { may_write(directory) };
        checked.map_err(|error| wont_write(&file.path, &error.into()))?;
    }
    if let Some(webhook) = &config.webhook
        && let Err(error) = may_write(&webhook.spool)
        && webhook.spool.exists()
    {
        return Err(wont_spool(&webhook.spool, &error.into()));
    }
    Ok(())
}

/// What stands where a file should be: something that is none, or a link to nothing. Devices pass.
#[must_use]
pub fn obstacle(path: &Path) -> Option<String> {
    match std::fs::metadata(path).map(|data| data.file_type()) {
        Ok(kind) if kind.is_dir() => Some("is a directory; name a file in it".to_owned()),
        Ok(kind) if kind.is_fifo() || kind.is_socket() => {
            Some("is a named pipe or a socket, which keeps no records; name a file".to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let target = std::fs::read_link(path).ok()?;
            let target = target.display();
            Some(format!("is a link to {target}, which is not there; mount or make that, or name another file"))
        }
        Ok(_) | Err(_) => None,
    }
}

/// What to do so that a server may write at a place.
#[must_use]
pub fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        "the disk is mounted read-only, or the unit lets the server write elsewhere only: add LogsDirectory= or ReadWritePaths= to it"
    } else {
        "make its directory and give it to the server's user"
    }
}

fn wont_write(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match obstacle(path) {
        Some(why) => format!("accounting.file: {shown} {why}"),
        None => format!("accounting.file: can't write {shown}: {error}; {}", remedy(error)),
    }
}

fn wont_spool(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    format!("accounting.spool: can't use {path}: {error}; it must be a directory of the server's user")
}

/// Opens every sink; `None` when nothing is to be recorded.
///
/// # Errors
/// What can't be opened, by its key.
pub fn open(config: &AccountingConfig, realm: &str) -> Result<Option<Sinks>, String> {
    if !config.is_on() {
        return Ok(None);
    }
    let mut last = None;
    let mut open = Vec::new();
    if let Some(wanted) = &config.file {
        let (opened, line) = UsageFile::open(wanted.clone()).map_err(|error| wont_write(&wanted.path, &error))?;
        open.push(Sink::File(opened, Rotation::default()));
        last = line;
    }
    if let Some(path) = &config.journal {
        let journal = Journal::new(path.clone());
        open.push(Sink::Journal(journal.map_err(|error| format!("accounting.journal: can't make a socket: {error}"))?));
    }
    let (mut spool, mut webhook) = (None, None);
    if let Some(config) = &config.webhook {
        let opened = Spool::open(config.spool.clone(), config.spool_bytes);
        let opened = opened.map_err(|error| wont_spool(&config.spool, &error))?;
        let opened = Arc::new(opened);
        open.push(Sink::Spool(Arc::clone(&opened)));
        spool = Some(opened);
        let client = Client::new(config.authorities.as_ref(), webhook::PATIENCE);
        webhook = Some((config.clone(), client.map_err(|error| format!("accounting.webhook: {error}"))?));
    }
    let chain = config.sign_key.clone().map(|key| {
        let last = last.as_deref().and_then(chain::link).map_or(Code::NONE, |link| link.mac);
        Chain::new(key, last)
    });
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(|error| format!("accounting: the system has no random numbers: {error}"))?;
    let server = config.server.clone().unwrap_or_else(host_name);
    let series = Series::after(last.as_deref(), server, u64::from_be_bytes(id));
    tracing::info!(to = %config.describe(), "recording usage");
    Ok(Some(Sinks { open, chain, series, spool, webhook, realm: realm.into() }))
}

/// The host's name, which records carry where `accounting.server` is empty.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Sinks {
    /// Signs on where another process stopped.
    pub fn go_on_after(&mut self, last: Code) {
        if let Some(chain) = &mut self.chain {
            chain.go_on_after(last);
        }
    }

    /// Starts the threads; they end when every sender of events is gone. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn follow(self, events: mpsc::Receiver<Event>) -> Result<Usage, String> {
        let counters = Arc::new(Counters::default());
        let (mut working, mut sinks) = (Vec::new(), Vec::new());
        for sink in self.open {
            let of_sink = Arc::clone(match sink {
                Sink::File(..) => &counters.file,
                Sink::Journal(_) => &counters.journal,
                Sink::Spool(_) => &counters.webhook,
            });
            let (waiting, is_awaited) = (Arc::new(RecordQueue::default()), Arc::new(AtomicBool::new(true)));
            let (name, (end, ended)) = (sink.name(), oneshot::channel());
            sinks.push((Arc::clone(&waiting), Arc::clone(&of_sink)));
            let feeder = Feeder {
                sink,
                waiting: Arc::clone(&waiting),
                counters: Arc::clone(&of_sink),
                is_awaited: Arc::clone(&is_awaited),
            };
            spawn(format!("usage-{name}"), move || {
                let _end = end;
                feeder.run();
            })?;
            working.push(Working { name, waiting, counters: of_sink, is_awaited, ended });
        }
        let signer = Signer { events, realm: self.realm, series: self.series, chain: self.chain, sinks };
        let (told, last) = oneshot::channel();
        spawn("usage".to_owned(), move || {
            if let Some(chain) = signer.run() {
                // The process may end without asking.
                let _ = told.send(chain.last());
            }
        })?;
        let webhook = self.webhook.zip(self.spool.clone()).map(|((config, client), spool)| {
            tokio::spawn(webhook::deliver(config, client, spool, Arc::clone(&counters)))
        });
        Ok(Usage { counters, working, spool: self.spool, webhook, last })
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::Builder::new().name(name).spawn(run);
    thread.map(drop).map_err(|error| format!("accounting: can't start a thread: {error}"))
}

impl Usage {
    /// What `/metrics` asks for.
    #[must_use]
    pub fn metrics(&self) -> UsageMetrics {
        let sinks = self.working.iter().map(|working| working.name).collect();
        UsageMetrics { counters: Arc::clone(&self.counters), spool: self.spool.clone(), sinks }
    }

    /// Writes to the file that has the name now, if another program renamed the one before.
    pub fn reopen(&self) {
        for working in self.working.iter().filter(|working| working.name == "file") {
            working.waiting.reopen();
        }
    }

    /// Writes what waits and gives the webhook a moment; every sender of events must be gone. Gives the code of the last
    /// signed line.
    pub async fn finish(self) -> Option<Code> {
        let Self { counters, working, spool, webhook, last } = self;
        let deadline = tokio::time::Instant::now() + LAST_WRITE;
        for Working { name, waiting, counters, is_awaited, ended } in working {
            if tokio::time::timeout_at(deadline, ended).await.is_err() {
                is_awaited.store(false, Ordering::Relaxed);
                give_up(name, &waiting, &counters);
            }
        }
        let last = last.await.ok();
        let (Some(spool), Some(webhook)) = (spool, webhook) else { return last };
        if !counters.webhook_failing.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(LAST_DELIVERY, spool.emptied()).await;
        }
        webhook.abort();
        let (records, ..) = spool.backlog();
        if records > 0 {
            tracing::warn!(records, "usage records wait in accounting.spool for the next start");
        }
        last
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory that goes away with its test.
    pub(crate) struct Directory(PathBuf);

    impl Directory {
        pub(crate) fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("throughway-usage-{}-{number}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
