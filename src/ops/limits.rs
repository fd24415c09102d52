//! Limits of named users and tenants that an operator sets at run time: the table that the quotas ask, its file, and the
//! live sessions that follow.
//!
//! The table itself belongs to `protocol::overrides`. Each change holds first and is then followed by a new file
//! (`ops::kept_file`): what can't be written holds all the same until the process ends, and the caller is told.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::{RATE, SIZE};
use crate::net::Running;
use crate::ops::kept_file::{KeptFile, KeptKind, NotSaved};
use crate::protocol::overrides::{self, LimitName, Override, Overrides, RunTimeLimit, RunTimeLimits};
use crate::protocol::revocation::Subject;
use crate::time::UnixSeconds;

/// The file.
pub static KIND: KeptKind = KeptKind {
    key: "limits.file",
    file_name: "limits",
    head: "throughway limits 1",
    entry: "a limit set at run time",
    entries: "limits set at run time",
    without: "unset all of them",
    entries_max: overrides::ENTRIES_MAX,
    write_failures: AtomicU64::new(0),
};

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitLine {
    /// Seconds since 1970.
    issued: u64,
    whose: Subject,
    limits: RunTimeLimits,
}

/// Why limits were not set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotSet {
    /// The table is full.
    #[error("{max} users and tenants have limits set at run time: unset some, or put them into the configuration",
        max = overrides::ENTRIES_MAX)]
    Full,
}

/// A limit as people write it: with the units of the configuration, or "none".
///
/// # Errors
/// What is wrong with it, and what to write in its place.
pub fn parse(name: LimitName, text: &str) -> Result<RunTimeLimit, String> {
    if text == "none" {
        return Ok(RunTimeLimit::None);
    }
    let number = match name {
        LimitName::Allocations | LimitName::PacketRate => {
            text.parse().map_err(|_| format!("expected a whole number from 1 to {}, or none for no limit", name.max()))
        }
        // A bare 0 has no unit, and would be told of that in place of what it lacks.
        LimitName::Bandwidth | LimitName::BytesPerDay if text == "0" => Ok(0),
        LimitName::Bandwidth => RATE.parse(text),
        LimitName::BytesPerDay => SIZE.parse(text),
    };
    check(name, number?)
}

/// A limit of so many: allocations, bits per second, packets per second, or bytes.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn check(name: LimitName, number: u64) -> Result<RunTimeLimit, String> {
    match number {
        0 => Err("must be greater than 0; none means no limit, and `throughway revoke` blocks".to_owned()),
        _ if number > name.max() => Err(format!("must be at most {}, or none for no limit", name.max())),
        _ => Ok(RunTimeLimit::At(number)),
    }
}

/// A limit as people read it.
#[must_use]
pub fn show(name: LimitName, number: u64) -> String {
    match name {
        LimitName::Allocations | LimitName::PacketRate => number.to_string(),
        LimitName::Bandwidth => RATE.show(number),
        LimitName::BytesPerDay => SIZE.show(number),
    }
}

/// What the file holds, read before anybody can come in; nothing if there is none.
///
/// # Errors
/// File, line and remedy, when it can't be read or is not what this wrote.
pub fn load(file: Option<&Path>) -> Result<Overrides, String> {
    let Some(path) = file else { return Ok(Overrides::default()) };
    let lines: Vec<LimitLine> = KIND.read(path, |line: &LimitLine| match line.limits.unfit(&line.whose) {
        Some(name) => Err(format!("{} can't be this, or not for this subject", name.name())),
        None => Ok(()),
    })?;
    let mut all = Overrides::default();
    for line in lines {
        all.put(line.whose, line.limits, UnixSeconds(line.issued));
    }
    Ok(all)
}

/// A change that holds and is not written yet.
#[must_use = "a restart would forget it"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitChange(u64);

/// The limits of a running relay that were set at run time.
///
/// It has a table of its own beside the one that the quotas ask: theirs is locked for one entry at a time, never while many
/// are listed or written.
pub struct LimitStore {
    running: Arc<Running>,
    file: KeptFile,
    set: Mutex<Overrides>,
}

impl LimitStore {
    /// For a relay that was started with what [`load`] gave for this file.
    #[must_use]
    pub fn new(running: Arc<Running>, file: Option<PathBuf>) -> Self {
        let set = Mutex::new(running.with_overrides(|set| set.clone()));
        Self { running, file: KeptFile::new(&KIND, file), set }
    }

    /// Where the entries are kept; nowhere if they are lost with the process.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.path()
    }

    fn set(&self) -> MutexGuard<'_, Overrides> {
        // The table is whole after each statement.
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets these limits of a subject, which fit it; others that it has stay. Holds for newcomers from now on; live sessions
    /// follow with [`LimitStore::follow`], and the change is for [`LimitStore::save`]. Gives all that are set now.
    ///
    /// # Errors
    /// [`NotSet::Full`].
    pub fn put(
        &self,
        whose: &Subject,
        limits: RunTimeLimits,
        now: UnixSeconds,
    ) -> Result<(RunTimeLimits, LimitChange), NotSet> {
        let mut set = self.set();
        let known = set.get(whose).map(|entry| entry.limits);
        if known.is_none() && set.len() >= overrides::ENTRIES_MAX {
            return Err(NotSet::Full);
        }
        let limits = limits.or(known.unwrap_or_default());
        Ok((limits, self.replace(&mut set, whose, limits, now)))
    }

    /// Takes limits of a subject back, all of them if none is named. Gives those that are left; nothing if none of these was
    /// set.
    #[must_use]
    pub fn unset(
        &self,
        whose: &Subject,
        names: &[LimitName],
        now: UnixSeconds,
    ) -> Option<(RunTimeLimits, LimitChange)> {
        let mut set = self.set();
        let known = set.get(whose)?.limits;
        let mut left = known;
        let names = if names.is_empty() { &LimitName::ALL } else { names };
        names.iter().for_each(|name| left.put(*name, None));
        if left == known {
            return None;
        }
        Some((left, self.replace(&mut set, whose, left, now)))
    }

    /// Changes both tables in one order.
    fn replace(&self, set: &mut Overrides, whose: &Subject, limits: RunTimeLimits, now: UnixSeconds) -> LimitChange {
        set.put(whose.clone(), limits, now);
        self.running.with_overrides(|set| set.put(whose.clone(), limits, now));
        LimitChange(set.changes())
    }

    /// Lets the live sessions of a subject pass the meters that hold now; how many they are.
    pub async fn follow(&self, whose: Subject) -> usize {
        self.running.meter_anew(Some(whose)).await
    }

    /// Those that fit, in a fixed order.
    #[must_use]
    pub fn list(&self, fits: impl Fn(&Subject) -> bool) -> Vec<(Subject, Override)> {
        let mut all = self.set().list();
        all.retain(|(whose, _)| fits(whose));
        all
    }

    /// Which of these user ids have limits, whatever their tenant.
    #[must_use]
    pub fn known_users(&self, ids: &HashSet<&str>) -> HashSet<Box<str>> {
        let all = if ids.is_empty() { Vec::new() } else { self.set().list() };
        all.into_iter()
            .filter_map(|(whose, _)| match whose {
                Subject::User { user, .. } => Some(user).filter(|user| ids.contains(&**user)),
                Subject::Tenant(_) | Subject::Credential(_) => None,
            })
            .collect()
    }

    /// Writes the table as it is, unless somebody else has done that since this change. Blocks while the file is written.
    ///
    /// # Errors
    /// [`NotSaved`]: the change holds nevertheless.
    pub fn save(&self, LimitChange(change): LimitChange) -> Result<(), NotSaved> {
        self.file.save(change, || {
            let (all, changes) = {
                let set = self.set();
                (set.list(), set.changes())
            };
            (all.into_iter().map(line).collect(), changes)
        })
    }
}

fn line((whose, entry): (Subject, Override)) -> LimitLine {
    LimitLine { issued: entry.issued_at.0, whose, limits: entry.limits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::net::passed::Passed;
    use crate::net::{self, KeptSets};
    use crate::ops::usage::tests::Directory;

    const NOW: UnixSeconds = UnixSeconds(1_000);

    fn user(user: &str, tenant: Option<&str>) -> Subject {
        Subject::User { user: user.into(), tenant: tenant.map(Into::into) }
    }

    fn allocations(limit: u64) -> RunTimeLimits {
        RunTimeLimits { allocations: Some(RunTimeLimit::At(limit)), ..RunTimeLimits::default() }
    }

    /// A store over a relay that listens nowhere.
    fn store(file: Option<PathBuf>, overrides: Overrides) -> (LimitStore, tokio::runtime::Runtime) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let text = "workers = 1\nlisten = { udp = [], tcp = [] }\nrelay.addresses = [\"127.0.0.1\"]\nauth.users = { a = \"b\" }";
        let config = Config::from_toml("c.toml", text).unwrap();
        let kept = KeptSets { overrides, ..KeptSets::default() };
        let running = runtime.block_on(async { net::start(&config, &[], Passed::default(), kept, None).unwrap().0 });
        (LimitStore::new(Arc::new(running), file), runtime)
    }

    #[test]
    fn what_is_set_reaches_the_quotas_and_the_file_until_it_is_unset() {
        let directory = Directory::new();
        let path = directory.path().join("limits");
        let (store, runtime) = store(Some(path.clone()), load(Some(&path)).unwrap());
        let (alice, acme) = (user("alice", Some("acme")), Subject::Tenant("acme".into()));
        let (_, change) = store.put(&alice, allocations(4), NOW).unwrap();
        store.save(change).unwrap();
        let bandwidth = RunTimeLimits { bandwidth: Some(RunTimeLimit::None), ..RunTimeLimits::default() };
        let (limits, change) = store.put(&alice, bandwidth, UnixSeconds(1_005)).unwrap();
        assert_eq!(limits, RunTimeLimits { bandwidth: Some(RunTimeLimit::None), ..allocations(4) });
        store.save(change).unwrap();
        let (_, change) = store.put(&acme, allocations(100), NOW).unwrap();
        store.save(change).unwrap();
        assert_eq!(store.running.with_overrides(|set| set.get(&alice).unwrap().limits), limits);
        let kept = load(Some(&path)).unwrap();
        assert_eq!((kept.to_state(), kept.len()), (store.set().to_state(), 2));
        assert_eq!(kept.get(&alice).unwrap().issued_at, UnixSeconds(1_005));
        assert_eq!(store.list(|whose| *whose == acme).len(), 1);
        assert_eq!(runtime.block_on(store.follow(alice.clone())), 0);
        // One limit, then the rest, then nothing is left to be unset.
        let (left, change) = store.unset(&alice, &[LimitName::Bandwidth], NOW).unwrap();
        assert_eq!((left, store.unset(&alice, &[LimitName::Bandwidth], NOW)), (allocations(4), None));
        store.save(change).unwrap();
        let (left, change) = store.unset(&alice, &[], NOW).unwrap();
        assert!(left.is_empty() && store.unset(&alice, &[], NOW).is_none());
        store.save(change).unwrap();
        assert_eq!(load(Some(&path)).unwrap().len(), 1);
        assert!(store.running.with_overrides(|set| set.get(&alice).is_none() && set.len() == 1));
    }

    #[test]
    fn limits_are_written_with_units_and_bad_ones_have_a_remedy() {
        for (name, text, number) in [
            (LimitName::Allocations, "4", 4),
            (LimitName::Bandwidth, "2Mbit/s", 2_000_000),
            (LimitName::PacketRate, "500", 500),
            (LimitName::BytesPerDay, "10GiB", 10 << 30),
        ] {
            assert_eq!((parse(name, text), show(name, number)), (Ok(RunTimeLimit::At(number)), text.to_owned()));
            assert_eq!(parse(name, "none"), Ok(RunTimeLimit::None));
            assert!(parse(name, "0").unwrap_err().contains("`throughway revoke` blocks"));
            for wrong in ["", "-1", "1.5", "many", "99999999999999999999"] {
                assert!(parse(name, wrong).is_err(), "{wrong}");
            }
        }
        assert!(parse(LimitName::Allocations, "4294967296").unwrap_err().contains("at most 4294967295"));
        assert!(parse(LimitName::Bandwidth, "2").unwrap_err().contains("the unit is missing"));
    }

    #[test]
    fn a_full_table_takes_only_those_that_it_has() {
        let mut all = Overrides::default();
        (0..overrides::ENTRIES_MAX).for_each(|id| all.put(user(&id.to_string(), None), allocations(1), NOW));
        let (store, _runtime) = store(None, all);
        assert_eq!(store.put(&user("new", None), allocations(1), NOW), Err(NotSet::Full));
        assert!(store.put(&user("7", None), allocations(2), NOW).is_ok());
        assert!(store.unset(&user("8", None), &[], NOW).is_some());
        assert!(store.put(&user("new", None), allocations(1), NOW).is_ok());
        let asked = HashSet::from(["7", "8", "new", "other"]);
        assert_eq!(store.known_users(&asked), ["7", "new"].map(Box::from).into());
    }

    #[test]
    fn a_line_that_is_no_limit_is_named() {
        let directory = Directory::new();
        let path = directory.path().join("limits");
        let user = r#"{"user":{"user":"a"}}"#;
        for (line, why) in [
            (r#"{"issued":9,"limits":{"allocations":4}}"#.to_owned(), "missing field `whose`"),
            (format!(r#"{{"issued":9,"whose":{user},"limits":{{"allocations":0}}}}"#), "allocations can't be this"),
            (format!(r#"{{"issued":9,"whose":{user},"limits":{{"bytes":1}}}}"#), "unknown field `bytes`"),
            (r#"{"issued":9,"whose":{"tenant":"t"},"limits":{"bytes_per_day":1}}"#.to_owned(), "bytes_per_day"),
            (r#"{"issued":9,"whose":{"credential":"9:a"},"limits":{"allocations":1}}"#.to_owned(), "allocations"),
        ] {
            std::fs::write(&path, format!("{}\n{line}\n", KIND.head)).unwrap();
            let error = load(Some(&path)).unwrap_err();
            assert!(error.contains("limits.file: ") && error.contains("limits:2: "), "{error}");
            assert!(error.contains(why) && error.contains("to unset all of them"), "{error}");
        }
    }
}
