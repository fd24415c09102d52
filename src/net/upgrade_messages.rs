//! What two processes of one server tell each other while one takes over from the other (`net::handoff` carries it).
//!
//! Numbers of fields and messages are never used again for something else; a reader skips fields that it does not know.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use minicbor::{Decode, Encode};

use crate::address::{ClientAddress, FiveTuple};
use crate::time::Ticks;

/// What the new process says.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub enum FromNew {
    /// Who it is, before all else.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Its configuration is right, and what is new in it is bound.
    #[n(1)]
    Planned {
        /// What an operator should look at: keys whose old values hold.
        #[n(0)]
        warnings: Vec<String>,
    },
    /// It can't or won't take over. The old process goes on.
    #[n(2)]
    Refused {
        /// A sentence.
        #[n(0)]
        reason: String,
        /// Its configuration is at fault.
        #[n(1)]
        is_configuration: bool,
    },
    /// It has all that was sent before the cut.
    #[n(3)]
    Prepared {
        /// Allocations that it knows.
        #[n(0)]
        allocations: u64,
    },
    /// It has all of it and everything fits: it could read now.
    #[n(4)]
    Ready,
    /// Its workers read.
    #[n(5)]
    TakenOver {
        /// Microseconds of the monotonic clock when they began.
        #[n(0)]
        at: u64,
    },
    /// It has proved itself: the old process may go.
    #[n(6)]
    Confirm,
    /// It is on probation and lives.
    #[n(7)]
    Alive,
}

/// What the old process says.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub enum FromOld {
    /// What it is; the listeners follow.
    #[n(0)]
    Offer(#[n(0)] Offer),
    /// A socket, which comes along: of a stream listener, of an HTTP listener, or one that the service manager passed.
    #[n(1)]
    Socket(#[n(0)] PassedSocket),
    /// All listeners have been told.
    #[n(2)]
    Listeners,
    /// It was a check only, or the old process has given the upgrade up: the new process ends.
    #[n(3)]
    Stop,
    /// Channels to the old workers come along, in their order.
    #[n(4)]
    Workers {
        /// More of them follow.
        #[n(0)]
        more: bool,
    },
    /// What the workers share, before the cut: memory comes along.
    #[n(5)]
    Early,
    /// The cut: memory with what changed of that, and with the metrics of this moment, comes along.
    #[n(6)]
    Cut {
        /// Allocations that live now.
        #[n(0)]
        allocations: u64,
        /// Client streams that live now.
        #[n(1)]
        streams: u64,
    },
    /// The new process reads from now on.
    #[n(7)]
    Go,
    /// A stream that the old process accepted before the cut and established after it; its socket comes along.
    #[n(9)]
    Late {
        /// Whose it is.
        #[n(0)]
        five_tuple: FiveTuple,
        /// The state of its TLS, as CBOR; `None` without TLS.
        #[n(1)]
        tls: Option<minicbor::bytes::ByteVec>,
    },
    /// A connection that is passed on to a web server; both its sockets come along, the client's first. Only for a process
    /// that says that it takes them.
    #[n(10)]
    PassedOn(#[n(0)] PassedOnNote),
    /// The old process has written its last record: memory with its last metrics comes along.
    #[n(8)]
    Written {
        /// The code of the last signed record.
        #[n(0)]
        chain: Option<String>,
        /// How long no packet was read, in microseconds.
        #[n(1)]
        gap_us: u64,
        /// How long all that came before the cut took, in microseconds.
        #[n(2)]
        prepare_us: u64,
        /// How long no packet was read at the last recovery, in microseconds; a release that does not tell it has none.
        #[n(3)]
        #[cbor(default)]
        recovery_gap_us: u64,
    },
}

/// A connection of a shared port that is passed on to a web server.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct PassedOnNote {
    /// Whose it is.
    #[n(0)]
    pub client: ClientAddress,
    /// What is on its way to the web server.
    #[n(1)]
    pub to_backend: WayNote,
    /// What is on its way to the client.
    #[n(2)]
    pub to_client: WayNote,
}

/// One way of such a connection.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct WayNote {
    /// Bytes that were read and not written.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub unsent: Vec<u8>,
    /// Nothing more will come.
    #[n(1)]
    pub has_ended: bool,
    /// The other side has been told so.
    #[n(2)]
    pub is_shut: bool,
}

/// How long the last upgrade and the last recovery took, in microseconds; 0 if there was none. Only the processes of that time
/// can know it, so it is passed from one to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct UpgradeTimes {
    /// In which no process read the sockets at the last upgrade.
    #[n(0)]
    pub gap_us: u64,
    /// For all that came before that.
    #[n(1)]
    pub prepare_us: u64,
    /// In which no process read the sockets at the last recovery.
    #[n(2)]
    pub recovery_gap_us: u64,
}

/// Who the new process is.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// [`PROTOCOL`](super::handoff::PROTOCOL).
    #[n(0)]
    pub protocol: u32,
    /// Of its release.
    #[n(1)]
    pub version: String,
    /// The oldest state format that it reads.
    #[n(2)]
    pub format_min: u32,
    /// The newest one.
    #[n(3)]
    pub format_max: u32,
    /// The names of features that it knows.
    #[n(4)]
    pub features: Vec<String>,
    /// What its clock says; both clocks must agree.
    #[n(5)]
    pub clock: Ticks,
    /// Its process id.
    #[n(6)]
    pub pid: u32,
    /// On probation it says that it lives, again and again, if the old process listens for that.
    #[n(7)]
    pub tells_life: Option<bool>,
    /// It takes connections that are passed on to web servers ([`FromOld::PassedOn`]).
    #[n(8)]
    pub takes_passed_on: Option<bool>,
}

/// What the old process is.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// Of its release.
    #[n(0)]
    pub version: String,
    /// The format of the states that follow.
    #[n(1)]
    pub format: u32,
    /// How many workers it has; the new one has as many.
    #[n(2)]
    pub workers: u32,
    /// Its realm, which the keys of its clients hold.
    #[n(3)]
    pub realm: String,
    /// Its nonce key, which the nonces of its clients hold.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub nonce_key: Vec<u8>,
    /// Every address that it relays or relayed from.
    #[n(5)]
    pub relay_addresses: Vec<RelayAddressNote>,
    /// Its UDP and stream listeners; the sockets of those for streams follow, those of UDP come from the workers.
    #[n(6)]
    pub listeners: Vec<ListenerNote>,
    /// How long it has been draining, in milliseconds; `None` if it does not.
    #[n(7)]
    pub draining_ms: Option<u64>,
    /// Which process of this server it is, from 1.
    #[n(8)]
    pub generation: u64,
    /// Its process id.
    #[n(9)]
    pub pid: u32,
    /// It listens for [`FromNew::Alive`].
    #[n(10)]
    pub hears_life: Option<bool>,
}

/// An address that is relayed from.
#[derive(Clone, Copy, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RelayAddressNote {
    /// What sockets bind to.
    #[n(0)]
    pub local: IpAddr,
    /// What clients are told.
    #[n(1)]
    pub advertised: IpAddr,
    /// Whether new allocations get its ports.
    #[n(2)]
    pub is_serving: bool,
}

/// A listener for clients.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ListenerNote {
    /// Its number.
    #[n(0)]
    pub id: u32,
    /// As the configuration has it.
    #[n(1)]
    pub configured: SocketAddr,
    /// As it is bound.
    #[n(2)]
    pub bound: SocketAddr,
    /// 0 for UDP, 1 for plain streams, 2 for TLS, 3 for both, 4 for TLS shared with a web server.
    #[n(3)]
    pub takes: u8,
    /// Served to its last sessions only.
    #[n(4)]
    pub is_leaving: bool,
    /// Prefixes of the proxies whose connections begin with a PROXY header, if only they connect here.
    #[n(5)]
    pub proxy_from: Option<Vec<String>>,
    /// The web server that has it too.
    #[n(6)]
    pub shared: Option<SharedNote>,
}

/// The web server that has a port too.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct SharedNote {
    /// Its address.
    #[n(0)]
    pub backend: SocketAddr,
    /// The server names that are ours.
    #[n(1)]
    pub names: Vec<String>,
    /// The word of `send_proxy`.
    #[n(2)]
    pub send_proxy: String,
}

/// What a socket that comes along is.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub enum PassedSocket {
    /// That of the stream listener with this number.
    #[n(0)]
    Stream(#[n(0)] u32),
    /// An HTTP listener at an address.
    #[n(1)]
    Http(#[n(0)] SocketAddr),
    /// An HTTP listener at a path.
    #[n(2)]
    HttpPath {
        /// The path.
        #[n(0)]
        #[cbor(encode_with = "encode_path", decode_with = "decode_path")]
        path: PathBuf,
        /// Whether the file goes with the server.
        #[n(1)]
        is_ours: bool,
    },
    /// What the service manager passed under this name.
    #[n(3)]
    Manager(#[n(0)] String),
}

fn encode_path<C, W: minicbor::encode::Write>(
    path: &Path,
    encoder: &mut minicbor::Encoder<W>,
    _: &mut C,
) -> Result<(), minicbor::encode::Error<W::Error>> {
    use std::os::unix::ffi::OsStrExt as _;
    encoder.bytes(path.as_os_str().as_bytes())?.ok()
}

fn decode_path<C>(decoder: &mut minicbor::Decoder<'_>, _: &mut C) -> Result<PathBuf, minicbor::decode::Error> {
    use std::os::unix::ffi::OsStringExt as _;
    Ok(std::ffi::OsString::from_vec(decoder.bytes()?.to_vec()).into())
}

/// What an old worker tells the new one with its number.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub(super) enum WorkerPart {
    /// Its sockets of a UDP listener come along: for data and, if it has one, for all else.
    #[n(0)]
    Listener(#[n(0)] u32),
    /// Memory with the states of some allocations, and their relayed sockets in the same order.
    #[n(1)]
    Early,
    /// All allocations have been told once.
    #[n(2)]
    EarlyEnd,
    /// Relayed sockets of allocations that began since, by their slots.
    #[n(3)]
    Sockets(#[n(0)] Vec<u32>),
    /// Held sockets by their relayed addresses.
    #[n(4)]
    Held(#[n(0)] Vec<crate::address::RelayedTransportAddress>),
    /// The sockets of client streams, in the order of their states.
    #[n(5)]
    Streams,
    /// Memory with what changed since the early states, and memory with the streams: the last message.
    #[n(6)]
    Changes,
    /// The sockets of connections to peers, in the order of their states; only for a process that knows TCP allocations.
    #[n(7)]
    Peers,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_bytes<M: Encode<()> + for<'b> Decode<'b, ()>>(message: &M) -> M {
        minicbor::decode(&minicbor::to_vec(message).unwrap()).unwrap()
    }

    #[test]
    fn messages_come_back() {
        let path = PassedSocket::HttpPath { path: "/run/throughway/admin.sock".into(), is_ours: true };
        for socket in [path, PassedSocket::Stream(7), PassedSocket::Manager("a.socket".into())] {
            let message = FromOld::Socket(socket);
            assert_eq!(through_bytes(&message), message);
        }
        let message = FromOld::Written { chain: Some("00ff".into()), gap_us: 1, prepare_us: 2, recovery_gap_us: 3 };
        assert_eq!(through_bytes(&message), message);
        // As the first release writes it: 8, and a chain with two numbers.
        let bytes = [0x82, 0x08, 0x83, 0xf6, 0x01, 0x02];
        let of_first = FromOld::Written { chain: None, gap_us: 1, prepare_us: 2, recovery_gap_us: 0 };
        assert_eq!(minicbor::decode::<FromOld>(&bytes).unwrap(), of_first);
        let hello = FromNew::Hello(Hello {
            protocol: 1,
            version: "0.1.0".into(),
            format_min: 1,
            format_max: 2,
            features: vec!["link_local_clients".into()],
            clock: Ticks(5),
            pid: 9,
            tells_life: Some(true),
            takes_passed_on: Some(true),
        });
        assert_eq!(through_bytes(&hello), hello);
        assert_eq!(through_bytes(&FromNew::Alive), FromNew::Alive);
        let way = WayNote { unsent: b"half".to_vec(), has_ended: true, is_shut: false };
        let idle = WayNote { unsent: Vec::new(), has_ended: false, is_shut: false };
        let client = ClientAddress::from("192.0.2.7:5".parse::<SocketAddr>().unwrap());
        let passed_on = FromOld::PassedOn(PassedOnNote { client, to_backend: way, to_client: idle });
        assert_eq!(through_bytes(&passed_on), passed_on);
        let refused = FromNew::Refused { reason: "no".into(), is_configuration: true };
        assert_eq!(through_bytes(&refused), refused);
        for part in [WorkerPart::Listener(3), WorkerPart::Sockets(vec![1, 2]), WorkerPart::Changes] {
            assert_eq!(through_bytes(&part), part);
        }
    }
}
