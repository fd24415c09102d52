//! Accounting records: when each is due, what is in it, and that all of them add up to the counters.

use std::collections::BTreeMap;

use throughway::protocol::accounting::{Amount, SessionRecord};
use throughway::protocol::reason::DropReason;

use super::config::INTERIM_SECONDS;
use super::model::{Key, Session, unix};
use super::world::{World, add};

/// What the records of one worker's ended sessions say, all together.
#[derive(Clone, Default)]
pub struct Written {
    pub from_clients: Amount,
    pub to_peers: Amount,
    pub from_peers: Amount,
    pub to_clients: Amount,
    pub drops: BTreeMap<&'static str, Amount>,
    pub stops: u64,
}

/// The next multiple of the interval after `now`.
fn next_interim(created_at: u64, now: u64) -> u64 {
    let interval = INTERIM_SECONDS * 1000;
    created_at + ((now - created_at) / interval + 1) * interval
}

impl World {
    pub fn drop_reasoned(&mut self, key: Key, why: DropReason, len: usize) {
        let session = self.model.sessions.get_mut(&key).expect("it is alive");
        add(&mut session.drops.entry(why as usize).or_insert_with(|| (why, Amount::default())).1, len);
    }

    /// A start is the first record and counts nothing.
    pub fn started(&mut self, worker: usize, record: &SessionRecord) {
        assert_eq!((record.seq, record.unix.0, record.reason), (0, unix(self.now), None));
        assert_eq!((record.created_at.0, record.traffic), (self.now, Default::default()));
        assert!(record.dropped.is_empty());
        assert!(self.names.insert(record.session), "a session's name is used once");
        let plan = (record.session, 1, next_interim(self.now, self.now));
        assert!(self.plans.insert((worker, record.allocation), plan).is_none());
    }

    /// An interim comes at its time, with the next number and everything that was counted.
    pub fn goes_on(&mut self, worker: usize, record: &SessionRecord) {
        let key = (worker, record.allocation);
        let session = &self.model.sessions[&key];
        let (name, seq, due) = self.plans[&key];
        assert_eq!((record.session, record.seq, record.unix.0), (name, seq, unix(self.now)));
        assert!(due <= self.now, "an interim before its time");
        assert!(self.lazy_timers || due == self.now, "an interim {} ms late", self.now - due);
        assert_eq!((record.traffic, record.reason), (session.traffic, None));
        check_drops(record, session);
        self.plans.insert(key, (name, seq + 1, next_interim(session.created_at, self.now)));
        self.interims += 1;
    }

    /// The shell holds a stop back while something of the session is queued.
    pub fn stopped(&mut self, worker: usize, record: SessionRecord, session: &Session) {
        let key = (worker, record.allocation);
        let (name, seq, _) = self.plans.remove(&key).expect("what stops has started");
        assert_eq!((record.session, record.seq, record.unix.0), (name, seq, unix(self.now)));
        check_drops(&record, session);
        if self.queued.contains_key(&key) {
            self.held_back.insert(key, record);
        } else {
            self.written(worker, record);
        }
    }

    /// A stop is written: from now on nothing may change it.
    pub fn written(&mut self, worker: usize, record: SessionRecord) {
        let written = &mut self.written[worker];
        let (to_peers, to_client) = (record.traffic.to_peers, record.traffic.to_client);
        for (sum, amount) in [
            (&mut written.from_clients, to_peers.received),
            (&mut written.to_peers, to_peers.sent()),
            (&mut written.from_peers, to_client.received),
            (&mut written.to_clients, to_client.sent()),
        ] {
            *sum = *sum + amount;
        }
        let mut dropped = Amount::default();
        for (why, amount) in &record.dropped {
            let sum = written.drops.entry(why.name()).or_default();
            *sum = *sum + *amount;
            dropped = dropped + *amount;
        }
        assert_eq!(dropped, to_peers.dropped + to_client.dropped, "received = sent + dropped by reason");
        written.stops += 1;
    }

    /// When all is over the stops say what the counters say, to the byte.
    pub fn compare_accounts(&self) {
        assert!(
            self.plans.is_empty() && self.held_back.is_empty() && self.queued.is_empty(),
            "every session has its stop"
        );
        for (totals, written) in self.model.totals.iter().zip(&self.written) {
            assert_eq!(written.stops, totals.created);
            let sums = [written.from_clients, written.to_peers, written.from_peers, written.to_clients];
            assert_eq!(sums, [totals.from_clients, totals.to_peers, totals.from_peers, totals.to_clients]);
            for why in DropReason::ALL {
                let counted = totals.drops[*why as usize];
                let recorded = written.drops.get(why.name()).copied().unwrap_or_default();
                // Strangers' packets are in the counters only.
                assert!(recorded.packets <= counted.packets && recorded.bytes <= counted.bytes, "{why:?}");
            }
            let recorded = written.drops.values().fold(Amount::default(), |sum, amount| sum + *amount);
            let missing = (totals.from_clients - totals.to_peers) + (totals.from_peers - totals.to_clients);
            assert_eq!(recorded, missing, "what came in and did not go out has a reason in a record");
        }
    }
}

#[track_caller]
fn check_drops(record: &SessionRecord, session: &Session) {
    let due: Vec<(DropReason, Amount)> = session.drops.values().copied().collect();
    assert_eq!(*record.dropped, *due, "drops by reason");
}
