//! A TURN client on a link: requests with their authentication, and data both ways.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::address::{Address, Family};
use crate::check::answer::Login;
use crate::check::link::{Arrival, Link, NoAnswer, Origin};
use crate::wire::attribute::{
    ATTR_ALTERNATE_SERVER, ATTR_CHANNEL_NUMBER, ATTR_DATA, ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM,
    ATTR_REQUESTED_ADDRESS_FAMILY, ATTR_REQUESTED_TRANSPORT, ATTR_SOFTWARE, ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS,
    ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS, ChannelNumber, PROTO_UDP, plain_address, xor_address,
};
use crate::wire::channel_data;
use crate::wire::integrity::IntegrityKey;
use crate::wire::message::{
    AttrType, CLASS_ERROR_RESPONSE, CLASS_INDICATION, CLASS_REQUEST, Known, METHOD_ALLOCATE, METHOD_BINDING,
    METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION, METHOD_REFRESH, METHOD_SEND, Message, MessageType, Method,
    TransactionId,
};
use crate::wire::writer::Writer;

/// How often a request is repeated with the fresh nonce of a 438.
const NONCES_MAX: usize = 3;

/// An attribute of a request.
enum RequestAttribute {
    Bytes(AttrType, Vec<u8>),
    Address(AttrType, SocketAddr),
}

/// An answer that says no.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) code: u16,
    pub(super) reason: String,
    /// Where a 300 sends us.
    pub(super) alternate: Option<SocketAddr>,
}

/// Why a request came to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Failed {
    NoAnswer(NoAnswer),
    Refused(Refused),
    /// The answer is not what the RFC says.
    Strange(&'static str),
}

impl From<NoAnswer> for Failed {
    fn from(error: NoAnswer) -> Self {
        Self::NoAnswer(error)
    }
}

/// The parts of an answer that steps look at.
#[derive(Clone, Debug)]
pub(super) struct ServerAnswer {
    pub(super) refused: Option<Refused>,
    pub(super) mapped: Option<SocketAddr>,
    pub(super) relayed: Option<SocketAddr>,
    pub(super) lifetime: Option<u32>,
    pub(super) realm: Option<Vec<u8>>,
    pub(super) nonce: Option<Vec<u8>>,
    pub(super) software: Option<String>,
    pub(super) has_integrity: bool,
    pub(super) is_signed: bool,
}

fn random_id() -> TransactionId {
    let mut id = [0; 12];
    // Without a random source there are no sockets either; an id of zeros still works for one request.
    let _ = getrandom::fill(&mut id);
    TransactionId(id)
}

fn read(bytes: &[u8], key: Option<&IntegrityKey>) -> Result<ServerAnswer, Failed> {
    let message = Message::parse(bytes).map_err(|_| Failed::Strange("the answer is malformed"))?;
    let address = |attribute| {
        let value = message.all(attribute).next()?;
        xor_address(value, message.transaction_id()).ok().map(SocketAddr::from)
    };
    let refused = match (message.message_type().class, message.get(Known::ErrorCode)) {
        (CLASS_ERROR_RESPONSE, Some([_, _, class, number, reason @ ..])) => Some(Refused {
            code: u16::from(class & 7) * 100 + u16::from(*number),
            reason: String::from_utf8_lossy(reason).into_owned(),
            alternate: message
                .all(ATTR_ALTERNATE_SERVER)
                .next()
                .and_then(|value| plain_address(value).ok())
                .map(SocketAddr::from),
        }),
        (CLASS_ERROR_RESPONSE, _) => return Err(Failed::Strange("an error response without an error code")),
        _ => None,
    };
    Ok(ServerAnswer {
        refused,
        mapped: address(ATTR_XORMAPPED_ADDRESS),
        relayed: address(ATTR_XOR_RELAYED_ADDRESS),
        lifetime: message.lifetime().ok().flatten(),
        realm: message.get(Known::Realm).map(<[u8]>::to_vec),
        nonce: message.get(Known::Nonce).map(<[u8]>::to_vec),
        software: message.all(ATTR_SOFTWARE).next().map(|text| String::from_utf8_lossy(text).into_owned()),
        has_integrity: message.has_integrity(),
        is_signed: key.is_some_and(|key| key.verifies(&message)),
    })
}

struct Challenge {
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: IntegrityKey,
}

/// One client of the server.
pub(super) struct Client {
    pub(super) link: Link,
    login: Login,
    challenge: Option<Challenge>,
    pub(super) relayed: Option<SocketAddr>,
}

impl Client {
    pub(super) fn new(link: Link, login: Login) -> Self {
        Self { link, login, challenge: None, relayed: None }
    }

    fn write(
        &self,
        message_type: MessageType,
        id: TransactionId,
        wanted: &[RequestAttribute],
        is_signed: bool,
    ) -> Result<Vec<u8>, Failed> {
        let payload: usize = wanted
            .iter()
            .map(|wanted| if let RequestAttribute::Bytes(_, bytes) = wanted { bytes.len() + 8 } else { 32 })
            .sum();
        let mut bytes = vec![0; payload + 4096];
        let mut writer = Writer::new(&mut bytes, message_type, id);
        for attribute in wanted {
            match attribute {
                RequestAttribute::Bytes(name, value) => writer.attribute(*name, value),
                RequestAttribute::Address(name, address) => writer.xor_address(*name, Address::from(*address)),
            };
        }
        if let (Some(challenge), true) = (&self.challenge, is_signed) {
            writer.attribute(ATTR_USERNAME, self.login.username.as_bytes());
            writer.attribute(ATTR_REALM, &challenge.realm);
            writer.attribute(ATTR_NONCE, &challenge.nonce);
            writer.integrity(&challenge.key);
        }
        if message_type.class == CLASS_REQUEST {
            writer.fingerprint();
        }
        let len = writer.finish().ok_or(Failed::Strange("the request does not fit into a message"))?;
        bytes.truncate(len);
        Ok(bytes)
    }

    async fn ask(&self, method: Method, wanted: &[RequestAttribute], is_signed: bool) -> Result<ServerAnswer, Failed> {
        let id = random_id();
        let request = self.write(MessageType { method, class: CLASS_REQUEST }, id, wanted, is_signed)?;
        let response = self.link.ask(id, &request).await?;
        let key = self.challenge.as_ref().filter(|_| is_signed).map(|challenge| &challenge.key);
        read(&response, key)
    }

    /// Asks, signed; a stale nonce is replaced.
    async fn request(&mut self, method: Method, wanted: &[RequestAttribute]) -> Result<ServerAnswer, Failed> {
        let mut tries = 0;
        loop {
            let answer = self.ask(method, wanted, true).await?;
            tries += 1;
            match &answer.refused {
                Some(Refused { code: 438, .. }) if tries < NONCES_MAX && self.accept_challenge(&answer) => {}
                Some(refused) => return Err(Failed::Refused(refused.clone())),
                None => return Ok(answer),
            }
        }
    }

    /// Takes realm and nonce over; whether both were there.
    pub(super) fn accept_challenge(&mut self, answer: &ServerAnswer) -> bool {
        let (Some(realm), Some(nonce)) = (answer.realm.clone(), answer.nonce.clone()) else { return false };
        let key = IntegrityKey::long_term(self.login.username.as_bytes(), &realm, self.login.password.as_bytes());
        self.challenge = Some(Challenge { realm, nonce, key });
        true
    }

    /// One Binding within a time, sent once: for measuring.
    pub(super) async fn ping(&self, within: Duration) -> Option<Duration> {
        let id = random_id();
        let request = self.write(MessageType { method: METHOD_BINDING, class: CLASS_REQUEST }, id, &[], false).ok()?;
        let asked = Instant::now();
        self.link.ask_once(id, &request, within).await.ok().map(|_| asked.elapsed())
    }

    pub(super) async fn binding(&self) -> Result<ServerAnswer, Failed> {
        self.ask(METHOD_BINDING, &[], false).await
    }

    fn allocate_attributes(family: Option<Family>) -> Vec<RequestAttribute> {
        let mut wanted = vec![RequestAttribute::Bytes(ATTR_REQUESTED_TRANSPORT, vec![PROTO_UDP.0, 0, 0, 0])];
        if let Some(family) = family {
            let number = match family {
                Family::V4 => 1,
                Family::V6 => 2,
            };
            wanted.push(RequestAttribute::Bytes(ATTR_REQUESTED_ADDRESS_FAMILY, vec![number, 0, 0, 0]));
        }
        wanted
    }

    /// Allocate without credentials, which must be refused.
    pub(super) async fn allocate_unsigned(&self) -> Result<ServerAnswer, Failed> {
        self.ask(METHOD_ALLOCATE, &Self::allocate_attributes(None), false).await
    }

    /// Allocate with credentials.
    pub(super) async fn allocate(&mut self, family: Option<Family>) -> Result<ServerAnswer, Failed> {
        if self.challenge.is_none() {
            let challenge = self.allocate_unsigned().await?;
            if !self.accept_challenge(&challenge) {
                return Err(challenge.refused.map_or(Failed::Strange("no challenge"), Failed::Refused));
            }
        }
        let answer = self.request(METHOD_ALLOCATE, &Self::allocate_attributes(family)).await?;
        let relayed = answer.relayed.ok_or(Failed::Strange("success without a relayed address"))?;
        self.relayed = Some(relayed);
        Ok(answer)
    }

    pub(super) async fn permit(&mut self, peer: SocketAddr) -> Result<(), Failed> {
        self.request(METHOD_CREATE_PERMISSION, &[RequestAttribute::Address(ATTR_XOR_PEER_ADDRESS, peer)])
            .await
            .map(|_| ())
    }

    pub(super) async fn bind(&mut self, number: u16, peer: SocketAddr) -> Result<(), Failed> {
        let [high, low] = number.to_be_bytes();
        let channel = RequestAttribute::Bytes(ATTR_CHANNEL_NUMBER, vec![high, low, 0, 0]);
        self.request(METHOD_CHANNEL_BIND, &[channel, RequestAttribute::Address(ATTR_XOR_PEER_ADDRESS, peer)])
            .await
            .map(|_| ())
    }

    /// Ends the allocation.
    pub(super) async fn release(&mut self) -> Result<(), Failed> {
        self.relayed = None;
        self.request(METHOD_REFRESH, &[RequestAttribute::Bytes(ATTR_LIFETIME, vec![0; 4])]).await.map(|_| ())
    }

    pub(super) async fn refresh(&mut self) -> Result<u32, Failed> {
        let answer = self.request(METHOD_REFRESH, &[]).await?;
        answer.lifetime.ok_or(Failed::Strange("success without a lifetime"))
    }

    pub(super) async fn send_indication(&self, peer: SocketAddr, payload: &[u8]) -> Result<(), Failed> {
        let wanted = [
            RequestAttribute::Address(ATTR_XOR_PEER_ADDRESS, peer),
            RequestAttribute::Bytes(ATTR_DATA, payload.to_vec()),
        ];
        let message_type = MessageType { method: METHOD_SEND, class: CLASS_INDICATION };
        let bytes = self.write(message_type, random_id(), &wanted, false)?;
        Ok(self.link.send(&bytes).await?)
    }

    pub(super) async fn send_channel(&self, number: u16, payload: &[u8]) -> Result<(), Failed> {
        let len =
            u16::try_from(payload.len()).map_err(|_| Failed::Strange("ChannelData carries up to 65,535 bytes"))?;
        let mut bytes = channel_data::head(ChannelNumber(number), len).to_vec();
        bytes.extend_from_slice(payload);
        Ok(self.link.send(&bytes).await?)
    }

    /// Waits for exactly this payload; what else comes is dropped.
    pub(super) async fn expect(&mut self, payload: &[u8], within: Duration) -> Option<Origin> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let arrival: Arrival = self.link.arrival(left).await?;
            if arrival.payload == payload {
                return Some(arrival.from);
            }
        }
    }
}
