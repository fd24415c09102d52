//! Accepts streams on the control runtime, until each belongs to a worker.
//!
//! A plain stream is handed over at once. TLS handshakes and the first byte on a port for both take place
//! here, so that neither a signature nor a client that says nothing costs a worker anything: each with a time
//! limit, and so many at once (`tls::half_open`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ServerConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::counters::NetCounters;
use super::overflow::Watched;
use super::worker::{Mailbox, Message};
use crate::config::checked::Config;
use crate::protocol::address::{FiveTuple, Transport};
use crate::tls::half_open::{HalfOpen, Place};
use crate::tls::{HANDSHAKE, Handshakes, Tls};

/// How long accepting rests when the system is out of files: the next try would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a listener takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Takes {
    Plain,
    Tls,
    /// Either, told by the first byte.
    Both,
}

/// The limits of connections that no worker has yet; they follow a reload.
#[derive(Debug, Default)]
pub(super) struct Limits {
    handshake_ms: AtomicU64,
    silent_ms: AtomicU64,
    half_open: AtomicU64,
}

impl Limits {
    pub(super) fn set(&self, config: &Config) {
        let ms = |time: Option<Duration>| time.map_or(0, |time| time.as_millis() as u64);
        self.handshake_ms.store(ms(config.limits.tls_handshake), Ordering::Relaxed);
        self.silent_ms.store(ms(config.limits.tcp_unauthenticated), Ordering::Relaxed);
        self.half_open.store(config.limits.tls_half_open.map_or(u64::MAX, u64::from), Ordering::Relaxed);
    }

    /// 0 is no limit; nothing waits for a century.
    fn time(of: &AtomicU64) -> Duration {
        match of.load(Ordering::Relaxed) {
            0 => Duration::from_secs(3_000_000_000),
            ms => Duration::from_millis(ms),
        }
    }
}

/// Everything that the listeners share.
pub(super) struct Reception {
    pub(super) limits: Limits,
    pub(super) handshakes: Handshakes,
    /// Connections on a port for both that said nothing in time.
    pub(super) silent: AtomicU64,
    /// Streams that could not be accepted, or that no worker could take.
    pub(super) refused: AtomicU64,
    pub(super) tls: ArcSwapOption<Tls>,
    workers: Vec<(Mailbox, Arc<NetCounters>, AtomicU64)>,
    half_open: Arc<HalfOpen>,
}

impl Reception {
    pub(super) fn new(tls: Option<Arc<Tls>>, workers: impl Iterator<Item = (Mailbox, Arc<NetCounters>)>) -> Self {
        Self {
            limits: Limits::default(),
            handshakes: Handshakes::default(),
            silent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            tls: ArcSwapOption::new(tls),
            workers: workers.map(|(mailbox, net)| (mailbox, net, AtomicU64::new(0))).collect(),
            half_open: Arc::default(),
        }
    }

    /// Handshakes under way, and connections on a port for both that have said nothing yet.
    pub(super) fn half_open(&self) -> u64 {
        self.half_open.count()
    }

    /// Runs until it is told to stop; whom it has accepted by then is served.
    pub(super) async fn accept(
        self: Arc<Self>,
        listener: Arc<Watched<TcpListener>>,
        takes: Takes,
        mut stop: oneshot::Receiver<()>,
    ) {
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut stop => return,
                accepted = listener.accept() => accepted,
            };
            let accepted = accepted.and_then(|(stream, from)| {
                stream.set_nodelay(true)?;
                let (client, server) = (from.into(), stream.local_addr()?.into());
                Ok((stream, FiveTuple { client, server, transport: Transport::Tcp }))
            });
            match accepted {
                Ok((stream, five_tuple)) if takes == Takes::Plain => self.hand_over(stream, five_tuple, None),
                Ok((stream, five_tuple)) => {
                    let place = self.half_open.place(|| self.limits.half_open.load(Ordering::Relaxed)).await;
                    tokio::spawn(Arc::clone(&self).receive(stream, five_tuple, takes, place));
                }
                // Out of files or memory, or a client that was gone already: don't spin.
                Err(_) => {
                    Handshakes::count(&self.refused);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn receive(self: Arc<Self>, stream: TcpStream, five_tuple: FiveTuple, takes: Takes, mut place: Place) {
        tokio::select! {
            () = self.establish(stream, five_tuple, takes) => {}
            Ok(()) = &mut place.give_way => Handshakes::count(&self.handshakes.refused),
        }
    }

    async fn establish(&self, stream: TcpStream, five_tuple: FiveTuple, takes: Takes) {
        if takes == Takes::Both {
            let mut first = [0];
            match tokio::time::timeout(Limits::time(&self.limits.silent_ms), stream.peek(&mut first)).await {
                Ok(Ok(1..)) if first[0] == HANDSHAKE => {}
                // STUN, ChannelData, or noise, which the worker knows how to count.
                Ok(Ok(1..)) => return self.hand_over(stream, five_tuple, None),
                Ok(Ok(0) | Err(_)) => return,
                Err(_) => return Handshakes::count(&self.silent),
            }
        }
        let Some(tls) = self.tls.load_full() else { return };
        let accepting = TlsAcceptor::from(tls.server()).accept(stream);
        match tokio::time::timeout(Limits::time(&self.limits.handshake_ms), accepting).await {
            Ok(Ok(established)) => {
                let (stream, connection) = established.into_inner();
                Handshakes::count(&self.handshakes.ok);
                if connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
                    Handshakes::count(&self.handshakes.resumed);
                }
                let five_tuple = FiveTuple { transport: Transport::Tls, ..five_tuple };
                self.hand_over(stream, five_tuple, Some(Box::new(connection)));
            }
            Ok(Err(error)) => {
                tracing::debug!(client = %five_tuple.client, %error, "TLS handshake failed");
                Handshakes::count(&self.handshakes.failed);
            }
            Err(_) => Handshakes::count(&self.handshakes.timeout),
        }
    }

    /// To the worker with the fewest streams.
    fn hand_over(&self, stream: TcpStream, five_tuple: FiveTuple, tls: Option<Box<ServerConnection>>) {
        let Ok(socket) = stream.into_std() else { return Handshakes::count(&self.refused) };
        let fewest = self.workers.iter().min_by_key(|(_, net, given)| {
            // Those on their way count too, or a crowd would all go to one worker.
            let closed = net.streams_adopted.get().saturating_sub(net.streams_open.get());
            given.load(Ordering::Relaxed).saturating_sub(closed)
        });
        if let Some((mailbox, _, given)) = fewest {
            given.fetch_add(1, Ordering::Relaxed);
            if mailbox.send(Message::Adopt { socket, five_tuple, tls }).is_err() {
                // A worker whose inbox is full can't serve one more; the client sees a closed connection.
                given.fetch_sub(1, Ordering::Relaxed);
                Handshakes::count(&self.refused);
            }
        }
    }
}
