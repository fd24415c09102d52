//! The quotas of a process as plain values for another one: all at once, or most of it early and then what has changed.

use minicbor::{Decode, Encode};

use super::meter::MeterWords;
use super::quota::Quotas;
use super::rows::{Row, Rows};
use super::scope::{ScopeKey, ScopeState};
use super::scope_table::{ScopeChanges, ScopeTable};
use crate::time::UnixSeconds;
use crate::wire::attribute::ReservationToken;

/// [`Quotas`] as plain values.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct QuotasState {
    /// Every scope that is remembered, sorted.
    #[n(0)]
    pub scopes: Vec<ScopeState>,
    /// Scopes without allocations, by the time when they may be forgotten.
    #[n(1)]
    pub lingering: Vec<(UnixSeconds, ScopeKey)>,
    /// The scopes in which each reservation counts, sorted by token.
    #[n(2)]
    pub reservations: Vec<(ReservationToken, [Option<ScopeKey>; 5])>,
    /// The most allocations at once since somebody asked.
    #[n(3)]
    pub peak: u32,
    /// Scopes that were forgotten before their time.
    #[n(4)]
    pub forgotten: u64,
}

/// [`Quotas`] as plain values, without what was exported early and has not changed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct QuotasChanges {
    /// Scopes that are new or may have changed, sorted.
    #[n(0)]
    pub scopes: Vec<ScopeState>,
    /// Scopes that are no longer remembered, sorted.
    #[n(1)]
    pub removed: Vec<ScopeKey>,
    /// What charges changed in the meter of each scope that was exported early with one, in the order of that export.
    #[n(2)]
    pub meters: Rows<MeterRow>,
    /// Scopes without allocations that wait to be forgotten and did not then.
    #[n(3)]
    pub lingering_new: Vec<(UnixSeconds, ScopeKey)>,
    /// Those that did then and no longer do.
    #[n(4)]
    pub lingering_gone: Vec<(UnixSeconds, ScopeKey)>,
    /// The scopes in which each reservation counts, sorted by token.
    #[n(5)]
    pub reservations: Vec<(ReservationToken, [Option<ScopeKey>; 5])>,
    /// The most allocations at once since somebody asked.
    #[n(6)]
    pub peak: u32,
    /// Scopes that were forgotten before their time.
    #[n(7)]
    pub forgotten: u64,
    /// Nothing is known of an early export, so that `scopes` are all.
    #[n(8)]
    pub is_whole: bool,
    /// How many scopes are remembered.
    #[n(9)]
    pub remembered: u64,
}

/// What charges change in one meter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MeterRow(pub(super) MeterWords);

impl Row for MeterRow {
    type Words = MeterWords;

    fn to_words(&self) -> Self::Words {
        self.0
    }

    fn from_words(words: &Self::Words) -> Self {
        Self(*words)
    }
}

/// Why changes don't fit what came early.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuotasImportError {
    /// They tell of more or fewer meters.
    #[error("the changes do not tell of the same meters of quotas as what came before")]
    Meters,
    /// In the end there are more or fewer scopes than there were.
    #[error("there are {found} scopes of quotas where there were {expected}")]
    Scopes {
        /// How many are here.
        found: u64,
        /// How many there were.
        expected: u64,
    },
}

impl Quotas {
    /// Everything, as plain values that another process can take over.
    #[must_use]
    pub fn to_state(&self) -> QuotasState {
        QuotasState {
            scopes: self.scopes.to_states(),
            lingering: self.scopes.lingering().iter().cloned().collect(),
            reservations: self.reservations_to_state(),
            peak: self.peak,
            forgotten: self.forgotten,
        }
    }

    #[allow(clippy::disallowed_methods, reason = "what comes out of the map is sorted at once")]
    fn reservations_to_state(&self) -> Vec<(ReservationToken, [Option<ScopeKey>; 5])> {
        let mut reservations: Vec<_> = self.reservations.iter().map(|(token, keys)| (*token, keys.clone())).collect();
        reservations.sort_unstable_by_key(|(token, _)| token.0);
        reservations
    }

    /// The quotas that [`Quotas::to_state`] described. Their meters are shared with allocations by
    /// [`Quotas::meters`], which each allocation asks for when it is taken over itself.
    #[must_use]
    pub fn from_state(state: QuotasState) -> Self {
        let mut quotas = Self::of_table(ScopeTable::from_states(state.scopes, state.lingering));
        quotas.reservations = state.reservations.into_iter().collect();
        (quotas.peak, quotas.forgotten) = (state.peak, state.forgotten);
        quotas
    }

    fn of_table(scopes: ScopeTable) -> Self {
        let mut quotas = Self::default();
        quotas.scopes = scopes;
        let live = quotas.scopes.iter().filter(|(_, scope)| scope.count > 0);
        let live: Vec<ScopeKey> = live.map(|(key, _)| key.clone()).collect();
        live.iter().for_each(|key| quotas.note_population(key, true));
        quotas
    }

    /// From now on it is noted which scopes change, so that they can be exported before everything else; what was noted
    /// for an earlier attempt is forgotten. Gives the keys of all scopes, in no order: to be sorted, and exported in pieces by
    /// [`Quotas::early_scopes`].
    #[must_use]
    pub fn begin_early_export(&mut self) -> Vec<ScopeKey> {
        self.scopes.begin_early_export()
    }

    /// The scopes of these keys as they are now, without those that are gone: a part of [`QuotasState::scopes`].
    pub fn early_scopes(&mut self, keys: &[ScopeKey]) -> Vec<ScopeState> {
        self.scopes.early_scopes(keys)
    }

    /// So many of the scopes that wait to be forgotten, behind the last one that came before: a part of
    /// [`QuotasState::lingering`].
    #[must_use]
    pub fn early_lingering(
        &self,
        after: Option<&(UnixSeconds, ScopeKey)>,
        count: usize,
    ) -> Vec<(UnixSeconds, ScopeKey)> {
        self.scopes.early_lingering(after, count)
    }

    /// The other process failed, or there is none any more: nothing is noted from now on.
    pub fn end_early_export(&mut self) {
        self.scopes.end_early_export();
    }

    /// Everything that the early export lacks; without one that is all there is. Nothing may charge a meter meanwhile.
    #[must_use]
    pub fn export_changes(&self) -> QuotasChanges {
        let ScopeChanges { scopes, removed, meters, lingering_new, lingering_gone, is_whole } = self.scopes.changes();
        QuotasChanges {
            scopes,
            removed,
            meters: Rows(meters.into_iter().map(MeterRow).collect()),
            lingering_new,
            lingering_gone,
            reservations: self.reservations_to_state(),
            peak: self.peak,
            forgotten: self.forgotten,
            is_whole,
            remembered: self.len() as u64,
        }
    }

    /// Quotas of which the rest comes by [`Quotas::import_changes`]: of `state` the scopes count and those that wait, as they
    /// were exported early. Until then allocations that are taken over may ask for meters of scopes that are not there.
    #[must_use]
    pub fn from_early_state(state: QuotasState) -> Self {
        Self::of_table(ScopeTable::from_early_states(state.scopes, state.lingering))
    }

    /// Takes over what [`Quotas::export_changes`] gave. What allocations that came early have as meters of their scopes
    /// stay those of the scopes; the servers' own changes may come before or after.
    ///
    /// # Errors
    /// [`QuotasImportError`]; the quotas must not be used then.
    pub fn import_changes(&mut self, changes: QuotasChanges) -> Result<(), QuotasImportError> {
        if !changes.is_whole && !self.scopes.set_early_meters(changes.meters.0.iter().map(|MeterRow(words)| words)) {
            return Err(QuotasImportError::Meters);
        }
        let outdated = if changes.is_whole { self.keys_beside(&changes.scopes) } else { changes.removed };
        for key in outdated {
            if self.scopes.remove(&key).is_some_and(|scope| scope.count > 0) {
                self.note_population(&key, false);
            }
        }
        for state in changes.scopes {
            let (key, is_live) = (state.key.clone(), state.count > 0);
            let was_live = self.scopes.get(&key).is_some_and(|known| known.count > 0);
            self.scopes.put(state);
            if was_live != is_live {
                self.note_population(&key, is_live);
            }
        }
        self.scopes.change_lingering(changes.lingering_new, &changes.lingering_gone, changes.is_whole);
        self.scopes.end_import();
        self.reservations = changes.reservations.into_iter().collect();
        (self.peak, self.forgotten) = (changes.peak, changes.forgotten);
        let found = self.len() as u64;
        if found != changes.remembered {
            return Err(QuotasImportError::Scopes { found, expected: changes.remembered });
        }
        Ok(())
    }

    /// Every key, in no order.
    #[must_use]
    pub fn keys(&self) -> Vec<ScopeKey> {
        self.scopes.keys()
    }

    /// The scopes of these keys as they are now, without those that are gone, for a ledger: nothing is noted.
    #[must_use]
    pub fn scopes_of(&self, keys: &[ScopeKey]) -> Vec<ScopeState> {
        self.scopes.scopes_of(keys)
    }

    /// Takes scopes over from a ledger, which may be older than the allocations that are here: what is counted in them is not
    /// known. [`Quotas::count_in`] follows for each allocation, and [`Quotas::end_recount`].
    pub fn begin_recount(&mut self, scopes: Vec<ScopeState>, forgotten: u64) {
        for state in scopes {
            self.scopes.put(ScopeState { count: 0, reserved: 0, ..state });
        }
        self.scopes.end_import();
        self.forgotten = forgotten;
    }

    /// Every key that is not among these, which are sorted.
    fn keys_beside(&self, scopes: &[ScopeState]) -> Vec<ScopeKey> {
        let is_known = |key: &ScopeKey| scopes.binary_search_by(|state| state.key.cmp(key)).is_ok();
        self.scopes.iter().map(|(key, _)| key).filter(|key| !is_known(key)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::meter::{Meters, Rates};
    use crate::protocol::quota::{Purpose, QuotaClaim};
    use crate::protocol::reason::{Direction, DropReason};
    use crate::protocol::revocation::SessionSubject;
    use crate::protocol::settings::Limits;
    use crate::time::{Now, Ticks};

    fn at(seconds: u64) -> Now {
        Now { ticks: Ticks(1_000_000 + seconds * 1000), unix: UnixSeconds(1_800_000_000 + seconds) }
    }

    const fn claim(user: &str) -> QuotaClaim<'_> {
        let subject = SessionSubject { username: user, user, tenant: None };
        QuotaClaim {
            subject,
            realm: None,
            expires_at: Some(UnixSeconds(1_900_000_000)),
            grant: None,
            client: std::net::IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9)),
        }
    }

    fn limits(bits_per_second: u64) -> Limits {
        Limits {
            user: Rates { bits_per_second: Some(bits_per_second), packets_per_second: None },
            burst_ms: 1_000,
            ..Limits::default()
        }
    }

    fn early(quotas: &mut Quotas) -> Quotas {
        let mut keys = quotas.begin_early_export();
        keys.sort_unstable();
        let scopes = quotas.early_scopes(&keys);
        let lingering = quotas.early_lingering(None, usize::MAX);
        Quotas::from_early_state(QuotasState { scopes, lingering, ..QuotasState::default() })
    }

    #[test]
    fn new_limits_of_a_scope_between_the_parts_are_told() {
        let mut quotas = Quotas::default();
        let [bob, eve] = ["bob", "eve"].map(claim);
        let counted = quotas.admit(at(0), &bob, &limits(8_000), Purpose::Allocation).unwrap().counted;
        quotas.admit(at(0), &eve, &Limits::default(), Purpose::Allocation).unwrap();
        let mut successor = early(&mut quotas);
        for who in [&bob, &eve] {
            quotas.meters(who, counted, &limits(16_000), &Meters::default());
        }
        successor.import_changes(quotas.export_changes()).unwrap();
        assert_eq!(successor.to_state(), quotas.to_state());
    }

    // Neither what allocations pass that came early, nor scopes that were not there then.
    #[test]
    fn no_meter_is_lost_between_the_parts() {
        let mut quotas = Quotas::default();
        let [bob, late] = ["bob", "late"].map(claim);
        let admitted = quotas.admit(at(0), &bob, &limits(8_000), Purpose::Allocation).unwrap();
        let mut successor = early(&mut quotas);
        let admitted_late = quotas.admit(at(0), &late, &limits(8_000), Purpose::Allocation).unwrap();
        let passed = successor.meters(&bob, admitted.counted, &limits(8_000), &Meters::default());
        let passed_late = successor.meters(&late, admitted.counted, &limits(8_000), &Meters::default());
        for meters in [&admitted.meters, &admitted_late.meters] {
            assert_eq!(meters.charge(at(0), Direction::ToPeer, 600), Ok(()));
        }
        successor.import_changes(quotas.export_changes()).unwrap();
        for meters in [&passed, &passed_late] {
            assert_eq!(meters.charge(at(0), Direction::ToPeer, 600), Err(DropReason::OverBandwidth));
            assert_eq!(meters.charge(at(0), Direction::ToPeer, 400), Ok(()));
        }
        assert_eq!(successor.meters(&late, admitted.counted, &limits(8_000), &Meters::default()), passed_late);
    }

    #[test]
    fn changes_that_do_not_fit_are_refused() {
        let mut quotas = Quotas::default();
        quotas.admit(at(0), &claim("bob"), &limits(8_000), Purpose::Allocation).unwrap();
        let mut successor = early(&mut quotas);
        let mut changes = quotas.export_changes();
        changes.remembered += 1;
        let wrong = QuotasImportError::Scopes { found: 3, expected: 4 };
        assert_eq!(successor.import_changes(changes), Err(wrong));
        let changes = quotas.export_changes();
        assert_eq!(Quotas::default().import_changes(changes), Err(QuotasImportError::Meters));
        quotas.end_early_export();
        let mut other = Quotas::default();
        other.admit(at(0), &claim("eve"), &limits(8_000), Purpose::Allocation).unwrap();
        other.import_changes(quotas.export_changes()).unwrap();
        assert_eq!(
            (other.to_state(), other.usage()),
            (quotas.to_state(), quotas.usage()),
            "without an early part it is all"
        );
    }
}
