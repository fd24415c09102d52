//! What is asked for: the query, and a body that is a form or a JSON object. Names as the consumers write them.

use axum::http::{HeaderMap, header};
use serde_json::Value;

use super::limits;
use super::refused::IssueRefused;
use crate::credentials::claims::Grant;

const USER: [&str; 4] = ["username", "user", "user_id", "customIdentifier"];
const TTL: [&str; 3] = ["ttl", "Ttl", "expiryInSeconds"];

/// What the caller said; whatever else it said means nothing here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Wanted {
    pub(super) user: Option<String>,
    /// In seconds, at least one.
    pub(super) ttl: Option<u64>,
    pub(super) service: Option<String>,
    pub(super) format: Option<String>,
    /// Any text, given back as it came (Metered).
    pub(super) label: Option<String>,
    /// Only in a JSON body.
    pub(super) limits: Grant,
}

impl Wanted {
    /// Reads all of it. The same thing said twice must be the same: Janus repeats its query as a form.
    pub(super) fn parse(query: &[(String, String)], headers: &HeaderMap, body: &[u8]) -> Result<Self, IssueRefused> {
        let mut wanted = Self::default();
        for (name, value) in query {
            wanted.take(name, value)?;
        }
        if body.is_empty() {
            return Ok(wanted);
        }
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => wanted.take_json(body)?,
            "application/x-www-form-urlencoded" => {
                for (name, value) in form_urlencoded::parse(body) {
                    wanted.take(&name, &value)?;
                }
            }
            _ => {
                return Err(IssueRefused::BadRequest(
                    "a body must be application/json or application/x-www-form-urlencoded",
                ));
            }
        }
        Ok(wanted)
    }

    fn take_json(&mut self, body: &[u8]) -> Result<(), IssueRefused> {
        let value = serde_json::from_slice(body).map_err(|_| IssueRefused::BadRequest("the body is not JSON"))?;
        let Value::Object(fields) = value else {
            return Err(IssueRefused::BadRequest("the body must be a JSON object"));
        };
        for (name, value) in fields {
            if name == "limits" && !value.is_null() {
                self.limits = limits::parse(&value).map_err(IssueRefused::BadRequest)?;
                continue;
            }
            match value {
                Value::String(text) => self.take(&name, &text)?,
                Value::Number(number) if TTL.contains(&name.as_str()) => self.take(&name, &number.to_string())?,
                Value::Null => {}
                Value::Number(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                    if USER.contains(&name.as_str()) {
                        return Err(IssueRefused::BadUser("the user id must be a string"));
                    }
                    if TTL.contains(&name.as_str()) {
                        return Err(IssueRefused::BadRequest("ttl must be a whole number of seconds, 1 or more"));
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), IssueRefused> {
        if value.is_empty() {
            return Ok(());
        }
        if USER.contains(&name) {
            return set(&mut self.user, value.to_owned());
        }
        if TTL.contains(&name) {
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            let seconds = if digits { value.parse().ok().filter(|seconds| *seconds > 0) } else { None };
            let seconds =
                seconds.ok_or(IssueRefused::BadRequest("ttl must be a whole number of seconds, 1 or more"))?;
            return set(&mut self.ttl, seconds);
        }
        match name {
            "label" => set(&mut self.label, value.to_owned()),
            "service" => set(&mut self.service, value.to_owned()),
            "format" => set(&mut self.format, value.to_owned()),
            // Whoever thinks that it limits must not believe that it did.
            "limits" => Err(IssueRefused::BadRequest("limits are named in a JSON body")),
            _ => Ok(()),
        }
    }
}

fn set<T: PartialEq>(slot: &mut Option<T>, value: T) -> Result<(), IssueRefused> {
    if slot.as_ref().is_some_and(|old| *old != value) {
        return Err(IssueRefused::BadRequest("the same parameter stands there twice with different values"));
    }
    *slot = Some(value);
    Ok(())
}

/// Whether an id can be the user part of a username.
pub(super) fn check_user(user: &str) -> Result<(), IssueRefused> {
    if user.chars().any(char::is_control) {
        return Err(IssueRefused::BadUser("a user id has no control characters"));
    }
    if user.contains('~') {
        return Err(IssueRefused::BadUser(
            "a user id has no '~': what follows one is kept for limits inside a credential",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str, content_type: &str, body: &str) -> Result<Wanted, IssueRefused> {
        let query: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        Wanted::parse(&query, &headers, body.as_bytes())
    }

    fn wanted(user: &str, ttl: u64) -> Result<Wanted, IssueRefused> {
        Ok(Wanted { user: Some(user.to_owned()), ttl: Some(ttl), ..Wanted::default() })
    }

    const FORM: &str = "application/x-www-form-urlencoded";
    const JSON: &str = "application/json; charset=utf-8";

    #[test]
    fn every_consumers_names_are_understood() {
        assert_eq!(parse("username=fred&ttl=60&key=x&region=eu", "", ""), wanted("fred", 60));
        assert_eq!(parse("", FORM, "Ttl=60&user=fred"), wanted("fred", 60));
        assert_eq!(parse("", JSON, r#"{"ttl":60,"customIdentifier":"fred"}"#), wanted("fred", 60));
        assert_eq!(parse("", JSON, r#"{"expiryInSeconds":"60","user_id":"fred","label":null}"#), wanted("fred", 60));
        assert_eq!(parse("username=a%3Ab%20c&ttl=1", "", ""), wanted("a:b c", 1));
        assert_eq!(parse("username=fred&ttl=60", FORM, "username=fred&ttl=60"), wanted("fred", 60));
        assert_eq!(parse("username=&ttl=", "", ""), Ok(Wanted::default()));
        assert_eq!(parse("ttl=18446744073709551615", "", "").unwrap().ttl, Some(u64::MAX));
    }

    #[test]
    fn nonsense_is_named() {
        for (query, content_type, body) in [
            ("ttl=0", "", ""),
            ("ttl=-1", "", ""),
            ("ttl=1.5", "", ""),
            ("ttl=1h", "", ""),
            ("ttl=99999999999999999999999", "", ""),
            ("username=a&username=b", "", ""),
            ("username=a", JSON, r#"{"username":"b"}"#),
            ("", JSON, r#"{"ttl":1.5}"#),
            ("", JSON, r#"{"ttl":true}"#),
            ("", JSON, r#"{"ttl":-5}"#),
            ("", JSON, "[1]"),
            ("", JSON, "{"),
            ("", "text/plain", "ttl=5"),
            ("", "", "ttl=5"),
        ] {
            let refused = parse(query, content_type, body).unwrap_err();
            assert!(matches!(refused, IssueRefused::BadRequest(_)), "{query} {body}: {refused:?}");
        }
        assert!(matches!(parse("", JSON, r#"{"username":5}"#), Err(IssueRefused::BadUser(_))));
        assert!(matches!(check_user("a\nb"), Err(IssueRefused::BadUser(_))));
        assert!(matches!(check_user("a~b"), Err(IssueRefused::BadUser(_))));
        assert_eq!(check_user("@zoë:example.org / 7"), Ok(()));
    }
}
