//! What an operator does to live sessions: kick and revoke.

use test_support::harness;
use test_support::harness::stun::{REFRESH, allocate, request};
use test_support::harness::{Harness, START_UNIX, Went, addr, alice, carol, user};
use throughway::protocol::border::Selector;
use throughway::protocol::reason::{DropReason, EndReason};
use throughway::protocol::reject::RejectReason as Why;
use throughway::protocol::revocation::Subject;
use throughway::time::UnixSeconds;

const PEER: &str = "8.8.8.8:1000";

fn whose_user(user: &str) -> Subject {
    Subject::User { user: user.into(), tenant: None }
}

#[test]
fn a_kicked_session_ends_at_once_and_the_others_go_on() {
    let mut h = Harness::new();
    let (one, two) = (h.add(user("bob")), h.add(user("bob")));
    for client in [one, two] {
        h.allocate(client);
        assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    }
    let session = h.session(one).unwrap().session;
    h.close(&Selector::Session(session), EndReason::Kicked);
    assert!(!h.is_alive(one) && h.is_alive(two));
    assert_eq!(h.send(one, addr(PEER), b"x"), Went::Dropped(DropReason::NoAllocation));
    assert_eq!(h.send(two, addr(PEER), b"x").to_peer().0, addr(PEER));
    assert_eq!(h.ended.last().unwrap().reason, Some(EndReason::Kicked));
    h.refuses(one, request(REFRESH).lifetime(600), 437, Why::NoAllocation);
    h.allocate(one);
}

#[test]
fn a_revoked_user_loses_what_he_has_and_gets_nothing_new_until_the_end_of_it() {
    let mut h = Harness::new();
    let (bob, again, eve) = (h.add(user("bob")), h.add(user("bob")), h.add(user("eve")));
    h.allocate(bob);
    h.allocate(eve);
    h.books.revoke(whose_user("bob"), UnixSeconds(START_UNIX + 100));
    h.close(&Selector::Subject(whose_user("bob")), EndReason::Revoked);
    assert!(!h.is_alive(bob) && h.is_alive(eve));
    assert_eq!(h.ended.last().unwrap().reason, Some(EndReason::Revoked));
    let refused = h.refuses(again, allocate(), 403, Why::Revoked);
    assert!(refused.is_signed_with(&h.key_of(again)), "the holder of the key may know why");
    h.advance(100);
    h.allocate(again);
}

#[test]
fn revoking_a_credential_leaves_the_users_other_credentials_alone() {
    let mut h = Harness::new();
    let one = h.add(user("bob"));
    let other = h.add(harness::holder_of(&format!("{}:bob", START_UNIX + 1800)));
    h.allocate(one);
    h.allocate(other);
    let credential = Subject::Credential(format!("{}:bob", START_UNIX + 3600).into());
    h.books.revoke(credential.clone(), UnixSeconds(START_UNIX + 3630));
    h.close(&Selector::Subject(credential), EndReason::Revoked);
    assert!(!h.is_alive(one) && h.is_alive(other));
    h.refuses(one, allocate(), 403, Why::Revoked);
}

#[test]
fn a_static_user_can_be_revoked_by_name() {
    let mut h = Harness::new();
    let (one, two) = (h.add(alice()), h.add(carol()));
    h.allocate(one);
    h.allocate(two);
    h.books.revoke(whose_user("alice"), UnixSeconds(START_UNIX + 100));
    h.close(&Selector::Subject(whose_user("alice")), EndReason::Revoked);
    assert!(!h.is_alive(one) && h.is_alive(two));
}

// The request was verified before the revocation came; its socket is not open yet.
#[test]
fn an_allocation_that_is_just_being_opened_is_revoked_too() {
    let mut h = Harness::new();
    let bob = h.add(user("bob"));
    h.hold_back_opens = true;
    let request = h.signed(bob, &allocate());
    assert!(h.tell(bob, &request).is_empty());
    h.books.revoke(whose_user("bob"), UnixSeconds(START_UNIX + 100));
    h.close(&Selector::Subject(whose_user("bob")), EndReason::Revoked);
    let answers = h.let_opens_go(bob);
    assert_eq!(answers.iter().map(|answer| answer.code()).collect::<Vec<_>>(), [403]);
    assert!(!h.is_alive(bob));
    assert_eq!((h.books.admitted(), h.leftovers()), (0, 0));
}
