//! All scopes that are remembered, and those of them that wait to be forgotten; nothing in here changes unnoticed.
//!
//! What another process has already is noted here too: each scope that is given out to be changed, made or removed since
//! then, and each entry of those that wait. The words of meters change without it, at any time and on any thread.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::HashMap;

use super::meter::{Meter, MeterWords};
use super::scope::{AskedScope, Scope, ScopeKey, ScopeState};
use crate::time::UnixSeconds;

/// Room for so many scopes is never given back.
const ROOM_KEPT: usize = 256;

/// A scope without allocations, and when it may be forgotten.
pub(super) type Lingering = (UnixSeconds, ScopeKey);

/// What was exported early, and what has changed since.
#[derive(Debug, Default)]
struct EarlyScopes {
    /// The meters of scopes, in the order in which they were exported.
    meters: Vec<Arc<Meter>>,
    /// Scopes that may be other than they were, or gone.
    changed: BTreeSet<ScopeKey>,
    /// Entries of those that wait which came or went.
    lingering: BTreeSet<Lingering>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct ScopeTable {
    scopes: HashMap<ScopeKey, Scope>,
    lingering: BTreeSet<Lingering>,
    /// While another process is about to take over.
    early: Option<Box<EarlyScopes>>,
    /// While this process is about to take over: the meters that came early, in their order. Scopes that are asked for
    /// and not there yet are made then: they come with the rest.
    arriving: Option<Vec<Arc<Meter>>>,
}

/// What another process lacks since its early import.
pub(super) struct ScopeChanges {
    pub(super) scopes: Vec<ScopeState>,
    pub(super) removed: Vec<ScopeKey>,
    pub(super) meters: Vec<MeterWords>,
    pub(super) lingering_new: Vec<Lingering>,
    pub(super) lingering_gone: Vec<Lingering>,
    pub(super) is_whole: bool,
}

impl ScopeTable {
    pub(super) fn get(&self, key: &ScopeKey) -> Option<&Scope> {
        self.scopes.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &ScopeKey) -> Option<&mut Scope> {
        self.note_change(key);
        self.scopes.get_mut(key)
    }

    /// The scope of this key, made if it is not there.
    pub(super) fn get_or_insert(&mut self, key: &ScopeKey) -> &mut Scope {
        self.note_change(key);
        self.scopes.entry(key.clone()).or_default()
    }

    pub(super) fn remove(&mut self, key: &ScopeKey) -> Option<Scope> {
        self.note_change(key);
        self.scopes.remove(key)
    }

    /// Gives memory back that many scopes which are gone have left.
    pub(super) fn shrink(&mut self) {
        let (len, room) = (self.scopes.len(), self.scopes.capacity());
        if room > ROOM_KEPT && len < room / 8 {
            self.scopes.shrink_to(len * 2);
        }
    }

    /// Sets what everybody in a scope is allowed; the meter to pass, if the one who asks is limited by it.
    pub(super) fn allow(&mut self, asked: &AskedScope) -> Option<Arc<Meter>> {
        let is_limited = !asked.allowed().is_unlimited();
        let known = if is_limited && self.arriving.is_some() {
            self.scopes.entry(asked.key.clone()).or_default()
        } else {
            self.scopes.get_mut(&asked.key)?
        };
        let is_new = known.meter.is_none();
        if is_new && !is_limited {
            return None;
        }
        let meter = Arc::clone(known.meter.get_or_insert_default());
        if is_new || meter.allowance() != asked.allowance {
            meter.allow(&asked.allowance);
            self.note_change(&asked.key);
        }
        is_limited.then_some(meter)
    }

    pub(super) fn len(&self) -> usize {
        self.scopes.len()
    }

    /// In no order.
    #[allow(clippy::disallowed_methods, reason = "who asks sorts what comes out")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ScopeKey, &Scope)> {
        self.scopes.iter()
    }

    /// Comes back to a scope then.
    pub(super) fn linger(&mut self, until: UnixSeconds, key: ScopeKey) {
        self.note_lingering(until, &key);
        self.lingering.insert((until, key));
    }

    /// When the first of those that wait may be forgotten.
    pub(super) fn first_lingering(&self) -> Option<UnixSeconds> {
        self.lingering.first().map(|(until, _)| *until)
    }

    /// Takes the first of those that wait out.
    pub(super) fn pop_lingering(&mut self) -> Option<ScopeKey> {
        let (until, key) = self.lingering.pop_first()?;
        self.note_lingering(until, &key);
        Some(key)
    }

    /// Those that wait, in their order.
    pub(super) const fn lingering(&self) -> &BTreeSet<Lingering> {
        &self.lingering
    }

    fn note_change(&mut self, key: &ScopeKey) {
        if let Some(early) = &mut self.early {
            early.changed.insert(key.clone());
        }
    }

    fn note_lingering(&mut self, until: UnixSeconds, key: &ScopeKey) {
        if let Some(early) = &mut self.early {
            early.lingering.insert((until, key.clone()));
        }
    }
}

/// In the process that gives its scopes away.
impl ScopeTable {
    /// From now on changes are noted; what was noted before is forgotten. Gives every key, in no order.
    pub(super) fn begin_early_export(&mut self) -> Vec<ScopeKey> {
        self.early = Some(Box::default());
        self.keys()
    }

    /// Nothing is noted any more.
    pub(super) fn end_early_export(&mut self) {
        self.early = None;
    }

    /// Every key, in no order.
    #[allow(clippy::disallowed_methods, reason = "who asks sorts what comes out")]
    pub(super) fn keys(&self) -> Vec<ScopeKey> {
        self.scopes.keys().cloned().collect()
    }

    /// The scopes of these keys as they are now, and nothing is noted; those that are gone are left out.
    pub(super) fn scopes_of(&self, keys: &[ScopeKey]) -> Vec<ScopeState> {
        keys.iter().filter_map(|key| Some(self.scopes.get(key)?.to_state(key.clone()))).collect()
    }

    /// The scopes of these keys as they are now; those that are gone are left out.
    pub(super) fn early_scopes(&mut self, keys: &[ScopeKey]) -> Vec<ScopeState> {
        let mut states = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(scope) = self.scopes.get(key) else { continue };
            states.push(scope.to_state(key.clone()));
            if let Some(early) = &mut self.early {
                early.changed.remove(key);
                early.meters.extend(scope.meter.iter().map(Arc::clone));
            }
        }
        states
    }

    /// So many of those that wait, behind this one.
    pub(super) fn early_lingering(&self, after: Option<&Lingering>, count: usize) -> Vec<Lingering> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.lingering.range((from, Bound::Unbounded)).take(count).cloned().collect()
    }

    /// What has changed since; everything without an early export.
    pub(super) fn changes(&self) -> ScopeChanges {
        let Some(early) = &self.early else { return self.as_changes() };
        let state = |key: &ScopeKey| Some(self.scopes.get(key)?.to_state(key.clone()));
        let (new, gone) = early.lingering.iter().cloned().partition(|entry| self.lingering.contains(entry));
        ScopeChanges {
            scopes: early.changed.iter().filter_map(state).collect(),
            removed: early.changed.iter().filter(|key| !self.scopes.contains_key(*key)).cloned().collect(),
            meters: early.meters.iter().map(|meter| meter.words()).collect(),
            lingering_new: new,
            lingering_gone: gone,
            is_whole: false,
        }
    }

    fn as_changes(&self) -> ScopeChanges {
        ScopeChanges {
            scopes: self.to_states(),
            removed: Vec::new(),
            meters: Vec::new(),
            lingering_new: self.lingering.iter().cloned().collect(),
            lingering_gone: Vec::new(),
            is_whole: true,
        }
    }

    /// Every scope as plain values, sorted.
    pub(super) fn to_states(&self) -> Vec<ScopeState> {
        let mut scopes: Vec<ScopeState> = self.iter().map(|(key, scope)| scope.to_state(key.clone())).collect();
        scopes.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        scopes
    }
}

/// In the process that takes them over.
impl ScopeTable {
    /// The table of these, of which nothing more will come.
    pub(super) fn from_states(scopes: Vec<ScopeState>, lingering: Vec<Lingering>) -> Self {
        let scopes = scopes.into_iter().map(Scope::from_state).collect();
        Self { scopes, lingering: lingering.into_iter().collect(), ..Self::default() }
    }

    /// The same, and the rest comes later.
    pub(super) fn from_early_states(scopes: Vec<ScopeState>, lingering: Vec<Lingering>) -> Self {
        let metered: Vec<ScopeKey> = scopes.iter().filter(|of| of.meter.is_some()).map(|of| of.key.clone()).collect();
        let mut table = Self::from_states(scopes, lingering);
        let meter = |key| Some(Arc::clone(table.scopes.get(key)?.meter.as_ref()?));
        table.arriving = Some(metered.iter().filter_map(meter).collect());
        table
    }

    /// Sets the meters that came early to these words, in their order; `false` if they are not as many.
    pub(super) fn set_early_meters<'a>(&self, words: impl ExactSizeIterator<Item = &'a MeterWords>) -> bool {
        let meters = self.arriving.as_deref().unwrap_or_default();
        let are_as_many = meters.len() == words.len();
        meters.iter().zip(words).for_each(|(meter, words)| meter.set_words(words));
        are_as_many
    }

    /// A scope as it is in the end. Its meter stays the same one: allocations that came early pass it.
    pub(super) fn put(&mut self, state: ScopeState) {
        let of_meter = state.meter.clone();
        let (key, mut scope) = Scope::from_state(state);
        let known = self.scopes.get_mut(&key).and_then(|known| known.meter.take());
        if let (Some(meter), Some(state)) = (known, &of_meter) {
            meter.set(state);
            scope.meter = Some(meter);
        }
        self.scopes.insert(key, scope);
    }

    /// Changes those that wait.
    pub(super) fn change_lingering(&mut self, new: Vec<Lingering>, gone: &[Lingering], is_whole: bool) {
        if is_whole {
            self.lingering.clear();
        }
        for entry in gone {
            self.lingering.remove(entry);
        }
        self.lingering.extend(new);
    }

    /// All has come.
    pub(super) fn end_import(&mut self) {
        self.arriving = None;
    }
}
