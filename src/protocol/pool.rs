//! The servers that take clients from this one: weights, who of them is up, and when this server is full
//! (`turn.alternates`, decision 0227).
//!
//! The core is told who is up and how full the server is ([`PoolState`], by `Shared::pool`); it only chooses.

use std::net::SocketAddr;

use crate::address::{Transport, Via};

/// Servers of a pool: their states are bits of one word.
pub const MEMBERS_MAX: usize = 16;

/// The largest weight of one.
pub const WEIGHT_MAX: u32 = 1_000;

/// SOFTWARE (RFC 8489 section 14.14) of a server that asks whether this one takes clients. It is sent in an Allocate request
/// without credentials, which every TURN server answers with 401 if it does.
pub const PROBE_SOFTWARE: &[u8] = b"throughway-probe";

/// A full load.
pub const LOAD_MAX: u16 = 1_000;

/// When clients are sent to the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Redirect {
    /// While this server drains.
    #[default]
    Draining,
    /// Also when it is fuller than so many thousandths: the more, the fuller it is.
    Full {
        /// From which load on.
        above: u16,
    },
    /// Always, as long as another one is up: this server only takes those that no other one can take.
    Always,
}

/// Whether a server takes the clients of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Openness {
    /// All of them.
    Open,
    /// Those that no other server has a place for.
    Spare,
    /// None.
    Closed,
}

/// A server of the pool, by one of its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// For clients over UDP and TCP: a client keeps its transport.
    pub plain: Option<SocketAddr>,
    /// For clients over TLS, which is another port.
    pub tls: Option<SocketAddr>,
    /// The name that its certificate is for, if it is not the one that clients know already; up to 253 bytes.
    pub name: Option<Box<str>>,
    /// Its share of the clients, from 1 to [`WEIGHT_MAX`].
    pub weight: u32,
}

impl Member {
    /// Where clients of a transport are sent.
    #[must_use]
    pub const fn address(&self, transport: Transport) -> Option<SocketAddr> {
        match transport {
            Transport::Udp | Transport::Tcp => self.plain,
            Transport::Tls => self.tls,
        }
    }
}

/// `turn.alternates` and `turn.redirect`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pool {
    /// At most [`MEMBERS_MAX`].
    pub members: Vec<Member>,
    /// When clients are sent there.
    pub redirect: Redirect,
}

/// Who is up and how full this server is, as it was seen last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolState {
    /// A bit for each member and transport that takes clients, and above them the tag of the pool that it is about.
    pub up: u64,
    /// The same for those that only take clients without a place on any other server.
    pub spare: u64,
    /// From 0 to [`LOAD_MAX`].
    pub load: u16,
}

/// Bits of a word before the tag.
const TAG_AT: usize = MEMBERS_MAX * Transport::ALL.len();

impl PoolState {
    /// None is up.
    #[must_use]
    pub fn new(pool: &Pool) -> Self {
        let tag = u64::from(pool.tag()) << TAG_AT;
        Self { up: tag, spare: tag, load: 0 }
    }

    const fn bit(member: usize, transport: Transport) -> u64 {
        if member < MEMBERS_MAX { 1 << (member * Transport::ALL.len() + transport as usize) } else { 0 }
    }

    /// Notes that a member takes clients by this transport.
    pub fn set_up(&mut self, member: usize, transport: Transport) {
        self.up |= Self::bit(member, transport);
    }

    /// Notes that it takes those that no other server has a place for.
    pub fn set_spare(&mut self, member: usize, transport: Transport) {
        self.spare |= Self::bit(member, transport);
    }

    /// Whether it takes clients; never for another pool than the one that was looked at.
    #[must_use]
    pub fn is_up(self, pool: &Pool, member: usize, transport: Transport) -> bool {
        self.up >> TAG_AT == u64::from(pool.tag()) && self.up & Self::bit(member, transport) != 0
    }

    /// The same for those that it takes at last.
    #[must_use]
    pub fn is_spare(self, pool: &Pool, member: usize, transport: Transport) -> bool {
        Self { up: self.spare, ..self }.is_up(pool, member, transport)
    }
}

impl Pool {
    /// Tells pools apart whose members differ: after a reload, what is known is of the old one for a moment.
    #[must_use]
    pub fn tag(&self) -> u16 {
        use std::hash::BuildHasher as _;
        let addresses = self.members.iter().map(|member| (member.plain, member.tls));
        foldhash::fast::FixedState::with_seed(1).hash_one(addresses.collect::<Vec<_>>()) as u16
    }

    /// Whether a newcomer is sent away by this load. `number` is the same whenever it asks again: between the threshold and a
    /// full server the share of those who go grows, and one who comes back by another port may be served.
    #[must_use]
    pub fn sends_away(&self, load: u16, number: u64) -> bool {
        match self.redirect {
            Redirect::Draining => false,
            Redirect::Always => true,
            Redirect::Full { above } => {
                let room = u64::from(LOAD_MAX.saturating_sub(above)).max(1);
                let over = u64::from((load.min(LOAD_MAX) + 1).saturating_sub(above));
                load >= above && (load >= LOAD_MAX || number % room < over)
            }
        }
    }

    /// What other servers are told that ask whether this one takes clients.
    #[must_use]
    pub const fn openness(&self, load: u16) -> Openness {
        match self.redirect {
            // Two that send all clients to each other would serve none.
            Redirect::Always => Openness::Closed,
            Redirect::Draining | Redirect::Full { .. } if load >= LOAD_MAX => Openness::Closed,
            Redirect::Full { above } if load >= above => Openness::Spare,
            Redirect::Draining | Redirect::Full { .. } => Openness::Open,
        }
    }

    /// Where a client is sent: a member of its family that is up for its transport (RFC 8489 section 14.15), by the weights.
    /// `number` decides among them, so that a request that is sent again is sent to the same one. A client without a
    /// place here may go to one that takes such clients only.
    #[must_use]
    pub fn for_client(
        &self,
        via: &Via,
        state: PoolState,
        number: u64,
        has_no_place: bool,
    ) -> Option<(SocketAddr, Option<&str>)> {
        let up = self.choose(via, number, |at, transport| state.is_up(self, at, transport));
        up.or_else(|| self.choose(via, number, |at, transport| has_no_place && state.is_spare(self, at, transport)))
    }

    fn choose(
        &self,
        via: &Via,
        number: u64,
        takes: impl Fn(usize, Transport) -> bool,
    ) -> Option<(SocketAddr, Option<&str>)> {
        let five_tuple = via.five_tuple();
        let (transport, is_ipv4) = (five_tuple.transport, five_tuple.client.address().ip.is_ipv4());
        let is_fit = |at: usize, member: &Member| {
            member.address(transport).filter(|address| address.is_ipv4() == is_ipv4 && takes(at, transport))
        };
        let fit = || self.members.iter().enumerate().filter_map(|(at, member)| Some((member, is_fit(at, member)?)));
        let total: u64 = fit().map(|(member, _)| u64::from(member.weight)).sum();
        let mut left = number.checked_rem(total)?;
        for (member, address) in fit() {
            match left.checked_sub(u64::from(member.weight)) {
                Some(rest) => left = rest,
                // RFC 8489 §14.16: the name is for a certificate.
                None => return Some((address, member.name.as_deref().filter(|_| transport == Transport::Tls))),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddress, FiveTuple, ServerAddress};

    fn via(transport: Transport, client: &str) -> Via {
        let client = ClientAddress::from(client.parse::<SocketAddr>().unwrap());
        let server = ServerAddress::from("192.0.2.7:3478".parse::<SocketAddr>().unwrap());
        Via::Datagram(FiveTuple { client, server, transport })
    }

    fn member(plain: &str, tls: Option<&str>, weight: u32) -> Member {
        let (plain, tls) = (plain.parse().ok(), tls.map(|tls| tls.parse().unwrap()));
        Member { plain, tls, name: Some("turn2.example.org".into()), weight }
    }

    fn pool() -> Pool {
        let members = vec![
            member("198.51.100.1:3478", Some("198.51.100.1:5349"), 1),
            member("198.51.100.2:3478", None, 3),
            member("[2001:db8::3]:3478", None, 1),
        ];
        Pool { members, redirect: Redirect::Always }
    }

    fn up(pool: &Pool, members: &[usize]) -> PoolState {
        let mut state = PoolState::new(pool);
        members.iter().for_each(|at| Transport::ALL.into_iter().for_each(|transport| state.set_up(*at, transport)));
        state
    }

    #[test]
    fn clients_are_shared_by_weight_among_those_that_are_up() {
        let (pool, client) = (pool(), via(Transport::Udp, "203.0.113.9:5"));
        let share = |state: PoolState| {
            let mut counts = [0; 2];
            for number in 0..400 {
                let (address, name) = pool.for_client(&client, state, number, false).unwrap();
                assert_eq!(name, None, "only a certificate needs a name");
                counts[usize::from(address.to_string().ends_with(".2:3478"))] += 1;
            }
            counts
        };
        assert_eq!(share(up(&pool, &[0, 1, 2])), [100, 300]);
        assert_eq!(share(up(&pool, &[0, 2])), [400, 0]);
        assert_eq!(pool.for_client(&client, up(&pool, &[2]), 7, false), None, "another family");
        assert_eq!(pool.for_client(&client, PoolState::new(&pool), 7, true), None);
        let mut state = PoolState::new(&pool);
        state.set_spare(0, Transport::Udp);
        assert_eq!(pool.for_client(&client, state, 7, false), None, "it takes clients without a place elsewhere");
        assert!(pool.for_client(&client, state, 7, true).is_some());
        state.set_up(1, Transport::Udp);
        assert_eq!(pool.for_client(&client, state, 0, true).unwrap().0.to_string(), "198.51.100.2:3478");
    }

    #[test]
    fn a_transport_has_its_own_address_and_its_own_health() {
        let pool = pool();
        let tls = via(Transport::Tls, "203.0.113.9:5");
        let (address, name) = pool.for_client(&tls, up(&pool, &[0, 1, 2]), 7, false).unwrap();
        assert_eq!((address.to_string().as_str(), name), ("198.51.100.1:5349", Some("turn2.example.org")));
        let mut state = PoolState::new(&pool);
        state.set_up(0, Transport::Udp);
        assert!(pool.for_client(&via(Transport::Udp, "203.0.113.9:5"), state, 7, false).is_some());
        assert!(pool.for_client(&via(Transport::Tcp, "203.0.113.9:5"), state, 7, false).is_none());
        assert!(pool.for_client(&tls, state, 7, false).is_none());
        state.set_up(MEMBERS_MAX, Transport::Udp);
        assert!(!state.is_up(&pool, MEMBERS_MAX, Transport::Udp));
    }

    #[test]
    fn what_is_known_of_one_pool_says_nothing_of_another() {
        let (old, mut new) = (pool(), pool());
        new.members.remove(0);
        assert!(up(&old, &[0]).is_up(&old, 0, Transport::Udp));
        assert!(!up(&old, &[0]).is_up(&new, 0, Transport::Udp));
        let last = MEMBERS_MAX - 1;
        let mut state = PoolState::new(&old);
        state.set_up(last, Transport::Tls);
        assert!(state.is_up(&old, last, Transport::Tls), "the tag stands above it");
    }

    #[test]
    fn the_share_that_goes_grows_from_the_threshold_to_a_full_server() {
        let pool = Pool { redirect: Redirect::Full { above: 900 }, ..pool() };
        let share = |load| (0..1000).filter(|number| pool.sends_away(load, *number)).count();
        assert_eq!((share(0), share(899)), (0, 0));
        assert_eq!((share(900), share(949), share(999)), (10, 500, 1000));
        assert_eq!(share(LOAD_MAX), 1000);
        assert_eq!(
            [899, 900, 1000].map(|load| pool.openness(load)),
            [Openness::Open, Openness::Spare, Openness::Closed]
        );
        let at_the_end = Pool { redirect: Redirect::Full { above: LOAD_MAX }, ..pool };
        assert!(!at_the_end.sends_away(999, 0) && at_the_end.sends_away(LOAD_MAX, 5));
        let draining = Pool { redirect: Redirect::Draining, ..at_the_end };
        assert!(!draining.sends_away(LOAD_MAX, 5));
        assert_eq!([999, 1000].map(|load| draining.openness(load)), [Openness::Open, Openness::Closed]);
    }
}
