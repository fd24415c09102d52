//! What spans the workers: quota counts, and whose relayed ports there are right now.
//!
//! Admission takes a lock, once per allocation. The data lanes read one word of a table, without.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use ipnet::IpNet;
use minicbor::{Decode, Encode};

use super::ports::RestingPort;
use super::relay_addresses::RelayAddresses;
use super::suspects::Suspects;
use crate::address::{FiveTuple, PeerAddress, Via};
use crate::protocol::authenticated::{AuthenticatedClient, AuthenticatedCounts, AuthenticatedCountsState};
use crate::protocol::border::Shared;
use crate::protocol::failures::{FailureRate, Failures, SilencedNetwork};
use crate::protocol::ids::{SessionId, WorkerId};
use crate::protocol::meter::Meters;
use crate::protocol::network::Network;
use crate::protocol::overrides::{OverrideState, Overrides};
use crate::protocol::pool::PoolState;
use crate::protocol::quota::{Admitted, Counted, Purpose, QuotaClaim, Quotas};
use crate::protocol::quota_state::{QuotasChanges, QuotasImportError, QuotasState};
use crate::protocol::reject::RejectReason;
use crate::protocol::reply_budget::{ReplyBudget, ReplyRate};
use crate::protocol::revocation::{RevocationState, Revocations, SessionSubject};
use crate::protocol::settings::Limits;
use crate::state::{Features, Kind, State};
use crate::time::{Now, Ticks, UnixSeconds};
use crate::wire::attribute::ReservationToken;
use crate::wire::message::TransactionId;

/// What the workers of a process share, as plain values that another process can take over.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub struct SharedState {
    /// Who has how many allocations, and what they used.
    #[n(0)]
    pub quotas: QuotasState,
    /// Who is shut out.
    #[n(1)]
    pub revocations: Vec<RevocationState>,
    /// What became of those who proved to hold a credential.
    #[n(2)]
    pub authenticated: AuthenticatedCountsState,
    /// The ports at rest, by advertised address.
    #[n(3)]
    pub resting_ports: Vec<(IpAddr, Vec<RestingPort>)>,
    /// Limits that were set at run time, if any are. A release that does not know them goes on without.
    #[n(4)]
    pub overrides: Option<Vec<OverrideState>>,
}

impl State for SharedState {
    const KIND: Kind = Kind::Process;

    fn add_features(&self, _: &mut Features) {}

    fn keep_for(&mut self, format: u32) {
        if format < 2 {
            self.overrides = None;
        }
    }
}

/// [`SharedState`] without what was exported early and has not changed.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct SharedChanges {
    /// Who has how many allocations, and what they used.
    #[n(0)]
    pub quotas: QuotasChanges,
    /// Who is shut out, if that has changed.
    #[n(1)]
    pub revocations: Option<Vec<RevocationState>>,
    /// What became of those who proved to hold a credential.
    #[n(2)]
    pub authenticated: AuthenticatedCountsState,
    /// The ports at rest, by advertised address.
    #[n(3)]
    pub resting_ports: Vec<(IpAddr, Vec<RestingPort>)>,
    /// Limits that were set at run time, if they have changed.
    #[n(4)]
    pub overrides: Option<Vec<OverrideState>>,
}

impl State for SharedChanges {
    const KIND: Kind = Kind::ProcessChanges;

    fn add_features(&self, _: &mut Features) {}

    fn keep_for(&mut self, format: u32) {
        if format < 2 {
            self.overrides = None;
        }
    }
}

/// Scopes of quotas that are exported early while their lock is held once, about 0.1 ms: admissions wait for it.
const SCOPES_AT_ONCE: usize = 256;

/// Panics of all workers within [`PANICS_WITHIN`] milliseconds that are too many to go on: something is broken for good.
const PANICS_MAX: usize = 3;
const PANICS_WITHIN: u64 = 60_000;

/// The one instance that all workers of a process share.
pub struct Process {
    addresses: Arc<RelayAddresses>,
    quotas: Mutex<Quotas>,
    authenticated: Mutex<AuthenticatedCounts>,
    revocations: Mutex<Revocations>,
    replies: ReplyBudget,
    failures: Mutex<Failures>,
    /// Which worker has which mobile allocation; no packet asks for that.
    mobile: Mutex<HashMap<SessionId, WorkerId>>,
    /// When workers panicked, within the last minute.
    panics: Mutex<VecDeque<Ticks>>,
    /// Who of the pool takes clients, and who takes those without a place: the words of `PoolState`.
    alternates: [AtomicU64; 2],
    /// How full this server is.
    load: AtomicU16,
    /// Over whose packets.
    pub(super) suspects: Suspects,
}

impl Process {
    /// For these relay addresses.
    #[must_use]
    pub(super) fn new(addresses: Arc<RelayAddresses>) -> Self {
        Self {
            addresses,
            quotas: Mutex::default(),
            authenticated: Mutex::default(),
            revocations: Mutex::default(),
            replies: ReplyBudget::default(),
            failures: Mutex::default(),
            panics: Mutex::default(),
            alternates: Default::default(),
            load: AtomicU16::new(0),
            mobile: Mutex::default(),
            suspects: Suspects::default(),
        }
    }

    /// Without any relay address, for who drives a core without sockets.
    #[must_use]
    pub fn without_addresses() -> Self {
        Self::new(Arc::new(RelayAddresses::new(&(0..=0), [0; 32])))
    }

    fn quotas(&self) -> MutexGuard<'_, Quotas> {
        // A panic in there would be a broken assumption of the table's own; counts that are off by one are better
        // than none.
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a worker panicked; `false` if it was one too many within a minute.
    pub(super) fn may_go_on(&self, now: Ticks) -> bool {
        let mut panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        panics.retain(|at| now.since(*at) < PANICS_WITHIN);
        panics.push_back(now);
        panics.len() < PANICS_MAX
    }

    /// From now on notes what changes, and gives what there is: quotas and revocations. The rest comes with
    /// [`Process::export_changes`]. What was noted for an earlier attempt is forgotten.
    pub(super) fn export_early(&self) -> SharedState {
        let mut keys = self.quotas().begin_early_export();
        keys.sort_unstable();
        let mut quotas = QuotasState::default();
        for keys in keys.chunks(SCOPES_AT_ONCE) {
            quotas.scopes.extend(self.quotas().early_scopes(keys));
        }
        loop {
            let more = self.quotas().early_lingering(quotas.lingering.last(), SCOPES_AT_ONCE);
            let is_last = more.len() < SCOPES_AT_ONCE;
            quotas.lingering.extend(more);
            if is_last {
                break;
            }
        }
        SharedState {
            quotas,
            revocations: self.revocations().early_export(),
            authenticated: AuthenticatedCountsState::default(),
            resting_ports: Vec::new(),
            overrides: self.quotas().overrides.early_export(),
        }
    }

    /// Nothing is noted any more: the other process failed, or there is none.
    pub(super) fn end_early_export(&self) {
        self.quotas().end_early_export();
    }

    /// What [`Process::export_early`] lacks; everything without it. Nothing may be relayed or admitted meanwhile.
    pub(super) fn export_changes(&self) -> SharedChanges {
        let (quotas, overrides) = {
            let all = self.quotas();
            (all.export_changes(), all.overrides.export_changes())
        };
        SharedChanges {
            quotas,
            revocations: self.revocations().export_changes(),
            authenticated: self.authenticated().to_state(),
            resting_ports: self.addresses.resting(),
            overrides,
        }
    }

    /// Takes over what [`Process::export_early`] gave in another process, in place of all that is here, before any
    /// worker takes allocations over.
    pub(super) fn import_early(&self, state: SharedState) {
        let mut quotas = Quotas::from_early_state(state.quotas);
        quotas.overrides = Overrides::from_state(state.overrides.unwrap_or_default());
        *self.quotas() = quotas;
        *self.revocations() = Revocations::from_state(state.revocations);
    }

    /// Takes over what [`Process::export_changes`] gave; before or after the workers take their changes over.
    ///
    /// # Errors
    /// [`QuotasImportError`]; this process must not go on then.
    pub(super) fn import_changes(&self, changes: SharedChanges) -> Result<(), QuotasImportError> {
        let SharedChanges { quotas, revocations, authenticated, resting_ports, overrides } = changes;
        self.quotas().import_changes(quotas)?;
        if let Some(overrides) = overrides {
            self.quotas().overrides = Overrides::from_state(overrides);
        }
        if let Some(revocations) = revocations {
            *self.revocations() = Revocations::from_state(revocations);
        }
        let mut counts = self.authenticated.lock().unwrap_or_else(PoisonError::into_inner);
        *counts = AuthenticatedCounts::from_state(&authenticated);
        self.addresses.restore(&resting_ports);
        Ok(())
    }

    /// What a ledger is told: everything as it is now, and the counts as they were a moment ago. Scopes of quotas are looked at a few
    /// at a time, so that no admission waits long.
    pub(super) fn export_for_ledger(&self) -> SharedChanges {
        let mut keys = self.quotas().keys();
        keys.sort_unstable();
        let mut quotas = QuotasChanges { is_whole: true, ..QuotasChanges::default() };
        for keys in keys.chunks(SCOPES_AT_ONCE) {
            quotas.scopes.extend(self.quotas().scopes_of(keys));
        }
        quotas.remembered = quotas.scopes.len() as u64;
        quotas.forgotten = self.quotas().forgotten();
        SharedChanges {
            quotas,
            revocations: Some(self.revocations().to_state()),
            authenticated: self.authenticated().to_state(),
            resting_ports: self.addresses.resting(),
            overrides: self.quotas().overrides.whole(),
        }
    }

    /// Takes over what [`Process::export_for_ledger`] gave, but for what is counted: [`Process::count_in`] follows for each
    /// allocation, and [`Process::end_recount`].
    pub(super) fn import_from_ledger(&self, state: SharedChanges) {
        let SharedChanges { quotas, revocations, authenticated, resting_ports, overrides } = state;
        self.quotas().begin_recount(quotas.scopes, quotas.forgotten);
        self.quotas().overrides = Overrides::from_state(overrides.unwrap_or_default());
        *self.revocations() = Revocations::from_state(revocations.unwrap_or_default());
        let mut counts = self.authenticated.lock().unwrap_or_else(PoisonError::into_inner);
        *counts = AuthenticatedCounts::from_state(&authenticated);
        self.addresses.restore(&resting_ports);
    }

    /// Counts in an allocation that was let in before.
    pub(super) fn count_in(&self, claim: &QuotaClaim<'_>, counted: Counted) {
        self.quotas().count_in(claim, counted);
    }

    /// All that is there has been counted in.
    pub(super) fn end_recount(&self, now: Now) {
        self.quotas().end_recount(now);
    }

    /// Who proved to hold a credential, by secret and result.
    #[must_use]
    pub fn authenticated(&self) -> AuthenticatedCounts {
        self.authenticated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which worker has which mobile allocation.
    fn mobile(&self) -> MutexGuard<'_, HashMap<SessionId, WorkerId>> {
        self.mobile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the limits that were set at run time, or changes them. Admissions wait meanwhile, so it must be short.
    pub(super) fn with_overrides<T>(&self, see: impl FnOnce(&mut Overrides) -> T) -> T {
        see(&mut self.quotas().overrides)
    }

    /// Who is shut out.
    pub(super) fn revocations(&self) -> MutexGuard<'_, Revocations> {
        // The set is whole after each statement, as the counts are.
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one allocation in, or says which limit stands against it: the answer to
    /// [`Output::Admit`](crate::protocol::border::Output::Admit).
    ///
    /// # Errors
    /// The quota that is full; nothing was counted then.
    pub fn admit(
        &self,
        now: Now,
        claim: &QuotaClaim<'_>,
        limits: &Limits,
        purpose: Purpose,
    ) -> Result<Admitted, RejectReason> {
        self.quotas().admit(now, claim, limits, purpose)
    }

    /// Who of the pool takes clients; the load is told for itself.
    pub(super) fn set_alternates(&self, state: PoolState) {
        self.alternates[0].store(state.up, Ordering::Relaxed);
        self.alternates[1].store(state.spare, Ordering::Relaxed);
    }

    /// How full this server is.
    pub(super) fn set_load(&self, load: u16) {
        self.load.store(load, Ordering::Relaxed);
    }

    /// How many answers were withheld from those who prove nothing, and the network of the last one.
    #[must_use]
    pub fn withheld_replies(&self) -> (u64, String) {
        self.replies.withheld()
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        // The table is whole after each statement.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many answers to wrong keys and user names stayed away, and the network of the last one.
    #[must_use]
    pub fn unanswered_failures(&self) -> (u64, String) {
        self.failures().unanswered()
    }

    /// The networks whose wrong keys and user names are not answered.
    #[must_use]
    pub fn silenced(&self, now: Ticks) -> Vec<SilencedNetwork> {
        self.failures().silenced(now)
    }

    /// How many they are.
    #[must_use]
    pub fn silenced_count(&self, now: Ticks) -> usize {
        self.failures().silenced_count(now)
    }

    /// Forgets the failures of the networks that a prefix meets; which had any.
    pub(super) fn forgive(&self, now: Ticks, prefix: &IpNet) -> Vec<Network> {
        self.failures().forgive(now, prefix)
    }

    /// How many allocations are counted: on the whole, distinct users, distinct clients.
    #[must_use]
    pub fn usage(&self) -> (u32, usize, usize) {
        self.quotas().usage()
    }

    /// How many ports are held for a RESERVATION-TOKEN, and how many scopes were forgotten before their time.
    #[must_use]
    pub fn reservations(&self) -> (usize, u64) {
        let quotas = self.quotas();
        (quotas.reserved(), quotas.forgotten())
    }

    /// How many allocations are counted now, and the most that were since the last call.
    pub(super) fn take_peak(&self) -> (u32, u32) {
        self.quotas().take_peak()
    }

    /// The client prefix with the most allocations, how many, and how many there are on the whole.
    #[must_use]
    pub fn busiest_client(&self) -> Option<(IpAddr, u32, u32)> {
        self.quotas().busiest_client()
    }
}

impl Shared for Process {
    fn meters(&self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits, old: &Meters) -> Meters {
        self.quotas().meters(claim, counted, limits, old)
    }

    fn release_reservation(&self, now: Now, token: ReservationToken) {
        self.quotas().release_reservation(now, token);
    }

    fn release(&self, now: Now, claim: &QuotaClaim<'_>, counted: Counted) {
        self.quotas().release(now, claim, counted);
    }

    fn authenticated(&self, now: Now, note: &AuthenticatedClient<'_>) {
        self.authenticated.lock().unwrap_or_else(PoisonError::into_inner).note(now, note);
    }

    fn takes_reply(&self, now: Ticks, rate: ReplyRate, five_tuple: &FiveTuple, transaction: &TransactionId) -> bool {
        self.replies.takes(now, rate, five_tuple, transaction)
    }

    fn answers_failure(&self, now: Ticks, rate: FailureRate, via: &Via, transaction: &TransactionId) -> bool {
        self.failures().answers(now, rate, via, transaction)
    }

    fn pool(&self) -> PoolState {
        let [up, spare] = [&self.alternates[0], &self.alternates[1]].map(|word| word.load(Ordering::Relaxed));
        PoolState { up, spare, load: self.load.load(Ordering::Relaxed) }
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        self.addresses.relay_owner(address).is_some()
    }

    fn worker_of(&self, session: SessionId) -> Option<WorkerId> {
        self.mobile().get(&session).copied()
    }

    fn set_worker(&self, session: SessionId, worker: WorkerId) {
        self.mobile().insert(session, worker);
    }

    fn unset_worker(&self, session: SessionId, worker: WorkerId) {
        let mut mobile = self.mobile();
        if mobile.get(&session) == Some(&worker) {
            mobile.remove(&session);
        }
    }

    fn is_relayed_tcp(&self, address: PeerAddress) -> bool {
        self.addresses.is_relayed_tcp(address)
    }

    fn is_revoked(&self, subject: &SessionSubject<'_>, now: UnixSeconds) -> bool {
        self.revocations().includes(subject, now)
    }
}
