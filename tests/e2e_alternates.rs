//! `turn.alternates`: real servers that send clients to each other, and clients that follow.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use test_support::e2e::client::request;
use test_support::e2e::tls::Authority;
use test_support::e2e::{Client, Response, Server, Settings, Wanted, http, wait_for};
use throughway::wire::attribute::{ATTR_ALTERNATE_DOMAIN, ATTR_ALTERNATE_SERVER};
use throughway::wire::message::{METHOD_ALLOCATE, Message};

const DOWN: &str = "an alternate server takes no clients: none are sent there";
const UP: &str = "an alternate server takes clients";

/// A server with this pool.
fn with(mut settings: Settings, redirect: &str, alternates: &[String]) -> Settings {
    let line = format!("[{}]", alternates.join(", "));
    settings.turn.push(("redirect", format!("{redirect:?}").leak()));
    settings.turn.push(("redirect_percent", "50"));
    settings.turn.push(("alternates", line.leak()));
    settings
}

fn plain(server: SocketAddr) -> String {
    format!("{{ address = \"{server}\" }}")
}

/// Listeners for UDP and TCP at one port, as a server of a pool has them.
fn both(workers: u8) -> Settings {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = vec![format!("127.0.0.1:{port}")];
    Settings { udp: at.clone(), tcp: at, ..Settings::new(workers) }
}

fn first(client: &mut Client) -> Response {
    client.ask(&request(METHOD_ALLOCATE, &[Wanted::udp()], None))
}

/// Where an answer sends its client; nothing if it is no 300.
fn alternate(response: &Response) -> Option<u16> {
    let message = Message::parse(&response.0).unwrap();
    let value = (response.code() == 300).then(|| message.all(ATTR_ALTERNATE_SERVER).next().unwrap())?;
    Some(u16::from_be_bytes([value[2], value[3]]))
}

/// Where a new client is sent; nothing if it is challenged.
fn sent_to(mut client: Client) -> Option<u16> {
    let response = first(&mut client);
    assert!([300, 401].contains(&response.code()));
    alternate(&response)
}

/// A client as RFC 8489 section 10 has it: it follows, before the challenge and after it, and gives up where it is sent back.
fn allocate_somewhere(server: SocketAddr) -> Result<(Client, SocketAddr), Vec<SocketAddr>> {
    let (mut at, mut tried) = (server, Vec::new());
    while !tried.contains(&at) {
        tried.push(at);
        let mut client = Client::udp(at);
        let response = first(&mut client);
        let answer = match alternate(&response) {
            None => client.request(METHOD_ALLOCATE, &[Wanted::udp()]),
            Some(_) => response,
        };
        match alternate(&answer) {
            Some(port) => at.set_port(port),
            None if answer.code() == 0 => return Ok((client, at)),
            None => break,
        }
    }
    Err(tried)
}

fn metrics(server: &Server) -> String {
    http::get(server.http(), "/metrics", "localhost").1
}

fn is_up(server: &Server, address: SocketAddr, transport: &str) -> bool {
    let is_it = |line: &&str| line.contains(&address.to_string()) && line.contains(transport);
    let text = metrics(server);
    let line = text.lines().filter(|line| line.starts_with("throughway_alternate_up{")).find(is_it);
    line.is_some_and(|line| line.ends_with(" 1"))
}

#[test]
fn a_server_that_always_sends_away_follows_the_health_of_the_others() {
    let mut other = both(1).start();
    let address = other.udp4();
    let server = with(Settings::new(3), "always", &[plain(address)]).start();
    wait_for("the other one to be up", || is_up(&server, address, "tcp").then_some(()));
    assert!(is_up(&server, address, "udp"));
    for client in [Client::udp(server.udp4()), Client::tcp(server.tcp4())] {
        assert_eq!(sent_to(client), Some(address.port()));
    }
    assert_eq!(sent_to(Client::udp(server.udp6())), None, "the other one has no IPv6");
    let (_, at) = allocate_somewhere(server.udp4()).ok().unwrap();
    assert_eq!(at, address);
    other.signal("TERM");
    other.wait();
    wait_for("the other one to be gone", || (!is_up(&server, address, "udp")).then_some(()));
    let (mut kept, at) = allocate_somewhere(server.udp4()).ok().unwrap();
    assert_eq!(at, server.udp4(), "served here meanwhile");
    let down = server.log.events(DOWN);
    assert_eq!((&down[0]["level"], &down[0]["address"]), (&"WARN".into(), &address.to_string().into()));
    assert!(down.len() == 2 && down[0]["why"].as_str().is_some_and(|why| !why.is_empty()));
    let _again =
        Settings { udp: other.settings.udp.clone(), tcp: other.settings.tcp.clone(), ..Settings::new(1) }.start();
    wait_for("it to be back", || is_up(&server, address, "udp").then_some(()));
    assert_eq!(sent_to(Client::udp(server.udp4())), Some(address.port()));
    assert_eq!(kept.refresh(600).code(), 0, "what lives stays");
    assert!(server.log.events(UP).len() >= 3, "{}", server.log.text());
    assert_eq!(server.log.text().matches("panic").count(), 0);
}

#[test]
fn a_full_server_sends_on_and_two_full_ones_serve_to_their_last_place() {
    let quota = |settings: Settings| settings.limit("allocations", "8");
    let other = quota(both(1));
    let at: SocketAddr = other.udp[0].parse().unwrap();
    let own = quota(both(1));
    let own_at: SocketAddr = own.udp[0].parse().unwrap();
    let other = with(other, "full", &[plain(own_at)]).start();
    let server = with(own, "full", &[plain(at)]).start();
    wait_for("both to be up", || (is_up(&server, at, "udp") && is_up(&other, own_at, "udp")).then_some(()));
    let mut clients: Vec<Client> = (0..4).map(|_| allocate_somewhere(own_at).ok().unwrap().0).collect();
    assert_eq!((server.live(), other.live()), (4, 0), "none are sent away before");
    // Half of the places: from here on some go, and in the end all of them.
    let loads = || {
        server.log.events("this server is fuller than turn.redirect_percent: new clients are sent to the alternate servers that take them").len()
    };
    wait_for("the load to be measured", || (loads() == 1).then_some(()));
    wait_for("clients to be sent away", || {
        (0..50).any(|_| sent_to(Client::udp(own_at)) == Some(at.port())).then_some(())
    });
    // As many as there are places, whichever server they begin at. What changes meanwhile is known some seconds later.
    let mut failed = 0;
    while clients.len() < 16 {
        match allocate_somewhere(if clients.len().is_multiple_of(2) { own_at } else { at }) {
            Ok((client, _)) => clients.push(client),
            Err(tried) => {
                failed += 1;
                assert!(failed < 4, "{} places, and then {tried:?} again and again", clients.len());
                thread::sleep(Duration::from_secs(7));
            }
        }
    }
    assert_eq!((server.live(), other.live()), (8, 8));
    // Both are full to the last place: challenged and refused, and not sent in a circle.
    for begin in [own_at, at] {
        wait_for("both to know", || {
            let mut late = Client::udp(begin);
            (first(&mut late).code() == 401).then_some(())?;
            (late.request(METHOD_ALLOCATE, &[Wanted::udp()]).code() == 486).then_some(())
        });
    }
    assert!(clients.iter_mut().all(|client| client.refresh(600).code() == 0));
    assert!(server.refused("full") + server.refused("busy") > 0, "it said so to the one that asked");
}

#[test]
fn clients_over_tls_are_told_the_name_of_the_certificate() {
    let authority = Authority::new();
    let other = authority.settings(1).start();
    let tls = other.tls4();
    let settings = authority.settings(1);
    let entry = format!("{{ tls = \"{tls}\", name = \"turn2.example.org\", weight = 2 }}");
    let server = with(settings, "always", &[entry]).start();
    wait_for("the other one to be up", || is_up(&server, tls, "tls").then_some(()));
    assert_eq!(sent_to(Client::udp(server.udp4())), None, "it takes clients over TLS only");
    let response = first(&mut authority.client(server.tls4()));
    let message = Message::parse(&response.0).unwrap();
    assert_eq!((response.code(), message.all(ATTR_ALTERNATE_DOMAIN).next()), (300, Some(&b"turn2.example.org"[..])));
    authority.client(tls).allocate();
    // A reload takes the pool away, and with it what is known of it.
    let mut server = server;
    let said = server.reload(authority.settings(1));
    assert!(said.contains("turn.alternates"), "{said}");
    assert_eq!(sent_to(authority.client(server.tls4())), None);
    wait_for("nothing of it to be shown", || (!metrics(&server).contains("throughway_alternate_up{")).then_some(()));
}
