//! Several realms and tenants on one server: RFC 8489 section 9.2.4 with the realm of the listener, and whose a session is.

use std::net::SocketAddr;

use hashbrown::HashMap;
use test_support::harness::mobility::{come, for_ticket, ticket_of};
use test_support::harness::stun::{
    ALLOCATE, By, CONNECTION_BIND, CREATE_PERMISSION, Incoming, Modern, NONCE, REALM as REALM_TYPE, REFRESH, Signature,
    allocate, long_term_key, request, sha256_key, userhash,
};
use test_support::harness::{Client, Harness, REALM, START_UNIX, Spec, addr, alice, secret, time_limited_password};
use throughway::address::Transport;
use throughway::credentials::claims::{Claim, ClaimSet, Claims};
use throughway::credentials::{Algorithm, Secret, mint};
use throughway::protocol::border::{RelayRequest, Selector};
use throughway::protocol::reason::EndReason;
use throughway::protocol::reject::RejectReason;
use throughway::protocol::settings::{NameForms, RealmUsers, Settings, Sha256Offer, StaticUser};
use throughway::protocol::tenancy::{PortPart, PortParts, Tenancies, Tenancy};

const REALM_B: &str = "b.example";
const AT_B: &str = "9.9.9.1:3479";
const AT_C: &str = "9.9.9.1:3480";
const LOOKING_GLASS: &str = "looking-glass";

fn tenancy(at: &str, realm: Option<&str>, tenant: Option<&str>) -> [(Transport, std::net::IpAddr, u16, Tenancy); 2] {
    let at: SocketAddr = addr(at);
    let tenancy = Tenancy { realm: realm.map(Into::into), tenant: tenant.map(Into::into) };
    [Transport::Udp, Transport::Tcp].map(|transport| (transport, at.ip(), at.port(), tenancy.clone()))
}

fn listeners() -> Tenancies {
    let b = tenancy(AT_B, Some(REALM_B), Some("b"));
    let c = tenancy(AT_C, None, Some("c"));
    Tenancies::new(b.into_iter().chain(c))
}

/// `alice` and `carol` of the harness in its realm; another `alice`, and `dora`, in the realm of the listener of tenant b;
/// a listener of tenant c in the realm of the server.
fn two_realms(settings: &mut Settings) {
    let password = |text: &str| StaticUser::password(Secret::new(text.as_bytes()));
    let users: HashMap<Box<str>, StaticUser> =
        [("alice".into(), password(LOOKING_GLASS)), ("dora".into(), password("explorer"))].into_iter().collect();
    let forms = NameForms::new(REALM_B, ["alice", "dora"].into_iter(), |_| None);
    settings.auth.realms = vec![RealmUsers { realm: REALM_B.into(), users, forms }];
    settings.tenancies = listeners();
}

fn harness() -> Harness {
    Harness::with(two_realms)
}

fn alice_of_b() -> Spec {
    alice().named("alice", LOOKING_GLASS).at(AT_B)
}

#[track_caller]
fn is_challenge(reply: &Incoming, code: u16, realm: &str) {
    assert_eq!(reply.code(), code);
    assert_eq!(reply.get(REALM_TYPE).map(String::from_utf8_lossy).as_deref(), Some(realm));
    assert!(reply.has(NONCE));
}

fn tenant_of(h: &Harness, client: Client) -> Option<String> {
    h.session(client).expect("a session").tenant.map(Into::into)
}

// RFC 8489 §9.2.4 (1), (3), (6) [8489-9.2.4-3, -13, -22]
#[test]
fn every_challenge_carries_the_realm_of_the_listener() {
    let mut h = harness();
    for (at, realm) in [(None, REALM), (Some(AT_B), REALM_B), (Some(AT_C), REALM)] {
        for spec in [alice(), alice().tcp()] {
            let client = h.add(Spec { server: at.map(addr), ..spec });
            for method in [ALLOCATE, REFRESH, CREATE_PERMISSION] {
                is_challenge(&h.ask_unsigned(client, request(method)), 401, realm);
            }
            let mut signature = h.signature(client);
            signature.nonce = Some(b"0123456789abcdef0123456789abcdef".to_vec());
            is_challenge(&h.ask_with(client, &signature, allocate()), 438, realm);
        }
    }
}

#[test]
fn one_name_is_two_users_in_two_realms() {
    let mut h = harness();
    let (of_a, of_b) = (h.client(), h.add(alice_of_b()));
    h.allocate(of_a);
    h.allocate(of_b);
    let realms = [of_a, of_b].map(|client| h.session(client).unwrap().realm);
    assert_eq!(realms, [None, Some(REALM_B.into())]);
    assert_eq!((tenant_of(&h, of_a), tenant_of(&h, of_b)), (None, Some("b".into())));
    // Neither password is good in the other realm.
    for spec in [alice().named("alice", LOOKING_GLASS), alice().at(AT_B)] {
        let client = h.add(spec);
        let before = h.rejects(RejectReason::BadIntegrity);
        let reply = h.ask(client, allocate());
        assert_eq!((reply.code(), h.rejects(RejectReason::BadIntegrity)), (401, before + 1));
    }
}

// A user of one realm is an unknown user in another one, and hears what that one hears.
#[test]
fn a_user_of_one_realm_does_not_exist_in_another() {
    let mut h = harness();
    for (spec, realm) in [
        (alice().named("carol", "christmas").at(AT_B), REALM_B),
        (alice().named("dora", "explorer"), REALM),
        (alice().named("mallory", "wonderland").at(AT_B), REALM_B),
    ] {
        let client = h.add(spec);
        let before = h.rejects(RejectReason::UnknownUser);
        let reply = h.ask(client, allocate());
        is_challenge(&reply, 401, realm);
        assert!(!reply.is_signed());
        assert_eq!(h.rejects(RejectReason::UnknownUser), before + 1);
    }
    assert_eq!(h.allocations(), 0);
}

// RFC 8489 §9.2.4: a REALM that is not the listener's [8489-9.2.4-12, -13]
#[test]
fn a_realm_of_another_listener_is_answered_with_the_own_one() {
    let mut h = harness();
    for (spec, other, own, password) in
        [(alice_of_b(), REALM, REALM_B, "wonderland"), (alice(), REALM_B, REALM, LOOKING_GLASS)]
    {
        let client = h.add(spec);
        let mut signature = h.signature(client);
        signature.realm = Some(other.into());
        signature.key = long_term_key("alice", other, password);
        let reply = h.ask_with(client, &signature, allocate());
        is_challenge(&reply, 401, own);
        // With the realm of the answer it is let in.
        h.allocate(client);
        h.refresh(client, 0);
    }
    assert_eq!(h.rejects(RejectReason::WrongRealm), 2);
}

#[test]
fn a_time_limited_credential_is_good_in_each_realm_with_the_key_of_that_realm() {
    let mut h = harness();
    let name = format!("{}:bob", START_UNIX + 3600);
    let password = time_limited_password(&name);
    for at in [None, Some(AT_B)] {
        let client = h.add(Spec { server: at.map(addr), ..alice().named(&name, &password) });
        h.allocate(client);
        assert_eq!(tenant_of(&h, client).as_deref(), at.map(|_| "b"));
    }
    // The key of one realm under the name of the other.
    let client = h.add(alice().named(&name, &password).at(AT_B));
    let mut signature = h.signature(client);
    signature.key = long_term_key(&name, REALM, &password);
    assert_eq!(h.ask_with(client, &signature, allocate()).code(), 401);
    assert_eq!(h.rejects(RejectReason::BadIntegrity), 1);
}

// RFC 8489 §9.2.4, §14.4: SHA-256 and USERHASH [8489-14.4-1]
#[test]
fn sha256_keys_and_hidden_names_are_of_the_listeners_realm() {
    let mut h = Harness::with(|settings| {
        two_realms(settings);
        settings.auth.secrets.clear();
        settings.auth.sha256 = Sha256Offer::Always;
    });
    for (at, realm, password, other) in
        [(AT_B, REALM_B, LOOKING_GLASS, REALM), ("9.9.9.1:3478", REALM, "wonderland", REALM_B)]
    {
        let client = h.add(alice().at(at));
        let nonce = Some(h.nonce_of(client));
        let hidden = |in_realm: &str| Signature {
            realm: Some(realm.into()),
            nonce: nonce.clone(),
            modern: Some(Modern {
                userhash: Some(userhash("alice", in_realm).into()),
                algorithm: Some(vec![0, 2, 0, 0]),
                algorithms: Some(vec![0, 2, 0, 0, 0, 1, 0, 0]),
                key: sha256_key("alice", realm, password).into(),
                by: vec![By::Sha256],
            }),
            ..Signature::default()
        };
        let before = h.rejects(RejectReason::UnknownUser);
        assert_eq!(h.ask_with(client, &hidden(other), allocate()).code(), 401, "hashed in the other realm");
        assert_eq!(h.rejects(RejectReason::UnknownUser), before + 1);
        assert_eq!(h.ask_with(client, &hidden(realm), allocate()).code(), 0);
        assert_eq!(h.ask_with(client, &hidden(realm), request(REFRESH)).code(), 0);
    }
}

#[test]
fn a_session_belongs_to_the_tenant_of_its_listener_and_no_other_ones_credential_is_good() {
    let mut h = Harness::with(|settings| {
        two_realms(settings);
        let of = |id: &str, tenant: &str| {
            let mut of = secret(id, &format!("the-secret-of-tenant-{tenant}"), Algorithm::Sha1);
            of.tenant = Some(tenant.into());
            of
        };
        settings.auth.secrets.extend([of("b", "b"), of("c", "c")]);
        settings.auth.secrets[0].claims = ClaimSet::of(&[Claim::Tenant]);
        if let Some(carol) = settings.auth.users.get_mut("carol") {
            carol.tenant = Some("z".into());
        }
    });
    let secrets = h.settings.auth.secrets.clone();
    let minted = |at: usize, tenant: Option<&str>| {
        let claims = Claims { tenant: tenant.map(Into::into), ..Claims::default() };
        let minted = mint(&secrets[at], START_UNIX, "bob", 600, &claims).unwrap();
        alice().named(&minted.username, &minted.password)
    };
    for (spec, at, tenant) in [
        (minted(0, None), AT_B, Some("b")),
        (minted(0, None), AT_C, Some("c")),
        (minted(1, None), AT_B, Some("b")),
        (minted(0, Some("b")), AT_B, Some("b")),
        (minted(1, None), "9.9.9.1:3478", Some("b")),
        (minted(0, Some("x")), "9.9.9.1:3478", Some("x")),
        (alice(), AT_C, Some("c")),
    ] {
        let client = h.add(spec.at(at));
        h.allocate(client);
        assert_eq!(tenant_of(&h, client).as_deref(), tenant);
        h.refresh(client, 0);
    }
    for (spec, at) in [
        (minted(2, None), AT_B),
        (minted(0, Some("c")), AT_B),
        (minted(1, None), AT_C),
        (alice().named("carol", "christmas"), AT_C),
    ] {
        let client = h.add(spec.at(at));
        // A signed 403: the key is right.
        h.refuses(client, allocate(), 403, RejectReason::OtherTenant);
    }
    assert_eq!(h.allocations(), 0);
}

#[test]
fn quotas_of_a_tenant_hold_for_all_who_come_by_its_listeners() {
    let mut h = Harness::with(|settings| {
        two_realms(settings);
        settings.limits.allocations_per_tenant = Some(2);
    });
    let dora = alice().named("dora", "explorer").at(AT_B);
    for spec in [alice_of_b(), dora.clone()] {
        let client = h.add(spec);
        h.allocate(client);
    }
    let third = h.add(dora);
    h.refuses(third, allocate(), 486, RejectReason::QuotaTenant);
    for _ in 0..3 {
        let client = h.client();
        h.allocate(client);
    }
}

// The limits of a static user are that user's, not those of another one with the name.
#[test]
fn limits_of_one_name_in_two_realms_count_apart() {
    let mut h = Harness::with(|settings| {
        two_realms(settings);
        // No tenant tells the two apart.
        settings.tenancies = Tenancies::new(tenancy(AT_B, Some(REALM_B), None));
        let all = [&mut settings.auth.users].into_iter().chain(settings.auth.realms.iter_mut().map(|of| &mut of.users));
        all.for_each(|users| users.get_mut("alice").unwrap().grant.allocations = Some(1));
    });
    for spec in [alice(), alice_of_b()] {
        let (first, second) = (h.add(spec.clone()), h.add(spec));
        h.allocate(first);
        h.refuses(second, allocate(), 486, RejectReason::QuotaCredential);
    }
    assert_eq!(h.allocations(), 2);
}

// A reload changes what is new, never a session.
#[test]
fn a_session_keeps_the_realm_and_the_tenant_it_began_with() {
    let mut h = harness();
    let client = h.add(alice_of_b());
    h.allocate(client);
    h.reconfigure(|settings| settings.tenancies = Tenancies::new(tenancy(AT_B, Some("new.example"), Some("new"))));
    assert_eq!(h.refresh(client, 600).code(), 0);
    let mut stale = h.signature(client);
    stale.nonce = Some(b"0123456789abcdef0123456789abcdef".to_vec());
    is_challenge(&h.ask_with(client, &stale, request(REFRESH)), 438, REALM_B);
    is_challenge(&h.ask_unsigned(client, request(REFRESH)), 401, REALM_B);
    assert_eq!(tenant_of(&h, client).as_deref(), Some("b"));
    // A new session gets the new one, in which there is no alice.
    let other = h.add(alice_of_b());
    is_challenge(&h.ask_unsigned(other, allocate()), 401, "new.example");
    let reply = h.ask(other, allocate());
    assert_eq!((reply.code(), h.rejects(RejectReason::UnknownUser)), (401, 1));
    // Neither does it matter that the realm has no listener and no user any more.
    h.reconfigure(|settings| {
        settings.tenancies = Tenancies::default();
        settings.auth.realms.clear();
    });
    assert_eq!(h.refresh(client, 600).code(), 0);
    is_challenge(&h.ask_unsigned(client, request(REFRESH)), 401, REALM_B);
}

#[test]
fn an_upgrade_carries_realms_and_an_older_release_may_end_their_sessions() {
    let mut h = harness();
    let (of_a, of_b) = (h.client(), h.add(alice_of_b()));
    h.allocate(of_a);
    h.allocate(of_b);
    h.hand_over();
    assert_eq!((h.refresh(of_a, 600).code(), h.refresh(of_b, 600).code()), (0, 0));
    is_challenge(&h.ask_unsigned(of_b, request(REFRESH)), 401, REALM_B);
    assert_eq!(h.session(of_b).unwrap().realm.as_deref(), Some(REALM_B));
    h.hand_over_early(1, |_| {});
    is_challenge(&h.ask_unsigned(of_b, request(REFRESH)), 401, REALM_B);
    h.close(&Selector::OtherRealms, EndReason::Kicked);
    assert!(h.is_alive(of_a) && !h.is_alive(of_b));
}

#[test]
fn ports_of_a_tenant_are_asked_for_by_its_part() {
    let part = PortPart { first: 50_000, last: 50_009 };
    let mut h = Harness::with(|settings| {
        two_realms(settings);
        settings.port_parts = PortParts::new([("b".into(), part)]);
    });
    let clients = [h.client(), h.add(alice_of_b()), h.add(alice().at(AT_C))];
    for client in clients {
        h.allocate(client);
    }
    let parts: Vec<Option<PortPart>> = h
        .opens
        .iter()
        .map(|open| match open {
            RelayRequest::Fresh { part, .. } | RelayRequest::Tcp { part, .. } => *part,
            RelayRequest::Reserved { .. } => panic!("fresh ones"),
        })
        .collect();
    assert_eq!(parts, [None, Some(part), None]);
}

// RFC 6062: who binds a connection belongs to the realm of the session too, by whichever listener the stream comes.
#[test]
fn a_stream_that_binds_a_connection_is_challenged_in_the_realm_of_the_session() {
    let mut h = Harness::with(|settings| {
        two_realms(settings);
        settings.tcp.is_on = true;
    });
    let client = h.add(alice_of_b().tcp());
    h.allocate_tcp(client);
    let connecting = h.connect(client, addr("81.2.69.142:8000"));
    h.connected(connecting, Ok(()));
    assert_eq!(h.inbox(client).len(), 1);
    let bind = || request(CONNECTION_BIND).connection(connecting.id.0);
    let data = h.add(alice().named("alice", LOOKING_GLASS).tcp());
    let challenge = h.ask_unsigned(data, bind());
    is_challenge(&challenge, 401, REALM_B);
    let mut signature = h.signature(data);
    signature.nonce = Some(b"0123456789abcdef0123456789abcdef".to_vec());
    is_challenge(&h.ask_with(data, &signature, bind()), 438, REALM_B);
    h.learn(data, &challenge);
    assert_eq!(h.ask(data, bind()).code(), 0);
    // A connection that there is not has no realm of its own.
    let other = h.add(alice().tcp());
    is_challenge(&h.ask_unsigned(other, request(CONNECTION_BIND).connection(!connecting.id.0)), 401, REALM);
}

// RFC 8016: who comes with a ticket belongs to the realm of the session, wherever that is.
#[test]
fn a_session_that_moves_keeps_its_realm_and_its_tenant() {
    // Another worker knows of the session when the request is signed, and the challenge that follows has its realm.
    let mut h = Harness::workers(1, |settings| {
        two_realms(settings);
        settings.mobility = true;
    });
    let client = h.add(alice_of_b());
    let reply = h.ask(client, for_ticket());
    let ticket = ticket_of(&reply);
    // By the listener of another realm.
    let moved = h.add(alice().named("alice", LOOKING_GLASS));
    let challenge = h.ask_unsigned(moved, come(&ticket));
    is_challenge(&challenge, 401, REALM_B);
    h.learn(moved, &challenge);
    assert_eq!(h.ask(moved, come(&ticket)).code(), 0);
    assert_eq!((h.allocations(), tenant_of(&h, client).as_deref()), (1, Some("b")));
}
