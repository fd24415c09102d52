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
