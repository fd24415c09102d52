//! The TURN server as a pure, synchronous state machine (RFC 8489, RFC 8656).
//!
//! No socket, task, lock, clock, global or random source of its own: [`border`] is all there is between
//! it and the world. One worker owns one [`Server`] and calls it with `&mut`; what spans workers is asked
//! through [`border::Shared`] or by message. This file dispatches; each noun has a file of its own.

pub mod accounting;
pub mod address;
mod allocate;
pub mod allocation;
mod auth;
pub mod binding;
pub mod border;
mod channel;
pub mod counters;
pub mod drain;
mod ends;
mod few;
pub mod genuine;
pub mod meter;
pub mod nonce;
pub mod owner;
pub mod peer_policy;
mod permission;
mod places;
pub mod quota;
pub mod random;
mod reach;
mod refresh;
pub mod reject;
pub mod relay;
pub mod revocation;
pub mod settings;
pub(crate) mod slots;
mod table;
pub mod time;
mod timer;

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use self::accounting::{SessionRecord, SpareAsides};
use self::address::{RelayedTransportAddress, Via};
use self::allocate::{Opening, Reservation};
use self::allocation::{Allocation, Origin};
use self::auth::{Authenticated, authenticate};
use self::binding::{ANSWER_BYTES_MAX, Answered};
use self::border::{AllocationId, DropReason, EndReason, Event, Genuine, Input, Output, Selector, Shared, WorkerId};
use self::counters::Counters;
use self::nonce::Nonces;
use self::random::{Random, Sequence};
use self::reject::RejectReason;
use self::settings::Settings;
use self::table::AllocationTable;
use self::time::{Now, Ticks, UnixSeconds};
use self::timer::{Due, Timers};
use crate::credentials::USERNAME_BYTES_MAX;
use crate::wire::attribute::{
    ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM, ATTR_RESERVATION_TOKEN, ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS,
    ReservationToken,
};
use crate::wire::integrity::{Fingerprint, Key, check_fingerprint};
use crate::wire::message::{
    AttrType, CLASS_ERROR_RESPONSE, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, Known, METHOD_ALLOCATE, METHOD_CHANNEL_BIND,
    METHOD_CREATE_PERMISSION, METHOD_REFRESH, Message, MessageType, Method, TransactionId,
};
use crate::wire::writer::Writer;

/// Room for the longest control reply: a 420 with the longest realm.
const REPLY_BYTES_MAX: usize = 1280;

/// One worker's TURN server.
pub struct Server {
    worker: WorkerId,
    workers: usize,
    settings: Arc<Settings>,
    shared: Arc<dyn Shared>,
    counters: Arc<Counters>,
    nonces: Nonces,
    random: Random,
    sequence: Sequence,
    table: AllocationTable,
    openings: HashMap<AllocationId, Opening, foldhash::fast::FixedState>,
    opening_of: HashMap<Via, AllocationId, foldhash::fast::FixedState>,
    reservations: HashMap<ReservationToken, Reservation, foldhash::fast::FixedState>,
    asked: HashMap<u64, AllocationId, foldhash::fast::FixedState>,
    questions: u64,
    /// Names this worker's sessions: drawn at its start, and counted.
    instance: u64,
    sessions: u64,
    spare: SpareAsides,
    timers: Timers,
    outputs: VecDeque<Output>,
    relay_ipv4: bool,
    relay_ipv6: bool,
    draining: bool,
}

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
            sequence: Sequence::new(random.next_u64()),
            random,
            table: AllocationTable::new(seed),
            openings: HashMap::with_hasher(hasher.clone()),
            opening_of: HashMap::with_hasher(hasher.clone()),
            reservations: HashMap::with_hasher(hasher.clone()),
            asked: HashMap::with_hasher(hasher),
            questions: 0,
            instance,
            sessions: 0,
            spare: SpareAsides::default(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            relay_ipv4: settings.relay_ipv4,
            relay_ipv6: settings.relay_ipv6,
            draining: false,
            settings,
        }
    }

    /// Takes one input; drain [`Server::poll_output`] afterwards.
    pub fn handle_input(&mut self, now: Now, input: Input<'_>) {
        // What is over must not be seen by the input that comes after its end.
        self.handle_timeout(now);
        match input {
            Input::Message { via, bytes } => self.on_message(now, via, bytes),
            Input::RelayOpened { allocation, result } => self.on_relay_opened(now, allocation, result),
            Input::ClientClosed { via } => self.on_client_closed(now, &via),
            Input::Asked { ticket, question } => self.on_asked(ticket, &question),
            Input::Answered { ticket, answer } => self.on_answered(now, ticket, answer),
            Input::Reconfigure(settings) => self.on_reconfigure(now, settings),
            Input::Drain => self.draining = true,
            Input::Close { which, reason } => self.on_close(now, &which, reason),
            Input::CloseAll(reason) => self.on_close_all(now, reason),
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(due) = self.timers.pop(now.ticks) {
            match due {
                Due::Allocation(slot) => self.on_allocation_due(now, slot),
                Due::Reservation(token) => self.on_reservation_expired(ReservationToken(token)),
                Due::Question(number) => self.on_question_overdue(now, number),
            }
        }
    }

    /// The next thing that the core wants done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Server::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Ticks> {
        self.timers.next()
    }

    /// Answers a message if it is Binding: stateless, without heap. `false` leaves it to [`Server::handle_input`].
    ///
    /// `out` holds the answer and the number tells its bytes; 0 is silence.
    pub fn answer_binding(&mut self, via: &Via, bytes: &[u8], out: &mut [u8; ANSWER_BYTES_MAX]) -> Option<usize> {
        // Method 1 in any class: the twelve method bits of the type field (RFC 8489 section 5).
        let (&[first, second], _) = bytes.split_first_chunk()?;
        if first & 0xFE != 0 || second & 0xEF != 0x01 {
            return None;
        }
        let Ok(message) = Message::parse(bytes) else {
            self.counters.dropped(DropReason::Malformed, 1, bytes.len() as u64);
            return Some(0);
        };
        match binding::answer(&message, via.five_tuple().client, out) {
            Answered::NotBinding => None,
            Answered::Success(len) => {
                self.counters.succeeded(message.message_type().method);
                Some(len)
            }
            Answered::Error(len, reason) => {
                self.counters.rejected(reason);
                Some(len)
            }
            Answered::Silence(why) => {
                if let Some(why) = why {
                    self.counters.dropped(why, 1, bytes.len() as u64);
                }
                Some(0)
            }
        }
    }

    fn on_message(&mut self, now: Now, via: Via, bytes: &[u8]) {
        let mut answer = [0; ANSWER_BYTES_MAX];
        match self.answer_binding(&via, bytes, &mut answer) {
            Some(0) => return,
            Some(len) => {
                self.outputs.push_back(Output::Reply { via, bytes: answer[..len].to_vec() });
                return;
            }
            None => {}
        }
        match Message::parse(bytes) {
            Ok(message) => self.on_request(now, via, &message),
            Err(_) => {
                self.drop_unknown(DropReason::Malformed, bytes.len());
            }
        }
    }

    /// Basic processing (RFC 8489 section 6.3), authentication, then the method.
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
        let allocation = self.table.by_via(&via);
        let request = match authenticate(message, &via, allocation, &self.settings, &self.nonces, now) {
            Ok(request) => request,
            Err(refused) => {
                self.note_refused(now, &refused);
                return self.reject_unauthenticated(now, via, message, &refused);
            }
        };
        if !request.is_owner() {
            self.shared.authenticated(now, &request.note());
        }
        // RFC 8489 §6.3.1: unknown attributes count once the request is known to be genuine.
        if !message.unknown().is_empty() {
            return self.reject(via, message, RejectReason::UnknownAttributes, Some(request.key()));
        }
        if let Some(handle) = handler(method) {
            handle(self, now, via, &request);
        }
    }

    /// RFC 8656 §5: a request on an allocation needs one, and its owner.
    fn check_owner(&self, now: Now, via: &Via, request: &Authenticated<'_>) -> Result<AllocationId, RejectReason> {
        match self.table.by_via(via).filter(|allocation| now.ticks < allocation.expires_at) {
            None => Err(RejectReason::NoAllocation),
            Some(_) if !request.is_owner() => Err(RejectReason::WrongUser),
            Some(allocation) => Ok(allocation.id),
        }
    }

    fn on_client_closed(&mut self, now: Now, via: &Via) {
        if let Some(id) = self.opening_of.get(via).copied() {
            self.forget_opening(now, id);
        }
        if let Some(id) = self.table.by_via(via).map(|allocation| allocation.id) {
            self.end(now, id, EndReason::ClientClosed);
        }
    }

    fn on_reconfigure(&mut self, now: Now, settings: Arc<Settings>) {
        // What was used stays used, so meters are asked for only where something else limits from now on.
        let has_new_limits = settings.limits != self.settings.limits;
        for allocation in self.table.iter_mut() {
            allocation.rejudge(|ip| settings.peers.judge(ip));
            if has_new_limits {
                let claim = allocation.owner.claim(&allocation.via());
                let meters = self.shared.meters(&claim, allocation.owner.counted(), &settings.limits);
                allocation.owner.set_meters(meters);
            }
            allocation.plan_close(&settings.auth, now);
        }
        if has_new_limits {
            self.meter_openings_anew(&settings.limits);
        }
        self.relay_ipv4 = settings.relay_ipv4;
        self.relay_ipv6 = settings.relay_ipv6;
        self.settings = settings;
        self.plan_interims(now);
    }

    fn on_close(&mut self, now: Now, which: &Selector, reason: EndReason) {
        let meant = |allocation: &&Allocation| match which {
            Selector::Session(session) => allocation.session == *session,
            Selector::Of(whose) => whose.includes(&allocation.owner.party()),
        };
        let ids: Vec<AllocationId> = self.table.iter().filter(meant).map(|allocation| allocation.id).collect();
        for id in ids {
            self.end(now, id, reason);
        }
        if let Selector::Of(whose) = which {
            self.give_up_openings_of(now, whose);
        }
    }

    fn on_close_all(&mut self, now: Now, reason: EndReason) {
        self.draining = true;
        let ids: Vec<AllocationId> = self.table.iter().map(|allocation| allocation.id).collect();
        for id in ids {
            self.end(now, id, reason);
        }
        self.give_up_openings(now);
    }

    fn mirrors_fingerprint(&self, message: &Message<'_>) -> bool {
        message.has(Known::Fingerprint)
    }

    /// Only whoever proved to hold a credential is noted: strangers have the counters.
    fn note_refused(&self, now: Now, refused: &auth::Refused) {
        if let Some((secret, expires_at)) =
            refused.of.and_then(|(at, end)| Some((self.settings.auth.secrets.get(at)?, end)))
        {
            let note = Genuine {
                secret: Some(&secret.id),
                expires_at: Some(UnixSeconds(expires_at)),
                refused: Some(refused.reason),
            };
            self.shared.authenticated(now, &note);
        }
    }

    /// 401 and 438 carry realm and nonce; everything before verification is unsigned.
    fn reject_unauthenticated(&mut self, now: Now, via: Via, message: &Message<'_>, refused: &auth::Refused) {
        let challenge = !matches!(refused.reason, RejectReason::IncompleteCredentials | RejectReason::BadClaims);
        let nonce = self.nonces.mint(now.unix, via.five_tuple());
        let settings = Arc::clone(&self.settings);
        let attributes: &[(AttrType, &[u8])] =
            if challenge { &[(ATTR_REALM, settings.realm.as_bytes()), (ATTR_NONCE, &nonce)] } else { &[] };
        self.reject_with(via, message, refused.reason, attributes, refused.key.as_ref());
    }

    fn reject(&mut self, via: Via, message: &Message<'_>, reason: RejectReason, key: Option<&Key>) {
        self.reject_with(via, message, reason, &[], key);
    }

    fn reject_with(
        &mut self,
        via: Via,
        message: &Message<'_>,
        reason: RejectReason,
        attributes: &[(AttrType, &[u8])],
        key: Option<&Key>,
    ) {
        self.counters.rejected(reason);
        let head = (message.message_type().method, message.transaction_id());
        let fingerprint = self.mirrors_fingerprint(message);
        if reason == RejectReason::UnknownAttributes {
            self.reply_unknown(via, head, fingerprint, message.unknown(), key);
        } else {
            self.reply_error(via, head, fingerprint, reason, attributes, key);
        }
        if reason != RejectReason::Challenge {
            // What is longer is nobody's, and events wait in a queue.
            let username = message.get(Known::Username).filter(|name| name.len() <= USERNAME_BYTES_MAX);
            let username = username.and_then(|name| std::str::from_utf8(name).ok());
            let refused = Event::Refused { via, reason, username: username.map(Into::into) };
            self.outputs.push_back(Output::Happened(refused));
        }
    }

    fn reply_error(
        &mut self,
        via: Via,
        (method, transaction_id): (Method, TransactionId),
        fingerprint: bool,
        reason: RejectReason,
        attributes: &[(AttrType, &[u8])],
        key: Option<&Key>,
    ) {
        let message_type = MessageType { method, class: CLASS_ERROR_RESPONSE };
        self.reply(via, message_type, transaction_id, fingerprint, key, |writer| {
            // An unsigned answer stays as small as can be: it may go to a forged source.
            writer.error_code(reason.code(), if key.is_some() { reason.phrase() } else { "" });
            for (attribute, value) in attributes {
                writer.attribute(*attribute, value);
            }
        });
    }

    fn reply_unknown(
        &mut self,
        via: Via,
        (method, transaction_id): (Method, TransactionId),
        fingerprint: bool,
        unknown: &[u16],
        key: Option<&Key>,
    ) {
        let reason = RejectReason::UnknownAttributes;
        let message_type = MessageType { method, class: CLASS_ERROR_RESPONSE };
        self.reply(via, message_type, transaction_id, fingerprint, key, |writer| {
            writer.error_code(reason.code(), reason.phrase()).unknown_attributes(unknown);
        });
    }

    fn reply_success(&mut self, via: Via, request: &Authenticated<'_>, attributes: &[(AttrType, &[u8])]) {
        let message = request.message();
        let method = message.message_type().method;
        self.counters.succeeded(method);
        let message_type = MessageType { method, class: CLASS_SUCCESS_RESPONSE };
        let fingerprint = self.mirrors_fingerprint(message);
        self.reply(via, message_type, message.transaction_id(), fingerprint, Some(request.key()), |writer| {
            for (attribute, value) in attributes {
                writer.attribute(*attribute, value);
            }
        });
    }

    fn answer_allocate(
        &mut self,
        via: Via,
        relayed: RelayedTransportAddress,
        origin: Origin,
        fingerprint: bool,
        key: &Key,
    ) {
        self.counters.succeeded(METHOD_ALLOCATE);
        let message_type = MessageType { method: METHOD_ALLOCATE, class: CLASS_SUCCESS_RESPONSE };
        self.reply(via, message_type, origin.transaction_id, fingerprint, Some(key), |writer| {
            writer.xor_address(ATTR_XOR_RELAYED_ADDRESS, relayed.0);
            writer.attribute(ATTR_LIFETIME, &origin.lifetime.to_be_bytes());
            if let Some(token) = origin.token {
                writer.attribute(ATTR_RESERVATION_TOKEN, &token.0);
            }
            writer.xor_address(ATTR_XORMAPPED_ADDRESS, via.five_tuple().client.0);
        });
    }

    fn reply(
        &mut self,
        via: Via,
        message_type: MessageType,
        transaction_id: TransactionId,
        fingerprint: bool,
        key: Option<&Key>,
        write: impl FnOnce(&mut Writer<'_>),
    ) {
        let mut buffer = [0; REPLY_BYTES_MAX];
        let mut writer = Writer::new(&mut buffer, message_type, transaction_id);
        write(&mut writer);
        if let Some(key) = key {
            writer.integrity(key);
        }
        if fingerprint {
            writer.fingerprint();
        }
        let len = writer.finish().expect("the longest realm leaves room in a reply");
        self.outputs.push_back(Output::Reply { via, bytes: buffer[..len].to_vec() });
    }

    /// Every live session, for those who ask; a scan, on request only.
    pub fn sessions(&self, now: Now) -> impl Iterator<Item = SessionRecord> {
        self.table.iter().map(move |allocation| allocation.record(allocation.records, now, None))
    }

    /// A part of them, so that a question about many holds nobody up: those in so many slots from one on, and the slot
    /// to go on with if there are more.
    #[must_use]
    pub fn sessions_from(&self, now: Now, from: usize, count: usize) -> (Vec<SessionRecord>, Option<usize>) {
        let (allocations, next) = self.table.slots(from, count);
        (allocations.map(|allocation| allocation.record(allocation.records, now, None)).collect(), next)
    }

    /// Whether a client's stream or five-tuple has, or is about to get, an allocation.
    #[must_use]
    pub fn has_allocation(&self, via: &Via) -> bool {
        self.table.by_via(via).is_some() || self.opening_of.contains_key(via)
    }

    /// How many allocations live here.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.table.len()
    }

    /// Everything that would keep memory when all is over: allocations, openings, held ports, questions, timers.
    #[must_use]
    pub fn leftovers(&self) -> usize {
        self.table.len()
            + self.openings.len()
            + self.opening_of.len()
            + self.reservations.len()
            + self.asked.len()
            + self.timers.len()
    }

    /// Panics where the tables contradict each other; for tests, after each input.
    pub fn check_invariants(&self) {
        self.table.check_invariants();
        assert_eq!(self.openings.len(), self.opening_of.len(), "every opening is found by its client");
        let timers = self.table.len() + self.reservations.len() + self.asked.len();
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

type Handler = fn(&mut Server, Now, Via, &Authenticated<'_>);

/// Who handles a method; `None` for those that this server does not speak.
const fn handler(method: Method) -> Option<Handler> {
    Some(match method {
        METHOD_ALLOCATE => Server::on_allocate,
        METHOD_REFRESH => Server::on_refresh,
        METHOD_CREATE_PERMISSION => Server::on_create_permission,
        METHOD_CHANNEL_BIND => Server::on_channel_bind,
        _ => return None,
    })
}
