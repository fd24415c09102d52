//! Who asks for an upgrade of the real binary and what they hear, what else is asked meanwhile, programs that are no server, and
//! processes that come by themselves.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use test_support::api;
use test_support::api::{Answer, ask};
use test_support::e2e;
use test_support::e2e::server::{Directory, binary};
use test_support::e2e::tls::Authority;
use test_support::e2e::upgrade::{
    CONFIRMED, REFUSED, ROLLED_BACK, Upgradable, program, replace_by_script, replace_program, said,
};
use test_support::e2e::{Client, Origin, PATIENCE, Server, Settings, Wanted, Witness, http, peer, wait_for};
use test_support::with_one_and_three_workers;
use throughway::net::handoff::{Channel, SuccessorSocket};
use throughway::wire::message::METHOD_ALLOCATE;

const AUTHORIZED: (&str, &str) = ("Authorization", "Bearer 0123456789abcdef-of-the-operator");
const JSON: (&str, &str) = ("Content-Type", "application/json");
const HOST: (&str, &str) = ("Host", "localhost");

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn post(server: &Server, target: &str, body: &Value) -> Answer {
    ask(server.http(), "POST", target, &[HOST, AUTHORIZED, JSON], &body.to_string())
}

fn upgrades(server: &Server, result: &str) -> u64 {
    server.scrape().value("throughway_upgrades_total", &[("result", result)])
}

fn allocate_code(mut client: Client) -> u16 {
    client.request(METHOD_ALLOCATE, &[Wanted::udp()]).code()
}

// ---- the command and the call ----

with_one_and_three_workers! {
    fn the_command_and_the_call_tell_what_became_of_it(workers: u8) {
        let mut own = Upgradable::start(Settings::new(workers));
        let calls = [Witness::start(Client::udp(own.server.udp4())), Witness::start(Client::tcp(own.server.tcp4()))];
        let pid = own.server.pid();
        // Whether it is possible.
        let (code, out, err) = own.run(&["upgrade", "--check"]);
        assert_eq!((code, &*out, &*err), (0, &*format!("an upgrade from {VERSION} to {VERSION} is possible\n"), ""));
        let (code, out, _) = own.run(&["upgrade", "--check", "--json"]);
        let answer: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &answer["result"], &answer["allocations"]), (0, &json!("checked"), &Value::Null), "{out}");
        let answer = post(&own.server, "/v1/upgrade", &json!({ "check": true }));
        assert_eq!((answer.status, &answer.json()["result"]), (200, &json!("checked")));
        assert_eq!((upgrades(&own.server, "checked"), own.server.scrape().sum("throughway_generation")), (3, 1));
        assert_eq!(own.server.pid(), pid);
        assert!(own.server.log.events("upgrading").is_empty() && own.server.is_running());
        // Two at once, of which the first fails in the end.
        replace_by_script(own.server.directory(), "touch \"$0.begun\"; sleep 1; exit 7");
        let first = own.spawn(&["upgrade"]);
        let begun = own.server.directory().join("throughway.begun");
        wait_for("the first program", || begun.exists().then_some(()));
        let (code, out, err) = own.run(&["upgrade"]);
        assert!(code == 1 && out.is_empty() && err.contains("an upgrade is already under way"), "{code} {out} {err}");
        let (code, out, _) = own.run(&["upgrade", "--json"]);
        let answer: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &answer["result"], &answer["is_configuration"]), (1, &json!("refused"), &json!(false)), "{out}");
        let (code, out, err) = said(first.wait_with_output().unwrap());
        assert!(code == 1 && out.is_empty(), "{code} {out} {err}");
        for part in ["no upgrade (start): the new process ended (exit status: 7)", "continues to serve"] {
            assert!(err.contains(part), "{err}");
        }
        assert_eq!(upgrades(&own.server, "refused"), 1, "of one that did not begin nothing is counted");
        calls.iter().for_each(Witness::see_progress);
        // And done.
        replace_program(own.server.directory());
        let child = own.spawn(&["upgrade"]);
        let (code, out, err) = said(child.wait_with_output().unwrap());
        assert_eq!((code, &*err), (0, ""));
        let said = format!("upgraded from {VERSION} to {VERSION}\n  2 sessions and 1 TCP or TLS connection moved\n  packets waited for ");
        assert!(out.starts_with(&said), "{out}");
        own.follow();
        let child = own.spawn(&["upgrade", "--json"]);
        let output = child.wait_with_output().unwrap();
        own.follow();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["result"], &answer["allocations"], &answer["streams"]), (&json!("confirmed"), &json!(2), &json!(1)));
        assert!(answer["gap_us"].as_u64().unwrap() > 0, "{answer}");
        let scrape = own.server.scrape();
        assert_eq!(scrape.sum("throughway_generation"), 3);
        assert_eq!((upgrades(&own.server, "confirmed"), upgrades(&own.server, "checked")), (2, 3));
        calls.into_iter().for_each(|call| drop(call.finish()));
    }

    /// What is asked on probation: it is answered 503, or done by the process that serves in the end.
    fn what_is_asked_on_probation_is_done_once(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.tables = "[upgrade]\non_reload = false\n".to_owned();
        let mut own = Upgradable::start(settings);
        let calls = [Witness::start(Client::udp(own.server.udp4())), Witness::start(Client::tcp(own.server.tcp4()))];
        let child = own.spawn(&["upgrade"]);
        own.wait_for_probation();
        for (target, body) in [
            ("/v1/kick", json!({ "user": "alice" })),
            ("/v1/revoke", json!({ "user": "alice" })),
            ("/v1/drain", json!({})),
            ("/v1/reload", json!({})),
            ("/v1/upgrade", json!({})),
        ] {
            let answer = post(&own.server, target, &body);
            assert_eq!((answer.status, &answer.json()["reason"]), (503, &json!("busy")), "{target}: {answer:?}");
        }
        let sessions = ask(own.server.http(), "GET", "/v1/sessions", &[HOST, AUTHORIZED], "");
        assert_eq!(sessions.status, 503);
        assert_eq!(ask(own.server.http(), "GET", "/v1/status", &[HOST, AUTHORIZED], "").status, 200);
        assert_eq!((own.server.health("/readyz"), own.server.health("/healthz")), (200, 200));
        // A configuration that the new process can't have read, and a signal for it.
        let mut next = own.server.settings.clone();
        next.users.push(("carol", "cat"));
        own.write(next);
        own.server.signal("HUP");
        assert_eq!(said(child.wait_with_output().unwrap()).0, 0);
        own.follow();
        let line = own.server.log.event("reload: changes applied");
        assert_eq!(line["changed"], "auth.users: added \"carol\"");
        assert_eq!(allocate_code(Client::udp(own.server.udp4()).user("carol", "cat")), 0);
        calls.into_iter().for_each(|call| drop(call.finish()));
    }

    /// SIGHUP on probation is no second upgrade, though the file of the old process is another one all the time.
    fn a_reload_that_is_asked_for_on_probation_is_done_by_the_new_process(workers: u8) {
        let mut own = Upgradable::start(Settings::new(workers));
        e2e::upgrade::replace_program(own.server.directory());
        own.begin();
        own.wait_for_probation();
        let mut next = own.server.settings.clone();
        next.users.push(("carol", "cat"));
        own.write(next);
        own.server.signal("HUP");
        own.follow();
        assert_eq!(own.server.log.event("reload: changes applied")["changed"], "auth.users: added \"carol\"");
        assert_eq!(allocate_code(Client::udp(own.server.udp4()).user("carol", "cat")), 0);
    }

    /// A drain goes along, with its beginning; the new process ends when the last session does.
    fn a_draining_server_drains_on(workers: u8) {
        let mut own = Upgradable::start(Settings::new(workers));
        let call = Witness::start(Client::udp(own.server.udp4()));
        let stream = Witness::start(Client::tcp(own.server.tcp4()));
        let answer = post(&own.server, "/v1/drain", &json!({}));
        assert_eq!((answer.status, &answer.json()["sessions"]), (200, &json!(2)));
        std::thread::sleep(Duration::from_millis(1100));
        own.upgrade();
        assert_eq!((own.server.health("/readyz"), own.server.health("/healthz")), (503, 200));
        for worker in 0..workers {
            let late = Client::udp_on_worker(own.server.udp4(), worker, workers).user("bob", "builder");
            assert_eq!(allocate_code(late), 486);
        }
        let answer = post(&own.server, "/v1/drain", &json!({})).json();
        assert_eq!((&answer["was_draining"], &answer["sessions"]), (&json!(true), &json!(2)));
        assert!(answer["ends_in_s"].as_u64().unwrap() <= 3598, "{answer}");
        assert_eq!(stream.finish().0.refresh(0).code(), 0);
        assert!(own.server.is_running());
        assert_eq!(call.finish().0.refresh(0).code(), 0);
        assert_eq!(own.server.wait().code(), Some(0), "{}", own.server.log.text());
        assert_eq!(own.server.log.events("drained: the last allocation has ended").len(), 1);
    }

    /// SIGTERM on probation is for the process that serves in the end: it drains if that is wanted, or ends the calls.
    fn a_signal_to_stop_on_probation_is_passed_on(workers: u8) {
        for drains in [true, false] {
            let mut settings = Settings::new(workers).account("file", "usage.jsonl");
            settings.tables = format!("[drain]\non_term = {drains}\n");
            let mut own = Upgradable::start(settings);
            let call = Witness::start(Client::udp(own.server.udp4()));
            let mut idle = Client::tcp(own.server.tcp4());
            idle.allocate();
            replace_program(own.server.directory());
            own.begin();
            own.wait_for_probation();
            own.server.signal("TERM");
            call.see_progress();
            own.follow();
            if drains {
                own.server.log.event("draining");
                assert_eq!(idle.refresh(0).code(), 0);
                call.see_progress();
                assert_eq!(call.finish().0.refresh(0).code(), 0);
            }
            assert_eq!(own.server.wait().code(), Some(0), "{}", own.server.log.text());
            let due = if drains { "refreshed" } else { "shutdown" };
            let sessions = own.server.log.sessions();
            assert!(sessions.len() == 2 && sessions.iter().all(|session| session["reason"] == due), "{sessions:?}");
            let records = fs::read_to_string(own.server.directory().join("usage.jsonl")).unwrap();
            assert_eq!(records.lines().filter(|line| line.contains("\"stop\"")).count(), 2, "{records}");
        }
    }

    /// SIGTERM while an upgrade is under way that comes to nothing is for the old process: when that is over it drains, if
    /// that is wanted, or ends the calls, in order.
    fn a_signal_to_stop_during_an_upgrade_that_fails_stops_the_old_process(workers: u8) {
        // Without a fault the new process is killed on probation.
        let failures = [("cut=hang", REFUSED), ("ready=hang", ROLLED_BACK), ("", ROLLED_BACK)];
        for ((fault, message), drains) in failures.into_iter().flat_map(|failure| [(failure, true), (failure, false)]) {
            let mut settings = Settings::new(workers).account("file", "usage.jsonl");
            settings.tables = format!("[drain]\non_term = {drains}\n");
            let mut own = Upgradable::start_with(settings, &[("TEST_FAULTS_UPGRADE", fault)]);
            let mut call = Client::udp(own.server.udp4());
            let relayed = call.allocate();
            let mut stream = Client::tcp(own.server.tcp4()).user("bob", "builder");
            stream.allocate();
            replace_program(own.server.directory());
            own.begin();
            let new = own.server.log.event("upgrading")["pid"].as_u64().unwrap();
            if fault.is_empty() { own.wait_for_probation() } else { drop(own.server.log.event("prepared")) }
            own.server.signal("TERM");
            assert!(own.server.log.events(message).is_empty(), "{fault}: the signal came during the upgrade");
            if fault.is_empty() {
                kill_process(Pid::from_raw(new as i32).unwrap(), Signal::KILL).unwrap();
            }
            let end = own.end();
            assert_eq!(end["message"], message, "{fault}: {end}");
            if drains {
                own.server.log.event("draining");
                let scrape = own.server.scrape();
                let closed = ["rolled_back", "not_passed"]
                    .map(|reason| scrape.value("throughway_upgrade_streams_closed_total", &[("reason", reason)]));
                assert_eq!(closed, [u64::from(message == ROLLED_BACK), 0], "{fault}");
                let far = peer(relayed);
                call.permit(far.local_addr().unwrap());
                far.send_to(b"to the end", relayed).unwrap();
                call.expect_data(Origin::Peer(far.local_addr().unwrap()), b"to the end");
                assert_eq!(call.refresh(0).code(), 0, "{fault}");
                if message == REFUSED {
                    assert_eq!(stream.refresh(0).code(), 0, "{fault}");
                }
            }
            assert_eq!(own.server.wait().code(), Some(0), "{fault}: {}", own.server.log.text());
            assert!(!Path::new(&format!("/proc/{new}")).exists(), "{fault}: the new process is not left behind");
            let reasons = |sessions: &[Value], user: &str| -> Vec<Value> {
                sessions.iter().filter(|session| session["user"] == user).map(|session| session["reason"].clone()).collect()
            };
            let text = fs::read_to_string(own.server.directory().join("usage.jsonl")).unwrap();
            let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let stops: Vec<Value> = records.into_iter().filter(|record| record["type"] == "stop").collect();
            let of_call = if drains { "refreshed" } else { "shutdown" };
            let of_stream = if message == ROLLED_BACK { "client_closed" } else { of_call };
            for (user, reason) in [("alice", of_call), ("bob", of_stream)] {
                assert_eq!(reasons(&own.server.log.sessions(), user), [reason], "{fault}, drains: {drains}");
                assert_eq!(reasons(&stops, user), [reason], "{fault}, drains: {drains}: {text}");
            }
        }
    }
}

// ---- programs that are no server ----

/// Asks for an upgrade to what is there, which must be refused for this reason and cost nothing.
#[track_caller]
fn expect_refused(own: &mut Upgradable, calls: &[Witness], step: &str, reason: &str) {
    let before = wait_for("as many descriptors as before", || {
        let now = own.server.descriptors();
        std::thread::sleep(Duration::from_millis(50));
        (own.server.descriptors() == now).then_some(now)
    });
    own.begin();
    let end = own.end();
    assert_eq!((&end["message"], &end["step"]), (&json!(REFUSED), &json!(step)), "{end}");
    assert!(end["reason"].as_str().unwrap().contains(reason), "{end}");
    calls.iter().for_each(Witness::see_progress);
    wait_for("as many descriptors as before", || (own.server.descriptors() == before).then_some(()));
}

#[test]
fn another_program_in_its_place_is_refused_and_costs_nothing() {
    let certificates = Authority::new();
    let mut own = Upgradable::start(certificates.settings(3));
    let calls = [
        Witness::start(Client::udp(own.server.udp4())),
        Witness::start(Client::tcp(own.server.tcp4())),
        Witness::start(certificates.client(own.server.tls4())),
    ];
    let mut many: Vec<Client> = (0..20).map(|worker| Client::udp_on_worker(own.server.udp4(), worker % 3, 3)).collect();
    for client in &mut many {
        client.allocate();
    }
    let directory = own.server.directory().to_owned();
    let real = env!("CARGO_BIN_EXE_throughway");
    replace_by_script(&directory, "exec /bin/true");
    expect_refused(&mut own, &calls, "start", "the new process ended (exit status: 0)");
    let memory = own.server.resident_bytes();
    for (script, step, reason) in [
        ("echo 'throughway 9.9.9'; exit 3".to_owned(), "start", "the new process ended (exit status: 3)"),
        ("exec 0<&-; sleep 0.3".to_owned(), "start", "the new process ended (exit status: 0)"),
        ("echo hello >&0; sleep 600".to_owned(), "start", "can't be read"),
        (format!("ulimit -n 3; exec {real} \"$@\""), "start", "the new process ended"),
        (format!("ulimit -n 20; exec {real} \"$@\""), "prepare", ""),
        (format!("ulimit -n 40; exec {real} \"$@\""), "prepare", "open files"),
    ] {
        replace_by_script(&directory, &script);
        expect_refused(&mut own, &calls, step, reason);
    }
    // One that others could have put there is not even started.
    replace_by_script(&directory, "touch \"$0.begun\"");
    fs::set_permissions(program(&directory), fs::Permissions::from_mode(0o775)).unwrap();
    expect_refused(&mut own, &calls, "start", "can be changed by others: chmod go-w");
    assert!(!directory.join("throughway.begun").exists());
    // One that may not be started.
    replace_by_script(&directory, "");
    fs::set_permissions(program(&directory), fs::Permissions::from_mode(0o644)).unwrap();
    expect_refused(&mut own, &calls, "start", "can't start");
    let grown = own.server.resident_bytes().saturating_sub(memory);
    assert!(grown < 8 << 20, "{grown} bytes more than before");
    assert_eq!(own.server.health("/readyz"), 200);
    own.upgrade();
    calls.into_iter().for_each(|call| drop(call.finish()));
    for client in &mut many {
        assert_eq!(client.refresh(600).code(), 0);
    }
}

/// The file on a disk that is not there any more: the new process could not go on with the records.
#[test]
fn records_that_could_not_go_on_refuse_the_upgrade() {
    let place = Directory::new();
    let (target, link) = (place.path().join("disk"), place.path().join("usage.jsonl"));
    fs::write(&target, "").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let mut own = Upgradable::start(Settings::new(1).account("file", link.to_str().unwrap()));
    fs::remove_file(&target).unwrap();
    e2e::upgrade::replace_program(own.server.directory());
    expect_refused(&mut own, &[], "plan", "which is not there; mount or make that");
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    e2e::upgrade::replace_program(own.server.directory());
    expect_refused(&mut own, &[], "plan", "is a directory; name a file in it");
    fs::remove_dir(&link).unwrap();
    own.upgrade();
    assert!(link.is_file());
}

/// Whatever becomes of it, `--json` prints one document: also when the server dies meanwhile, and when there is none.
#[test]
fn a_command_with_json_prints_json_if_it_fails() {
    let mut own = Upgradable::start(Settings::new(1));
    replace_by_script(own.server.directory(), "touch \"$0.begun\"; exec sleep 30");
    let child = own.spawn(&["upgrade", "--json"]);
    let begun = own.server.directory().join("throughway.begun");
    wait_for("the program", || begun.exists().then_some(()));
    own.server.signal("KILL");
    own.server.wait();
    let check = |(code, out, err): (i32, String, String), expected: i32, part: &str| {
        let answer: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out:?} {err}"));
        assert_eq!((code, &answer["exit_code"]), (expected, &json!(expected)), "{out}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(part) && err.contains(part), "{error} {err}");
    };
    check(said(child.wait_with_output().unwrap()), 1, "no answer from");
    for command in [
        &["upgrade"][..],
        &["upgrade", "--check"],
        &["drain"],
        &["reload"],
        &["log-level", "info"],
        &["sessions"],
        &["sessions", "--refused", "alice"],
        &["kick", "1-1"],
        &["revoke", "--user", "alice"],
        &["revoke", "--list"],
    ] {
        check(own.run(&[command, &["--json"]].concat()), 1, "no answer from");
    }
    check(own.run(&["kick", "--json"]), 2, "kick: name a session");
    let alone =
        |arguments: &[&str]| said(Command::new(env!("CARGO_BIN_EXE_throughway")).args(arguments).output().unwrap());
    check(alone(&["check", "nonsense://", "--json"]), 2, "nonsense");
    check(alone(&["credentials", "mint", "--user", "a", "--config", "/nowhere", "--json"]), 2, "/nowhere");
    check(alone(&["credentials", "verify", "a", "b", "--config", "/nowhere", "--json"]), 2, "/nowhere");
    check(alone(&["import-coturn", "/nowhere", "--json"]), 2, "/nowhere");
    check(alone(&["import-eturnal", "/nowhere", "--json"]), 2, "/nowhere");
    check(alone(&["usage", "report", "--key-file", "/nowhere", "--json", "/nowhere"]), 1, "/nowhere");
}

/// As [`Upgradable::end`], with the time that the server waits for a first word.
fn end_of_silence(own: &Upgradable, count: usize) -> Value {
    let until = Instant::now() + 3 * PATIENCE;
    while own.server.log.events(REFUSED).len() < count {
        assert!(Instant::now() < until, "in vain waited for the end of the attempt");
        std::thread::sleep(Duration::from_millis(20));
    }
    own.server.log.events(REFUSED).pop().unwrap()
}

/// What a new process opens only when it has taken over is looked at before.
#[test]
fn a_place_that_can_not_be_written_is_found_before_the_cut() {
    for (tables, accounting, key) in [
        ("[upgrade]\n", Some("gone/usage.jsonl"), "accounting.file: can't write "),
        ("[upgrade]\nsocket = \"DIRECTORY/gone/upgrade.sock\"\n", None, "upgrade.socket: can't write in "),
    ] {
        let mut own = Upgradable::start(Settings::new(1));
        let calls = [Witness::start(Client::udp(own.server.udp4()))];
        let mut next = own.server.settings.clone();
        let directory = own.server.directory().display().to_string();
        next.tables = next.tables.replace("[upgrade]\n", &tables.replace("DIRECTORY", &directory));
        if let Some(file) = accounting {
            next = next.account("file", file);
        }
        own.write(next);
        e2e::upgrade::replace_program(own.server.directory());
        expect_refused(&mut own, &calls, "plan", key);
        let (code, _, error) = own.run(&["upgrade", "--check"]);
        assert!(code != 0 && error.contains(key) && error.contains("server's user"), "{code} {error}");
    }
}

#[test]
fn a_program_that_says_nothing_is_given_up_after_ten_seconds() {
    let mut own = Upgradable::start(Settings::new(1));
    let call = Witness::start(Client::tcp(own.server.tcp4()));
    replace_by_script(own.server.directory(), "echo $$ > \"$0.pid\"; exec sleep 600");
    let began_at = Instant::now();
    own.begin();
    let end = end_of_silence(&own, 1);
    assert!((9..20).contains(&began_at.elapsed().as_secs()), "{:?}", began_at.elapsed());
    assert!(end["reason"].as_str().unwrap().contains("did not answer within 10s"), "{end}");
    let pid = fs::read_to_string(own.server.directory().join("throughway.pid")).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "it is not left behind");
    drop(call.finish());
}

// ---- processes that come by themselves ----

#[test]
fn a_process_that_connects_takes_over_and_strangers_do_not() {
    let directory = Directory::new();
    let socket = directory.path().join("upgrade.sock");
    let mut settings = Settings::new(3);
    settings.tables = format!("[upgrade]\nsocket = {:?}\n", socket.to_str().unwrap());
    let mut own = Upgradable::start_in(directory, settings, &[]);
    let calls = [
        Witness::start(Client::udp_on_worker(own.server.udp4(), 0, 3)),
        Witness::start(Client::udp_on_worker(own.server.udp4(), 2, 3)),
        Witness::start(Client::tcp(own.server.tcp4())),
    ];
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Strangers: one that goes at once, one that says what is no message, one that says nothing. They live on.
    drop(Channel::connect(&socket).unwrap());
    let end = end_of_silence(&own, 1);
    assert_eq!(end["step"], "start", "{end}");
    let stranger = Channel::connect(&socket).unwrap();
    stranger.send(&"good morning", &[], PATIENCE).unwrap();
    let end = end_of_silence(&own, 2);
    assert!(end["reason"].as_str().unwrap().contains("can't be read"), "{end}");
    let silent = Channel::connect(&socket).unwrap();
    let end = end_of_silence(&own, 3);
    assert!(end["reason"].as_str().unwrap().contains("did not answer within 10s"), "{end}");
    drop((stranger, silent));
    calls.iter().for_each(Witness::see_progress);
    // Two that take over, one after the other; the one before waits to be ended.
    let settings = Settings { ports: Some(own.server.ports.range.clone()), ..own.server.settings.clone() };
    let take_over = || {
        let directory = Directory::new();
        fs::write(directory.path().join("token"), "0123456789abcdef-of-the-operator\n").unwrap();
        Server::start_as(directory, settings.clone(), |config| {
            let mut command = binary(config);
            command.arg("--take-over").arg(&socket);
            command
        })
    };
    let mut second = take_over();
    assert_eq!(own.server.log.events(CONFIRMED).len(), 1);
    own.server.log.event("the sessions are the new process's; this one waits for SIGTERM");
    calls.iter().for_each(Witness::see_progress);
    assert!(own.server.first_ended().is_none());
    let mut third = take_over();
    second.log.event("the sessions are the new process's; this one waits for SIGTERM");
    calls.iter().for_each(Witness::see_progress);
    for server in [&mut own.server, &mut second] {
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
        assert!(server.log.sessions().is_empty(), "{}", server.log.text());
    }
    assert_eq!(third.health("/readyz"), 200);
    assert_eq!(third.scrape().sum("throughway_generation"), 3);
    for call in calls {
        assert_eq!(call.finish().0.refresh(0).code(), 0);
    }
    third.signal("TERM");
    assert_eq!(third.wait().code(), Some(0));
    assert_eq!(third.log.sessions().len(), 3);
    assert!(!socket.exists(), "the last one removes it");
}

/// A process that connects and says nothing keeps nothing waiting: a reload, an upgrade, another process that connects.
#[test]
fn a_silent_process_at_the_socket_delays_nothing() {
    let directory = Directory::new();
    let socket = directory.path().join("upgrade.sock");
    let mut settings = Settings::new(1);
    settings.tables = format!("[upgrade]\nsocket = {:?}\n", socket.to_str().unwrap());
    let mut own = Upgradable::start_in(directory, settings, &[]);
    let call = Witness::start(Client::udp(own.server.udp4()));
    let silent = || Channel::connect(&socket).unwrap();
    let first = silent();
    let mut next = own.server.settings.clone();
    next.users.push(("carol", "cat"));
    own.write(next);
    own.server.signal("HUP");
    own.server.log.event("reload: changes applied");
    // It is given up after ten seconds.
    assert!(own.server.log.events(REFUSED).is_empty(), "{}", own.server.log.text());
    drop(first);
    assert_eq!(own.server.log.event(REFUSED)["step"], "start");
    let second = silent();
    let child = own.spawn(&["upgrade", "--json"]);
    let (code, out, err) = said(child.wait_with_output().unwrap());
    assert!(code == 0 && out.contains(r#""result":"confirmed""#), "{code} {out} {err}");
    own.follow();
    // And a process that connects, beside as many as are waited for.
    let others: Vec<Channel> = (0..7).map(|_| silent()).collect();
    let settings = Settings { ports: Some(own.server.ports.range.clone()), ..own.server.settings.clone() };
    let directory = Directory::new();
    fs::write(directory.path().join("token"), "0123456789abcdef-of-the-operator\n").unwrap();
    let third = Server::start_as(directory, settings, |config| {
        let mut command = binary(config);
        command.arg("--take-over").arg(&socket);
        command
    });
    assert_eq!(own.server.log.events(CONFIRMED).len(), 2);
    drop((second, others));
    call.see_progress();
    assert_eq!(third.scrape().sum("throughway_generation"), 3);
    own.server.signal("TERM");
    assert_eq!(own.server.wait().code(), Some(0));
    assert_eq!(call.finish().0.refresh(0).code(), 0);
}

/// The process before may not have left the path when the new one is there: as long as it stands still, for example.
#[test]
fn a_process_that_took_over_listens_as_soon_as_the_path_is_free() {
    let directory = Directory::new();
    let [first, second] = ["first.sock", "second.sock"].map(|name| directory.path().join(name));
    let mut settings = Settings::new(1);
    settings.tables = format!("[upgrade]\nsocket = {:?}\n", first.to_str().unwrap());
    let mut own = Upgradable::start_in(directory, settings, &[]);
    let call = Witness::start(Client::udp(own.server.udp4()));
    // What listens there takes no connection, as a process that was stopped.
    let other = SuccessorSocket::bind(&second).unwrap();
    let mut next = own.server.settings.clone();
    next.tables = next.tables.replace("first.sock", "second.sock");
    own.write(next);
    own.upgrade();
    assert!(!first.exists(), "the old process has left its own");
    own.server.log.event("no other process can take over for now; it listens as soon as the path is free");
    call.see_progress();
    other.close();
    drop(other);
    own.server.log.event("upgrade.socket: other processes can take over again");
    let settings = Settings { ports: Some(own.server.ports.range.clone()), ..own.server.settings.clone() };
    let directory = Directory::new();
    fs::write(directory.path().join("token"), "0123456789abcdef-of-the-operator\n").unwrap();
    let third = Server::start_as(directory, settings, |config| {
        let mut command = binary(config);
        command.arg("--take-over").arg(&second);
        command
    });
    assert_eq!(third.scrape().sum("throughway_generation"), 3);
    own.server.signal("TERM");
    assert_eq!(own.server.wait().code(), Some(0));
    assert!(second.exists(), "it is the third one's");
    assert_eq!(call.finish().0.refresh(0).code(), 0);
}

const ALONE: &str = "no server to take over from: starting";

/// As containers do, whose command is always the same.
#[test]
fn a_process_that_may_start_by_itself_takes_over_where_there_is_a_server() {
    let directory = Directory::new();
    let socket = directory.path().join("upgrade.sock");
    let mut settings = Settings::new(1);
    settings.tables = format!("[upgrade]\nprobation = \"1s\"\nsocket = {:?}\n", socket.to_str().unwrap());
    let start = |directory: Directory, settings: Settings| {
        Server::start_as(directory, settings, |config| {
            let mut command = binary(config);
            command.arg("--take-over").arg(&socket).arg("--or-start");
            command
        })
    };
    let mut first = start(Directory::new(), settings);
    first.log.event(ALONE);
    let settings = Settings { ports: Some(first.ports.range.clone()), ..first.settings.clone() };
    let call = Witness::start(Client::udp(first.udp4()));
    let mut second = start(Directory::new(), settings.clone());
    assert_eq!(first.log.events(CONFIRMED).len(), 1);
    assert!(second.log.events(ALONE).is_empty());
    call.see_progress();
    first.signal("TERM");
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(call.finish().0.refresh(0).code(), 0);
    // What a killed one leaves keeps no other one from starting.
    second.signal("KILL");
    second.wait();
    assert!(socket.exists());
    let third = start(Directory::new(), settings);
    third.log.event(ALONE);
    assert_eq!(third.health("/readyz"), 200);
}

// ---- HTTP ----

/// The samples of all series that must not fall.
fn rising(text: &str) -> HashMap<String, f64> {
    let mut rises = false;
    let mut samples = HashMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            rises = kind.ends_with(" counter") || kind.ends_with(" histogram");
        } else if let Some((series, value)) = line.rsplit_once(' ').filter(|_| rises && !line.starts_with('#')) {
            samples.insert(series.to_owned(), value.parse().unwrap());
        }
    }
    samples
}

with_one_and_three_workers! {
    /// Requests over HTTP are answered at every moment, and no counter falls.
    fn requests_over_http_are_answered_and_counters_never_fall(workers: u8) {
        let certificates = Authority::new();
        let mut own = Upgradable::start(certificates.settings(workers).account("file", "usage.jsonl"));
        let mut calls = vec![Witness::start(Client::tcp(own.server.tcp4()))];
        calls.push(Witness::start(certificates.client(own.server.tls4())));
        calls.extend((0..workers).map(|worker| Witness::start(Client::udp_on_worker(own.server.udp4(), worker, workers))));
        let mut refused = Client::udp(own.server.udp4()).user("alice", "wrong");
        assert_ne!(refused.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 0);
        refused.send_channel(0x4001, b"without an allocation");
        assert_eq!(http::get(own.server.http(), "/nothing", "localhost").0, 404);
        let address = own.server.http();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let scraper = std::thread::spawn(move || {
            let (mut last, mut scrapes) = (HashMap::new(), 0);
            while !stopped.load(Ordering::Relaxed) {
                let (status, text) = http::get(address, "/metrics", "localhost");
                assert_eq!(status, 200);
                let now = rising(&text);
                for (series, before) in &last {
                    let value = now.get(series).unwrap_or_else(|| panic!("{series} is gone after {scrapes} scrapes"));
                    assert!(value >= before, "{series} fell from {before} to {value} after {scrapes} scrapes");
                }
                assert!(now.len() > 100);
                (last, scrapes) = (now, scrapes + 1);
                std::thread::sleep(Duration::from_millis(20));
            }
            (last, scrapes)
        });
        for _ in 0..2 {
            replace_program(own.server.directory());
            // A request whose body comes after the change: it is answered, and nothing is done for it.
            let mut slow = TcpStream::connect(address).unwrap();
            let head = api::request("POST", "/v1/kick", &[HOST, AUTHORIZED, JSON], "");
            let head = head.replace("\r\n\r\n", "\r\nContent-Length: 16\r\n\r\n");
            slow.write_all(head.as_bytes()).unwrap();
            own.begin();
            own.wait_for_probation();
            slow.write_all(br#"{"user":"alice"}"#).unwrap();
            let mut answer = String::new();
            slow.set_read_timeout(Some(PATIENCE)).unwrap();
            slow.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            calls.iter().for_each(Witness::see_progress);
            own.follow();
            calls.iter().for_each(Witness::see_progress);
        }
        for call in calls {
            assert_eq!(call.finish().0.refresh(0).code(), 0);
        }
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        let (last, scrapes) = scraper.join().unwrap();
        assert!(scrapes > 20, "{scrapes}");
        let sum = |name: &str| last.iter().filter(|(series, _)| series.starts_with(name)).map(|(_, value)| value).sum::<f64>();
        let sessions = f64::from(workers) + 2.0;
        assert_eq!(sum("throughway_allocations_created_total"), sessions);
        assert_eq!(sum("throughway_allocations_ended_total"), sessions);
        assert_eq!(sum("throughway_upgrades_total{result=\"confirmed\"}"), 2.0);
        assert!(sum("throughway_accounting_records_total") >= sessions);
        assert!(sum("throughway_tls_handshakes_total") >= 1.0, "what the first process counted stays");
    }
}
