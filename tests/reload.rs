//! Reconfiguration: live permissions and channels are judged again, and no call is lost.

use std::net::SocketAddr;

use test_support::harness;
use test_support::harness::stun::{CREATE_PERMISSION, allocate, request};
use test_support::harness::{Client, Harness, Went, addr, alice, bind, carol, holder_of, policy, secret, user};
use throughway::credentials::Algorithm;
use throughway::protocol::peer_policy::{LocalAddresses, PeerPolicy};
use throughway::protocol::reason::DropReason;
use throughway::protocol::reject::RejectReason as Why;

const PEER: &str = "8.8.8.8:1000";
const OTHER: &str = "8.8.4.4:1000";

#[test]
fn a_reload_closes_the_permissions_and_channels_that_the_new_policy_denies() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    assert_eq!(h.bind(client, 0x4001, addr(OTHER)), 0);
    h.reconfigure(|settings| settings.peers = policy(&[], &["8.8.8.0/24"]));
    assert_eq!(h.channel_data(client, 0x4000, b"x"), Went::Dropped(DropReason::UnboundChannel));
    assert_eq!(h.send(client, addr(PEER), b"x"), Went::Dropped(DropReason::NoPermission));
    assert_eq!(h.from_peer(client, addr(PEER), b"x"), Went::Dropped(DropReason::PeerNotPermitted));
    assert_eq!(h.channel_data(client, 0x4001, b"x").to_peer().0, addr(OTHER), "the others go on");
    h.refuses(client, bind(0x4000, addr(PEER)), 403, Why::PeerDenied);
    // The number is free again at once.
    assert_eq!(h.bind(client, 0x4000, addr("8.8.4.4:7")), 0);
}

#[test]
fn a_reload_does_not_extend_what_it_leaves_open() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    h.advance(200);
    h.reconfigure(|settings| settings.peers = policy(&["10.0.0.0/8"], &[]));
    assert_eq!(h.send(client, addr(PEER), b"x").to_peer().0, addr(PEER));
    assert_eq!(h.permit(client, &[addr("10.0.0.1:1")]), 0);
    h.advance(100);
    assert_eq!(h.send(client, addr(PEER), b"x"), Went::Dropped(DropReason::NoPermission));
}

// The class that the policy found is judged anew too: an opened own address is a local one.
#[test]
fn a_reload_judges_the_class_of_a_peer_again() {
    let mut h = Harness::new();
    let (one, two) = (h.client(), h.client());
    h.allocate(one);
    let relayed = h.allocate(two);
    let other_port = std::net::SocketAddr::new(relayed.ip(), 60_000);
    assert_eq!(h.permit(one, &[relayed]), 0);
    assert_eq!(h.send(one, other_port, b"x"), Went::Dropped(DropReason::NotRelayedPort));
    h.reconfigure(|settings| settings.peers = policy(&["9.9.9.9/32"], &[]));
    assert_eq!(h.send(one, other_port, b"x").to_peer().0, other_port);
    h.reconfigure(|settings| settings.peers = policy(&[], &[]));
    assert_eq!(h.send(one, other_port, b"x"), Went::Dropped(DropReason::NotRelayedPort));
    assert_eq!(h.send(one, relayed, b"x").to_peer().0, relayed);
}

#[test]
fn removed_users_and_secrets_neither_end_nor_block_a_live_allocation() {
    for spec in [alice(), carol(), user("bob")] {
        let mut h = Harness::new();
        let client = h.add(spec.clone());
        h.allocate(client);
        assert_eq!(h.permit(client, &[addr(PEER)]), 0);
        h.reconfigure(|settings| {
            settings.auth.users.clear();
            settings.auth.secrets = vec![secret("other", "south", Algorithm::Sha1)];
        });
        assert_eq!(h.send(client, addr(PEER), b"x").to_peer().0, addr(PEER));
        assert_eq!(h.refresh(client, 1200).code(), 0);
        assert_eq!(h.permit(client, &[addr(OTHER)]), 0);
        assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
        assert_eq!(h.refresh(client, 0).code(), 0);
        assert_eq!(h.ask(client, allocate()).code(), 401, "a new one needs what is valid now");
        assert_eq!(h.allocations(), 0);
        assert_eq!(h.books.admitted(), 0);
    }
}

#[test]
fn a_credential_that_expires_during_the_call_neither_ends_nor_blocks_it() {
    let mut h = Harness::new();
    let credential = holder_of(&format!("{}:bob", harness::START_UNIX + 60));
    let client = h.add(credential.clone());
    h.allocate(client);
    h.advance(500);
    assert_eq!(h.refresh(client, 600).code(), 0);
    assert_eq!(h.ask(client, request(CREATE_PERMISSION).peer(addr(PEER))).code(), 0);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    let another = h.add(credential);
    assert_eq!(h.ask(another, allocate()).code(), 401);
    h.refresh(client, 0);
    assert_eq!(h.ask(client, allocate()).code(), 401);
    assert_eq!(h.rejects(Why::Expired), 2);
    assert_eq!(h.leftovers(), 0);
}

#[test]
fn a_changed_password_holds_for_new_allocations_only() {
    let mut h = Harness::new();
    let (old, new) = (h.client(), h.add(alice().named("alice", "looking-glass")));
    h.allocate(old);
    h.reconfigure(|settings| {
        let password = throughway::credentials::Secret::new(*b"looking-glass");
        settings.auth.users.insert("alice".into(), throughway::protocol::settings::StaticUser::password(password));
    });
    assert_eq!(h.refresh(old, 600).code(), 0);
    h.allocate(new);
    let third = h.client();
    assert_eq!(h.ask(third, allocate()).code(), 401);
}

#[test]
fn a_new_realm_is_challenged_with_and_live_calls_go_on() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    h.reconfigure(|settings| settings.realm = "elsewhere".into());
    assert_eq!(h.refresh(client, 600).code(), 0, "the key that was kept holds");
    let other = h.client();
    let challenge = h.ask_unsigned(other, allocate());
    assert_eq!(challenge.get(harness::stun::REALM), Some(&b"elsewhere"[..]));
    let signature = h.signature(other);
    let key = harness::stun::long_term_key("alice", harness::REALM, "wonderland");
    let old = harness::stun::Signature { realm: Some(harness::REALM.into()), key, ..signature };
    assert_eq!(h.ask_with(other, &old, allocate()).code(), 401, "who keeps to the old realm");
    h.allocate(other);
}

#[test]
fn new_limits_and_lifetimes_hold_from_the_next_request_on() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    assert_eq!(h.permit(client, &[addr(PEER), addr(OTHER)]), 0);
    h.reconfigure(|settings| {
        settings.limits.permissions_per_allocation = 1;
        settings.limits.allocations = Some(1);
        settings.default_lifetime = 300;
        settings.max_lifetime = 400;
        settings.relay_ipv6 = false;
    });
    let other = h.client();
    h.refuses(other, allocate(), 486, Why::QuotaServer);
    h.refuses(other, allocate().family(2), 440, Why::FamilyUnsupported);
    assert_eq!(h.send(client, addr(OTHER), b"x").to_peer().0, addr(OTHER), "what is open stays open");
    h.refuses(client, request(CREATE_PERMISSION).peer(addr("8.8.1.1:1")), 508, Why::PermissionLimit);
    assert_eq!(h.refresh(client, 9999).lifetime(), 400);
    assert_eq!(h.refresh(client, 1).lifetime(), 300);
}

/// All on one worker; more permissions than one piece of a review may judge.
fn forty_clients_with_sixty_permissions() -> (Harness, Vec<Client>, Vec<SocketAddr>) {
    let mut h = Harness::new();
    let peers: Vec<_> = (1..=60).map(|n| addr(&format!("8.8.8.{n}:9"))).collect();
    let clients: Vec<_> = (0..40).map(|_| h.add(alice().on_worker(0))).collect();
    for client in &clients {
        h.allocate(*client);
        assert_eq!(h.permit(*client, &peers), 0);
    }
    (h, clients, peers)
}

// F-E10: a reload judged every permission of a worker in one turn.
#[test]
fn many_permissions_are_judged_again_in_pieces() {
    let (mut h, clients, peers) = forty_clients_with_sixty_permissions();
    h.reconfigure(|settings| settings.peers = policy(&[], &["8.8.8.0/24"]));
    let mut pieces = 0;
    let mut open = Vec::new();
    loop {
        let mut pass = |client: &&Client| matches!(h.send(**client, peers[59], b"x"), Went::ToPeer { .. });
        open.push(clients.iter().filter(|client| pass(client)).count());
        let now = h.now;
        let server = h.server_of(clients[0]);
        if server.poll_timeout().is_none_or(|due| due > now.ticks) {
            break;
        }
        server.handle_timeout(now);
        pieces += 1;
    }
    assert!(pieces >= 2, "2,400 permissions in {} turns", pieces + 1);
    assert!(open.is_sorted_by(|before, after| before > after), "each piece closes some: {open:?}");
    assert_eq!(open.last(), Some(&0));
    // A request in between is judged by the new policy at once, and what is fine stays.
    h.refuses(clients[0], request(CREATE_PERMISSION).peers(&peers[..1]), 403, Why::PeerDenied);
    assert_eq!(h.permit(clients[0], &[addr(OTHER)]), 0);
}

// F-E10: nothing is judged again that can't come out otherwise.
#[test]
fn what_does_not_change_is_not_looked_at_again() {
    let (mut h, clients, _) = forty_clients_with_sixty_permissions();
    h.reconfigure(|settings| {
        settings.realm = "another".into();
        settings.peers = policy(&[], &[]);
    });
    let now = h.now;
    assert!(h.server_of(clients[0]).poll_timeout().is_some_and(|due| due > now.ticks), "nothing is left to do");
}

// F-E10: each judgement went through the lists from end to end.
#[test]
fn a_long_list_costs_a_judgement_no_more_than_a_short_one() {
    let ip = |number: u32| std::net::IpAddr::V4(number.into());
    let time = |count: u32| {
        let deny: Vec<ipnet::IpNet> = (0..count).map(|n| ip(0x2D00_0000 + n * 2).into()).collect();
        let policy = PeerPolicy::new(&[], &deny, LocalAddresses::default()).unwrap();
        let once = || {
            let begun = std::time::Instant::now();
            assert_eq!((0..4_000).filter(|n| policy.judge(ip(0x2D10_0000 + n)).is_some()).count(), 4_000);
            begun.elapsed()
        };
        (0..5).map(|_| once()).min().unwrap()
    };
    // Times of one run, and only their ratio.
    let (short, long) = (time(10), time(20_000));
    assert!(long < short * 20, "10 entries {short:?}, 20,000 entries {long:?}");
}
