//! Manual pages and completions are made of the commands that there are.

use std::fs;
use std::process::{Command, Output};

use throughway::config::KEYS;
use throughway::config::keys::FIELDS;

fn throughway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_throughway")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The commands that the help of a command lists.
fn commands(below: &[&str]) -> Vec<String> {
    let help = text(&throughway(&[below, &["--help"]].concat()).stdout);
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let names = list.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(String::from).collect()
}

#[test]
fn each_command_has_a_page_and_each_key_its_paragraph() {
    let directory = std::env::temp_dir().join(format!("throughway-man-{}", std::process::id()));
    let written = throughway(&["man", directory.to_str().unwrap()]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let page = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let all = commands(&[]);
    assert!(all.len() > 12 && all.contains(&"serve".to_owned()), "{all:?}");
    assert!(!all.contains(&"man".to_owned()), "it is for packages");
    let root = page("throughway.1");
    for command in &all {
        assert!(root.contains(&format!("throughway\\-{}(1)", command.replace('-', "\\-"))), "{command}: {root}");
        assert!(page(&format!("throughway-{command}.1")).contains(".SH SYNOPSIS"), "{command}");
        for below in commands(&[command]) {
            page(&format!("throughway-{command}-{below}.1"));
        }
    }
    let configuration = page("throughway.toml.5");
    for key in KEYS {
        assert!(configuration.contains(&format!("\n.BR {} \" = ", key.path)), "{}", key.path);
    }
    // An editor shows the range too, since a pattern tells a person nothing.
    let schema: serde_json::Value = serde_json::from_slice(&throughway(&["config", "schema"]).stdout).unwrap();
    let burst = schema["properties"]["limits"]["properties"]["burst"]["description"].as_str().unwrap();
    assert!(burst.ends_with("Allowed: 1s to 1m."), "{burst}");
    assert!(configuration.contains("at that rate.\nAllowed: 1s to 1m.\n"), "{configuration}");
    for field in FIELDS {
        assert!(configuration.contains(&format!("\n.B {}\n", field.path)), "{}", field.path);
    }
    // What only the example says, flowing and as it stands.
    for part in ["less CPU for a little delay", "\n.nf\n  tls = [\"0.0.0.0:5349\""] {
        assert!(configuration.contains(part), "{part}");
    }
    // What the rows and the example write as Markdown is not left in it.
    assert!(configuration.contains("\\fBopenssl rand \\-hex 32\\fR"), "code is bold");
    assert!(!configuration.contains("\\(ga openssl"), "and has no backticks");
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_directory_that_can_not_be_made_is_an_error_that_names_it() {
    let output = throughway(&["man", "/dev/null/man"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/dev/null/man: "), "{}", text(&output.stderr));
}

/// The shell that most systems have shows it; tests/manual/run asks the others.
#[test]
fn bash_completes_commands_options_and_values() {
    let script = std::env::temp_dir().join(format!("throughway-completions-{}.bash", std::process::id()));
    fs::write(&script, throughway(&["completions", "bash"]).stdout).unwrap();
    for (words, completed) in [
        ("throughway che", "check check-config"),
        ("throughway serve --con", "--config"),
        ("throughway completions z", "zsh"),
        ("throughway credentials mi", "mint"),
    ] {
        let ask = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _throughway throughway \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        let found = text(&output.stdout);
        let mut found: Vec<&str> = found.split_whitespace().collect();
        found.sort_unstable();
        assert_eq!(found.join(" "), completed, "{words}: {}", text(&output.stderr));
    }
    fs::remove_file(&script).unwrap();
}

#[test]
fn an_unknown_shell_is_told_with_those_that_are_known() {
    let output = throughway(&["completions", "tcsh"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("bash, zsh, fish"), "{}", text(&output.stderr));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    for arguments in [&["completions", "zsh"] as &[&str], &["config", "schema"], &["config", "example"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        let output = command.args(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn the_example_and_the_schema_come_as_they_are() {
    let example = throughway(&["config", "example"]);
    assert_eq!(text(&example.stdout), include_str!("../config.example.toml"));
    let schema: serde_json::Value = serde_json::from_slice(&throughway(&["config", "schema"]).stdout).unwrap();
    assert_eq!(schema["properties"]["limits"]["properties"]["allocations"]["default"], 100_000);
    assert_eq!(schema["properties"]["realm"]["type"], "string");
}
