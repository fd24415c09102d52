//! Allocate (RFC 8656 section 7.2): one function per check, in the RFC's order.
//!
//! No success before the relayed socket is bound: the request waits in [`Opening`] until the shell has
//! answered. A port that another worker holds is asked for first ([`Asking`]).

use super::Server;
use super::accounting::SessionId;
use super::address::{Family, RelayedTransportAddress, Via};
use super::allocation::{Allocation, Origin};
use super::auth::Authenticated;
use super::border::{
    AllocationId, Answer, AskId, Event, OpenedRelay, Output, Parity, Question, RelayRefused, RelayRequest, WorkerId,
};
use super::owner::Owner;
use super::reject::RejectReason;
use super::revocation::Whose;
use super::settings::Limits;
use super::time::{Now, Ticks};
use super::timer::Due;
use crate::wire::attribute::{EvenPort, PROTO_UDP, RequestedAddressFamily, ReservationToken, family};
use crate::wire::message::{METHOD_ALLOCATE, Message, TransactionId};

/// How long a port is held for a RESERVATION-TOKEN, in seconds (RFC 8656 section 7.2).
pub(super) const RESERVATION_LIFETIME: u64 = 30;

/// How long another worker may take to answer, in milliseconds.
const ANSWER_WITHIN: u64 = 2_000;

/// What an Allocate request was found to want.
#[derive(Clone, Debug)]
struct Wanted {
    lifetime: u32,
    family: Family,
    parity: Parity,
    token: Option<ReservationToken>,
}

/// An Allocate that waits for its relayed socket.
#[derive(Debug)]
pub(super) struct Opening {
    via: Via,
    owner: Owner,
    transaction_id: TransactionId,
    fingerprint: bool,
    lifetime: u32,
    /// A question to another worker that must be answered first.
    asking: Option<u64>,
}

/// A port held for whoever brings its token.
#[derive(Debug)]
pub(super) struct Reservation {
    relayed: RelayedTransportAddress,
    expires_at: Ticks,
    identity: Box<str>,
}

impl Server {
    pub(super) fn on_allocate(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        let message = request.message();
        if let Some(opening) = self.opening_of.get(&via).and_then(|id| self.openings.get(id)) {
            // A retransmission that came before the answer to the first: that answer is on its way. Another
            // request must hear something, since nobody repeats it over a stream.
            if opening.transaction_id != message.transaction_id() {
                self.reject(via, message, RejectReason::AllocationExists, Some(request.key()));
            }
            return;
        }
        if self.answer_retransmission(&via, request) {
            return;
        }
        let wanted = match self.check_allocate(&via, message) {
            Ok(wanted) => wanted,
            Err(reason) => return self.reject(via, message, reason, Some(request.key())),
        };
        let owner = request.owner();
        if owner.is_over(&self.settings.auth, now) {
            // The tolerance for clocks that differ lets nobody in whose session would be closed at once.
            return self.reject_unauthenticated(now, via, message, &RejectReason::Expired.into());
        }
        if let Err(reason) = self.check_terms(now, &via, &owner) {
            return self.reject(via, message, reason, Some(request.key()));
        }
        if self.draining {
            return self.send_elsewhere(via, request);
        }
        let owner = match self.check_quota(now, &via, owner) {
            Ok(owner) => owner,
            Err(reason) => return self.reject(via, message, reason, Some(request.key())),
        };
        let id = self.table.reserve();
        let opening = Opening {
            via,
            owner,
            transaction_id: message.transaction_id(),
            fingerprint: self.mirrors_fingerprint(message),
            lifetime: wanted.lifetime,
            asking: None,
        };
        let identity = opening.owner.full_identity();
        self.opening_of.insert(via, id);
        self.openings.insert(id, opening);
        match wanted.token {
            None => {
                let client = via.five_tuple().client.ip();
                let request = RelayRequest::Fresh { family: wanted.family, parity: wanted.parity, client };
                self.outputs.push_back(Output::OpenRelay { allocation: id, request });
            }
            Some(token) => self.claim_reservation(now, id, token, identity),
        }
    }

    /// RFC 8656 §7.2 (2) to (9), in order.
    fn check_allocate(&self, via: &Via, message: &Message<'_>) -> Result<Wanted, RejectReason> {
        self.check_five_tuple(via)?;
        check_transport(message)?;
        let dont_fragment = message.dont_fragment();
        let token = message.reservation_token().map_err(|_| RejectReason::BadAttribute)?;
        let even_port = message.even_port().map_err(|_| RejectReason::BadAttribute)?;
        let requested = message.requested_address_family().map_err(|_| RejectReason::BadAttribute)?;
        dont_fragment.map_err(|_| RejectReason::BadAttribute)?;
        // (5): a token names address and family already.
        let additional = message.additional_address_family().map_err(|_| RejectReason::BadAttribute)?;
        if token.is_some() && (even_port.is_some() || requested.is_some() || additional.is_some()) {
            return Err(RejectReason::Combination);
        }
        check_additional_family(additional, requested.is_some(), even_port)?;
        // (6), (7): without REQUESTED-ADDRESS-FAMILY it is IPv4.
        let family = match requested {
            None => Family::V4,
            Some(number) => family(number).ok_or(RejectReason::FamilyUnsupported)?,
        };
        if token.is_none() && !self.relays_from(family) {
            return Err(RejectReason::FamilyUnsupported);
        }
        let lifetime = message.lifetime().map_err(|_| RejectReason::BadAttribute)?;
        let parity = match even_port {
            None => Parity::Any,
            Some(EvenPort::Even) => Parity::Even,
            Some(EvenPort::EvenAndReserveNext) => Parity::EvenAndHoldNext,
        };
        Ok(Wanted { lifetime: self.grant(lifetime), family, parity, token })
    }

    /// (2): one allocation per five-tuple.
    fn check_five_tuple(&self, via: &Via) -> Result<(), RejectReason> {
        if self.table.by_via(via).is_some() { Err(RejectReason::AllocationExists) } else { Ok(()) }
    }

    /// RFC 8656 §7.2: "the server ... can choose to reject with 486" at any point before the port is opened.
    fn check_quota(&self, now: Now, via: &Via, mut owner: Owner) -> Result<Owner, RejectReason> {
        let admitted = self.shared.admit(now, &owner.claim(via), &self.settings.limits)?;
        owner.admitted(admitted);
        Ok(owner)
    }

    /// What the credential itself says, and what an operator said of it.
    fn check_terms(&self, now: Now, via: &Via, owner: &Owner) -> Result<(), RejectReason> {
        if self.shared.is_revoked(&owner.party(), now.unix) {
            return Err(RejectReason::Revoked);
        }
        let Some(grant) = owner.grant() else { return Ok(()) };
        if !grant.allows_transport(via.five_tuple().transport) {
            return Err(RejectReason::TransportDenied);
        }
        if grant.closes_at.is_some_and(|at| at <= now.unix.0) {
            return Err(RejectReason::ClosingTime);
        }
        Ok(())
    }

    const fn relays_from(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.relay_ipv4,
            Family::V6 => self.relay_ipv6,
        }
    }

    /// The lifetime granted for the one asked: less than the default is the default (RFC 8656 §7.2).
    pub(super) fn grant(&self, asked: Option<u32>) -> u32 {
        let default = self.settings.default_lifetime;
        asked.map_or(default, |asked| asked.clamp(default, self.settings.max_lifetime.max(default)))
    }

    /// The request that made the allocation gets its answer again, rebuilt from twelve bytes kept of it.
    fn answer_retransmission(&mut self, via: &Via, request: &Authenticated<'_>) -> bool {
        let transaction_id = request.message().transaction_id();
        let Some(allocation) = self
            .table
            .by_via(via)
            .filter(|allocation| request.is_owner() && allocation.origin().transaction_id == transaction_id)
        else {
            return false;
        };
        let (relayed, origin) = (allocation.relayed(), allocation.origin());
        let fingerprint = self.mirrors_fingerprint(request.message());
        self.answer_allocate(*via, relayed, origin, fingerprint, request.key());
        true
    }

    fn claim_reservation(&mut self, now: Now, id: AllocationId, token: ReservationToken, identity: Box<str>) {
        let owner = WorkerId(token.0[0]);
        if owner == self.worker {
            let relayed = self.take_reservation(token, &identity);
            self.open_reserved(now, id, relayed);
        } else if usize::from(owner.0) < self.workers {
            self.questions += 1;
            let number = self.questions;
            if let Some(opening) = self.openings.get_mut(&id) {
                opening.asking = Some(number);
            }
            self.asked.insert(number, id);
            self.timers.arm(Ticks(now.ticks.0 + ANSWER_WITHIN), Due::Question(number));
            let ticket = AskId { worker: self.worker, number };
            let question = Question::Reservation { token, identity };
            self.outputs.push_back(Output::Ask { worker: owner, ticket, question });
        } else {
            self.open_reserved(now, id, None);
        }
    }

    fn open_reserved(&mut self, now: Now, id: AllocationId, relayed: Option<RelayedTransportAddress>) {
        let client = self.openings.get(&id).map(|opening| opening.via.five_tuple().client.ip());
        match relayed.zip(client) {
            Some((relayed, client)) => {
                let request = RelayRequest::Reserved { relayed, client };
                self.outputs.push_back(Output::OpenRelay { allocation: id, request });
            }
            None => self.fail_opening(now, id, RejectReason::BadReservation),
        }
    }

    fn take_reservation(&mut self, token: ReservationToken, identity: &str) -> Option<RelayedTransportAddress> {
        // Whoever did not reserve must not be able to take it away either.
        if *self.reservations.get(&token)?.identity != *identity {
            return None;
        }
        let reservation = self.reservations.remove(&token)?;
        self.timers.disarm(reservation.expires_at, token.into());
        Some(reservation.relayed)
    }

    pub(super) fn on_asked(&mut self, ticket: AskId, question: &Question) {
        let Question::Reservation { token, identity } = question;
        let answer = Answer::Reservation(self.take_reservation(*token, identity));
        self.outputs.push_back(Output::Answer { ticket, answer });
    }

    pub(super) fn on_answered(&mut self, now: Now, ticket: AskId, answer: Answer) {
        let Answer::Reservation(relayed) = answer;
        match self.asked.remove(&ticket.number) {
            Some(id) => self.open_reserved(now, id, relayed),
            // Whoever asked gave up; the port came along and has no owner any more.
            None => self.outputs.extend(relayed.map(|relayed| Output::CloseReserved { relayed })),
        }
    }

    pub(super) fn on_question_overdue(&mut self, now: Now, number: u64) {
        if let Some(id) = self.asked.remove(&number) {
            self.fail_opening(now, id, RejectReason::BadReservation);
        }
    }

    pub(super) fn on_reservation_expired(&mut self, token: ReservationToken) {
        if let Some(reservation) = self.reservations.remove(&token) {
            self.outputs.push_back(Output::CloseReserved { relayed: reservation.relayed });
        }
    }

    pub(super) fn on_relay_opened(&mut self, now: Now, id: AllocationId, result: Result<OpenedRelay, RelayRefused>) {
        let opened = match result {
            Ok(opened) => opened,
            Err(RelayRefused::NotHeld) => return self.fail_opening(now, id, RejectReason::BadReservation),
            Err(RelayRefused::NoPort | RelayRefused::NoFiles | RelayRefused::System) => {
                return self.fail_opening(now, id, RejectReason::NoPort);
            }
        };
        let Some(opening) = self.openings.remove(&id) else {
            // The client's stream closed while the socket was being opened.
            self.outputs.push_back(Output::CloseRelay { allocation: id, relayed: opened.relayed, client: None });
            self.outputs.extend(opened.held.map(|relayed| Output::CloseReserved { relayed }));
            return;
        };
        self.opening_of.remove(&opening.via);
        let token = opened.held.map(|held| self.hold(now, held, &opening.owner.full_identity()));
        let origin = Origin { transaction_id: opening.transaction_id, lifetime: opening.lifetime, token };
        let key = opening.owner.key.clone();
        self.sessions += 1;
        let session = SessionId { instance: self.instance, number: self.sessions };
        let mut allocation =
            Allocation::new(id, session, opening.via, opened.relayed, opening.owner, origin, now.ticks);
        allocation.plan_interim(self.settings.interim_seconds, now.ticks);
        allocation.plan_close(&self.settings.auth, now);
        allocation.armed_at = allocation.wakes_at();
        self.timers.arm(allocation.armed_at, Due::Allocation(id.index));
        self.spare.prepare();
        let created = Event::AllocationCreated(allocation.write_record(now, None));
        self.table.insert(allocation);
        let via = opening.via;
        self.counters.created.add(1);
        self.counters.live(via.five_tuple().transport, opened.relayed.family()).add(1);
        self.answer_allocate(via, opened.relayed, origin, opening.fingerprint, &key);
        self.outputs.push_back(Output::Happened(created));
    }

    /// Keeps the next port for 30 seconds under a token whose first byte names this worker.
    fn hold(&mut self, now: Now, relayed: RelayedTransportAddress, identity: &str) -> ReservationToken {
        let mut token = ReservationToken([0; 8]);
        loop {
            self.random.fill(&mut token.0);
            token.0[0] = self.worker.0;
            if !self.reservations.contains_key(&token) {
                break;
            }
        }
        let expires_at = now.ticks.plus_seconds(RESERVATION_LIFETIME);
        self.timers.arm(expires_at, token.into());
        self.reservations.insert(token, Reservation { relayed, expires_at, identity: identity.into() });
        token
    }

    /// Ends an opening that came to nothing, and tells the client.
    pub(super) fn fail_opening(&mut self, now: Now, id: AllocationId, reason: RejectReason) {
        let Some(opening) = self.forget_opening(now, id) else { return };
        self.counters.rejected(reason);
        let key = opening.owner.key.clone();
        let head = (METHOD_ALLOCATE, opening.transaction_id);
        self.reply_error(opening.via, head, opening.fingerprint, reason, &[], Some(&key));
        let refused = Event::Refused { via: opening.via, reason, username: Some(opening.owner.username().into()) };
        self.outputs.push_back(Output::Happened(refused));
    }

    /// New limits hold for those too who were let in under the old ones and have no relayed address yet.
    #[allow(clippy::disallowed_methods, reason = "each gets its meters for itself, in any order")]
    pub(super) fn meter_openings_anew(&mut self, limits: &Limits) {
        for opening in self.openings.values_mut() {
            let claim = opening.owner.claim(&opening.via);
            let meters = self.shared.meters(&claim, opening.owner.counted(), limits);
            opening.owner.set_meters(meters);
        }
    }

    /// Refuses what these were about to begin.
    #[allow(clippy::disallowed_methods, reason = "what comes out of the map is sorted at once")]
    pub(super) fn give_up_openings_of(&mut self, now: Now, whose: &Whose) {
        let theirs = self.openings.iter().filter(|(_, opening)| whose.includes(&opening.owner.party()));
        let mut ids: Vec<AllocationId> = theirs.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            self.fail_opening(now, id, RejectReason::Revoked);
        }
    }

    /// Refuses what was about to begin and closes what is held: nothing may start after the end of all.
    #[allow(clippy::disallowed_methods, reason = "what comes out of the maps is sorted at once")]
    pub(super) fn give_up_openings(&mut self, now: Now) {
        // Sorted, because the order of a hash map must not decide what happens first.
        let mut ids: Vec<AllocationId> = self.openings.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.fail_opening(now, id, RejectReason::Draining);
        }
        let mut tokens: Vec<ReservationToken> = self.reservations.keys().copied().collect();
        tokens.sort_unstable_by_key(|token| token.0);
        for token in tokens {
            if let Some(reservation) = self.reservations.remove(&token) {
                self.timers.disarm(reservation.expires_at, token.into());
                self.outputs.push_back(Output::CloseReserved { relayed: reservation.relayed });
            }
        }
    }

    pub(super) fn forget_opening(&mut self, now: Now, id: AllocationId) -> Option<Opening> {
        let opening = self.openings.remove(&id)?;
        self.opening_of.remove(&opening.via);
        self.asked.retain(|_, waiting| *waiting != id);
        self.table.unreserve(id);
        self.shared.release(now, &opening.owner.claim(&opening.via), opening.owner.counted());
        Some(opening)
    }
}

/// (3): REQUESTED-TRANSPORT must be there and name UDP.
fn check_transport(message: &Message<'_>) -> Result<(), RejectReason> {
    match message.requested_transport() {
        Err(_) => Err(RejectReason::BadAttribute),
        Ok(None) => Err(RejectReason::MissingAttribute),
        Ok(Some(protocol)) if protocol == PROTO_UDP => Ok(()),
        Ok(Some(_)) => Err(RejectReason::UnsupportedTransport),
    }
}

/// (6), (8), (9): what ADDITIONAL-ADDRESS-FAMILY must not stand beside. It asks for an IPv6 address beside the IPv4 one;
/// this server opens one address per allocation, so a legal one is left unanswered, as comprehension-optional
/// attributes may be.
fn check_additional_family(
    additional: Option<RequestedAddressFamily>,
    requested: bool,
    even_port: Option<EvenPort>,
) -> Result<(), RejectReason> {
    let Some(additional) = additional else { return Ok(()) };
    let excluded =
        requested || family(additional) != Some(Family::V6) || even_port == Some(EvenPort::EvenAndReserveNext);
    if excluded { Err(RejectReason::Combination) } else { Ok(()) }
}
