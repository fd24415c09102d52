//! Stateless nonces (RFC 8489 section 9.2): minted and checked without remembering anyone.
//!
//! 24 characters: base64 of the issue time (4 bytes, seconds) and 14 bytes of an HMAC over transport,
//! client address and port, and that time. A nonce of another client, of another process or made up
//! is as stale as an old one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use subtle::ConstantTimeEq;

use crate::address::{FiveTuple, Transport};
use crate::time::UnixSeconds;
use std::net::IpAddr;

/// Length of a nonce in characters.
pub const NONCE_BYTES: usize = 24;

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
    // [8489-9.2.4-4, -23, 8489-14.10-1, 8656-5-3]
    #[must_use]
    pub fn mint(&self, now: UnixSeconds, client: &FiveTuple) -> [u8; NONCE_BYTES] {
        let time = (now.0 as u32).to_be_bytes();
        let mut raw = [0; TIME_BYTES + TAG_BYTES];
        raw[..TIME_BYTES].copy_from_slice(&time);
        raw[TIME_BYTES..].copy_from_slice(&self.tag(time, client));
        let mut text = [0; NONCE_BYTES];
        // 18 bytes are 24 characters exactly.
        BASE64.encode_slice(raw, &mut text).expect("18 bytes make 24 characters");
        text
    }

    /// Whether a nonce was minted for this client, and within the last `lifetime` seconds.
    #[must_use]
    pub fn check(&self, now: UnixSeconds, lifetime: u64, client: &FiveTuple, nonce: &[u8]) -> Verdict {
        let mut raw = [0; TIME_BYTES + TAG_BYTES];
        if nonce.len() != NONCE_BYTES || BASE64.decode_slice(nonce, &mut raw) != Ok(raw.len()) {
            return Verdict::Foreign;
        }
        let Some((&time, tag)) = raw.split_first_chunk::<TIME_BYTES>() else { return Verdict::Foreign };
        if !bool::from(self.tag(time, client).as_slice().ct_eq(tag)) {
            return Verdict::Foreign;
        }
        let age = (now.0 as u32).wrapping_sub(u32::from_be_bytes(time));
        if u64::from(age) <= lifetime { Verdict::Fresh } else { Verdict::Old }
    }

    // [8489-9.2.4-5]
    fn tag(&self, time: [u8; TIME_BYTES], five_tuple: &FiveTuple) -> [u8; TAG_BYTES] {
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

    // [8489-9.2.4-5, 8489-14.10-1]
    #[test]
    fn nonce_is_good_for_its_lifetime_and_its_client_only() {
        let nonces = Nonces::new(&[1; 32]);
        let nonce = nonces.mint(UnixSeconds(1000), &client(5));
        assert_eq!(nonce.len(), 24);
        let check = |nonces: &Nonces, now, port, nonce: &[u8]| nonces.check(UnixSeconds(now), 60, &client(port), nonce);
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
        let mut forged = nonce;
        forged[0] ^= 1;
        assert_eq!(check(&nonces, 1000, 5, &forged), Verdict::Foreign);
        assert_eq!(check(&nonces, 1000, 5, b"short"), Verdict::Foreign);
    }
}
