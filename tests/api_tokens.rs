//! Users with tokens, and limits inside credentials: keys fetched from a login, rates, tenants, what is narrowed.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use test_support::api;
use test_support::api::{BEARER, Endpoint, JSON, KEY, START, config, digest, key_table, some_uris, start};
use throughway::api::rest::Exposure;
use throughway::api::rest::refused::IssueRefused;
use throughway::config::Config;
use throughway::credentials;
use throughway::credentials::claims::Claims;

/// A login: signs tokens, and publishes its keys or whatever else it is told to answer.
struct Login {
    url: String,
    answer: Arc<Mutex<String>>,
    asked: Arc<Mutex<u32>>,
}

struct Signer {
    id: &'static str,
    pair: Ed25519KeyPair,
}

impl Signer {
    fn new(id: &'static str, seed: u8) -> Self {
        Self { id, pair: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap() }
    }

    fn jwk(&self) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": BASE64URL.encode(self.pair.public_key()) })
    }

    fn token(&self, claims: Value) -> String {
        let mut all = json!({ "aud": "turn", "exp": START + 900 });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let head = json!({ "alg": "EdDSA", "kid": self.id });
        let message = format!("{}.{}", BASE64URL.encode(head.to_string()), BASE64URL.encode(all.to_string()));
        let signature = self.pair.sign(message.as_bytes());
        format!("{message}.{}", BASE64URL.encode(signature))
    }
}

impl Login {
    fn start(signers: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://127.0.0.1:{}/jwks", listener.local_addr().unwrap().port());
        let login = Self { url, answer: Arc::default(), asked: Arc::default() };
        login.publishes(signers);
        let (answer, asked) = (Arc::clone(&login.answer), Arc::clone(&login.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                *asked.lock().unwrap() += 1;
                let text = answer.lock().unwrap().clone();
                let _ = stream.write_all(text.as_bytes());
            }
        });
        login
    }

    fn publishes(&self, signers: &[&Signer]) {
        let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
        let body = json!({ "keys": keys }).to_string();
        *self.answer.lock().unwrap() = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    }

    fn config(&self, more: &str) -> String {
        format!("http.jwt_keys = \"{}\"\nhttp.jwt_audience = \"turn\"\n{more}", self.url)
    }
}

fn ask(endpoint: &Endpoint, token: &str, body: &str) -> api::Answer {
    let bearer = format!("Bearer {token}");
    endpoint.ask("POST", "/v1/credentials", &[("Authorization", &bearer), JSON], body)
}

/// An endpoint whose secret reads claims.
fn endpoint(http: &str, keys: &str, secret: &str) -> Endpoint {
    let text = format!("{http}\n{keys}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n{secret}\n");
    let config = Config::from_toml("c.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    Endpoint::with(&config, some_uris(), &Exposure::Public, start)
}

/// What the relay makes of an answer: tenant and limits.
fn read_by_the_relay(secret: &str, answer: &Value) -> (String, Claims) {
    let text = format!("[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n{secret}\n");
    let auth = Config::from_toml("c.toml", &text).unwrap().auth;
    let (username, password) = (answer["username"].as_str().unwrap(), answer["password"].as_str().unwrap());
    let good = credentials::verify(&auth.secrets, START, auth.max_ttl, username, password.as_bytes()).unwrap();
    let claims = Claims { grant: good.holder.grant.clone(), tenant: good.holder.tenant.clone(), nonce: None };
    (good.holder.user_id.to_owned(), claims)
}

#[test]
fn a_token_of_a_new_key_is_taken_as_soon_as_the_login_has_published_it() {
    let (old, new, stranger) = (Signer::new("old", 1), Signer::new("new", 2), Signer::new("stranger", 3));
    let login = Login::start(&[&old]);
    let endpoint = endpoint(&login.config(""), "", "");
    let alice = json!({ "sub": "alice" });
    // The first token waits for the first fetch.
    assert_eq!(ask(&endpoint, &old.token(alice.clone()), "").status, 200);
    login.publishes(&[&new]);
    // Just fetched: no caller can make us ask again at once.
    assert_eq!(ask(&endpoint, &new.token(alice.clone()), "").status, 401);
    let asked = Instant::now();
    for _ in 0..50 {
        assert_eq!(ask(&endpoint, &stranger.token(alice.clone()), "").status, 401);
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "nor wait for it");
    assert_eq!(*login.asked.lock().unwrap(), 1);
    // A reload with another place fetches from there; with the same one it keeps what it has.
    let moved = Login::start(&[&new]);
    let config_of = |login: &Login| config(&login.config(""), "");
    endpoint.reconfigure(&config_of(&login));
    assert_eq!(ask(&endpoint, &old.token(alice.clone()), "").status, 200);
    endpoint.reconfigure(&config_of(&moved));
    assert_eq!(ask(&endpoint, &new.token(alice.clone()), "").status, 200);
    assert_eq!(ask(&endpoint, &old.token(alice), "").status, 401);
    assert_eq!((*login.asked.lock().unwrap(), *moved.asked.lock().unwrap()), (1, 1));
}

#[test]
fn without_keys_tokens_wait_and_api_keys_work() {
    let signer = Signer::new("a", 1);
    let login = Login::start(&[]);
    *login.answer.lock().unwrap() = "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".to_owned();
    let endpoint = endpoint(&login.config(""), &key_table("web", KEY, ""), "");
    let refused = ask(&endpoint, &signer.token(json!({ "sub": "alice" })), "");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("30")), "{refused:?}");
    assert_eq!(endpoint.refused(&IssueRefused::NoTokenKeys), 1);
    assert_eq!(endpoint.ask("GET", "/v1/credentials", &[BEARER], "").status, 200);
    // What is no signed token does not wait for keys.
    let unsigned = format!("{}.e30.", BASE64URL.encode(r#"{"alg":"none","kid":"a"}"#));
    assert_eq!(ask(&endpoint, &unsigned, "").status, 401);
}

#[test]
fn one_users_flood_refuses_no_other_user() {
    let signer = Signer::new("a", 1);
    let login = Login::start(&[&signer]);
    let more = "limits.credentials_per_key = 5\nlimits.credentials_per_user = 3";
    let endpoint = endpoint(&login.config(more), &key_table("web", KEY, ""), "");
    let status = |user: &str| ask(&endpoint, &signer.token(json!({ "sub": user })), "").status;
    assert_eq!([0; 5].map(|_| status("mallory")), [200, 200, 200, 429, 429]);
    for user in 0..20 {
        assert_eq!(status(&format!("user-{user}")), 200, "more users than a key may ask for in a minute");
    }
    assert_eq!((endpoint.refused(&IssueRefused::RateUser(0)), endpoint.refused(&IssueRefused::RateKey(0))), (2, 0));
    let of_key = [0; 6].map(|_| endpoint.ask("GET", "/v1/credentials", &[BEARER], "").status);
    assert_eq!(of_key, [200, 200, 200, 200, 200, 429], "a key still has its own");
}

#[test]
fn tenant_and_limits_of_a_token_are_in_its_credential() {
    let signer = Signer::new("a", 1);
    let login = Login::start(&[&signer]);
    let more = "http.jwt_tenant_claim = \"org\"\nhttp.jwt_limits_claim = \"turn\"";
    let secret =
        "claims = [\"bytes\", \"bitrate\", \"allocations\", \"peers\", \"transports\", \"closes_at\", \"tenant\"]";
    let endpoint = endpoint(&login.config(more), "", secret);
    let token =
        signer.token(json!({ "sub": "alice", "org": "acme", "turn": { "bytes": 1000, "transports": ["tls"] } }));
    let answer = ask(&endpoint, &token, r#"{"limits":{"bytes":5000,"bitrate":64000}}"#).json();
    assert_eq!(answer["limits"], json!({ "bytes": 1000, "bitrate": 64000, "transports": ["tls"] }));
    assert_eq!(answer["tenant"], "acme");
    let (user, claims) = read_by_the_relay(secret, &answer);
    assert_eq!((user.as_str(), claims.tenant.as_deref()), ("alice", Some("acme")));
    assert_eq!((claims.grant.bytes, claims.grant.bits_per_second), (Some(1000), Some(64_000)));
    for (claims, says) in [
        (json!({ "sub": "alice" }), "has no tenant"),
        (json!({ "sub": "alice", "org": "" }), "has no tenant"),
        (json!({ "sub": "alice", "org": ["acme"] }), "has no tenant"),
        (json!({ "sub": "alice", "org": "acme", "turn": { "byte": 5 } }), "and nothing else"),
        (json!({ "sub": "alice", "org": "acme", "turn": "unlimited" }), "must be an object"),
    ] {
        let refused = ask(&endpoint, &signer.token(claims), "");
        assert_eq!((refused.status, &refused.json()["reason"]), (401, &"bad_token".into()), "{refused:?}");
        assert!(refused.body.contains(says), "{refused:?}");
    }
    let free = signer.token(json!({ "sub": "bob", "org": "acme" }));
    assert!(ask(&endpoint, &free, "").json().get("limits").is_none(), "a token without limits has none");
}

#[test]
fn a_key_has_a_tenant_and_limits_and_who_asks_may_only_narrow_them() {
    let key = "tenant = \"acme\"\nlimits = { bytes = \"1MiB\", bandwidth = \"1Mbit/s\", peers = [\"192.0.2.0/24\"] }";
    let secret = "claims = true\ntenant = \"acme\"";
    let endpoint = endpoint("", &key_table("web", KEY, key), secret);
    let ask = |body: &str| endpoint.ask("POST", "/v1/credentials", &[BEARER, JSON], body);
    let narrowed =
        ask(r#"{"username":"bob","limits":{"bytes":99999999,"allocations":1,"peers":["192.0.2.7/32"]}}"#).json();
    let expected = json!({ "bytes": 1_048_576, "bitrate": 1_000_000, "allocations": 1, "peers": ["192.0.2.7/32"] });
    assert_eq!((&narrowed["limits"], &narrowed["tenant"]), (&expected, &"acme".into()));
    let (user, claims) = read_by_the_relay(secret, &narrowed);
    assert_eq!((user.as_str(), claims.tenant.as_deref()), ("bob", Some("acme")));
    assert_eq!((claims.grant.bytes, claims.grant.allocations), (Some(1 << 20), Some(1)));
    let carried = narrowed["username"].as_str().unwrap().split_once('~').unwrap().1;
    let carried = String::from_utf8(BASE64URL.decode(carried).unwrap()).unwrap();
    assert!(!carried.contains("acme"), "what the secret says of the tenant need not be said again: {carried}");
    let plain = ask(r#"{"username":"bob"}"#).json();
    assert_eq!(plain["limits"]["bytes"], 1 << 20, "who asks for nothing gets what the key allows");
    // The other shapes carry the same credential.
    let ice = endpoint.ask("GET", "/ice?username=bob", &[BEARER], "").json();
    assert!(ice["iceServers"][0]["username"].as_str().unwrap().contains('~'));
    for (body, says) in [
        (r#"{"limits":{"peers":["198.51.100.0/24"]}}"#, "allows none of them"),
        (r#"{"limits":{"peers":"relay"}}"#, "can't carry both"),
        (r#"{"limits":{"closes_at":1}}"#, "is in the past"),
        (r#"{"limits":{"bytes":0}}"#, "1 or more"),
        (r#"{"limits":{"tenant":"other"}}"#, r#"limits.tenant\" is not a known member"#),
        (r#"{"limits":[]}"#, "must be an object"),
        (r#"{"username":"bob~eyJxIjoxfQ"}"#, "~"),
    ] {
        let refused = ask(body);
        assert_eq!(refused.status, 400, "{body}: {refused:?}");
        assert!(refused.body.contains(says), "{body}: {refused:?}");
    }
    let in_query = endpoint.ask("GET", "/v1/credentials?limits=%7B%7D", &[BEARER], "");
    assert!(in_query.status == 400 && in_query.body.contains("JSON body"), "{in_query:?}");
    let many: Vec<String> = (0..32).map(|number| format!("192.0.2.{number}/32")).collect();
    let refused = ask(&json!({ "limits": { "peers": many } }).to_string());
    assert!(refused.status == 400 && refused.body.contains("fewer prefixes"), "{refused:?}");
}

#[test]
fn a_secret_that_reads_no_claims_gives_no_limits_away() {
    let endpoint = Endpoint::ordinary();
    let refused = endpoint.ask("POST", "/v1/credentials", &[BEARER, JSON], r#"{"limits":{"bytes":5}}"#);
    assert!(refused.status == 400 && refused.body.contains("add them to the claims"), "{refused:?}");
    let secret = |more: &str| format!("[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n{more}\n");
    let key = |more: &str| format!("[[http.keys]]\nname = \"web\"\nsha256 = \"{}\"\n{more}\n", digest(KEY));
    let jwt = |more: &str| {
        format!("http.jwt_keys = \"https://login.example/\"\nhttp.jwt_audience = \"a\"\n{more}\n{}", secret(""))
    };
    for (text, says) in [
        (
            key("limits = { bytes = \"1GiB\" }") + &secret(""),
            "http.keys[0].limits: bytes can't be put into credentials",
        ),
        (key("limits = { bytes = \"1GiB\" }") + &secret("claims = [\"bitrate\"]"), "give its table claims = true"),
        (key("limits = { packet_rate = 5 }") + &secret("claims = true"), "can't be inside a credential"),
        (key("tenant = \"acme\"") + &secret("claims = true"), "give it tenant = \"acme\", or name \"tenant\""),
        (key("tenant = \"acme\"") + &secret("tenant = \"other\""), "no secret is of this tenant"),
        (key("tenant = \"\"") + &secret("claims = true"), "a tenant's name has"),
        (jwt("http.jwt_tenant_claim = \"org\""), "http.jwt_tenant_claim"),
        (jwt("http.jwt_limits_claim = \"turn\""), "give its table claims = true"),
    ] {
        let error = Config::from_toml("c.toml", &text).expect_err(&text).to_string();
        assert!(error.contains(says), "{error}\nlacks {says}");
    }
    // Each tenant's own secret makes its credentials.
    let tenants = ["a", "b"].map(|name| {
        let secret =
            format!("[[auth.secrets]]\nid = \"{name}\"\nvalue = \"north-of-everything-{name}\"\ntenant = \"{name}\"\n");
        secret + &format!("[[http.keys]]\nname = \"{name}\"\nsha256 = \"{}\"\ntenant = \"{name}\"\n", digest(name))
    });
    Config::from_toml("c.toml", &tenants.concat()).unwrap();
    // One that only verifies mints nothing, so it need not read anything.
    let both = key("limits = { bytes = \"1GiB\" }")
        + &secret("claims = true")
        + "[[auth.secrets]]\nid = \"old\"\nvalue = \"south-of-everything\"\nverify_only = true\n";
    Config::from_toml("c.toml", &both).unwrap();
}
