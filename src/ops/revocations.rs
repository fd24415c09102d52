//! Revocations over restarts: the set that the workers ask, and its file.
//!
//! The set itself belongs to `protocol::revocation`. Here is what makes it last: each change is followed by a new file
//! (`ops::kept_file`). The set changes first: what can't be written holds all the same until the process ends, and the caller
//! is told.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::credentials::{EXPIRY_SKEW_SECONDS, USERNAME_BYTES_MAX, parse_username};
use crate::net::Running;
use crate::ops::kept_file::{KeptFile, KeptKind, NotSaved};
use crate::protocol::revocation::{Revocations, Subject};
use crate::time::{Now, UnixSeconds};

/// Entries at a time: each costs memory and a line in a file that is written whole.
pub const ENTRIES_MAX: usize = 100_000;

/// The file.
pub static KIND: KeptKind = KeptKind {
    key: "auth.revocations_file",
    file_name: "revocations",
    head: "throughway revocations 1",
    entry: "a revocation",
    entries: "revocations",
    without: "remove all blocks",
    entries_max: ENTRIES_MAX,
    write_failures: AtomicU64::new(0),
};

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RevocationLine {
    until: u64,
    whose: Subject,
}

/// Why a change was not made, or not kept.
#[derive(Debug, thiserror::Error)]
pub enum NotRevoked {
    /// The set is full.
    #[error(
        "there are {ENTRIES_MAX} revocations, each kept until a day after its end: undo some, or change the secret"
    )]
    Full,
    /// It holds, but not beyond the end of this process.
    #[error(transparent)]
    NotSaved(#[from] NotSaved),
}

/// What the file holds, read before anybody can come in; nothing if there is none.
///
/// What is over is kept for now: after a start nothing is known yet of how right the clock is.
///
/// # Errors
/// File, line and remedy, when it can't be read or is not what this wrote.
pub fn load(file: Option<&Path>) -> Result<Revocations, String> {
    let Some(path) = file else { return Ok(Revocations::default()) };
    let lines: Vec<RevocationLine> = KIND.read(path, |_| Ok(()))?;
    Ok(lines.into_iter().map(|line| (line.whose, UnixSeconds(line.until))).collect())
}

/// How often those that are over are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// Forgets what has been over for long, as long as there is a store.
pub async fn sweep_now_and_then(store: Weak<Store>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(store) = store.upgrade() else { return };
        store.sweep(&mut store.set(), clock::now());
    }
}

/// The revocations of a running relay.
///
/// It has a set of its own beside the one that the workers ask: theirs is locked for one entry at a time, never while
/// many are listed or written.
pub struct Store {
    running: Arc<Running>,
    file: KeptFile,
    set: Mutex<RevocationSet>,
}

/// A change that holds and is not written yet.
#[must_use = "a restart would forget it"]
#[derive(Clone, Copy, Debug)]
pub struct Change(u64);

struct RevocationSet {
    revocations: Revocations,
    /// Counts changes.
    changes: u64,
}

impl Store {
    /// For a relay that was started with what [`load`] gave for this file.
    #[must_use]
    pub fn new(running: Arc<Running>, file: Option<PathBuf>) -> Self {
        let revocations = running.revocations().clone();
        let file = KeptFile::new(&KIND, file);
        Self { running, file, set: Mutex::new(RevocationSet { revocations, changes: 0 }) }
    }

    /// Whether a caller with an API key may revoke one more: half of the room is the operator's.
    #[must_use]
    pub fn has_room_for_callers(&self) -> bool {
        self.set().revocations.len() < ENTRIES_MAX / 2
    }

    /// Where the entries are kept; nowhere if they are lost with the process.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.path()
    }

    fn set(&self) -> MutexGuard<'_, RevocationSet> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shuts somebody out until then, at once and in memory; the change is for [`Store::save`].
    ///
    /// # Errors
    /// [`NotRevoked::Full`].
    pub fn revoke(&self, whose: Subject, until: UnixSeconds, now: Now) -> Result<Change, NotRevoked> {
        let change = {
            let mut set = self.set();
            if set.revocations.len() >= ENTRIES_MAX {
                self.sweep(&mut set, now);
                // One that is there already takes no more room; to tell takes a look at all.
                let is_full = set.revocations.len() >= ENTRIES_MAX;
                if is_full && !set.revocations.list().iter().any(|(known, _)| *known == whose) {
                    return Err(NotRevoked::Full);
                }
            }
            set.revocations.insert(whose.clone(), until);
            self.running.revocations().insert(whose, until);
            set.changes += 1;
            set.changes
        };
        Ok(Change(change))
    }

    /// Removes a revocation; tells whether there was one. Blocks while the file is written.
    ///
    /// # Errors
    /// [`NotRevoked::NotSaved`]: it is removed, but a restart would bring it back.
    pub fn undo(&self, whose: &Subject, now: Now) -> Result<bool, NotRevoked> {
        let change = {
            let mut set = self.set();
            if !set.revocations.remove(whose) {
                return Ok(false);
            }
            self.running.revocations().remove(whose);
            set.changes += 1;
            set.changes
        };
        self.save(Change(change), now).map(|()| true)
    }

    /// Everybody who is shut out, with the end of it.
    #[must_use]
    pub fn list(&self, now: Now) -> Vec<(Subject, UnixSeconds)> {
        let mut set = self.set();
        self.sweep(&mut set, now);
        set.revocations.list().into_iter().filter(|(_, until)| now.unix < *until).collect()
    }

    fn sweep(&self, set: &mut RevocationSet, now: Now) {
        for whose in set.revocations.sweep(now) {
            self.running.revocations().remove(&whose);
        }
    }

    /// Writes the set as it is, unless somebody else has done that since this change. Blocks while the file is written.
    ///
    /// # Errors
    /// [`NotRevoked::NotSaved`]: the change holds nevertheless.
    pub fn save(&self, Change(change): Change, now: Now) -> Result<(), NotRevoked> {
        let saved = self.file.save(change, || {
            let mut set = self.set();
            self.sweep(&mut set, now);
            (lines(&set.revocations.list()), set.changes)
        });
        Ok(saved?)
    }
}

fn lines(all: &[(Subject, UnixSeconds)]) -> Vec<RevocationLine> {
    all.iter().map(|(whose, until)| RevocationLine { until: until.0, whose: whose.clone() }).collect()
}

/// How long an entry must be kept so that no credential of today outlives it; nothing if none can.
#[must_use]
pub fn until(whose: &Subject, now: UnixSeconds, max_ttl: u64) -> Option<UnixSeconds> {
    let last = match whose {
        Subject::Credential(username) => parse_username(username).map(|parts| parts.expires_at),
        Subject::User { .. } | Subject::Tenant(_) => None,
    };
    let last = last.unwrap_or_else(|| now.0.saturating_add(max_ttl));
    // A credential is good up to its last second and the skew, that second included.
    let until = last.saturating_add(EXPIRY_SKEW_SECONDS).saturating_add(1);
    (until > now.0).then_some(UnixSeconds(until))
}

/// Why a name can belong to no client.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("must not be empty");
    }
    if name.len() > USERNAME_BYTES_MAX {
        return Err("is longer than any username (508 bytes)");
    }
    if name.chars().any(char::is_control) {
        return Err("has control characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ops::usage::tests::Directory;
    use crate::protocol::revocation::KEPT_AFTER_END;
    use crate::time::Ticks;

    fn entries() -> Vec<(Subject, UnixSeconds)> {
        let user =
            |user: &str, tenant: Option<&str>| Subject::User { user: user.into(), tenant: tenant.map(Into::into) };
        vec![
            (Subject::Credential("1900000000:bo\"b\n".into()), UnixSeconds(1_900_000_031)),
            (user("bob", None), UnixSeconds(5)),
            (user("bob", Some("acme")), UnixSeconds(u64::MAX)),
            (Subject::Tenant("acme".into()), UnixSeconds(7)),
        ]
    }

    fn read(path: &Path) -> Result<Revocations, String> {
        load(Some(path))
    }

    fn write(path: &Path, all: &[(Subject, UnixSeconds)]) {
        KeptFile::new(&KIND, Some(path.to_owned())).save(1, || (lines(all), 1)).unwrap();
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_stays_beside_it() {
        let directory = Directory::new();
        let path = directory.path().join("revocations");
        assert!(read(&path).unwrap().is_empty(), "none yet");
        for _ in 0..2 {
            write(&path, &entries());
            assert_eq!(read(&path).unwrap(), entries().into_iter().collect());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        write(&path, &[]);
        assert!(read(&path).unwrap().is_empty());
    }

    #[test]
    fn a_line_that_is_no_revocation_is_named() {
        let directory = Directory::new();
        let path = directory.path().join("revocations");
        for (line, why) in [
            (r#"{"until":9}"#, "missing field `whose`"),
            (r#"{"until":-9,"whose":{"tenant":"a"}}"#, "is not a revocation"),
            (r#"{"until":9,"whose":{"tenant":"a"},"x":1}"#, "unknown field `x`"),
        ] {
            fs::write(&path, format!("{}\n{line}\n", KIND.head)).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.contains("auth.revocations_file: ") && error.contains("revocations:2: "), "{error}");
            assert!(error.contains(why) && error.contains("to remove all blocks"), "{error}");
        }
    }

    #[test]
    fn an_entry_lasts_as_long_as_any_credential_that_it_concerns() {
        let now = UnixSeconds(1_000_000_000);
        let user = Subject::User { user: "a".into(), tenant: None };
        assert_eq!(until(&user, now, 3600), Some(UnixSeconds(1_000_003_631)));
        assert_eq!(until(&Subject::Tenant("a".into()), now, 3600), Some(UnixSeconds(1_000_003_631)));
        let credential = |name: &str| Subject::Credential(name.into());
        assert_eq!(until(&credential("1000000500:a"), now, 3600), Some(UnixSeconds(1_000_000_531)));
        assert_eq!(until(&credential("999999970:a"), now, 3600), Some(UnixSeconds(1_000_000_001)), "its last second");
        assert_eq!(until(&credential("999999969:a"), now, 3600), None, "it is over");
        assert_eq!(until(&credential("static"), now, 3600), Some(UnixSeconds(1_000_003_631)));
        assert_eq!(until(&user, now, u64::MAX), Some(UnixSeconds(u64::MAX)));
    }

    #[test]
    fn names_are_those_that_users_can_have() {
        assert_eq!(check_name("a b:c"), Ok(()));
        for wrong in ["", "a\nb", &"x".repeat(509)] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }

    /// A store over a relay that listens nowhere.
    fn store(file: Option<PathBuf>, kept: Revocations) -> (Store, tokio::runtime::Runtime) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let text = "workers = 1\nlisten = { udp = [], tcp = [] }\nrelay.addresses = [\"127.0.0.1\"]\nauth.users = { a = \"b\" }";
        let config = crate::config::Config::from_toml("c.toml", text).unwrap();
        let kept = crate::net::KeptSets { revocations: kept, ..Default::default() };
        let running = runtime.block_on(async {
            crate::net::start(&config, &[], crate::net::passed::Passed::default(), kept, None).unwrap().0
        });
        (Store::new(Arc::new(running), file), runtime)
    }

    fn revoke(store: &Store, whose: Subject, until: UnixSeconds, now: Now) {
        let change = store.revoke(whose, until, now).unwrap();
        store.save(change, now).unwrap();
    }

    #[test]
    fn what_is_revoked_reaches_the_workers_and_the_file_until_it_is_undone_or_over() {
        let directory = Directory::new();
        let path = directory.path().join("revocations");
        write(&path, &entries());
        let at = |unix| Now { ticks: Ticks(unix * 1000), unix: UnixSeconds(unix) };
        let now = at(5);
        let kept = load(Some(&path)).unwrap();
        let (store, _runtime) = store(Some(path.clone()), kept);
        let bob = |tenant| crate::protocol::revocation::SessionSubject { username: "9:bob", user: "bob", tenant };
        let is_out = |tenant, now: Now| store.running.revocations().includes(&bob(tenant), now.unix);
        assert!(is_out(Some("acme"), now) && !is_out(None, now));
        revoke(&store, Subject::User { user: "bob".into(), tenant: None }, UnixSeconds(20), now);
        assert!(is_out(None, now) && !is_out(None, at(20)));
        assert_eq!((read(&path).unwrap().len(), store.list(now).len()), (4, 4));
        assert!(store.undo(&Subject::User { user: "bob".into(), tenant: None }, now).unwrap());
        assert!(!store.undo(&Subject::User { user: "bob".into(), tenant: None }, now).unwrap());
        assert!(!is_out(None, now) && is_out(Some("acme"), now));
        // The tenant's time is over: it is listed no more, and forgotten everywhere after a day.
        revoke(&store, Subject::Tenant("other".into()), UnixSeconds(30), at(8));
        assert_eq!((read(&path).unwrap().len(), store.list(at(8)).len()), (4, 3));
        revoke(&store, Subject::Tenant("third".into()), UnixSeconds(900_000), at(40 + KEPT_AFTER_END));
        revoke(&store, Subject::Tenant("last".into()), UnixSeconds(900_000), at(40 + 2 * KEPT_AFTER_END));
        let left = read(&path).unwrap().len();
        assert_eq!((left, store.running.revocations().len()), (store.list(at(40 + 2 * KEPT_AFTER_END)).len(), left));
    }

    // F-A15: a clock that is days ahead for a moment forgets revocations for good.
    #[test]
    fn a_clock_that_was_ahead_for_a_moment_has_forgotten_nobody() {
        let directory = Directory::new();
        let path = directory.path().join("revocations");
        let (store, _runtime) = store(Some(path.clone()), Revocations::default());
        let bob = Subject::User { user: "bob".into(), tenant: None };
        let at = |seconds, ahead| Now { ticks: Ticks(seconds * 1000), unix: UnixSeconds(seconds + ahead) };
        revoke(&store, bob.clone(), UnixSeconds(1_000), at(5, 0));
        let ahead = 10 * KEPT_AFTER_END;
        assert!(store.list(at(6, ahead)).is_empty(), "over, as far as that clock knows");
        revoke(&store, Subject::Tenant("t".into()), UnixSeconds(2_000), at(7, ahead));
        assert!(store.list(at(8, 0)).iter().any(|(whose, _)| *whose == bob));
        let of_bob = crate::protocol::revocation::SessionSubject { username: "9:bob", user: "bob", tenant: None };
        assert!(store.running.revocations().includes(&of_bob, UnixSeconds(8)));
        assert!(load(Some(&path)).unwrap().includes(&of_bob, UnixSeconds(8)), "also after a restart");
    }

    #[test]
    fn a_full_set_takes_only_those_that_it_has_until_some_are_over() {
        let user = |number: usize| Subject::User { user: number.to_string().into(), tenant: None };
        let (first, last) = (UnixSeconds(10), UnixSeconds(20));
        let kept = (0..ENTRIES_MAX).map(|number| (user(number), if number == 7 { first } else { last }));
        let (store, _runtime) = store(None, kept.collect());
        let at = |unix| Now { ticks: Ticks(unix * 1000), unix: UnixSeconds(unix) };
        let now = at(9);
        assert!(matches!(store.revoke(user(ENTRIES_MAX), last, now), Err(NotRevoked::Full)));
        revoke(&store, user(8), UnixSeconds(30), now);
        assert_eq!((store.list(now).len(), store.running.revocations().len()), (ENTRIES_MAX, ENTRIES_MAX));
        store.sweep(&mut store.set(), at(first.0));
        let later = at(first.0 + KEPT_AFTER_END);
        revoke(&store, user(ENTRIES_MAX), last, later);
        assert!(matches!(store.revoke(user(7), last, later), Err(NotRevoked::Full)));
    }
}
