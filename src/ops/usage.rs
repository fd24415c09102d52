//! Usage records: a line for each session's start, interims and stop, to a file, the journal and a webhook.
//!
//! The log task turns events into records ([`Feed::take`]); a thread of its own signs and writes them; the webhook
//! is fed from a spool on disk. Every hand-over is bounded, and whatever is lost is counted and leaves a gap in `seq`.

pub mod chain;
mod file;
mod journal;
pub mod record;
pub mod report;
mod spool;
mod webhook;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use self::chain::{Chain, Code};
use self::file::UsageFile;
use self::record::Record;
use self::spool::Spool;
use self::writer::{Message, State, Writer};
use crate::config::accounting::AccountingConfig;
use crate::fetch::Client;
use crate::net::clock;
use crate::ops::journal::Journal;
use crate::protocol::border::Event;

/// Records that may wait for the writer.
const RECORDS: usize = 16_384;

/// At the end the webhook gets so long for what still waits.
const LAST_DELIVERY: Duration = Duration::from_secs(2);

/// What became of the records of one sink.
#[derive(Debug, Default)]
pub struct SinkCounters {
    /// Written, or delivered.
    pub written: AtomicU64,
    /// Lost for good.
    pub lost: AtomicU64,
}

/// What became of all records.
#[derive(Debug, Default)]
pub struct Counters {
    /// `accounting.file`.
    pub file: SinkCounters,
    /// `accounting.journal`.
    pub journal: SinkCounters,
    /// `accounting.webhook`.
    pub webhook: SinkCounters,
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

/// Where records go in.
#[derive(Clone)]
pub struct Feed {
    sender: SyncSender<Message>,
    realm: Arc<str>,
    counters: Arc<Counters>,
    sinks: [bool; 3],
}

impl Feed {
    /// Takes what an event says about a session; never waits.
    pub fn take(&self, event: &Event) {
        let Some(record) = Record::of_event(event, &self.realm) else { return };
        if self.sender.try_send(Message::Record(Box::new(record))).is_err() {
            let [file, journal, webhook] = self.sinks;
            let sinks =
                [(file, &self.counters.file), (journal, &self.counters.journal), (webhook, &self.counters.webhook)];
            for (_, sink) in sinks.into_iter().filter(|(is_on, _)| *is_on) {
                sink.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Everybody who works on records.
pub struct Usage {
    feed: Feed,
    spool: Option<Arc<Spool>>,
    thread: JoinHandle<()>,
    webhook: Option<tokio::task::JoinHandle<()>>,
}

/// What `/metrics` asks for.
#[derive(Clone)]
pub struct UsageMetrics {
    counters: Arc<Counters>,
    spool: Option<Arc<Spool>>,
    sinks: [bool; 3],
}

impl UsageMetrics {
    /// Every sink that is on: its name, records written and records lost.
    pub fn sinks(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let Counters { file, journal, webhook, .. } = &*self.counters;
        [("file", file), ("journal", journal), ("webhook", webhook)]
            .into_iter()
            .zip(self.sinks)
            .filter(|(_, is_on)| *is_on)
            .map(|((name, sink), _)| (name, sink.written.load(Ordering::Relaxed), sink.lost.load(Ordering::Relaxed)))
    }

    /// Failed deliveries, and what waits; `None` without a webhook.
    #[must_use]
    pub fn webhook(&self) -> Option<(u64, Backlog)> {
        let (records, bytes, since) = self.spool.as_ref()?.backlog();
        let lag_seconds = since.map_or(0, |since| clock::unix_seconds().0.saturating_sub(since));
        Some((self.counters.webhook_failures.load(Ordering::Relaxed), Backlog { records, bytes, lag_seconds }))
    }
}

/// Opens every sink and starts the writer; `None` when nothing is to be recorded. Must be called in a tokio runtime.
///
/// # Errors
/// What can't be opened, by its key.
pub fn start(config: &AccountingConfig, realm: &str) -> Result<Option<Usage>, String> {
    if !config.is_on() {
        return Ok(None);
    }
    let mut last = None;
    let mut file = None;
    if let Some(wanted) = &config.file {
        let path = wanted.path.display().to_string();
        let (opened, line) = UsageFile::open(wanted.clone()).map_err(|error| {
            format!("accounting.file: can't write {path}: {error}; make its directory and give it to the server's user")
        })?;
        file = Some(opened);
        last = line;
    }
    let journal = config.journal.clone().map(Journal::new).transpose();
    let journal = journal.map_err(|error| format!("accounting.journal: can't make a socket: {error}"))?;
    let counters = Arc::new(Counters::default());
    let mut spool = None;
    if let Some(webhook) = &config.webhook {
        let path = webhook.spool.display().to_string();
        let opened = Spool::open(webhook.spool.clone(), webhook.spool_bytes).map_err(|error| {
            format!("accounting.spool: can't use {path}: {error}; it must be a directory of the server's user")
        })?;
        spool = Some(Arc::new(opened));
    }
    let chain = config.sign_key.clone().map(|key| {
        let last = last.as_deref().and_then(chain::link).map_or(Code::NONE, |link| link.mac);
        Chain::new(key, last)
    });
    let (sender, receiver) = sync_channel(RECORDS);
    let sinks = [file.is_some(), journal.is_some(), spool.is_some()];
    let writer = Writer {
        receiver,
        chain,
        file,
        journal,
        spool: spool.clone(),
        counters: Arc::clone(&counters),
        state: State::default(),
    };
    let thread = std::thread::Builder::new().name("usage".to_owned()).spawn(move || writer.run());
    let thread = thread.map_err(|error| format!("accounting: can't start a thread: {error}"))?;
    let mut webhook = None;
    if let Some((config, spool)) = config.webhook.clone().zip(spool.clone()) {
        let client = Client::new(config.authorities.as_ref(), webhook::PATIENCE);
        let client = client.map_err(|error| format!("accounting.webhook: {error}"))?;
        webhook = Some(tokio::spawn(webhook::deliver(config, client, spool, Arc::clone(&counters))));
    }
    tracing::info!(to = %config.describe(), "recording usage");
    Ok(Some(Usage { feed: Feed { sender, realm: realm.into(), counters, sinks }, spool, thread, webhook }))
}

impl Usage {
    /// Where records go in; the writer ends when every feed is gone.
    #[must_use]
    pub fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// What `/metrics` asks for.
    #[must_use]
    pub fn metrics(&self) -> UsageMetrics {
        UsageMetrics { counters: Arc::clone(&self.feed.counters), spool: self.spool.clone(), sinks: self.feed.sinks }
    }

    /// Writes to the file that has the name now, if another program renamed the one before.
    pub fn reopen(&self) {
        // A full queue is an overload; the file it is written to can wait for the next signal.
        let _ = self.feed.sender.try_send(Message::Reopen);
    }

    /// Writes what waits and gives the webhook a moment; every other feed must be gone.
    pub async fn finish(self) {
        let Self { feed, spool, thread, webhook } = self;
        let counters = Arc::clone(&feed.counters);
        drop(feed);
        // Joining blocks; a writer that panicked has said so already.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        let (Some(spool), Some(webhook)) = (spool, webhook) else { return };
        if !counters.webhook_failing.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(LAST_DELIVERY, spool.emptied()).await;
        }
        webhook.abort();
        let (records, ..) = spool.backlog();
        if records > 0 {
            tracing::warn!(records, "usage records wait in accounting.spool for the next start");
        }
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
