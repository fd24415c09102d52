//! One worker's part of the ledger: what changed is written before the turn's answers leave, and once a second all there is, a
//! slice at a time, so that no call waits for it.
//!
//! [`Worker`] itself stands in `net::worker`.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use super::{ALARM, CONTROL, INBOX, LISTENER};
use super::{Worker, token};
use crate::address::{FiveTuple, Via};
use crate::net::ledger::{LogEntry, WorkerLog};
use crate::net::sys::Epoll;
use crate::protocol::border::{Input, Selector};
use crate::protocol::ledger::LedgerEntry;
use crate::protocol::reason::EndReason;
use crate::time::{Now, Ticks};

/// Allocations that control traffic changed and that are written in one turn; more are written in the next ones.
const TOUCHED_PER_TURN: usize = 256;

/// Slots of a slice: about 30 us.
const SLICE: usize = 64;

/// How often all is written, in milliseconds.
const ALL_EVERY: u64 = 1_000;

/// The ledger as a worker sees it.
pub(super) struct WorkerLedger {
    log: WorkerLog,
    /// The slot with which the writing of all goes on.
    next: Option<usize>,
    begun_at: Option<Ticks>,
    /// It could not be written, and all has not been written again since.
    is_broken: bool,
    /// A message is noted as being in hand.
    holds: bool,
}

/// What a worker must do once that took over from a process that was killed.
pub(super) struct Recovered {
    /// Clients that are not heard any more: their messages were in hand twice.
    pub(super) silenced: Vec<FiveTuple>,
}

impl WorkerLedger {
    pub(super) const fn new(log: WorkerLog) -> Self {
        Self { log, next: None, begun_at: None, is_broken: false, holds: false }
    }

    /// When it has something to write by itself.
    pub(super) fn next_deadline(&self) -> Option<Ticks> {
        self.begun_at.map(|at| Ticks(at.0 + ALL_EVERY))
    }
}

impl Worker {
    /// Writes what this turn changed, and a slice of all.
    pub(super) fn write_ledger(&mut self) {
        let Some(mut ledger) = self.ledger.take() else { return };
        if std::mem::take(&mut ledger.holds) {
            ledger.log.ledger().put_down(usize::from(self.id.0));
        }
        if let Err(error) = self.write_to(&mut ledger) {
            self.give_up_ledger(&mut ledger, &error);
        }
        self.ledger = Some(ledger);
    }

    /// It is tried again when all is due the next time.
    fn give_up_ledger(&self, ledger: &mut WorkerLedger, error: &io::Error) {
        ledger.log.give_up();
        (ledger.next, ledger.begun_at) = (None, Some(self.now));
        if !std::mem::replace(&mut ledger.is_broken, true) {
            tracing::error!(worker = self.id.0, %error, "the ledger can't be written: until it can, a crash ends every call");
        }
    }

    /// The core was made anew: what it has is all there is.
    pub(super) fn begin_ledger_anew(&mut self) {
        let Some(mut ledger) = self.ledger.take() else { return };
        self.server.begin_ledger();
        let written = self.begin_all(&mut ledger).and_then(|()| {
            while ledger.next.is_some() {
                self.write_slice(&mut ledger)?;
            }
            Ok(())
        });
        if let Err(error) = written {
            self.give_up_ledger(&mut ledger, &error);
        }
        self.ledger = Some(ledger);
    }

    fn write_to(&mut self, ledger: &mut WorkerLedger) -> io::Result<()> {
        let is_due = ledger.begun_at.is_none_or(|at| self.now.since(at) >= ALL_EVERY) || ledger.log.is_long();
        if is_due && ledger.next.is_none() {
            self.begin_all(ledger)?;
        }
        let touched = self.server.touched(TOUCHED_PER_TURN);
        if !touched.is_empty() {
            let is_more = touched.allocations.len() + touched.free.len() == TOUCHED_PER_TURN;
            ledger.log.append(&self.log_entry(touched), false)?;
            if is_more {
                self.waker.wake();
            }
        }
        if ledger.next.is_some() {
            self.write_slice(ledger)?;
            self.waker.wake();
        }
        Ok(())
    }

    fn begin_all(&self, ledger: &mut WorkerLedger) -> io::Result<()> {
        ledger.log.begin()?;
        let listeners = self.listeners.places().filter_map(|at| {
            let listener = self.listeners.get(at)?;
            let control = listener.control.as_ref().map(|socket| socket.as_raw_fd());
            Some((listener.id.0, listener.socket.as_raw_fd(), control))
        });
        let totals = LogEntry::Totals {
            totals: Box::new(self.server.totals()),
            streams: self.streams.last_id(),
            listeners: listeners.collect(),
            epoll: self.epoll.number(),
        };
        ledger.log.append(&totals, false)?;
        (ledger.next, ledger.begun_at) = (Some(0), Some(self.now));
        Ok(())
    }

    fn write_slice(&self, ledger: &mut WorkerLedger) -> io::Result<()> {
        let Some(from) = ledger.next else { return Ok(()) };
        let (slice, next) = self.server.slice(from, SLICE);
        if !slice.is_empty() {
            ledger.log.append(&self.log_entry(slice), true)?;
        }
        ledger.next = next;
        if next.is_some() {
            return Ok(());
        }
        ledger.log.complete()?;
        if std::mem::take(&mut ledger.is_broken) {
            tracing::info!(worker = self.id.0, "the ledger is written again");
        }
        Ok(())
    }

    fn log_entry(&self, mut entry: LedgerEntry) -> LogEntry {
        let of_udp = |id| self.relays.get(id).map(|relay| relay.socket.as_raw_fd());
        let number = |id| of_udp(id).or_else(|| self.peers.number(id));
        // One without a socket can't be gone on with.
        entry.allocations.retain(|allocation| number(allocation.id).is_some());
        let sockets = entry.allocations.iter().filter_map(|allocation| number(allocation.id)).collect();
        let second = entry.allocations.iter().flat_map(|allocation| allocation.sockets().skip(1));
        let second: Vec<_> = second.filter_map(|(socket, _)| Some((socket.index, number(socket)?))).collect();
        LogEntry::Allocations { entry, sockets, second: (!second.is_empty()).then_some(second) }
    }

    /// Notes whose message is handled now: if this process dies over it, the next one knows.
    #[inline]
    pub(super) fn take_in_hand(&mut self, via: &Via) {
        if let Some(ledger) = &mut self.ledger {
            ledger.log.ledger().take_in_hand(usize::from(self.id.0), via.five_tuple());
            ledger.holds = true;
        }
    }

    // ---- in the process after

    /// Goes on waiting for what the process that was killed waited for.
    pub(super) fn adopt_epoll(&mut self, epoll: OwnedFd, silenced: Vec<FiveTuple>) -> io::Result<()> {
        let epoll = Epoll::adopted(epoll);
        epoll.add(self.waker.fd(), token(INBOX, 0))?;
        epoll.add(self.alarm.fd(), token(ALARM, 0))?;
        // Those that are new in the configuration.
        for at in self.listeners.places() {
            let Some(listener) = self.listeners.get(at) else { continue };
            epoll.add(listener.socket.as_fd(), token(LISTENER, at))?;
            if let Some(control) = &listener.control {
                epoll.add(control.as_fd(), token(CONTROL, at))?;
            }
        }
        self.epoll = epoll;
        self.recovered = Some(Recovered { silenced });
        Ok(())
    }

    /// Ends the sessions that can't go on: those over streams, whose connections ended with the process, and those of clients that
    /// are not heard any more.
    pub(super) fn end_what_is_lost(&mut self, now: Now, recovered: &Recovered) {
        let reason = |via: &Via| match via {
            Via::Datagram(five_tuple) => recovered.silenced.contains(five_tuple).then_some(EndReason::Fault),
            Via::Stream(id, _) => self.streams.find(*id).is_none().then_some(EndReason::Crash),
        };
        let lost: Vec<_> = self
            .server
            .sessions(now)
            .filter_map(|record| Some((record.session, record.via, reason(&record.via)?)))
            .collect();
        for (session, via, reason) in lost {
            // A mobile client comes another way.
            let input = if via.is_stream() && self.server.outlives_stream(&via) {
                Input::ClientClosed { via }
            } else {
                Input::Close { which: Selector::Session(session), reason }
            };
            self.server.handle_input(now, input);
            self.drain(now);
        }
    }
}
