//! The long-term credential mechanism (RFC 8489 section 9.2.4) and time-limited credentials.

use test_support::harness;
use test_support::harness::stun::{
    ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, ERROR_CODE, Incoming, MESSAGE_INTEGRITY, NONCE, REALM as REALM_TYPE,
    REFRESH, SOFTWARE, Signature, USERNAME, allocate, long_term_key, request,
};
use test_support::harness::{
    Harness, REALM, START_UNIX, addr, alice, carol, holder_of, secret, time_limited_password, user,
};
use throughway::credentials::Algorithm;
use throughway::credentials::claims::Claims;
use throughway::protocol::reject::RejectReason;

fn is_challenge(reply: &Incoming, code: u16) {
    assert_eq!(reply.code(), code);
    assert_eq!(reply.get(REALM_TYPE), Some(REALM.as_bytes()));
    assert!(reply.has(NONCE));
    assert!(!reply.has(USERNAME), "the answer should not carry USERNAME");
}

/// The client's credentials are refused with 401, for this reason.
#[track_caller]
fn refused_as(h: &mut Harness, spec: harness::Spec, reason: RejectReason) {
    let client = h.add(spec);
    let before = h.rejects(reason);
    let reply = h.ask(client, allocate());
    is_challenge(&reply, 401);
    assert!(!reply.is_signed());
    assert_eq!(h.rejects(reason), before + 1, "{}", reason.name());
    assert_eq!(h.allocations(), 0);
}

// RFC 8489 §9.2.4 (1) [8489-9.2.4-2, -3, -4, -8]
#[test]
fn a_request_without_integrity_is_challenged_with_realm_and_nonce_in_72_bytes() {
    let mut h = Harness::new();
    let client = h.client();
    let reply = h.ask_unsigned(client, allocate());
    is_challenge(&reply, 401);
    assert_eq!(reply.types(), [ERROR_CODE, REALM_TYPE, NONCE], "no SOFTWARE, nothing that amplifies");
    assert_eq!(reply.get(ERROR_CODE).expect("code").len(), 4, "no reason phrase");
    assert_eq!(reply.bytes.len(), 72);
    assert_eq!(h.refused, [], "an ordinary first request is no event");
    assert_eq!(h.rejects(RejectReason::Challenge), 1);
}

// RFC 8489 §9.2.4 (1): every method of TURN is authenticated (RFC 8656 §5) [8656-5-1, 8656-7.2-1, -2]
#[test]
fn every_turn_request_is_challenged() {
    let mut h = Harness::new();
    let client = h.client();
    for method in [ALLOCATE, REFRESH, CREATE_PERMISSION, CHANNEL_BIND] {
        is_challenge(&h.ask_unsigned(client, request(method)), 401);
    }
}

// RFC 8489 §9.2.4: nothing unsigned has any effect [8656-5-1]
#[test]
fn an_unsigned_request_changes_nothing() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    let peer = addr("8.8.8.8:1");
    assert_eq!(h.ask_unsigned(client, request(REFRESH).lifetime(0)).code(), 401);
    assert_eq!(h.ask_unsigned(client, request(CREATE_PERMISSION).peer(peer)).code(), 401);
    assert_eq!(h.ask_unsigned(client, harness::bind(0x4000, peer)).code(), 401);
    assert!(h.is_alive(client));
    assert_eq!(
        h.from_peer(client, peer, b"x"),
        harness::Went::Dropped(throughway::protocol::reason::DropReason::PeerNotPermitted)
    );
}

// RFC 8489 §9.2.4 (2) [8489-9.2.4-9, -10]
#[test]
fn integrity_without_username_realm_or_nonce_is_400_without_a_challenge() {
    let mut h = Harness::new();
    let client = h.client();
    let full = h.signature(client);
    for signature in [
        Signature { username: None, ..full.clone() },
        Signature { realm: None, ..full.clone() },
        Signature { nonce: None, ..full },
    ] {
        let reply = h.ask_with(client, &signature, allocate());
        assert_eq!(reply.code(), 400);
        assert_eq!(reply.types(), [ERROR_CODE], "no USERNAME, REALM or NONCE, and no key to sign with");
    }
    assert_eq!(h.rejects(RejectReason::IncompleteCredentials), 3);
    assert_eq!(h.allocations(), 0);
}

// RFC 8489 §9.2.4 (3): USERNAME that is not valid within the realm [8489-9.2.4-12, -13, -15]
#[test]
fn an_unknown_user_is_401() {
    let mut h = Harness::new();
    refused_as(&mut h, alice().named("mallory", "wonderland"), RejectReason::UnknownUser);
    refused_as(&mut h, alice().named("", ""), RejectReason::UnknownUser);
    refused_as(&mut h, alice().named("Alice", "wonderland"), RejectReason::UnknownUser);
}

// RFC 8489 §14.3: fewer than 509 bytes [8489-14.3-1, -2]
#[test]
fn a_username_beyond_508_bytes_is_401() {
    let mut h = Harness::new();
    let id = "x".repeat(508 - 11);
    let longest = format!("{}:{id}", START_UNIX + 10);
    let client = h.add(holder_of(&longest));
    h.allocate(client);
    h.refresh(client, 0);
    refused_as(&mut h, holder_of(&format!("{longest}x")), RejectReason::UnknownUser);
    assert_eq!(h.refused.last().unwrap(), &(RejectReason::UnknownUser, None), "what is told of it is bounded");
}

// RFC 8489 §14.3: USERNAME is UTF-8 [8489-14.3-1]
#[test]
fn a_username_that_is_not_utf8_is_401() {
    let mut h = Harness::new();
    let client = h.client();
    let signature = h.signature(client);
    let mut bytes = allocate().bytes([3; 12], Some(&signature));
    let at = bytes.windows(5).position(|window| window == b"alice").expect("USERNAME");
    bytes[at] = 0xFF;
    let replies = h.tell(client, &bytes);
    is_challenge(&replies[0], 401);
    assert_eq!(h.rejects(RejectReason::UnknownUser), 1);
}

// RFC 8489 §9.2.4 (4): MESSAGE-INTEGRITY does not fit [8489-9.2.4-17, -18, -19]
#[test]
fn a_wrong_password_is_401() {
    let mut h = Harness::new();
    refused_as(&mut h, alice().named("alice", "Wonderland"), RejectReason::BadIntegrity);
    refused_as(&mut h, user("bob").named(&format!("{}:bob", START_UNIX + 60), "nonsense"), RejectReason::BadIntegrity);
}

// RFC 8489 §9.2.2: a key made elsewhere serves as the password does [8489-9.2.2-1]
#[test]
fn a_user_known_by_key_alone_is_accepted() {
    let mut h = Harness::new();
    let client = h.add(carol());
    h.allocate(client);
    h.refresh(client, 0);
    refused_as(&mut h, alice().named("carol", "easter"), RejectReason::BadIntegrity);
}

// RFC 8489 §9.2.4: the key covers the realm, which must be ours
#[test]
fn another_realm_is_401_and_answered_with_ours() {
    let mut h = Harness::new();
    let client = h.client();
    let full = h.signature(client);
    let key = long_term_key("alice", "elsewhere", "wonderland");
    let reply = h.ask_with(client, &Signature { realm: Some("elsewhere".into()), key, ..full.clone() }, allocate());
    is_challenge(&reply, 401);
    let reply = h.ask_with(client, &Signature { realm: Some("elsewhere".into()), ..full }, allocate());
    is_challenge(&reply, 401);
    assert_eq!(h.rejects(RejectReason::WrongRealm), 2);
}

// RFC 8489 §14.5: 20 bytes [8489-9.2.4-17]
#[test]
fn a_message_integrity_of_another_length_verifies_nothing() {
    let mut h = Harness::new();
    let client = h.client();
    let nonce = h.nonce_of(client);
    for length in [0, 4, 16, 19, 21, 32] {
        let message = allocate()
            .with(USERNAME, b"alice")
            .with(REALM_TYPE, REALM.as_bytes())
            .with(NONCE, &nonce)
            .with(MESSAGE_INTEGRITY, &vec![0; length]);
        is_challenge(&h.ask_unsigned(client, message), 401);
    }
    assert_eq!(h.allocations(), 0);
}

// RFC 8489 §14.5: every byte before MESSAGE-INTEGRITY is covered [8489-9.2.4-17, 8489-14.5-1]
#[test]
fn a_request_changed_on_its_way_is_401() {
    let mut h = Harness::new();
    let client = h.client();
    let good = h.signed(client, &allocate().lifetime(777));
    let covered = good.len() - 24;
    for at in 8..covered {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        for reply in h.tell(client, &bytes) {
            assert_ne!(reply.code(), 0, "byte {at}");
        }
    }
    assert_eq!(h.allocations(), 0);
    let replies = h.tell(client, &good);
    assert_eq!(replies[0].code(), 0, "unchanged it passes");
}

// RFC 8489 §9.2.4 (5) [8489-9.2.4-20, -21, -23, -24, 8656-5-4]
#[test]
fn a_nonce_beyond_its_lifetime_is_438_with_realm_and_a_fresh_nonce_that_works() {
    let mut h = Harness::new();
    let client = h.client();
    h.nonce_of(client);
    h.advance(3600);
    assert_eq!(h.ask(client, request(REFRESH)).code(), 437, "still good in its last second");
    h.advance(1);
    let reply = h.refuses(client, allocate(), 438, RejectReason::StaleNonce);
    is_challenge(&reply, 438);
    h.learn(client, &reply);
    h.allocate(client);
}

// RFC 8489 §9.2.4 (5): a live allocation is not spared, nor ended by it
#[test]
fn a_stale_nonce_on_a_live_allocation_is_438_and_the_refresh_succeeds_with_the_new_one() {
    let mut h = Harness::with(|settings| settings.auth.nonce_lifetime = 60);
    let client = h.client();
    h.allocate(client);
    h.advance(61);
    let reply = h.refresh(client, 600);
    is_challenge(&reply, 438);
    assert!(h.is_alive(client));
    h.learn(client, &reply);
    assert_eq!(h.refresh(client, 600).code(), 0);
}

// RFC 8489 §9.2.4: a nonce is good for the client it was made for [8489-9.2.4-5]
#[test]
fn a_nonce_of_another_client_is_438() {
    let mut h = Harness::new();
    let (one, other) = (h.client(), h.client());
    let nonce = h.nonce_of(one);
    let signature = Signature { nonce: Some(nonce), ..h.signature(other) };
    let reply = h.ask_with(other, &signature, allocate());
    is_challenge(&reply, 438);
    assert_eq!(h.allocations(), 0);
}

// RFC 8489 §9.2.4: transport and port make another client too [8489-9.2.4-5]
#[test]
fn a_nonce_of_another_port_or_transport_is_438() {
    let mut h = Harness::new();
    let udp = h.add(alice().from("11.1.1.1:4000"));
    let port = h.add(alice().from("11.1.1.1:4001"));
    let tcp = h.add(alice().from("11.1.1.1:4000").tcp());
    let nonce = h.nonce_of(udp);
    for client in [port, tcp] {
        let signature = Signature { nonce: Some(nonce.clone()), ..h.signature(client) };
        assert_eq!(h.ask_with(client, &signature, allocate()).code(), 438);
    }
}

// Made-up nonces are stale, whatever their length.
#[test]
fn a_forged_nonce_is_438() {
    let mut h = Harness::new();
    let client = h.client();
    let good = h.nonce_of(client);
    let mut bent = good.clone();
    bent[5] = if bent[5] == b'A' { b'B' } else { b'A' };
    for nonce in [vec![], b"x".to_vec(), bent, [good, b"x".to_vec()].concat(), vec![0xFF; 24], vec![b'A'; 700]] {
        let signature = Signature { nonce: Some(nonce), ..h.signature(client) };
        assert_eq!(h.ask_with(client, &signature, allocate()).code(), 438);
    }
}

// After a restart nonces are stale (438), never 401: the client keeps its credentials.
#[test]
fn a_nonce_from_before_a_restart_is_438() {
    let mut h = Harness::new();
    let client = h.client();
    h.nonce_of(client);
    h.restart();
    let reply = h.refuses(client, allocate(), 438, RejectReason::StaleNonce);
    h.learn(client, &reply);
    h.allocate(client);
}

// RFC 8489 §9.2.4: (3) and (4) come before (5), so a wrong key learns nothing from the nonce
#[test]
fn a_wrong_key_with_a_stale_nonce_is_401() {
    let mut h = Harness::with(|settings| settings.auth.nonce_lifetime = 60);
    let client = h.client();
    let stale = h.signature(client);
    h.advance(61);
    let wrong = Signature { key: [1; 16], ..stale.clone() };
    is_challenge(&h.ask_with(client, &wrong, allocate()), 401);
    let stranger = Signature { username: Some("mallory".into()), ..stale.clone() };
    is_challenge(&h.ask_with(client, &stranger, allocate()), 401);
    let reply = h.ask_with(client, &stale, allocate());
    is_challenge(&reply, 438);
    assert!(reply.is_signed_with(&h.key_of(client)));
}

// RFC 8489 §6.3.1: unknown attributes are looked at once the request is known to be genuine
// [8489-6.3-4, -6, 8489-6.3.1-1, 8489-6.3.1.1-4]
#[test]
fn unknown_required_attributes_are_420_signed_after_authentication_and_a_challenge_before() {
    let mut h = Harness::new();
    let client = h.client();
    let odd = allocate().with(0x7ABC, b"?").with(0x0030, b"!!");
    is_challenge(&h.ask_unsigned(client, odd.clone()), 401);
    let reply = h.refuses(client, odd, 420, RejectReason::UnknownAttributes);
    assert_eq!(reply.unknown(), [0x7ABC, 0x0030]);
    assert!(!reply.has(NONCE) && !reply.has(REALM_TYPE));
    assert_eq!(h.allocations(), 0);
    let reply = h.ask(client, allocate().with(0x8ABC, b"?").with(SOFTWARE, b"tester"));
    assert_eq!(reply.code(), 0, "comprehension-optional ones are ignored");
}

// RFC 8489 §14.5: only MESSAGE-INTEGRITY-SHA256 and FINGERPRINT count after MESSAGE-INTEGRITY [8489-9-1]
#[test]
fn attributes_after_message_integrity_are_ignored() {
    let mut h = Harness::new();
    let client = h.client();
    let late = request(ALLOCATE).after_integrity(harness::stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    h.refuses(client, late, 400, RejectReason::MissingAttribute);
    let reply = h.ask(client, allocate().after_integrity(0x7ABC, b"?").after_integrity(harness::stun::LIFETIME, &[1]));
    assert_eq!((reply.code(), reply.lifetime()), (0, 600));
    let peer = addr("8.8.8.8:1");
    let injected = request(CREATE_PERMISSION).peer(peer).peer_after_integrity(addr("8.8.4.4:1"));
    assert_eq!(h.ask(client, injected).code(), 0);
    assert_eq!(h.from_peer(client, peer, b"x").data_indication(), (peer, b"x".to_vec()));
    let dropped = h.from_peer(client, addr("8.8.4.4:1"), b"x");
    assert_eq!(dropped, harness::Went::Dropped(throughway::protocol::reason::DropReason::PeerNotPermitted));
}

// RFC 8489 §14: the first occurrence counts [8489-14-6]
#[test]
fn the_first_of_two_equal_attributes_counts() {
    let mut h = Harness::new();
    let client = h.client();
    let reply = h.ask(client, allocate().lifetime(900).lifetime(1200));
    assert_eq!(reply.lifetime(), 900);
}

// ---- time-limited credentials: every row that the decision decides ----

#[test]
fn a_credential_of_the_form_expiry_and_user_id_is_accepted_and_counts_for_the_user_id() {
    let future = START_UNIX + 3600;
    for (username, identity) in [
        (format!("{future}:alice"), "alice".to_owned()),
        (format!("{future}:a:b:c"), "a:b:c".to_owned()),
        (format!("{future}:@zoë:example.org"), "@zoë:example.org".to_owned()),
        (format!("{future}"), format!("{future}")),
        (format!("{future}:"), format!("{future}:")),
        (format!("0{future}:bob"), "bob".to_owned()),
    ] {
        let mut h = Harness::new();
        let client = h.add(holder_of(&username));
        h.allocate(client);
        let session = h.session(client).expect("a session");
        assert_eq!((&*session.username, &*session.identity), (&*username, &*identity));
        assert_eq!(session.secret.as_deref(), Some("main"));
    }
}

#[test]
fn other_forms_of_username_are_unknown_users() {
    let mut h = Harness::new();
    let (future, past) = (START_UNIX + 3600, START_UNIX - 3600);
    for username in [
        format!("alice:{future}"),
        format!("alice:{past}"),
        "bob".into(),
        format!("{future}x:alice"),
        format!("+{future}:alice"),
        format!("-{future}:alice"),
        format!(" {future}:alice"),
        ":alice".into(),
        "123456789012:alice".into(),
        "99999999999999999999999999:alice".into(),
    ] {
        refused_as(&mut h, holder_of(&username), RejectReason::UnknownUser);
    }
}

#[test]
fn an_expired_credential_is_refused_after_thirty_seconds_of_skew() {
    let mut h = Harness::new();
    for ago in [31, 3600, START_UNIX] {
        refused_as(&mut h, holder_of(&format!("{}:alice", START_UNIX - ago)), RejectReason::Expired);
        refused_as(&mut h, holder_of(&format!("{}", START_UNIX - ago)), RejectReason::Expired);
    }
    for ago in [30, 1, 0] {
        let client = h.add(holder_of(&format!("{}:alice", START_UNIX - ago)));
        h.allocate(client);
    }
}

#[test]
fn a_credential_further_ahead_than_max_ttl_is_refused() {
    let mut h = Harness::new();
    let latest = START_UNIX + 48 * 3600 + 30;
    for expiry in [latest + 1, START_UNIX + 10 * 365 * 86_400, 99_999_999_999] {
        refused_as(&mut h, holder_of(&format!("{expiry}:alice")), RejectReason::TooFarAhead);
    }
    let client = h.add(holder_of(&format!("{latest}:alice")));
    h.allocate(client);
}

#[test]
fn the_same_credential_is_refused_once_its_time_is_over() {
    let mut h = Harness::new();
    let credential = holder_of(&format!("{}:bob", START_UNIX + 100));
    let client = h.add(credential.clone());
    h.allocate(client);
    h.refresh(client, 0);
    h.advance(130);
    h.allocate(client);
    h.refresh(client, 0);
    h.advance(1);
    refused_as(&mut h, credential, RejectReason::Expired);
}

#[test]
fn a_static_user_is_looked_up_first_by_exact_name() {
    let name = format!("{}:dave", START_UNIX - 999);
    let mut h = Harness::with(|settings| {
        let password = throughway::credentials::Secret::new(*b"static");
        let user = throughway::protocol::settings::StaticUser::password(password);
        settings.auth.users.insert(name.clone().into(), user);
    });
    let client = h.add(alice().named(&name, "static"));
    h.allocate(client);
    assert_eq!(h.session(client).expect("a session").secret, None);
    h.refresh(client, 0);
    refused_as(&mut h, alice().named(&name, &time_limited_password(&name)), RejectReason::BadIntegrity);
}

#[test]
fn every_secret_is_tried_and_the_session_names_the_one_that_fits() {
    let mut h = Harness::with(|settings| {
        settings.auth.secrets =
            vec![secret("new", "south", Algorithm::Sha256), secret("old", harness::SECRET, Algorithm::Sha1)];
    });
    let client = h.add(user("bob"));
    h.allocate(client);
    assert_eq!(h.session(client).expect("a session").secret.as_deref(), Some("old"));
    let minted =
        throughway::credentials::mint(&h.settings.auth.secrets[0], START_UNIX, "bob", 60, &Claims::default()).unwrap();
    let client = h.add(alice().named(&minted.username, &minted.password));
    h.allocate(client);
    assert_eq!(h.session(client).expect("a session").secret.as_deref(), Some("new"));
}

#[test]
fn without_a_secret_no_time_limited_credential_is_accepted() {
    let mut h = Harness::with(|settings| settings.auth.secrets.clear());
    refused_as(&mut h, user("bob"), RejectReason::UnknownUser);
}

#[test]
fn without_users_and_secrets_nobody_gets_in() {
    let mut h = Harness::with(|settings| {
        settings.auth.secrets.clear();
        settings.auth.users.clear();
    });
    refused_as(&mut h, alice(), RejectReason::UnknownUser);
    refused_as(&mut h, alice().named("", ""), RejectReason::UnknownUser);
}
