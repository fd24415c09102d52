//! The walls of the house, read from the sources: what the core must not know.

use std::fs;
use std::path::{Path, PathBuf};

use test_support::source_text::{Source, code_of, sources, words};

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

/// The parts of the crate from the ground up: each may use only those before it. `docs/architecture.md` has the same list.
const PARTS: [&str; 28] = [
    "address",
    "time",
    "clock",
    "calendar",
    "printable",
    "failure",
    "fault",
    "files",
    "turn_uri",
    "state",
    "wire",
    "credentials",
    "jwt",
    "tls",
    "fetch",
    "protocol",
    "config",
    "public_address",
    "probe",
    "import",
    "net",
    "ops",
    "acme",
    "api",
    "check",
    "run",
    "demo",
    "cli",
];

/// Arrows that run back up between parts, on purpose; `docs/architecture.md` gives the reason of each.
const PARTS_BACK_UP: [(&str, &str); 0] = [];

/// The module that a source file is: `net::worker::pace`.
fn module_of(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let mut module: Vec<String> =
        path.iter().skip(1).map(|part| part.to_string_lossy().into_owned()).filter(|part| part != "mod").collect();
    if module == ["lib"] {
        module.clear();
    }
    module
}

/// Every path that the source names and that begins at the crate or at a module above: absolute, without the crate.
/// Groups are taken apart: `super::{a::B, c}` are two.
fn paths_named(source: &Source) -> Vec<Vec<String>> {
    let words = words(source.without_tests());
    let module = module_of(&source.path);
    let mut found = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let begins = at < 2 || words[at - 2..at] != [":", ":"];
        let start = match words[at] {
            "crate" if begins => Some(Vec::new()),
            "super" if begins => Some(module[..module.len().saturating_sub(1)].to_vec()),
            _ => None,
        };
        at += 1;
        if let Some(start) = start {
            at = take_path(&words, at, start, &mut found);
        }
    }
    found
}

/// Reads `::name::…` or `::{…}` from `at` on.
fn take_path(words: &[&str], mut at: usize, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    while words.get(at..at + 2) == Some(&[":", ":"]) {
        at += 2;
        match words.get(at) {
            Some(&"{") => {
                at += 1;
                while words.get(at).is_some_and(|word| *word != "}") {
                    if words[at] == "," {
                        at += 1;
                    } else {
                        let mut inner = path.clone();
                        inner.push(words[at].to_owned());
                        at = take_path(words, at + 1, inner, found);
                        // `as name`
                        while words.get(at).is_some_and(|word| !matches!(*word, "," | "}")) {
                            at += 1;
                        }
                    }
                }
                return at + 1;
            }
            Some(&"super") => {
                path.pop();
            }
            Some(word) => path.push((*word).to_owned()),
            None => break,
        }
        at += 1;
    }
    found.push(path);
    at
}

/// Uses that the order of `parts` does not allow.
fn arrows_back_up(
    parts: &[&str],
    uses: impl Iterator<Item = (String, String, PathBuf)>,
) -> Vec<(String, String, PathBuf)> {
    let place = |name: &str| parts.iter().position(|part| *part == name);
    let mut back_up = Vec::new();
    for (from, to, path) in uses {
        let (Some(own), Some(other)) = (place(&from), place(&to)) else {
            panic!("{}: {from} or {to} has no place in the order: give it one", path.display());
        };
        if own < other {
            back_up.push((from, to, path));
        }
    }
    back_up
}

#[test]
fn each_part_uses_only_parts_below_it() {
    let mut uses = Vec::new();
    for source in sources("src") {
        let module = module_of(&source.path);
        let Some(part) = module.first().filter(|part| *part != "main").cloned() else { continue };
        for path in paths_named(&source) {
            let Some(other) = path.first().filter(|other| **other != part && *other != "*") else { continue };
            uses.push((part.clone(), other.clone(), source.path.clone()));
        }
    }
    assert!(uses.len() > 300, "the check sees the uses that are there: {}", uses.len());
    let mut back_up = arrows_back_up(&PARTS, uses.into_iter());
    back_up.retain(|(from, to, _)| !PARTS_BACK_UP.contains(&(from.as_str(), to.as_str())));
    assert!(back_up.is_empty(), "arrows that run back up: {back_up:#?}");
}

/// The files of a folder in the order in which its `mod.rs` lists them.
fn files_listed(folder: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder).join("mod.rs");
    let text = fs::read_to_string(path).expect("mod.rs");
    let names =
        text.lines().filter_map(|line| line.strip_suffix(';')?.rsplit_once("mod ").map(|(_, name)| name.to_owned()));
    names.collect()
}

/// Which file of a folder uses which, by their names as `called` gives them; what `mod.rs` itself uses is left out.
fn uses_within(folder: &str, called: impl Fn(String) -> String) -> Vec<(String, String, PathBuf)> {
    let mut uses = Vec::new();
    for source in sources(&format!("src/{folder}")).iter().filter(|source| !source.path.ends_with("mod.rs")) {
        let own = called(module_of(&source.path)[1].clone());
        for path in paths_named(source).iter().filter(|path| path.first().is_some_and(|part| part == folder)) {
            let Some(other) = path.get(1).filter(|other| *other != "*").cloned() else { continue };
            let other = called(other);
            if other != own {
                uses.push((own.clone(), other, source.path.clone()));
            }
        }
    }
    uses
}

#[test]
fn each_file_of_the_core_uses_only_files_listed_before_it() {
    let files = files_listed("protocol");
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    assert!(files.len() > 30, "the list is read: {files:?}");
    // What mod.rs shows under its own name stands in server.rs.
    let shown = ["Server", "Parts", "CONTROL_BYTES_MAX", "DEADLINES_PER_CALL"];
    let uses = uses_within("protocol", |name| if shown.contains(&name.as_str()) { "server".to_owned() } else { name });
    assert!(uses.len() > 100, "the check sees the uses that are there: {}", uses.len());
    let back_up = arrows_back_up(&files, uses.into_iter());
    assert!(back_up.is_empty(), "arrows that run back up in the core: {back_up:#?}");
}

/// Files of the shell that name each other: the worker, and what it holds of streams, relayed sockets and peers. They count as one.
const WORKER: [&str; 4] = ["peers", "relay_socket", "streams", "worker"];

#[test]
fn each_file_of_the_shell_uses_only_files_listed_before_it() {
    let files = files_listed("net");
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    assert!(files.len() > 30, "the list is read: {files:?}");
    let at = files.iter().position(|file| WORKER.contains(file)).expect("the worker");
    assert_eq!(files[at..at + WORKER.len()], WORKER, "they stand together");
    let uses = uses_within("net", |name| if WORKER.contains(&name.as_str()) { "worker".to_owned() } else { name });
    assert!(uses.len() > 70, "the check sees the uses that are there: {}", uses.len());
    let files: Vec<&str> = files.into_iter().filter(|file| !WORKER[..3].contains(file)).collect();
    let back_up = arrows_back_up(&files, uses.into_iter());
    assert!(back_up.is_empty(), "arrows that run back up in the shell: {back_up:#?}");
}

#[test]
fn the_document_lists_the_parts_in_the_same_order() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md"))
        .expect("architecture.md");
    let (_, after) = text.split_once("\nFrom the ground up: ").expect("the order stands in the document");
    let paragraph = after.split("\n\n").next().unwrap_or(after);
    let listed: Vec<&str> = paragraph.split('`').skip(1).step_by(2).collect();
    assert_eq!(listed, PARTS);
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
        // Tests may use threads, to show what atomics keep to.
        let source = &Source { path: source.path.clone(), code: source.without_tests().to_owned() };
        for word in forbidden {
            assert!(!mentions(source, word), "{} must not know {word}", source.path.display());
        }
    }
}

/// Parts above `ops` register what they count, so that it need not know them.
#[test]
fn operation_knows_nothing_of_what_is_above_it() {
    for source in sources("src/ops") {
        for above in ["api", "cli", "run", "demo", "check"] {
            let words = words(&source.code);
            let uses = words.windows(4).any(|window| window == ["crate", ":", ":", above]);
            assert!(!uses, "{} must not use crate::{above}", source.path.display());
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

/// Functions that may be longer: each is one flat match or one flat list.
const LONG_FUNCTIONS: [&str; 1] = ["src/ops/remedy.rs remedy"];

/// Lines that a function may have.
const FUNCTION_LINES_MAX: usize = 80;

/// The functions of a source that rustfmt laid out, with their lines: from `fn` to the brace at the same depth.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let mut words = line.split_whitespace();
        let is_qualifier =
            |word: &&str| word.starts_with("pub") || ["const", "async", "unsafe", "extern", "\"C\""].contains(word);
        if words.find(|word| !is_qualifier(word)) != Some("fn") {
            continue;
        }
        let name = words.next().unwrap_or_default().split(['(', '<']).next().unwrap_or_default().to_owned();
        let end = format!("{}}}", " ".repeat(indent));
        if !line.ends_with('}')
            && let Some(length) = lines[at..].iter().position(|line| *line == end)
        {
            found.push((name, length + 1));
        }
    }
    found
}

#[test]
fn a_function_is_read_without_scrolling() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut long, mut count) = (Vec::new(), 0);
    for source in sources("src") {
        let text = fs::read_to_string(root.join(&source.path)).expect("a readable source");
        for (name, lines) in functions(&text) {
            count += 1;
            let name = format!("{} {name}", source.path.display());
            if lines > FUNCTION_LINES_MAX && !LONG_FUNCTIONS.contains(&name.as_str()) {
                long.push(format!("{name}: {lines} lines"));
            }
        }
    }
    assert!(count > 1_500, "the check sees the functions that are there: {count}");
    assert!(long.is_empty(), "functions of more than {FUNCTION_LINES_MAX} lines:\n{}", long.join("\n"));
}

#[test]
fn functions_are_measured_from_head_to_brace() {
    let text = "impl A {\n    pub(super) const fn a(\n        x: u8,\n    ) -> u8 {\n        if x {\n        }\n    }\n\n    fn b() {}\n}\n";
    assert_eq!(functions(text), [("a".to_owned(), 6)]);
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

/// The server's log has a thread of its own: a line may come after the answer to what caused it.
#[test]
fn a_test_waits_for_a_log_line_that_must_be_there() {
    for source in sources("tests") {
        let hasty = source.code.split(".events(").skip(1).find(|rest| {
            let behind = rest.split_once(')').map_or("", |(_, behind)| behind.trim_start());
            behind.starts_with('[') || behind.starts_with(".remove(") || behind.starts_with(".first(")
        });
        assert!(hasty.is_none(), "{}: `Log::event` waits for its line, `events` does not", source.path.display());
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

#[test]
fn paths_are_read_with_their_groups() {
    let code = "use crate::a::{self, b::C, d as e}; use super::x::Y; fn f(z: super::super::q::R) {} other::crate_name";
    let source = Source { path: PathBuf::from("src/net/worker/pace.rs"), code: code.to_owned() };
    let paths: Vec<String> = paths_named(&source).iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["a::self", "a::b::C", "a::d", "net::worker::x::Y", "net::q::R"]);
}
