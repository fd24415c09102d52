//! Values of the attributes that TURN reads (RFC 8656 section 18), typed with the `turn` crate's words.
//!
//! A value of the wrong length or with an illegal content is [`BadAttribute`], which a request is
//! answered with as 400; it never counts as absent.

use std::net::IpAddr;

use minicbor::{Decode, Encode};
pub use stun::attributes::{
    ATTR_ALTERNATE_DOMAIN, ATTR_ALTERNATE_SERVER, ATTR_CHANNEL_NUMBER, ATTR_CONNECTION_ID, ATTR_DATA, ATTR_ERROR_CODE,
    ATTR_LIFETIME, ATTR_MAPPED_ADDRESS, ATTR_NONCE, ATTR_PASSWORD_ALGORITHM, ATTR_PASSWORD_ALGORITHMS, ATTR_REALM,
    ATTR_REQUESTED_ADDRESS_FAMILY, ATTR_REQUESTED_TRANSPORT, ATTR_RESERVATION_TOKEN, ATTR_SOFTWARE, ATTR_USERNAME,
    ATTR_XOR_PEER_ADDRESS, ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS,
};
use stun::message::MAGIC_COOKIE;
pub use turn::proto::channum::ChannelNumber;
pub use turn::proto::lifetime::DEFAULT_LIFETIME;
pub use turn::proto::reqfamily::{REQUESTED_FAMILY_IPV4, REQUESTED_FAMILY_IPV6, RequestedAddressFamily};
pub use turn::proto::{PROTO_TCP, PROTO_UDP, Protocol};

use super::message::{Known, Message, TransactionId};
use super::writer::xor_mask;
use crate::address::{Address, Family, PeerAddress};

/// A present attribute whose value is not what its definition says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadAttribute;

/// What EVEN-PORT asks for (RFC 8656 section 18.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EvenPort {
    /// An even port.
    Even,
    /// An even port, and the next one held for 30 seconds (the R bit).
    EvenAndReserveNext,
}

/// An opaque RESERVATION-TOKEN (RFC 8656 section 18.10).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct ReservationToken(
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub [u8; 8],
);

/// CONNECTION-ID (RFC 6062 section 6.2.1): names the connection to one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct ConnectionId(#[n(0)] pub u32);

impl<'a> Message<'a> {
    fn exactly<const N: usize>(&self, which: Known) -> Result<Option<[u8; N]>, BadAttribute> {
        self.get(which).map(|value| value.try_into().map_err(|_| BadAttribute)).transpose()
    }

    /// LIFETIME in seconds (section 18.2).
    ///
    /// # Errors
    /// [`BadAttribute`] unless it has 4 bytes.
    pub fn lifetime(&self) -> Result<Option<u32>, BadAttribute> {
        Ok(self.exactly::<4>(Known::Lifetime)?.map(u32::from_be_bytes))
    }

    /// REQUESTED-TRANSPORT (section 18.8): the protocol number; the reserved bytes are ignored.
    ///
    /// # Errors
    /// [`BadAttribute`] unless it has 4 bytes.
    // [8656-18.8-1]
    pub fn requested_transport(&self) -> Result<Option<Protocol>, BadAttribute> {
        Ok(self.exactly::<4>(Known::RequestedTransport)?.map(|[protocol, ..]| Protocol(protocol)))
    }

    /// REQUESTED-ADDRESS-FAMILY (section 18.6); the number may be one that we don't know, which is a 440.
    ///
    /// # Errors
    /// [`BadAttribute`] unless it has 4 bytes.
    // [8656-18.6-1]
    pub fn requested_address_family(&self) -> Result<Option<RequestedAddressFamily>, BadAttribute> {
        Ok(self.exactly::<4>(Known::RequestedAddressFamily)?.map(|[family, ..]| RequestedAddressFamily(family)))
    }

    /// ADDITIONAL-ADDRESS-FAMILY (section 18.11), as REQUESTED-ADDRESS-FAMILY.
    ///
    /// # Errors
    /// [`BadAttribute`] unless it has 4 bytes.
    // [8656-18.6-1]
    pub fn additional_address_family(&self) -> Result<Option<RequestedAddressFamily>, BadAttribute> {
        Ok(self.exactly::<4>(Known::AdditionalAddressFamily)?.map(|[family, ..]| RequestedAddressFamily(family)))
    }

    /// EVEN-PORT (section 18.7); the seven low bits are ignored.
    ///
    /// # Errors
    /// [`BadAttribute`] unless it has 1 byte.
    // [8656-18.7-1]
    pub fn even_port(&self) -> Result<Option<EvenPort>, BadAttribute> {
        Ok(self
            .exactly::<1>(Known::EvenPort)?
            .map(|[flags]| if flags & 0x80 == 0 { EvenPort::Even } else { EvenPort::EvenAndReserveNext }))
    }

    /// RESERVATION-TOKEN (section 18.10).
    ///
    /// # Errors
    /// [`BadAttribute`] unless it has 8 bytes.
    pub fn reservation_token(&self) -> Result<Option<ReservationToken>, BadAttribute> {
        Ok(self.exactly::<8>(Known::ReservationToken)?.map(ReservationToken))
    }

    /// DONT-FRAGMENT (section 18.9): present or not.
    ///
    /// # Errors
    /// [`BadAttribute`] if it has a value.
    // [8656-18.9-1]
    pub fn dont_fragment(&self) -> Result<bool, BadAttribute> {
        Ok(self.exactly::<0>(Known::DontFragment)?.is_some())
    }

    /// CHANNEL-NUMBER (section 18.1), in or out of the legal range.
    ///
    /// # Errors
    /// [`BadAttribute`] unless it has 4 bytes.
    // [8656-18.1-1]
    pub fn channel_number(&self) -> Result<Option<ChannelNumber>, BadAttribute> {
        Ok(self.exactly::<4>(Known::ChannelNumber)?.map(|[n1, n2, ..]| ChannelNumber(u16::from_be_bytes([n1, n2]))))
    }

    /// CONNECTION-ID (RFC 6062 section 6.2.1).
    ///
    /// # Errors
    /// [`BadAttribute`] unless it has 4 bytes.
    pub fn connection_id(&self) -> Result<Option<ConnectionId>, BadAttribute> {
        Ok(self.exactly::<4>(Known::ConnectionId)?.map(|bytes| ConnectionId(u32::from_be_bytes(bytes))))
    }

    /// The first XOR-PEER-ADDRESS (section 18.3).
    ///
    /// # Errors
    /// [`BadAttribute`] for an unknown family or a wrong length.
    #[inline]
    pub fn peer(&self) -> Result<Option<PeerAddress>, BadAttribute> {
        self.get(Known::XorPeerAddress).map(|value| xor_peer(value, self.transaction_id())).transpose()
    }

    /// Every XOR-PEER-ADDRESS in order, as CreatePermission carries them.
    pub fn peers(&self) -> impl Iterator<Item = Result<PeerAddress, BadAttribute>> + use<'a> {
        let transaction_id = self.transaction_id();
        self.all(ATTR_XOR_PEER_ADDRESS).map(move |value| xor_peer(value, transaction_id))
    }
}

#[inline]
fn xor_peer(value: &[u8], transaction_id: TransactionId) -> Result<PeerAddress, BadAttribute> {
    xor_address(value, transaction_id).map(PeerAddress)
}

/// Decodes an XOR-…-ADDRESS (RFC 8489 section 14.2).
///
/// # Errors
/// [`BadAttribute`] for an unknown family or a wrong length.
// [8489-14.1-1, -2, 8489-14.2-1]
#[inline]
pub fn xor_address(value: &[u8], transaction_id: TransactionId) -> Result<Address, BadAttribute> {
    let (&[_, family, p1, p2], ip) = value.split_first_chunk().ok_or(BadAttribute)?;
    let port = u16::from_be_bytes([p1, p2]) ^ (MAGIC_COOKIE >> 16) as u16;
    let ip = match family {
        1 => {
            let bits = u32::from_be_bytes(ip.try_into().map_err(|_| BadAttribute)?);
            IpAddr::V4((bits ^ MAGIC_COOKIE).into())
        }
        2 => {
            let bits = u128::from_be_bytes(ip.try_into().map_err(|_| BadAttribute)?);
            IpAddr::V6((bits ^ xor_mask(transaction_id)).into())
        }
        _ => return Err(BadAttribute),
    };
    Ok(Address::new(ip, port))
}

/// The value of ALTERNATE-SERVER, which is that of MAPPED-ADDRESS (RFC 8489 sections 14.1 and 14.15): not XORed.
// [8489-14.1-2]
pub fn mapped_address(address: Address, value: &mut [u8; 20]) -> &[u8] {
    value[2..4].copy_from_slice(&address.port.to_be_bytes());
    match address.ip {
        IpAddr::V4(ip) => {
            value[..2].copy_from_slice(&[0, 1]);
            value[4..8].copy_from_slice(&ip.octets());
            &value[..8]
        }
        IpAddr::V6(ip) => {
            value[..2].copy_from_slice(&[0, 2]);
            value[4..].copy_from_slice(&ip.octets());
            value
        }
    }
}

/// Decodes ALTERNATE-SERVER.
///
/// # Errors
/// [`BadAttribute`] for an unknown family or a wrong length.
pub fn plain_address(value: &[u8]) -> Result<Address, BadAttribute> {
    let (&[_, family, p1, p2], ip) = value.split_first_chunk().ok_or(BadAttribute)?;
    let ip = match family {
        1 => IpAddr::from(<[u8; 4]>::try_from(ip).map_err(|_| BadAttribute)?),
        2 => IpAddr::from(<[u8; 16]>::try_from(ip).map_err(|_| BadAttribute)?),
        _ => return Err(BadAttribute),
    };
    Ok(Address::new(ip, u16::from_be_bytes([p1, p2])))
}

/// The family behind a number of REQUESTED-ADDRESS-FAMILY, if there is one.
#[must_use]
pub fn family(requested: RequestedAddressFamily) -> Option<Family> {
    match requested {
        REQUESTED_FAMILY_IPV4 => Some(Family::V4),
        REQUESTED_FAMILY_IPV6 => Some(Family::V6),
        RequestedAddressFamily(_) => None,
    }
}
