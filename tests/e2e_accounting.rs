//! Usage records of the real binary: exact to the byte, and still there after whatever went wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use test_support::e2e;
use test_support::e2e::client::request;
use test_support::e2e::hook::Hook;
use test_support::e2e::server::LOOK;
use test_support::e2e::tls::Authority;
use test_support::e2e::{Client, Server, Settings, Wanted, payload, peer, receive, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::METHOD_REFRESH;

const CHANNEL: u16 = 0x4001;

fn file_of(server: &Server) -> std::path::PathBuf {
    server.directory().join("usage.jsonl")
}

fn with_file(workers: u8) -> Settings {
    Settings::new(workers).account("file", "usage.jsonl")
}

fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // A line that is being written has no end yet.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn of_kind<'r>(records: &'r [Value], kind: &str) -> Vec<&'r Value> {
    records.iter().filter(|record| record["type"] == kind).collect()
}

fn sum(records: &[&Value], field: &str) -> u64 {
    records.iter().map(|record| record[field].as_u64().unwrap()).sum()
}

/// received = sent + dropped by reason, in packets and in bytes.
#[track_caller]
fn check(record: &Value) {
    for unit in ["bytes", "packets"] {
        let count = |name: &str| record[format!("{unit}_{name}")].as_u64().unwrap();
        let dropped: u64 = record["dropped"].as_object().unwrap().values().map(|of| of[unit].as_u64().unwrap()).sum();
        assert_eq!(
            count("from_client") + count("from_peers"),
            count("to_client") + count("to_peers") + dropped,
            "{record}"
        );
    }
}

/// Exit code, standard output and standard error of `usage report`.
fn report(arguments: &[&str], directory: &Path) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
    let output = command.args(["usage", "report"]).args(arguments).current_dir(directory).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn report_json(directory: &Path) -> Value {
    let (code, out, err) = report(&["--json", "usage.jsonl"], directory);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

/// A client over TCP that does not read, and whose queue is full.
fn slow_client(server: &Server, user: &str) -> Client {
    let mut client = Client::tcp(server.tcp4()).minted("north-of-everything", user);
    let relayed = client.allocate();
    let far = peer(relayed);
    client.bind(CHANNEL, far.local_addr().unwrap());
    let before = server.dropped("slow_client");
    wait_for("a full queue", || {
        for _ in 0..50 {
            far.send_to(&payload(7, 8000), relayed).unwrap();
        }
        std::thread::sleep(LOOK);
        (server.dropped("slow_client") > before).then_some(())
    });
    settle(server);
    client
}

/// Ends an allocation without waiting for the answer, which stands behind everything else in the queue.
fn end(server: &Server, client: &mut Client) {
    let ended = || server.scrape().value("throughway_allocations_ended_total", &[("reason", "refreshed")]);
    let before = ended();
    client.send_raw(&request(METHOD_REFRESH, &[Wanted::lifetime(0)], client.login.as_ref()));
    wait_for("the end of the allocation", || (ended() == before + 1).then_some(()));
}

/// Waits until the relay has judged all that came on relayed sockets.
fn settle(server: &Server) {
    let count = || {
        let scrape = server.scrape();
        scrape.sum("throughway_payload_packets_total") + scrape.sum("throughway_dropped_packets_total")
    };
    let mut last = count();
    wait_for("the end of what is under way", || {
        std::thread::sleep(Duration::from_millis(60));
        let now = count();
        let settled = now == last;
        last = now;
        settled.then_some(())
    });
}

with_one_and_three_workers! {
    /// Clients over UDP and TCP, refused and failed packets, a slow reader that ends its allocation and then reads,
    /// one that never does: clients, records and metrics agree.
    fn clients_records_and_metrics_agree_to_the_byte(workers: u8) {
        let mut server = with_file(workers).start();
        let mut due: BTreeMap<&str, [u64; 4]> = BTreeMap::new();

        let mut carol = Client::udp(server.udp4()).minted("north-of-everything", "carol");
        let relayed = carol.allocate();
        let far = peer(relayed);
        carol.bind(CHANNEL, far.local_addr().unwrap());
        let mut up = 0;
        for size in [0, 1, 700, 1200] {
            carol.send_channel(CHANNEL, &payload(size as u32, size));
            assert_eq!(receive(&far).0.len(), size);
            far.send_to(&payload(1, size / 2), relayed).unwrap();
            assert_eq!(carol.data().unwrap().payload.len(), size / 2);
            up += size as u64;
        }
        // Refused: no such channel. The client sent it, no peer got it.
        server.expect_dropped("unbound_channel", 1, || carol.send_channel(CHANNEL + 1, &[0; 333]));
        due.insert("carol", [up + 333, up, up / 2, up / 2]);

        // Failed: more than a datagram holds.
        let mut bob = Client::tcp(server.tcp4()).user("bob", "builder");
        let relayed = bob.allocate();
        bob.bind(CHANNEL, peer(relayed).local_addr().unwrap());
        server.expect_dropped("message_size", 1, || bob.send_channel(CHANNEL, &payload(9, 65_508)));
        due.insert("bob", [65_508, 0, 0, 0]);

        // Ends its allocation with a full queue, then reads all of it: the stop waits, and counts what was read.
        let mut slow = slow_client(&server, "slow");
        end(&server, &mut slow);
        assert!(of_kind(&records(&file_of(&server)), "stop").is_empty(), "it is not known yet what will leave");
        let mut read = 0;
        let stop = wait_for("the stop of the slow reader", || {
            while let Some(data) = slow.data_within(Duration::from_millis(50)) {
                read += data.payload.len() as u64;
            }
            records(&file_of(&server)).into_iter().find(|record| record["type"] == "stop")
        });
        assert_eq!((stop["user"].as_str(), stop["reason"].as_str()), (Some("slow"), Some("refreshed")));
        assert_eq!(stop["bytes_to_client"], read, "to the byte what the client read");
        assert!(stop["dropped"]["slow_client"]["bytes"].as_u64().unwrap() > 0 && stop["dropped"]["stream_closed"].is_null());

        // Ends its allocation with a full queue and goes away.
        let mut gone = slow_client(&server, "gone");
        end(&server, &mut gone);
        drop(gone);
        let stop = wait_for("the stop of who went away", || {
            records(&file_of(&server)).into_iter().find(|record| record["type"] == "stop" && record["user"] == "gone")
        });
        assert!(stop["dropped"]["stream_closed"]["bytes"].as_u64().unwrap() > 0, "{stop}");

        // And one that still has a full queue when the server stops.
        let _last = slow_client(&server, "last");
        let scrape = server.scrape();
        let metric = |way, side| scrape.value("throughway_payload_bytes_total", &[("way", way), ("side", side)]);
        let before_stop = [metric("received", "clients"), metric("sent", "peers"), metric("received", "peers")];
        let sent_to_clients = metric("sent", "clients");
        server.signal("TERM");
        assert!(server.wait().success());

        let all = records(&file_of(&server));
        all.iter().for_each(check);
        let (starts, stops) = (of_kind(&all, "start"), of_kind(&all, "stop"));
        assert_eq!((starts.len(), stops.len()), (5, 5));
        for (user, [from_client, to_peers, from_peers, to_client]) in due {
            let stop = stops.iter().find(|stop| stop["user"] == user).unwrap();
            let found = ["bytes_from_client", "bytes_to_peers", "bytes_from_peers", "bytes_to_client"];
            assert_eq!(found.map(|field| stop[field].as_u64().unwrap()), [from_client, to_peers, from_peers, to_client], "{user}");
        }
        let sums = ["bytes_from_client", "bytes_to_peers", "bytes_from_peers"].map(|field| sum(&stops, field));
        assert_eq!(sums, before_stop, "the records add up to the metrics");
        // What waited at the end is in neither: the metrics don't count it as sent, and the stop gave it up.
        assert_eq!(sum(&stops, "bytes_to_client"), sent_to_clients);
        let last = stops.iter().find(|stop| stop["user"] == "last").unwrap();
        assert!(last["dropped"]["stream_closed"]["bytes"].as_u64().unwrap() > 0);

        let report = report_json(server.directory());
        assert_eq!(report["total"]["bytes_to_client"], sum(&stops, "bytes_to_client"));
        assert_eq!((&report["unfinished"], &report["total"]["sessions"]), (&Value::from(0), &Value::from(5)));
        assert_eq!(report["gaps"], Value::Array(vec![]));
    }
}

/// What remains after kill -9 adds up, and lacks no more than came after the last interim.
#[test]
fn a_kill_loses_no_more_than_one_interval() {
    let server = with_file(3).account("interval", "1s").start();
    let mut client = Client::udp(server.udp4()).minted("north-of-everything", "carol");
    let relayed = client.allocate();
    let far = peer(relayed);
    client.bind(CHANNEL, far.local_addr().unwrap());
    let mut sent = 0;
    let mut send = |bytes: usize| {
        client.send_channel(CHANNEL, &payload(1, bytes));
        assert_eq!(receive(&far).0.len(), bytes);
        sent += bytes as u64;
        sent
    };
    let by_then = send(1000);
    let path = file_of(&server);
    let interims = || of_kind(&records(&path), "interim").into_iter().cloned().collect::<Vec<_>>();
    wait_for("an interim that counts it", || {
        interims().last().filter(|last| last["bytes_to_peers"] == by_then).map(|_| ())
    });
    let late = send(500);
    server.signal("KILL");
    let directory = server.into_directory();
    let all = records(&directory.path().join("usage.jsonl"));
    all.iter().for_each(check);
    assert!(of_kind(&all, "stop").is_empty());
    let report = report_json(directory.path());
    let counted = report["total"]["bytes_to_peers"].as_u64().unwrap();
    assert!(counted == by_then || counted == late, "{counted}");
    assert_eq!((&report["unfinished"], &report["rows"][0]["user"]), (&Value::from(1), &Value::from("carol")));
    let seqs: Vec<u64> = all.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (0..all.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_webhook_gets_every_record_at_least_once_whatever_it_answers_first() {
    let hook = Hook::start(&["HTTP/1.1 500 Oh\r\n\r\n", "nonsense\r\n"]);
    let directory = e2e::Directory::new();
    fs::write(directory.path().join("token"), "let-me-in\n").unwrap();
    let settings =
        with_file(1).account("webhook", &*hook.url).account("webhook_token_file", "token").account("spool", "spool");
    let mut server = Server::start_in(directory, settings);
    let mut client = Client::udp(server.udp4());
    client.allocate();
    client.refresh(0);
    wait_for("an empty spool", || {
        let scrape = server.scrape();
        let delivered = scrape.value("throughway_accounting_records_total", &[("sink", "webhook")]);
        (delivered == 2 && scrape.sum("throughway_accounting_spool_records") == 0).then_some(())
    });
    let scrape = server.scrape();
    assert_eq!(scrape.sum("throughway_accounting_webhook_failures_total"), 2);
    assert_eq!(scrape.sum("throughway_accounting_lost_total"), 0);
    client.allocate();
    server.signal("TERM");
    assert!(server.wait().success());
    let written = fs::read_to_string(file_of(&server)).unwrap();
    let heard = hook.lines();
    assert_eq!(written.lines().count(), 4);
    assert!(heard.len() > 4, "the refused ones came again");
    for line in written.lines() {
        assert!(heard.iter().any(|heard| heard == line), "{line}");
    }
    assert!(hook.tokens.lock().unwrap().iter().all(|token| token == "Bearer let-me-in"));
    fs::write(server.directory().join("heard.jsonl"), heard.join("\n")).unwrap();
    let (code, out, err) = report(&["--csv", "--by", "user", "heard.jsonl", "usage.jsonl"], server.directory());
    assert_eq!((code, out.lines().nth(1)), (0, Some("alice,2,0,0,0,0,0,0")), "{err}");
    assert!(err.contains("duplicate records were counted once"), "{err}");
}

/// A webhook over TLS that answers 204, and what it was sent.
fn https_hook(authority: &Authority) -> (String, Arc<Mutex<Vec<String>>>) {
    let (certificate, key) = authority.write("hook", &["localhost"]);
    let config = rustls::ServerConfig::builder_with_provider(throughway::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/usage", listener.local_addr().unwrap().port());
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let lines = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut reader = BufReader::new(rustls::StreamOwned::new(connection, stream.unwrap()));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
            let Some(len) = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")) else { continue };
            let mut body = vec![0; len.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            lines.lock().unwrap().extend(String::from_utf8(body).unwrap().lines().map(ToOwned::to_owned));
            let _ = reader.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    (url, heard)
}

#[test]
fn an_https_webhook_is_trusted_by_the_file_of_its_authority_and_not_without() {
    let authority = Authority::new();
    let (url, heard) = https_hook(&authority);
    let directory = e2e::Directory::new();
    fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    let settings = Settings::new(1).account("webhook", &*url).account("spool", "spool");
    let mut server = Server::start_in(directory, settings.clone());
    let mut client = Client::udp(server.udp4());
    client.allocate();
    client.refresh(0);
    let said = server.log.wait_for_line("the webhook does not accept usage records");
    assert!(said.contains("UnknownIssuer"), "{said}");
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(heard.lock().unwrap().is_empty(), "who is not trusted gets nothing");
    let server = Server::start_in(server.into_directory(), settings.account("webhook_ca_file", "ca.pem"));
    wait_for("the records of the process before", || (heard.lock().unwrap().len() == 2).then_some(()));
    wait_for("an empty spool", || (server.scrape().sum("throughway_accounting_spool_records") == 0).then_some(()));
}

#[test]
fn a_webhook_that_accepts_and_never_answers_holds_up_nothing_else() {
    // Its backlog takes connections, which are never read.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/usage", hanging.local_addr().unwrap());
    let mut server = with_file(1).account("webhook", url).account("spool", "spool").start();
    for round in 1..=3 {
        let mut client = Client::udp(server.udp4());
        let peer = peer(client.allocate());
        client.permit(peer.local_addr().unwrap());
        client.send_to(peer.local_addr().unwrap(), b"on its way");
        assert_eq!(receive(&peer).0, b"on its way");
        client.refresh(0);
        wait_for("the file and the spool to have both records", || {
            let scrape = server.scrape();
            let written = scrape.value("throughway_accounting_records_total", &[("sink", "file")]);
            let waiting = scrape.sum("throughway_accounting_spool_records");
            (written == 2 * round && waiting == 2 * round).then_some(())
        });
    }
    let stopped = std::time::Instant::now();
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(stopped.elapsed() < Duration::from_secs(8), "the stop does not wait for it either");
    server.log.wait_for_line("usage records wait in accounting.spool");
}

#[test]
fn an_unreachable_webhook_keeps_its_records_over_a_restart() {
    // A port without a listener: it was ours a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = |url: String| Settings::new(1).account("webhook", url).account("spool", "spool");
    let mut server = settings(format!("http://{free}/usage")).start();
    let mut client = Client::udp(server.udp4());
    client.allocate();
    client.refresh(0);
    server.log.wait_for_line("the webhook does not accept usage records");
    wait_for("a backlog", || (server.scrape().sum("throughway_accounting_spool_records") == 2).then_some(()));
    server.signal("TERM");
    assert!(server.wait().success());
    server.log.wait_for_line("usage records wait in accounting.spool");
    let hook = Hook::start(&[]);
    let server = Server::start_in(server.into_directory(), settings(hook.url.clone()));
    wait_for("the records of the process before", || (hook.lines().len() == 2).then_some(()));
    wait_for("an empty spool", || (server.scrape().sum("throughway_accounting_spool_records") == 0).then_some(()));
}

#[test]
fn signed_lines_go_on_over_a_restart_and_a_change_is_named() {
    let directory = e2e::Directory::new();
    fs::write(directory.path().join("key"), "signing-key-of-everything\n").unwrap();
    let settings = || with_file(1).account("sign_key_file", "key");
    let session = |directory| {
        let mut server = Server::start_in(directory, settings());
        let mut client = Client::udp(server.udp4());
        client.allocate();
        server.signal("TERM");
        assert!(server.wait().success());
        server.into_directory()
    };
    let directory = session(session(directory));
    let path = directory.path().join("usage.jsonl");
    let (code, out, err) = report(&["--key-file", "key", "usage.jsonl"], directory.path());
    assert_eq!((code, &*err), (0, ""), "{out}");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 4);
    fs::write(&path, text.replacen("\"user\":\"alice\"", "\"user\":\"mallo\"", 1)).unwrap();
    let (code, _, err) = report(&["--key-file", "key", "usage.jsonl"], directory.path());
    assert!(code == 1 && err.contains("usage.jsonl:1: its signature is wrong"), "{code} {err}");
    let without_second: Vec<&str> = text.lines().enumerate().filter(|(at, _)| *at != 1).map(|(_, line)| line).collect();
    fs::write(&path, without_second.join("\n")).unwrap();
    let (code, _, err) = report(&["--key-file", "key", "usage.jsonl"], directory.path());
    assert!(code == 1 && err.contains("usage.jsonl:2: does not follow the line before"), "{code} {err}");
}

#[test]
fn a_full_disk_stops_no_call_and_is_loud() {
    let mut server = Settings::new(1).account("file", "/dev/full").start();
    let mut client = Client::udp(server.udp4());
    let relayed = client.allocate();
    let far = peer(relayed);
    client.bind(CHANNEL, far.local_addr().unwrap());
    let line = server.log.wait_for_line("can't write usage records; calls go on");
    assert!(line.contains("No space left"), "{line}");
    client.send_channel(CHANNEL, b"still relayed");
    assert_eq!(receive(&far).0, b"still relayed");
    assert_eq!(server.scrape().value("throughway_accounting_records_total", &[("sink", "file")]), 0);
    server.signal("TERM");
    assert!(server.wait().success());
    let line = server.log.wait_for_line("usage records are lost");
    assert!(line.contains("\"records\":2"), "{line}");
}

#[test]
fn a_file_renamed_by_another_program_is_left_after_a_reload() {
    let mut server = with_file(1).start();
    let path = file_of(&server);
    let mut client = Client::udp(server.udp4());
    client.allocate();
    wait_for("the start", || (records(&path).len() == 1).then_some(()));
    fs::rename(&path, path.with_extension("old")).unwrap();
    let settings = server.settings.clone();
    server.reload(settings);
    wait_for("a new file", || path.exists().then_some(()));
    client.refresh(0);
    wait_for("the stop", || (records(&path).len() == 1).then_some(()));
    assert_eq!(records(&path)[0]["type"], "stop");
    assert_eq!(records(&path.with_extension("old"))[0]["type"], "start");
}

#[test]
fn the_journal_gets_each_record_as_a_message() {
    let directory = e2e::Directory::new();
    let journal = std::os::unix::net::UnixDatagram::bind(directory.path().join("journal")).unwrap();
    journal.set_read_timeout(Some(e2e::PATIENCE)).unwrap();
    let server = Server::start_in(directory, Settings::new(1).account("journal", "journal"));
    let mut client = Client::udp(server.udp4());
    client.allocate();
    client.refresh(0);
    for kind in ["start", "stop"] {
        let mut buffer = [0; 4096];
        let len = journal.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..len]).unwrap();
        let message = text.lines().find_map(|line| line.strip_prefix("MESSAGE=")).unwrap();
        let record: Value = serde_json::from_str(message).unwrap();
        assert_eq!((record["type"].as_str(), record["user"].as_str()), (Some(kind), Some("alice")));
        check(&record);
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named_at_the_start() {
    let directory = e2e::Directory::new();
    let config = directory.path().join("config.toml");
    let settings = Settings::new(1).account("file", "missing/usage.jsonl");
    fs::write(&config, settings.text(&(28_500..=28_510))).unwrap();
    let (code, said) = e2e::server::run_to_end(&config);
    assert!(code == 1 && said.contains("accounting.file") && said.contains("missing/usage.jsonl"), "{code} {said}");
}
