//! Which peer addresses may be reached.
//!
//! Owns the default table (every special-purpose range whose *Globally Reachable* is not True),
//! the operator's `peers.allow` and `peers.deny`, and the rules for this server's own addresses.
//! Judged when a permission is asked for; the data lanes only look at the class found then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use minicbor::{Decode, Encode};

use crate::address::PeerAddress;

/// The addresses that belong to this server, which peers are judged against.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalAddresses {
    /// Every relayed and every advertised address, loopback excepted: *own* addresses.
    pub own: Vec<IpAddr>,
    /// Every address of every interface of this machine.
    pub interfaces: Vec<IpAddr>,
    /// What else the routing table delivers to this machine: the routes of type `local` and `anycast`.
    pub routes: Vec<IpNet>,
    /// Our listeners, HTTP included; an unspecified address stands for every local one of its family.
    pub listeners: Vec<(IpAddr, u16)>,
}

/// IANA IPv4 Special-Purpose Address Registry (RFC 6890 and successors), multicast, class E.
const DENIED_IPV4: &[&str] = &[
    "0.0.0.0/8",       // this network
    "10.0.0.0/8",      // private use
    "100.64.0.0/10",   // shared address space
    "127.0.0.0/8",     // loopback
    "169.254.0.0/16",  // link-local, cloud metadata
    "172.16.0.0/12",   // private use
    "192.0.0.0/24",    // IETF protocol assignments
    "192.0.2.0/24",    // documentation
    "192.31.196.0/24", // AS112: globally reachable, but only ever a sink
    "192.52.193.0/24", // AMT: globally reachable, but only a tunnel relay
    "192.88.99.0/24",  // deprecated 6to4 relay anycast
    "192.168.0.0/16",  // private use
    "192.175.48.0/24", // AS112 direct delegation
    "198.18.0.0/15",   // benchmarking
    "198.51.100.0/24", // documentation
    "203.0.113.0/24",  // documentation
    "224.0.0.0/4",     // multicast
    "240.0.0.0/4",     // reserved, limited broadcast
];

/// IANA IPv6 Special-Purpose Address Registry, multicast, site-local, and all that is not global unicast.
const DENIED_IPV6: &[&str] = &[
    "::/8",              // unspecified, loopback, IPv4 in IPv6
    "64:ff9b:1::/48",    // local-use NAT64
    "100::/64",          // discard only
    "100:0:0:1::/64",    // dummy prefix
    "2001::/23",         // IETF protocol assignments, Teredo among them
    "2001:db8::/32",     // documentation
    "2002::/16",         // 6to4
    "2620:4f:8000::/48", // AS112 direct delegation
    "3fff::/20",         // documentation
    "5f00::/16",         // segment routing SIDs
    "fc00::/7",          // unique local
    "fe80::/10",         // link-local
    "fec0::/10",         // site-local
    "ff00::/8",          // multicast
];

/// Tunnels and embeddings that reach another address than they show: no entry opens them. [8656-21.4-1, -3]
const NEVER: &[&str] = &["::ffff:0:0/96", "::/96", "2002::/16", "2001::/32", "64:ff9b:1::/48"];

/// RFC 6052's well-known prefix, which lies inside ::/8: judged by its inner address.
const NAT64_WELL_KNOWN: &str = "64:ff9b::/96";

/// Services that a cloud offers to its own machines under well-known addresses, credentials first of all: opened by an
/// entry of their own only, never by a wider one. Some lie in no special-purpose range, so the table above misses them.
const METADATA: &[&str] = &[
    "169.254.169.254/32", // metadata of nearly every cloud: AWS, Azure, Google, OpenStack, Oracle, DigitalOcean, Hetzner
    "fd00:ec2::254/128",  // AWS: metadata over IPv6
    "fd20:ce::254/128",   // Google: metadata over IPv6
    "100.100.100.200/32", // Alibaba: metadata, inside the shared address space
    "192.0.0.192/32",     // Oracle: metadata of the older platform
    "169.254.42.42/32",   // Scaleway: metadata
    "fd00:42::42/128",    // Scaleway: metadata over IPv6
    "169.254.0.23/32",    // Tencent: metadata
    "169.254.170.2/32",   // AWS ECS: credentials of the task
    "169.254.170.23/32",  // AWS EKS: credentials of the pod
    "fd00:ec2::23/128",   // AWS EKS: the same over IPv6
    "169.254.169.123/32", // AWS: time
    "fd00:ec2::123/128",  // AWS: time over IPv6
    "169.254.169.253/32", // AWS: DNS of the private network
    "fd00:ec2::253/128",  // AWS: the same over IPv6
    "168.63.129.16/32",   // Azure: DNS, health, agents and their keys; globally routable by its looks
];

/// What a peer address may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum PeerClass {
    /// Somewhere else: any port.
    #[n(0)]
    Remote,
    /// An own address: only ports that are relayed ports at that moment.
    #[n(1)]
    Own,
    /// An address of this machine that the operator opened: any port but our listeners'.
    #[n(2)]
    Local,
}

/// A mistake in `peers.allow`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    /// An entry of prefix length 0 would open everything.
    #[error(
        "{0} would open every address, our own network and cloud metadata included; name the prefixes that clients must reach"
    )]
    AllowsEverything(IpNet),
    /// The range is always denied, because it reaches another address than it shows.
    #[error(
        "{0} lies in {1}, which is always denied: such an address reaches another one than it shows; allow that other address instead"
    )]
    AlwaysDenied(IpNet, IpNet),
}

/// One entry of the compiled table: from `first` on, until the next entry's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range<A> {
    first: A,
    allowed: bool,
}

/// Sorted ranges of both families: a look-up is a binary search.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Table {
    ipv4: Vec<Range<u32>>,
    ipv6: Vec<Range<u128>>,
}

impl Table {
    /// Among equal prefixes the later one wins; what no prefix covers is allowed.
    fn new(rules: &[(IpNet, bool)]) -> Self {
        Self {
            ipv4: compile(rules.iter().filter_map(|(net, allowed)| match net {
                IpNet::V4(net) => {
                    Some((u32::from(net.network()), u32::from(net.broadcast()), net.prefix_len(), *allowed))
                }
                IpNet::V6(_) => None,
            })),
            ipv6: compile(rules.iter().filter_map(|(net, allowed)| match net {
                IpNet::V6(net) => {
                    Some((u128::from(net.network()), u128::from(net.broadcast()), net.prefix_len(), *allowed))
                }
                IpNet::V4(_) => None,
            })),
        }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => look_up(&self.ipv4, u32::from(ip)),
            IpAddr::V6(ip) => look_up(&self.ipv6, u128::from(ip)),
        }
    }
}

/// The compiled policy: however long the lists are, judging an address is a handful of binary searches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerPolicy {
    table: Table,
    /// Allows what is not this machine's.
    elsewhere: Table,
    /// Entries of one single address, sorted.
    allowed_alone: Vec<IpAddr>,
    denied_alone: Vec<IpAddr>,
    /// Entries of `peers.allow` inside loopback.
    loopback: Vec<IpNet>,
    never: Vec<Ipv6Net>,
    local: LocalAddresses,
}

impl PeerPolicy {
    /// Compiles the default table with the operator's entries; the longest prefix wins, deny wins ties.
    ///
    /// # Errors
    /// [`PolicyError`] for an entry of `allow` that must not be granted.
    pub fn new(allow: &[IpNet], deny: &[IpNet], local: LocalAddresses) -> Result<Self, PolicyError> {
        for net in allow {
            if net.prefix_len() == 0 {
                return Err(PolicyError::AllowsEverything(*net));
            }
            if let Some(never) = parse(NEVER).find(|never| never.contains(net) && !net.addr().is_loopback()) {
                return Err(PolicyError::AlwaysDenied(*net, never));
            }
        }
        let mut rules: Vec<(IpNet, bool)> =
            parse(DENIED_IPV4).chain(parse(DENIED_IPV6)).map(|net| (net, false)).collect();
        rules.push((NAT64_WELL_KNOWN.parse().expect("a prefix"), true));
        rules.extend(allow.iter().map(|net| (net.trunc(), true)));
        let allowed_alone = single_addresses(allow);
        let metadata = parse(METADATA).filter(|net| allowed_alone.binary_search(&net.addr()).is_err());
        rules.extend(metadata.map(|net| (net, false)));
        // Deny after allow: among equal prefixes the later one wins.
        rules.extend(deny.iter().map(|net| (net.trunc(), false)));
        let interfaces = local.interfaces.iter().map(|ip| IpNet::from(*ip));
        let here: Vec<_> = interfaces.chain(local.routes.iter().map(IpNet::trunc)).map(|net| (net, false)).collect();
        Ok(Self {
            table: Table::new(&rules),
            elsewhere: Table::new(&here),
            allowed_alone,
            denied_alone: single_addresses(deny),
            loopback: allow.iter().filter(|net| is_loopback_net(net)).map(IpNet::trunc).collect(),
            never: parse(NEVER).filter_map(|net| if let IpNet::V6(net) = net { Some(net) } else { None }).collect(),
            local,
        })
    }

    /// Judges an IP address, as CreatePermission and ChannelBind ask; `None` is a 403.
    #[must_use]
    pub fn judge(&self, ip: IpAddr) -> Option<PeerClass> {
        if ip.is_unspecified() || ip.is_multicast() {
            return None;
        }
        if ip.is_loopback() {
            let opened = self.loopback.iter().any(|net| net.contains(&ip));
            return (opened && self.allows(ip)).then_some(PeerClass::Local);
        }
        let exact = || self.allowed_alone.binary_search(&ip).is_ok() && self.allows(ip);
        if self.denied_alone.binary_search(&ip).is_ok() {
            return None;
        }
        if self.local.own.contains(&ip) {
            return Some(if exact() { PeerClass::Local } else { PeerClass::Own });
        }
        if !self.elsewhere.allows(ip) {
            return exact().then_some(PeerClass::Local);
        }
        self.allows(ip).then_some(PeerClass::Remote)
    }

    /// Whether an address is one of our listeners, which are never peers.
    #[must_use]
    pub fn is_listener(&self, peer: PeerAddress) -> bool {
        self.local.listeners.iter().any(|(ip, port)| {
            *port == peer.port() && (*ip == peer.ip() || (ip.is_unspecified() && ip.is_ipv4() == peer.ip().is_ipv4()))
        })
    }

    /// The table's word, own and local addresses aside.
    fn allows(&self, ip: IpAddr) -> bool {
        let inner_is_fine = match ip {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => match nat64_inner(ip) {
                // RFC 6052 section 2.1: the well-known prefix reaches the IPv4 address in its low 32 bits.
                Some(inner) => self.judge(IpAddr::V4(inner)) == Some(PeerClass::Remote),
                None => ip.is_loopback() || !self.never.iter().any(|net| net.contains(&ip)),
            },
        };
        inner_is_fine && self.table.allows(ip)
    }
}

/// Entries of one single address, which speak of exactly that address.
fn single_addresses(nets: &[IpNet]) -> Vec<IpAddr> {
    let mut single: Vec<IpAddr> =
        nets.iter().filter(|net| net.prefix_len() == net.max_prefix_len()).map(IpNet::addr).collect();
    single.sort_unstable();
    single
}

/// The built-in table of denied prefixes.
pub(crate) fn denied_by_default() -> impl Iterator<Item = IpNet> {
    parse(DENIED_IPV4).chain(parse(DENIED_IPV6))
}

/// What no entry opens.
pub(crate) fn never() -> impl Iterator<Item = IpNet> {
    parse(NEVER)
}

/// What only an entry of its own opens.
pub(crate) fn metadata() -> impl Iterator<Item = IpNet> {
    parse(METADATA)
}

fn parse(nets: &'static [&'static str]) -> impl Iterator<Item = IpNet> {
    nets.iter().map(|net| net.parse().expect("the tables in this file are prefixes"))
}

fn is_loopback_net(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).contains(net),
        IpNet::V6(net) => *net == Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
    }
}

fn nat64_inner(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(ip);
    (bits >> 32 == 0x0064_ff9b_0000_0000_0000_0000).then_some(Ipv4Addr::from(bits as u32))
}

/// Whether an address is one of Teredo or 6to4: what is sent there leaves by a tunnel, which may bring it back.
#[must_use]
pub(super) const fn is_tunnelled(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => matches!(ip.segments(), [0x2002, ..] | [0x2001, 0, ..]),
    }
}

/// Turns prefixes into sorted ranges, so that a long list costs a look-up no more than a short one.
fn compile<A: Copy + Ord + Bounds>(rules: impl Iterator<Item = (A, A, u8, bool)>) -> Vec<Range<A>> {
    // Prefixes nest or are disjoint, so painting them from the widest to the narrowest is right.
    let mut rules: Vec<_> = rules.collect();
    rules.sort_by_key(|(_, _, prefix_len, _)| *prefix_len);
    let mut marks: Vec<A> = vec![A::MIN];
    for (first, last, ..) in &rules {
        marks.push(*first);
        marks.extend(last.next());
    }
    marks.sort_unstable();
    marks.dedup();
    let mut ranges: Vec<Range<A>> = marks.into_iter().map(|first| Range { first, allowed: true }).collect();
    for (first, last, _, allowed) in rules {
        let from = ranges.partition_point(|range| range.first < first);
        let to = ranges.partition_point(|range| range.first <= last);
        ranges[from..to].iter_mut().for_each(|range| range.allowed = allowed);
    }
    ranges.dedup_by(|next, kept| next.allowed == kept.allowed);
    ranges
}

fn look_up<A: Copy + Ord>(ranges: &[Range<A>], ip: A) -> bool {
    let after = ranges.partition_point(|range| range.first <= ip);
    after.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|range| range.allowed)
}

trait Bounds: Sized {
    const MIN: Self;
    fn next(&self) -> Option<Self>;
}

impl Bounds for u32 {
    const MIN: Self = 0;
    fn next(&self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Bounds for u128 {
    const MIN: Self = 0;
    fn next(&self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// Whether the internet has this address: it is in no special-purpose range.
#[must_use]
pub fn is_global(ip: IpAddr) -> bool {
    PeerPolicy::new(&[], &[], LocalAddresses::default()).is_ok_and(|policy| policy.judge(ip).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str], local: LocalAddresses) -> PeerPolicy {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        PeerPolicy::new(&nets(allow), &nets(deny), local).unwrap()
    }

    fn judge(policy: &PeerPolicy, ip: &str) -> Option<PeerClass> {
        policy.judge(ip.parse().unwrap())
    }

    #[test]
    fn default_policy_agrees_with_the_table_of_vectors() {
        let policy = policy(&[], &[], LocalAddresses::default());
        let vectors = include_str!("../../tests/vectors/peer_policy.tsv");
        let mut rows = 0;
        for line in vectors.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split('\t');
            let (ip, verdict) = (fields.next().unwrap(), fields.next().unwrap());
            let expected = match verdict {
                "G" => Some(PeerClass::Remote),
                "D" => None,
                other => panic!("{other}"),
            };
            assert_eq!(judge(&policy, ip), expected, "{line}");
            rows += 1;
        }
        assert!(rows >= 55, "{rows} vectors read");
    }

    #[test]
    fn longest_prefix_wins_and_deny_wins_ties() {
        let policy = policy(
            &["10.0.0.0/8", "10.1.2.3/32", "8.8.8.0/24"],
            &["10.1.0.0/16", "8.8.8.0/24"],
            LocalAddresses::default(),
        );
        assert_eq!(judge(&policy, "10.0.0.5"), Some(PeerClass::Remote));
        assert_eq!(judge(&policy, "10.1.0.5"), None);
        assert_eq!(judge(&policy, "10.1.2.3"), Some(PeerClass::Remote));
        assert_eq!(judge(&policy, "8.8.8.8"), None);
        assert_eq!(judge(&policy, "8.8.4.4"), Some(PeerClass::Remote));
    }

    // F-A14: the list had two of them.
    #[test]
    fn metadata_services_need_an_entry_of_their_own() {
        let around = ["169.254.0.0/16", "fd00::/8", "100.64.0.0/10", "192.0.0.0/24", "168.63.0.0/16"];
        let wide = policy(&around, &[], LocalAddresses::default());
        for net in METADATA {
            let (ip, _) = net.split_once('/').unwrap();
            assert_eq!(judge(&wide, ip), None, "{ip} by a wider entry");
            let exact = policy(&[*net], &[], LocalAddresses::default());
            assert_eq!(judge(&exact, ip), Some(PeerClass::Remote), "{ip} by its own");
            let both = policy(&[*net], &[*net], LocalAddresses::default());
            assert_eq!(judge(&both, ip), None, "{ip} denied too");
        }
        for neighbour in ["169.254.1.1", "100.100.100.201", "192.0.0.193", "168.63.129.17", "fd20:ce::255"] {
            assert_eq!(judge(&wide, neighbour), Some(PeerClass::Remote), "{neighbour}");
        }
    }

    // F-A14, F-E1: `ip route add local` delivers whole prefixes to this machine, and no interface has their addresses.
    #[test]
    fn what_the_routes_deliver_here_is_local() {
        let routes = vec!["45.0.0.0/24".parse().unwrap(), "2a01::/64".parse().unwrap()];
        let local = LocalAddresses { routes, ..LocalAddresses::default() };
        let default = policy(&[], &[], local.clone());
        for (ip, class) in [
            ("45.0.0.7", None),
            ("2a01::7", None),
            ("64:ff9b::2d00:7", None),
            ("45.0.1.7", Some(PeerClass::Remote)),
            ("2a01:0:0:1::7", Some(PeerClass::Remote)),
        ] {
            assert_eq!(judge(&default, ip), class, "{ip}");
        }
        let opened = policy(&["45.0.0.0/16", "45.0.0.7/32"], &[], local);
        assert_eq!(judge(&opened, "45.0.0.7"), Some(PeerClass::Local));
        assert_eq!(judge(&opened, "45.0.0.8"), None, "a wider entry opens nothing of this machine");
    }

    // [8656-21.4-1, -3]
    #[test]
    fn embeddings_stay_closed_and_say_so() {
        let new = |net: &str| PeerPolicy::new(&[net.parse().unwrap()], &[], LocalAddresses::default());
        assert!(matches!(new("0.0.0.0/0"), Err(PolicyError::AllowsEverything(_))));
        assert!(matches!(new("::/0"), Err(PolicyError::AllowsEverything(_))));
        assert!(matches!(new("::ffff:10.0.0.0/104"), Err(PolicyError::AlwaysDenied(..))));
        assert!(matches!(new("2002:a00::/24"), Err(PolicyError::AlwaysDenied(..))));
        // A wide entry is legal, but does not open what lies inside it.
        let wide = policy(&["2000::/3"], &[], LocalAddresses::default());
        assert_eq!(judge(&wide, "2002:808:808::1"), None);
        assert_eq!(judge(&wide, "2001:0:4136:e378::1"), None);
        assert_eq!(judge(&wide, "2a00::1"), Some(PeerClass::Remote));
    }

    #[test]
    fn loopback_opens_with_an_entry_inside_it_and_listeners_never_do() {
        let local = LocalAddresses { listeners: vec![("0.0.0.0".parse().unwrap(), 3478)], ..LocalAddresses::default() };
        let open = policy(&["127.0.0.0/8", "::1/128"], &[], local.clone());
        assert_eq!(judge(&open, "127.0.0.1"), Some(PeerClass::Local));
        assert_eq!(judge(&open, "::1"), Some(PeerClass::Local));
        assert!(open.is_listener(PeerAddress::new("127.0.0.1".parse().unwrap(), 3478)));
        assert!(!open.is_listener(PeerAddress::new("127.0.0.1".parse().unwrap(), 3479)));
        let wide = policy(&["64.0.0.0/2"], &[], local);
        assert_eq!(judge(&wide, "127.0.0.1"), None);
    }

    #[test]
    fn own_addresses_are_granted_for_relayed_ports_and_other_local_ones_denied() {
        let local = LocalAddresses {
            own: vec!["10.0.0.5".parse().unwrap(), "9.9.9.9".parse().unwrap()],
            interfaces: vec!["10.0.0.5".parse().unwrap(), "8.8.8.1".parse().unwrap()],
            routes: vec![],
            listeners: vec![],
        };
        let default = policy(&[], &[], local.clone());
        assert_eq!(judge(&default, "10.0.0.5"), Some(PeerClass::Own));
        assert_eq!(judge(&default, "9.9.9.9"), Some(PeerClass::Own));
        assert_eq!(judge(&default, "8.8.8.1"), None);
        let opened = policy(&["10.0.0.0/8", "8.8.8.1/32"], &[], local);
        assert_eq!(judge(&opened, "10.0.0.5"), Some(PeerClass::Own));
        assert_eq!(judge(&opened, "8.8.8.1"), Some(PeerClass::Local));
        assert_eq!(judge(&opened, "10.0.0.6"), Some(PeerClass::Remote));
    }
}
