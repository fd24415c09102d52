//! `completions`: what a shell needs to complete our commands.

use std::io::{self, Write as _};

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};

use crate::cli::Arguments;
use crate::failure::Failure;

pub(super) const HELP: &str = "\
bash: throughway completions bash > /usr/share/bash-completion/completions/throughway
zsh:  throughway completions zsh > /usr/local/share/zsh/site-functions/_throughway
fish: throughway completions fish > /usr/share/fish/vendor_completions.d/throughway.fish";

/// Options of `completions`.
#[derive(Args, Debug)]
pub(super) struct CompletionsOptions {
    /// The shell that reads them
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(options: &CompletionsOptions) -> Result<(), Failure> {
    // Whole in memory first: the generators panic when their reader has gone.
    let (mut command, mut text) = (Arguments::command(), Vec::new());
    match options.shell {
        Shell::Bash => generate(Bash, &mut command, "throughway", &mut text),
        Shell::Zsh => generate(Zsh, &mut command, "throughway", &mut text),
        Shell::Fish => generate(Fish, &mut command, "throughway", &mut text),
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()?;
    Ok(())
}
