//! What ICMP says of datagrams to peers, told to their clients (RFC 8656 section 11.5).
//!
//! [`Worker`] itself stands in `net::worker`.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use super::Worker;
use crate::address::Via;
use crate::net::sys::{self, SocketError};
use crate::net::tcp::Stream;
use crate::protocol::icmp::ICMP_INDICATION_BYTES_MAX;
use crate::protocol::ids::AllocationId;
use crate::time::Now;

/// Entries of a relayed socket's error queue that are looked at in one turn; the rest wait for the next one.
const ICMP_ERRORS_PER_TURN: usize = 8;

impl Worker {
    /// What ICMP said of datagrams to peers. What this machine itself says of one has no port: it was the one to
    /// `last`, which may have been tried more than once.
    // [8656-11.5-1, 8656-16-2]
    pub(super) fn on_icmp_errors(&mut self, now: Now, id: AllocationId, mut last: Option<SocketAddr>) {
        for _ in 0..ICMP_ERRORS_PER_TURN {
            let Some(relay) = self.relays.get(id) else { return };
            let Ok(Some(error)) = sys::socket_error(relay.socket.as_fd()) else { return };
            let SocketError::Icmp(to, error) = error else { continue };
            let to = if to.port() == 0 { last.take_if(|last| last.ip() == to.ip()) } else { Some(to) };
            let Some(to) = to else { continue };
            let (peer, mut out) = (self.relays.to_advertised(to), [0; ICMP_INDICATION_BYTES_MAX]);
            if let Some((via, len)) = self.server.icmp_from_network(now, id, peer, error, &mut out) {
                self.indicate(via, &out[..len]);
            }
        }
    }

    /// An indication of ours: lost where something waits for the client already, since what is kept free in its queue is for
    /// answers.
    fn indicate(&mut self, via: Via, bytes: &[u8]) {
        let is_behind = match via {
            Via::Datagram(_) => false,
            Via::Stream(stream, _) => {
                self.streams.find(stream).and_then(|at| self.streams.get(at)).is_none_or(Stream::has_backlog)
            }
        };
        if !is_behind {
            self.reply(via, bytes);
        }
    }
}
