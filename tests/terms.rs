//! What a credential may and how long: claims, secrets' and users' limits, budgets, rates, expiry, rotation.

use test_support::harness;
use test_support::harness::stun::{ALLOCATE, CREATE_PERMISSION, REFRESH, allocate, request};
use test_support::harness::{Client, Harness, START_UNIX, Spec, Went, addr, alice, bind, holder_of, secret, user};
use throughway::address::Transport;
use throughway::credentials::claims::{Claim, ClaimSet, Claims, Grant, PeerScope, Transports};
use throughway::credentials::{Algorithm, mint, password};
use throughway::protocol::meter::{Allowance, Meter, Rates};
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::reject::RejectReason as Why;
use throughway::protocol::settings::{OnExpiry, Settings};
use throughway::time::{Now, Ticks, UnixSeconds};

const PEER: &str = "8.8.8.8:1000";
const OTHER: &str = "8.8.4.4:1000";

/// The default secret reads claims.
fn reads(set: ClaimSet) -> impl FnOnce(&mut Settings) {
    move |settings| settings.auth.secrets[0].claims = set
}

fn with_claims(h: &Harness, claims: &Claims) -> Spec {
    let minted = mint(&h.settings.auth.secrets[0], START_UNIX, "bob", 3600, claims).unwrap();
    alice().named(&minted.username, &minted.password)
}

fn granted(grant: Grant) -> Claims {
    Claims { grant, ..Claims::default() }
}

/// With an allocation and a channel 0x4000 to PEER.
fn calling(h: &mut Harness, spec: Spec) -> Client {
    let client = h.add(spec);
    h.allocate(client);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    client
}

/// What a packet's IPv4 and UDP heads are charged with.
const HEADS: usize = 28;

/// Sends packets of this size, heads included, until something is dropped, at most so often; tells how many went out and
/// why the next did not.
fn send_until_dropped(h: &mut Harness, client: Client, size: usize, most: usize) -> (usize, Option<DropReason>) {
    for sent in 0..most {
        if let Went::Dropped(why) = h.channel_data(client, 0x4000, &vec![7; size.saturating_sub(HEADS)]) {
            return (sent, Some(why));
        }
    }
    (most, None)
}

// ---- claims ----

#[test]
fn claims_are_ordinary_characters_where_the_secret_does_not_read_them() {
    let mut h = Harness::new();
    let name = format!("{}:bob~eyJxIjoxfQ", START_UNIX + 3600);
    let client = calling(&mut h, holder_of(&name));
    assert_eq!(&*h.session(client).unwrap().identity, "bob~eyJxIjoxfQ");
    assert_eq!(send_until_dropped(&mut h, client, 100, 10), (10, None), "one byte was no budget");
}

#[test]
fn the_user_id_stands_before_the_claims() {
    let mut h = Harness::with(reads(ClaimSet::LIMITS));
    let claims = granted(Grant { allocations: Some(7), ..Grant::default() });
    let client = h.add(with_claims(&h, &claims));
    h.allocate(client);
    let session = h.session(client).unwrap();
    assert_eq!(&*session.identity, "bob");
    assert!(session.username.contains('~'));
}

#[test]
fn claims_that_are_not_understood_are_refused_and_the_answer_is_signed() {
    let mut h = Harness::with(reads(ClaimSet::of(&[Claim::Bytes])));
    let bitrate = granted(Grant { bits_per_second: Some(1), ..Grant::default() }).encode();
    for text in ["", "x", "e30x", "eyJ6IjoxfQ", &bitrate] {
        let name = format!("{}:bob~{text}", START_UNIX + 3600);
        let client = h.add(holder_of(&name));
        let refused = h.refuses(client, allocate(), 403, Why::BadClaims);
        assert!(refused.is_signed_with(&h.key_of(client)), "{text}");
    }
    assert_eq!(h.books.authenticated().by_secret[&Some("main".into())].refused["bad_claims"], 5);
    // A client without the password hears nothing of claims.
    let stranger = h.add(alice().named(&format!("{}:bob~x", START_UNIX + 3600), "wrong"));
    h.refuses(stranger, allocate(), 401, Why::BadIntegrity);
}

#[test]
fn the_tenant_comes_from_the_secret_unless_its_claims_name_it() {
    let mut h = Harness::with(|settings| {
        settings.auth.secrets[0].tenant = Some("acme".into());
        settings.auth.secrets[0].claims = ClaimSet::LIMITS;
    });
    let client = h.add(user("bob"));
    h.allocate(client);
    assert_eq!(h.session(client).unwrap().tenant.as_deref(), Some("acme"));
    let other = Claims { tenant: Some("umbrella".into()), ..Claims::default() };
    let name = format!("{}:bob~{}", START_UNIX + 3600, other.encode());
    let liar = h.add(holder_of(&name));
    h.refuses(liar, allocate(), 403, Why::BadClaims);
    h.reconfigure(|settings| settings.auth.secrets[0].claims = ClaimSet::of(&[Claim::Tenant]));
    h.allocate(liar);
    assert_eq!(h.session(liar).unwrap().tenant.as_deref(), Some("umbrella"));
}

#[test]
fn a_credential_for_tls_alone_is_refused_over_udp() {
    let mut h = Harness::with(reads(ClaimSet::LIMITS));
    let claims = granted(Grant { transports: Some(Transports::of(&[Transport::Tcp])), ..Grant::default() });
    let spec = with_claims(&h, &claims);
    let udp = h.add(spec.clone());
    h.refuses(udp, allocate(), 403, Why::TransportDenied);
    let tcp = h.add(spec.tcp());
    h.allocate(tcp);
}

#[test]
fn a_credential_reaches_the_peers_of_its_scope_only() {
    let mut h = Harness::with(reads(ClaimSet::LIMITS));
    let prefixes = PeerScope::Prefixes(["8.8.8.0/24".parse().unwrap()].into());
    let claims = granted(Grant { peers: vec![prefixes], ..Grant::default() });
    let client = h.add(with_claims(&h, &claims));
    h.allocate(client);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    h.refuses(client, request(CREATE_PERMISSION).peers(&[addr(PEER), addr(OTHER)]), 403, Why::PeerOutOfScope);
    h.refuses(client, bind(0x4001, addr(OTHER)), 403, Why::PeerOutOfScope);
    assert_eq!(h.send(client, addr(PEER), b"x").to_peer().0, addr(PEER));
    // A reload judges the permissions again, and the scope still holds.
    h.reconfigure(|_| {});
    assert_eq!(h.send(client, addr(PEER), b"x").to_peer().0, addr(PEER));
    assert_eq!(h.send(client, addr(OTHER), b"x"), Went::Dropped(DropReason::NoPermission));
}

#[test]
fn a_scope_narrows_what_the_policy_allows_and_opens_nothing() {
    let mut h = Harness::with(reads(ClaimSet::LIMITS));
    let prefixes = PeerScope::Prefixes(["10.0.0.0/8".parse().unwrap()].into());
    let client = h.add(with_claims(&h, &granted(Grant { peers: vec![prefixes], ..Grant::default() })));
    h.allocate(client);
    h.refuses(client, request(CREATE_PERMISSION).peer(addr("10.0.0.1:1")), 403, Why::PeerDenied);
}

#[test]
fn a_relay_scope_reaches_relayed_addresses_of_this_server_only() {
    let mut h = Harness::with(reads(ClaimSet::LIMITS));
    let claims = granted(Grant { peers: vec![PeerScope::Relay], ..Grant::default() });
    let client = h.add(with_claims(&h, &claims));
    let other = h.client();
    h.allocate(client);
    let relayed = h.allocate(other);
    h.refuses(client, request(CREATE_PERMISSION).peer(addr(PEER)), 403, Why::PeerOutOfScope);
    assert_eq!(h.bind(client, 0x4000, relayed), 0);
    assert_eq!(h.channel_data(client, 0x4000, b"x").to_peer().0, relayed);
    assert_eq!(h.permit(client, &[relayed]), 0);
    let no_relay = std::net::SocketAddr::new(relayed.ip(), 60_000);
    assert_eq!(h.send(client, no_relay, b"x"), Went::Dropped(DropReason::NotRelayedPort));
}

// An address of this machine that the policy opens is not a relayed address for that.
#[test]
fn a_relay_scope_does_not_reach_a_local_address_that_is_allowed() {
    let mut h = Harness::with(|settings| {
        settings.auth.secrets[0].claims = ClaimSet::LIMITS;
        settings.peers = harness::policy(&["127.0.0.0/8"], &[]);
    });
    let claims = granted(Grant { peers: vec![PeerScope::Relay], ..Grant::default() });
    let client = h.add(with_claims(&h, &claims));
    h.allocate(client);
    h.refuses(client, bind(0x4000, addr("127.0.0.1:9")), 403, Why::PeerNotRelayed);
    assert_eq!(h.permit(client, &[addr("127.0.0.1:9")]), 0);
    assert_eq!(h.send(client, addr("127.0.0.1:9"), b"x"), Went::Dropped(DropReason::NotRelayedPort));
}

#[test]
fn the_closing_time_inside_a_credential_ends_its_sessions_and_lets_no_new_one_in() {
    let mut h = Harness::with(reads(ClaimSet::LIMITS));
    let claims = granted(Grant { closes_at: Some(START_UNIX + 100), ..Grant::default() });
    let client = h.add(with_claims(&h, &claims));
    h.allocate(client);
    h.advance(99);
    assert!(h.is_alive(client));
    h.advance(1);
    assert!(!h.is_alive(client));
    assert_eq!(h.ended.last().unwrap().reason, Some(EndReason::ClosingTime));
    h.refuses(client, allocate(), 403, Why::ClosingTime);
}

// The second of the closing time begins at another millisecond for a look at another time.
#[test]
fn a_reload_that_plans_an_earlier_end_is_woken_for_it() {
    let mut h = Harness::with(reads(ClaimSet::LIMITS));
    let claims = granted(Grant { closes_at: Some(START_UNIX + 100), ..Grant::default() });
    let client = h.add(with_claims(&h, &claims));
    h.advance_ms(999);
    h.allocate(client);
    h.advance_ms(1);
    h.reconfigure(|_| {});
    h.advance_ms(98_999);
    assert!(h.is_alive(client));
    h.advance_ms(1);
    assert!(!h.is_alive(client), "the whole 100 seconds are over");
}

// ---- allocations, rates and budgets ----

#[test]
fn the_narrower_of_credential_secret_and_configuration_holds() {
    let mut h = Harness::with(|settings| {
        settings.auth.secrets[0].claims = ClaimSet::LIMITS;
        settings.auth.secrets[0].grant.allocations = Some(2);
        settings.limits.allocations_per_credential = Some(3);
    });
    let wide = granted(Grant { allocations: Some(9), ..Grant::default() });
    let spec = with_claims(&h, &wide);
    for _ in 0..2 {
        let client = h.add(spec.clone());
        h.allocate(client);
    }
    let third = h.add(spec);
    h.refuses(third, allocate(), 486, Why::QuotaCredential);
    let another = h.add(user("bob"));
    h.allocate(another);
}

#[test]
fn a_tenant_has_allocations_together() {
    let mut h = Harness::with(|settings| {
        settings.auth.secrets[0].tenant = Some("acme".into());
        settings.auth.users.get_mut("alice").unwrap().tenant = Some("acme".into());
        settings.limits.allocations_per_tenant = Some(2);
    });
    let (bob, eve, static_user) = (h.add(user("bob")), h.add(user("eve")), h.add(alice()));
    h.allocate(bob);
    h.allocate(static_user);
    assert_eq!(h.session(static_user).unwrap().tenant.as_deref(), Some("acme"));
    h.refuses(eve, allocate(), 486, Why::QuotaTenant);
    assert_eq!(h.refresh(bob, 0).code(), 0);
    h.allocate(eve);
}

#[test]
fn the_same_user_id_under_two_tenants_is_two_users() {
    let mut h = Harness::with(|settings| {
        settings.auth.secrets[0].tenant = Some("acme".into());
        settings.auth.secrets.push(secret("other", "south", Algorithm::Sha1));
        settings.auth.secrets[1].tenant = Some("umbrella".into());
        settings.limits.allocations_per_user = Some(1);
    });
    let bob = h.add(user("bob"));
    h.allocate(bob);
    let again = h.add(user("bob"));
    h.refuses(again, allocate(), 486, Why::QuotaUser);
    let minted = mint(&h.settings.auth.secrets[1], START_UNIX, "bob", 60, &Claims::default()).unwrap();
    let other = h.add(alice().named(&minted.username, &minted.password));
    h.allocate(other);
}

// [8656-5-16]
#[test]
fn over_a_bandwidth_packets_are_dropped_and_counted_and_the_call_goes_on() {
    let mut h = Harness::with(|settings| {
        settings.limits.user = Rates { bits_per_second: Some(8_000), ..Rates::default() };
    });
    let client = calling(&mut h, user("bob"));
    assert_eq!(send_until_dropped(&mut h, client, 100, 20), (10, Some(DropReason::OverBandwidth)));
    // The other way has a bucket of its own.
    for _ in 0..10 {
        h.from_peer(client, addr(PEER), &[1; 100 - HEADS]).to_client();
    }
    assert_eq!(h.from_peer(client, addr(PEER), &[1; 100 - HEADS]), Went::Dropped(DropReason::OverBandwidth));
    h.advance_ms(500);
    assert_eq!(send_until_dropped(&mut h, client, 100, 20), (5, Some(DropReason::OverBandwidth)));
    assert!(h.is_alive(client));
    assert_eq!(h.drops(DropReason::OverBandwidth).packets, 3);
}

// [8656-5-15]
#[test]
fn a_user_shares_his_bandwidth_among_his_allocations_on_all_workers() {
    let mut h = Harness::workers(3, |settings| {
        settings.limits.user = Rates { bits_per_second: Some(80_000), ..Rates::default() };
    });
    let clients: Vec<Client> = (0..3).map(|worker| calling(&mut h, user("bob").on_worker(worker))).collect();
    let mut sent = 0;
    for _ in 0..100 {
        for client in &clients {
            sent += send_until_dropped(&mut h, *client, 100, 1).0;
        }
    }
    assert_eq!(sent, 100, "10,000 bytes of one second");
    let eve = calling(&mut h, user("eve"));
    assert_eq!(send_until_dropped(&mut h, eve, 100, 100), (100, None), "others have theirs");
}

#[test]
fn packets_per_second_are_limited_whatever_their_size() {
    let mut h = Harness::with(|settings| {
        settings.limits.allocation = Rates { packets_per_second: Some(50), ..Rates::default() };
    });
    let client = calling(&mut h, alice());
    assert_eq!(send_until_dropped(&mut h, client, 0, 99), (50, Some(DropReason::OverPackets)));
    h.advance(1);
    assert_eq!(send_until_dropped(&mut h, client, 1200, 99), (50, Some(DropReason::OverPackets)));
}

#[test]
fn a_budget_that_is_used_up_ends_the_call_and_refuses_the_next_with_the_same_credential() {
    let mut h = Harness::with(|settings| settings.limits.bytes_per_credential = Some(1_000));
    let client = calling(&mut h, user("bob"));
    let idle = calling(&mut h, user("bob"));
    h.from_peer(client, addr(PEER), &[1; 600 - HEADS]).to_client();
    assert_eq!(send_until_dropped(&mut h, client, 100, 20), (4, Some(DropReason::OverBudget)));
    h.advance_ms(1);
    assert!(!h.is_alive(client));
    let record = h.ended.last().unwrap();
    assert_eq!(record.reason, Some(EndReason::Budget));
    assert_eq!((record.wire_sent(Direction::ToPeer), record.wire_sent(Direction::ToClient)), (400, 600));
    assert_eq!((record.traffic.to_peers.sent().bytes, record.traffic.to_client.sent().bytes), (400 - 4 * 28, 600 - 28));
    assert!(h.is_alive(idle), "an idle session of it ends with its next packet");
    assert_eq!(h.channel_data(idle, 0x4000, b"x"), Went::Dropped(DropReason::OverBudget));
    h.advance_ms(1);
    assert!(!h.is_alive(idle));
    h.refuses(client, allocate(), 486, Why::QuotaBytes);
    let fresh = h.add(holder_of(&format!("{}:bob", START_UNIX + 1800)));
    h.allocate(fresh);
}

#[test]
fn what_the_kernel_did_not_take_is_given_back_to_the_budget() {
    let mut h = Harness::with(|settings| settings.limits.bytes_per_credential = Some(1_000));
    let client = calling(&mut h, user("bob"));
    h.channel_data(client, 0x4000, &[1; 1000 - HEADS]).to_peer();
    h.not_sent(client, Direction::ToPeer, 1, 1000 - HEADS as u64, DropReason::NoBuffers);
    assert_eq!(send_until_dropped(&mut h, client, 500, 9), (2, Some(DropReason::OverBudget)));
}

#[test]
fn a_users_bytes_of_the_day_hold_for_all_his_credentials_until_midnight() {
    let mut h = Harness::with(|settings| settings.limits.bytes_per_user_per_day = Some(1_000));
    let client = calling(&mut h, user("bob"));
    assert_eq!(send_until_dropped(&mut h, client, 1000, 9), (1, Some(DropReason::OverBudget)));
    h.advance_ms(1);
    let later = START_UNIX + 48 * 3600;
    let other = h.add(holder_of(&format!("{later}:bob")));
    h.refuses(other, allocate(), 486, Why::QuotaDay);
    h.advance(86_400);
    let tomorrow = h.add(holder_of(&format!("{later}:bob")));
    h.allocate(tomorrow);
}

#[test]
fn a_static_users_own_limits_hold() {
    let mut h = Harness::with(|settings| {
        let alice = settings.auth.users.get_mut("alice").unwrap();
        alice.grant = Grant { allocations: Some(1), packets_per_second: Some(5), ..Grant::default() };
    });
    let client = calling(&mut h, alice());
    let again = h.add(alice());
    h.refuses(again, allocate(), 486, Why::QuotaCredential);
    assert_eq!(send_until_dropped(&mut h, client, 9, 9), (5, Some(DropReason::OverPackets)));
}

#[test]
fn limits_of_a_reload_hold_for_the_sessions_that_live() {
    let mut h = Harness::new();
    let client = calling(&mut h, user("bob"));
    assert_eq!(send_until_dropped(&mut h, client, 100, 50), (50, None));
    let narrow = Rates { packets_per_second: Some(3), ..Rates::default() };
    h.reconfigure(|settings| settings.limits.server = narrow);
    assert_eq!(send_until_dropped(&mut h, client, 100, 50), (3, Some(DropReason::OverPackets)));
    h.reconfigure(|settings| settings.limits.server = Rates::default());
    assert_eq!(send_until_dropped(&mut h, client, 100, 50), (50, None));
}

// It was let in under the old limits, and its socket is opened under the new ones.
#[test]
fn limits_of_a_reload_hold_for_an_allocation_that_is_just_being_opened() {
    let mut h = Harness::new();
    let bob = h.add(user("bob"));
    h.hold_back_opens = true;
    let request = h.signed(bob, &allocate());
    assert!(h.tell(bob, &request).is_empty());
    let narrow = Rates { packets_per_second: Some(3), ..Rates::default() };
    h.reconfigure(|settings| (settings.limits.user, settings.limits.allocation) = (narrow, narrow));
    assert_eq!(h.let_opens_go(bob)[0].code(), 0);
    h.hold_back_opens = false;
    assert_eq!(h.bind(bob, 0x4000, addr(PEER)), 0);
    assert_eq!(send_until_dropped(&mut h, bob, 100, 50), (3, Some(DropReason::OverPackets)));
}

// ---- expiry ----

fn expiring(h: &mut Harness) -> Client {
    let client = h.add(holder_of(&format!("{}:bob", START_UNIX + 100)));
    h.allocate(client);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    client
}

#[test]
fn an_expired_credential_keeps_its_call_by_default() {
    let mut h = Harness::new();
    let client = expiring(&mut h);
    h.advance(200);
    assert_eq!(h.refresh(client, 600).code(), 0);
    assert_eq!(h.permit(client, &[addr(OTHER)]), 0);
    assert!(h.is_alive(client));
}

#[test]
fn deny_new_keeps_the_peers_and_refuses_new_ones() {
    let mut h = Harness::with(|settings| settings.auth.on_expiry = OnExpiry::DenyNew);
    let client = expiring(&mut h);
    h.advance(130);
    assert_eq!(h.permit(client, &[addr(OTHER)]), 0, "clocks may differ by 30 s");
    h.advance(1);
    h.refuses(client, request(CREATE_PERMISSION).peer(addr("1.1.1.1:1")), 403, Why::CredentialExpired);
    h.refuses(client, bind(0x4000, addr("1.1.1.1:1")), 403, Why::CredentialExpired);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0, "a peer that it has may be kept");
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    assert_eq!(h.refresh(client, 600).code(), 0);
    assert_eq!(h.channel_data(client, 0x4000, b"x").to_peer().0, addr(PEER));
}

#[test]
fn close_ends_the_call_after_its_grace() {
    let mut h = Harness::with(|settings| settings.auth.on_expiry = OnExpiry::Close { grace: 60 });
    let (client, unlimited) = (expiring(&mut h), h.add(alice()));
    h.allocate(unlimited);
    h.advance(159);
    assert!(h.is_alive(client));
    h.advance(1);
    assert!(!h.is_alive(client) && h.is_alive(unlimited));
    assert_eq!(h.ended.last().unwrap().reason, Some(EndReason::CredentialExpired));
    h.refuses(client, request(REFRESH).lifetime(600), 401, Why::Expired);
}

#[test]
fn nobody_is_let_in_whose_call_would_be_closed_at_once() {
    let mut h = Harness::with(|settings| settings.auth.on_expiry = OnExpiry::Close { grace: 0 });
    let late = h.add(holder_of(&format!("{}:bob", START_UNIX - 1)));
    h.refuses(late, allocate(), 401, Why::Expired);
    h.reconfigure(|settings| settings.auth.on_expiry = OnExpiry::Keep);
    h.allocate(late);
}

#[test]
fn what_is_left_of_a_budget_that_ended_a_call_lets_no_other_in() {
    let mut h = Harness::with(|settings| settings.limits.bytes_per_credential = Some(1_000));
    let client = calling(&mut h, user("bob"));
    assert_eq!(send_until_dropped(&mut h, client, 300, 9), (3, Some(DropReason::OverBudget)));
    h.advance_ms(1);
    assert_eq!(h.ended.last().unwrap().reason, Some(EndReason::Budget));
    h.refuses(client, allocate(), 486, Why::QuotaBytes);
}

#[test]
fn a_reload_plans_the_end_of_live_calls_again() {
    let mut h = Harness::new();
    let client = expiring(&mut h);
    h.reconfigure(|settings| settings.auth.on_expiry = OnExpiry::Close { grace: 60 });
    h.reconfigure(|settings| settings.auth.on_expiry = OnExpiry::Keep);
    h.advance(300);
    assert!(h.is_alive(client));
    h.reconfigure(|settings| settings.auth.on_expiry = OnExpiry::Close { grace: 0 });
    h.advance_ms(1);
    assert!(!h.is_alive(client), "its time was over long ago");
    let other = h.add(alice());
    h.allocate(other);
    h.advance(100);
    h.reconfigure(|settings| settings.auth.max_session = Some(200));
    h.advance(99);
    assert!(h.is_alive(other));
    h.advance(1);
    assert!(!h.is_alive(other));
}

#[test]
fn no_session_is_older_than_max_session_however_often_it_is_refreshed() {
    let mut h = Harness::with(|settings| settings.auth.max_session = Some(1_000));
    let client = h.client();
    h.allocate(client);
    for _ in 0..3 {
        h.advance(300);
        assert_eq!(h.refresh(client, 600).code(), 0);
    }
    h.advance(99);
    assert!(h.is_alive(client));
    h.advance(1);
    assert_eq!(h.ended.last().unwrap().reason, Some(EndReason::MaxSession));
    h.allocate(client);
}

// ---- rotation ----

// [8656-6-3]
#[test]
fn a_secret_past_its_end_lets_nobody_in_and_drops_no_call() {
    let mut h = Harness::with(|settings| settings.auth.secrets[0].not_after = Some(START_UNIX + 100));
    let client = h.add(user("bob"));
    h.allocate(client);
    h.advance(100);
    let late = h.add(user("eve"));
    h.refuses(late, request(ALLOCATE).udp(), 401, Why::SecretRetired);
    assert_eq!(h.refresh(client, 600).code(), 0);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
}

#[test]
fn a_secret_for_verifying_lets_in_and_its_last_use_is_noted() {
    let mut h = Harness::with(|settings| {
        settings.auth.secrets[0].verify_only = true;
        settings.auth.secrets.insert(0, secret("new", "south", Algorithm::Sha256));
    });
    let old = h.add(user("bob"));
    h.allocate(old);
    h.advance(5);
    let name = format!("{}:eve", START_UNIX + 600);
    let given = password(&h.settings.auth.secrets[0], name.as_bytes());
    let new = h.add(alice().named(&name, given.as_str()));
    h.allocate(new);
    let late = h.add(holder_of(&format!("{}:eve", START_UNIX - 100)));
    h.refuses(late, allocate(), 401, Why::Expired);
    let authenticated = h.books.authenticated();
    let of = |id: &str| &authenticated.by_secret[&Some(id.into())];
    assert_eq!((of("main").granted, of("main").last_used.unwrap().0), (1, START_UNIX));
    assert_eq!((of("new").granted, of("new").last_used.unwrap().0), (1, START_UNIX + 5));
    assert_eq!(of("main").refused["expired"], 1);
    assert_eq!(authenticated.remaining.iter().sum::<u64>(), 3);
    assert_eq!(authenticated.remaining[0], 1, "one had nothing left");
}

// ---- many workers at once ----

#[test]
fn many_threads_spend_a_budget_exactly() {
    let meter = std::sync::Arc::new(Meter::default());
    meter.allow(&Allowance { bytes: Some(100_000), ..Allowance::default() });
    let now = Now { ticks: Ticks(5), unix: UnixSeconds(START_UNIX) };
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let meter = meter.clone();
            let sent = move || (0..50_000).filter(|_| meter.charge(now, Direction::ToPeer, 1).is_ok()).count();
            std::thread::spawn(sent)
        })
        .collect();
    let sent: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(sent, 100_000);
}
