//! From coturn and eturnal: each folder of tests/import is a configuration, what becomes of it, and every verdict.
//!
//! With UPDATE_SNAPSHOTS=1 the results are written anew: look at the difference.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ipnet::IpNet;
use throughway::config::Config;
use throughway::config::coturn::{Fate, OPTIONS};
use throughway::import::coturn::Input;
use throughway::import::draft::Draft;
use throughway::import::verdict::Outcome;
use throughway::import::{coturn, database, eturnal};
use throughway::protocol::peer_policy::{LocalAddresses, PeerPolicy};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import").join(name)
}

/// The folders of cases, in order.
fn cases() -> Vec<String> {
    let entries = fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name().into_string().unwrap());
    folders.collect::<BTreeSet<String>>().into_iter().collect()
}

fn read_database(path: &str) -> Result<Vec<database::Table>, String> {
    let bytes = fs::read(folder(path)).map_err(|_| "can't be read".to_owned())?;
    database::of_sqlite(path, &bytes)
}

fn import_case(case: &str) -> (Draft, &'static str) {
    if let Ok(text) = fs::read_to_string(folder(case).join("eturnal.yml")) {
        return (eturnal::import("eturnal.yml", &text).unwrap(), "eturnal.yml");
    }
    let file = fs::read(folder(case).join("turnserver.conf")).unwrap_or_default();
    let arguments = fs::read_to_string(folder(case).join("arguments")).unwrap_or_default();
    let arguments: Vec<String> = arguments.lines().map(ToOwned::to_owned).collect();
    (of_coturn(&file, &arguments), "turnserver.conf")
}

fn of_coturn(file: &[u8], arguments: &[String]) -> Draft {
    coturn::import(Input { name: "turnserver.conf", file, arguments, ..Input::default() }, &read_database)
}

fn hold(path: &Path, found: &str) {
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(path, found).unwrap();
        return;
    }
    let wanted = fs::read_to_string(path).unwrap_or_default();
    for (number, (found, wanted)) in found.lines().zip(wanted.lines()).enumerate() {
        assert_eq!(found, wanted, "{}:{}", path.display(), number + 1);
    }
    assert_eq!(found, wanted, "{}", path.display());
}

fn verdicts(draft: &Draft) -> String {
    draft.sorted().iter().map(|verdict| format!("{verdict}\n")).collect()
}

#[test]
fn each_case_becomes_what_is_written_beside_it() {
    let cases = cases();
    assert!(cases.len() >= 25, "{cases:?}");
    for case in cases {
        let (draft, source) = import_case(&case);
        hold(&folder(&case).join("config.toml"), &draft.text(source));
        hold(&folder(&case).join("verdicts"), &verdicts(&draft));
    }
}

#[test]
fn a_result_without_questions_is_a_valid_configuration() {
    let mut valid = 0;
    for case in cases() {
        let (draft, source) = import_case(&case);
        let text = draft.text(source);
        // Questions are comments: what is left is TOML in any case.
        let parsed: Result<toml::Table, _> = toml::from_str(&text);
        assert!(parsed.is_ok(), "{case}: {parsed:?}\n{text}");
        let needs_a_person = draft.sorted().iter().any(throughway::import::verdict::Verdict::needs_a_person);
        match Config::from_toml("config.toml", &text) {
            Ok(_) => valid += 1,
            Err(error) => {
                // The files of certificates are on another machine.
                let is_about_files = error.problems.iter().all(|problem| problem.key.starts_with("tls."));
                assert!(needs_a_person || is_about_files, "{case}: {error}");
            }
        }
    }
    assert!(valid >= 10, "{valid}");
}

#[test]
fn every_line_has_a_verdict() {
    let mut seen = 0;
    for case in cases() {
        let Ok(text) = fs::read_to_string(folder(&case).join("turnserver.conf")) else { continue };
        let told = verdicts(&import_case(&case).0);
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            seen += 1;
            let place = format!("turnserver.conf:{}: ", number + 1);
            assert!(told.lines().any(|verdict| verdict.starts_with(&place)), "{case}: no verdict on {line}");
        }
    }
    assert!(seen > 300, "{seen}");
}

#[test]
fn no_verdict_shows_a_secret() {
    let options =
        ["static-auth-secret", "user", "cli-password", "stateless-nonce-secret", "psql-userdb", "redis-statsdb"];
    let mut seen = 0;
    for case in cases() {
        let Ok(text) = fs::read_to_string(folder(&case).join("turnserver.conf")) else { continue };
        let told = verdicts(&import_case(&case).0);
        for line in text.lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            let secret = value.rsplit(':').next().unwrap_or_default().trim_matches('"');
            if options.contains(&name.trim()) && secret.len() >= 8 && !secret.contains(['$', '_', '{']) {
                seen += 1;
                assert!(!told.contains(secret), "{case}: a verdict shows the value of {name}");
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

/// Every option alone, with a value that it may have.
#[test]
fn every_option_of_every_version_is_known() {
    let mut carried = 0;
    for option in OPTIONS {
        let value = match option.name {
            _ if !option.has_value => "",
            "external-ip" | "relay-ip" | "listening-ip" | "cli-ip" => "=198.51.100.7",
            name if name.ends_with("peer-ip") => "=9.9.9.9",
            "aux-server" => "=198.51.100.7:3479",
            "static-auth-secret" => "=Ahk4quoh7eePh0fooghuechee1Lo",
            "user" => "=dora:aed8IeCh8Joof0",
            "cert" | "pkey" => "=/etc/x.pem",
            "prometheus-address" | "prometheus-ip" => "=127.0.0.1",
            _ => "=4000",
        };
        let draft = of_coturn(format!("{}{value}\n", option.name).as_bytes(), &[]);
        let of_line: Vec<_> = draft.sorted().into_iter().filter(|verdict| verdict.name == option.name).collect();
        assert!(!of_line.is_empty(), "{}: no verdict", option.name);
        for verdict in of_line {
            assert!(!verdict.message.contains("no version of coturn"), "{verdict}");
            match option.fate {
                Fate::Implied(reason) | Fate::Dropped(reason) if verdict.outcome != Outcome::Carried => {
                    let is_own = ["no-dtls", "no-tls", "no-multicast-peers", "stun-only"].contains(&option.name);
                    assert!(is_own || verdict.message == reason, "{verdict}");
                }
                Fate::Implied(_) | Fate::Dropped(_) | Fate::Asks(_) => {}
                Fate::Becomes(keys, _) => {
                    carried += 1;
                    assert_ne!(verdict.message, format!("write {keys}"), "{}: nothing carries it over", option.name);
                }
            }
        }
    }
    assert!(carried >= 45, "{carried}");
}

/// The address vectors of the peer policy, before and after, as far as a model of coturn can tell; the interop tests ask
/// coturn itself.
#[test]
fn no_import_opens_a_peer_that_is_not_listed() {
    let vectors =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/peer_policy.tsv")).unwrap();
    let default = PeerPolicy::new(&[], &[], LocalAddresses::default()).unwrap();
    let mut opened = 0;
    for case in cases() {
        let (draft, source) = import_case(&case);
        let table: toml::Table = toml::from_str(&draft.text(source)).unwrap();
        let list = |name: &str| -> Vec<IpNet> {
            let items = table.get("peers").and_then(|peers| peers.get(name)?.as_array());
            let net =
                |text: &str| text.parse::<IpNet>().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()));
            // What a person must write first opens nothing: the file is refused until then.
            let items = items.into_iter().flatten().map(|item| item.as_str().unwrap());
            items.filter(|item| !item.starts_with("FILL IN")).map(net).collect()
        };
        let allow = list("allow");
        let policy = PeerPolicy::new(&allow, &list("deny"), LocalAddresses::default()).unwrap();
        for line in vectors.lines().filter(|line| !line.starts_with('#')) {
            let ip: IpAddr = line.split('\t').next().unwrap().parse().unwrap();
            if policy.judge(ip).is_some() && default.judge(ip).is_none() {
                opened += 1;
                // An address of NAT64 reaches the IPv4 address in its last bits.
                let inner = match ip {
                    IpAddr::V6(v6) => IpAddr::from((u128::from(v6) as u32).to_be_bytes()),
                    IpAddr::V4(_) => ip,
                };
                assert!(allow.iter().any(|net| net.contains(&ip) || net.contains(&inner)), "{case}: {ip}");
            }
        }
    }
    assert!(opened > 0, "some case opens something");
}

/// A generator with a seed, so that a failure comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Words that mean something somewhere, to put in the wrong place.
const WORDS: &[&str] = &[
    "realm",
    "user",
    "=",
    ":",
    "::",
    "0.0.0.0",
    "-",
    "/",
    "${X",
    "}",
    "\"",
    "'",
    "\n",
    "\t",
    "#",
    ";",
    "\\",
    "[x]",
    "\u{85}",
    "\u{2028}",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "255.255.255.255",
    "99999999999999999999",
    "0x",
    "allowed-peer-ip=",
    "external-ip=",
    "static-auth-secret=",
    "- ",
    "{",
    "&a",
    "*a",
    "~",
];

/// Whatever is in the old file, the result is TOML that says nothing but what was carried over, and no line is lost.
#[test]
fn damaged_files_never_break_the_result() {
    let mut random = Random(0x5EED_0214);
    let cases = cases();
    let texts: Vec<(String, bool)> = cases
        .iter()
        .map(|case| match fs::read_to_string(folder(case).join("eturnal.yml")) {
            Ok(text) => (text, true),
            Err(_) => (fs::read_to_string(folder(case).join("turnserver.conf")).unwrap_or_default(), false),
        })
        .collect();
    let mut read = 0;
    for round in 0..1500 {
        let (text, is_yaml) = &texts[round % texts.len()];
        let mut text = text.clone();
        for _ in 0..=random.below(4) {
            let at = (0..=random.below(text.len() + 1)).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            match random.below(3) {
                0 => text.insert_str(at, WORDS[random.below(WORDS.len())]),
                1 => text.truncate(at),
                _ => {
                    let end = (at + random.below(40)).min(text.len());
                    let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap();
                    text.replace_range(at..end, "");
                }
            }
        }
        let draft = if *is_yaml {
            let Ok(draft) = eturnal::import("e.yml", &text) else { continue };
            draft
        } else {
            of_coturn(text.as_bytes(), &[])
        };
        read += 1;
        let result = draft.text("t.conf");
        let parsed: Result<toml::Table, _> = toml::from_str(&result);
        assert!(parsed.is_ok(), "round {round}: {parsed:?}\nof\n{text}\nmade\n{result}");
        let sections: Vec<String> = parsed.unwrap().keys().cloned().collect();
        let known =
            ["realm", "workers", "listen", "tls", "relay", "turn", "stun", "auth", "peers", "limits", "http", "log"];
        assert!(sections.iter().all(|section| known.contains(&section.as_str())), "round {round}: {sections:?}");
    }
    assert!(read > 1200, "{read}");
}

#[test]
fn a_value_of_several_lines_stays_in_its_comment() {
    let text = "eturnal:\n  realm: \"${X\\nworkers = 7\\n}\"\n  secret: chai4Ohnie8aeNgaeb2o\n";
    let draft = eturnal::import("e.yml", text).unwrap();
    let parsed: toml::Table = toml::from_str(&draft.text("e.yml")).unwrap();
    assert!(!parsed.contains_key("workers"), "{}", draft.text("e.yml"));
    assert!(
        draft.text("e.yml").contains("# FILL IN (e.yml:2): realm holds ${X\\u{a}workers"),
        "{}",
        draft.text("e.yml")
    );
}

#[test]
fn what_the_running_coturn_does_counts_and_not_what_a_line_says() {
    let told = |file: &str| verdicts(&of_coturn(file.as_bytes(), &[]));
    let both =
        told("realm=a\nuse-auth-secret\nstatic-auth-secret=Ahk4quoh7eePh0fooghuechee1Lo\nuser=dora:aed8IeCh8Joof0\n");
    assert!(both.contains(":4: dropped: user: coturn ignores users"), "{both}");
    // It is on whatever its value is.
    let switched =
        told("realm=a\nuse-auth-secret=0\nuser=dora:aed8IeCh8Joof0\nstatic-auth-secret=Ahk4quoh7eePh0fooghuechee1Lo\n");
    assert!(
        switched.contains(":2: needs you: use-auth-secret: ") && switched.contains("ignores the value"),
        "{switched}"
    );
    // A database has both, and coturn looks at one of them.
    let users = of_coturn(b"realm=turn.example.org\nlt-cred-mech\nuserdb=turndb\n", &[]);
    let (text, told_of_users) = (users.text("t.conf"), verdicts(&users));
    assert!(!text.contains("[[auth.secrets]]") && text.contains("\"user7\""), "{text:.800}");
    assert!(told_of_users.contains("without use-auth-secret coturn does not look at secrets"), "{told_of_users}");
    let open = told("realm=turn.example.org\nuserdb=turndb\n");
    assert!(open.contains("changed: lt-cred-mech: without lt-cred-mech coturn did not ask"), "{open}");
    let two = told("realm=a\nuserdb=nowhere\ndb=turndb\nlt-cred-mech\n");
    assert!(two.contains(":2: dropped: userdb: set again later: turnserver.conf:3"), "{two}");
    // The command line wins.
    let won = of_coturn(b"realm=a\nmin-port=50000\n", &["--realm=b".to_owned(), "--no-tls".to_owned()]);
    assert!(won.text("t.conf").contains("realm = \"b\"  # argument 1"), "{}", won.text("t.conf"));
}

// ---- the commands ----

fn throughway(arguments: &[&str], directory: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
    command.args(arguments).current_dir(directory).env_clear().stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let id = child.id();
    let (done, waited) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = done.send(());
        output
    });
    if waited.recv_timeout(Duration::from_secs(60)).is_err() {
        let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
        panic!("{arguments:?} does not end");
    }
    waiter.join().unwrap().unwrap()
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("throughway-import-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_commands_write_configuration_verdicts_and_exit_codes() {
    let scratch = Scratch::new("commands");
    let good = "realm=a.example\nuse-auth-secret\nstatic-auth-secret=Ahk4quoh7eePh0fooghuechee1Lo\nno-cli\n";
    fs::write(scratch.0.join("t.conf"), good).unwrap();
    let done = throughway(&["import-coturn", "t.conf", "--check", "--", "--min-port=50000"], &scratch.0);
    let (out, err) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "{err}");
    assert!(Config::from_toml("c.toml", &out).is_ok(), "{out}");
    assert!(err.contains("t.conf:1: carried: realm") && err.contains("argument 1: carried: min-port"), "{err}");
    assert!(err.contains("The result is valid.") && !err.contains("Ahk4"), "{err}");

    let done = throughway(&["import-coturn", "t.conf", "--json", "--output", "new.toml"], &scratch.0);
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((done.status.code(), &json["needs_you"]), (Some(0), &false.into()));
    assert_eq!(json["verdicts"][0]["verdict"], "carried");
    assert_eq!((&json["verdicts"][0]["line"], &json["verdicts"][0]["file"]), (&1.into(), &"t.conf".into()));
    let written = fs::metadata(scratch.0.join("new.toml")).unwrap();
    assert_eq!(written.mode() & 0o777, 0o640, "not for others");
    assert_eq!(fs::read_to_string(scratch.0.join("new.toml")).unwrap(), json["config"].as_str().unwrap());
    let again = throughway(&["import-coturn", "t.conf", "--output", "new.toml"], &scratch.0);
    assert_eq!(again.status.code(), Some(2), "a file that is there is not overwritten");

    fs::write(scratch.0.join("t.conf"), format!("{good}no-auth\n")).unwrap();
    let done = throughway(&["import-coturn", "t.conf"], &scratch.0);
    assert_eq!(done.status.code(), Some(3));
    assert!(text(&done.stderr).contains("t.conf:5: needs you: unsafe: no-auth: "), "{}", text(&done.stderr));

    fs::write(scratch.0.join("e.yml"), "eturnal:\n  secret: chai4Ohnie8aeNgaeb2o\n").unwrap();
    let done = throughway(&["import-eturnal", "e.yml", "--check"], &scratch.0);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
}

#[test]
fn a_database_is_read_beside_its_configuration_and_from_csv() {
    let scratch = Scratch::new("database");
    fs::copy(folder("turndb"), scratch.0.join("turndb")).unwrap();
    fs::write(scratch.0.join("t.conf"), "realm=turn.example.org\nlt-cred-mech\nuserdb=turndb\n").unwrap();
    let done = throughway(&["import-coturn", scratch.0.join("t.conf").to_str().unwrap()], Path::new("/"));
    let (out, err) = (text(&done.stdout), text(&done.stderr));
    assert!(out.contains("\"user7\" = { key_md5 = \"00000000000000000000000000000007\" }"), "{out}");
    assert!(err.contains("rows of other realms (other.example.org)"), "{err}");
    assert!(!err.contains("the-secret-of-this-database"), "{err}");
    // What another program has not written back yet.
    fs::write(scratch.0.join("turndb-wal"), "x").unwrap();
    let done = throughway(&["import-coturn", "t.conf", "--database", "turndb"], &scratch.0);
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done.stderr).contains("wal_checkpoint"), "{}", text(&done.stderr));

    fs::write(scratch.0.join("s.csv"), "realm,value\nturn.example.org,quaeSh5thaiPh6ohLa\n").unwrap();
    fs::write(scratch.0.join("p.conf"), "realm=turn.example.org\nuse-auth-secret\npsql-userdb=\"host=x\"\n").unwrap();
    let done = throughway(&["import-coturn", "p.conf", "--csv", "turn_secret=s.csv"], &scratch.0);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("value = \"quaeSh5thaiPh6ohLa\""));
    let done = throughway(&["import-coturn", "p.conf"], &scratch.0);
    assert!(text(&done.stderr).contains("SELECT realm, value FROM turn_secret"), "{}", text(&done.stderr));
}

#[test]
fn bad_input_is_an_error_with_a_place_and_a_remedy() {
    let scratch = Scratch::new("bad");
    let write = |name: &str, bytes: &[u8]| fs::write(scratch.0.join(name), bytes).unwrap();
    write("nul.conf", b"realm=a\0b\n");
    write("binary.conf", &fs::read(env!("CARGO_BIN_EXE_throughway")).unwrap()[..1 << 20]);
    write("large.conf", &vec![b'#'; 10 << 20]);
    write("long.conf", &[b"static-auth-secret=".as_slice(), &vec![b'a'; 1 << 20]].concat());
    write("many.conf", "nonsense-nonsense=1\n".repeat(40_000).as_bytes());
    write("latin.conf", b"realm=caf\xE9\n");
    write("closed.conf", b"realm=a\n");
    fs::set_permissions(scratch.0.join("closed.conf"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(scratch.0.join("directory")).unwrap();
    write("text.db", b"this is no database");
    write("short.db", &fs::read(folder("turndb")).unwrap()[..1000]);
    write("large.yml", &vec![b'#'; 10 << 20]);
    write("deep.yml", "[".repeat(100_000).as_bytes());
    write("list.yml", b"- a\n- b\n");
    let users: String = (0..50_000).map(|number| format!("user=user{number}:password-of-{number}\n")).collect();
    write("users.conf", format!("realm=a.example\n{users}").as_bytes());
    let peers: String =
        (0..3000).map(|number| format!("denied-peer-ip=45.{}.{}.7\n", number / 256, number % 256)).collect();
    write("peers.conf", format!("realm=a.example\nuser=dora:aed8IeCh8Joof0\n{peers}").as_bytes());
    write("more.conf", format!("realm=a.example\nuser=dora:aed8IeCh8Joof0\n{peers}{peers}").as_bytes());
    let fifo = scratch.0.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let closed = if is_bound_by_permissions() { "closed.conf" } else { "" };
    for (arguments, code, says) in [
        (&["import-coturn", "nul.conf"][..], 2, "nul.conf: holds NUL bytes"),
        (&["import-coturn", "binary.conf"], 2, "binary.conf: holds NUL bytes"),
        (&["import-coturn", "large.conf"], 2, "large.conf: is larger than 4 MiB"),
        (&["import-coturn", "long.conf"], 3, "long.conf:1: needs you: is longer than the 1023 bytes"),
        (&["import-coturn", "many.conf"], 3, "many.conf:40000: needs you: nonsense-nonsense"),
        (&["import-coturn", "latin.conf"], 3, "latin.conf:1: needs you: is not UTF-8"),
        (&["import-coturn", "directory"], 2, "directory: is a directory"),
        (&["import-coturn", "fifo"], 2, "fifo: is no ordinary file"),
        (&["import-coturn", "missing.conf"], 2, "missing.conf: can't be read: No such file"),
        (&["import-coturn", closed], 2, "closed.conf: can't be read: Permission denied"),
        // A file that opens and can't be read, also for root.
        (&["import-coturn", "/proc/self/mem"], 2, "/proc/self/mem: can't be read: Input/output error"),
        (&["import-coturn", "users.conf"], 0, "users.conf:50001: carried: user: auth.users: user49999"),
        (&["import-coturn", "peers.conf"], 0, "3000 lines that deny peers"),
        (&["import-coturn", "more.conf"], 0, "lines that deny peers"),
        (&["import-coturn", "--database", "text.db", "--", "-n"], 2, "text.db: is no SQLite database"),
        (&["import-coturn", "--database", "short.db", "--", "-n"], 2, "short.db: the database is damaged"),
        (&["import-coturn", "--csv", "users=text.db", "--", "-n"], 2, "users is none of coturn's tables"),
        (&["import-coturn", "--", "--userdb=text.db"], 3, "argument 1: needs you: userdb: text.db: is no SQLite"),
        (&["import-eturnal", "large.yml"], 2, "large.yml: is larger than"),
        (&["import-eturnal", "deep.yml"], 2, "deep.yml: line 1: "),
        (&["import-eturnal", "list.yml"], 2, "list.yml: has no section `eturnal:`"),
        (&["import-eturnal", "directory"], 2, "directory: is a directory"),
    ] {
        if arguments.contains(&"") {
            continue;
        }
        let done = throughway(arguments, &scratch.0);
        let err = text(&done.stderr);
        assert!(err.contains(says), "{arguments:?}: {err:.600}\nlacks {says}");
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {err:.600}");
    }
}

/// Whether a file without any permission can't be opened by this user: root can open all of them.
fn is_bound_by_permissions() -> bool {
    let scratch = Scratch::new("root");
    let path = scratch.0.join("closed");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    fs::File::open(&path).is_err()
}

#[test]
fn the_configuration_refuses_the_names_of_coturn_wherever_they_stand() {
    const SECRET: &str = "[[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\n";
    for (text, place, says) in [
        (format!("static-auth-secret = \"x\"\n{SECRET}"), 1, "here write [[auth.secrets]]"),
        (format!("[auth]\nstatic_auth_secret = \"x\"\n{SECRET}"), 2, "here write [[auth.secrets]]"),
        (format!("{SECRET}lt-cred-mech = true\n"), 4, "nothing is needed for it: it is the only mechanism"),
        (format!("[listen]\ntls-listening-port = 5349\n{SECRET}"), 2, "here write listen.auto and listen.udp"),
        (format!("[relay]\nmin-port = 5\nmax_port = 6\n{SECRET}"), 3, "here write relay.ports"),
        (
            format!("[tls]\ncertificates = [{{ cert = \"a\", pkey = \"b\" }}]\n{SECRET}"),
            2,
            "here write tls.certificate",
        ),
        (format!("[limits]\nno-loopback-peers = true\n{SECRET}"), 2, "nothing is needed for it"),
        (format!("[prometheus]\nport = 9641\n{SECRET}"), 1, "here write http.listen"),
        (format!("oauth = true\n{SECRET}"), 1, "OAuth (RFC 7635) is not in this version"),
    ] {
        let error = Config::from_toml("c.toml", &text).unwrap_err().to_string();
        let line = format!("c.toml:{place}: ");
        let told = error.lines().find(|problem| problem.starts_with(&line) && problem.contains(says));
        assert!(told.is_some_and(|told| told.contains("coturn's turnserver.conf")), "{text}\n{error}");
    }
    // Every name, at the top and in a section, but for those that are ours as well.
    for option in OPTIONS.iter().filter(|option| !["realm", "mobility", "sha256"].contains(&option.name)) {
        for head in ["", "[relay]\n"] {
            let error = Config::from_toml("c.toml", &format!("{head}{} = 1\n{SECRET}", option.name)).unwrap_err();
            assert!(error.to_string().contains("coturn's turnserver.conf"), "{}: {error}", option.name);
        }
    }
    // A realm in the wrong place is ours.
    let error = Config::from_toml("c.toml", &format!("[auth]\nrealm = \"x\"\n{SECRET}")).unwrap_err().to_string();
    assert!(error.contains("`realm` belongs above"), "{error}");
}
