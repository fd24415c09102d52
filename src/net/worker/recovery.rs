//! A panic in a worker's turn: its server is made anew of what it holds, in place. Sockets and streams stay, the session in
//! hand ends, and nothing is done twice.
//!
//! [`Worker`] itself stands in `net::worker`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::Worker;
use crate::address::{FiveTuple, StreamId, Via};
use crate::clock;
use crate::protocol::border::{InHand, Input, RelayRefused};
use crate::protocol::ids::AllocationId;
use crate::protocol::opening::Stage;
use crate::protocol::reason::{DropReason, EndReason};
use crate::protocol::reject::RejectReason;
use crate::protocol::{Parts, Server};
use crate::time::Now;

impl Worker {
    /// Goes on after a panic in this worker's turn.
    ///
    /// # Errors
    /// Why it can't: then the process must end.
    pub(super) fn recover(&mut self) -> Result<(), &'static str> {
        let now = clock::now();
        let (in_hand, visited) = (self.server.in_hand(), self.visited.take());
        if self.datagrams.is_sending {
            return Err("it happened while packets were being sent");
        }
        if !self.process.may_go_on(now.ticks) {
            return Err("it was the third panic within a minute");
        }
        let restarted = catch_unwind(AssertUnwindSafe(|| self.restart_server(now, in_hand, visited)));
        restarted.map_err(|_| "the restart of the server panicked too")??;
        self.net.core_restarts.add(1);
        // What waited may have been taken by halves.
        self.waker.wake();
        if self.stopping {
            self.server.handle_input(now, Input::CloseAll(EndReason::Shutdown));
            self.drain(now);
        }
        Ok(())
    }

    fn restart_server(&mut self, now: Now, in_hand: InHand, visited: Option<StreamId>) -> Result<(), &'static str> {
        let client = self.server.client_in_hand();
        self.server.put_down();
        // What was judged before leaves, and what the core wanted done is done.
        self.flush();
        while let Some(output) = self.server.poll_output() {
            self.on_output(now, output);
        }
        let state = self.server.export();
        let openings: Vec<(AllocationId, Stage)> = state.openings.iter().map(|of| (of.id, of.stage)).collect();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|_| "the system gives no random bytes")?;
        let parts = Parts {
            worker: self.id,
            workers: self.mailboxes.len(),
            shared: Arc::clone(&self.process) as _,
            counters: Arc::clone(&self.counters),
            // Comes with the state.
            nonce_key: Box::default(),
            seed,
        };
        let settings = Arc::clone(self.server.settings());
        self.server = Server::import(parts, settings, state).map_err(|_| "what the server held contradicts itself")?;
        for (id, stage) in openings {
            self.answer_what_was_lost(id, stage);
        }
        if let Some(via) = client {
            self.server.handle_input(now, Input::Failed { via });
        }
        self.drain(now);
        self.match_sockets(now);
        self.match_connections(now);
        self.begin_ledger_anew();
        self.flush();
        self.end_streams_in_hand(now, client, visited);
        let address = client.map(|via| via.five_tuple().client);
        let is_ignored = client.is_some_and(|via| self.process.suspects.note(*via.five_tuple(), now.ticks));
        tracing::error!(
            worker = self.id.0,
            in_hand = in_hand.name(),
            client = address.map(tracing::field::display),
            is_ignored,
            "a panic was caught: the worker's server was made anew of its state, the session in hand has ended"
        );
        Ok(())
    }

    /// An answer that the turn lost will not come again: a request that waits for it is refused.
    fn answer_what_was_lost(&mut self, id: AllocationId, stage: Stage) {
        let asked = match stage {
            Stage::Additional { socket, .. } => socket,
            Stage::Admission { .. } | Stage::Reservation { .. } | Stage::Relay => id,
        };
        let is_for_it = |answer: &Input<'_>| matches!(answer, Input::Admission { allocation, .. } | Input::RelayOpened { allocation, .. } if *allocation == asked);
        if self.answers.iter().any(is_for_it) {
            return;
        }
        self.answers.extend(match stage {
            Stage::Admission { .. } => {
                Some(Input::Admission { allocation: id, result: Err(RejectReason::ServerFault) })
            }
            Stage::Relay => Some(Input::RelayOpened { allocation: id, result: Err(RelayRefused::System) }),
            Stage::Additional { socket, .. } => {
                Some(Input::RelayOpened { allocation: socket, result: Err(RelayRefused::System) })
            }
            // Another worker's answer comes, or its time limit.
            Stage::Reservation { .. } => None,
        });
    }

    /// Closes relayed sockets that belong to no allocation, and ends allocations that have none.
    fn match_sockets(&mut self, now: Now) {
        let is_there = |id| self.relays.get(id).is_some() || self.peers.relay(id).is_some();
        let missing = self.server.sockets().filter(|(socket, _, _)| !is_there(*socket));
        let without: Vec<Via> = missing.map(|(_, _, via)| via).collect();
        for via in without {
            self.server.handle_input(now, Input::Failed { via });
        }
        let owned = self.server.sockets().map(|(socket, _, _)| socket).collect();
        self.relays.close_others(&owned, now.ticks);
        self.peers.close_others(&owned, now.ticks);
        self.drain(now);
    }

    /// A stream loses its place among its bytes when the message in hand is given up.
    fn end_streams_in_hand(&mut self, now: Now, client: Option<Via>, visited: Option<StreamId>) {
        let of_client = client.and_then(|via| match via {
            Via::Stream(id, _) => Some(id),
            Via::Datagram(_) => None,
        });
        for id in [of_client, visited].into_iter().flatten() {
            if let Some(at) = self.streams.find(id) {
                self.close_stream(now, at);
            }
        }
    }

    /// Whether a datagram is dropped because of what its client's packets did.
    #[inline]
    pub(super) fn drops_suspect(&self, five_tuple: &FiveTuple, bytes: usize) -> bool {
        let is_ignored = self.process.suspects.ignores(five_tuple, self.now);
        if is_ignored {
            self.counters.dropped(DropReason::Suspect, 1, bytes as u64);
        }
        is_ignored
    }
}
