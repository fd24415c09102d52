//! Bytes to typed views and back: STUN (RFC 8489), TURN's attributes and ChannelData (RFC 8656).
//!
//! Owns every byte that is read or written; leaves what a message means to `protocol`. The views
//! borrow, the writers fill a slice of the caller's: nothing here allocates. The `stun` and
//! `turn` crates give the vocabulary, in `message` and `attribute`.

pub mod attribute;
pub mod behavior;
pub mod channel_data;
pub mod classic;
pub mod framing;
pub mod integrity;
pub mod message;
pub mod writer;

/// What a datagram or a frame claims to be, told from its first two bytes (RFC 8656 section 12, RFC 7983).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// ChannelData: the first byte is 0x40 to 0x7F.
    ChannelData,
    /// A Send indication, which takes the data lane.
    SendIndication,
    /// Any other STUN message: the two top bits are zero.
    Stun,
    /// Nothing that we speak.
    Neither,
}

/// The type field of a Send indication: method 0x006, class indication (RFC 8656 section 17).
const SEND_INDICATION: [u8; 2] = [0x00, 0x16];

/// Sorts by the first two bytes.
// [8656-12-1]
#[must_use]
#[inline]
pub fn classify(bytes: &[u8]) -> Class {
    match bytes {
        [0x40..=0x7F, ..] => Class::ChannelData,
        [first, second, ..] if [*first, *second] == SEND_INDICATION => Class::SendIndication,
        [0x00..=0x3F, ..] => Class::Stun,
        [0x80..=0xFF, ..] | [] => Class::Neither,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_stun_channel_data_and_neither_apart() {
        assert_eq!(classify(&[0x40, 0]), Class::ChannelData);
        assert_eq!(classify(&[0x4F]), Class::ChannelData);
        assert_eq!(classify(&[0x7F]), Class::ChannelData);
        assert_eq!(classify(&[0x00, 0x16]), Class::SendIndication);
        assert_eq!(classify(&[0x00, 0x01]), Class::Stun);
        assert_eq!(classify(&[0x3F]), Class::Stun);
        for first in [0x80, 0xC0, 0xFF] {
            assert_eq!(classify(&[first, 0]), Class::Neither);
        }
        assert_eq!(classify(&[]), Class::Neither);
    }
}
