//! Replays the committed fuzz corpus through the functions that are fuzzed.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 5, "{} holds {} inputs", directory.display(), paths.len());
    for path in paths {
        let bytes = std::fs::read(&path).unwrap();
        eprintln!("{}", path.display());
        run(&bytes);
    }
}

#[test]
fn datagrams_of_the_corpus_do_not_panic() {
    replay("datagram", targets::datagram);
}

#[test]
fn messages_of_the_corpus_do_not_panic() {
    replay("message", targets::message);
}

#[test]
fn scripts_of_the_corpus_do_not_panic() {
    replay("server", targets::server);
}

#[test]
fn states_of_the_corpus_do_not_panic() {
    replay("state", targets::state);
}

/// Each kept state with each of its bytes changed, and cut at each place.
#[test]
fn damaged_states_do_not_panic() {
    for name in [
        "format-1-worker",
        "format-2-worker",
        "format-2-process",
        "format-2-streams",
        "format-2-early-allocations",
        "format-2-worker-changes",
        "format-2-process-changes",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/state/{name}.state"));
        let kept = std::fs::read(path).unwrap();
        let format = kept[11];
        let body = [&[format], &kept[throughway::state::HEAD..]].concat();
        for at in 0..body.len() {
            targets::state(&body[..at]);
            for flipped in [0x01, 0x20, 0x80, 0xFF] {
                let mut damaged = body.clone();
                damaged[at] ^= flipped;
                targets::state(&damaged);
            }
        }
    }
}

// F-A15: what is signed, or comes from files and proxies.
#[test]
fn tokens_claims_records_headers_and_bodies_of_the_corpus_do_not_panic() {
    replay("token", targets::token);
    replay("claims", targets::claims);
    replay("usage_lines", targets::usage_lines);
    replay("forwarded", targets::forwarded);
    replay("proxy_header", targets::proxy_header);
    replay("client_hello", targets::client_hello);
    replay("admin_body", targets::admin_body);
}

#[test]
fn configurations_of_other_relays_of_the_corpus_do_not_panic() {
    replay("import", targets::import);
}

#[test]
fn records_of_the_corpus_do_not_panic() {
    replay("record", targets::record);
}
