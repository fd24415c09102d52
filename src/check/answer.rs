//! What a credential endpoint answers: the shapes in use, read into one.

use serde_json::Value;

/// A username and its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// As it goes into USERNAME.
    pub username: String,
    /// As the key is made of it.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// URIs that share a login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IceServer {
    /// As the endpoint wrote them.
    pub urls: Vec<String>,
    /// None for `stun:` alone.
    pub login: Option<Login>,
}

/// An answer, whatever its shape was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointAnswer {
    /// Which shape it was, for the report.
    pub shape: &'static str,
    /// In its order.
    pub servers: Vec<IceServer>,
    /// Seconds that the credential is good for, where it says so.
    pub ttl: Option<u64>,
}

/// Reads an answer.
///
/// # Errors
/// What it lacks.
pub fn read(body: &str) -> Result<EndpointAnswer, String> {
    let json: Value = serde_json::from_str(body).map_err(|error| format!("not JSON: {error}"))?;
    let ttl = ["ttl", "Ttl"].iter().find_map(|key| number(json.get(key)?));
    let (shape, servers) = if let Some(list) = json.as_array() {
        ("array", list.iter().map(server).collect::<Result<Vec<_>, _>>()?)
    } else if let Some(list) = json.get("iceServers").or_else(|| json.get("ice_servers")) {
        match list {
            Value::Array(list) => ("iceServers", list.iter().map(server).collect::<Result<Vec<_>, _>>()?),
            Value::Object(_) => ("iceServers object", vec![server(list)?]),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                return Err("iceServers is neither an array nor an object".to_owned());
            }
        }
    } else if let Some(list) = json.get("IceServerList").and_then(Value::as_array) {
        ("IceServerList", list.iter().map(server).collect::<Result<Vec<_>, _>>()?)
    } else if json.get("uris").is_some() {
        ("username, password, uris", vec![server(&json)?])
    } else {
        return Err("neither iceServers, uris nor an array of servers is in it".to_owned());
    };
    let ttl = ttl.or_else(|| json.get("IceServerList")?.get(0)?.get("Ttl").and_then(number));
    if servers.iter().all(|server| server.urls.is_empty()) {
        return Err("it lists no server".to_owned());
    }
    Ok(EndpointAnswer { shape, servers, ttl })
}

/// Some write it as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn server(value: &Value) -> Result<IceServer, String> {
    let text = |keys: &[&str]| keys.iter().find_map(|key| value.get(key)?.as_str()).map(ToOwned::to_owned);
    let urls = ["urls", "uris", "Uris", "url"].iter().find_map(|key| value.get(key));
    let urls = match urls {
        Some(Value::String(url)) => vec![url.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|url| url.as_str().map(ToOwned::to_owned).ok_or("a URL that is not text"))
            .collect::<Result<_, _>>()?,
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
            return Err("an entry without urls".to_owned());
        }
    };
    let login = match (text(&["username", "Username"]), text(&["credential", "password", "Password"])) {
        (Some(username), Some(password)) => Some(Login { username, password }),
        (None, None) => None,
        (Some(_), None) => return Err("an entry with a username and no credential".to_owned()),
        (None, Some(_)) => return Err("an entry with a credential and no username".to_owned()),
    };
    Ok(IceServer { urls, login })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_in_use_is_read() {
        let rows = [
            (r#"{"username":"u","password":"p","ttl":60,"uris":["turn:a"]}"#, "username, password, uris", Some(60)),
            (r#"{"iceServers":[{"urls":["turn:a"],"username":"u","credential":"p"}]}"#, "iceServers", None),
            (r#"{"iceServers":{"urls":"turn:a","username":"u","credential":"p"}}"#, "iceServers object", None),
            (
                r#"{"ttl":"60","ice_servers":[{"url":"turn:a","username":"u","credential":"p"}]}"#,
                "iceServers",
                Some(60),
            ),
            (r#"[{"urls":"turn:a","username":"u","credential":"p"}]"#, "array", None),
            (
                r#"{"IceServerList":[{"Uris":["turn:a"],"Username":"u","Password":"p","Ttl":300}]}"#,
                "IceServerList",
                Some(300),
            ),
            (
                r#"{"username":"u","password":"p","credential":"p","ttl":9,"uris":["turn:a"],"urls":["turn:a"],
                   "iceServers":[{"urls":["turn:a"],"username":"u","credential":"p"}]}"#,
                "iceServers",
                Some(9),
            ),
        ];
        let server = IceServer {
            urls: vec!["turn:a".into()],
            login: Some(Login { username: "u".into(), password: "p".into() }),
        };
        for (body, shape, ttl) in rows {
            assert_eq!(read(body).unwrap(), EndpointAnswer { shape, servers: vec![server.clone()], ttl }, "{body}");
        }
        let stun = read(r#"[{"urls":["stun:a"]}]"#).unwrap();
        assert_eq!(stun.servers[0].login, None);
    }

    #[test]
    fn what_an_answer_lacks_is_named() {
        for (body, why) in [
            ("<html>", "not JSON"),
            ("{}", "neither"),
            ("[]", "no server"),
            (r#"{"iceServers":7}"#, "neither an array nor an object"),
            (r#"{"iceServers":[{}]}"#, "without urls"),
            (r#"[{"urls":"turn:a","username":"u"}]"#, "no credential"),
            (r#"[{"urls":"turn:a","credential":"u"}]"#, "no username"),
            (r#"[{"urls":[7]}]"#, "not text"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(why), "{body}: {error}");
        }
    }

    #[test]
    fn a_login_does_not_print_its_password() {
        let login = Login { username: "u".into(), password: "pineapple".into() };
        assert!(!format!("{login:?}").contains("pineapple"));
    }
}
