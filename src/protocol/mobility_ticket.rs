//! Tickets of RFC 8016: sealed, so that they tell nothing and can't be made up, and nothing is remembered of them.
//!
//! 49 bytes: a nonce (12), what is sealed (21: a version, the session, the rotation) and the tag (16) of
//! ChaCha20-Poly1305 (RFC 8439). The keys are made of the key of nonces, so that all workers, and a process that takes
//! over, have the same. The nonce is an HMAC over what is sealed: each session and rotation has one ticket, which can be
//! given again, and no nonce is ever used for two of them.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

use super::ids::SessionId;

const VERSION: u8 = 1;
const PLAIN_BYTES: usize = 21;
const TAG_BYTES: usize = 16;

/// Length of a ticket, in bytes: with the longest answer around it, it fits a datagram on any path.
// [8016-3.1.2-4]
pub(super) const TICKET_BYTES: usize = 49;

const _: () = assert!(PLAIN_BYTES == 1 + 8 + 8 + 4 && TICKET_BYTES == NONCE_LEN + PLAIN_BYTES + TAG_BYTES);

/// Seals tickets and opens them.
#[derive(Clone)]
pub(super) struct Tickets {
    key: LessSafeKey,
    nonces: hmac::Key,
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
        Self { key, nonces: hmac::Key::new(hmac::HMAC_SHA256, derive(b"MOBILITY-TICKET nonce").as_ref()) }
    }

    fn nonce(&self, plain: &[u8; PLAIN_BYTES]) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hmac::sign(&self.nonces, plain).as_ref()[..NONCE_LEN]);
        nonce
    }

    /// The ticket of a session and rotation: always the same, and another one for each.
    // [8016-3.2.2-6, 8016-5-1, -2]
    pub(super) fn seal(&self, Ticket { session, rotation }: Ticket) -> [u8; TICKET_BYTES] {
        let mut plain = [VERSION; PLAIN_BYTES];
        plain[1..9].copy_from_slice(&session.instance.to_be_bytes());
        plain[9..17].copy_from_slice(&session.number.to_be_bytes());
        plain[17..].copy_from_slice(&rotation.to_be_bytes());
        let nonce = self.nonce(&plain);
        let sealed = self.key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut plain);
        let tag = sealed.expect("a few bytes can be sealed");
        let mut ticket = [0; TICKET_BYTES];
        ticket[..NONCE_LEN].copy_from_slice(&nonce);
        ticket[NONCE_LEN..NONCE_LEN + PLAIN_BYTES].copy_from_slice(&plain);
        ticket[NONCE_LEN + PLAIN_BYTES..].copy_from_slice(tag.as_ref());
        ticket
    }

    /// What a ticket says; `None` if it was not sealed with this key, or is none at all.
    // [8016-3.2.2-3]
    pub(super) fn open(&self, ticket: &[u8]) -> Option<Ticket> {
        let ticket: &[u8; TICKET_BYTES] = ticket.try_into().ok()?;
        let (nonce, sealed) = ticket.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed: [u8; PLAIN_BYTES + TAG_BYTES] = sealed.try_into().ok()?;
        let plain = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut sealed).ok()?;
        let plain: [u8; PLAIN_BYTES] = (&*plain).try_into().ok()?;
        let [VERSION, rest @ ..] = plain else { return None };
        let number = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&rest[from..from + 8]);
            u64::from_be_bytes(bytes)
        };
        let [.., a, b, c, d] = rest;
        let session = SessionId { instance: number(0), number: number(8) };
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
        assert_eq!(sealed.len(), 49);
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
        let next = tickets.seal(Ticket { rotation: 11, ..TICKET });
        assert!(sealed.iter().zip(next).filter(|(a, b)| **a == *b).count() < 10, "another one each time");
    }
}
