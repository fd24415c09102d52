//! Reloading the real binary: listeners, relay ports, HTTP and TLS come and go while calls lose nothing.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use test_support::e2e;
use test_support::e2e::client::request;
use test_support::e2e::server::binary;
use test_support::e2e::tls::{Authority, NAME, VERSIONS};
use test_support::e2e::{Client, Directory, Server, Settings, Wanted, Witness, http, peer, receive, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::{METHOD_ALLOCATE, METHOD_BINDING};

/// How long a client that must get no answer waits for one.
const NO_ANSWER: Duration = Duration::from_millis(200);

/// One listener of each kind on 127.0.0.1, which the kernel gives ports.
fn on_one_address(workers: u8) -> Settings {
    let one = vec!["127.0.0.1:0".to_owned()];
    Settings { udp: one.clone(), tcp: one, ..Settings::new(workers) }
}

/// The same and a pair on 127.0.0.2 behind it.
fn on_two_addresses(settings: &Settings) -> Settings {
    let with = |list: &[String]| [list, &["127.0.0.2:0".to_owned()]].concat();
    Settings { udp: with(&settings.udp), tcp: with(&settings.tcp), ..settings.clone() }
}

/// The last listener of a transport that the log told of on an address.
#[track_caller]
fn listener(server: &Server, transport: &str, ip: &str) -> SocketAddr {
    let all = server.log.events("listening");
    let of = |event: &&Value| event["transport"] == transport && event["address"].as_str().unwrap().starts_with(ip);
    let found = all.iter().rev().find(of).unwrap_or_else(|| panic!("no {transport} on {ip} in {all:?}"));
    found["address"].as_str().unwrap().parse().unwrap()
}

fn allocate_code(mut client: Client) -> u16 {
    let code = client.request(METHOD_ALLOCATE, &[Wanted::udp()]).code();
    if code == 0 {
        assert_eq!(client.refresh(0).code(), 0);
    }
    code
}

/// Fields of the one line about a reload.
#[track_caller]
fn told(said: &str) -> Value {
    assert_eq!(said.lines().count(), 1, "{said}");
    serde_json::from_str(said).unwrap()
}

/// A client that has no session there gets no answer, over UDP from each worker, and no connection over TCP.
#[track_caller]
fn expect_closed_to_new_clients(server: &Server, udp: SocketAddr, tcp: SocketAddr, workers: u8) {
    for worker in 0..workers {
        let mut client = Client::udp_on_worker(udp, worker, workers);
        for method in [METHOD_BINDING, METHOD_ALLOCATE] {
            let bytes = request(method, &[Wanted::udp()], None);
            server.expect_dropped("listener_leaving", 1, || client.send_raw(&bytes));
            assert!(client.answer_within(&bytes, NO_ANSWER).is_none(), "worker {worker} answers a new client");
        }
    }
    let refused = TcpStream::connect(tcp).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

with_one_and_three_workers! {
    // F-B3: each step of a reload that can fail, beside changes that could be taken over.
    /// Ports that others have, a certificate that can't be used, no more files: all of the old configuration stays.
    fn a_reload_that_fails_anywhere_changes_nothing(workers: u8) {
        let authority = Authority::new();
        let mut settings = authority.settings(workers);
        (settings.udp, settings.tcp) = (vec!["127.0.0.1:0".to_owned()], vec!["127.0.0.1:0".to_owned()]);
        let mut server = settings.clone().start();
        let witness = Witness::start(Client::udp(server.udp4()));
        let (udp, tcp) = (UdpSocket::bind("127.0.0.2:0").unwrap(), TcpListener::bind("127.0.0.2:0").unwrap());
        let (udp, tcp) = ((udp.local_addr().unwrap().to_string(), udp), (tcp.local_addr().unwrap().to_string(), tcp));
        let broken = authority.write("broken", &[NAME]);
        fs::write(&broken.1, "nonsense").unwrap();
        let mut new = settings.clone().limit("allocations_per_client", "7");
        new.users = vec![("bob", "builder")];
        (new.udp, new.tcp) = ([settings.udp.clone(), vec!["127.0.0.3:0".to_owned()]].concat(), [settings.tcp.clone(), vec!["127.0.0.3:0".to_owned()]].concat());
        let with = |change: &dyn Fn(&mut Settings)| {
            let mut new = new.clone();
            change(&mut new);
            new.text(&server.ports.range)
        };
        let steps = [
            (with(&|new| new.udp.push(udp.0.clone())), "can't listen on udp 127.0.0.2"),
            (with(&|new| new.tcp.push(tcp.0.clone())), "can't listen on tcp 127.0.0.2"),
            (with(&|new| new.http_listen.clone_from(&tcp.0)), "http.listen"),
            (with(&|new| new.certificates = vec![broken.clone()]), "broken"),
            (with(&|_| {}), "Too many open files"),
        ];
        let (listening, descriptors_before) = (server.log.events("listening").len(), descriptors(&server));
        let presented = |server: &Server| {
            let client = authority.connector(VERSIONS[1], &[]);
            let stream = e2e::tls::connect(&client, server.tls4(), NAME).unwrap();
            e2e::tls::presented(&stream)
        };
        let certificate = presented(&server);
        let limit = |files: &str| {
            let pid = server.pid().to_string();
            let done = std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:")]).status();
            assert!(done.unwrap().success());
        };
        for (text, why) in &steps {
            let is_about_files = why.contains("files");
            if is_about_files {
                // Of connections that were just closed some are still open for a moment.
                let mut settled = descriptors(&server);
                wait_for("the descriptors to be as many as before", || {
                    let last = std::mem::replace(&mut settled, descriptors(&server));
                    std::thread::sleep(Duration::from_millis(100));
                    (last == descriptors(&server) && last == settled).then_some(())
                });
                limit(&(settled + 2).to_string());
            }
            let said = server.reload_text(text);
            limit("1024");
            assert!(said.contains(why) && said.contains("the old settings stay"), "{why}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            assert_eq!(allocate_code(Client::udp(server.udp4())), 0, "{why}: alice is a user as before");
            assert_ne!(allocate_code(Client::udp(server.udp4()).user("bob", "wrong")), 0);
            assert_eq!(server.log.events("listening").len(), listening, "{why}: nothing new listens");
            assert_eq!(presented(&server), certificate, "{why}: the certificate is the old one");
            wait_for("what was opened for nothing to be closed", || (descriptors(&server) <= descriptors_before).then_some(()));
        }
        witness.see_progress();
        let line = told(&server.reload(new));
        assert_eq!(line["message"], "reload: changes applied");
        assert_ne!(allocate_code(Client::udp(server.udp4())), 0, "alice has gone");
        wait_for("both lines", || (server.log.events("listening").len() == listening + 2).then_some(()));
        witness.finish();
    }

    /// The whole life of a listener under calls that number every packet: another is added, it goes, users, secrets and
    /// limits change, wrong files come, and it closes when the last session that came through it has ended.
    fn a_listener_that_goes_keeps_its_calls_and_one_that_comes_takes_new_ones(workers: u8) {
        let settings = on_one_address(workers);
        let mut server = settings.clone().start();
        let (udp, tcp) = (server.udp4(), server.tcp4());
        let over_udp: Vec<Witness> = (0..workers).map(|worker| Witness::start(Client::udp_on_worker(udp, worker, workers))).collect();
        let over_tcp = Witness::start(Client::tcp(tcp));

        let both = on_two_addresses(&settings);
        let line = told(&server.reload(both.clone()));
        assert_eq!(line["message"], "reload: changes applied");
        assert_eq!(line["changed"], "listen.udp: added \"127.0.0.2:0\"; listen.tcp: added \"127.0.0.2:0\"");
        let (new_udp, new_tcp) = (listener(&server, "udp", "127.0.0.2"), listener(&server, "tcp", "127.0.0.2"));
        for worker in 0..workers {
            assert_eq!(allocate_code(Client::udp_on_worker(new_udp, worker, workers)), 0, "worker {worker}");
        }
        assert_eq!(allocate_code(Client::tcp(new_tcp)), 0);
        // The new listener is ours, so it is no client's peer.
        let mut client = Client::udp(udp);
        client.allocate();
        assert_eq!(client.try_bind(0x4001, new_udp), 403);

        let mut without = both.clone();
        (without.udp, without.tcp) = (vec![both.udp[1].clone()], vec![both.tcp[1].clone()]);
        let line = told(&server.reload(without.clone()));
        assert_eq!(line["changed"], "listen.udp: removed \"127.0.0.1:0\"; listen.tcp: removed \"127.0.0.1:0\"");
        expect_closed_to_new_clients(&server, udp, tcp, workers);
        assert_eq!(client.try_bind(0x4001, udp), 403, "as long as it is open it is ours");
        assert_eq!(client.refresh(0).code(), 0, "who has a session is answered");
        over_udp.iter().for_each(Witness::see_progress);

        let mut changed = without.clone().limit("allocations_per_client", "7");
        changed.users = vec![("bob", "builder")];
        changed.secrets = vec![("main", "south-of-everything"), ("next", "north-of-everything")];
        let line = told(&server.reload(changed.clone()));
        assert_eq!(
            line["changed"],
            "auth.users: removed \"alice\"; auth.secrets: added \"next\", changed \"main\"; limits.allocations_per_client: 2000 -> 7"
        );
        let good = changed.text(&server.ports.range);
        let said = server.reload_text(&good.replace("[limits]", "[limits]\nallocations = -1"));
        assert!(said.contains("limits.allocations") && said.contains("the old one stays"), "{said}");
        over_udp.iter().for_each(Witness::see_progress);
        over_tcp.see_progress();
        assert_eq!(allocate_code(Client::udp(new_udp).user("bob", "builder")), 0);

        assert!(server.log.events("listener closed: its last session has ended").is_empty());
        let mut witnesses = over_udp.into_iter();
        let (mut last, rounds) = witnesses.next().unwrap().finish();
        assert!(rounds > 20);
        assert_eq!(last.refresh(600).code(), 0);
        for witness in witnesses {
            let (mut client, _) = witness.finish();
            assert_eq!(client.refresh(0).code(), 0);
        }
        let bytes = request(METHOD_BINDING, &[], None);
        last.send_raw(&bytes);
        assert_eq!(last.answer_to(&bytes).code(), 0, "it is open for its last session");
        assert_eq!(last.refresh(0).code(), 0);
        let closed = wait_for("the listener to close", || server.log.events("listener closed: its last session has ended").pop());
        assert_eq!(closed["address"], udp.to_string());
        UdpSocket::bind(udp).expect("the port is free");
        let (mut client, _) = over_tcp.finish();
        assert_eq!(client.refresh(0).code(), 0, "an established connection stays as long as its client wants");
    }

    /// An operator who takes a listener out by mistake puts it back, and clients have to do nothing.
    fn a_listener_that_returns_in_time_is_the_same_as_before(workers: u8) {
        let settings = on_two_addresses(&on_one_address(workers));
        let mut server = settings.clone().start();
        let (udp, tcp) = (server.udp4(), server.tcp4());
        let witness = Witness::start(Client::udp_on_worker(udp, workers - 1, workers));
        let mut without = settings.clone();
        (without.udp, without.tcp) = (vec![settings.udp[1].clone()], Vec::new());
        server.reload(without);
        expect_closed_to_new_clients(&server, udp, tcp, workers);
        server.reload(settings);
        for worker in 0..workers {
            assert_eq!(allocate_code(Client::udp_on_worker(udp, worker, workers)), 0, "worker {worker}");
        }
        let (mut client, _) = witness.finish();
        assert_eq!(client.refresh(0).code(), 0);
        assert_eq!(allocate_code(Client::udp(udp)), 0, "it does not close with its last session");
        assert!(server.log.events("listener closed: its last session has ended").is_empty());
    }

    /// One listener that can't be bound, and nothing at all changes.
    fn what_can_not_be_bound_changes_nothing(workers: u8) {
        let settings = on_one_address(workers);
        let mut server = settings.clone().start();
        let witness = Witness::start(Client::udp(server.udp4()));
        let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (udp, tcp) = ((udp.local_addr().unwrap().to_string(), udp), (tcp.local_addr().unwrap().to_string(), tcp));
        let before = descriptors(&server);
        for (list, place) in [("udp", &udp.0), ("tcp", &tcp.0)] {
            let mut wrong = on_two_addresses(&settings);
            wrong.users = Vec::new();
            if list == "udp" { wrong.udp.push(place.clone()) } else { wrong.tcp.push(place.clone()) }
            let said = server.reload_text(&wrong.text(&server.ports.range));
            assert!(said.contains(place) && said.contains("another process has it"), "{said}");
            assert!(said.contains("the old settings stay"), "{said}");
            assert_eq!(allocate_code(Client::udp(server.udp4())), 0, "alice may still come in");
            assert_eq!(server.log.events("listening").len(), 2);
        }
        // Our own listener is named as what it is.
        let mut wrong = settings.clone();
        wrong.tcp = vec![format!("0.0.0.0:{}", server.tcp4().port())];
        let said = server.reload_text(&wrong.text(&server.ports.range));
        assert!(said.contains("of this server has the port"), "{said}");
        assert_eq!(descriptors(&server), before);
        assert_eq!(allocate_code(Client::tcp(server.tcp4())), 0);
        drop((udp, tcp));
        server.reload(on_two_addresses(&settings));
        assert_eq!(allocate_code(Client::udp(listener(&server, "udp", "127.0.0.2"))), 0);
        witness.finish();
    }

    // A disk that hangs, here a pipe that the server was started with: the reload gives up, and later ones say why until it is over.
    fn a_file_that_can_not_be_read_in_time_stops_no_later_reload(workers: u8) {
        let settings = on_one_address(workers);
        let (reader, writer) = std::io::pipe().unwrap();
        let with_pipe = |config: &std::path::Path| {
            let mut command = binary(config);
            command.stdin(reader.try_clone().unwrap());
            command
        };
        let server = Server::start_as(Directory::new(), settings.clone(), with_pipe);
        let text = settings.text(&server.ports.range);
        let said = server.reload_text(&format!("{text}\n[[auth.secrets]]\nid = \"late\"\nfile = \"/dev/stdin\"\n"));
        assert!(said.contains("could not be read within 5 s") && said.contains("the old settings stay"), "{said}");
        let said = server.reload_text(&text);
        assert!(said.contains("an earlier reload is still reading"), "{said}");
        assert_eq!(allocate_code(Client::udp(server.udp4())), 0, "the old settings hold");
        // The pipe is over, so the thread that reads it comes back.
        drop(writer);
        wait_for("a reload that is done", || {
            let said = server.reload_text(&text);
            (!said.contains("an earlier reload")).then(|| assert!(said.contains("changes applied"), "{said}"))
        });
    }

    /// A named pipe without a writer, as the configuration or as a file that it names, is refused at once.
    fn a_pipe_in_place_of_a_file_stops_no_later_reload(workers: u8) {
        let settings = on_one_address(workers);
        let server = settings.clone().start();
        let text = settings.text(&server.ports.range);
        let make_pipe = |path: &std::path::Path| {
            assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        };
        make_pipe(&server.directory().join("pipe"));
        let said = server.reload_text(&format!("{text}\n[[auth.secrets]]\nid = \"late\"\nfile = \"pipe\"\n"));
        assert!(said.contains("auth.secrets[1].file") && said.contains("is no ordinary file"), "{said}");
        let said = server.reload_after(|file| {
            fs::remove_file(file).unwrap();
            make_pipe(file);
        });
        assert!(said.contains("is no ordinary file") && said.contains("the old settings stay"), "{said}");
        let said = server.reload_after(|file| {
            fs::remove_file(file).unwrap();
            fs::write(file, &text).unwrap();
        });
        assert!(said.contains("changes applied"), "{said}");
        assert_eq!(allocate_code(Client::udp(server.udp4())), 0);
    }

    /// Fifty reloads that open and close a listener of each kind leave as many descriptors as there were.
    fn fifty_reloads_leak_no_descriptor(workers: u8) {
        let authority = Authority::new();
        let few = Settings { certificates: vec![authority.write("first", &[NAME])], ..on_one_address(workers) };
        let mut many = on_two_addresses(&few);
        many.tls = vec!["127.0.0.2:0".to_owned()];
        many.auto = vec!["127.0.0.2:0".to_owned()];
        many.http = "public = [\"127.0.0.2:0\"]\nproxies = [\"127.0.0.9\"]\nidentity_header = \"x-user\"\n".to_owned();
        let mut server = few.clone().start();
        let witnesses = [Witness::start(Client::udp(server.udp4())), Witness::start(Client::tcp(server.tcp4()))];
        // The first TLS listener makes what lives as long as the process.
        server.reload(many.clone());
        server.reload(few.clone());
        let settled = |server: &Server| {
            wait_for("the sockets to close", || {
                let udp = server.log.events("listener closed: its last session has ended").len();
                let gone = server.log.events("listener removed");
                (gone.iter().filter(|event| event["transport"] == "udp").count() == udp).then_some(())
            });
            // One connection of the scrape may be on its way out.
            (0..20).map(|_| { std::thread::sleep(Duration::from_millis(5)); descriptors(server) }).min().unwrap()
        };
        let before = settled(&server);
        for _ in 0..25 {
            server.reload(many.clone());
            assert_eq!(allocate_code(Client::udp(listener(&server, "udp", "127.0.0.2"))), 0);
            server.reload(few.clone());
        }
        assert_eq!(settled(&server), before);
        for witness in witnesses {
            witness.finish();
        }
    }

    /// A server without TLS gets its first TLS listener, and a plain one that takes both, on the same socket.
    fn the_first_tls_listener_comes_by_reload(workers: u8) {
        let authority = Authority::new();
        let settings = on_one_address(workers);
        let mut server = settings.clone().start();
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let mut with = settings.clone();
        with.certificates = vec![authority.write("first", &[NAME])];
        with.tls = vec!["127.0.0.2:0".to_owned()];
        // What was plain takes both.
        (with.auto, with.tcp) = (with.tcp, Vec::new());
        let line = told(&server.reload(with));
        assert!(line["changed"].as_str().unwrap().contains("listen.auto: added \"127.0.0.1:0\""), "{line}");
        assert_eq!(allocate_code(authority.client(listener(&server, "tls", "127.0.0.2"))), 0);
        assert_eq!(allocate_code(authority.client(server.tcp4())), 0, "TLS on what was a plain port");
        assert_eq!(allocate_code(Client::tcp(server.tcp4())), 0, "and plain as before");
        assert_eq!(server.scrape().value("throughway_tls_handshakes_total", &[("result", "ok")]), 2);
        server.reload(settings);
        assert_eq!(allocate_code(Client::tcp(server.tcp4())), 0);
        witness.finish();
    }

    /// New allocations get ports of the new range; live ones keep theirs.
    fn relay_ports_follow(workers: u8) {
        let mut settings = on_one_address(workers);
        let mut server = settings.clone().start();
        let middle = server.ports.range.start() + 20;
        let halves = [*server.ports.range.start()..=middle, middle + 1..=*server.ports.range.end()];
        settings.ports = Some(halves[0].clone());
        server.reload(settings.clone());
        let mut first = Client::udp(server.udp4());
        let relayed = first.allocate();
        assert!(halves[0].contains(&relayed.port()), "{relayed}");
        settings.ports = Some(halves[1].clone());
        let line = told(&server.reload(settings));
        let range = |half: &std::ops::RangeInclusive<u16>| format!("\"{}-{}\"", half.start(), half.end());
        assert_eq!(line["changed"], format!("relay.ports: {} -> {}", range(&halves[0]), range(&halves[1])));
        for worker in 0..workers {
            let mut client = Client::udp_on_worker(server.udp4(), worker, workers);
            let relayed = client.allocate();
            assert!(halves[1].contains(&relayed.port()), "{relayed}");
        }
        let peer = peer(relayed);
        first.permit(peer.local_addr().unwrap());
        first.send_to(peer.local_addr().unwrap(), b"still here");
        assert_eq!(receive(&peer), (b"still here".to_vec(), relayed));
        assert_eq!(first.refresh(0).code(), 0);
    }

    /// What waits for a restart is said at every reload, with the reason, until the file is as it was.
    fn what_needs_a_restart_is_said_each_time(workers: u8) {
        let settings = on_one_address(workers);
        let server = settings.clone().start();
        let good = settings.text(&server.ports.range);
        let other = good.replace("workers = ", "realm = \"other\"\nauth.nonce_key_file = \"nonce\"\nworkers = 7 # ");
        fs::write(server.directory().join("nonce"), "nonce-key-of-a-fleet").unwrap();
        for round in 0..3 {
            let line = told(&server.reload_text(&other.replace("[limits]", &format!("[limits]\nallocations = {}", 10 + round))));
            assert_eq!(line["level"], "WARN");
            let restart = line["restart"].as_str().unwrap();
            for part in ["realm: \"throughway\" -> \"other\" (it is in the key of every client)", "workers: ", "auth.nonce_key_file: \"\" -> \"nonce\""] {
                assert!(restart.contains(part), "{restart}");
            }
            assert!(line["changed"].as_str().unwrap().ends_with(&format!("-> {}", 10 + round)), "{line}");
            assert_eq!(allocate_code(Client::udp(server.udp4())), 0);
        }
        let line = told(&server.reload_text(&good));
        assert_eq!((line["level"].as_str(), line["restart"].as_str()), (Some("INFO"), None), "{line}");
    }

    /// HTTP listeners and Host names follow.
    fn http_follows(workers: u8) {
        let settings = on_one_address(workers);
        let mut server = settings.clone().start();
        assert_eq!(http::get(server.http(), "/healthz", "metrics.example").0, 403);
        let mut more = settings.clone();
        more.hosts = vec!["metrics.example"];
        more.http = "public = [\"127.0.0.1:0\"]\nproxies = [\"127.0.0.9\"]\nidentity_header = \"x-user\"\n".to_owned();
        server.reload(more);
        assert_eq!(http::get(server.http(), "/healthz", "metrics.example").0, 200);
        let public = server.log.event("serving the credential API")["address"].as_str().unwrap().replace("http://", "");
        let public: SocketAddr = public.parse().unwrap();
        assert_eq!(http::get(public, "/healthz", "anybody").0, 200);
        let mut client = Client::udp(server.udp4());
        client.allocate();
        assert_eq!(client.try_bind(0x4001, public), 403, "our HTTP is no client's peer");
        server.reload(settings.clone());
        assert_eq!(http::get(server.http(), "/healthz", "metrics.example").0, 403);
        assert_eq!(TcpStream::connect(public).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }

    /// A port goes from the relay to the credential API and back: no connection to it is refused, the session that came
    /// through it goes on, and what comes later is the other's.
    fn a_port_changes_its_use_without_refusing_anybody(workers: u8) {
        let port = TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap();
        let mut relayed = on_one_address(workers);
        relayed.tcp.push(port.to_string());
        let mut served = on_one_address(workers);
        served.http = format!("public = [\"{port}\"]\nproxies = [\"127.0.0.9\"]\nidentity_header = \"x-user\"\n");
        let mut server = relayed.clone().start();
        let mut session = Client::tcp(port);
        session.allocate();
        let over = AtomicBool::new(false);
        let connections = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                let mut connections = 0;
                while !over.load(Ordering::Relaxed) {
                    TcpStream::connect(port).expect("no connection is refused");
                    connections += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                connections
            });
            for _ in 0..3 {
                let line = told(&server.reload(served.clone()));
                assert_eq!(line["level"], "INFO", "{line}");
                assert_eq!(http::get(port, "/healthz", "anybody").0, 200);
                let line = told(&server.reload(relayed.clone()));
                assert_eq!(line["level"], "INFO", "{line}");
                assert_eq!(allocate_code(Client::tcp(port)), 0);
            }
            over.store(true, Ordering::Relaxed);
            connecting.join().unwrap()
        });
        assert!(connections > 0);
        assert_eq!(session.refresh(600).code(), 0, "the session goes on");
        // The same port of every address is not the same socket.
        let any = format!("0.0.0.0:{}", port.port());
        let said = server.reload_text(&served.text(&server.ports.range).replace(&port.to_string(), &any));
        let why = format!("listen.tcp {port} of this server has the port until this reload is done");
        assert!(said.contains("http.public") && said.contains(&why) && said.contains("the old settings stay"), "{said}");
        assert_eq!(allocate_code(Client::tcp(port)), 0);
    }
}
