//! Allocate requests under way: each waits for an admission, for a held port, or for its relayed socket.
//!
//! No success leaves before the socket is bound. A request waits here while somebody else decides: [`Stage`] says who.

use hashbrown::HashMap;
use minicbor::{Decode, Encode};

use super::border::Parity;
use super::ids::AllocationId;
use super::owner::{Owner, OwnerState};
use crate::address::{Family, RelayedTransportAddress, Via};
use crate::time::Ticks;
use crate::wire::attribute::ReservationToken;
use crate::wire::integrity::{ReplyIntegrity, ReplyKey};
use crate::wire::message::TransactionId;

/// What an Allocate request asks for (RFC 8656 section 7.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct RequestedAllocation {
    /// In seconds, as it will be granted.
    #[n(0)]
    pub lifetime: u32,
    /// Of the relayed address.
    #[n(1)]
    pub family: Family,
    /// Of the port.
    #[n(2)]
    pub parity: Parity,
    /// The RESERVATION-TOKEN that it brings.
    #[n(3)]
    pub token: Option<ReservationToken>,
    /// The family of the second relayed address that it asks for as well.
    #[n(4)]
    pub additional: Option<Family>,
    /// The family of two that can't be had, and the ADDRESS-ERROR-CODE that says why.
    #[n(5)]
    pub refused: Option<(Family, u16)>,
    /// Whether it asks for a ticket (RFC 8016); `None` is no.
    #[n(6)]
    pub is_mobile: Option<bool>,
    /// Whether it asks for a TCP allocation, if it does.
    #[n(7)]
    pub is_tcp: Option<bool>,
}

/// Whose answer an [`Opening`] waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Stage {
    /// The quotas': nothing is counted yet.
    #[n(0)]
    Admission {
        /// When the client is told that there was no answer; `None` if another process asked, of a release that waited.
        #[n(0)]
        overdue_at: Option<Ticks>,
    },
    /// Another worker's, which holds the port.
    #[n(1)]
    Reservation {
        /// The number of our question.
        #[n(0)]
        question: u64,
        /// When we stop waiting.
        #[n(1)]
        overdue_at: Ticks,
    },
    /// The shell's, which opens the relayed socket.
    #[n(2)]
    Relay,
    /// The shell's, which opens the second relayed socket.
    #[n(3)]
    Additional {
        /// What it will be known by.
        #[n(0)]
        socket: AllocationId,
        /// The first one, which is open.
        #[n(1)]
        first: RelayedTransportAddress,
    },
}

impl Stage {
    /// Whether the quotas have not answered yet.
    pub(super) const fn is_admission(self) -> bool {
        matches!(self, Self::Admission { .. })
    }
}

/// An Allocate request that was checked and waits.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) via: Via,
    pub(super) owner: Owner,
    pub(super) transaction_id: TransactionId,
    pub(super) fingerprint: bool,
    /// How the answer is signed.
    pub(super) integrity: ReplyIntegrity,
    pub(super) requested: RequestedAllocation,
    /// The token under which the next port will be held; it counts as soon as the request is admitted.
    pub(super) holds: Option<ReservationToken>,
    pub(super) stage: Stage,
    /// The client has gone, or was refused, while the quotas were asked: what they count must be given back.
    pub(super) is_abandoned: bool,
}

/// An [`Opening`] as plain values.
#[derive(Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct OpeningState {
    /// The slot that it will fill.
    #[n(0)]
    pub id: AllocationId,
    /// How the client comes.
    #[n(1)]
    pub via: Via,
    /// Who asks.
    #[n(2)]
    pub owner: OwnerState,
    /// Of the Allocate request.
    #[n(3)]
    pub transaction_id: TransactionId,
    /// Whether the answer ends with FINGERPRINT.
    #[n(4)]
    pub fingerprint: bool,
    /// What is asked for.
    #[n(5)]
    pub requested: RequestedAllocation,
    /// The token under which the next port will be held.
    #[n(6)]
    pub holds: Option<ReservationToken>,
    /// Whose answer it waits for.
    #[n(7)]
    pub stage: Stage,
    /// The client has gone.
    #[n(8)]
    pub is_abandoned: bool,
    /// How the answer is signed, if not by MESSAGE-INTEGRITY.
    #[n(9)]
    pub integrity: Option<ReplyIntegrity>,
}

impl Opening {
    /// What the answer is signed with.
    pub(super) fn key(&self) -> ReplyKey {
        ReplyKey { key: self.owner.key(), integrity: self.integrity }
    }
}

impl OpeningState {
    /// Whether it needs more than RFC 5389 knew.
    pub(super) fn uses_sha256(&self) -> bool {
        self.integrity.is_some() || self.owner.has_sha256_key()
    }
}

impl From<OpeningState> for Opening {
    fn from(state: OpeningState) -> Self {
        let OpeningState {
            id: _,
            via,
            owner,
            transaction_id,
            fingerprint,
            requested,
            holds,
            stage,
            is_abandoned,
            integrity,
        } = state;
        let (owner, integrity) = (Owner::from_state(owner), integrity.unwrap_or_default());
        Self { via, owner, transaction_id, fingerprint, integrity, requested, holds, stage, is_abandoned }
    }
}

/// All of one worker's, by slot, by client, and by the question that they wait for.
#[derive(Debug)]
pub(super) struct Openings {
    by_id: HashMap<AllocationId, Opening, foldhash::fast::FixedState>,
    by_client: HashMap<Via, AllocationId, foldhash::fast::FixedState>,
    by_question: HashMap<u64, AllocationId, foldhash::fast::FixedState>,
    by_additional: HashMap<AllocationId, AllocationId, foldhash::fast::FixedState>,
    /// Questions to other workers so far, which numbers them.
    asked: u64,
}

impl Openings {
    /// `hasher` is keyed by a secret, since the keys come from the network.
    pub(super) fn new(hasher: &foldhash::fast::FixedState) -> Self {
        Self {
            by_id: HashMap::with_hasher(hasher.clone()),
            by_client: HashMap::with_hasher(hasher.clone()),
            by_question: HashMap::with_hasher(hasher.clone()),
            by_additional: HashMap::with_hasher(hasher.clone()),
            asked: 0,
        }
    }

    pub(super) fn insert(&mut self, id: AllocationId, opening: Opening) {
        if !opening.is_abandoned {
            self.by_client.insert(opening.via, id);
        }
        match opening.stage {
            Stage::Reservation { question, .. } => drop(self.by_question.insert(question, id)),
            Stage::Additional { socket, .. } => drop(self.by_additional.insert(socket, id)),
            Stage::Admission { .. } | Stage::Relay => {}
        }
        self.by_id.insert(id, opening);
    }

    pub(super) fn get(&self, id: AllocationId) -> Option<&Opening> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut Opening> {
        self.by_id.get_mut(&id)
    }

    /// The slot that a client waits for.
    pub(super) fn of_client(&self, via: &Via) -> Option<AllocationId> {
        self.by_client.get(via).copied()
    }

    /// Takes one out: its client may ask again, and an answer to its question has no receiver any more.
    pub(super) fn remove(&mut self, id: AllocationId) -> Option<Opening> {
        let opening = self.by_id.remove(&id)?;
        if !opening.is_abandoned {
            self.by_client.remove(&opening.via);
        }
        match opening.stage {
            Stage::Reservation { question, .. } => drop(self.by_question.remove(&question)),
            Stage::Additional { socket, .. } => drop(self.by_additional.remove(&socket)),
            Stage::Admission { .. } | Stage::Relay => {}
        }
        Some(opening)
    }

    /// The opening that waits for the second socket which will be known by this.
    pub(super) fn of_additional(&self, socket: AllocationId) -> Option<AllocationId> {
        self.by_additional.get(&socket).copied()
    }

    /// Notes that the first socket of an opening is there, and that it waits for the second one.
    pub(super) fn await_additional(&mut self, id: AllocationId, socket: AllocationId, first: RelayedTransportAddress) {
        if let Some(opening) = self.by_id.get_mut(&id) {
            opening.stage = Stage::Additional { socket, first };
            self.by_additional.insert(socket, id);
        }
    }

    /// The client has gone; the opening stays until the quotas have answered.
    pub(super) fn abandon(&mut self, id: AllocationId) {
        if let Some(opening) = self.by_id.get_mut(&id).filter(|opening| !opening.is_abandoned) {
            opening.is_abandoned = true;
            self.by_client.remove(&opening.via);
        }
    }

    /// Notes that an opening waits for another worker; gives the number of the question.
    pub(super) fn ask(&mut self, id: AllocationId, overdue_at: Ticks) -> u64 {
        let question = self.asked + 1;
        self.asked = question;
        if let Some(opening) = self.by_id.get_mut(&id) {
            opening.stage = Stage::Reservation { question, overdue_at };
            self.by_question.insert(question, id);
        }
        question
    }

    /// How many questions there ever were.
    pub(super) const fn asked(&self) -> u64 {
        self.asked
    }

    /// Goes on numbering where another process was.
    pub(super) const fn set_asked(&mut self, asked: u64) {
        self.asked = asked;
    }

    /// Every opening as plain values, in the order of their slots.
    #[allow(clippy::disallowed_methods, reason = "what comes out of the map is sorted at once")]
    pub(super) fn to_state(&self) -> Vec<OpeningState> {
        let state = |(id, opening): (&AllocationId, &Opening)| OpeningState {
            id: *id,
            via: opening.via,
            owner: opening.owner.to_state(),
            transaction_id: opening.transaction_id,
            fingerprint: opening.fingerprint,
            requested: opening.requested,
            holds: opening.holds,
            stage: opening.stage,
            is_abandoned: opening.is_abandoned,
            integrity: Some(opening.integrity).filter(|integrity| *integrity != ReplyIntegrity::default()),
        };
        let mut openings: Vec<OpeningState> = self.by_id.iter().map(state).collect();
        openings.sort_unstable_by_key(|opening| opening.id);
        openings
    }

    /// A question was answered, or its time is over: the opening that waited for it, if it still does.
    pub(super) fn answered(&mut self, question: u64) -> Option<AllocationId> {
        self.by_question.remove(&question)
    }

    /// Those that still have a client, in the order of their slots: the order of a hash map must not decide anything.
    #[allow(clippy::disallowed_methods, reason = "what comes out of the map is sorted at once")]
    pub(super) fn ids(&self, meant: impl Fn(&Opening) -> bool) -> Vec<AllocationId> {
        let live = self.by_id.iter().filter(|(_, opening)| !opening.is_abandoned && meant(opening));
        let mut ids: Vec<AllocationId> = live.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    #[allow(clippy::disallowed_methods, reason = "each is changed for itself, in any order")]
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Opening> {
        self.by_id.values_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Questions to other workers that wait for their answers.
    pub(super) fn questions(&self) -> usize {
        self.by_question.len()
    }

    #[allow(clippy::disallowed_methods, reason = "each is checked for itself, in any order")]
    pub(super) fn check_invariants(&self) {
        let with_client = self.by_id.values().filter(|opening| !opening.is_abandoned).count();
        assert_eq!(with_client, self.by_client.len(), "every opening is found by its client");
        let asking = self.by_id.values().filter(|opening| matches!(opening.stage, Stage::Reservation { .. })).count();
        assert_eq!(asking, self.by_question.len(), "every question is found by its number");
    }
}
