//! Limits of a named user or tenant, set on the real binary while it runs: who follows, who is refused, and what survives.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use test_support::e2e::operator::{get, post, start, start_in};
use test_support::e2e::server::{Directory, Slice, child_of, run_to_end};
use test_support::e2e::upgrade::{Upgradable, replace_program};
use test_support::e2e::{Client, Server, Settings, Wanted, payload, peer, receive, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::METHOD_ALLOCATE;

const SECRET: &str = "north-of-everything";
const CHANNEL: u16 = 0x4001;

/// Ten seconds' worth of 1 kbit/s. What is larger than the burst, which is a second's worth, passes a full bucket and no other.
const TOO_MUCH: usize = 1_200;

/// A packet of this client passes, whatever is still on its way from before.
fn passes(client: &mut Client, far: &UdpSocket) {
    let mark = payload(2, TOO_MUCH);
    client.send_channel(CHANNEL, &mark);
    while receive(far).0 != mark {}
}

/// Packets of this client are over its bandwidth: of two at once at least the second does not pass.
fn is_over_bandwidth(server: &Server, client: &mut Client) {
    let dropped = || server.dropped("over_bandwidth");
    let before = dropped();
    for _ in 0..2 {
        client.send_channel(CHANNEL, &payload(1, TOO_MUCH));
    }
    wait_for("a packet over the bandwidth", || (dropped() > before).then_some(()));
}

fn settings(workers: u8) -> Settings {
    Settings::new(workers).limit("file", "\"limits\"")
}

fn minted(server: &Server, worker: u8, workers: u8, user: &str) -> Client {
    Client::udp_on_worker(server.udp4(), worker % workers, workers).minted(SECRET, user)
}

/// The code of an Allocate; 0 means that it was let in.
fn allocate_code(client: &mut Client) -> u16 {
    client.request(METHOD_ALLOCATE, &[Wanted::udp()]).code()
}

/// A command of ours against a server; its configuration tells the token.
fn command(server: &Server, arguments: &[&str]) -> (i32, String, String) {
    let config = server.directory().join("config.toml");
    let url = format!("http://{}", server.http());
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
    command.args(arguments).args(["--url", &url, "--config"]).arg(config).env_clear();
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn run(server: &Server, arguments: &[&str]) -> String {
    let (code, out, err) = command(server, arguments);
    assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}: {out}");
    out
}

fn set_count(server: &Server) -> u64 {
    server.scrape().value("throughway_limits_set", &[])
}

with_one_and_three_workers! {
    /// A session that lives follows at once, nobody is ended, newcomers are refused; a reload, a kill and a restart change
    /// nothing, and what is unset is over at once.
    fn limits_are_followed_kept_and_unset(workers: u8) {
        let mut server = start(settings(workers));
        let mut carol: Vec<Client> = (0..3).map(|number| minted(&server, number, workers, "carol")).collect();
        let far = peer(server.udp4());
        for client in &mut carol {
            client.allocate();
            client.bind(CHANNEL, far.local_addr().unwrap());
        }
        let mut dave = minted(&server, 1, workers, "dave");
        dave.allocate();
        dave.bind(CHANNEL, far.local_addr().unwrap());
        carol.iter_mut().for_each(|client| passes(client, &far));
        let out = run(&server, &["limits", "set", "--user", "carol", "--allocations", "2", "--bandwidth", "1kbit/s"]);
        assert!(out.contains("allocations 2, bandwidth 1kbit/s") && out.contains("follow: 3"), "{out}");
        for client in &mut carol {
            is_over_bandwidth(&server, client);
            assert_eq!(client.refresh(600).code(), 0, "nobody is ended");
        }
        passes(&mut dave, &far);
        let refused = |server: &Server| {
            let mut fourth = minted(server, 2, workers, "carol");
            let code = server.expect_refused("quota_user", 1, || allocate_code(&mut fourth));
            assert_eq!(code, 486);
        };
        refused(&server);
        let remedy = wait_for("the refusal", || {
            let newest = get(&server, "/v1/refusals?of=carol")["refusals"][0].clone();
            (newest["reason"] == "quota_user").then(|| newest["remedy"].as_str().unwrap().to_owned())
        });
        assert!(remedy.contains("a limit set at run time stands for this user"), "{remedy}");
        assert_eq!((post(&server, "/v1/reload", json!({})).status, set_count(&server)), (200, 1));
        refused(&server);
        is_over_bandwidth(&server, &mut carol[0]);
        server.signal("KILL");
        server.wait();

        let server = start_in(server.into_directory(), settings(workers));
        assert_eq!(set_count(&server), 1);
        let shown = run(&server, &["limits", "show", "--user", "carol"]);
        assert!(shown.contains("carol") && shown.contains("1kbit/s") && !shown.contains("memory only"), "{shown}");
        let far = peer(server.udp4());
        let mut carol: Vec<Client> = (0..3).map(|number| minted(&server, number, workers, "carol")).collect();
        carol[0].allocate();
        carol[1].allocate();
        carol[0].bind(CHANNEL, far.local_addr().unwrap());
        server.expect_refused("quota_user", 1, || assert_eq!(allocate_code(&mut carol[2]), 486));
        is_over_bandwidth(&server, &mut carol[0]);
        // One limit, then the other.
        let out = run(&server, &["limits", "unset", "--user", "carol", "--bandwidth"]);
        assert!(out.contains("now allocations 2;") && out.contains("follow: 2"), "{out}");
        passes(&mut carol[0], &far);
        assert_eq!(allocate_code(&mut carol[2]), 486);
        assert!(run(&server, &["limits", "unset", "--user", "carol"]).contains("the configured limits hold"));
        assert_eq!((allocate_code(&mut carol[2]), set_count(&server)), (0, 0));
        let (code, _, err) = command(&server, &["limits", "unset", "--user", "carol"]);
        assert!(code == 1 && err.contains("no such limit is set"), "{code} {err}");
        assert_eq!(fs::read_to_string(server.directory().join("limits")).unwrap(), "throughway limits 1\n");
    }

    /// They go along at an upgrade, also without a file, and the new process can unset them.
    fn limits_go_along_at_an_upgrade(workers: u8) {
        let mut own = Upgradable::start(Settings::new(workers));
        let far = peer(own.server.udp4());
        let mut gina = [0, 1, 2].map(|number| minted(&own.server, number, workers, "gina"));
        gina[0].allocate();
        gina[0].bind(CHANNEL, far.local_addr().unwrap());
        gina[1].allocate();
        let (code, out, err) = own.run(&["limits", "set", "--user", "gina", "--allocations", "2", "--bandwidth", "1kbit/s"]);
        assert!(code == 0 && out.contains("kept in memory only"), "{out}{err}");
        own.upgrade();
        assert_eq!((allocate_code(&mut gina[2]), set_count(&own.server)), (486, 1));
        is_over_bandwidth(&own.server, &mut gina[0]);
        let (code, out, err) = own.run(&["limits", "unset", "--user", "gina"]);
        assert!(code == 0 && out.contains("follow: 2"), "{out}{err}");
        passes(&mut gina[0], &far);
        assert_eq!(allocate_code(&mut gina[2]), 0);
        // What was unset stays so.
        replace_program(own.server.directory());
        own.begin();
        own.follow();
        assert_eq!(set_count(&own.server), 0);
    }
}

#[test]
fn limits_hold_after_a_supervised_server_was_killed() {
    let server = start(Settings { supervise: true, ..settings(1) });
    let far = peer(server.udp4());
    let mut carol = minted(&server, 0, 1, "carol");
    carol.allocate();
    carol.bind(CHANNEL, far.local_addr().unwrap());
    run(&server, &["limits", "set", "--user", "carol", "--allocations", "1", "--bandwidth", "1kbit/s"]);
    kill_process(child_of(server.pid()), Signal::KILL).unwrap();
    wait_for("the next process to serve", || (server.log.events("ready").len() == 2).then_some(()));
    assert_eq!((set_count(&server), allocate_code(&mut minted(&server, 0, 1, "carol"))), (1, 486));
    is_over_bandwidth(&server, &mut carol);
}

#[test]
fn a_tenant_is_limited_as_a_whole_and_its_user_apart_from_one_of_the_same_name() {
    let mut settings = settings(1);
    settings.tables =
        "[[auth.secrets]]\nid = \"acme\"\nvalue = \"south-of-everything\"\ntenant = \"acme\"\n".to_owned();
    let server = start(settings);
    let of_acme = |user: &str| Client::udp(server.udp4()).minted("south-of-everything", user);
    run(&server, &["limits", "set", "--tenant", "acme", "--allocations", "2"]);
    run(&server, &["limits", "set", "--user", "bob", "--tenant", "acme", "--allocations", "1"]);
    let mut clients = [of_acme("bob"), minted(&server, 0, 1, "bob"), minted(&server, 0, 1, "bob"), of_acme("eve")];
    for client in &mut clients {
        client.allocate();
    }
    server.expect_refused("quota_tenant", 1, || assert_eq!(allocate_code(&mut of_acme("eve")), 486));
    assert_eq!(clients[3].refresh(0).code(), 0);
    server.expect_refused("quota_user", 1, || assert_eq!(allocate_code(&mut of_acme("bob")), 486));
    // The credential that is told of has no limits of its own here, so the tenant's number is all there is.
    run(&server, &["limits", "set", "--tenant", "acme", "--allocations", "none"]);
    let all = get(&server, "/v1/limits?tenant=acme");
    assert_eq!((&all["limits"][0]["user"], &all["limits"][0]["allocations"]), (&json!("bob"), &json!(1)));
    assert_eq!((&all["limits"][1]["tenant"], &all["limits"][1]["allocations"]), (&json!("acme"), &json!("none")));
    assert_eq!(get(&server, "/v1/limits?user=eve")["limits"], json!([]));
}

#[test]
fn bad_input_is_named_and_odd_names_are_names() {
    let server = start(settings(1));
    let refused = |path: &str, body: Value, part: &str| {
        let answer = post(&server, path, body.clone());
        assert_eq!((answer.status, answer.json()["reason"].as_str()), (400, Some("bad_request")), "{body} {answer:?}");
        assert!(answer.json()["error"].as_str().unwrap().contains(part), "{body} {answer:?}");
    };
    let longest = "x".repeat(508);
    for (name, part) in [("a\u{0}b", "control"), ("a\r\nb", "control"), ("", "empty"), (&format!("{longest}x"), "508")]
    {
        refused("/v1/limits/set", json!({ "user": name, "allocations": 1 }), part);
        refused("/v1/limits/unset", json!({ "user": name }), part);
    }
    for (body, part) in [
        (json!({ "user": "a" }), "name a limit"),
        (json!({ "allocations": 1 }), "name a user or a tenant"),
        (json!({ "user": "a", "allocations": 0 }), "greater than 0"),
        (json!({ "user": "a", "allocations": 4_294_967_296_u64 }), "at most 4294967295"),
        (json!({ "user": "a", "bandwidth": "2Mb" }), "a rate is a whole number"),
        (json!({ "user": "a", "bandwidth": 1.5 }), "bandwidth: 1.5"),
        (json!({ "user": "a", "bytes": 1 }), "unknown field `bytes`"),
        (json!({ "tenant": "t", "bytes_per_day": 1 }), "a tenant has no such limit"),
        (json!({ "credential": "9:a", "allocations": 1 }), "unknown field `credential`"),
    ] {
        refused("/v1/limits/set", body, part);
    }
    refused("/v1/limits/unset", json!({ "user": "a", "limits": ["bytes"] }), "known are allocations");
    let (code, _, err) = command(&server, &["limits", "set", "--user", "a", "--bandwidth", "2Mb"]);
    assert!(code == 2 && err.contains("--bandwidth \"2Mb\"") && err.contains("3Mbit/s"), "{code} {err}");
    let (code, _, err) = command(&server, &["limits", "set", "--allocations", "1"]);
    assert!(code == 2 && err.contains("name --user or --tenant"), "{code} {err}");
    assert!(run(&server, &["limits", "show"]).contains("no limit is set"));
    for name in ["%s%n", longest.as_str(), "ü \u{202e}\"\\"] {
        assert_eq!(post(&server, "/v1/limits/set", json!({ "user": name, "allocations": 1 })).status, 200, "{name}");
    }
    let mut first = minted(&server, 0, 1, "%s%n");
    first.allocate();
    assert_eq!(allocate_code(&mut minted(&server, 0, 1, "%s%n")), 486);
    let users = |server: &Server| -> Vec<String> {
        let all = get(server, "/v1/limits")["limits"].as_array().unwrap().clone();
        all.iter().map(|entry| entry["user"].as_str().unwrap().to_owned()).collect()
    };
    let before = users(&server);
    let shown = run(&server, &["limits", "show"]);
    assert!(before.len() == 3 && !shown.contains('\u{202e}') && shown.contains("%s%n"), "{shown}");
    let server = start_in(server.into_directory(), settings(1));
    assert_eq!(users(&server), before, "they come back as they were");
}

#[test]
fn what_can_not_be_written_is_told_and_a_damaged_file_refuses_the_start() {
    let server = start(settings(1));
    // The name that is written first is taken.
    fs::create_dir(server.directory().join("limits.new")).unwrap();
    let (code, _, err) = command(&server, &["limits", "set", "--user", "carol", "--allocations", "1"]);
    assert!(code == 1 && err.contains("it is in effect, but can't be written to"), "{code} {err}");
    assert_eq!(server.scrape().value("throughway_limit_write_failures_total", &[]), 1);
    let mut first = minted(&server, 0, 1, "carol");
    first.allocate();
    assert_eq!(allocate_code(&mut minted(&server, 0, 1, "carol")), 486);
    // With the next change that can be written the other is kept as well.
    fs::remove_dir(server.directory().join("limits.new")).unwrap();
    run(&server, &["limits", "set", "--tenant", "acme", "--packet-rate", "500"]);
    let text = fs::read_to_string(server.directory().join("limits")).unwrap();
    assert!(text.contains("carol") && text.contains("\"packet_rate\":500"), "{text}");

    let (slice, directory) = (Slice::take(), Directory::new());
    let config = directory.path().join("config.toml");
    fs::write(&config, settings(1).text(&slice.range)).unwrap();
    let file = directory.path().join("limits");
    fs::write(&file, format!("{text}{{\"issued\":9")).unwrap();
    let (code, said) = run_to_end(&config);
    for part in ["limits.file", &format!("{}:4:", file.display()), "correct or remove that line"] {
        assert!(code == 1 && said.contains(part), "{code} {said}\nlacks {part}");
    }
    assert!(!said.contains("listening"), "no client may come in before: {said}");
}
