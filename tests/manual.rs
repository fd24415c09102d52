//! Manual pages and completions are made of the commands that there are.

mod command_page;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
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

/// With UPDATE_SNAPSHOTS=1 the page is written anew.
#[test]
fn the_page_of_commands_is_made_from_the_command_line() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/commands.md");
    let page = fs::read_to_string(&path).unwrap();
    let wanted = command_page::renewed(&page);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    for (line, wanted) in page.lines().zip(wanted.lines()) {
        assert_eq!(line, wanted, "docs/reference/commands.md is stale; run again with UPDATE_SNAPSHOTS=1");
    }
    assert_eq!(page, wanted);
}

/// Every command line of ours in a text: in a span or on a line of a block of code.
fn command_lines(markdown: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut take = |text: &str| {
        for part in text.split(['|', ';', '&', '(', '\n']) {
            let part = part.split('#').next().unwrap_or_default().trim();
            let at = part
                .split_whitespace()
                .position(|word| !word.contains('=') && word.rsplit('/').next() == Some("throughway"));
            let is_plain = |before: usize| {
                let mut words = part.split_whitespace().take(before);
                words.all(|word| word == "sudo" || word == "$" || word.contains('='))
            };
            if let Some(at) = at.filter(|at| is_plain(*at)) {
                found.push(part.split_whitespace().skip(at + 1).collect::<Vec<_>>().join(" "));
            }
        }
    };
    let mut fenced = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            take(line);
        } else {
            line.split('`').skip(1).step_by(2).for_each(&mut take);
        }
    }
    found
}

/// Why a command line of the manual is none; `None` if it is one.
fn wrong_command(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let commands = command_page::commands();
    // `man` is for packages, and `help` is clap's.
    if words.is_empty() || ["man", "help"].contains(&words[0]) || words[0].starts_with('-') {
        return None;
    }
    let is_start = |command: &&clap::Command| {
        let name = command_page::name(command);
        let own: Vec<&str> = name.split(' ').skip(1).collect();
        words.starts_with(&own) || own.starts_with(&words)
    };
    let Some(command) = commands.iter().find(is_start) else { return Some(format!("no command: throughway {line}")) };
    // What stands behind `--` is another program's.
    let own = words.iter().take_while(|word| **word != "--");
    let wrong = own.filter_map(|word| word.trim_start_matches('[').strip_prefix("--")).find(|word| {
        let word = word.split('=').next().unwrap_or_default().trim_end_matches(|c: char| !c.is_alphanumeric());
        let has = command.get_arguments().any(|argument| argument.get_long() == Some(word));
        !has && !word.is_empty() && word != "help" && word != "version"
    });
    wrong.map(|word| format!("throughway {line}: no option --{word}"))
}

#[test]
fn every_command_that_the_pages_name_exists_with_its_options() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("SECURITY.md")];
    let mut directories = vec![root.join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            // A decision tells what was thought of at its time.
            if path.is_dir() && !path.ends_with("decisions") {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for page in pages {
        for line in command_lines(&fs::read_to_string(&page).unwrap()) {
            wrong.extend(wrong_command(&line).map(|why| format!("{}: {why}", page.display())));
            seen.insert(line);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.len() >= 40, "only {} commands were found: {seen:?}", seen.len());
    for (line, is_wrong) in
        [("serve --config FILE", false), ("serve --confg FILE", true), ("fly", true), ("usage", false)]
    {
        assert_eq!(wrong_command(line).is_some(), is_wrong, "{line}");
    }
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
