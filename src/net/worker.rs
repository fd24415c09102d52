//! One worker: a thread, an epoll set, a [`Server`], and everything that belongs to its clients.
//!
//! The loop: wait, read the clock once, take each ready descriptor (bounded work each), judge what came,
//! send in batches, drain the core, sleep until the next deadline. Level-triggered, so a descriptor that was
//! not emptied comes again, after the others had their turn.

mod budget;
mod connections;
mod datagrams;
mod hand_over;
mod icmp;
mod inbox;
mod ledger;
mod listeners;
mod moving;
mod pace;
mod receive_buffers;
mod recovery;
mod stream;
mod take_over;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Barrier};

use self::budget::{Budget, STREAMS_PER_TURN};
use self::connections::Lost;
use self::datagrams::Datagrams;
use self::hand_over::HandingOver;
pub(super) use self::hand_over::{HandOver, HandedOver, Outcome};
pub(super) use self::inbox::{Adopted, AdoptedStreams, Mailbox, Message, NotSent};
use self::inbox::{Closing, Metering};
use self::ledger::{Recovered, WorkerLedger};
use self::listeners::Listeners;
pub(super) use self::listeners::{Listener, ListenerChange, ListenerId, Users};
pub(super) use self::pace::ReadBudget;
use self::pace::{Pace, PacketsSoFar};
use self::receive_buffers::ReceiveBufferPolicy;
pub(super) use self::receive_buffers::ReceiveBufferState;
pub(crate) use self::take_over::Before;
pub(super) use self::take_over::{AdoptedListener, Reached, TakeOver, TakenOver, TakingOver};

use super::counters::NetCounters;
use super::events::Events;
use super::half_open::{EvictedStreams, HalfOpenStreams};
use super::ledger::{Ledger, WorkerLog};
use super::payload_rings::{Consumers, Producers};
use super::peers::Peers;
use super::relay_socket::{Relays, WantedPort};
use super::shared::Process;
use super::streams::Streams;
use super::sys::{self, Alarm, Epoll, Ready, Waker};
use crate::address::{RelayedTransportAddress, StreamId, Via};
use crate::clock;
use crate::protocol::Server;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::border::{Event, Input, OpenedRelay, Output, Parity, RelayRefused, RelayRequest};
use crate::protocol::counters::Counters;
use crate::protocol::ids::{AllocationId, WorkerId};
use crate::time::{Now, Ticks};

/// Datagrams of one batch: after so many, listeners, TCP, timers and messages get their turn.
pub(super) const BATCH: usize = 64;

/// The arena: a batch from relayed sockets and other workers, one from a listener, and where streams are read, room
/// for the longest message and as much again.
const LISTENER_SLOT: usize = BATCH;
const STREAM_SLOT: usize = 2 * BATCH;
const STREAM_SLOTS: usize = 2;

const KIND_BITS: u32 = 56;
const LISTENER: u64 = 0;
const RELAY: u64 = 1;
const STREAM: u64 = 2;
const INBOX: u64 = 3;
/// A listener's second socket, for what is not data.
const CONTROL: u64 = 4;
const ALARM: u64 = 5;
/// The channel to the new process of an upgrade.
const HANDOFF: u64 = 6;
/// A relayed address of TCP, at which peers connect.
const TCP_RELAY: u64 = 7;
/// A connection to a peer.
const PEER: u64 = 8;

const fn token(kind: u64, index: usize) -> u64 {
    kind << KIND_BITS | index as u64
}

/// Limits of client streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpLimits {
    /// Bytes that may wait for one client.
    pub queue_bytes: usize,
    /// Milliseconds that a stream may live without an allocation; 0 means for ever.
    pub unauthenticated_ms: u64,
}

/// How a worker moves datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatagramSettings {
    /// Whether the kernel may coalesce and segment (UDP_GRO, UDP_SEGMENT).
    pub segmentation_offload: bool,
    /// Microseconds that a busy worker lets packets gather before it looks again; 0 means never.
    pub coalesce_microseconds: u32,
}

/// What a worker's shell is told, at its start and by each reload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShellSettings {
    /// For streams.
    pub tcp: TcpLimits,
    /// For datagrams.
    pub datagrams: DatagramSettings,
}

/// What a worker is made of.
pub(super) struct Setup {
    pub(super) id: WorkerId,
    pub(super) server: Server,
    pub(super) process: Arc<Process>,
    pub(super) counters: Arc<Counters>,
    pub(super) net: Arc<NetCounters>,
    pub(super) listeners: Vec<ListenerChange>,
    pub(super) relays: Relays,
    pub(super) peers: Peers,
    pub(super) half_open: Arc<HalfOpenStreams>,
    pub(super) inbox: Receiver<Message>,
    pub(super) adopted: Arc<AdoptedStreams>,
    pub(super) waker: Arc<Waker>,
    pub(super) mailboxes: Arc<Vec<Mailbox>>,
    pub(super) events: Events,
    pub(super) shell: ShellSettings,
    pub(super) producers: Producers,
    pub(super) consumers: Consumers,
    /// Where all workers, and who started them, meet before their loops begin.
    pub(super) begun: Arc<Barrier>,
    /// What is taken over from another process before that.
    pub(super) taking_over: Option<TakingOver>,
    /// Where it writes what the next process needs if this one is killed.
    pub(super) ledger: Option<Arc<Ledger>>,
}

pub(super) struct Worker {
    id: WorkerId,
    server: Server,
    process: Arc<Process>,
    counters: Arc<Counters>,
    net: Arc<NetCounters>,
    epoll: Epoll,
    alarm: Alarm,
    listeners: Listeners,
    relays: Relays,
    /// Of TCP allocations.
    peers: Peers,
    /// Relayed addresses of TCP at which none is accepted for a while, because there were no files.
    resting_relays: Vec<(Ticks, AllocationId)>,
    /// What connections had on their way that ended with their allocation.
    lost: Vec<Lost>,
    streams: Streams,
    inbox: Receiver<Message>,
    adopted: Arc<AdoptedStreams>,
    /// What operators want closed, one after the other.
    closing: VecDeque<Closing>,
    /// Whose sessions are to pass other meters, one after the other.
    metering: VecDeque<Metering>,
    /// Answers that the core waits for.
    answers: VecDeque<Input<'static>>,
    waker: Arc<Waker>,
    mailboxes: Arc<Vec<Mailbox>>,
    events: Events,
    datagrams: Datagrams,
    budget: Budget,
    /// All frames that ever came over streams.
    frames: u64,
    /// What the clock said at the start of this turn.
    now: Ticks,
    loops: u32,
    settings: DatagramSettings,
    pace: Pace,
    receive_buffers: ReceiveBufferPolicy,
    producers: Producers,
    consumers: Consumers,
    stopping: bool,
    /// The sessions are another process's: the thread ends without a word to anybody.
    is_over: bool,
    /// What a new process is told.
    handing: Option<HandingOver>,
    /// Its sessions came from another process, and it has not had a turn since.
    has_taken_over: bool,
    /// That process was killed.
    recovered: Option<Recovered>,
    ledger: Option<WorkerLedger>,
    /// The stream whose bytes are being handled.
    visited: Option<StreamId>,
}

impl Worker {
    pub(super) fn new(setup: Setup) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(setup.waker.fd(), token(INBOX, 0))?;
        let alarm = Alarm::new()?;
        epoll.add(alarm.fd(), token(ALARM, 0))?;
        let mut worker = Self {
            id: setup.id,
            server: setup.server,
            counters: setup.counters,
            net: setup.net,
            epoll,
            alarm,
            listeners: Listeners::default(),
            relays: setup.relays,
            peers: setup.peers,
            resting_relays: Vec::new(),
            lost: Vec::new(),
            streams: Streams::new(setup.shell.tcp, setup.half_open, EvictedStreams::new(Arc::clone(&setup.waker))),
            inbox: setup.inbox,
            adopted: setup.adopted,
            closing: VecDeque::new(),
            metering: VecDeque::new(),
            answers: VecDeque::new(),
            process: setup.process,
            waker: setup.waker,
            mailboxes: setup.mailboxes,
            events: setup.events,
            datagrams: Datagrams::new(),
            budget: Budget::new(),
            frames: 0,
            now: clock::now().ticks,
            loops: 0,
            settings: setup.shell.datagrams,
            pace: Pace::default(),
            receive_buffers: ReceiveBufferPolicy::new(clock::now().ticks),
            producers: setup.producers,
            consumers: setup.consumers,
            stopping: false,
            is_over: false,
            handing: None,
            has_taken_over: false,
            recovered: None,
            ledger: None,
            visited: None,
        };
        if let Some(ledger) = setup.ledger {
            worker.server.begin_ledger();
            worker.ledger = Some(WorkerLedger::new(WorkerLog::new(ledger, usize::from(worker.id.0))));
        }
        for change in setup.listeners {
            worker.change_listener(change)?;
        }
        Ok(worker)
    }

    /// Runs until [`Message::Stop`].
    pub(super) fn run(mut self, begun: &Barrier) -> io::Result<()> {
        let mut ready = Ready::new(BATCH);
        self.net.processor.adopt();
        sys::sleep_exactly();
        begun.wait();
        while !self.stopping && !self.is_over {
            // A broken assumption about one packet must not end everybody's calls.
            match catch_unwind(AssertUnwindSafe(|| self.turn(&mut ready))) {
                Ok(turned) => turned?,
                Err(panic) => {
                    if let Err(why) = self.recover() {
                        tracing::error!(worker = self.id.0, why, "a panic can't be recovered from");
                        resume_unwind(panic);
                    }
                }
            }
        }
        self.net.processor.give_up();
        Ok(())
    }

    /// Waits, and does what there is to do.
    fn turn(&mut self, ready: &mut Ready) -> io::Result<()> {
        if self.datagrams.has_batch() {
            self.finish_batch(clock::now());
        }
        self.alarm.set(self.next_deadline());
        self.epoll.wait(ready, self.streams.ready() == 0)?;
        let now = clock::now();
        self.now = now.ticks;
        self.loops = self.loops.wrapping_add(1);
        self.net.loops.add(1);
        self.budget.begin_turn();
        let has_taken_over = std::mem::take(&mut self.has_taken_over);
        if has_taken_over {
            // Before anything of it ends, and before any other stream comes.
            self.count_users();
            if let Some(recovered) = self.recovered.take() {
                self.end_what_is_lost(now, &recovered);
            }
        }
        self.on_deadlines(now);
        self.visit_ready_streams(now);
        for index in 0..ready.len() {
            let Some(event) = ready.get(index) else { break };
            let at = (event.token & ((1 << KIND_BITS) - 1)) as usize;
            match event.token >> KIND_BITS {
                LISTENER => self.on_listener(now, at),
                RELAY => self.on_relay(now, at, event.failed),
                STREAM => self.on_stream(now, at, event.readable, event.writable),
                CONTROL => self.on_control(now, at),
                // What is due is done at the start of each turn.
                ALARM => self.alarm.clear(),
                // What is to be told is told at the end of each turn.
                HANDOFF => {}
                TCP_RELAY => self.on_tcp_relay(now, at),
                PEER => self.on_peer(now, at, event.readable, event.writable),
                _ => self.on_inbox(now),
            }
            self.server.put_down();
            if self.datagrams.since_listeners >= BATCH && index + 1 < ready.len() {
                self.visit_listeners(now);
            }
        }
        // Before the answers leave: what a client was told holds after a crash.
        if self.ledger.is_some() {
            self.write_ledger();
        }
        self.flush();
        self.flush_streams(now);
        self.flush();
        self.producers.wake();
        self.gather(now, ready.len());
        self.receive_buffers.on_turn(now.ticks, self.datagrams_received());
        if has_taken_over {
            self.server.review_all(now);
        }
        if self.handing.is_some() {
            self.go_on_handing_over();
        }
        Ok(())
    }

    /// All datagrams that were ever received.
    fn datagrams_received(&self) -> u64 {
        self.net.listener_batches.datagrams() + self.net.relayed_batches.datagrams()
    }

    /// Lets packets gather for a moment, if there are so many that the next ones are sure to come.
    fn gather(&mut self, now: Now, ready: usize) {
        // Where much is waiting already there is nothing to gather.
        let may_wait = self.settings.coalesce_microseconds > 0 && ready < BATCH / 2;
        let packets = PacketsSoFar {
            all: self.datagrams_received() + self.frames,
            in_rows: self.datagrams.in_rows + self.frames,
        };
        if may_wait && self.pace.pays_to_wait(now.ticks, packets) {
            sys::sleep(self.settings.coalesce_microseconds);
        }
    }

    /// When something must be done by itself.
    fn next_deadline(&self) -> Option<Ticks> {
        let of_ledger = self.ledger.as_ref().and_then(WorkerLedger::next_deadline);
        let of_connections = self.carrying_deadline();
        let all = [self.server.poll_timeout(), self.streams.next_deadline(), of_ledger, of_connections];
        all.into_iter().flatten().min()
    }

    // [8489-6.2.2-2]
    fn on_deadlines(&mut self, now: Now) {
        if self.server.poll_timeout().is_some_and(|at| at <= now.ticks) {
            self.flush_payload();
            self.server.handle_timeout(now);
            self.drain(now);
        }
        if self.carrying_deadline().is_some_and(|at| at <= now.ticks) {
            self.go_on_carrying(now);
        }
        // Those that are left have their turn at once: the next deadline is past.
        for _ in 0..STREAMS_PER_TURN {
            let Some(at) = self.streams.pop_overdue(now.ticks) else { return };
            self.net.streams_overdue.add(1);
            self.close_stream(now, at);
        }
    }

    // ---- what the core wants done

    fn drain(&mut self, now: Now) {
        loop {
            while let Some(output) = self.server.poll_output() {
                self.on_output(now, output);
            }
            self.lost.clear();
            // The driving rule: one input, then everything that it led to, then the next input.
            let Some(answer) = self.answers.pop_front() else { return };
            self.server.handle_input(now, answer);
        }
    }

    fn on_output(&mut self, now: Now, output: Output) {
        match output {
            Output::Reply { via, bytes } => self.reply(via, &bytes),
            Output::Admit { allocation, purpose } => {
                let claim = self.server.quota_claim(allocation);
                let result = claim.map(|(claim, limits)| self.process.admit(now, &claim, limits, purpose));
                self.answers.extend(result.map(|result| Input::Admission { allocation, result }));
            }
            Output::OpenRelay { allocation, request } => {
                let result = self.open_relay(now, allocation, request);
                self.answers.push_back(Input::RelayOpened { allocation, result });
            }
            Output::CloseRelay { allocation, relayed, client } => {
                self.relays.close(allocation, relayed, client, now.ticks);
                self.peers.close(allocation, client, now.ticks);
            }
            Output::Connect { connection, allocation, relayed, peer } => {
                self.connect(connection, allocation, relayed, peer)
            }
            Output::BindConnection { connection, via } => self.bind_connection(connection, via),
            Output::CloseConnection { connection } => self.close_connection(now, connection),
            Output::MoveRelay { from, to, relayed } => self.move_relay(from, to, relayed),
            Output::CloseReserved { relayed } => self.relays.close_held(relayed, now.ticks),
            Output::KeepRelay { allocation, relayed, via } => self.keep_relay(now, allocation, relayed, via),
            Output::Path { via, is_in_use } => self.on_path(now, via, is_in_use),
            Output::Ask { worker, ticket, question } => self.ask(now, worker, ticket, question),
            Output::Answer { ticket, answer } => self.answer(now, ticket, answer),
            Output::Happened(event) => self.tell(now, event),
        }
    }

    fn open_relay(
        &mut self,
        now: Now,
        allocation: AllocationId,
        request: RelayRequest,
    ) -> Result<OpenedRelay, RelayRefused> {
        if let RelayRequest::Tcp { family, part, client } = request {
            let wanted = WantedPort { parity: Parity::Any, part, client };
            return self.open_tcp_relay(now, allocation, family, wanted);
        }
        let opened = self.relays.open(allocation, request, now.ticks)?;
        let registered = self.relays.get(allocation).ok_or(RelayRefused::System).and_then(|relay| {
            let token = token(RELAY, allocation.index as usize);
            self.epoll.add(relay.socket.as_fd(), token).map_err(|_| RelayRefused::System)
        });
        match registered {
            Ok(()) => Ok(opened),
            Err(refused) => {
                self.relays.close(allocation, opened.relayed, None, now.ticks);
                if let Some(held) = opened.held {
                    self.relays.close_held(held, now.ticks);
                }
                Err(refused)
            }
        }
    }

    fn move_relay(&mut self, from: AllocationId, to: AllocationId, relayed: RelayedTransportAddress) {
        self.relays.rename(from, to, relayed);
        if let Some(relay) = self.relays.get(to) {
            let watched = self.epoll.modify(relay.socket.as_fd(), token(RELAY, to.index as usize), true, false);
            debug_assert!(watched.is_ok(), "what is waited for under one number can be under another one");
        }
    }

    fn tell(&mut self, now: Now, event: Event) {
        match event {
            Event::AllocationCreated(record) => {
                match record.via {
                    Via::Stream(stream, _) => self.streams.keep_alive(stream),
                    Via::Datagram(five_tuple) => self.listeners.count(&five_tuple.server, true),
                }
                self.tell_session(Event::AllocationCreated(record));
            }
            Event::AllocationInterim(_) | Event::AllocationMoved { .. } => self.tell_session(event),
            Event::AllocationEnded(record) => self.tell_end(now, record),
            Event::Refused { .. } => self.events.tell_refusal(event, &self.net),
        }
    }

    /// Tells of an end once every byte of it is decided: a slow reader may still get what waits in its queue.
    fn tell_end(&mut self, now: Now, record: Box<SessionRecord>) {
        if let Via::Datagram(five_tuple) = record.via {
            self.listeners.count(&five_tuple.server, false);
        }
        let mut record = record;
        self.correct(&mut record);
        let mut record = Some(record);
        if let Some(Via::Stream(stream, _)) = record.as_ref().map(|record| record.via) {
            self.streams.expect_allocation(stream, now.ticks);
            if let Some(stream) = self.streams.find(stream).and_then(|at| self.streams.get_mut(at)) {
                record = record.and_then(|record| stream.hold_back(record));
            }
        }
        if let Some(record) = record {
            self.tell_session(Event::AllocationEnded(record));
        }
    }

    fn tell_session(&self, event: Event) {
        self.events.tell_session(event, &self.net);
    }

    /// Tells of the ends that waited for a stream's queue.
    fn tell_decided(&mut self, at: usize) {
        while let Some(record) = self.streams.get_mut(at).and_then(super::tcp::Stream::decided) {
            self.tell_session(Event::AllocationEnded(record));
        }
    }
}
