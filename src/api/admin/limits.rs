//! Calls for limits of named users and tenants that are set at run time.

use std::collections::HashSet;
use std::sync::Arc;

use axum::http::Uri;
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};

use super::access::Operator;
use super::refused::AdminRefused;
use super::sessions::{parameters, show_whose, shown, unknown};
use crate::calendar::rfc3339;
use crate::credentials::claims::SEPARATOR;
use crate::credentials::parse_username;
use crate::ops::limits::{LimitChange, LimitStore, check, parse};
use crate::ops::refusals::Refusal;
use crate::ops::revocations::check_name;
use crate::protocol::overrides::{LimitName, RunTimeLimit, RunTimeLimits};
use crate::protocol::reject::RejectReason;
use crate::protocol::revocation::Subject;
use crate::time::UnixSeconds;

/// Limits that are to be set.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct SetLimitsRequest {
    user: Option<String>,
    tenant: Option<String>,
    allocations: Option<Value>,
    bandwidth: Option<Value>,
    packet_rate: Option<Value>,
    bytes_per_day: Option<Value>,
}

/// Limits that are to be taken back.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct UnsetLimitsRequest {
    user: Option<String>,
    tenant: Option<String>,
    /// Their names; all of them if there is none.
    #[serde(default)]
    limits: Vec<String>,
}

fn whose(user: Option<String>, tenant: Option<String>) -> Result<Subject, AdminRefused> {
    for (field, name) in [("user", &user), ("tenant", &tenant)] {
        if let Some(Err(what)) = name.as_deref().map(check_name) {
            return Err(AdminRefused::BadRequest(format!("{field} {what}").into()));
        }
    }
    match (user, tenant) {
        (Some(user), tenant) => Ok(Subject::User { user: user.into(), tenant: tenant.map(Into::into) }),
        (None, Some(tenant)) => Ok(Subject::Tenant(tenant.into())),
        (None, None) => Err(AdminRefused::BadRequest("name a user or a tenant".into())),
    }
}

/// A whole number, also where it is written as 4.0: JSON Schema makes no difference.
fn whole(number: &Number) -> Option<u64> {
    // 2^64, which is no u64 any more.
    const END: f64 = 18_446_744_073_709_551_616.0;
    let is_whole = |real: &f64| real.fract() == 0.0 && (0.0..END).contains(real);
    number.as_u64().or_else(|| number.as_f64().filter(is_whole).map(|real| real as u64))
}

/// A limit as a call has it: a number in the smallest unit, or text as in the configuration, or "none".
fn limit(name: LimitName, value: &Value) -> Result<RunTimeLimit, AdminRefused> {
    let result = match value {
        Value::String(text) => parse(name, text),
        Value::Number(number) => match whole(number) {
            Some(number) => check(name, number),
            None => Err("expected a whole number that is greater than 0, or \"none\"".to_owned()),
        },
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err("expected a number, or \"none\" for no limit".to_owned())
        }
    };
    let value = match value {
        Value::String(text) => shown(text),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => "the value".to_owned(),
    };
    result.map_err(|why| AdminRefused::BadRequest(format!("{}: {value}: {why}", name.name()).into()))
}

impl SetLimitsRequest {
    pub(super) fn limits(self) -> Result<(Subject, RunTimeLimits), AdminRefused> {
        let Self { user, tenant, allocations, bandwidth, packet_rate, bytes_per_day } = self;
        let whose = whose(user, tenant)?;
        let mut limits = RunTimeLimits::default();
        for (name, value) in LimitName::ALL.into_iter().zip([allocations, bandwidth, packet_rate, bytes_per_day]) {
            let Some(value) = value else { continue };
            if !name.is_of(&whose) {
                let what = format!("{}: a tenant has no such limit; set it for its users", name.name());
                return Err(AdminRefused::BadRequest(what.into()));
            }
            limits.put(name, Some(limit(name, &value)?));
        }
        if limits.is_empty() {
            return Err(AdminRefused::BadRequest(
                "name a limit: allocations, bandwidth, packet_rate or bytes_per_day".into(),
            ));
        }
        Ok((whose, limits))
    }
}

impl UnsetLimitsRequest {
    pub(super) fn limits(self) -> Result<(Subject, Vec<LimitName>), AdminRefused> {
        let whose = whose(self.user, self.tenant)?;
        let name = |text: &String| {
            let known = LimitName::ALL.into_iter().find(|name| name.name() == text);
            known.ok_or_else(|| {
                let what =
                    "there is no limit of this name; known are allocations, bandwidth, packet_rate and bytes_per_day";
                AdminRefused::BadRequest(format!("limits: {}: {what}", shown(text)).into())
            })
        };
        let names = self.limits.iter().map(name).collect::<Result<_, _>>()?;
        Ok((whose, names))
    }
}

/// What JSON says of an entry: every limit, with null where the configuration has the say.
fn show(whose: &Subject, limits: &RunTimeLimits, issued_at: UnixSeconds) -> Value {
    let mut entry: Map<String, Value> = show_whose(whose);
    for name in LimitName::ALL {
        entry.insert(name.name().to_owned(), json!(limits.get(name)));
    }
    entry.insert("issued".to_owned(), json!(rfc3339(issued_at.0)));
    Value::Object(entry)
}

/// All that are set, or those of a user or a tenant.
pub(super) fn list(store: &LimitStore, uri: &Uri) -> Result<Value, AdminRefused> {
    let (mut user, mut tenant) = (None, None);
    for (name, value) in parameters(uri)? {
        match &*name {
            "user" => user = Some(value),
            "tenant" => tenant = Some(value),
            _ => return Err(unknown(&name, "user and tenant")),
        }
    }
    let found = store.list(|whose| match (whose, &user, &tenant) {
        (_, None, None) => true,
        (Subject::User { user: of, tenant: of_tenant }, user, tenant) => {
            user.as_deref().is_none_or(|user| user == &**of)
                && tenant.as_deref().is_none_or(|tenant| Some(tenant) == of_tenant.as_deref())
        }
        (Subject::Tenant(of), None, Some(tenant)) => **of == **tenant,
        (Subject::Tenant(_) | Subject::Credential(_), ..) => false,
    });
    let entries = found.iter().map(|(whose, entry)| show(whose, &entry.limits, entry.issued_at));
    Ok(json!({ "limits": entries.collect::<Vec<_>>(), "file": store.file() }))
}

/// Sets limits; live sessions follow before the answer.
pub(super) async fn set(
    store: &Arc<LimitStore>,
    by: Operator,
    request: SetLimitsRequest,
    now: UnixSeconds,
) -> Result<Value, AdminRefused> {
    let (whose, limits) = request.limits()?;
    let (limits, change) = store.put(&whose, limits, now).map_err(|error| AdminRefused::Full(error.to_string()))?;
    carry_out(store, by, whose, &limits, change, now).await
}

/// Takes limits back; live sessions follow before the answer.
pub(super) async fn unset(
    store: &Arc<LimitStore>,
    by: Operator,
    request: UnsetLimitsRequest,
    now: UnixSeconds,
) -> Result<Value, AdminRefused> {
    let (whose, names) = request.limits()?;
    let Some((left, change)) = store.unset(&whose, &names, now) else {
        return Err(AdminRefused::NotFound("no such limit is set; `throughway limits show` shows all that are".into()));
    };
    carry_out(store, by, whose, &left, change, now).await
}

/// Lets the live sessions follow a change that holds, and writes it.
async fn carry_out(
    store: &Arc<LimitStore>,
    by: Operator,
    whose: Subject,
    limits: &RunTimeLimits,
    change: LimitChange,
    now: UnixSeconds,
) -> Result<Value, AdminRefused> {
    let entry = show(&whose, limits, now);
    // Before the file: a disk that hangs must not keep the old limit alive.
    let sessions = store.follow(whose).await;
    let saving = Arc::clone(store);
    // Writing a file blocks, so it is done elsewhere.
    let saved = tokio::task::spawn_blocking(move || saving.save(change)).await;
    let saved = saved.map_err(|error| error.to_string()).and_then(|saved| saved.map_err(|error| error.to_string()));
    let is_saved = saved.is_ok() && store.file().is_some();
    tracing::info!(%by, limits = %entry, sessions, is_saved, "limits set at run time by an operator");
    saved.map_err(AdminRefused::NotSaved)?;
    Ok(json!({ "limits": entry, "sessions": sessions, "file": store.file() }))
}

/// Says of refusals for a user's limits whether one of them was set at run time.
pub(super) fn note_refusals(store: &LimitStore, refusals: &mut [Refusal]) {
    fn user_of(refusal: &Refusal) -> Option<&str> {
        let is_of_user = [RejectReason::QuotaUser, RejectReason::QuotaDay].iter().any(|of| refusal.reason == of.name());
        let username = refusal.username.as_deref().filter(|_| is_of_user)?;
        // A static user's name is no username of ours with a time in front.
        let id = parse_username(username).map_or(username, |parts| parts.user_id);
        Some(id.split_once(SEPARATOR).map_or(id, |(id, _)| id))
    }
    let known = store.known_users(&refusals.iter().filter_map(user_of).collect::<HashSet<_>>());
    for refusal in refusals {
        if user_of(refusal).is_some_and(|user| known.contains(user)) {
            refusal
                .remedy
                .push_str("; a limit set at run time stands for this user: see `throughway limits show --user`");
        }
    }
}

/// The error of a body that is a [`SetLimitsRequest`] and an [`UnsetLimitsRequest`] neither.
pub(super) fn check_bodies(bytes: &[u8]) -> Result<(), AdminRefused> {
    let set = super::parse_body::<SetLimitsRequest>(bytes).and_then(SetLimitsRequest::limits).map(drop);
    set.or_else(|_| super::parse_body::<UnsetLimitsRequest>(bytes).and_then(UnsetLimitsRequest::limits).map(drop))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn bad(refused: AdminRefused) -> String {
        match refused {
            AdminRefused::BadRequest(Cow::Owned(text)) => text,
            AdminRefused::BadRequest(Cow::Borrowed(text)) => text.to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_call_sets_numbers_texts_and_none() {
        let body = json!({ "user": "a %s", "tenant": "t", "allocations": 4.0, "bandwidth": "2Mbit/s",
                           "packet_rate": "none", "bytes_per_day": null });
        let (whose, limits) = serde_json::from_value::<SetLimitsRequest>(body).unwrap().limits().unwrap();
        assert_eq!(whose, Subject::User { user: "a %s".into(), tenant: Some("t".into()) });
        let expected = RunTimeLimits {
            allocations: Some(RunTimeLimit::At(4)),
            bandwidth: Some(RunTimeLimit::At(2_000_000)),
            packet_rate: Some(RunTimeLimit::None),
            bytes_per_day: None,
        };
        assert_eq!(limits, expected);
        let shown = show(&whose, &limits, UnixSeconds(0));
        assert_eq!(
            shown,
            json!({ "user": "a %s", "tenant": "t", "allocations": 4, "bandwidth": 2_000_000, "packet_rate": "none",
                    "bytes_per_day": null, "issued": "1970-01-01T00:00:00Z" })
        );
    }

    #[test]
    fn bad_values_are_named_with_a_remedy() {
        let long = "x".repeat(509);
        for (body, why) in [
            (json!({ "allocations": 4 }), "name a user or a tenant"),
            (json!({ "user": "a" }), "name a limit: allocations"),
            (json!({ "user": "a\u{0}b", "allocations": 4 }), "user has control characters"),
            (json!({ "user": "a\r\nb", "allocations": 4 }), "user has control characters"),
            (json!({ "user": long, "allocations": 4 }), "user is longer than any username"),
            (json!({ "tenant": "", "allocations": 4 }), "tenant must not be empty"),
            (json!({ "tenant": "t", "bytes_per_day": 4 }), "bytes_per_day: a tenant has no such limit"),
            (json!({ "user": "a", "allocations": 0 }), "allocations: 0: must be greater than 0"),
            (json!({ "user": "a", "allocations": -1 }), "allocations: -1: expected a whole number"),
            (json!({ "user": "a", "allocations": 1_u64 << 32 }), "must be at most 4294967295"),
            (json!({ "user": "a", "bandwidth": "2Mb\u{7}" }), "bandwidth: \"2Mb?\": a rate is a whole number"),
            (json!({ "user": "a", "packet_rate": [1] }), "packet_rate: the value: expected a number"),
        ] {
            let text = bad(serde_json::from_value::<SetLimitsRequest>(body.clone()).unwrap().limits().unwrap_err());
            assert!(text.contains(why), "{body}: {text}");
        }
        let unset = |body| serde_json::from_value::<UnsetLimitsRequest>(body).unwrap().limits();
        assert_eq!(unset(json!({ "tenant": "t", "limits": ["bandwidth"] })).unwrap().1, [LimitName::Bandwidth]);
        assert!(bad(unset(json!({ "user": "a", "limits": ["bytes"] })).unwrap_err()).contains("known are allocations"));
    }
}
