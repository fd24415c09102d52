//! The tables "Maxima" and "What is charged" of docs/reference/maxima.md against the code.
//!
//! One way: each constant, field, key, metric and reason that a row names exists, and each value is the code's. The
//! other way: each field of the server that can grow, each constant that bounds something and each queue between tasks
//! is in a row, or in a short list of exceptions with its reason. So a new queue comes with a row, or this fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use throughway::config::KEYS;
use throughway::protocol::reason::DropReason;
use throughway::protocol::reject::RejectReason;

/// Fields that can grow, and why they need no row: a place (module, type, field; or all of a module), and the reason.
const FIELDS_WITHOUT_ROW: &[(&str, &str)] = &[
    // Filled from the configuration, the system or the build, never by a client.
    ("protocol::settings", "of the configuration"),
    ("protocol::peer_policy", "of the configuration"),
    ("protocol::authenticated::AuthenticatedCounts::by_secret", "one for each secret that was ever configured"),
    ("protocol::authenticated::SecretCounts::refused", "one for each reason"),
    ("credentials::claims", "of one credential, whose claims have at most CLAIMS_BYTES_MAX"),
    ("tls::certificates", "of the configuration"),
    ("api::host::AllowedHosts", "of the configuration"),
    ("api::rest::Issuer", "of the configuration"),
    ("api::rest::counts::IssueCounts::issued", "one for each key of the configuration"),
    ("api::rest::token_keys", "of the operator's login, bounded in its own row"),
    ("api::admin::access::AdminAccess::uids", "of the configuration"),
    ("api::admin::limits::UnsetLimitsRequest::limits", "of one call, whose body is bounded in its own row"),
    ("run::ledger_note::LedgerNote::descriptors", "of the listeners, which are the configuration's"),
    ("api::admin::test_credential::TestCredentials", "of the configuration"),
    ("run::http_listeners", "one for each HTTP listener"),
    ("run::reload", "of one reload"),
    ("net::listening", "one for each listener"),
    ("net::listener_plan", "one for each listener"),
    ("net::pass_on::PassOn::backends", "of the configuration"),
    ("net::pass_on::PassOn::successor", "one value"),
    ("net::running::Current", "one for each listener"),
    ("ops::metrics::Metrics::others", "one for each part of the server"),
    ("ops::port_watch::PortWatch::told", "one for each relay address and each tenant in relay.ports_by_tenant"),
    ("ops::usage::Sinks", "one for each sink"),
    ("ops::usage::Usage", "one for each sink"),
    ("ops::usage::UsageMetrics", "one for each sink"),
    ("ops::usage::writer::Signer", "one for each sink"),
    ("net::reconfigure", "of one reload"),
    ("net::passed", "one for each socket that was passed"),
    ("net::worker::listeners::Listeners", "one for each listener"),
    ("net::relay_addresses", "one for each relay address, and RETIRED_MAX that are gone; no client causes one"),
    ("api::uris::ServerUris", "the listeners"),
    ("net::port_plan::PortPlan::parts", "the tenants with ports of their own"),
    ("net::ports::Ports::free", "the range"),
    ("net::ports::Ports::place", "the range"),
    ("net::ports::Ports::pairs", "the range"),
    ("net::ports::Ports::place_of_pair", "the range"),
    // One for each worker.
    ("net::accept::Acceptor::workers", "one for each worker"),
    ("net::running::Running", "one for each worker and follower"),
    ("net::worker::Setup", "parts of a worker"),
    ("net::worker::Worker::mailboxes", "one for each worker"),
    ("net::start", "one for each worker"),
    ("net::meeting", "one of each worker, and one for each decision of an upgrade"),
    ("net::gate::Gate", "one value"),
    ("net::take_over", "one for each worker, listener and relay address"),
    ("net::upgrade_messages", "of one message of a process of this server, whose length has a row"),
    ("net::worker::hand_over", "one for each allocation"),
    ("net::worker::take_over", "one for each allocation and stream of the old process"),
    ("ops::metrics::inherited", "one for each counter of the old process, whose text has a row"),
    ("run::take_over", "one for each listener"),
    ("run::upgrade", "of the command line"),
    // Copies of what has a row, for a process that takes over.
    ("net::shared::SharedState", "a copy"),
    ("protocol::export::ServerState", "a copy"),
    ("protocol::changes", "a copy"),
    ("state::Features", "one for each feature of a release, in a copy"),
    ("net::shared::SharedChanges", "a copy"),
    ("protocol::quota_state", "a copy"),
    ("protocol::scope_table::ScopeChanges", "a copy"),
    ("protocol::scope_table::ScopeTable::arriving", "a copy"),
    ("protocol::authenticated::AuthenticatedCountsState", "a copy"),
    ("protocol::authenticated::SecretCountsState", "a copy"),
    ("protocol::allocation::AllocationState", "a copy"),
    ("state::Features", "a copy: one for each feature that a release names"),
    ("net::record::state::DirectionState", "a copy"),
    ("net::stream_state", "a copy"),
    ("net::ledger", "a copy for the next process, and what that reads of it"),
    ("net::worker::ledger::Recovered", "at most one for each worker and death within a minute"),
    ("protocol::ledger", "a copy"),
    ("protocol::touched", "one for each allocation"),
    ("net::record::established::Established", "what rustls held at the end of a handshake, which bounds it"),
    ("net::payload_rings::Producers::by_worker", "one for each worker"),
    ("net::payload_rings::Consumers::rings", "one for each worker"),
    // Within one request, answer or record.
    ("fetch", "of one answer, bounded by its caller"),
    ("ops::command::Reloaded", "of one reload"),
    ("acme::Acme::config", "of the configuration"),
    ("acme::State::domains", "of the configuration"),
    ("acme::store::KnownRefusal::domains", "of the configuration"),
    ("acme::store::Store::domains", "of the configuration"),
    ("acme::http01::Tokens", "one for each name of the configuration"),
    ("ops::upgrades::Release", "of one answer, with each feature of a release"),
    ("ops::usage::report", "of the command `usage report`"),
    ("ops::usage::record", "of one record"),
    ("ops::usage::Sinks::open", "one for each sink of the configuration"),
    ("ops::usage::Usage::working", "one for each sink of the configuration"),
    ("ops::usage::UsageMetrics::sinks", "one for each sink of the configuration"),
    ("ops::usage::writer::Signer::sinks", "one for each sink of the configuration"),
    ("ops::journal", "of one entry"),
    ("ops::log::Window::by_reason", "one for each reason"),
    ("ops::refusals::FoundRefusals", "of one answer of the admin API"),
    ("ops::drain", "a single value"),
    ("demo::ConfigAnswer", "of one answer"),
    ("demo::IceServer", "of one answer"),
    ("demo::IceServers", "of one answer"),
    ("demo::Usage", "of one answer"),
    ("demo::DemoState::notes", "of the start"),
];

/// Constants whose name looks like a bound and is none of a table, queue or place.
const CONSTANTS_WITHOUT_ROW: &[(&str, &str)] = &[
    ("wire", "sizes of the wire format"),
    ("protocol::nonce", "sizes of the wire format"),
    ("protocol::relay::DATAGRAM_BYTES_MAX", "size of the wire format"),
    ("protocol::reply::REPLY_BYTES_MAX", "room for one answer, on the stack"),
    ("protocol::pool::LOAD_MAX", "a whole, in thousandths"),
    ("protocol::pool::WEIGHT_MAX", "of the configuration"),
    ("ops::alternates::HEAD_BYTES", "sizes of the wire format"),
    ("protocol::binding::ANSWER_BYTES_MAX", "room for one answer, on the stack"),
    ("protocol::export::SLOTS_MAX", "what is refused in a copy; limits.allocations is far below"),
    ("protocol::small_set::SCANNED_MAX", "from there on with an index"),
    ("credentials", "sizes of the wire format"),
    ("api::admin::test_credential", "what a credential for a test may at most: docs/operating/connectivity.md"),
    ("net::payload_rings::ADDRESS_BYTES", "size of an entry"),
    ("net::ledger::ENTRY_BYTES_MAX", "beyond it an entry is none; it is read from memory that this program wrote"),
    ("net::ledger::IN_HAND_BYTES", "size of a place"),
    ("net::ledger::LOG_BYTES", "from there on a log is begun anew"),
    ("net::ledger::WORKERS_MAX", "the most that `workers` allows"),
    ("net::sys::process::NUMBERS_MAX", "where looking ends without /proc"),
    ("net::worker::ledger::TOUCHED_PER_TURN", "the rest is written in the next turns"),
    ("run::supervise::DEATHS_MAX", "what ends the server: docs/operating/crashes.md"),
    ("run::supervise::INCIDENTS_MAX", "the same"),
    ("run::supervise::STUCK_MAX", "the same"),
    ("run::upgrade::LIFE_SILENCE_MAX", "a time: docs/operating/upgrade.md"),
    ("net::proxy_header::HEAD_BYTES", "size of the wire format"),
    ("net::payload_rings::HEAD_BYTES", "size of an entry"),
    ("net::sys", "sizes of the kernel's interface"),
    ("net::stream_state::STREAM_ID_MAX", "what is refused in a copy; there are never so many"),
    ("net::stream_state::INPUT_BYTES_MAX", "what is refused in a copy; a stream keeps less"),
    ("net::stream_state::TLS_INPUT_BYTES_MAX", "what is refused in a copy; a stream keeps less"),
    ("net::record", "sizes of the wire format, and what ends the connection; a stream keeps nothing for it"),
    ("acme::order::ANSWER_BYTES_MAX", "of one answer of the authority that the operator chose"),
    ("files::LINKS_MAX", "links of an operator's that are followed, as many as the system follows"),
    ("acme::store::FILE_BYTES_MAX", "what is read of a file of the server's own"),
    ("net::relay_addresses::SLOT_MAX", "bits of a word; limits.allocations is far below"),
    ("net::relay_addresses::RETIRED_MAX", "addresses of this machine that are gone; no client causes one"),
    ("net::worker::receive_buffers", "thresholds"),
    ("net::streams::WRITE_BYTES", "a threshold"),
    ("ops::log::output::USUAL_LINES", "a threshold"),
    ("net::tcp::LEFT_OVER_BYTES", "of what is kept already, copied at once"),
    ("net::tcp::MOVED_BYTES_MAX", "of what is kept already, copied at once"),
    ("net::worker::datagrams::LISTENER_BUSY_BYTES", "a threshold"),
    ("api::rest::RANDOM_ID_BYTES", "size of a name"),
    ("api::rest::request", "of one answer"),
    ("api::not_found", "of one answer"),
    ("net::kernel", "places of the kernel's answer"),
    ("net::worker::INBOX", "a kind of event"),
    ("calendar::SECONDS_PER_DAY", "a unit"),
    ("protocol::day_bytes::SECONDS_PER_DAY", "a unit"),
    ("ops::usage::report", "of the command `usage report`"),
    ("ops::usage::webhook::PAUSE_MAX", "a pause"),
    ("demo::access::TOKEN_BYTES", "size of a token"),
    ("demo::access::TOKEN_BYTES", "size of a name"),
    ("net::worker::take_over::SILENCE_MAX", "a time"),
    ("run::take_over::SILENCE_MAX", "a time"),
    ("run::take_over::LAST_RECORDS", "a time"),
    ("run::upgrade::CLOCKS_DIFFER_MAX", "a time"),
    ("demo::signalling::SEND_MAX", "a time"),
    ("demo::signalling::SILENCE_MAX", "a time"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A source file without its tests.
struct Source {
    /// `net::worker::inbox`.
    module: String,
    text: String,
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What runs in a server. Commands of the operator's own (`check`, `cli`) and what reads the configuration grow by what
/// their user gives them.
fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let path = file.strip_prefix(root().join("src")).unwrap().with_extension("");
        let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
        let parts = parts.strip_suffix(&["mod"]).unwrap_or(&parts);
        if parts.contains(&"tests") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("\n#[cfg(test)]\n").next().unwrap().to_owned();
        sources.push(Source { module: parts.join("::"), text });
    }
    sources
}

fn is_of_the_server(module: &str) -> bool {
    !["check", "cli", "config", "import"]
        .iter()
        .any(|other| module == *other || module.starts_with(&format!("{other}::")))
}

/// All constants by their path, with the text of their value.
fn constants(sources: &[Source]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for source in sources {
        let mut rest = source.text.as_str();
        while let Some(at) = rest.find("const ") {
            let starts_line = rest[..at].rsplit('\n').next().unwrap().trim();
            let is_declared = starts_line.is_empty() || starts_line.starts_with("pub");
            rest = &rest[at + "const ".len()..];
            let Some((head, tail)) = rest.split_once('=') else { break };
            let Some((name, _)) = head.split_once(':') else { continue };
            let is_name = !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
            if is_declared && is_name {
                let value = tail.split(';').next().unwrap().trim();
                all.insert(format!("{}::{name}", source.module), value.to_owned());
            }
        }
    }
    all
}

/// The value of a constant's text: a number; times in milliseconds.
struct Reader<'t> {
    rest: &'t str,
    module: &'t str,
    constants: &'t BTreeMap<String, String>,
}

impl Reader<'_> {
    fn skip(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn word(&mut self) -> &str {
        self.rest = self.rest.trim_start();
        let is_in = |character: char| character.is_alphanumeric() || matches!(character, '_' | ':');
        let end = self.rest.find(|character| !is_in(character)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// Shifts bind looser than sums, sums looser than products.
    fn shifts(&mut self) -> Option<u64> {
        let mut value = self.sums()?;
        while self.skip("<<") {
            value <<= self.sums()?;
        }
        Some(value)
    }

    fn sums(&mut self) -> Option<u64> {
        let mut value = self.products()?;
        loop {
            if self.skip("+") {
                value += self.products()?;
            } else if self.skip("-") {
                value -= self.products()?;
            } else {
                return Some(value);
            }
        }
    }

    fn products(&mut self) -> Option<u64> {
        let mut value = self.atom()?;
        loop {
            if self.skip("*") {
                value *= self.atom()?;
            } else if self.skip("/") {
                value /= self.atom()?;
            } else {
                return Some(value);
            }
        }
    }

    fn atom(&mut self) -> Option<u64> {
        if self.skip("(") {
            let value = self.shifts();
            return value.filter(|_| self.skip(")"));
        }
        let word = self.word().to_owned();
        if word.starts_with(|character: char| character.is_ascii_digit()) {
            let digits: String = word.chars().filter(|character| *character != '_').collect();
            return digits.parse().ok();
        }
        let milliseconds = match word.rsplit("::").next()? {
            "from_secs" => 1000,
            "from_millis" => 1,
            // Of the `stun` crate; RFC 8489 section 5.
            "MESSAGE_HEADER_SIZE" => return Some(20),
            name => {
                let (module, constants) = (self.module, self.constants);
                let here = format!("{module}::{name}");
                let path = if constants.contains_key(&here) {
                    here
                } else {
                    let end = format!("::{name}");
                    constants.keys().find(|path| path.ends_with(&end))?.clone()
                };
                return value_of(&path, constants);
            }
        };
        let value = self.skip("(").then(|| self.shifts())??;
        self.skip(")").then_some(value * milliseconds)
    }
}

/// The value of `module::NAME`, or of a field of a constant: `module::NAME.field`.
fn value_of(path: &str, constants: &BTreeMap<String, String>) -> Option<u64> {
    let (path, field) = path.split_once('.').map_or((path, None), |(path, field)| (path, Some(field)));
    let mut text = constants.get(path)?.as_str();
    if let Some(field) = field {
        text = text.split_once(&format!("{field}:"))?.1.split([',', '}']).next()?.trim();
    }
    let module = path.rsplit_once("::")?.0;
    Reader { rest: text, module, constants }.shifts()
}

/// What a person writes: `4,096`, `512 KiB`, `10 s`, `5 min`, and goes on behind it.
fn number_of(text: &str) -> Option<u64> {
    let mut words = text.split(' ');
    let number = words.next()?.trim_end_matches([',', ';']).replace(',', "");
    let factor = match words.next().unwrap_or_default().trim_end_matches([',', ';']) {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "s" => 1000,
        "min" => 60_000,
        _ => 1,
    };
    Some(number.parse::<u64>().ok()? * factor)
}

/// A row's cells.
fn rows(title: &str, cells: usize) -> Vec<Vec<String>> {
    let page = read("docs/reference/maxima.md");
    let start = page.find(&format!("\n{title}\n")).unwrap_or_else(|| panic!("docs/reference/maxima.md has no {title}"));
    let section = page[start + 1..].split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("|-"));
    let rows: Vec<Vec<String>> = rows
        .skip(1)
        .map(|row| {
            let row = row.trim().trim_start_matches('|');
            row.strip_suffix('|').unwrap_or(row).split('|').map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    for row in &rows {
        assert_eq!(row.len(), cells, "{title}: a row has {} cells: {row:?}", row.len());
    }
    rows
}

fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn is_key(span: &str) -> bool {
    KEYS.iter().any(|key| key.path == span)
}

fn maxima() -> Vec<Vec<String>> {
    rows("## Maxima", 7)
}

const WHAT: usize = 0;
const WHERE: usize = 1;
const MAXIMUM: usize = 2;
const KEY: usize = 3;
const SHARE: usize = 4;
const WHEN_FULL: usize = 5;
const METRIC: usize = 6;

#[test]
fn each_value_in_the_table_is_the_codes() {
    let constants = constants(&sources());
    let mut seen = 0;
    for row in maxima() {
        let cell = &format!("{} {}", row[MAXIMUM], row[SHARE]);
        // `net::INBOX` = 4,096; or a key's default behind its name.
        for (at, span) in spans(cell).into_iter().enumerate() {
            let behind = cell.split('`').nth(2 * at + 2).unwrap();
            let Some(told) = behind.strip_prefix(" = ") else { continue };
            seen += 1;
            if let Some(key) = KEYS.iter().find(|key| key.path == span) {
                let told = told.split(' ').next().unwrap().trim_end_matches([',', ';']);
                let default = key.default.trim_matches('"');
                assert_eq!(told, default, "{}: the default of {span}", row[WHAT]);
                continue;
            }
            let value = value_of(span, &constants).unwrap_or_else(|| panic!("{}: no value of {span}", row[WHAT]));
            let told = number_of(told).unwrap_or_else(|| panic!("{}: no number: {told:?}", row[WHAT]));
            assert_eq!(told, value, "{}: {span} is {value} in the code", row[WHAT]);
        }
    }
    assert!(seen >= 40, "only {seen} values were compared");
}

#[test]
fn each_key_metric_and_reason_in_the_tables_exists() {
    // The last three register what they count.
    let files = [
        "src/ops/metrics.rs",
        "src/ops/metrics/process.rs",
        "src/api/mod.rs",
        "src/api/rest/counts.rs",
        "src/ops/alternates.rs",
    ];
    let metrics = files.map(read).concat();
    let reasons: BTreeSet<&str> = DropReason::ALL
        .iter()
        .map(|reason| reason.name())
        .chain(RejectReason::ALL.iter().map(|reason| reason.name()))
        .collect();
    for row in maxima() {
        for key in spans(&row[KEY]) {
            assert!(is_key(key), "{}: {key} is no key", row[WHAT]);
        }
        for metric in spans(&row[METRIC]) {
            let name = metric.split('{').next().unwrap();
            assert!(metrics.contains(&format!("\"{name}\"")), "{}: {metric} is no metric", row[WHAT]);
        }
        for reason in spans(&row[WHEN_FULL]) {
            assert!(reasons.contains(reason) || is_key(reason), "{}: {reason} is no reason", row[WHAT]);
        }
    }
    let charged = rows("## What is charged", 4);
    for row in &charged {
        for span in row[1..].iter().flat_map(|cell| spans(cell)) {
            let is_metric = metrics.contains(&format!("\"{}\"", span.split('{').next().unwrap()));
            let is_known = is_key(span) || reasons.contains(span) || is_metric;
            assert!(is_known, "{}: {span} is no key, reason or metric", row[0]);
        }
    }
    // All that a client can send, and all that the core tells of it.
    let named: Vec<&str> = charged.iter().flat_map(|row| spans(&row[0])).collect();
    let border = read("src/protocol/border.rs");
    let events = border.split_once("pub enum Event {").unwrap().1.split_once("\n}").unwrap().0;
    let events = events.lines().filter_map(|line| {
        let name = line.trim().split(['(', ' ', ',']).next()?;
        (line.starts_with("    ") && name.starts_with(char::is_uppercase)).then(|| format!("Event::{name}"))
    });
    let methods = ["Binding", "Allocate", "Refresh", "CreatePermission", "ChannelBind", "Send", "ChannelData"];
    for needed in events.chain(methods.map(ToOwned::to_owned)) {
        assert!(named.contains(&needed.as_str()), "\"What is charged\" has no row for `{needed}`");
    }
}

/// Whether an exception is for this place, or for the whole of its module.
fn excepted(place: &str, exceptions: &[(&str, &str)]) -> bool {
    exceptions.iter().any(|(of, _)| place == *of || place.strip_prefix(of).is_some_and(|rest| rest.starts_with("::")))
}

/// What of these places has neither a row nor an exception; and exceptions for what is not there any more.
fn check_places(places: &BTreeSet<String>, in_table: &BTreeSet<String>, exceptions: &[(&str, &str)]) -> Vec<String> {
    let is_free = |place: &&String| !in_table.contains(*place) && !excepted(place, exceptions);
    let mut wrong: Vec<String> = places.iter().filter(is_free).map(|place| format!("{place} has no row")).collect();
    for (of, reason) in exceptions {
        let is_used = places.iter().any(|place| excepted(place, &[(*of, *reason)]));
        if !is_used {
            wrong.push(format!("{of} is an exception and not there"));
        }
    }
    wrong
}

const GROWING: &[&str] = &[
    "Vec<",
    "VecDeque<",
    "HashMap<",
    "HashSet<",
    "BTreeMap<",
    "BTreeSet<",
    "Slab<",
    "Slots<",
    "SmallSet<",
    "Few<",
    "SpareQueues",
    "Producer<",
    "SyncSender<",
    "FairMap<",
    "mpsc::Sender<",
    "watch::Sender<",
    "broadcast::Sender<",
    "Semaphore",
];

/// Each field of a struct that can grow: `module::Type::field`; a struct of one unnamed field is the place itself.
fn growing_fields(source: &Source) -> BTreeSet<String> {
    let is_growing = |of: &str| GROWING.iter().any(|name| of.contains(name));
    let mut found = BTreeSet::new();
    let mut inside: Option<String> = None;
    for line in source.text.lines() {
        let declared = line.trim_start_matches("pub").trim_start();
        let declared =
            declared.strip_prefix('(').map_or(declared, |rest| rest.split_once(')').map_or("", |(_, rest)| rest));
        if let Some(rest) = declared.trim_start().strip_prefix("struct ") {
            let name: String = rest.chars().take_while(|character| character.is_alphanumeric()).collect();
            let place = format!("{}::{name}", source.module);
            match &rest[name.len()..] {
                tuple if tuple.starts_with('(') => {
                    if is_growing(tuple) {
                        found.insert(place);
                    }
                }
                braces => inside = (braces.ends_with('{')).then_some(place),
            }
        } else if line == "}" {
            inside = None;
        } else if let Some(place) = &inside
            && let Some((name, of)) = line.trim().split_once(": ")
            && !line.trim().starts_with("//")
            && is_growing(of)
        {
            let name = name.rsplit(' ').next().unwrap();
            found.insert(format!("{place}::{name}"));
        }
    }
    found
}

#[test]
fn each_field_that_can_grow_has_a_row() {
    let sources = sources();
    let all = sources.iter().filter(|source| is_of_the_server(&source.module)).flat_map(growing_fields).collect();
    let rows = maxima();
    let in_table: BTreeSet<String> = rows.iter().flat_map(|row| spans(&row[WHERE])).map(ToOwned::to_owned).collect();
    let mut wrong = check_places(&all, &in_table, FIELDS_WITHOUT_ROW);
    wrong.extend(in_table.iter().filter(|place| !all.contains(*place)).map(|place| format!("{place} does not exist")));
    assert!(all.len() > 60, "only {} fields were found", all.len());
    assert!(wrong.is_empty(), "the table \"Maxima\" of docs/reference/maxima.md:\n{}", wrong.join("\n"));
}

fn bounds_something(name: &str) -> bool {
    let ends = [
        "_MAX",
        "_BYTES",
        "_EVENTS",
        "_BATCH",
        "_TURN",
        "_RECORDS",
        "_PLACES",
        "_MESSAGES",
        "_QUEUE",
        "_LINES",
        "_UNITS",
        "_BURST",
    ];
    let whole =
        ["INBOX", "BATCH", "TURN", "RECORDS", "SESSIONS", "LONG", "QUEUE", "SWEEP", "MAX", "ADOPTED", "REMEMBERED"];
    ends.iter().any(|end| name.ends_with(end)) || whole.contains(&name) || name.contains("_PER_")
}

#[test]
fn each_constant_that_bounds_something_has_a_row() {
    let sources = sources();
    let is_bound = |path: &&String| {
        let (module, name) = path.rsplit_once("::").unwrap();
        is_of_the_server(module) && bounds_something(name)
    };
    let constants = constants(&sources);
    let all: BTreeSet<String> = constants.keys().filter(is_bound).cloned().collect();
    let rows = maxima();
    let in_table: BTreeSet<String> = rows
        .iter()
        .flat_map(|row| spans(&row[MAXIMUM]).into_iter().chain(spans(&row[SHARE])))
        .map(ToOwned::to_owned)
        .collect();
    let wrong = check_places(&all, &in_table, CONSTANTS_WITHOUT_ROW);
    assert!(all.len() > 40, "only {} constants were found", all.len());
    assert!(wrong.is_empty(), "the table \"Maxima\" of docs/reference/maxima.md:\n{}", wrong.join("\n"));
}

#[test]
fn each_queue_between_tasks_has_a_maximum_of_the_table() {
    let rows = maxima();
    let maxima: Vec<&str> = rows.iter().flat_map(|row| spans(&row[MAXIMUM])).collect();
    let in_table = |module: &str, of: &str| {
        let name = of.rsplit("::").next().unwrap();
        maxima
            .iter()
            .any(|span| *span == of || *span == format!("{module}::{name}") || span.ends_with(&format!("::{name}")))
    };
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| is_of_the_server(&source.module)) {
        let makers = [
            "mpsc::channel(",
            "sync_channel(",
            "RingBuffer::new(",
            "Semaphore::new(",
            "FairMap::new(",
            "AdoptedStreams::new(",
        ];
        for maker in makers {
            for (at, _) in source.text.match_indices(maker) {
                let of = source.text[at + maker.len()..].split(')').next().unwrap().trim();
                seen += 1;
                // A bound that a function was given is looked at where it was given.
                let is_named = in_table(&source.module, of)
                    || of.starts_with("bounds.")
                    // For one answer.
                    || of == "1"
                    || in_table("", &format!("{}::{of}", source.module));
                if !is_named {
                    wrong.push(format!("{}: {maker}{of}): no row has {of} as its maximum", source.module));
                }
            }
        }
        for unbounded in ["unbounded_channel", "flume::unbounded", "mpsc::unbounded"] {
            if source.text.contains(unbounded) {
                wrong.push(format!("{}: {unbounded} has no maximum", source.module));
            }
        }
    }
    assert!(seen >= 6, "only {seen} queues were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A check that finds nothing proves nothing unless it can find something.
#[test]
fn the_checks_can_fail() {
    let text = "pub(super) struct Streams {\n    slots: Slab<Stream>,\n    next: u64,\n}\nstruct Rates(Mutex<HashMap<Name, u8>>);\n";
    let source = Source { module: "net::streams".to_owned(), text: text.to_owned() };
    let fields = growing_fields(&source);
    let expected: BTreeSet<String> =
        ["net::streams::Streams::slots", "net::streams::Rates"].map(ToOwned::to_owned).into();
    assert_eq!(fields, expected);
    let wrong = check_places(&fields, &BTreeSet::new(), &[("net::streams::Rates", "why"), ("net::gone", "why")]);
    assert_eq!(wrong, ["net::streams::Streams::slots has no row", "net::gone is an exception and not there"]);
    let text = "const A: usize = 4 << 10;\npub(super) const B_MAX: u64 = 2 * A as_u64;\nconst C: Duration = Duration::from_secs(5 * 60);\nconst D: T = T {\n    of: A + 1,\n};\n";
    let constants = constants(&[Source { module: "m".to_owned(), text: text.to_owned() }]);
    let value = |path| value_of(path, &constants);
    assert_eq!(
        (value("m::A"), value("m::C"), value("m::D.of"), value("m::E")),
        (Some(4096), Some(300_000), Some(4097), None)
    );
    assert_eq!((number_of("4,096"), number_of("5 min"), number_of("some")), (Some(4096), Some(300_000), None));
}
