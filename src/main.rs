//! The binary: parse, run, say what went wrong, exit with its code.

use std::process::ExitCode;

use clap::Parser;
use throughway::cli::{self, Arguments};

fn main() -> ExitCode {
    // clap itself ends with 2 on bad usage and with 0 after --help.
    let arguments = Arguments::parse();
    match cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                eprintln!("{message}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}
