//! Credentials over HTTP: every shape to the byte, who may ask, how often, and what hostile clients get.
//!
//! The endpoint runs in this process with a clock of its own; tests/e2e_api.rs runs the real binary.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use test_support::api::{
    Answer, BASIC, BEARER, Endpoint, FORM, JSON, KEY, START, WRONG, config, key_table, read_all, request, runtime,
    send, some_uris, start,
};
use throughway::api::Bound;
use throughway::api::host::AllowedHosts;
use throughway::api::rest::refused::IssueRefused;
use throughway::api::rest::{self, Exposure, Rest};
use throughway::config::checked::HttpListen;
use throughway::time::{Now, Ticks, UnixSeconds};

fn compare_golden(name: &str, shown: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/rest").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, shown).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(shown, golden, "{name}: readers hard-code this; if it must change, renew with UPDATE_SNAPSHOTS=1");
}
/// Name of the golden file, method, target, headers, body.
type Case = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

#[test]
fn every_shape_is_as_its_readers_hard_code_it() {
    let endpoint = Endpoint::ordinary();
    let cloudflare = "/v1/turn/keys/0123/credentials/generate-ice-servers";
    let cases: &[Case] = &[
        ("all", "GET", "/v1/credentials?username=alice&ttl=600", &[BEARER], ""),
        ("draft", "POST", "/?service=turn&username=alice&key=open-sesame", &[], ""),
        (
            "draft-janus",
            "POST",
            "/turn?service=turn&api=open-sesame&key=open-sesame&username=alice",
            &[FORM],
            "service=turn&api=open-sesame&key=open-sesame&username=alice",
        ),
        ("draft-nextcloud", "GET", "/turn/credentials?service=turn&key=open-sesame&username=alice", &[], ""),
        ("ice", "GET", "/ice?service=turn&username=alice&ttl=600&namespace=a&gateway=b&listener=c", &[BEARER], ""),
        ("matrix", "GET", "/_matrix/client/v3/voip/turnServer?username=%40alice%3Aexample.org", &[BEARER], ""),
        ("cloudflare", "POST", cloudflare, &[BEARER, JSON], r#"{"ttl":600,"customIdentifier":"alice"}"#),
        (
            "cloudflare-old",
            "POST",
            "/v1/turn/keys/0123/credentials/generate",
            &[BEARER, JSON],
            r#"{"ttl":600,"customIdentifier":"alice"}"#,
        ),
        ("twilio", "POST", "/2010-04-01/Accounts/AC0123/Tokens.json", &[BASIC, FORM], "Ttl=600&username=alice"),
        ("metered", "GET", "/api/v1/turn/credentials?apiKey=open-sesame&region=eu&username=alice", &[], ""),
        (
            "metered-new",
            "POST",
            "/api/v1/turn/credential?secretKey=open-sesame&username=alice",
            &[JSON],
            r#"{"expiryInSeconds":600,"label":"a call"}"#,
        ),
        ("well-known", "GET", "/.well-known/turn", &[], ""),
        ("xep0215", "GET", "/v1/credentials?format=xep0215&username=alice", &[BEARER], ""),
        ("xep0215-xml", "GET", "/v1/credentials?format=xep0215-xml&username=%3Calice%26'%22%3E", &[BEARER], ""),
        ("refused-no-key", "GET", "/v1/credentials", &[], ""),
        ("refused-wrong-key", "GET", "/ice", &[WRONG], ""),
        ("refused-method", "DELETE", "/v1/credentials", &[BEARER], ""),
        ("refused-draft-wrong-key", "POST", "/?service=turn&key=nonsense", &[], ""),
        ("refused-draft-no-service", "GET", "/turn?key=open-sesame", &[], ""),
        ("refused-nextcloud-no-key", "GET", "/turn/credentials?service=turn", &[], ""),
        ("refused-nextcloud-wrong-key", "GET", "/turn/credentials?service=turn&key=nonsense", &[], ""),
        ("refused-matrix-no-key", "GET", "/_matrix/client/v3/voip/turnServer", &[], ""),
        ("refused-matrix-wrong-key", "GET", "/_matrix/client/v3/voip/turnServer", &[WRONG], ""),
        ("refused-twilio-no-key", "POST", "/2010-04-01/Accounts/AC0123/Tokens.json", &[], ""),
        ("refused-cloudflare-get", "GET", cloudflare, &[BEARER], ""),
        ("refused-metered-wrong-key", "GET", "/api/v1/turn/credentials?apiKey=nonsense", &[], ""),
    ];
    for (name, method, target, headers, body) in cases {
        compare_golden(name, &endpoint.ask(method, target, headers, body).golden());
    }
    let no_servers = Endpoint::with(&config("", &key_table("web", KEY, "")), Vec::new(), &Exposure::Public, start);
    compare_golden("refused-no-servers", &no_servers.get("/turn/credentials?service=turn").golden());
}

/// What the draft says in section 2.2, and nothing it does not say.
fn read_as_the_draft_says(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let Value::Object(fields) = answer.json() else { panic!("an object") };
    let text = |name: &str| fields[name].as_str().unwrap_or_else(|| panic!("{name} is a string")).to_owned();
    let (username, password) = (text("username"), text("password"));
    let ttl = fields["ttl"].as_u64().expect("ttl is a whole number of seconds");
    let (expiry, user) = username.split_once(':').unwrap_or((&username, ""));
    assert_eq!(expiry.parse::<u64>().unwrap(), START + ttl);
    assert!(!user.contains(':') || username.matches(':').count() > 1);
    assert!(password.len() == 28 && password.ends_with('='), "base64 of an HMAC-SHA1 with its padding: {password}");
    let uris = fields["uris"].as_array().expect("uris is an array");
    assert!(!uris.is_empty());
    for uri in uris {
        let uri = uri.as_str().unwrap();
        let rest = uri.strip_prefix("turn:").or_else(|| uri.strip_prefix("turns:")).expect("turn or turns");
        let (host, query) = rest.split_once('?').expect("a transport");
        assert!(query == "transport=udp" || query == "transport=tcp", "{uri}");
        host.parse::<SocketAddr>().unwrap_or_else(|_| panic!("{uri}: address and port, IPv6 in brackets"));
    }
    (username, password)
}

#[test]
fn strict_readers_of_the_draft_and_browsers_read_our_own_answer_too() {
    let endpoint = Endpoint::ordinary();
    for target in ["/?service=turn&username=a:b", "/turn?service=turn", "/v1/credentials?username=a:b"] {
        read_as_the_draft_says(&endpoint.get(target));
    }
    let strict = endpoint.get("/?service=turn").json();
    let names: Vec<&String> = strict.as_object().unwrap().keys().collect();
    assert_eq!(names, ["password", "ttl", "uris", "username"], "nothing that the draft does not know");

    let all = endpoint.get("/v1/credentials?username=alice&ttl=600").json();
    // RTCConfiguration
    let server = &all["iceServers"][0];
    assert_eq!(server["username"], all["username"]);
    assert_eq!(server["credential"], all["password"]);
    assert_eq!(server["urls"], all["uris"]);
    assert!(server["urls"].as_array().unwrap().len() <= 4);
    // F-B9: each fact once for each of the two families of readers.
    let names: Vec<&String> = all.as_object().unwrap().keys().collect();
    let known = ["expires_at", "iceServers", "password", "realm", "refresh_after", "ttl", "uris", "username"];
    assert_eq!(names, known);
    assert_eq!(all["expires_at"], START + 600);
    assert_eq!(all["refresh_after"], 300);
    assert_eq!(all["realm"], "throughway");
}

#[test]
fn passwords_are_those_that_the_relay_computes() {
    let endpoint = Endpoint::ordinary();
    for target in ["/?service=turn", "/?service=turn&username=a:b/c@d", "/?service=turn&username=zo%C3%AB"] {
        let (username, password) = read_as_the_draft_says(&endpoint.get(target));
        let config = config("", &key_table("web", KEY, ""));
        let verdict =
            throughway::credentials::verify(&config.auth.secrets, START, 3600, &username, password.as_bytes());
        assert_eq!(verdict.map(|good| &*good.secret.id), Ok("s"), "{username}");
    }
}

#[test]
fn lifetimes_are_cut_to_what_key_and_server_allow() {
    let tables = key_table("web", KEY, "") + &key_table("short", "short-key", "max_ttl = \"10m\"");
    let endpoint = Endpoint::new("http.ttl = \"20m\"\nauth.max_ttl = \"2h\"", &tables);
    let ttl = |key: &str, more: &str| {
        endpoint.get(&format!("/v1/credentials?{more}")).json()["ttl"].clone().to_string()
            + "/"
            + &endpoint.ask("GET", &format!("/ice?{more}&key={key}"), &[], "").json()["expires_at"].to_string()
    };
    assert_eq!(ttl("short-key", ""), format!("1200/{}", START + 600));
    assert_eq!(ttl("short-key", "ttl=60"), format!("60/{}", START + 60));
    assert_eq!(ttl("short-key", "ttl=99999999"), format!("7200/{}", START + 600));
    assert_eq!(endpoint.get("/v1/credentials?ttl=18446744073709551615").json()["ttl"], 7200);
}

#[test]
fn a_user_that_nobody_names_gets_an_id_of_its_own() {
    let endpoint = Endpoint::ordinary();
    let name = |target: &str| endpoint.get(target).json()["username"].as_str().unwrap().to_owned();
    let (one, other) = (name("/v1/credentials"), name("/v1/credentials"));
    assert_ne!(one, other);
    let (_, id) = one.split_once(':').unwrap();
    assert!(id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(name("/v1/credentials?username=a%3Ab"), format!("{}:a:b", START + 3600));
}

#[test]
fn ids_that_can_not_be_in_a_username_are_refused() {
    let users = format!("auth.users = {{ \"{}:bob\" = \"builder\" }}", START + 3600);
    let endpoint = Endpoint::new(&users, &key_table("web", KEY, ""));
    let longest = "x".repeat(508 - 11);
    assert_eq!(endpoint.get(&format!("/v1/credentials?username={longest}")).status, 200);
    for id in [format!("{longest}y"), "a%7Eb".to_owned(), "a%0Ab".to_owned(), "%00".to_owned(), "bob".to_owned()] {
        let answer = endpoint.get(&format!("/v1/credentials?username={id}"));
        assert_eq!((answer.status, &answer.json()["reason"]), (400, &"bad_user".into()), "{id}");
    }
    assert_eq!(endpoint.refused(&IssueRefused::BadUser("")), 5);
}

#[test]
fn nobody_gets_a_credential_where_nobody_is_named() {
    let endpoint = Endpoint::new("", "");
    for target in ["/v1/credentials?key=open-sesame", "/?service=turn", "/ice"] {
        let answer = endpoint.get(target);
        assert_eq!(answer.status, 403);
        assert!(answer.body.contains("[[http.keys]]"), "{}", answer.body);
    }
    assert_eq!(endpoint.refused(&IssueRefused::NoMethod), 3);
}

#[test]
fn a_key_may_be_bound_to_addresses() {
    let near = key_table("near", "near-key", "from = [\"127.0.0.0/8\"]");
    let far = key_table("far", "far-key", "from = [\"192.0.2.0/24\"]");
    let endpoint = Endpoint::new("", &(near.clone() + &far));
    assert_eq!(endpoint.ask("GET", "/ice?key=near-key", &[], "").status, 200);
    let refused = endpoint.ask("GET", "/ice?key=far-key", &[("X-Forwarded-For", "192.0.2.1")], "");
    assert_eq!((refused.status, &refused.json()["reason"]), (403, &"address".into()));
    // Behind a proxy that is trusted, the client's address counts.
    let endpoint = Endpoint::new("http.proxies = [\"127.0.0.1\"]", &(near + &far));
    assert_eq!(endpoint.ask("GET", "/ice?key=far-key", &[("X-Forwarded-For", "192.0.2.1")], "").status, 200);
    assert_eq!(endpoint.ask("GET", "/ice?key=near-key", &[("X-Forwarded-For", "192.0.2.1")], "").status, 403);
}

#[test]
fn a_trusted_proxy_vouches_for_its_user_and_for_no_other() {
    let http =
        "http.proxies = [\"127.0.0.1\"]\nhttp.identity_header = \"X-User\"\nhttp.cors = [\"https://app.example\"]";
    let endpoint = Endpoint::new(http, "");
    let user = ("X-User", "alice");
    let answer = endpoint.ask("GET", "/ice", &[user, ("Origin", "https://app.example")], "");
    assert_eq!(answer.json()["iceServers"][0]["username"], format!("{}:alice", START + 3600));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(endpoint.ask("GET", "/ice?username=alice", &[user], "").status, 200);
    assert_eq!(endpoint.ask("GET", "/ice?username=bob", &[user], "").json()["reason"], "bad_user");
    assert_eq!(endpoint.ask("GET", "/ice", &[], "").status, 401);
    let strangers = Endpoint::new(&http.replace("127.0.0.1", "192.0.2.1"), "");
    assert_eq!(strangers.ask("GET", "/ice", &[user], "").status, 401);
    assert_eq!(endpoint.counts.issued(), [("proxy".into(), 2)]);
}

#[test]
fn a_signed_token_gets_a_credential_for_its_user_and_no_longer_than_itself() {
    let tokens = include_str!("vectors/jwt/tokens.txt");
    let http = format!(
        "http.jwt_keys = {:?}\nhttp.jwt_audience = \"turn\"\nhttp.jwt_issuer = \"https://login.example\"",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/jwt/jwks.json")
    );
    let endpoint = Endpoint::new(&http, &key_table("web", KEY, ""));
    let ask =
        |token: &str, target: &str| endpoint.ask("GET", target, &[("Authorization", &format!("Bearer {token}"))], "");
    let (mut good, mut bad) = (0, 0);
    for line in tokens.lines().filter(|line| !line.starts_with('#')) {
        let (verdict, token) = line.split_once(' ').unwrap();
        let answer = ask(token, "/v1/credentials?ttl=7200");
        if verdict == "good" {
            good += 1;
            let answer = answer.json();
            assert_eq!((&answer["ttl"], &answer["username"]), (&900.into(), &format!("{}:alice", START + 900).into()));
        } else {
            bad += 1;
            assert_eq!(answer.status, 401, "{line}");
            // What does not look like a token is an unknown key.
            let expected = if throughway::jwt::looks_like_one(token.as_bytes()) { "bad_token" } else { "wrong_key" };
            assert_eq!(answer.json()["reason"], expected, "{line}");
        }
    }
    assert_eq!((good, bad), (7, 30));
    let token = tokens.lines().find_map(|line| line.strip_prefix("good ")).unwrap();
    assert_eq!(ask(token, "/v1/credentials?username=alice&ttl=60").json()["ttl"], 60);
    assert_eq!(ask(token, "/v1/credentials?username=bob").json()["reason"], "bad_user");
    assert_eq!(ask(KEY, "/v1/credentials?username=bob").status, 200, "keys work beside it");
    assert_eq!(endpoint.counts.issued(), [("jwt".into(), good + 1), ("web".into(), 1)]);
    assert_eq!(
        Endpoint::ordinary().ask("GET", "/ice", &[("Authorization", &format!("Bearer {token}"))], "").status,
        401
    );
}

#[test]
fn a_process_of_this_machine_is_known_by_its_user() {
    let path = std::env::temp_dir().join(format!("throughway-api-{}.sock", std::process::id()));
    let own = std::fs::metadata("/proc/self").unwrap().uid();
    for (uids, status) in [(own, 200), (own.wrapping_add(1), 401)] {
        let config = config(&format!("http.unix_uids = [{uids}]"), "");
        let rest = Arc::new(Rest::new(&config, some_uris(), Arc::default(), start));
        let runtime = runtime();
        let bound = {
            let _entered = runtime.enter();
            Bound::bind(&HttpListen::Unix(path.clone())).unwrap()
        };
        runtime.spawn(bound.serve(rest::router(&rest, &Exposure::Private(AllowedHosts::default())), None));
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let text = request("GET", "/v1/credentials?username=alice", &[("Host", "localhost")], "");
        stream.write_all(text.as_bytes()).unwrap();
        let answer = Answer::parse(&read_all(&mut stream));
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

#[test]
fn only_listed_origins_may_ask_from_a_browser() {
    let endpoint =
        Endpoint::new("http.cors = [\"https://app.example\", \"http://localhost:3000\"]", &key_table("web", KEY, ""));
    let ours = ("Origin", "https://app.example");
    let wanted = [("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", "authorization")];
    let preflight = endpoint.ask("OPTIONS", "/ice", &[ours, wanted[0], wanted[1]], "");
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(preflight.header("access-control-allow-methods"), Some("GET, POST, OPTIONS"));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("Authorization, Content-Type"));
    assert_eq!(preflight.header("access-control-max-age"), Some("600"));
    assert_eq!(preflight.header("access-control-allow-credentials"), None);
    assert_eq!(preflight.header("vary"), Some("Authorization, Origin"));

    let answer = endpoint.ask("GET", "/ice", &[ours, BEARER], "");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(endpoint.ask("GET", "/ice", &[ours, WRONG], "").header("access-control-allow-origin"), ours.1.into());
    assert_eq!(answer.header("vary"), Some("Authorization, Origin"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));

    for other in ["https://evil.example", "https://app.example.evil.example", "null", "http://app.example", "*"] {
        let preflight = endpoint.ask("OPTIONS", "/ice", &[("Origin", other), wanted[0]], "");
        assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (403, None), "{other}");
        let answer = endpoint.ask("GET", "/ice", &[("Origin", other), BEARER], "");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{other}");
        assert_eq!(answer.header("vary"), Some("Authorization, Origin"));
    }
    let closed = Endpoint::ordinary().ask("OPTIONS", "/ice", &[ours, wanted[0]], "");
    assert_eq!((closed.status, closed.header("access-control-allow-origin")), (403, None));
}

#[test]
fn the_private_listener_answers_its_hosts_only_and_the_public_one_any() {
    let config = config("", &key_table("web", KEY, ""));
    let hosts = AllowedHosts::new(["relay.example".to_owned()]);
    let private = Endpoint::with(&config, some_uris(), &Exposure::Private(hosts), start);
    for (host, status) in [("localhost", 200), ("127.0.0.1:8080", 200), ("relay.example", 200), ("evil.example", 403)] {
        let answer = private.ask("GET", "/ice", &[("Host", host), BEARER], "");
        assert_eq!(answer.status, status, "{host}");
        if status == 403 {
            assert_eq!(answer.json()["reason"], "host");
        }
    }
    assert_eq!(Endpoint::ordinary().ask("GET", "/ice", &[("Host", "evil.example"), BEARER], "").status, 200);
}

static CLOCK: AtomicU64 = AtomicU64::new(0);

#[test]
fn more_than_the_rate_is_a_429_that_says_when_to_come_back() {
    let clock = || Now { ticks: Ticks(CLOCK.load(Ordering::Relaxed)), unix: UnixSeconds(START) };
    let limits = "limits.credentials_per_key = 10\nlimits.credentials_per_user = 3";
    let tables = key_table("web", KEY, "") + &key_table("app", "other-key", "");
    let endpoint = Endpoint::with(&config(limits, &tables), some_uris(), &Exposure::Public, clock);
    let ask = |user: &str| endpoint.get(&format!("/v1/credentials?username={user}"));
    for _ in 0..3 {
        assert_eq!(ask("alice").status, 200);
    }
    let refused = ask("alice");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("20")));
    assert_eq!(refused.json()["reason"], "rate_user");
    assert_eq!(endpoint.get("/v1/credentials").status, 200, "a caller that names no user has no user's rate");
    for user in ["bob", "carol", "dave", "erin", "frank"] {
        assert_eq!(ask(user).status, 200, "{user}");
    }
    let refused = ask("grace");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("6")));
    assert_eq!(refused.json()["reason"], "rate_key");
    assert_eq!(endpoint.ask("GET", "/ice?username=alice&key=other-key", &[], "").status, 200, "another key");
    let matrix = endpoint.get("/_matrix/client/v3/voip/turnServer").json();
    assert_eq!((&matrix["errcode"], &matrix["retry_after_ms"]), (&"M_LIMIT_EXCEEDED".into(), &6000.into()));
    CLOCK.store(20_000, Ordering::Relaxed);
    assert_eq!(ask("alice").status, 200);
    assert_eq!(ask("alice").status, 429);
    assert_eq!(endpoint.refused(&IssueRefused::RateUser(0)), 2);
    // A request without a right key costs no user's rate.
    CLOCK.store(200_000, Ordering::Relaxed);
    for _ in 0..30 {
        assert_eq!(endpoint.ask("GET", "/ice", &[WRONG], "").status, 401);
    }
    assert_eq!(ask("alice").status, 200);
}

static GUESSING: AtomicU64 = AtomicU64::new(0);

#[test]
fn whoever_guesses_gets_429_and_those_behind_the_same_address_go_on() {
    let clock = || Now { ticks: Ticks(GUESSING.load(Ordering::Relaxed)), unix: UnixSeconds(START) };
    let config = config("http.proxies = [\"127.0.0.1\"]", &key_table("web", KEY, ""));
    let endpoint = Endpoint::with(&config, some_uris(), &Exposure::Public, clock);
    // One connection that would be kept; what it asks behind the 429 is not read any more.
    let guess = "GET /ice HTTP/1.1\r\nHost: turn.example.org\r\nAuthorization: Bearer nonsense\r\n\r\n".repeat(70);
    let answers = String::from_utf8(send(endpoint.address, guess.as_bytes())).unwrap();
    let count = |status: &str| answers.matches(&format!("HTTP/1.1 {status}")).count();
    assert_eq!((count("401"), count("429")), (60, 1), "{answers}");
    let refused = endpoint.ask("GET", "/v1/credentials", &[WRONG], "");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(
        (refused.json()["reason"].as_str(), refused.header("connection")),
        (Some("rate_failures"), Some("close"))
    );
    assert_eq!(endpoint.ask("GET", "/?service=turn&key=nonsense", &[], "").status, 429, "in any shape");
    assert_eq!(endpoint.get("/v1/credentials").status, 200, "a right key passes");
    assert_eq!(endpoint.ask("GET", "/v1/credentials", &[], "").status, 401, "none is no guess");
    // Another client of the same proxy, and one that the proxy does not tell.
    for other in ["192.0.2.1", "2001:db8::1"] {
        assert_eq!(endpoint.ask("GET", "/ice", &[WRONG, ("X-Forwarded-For", other)], "").status, 401, "{other}");
    }
    for _ in 0..100 {
        assert_eq!(endpoint.ask("GET", "/ice", &[WRONG, ("X-Forwarded-For", "somebody")], "").status, 401);
    }
    GUESSING.store(1_000, Ordering::Relaxed);
    let wrong = || endpoint.ask("GET", "/ice", &[WRONG], "").status;
    assert_eq!((wrong(), wrong()), (401, 429));
    assert_eq!(endpoint.refused(&IssueRefused::RateFailures(0)), 4);
}

#[test]
fn a_reload_changes_keys_at_once() {
    let endpoint = Endpoint::ordinary();
    assert_eq!(endpoint.get("/ice").status, 200);
    endpoint.rest.reconfigure(&config("", &key_table("next", "next-key", "")), some_uris());
    assert_eq!(endpoint.get("/ice").status, 401);
    assert_eq!(endpoint.ask("GET", "/ice?key=next-key", &[], "").status, 200);
    assert_eq!(endpoint.counts.issued(), [("next".into(), 1), ("web".into(), 1)]);
}

#[test]
fn hostile_requests_are_refused_at_a_bounded_cost() {
    let endpoint = Endpoint::ordinary();
    let post = |more: &str, body: &str| {
        let head = format!(
            "POST /v1/credentials HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\n{more}\r\n"
        );
        Answer::parse(&send(endpoint.address, format!("{head}{body}").as_bytes()))
    };
    let json = "Content-Type: application/json\r\n";
    let long = |len: usize| format!("{json}Content-Length: {len}\r\n");
    // Too long, said or not.
    assert_eq!(post(&long(9000), &" ".repeat(9000)).status, 413);
    assert_eq!(post(&long(10_000_000_000), "").status, 413, "not a byte of it is waited for");
    let chunks = format!("{}0\r\n\r\n", format!("1000\r\n{}\r\n", " ".repeat(4096)).repeat(4));
    assert_eq!(post(&format!("{json}Transfer-Encoding: chunked\r\n"), &chunks).status, 413);
    // Deep, cut, empty.
    let deep = "[".repeat(4000);
    for body in [deep.as_str(), "{\"ttl\":", "{\"ttl\":1e400}", "\u{0}", "{\"ttl\":99999999999999999999999}", "[]"] {
        assert_eq!(post(&long(body.len()), body).status, 400, "{body:.20}");
    }
    // A stranger's body is not read at all.
    let stranger = "POST /v1/credentials HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5000000\r\n\r\n";
    assert_eq!(Answer::parse(&send(endpoint.address, stranger.as_bytes())).status, 401);
    // A slow body gives up by itself.
    let slow = std::time::Instant::now();
    let answer = post(&long(10), "{");
    assert_eq!((answer.status, &answer.json()["reason"]), (408, &"slow".into()));
    assert!(slow.elapsed() < Duration::from_secs(8));
    // Header floods.
    let flood = format!("GET /ice HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let answer = send(endpoint.address, flood.as_bytes());
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{:?}", String::from_utf8_lossy(&answer));
    let keys = format!("/ice?{}key={KEY}", "key=x&".repeat(500));
    assert_eq!(endpoint.get(&keys).status, 401);
    // No HEAD: it would mint what is not read.
    assert_eq!(endpoint.ask("HEAD", "/ice", &[BEARER], "").status, 405);
    // Garbage of every kind ends the connection, not the server.
    for garbage in [&b"\x00\x01\x00\x00\x21\x12\xa4\x42"[..], b"GET /ice\r\n\r\n", b"GET \xff\xfe HTTP/1.1\r\n\r\n"] {
        let answer = send(endpoint.address, garbage);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(endpoint.get("/ice").status, 200, "and all others are served");
}
// F-B9
#[test]
fn a_misspelt_member_gets_no_credential_and_is_named() {
    let endpoint = Endpoint::ordinary();
    for (target, headers, body) in [
        ("/v1/credentials?tll=60", &[BEARER][..], ""),
        ("/v1/credentials", &[BEARER, FORM], "tll=60"),
        ("/v1/credentials", &[BEARER, JSON], r#"{"tll":60}"#),
        ("/turn?service=turn&tll=60", &[BEARER], ""),
        ("/api/v1/turn/credential", &[BEARER, JSON], r#"{"tll":60}"#),
    ] {
        let answer = endpoint.ask("POST", target, headers, body);
        assert_eq!((answer.status, &answer.json()["reason"]), (400, &"unknown_member".into()), "{target}");
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains("\"tll\"") && error.contains("did you mean \"ttl\"?"), "{error}");
        assert!(error.contains("username, user, user_id"), "{error}");
    }
    assert_eq!(endpoint.ask("POST", "/v1/credentials?tll=60", &[], "").status, 401, "who asks comes first");
    let matrix = endpoint.get("/_matrix/client/v3/voip/turnServer?usernam=a").json();
    assert_eq!(matrix["errcode"], "M_INVALID_PARAM");
}

// F-A10, F-E11
#[test]
fn what_a_proxy_says_and_can_not_be_read_is_nobodys_address() {
    let endpoint = Endpoint::new(
        "http.proxies = [\"127.0.0.1\"]",
        &key_table("near", "near-key", "from = [\"127.0.0.0/8\", \"8.8.8.8\"]"),
    );
    let ask = |header: &str, value: &[u8]| {
        let head = format!("GET /ice?key=near-key HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}: ");
        Answer::parse(&send(endpoint.address, &[head.as_bytes(), value, b"\r\n\r\n"].concat()))
    };
    assert_eq!(endpoint.ask("GET", "/ice?key=near-key", &[], "").status, 200, "the proxy's machine asks for itself");
    for good in [&b"8.8.8.8"[..], b"8.8.8.8:4711", b"\"8.8.8.8:4711\"", b"[::ffff:8.8.8.8]:443", b"1.2.3.4, 8.8.8.8:1"]
    {
        assert_eq!(ask("X-Forwarded-For", good).status, 200, "{good:?}");
    }
    for bad in [
        &b"\xff"[..],
        b"8.8.8.8, \xe9",
        b"unknown",
        b"9.9.9.9:4711",
        b"[2001:db8::1]:443",
        b"8.8.8.8:x",
        b"8.8.8.8, 9.9.9.9",
    ] {
        let refused = ask("X-Forwarded-For", bad);
        assert_eq!((refused.status, &refused.json()["reason"]), (403, &"address".into()), "{bad:?}");
    }
    assert_eq!(ask("Forwarded", b"for=8.8.8.8").status, 403, "a header that is not read makes no peer the proxy");
}

/// So that the golden files are all looked at, and none is left of a shape that is gone.
#[test]
fn every_golden_file_is_compared() {
    let source = include_str!("api.rs");
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/rest")).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(source.contains(&format!("\"{name}\"")), "{}", path.display());
    }
}

#[test]
fn a_metered_credential_is_a_key_to_itself_and_to_nothing_else() {
    let endpoint = Endpoint::ordinary();
    let target = "/api/v1/turn/credential?secretKey=open-sesame&username=alice";
    let made = endpoint.ask("POST", target, &[JSON], r#"{"expiryInSeconds":600}"#).json();
    let key = made["apiKey"].as_str().unwrap();
    let list = endpoint.ask("GET", &format!("/api/v1/turn/credentials?apiKey={key}"), &[], "").json();
    let turn = list.as_array().unwrap().iter().find(|entry| entry.get("username").is_some()).unwrap();
    assert_eq!((&turn["username"], &turn["credential"]), (&made["username"], &made["password"]));
    for target in ["/v1/credentials", "/ice", "/api/v1/turn/credential"] {
        let method = if target.ends_with("/credential") { "POST" } else { "GET" };
        assert_eq!(endpoint.ask(method, &format!("{target}?apiKey={key}"), &[], "").status, 401, "{target}");
    }
    let mut forged = key.to_owned().into_bytes();
    forged[5] = if forged[5] == b'A' { b'B' } else { b'A' };
    for wrong in [String::from_utf8(forged).unwrap(), key[..key.len() - 4].to_owned(), "Og".to_owned(), "x".to_owned()]
    {
        assert_eq!(endpoint.ask("GET", &format!("/api/v1/turn/credentials?apiKey={wrong}"), &[], "").status, 401);
    }
}
