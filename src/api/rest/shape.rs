//! One credential in the shape that each consumer reads. Nothing here decides anything.
//!
//! A consumer hard-codes status, names, nesting and even whether a number is a string, so each shape keeps
//! its own; golden files in tests/vectors/rest hold them.

use std::fmt::Write as _;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::limits;
use super::own_key;
use super::refused::IssueRefused;
use crate::address::Transport;
use crate::calendar::{rfc2822, rfc3339};
use crate::credentials::claims::Grant;
use crate::turn_uri::TurnUri;

/// Who reads the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Ours: each fact once, under the names of the draft and of RTCConfiguration.
    All,
    /// draft-uberti-behave-turn-rest-00.
    Draft,
    /// The same as Nextcloud's signalling server hands it out, whose callers want 400 where a key is missing.
    DraftOfNextcloud,
    /// RTCConfiguration.
    Ice,
    /// Matrix `turnServer`.
    Matrix,
    /// Cloudflare, `iceServers` as an array.
    Cloudflare,
    /// Cloudflare before that, `iceServers` as an object.
    CloudflareOld,
    /// Cloudflare's call to revoke a credential: 204 without a body.
    CloudflareRevoke,
    /// Twilio Network Traversal Service.
    Twilio,
    /// Metered: a bare array.
    Metered,
    /// Metered: a credential that is a key to itself.
    MeteredNew,
    /// Where the servers are, without a credential.
    WellKnown,
    /// XEP-0215 as JSON.
    Xep0215,
    /// XEP-0215 as XML.
    Xep0215Xml,
}

/// A minted credential and everything that some shape tells about it.
#[derive(Clone, Debug)]
pub(super) struct IssuedCredential<'a> {
    pub(super) username: &'a str,
    pub(super) password: &'a str,
    pub(super) ttl: u64,
    pub(super) now: u64,
    pub(super) expires_at: u64,
    pub(super) realm: &'a str,
    pub(super) uris: &'a [TurnUri],
    /// The tenant of the user, where the key or the token says it.
    pub(super) tenant: Option<&'a str>,
    /// What it carries.
    pub(super) limits: &'a Grant,
    /// What the caller calls it, for the shape that gives it back.
    pub(super) label: &'a str,
    /// The account in the path of the request, for the shape that has one.
    pub(super) account: &'a str,
}

/// Status, content type and body.
pub(super) type ShapedResponse = (StatusCode, &'static str, String);

const JSON: &str = "application/json";

impl Shape {
    /// Which methods ask for it.
    #[must_use]
    pub const fn methods(self) -> &'static str {
        match self {
            Self::All | Self::Draft | Self::DraftOfNextcloud | Self::Ice | Self::Xep0215 | Self::Xep0215Xml => {
                "GET, POST, OPTIONS"
            }
            Self::Matrix | Self::Metered | Self::WellKnown => "GET, OPTIONS",
            Self::Cloudflare | Self::CloudflareOld | Self::CloudflareRevoke | Self::Twilio | Self::MeteredNew => {
                "POST, OPTIONS"
            }
        }
    }

    /// Whether `service=turn` must be there.
    pub(super) const fn needs_service(self) -> bool {
        match self {
            Self::Draft | Self::DraftOfNextcloud => true,
            Self::All
            | Self::Ice
            | Self::Matrix
            | Self::Cloudflare
            | Self::CloudflareOld
            | Self::CloudflareRevoke
            | Self::Twilio
            | Self::Metered
            | Self::MeteredNew
            | Self::WellKnown
            | Self::Xep0215
            | Self::Xep0215Xml => false,
        }
    }

    /// Whether its callers were written for somebody else's server, and may send members that mean something there.
    pub(super) const fn has_foreign_callers(self) -> bool {
        match self {
            Self::All | Self::Xep0215 | Self::Xep0215Xml => false,
            Self::Draft
            | Self::DraftOfNextcloud
            | Self::Ice
            | Self::Matrix
            | Self::Cloudflare
            | Self::CloudflareOld
            | Self::CloudflareRevoke
            | Self::Twilio
            | Self::Metered
            | Self::MeteredNew
            | Self::WellKnown => true,
        }
    }

    /// The answer that carries a credential.
    pub(super) fn render(self, issued: &IssuedCredential<'_>) -> ShapedResponse {
        let IssuedCredential { username, password, ttl, expires_at, .. } = *issued;
        let (stun, turn) = urls(issued.uris);
        let server = json!({ "urls": turn, "username": username, "credential": password });
        let refresh_after = ttl / 2;
        match self {
            Self::All => ok(all(issued, &turn, server, refresh_after)),
            Self::Draft | Self::DraftOfNextcloud | Self::Matrix => {
                ok(json!({ "username": username, "password": password, "ttl": ttl, "uris": turn }))
            }
            Self::Ice => ok(json!({
                "iceServers": [server],
                "iceTransportPolicy": "all",
                "expires_at": expires_at,
                "refresh_after": refresh_after,
            })),
            Self::Cloudflare => {
                let of_stun = (!stun.is_empty()).then(|| json!({ "urls": stun }));
                let servers: Vec<Value> = of_stun.into_iter().chain([server]).collect();
                created(json!({ "iceServers": servers }))
            }
            Self::CloudflareOld => {
                let urls: Vec<&String> = stun.iter().chain(&turn).collect();
                created(json!({ "iceServers": { "urls": urls, "username": username, "credential": password } }))
            }
            Self::Twilio => {
                let date = rfc2822(issued.now);
                created(json!({
                    "username": username,
                    "password": password,
                    "ttl": ttl.to_string(),
                    "account_sid": issued.account,
                    "ice_servers": one_by_one(&stun, &turn, username, password),
                    "date_created": date,
                    "date_updated": date,
                }))
            }
            Self::Metered => {
                let of_stun = stun.iter().map(|url| json!({ "urls": url }));
                let of_turn =
                    turn.iter().map(|url| json!({ "urls": url, "username": username, "credential": password }));
                ok(of_stun.chain(of_turn).collect())
            }
            Self::MeteredNew => ok(json!({
                "username": username,
                "password": password,
                "expiryInSeconds": ttl,
                "label": issued.label,
                "apiKey": own_key::make(username, password),
            })),
            // It is answered before there is a credential.
            Self::CloudflareRevoke => (StatusCode::NO_CONTENT, "", String::new()),
            Self::WellKnown => well_known(issued.realm, issued.uris),
            Self::Xep0215 => ok(json!({ "services": services(issued).iter().map(Service::json).collect::<Vec<_>>() })),
            Self::Xep0215Xml => (StatusCode::OK, "application/xml; charset=utf-8", xml(&services(issued))),
        }
    }

    /// The answer that carries none.
    pub(super) fn refuse(self, refused: &IssueRefused) -> ShapedResponse {
        let sentence = refused.sentence();
        let status = self.status_of(refused);
        let body = match self {
            Self::Matrix => {
                let code = match refused {
                    IssueRefused::NoKey => "M_MISSING_TOKEN",
                    IssueRefused::WrongKey | IssueRefused::BadToken(_) => "M_UNKNOWN_TOKEN",
                    IssueRefused::RateKey(_) | IssueRefused::RateUser(_) | IssueRefused::RateFailures(_) => {
                        "M_LIMIT_EXCEEDED"
                    }
                    IssueRefused::NoMethod
                    | IssueRefused::Address
                    | IssueRefused::Host
                    | IssueRefused::Origin
                    | IssueRefused::Revoked => "M_FORBIDDEN",
                    IssueRefused::BadRequest(_) | IssueRefused::UnknownMember(_) | IssueRefused::BadUser(_) => {
                        "M_INVALID_PARAM"
                    }
                    IssueRefused::TooLarge => "M_TOO_LARGE",
                    IssueRefused::Method => "M_UNRECOGNIZED",
                    IssueRefused::NoServers => "M_NOT_FOUND",
                    IssueRefused::Slow
                    | IssueRefused::NoRandom
                    | IssueRefused::NoTokenKeys
                    | IssueRefused::NotRevoked(_) => "M_UNKNOWN",
                };
                let mut body = json!({ "errcode": code, "error": sentence });
                if let Some(seconds) = refused.retry_after() {
                    body["retry_after_ms"] = json!(seconds * 1000);
                }
                body
            }
            Self::Twilio => {
                let code = match refused {
                    IssueRefused::NoKey | IssueRefused::WrongKey | IssueRefused::BadToken(_) => 20_003,
                    IssueRefused::RateKey(_) | IssueRefused::RateUser(_) | IssueRefused::RateFailures(_) => 20_429,
                    IssueRefused::NoMethod
                    | IssueRefused::Address
                    | IssueRefused::Host
                    | IssueRefused::Origin
                    | IssueRefused::Method
                    | IssueRefused::BadRequest(_)
                    | IssueRefused::UnknownMember(_)
                    | IssueRefused::BadUser(_)
                    | IssueRefused::TooLarge
                    | IssueRefused::Slow
                    | IssueRefused::NoServers
                    | IssueRefused::NoRandom
                    | IssueRefused::NoTokenKeys
                    | IssueRefused::NotRevoked(_)
                    | IssueRefused::Revoked => status.as_u16(),
                };
                json!({ "code": code, "message": sentence, "status": status.as_u16() })
            }
            Self::All
            | Self::Draft
            | Self::DraftOfNextcloud
            | Self::Ice
            | Self::Cloudflare
            | Self::CloudflareOld
            | Self::CloudflareRevoke
            | Self::Metered
            | Self::MeteredNew
            | Self::WellKnown
            | Self::Xep0215
            | Self::Xep0215Xml => json!({ "error": sentence, "reason": refused.name() }),
        };
        (status, JSON, body.to_string())
    }

    /// The draft's family answers 403 to a wrong key, and Nextcloud's callers expect 400 for a missing one.
    #[must_use]
    pub const fn status_of(self, refused: &IssueRefused) -> StatusCode {
        match (self, refused) {
            (Self::DraftOfNextcloud, IssueRefused::NoKey) => StatusCode::BAD_REQUEST,
            (Self::Draft | Self::DraftOfNextcloud, IssueRefused::WrongKey | IssueRefused::BadToken(_)) => {
                StatusCode::FORBIDDEN
            }
            _ => refused.status(),
        }
    }
}

/// The URLs for clients: `stun:`, of which one is enough because each tells a client the same address, and `turn:`.
fn urls(uris: &[TurnUri]) -> (Vec<String>, Vec<String>) {
    let stun = uris.iter().filter_map(TurnUri::as_stun).take(1).map(|uri| uri.to_string()).collect();
    (stun, uris.iter().map(ToString::to_string).collect())
}

/// Our own shape; what is not limited is left out.
fn all(issued: &IssuedCredential<'_>, turn: &[String], server: Value, refresh_after: u64) -> Value {
    let mut body = json!({
        "username": issued.username,
        "password": issued.password,
        "ttl": issued.ttl,
        "expires_at": issued.expires_at,
        "refresh_after": refresh_after,
        "realm": issued.realm,
        "uris": turn,
        "iceServers": [server],
    });
    if let Some(tenant) = issued.tenant {
        body["tenant"] = json!(tenant);
    }
    let limits = limits::json(issued.limits);
    if !limits.is_empty() {
        body["limits"] = Value::Object(limits);
    }
    body
}

/// What is public about the server: it is given without a credential.
pub(super) fn well_known(realm: &str, uris: &[TurnUri]) -> ShapedResponse {
    let (stun, turn) = urls(uris);
    ok(json!({
        "realm": realm,
        "uris": turn,
        "stun": stun,
        "message_integrity": ["HMAC-SHA1"],
        "password_algorithms": ["MD5"],
        "credentials": "/v1/credentials",
    }))
}

fn ok(body: Value) -> ShapedResponse {
    (StatusCode::OK, JSON, body.to_string())
}

fn created(body: Value) -> ShapedResponse {
    (StatusCode::CREATED, JSON, body.to_string())
}

/// One entry for each URL, under the old name and the new one.
fn one_by_one(stun: &[String], turn: &[String], username: &str, password: &str) -> Vec<Value> {
    let of_stun = stun.iter().map(|url| json!({ "url": url, "urls": url }));
    let of_turn =
        turn.iter().map(|url| json!({ "url": url, "urls": url, "username": username, "credential": password }));
    of_stun.chain(of_turn).collect()
}

/// A `<service/>` of XEP-0215.
struct Service<'a> {
    kind: &'static str,
    host: Box<str>,
    port: u16,
    transport: &'static str,
    /// Username, password, end.
    login: Option<(&'a str, &'a str, String)>,
}

fn xml(services: &[Service<'_>]) -> String {
    let mut text = "<services xmlns='urn:xmpp:extdisco:2'>\n".to_owned();
    for service in services {
        service.xml(&mut text);
    }
    text.push_str("</services>\n");
    text
}

fn services<'a>(issued: &IssuedCredential<'a>) -> Vec<Service<'a>> {
    let service = |uri: TurnUri, login| {
        let transport = match uri.transport {
            Transport::Udp => "udp",
            Transport::Tcp | Transport::Tls => "tcp",
        };
        Service { kind: uri.scheme_name(), host: uri.host, port: uri.port, transport, login }
    };
    let stun = issued.uris.iter().filter_map(TurnUri::as_stun).take(1).map(|uri| service(uri, None));
    let login = || Some((issued.username, issued.password, rfc3339(issued.expires_at)));
    stun.chain(issued.uris.iter().map(|uri| service(uri.clone(), login()))).collect()
}

impl Service<'_> {
    fn json(&self) -> Value {
        let mut service =
            json!({ "type": self.kind, "host": self.host, "port": self.port, "transport": self.transport });
        if let Some((username, password, expires)) = &self.login {
            service["username"] = json!(username);
            service["password"] = json!(password);
            service["expires"] = json!(expires);
            service["restricted"] = json!(true);
        }
        service
    }

    fn xml(&self, text: &mut String) {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "  <service type='{}' host='{}' port='{}' transport='{}'",
            self.kind,
            escaped(&self.host),
            self.port,
            self.transport
        );
        if let Some((username, password, expires)) = &self.login {
            let (username, password) = (escaped(username), escaped(password));
            let _ = write!(text, " username='{username}' password='{password}' expires='{expires}' restricted='1'");
        }
        text.push_str("/>\n");
    }
}

/// As an attribute's value; control characters were refused before.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '\'' => safe.push_str("&apos;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}
