//! A client changes its network and keeps its allocation (RFC 8016): a Refresh with a ticket from the new address, the
//! first data that come from there, and what workers do for each other then.
//!
//! Until then the new way waits beside the old one ([`PendingPath`]), and data go the old way. Decision 0208.

use std::sync::Arc;

use super::Server;
use super::allocation::{Allocation, AllocationState};
use super::auth::Authenticated;
use super::border::{Answer, Event, InHand, Output, PacketMeta, Question, Relay};
use super::ids::{AllocationId, QuestionId, SessionId, WorkerId};
use super::mobility::{LastMove, LeftPath, OLD_TICKET_LIFETIME, PendingPath, at_home, seen_from};
use super::mobility_ticket::{TICKET_BYTES, Ticket};
use super::nonce::Verdict;
use super::paths::{PATH_HOPS_MAX, PathAnswer, PathQuestion};
use super::reason::{DropReason, EndReason};
use super::refresh::Refresh;
use super::reject::RejectReason;
use super::timer::Due;
use crate::address::{Family, Via};
use crate::time::{Now, Ticks};
use crate::wire::attribute::ATTR_LIFETIME;
use crate::wire::message::{ATTR_MOBILITY_TICKET, Known, METHOD_REFRESH, Message};

/// Milliseconds between two records of moves of one allocation: a client that goes to and fro must not fill the sinks that
/// all share.
const RECORDED_EVERY: u64 = 10_000;

/// What a Refresh with a ticket comes to.
enum Checked {
    /// The client will come this way.
    Move(Refresh),
    /// A retransmission of the request that said so.
    Again { session: SessionId, rotation: u32, lifetime: u32 },
}

impl Server {
    // ---- the ticket

    /// The ticket that an allocation's client was given with the answer to Allocate.
    pub(super) fn first_ticket(&self, session: SessionId) -> [u8; TICKET_BYTES] {
        self.tickets.seal(Ticket { session, rotation: 0 })
    }

    /// What MOBILITY-TICKET in an Allocate means.
    // [8016-3.1.2-1, -2]
    pub(super) fn check_mobility_wish(&self, message: &Message<'_>) -> Result<Option<bool>, RejectReason> {
        match message.get(Known::MobilityTicket) {
            None => Ok(None),
            Some(_) if !self.settings.mobility => Err(RejectReason::MobilityForbidden),
            Some([]) => Ok(Some(true)),
            Some(_) => Err(RejectReason::BadTicket),
        }
    }

    /// The allocation of the ticket in a Refresh, whose owner may be who sends it from elsewhere.
    // [8016-5-3, -4]
    pub(super) fn of_ticket(&self, message: &Message<'_>) -> Option<&Allocation> {
        let is_refresh = message.message_type().method == METHOD_REFRESH && self.settings.mobility;
        let ticket = message.get(Known::MobilityTicket).filter(|_| is_refresh)?;
        self.table.of_session(self.tickets.open(ticket)?.session)
    }

    /// A Refresh with a ticket (RFC 8016 section 3.2.2).
    pub(super) fn on_mobile_refresh(&mut self, now: Now, via: Via, request: &Authenticated<'_>, ticket: &[u8]) {
        let (session, rotation, lifetime) = match self.check_move(now, &via, request, ticket) {
            Ok(Checked::Again { session, rotation, lifetime }) => (session, rotation, lifetime),
            Ok(Checked::Move(refresh)) => {
                let lifetime = refresh.lifetime;
                self.carry_out(now, &refresh);
                let last = LastMove {
                    transaction_id: request.message().transaction_id(),
                    via,
                    lifetime,
                    known_until: now.ticks.plus_seconds(OLD_TICKET_LIFETIME),
                };
                let Some((session, rotation)) = self.expect(now, refresh.id, last) else {
                    return self.reply_success(via, request, &[(ATTR_LIFETIME, &lifetime.to_be_bytes())]);
                };
                (session, rotation, lifetime)
            }
            Err(reason) => return self.reject(via, request.message(), reason, Some(request.key())),
        };
        let ticket = self.tickets.seal(Ticket { session, rotation });
        let attributes: [(_, &[u8]); 2] = [(ATTR_LIFETIME, &lifetime.to_be_bytes()), (ATTR_MOBILITY_TICKET, &ticket)];
        self.reply_success(via, request, &attributes);
    }

    // [8016-3.2.2-1, -2, -3, -4, -5, -8]
    fn check_move(
        &self,
        now: Now,
        via: &Via,
        request: &Authenticated<'_>,
        ticket: &[u8],
    ) -> Result<Checked, RejectReason> {
        if !self.settings.mobility {
            return Err(RejectReason::MobilityForbidden);
        }
        let ticket = self.tickets.open(ticket).ok_or(RejectReason::BadTicket)?;
        let allocation = self.table.of_session(ticket.session).filter(|allocation| now.ticks < allocation.expires_at);
        let (allocation, mobility) = allocation
            .and_then(|allocation| Some((allocation, allocation.mobility()?)))
            .ok_or(RejectReason::NoAllocation)?;
        if !request.is_owner() {
            return Err(RejectReason::WrongUser);
        }
        let again = |last: &&LastMove| {
            let is_known = now.ticks < last.known_until && ticket.rotation.wrapping_add(1) == mobility.rotation;
            is_known && last.via == *via && last.transaction_id == request.message().transaction_id()
        };
        if let Some(last) = mobility.last.as_ref().filter(again) {
            let (session, rotation) = (ticket.session, mobility.rotation);
            return Ok(Checked::Again { session, rotation, lifetime: last.lifetime });
        }
        if ticket.rotation != mobility.rotation {
            return Err(RejectReason::OldTicket);
        }
        // Where the ticket was given out.
        if mobility.pending.map_or_else(|| allocation.comes(via), |path| path.via == *via) {
            return Err(RejectReason::SameFiveTuple);
        }
        // Another allocation's, or one that is about to begin.
        let is_other = self.table.by_path(via).is_some_and(|other| other.id != allocation.id);
        if is_other || self.openings.of_client(via).is_some() {
            return Err(RejectReason::AllocationExists);
        }
        self.check_client(now, via, &allocation.owner)?;
        let tenant = self.settings.tenancies.of(via.five_tuple()).and_then(|of| of.tenant.as_deref());
        if tenant.zip(allocation.owner.tenant()).is_some_and(|(listener, own)| listener != own) {
            return Err(RejectReason::OtherTenant);
        }
        self.check_refresh_of(allocation, request.message()).map(Checked::Move)
    }

    /// The client will come this way; the session and the rotation of its new ticket, unless the allocation has just ended.
    // [8016-3.2.2-6, -7]
    fn expect(&mut self, now: Now, id: AllocationId, last: LastMove) -> Option<(SessionId, u32)> {
        let (me, worker) = (self.worker, self.asker.unwrap_or(self.worker));
        let allocation = self.table.get_mut(id)?;
        // It comes back to where its data go.
        let is_back = allocation.comes(&last.via);
        let session = allocation.session;
        let mobility = allocation.mobility_mut()?;
        mobility.rotation = mobility.rotation.wrapping_add(1);
        mobility.last = Some(last);
        let (rotation, is_waiting) = (mobility.rotation, mobility.is_waiting.is_some());
        let path = (!is_back).then_some(PendingPath { via: last.via, worker });
        self.forget_pending(id);
        self.table.set_pending(id, path);
        if path.is_some() && worker == me {
            self.outputs.push_back(Output::Path { via: last.via, is_in_use: true });
            if is_waiting {
                self.switch(now, id);
            }
        }
        Some((session, rotation))
    }

    /// The client will not come the way that it announced.
    pub(super) fn forget_pending(&mut self, id: AllocationId) {
        if let Some(PendingPath { via, worker }) = self.table.set_pending(id, None) {
            if worker == self.worker {
                self.outputs.push_back(Output::Path { via, is_in_use: false });
            } else {
                self.ask_path(worker, PathQuestion::Forget { via: at_home(via) });
            }
        }
    }

    // ---- the move

    /// The client has come the way that it announced: that is the allocation's from now on, and the one before is free.
    // [8016-3.2.2-7]
    #[cold]
    fn switch(&mut self, now: Now, id: AllocationId) {
        let Some(path) = self.table.get(id).and_then(Allocation::pending) else { return };
        self.tell_left(now, id);
        self.table.set_pending(id, None);
        let Some(left) = self.table.set_via(id, path.via) else { return };
        let Some(allocation) = self.table.get_mut(id) else { return };
        let family = allocation.family();
        if let Some(mobility) = allocation.mobility_mut() {
            mobility.left = Some(LeftPath { via: left, at: now.ticks });
        }
        self.counters.live(left.five_tuple().transport, family).sub(1);
        self.counters.live(path.via.five_tuple().transport, family).add(1);
        self.counters.moves.add(1);
        // It is told when the loop comes to its deadlines.
        self.rearm(id);
    }

    /// Tells of the last move, if it was not told yet.
    pub(super) fn tell_left(&mut self, now: Now, id: AllocationId) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        let Some(left) = allocation.mobility_mut().and_then(|mobility| mobility.left.take()) else { return };
        let from = left.via;
        self.outputs.push_back(Output::Path { via: from, is_in_use: false });
        self.record_move(now, id, from);
    }

    /// Writes a record of a move, unless one was written a moment ago: the next record has the client's address too.
    fn record_move(&mut self, now: Now, id: AllocationId, from: Via) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        let Some(mobility) = allocation.mobility_mut() else { return };
        if mobility.recorded_at.is_some_and(|at| now.ticks.since(at) < RECORDED_EVERY) {
            return;
        }
        mobility.recorded_at = Some(now.ticks);
        let record = allocation.write_record(now, None);
        self.outputs.push_back(Output::Happened(Event::AllocationMoved { record, from }));
    }

    /// Data came by a way that is no allocation's: perhaps a client has changed its network.
    #[cold]
    pub(super) fn data_on_other_path<'a>(
        &mut self,
        now: Now,
        via: &Via,
        meta: PacketMeta,
        bytes: &'a [u8],
    ) -> Relay<'a> {
        let live = self.table.by_pending(via).filter(|allocation| now.ticks < allocation.expires_at);
        if let Some(id) = live.map(|allocation| allocation.id) {
            self.switch(now, id);
            return self.judge_from_client(now, via, meta, bytes);
        }
        let is_foreign = self.foreign.session(via).is_some();
        if let Some(number) = self.foreign.want(via, now.ticks) {
            self.timers.arm(now.ticks, Due::Path(number));
        }
        let why = if is_foreign { DropReason::Moving } else { DropReason::NoAllocation };
        self.drop_unknown(why, bytes.len())
    }

    /// The client has closed the stream by which its data go, or the one by which it meant to come.
    // [8016-3.2.2-7]
    pub(super) fn on_path_closed(&mut self, now: Now, via: &Via) {
        if let Some(session) = self.forget_path(via)
            && let Some(worker) = self.shared.worker_of(session)
        {
            self.ask_path(worker, PathQuestion::Gone { session, via: *via });
        }
        if let Some(id) = self.table.by_pending(via).map(|allocation| allocation.id) {
            self.forget_pending(id);
        }
        let Some(allocation) = self.table.by_via(via) else { return };
        let (id, pending) = (allocation.id, allocation.pending());
        match pending {
            Some(path) if path.worker == self.worker => self.switch(now, id),
            _ if allocation.mobility().is_none() || !self.settings.mobility => {
                self.end(now, id, EndReason::ClientClosed);
            }
            Some(PendingPath { via, worker }) => {
                // It was just granted a lifetime.
                self.set_waiting(id);
                self.ask_path(worker, PathQuestion::Fetch { via: at_home(via) });
            }
            None => self.wait(now, id),
        }
    }

    /// An allocation waits for its client, for as long as one that was just made would.
    fn wait(&mut self, now: Now, id: AllocationId) {
        let latest = now.ticks.plus_seconds(u64::from(self.settings.default_lifetime));
        self.set_waiting(id);
        let Some(allocation) = self.table.get_mut(id) else { return };
        allocation.expires_at = allocation.expires_at.min(latest);
        self.rearm(id);
    }

    fn set_waiting(&mut self, id: AllocationId) {
        if let Some(mobility) = self.table.get_mut(id).and_then(Allocation::mobility_mut) {
            mobility.is_waiting = Some(true);
        }
    }

    /// Whether the allocation of a stream outlives it.
    #[must_use]
    pub fn outlives_stream(&self, via: &Via) -> bool {
        self.settings.mobility && self.table.by_via(via).is_some_and(|allocation| allocation.mobility().is_some())
    }

    // ---- between workers: where the client comes

    fn ask_path(&mut self, worker: WorkerId, question: PathQuestion) {
        let ticket = QuestionId { worker: self.worker, number: 0 };
        self.outputs.push_back(Output::Ask { worker, ticket, question: Question::Path(question) });
    }

    /// Gives a request to the worker whose allocation it is about, if it is not this one, and the client is one whose address is
    /// proven; all others are answered here.
    pub(super) fn pass_on(&mut self, now: Now, via: &Via, message: &Message<'_>) -> bool {
        let known = self.foreign.session(via);
        let Some(session) = known.or_else(|| self.of_foreign_ticket(via, message)) else { return false };
        if self.asker.is_some() || !self.has_own_nonce(now, via, message) {
            return false;
        }
        let Some(worker) = self.shared.worker_of(session) else {
            self.forget_path(via);
            return false;
        };
        let bytes = message.bytes();
        if self.foreign.take_question(now.ticks, *via, session) {
            self.ask_path(worker, PathQuestion::Request { session, via: *via, bytes: bytes.into(), hops: 0 });
        } else {
            self.drop_unknown(DropReason::Moving, bytes.len());
        }
        true
    }

    /// Whether a request is signed, and has a nonce that was given to this very address.
    fn has_own_nonce(&self, now: Now, via: &Via, message: &Message<'_>) -> bool {
        let lifetime = self.settings.auth.nonce_lifetime;
        message.has_integrity()
            && message.get(Known::Nonce).is_some_and(|nonce| {
                self.nonces.check(now.unix, lifetime, via.five_tuple(), nonce).0 != Verdict::Foreign
            })
    }

    /// The session of the ticket in a Refresh, if it is of another worker.
    fn of_foreign_ticket(&self, via: &Via, message: &Message<'_>) -> Option<SessionId> {
        if message.message_type().method != METHOD_REFRESH || !self.settings.mobility {
            return None;
        }
        let session = self.tickets.open(message.get(Known::MobilityTicket)?)?.session;
        (self.table.of_session(session).is_none() && !self.has_allocation(via)).then_some(session)
    }

    /// A way that is due: data came by it, or its time is over.
    pub(super) fn on_path_due(&mut self, now: Now, number: u64) {
        let Some((via, expires_at)) = self.foreign.at(number) else { return };
        if let Some(session) = self.foreign.wanted(&via) {
            match self.shared.worker_of(session) {
                Some(worker) if self.foreign.take_question(now.ticks, via, session) => {
                    self.foreign.set_asked(&via, Some(now.ticks));
                    self.ask_path(worker, PathQuestion::Move { session, via, hops: 0 });
                }
                Some(_) => self.foreign.set_asked(&via, None),
                None => drop(self.forget_path(&via)),
            }
        } else if expires_at <= now.ticks {
            if self.foreign.is_coming(&via, now.ticks) {
                self.note_path(via, None, now.ticks.plus_seconds(1));
            } else {
                self.forget_path(&via);
            }
        }
    }

    /// Notes a way of a client whose allocation is another worker's.
    fn note_path(&mut self, via: Via, session: Option<SessionId>, expires_at: Ticks) {
        let Some(session) = session.or_else(|| self.foreign.session(&via)) else { return };
        let (before, (at, number)) = self.foreign.note(via, session, expires_at);
        match before {
            Some((before, number)) => self.timers.disarm(before, Due::Path(number)),
            None => self.outputs.push_back(Output::Path { via, is_in_use: true }),
        }
        self.timers.arm(at, Due::Path(number));
    }

    /// Forgets such a way; tells whose it was.
    fn forget_path(&mut self, via: &Via) -> Option<SessionId> {
        let (session, (at, number)) = self.foreign.remove(via)?;
        self.timers.disarm(at, Due::Path(number));
        self.outputs.push_back(Output::Path { via: *via, is_in_use: false });
        Some(session)
    }

    pub(super) fn on_path_answer(&mut self, now: Now, answer: PathAnswer) {
        match answer {
            PathAnswer::Request { via, bytes, path } => {
                self.foreign.answered(&via);
                self.on_path_told(now, via, path);
                if !bytes.is_empty() {
                    self.outputs.push_back(Output::Reply { via, bytes: bytes.into() });
                }
            }
            PathAnswer::Moved { via, allocation } => {
                self.foreign.answered(&via);
                match allocation {
                    Some((from, state)) => {
                        let session = state.session;
                        self.on_arrival(now, via, from, *state);
                        self.answer_waiting(now, session);
                    }
                    None => drop(self.forget_path(&via)),
                }
            }
            PathAnswer::NoRoom { via } => {
                self.foreign.answered(&via);
                self.foreign.set_asked(&via, None);
            }
        }
    }

    /// The worker of an allocation says whether its client comes this way.
    fn on_path_told(&mut self, now: Now, via: Via, path: Option<(SessionId, Ticks)>) {
        match path {
            // It is this worker's by now.
            _ if self.table.by_path(&via).is_some() => {}
            Some((session, _)) if self.openings.of_client(&via).is_some() => {
                if let Some(worker) = self.shared.worker_of(session) {
                    self.ask_path(worker, PathQuestion::Gone { session, via });
                }
            }
            Some((session, expires_at)) => self.note_path(via, Some(session), expires_at),
            // What is on its way here comes all the same.
            None if self.foreign.is_coming(&via, now.ticks) => {}
            None => drop(self.forget_path(&via)),
        }
    }

    /// An allocation comes from another worker, with its client.
    fn on_arrival(&mut self, now: Now, via: Via, from: Via, mut state: AllocationState) {
        self.counters.arrived.add(1);
        let had_path = self.foreign.remove(&via);
        match had_path {
            Some((_, (at, number))) => self.timers.disarm(at, Due::Path(number)),
            None => self.outputs.push_back(Output::Path { via, is_in_use: true }),
        }
        if self.has_allocation(&via) {
            return self.end_on_arrival(now, state);
        }
        state.id = self.table.reserve();
        if let Some(additional) = &mut state.additional
            && additional.socket.is_some()
        {
            additional.socket = Some(self.table.reserve());
        }
        let (id, session) = (state.id, state.session);
        let keep = |(allocation, relayed)| Output::KeepRelay { allocation, relayed, via };
        self.outputs.extend(state.sockets().map(keep));
        self.counters.live(via.five_tuple().transport, Family::of(state.relayed.ip())).add(1);
        self.counters.moves.add(1);
        self.take_in(state);
        let settings = Arc::clone(&self.settings);
        let Some(allocation) = self.table.get_mut(id) else { return };
        // What was configured while it was on its way.
        allocation.rejudge(self.secret, |ip| settings.peers.judge(ip));
        allocation.plan_close(&settings.auth, now);
        let is_revoked = self.shared.is_revoked(&allocation.owner.subject(), now.unix);
        self.record_move(now, id, from);
        debug_assert_eq!(self.shared.worker_of(session).unwrap_or(self.worker), self.worker);
        match self.closed.or(is_revoked.then_some(EndReason::Revoked)) {
            Some(reason) => self.end(now, id, reason),
            None => self.rearm(id),
        }
    }

    /// Its client has got another allocation there meanwhile.
    fn end_on_arrival(&mut self, now: Now, state: AllocationState) {
        let mut allocation = Allocation::from_state(state, self.secret);
        self.shared.unset_worker(allocation.session, self.worker);
        self.shared.release(now, &allocation.claim(), allocation.owner.counted());
        self.counters.ended[EndReason::ClientClosed as usize].add(1);
        self.outputs.extend(allocation.sockets().map(|(_, relayed)| Output::CloseReserved { relayed }));
        let record = allocation.write_record(now, Some(EndReason::ClientClosed));
        self.outputs.push_back(Output::Happened(Event::AllocationEnded(record)));
    }

    // ---- between workers: where the allocation is

    pub(super) fn on_path_question(&mut self, now: Now, ticket: QuestionId, question: PathQuestion) {
        match question {
            PathQuestion::Request { session, .. } | PathQuestion::Move { session, .. }
                if self.table.of_session(session).is_none() =>
            {
                self.ask_where_it_is(now, ticket, session, question);
            }
            PathQuestion::Request { via, bytes, .. } => self.on_passed_on(now, ticket, via, &bytes),
            PathQuestion::Move { session, via, .. } => self.give_away(now, ticket, session, via),
            PathQuestion::Fetch { via } => {
                if let Some(number) = self.foreign.want(&via, now.ticks) {
                    self.on_path_due(now, number);
                }
            }
            PathQuestion::Forget { via } => {
                if !self.foreign.is_coming(&via, now.ticks) {
                    self.forget_path(&via);
                }
            }
            PathQuestion::Gone { session, via } => {
                let seen = seen_from(self.worker, ticket.worker, via);
                let meant =
                    self.table.of_session(session).filter(|of| of.pending().is_some_and(|path| path.via == seen));
                if let Some(id) = meant.map(|allocation| allocation.id) {
                    self.table.set_pending(id, None);
                }
            }
        }
    }

    /// It has gone on to another worker, and the question follows it; or it is on its way here, and the question waits for it.
    fn ask_where_it_is(&mut self, now: Now, ticket: QuestionId, session: SessionId, question: PathQuestion) {
        let worker = self.shared.worker_of(session);
        if worker == Some(self.worker) {
            return self.wait_for_arrival(now, ticket, session, question);
        }
        if worker.is_some() && question.hops() >= PATH_HOPS_MAX {
            // The client moves faster than a question goes.
            return self.give_up_question(ticket, &question);
        }
        let question = match question {
            PathQuestion::Request { via, bytes, hops, .. } => {
                PathQuestion::Request { session, via, bytes, hops: hops + 1 }
            }
            PathQuestion::Move { via, hops, .. } => PathQuestion::Move { session, via, hops: hops + 1 },
            other @ (PathQuestion::Fetch { .. } | PathQuestion::Forget { .. } | PathQuestion::Gone { .. }) => other,
        };
        match (worker, question) {
            (Some(worker), question) => {
                self.outputs.push_back(Output::Ask { worker, ticket, question: Question::Path(question) });
            }
            (None, PathQuestion::Request { via, bytes, .. }) => self.on_passed_on(now, ticket, via, &bytes),
            (None, question) => self.answer_moved(ticket, question.via(), None),
        }
    }

    /// Another worker has given it away, and its message is not here yet.
    fn wait_for_arrival(&mut self, now: Now, ticket: QuestionId, session: SessionId, question: PathQuestion) {
        if let Some(question) = self.foreign.wait(now.ticks, ticket, session, question) {
            self.give_up_question(ticket, &question);
        }
    }

    /// The client sends again what it has brought.
    fn give_up_question(&mut self, ticket: QuestionId, question: &PathQuestion) {
        self.drop_unknown(DropReason::Moving, question.bytes());
        let answer = Answer::Path(PathAnswer::NoRoom { via: question.via() });
        self.outputs.push_back(Output::Answer { ticket, answer });
    }

    /// Answers what waited for a session that has just come.
    fn answer_waiting(&mut self, now: Now, session: SessionId) {
        for (ticket, question) in self.foreign.take_waiting(session) {
            self.on_path_question(now, ticket, question);
        }
    }

    fn answer_moved(&mut self, ticket: QuestionId, via: Via, allocation: Option<(Via, Box<AllocationState>)>) {
        let answer = Answer::Path(PathAnswer::Moved { via, allocation });
        self.outputs.push_back(Output::Answer { ticket, answer });
    }

    /// Handles a request that came to another worker, as if it had come here; the answer leaves there.
    fn on_passed_on(&mut self, now: Now, ticket: QuestionId, via: Via, bytes: &[u8]) {
        let seen = seen_from(self.worker, ticket.worker, via);
        self.in_hand = InHand::Message(seen);
        self.asker = Some(ticket.worker);
        let before = self.outputs.len();
        self.on_message(now, seen, bytes);
        self.asker = None;
        let is_answer = |output: &Output| matches!(output, Output::Reply { via, .. } if *via == seen);
        let at = self.outputs.iter().skip(before).position(is_answer);
        let answer = match at.and_then(|at| self.outputs.remove(before + at)) {
            Some(Output::Reply { bytes, .. }) => bytes,
            _ => Vec::new(),
        };
        let of_path = self.table.by_pending(&seen);
        let path = of_path.map(|allocation| (allocation.session, allocation.expires_at));
        let is_waiting = of_path.and_then(Allocation::mobility).is_some_and(|mobility| mobility.is_waiting.is_some());
        let answer = PathAnswer::Request { via, bytes: answer.into(), path };
        self.outputs.push_back(Output::Answer { ticket, answer: Answer::Path(answer) });
        if is_waiting && ticket.worker != self.worker {
            self.ask_path(ticket.worker, PathQuestion::Fetch { via });
        }
    }

    /// The allocation of a session, if its client has announced that it would come this way to the worker that asks.
    fn to_give_away(&self, now: Now, ticket: QuestionId, session: SessionId, via: Via) -> Option<&Allocation> {
        let seen = seen_from(self.worker, ticket.worker, via);
        self.table.of_session(session).filter(|allocation| {
            now.ticks < allocation.expires_at && allocation.pending().is_some_and(|path| path.via == seen)
        })
    }

    /// How the client of an allocation comes that a question takes to another worker; `None` if it takes none.
    #[must_use]
    pub fn leaves_by(&self, now: Now, ticket: QuestionId, question: &Question) -> Option<Via> {
        let Question::Path(PathQuestion::Move { session, via, .. }) = question else { return None };
        self.to_give_away(now, ticket, *session, *via).map(Allocation::via)
    }

    /// Data came to another worker by the way that the client announced: the allocation goes there.
    fn give_away(&mut self, now: Now, ticket: QuestionId, session: SessionId, via: Via) {
        let seen = seen_from(self.worker, ticket.worker, via);
        let Some(id) = self.to_give_away(now, ticket, session, via).map(|allocation| allocation.id) else {
            return self.answer_moved(ticket, via, None);
        };
        self.tell_left(now, id);
        self.table.set_pending(id, None);
        let Some(mut allocation) = self.table.remove(id) else { return };
        self.forget_slot(&allocation);
        self.shared.set_worker(session, ticket.worker);
        let from = allocation.set_via(via);
        if let Some(last) =
            allocation.mobility_mut().and_then(|mobility| mobility.last.as_mut()).filter(|last| last.via == seen)
        {
            // As its new worker knows it.
            last.via = via;
        }
        self.answer_moved(ticket, via, Some((from, Box::new(allocation.to_state()))));
        self.cold_pool.take_back(allocation.into_aside());
        self.outputs.push_back(Output::Path { via: from, is_in_use: false });
    }

    fn forget_slot(&mut self, allocation: &Allocation) {
        self.timers.disarm(allocation.armed_at, Due::Allocation(allocation.id.index));
        self.counters.live(allocation.via().five_tuple().transport, allocation.family()).sub(1);
        self.counters.left.add(1);
    }

    /// An allocation could not be given to that worker: it is here as before. Its sockets were never closed; drain
    /// [`Server::poll_output`] afterwards. Must follow the output with the answer at once.
    pub fn come_back(&mut self, worker: WorkerId, from: Via, mut state: AllocationState) {
        let pending = PendingPath { via: seen_from(self.worker, worker, state.via), worker };
        if let Some(mobility) = &mut state.mobility {
            mobility.pending = Some(pending);
            if let Some(last) = mobility.last.as_mut().filter(|last| last.via == state.via) {
                last.via = pending.via;
            }
        }
        state.via = from;
        let is_free = state.sockets().all(|(socket, _)| self.table.reserve_exactly(socket));
        debug_assert!(is_free, "nothing has come between");
        self.counters.live(from.five_tuple().transport, Family::of(state.relayed.ip())).add(1);
        self.counters.left.sub(1);
        self.outputs.push_back(Output::Path { via: from, is_in_use: true });
        self.take_in(state);
    }
}
