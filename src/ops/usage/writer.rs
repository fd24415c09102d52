//! One thread that signs each record and hands it to the file, the journal and the spool.
//!
//! A thread of its own, because a disk may hang: the control runtime must not, and a worker even less.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::chain::Chain;
use super::file::UsageFile;
use super::journal;
use super::record::Record;
use super::spool::Spool;
use super::{Counters, SinkCounters};
use crate::net::clock;
use crate::ops::journal::Journal;
use crate::protocol::time::UnixSeconds;

/// Records of one batch; then all sinks get their turn.
const BATCH: usize = 256;

/// Lines that wait for a disk that takes nothing; then they are lost, loudly.
const UNWRITTEN_BYTES_MAX: usize = 4 << 20;

/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A sink that fails says so at once and then this often, in seconds.
const SAY_AGAIN: u64 = 60;

/// What the writer is told.
pub(super) enum Message {
    Record(Box<Record>),
    /// The file may have been renamed.
    Reopen,
}

/// Says that a sink fails, but not each time.
#[derive(Default)]
struct Trouble {
    /// When it was last said; `None` while all is well.
    said: Option<UnixSeconds>,
    lost: u64,
}

impl Trouble {
    fn say(&mut self, sink: &'static str, lost: u64, error: &dyn std::fmt::Display) {
        self.lost += lost;
        let now = clock::unix_seconds();
        if self.said.is_some_and(|at| now.0.saturating_sub(at.0) < SAY_AGAIN) {
            return;
        }
        self.said = Some(now);
        tracing::error!(sink, lost = self.lost, %error, "can't write usage records; calls go on");
    }

    fn over(&mut self, sink: &'static str) {
        if self.said.take().is_some() {
            tracing::warn!(sink, lost = self.lost, "usage records are written again");
            self.lost = 0;
        }
    }
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) receiver: Receiver<Message>,
    pub(super) chain: Option<Chain>,
    pub(super) file: Option<UsageFile>,
    pub(super) journal: Option<Journal>,
    pub(super) spool: Option<Arc<Spool>>,
    pub(super) counters: Arc<Counters>,
    pub(super) state: State,
}

/// What waits for the disk, and who is in trouble.
#[derive(Default)]
pub(super) struct State {
    unwritten: Vec<u8>,
    unwritten_records: u64,
    file: Trouble,
    journal: Trouble,
    spool: Trouble,
}

fn count(counter: &AtomicU64, records: u64) {
    counter.fetch_add(records, Ordering::Relaxed);
}

fn lost(sink: &SinkCounters, records: u64) {
    count(&sink.lost, records);
}

impl Writer {
    /// Writes until every sender is gone.
    pub(super) fn run(mut self) {
        loop {
            let first = if self.state.unwritten.is_empty() {
                self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.receiver.recv_timeout(RETRY)
            };
            match first {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => self.write_file(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.write_file();
        let left = self.state.unwritten_records;
        if left > 0 {
            lost(&self.counters.file, left);
            tracing::error!(records = left, "usage records are lost: the disk did not take them until the end");
        }
    }

    /// One message and those that came with it.
    fn take(&mut self, first: Message) {
        let mut batch = Vec::new();
        let mut reopen = false;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Record(record) => batch.push(self.line(*record)),
                Message::Reopen => reopen = true,
            }
            next = if batch.len() < BATCH && !reopen { self.receiver.try_recv().ok() } else { None };
        }
        self.give_spool(&batch);
        self.give_journal(&batch);
        self.give_file(&batch);
        if reopen && let Some(Err(error)) = self.file.as_mut().map(UsageFile::reopen) {
            self.state.file.say("file", 0, &error);
        }
    }

    fn line(&mut self, record: Record) -> (Record, String) {
        let mut line = serde_json::to_string(&record).expect("a record is plain strings and numbers");
        if let Some(chain) = &mut self.chain {
            chain.sign(&mut line);
        }
        (record, line)
    }

    fn give_spool(&mut self, batch: &[(Record, String)]) {
        let Some(spool) = &self.spool else { return };
        if batch.is_empty() {
            return;
        }
        let lines: String = batch.iter().flat_map(|(_, line)| [line, "\n"]).collect();
        let records = batch.len() as u64;
        match spool.put(lines.as_bytes(), records, clock::unix_seconds().0) {
            Ok(()) => self.state.spool.over("webhook"),
            Err(error) => {
                lost(&self.counters.webhook, records);
                self.state.spool.say("webhook", records, &error);
            }
        }
    }

    fn give_journal(&mut self, batch: &[(Record, String)]) {
        let Some(journal) = &self.journal else { return };
        for (at, (record, line)) in batch.iter().enumerate() {
            match journal::write(journal, record, line) {
                Ok(()) => {
                    count(&self.counters.journal.written, 1);
                    self.state.journal.over("journal");
                }
                Err(error) => {
                    // It may have waited its whole patience: not for each of the rest as well.
                    let rest = (batch.len() - at) as u64;
                    lost(&self.counters.journal, rest);
                    return self.state.journal.say("journal", rest, &error);
                }
            }
        }
    }

    fn give_file(&mut self, batch: &[(Record, String)]) {
        if self.file.is_none() {
            return;
        }
        for (_, line) in batch {
            if self.state.unwritten.len() > UNWRITTEN_BYTES_MAX {
                lost(&self.counters.file, 1);
                self.state.file.say("file", 1, &"too much waits for the disk");
                continue;
            }
            self.state.unwritten.extend_from_slice(line.as_bytes());
            self.state.unwritten.push(b'\n');
            self.state.unwritten_records += 1;
        }
        self.write_file();
    }

    fn write_file(&mut self) {
        let (Some(file), state) = (&mut self.file, &mut self.state) else { return };
        if state.unwritten.is_empty() {
            return;
        }
        let written = if file.is_full(state.unwritten.len()) { file.rotate(clock::unix_seconds().0) } else { Ok(()) }
            .and_then(|()| file.append(&state.unwritten));
        match written {
            Ok(()) => {
                count(&self.counters.file.written, state.unwritten_records);
                state.unwritten.clear();
                state.unwritten_records = 0;
                state.file.over("file");
            }
            // What could not be written stays and is tried again.
            Err(error) => state.file.say("file", 0, &error),
        }
    }
}
