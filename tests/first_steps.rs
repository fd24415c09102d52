//! What those meet who set up their first server: secrets that can be guessed, files that are no TOML, variables that
//! others set, and warnings that are worth reading.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use throughway::config::{Config, Environment, KEYS};

const SECRET: &str = "[[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\n";

/// A directory that goes away with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("throughway-first-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn throughway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_throughway")).args(arguments).env_clear().stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn error_of(text: &str) -> String {
    Config::from_toml("c.toml", text).expect_err(text).to_string()
}

// F-A13
#[test]
fn a_secret_that_can_be_guessed_is_refused_wherever_it_stands() {
    let directory = Directory::new("guessed");
    let published =
        ["youhavetochoosethispassword", "the output of `openssl rand -hex 32`", "CHANGE-ME-CHANGE-ME-CHANGE-ME"];
    for (value, why) in [("north", "guides print"), ("fifteen-letters", "15 bytes"), ("x", "1 bytes")]
        .into_iter()
        .chain(published.map(|value| (value, "guides print")))
    {
        let inline = error_of(&format!("[[auth.secrets]]\nid = \"a\"\nvalue = {value:?}\n"));
        assert!(inline.starts_with("c.toml:3: auth.secrets[0].value: "), "{inline}");
        directory.write("s", format!("{value}\n"));
        let at = directory.0.join("c.toml");
        let in_file = |key: &str, table: &str| {
            let text = format!("{key}{table}");
            Config::from_toml(at.to_str().unwrap(), &text).expect_err(&text).to_string()
        };
        let mut said = vec![inline, in_file("", "[[auth.secrets]]\nid = \"a\"\nfile = \"s\"\n")];
        for key in ["auth.nonce_key_file", "accounting.sign_key_file", "http.admin_token_file"] {
            said.push(in_file(&format!("{key} = \"s\"\n"), SECRET));
            assert!(said.last().unwrap().contains(key), "{said:?}");
        }
        let path = directory.0.join("s");
        for (name, value) in
            [("THROUGHWAY_AUTH__SECRET", value), ("THROUGHWAY_AUTH__SECRET_FILE", path.to_str().unwrap())]
        {
            let environment: Environment = [(name, value)].into_iter().collect();
            let at = directory.write("empty.toml", "");
            said.push(Config::load(&at, &environment).expect_err(name).to_string());
            assert!(said.last().unwrap().starts_with(name), "{said:?}");
        }
        for error in said {
            assert!(error.contains(why) && error.contains("openssl rand -hex 32"), "{error}");
            assert!(value.len() < 5 || !error.replace("openssl rand -hex 32", "").contains(value), "{error}");
        }
    }
    // A key of the credential endpoint is there as its digest only, which can be compared too.
    for word in ["hunter2", "changeme"] {
        use sha2::Digest as _;
        let digest: String = sha2::Sha256::digest(word).iter().map(|byte| format!("{byte:02x}")).collect();
        let error = error_of(&format!("[[http.keys]]\nname = \"web\"\nsha256 = \"{digest}\"\n{SECRET}"));
        assert!(error.contains("http.keys[0].sha256") && error.contains("guides print"), "{error}");
    }
}

// F-A13
#[test]
fn passwords_of_static_users_that_can_be_guessed_are_one_warning() {
    let warnings = |users: &str| Config::from_toml("c.toml", &format!("[auth.users]\n{users}")).unwrap().warnings;
    let weak = warnings("alice = \"hunter2\"\nbob = { password = \"elevenbytes\" }\ncarol = \"twelve-bytes\"\n");
    assert_eq!(weak.len(), 1, "{weak:?}");
    let said = weak[0].to_string();
    assert!(said.starts_with("c.toml:2: auth.users: ") && said.contains(": alice, bob;"), "{said}");
    assert!(!said.contains("hunter2") && said.contains("openssl rand -base64 15"), "{said}");
    let many: String = (0..50).map(|number| format!("user{number} = \"short\"\n")).collect();
    let said = warnings(&many);
    assert!(said.len() == 1 && said[0].to_string().contains("user0, user1, user2 and 47 more"), "{said:?}");
    assert!(warnings("carol = \"twelve-bytes\"\n").is_empty());
}

// Of the wishes in the findings of November 2026: a byte order mark or a second newline is a warning.
#[test]
fn what_an_editor_adds_to_a_secret_is_a_warning() {
    let directory = Directory::new("stray");
    let path = directory.write("c.toml", "[[auth.secrets]]\nid = \"a\"\nfile = \"s\"\n");
    for (bytes, says) in [
        (&b"north-of-everything\n"[..], None),
        (b"north-of-everything\r\n", None),
        (b"\xEF\xBB\xBFnorth-of-everything\n", Some("byte order mark")),
        (b"\xFF\xFEn\0o\0r\0t\0h\0-\0o\0f\0-\0", Some("byte order mark")),
        (b"north-of-everything\n\n", Some("newline too many")),
        (b"north-of-everything\nsouth\n", Some("more than one line")),
    ] {
        directory.write("s", bytes);
        let warnings = Config::load(&path, &Environment::default()).unwrap().warnings;
        let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), usize::from(says.is_some()), "{said:?}");
        assert!(says.is_none_or(|says| said[0].contains(says) && said[0].contains("auth.secrets[0].file")), "{said:?}");
    }
    let environment: Environment = [("THROUGHWAY_AUTH__SECRET", "north-of-everything\n")].into_iter().collect();
    let empty = directory.write("empty.toml", "");
    let warnings = Config::load(&empty, &environment).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].to_string().contains("newline too many"), "{warnings:?}");
}

// F-B2, F-E5
#[test]
fn the_variables_of_a_kubernetes_service_are_ignored_and_all_others_are_not() {
    let directory = Directory::new("kubernetes");
    let path = directory.write("c.toml", SECRET);
    let load = |name: &str, value: &str| Config::load(&path, &[(name, value)].into_iter().collect());
    for (name, value) in [
        ("THROUGHWAY_SERVICE_HOST", "10.96.0.17"),
        ("THROUGHWAY_SERVICE_HOST", "fd00::17"),
        ("THROUGHWAY_SERVICE_PORT", "3478"),
        ("THROUGHWAY_SERVICE_PORT_TURN_UDP", "3478"),
        ("THROUGHWAY_SERVICE_PORT_TURN__UDP", "3478"),
        ("THROUGHWAY_PORT", "tcp://10.96.0.17:3478"),
        ("THROUGHWAY_PORT", "udp://[fd00::17]:3478"),
        ("THROUGHWAY_PORT_3478_UDP", "udp://10.96.0.17:3478"),
        ("THROUGHWAY_PORT_3478_UDP_PROTO", "udp"),
        ("THROUGHWAY_PORT_3478_UDP_PORT", "3478"),
        ("THROUGHWAY_PORT_3478_UDP_ADDR", "10.96.0.17"),
        ("THROUGHWAY_METRICS_SERVICE_HOST", "10.96.0.18"),
        ("THROUGHWAY_METRICS_PORT_8080_TCP", "tcp://10.96.0.18:8080"),
    ] {
        let config = load(name, value).unwrap_or_else(|error| panic!("{name}={value}: {error}"));
        assert!(config.source.variables.is_empty(), "it has no say: {:?}", config.source.variables);
    }
    for (name, value) in [
        ("THROUGHWAY_PORT", "3478"),
        ("THROUGHWAY_PORT", "http://10.96.0.17:3478"),
        ("THROUGHWAY_PORT_3478", "udp://10.96.0.17:3478"),
        ("THROUGHWAY_PORT_3478_UDP", "3478"),
        ("THROUGHWAY_PORT_3478_UDP_NAME", "turn"),
        ("THROUGHWAY_SERVICE_HOST", "turn.example.org"),
        ("THROUGHWAY_SERVICE_PORT", "many"),
        ("THROUGHWAY_SERVICE", "10.96.0.17"),
        ("THROUGHWAY_RELAY__PORT", "tcp://10.96.0.17:3478"),
        ("THROUGHWAY_SERVICE_PORT__TURN", "3478"),
        ("THROUGHWAY_SERVICE_PORT_TURN__UDP", "0.0.0.0:3478"),
        ("THROUGHWAY_LISTEN_UDP", "0.0.0.0:3478"),
    ] {
        let error = load(name, value).expect_err(name).to_string();
        assert!(error.contains(name) && error.contains("unknown variable"), "{error}");
    }
}

// F-B6
// A secret with one changed character would refuse every client without a word.
#[test]
fn a_variable_that_is_not_utf8_is_an_error_and_not_changed() {
    use std::os::unix::ffi::OsStrExt as _;
    for name in ["THROUGHWAY_AUTH__SECRET", "THROUGHWAY_REALM"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.args(["credentials", "mint", "--user", "a"]).env_clear().stdin(Stdio::null());
        command.env("THROUGHWAY_AUTH__SECRET", "aaaaaaaaaaaaaaaaaaaaaaaa");
        let output = command.env(name, std::ffi::OsStr::from_bytes(b"aaaaaaaaaaaaaaaaaaaaaaaa\xff")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        let error = text(&output.stderr);
        assert!(error.contains(name) && error.contains("is not UTF-8 text"), "{error}");
    }
}

#[test]
fn what_is_no_configuration_file_is_read_to_its_bound_only() {
    let directory = Directory::new("large");
    let large = directory.0.join("large.toml");
    std::fs::File::create(&large).unwrap().set_len(17 << 20).unwrap();
    for (file, why) in [(large.to_str().unwrap(), "is larger than 16 MiB"), ("/dev/zero", "is no ordinary file")] {
        let output = throughway(&["check-config", file]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
    }
}

#[test]
fn a_credential_that_could_be_of_no_use_is_not_minted() {
    let directory = Directory::new("useless");
    let file = directory.write("c.toml", SECRET);
    let file = file.to_str().unwrap();
    for (flags, why) in [
        (&["--user", ""][..], "--user: must not be empty"),
        (&["--user", "a", "--close-at", "1970-01-02"], "--close-at: this time has passed"),
    ] {
        let output = throughway(&[&["credentials", "mint", "--config", file], flags].concat());
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
    }
}

#[test]
fn a_file_that_is_no_toml_is_told_what_it_lacks() {
    for (text, line, says) in [
        ("realm = turn.example.org", 1, &["a string needs quotes", "realm = \"...\""][..]),
        ("realm = Turn", 1, &["a string needs quotes"]),
        ("[auth]\nmax_ttl = 48h", 2, &["a string needs quotes", "max_ttl = \"...\""]),
        ("[listen]\nudp = [0.0.0.0:3478]", 2, &["a string needs quotes", "udp = [\"...\"]"]),
        ("[listen]\nudp = [\"0.0.0.0:3478\", [::]:3478]", 2, &["not TOML"]),
        ("[listen]\nudp = [\n  0.0.0.0:3478,\n]", 3, &["a string needs quotes"]),
        ("[relay]\nexternal = 203.0.113.7", 2, &["a string needs quotes", "external = \"...\""]),
        ("realm = \u{201c}turn\u{201d}", 1, &["not the plain ones", "realm = \"...\""]),
        ("[drain]\non_term = yes", 2, &["true or false"]),
        ("[drain]\non_term = True", 2, &["true or false"]),
        ("realm =", 1, &["the value is missing"]),
        ("realm turn.example.org", 1, &["KEY = VALUE", "[section]"]),
        ("[listen]\nverbose\n", 2, &["KEY = VALUE"]),
    ] {
        let error = error_of(&format!("{text}\n"));
        assert!(error.starts_with(&format!("c.toml:{line}: not TOML: ")), "{text}\n{error}");
        for part in says {
            assert!(error.contains(part), "{text}\n{error}\nlacks {part}");
        }
        assert!(!error.contains("invalid"), "{error}");
    }
    let coturn = "# Coturn TURN SERVER configuration file\n#\nlistening-port=3478\nfingerprint\nuse-auth-secret\n\
        static-auth-secret=Xsecret\nrealm=turn.example.org\nexternal-ip=203.0.113.7\nno-cli\n";
    let error = error_of(coturn);
    for part in [
        "c.toml:3: ",
        "turnserver.conf of coturn",
        "config.example.toml",
        "external-ip is relay.external",
        "[[auth.secrets]]",
    ] {
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    assert!(error.lines().count() == 1 && !error.contains("Xsecret"), "{error}");
    // As TOML goes, but with coturn's names.
    let error = error_of(&format!("min-port = 50000\n{SECRET}"));
    assert!(error.contains("a key of coturn's turnserver.conf; here write relay.ports"), "{error}");
}

// F-B6
#[test]
fn a_key_in_the_wrong_place_is_told_where_it_belongs() {
    for (text, says) in [
        ("[log]\nlevel = \"info\"\nrealm = \"x\"\n", "`realm` belongs above the first [section]"),
        (
            "[[auth.secrets]]\nid = \"b\"\nvalue = \"south-of-everything\"\nworkers = 2\n",
            "`workers` belongs above the first [section]",
        ),
        ("[[http.keys]]\nname = \"a\"\nlisten = \"\"\n", "`http.listen` belongs to [http], above the tables"),
    ] {
        let error = error_of(&format!("{text}{SECRET}"));
        assert!(error.contains(says), "{error}\nlacks {says}");
    }
    let error = error_of(&format!("zzzzzzzzzz = 5\n{SECRET}"));
    assert_eq!(error.matches("log").count(), 1, "each section once: {error}");
    assert!(error.ends_with("and above them stand realm, workers, supervise"), "{error}");
    let directory = Directory::new("latin");
    let path = directory.write("c.toml", b"realm = \"caf\xE9\"\n");
    let error = Config::load(&path, &Environment::default()).unwrap_err().to_string();
    assert!(error.contains("UTF-8"), "{error}");
}

// F-B10
#[test]
fn nothing_warns_of_what_does_not_break() {
    let config = Config::from_toml("c.toml", &format!("realm = \"turn.example.org\"\n{SECRET}")).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(config.describe().contains("a 401 answer has 76 bytes"), "but the size can be seen: {}", config.describe());
}

/// What a step costs this thread, in nanoseconds of a processor: other programs must not count.
fn cost<T>(step: impl Fn() -> T) -> u64 {
    let spent = || -> u64 {
        let text = fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts");
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let once = || {
        let before = spent();
        let result = step();
        let after = spent();
        drop(result);
        after - before
    };
    (0..3).map(|_| once()).min().unwrap()
}

/// What the kernel's account of a thread may lag behind, in nanoseconds. A search for each of 20,000 users took seconds.
const COARSE: u64 = 100_000_000;

// F-E7
#[test]
fn four_times_as_many_users_take_about_four_times_as_long() {
    let users = |count: u32| {
        let users: String = (0..count).map(|number| format!("user{number} = \"password-{number:09}\"\n")).collect();
        format!("[auth.users]\n{users}")
    };
    let (few, many) = (users(5_000), users(20_000));
    let check = |text: &str| Config::from_toml("c.toml", text).unwrap();
    let (one, four) = (cost(|| check(&few)), cost(|| check(&many)));
    assert!(four < 9 * one + COARSE, "checking: {one} ns for 5,000, {four} ns for 20,000");
    // A reload compares the users of before with those of now.
    let (old_few, old_many) = (check(&few), check(&many));
    let (new_few, new_many) = (check(&few.replace("-00", "-01")), check(&many.replace("-00", "-01")));
    let (one, four) = (cost(|| old_few.changes(&new_few)), cost(|| old_many.changes(&new_many)));
    assert!(four < 9 * one + COARSE, "comparing: {one} ns for 5,000, {four} ns for 20,000");
    assert!(old_many.changes(&new_many)[0].change.contains("and 19980 more"));
}

// F-B11
#[test]
fn check_config_leaves_no_key_out() {
    let directory = Directory::new("all");
    let path = directory.write(
        "c.toml",
        format!("[relay]\nsegmentation_offload = false\n[auth]\non_expiry = \"close\"\n[limits]\ncredentials_per_key = 7\n{SECRET}"),
    );
    let output = throughway(&["check-config", path.to_str().unwrap(), "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in KEYS {
        assert!(json["settings"].get(key.path).is_some(), "{} is not in {json:#}", key.path);
    }
    assert_eq!(json["settings"]["limits.credentials_per_key"]["value"], "7");
    assert_eq!(json["settings"]["limits.credentials_per_key"]["default"], false);
    assert_eq!(json["settings"]["relay.ports"]["default"], true);
    let output = throughway(&["check-config", path.to_str().unwrap()]);
    let shown = text(&output.stdout);
    for part in [
        "relay.segmentation_offload = false",
        "auth.on_expiry = \"close\"",
        "limits.credentials_per_key = 7",
        "auth.secrets: \"main\"",
    ] {
        assert!(shown.contains(part), "{shown}\nlacks {part}");
    }
    assert!(!shown.contains("north-of-everything") && !shown.contains("relay.ports ="), "{shown}");
}

// F-A15
#[test]
fn a_password_need_not_stand_in_the_list_of_processes() {
    let directory = Directory::new("argv");
    let path = directory.write("c.toml", format!("[listen]\nudp = [\"127.0.0.1:3478\"]\ntcp = []\n{SECRET}"));
    let config = path.to_str().unwrap();
    let minted = throughway(&["credentials", "mint", "--user", "alice", "--config", config, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&minted.stdout).unwrap();
    let server = &json["iceServers"][0];
    let (username, password) = (server["username"].as_str().unwrap(), server["credential"].as_str().unwrap());
    let file = directory.write("password", format!("{password}\n"));
    let file = file.to_str().unwrap();
    let verified = throughway(&["credentials", "verify", username, "--password-file", file, "--config", config]);
    assert!(text(&verified.stdout).starts_with("good: "), "{verified:?}");
    for wrong in
        [&[username][..], &[username, password, "--password-file", file], &[username, "--password-file", "/nowhere"]]
    {
        let output = throughway(&[&["credentials", "verify"], wrong, &["--config", config][..]].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?} {output:?}");
    }
    for (headers, says) in
        [("Authorization Bearer Xkey\n", "expected lines such as"), ("\n\n", "expected lines such as")]
    {
        let file = directory.write("headers", headers);
        let output = throughway(&["check", "http://127.0.0.1:1/", "--header-file", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains(says) && !text(&output.stderr).contains("Xkey"), "{output:?}");
    }
}

// Of the wishes in the findings of November 2026.
#[test]
fn an_expiry_in_milliseconds_is_recognised() {
    let directory = Directory::new("milliseconds");
    let path = directory.write("c.toml", SECRET);
    let output = throughway(&["credentials", "verify", "1795241173123:alice", "x", "--config", path.to_str().unwrap()]);
    let said = text(&output.stdout);
    assert!(
        output.status.code() == Some(1) && said.contains("milliseconds?") && said.contains("1795241173 "),
        "{said}"
    );
    let output = throughway(&["credentials", "verify", "1795241173:alice", "x", "--config", path.to_str().unwrap()]);
    assert!(!text(&output.stdout).contains("milliseconds?"), "{output:?}");
}

// F-B5
#[test]
fn check_config_shows_certificates_and_warns_of_a_name_that_none_has() {
    let directory = Directory::new("certificates");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters =
        rcgen::CertificateParams::new(vec!["turn.example.org".to_owned(), "*.example.net".to_owned()]).unwrap();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "turn.example.org");
    parameters.not_after = rcgen::date_time_ymd(2100, 1, 1);
    directory.write("chain.pem", parameters.self_signed(&key).unwrap().pem());
    directory.write("key.pem", key.serialize_pem());
    let check = |name: &str| {
        let path = directory.write(
            "c.toml",
            format!(
                "[listen]\ntls = [\"127.0.0.1:5349\"]\n[tls]\ncertificate = \"chain.pem\"\nprivate_key = \"key.pem\"\n\
                 [http]\npublic_name = {name:?}\n{SECRET}"
            ),
        );
        let output = throughway(&["check-config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        // What it says of this machine's addresses is not looked at here.
        let is_of_machine = |line: &&str| line.contains("warning") && line.contains(" relay.");
        text(&output.stdout).lines().filter(|line| !is_of_machine(line)).collect::<Vec<_>>().join("\n")
    };
    let said = check("turn.example.org");
    assert!(said.contains("for turn.example.org, *.example.net; ends in "), "{said}");
    assert!(!said.contains("warning"), "{said}");
    assert!(!check("a.example.net").contains("warning"));
    assert!(!check("203.0.113.7").contains("warning"), "an address is no name");
    let said = check("turn.example.com");
    assert!(said.contains("no certificate is for this name") && said.contains("http.public_name"), "{said}");
}

// F-B5
#[test]
fn check_config_reads_with_the_rights_of_the_user_who_will_run_the_server() {
    let directory = Directory::new("as");
    let path = directory.write("c.toml", "[[auth.secrets]]\nid = \"a\"\nfile = \"s\"\n");
    directory.write("s", "north-of-everything\n");
    let config = path.to_str().unwrap();
    let output = throughway(&["check-config", config, "--as", "no-such-user-here"]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("no such user"), "{output:?}");
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !is_root {
        let output = throughway(&["check-config", config, "--as", "root"]);
        assert!(output.status.code() == Some(2) && text(&output.stderr).contains("only root"), "{output:?}");
        return;
    }
    assert_eq!(throughway(&["check-config", config, "--as", "root"]).status.code(), Some(0));
    // The file itself can be read by everybody, and the secret that it names by root alone.
    let open = |path: &Path, mode| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    open(&directory.0, 0o755);
    let output = throughway(&["check-config", config, "--as", "nobody"]);
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(2) && said.contains("the user nobody can't read it") && said.contains("chgrp"),
        "{said}"
    );
    open(&path, 0o644);
    let output = throughway(&["check-config", config, "--as", "nobody"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(said.contains("auth.secrets[0].file") && said.contains("Permission denied"), "{said}");
    assert!(said.contains("checked as the user nobody"), "{said}");
    open(&directory.0.join("s"), 0o644);
    let output = throughway(&["check-config", config, "--as", "nobody"]);
    assert!(text(&output.stdout).contains("as the user nobody"), "{output:?}");
}

// F-B7
#[test]
fn a_check_that_has_nothing_to_look_at_says_why() {
    let directory = Directory::new("nothing");
    let path = directory.write("c.toml", format!("[listen]\nudp = []\ntcp = []\n{SECRET}"));
    let output = throughway(&["check", "--config", path.to_str().unwrap()]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("it has no listener"), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    // A network of its own has no route at all, as a machine that is offline. Where none can be made, nothing is shown.
    let path = directory.write("wild.toml", format!("[listen]\nudp = [\"0.0.0.0:3478\"]\ntcp = []\n{SECRET}"));
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let mut alone = Command::new("unshare");
    alone.args(if is_root { &["--net"][..] } else { &["--net", "--user", "--map-root-user"] });
    let can = alone.arg("true").output().is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("no network namespaces here");
        return;
    }
    let mut alone = Command::new("unshare");
    alone.args(if is_root { &["--net"][..] } else { &["--net", "--user", "--map-root-user"] });
    alone.args([env!("CARGO_BIN_EXE_throughway"), "check", "--config", path.to_str().unwrap()]).env_clear();
    let output = alone.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = text(&output.stderr);
    for part in ["no address to check", "relay.external", "http.public_name", "turn:turn.example.org:3478"] {
        assert!(said.contains(part), "{said}\nlacks {part}");
    }
}

// F-B7
#[test]
fn minting_says_when_the_address_in_the_urls_is_a_guess() {
    let directory = Directory::new("guess");
    let mint = |text: &str| {
        let path = directory.write("c.toml", format!("{text}\n{SECRET}"));
        throughway(&["credentials", "mint", "--user", "alice", "--config", path.to_str().unwrap(), "--json"])
    };
    let guessed = mint("listen.udp = [\"0.0.0.0:3478\"]\nlisten.tcp = []");
    // A machine without a route has no address to guess, and says that instead.
    assert!(text(&guessed.stderr).contains("relay.external"), "{guessed:?}");
    for told in [
        "relay.external = \"45.0.0.7\"\nlisten.udp = [\"0.0.0.0:3478\"]\nlisten.tcp = []",
        "http.public_name = \"turn.example.org\"",
        "listen.udp = [\"127.0.0.1:3478\"]\nlisten.tcp = []",
    ] {
        let minted = mint(told);
        assert!(minted.status.success() && minted.stderr.is_empty(), "{told}: {minted:?}");
    }
}
