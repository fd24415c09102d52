//! Credentials over HTTP from the real binary: they relay, its log and metrics tell, reload and listeners do as documented.

use std::net::{SocketAddr, TcpListener, TcpStream};

use test_support::api::{BEARER, KEY, ask, key_table};
use test_support::e2e;
use test_support::e2e::{Client, Settings, wait_for};
use test_support::with_one_and_three_workers;
use throughway::config::Config;

fn settings_with_keys(workers: u8, http: &str) -> Settings {
    let mut settings = Settings::new(workers);
    settings.http = http.to_owned();
    settings.tables = key_table("web", KEY, "");
    settings.level = "debug";
    settings
}

with_one_and_three_workers! {
    /// From the request to data through the relay; and the log has a line for it, without key or password.
    fn a_credential_from_the_endpoint_relays(workers: u8) {
        let server = settings_with_keys(workers, "public = [\"127.0.0.1:0\", \"[::1]:0\"]").start();
        let public: Vec<SocketAddr> = server.log.events("serving the credential API").iter()
            .map(|event| event["address"].as_str().unwrap().replace("http://", "").parse().unwrap()).collect();
        assert_eq!(public.len(), 2);
        let mut passwords = Vec::new();
        for (address, target) in [
            (server.http(), "/v1/credentials?username=carol&ttl=300"),
            (public[0], "/?service=turn&username=carol&key=open-sesame"),
            (public[1], "/turn/credentials?service=turn&username=carol&api=open-sesame"),
        ] {
            let answer = ask(address, "GET", target, &[("Host", "localhost"), BEARER], "").json();
            let (username, password) = (answer["username"].as_str().unwrap(), answer["password"].as_str().unwrap());
            let uris: Vec<&str> = answer["uris"].as_array().unwrap().iter().map(|uri| uri.as_str().unwrap()).collect();
            let listeners = [server.udp4(), server.udp6(), server.tcp4(), server.tcp6()];
            let expected: Vec<String> = listeners.iter().zip(["udp", "udp", "tcp", "tcp"])
                .map(|(address, transport)| format!("turn:{address}?transport={transport}")).collect();
            assert_eq!(uris, expected);
            for mut client in [Client::udp(server.udp4()), Client::tcp(server.tcp4())] {
                client = client.user(username, password);
                client.allocate();
                assert_eq!(client.refresh(0).code(), 0);
            }
            let mut wrong = Client::udp(server.udp4()).user(username, "wrong");
            assert_eq!(wrong.request(throughway::wire::message::METHOD_ALLOCATE, &[e2e::Wanted::udp()]).code(), 401);
            passwords.push(password.to_owned());
        }
        let session = server.log.wait_for_session("carol");
        assert_eq!(session["secret"], "main");
        let issued = wait_for("three lines", || {
            Some(server.log.events("credential issued")).filter(|lines| lines.len() == 3)
        });
        assert_eq!((&issued[0]["key"], &issued[0]["user"], &issued[0]["ttl"]), (&"web".into(), &"carol".into(), &300.into()));
        assert_eq!((&issued[0]["client"], &issued[2]["client"]), (&"127.0.0.1".into(), &"::1".into()));
        assert!(issued[0]["username"].as_str().unwrap().ends_with(":carol"));
        // Refusals are at debug; neither they nor anything else shows a key, even a wrong one, or a password.
        ask(public[0], "GET", "/ice?key=a-wrong-secret", &[("Authorization", "Bearer another-wrong-secret")], "");
        let refused = wait_for("the refusal", || server.log.events("credential refused").pop());
        assert_eq!(refused["reason"], "wrong_key");
        let log = server.log.text();
        for hidden in [KEY, "a-wrong-secret", "another-wrong-secret", &passwords[0], &passwords[1], &passwords[2]] {
            assert!(!log.contains(hidden), "{hidden}");
        }
        let scrape = server.scrape();
        assert_eq!(scrape.value("throughway_credentials_issued_total", &[("key", "web")]), 3);
        assert_eq!(scrape.value("throughway_credentials_refused_total", &[("reason", "wrong_key")]), 1);
        assert_eq!(scrape.value("throughway_credentials_refused_total", &[("reason", "rate_user")]), 0);
    }
}

/// The application server of docs/app-server.md, as it is printed there: who has logged in gets credentials that relay.
#[test]
fn the_application_server_of_the_manual_gets_credentials_for_its_users() {
    let document = include_str!("../docs/app-server.md");
    let (_, code) = document.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    let server = settings_with_keys(1, "").start();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut application = std::process::Command::new("python3")
        .args(["-c", code, "127.0.0.1", &address.port().to_string()])
        .env("RELAY", format!("http://{}", server.http()))
        .env("RELAY_KEY", KEY)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("python3, which the example needs");
    wait_for("the application server", || TcpStream::connect(address).ok());
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let wrong = ask(address, "POST", "/", &form, "name=alice&password=wrong");
    let login = ask(address, "POST", "/", &form, "name=alice&password=wonderland");
    let without = ask(address, "GET", "/", &[], "");
    let cookie = login.header("set-cookie").unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
    let answer = ask(address, "GET", "/", &[("Cookie", &cookie)], "");
    application.kill().unwrap();
    application.wait().unwrap();
    assert_eq!([wrong.status, login.status, without.status, answer.status], [403, 200, 401, 200]);
    let entry = answer.json()["iceServers"][0].clone();
    let mut client =
        Client::udp(server.udp4()).user(entry["username"].as_str().unwrap(), entry["credential"].as_str().unwrap());
    client.allocate();
    assert_eq!(client.refresh(0).code(), 0);
    assert_eq!(server.log.wait_for_session("u-7f3a")["reason"], "refreshed");
}

#[test]
fn the_public_listener_has_credentials_and_healthz_and_nothing_else() {
    let server = settings_with_keys(1, "public = [\"127.0.0.1:0\"]\npublic_name = \"turn.example.org\"").start();
    let public = server.log.event("serving the credential API")["address"].as_str().unwrap().to_owned();
    let public: SocketAddr = public.replace("http://", "").parse().unwrap();
    let status = |path: &str| ask(public, "GET", path, &[], "").status;
    assert_eq!(status("/healthz"), 200);
    assert_eq!([status("/metrics"), status("/readyz"), status("/v1/sessions")], [404; 3]);
    assert_eq!([status("/status"), status("/v1/status"), status("/v1/reload")], [404; 3]);
    assert_eq!(status("/v1/credentials"), 401);
    let uris = ask(public, "GET", "/v1/credentials", &[BEARER], "").json()["uris"].clone();
    let ports = [server.udp4(), server.udp6(), server.tcp4(), server.tcp6()].map(|address| address.port());
    assert_eq!(uris[0], format!("turn:turn.example.org:{}?transport=udp", ports[0]));
    assert_eq!(uris[3], format!("turn:turn.example.org:{}?transport=tcp", ports[3]));
    // The page of the connectivity test holds nothing: the credential is in the link that an operator makes.
    for path in ["", "/page.js", "/page.css", "/test.js"].map(|file| format!("/connectivity{file}")) {
        let answer = ask(public, "GET", &path, &[("Host", "turn.example.org")], "");
        assert_eq!(answer.status, 200, "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
        assert!(!answer.body.contains("http://") && !answer.body.contains("https://"), "{path} loads from elsewhere");
        assert_eq!(ask(public, "POST", &path, &[], "").status, 405);
    }
    assert_eq!(ask(public, "POST", "/v1/test-credential", &[("Content-Type", "application/json")], "{}").status, 404);
    // On http.listen all of it is there, and a foreign Host is not answered.
    assert_eq!(server.health("/metrics"), 200);
    assert_eq!(ask(server.http(), "GET", "/ice", &[("Host", "evil.example"), BEARER], "").status, 403);
    assert_eq!(ask(server.http(), "GET", "/ice", &[("Host", "localhost"), BEARER], "").status, 200);
}

#[test]
fn sighup_rotates_keys_and_the_secret_that_mints() {
    let settings = settings_with_keys(1, "");
    let mut server = settings.clone().start();
    let host = ("Host", "localhost");
    let http = server.http();
    assert_eq!(ask(http, "GET", "/ice", &[host, BEARER], "").status, 200);
    let mut next = settings;
    next.tables = key_table("next", "next-key", "");
    next.secrets = vec![("second", "south-of-everything"), ("main", "north-of-everything")];
    let said = server.reload(next);
    assert!(said.contains("changes applied") && !said.contains("next start"), "{said}");
    wait_for("the new key", || (ask(http, "GET", "/ice", &[host, BEARER], "").status == 401).then_some(()));
    let answer = ask(http, "GET", "/v1/credentials?key=next-key&username=dave", &[host], "").json();
    let mut client =
        Client::udp(server.udp4()).user(answer["username"].as_str().unwrap(), answer["password"].as_str().unwrap());
    wait_for("the relay to know the new secret", || {
        client.login = None;
        let code = client.request(throughway::wire::message::METHOD_ALLOCATE, &[e2e::Wanted::udp()]).code();
        (code == 0).then_some(())
    });
    assert_eq!(client.refresh(0).code(), 0);
    assert_eq!(server.log.wait_for_session("dave")["secret"], "second");
}

#[test]
fn a_configuration_that_would_issue_to_anybody_or_from_nothing_is_refused() {
    let secret = "[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n";
    let key = key_table("web", KEY, "");
    for (text, says) in [
        (
            format!("http.public = [\"127.0.0.1:28001\"]\n{secret}"),
            "http.public = [\"127.0.0.1:28001\"]: needs a way to authenticate callers",
        ),
        (format!("http.public = [\"127.0.0.1:28001\"]\nhttp.unix_uids = [5]\n{secret}"), "add [[http.keys]]"),
        (format!("auth.users = {{ a = \"b\" }}\n{key}"), "there is none: add [[auth.secrets]]"),
        (format!("http.cors = [\"*\"]\n{secret}"), "any page on the web"),
        (format!("http.cors = [\"app.example\"]\n{secret}"), "expected an origin"),
        (format!("http.identity_header = \"X-User\"\n{secret}"), "name the proxy's address in http.proxies"),
        (
            format!("http.jwt_keys = \"http://a.example/jwks\"\nhttp.jwt_audience = \"a\"\n{secret}"),
            "an attacker on the way could put keys of their own there",
        ),
        (format!("http.jwt_keys = \"ftp://a/\"\nhttp.jwt_audience = \"a\"\n{secret}"), "begins with https://"),
        (
            format!(
                "http.jwt_keys = \"https://a/\"\nhttp.jwt_audience = \"a\"\nhttp.jwt_ca_file = \"/nowhere\"\n{secret}"
            ),
            "/nowhere can't be read",
        ),
        (format!("http.jwt_keys = \"/nowhere\"\n{secret}"), "must name the audience of this service"),
        (format!("http.jwt_keys = \"/nowhere\"\nhttp.jwt_audience = \"a\"\n{secret}"), "can't read /nowhere"),
        (format!("http.jwt_keys = \"/proc/version\"\nhttp.jwt_audience = \"a\"\n{secret}"), "is not JSON"),
        (format!("http.proxies = [\"0.0.0.0/0\"]\n{secret}"), "any caller would be believed"),
        (format!("http.public_name = \"turn:example\"\n{secret}"), "without scheme"),
        (format!("http.unix_uids = [\"root\"]\n{secret}"), "id -u NAME"),
        (format!("http.public = [\"127.0.0.1:8080\"]\n{key}{secret}"), "is taken by http.listen"),
        (format!("http.public = [\"0.0.0.0:3478\"]\n{key}{secret}"), "is taken by listen.tcp"),
        (format!("{key}{key}{secret}"), "http.keys[1]: the name \"web\" is used twice"),
        (format!("{key}{}{secret}", key_table("two", KEY, "")), "is the same key as \"web\""),
        (format!("{}{secret}", key_table("proxy", KEY, "")), "choose another"),
        (format!("{}{secret}", key_table("a b", KEY, "")), "letters, digits"),
        (format!("{}{secret}", key_table("web", KEY, "max_tll = \"1h\"")), "did you mean `max_ttl`?"),
        (format!("{}{secret}", key_table("web", KEY, "max_ttl = \"0s\"")), "must be greater than 0"),
        (format!("{}{secret}", key_table("web", KEY, "from = []")), "leave it out to allow all of them"),
        (format!("{}{secret}", key_table("web", KEY, "from = [\"10.0.0.1/8\"]")), "bits set after its prefix"),
    ] {
        let error = Config::from_toml("c.toml", &text).expect_err(&text).to_string();
        assert!(error.contains(says), "{error}\nlacks {says}");
    }
    // Somebody will put the key where its digest belongs: it must not be shown.
    let text = format!("[[http.keys]]\nname = \"web\"\nsha256 = \"Xopen-sesame\"\nkey = \"Xother\"\n{secret}");
    let error = Config::from_toml("c.toml", &text).unwrap_err();
    let shown = format!("{error} {error:?} {}", error.describe_json());
    assert!(shown.contains("the SHA-256 of the key, not the key itself"), "{shown}");
    assert!(!shown.contains("Xopen") && !shown.contains("Xother"), "{shown}");
}

#[test]
fn keys_of_a_login_that_is_down_are_tried_again_said_once_and_seen_in_metrics() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut settings = settings_with_keys(1, "");
    settings.http = format!("jwt_keys = \"http://127.0.0.1:{port}/jwks?x=secret\"\njwt_audience = \"turn\"");
    // The login takes the first connection and closes it; the second gets keys.
    let login = std::thread::spawn(move || {
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        let body =
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
    });
    let server = settings.start();
    server.log.wait_for_line("can't fetch the keys that check tokens");
    let text = e2e::http::get(server.http(), "/metrics", "localhost").1;
    assert!(text.contains("throughway_jwt_keys 0") && !text.contains("throughway_jwt_keys_age_seconds "), "{text}");
    assert_eq!(ask(server.http(), "GET", "/ice", &[("Host", "localhost"), BEARER], "").status, 200, "a key works");
    let fetched = server.log.wait_for_line("fetched the keys that check tokens");
    assert!(!fetched.contains("secret"), "a query may hold a key: {fetched}");
    login.join().unwrap();
    let scrape = server.scrape();
    let fetches = |result| scrape.value("throughway_jwt_key_fetches_total", &[("result", result)]);
    assert_eq!((fetches("ok"), fetches("failed"), scrape.sum("throughway_jwt_keys")), (1, 1, 1));
    assert!(scrape.sum("throughway_jwt_keys_age_seconds") < 30);
    server.log.wait_for_line("can't fetch the keys");
    assert_eq!(server.log.text().matches("can't fetch the keys").count(), 1);
}
