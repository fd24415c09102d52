//! What is known of each session: all of it while records could still come, some 90 bytes once it is whole.
//!
//! A session is whole with its stop and every record before it. Then its days are added to the rows, and what is kept is
//! enough to know its records again: a file that is given twice, or a delivery that came twice, changes nothing.

use std::collections::HashMap;

use super::Gap;
use super::stretches::{Hole, Stretches};
use super::totals::Counts;
use crate::ops::usage::record::{Record, RecordKind};

/// A session's name: that of this program in 16 bytes, any other as it is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum SessionKey {
    Ours(u64, u64),
    Other(Box<str>),
}

impl SessionKey {
    pub(super) fn of(name: &str) -> Self {
        Self::ours(name).unwrap_or_else(|| Self::Other(name.into()))
    }

    /// As `protocol::ids::SessionId` is written, to the letter: two names must not have one key.
    fn ours(name: &str) -> Option<Self> {
        let (instance, number) = name.split_once('-')?;
        let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_short = number == "0" || !number.starts_with('0');
        if instance.len() != 16 || !is_short || !is_hex(instance) || !is_hex(number) {
            return None;
        }
        Some(Self::Ours(u64::from_str_radix(instance, 16).ok()?, u64::from_str_radix(number, 16).ok()?))
    }
}

impl std::fmt::Display for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ours(instance, number) => write!(f, "{instance:016x}-{number:x}"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// The last record of a day.
#[derive(Clone, Copy, Debug)]
struct DayEnd {
    /// Counted from 1970-01-01.
    day: u32,
    seq: u32,
    server: u32,
    counts: Counts,
}

/// A session of which records could still come.
#[derive(Debug)]
struct OpenSession {
    owner: u32,
    seen: Stretches,
    /// In order of the day.
    days: Vec<DayEnd>,
    stop: Option<u32>,
}

/// What is kept of a session that is whole.
#[derive(Clone, Copy, Debug)]
struct WholeSession {
    owner: u32,
    last: u32,
    /// Of the last record's counts.
    check: u32,
}

/// What a session has to do with one day.
pub(super) struct DayShare {
    pub(super) day: u32,
    pub(super) owner: u32,
    pub(super) server: u32,
    /// At the end of the day.
    pub(super) now: Counts,
    /// At the end of the last day before.
    pub(super) before: Counts,
}

/// A record with its names looked up.
pub(super) struct KnownRecord<'r> {
    pub(super) record: &'r Record,
    pub(super) counts: Counts,
    /// Of user and tenant.
    pub(super) owner: u32,
    pub(super) server: u32,
    /// In seconds since 1970.
    pub(super) time: u64,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    New,
    Duplicate,
    /// Another record of this number had other counts.
    Contradicts,
    /// The session is whole with its stop, which has this number.
    AfterStop(u32),
    /// The session is another user's.
    OtherOwner(u32),
}

/// Records that a session lacks, and the server that should have them.
pub(super) struct SessionHole {
    pub(super) server: u32,
    pub(super) hole: Hole,
}

/// What is left when every file was read.
pub(super) struct Remaining {
    pub(super) unfinished: u64,
    pub(super) gaps: Vec<Gap>,
    pub(super) holes: Vec<SessionHole>,
}

/// All sessions.
#[derive(Default)]
pub(super) struct Sessions {
    open: HashMap<SessionKey, OpenSession>,
    whole: HashMap<SessionKey, WholeSession>,
}

impl Sessions {
    /// Takes a record; `share` hears of each day of a session that is whole with it.
    pub(super) fn take(&mut self, known: &KnownRecord<'_>, share: impl FnMut(&[DayShare])) -> Taken {
        let KnownRecord { record, counts, owner, server, time } = *known;
        let key = SessionKey::of(&record.session);
        if let Some(whole) = self.whole.get(&key) {
            return if whole.owner != owner {
                Taken::OtherOwner(whole.owner)
            } else if record.seq > whole.last {
                Taken::AfterStop(whole.last)
            } else if record.seq == whole.last && whole.check != counts.check() {
                Taken::Contradicts
            } else {
                Taken::Duplicate
            };
        }
        let session = self.open.entry(key.clone()).or_insert_with(|| OpenSession {
            owner,
            seen: Stretches::default(),
            days: Vec::with_capacity(1),
            stop: None,
        });
        if session.owner != owner {
            return Taken::OtherOwner(session.owner);
        }
        let day = u32::try_from(time / super::SECONDS_PER_DAY).unwrap_or(u32::MAX);
        let at = session.days.partition_point(|end| end.day < day);
        let held = session.days.get_mut(at).filter(|end| end.day == day);
        if !session.seen.see(record.seq.into(), time) {
            let differs = held.is_some_and(|end| end.seq == record.seq && end.counts != counts);
            return if differs { Taken::Contradicts } else { Taken::Duplicate };
        }
        let end = DayEnd { day, seq: record.seq, server, counts };
        match held {
            Some(held) if record.seq > held.seq => *held = end,
            Some(_) => {}
            None => session.days.insert(at, end),
        }
        if record.kind == RecordKind::Stop {
            session.stop = Some(record.seq);
        }
        if session.stop.is_some_and(|last| session.seen.is_whole_to(last.into())) {
            self.close(key, share);
        }
        Taken::New
    }

    fn close(&mut self, key: SessionKey, mut share: impl FnMut(&[DayShare])) {
        let Some(session) = self.open.remove(&key) else { return };
        let Some(end) = session.days.last() else { return };
        let check = end.counts.check();
        share(&session.shares());
        let last = session.stop.unwrap_or(end.seq);
        self.whole.insert(key, WholeSession { owner: session.owner, last, check });
    }

    /// Adds up the sessions that are not whole; `share` is told each one's days, and whether they are all it has.
    pub(super) fn finish(self, mut share: impl FnMut(&[DayShare]) -> bool) -> Remaining {
        let mut remaining = Remaining { unfinished: 0, gaps: Vec::new(), holes: Vec::new() };
        // Sorted, because the order of a hash map must not decide what the report looks like.
        let mut open: Vec<(SessionKey, OpenSession)> = self.open.into_iter().collect();
        open.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (key, session) in &open {
            // What is not asked for is not reported either.
            if !share(&session.shares()) {
                continue;
            }
            remaining.unfinished += u64::from(session.stop.is_none());
            let Some(server) = session.days.last().map(|end| end.server) else { continue };
            for hole in session.seen.holes() {
                let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
                remaining.gaps.push(Gap {
                    session: key.to_string(),
                    first: number(hole.first),
                    last: number(hole.last),
                });
                remaining.holes.push(SessionHole { server, hole });
            }
        }
        remaining
    }
}

impl OpenSession {
    fn shares(&self) -> Vec<DayShare> {
        let mut before = Counts::default();
        let share = |end: &DayEnd| {
            let share = DayShare { day: end.day, owner: self.owner, server: end.server, now: end.counts, before };
            before = end.counts;
            share
        };
        self.days.iter().map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::record::tests::record;

    #[test]
    fn a_key_is_short_for_our_names_and_each_name_has_its_own() {
        let names =
            ["000000000000001f-11", "ffffffffffffffff-ffffffffffffffff", "0000000000000000-0", "a", "", "-", "é-1"];
        let close = [
            "000000000000001F-11",
            "000000000000001f-011",
            "00000000000001f-11",
            "000000000000001f-",
            "+00000000000001f-11",
            "000000000000001f-+11",
            "0000000000000000-00",
            "000000000000001f-11111111111111111",
        ];
        for name in names.into_iter().chain(close) {
            assert_eq!(SessionKey::of(name).to_string(), name);
        }
        assert!(names[..3].iter().all(|name| matches!(SessionKey::of(name), SessionKey::Ours(..))));
        assert!(close.iter().all(|name| matches!(SessionKey::of(name), SessionKey::Other(_))));
    }

    #[test]
    fn what_is_kept_of_a_whole_session_is_small() {
        assert!(size_of::<(SessionKey, WholeSession)>() <= 40, "{}", size_of::<(SessionKey, WholeSession)>());
        assert!(size_of::<(SessionKey, OpenSession)>() <= 96, "{}", size_of::<(SessionKey, OpenSession)>());
    }

    #[test]
    fn a_session_is_whole_with_its_stop_and_all_before_it() {
        let mut sessions = Sessions::default();
        let mut shares = 0;
        let due = [
            (1, Taken::New, 0),
            (2, Taken::New, 0),
            (0, Taken::New, 1),
            (2, Taken::Duplicate, 1),
            (0, Taken::Duplicate, 1),
        ];
        for (seq, taken, whole) in due {
            let kind = if seq == 2 { RecordKind::Stop } else { RecordKind::Interim };
            let record = record("a", seq, kind, u64::from(seq) * 100);
            let counts = Counts::of(&record).unwrap();
            let known = KnownRecord { record: &record, counts, owner: 1, server: 0, time: 1_800_000_000 };
            assert_eq!(sessions.take(&known, |days| shares += days.len()), taken, "{seq}");
            assert_eq!((sessions.whole.len(), shares), (whole, whole), "{seq}");
        }
        let record = record("a", 2, RecordKind::Stop, 300);
        let counts = Counts::of(&record).unwrap();
        let known = |owner| KnownRecord { record: &record, counts, owner, server: 0, time: 1_800_000_000 };
        assert_eq!(sessions.take(&known(1), |_| {}), Taken::Contradicts);
        assert_eq!(sessions.take(&known(2), |_| {}), Taken::OtherOwner(1));
        let late = KnownRecord { record: &Record { seq: 3, ..record.clone() }, ..known(1) };
        assert_eq!(sessions.take(&late, |_| {}), Taken::AfterStop(2));
    }
}
