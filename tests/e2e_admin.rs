//! The admin API and its commands on the real binary: who may ask, what each call does, and what survives a restart.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use test_support::api;
use test_support::api::{Answer, BEARER, JSON, KEY, ask, key_table};
use test_support::e2e::client::request;
use test_support::e2e::log::Log;
use test_support::e2e::operator::{AUTHORIZED, HOST, TOKEN, get, post, start, start_in};
use test_support::e2e::server::{Directory, Slice, binary, run_to_end};
use test_support::e2e::{Client, PATIENCE, Server, Settings, Wanted, http, wait_for};
use test_support::with_one_and_three_workers;
use throughway::credentials::claims::Claims;
use throughway::credentials::{Secret, SharedSecret, mint};
use throughway::wire::message::METHOD_ALLOCATE;

const SECRET: &str = "north-of-everything";
/// Where revocations are kept: beside the configuration.
const KEPT: &str = "\n[auth]\nrevocations_file = \"revocations\"\n";

#[track_caller]
fn done(answer: Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[track_caller]
fn refused(answer: &Answer, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.json()["reason"].as_str()), (status, Some(reason)), "{answer:?}");
    assert!(answer.json()["error"].as_str().is_some_and(|error| error.len() > 10), "{answer:?}");
}

fn names(answer: &Value) -> Vec<String> {
    let sessions = answer["sessions"].as_array().unwrap();
    sessions.iter().map(|session| session["session"].as_str().unwrap().to_owned()).collect()
}

fn minted(server: &Server, user: &str) -> Client {
    Client::udp(server.udp4()).minted(SECRET, user)
}

/// The code of an Allocate; what it gave is given back.
fn allocate_code(mut client: Client) -> u16 {
    let code = client.request(METHOD_ALLOCATE, &[Wanted::udp()]).code();
    if code == 0 {
        assert_eq!(client.refresh(0).code(), 0);
    }
    code
}

/// A command of ours against a server; its configuration tells the token.
fn command(server: &Server, arguments: &[&str]) -> (i32, String, String) {
    let config = server.directory().join("config.toml");
    let url = format!("http://{}", server.http());
    let mut all = arguments.to_vec();
    all.extend(["--url", &url, "--config", config.to_str().unwrap()]);
    run(&all)
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_throughway")).args(arguments).env_clear().output().unwrap();
    let Output { status, stdout, stderr } = output;
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

with_one_and_three_workers! {
    /// Every session is listed once, whatever the pages; one is shown; kicked ones end, and the record says so.
    fn sessions_are_listed_shown_and_kicked(workers: u8) {
        let server = start(Settings::new(workers));
        assert_eq!(get(&server, "/v1/sessions"), json!({ "sessions": [], "more": false, "next": null }));
        let mut clients: Vec<Client> = (0..6_u8)
            .map(|number| {
                let user = if number < 4 { "carol" } else { "dave" };
                let mut client = Client::udp_on_worker(server.udp4(), number % workers, workers).minted(SECRET, user);
                client.allocate();
                client
            })
            .collect();
        let mut alice = Client::tcp(server.tcp6());
        alice.allocate();
        let all = get(&server, "/v1/sessions");
        assert_eq!((names(&all).len(), &all["more"]), (7, &json!(false)));
        // Pages of two: none twice, none missing, and the last one knows that it is the last.
        let mut seen = BTreeSet::new();
        let mut target = "/v1/sessions?limit=2".to_owned();
        for page in 1.. {
            let answer = get(&server, &target);
            let count = names(&answer).len();
            seen.extend(names(&answer));
            assert_eq!(answer["more"] == true, page < 4, "{answer}");
            assert_eq!(count, if page < 4 { 2 } else { 1 });
            match answer["next"].as_str() {
                Some(next) => target = format!("/v1/sessions?limit=2&after={next}"),
                None => break,
            }
        }
        assert_eq!(seen, names(&all).into_iter().collect());
        let exact = get(&server, "/v1/sessions?user=carol&limit=4");
        assert_eq!((names(&exact).len(), &exact["more"]), (4, &json!(false)), "more means more that fit");
        assert_eq!(names(&get(&server, "/v1/sessions?user=dave&client=127.0.0.0/8")).len(), 2);
        assert_eq!(names(&get(&server, "/v1/sessions?client=::1")).len(), 1);
        for none in ["user=erin", "tenant=acme", "user=dave&client=::1", "after=200-5", "after=2-999999"] {
            assert_eq!(names(&get(&server, &format!("/v1/sessions?{none}"))).len(), 0, "{none}");
        }
        let mine = get(&server, "/v1/sessions?user=alice")["sessions"][0].clone();
        let name = mine["session"].as_str().unwrap();
        let one = get(&server, &format!("/v1/sessions/{name}"));
        assert_eq!(one["client"], alice.local().to_string());
        assert_eq!((&one["transport"], &one["user"], &one["secret"]), (&json!("tcp"), &json!("alice"), &Value::Null));
        assert!(one["started"].as_str().unwrap().ends_with('Z') && one["duration_s"].as_u64().unwrap() < 60);
        refused(&ask(server.http(), "GET", "/v1/sessions/000000000000001f-1", &[HOST, AUTHORIZED], ""), 404, "not_found");
        // One, then all of a user, then by credential: others go on.
        assert_eq!(done(post(&server, "/v1/kick", json!({ "session": name }))), json!({ "ended": 1 }));
        let ended = server.log.wait_for_session("alice");
        assert_eq!((&ended["reason"], &ended["session"]), (&json!("kicked"), &json!(name)));
        refused(&post(&server, "/v1/kick", json!({ "session": name })), 404, "not_found");
        assert_eq!(done(post(&server, "/v1/kick", json!({ "user": "dave" }))), json!({ "ended": 2 }));
        assert_eq!(done(post(&server, "/v1/kick", json!({ "user": "dave" }))), json!({ "ended": 0 }));
        assert_eq!(done(post(&server, "/v1/kick", json!({ "user": "carol", "tenant": "acme" }))), json!({ "ended": 0 }));
        assert_eq!(clients[4].refresh(600).code(), 437, "it is gone");
        assert_eq!(clients[0].refresh(600).code(), 0, "it lives");
        let credential = clients[0].username.clone();
        let ended = done(post(&server, "/v1/kick", json!({ "credential": credential })))["ended"].as_u64().unwrap();
        assert!((1..=4).contains(&ended), "{ended}");
        assert_eq!(server.live(), 4 - ended);
        assert_eq!(server.scrape().value("throughway_allocations_ended_total", &[("reason", "kicked")]), 3 + ended);
        let audit = wait_for("a line for each call", || {
            Some(server.log.events("sessions ended by an operator")).filter(|lines| lines.len() >= 6)
        });
        assert_eq!((&audit[0]["by"], &audit[0]["ended"]), (&json!("token"), &json!(1)));
        // Who was kicked may come again.
        assert_eq!(allocate_code(minted(&server, "dave")), 0);
    }

    /// A revoked user's session ends, no new one begins and no credential is issued; a kill and a restart change nothing.
    fn a_revocation_ends_refuses_and_survives(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.tables = key_table("web", KEY, "");
        settings.http = KEPT.to_owned();
        let mut server = start(settings.clone());
        let mut carol = Client::udp_on_worker(server.udp4(), workers - 1, workers).minted(SECRET, "carol");
        carol.allocate();
        let mut dave = minted(&server, "dave");
        dave.allocate();
        let answer = done(post(&server, "/v1/revoke", json!({ "user": "carol" })));
        assert_eq!(answer["ended"], 1);
        assert!(answer["file"].as_str().unwrap().ends_with("/revocations"), "{answer}");
        assert_eq!(server.log.wait_for_session("carol")["reason"], "revoked");
        assert_eq!(carol.refresh(600).code(), 437);
        assert_eq!(dave.refresh(600).code(), 0, "no other user is concerned");
        let check = |server: &Server| {
            for worker in 0..workers {
                let client = Client::udp_on_worker(server.udp4(), worker, workers).minted(SECRET, "carol");
                assert_eq!(allocate_code(client), 403);
            }
            assert_eq!(allocate_code(minted(server, "dave")), 0);
            let issue = |user: &str| ask(server.http(), "GET", &format!("/ice?username={user}"), &[HOST, BEARER], "");
            refused(&issue("carol"), 403, "revoked");
            assert_eq!(issue("dave").status, 200);
            let all = get(server, "/v1/revocations")["revocations"].clone();
            assert_eq!((&all[0]["user"], &all[0]["until"]), (&json!("carol"), &answer["until"]));
            assert_eq!(server.scrape().value("throughway_revocations", &[]), 1);
        };
        check(&server);
        let found = wait_for("the refusal", || {
            // The one of the Refresh above may have come already, and this one not yet.
            let newest = get(&server, "/v1/refusals?of=carol")["refusals"][0].clone();
            Some(newest).filter(|newest| newest["reason"] == "revoked")
        });
        assert_eq!(found["verified"], json!(true));
        server.signal("KILL");
        server.wait();
        let server = start_in(server.into_directory(), settings.clone());
        check(&server);
        // Undone it is exactly once; and that lasts as well.
        assert_eq!(done(post(&server, "/v1/revoke", json!({ "user": "carol", "undo": true }))), json!({ "undone": true }));
        refused(&post(&server, "/v1/revoke", json!({ "user": "carol", "undo": true })), 404, "not_found");
        assert_eq!(allocate_code(minted(&server, "carol")), 0);
        let text = fs::read_to_string(server.directory().join("revocations")).unwrap();
        assert_eq!(text, "throughway revocations 1\n");
        // One credential: the user comes with another one.
        let mut first = minted(&server, "carol");
        first.allocate();
        let (username, password) = (first.username.clone(), first.password.clone());
        assert_eq!(done(post(&server, "/v1/revoke", json!({ "credential": username })))["ended"], 1);
        assert_eq!(allocate_code(Client::udp(server.udp4()).user(&username, &password)), 403);
        let secret = SharedSecret::new("main", Secret::new(SECRET.as_bytes()), Default::default());
        let now = throughway::clock::unix_seconds().0;
        let other = mint(&secret, now, "carol", 7200, &Claims::default()).unwrap();
        assert_eq!(allocate_code(Client::udp(server.udp4()).user(&other.username, &other.password)), 0);
        let over = done(post(&server, "/v1/revoke", json!({ "credential": "1000:carol" })));
        assert_eq!((&over["until"], &over["ended"]), (&Value::Null, &json!(0)), "it has expired long ago");
    }
}

#[test]
fn whoever_guesses_the_token_gets_429_and_the_operator_goes_on() {
    let server = start(Settings::new(1));
    let guess = |token| ask(server.http(), "GET", "/v1/sessions", &[HOST, ("Authorization", token)], "");
    let ordinary = (0..1_000).take_while(|_| guess("Bearer x").status == 401).count();
    assert!(ordinary >= 60, "{ordinary}");
    // By then another second may have gone by; the next ones are sure to be within it, or the one after.
    let later: Vec<Answer> = (0..3).map(|_| guess("Bearer x")).collect();
    let limited = later.iter().find(|answer| answer.status == 429).expect("at most one a second");
    refused(limited, 429, "rate_failures");
    assert_eq!((limited.header("retry-after"), limited.header("connection")), (Some("1"), Some("close")));
    assert_eq!(get(&server, "/v1/sessions")["sessions"], json!([]));
}

#[test]
fn nobody_without_the_token_learns_or_changes_anything() {
    let mut settings = Settings::new(1);
    settings.level = "trace";
    settings.hosts = vec!["admin.example.org"];
    let server = start(settings);
    let mut client = minted(&server, "carol");
    client.allocate();
    let http = server.http();
    let calls = [
        ("GET", "/v1/sessions"),
        ("GET", "/v1/sessions/000000000000001f-1"),
        ("GET", "/v1/refusals?of=carol"),
        ("GET", "/v1/revocations"),
        ("GET", "/v1/status"),
        ("POST", "/v1/kick"),
        ("POST", "/v1/revoke"),
        ("POST", "/v1/forgive"),
        ("POST", "/v1/reload"),
        ("POST", "/v1/log-level"),
        ("POST", "/v1/drain"),
        ("POST", "/v1/upgrade"),
        ("POST", "/v1/test-credential"),
    ];
    let wrong_tokens = ["Bearer 0123456789abcdef-of-the-operatoR", "Bearer x", "Basic eDp5", "Bearer"];
    let body = r#"{"user":"carol"}"#;
    for (method, path) in calls {
        let body = if method == "POST" { body } else { "" };
        refused(&ask(http, method, path, &[HOST, JSON], body), 401, "no_token");
        for wrong in wrong_tokens {
            let answer = ask(http, method, path, &[HOST, JSON, ("Authorization", wrong)], body);
            refused(&answer, 401, "wrong_token");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1"] {
            refused(&ask(http, method, path, &[("Host", host), JSON, AUTHORIZED], body), 403, "host");
        }
        let other = if method == "GET" { "POST" } else { "GET" };
        let answer = ask(http, other, path, &[HOST, JSON, AUTHORIZED], "");
        refused(&answer, 405, "method");
        assert_eq!((answer.header("allow"), answer.header("cache-control")), (Some(method), Some("no-store")));
        if method == "POST" {
            // What a form of a foreign page can send is not taken, token or not.
            for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
            {
                let answer = ask(http, method, path, &[HOST, AUTHORIZED, ("Content-Type", kind)], body);
                refused(&answer, 415, "content_type");
            }
            refused(&ask(http, method, path, &[HOST, AUTHORIZED], body), 415, "content_type");
            let long = format!("{{\"user\":\"{}\"}}", "x".repeat(9000));
            refused(&ask(http, method, path, &[HOST, AUTHORIZED, JSON], &long), 413, "too_large");
            for bad in ["{", "[5]", "5", r#"{"usr":"carol"}"#, r#"{"user":5}"#] {
                refused(&ask(http, method, path, &[HOST, AUTHORIZED, JSON], bad), 400, "bad_request");
            }
        }
    }
    for bad in ["{}", r#"{"user":""}"#, r#"{"session":"x"}"#, r#"{"user":"a\n"}"#, r#"{"user":"a","credential":"9:a"}"#]
    {
        refused(&ask(http, "POST", "/v1/kick", &[HOST, AUTHORIZED, JSON], bad), 400, "bad_request");
    }
    for target in ["/v1/sessions?limit=0", "/v1/sessions?limit=1001", "/v1/sessions?usr=a", "/v1/refusals?x=1"] {
        refused(&ask(http, "GET", target, &[HOST, AUTHORIZED], ""), 400, "bad_request");
    }
    let slow = "POST /v1/drain HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n";
    let slow = format!("{slow}Authorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n{{");
    refused(&Answer::parse(&api::send(http, slow.as_bytes())), 408, "slow");
    // Nothing has come of all that.
    assert_eq!(client.refresh(600).code(), 0);
    assert_eq!(server.health("/readyz"), 200);
    assert_eq!(get(&server, "/v1/revocations")["revocations"], json!([]));
    assert!(server.log.events("sessions ended by an operator").is_empty());
    assert_eq!(ask(http, "GET", "/v1/sessions", &[("Host", "admin.example.org"), AUTHORIZED], "").status, 200);
    let wrong = server.scrape().value("throughway_admin_refused_total", &[("reason", "wrong_token")]);
    assert_eq!(wrong, (wrong_tokens.len() * calls.len()) as u64);
    let log = server.log.text();
    assert!(log.contains("admin call refused") && !log.contains(TOKEN) && !log.contains("the-operatoR"));
}

#[test]
fn without_a_token_tcp_shows_numbers_and_nothing_else() {
    let server = Settings::new(1).start();
    let mut client = minted(&server, "carol");
    client.allocate();
    for path in ["/v1/sessions", "/v1/refusals", "/v1/revocations"] {
        refused(&ask(server.http(), "GET", path, &[HOST], ""), 403, "not_set_up");
    }
    for path in ["/v1/kick", "/v1/revoke", "/v1/forgive", "/v1/reload", "/v1/drain", "/v1/upgrade"] {
        let answer = ask(server.http(), "POST", path, &[HOST, JSON], r#"{"user":"carol"}"#);
        refused(&answer, 403, "not_set_up");
        assert!(answer.json()["error"].as_str().unwrap().contains("http.admin_token_file"));
    }
    let status = ask(server.http(), "GET", "/v1/status", &[HOST], "");
    assert_eq!((&status.json()["sessions"], &status.json()["phase"]), (&json!(1), &json!("ready")));
    assert!(!status.body.contains("carol") && !status.body.contains("127.0.0.1"), "{}", status.body);
    assert_eq!(client.refresh(600).code(), 0);
    let (code, _, said) = command(&server, &["sessions"]);
    assert!(
        code == 1 && said.contains("the server has no token") && said.contains("set http.admin_token_file"),
        "{code} {said}"
    );
}

#[test]
fn a_tenant_and_its_users_are_apart_from_others_of_the_same_name() {
    let mut settings = Settings::new(1);
    settings.tables =
        "[[auth.secrets]]\nid = \"acme\"\nvalue = \"south-of-everything\"\ntenant = \"acme\"\n".to_owned();
    let server = start(settings);
    let of_acme = |user: &str| Client::udp(server.udp4()).minted("south-of-everything", user);
    let mut clients = [of_acme("bob"), of_acme("carol"), minted(&server, "bob")];
    for client in &mut clients {
        client.allocate();
    }
    let sessions = get(&server, "/v1/sessions?tenant=acme");
    assert_eq!(names(&sessions).len(), 2);
    assert!(sessions["sessions"].as_array().unwrap().iter().all(|session| session["tenant"] == "acme"));
    assert_eq!(names(&get(&server, "/v1/sessions?tenant=acme&user=bob")).len(), 1);
    let (code, said, _) = command(&server, &["sessions", "--tenant", "acme"]);
    assert!(
        code == 0 && said.starts_with("SESSION ") && said.contains("TENANT") && said.lines().count() == 3,
        "{said}"
    );
    let (code, said, _) = command(&server, &["revoke", "--user", "bob", "--tenant", "acme"]);
    assert!(code == 0 && said.contains("ended 1 session"), "{said}");
    assert_eq!((allocate_code(of_acme("bob")), allocate_code(of_acme("carol"))), (403, 0));
    assert_eq!((clients[1].refresh(600).code(), clients[2].refresh(600).code()), (0, 0));
    let (code, said, _) = command(&server, &["revoke", "--tenant", "acme"]);
    assert!(code == 0 && said.contains("ended 1 session"), "{said}");
    assert_eq!((allocate_code(of_acme("carol")), allocate_code(minted(&server, "carol"))), (403, 0));
    let (_, said, _) = command(&server, &["revoke", "--list"]);
    let rows: Vec<Vec<&str>> = said.lines().skip(1).take(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((&rows[0][..3], &rows[1][..3]), (&["user", "bob", "acme"][..], &["tenant", "acme", "-"][..]));
    // Undoing the one leaves the other.
    done(post(&server, "/v1/revoke", json!({ "tenant": "acme", "undo": true })));
    assert_eq!((allocate_code(of_acme("bob")), allocate_code(of_acme("carol"))), (403, 0));
}

/// The tenant of an API key goes into the credential; revoking it stops the issuing and the relaying.
#[test]
fn a_revoked_tenant_of_an_api_key_gets_no_credentials() {
    let mut settings = Settings::new(1);
    settings.secrets = Vec::new();
    settings.tables = key_table("web", KEY, "tenant = \"acme\"")
        + "[[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\nclaims = [\"tenant\"]\n";
    let server = start(settings);
    let issue = || ask(server.http(), "GET", "/v1/credentials?username=carol", &[HOST, BEARER], "");
    let answer = done(issue());
    let [username, password] = ["username", "password"].map(|name| answer[name].as_str().unwrap().to_owned());
    let mut carol = Client::udp(server.udp4()).user(&username, &password);
    carol.allocate();
    assert_eq!(get(&server, "/v1/sessions?user=carol")["sessions"][0]["tenant"], "acme");
    assert_eq!(done(post(&server, "/v1/revoke", json!({ "tenant": "acme" })))["ended"], 1);
    refused(&issue(), 403, "revoked");
    assert_eq!(allocate_code(Client::udp(server.udp4()).user(&username, &password)), 403);
    assert_eq!(allocate_code(minted(&server, "carol")), 0, "she has no tenant there");
    done(post(&server, "/v1/revoke", json!({ "tenant": "acme", "undo": true })));
    done(issue());
}

#[test]
fn what_can_not_be_written_is_told_and_holds_all_the_same() {
    let mut settings = Settings::new(1);
    settings.http = KEPT.to_owned();
    let server = start(settings.clone());
    // The name that is written first is taken.
    fs::create_dir(server.directory().join("revocations.new")).unwrap();
    let answer = post(&server, "/v1/revoke", json!({ "user": "carol" }));
    refused(&answer, 500, "not_saved");
    assert!(
        answer.json()["error"].as_str().unwrap().contains("it is in effect, but can't be written to"),
        "{answer:?}"
    );
    assert_eq!(allocate_code(minted(&server, "carol")), 403);
    assert_eq!(server.scrape().value("throughway_revocation_write_failures_total", &[]), 1);
    let (code, _, said) = command(&server, &["revoke", "--user", "dave"]);
    assert!(code == 1 && said.contains("a restart undoes it"), "{code} {said}");
    // With the next one that can be written the others are kept as well.
    fs::remove_dir(server.directory().join("revocations.new")).unwrap();
    done(post(&server, "/v1/revoke", json!({ "tenant": "acme" })));
    let text = fs::read_to_string(server.directory().join("revocations")).unwrap();
    assert!(text.contains("carol") && text.contains("dave") && text.contains("acme"), "{text}");
}

#[test]
fn a_damaged_file_of_revocations_refuses_the_start() {
    let (slice, directory) = (Slice::take(), Directory::new());
    let config = directory.path().join("config.toml");
    let mut settings = Settings::new(1);
    settings.http = KEPT.to_owned();
    fs::write(&config, settings.text(&slice.range)).unwrap();
    let file = directory.path().join("revocations");
    let good = "throughway revocations 1\n{\"until\":99999999999,\"whose\":{\"tenant\":\"a\"}}\n";
    fs::write(&file, format!("{good}{{\"until\":9")).unwrap();
    let (code, said) = run_to_end(&config);
    assert_eq!(code, 1, "{said}");
    for part in ["auth.revocations_file", &format!("{}:3:", file.display()), "correct or remove that line"] {
        assert!(said.contains(part), "{said}\nlacks {part}");
    }
    assert!(!said.contains("listening"), "no client may come in before: {said}");
}

#[test]
fn refusals_are_remembered_with_a_remedy_verified_or_not() {
    let server = start(Settings::new(1).limit("allocations_per_user", "1"));
    let mut wrong = minted(&server, "carol");
    let username = wrong.username.clone();
    wrong = wrong.user(&username, "mistyped");
    for _ in 0..2 {
        wrong.login = None;
        assert_eq!(wrong.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 401);
    }
    let unknown = Client::udp(server.udp4()).user("nobody", "x");
    let from = unknown.local();
    assert_eq!(allocate_code(unknown), 401);
    let mut dave = minted(&server, "dave");
    dave.allocate();
    assert_eq!(allocate_code(minted(&server, "dave")), 486);
    // The ordinary first request is no refusal to remember.
    let mut first = Client::udp(server.udp4());
    assert_eq!(first.ask(&request(METHOD_ALLOCATE, &[Wanted::udp()], None)).code(), 401);
    let found = |of: &str| get(&server, &format!("/v1/refusals?of={of}"))["refusals"].clone();
    let carol = wait_for("the second refusal", || Some(found("carol")).filter(|found| found[0]["times"] == 2));
    assert_eq!((&carol[0]["reason"], &carol[0]["code"]), (&json!("bad_integrity"), &json!(401)));
    assert_eq!((&carol[0]["verified"], &carol[0]["username"]), (&json!(false), &json!(username)));
    assert_eq!(carol[0]["client"], wrong.local().to_string());
    assert!(carol[0]["remedy"].as_str().unwrap().contains("throughway credentials verify"));
    assert_eq!(carol[1], Value::Null);
    assert_eq!(found(&username), carol);
    let dave = wait_for("the quota's refusal", || Some(found("dave")).filter(|found| found[0].is_object()));
    assert_eq!((&dave[0]["reason"], &dave[0]["verified"]), (&json!("quota_user"), &json!(true)));
    let nobody = found("nobody");
    assert_eq!((&nobody[0]["reason"], &nobody[0]["client"]), (&json!("unknown_user"), &json!(from.to_string())));
    let all = found("127.0.0.1");
    let reasons: Vec<&str> = all.as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["quota_user", "unknown_user", "bad_integrity"], "newest first, and no challenge");
    assert_eq!(found("alice"), json!([]));
    // As people see it.
    let (code, said, _) = command(&server, &["sessions", "--refused", "carol"]);
    assert_eq!(code, 0);
    for part in ["bad_integrity (401), 2 times since", "username ", "throughway credentials verify"] {
        assert!(said.contains(part), "{said}\nlacks {part}");
    }
    let (code, said, _) = command(&server, &["sessions", "--refused", "127.0.0.1", "--json"]);
    assert_eq!((code, serde_json::from_str::<Value>(&said).unwrap()["refusals"].clone()), (0, all));
    let (code, said, _) = command(&server, &["sessions", "--refused", "erin"]);
    assert!(code == 0 && said.contains("remembers no refused request of erin"), "{said}");
    assert!(!server.log.text().contains("mistyped"));
}

fn level(server: &Server, level: &str) -> Answer {
    let token = ("Authorization", "Bearer another-token-of-the-operator");
    ask(server.http(), "POST", "/v1/log-level", &[HOST, token, JSON], &json!({ "level": level }).to_string())
}

#[test]
fn a_reload_and_the_log_level_answer_with_what_came_of_it() {
    let server = start(Settings::new(1));
    let config = server.directory().join("config.toml");
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, good.replace("alice = ", "erin = ").replace("workers = 1", "workers = 2")).unwrap();
    let answer = done(post(&server, "/v1/reload", json!({})));
    let keys = answer["needs_restart"].as_array().unwrap();
    assert!(keys.iter().any(|key| key.as_str().unwrap().contains("workers")), "{answer}");
    wait_for("the new user", || {
        (allocate_code(Client::udp(server.udp4()).user("erin", "wonderland")) == 0).then_some(())
    });
    let (code, said, _) = command(&server, &["reload"]);
    assert!(code == 0 && said.contains("reloaded") && said.contains("next start only"), "{said}");
    fs::write(&config, good.replace("[limits]", "[limits]\nnonsense = 1")).unwrap();
    let answer = post(&server, "/v1/reload", json!({}));
    refused(&answer, 409, "bad_config");
    assert!(answer.json()["error"].as_str().unwrap().contains("limits.nonsense"), "{answer:?}");
    // The command finds the server though another key is wrong, and tells what the server says.
    let (code, _, said) = command(&server, &["reload"]);
    assert!(code == 2 && said.contains("limits.nonsense") && said.contains("the old one stays"), "{code} {said}");
    assert_eq!(allocate_code(Client::udp(server.udp4()).user("erin", "wonderland")), 0);
    // The token is one of the things that a reload takes over.
    fs::write(&config, &good).unwrap();
    fs::write(server.directory().join("token"), "another-token-of-the-operator\n").unwrap();
    done(post(&server, "/v1/reload", json!({})));
    refused(&post(&server, "/v1/reload", json!({})), 401, "wrong_token");
    assert_eq!(done(level(&server, "debug")), json!({ "level": "debug", "was": "info" }));
    assert_eq!(allocate_code(Client::udp(server.udp4()).user("bob", "mistyped")), 401);
    server.log.wait_for_line("request refused");
    let (code, said, _) = command(&server, &["log-level", "warn"]);
    assert!(code == 0 && said.contains("it was debug"), "{said}");
    assert_eq!(level(&server, "loud").status, 400);
}

#[test]
fn draining_lets_nobody_new_in_and_the_last_session_ends_the_server() {
    let mut settings = Settings::new(1);
    settings.tables = "[drain]\ndeadline = 0\n".to_owned();
    let mut server = start(settings);
    let mut carol = minted(&server, "carol");
    carol.allocate();
    let (code, said, _) = command(&server, &["drain"]);
    assert!(code == 0 && said.contains("draining began") && said.contains("1 session left"), "{code} {said}");
    assert_eq!(http::get(server.http(), "/readyz", "localhost"), (503, "draining\n".to_owned()));
    assert_eq!(allocate_code(minted(&server, "dave")), 486, "from when the answer came");
    assert_eq!(carol.refresh(600).code(), 0);
    assert_eq!(get(&server, "/v1/status")["draining"], true);
    let again = done(post(&server, "/v1/drain", json!({})));
    assert_eq!(again, json!({ "draining": true, "was_draining": true, "sessions": 1, "ends_in_s": null }));
    assert_eq!(server.log.event("draining")["by"], "admin API");
    // Who waits sees the end; the session ends meanwhile.
    let config = server.directory().join("config.toml");
    let url = format!("http://{}", server.http());
    let mut waiting = Command::new(env!("CARGO_BIN_EXE_throughway"));
    waiting.args(["drain", "--wait", "--url", &url, "--config", config.to_str().unwrap()]).env_clear();
    let mut waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(waiting.stdout.take().unwrap()).lines();
    assert!(
        said.next().unwrap().unwrap().starts_with("draining already: no new sessions; 1 session left; no time limit")
    );
    assert!(server.is_running() && waiting.try_wait().unwrap().is_none());
    assert_eq!(carol.refresh(0).code(), 0);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
    assert_eq!(said.next().unwrap().unwrap(), "the server has exited");
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    assert_eq!(server.log.wait_for_session("carol")["reason"], "refreshed");
}

#[test]
fn an_upgrade_is_asked_for_and_told_as_what_it_became() {
    let server = start(Settings::new(1));
    let mut carol = minted(&server, "carol");
    carol.allocate();
    let (code, said, why) = command(&server, &["upgrade", "--check"]);
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!((code, said, why), (0, format!("an upgrade from {own} to {own} is possible\n"), String::new()));
    let asked = server.log.event("upgrade asked for by an operator");
    assert_eq!((&asked["by"], &asked["check"], &asked["drop_unknown"]), (&json!("token"), &json!(true), &json!(false)));
    let (code, said, why) = command(&server, &["upgrade", "--check", "--drop-unknown", "--json"]);
    let told: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, why.as_str(), &told["result"]), (0, "", &json!("checked")), "{told}");
    assert_eq!((&told["from"], &told["gap_us"]), (&json!(env!("CARGO_PKG_VERSION")), &Value::Null));
    let drops = wait_for("its line", || server.log.events("upgrade asked for by an operator").into_iter().nth(1));
    assert_eq!((&drops["check"], &drops["drop_unknown"]), (&json!(true), &json!(true)));
    assert_eq!(done(post(&server, "/v1/upgrade", json!({ "check": true })))["result"], "checked");
    // No program is named over HTTP.
    refused(&post(&server, "/v1/upgrade", json!({ "file": "/bin/sh" })), 400, "bad_request");
    let scrape = server.scrape();
    let of = |result| scrape.value("throughway_upgrades_total", &[("result", result)]);
    assert_eq!([of("checked"), of("confirmed"), scrape.value("throughway_generation", &[])], [3, 0, 1]);
    assert_eq!(carol.refresh(600).code(), 0);
}

#[test]
fn a_program_tells_what_an_upgrade_needs_and_where_it_can_take_over() {
    let throughway = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_throughway")).args(arguments).env_clear().output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, said, _) = throughway(&["version"]);
    assert_eq!((code, said), (Some(0), format!("throughway {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, said, _) = throughway(&["version", "--handover"]);
    assert!(code == Some(0) && said.lines().count() == 1 && said.ends_with('\n'), "{said}");
    let told: Value = serde_json::from_str(&said).unwrap();
    let expected = json!({ "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "format_min": 1, "format_max": 2,
        "features": ["link_local_clients", "dual_allocations", "sha256_keys", "mobile_allocations", "other_realms",
            "tcp_allocations"] });
    assert_eq!(told, expected);
    for wrong in ["upgrade.sock", "3", "0x", ""] {
        let (code, _, why) = throughway(&["serve", "--take-over", wrong]);
        assert!(code == Some(2) && why.contains("expected the absolute path"), "{wrong}: {why}");
    }
    for (arguments, part) in [
        (&["serve", "--or-start"][..], "--take-over"),
        (&["serve", "--take-over", "0", "--or-start"], "--or-start needs --take-over with the path"),
    ] {
        let (code, _, why) = throughway(arguments);
        assert!(code == Some(2) && why.contains(part), "{why}");
    }
    let environment = [("THROUGHWAY_AUTH__SECRET", "north-of-everything")];
    for place in ["0", "/nowhere/upgrade.sock"] {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_throughway"));
        let output = serve.args(["serve", "--take-over", place]).env_clear().envs(environment).output().unwrap();
        let why = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && why.contains(&format!("--take-over {place}: ")), "{why}");
    }
}

#[test]
fn commands_print_tables_and_json_and_end_with_the_documented_codes() {
    let server = start(Settings::new(1));
    let (code, said, _) = command(&server, &["sessions"]);
    assert_eq!((code, said.as_str()), (0, "no sessions\n"));
    let mut carol = minted(&server, "carol");
    carol.allocate();
    let (code, said, _) = command(&server, &["sessions", "--user", "carol"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(code == 0 && lines.len() == 2 && lines[0].starts_with("SESSION "), "{said}");
    assert!(lines[1].contains(" carol ") && lines[1].contains(&carol.local().to_string()), "{said}");
    let name = lines[1].split(' ').next().unwrap();
    let (code, said, _) = command(&server, &["sessions", name]);
    assert!(code == 0 && said.contains(&format!("credential           {}", carol.username)), "{said}");
    let (code, said, _) = command(&server, &["sessions", "--json"]);
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &json["sessions"][0]["session"], &json["more"]), (0, &json!(name), &json!(false)));
    let (code, said, _) = command(&server, &["kick", name]);
    assert_eq!((code, said.as_str()), (0, "ended 1 session\n"));
    let (code, _, said) = command(&server, &["kick", name]);
    assert!(code == 1 && said.contains("there is no live session with this name"), "{said}");
    carol.login = None;
    carol.allocate();
    let (code, said, _) = command(&server, &["revoke", "--user", "carol"]);
    assert!(code == 0 && said.starts_with("revoked until 2") && said.contains("ended 1 session"), "{said}");
    assert!(said.contains("kept in memory only"), "no file was named: {said}");
    let (code, said, _) = command(&server, &["revoke", "--list"]);
    assert!(code == 0 && said.lines().any(|line| line.starts_with("user  carol")), "{said}");
    let (code, said, _) = command(&server, &["revoke", "--user", "carol", "--undo"]);
    assert_eq!((code, said.as_str()), (0, "let in again\n"));
    let (code, _, said) = command(&server, &["revoke", "--user", "carol", "--undo"]);
    assert!(code == 1 && said.contains("revoke --list"), "{said}");
    let (code, said, _) = command(&server, &["revoke", "--list", "--json"]);
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &json["revocations"]), (0, &json!([])));
    // What stands in the way of asking at all.
    let url = format!("http://{}", server.http());
    let file = server.directory().join("wrong-token");
    fs::write(&file, "another-token-altogether\n").unwrap();
    let (code, _, said) = run(&["sessions", "--url", &url, "--token-file", file.to_str().unwrap()]);
    assert!(code == 1 && said.contains("this is not the server's token"), "{code} {said}");
    let (code, _, said) = run(&["sessions", "--url", &url]);
    assert!(code == 1 && said.contains("a token is needed"), "{code} {said}");
    let (code, _, said) = run(&["sessions", "--url", &url, "--token-file", "/nowhere"]);
    assert!(code == 2 && said.contains("--token-file /nowhere"), "{code} {said}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, _, said) = run(&["sessions", "--url", &format!("http://{free}")]);
    assert!(code == 1 && said.contains("is the server running there?"), "{code} {said}");
    let config = server.directory().join("config.toml");
    let (code, _, said) = run(&["sessions", "--config", config.to_str().unwrap()]);
    assert!(code == 2 && said.contains("give it with --url"), "port 0 tells nothing: {said}");
    let (code, _, said) = run(&["reload", "--config", "/nowhere/config.toml"]);
    assert!(code == 2 && said.contains("/nowhere/config.toml"), "{code} {said}");
}

/// A server whose `http.listen` is a unix socket.
struct OnSocket {
    child: std::process::Child,
    log: Log,
    directory: Directory,
    _ports: Slice,
}

impl Drop for OnSocket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl OnSocket {
    fn start() -> Self {
        let (ports, directory) = (Slice::take(), Directory::new());
        let config = directory.path().join("config.toml");
        let text = Settings::new(1).text(&ports.range);
        let socket = format!("listen = \"unix:{}\"", directory.path().join("http.sock").display());
        fs::write(&config, text.replace("listen = \"127.0.0.1:0\"", &socket)).unwrap();
        let mut child = binary(&config).env("STATE_DIRECTORY", directory.path()).spawn().unwrap();
        let (log, _) = Log::follow(child.stderr.take().unwrap());
        wait_for("\"ready\" in the log", || (!log.events("ready").is_empty()).then_some(()));
        Self { child, log, directory, _ports: ports }
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn udp(&self) -> SocketAddr {
        self.log.event("listening")["address"].as_str().unwrap().parse().unwrap()
    }
}

fn ask_socket(path: &Path, request: &str) -> Answer {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes)
}

#[test]
fn over_a_unix_socket_the_system_says_who_asks() {
    let server = OnSocket::start();
    let mut client = Client::udp(server.udp()).minted(SECRET, "carol");
    client.allocate();
    let config = server.config();
    let config = config.to_str().unwrap();
    // This test runs as the server's user, so it needs no token; the configuration tells where the socket is.
    let (code, said, error) = run(&["sessions", "--config", config]);
    assert!(code == 0 && said.contains("carol"), "{said} {error}");
    let (code, said, _) = run(&["revoke", "--user", "carol", "--config", config]);
    assert!(code == 0 && said.contains("ended 1 session") && !said.contains("memory only"), "{said}");
    let kept = fs::read_to_string(server.directory.path().join("revocations")).unwrap();
    assert!(kept.contains("carol"), "the state directory is where it is kept: {kept}");
    let line = wait_for("the audit line", || server.log.events("revoked by an operator").pop());
    assert!(line["by"].as_str().unwrap().starts_with("unix:"), "{line}");
    let socket = server.directory.path().join("http.sock");
    let url = format!("unix:{}", socket.display());
    let (code, said, _) = run(&["revoke", "--list", "--url", &url]);
    assert!(code == 0 && said.contains("carol"), "{said}");
    // Host and content type are checked here too; a token that is not configured is no help.
    let ask = |head: &str| ask_socket(&socket, &format!("{head}Connection: close\r\n\r\n"));
    refused(&ask("GET /v1/sessions HTTP/1.1\r\nHost: evil.example\r\n"), 403, "host");
    refused(&ask("POST /v1/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"), 415, "content_type");
    refused(&ask("GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n"), 403, "not_set_up");
}

#[test]
fn the_page_itself_holds_no_data_and_loads_nothing_from_elsewhere() {
    let server = start(Settings::new(1));
    for (path, kind) in [
        ("/status", "text/html"),
        ("/status/page.js", "text/javascript"),
        ("/status/page.css", "text/css"),
        ("/status/test.js", "text/javascript"),
    ] {
        let answer = ask(server.http(), "GET", path, &[HOST], "");
        assert_eq!(answer.status, 200);
        assert!(answer.header("content-type").unwrap().starts_with(kind), "{answer:?}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
        let is_local = !answer.body.contains("http://") && !answer.body.contains("https://");
        assert!(!answer.body.is_empty() && is_local, "{path}");
        refused(&ask(server.http(), "GET", path, &[("Host", "evil.example")], ""), 403, "host");
        refused(&ask(server.http(), "POST", path, &[HOST], ""), 405, "method");
    }
}

/// It relays for a short time, within this server only where the secret reads claims, and the log says who made it.
#[test]
fn a_credential_for_a_test_relays_within_this_server_and_ends_soon() {
    let mut settings = Settings::new(1);
    settings.secrets.clear();
    settings.tables =
        format!("{}[[auth.secrets]]\nid = \"limited\"\nvalue = \"{SECRET}\"\nclaims = true\n", settings.tables);
    let server = start(settings);
    let made = done(post(&server, "/v1/test-credential", json!({ "ttl": 60 })));
    let user = made["user"].as_str().unwrap();
    assert!(user.starts_with("connectivity-test-"), "{made}");
    assert_eq!((&made["is_limited"], &made["link"]), (&json!(true), &Value::Null), "no http.public, no page for users");
    let server_of_test = &made["iceServers"][0];
    let urls: Vec<&str> = server_of_test["urls"].as_array().unwrap().iter().map(|url| url.as_str().unwrap()).collect();
    assert!(urls.iter().any(|url| url.ends_with(&format!("{}?transport=udp", server.udp4().port()))), "{urls:?}");
    let expires_at = made["expires_at"].as_u64().unwrap();
    let (username, password) =
        (server_of_test["username"].as_str().unwrap(), server_of_test["credential"].as_str().unwrap());
    assert!(username.starts_with(&format!("{expires_at}:{user}~")), "{username}");
    let mut own = Client::udp(server.udp4()).user(username, password);
    own.allocate();
    // Any user may reach the internet, one who tests may not. A permission sends nothing there.
    let mut ordinary = minted(&server, "carol");
    ordinary.allocate();
    let peer = "8.8.8.8:9".parse().unwrap();
    assert_eq!((ordinary.try_permit(peer), own.try_permit(peer)), (0, 403));
    let other = done(post(&server, "/v1/test-credential", json!({})));
    assert_ne!(other["user"], made["user"], "each has a quota of its own");
    // The log has a thread of its own, which may be behind the answer.
    let issued = wait_for("both lines", || {
        Some(server.log.events("credential for a connectivity test issued")).filter(|lines| lines.len() == 2)
    });
    assert_eq!((&issued[0]["by"], &issued[0]["user"]), (&json!("token"), &made["user"]));
    assert_eq!((&issued[0]["ttl"], &issued[1]["ttl"]), (&json!(60), &json!(600)));
    assert!(!server.log.text().contains(password));
    for bad in [json!({ "ttl": 59 }), json!({ "ttl": 604_801 }), json!({ "ttl": "60" }), json!({ "tll": 60 })] {
        refused(&post(&server, "/v1/test-credential", bad), 400, "bad_request");
    }
}

#[test]
fn without_a_secret_a_test_gets_no_credential_and_is_told_what_to_add() {
    let mut settings = Settings::new(1);
    settings.secrets.clear();
    let server = start(settings);
    let answer = post(&server, "/v1/test-credential", json!({}));
    refused(&answer, 409, "no_credential");
    assert!(answer.body.contains("auth.secrets"), "{answer:?}");
}

// F-B8
#[test]
fn a_fresh_server_under_systemd_can_be_asked_without_a_token() {
    let directory = Directory::new();
    let runtime = directory.path().join("run");
    fs::create_dir(&runtime).unwrap();
    let with_runtime = |config: &Path| {
        let mut command = binary(config);
        command.env("RUNTIME_DIRECTORY", &runtime);
        command
    };
    let server = Server::start_as(directory, Settings::new(1), with_runtime);
    let socket = runtime.join("admin.sock");
    let url = format!("unix:{}", socket.display());
    assert_eq!(server.log.event("serving the admin API to root and the server's own user")["address"], url);
    Client::udp(server.udp4()).minted(SECRET, "carol").allocate();
    let (code, said, error) = run(&["sessions", "--url", &url]);
    assert!(code == 0 && said.contains("carol"), "{said} {error}");
    // With its configuration alone, once that says where the socket is.
    let config = server.directory().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[http]\n", &format!("[http]\nadmin_socket = {socket:?}\n"))).unwrap();
    let config = config.to_str().unwrap();
    let (code, said, error) = run(&["sessions", "--config", config]);
    assert!(code == 0 && said.contains("carol"), "{said} {error}");
    let (code, said, error) = run(&["reload", "--config", config]);
    assert!(code == 0 && said.contains("reloaded"), "{said} {error}");
    fs::write(config, text.replace("[http]\n", "[http]\nadmin_socket = \"none\"\n")).unwrap();
    let (code, _, error) = run(&["reload", "--url", &url]);
    assert_eq!(code, 0, "{error}");
    wait_for("the socket to go", || (!socket.exists()).then_some(()));
}

// F-B8
#[test]
fn what_a_command_says_of_a_refusal_names_flags_and_no_words_of_http() {
    let open = Settings::new(1).start();
    let closed = start(Settings::new(1));
    let url = |server: &Server| format!("http://{}", server.http());
    let wrong = open.directory().join("wrong-token");
    fs::write(&wrong, "another-token-of-nobody\n").unwrap();
    let wrong = wrong.to_str().unwrap();
    for (arguments, says) in [
        (vec!["sessions".to_owned(), "--url".to_owned(), url(&open)], "http.admin_token_file"),
        (vec!["sessions".to_owned(), "--url".to_owned(), url(&closed)], "a token is needed"),
        (
            vec!["sessions".to_owned(), "--url".to_owned(), url(&closed), "--token-file".to_owned(), wrong.to_owned()],
            "this is not the server's token",
        ),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, _, said) = run(&arguments);
        assert_eq!(code, 1, "{said}");
        for part in [says, "--token-file", "--url unix:"] {
            assert!(said.contains(part), "{said}\nlacks {part}");
        }
        // The system chooses the ports, and one may have such a number in it.
        let words = said.replace(&url(&open), "URL").replace(&url(&closed), "URL");
        for word in ["Authorization", "Bearer", "header", "HTTP", "status", "401", "403"] {
            assert!(!words.contains(word), "{said}\nhas {word}");
        }
    }
}
