//! `throughway recipe` and docs/recipes say the same, and say what a configuration lacks. tests/recipes/run proves on a live
//! server that what they say works.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test --test recipes` writes the lines into the pages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SECRET: &str = "5f0c1b7e92d84a36b1e07c5d2f98a4630d7be1c49a825f6310ce84d7b2a9f05e";
const MASK: &str = "********";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes")
}

fn recipe(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_throughway")).arg("recipe").args(arguments).env_clear().output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output and standard error of a command that must succeed.
fn lines(arguments: &[&str]) -> [String; 2] {
    let output = recipe(arguments);
    let [out, error] = [&output.stdout, &output.stderr].map(|bytes| text(bytes));
    assert!(output.status.success(), "{arguments:?}: {error}");
    [out, error]
}

fn for_example(name: &str, more: &[&str]) -> [String; 2] {
    let example = directory().join("example.toml");
    lines(&[&[name, "--config", example.to_str().unwrap()], more].concat())
}

/// The names that the command lists.
fn names() -> Vec<String> {
    let [list, _] = lines(&["--list"]);
    let names: Vec<String> = list.lines().filter_map(|line| line.split_whitespace().next()).map(String::from).collect();
    assert!(names.len() >= 17, "{names:?}");
    names
}

/// A configuration of its own for one question.
fn with_config(name: &str, config: &str) -> (i32, String, String) {
    let path = std::env::temp_dir().join(format!("throughway-recipe-{}-{name}.toml", std::process::id()));
    fs::write(&path, config).unwrap();
    let output = recipe(&[name, "--config", path.to_str().unwrap(), "--show-secret"]);
    fs::remove_file(&path).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

const LISTEN: &str = "listen.udp = [\"192.0.2.7:3478\"]\nlisten.tcp = [\"192.0.2.7:3478\"]\n";
const WITH_SECRET: &str = "[[auth.secrets]]\nid = \"a\"\nvalue = \"north-of-everything\"\n";

#[test]
fn each_page_shows_what_the_command_prints_for_the_example() {
    for name in names() {
        let page = directory().join(format!("{name}.md"));
        let old = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        let mark = format!("<!-- throughway recipe {name} -->\n```\n");
        let (before, rest) = old.split_once(&mark).unwrap_or_else(|| panic!("{name}: no block of the recipe"));
        let (_, after) = rest.split_once("```\n").unwrap();
        let [out, _] = for_example(&name, &[]);
        let new = format!("{before}{mark}{out}```\n{after}");
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            fs::write(&page, new).unwrap();
        } else {
            assert_eq!(old, new, "{name}: UPDATE_SNAPSHOTS=1 writes the page anew");
        }
    }
}

#[test]
fn each_page_is_short_has_its_parts_and_is_listed() {
    let index = fs::read_to_string(directory().join("README.md")).unwrap();
    let names = names();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(name) = file.strip_suffix(".md").filter(|name| *name != "README") else { continue };
        let page = fs::read_to_string(&path).unwrap();
        assert!(index.contains(&format!("({file})")), "docs/recipes/README.md lacks {file}");
        assert!(page.lines().count() <= 90, "{file}: {} lines", page.lines().count());
        let mut fenced = false;
        for (number, line) in page.lines().enumerate() {
            fenced ^= line.starts_with("```");
            assert!(fenced || line.chars().count() <= 120, "{file}:{}: a long line", number + 1);
        }
        let is_recipe = names.iter().any(|known| known == name);
        assert_eq!(is_recipe, page.contains("<!-- throughway recipe"), "{file}");
        for part in ["## This server", "## The lines", "## Check", "## What goes wrong"] {
            assert!(!is_recipe || page.contains(part), "{file} lacks {part}");
        }
    }
}

#[test]
fn a_secret_is_masked_unless_it_is_asked_for() {
    let passwords = ["z4Wn0bTgq8Lr2sXd", "k7Pf3vYc5Hm9uJea", "b2Rk6tNw4Qx8gDzs", "m9Jc1yVh7Fs3pLqt"];
    for name in names() {
        let [out, error] = for_example(&name, &[]);
        assert!(
            passwords.iter().chain([&SECRET]).all(|hidden| !out.contains(hidden) && !error.contains(hidden)),
            "{name}"
        );
        let [shown, _] = for_example(&name, &["--show-secret"]);
        assert!(!shown.contains(MASK), "{name}: {shown}");
        if name == "chatmail" {
            // Its relay needs none.
            assert_eq!(out, shown);
            continue;
        }
        assert!(out.contains(MASK) && error.contains("--show-secret"), "{name}: {out}{error}");
        let found = passwords.iter().chain([&SECRET]).filter(|hidden| shown.contains(**hidden)).count();
        assert_eq!(found, 1, "{name} shows one of them: {shown}");
        assert_eq!(out.lines().count(), shown.lines().count(), "{name}");
    }
}

#[test]
fn every_transport_of_the_configuration_is_offered_and_no_other() {
    for (name, udp, tls) in [
        ("matrix", "turn:turn.example.org:3478?transport=udp", "turns:turn.example.org:443?transport=tcp"),
        ("livekit", "protocol: udp", "protocol: tls"),
        ("jitsi", "type = \"turn\", host = \"turn.example.org\"", "type = \"turns\""),
        (
            "nextcloud",
            "talk:turn:add turn 'turn.example.org:3478' udp,tcp",
            "talk:turn:add turns 'turn.example.org:443' tcp",
        ),
        ("ejabberd", "type: turn\n", "type: turns\n"),
        ("bigbluebutton", "value=\"turn:turn.example.org:3478?transport=udp\"", "value=\"turns:"),
    ] {
        let [all, _] = for_example(name, &[]);
        assert!(all.contains(udp) && all.contains(tls), "{name}: {all}");
        let (code, plain, error) = with_config(name, &format!("{LISTEN}{WITH_SECRET}"));
        assert_eq!(code, 0, "{error}");
        assert!(!plain.contains("turns") && !plain.contains("tls"), "{name}: {plain}");
        assert!(plain.contains("192.0.2.7") && plain.contains("north-of-everything"), "{name}: {plain}");
    }
    let [named, _] = for_example("matrix", &["--host", "relay.example.net"]);
    assert!(named.contains("turn:relay.example.net:3478?transport=udp"), "{named}");
    assert!(named.contains("turns:turn.example.org:443"), "TLS goes by the name in the certificate: {named}");
    let wrong = recipe(&["matrix", "--host", "turn:relay.example.net"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("such as turn.example.org"), "{}", text(&wrong.stderr));
}

#[test]
fn what_the_configuration_lacks_is_named_with_a_remedy() {
    let user = "auth.users = { pbx = \"wonderland-2026\" }\n";
    let only_udp = "listen.udp = [\"192.0.2.7:3478\"]\nlisten.tcp = []\n";
    let sha256 = WITH_SECRET.replace("id =", "algorithm = \"sha256\"\nid =");
    for (name, config, said) in [
        ("matrix", format!("{LISTEN}{user}"), "add [[auth.secrets]]"),
        ("nextcloud", format!("{LISTEN}{sha256}"), "\"a\" has \"sha256\"): add one"),
        ("asterisk", format!("{LISTEN}{WITH_SECRET}"), "users = { \"asterisk\" = "),
        ("asterisk", format!("{only_udp}{user}"), "add listen.tcp"),
        ("home-assistant", format!("{LISTEN}{WITH_SECRET}"), "auth.users has none"),
        ("chatmail", format!("{LISTEN}{WITH_SECRET}"), "set http.chatmail_socket"),
        ("janus", format!("{LISTEN}{WITH_SECRET}"), "auth.users has none"),
    ] {
        let (code, out, error) = with_config(name, &config);
        assert_eq!((code, out.as_str()), (2, ""), "{name}: {error}");
        assert!(error.contains(said), "{name}: {error}");
    }
    // What works, but not as it is, is a note.
    let short = format!("{LISTEN}auth.max_ttl = \"12h\"\n{WITH_SECRET}");
    for name in ["nextcloud", "galene", "mediamtx"] {
        let (code, _, error) = with_config(name, &short);
        assert!(code == 0 && error.contains("makes credentials for 1d, but auth.max_ttl = \"12h\""), "{name}: {error}");
    }
    let (_, out, _) = with_config("livekit", &short.replace("12h", "2h"));
    assert!(out.contains("ttl: 7200"), "a lifetime that can be chosen is cut: {out}");
    let other_port = format!(
        "listen.udp = [\"192.0.2.7:3479\"]\nlisten.tcp = []\nhttp.chatmail_socket = \"/run/c.sock\"\nhttp.unix_uids = [1]\n{WITH_SECRET}"
    );
    let (code, _, error) = with_config("chatmail", &other_port);
    assert!(code == 0 && error.contains("listens on 3479"), "{error}");
    let unknown = recipe(&["nextclout"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("nextcloud"), "{}", text(&unknown.stderr));
}

#[test]
fn janus_asks_the_endpoint_where_there_is_a_key_for_it() {
    let key = "[[http.keys]]\nname = \"janus\"\nsha256 = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"\n";
    let (code, out, error) = with_config("janus", &format!("{LISTEN}{key}{WITH_SECRET}"));
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("turn_rest_api = \"http://127.0.0.1:8080/turn\"") && !out.contains("turn_pwd"), "{out}");
    let on_socket = format!("http.listen = \"unix:/run/t.sock\"\n{LISTEN}{key}{WITH_SECRET}");
    let (code, _, error) = with_config("janus", &on_socket);
    assert!(code == 2 && error.contains("http.public"), "{error}");
}

#[test]
fn other_names_of_a_program_mean_the_same() {
    for (other, name) in [
        ("synapse", "matrix"),
        ("element-call", "livekit"),
        ("prosody", "jitsi"),
        ("bbb", "bigbluebutton"),
        ("go2rtc", "home-assistant"),
        ("simple-peer", "peerjs"),
        ("nextcloud-aio", "nextcloud"),
    ] {
        assert_eq!(for_example(other, &[]), for_example(name, &[]));
    }
}
