//! The demo's HTTP face, over a real socket on loopback.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::api::page::{HEAD, THEME};

struct Scripted;

impl DemoBackend for Scripted {
    fn ice_servers(&self, user: &str, transport: Transport, host: &str) -> IceServers {
        IceServers {
            ice_servers: vec![IceServer {
                urls: turn_urls(host, Ipv4Addr::new(192, 0, 2, 7).into(), 3478, transport),
                username: format!("1999:{user}"),
                credential: "password".to_owned(),
            }],
            expires_at: 1999,
        }
    }

    fn usage(&self, user: &str) -> BoxFuture<Option<Usage>> {
        let usage = (user == "a").then(Usage::default);
        Box::pin(async move { usage })
    }
}

async fn demo() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(serve::serve(listener, routes(Access::new(None))));
    address
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn routes(access: Access) -> Router {
    let state = DemoState::new(Arc::new(Scripted), access, vec!["a note".to_owned()]).unwrap();
    router(state, Router::new().route("/metrics", axum::routing::get(|| async { "numbers\n" })))
}

/// As [`demo`], for a client at 192.0.2.9: the outermost layer replaces the address that the socket told.
async fn demo_from_afar(access: Access) -> SocketAddr {
    let (listener, address) = listener().await;
    let afar = Peer::Tcp("192.0.2.9:4711".parse().unwrap());
    let routes = routes(access).layer(middleware::from_fn(move |mut request: Request, next: Next| {
        request.extensions_mut().insert(afar);
        next.run(request)
    }));
    tokio::spawn(serve::serve(listener, routes));
    address
}

async fn get(address: SocketAddr, path: &str, host: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A WebSocket client of a few lines: unfragmented text below 64 KiB is all it speaks.
struct Tab(TcpStream);

impl Tab {
    async fn join(address: SocketAddr, room: &str, member: &str) -> Self {
        let (head, stream) = Self::upgrade(address, room, member, "").await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self(stream)
    }

    async fn upgrade(address: SocketAddr, room: &str, member: &str, more: &str) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /signal?room={room}&member={member} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{more}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    }

    async fn say(&mut self, text: &str) {
        // final text frame, masked with zeros (RFC 6455 section 5.2)
        let mut frame = vec![0x81];
        match u8::try_from(text.len()) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 127);
                frame.extend((text.len() as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.0.write_all(&frame).await.unwrap();
    }

    /// The next text frame, or `None` at the end of the connection.
    async fn hear(&mut self) -> Option<serde_json::Value> {
        loop {
            let kind = self.0.read_u8().await.ok()? & 0x0f;
            let length = match self.0.read_u8().await.ok()? {
                126 => usize::from(self.0.read_u16().await.ok()?),
                127 => usize::try_from(self.0.read_u64().await.ok()?).unwrap(),
                short => usize::from(short),
            };
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.ok()?;
            match kind {
                1 => return Some(serde_json::from_slice(&payload).unwrap()),
                8 => return None,
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn the_page_and_all_its_parts_are_served_with_a_strict_policy() {
    let address = demo().await;

    let page = get(address, "/", &address.to_string()).await;

    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let head = page.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
    assert!(head.contains("cache-control: no-store"), "{head}");
    assert!(head.contains("default-src 'none'"), "{head}");
    assert!(head.contains(&format!("connect-src 'self' ws://{address}")), "{head}");
    assert!(!head.contains("unsafe-"), "{head}");
    for part in page.split("src=\"/").chain(page.split("href=\"/")).skip(1) {
        let name = part.split('"').next().unwrap();
        if name.contains(['<', '>']) {
            continue;
        }
        let answer = get(address, &format!("/{name}"), &address.to_string()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "/{name}: {answer}");
    }
}

/// A change of the head or of a colour is made in one place: no page has a part of it of its own.
#[tokio::test]
async fn all_pages_share_one_head_and_one_theme() {
    let address = demo().await;
    for (path, shared) in [("/", HEAD), ("/style.css", THEME)] {
        let answer = get(address, path, "localhost").await;
        assert!(answer.split_once("\r\n\r\n").unwrap().1.starts_with(shared), "{path}");
    }
    let pages = [
        include_str!("page/index.html"),
        include_str!("../api/admin/page/status.html"),
        include_str!("../api/connectivity/page.html"),
    ];
    for page in pages {
        assert!(page.starts_with("<title>"), "{page}");
        for part in ["<meta", "<!doctype", "rel=\"icon\"", "<svg xmlns"] {
            assert!(!page.contains(part), "{part} in {page}");
        }
    }
    let colours: Vec<&str> =
        THEME.lines().filter_map(|line| line.trim().split_once(": light-dark(")).map(|(name, _)| name).collect();
    assert!(colours.len() > 10, "{colours:?}");
    let styles = [
        include_str!("page/style.css"),
        include_str!("../api/admin/page/page.css"),
        include_str!("../api/connectivity/test.css"),
    ];
    for style in styles {
        assert!(!style.contains("prefers-color-scheme"), "{style}");
        for name in &colours {
            assert!(
                !style.contains(&format!("{name}: #")) && !style.contains(&format!("{name}: light-dark")),
                "{name} in {style}"
            );
        }
    }
}

#[tokio::test]
async fn the_page_refers_to_nothing_outside_itself() {
    let address = demo().await;
    for path in ["/", "/app.js", "/call.js", "/style.css"] {
        let answer = get(address, path, "localhost").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(!body.is_empty());
        for scheme in ["https://", "http://"] {
            for found in body.split(scheme).skip(1) {
                assert!(
                    found.starts_with("www.w3.org/2000/svg") || found.starts_with("127.0.0.1"),
                    "{path} refers to {scheme}{}",
                    &found[..found.len().min(40)]
                );
            }
        }
    }
}

#[tokio::test]
async fn a_rebound_host_name_gets_nothing() {
    let address = demo().await;

    for path in ["/", "/config?user=a&transport=udp", "/usage?user=a", "/signal?room=r&member=a"] {
        let answer = get(address, path, "attacker.example:8080").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
        assert!(!answer.contains("password"), "{path}");
    }
}

const PATHS: [&str; 7] = [
    "/",
    "/app.js",
    "/config?user=a&transport=udp",
    "/usage?user=a",
    "/signal?room=r&member=a",
    "/qr.svg?room=r",
    "/metrics",
];

// F-C2: a loopback Host header from another machine got a credential.
#[tokio::test]
async fn another_machine_gets_nothing_without_the_token() {
    let lan: SocketAddr = "192.0.2.7:8080".parse().unwrap();
    for access in [Access::new(None), Access::new(Some(Shared::new(lan).unwrap()))] {
        let address = demo_from_afar(access).await;
        for host in ["127.0.0.1:8080", "localhost", "192.0.2.7:8080"] {
            for path in PATHS {
                let answer = get(address, path, host).await;
                assert!(answer.starts_with("HTTP/1.1 403"), "{path} {host}: {answer}");
                assert!(!answer.contains("password") && !answer.contains("token="), "{path}");
            }
        }
    }
}

// F-C2
#[tokio::test]
async fn another_machine_with_the_link_gets_a_cookie_and_then_the_page() {
    let shared = Shared::new("192.0.2.7:8080".parse().unwrap()).unwrap();
    let link = shared.link();
    let address = demo_from_afar(Access::new(Some(shared))).await;
    let (_, token) = link.split_once("/?").unwrap();

    let opened = get(address, &format!("/?{token}"), "192.0.2.7:8080").await;

    assert!(opened.starts_with("HTTP/1.1 303"), "{opened}");
    let line = |name: &str| {
        let mut lines = opened.lines();
        lines.find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {opened}")).to_owned()
    };
    assert_eq!(line("location: "), "/", "the token leaves the address bar");
    let cookie = line("set-cookie: ");
    let host = format!("192.0.2.7:8080\r\nCookie: {}", cookie.split(';').next().unwrap());
    let config = get(address, "/config?user=a&transport=udp", &host).await;
    assert!(config.starts_with("HTTP/1.1 200") && config.contains("password"), "{config}");
    assert!(config.contains(&link), "the page can show the link");
    let code = get(address, "/qr.svg?room=r", &host).await;
    assert!(code.starts_with("HTTP/1.1 200") && code.contains("<svg"), "{code}");
    assert!(get(address, "/qr.svg?room=%20", &host).await.starts_with("HTTP/1.1 400"));
}

// F-C1
#[tokio::test]
async fn a_tab_that_says_goodbye_is_told_from_one_that_breaks_off() {
    let address = demo().await;
    let mut a = Tab::join(address, "r", "a").await;
    assert_eq!(a.hear().await.unwrap()["type"], "welcome");
    for goodbye in [true, false] {
        let mut b = Tab::join(address, "r", "b").await;
        assert_eq!(b.hear().await.unwrap()["type"], "welcome");
        assert_eq!(a.hear().await.unwrap()["type"], "paired");
        if goodbye {
            let beacon = |origin: &str| {
                format!(
                    "POST /leave?room=r&member=b HTTP/1.1\r\nHost: {address}\r\nOrigin: {origin}\r\n\
                         Content-Length: 0\r\nConnection: close\r\n\r\n"
                )
            };
            let foreign = ask(address, &beacon("http://attacker.example")).await;
            assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");
            let said = ask(address, &beacon(&format!("http://{address}"))).await;
            assert!(said.starts_with("HTTP/1.1 204"), "{said}");
        }
        drop(b);
        let told = a.hear().await.unwrap();
        assert_eq!(told, serde_json::json!({"type": "peer-left", "goodbye": goodbye}));
    }
}

#[tokio::test]
async fn config_names_the_servers_of_the_chosen_transport_for_this_tab() {
    let address = demo().await;

    let answer = get(address, "/config?user=tab-1&transport=tcp", "localhost:1").await;

    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        body["iceServers"],
        serde_json::json!([{
            "urls": ["turn:192.0.2.7:3478?transport=tcp", "turn:localhost:3478?transport=tcp"],
            "username": "1999:tab-1",
            "credential": "password",
        }])
    );
    assert_eq!(body["expiresAt"], 1999);
    assert_eq!(body["notes"], serde_json::json!(["a note"]));
    assert_eq!(body["boot"].as_str().unwrap().len(), 16);
}

#[tokio::test]
async fn wrong_questions_are_answered_with_4xx_and_missing_counts_with_503() {
    let address = demo().await;
    for (path, status) in [
        ("/config?user=a&transport=sctp", "400"),
        ("/config?transport=udp", "400"),
        ("/config?user=a%20b&transport=udp", "400"),
        ("/usage?user=", "400"),
        ("/usage?user=a", "200"),
        ("/usage?user=b", "503"),
        ("/signal?room=r&member=a", "4"),
        ("/etc/passwd", "404"),
    ] {
        let answer = get(address, path, "127.0.0.1").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
    for (path, expected) in [
        ("/config?user=a&transport=sctp", "/config?user=TAB&transport=udp, or tcp"),
        ("/config", "/config?user=TAB"),
        ("/usage", "/usage?user=TAB"),
        ("/qr.svg", "/qr.svg?room=ROOM"),
    ] {
        let answer = get(address, path, "127.0.0.1").await;
        assert!(answer.contains(&format!("ask {expected}")) && !answer.contains("eserialize"), "{path}: {answer}");
    }
}

#[test]
fn turn_urls_name_each_host_once() {
    let lan: IpAddr = "192.0.2.7".parse().unwrap();

    assert_eq!(
        turn_urls("127.0.0.1", lan, 3478, Transport::Udp),
        ["turn:192.0.2.7:3478?transport=udp", "turn:127.0.0.1:3478?transport=udp"]
    );
    assert_eq!(turn_urls("192.0.2.7", lan, 1, Transport::Tcp), ["turn:192.0.2.7:1?transport=tcp"]);
    assert_eq!(
        turn_urls("[::1]", "fd00::2".parse().unwrap(), 1, Transport::Udp),
        ["turn:[fd00::2]:1?transport=udp", "turn:[::1]:1?transport=udp"]
    );
}

#[test]
fn a_credential_does_not_print() {
    let servers = Scripted.ice_servers("a", Transport::Udp, "localhost");

    assert!(!format!("{:?}", servers.ice_servers).contains("password"));
}

#[tokio::test]
async fn two_tabs_hear_each_other_and_a_third_is_told_why_not() {
    let address = demo().await;
    let mut a = Tab::join(address, "r", "a").await;
    assert_eq!(a.hear().await.unwrap()["type"], "welcome");
    let mut b = Tab::join(address, "r", "b").await;
    assert_eq!(b.hear().await.unwrap()["type"], "welcome");
    assert_eq!(b.hear().await.unwrap(), serde_json::json!({"type": "paired", "peer": "a", "caller": false}));
    assert_eq!(a.hear().await.unwrap(), serde_json::json!({"type": "paired", "peer": "b", "caller": true}));

    a.say(r#"{"kind":"offer"}"#).await;
    assert_eq!(b.hear().await.unwrap(), serde_json::json!({"type": "message", "data": {"kind": "offer"}}));

    let mut c = Tab::join(address, "r", "c").await;
    let refused = c.hear().await.unwrap();
    assert_eq!(refused["type"], "refused");
    assert!(refused["reason"].as_str().unwrap().contains("two members"));
    assert_eq!(c.hear().await, None);

    drop(a);
    assert_eq!(b.hear().await.unwrap()["type"], "peer-left");
}

#[tokio::test]
async fn what_is_no_json_object_or_too_long_ends_the_connection() {
    let address = demo().await;
    for bad in ["[1]", "no json", &format!("{{\"x\":\"{}\"}}", "x".repeat(70_000))] {
        let mut a = Tab::join(address, "bad", "a").await;
        assert_eq!(a.hear().await.unwrap()["type"], "welcome");
        a.say(bad).await;
        assert_eq!(a.hear().await, None);
    }
}

#[tokio::test]
async fn a_websocket_opened_by_another_site_is_refused() {
    let address = demo().await;

    let (head, _) = Tab::upgrade(address, "r", "a", "Origin: http://attacker.example\r\n").await;

    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
}
