//! The threads that work on records: one signs each and hands it to every sink, and each sink has one of its own.
//!
//! Threads of their own, because a disk or a journal may hang: the control runtime must not, a worker even less, and no
//! sink may hold up another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use super::chain::Chain;
use super::file::UsageFile;
use super::journal;
use super::record::Record;
use super::series::Series;
use super::spool::Spool;
use super::waiting::{RecordLine, RecordQueue};
use super::{Loss, SinkCounters};
use crate::clock;
use crate::ops::journal::Journal;
use crate::protocol::border::Event;
use crate::time::Ticks;

/// Records handed to a sink at once.
const BATCH: usize = 256;

/// How long events may wait for more of them, so that a worker does not wake this thread for each.
const REST: Duration = Duration::from_millis(5);

/// How often a sink that takes nothing is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What fails says so at once and then this often, in milliseconds.
const SAY_AGAIN_MS: u64 = 60_000;

/// Signs records and hands them over until the last worker is gone.
pub(super) struct Signer {
    pub(super) events: Receiver<Event>,
    pub(super) realm: Arc<str>,
    pub(super) series: Series,
    pub(super) chain: Option<Chain>,
    pub(super) sinks: Vec<(Arc<RecordQueue>, Arc<SinkCounters>)>,
}

impl Signer {
    /// Gives the chain as it is then.
    pub(super) fn run(mut self) -> Option<Chain> {
        while let Some(event) = self.events.blocking_recv() {
            self.take(&event);
            while let Ok(event) = self.events.try_recv() {
                self.take(&event);
            }
            std::thread::sleep(REST);
        }
        for (waiting, _) in &self.sinks {
            waiting.close();
        }
        self.chain
    }

    fn take(&mut self, event: &Event) {
        let Some(mut record) = Record::of_event(event, &self.realm) else { return };
        self.series.number(&mut record);
        let mut text = serde_json::to_string(&record).expect("a record is plain strings and numbers");
        if let Some(chain) = &mut self.chain {
            chain.sign(&mut text);
        }
        let line = Arc::new(RecordLine { record, text });
        for (waiting, counters) in &self.sinks {
            if !waiting.push(&line) {
                counters.lose(Loss::QueueFull, 1);
            }
        }
    }
}

/// What became of some lines: how many were taken, how many can never be, and what stopped the rest.
#[derive(Default)]
pub(super) struct WriteOutcome {
    taken: usize,
    refused: usize,
    error: Option<String>,
}

impl WriteOutcome {
    fn of(lines: usize, result: Result<(), impl std::fmt::Display>) -> Self {
        match result {
            Ok(()) => Self { taken: lines, ..Self::default() },
            Err(error) => Self { error: Some(error.to_string()), ..Self::default() },
        }
    }
}

/// Where records go. What blocks here blocks no other sink.
pub(super) enum Sink {
    File(UsageFile, Rotation),
    Journal(Journal),
    Spool(Arc<Spool>),
}

/// When the file may be rotated, and what was said about it.
#[derive(Default)]
pub(super) struct Rotation {
    not_before: Ticks,
    said_at: Option<Ticks>,
}

impl Sink {
    /// For metrics and log lines.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::File(..) => "file",
            Self::Journal(_) => "journal",
            Self::Spool(_) => "webhook",
        }
    }

    fn hand_over(&mut self, lines: &[Arc<RecordLine>]) -> WriteOutcome {
        match self {
            Self::File(file, rotation) => {
                let text = joined(lines);
                if file.is_full(text.len()) {
                    rotation.try_it(file);
                }
                WriteOutcome::of(lines.len(), file.append(text.as_bytes()))
            }
            Self::Journal(journal) => to_journal(journal, lines),
            Self::Spool(spool) => {
                let text = joined(lines);
                WriteOutcome::of(lines.len(), spool.put(text.as_bytes(), lines.len() as u64, clock::unix_seconds().0))
            }
        }
    }

    fn reopen(&mut self) {
        if let Self::File(file, _) = self
            && let Err(error) = file.reopen()
        {
            tracing::error!(%error, "can't reopen the usage file; records go to the one that is open");
        }
    }
}

fn joined(lines: &[Arc<RecordLine>]) -> String {
    lines.iter().flat_map(|line| [&line.text, "\n"]).collect()
}

fn to_journal(journal: &mut Journal, lines: &[Arc<RecordLine>]) -> WriteOutcome {
    let mut outcome = WriteOutcome::default();
    for line in lines {
        match journal::write(journal, &line.record, &line.text) {
            Ok(()) => outcome.taken += 1,
            // Of this size it would be refused again and again, and all behind it would wait.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                outcome.refused += 1;
                outcome.error = Some(error.to_string());
                return outcome;
            }
            Err(error) => {
                outcome.error = Some(error.to_string());
                return outcome;
            }
        }
    }
    outcome
}

impl Rotation {
    /// Once a second at most; a file that can't be rotated grows on, because its records are worth more.
    fn try_it(&mut self, file: &mut UsageFile) {
        let now = clock::now();
        if now.ticks < self.not_before {
            return;
        }
        let Err(error) = file.rotate(now.unix.0) else {
            self.said_at = None;
            return;
        };
        self.not_before = now.ticks.plus_seconds(RETRY.as_secs());
        if self.said_at.is_none_or(|at| now.ticks.since(at) >= SAY_AGAIN_MS) {
            self.said_at = Some(now.ticks);
            tracing::error!(%error, "can't rotate the usage file; records still go to the old one");
        }
    }
}

/// Says that a sink fails, but not each time.
#[derive(Default)]
struct Trouble {
    /// When it was last said; `None` while all is well.
    said_at: Option<Ticks>,
    /// What had been lost when it began.
    before: u64,
}

impl Trouble {
    fn say(&mut self, sink: &'static str, counters: &SinkCounters, error: &str) {
        let now = clock::now().ticks;
        if self.said_at.is_some_and(|at| now.since(at) < SAY_AGAIN_MS) {
            return;
        }
        if self.said_at.is_none() {
            self.before = counters.lost();
        }
        self.said_at = Some(now);
        tracing::error!(sink, lost = counters.lost() - self.before, error, "can't write usage records; calls go on");
    }

    fn over(&mut self, sink: &'static str, counters: &SinkCounters) {
        if self.said_at.take().is_some() {
            tracing::warn!(sink, lost = counters.lost() - self.before, "usage records are written again");
        }
    }
}

/// Feeds one sink until nothing comes any more.
pub(super) struct Feeder {
    pub(super) sink: Sink,
    pub(super) waiting: Arc<RecordQueue>,
    pub(super) counters: Arc<SinkCounters>,
    /// Whether the process still waits for this sink.
    pub(super) is_awaited: Arc<AtomicBool>,
}

impl Feeder {
    /// Counts records as written; those of the webhook are counted when they are delivered.
    fn count(&self, taken: usize) {
        if !matches!(self.sink, Sink::Spool(_)) {
            self.counters.written.fetch_add(taken as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn run(mut self) {
        let name = self.sink.name();
        let mut trouble = Trouble::default();
        while let Some((lines, must_reopen)) = self.waiting.oldest(BATCH) {
            if must_reopen {
                self.sink.reopen();
            }
            if lines.is_empty() {
                continue;
            }
            let WriteOutcome { taken, refused, error } = self.sink.hand_over(&lines);
            if !self.is_awaited.load(Ordering::Relaxed) {
                // What was left has been counted as lost already.
                return;
            }
            self.count(taken);
            self.counters.lose(Loss::TooLarge, refused as u64);
            self.waiting.remove(taken + refused);
            let Some(error) = error else {
                trouble.over(name, &self.counters);
                continue;
            };
            trouble.say(name, &self.counters, &error);
            // One more try at the very end, and no more.
            if refused == 0 && self.waiting.rest(RETRY) {
                let rest = &lines[taken..];
                let WriteOutcome { taken, .. } = self.sink.hand_over(rest);
                self.count(taken);
                self.waiting.remove(taken);
                if taken < rest.len() {
                    give_up(name, &self.waiting, &self.counters);
                    return;
                }
            }
        }
    }
}

/// What still waits for a sink is lost with the process.
pub(super) fn give_up(sink: &'static str, waiting: &RecordQueue, counters: &SinkCounters) {
    let records = waiting.len();
    if records > 0 {
        waiting.remove(records);
        counters.lose(Loss::Shutdown, records as u64);
        tracing::error!(
            sink,
            records,
            "usage records are lost: the output did not take them before the server stopped"
        );
    }
}
