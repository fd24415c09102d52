//! throughway.toml(5): the rows of `config::keys`, each with what the example says about it besides.

use std::fmt::Write as _;

use super::{DATE, MANUAL, SOURCE};
use crate::config::keys::{Applies, ConfigKey, EXAMPLE, FIELDS, KEYS};

/// What stands before the keys.
const HEAD: &str = r#".SH NAME
throughway.toml \- configuration of the throughway STUN/TURN relay
.SH SYNOPSIS
.B /etc/throughway/config.toml
.SH DESCRIPTION
The configuration is a file in the language TOML, <https://toml.io>. A key that is left out has its default.
The server needs at least one secret or one user, see
.B auth.secrets
and
.BR auth.users ;
everything else may be left out.
.PP
.BR "throughway check\-config FILE" ", see " throughway\-check\-config (1),
explains what a file will do, or shows every error with its line and what to do.
.B throughway config example
prints a file with every key and its default, and
.B throughway config schema
the JSON Schema for editors.
SIGHUP or
.B throughway reload
applies a changed file to the running server. No call is lost, and the log names the keys that wait for a restart.
.PP
Durations are a whole number and s, m, h or d, such as "30s" or "2d". Sizes are a whole number and B, KiB, MiB or GiB,
such as "64KiB". Rates are a whole number and bit/s, kbit/s, Mbit/s or Gbit/s, such as "3Mbit/s".
.PP
Wherever a key names a file to read, "credential:NAME" reads what
.B LoadCredential=NAME:/path
of the systemd unit provides. Other paths are relative to the directory of the configuration.
.SH ENVIRONMENT
A variable can set every key that is no table, and wins over the file. Its name is THROUGHWAY_SECTION__KEY, with two
underscores between section and key, such as THROUGHWAY_LISTEN__UDP=0.0.0.0:3478. Lists have commas between their items.
.TP
.B THROUGHWAY_AUTH__SECRET
The first of auth.secrets.
.TP
.B THROUGHWAY_AUTH__SECRET_FILE
The file that holds it.
"#;

const FOOT: &str = r#".SH FILES
.TP
.I /etc/throughway/config.toml
The configuration, of mode 0640 and root:throughway, because it holds secrets.
.TP
.I /usr/share/throughway/config.schema.json
The JSON Schema that the first line of the example names.
.SH "SEE ALSO"
.BR throughway (1),
.BR throughway\-check\-config (1),
.BR systemd.exec (5)
"#;

/// The whole page.
pub(super) fn page() -> String {
    let mut page = format!(".TH throughway.toml 5 {DATE} \"{SOURCE}\" \"{MANUAL}\"\n{HEAD}");
    let mut section = None;
    for key in KEYS {
        let own = key.path.split_once('.').map(|(own, _)| own);
        if section != Some(own) {
            section = Some(own);
            let title = own.map_or_else(|| "KEYS ABOVE THE SECTIONS".to_owned(), |own| format!("[{own}]"));
            let _ = writeln!(page, ".SH \"{title}\"");
            if let Some(own) = own.filter(|own| is_of_section(own)) {
                details(&mut page, comment_below(format!("[{own}]")), "");
            }
        }
        entry(&mut page, key);
    }
    page += ".SH FIELDS OF TABLES\nWhat stands in tables: entries of lists, users, secrets, keys and certificates, and their limits.\n";
    for field in FIELDS {
        let _ = write!(page, ".TP\n.B {}\n{}.\n", escape(field.path), inline(field.help));
    }
    page + FOOT
}

/// A key: its name and default, the sentence of its row, what the example says besides, and how a change takes effect.
fn entry(page: &mut String, key: &ConfigKey) {
    let _ = write!(page, ".TP\n.BR {} \" = {}\"\n", escape(key.path), escape(key.default).replace('"', "\\(dq"));
    let _ = writeln!(page, "{}.", inline(&key.sentence()));
    if let Some(range) = key.range() {
        let _ = writeln!(page, "Allowed: {}.", inline(&range));
    }
    details(page, comment_below(format!("# {}.", key.sentence())), ".IP\n");
    let change = match key.applies {
        Applies::AtReload => return,
        Applies::ToNew(things) => format!("A reload applies a changed value to new {things}."),
        Applies::ByItself => "The server notices a changed file without a reload.".to_owned(),
        Applies::AtRestart(reason) => format!("A changed value waits for a restart: {reason}."),
    };
    let _ = write!(page, ".IP\n{}\n", inline(&change));
}

/// Lines of a comment, which go on after other text: text flows, and what is indented stays as it stands.
fn details(page: &mut String, comment: impl Iterator<Item = &'static str>, paragraph: &str) {
    let mut is_example = None;
    for line in comment {
        let line = line.trim_start_matches('#').strip_prefix(' ').unwrap_or(line);
        let is_indented = line.starts_with(' ');
        if is_example != Some(is_indented) {
            if is_example == Some(true) {
                page.push_str(".fi\n");
            }
            page.push_str(paragraph);
            if is_indented {
                page.push_str(".nf\n");
            }
            is_example = Some(is_indented);
        }
        let text = if is_indented { escape(line) } else { inline(line) };
        let _ = writeln!(page, "{text}");
    }
    if is_example == Some(true) {
        page.push_str(".fi\n");
    }
}

/// The lines of the example that stand below the one that says this, as long as they are text for people: a key, or an
/// example that only lacks its mark, ends them.
fn comment_below(first: String) -> impl Iterator<Item = &'static str> {
    EXAMPLE.lines().skip_while(move |line| *line != first).skip(1).take_while(|line| line.starts_with("# "))
}

/// Whether the comment at the head of a section is about all of it: then a blank line ends it, not a key.
fn is_of_section(section: &str) -> bool {
    let head = format!("[{section}]");
    let mut below = EXAMPLE.lines().skip_while(|line| *line != head).skip(1).skip_while(|line| line.starts_with("# "));
    below.next() == Some("")
}

/// Text that is no command of the formatter and shows its characters as they are.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '~' => escaped.push_str("\\(ti"),
            '^' => escaped.push_str("\\(ha"),
            '`' => escaped.push_str("\\(ga"),
            other => escaped.push(other),
        }
    }
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}

/// The same with what stands between backticks in bold.
fn inline(text: &str) -> String {
    let parts = text
        .split('`')
        .enumerate()
        .map(|(at, part)| if at % 2 == 1 { format!("\\fB{}\\fR", escape(part)) } else { escape(part) });
    parts.collect()
}
