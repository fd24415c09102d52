//! Binding as RFC 3489 has it: no magic cookie, and a transaction id of 128 bits in its place.
//!
//! Of its attributes only those of a request matter here (section 11.2): all but four are unknown.

use stun::message::MAGIC_COOKIE;

use super::behavior::ATTR_CHANGE_REQUEST;
use super::message::{HEADER_BYTES, Malformed, TransactionId, UNKNOWN_MAX};

/// RFC 3489 section 11.2.5 and 11.2.8: whose secret signed the request. Binding needs none and checks none.
const CREDENTIALS: [u16; 2] = [0x0006, 0x0008];

/// Binding request (RFC 3489 section 11.1).
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];

/// A Binding request of RFC 3489.
#[derive(Clone, Debug)]
pub struct ClassicRequest {
    transaction_id: [u8; 16],
    change: Option<[u8; 4]>,
    unknown: [u16; UNKNOWN_MAX],
    unknown_count: usize,
}

impl ClassicRequest {
    /// Whether bytes lack the magic cookie (RFC 8489 section 5), as messages of RFC 3489 do.
    // [8489-12-6]
    #[must_use]
    pub fn lacks_cookie(bytes: &[u8]) -> bool {
        bytes.get(4..8).is_some_and(|cookie| cookie != MAGIC_COOKIE.to_be_bytes())
    }

    /// Reads one whole message, whose method is Binding.
    ///
    /// # Errors
    /// [`Malformed`], which is answered with silence: what is no request, too.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (head, mut rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Malformed::Length)?;
        let [t1, t2, l1, l2, transaction_id @ ..] = *head;
        if [t1, t2] != BINDING_REQUEST {
            return Err(Malformed::Header);
        }
        let length = usize::from(u16::from_be_bytes([l1, l2]));
        if length != rest.len() || !length.is_multiple_of(4) {
            return Err(Malformed::Length);
        }
        let mut request = Self { transaction_id, change: None, unknown: [0; UNKNOWN_MAX], unknown_count: 0 };
        while let Some((&[t1, t2, l1, l2], after)) = rest.split_first_chunk() {
            let len = usize::from(u16::from_be_bytes([l1, l2]));
            let value = after.get(..len).ok_or(Malformed::Attribute)?;
            rest = after.get(len.next_multiple_of(4)..).ok_or(Malformed::Attribute)?;
            request.note(u16::from_be_bytes([t1, t2]), value)?;
        }
        Ok(request)
    }

    fn note(&mut self, attribute: u16, value: &[u8]) -> Result<(), Malformed> {
        if attribute == ATTR_CHANGE_REQUEST.0 {
            let value = value.try_into().map_err(|_| Malformed::Attribute)?;
            self.change.get_or_insert(value);
        } else if attribute < 0x8000 && !CREDENTIALS.contains(&attribute) {
            self.note_unknown(attribute);
        }
        Ok(())
    }

    /// One more that the answer refuses, unless there are enough.
    pub fn note_unknown(&mut self, attribute: u16) {
        let noted = self.unknown.get(..self.unknown_count).unwrap_or_default();
        if !noted.contains(&attribute)
            && let Some(place) = self.unknown.get_mut(self.unknown_count)
        {
            *place = attribute;
            self.unknown_count += 1;
        }
    }

    /// The 128 bits that the answer repeats.
    #[must_use]
    pub const fn transaction_id(&self) -> &[u8; 16] {
        &self.transaction_id
    }

    /// The part of them that is as long as an id of today.
    #[must_use]
    pub const fn short_id(&self) -> TransactionId {
        let [_, _, _, _, id @ ..] = self.transaction_id;
        TransactionId(id)
    }

    /// What CHANGE-REQUEST says.
    #[must_use]
    pub const fn change(&self) -> Option<[u8; 4]> {
        self.change
    }

    /// Attributes that are refused, at most [`UNKNOWN_MAX`] and each once; an odd number of them has the last one again, as
    /// RFC 3489 section 11.2.10 wants it.
    #[must_use]
    pub fn unknown(&self) -> ([u16; UNKNOWN_MAX], usize) {
        let mut unknown = self.unknown;
        let count = self.unknown_count;
        if count % 2 == 1
            && let [.., last, next] = &mut unknown[..count + 1]
        {
            *next = *last;
        }
        (unknown, count.next_multiple_of(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 1, 0, attributes.len() as u8];
        bytes.extend(1..=16);
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn the_whole_of_sixteen_bytes_is_the_transaction_id() {
        let bytes = request(&[0, 3, 0, 4, 0, 0, 0, 6]);
        assert!(ClassicRequest::lacks_cookie(&bytes));
        let request = ClassicRequest::parse(&bytes).unwrap();
        assert_eq!(request.transaction_id()[..], (1..=16).collect::<Vec<u8>>());
        assert_eq!(request.short_id().0[..], (5..=16).collect::<Vec<u8>>());
        assert_eq!(request.change(), Some([0, 0, 0, 6]));
        assert_eq!(request.unknown(), ([0; UNKNOWN_MAX], 0));
        assert!(!ClassicRequest::lacks_cookie(&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42]));
        assert!(!ClassicRequest::lacks_cookie(&[0, 1, 0, 0]));
    }

    #[test]
    fn unknown_attributes_come_in_pairs_and_each_once() {
        let bytes = request(&[0, 2, 0, 0, 0, 2, 0, 0, 0, 6, 0, 4, 1, 2, 3, 4, 0x80, 0x20, 0, 0]);
        let request_ = ClassicRequest::parse(&bytes).unwrap();
        let (unknown, count) = request_.unknown();
        assert_eq!(unknown[..count], [2, 2]);
        let many: Vec<u8> = (0x20..0x2B).flat_map(|attribute| [0, attribute, 0, 0]).collect();
        let (unknown, count) = ClassicRequest::parse(&request(&many)).unwrap().unknown();
        assert_eq!(unknown[..count], (0x20..0x28).collect::<Vec<u16>>());
    }

    #[test]
    fn what_is_no_whole_request_is_malformed() {
        assert_eq!(ClassicRequest::parse(&[0, 1, 0, 0]).unwrap_err(), Malformed::Length);
        let mut answer = request(&[]);
        answer[0] = 1;
        assert_eq!(ClassicRequest::parse(&answer).unwrap_err(), Malformed::Header);
        assert_eq!(ClassicRequest::parse(&request(&[0, 3])).unwrap_err(), Malformed::Length);
        let mut short = request(&[]);
        short[3] = 4;
        assert_eq!(ClassicRequest::parse(&short).unwrap_err(), Malformed::Length);
        assert_eq!(ClassicRequest::parse(&request(&[0, 6, 0, 9, 1, 2, 3, 4])).unwrap_err(), Malformed::Attribute);
        assert_eq!(ClassicRequest::parse(&request(&[0, 3, 0, 2, 0, 0, 0, 0])).unwrap_err(), Malformed::Attribute);
    }
}
