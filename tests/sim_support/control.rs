//! Requests: what a server answers, puts out and changes, against the prediction.

use std::rc::Rc;

use throughway::address::{Family, PeerAddress, RelayedTransportAddress, Via};
use throughway::protocol::binding::ANSWER_BYTES_MAX;
use throughway::protocol::border::{Event, Input, Output, RelayRequest};
use throughway::protocol::ids::{AllocationId, WorkerId};
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::wire::attribute::{ATTR_XOR_RELAYED_ADDRESS, xor_address};
use throughway::wire::integrity::{
    Fingerprint, PASSWORD_ALGORITHMS, PasswordAlgorithm, ReplyIntegrity, check_fingerprint,
};
use throughway::wire::message::{AttrType, CLASS_SUCCESS_RESPONSE, Known, METHOD_BINDING, Message};

use super::config::{REALM, listener_of};
use super::model::{Opening, Outcome, Session, granted, unix};
use super::packet::{Chosen, Request, What};

use super::world::{Due, Out, Packet, World, trace};

const CONTROL_DROPS: [DropReason; 5] = [
    DropReason::Malformed,
    DropReason::ControlTooLong,
    DropReason::BadFingerprint,
    DropReason::UnknownMethod,
    DropReason::UnexpectedClass,
];

impl World {
    pub fn deliver_control(&mut self, worker: usize, packet: &Packet) {
        let now = self.now;
        let place = (worker, self.workers.len());
        let predicted =
            packet.request.as_ref().map(|request| self.model.predict(&self.config, now, place, &packet.via, request));
        trace!(
            self,
            "worker {worker} <- {:?} {:?}{}",
            packet.via.five_tuple().client,
            packet.request,
            if packet.damaged { " (damaged)" } else { "" }
        );
        trace!(self, "  must give {predicted:?}");
        if let (Some(request), Some(Outcome::Success)) = (&packet.request, &predicted)
            && request.what == What::Refresh
            && request.lifetime == Some(0)
        {
            let (key, session) = self.model.alive(&packet.via, now).expect("predicted as alive");
            match request.family {
                Some(number) if session.is_dual(now) => {
                    self.giving_back = Some((key, if number == 1 { Family::V4 } else { Family::V6 }));
                }
                Some(_) | None => self.ending = Some((vec![key], EndReason::Refreshed)),
            }
        }
        let before = CONTROL_DROPS.map(|why| self.workers[worker].counters.drops_of(why));
        let clock = self.clock();
        let mut answer = [0; ANSWER_BYTES_MAX];
        let fast = self.rng.percent(50);
        let server = &mut self.workers[worker].server;
        let quick = if fast { server.answer_binding(clock, &packet.via, &packet.bytes, &mut answer) } else { None };
        if quick.is_none() {
            server.handle_input(clock, Input::Message { via: packet.via, bytes: &packet.bytes });
        }
        let mut out = self.drain(worker);
        if let Some(Outcome::Error { code, .. }) = predicted {
            *self.codes.entry(code).or_default() += 1;
        }
        if let Some(len @ 1..) = quick {
            out.replies.push((packet.via, answer[..len].to_vec()));
        }
        (self.ending, self.giving_back) = (None, None);
        let mut dropped = 0;
        for (why, before) in CONTROL_DROPS.iter().zip(before) {
            let more = self.workers[worker].counters.drops_of(*why) - before;
            if more.packets > 0 {
                dropped += more.packets;
                assert_eq!(more.bytes, packet.bytes.len() as u64, "a dropped message counts with all its bytes");
                self.drop_counted(worker, *why, packet.bytes.len());
            }
        }
        assert!(dropped + out.replies.len() as u64 <= 1, "one message, at most one reply or one drop");
        let effect = !out.opens.is_empty()
            || !out.connects.is_empty()
            || !out.asks.is_empty()
            || out.replies.iter().any(|(_, bytes)| {
                let found = Message::parse(bytes).expect("a reply is well-formed").message_type();
                found.class == CLASS_SUCCESS_RESPONSE && found.method != METHOD_BINDING
            });
        match (packet.request.clone(), predicted.clone()) {
            (Some(request), Some(outcome)) if !packet.damaged || effect => {
                assert!(dropped == 0, "a well-formed request was dropped instead of {outcome:?}");
                self.verify(worker, packet, &request, outcome, out);
            }
            _ => {
                assert!(!effect, "noise had an effect: {:02x?}", packet.bytes);
                if let (Some(request), Some(outcome)) = (&packet.request, &predicted)
                    && out.replies.iter().any(|(_, bytes)| {
                        Message::parse(bytes)
                            .is_ok_and(|reply| reply.get(Known::ErrorCode).is_some_and(|value| value[2..4] == [5, 8]))
                    })
                {
                    self.note_failed_opening(&packet.via, request, outcome);
                }
                for (via, bytes) in out.replies {
                    self.note_reply(worker, &via, &bytes);
                    self.send_reply(via, bytes);
                }
            }
        }
    }

    /// Compares with the prediction and takes over what the request changed.
    pub fn verify(&mut self, worker: usize, packet: &Packet, request: &Rc<Request>, outcome: Outcome, mut out: Out) {
        let now = self.now;
        let opened = |outcome: &Outcome| match outcome {
            Outcome::OpenFresh(family, parity) => Some(RelayRequest::Fresh {
                family: *family,
                parity: *parity,
                part: None,
                client: packet.via.five_tuple().client.ip(),
            }),
            Outcome::OpenTcp(family) => {
                Some(RelayRequest::Tcp { family: *family, part: None, client: packet.via.five_tuple().client.ip() })
            }
            Outcome::OpenReserved(relayed) => {
                Some(RelayRequest::Reserved { relayed: *relayed, client: packet.via.five_tuple().client.ip() })
            }
            Outcome::Silent | Outcome::Success | Outcome::Error { .. } | Outcome::Ask(_) | Outcome::Connect(_) => None,
        };
        match outcome {
            Outcome::Silent => self.nothing(&out),
            Outcome::Connect(peer) => self.connecting(worker, packet, request, peer, out),
            Outcome::OpenFresh(..) | Outcome::OpenReserved(_) | Outcome::OpenTcp(_) | Outcome::Ask(_) => {
                assert!(out.replies.is_empty(), "no reply before the relayed address is open");
                let signed = request.signed.as_ref().unwrap();
                let (realm, tenant) = listener_of(&packet.via);
                let known = self.config.user(realm, &signed.username, &signed.password, unix(now));
                let who = known.expect("predicted as genuine").at(tenant);
                self.model.ledger.let_in(&self.config, &who, packet.via.five_tuple().client.ip(), now);
                let mut opening = Opening {
                    via: packet.via,
                    request: request.clone(),
                    who,
                    asking: None,
                    first: None,
                    refused: None,
                };
                let id = if let Outcome::Ask(owner) = outcome {
                    let (to, ticket, question) = out.asks.pop().expect("the owner of the token is asked");
                    assert_eq!((to, out.opens.len()), (owner, 0));
                    assert_eq!(ticket.worker, WorkerId(worker as u8));
                    opening.asking = Some((ticket.number, now + 2_000));
                    if !self.rng.percent(10) {
                        let late = if self.rng.percent(20) { 3_000 } else { 20 };
                        self.after(0, late, Due::Asked(to, ticket, question));
                    }
                    // The id is told when the relayed address is opened.
                    AllocationId { index: u32::MAX, generation: ticket.number as u32 }
                } else {
                    let (id, wish) = out.opens.pop().expect("a relayed address is asked for");
                    assert_eq!(Some(wish), opened(&outcome), "what is asked for");
                    if let Outcome::OpenReserved(_) = outcome {
                        self.model.held.remove(&request.token.unwrap());
                    }
                    self.schedule_open((worker, id), wish);
                    id
                };
                assert!(out.opens.is_empty() && out.asks.is_empty());
                self.model.openings.insert((worker, id), opening);
                self.model.opening_of.insert(packet.via, (worker, id));
            }
            Outcome::Success | Outcome::Error { .. } => {
                self.note_failed_opening(&packet.via, request, &outcome);
                let (via, bytes) = out.replies.pop().unwrap_or_else(|| panic!("no reply, but {outcome:?} is due"));
                let bound = out.bound.pop();
                self.nothing(&out);
                assert_eq!(via, packet.via, "the answer goes back the way the request came");
                self.check_reply(&bytes, &via, request, &outcome, packet.damaged);
                self.note_reply(worker, &via, &bytes);
                self.send_reply(via, bytes);
                let is_bind = request.what == What::ConnectionBind && outcome == Outcome::Success;
                assert_eq!(bound.is_some(), is_bind);
                if let Some((id, by)) = bound {
                    assert_eq!((Some(id.0), by), (request.connection, via));
                    self.is_bound(worker, id, via);
                } else if outcome == Outcome::Success {
                    self.count_modern(&via, request);
                    self.apply(&via, request);
                }
            }
        }
    }

    /// An Allocate whose token is no good was let in by the quotas first.
    fn note_failed_opening(&mut self, via: &Via, request: &Request, outcome: &Outcome) {
        if request.what == What::Allocate && *outcome == (Outcome::Error { code: 508, signed: true }) {
            let signed = request.signed.as_ref().unwrap();
            let (realm, tenant) = listener_of(via);
            let who = self.config.user(realm, &signed.username, &signed.password, unix(self.now));
            let (who, client) = (who.expect("predicted as genuine").at(tenant), via.five_tuple().client.ip());
            self.model.ledger.let_in(&self.config, &who, client, self.now);
        }
    }

    pub fn check_reply(&self, bytes: &[u8], via: &Via, request: &Request, outcome: &Outcome, damaged: bool) {
        let reply = Message::parse(bytes).expect("a reply is well-formed");
        assert_eq!(reply.transaction_id().0, request.transaction);
        assert_eq!(reply.message_type().method, request.what.method());
        let code = reply.get(Known::ErrorCode).map(|value| u16::from(value[2]) * 100 + u16::from(value[3]));
        let success = reply.message_type().class == CLASS_SUCCESS_RESPONSE;
        let signed = reply.has_integrity();
        match outcome {
            Outcome::Error { code: due, signed: due_signed } => {
                assert_eq!((success, code), (false, Some(*due)), "{request:?}");
                assert_eq!(signed, *due_signed, "exactly errors of verified requests are signed");
                assert_eq!(reply.has(Known::Nonce), matches!(due, 401 | 438), "a challenge names a nonce");
                if !damaged && matches!(due, 401 | 438) {
                    let to_bind = self.model.connection_to_bind(self.now, via, request);
                    let key = to_bind.or_else(|| self.model.alive(via, self.now).map(|(key, _)| key));
                    let realm = key.map_or(listener_of(via).0, |key| self.model.sessions[&key].who.realm);
                    assert_eq!(reply.get(Known::Realm), Some(realm.as_bytes()), "of the session, else of the listener");
                }
                assert_eq!(*due == 420, reply.get(Known::UnknownAttributes) == Some(&[0x7A, 0xBC]));
            }
            _ => assert_eq!((success, code, signed), (true, None, request.what != What::Binding), "{request:?}"),
        }
        if signed {
            let key = request.signed.as_ref().expect("only a signed request has a signed answer").key();
            assert!(key.verifies(&reply), "the answer is signed with the request's key");
            let signed = request.signed.as_ref().unwrap();
            let has = [Known::MessageIntegrity, Known::MessageIntegritySha256].map(|which| reply.has(which));
            let is_sha1 = signed.integrity() == ReplyIntegrity::Sha1;
            assert_eq!(has, [is_sha1, signed.chosen != Chosen::Nothing], "by what the request's attributes call for");
        }
        let nonce = reply.get(Known::Nonce).unwrap_or_default();
        let due = nonce.starts_with(b"obMatJos2").then_some(PASSWORD_ALGORITHMS.as_slice());
        assert_eq!(reply.get(Known::PasswordAlgorithms), due, "the cookie and the offer come together");
        let due = if request.fingerprint { Fingerprint::Right } else { Fingerprint::Absent };
        // Damage can turn FINGERPRINT into an attribute that may be unknown.
        assert!(damaged || check_fingerprint(&reply) == due, "FINGERPRINT is mirrored: {request:?}");
        if success && matches!(request.what, What::Binding | What::Allocate) {
            let mapped = xor_address(reply.get(Known::XorMappedAddress).unwrap(), reply.transaction_id());
            assert_eq!(mapped, Ok(via.five_tuple().client.address()));
        }
        if success && request.what == What::Allocate {
            // It may end in this very moment, when its time came before its relayed address.
            let key = self.model.session_of.get(via).expect("a session stands behind the answer");
            let session = &self.model.sessions[key];
            let relayed = reply.all(ATTR_XOR_RELAYED_ADDRESS);
            let relayed: Vec<_> = relayed.map(|value| xor_address(value, reply.transaction_id()).unwrap()).collect();
            let due = [Some(session.relayed.0), session.other.map(|other| other.relayed.0)];
            assert_eq!(relayed, due.into_iter().flatten().collect::<Vec<_>>());
            let refused = reply.all(AttrType(0x8001)).next().map(<[u8]>::to_vec);
            assert_eq!(refused, session.refused.map(|family| vec![family, 0, 5, 8]));
            assert_eq!(reply.lifetime(), Ok(Some(granted(session.request.lifetime))));
            assert_eq!(reply.reservation_token().unwrap().map(|token| token.0), session.token);
        }
        if success && request.what == What::Refresh {
            let due = if request.lifetime == Some(0) { 0 } else { granted(request.lifetime) };
            assert_eq!(reply.lifetime(), Ok(Some(due)));
        }
    }

    fn count_modern(&mut self, via: &Via, request: &Request) {
        let Some(signed) = &request.signed else { return };
        let session = self.model.session_of.get(via).and_then(|key| self.model.sessions.get(key));
        let began = session.map(|session| session.request.signed.as_ref().unwrap().algorithm());
        let is_other = began.is_some_and(|began| began != signed.algorithm());
        let is_sha256 = signed.algorithm() == PasswordAlgorithm::Sha256;
        for (count, is_so) in self.modern.iter_mut().zip([is_sha256, is_other, signed.hidden]) {
            *count += u64::from(is_so);
        }
    }

    /// What a success changed.
    pub fn apply(&mut self, via: &Via, request: &Request) {
        let now = self.now;
        let Some(key) = self.model.session_of.get(via) else { return };
        let session = self.model.sessions.get_mut(key).expect("indexed");
        match request.what {
            What::Binding | What::Allocate | What::Connect | What::ConnectionBind => {}
            What::Refresh => {
                let family = request.family.map(|number| if number == 1 { Family::V4 } else { Family::V6 });
                if request.lifetime == Some(0) {
                    let lost = family.expect("a deleted allocation is gone when its answer leaves");
                    assert!(!session.carries(lost), "an address that was given back is gone when the answer leaves");
                    return;
                }
                session.extend(now + u64::from(granted(request.lifetime)) * 1000, family);
            }
            What::CreatePermission => {
                session.permissions.extend(request.peers.iter().map(|peer| (peer.ip(), now + 300_000)));
            }
            What::ChannelBind => {
                let peer = request.peers[0];
                session.channels.retain(|_, (p, _)| *p != peer);
                session.channels.insert(request.channel.unwrap(), (peer, now + 600_000));
                session.permissions.insert(peer.ip(), now + 300_000);
            }
        }
    }

    /// Counts a reply and remembers the nonce it gives out.
    pub fn note_reply(&mut self, worker: usize, via: &Via, bytes: &[u8]) {
        let reply = Message::parse(bytes).expect("a reply is well-formed");
        if reply.message_type().class == CLASS_SUCCESS_RESPONSE {
            self.model.totals[worker].successes += 1;
        } else {
            self.model.totals[worker].rejects += 1;
        }
        if let Some(nonce) = reply.get(Known::Nonce) {
            let five_tuple = via.five_tuple();
            let given = (five_tuple.client, five_tuple.transport, unix(self.now));
            self.model.nonces.insert(nonce.to_vec(), given);
        }
    }

    pub fn send_reply(&mut self, via: Via, bytes: Vec<u8>) {
        if via.is_stream() || !self.rng.percent(3) {
            let slow = if self.rng.percent(5) { 1_500 } else { 60 };
            self.after(0, slow, Due::ToClient(via, bytes));
        }
    }

    /// Takes note of all outputs; what answers an input is left to the caller.
    pub fn drain(&mut self, worker: usize) -> Out {
        let mut out = Out::default();
        while self.drain_once(worker, &mut out) {}
        for relayed in std::mem::take(&mut out.closed) {
            self.lose_address(worker, relayed);
        }
        out
    }

    /// A closed address whose session lives on was one of two, and had its time or was given back.
    fn lose_address(&mut self, worker: usize, relayed: RelayedTransportAddress) {
        let has = |session: &Session| {
            session.relayed == relayed || session.other.is_some_and(|other| other.relayed == relayed)
        };
        let mut of_worker = self.model.sessions.iter_mut().filter(|((at, _), _)| *at == worker);
        let Some((key, session)) = of_worker.find(|(_, session)| has(session)) else { return };
        let other = session.other.expect("the only address of a session that lives is not closed");
        let until = if session.relayed == relayed { session.own_until } else { other.until };
        let is_given_back = self.giving_back == Some((*key, relayed.family()));
        assert!(until <= self.now || is_given_back, "closed {} ms early", until - self.now);
        if is_given_back {
            self.given_back[usize::from(session.relayed == relayed)] += 1;
        } else {
            self.expired_addresses += 1;
        }
        session.lose(relayed.family());
        let socket = &self.sockets[&session.relayed];
        assert_eq!(socket.owner, Some(key.1), "what is left is known by the allocation's own id");
    }

    /// One round of outputs; `true` if one of them was answered at once, so that more may follow.
    fn drain_once(&mut self, worker: usize, out: &mut Out) -> bool {
        let mut admissions = Vec::new();
        while let Some(output) = self.workers[worker].server.poll_output() {
            match output {
                Output::Admit { allocation, purpose } => admissions.push((allocation, purpose)),
                Output::Reply { via, bytes } => {
                    if !self.gave_up(worker, &via, &bytes) && !self.of_connection(worker, &via, &bytes, out) {
                        out.replies.push((via, bytes));
                    }
                }
                Output::OpenRelay { allocation, request } => out.opens.push((allocation, request)),
                Output::CloseRelay { allocation, relayed, .. } => {
                    let socket = self.sockets.remove(&relayed).expect("only an open relayed address is closed");
                    assert_eq!((socket.worker, socket.owner), (worker, Some(allocation)));
                    self.shared.relayed.lock().unwrap().remove(&PeerAddress(relayed.0));
                    self.shared.relayed_tcp.lock().unwrap().remove(&PeerAddress(relayed.0));
                    out.closed.push(relayed);
                }
                Output::MoveRelay { from, to, relayed } => {
                    let socket = self.sockets.get_mut(&relayed).expect("only an open relayed address is moved");
                    assert_eq!((socket.worker, socket.owner), (worker, Some(from)));
                    socket.owner = Some(to);
                }
                Output::CloseReserved { relayed } => {
                    let socket = self.sockets.remove(&relayed).expect("only a held port is closed");
                    assert_eq!((socket.worker, socket.owner), (worker, None));
                    let now = self.now;
                    let shutdown = matches!(self.ending, Some((_, EndReason::Shutdown)));
                    self.model.held.retain(|_, held| {
                        let over = shutdown || held.expires_at <= now;
                        assert!(held.relayed != relayed || over, "closed before its 30 seconds");
                        held.relayed != relayed
                    });
                }
                Output::Connect { connection, allocation, relayed, peer } => {
                    out.connects.push((connection, allocation, relayed, peer));
                }
                Output::BindConnection { connection, via } => out.bound.push((connection, via)),
                Output::CloseConnection { connection } => self.closed_connection(worker, connection),
                Output::Ask { worker, ticket, question } => out.asks.push((usize::from(worker.0), ticket, question)),
                Output::Answer { ticket, answer } => out.answers.push((ticket, answer)),
                Output::Happened(Event::AllocationCreated(record)) => {
                    out.created += 1;
                    self.started(worker, &record);
                }
                Output::Happened(Event::AllocationInterim(record)) => self.goes_on(worker, &record),
                Output::Happened(Event::AllocationEnded(record)) => {
                    let key = (worker, record.allocation);
                    let session = self.model.sessions.remove(&key).expect("only a session ends");
                    trace!(self, "  {key:?} ended: {:?}", record.reason);
                    assert!(session.connections.is_empty(), "its connections were closed before");
                    let reason = match (session.over(self.now), &self.ending) {
                        (Some(reason), _) => reason,
                        (None, Some((ending, reason))) if ending.contains(&key) => *reason,
                        (None, Some((_, EndReason::Shutdown))) => EndReason::Shutdown,
                        (None, other) => panic!("{key:?} ended for {:?}, but {other:?} was due", record.reason),
                    };
                    assert_eq!(record.reason, Some(reason));
                    assert_eq!((record.created_at.0, record.ended_at.0), (session.created_at, self.now));
                    assert_eq!((record.via, record.relayed), (session.via, session.relayed));
                    assert_eq!(record.additional.map(|of| of.relayed), session.named, "records name both");
                    if !self.queued.contains_key(&key) {
                        assert_eq!(record.wire_sent(Direction::ToPeer), session.wire_to_peers);
                    }
                    assert_eq!(*record.username, session.request.signed.as_ref().unwrap().username);
                    let who = &session.who;
                    assert_eq!((&*record.identity, record.secret.is_some()), (&*who.identity, who.limited()));
                    assert_eq!(record.tenant.as_deref(), who.tenant.as_deref());
                    assert_eq!(record.realm.as_deref().unwrap_or(REALM), who.realm);
                    self.others += u64::from(who.realm != REALM);
                    self.model.ledger.forget_own(key);
                    assert_eq!(record.traffic, session.traffic, "the record is exact to the byte");
                    self.model.session_of.remove(&session.via);
                    self.model.totals[worker].ended[reason as usize] += 1;
                    self.stopped(worker, *record, &session);
                    self.ended.push(key);
                }
                Output::Happened(Event::Refused { .. }) => self.refused_events += 1,
                other => panic!("an output that this shell does not know: {other:?}"),
            }
        }
        let is_answered = !admissions.is_empty();
        for (allocation, purpose) in admissions {
            let now = self.clock();
            let server = &mut self.workers[worker].server;
            let (claim, limits) = server.quota_claim(allocation).expect("it waits for its admission");
            let result = self.shared.admit(now, &claim, limits, purpose);
            server.handle_input(now, Input::Admission { allocation, result });
        }
        is_answered
    }

    /// An Allocate whose question was not answered in time, or which a shutdown cut off.
    pub fn gave_up(&mut self, worker: usize, via: &Via, bytes: &[u8]) -> bool {
        let Some(&key) = self.model.opening_of.get(via) else { return false };
        let opening = &self.model.openings[&key];
        let overdue = opening.asking.is_some_and(|(_, until)| until <= self.now);
        let code = match &self.ending {
            _ if overdue => 508,
            Some((_, EndReason::Shutdown)) => 486,
            _ if self.revoking.as_ref().is_some_and(|whose| opening.who.is_meant(whose)) => 403,
            _ => return false,
        };
        let request = opening.request.clone();
        self.check_reply(bytes, via, &request, &Outcome::Error { code, signed: true }, true);
        self.note_reply(worker, via, bytes);
        self.model.openings.remove(&key);
        self.model.opening_of.remove(via);
        true
    }
}
