//! `drain`: begins one, and shows how far it is until the server has ended.

use std::io::{self, IsTerminal as _, Write as _};
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::client::{Client, Server};
use super::{Failure, print, sessions_text};

/// How often the server is asked.
const EVERY: Duration = Duration::from_secs(1);

/// So many questions in a row without an answer mean that it has ended.
const SILENCES: u32 = 3;

/// Options of `drain`.
#[derive(Args, Debug)]
pub(in crate::cli) struct DrainOptions {
    /// Wait until the server has ended, as on a terminal; an interrupt ends the waiting, not the drain
    #[arg(long)]
    wait: bool,
    /// Print JSON, and don't wait unless told
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

pub(in crate::cli) fn drain(options: &DrainOptions) -> Result<(), Failure> {
    let client = options.server.find()?;
    let answer = client.post("/v1/drain", &json!({}))?;
    print(options.json, &answer, |out| {
        let began = if answer["was_draining"] == true { "draining already" } else { "draining began" };
        let ends = match answer["ends_in_s"].as_u64() {
            Some(seconds) => format!("what is left in {seconds} s is ended then"),
            None => "they may last as long as they like".to_owned(),
        };
        writeln!(out, "{began}: no new sessions; {} left; {ends}", sessions_text(&answer["sessions"]))
    })?;
    let is_shown = io::stderr().is_terminal();
    if !options.wait && (options.json || !is_shown) {
        return Ok(());
    }
    wait(&client, is_shown);
    if !options.json {
        writeln!(io::stdout().lock(), "the server has ended")?;
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
