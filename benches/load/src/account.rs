//! Long-term credentials of one client, and the judgement on every answer it gets.

use std::net::SocketAddrV4;

use crate::stun::{self, Builder, Message};

/// A user and what the server said last: realm and nonce (RFC 8489 section 9.2).
#[derive(Clone)]
pub struct Account {
    user: String,
    password: String,
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: [u8; 16],
}

impl Account {
    pub fn new(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
            realm: Vec::new(),
            nonce: Vec::new(),
            key: stun::long_term_key(user, &[], password),
        }
    }

    /// Whether a server has ever challenged this account: without a nonce nothing can be signed.
    pub fn is_challenged(&self) -> bool {
        !self.nonce.is_empty()
    }

    /// Takes realm and nonce from a 401 or 438.
    pub fn learn(&mut self, challenge: &Message<'_>) -> Result<(), &'static str> {
        let nonce = challenge.attribute(stun::NONCE).filter(|nonce| !nonce.is_empty());
        let nonce = nonce.ok_or("a challenge without NONCE")?;
        self.nonce.clear();
        self.nonce.extend(nonce);
        if let Some(realm) = challenge.attribute(stun::REALM)
            && realm != self.realm
        {
            self.realm = realm.to_vec();
            self.key = stun::long_term_key(&self.user, &self.realm, &self.password);
        }
        Ok(())
    }

    /// Ends a request with the credentials and MESSAGE-INTEGRITY.
    pub fn sign(&self, request: Builder) -> Vec<u8> {
        self.sign_with_nonce(request, &self.nonce)
    }

    pub fn sign_with_nonce(&self, request: Builder, nonce: &[u8]) -> Vec<u8> {
        request
            .attribute(stun::USERNAME, self.user.as_bytes())
            .attribute(stun::REALM, &self.realm)
            .attribute(stun::NONCE, nonce)
            .sign(&self.key)
    }

    pub fn has_signed(&self, answer: &Message<'_>) -> bool {
        answer.is_signed_with(&self.key)
    }
}

/// What a request was, as far as its answer must fit it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    pub method: u16,
    pub signed: bool,
    /// LIFETIME of a Refresh.
    pub lifetime: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Everything the method's answer must carry is there and right; the address is that of an Allocate.
    Success { relayed: Option<SocketAddrV4> },
    /// 401 to an unsigned request, or 438: the account has learned, the request may be sent again.
    Challenged(u16),
    /// Any other error response: `error 486 Allocation Quota Reached`.
    Refused(String),
    /// The right transaction, and still not what the RFC allows.
    Wrong(&'static str),
    /// No answer to seven transmissions.
    TimedOut,
}

/// Judges an answer whose transaction id fits. `client` is the address that the request left from.
pub fn judge(asked: Asked, answer: &Message<'_>, client: SocketAddrV4, account: &mut Account) -> Outcome {
    if let Some(code) = answer.error_code() {
        if answer.kind() != asked.method | stun::ERROR {
            return Outcome::Wrong("an error response of another method");
        }
        return match code {
            401 if !asked.signed => account.learn(answer).map_or_else(Outcome::Wrong, |()| Outcome::Challenged(code)),
            438 if asked.signed => account.learn(answer).map_or_else(Outcome::Wrong, |()| Outcome::Challenged(code)),
            _ => Outcome::Refused(describe(answer)),
        };
    }
    if answer.kind() != asked.method | stun::SUCCESS {
        return Outcome::Wrong("an answer of another type");
    }
    if asked.signed && !account.has_signed(answer) {
        return Outcome::Wrong("a success response without valid MESSAGE-INTEGRITY");
    }
    if !asked.signed && asked.method != stun::BINDING {
        return Outcome::Wrong("a success response to a request without credentials");
    }
    let lifetime = || answer.attribute(stun::LIFETIME).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
    let mapped = || answer.xor_address(stun::XOR_MAPPED_ADDRESS) == Some(client);
    let mut relayed = None;
    match asked.method {
        stun::BINDING if !mapped() => return Outcome::Wrong("an XOR-MAPPED-ADDRESS that is not the client's"),
        stun::ALLOCATE => {
            relayed = answer.xor_address(stun::XOR_RELAYED_ADDRESS).filter(|a| a.port() != 0);
            if relayed.is_none() {
                return Outcome::Wrong("an Allocate success response without IPv4 XOR-RELAYED-ADDRESS");
            }
            if !mapped() {
                return Outcome::Wrong("an XOR-MAPPED-ADDRESS that is not the client's");
            }
            if lifetime().is_none_or(|seconds| seconds == 0) {
                return Outcome::Wrong("an Allocate success response without LIFETIME");
            }
        }
        // RFC 8656 section 7.3: a deletion is answered with lifetime 0, and only that
        stun::REFRESH if lifetime().is_none_or(|seconds| (seconds == 0) != (asked.lifetime == Some(0))) => {
            return Outcome::Wrong("a Refresh success response with another LIFETIME than asked for");
        }
        _ => {}
    }
    Outcome::Success { relayed }
}

pub fn describe(message: &Message<'_>) -> String {
    match message.error_code() {
        Some(code) => {
            let reason = message.attribute(stun::ERROR_CODE).and_then(|value| value.get(4..)).unwrap_or_default();
            format!("error {code} {}", String::from_utf8_lossy(reason))
        }
        None => format!("message type {:#06x}", message.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(127, 1, 0, 9), 40_000);
    const RELAYED: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 50_000);

    fn account() -> Account {
        let mut account = Account::new("user", "pass");
        let challenge = Builder::new(stun::ALLOCATE | stun::ERROR, [1; 12])
            .attribute(stun::ERROR_CODE, &[0, 0, 4, 1])
            .attribute(stun::REALM, b"realm")
            .attribute(stun::NONCE, b"first")
            .unsigned();
        account.learn(&Message::parse(&challenge).expect("well formed")).expect("a challenge");
        account
    }

    fn judged(asked: Asked, bytes: &[u8]) -> Outcome {
        judge(asked, &Message::parse(bytes).expect("well formed"), CLIENT, &mut account())
    }

    fn allocated(client: SocketAddrV4, relayed: SocketAddrV4, lifetime: u32) -> Builder {
        Builder::new(stun::ALLOCATE | stun::SUCCESS, [1; 12])
            .xor_address(stun::XOR_RELAYED_ADDRESS, relayed)
            .xor_address(stun::XOR_MAPPED_ADDRESS, client)
            .attribute(stun::LIFETIME, &lifetime.to_be_bytes())
    }

    const ALLOCATE: Asked = Asked { method: stun::ALLOCATE, signed: true, lifetime: None };

    #[test]
    fn an_allocate_success_must_be_signed_and_carry_the_right_addresses() {
        let key = account().key;
        let elsewhere = SocketAddrV4::new(*CLIENT.ip(), 1);
        assert_eq!(
            judged(ALLOCATE, &allocated(CLIENT, RELAYED, 600).sign(&key)),
            Outcome::Success { relayed: Some(RELAYED) }
        );
        for wrong in [
            allocated(CLIENT, RELAYED, 600).unsigned(),
            allocated(CLIENT, RELAYED, 600).sign(&[0; 16]),
            allocated(elsewhere, RELAYED, 600).sign(&key),
            allocated(CLIENT, RELAYED, 0).sign(&key),
            Builder::new(stun::ALLOCATE | stun::SUCCESS, [1; 12]).sign(&key),
            Builder::new(stun::REFRESH | stun::SUCCESS, [1; 12]).sign(&key),
        ] {
            assert!(matches!(judged(ALLOCATE, &wrong), Outcome::Wrong(_)));
        }
        let open = Asked { signed: false, ..ALLOCATE };
        assert!(matches!(judged(open, &allocated(CLIENT, RELAYED, 600).unsigned()), Outcome::Wrong(_)));
    }

    #[test]
    fn a_refresh_is_answered_with_the_lifetime_that_was_asked_for() {
        let key = account().key;
        let answer = |seconds: u32| {
            Builder::new(stun::REFRESH | stun::SUCCESS, [1; 12])
                .attribute(stun::LIFETIME, &seconds.to_be_bytes())
                .sign(&key)
        };
        let asked = |seconds| Asked { method: stun::REFRESH, signed: true, lifetime: Some(seconds) };
        assert_eq!(judged(asked(0), &answer(0)), Outcome::Success { relayed: None });
        assert_eq!(judged(asked(600), &answer(600)), Outcome::Success { relayed: None });
        assert!(matches!(judged(asked(0), &answer(600)), Outcome::Wrong(_)));
        assert!(matches!(judged(asked(600), &answer(0)), Outcome::Wrong(_)));
    }

    #[test]
    fn a_binding_that_names_another_address_is_wrong() {
        let asked = Asked { method: stun::BINDING, signed: false, lifetime: None };
        let answer = |address| {
            Builder::new(stun::BINDING | stun::SUCCESS, [1; 12])
                .xor_address(stun::XOR_MAPPED_ADDRESS, address)
                .unsigned()
        };
        assert_eq!(judged(asked, &answer(CLIENT)), Outcome::Success { relayed: None });
        assert!(matches!(judged(asked, &answer(RELAYED)), Outcome::Wrong(_)));
        assert!(matches!(judged(asked, &Builder::new(0x0101, [1; 12]).unsigned()), Outcome::Wrong(_)));
    }

    #[test]
    fn a_challenge_teaches_and_every_other_error_is_told_with_its_reason() {
        let error = |code: [u8; 2], reason: &[u8]| {
            Builder::new(stun::ALLOCATE | stun::ERROR, [1; 12])
                .attribute(stun::ERROR_CODE, &[&[0, 0, code[0], code[1]], reason].concat())
                .attribute(stun::NONCE, b"second")
                .unsigned()
        };
        let mut account = account();
        let stale = error([4, 38], b"Stale Nonce");
        let stale = Message::parse(&stale).expect("well formed");
        assert_eq!(judge(ALLOCATE, &stale, CLIENT, &mut account), Outcome::Challenged(438));
        assert_eq!(account.nonce, b"second");
        let open = Asked { signed: false, ..ALLOCATE };
        assert_eq!(judged(open, &error([4, 1], b"Unauthorized")), Outcome::Challenged(401));
        assert_eq!(judged(ALLOCATE, &error([4, 1], b"no")), Outcome::Refused("error 401 no".to_owned()));
        assert_eq!(judged(ALLOCATE, &error([4, 86], b"full")), Outcome::Refused("error 486 full".to_owned()));
    }
}
