//! Attributes of NAT behaviour discovery (RFC 5780 section 7), as a Binding request has them.

pub use stun::attributes::{
    ATTR_CHANGE_REQUEST, ATTR_CHANGED_ADDRESS, ATTR_OTHER_ADDRESS, ATTR_PADDING, ATTR_RESPONSE_ORIGIN,
    ATTR_RESPONSE_PORT, ATTR_SOURCE_ADDRESS,
};

use super::attribute::BadAttribute;
use super::message::{AttrType, Message};

/// What CHANGE-REQUEST asks for: that the response leaves from another address, another port, or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// The other IP address (flag A).
    pub ip: bool,
    /// The other port (flag B).
    pub port: bool,
}

impl Change {
    /// Both flags of the four bytes (RFC 5780 section 7.2); all else in them is ignored.
    #[must_use]
    pub const fn of([.., flags]: [u8; 4]) -> Self {
        Self { ip: flags & 0x04 != 0, port: flags & 0x02 != 0 }
    }
}

/// What a request asks for beyond its own address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wishes {
    /// CHANGE-REQUEST, if there is one.
    pub change: Option<Change>,
    /// RESPONSE-PORT, never 0.
    pub port: Option<u16>,
    /// The length of PADDING, in bytes.
    pub padding: Option<usize>,
}

/// Whether an attribute is one of those that [`Message::wishes`] reads.
#[must_use]
pub fn is_wish(attribute: u16) -> bool {
    [ATTR_CHANGE_REQUEST, ATTR_RESPONSE_PORT, ATTR_PADDING].contains(&AttrType(attribute))
}

impl Message<'_> {
    /// CHANGE-REQUEST, RESPONSE-PORT and PADDING (RFC 5780 sections 7.2, 7.5 and 7.6).
    ///
    /// # Errors
    /// [`BadAttribute`] for a wrong length, or port 0.
    pub fn wishes(&self) -> Result<Wishes, BadAttribute> {
        let first = |attribute| self.all(attribute).next();
        let change = first(ATTR_CHANGE_REQUEST)
            .map(|value| value.try_into().map(Change::of).map_err(|_| BadAttribute))
            .transpose()?;
        // Two bytes of padding follow the port; whether the length counts them, clients don't agree.
        let port = match first(ATTR_RESPONSE_PORT) {
            None => None,
            Some(&[p1, p2] | &[p1, p2, _, _]) => Some(u16::from_be_bytes([p1, p2]))
                .filter(|port| *port != 0)
                .map_or(Err(BadAttribute), |p| Ok(Some(p)))?,
            Some(_) => return Err(BadAttribute),
        };
        Ok(Wishes { change, port, padding: first(ATTR_PADDING).map(<[u8]>::len) })
    }
}
