//! One worker's TURN server: what it owns, and how inputs reach the handlers.
//!
//! The methods of [`Server`] that handle one kind of input stand in files of their own: `allocate`, `refresh`,
//! `create_permission`, `channel_bind`, `relay` (data), `review` (new settings), `redirect` (drain), `reply` (answers).

use std::collections::VecDeque;
use std::sync::Arc;

use super::accounting::{ColdStatePool, SessionRecord};
use super::allocation::Allocation;
use super::auth::{Authenticated, Refused, authenticate};
use super::authenticated::AuthenticatedClient;
use super::binding::{ANSWER_BYTES_MAX, BindingAnswer, answer, answer_classic};
use super::border::{InHand, Input, Output, Selector, Shared};
use super::connection::Connections;
use super::counters::Counters;
use super::failures::FailureRate;
use super::ids::{AllocationId, WorkerId};
use super::mobility_ticket::Tickets;
use super::nonce::Nonces;
use super::opening::Openings;
use super::packet_bucket::PacketRate;
use super::paths::ForeignPaths;
use super::random::{Random, TransactionIds};
use super::reason::{DropReason, EndReason};
use super::reject::RejectReason;
use super::reply_budget::ReplyRate;
use super::request_bucket::RequestRate;
use super::reservation::Reservations;
use super::review::Review;
use super::settings::Settings;
use super::table::AllocationTable;
use super::timer::{Due, Timers};
use crate::address::{FiveTuple, RelayedTransportAddress, Via};
use crate::fault;
use crate::time::{Now, Ticks, UnixSeconds};
use crate::wire::attribute::ReservationToken;
use crate::wire::behavior::is_wish;
use crate::wire::classic::ClassicRequest;
use crate::wire::integrity::{Fingerprint, check_fingerprint};
use crate::wire::message::{
    CLASS_REQUEST, METHOD_ALLOCATE, METHOD_BINDING, METHOD_CHANNEL_BIND, METHOD_CONNECT, METHOD_CONNECTION_BIND,
    METHOD_CREATE_PERMISSION, METHOD_REFRESH, Malformed, Message, MessageType, Method, TransactionId,
};

/// The longest message of the control lane, in bytes; what is longer is dropped unread. USERNAME, REALM, NONCE and
/// SOFTWARE of the greatest length (RFC 8489 section 14) leave room for a hundred peers.
pub const CONTROL_BYTES_MAX: usize = 4096;

/// One worker's TURN server.
pub struct Server {
    pub(super) worker: WorkerId,
    pub(super) workers: usize,
    pub(super) settings: Arc<Settings>,
    pub(super) shared: Arc<dyn Shared>,
    pub(super) counters: Arc<Counters>,
    pub(super) nonces: Nonces,
    pub(super) tickets: Tickets,
    pub(super) random: Random,
    pub(super) transaction_ids: TransactionIds,
    pub(super) table: AllocationTable,
    pub(super) openings: Openings,
    pub(super) reservations: Reservations,
    /// Ways of clients whose allocations are other workers'.
    pub(super) foreign: ForeignPaths,
    /// The worker whose client's request is being handled, if it is another one's.
    pub(super) asker: Option<WorkerId>,
    /// All allocations were ended, for this reason: those that are on their way from other workers end too.
    pub(super) closed: Option<EndReason>,
    pub(super) connections: Connections,
    /// Names this worker's sessions: drawn at its start, and counted.
    pub(super) instance: u64,
    pub(super) sessions: u64,
    pub(super) cold_pool: ColdStatePool,
    pub(super) timers: Timers,
    pub(super) review: Option<Review>,
    pub(super) outputs: VecDeque<Output>,
    /// Keys the indexes of allocations.
    pub(super) secret: u64,
    /// How many packets each allocation may pass.
    pub(super) packet_rate: PacketRate,
    /// How many requests the owner of an allocation may make on it.
    pub(super) request_rate: RequestRate,
    /// How many answers a network may have that proves nothing; `None` is no limit.
    pub(super) reply_rate: Option<ReplyRate>,
    /// How many wrong keys and user names a network may send; `None` is no limit.
    pub(super) failure_rate: Option<FailureRate>,
    pub(super) relay_ipv4: bool,
    pub(super) relay_ipv6: bool,
    pub(super) draining: bool,
    pub(super) in_hand: InHand,
}

/// Deadlines worked off in one call.
pub const DEADLINES_PER_CALL: usize = 64;

/// What a [`Server`] is made of besides its settings.
pub struct Parts {
    /// This worker's number.
    pub worker: WorkerId,
    /// How many workers there are.
    pub workers: usize,
    /// What spans the workers.
    pub shared: Arc<dyn Shared>,
    /// Where this worker counts.
    pub counters: Arc<Counters>,
    /// The key of nonces: the same on every worker, and on every server of a fleet.
    pub nonce_key: Box<[u8]>,
    /// The seed of tokens, ids and table hashes; secret in production, fixed in tests.
    pub seed: [u8; 32],
}

impl Server {
    /// A server without allocations.
    #[must_use]
    pub fn new(parts: Parts, settings: Arc<Settings>) -> Self {
        let mut random = Random::new(parts.seed);
        let seed = random.next_u64();
        let hasher = foldhash::fast::FixedState::with_seed(seed);
        let instance = random.next_u64();
        Self {
            worker: parts.worker,
            workers: parts.workers,
            shared: parts.shared,
            counters: parts.counters,
            nonces: Nonces::new(&parts.nonce_key),
            tickets: Tickets::new(&parts.nonce_key),
            transaction_ids: TransactionIds::new(random.seed()),
            secret: random.next_u64(),
            packet_rate: packet_rate(&settings),
            request_rate: request_rate(&settings),
            reply_rate: reply_rate(&settings),
            failure_rate: failure_rate(&settings),
            random,
            table: AllocationTable::new(seed),
            openings: Openings::new(&hasher),
            reservations: Reservations::new(&hasher),
            foreign: ForeignPaths::new(&hasher),
            asker: None,
            closed: None,
            connections: Connections::default(),
            instance,
            sessions: 0,
            cold_pool: ColdStatePool::default(),
            timers: Timers::default(),
            review: None,
            outputs: VecDeque::new(),
            relay_ipv4: settings.relay_ipv4,
            relay_ipv6: settings.relay_ipv6,
            draining: false,
            in_hand: InHand::Nothing,
            settings,
        }
    }

    /// Takes one input; drain [`Server::poll_output`] afterwards.
    pub fn handle_input(&mut self, now: Now, input: Input<'_>) {
        if let Input::Failed { via } = &input {
            // Before all else: what panicked may be due.
            return self.on_failed(now, via);
        }
        // What is over must not be seen by the input that comes after its end.
        self.end_what_is_due(now);
        self.in_hand = InHand::of(&input);
        if let Input::Message { via, .. } = &input {
            self.end_overdue(now, via);
        }
        match input {
            Input::Message { via, bytes } => self.on_message(now, via, bytes),
            Input::Admission { allocation, result } => self.on_admission(now, allocation, result),
            Input::RelayOpened { allocation, result } => self.on_relay_opened(now, allocation, result),
            Input::ClientClosed { via } => self.on_client_closed(now, &via),
            Input::Asked { ticket, question } => self.on_asked(now, ticket, question),
            Input::Answered { ticket, answer } => self.on_answered(now, ticket, answer),
            Input::Connected { connection, result } => self.on_connected(now, connection, result),
            Input::ConnectionEnded { connection } => self.on_connection_ended(connection),
            Input::Reconfigure(settings) => self.on_reconfigure(now, settings),
            Input::Drain => self.draining = true,
            Input::Close { which, reason } => self.on_close(now, &which, reason),
            Input::CloseAll(reason) => self.on_close_all(now, reason),
            Input::Failed { .. } => {}
        }
        self.in_hand = InHand::Nothing;
    }

    /// Does what is due at `now`, up to [`DEADLINES_PER_CALL`] of it, and a bounded piece of what a reconfiguration left to
    /// do. What is left stays due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.end_what_is_due(now);
        self.go_on_with_review(now);
    }

    /// What it is doing; after a panic, what it was doing.
    #[must_use]
    pub const fn in_hand(&self) -> InHand {
        self.in_hand
    }

    /// Whose allocation or request that is.
    #[must_use]
    pub fn client_in_hand(&self) -> Option<Via> {
        match self.in_hand {
            InHand::Nothing => None,
            InHand::Message(via) | InHand::DataFromClient(via) => Some(via),
            InHand::DataFromPeer(id) | InHand::Deadline(id) | InHand::Answer(id) => {
                let waiting = self.openings.of_additional(id).unwrap_or(id);
                let opening = || self.openings.get(waiting).map(|opening| opening.via);
                self.table.by_socket(id).map(Allocation::via).or_else(opening)
            }
        }
    }

    /// The shell goes on to something that is no client's.
    #[inline]
    pub const fn put_down(&mut self) {
        self.in_hand = InHand::Nothing;
    }

    /// The settings that hold.
    #[must_use]
    pub const fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Thousands of allocations whose clients vanished together end together too, and no other client should wait for that.
    pub(super) fn end_what_is_due(&mut self, now: Now) {
        for _ in 0..DEADLINES_PER_CALL {
            let Some(due) = self.timers.pop(now.ticks) else { return };
            match due {
                Due::Allocation(slot) => {
                    self.in_hand = self.table.at(slot).map_or(InHand::Nothing, |of| InHand::Deadline(of.id));
                    self.on_allocation_due(now, slot);
                    self.in_hand = InHand::Nothing;
                }
                Due::Reservation(token) => self.on_reservation_expired(now, ReservationToken(token)),
                Due::Question(number) => self.on_question_overdue(now, number),
                Due::Admission(id) => self.on_admission_overdue(id),
                Due::Path(number) => self.on_path_due(now, number),
                Due::Connection(id) => self.on_connection_overdue(id),
            }
        }
    }

    /// Ends a client's allocation if its end is among those that wait.
    fn end_overdue(&mut self, now: Now, via: &Via) {
        if let Some(allocation) = self.table.by_path(via).filter(|allocation| allocation.armed_at <= now.ticks) {
            let (slot, armed_at) = (allocation.id.index, allocation.armed_at);
            self.timers.disarm(armed_at, Due::Allocation(slot));
            self.on_allocation_due(now, slot);
        }
    }

    /// The next thing that the core wants done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Server::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Ticks> {
        self.review.as_ref().map(Review::due).into_iter().chain(self.timers.next()).min()
    }

    /// Answers a message if it is Binding: stateless, without heap. `false` leaves it to [`Server::handle_input`].
    ///
    /// `out` holds the answer and the number tells its bytes; 0 is silence.
    pub fn answer_binding(
        &mut self,
        now: Now,
        via: &Via,
        bytes: &[u8],
        out: &mut [u8; ANSWER_BYTES_MAX],
    ) -> Option<usize> {
        // Method 1 in any class: the twelve method bits of the type field (RFC 8489 section 5).
        let (&[first, second], _) = bytes.split_first_chunk()?;
        if first & 0xFE != 0 || second & 0xEF != 0x01 {
            return None;
        }
        if bytes.len() > CONTROL_BYTES_MAX {
            self.counters.dropped(DropReason::ControlTooLong, 1, bytes.len() as u64);
            return Some(0);
        }
        let Ok((answer, transaction)) = self.judge_binding(via, bytes, out) else {
            self.counters.dropped(DropReason::Malformed, 1, bytes.len() as u64);
            return Some(0);
        };
        match answer {
            BindingAnswer::NotBinding => None,
            BindingAnswer::Success(_) | BindingAnswer::Error(..)
                if !self.may_answer(now, via, &transaction, bytes.len()) =>
            {
                Some(0)
            }
            BindingAnswer::Success(len) => {
                self.counters.succeeded(METHOD_BINDING);
                Some(len)
            }
            BindingAnswer::Error(len, reason) => {
                self.counters.rejected(reason);
                Some(len)
            }
            BindingAnswer::Silence(why) => {
                if let Some(why) = why {
                    self.counters.dropped(why, 1, bytes.len() as u64);
                }
                Some(0)
            }
        }
    }

    /// What a Binding message gets, written into `out`, and its transaction id; of RFC 3489 only over UDP, and only with
    /// `stun.classic`.
    fn judge_binding(
        &self,
        via: &Via,
        bytes: &[u8],
        out: &mut [u8; ANSWER_BYTES_MAX],
    ) -> Result<(BindingAnswer, TransactionId), Malformed> {
        let FiveTuple { client, .. } = *via.five_tuple();
        let origins = self.settings.stun.discovery.and_then(|discovery| discovery.origins_at(via.five_tuple()));
        // Those that say where the answer shall leave, go, or be long are for the control lane.
        let may_be_sent_elsewhere = origins.is_some() && !via.is_stream();
        if self.is_classic(via, bytes) {
            let request = ClassicRequest::parse(bytes)?;
            let transaction = request.short_id();
            if may_be_sent_elsewhere && request.change().is_some_and(|change| change != [0; 4]) {
                return Ok((BindingAnswer::NotBinding, transaction));
            }
            return Ok((answer_classic(request, client, origins, out), transaction));
        }
        let message = Message::parse(bytes)?;
        let transaction = message.transaction_id();
        if may_be_sent_elsewhere
            && message.unknown().iter().copied().any(is_wish)
            && message.message_type().class == CLASS_REQUEST
        {
            return Ok((BindingAnswer::NotBinding, transaction));
        }
        Ok((answer(&message, client, origins, out), transaction))
    }

    /// Whether a datagram is one of RFC 3489, and those are answered.
    pub(super) fn is_classic(&self, via: &Via, bytes: &[u8]) -> bool {
        self.settings.stun.classic && !via.is_stream() && ClassicRequest::lacks_cookie(bytes)
    }

    /// Whether a request that proves nothing may be answered: over a stream and from a client with an allocation always, else
    /// within the budget of its network. What may not is counted.
    fn may_answer(&self, now: Now, via: &Via, transaction: &TransactionId, bytes: usize) -> bool {
        via.is_stream() || self.has_allocation(via) || self.is_within_budget(now, via, transaction, bytes)
    }

    /// Whether the budget of its network has room for one more answer, whatever the request proves. What has none is counted.
    pub(super) fn is_within_budget(&self, now: Now, via: &Via, transaction: &TransactionId, bytes: usize) -> bool {
        let Some(rate) = self.reply_rate else { return true };
        let may = self.shared.takes_reply(now.ticks, rate, via.five_tuple(), transaction);
        if !may {
            self.counters.dropped(DropReason::OverReplies, 1, bytes as u64);
        }
        may
    }

    /// Whether a request that proves no key may be answered: from a client with an allocation always, else as often as its
    /// network may fail. What may not is counted, and told as what it is.
    fn answers_failure(&mut self, now: Now, via: Via, message: &Message<'_>, reason: RejectReason) -> bool {
        let is_of_proxy =
            || via.is_stream() && self.settings.proxies.iter().any(|from| from.contains(&via.five_tuple().client.ip()));
        let Some(rate) = self.failure_rate.filter(|_| !self.has_allocation(&via) && !is_of_proxy()) else {
            return true;
        };
        let answers = self.shared.answers_failure(now.ticks, rate, &via, &message.transaction_id());
        if !answers {
            self.counters.dropped(DropReason::OverFailures, 1, message.bytes().len() as u64);
            self.tell_refused(via, message, reason);
        }
        answers
    }

    pub(super) fn on_message(&mut self, now: Now, via: Via, bytes: &[u8]) {
        fault::at("message", bytes);
        if bytes.len() > CONTROL_BYTES_MAX {
            self.drop_unknown(DropReason::ControlTooLong, bytes.len());
            return;
        }
        let mut answer = [0; ANSWER_BYTES_MAX];
        match self.answer_binding(now, &via, bytes, &mut answer) {
            Some(0) => return,
            Some(len) => {
                let bytes = answer.get(..len).unwrap_or_default().to_vec();
                self.outputs.push_back(Output::Reply { via, bytes });
                return;
            }
            None => {}
        }
        if self.discover(now, via, bytes) {
            return;
        }
        match Message::parse(bytes) {
            Ok(message) => self.on_request(now, via, &message),
            Err(_) => {
                self.drop_unknown(DropReason::Malformed, bytes.len());
            }
        }
    }

    /// Basic processing (RFC 8489 section 6.3), authentication, then the method. [8489-6.3-1, -2, -3]
    fn on_request(&mut self, now: Now, via: Via, message: &Message<'_>) {
        let MessageType { method, class } = message.message_type();
        let silent = if class != CLASS_REQUEST {
            Some(DropReason::UnexpectedClass)
        } else if handler(method).is_none() {
            Some(DropReason::UnknownMethod)
        } else if check_fingerprint(message) == Fingerprint::Wrong {
            Some(DropReason::BadFingerprint)
        } else {
            None
        };
        if let Some(why) = silent {
            self.drop_unknown(why, message.bytes().len());
            return;
        }
        let has_integrity = message.has_integrity();
        let (transaction, bytes) = (message.transaction_id(), message.bytes().len());
        if !has_integrity && !self.may_answer(now, &via, &transaction, bytes) {
            return;
        }
        if self.redirect_first_allocate(&via, message) || self.pass_on(now, &via, message) {
            return;
        }
        let client = self.client_of(now, &via, message);
        let slot = client.allocation.map(|allocation| allocation.id.index);
        let request = match authenticate(message, &client, &self.settings, &self.nonces, now) {
            Ok(request) => request,
            Err(refused) => {
                if has_integrity && !refused.has_own_nonce && !self.may_answer(now, &via, &transaction, bytes) {
                    return;
                }
                if refused.is_failure() && !self.answers_failure(now, via, message, refused.reason) {
                    return;
                }
                self.note_refused(now, &refused);
                return self.reject_unauthenticated(now, via, message, &refused);
            }
        };
        if request.is_owner() {
            if slot.is_some_and(|slot| !self.table.takes_request(slot, now.ticks, self.request_rate)) {
                self.drop_unknown(DropReason::OverRequests, message.bytes().len());
                return;
            }
        } else {
            self.shared.authenticated(now, &request.note());
        }
        // RFC 8489 §6.3.1: unknown attributes count once the request is known to be genuine.
        // [8489-6.3-6, 8489-6.3.1-1]
        if !message.unknown().is_empty() {
            return self.reject(via, message, RejectReason::UnknownAttributes, Some(request.key()));
        }
        if let Some(handle) = handler(method) {
            handle(self, now, via, &request);
        }
    }

    /// RFC 8656 §5: a request on an allocation needs one, and its owner. [8656-5-5, -6]
    pub(super) fn check_owner(
        &self,
        now: Now,
        via: &Via,
        request: &Authenticated<'_>,
    ) -> Result<AllocationId, RejectReason> {
        match self.table.by_path(via).filter(|allocation| now.ticks < allocation.expires_at) {
            None => Err(RejectReason::NoAllocation),
            Some(_) if !request.is_owner() => Err(RejectReason::WrongUser),
            Some(allocation) => Ok(allocation.id),
        }
    }

    pub(super) fn on_client_closed(&mut self, now: Now, via: &Via) {
        if let Some(id) = self.openings.of_client(via) {
            self.forget_opening(now, id);
        }
        self.on_path_closed(now, via);
    }

    fn on_failed(&mut self, now: Now, via: &Via) {
        if let Some(id) = self.openings.of_client(via) {
            self.fail_opening(now, id, RejectReason::ServerFault);
        }
        if let Some(id) = self.table.by_path(via).map(|allocation| allocation.id) {
            self.end(now, id, EndReason::Fault);
        }
    }

    fn on_close(&mut self, now: Now, which: &Selector, reason: EndReason) {
        let mut from = Some(0);
        while let Some(slot) = from {
            from = self.close_from(now, which, reason, slot, usize::MAX);
        }
    }

    /// Does a part of [`Input::Close`], so that the end of many delays no other client: ends those in so many slots from one on;
    /// gives the slot to go on with if there are more. Drain [`Server::poll_output`] afterwards.
    pub fn close_from(
        &mut self,
        now: Now,
        which: &Selector,
        reason: EndReason,
        from: usize,
        count: usize,
    ) -> Option<usize> {
        let meant = |allocation: &&Allocation| match which {
            Selector::Session(session) => allocation.session == *session,
            Selector::Subject(subject) => subject.includes(&allocation.owner.subject()),
            Selector::LinkLocalClients => allocation.via().is_link_local(),
            Selector::DualAllocations => allocation.additional().is_some(),
            Selector::MobileAllocations => allocation.mobility().is_some(),
            Selector::Sha256Keys => allocation.owner.sha256_key().is_some(),
            Selector::OtherRealms => allocation.owner.realm().is_some(),
            Selector::TcpAllocations => allocation.is_tcp(),
        };
        let (allocations, next) = self.table.slots(from, count);
        let ids: Vec<AllocationId> = allocations.filter(meant).map(|allocation| allocation.id).collect();
        for id in ids {
            self.end(now, id, reason);
        }
        match (which, next) {
            (Selector::Subject(subject), None) => self.give_up_openings_of(now, subject),
            (Selector::LinkLocalClients, None) => self.give_up_link_local(now),
            (Selector::DualAllocations, None) => self.give_up_dual(now),
            (Selector::MobileAllocations, None) => self.give_up_mobile(now),
            (Selector::Sha256Keys, None) => self.give_up_sha256(now),
            (Selector::OtherRealms, None) => self.give_up_other_realms(now),
            (Selector::TcpAllocations, None) => self.give_up_tcp(now),
            (_, Some(_)) | (Selector::Session(_), _) => {}
        }
        next
    }

    fn on_close_all(&mut self, now: Now, reason: EndReason) {
        self.draining = true;
        self.closed = Some(reason);
        let ids: Vec<AllocationId> = self.table.iter().map(|allocation| allocation.id).collect();
        for id in ids {
            self.end(now, id, reason);
        }
        self.give_up_openings(now);
    }

    /// Only clients that proved to hold a credential are noted; the counters have the others.
    fn note_refused(&self, now: Now, refused: &Refused) {
        if let Some((secret, expires_at)) =
            refused.of.and_then(|(at, end)| Some((self.settings.auth.secrets.get(at)?, end)))
        {
            let note = AuthenticatedClient {
                secret: Some(&secret.id),
                expires_at: Some(UnixSeconds(expires_at)),
                refused: Some(refused.reason),
            };
            self.shared.authenticated(now, &note);
        }
    }

    /// Every live session, for those who ask; a scan, on request only.
    pub fn sessions(&self, now: Now) -> impl Iterator<Item = SessionRecord> {
        self.table.iter().map(move |allocation| allocation.record(allocation.records, now, None))
    }

    /// How the client of every allocation comes, or will come, to this worker, and the ways whose end is yet to be told.
    pub fn clients(&self) -> impl Iterator<Item = Via> {
        let pending = self.table.iter().filter_map(Allocation::pending).filter(|path| path.worker == self.worker);
        let left = self.table.iter().filter_map(|allocation| allocation.mobility()?.left).map(|left| left.via);
        let coming = pending.map(|path| path.via).chain(self.foreign.vias());
        self.table.iter().map(Allocation::via).chain(coming).chain(left)
    }

    /// What the sockets of the allocations are known by, second ones included, what they are bound to, and whose they are.
    pub fn sockets(&self) -> impl Iterator<Item = (AllocationId, RelayedTransportAddress, Via)> {
        let of = |allocation: &Allocation| {
            let via = allocation.via();
            allocation.sockets().map(move |(socket, relayed)| (socket, relayed, via))
        };
        self.table.iter().flat_map(of)
    }

    /// How many sockets the allocations have.
    #[must_use]
    pub fn socket_count(&self) -> usize {
        self.table.sockets()
    }

    /// A part of them, so that a question about many delays no client: those in so many slots from one on, and the slot
    /// to go on with if there are more.
    #[must_use]
    pub fn sessions_from(&self, now: Now, from: usize, count: usize) -> (Vec<SessionRecord>, Option<usize>) {
        let (allocations, next) = self.table.slots(from, count);
        (allocations.map(|allocation| allocation.record(allocation.records, now, None)).collect(), next)
    }

    /// Whether a client's stream or five-tuple has, or is about to get, an allocation.
    #[must_use]
    pub fn has_allocation(&self, via: &Via) -> bool {
        self.table.by_path(via).is_some()
            || self.openings.of_client(via).is_some()
            || self.foreign.session(via).is_some()
    }

    /// Whether an allocation lives.
    #[must_use]
    pub fn is_live(&self, id: AllocationId) -> bool {
        self.table.get(id).is_some()
    }

    /// How many allocations live here.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.table.len()
    }

    /// Everything that would keep memory when all is over: allocations, openings, held ports, questions, timers.
    #[must_use]
    pub fn leftovers(&self) -> usize {
        let waiting = self.openings.len() + self.openings.questions() + self.reservations.len();
        self.table.len() + waiting + self.foreign.len() + self.connections.len() + self.timers.len()
    }

    /// Panics where the tables contradict each other; for tests, after each input.
    pub fn check_invariants(&self) {
        self.table.check_invariants();
        self.openings.check_invariants();
        self.reservations.check_invariants();
        self.foreign.check_invariants();
        self.connections.check_invariants();
        for connection in self.connections.iter() {
            let allocation = self.table.get(connection.allocation);
            assert!(allocation.is_some_and(Allocation::is_tcp), "a connection belongs to a live TCP allocation");
        }
        let waiting = self.openings.questions() + self.connections.waiting();
        let timers = self.table.len() + self.reservations.len() + waiting + self.foreign.len();
        assert!(self.timers.len() >= timers, "whatever ends by itself has a deadline");
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("worker", &self.worker)
            .field("allocations", &self.table.len())
            .finish_non_exhaustive()
    }
}

/// What the settings say of one allocation's packets.
pub(super) fn packet_rate(settings: &Settings) -> PacketRate {
    PacketRate::new(settings.limits.allocation.packets_per_second, settings.limits.burst_ms)
}

/// What the settings say of requests on one allocation.
pub(super) fn request_rate(settings: &Settings) -> RequestRate {
    RequestRate::new(settings.limits.requests_per_allocation)
}

/// What the settings say of answers to those who prove nothing.
pub(super) fn reply_rate(settings: &Settings) -> Option<ReplyRate> {
    settings.limits.replies_per_network.and_then(ReplyRate::new)
}

/// What the settings say of wrong keys and user names.
pub(super) fn failure_rate(settings: &Settings) -> Option<FailureRate> {
    settings.limits.failures.and_then(FailureRate::new)
}

type RequestHandler = fn(&mut Server, Now, Via, &Authenticated<'_>);

/// Who handles a method; `None` for those that this server does not speak.
const fn handler(method: Method) -> Option<RequestHandler> {
    Some(match method {
        METHOD_ALLOCATE => Server::on_allocate,
        METHOD_REFRESH => Server::on_refresh,
        METHOD_CREATE_PERMISSION => Server::on_create_permission,
        METHOD_CHANNEL_BIND => Server::on_channel_bind,
        METHOD_CONNECT => Server::on_connect,
        METHOD_CONNECTION_BIND => Server::on_connection_bind,
        _ => return None,
    })
}
