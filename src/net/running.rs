//! The running relay as the control threads hold it: what it is made of, what it counts, how it ends.
//!
//! What is asked of its workers is in `ask`; what changes it is in `addresses` and `reconfigure`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use tokio::task::AbortHandle;

use super::accept::Acceptor;
use super::counters::NetCounters;
use super::front::{Front, FrontCounts};
use super::ledger::{Cell, Incident, Ledger, LedgerPhase};
use super::listening::{self, Listening};
use super::overflow::{Overflow, SocketKind};
use super::pass_on::BackendState;
use super::passed::Passed;
use super::ports::PortCounts;
use super::relay_addresses::{RelayAddress, RelayAddresses};
use super::shared::Process;
use super::worker::{Mailbox, Message, NotSent};
use crate::address::Transport;
use crate::clock;
use crate::config::checked::Config;
use crate::protocol::authenticated::AuthenticatedCounts;
use crate::protocol::counters::Counters;
use crate::protocol::failures::SilencedNetwork;
use crate::protocol::network::Network;
use crate::protocol::overrides::Overrides;
use crate::protocol::pool::PoolState;
use crate::protocol::revocation::Revocations;
use crate::protocol::settings::Settings;
use crate::protocol::tenancy::Tenancy;
use crate::time::Ticks;
use crate::tls::{Handshakes, Tls, watch};

/// How often is looked whether the workers' loops have turned.
const SIGN_OF_LIFE_POLL: Duration = Duration::from_millis(2);

/// What holds now: the one place where the configuration of a running server is kept.
pub(super) struct Current {
    pub(super) config: Arc<Config>,
    /// Our HTTP listeners, which are never peers either.
    pub(super) http: Vec<SocketAddr>,
}

/// A worker, as the control threads see it.
pub(super) struct Handle {
    pub(super) mailbox: Mailbox,
    pub(super) counters: Arc<Counters>,
    pub(super) net: Arc<NetCounters>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    pub(super) fn take_thread(&self) -> Option<JoinHandle<()>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The running relay.
pub struct Running {
    pub(super) workers: Vec<Handle>,
    pub(super) process: Arc<Process>,
    pub(super) addresses: Arc<RelayAddresses>,
    /// What the workers have been given last.
    pub(super) delivered: Mutex<Option<Arc<Settings>>>,
    pub(super) passed: Passed,
    pub(super) listening: Mutex<Listening>,
    /// Held while something changes.
    pub(super) current: Arc<tokio::sync::Mutex<Current>>,
    pub(super) watching: Mutex<Vec<AbortHandle>>,
    pub(super) acceptor: Arc<Acceptor>,
    pub(super) http_front: Arc<Front>,
    pub(super) overflow: Arc<Overflow>,
    /// The key of nonces, for a process that takes over.
    pub(super) nonce_key: Box<[u8]>,
    /// The workers stand still: another process reads the sockets or is about to, and may give them back.
    pub(super) is_handed_over: AtomicBool,
    /// Where the workers write what the next process needs if this one is killed.
    pub(super) ledger: Option<Arc<Ledger>>,
}

impl Running {
    /// Writes into the ledger what the workers share.
    ///
    /// # Errors
    /// Of the system.
    pub(crate) fn publish_shared(&self, ledger: &Ledger) -> io::Result<()> {
        let shared = self.process.export_for_ledger();
        let bytes = minicbor::to_vec(&shared).map_err(|error| io::Error::other(error.to_string()))?;
        ledger.publish(Cell::Shared, bytes, Vec::new())
    }

    /// A process that goes on for this one counts from here, if there may be one.
    pub(crate) fn remember_metrics(&self, text: &str) {
        if let Some(ledger) = &self.ledger {
            // Once a second that is tried again.
            let _ = ledger.publish(Cell::Metrics, text.as_bytes().to_vec(), Vec::new());
        }
    }

    /// Whether another process goes on if this one is killed from now on.
    pub(crate) fn set_recoverable(&self, is_recoverable: bool) {
        if let Some(ledger) = &self.ledger {
            ledger.set_phase(if is_recoverable { LedgerPhase::Serving } else { LedgerPhase::Leaving });
        }
    }

    /// A client's messages were in hand when processes died; a second time it is not heard for a minute.
    pub(crate) fn suspect(&self, incidents: &[Incident], now: Ticks) {
        for incident in incidents {
            self.process.suspects.note(incident.five_tuple, now);
        }
    }

    /// Tells the workers who of the pool takes clients; the load in it is not looked at.
    pub fn set_alternates(&self, state: PoolState) {
        self.process.set_alternates(state);
    }

    /// Tells the workers how full this server is, in thousandths.
    pub fn set_load(&self, load: u16) {
        self.process.set_load(load);
    }

    /// The configuration that holds.
    pub async fn config(&self) -> Arc<Config> {
        Arc::clone(&self.current.lock().await.config)
    }

    /// Listeners for new clients as they are bound: port 0 has become a number.
    #[must_use]
    pub fn listeners(&self) -> Vec<(Transport, SocketAddr)> {
        listening::lock(&self.listening).listeners()
    }

    /// The listeners that clients connect to themselves: transport and address. Behind proxies they are told the proxies'.
    #[must_use]
    pub fn listeners_of_clients(&self) -> Vec<(Transport, SocketAddr, Arc<Tenancy>)> {
        listening::lock(&self.listening).listeners_of_clients()
    }

    /// Sockets that were open before us.
    #[must_use]
    pub const fn passed(&self) -> &Passed {
        &self.passed
    }

    /// The addresses that new allocations are relayed from.
    pub fn relay_addresses(&self) -> impl Iterator<Item = RelayAddress> {
        self.addresses.serving().into_iter()
    }

    /// The counters of every worker.
    pub fn counters(&self) -> impl Iterator<Item = (&Counters, &NetCounters)> {
        self.workers.iter().map(|worker| (&*worker.counters, &*worker.net))
    }

    /// What each worker's thread took of a processor, in nanoseconds, and its inbox: messages that wait, and those
    /// that found it full.
    pub fn workers(&self) -> impl Iterator<Item = (Option<u64>, u64, u64)> {
        self.workers.iter().map(|worker| {
            let taken = worker.net.messages.get();
            let (left, refused) = worker.mailbox.counts();
            // A message may be taken before it is counted.
            (worker.net.processor.nanoseconds(), left.saturating_sub(taken), refused)
        })
    }

    /// What the ports of each relay address do now, and how many of those in use are held for a RESERVATION-TOKEN.
    pub fn relay_ports(&self) -> impl Iterator<Item = (RelayAddress, PortCounts, usize)> {
        self.addresses.port_counts(clock::now().ticks).into_iter()
    }

    /// What the ports of each tenant in `relay.ports_by_tenant` do now at each relay address that serves, and, without a
    /// tenant, those that are in no part; nothing without that key.
    #[must_use]
    pub fn tenant_ports(&self) -> Vec<(Option<Box<str>>, RelayAddress, PortCounts)> {
        self.addresses.tenant_counts(clock::now().ticks)
    }

    /// Packets that the kernel dropped at all sockets of a kind that ever were.
    #[must_use]
    pub fn kernel_drops(&self, kind: SocketKind) -> u64 {
        self.overflow.dropped(kind)
    }

    /// TCP connections that could not be accepted or handed to a worker.
    #[must_use]
    pub fn streams_refused(&self) -> u64 {
        self.acceptor.refused()
    }

    /// TCP and TLS connections that were established during an upgrade and could not be passed to the new process.
    #[must_use]
    pub fn streams_not_passed(&self) -> u64 {
        self.acceptor.not_passed()
    }

    /// How many allocations are counted: on the whole, distinct users, distinct clients.
    #[must_use]
    pub fn usage(&self) -> (u32, usize, usize) {
        self.process.usage()
    }

    /// How many ports are held for a RESERVATION-TOKEN, and how many scopes of quotas were forgotten before their time.
    #[must_use]
    pub fn reservations(&self) -> (usize, u64) {
        self.process.reservations()
    }

    /// The client prefix with the most allocations, how many, and how many there are on the whole.
    #[must_use]
    pub fn busiest_client(&self) -> Option<(IpAddr, u32, u32)> {
        self.process.busiest_client()
    }

    /// How many answers were withheld from those who prove nothing, and the network of the last one.
    #[must_use]
    pub fn withheld_replies(&self) -> (u64, String) {
        self.process.withheld_replies()
    }

    /// How many answers to wrong keys and user names stayed away, and the network of the last one.
    #[must_use]
    pub fn unanswered_failures(&self) -> (u64, String) {
        self.process.unanswered_failures()
    }

    /// The networks whose wrong keys and user names are not answered.
    #[must_use]
    pub fn silenced(&self) -> Vec<SilencedNetwork> {
        self.process.silenced(clock::now().ticks)
    }

    /// How many they are.
    #[must_use]
    pub fn silenced_count(&self) -> usize {
        self.process.silenced_count(clock::now().ticks)
    }

    /// Forgets the failures of the networks that a prefix meets; which had any.
    #[must_use]
    pub fn forgive(&self, prefix: &IpNet) -> Vec<Network> {
        self.process.forgive(clock::now().ticks, prefix)
    }

    /// What handshakes use; nothing if no listener takes TLS.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.acceptor.tls.load_full()
    }

    /// Handshakes under way on the listeners of clients.
    #[must_use]
    pub fn handshakes_under_way(&self) -> u64 {
        self.acceptor.front.handshakes_under_way()
    }

    /// Client streams without an allocation, those that no worker has yet included; and how many were closed for others.
    #[must_use]
    pub fn streams_half_open(&self) -> (u64, u64) {
        (self.acceptor.half_open.count(), self.acceptor.half_open.gave_way())
    }

    /// Follows the certificate files.
    pub(super) fn watch(&self, tls: &Tls) {
        let watching = tokio::spawn(watch::watch(Arc::clone(&tls.certificates)));
        self.watching.lock().unwrap_or_else(PoisonError::into_inner).push(watching.abort_handle());
    }

    /// What became of handshakes.
    #[must_use]
    pub fn handshakes(&self) -> &Handshakes {
        &self.acceptor.front.counts.handshakes
    }

    /// The stages that connections to our HTTP listeners go through.
    #[must_use]
    pub(crate) const fn http_front(&self) -> &Arc<Front> {
        &self.http_front
    }

    /// Connections to our HTTP listeners that were closed before they were anybody's, by reason.
    #[must_use]
    pub fn http_closed(&self) -> [(&'static str, u64); 3] {
        let FrontCounts { proxied, refused, .. } = &self.http_front.counts;
        [("proxy_source", &proxied.source), ("proxy_header", &proxied.header), ("not_accepted", refused)]
            .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    /// What became of handshakes on our HTTP listeners.
    #[must_use]
    pub fn http_handshakes(&self) -> &Handshakes {
        &self.http_front.counts.handshakes
    }

    /// Connections on a port for TLS and plain streams that said nothing in time.
    #[must_use]
    pub fn streams_silent(&self) -> u64 {
        self.acceptor.front.counts.silent.load(Ordering::Relaxed)
    }

    /// Connections to listeners for proxies that were closed: those of other sources, and those without a valid PROXY
    /// header in time.
    #[must_use]
    pub fn streams_not_of_proxies(&self) -> [u64; 2] {
        let proxied = &self.acceptor.front.counts.proxied;
        [&proxied.source, &proxied.header].map(|count| count.load(Ordering::Relaxed))
    }

    /// What became of connections to shared ports, in the order of their stages.
    #[must_use]
    pub fn shared_counts(&self) -> [(&'static str, u64); 7] {
        self.acceptor.pass_on.counts.results()
    }

    /// Connections that are passed on to web servers: how many are open, those that ended by reason, and the bytes to web
    /// servers and to their clients.
    #[must_use]
    pub fn passed_on(&self) -> (u64, [(&'static str, u64); 5], [u64; 2]) {
        let pass_on = &self.acceptor.pass_on;
        (pass_on.open(), pass_on.ended(), pass_on.bytes())
    }

    /// The web servers behind shared ports.
    #[must_use]
    pub fn backends(&self) -> Vec<(SocketAddr, BackendState)> {
        self.acceptor.pass_on.backend_states()
    }

    /// The numbers of the workers whose loops don't turn in time: they are stuck.
    ///
    /// No message is sent for it: whatever fills a queue of theirs can't make a healthy worker look stuck.
    pub async fn silent_workers(&self, within: Duration) -> Vec<usize> {
        if self.is_handed_over() {
            // They stand still, as they should: the other process answers for them.
            return Vec::new();
        }
        let deadline = tokio::time::Instant::now() + within;
        let turns = |worker: &Handle| worker.net.loops.get();
        let mut silent: Vec<_> = self.workers.iter().map(turns).enumerate().collect();
        // An idle worker turns when it is woken.
        self.workers.iter().for_each(|worker| worker.mailbox.wake());
        loop {
            silent.retain(|(number, before)| turns(&self.workers[*number]) == *before);
            if silent.is_empty() || tokio::time::Instant::now() >= deadline {
                if self.is_handed_over() {
                    return Vec::new();
                }
                return silent.into_iter().map(|(number, _)| number).collect();
            }
            tokio::time::sleep(SIGN_OF_LIFE_POLL).await;
        }
    }

    /// Who proved to hold a credential, and what came of it.
    #[must_use]
    pub fn authenticated(&self) -> AuthenticatedCounts {
        self.process.authenticated()
    }

    /// What is revoked. After a change, end the live sessions that it concerns with [`Running::close`].
    pub fn revocations(&self) -> MutexGuard<'_, Revocations> {
        self.process.revocations()
    }

    /// Looks at the limits that were set at run time, or changes them; admissions wait meanwhile, so it must be short. After a
    /// change, let the live sessions that it concerns follow with [`Running::meter_anew`].
    pub fn with_overrides<T>(&self, see: impl FnOnce(&mut Overrides) -> T) -> T {
        self.process.with_overrides(see)
    }

    /// Whether another process has the sessions, and may give them back: this one can neither tell nor change anything about
    /// them meanwhile.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.is_handed_over.load(Ordering::Relaxed)
    }

    /// Ends every allocation, writes every record and waits for the threads.
    pub fn stop(&self) {
        listening::lock(&self.listening).stop();
        for task in &*self.watching.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
        for worker in &self.workers {
            // Another caller has stopped it, or is about to.
            let Some(thread) = worker.take_thread() else { continue };
            let mut message = Message::Stop;
            while let Err(NotSent::Full(back)) = worker.mailbox.send(message) {
                message = back;
                std::thread::sleep(Duration::from_millis(1));
            }
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
