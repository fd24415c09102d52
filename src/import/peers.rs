//! Which peers may be reached: lists of ranges, of which the allowed ones always win, become prefixes, of which the
//! longest wins.
//!
//! What both mean is compared address by address, at each edge of each range. A difference that is not on purpose is
//! never written: the lists are then spelled out so that no two of their prefixes overlap.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::import::draft::{Draft, quote_all};
use crate::import::lines::Setting;
use crate::import::ranges::{Range, intersect, subtract, union};
use crate::import::verdict::{Outcome, Place};
use crate::protocol::peer_policy::{self, LocalAddresses, PeerPolicy};

/// A range that covers so many built-in entries is refused: it opens more than was meant.
const OPENED_MAX: usize = 3;

/// Ranges that are compared with all others, which there must be where some are allowed and some denied.
const RULES_MAX: usize = 4000;

/// Prefixes that are written without being compared, where all of them deny.
const DENIED_MAX: usize = 100_000;

/// Entries of a list that tell what is missing; one is enough to make the file invalid.
const UNREAD_TOLD_MAX: usize = 20;

/// One entry of a list.
pub struct Rule {
    /// Where it stood.
    pub setting: Setting,
    /// What it covers.
    pub range: Range,
}

/// What another server lets its clients reach.
#[derive(Default)]
pub struct Peers {
    /// These always win.
    pub allowed: Vec<Rule>,
    /// These come second.
    pub denied: Vec<Rule>,
    /// What denies something that is not understood: the new file is wrong until a person has written it.
    pub unread: Vec<Setting>,
    /// Settings that open parts of loopback.
    pub loopback: Vec<(Setting, Vec<IpNet>)>,
    /// Whether it denies multicast anyway.
    pub denies_multicast: bool,
    /// What it denies without being told.
    pub built_in: Vec<Range>,
}

/// The built-in table and its parts, as ranges.
struct BuiltIn {
    /// Each entry on its own.
    entries: Vec<Range>,
    /// All that is denied unless it is listed.
    denied: Vec<Range>,
    /// What no entry opens, loopback included.
    never: Vec<Range>,
    /// What only an entry of its own opens.
    metadata: Vec<Range>,
    loopback: Vec<Range>,
    multicast: Vec<Range>,
    /// Allowed by an entry of its own, so a wider one that denies does not deny it.
    nat64: Range,
}

impl BuiltIn {
    fn new() -> Self {
        let ranges = |nets: &mut dyn Iterator<Item = IpNet>| nets.map(|net| Range::of(&net)).collect::<Vec<_>>();
        let parse = |nets: &[&str]| -> Vec<Range> {
            nets.iter().map(|net| Range::of(&net.parse().expect("these are prefixes"))).collect()
        };
        let entries = ranges(&mut peer_policy::denied_by_default());
        let metadata = ranges(&mut peer_policy::metadata());
        let loopback = parse(&["127.0.0.0/8", "::1/128"]);
        let multicast = parse(&["224.0.0.0/4", "240.0.0.0/4", "ff00::/8"]);
        let mut never = ranges(&mut peer_policy::never());
        never.extend(parse(&["0.0.0.0/8"]));
        never.extend(loopback.iter().chain(&multicast));
        let nat64 = Range::of(&"64:ff9b::/96".parse().expect("a prefix"));
        let denied = subtract(&[entries.as_slice(), &metadata].concat(), &[nat64]);
        Self { entries, denied, never: union(never), metadata, loopback, multicast, nat64 }
    }
}

impl Peers {
    /// Adds an entry of coturn: an address, or two with a dash between them. Says what is wrong with it.
    pub fn read(&mut self, setting: Setting, is_allowed: bool, draft: &mut Draft) {
        match rule_of(setting, is_allowed, draft) {
            Ok(Some(rule)) if is_allowed => self.allowed.push(rule),
            Ok(Some(rule)) => self.denied.push(rule),
            // What is not allowed can't harm.
            Err(setting) if !is_allowed => self.unread.push(setting),
            Ok(None) | Err(_) => {}
        }
    }
}

/// `None` had no effect, and an error could not be read; both have their verdict.
fn rule_of(setting: Setting, is_allowed: bool, draft: &mut Draft) -> Result<Option<Rule>, Setting> {
    let text = setting.value.clone().unwrap_or_default();
    if text.contains('/') {
        return prefix_rule(setting, &text, is_allowed, draft);
    }
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let (Ok(first), Ok(last)) = (first.trim().parse::<IpAddr>(), last.trim().parse::<IpAddr>()) else {
        draft.say(
            &setting,
            Outcome::NeedsYou,
            "is neither an address nor two of them with a dash between; a name must be written as its address",
        );
        return Err(setting);
    };
    if is_any(last) || (is_any(first) && first.is_ipv6()) {
        let message = "in coturn an unspecified address here stands for every address of both families; that is hardly meant, so \
            list the prefix in peers.allow or peers.deny";
        draft.say(&setting, Outcome::NeedsYou, message);
        return Err(setting);
    }
    let Some(range) = Range::between(first, last) else {
        draft.say(&setting, Outcome::Dropped, "there is no address in this range, so it had no effect");
        return Ok(None);
    };
    Ok(Some(Rule { setting, range }))
}

const fn is_any(ip: IpAddr) -> bool {
    ip.is_unspecified()
}

/// coturn reads no prefixes: such a line had no effect. One that denies is carried all the same.
fn prefix_rule(setting: Setting, text: &str, is_allowed: bool, draft: &mut Draft) -> Result<Option<Rule>, Setting> {
    match text.parse::<IpNet>() {
        Ok(net) if !is_allowed => {
            let note = "coturn reads no prefixes: it denied nothing there, and does here";
            Ok(Some(Rule { range: Range::of(&net), setting: Setting { note, ..setting } }))
        }
        Ok(net) => {
            let message = format!(
                "coturn reads no prefixes, so it opened nothing; add {net} to peers.allow if clients must reach it"
            );
            draft.say(&setting, Outcome::NeedsYou, message);
            Ok(None)
        }
        Err(_) => {
            draft.say(&setting, Outcome::NeedsYou, "is neither an address nor two of them with a dash between");
            Err(setting)
        }
    }
}

/// Carries the lists over. `own` are addresses of this server that relay anyway.
pub fn carry(mut peers: Peers, own: &[IpAddr], source: &str, draft: &mut Draft) {
    let table = BuiltIn::new();
    let loopback = open_loopback(&peers, draft);
    refuse_wide(&mut peers, &table, draft);
    let allowed = union(peers.allowed.iter().map(|rule| rule.range).collect());
    let denied = union(peers.denied.iter().map(|rule| rule.range).collect());
    let opened = if allowed.len() > RULES_MAX { Vec::new() } else { opened(&peers.allowed, own, &table) };
    let found = if allowed.is_empty() {
        denied_alone(&denied, &table)
    } else if peers.allowed.len() + denied.len() > RULES_MAX {
        None
    } else {
        lists(&opened, &allowed, &denied, &table)
    };
    let (allow, deny) = match found {
        Some(lists) => {
            judge_allowed(&peers.allowed, own, &opened, &denied, &table, draft);
            judge_denied(&peers.denied, &table, source, draft);
            lists
        }
        None => {
            cannot_carry(&mut peers, source, draft);
            (Vec::new(), Vec::new())
        }
    };
    let places = |rules: &[Rule]| rules.iter().map(|rule| rule.setting.place.clone()).collect::<Vec<_>>();
    let mut allow: Vec<String> = allow.iter().map(shown).collect();
    let mut from = places(&peers.allowed);
    allow.extend(loopback.iter().map(shown));
    from.extend(peers.loopback.iter().map(|(setting, _)| setting.place.clone()));
    if !allow.is_empty() {
        draft.key("peers.allow", quote_all(&allow), &from);
    }
    write_denied(&peers, &deny, &places(&peers.denied), draft);
    let opened: Vec<Range> = loopback.iter().map(Range::of).collect();
    let shut = [denied.as_slice(), &allowed, &opened].concat();
    tell_of_closed(&peers, shut, &table, source, draft);
}

/// The lists where nothing is allowed: what is denied anyway is left out, and nothing must be compared.
fn denied_alone(denied: &[Range], table: &BuiltIn) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    if denied.len() <= RULES_MAX {
        return lists(&[], &[], denied, table);
    }
    let kept = denied.iter().filter(|range| !subtract(&[**range], &table.denied).is_empty());
    // An entry of the built-in table allows these, so a wider prefix would not deny them.
    let nat64 = intersect(denied, &[table.nat64]);
    let mut nets: Vec<IpNet> = kept.chain(&nat64).flat_map(Range::prefixes).collect();
    nets.sort_unstable();
    nets.dedup();
    (nets.len() <= DENIED_MAX).then_some((Vec::new(), nets))
}

/// Says that the lists are not carried over, and makes the new file wrong until a person has written them.
fn cannot_carry(peers: &mut Peers, source: &str, draft: &mut Draft) {
    let place = Place::File(source.into());
    let lines = peers.allowed.len() + peers.denied.len();
    let message = format!("the {lines} lines of peers can't be carried over; write peers.allow and peers.deny");
    draft.say_of(place.clone(), "peers", Outcome::NeedsYou, message);
    peers.unread.push(Setting { place, name: "peers".to_owned(), value: Some(format!("{lines} lines")), note: "" });
}

/// `peers.deny`. What could not be read gets an entry that is none: without it peers could be reached that were denied.
fn write_denied(peers: &Peers, deny: &[IpNet], from: &[Place], draft: &mut Draft) {
    let mut deny: Vec<String> = deny.iter().map(shown).collect();
    let mut from = from.to_vec();
    for setting in peers.unread.iter().take(UNREAD_TOLD_MAX) {
        let value = setting.value.as_deref().unwrap_or_default();
        // Commas and brackets would end the line of an item.
        let value: String = value.chars().filter(|c| !c.is_control() && !"[],".contains(*c)).take(60).collect();
        let question = format!(
            "{} {value} denies peers that are not understood: write their prefixes into deny in place of FILL IN",
            setting.name
        );
        draft.question("peers", &setting.place, &question, "");
        deny.push(format!("FILL IN {value}").trim_end().to_owned());
        from.push(setting.place.clone());
    }
    deny.dedup();
    if !deny.is_empty() {
        draft.key("peers.deny", quote_all(&deny), &from);
    }
}

/// A prefix as an operator writes it.
fn shown(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// What is opened of loopback, with its verdicts.
fn open_loopback(peers: &Peers, draft: &mut Draft) -> Vec<IpNet> {
    let denied: Vec<Range> = peers.denied.iter().map(|rule| rule.range).collect();
    let mut opened: Vec<IpNet> = Vec::new();
    for (setting, nets) in &peers.loopback {
        let nets = nets.iter().filter(|net| !subtract(&[Range::of(net)], &denied).is_empty());
        let nets: Vec<IpNet> = nets.filter(|net| !opened.contains(net)).copied().collect();
        if nets.is_empty() {
            draft.say(setting, Outcome::Dropped, "other lines open it already, or deny it again");
            continue;
        }
        let message = format!(
            "peers.allow = {}: clients reach every service of this machine that listens there; remove it unless your media \
             server does",
            quote_all(&nets.iter().map(shown).collect::<Vec<_>>())
        );
        draft.say_unsafe(setting, Outcome::Carried, message);
        opened.extend(nets);
    }
    opened
}

/// Takes out what would open everything.
fn refuse_wide(peers: &mut Peers, table: &BuiltIn, draft: &mut Draft) {
    peers.allowed.retain(|rule| {
        let covered = table.entries.iter().filter(|entry| rule.range.covers(entry)).count();
        if covered < OPENED_MAX {
            return true;
        }
        let message = "opens every address, your own network and cloud metadata included, so it is not carried over; list in \
            peers.allow the prefixes that clients must reach";
        draft.say_unsafe(&rule.setting, Outcome::NeedsYou, message);
        draft.question("peers", &rule.setting.place, "which peers in private networks must clients reach?", "allow = [\"10.20.0.0/16\"]");
        false
    });
}

/// What must be opened although it is denied by default, entry by entry: a prefix wins over an equal entry of the table,
/// and loses against a longer one.
fn opened(rules: &[Rule], own: &[IpAddr], table: &BuiltIn) -> Vec<Range> {
    let is_own = |range: &Range| range.first == range.last && own.contains(&range.address(range.first));
    let wanted: Vec<Range> = rules.iter().map(|rule| rule.range).filter(|range| !is_own(range)).collect();
    let wanted = subtract(&wanted, &table.never);
    let mut opened: Vec<Range> = table.entries.iter().flat_map(|entry| intersect(&wanted, &[*entry])).collect();
    // Metadata is opened by a line of its own only, as the policy has it.
    opened.extend(rules.iter().map(|rule| rule.range).filter(|range| table.metadata.contains(range)));
    opened.sort_unstable();
    opened.dedup();
    opened
}

/// The lists, short if that means the same, else spelled out; `None` if neither does.
fn lists(opened: &[Range], allowed: &[Range], denied: &[Range], table: &BuiltIn) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    let prefixes = |ranges: &[Range]| {
        let mut nets: Vec<IpNet> = ranges.iter().flat_map(Range::prefixes).collect();
        nets.sort_unstable();
        nets.dedup();
        nets
    };
    // What the table denies anyway is left out.
    let kept: Vec<Range> =
        denied.iter().copied().filter(|range| !subtract(&[*range], &table.denied).is_empty()).collect();
    let exceptions = subtract(&intersect(allowed, &kept), &[table.denied.as_slice(), &table.never].concat());
    let allow = prefixes(&[opened, &exceptions].concat());
    let nat64 = intersect(&subtract(denied, allowed), &[table.nat64]);
    let deny = |ranges: &[Range]| prefixes(&[ranges, &nat64].concat());
    let short = (allow.clone(), deny(&kept));
    let rounded = (allow, deny(&round(&kept, table)));
    let spelled = (prefixes(opened), deny(&subtract(&subtract(denied, allowed), &table.denied)));
    let same = |(allow, deny): &(Vec<IpNet>, Vec<IpNet>)| mean_the_same(allow, deny, allowed, denied, opened, table);
    let candidates = [short, rounded, spelled].into_iter().filter(same);
    candidates.min_by_key(|(allow, deny)| allow.len() + deny.len())
}

/// The same ranges with what is denied anyway beside them: often they then make few prefixes.
fn round(kept: &[Range], table: &BuiltIn) -> Vec<Range> {
    let beside = subtract(&table.denied, &table.loopback);
    let mut rounded = union([kept, &beside].concat());
    rounded.retain(|range| !intersect(&[*range], kept).is_empty());
    rounded
}

/// Compares at every edge of every range, but for what is different on purpose.
fn mean_the_same(
    allow: &[IpNet],
    deny: &[IpNet],
    allowed: &[Range],
    denied: &[Range],
    opened: &[Range],
    table: &BuiltIn,
) -> bool {
    let policy = |allow: &[IpNet], deny: &[IpNet]| PeerPolicy::new(allow, deny, LocalAddresses::default());
    let (Ok(policy), Ok(default)) = (policy(allow, deny), policy(&[], &[])) else { return false };
    let nets: Vec<Range> = allow.iter().chain(deny).map(Range::of).collect();
    let nat64 = [table.nat64];
    let all = [allowed, denied, opened, &table.entries, &table.metadata, &table.never, &nat64, &nets];
    all.into_iter().flatten().flat_map(Range::edges).all(|ip| {
        let is_in = |ranges: &[Range]| ranges.iter().any(|range| range.contains(ip));
        let is_metadata = table.metadata.iter().any(|range| range.contains(ip) && !opened.contains(range));
        let wanted = match (is_in(allowed), is_in(denied)) {
            (true, _) if is_metadata => false,
            // What stays closed on purpose, or is the server's own.
            (true, _) if is_in(&table.denied) || is_in(&table.never) => is_in(opened),
            (true, _) => true,
            (false, true) => false,
            (false, false) => !is_in(&table.denied) && !is_in(&table.never),
        };
        let is_nat64 = table.nat64.contains(ip);
        // Such an address is judged by the IPv4 address in it too.
        policy.judge(ip).is_some() == wanted || (is_nat64 && default.judge(ip).is_none())
    })
}

fn judge_allowed(
    rules: &[Rule],
    own: &[IpAddr],
    opened: &[Range],
    denied: &[Range],
    table: &BuiltIn,
    draft: &mut Draft,
) {
    for Rule { setting, range } in rules {
        let one = [*range];
        let is_single = range.first == range.last;
        let holds = |ranges: &[Range]| !intersect(&one, ranges).is_empty();
        if is_single && own.contains(&range.address(range.first)) {
            let message =
                "is an address of this server: its relayed ports can always be reached, other ports of it never";
            draft.say(setting, Outcome::Implied, message);
        } else if is_single && holds(&table.metadata) {
            let message = "peers.allow: this address hands out the secrets of a cloud's machine";
            draft.say_unsafe(setting, Outcome::Carried, message);
        } else if subtract(&one, &table.loopback).is_empty() {
            draft.say(setting, Outcome::Dropped, "without allow-loopback-peers it had no effect");
        } else if subtract(&one, &table.never).is_empty() {
            draft.say(setting, Outcome::Dropped, "these addresses are never peers");
        } else if holds(opened) {
            let but = if holds(&table.metadata) { ", but for the addresses of cloud metadata in it" } else { "" };
            draft.say(setting, Outcome::Carried, format!("peers.allow{but}"));
        } else if holds(denied) {
            draft.say(setting, Outcome::Carried, "peers.allow, as an exception of what is denied");
        } else {
            draft.say(setting, Outcome::Implied, "these peers can be reached by default");
        }
    }
}

fn judge_denied(rules: &[Rule], table: &BuiltIn, source: &str, draft: &mut Draft) {
    let mut implied = 0;
    for Rule { setting, range } in rules {
        let left = subtract(&[*range], &[table.denied.as_slice(), &table.never].concat());
        if left.is_empty() {
            implied += 1;
            draft.say(setting, Outcome::Implied, "denied by default");
        } else {
            draft.say(setting, Outcome::Carried, "peers.deny");
        }
    }
    if rules.len() > 1 {
        let message = format!(
            "{implied} of the {} lines that deny peers are not needed: those peers are denied by default",
            rules.len()
        );
        draft.say_of(Place::File(source.into()), "peers.deny", Outcome::Implied, message);
    }
}

/// Says which ranges clients could reach and can't any more: those that the lists leave open and the table does not.
fn tell_of_closed(peers: &Peers, mut shut: Vec<Range>, table: &BuiltIn, source: &str, draft: &mut Draft) {
    let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()].map(|ip| Range::between(ip, ip));
    shut.extend(any.into_iter().flatten());
    shut.push(Range::of(&"0.0.0.0/8".parse().expect("a prefix")));
    if peers.loopback.is_empty() {
        shut.extend(&table.loopback);
    }
    shut.extend(&peers.built_in);
    if peers.denies_multicast {
        shut.extend(&table.multicast);
    }
    let mut closed: Vec<&Range> =
        table.entries.iter().filter(|entry| !subtract(&[**entry], &shut).is_empty()).collect();
    if closed.is_empty() {
        return;
    }
    // Those in which a media server may be.
    let first = ["10.0.0.0", "172.16.0.0", "192.168.0.0", "100.64.0.0", "fc00::", "169.254.0.0"];
    let place = |range: &Range| {
        let start = range.address(range.first).to_string();
        first.iter().position(|known| *known == start).unwrap_or(first.len())
    };
    closed.sort_by_key(|range| place(range));
    let private = closed.iter().filter(|range| place(range) < first.len()).count();
    let name = |range: &&Range| range.prefixes().first().map_or_else(String::new, ToString::to_string);
    let names: Vec<String> = closed.iter().take(private.max(1)).map(name).collect();
    let more = closed.len() - names.len();
    let more = if more > 0 { format!(" and {more} more special ranges") } else { String::new() };
    let remedy = match private {
        0 => "",
        _ => {
            ". If clients must reach one of them, such as a media server with a private address, add it to peers.allow"
        }
    };
    let message = format!("clients could reach peers in {}{more}; here they are denied{remedy}", names.join(", "));
    draft.say_of(Place::File(source.into()), "peers", Outcome::Changed, message);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(allow: &[&str], deny: &[&str]) -> (Draft, String) {
        let mut draft = Draft::default();
        let setting = |name: &str, value: &&str| Setting {
            place: Place::Line("t.conf".into(), 1),
            name: name.to_owned(),
            value: Some((*value).to_owned()),
            note: "",
        };
        let mut peers = Peers { denies_multicast: true, ..Peers::default() };
        allow.iter().for_each(|value| peers.read(setting("allowed-peer-ip", value), true, &mut draft));
        deny.iter().for_each(|value| peers.read(setting("denied-peer-ip", value), false, &mut draft));
        carry(peers, &["10.0.0.5".parse().unwrap()], "t.conf", &mut draft);
        let text = draft.text("t.conf");
        let keys = text
            .lines()
            .filter(|line| line.starts_with("allow") || line.starts_with("deny") || line.starts_with("    "));
        let keys =
            keys.map(|line| line.split("  #").next().unwrap_or_default().to_owned()).collect::<Vec<_>>().join("\n");
        (draft, keys)
    }

    #[test]
    fn ranges_that_are_denied_anyway_are_left_out() {
        let (draft, keys) = peers(
            &[],
            &[
                "10.0.0.0-10.255.255.255",
                "0.0.0.0-0.255.255.255",
                "8.8.8.8",
                "fc00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ],
        );
        assert_eq!(keys, "deny = [\"8.8.8.8\"]");
        assert!(
            draft.sorted().iter().any(|verdict| verdict.message.contains("3 of the 4 lines")),
            "{:?}",
            draft.verdicts
        );
    }

    #[test]
    fn an_allowed_range_wins_over_any_denied_one() {
        // The denied range is the smaller one: the longest prefix alone would get it wrong.
        let (_, keys) = peers(&["8.8.0.0-8.8.255.255"], &["8.8.8.0-8.8.8.255", "9.0.0.0-9.255.255.255"]);
        assert_eq!(keys, "deny = [\"9.0.0.0/8\"]");
        let (_, keys) = peers(&["8.8.8.8"], &["8.0.0.0-8.255.255.255"]);
        assert_eq!(keys, "allow = [\"8.8.8.8\"]\ndeny = [\"8.0.0.0/8\"]");
        // The very same range in both.
        let (_, keys) = peers(&["8.0.0.0-8.255.255.255"], &["8.0.0.0-8.255.255.255"]);
        assert_eq!(keys, "");
        // What is denied anyway fills a range up.
        let (_, keys) = peers(&[], &["::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
        assert_eq!(keys, "deny = [\"::/0\", \"64:ff9b::/96\"]");
        // Everything but one address.
        let (_, keys) = peers(&["203.0.113.5"], &["0.0.0.0-255.255.255.255"]);
        assert_eq!(keys, "allow = [\"203.0.113.5\"]\ndeny = [\"0.0.0.0/0\"]");
    }

    #[test]
    fn private_networks_are_opened_without_their_metadata() {
        let (_, keys) = peers(&["10.0.0.0-10.255.255.255", "100.64.0.0-100.127.255.255", "10.0.0.5", "127.0.0.1"], &[]);
        assert!(
            keys.contains("\"10.0.0.0/8\"") && keys.contains("\"100.64.0.0/10\"") && !keys.contains("127."),
            "{keys}"
        );
        let (draft, keys) = peers(&["169.254.169.254"], &[]);
        assert_eq!(keys, "allow = [\"169.254.169.254\"]");
        assert!(draft.verdicts.iter().any(|verdict| verdict.is_unsafe));
        assert_eq!(peers(&["10.0.0.5"], &[]).1, "", "an address of the server itself");
    }

    #[test]
    fn what_opens_everything_is_refused() {
        for all in ["0.0.0.0-255.255.255.255", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "1.0.0.0-223.255.255.255"]
        {
            let (draft, keys) = peers(&[all], &[]);
            assert_eq!(keys, "", "{all}");
            assert!(draft.verdicts.iter().any(|verdict| verdict.is_unsafe && verdict.needs_a_person()), "{all}");
        }
    }

    #[test]
    fn odd_entries_get_a_verdict_and_no_rule() {
        for odd in ["0.0.0.0", "10.0.0.1-0.0.0.0", "10.0.0.9-10.0.0.1"] {
            let (draft, keys) = peers(&[odd], &[]);
            assert_eq!(keys, "", "{odd}");
            assert!(!draft.verdicts.is_empty(), "{odd}");
        }
        for odd in ["::", "::-::5", "example.org", "10.0.0.0/8/8", ""] {
            assert_eq!(peers(&[odd], &[]).1, "", "{odd}");
        }
        assert_eq!(peers(&[], &["8.8.8.0/24"]).1, "deny = [\"8.8.8.0/24\"]");
        assert_eq!(peers(&["10.1.0.0/16"], &[]).1, "");
    }

    const SECRET: &str = "[[auth.secrets]]\nid = \"a\"\nvalue = \"north-of-everything\"\n";

    /// What `check-config` says of the draft.
    fn checked(draft: &Draft) -> Result<crate::config::Config, crate::config::ConfigError> {
        crate::config::Config::from_toml("c.toml", &(draft.text("t.conf") + SECRET))
    }

    /// An open peer that was denied is worse than a server that does not start.
    #[test]
    fn a_line_that_denies_and_is_not_understood_makes_the_file_wrong() {
        for odd in ["::", "::-::5", "10.0.0.1-0.0.0.0", "example.org", "10.0.0.0/8/8", "", "a,b]\"c"] {
            let (draft, keys) = peers(&[], &["8.8.8.8", odd]);
            assert!(keys.starts_with("deny = [\"8.8.8.8\", \"FILL IN"), "{odd}: {keys}");
            let error = checked(&draft).unwrap_err();
            assert!(error.problems.iter().all(|problem| problem.key == "peers.deny"), "{odd}: {error}");
            let text = draft.text("t.conf");
            assert!(text.contains("# FILL IN (t.conf:1): denied-peer-ip"), "{odd}: {text}");
            assert!(draft.verdicts.iter().any(crate::import::verdict::Verdict::needs_a_person), "{odd}");
        }
        // That nothing is in it is known.
        let (draft, keys) = peers(&[], &["10.0.0.9-10.0.0.1"]);
        assert_eq!((keys.as_str(), checked(&draft).is_ok()), ("", true));
    }

    #[test]
    fn any_number_of_lines_that_deny_is_carried() {
        // Twenty thousand addresses with gaps between them, and as many that make one range.
        let apart: Vec<String> =
            (0..20_000_u32).map(|at| IpAddr::from((0x0800_0000 + 2 * at).to_be_bytes()).to_string()).collect();
        let joined: Vec<String> =
            (0..20_000_u32).map(|at| IpAddr::from((0x0900_0000 + at).to_be_bytes()).to_string()).collect();
        let both: Vec<&str> =
            apart.iter().chain(&joined).map(String::as_str).chain(["64:ff9b::-64:ff9b::ff"]).collect();
        let (draft, _) = peers(&[], &both);
        let config = checked(&draft).unwrap();
        assert!((20_001..20_050).contains(&config.peers.deny.len()), "{}", config.peers.deny.len());
        let policy = PeerPolicy::new(&config.peers.allow, &config.peers.deny, LocalAddresses::default()).unwrap();
        for (ip, is_open) in
            [("8.0.0.0", false), ("8.0.0.1", true), ("8.0.156.62", false), ("9.0.78.31", false), ("9.0.78.32", true)]
        {
            assert_eq!(policy.judge(ip.parse().unwrap()).is_some(), is_open, "{ip}");
        }
        assert!(policy.judge("64:ff9b::5".parse().unwrap()).is_none());
        // Beside a line that allows, those that join are few, and the others too many to compare.
        let joined: Vec<&str> = joined.iter().map(String::as_str).collect();
        let config = checked(&peers(&["9.0.0.7"], &joined).0).unwrap();
        assert_eq!(config.peers.allow.len(), 1);
        let apart: Vec<&str> = apart.iter().map(String::as_str).collect();
        let (draft, keys) = peers(&["9.0.0.7"], &apart);
        assert_eq!(keys, "deny = [\"FILL IN 20001 lines\"]");
        assert!(checked(&draft).is_err());
    }
}
