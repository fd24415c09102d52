//! A small TURN client over UDP and TCP that says exactly what the test tells it to.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use throughway::address::Address;
use throughway::credentials::claims::Claims;
use throughway::credentials::{Algorithm, Secret, SharedSecret, mint};
use throughway::wire::attribute::{
    ATTR_CHANNEL_NUMBER, ATTR_CONNECTION_ID, ATTR_DATA, ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM, ATTR_RESERVATION_TOKEN,
    ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS, ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS, xor_address,
};
use throughway::wire::integrity::IntegrityKey;
use throughway::wire::message::{
    ATTR_ICMP, AttrType, CLASS_INDICATION, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, Known, METHOD_ALLOCATE,
    METHOD_BINDING, METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION, METHOD_DATA, METHOD_REFRESH, METHOD_SEND, Message,
    MessageType, Method, TransactionId,
};
use throughway::wire::writer::Writer;

use super::PATIENCE;
use super::peer::{peer, receive};
use super::server::worker_of;
use super::tls::TlsStream;

pub const ATTR_REQUESTED_TRANSPORT: AttrType = AttrType(0x0019);
pub const ATTR_REQUESTED_ADDRESS_FAMILY: AttrType = AttrType(0x0017);
pub const ATTR_EVEN_PORT: AttrType = AttrType(0x0018);
pub const ATTR_DONT_FRAGMENT: AttrType = AttrType(0x001A);

/// One attribute of a request.
#[derive(Clone)]
pub enum Wanted {
    Bytes(AttrType, Vec<u8>),
    Address(AttrType, SocketAddr),
}

impl Wanted {
    pub fn udp() -> Self {
        Self::Bytes(ATTR_REQUESTED_TRANSPORT, vec![17, 0, 0, 0])
    }

    pub fn tcp() -> Self {
        Self::Bytes(ATTR_REQUESTED_TRANSPORT, vec![6, 0, 0, 0])
    }

    pub fn connection(id: &[u8]) -> Self {
        Self::Bytes(ATTR_CONNECTION_ID, id.to_vec())
    }

    pub fn family(ipv4: bool) -> Self {
        Self::Bytes(ATTR_REQUESTED_ADDRESS_FAMILY, vec![if ipv4 { 1 } else { 2 }, 0, 0, 0])
    }

    pub fn even_port(reserve: bool) -> Self {
        Self::Bytes(ATTR_EVEN_PORT, vec![if reserve { 0x80 } else { 0 }])
    }

    pub fn token(token: &[u8]) -> Self {
        Self::Bytes(ATTR_RESERVATION_TOKEN, token.to_vec())
    }

    pub fn peer(address: SocketAddr) -> Self {
        Self::Address(ATTR_XOR_PEER_ADDRESS, address)
    }

    pub fn lifetime(seconds: u32) -> Self {
        Self::Bytes(ATTR_LIFETIME, seconds.to_be_bytes().to_vec())
    }
}

/// A fresh transaction id.
pub fn transaction_id() -> TransactionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut id = [0x77; 12];
    id[4..].copy_from_slice(&number.to_be_bytes());
    TransactionId(id)
}

/// What signs a request.
#[derive(Clone)]
pub struct Login {
    pub username: String,
    pub realm: Vec<u8>,
    pub nonce: Vec<u8>,
    pub key: IntegrityKey,
}

/// A request's bytes.
pub fn request(method: Method, wanted: &[Wanted], login: Option<&Login>) -> Vec<u8> {
    message(MessageType { method, class: CLASS_REQUEST }, wanted, login)
}

pub fn message(message_type: MessageType, wanted: &[Wanted], login: Option<&Login>) -> Vec<u8> {
    let mut bytes = vec![0; 66_000];
    let mut writer = Writer::new(&mut bytes, message_type, transaction_id());
    for attribute in wanted {
        match attribute {
            Wanted::Bytes(name, value) => writer.attribute(*name, value),
            Wanted::Address(name, address) => writer.xor_address(*name, Address::new(address.ip(), address.port())),
        };
    }
    if let Some(login) = login {
        writer.attribute(ATTR_USERNAME, login.username.as_bytes());
        writer.attribute(ATTR_REALM, &login.realm);
        writer.attribute(ATTR_NONCE, &login.nonce);
        writer.integrity(&login.key);
    }
    let len = writer.finish().expect("the message fits");
    bytes.truncate(len);
    bytes
}

/// ChannelData's bytes, without padding.
pub fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("ChannelData carries up to 65,535 bytes");
    [&number.to_be_bytes()[..], &len.to_be_bytes(), payload].concat()
}

/// A Send indication's bytes.
pub fn send_indication(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let data = Wanted::Bytes(ATTR_DATA, payload.to_vec());
    message(MessageType { method: METHOD_SEND, class: CLASS_INDICATION }, &[Wanted::peer(peer), data], None)
}

/// An answer of the server.
#[derive(Clone)]
pub struct Response(pub Vec<u8>);

impl Response {
    fn message(&self) -> Message<'_> {
        Message::parse(&self.0).expect("the server writes well-formed messages")
    }

    /// The error code, or 0 for a success.
    pub fn code(&self) -> u16 {
        let message = self.message();
        match message.get(Known::ErrorCode) {
            Some(value) => u16::from(value[2]) * 100 + u16::from(value[3]),
            None => {
                assert_eq!(message.message_type().class, CLASS_SUCCESS_RESPONSE);
                0
            }
        }
    }

    #[track_caller]
    pub fn address(&self, attribute: AttrType) -> SocketAddr {
        let message = self.message();
        let value = message.all(attribute).next().expect("the answer has that address");
        xor_address(value, message.transaction_id()).expect("an address").into()
    }

    #[track_caller]
    pub fn bytes(&self, which: Known) -> Vec<u8> {
        self.message().get(which).expect("the answer has that attribute").to_vec()
    }

    #[track_caller]
    pub fn relayed(&self) -> SocketAddr {
        assert_eq!(self.code(), 0, "Allocate was refused");
        self.address(ATTR_XOR_RELAYED_ADDRESS)
    }

    #[track_caller]
    pub fn lifetime(&self) -> u32 {
        u32::from_be_bytes(self.bytes(Known::Lifetime).try_into().unwrap())
    }
}

/// How data came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Channel(u16),
    Peer(SocketAddr),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Data {
    pub from: Origin,
    pub payload: Vec<u8>,
}

enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream, Vec<u8>),
    Tls(Box<TlsStream>, Vec<u8>),
}

/// A client of one five-tuple.
pub struct Client {
    link: Link,
    pub username: String,
    pub password: String,
    pub login: Option<Login>,
    data: VecDeque<Data>,
    icmp_errors: VecDeque<(SocketAddr, [u8; 8])>,
    closed: bool,
}

impl Client {
    /// An allocation, a channel, and a packet each way.
    #[track_caller]
    pub fn check_call(&mut self) {
        let relayed = self.allocate_family(true);
        let other = peer(relayed);
        let at = other.local_addr().unwrap();
        self.bind(0x4000, at);
        self.send_channel(0x4000, b"out");
        assert_eq!(receive(&other), (b"out".to_vec(), relayed));
        other.send_to(b"and back", relayed).unwrap();
        self.expect_data(Origin::Channel(0x4000), b"and back");
    }

    fn new(link: Link) -> Self {
        let (username, password) = ("alice".to_owned(), "wonderland".to_owned());
        Self {
            link,
            username,
            password,
            login: None,
            data: VecDeque::new(),
            icmp_errors: VecDeque::new(),
            closed: false,
        }
    }

    /// Over UDP; connected, so an answer from another address would not be seen.
    pub fn udp(server: SocketAddr) -> Self {
        Self::udp_by(UdpSocket::bind((if server.is_ipv4() { "127.0.0.1" } else { "::1" }, 0)).unwrap(), server)
    }

    pub fn udp_by(socket: UdpSocket, server: SocketAddr) -> Self {
        socket.connect(server).unwrap();
        Self::new(Link::Udp(socket))
    }

    /// Over UDP, from a port whose packets this worker gets.
    pub fn udp_on_worker(server: SocketAddr, worker: u8, workers: u8) -> Self {
        let mut others = Vec::new();
        for _ in 0..200 {
            let socket = UdpSocket::bind((if server.is_ipv4() { "127.0.0.1" } else { "::1" }, 0)).unwrap();
            if worker_of(socket.local_addr().unwrap(), workers) == worker {
                return Self::udp_by(socket, server);
            }
            others.push(socket);
        }
        panic!("no source port leads to worker {worker} of {workers}");
    }

    pub fn tcp(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::tcp_by(stream)
    }

    /// Over a TCP connection that the test has made.
    pub fn tcp_by(stream: TcpStream) -> Self {
        Self::new(Link::Tcp(stream, Vec::new()))
    }

    /// Over a TLS connection whose handshake is done.
    pub fn tls(stream: TlsStream) -> Self {
        Self::new(Link::Tls(Box::new(stream), Vec::new()))
    }

    pub fn user(mut self, username: &str, password: &str) -> Self {
        (self.username, self.password) = (username.to_owned(), password.to_owned());
        self
    }

    /// With a time-limited credential of this secret, good for an hour.
    pub fn minted(self, secret: &str, user_id: &str) -> Self {
        let secret = SharedSecret::new("test", Secret::new(secret.as_bytes()), Algorithm::Sha1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let minted = mint(&secret, now, user_id, 3600, &Claims::default()).expect("a user id without ~");
        self.user(&minted.username, &minted.password)
    }

    pub fn is_stream(&self) -> bool {
        matches!(self.link, Link::Tcp(..) | Link::Tls(..))
    }

    pub fn local(&self) -> SocketAddr {
        match &self.link {
            Link::Udp(socket) => socket.local_addr().unwrap(),
            Link::Tcp(stream, _) => stream.local_addr().unwrap(),
            Link::Tls(stream, _) => stream.sock.local_addr().unwrap(),
        }
    }

    /// Its socket, for those who set options of it.
    pub fn socket(&self) -> &UdpSocket {
        match &self.link {
            Link::Udp(socket) => socket,
            Link::Tcp(..) | Link::Tls(..) => panic!("a stream"),
        }
    }

    /// Its stream, for those who write to it in pieces.
    pub fn stream(&mut self) -> &mut TcpStream {
        match &mut self.link {
            Link::Tcp(stream, _) => stream,
            Link::Tls(stream, _) => &mut stream.sock,
            Link::Udp(_) => panic!("not a stream"),
        }
    }

    /// Its TLS, for those who look behind it.
    pub fn tls_stream(&mut self) -> &mut TlsStream {
        match &mut self.link {
            Link::Tls(stream, _) => stream,
            Link::Udp(_) | Link::Tcp(..) => panic!("not TLS"),
        }
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        match &mut self.link {
            Link::Udp(socket) => assert_eq!(socket.send(bytes).unwrap(), bytes.len()),
            Link::Tcp(stream, _) => stream.write_all(bytes).unwrap(),
            Link::Tls(stream, _) => stream.write_all(bytes).and_then(|()| stream.flush()).unwrap(),
        }
    }

    /// Sends bytes to a server that may have closed the stream.
    pub fn try_send(&mut self, bytes: &[u8]) -> Option<()> {
        match &mut self.link {
            Link::Udp(socket) => drop(socket.send(bytes)),
            Link::Tcp(stream, _) => stream.write_all(bytes).ok()?,
            Link::Tls(stream, _) => stream.write_all(bytes).and_then(|()| stream.flush()).ok()?,
        }
        Some(())
    }

    pub fn send_channel(&mut self, number: u16, payload: &[u8]) {
        let mut bytes = channel_data(number, payload);
        if self.is_stream() {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        self.send_raw(&bytes);
    }

    pub fn send_to(&mut self, peer: SocketAddr, payload: &[u8]) {
        self.send_raw(&send_indication(peer, payload));
    }

    /// The next message or frame that is no ICMP error, which is kept; nothing when the time is over or the stream ended.
    fn read_more(&mut self, until: Instant) -> Option<Vec<u8>> {
        let bytes = self.read_any(until)?;
        match take_icmp_error(&bytes) {
            Some(error) => {
                self.icmp_errors.push_back(error);
                None
            }
            None => Some(bytes),
        }
    }

    /// The next ICMP error that the server tells of: the peer, and the attribute's value.
    pub fn icmp_error(&mut self) -> Option<(SocketAddr, [u8; 8])> {
        let until = Instant::now() + PATIENCE;
        while self.icmp_errors.is_empty() && Instant::now() < until && !self.closed {
            if let Some(data) = self.read_more(until).as_deref().and_then(take_data) {
                self.data.push_back(data);
            }
        }
        self.icmp_errors.pop_front()
    }

    fn read_any(&mut self, until: Instant) -> Option<Vec<u8>> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match &mut self.link {
            Link::Udp(socket) => {
                socket.set_read_timeout(Some(left)).unwrap();
                let mut buffer = vec![0; 65_536];
                // A refused connection is an ICMP message about an earlier datagram.
                let len = socket.recv(&mut buffer).ok()?;
                buffer.truncate(len);
                Some(buffer)
            }
            Link::Tcp(stream, pending) => read_frame(stream, pending, until, &mut self.closed),
            Link::Tls(stream, pending) => read_frame(&mut **stream, pending, until, &mut self.closed),
        }
    }

    /// The next answer to anything; data that comes before it is kept.
    fn next_response(&mut self, until: Instant) -> Option<Response> {
        while Instant::now() < until && !self.closed {
            let Some(bytes) = self.read_more(until) else { continue };
            match take_data(&bytes) {
                Some(data) => self.data.push_back(data),
                None => return Some(Response(bytes)),
            }
        }
        None
    }

    /// The next message that is no data, whatever it is.
    #[track_caller]
    pub fn hear(&mut self) -> Response {
        self.next_response(Instant::now() + PATIENCE).expect("a message in time")
    }

    /// What was read behind the last message, for who reads the stream by itself from here on.
    pub fn take_pending(&mut self) -> Vec<u8> {
        match &mut self.link {
            Link::Tcp(_, pending) | Link::Tls(_, pending) => std::mem::take(pending),
            Link::Udp(_) => panic!("not a stream"),
        }
    }

    /// Reads of a stream that carries no messages any more; 0 at its end.
    pub fn read_raw(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.link {
            Link::Tcp(stream, _) => stream.read(buffer),
            Link::Tls(stream, _) => stream.read(buffer),
            Link::Udp(_) => panic!("not a stream"),
        }
    }

    /// Waits for the answer to these bytes.
    #[track_caller]
    pub fn answer_to(&mut self, request: &[u8]) -> Response {
        self.answer_within(request, PATIENCE).expect("an answer in time")
    }

    pub fn answer_within(&mut self, request: &[u8], time: Duration) -> Option<Response> {
        let until = Instant::now() + time;
        loop {
            let response = self.next_response(until)?;
            if response.0[8..20] == request[8..20] {
                return Some(response);
            }
        }
    }

    /// Sends bytes and waits for their answer.
    #[track_caller]
    pub fn ask(&mut self, bytes: &[u8]) -> Response {
        self.send_raw(bytes);
        self.answer_to(bytes)
    }

    /// Takes realm and nonce of a 401 or 438 over.
    pub fn take_challenge(&mut self, response: &Response) {
        let (realm, nonce) = (response.bytes(Known::Realm), response.bytes(Known::Nonce));
        let key = IntegrityKey::long_term(self.username.as_bytes(), &realm, self.password.as_bytes());
        self.login = Some(Login { username: self.username.clone(), realm, nonce, key });
    }

    /// Asks without a word about who asks, to hear the challenge.
    #[track_caller]
    pub fn challenge(&mut self) {
        let response = self.ask(&request(METHOD_ALLOCATE, &[Wanted::udp()], None));
        assert_eq!(response.code(), 401);
        self.take_challenge(&response);
    }

    /// A request with everything that authentication needs.
    #[track_caller]
    pub fn request(&mut self, method: Method, wanted: &[Wanted]) -> Response {
        if self.login.is_none() {
            self.challenge();
        }
        let mut response = self.ask(&request(method, wanted, self.login.as_ref()));
        if response.code() == 438 {
            self.take_challenge(&response);
            response = self.ask(&request(method, wanted, self.login.as_ref()));
        }
        if response.code() == 0 {
            let key = &self.login.as_ref().unwrap().key;
            assert!(key.verifies(&response.message()), "a success that is not signed");
        }
        response
    }

    /// The same, sent again until an answer comes; gives how often it was sent.
    #[track_caller]
    pub fn request_until_answered(&mut self, method: Method, wanted: &[Wanted]) -> (Response, usize) {
        const TIMES_MAX: usize = 40;
        let bytes = request(method, wanted, self.login.as_ref());
        for times in 1..=TIMES_MAX {
            self.send_raw(&bytes);
            if let Some(response) = self.answer_within(&bytes, Duration::from_millis(250)) {
                return (response, times);
            }
        }
        panic!("no answer to {TIMES_MAX} requests");
    }

    #[track_caller]
    pub fn binding(&mut self) -> SocketAddr {
        let response = self.ask(&request(METHOD_BINDING, &[], None));
        assert_eq!(response.code(), 0);
        response.address(ATTR_XORMAPPED_ADDRESS)
    }

    #[track_caller]
    pub fn allocate(&mut self) -> SocketAddr {
        let ipv4 = self.local().is_ipv4();
        self.allocate_family(ipv4)
    }

    #[track_caller]
    pub fn allocate_family(&mut self, ipv4: bool) -> SocketAddr {
        self.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::family(ipv4)]).relayed()
    }

    #[track_caller]
    pub fn refresh(&mut self, seconds: u32) -> Response {
        self.request(METHOD_REFRESH, &[Wanted::lifetime(seconds)])
    }

    pub fn try_permit(&mut self, peer: SocketAddr) -> u16 {
        self.request(METHOD_CREATE_PERMISSION, &[Wanted::peer(peer)]).code()
    }

    #[track_caller]
    pub fn permit(&mut self, peer: SocketAddr) {
        assert_eq!(self.try_permit(peer), 0, "CreatePermission for {peer}");
    }

    pub fn try_bind(&mut self, number: u16, peer: SocketAddr) -> u16 {
        let [high, low] = number.to_be_bytes();
        let number = Wanted::Bytes(ATTR_CHANNEL_NUMBER, vec![high, low, 0, 0]);
        self.request(METHOD_CHANNEL_BIND, &[number, Wanted::peer(peer)]).code()
    }

    #[track_caller]
    pub fn bind(&mut self, number: u16, peer: SocketAddr) {
        assert_eq!(self.try_bind(number, peer), 0, "ChannelBind of {number:#x} to {peer}");
    }

    /// The next data, in order.
    pub fn data(&mut self) -> Option<Data> {
        self.data_within(PATIENCE)
    }

    pub fn data_within(&mut self, time: Duration) -> Option<Data> {
        let until = Instant::now() + time;
        loop {
            if let Some(data) = self.data.pop_front() {
                return Some(data);
            }
            if Instant::now() >= until || self.closed {
                return None;
            }
            if let Some(data) = self.read_more(until).as_deref().and_then(take_data) {
                return Some(data);
            }
        }
    }

    /// The next data, which must be this.
    #[track_caller]
    pub fn expect_data(&mut self, from: Origin, payload: &[u8]) {
        let data = self.data().expect("data in time");
        assert_eq!((data.from, data.payload.len()), (from, payload.len()));
        assert!(data.payload == payload, "the payload of {} bytes was changed", payload.len());
    }

    /// The server must close the stream.
    #[track_caller]
    pub fn expect_closed(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.closed {
            assert!(Instant::now() < until, "the stream is still open");
            let _ = self.read_more(until);
        }
    }

    pub fn close(self) {
        match &self.link {
            Link::Udp(_) => {}
            Link::Tcp(stream, _) => drop(stream.shutdown(Shutdown::Both)),
            Link::Tls(stream, _) => drop(stream.sock.shutdown(Shutdown::Both)),
        }
    }
}

/// What a frame is read from.
trait Source: std::io::Read {
    fn set_patience(&mut self, time: Duration);
}

impl Source for TcpStream {
    fn set_patience(&mut self, time: Duration) {
        self.set_read_timeout(Some(time)).unwrap();
    }
}

impl Source for TlsStream {
    fn set_patience(&mut self, time: Duration) {
        self.sock.set_read_timeout(Some(time)).unwrap();
    }
}

fn read_frame(stream: &mut impl Source, pending: &mut Vec<u8>, until: Instant, closed: &mut bool) -> Option<Vec<u8>> {
    loop {
        if let Some(frame) = next_frame(pending) {
            return Some(frame);
        }
        stream.set_patience(until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let mut buffer = [0; 65_536];
        match stream.read(&mut buffer) {
            Ok(0) => {
                *closed = true;
                return None;
            }
            Ok(len) => pending.extend_from_slice(&buffer[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
            // A child that stops, goes on or ends interrupts whichever thread is waiting.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                *closed = true;
                return None;
            }
        }
    }
}

/// ChannelData or a Data indication.
fn take_icmp_error(bytes: &[u8]) -> Option<(SocketAddr, [u8; 8])> {
    let message = Message::parse(bytes).ok()?;
    let value = message.all(ATTR_ICMP).next()?.try_into().expect("8 bytes");
    Some((message.peer().unwrap().expect("it names the peer").into(), value))
}

fn take_data(bytes: &[u8]) -> Option<Data> {
    if (0x40..=0x7F).contains(&bytes[0]) {
        let (number, len) = (u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]]));
        let payload = bytes[4..4 + usize::from(len)].to_vec();
        return Some(Data { from: Origin::Channel(number), payload });
    }
    let message = Message::parse(bytes).expect("the server writes well-formed messages");
    if message.message_type() != (MessageType { method: METHOD_DATA, class: CLASS_INDICATION }) {
        return None;
    }
    let peer = message.peer().unwrap().expect("a Data indication names its peer");
    Some(Data { from: Origin::Peer(peer.into()), payload: message.get(Known::Data).unwrap().to_vec() })
}

/// Cuts the next whole frame out of what a stream brought (RFC 8656 section 3.1 and 12.5).
fn next_frame(pending: &mut Vec<u8>) -> Option<Vec<u8>> {
    let &[first, _, high, low, ..] = pending.as_slice() else { return None };
    let len = usize::from(u16::from_be_bytes([high, low]));
    let message = if first >= 0x40 { 4 + len } else { 20 + len };
    let whole = message.next_multiple_of(4);
    if pending.len() < whole {
        return None;
    }
    let mut frame: Vec<u8> = pending.drain(..whole).collect();
    frame.truncate(message);
    Some(frame)
}
