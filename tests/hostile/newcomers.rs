//! Newcomers beside an attack: each asks the server something now and then, and must be answered soon.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use throughway::wire::message::{METHOD_ALLOCATE, METHOD_BINDING, METHOD_REFRESH};

use super::calls::wall_clock;
use test_support::e2e::client::request;
use test_support::e2e::tls::{NAME, connect};
use test_support::e2e::{Client, Server, Wanted};

/// A newcomer who has waited so long gives up. Without an attack none waits for a hundredth of it.
const GIVES_UP: Duration = Duration::from_secs(1);

/// A datagram without an answer is sent again, as RFC 8489 section 6.2.1 has it, but sooner.
const AGAIN: Duration = Duration::from_millis(250);

/// Between two newcomers.
const PAUSE: Duration = Duration::from_millis(20);

/// What a newcomer asks for.
#[derive(Clone)]
pub(crate) enum Question {
    /// Binding over UDP.
    Binding,
    /// An allocation over UDP, from the challenge to its end.
    Allocate,
    /// A connection, and Binding and an allocation on it.
    Stream,
    /// `GET /healthz` of this listener.
    Health(SocketAddr),
    /// `GET /healthz` of `http.listen`.
    OwnHealth,
    /// A TLS handshake with these settings.
    Handshake(Arc<ClientConfig>),
}

impl Question {
    /// What every server must answer whatever is done to it.
    pub(crate) fn usual() -> Vec<Self> {
        vec![Self::Binding, Self::Allocate, Self::Stream, Self::OwnHealth]
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Binding => "Binding over UDP",
            Self::Allocate => "Allocate over UDP",
            Self::Stream => "Allocate over TCP",
            Self::Health(_) => "/healthz of http.public",
            Self::OwnHealth => "/healthz of http.listen",
            Self::Handshake(_) => "a TLS handshake",
        }
    }
}

/// What a newcomer met.
#[derive(Clone, Copy)]
struct Met {
    asked_at: u64,
    question: &'static str,
    answered: bool,
    time: Duration,
}

/// Newcomers who come until this is dropped.
pub(crate) struct Newcomers {
    stop: Arc<AtomicBool>,
    met: Arc<Mutex<Vec<Met>>>,
    _thread: JoinHandle<()>,
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What became of the newcomers of a span of time.
#[derive(Clone, Default)]
pub(crate) struct Answers {
    pub(crate) asked: usize,
    /// What got no answer, and how often.
    pub(crate) unanswered: BTreeMap<&'static str, usize>,
    pub(crate) slowest: Duration,
}

impl Newcomers {
    pub(crate) fn start(server: &Server, questions: Vec<Question>) -> Self {
        let (stop, met) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<Met>>>::default());
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&met));
        let tls = questions.iter().any(|question| matches!(question, Question::Handshake(_))).then(|| server.tls4());
        let targets = Targets { udp: server.udp4(), tcp: server.tcp4(), http: server.http(), tls };
        let thread = std::thread::spawn(move || {
            for question in questions.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (asked_at, begun) = (wall_clock(), Instant::now());
                let answered = targets.ask(question).is_some() && begun.elapsed() < GIVES_UP;
                let met = Met { asked_at, question: question.name(), answered, time: begun.elapsed() };
                noted.lock().unwrap().push(met);
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, met, _thread: thread }
    }

    pub(crate) fn between(&self, from: u64, to: u64) -> Answers {
        let met = self.met.lock().unwrap();
        let within: Vec<Met> = met.iter().copied().filter(|met| (from..to).contains(&met.asked_at)).collect();
        let mut unanswered = BTreeMap::new();
        for met in within.iter().filter(|met| !met.answered) {
            *unanswered.entry(met.question).or_default() += 1;
        }
        Answers {
            asked: within.len(),
            unanswered,
            slowest: within.iter().map(|met| met.time).max().unwrap_or_default(),
        }
    }
}

/// Where the newcomers ask.
struct Targets {
    udp: SocketAddr,
    tcp: SocketAddr,
    http: SocketAddr,
    tls: Option<SocketAddr>,
}

impl Targets {
    fn ask(&self, question: &Question) -> Option<()> {
        match question {
            Question::Binding => answer(&mut Client::udp(self.udp), &request(METHOD_BINDING, &[], None)).map(|_| ()),
            Question::Allocate => allocate(Client::udp(self.udp)),
            Question::Stream => {
                let stream = TcpStream::connect_timeout(&self.tcp, GIVES_UP).ok()?;
                stream.set_nodelay(true).ok()?;
                let mut client = Client::tcp_by(stream);
                answer(&mut client, &request(METHOD_BINDING, &[], None))?;
                allocate(client)
            }
            Question::Health(address) => health(*address),
            Question::OwnHealth => health(self.http),
            Question::Handshake(config) => connect(config, self.tls?, NAME).ok().map(|_| ()),
        }
    }
}

/// Asks, over UDP more than once, until the newcomer gives up.
fn answer(client: &mut Client, bytes: &[u8]) -> Option<u16> {
    let until = Instant::now() + GIVES_UP;
    client.try_send(bytes)?;
    while Instant::now() < until {
        let time = if client.is_stream() { GIVES_UP } else { AGAIN };
        if let Some(response) = client.answer_within(bytes, time) {
            if matches!(response.code(), 401 | 438) {
                client.take_challenge(&response);
            }
            return Some(response.code());
        }
        if client.is_stream() {
            return None;
        }
        client.try_send(bytes)?;
    }
    None
}

fn allocate(client: Client) -> Option<()> {
    let mut client = client.user("bob", "builder");
    let wanted = [Wanted::udp(), Wanted::family(true)];
    answer(&mut client, &request(METHOD_ALLOCATE, &wanted, None)).filter(|code| *code == 401)?;
    let asked = request(METHOD_ALLOCATE, &wanted, client.login.as_ref());
    answer(&mut client, &asked).filter(|code| *code == 0)?;
    let asked = request(METHOD_REFRESH, &[Wanted::lifetime(0)], client.login.as_ref());
    // An answer that was lost is no refusal: the repeated request finds no allocation any more.
    answer(&mut client, &asked).filter(|code| matches!(code, 0 | 437)).map(|_| ())
}

fn health(address: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect_timeout(&address, GIVES_UP).ok()?;
    stream.set_read_timeout(Some(GIVES_UP)).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.starts_with("HTTP/1.1 200").then_some(())
}
