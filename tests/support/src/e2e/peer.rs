//! Peers beyond the relay: plain UDP sockets, one that answers, and a call that must not lose a packet.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::{Client, Origin, PATIENCE, SILENCE, wait_for};

/// A peer's socket of the family of an address, on loopback.
pub fn peer(like: SocketAddr) -> UdpSocket {
    loop {
        let socket = UdpSocket::bind((if like.is_ipv4() { "127.0.0.1" } else { "::1" }, 0)).unwrap();
        // A port that a server listens on is no peer, over TCP as well, and the kernel may choose it for both.
        if TcpListener::bind(socket.local_addr().unwrap()).is_ok() {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            return socket;
        }
    }
}

/// The next datagram.
#[track_caller]
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (len, from) = loop {
        match socket.recv_from(&mut buffer) {
            // A child of this process that stops, goes on or ends interrupts whichever thread is waiting.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => break result.expect("a datagram in time"),
        }
    };
    buffer.truncate(len);
    (buffer, from)
}

/// Nothing may come for a while.
#[track_caller]
pub fn expect_silence(socket: &UdpSocket) {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let got = socket.recv_from(&mut [0; 65_536]);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(got.is_err(), "{got:?} came");
}

/// A peer that sends everything back to where it came from.
pub struct Echo {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(like: SocketAddr) -> Self {
        let socket = peer(like);
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..len], from);
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A legitimate call that goes on in the background: each packet must come back, whatever the test does beside it.
pub struct Witness {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<Client>>,
}

impl Witness {
    pub const CHANNEL: u16 = 0x4A11;

    /// Starts a call of this client, which has no allocation yet.
    pub fn start(mut client: Client) -> Self {
        let relayed = client.allocate();
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let echo = Echo::start(relayed);
        client.bind(Self::CHANNEL, echo.address);
        let thread = std::thread::spawn(move || {
            let _echo = echo;
            while !stopped.load(Ordering::Relaxed) {
                let round = counted.load(Ordering::Relaxed);
                let sent = [&round.to_be_bytes()[..], &[0x5A; 152]].concat();
                client.send_channel(Self::CHANNEL, &sent);
                let back = client.data().unwrap_or_else(|| panic!("packet {round} of the witness was lost"));
                assert_eq!(back.from, Origin::Channel(Self::CHANNEL));
                assert_eq!(back.payload, sent, "packet {round} of the witness came back wrong");
                counted.store(round + 1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            client
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    /// Waits until packets passed both ways from now on.
    #[track_caller]
    pub fn see_progress(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_for("progress of the witness", || {
            let failed = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!failed, "the witness failed after {before} packets");
            (self.rounds.load(Ordering::Relaxed) > before + 3).then_some(())
        });
    }

    /// Ends it: not one packet was lost; gives its client back, and how many packets went around.
    #[track_caller]
    pub fn finish(mut self) -> (Client, u64) {
        self.see_progress();
        self.stop.store(true, Ordering::Relaxed);
        let client = self.thread.take().unwrap().join().expect("the witness lost nothing");
        (client, self.rounds.load(Ordering::Relaxed))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
