//! The shell's part: relayed addresses, questions between workers, streams, the operator.

use std::collections::BTreeMap;

use throughway::address::{Family, PeerAddress, RelayedTransportAddress, Via};
use throughway::protocol::border::{
    Answer, Input, OpenedRelay, Parity, Question, RelayRefused, RelayRequest, Selector,
};
use throughway::protocol::ids::QuestionId;
use throughway::protocol::reason::EndReason;
use throughway::protocol::revocation::Subject;
use throughway::time::UnixSeconds;
use throughway::wire::message::Message;

use super::config::{RELAY_IPV4, RELAY_IPV6};
use super::model::{Held, Key, Other, Outcome, Session, granted, unix};

use super::world::{Due, Out, Socket, World, trace};

impl World {
    pub fn schedule_open(&mut self, key: Key, wish: RelayRequest) {
        let late = if self.rng.percent(5) { 8_000 } else { 5 };
        self.after(0, late, Due::Open(key, wish));
    }

    /// The shell opens a relayed address, or fails to.
    pub fn open(&mut self, key: Key, wish: RelayRequest) {
        let (worker, id) = key;
        let fails = self.rng.percent(6);
        let result = match wish {
            _ if fails => {
                if let RelayRequest::Reserved { relayed, .. } = wish {
                    self.sockets.remove(&relayed);
                }
                let all = [RelayRefused::NoPort, RelayRefused::NoFiles, RelayRefused::System, RelayRefused::NotHeld];
                Err(*self.rng.pick(&all))
            }
            RelayRequest::Fresh { .. } | RelayRequest::Tcp { .. } => {
                let (family, parity) = match wish {
                    RelayRequest::Fresh { family, parity, .. } => (family, parity),
                    RelayRequest::Tcp { family, .. } => (family, Parity::Any),
                    RelayRequest::Reserved { .. } => unreachable!("the next arm"),
                };
                let ip = if family == Family::V4 { RELAY_IPV4 } else { RELAY_IPV6 };
                let relayed = loop {
                    let port = 49_152 + self.rng.below(16_000) as u16;
                    let port = if parity == Parity::Any { port } else { port & !1 };
                    let next = RelayedTransportAddress::new(ip, port + 1);
                    let relayed = RelayedTransportAddress::new(ip, port);
                    let taken = |address| self.sockets.contains_key(address);
                    if !taken(&relayed) && (parity != Parity::EvenAndHoldNext || !taken(&next)) {
                        break relayed;
                    }
                };
                self.sockets.insert(relayed, Socket { worker, owner: Some(id) });
                let held = (parity == Parity::EvenAndHoldNext).then(|| {
                    let held = RelayedTransportAddress::new(ip, relayed.port() + 1);
                    self.sockets.insert(held, Socket { worker, owner: None });
                    held
                });
                Ok(OpenedRelay { relayed, held })
            }
            RelayRequest::Reserved { relayed, .. } => {
                let socket = self.sockets.get_mut(&relayed).expect("a held port is there");
                assert_eq!((socket.worker, socket.owner), (worker, None), "a held port is taken once, where it is");
                socket.owner = Some(id);
                Ok(OpenedRelay { relayed, held: None })
            }
        };
        trace!(self, "worker {worker} <- {id:?} opened: {result:?}");
        if let Ok(opened) = result {
            let is_tcp = matches!(wish, RelayRequest::Tcp { .. });
            let open = if is_tcp { &self.shared.relayed_tcp } else { &self.shared.relayed };
            open.lock().unwrap().insert(PeerAddress(opened.relayed.0));
        }
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::RelayOpened { allocation: id, result });
        let mut out = self.drain(worker);
        let socket = id;
        let key = self.model.second_of.remove(&key).unwrap_or(key);
        if self.asks_for_another(key, wish, result, &mut out) {
            return self.nothing(&out);
        }
        let Some(mut opening) = self.model.openings.remove(&key) else {
            // The client that wanted it is gone; drain saw it closed.
            if let Ok(opened) = result {
                assert!(!self.sockets.contains_key(&opened.relayed));
                assert!(opened.held.is_none_or(|held| !self.sockets.contains_key(&held)));
            }
            return self.nothing(&out);
        };
        let via = opening.via;
        self.model.opening_of.remove(&via);
        let (_, bytes) = out.replies.pop().expect("the client hears what became of it");
        let (own, other) = match (opening.first, result) {
            (None, result) => (result.ok(), None),
            (Some(first), Err(_)) => {
                opening.refused = Some(2);
                (Some(OpenedRelay { relayed: first, held: None }), None)
            }
            (Some(first), Ok(opened)) => (Some(OpenedRelay { relayed: first, held: None }), Some(opened.relayed)),
        };
        assert_eq!(out.created, usize::from(own.is_some()));
        out.created = 0;
        self.nothing(&out);
        let request = opening.request.clone();
        let outcome = match own {
            Some(opened) => {
                let token = Message::parse(&bytes).unwrap().reservation_token().unwrap().map(|token| token.0);
                assert_eq!(token.is_some(), opened.held.is_some());
                if let (Some(token), Some(relayed)) = (token, opened.held) {
                    assert_eq!(usize::from(token[0]), worker, "a token names its owner");
                    let held = Held {
                        worker,
                        relayed,
                        identity: opening.who.full_identity(),
                        expires_at: self.now + 30_000,
                        via,
                        who: opening.who.clone(),
                    };
                    assert!(self.model.held.insert(token, held).is_none(), "tokens differ");
                }
                let expires_at = self.now + u64::from(granted(request.lifetime)) * 1000;
                let session = Session {
                    via,
                    relayed: opened.relayed,
                    own_until: expires_at,
                    other: other.map(|relayed| Other { relayed, socket, until: expires_at }),
                    named: other,
                    refused: opening.refused,
                    wire_to_peers: 0,
                    request: request.clone(),
                    ends_by: opening.who.ends_by(&self.config, self.now, self.now),
                    who: opening.who,
                    token,
                    created_at: self.now,
                    expires_at,
                    is_tcp: request.transport == Some(6),
                    connections: BTreeMap::new(),
                    permissions: BTreeMap::new(),
                    channels: BTreeMap::new(),
                    traffic: Default::default(),
                    drops: Default::default(),
                };
                if session.is_tcp {
                    self.model.ledger.of_tcp.insert(key);
                }
                self.model.sessions.insert(key, session);
                assert!(self.model.session_of.insert(via, key).is_none(), "one allocation per five-tuple");
                self.model.totals[worker].created += 1;
                Outcome::Success
            }
            None => Outcome::Error { code: 508, signed: true },
        };
        self.check_reply(&bytes, &via, &request, &outcome, true);
        self.note_reply(worker, &via, &bytes);
        self.send_reply(via, bytes);
    }

    /// Who asked for both families has the second one opened after the first, or in its place.
    fn asks_for_another(
        &mut self,
        key: Key,
        wish: RelayRequest,
        result: Result<OpenedRelay, RelayRefused>,
        out: &mut Out,
    ) -> bool {
        let Some(opening) = self.model.openings.get_mut(&key) else { return false };
        let is_first = matches!(wish, RelayRequest::Fresh { family: Family::V4, .. });
        if opening.request.additional != Some(2) || !is_first {
            return false;
        }
        let (id, next) = out.opens.pop().expect("the other family is asked for");
        let RelayRequest::Fresh { parity, client, .. } = wish else { unreachable!("a fresh one") };
        assert_eq!(next, RelayRequest::Fresh { family: Family::V6, parity, part: None, client });
        let socket = (key.0, id);
        match result {
            Ok(opened) => {
                assert_ne!(socket, key, "it has an id of its own");
                opening.first = Some(opened.relayed);
                assert!(self.model.second_of.insert(socket, key).is_none());
            }
            Err(_) => {
                assert_eq!(socket, key, "it is the only one then");
                opening.refused = Some(1);
            }
        }
        self.schedule_open(socket, next);
        true
    }

    pub fn asked(&mut self, worker: usize, ticket: QuestionId, question: Question) {
        let Question::Reservation { token, identity } = &question else { panic!("another question: {question:?}") };
        let due = self.model.reserved(worker, &token.0, identity, self.now);
        let token = token.0;
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::Asked { ticket, question });
        let mut out = self.drain(worker);
        let (back, answer) = out.answers.pop().expect("a question is answered");
        self.nothing(&out);
        assert_eq!((back, &answer), (ticket, &Answer::Reservation(due)));
        let asker = usize::from(ticket.worker.0);
        if let Some(relayed) = due {
            self.model.held.remove(&token);
            self.sockets.get_mut(&relayed).expect("a held port is there").worker = asker;
        }
        if self.rng.percent(10) {
            // The inbox is full: the shell closes the socket that would have come along.
            if let Some(relayed) = due {
                self.sockets.remove(&relayed);
            }
        } else {
            let late = if self.rng.percent(20) { 3_000 } else { 20 };
            self.after(0, late, Due::Answered(asker, ticket, answer));
        }
    }

    pub fn answered(&mut self, worker: usize, ticket: QuestionId, answer: Answer) {
        let Answer::Reservation(relayed) = answer else { panic!("another answer: {answer:?}") };
        let waiting = self
            .model
            .openings
            .iter()
            .find(|((at, _), opening)| {
                *at == worker && opening.asking.is_some_and(|(n, until)| n == ticket.number && self.now < until)
            })
            .map(|(key, _)| *key);
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::Answered { ticket, answer });
        let mut out = self.drain(worker);
        match (waiting, relayed) {
            (Some(key), Some(relayed)) => {
                let (id, wish) = out.opens.pop().expect("the handed over port is opened");
                let client = self.model.openings[&key].via.five_tuple().client.ip();
                assert_eq!(wish, RelayRequest::Reserved { relayed, client });
                let mut opening = self.model.openings.remove(&key).unwrap();
                opening.asking = None;
                self.model.opening_of.insert(opening.via, (worker, id));
                self.model.openings.insert((worker, id), opening);
                self.schedule_open((worker, id), wish);
            }
            (Some(key), None) => {
                let opening = self.model.openings.remove(&key).unwrap();
                self.model.opening_of.remove(&opening.via);
                let (via, bytes) = out.replies.pop().expect("508");
                // What was asked may have been a damaged copy, without its FINGERPRINT.
                self.check_reply(&bytes, &via, &opening.request, &Outcome::Error { code: 508, signed: true }, true);
                self.note_reply(worker, &via, &bytes);
                self.send_reply(via, bytes);
            }
            (None, Some(relayed)) => {
                assert!(!self.sockets.contains_key(&relayed), "a port that is not wanted is closed")
            }
            (None, None) => {}
        }
        self.nothing(&out);
    }

    pub fn close_stream(&mut self, via: Via) {
        let worker = self.worker_of(&via);
        self.client_of.remove(&via);
        self.ending = self.model.alive(&via, self.now).map(|(key, _)| (vec![key], EndReason::ClientClosed));
        let opening = self.model.opening(&via, self.now);
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::ClientClosed { via });
        let out = self.drain(worker);
        self.nothing(&out);
        self.ending = None;
        if let Some(key) = opening {
            self.model.openings.remove(&key);
            self.model.opening_of.remove(&via);
        }
        assert!(!self.workers[worker].server.has_allocation(&via), "an allocation ends with its stream");
    }

    pub fn reconfigure(&mut self) {
        trace!(self, "reconfigured: {:?}", self.config);
        // Those that would take over know the settings of its beginning.
        if self.hand_over.is_some() {
            self.give_up_hand_over();
        }
        let settings = self.config.settings();
        self.is_reconfiguring = true;
        for worker in 0..self.workers.len() {
            let clock = self.clock();
            self.workers[worker].server.handle_input(clock, Input::Reconfigure(settings.clone()));
            let out = self.drain(worker);
            self.nothing(&out);
        }
        self.is_reconfiguring = false;
        let (config, now) = (&self.config, self.now);
        for session in self.model.sessions.values_mut() {
            // A credential that is out of bytes stays so.
            if session.ends_by.is_none_or(|(_, why)| why != EndReason::Budget) {
                session.ends_by = session.who.ends_by(config, session.created_at, now);
            }
            for connection in session.connections.values() {
                assert!(config.class(connection.peer.ip()).is_some(), "what is forbidden now was closed");
            }
            session.permissions.retain(|ip, _| config.class(*ip).is_some());
            session.channels.retain(|_, (peer, _)| config.class(peer.ip()).is_some());
        }
    }

    /// An operator ends sessions, on whichever worker they are.
    fn close(&mut self, which: &Selector, keys: Vec<Key>, reason: EndReason) {
        trace!(self, "{reason:?}: {which:?}, {keys:?}");
        self.ending = Some((keys.clone(), reason));
        for worker in 0..self.workers.len() {
            let clock = self.clock();
            self.workers[worker].server.handle_input(clock, Input::Close { which: which.clone(), reason });
            let out = self.drain(worker);
            self.nothing(&out);
        }
        self.ending = None;
        assert!(keys.iter().all(|key| !self.model.sessions.contains_key(key)), "the sessions that are meant are gone");
    }

    pub fn kick(&mut self, key: Key) {
        let (name, ..) = self.plans[&key];
        self.close(&Selector::Session(name), vec![key], EndReason::Kicked);
    }

    pub fn revoke(&mut self, whose: Subject, seconds: u64) {
        let until = unix(self.now) + seconds;
        self.shared.revoked.lock().unwrap().insert(whose.clone(), UnixSeconds(until));
        self.model.revoked.push((whose.clone(), until));
        let meant = self.model.sessions.iter().filter(|(_, session)| session.who.is_meant(&whose));
        let keys = meant.map(|(key, _)| *key).collect();
        self.revoking = Some(whose.clone());
        self.close(&Selector::Subject(whose.clone()), keys, EndReason::Revoked);
        self.revoking = None;
        assert!(!self.model.openings.values().any(|opening| opening.who.is_meant(&whose)), "nor does any come");
    }

    pub fn forgive(&mut self, whose: &Subject) {
        trace!(self, "{whose:?} may come again");
        let was = self.model.revoked.len();
        self.model.revoked.retain(|(other, _)| other != whose);
        assert_eq!(self.shared.revoked.lock().unwrap().remove(whose), self.model.revoked.len() < was);
    }

    pub fn drain_servers(&mut self) {
        trace!(self, "drain");
        self.model.draining = true;
        for worker in 0..self.workers.len() {
            let clock = self.clock();
            self.workers[worker].server.handle_input(clock, Input::Drain);
            let out = self.drain(worker);
            self.nothing(&out);
        }
    }

    pub fn close_all(&mut self) {
        trace!(self, "close all");
        self.model.draining = true;
        for worker in 0..self.workers.len() {
            self.ending = Some((Vec::new(), EndReason::Shutdown));
            let clock = self.clock();
            self.workers[worker].server.handle_input(clock, Input::CloseAll(EndReason::Shutdown));
            let out = self.drain(worker);
            self.nothing(&out);
            self.ending = None;
            assert_eq!(self.workers[worker].server.allocations(), 0);
        }
        assert!(self.model.sessions.is_empty() && self.model.openings.is_empty(), "a shutdown leaves nothing behind");
    }
}
