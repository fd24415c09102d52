//! Who asks: an API key, a user with a signed token, a process of this machine, or a user that a trusted proxy has logged in.

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::forwarded;
use super::limits;
use super::refused::IssueRefused;
use crate::api::Peer;
use crate::config::issuing::{ApiKey, IssuingConfig};
use crate::credentials::claims::Grant;
use crate::jwt::{self, TOKEN_BYTES_MAX};

/// What query parameters call a key: the draft and the signalling server of Nextcloud (Janus sends both), Metered.
pub(super) const KEY_PARAMETERS: [&str; 4] = ["key", "api", "apiKey", "secretKey"];

/// A caller that may have a credential.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Caller {
    /// In logs, metrics and rates: the key's name, `jwt`, `unix` or `proxy`.
    pub(super) name: Box<str>,
    /// The longest lifetime of its credentials, in seconds.
    pub(super) max_ttl: Option<u64>,
    /// The user that a proxy or a token vouches for; others name any user.
    pub(super) user: Option<String>,
    /// Whose user that is.
    pub(super) tenant: Option<Box<str>>,
    /// What its credentials carry at least.
    pub(super) grant: Grant,
}

impl Caller {
    pub(super) fn known_by(name: &str, user: Option<String>) -> Self {
        Self { name: name.into(), max_ttl: None, user, tenant: None, grant: Grant::default() }
    }

    /// Whose rate counts: a user with a token is a caller of their own, apart from all others.
    pub(super) const fn has_key_rate(&self) -> bool {
        self.user.is_none()
    }
}

/// Finds out who asks.
pub(super) fn identify(
    config: &IssuingConfig,
    token_keys: &[jwt::TokenKey],
    peer: Peer,
    headers: &HeaderMap,
    query: &[(String, String)],
    now: u64,
) -> Result<Caller, IssueRefused> {
    if !config.is_on() {
        return Err(IssueRefused::NoMethod);
    }
    let presented = presented_keys(headers, query)?;
    if !presented.is_empty() {
        let Some(key) = find(&config.keys, &presented) else {
            return token_user(config, token_keys, &presented, now);
        };
        return if key.is_good_from(forwarded::client(&config.proxies, peer, headers).ip()) {
            Ok(Caller {
                name: key.name.clone(),
                max_ttl: key.max_ttl,
                user: None,
                tenant: key.tenant.clone(),
                grant: key.grant.clone(),
            })
        } else {
            Err(IssueRefused::Address)
        };
    }
    if let Peer::Unix(Some(uid)) = peer
        && config.unix_uids.contains(&uid)
    {
        return Ok(Caller::known_by("unix", None));
    }
    match forwarded_user(config, peer, headers)? {
        Some(user) => Ok(Caller::known_by("proxy", Some(user))),
        None => Err(IssueRefused::NoKey),
    }
}

/// Every key in the request. Several ways at once are fine: one that fits is enough.
fn presented_keys(headers: &HeaderMap, query: &[(String, String)]) -> Result<Vec<Vec<u8>>, IssueRefused> {
    let mut keys = Vec::new();
    for value in headers.get_all(header::AUTHORIZATION) {
        let text = value.to_str().map_err(|_| IssueRefused::WrongKey)?;
        let (scheme, rest) = text.trim().split_once(' ').ok_or(IssueRefused::WrongKey)?;
        if scheme.eq_ignore_ascii_case("bearer") {
            keys.push(rest.trim().as_bytes().to_vec());
        } else if scheme.eq_ignore_ascii_case("basic") {
            // The part before the colon names an account where the vendor has some; the key alone says who asks.
            let decoded = BASE64.decode(rest.trim()).map_err(|_| IssueRefused::WrongKey)?;
            let colon = decoded.iter().position(|byte| *byte == b':').ok_or(IssueRefused::WrongKey)?;
            keys.push(decoded[colon + 1..].to_vec());
        } else {
            return Err(IssueRefused::WrongKey);
        }
    }
    let of_query = query.iter().filter(|(name, value)| KEY_PARAMETERS.contains(&name.as_str()) && !value.is_empty());
    keys.extend(of_query.map(|(_, value)| value.as_bytes().to_vec()));
    // Each costs a hash; Janus, which sends most, sends two.
    if keys.len() > 4 || keys.iter().any(|key| key.len() > TOKEN_BYTES_MAX) {
        return Err(IssueRefused::WrongKey);
    }
    Ok(keys)
}

/// Compares with every key there is, so that the time tells nothing about which one was near.
fn find<'a>(keys: &'a [ApiKey], presented: &[Vec<u8>]) -> Option<&'a ApiKey> {
    let mut found = None;
    for presented in presented {
        let digest = Sha256::digest(presented);
        for key in keys {
            if bool::from(key.sha256.as_slice().ct_eq(digest.as_slice())) {
                found = Some(key);
            }
        }
    }
    found
}

/// Whether a token was refused that newer keys might take.
pub(super) fn needs_newer_keys(token_keys: &[jwt::TokenKey], headers: &HeaderMap, query: &[(String, String)]) -> bool {
    let presented = presented_keys(headers, query).unwrap_or_default();
    token(&presented).is_some_and(|token| jwt::names_another_key(token_keys, token))
}

fn token(presented: &[Vec<u8>]) -> Option<&str> {
    let token = presented.iter().find(|key| jwt::looks_like_one(key))?;
    std::str::from_utf8(token).ok()
}

/// The user of a signed token, for no longer than the token is good.
fn token_user(
    config: &IssuingConfig,
    keys: &[jwt::TokenKey],
    presented: &[Vec<u8>],
    now: u64,
) -> Result<Caller, IssueRefused> {
    let Some(jwt) = &config.jwt else { return Err(IssueRefused::WrongKey) };
    let token = token(presented).ok_or(IssueRefused::WrongKey)?;
    let claims =
        jwt::verify(keys, &jwt.expected, now, token).map_err(|refused| IssueRefused::BadToken(refused.sentence()))?;
    let grant = claims.limits.as_ref().map(limits::parse).transpose().map_err(IssueRefused::BadToken)?;
    Ok(Caller {
        max_ttl: Some(claims.expires_at - now),
        tenant: claims.tenant.map(Into::into),
        grant: grant.unwrap_or_default(),
        ..Caller::known_by("jwt", Some(claims.user))
    })
}

/// The user that a trusted proxy names; the header of anybody else is not looked at.
fn forwarded_user(config: &IssuingConfig, peer: Peer, headers: &HeaderMap) -> Result<Option<String>, IssueRefused> {
    let (Some(name), Peer::Tcp(address)) = (&config.identity_header, peer) else { return Ok(None) };
    let address = address.ip().to_canonical();
    if !config.proxies.iter().any(|net| net.contains(&address)) {
        return Ok(None);
    }
    let mut values = headers.get_all(&**name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(IssueRefused::BadUser("the header that names the user is there twice"));
    }
    let user = std::str::from_utf8(value.as_bytes())
        .map_err(|_| IssueRefused::BadUser("the header that names the user is not UTF-8"))?
        .trim();
    Ok((!user.is_empty()).then(|| user.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn digest(key: &str) -> String {
        Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn config(more: &str) -> IssuingConfig {
        let keys = format!(
            "[[http.keys]]\nname = \"web\"\nsha256 = \"{}\"\n[[http.keys]]\nname = \"office\"\nmax_ttl = \"10m\"\n\
             from = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nsha256 = \"{}\"\n",
            digest("open-sesame"),
            digest("north-gate")
        );
        Config::with_a_secret(&format!("{more}\n{keys}")).unwrap().http.issuing
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn query(text: &str) -> Vec<(String, String)> {
        url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
    }

    fn from(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    fn name_of(result: Result<Caller, IssueRefused>) -> Result<String, IssueRefused> {
        result.map(|caller| caller.name.into())
    }

    #[test]
    fn a_key_is_taken_as_bearer_basic_or_parameter() {
        let config = config("");
        let basic = format!("Basic {}", BASE64.encode("AC123:open-sesame"));
        let here = from("198.51.100.1:9");
        for (list, text) in [
            (vec![("authorization", "Bearer open-sesame")], ""),
            (vec![("authorization", "bearer  open-sesame ")], ""),
            (vec![("authorization", basic.as_str())], ""),
            (vec![], "service=turn&key=open-sesame"),
            (vec![], "api=open-sesame&key=open-sesame"),
            (vec![], "api=other&key=open-sesame"),
            (vec![], "apiKey=open%2Dsesame"),
        ] {
            let caller = identify(&config, &[], here, &headers(&list), &query(text), 0);
            assert_eq!(name_of(caller).as_deref(), Ok("web"), "{list:?} {text}");
        }
        for (list, text, refused) in [
            (vec![], "", IssueRefused::NoKey),
            (vec![], "key=", IssueRefused::NoKey),
            (vec![], "key=Open-sesame", IssueRefused::WrongKey),
            (vec![("authorization", "Bearer open-sesame2")], "", IssueRefused::WrongKey),
            (vec![("authorization", "open-sesame")], "", IssueRefused::WrongKey),
            (vec![("authorization", "Digest open-sesame")], "", IssueRefused::WrongKey),
            (vec![("authorization", "Basic !!!")], "", IssueRefused::WrongKey),
            (vec![], "key=a&key=b&key=c&key=d&key=open-sesame", IssueRefused::WrongKey),
        ] {
            assert_eq!(identify(&config, &[], here, &headers(&list), &query(text), 0), Err(refused), "{list:?} {text}");
        }
    }

    #[test]
    fn a_key_may_be_bound_to_addresses_and_a_header_of_strangers_is_not_believed() {
        let config = config("http.proxies = [\"10.0.0.0/8\", \"::1\"]");
        let key = ("authorization", "Bearer north-gate");
        let ask = |peer, more: &[(&'static str, &str)]| {
            let list: Vec<_> = [key].into_iter().chain(more.iter().copied()).collect();
            name_of(identify(&config, &[], peer, &headers(&list), &[], 0))
        };
        assert_eq!(ask(from("192.0.2.9:1"), &[]).as_deref(), Ok("office"));
        assert_eq!(ask(from("[::ffff:192.0.2.9]:1"), &[]).as_deref(), Ok("office"));
        assert_eq!(ask(from("[2001:db8::1]:1"), &[]).as_deref(), Ok("office"));
        assert_eq!(ask(from("198.51.100.1:1"), &[]), Err(IssueRefused::Address));
        assert_eq!(ask(Peer::Unix(Some(0)), &[]), Err(IssueRefused::Address));
        let said = |text: &'static str| [("x-forwarded-for", text)];
        assert_eq!(ask(from("198.51.100.1:1"), &said("192.0.2.9")), Err(IssueRefused::Address), "not a proxy");
        assert_eq!(ask(from("10.0.0.1:1"), &said("192.0.2.9")).as_deref(), Ok("office"));
        assert_eq!(ask(from("10.0.0.1:1"), &said("1.2.3.4, 192.0.2.9, 10.9.9.9")).as_deref(), Ok("office"));
        assert_eq!(ask(from("[::1]:1"), &said("192.0.2.9, 1.2.3.4")), Err(IssueRefused::Address), "invented");
        // F-A10: the proxies' own addresses may ask, but what they can't say of others is not theirs.
        let config = self::config("http.proxies = [\"192.0.2.0/24\"]");
        let ask = |said: &[u8]| {
            let mut headers = headers(&[key]);
            headers.insert("x-forwarded-for", axum::http::HeaderValue::from_bytes(said).unwrap());
            name_of(identify(&config, &[], from("192.0.2.1:1"), &headers, &[], 0))
        };
        for said in [&b"unknown"[..], b"8.8.8.8:4711", b"[2001:4860::1]:443", b"8.8.8.8, \xff", b"8.8.8.8:x", b""] {
            assert_eq!(ask(said), Err(IssueRefused::Address), "{said:?}");
        }
        for said in [&b"192.0.2.9:4711"[..], b"\"[2001:db8::1]:443\"", b"192.0.2.9, 192.0.2.3:1"] {
            assert_eq!(ask(said).as_deref(), Ok("office"), "{said:?}");
        }
    }

    #[test]
    fn a_proxy_vouches_for_a_user_and_nobody_else_does() {
        let config =
            config("http.proxies = [\"10.0.0.0/8\"]\nhttp.identity_header = \"X-User\"\nhttp.unix_uids = [33]");
        let zoe = headers(&[("x-user", "zoë")]);
        let caller = identify(&config, &[], from("10.0.0.1:1"), &zoe, &[], 0).unwrap();
        assert_eq!((&*caller.name, caller.user.as_deref()), ("proxy", Some("zoë")));
        assert_eq!(identify(&config, &[], from("11.0.0.1:1"), &zoe, &[], 0), Err(IssueRefused::NoKey));
        assert_eq!(identify(&config, &[], from("10.0.0.1:1"), &HeaderMap::new(), &[], 0), Err(IssueRefused::NoKey));
        let twice = headers(&[("x-user", "a"), ("x-user", "b")]);
        assert!(matches!(identify(&config, &[], from("10.0.0.1:1"), &twice, &[], 0), Err(IssueRefused::BadUser(_))));
        // A key that is presented must be right, even over the socket.
        let wrong = headers(&[("x-user", "zoe"), ("authorization", "Bearer nonsense")]);
        assert_eq!(identify(&config, &[], from("10.0.0.1:1"), &wrong, &[], 0), Err(IssueRefused::WrongKey));
        assert_eq!(
            name_of(identify(&config, &[], Peer::Unix(Some(33)), &HeaderMap::new(), &[], 0)).as_deref(),
            Ok("unix")
        );
        assert_eq!(identify(&config, &[], Peer::Unix(Some(34)), &zoe, &[], 0), Err(IssueRefused::NoKey));
        assert_eq!(identify(&config, &[], Peer::Unix(None), &zoe, &[], 0), Err(IssueRefused::NoKey));
    }
}
