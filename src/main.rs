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
            // A server's standard error may be a pipe without a reader; its log knows how to end all the same.
            if let Some(message) = failure.message()
                && !throughway::ops::log::write_last(&message)
            {
                eprintln!("{}", throughway::printable::printable_lines(&message));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}
