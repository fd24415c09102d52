//! JSON Web Tokens that others signed: the keys of a JWKS (RFC 7517), and what a good token says (RFC 7519).
//!
//! Pure: no clock, no file. A key has one algorithm, so a token can't choose how it is checked; "none" is no
//! algorithm here. Called by `config` for the keys and by `api` for the tokens.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ring::hmac;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

use crate::credentials::Secret;
use crate::credentials::published::is_published;

/// Keys of a set.
const KEYS_MAX: usize = 16;

/// Each key that a token could be of costs a signature's check, which anybody may ask for.
const KEYS_TRIED_MAX: usize = 4;

/// What a check costs grows with the square of this: 4,096 bits take 0.1 ms.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;

/// Longer tokens are not looked at; the headers of a request have less room anyway.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// RFC 7518 section 3.2: no shorter than the hash.
const HMAC_KEY_BYTES_MIN: usize = 32;

/// How far the signer's clock may be ahead, in seconds.
const SKEW_SECONDS: u64 = 30;

/// How a key checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Algorithm {
    Hs256,
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// A key that checks tokens. Some are secrets, so none prints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenKey {
    id: Option<Box<str>>,
    algorithm: Algorithm,
    /// The secret, the public point, or the modulus of RSA.
    value: Secret,
    /// The exponent of RSA, else empty.
    exponent: Box<[u8]>,
}

/// Reads a JWKS. Keys for something else (encryption, other curves) are passed over.
///
/// # Errors
/// Says what is wrong with the document, or that no key in it can check anything.
pub fn parse_jwks(text: &[u8]) -> Result<Vec<TokenKey>, String> {
    let document: Value = serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
    let listed = document.get("keys").and_then(Value::as_array).ok_or("is not a JWKS: it has no list \"keys\"")?;
    let mut keys = Vec::new();
    for (at, jwk) in listed.iter().enumerate() {
        keys.extend(parse_key(jwk).map_err(|what| format!("keys[{at}]: {what}"))?);
    }
    if keys.is_empty() {
        return Err("has no key that checks HS256, RS256, ES256 or EdDSA".to_owned());
    }
    if keys.len() > KEYS_MAX {
        return Err(format!("has {} keys; at most {KEYS_MAX} are taken", keys.len()));
    }
    Ok(keys)
}

/// Reads a JWKS that was published for everybody: what can't be used there is passed over, and so is a secret, since
/// its readers could sign with it.
///
/// # Errors
/// As [`parse_jwks`].
pub fn parse_published(text: &[u8]) -> Result<Vec<TokenKey>, String> {
    let document: Value = serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
    let listed = document.get("keys").and_then(Value::as_array).ok_or("is not a JWKS: it has no list \"keys\"")?;
    let usable = listed.iter().filter_map(|jwk| parse_key(jwk).ok().flatten());
    let keys: Vec<TokenKey> = usable.filter(|key| !key.is_secret()).take(KEYS_MAX + 1).collect();
    match keys.len() {
        0 => Err("has no public key that checks RS256, ES256 or EdDSA".to_owned()),
        1..=KEYS_MAX => Ok(keys),
        _ => Err(format!("has more than {KEYS_MAX} keys")),
    }
}

fn parse_key(jwk: &Value) -> Result<Option<TokenKey>, String> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    // What is there and can't be read must not count as left out: such a key would be taken for more than it is.
    if let Some(name) = ["kid", "use", "alg"].into_iter().find(|name| jwk.get(name).is_some_and(|it| !it.is_string())) {
        return Err(format!("\"{name}\" is not a string"));
    }
    let bytes = |name: &str| {
        let value = text(name).ok_or_else(|| format!("has no \"{name}\""))?;
        BASE64URL.decode(value).map_err(|_| format!("\"{name}\" is not base64url"))
    };
    let algorithm = match (text("kty"), text("crv")) {
        (Some("oct"), _) => Algorithm::Hs256,
        (Some("RSA"), _) => Algorithm::Rs256,
        (Some("EC"), Some("P-256")) => Algorithm::Es256,
        (Some("OKP"), Some("Ed25519")) => Algorithm::EdDsa,
        (Some(_), _) => return Ok(None),
        (None, _) => return Err("has no \"kty\"".to_owned()),
    };
    // RFC 7517 section 4.3.
    let may_verify = match jwk.get("key_ops") {
        None => true,
        Some(Value::Array(operations)) => operations.iter().any(|name| name == "verify"),
        Some(_) => return Err("\"key_ops\" is not a list".to_owned()),
    };
    let is_for_another =
        text("use").is_some_and(|name| name != "sig") || text("alg").is_some_and(|name| name != algorithm.name());
    if is_for_another || !may_verify {
        return Ok(None);
    }
    let mut exponent = Vec::new();
    let value = match algorithm {
        Algorithm::Hs256 => {
            let secret = bytes("k")?;
            if secret.len() < HMAC_KEY_BYTES_MIN {
                return Err(format!("\"k\" has {} bytes; HS256 needs {HMAC_KEY_BYTES_MIN} (RFC 7518)", secret.len()));
            }
            if is_published(&secret) {
                return Err("\"k\" is an example from a guide, so anyone can sign with it".to_owned());
            }
            secret
        }
        Algorithm::Rs256 => {
            exponent = bytes("e")?;
            let modulus: Vec<u8> = bytes("n")?.into_iter().skip_while(|byte| *byte == 0).collect();
            if !RSA_BYTES.contains(&modulus.len()) {
                return Err(format!("\"n\" has {} bits; 2048 to 4096 are taken", modulus.len() * 8));
            }
            modulus
        }
        Algorithm::Es256 => {
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != 32 || y.len() != 32 {
                return Err("\"x\" and \"y\" must have 32 bytes each".to_owned());
            }
            [&[4][..], &x, &y].concat()
        }
        Algorithm::EdDsa => {
            let x = bytes("x")?;
            if x.len() != 32 {
                return Err("\"x\" must have 32 bytes".to_owned());
            }
            x
        }
    };
    Ok(Some(TokenKey {
        id: text("kid").map(Box::from),
        algorithm,
        value: Secret::new(value),
        exponent: exponent.into(),
    }))
}

impl TokenKey {
    /// Whether who reads it can sign with it.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.algorithm == Algorithm::Hs256
    }

    /// Bytes of its signatures.
    fn signature_bytes(&self) -> usize {
        match self.algorithm {
            Algorithm::Hs256 => 32,
            Algorithm::Rs256 => self.value.expose().len(),
            Algorithm::Es256 | Algorithm::EdDsa => 64,
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let value = self.value.expose();
        match self.algorithm {
            Algorithm::Hs256 => hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, value), message, signature).is_ok(),
            Algorithm::Rs256 => RsaPublicKeyComponents { n: value, e: &*self.exponent }
                .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            Algorithm::Es256 => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, value).verify(message, signature).is_ok()
            }
            Algorithm::EdDsa => UnparsedPublicKey::new(&signature::ED25519, value).verify(message, signature).is_ok(),
        }
    }
}

/// What a token must say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExpectedClaims {
    /// Must be the audience, or among them.
    pub audience: Box<str>,
    /// Must be the issuer, if this is set.
    pub issuer: Option<Box<str>>,
    /// The claim that names the user.
    pub user_claim: Box<str>,
    /// The claim that names the tenant; each token must have it then.
    pub tenant_claim: Option<Box<str>>,
    /// The claim that holds limits; a token without it has none.
    pub limits_claim: Option<Box<str>>,
}

/// What a good token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenClaims {
    /// Who it is for.
    pub user: String,
    /// When it ends, seconds since 1970; later than now.
    pub expires_at: u64,
    /// Whose user it is.
    pub tenant: Option<String>,
    /// Limits, unread.
    pub limits: Option<Value>,
}

/// Why a token is not good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenRefused {
    /// Not three parts of base64url with JSON in the first two.
    Malformed,
    /// No key here checks its algorithm, or has its `kid`.
    NoSuchKey,
    /// More keys could have signed it than are tried for one token.
    Ambiguous,
    /// No key here signed it.
    Forged,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    TooEarly,
    /// It has no end.
    NoEnd,
    /// It is meant for somebody else, or comes from somebody else.
    Audience,
    /// It names no user.
    NoUser,
    /// It names no tenant, and each must.
    NoTenant,
}

impl TokenRefused {
    /// What is wrong with it.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Malformed => "the token is malformed",
            Self::NoSuchKey => "no key matches the token's algorithm and kid; unsigned tokens are not accepted",
            Self::Ambiguous => "more than 4 keys match this token; set kid in the token, or remove old keys",
            Self::Forged => "the token's signature is wrong",
            Self::Expired => "the token has expired",
            Self::TooEarly => "the token is not valid yet; compare the clocks",
            Self::NoEnd => "the token has no exp",
            Self::Audience => "the token is for another audience, or from another issuer",
            Self::NoUser => "the token has no user",
            Self::NoTenant => "the token has no tenant",
        }
    }
}

impl fmt::Display for TokenRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// Whether a text could be a token, so that it is worth a signature's check.
#[must_use]
pub fn looks_like_one(text: &[u8]) -> bool {
    text.len() <= TOKEN_BYTES_MAX && text.starts_with(b"ey") && text.iter().filter(|byte| **byte == b'.').count() == 2
}

/// Whether a token is refused only because the key that it names is not among these: newer ones may have it.
#[must_use]
pub fn names_another_key(keys: &[TokenKey], token: &str) -> bool {
    let head = token.split('.').next().and_then(|head| BASE64URL.decode(head).ok());
    let Some(head) = head.and_then(|head| serde_json::from_slice::<Value>(&head).ok()) else { return false };
    let is_signed = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa]
        .iter()
        .any(|algorithm| head["alg"].as_str() == Some(algorithm.name()));
    let is_there = |id| keys.iter().any(|key| key.id.as_deref() == Some(id));
    is_signed && (keys.is_empty() || head["kid"].as_str().is_some_and(|id| !is_there(id)))
}

/// Checks signature, then time, audience and issuer, then takes the user out.
///
/// # Errors
/// The first reason that stands against it.
pub fn verify(
    keys: &[TokenKey],
    expected: &ExpectedClaims,
    now: u64,
    token: &str,
) -> Result<TokenClaims, TokenRefused> {
    let malformed = TokenRefused::Malformed;
    let (message, signature) = token.rsplit_once('.').ok_or(malformed)?;
    let (head, claims) = message.split_once('.').ok_or(malformed)?;
    let json = |part: &str| {
        let bytes = BASE64URL.decode(part).map_err(|_| malformed)?;
        serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object).ok_or(malformed)
    };
    let head = json(head)?;
    let signature = BASE64URL.decode(signature).map_err(|_| malformed)?;
    // An extension that must be understood, and none is (RFC 7515 section 4.1.11).
    if head.get("crit").is_some() {
        return Err(malformed);
    }
    let algorithm = head["alg"].as_str().ok_or(malformed)?;
    let id = match head.get("kid") {
        None => None,
        Some(id) => Some(id.as_str().ok_or(malformed)?),
    };
    let fits = |key: &&TokenKey| {
        key.algorithm.name() == algorithm && (id.is_none() || key.id.is_none() || key.id.as_deref() == id)
    };
    let fitting: Vec<&TokenKey> = keys.iter().filter(fits).collect();
    match fitting.len() {
        0 => return Err(TokenRefused::NoSuchKey),
        1..=KEYS_TRIED_MAX => {}
        _ => return Err(TokenRefused::Ambiguous),
    }
    let signs =
        |key: &&TokenKey| key.signature_bytes() == signature.len() && key.verifies(message.as_bytes(), &signature);
    if !fitting.iter().any(signs) {
        return Err(TokenRefused::Forged);
    }
    let claims = json(claims)?;
    let expires_at = seconds(&claims["exp"]).ok_or(TokenRefused::NoEnd)?;
    if expires_at <= now {
        return Err(TokenRefused::Expired);
    }
    let begins_at = match claims.get("nbf") {
        Some(begin) => seconds(begin).ok_or(malformed)?,
        None => 0,
    };
    if begins_at > now + SKEW_SECONDS {
        return Err(TokenRefused::TooEarly);
    }
    let is_ours = match &claims["aud"] {
        Value::String(one) => **one == *expected.audience,
        Value::Array(several) => several.iter().any(|one| one.as_str() == Some(&expected.audience)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    };
    let is_from_them = expected.issuer.as_deref().is_none_or(|issuer| claims["iss"].as_str() == Some(issuer));
    if !is_ours || !is_from_them {
        return Err(TokenRefused::Audience);
    }
    let user = claims[&*expected.user_claim].as_str().filter(|user| !user.is_empty());
    let tenant = match &expected.tenant_claim {
        None => None,
        Some(claim) => {
            let fits = |name: &&str| !name.is_empty() && name.len() <= 64 && !name.chars().any(char::is_control);
            Some(claims[&**claim].as_str().filter(fits).ok_or(TokenRefused::NoTenant)?.to_owned())
        }
    };
    let limits =
        expected.limits_claim.as_ref().and_then(|claim| claims.get(&**claim)).filter(|limits| !limits.is_null());
    let limits = limits.cloned();
    Ok(TokenClaims { user: user.ok_or(TokenRefused::NoUser)?.to_owned(), expires_at, tenant, limits })
}

/// A NumericDate, which may have a fraction (RFC 7519 section 2).
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let seconds = value.as_f64().filter(|seconds| (0.0..1e12).contains(seconds))?;
        Some(seconds as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21 05:30:00 UTC.
    const NOW: u64 = 1_795_239_000;
    const JWKS: &str = include_str!("../tests/vectors/jwt/jwks.json");
    const TOKENS: &str = include_str!("../tests/vectors/jwt/tokens.txt");

    fn expected() -> ExpectedClaims {
        ExpectedClaims {
            audience: "turn".into(),
            issuer: Some("https://login.example".into()),
            user_claim: "sub".into(),
            tenant_claim: None,
            limits_claim: None,
        }
    }

    #[test]
    fn tokens_that_another_implementation_made_are_judged_rightly() {
        let keys = parse_jwks(JWKS.as_bytes()).unwrap();
        assert_eq!(keys.len(), 4, "keys for encryption and of other curves are passed over");
        let mut seen = 0;
        for line in TOKENS.lines().filter(|line| !line.starts_with('#')) {
            let (verdict, token) = line.split_once(' ').unwrap();
            let found = verify(&keys, &expected(), NOW, token);
            let wanted = match verdict {
                "good" => {
                    Ok(TokenClaims { user: "alice".to_owned(), expires_at: NOW + 900, tenant: None, limits: None })
                }
                "forged" => Err(TokenRefused::Forged),
                "no_such_key" => Err(TokenRefused::NoSuchKey),
                "expired" => Err(TokenRefused::Expired),
                "too_early" => Err(TokenRefused::TooEarly),
                "no_end" => Err(TokenRefused::NoEnd),
                "audience" => Err(TokenRefused::Audience),
                "no_user" => Err(TokenRefused::NoUser),
                "malformed" => Err(TokenRefused::Malformed),
                other => panic!("{other}"),
            };
            assert_eq!(found, wanted, "{line}");
            seen += 1;
        }
        assert_eq!(seen, 37);
    }

    #[test]
    fn a_good_token_with_any_byte_changed_is_refused() {
        let keys = parse_jwks(JWKS.as_bytes()).unwrap();
        for token in TOKENS.lines().filter_map(|line| line.strip_prefix("good ")).take(4) {
            for at in (0..token.len()).step_by(7) {
                let mut bytes = token.as_bytes().to_vec();
                bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
                let changed = String::from_utf8(bytes).unwrap();
                assert!(verify(&keys, &expected(), NOW, &changed).is_err(), "{changed}");
            }
        }
    }

    #[test]
    fn a_public_key_is_no_secret_to_sign_with() {
        let document: Value = serde_json::from_str(JWKS).unwrap();
        let public: Vec<TokenKey> = parse_published(JWKS.as_bytes()).unwrap();
        assert_eq!(public.len(), 3, "the secret is passed over");
        let claims = format!(r#"{{"sub":"mallory","aud":"turn","iss":"https://login.example","exp":{}}}"#, NOW + 900);
        let mut tried = 0;
        for jwk in document["keys"].as_array().unwrap() {
            // What a sloppy checker would take as the secret: each public value, as bytes and as text.
            for name in ["n", "x", "y"] {
                let Some(text) = jwk[name].as_str() else { continue };
                let der = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n").into_bytes();
                for secret in
                    [BASE64URL.decode(text).unwrap(), text.as_bytes().to_vec(), der, jwk.to_string().into_bytes()]
                {
                    for algorithm in ["HS256", "none", "RS256"] {
                        let head = serde_json::json!({ "alg": algorithm, "kid": jwk["kid"] }).to_string();
                        let message = format!("{}.{}", BASE64URL.encode(head), BASE64URL.encode(&claims));
                        let code = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message.as_bytes());
                        let token = format!("{message}.{}", BASE64URL.encode(code));
                        for keys in [&public, &parse_jwks(JWKS.as_bytes()).unwrap()] {
                            let refused = verify(keys, &expected(), NOW, &token).unwrap_err();
                            assert!(matches!(refused, TokenRefused::NoSuchKey | TokenRefused::Forged), "{refused:?}");
                        }
                        tried += 1;
                    }
                }
            }
        }
        assert!(tried >= 36, "{tried}");
    }

    #[test]
    fn only_a_signed_token_with_an_unknown_kid_is_worth_another_look_at_the_keys() {
        let keys = parse_published(JWKS.as_bytes()).unwrap();
        let token = |head: &str| format!("{}.e30.AAAA", BASE64URL.encode(head));
        let known = keys[0].id.clone().unwrap();
        assert!(names_another_key(&keys, &token(r#"{"alg":"ES256","kid":"next-year"}"#)));
        assert!(names_another_key(&[], &token(r#"{"alg":"EdDSA"}"#)));
        for head in [
            format!(r#"{{"alg":"RS256","kid":"{known}"}}"#),
            r#"{"alg":"none","kid":"next-year"}"#.to_owned(),
            r#"{"alg":"HS256","kid":"next-year"}"#.to_owned(),
            r#"{"alg":"RS256"}"#.to_owned(),
            "nonsense".to_owned(),
        ] {
            assert!(!names_another_key(&keys, &token(&head)), "{head}");
        }
    }

    /// The costliest set that could be given: what a token may make us compute must be bounded before anything is.
    fn many_keys(count: usize, has_ids: bool) -> Vec<TokenKey> {
        let key = |at: usize| {
            let mut jwk = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64URL.encode([at as u8; 32]) });
            if has_ids {
                jwk["kid"] = Value::from(format!("key-{at}"));
            }
            jwk
        };
        let keys: Vec<Value> = (0..count).map(key).collect();
        parse_jwks(serde_json::json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    }

    // F-A15
    #[test]
    fn a_token_is_tried_with_few_keys_and_only_with_those_of_its_algorithm() {
        let token = |head: &str| format!("{}.e30.{}", BASE64URL.encode(head), BASE64URL.encode([1; 64]));
        let judge = |keys: &[TokenKey], head: &str| verify(keys, &expected(), NOW, &token(head)).unwrap_err();
        let (none, named) = (r#"{"alg":"EdDSA"}"#, r#"{"alg":"EdDSA","kid":"key-3"}"#);
        assert_eq!(judge(&many_keys(KEYS_TRIED_MAX, true), none), TokenRefused::Forged);
        assert_eq!(judge(&many_keys(KEYS_TRIED_MAX + 1, true), none), TokenRefused::Ambiguous);
        assert_eq!(judge(&many_keys(KEYS_MAX, true), named), TokenRefused::Forged, "one key has this name");
        assert_eq!(judge(&many_keys(KEYS_MAX, false), named), TokenRefused::Ambiguous, "any of them may have it");
        assert_eq!(judge(&many_keys(KEYS_MAX, true), r#"{"alg":"RS256"}"#), TokenRefused::NoSuchKey);
        for bad in [r#"{"alg":"EdDSA","kid":5}"#, r#"{"alg":"EdDSA","kid":null}"#, r#"{"alg":["EdDSA"]}"#] {
            assert_eq!(judge(&many_keys(1, true), bad), TokenRefused::Malformed, "{bad}");
        }
    }

    // F-A15
    #[test]
    fn keys_that_cost_too_much_or_say_what_can_not_be_read_are_not_taken() {
        let rsa = |bits: usize| {
            let n = BASE64URL.encode(vec![0xff; bits / 8]);
            parse_jwks(format!(r#"{{"keys":[{{"kty":"RSA","e":"AQAB","n":"{n}"}}]}}"#).as_bytes())
        };
        assert!(rsa(2048).is_ok() && rsa(4096).is_ok());
        for bits in [1024, 4104, 8192] {
            assert!(rsa(bits).unwrap_err().contains("2048 to 4096 are taken"), "{bits}");
        }
        let key = |more: &str| {
            let x = BASE64URL.encode([1; 32]);
            parse_jwks(format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}",{more}}}]}}"#).as_bytes())
        };
        for good in [r#""use":"sig""#, r#""alg":"EdDSA""#, r#""kid":"a""#, r#""key_ops":["sign","verify"]"#] {
            assert!(key(good).is_ok(), "{good}");
        }
        for (bad, says) in [
            (r#""use":5"#, "\"use\" is not a string"),
            (r#""alg":null"#, "\"alg\" is not a string"),
            (r#""kid":["a"]"#, "\"kid\" is not a string"),
            (r#""key_ops":"verify""#, "\"key_ops\" is not a list"),
            (r#""key_ops":["encrypt"]"#, "has no key"),
        ] {
            assert!(key(bad).unwrap_err().contains(says), "{bad}");
        }
    }

    #[test]
    fn wrong_key_sets_are_named_without_their_secrets() {
        for (text, says) in [
            ("", "is not JSON"),
            ("{}", "has no list"),
            (r#"{"keys":[]}"#, "has no key"),
            (r#"{"keys":[{}]}"#, "keys[0]: has no \"kty\""),
            (r#"{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}"#, "5 bytes; HS256 needs 32"),
            (r#"{"keys":[{"kty":"oct","k":"!"}]}"#, "not base64url"),
            (r#"{"keys":[{"kty":"RSA","e":"AQAB","n":"AQAB"}]}"#, "24 bits"),
            (r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#, "32 bytes each"),
            (r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA"}]}"#, "must have 32 bytes"),
            (r#"{"keys":[{"kty":"RSA","alg":"RS512","e":"AQAB","n":"AQAB"}]}"#, "has no key"),
        ] {
            let error = parse_jwks(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(!format!("{:?}", parse_jwks(JWKS.as_bytes())).contains("[0, 1, 2"));
    }
}
