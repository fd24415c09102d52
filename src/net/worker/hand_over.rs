//! The old process's side of an upgrade in one worker: what goes to the new process while calls go on, the cut, and what
//! becomes of the worker then.
//!
//! [`Worker`] itself stands in `net::worker`; who directs it is `net::hand_over`.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashSet;

use super::{HANDOFF, Worker, token};
use crate::address::RelayedTransportAddress;
use crate::clock;
use crate::net::handoff::{Channel, DESCRIPTORS_MAX, HandoffError, to_memory};
use crate::net::meeting::Meeting;
use crate::net::peers::Peers;
use crate::net::relay_socket::Relays;
use crate::net::tcp::Stream;
use crate::net::upgrade_messages::WorkerPart;
use crate::protocol::accounting::Amount;
use crate::protocol::allocation::AllocationState;
use crate::protocol::changes::EarlyAllocations;
use crate::protocol::ids::AllocationId;
use crate::protocol::reason::DropReason;
use crate::state;
use crate::time::Now;

/// Allocations told at once: their sockets and the memory of their states fit into one message.
const ALLOCATIONS_AT_ONCE: usize = DESCRIPTORS_MAX - 3;

/// How often inboxes and rings are emptied before all is quiet: a question, its answer, and what that led to.
const DRY_ROUNDS: usize = 3;

/// How long a worker waits for the others, and for room in its channel, once it has stopped reading.
const CUT_TIME: Duration = Duration::from_millis(500);

/// Bytes of all queues of a worker's streams that go along; what is beyond is given up.
const QUEUED_BYTES_MAX: usize = 64 << 20;

/// What becomes of workers that have stopped reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::net) enum Outcome {
    /// The new process has read nothing: all goes on.
    GoOn,
    /// The new process has read and written: sessions over datagrams go on, streams can't.
    GoOnWithoutStreams,
    /// The sessions are the new process's.
    End,
}

/// What a worker has handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::net) struct HandedOver {
    pub(in crate::net) allocations: u64,
    pub(in crate::net) streams: u64,
}

/// What the workers of the old process share while they hand over.
#[derive(Debug)]
pub(in crate::net) struct HandOver {
    /// One report when all was told early, one at the cut; one decision after that.
    pub(in crate::net) meeting: Meeting<Outcome, Result<HandedOver, String>>,
    /// Microseconds of the monotonic clock when the first worker stopped reading.
    stopped_at: AtomicU64,
    /// The format of the states.
    format: u32,
}

impl HandOver {
    pub(in crate::net) const fn new(workers: usize, format: u32) -> Self {
        Self { meeting: Meeting::new(workers), stopped_at: AtomicU64::new(u64::MAX), format }
    }

    /// Microseconds of the monotonic clock when the first worker stopped reading.
    pub(in crate::net) fn stopped_at(&self) -> u64 {
        self.stopped_at.load(Ordering::Relaxed)
    }
}

/// One worker's part of it.
pub(super) struct HandingOver {
    channel: Channel,
    common: Arc<HandOver>,
    next: EarlyStep,
    /// The allocations whose sockets have gone.
    passed: HashSet<(AllocationId, RelayedTransportAddress)>,
    /// Epoll tells when the channel has room.
    awaits_room: bool,
    must_stop: bool,
}

/// What is told next while calls go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EarlyStep {
    /// The listener at this place.
    Listener(usize),
    /// Allocations from this slot on.
    Allocations(usize),
    End,
    Done,
}

fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Worker {
    /// Begins to tell the new process what this worker has.
    pub(super) fn begin_hand_over(&mut self, channel: Channel, common: Arc<HandOver>) {
        self.server.begin_early_export();
        self.handing = Some(HandingOver {
            channel,
            common,
            next: EarlyStep::Listener(0),
            passed: HashSet::new(),
            awaits_room: false,
            must_stop: false,
        });
        self.waker.wake();
    }

    /// Stops reading at the end of this turn.
    pub(super) const fn stop_reading(&mut self) {
        if let Some(handing) = &mut self.handing {
            handing.must_stop = true;
        }
    }

    /// The new process is gone before the cut.
    pub(super) fn give_up_hand_over(&mut self) {
        if let Some(handing) = self.handing.take() {
            self.server.end_early_export();
            self.epoll.remove(handing.channel.as_fd());
        }
    }

    /// Once a turn: tells a part of what this worker has, or stops reading.
    pub(super) fn go_on_handing_over(&mut self) {
        let Some(mut handing) = self.handing.take() else { return };
        if handing.must_stop {
            return self.cut(handing);
        }
        match self.tell_early(&mut handing) {
            Ok(()) if handing.next == EarlyStep::Done => self.await_room(&mut handing, false),
            Ok(()) => {
                self.await_room(&mut handing, false);
                self.waker.wake();
            }
            Err(HandoffError::Timeout(_)) => self.await_room(&mut handing, true),
            Err(error) => {
                handing.next = EarlyStep::Done;
                self.await_room(&mut handing, false);
                handing.common.meeting.report(Err(error.to_string()));
            }
        }
        self.handing = Some(handing);
    }

    fn await_room(&self, handing: &mut HandingOver, awaits: bool) {
        if awaits == handing.awaits_room {
            return;
        }
        handing.awaits_room = awaits;
        let channel = handing.channel.as_fd();
        if !awaits {
            return self.epoll.remove(channel);
        }
        let token = token(HANDOFF, 0);
        let watched = self.epoll.add(channel, token).and_then(|()| self.epoll.modify(channel, token, false, true));
        if watched.is_err() {
            // Then it is tried again in each turn.
            self.waker.wake();
        }
    }

    fn tell_early(&mut self, handing: &mut HandingOver) -> Result<(), HandoffError> {
        let HandingOver { channel, common, next, passed, .. } = handing;
        *next = match *next {
            EarlyStep::Listener(at) if at < self.listeners.places().end => {
                if let Some(listener) = self.listeners.get(at) {
                    let sockets = [Some(listener.socket.as_fd()), listener.control.as_ref().map(|of| of.as_fd())];
                    let sockets: Vec<BorrowedFd<'_>> = sockets.into_iter().flatten().collect();
                    channel.send(&WorkerPart::Listener(listener.id.0), &sockets, Duration::ZERO)?;
                }
                EarlyStep::Listener(at + 1)
            }
            EarlyStep::Listener(_) => EarlyStep::Allocations(0),
            EarlyStep::Allocations(from) => {
                let (mut allocations, mut next) = self.server.early_export(from, ALLOCATIONS_AT_ONCE);
                if allocations.iter().flat_map(AllocationState::sockets).count() > ALLOCATIONS_AT_ONCE {
                    // Some have two, and so many sockets do not go into one message.
                    (allocations, next) = self.server.early_export(from, ALLOCATIONS_AT_ONCE / 2);
                }
                if !allocations.is_empty() {
                    let sockets: Vec<_> = allocations.iter().flat_map(AllocationState::sockets).collect();
                    let states = state::write(&EarlyAllocations { worker: self.id, allocations }, common.format);
                    let memory = to_memory(&states.map_err(unwritable)?)?;
                    let mut descriptors = vec![memory.as_fd()];
                    for (id, _) in &sockets {
                        descriptors.push(relayed_socket(&self.relays, &self.peers, *id)?);
                    }
                    channel.send(&WorkerPart::Early, &descriptors, Duration::ZERO)?;
                    passed.extend(sockets);
                }
                next.map_or(EarlyStep::End, EarlyStep::Allocations)
            }
            EarlyStep::End => {
                channel.send(&WorkerPart::EarlyEnd, &[], Duration::ZERO)?;
                let allocations = passed.len() as u64;
                common.meeting.report(Ok(HandedOver { allocations, streams: 0 }));
                EarlyStep::Done
            }
            EarlyStep::Done => EarlyStep::Done,
        };
        Ok(())
    }

    // ---- the cut

    fn cut(&mut self, mut handing: HandingOver) {
        handing.common.stopped_at.fetch_min(clock::monotonic_microseconds(), Ordering::Relaxed);
        self.epoll.remove(handing.channel.as_fd());
        let told = self.run_dry(&handing.common).and_then(|()| self.tell_rest(&mut handing));
        handing.common.meeting.report(told);
        let outcome = loop {
            // Who directs the upgrade decides in any case.
            if let Some(outcome) = handing.common.meeting.decision(0, Duration::from_secs(60)) {
                break outcome;
            }
        };
        match outcome {
            Outcome::GoOn => {}
            Outcome::GoOnWithoutStreams => self.drop_streams(clock::now()),
            Outcome::End => self.is_over = true,
        }
        if !self.is_over {
            self.server.end_early_export();
            // What came in the meantime.
            self.waker.wake();
        }
    }

    /// Works off all that is on its way between workers and to streams; what comes from outside waits in its sockets.
    fn run_dry(&mut self, common: &HandOver) -> Result<(), String> {
        let late = || "a worker did not stop in time".to_owned();
        if !common.meeting.meet(CUT_TIME) {
            return Err(late());
        }
        for _ in 0..DRY_ROUNDS {
            let now = clock::now();
            while !self.consumers.is_empty() {
                self.take_over(now);
                self.flush();
            }
            self.waker.clear();
            self.empty_inbox(now);
            self.flush();
            self.flush_streams(now);
            self.flush();
            self.producers.wake();
            if !common.meeting.meet(CUT_TIME) {
                return Err(late());
            }
        }
        if self.stopping { Err("the server is stopping".to_owned()) } else { Ok(()) }
    }

    fn empty_inbox(&mut self, now: Now) {
        while let Some(at) = self.streams.pop_evicted() {
            self.close_stream(now, at);
        }
        while let Some(stream) = self.adopted.pop_first() {
            self.adopt(now, stream);
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.net.messages.add(1);
            self.on_inbox_message(now, message);
        }
        while !self.closing.is_empty() {
            self.close_some(now);
        }
        while !self.metering.is_empty() {
            self.meter_some();
        }
    }

    /// Tells what changed since it was told early, and the streams.
    fn tell_rest(&mut self, handing: &mut HandingOver) -> Result<HandedOver, String> {
        let HandingOver { channel, common, passed, .. } = handing;
        self.server.put_down();
        self.give_up_beyond(QUEUED_BYTES_MAX);
        let changes = self.server.export_changes();
        let new_or_changed = changes.allocations.iter().flat_map(AllocationState::sockets);
        let new = new_or_changed.filter(|socket| !passed.contains(socket)).map(|(id, _)| id);
        let new: Vec<AllocationId> = new.collect();
        for ids in new.chunks(ALLOCATIONS_AT_ONCE) {
            let sockets = ids.iter().map(|id| relayed_socket(&self.relays, &self.peers, *id).map_err(failed));
            let sockets = sockets.collect::<Result<Vec<_>, String>>()?;
            let slots = ids.iter().map(|id| id.index).collect();
            channel.send(&WorkerPart::Sockets(slots), &sockets, CUT_TIME).map_err(failed)?;
        }
        let held: Vec<_> = self.relays.held().collect();
        for held in held.chunks(ALLOCATIONS_AT_ONCE) {
            let sockets: Vec<BorrowedFd<'_>> = held.iter().map(|(_, socket)| *socket).collect();
            let relayed = held.iter().map(|(relayed, _)| *relayed).collect();
            channel.send(&WorkerPart::Held(relayed), &sockets, CUT_TIME).map_err(failed)?;
        }
        let (peers, sockets) = self.peers.export();
        for sockets in sockets.chunks(ALLOCATIONS_AT_ONCE) {
            channel.send(&WorkerPart::Peers, sockets, CUT_TIME).map_err(failed)?;
        }
        let (mut streams, sockets) = self.streams.export();
        streams.peers = (!peers.is_empty()).then_some(peers);
        for sockets in sockets.chunks(ALLOCATIONS_AT_ONCE) {
            channel.send(&WorkerPart::Streams, sockets, CUT_TIME).map_err(failed)?;
        }
        let told = HandedOver { allocations: self.server.allocations() as u64, streams: sockets.len() as u64 };
        let written = |bytes: Result<Vec<u8>, state::StateError>| -> Result<OwnedFd, String> {
            to_memory(&bytes.map_err(failed)?).map_err(failed)
        };
        let changes = written(state::write(&changes, common.format))?;
        let streams = written(state::write(&streams, common.format))?;
        channel.send(&WorkerPart::Changes, &[changes.as_fd(), streams.as_fd()], CUT_TIME).map_err(failed)?;
        Ok(told)
    }

    /// What waits for streams beyond a bound does not go along.
    fn give_up_beyond(&mut self, bytes: usize) {
        let waiting = |worker: &Self, at| worker.streams.get(at).map(Stream::waiting).unwrap_or_default();
        for (at, payloads) in self.streams.give_up_beyond(bytes) {
            let after = waiting(self, at);
            let given_up = payloads
                .iter()
                .fold(Amount::default(), |sum, (_, bytes)| sum + Amount { packets: 1, bytes: u64::from(*bytes) });
            self.net.waits(after + given_up, after);
            for (allocation, bytes) in payloads {
                self.not_sent_to_stream(at, allocation, u64::from(bytes), DropReason::SlowClient);
            }
            self.tell_decided(at);
        }
    }

    /// Closes every stream without a word: the new process has used their keys.
    fn drop_streams(&mut self, now: Now) {
        for at in self.streams.all() {
            if let Some(stream) = self.streams.get_mut(at) {
                stream.abandon();
            }
            self.close_stream(now, at);
        }
        self.flush();
    }
}

fn unwritable(error: state::StateError) -> HandoffError {
    HandoffError::System(io::Error::other(error.to_string()))
}

/// The socket of a relayed address, of UDP or of TCP.
fn relayed_socket<'a>(relays: &'a Relays, peers: &'a Peers, id: AllocationId) -> Result<BorrowedFd<'a>, HandoffError> {
    let of_udp = relays.get(id).map(|relay| relay.socket.as_fd());
    of_udp.or_else(|| Some(peers.relay(id)?.listener.as_fd())).ok_or_else(|| without_socket(id))
}

fn without_socket(id: AllocationId) -> HandoffError {
    HandoffError::System(io::Error::other(format!("allocation {} has no relayed socket", id.index)))
}
