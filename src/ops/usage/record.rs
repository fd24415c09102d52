//! The accounting record as one JSON object, for those who write it and those who read it back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::calendar::rfc3339;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::border::Event;
use crate::protocol::reason::{Direction, EndReason};

/// What a record tells of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// The session began.
    Start,
    /// It goes on.
    Interim,
    /// It ended; nothing follows.
    Stop,
}

/// Packets and payload bytes that went nowhere for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Dropped {
    /// Datagrams.
    pub packets: u64,
    /// Payload bytes.
    pub bytes: u64,
}

/// What all sessions relayed before [`Record::relay_transport`] was.
fn udp() -> String {
    "udp".to_owned()
}

/// One line. Counts are of the whole session up to now, payload only.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Start, interim or stop.
    #[serde(rename = "type")]
    pub kind: RecordKind,
    /// Counts this session's records from 0; `session` and `seq` together name a record.
    pub seq: u32,
    /// UTC, RFC 3339.
    pub time: String,
    /// The server that wrote it: `accounting.server`, or the host's name. Records of 0.1.0 from before fleets lack it, and
    /// the two below.
    #[serde(default)]
    pub server: Option<String>,
    /// The series of lines that this one belongs to; drawn at random, and carried on from the file at a restart.
    #[serde(default)]
    pub series: Option<String>,
    /// Counts the lines of the series from 0, whatever session they are about.
    #[serde(default)]
    pub line: Option<u64>,
    /// Unique across workers, restarts and machines.
    pub session: String,
    /// The user id.
    pub user: String,
    /// The full USERNAME.
    pub credential: String,
    /// Whose user it is.
    pub tenant: Option<String>,
    /// The realm.
    pub realm: String,
    /// The client's address and port.
    pub client: String,
    /// How it came.
    pub transport: String,
    /// The relayed transport address.
    pub relayed: String,
    /// The one of the other family, if the session has or had one; null otherwise. Records of 0.1.0 lack it.
    #[serde(default)]
    pub additional_relayed: Option<String>,
    /// What is relayed: `udp`, or `tcp` for a session of RFC 6062. Records from before TCP was relayed lack it.
    #[serde(default = "udp")]
    pub relay_transport: String,
    /// Why it ended; null before.
    pub reason: Option<String>,
    /// Received from the client.
    pub bytes_from_client: u64,
    /// Sent to the client.
    pub bytes_to_client: u64,
    /// Received from peers.
    pub bytes_from_peers: u64,
    /// Sent to peers.
    pub bytes_to_peers: u64,
    /// Received from the client.
    pub packets_from_client: u64,
    /// Sent to the client.
    pub packets_to_client: u64,
    /// Received from peers.
    pub packets_from_peers: u64,
    /// Sent to peers.
    pub packets_to_peers: u64,
    /// Sent to the client as bytes of the network, which is what limits charge: with the heads of IP and UDP.
    #[serde(default)]
    pub wire_bytes_to_client: u64,
    /// Sent to peers, likewise. Records of 0.1.0 lack both.
    #[serde(default)]
    pub wire_bytes_to_peers: u64,
    /// What was received and not sent, by reason.
    pub dropped: BTreeMap<String, Dropped>,
}

impl Record {
    /// What an event of the core says; `None` if it is about no session.
    #[must_use]
    pub fn of_event(event: &Event, realm: &str) -> Option<Self> {
        match event {
            Event::AllocationCreated(record) => Some(Self::new(RecordKind::Start, record, realm)),
            Event::AllocationInterim(record) | Event::AllocationMoved { record, .. } => {
                Some(Self::new(RecordKind::Interim, record, realm))
            }
            Event::AllocationEnded(record) => Some(Self::new(RecordKind::Stop, record, realm)),
            Event::Refused { .. } => None,
        }
    }

    fn new(kind: RecordKind, record: &SessionRecord, realm: &str) -> Self {
        let (to_peers, to_client) = (record.traffic.to_peers, record.traffic.to_client);
        let five_tuple = record.via.five_tuple();
        Self {
            kind,
            seq: record.seq,
            time: rfc3339(record.unix.0),
            server: None,
            series: None,
            line: None,
            session: record.session.to_string(),
            user: record.identity.as_ref().into(),
            credential: record.username.as_ref().into(),
            tenant: record.tenant.as_deref().map(Into::into),
            realm: record.realm.as_deref().unwrap_or(realm).to_owned(),
            client: five_tuple.client.to_string(),
            transport: five_tuple.transport.name().to_owned(),
            relayed: record.relayed.to_string(),
            additional_relayed: record.additional.map(|of| of.relayed.to_string()),
            relay_transport: record.relay_transport().to_owned(),
            reason: record.reason.map(|reason| EndReason::name(reason).to_owned()),
            bytes_from_client: to_peers.received.bytes,
            bytes_to_client: to_client.sent().bytes,
            bytes_from_peers: to_client.received.bytes,
            bytes_to_peers: to_peers.sent().bytes,
            packets_from_client: to_peers.received.packets,
            packets_to_client: to_client.sent().packets,
            packets_from_peers: to_client.received.packets,
            packets_to_peers: to_peers.sent().packets,
            wire_bytes_to_client: record.wire_sent(Direction::ToClient),
            wire_bytes_to_peers: record.wire_sent(Direction::ToPeer),
            dropped: record
                .dropped
                .iter()
                .map(|(why, amount)| (why.name().to_owned(), Dropped { packets: amount.packets, bytes: amount.bytes }))
                .collect(),
        }
    }

    /// Whether all that came in went out or was dropped.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let dropped =
            |pick: fn(&Dropped) -> u64| self.dropped.values().map(|dropped| u128::from(pick(dropped))).sum::<u128>();
        let sum = |a: u64, b: u64| u128::from(a) + u128::from(b);
        sum(self.bytes_from_client, self.bytes_from_peers)
            == sum(self.bytes_to_peers, self.bytes_to_client) + dropped(|of| of.bytes)
            && sum(self.packets_from_client, self.packets_from_peers)
                == sum(self.packets_to_peers, self.packets_to_client) + dropped(|of| of.packets)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record to write tests with.
    pub(in crate::ops::usage) fn record(session: &str, seq: u32, kind: RecordKind, to_client: u64) -> Record {
        let mut dropped = BTreeMap::new();
        dropped.insert("slow_client".to_owned(), Dropped { packets: 1, bytes: 10 });
        Record {
            kind,
            seq,
            time: rfc3339(1_800_000_000 + u64::from(seq) * 60),
            server: None,
            series: None,
            line: None,
            session: session.to_owned(),
            user: "bob".to_owned(),
            credential: "1900000000:bob".to_owned(),
            tenant: None,
            realm: "throughway".to_owned(),
            client: "192.0.2.1:5000".to_owned(),
            transport: "udp".to_owned(),
            relayed: "203.0.113.7:50000".to_owned(),
            additional_relayed: None,
            relay_transport: udp(),
            reason: (kind == RecordKind::Stop).then(|| "refreshed".to_owned()),
            bytes_from_client: 0,
            bytes_to_client: to_client,
            bytes_from_peers: to_client + 10,
            bytes_to_peers: 0,
            packets_from_client: 0,
            packets_to_client: to_client / 100,
            packets_from_peers: to_client / 100 + 1,
            packets_to_peers: 0,
            wire_bytes_to_client: to_client + to_client / 100 * 28,
            wire_bytes_to_peers: 0,
            dropped,
        }
    }

    #[test]
    fn a_record_of_an_older_release_is_one_of_udp() {
        let record = Record { relay_transport: "tcp".to_owned(), ..record("a", 0, RecordKind::Start, 500) };
        let mut json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["relay_transport"], "tcp");
        assert_eq!(serde_json::from_value::<Record>(json.clone()).unwrap(), record);
        let all = json.as_object_mut().unwrap();
        let newer = ["relay_transport", "additional_relayed", "wire_bytes_to_client", "wire_bytes_to_peers"];
        for newer in newer.into_iter().chain(["server", "series", "line"]) {
            assert!(all.remove(newer).is_some(), "{newer}");
        }
        let old: Record = serde_json::from_value(json).unwrap();
        assert_eq!((&*old.relay_transport, old.additional_relayed, old.wire_bytes_to_peers), ("udp", None, 0));
        assert_eq!((old.server, old.series, old.line), (None, None, None));
    }

    #[test]
    fn a_record_adds_up_or_does_not() {
        let mut record = record("a", 0, RecordKind::Start, 500);
        assert!(record.adds_up());
        record.bytes_to_client -= 1;
        assert!(!record.adds_up());
        record.bytes_to_client += 1;
        record.packets_to_peers += 1;
        assert!(!record.adds_up());
    }
}
