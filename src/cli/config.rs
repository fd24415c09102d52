//! `config`: what is known about the configuration, for editors and people.

use std::io::{self, Write as _};

use clap::Subcommand;

use crate::config::keys::EXAMPLE;
use crate::config::schema::schema;
use crate::failure::Failure;

/// Commands of `config`.
#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Print the JSON Schema of the configuration, with which editors complete and check the file
    Schema,
    /// Print the example: every key, what it does, and its default
    Example,
}

pub(super) fn run(command: &ConfigCommand) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match command {
        ConfigCommand::Schema => writeln!(out, "{:#}", schema())?,
        ConfigCommand::Example => out.write_all(EXAMPLE.as_bytes())?,
    }
    out.flush()?;
    Ok(())
}
