//! The walls of the house, read from the sources: what the core must not know.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file without its comments and without the text of its string literals.
struct Source {
    path: PathBuf,
    code: String,
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open = vec![root.join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a readable source");
                let path = path.strip_prefix(root).expect("inside the crate").to_owned();
                found.push(Source { path, code: code_of(&text) });
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has sources");
    found
}

/// Blanks out comments and string literals, so that talk of a thing is not taken for its use.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            raw.find("\"#").map_or(rest.len(), |end| end + 5)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\''") {
            if rest.starts_with("'\\''") { 4 } else { 3 }
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c: char| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

/// The identifiers and the punctuation between them, without white space.
fn words(code: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for (at, c) in code.char_indices() {
        if !is_word(c) {
            if start < at {
                words.push(&code[start..at]);
            }
            if !c.is_whitespace() {
                words.push(&code[at..at + c.len_utf8()]);
            }
            start = at + c.len_utf8();
        }
    }
    words.push(&code[start..]);
    words
}

fn mentions(source: &Source, word: &str) -> bool {
    words(&source.code).contains(&word)
}

/// Whether a path that starts with this crate is used: the word, followed by `::`.
fn uses_crate(source: &Source, name: &str) -> bool {
    let words = words(&source.code);
    words.windows(3).enumerate().any(|(at, window)| {
        let is_root = at == 0 || words[at - 1] != ":";
        window == [name, ":", ":"] && is_root
    })
}

#[test]
fn the_core_and_the_wire_know_no_runtime_socket_clock_thread_or_lock() {
    let forbidden = [
        "tokio",
        "UdpSocket",
        "TcpStream",
        "TcpListener",
        "UnixStream",
        "Instant",
        "SystemTime",
        "thread",
        "Mutex",
        "RwLock",
        "Condvar",
        "OnceLock",
        "LazyLock",
        "thread_local",
        "getrandom",
        "socket2",
        "libc",
        "tracing",
        "metrics",
        "arc_swap",
        "println",
        "eprintln",
    ];
    for source in sources("src/protocol").iter().chain(&sources("src/wire")) {
        for word in forbidden {
            assert!(!mentions(source, word), "{} must not know {word}", source.path.display());
        }
        for folder in ["net", "api", "ops", "config", "cli", "demo"] {
            let words = words(&source.code);
            let inward = words.windows(4).any(|window| window == ["crate", ":", ":", folder]);
            assert!(!inward, "{}: knowledge points inwards, so it must not use crate::{folder}", source.path.display());
        }
    }
}

#[test]
fn only_the_wire_the_error_codes_and_the_foreign_client_name_the_vocabulary_crates() {
    let mut seen = 0;
    for source in sources("src") {
        let is_allowed = source.path.starts_with("src/wire")
            || ["src/protocol/reject.rs", "src/check/foreign.rs"].iter().any(|path| source.path == Path::new(path));
        for name in ["stun", "turn"] {
            let uses = uses_crate(&source, name);
            seen += usize::from(uses);
            assert!(!uses || is_allowed, "{} must not use the crate {name}", source.path.display());
        }
    }
    assert!(seen >= 4, "the check sees the uses that are there");
}

#[test]
fn only_net_has_unsafe_code() {
    for source in sources("src") {
        if !source.path.starts_with("src/net") {
            assert!(!mentions(&source, "unsafe"), "{}: unsafe code belongs into src/net", source.path.display());
            assert!(!mentions(&source, "unsafe_code"), "{}: the lint stays on", source.path.display());
        }
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_safe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in sources("src").iter().filter(|source| mentions(source, "unsafe")) {
        let text = fs::read_to_string(root.join(&source.path)).expect("a readable source");
        let blocks = words(&source.code).windows(2).filter(|pair| *pair == ["unsafe", "{"]).count();
        let reasons = text.matches("SAFETY:").count();
        assert!(reasons >= blocks, "{}: {blocks} unsafe blocks, {reasons} reasons", source.path.display());
    }
}

#[test]
fn the_check_tells_use_from_talk() {
    let source = Source {
        path: PathBuf::from("x.rs"),
        code: code_of(
            "// Instant\nlet a = \"a \\\" Mutex\"; /* thread */ use tokio::time; let c = '\"'; let unsafely = 1;",
        ),
    };
    for (word, is_there) in
        [("Instant", false), ("Mutex", false), ("thread", false), ("tokio", true), ("unsafe", false)]
    {
        assert_eq!(mentions(&source, word), is_there, "{word}");
    }
    assert!(mentions(&source, "unsafely"), "what follows a quote in quotes is still read");
    assert!(uses_crate(&source, "tokio") && !uses_crate(&source, "time"));
}
