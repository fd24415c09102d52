//! Stateless nonces (RFC 8489 section 9.2): minted and checked without remembering anyone.
//!
//! 24 characters: base64 of the issue time (4 bytes, seconds) and 14 bytes of an HMAC over transport,
//! client address and port, and that time. Where the server offers more than RFC 5389 knew, the nonce cookie stands
//! before them, and the HMAC covers what it says: without it, or with another one, the nonce is foreign. A nonce of
//! another client, of another process or made up is as stale as an old one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use subtle::ConstantTimeEq;

use crate::address::{FiveTuple, Transport};
use crate::time::UnixSeconds;
use std::net::IpAddr;

/// Length of a nonce without a cookie, in characters.
pub const PLAIN_NONCE_BYTES: usize = 24;

/// What the nonce cookie begins with; four characters that say what is offered follow (RFC 8489 section 9.2).
const COOKIE: &[u8; 9] = b"obMatJos2";

/// Length of a nonce with its cookie, in characters.
pub const NONCE_BYTES_MAX: usize = COOKIE.len() + 4 + PLAIN_NONCE_BYTES;

const TIME_BYTES: usize = 4;
const TAG_BYTES: usize = 14;

/// What a nonce is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Minted for this client, a short while ago.
    Fresh,
    /// Minted for this client, and its time is over.
    Old,
    /// Another client's, another key's, or made up.
    Foreign,
}

/// What a challenge offers beyond RFC 5389: the security features of the nonce cookie (RFC 8489 section 18.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Offer {
    /// Nothing, and so no cookie.
    #[default]
    Plain,
    /// PASSWORD-ALGORITHMS.
    Algorithms,
    /// PASSWORD-ALGORITHMS, and USERHASH in place of USERNAME.
    AlgorithmsAndAnonymity,
}

impl Offer {
    /// The 24 bits, in base64.
    ///
    /// The text of RFC 8489 counts them from the left, its example and erratum 6290 from the right, and clients do the one
    /// or the other. The bits that the two readings mean don't meet, so both are set.
    const fn text(self) -> Option<&'static [u8; 4]> {
        match self {
            Self::Plain => None,
            // 80 00 01
            Self::Algorithms => Some(b"gAAB"),
            // C0 00 03
            Self::AlgorithmsAndAnonymity => Some(b"wAAD"),
        }
    }

    /// The offer of a nonce, and the nonce without its cookie. `None` for a cookie that is not ours.
    fn split(nonce: &[u8]) -> Option<(Self, &[u8])> {
        let Some(rest) = nonce.strip_prefix(COOKIE) else { return Some((Self::Plain, nonce)) };
        let (text, plain) = rest.split_first_chunk::<4>()?;
        let offers = [Self::Algorithms, Self::AlgorithmsAndAnonymity];
        Some((offers.into_iter().find(|offer| offer.text() == Some(text))?, plain))
    }
}

/// The text of a nonce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nonce {
    bytes: [u8; NONCE_BYTES_MAX],
    len: usize,
}

impl std::ops::Deref for Nonce {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Mints and checks nonces under one key: the process's own, or a fleet's.
#[derive(Clone)]
pub struct Nonces {
    mac: Hmac<Sha1>,
    key: Box<[u8]>,
}

impl Nonces {
    /// From a secret key of at least 16 bytes.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        // An HMAC takes a key of any length (RFC 2104 section 3).
        let mac = <Hmac<Sha1> as KeyInit>::new_from_slice(key).expect("an HMAC takes any key");
        Self { mac, key: key.into() }
    }

    /// The key, for a process that takes over: nonces that clients hold stay good.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// A nonce for this client, good from now on.
    // [8489-9.2-1, 8489-9.2.4-4, -23, 8489-14.10-1, 8656-5-3]
    #[must_use]
    pub fn mint(&self, now: UnixSeconds, client: &FiveTuple, offer: Offer) -> Nonce {
        let time = (now.0 as u32).to_be_bytes();
        let mut raw = [0; TIME_BYTES + TAG_BYTES];
        raw[..TIME_BYTES].copy_from_slice(&time);
        raw[TIME_BYTES..].copy_from_slice(&self.tag(time, client, offer));
        let mut nonce = Nonce { bytes: [0; NONCE_BYTES_MAX], len: 0 };
        let mut rest = nonce.bytes.as_mut_slice();
        if let Some(text) = offer.text() {
            let (cookie, after) = rest.split_at_mut(COOKIE.len() + text.len());
            cookie[..COOKIE.len()].copy_from_slice(COOKIE);
            cookie[COOKIE.len()..].copy_from_slice(text);
            nonce.len = cookie.len();
            rest = after;
        }
        // 18 bytes are 24 characters exactly.
        nonce.len += BASE64.encode_slice(raw, rest).expect("18 bytes make 24 characters");
        nonce
    }

    /// Whether a nonce was minted for this client, and within the last `lifetime` seconds; and what it came with.
    #[must_use]
    pub fn check(&self, now: UnixSeconds, lifetime: u64, client: &FiveTuple, nonce: &[u8]) -> (Verdict, Offer) {
        const FOREIGN: (Verdict, Offer) = (Verdict::Foreign, Offer::Plain);
        let mut raw = [0; TIME_BYTES + TAG_BYTES];
        let Some((offer, plain)) = Offer::split(nonce).filter(|(_, plain)| plain.len() == PLAIN_NONCE_BYTES) else {
            return FOREIGN;
        };
        if BASE64.decode_slice(plain, &mut raw) != Ok(raw.len()) {
            return FOREIGN;
        }
        let Some((&time, tag)) = raw.split_first_chunk::<TIME_BYTES>() else { return FOREIGN };
        if !bool::from(self.tag(time, client, offer).as_slice().ct_eq(tag)) {
            return FOREIGN;
        }
        let age = (now.0 as u32).wrapping_sub(u32::from_be_bytes(time));
        (if u64::from(age) <= lifetime { Verdict::Fresh } else { Verdict::Old }, offer)
    }

    // [8489-9.2.4-5]
    fn tag(&self, time: [u8; TIME_BYTES], five_tuple: &FiveTuple, offer: Offer) -> [u8; TAG_BYTES] {
        let mut mac = self.mac.clone();
        mac.update(&time);
        mac.update(&[match five_tuple.transport {
            Transport::Udp => 17,
            Transport::Tcp => 6,
            // TCP's number, marked: one client port may come plain and by TLS on a port for both.
            Transport::Tls => 0x80 | 6,
        }]);
        match five_tuple.client.ip() {
            IpAddr::V4(ip) => mac.update(&ip.octets()),
            IpAddr::V6(ip) => mac.update(&ip.octets()),
        }
        mac.update(&five_tuple.client.port().to_be_bytes());
        // Nothing for a plain one: nonces of releases that knew no other kind stay good.
        mac.update(offer.text().map_or(&[], <[u8; 4]>::as_slice));
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&mac.finalize().into_bytes()[..TAG_BYTES]);
        tag
    }
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonces(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddress, ServerAddress};

    fn client(port: u16) -> FiveTuple {
        FiveTuple {
            client: ClientAddress::new([192, 0, 2, 1].into(), port),
            server: ServerAddress::new([192, 0, 2, 2].into(), 3478),
            transport: Transport::Udp,
        }
    }

    const OFFERS: [Offer; 3] = [Offer::Plain, Offer::Algorithms, Offer::AlgorithmsAndAnonymity];

    // [8489-9.2.4-5, 8489-14.10-1]
    #[test]
    fn nonce_is_good_for_its_lifetime_and_its_client_only() {
        let nonces = Nonces::new(&[1; 32]);
        for offer in OFFERS {
            let nonce = nonces.mint(UnixSeconds(1000), &client(5), offer);
            assert_eq!(nonce.len(), if offer == Offer::Plain { 24 } else { 37 });
            let check = |nonces: &Nonces, now, port, nonce: &[u8]| {
                let (verdict, found) = nonces.check(UnixSeconds(now), 60, &client(port), nonce);
                assert!(found == offer || verdict == Verdict::Foreign);
                verdict
            };
            for (now, port, verdict) in [
                (1000, 5, Verdict::Fresh),
                (1060, 5, Verdict::Fresh),
                (1061, 5, Verdict::Old),
                // From the future.
                (999, 5, Verdict::Old),
                (1000, 6, Verdict::Foreign),
                (1061, 6, Verdict::Foreign),
            ] {
                assert_eq!(check(&nonces, now, port, &nonce), verdict, "{now} {port}");
            }
            assert_eq!(check(&Nonces::new(&[2; 32]), 1000, 5, &nonce), Verdict::Foreign);
            for at in 0..nonce.len() {
                let mut forged = nonce.to_vec();
                forged[at] ^= 1;
                assert_eq!(check(&nonces, 1000, 5, &forged), Verdict::Foreign, "{at}");
                assert_eq!(check(&nonces, 1000, 5, &nonce[..at]), Verdict::Foreign, "{at}");
            }
        }
    }

    // RFC 8489 section 9.2.1: a nonce whose cookie was taken away or changed is as good as none.
    #[test]
    fn no_offer_can_be_taken_out_of_a_nonce_put_in_or_changed() {
        let nonces = Nonces::new(&[1; 32]);
        let cookie = |offer: Offer| [COOKIE.as_slice(), offer.text().unwrap()].concat();
        for offer in OFFERS {
            let nonce = nonces.mint(UnixSeconds(1000), &client(5), offer);
            let plain = &nonce[nonce.len() - PLAIN_NONCE_BYTES..];
            for other in OFFERS.into_iter().filter(|other| *other != offer) {
                let head = if other == Offer::Plain { Vec::new() } else { cookie(other) };
                let changed = [head.as_slice(), plain].concat();
                assert_eq!(nonces.check(UnixSeconds(1000), 60, &client(5), &changed).0, Verdict::Foreign);
            }
            let unknown = [COOKIE.as_slice(), b"AAAB", plain].concat();
            assert_eq!(nonces.check(UnixSeconds(1000), 60, &client(5), &unknown).0, Verdict::Foreign);
        }
    }

    #[test]
    fn both_readings_of_the_feature_bits_find_theirs() {
        for (offer, algorithms, anonymity) in
            [(Offer::Algorithms, true, false), (Offer::AlgorithmsAndAnonymity, true, true)]
        {
            let bits = base64::engine::general_purpose::STANDARD.decode(offer.text().unwrap()).unwrap();
            assert_eq!((bits[0] & 0x80 != 0, bits[0] & 0x40 != 0), (algorithms, anonymity), "from the left");
            assert_eq!((bits[2] & 1 != 0, bits[2] & 2 != 0), (algorithms, anonymity), "from the right");
        }
    }
}
