//! The program itself: what it refuses, and a short measurement through the bare forwarder.

use std::process::{Child, Command, Output, Stdio};

fn program(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway-load"));
    command.args(words.split_whitespace());
    command
}

fn run(words: &str) -> Output {
    program(words).output().expect("the program starts")
}

/// A forwarder that is ended with the test.
struct Forwarder(Child);

impl Drop for Forwarder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_it_does_not_know_it_names() {
    for (words, message) in [
        ("run --rate 50 --sesions 4", "unknown flag --sesions"),
        ("run --rate 50 --sessions many", "--sessions: `many`"),
        ("forward --listen", "--listen needs a value"),
        ("bindings 64", "`64` is not a flag"),
    ] {
        let output = run(words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}: {text}");
        assert!(text.contains(message), "{words}: {text}");
    }
    let output = run("measure");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("throughway-load run"));
}

#[test]
fn every_payload_comes_through_the_bare_forwarder_once() {
    const PLACES: &str = "--sessions 4 --first-client 127.77.0.1 --first-peer 127.78.0.1";
    const PORT: u16 = 39_478;
    let forward =
        program(&format!("forward --listen 127.0.0.1:{PORT} --seconds 30 {PLACES}")).stdout(Stdio::null()).spawn();
    let forwarder = Forwarder(forward.expect("the forwarder starts"));
    wait_for_socket(&forwarder, PORT);
    let measured = run(&format!("run --server 127.0.0.1:{PORT} --protocol bare --rate 50 --measure 0.5 {PLACES}"));
    let (text, errors) = (String::from_utf8_lossy(&measured.stdout), String::from_utf8_lossy(&measured.stderr));
    assert!(measured.status.success(), "{text}{errors}");
    // Four sessions, two directions, 50 a second, half a second.
    for count in [
        "\"sent\": 200,",
        "\"received\": 200,",
        "\"lost\": 0,",
        "\"duplicates\": 0,",
        "\"corrupt\": 0,",
        "\"misdelivered\": 0,",
    ] {
        assert!(text.contains(count), "{count} {text}{errors}");
    }
}

/// Until this UDP port is bound on 127.0.0.1.
fn wait_for_socket(forwarder: &Forwarder, port: u16) {
    let of_port = format!("0100007F:{port:04X} ");
    let table = format!("/proc/{}/net/udp", forwarder.0.id());
    for _ in 0..1000 {
        if std::fs::read_to_string(&table).expect("the kernel lists UDP sockets").contains(&of_port) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the forwarder did not bind port {port}");
}
