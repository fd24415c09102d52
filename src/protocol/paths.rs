//! Ways of clients whose allocation belongs to another worker, until data come by them (RFC 8016), and what workers ask
//! each other about them.
//!
//! A request that comes such a way goes to the allocation's worker whole, and its answer comes back. The first data make
//! the allocation itself come here. Decision 0208.

use hashbrown::HashMap;
use minicbor::{Decode, Encode};

use super::allocation::AllocationState;
use super::ids::{QuestionId, SessionId};
use crate::address::Via;
use crate::time::Ticks;

/// How long another worker may take to answer, in milliseconds.
const ANSWER_WITHIN: u64 = 2_000;

/// Questions of one worker that may be under way: no client can fill the inbox of another worker with them.
pub const PATH_QUESTIONS_MAX: usize = 64;

/// Of these, questions of one session: a client that repeats itself takes no other's place.
pub const PATH_QUESTIONS_OF_SESSION_MAX: usize = 4;

/// How often a question goes on to the worker that has the allocation by then.
pub const PATH_HOPS_MAX: u8 = 8;

/// What one worker asks, or tells, another one about the way of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PathQuestion {
    /// Handle this request, which came here: the allocation is yours.
    Request {
        /// Of the allocation.
        session: SessionId,
        /// How it came.
        via: Via,
        /// Exactly one message.
        bytes: Box<[u8]>,
        /// How often the question went on.
        hops: u8,
    },
    /// Data came here: give the allocation away.
    Move {
        /// Of the allocation.
        session: SessionId,
        /// How they came.
        via: Via,
        /// How often the question went on.
        hops: u8,
    },
    /// The client has closed its other way: come and get its allocation. There is no answer.
    Fetch {
        /// The way that ends at the worker that is told.
        via: Via,
    },
    /// The allocation has ended, or its client will come another way. There is no answer.
    Forget {
        /// The way that ends at the worker that is told.
        via: Via,
    },
    /// The client has closed this way, by which no data came. There is no answer.
    Gone {
        /// Of the allocation.
        session: SessionId,
        /// The way.
        via: Via,
    },
}

/// What is answered.
#[derive(Clone, PartialEq, Debug)]
pub enum PathAnswer {
    /// To [`PathQuestion::Request`].
    Request {
        /// How the request came.
        via: Via,
        /// What its client hears; empty for silence.
        bytes: Box<[u8]>,
        /// Whether that way belongs to an allocation of ours, of which session, and until when.
        path: Option<(SessionId, Ticks)>,
    },
    /// To [`PathQuestion::Move`].
    Moved {
        /// How the data came.
        via: Via,
        /// The way that the client has left, and the allocation, whose sockets come along; `None` if it is not here.
        allocation: Option<(Via, Box<AllocationState>)>,
    },
    /// The question could not be asked: an inbox is full.
    NoRoom {
        /// The way that it was about.
        via: Via,
    },
}

impl PathQuestion {
    /// The way that it is about.
    #[must_use]
    pub const fn via(&self) -> Via {
        match self {
            Self::Request { via, .. }
            | Self::Move { via, .. }
            | Self::Fetch { via }
            | Self::Forget { via }
            | Self::Gone { via, .. } => *via,
        }
    }

    /// How many bytes of a client it brings.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        match self {
            Self::Request { bytes, .. } => bytes.len(),
            Self::Move { .. } | Self::Fetch { .. } | Self::Forget { .. } | Self::Gone { .. } => 0,
        }
    }

    /// How often it went on.
    #[must_use]
    pub const fn hops(&self) -> u8 {
        match self {
            Self::Request { hops, .. } | Self::Move { hops, .. } => *hops,
            Self::Fetch { .. } | Self::Forget { .. } | Self::Gone { .. } => 0,
        }
    }

    /// Whether somebody waits for an answer.
    #[must_use]
    pub const fn has_answer(&self) -> bool {
        matches!(self, Self::Request { .. } | Self::Move { .. })
    }
}

/// A way as plain values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ForeignPathState {
    /// How the client comes.
    #[n(0)]
    pub via: Via,
    /// Of the allocation, which is another worker's.
    #[n(1)]
    pub session: SessionId,
    /// When it is forgotten.
    #[n(2)]
    pub expires_at: Ticks,
}

/// How far the allocation is on its way here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fetch {
    /// No data have come.
    No,
    /// They have.
    Wanted,
    /// Its worker was asked for it.
    Asked(Ticks),
}

#[derive(Clone, Copy, Debug)]
struct ForeignPath {
    session: SessionId,
    number: u64,
    expires_at: Ticks,
    fetch: Fetch,
}

/// All of one worker's, by way and by the number of their deadline.
#[derive(Debug)]
pub(super) struct ForeignPaths {
    by_via: HashMap<Via, ForeignPath, foldhash::fast::FixedState>,
    by_number: HashMap<u64, Via, foldhash::fast::FixedState>,
    count: u64,
    /// Questions that have no answer yet: about which ways, and of which sessions.
    asked: Vec<(Via, SessionId)>,
    /// When the last one was asked.
    asked_at: Ticks,
    /// Questions about sessions that are on their way here, and until when they wait.
    waiting: Vec<(Ticks, SessionId, QuestionId, PathQuestion)>,
}

/// A deadline of a way: when, and its number.
pub(super) type PathDeadline = (Ticks, u64);

impl ForeignPaths {
    /// `hasher` is keyed by a secret, since the keys come from the network.
    pub(super) fn new(hasher: &foldhash::fast::FixedState) -> Self {
        Self {
            by_via: HashMap::with_hasher(hasher.clone()),
            by_number: HashMap::with_hasher(hasher.clone()),
            count: 0,
            asked: Vec::new(),
            asked_at: Ticks(0),
            waiting: Vec::new(),
        }
    }

    /// Whose way it is.
    pub(super) fn session(&self, via: &Via) -> Option<SessionId> {
        self.by_via.get(via).map(|path| path.session)
    }

    /// Notes a way, or that it holds longer: the deadline that held before, and the one that holds now.
    pub(super) fn note(
        &mut self,
        via: Via,
        session: SessionId,
        expires_at: Ticks,
    ) -> (Option<PathDeadline>, PathDeadline) {
        if let Some(path) = self.by_via.get_mut(&via) {
            let before = (path.expires_at, path.number);
            (path.session, path.expires_at) = (session, expires_at);
            return (Some(before), (expires_at, path.number));
        }
        self.count += 1;
        let number = self.count;
        self.by_via.insert(via, ForeignPath { session, number, expires_at, fetch: Fetch::No });
        self.by_number.insert(number, via);
        (None, (expires_at, number))
    }

    /// Forgets a way; its deadline has no meaning any more.
    pub(super) fn remove(&mut self, via: &Via) -> Option<(SessionId, PathDeadline)> {
        let path = self.by_via.remove(via)?;
        self.by_number.remove(&path.number);
        Some((path.session, (path.expires_at, path.number)))
    }

    /// Whether the allocation is on its way here, as far as is known at `now`.
    pub(super) fn is_coming(&self, via: &Via, now: Ticks) -> bool {
        self.by_via.get(via).is_some_and(|path| matches!(path.fetch, Fetch::Asked(at) if now.since(at) < ANSWER_WITHIN))
    }

    /// Data came this way: the number of its deadline, if its worker must be asked.
    pub(super) fn want(&mut self, via: &Via, now: Ticks) -> Option<u64> {
        if self.is_coming(via, now) {
            return None;
        }
        let path = self.by_via.get_mut(via).filter(|path| path.fetch != Fetch::Wanted)?;
        path.fetch = Fetch::Wanted;
        Some(path.number)
    }

    /// Which way this deadline is of, and when that is forgotten.
    pub(super) fn at(&self, number: u64) -> Option<(Via, Ticks)> {
        let via = self.by_number.get(&number)?;
        self.by_via.get(via).map(|path| (*via, path.expires_at))
    }

    /// The session to ask for, if data have come and the question is not under way.
    pub(super) fn wanted(&self, via: &Via) -> Option<SessionId> {
        self.by_via.get(via).filter(|path| path.fetch == Fetch::Wanted).map(|path| path.session)
    }

    /// Notes that the allocation was asked for, or that it does not come.
    pub(super) fn set_asked(&mut self, via: &Via, at: Option<Ticks>) {
        if let Some(path) = self.by_via.get_mut(via) {
            path.fetch = at.map_or(Fetch::No, Fetch::Asked);
        }
    }

    /// Counts a question, if there is room for one more, also of this session.
    pub(super) fn take_question(&mut self, now: Ticks, via: Via, session: SessionId) -> bool {
        if !self.asked.is_empty() && now.since(self.asked_at) >= ANSWER_WITHIN {
            // The answers were lost.
            self.asked.clear();
        }
        let of_session = self.asked.iter().filter(|(_, of)| *of == session).count();
        let has_room = self.asked.len() < PATH_QUESTIONS_MAX && of_session < PATH_QUESTIONS_OF_SESSION_MAX;
        if has_room {
            self.asked.push((via, session));
            self.asked_at = now;
        }
        has_room
    }

    /// An answer came to a question about this way.
    pub(super) fn answered(&mut self, via: &Via) {
        if let Some(at) = self.asked.iter().position(|(of, _)| of == via) {
            self.asked.swap_remove(at);
        }
    }

    /// Lets a question wait until the session is here; gives it back if there is no room for it.
    pub(super) fn wait(
        &mut self,
        now: Ticks,
        ticket: QuestionId,
        session: SessionId,
        question: PathQuestion,
    ) -> Option<PathQuestion> {
        self.waiting.retain(|(until, ..)| now < *until);
        if self.waiting.len() >= PATH_QUESTIONS_MAX {
            return Some(question);
        }
        self.waiting.push((Ticks(now.0 + ANSWER_WITHIN), session, ticket, question));
        None
    }

    /// What waits for a session, in the order in which it came.
    pub(super) fn take_waiting(&mut self, session: SessionId) -> Vec<(QuestionId, PathQuestion)> {
        let of_session = self.waiting.extract_if(.., |(_, of, ..)| *of == session);
        of_session.map(|(_, _, ticket, question)| (ticket, question)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_via.len()
    }

    /// The ways that end here, in no order that matters.
    #[allow(clippy::disallowed_methods, reason = "each is counted for itself, in any order")]
    pub(super) fn vias(&self) -> impl Iterator<Item = Via> {
        self.by_via.keys().copied()
    }

    /// All as plain values, in the order in which they came.
    #[allow(clippy::disallowed_methods, reason = "what comes out of the map is sorted at once")]
    pub(super) fn to_state(&self) -> Option<Vec<ForeignPathState>> {
        let mut paths: Vec<_> = self.by_via.iter().collect();
        paths.sort_unstable_by_key(|(_, path)| path.number);
        let state = |(via, path): (&Via, &ForeignPath)| ForeignPathState {
            via: *via,
            session: path.session,
            expires_at: path.expires_at,
        };
        (!paths.is_empty()).then(|| paths.into_iter().map(state).collect())
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.by_via.len(), self.by_number.len(), "a way is found by its number");
    }
}
