//! What `credentials mint` prints for programs that do not take iceServers JSON.

use clap::ValueEnum;
use serde_json::Value;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::api::rest::xep0215;
use crate::config::Config;
use crate::config::checked::HttpListen;
use crate::turn_uri::{self, TurnUri};

/// In whose words.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MintFormat {
    /// iceServers, as browsers take them
    Json,
    /// One URI per line with the login in it, as GStreamer and go2rtc take them
    Uri,
    /// One line for the setting of Rocket.Chat that lists the servers
    Rocketchat,
    /// Lines for a shell that set TURN_URLS, TURN_USERNAME, TURN_PASSWORD and TURN_EXPIRES_AT
    Env,
    /// The curl command that asks the credential endpoint for one like it, with an API key in the variable KEY
    Curl,
    /// XEP-0215 services in XML, for XMPP servers
    Xep0215,
}

/// What was minted, taken out of the answer.
struct Minted<'a> {
    urls: Vec<&'a str>,
    username: &'a str,
    password: &'a str,
    ttl: u64,
    expires_at: u64,
}

impl<'a> Minted<'a> {
    fn of(answer: &'a Value) -> Self {
        let server = &answer["iceServers"][0];
        let text = |name: &str| server[name].as_str().unwrap_or_default();
        Self {
            urls: server["urls"].as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
            username: text("username"),
            password: text("credential"),
            ttl: answer["ttl"].as_u64().unwrap_or_default(),
            expires_at: answer["expires_at"].as_u64().unwrap_or_default(),
        }
    }

    fn uris(&self) -> Vec<TurnUri> {
        self.urls.iter().filter_map(|url| turn_uri::parse(url).ok()).collect()
    }

    /// As it stands before an `@`.
    fn login(&self) -> String {
        format!("{}:{}", encoded(self.username), encoded(self.password))
    }
}

/// Percent-encoded (RFC 3986 section 2.1), a blank too.
pub(super) fn encoded(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// One word of a shell, whatever is in it.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The answer in these words.
///
/// # Errors
/// If nothing answers over HTTP, for `curl`.
pub(super) fn formatted(format: MintFormat, answer: &Value, user: &str, config: &Config) -> Result<String, String> {
    let minted = Minted::of(answer);
    Ok(match format {
        MintFormat::Json => format!("{answer:#}"),
        MintFormat::Uri => {
            let with_login = |url: &&str| url.replacen(':', &format!("://{}@", minted.login()), 1);
            minted.urls.iter().map(with_login).collect::<Vec<_>>().join("\n")
        }
        MintFormat::Rocketchat => {
            let stun = minted.uris().iter().filter_map(TurnUri::as_stun).map(|uri| uri.to_string()).collect::<Vec<_>>();
            let turn = minted.urls.iter().map(|url| format!("{}@{url}", minted.login()));
            stun.into_iter().chain(turn).collect::<Vec<_>>().join(", ")
        }
        MintFormat::Env => {
            let lines = [
                ("TURN_URLS", minted.urls.join(",")),
                ("TURN_USERNAME", minted.username.to_owned()),
                ("TURN_PASSWORD", minted.password.to_owned()),
                ("TURN_EXPIRES_AT", minted.expires_at.to_string()),
            ];
            lines.map(|(name, value)| format!("{name}={}", quoted(&value))).join("\n")
        }
        MintFormat::Curl => {
            let query = Serializer::new(String::new())
                .append_pair("username", user)
                .append_pair("ttl", &minted.ttl.to_string())
                .finish();
            let (options, base) = endpoint(config).map_err(|error| format!("--format curl: {error}"))?;
            let url = quoted(&format!("{base}/v1/credentials?{query}"));
            format!("curl -sS {options}-H \"Authorization: Bearer $KEY\" {url}")
        }
        MintFormat::Xep0215 => xep0215(&minted.uris(), minted.username, minted.password, minted.expires_at),
    })
}

/// Where the credential endpoint is reached: what callers on other machines are told, else what this machine reaches.
pub(super) fn endpoint(config: &Config) -> Result<(String, String), String> {
    if let Some(public) = config.http.public.first() {
        let name = config.http.issuing.public_name.as_deref().or(config.tls.name.as_deref());
        let scheme = if public.is_https { "https" } else { "http" };
        let host = name.map_or_else(|| public.address.to_string(), |name| format!("{name}:{}", public.address.port()));
        return Ok((String::new(), format!("{scheme}://{host}")));
    }
    match &config.http.listen {
        Some(HttpListen::Tcp(address)) => Ok((String::new(), format!("http://{address}"))),
        Some(HttpListen::Unix(path)) => {
            Ok((format!("--unix-socket {} ", quoted(&path.display().to_string())), "http://localhost".to_owned()))
        }
        None => Err("nothing answers over HTTP; set http.listen or http.public".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(format: MintFormat, lines: &str) -> Result<String, String> {
        let config = Config::from_toml(
            "c.toml",
            &format!("{lines}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n"),
        );
        let urls = ["turn:192.0.2.1:3478?transport=udp", "turns:turn.example.org:5349?transport=tcp"];
        let server = json!({ "urls": urls, "username": "1800000000:al ice's", "credential": "a+b/c=" });
        let answer = json!({ "iceServers": [server], "expires_at": 1_800_000_000, "ttl": 3600, "secret": "s" });
        formatted(format, &answer, "al ice's", &config.unwrap())
    }

    #[test]
    fn a_credential_is_told_in_the_words_of_each_program() {
        let login = "1800000000%3Aal%20ice%27s:a%2Bb%2Fc%3D";
        assert_eq!(
            shown(MintFormat::Uri, "").unwrap(),
            format!("turn://{login}@192.0.2.1:3478?transport=udp\nturns://{login}@turn.example.org:5349?transport=tcp")
        );
        assert_eq!(
            shown(MintFormat::Rocketchat, "").unwrap(),
            format!(
                "stun:192.0.2.1:3478, {login}@turn:192.0.2.1:3478?transport=udp, {login}@turns:turn.example.org:5349?transport=tcp"
            )
        );
        assert_eq!(
            shown(MintFormat::Env, "").unwrap(),
            "TURN_URLS='turn:192.0.2.1:3478?transport=udp,turns:turn.example.org:5349?transport=tcp'\n\
             TURN_USERNAME='1800000000:al ice'\\''s'\nTURN_PASSWORD='a+b/c='\nTURN_EXPIRES_AT='1800000000'"
        );
        let xml = shown(MintFormat::Xep0215, "").unwrap();
        assert!(xml.contains("urn:xmpp:extdisco:2") && xml.contains("host='turn.example.org'"), "{xml}");
        assert!(shown(MintFormat::Json, "").unwrap().starts_with("{\n"));
    }

    #[test]
    fn the_command_asks_where_the_endpoint_is() {
        let query = "/v1/credentials?username=al+ice%27s&ttl=3600'";
        for (lines, start) in [
            ("http.listen = \"127.0.0.1:8080\"", "curl -sS -H \"Authorization: Bearer $KEY\" 'http://127.0.0.1:8080"),
            (
                "http.listen = \"unix:/run/t.sock\"",
                "curl -sS --unix-socket '/run/t.sock' -H \"Authorization: Bearer $KEY\" 'http://localhost",
            ),
        ] {
            assert_eq!(shown(MintFormat::Curl, lines).unwrap(), format!("{start}{query}"));
        }
        assert!(shown(MintFormat::Curl, "http.listen = \"\"").unwrap_err().contains("http.listen"));
    }
}
