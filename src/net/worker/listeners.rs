//! The UDP sockets that a worker's clients talk to: some open for everybody, some for their last sessions only.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;

use super::pace::ReadBudget;
use super::receive_buffers::ReceiveBufferState;
use crate::address::ServerAddress;
use crate::net::overflow::Watched;
use crate::net::sys::ListenerSegmentation;
use crate::net::udp::DatagramQueue;

/// Names a listener over all workers; never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::net) struct ListenerId(pub(in crate::net) u32);

/// The sessions that came through one UDP listener, on all workers.
#[derive(Debug, Default)]
pub(in crate::net) struct Users {
    count: AtomicU32,
    /// Datagrams come in rows, at one of the workers at least.
    rows: AtomicBool,
    /// Told when the last one went, and when somebody who waits for that should look again.
    pub(in crate::net) look: Notify,
}

impl Users {
    pub(in crate::net) fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Whether its sockets shall coalesce: the kernel asks any socket of the group whether a flow may be coalesced.
    #[inline]
    pub(super) fn coalesces(&self) -> bool {
        self.rows.load(Ordering::Relaxed)
    }

    pub(super) fn coalesce(&self) {
        self.rows.store(true, Ordering::Relaxed);
    }

    fn enter(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    fn leave(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.look.notify_one();
        }
    }
}

/// A UDP socket that clients talk to.
pub(in crate::net) struct Listener {
    pub(in crate::net) id: ListenerId,
    pub(in crate::net) socket: Watched<UdpSocket>,
    /// Where requests and all else that is not data arrives, if it has a socket of its own.
    pub(in crate::net) control: Option<Watched<UdpSocket>>,
    pub(in crate::net) address: SocketAddr,
    pub(in crate::net) queue: DatagramQueue,
    pub(super) read_budget: ReadBudget,
    pub(super) control_read_budget: ReadBudget,
    pub(super) buffer_state: ReceiveBufferState,
    pub(super) segmentation: ListenerSegmentation,
    pub(in crate::net) users: Arc<Users>,
    /// It is not in the configuration any more: clients without an allocation get no answer.
    pub(in crate::net) is_leaving: bool,
}

impl Listener {
    pub(in crate::net) fn new(
        id: ListenerId,
        socket: Watched<UdpSocket>,
        control: Option<Watched<UdpSocket>>,
        address: SocketAddr,
        users: Arc<Users>,
    ) -> Self {
        Self {
            id,
            socket,
            control,
            address,
            queue: DatagramQueue::default(),
            read_budget: ReadBudget::default(),
            control_read_budget: ReadBudget::default(),
            buffer_state: ReceiveBufferState::default(),
            segmentation: ListenerSegmentation::default(),
            users,
            is_leaving: false,
        }
    }

    /// For sockets that another process read before: they may coalesce already.
    pub(super) fn remember_coalescing(&mut self) {
        self.read_budget = ReadBudget::of_socket(self.socket.as_fd());
        self.control_read_budget =
            self.control.as_ref().map_or_else(ReadBudget::default, |of| ReadBudget::of_socket(of.as_fd()));
        if self.read_budget.coalesces() {
            self.users.coalesce();
        }
    }

    pub(super) fn is_wildcard(&self) -> bool {
        self.address.ip().is_unspecified()
    }

    /// Whether replies from this address of ours leave through this socket.
    fn serves(&self, server: &ServerAddress) -> bool {
        self.address.port() == server.port()
            && (self.address.ip() == server.ip()
                || (self.is_wildcard() && self.address.is_ipv4() == server.ip().is_ipv4()))
    }
}

/// What a reload does to the listeners of a worker.
pub(in crate::net) enum ListenerChange {
    /// One more, with this worker's socket of it.
    Open(Box<Listener>),
    /// No new clients there.
    Leave(ListenerId),
    /// New clients there again.
    Return(ListenerId),
    /// Its last session has ended.
    Close(ListenerId),
}

/// Every listener of a worker, at a place that stays while it is open.
#[derive(Default)]
pub(super) struct Listeners(Vec<Option<Listener>>);

impl Listeners {
    /// Every place, free ones included.
    pub(super) fn places(&self) -> std::ops::Range<usize> {
        0..self.0.len()
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<&Listener> {
        self.0.get(at)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Listener> {
        self.0.get_mut(at)?.as_mut()
    }

    /// Where replies from this address of ours leave.
    #[inline]
    pub(super) fn serving(&self, server: &ServerAddress) -> Option<usize> {
        self.0.iter().position(|listener| listener.as_ref().is_some_and(|listener| listener.serves(server)))
    }

    pub(super) fn place_of(&self, id: ListenerId) -> Option<usize> {
        self.0.iter().position(|listener| listener.as_ref().is_some_and(|listener| listener.id == id))
    }

    /// Gives it a place; a free one first, so that reloads don't make the list longer and longer.
    pub(super) fn open(&mut self, listener: Box<Listener>) -> usize {
        let free = self.0.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        self.0[at] = Some(*listener);
        at
    }

    /// Closes the socket.
    pub(super) fn close(&mut self, at: usize) {
        if let Some(place) = self.0.get_mut(at) {
            *place = None;
        }
    }

    /// A session began or ended at this address of ours.
    pub(super) fn count(&self, server: &ServerAddress, begins: bool) {
        if let Some(listener) = self.serving(server).and_then(|at| self.get(at)) {
            if begins { listener.users.enter() } else { listener.users.leave() }
        }
    }
}
