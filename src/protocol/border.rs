//! The whole border of the core on one page: what goes in, what comes out.
//!
//! Driving rule: one input, then drain [`poll_output`](super::Server::poll_output) to `None`, then read
//! [`poll_timeout`](super::Server::poll_timeout); then the next input. The data lanes
//! ([`relay_from_client`](super::Server::relay_from_client), [`relay_from_peer`](super::Server::relay_from_peer))
//! return a verdict that borrows the received bytes, so a whole batch is judged before the first send.
//! A verdict counts as *offered*; [`not_sent`](super::Server::not_sent) takes back what the kernel or a
//! queue did not take, so that sent = offered - not sent, exactly.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::accounting::{SessionId, SessionRecord};
use super::address::{Family, PeerAddress, RelayedTransportAddress, Via};
use super::meter::Meters;
use super::quota::{Admitted, Counted, QuotaClaim};
use super::reject::RejectReason;
use super::revocation::{Party, Whose};
use super::settings::{Limits, Settings};
use super::time::{Now, UnixSeconds};
use crate::wire::attribute::ReservationToken;
use crate::wire::writer::DATA_INDICATION_HEAD_MAX;

/// Names an allocation of one worker; the generation makes a stale id harmless.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AllocationId {
    /// The slot in the worker's table; small numbers, reused.
    pub index: u32,
    /// Counts up with each allocation of this worker.
    pub generation: u32,
}

/// Names a worker; it stands in the first byte of every token that needs its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId(pub u8);

/// Matches an answer of another worker to our question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct AskId {
    /// Who asked.
    pub worker: WorkerId,
    /// The asker's own number.
    pub number: u64,
}

/// What the IP header said or shall say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PacketMeta {
    /// Differentiated services code point.
    pub dscp: u8,
    /// TTL or hop limit; 0 leaves the system's default.
    pub hop_limit: u8,
    /// DF is set, or shall be (RFC 8656 section 15).
    pub dont_fragment: bool,
}

/// What comes in from outside the core.
#[derive(Debug)]
pub enum Input<'a> {
    /// A STUN message of the control lane.
    Message {
        /// How it came.
        via: Via,
        /// Exactly one message.
        bytes: &'a [u8],
    },
    /// The answer to [`Output::OpenRelay`].
    RelayOpened {
        /// Whose.
        allocation: AllocationId,
        /// What was opened, or why nothing was.
        result: Result<OpenedRelay, RelayRefused>,
    },
    /// The stream is gone: its allocation ends with it (RFC 8656 section 3.1).
    ClientClosed {
        /// Which one.
        via: Via,
    },
    /// Another worker asks for something that this one owns.
    Asked {
        /// Where the answer goes.
        ticket: AskId,
        /// What it asks.
        question: Question,
    },
    /// The answer to [`Output::Ask`].
    Answered {
        /// Our question.
        ticket: AskId,
        /// What the owner says.
        answer: Answer,
    },
    /// New settings: live permissions and channels are judged again.
    Reconfigure(Arc<Settings>),
    /// No new allocations from now on.
    Drain,
    /// An operator ends some allocations, those that are just being opened included.
    Close {
        /// Which.
        which: Selector,
        /// What their records say.
        reason: EndReason,
    },
    /// An operator or a shutdown ends every allocation.
    CloseAll(EndReason),
}

/// Which allocations an operator means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selector {
    /// One session.
    Session(SessionId),
    /// All of a credential, a user or a tenant.
    Of(Whose),
}

/// What the core wants done.
#[derive(Debug)]
pub enum Output {
    /// Send these bytes to a client.
    Reply {
        /// Whom it answers; it leaves from the address that was asked.
        via: Via,
        /// One whole STUN message.
        bytes: Vec<u8>,
    },
    /// Open a relayed transport address and answer with [`Input::RelayOpened`].
    OpenRelay {
        /// For whom.
        allocation: AllocationId,
        /// What is wanted.
        request: RelayRequest,
    },
    /// The allocation is gone; close its relayed address.
    CloseRelay {
        /// Whose.
        allocation: AllocationId,
        /// Which address.
        relayed: RelayedTransportAddress,
        /// Who used it: it may come back to him before its rest is over.
        client: Option<std::net::IpAddr>,
    },
    /// A held port was never asked for; close it.
    CloseReserved {
        /// Which address.
        relayed: RelayedTransportAddress,
    },
    /// Ask the worker that owns it.
    Ask {
        /// The owner.
        worker: WorkerId,
        /// Our number for the question.
        ticket: AskId,
        /// The question.
        question: Question,
    },
    /// Answer a worker; a relayed address in the answer takes its socket along.
    Answer {
        /// The asker's number.
        ticket: AskId,
        /// The answer.
        answer: Answer,
    },
    /// Something happened that metrics, log or accounting want to know.
    Happened(Event),
}

/// A verdict of the data lanes.
#[derive(Debug)]
pub enum Relay<'a> {
    /// Send the payload from the allocation's relayed address to a peer.
    ToPeer {
        /// Whose relayed address.
        allocation: AllocationId,
        /// To whom.
        to: PeerAddress,
        /// What the IP header shall say.
        meta: PacketMeta,
        /// The application data, inside the received bytes.
        payload: &'a [u8],
    },
    /// Send head and payload to a client.
    ToClient {
        /// Whose packet.
        allocation: AllocationId,
        /// The way to the client.
        via: Via,
        /// What goes before the payload.
        head: Head,
        /// What the IP header shall say.
        meta: PacketMeta,
        /// The application data, inside the received bytes.
        payload: &'a [u8],
    },
    /// Both ends are relayed addresses of this server: no kernel in between. The receiving end judges the payload with
    /// [`relay_from_peer`](super::Server::relay_from_peer), as if it had arrived on its socket.
    ToRelayed {
        /// Whose payload.
        allocation: AllocationId,
        /// The sending end.
        from: PeerAddress,
        /// The receiving end.
        to: PeerAddress,
        /// The application data, inside the received bytes.
        payload: &'a [u8],
    },
    /// Nothing goes out; the reason has been counted.
    Drop(DropReason),
}

/// ChannelData's four bytes, or a Data indication's 36 or 48, to be sent before a payload.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; DATA_INDICATION_HEAD_MAX],
    len: u8,
    padding: u8,
}

impl Head {
    pub(super) const fn new(bytes: [u8; DATA_INDICATION_HEAD_MAX], len: usize, padding: usize) -> Self {
        Self { bytes, len: len as u8, padding: padding as u8 }
    }

    /// The bytes before the payload.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// How many zero bytes follow the payload, 0 to 3.
    #[must_use]
    #[inline]
    pub const fn padding(&self) -> usize {
        self.padding as usize
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({:02x?}, padding {})", self.bytes(), self.padding)
    }
}

/// What a relayed address must be like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayRequest {
    /// A fresh one.
    Fresh {
        /// Its family.
        family: Family,
        /// Its port's parity, and whether the next port is held.
        parity: Parity,
        /// Who asks: a port that this client had may come back before its rest is over.
        client: std::net::IpAddr,
    },
    /// One that was held for a RESERVATION-TOKEN.
    Reserved {
        /// The held address.
        relayed: RelayedTransportAddress,
        /// Who asks.
        client: std::net::IpAddr,
    },
}

/// EVEN-PORT's wishes (RFC 8656 section 18.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parity {
    /// Any port.
    Any,
    /// An even port.
    Even,
    /// An even port, with the next higher one held open.
    EvenAndHoldNext,
}

/// What was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenedRelay {
    /// The address in its advertised form.
    pub relayed: RelayedTransportAddress,
    /// The held next port, if one was asked for.
    pub held: Option<RelayedTransportAddress>,
}

/// Why no relayed address could be opened; the client hears 508.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayRefused {
    /// Every port of the range is taken or rests.
    NoPort,
    /// The process may not open more files.
    NoFiles,
    /// The system refused for another reason.
    System,
    /// The held socket is not there.
    NotHeld,
}

/// What one worker asks another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// Hand over the port held under this token, if this user reserved it.
    Reservation {
        /// The token, whose first byte named the owner.
        token: ReservationToken,
        /// Who asks.
        identity: Box<str>,
    },
}

/// What the owner answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The held address, whose socket comes along; `None` when the token is not valid.
    Reservation(Option<RelayedTransportAddress>),
}

/// Which way a packet went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Way {
    /// From a client to a peer.
    ToPeer,
    /// From a peer to a client.
    ToClient,
}

/// What happened; metrics, log and accounting derive from it.
#[derive(Debug)]
pub enum Event {
    /// A client got its relayed address; nothing has been relayed yet.
    AllocationCreated(Box<SessionRecord>),
    /// What an allocation relayed up to now, every [`Settings::interim_seconds`].
    AllocationGoesOn(Box<SessionRecord>),
    /// An allocation is over.
    AllocationEnded(Box<SessionRecord>),
    /// A request was answered with an error.
    Refused {
        /// How it came.
        via: Via,
        /// Why.
        reason: RejectReason,
        /// The USERNAME, where the request had one that matters.
        username: Option<Box<str>>,
    },
}

/// Why an allocation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub enum EndReason {
    /// Refresh with lifetime 0.
    Refreshed,
    /// Its lifetime ran out.
    Expired,
    /// The client's stream closed.
    ClientClosed,
    /// The server stopped.
    Shutdown,
    /// An operator ended it.
    Kicked,
    /// Its credential, user or tenant was revoked.
    Revoked,
    /// Its credential expired, and `auth.on_expiry` closes then.
    CredentialExpired,
    /// It lived as long as `auth.max_session` allows.
    MaxSession,
    /// The closing time inside its credential came.
    ClosingTime,
    /// A byte budget was used up.
    Budget,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [Self; 10] = [
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
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// Why a packet went nowhere: silence towards strangers, a counter towards the operator.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[$doc])* $name),+
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
    NotStun = "not_stun",
    /// Looks like STUN, but header, length or attributes are wrong.
    Malformed = "malformed",
    /// FINGERPRINT does not fit.
    BadFingerprint = "bad_fingerprint",
    /// A method that this server does not speak.
    UnknownMethod = "unknown_method",
    /// A response, or an indication other than Send.
    UnexpectedClass = "unexpected_class",
    /// ChannelData with a wrong number or a length beyond the end.
    BadChannelData = "bad_channel_data",
    /// Data of a five-tuple without allocation.
    NoAllocation = "no_allocation",
    /// ChannelData on a channel that is not bound.
    UnboundChannel = "unbound_channel",
    /// A Send indication without DATA or XOR-PEER-ADDRESS, or with attributes that we must but don't understand.
    BadSend = "bad_send",
    /// A Send indication to a peer of the other family.
    PeerFamily = "peer_family",
    /// A Send indication to a peer without permission.
    NoPermission = "no_permission",
    /// A peer without permission sent to a relayed address.
    PeerNotPermitted = "peer_not_permitted",
    /// An own address whose port is not a relayed port at this moment.
    NotRelayedPort = "not_relayed_port",
    /// One of our own listeners as a peer.
    PeerIsListener = "peer_is_listener",
    /// More bits than a bandwidth limit lets pass.
    OverBandwidth = "over_bandwidth",
    /// More packets than a limit lets pass.
    OverPackets = "over_packets",
    /// A byte budget is used up; the allocation ends.
    OverBudget = "over_budget",
    /// Too big for the client's framing.
    TooBig = "too_big",
    /// A client without allocation at a listener that a reload removed, and that lives for its last sessions.
    ListenerLeaving = "listener_leaving",
    /// The system said ENETUNREACH or EHOSTUNREACH.
    Unreachable = "unreachable",
    /// The system said ECONNREFUSED.
    Refused = "refused",
    /// The system said EPERM or EACCES: a firewall of this machine.
    Forbidden = "forbidden",
    /// The system said EMSGSIZE.
    MessageSize = "message_size",
    /// The system said ENOBUFS, ENOMEM or EAGAIN: its send buffer is full.
    NoBuffers = "no_buffers",
    /// The system refused to send for another reason.
    SendFailed = "send_failed",
    /// The client's TCP queue is full.
    SlowClient = "slow_client",
    /// Queued for a stream that closed first.
    StreamClosed = "stream_closed",
    /// The relayed socket or the stream is gone.
    RelayClosed = "relay_closed",
    /// Another worker's inbox is full.
    InboxFull = "inbox_full",
}

/// What spans the workers: read from atomics, or under a lock that no packet ever takes.
pub trait Shared: Send + Sync {
    /// Counts one allocation in, or says which limit stands against it.
    ///
    /// # Errors
    /// The quota that is full; nothing was counted then.
    fn admit(&self, now: Now, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<Admitted, RejectReason>;

    /// What an allocation that was let in passes under these limits.
    fn meters(&self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits) -> Meters;

    /// Counts one allocation out; the claim equals the one that was admitted.
    fn release(&self, now: Now, claim: &QuotaClaim<'_>, counted: Counted);

    /// Notes that somebody was found genuine, and what came of it.
    fn authenticated(&self, now: Now, note: &Genuine<'_>);

    /// Whether an address is a relayed address of this server at this moment.
    fn is_relayed(&self, address: PeerAddress) -> bool;

    /// Whether an operator has shut this party out; asked once per Allocate.
    fn is_revoked(&self, party: &Party<'_>, now: UnixSeconds) -> bool;
}

/// Somebody who proved to hold a credential.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Genuine<'a> {
    /// The id of the secret it was minted with; `None` for a static user.
    pub secret: Option<&'a str>,
    /// When the credential ends; `None` for a static user.
    pub expires_at: Option<UnixSeconds>,
    /// Why he is refused all the same.
    pub refused: Option<RejectReason>,
}
