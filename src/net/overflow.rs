//! Packets that the kernel dropped at our sockets before we could read them.
//!
//! The kernel counts per socket and forgets the count when the socket closes. So every socket is entered here as
//! long as it is open: [`Overflow::watch`] wraps it, and the end of the wrapper takes the last count. A scrape
//! asks each open socket for the sum; workers come here only to open and to close.

use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kernel::socket_drops;

/// Sockets asked in a row before a worker that opens or closes one gets its turn.
const TURN: usize = 64;

/// What a socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketKind {
    /// A UDP listener.
    Listener,
    /// A relayed address.
    Relayed,
    /// A listener of streams; the kernel drops connections there.
    Stream,
}

impl SocketKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Listener, Self::Relayed, Self::Stream];

    /// For metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Relayed => "relayed",
            Self::Stream => "stream",
        }
    }
}

#[derive(Default)]
struct Sockets {
    /// By descriptor: what the kernel had counted when it was last asked. Descriptors are small numbers.
    open: Vec<Option<u32>>,
    dropped: u64,
}

impl Sockets {
    fn enter(&mut self, fd: RawFd) {
        let place = fd as usize;
        if self.open.len() <= place {
            self.open.resize(place + 1, None);
        }
        self.open[place] = Some(0);
    }

    fn ask(&mut self, place: usize) {
        if let Some(Some(seen)) = self.open.get_mut(place)
            && let Ok(now) = socket_drops(place as RawFd)
        {
            self.dropped += u64::from(now.wrapping_sub(*seen));
            *seen = now;
        }
    }

    fn leave(&mut self, fd: RawFd) {
        let place = fd as usize;
        self.ask(place);
        if let Some(open) = self.open.get_mut(place) {
            *open = None;
        }
        while self.open.last() == Some(&None) {
            self.open.pop();
        }
        if self.open.capacity() > 1024 && self.open.len() < self.open.capacity() / 4 {
            self.open.shrink_to(self.open.len() * 2);
        }
    }
}

/// Every open socket by kind, and what was dropped at all that ever were.
#[derive(Default)]
pub(super) struct Overflow([Mutex<Sockets>; SocketKind::ALL.len()]);

impl Overflow {
    fn of(&self, kind: SocketKind) -> MutexGuard<'_, Sockets> {
        // The table is whole after each statement.
        self.0[kind as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a socket that was just opened, until the end of what comes back.
    pub(super) fn watch<S: AsRawFd>(self: &Arc<Self>, kind: SocketKind, socket: S) -> Watched<S> {
        self.of(kind).enter(socket.as_raw_fd());
        Watched { overflow: Arc::clone(self), socket, kind }
    }

    /// What was dropped at all sockets of a kind, the closed ones included. Never falls.
    pub(super) fn dropped(&self, kind: SocketKind) -> u64 {
        let mut next = 0;
        loop {
            let mut sockets = self.of(kind);
            let end = sockets.open.len();
            for place in next..end.min(next + TURN) {
                sockets.ask(place);
            }
            next += TURN;
            if next >= end {
                return sockets.dropped;
            }
        }
    }
}

/// A socket whose drops are counted. It goes under the number of its descriptor, which no other socket has until its end.
pub(super) struct Watched<S: AsRawFd> {
    overflow: Arc<Overflow>,
    socket: S,
    kind: SocketKind,
}

impl<S: AsRawFd> Drop for Watched<S> {
    fn drop(&mut self) {
        // The socket is still open: it is dropped after this.
        self.overflow.of(self.kind).leave(self.socket.as_raw_fd());
    }
}

impl<S: AsRawFd> Deref for Watched<S> {
    type Target = S;

    #[inline]
    fn deref(&self) -> &S {
        &self.socket
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, UdpSocket};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Sends until the socket's buffer is full and some more; gives how many were sent.
    fn flood(socket: &UdpSocket, sender: &UdpSocket, packets: u64) {
        for _ in 0..packets {
            sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        }
    }

    fn read_all(socket: &UdpSocket) -> u64 {
        socket.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| socket.recv(&mut [0; 1500]).ok()).count() as u64
    }

    #[test]
    fn what_is_not_read_was_dropped_also_by_sockets_that_are_closed_since() {
        let overflow = Arc::new(Overflow::default());
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut lost = 0;
        for _ in 0..3 {
            let first = overflow.watch(SocketKind::Relayed, UdpSocket::bind("127.0.0.1:0").unwrap());
            let second = overflow.watch(SocketKind::Relayed, UdpSocket::bind("127.0.0.1:0").unwrap());
            for socket in [&first, &second] {
                socket2::SockRef::from(&**socket).set_recv_buffer_size(8192).unwrap();
                flood(socket, &sender, 100);
                let read = read_all(socket);
                assert!((1..100).contains(&read), "{read} of 100 fit");
                lost += 100 - read;
            }
            // It was closed before the first look at it.
            drop(first);
            assert_eq!(overflow.dropped(SocketKind::Relayed), lost);
        }
        assert_eq!(overflow.dropped(SocketKind::Relayed), lost);
        assert!(overflow.of(SocketKind::Relayed).open.is_empty());
        assert_eq!(overflow.dropped(SocketKind::Listener), 0);
    }

    #[test]
    fn more_sockets_than_one_turn_are_all_asked() {
        let overflow = Arc::new(Overflow::default());
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let open = || overflow.watch(SocketKind::Listener, UdpSocket::bind("127.0.0.1:0").unwrap());
        let sockets: Vec<_> = (0..TURN * 2 + 5).map(|_| open()).collect();
        let last = sockets.last().unwrap();
        socket2::SockRef::from(&**last).set_recv_buffer_size(8192).unwrap();
        flood(last, &sender, 100);
        assert_eq!(overflow.dropped(SocketKind::Listener), 100 - read_all(last));
    }

    #[test]
    fn connections_that_nobody_accepts_are_counted_too() {
        let overflow = Arc::new(Overflow::default());
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let listener = overflow.watch(SocketKind::Stream, TcpListener::from(listener));
        let clients: Vec<_> = (0..6)
            .map(|_| {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.set_nonblocking(true).unwrap();
                // It is under way, whether or not it ever gets there.
                let _ = client.connect(&listener.local_addr().unwrap().into());
                client
            })
            .collect();
        let dropped = overflow.dropped(SocketKind::Stream);
        assert!(dropped >= 1, "two of {} fit", clients.len());
        drop(listener);
        assert!(overflow.dropped(SocketKind::Stream) >= dropped);
    }

    #[test]
    fn kinds_are_in_the_order_of_their_numbers() {
        assert!(SocketKind::ALL.iter().enumerate().all(|(at, kind)| *kind as usize == at));
    }
}
