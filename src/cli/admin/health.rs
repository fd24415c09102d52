//! `health`: whether the server of this machine lives, for the health check of a container: one line, exit code 0 or 1.

use std::io::{self, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use axum::http::StatusCode;
use clap::Args;

use super::client::ServerOptions;
use crate::failure::Failure;
use crate::printable::printable;

/// Options of `health`.
#[derive(Args, Debug)]
pub(in crate::cli) struct HealthOptions {
    /// Ask whether it accepts new sessions, which a server that drains or has no address to relay from does not
    #[arg(long)]
    ready: bool,
    /// How long it may take to answer, in seconds
    #[arg(long, default_value_t = 3, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
    #[command(flatten)]
    server: ServerOptions,
}

pub(in crate::cli) fn health(options: &HealthOptions) -> Result<(), Failure> {
    let within = Duration::from_secs(options.timeout);
    let (sender, answer) = mpsc::channel();
    let (server, is_ready) = (options.server.clone(), options.ready);
    // A thread of its own, because reading the configuration can hang too. It ends with the process.
    std::thread::spawn(move || sender.send(ask(&server, is_ready, within)));
    // Everything is exit code 1: Docker reserves 2.
    let line = match answer.recv_timeout(within) {
        Ok(Ok(line)) => line,
        Ok(Err(why)) => return Err(Failure::Run(why)),
        Err(RecvTimeoutError::Timeout) => {
            return Err(Failure::Run(format!("no answer within {} s", options.timeout)));
        }
        Err(RecvTimeoutError::Disconnected) => return Err(Failure::Run("the question failed".to_owned())),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

fn ask(server: &ServerOptions, is_ready: bool, within: Duration) -> Result<String, String> {
    let one_line = |failure: Failure| failure.to_string().replace('\n', "; ");
    let client = server.find().map_err(one_line)?;
    let (target, wanted) = if is_ready { ("/readyz", "ready") } else { ("/healthz", "alive") };
    let (status, body) = client.plain(target, within).map_err(one_line)?;
    let said = printable(body.lines().next().unwrap_or_default()).into_owned();
    match status {
        StatusCode::OK if said == wanted => Ok(said),
        StatusCode::OK => Err(format!("what answers at {} is not throughway", client.address())),
        _ => Err(format!("{} answered {status}: {said}", client.address())),
    }
}
