//! What is asked for: the query, and a body that is a form or a JSON object. Names as the consumers write them.

use axum::http::{HeaderMap, header};
use serde_json::{Map, Value};

use super::access::KEY_PARAMETERS;
use super::limits;
use super::refused::IssueRefused;
use super::shape::Shape;
use crate::api::strict_json::{self, NotRead};
use crate::config::nearest;
use crate::credentials::claims::Grant;
use crate::credentials::limits::whole;

/// A longer name is no typing mistake; comparing takes time by length.
const COMPARED_BYTES_MAX: usize = 40;

/// Shows of a name at most so much.
const SHOWN_CHARS_MAX: usize = 40;

const OTHERS: [&str; 4] = ["service", "format", "label", "limits"];

const USER: [&str; 4] = ["username", "user", "user_id", "customIdentifier"];
const TTL: [&str; 3] = ["ttl", "Ttl", "expiryInSeconds"];

/// What the caller said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct CredentialRequest {
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

impl CredentialRequest {
    /// Reads all of it. The same thing said twice must be the same: Janus repeats its query as a form.
    pub(super) fn parse(
        shape: Shape,
        query: &[(String, String)],
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Self, IssueRefused> {
        let mut request = Self::default();
        for (name, value) in query {
            check_member(shape, name)?;
            request.take(name, value)?;
        }
        if body.is_empty() {
            return Ok(request);
        }
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => request.take_json(shape, body)?,
            "application/x-www-form-urlencoded" => {
                for (name, value) in url::form_urlencoded::parse(body) {
                    check_member(shape, &name)?;
                    request.take(&name, &value)?;
                }
            }
            _ => {
                return Err(IssueRefused::BadRequest(
                    "a body must be application/json or application/x-www-form-urlencoded",
                ));
            }
        }
        Ok(request)
    }

    fn take_json(&mut self, shape: Shape, body: &[u8]) -> Result<(), IssueRefused> {
        let fields = strict_json::object(body).map_err(|why| {
            IssueRefused::BadRequest(match why {
                NotRead::NoJson(_) => "the body is not JSON",
                NotRead::NoObject => "the body must be a JSON object",
                NotRead::Twice(_) => "the body names a member twice",
            })
        })?;
        for (name, value) in fields {
            check_member(shape, &name)?;
            if name == "limits" && !value.is_null() {
                for name in value.as_object().into_iter().flat_map(Map::keys) {
                    // A caller must not believe that a limit holds which was not understood, in any shape.
                    if !limits::names().any(|known| known == name) {
                        let known: Vec<String> = limits::names().map(|known| format!("limits.{known}")).collect();
                        return Err(unknown(&format!("limits.{name}"), &known));
                    }
                }
                self.limits = limits::parse(&value).map_err(IssueRefused::BadRequest)?;
                continue;
            }
            match value {
                Value::String(text) => self.take(&name, &text)?,
                Value::Number(number) if TTL.contains(&name.as_str()) => {
                    self.take(
                        &name,
                        &whole(&number).map_or_else(|| number.to_string(), |seconds| seconds.to_string()),
                    )?;
                }
                Value::Null => {}
                Value::Number(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                    if USER.contains(&name.as_str()) {
                        return Err(IssueRefused::BadUser("the user id must be a string"));
                    }
                    if TTL.contains(&name.as_str()) {
                        return Err(IssueRefused::BadRequest("ttl must be a whole number of seconds, 1 or more"));
                    }
                    if OTHERS.contains(&name.as_str()) {
                        return Err(IssueRefused::BadRequest("service, format and label must be strings"));
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
            // A caller must not believe that a limit holds which was not understood.
            "limits" => Err(IssueRefused::BadRequest("give limits in a JSON body")),
            _ => Ok(()),
        }
    }
}

/// Every name that means something in a request, those of keys included.
fn known_members() -> impl Iterator<Item = &'static str> {
    USER.into_iter().chain(TTL).chain(OTHERS).chain(KEY_PARAMETERS)
}

/// A member that means nothing is refused, since its caller believes that it does. Callers that were written for another
/// server may have members that mean something there: of theirs only what looks like a typing mistake is refused.
fn check_member(shape: Shape, name: &str) -> Result<(), IssueRefused> {
    if known_members().any(|known| known == name) || (shape.has_foreign_callers() && !is_mistake(name)) {
        return Ok(());
    }
    Err(unknown(name, &known_members().collect::<Vec<_>>()))
}

/// Whether a name is hardly anything but a misspelt one of ours: with a mistake in four letters at most. Names of keys are
/// left out, because who misspells one has no key.
fn is_mistake(name: &str) -> bool {
    let is_near = |known: &str| strsim::damerau_levenshtein(name, known) <= (known.len() / 4).max(1);
    name.len() <= COMPARED_BYTES_MAX && USER.into_iter().chain(TTL).chain(OTHERS).any(is_near)
}

fn nearest_of<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    (name.len() <= COMPARED_BYTES_MAX).then(|| nearest(name, known)).flatten()
}

fn unknown(name: &str, known: &[impl AsRef<str>]) -> IssueRefused {
    let meant = nearest_of(name, known.iter().map(AsRef::as_ref));
    let meant = meant.map_or_else(|| ".".to_owned(), |near| format!("; did you mean \"{near}\"?"));
    let shown: String = name.chars().take(SHOWN_CHARS_MAX).collect();
    let known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    let sentence = format!("\"{shown}\" is not a known member{meant} Known are {}", known.join(", "));
    IssueRefused::UnknownMember(sentence.into())
}

fn set<T: PartialEq>(slot: &mut Option<T>, value: T) -> Result<(), IssueRefused> {
    if slot.as_ref().is_some_and(|old| *old != value) {
        return Err(IssueRefused::BadRequest("the same parameter is given twice with different values"));
    }
    *slot = Some(value);
    Ok(())
}

/// Whether an id can be the user part of a username.
pub(super) fn check_user(user: &str) -> Result<(), IssueRefused> {
    if user.contains(char::REPLACEMENT_CHARACTER) {
        // What an escape of other bytes becomes: two users would be one.
        return Err(IssueRefused::BadUser("the user id is not UTF-8"));
    }
    if user.chars().any(char::is_control) {
        return Err(IssueRefused::BadUser("a user id must not contain control characters"));
    }
    if user.contains('~') {
        return Err(IssueRefused::BadUser("a user id must not contain '~': it separates limits inside a credential"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str, content_type: &str, body: &str) -> Result<CredentialRequest, IssueRefused> {
        parse_for(Shape::Ice, query, content_type, body)
    }

    fn parse_for(shape: Shape, query: &str, content_type: &str, body: &str) -> Result<CredentialRequest, IssueRefused> {
        let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        CredentialRequest::parse(shape, &query, &headers, body.as_bytes())
    }

    fn request(user: &str, ttl: u64) -> Result<CredentialRequest, IssueRefused> {
        Ok(CredentialRequest { user: Some(user.to_owned()), ttl: Some(ttl), ..CredentialRequest::default() })
    }

    const FORM: &str = "application/x-www-form-urlencoded";
    const JSON: &str = "application/json; charset=utf-8";

    #[test]
    fn every_consumers_names_are_understood() {
        assert_eq!(parse("username=fred&ttl=60&key=x&region=eu", "", ""), request("fred", 60));
        assert_eq!(parse("", FORM, "Ttl=60&user=fred"), request("fred", 60));
        assert_eq!(parse("", JSON, r#"{"ttl":60,"customIdentifier":"fred"}"#), request("fred", 60));
        assert_eq!(parse("", JSON, r#"{"expiryInSeconds":"60","user_id":"fred","label":null}"#), request("fred", 60));
        assert_eq!(parse("", JSON, r#"{"ttl":60.0,"username":"fred"}"#), request("fred", 60));
        assert_eq!(parse("username=a%3Ab%20c&ttl=1", "", ""), request("a:b c", 1));
        assert_eq!(parse("username=fred&ttl=60", FORM, "username=fred&ttl=60"), request("fred", 60));
        for twice in [
            r#"{"username":"fred","username":"eve"}"#,
            r#"{"ttl":60,"ttl":86400}"#,
            r#"{"username":"fred","limits":{"bytes":1000},"limits":{"bytes":1000000}}"#,
            r#"{"username":"fred","limits":{"bytes":1000,"bytes":1000000}}"#,
        ] {
            let refused = Err(IssueRefused::BadRequest("the body names a member twice"));
            assert_eq!(parse("", JSON, twice), refused, "{twice}");
        }
        assert_eq!(parse("username=&ttl=", "", ""), Ok(CredentialRequest::default()));
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
            ("", JSON, r#"{"label":5}"#),
            ("", JSON, r#"{"service":["turn"]}"#),
            ("", JSON, r#"{"limits":5}"#),
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
        assert!(matches!(
            check_user(&parse("username=%FF", "", "").unwrap().user.unwrap()),
            Err(IssueRefused::BadUser(_))
        ));
        assert_eq!(check_user("@zoë:example.org / 7"), Ok(()));
    }

    // F-B9
    #[test]
    fn a_misspelt_member_is_named_with_what_was_meant_and_what_there_is() {
        let says = |shape, query: &str, content_type: &str, body: &str| {
            let refused = parse_for(shape, query, content_type, body).unwrap_err();
            assert!(matches!(refused, IssueRefused::UnknownMember(_)), "{query} {body}: {refused:?}");
            refused.sentence().to_owned()
        };
        let list = "Known are username, user, user_id, customIdentifier, ttl, Ttl, expiryInSeconds, service, format, label, limits, \
                    key, api, apiKey, secretKey";
        for shape in [Shape::All, Shape::Draft, Shape::Ice, Shape::Twilio, Shape::Metered, Shape::Cloudflare] {
            for (query, content_type, body) in
                [("tll=60", "", ""), ("tll=", "", ""), ("", FORM, "tll=60"), ("", JSON, r#"{"tll":60}"#)]
            {
                let said = says(shape, query, content_type, body);
                assert_eq!(said, format!("\"tll\" is not a known member; did you mean \"ttl\"? {list}"), "{shape:?}");
            }
        }
        // What is no mistake means nothing to us, but may mean something where the caller comes from.
        let far = "colour=red";
        assert_eq!(says(Shape::All, far, "", ""), format!("\"colour\" is not a known member. {list}"));
        for shape in [Shape::Draft, Shape::Ice, Shape::Matrix, Shape::Metered] {
            let short = "tag=a&app=b&env=c&cb=d&kind=e&page=f";
            for theirs in [far, short, "region=eu", "namespace=a&gateway=b&listener=c", "access_token=x", "_=17"] {
                assert_eq!(parse_for(shape, theirs, "", ""), Ok(CredentialRequest::default()), "{shape:?} {theirs}");
            }
        }
        for mistake in
            ["usernme=a", "ttll=60", "tl=60", "custom_identifier=a", "expiresInSeconds=60", "fromat=x", "limit=5"]
        {
            says(Shape::Draft, mistake, "", "");
        }
        let said = says(Shape::Cloudflare, "", JSON, r#"{"limits":{"byte":5}}"#);
        assert!(said.starts_with("\"limits.byte\" is not a known member; did you mean \"limits.bytes\"?"), "{said}");
        // Neither long names nor many cost much, or come back whole.
        let long = "x".repeat(8000);
        assert!(says(Shape::All, &format!("{long}=1"), "", "").len() < 300);
    }
}
