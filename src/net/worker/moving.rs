//! Allocations that go from worker to worker with a client that changes its network (RFC 8016).
//!
//! [`Worker`] itself stands in `net::worker`; what moves when is the core's to say: `protocol::moving`.

use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use super::{Message, NotSent, RELAY, Worker, token};
use crate::address::{RelayedTransportAddress, StreamId, Via};
use crate::net::overflow::Watched;
use crate::protocol::accounting::Amount;
use crate::protocol::border::{Answer, Input, Question, RelayRequest};
use crate::protocol::ids::{AllocationId, QuestionId, WorkerId};
use crate::protocol::paths::PathAnswer;
use crate::protocol::reason::DropReason;
use crate::time::Now;

/// Relayed sockets on their way to another worker.
pub(in crate::net) type MovingSockets = Vec<(RelayedTransportAddress, Watched<UdpSocket>)>;

impl Worker {
    pub(super) fn ask(&mut self, now: Now, worker: WorkerId, ticket: QuestionId, question: Question) {
        let failed = match &question {
            Question::Reservation { .. } => Some(Answer::Reservation(None)),
            Question::Path(of) => of.has_answer().then(|| Answer::Path(PathAnswer::NoRoom { via: of.via() })),
        };
        let mailbox = self.mailboxes.get(usize::from(worker.0));
        if mailbox.is_none_or(|mailbox| mailbox.send(Message::Ask { ticket, question }).is_err()) {
            self.counters.dropped(DropReason::InboxFull, 1, 0);
            let Some(answer) = failed else { return };
            // A question that came from another worker, and should have gone on.
            if ticket.worker == self.id {
                self.answers.push_back(Input::Answered { ticket, answer });
            } else {
                self.answer(now, ticket, answer);
            }
        }
    }

    pub(super) fn answer(&mut self, now: Now, ticket: QuestionId, answer: Answer) {
        if let Answer::Path(PathAnswer::Moved { allocation: Some((_, state)), .. }) = &answer {
            // What was judged before leaves by the sockets while they are here.
            let sockets: Vec<_> = state.sockets().collect();
            self.flush();
            return self.move_away(now, ticket, answer, &sockets);
        }
        let relayed = match answer {
            Answer::Reservation(relayed) => relayed,
            Answer::Path(_) => None,
        };
        let held = relayed.and_then(|relayed| Some((relayed, self.relays.take_held(relayed)?)));
        let Some(mailbox) = self.mailboxes.get(usize::from(ticket.worker.0)) else { return };
        let message = Message::Answer { ticket, answer, sockets: held.into_iter().collect() };
        if let Err(NotSent::Full(message) | NotSent::Gone(message)) = mailbox.send(message) {
            self.counters.dropped(DropReason::InboxFull, 1, 0);
            let Message::Answer { sockets, .. } = message else { return };
            // The held socket that came along is closed here.
            for (relayed, socket) in sockets {
                self.relays.put_held(relayed, socket);
                self.relays.close_held(relayed, now.ticks);
            }
        }
    }

    /// What the client's stream does not take now will never leave: its allocation counts it before it goes to another worker.
    pub(super) fn settle_before_move(&mut self, now: Now, ticket: QuestionId, question: &Question) {
        let Some(Via::Stream(id, _)) = self.server.leaves_by(now, ticket, question) else { return };
        self.flush();
        if let Some(at) = self.streams.find(id) {
            self.flush_stream(now, at);
        }
        self.give_up_waiting(id);
        // Half a frame was written: with its connection it is decided.
        let is_waiting = |at: &usize| self.streams.get(*at).is_some_and(|stream| stream.waiting() != Amount::default());
        if let Some(at) = self.streams.find(id).filter(is_waiting) {
            self.close_stream(now, at);
        }
    }

    fn give_up_waiting(&mut self, id: StreamId) {
        let Some((at, stream)) = self.streams.find(id).and_then(|at| Some((at, self.streams.get_mut(at)?))) else {
            return;
        };
        let before = stream.waiting();
        let given_up = stream.give_up_beyond(0);
        let after = stream.waiting();
        self.net.waits(before, after);
        for (allocation, bytes) in given_up {
            self.not_sent_to_stream(at, allocation, u64::from(bytes), DropReason::StreamClosed);
        }
        self.tell_decided(at);
    }

    /// Gives an allocation and its sockets to another worker, or has them back at once.
    fn move_away(
        &mut self,
        now: Now,
        ticket: QuestionId,
        answer: Answer,
        known: &[(AllocationId, RelayedTransportAddress)],
    ) {
        let take = |(id, relayed): &(AllocationId, RelayedTransportAddress)| {
            let socket = self.relays.take(*id)?;
            self.epoll.remove(socket.as_fd());
            Some((*relayed, socket))
        };
        let sockets: MovingSockets = known.iter().filter_map(take).collect();
        // Before the other worker can write that it has it: two that adopt one socket after a crash would be worse than none.
        self.write_ledger();
        let Some(mailbox) = self.mailboxes.get(usize::from(ticket.worker.0)) else { return };
        let Err(NotSent::Full(message) | NotSent::Gone(message)) =
            mailbox.send(Message::Answer { ticket, answer, sockets })
        else {
            return;
        };
        self.counters.dropped(DropReason::InboxFull, 1, 0);
        let Message::Answer {
            answer: Answer::Path(PathAnswer::Moved { allocation: Some((from, state)), .. }),
            sockets,
            ..
        } = message
        else {
            return;
        };
        self.server.come_back(ticket.worker, from, *state);
        for ((relayed, socket), (id, _)) in sockets.into_iter().zip(known) {
            self.relays.put_held(relayed, socket);
            self.keep_relay(now, *id, relayed, from);
        }
    }

    /// Makes a socket that came along the one of its allocation; without it that ends.
    pub(super) fn keep_relay(
        &mut self,
        now: Now,
        allocation: AllocationId,
        relayed: RelayedTransportAddress,
        via: Via,
    ) {
        let request = RelayRequest::Reserved { relayed, client: via.five_tuple().client.ip() };
        let is_kept = self.relays.open(allocation, request, now.ticks).is_ok()
            && self.relays.get(allocation).is_some_and(|relay| {
                self.epoll.add(relay.socket.as_fd(), token(RELAY, allocation.index as usize)).is_ok()
            });
        if !is_kept {
            self.answers.push_back(Input::Failed { via });
        }
    }

    /// The way of a client belongs to an allocation, or no longer.
    pub(super) fn on_path(&mut self, now: Now, via: Via, is_in_use: bool) {
        match via {
            Via::Datagram(five_tuple) => self.listeners.count(&five_tuple.server, is_in_use),
            Via::Stream(stream, _) if !is_in_use => {
                // The client reads elsewhere.
                self.give_up_waiting(stream);
                self.streams.expect_allocation(stream, now.ticks);
            }
            Via::Stream(stream, _) if self.streams.find(stream).is_some() => self.streams.keep_alive(stream),
            // It closed meanwhile.
            Via::Stream(..) => self.answers.push_back(Input::ClientClosed { via }),
        }
    }
}
