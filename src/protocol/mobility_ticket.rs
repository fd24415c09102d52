//! Tickets of RFC 8016: sealed, so that they tell nothing and can't be made up, and nothing is remembered of them.
//!
//! 32 bytes: a tag (12), and what is sealed (20: the session and the rotation). The tag is an HMAC-SHA-256 over what is
//! sealed, cut to 96 bits, and the nonce with which ChaCha20 (RFC 8439) encrypts it; this is the construction SIV of RFC
//! 5297 section 2 with other parts. The keys are made of the key of nonces, so that all workers, and a process that takes
//! over, have the same. Each session and rotation has one ticket, which can be given again.
//!
//! There are clients that keep a ticket as a C string of at most 32 bytes, such as coturn's. So none has a zero byte.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use subtle::ConstantTimeEq as _;

use super::ids::SessionId;

const PLAIN_BYTES: usize = 20;

/// Length of a ticket, in bytes: with the longest answer around it, it fits a datagram on any path.
// [8016-3.1.2-4]
pub(super) const TICKET_BYTES: usize = 32;

const _: () = assert!(PLAIN_BYTES == 8 + 8 + 4 && TICKET_BYTES == NONCE_LEN + PLAIN_BYTES);

/// One in eight tickets would have a zero byte. The highest bits of the number of the session, which no server gives out
/// so many of, say at which try there was none.
const TRIES: u64 = 8;
const NUMBER_BITS: u32 = 61;

const _: () = assert!(TRIES << NUMBER_BITS == 0, "they fit the bits above the number");

/// Seals tickets and opens them.
#[derive(Clone)]
pub(super) struct Tickets {
    key: LessSafeKey,
    tags: hmac::Key,
}

/// What a ticket says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    pub(super) session: SessionId,
    /// How often the session had got a new ticket before.
    pub(super) rotation: u32,
}

impl Tickets {
    /// From the key of nonces.
    // [8016-5-1]
    pub(super) fn new(nonce_key: &[u8]) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, nonce_key);
        let derive = |what: &[u8]| hmac::sign(&master, what);
        let key = UnboundKey::new(&CHACHA20_POLY1305, derive(b"MOBILITY-TICKET key").as_ref());
        let key = LessSafeKey::new(key.expect("an HMAC-SHA-256 has as many bytes as the key"));
        Self { key, tags: hmac::Key::new(hmac::HMAC_SHA256, derive(b"MOBILITY-TICKET tag").as_ref()) }
    }

    fn tag(&self, plain: &[u8; PLAIN_BYTES]) -> [u8; NONCE_LEN] {
        let mut tag = [0; NONCE_LEN];
        tag.copy_from_slice(&hmac::sign(&self.tags, plain).as_ref()[..NONCE_LEN]);
        tag
    }

    /// Encrypts, and decrypts what it has encrypted. The tag of Poly1305 is of no use: the ticket has one.
    fn crypt(&self, tag: [u8; NONCE_LEN], bytes: &mut [u8; PLAIN_BYTES]) {
        let done = self.key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(tag), Aad::empty(), bytes);
        let _tag_of_poly1305 = done.expect("a few bytes can be sealed");
    }

    /// The ticket of a session and rotation: always the same, and another one for each.
    // [8016-3.2.2-6, 8016-5-1, -2]
    pub(super) fn seal(&self, ticket: Ticket) -> [u8; TICKET_BYTES] {
        // One in 20 million has a zero byte all the same, which only such clients can't use.
        let whole = (0..TRIES).map(|at| self.seal_at(ticket, at)).find(|sealed| !sealed.contains(&0));
        whole.unwrap_or_else(|| self.seal_at(ticket, 0))
    }

    fn seal_at(&self, Ticket { session, rotation }: Ticket, at: u64) -> [u8; TICKET_BYTES] {
        let mut plain = [0; PLAIN_BYTES];
        plain[..8].copy_from_slice(&session.instance.to_be_bytes());
        plain[8..16].copy_from_slice(&(session.number | at << NUMBER_BITS).to_be_bytes());
        plain[16..].copy_from_slice(&rotation.to_be_bytes());
        let tag = self.tag(&plain);
        self.crypt(tag, &mut plain);
        let mut ticket = [0; TICKET_BYTES];
        ticket[..NONCE_LEN].copy_from_slice(&tag);
        ticket[NONCE_LEN..].copy_from_slice(&plain);
        ticket
    }

    /// What a ticket says; `None` if it was not sealed with this key, or is none at all.
    // [8016-3.2.2-3]
    pub(super) fn open(&self, ticket: &[u8]) -> Option<Ticket> {
        let ticket: &[u8; TICKET_BYTES] = ticket.try_into().ok()?;
        let (tag, sealed) = ticket.split_first_chunk::<NONCE_LEN>()?;
        let mut plain: [u8; PLAIN_BYTES] = sealed.try_into().ok()?;
        self.crypt(*tag, &mut plain);
        if !bool::from(self.tag(&plain).as_slice().ct_eq(tag)) {
            return None;
        }
        let number = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&plain[from..from + 8]);
            u64::from_be_bytes(bytes)
        };
        let [.., a, b, c, d] = plain;
        let session = SessionId { instance: number(0), number: number(8) & ((1 << NUMBER_BITS) - 1) };
        Some(Ticket { session, rotation: u32::from_be_bytes([a, b, c, d]) })
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: Ticket = Ticket { session: SessionId { instance: 0x0102_0304_0506_0708, number: 9 }, rotation: 10 };

    // [8016-3.1.2-4, 8016-3.2.2-3, -6, 8016-5-1, -2]
    #[test]
    fn a_ticket_is_opened_with_its_key_alone_and_tells_nothing_without_it() {
        let tickets = Tickets::new(&[1; 32]);
        let sealed = tickets.seal(TICKET);
        assert_eq!(sealed.len(), 32);
        assert_eq!(tickets.open(&sealed), Some(TICKET));
        assert_eq!(sealed, Tickets::new(&[1; 32]).seal(TICKET), "another worker gives the same");
        assert_eq!(Tickets::new(&[2; 32]).open(&sealed), None, "another server's");
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tickets.open(&forged), None, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(tickets.open(&sealed[..len]), None, "{len} bytes");
        }
        assert_eq!(tickets.open(&[sealed.as_slice(), &sealed].concat()), None, "twice as long");
        assert!(!sealed.windows(8).any(|part| part == TICKET.session.instance.to_be_bytes()), "it is encrypted");
        // As a C string of at most 32 bytes keeps it.
        for rotation in 0..10_000 {
            let of = Ticket { rotation, ..TICKET };
            let sealed = tickets.seal(of);
            assert!(!sealed.contains(&0), "{sealed:?}");
            assert_eq!(tickets.open(&sealed), Some(of));
        }
        let next = tickets.seal(Ticket { rotation: 11, ..TICKET });
        assert!(sealed.iter().zip(next).filter(|(a, b)| **a == *b).count() < 10, "another one each time");
    }
}
