//! What a refusal means and what to do about it: one sentence for each reason.

use crate::protocol::reject::RejectReason;

/// In the order of the reasons' numbers.
const REMEDIES: [(RejectReason, &str); RejectReason::ALL.len()] = [
    (
        RejectReason::Challenge,
        "this is normal for a first request; if no second one follows, the client does not get our answers: check its firewall",
    ),
    (
        RejectReason::IncompleteCredentials,
        "a request with MESSAGE-INTEGRITY but without USERNAME, REALM or NONCE: a broken client, replace or update it",
    ),
    (
        RejectReason::PasswordAlgorithms,
        "the client's PASSWORD-ALGORITHM or PASSWORD-ALGORITHMS is not what it was offered (RFC 8489 section 9.2.4): update the \
         client; if all do so, something between it and here changes messages",
    ),
    (
        RejectReason::WrongRealm,
        "the client uses another server's realm, or the realm before a change: restart the client",
    ),
    (
        RejectReason::UnknownUser,
        "the username is not in auth.users and is not EXPIRY:USERID: compare it with the one that was issued",
    ),
    (
        RejectReason::BadIntegrity,
        "the password is wrong, usually because it was made with another secret: try `throughway credentials verify \
             USERNAME PASSWORD`, and compare auth.secrets with the issuer's",
    ),
    (
        RejectReason::Expired,
        "the credential has expired: the application must fetch a new one; if it was new, compare the clocks of issuer and server",
    ),
    (
        RejectReason::TooFarAhead,
        "the credential lasts longer than auth.max_ttl allows: issue it for a shorter time, or raise auth.max_ttl",
    ),
    (
        RejectReason::Revoked,
        "an operator revoked the credential, its user or its tenant: `throughway revoke --list` shows it, `--undo` removes the block",
    ),
    (
        RejectReason::OtherTenant,
        "the credential belongs to another tenant than the listener that the client came by (its `tenant` in [listen]): give \
             the client the servers of its own tenant",
    ),
    (
        RejectReason::BadClaims,
        "the credential carries limits with an unknown or invalid field, or with one that its secret does not read: `throughway credentials verify` shows which",
    ),
    (
        RejectReason::SecretRetired,
        "the credential was made with a secret that is past its not_after: the issuer must take the newer one",
    ),
    (
        RejectReason::TransportDenied,
        "the credential does not allow the transport that the client came by: give it other servers, or issue it without \
             that limit",
    ),
    (
        RejectReason::TunnelledClient,
        "the client's address is of Teredo or 6to4, and RFC 8656 lets no relay serve those: let it come over IPv4 or \
             another IPv6 address",
    ),
    (
        RejectReason::ClosingTime,
        "the closing time inside the credential has passed: the application must fetch a new one",
    ),
    (
        RejectReason::CredentialExpired,
        "a new peer after the credential's expiry, which auth.on_expiry does not allow: issue credentials for as long as \
             calls last",
    ),
    (
        RejectReason::StaleNonce,
        "the nonce was too old, or belongs to another client; clients repeat the request, so a few of these are normal",
    ),
    (RejectReason::UnknownAttributes, "the request needs an extension that this server does not have"),
    (RejectReason::BadAttribute, "an attribute of the request has a wrong length or content: a broken client"),
    (RejectReason::MissingAttribute, "the request lacks an attribute that it must have: a broken client"),
    (RejectReason::Combination, "the request has attributes that exclude each other: a broken client"),
    (
        RejectReason::UnsupportedTransport,
        "the client asked for a transport other than UDP between relay and peer; TCP is relayed with relay.tcp = true",
    ),
    (
        RejectReason::NotStream,
        "the client asked for a TCP allocation over UDP: it must come by TCP or TLS, a listener of listen.tcp or listen.tls",
    ),
    (RejectReason::TcpAllocation, "a TCP allocation has connections and no channels: a broken client"),
    (RejectReason::NotTcpAllocation, "Connect needs an allocation whose REQUESTED-TRANSPORT was TCP: a broken client"),
    (
        RejectReason::BadConnection,
        "the client bound a connection that was closed, or bound it more than 30 seconds after it was told of it; with several \
         servers behind one address, all of a client's connections must come to the same one",
    ),
    (RejectReason::ConnectionExists, "the client has a connection to this peer already: it must close that one first"),
    (
        RejectReason::ConnectionFailed,
        "the peer refused the connection or did not answer within 30 seconds: look at the peer, and at the firewall in between",
    ),
    (
        RejectReason::PeerLowPort,
        "TCP allocations reach ports from 1024 on: if peers serve lower ones, set relay.tcp_low_ports = true",
    ),
    (
        RejectReason::ConnectionLimit,
        "the allocation has as many connections as limits.connections_per_allocation allows: raise it",
    ),
    (
        RejectReason::FamilyUnsupported,
        "the client asked for a relayed address of a family that this server does not have: see relay.addresses",
    ),
    (
        RejectReason::MobilityForbidden,
        "the client asks to keep its relayed address when it changes its network: set relay.mobility = true to let it; it can ask again without that, but some clients give up instead",
    ),
    (
        RejectReason::BadTicket,
        "the MOBILITY-TICKET was given out by another server, or before a restart, or changed on the way: the client must allocate anew",
    ),
    (
        RejectReason::OldTicket,
        "the MOBILITY-TICKET was used before, and the client has got a newer one: a client that lost the answer must allocate anew",
    ),
    (
        RejectReason::SameFiveTuple,
        "the client sent its MOBILITY-TICKET from the address that it has already: such a Refresh needs none",
    ),
    (
        RejectReason::AllocationExists,
        "this client address and port has an allocation already: a client that asks twice, or a port that a NAT gave \
             to another client too soon",
    ),
    (
        RejectReason::NoAllocation,
        "the client uses an allocation that has ended or expired, or the server was restarted: the client must allocate again",
    ),
    (
        RejectReason::WrongUser,
        "another user owns the allocation of this client address and port: the client must use a new port",
    ),
    (
        RejectReason::PeerFamily,
        "the peer's address is of another family than the relayed one: the client should ask for both",
    ),
    (
        RejectReason::PeerDenied,
        "peers in that range are denied; if clients are meant to reach it, open it with peers.allow",
    ),
    (
        RejectReason::PeerIsListener,
        "the client named one of our own listeners as its peer: an error in the client, or an attack",
    ),
    (
        RejectReason::PeerNotRelayed,
        "the client named an address of this server with a port that is not relayed: the other side's allocation has ended",
    ),
    (RejectReason::PeerPort, "nothing can be sent to port 0: a broken client"),
    (
        RejectReason::PeerOutOfScope,
        "the credential does not allow that peer: issue it with other prefixes, or without that limit",
    ),
    (RejectReason::ChannelRange, "a channel number outside 0x4000 to 0x7FFE: a broken client"),
    (
        RejectReason::ChannelConflict,
        "the channel is bound to another peer, or the peer to another channel: a broken client",
    ),
    (
        RejectReason::QuotaUser,
        "the user has as many allocations as limits.allocations_per_user, or a limit set at run time (`throughway limits \
             show`), allows: end some (`throughway kick --user`), or raise it",
    ),
    (
        RejectReason::QuotaRate,
        "the user makes allocations more often than limits.allocations_per_user_per_minute allows: look for a client that reconnects in a loop, or raise it",
    ),
    (
        RejectReason::QuotaReservations,
        "the user, or this client address and port, holds as many ports for a RESERVATION-TOKEN as \
             limits.reservations_per_user allows; each is over after 30 s",
    ),
    (
        RejectReason::QuotaCredential,
        "the credential has as many allocations as limits.allocations_per_credential, or it itself, allows: issue one for \
             each client, or raise it",
    ),
    (
        RejectReason::QuotaTenant,
        "the tenant has as many allocations as limits.allocations_per_tenant, or a limit set at run time (`throughway limits show`), allows: raise it",
    ),
    (
        RejectReason::QuotaBytes,
        "the credential's bytes are used up: the application must fetch a new one, or raise limits.bytes_per_credential or \
             what the credential itself allows",
    ),
    (
        RejectReason::QuotaDay,
        "the user's bytes of the day are used up, until midnight UTC: raise limits.bytes_per_user_per_day, what the \
             secret or the user has, or a limit set at run time (`throughway limits show`)",
    ),
    (
        RejectReason::QuotaClient,
        "the client's address has as many allocations as limits.allocations_per_client allows: raise it if many \
             clients share that address",
    ),
    (
        RejectReason::QuotaClientRate,
        "clients of this address make allocations more often than limits.allocations_per_client_per_minute allows: look for \
             one that reconnects in a loop, or raise it if many clients share the address",
    ),
    (
        RejectReason::QuotaServer,
        "the server has as many allocations as limits.allocations allows: raise it, or add a server",
    ),
    (
        RejectReason::Redirected,
        "the server drains or is full, and sent the client to another one (drain.alternate, turn.alternates); a client that did not follow does not know ALTERNATE-SERVER",
    ),
    (
        RejectReason::Busy,
        "another server that has this one in turn.alternates asked whether it takes clients: it is fuller than its turn.redirect_percent",
    ),
    (
        RejectReason::Full,
        "another server that has this one in turn.alternates asked whether it takes clients: it is full or sends them away itself",
    ),
    (RejectReason::Draining, "the server accepts no new allocations because it is about to stop: use another server"),
    (
        RejectReason::NoPort,
        "no relayed port is free: widen relay.ports, or the tenant's part in relay.ports_by_tenant, add relay.addresses, or raise the \
             limit of open files",
    ),
    (
        RejectReason::NoRelayAddress,
        "this machine has no address to relay from at this moment: see `ip address`, `ip route` and relay.addresses",
    ),
    (
        RejectReason::NoFiles,
        "the process has reached its limit of open files: raise it (LimitNOFILE= in the unit), see \"Sizing\"",
    ),
    (
        RejectReason::SystemRefused,
        "the system refused to open a relayed socket: look for a sandbox, a full memory cgroup or a firewall of this machine",
    ),
    (
        RejectReason::ServerFault,
        "a part of the server panicked over what this client sent; the log has the place: please report it",
    ),
    (
        RejectReason::AdmissionOverdue,
        "who counts the allocations did not answer within 2 s: look at the load of this machine",
    ),
    (
        RejectReason::BadReservation,
        "the RESERVATION-TOKEN is unknown, older than 30 s or another user's: a client that came too late",
    ),
    (
        RejectReason::PermissionLimit,
        "the allocation has as many permissions as limits.permissions_per_allocation allows: raise it",
    ),
    (
        RejectReason::ChannelLimit,
        "the allocation has as many channels as limits.channels_per_allocation allows: raise it",
    ),
];

// A reason that has no row, or has one elsewhere, does not compile.
const _: () = {
    let mut number = 0;
    while number < REMEDIES.len() {
        assert!(REMEDIES[number].0 as usize == number, "the order of the remedies is not that of the reasons");
        number += 1;
    }
};

/// For operators who ask why a client can't connect.
#[must_use]
pub const fn remedy(reason: RejectReason) -> &'static str {
    REMEDIES[reason as usize].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_sentence_of_its_own_and_names_its_key() {
        let mut sentences: Vec<&str> = RejectReason::ALL.iter().map(|reason| remedy(*reason)).collect();
        for reason in RejectReason::ALL {
            let sentence = remedy(*reason);
            assert!(sentence.len() > 30 && !sentence.contains("  "), "{}: {sentence}", reason.name());
            if let Some(key) = reason.limit_key() {
                assert!(sentence.contains(key), "{}: {sentence}", reason.name());
            }
        }
        sentences.sort_unstable();
        sentences.dedup();
        assert_eq!(sentences.len(), RejectReason::ALL.len());
    }
}
