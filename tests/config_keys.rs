//! Each row of `config::keys` holds: the page of keys and the example are made from it, a wrong value is an error that
//! names it, and a changed value is told by a reload and reaches the typed configuration.
//!
//! With UPDATE_SNAPSHOTS=1 the page is written anew, and the example gets the keys and the first lines that it lacks.

mod key_page;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use test_support::json_schema::Validator;
use test_support::source_text::{Source, sources, words};
use throughway::protocol::peer_policy::LocalAddresses;

use throughway::config::keys::{ConfigKey, FIELDS, ValueType};
use throughway::config::{Config, Environment, KEYS};

const SECRET: &str = "[[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\n\
    claims = [\"bytes\", \"bitrate\", \"allocations\", \"peers\", \"transports\", \"closes_at\", \"tenant\"]\n";

/// Compares a file with what the rows make of it, or writes it.
fn hold(name: &str, make: impl Fn(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let text = fs::read_to_string(&path).unwrap();
    let wanted = make(&text);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    for (line, wanted) in text.lines().zip(wanted.lines()) {
        assert_eq!(line, wanted, "{name} differs from config::keys; run again with UPDATE_SNAPSHOTS=1");
    }
    assert_eq!(text, wanted, "{name}");
}

#[test]
fn the_page_of_keys_is_made_from_the_rows_and_the_example() {
    hold("docs/reference/keys.md", key_page::renewed);
}

#[test]
fn the_comment_of_each_key_of_the_example_begins_with_its_row() {
    hold("config.example.toml", |text| {
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        for key in KEYS {
            let (section, name) = key.path.split_once('.').unwrap_or(("", key.path));
            let is_head = |line: &String| line.starts_with('[') && !line.starts_with("[[");
            let start = match section {
                "" => 0,
                section => lines.iter().position(|line| *line == format!("[{section}]")).expect("a section") + 1,
            };
            let length = lines[start..].iter().position(is_head).unwrap_or(lines.len() - start);
            let help = format!("# {}.", key.sentence());
            // Tables are shown as examples, which the reader makes a key by removing the '#'.
            let forms =
                [format!("{name} = "), format!("#{name} = "), format!("#   {name} = "), format!("#[[{}]]", key.path)];
            let forms = if key.value_type.is_tables() { &forms[..] } else { &forms[..1] };
            let is_key = |line: &String| forms.iter().any(|form| line.starts_with(form));
            match lines[start..start + length].iter().position(is_key).map(|at| start + at) {
                Some(at) => {
                    let comment = lines[..at].iter().rev().take_while(|line| line.starts_with('#')).count();
                    match lines[at - comment..at].first_mut() {
                        Some(first) => *first = help,
                        None => lines.insert(at, help),
                    }
                }
                None => {
                    let blank =
                        lines[..start + length].iter().rposition(|line| !line.is_empty()).map_or(0, |at| at + 1);
                    lines.splice(blank..blank, [String::new(), help, format!("{name} = {}", key.default)]);
                }
            }
        }
        lines.join("\n") + "\n"
    });
}

/// Values of a wrong type and out of range.
fn wrong_values(key: &ConfigKey) -> Vec<String> {
    let no_zero = |zero: &str| key.zero.map_or_else(|| vec![zero.to_owned()], |_| Vec::new());
    let mut wrong: Vec<String> = match key.value_type {
        ValueType::Text => vec!["5".into(), "[\"x\"]".into()],
        ValueType::Word(_) => vec!["5".into(), "\"nonsense\"".into()],
        ValueType::Flag => vec!["\"yes\"".into(), "1".into()],
        ValueType::Count(max) => {
            [no_zero("0"), vec!["-1".into(), "\"many\"".into(), (u64::from(max) + 1).to_string()]].concat()
        }
        ValueType::AutoOr(max) => vec!["0".into(), "\"many\"".into(), (u64::from(max) + 1).to_string()],
        ValueType::Duration(_, max) => {
            // Some have no end but that of the word.
            let beyond = max.checked_add(1).map(|beyond| format!("\"{beyond}s\""));
            no_zero("\"0s\"").into_iter().chain(["5".into()]).chain(beyond).collect()
        }
        ValueType::Size(1) => vec!["5".into(), "\"5GB\"".into()],
        ValueType::Size(min) => [no_zero("\"0B\""), vec!["5".into(), format!("\"{}B\"", min - 1)]].concat(),
        ValueType::Rate => vec!["5".into(), "\"3Mb\"".into()],
        ValueType::List => vec!["5".into(), "\"x\"".into()],
        ValueType::Addresses | ValueType::Tables(_) | ValueType::Table(_) => vec!["5".into()],
        ValueType::Instant => vec!["5".into(), "\"tomorrow\"".into(), "\"2026-12-31T12:00:00\"".into()],
        ValueType::Claims => vec!["5".into(), "\"yes\"".into()],
        ValueType::Peers => vec!["5".into(), "\"all\"".into()],
    };
    wrong.push("true".to_owned());
    wrong.retain(|value| value != "true" || !matches!(key.value_type, ValueType::Flag | ValueType::Claims));
    wrong
}

/// A table with a wrong field, the line of the field, and the path that the error names.
fn table_with(field: &ConfigKey, value: &str) -> (String, String) {
    let (table, name) = field.path.rsplit_once('.').unwrap();
    match table {
        "*.limits" => {
            let text =
                format!("auth.users.a = {{ password = \"wonderland-2026\", limits = {{ {name} = {value} }} }}\n");
            (text, format!("auth.users.a.limits.{name}"))
        }
        "listen.*" | "http.public" => {
            let list = if table == "http.public" { table } else { "listen.tcp" };
            let rest = if name == "address" { "" } else { ", address = \"127.0.0.1:21099\"" };
            (format!("{list} = [{{ {name} = {value}{rest} }}]\n{SECRET}"), format!("{list}[0].{name}"))
        }
        "tls.acme" => (format!("tls.acme = {{ {name} = {value} }}\n{SECRET}"), field.path.to_owned()),
        "auth.users" => (format!("auth.users.a = {{ {name} = {value} }}\n"), format!("auth.users.a.{name}")),
        table => {
            let secret = if table == "auth.secrets" { "" } else { SECRET };
            (format!("{table} = [{{ {name} = {value} }}]\n{secret}"), format!("{table}[0].{name}"))
        }
    }
}

// The rows of fields are all that their readers have: a field without one is unknown.
#[test]
fn a_wrong_field_of_a_table_is_told_once_and_by_its_path() {
    for field in FIELDS {
        for value in wrong_values(field) {
            let (text, path) = table_with(field, &value);
            let error = Config::from_toml("c.toml", &text).expect_err(&text);
            assert_eq!(error.problems.len(), 1, "{text}{error}");
            assert_eq!(error.problems[0].key, path, "{error}");
            let error = error.to_string();
            let has_remedy =
                ["expected ", "allowed are ", "such as ", "leave it out"].iter().any(|word| error.contains(word));
            assert!(has_remedy, "{error}");
        }
    }
}

#[test]
fn a_wrong_type_and_a_value_out_of_range_name_key_value_and_remedy() {
    for key in KEYS {
        for value in wrong_values(key) {
            let secret = if key.path.starts_with("auth.secrets") { "" } else { SECRET };
            let text = format!("{} = {value}\n{secret}", key.path);
            let error = Config::from_toml("c.toml", &text).expect_err(&text);
            let problem = error.problems.iter().find(|problem| problem.key == key.path);
            let shown = problem.unwrap_or_else(|| panic!("{text}{error}")).to_string();
            // Nothing of users, secrets and keys is ever shown.
            let is_secret = key.path.starts_with("auth.users") || ["auth.secrets", "http.keys"].contains(&key.path);
            let start = if is_secret {
                format!("c.toml:1: {}: ", key.path)
            } else {
                format!("c.toml:1: {} = {value}: ", key.path)
            };
            assert!(shown.starts_with(&start), "{shown}");
            let has_remedy = ["expected ", "allowed are ", "such as "].iter().any(|word| shown.contains(word));
            assert!(has_remedy, "{shown}");
        }
    }
}

const URL: &str = "http.jwt_audience = \"a\"\nhttp.jwt_keys = \"https://127.0.0.1/jwks\"\n";
const TLS: &str = "tls.certificate = \"a.pem\"\ntls.private_key = \"a.key\"\n";
const WEBHOOK: &str = "accounting.webhook = \"https://127.0.0.1/u\"\naccounting.spool = \"s\"\n";

/// Of keys whose type says too little about them: what stands beside them in both files, and a valid value other than the
/// default. A key that is beside itself has the value there at first.
const ALTERNATES: &str = "turn.alternates = [{ address = \"192.0.2.8:3478\" }]\n";

const OTHER_VALUES: &[(&str, &str, &str)] = &[
    ("realm", "", "\"r\""),
    ("listen.udp", "", "[\"127.0.0.1:21001\"]"),
    ("listen.tcp", "", "[\"127.0.0.1:21001\"]"),
    ("listen.tls", TLS, "[\"127.0.0.1:21001\"]"),
    ("listen.auto", TLS, "[\"127.0.0.1:21001\"]"),
    (
        "listen.shared",
        TLS,
        "[{ address = \"127.0.0.1:21001\", backend = \"127.0.0.1:21002\", names = [\"a.example.org\"] }]",
    ),
    ("limits.file", "", "\"l\""),
    ("relay.ports_by_tenant", "", "{ a = \"50000-50099\" }"),
    ("tls.certificate", TLS, "\"b.pem\""),
    ("tls.private_key", TLS, "\"b.key\""),
    ("tls.certificates", "", "[{ certificate = \"a.pem\", private_key = \"a.key\" }]"),
    ("tls.acme", "", "{ domains = [\"a.example.org\"], state = \"acme\" }"),
    ("relay.addresses", "", "[\"127.0.0.1\"]"),
    ("relay.external", "", "\"192.0.2.1\""),
    ("relay.external_servers", "", "[\"stun.example.org:3478\"]"),
    ("relay.external_metadata", "relay.external = \"aws\"\n", "\"http://127.0.0.1:8000\""),
    ("relay.ports", "", "\"50000-50100\""),
    ("turn.max_lifetime", "", "\"2h\""),
    ("turn.redirect", ALTERNATES, "\"full\""),
    ("turn.redirect_percent", "turn.redirect = \"full\"\nturn.alternates = [{ address = \"192.0.2.8:3478\" }]\n", "7"),
    ("turn.alternates", "", "[{ address = \"192.0.2.8:3478\" }]"),
    ("auth.expiry_grace", "auth.on_expiry = \"close\"\n", "\"7s\""),
    ("auth.nonce_key_file", "", "\"secret\""),
    ("auth.revocations_file", "", "\"revocations\""),
    ("auth.users", "", "{ alice = \"wonderland-2026\" }"),
    ("auth.secrets", "", "[{ id = \"other\", value = \"south-of-everything\" }]"),
    ("peers.allow", "", "[\"10.0.0.0/8\"]"),
    ("peers.deny", "", "[\"8.8.8.0/24\"]"),
    ("http.listen", "", "\"127.0.0.1:21001\""),
    ("http.hosts", "", "[\"a.example.org\"]"),
    ("http.public", "http.proxies = [\"127.0.0.1\"]\nhttp.identity_header = \"X-User\"\n", "[\"127.0.0.1:21001\"]"),
    ("http.public_name", "", "\"turn.example.org\""),
    ("http.unix_uids", "", "[33]"),
    ("http.chatmail_socket", "http.unix_uids = [33]\n", "\"/run/chatmail.sock\""),
    ("http.proxies", "", "[\"127.0.0.1\"]"),
    ("http.identity_header", "http.proxies = [\"127.0.0.1\"]\n", "\"X-User\""),
    ("http.jwt_keys", URL, "\"jwks\""),
    ("http.jwt_ca_file", URL, "\"a.pem\""),
    ("http.jwt_audience", URL, "\"b\""),
    ("http.jwt_issuer", URL, "\"i\""),
    ("http.jwt_user_claim", URL, "\"name\""),
    ("http.jwt_tenant_claim", URL, "\"tenant\""),
    ("http.jwt_limits_claim", URL, "\"limits\""),
    ("http.cors", "", "[\"https://app.example.org\"]"),
    ("http.admin_socket", "", "\"/run/admin.sock\""),
    ("http.admin_uids", "", "[33]"),
    ("http.admin_token_file", "", "\"secret\""),
    ("http.admin_token_credential", "", "\"secret\""),
    (
        "http.keys",
        "",
        "[{ name = \"web\", sha256 = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\" }]",
    ),
    ("accounting.file", "", "\"u\""),
    ("accounting.interval", "accounting.file = \"u\"\n", "\"7s\""),
    ("accounting.rotate_size", "accounting.file = \"u\"\n", "\"7MiB\""),
    ("accounting.rotate_count", "accounting.file = \"u\"\n", "7"),
    ("accounting.journal", "", "\"/run/journal\""),
    ("accounting.webhook", WEBHOOK, "\"https://127.0.0.1/v\""),
    ("accounting.webhook_ca_file", WEBHOOK, "\"a.pem\""),
    ("accounting.webhook_token_file", WEBHOOK, "\"secret\""),
    ("accounting.spool", WEBHOOK, "\"t\""),
    ("accounting.spool_max", WEBHOOK, "\"7MiB\""),
    ("accounting.sign_key_file", "", "\"secret\""),
    ("accounting.server", "accounting.file = \"u\"\n", "\"turn-7\""),
    (
        "stun.discovery",
        "listen.udp = [\"0.0.0.0:3478\", \"0.0.0.0:3479\"]\n",
        "[\"192.0.2.1:3478\", \"192.0.2.2:3479\"]",
    ),
    ("drain.alternate", "", "[\"203.0.113.8:3478\"]"),
    ("drain.alternate_tls", "", "[\"203.0.113.8:5349\"]"),
    ("drain.alternate_domain", "drain.alternate_tls = [\"203.0.113.8:5349\"]\n", "\"turn2.example.org\""),
    ("upgrade.socket", "", "\"/run/upgrade.sock\""),
    ("log.journal", "", "\"/run/journal\""),
];

/// What stands beside a key, and a valid value other than its default.
fn other_value(key: &ConfigKey) -> (&'static str, String) {
    if let Some((_, beside, value)) = OTHER_VALUES.iter().find(|(path, ..)| *path == key.path) {
        return (beside, (*value).to_owned());
    }
    let value = match key.value_type {
        ValueType::Flag => (key.default != "true").to_string(),
        ValueType::Word(words) => format!("\"{}\"", words.iter().find(|word| !key.default.contains(*word)).unwrap()),
        ValueType::Count(_) | ValueType::AutoOr(_) => "7".to_owned(),
        ValueType::Duration(..) => "\"7s\"".to_owned(),
        ValueType::Size(_) => "\"7MiB\"".to_owned(),
        ValueType::Rate => "\"7Mbit/s\"".to_owned(),
        ValueType::Text
        | ValueType::List
        | ValueType::Addresses
        | ValueType::Tables(_)
        | ValueType::Table(_)
        | ValueType::Instant
        | ValueType::Claims
        | ValueType::Peers => {
            panic!("{}: add a valid value that is not its default to OTHER_VALUES", key.path)
        }
    };
    ("", value)
}

/// A configuration, and one in which a key has another value.
fn old_and_new_text(key: &ConfigKey) -> [String; 2] {
    let (beside, value) = other_value(key);
    let secret = if key.path == "auth.secrets" { "" } else { SECRET };
    let is_other = |line: &&str| !line.starts_with(&format!("{} =", key.path));
    let without: String = beside.split_inclusive('\n').filter(is_other).collect();
    [format!("{beside}{SECRET}"), format!("{without}{} = {value}\n{secret}", key.path)]
}

#[test]
fn a_changed_value_is_told_by_a_reload_and_waits_for_a_restart_if_its_row_says_so() {
    let directory = Files::new("changed");
    for key in KEYS {
        let (old, new) = directory.old_and_new(key);
        let changes = old.changes(&new);
        assert_eq!(changes.len(), 1, "{}: {changes:?}", key.path);
        assert_eq!((changes[0].key, changes[0].needs_restart), (key.path, key.restart_reason()));
        assert!(!changes[0].change.is_empty());
        assert_eq!(old.needs_restart(&new).len(), usize::from(key.restart_reason().is_some()), "{}", key.path);

        // The warnings are of the new file in any case.
        let (mut old, mut running) = (old.clone(), new.until_restart(&old));
        old.warnings.clear();
        running.warnings.clear();
        let is_the_same = format!("{old:?}") == format!("{running:?}");
        assert_eq!(
            is_the_same,
            key.restart_reason().is_some(),
            "{}: a value goes into the typed configuration, and there waits for a restart if the row says so \
             (`Config::until_restart`)",
            key.path
        );
    }
}

#[test]
fn the_schema_takes_each_right_value_and_refuses_each_wrong_one() {
    let (schema, directory) = (Validator::new(), Files::new("schema"));
    for key in KEYS {
        for text in old_and_new_text(key) {
            // That it is right for the server too, whatever is in the files.
            directory.load(&text);
            schema.check(&text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", key.path));
        }
        for value in wrong_values(key) {
            let text = format!("{} = {value}\n", key.path);
            assert!(schema.check(&text).is_err(), "the schema takes {text}");
        }
    }
    for field in FIELDS {
        for value in wrong_values(field) {
            let (text, _) = table_with(field, &value);
            assert!(schema.check(&text).is_err(), "the schema takes {text}");
        }
    }
}

/// Forms that are right, at the edges of what is allowed.
#[test]
fn the_schema_is_no_narrower_than_the_check() {
    let schema = Validator::new();
    for text in [
        "workers = 256",
        "realm = \"ü\"",
        "listen.udp = [{ address = \"[::1]:0\" }, \"127.0.0.1:065535\"]",
        "relay.external = [\"203.0.113.7\", \"2001:db8::7\"]",
        "relay.external = { \"10.0.0.5\" = \"203.0.113.7\" }",
        "relay.ports = \" 5000 - 05000\"",
        "turn.max_lifetime = \"4294967295s\"",
        "auth.max_ttl = \"3650d\"",
        "auth.max_session = \"0s\"",
        "auth.max_session = \"0\"",
        "limits.burst = \"1m\"",
        "limits.tcp_queue = \"65556B\"",
        "limits.tcp_queue = \"65KiB\"",
        "limits.bandwidth = \"18446744073Gbit/s\"",
        "limits.channels_per_allocation = 16383",
        "peers.allow = [\"10.0.0.1\", \"fd00::/8\"]",
        "http.listen = \"\"",
        "http.listen = \"unix:/run/t.sock\"",
        "http.unix_uids = [33, \"34\"]",
        "http.admin_socket = \"none\"",
        "upgrade.socket = \"unix:/run/upgrade.sock\"",
        "relay.tcp = false",
        "listen.dtls = []",
        "listen.shared = []",
        "auth.users.a = { key_md5 = \"0123456789abcdef0123456789ABCDEF\", limits = { bytes_per_day = \"1GiB\" } }",
        "[[auth.secrets]]\nid = \"b\"\nvalue = \"üüüüüüüü\"\nnot_after = 2099-12-31\nclaims = [\"bytes\"]",
        "[[auth.secrets]]\nid = \"b\"\nvalue = \"south-of-everything\"\nnot_after = \"2099-12-31T12:00:00+01:00\"\n\
         limits = { peers = \"relay\", transports = [\"tls\"] }",
    ] {
        let text = format!("{text}\n{SECRET}");
        Config::from_toml("c.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        schema.check(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

/// A field of the typed configuration, or of the core's settings, on the way from the whole to one value: its struct, the
/// field that holds that struct, and its own name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Step {
    of: String,
    within: String,
    name: String,
}

/// What each field holds by itself, without the fields below it, as the `{:#?}` of a value shows them.
fn fields_of(shown: &str) -> BTreeMap<Vec<Step>, String> {
    let mut fields: BTreeMap<Vec<Step>, String> = BTreeMap::new();
    // Of each level that is open: the struct that it is, and the path of the field that holds it.
    let mut open: Vec<(String, Vec<Step>)> = Vec::new();
    for line in shown.lines() {
        let line = line.trim();
        if line.starts_with(['}', ']', ')']) {
            open.pop();
            continue;
        }
        let (of, mut path) = open.last().cloned().unwrap_or_default();
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let named = line.split_once(": ").filter(|(name, _)| is_name(name));
        let rest = named.map_or(line, |(_, rest)| rest);
        if let Some((name, _)) = named {
            let within = path.last().map(|step| step.name.clone()).unwrap_or_default();
            path.push(Step { of, within, name: name.to_owned() });
        }
        *fields.entry(path.clone()).or_default() += &format!("{rest}\n");
        if rest.ends_with(['{', '[', '(']) {
            let of = rest.rsplit(": ").next().unwrap_or(rest).trim_end_matches([' ', '{', '[', '(']);
            open.push((of.to_owned(), path));
        }
    }
    fields
}

/// Whether a source outside of the configuration reads a field: it says `.name`, and also names the struct or the field
/// that holds it; or it takes the struct apart.
fn is_read(sources: &[(PathBuf, Vec<&str>)], step: &Step) -> bool {
    sources.iter().any(|(path, words)| {
        let names_it = words.iter().any(|word| *word == step.of || *word == step.within);
        let takes_apart = || {
            let at = words.windows(2).enumerate().filter(|(_, pair)| pair[0] == step.of && pair[1] == "{");
            at.into_iter()
                .any(|(at, _)| words[at..].iter().take_while(|word| **word != "}").any(|word| *word == step.name))
        };
        let is_definition = path.ends_with("protocol/settings.rs");
        let has_dot = || words.windows(2).any(|pair| pair == [".", &step.name]);
        !is_definition && names_it && (has_dot() || takes_apart())
    })
}

// A live key that is read and never used would pass all tests above. To change each of a hundred keys on a running server,
// with the traffic that shows it, is what tests/e2e_*.rs do for those that matter most; it is too slow for all. This test
// takes every key: it finds the fields that a changed value changes, in the typed configuration or in what the core gets of
// it, by comparing both as they show themselves. Code outside of `src/config` must read each step of the way to one of them.
// It does not find a field that is read for nothing, nor one whose name another struct of the same file has too.
#[test]
fn what_a_key_changes_is_read_outside_of_the_configuration() {
    let directory = Files::new("read");
    let all: Vec<Source> = sources("src");
    let outside = all.iter().filter(|source| {
        !source.path.starts_with("src/config")
            && !source.path.ends_with("src/config.rs")
            && !source.path.ends_with("tests.rs")
    });
    let outside: Vec<_> = outside.map(|source| (source.path.clone(), words(source.without_tests()))).collect();
    for key in KEYS {
        let (old, new) = directory.old_and_new(key);
        let shown = [&old, &new].map(|config| {
            let config = Config { warnings: Vec::new(), ..config.clone() };
            let settings = config.settings(LocalAddresses::default(), true, true).unwrap();
            [fields_of(&format!("{config:#?}")), fields_of(&format!("{settings:#?}"))]
        });
        let [old, new] = shown;
        let changed: Vec<Vec<Step>> = old
            .iter()
            .zip(&new)
            .flat_map(|(old, new)| old.keys().chain(new.keys()).filter(|path| old.get(*path) != new.get(*path)))
            .cloned()
            .collect();
        assert!(!changed.is_empty(), "{}: no field of the typed configuration holds it", key.path);
        let is_used = |path: &Vec<Step>| !path.is_empty() && path.iter().all(|step| is_read(&outside, step));
        assert!(
            changed.iter().any(is_used),
            "{}: it changes {changed:#?}, and nothing outside of src/config reads that",
            key.path
        );
    }
}

#[test]
fn the_check_tells_a_field_that_is_read_from_one_that_is_not() {
    let shown = "Config {\n    log: LogConfig {\n        level: Info,\n        journal: Some(\n            \"x\",\n        ),\n    },\n}";
    let fields = fields_of(shown);
    let names = |path: &Vec<Step>| path.iter().map(|step| step.name.as_str()).collect::<Vec<_>>().join(".");
    let shown: Vec<_> = fields.iter().map(|(path, value)| (names(path), value.as_str())).collect();
    for (path, value) in [("log", "LogConfig {\n"), ("log.level", "Info,\n"), ("log.journal", "Some(\n\"x\",\n")] {
        assert!(shown.contains(&(path.to_owned(), value)), "{path}: {shown:?}");
    }
    let level = Step { of: "LogConfig".into(), within: "log".into(), name: "level".into() };
    for (code, read) in [
        ("start(config.log.level)", true),
        ("fn f(log: &LogConfig) { log.level }", true),
        ("let LogConfig { format, level } = log;", true),
        ("fn f(log: &LogConfig) { other(level) }", false),
        ("meter.level()", false),
    ] {
        assert_eq!(is_read(&[(PathBuf::from("src/x.rs"), words(code))], &level), read, "{code}");
    }
}

/// Certificates, keys and secrets for the keys that name a file; gone after the test.
struct Files(PathBuf);

impl Files {
    /// A configuration, and one in which a key has another value.
    fn old_and_new(&self, key: &ConfigKey) -> (Config, Config) {
        let [old, new] = old_and_new_text(key);
        (self.load(&old), self.load(&new))
    }

    fn load(&self, text: &str) -> Config {
        let environment: Environment = [("CREDENTIALS_DIRECTORY", self.0.to_str().unwrap())].into_iter().collect();
        let path = self.0.join("c.toml");
        fs::write(&path, text).unwrap();
        Config::load(&path, &environment).unwrap_or_else(|error| panic!("{text}\n{error}"))
    }

    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("throughway-config-keys-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let pair = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["turn.example.org".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&pair).unwrap().pem();
        let key = pair.serialize_pem();
        let jwks = r#"{"keys":[{"kty":"oct","k":"bm9ydGgtb2YtZXZlcnl0aGluZy1hbmQtbW9yZS1vZi1pdA"}]}"#;
        for (name, text) in [
            ("a.pem", certificate.as_str()),
            ("b.pem", &certificate),
            ("a.key", &key),
            ("b.key", &key),
            ("jwks", jwks),
            ("secret", "south-of-everything-else"),
        ] {
            fs::write(path.join(name), text).unwrap();
        }
        Self(path)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
