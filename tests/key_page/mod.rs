//! docs/reference/keys.md below its mark: the keys of each section in a table, then what config.example.toml says of them
//! besides.

use std::fmt::Write as _;

use throughway::config::keys::{Applies, ConfigKey, EXAMPLE, FIELDS, KEYS};

/// Where the page begins to be made.
const MARK: &str =
    "<!-- From here on made from src/config/keys.rs and config.example.toml by tests/config_keys.rs. -->\n";

const LINE_CHARACTERS_MAX: usize = 120;

/// The page with all below the mark made anew.
pub(crate) fn renewed(page: &str) -> String {
    let (text, _) = page.split_once(MARK).expect("docs/reference/keys.md has its mark");
    let mut page = format!("{text}{MARK}");
    let mut sections: Vec<&str> = KEYS.iter().map(section_of).collect();
    sections.dedup();
    for section in sections {
        let title = if section.is_empty() { "Above the sections".to_owned() } else { format!("`[{section}]`") };
        let _ = write!(page, "\n## {title}\n\n");
        if is_of_section(section) {
            details(&mut page, comment_below(&format!("[{section}]")));
        }
        page += "| key | default | what it does | reload |\n|---|---|---|---|\n";
        let keys = || KEYS.iter().filter(|key| section_of(key) == section);
        for key in keys() {
            page += &row(key);
        }
        for key in keys() {
            let lines = comment_below(&format!("# {}.", key.sentence()));
            if !lines.is_empty() {
                let _ = write!(page, "\n### `{}`\n\n", key.path);
                details(&mut page, lines);
                page.truncate(page.trim_end().len());
                page.push('\n');
            }
        }
    }
    page += "\n## Fields of tables\n\n";
    page +=
        "`*.limits` are the limits that a user, a secret or a key may have of its own. What is left out of them is\n";
    page += "not limited further.\n\n| field | what it says |\n|---|---|\n";
    for field in FIELDS {
        let _ = writeln!(page, "| `{}` | {} |", field.path, field.help);
    }
    page
}

fn section_of(key: &ConfigKey) -> &'static str {
    key.path.split_once('.').map_or("", |(section, _)| section)
}

fn row(key: &ConfigKey) -> String {
    let reload = match key.applies {
        Applies::AtReload => "yes".to_owned(),
        Applies::ToNew(things) => format!("for new {things}"),
        Applies::ByItself => "by itself".to_owned(),
        Applies::AtRestart(reason) => format!("no: {reason}"),
    };
    let range = key.range().map_or_else(String::new, |range| format!(". Allowed: {range}"));
    format!("| `{}` | `{}` | {}{range} | {reload} |\n", key.path, key.default, key.sentence())
}

/// The lines of the example that stand below the one that says this, as long as they are text for people.
fn comment_below(first: &str) -> Vec<&'static str> {
    let below = EXAMPLE.lines().skip_while(|line| *line != first).skip(1);
    below.take_while(|line| line.starts_with("# ")).map(|line| &line[2..]).collect()
}

/// Whether the comment at the head of a section is about all of it: then a blank line ends it, not a key.
fn is_of_section(section: &str) -> bool {
    let head = format!("[{section}]");
    let mut below = EXAMPLE.lines().skip_while(|line| *line != head).skip(1).skip_while(|line| line.starts_with("# "));
    below.next() == Some("")
}

/// Text flows, and what is indented is a block of code.
fn details(page: &mut String, lines: Vec<&str>) {
    let mut text = String::new();
    let mut code = String::new();
    for line in lines {
        if let Some(line) = line.strip_prefix(' ') {
            flow(page, &mut text);
            let _ = writeln!(code, "{}", line.strip_prefix(' ').unwrap_or(line));
        } else {
            fence(page, &mut code);
            let _ = write!(text, "{line} ");
        }
    }
    flow(page, &mut text);
    fence(page, &mut code);
}

fn fence(page: &mut String, code: &mut String) {
    if !code.is_empty() {
        let _ = write!(page, "```toml\n{code}```\n\n");
        code.clear();
    }
}

/// A paragraph in lines of the usual length. Outside of code a star or an angle bracket would mean something.
fn flow(page: &mut String, text: &mut String) {
    if text.is_empty() {
        return;
    }
    let plain = |text: &str| text.replace('*', "\\*").replace('<', "&lt;");
    let parts = text.split('`').enumerate();
    let parts: Vec<String> = parts.map(|(at, part)| if at % 2 == 1 { part.to_owned() } else { plain(part) }).collect();
    let mut column = 0;
    for word in parts.join("`").split_whitespace() {
        let length = word.chars().count();
        let is_full = column > 0 && column + 1 + length > LINE_CHARACTERS_MAX;
        let between = if is_full {
            "\n"
        } else if column > 0 {
            " "
        } else {
            ""
        };
        column = if is_full { length } else { column + between.len() + length };
        let _ = write!(page, "{between}{word}");
    }
    page.push_str("\n\n");
    text.clear();
}
