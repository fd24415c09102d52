//! Allocate (RFC 8656 section 7.2): one function per check, in the RFC's order.
//!
//! No success before the relayed socket is bound: the request waits in [`Openings`](super::opening::Openings) until the
//! quotas have admitted it, until the worker that holds the port of its token has answered, and until the shell has
//! opened the socket. Each of them is an [`Output`] and comes back as an [`Input`](super::border::Input).

use super::Server;
use super::allocation::{Allocation, Origin};
use super::auth::Authenticated;
use super::border::{Answer, Event, OpenedRelay, Output, Parity, Question, RelayRefused, RelayRequest};
use super::ids::QuestionId;
use super::ids::{AllocationId, SessionId, WorkerId};
use super::opening::{Opening, RequestedAllocation, Stage};
use super::owner::Owner;
use super::peer_policy::is_tunnelled;
use super::quota::{Admitted, Purpose, QuotaClaim};
use super::redirect::alternate;
use super::reject::RejectReason;
use super::reply::AllocateAnswer;
use super::reservation::{RESERVATION_LIFETIME, Reservation};
use super::revocation::Subject;
use super::settings::Limits;
use super::timer::Due;
use crate::address::{Family, RelayedTransportAddress, Via};
use crate::time::{Now, Ticks};
use crate::wire::attribute::{EvenPort, PROTO_TCP, PROTO_UDP, RequestedAddressFamily, ReservationToken, family};
use crate::wire::integrity::ReplyIntegrity;
use crate::wire::message::{Known, METHOD_ALLOCATE, Message};

/// How long another worker, or the quotas, may take to answer, in milliseconds.
const ANSWER_WITHIN: u64 = 2_000;

impl Server {
    // [8656-7.2-1]
    pub(super) fn on_allocate(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        let message = request.message();
        if let Some(opening) = self.openings.of_client(&via).and_then(|id| self.openings.get(id)) {
            // A retransmission that came before the answer to the first: that answer is on its way. Another
            // request must hear something, since it is not repeated over a stream. [8656-7.2-32]
            if opening.transaction_id != message.transaction_id() {
                self.reject(via, message, RejectReason::AllocationExists, Some(request.key()));
            }
            return;
        }
        if self.answer_retransmission(&via, request) {
            return;
        }
        if self.asker.is_some() {
            // It came to another worker, by a way to an allocation that has just ended here: a new one would be there.
            return self.reject(via, message, RejectReason::AllocationExists, Some(request.key()));
        }
        let requested = match self.check_allocate(&via, message) {
            Ok(requested) => requested,
            Err(reason) => return self.reject(via, message, reason, Some(request.key())),
        };
        let owner = request.owner();
        if owner.is_over(&self.settings.auth, now) {
            // The tolerance for clocks that differ admits no session that would be closed at once.
            return self.reject_unauthenticated(now, via, message, &RejectReason::Expired.into());
        }
        if let Err(reason) = self.check_terms(now, &via, &owner) {
            return self.reject(via, message, reason, Some(request.key()));
        }
        if self.draining {
            return self.send_elsewhere(via, request);
        }
        let holds = (requested.parity == Parity::EvenAndHoldNext).then(|| self.fresh_token());
        if holds.is_some() && self.reservations.is_holder(&via) {
            return self.reject(via, message, RejectReason::QuotaReservations, Some(request.key()));
        }
        let id = self.table.reserve();
        let overdue_at = Ticks(now.ticks.0 + ANSWER_WITHIN);
        self.timers.arm(overdue_at, Due::Admission(id));
        let opening = Opening {
            via,
            owner,
            transaction_id: message.transaction_id(),
            fingerprint: self.mirrors_fingerprint(message),
            integrity: request.key().integrity,
            requested,
            holds,
            stage: Stage::Admission { overdue_at: Some(overdue_at) },
            is_abandoned: false,
        };
        self.openings.insert(id, opening);
        // A port that is to be held counts as an allocation from now on; one that is fetched was counted when it was held.
        let purpose = match (holds, requested.token) {
            (Some(token), _) => Purpose::WithReservation(token),
            (None, Some(token)) => Purpose::InPlaceOf(token),
            (None, None) => Purpose::Allocation,
        };
        self.outputs.push_back(Output::Admit { allocation: id, purpose });
    }

    /// What an Allocate request that waits for [`Output::Admit`] would count for, and the limits that hold for it; `None`
    /// for any other.
    #[must_use]
    pub fn quota_claim(&self, allocation: AllocationId) -> Option<(QuotaClaim<'_>, &Limits)> {
        let opening = self.openings.get(allocation).filter(|opening| opening.stage.is_admission())?;
        Some((opening.owner.claim(&opening.via), &self.settings.limits))
    }

    /// RFC 8656 §7.2: "the server ... can choose to reject with 486" at any point before the port is opened.
    pub(super) fn on_admission(&mut self, now: Now, id: AllocationId, result: Result<Admitted, RejectReason>) {
        let Some((opening, overdue_at)) = self.openings.get_mut(id).and_then(|opening| match opening.stage {
            Stage::Admission { overdue_at } => Some((opening, overdue_at)),
            Stage::Reservation { .. } | Stage::Relay | Stage::Additional { .. } => None,
        }) else {
            debug_assert!(false, "one answer to each question about an admission");
            return;
        };
        overdue_at.into_iter().for_each(|at| self.timers.disarm(at, Due::Admission(id)));
        let admitted = match result {
            Ok(admitted) => admitted,
            Err(reason) => {
                if !opening.is_abandoned {
                    self.answer_failed_opening(id, reason);
                }
                // Nothing was counted.
                self.openings.remove(id);
                return self.table.unreserve(id);
            }
        };
        opening.owner.admitted(admitted);
        opening.stage = Stage::Relay;
        if opening.is_abandoned {
            self.forget_opening(now, id);
            return;
        }
        let RequestedAllocation { family, token, .. } = opening.requested;
        match token {
            None => self.open_fresh(id, id, family),
            Some(token) => {
                let identity = opening.owner.full_identity();
                self.claim_reservation(now, id, token, identity);
            }
        }
    }

    /// The quotas did not answer: the client hears so and may ask again. The slot waits for their answer, since they may
    /// have counted the allocation.
    pub(super) fn on_admission_overdue(&mut self, id: AllocationId) {
        if self.openings.get(id).is_some_and(|opening| opening.stage.is_admission() && !opening.is_abandoned) {
            self.answer_failed_opening(id, RejectReason::AdmissionOverdue);
            self.openings.abandon(id);
        }
    }

    /// RFC 8656 §7.2 (2) to (9), in order.
    fn check_allocate(&self, via: &Via, message: &Message<'_>) -> Result<RequestedAllocation, RejectReason> {
        self.check_five_tuple(via)?;
        let is_tcp = self.check_transport(via, message)?;
        check_no_tunnel(via)?;
        // [8656-7.2-6]
        let dont_fragment = message.dont_fragment();
        let token = message.reservation_token().map_err(|_| RejectReason::BadAttribute)?;
        let even_port = message.even_port().map_err(|_| RejectReason::BadAttribute)?;
        let requested = message.requested_address_family().map_err(|_| RejectReason::BadAttribute)?;
        dont_fragment.map_err(|_| RejectReason::BadAttribute)?;
        // (5): a token names address and family already. [8656-7.2-7]
        let additional = message.additional_address_family().map_err(|_| RejectReason::BadAttribute)?;
        if token.is_some() && (even_port.is_some() || requested.is_some() || additional.is_some()) {
            return Err(RejectReason::Combination);
        }
        // A TCP allocation has one port, of one family, and no datagrams. [6062-5.1-5]
        if is_tcp
            && (token.is_some() || even_port.is_some() || additional.is_some() || message.has(Known::DontFragment))
        {
            return Err(RejectReason::Combination);
        }
        let asks_for_both = additional.is_some();
        check_additional_family(additional, requested.is_some(), even_port)?;
        let wished = match (requested, asks_for_both) {
            (None, true) => self.families_of_both()?,
            // (6), (7): without REQUESTED-ADDRESS-FAMILY it is IPv4. [8656-7.2-11, -12]
            (None, false) => Families::one(Family::V4),
            (Some(number), _) => Families::one(family(number).ok_or(RejectReason::FamilyUnsupported)?),
        };
        // [8656-7.2-10, -11]
        if token.is_none() && !self.relays_from(wished.family) {
            return Err(RejectReason::FamilyUnsupported);
        }
        let lifetime = message.lifetime().map_err(|_| RejectReason::BadAttribute)?;
        let parity = match even_port {
            None => Parity::Any,
            Some(EvenPort::Even) => Parity::Even,
            Some(EvenPort::EvenAndReserveNext) => Parity::EvenAndHoldNext,
        };
        // [8016-3.1.2-1, -2]
        let is_mobile = self.check_mobility_wish(message)?;
        let Families { family, additional, refused } = wished;
        // A connection belongs to a worker, and can't move with its client's network.
        if is_tcp && is_mobile == Some(true) {
            return Err(RejectReason::MobilityForbidden);
        }
        let (lifetime, is_tcp) = (self.grant(lifetime), is_tcp.then_some(true));
        Ok(RequestedAllocation { lifetime, family, parity, token, additional, refused, is_mobile, is_tcp })
    }

    /// ADDITIONAL-ADDRESS-FAMILY asks for both: of those that this server relays from, with a 440 for the other one.
    fn families_of_both(&self) -> Result<Families, RejectReason> {
        let refused = |family| Some((family, RejectReason::FamilyUnsupported.code().0));
        match (self.relay_ipv4, self.relay_ipv6) {
            (true, true) => Ok(Families { family: Family::V4, additional: Some(Family::V6), refused: None }),
            (true, false) => Ok(Families { family: Family::V4, additional: None, refused: refused(Family::V6) }),
            (false, true) => Ok(Families { family: Family::V6, additional: None, refused: refused(Family::V4) }),
            (false, false) => Err(RejectReason::FamilyUnsupported),
        }
    }

    /// (2): one allocation per five-tuple. [8656-7.2-3]
    fn check_five_tuple(&self, via: &Via) -> Result<(), RejectReason> {
        if self.table.by_path(via).is_some() || self.foreign.session(via).is_some() {
            Err(RejectReason::AllocationExists)
        } else {
            Ok(())
        }
    }

    /// (3): REQUESTED-TRANSPORT must be there and name UDP, or TCP where that is relayed; whether it is TCP.
    // [8656-7.2-4, -5, 6062-5.1-1, -2, -4]
    fn check_transport(&self, via: &Via, message: &Message<'_>) -> Result<bool, RejectReason> {
        match message.requested_transport() {
            Err(_) => Err(RejectReason::BadAttribute),
            Ok(None) => Err(RejectReason::MissingAttribute),
            Ok(Some(PROTO_UDP)) => Ok(false),
            Ok(Some(PROTO_TCP)) if self.settings.tcp.is_on && via.is_stream() => Ok(true),
            Ok(Some(PROTO_TCP)) if self.settings.tcp.is_on => Err(RejectReason::NotStream),
            Ok(Some(_)) => Err(RejectReason::UnsupportedTransport),
        }
    }

    /// A token whose first byte names this worker; the rest can't be guessed.
    fn fresh_token(&mut self) -> ReservationToken {
        let mut token = ReservationToken([0; 8]);
        self.random.fill(&mut token.0);
        token.0[0] = self.worker.0;
        token
    }

    /// Whether a client may come this way to an allocation that it has.
    pub(super) fn check_client(&self, now: Now, via: &Via, owner: &Owner) -> Result<(), RejectReason> {
        check_no_tunnel(via)?;
        self.check_terms(now, via, owner)
    }

    /// What the credential itself says, and what an operator said of it.
    fn check_terms(&self, now: Now, via: &Via, owner: &Owner) -> Result<(), RejectReason> {
        if self.shared.is_revoked(&owner.subject(), now.unix) {
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

    /// The lifetime granted for the one asked: less than the default is the default (RFC 8656 §7.2). [8656-7.2-29]
    pub(super) fn grant(&self, asked: Option<u32>) -> u32 {
        let default = self.settings.default_lifetime;
        asked.map_or(default, |asked| asked.clamp(default, self.settings.max_lifetime.max(default)))
    }

    /// The request that made the allocation gets its answer again, rebuilt from twelve bytes kept of it.
    // [8656-5-13, 8656-7.2-32, 8489-6.3.1-2, -3]
    fn answer_retransmission(&mut self, via: &Via, request: &Authenticated<'_>) -> bool {
        let transaction_id = request.message().transaction_id();
        let Some(allocation) = self
            .table
            .by_via(via)
            .filter(|allocation| request.is_owner() && allocation.origin().transaction_id == transaction_id)
        else {
            return false;
        };
        let (relayed, origin) = (allocation.sockets().map(|(_, relayed)| relayed), allocation.origin());
        let ticket = allocation.mobility().map(|_| self.first_ticket(allocation.session));
        let fingerprint = self.mirrors_fingerprint(request.message());
        let answer = AllocateAnswer { origin, ticket, fingerprint };
        self.answer_allocate(*via, relayed, &answer, request.key());
        true
    }

    fn claim_reservation(&mut self, now: Now, id: AllocationId, token: ReservationToken, identity: Box<str>) {
        let owner = WorkerId(token.0[0]);
        if owner == self.worker {
            let relayed = self.take_reservation(now, token, &identity);
            self.open_reserved(now, id, relayed);
        } else if usize::from(owner.0) < self.workers {
            let overdue_at = Ticks(now.ticks.0 + ANSWER_WITHIN);
            let number = self.openings.ask(id, overdue_at);
            self.timers.arm(overdue_at, Due::Question(number));
            let ticket = QuestionId { worker: self.worker, number };
            let question = Question::Reservation { token, identity };
            self.outputs.push_back(Output::Ask { worker: owner, ticket, question });
        } else {
            self.open_reserved(now, id, None);
        }
    }

    fn open_reserved(&mut self, now: Now, id: AllocationId, relayed: Option<RelayedTransportAddress>) {
        let client = self.openings.get(id).map(|opening| opening.via.five_tuple().client.ip());
        match relayed.zip(client) {
            Some((relayed, client)) => {
                if let Some(opening) = self.openings.get_mut(id) {
                    opening.stage = Stage::Relay;
                }
                let request = RelayRequest::Reserved { relayed, client };
                self.outputs.push_back(Output::OpenRelay { allocation: id, request });
            }
            None => self.fail_opening(now, id, RejectReason::BadReservation),
        }
    }

    // [8656-7.2-8, -22]
    fn take_reservation(
        &mut self,
        now: Now,
        token: ReservationToken,
        identity: &str,
    ) -> Option<RelayedTransportAddress> {
        // Another user must not be able to take it away either; and what is over stays over while its
        // deadline waits behind others.
        self.reservations.is_for(token, identity, now.ticks).then(|| self.end_reservation(now, token))?
    }

    /// A held port is fetched or closed: it counts no longer.
    fn end_reservation(&mut self, now: Now, token: ReservationToken) -> Option<RelayedTransportAddress> {
        let reservation = self.reservations.remove(token)?;
        self.timers.disarm(reservation.expires_at, token.into());
        self.shared.release_reservation(now, token);
        Some(reservation.relayed)
    }

    pub(super) fn on_asked(&mut self, now: Now, ticket: QuestionId, question: Question) {
        match question {
            Question::Reservation { token, identity } => {
                let answer = Answer::Reservation(self.take_reservation(now, token, &identity));
                self.outputs.push_back(Output::Answer { ticket, answer });
            }
            Question::Path(question) => self.on_path_question(now, ticket, question),
        }
    }

    pub(super) fn on_answered(&mut self, now: Now, ticket: QuestionId, answer: Answer) {
        let relayed = match answer {
            Answer::Reservation(relayed) => relayed,
            Answer::Path(answer) => return self.on_path_answer(now, answer),
        };
        match self.openings.answered(ticket.number) {
            Some(id) => self.open_reserved(now, id, relayed),
            // The request that asked is over; the port came along and has no owner any more.
            None => self.outputs.extend(relayed.map(|relayed| Output::CloseReserved { relayed })),
        }
    }

    pub(super) fn on_question_overdue(&mut self, now: Now, number: u64) {
        if let Some(id) = self.openings.answered(number) {
            self.fail_opening(now, id, RejectReason::BadReservation);
        }
    }

    pub(super) fn on_reservation_expired(&mut self, now: Now, token: ReservationToken) {
        let relayed = self.end_reservation(now, token);
        self.outputs.extend(relayed.map(|relayed| Output::CloseReserved { relayed }));
    }

    pub(super) fn on_relay_opened(&mut self, now: Now, id: AllocationId, result: Result<OpenedRelay, RelayRefused>) {
        if let Some(of) = self.openings.of_additional(id) {
            return self.on_additional_opened(now, of, id, result.map_err(reason_of));
        }
        let opened = match result {
            Ok(opened) => opened,
            Err(refused) => return self.on_relay_refused(now, id, reason_of(refused)),
        };
        let additional = self.openings.get(id).map(|opening| opening.requested.additional);
        match additional {
            // The client's stream closed while the socket was being opened.
            None => {
                self.outputs.push_back(Output::CloseRelay { allocation: id, relayed: opened.relayed, client: None });
                self.outputs.extend(opened.held.map(|relayed| Output::CloseReserved { relayed }));
            }
            Some(None) => self.complete(now, id, opened, None),
            Some(Some(family)) => {
                let socket = self.table.reserve();
                self.openings.await_additional(id, socket, opened.relayed);
                self.open_fresh(id, socket, family);
            }
        }
    }

    /// Asks for a socket of this family, known by an id, for an opening.
    fn open_fresh(&mut self, id: AllocationId, socket: AllocationId, family: Family) {
        let Some(opening) = self.openings.get(id) else { return };
        let (parity, client) = (opening.requested.parity, opening.via.five_tuple().client.ip());
        let part = self.settings.port_parts.of(opening.owner.tenant());
        let is_tcp = opening.requested.is_tcp == Some(true);
        let fresh = RelayRequest::Fresh { family, parity, part, client };
        let request = if is_tcp { RelayRequest::Tcp { family, part, client } } else { fresh };
        self.outputs.push_back(Output::OpenRelay { allocation: socket, request });
    }

    /// Who asked for both families is content with the other one (RFC 8656 section 7.2). [8656-7.2-17]
    fn on_relay_refused(&mut self, now: Now, id: AllocationId, reason: RejectReason) {
        let requested = self.openings.get_mut(id).map(|opening| &mut opening.requested);
        let other = requested.and_then(|requested| {
            let other = requested.additional.take()?;
            requested.refused = Some((requested.family, reason.code().0));
            requested.family = other;
            Some(other)
        });
        match other {
            Some(family) => self.open_fresh(id, id, family),
            None => self.fail_opening(now, id, reason),
        }
    }

    fn on_additional_opened(
        &mut self,
        now: Now,
        id: AllocationId,
        socket: AllocationId,
        result: Result<OpenedRelay, RejectReason>,
    ) {
        let Some(opening) = self.openings.get_mut(id) else { return };
        let Stage::Additional { first, .. } = opening.stage else { return };
        let additional = match result {
            Ok(opened) => Some((socket, opened.relayed)),
            Err(reason) => {
                let requested = &mut opening.requested;
                requested.refused = requested.additional.map(|family| (family, reason.code().0));
                self.table.unreserve(socket);
                None
            }
        };
        self.complete(now, id, OpenedRelay { relayed: first, held: None }, additional);
    }

    /// All that was asked for is open: the allocation lives.
    // [8656-7.2-21]
    fn complete(
        &mut self,
        now: Now,
        id: AllocationId,
        opened: OpenedRelay,
        additional: Option<(AllocationId, RelayedTransportAddress)>,
    ) {
        let Some(opening) = self.openings.remove(id) else { return };
        let token = self.hold(now, &opening, opened.held);
        let RequestedAllocation { lifetime, refused, is_mobile, is_tcp, .. } = opening.requested;
        let origin = Origin { transaction_id: opening.transaction_id, lifetime, token, refused };
        let key = opening.key();
        self.sessions += 1;
        let session = SessionId { instance: self.instance, number: self.sessions };
        let mut allocation =
            Allocation::new(id, session, opening.via, opened.relayed, opening.owner, origin, now.ticks);
        if let Some((socket, relayed)) = additional {
            allocation.add_address(socket, relayed);
        }
        if is_mobile == Some(true) {
            allocation.make_mobile();
            self.shared.set_worker(session, self.worker);
        }
        if is_tcp == Some(true) {
            allocation.make_tcp();
        }
        allocation.plan_interim(self.settings.interim_seconds, now.ticks);
        allocation.plan_close(&self.settings.auth, now);
        allocation.armed_at = allocation.wakes_at();
        self.timers.arm(allocation.armed_at, Due::Allocation(id.index));
        self.cold_pool.prepare();
        let created = Event::AllocationCreated(allocation.write_record(now, None));
        self.table.insert(allocation);
        let via = opening.via;
        self.counters.created.add(1);
        self.counters.live(via.five_tuple().transport, opened.relayed.family()).add(1);
        let relayed = std::iter::once(opened.relayed).chain(additional.map(|(_, relayed)| relayed));
        let ticket = (is_mobile == Some(true)).then(|| self.first_ticket(session));
        let answer = AllocateAnswer { origin, ticket, fingerprint: opening.fingerprint };
        self.answer_allocate(via, relayed, &answer, &key);
        self.outputs.push_back(Output::Happened(created));
    }

    /// Keeps the next port for 30 seconds under the token that was drawn for it.
    fn hold(&mut self, now: Now, opening: &Opening, held: Option<RelayedTransportAddress>) -> Option<ReservationToken> {
        let (token, relayed) = match (opening.holds, held) {
            (Some(token), Some(relayed)) => (token, relayed),
            (holds, held) => {
                // The shell opened something else than it was asked for.
                holds.into_iter().for_each(|token| self.shared.release_reservation(now, token));
                self.outputs.extend(held.map(|relayed| Output::CloseReserved { relayed }));
                return None;
            }
        };
        let expires_at = now.ticks.plus_seconds(RESERVATION_LIFETIME);
        self.timers.arm(expires_at, token.into());
        let reservation =
            Reservation { relayed, expires_at, identity: opening.owner.full_identity(), via: opening.via };
        self.reservations.insert(token, reservation);
        Some(token)
    }

    /// Ends an opening that came to nothing, and tells the client.
    pub(super) fn fail_opening(&mut self, now: Now, id: AllocationId, reason: RejectReason) {
        self.answer_failed_opening(id, reason);
        self.forget_opening(now, id);
    }

    fn answer_failed_opening(&mut self, id: AllocationId, reason: RejectReason) {
        let Some(opening) = self.openings.get(id) else { return };
        let (via, fingerprint, key) = (opening.via, opening.fingerprint, opening.key());
        let head = (METHOD_ALLOCATE, opening.transaction_id);
        let username = Some(opening.owner.username().into());
        let elsewhere = self.elsewhere_if_full(&via, reason);
        let reason = elsewhere.as_ref().map_or(reason, |_| RejectReason::Redirected);
        let mut value = [0; 20];
        let attributes = elsewhere.as_ref().map(|(address, domain)| alternate(*address, domain.as_deref(), &mut value));
        self.counters.rejected(reason);
        self.reply_error(via, head, fingerprint, reason, &attributes.unwrap_or_default(), Some(&key));
        self.outputs.push_back(Output::Happened(Event::Refused { via, reason, username }));
    }

    /// New limits hold for those too who were let in under the old ones and have no relayed address yet.
    pub(super) fn meter_openings_anew(&mut self, limits: &Limits) {
        for opening in self.openings.iter_mut().filter(|opening| !opening.stage.is_admission()) {
            let claim = opening.owner.claim(&opening.via);
            let meters = self.shared.meters(&claim, opening.owner.counted(), limits, &opening.owner.meters());
            opening.owner.set_meters(meters);
        }
    }

    /// Refuses what these were about to begin.
    pub(super) fn give_up_openings_of(&mut self, now: Now, subject: &Subject) {
        for id in self.openings.ids(|opening| subject.includes(&opening.owner.subject())) {
            self.fail_opening(now, id, RejectReason::Revoked);
        }
    }

    /// Refuses what clients with a link-local address were about to begin, and closes what is held for them.
    pub(super) fn give_up_link_local(&mut self, now: Now) {
        for id in self.openings.ids(|opening| opening.via.is_link_local()) {
            self.fail_opening(now, id, RejectReason::Draining);
        }
        let held = self.reservations.to_state().into_iter().filter(|(_, reservation)| reservation.via.is_link_local());
        for (token, _) in held {
            self.on_reservation_expired(now, token);
        }
    }

    /// Refuses what clients were about to begin with addresses of both families.
    pub(super) fn give_up_dual(&mut self, now: Now) {
        for id in self.openings.ids(|opening| opening.requested.additional.is_some()) {
            self.fail_opening(now, id, RejectReason::Draining);
        }
    }

    /// Refuses what clients were about to begin that may change their network.
    pub(super) fn give_up_mobile(&mut self, now: Now) {
        for id in self.openings.ids(|opening| opening.requested.is_mobile == Some(true)) {
            self.fail_opening(now, id, RejectReason::Draining);
        }
    }

    /// Refuses the TCP allocations that clients were about to begin.
    pub(super) fn give_up_tcp(&mut self, now: Now) {
        for id in self.openings.ids(|opening| opening.requested.is_tcp == Some(true)) {
            self.fail_opening(now, id, RejectReason::Draining);
        }
    }

    /// Refuses what clients were about to begin that prove themselves by SHA-256.
    pub(super) fn give_up_sha256(&mut self, now: Now) {
        for id in self
            .openings
            .ids(|opening| opening.integrity != ReplyIntegrity::Sha1 || opening.owner.sha256_key().is_some())
        {
            self.fail_opening(now, id, RejectReason::Draining);
        }
    }

    /// Refuses what clients of other realms than the server's own were about to begin.
    pub(super) fn give_up_other_realms(&mut self, now: Now) {
        for id in self.openings.ids(|opening| opening.owner.realm().is_some()) {
            self.fail_opening(now, id, RejectReason::Draining);
        }
    }

    /// Refuses what was about to begin and closes what is held: nothing may start after the end of all.
    pub(super) fn give_up_openings(&mut self, now: Now) {
        for id in self.openings.ids(|_| true) {
            self.fail_opening(now, id, RejectReason::Draining);
        }
        for token in self.reservations.tokens() {
            self.on_reservation_expired(now, token);
        }
    }

    /// Ends an opening and gives back what was counted for it: now, or when the quotas have answered.
    pub(super) fn forget_opening(&mut self, now: Now, id: AllocationId) {
        let Some(opening) = self.openings.get(id) else { return };
        if opening.stage.is_admission() {
            return self.openings.abandon(id);
        }
        let Some(opening) = self.openings.remove(id) else { return };
        if let Stage::Additional { socket, first } = opening.stage {
            self.outputs.push_back(Output::CloseRelay { allocation: id, relayed: first, client: None });
            self.table.unreserve(socket);
        }
        self.table.unreserve(id);
        self.shared.release(now, &opening.owner.claim(&opening.via), opening.owner.counted());
        opening.holds.into_iter().for_each(|token| self.shared.release_reservation(now, token));
    }
}

/// What is sent to a client of Teredo or 6to4 leaves by a tunnel, which may bring it back (RFC 8656 §21.4). [8656-21.4-2]
fn check_no_tunnel(via: &Via) -> Result<(), RejectReason> {
    if is_tunnelled(via.five_tuple().client.ip()) { Err(RejectReason::TunnelledClient) } else { Ok(()) }
}

/// Which families an Allocate request gets.
struct Families {
    family: Family,
    additional: Option<Family>,
    refused: Option<(Family, u16)>,
}

impl Families {
    const fn one(family: Family) -> Self {
        Self { family, additional: None, refused: None }
    }
}

/// What the client hears of a socket that was not opened.
// [8656-7.2-8, -14, -16]
const fn reason_of(refused: RelayRefused) -> RejectReason {
    match refused {
        RelayRefused::NotHeld => RejectReason::BadReservation,
        RelayRefused::NoPort => RejectReason::NoPort,
        RelayRefused::NoAddress => RejectReason::NoRelayAddress,
        RelayRefused::NoFiles => RejectReason::NoFiles,
        RelayRefused::System => RejectReason::SystemRefused,
    }
}

/// (6), (8), (9): what ADDITIONAL-ADDRESS-FAMILY must not stand beside. It asks for an IPv6 address beside the IPv4 one.
// [8656-7.2-9, -13, -15, 8656-18.11-1]
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
