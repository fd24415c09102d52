//! One worker: a thread, an epoll set, a [`Server`], and everything that belongs to its clients.
//!
//! The loop: wait, read the clock once, take each ready descriptor (bounded work each), judge what came,
//! send in batches, drain the core, sleep until the next deadline. Level-triggered, so a descriptor that was
//! not emptied comes again, after the others had their turn.

mod datagrams;
mod inbox;
mod listeners;
mod pace;
mod room;
mod stream;

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;

pub(super) use self::inbox::{Mailbox, Message};
use self::listeners::Listeners;
pub(super) use self::listeners::{Listener, ListenerChange, ListenerId, Users};
pub(super) use self::pace::Appetite;
use self::pace::Pace;
use self::room::Room;
pub(super) use self::room::Roominess;

use super::clock;
use super::counters::NetCounters;
use super::handover::{Givers, Takers};
use super::relay_socket::Relays;
use super::streams::Streams;
use super::sys::{self, Alarm, Arena, Epoll, Ready, ReceiveBatch, SendBatch, Waker};
use super::tls_session::CIPHER_BYTES;
use super::udp::Queue;
use crate::protocol::Server;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::address::{RelayedTransportAddress, Via};
use crate::protocol::border::{AllocationId, Answer, AskId, DropReason, Event, Input, Output, Question, WorkerId};
use crate::protocol::counters::Counters;
use crate::protocol::time::{Now, Ticks};

/// Datagrams of one batch: after so many, listeners, TCP, timers and messages get their turn.
pub(super) const BATCH: usize = 64;

/// Datagrams handed to the kernel in one call: a burst's worth of segments.
const SEND_BATCH: usize = 256;

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

/// Where events go: two bounded channels, so that a flood of refusals can't push out a session's record.
#[derive(Clone)]
pub(super) struct Events {
    pub(super) sessions: mpsc::Sender<Event>,
    pub(super) refusals: mpsc::Sender<Event>,
    /// Whether records of sessions go anywhere but to the log.
    pub(super) is_kept: Arc<AtomicBool>,
}

impl Events {
    /// Whether anybody will read it: each one wakes another thread.
    fn is_wanted(&self, event: &Event) -> bool {
        let of_log = match event {
            Event::AllocationEnded(_) => LevelFilter::INFO,
            Event::AllocationCreated(_) | Event::Refused { .. } => LevelFilter::DEBUG,
            Event::AllocationGoesOn(_) => return self.is_kept.load(Ordering::Relaxed),
        };
        LevelFilter::current() >= of_log || self.is_kept.load(Ordering::Relaxed)
    }
}

/// What a worker is made of.
pub(super) struct Setup {
    pub(super) id: WorkerId,
    pub(super) server: Server,
    pub(super) counters: Arc<Counters>,
    pub(super) net: Arc<NetCounters>,
    pub(super) listeners: Vec<ListenerChange>,
    pub(super) relays: Relays,
    pub(super) inbox: Receiver<Message>,
    pub(super) waker: Arc<Waker>,
    pub(super) mailboxes: Arc<Vec<Mailbox>>,
    pub(super) events: Events,
    pub(super) shell: ShellSettings,
    pub(super) givers: Givers,
    pub(super) takers: Takers,
}

pub(super) struct Worker {
    id: WorkerId,
    server: Server,
    counters: Arc<Counters>,
    net: Arc<NetCounters>,
    epoll: Epoll,
    alarm: Alarm,
    listeners: Listeners,
    relays: Relays,
    streams: Streams,
    inbox: Receiver<Message>,
    waker: Arc<Waker>,
    mailboxes: Arc<Vec<Mailbox>>,
    events: Events,
    arena: Arena,
    /// What TLS streams are read to.
    cipher: Box<[u8]>,
    receive: ReceiveBatch,
    send: SendBatch,
    next_slot: usize,
    to_peer: Queue,
    /// Whether what waits for a client lies where listeners or streams are read to.
    pinned: bool,
    /// Datagrams read since the listeners had their turn.
    since_listeners: usize,
    loops: u32,
    settings: DatagramSettings,
    pace: Pace,
    room: Room,
    givers: Givers,
    takers: Takers,
    stopping: bool,
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
            streams: Streams::new(setup.shell.tcp),
            inbox: setup.inbox,
            waker: setup.waker,
            mailboxes: setup.mailboxes,
            events: setup.events,
            arena: Arena::new(STREAM_SLOT + STREAM_SLOTS),
            cipher: vec![0; CIPHER_BYTES].into(),
            receive: ReceiveBatch::new(BATCH),
            send: SendBatch::new(SEND_BATCH),
            next_slot: 0,
            to_peer: Queue::default(),
            pinned: false,
            since_listeners: 0,
            loops: 0,
            settings: setup.shell.datagrams,
            pace: Pace::default(),
            room: Room::new(clock::now().ticks),
            givers: setup.givers,
            takers: setup.takers,
            stopping: false,
        };
        for change in setup.listeners {
            worker.change_listener(change)?;
        }
        Ok(worker)
    }

    /// Runs until [`Message::Stop`].
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut ready = Ready::new(BATCH);
        self.net.processor.adopt();
        sys::sleep_exactly();
        while !self.stopping {
            self.alarm.set(self.next_deadline());
            self.epoll.wait(&mut ready)?;
            let now = clock::now();
            self.loops = self.loops.wrapping_add(1);
            self.net.loops.add(1);
            self.on_deadlines(now);
            for index in 0..ready.len() {
                let Some(event) = ready.get(index) else { break };
                let at = (event.token & ((1 << KIND_BITS) - 1)) as usize;
                match event.token >> KIND_BITS {
                    LISTENER => self.on_listener(now, at),
                    RELAY => self.on_relay(now, at),
                    STREAM => self.on_stream(now, at, event.readable, event.writable),
                    CONTROL => self.on_control(now, at),
                    // What is due is done at the start of each turn.
                    ALARM => self.alarm.clear(),
                    _ => self.on_inbox(now),
                }
                if self.since_listeners >= BATCH && index + 1 < ready.len() {
                    self.visit_listeners(now);
                }
            }
            self.flush();
            self.givers.wake();
            self.gather(now, ready.len());
            self.room.on_turn(now.ticks, self.datagrams());
        }
        self.net.processor.give_up();
        Ok(())
    }

    /// All datagrams that were ever received.
    fn datagrams(&self) -> u64 {
        self.net.listener_batches.datagrams() + self.net.relayed_batches.datagrams()
    }

    /// Lets packets gather for a moment, if there are so many that the next ones are sure to come.
    fn gather(&mut self, now: Now, ready: usize) {
        // Where much is waiting already there is nothing to gather.
        let pays = self.settings.coalesce_microseconds > 0 && ready < BATCH / 2;
        if pays && self.pace.is_fast(now.ticks, self.datagrams()) {
            sys::sleep(self.settings.coalesce_microseconds);
        }
    }

    /// When something must be done by itself.
    fn next_deadline(&self) -> Option<Ticks> {
        [self.server.poll_timeout(), self.streams.next_deadline()].into_iter().flatten().min()
    }

    fn on_deadlines(&mut self, now: Now) {
        if self.server.poll_timeout().is_some_and(|at| at <= now.ticks) {
            self.flush_payload();
            self.server.handle_timeout(now);
            self.drain(now);
        }
        while let Some(at) = self.streams.pop_overdue(now.ticks) {
            self.net.streams_overdue.add(1);
            self.close_stream(now, at);
        }
    }

    // ---- the core's wishes

    fn drain(&mut self, now: Now) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Reply { via, bytes } => self.reply(now, via, &bytes),
                Output::OpenRelay { allocation, request } => {
                    let result = self.open_relay(now, allocation, request);
                    // What else the core wants comes first: one input, then drain.
                    self.streams.opened.push((allocation, result));
                }
                Output::CloseRelay { allocation, relayed, client } => {
                    self.relays.close(allocation, relayed, client, now.ticks)
                }
                Output::CloseReserved { relayed } => self.relays.close_held(relayed, now.ticks),
                Output::Ask { worker, ticket, question } => self.ask(now, worker, ticket, question),
                Output::Answer { ticket, answer } => self.answer(now, ticket, answer),
                Output::Happened(event) => self.tell(now, event),
            }
        }
        if let Some((allocation, result)) = self.streams.opened.pop() {
            self.server.handle_input(now, Input::RelayOpened { allocation, result });
            self.drain(now);
        }
    }

    fn open_relay(
        &mut self,
        now: Now,
        allocation: AllocationId,
        request: crate::protocol::border::RelayRequest,
    ) -> Result<crate::protocol::border::OpenedRelay, crate::protocol::border::RelayRefused> {
        use crate::protocol::border::RelayRefused;
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

    fn ask(&mut self, now: Now, worker: WorkerId, ticket: AskId, question: Question) {
        let sent = self
            .mailboxes
            .get(usize::from(worker.0))
            .is_some_and(|mailbox| mailbox.send(Message::Ask { ticket, question }).is_ok());
        if !sent {
            self.counters.dropped(DropReason::InboxFull, 1, 0);
            self.server.handle_input(now, Input::Answered { ticket, answer: Answer::Reservation(None) });
        }
    }

    fn answer(&mut self, now: Now, ticket: AskId, answer: Answer) {
        let Answer::Reservation(relayed) = answer;
        let socket = relayed.and_then(|relayed| self.relays.take_held(relayed));
        let Some(mailbox) = self.mailboxes.get(usize::from(ticket.worker.0)) else { return };
        if let Err(message) = mailbox.send(Message::Answer { ticket, answer, socket }) {
            self.counters.dropped(DropReason::InboxFull, 1, 0);
            self.take_back(now, relayed, message);
        }
    }

    /// An answer that could not be delivered: the held socket is closed here.
    fn take_back(&mut self, now: Now, relayed: Option<RelayedTransportAddress>, message: Message) {
        if let (Some(relayed), Message::Answer { socket: Some(socket), .. }) = (relayed, message) {
            self.relays.put_held(relayed, socket);
            self.relays.close_held(relayed, now.ticks);
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
            Event::AllocationGoesOn(_) => self.tell_session(event),
            Event::AllocationEnded(record) => self.tell_end(now, record),
            Event::Refused { .. } => {
                // Lost first in a flood; the counters have them all.
                let _ = self.events.refusals.try_send(event);
            }
        }
    }

    /// Tells of an end once every byte of it is decided: a slow reader may still get what waits in its queue.
    fn tell_end(&mut self, now: Now, record: Box<SessionRecord>) {
        if let Via::Datagram(five_tuple) = record.via {
            self.listeners.count(&five_tuple.server, false);
        }
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
        if self.events.is_wanted(&event) && self.events.sessions.try_send(event).is_err() {
            self.net.events_lost.add(1);
        }
    }

    /// Tells of the ends that waited for a stream's queue.
    fn tell_decided(&mut self, at: usize) {
        while let Some(record) = self.streams.get_mut(at).and_then(super::tcp::Stream::decided) {
            self.tell_session(Event::AllocationEnded(record));
        }
    }
}
