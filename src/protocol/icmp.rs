//! ICMP errors about datagrams that were relayed to a peer, told to the client (RFC 8656 section 11.5).

use super::Server;
use super::ids::AllocationId;
use super::reason::Direction;
use crate::address::{Family, PeerAddress, Via};
use crate::time::Now;
use crate::wire::attribute::ATTR_XOR_PEER_ADDRESS;
use crate::wire::message::{ATTR_ICMP, CLASS_INDICATION, METHOD_DATA, MessageType};
use crate::wire::writer::Writer;

/// Types of ICMPv4 that are told: destination unreachable, and time exceeded.
const IPV4_TYPES: [u8; 2] = [3, 11];

/// Types of ICMPv6 that are told: destination unreachable, packet too big, and time exceeded.
const IPV6_TYPES: [u8; 3] = [1, 2, 3];

/// Room for the longest indication: header, XOR-PEER-ADDRESS of IPv6, ICMP.
pub const ICMP_INDICATION_BYTES_MAX: usize = 20 + 24 + 12;

/// What an ICMP error says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Its type.
    pub icmp_type: u8,
    /// Its code.
    pub code: u8,
    /// The largest packet in bytes that the next link takes, where the error is of a packet that was too big.
    pub mtu: u32,
}

impl IcmpError {
    fn is_told(self, family: Family) -> bool {
        match family {
            Family::V4 => IPV4_TYPES.contains(&self.icmp_type),
            Family::V6 => IPV6_TYPES.contains(&self.icmp_type),
        }
    }

    const fn is_too_big(self, family: Family) -> bool {
        match family {
            Family::V4 => self.icmp_type == 3 && self.code == 4,
            Family::V6 => self.icmp_type == 2,
        }
    }

    /// The attribute's value: 16 reserved bits, 7 of type, 9 of code, 32 of error data (RFC 8656 section 18.13).
    // [8656-18.13-1, 8656-18.13-2]
    fn value(self, family: Family) -> [u8; 8] {
        // A type has 7 bits there, and those that are told need no more.
        let type_and_code = u16::from(self.icmp_type & 0x7F) << 9 | u16::from(self.code);
        let data = if self.is_too_big(family) { self.mtu } else { 0 };
        let mut value = [0; 8];
        value[2..4].copy_from_slice(&type_and_code.to_be_bytes());
        value[4..].copy_from_slice(&data.to_be_bytes());
        value
    }
}

impl Server {
    /// An ICMP error about a datagram that left the socket known by `on` for `peer`: the indication to its client, and the
    /// way to it. Nothing where the client gave no permission for the peer, or had its share of packets.
    ///
    /// Where the error came from is not asked: any router on the way may send one.
    // [8656-11.5-1, -2, -3, 8656-16-2]
    pub fn icmp_from_network(
        &mut self,
        now: Now,
        on: AllocationId,
        peer: PeerAddress,
        error: IcmpError,
        out: &mut [u8; ICMP_INDICATION_BYTES_MAX],
    ) -> Option<(Via, usize)> {
        if !error.is_told(peer.family()) {
            return None;
        }
        let live = self.table.lane_of_socket_mut(on).filter(|allocation| now.ticks < allocation.expires_at);
        let allocation = live.filter(|allocation| !allocation.is_tcp())?;
        allocation.permission(peer.ip(), now.ticks)?;
        // Forged errors take no more of a client's way than forged datagrams of a peer could.
        if !allocation.packets.take(now.ticks, Direction::ToClient, self.packet_rate) {
            return None;
        }
        let data = MessageType { method: METHOD_DATA, class: CLASS_INDICATION };
        let mut writer = Writer::new(out, data, self.transaction_ids.next());
        writer.xor_address(ATTR_XOR_PEER_ADDRESS, peer.0);
        writer.attribute(ATTR_ICMP, &error.value(peer.family()));
        let len = writer.finish()?;
        self.counters.icmp_errors.add(1);
        Some((allocation.via(), len))
    }
}
