//! Why a request is refused: the client hears the error code, the operator the reason.

use crate::credentials::CredentialRefused;
use crate::wire::message::ErrorCode;
use stun::error_code::{
    CODE_ADDR_FAMILY_NOT_SUPPORTED, CODE_ALLOC_MISMATCH, CODE_ALLOC_QUOTA_REACHED, CODE_BAD_REQUEST,
    CODE_CONN_ALREADY_EXISTS, CODE_CONN_TIMEOUT_OR_FAILURE, CODE_FORBIDDEN, CODE_INSUFFICIENT_CAPACITY,
    CODE_PEER_ADDR_FAMILY_MISMATCH, CODE_SERVER_ERROR, CODE_STALE_NONCE, CODE_TRY_ALTERNATE, CODE_UNAUTHORIZED,
    CODE_UNKNOWN_ATTRIBUTE, CODE_UNSUPPORTED_TRANS_PROTO, CODE_WRONG_CREDENTIALS,
};

/// RFC 8016 section 3.5.
const CODE_MOBILITY_FORBIDDEN: ErrorCode = ErrorCode(405);

macro_rules! reject_reasons {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $text:literal, $phrase:literal;)+) => {
        /// Why a request is refused.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(usize)]
        pub enum RejectReason {
            $($(#[$doc])* $name),+
        }

        impl RejectReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The ERROR-CODE that the client hears.
            #[must_use]
            pub const fn code(self) -> ErrorCode {
                match self {
                    $(Self::$name => $code),+
                }
            }

            /// The machine-readable reason in logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text),+
                }
            }

            /// The reason phrase of a signed reply.
            #[must_use]
            pub const fn phrase(self) -> &'static str {
                match self {
                    $(Self::$name => $phrase),+
                }
            }
        }
    };
}

reject_reasons! {
    /// No MESSAGE-INTEGRITY: the ordinary first request, answered with the challenge.
    Challenge = CODE_UNAUTHORIZED, "challenge", "Unauthorized";
    /// MESSAGE-INTEGRITY without USERNAME or USERHASH, REALM or NONCE.
    IncompleteCredentials = CODE_BAD_REQUEST, "incomplete_credentials", "Incomplete credentials";
    /// PASSWORD-ALGORITHM and PASSWORD-ALGORITHMS are not what was offered with this nonce, or one is there without the other.
    PasswordAlgorithms = CODE_BAD_REQUEST, "password_algorithms", "Password algorithms are not those offered";
    /// REALM is not ours.
    WrongRealm = CODE_UNAUTHORIZED, "wrong_realm", "Unauthorized";
    /// Neither a static user nor of the time-limited form.
    UnknownUser = CODE_UNAUTHORIZED, "unknown_user", "Unauthorized";
    /// MESSAGE-INTEGRITY fits no key.
    BadIntegrity = CODE_UNAUTHORIZED, "bad_integrity", "Unauthorized";
    /// The credential's time is over.
    Expired = CODE_UNAUTHORIZED, "expired", "Unauthorized";
    /// The credential ends later than `auth.max_ttl` allows.
    TooFarAhead = CODE_UNAUTHORIZED, "too_far_ahead", "Unauthorized";
    /// The credential, its user or its tenant was revoked.
    Revoked = CODE_FORBIDDEN, "revoked", "Forbidden";
    /// The credential is of another tenant than the listener that the client came by.
    OtherTenant = CODE_FORBIDDEN, "other_tenant", "Forbidden";
    /// Claims inside the credential that are not understood to the last.
    BadClaims = CODE_FORBIDDEN, "bad_claims", "Forbidden";
    /// The secret of the credential is past its `not_after`.
    SecretRetired = CODE_UNAUTHORIZED, "secret_retired", "Unauthorized";
    /// The credential does not allow the transport that the client came by.
    TransportDenied = CODE_FORBIDDEN, "transport_denied", "Forbidden";
    /// The client comes from an address of Teredo or 6to4.
    TunnelledClient = CODE_FORBIDDEN, "tunnelled_client", "Forbidden";
    /// The closing time inside the credential is over.
    ClosingTime = CODE_FORBIDDEN, "closing_time", "Forbidden";
    /// A new peer after the credential has expired, which `auth.on_expiry` does not allow.
    CredentialExpired = CODE_FORBIDDEN, "credential_expired", "Forbidden";
    /// The nonce is too old, another client's, or of another process.
    StaleNonce = CODE_STALE_NONCE, "stale_nonce", "Stale Nonce";
    /// Comprehension-required attributes that we don't know.
    UnknownAttributes = CODE_UNKNOWN_ATTRIBUTE, "unknown_attributes", "Unknown Attribute";
    /// An attribute's value has the wrong length or content.
    BadAttribute = CODE_BAD_REQUEST, "bad_attribute", "Malformed attribute";
    /// A required attribute is missing.
    MissingAttribute = CODE_BAD_REQUEST, "missing_attribute", "Missing attribute";
    /// Attributes that exclude each other.
    Combination = CODE_BAD_REQUEST, "combination", "Attributes exclude each other";
    /// REQUESTED-TRANSPORT is neither UDP nor, with `relay.tcp`, TCP.
    UnsupportedTransport = CODE_UNSUPPORTED_TRANS_PROTO, "unsupported_transport", "Unsupported Transport Protocol";
    /// A TCP allocation, or ConnectionBind, over UDP.
    NotStream = CODE_BAD_REQUEST, "not_stream", "Only over TCP or TLS";
    /// ChannelBind on a TCP allocation.
    TcpAllocation = CODE_BAD_REQUEST, "tcp_allocation", "Not on a TCP allocation";
    /// Connect on an allocation that is none of TCP.
    NotTcpAllocation = CODE_ALLOC_MISMATCH, "not_tcp_allocation", "Allocation Mismatch";
    /// CONNECTION-ID is that of no connection of this user that waits.
    BadConnection = CODE_BAD_REQUEST, "bad_connection", "No such connection";
    /// The allocation has, or begins, a connection to this peer.
    ConnectionExists = CODE_CONN_ALREADY_EXISTS, "connection_exists", "Connection Already Exists";
    /// The peer did not accept the connection, or not in time.
    ConnectionFailed = CODE_CONN_TIMEOUT_OR_FAILURE, "connection_failed", "Connection Timeout or Failure";
    /// Connect to a port below 1024, which `relay.tcp_low_ports` does not allow.
    PeerLowPort = CODE_FORBIDDEN, "peer_low_port", "Peer port forbidden";
    /// `limits.connections_per_allocation`.
    ConnectionLimit = CODE_INSUFFICIENT_CAPACITY, "connection_limit", "Too many connections";
    /// We relay from no address of that family.
    FamilyUnsupported = CODE_ADDR_FAMILY_NOT_SUPPORTED, "family_unsupported", "Address Family not Supported";
    /// MOBILITY-TICKET where `relay.mobility` is false.
    MobilityForbidden = CODE_MOBILITY_FORBIDDEN, "mobility_forbidden", "Mobility Forbidden";
    /// MOBILITY-TICKET is none of ours, or is there with a value where it must have none.
    BadTicket = CODE_BAD_REQUEST, "bad_ticket", "Ticket not valid";
    /// MOBILITY-TICKET was used before.
    OldTicket = CODE_BAD_REQUEST, "old_ticket", "Ticket used before";
    /// MOBILITY-TICKET comes from where it was given out.
    SameFiveTuple = CODE_BAD_REQUEST, "same_five_tuple", "Ticket of this very address";
    /// The five-tuple already has an allocation.
    AllocationExists = CODE_ALLOC_MISMATCH, "allocation_exists", "Allocation Mismatch";
    /// The five-tuple has no allocation.
    NoAllocation = CODE_ALLOC_MISMATCH, "no_allocation", "Allocation Mismatch";
    /// Another user's allocation.
    WrongUser = CODE_WRONG_CREDENTIALS, "wrong_user", "Wrong Credentials";
    /// The peer's family is not the relayed address's.
    PeerFamily = CODE_PEER_ADDR_FAMILY_MISMATCH, "peer_family", "Peer Address Family Mismatch";
    /// The peer policy denies the address.
    PeerDenied = CODE_FORBIDDEN, "peer_denied", "Peer address forbidden";
    /// The peer is one of our own listeners.
    PeerIsListener = CODE_FORBIDDEN, "peer_is_listener", "Peer address forbidden";
    /// An own address whose port is no relayed port.
    PeerNotRelayed = CODE_FORBIDDEN, "peer_not_relayed", "Peer address forbidden";
    /// ChannelBind to port 0.
    PeerPort = CODE_FORBIDDEN, "peer_port", "Peer port forbidden";
    /// The credential does not allow this peer.
    PeerOutOfScope = CODE_FORBIDDEN, "peer_out_of_scope", "Peer address forbidden";
    /// CHANNEL-NUMBER outside 0x4000 to 0x7FFE.
    ChannelRange = CODE_BAD_REQUEST, "channel_range", "Channel number out of range";
    /// The channel is bound to another peer, or the peer to another channel.
    ChannelConflict = CODE_BAD_REQUEST, "channel_conflict", "Channel or peer already bound";
    /// `limits.allocations_per_user`.
    QuotaUser = CODE_ALLOC_QUOTA_REACHED, "quota_user", "Allocation Quota Reached";
    /// `limits.allocations_per_user_per_minute`.
    QuotaRate = CODE_ALLOC_QUOTA_REACHED, "quota_rate", "Too many allocations a minute";
    /// `limits.reservations_per_user`, or the five-tuple holds a port already.
    QuotaReservations = CODE_ALLOC_QUOTA_REACHED, "quota_reservations", "Too many reserved ports";
    /// `limits.allocations_per_credential`, or what the credential itself allows.
    QuotaCredential = CODE_ALLOC_QUOTA_REACHED, "quota_credential", "Allocation Quota Reached";
    /// `limits.allocations_per_tenant`.
    QuotaTenant = CODE_ALLOC_QUOTA_REACHED, "quota_tenant", "Allocation Quota Reached";
    /// `limits.bytes_per_credential`, or what the credential itself allows.
    QuotaBytes = CODE_ALLOC_QUOTA_REACHED, "quota_bytes", "Byte budget used up";
    /// `limits.bytes_per_user_per_day`.
    QuotaDay = CODE_ALLOC_QUOTA_REACHED, "quota_day", "Byte budget of the day used up";
    /// `limits.allocations_per_client`.
    QuotaClient = CODE_ALLOC_QUOTA_REACHED, "quota_client", "Allocation Quota Reached";
    /// `limits.allocations_per_client_per_minute`.
    QuotaClientRate = CODE_ALLOC_QUOTA_REACHED, "quota_client_rate", "Too many allocations a minute";
    /// `limits.allocations`.
    QuotaServer = CODE_ALLOC_QUOTA_REACHED, "quota_server", "Allocation Quota Reached";
    /// The server drains or is full, and another one takes its clients.
    Redirected = CODE_TRY_ALTERNATE, "redirected", "Try Alternate";
    /// Another server asked whether this one takes clients: it takes those that no other server has a place for.
    Busy = CODE_ALLOC_QUOTA_REACHED, "busy", "Server is nearly full";
    /// Another server asked the same, and this one takes no clients.
    Full = CODE_INSUFFICIENT_CAPACITY, "full", "Server is full";
    /// The server drains.
    Draining = CODE_ALLOC_QUOTA_REACHED, "draining", "Server is draining";
    /// Every port of the range is taken.
    NoPort = CODE_INSUFFICIENT_CAPACITY, "no_port", "Insufficient Capacity";
    /// No address to relay from exists at this moment.
    NoRelayAddress = CODE_INSUFFICIENT_CAPACITY, "no_relay_address", "Insufficient Capacity";
    /// The process has no file left for a relayed socket.
    NoFiles = CODE_INSUFFICIENT_CAPACITY, "no_files", "Insufficient Capacity";
    /// The system refused to open a relayed socket for another reason.
    SystemRefused = CODE_INSUFFICIENT_CAPACITY, "system_refused", "Insufficient Capacity";
    /// What the server did for this client panicked.
    ServerFault = CODE_SERVER_ERROR, "server_fault", "Server Error";
    /// Who counts allocations did not answer in time.
    AdmissionOverdue = CODE_INSUFFICIENT_CAPACITY, "admission_overdue", "Insufficient Capacity";
    /// RESERVATION-TOKEN is not valid.
    BadReservation = CODE_INSUFFICIENT_CAPACITY, "bad_reservation", "Reservation not valid";
    /// `limits.permissions_per_allocation`.
    PermissionLimit = CODE_INSUFFICIENT_CAPACITY, "permission_limit", "Too many permissions";
    /// `limits.channels_per_allocation`.
    ChannelLimit = CODE_INSUFFICIENT_CAPACITY, "channel_limit", "Too many channels";
}

impl RejectReason {
    /// The configuration key of the limit that was reached, for the refusals that have one.
    #[must_use]
    #[allow(clippy::wildcard_enum_match_arm, reason = "only limits have a key")]
    pub const fn limit_key(self) -> Option<&'static str> {
        match self {
            Self::QuotaUser => Some("limits.allocations_per_user"),
            Self::QuotaRate => Some("limits.allocations_per_user_per_minute"),
            Self::QuotaReservations => Some("limits.reservations_per_user"),
            Self::QuotaCredential => Some("limits.allocations_per_credential"),
            Self::QuotaTenant => Some("limits.allocations_per_tenant"),
            Self::QuotaBytes => Some("limits.bytes_per_credential"),
            Self::QuotaDay => Some("limits.bytes_per_user_per_day"),
            Self::QuotaClient => Some("limits.allocations_per_client"),
            Self::QuotaClientRate => Some("limits.allocations_per_client_per_minute"),
            Self::QuotaServer => Some("limits.allocations"),
            Self::PermissionLimit => Some("limits.permissions_per_allocation"),
            Self::ChannelLimit => Some("limits.channels_per_allocation"),
            Self::ConnectionLimit => Some("limits.connections_per_allocation"),
            _ => None,
        }
    }
}

impl From<CredentialRefused> for RejectReason {
    fn from(refused: CredentialRefused) -> Self {
        match refused {
            CredentialRefused::Expired { .. } => Self::Expired,
            CredentialRefused::TooFarAhead { .. } => Self::TooFarAhead,
            CredentialRefused::UnknownUser => Self::UnknownUser,
            CredentialRefused::BadIntegrity => Self::BadIntegrity,
            CredentialRefused::SecretRetired => Self::SecretRetired,
            CredentialRefused::BadClaims(_) => Self::BadClaims,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8489 §14.8 [8489-14.8-1, -3]
    #[test]
    fn codes_and_phrases_are_within_their_bounds() {
        for reason in RejectReason::ALL {
            let (class, phrase) = (reason.code().0 / 100, reason.phrase());
            assert!((3..=6).contains(&class), "{}", reason.name());
            assert!((1..128).contains(&phrase.chars().count()), "{phrase}");
        }
    }
}
