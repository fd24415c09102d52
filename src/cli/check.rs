//! `check`: arguments in, report out.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::address::Family;
use crate::check::answer::Login;
use crate::check::traffic::Burst;
use crate::check::{self, Options};
use crate::cli::{credentials, first_line, load_existing, option_file};
use crate::config::DURATION;
use crate::failure::Failure;
use crate::printable::{json_line, printable_lines};
use crate::turn_uri;

/// The user id of credentials minted for a check.
const USER: &str = "check";

/// How long they are good for, in seconds.
const TTL: u64 = 600;

pub(super) const HELP: &str = "URL is a server (turn:HOST:PORT?transport=udp|tcp, turns:HOST:PORT, stun:HOST:PORT) or a credential endpoint (http or https) that returns servers and credentials. Every address of a name is checked. The exit code is 0 if nothing failed, 1 if something did, 2 for bad usage.\n\
With --config alone, the listeners of that configuration are checked.";

/// Options of `check`.
#[derive(Args, Debug)]
pub(super) struct CheckOptions {
    /// Credential endpoints or servers
    #[arg(value_name = "URL", required_unless_present = "config")]
    urls: Vec<String>,
    /// Username for servers given as turn: and turns:
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    username: Option<String>,
    /// Its password; other users of this machine can see it in the process list
    #[arg(long, value_name = "PASSWORD", requires = "username", conflicts_with = "password_file")]
    password: Option<String>,
    /// Read its password from the first line of this file; - is standard input
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    /// Mint the credential from the first secret of this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Header for the endpoint, such as "Accept-Language: en"; can be repeated. Other users of this machine can see it
    /// in the process list
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// Read headers for the endpoint from this file, one a line, such as "Authorization: Bearer KEY"; - is standard
    /// input
    #[arg(long, value_name = "FILE")]
    header_file: Option<PathBuf>,
    /// Also trust the certificates in this PEM file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How long each answer may take
    #[arg(long, default_value = "3s", value_name = "DURATION")]
    timeout: String,
    /// Length of the data burst for each server; 0s for none
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    burst_time: String,
    /// How fast it is
    #[arg(long, default_value = "1Mbit/s", value_name = "RATE")]
    burst_rate: String,
    /// Only IPv4 addresses
    #[arg(long, short = '4', conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6 addresses
    #[arg(long, short = '6')]
    ipv6: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(given: CheckOptions) -> Result<(), Failure> {
    let json = given.json;
    let options = options(given)?;
    let report = check::run(&options).map_err(Failure::Usage)?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", json_line(&report.json().to_string()))?;
    } else {
        // Most of it is what a server said.
        write!(out, "{}", printable_lines(&report.text()))?;
    }
    if report.is_ok() { Ok(()) } else { Err(Failure::Reported(1)) }
}

fn options(given: CheckOptions) -> Result<Options, Failure> {
    let duration = |key: &str, text: &str, max: u64| {
        let seconds = DURATION.parse(text).map_err(|message| Failure::Usage(format!("{key} {text}: {message}")))?;
        if seconds > max {
            return Err(Failure::Usage(format!("{key} {text}: at most {max}s")));
        }
        Ok(Duration::from_secs(seconds))
    };
    let timeout = duration("--timeout", &given.timeout, 60)?;
    if timeout.is_zero() {
        return Err(Failure::Usage("--timeout 0s: at least 1s".to_owned()));
    }
    let burst_time = duration("--burst-time", &given.burst_time, 60)?;
    let rate = rate(&given.burst_rate)
        .map_err(|message| Failure::Usage(format!("--burst-rate {}: {message}", given.burst_rate)))?;
    let mut headers = given.header;
    if let Some(file) = &given.header_file {
        headers.append(&mut headers_of(file)?);
    }
    let family = match (given.ipv4, given.ipv6) {
        (true, _) => Some(Family::V4),
        (_, true) => Some(Family::V6),
        (false, false) => None,
    };
    let mut subjects = given.urls;
    let (mut login, mut minter) = (None, None);
    if let Some(file) = &given.config {
        let mut config = load_existing(Some(file))?;
        super::warn_of_reach(&mut config);
        let (minted, with, urls) = credentials::mint_for_check(&config, USER, TTL).map_err(Failure::Usage)?;
        (login, minter) = (Some(minted), Some(with));
        if subjects.is_empty() {
            subjects = urls;
            // The listeners of the other family are there too, and were not asked for.
            let family = family.filter(|family| subjects.iter().any(|uri| is_of_family(uri, *family)));
            subjects.retain(|uri| family.is_none_or(|family| is_of_family(uri, family)));
        }
        if subjects.is_empty() && config.listen.is_empty() {
            let message = "it has no listener, so there is nothing to check; name a server besides --config";
            return Err(Failure::Usage(format!("--config {}: {message}", file.display())));
        }
        if subjects.is_empty() {
            return Err(Failure::Usage(format!(
                "--config {}: no address to check: its listeners are on every address, and this machine has no route to the \
                 world that would tell which one clients use. Name the server, such as turn:turn.example.org:3478, besides \
                 --config; or set relay.external or http.public_name in it",
                file.display()
            )));
        }
    }
    if let Some(username) = given.username {
        let password = match (given.password, given.password_file) {
            (Some(password), _) => password,
            (None, Some(file)) => first_line("--password-file", &file)?,
            (None, None) => return Err(Failure::Usage("--username needs --password or --password-file".to_owned())),
        };
        login = Some(Login { username, password });
    }
    Ok(Options {
        subjects,
        login,
        minter,
        headers,
        ca: given.ca,
        timeout,
        burst: Burst::new(burst_time, rate),
        family,
        is_progress_shown: io::stderr().is_terminal(),
    })
}

/// Whether a URI may lead to an address of this family: a name may.
fn is_of_family(uri: &str, family: Family) -> bool {
    let ip = turn_uri::parse(uri).ok().and_then(|uri| uri.host.parse::<IpAddr>().ok());
    ip.is_none_or(|ip| Family::of(ip) == family)
}

/// The lines of a file that are not empty.
fn headers_of(file: &Path) -> Result<Vec<String>, Failure> {
    let text = option_file("--header-file", file)?;
    let lines = text.trim_start_matches('\u{FEFF}').lines().map(str::trim).filter(|line| !line.is_empty());
    let headers: Vec<String> = lines.map(ToOwned::to_owned).collect();
    // The line is not shown: it may hold a key.
    if headers.is_empty() || headers.iter().any(|line| !line.contains(':') || line.chars().any(char::is_control)) {
        let message = format!("--header-file {}: expected lines such as \"Authorization: Bearer KEY\"", file.display());
        return Err(Failure::Usage(message));
    }
    Ok(headers)
}

/// Bits per second from "500kbit/s" or "1Mbit/s"; at most 100 Mbit/s, because a check must not be a flood.
fn rate(text: &str) -> Result<u64, String> {
    let allowed = "a rate is a whole number and kbit/s or Mbit/s, such as \"1Mbit/s\", up to 100Mbit/s";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "kbit/s" => 1000,
        "Mbit/s" => 1_000_000,
        _ => return Err(allowed.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| allowed.to_owned())?;
    number.checked_mul(unit).filter(|rate| *rate <= 100_000_000).ok_or_else(|| allowed.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_the_other_family_is_told_from_a_name() {
        for (uri, is_of_v4) in
            [("turn:192.0.2.7:3478", true), ("turn:[2001:db8::7]:3478", false), ("turns:turn.example.org", true)]
        {
            assert_eq!(is_of_family(uri, Family::V4), is_of_v4, "{uri}");
        }
    }

    #[test]
    fn rates_are_whole_numbers_with_a_unit_and_have_an_upper_end() {
        assert_eq!(rate("1Mbit/s"), Ok(1_000_000));
        assert_eq!(rate("64kbit/s"), Ok(64_000));
        assert_eq!(rate("0kbit/s"), Ok(0));
        for wrong in ["", "1", "Mbit/s", "1.5Mbit/s", "1MB/s", "101Mbit/s", "99999999999999999999Mbit/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
