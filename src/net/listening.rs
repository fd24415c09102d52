//! The listeners of a running server, and how a reload changes them (`net::reconfigure` drives it).
//!
//! A reload binds everything first: what can't be bound leaves the old state whole. A stream listener that goes stops
//! accepting; a UDP listener that goes is *leaving*: it serves the sessions that came through it and no others, and
//! its sockets close together when the last session has ended, because the kernel steers by their number.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::accept::Acceptor;
use super::front::StreamKind;
use super::listen::{self, BindError, UdpSockets};
use super::listener_plan::{Freed, Likeness, OpenSockets, compare, overlap};
use super::overflow::{Overflow, SocketKind, Watched};
use super::upgrade_messages::{ListenerNote, SharedNote};
use super::worker::{AdoptedListener, Listener, ListenerChange, ListenerId, Users};
use crate::address::Transport;
use crate::config::checked::{Config, Listen, SendProxy, SharedPort};
use crate::protocol::tenancy::{Tenancies, Tenancy};

/// One socket that the configuration asks for, one per worker for UDP.
#[derive(Clone, PartialEq, Eq, Debug)]
struct WantedListener {
    address: SocketAddr,
    /// What its streams may be; `None` for UDP.
    takes: Option<StreamKind>,
    /// Only these connect, with a PROXY header first; empty for any client.
    proxies: Arc<[IpNet]>,
    /// It need not be: without IPv6 in the kernel it is left out.
    is_default: bool,
    /// Its realm and its tenant.
    tenancy: Arc<Tenancy>,
}

impl WantedListener {
    const fn transport(&self) -> Transport {
        match &self.takes {
            None => Transport::Udp,
            Some(StreamKind::Plain) => Transport::Tcp,
            Some(StreamKind::Tls | StreamKind::Both | StreamKind::Shared(_)) => Transport::Tls,
        }
    }

    /// Whether connections are taken in another way.
    fn differs(&self, other: &Self) -> bool {
        (&self.takes, &self.proxies) != (&other.takes, &other.proxies)
    }

    const fn key(&self) -> &'static str {
        match &self.takes {
            None => "listen.udp",
            Some(StreamKind::Plain) => "listen.tcp",
            Some(StreamKind::Tls) => "listen.tls",
            Some(StreamKind::Both) => "listen.auto",
            Some(StreamKind::Shared(_)) => "listen.shared",
        }
    }

    /// What carries the messages of its clients.
    const fn transports(&self) -> &'static [Transport] {
        match &self.takes {
            None => &[Transport::Udp],
            Some(StreamKind::Plain) => &[Transport::Tcp],
            Some(StreamKind::Both) => &[Transport::Tcp, Transport::Tls],
            Some(StreamKind::Tls | StreamKind::Shared(_)) => &[Transport::Tls],
        }
    }

    /// Whether both could not be bound at once.
    fn overlaps(&self, bound: SocketAddr, is_udp: bool) -> bool {
        self.takes.is_none() == is_udp && overlap(self.address, bound)
    }
}

/// What a listener takes, as a number that another process knows.
const fn code_of(takes: Option<&StreamKind>) -> u8 {
    match takes {
        None => 0,
        Some(StreamKind::Plain) => 1,
        Some(StreamKind::Tls) => 2,
        Some(StreamKind::Both) => 3,
        Some(StreamKind::Shared(_)) => 4,
    }
}

/// Back again; `None` for a number of a later release, or for what is missing beside it.
fn kind_of(note: &ListenerNote) -> Option<Option<StreamKind>> {
    Some(match note.takes {
        0 => None,
        1 => Some(StreamKind::Plain),
        2 => Some(StreamKind::Tls),
        3 => Some(StreamKind::Both),
        4 => {
            let of = note.shared.as_ref()?;
            let (_, send_proxy) = SendProxy::WORDS.into_iter().find(|(word, _)| *word == of.send_proxy)?;
            let names = of.names.iter().map(|name| name.as_str().into()).collect();
            Some(StreamKind::Shared(Arc::new(SharedPort { backend: of.backend, names, send_proxy })))
        }
        _ => return None,
    })
}

/// What another process is told of a port that a web server has too.
fn shared_note(takes: Option<&StreamKind>) -> Option<SharedNote> {
    let Some(StreamKind::Shared(port)) = takes else { return None };
    let names = port.names.iter().map(ToString::to_string).collect();
    Some(SharedNote { backend: port.backend, names, send_proxy: port.send_proxy.name().to_owned() })
}

/// The sockets of a configuration; what takes both transports stands there twice and is bound once.
fn wanted(config: &Config) -> Vec<WantedListener> {
    let socket = |listen: &Listen| {
        let takes = match (listen.is_auto, listen.transport) {
            _ if listen.shared.is_some() => listen.shared.clone().map(StreamKind::Shared),
            (true, Transport::Tcp) => return None,
            (true, Transport::Tls | Transport::Udp) => Some(StreamKind::Both),
            (false, Transport::Udp) => None,
            (false, Transport::Tcp) => Some(StreamKind::Plain),
            (false, Transport::Tls) => Some(StreamKind::Tls),
        };
        Some(WantedListener {
            address: listen.address,
            takes,
            proxies: Arc::clone(&listen.proxy_from),
            is_default: listen.is_default,
            tenancy: Arc::clone(&listen.tenancy),
        })
    };
    config.listen.iter().filter_map(socket).collect()
}

/// Whether a listener of this configuration speaks TLS, `http.public` included.
pub(super) fn needs_tls(config: &Config) -> bool {
    config.http.has_https() || config.listen.iter().any(|listen| listen.transport == Transport::Tls)
}

/// The addresses of our listeners, as they are bound, and whose those are.
#[derive(Clone, Default)]
pub(super) struct OwnAddresses {
    pub(super) all: Vec<SocketAddr>,
    of: Vec<(SocketAddr, &'static [Transport], Arc<Tenancy>)>,
}

impl OwnAddresses {
    fn add(&mut self, address: SocketAddr, wanted: &WantedListener) {
        self.all.push(address);
        if !wanted.tenancy.is_empty() {
            self.of.push((address, wanted.transports(), Arc::clone(&wanted.tenancy)));
        }
    }

    /// With those of HTTP listeners.
    pub(super) fn with(mut self, http: &[SocketAddr]) -> Self {
        self.all.extend(http);
        self
    }

    /// By which of them a client comes to which realm and tenant.
    pub(super) fn tenancies(&self) -> Tenancies {
        let each = |(address, transports, tenancy): &(SocketAddr, &'static [Transport], Arc<Tenancy>)| {
            let (ip, port, tenancy) = (address.ip(), address.port(), Arc::clone(tenancy));
            transports.iter().map(move |transport| (*transport, ip, port, (*tenancy).clone()))
        };
        Tenancies::new(self.of.iter().flat_map(each))
    }
}

pub(super) struct Open {
    id: ListenerId,
    wanted: WantedListener,
    /// As it is bound: port 0 has become a number.
    address: SocketAddr,
    kind: ListenerKind,
}

enum ListenerKind {
    Udp { users: Arc<Users>, is_leaving: bool },
    Stream { listener: Arc<Watched<TcpListener>>, accepting: Accepting },
}

/// A task that accepts until this is dropped; what it has accepted by then is not lost.
struct Accepting {
    _stop: oneshot::Sender<()>,
    task: AbortHandle,
}

impl Accepting {
    fn start(acceptor: &Arc<Acceptor>, listener: &Arc<Watched<TcpListener>>, wanted: &WantedListener) -> Self {
        let (stop, stopped) = oneshot::channel();
        let takes = wanted.takes.clone().unwrap_or(StreamKind::Plain);
        let accepting = Arc::clone(acceptor).accept(Arc::clone(listener), takes, Arc::clone(&wanted.proxies), stopped);
        Self { _stop: stop, task: tokio::spawn(accepting).abort_handle() }
    }
}

/// Sockets that are bound, and what can fail later is done; they serve no client yet.
pub(super) enum Bound {
    Udp(Vec<UdpSockets>),
    Stream(TcpListener),
}

/// What a configuration changes; making it binds, dropping it changes nothing.
pub(super) struct Plan {
    added: Vec<(WantedListener, SocketAddr, Bound)>,
    /// What is told apart in another way from now on (plain, TLS or both, and whether proxies speak first), or is of another
    /// realm or tenant.
    retaken: Vec<(ListenerId, WantedListener)>,
    returning: Vec<ListenerId>,
    removed: Vec<ListenerId>,
}

impl Plan {
    /// One that opens UDP sockets that are bound already, one for each worker.
    #[cfg(test)]
    pub(super) fn adding(address: SocketAddr, sockets: Vec<UdpSockets>) -> Self {
        let wanted = WantedListener {
            address,
            takes: None,
            proxies: Arc::default(),
            is_default: false,
            tenancy: Arc::default(),
        };
        let added = vec![(wanted, address, Bound::Udp(sockets))];
        Self { added, ..Self::nothing() }
    }

    /// One that changes nothing.
    pub(super) const fn nothing() -> Self {
        Self { added: Vec::new(), retaken: Vec::new(), returning: Vec::new(), removed: Vec::new() }
    }
}

/// What is left to do when a plan was carried out.
pub(super) struct CarriedOut {
    /// For each worker.
    pub(super) changes: Vec<Vec<ListenerChange>>,
    /// UDP listeners that leave from now on.
    pub(super) leaving: Vec<(ListenerId, Arc<Users>)>,
}

/// Every open listener.
#[derive(Default)]
pub(super) struct Listening {
    open: Vec<Open>,
    next: u32,
}

impl Listening {
    /// Compares what is open with what is wanted, and binds what is new.
    pub(super) fn plan(
        &self,
        config: &Config,
        workers: usize,
        sockets: &mut OpenSockets<'_>,
    ) -> Result<Plan, BindError> {
        let compared = compare(&self.open, wanted(config), Open::likeness);
        let mut plan = Plan::nothing();
        for (place, wanted) in compared.staying {
            let Some(open) = self.open.get(place) else { continue };
            if open.is_leaving() {
                plan.returning.push(open.id);
            }
            if open.wanted.differs(&wanted) || open.wanted.tenancy != wanted.tenancy {
                plan.retaken.push((open.id, wanted));
            }
        }
        let going = compared.going.iter().filter_map(|place| self.open.get(*place));
        plan.removed = going.filter(|open| !open.is_leaving()).map(|open| open.id).collect();
        for wanted in compared.missing {
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
            match bind(wanted.clone(), workers, sockets) {
                Ok(added) => plan.added.push(added),
                Err(error) if wanted.is_default && wanted.address.is_ipv6() && listen::lacks_family(&error.cause) => {
                    tracing::info!(address = %wanted.address, "{}: left out, because this kernel has no IPv6", wanted.key());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(plan)
    }

    /// The sockets of TCP listeners that this configuration has no more.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub(super) fn freed(&self, config: &Config) -> io::Result<Vec<Freed>> {
        let going = compare(&self.open, wanted(config), Open::likeness).going;
        let going = going.into_iter().filter_map(|place| self.open.get(place)).filter_map(|open| match &open.kind {
            ListenerKind::Stream { listener, .. } => Some((open, listener)),
            ListenerKind::Udp { .. } => None,
        });
        let freed = going.map(|(open, listener)| {
            let socket = Some(listener.as_fd().try_clone_to_owned()?);
            Ok(Freed { key: open.wanted.key(), configured: open.wanted.address, socket })
        });
        freed.collect()
    }

    /// The listeners as another process is told of them.
    pub(super) fn notes(&self) -> Vec<ListenerNote> {
        let note = |open: &Open| ListenerNote {
            id: open.id.0,
            configured: open.wanted.address,
            bound: open.address,
            takes: code_of(open.wanted.takes.as_ref()),
            is_leaving: open.is_leaving(),
            proxy_from: (!open.wanted.proxies.is_empty())
                .then(|| open.wanted.proxies.iter().map(ToString::to_string).collect()),
            shared: shared_note(open.wanted.takes.as_ref()),
        };
        self.open.iter().map(note).collect()
    }

    /// The sockets of stream listeners, by the number of their listener.
    pub(super) fn stream_sockets(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        let sockets = self.open.iter().filter_map(|open| match &open.kind {
            ListenerKind::Stream { listener, .. } => Some((open.id.0, listener)),
            ListenerKind::Udp { .. } => None,
        });
        sockets.map(|(id, listener)| Ok((id, listener.as_fd().try_clone_to_owned()?))).collect()
    }

    /// What another process had open; the sockets of UDP listeners come to the workers from its workers.
    ///
    /// # Errors
    /// When a socket is missing, or is not what was told of it.
    pub(super) fn adopted(
        notes: &[ListenerNote],
        mut sockets: Vec<(u32, OwnedFd)>,
        acceptor: &Arc<Acceptor>,
        overflow: &Arc<Overflow>,
    ) -> Result<(Self, Vec<AdoptedListener>), String> {
        let (mut listening, mut of_workers) = (Self::default(), Vec::new());
        for note in notes {
            let id = ListenerId(note.id);
            let takes = kind_of(note).ok_or_else(|| format!("a listener of the unknown kind {}", note.takes))?;
            let proxies = note.proxy_from.iter().flatten().map(|prefix| prefix.parse::<IpNet>());
            let proxies: Result<Arc<[IpNet]>, _> = proxies.collect();
            let proxies = proxies.map_err(|error| format!("the proxies of {}: {error}", note.bound))?;
            // The configuration says whose it is from now on, if it has it still.
            let wanted =
                WantedListener { address: note.configured, takes, proxies, is_default: false, tenancy: Arc::default() };
            let kind = if wanted.takes.is_some() {
                let at = sockets.iter().position(|(of, _)| *of == note.id);
                let (_, socket) =
                    sockets.swap_remove(at.ok_or_else(|| format!("the socket of {} is missing", note.bound))?);
                let socket = std::net::TcpListener::from(socket);
                let failed = |error: io::Error| format!("the socket of {}: {error}", note.bound);
                if socket.local_addr().map_err(failed)? != note.bound {
                    return Err(format!("the socket of {} is bound elsewhere", note.bound));
                }
                let listener = TcpListener::from_std(socket).map_err(failed)?;
                let listener = Arc::new(overflow.watch(SocketKind::Stream, listener));
                let accepting = Accepting::start(acceptor, &listener, &wanted);
                ListenerKind::Stream { listener, accepting }
            } else {
                let (users, is_leaving) = (Arc::new(Users::default()), note.is_leaving);
                of_workers.push(AdoptedListener { id, address: note.bound, users: Arc::clone(&users), is_leaving });
                ListenerKind::Udp { users, is_leaving }
            };
            listening.next = listening.next.max(note.id.saturating_add(1));
            listening.open.push(Open { id, wanted, address: note.bound, kind });
        }
        Ok((listening, of_workers))
    }

    /// UDP listeners that serve their last sessions only.
    pub(super) fn leaving(&self) -> Vec<(ListenerId, Arc<Users>)> {
        let leaving = self.open.iter().filter_map(|open| match &open.kind {
            ListenerKind::Udp { users, is_leaving: true } => Some((open.id, Arc::clone(users))),
            ListenerKind::Udp { .. } | ListenerKind::Stream { .. } => None,
        });
        leaving.collect()
    }

    /// Every address that will be ours, leaving ones included: none of them may be a peer.
    pub(super) fn addresses(&self, plan: &Plan) -> OwnAddresses {
        let mut own = OwnAddresses::default();
        let stays = |open: &&Open| !plan.removed.contains(&open.id) || open.wanted.takes.is_none();
        for open in self.open.iter().filter(stays) {
            let retaken = plan.retaken.iter().find(|(id, _)| *id == open.id);
            own.add(open.address, retaken.map_or(&open.wanted, |(_, wanted)| wanted));
        }
        plan.added.iter().for_each(|(wanted, address, _)| own.add(*address, wanted));
        own
    }

    /// Takes the UDP listeners out of a plan: what each worker must open, and what is open then. Nothing of it is among
    /// the open ones until [`Listening::commit`].
    pub(super) fn opening(
        &mut self,
        plan: &mut Plan,
        workers: usize,
        overflow: &Arc<Overflow>,
    ) -> (Vec<Vec<ListenerChange>>, Vec<Open>) {
        let mut changes: Vec<Vec<ListenerChange>> = (0..workers).map(|_| Vec::new()).collect();
        let (mut opened, mut streams) = (Vec::new(), Vec::new());
        for (wanted, address, bound) in std::mem::take(&mut plan.added) {
            let sockets = match bound {
                Bound::Udp(sockets) => sockets,
                Bound::Stream(_) => {
                    streams.push((wanted, address, bound));
                    continue;
                }
            };
            let id = self.next_id();
            let users = Arc::new(Users::default());
            for (changes, UdpSockets { data, control }) in changes.iter_mut().zip(sockets) {
                let watch = |socket| overflow.watch(SocketKind::Listener, socket);
                let listener = Listener::new(id, watch(data), control.map(watch), address, Arc::clone(&users));
                changes.push(ListenerChange::Open(Box::new(listener)));
            }
            opened.push(Open { id, wanted, address, kind: ListenerKind::Udp { users, is_leaving: false } });
        }
        plan.added = streams;
        (changes, opened)
    }

    fn next_id(&mut self) -> ListenerId {
        let id = ListenerId(self.next);
        self.next += 1;
        id
    }

    /// Every address that will be ours once this listener is closed.
    pub(super) fn addresses_without(&self, id: ListenerId) -> OwnAddresses {
        let mut own = OwnAddresses::default();
        self.open.iter().filter(|open| open.id != id).for_each(|open| own.add(open.address, &open.wanted));
        own
    }

    /// Carries out what is left of a plan, which can't fail; gives what each worker must do, and the listeners that are
    /// leaving from now on.
    pub(super) fn commit(
        &mut self,
        plan: Plan,
        opened: Vec<Open>,
        workers: usize,
        acceptor: &Arc<Acceptor>,
        overflow: &Arc<Overflow>,
    ) -> CarriedOut {
        let mut changes: Vec<Vec<ListenerChange>> = (0..workers).map(|_| Vec::new()).collect();
        let mut leaving = Vec::new();
        self.open.extend(opened);
        for (wanted, address, bound) in plan.added {
            let Bound::Stream(listener) = bound else { continue };
            let id = self.next_id();
            let listener = Arc::new(overflow.watch(SocketKind::Stream, listener));
            let accepting = Accepting::start(acceptor, &listener, &wanted);
            self.open.push(Open { id, wanted, address, kind: ListenerKind::Stream { listener, accepting } });
        }
        for (id, wanted) in plan.retaken {
            let Some(open) = self.open.iter_mut().find(|open| open.id == id) else { continue };
            if let ListenerKind::Stream { listener, accepting } = &mut open.kind
                && open.wanted.differs(&wanted)
            {
                *accepting = Accepting::start(acceptor, listener, &wanted);
            }
            open.wanted = wanted;
        }
        let mut tell = |change: &dyn Fn() -> ListenerChange| changes.iter_mut().for_each(|of| of.push(change()));
        for open in &mut self.open {
            let ListenerKind::Udp { users, is_leaving } = &mut open.kind else { continue };
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
        CarriedOut { changes, leaving }
    }

    /// All of a plan at once, where no worker runs yet.
    pub(super) fn carry_out(
        &mut self,
        mut plan: Plan,
        workers: usize,
        acceptor: &Arc<Acceptor>,
        overflow: &Arc<Overflow>,
    ) -> CarriedOut {
        let (mut changes, opened) = self.opening(&mut plan, workers, overflow);
        let carried_out = self.commit(plan, opened, workers, acceptor, overflow);
        for (changes, more) in changes.iter_mut().zip(carried_out.changes) {
            changes.extend(more);
        }
        CarriedOut { changes, leaving: carried_out.leaving }
    }

    /// What new clients find: transport and address, UDP first.
    pub(super) fn listeners(&self) -> Vec<(Transport, SocketAddr)> {
        Self::listed(self.open.iter()).into_iter().map(|(transport, address, _)| (transport, address)).collect()
    }

    /// The same without those to which only proxies connect, each with its realm and its tenant.
    pub(super) fn listeners_of_clients(&self) -> Vec<(Transport, SocketAddr, Arc<Tenancy>)> {
        Self::listed(self.open.iter().filter(|open| open.wanted.proxies.is_empty()))
    }

    fn listed<'a>(all: impl Iterator<Item = &'a Open>) -> Vec<(Transport, SocketAddr, Arc<Tenancy>)> {
        let mut listeners = Vec::new();
        for open in all.filter(|open| !open.is_leaving()) {
            for transport in open.wanted.transports() {
                listeners.push((*transport, open.address, Arc::clone(&open.wanted.tenancy)));
            }
        }
        listeners.sort_by_key(|(transport, ..)| *transport);
        listeners
    }

    /// Takes a listener out if it is leaving and empty; gives its address.
    pub(super) fn take_empty(&mut self, id: ListenerId) -> Option<SocketAddr> {
        let at = self.open.iter().position(|open| {
            open.id == id && matches!(&open.kind, ListenerKind::Udp { users, is_leaving: true } if users.count() == 0)
        })?;
        Some(self.open.remove(at).address)
    }

    pub(super) fn is_leaving(&self, id: ListenerId) -> bool {
        self.open.iter().any(|open| open.id == id && open.is_leaving())
    }

    /// Nothing is accepted any more.
    pub(super) fn stop(&self) {
        for open in &self.open {
            if let ListenerKind::Stream { accepting, .. } = &open.kind {
                accepting.task.abort();
            }
        }
    }
}

impl Open {
    pub(super) const fn id(&self) -> ListenerId {
        self.id
    }

    const fn is_leaving(&self) -> bool {
        matches!(self.kind, ListenerKind::Udp { is_leaving: true, .. })
    }

    fn likeness(&self, wanted: &WantedListener) -> Likeness {
        let own = &self.wanted;
        if own.address != wanted.address || own.takes.is_some() != wanted.takes.is_some() {
            Likeness::None
        } else if own.takes != wanted.takes {
            Likeness::Socket
        } else if own.tenancy != wanted.tenancy {
            Likeness::Use
        } else {
            Likeness::Whole
        }
    }
}

fn bind(
    wanted: WantedListener,
    workers: usize,
    sockets: &mut OpenSockets<'_>,
) -> Result<(WantedListener, SocketAddr, Bound), BindError> {
    let (transport, address) = (wanted.transport().name(), wanted.address);
    let failed = |cause| BindError { transport, address, cause };
    Ok(if wanted.takes.is_none() {
        let sockets = listen::udp(wanted.address, workers, sockets.of_manager())?;
        let bound = sockets.first().map_or(Ok(wanted.address), |first| first.data.local_addr()).map_err(failed)?;
        (wanted, bound, Bound::Udp(sockets))
    } else {
        let listener = sockets.tcp(wanted.key(), wanted.address).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        // The runtime has to watch it, which can fail as binding can.
        (wanted, bound, Bound::Stream(TcpListener::from_std(listener).map_err(failed)?))
    })
}

pub(super) fn lock(listening: &Mutex<Listening>) -> MutexGuard<'_, Listening> {
    // A list of listeners is whole between calls whatever became of the caller.
    listening.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::passed::Passed;
    use super::*;
    use crate::address::FiveTuple;

    fn config(listen: &str) -> Config {
        Config::with_a_secret(&format!("[listen]\n{listen}")).unwrap()
    }

    fn acceptor() -> Arc<Acceptor> {
        Arc::new(Acceptor::new(None, std::iter::empty()))
    }

    /// Carries out what a configuration wants; gives the changes for the first of two workers, and who leaves.
    fn apply(listening: &mut Listening, text: &str) -> (Vec<ListenerChange>, Vec<(ListenerId, Arc<Users>)>) {
        let plan = listening.plan(&config(text), 2, &mut OpenSockets::passed(&Passed::default())).unwrap();
        let CarriedOut { mut changes, leaving } = listening.carry_out(plan, 2, &acceptor(), &Arc::default());
        assert_eq!(changes[0].len(), changes[1].len(), "every worker does the same");
        (changes.remove(0), leaving)
    }

    const A: &str = "127.0.0.1:22001";
    const B: &str = "127.0.0.1:22002";
    const C: &str = "127.0.0.1:22006";

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
        let nothing = listening.plan(&config(&only_b), 2, &mut OpenSockets::passed(&Passed::default())).unwrap();
        assert!(listening.addresses(&nothing).all.contains(&A.parse().unwrap()), "it is ours as long as it is open");
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
        let taken = std::net::TcpListener::bind("127.0.0.1:22004").unwrap();
        for (text, why) in [
            ("udp = [\"127.0.0.1:22005\"]\ntcp = [\"127.0.0.1:22004\"]", "another process has it"),
            ("udp = []\ntcp = [\"0.0.0.0:22003\"]", "listen.tcp 127.0.0.1:22003"),
        ] {
            let Err(error) = listening.plan(&config(text), 2, &mut OpenSockets::passed(&Passed::default())) else {
                panic!("{text}")
            };
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(listening.listeners(), [(Transport::Tcp, "127.0.0.1:22003".parse().unwrap())]);
        }
        std::net::UdpSocket::bind("127.0.0.1:22005").expect("what was bound for nothing is free again");
        drop(taken);
    }

    #[tokio::test]
    async fn a_reload_changes_whose_a_listener_is_and_keeps_its_sockets() {
        let of = |tenant: &str| format!("udp = [{{ address = \"{C}\", tenant = \"{tenant}\" }}]\ntcp = []");
        let tenant = |own: OwnAddresses| {
            let server: SocketAddr = C.parse().unwrap();
            let (client, transport) = (server.into(), Transport::Udp);
            let five_tuple = FiveTuple { client, server: server.into(), transport };
            own.tenancies().of(&five_tuple).and_then(|of| of.tenant.clone())
        };
        let mut listening = Listening::default();
        apply(&mut listening, &of("a"));
        let plan = listening.plan(&config(&of("b")), 2, &mut OpenSockets::passed(&Passed::default())).unwrap();
        assert_eq!(tenant(listening.addresses(&Plan::nothing())).as_deref(), Some("a"));
        assert_eq!(
            tenant(listening.addresses(&plan)).as_deref(),
            Some("b"),
            "from the moment on when it is carried out"
        );
        drop(plan);
        assert!(apply(&mut listening, &of("b")).0.is_empty(), "no socket is opened or closed");
        assert_eq!(tenant(listening.addresses(&Plan::nothing())).as_deref(), Some("b"));
        apply(&mut listening, "udp = []\ntcp = []");
        assert_eq!(tenant(listening.addresses(&Plan::nothing())).as_deref(), Some("b"), "as long as it is leaving");
        let (changes, _) = apply(&mut listening, &of("c"));
        assert!(matches!(changes[..], [ListenerChange::Return(_)]), "it returns, for another");
        assert_eq!(tenant(listening.addresses(&Plan::nothing())).as_deref(), Some("c"));
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
