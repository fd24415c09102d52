//! Sets of addresses as sorted ranges, and the prefixes that make one up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Addresses of one family, from the first to the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Range {
    /// The family.
    pub is_ipv6: bool,
    /// The first address as a number.
    pub first: u128,
    /// The last one.
    pub last: u128,
}

impl Range {
    /// From one address to another of the same family; `None` if there is nothing between them.
    #[must_use]
    pub fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        let (from, to) = (number(first), number(last));
        let is_ipv6 = first.is_ipv6();
        (is_ipv6 == last.is_ipv6() && from <= to).then_some(Self { is_ipv6, first: from, last: to })
    }

    /// The addresses of a prefix.
    #[must_use]
    pub fn of(net: &IpNet) -> Self {
        Self { is_ipv6: net.addr().is_ipv6(), first: number(net.network()), last: number(net.broadcast()) }
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv6() == self.is_ipv6 && (self.first..=self.last).contains(&number(ip))
    }

    /// Whether all of another range is in it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.is_ipv6 == other.is_ipv6 && self.first <= other.first && other.last <= self.last
    }

    /// The address of a number of this family.
    #[must_use]
    pub fn address(&self, number: u128) -> IpAddr {
        address(self.is_ipv6, number)
    }

    const fn bits(&self) -> u32 {
        if self.is_ipv6 { 128 } else { 32 }
    }

    const fn top(&self) -> u128 {
        if self.is_ipv6 { u128::MAX } else { u32::MAX as u128 }
    }

    /// Its first and last address and those beside it.
    #[must_use]
    pub fn edges(&self) -> Vec<IpAddr> {
        let mut edges = vec![self.first, self.last];
        edges.extend(self.first.checked_sub(1));
        edges.extend(self.last.checked_add(1).filter(|next| *next <= self.top()));
        edges.into_iter().map(|number| self.address(number)).collect()
    }

    /// The fewest prefixes that make it up.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let mut nets = Vec::new();
        let mut from = self.first;
        loop {
            // The widest prefix that begins here and does not go too far.
            let most = from.trailing_zeros().min(self.bits());
            let size = (0..=most).rev().find(|bits| last_of(from, *bits) <= self.last).unwrap_or(0);
            nets.push(self.net(from, self.bits() - size));
            match last_of(from, size) {
                last if last >= self.last => return nets,
                last => from = last + 1,
            }
        }
    }

    fn net(&self, first: u128, length: u32) -> IpNet {
        // A length has at most 128 bits.
        let length = length as u8;
        match self.address(first) {
            IpAddr::V4(ip) => IpNet::V4(Ipv4Net::new_assert(ip, length)),
            IpAddr::V6(ip) => IpNet::V6(Ipv6Net::new_assert(ip, length)),
        }
    }
}

/// The last of so many bits' worth of numbers.
const fn last_of(first: u128, bits: u32) -> u128 {
    if bits >= 128 { u128::MAX } else { first | ((1 << bits) - 1) }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(is_ipv6: bool, number: u128) -> IpAddr {
    // An IPv4 range holds numbers of 32 bits.
    if is_ipv6 { IpAddr::V6(Ipv6Addr::from(number)) } else { IpAddr::V4(Ipv4Addr::from(number as u32)) }
}

/// All of these, sorted, those that touch joined.
#[must_use]
pub fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.is_ipv6 == range.is_ipv6 && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// What is in both.
#[must_use]
pub fn intersect(a: &[Range], b: &[Range]) -> Vec<Range> {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
    let common = pairs.filter(|(a, b)| a.is_ipv6 == b.is_ipv6).map(|(a, b)| Range {
        is_ipv6: a.is_ipv6,
        first: a.first.max(b.first),
        last: a.last.min(b.last),
    });
    union(common.filter(|range| range.first <= range.last).collect())
}

/// What is in the first and not in the second.
#[must_use]
pub fn subtract(from: &[Range], these: &[Range]) -> Vec<Range> {
    let these = union(these.to_vec());
    let mut left = Vec::new();
    for range in union(from.to_vec()) {
        let mut rest = Some(range);
        for hole in these.iter().filter(|hole| hole.is_ipv6 == range.is_ipv6) {
            let Some(now) = rest.filter(|now| hole.first <= now.last && now.first <= hole.last) else { continue };
            if now.first < hole.first {
                left.push(Range { last: hole.first - 1, ..now });
            }
            rest = (hole.last < now.last).then(|| Range { first: hole.last + 1, ..now });
        }
        left.extend(rest);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Range::between(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    fn shown(ranges: &[Range]) -> Vec<String> {
        ranges.iter().map(|range| format!("{}-{}", range.address(range.first), range.address(range.last))).collect()
    }

    #[test]
    fn a_range_is_the_fewest_prefixes() {
        for (text, nets) in [
            ("10.0.0.0-10.255.255.255", &["10.0.0.0/8"][..]),
            ("0.0.0.0-255.255.255.255", &["0.0.0.0/0"]),
            ("192.0.2.1-192.0.2.6", &["192.0.2.1/32", "192.0.2.2/31", "192.0.2.4/31", "192.0.2.6/32"]),
            ("192.0.2.7", &["192.0.2.7/32"]),
            ("255.255.255.254-255.255.255.255", &["255.255.255.254/31"]),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", &["::/0"]),
            ("fc00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", &["fc00::/7"]),
            ("2001:db8::1-2001:db8::2", &["2001:db8::1/128", "2001:db8::2/128"]),
        ] {
            let found: Vec<String> = range(text).prefixes().iter().map(ToString::to_string).collect();
            assert_eq!(found, nets, "{text}");
        }
    }

    #[test]
    fn sets_are_joined_cut_and_compared() {
        let a = [range("10.0.0.0-10.0.0.9"), range("10.0.0.20-10.0.0.29"), range("::1-::9")];
        let b = [range("10.0.0.5-10.0.0.24"), range("::3")];
        assert_eq!(shown(&union([a.as_slice(), &b].concat())), ["10.0.0.0-10.0.0.29", "::1-::9"]);
        assert_eq!(shown(&intersect(&a, &b)), ["10.0.0.5-10.0.0.9", "10.0.0.20-10.0.0.24", "::3-::3"]);
        assert_eq!(shown(&subtract(&a, &b)), ["10.0.0.0-10.0.0.4", "10.0.0.25-10.0.0.29", "::1-::2", "::4-::9"]);
        assert!(subtract(&[range("0.0.0.0-255.255.255.255")], &[range("0.0.0.0-255.255.255.255")]).is_empty());
    }

    #[test]
    fn edges_end_where_the_family_ends() {
        let edges: Vec<String> = range("0.0.0.0-255.255.255.255").edges().iter().map(ToString::to_string).collect();
        assert_eq!(edges, ["0.0.0.0", "255.255.255.255"]);
        assert_eq!(range("::2").edges().len(), 4);
    }
}
