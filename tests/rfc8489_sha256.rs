//! The second half of the long-term credential mechanism: SHA-256, PASSWORD-ALGORITHMS, USERHASH and the nonce cookie
//! (RFC 8489 sections 9.2.4, 14.4, 14.6, 14.11, 14.12).

use test_support::harness::stun::{
    By, CREATE_PERMISSION, ERROR_CODE, Incoming, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, Modern, NONCE,
    PASSWORD_ALGORITHMS, REALM as REALM_TYPE, REFRESH, Signature, USERHASH, USERNAME, allocate, long_term_key, request,
    sha256_key, userhash,
};
use test_support::harness::{Client, Harness, REALM, START_UNIX, Spec, addr, alice, carol, holder_of};
use throughway::credentials::Secret;
use throughway::protocol::border::Selector;
use throughway::protocol::reason::EndReason;
use throughway::protocol::reject::RejectReason;
use throughway::protocol::settings::{NameForms, Settings, Sha256Offer, StaticKey, StaticUser};

const MD5: [u8; 4] = [0, 1, 0, 0];
const SHA256: [u8; 4] = [0, 2, 0, 0];
/// The offer: the preferred one first.
const OFFERED: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

fn harness(offer: Sha256Offer) -> Harness {
    let mut h = Harness::new();
    h.reconfigure(|settings| settings.auth.sha256 = offer);
    h
}

/// Everything of these by SHA-256.
fn modern(h: &mut Harness, client: Client, username: &str, password: &str) -> Signature {
    let nonce = h.nonce_of(client);
    Signature {
        username: Some(username.into()),
        realm: Some(REALM.into()),
        nonce: Some(nonce),
        modern: Some(Modern {
            algorithm: Some(SHA256.into()),
            algorithms: Some(OFFERED.into()),
            key: sha256_key(username, REALM, password).into(),
            by: vec![By::Sha256],
            ..Modern::default()
        }),
        ..Signature::default()
    }
}

fn with(signature: &Signature, change: impl FnOnce(&mut Modern)) -> Signature {
    let mut changed = signature.clone();
    change(changed.modern.as_mut().unwrap());
    changed
}

/// Without its name, but with the hash of it.
fn hidden(signature: &Signature) -> Signature {
    let hash = userhash(signature.username.as_deref().unwrap(), REALM);
    Signature { username: None, ..with(signature, |modern| modern.userhash = Some(hash.into())) }
}

/// Answered with this code, for this reason.
#[track_caller]
fn refused(h: &mut Harness, client: Client, signature: &Signature, code: u16, reason: RejectReason) -> Incoming {
    let before = h.rejects(reason);
    let reply = h.ask_with(client, signature, allocate());
    assert_eq!((reply.code(), h.rejects(reason)), (code, before + 1), "{}", reason.name());
    assert!(!reply.has(USERNAME) && !reply.has(USERHASH), "RFC 8489 section 9.2.4 wants neither in an answer");
    reply
}

fn tcp() -> Spec {
    Spec { tcp: true, ..alice() }
}

// ---- the offer ----

// [8489-9.2-1, 8489-9.2.4-6, -14, 8489-18.5.1-1]
#[test]
fn streams_are_offered_sha256_first_and_datagrams_keep_their_72_bytes() {
    let cases = [
        (Sha256Offer::Streams, false, 72),
        (Sha256Offer::Streams, true, 100),
        (Sha256Offer::Always, false, 100),
        (Sha256Offer::Always, true, 100),
        (Sha256Offer::Never, false, 72),
        (Sha256Offer::Never, true, 72),
    ];
    for (offer, tcp, bytes) in cases {
        let mut h = harness(offer);
        let client = h.add(Spec { tcp, ..alice() });
        let reply = h.ask_unsigned(client, allocate());
        assert_eq!((reply.code(), reply.bytes.len()), (401, bytes), "{offer:?} {tcp}");
        let cookie = reply.get(NONCE).unwrap().strip_prefix(b"obMatJos2");
        if bytes == 72 {
            assert_eq!(reply.types(), [ERROR_CODE, REALM_TYPE, NONCE]);
            assert_eq!(cookie, None);
        } else {
            assert_eq!(reply.types(), [ERROR_CODE, REALM_TYPE, NONCE, PASSWORD_ALGORITHMS]);
            assert_eq!(reply.get(PASSWORD_ALGORITHMS), Some(OFFERED.as_slice()));
            assert_eq!(&cookie.unwrap()[..4], b"gAAB", "password algorithms, but no anonymity: names of credentials");
        }
    }
}

// [8489-9.2.4-7]
#[test]
fn anonymity_is_offered_only_where_every_name_is_known() {
    let mut h = harness(Sha256Offer::Streams);
    h.reconfigure(|settings| settings.auth.secrets.clear());
    let client = h.add(tcp());
    let reply = h.ask_unsigned(client, allocate());
    assert_eq!(&reply.get(NONCE).unwrap()[9..13], b"wAAD");
    let signature = modern(&mut h, client, "alice", "wonderland");
    assert_eq!(h.ask_with(client, &hidden(&signature), allocate()).code(), 0);
}

// RFC 8489 §9.2.4: the offer comes with each 401 and 438, and with nothing else
// [8489-9.2.4-14, -22, -27]
#[test]
fn each_challenge_has_the_offer_and_no_other_answer_has() {
    let mut h = harness(Sha256Offer::Streams);
    let client = h.add(tcp());
    let good = modern(&mut h, client, "alice", "wonderland");
    let wrong = with(&good, |modern| modern.by = vec![By::Sha256Wrong]);
    let reply = refused(&mut h, client, &wrong, 401, RejectReason::BadIntegrity);
    assert!(reply.has(PASSWORD_ALGORITHMS) && !reply.is_signed());
    let foreign = Signature { nonce: Some(b"obMatJos2gAABAAAAAAAAAAAAAAAAAAAAAAAA".to_vec()), ..good.clone() };
    let reply = refused(&mut h, client, &foreign, 438, RejectReason::StaleNonce);
    assert!(reply.has(PASSWORD_ALGORITHMS) && !reply.is_signed());
    h.advance(3_700_000);
    let reply = refused(&mut h, client, &good, 438, RejectReason::StaleNonce);
    assert!(
        reply.has(PASSWORD_ALGORITHMS) && reply.is_signed_by_sha256_with(&sha256_key("alice", REALM, "wonderland"))
    );
    h.learn(client, &reply);
    let renewed = modern(&mut h, client, "alice", "wonderland");
    let reply = h.ask_with(client, &renewed, allocate());
    assert!(reply.code() == 0 && !reply.has(PASSWORD_ALGORITHMS) && !reply.has(NONCE));
    let reply = refused(
        &mut h,
        client,
        &with(&renewed, |modern| modern.algorithm = None),
        400,
        RejectReason::PasswordAlgorithms,
    );
    assert!(!reply.has(PASSWORD_ALGORITHMS) && !reply.has(NONCE) && !reply.has(REALM_TYPE) && !reply.is_signed());
}

// ---- who is let in, and how the answer is signed ----

// [8489-9.2.4-26, 8489-18.5.1-2]
#[test]
fn an_allocation_by_sha256_lives_its_whole_life_with_signed_answers() {
    for offer in [Sha256Offer::Streams, Sha256Offer::Always] {
        let username = format!("{}:bob", START_UNIX + 3600);
        let holder = holder_of(&username);
        for (name, password) in [("alice".to_owned(), "wonderland".to_owned()), (username, holder.password)] {
            let mut h = harness(offer);
            let client = h.add(Spec { tcp: true, ..alice().named(&name, &password) });
            let key = sha256_key(&name, REALM, &password);
            let signature = modern(&mut h, client, &name, &password);
            let peer = addr("8.8.8.8:1");
            for message in [allocate(), request(REFRESH), request(CREATE_PERMISSION).peer(peer)] {
                let reply = h.ask_with(client, &signature, message);
                assert_eq!(reply.code(), 0);
                assert!(reply.is_signed_by_sha256_with(&key) && !reply.has(MESSAGE_INTEGRITY));
            }
            let reply = h.ask_with(client, &signature, request(REFRESH).with(0x7ABC, b"?"));
            assert!(reply.code() == 420 && reply.is_signed_by_sha256_with(&key), "errors too");
            let reply = h.ask_with(client, &signature, request(REFRESH).lifetime(0));
            assert!(reply.code() == 0 && reply.is_signed_by_sha256_with(&key));
            assert_eq!(h.allocations(), 0);
        }
    }
}

// RFC 8489 §9.2.4: without either attribute the request counts as one by MD5, whatever the nonce offers
// [8489-9.2.4-25]
#[test]
fn a_client_of_rfc_5389_is_let_in_with_a_nonce_that_offers_more() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let reply = h.ask(client, allocate());
    assert_eq!(reply.code(), 0);
    assert!(reply.is_signed_with(&long_term_key("alice", REALM, "wonderland")) && !reply.has(MESSAGE_INTEGRITY_SHA256));
    // And its MAC may be the longer one: the answer has what the missing attributes call for.
    let second = h.client();
    let by_md5 = long_term_key("alice", REALM, "wonderland");
    let signature = with(&modern(&mut h, second, "alice", "wonderland"), |modern| {
        (modern.algorithm, modern.algorithms, modern.key) = (None, None, by_md5.into());
    });
    let reply = h.ask_with(second, &signature, allocate());
    assert!(reply.code() == 0 && reply.is_signed_with(&by_md5) && !reply.has(MESSAGE_INTEGRITY_SHA256));
}

#[test]
fn md5_may_be_chosen_and_is_answered_by_sha256_too() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let key = long_term_key("alice", REALM, "wonderland");
    for by in [By::Sha256, By::Sha1] {
        let signature = with(&modern(&mut h, client, "alice", "wonderland"), |modern| {
            (modern.algorithm, modern.key, modern.by) = (Some(MD5.into()), key.into(), vec![by]);
        });
        let reply = h.ask_with(client, &signature, allocate());
        // A client that proves it by MESSAGE-INTEGRITY, which RFC 8489 section 9.2.5 does not want, finds that as well.
        let has = (reply.is_signed_by_sha256_with(&key), reply.is_signed_with(&key));
        assert_eq!(has, (true, matches!(by, By::Sha1)), "{by:?}");
        assert_eq!(h.ask_with(client, &signature, request(REFRESH).lifetime(0)).code(), 0);
    }
}

// RFC 8489 §9.2.4: of two, MESSAGE-INTEGRITY-SHA256 counts
// [8489-9.2.4-16]
#[test]
fn of_both_integrities_the_stronger_one_counts() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let signature = modern(&mut h, client, "alice", "wonderland");
    let cases: [(&[By], u16); 5] = [
        (&[By::Sha1, By::Sha256], 0),
        (&[By::Sha1Wrong, By::Sha256], 0),
        (&[By::Sha1, By::Sha256Wrong], 401),
        // After it nothing but FINGERPRINT counts.
        (&[By::Sha256, By::Sha1Wrong], 0),
        (&[By::Sha256Wrong, By::Sha1], 401),
    ];
    for (by, code) in cases {
        let reply = h.ask_with(client, &with(&signature, |modern| modern.by = by.into()), request(REFRESH));
        assert_eq!(reply.code(), if code == 0 { 437 } else { code }, "{by:?}");
    }
}

// RFC 8489 §14.6 lets a usage allow it; TURN does not
// [8489-14.6-1]
#[test]
fn a_mac_of_another_length_than_32_bytes_is_400() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let signature = modern(&mut h, client, "alice", "wonderland");
    for len in [0, 1, 16, 20, 28, 31, 33, 36, 64] {
        let cut = with(&signature, |modern| modern.by = vec![By::Sha256Cut(len)]);
        let reply = refused(&mut h, client, &cut, 400, RejectReason::BadAttribute);
        assert!(!reply.has(NONCE) && !reply.is_signed(), "{len}");
        // A good MESSAGE-INTEGRITY before it does not help.
        let beside = with(&signature, |modern| modern.by = vec![By::Sha1, By::Sha256Cut(len)]);
        refused(&mut h, client, &beside, 400, RejectReason::BadAttribute);
    }
    let exact = with(&signature, |modern| modern.by = vec![By::Sha256Cut(32)]);
    assert_eq!(h.ask_with(client, &exact, allocate()).code(), 0);
}

// ---- bid-down: sections 9.2.1 and 9.2.4 ----

// [8489-9.2.4-11, 8489-14.12-1]
#[test]
fn algorithms_that_were_not_offered_with_this_nonce_are_400() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let signature = modern(&mut h, client, "alice", "wonderland");
    let all = |bytes: &[u8]| Some(bytes.to_vec());
    for (one, list) in [
        (None, all(&OFFERED)),
        (all(&SHA256), None),
        (all(&MD5), None),
        // Somebody in between took one out, put one in or turned them round.
        (all(&MD5), all(&MD5)),
        (all(&SHA256), all(&SHA256)),
        (all(&MD5), all(&[0, 1, 0, 0, 0, 2, 0, 0])),
        (all(&SHA256), all(&[OFFERED.as_slice(), &[0, 3, 0, 0]].concat())),
        (all(&SHA256), all(&OFFERED[..7])),
        (all(&SHA256), all(&[])),
        // Not one of them, or with parameters that it does not have.
        (all(&[0, 3, 0, 0]), all(&OFFERED)),
        (all(&[0, 0, 0, 0]), all(&OFFERED)),
        (all(&[0, 2, 0, 4, 1, 2, 3, 4]), all(&OFFERED)),
        (all(&[0, 2]), all(&OFFERED)),
        (all(&[]), all(&OFFERED)),
    ] {
        let text = format!("{one:?} {list:?}");
        let changed = with(&signature, |modern| (modern.algorithm, modern.algorithms) = (one, list));
        let reply = refused(&mut h, client, &changed, 400, RejectReason::PasswordAlgorithms);
        assert!(!reply.is_signed() && !reply.has(NONCE), "{text}");
        assert_eq!(h.allocations(), 0);
    }
}

#[test]
fn a_nonce_whose_cookie_was_taken_away_or_changed_is_stale() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let signature = modern(&mut h, client, "alice", "wonderland");
    let nonce = signature.nonce.clone().unwrap();
    let plain = nonce[13..].to_vec();
    let more = [b"obMatJos2wAAD".as_slice(), &plain].concat();
    for changed in [plain, more] {
        let by_sha256 = Signature { nonce: Some(changed.clone()), ..signature.clone() };
        refused(&mut h, client, &by_sha256, 438, RejectReason::StaleNonce);
        let by_md5 = Signature { nonce: Some(changed), ..h.signature(client) };
        refused(&mut h, client, &by_md5, 438, RejectReason::StaleNonce);
    }
    // The other way round: SHA-256 with a nonce that came without an offer.
    let mut h = harness(Sha256Offer::Never);
    let client = h.client();
    let signature = modern(&mut h, client, "alice", "wonderland");
    refused(&mut h, client, &signature, 400, RejectReason::PasswordAlgorithms);
}

// A reload changes what the next challenge offers. Nonces that are out keep their own offer.
#[test]
fn nonces_keep_the_offer_that_they_came_with() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let signature = modern(&mut h, client, "alice", "wonderland");
    h.reconfigure(|settings| settings.auth.sha256 = Sha256Offer::Never);
    assert_eq!(h.ask_with(client, &signature, allocate()).code(), 0);
    h.advance(3_700_000);
    let reply = h.ask_with(client, &signature, request(REFRESH));
    assert_eq!(reply.code(), 438);
    assert!(!reply.has(PASSWORD_ALGORITHMS));
}

// ---- one call, both algorithms ----

#[test]
fn the_owner_may_change_the_algorithm_and_another_user_may_not() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let modern_one = modern(&mut h, client, "alice", "wonderland");
    assert_eq!(h.ask(client, allocate()).code(), 0);
    assert_eq!(h.ask_with(client, &modern_one, request(REFRESH)).code(), 0);
    assert_eq!(h.ask(client, request(REFRESH)).code(), 0);
    let other = modern(&mut h, client, "carol", "christmas");
    // carol's password is not known, only her MD5 key.
    assert_eq!(h.ask_with(client, &other, request(REFRESH)).code(), 401);
    let username = format!("{}:bob", START_UNIX + 3600);
    let holder = holder_of(&username);
    let other = modern(&mut h, client, &username, &holder.password);
    let reply = h.ask_with(client, &other, request(REFRESH));
    assert!(reply.code() == 441 && reply.is_signed_by_sha256_with(&sha256_key(&username, REALM, &holder.password)));
}

#[test]
fn keys_that_were_made_elsewhere_serve_both() {
    let mut h = harness(Sha256Offer::Always);
    h.reconfigure(|settings| {
        let [md5, sha256] =
            [long_term_key("carol", REALM, "christmas").to_vec(), sha256_key("carol", REALM, "christmas").into()];
        settings.auth.users.insert("carol".into(), StaticUser::keys(Secret::new(md5), Some(Secret::new(sha256))));
    });
    let client = h.add(carol());
    let signature = modern(&mut h, client, "carol", "christmas");
    assert_eq!(h.ask_with(client, &signature, allocate()).code(), 0);
    assert_eq!(h.ask(client, request(REFRESH)).code(), 0, "the same user by the other key");
    let wrong = modern(&mut h, client, "carol", "easter");
    assert_eq!(h.ask_with(client, &wrong, request(REFRESH)).code(), 401);
}

// ---- USERHASH ----

// [8489-9.2.4-12]
#[test]
fn a_hidden_name_is_found_among_static_users_and_refused_for_others() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let signature = hidden(&modern(&mut h, client, "alice", "wonderland"));
    let reply = h.ask_with(client, &signature, allocate());
    assert_eq!(reply.code(), 0);
    assert_eq!(h.ask_with(client, &signature, request(REFRESH)).code(), 0);
    assert_eq!(&*h.session(client).unwrap().username, "alice", "records have the name");
    // The hash of a time-limited name can't be undone.
    let username = format!("{}:bob", START_UNIX + 3600);
    let holder = holder_of(&username);
    let other = h.add(holder.clone());
    let unknown = hidden(&modern(&mut h, other, &username, &holder.password));
    let reply = refused(&mut h, other, &unknown, 401, RejectReason::UnknownUser);
    assert!(!reply.is_signed());
    // But once the client has an allocation, its owner is known.
    let by_name = modern(&mut h, other, &username, &holder.password);
    assert_eq!(h.ask_with(other, &by_name, allocate()).code(), 0);
    assert_eq!(h.ask_with(other, &hidden(&by_name), request(REFRESH)).code(), 0);
}

#[test]
fn a_hidden_name_of_another_length_beside_a_name_or_of_another_realm_is_refused() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let named = modern(&mut h, client, "alice", "wonderland");
    let anonymous = hidden(&named);
    for len in [0, 1, 16, 31, 33, 64] {
        let cut = with(&anonymous, |modern| modern.userhash.as_mut().unwrap().resize(len, 0));
        refused(&mut h, client, &cut, 400, RejectReason::BadAttribute);
    }
    let both = Signature { username: Some("alice".into()), ..anonymous.clone() };
    refused(&mut h, client, &both, 400, RejectReason::Combination);
    let neither = with(&anonymous, |modern| modern.userhash = None);
    refused(&mut h, client, &neither, 400, RejectReason::IncompleteCredentials);
    let elsewhere = with(&anonymous, |modern| modern.userhash = Some(userhash("alice", "elsewhere").into()));
    refused(&mut h, client, &elsewhere, 401, RejectReason::UnknownUser);
    let wrong = with(&anonymous, |modern| modern.by = vec![By::Sha256Wrong]);
    refused(&mut h, client, &wrong, 401, RejectReason::BadIntegrity);
    assert_eq!(h.ask_with(client, &anonymous, allocate()).code(), 0);
}

// The hash is not a proof: of an unknown name and of a known one with a wrong key a stranger hears the same.
#[test]
fn a_guessed_hash_learns_nothing() {
    let mut h = harness(Sha256Offer::Always);
    let client = h.client();
    let known = with(&hidden(&modern(&mut h, client, "alice", "x")), |_| {});
    let unknown = hidden(&modern(&mut h, client, "mallory", "x"));
    let answers = [&known, &unknown].map(|signature| {
        let reply = h.ask_with(client, signature, allocate());
        (reply.code(), reply.types(), reply.bytes.len())
    });
    assert_eq!(answers[0], answers[1]);
}

// ---- OpaqueString ----

/// What stands for the profile here: decomposed letters and wide spaces go.
fn opaque(text: &str) -> Option<Box<str>> {
    Some(text.replace("e\u{301}", "\u{e9}").replace('\u{3000}', " ").into())
}

// [8489-9.2.2-1, 8489-14.3-3, 8489-14.4-1, 8489-14.9-2]
#[test]
fn names_realms_and_passwords_count_as_they_are_and_as_they_are_compared() {
    const NAME: [&str; 2] = ["rene\u{301}", "ren\u{e9}"];
    const REALMS: [&str; 2] = ["cafe\u{301}", "caf\u{e9}"];
    const PASSWORD: [&str; 2] = ["pass\u{3000}word", "pass word"];
    let mut h = harness(Sha256Offer::Always);
    h.reconfigure(|settings: &mut Settings| {
        settings.realm = REALMS[0].into();
        let [given, compared] = PASSWORD.map(|text| Secret::new(text.as_bytes()));
        let key = StaticKey::Password { given, opaque: Some(compared) };
        settings.auth.users.insert(NAME[0].into(), StaticUser { key, ..StaticUser::password(Secret::new(*b"x")) });
        settings.auth.forms = NameForms::new(REALMS[0], std::iter::once(NAME[0]), opaque);
    });
    let nonce = |h: &mut Harness, client| h.ask_unsigned(client, allocate()).get(NONCE).unwrap().to_vec();
    // As given and as compared, for each of the name, the realm that is sent, and the hash or the name.
    for (form, name) in [(0, NAME[0]), (1, NAME[1]), (1, NAME[0])] {
        for hide in [false, true] {
            let client = h.client();
            let nonce = Some(nonce(&mut h, client));
            let signature = Signature {
                username: (!hide).then(|| name.into()),
                realm: Some(REALMS[0].into()),
                nonce,
                modern: Some(Modern {
                    userhash: hide.then(|| userhash(name, REALMS[form]).into()),
                    algorithm: Some(SHA256.into()),
                    algorithms: Some(OFFERED.into()),
                    key: sha256_key(name, REALMS[form], PASSWORD[form]).into(),
                    by: vec![By::Sha256],
                }),
                ..Signature::default()
            };
            let reply = h.ask_with(client, &signature, allocate());
            assert_eq!(reply.code(), 0, "{name} {form} {hide}");
            assert_eq!(&*h.session(client).unwrap().identity, NAME[0], "one user, whatever the form");
        }
    }
}

// ---- another process ----

#[test]
fn an_upgrade_carries_sha256_keys_and_an_older_release_may_end_their_sessions() {
    let mut h = harness(Sha256Offer::Always);
    let (client, plain) = (h.client(), h.client());
    let signature = modern(&mut h, client, "alice", "wonderland");
    assert_eq!(h.ask_with(client, &signature, allocate()).code(), 0);
    assert_eq!(h.ask(plain, allocate()).code(), 0);
    h.hand_over();
    assert_eq!(h.ask_with(client, &signature, request(REFRESH)).code(), 0);
    h.close(&Selector::Sha256Keys, EndReason::Kicked);
    assert_eq!(h.allocations(), 1);
    assert_eq!(h.ask(plain, request(REFRESH)).code(), 0);
}
