//! What reaches a worker from outside, and what it does with it.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use tokio::sync::oneshot;

use super::moving::MovingSockets;
use super::{CONTROL, HandOver, LISTENER, ListenerChange, STREAMS_PER_TURN, ShellSettings, Worker, token};
use crate::address::FiveTuple;
use crate::net::fair_limit::Permit;
use crate::net::fair_map::FairMap;
use crate::net::handoff::Channel;
use crate::net::sys::Waker;
use crate::net::tcp::Moved;
use crate::net::tls_session::TlsSession;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::border::{Answer, Input, Question, Selector};
use crate::protocol::ids::QuestionId;
use crate::protocol::reason::EndReason;
use crate::protocol::revocation::Subject;
use crate::protocol::settings::Settings;
use crate::time::Now;

/// Messages taken from the inbox in one turn: some look at hundreds of sessions.
const INBOX_TURN: usize = 16;

/// How many sessions a worker looks at for one question; its packets wait so long and no longer.
const SLOTS_PER_LOOK: usize = 256;

/// Some of a worker's sessions, and the slot to go on with if there are more.
pub(in crate::net) type SessionsPart = (Vec<SessionRecord>, Option<usize>);

/// An established stream, accepted elsewhere; with TLS its handshake is done.
pub(in crate::net) struct Adopted {
    pub(in crate::net) socket: TcpStream,
    pub(in crate::net) five_tuple: FiveTuple,
    pub(in crate::net) tls: Option<Box<TlsSession>>,
    pub(in crate::net) permit: Permit,
    /// What another worker had of it; `None` of one that is just accepted.
    pub(in crate::net) moved: Option<Moved>,
}

/// What reaches a worker from outside, streams apart: strangers may bring as many of those as they like.
pub(in crate::net) enum Message {
    /// Another worker's question.
    Ask { ticket: QuestionId, question: Question },
    /// Another worker's answer; a held socket comes along, or those of an allocation.
    Answer { ticket: QuestionId, answer: Answer, sockets: MovingSockets },
    /// New settings, and what becomes of the listeners; the answer says that it is done, or what the system refused.
    Reconfigure {
        settings: Arc<Settings>,
        shell: ShellSettings,
        listeners: Vec<ListenerChange>,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Tell the live sessions in [`SLOTS_PER_LOOK`] slots from one on.
    InspectFrom(usize, oneshot::Sender<SessionsPart>),
    /// End some allocations; the answer comes when they are over.
    Close { which: Selector, reason: EndReason, done: oneshot::Sender<usize> },
    /// Let the live sessions of a subject, or all of them, pass the meters that hold now; the answer is how many they are.
    MeterAnew { subject: Arc<Option<Subject>>, done: oneshot::Sender<usize> },
    /// No new allocations; the answer comes when none can begin any more.
    Drain(oneshot::Sender<()>),
    /// Tell a new process what is here, while calls go on.
    HandOver(Channel, Arc<HandOver>),
    /// Tell it the rest, and read no more.
    StopReading,
    /// It is gone before that.
    GiveUpHandOver,
    /// End every allocation and the thread.
    Stop,
}

/// Accepted streams that wait for one worker, in the order in which they came; when it is full, the oldest of the
/// network with the most is closed.
pub(in crate::net) type AdoptedStreams = FairMap<u64, Adopted>;

/// Where messages for a worker go.
#[derive(Clone)]
pub(in crate::net) struct Mailbox {
    sender: SyncSender<Message>,
    streams: Arc<FairMap<u64, Adopted>>,
    waker: Arc<Waker>,
    counts: Arc<Counts>,
}

/// Why a message was not left.
pub(in crate::net) enum NotSent {
    /// Too many wait already.
    Full(Message),
    /// The worker's thread has ended.
    Gone(Message),
}

#[derive(Default)]
struct Counts {
    streams: AtomicU64,
    left: AtomicU64,
    refused: AtomicU64,
}

impl Mailbox {
    pub(in crate::net) fn new(sender: SyncSender<Message>, streams: Arc<AdoptedStreams>, waker: Arc<Waker>) -> Self {
        Self { sender, streams, waker, counts: Arc::default() }
    }

    /// Makes the worker's loop turn, if it can.
    pub(in crate::net) fn wake(&self) {
        self.waker.wake();
    }

    /// Leaves a stream without waiting, in place of another if too many wait.
    pub(in crate::net) fn adopt(&self, stream: Adopted) {
        let number = self.counts.streams.fetch_add(1, Ordering::Relaxed);
        self.streams.insert(stream.five_tuple.client.ip().into(), number, stream);
        self.waker.wake();
    }

    /// Streams that were left for the worker, and those of them that gave way to others before it took them.
    pub(in crate::net) fn stream_counts(&self) -> (u64, u64) {
        (self.counts.streams.load(Ordering::Relaxed), self.streams.evicted())
    }

    /// Messages that were left for the worker, and those that found no room.
    pub(in crate::net) fn counts(&self) -> (u64, u64) {
        (self.counts.left.load(Ordering::Relaxed), self.counts.refused.load(Ordering::Relaxed))
    }

    /// Leaves a message without waiting; gives it back when there is no room.
    #[allow(clippy::result_large_err, reason = "the message comes back whole to its sender")]
    pub(in crate::net) fn send(&self, message: Message) -> Result<(), NotSent> {
        let not_sent = match self.sender.try_send(message) {
            Ok(()) => {
                self.counts.left.fetch_add(1, Ordering::Relaxed);
                self.waker.wake();
                return Ok(());
            }
            Err(TrySendError::Full(message)) => NotSent::Full(message),
            Err(TrySendError::Disconnected(message)) => NotSent::Gone(message),
        };
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        Err(not_sent)
    }
}

/// Sessions that an operator wants ended, as far as the worker has come with them.
pub(super) struct Closing {
    which: Selector,
    reason: EndReason,
    done: oneshot::Sender<usize>,
    from: usize,
    closed: usize,
}

/// Sessions that are to pass other meters, as far as the worker has come with them.
pub(super) struct Metering {
    subject: Arc<Option<Subject>>,
    done: oneshot::Sender<usize>,
    from: u32,
    metered: usize,
}

impl Worker {
    pub(super) fn on_inbox(&mut self, now: Now) {
        self.waker.clear();
        self.take_over(now);
        if !self.consumers.is_empty() {
            self.waker.wake();
        }
        // Their list does not pass through the inbox either.
        let evicted = self.take_some(STREAMS_PER_TURN, |worker| {
            let Some(at) = worker.streams.pop_evicted() else { return false };
            worker.close_stream(now, at);
            true
        });
        let adopted = self.take_some(STREAMS_PER_TURN, |worker| {
            let Some(stream) = worker.adopted.pop_first() else { return false };
            worker.adopt(now, stream);
            true
        });
        let messages = self.take_some(INBOX_TURN, |worker| {
            let Ok(message) = worker.inbox.try_recv() else { return false };
            worker.net.messages.add(1);
            worker.on_inbox_message(now, message);
            true
        });
        self.close_some(now);
        self.meter_some();
        if evicted == STREAMS_PER_TURN || adopted == STREAMS_PER_TURN || messages == INBOX_TURN {
            // There may be more; come again after the others had their turn.
            self.waker.wake();
        }
    }

    /// Ends a part of the sessions that an operator wants closed.
    pub(super) fn close_some(&mut self, now: Now) {
        let Some(mut closing) = self.closing.pop_front() else { return };
        self.flush_payload();
        let before = self.server.allocations();
        let next = self.server.close_from(now, &closing.which, closing.reason, closing.from, SLOTS_PER_LOOK);
        closing.closed += before - self.server.allocations();
        self.drain(now);
        match next {
            Some(from) => self.closing.push_front(Closing { from, ..closing }),
            None => {
                if closing.which == Selector::LinkLocalClients {
                    self.close_link_local(now);
                }
                // The asker may have given up.
                let _ = closing.done.send(closing.closed);
            }
        }
        if !self.closing.is_empty() {
            self.waker.wake();
        }
    }

    /// Lets a part of the sessions that are concerned pass other meters.
    pub(super) fn meter_some(&mut self) {
        let Some(mut metering) = self.metering.pop_front() else { return };
        let subject = (*metering.subject).as_ref();
        let (metered, next) = self.server.meter_anew_from(subject, metering.from, SLOTS_PER_LOOK as u32);
        metering.metered += metered;
        match next {
            Some(from) => self.metering.push_front(Metering { from, ..metering }),
            // The asker may have given up.
            None => drop(metering.done.send(metering.metered)),
        }
        if !self.metering.is_empty() {
            self.waker.wake();
        }
    }

    /// Closes the streams of clients with a link-local address; those without an allocation too.
    fn close_link_local(&mut self, now: Now) {
        for at in self.streams.all() {
            if self.streams.get(at).is_some_and(|stream| stream.via.is_link_local()) {
                self.close_stream(now, at);
            }
        }
    }

    /// Takes until there is nothing more or it is enough for one turn; tells how many it took.
    fn take_some(&mut self, most: usize, mut take: impl FnMut(&mut Self) -> bool) -> usize {
        (0..most).take_while(|_| take(self)).count()
    }

    pub(super) fn on_inbox_message(&mut self, now: Now, message: Message) {
        let input = match message {
            Message::InspectFrom(slot, reply) => {
                // The asker may have gone.
                let _ = reply.send(self.server.sessions_from(now, slot, SLOTS_PER_LOOK));
                return;
            }
            Message::Ask { ticket, question } => {
                self.settle_before_move(now, ticket, &question);
                Input::Asked { ticket, question }
            }
            Message::Answer { ticket, answer, sockets } => {
                for (relayed, socket) in sockets {
                    self.relays.put_held(relayed, socket);
                }
                Input::Answered { ticket, answer }
            }
            Message::Reconfigure { settings, shell, listeners, done } => {
                self.streams.set_limits(shell.tcp);
                self.settings = shell.datagrams;
                self.flush_payload();
                self.server.handle_input(now, Input::Reconfigure(settings));
                self.drain(now);
                let result = listeners.into_iter().try_for_each(|change| self.change_listener(change));
                // The asker may have given up.
                let _ = done.send(result);
                return;
            }
            Message::Close { which, reason, done } => {
                self.closing.push_back(Closing { which, reason, done, from: 0, closed: 0 });
                return;
            }
            Message::MeterAnew { subject, done } => {
                self.metering.push_back(Metering { subject, done, from: 0, metered: 0 });
                return;
            }
            Message::Drain(done) => {
                self.server.handle_input(now, Input::Drain);
                // The asker may have given up.
                let _ = done.send(());
                return self.drain(now);
            }
            Message::HandOver(channel, common) => return self.begin_hand_over(channel, common),
            Message::StopReading => return self.stop_reading(),
            Message::GiveUpHandOver => return self.give_up_hand_over(),
            Message::Stop => {
                self.stopping = true;
                Input::CloseAll(EndReason::Shutdown)
            }
        };
        self.flush_payload();
        if self.stopping {
            for at in self.streams.all() {
                self.give_up_unsent(at);
            }
        }
        self.server.handle_input(now, input);
        self.drain(now);
        tracing::trace!(worker = self.id.0, "handled a message");
    }

    pub(super) fn change_listener(&mut self, change: ListenerChange) -> io::Result<()> {
        let (id, is_leaving) = match change {
            ListenerChange::Open(listener) => {
                let at = self.listeners.open(listener);
                let Some(listener) = self.listeners.get(at) else { return Ok(()) };
                self.epoll.add(listener.socket.as_fd(), token(LISTENER, at))?;
                return match &listener.control {
                    Some(control) => self.epoll.add(control.as_fd(), token(CONTROL, at)),
                    None => Ok(()),
                };
            }
            ListenerChange::Close(id) => {
                if let Some(at) = self.listeners.place_of(id) {
                    self.flush_listener(at);
                    if let Some(listener) = self.listeners.get(at) {
                        // A passed socket stays open, and would still wake us.
                        self.epoll.remove(listener.socket.as_fd());
                        listener.control.iter().for_each(|control| self.epoll.remove(control.as_fd()));
                    }
                    self.listeners.close(at);
                }
                return Ok(());
            }
            ListenerChange::Leave(id) => (id, true),
            ListenerChange::Return(id) => (id, false),
        };
        let at = self.listeners.place_of(id);
        if let Some(listener) = at.and_then(|at| self.listeners.get_mut(at)) {
            listener.is_leaving = is_leaving;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::*;
    use crate::address::Transport;
    use crate::net::fair_limit::FairLimit;

    /// F-A11: a crowd that comes faster than the worker takes it keeps no other network's stream out.
    #[test]
    fn a_flood_of_streams_leaves_the_place_of_another_network() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let socket = TcpStream::connect(server).unwrap();
        let (queue, half_open) = (Arc::new(AdoptedStreams::new(8)), Arc::<FairLimit>::default());
        let (sender, _messages) = std::sync::mpsc::sync_channel(1);
        let mailbox = Mailbox::new(sender, Arc::clone(&queue), Arc::new(Waker::new().unwrap()));
        let adopt = |network: u8, port| {
            let client = SocketAddr::from(([192, 0, 2, network], port));
            mailbox.adopt(Adopted {
                socket: socket.try_clone().unwrap(),
                five_tuple: FiveTuple { client: client.into(), server: server.into(), transport: Transport::Tcp },
                tls: None,
                moved: None,
                permit: half_open.admit(u64::MAX, client.ip().into(), Box::new(|| {})),
            });
        };
        adopt(1, 1000);
        (1..=20).for_each(|port| adopt(2, port));
        adopt(3, 3000);
        assert_eq!(mailbox.stream_counts(), (22, 14));
        assert_eq!(half_open.count(), 8, "what gave way is closed at once");
        let waiting =
            std::iter::from_fn(|| queue.pop_first()).map(|stream| SocketAddr::from(stream.five_tuple.client).port());
        assert_eq!(waiting.collect::<Vec<_>>(), [1000, 15, 16, 17, 18, 19, 20, 3000]);
        assert_eq!(half_open.count(), 0);
    }
}
