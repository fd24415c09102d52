//! What reaches a worker from outside, and what it does with it.

use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use tokio::sync::oneshot;

use super::{CONTROL, LISTENER, ListenerChange, ShellSettings, Worker, token};
use crate::net::overflow::Watched;
use crate::net::sys::Waker;
use crate::net::tls_session::TlsSession;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::address::FiveTuple;
use crate::protocol::border::{Answer, AskId, EndReason, Input, Question, Selector};
use crate::protocol::settings::Settings;
use crate::protocol::time::Now;

/// Messages taken from the inbox in one turn.
const INBOX_TURN: usize = 64;

/// How many sessions a worker looks at for one question; its packets wait so long and no longer.
const SLOTS_PER_LOOK: usize = 256;

/// Some of a worker's sessions, and the slot to go on with if there are more.
pub(in crate::net) type SessionsPart = (Vec<SessionRecord>, Option<usize>);

/// What reaches a worker from outside.
pub(in crate::net) enum Message {
    /// An established stream, accepted elsewhere; with TLS its handshake is done.
    Adopt { socket: TcpStream, five_tuple: FiveTuple, tls: Option<Box<rustls::ServerConnection>> },
    /// Another worker's question.
    Ask { ticket: AskId, question: Question },
    /// Another worker's answer; a held socket comes along.
    Answer { ticket: AskId, answer: Answer, socket: Option<Watched<UdpSocket>> },
    /// New settings, and what becomes of the listeners; the answer says that it is done, or what the system refused.
    Reconfigure {
        settings: Arc<Settings>,
        shell: ShellSettings,
        listeners: Vec<ListenerChange>,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Tell the live sessions.
    Inspect(oneshot::Sender<Vec<SessionRecord>>),
    /// Tell those in [`SLOTS_PER_LOOK`] slots from one on.
    InspectFrom(usize, oneshot::Sender<SessionsPart>),
    /// Answer, to show that the loop turns.
    Ping(oneshot::Sender<()>),
    /// End some allocations; the answer comes when they are over.
    Close { which: Selector, reason: EndReason, done: oneshot::Sender<usize> },
    /// No new allocations; the answer comes when none can begin any more.
    Drain(oneshot::Sender<()>),
    /// End every allocation and the thread.
    Stop,
}

/// Where messages for a worker go.
#[derive(Clone)]
pub(in crate::net) struct Mailbox {
    sender: SyncSender<Message>,
    waker: Arc<Waker>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    left: AtomicU64,
    refused: AtomicU64,
}

impl Mailbox {
    pub(in crate::net) fn new(sender: SyncSender<Message>, waker: Arc<Waker>) -> Self {
        Self { sender, waker, counts: Arc::default() }
    }

    /// Messages that were left for the worker, and those that found no room.
    pub(in crate::net) fn counts(&self) -> (u64, u64) {
        (self.counts.left.load(Ordering::Relaxed), self.counts.refused.load(Ordering::Relaxed))
    }

    /// Leaves a message without waiting; gives it back when the inbox is full or the worker gone.
    #[allow(clippy::result_large_err, reason = "the message comes back whole to whoever must answer for it")]
    pub(in crate::net) fn send(&self, message: Message) -> Result<(), Message> {
        match self.sender.try_send(message) {
            Ok(()) => {
                self.counts.left.fetch_add(1, Ordering::Relaxed);
                self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                Err(message)
            }
        }
    }
}

impl Worker {
    pub(super) fn on_inbox(&mut self, now: Now) {
        self.waker.clear();
        self.take_over(now);
        if !self.takers.is_empty() {
            self.waker.wake();
        }
        for _ in 0..INBOX_TURN {
            let Ok(message) = self.inbox.try_recv() else { return };
            self.net.messages.add(1);
            self.on_inbox_message(now, message);
        }
        // There may be more; come again after the others had their turn.
        self.waker.wake();
    }

    pub(super) fn on_inbox_message(&mut self, now: Now, message: Message) {
        let input = match message {
            Message::Adopt { socket, five_tuple, tls } => {
                return self.adopt(now, socket, five_tuple, tls.map(TlsSession::new));
            }
            Message::Inspect(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.server.sessions(now).collect());
                return;
            }
            Message::InspectFrom(slot, reply) => {
                let _ = reply.send(self.server.sessions_from(now, slot, SLOTS_PER_LOOK));
                return;
            }
            Message::Ping(reply) => {
                // Whoever asked may have given up.
                let _ = reply.send(());
                return;
            }
            Message::Ask { ticket, question } => Input::Asked { ticket, question },
            Message::Answer { ticket, answer, socket } => {
                let Answer::Reservation(relayed) = answer;
                if let (Some(relayed), Some(socket)) = (relayed, socket) {
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
                // Whoever asked may have given up.
                let _ = done.send(result);
                return;
            }
            Message::Close { which, reason, done } => {
                self.flush_payload();
                let before = self.server.allocations();
                self.server.handle_input(now, Input::Close { which, reason });
                // Whoever asked may have given up.
                let _ = done.send(before - self.server.allocations());
                return self.drain(now);
            }
            Message::Drain(done) => {
                self.server.handle_input(now, Input::Drain);
                // Whoever asked may have given up.
                let _ = done.send(());
                return self.drain(now);
            }
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
