//! Ports that are held for a RESERVATION-TOKEN (RFC 8656 section 7.2).

use hashbrown::HashMap;
use minicbor::{Decode, Encode};

use crate::address::{RelayedTransportAddress, Via};
use crate::time::Ticks;
use crate::wire::attribute::ReservationToken;

/// How long a port is held, in seconds (RFC 8656 section 7.2). [8656-7.2-25]
pub(super) const RESERVATION_LIFETIME: u64 = 30;

/// A held port.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Reservation {
    /// The held address.
    #[n(0)]
    pub relayed: RelayedTransportAddress,
    /// When it is given up.
    #[n(1)]
    pub expires_at: Ticks,
    /// Who may bring the token.
    #[n(2)]
    pub identity: Box<str>,
    /// The client that made it; it may make no other meanwhile.
    #[n(3)]
    pub via: Via,
}

/// All of one worker's, by token and by client.
#[derive(Debug)]
pub(super) struct Reservations {
    by_token: HashMap<ReservationToken, Reservation, foldhash::fast::FixedState>,
    by_client: HashMap<Via, ReservationToken, foldhash::fast::FixedState>,
}

impl Reservations {
    /// `hasher` is keyed by a secret, since the keys come from the network.
    pub(super) fn new(hasher: &foldhash::fast::FixedState) -> Self {
        Self { by_token: HashMap::with_hasher(hasher.clone()), by_client: HashMap::with_hasher(hasher.clone()) }
    }

    pub(super) fn insert(&mut self, token: ReservationToken, reservation: Reservation) {
        self.by_client.insert(reservation.via, token);
        self.by_token.insert(token, reservation);
    }

    pub(super) fn remove(&mut self, token: ReservationToken) -> Option<Reservation> {
        let reservation = self.by_token.remove(&token)?;
        self.by_client.remove(&reservation.via);
        Some(reservation)
    }

    /// Whether a token is good at `now` for this identity.
    pub(super) fn is_for(&self, token: ReservationToken, identity: &str, now: Ticks) -> bool {
        let reservation = self.by_token.get(&token);
        reservation.is_some_and(|held| *held.identity == *identity && now < held.expires_at)
    }

    /// Whether a client holds a port already.
    pub(super) fn is_holder(&self, via: &Via) -> bool {
        self.by_client.contains_key(via)
    }

    /// Every token, sorted: the order of a hash map must not decide anything.
    #[allow(clippy::disallowed_methods, reason = "what comes out of the map is sorted at once")]
    pub(super) fn tokens(&self) -> Vec<ReservationToken> {
        let mut tokens: Vec<ReservationToken> = self.by_token.keys().copied().collect();
        tokens.sort_unstable_by_key(|token| token.0);
        tokens
    }

    /// Every reservation as plain values, in the order of their tokens.
    pub(super) fn to_state(&self) -> Vec<(ReservationToken, Reservation)> {
        self.tokens().into_iter().filter_map(|token| Some((token, self.by_token.get(&token)?.clone()))).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_token.len()
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.by_token.len(), self.by_client.len(), "a client holds one port");
    }
}
