//! The listeners of a running server, and how a reload changes them.
//!
//! A reload binds everything first: what can't be bound leaves the old state whole. A stream listener that goes stops
//! accepting; a UDP listener that goes is *leaving*: it serves the sessions that came through it and nobody else, and
//! its sockets close together when the last session has ended, because the kernel steers by their number.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::accept::{Reception, Takes};
use super::listen::{self, BindError, UdpSockets};
use super::overflow::{Overflow, SocketKind, Watched};
use super::passed::Passed;
use super::worker::{Listener, ListenerChange, ListenerId, Message, ShellSettings, Users};
use super::{Running, shell_settings};
use crate::config::checked::{Config, Listen};
use crate::protocol::address::Transport;
use crate::protocol::settings::Settings;
use crate::tls::Tls;

/// How long a worker may take for a reload; one that is stuck longer is the watchdog's.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long they may take to show that they live, before anything is changed.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// One socket that the configuration asks for, one per worker for UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Wanted {
    address: SocketAddr,
    /// What its streams may be; `None` for UDP.
    takes: Option<Takes>,
}

impl Wanted {
    const fn transport(self) -> Transport {
        match self.takes {
            None => Transport::Udp,
            Some(Takes::Plain) => Transport::Tcp,
            Some(Takes::Tls | Takes::Both) => Transport::Tls,
        }
    }

    const fn key(self) -> &'static str {
        match self.takes {
            None => "listen.udp",
            Some(Takes::Plain) => "listen.tcp",
            Some(Takes::Tls) => "listen.tls",
            Some(Takes::Both) => "listen.auto",
        }
    }

    /// Whether both could not be bound at once.
    fn overlaps(self, bound: SocketAddr, is_udp: bool) -> bool {
        let (a, b) = (self.address, bound);
        self.takes.is_none() == is_udp
            && a.port() == b.port()
            && a.is_ipv4() == b.is_ipv4()
            && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
    }
}

/// The sockets of a configuration; what takes both transports stands there twice and is bound once.
fn wanted(config: &Config) -> Vec<Wanted> {
    let socket = |listen: &Listen| {
        let takes = match (listen.is_auto, listen.transport) {
            (true, Transport::Tcp) => return None,
            (true, Transport::Tls | Transport::Udp) => Some(Takes::Both),
            (false, Transport::Udp) => None,
            (false, Transport::Tcp) => Some(Takes::Plain),
            (false, Transport::Tls) => Some(Takes::Tls),
        };
        Some(Wanted { address: listen.address, takes })
    };
    config.listen.iter().filter_map(socket).collect()
}

/// Whether a listener of this configuration speaks TLS, `http.public` included.
pub(super) fn needs_tls(config: &Config) -> bool {
    config.http.has_https() || config.listen.iter().any(|listen| listen.transport == Transport::Tls)
}

struct Open {
    id: ListenerId,
    wanted: Wanted,
    /// As it is bound: port 0 has become a number.
    address: SocketAddr,
    kind: Kind,
}

enum Kind {
    Udp { users: Arc<Users>, is_leaving: bool },
    Stream { listener: Arc<Watched<tokio::net::TcpListener>>, accepting: Accepting },
}

/// A task that accepts until this is dropped; what it has accepted by then is not lost.
struct Accepting {
    _stop: oneshot::Sender<()>,
    task: AbortHandle,
}

impl Accepting {
    fn start(reception: &Arc<Reception>, listener: &Arc<Watched<tokio::net::TcpListener>>, takes: Takes) -> Self {
        let (stop, stopped) = oneshot::channel();
        let accepting = Arc::clone(reception).accept(Arc::clone(listener), takes, stopped);
        Self { _stop: stop, task: tokio::spawn(accepting).abort_handle() }
    }
}

/// Sockets that are bound and serve nobody yet.
enum Bound {
    Udp(Vec<UdpSockets>),
    Stream(TcpListener),
}

/// What a configuration changes; making it binds, dropping it changes nothing.
pub(super) struct Plan {
    added: Vec<(Wanted, SocketAddr, Bound)>,
    /// What is told apart in another way from now on: plain, TLS or both.
    retaken: Vec<(ListenerId, Wanted)>,
    returning: Vec<ListenerId>,
    removed: Vec<ListenerId>,
}

/// What is left to do when a plan was carried out.
pub(super) struct CarriedOut {
    /// For each worker.
    pub(super) changes: Vec<Vec<ListenerChange>>,
    /// UDP listeners that leave from now on.
    leaving: Vec<(ListenerId, Arc<Users>)>,
}

/// Every open listener.
#[derive(Default)]
pub(super) struct Listening {
    open: Vec<Open>,
    next: u32,
}

impl Listening {
    /// Compares what is open with what is wanted, and binds what is new.
    pub(super) fn plan(&self, config: &Config, workers: usize, passed: &Passed) -> Result<Plan, BindError> {
        let mut left: Vec<&Open> = self.open.iter().collect();
        let mut plan = Plan { added: Vec::new(), retaken: Vec::new(), returning: Vec::new(), removed: Vec::new() };
        let mut missing = Vec::new();
        for wanted in wanted(config) {
            let found = left.iter().position(|open| open.wanted == wanted).or_else(|| {
                let same_socket = |open: &&Open| {
                    open.wanted.takes.is_some() == wanted.takes.is_some() && open.wanted.address == wanted.address
                };
                left.iter().position(same_socket)
            });
            let Some(open) = found.map(|at| left.remove(at)) else {
                missing.push(wanted);
                continue;
            };
            if open.wanted != wanted {
                plan.retaken.push((open.id, wanted));
            } else if matches!(open.kind, Kind::Udp { is_leaving: true, .. }) {
                plan.returning.push(open.id);
            }
        }
        plan.removed = left.iter().filter(|open| !open.is_leaving()).map(|open| open.id).collect();
        for wanted in missing {
            let in_the_way = self.open.iter().find(|open| wanted.overlaps(open.address, open.wanted.takes.is_none()));
            if let Some(open) = in_the_way {
                return Err(BindError::in_the_way(
                    wanted.key(),
                    wanted.transport(),
                    wanted.address,
                    open.wanted.key(),
                    open.address,
                ));
            }
            plan.added.push(bind(wanted, workers, passed)?);
        }
        Ok(plan)
    }

    /// Every address that will be ours, leaving ones included: none of them may be a peer.
    pub(super) fn addresses(&self, plan: &Plan) -> Vec<SocketAddr> {
        let stays = |open: &&Open| !plan.removed.contains(&open.id) || open.wanted.takes.is_none();
        let staying = self.open.iter().filter(stays).map(|open| open.address);
        staying.chain(plan.added.iter().map(|(_, address, _)| *address)).collect()
    }

    /// Carries a plan out; gives what each worker must do, and the listeners that are leaving from now on.
    pub(super) fn carry_out(
        &mut self,
        plan: Plan,
        workers: usize,
        reception: &Arc<Reception>,
        overflow: &Arc<Overflow>,
    ) -> std::io::Result<CarriedOut> {
        let mut changes: Vec<Vec<ListenerChange>> = (0..workers).map(|_| Vec::new()).collect();
        let mut leaving = Vec::new();
        for (wanted, address, bound) in plan.added {
            let id = ListenerId(self.next);
            self.next += 1;
            let kind = match bound {
                Bound::Udp(sockets) => {
                    let users = Arc::new(Users::default());
                    for (changes, UdpSockets { data, control }) in changes.iter_mut().zip(sockets) {
                        let watch = |socket| overflow.watch(SocketKind::Listener, socket);
                        let listener = Listener::new(id, watch(data), control.map(watch), address, Arc::clone(&users));
                        changes.push(ListenerChange::Open(Box::new(listener)));
                    }
                    Kind::Udp { users, is_leaving: false }
                }
                Bound::Stream(listener) => {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    let listener = Arc::new(overflow.watch(SocketKind::Stream, listener));
                    let takes = wanted.takes.unwrap_or(Takes::Plain);
                    let accepting = Accepting::start(reception, &listener, takes);
                    Kind::Stream { listener, accepting }
                }
            };
            self.open.push(Open { id, wanted, address, kind });
        }
        for (id, wanted) in plan.retaken {
            let Some(open) = self.open.iter_mut().find(|open| open.id == id) else { continue };
            open.wanted = wanted;
            if let (Kind::Stream { listener, accepting }, Some(takes)) = (&mut open.kind, wanted.takes) {
                *accepting = Accepting::start(reception, listener, takes);
            }
        }
        let mut tell = |change: &dyn Fn() -> ListenerChange| changes.iter_mut().for_each(|of| of.push(change()));
        for open in &mut self.open {
            let Kind::Udp { users, is_leaving } = &mut open.kind else { continue };
            let id = open.id;
            if plan.returning.contains(&id) {
                *is_leaving = false;
                users.look.notify_waiters();
                tell(&|| ListenerChange::Return(id));
            } else if plan.removed.contains(&id) {
                *is_leaving = true;
                leaving.push((id, Arc::clone(users)));
                tell(&|| ListenerChange::Leave(id));
            }
        }
        self.open.retain(|open| !(plan.removed.contains(&open.id) && open.wanted.takes.is_some()));
        Ok(CarriedOut { changes, leaving })
    }

    /// What new clients find: transport and address, UDP first.
    pub(super) fn listeners(&self) -> Vec<(Transport, SocketAddr)> {
        let mut listeners = Vec::new();
        for open in self.open.iter().filter(|open| !open.is_leaving()) {
            if open.wanted.takes == Some(Takes::Both) {
                listeners.push((Transport::Tcp, open.address));
            }
            listeners.push((open.wanted.transport(), open.address));
        }
        listeners.sort_by_key(|(transport, _)| *transport);
        listeners
    }

    /// Takes a listener out if it is leaving and empty; gives its address.
    fn take_empty(&mut self, id: ListenerId) -> Option<SocketAddr> {
        let at = self.open.iter().position(|open| {
            open.id == id && matches!(&open.kind, Kind::Udp { users, is_leaving: true } if users.count() == 0)
        })?;
        Some(self.open.remove(at).address)
    }

    fn is_leaving(&self, id: ListenerId) -> bool {
        self.open.iter().any(|open| open.id == id && open.is_leaving())
    }

    /// Nothing is accepted any more.
    pub(super) fn stop(&self) {
        for open in &self.open {
            if let Kind::Stream { accepting, .. } = &open.kind {
                accepting.task.abort();
            }
        }
    }
}

impl Open {
    const fn is_leaving(&self) -> bool {
        matches!(self.kind, Kind::Udp { is_leaving: true, .. })
    }
}

fn bind(wanted: Wanted, workers: usize, passed: &Passed) -> Result<(Wanted, SocketAddr, Bound), BindError> {
    let failed = |cause| BindError { transport: wanted.transport().name(), address: wanted.address, cause };
    Ok(if wanted.takes.is_none() {
        let sockets = listen::udp(wanted.address, workers, passed)?;
        let bound = sockets.first().map_or(Ok(wanted.address), |first| first.data.local_addr()).map_err(failed)?;
        (wanted, bound, Bound::Udp(sockets))
    } else {
        let listener = listen::tcp(wanted.transport(), wanted.address, passed)?;
        let bound = listener.local_addr().map_err(failed)?;
        (wanted, bound, Bound::Stream(listener))
    })
}

/// What holds now.
pub(super) struct Current {
    pub(super) config: Config,
    /// Our HTTP listeners, which are never peers either.
    pub(super) http: Vec<SocketAddr>,
}

pub(super) fn lock(listening: &Mutex<Listening>) -> MutexGuard<'_, Listening> {
    // A list of listeners is whole between calls whatever became of the caller.
    listening.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    /// Takes over a configuration: settings, limits, listeners and relay ports. No call is lost.
    ///
    /// # Errors
    /// Says what can't be bound or which key contradicts which, and nothing has changed then; or that a worker did
    /// not take it.
    pub async fn reconfigure(self: &Arc<Self>, config: &Config, http: &[SocketAddr]) -> Result<(), String> {
        let mut current = self.current.lock().await;
        let stuck = self.silent_workers(SIGN_OF_LIFE).await;
        if !stuck.is_empty() {
            return Err(format!("worker {stuck:?} does not answer, so nothing was begun; try again"));
        }
        let plan = lock(&self.listening).plan(config, self.workers.len(), &self.passed).map_err(|e| e.to_string())?;
        let first_tls = if needs_tls(config) && self.tls().is_none() {
            Some(Arc::new(Tls::new(&config.tls.files).map_err(|error| format!("tls: {error}"))?))
        } else {
            None
        };
        let mut addresses = lock(&self.listening).addresses(&plan);
        addresses.extend(http);
        let settings = Arc::new(self.settings(config, &addresses)?);
        // Nothing is refused from here on.
        if let Some(tls) = first_tls {
            self.watch(&tls);
            self.reception.tls.store(Some(tls));
        }
        self.reception.limits.set(config);
        self.pools.set_range(&config.relay.ports);
        let before = self.listeners();
        let carried_out = lock(&self.listening).carry_out(plan, self.workers.len(), &self.reception, &self.overflow);
        let CarriedOut { changes, leaving } = carried_out.map_err(|error| format!("can't accept: {error}"))?;
        *current = Current { config: config.clone(), http: http.to_vec() };
        self.deliver(settings, shell_settings(config), changes).await?;
        drop(current);
        let now = self.listeners();
        for (transport, address) in now.iter().filter(|listener| !before.contains(listener)) {
            tracing::info!(%address, transport = transport.name(), "listening");
        }
        for (transport, address) in before.iter().filter(|listener| !now.contains(listener)) {
            tracing::info!(%address, transport = transport.name(), "no new clients here any more");
        }
        for (id, users) in leaving {
            self.close_when_empty(id, users);
        }
        Ok(())
    }

    /// One message to each worker, and its answer.
    async fn deliver(
        &self,
        settings: Arc<Settings>,
        shell: ShellSettings,
        changes: Vec<Vec<ListenerChange>>,
    ) -> Result<(), String> {
        let mut answers = Vec::with_capacity(changes.len());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for ((number, worker), listeners) in self.workers.iter().enumerate().zip(changes) {
            let (done, answer) = oneshot::channel();
            let mut message = Message::Reconfigure { settings: Arc::clone(&settings), shell, listeners, done };
            while let Err(back) = worker.mailbox.send(message) {
                if tokio::time::Instant::now() > deadline {
                    return Err(format!(
                        "the inbox of worker {number} stays full; restart the server if it does not recover"
                    ));
                }
                message = back;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            answers.push((number, answer));
        }
        for (number, answer) in answers {
            match tokio::time::timeout_at(deadline + PATIENCE, answer).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => return Err(format!("worker {number} can't wait for a new listener: {error}")),
                Ok(Err(_)) | Err(_) => {
                    return Err(format!("worker {number} does not answer; restart the server if it does not recover"));
                }
            }
        }
        Ok(())
    }

    fn close_when_empty(self: &Arc<Self>, id: ListenerId, users: Arc<Users>) {
        let running = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let mut look = std::pin::pin!(users.look.notified());
                // Whoever goes between this look and the next wakes us.
                look.as_mut().enable();
                let Some(running) = running.upgrade() else { return };
                if !lock(&running.listening).is_leaving(id) {
                    return;
                }
                if users.count() == 0 {
                    return running.close_listener(id).await;
                }
                drop(running);
                look.await;
            }
        });
    }

    /// Closes the sockets of a listener that nobody uses any more, on every worker.
    async fn close_listener(&self, id: ListenerId) {
        let current = self.current.lock().await;
        let Some(address) = lock(&self.listening).take_empty(id) else { return };
        let nothing = Plan { added: Vec::new(), retaken: Vec::new(), returning: Vec::new(), removed: Vec::new() };
        let mut addresses = lock(&self.listening).addresses(&nothing);
        addresses.extend(&current.http);
        let changes = self.workers.iter().map(|_| vec![ListenerChange::Close(id)]).collect();
        let result = match self.settings(&current.config, &addresses) {
            Ok(settings) => self.deliver(Arc::new(settings), shell_settings(&current.config), changes).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => tracing::info!(%address, "listener closed: its last session has ended"),
            Err(error) => tracing::warn!(%address, error, "can't close a listener that is not used any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str) -> Config {
        let text = format!("[listen]\n{listen}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north\"\n");
        Config::from_toml("c.toml", &text).unwrap()
    }

    fn reception() -> Arc<Reception> {
        Arc::new(Reception::new(None, std::iter::empty()))
    }

    /// Carries out what a configuration wants; gives the changes for the first of two workers, and who leaves.
    fn apply(listening: &mut Listening, text: &str) -> (Vec<ListenerChange>, Vec<(ListenerId, Arc<Users>)>) {
        let plan = listening.plan(&config(text), 2, &Passed::default()).unwrap();
        let CarriedOut { mut changes, leaving } = listening.carry_out(plan, 2, &reception(), &Arc::default()).unwrap();
        assert_eq!(changes[0].len(), changes[1].len(), "every worker does the same");
        (changes.remove(0), leaving)
    }

    const A: &str = "127.0.0.1:22001";
    const B: &str = "127.0.0.1:22002";

    #[tokio::test]
    async fn a_removed_udp_listener_leaves_and_may_return_and_closes_when_it_is_empty() {
        let mut listening = Listening::default();
        let both = format!("udp = [\"{A}\", \"{B}\"]\ntcp = []");
        let only_b = format!("udp = [\"{B}\"]\ntcp = []");
        let (opened, _) = apply(&mut listening, &both);
        assert!(matches!(opened[..], [ListenerChange::Open(_), ListenerChange::Open(_)]));
        let (changes, leaving) = apply(&mut listening, &only_b);
        let id = leaving[0].0;
        assert!(matches!(changes[..], [ListenerChange::Leave(leaves)] if leaves == id));
        assert_eq!(listening.listeners(), [(Transport::Udp, B.parse().unwrap())]);
        let nothing = listening.plan(&config(&only_b), 2, &Passed::default()).unwrap();
        assert!(listening.addresses(&nothing).contains(&A.parse().unwrap()), "it is ours as long as it is open");
        assert!(apply(&mut listening, &only_b).0.is_empty(), "it leaves once");
        let (changes, _) = apply(&mut listening, &both);
        assert!(matches!(changes[..], [ListenerChange::Return(returns)] if returns == id));
        assert_eq!(listening.take_empty(id), None, "it is wanted again");
        apply(&mut listening, &only_b);
        assert_eq!(listening.take_empty(id), Some(A.parse().unwrap()));
    }

    #[tokio::test]
    async fn what_can_not_be_bound_leaves_everything_as_it_was() {
        let mut listening = Listening::default();
        apply(&mut listening, "udp = []\ntcp = [\"127.0.0.1:22003\"]");
        let taken = TcpListener::bind("127.0.0.1:22004").unwrap();
        for (text, why) in [
            ("udp = [\"127.0.0.1:22005\"]\ntcp = [\"127.0.0.1:22004\"]", "another process has it"),
            ("udp = []\ntcp = [\"0.0.0.0:22003\"]", "listen.tcp 127.0.0.1:22003"),
        ] {
            let Err(error) = listening.plan(&config(text), 2, &Passed::default()) else { panic!("{text}") };
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(listening.listeners(), [(Transport::Tcp, "127.0.0.1:22003".parse().unwrap())]);
        }
        std::net::UdpSocket::bind("127.0.0.1:22005").expect("what was bound for nothing is free again");
        drop(taken);
    }

    #[tokio::test]
    async fn ports_that_the_kernel_chose_stay() {
        let mut listening = Listening::default();
        let text = "udp = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\ntcp = [\"127.0.0.1:0\"]";
        apply(&mut listening, text);
        let before = listening.listeners();
        assert_eq!(before.len(), 3);
        assert!(apply(&mut listening, text).0.is_empty());
        assert_eq!(listening.listeners(), before);
        let (changes, leaving) = apply(&mut listening, "udp = [\"127.0.0.1:0\"]\ntcp = []");
        assert_eq!((changes.len(), leaving.len(), listening.listeners().len()), (1, 1, 1));
    }
}
