//! What stands around the workers in the tests: the books that span them, and the relay ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use throughway::address::{Family, FiveTuple, PeerAddress, RelayedTransportAddress, Via};
use throughway::net::shared::{SharedChanges, SharedState};
use throughway::protocol::authenticated::AuthenticatedClient;
use throughway::protocol::authenticated::{AuthenticatedCounts, AuthenticatedCountsState};
use throughway::protocol::border::{OpenedRelay, Parity, RelayRefused, RelayRequest, Shared};
use throughway::protocol::failures::{FailureRate, Failures};
use throughway::protocol::ids::{AllocationId, SessionId, WorkerId};
use throughway::protocol::meter::Meters;
use throughway::protocol::overrides::{Overrides, RunTimeLimits};
use throughway::protocol::pool::PoolState;
use throughway::protocol::quota::{Admitted, Counted, Purpose, QuotaClaim, Quotas};
use throughway::protocol::quota_state::QuotasState;
use throughway::protocol::reject::RejectReason;
use throughway::protocol::reply_budget::{ReplyBudget, ReplyRate};
use throughway::protocol::revocation::{Revocations, SessionSubject, Subject};
use throughway::protocol::settings::Limits;
use throughway::time::{Now, Ticks, UnixSeconds};
use throughway::wire::attribute::ReservationToken;
use throughway::wire::message::TransactionId;

#[derive(Default, Debug)]
struct Inside {
    total: u32,
    quotas: Quotas,
    authenticated: AuthenticatedCounts,
    relayed: BTreeSet<SocketAddr>,
    /// Those of them that are of TCP.
    relayed_tcp: BTreeSet<SocketAddr>,
    revoked: Revocations,
    replies: ReplyBudget,
    failures: Failures,
    pool: PoolState,
    mobile: BTreeMap<SessionId, WorkerId>,
}

/// Quotas and relayed addresses of all workers.
#[derive(Default, Debug)]
pub struct Books(Mutex<Inside>);

impl Books {
    fn locked(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.0.lock().expect("no test thread panics while it holds this")
    }
    /// Allocations and held ports counted in and not yet out.
    pub fn admitted(&self) -> usize {
        let counted = self.locked();
        counted.total as usize + counted.quotas.reserved()
    }
    /// Mobile sessions that are thought to be somewhere.
    pub fn mobile(&self) -> usize {
        self.locked().mobile.len()
    }
    /// Who proved to hold a credential.
    pub fn authenticated(&self) -> AuthenticatedCounts {
        self.locked().authenticated.clone()
    }
    /// What the workers share, as plain values.
    pub fn export(&self) -> SharedState {
        let inside = self.locked();
        SharedState {
            quotas: inside.quotas.to_state(),
            revocations: inside.revoked.to_state(),
            authenticated: inside.authenticated.to_state(),
            resting_ports: Vec::new(),
            overrides: inside.quotas.overrides.whole(),
        }
    }
    /// As [`Books::export`], of what goes early.
    pub fn export_early(&self) -> SharedState {
        let mut inside = self.locked();
        let mut keys = inside.quotas.begin_early_export();
        keys.sort_unstable();
        let scopes = inside.quotas.early_scopes(&keys);
        let lingering = inside.quotas.early_lingering(None, usize::MAX);
        SharedState {
            quotas: QuotasState { scopes, lingering, ..QuotasState::default() },
            revocations: inside.revoked.early_export(),
            authenticated: AuthenticatedCountsState::default(),
            resting_ports: Vec::new(),
            overrides: inside.quotas.overrides.early_export(),
        }
    }
    /// What that lacks.
    pub fn export_changes(&self) -> SharedChanges {
        let inside = self.locked();
        SharedChanges {
            quotas: inside.quotas.export_changes(),
            revocations: inside.revoked.export_changes(),
            authenticated: inside.authenticated.to_state(),
            resting_ports: Vec::new(),
            overrides: inside.quotas.overrides.export_changes(),
        }
    }
    /// Another process takes over what the workers share.
    pub fn import(&self, state: SharedState) {
        let mut inside = self.locked();
        inside.quotas = Quotas::from_state(state.quotas);
        inside.quotas.overrides = Overrides::from_state(state.overrides.unwrap_or_default());
        inside.authenticated = AuthenticatedCounts::from_state(&state.authenticated);
        inside.revoked = Revocations::from_state(state.revocations);
    }
    /// As an operator does it; how many networks had failures.
    pub fn forgive(&self, now: Now, prefix: &str) -> usize {
        self.locked().failures.forgive(now.ticks, &prefix.parse().expect("a prefix")).len()
    }
    /// Who of the pool takes clients, and how full the server is.
    pub fn set_pool(&self, state: PoolState) {
        self.locked().pool = state;
    }
    /// As the process does it; the caller ends the live sessions too.
    pub fn revoke(&self, whose: Subject, until: UnixSeconds) {
        self.locked().revoked.insert(whose, until);
    }
    /// As the process does it; the caller lets the live sessions follow.
    pub fn set_limits(&self, whose: Subject, limits: RunTimeLimits, at: UnixSeconds) {
        self.locked().quotas.overrides.put(whose, limits, at);
    }
    pub fn opened(&self, relayed: RelayedTransportAddress) {
        assert!(self.locked().relayed.insert(relayed.into()), "{relayed} was not open");
    }
    /// It is one of TCP.
    pub fn is_tcp(&self, relayed: RelayedTransportAddress) {
        assert!(self.locked().relayed_tcp.insert(relayed.into()), "{relayed} was not open");
    }
    pub fn closed(&self, relayed: RelayedTransportAddress) {
        self.locked().relayed_tcp.remove(&SocketAddr::from(relayed));
        assert!(self.locked().relayed.remove(&SocketAddr::from(relayed)), "{relayed} was open");
    }
}

impl Books {
    /// The answer to `Output::Admit`.
    pub fn admit(
        &self,
        now: Now,
        claim: &QuotaClaim<'_>,
        limits: &Limits,
        purpose: Purpose,
    ) -> Result<Admitted, RejectReason> {
        let mut counted = self.locked();
        let admitted = counted.quotas.admit(now, claim, limits, purpose)?;
        counted.total += 1;
        Ok(admitted)
    }
}

impl Shared for Books {
    fn meters(&self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits, old: &Meters) -> Meters {
        self.locked().quotas.meters(claim, counted, limits, old)
    }

    fn release_reservation(&self, now: Now, token: ReservationToken) {
        let quotas = &mut self.locked().quotas;
        let before = quotas.reserved();
        quotas.release_reservation(now, token);
        assert_eq!(quotas.reserved() + 1, before, "only what was reserved is released");
    }

    fn release(&self, now: Now, claim: &QuotaClaim<'_>, admitted: Counted) {
        let mut counted = self.locked();
        counted.total = counted.total.checked_sub(1).expect("only what was admitted is released");
        counted.quotas.release(now, claim, admitted);
        assert_eq!(counted.quotas.usage().0, counted.total, "the quota table agrees with the books");
    }

    fn authenticated(&self, now: Now, note: &AuthenticatedClient<'_>) {
        self.locked().authenticated.note(now, note);
    }

    fn is_revoked(&self, subject: &SessionSubject<'_>, now: UnixSeconds) -> bool {
        self.locked().revoked.includes(subject, now)
    }

    fn answers_failure(&self, now: Ticks, rate: FailureRate, via: &Via, transaction: &TransactionId) -> bool {
        self.locked().failures.answers(now, rate, via, transaction)
    }

    fn takes_reply(&self, now: Ticks, rate: ReplyRate, five_tuple: &FiveTuple, transaction: &TransactionId) -> bool {
        self.locked().replies.takes(now, rate, five_tuple, transaction)
    }

    fn worker_of(&self, session: SessionId) -> Option<WorkerId> {
        self.locked().mobile.get(&session).copied()
    }

    fn set_worker(&self, session: SessionId, worker: WorkerId) {
        self.locked().mobile.insert(session, worker);
    }

    fn unset_worker(&self, session: SessionId, worker: WorkerId) {
        let mobile = &mut self.locked().mobile;
        if mobile.get(&session) == Some(&worker) {
            mobile.remove(&session);
        }
    }

    fn pool(&self) -> PoolState {
        self.locked().pool
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        let (inside, address) = (self.locked(), SocketAddr::from(address));
        inside.relayed.contains(&address) && !inside.relayed_tcp.contains(&address)
    }

    fn is_relayed_tcp(&self, address: PeerAddress) -> bool {
        self.locked().relayed_tcp.contains(&SocketAddr::from(address))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Port {
    Open(WorkerId, AllocationId),
    Held,
}

/// Relay ports in order, from an odd one on, so that parity has something to do.
#[derive(Debug)]
pub struct Ports {
    taken: BTreeMap<SocketAddr, Port>,
    next: u16,
    /// Every answer from now on, if a test wants a refusal.
    pub refuse: Option<RelayRefused>,
    /// Fresh addresses of this family fail so.
    pub refuse_family: Option<(Family, RelayRefused)>,
}

pub const RELAY_IPV4: &str = "9.9.9.9";
pub const RELAY_IPV6: &str = "2a00:9::9";
const FIRST_PORT: u16 = 50_001;

impl Default for Ports {
    fn default() -> Self {
        Self { taken: BTreeMap::new(), next: FIRST_PORT, refuse: None, refuse_family: None }
    }
}

impl Ports {
    pub fn open(
        &mut self,
        worker: WorkerId,
        id: AllocationId,
        request: RelayRequest,
    ) -> Result<OpenedRelay, RelayRefused> {
        if let Some(refused) = self.refuse {
            return Err(refused);
        }
        if let RelayRequest::Fresh { family, .. } = request
            && let Some(refused) = self.refuse_family.filter(|(of, _)| *of == family).map(|(_, refused)| refused)
        {
            return Err(refused);
        }
        let (family, parity) = match request {
            RelayRequest::Fresh { family, parity, .. } => (family, parity),
            RelayRequest::Tcp { family, .. } => (family, Parity::Any),
            RelayRequest::Reserved { relayed, .. } => {
                let port = self.taken.get_mut(&relayed.into()).filter(|port| **port == Port::Held);
                *port.ok_or(RelayRefused::NotHeld)? = Port::Open(worker, id);
                return Ok(OpenedRelay { relayed, held: None });
            }
        };
        let ip: IpAddr = match family {
            Family::V4 => RELAY_IPV4,
            Family::V6 => RELAY_IPV6,
        }
        .parse()
        .expect("an address");
        if parity != Parity::Any {
            self.next = self.next.next_multiple_of(2);
        }
        let relayed = SocketAddr::new(ip, self.next);
        self.next += 1;
        self.taken.insert(relayed, Port::Open(worker, id));
        let held = (parity == Parity::EvenAndHoldNext).then(|| {
            let held = SocketAddr::new(ip, self.next);
            self.next += 1;
            self.taken.insert(held, Port::Held);
            held.into()
        });
        Ok(OpenedRelay { relayed: relayed.into(), held })
    }

    pub fn close(&mut self, worker: WorkerId, id: AllocationId, relayed: RelayedTransportAddress) {
        let was = self.taken.remove(&relayed.into());
        assert_eq!(was, Some(Port::Open(worker, id)), "an allocation closes its own relayed address");
    }

    pub fn rename(&mut self, worker: WorkerId, from: AllocationId, to: AllocationId, relayed: RelayedTransportAddress) {
        let was = self.taken.insert(relayed.into(), Port::Open(worker, to));
        assert_eq!(was, Some(Port::Open(worker, from)), "an allocation takes its own second address over");
        let of_id = self.taken.values().filter(|port| **port == Port::Open(worker, to)).count();
        assert_eq!(of_id, 1, "the first one was closed before");
    }

    /// An allocation's socket is on its way to another worker.
    pub fn hold(&mut self, worker: WorkerId, id: AllocationId, relayed: RelayedTransportAddress) {
        let was = self.taken.insert(relayed.into(), Port::Held);
        assert_eq!(was, Some(Port::Open(worker, id)), "an allocation takes its own socket along");
    }

    /// What the socket at an address is known by.
    pub fn id_at(&self, relayed: SocketAddr) -> Option<AllocationId> {
        match self.taken.get(&relayed) {
            Some(Port::Open(_, id)) => Some(*id),
            Some(Port::Held) | None => None,
        }
    }

    pub fn close_reserved(&mut self, relayed: RelayedTransportAddress) {
        assert_eq!(self.taken.remove(&relayed.into()), Some(Port::Held), "only a held port is closed as held");
    }

    pub fn count(&self) -> usize {
        self.taken.len()
    }
    pub fn is_held(&self, relayed: SocketAddr) -> bool {
        self.taken.get(&relayed) == Some(&Port::Held)
    }
}
