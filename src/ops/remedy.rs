//! What a refusal means and what to do about it: one sentence for each reason.

use crate::protocol::reject::RejectReason;

/// For whoever asks why a client can't connect.
#[must_use]
pub const fn remedy(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::Challenge => {
            "the ordinary first request; if nothing follows, the client does not get our answers: look at its firewall"
        }
        RejectReason::IncompleteCredentials => {
            "a request with MESSAGE-INTEGRITY but without USERNAME, REALM or NONCE: a broken client, replace or update it"
        }
        RejectReason::WrongRealm => {
            "the client uses another server's realm, or the one before `realm` was changed: let it start afresh"
        }
        RejectReason::UnknownUser => {
            "the username is neither in auth.users nor of the form EXPIRY:USERID: compare it with what was handed out"
        }
        RejectReason::BadIntegrity => {
            "the password is wrong, usually because it was made with another secret: try `throughway credentials verify \
             USERNAME PASSWORD`, and compare auth.secrets with the issuer's"
        }
        RejectReason::Expired => {
            "the credential's time is over: the application must fetch a new one; if it was fresh, compare the clocks of \
             issuer and server"
        }
        RejectReason::TooFarAhead => {
            "the credential lasts longer than auth.max_ttl allows: issue it for a shorter time, or raise auth.max_ttl"
        }
        RejectReason::Revoked => {
            "an operator revoked the credential, its user or its tenant: `throughway revoke --list` shows it, `--undo` lets \
             them in again"
        }
        RejectReason::BadClaims => {
            "the credential carries limits that are not understood to the last, or that its secret does not read: `throughway \
             credentials verify` says which"
        }
        RejectReason::SecretRetired => {
            "the credential was made with a secret that is past its not_after: the issuer must take the newer one"
        }
        RejectReason::TransportDenied => {
            "the credential does not allow the transport that the client came by: give it other servers, or issue it without \
             that limit"
        }
        RejectReason::ClosingTime => {
            "the closing time inside the credential is over: the application must fetch a new one"
        }
        RejectReason::CredentialExpired => {
            "a new peer after the credential's expiry, which auth.on_expiry does not allow: issue credentials for as long as \
             calls last"
        }
        RejectReason::StaleNonce => {
            "the nonce was too old or another client's; a client repeats its request by itself, so seldom ones are fine"
        }
        RejectReason::UnknownAttributes => {
            "the request has attributes that must be understood and are not: an extension that this server does not have"
        }
        RejectReason::BadAttribute => "an attribute of the request has a wrong length or content: a broken client",
        RejectReason::MissingAttribute => "the request lacks an attribute that it must have: a broken client",
        RejectReason::Combination => "the request has attributes that exclude each other: a broken client",
        RejectReason::UnsupportedTransport => {
            "the client wants another transport than UDP between relay and peer: relaying TCP is not in this version"
        }
        RejectReason::FamilyUnsupported => {
            "the client wants a relayed address of a family that this server has none of: see relay.addresses"
        }
        RejectReason::AllocationExists => {
            "this client address and port has an allocation already: a client that asks twice, or a port that a NAT gave \
             to another client too soon"
        }
        RejectReason::NoAllocation => {
            "the client goes on with an allocation that is over, after an end, an expiry or a restart of the server: let \
             it allocate again"
        }
        RejectReason::WrongUser => {
            "the allocation of this client address and port was made with other credentials: let the client open a new port"
        }
        RejectReason::PeerFamily => {
            "the peer's address is of another family than the relayed one: the client should ask for both"
        }
        RejectReason::PeerDenied => {
            "peers in that range are denied; if clients are meant to reach it, open it with peers.allow"
        }
        RejectReason::PeerIsListener => "the client named one of our own listeners as its peer: a mistake, or mischief",
        RejectReason::PeerNotRelayed => {
            "the client named an own address of this server whose port is no relayed port: the other side's allocation is \
             over"
        }
        RejectReason::PeerOutOfScope => {
            "the credential does not allow that peer: issue it with other prefixes, or without that limit"
        }
        RejectReason::ChannelRange => {
            "a channel number outside 0x4000 to 0x4FFF: a client that follows RFC 5766, update it"
        }
        RejectReason::ChannelConflict => {
            "the channel is bound to another peer, or the peer to another channel: a broken client"
        }
        RejectReason::QuotaUser => {
            "the user has as many allocations as limits.allocations_per_user allows: end some (`throughway kick --user`), \
             or raise it"
        }
        RejectReason::QuotaCredential => {
            "the credential has as many allocations as limits.allocations_per_credential, or it itself, allows: issue one for \
             each client, or raise it"
        }
        RejectReason::QuotaTenant => {
            "the tenant has as many allocations as limits.allocations_per_tenant allows: raise it"
        }
        RejectReason::QuotaBytes => {
            "the credential's bytes are used up: the application must fetch a new one, or raise limits.bytes_per_credential or \
             what the credential itself allows"
        }
        RejectReason::QuotaDay => {
            "the user's bytes of the day are used up, until midnight UTC: raise limits.bytes_per_user_per_day, or what the \
             secret or the user has"
        }
        RejectReason::QuotaClient => {
            "the client's address has as many allocations as limits.allocations_per_client allows: raise it if many \
             clients share that address"
        }
        RejectReason::QuotaServer => {
            "the server has as many allocations as limits.allocations allows: raise it, or add a server"
        }
        RejectReason::Redirected => {
            "the server drains and sent the client to its sibling (drain.alternate); a client that did not follow does not know ALTERNATE-SERVER"
        }
        RejectReason::Draining => "the server takes no new allocations because it is about to stop: use another one",
        RejectReason::NoPort => {
            "no relayed port could be had: widen relay.ports, add relay.addresses, or raise the limit of open files"
        }
        RejectReason::BadReservation => {
            "the RESERVATION-TOKEN is unknown, older than 30 s or another user's: a client that came too late"
        }
        RejectReason::PermissionLimit => {
            "the allocation has as many permissions as limits.permissions_per_allocation allows: raise it"
        }
        RejectReason::ChannelLimit => {
            "the allocation has as many channels as limits.channels_per_allocation allows: raise it"
        }
    }
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
