//! What became of clients that proved to hold a credential: by secret, and how long their credentials had left.
//!
//! One note per Allocate, never per packet. Strangers are not noted: the counters have them by reason.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use super::reject::RejectReason;
use crate::time::{Now, UnixSeconds};

/// A client that proved to hold a credential.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuthenticatedClient<'a> {
    /// The id of the secret it was minted with; `None` for a static user.
    pub secret: Option<&'a str>,
    /// When the credential ends; `None` for a static user.
    pub expires_at: Option<UnixSeconds>,
    /// Why the request is refused all the same.
    pub refused: Option<RejectReason>,
}

/// Upper bounds of the remaining lifetimes that are told apart, in seconds; what is over is below 0.
pub const REMAINING_BOUNDS: [i64; 9] = [0, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 48 * 3600];

/// Under one secret.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SecretCounts {
    /// Let in.
    pub granted: u64,
    /// Refused all the same, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// When somebody was last let in.
    pub last_used: Option<UnixSeconds>,
}

/// Counts of one process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AuthenticatedCounts {
    /// By the secret's id; `None` stands for static users. No more ids than were ever configured.
    pub by_secret: BTreeMap<Option<Box<str>>, SecretCounts>,
    /// Remaining lifetimes of time-limited credentials by [`REMAINING_BOUNDS`], and beyond the last of them.
    pub remaining: [u64; REMAINING_BOUNDS.len() + 1],
    /// Their sum in seconds.
    pub remaining_sum: i64,
}

/// [`AuthenticatedCounts`] as plain values.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct AuthenticatedCountsState {
    /// Of each secret.
    #[n(0)]
    pub by_secret: Vec<SecretCountsState>,
    /// By [`REMAINING_BOUNDS`].
    #[n(1)]
    pub remaining: Vec<u64>,
    /// In seconds.
    #[n(2)]
    pub remaining_sum: i64,
}

/// [`SecretCounts`] as plain values.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct SecretCountsState {
    /// The secret's id; `None` stands for static users.
    #[n(0)]
    pub secret: Option<Box<str>>,
    /// Accepted.
    #[n(1)]
    pub granted: u64,
    /// Refused all the same, by reason.
    #[n(2)]
    pub refused: BTreeMap<String, u64>,
    /// When a credential was last accepted.
    #[n(3)]
    pub last_used: Option<UnixSeconds>,
}

impl AuthenticatedCounts {
    /// Everything, as plain values.
    #[must_use]
    pub fn to_state(&self) -> AuthenticatedCountsState {
        let state = |(secret, of): (&Option<Box<str>>, &SecretCounts)| SecretCountsState {
            secret: secret.clone(),
            granted: of.granted,
            refused: of.refused.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect(),
            last_used: of.last_used,
        };
        AuthenticatedCountsState {
            by_secret: self.by_secret.iter().map(state).collect(),
            remaining: self.remaining.to_vec(),
            remaining_sum: self.remaining_sum,
        }
    }

    /// The counts that [`AuthenticatedCounts::to_state`] described; a reason that this release does not know is left out.
    #[must_use]
    pub fn from_state(state: &AuthenticatedCountsState) -> Self {
        let mut counts = Self { remaining_sum: state.remaining_sum, ..Self::default() };
        counts.remaining.iter_mut().zip(&state.remaining).for_each(|(own, count)| *own = *count);
        for SecretCountsState { secret, granted, refused, last_used } in &state.by_secret {
            let known = RejectReason::ALL.iter().map(|why| why.name());
            let refused = known.filter_map(|name| Some((name, *refused.get(name)?))).collect();
            let of = SecretCounts { granted: *granted, refused, last_used: *last_used };
            counts.by_secret.insert(secret.clone(), of);
        }
        counts
    }

    /// Counts one.
    pub fn note(&mut self, now: Now, note: &AuthenticatedClient<'_>) {
        if let Some(end) = note.expires_at {
            let left = i64::try_from(end.0).unwrap_or(i64::MAX).saturating_sub_unsigned(now.unix.0);
            let bucket = REMAINING_BOUNDS.iter().position(|bound| left <= *bound).unwrap_or(REMAINING_BOUNDS.len());
            self.remaining[bucket] += 1;
            self.remaining_sum = self.remaining_sum.saturating_add(left);
        }
        let of_secret = self.by_secret.entry(note.secret.map(Into::into)).or_default();
        match note.refused.map(RejectReason::name) {
            Some(reason) => *of_secret.refused.entry(reason).or_default() += 1,
            None => {
                of_secret.granted += 1;
                of_secret.last_used = Some(now.unix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Ticks;

    #[test]
    fn results_are_counted_by_secret_and_lifetimes_by_what_is_left() {
        let mut counts = AuthenticatedCounts::default();
        let now = Now { ticks: Ticks(0), unix: UnixSeconds(10_000) };
        for (secret, expires_at, refused) in [
            (Some("a"), Some(10_060), None),
            (Some("a"), Some(9_900), Some(RejectReason::Expired)),
            (Some("b"), Some(u64::MAX), Some(RejectReason::TooFarAhead)),
            (None, None, None),
        ] {
            counts.note(now, &AuthenticatedClient { secret, expires_at: expires_at.map(UnixSeconds), refused });
        }
        let of = |id: Option<&str>| &counts.by_secret[&id.map(Into::into)];
        assert_eq!((of(Some("a")).granted, of(Some("a")).refused["expired"]), (1, 1));
        assert_eq!((of(Some("b")).granted, of(Some("b")).last_used), (0, None));
        assert_eq!((of(None).granted, of(None).last_used), (1, Some(now.unix)));
        assert_eq!(counts.remaining, [1, 1, 0, 0, 0, 0, 0, 0, 0, 1], "static users have no lifetime");
    }
}
