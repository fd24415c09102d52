//! Live sessions as JSON, and which of them a call means.

use std::borrow::Cow;
use std::net::SocketAddr;

use axum::http::Uri;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::refused::AdminRefused;
use crate::calendar::rfc3339;
use crate::net::Cursor;
use crate::ops::refusals::address;
use crate::ops::revocations::check_name;
use crate::printable::is_printable;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::border::Selector;
use crate::protocol::ids::SessionId;
use crate::protocol::revocation::Subject;

/// How many one answer has by default, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1000;

/// What is asked for.
#[derive(Default, Debug)]
pub(super) struct SessionsQuery {
    user: Option<String>,
    tenant: Option<String>,
    client: Option<IpNet>,
    pub(super) limit: usize,
    pub(super) after: Cursor,
}

impl SessionsQuery {
    pub(super) fn parse(uri: &Uri) -> Result<Self, AdminRefused> {
        let bad = |text: &'static str| AdminRefused::BadRequest(Cow::Borrowed(text));
        let mut query = Self { limit: LIMIT, ..Self::default() };
        for (name, value) in parameters(uri)? {
            match &*name {
                "user" => query.user = Some(value),
                "tenant" => query.tenant = Some(value),
                "client" => {
                    let what = "client must be an address, with or without a port, or a prefix, such as 192.0.2.0/24";
                    query.client = Some(prefix(&value).ok_or_else(|| bad(what))?);
                }
                "limit" => query.limit = limit(&value, LIMIT_MAX)?,
                "after" => query.after = value.parse().map_err(|()| bad("after must be the `next` of an answer"))?,
                _ => return Err(unknown(&name, "user, tenant, client, limit and after")),
            }
        }
        Ok(query)
    }

    pub(super) fn includes(&self, session: &SessionRecord) -> bool {
        self.user.as_deref().is_none_or(|user| user == &*session.identity)
            && self.tenant.as_deref().is_none_or(|tenant| Some(tenant) == session.tenant.as_deref())
            && self.client.is_none_or(|net| net.contains(&session.via.five_tuple().client.ip().to_canonical()))
    }
}

/// A prefix, or an address with or without a port.
pub(super) fn prefix(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| address(text).map(IpNet::from))
}

/// The networks whose failures are forgotten.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct ForgiveRequest {
    #[serde(default)]
    pub(super) network: String,
}

impl ForgiveRequest {
    pub(super) fn prefix(&self) -> Result<IpNet, AdminRefused> {
        let what = "network must be an address, with or without a port, or a prefix, such as 192.0.2.0/24";
        prefix(&self.network).ok_or(AdminRefused::BadRequest(Cow::Borrowed(what)))
    }
}

/// The parameters of a query, each of them once.
pub(super) fn parameters(uri: &Uri) -> Result<Vec<(String, String)>, AdminRefused> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned() {
        if found.iter().any(|(known, _)| *known == name) {
            return Err(AdminRefused::BadRequest(format!("the parameter {} is there twice", shown(&name)).into()));
        }
        found.push((name, value));
    }
    Ok(found)
}

/// A name that a caller chose, in quotes and not too long.
pub(super) fn shown(name: &str) -> String {
    let name: String = name.chars().take(40).map(|c| if is_printable(c) { c } else { '?' }).collect();
    format!("{name:?}")
}

pub(super) fn unknown(name: &str, known: &str) -> AdminRefused {
    AdminRefused::BadRequest(format!("there is no parameter {}; known are {known}", shown(name)).into())
}

/// A number of things to tell.
pub(super) fn limit(text: &str, max: usize) -> Result<usize, AdminRefused> {
    text.parse()
        .ok()
        .filter(|limit| (1..=max).contains(limit))
        .ok_or_else(|| AdminRefused::BadRequest(format!("limit must be a number from 1 to {max}").into()))
}

/// Takes a session's name apart, as logs and records have it.
pub(super) fn session_id(text: &str) -> Option<SessionId> {
    let (instance, number) = text.split_once('-')?;
    let fits = instance.len() == 16 && !number.is_empty() && number.len() <= 16;
    let hex = |text: &str| {
        (fits && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    Some(SessionId { instance: hex(instance)?, number: hex(number)? })
}

/// The names that the usage records have, as far as both have them.
///
/// `realm` is the server's own, of sessions that have no other.
pub(super) fn show(session: &SessionRecord, realm: &str) -> Value {
    let (to_peers, to_client) = (session.traffic.to_peers, session.traffic.to_client);
    let five_tuple = session.via.five_tuple();
    let duration_ms = session.ended_at.since(session.created_at);
    let dropped: Map<String, Value> = session
        .dropped
        .iter()
        .map(|(why, amount)| (why.name().to_owned(), json!({ "packets": amount.packets, "bytes": amount.bytes })))
        .collect();
    json!({
        "session": session.session.to_string(),
        "user": session.identity,
        "credential": session.username,
        "tenant": session.tenant,
        "realm": session.realm.as_deref().unwrap_or(realm),
        "secret": session.secret.as_deref(),
        "client": SocketAddr::from(five_tuple.client).to_string(),
        "server": SocketAddr::from(five_tuple.server).to_string(),
        "transport": five_tuple.transport.name(),
        "relayed": session.relayed.to_string(),
        "additional_relayed": session.additional.map(|of| of.relayed.to_string()),
        "relay_transport": session.relay_transport(),
        "started": rfc3339(session.unix.0.saturating_sub(duration_ms / 1000)),
        "duration_s": duration_ms / 1000,
        "bytes_from_client": to_peers.received.bytes,
        "bytes_to_client": to_client.sent().bytes,
        "bytes_from_peers": to_client.received.bytes,
        "bytes_to_peers": to_peers.sent().bytes,
        "packets_from_client": to_peers.received.packets,
        "packets_to_client": to_client.sent().packets,
        "packets_from_peers": to_client.received.packets,
        "packets_to_peers": to_peers.sent().packets,
        "dropped": dropped,
    })
}

/// The subject that a body names.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct SubjectRequest {
    session: Option<String>,
    credential: Option<String>,
    user: Option<String>,
    tenant: Option<String>,
    #[serde(default)]
    undo: bool,
}

impl SubjectRequest {
    /// For ending sessions.
    pub(super) fn selector(self) -> Result<Selector, AdminRefused> {
        let bad = |text: &'static str| AdminRefused::BadRequest(Cow::Borrowed(text));
        if self.undo {
            return Err(bad("an ended session can't be restored; `undo` belongs to /v1/revoke"));
        }
        if let Some(session) = &self.session {
            if self.credential.is_some() || self.user.is_some() || self.tenant.is_some() {
                return Err(bad("give a session, or a user, credential or tenant, not both"));
            }
            let session = session_id(session);
            let what = "a session's name looks like 1f2e3d4c5b6a7988-1a, as logs and records have it";
            return session.map(Selector::Session).ok_or_else(|| bad(what));
        }
        self.whose().map(Selector::Subject)
    }

    /// For revoking: whose credentials, and whether to undo it.
    pub(super) fn revocation(self) -> Result<(Subject, bool), AdminRefused> {
        if self.session.is_some() {
            return Err(AdminRefused::BadRequest(
                "a session is kicked, not revoked; name its credential, user or tenant".into(),
            ));
        }
        let undo = self.undo;
        self.whose().map(|whose| (whose, undo))
    }

    fn whose(self) -> Result<Subject, AdminRefused> {
        for (field, name) in [("credential", &self.credential), ("user", &self.user), ("tenant", &self.tenant)] {
            if let Some(Err(what)) = name.as_deref().map(check_name) {
                return Err(AdminRefused::BadRequest(format!("{field} {what}").into()));
            }
        }
        match (self.credential, self.user, self.tenant) {
            (Some(username), None, None) => Ok(Subject::Credential(username.into())),
            (None, Some(user), tenant) => Ok(Subject::User { user: user.into(), tenant: tenant.map(Into::into) }),
            (None, None, Some(tenant)) => Ok(Subject::Tenant(tenant.into())),
            (None, None, None) => Err(AdminRefused::BadRequest("name a credential, a user or a tenant".into())),
            (Some(_), Some(_), _) | (Some(_), None, Some(_)) => {
                Err(AdminRefused::BadRequest("give a credential without user and tenant: it has one of each".into()))
            }
        }
    }
}

/// What JSON says of a subject, with the names that calls take.
pub(super) fn show_whose(whose: &Subject) -> Map<String, Value> {
    let mut shown = Map::new();
    match whose {
        Subject::Credential(username) => drop(shown.insert("credential".to_owned(), json!(username))),
        Subject::User { user, tenant } => {
            shown.insert("user".to_owned(), json!(user));
            if let Some(tenant) = tenant {
                shown.insert("tenant".to_owned(), json!(tenant));
            }
        }
        Subject::Tenant(tenant) => drop(shown.insert("tenant".to_owned(), json!(tenant))),
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_as_in_the_log() {
        let session = SessionId { instance: 0x1f, number: 0x1a };
        assert_eq!(session_id(&session.to_string()), Some(session));
        for wrong in
            ["", "1f-1a", "000000000000001f-", "000000000000001f-+1", "+00000000000001f-1", "00000000000001fé-1"]
        {
            assert_eq!(session_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_call_means_a_session_or_one_kind_of_party() {
        let meant = |text: &str| serde_json::from_str::<SubjectRequest>(text).unwrap();
        let session = r#"{"session":"000000000000001f-1a"}"#;
        assert_eq!(meant(session).selector(), Ok(Selector::Session(SessionId { instance: 0x1f, number: 0x1a })));
        let user = Subject::User { user: "a".into(), tenant: Some("t".into()) };
        assert_eq!(meant(r#"{"user":"a","tenant":"t"}"#).selector(), Ok(Selector::Subject(user.clone())));
        assert_eq!(meant(r#"{"user":"a","tenant":"t","undo":true}"#).revocation(), Ok((user.clone(), true)));
        assert_eq!(Value::Object(show_whose(&user)), json!({ "user": "a", "tenant": "t" }));
        let credential = Subject::Credential("9:a".into());
        assert_eq!(meant(r#"{"credential":"9:a"}"#).revocation(), Ok((credential.clone(), false)));
        assert_eq!(Value::Object(show_whose(&credential)), json!({ "credential": "9:a" }));
        for wrong in [
            "{}",
            r#"{"user":""}"#,
            r#"{"user":"a\u0000"}"#,
            r#"{"credential":"9:a","user":"a"}"#,
            r#"{"credential":"9:a","tenant":"t"}"#,
        ] {
            assert!(meant(wrong).revocation().is_err() && meant(wrong).selector().is_err(), "{wrong}");
        }
        assert!(meant(session).revocation().is_err());
        assert!(meant(r#"{"user":"a","undo":true}"#).selector().is_err());
        assert!(meant(r#"{"session":"000000000000001f-1a","user":"a"}"#).selector().is_err());
        assert!(serde_json::from_str::<SubjectRequest>(r#"{"usr":"a"}"#).is_err(), "a misspelt word is not ignored");
    }

    #[test]
    fn a_question_has_known_parameters_and_a_bounded_answer() {
        let parse = |text: &str| SessionsQuery::parse(&text.parse().unwrap());
        let query = parse("/v1/sessions").unwrap();
        assert_eq!((query.limit, query.after), (100, Cursor::default()));
        let query = parse("/v1/sessions?user=a%20b&client=192.0.2.0/24&limit=1000&after=1-7").unwrap();
        assert_eq!((query.user.as_deref(), query.limit), (Some("a b"), 1000));
        // As answers show a client, and as people write an address.
        for client in [
            "192.0.2.7",
            "192.0.2.7:51734",
            "[2001:db8::7]:51734",
            "[2001:db8::7]",
            "::ffff:192.0.2.7",
            "2001:db8::/32",
        ] {
            assert!(parse(&format!("/v1/sessions?client={client}")).unwrap().client.is_some(), "{client}");
        }
        for wrong in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "client=home",
            "client=192.0.2.7:x",
            "after=x",
            "usr=a",
            "limit=1&limit=2",
        ] {
            assert!(parse(&format!("/v1/sessions?{wrong}")).is_err(), "{wrong}");
        }
    }
}
