//! The whole border of the core on one page: what goes in, what comes out.
//!
//! Driving rule: one input, then drain [`poll_output`](super::Server::poll_output) to `None`, then read
//! [`poll_timeout`](super::Server::poll_timeout); then the next input. The data lanes
//! ([`relay_from_client`](super::Server::relay_from_client), [`relay_from_peer`](super::Server::relay_from_peer))
//! return a verdict that borrows the received bytes, so a whole batch is judged before the first send.
//! A verdict counts as *offered*; [`not_sent`](super::Server::not_sent) takes back what the kernel or a
//! queue did not take, so that sent = offered - not sent, exactly.

use std::sync::Arc;

use minicbor::{Decode, Encode};

use super::accounting::SessionRecord;
use super::authenticated::AuthenticatedClient;
use super::failures::FailureRate;
use super::ids::{AllocationId, QuestionId, SessionId, WorkerId};
use super::meter::Meters;
use super::paths::{PathAnswer, PathQuestion};
use super::pool::PoolState;
use super::quota::{Admitted, Counted, Purpose, QuotaClaim};
use super::reason::{DropReason, EndReason};
use super::reject::RejectReason;
use super::reply_budget::ReplyRate;
use super::revocation::{SessionSubject, Subject};
use super::settings::{Limits, Settings};
use super::tenancy::PortPart;
use crate::address::{Family, FiveTuple, PeerAddress, RelayedTransportAddress, Via};
use crate::time::{Now, Ticks, UnixSeconds};
use crate::wire::attribute::{ConnectionId, ReservationToken};
use crate::wire::message::TransactionId;
use crate::wire::writer::DATA_INDICATION_HEAD_MAX;

/// What the IP header said or shall say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PacketMeta {
    /// The byte of DSCP and ECN: type of service over IPv4, traffic class over IPv6 (RFC 8656 section 14).
    pub traffic_class: u8,
    /// DF is set, or shall be (RFC 8656 sections 14 and 15).
    pub dont_fragment: bool,
}

/// What comes in from outside the core.
#[non_exhaustive]
#[derive(Debug)]
pub enum Input<'a> {
    /// A STUN message of the control lane.
    Message {
        /// How it came.
        via: Via,
        /// Exactly one message.
        bytes: &'a [u8],
    },
    /// The answer to [`Output::Admit`].
    Admission {
        /// Whose.
        allocation: AllocationId,
        /// What was counted, or the limit that stands against it: then nothing was counted.
        result: Result<Admitted, RejectReason>,
    },
    /// The answer to [`Output::OpenRelay`].
    RelayOpened {
        /// Whose.
        allocation: AllocationId,
        /// What was opened, or why nothing was.
        result: Result<OpenedRelay, RelayRefused>,
    },
    /// The stream is gone: its allocation ends with it, or waits for its client to come another way (RFC 8016).
    ClientClosed {
        /// Which one.
        via: Via,
    },
    /// Another worker asks for something that this one owns.
    Asked {
        /// Where the answer goes.
        ticket: QuestionId,
        /// What it asks.
        question: Question,
    },
    /// The answer to [`Output::Ask`].
    Answered {
        /// Our question.
        ticket: QuestionId,
        /// What the owner says.
        answer: Answer,
    },
    /// The answer to [`Output::Connect`].
    Connected {
        /// Which connection.
        connection: ConnectionId,
        /// Whether the peer accepted.
        result: Result<(), ConnectRefused>,
    },
    /// Both sides of a bound connection have ended, or one has broken off.
    ConnectionEnded {
        /// Which connection.
        connection: ConnectionId,
    },
    /// New settings: live permissions, channels and connections to peers are judged again.
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
    /// What was done for this client panicked, and this server was made of what was left: its allocation ends, and a request
    /// that waits is refused.
    Failed {
        /// Whose.
        via: Via,
    },
}

/// Which sessions are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selector {
    /// One session.
    Session(SessionId),
    /// All of a credential, a user or a tenant.
    Subject(Subject),
    /// All of clients with an IPv6 link-local address (RFC 4007), with their ports and connections.
    LinkLocalClients,
    /// All with relayed addresses of both families.
    DualAllocations,
    /// All whose client may change its network (RFC 8016).
    MobileAllocations,
    /// All whose owner has a SHA-256 key (RFC 8489 section 18.5.1).
    Sha256Keys,
    /// All whose owner belongs to a realm that is not the server's own.
    OtherRealms,
    /// All TCP allocations (RFC 6062).
    TcpAllocations,
}

/// What a server is doing at the moment, for a shell that finds out that it panicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InHand {
    /// Nothing that belongs to one client.
    Nothing,
    /// A STUN message of the control lane.
    Message(Via),
    /// Data from a client.
    DataFromClient(Via),
    /// Data from a peer.
    DataFromPeer(AllocationId),
    /// Something that an allocation's deadline asks for.
    Deadline(AllocationId),
    /// The answer to what an Allocate request waits for.
    Answer(AllocationId),
}

impl InHand {
    #[allow(clippy::wildcard_enum_match_arm, reason = "all else belongs to no client")]
    pub(super) const fn of(input: &Input<'_>) -> Self {
        match input {
            Input::Message { via, .. } => Self::Message(*via),
            Input::Admission { allocation, .. } | Input::RelayOpened { allocation, .. } => Self::Answer(*allocation),
            _ => Self::Nothing,
        }
    }

    /// What it is, in a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Message(_) => "message",
            Self::DataFromClient(_) => "data_from_client",
            Self::DataFromPeer(_) => "data_from_peer",
            Self::Deadline(_) => "deadline",
            Self::Answer(_) => "answer",
        }
    }
}

/// What the core wants done.
#[non_exhaustive]
#[derive(Debug)]
pub enum Output {
    /// Send these bytes to a client.
    Reply {
        /// The client that it answers; it leaves from the address that was asked.
        via: Via,
        /// One whole STUN message.
        bytes: Vec<u8>,
    },
    /// Ask the quotas for one more allocation and answer with [`Input::Admission`], now or later. The user that it counts for and
    /// under which limits: [`quota_claim`](super::Server::quota_claim).
    Admit {
        /// The allocation that it is for.
        allocation: AllocationId,
        /// What is to be counted.
        purpose: Purpose,
    },
    /// Open a relayed transport address and answer with [`Input::RelayOpened`].
    OpenRelay {
        /// What its socket is known by: the allocation that it is for, or an id of its own if it is the second one.
        allocation: AllocationId,
        /// What is wanted.
        request: RelayRequest,
    },
    /// The allocation, or one of its two addresses, is gone; close that.
    CloseRelay {
        /// What its socket is known by.
        allocation: AllocationId,
        /// Which address.
        relayed: RelayedTransportAddress,
        /// The client that used it: it may get the port back before its rest is over.
        client: Option<std::net::IpAddr>,
    },
    /// The socket of an allocation's second relayed address is its own from now on: its own one has been closed.
    MoveRelay {
        /// What it was known by.
        from: AllocationId,
        /// What it is known by from now on.
        to: AllocationId,
        /// Which address.
        relayed: RelayedTransportAddress,
    },
    /// Connect to a peer from the relayed address of a TCP allocation and answer with [`Input::Connected`], or never if it
    /// is closed before.
    Connect {
        /// What the connection is known by.
        connection: ConnectionId,
        /// Whose relayed address it leaves from.
        allocation: AllocationId,
        /// That address.
        relayed: RelayedTransportAddress,
        /// The peer, in advertised form.
        peer: PeerAddress,
    },
    /// Carry what comes from a client's stream to a peer and back from now on, the bytes behind the request included. The answer
    /// to it was put out before.
    BindConnection {
        /// The connection to the peer.
        connection: ConnectionId,
        /// The client's stream.
        via: Via,
    },
    /// Close the connection to a peer, and the client's stream if it is bound.
    CloseConnection {
        /// Which connection.
        connection: ConnectionId,
    },
    /// A held port was never asked for; close it.
    CloseReserved {
        /// Which address.
        relayed: RelayedTransportAddress,
    },
    /// The socket that came along with an allocation from another worker belongs to that from now on.
    KeepRelay {
        /// What it is known by here.
        allocation: AllocationId,
        /// Which address.
        relayed: RelayedTransportAddress,
        /// The way of the client.
        via: Via,
    },
    /// The way of a client belongs to an allocation from now on, or no longer; that by which it allocates is not told, nor the one
    /// that it has when the allocation ends.
    Path {
        /// Which.
        via: Via,
        /// Whether it does.
        is_in_use: bool,
    },
    /// Ask the worker that owns it.
    Ask {
        /// The owner.
        worker: WorkerId,
        /// Our number for the question.
        ticket: QuestionId,
        /// The question.
        question: Question,
    },
    /// Answer a worker; a relayed address in the answer takes its socket along.
    Answer {
        /// The asker's number.
        ticket: QuestionId,
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
        /// What the socket is known by: the allocation's id, or that of its second address.
        allocation: AllocationId,
        /// Where to.
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
        /// What the socket is known by that it would leave from.
        allocation: AllocationId,
        /// The sending end.
        from: PeerAddress,
        /// The receiving end.
        to: PeerAddress,
        /// What the IP header would say.
        meta: PacketMeta,
        /// The application data, inside the received bytes.
        payload: &'a [u8],
    },
    /// Nothing goes out; the reason has been counted.
    Drop(DropReason),
}

/// What may be done with bytes of a bound connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carry {
    /// They are to be sent, and are counted as sent.
    Send,
    /// A limit lets fewer pass at this moment: they wait, and nothing more is read meanwhile.
    Wait,
    /// Nothing passes any more: the connection is over, or its allocation's budget is used up.
    Stop,
}

/// Why no connection to a peer came about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectRefused {
    /// The peer or the network refused.
    Failed,
    /// The process may not open more files.
    NoFiles,
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
        /// The part of the ports that it comes from; `None` for those that are in no tenant's part.
        part: Option<PortPart>,
        /// Who asks: a port that this client had may come back before its rest is over.
        client: std::net::IpAddr,
    },
    /// A fresh one of TCP, at which connections are accepted (RFC 6062 section 5.1).
    Tcp {
        /// Its family.
        family: Family,
        /// The part of the ports that it is of: the tenant's, if it has one of its own.
        part: Option<PortPart>,
        /// Who asks.
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

/// EVEN-PORT's wishes (RFC 8656 section 18.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum Parity {
    /// Any port.
    #[n(0)]
    Any,
    /// An even port.
    #[n(1)]
    Even,
    /// An even port, with the next higher one held open.
    #[n(2)]
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
    /// There is no address of the family to relay from at this moment.
    NoAddress,
    /// The process may not open more files.
    NoFiles,
    /// The system refused for another reason.
    System,
    /// The held socket is not there.
    NotHeld,
}

/// What one worker asks another.
#[non_exhaustive]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// Hand over the port held under this token, if this user reserved it.
    Reservation {
        /// The token, whose first byte named the owner.
        token: ReservationToken,
        /// Who asks.
        identity: Box<str>,
    },
    /// About the way of a client.
    Path(PathQuestion),
}

/// What the owner answers.
#[non_exhaustive]
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// The held address, whose socket comes along; `None` when the token is not valid.
    Reservation(Option<RelayedTransportAddress>),
    /// About the way of a client.
    Path(PathAnswer),
}

/// What happened; metrics, log and accounting derive from it.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client got its relayed address; nothing has been relayed yet.
    AllocationCreated(Box<SessionRecord>),
    /// What an allocation relayed up to now, every [`Settings::interim_seconds`].
    AllocationInterim(Box<SessionRecord>),
    /// The client of an allocation comes from another address by now.
    AllocationMoved {
        /// What is known of it, with the new address.
        record: Box<SessionRecord>,
        /// The way that it came before.
        from: Via,
    },
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

/// What spans the workers: read from atomics, or under a lock that no packet ever takes.
pub trait Shared: Send + Sync {
    /// What an allocation that was let in passes under these limits, given what it passes now.
    fn meters(&self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits, old: &Meters) -> Meters;

    /// Counts one allocation out; the claim equals the one that was admitted.
    fn release(&self, now: Now, claim: &QuotaClaim<'_>, counted: Counted);

    /// Counts out a port that was held under this token; nothing if that was done before.
    fn release_reservation(&self, now: Now, token: ReservationToken);

    /// Notes that somebody was found genuine, and what came of it.
    fn authenticated(&self, now: Now, note: &AuthenticatedClient<'_>);

    /// Whether a datagram that proves nothing may be answered, within the budget of its network.
    fn takes_reply(&self, now: Ticks, rate: ReplyRate, five_tuple: &FiveTuple, transaction: &TransactionId) -> bool;

    /// Charges a request that failed to its network; whether it is answered now.
    fn answers_failure(&self, now: Ticks, rate: FailureRate, via: &Via, transaction: &TransactionId) -> bool;

    /// Whether an address is a relayed address of this server at this moment.
    fn is_relayed(&self, address: PeerAddress) -> bool;

    /// Whether an address is a relayed address of TCP of this server at this moment.
    fn is_relayed_tcp(&self, address: PeerAddress) -> bool;

    /// Who of the pool takes clients, and how full this server is; none and not at all where it is not looked at.
    fn pool(&self) -> PoolState {
        PoolState::default()
    }

    /// The worker that has a mobile allocation, or will have it as soon as its inbox is read.
    fn worker_of(&self, _: SessionId) -> Option<WorkerId> {
        None
    }

    /// Notes that a worker has a mobile allocation.
    fn set_worker(&self, _: SessionId, _: WorkerId) {}

    /// Notes that a worker has it no longer; nothing if another one has it.
    fn unset_worker(&self, _: SessionId, _: WorkerId) {}

    /// Whether an operator has revoked this subject; asked once per Allocate.
    fn is_revoked(&self, subject: &SessionSubject<'_>, now: UnixSeconds) -> bool;
}
