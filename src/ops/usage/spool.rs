//! Records that wait for the webhook: one file per batch, within a bound, kept over restarts.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What a small file takes on most disks: the bound is one of disk space.
const BLOCK: u64 = 4096;

/// Of each file.
const MODE: u32 = 0o600;

/// A file of the spool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) records: u64,
    /// On disk, in whole blocks.
    pub(super) bytes: u64,
    since: u64,
}

#[derive(Default)]
struct WaitingBatches {
    batches: VecDeque<Batch>,
    bytes: u64,
    next: u64,
}

/// The directory and what is known of it.
pub(super) struct Spool {
    directory: PathBuf,
    bytes_max: u64,
    waiting: Mutex<WaitingBatches>,
    changed: Notify,
}

fn on_disk(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(BLOCK)
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    #[error("the spool is full (accounting.spool_max)")]
    Full,
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Spool {
    /// Makes the directory if it is not there, and finds what an earlier process left.
    pub(super) fn open(directory: PathBuf, bytes_max: u64) -> io::Result<Self> {
        // Records name users and addresses, whatever the umask is.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut batches = Vec::new();
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                // Written halfway when the process before ended.
                Some("part") => std::fs::remove_file(&path)?,
                Some("jsonl") => {
                    let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()) else { continue };
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(MODE))?;
                    let text = std::fs::read(&path)?;
                    let records = text.iter().filter(|byte| **byte == b'\n').count() as u64;
                    let since = std::os::unix::fs::MetadataExt::mtime(&path.metadata()?).try_into().unwrap_or(0);
                    batches.push(Batch { number, records, bytes: on_disk(text.len()), since });
                }
                Some(_) | None => {}
            }
        }
        batches.sort_unstable_by_key(|batch| batch.number);
        let next = batches.last().map_or(1, |last| last.number + 1);
        let bytes = batches.iter().map(|batch| batch.bytes).sum();
        let waiting = Mutex::new(WaitingBatches { batches: batches.into(), bytes, next });
        Ok(Self { directory, bytes_max, waiting, changed: Notify::new() })
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingBatches> {
        // Whole after each statement, so a panic elsewhere leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:012}.jsonl"))
    }

    /// Keeps a batch until it is delivered.
    pub(super) fn put(&self, lines: &[u8], records: u64, unix: u64) -> Result<(), PutError> {
        let bytes = on_disk(lines.len());
        let number = {
            let mut waiting = self.waiting();
            if waiting.bytes + bytes > self.bytes_max {
                return Err(PutError::Full);
            }
            waiting.next += 1;
            waiting.next - 1
        };
        let (part, whole) = (self.directory.join(format!("{number:012}.part")), self.path(number));
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(MODE).open(&part);
        let written = file.and_then(|mut file| file.write_all(lines)).and_then(|()| std::fs::rename(&part, &whole));
        if let Err(error) = written {
            // Half a batch must not stay to fill the disk further.
            let _ = std::fs::remove_file(&part);
            return Err(error.into());
        }
        let mut waiting = self.waiting();
        waiting.batches.push_back(Batch { number, records, bytes, since: unix });
        waiting.bytes += bytes;
        drop(waiting);
        self.changed.notify_waiters();
        Ok(())
    }

    /// The oldest batches, up to so many bytes and at least one, as soon as there is one.
    pub(super) async fn oldest(&self, bytes_max: u64) -> Vec<Batch> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let mut bytes = 0;
            let fits = |batch: &&Batch| {
                bytes += batch.bytes;
                bytes <= bytes_max || bytes == batch.bytes
            };
            let batches: Vec<Batch> = self.waiting().batches.iter().take_while(fits).copied().collect();
            if !batches.is_empty() {
                return batches;
            }
            changed.await;
        }
    }

    /// As soon as nothing waits any more.
    pub(super) async fn emptied(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.waiting().batches.is_empty() {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn read(&self, batch: Batch) -> io::Result<Vec<u8>> {
        std::fs::read(self.path(batch.number))
    }

    /// Forgets the oldest batch, which was delivered.
    pub(super) fn remove(&self, batch: Batch) -> io::Result<()> {
        let mut waiting = self.waiting();
        if waiting.batches.front() == Some(&batch) {
            waiting.batches.pop_front();
        }
        waiting.bytes = waiting.bytes.saturating_sub(batch.bytes);
        drop(waiting);
        self.changed.notify_waiters();
        std::fs::remove_file(self.path(batch.number))
    }

    /// Records and bytes that wait, and since when the oldest does.
    pub(super) fn backlog(&self) -> (u64, u64, Option<u64>) {
        let waiting = self.waiting();
        let records = waiting.batches.iter().map(|batch| batch.records).sum();
        (records, waiting.bytes, waiting.batches.front().map(|batch| batch.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::tests::Directory;

    #[tokio::test]
    async fn batches_wait_in_order_within_the_bound_and_over_a_restart() {
        let directory = Directory::new();
        let path = directory.path().join("spool");
        let spool = Spool::open(path.clone(), 3 * BLOCK).unwrap();
        spool.put(b"one\ntwo\n", 2, 100).unwrap();
        spool.put(b"three\n", 1, 110).unwrap();
        assert!(matches!(spool.put(&[b'x'; 5000], 1, 120), Err(PutError::Full)));
        assert_eq!(spool.backlog(), (3, 2 * BLOCK, Some(100)));
        drop(spool);
        std::fs::write(path.join("000000000009.part"), "half").unwrap();
        let spool = Spool::open(path.clone(), 3 * BLOCK).unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 2, "half a batch is removed");
        assert_eq!((spool.backlog().0, spool.backlog().1), (3, 2 * BLOCK));
        spool.put(b"five\n", 1, 130).unwrap();
        for (bytes_max, due) in [(2 * BLOCK, ["one\ntwo\n", "three\n"].as_slice()), (1, &["five\n"])] {
            let batches = spool.oldest(bytes_max).await;
            assert_eq!(batches.len(), due.len());
            for (batch, text) in batches.into_iter().zip(due) {
                assert_eq!(spool.read(batch).unwrap(), text.as_bytes());
                spool.remove(batch).unwrap();
            }
        }
        spool.emptied().await;
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        assert_eq!(spool.backlog(), (0, 0, None));
    }
}
