//! ChannelData (RFC 8656 section 12.4): a borrowed view and a writer for the four bytes of head.

use turn::proto::channum::{ChannelNumber, MIN_CHANNEL_NUMBER};

/// The highest channel number that may be bound: RFC 5766 section 11 lets clients draw up to here, and they do. RFC 8656
/// section 12 ends at 0x4FFF, for the sake of those who share a port with DTLS, QUIC and RTP, which this server does not.
pub const CHANNEL_NUMBER_MAX: u16 = 0x7FFE;

/// The highest channel number of RFC 8656 section 12.
pub const CHANNEL_NUMBER_MAX_RFC8656: u16 = 0x4FFF;

/// How many channel numbers there are.
pub const CHANNELS: u16 = CHANNEL_NUMBER_MAX - MIN_CHANNEL_NUMBER + 1;

/// Channel number and length.
pub const HEAD_BYTES: usize = 4;

/// A ChannelData message inside a received datagram or frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelData<'a> {
    /// The channel; 0x4000 to 0x7FFE.
    pub number: ChannelNumber,
    /// The application data, padding excluded.
    pub payload: &'a [u8],
}

/// Whether a number may be bound: 0x4000 to 0x7FFE.
#[must_use]
pub const fn is_bindable(number: u16) -> bool {
    number >= MIN_CHANNEL_NUMBER && number <= CHANNEL_NUMBER_MAX
}

impl<'a> ChannelData<'a> {
    /// Parses; `None` when it is not ChannelData or its length field claims more than there is.
    ///
    /// Bytes beyond the length are padding: RFC 8656 section 12.5 requires it on streams and allows it on UDP.
    // [8656-12.6-2]
    #[must_use]
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[n1, n2, l1, l2], rest) = bytes.split_first_chunk()?;
        let number = u16::from_be_bytes([n1, n2]);
        if !is_bindable(number) {
            return None;
        }
        let payload = rest.get(..usize::from(u16::from_be_bytes([l1, l2])))?;
        Some(Self { number: ChannelNumber(number), payload })
    }
}

/// The four bytes that go out before a payload of `length` bytes.
#[must_use]
#[inline]
pub const fn head(number: ChannelNumber, length: u16) -> [u8; HEAD_BYTES] {
    let (n, l) = (number.0.to_be_bytes(), length.to_be_bytes());
    [n[0], n[1], l[0], l[1]]
}

/// How many zero bytes follow a frame of `length` bytes on a stream (RFC 8656 section 12.5). [8656-12.5-2]
#[must_use]
#[inline]
pub const fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_ends_where_the_length_says() {
        let parsed = ChannelData::parse(&[0x40, 0x01, 0, 3, 7, 8, 9, 0]).unwrap();
        assert_eq!((parsed.number, parsed.payload), (ChannelNumber(0x4001), &[7, 8, 9][..]));
        assert_eq!(ChannelData::parse(&[0x4F, 0xFF, 0, 0]).unwrap().payload, &[] as &[u8]);
        assert_eq!(ChannelData::parse(&[0x7F, 0xFE, 0, 0]).unwrap().number, ChannelNumber(0x7FFE));
    }

    #[test]
    fn lying_lengths_and_foreign_numbers_are_refused() {
        assert_eq!(ChannelData::parse(&[0x40, 0x01, 0, 4, 7, 8, 9]), None);
        assert_eq!(ChannelData::parse(&[0x40, 0x01, 0]), None);
        assert_eq!(ChannelData::parse(&[0x7F, 0xFF, 0, 0]), None);
        assert_eq!(ChannelData::parse(&[0x80, 0x00, 0, 0]), None);
        assert_eq!(ChannelData::parse(&[0x3F, 0xFF, 0, 0]), None);
    }

    // [8656-12.5-2]
    #[test]
    fn head_and_padding_agree_with_the_figure() {
        assert_eq!(head(ChannelNumber(0x4ABC), 0x0102), [0x4A, 0xBC, 1, 2]);
        assert_eq!([0, 1, 2, 3, 4, 5].map(padding), [0, 3, 2, 1, 0, 3]);
    }
}
