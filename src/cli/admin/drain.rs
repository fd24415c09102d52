//! `drain`: begins one, and shows how far it is until the server has exited.

use std::io::{self, IsTerminal as _, Write as _};
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::client::{Client, ServerOptions};
use super::{print, sessions_text};
use crate::failure::Failure;

/// How often the server is asked.
const EVERY: Duration = Duration::from_secs(1);

/// So many questions in a row without an answer mean that it has ended.
const SILENCES: u32 = 3;

/// Options of `drain`.
#[derive(Args, Debug)]
pub(in crate::cli) struct DrainOptions {
    /// Wait until the server has exited, as on a terminal; an interrupt stops the waiting, not the drain
    #[arg(long)]
    wait: bool,
    /// Print JSON, and don't wait unless --wait is given
    #[arg(long)]
    pub(in crate::cli) json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

pub(in crate::cli) fn drain(options: &DrainOptions) -> Result<(), Failure> {
    let client = options.server.find()?;
    let answer = client.post("/v1/drain", &json!({}))?;
    print(options.json, &answer, |out| {
        let began = if answer["was_draining"] == true { "draining already" } else { "draining began" };
        let ends = match answer["ends_in_s"].as_u64() {
            Some(seconds) => format!("the rest is ended in {seconds} s"),
            None => "no time limit".to_owned(),
        };
        writeln!(out, "{began}: no new sessions; {} left; {ends}", sessions_text(&answer["sessions"]))
    })?;
    let is_shown = io::stderr().is_terminal();
    if !options.wait && (options.json || !is_shown) {
        return Ok(());
    }
    wait(&client, is_shown);
    if !options.json {
        writeln!(io::stdout().lock(), "the server has exited")?;
    }
    Ok(())
}

/// Until the server does not answer any more, or another one does.
fn wait(client: &Client, is_shown: bool) {
    let mut silences = 0;
    while silences < SILENCES {
        match client.get("/v1/status") {
            Ok(status) if status["draining"] != true => break,
            Ok(status) => {
                silences = 0;
                if is_shown {
                    // A terminal that went away changes nothing.
                    let _ = write!(io::stderr(), "\r\x1b[K{} left ...", sessions_text(&status["sessions"]));
                }
                sleep(EVERY);
            }
            Err(_) => {
                silences += 1;
                sleep(EVERY / 10);
            }
        }
    }
    if is_shown {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}
