//! `man`: the manual pages, one for each command, and throughway.toml(5).

mod configuration;

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::cli::Arguments;
use crate::failure::Failure;

/// Of this version, which has no other date: pages must be the same however often they are made.
const DATE: &str = "2026-11-30";

/// What stands in the middle of the head of each page.
const MANUAL: &str = "throughway manual";

/// What stands in the foot.
const SOURCE: &str = concat!("throughway ", env!("CARGO_PKG_VERSION"));

/// Writes every page into a directory, which is made if it is missing.
pub(super) fn write(directory: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::Run(format!("{}: {error}", directory.display()));
    fs::create_dir_all(directory).map_err(failed)?;
    let mut root = Arguments::command().disable_help_subcommand(true);
    root.build();
    commands(&root, directory).map_err(failed)?;
    fs::write(directory.join("throughway.toml.5"), configuration::page()).map_err(failed)
}

/// The page of a command, and those of the commands below it.
fn commands(command: &Command, directory: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        commands(below, directory)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let man = Man::new(command.clone()).title(name).date(DATE).source(SOURCE).manual(MANUAL);
    let mut page = Vec::new();
    man.render(&mut page)?;
    let mut page = tidy(&String::from_utf8_lossy(&page));
    // Pages name each other only downwards.
    let see_also: &[&str] = if name == "throughway" {
        &["throughway.toml(5)", "systemctl(1)", "https://www.rfc-editor.org/rfc/rfc8656"]
    } else {
        &["throughway(1)", "throughway.toml(5)"]
    };
    page += &format!(".SH \"SEE ALSO\"\n{}\n", configuration::escape(&see_also.join(", ")));
    fs::write(directory.join(format!("{name}.1")), page)
}

/// What the generator makes better: it leaves blank lines between breaks, which readers warn of, and the lines of notes flow.
fn tidy(page: &str) -> String {
    let page = page.replace("\n.br\n\n.br\n", "\n.sp\n");
    let Some((before, notes)) = page.split_once(".SH EXTRA\n") else { return page };
    let (notes, after) = notes.split_at(notes.find(".SH ").unwrap_or(notes.len()));
    format!("{before}.SH NOTES\n{}\n{after}", notes.trim_end().replace('\n', "\n.br\n"))
}
