//! ALTERNATE-SERVER (RFC 8489 section 10) and what a draining server does and does not do.

use std::net::{IpAddr, SocketAddr};

use test_support::harness::stun::{
    ALLOCATE, BINDING, CHANNEL_BIND, CREATE_PERMISSION, Incoming, NONCE, REALM as REALM_ATTRIBUTE, REFRESH, allocate,
    request,
};
use test_support::harness::{Client, Harness, Went, addr, alice, user};
use throughway::address::Transport;
use throughway::protocol::alternates::{Alternates, Siblings};
use throughway::protocol::pool::{LOAD_MAX, Member, PROBE_SOFTWARE, Pool, PoolState, Redirect};
use throughway::protocol::reject::RejectReason as Why;
use throughway::protocol::settings::Settings;

const ALTERNATE_SERVER: u16 = 0x8023;
const ALTERNATE_DOMAIN: u16 = 0x8003;
const SOFTWARE: u16 = 0x8022;

fn sibling(settings: &mut Settings, addresses: &[&str]) {
    let mut plain = Siblings::default();
    for address in addresses {
        assert_eq!(plain.add(addr(address)), None, "one per family");
    }
    settings.alternates = Alternates { plain, ..Alternates::default() };
}

/// As MAPPED-ADDRESS: a zero, the family, the port, the address, nothing XORed.
fn alternate(reply: &Incoming) -> SocketAddr {
    let value = reply.get(ALTERNATE_SERVER).expect("ALTERNATE-SERVER");
    let ip: IpAddr = match (value[0], value[1], value.len()) {
        (0, 1, 8) => <[u8; 4]>::try_from(&value[4..]).unwrap().into(),
        (0, 2, 20) => <[u8; 16]>::try_from(&value[4..]).unwrap().into(),
        other => panic!("no address: {other:?}"),
    };
    SocketAddr::new(ip, u16::from_be_bytes([value[2], value[3]]))
}

// RFC 8489 §10: the response carries ALTERNATE-SERVER; §14.15: of the family of the request's source
// [8489-10-1, -2, 8489-14.1-2, 8656-7.2-20]
#[test]
fn a_draining_server_sends_each_client_to_the_sibling_of_its_own_family() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479", "[2001:db8::8]:3480"]));
    h.drain_all();
    for (spec, expected) in [
        (alice(), "198.51.100.8:3479"),
        (alice().tcp(), "198.51.100.8:3479"),
        (alice().ipv6(), "[2001:db8::8]:3480"),
        (alice().ipv6().tcp(), "[2001:db8::8]:3480"),
    ] {
        let client = h.add(spec);
        // What is wanted of the relay is another matter than how the client comes.
        for message in [allocate(), allocate().family(1), allocate().family(2).fingerprint()] {
            let reply = h.refuses(client, message, 300, Why::Redirected);
            assert_eq!(alternate(&reply), addr(expected));
            assert!(!reply.has(ALTERNATE_DOMAIN), "only a certificate needs a name");
        }
    }
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
}

// RFC 8489 §10: without a server of that family there is nothing to name
#[test]
fn a_family_without_a_sibling_is_486() {
    let mut h = Harness::with(|settings| sibling(settings, &["[2001:db8::8]:3480"]));
    h.drain_all();
    let (by_ipv4, by_ipv6) = (h.client(), h.add(alice().ipv6()));
    let reply = h.refuses(by_ipv4, allocate(), 486, Why::Draining);
    assert!(!reply.has(ALTERNATE_SERVER));
    h.refuses(by_ipv6, allocate(), 300, Why::Redirected);
}

// F-E2. RFC 8489 §10: the 300 may be unauthenticated, and browsers follow it only as the answer to the first Allocate
#[test]
fn the_first_allocate_is_sent_elsewhere_before_the_challenge() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479", "[2001:db8::8]:3480"]));
    let newcomers = [alice(), alice().tcp(), alice().ipv6(), alice().ipv6().tcp()];
    let challenges: Vec<Incoming> = newcomers
        .clone()
        .into_iter()
        .map(|spec| {
            let client = h.add(spec);
            h.ask_unsigned(client, allocate())
        })
        .collect();
    h.drain_all();
    let told = h.refused.len();
    for (spec, challenge) in newcomers.into_iter().zip(challenges) {
        let expected = addr(if spec.ipv6 { "[2001:db8::8]:3480" } else { "198.51.100.8:3479" });
        let client = h.add(spec);
        for message in [allocate(), request(ALLOCATE), allocate().fingerprint()] {
            let reply = h.ask_unsigned(client, message);
            assert_eq!(reply.code(), 300);
            assert_eq!(alternate(&reply), expected);
            // A nonce of this server would be stale at the sibling.
            assert!(!reply.has(NONCE) && !reply.has(REALM_ATTRIBUTE) && !reply.has(ALTERNATE_DOMAIN));
        }
        // To a forged source it sends no more than the challenge did: a draining server amplifies less.
        let reply = h.ask_unsigned(client, allocate());
        let (redirect, challenge) = (reply.bytes.len(), challenge.bytes.len());
        assert!(redirect < challenge, "{redirect} bytes instead of {challenge}");
        assert!(redirect <= 52, "a head, ERROR-CODE without a phrase, one address: {redirect} bytes");
    }
    assert_eq!(h.refused.len(), told, "a first request has no username, so there is no news of it");
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
}

// F-E2. Only Allocate begins something, and only a newcomer can go elsewhere.
// [8489-12-3]
#[test]
fn a_client_with_an_allocation_and_every_other_request_are_challenged_as_ever() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479"]));
    let (kept, opening, newcomer) = (h.client(), h.client(), h.client());
    let bytes = h.signed(kept, &allocate());
    assert_eq!(h.tell(kept, &bytes)[0].code(), 0);
    let late = h.signed(opening, &allocate());
    h.hold_back_opens = true;
    assert_eq!(h.tell(opening, &late), []);
    h.drain_all();
    for client in [kept, opening] {
        let reply = h.ask_unsigned(client, allocate());
        assert_eq!((reply.code(), reply.has(ALTERNATE_SERVER), reply.has(NONCE)), (401, false, true));
    }
    for method in [REFRESH, CREATE_PERMISSION, CHANNEL_BIND] {
        let reply = h.ask_unsigned(newcomer, request(method));
        assert_eq!((reply.code(), reply.has(ALTERNATE_SERVER)), (401, false), "{method:#x}");
    }
    let reply = h.ask_unsigned(newcomer, request(BINDING));
    assert_eq!((reply.code(), reply.has(ALTERNATE_SERVER)), (0, false));
    assert_eq!(h.let_opens_go(opening)[0].code(), 0);
    assert!(h.is_alive(kept) && h.is_alive(opening));
}

// F-E2. Without a sibling of its family a newcomer is challenged, and hears 486 once it is known.
#[test]
fn without_a_sibling_the_first_allocate_is_challenged() {
    for addresses in [&[][..], &["[2001:db8::8]:3480"]] {
        let mut h = Harness::with(|settings| sibling(settings, addresses));
        h.drain_all();
        let client = h.client();
        let reply = h.ask_unsigned(client, allocate());
        assert_eq!((reply.code(), reply.has(ALTERNATE_SERVER)), (401, false));
        h.refuses(client, allocate(), 486, Why::Draining);
    }
}

// RFC 8489 §10: a client that signs has its answer signed, and one that signs wrongly is not sent anywhere
// [8489-6.3.1.1-4]
#[test]
fn a_signed_allocate_is_answered_by_a_signed_300() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479"]));
    h.drain_all();
    let client = h.client();
    let mallory = h.add(alice().named("alice", "looking-glass"));
    let refused = h.ask(mallory, allocate());
    assert_eq!((refused.code(), refused.has(ALTERNATE_SERVER)), (401, false));
    // RFC 8656 §7.2: a request that is wrong in itself is told so.
    h.refuses(client, request(ALLOCATE), 400, Why::MissingAttribute);
    h.refuses(client, request(REFRESH), 437, Why::NoAllocation);
    // Asked again, answered again: a refusal leaves no trace.
    let bytes = h.signed(client, &allocate());
    let first = h.tell(client, &bytes);
    assert_eq!((first[0].code(), first.len()), (300, 1));
    assert_eq!(h.tell(client, &bytes), first);
}

// What lives goes on: the answer to its Allocate, Refresh, permissions, channels, data both ways, and its end.
#[test]
fn what_lives_goes_on_while_the_server_drains() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479"]));
    let client = h.client();
    let bytes = h.signed(client, &allocate());
    let first = h.tell(client, &bytes);
    h.drain_all();
    assert_eq!(h.tell(client, &bytes), first, "a retransmission is nothing new");
    let peer = addr("8.8.8.8:4000");
    for _ in 0..5 {
        assert_eq!(h.refresh(client, 600).lifetime(), 600);
        assert_eq!(h.permit(client, &[peer]), 0);
        assert_eq!(h.bind(client, 0x4001, peer), 0);
        assert_eq!(h.channel_data(client, 0x4001, b"there").to_peer(), (peer, b"there".to_vec()));
        assert!(matches!(h.from_peer(client, peer, b"back"), Went::ToClient { .. }));
        h.advance(500);
    }
    assert_eq!(h.refresh(client, 0).code(), 0);
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
    h.refuses(client, allocate(), 300, Why::Redirected);
}

// An opening that is under way when the drain begins comes to its end.
#[test]
fn an_allocate_that_came_before_the_drain_is_granted() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479"]));
    let client = h.client();
    let bytes = h.signed(client, &allocate());
    h.hold_back_opens = true;
    assert_eq!(h.tell(client, &bytes), []);
    h.drain_all();
    assert_eq!(h.tell(client, &bytes), [], "a retransmission meanwhile is neither granted nor refused");
    let replies = h.let_opens_go(client);
    assert_eq!((replies.len(), replies[0].code()), (1, 0));
    assert!(h.is_alive(client));
}

// Where to is decided anew by each reload, also while the server drains.
#[test]
fn a_sibling_can_come_and_go_while_the_server_drains() {
    let mut h = Harness::new();
    let client = h.client();
    h.drain_all();
    h.refuses(client, allocate(), 486, Why::Draining);
    h.reconfigure(|settings| sibling(settings, &["198.51.100.8:3479"]));
    h.refuses(client, allocate(), 300, Why::Redirected);
    h.reconfigure(|settings| sibling(settings, &[]));
    h.refuses(client, allocate(), 486, Why::Draining);
}

const POOL: [&str; 3] = ["198.51.100.1:3478", "198.51.100.2:3478", "[2001:db8::3]:3478"];

fn pool(redirect: Redirect) -> Pool {
    let member = |address: &&str| Member { plain: Some(addr(address)), tls: None, name: None, weight: 1 };
    Pool { members: POOL.iter().map(member).collect(), redirect }
}

/// A server with a pool of which these take clients.
fn with_pool(redirect: Redirect, up: &[usize], load: u16) -> Harness {
    let h = Harness::with(|settings| settings.pool = pool(redirect));
    is_up(&h, redirect, up, load);
    h
}

fn is_up(h: &Harness, redirect: Redirect, up: &[usize], load: u16) {
    let mut state = PoolState { load, ..PoolState::new(&pool(redirect)) };
    up.iter().for_each(|at| Transport::ALL.into_iter().for_each(|transport| state.set_up(*at, transport)));
    h.books.set_pool(state);
}

fn first(h: &mut Harness, client: Client) -> Incoming {
    h.ask_unsigned(client, allocate())
}

const FULL: Redirect = Redirect::Full { above: 900 };

// [8489-10-1]
#[test]
fn a_full_server_sends_newcomers_to_a_server_of_the_pool_and_keeps_what_lives() {
    let mut h = with_pool(FULL, &[0, 1, 2], 0);
    let kept = h.client();
    h.allocate(kept);
    is_up(&h, FULL, &[0, 1, 2], LOAD_MAX);
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..20 {
        for spec in [alice(), alice().tcp()] {
            let client = h.add(spec.from(&format!("203.0.113.9:{}", 1000 + number)));
            let reply = first(&mut h, client);
            assert_eq!((reply.code(), reply.has(NONCE)), (300, false));
            seen.insert(alternate(&reply).to_string());
            assert_eq!(alternate(&first(&mut h, client)), alternate(&reply), "sent again, answered alike");
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), POOL[..2], "both of its family have their share");
    let by_ipv6 = h.add(alice().ipv6());
    assert_eq!(alternate(&first(&mut h, by_ipv6)), addr(POOL[2]));
    assert_eq!((first(&mut h, kept).code(), h.refresh(kept, 600).code()), (401, 0));
    // Nothing but Allocate begins something.
    let newcomer = h.client();
    assert_eq!(h.ask_unsigned(newcomer, request(REFRESH)).code(), 401);
    is_up(&h, FULL, &[0, 1, 2], 899);
    assert_eq!(first(&mut h, newcomer).code(), 401, "there is room");
}

// Where all are full a client must be served somewhere, and not sent in circles.
#[test]
fn no_client_is_sent_to_a_server_that_takes_none() {
    for redirect in [FULL, Redirect::Always] {
        let mut h = with_pool(redirect, &[], LOAD_MAX);
        let client = h.client();
        assert_eq!(first(&mut h, client).code(), 401);
        h.allocate(client);
        let (late, by_ipv6) = (h.add(user("late")), h.add(alice().ipv6()));
        is_up(&h, redirect, &[2], LOAD_MAX);
        assert_eq!(first(&mut h, late).code(), 401, "another family");
        assert_eq!(first(&mut h, by_ipv6).code(), 300);
        // What was known of another pool says nothing of this one.
        is_up(&h, redirect, &[0, 1], LOAD_MAX);
        h.reconfigure(|settings| drop(settings.pool.members.remove(0)));
        assert_eq!(first(&mut h, late).code(), 401);
    }
}

#[test]
fn between_the_threshold_and_a_full_server_some_go_and_some_stay() {
    let mut h = with_pool(FULL, &[0, 1], 950);
    let sent = (0..200_u16).filter(|number| {
        let client = h.add(alice().from(&format!("203.0.113.9:{}", 2000 + number)));
        first(&mut h, client).code() == 300
    });
    let sent = sent.count();
    assert!((60..140).contains(&sent), "about half: {sent}");
}

// RFC 8489 has no word for it: an Allocate without credentials is what every TURN server answers with 401.
#[test]
fn a_server_that_asks_hears_whether_one_is_nearly_full_or_full_or_drains() {
    let probe = || allocate().with(SOFTWARE, PROBE_SOFTWARE);
    let mut h = with_pool(FULL, &[0, 1], 0);
    let asker = h.client();
    assert_eq!(h.ask_unsigned(asker, probe()).code(), 401);
    is_up(&h, FULL, &[], 900);
    let reply = h.ask_unsigned(asker, probe());
    assert_eq!((reply.code(), reply.has(ALTERNATE_SERVER), reply.has(NONCE)), (486, false, false));
    is_up(&h, FULL, &[0, 1], LOAD_MAX);
    assert_eq!(h.ask_unsigned(asker, probe()).code(), 508);
    assert!(reply.bytes.len() <= 28, "{} bytes", reply.bytes.len());
    assert_eq!((h.rejects(Why::Busy), h.rejects(Why::Full), h.refused.len()), (1, 1, 0), "counted, and no news");
    // Whether or not there is another one: two that send all clients to each other would serve none.
    let mut always = with_pool(Redirect::Always, &[], 0);
    let (asker, client) = (always.client(), always.client());
    assert_eq!((always.ask_unsigned(asker, probe()).code(), first(&mut always, client).code()), (508, 401));
    let mut draining = Harness::new();
    draining.drain_all();
    let asker = draining.client();
    assert_eq!((draining.ask_unsigned(asker, probe()).code(), first(&mut draining, asker).code()), (508, 401));
}

// A server without a place sends to one that is nearly full, and that one, which sees this one full, serves.
#[test]
fn who_finds_no_place_may_go_to_a_server_that_is_nearly_full() {
    let mut h = with_pool(FULL, &[], 999);
    let client = h.client();
    let spare = |load| {
        let mut state = PoolState { load, ..PoolState::new(&pool(FULL)) };
        state.set_spare(1, Transport::Udp);
        state
    };
    h.books.set_pool(spare(999));
    assert_eq!(first(&mut h, client).code(), 401, "there is a place");
    h.books.set_pool(spare(LOAD_MAX));
    assert_eq!(alternate(&first(&mut h, client)), addr(POOL[1]));
}

#[test]
fn a_token_of_this_server_keeps_its_client_here() {
    let mut h = with_pool(Redirect::Always, &[0, 1], 0);
    let client = h.client();
    let token = allocate().with(0x0022, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(h.ask_unsigned(client, token).code(), 401);
    assert_eq!(first(&mut h, client).code(), 300);
}

// A client that was challenged before the last place was taken: a signed 300 is better than a refusal.
#[test]
fn who_finds_no_place_is_sent_elsewhere_by_a_signed_300() {
    let mut h = Harness::with(|settings| {
        settings.pool = pool(FULL);
        settings.limits.allocations = Some(1);
    });
    let (kept, late) = (h.client(), h.add(user("late")));
    h.allocate(kept);
    h.refuses(late, allocate(), 486, Why::QuotaServer);
    is_up(&h, FULL, &[1], 0);
    let reply = h.refuses(late, allocate(), 300, Why::Redirected);
    assert_eq!(alternate(&reply), addr(POOL[1]));
    h.reconfigure(|settings| settings.pool.redirect = Redirect::Draining);
    h.refuses(late, allocate(), 486, Why::QuotaServer);
    assert_eq!((h.allocations(), h.books.admitted()), (1, 1));
}

#[test]
fn a_draining_server_without_a_sibling_uses_its_pool() {
    let mut h = with_pool(Redirect::Draining, &[0], LOAD_MAX);
    let client = h.client();
    assert_eq!(first(&mut h, client).code(), 401, "full or not");
    h.drain_all();
    let newcomer = h.client();
    assert_eq!(alternate(&first(&mut h, newcomer)), addr(POOL[0]));
    h.reconfigure(|settings| sibling(settings, &["198.51.100.8:3479"]));
    assert_eq!(alternate(&first(&mut h, newcomer)), addr("198.51.100.8:3479"), "drain.alternate comes first");
}
