//! The words of relaying: which way a packet went, why it was dropped, why an allocation ended.

use minicbor::{Decode, Encode};

/// Which way a packet went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Direction {
    /// From a client to a peer.
    ToPeer,
    /// From a peer to a client.
    ToClient,
}

/// Why an allocation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum EndReason {
    /// Refresh with lifetime 0.
    #[n(0)]
    Refreshed,
    /// Its lifetime ran out.
    #[n(1)]
    Expired,
    /// The client's stream closed.
    #[n(2)]
    ClientClosed,
    /// The server stopped.
    #[n(3)]
    Shutdown,
    /// An operator ended it.
    #[n(4)]
    Kicked,
    /// Its credential, user or tenant was revoked.
    #[n(5)]
    Revoked,
    /// Its credential expired, and `auth.on_expiry` closes then.
    #[n(6)]
    CredentialExpired,
    /// It lived as long as `auth.max_session` allows.
    #[n(7)]
    MaxSession,
    /// The closing time inside its credential came.
    #[n(8)]
    ClosingTime,
    /// A byte budget was used up.
    #[n(9)]
    Budget,
    /// What the server did for it panicked.
    #[n(10)]
    Fault,
    /// The process was killed, and the client's stream ended with it.
    #[n(11)]
    Crash,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::Refreshed,
        Self::Expired,
        Self::ClientClosed,
        Self::Shutdown,
        Self::Kicked,
        Self::Revoked,
        Self::CredentialExpired,
        Self::MaxSession,
        Self::ClosingTime,
        Self::Budget,
        Self::Fault,
        Self::Crash,
    ];

    /// The word in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refreshed => "refreshed",
            Self::Expired => "expired",
            Self::ClientClosed => "client_closed",
            Self::Shutdown => "shutdown",
            Self::Kicked => "kicked",
            Self::Revoked => "revoked",
            Self::CredentialExpired => "credential_expired",
            Self::MaxSession => "max_session",
            Self::ClosingTime => "closing_time",
            Self::Budget => "budget",
            Self::Fault => "fault",
            Self::Crash => "crash",
        }
    }
}

// The number is that of the reason in a state for another process, and stays its own for ever.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $number:tt $text:literal),+ $(,)?) => {
        /// Why a packet went nowhere: silence towards strangers, a counter towards the operator.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Encode, Decode)]
        #[cbor(index_only)]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[$doc])* #[n($number)] $name),+
        }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The label of the counter.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text),+
                }
            }
        }
    };
}

drop_reasons! {
    /// The first byte is neither STUN's nor ChannelData's.
    NotStun = 0 "not_stun",
    /// A datagram with source port 0, which can't be answered: its source is forged.
    NoSourcePort = 1 "no_source_port",
    /// Looks like STUN, but header, length or attributes are wrong.
    Malformed = 2 "malformed",
    /// A message other than Send that is longer than any has to be.
    ControlTooLong = 3 "control_too_long",
    /// FINGERPRINT does not fit.
    BadFingerprint = 4 "bad_fingerprint",
    /// A method that this server does not speak.
    UnknownMethod = 5 "unknown_method",
    /// A response, or an indication other than Send.
    UnexpectedClass = 6 "unexpected_class",
    /// ChannelData with a wrong number or a length beyond the end.
    BadChannelData = 7 "bad_channel_data",
    /// Data of a five-tuple without allocation.
    NoAllocation = 8 "no_allocation",
    /// ChannelData on a channel that is not bound.
    UnboundChannel = 9 "unbound_channel",
    /// A Send indication without DATA or XOR-PEER-ADDRESS, or with attributes that we must but don't understand.
    BadSend = 10 "bad_send",
    /// A Send indication to a peer of the other family.
    PeerFamily = 11 "peer_family",
    /// A Send indication to a peer without permission.
    NoPermission = 12 "no_permission",
    /// A peer without permission sent to a relayed address.
    PeerNotPermitted = 13 "peer_not_permitted",
    /// An own address whose port is not a relayed port at this moment.
    NotRelayedPort = 14 "not_relayed_port",
    /// One of our own listeners as a peer.
    PeerIsListener = 15 "peer_is_listener",
    /// More bits than a bandwidth limit lets pass.
    OverBandwidth = 16 "over_bandwidth",
    /// More packets than a limit lets pass.
    OverPackets = 17 "over_packets",
    /// A byte budget is used up; the allocation ends.
    OverBudget = 18 "over_budget",
    /// Too big for the client's framing.
    TooBig = 19 "too_big",
    /// A client without allocation at a listener that a reload removed, and that lives for its last sessions.
    ListenerLeaving = 20 "listener_leaving",
    /// The system said ENETUNREACH or EHOSTUNREACH.
    Unreachable = 21 "unreachable",
    /// The system said ECONNREFUSED.
    Refused = 22 "refused",
    /// The system said EPERM or EACCES: a firewall of this machine.
    Forbidden = 23 "forbidden",
    /// The system said EMSGSIZE.
    MessageSize = 24 "message_size",
    /// The system said ENOBUFS, ENOMEM or EAGAIN: its send buffer is full.
    NoBuffers = 25 "no_buffers",
    /// The system refused to send for another reason.
    SendFailed = 26 "send_failed",
    /// The client's TCP queue is full.
    SlowClient = 27 "slow_client",
    /// Queued for a stream that closed first.
    StreamClosed = 28 "stream_closed",
    /// The relayed socket or the stream is gone.
    RelayClosed = 29 "relay_closed",
    /// Another worker's inbox is full.
    InboxFull = 30 "inbox_full",
    /// A client over whose packets the server panicked twice, the last time within a minute.
    Suspect = 31 "suspect",
    /// A request that proves nothing, from a network that asks for more answers than it may have.
    OverReplies = 32 "over_replies",
    /// A request on an allocation whose owner makes more than a limit lets pass.
    OverRequests = 33 "over_requests",
    /// A request with a wrong key or user name, from a network that fails more often than it may: it gets no answer, or
    /// gets one when it is sent again.
    OverFailures = 34 "over_failures",
    /// A packet of a client that has changed its address, while its allocation is on its way from another worker.
    Moving = 35 "moving",
    /// A Send indication on a TCP allocation, which has connections instead.
    TcpAllocation = 36 "tcp_allocation",
}
