//! What stands around the workers in the tests: the books that span them, and the relay ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use throughway::protocol::address::{Family, PeerAddress, RelayedTransportAddress};
use throughway::protocol::border::{
    AllocationId, OpenedRelay, Parity, QuotaClaim, RelayRefused, RelayRequest, Shared, WorkerId,
};
use throughway::protocol::reject::RejectReason;
use throughway::protocol::revocation::{Party, Revocations, Whose};
use throughway::protocol::settings::Limits;
use throughway::protocol::time::UnixSeconds;

#[derive(Default, Debug)]
struct Counted {
    total: u32,
    users: BTreeMap<String, u32>,
    clients: BTreeMap<Vec<u8>, u32>,
    relayed: BTreeSet<SocketAddr>,
    revoked: Revocations,
}

/// Quotas and relayed addresses of all workers.
#[derive(Default, Debug)]
pub struct Books(Mutex<Counted>);

/// The /32 or /56 that a client counts for; nobody on loopback.
fn prefix(client: IpAddr) -> Option<Vec<u8>> {
    if client.is_loopback() {
        return None;
    }
    Some(match client {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets()[..7].to_vec(),
    })
}

impl Books {
    fn locked(&self) -> std::sync::MutexGuard<'_, Counted> {
        self.0.lock().expect("no test thread panics while it holds this")
    }
    /// Allocations counted in and not yet out.
    pub fn admitted(&self) -> usize {
        self.locked().total as usize
    }
    /// As the process does it; whoever calls this ends the live sessions too.
    pub fn revoke(&self, whose: Whose, until: UnixSeconds) {
        self.locked().revoked.insert(whose, until);
    }
    pub fn opened(&self, relayed: RelayedTransportAddress) {
        assert!(self.locked().relayed.insert(relayed.into()), "{relayed} was not open");
    }
    pub fn closed(&self, relayed: RelayedTransportAddress) {
        assert!(self.locked().relayed.remove(&SocketAddr::from(relayed)), "{relayed} was open");
    }
}

impl Shared for Books {
    fn admit(&self, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<(), RejectReason> {
        let mut counted = self.locked();
        let full = |count: u32, limit: Option<u32>| limit.is_some_and(|limit| count >= limit);
        let user = claim.identity.map(|user| (user.to_owned(), counted.users.get(user).copied().unwrap_or(0)));
        let client = prefix(claim.client).map(|key| {
            let count = counted.clients.get(&key).copied().unwrap_or(0);
            (key, count)
        });
        if user.as_ref().is_some_and(|(_, count)| full(*count, limits.allocations_per_user)) {
            return Err(RejectReason::QuotaUser);
        }
        if client.as_ref().is_some_and(|(_, count)| full(*count, limits.allocations_per_client)) {
            return Err(RejectReason::QuotaClient);
        }
        if full(counted.total, limits.allocations) {
            return Err(RejectReason::QuotaServer);
        }
        counted.total += 1;
        if let Some((user, count)) = user {
            counted.users.insert(user, count + 1);
        }
        if let Some((key, count)) = client {
            counted.clients.insert(key, count + 1);
        }
        Ok(())
    }

    fn release(&self, claim: &QuotaClaim<'_>) {
        let mut counted = self.locked();
        counted.total = counted.total.checked_sub(1).expect("only what was admitted is released");
        if let Some(user) = claim.identity {
            let count = counted.users.get_mut(user).expect("this user was admitted");
            *count = count.checked_sub(1).expect("as often as released");
        }
        if let Some(key) = prefix(claim.client) {
            let count = counted.clients.get_mut(&key).expect("this client was admitted");
            *count = count.checked_sub(1).expect("as often as released");
        }
    }

    fn is_revoked(&self, party: &Party<'_>, now: UnixSeconds) -> bool {
        self.locked().revoked.includes(party, now)
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        self.locked().relayed.contains(&SocketAddr::from(address))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Port {
    Open(WorkerId, AllocationId),
    Held,
}

/// Relay ports in order, from an odd one on, so that parity has something to do.
#[derive(Debug)]
pub struct Ports {
    taken: BTreeMap<SocketAddr, Port>,
    next: u16,
    /// Every answer from now on, if a test wants a refusal.
    pub refuse: Option<RelayRefused>,
}

pub const RELAY_IPV4: &str = "9.9.9.9";
pub const RELAY_IPV6: &str = "2a00:9::9";
const FIRST_PORT: u16 = 50_001;

impl Default for Ports {
    fn default() -> Self {
        Self { taken: BTreeMap::new(), next: FIRST_PORT, refuse: None }
    }
}

impl Ports {
    pub fn open(
        &mut self,
        worker: WorkerId,
        id: AllocationId,
        request: RelayRequest,
    ) -> Result<OpenedRelay, RelayRefused> {
        if let Some(refused) = self.refuse {
            return Err(refused);
        }
        let (family, parity) = match request {
            RelayRequest::Fresh { family, parity, .. } => (family, parity),
            RelayRequest::Reserved { relayed, .. } => {
                let port = self.taken.get_mut(&relayed.into()).filter(|port| **port == Port::Held);
                *port.ok_or(RelayRefused::NotHeld)? = Port::Open(worker, id);
                return Ok(OpenedRelay { relayed, held: None });
            }
        };
        let ip: IpAddr = match family {
            Family::V4 => RELAY_IPV4,
            Family::V6 => RELAY_IPV6,
        }
        .parse()
        .expect("an address");
        if parity != Parity::Any {
            self.next = self.next.next_multiple_of(2);
        }
        let relayed = SocketAddr::new(ip, self.next);
        self.next += 1;
        self.taken.insert(relayed, Port::Open(worker, id));
        let held = (parity == Parity::EvenAndHoldNext).then(|| {
            let held = SocketAddr::new(ip, self.next);
            self.next += 1;
            self.taken.insert(held, Port::Held);
            held.into()
        });
        Ok(OpenedRelay { relayed: relayed.into(), held })
    }

    pub fn close(&mut self, worker: WorkerId, id: AllocationId, relayed: RelayedTransportAddress) {
        let was = self.taken.remove(&relayed.into());
        assert_eq!(was, Some(Port::Open(worker, id)), "an allocation closes its own relayed address");
    }

    pub fn close_reserved(&mut self, relayed: RelayedTransportAddress) {
        assert_eq!(self.taken.remove(&relayed.into()), Some(Port::Held), "only a held port is closed as held");
    }

    pub fn count(&self) -> usize {
        self.taken.len()
    }
    pub fn is_held(&self, relayed: SocketAddr) -> bool {
        self.taken.get(&relayed) == Some(&Port::Held)
    }
}
