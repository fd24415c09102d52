//! docs/reference/commands.md below its mark: every command with its arguments, as the program itself knows them.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory as _};
use throughway::cli::Arguments;

/// Where the page begins to be made.
const MARK: &str = "<!-- From here on made from the definitions of the command line by tests/manual.rs. -->\n";

const LINE_CHARACTERS_MAX: usize = 120;

/// The page with all below the mark made anew.
pub(crate) fn renewed(page: &str) -> String {
    let (text, _) = page.split_once(MARK).expect("docs/reference/commands.md has its mark");
    let mut page = format!("{text}{MARK}");
    for mut command in commands() {
        section(&mut page, &mut command);
    }
    page
}

/// Every command that does something and is no secret, those below others too.
pub(crate) fn commands() -> Vec<Command> {
    let mut root = Arguments::command().disable_help_subcommand(true).disable_help_flag(true);
    root.build();
    let mut found = Vec::new();
    below(&root, &mut found);
    found
}

fn below(command: &Command, found: &mut Vec<Command>) {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        if command.has_subcommands() {
            below(command, found);
        } else {
            found.push(command.clone());
        }
    }
}

/// Words as the command line has them: `throughway usage report`.
pub(crate) fn name(command: &Command) -> String {
    command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn section(page: &mut String, command: &mut Command) {
    let about = command.get_long_about().or(command.get_about()).expect("each command has a sentence").to_string();
    let usage = command.render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").expect("the usage");
    let _ = write!(page, "\n### {}\n\n{}\n```text\n{usage}\n```\n", name(command), wrapped(&format!("{about}.")));
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str()))
        .collect();
    if !arguments.is_empty() {
        page.push_str("\n| argument | what |\n|---|---|\n");
        for argument in arguments {
            let _ = writeln!(page, "| `{}` | {} |", form(argument), what(argument));
        }
    }
    if let Some(more) = command.get_after_help() {
        for paragraph in more.to_string().lines() {
            let _ = write!(page, "\n{}", wrapped(paragraph.trim()));
        }
    }
}

/// `--ttl DURATION`, or a place on the line.
fn form(argument: &Arg) -> String {
    let values = || {
        let names = argument.get_value_names().unwrap_or_default();
        names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let takes_values = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let short = argument.get_short().map_or_else(String::new, |short| format!("-{short}"));
    let long = argument.get_long().map_or_else(String::new, |long| format!("--{long}"));
    let flags = [short, long].into_iter().filter(|flag| !flag.is_empty()).collect::<Vec<_>>().join(", ");
    match (flags.is_empty(), takes_values) {
        (true, _) => values(),
        (false, true) => format!("{flags} {}", values()),
        (false, false) => flags,
    }
}

fn what(argument: &Arg) -> String {
    let mut text = argument.get_help().expect("each argument has a sentence").to_string();
    let words: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !words.is_empty() && matches!(argument.get_action(), ArgAction::Set | ArgAction::Append) {
        let _ = write!(text, "; one of {}", words.join(", "));
    }
    let default: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if !default.is_empty() && !matches!(argument.get_action(), ArgAction::SetTrue) {
        let _ = write!(text, "; `{}` if left out", default.join(" "));
    }
    plain(&text).replace('|', "\\|").replace('\n', " ")
}

/// Outside of code a star or an angle bracket would mean something.
fn plain(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let parts = parts.map(|(at, part)| match at % 2 {
        1 => part.to_owned(),
        _ => part.replace('*', "\\*").replace('<', "&lt;"),
    });
    parts.collect::<Vec<_>>().join("`")
}

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in plain(text).split(' ') {
        let line = lines.last_mut().expect("there is one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= LINE_CHARACTERS_MAX {
            let _ = write!(line, " {word}");
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n") + "\n"
}
