//! Client streams without an allocation: counted from the accept on, in the acceptor and at the workers alike.
//!
//! No client on such a stream has proven anything, so there is a limit with a share for each source
//! (`limits.tcp_half_open`, `net::fair_limit`). The one that must give way is closed by its current owner: a task of the
//! acceptor, or a worker, which finds its number in a list of its own.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::fair_limit::{Evict, FairLimit, Permit};
use super::files;
use super::sys::Waker;
use crate::address::{ClientAddress, StreamId};

/// The limit, for the acceptor and all workers.
// [8489-6.2.2-4]
pub(super) struct HalfOpenStreams {
    limit: Arc<FairLimit>,
    /// As configured; `u64::MAX` is no limit.
    max: AtomicU64,
}

impl Default for HalfOpenStreams {
    fn default() -> Self {
        Self { limit: Arc::default(), max: AtomicU64::new(u64::MAX) }
    }
}

impl HalfOpenStreams {
    pub(super) fn set_max(&self, max: Option<u32>) {
        self.max.store(max.map_or(u64::MAX, u64::from), Ordering::Relaxed);
    }

    /// However many are allowed, they take no more than a part of the files.
    fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed).min(files::unproven_max())
    }

    pub(super) fn count(&self) -> u64 {
        self.limit.count()
    }

    /// How many must give way and are not closed yet.
    pub(super) fn leaving(&self) -> u64 {
        self.limit.leaving()
    }

    /// How many were closed for others.
    pub(super) fn gave_way(&self) -> u64 {
        self.limit.evicted()
    }

    /// For a stream that was accepted in this moment; the receiver tells that it must give way. While files are scarce
    /// each new stream takes the place of another, and nothing comes back where even that would take the last ones.
    pub(super) fn accept(&self, stream: &impl AsFd, client: ClientAddress) -> Option<(Permit, oneshot::Receiver<()>)> {
        let mut max = self.max();
        if files::is_reserved(stream) {
            if files::is_nearly_last(stream) {
                return None;
            }
            max = max.min(self.count());
        }
        Some(self.limit.admit_task(max, client.ip().into()))
    }

    /// For a stream whose allocation has ended.
    pub(super) fn return_to(&self, client: ClientAddress, evict: Evict) -> Permit {
        self.limit.admit(self.max(), client.ip().into(), evict)
    }
}

/// The streams of one worker that must give way; as many as have a place at most.
pub(super) struct EvictedStreams {
    list: Mutex<Vec<StreamId>>,
    waker: Arc<Waker>,
}

impl EvictedStreams {
    pub(super) fn new(waker: Arc<Waker>) -> Arc<Self> {
        Arc::new(Self { list: Mutex::default(), waker })
    }

    /// What tells the worker to close a stream; any thread may.
    pub(super) fn evict(self: &Arc<Self>, stream: StreamId) -> Evict {
        let evicted = Arc::clone(self);
        Box::new(move || evicted.push(stream))
    }

    pub(super) fn push(&self, stream: StreamId) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        self.waker.wake();
    }

    pub(super) fn pop(&self) -> Option<StreamId> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}
