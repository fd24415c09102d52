//! What the workers tell the log and the usage records: beginnings and ends of sessions, and refusals.
//!
//! Bounded channels, one for each reader, so that neither a flood of refusals nor a log that is behind can push out a
//! session's record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;

use super::counters::NetCounters;
use crate::protocol::border::Event;

/// Session events that may wait for the log, and as many for usage records; and refusals.
const SESSION_EVENTS: usize = 65_536;
const REFUSAL_EVENTS: usize = 1024;

/// Where a worker sends events.
#[derive(Clone)]
pub(super) struct Events {
    /// For the log.
    sessions: mpsc::Sender<Event>,
    /// For usage records.
    records: mpsc::Sender<Event>,
    refusals: mpsc::Sender<Event>,
    readers: Arc<Readers>,
}

/// Who reads events besides the log.
#[derive(Default)]
struct Readers {
    /// Usage records are kept.
    are_recorded: AtomicBool,
    /// Somebody hears of sessions whatever the log's level is.
    are_heard: AtomicBool,
}

impl Events {
    /// One end for all workers, one for the readers.
    pub(super) fn new() -> (Self, EventReceivers) {
        let (sessions, sessions_out) = mpsc::channel(SESSION_EVENTS);
        let (records, records_out) = mpsc::channel(SESSION_EVENTS);
        let (refusals, refusals_out) = mpsc::channel(REFUSAL_EVENTS);
        let readers = Arc::new(Readers::default());
        let receivers = EventReceivers {
            sessions: sessions_out,
            records: Some(records_out),
            refusals: refusals_out,
            readers: Arc::clone(&readers),
        };
        (Self { sessions, records, refusals, readers }, receivers)
    }

    /// Tells of a session wherever somebody reads it: each event wakes another thread.
    pub(super) fn tell_session(&self, event: Event, net: &NetCounters) {
        let is_heard = |level| LevelFilter::current() >= level || self.readers.are_heard.load(Ordering::Relaxed);
        let is_for_log = match &event {
            Event::AllocationEnded(_) => is_heard(LevelFilter::INFO),
            Event::AllocationCreated(_) | Event::AllocationMoved { .. } => is_heard(LevelFilter::DEBUG),
            // Of records alone: a line per minute and session would bury the others.
            Event::AllocationInterim(_) | Event::Refused { .. } => false,
        };
        if self.readers.are_recorded.load(Ordering::Relaxed) && self.records.try_send(event.clone()).is_err() {
            net.records_lost.add(1);
        }
        if is_for_log && self.sessions.try_send(event).is_err() {
            net.events_lost.add(1);
        }
    }

    /// Tells of a refused request; lost first in a flood, because the counters have them all.
    pub(super) fn tell_refusal(&self, event: Event, net: &NetCounters) {
        if self.refusals.try_send(event).is_err() {
            net.refusal_events_lost.add(1);
        }
    }
}

/// What the workers tell: sessions' beginnings and ends, and refusals.
pub struct EventReceivers {
    /// For the log; never lost while it keeps up with 65,536 behind.
    pub sessions: mpsc::Receiver<Event>,
    /// For usage records, which wait for no log line; nothing is sent until [`EventReceivers::record`] takes it, or
    /// [`EventReceivers::keep_records`] says that this will be done.
    records: Option<mpsc::Receiver<Event>>,
    /// Lost first in a flood; the counters have them all.
    pub refusals: mpsc::Receiver<Event>,
    readers: Arc<Readers>,
}

impl EventReceivers {
    /// Usage records are kept: takes the events for them, once.
    pub fn record(&mut self) -> Option<mpsc::Receiver<Event>> {
        self.readers.are_recorded.store(true, Ordering::Relaxed);
        self.records.take()
    }

    /// Events for usage records wait from now on until they are taken.
    pub(super) fn keep_records(&self) {
        self.readers.are_recorded.store(true, Ordering::Relaxed);
    }

    /// No usage records are kept.
    pub fn record_nothing(&mut self) {
        self.readers.are_recorded.store(false, Ordering::Relaxed);
        self.records = None;
    }

    /// Somebody hears of sessions besides the log, also of what its level leaves out.
    pub fn hear(&self) {
        self.readers.are_heard.store(true, Ordering::Relaxed);
    }
}
