//! A connection to a server over UDP, TCP or TLS: requests with their answers, and data that arrives.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::wire::attribute::ATTR_XOR_PEER_ADDRESS;
use crate::wire::attribute::xor_address;
use crate::wire::channel_data::{self, ChannelData};
use crate::wire::framing::{Cut, cut};
use crate::wire::message::{CLASS_INDICATION, Known, METHOD_DATA, Message, TransactionId};

/// How much arrived data waits to be read; more is dropped, as a receiver's buffer would.
const ARRIVALS_MAX: usize = 4096;

/// The first wait before a request is sent again over UDP (RFC 8489 section 6.2.1 says 500 ms or more where
/// nothing is known; a check has one request under way at a time).
const RETRANSMIT_FIRST: Duration = Duration::from_millis(250);

/// How data came through the relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Peer(SocketAddr),
    Channel(u16),
}

/// Data that came through the relay.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) from: Origin,
    pub(super) payload: Vec<u8>,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NoAnswer {
    /// Nothing came in time.
    Silence,
    /// The machine answered that no program listens there.
    Refused,
    /// This machine has no way to that address.
    NoRoute,
    /// The connection ended.
    Closed(String),
}

impl NoAnswer {
    pub(super) fn of(error: &io::Error) -> Self {
        #[allow(clippy::wildcard_enum_match_arm, reason = "the kinds of errors are open")]
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable | io::ErrorKind::HostUnreachable => {
                Self::NoRoute
            }
            io::ErrorKind::TimedOut => Self::Silence,
            _ => Self::Closed(error.to_string()),
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Silence => "no answer".to_owned(),
            Self::Refused => "refused: no program listens on that port".to_owned(),
            Self::NoRoute => "this machine has no route there".to_owned(),
            Self::Closed(why) => format!("the connection ended: {why}"),
        }
    }
}

#[derive(Default)]
struct Shared {
    pending: Mutex<HashMap<[u8; 12], oneshot::Sender<Vec<u8>>>>,
    ended: Mutex<Option<NoAnswer>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// No answer will come any more: who waits is told.
    fn end(&self, why: NoAnswer) {
        lock(&self.ended).get_or_insert(why);
        lock(&self.pending).clear();
    }

    fn take_in(&self, bytes: &[u8], arrivals: &mpsc::Sender<Arrival>) {
        if let Some(data) = ChannelData::parse(bytes) {
            // A full queue is a lost packet, and the waiting side counts it as one.
            let from = Origin::Channel(data.number.0);
            let _ = arrivals.try_send(Arrival { from, payload: data.payload.to_vec() });
            return;
        }
        let Ok(message) = Message::parse(bytes) else { return };
        if message.message_type().class == CLASS_INDICATION {
            let peer = message.all(ATTR_XOR_PEER_ADDRESS).next();
            let peer = peer.and_then(|value| xor_address(value, message.transaction_id()).ok());
            if let (METHOD_DATA, Some(peer), Some(data)) =
                (message.message_type().method, peer, message.get(Known::Data))
            {
                let _ = arrivals.try_send(Arrival { from: Origin::Peer(peer.into()), payload: data.to_vec() });
            }
        } else if let Some(waiting) = lock(&self.pending).remove(&message.transaction_id().0) {
            let _ = waiting.send(bytes.to_vec());
        }
    }
}

enum Writer {
    Udp(Arc<UdpSocket>),
    Stream(tokio::sync::Mutex<Box<dyn AsyncWrite + Send + Unpin>>),
}

/// One five-tuple.
pub(super) struct Link {
    writer: Writer,
    shared: Arc<Shared>,
    arrivals: mpsc::Receiver<Arrival>,
    reader: JoinHandle<()>,
    pub(super) local: SocketAddr,
    pub(super) timeout: Duration,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A socket of the server's family, on all addresses: the route decides.
pub(super) async fn udp_socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind(SocketAddr::new(any, 0)).await
}

impl Link {
    /// Over UDP; connected, so that a port unreachable is heard.
    pub(super) async fn udp(server: SocketAddr, timeout: Duration) -> Result<Self, NoAnswer> {
        let socket = udp_socket(server).await.map_err(|error| NoAnswer::of(&error))?;
        socket.connect(server).await.map_err(|error| NoAnswer::of(&error))?;
        let local = socket.local_addr().map_err(|error| NoAnswer::of(&error))?;
        let (socket, shared) = (Arc::new(socket), Arc::<Shared>::default());
        let (arrived, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let (reading, into) = (Arc::clone(&socket), Arc::clone(&shared));
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                match reading.recv(&mut buffer).await {
                    Ok(len) => into.take_in(&buffer[..len], &arrived),
                    Err(error) => into.end(NoAnswer::of(&error)),
                }
            }
        });
        Ok(Self { writer: Writer::Udp(socket), shared, arrivals, reader, local, timeout })
    }

    /// Connects over TCP.
    pub(super) async fn connect(server: SocketAddr, timeout: Duration) -> Result<TcpStream, NoAnswer> {
        match tokio::time::timeout(timeout, TcpStream::connect(server)).await {
            Ok(Ok(stream)) => {
                // A small request must not wait for more; where this fails it is only slower.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => Err(NoAnswer::of(&error)),
            Err(_) => Err(NoAnswer::Silence),
        }
    }

    /// On an established stream.
    pub(super) fn stream<S>(stream: S, local: SocketAddr, timeout: Duration) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (reading, writing) = tokio::io::split(stream);
        let shared = Arc::<Shared>::default();
        let (arrived, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let reader = tokio::spawn(read_frames(reading, Arc::clone(&shared), arrived));
        let writer = Writer::Stream(tokio::sync::Mutex::new(Box::new(writing)));
        Self { writer, shared, arrivals, reader, local, timeout }
    }

    pub(super) const fn is_stream(&self) -> bool {
        matches!(self.writer, Writer::Stream(_))
    }

    /// Sends one message; ChannelData is padded where the transport needs it.
    pub(super) async fn send(&self, message: &[u8]) -> Result<(), NoAnswer> {
        let sent = match &self.writer {
            Writer::Udp(socket) => socket.send(message).await.map(|_| ()),
            Writer::Stream(writer) => {
                let mut framed = message.to_vec();
                framed.resize(message.len() + channel_data::padding(message.len()), 0);
                let mut writer = writer.lock().await;
                match tokio::time::timeout(self.timeout, async {
                    writer.write_all(&framed).await?;
                    writer.flush().await
                })
                .await
                {
                    Ok(sent) => sent,
                    Err(_) => return Err(NoAnswer::Silence),
                }
            }
        };
        sent.map_err(|error| NoAnswer::of(&error))
    }

    /// Sends a request and waits for its answer; over UDP it is sent again, later and later.
    pub(super) async fn ask(&self, id: TransactionId, request: &[u8]) -> Result<Vec<u8>, NoAnswer> {
        let pause = if self.is_stream() { self.timeout } else { RETRANSMIT_FIRST };
        self.ask_with(id, request, self.timeout, pause).await
    }

    /// The same without sending again, for measuring.
    pub(super) async fn ask_once(
        &self,
        id: TransactionId,
        request: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, NoAnswer> {
        self.ask_with(id, request, within, within).await
    }

    async fn ask_with(
        &self,
        id: TransactionId,
        request: &[u8],
        within: Duration,
        mut pause: Duration,
    ) -> Result<Vec<u8>, NoAnswer> {
        if let Some(why) = lock(&self.shared.ended).clone() {
            return Err(why);
        }
        let (answer, mut waiting) = oneshot::channel();
        lock(&self.shared.pending).insert(id.0, answer);
        let deadline = Instant::now() + within;
        let result = loop {
            if let Err(error) = self.send(request).await {
                break Err(error);
            }
            let left = deadline.saturating_duration_since(Instant::now()).min(pause);
            match tokio::time::timeout(left, &mut waiting).await {
                Ok(Ok(bytes)) => break Ok(bytes),
                Ok(Err(_)) => {
                    break Err(lock(&self.shared.ended).clone().unwrap_or(NoAnswer::Silence));
                }
                Err(_) if Instant::now() >= deadline => break Err(NoAnswer::Silence),
                Err(_) => pause *= 2,
            }
        };
        lock(&self.shared.pending).remove(&id.0);
        result
    }

    /// The next data from the relay.
    pub(super) async fn arrival(&mut self, within: Duration) -> Option<Arrival> {
        tokio::time::timeout(within, self.arrivals.recv()).await.ok().flatten()
    }
}

async fn read_frames(mut reading: impl AsyncRead + Unpin, shared: Arc<Shared>, arrived: mpsc::Sender<Arrival>) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let why = match reading.read(&mut buffer).await {
            Ok(0) => NoAnswer::Closed("the server closed it".to_owned()),
            Err(error) => NoAnswer::of(&error),
            Ok(len) => {
                bytes.extend_from_slice(&buffer[..len]);
                let mut at = 0;
                let broken = loop {
                    match cut(&bytes[at..]) {
                        Cut::NeedMore => break false,
                        Cut::Broken => break true,
                        Cut::Frame { message, consumed } => {
                            shared.take_in(&bytes[at..at + message], &arrived);
                            at += consumed;
                        }
                    }
                };
                bytes.drain(..at);
                if !broken {
                    continue;
                }
                NoAnswer::Closed("what came is not STUN".to_owned())
            }
        };
        shared.end(why);
        return;
    }
}
