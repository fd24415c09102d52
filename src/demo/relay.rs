//! The demo's view of the relay beneath it: credentials from the run's own secret, counts from the workers.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

use super::{BoxFuture, Count, Counted, DemoBackend, IceServer, IceServers, Session, Transport, Usage, turn_urls};
use crate::clock;
use crate::credentials::claims::Claims;
use crate::credentials::{self, SharedSecret};
use crate::net::Running;
use crate::protocol::accounting::{Amount, SessionRecord, Traffic};

/// How long a tab's credentials are good for; the page asks for new ones with each ICE restart.
const CREDENTIAL_SECONDS: u64 = 3600;
/// Tabs whose ended allocations are remembered; a reload makes a new tab.
const TABS_MAX: usize = 1024;

/// What ended allocations had relayed, by tab.
#[derive(Clone, Default)]
pub(super) struct Ended(Arc<Mutex<HashMap<Box<str>, Traffic>>>);

impl Ended {
    /// One more ended allocation.
    pub(super) fn add(&self, record: &SessionRecord) {
        let mut tabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tabs.len() >= TABS_MAX && !tabs.contains_key(&record.identity) {
            // Better a tab that starts at zero again than memory that only grows.
            tabs.clear();
        }
        let sum = tabs.entry(record.identity.clone()).or_default();
        *sum = add(*sum, record.traffic);
    }

    fn of(&self, user: &str) -> Traffic {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(user).copied().unwrap_or_default()
    }
}

/// The relay of this process.
pub(super) struct OwnRelay {
    pub(super) running: Arc<Running>,
    pub(super) secret: SharedSecret,
    pub(super) lan: IpAddr,
    pub(super) port: u16,
    pub(super) ended: Ended,
}

impl DemoBackend for OwnRelay {
    fn ice_servers(&self, user: &str, transport: Transport, host: &str) -> IceServers {
        let minted =
            credentials::mint(&self.secret, clock::unix_seconds().0, user, CREDENTIAL_SECONDS, &Claims::default())
                .expect("the demo's user ids are short words of its own");
        IceServers {
            ice_servers: vec![IceServer {
                urls: turn_urls(host, self.lan, self.port, transport),
                username: minted.username,
                credential: minted.password,
            }],
            expires_at: minted.expires_at,
        }
    }

    fn usage(&self, user: &str) -> BoxFuture<Option<Usage>> {
        let running = Arc::clone(&self.running);
        let ended = self.ended.clone();
        let user = user.to_owned();
        Box::pin(async move {
            let live = running.sessions().await;
            let allocations = live.len() as u64;
            let own: Vec<_> = live.into_iter().filter(|record| *record.identity == *user).collect();
            let traffic = own.iter().fold(ended.of(&user), |sum, record| add(sum, record.traffic));
            Some(Usage {
                sessions: own.iter().map(session).collect(),
                user: counted(traffic),
                server: server(&running),
                allocations,
            })
        })
    }
}

/// What all workers counted, in their own counters: another way of counting than the sum over sessions.
fn server(running: &Running) -> Counted {
    let mut sum = Counted::default();
    for (core, _) in running.counters() {
        for (total, cell) in [
            (&mut sum.from_client, &core.from_clients),
            (&mut sum.to_peers, &core.to_peers),
            (&mut sum.from_peers, &core.from_peers),
            (&mut sum.to_client, &core.to_clients),
        ] {
            let amount = cell.get();
            total.packets += amount.packets;
            total.bytes += amount.bytes;
        }
    }
    sum
}

fn session(record: &SessionRecord) -> Session {
    let five_tuple = record.via.five_tuple();
    Session {
        transport: five_tuple.transport.name().to_owned(),
        client: five_tuple.client.to_string(),
        relayed: record.relayed.to_string(),
        counted: counted(record.traffic),
    }
}

fn counted(traffic: Traffic) -> Counted {
    let count = |amount: Amount| Count { packets: amount.packets, bytes: amount.bytes };
    Counted {
        from_client: count(traffic.to_peers.received),
        to_peers: count(traffic.to_peers.sent()),
        from_peers: count(traffic.to_client.received),
        to_client: count(traffic.to_client.sent()),
    }
}

fn add(mut sum: Traffic, more: Traffic) -> Traffic {
    for (flow, other) in [(&mut sum.to_peers, more.to_peers), (&mut sum.to_client, more.to_client)] {
        flow.received = flow.received + other.received;
        flow.dropped = flow.dropped + other.dropped;
    }
    sum
}
