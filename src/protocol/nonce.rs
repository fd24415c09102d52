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

use super::address::{FiveTuple, Transport};
use super::time::UnixSeconds;
use std::net::IpAddr;

/// Length of a nonce in characters.
pub const NONCE_BYTES: usize = 24;

const TIME_BYTES: usize = 4;
const TAG_BYTES: usize = 14;

/// Mints and checks nonces under one key: the process's own, or a fleet's.
#[derive(Clone)]
pub struct Nonces {
    mac: Hmac<Sha1>,
}

impl Nonces {
    /// From a secret key of at least 16 bytes.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        // An HMAC takes a key of any length (RFC 2104 section 3).
        Self { mac: <Hmac<Sha1> as KeyInit>::new_from_slice(key).expect("an HMAC takes any key") }
    }

    /// A nonce for this client, good from now on.
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

    /// Whether a nonce was minted for this client within the last `lifetime` seconds.
    #[must_use]
    pub fn is_fresh(&self, now: UnixSeconds, lifetime: u64, client: &FiveTuple, nonce: &[u8]) -> bool {
        let mut raw = [0; TIME_BYTES + TAG_BYTES];
        if nonce.len() != NONCE_BYTES || BASE64.decode_slice(nonce, &mut raw) != Ok(raw.len()) {
            return false;
        }
        let Some((&time, tag)) = raw.split_first_chunk::<TIME_BYTES>() else { return false };
        let age = (now.0 as u32).wrapping_sub(u32::from_be_bytes(time));
        u64::from(age) <= lifetime && bool::from(self.tag(time, client).as_slice().ct_eq(tag))
    }

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
    use crate::protocol::address::{ClientAddress, ServerAddress};

    fn client(port: u16) -> FiveTuple {
        FiveTuple {
            client: ClientAddress::new([192, 0, 2, 1].into(), port),
            server: ServerAddress::new([192, 0, 2, 2].into(), 3478),
            transport: Transport::Udp,
        }
    }

    #[test]
    fn nonce_is_good_for_its_lifetime_and_its_client_only() {
        let nonces = Nonces::new(&[1; 32]);
        let nonce = nonces.mint(UnixSeconds(1000), &client(5));
        assert_eq!(nonce.len(), 24);
        assert!(nonces.is_fresh(UnixSeconds(1000), 60, &client(5), &nonce));
        assert!(nonces.is_fresh(UnixSeconds(1060), 60, &client(5), &nonce));
        assert!(!nonces.is_fresh(UnixSeconds(1061), 60, &client(5), &nonce));
        assert!(!nonces.is_fresh(UnixSeconds(999), 60, &client(5), &nonce), "from the future");
        assert!(!nonces.is_fresh(UnixSeconds(1000), 60, &client(6), &nonce));
        assert!(!Nonces::new(&[2; 32]).is_fresh(UnixSeconds(1000), 60, &client(5), &nonce));
        let mut forged = nonce;
        forged[0] ^= 1;
        assert!(!nonces.is_fresh(UnixSeconds(1000), 60, &client(5), &forged));
        assert!(!nonces.is_fresh(UnixSeconds(1000), 60, &client(5), b"short"));
    }
}
