//! Clients that change their network (RFC 8016), in the harness.

use std::net::SocketAddr;

use super::stun::{Incoming, Outgoing, REFRESH, allocate, request};
use super::{Client, Harness, Spec, Went, addr};

/// RFC 8016 section 6.
pub const MOBILITY_TICKET: u16 = 0x8030;

/// The peer of every client, and the channel to it.
pub const PEER: &str = "8.8.8.8:1";
pub const CHANNEL: u16 = 0x4001;

/// The ticket of a success.
#[track_caller]
pub fn ticket_of(reply: &Incoming) -> Vec<u8> {
    assert_eq!(reply.code(), 0, "{reply:?}");
    reply.get(MOBILITY_TICKET).expect("MOBILITY-TICKET").to_vec()
}

/// An Allocate of a client that wants a ticket.
pub fn for_ticket() -> Outgoing {
    allocate().with(MOBILITY_TICKET, b"")
}

/// The Refresh of a client that comes by another way.
pub fn come(ticket: &[u8]) -> Outgoing {
    request(REFRESH).with(MOBILITY_TICKET, ticket)
}

/// The same user at another address, after a challenge there.
pub fn elsewhere(h: &mut Harness, spec: Spec) -> Client {
    let client = h.add(spec);
    h.nonce_of(client);
    client
}

/// All that was set off between workers has happened.
pub fn settle(h: &mut Harness) {
    h.advance_ms(0);
    h.advance_ms(0);
}

/// A packet of the peer, read where `owner` is served, goes to this client.
#[track_caller]
pub fn goes_to(h: &mut Harness, relayed: SocketAddr, owner: Client, client: Client) {
    match h.from_peer_on(owner, relayed, addr(PEER), b"down") {
        Went::ToClient { via, .. } => assert_eq!(via, h.via(client)),
        other @ (Went::ToPeer { .. } | Went::Dropped(_)) => panic!("should have gone to the client: {other:?}"),
    }
}
