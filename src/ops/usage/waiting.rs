//! Signed lines on their way to one sink: bounded, with a share for each user, so that a sink that takes nothing loses
//! its own records alone, and a user who churns meanwhile does not push out the records of all others.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::record::Record;

/// Bytes of lines that may wait for one sink.
const BYTES_MAX: usize = 4 << 20;

/// Beyond this a user may hold no more than a share of it.
const SHARED_FROM: usize = BYTES_MAX / 2;

/// What one user may hold then.
const USER_BYTES_MAX: usize = BYTES_MAX / 16;

/// A record and its line, signed if lines are.
#[derive(Debug)]
pub(super) struct RecordLine {
    pub(super) record: Record,
    pub(super) text: String,
}

#[derive(Default)]
struct QueueState {
    lines: VecDeque<Arc<RecordLine>>,
    bytes: usize,
    /// By the hash of a user: the bytes that wait.
    of_user: HashMap<u64, usize>,
    is_closed: bool,
    must_reopen: bool,
}

/// What waits for one sink.
#[derive(Default)]
pub(super) struct RecordQueue {
    state: Mutex<QueueState>,
    came: Condvar,
    keys: RandomState,
}

impl RecordQueue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        // Whole between calls, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(&self, record: &Record) -> u64 {
        self.keys.hash_one((&record.tenant, &record.user))
    }

    /// Leaves a line for the sink; `false` if there is no room for it, or none for this user.
    pub(super) fn push(&self, line: &Arc<RecordLine>) -> bool {
        let (user, bytes) = (self.user(&line.record), line.text.len());
        let mut state = self.state();
        let of_user = state.of_user.get(&user).copied().unwrap_or(0);
        let is_over = state.bytes > SHARED_FROM && of_user + bytes > USER_BYTES_MAX;
        if state.bytes + bytes > BYTES_MAX || is_over {
            return false;
        }
        state.bytes += bytes;
        *state.of_user.entry(user).or_default() += bytes;
        state.lines.push_back(Arc::clone(line));
        drop(state);
        self.came.notify_one();
        true
    }

    /// The oldest lines, which stay until [`RecordQueue::remove`], and whether the file is to be opened anew; waits for
    /// either. `None` at the end of all.
    pub(super) fn oldest(&self, lines_max: usize) -> Option<(Vec<Arc<RecordLine>>, bool)> {
        let mut state = self.state();
        loop {
            if !state.lines.is_empty() || state.must_reopen {
                let lines = state.lines.iter().take(lines_max).cloned().collect();
                return Some((lines, std::mem::take(&mut state.must_reopen)));
            }
            if state.is_closed {
                return None;
            }
            state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The sink has taken, or lost, so many of the oldest.
    pub(super) fn remove(&self, lines: usize) {
        let mut state = self.state();
        for _ in 0..lines {
            let Some(line) = state.lines.pop_front() else { return };
            let (user, bytes) = (self.user(&line.record), line.text.len());
            state.bytes -= bytes;
            if let Some(of_user) = state.of_user.get_mut(&user) {
                *of_user -= bytes;
                if *of_user == 0 {
                    state.of_user.remove(&user);
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.state().lines.len()
    }

    /// Waits before a sink that failed is tried again, unless the end has come or the file is to be opened anew; tells
    /// whether the end has come.
    pub(super) fn rest(&self, time: Duration) -> bool {
        let state = self.state();
        let rest = |state: &mut QueueState| !state.is_closed && !state.must_reopen;
        let (state, _) = self.came.wait_timeout_while(state, time, rest).unwrap_or_else(PoisonError::into_inner);
        state.is_closed
    }

    /// The file may have been renamed by somebody else.
    pub(super) fn reopen(&self) {
        self.state().must_reopen = true;
        self.came.notify_one();
    }

    /// Nothing comes any more.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.came.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::record::RecordKind;
    use crate::ops::usage::record::tests::record;

    fn line(user: &str) -> Arc<RecordLine> {
        let mut record = record("s", 0, RecordKind::Start, 0);
        record.user = user.to_owned();
        Arc::new(RecordLine { record, text: "x".repeat(1000) })
    }

    // F-A4: the records of a user who churns do not push out those of the others.
    #[test]
    fn a_user_who_churns_leaves_room_for_the_others() {
        let waiting = RecordQueue::default();
        let push = |user: &str, lines: usize| (0..lines).filter(|_| waiting.push(&line(user))).count();
        assert_eq!(push("churn", 10_000), SHARED_FROM / 1000 + 1);
        assert_eq!(push("alice", 10), 10);
        assert_eq!(push("bob", 10_000), USER_BYTES_MAX / 1000);
        let (oldest, must_reopen) = waiting.oldest(3).unwrap();
        assert!(!must_reopen && oldest.iter().all(|line| line.record.user == "churn"));
        waiting.remove(SHARED_FROM / 1000 + 1);
        assert_eq!(waiting.len(), 10 + USER_BYTES_MAX / 1000);
        assert!(push("churn", 100) == 100, "it has room again");
        waiting.reopen();
        waiting.close();
        assert!(waiting.rest(Duration::from_secs(60)), "the end does not rest");
        waiting.remove(10_000);
        assert!(waiting.oldest(1).unwrap().1 && waiting.oldest(1).is_none());
    }
}
