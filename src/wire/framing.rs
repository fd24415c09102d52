//! Cuts STUN messages and ChannelData out of a byte stream (RFC 8656 section 12.5; RFC 8489 section 6.2.2).

use super::channel_data;
use super::message::HEADER_BYTES;
use stun::message::MAGIC_COOKIE;

/// The longest frame: a STUN header and the longest body its length field can tell.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + 65_536;

/// What the start of the received bytes is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// More bytes must come before anything can be said.
    NeedMore,
    /// One whole message of `message` bytes; the next one starts after `consumed` bytes.
    Frame {
        /// The message, without padding.
        message: usize,
        /// The message with ChannelData's padding.
        consumed: usize,
    },
    /// Neither STUN nor ChannelData: there is no way to find the next message, so the stream is lost.
    Broken,
}

/// How many bytes the first message takes of the stream, as its head tells; `None` while its head has not come.
///
/// Whether it is a message at all is for [`cut`] to say.
#[must_use]
pub fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let &[first, _, l1, l2] = bytes.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([l1, l2]));
    Some(match first {
        0x00..=0x3F => HEADER_BYTES + length,
        _ => channel_data::HEAD_BYTES + length + channel_data::padding(length),
    })
}

/// Looks at the first bytes of a stream.
// [8656-12.6-3]
#[must_use]
pub fn cut(bytes: &[u8]) -> Cut {
    let Some(&[first, _, l1, l2]) = bytes.first_chunk() else {
        return match bytes {
            [] | [0x00..=0x7F, ..] => Cut::NeedMore,
            [0x80..=0xFF, ..] => Cut::Broken,
        };
    };
    let length = usize::from(u16::from_be_bytes([l1, l2]));
    let (message, consumed) = match first {
        0x00..=0x3F => {
            let cookie = bytes.get(4..bytes.len().min(8)).unwrap_or_default();
            if length % 4 != 0 || !MAGIC_COOKIE.to_be_bytes().starts_with(cookie) {
                return Cut::Broken;
            }
            (HEADER_BYTES + length, HEADER_BYTES + length)
        }
        0x40..=0x7F => {
            let message = channel_data::HEAD_BYTES + length;
            (message, message + channel_data::padding(message))
        }
        0x80..=0xFF => return Cut::Broken,
    };
    if bytes.len() < consumed { Cut::NeedMore } else { Cut::Frame { message, consumed } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        let mut bytes = vec![0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42];
        bytes.extend([7; 12]);
        bytes.extend([0x40, 0x00, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0]);
        bytes.extend([0x40, 0x01, 0, 0]);
        bytes
    }

    #[test]
    fn many_messages_in_one_segment_are_told_apart() {
        let bytes = stream();
        assert_eq!(cut(&bytes), Cut::Frame { message: 20, consumed: 20 });
        assert_eq!(cut(&bytes[20..]), Cut::Frame { message: 9, consumed: 12 });
        assert_eq!(cut(&bytes[32..]), Cut::Frame { message: 4, consumed: 4 });
        assert_eq!(cut(&bytes[36..]), Cut::NeedMore);
    }

    #[test]
    fn one_byte_segments_need_more_until_the_frame_is_whole() {
        let bytes = stream();
        for end in 0..20 {
            assert_eq!(cut(&bytes[..end]), Cut::NeedMore, "{end}");
        }
        for end in 21..32 {
            assert_eq!(cut(&bytes[20..end]), Cut::NeedMore, "{end}");
        }
    }

    #[test]
    fn what_can_not_be_stun_breaks_the_stream_at_once() {
        assert_eq!(cut(b"\x16\x03\x01\x02\x00\x01\x00"), Cut::Broken);
        // "GE" is a legal channel number: only `net` can tell that a stranger has no channels.
        assert_eq!(cut(b"GET / HTTP/1.1\r\n"), Cut::NeedMore);
        assert_eq!(cut(&[0, 1, 0, 3, 0x21]), Cut::Broken);
        assert_eq!(cut(&[0x80]), Cut::Broken);
        assert_eq!(cut(&[0, 1, 0, 0, 0x20]), Cut::Broken);
    }
}
