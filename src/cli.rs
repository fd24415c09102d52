//! The command line: arguments, and one function per command.
//!
//! `main` parses and maps what comes back to an exit code: 0 fine, 1 failure at run time, 2 bad
//! usage or bad configuration. Human text on a terminal; `--json` where a script would want it.

mod admin;
mod check;
mod check_config;
mod completions;
mod config;
mod credentials;
mod import;
mod init;
mod man;
mod mint_format;
mod recipe;
mod service;
mod usage;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use self::mint_format::MintFormat;
use crate::config::error::{Problem, SourceLocation};
use crate::config::initial_secret::{Kept, existing_secret, initial_secret, is_world_readable};
use crate::config::{Config, ConfigError, Environment, named_or_default};
use crate::credentials::SharedSecret;
use crate::failure::Failure;
use crate::files;
use crate::ops::upgrades::Release;
use crate::ops::{advice, external};
use crate::printable::json_line;
use crate::run::TakeOver;
use crate::{demo, net};

/// A STUN/TURN relay server.
#[derive(Parser, Debug)]
#[command(name = "throughway", version, about, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a server on this machine with a new secret, and a web page for a test call
    Demo(demo::DemoOptions),
    /// Run the server
    #[command(after_help = SERVE_HELP)]
    Serve {
        /// Configuration file [default: /etc/throughway/config.toml if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Take the clients of a running server over: the path of its upgrade.socket
        #[arg(long, value_name = "WHERE")]
        take_over: Option<TakeOver>,
        /// With --take-over: start without it if no server listens there
        #[arg(long, requires = "take_over")]
        or_start: bool,
    },
    /// Check a configuration file: explain its effect or its errors
    CheckConfig {
        /// Configuration file
        file: PathBuf,
        /// Read the files that it names as this user [default for root: throughway, if that user exists]
        #[arg(long = "as", value_name = "USER")]
        user: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Convert a configuration of coturn, with a verdict on each line
    #[command(after_help = import::HELP)]
    ImportCoturn(import::CoturnOptions),
    /// Convert a configuration of eturnal, with a verdict on each line
    #[command(after_help = import::HELP)]
    ImportEturnal(import::EturnalOptions),
    /// Test a running server from outside over every transport, with a remedy for each failure
    #[command(after_help = check::HELP)]
    Check(check::CheckOptions),
    /// Show the live sessions of a running server, or its refused requests
    Sessions(admin::SessionsOptions),
    /// End live sessions (users can reconnect)
    Kick(admin::KickOptions),
    /// Block a credential, user or tenant, and end its sessions
    Revoke(admin::RevokeOptions),
    /// Set, show or unset limits of a user or tenant while the server runs
    #[command(subcommand)]
    Limits(admin::limits::LimitsCommand),
    /// Answer a network again that sent too many wrong passwords
    Forgive(admin::ForgiveOptions),
    /// Reload the configuration of a running server; show what changed or what is wrong
    Reload(admin::PlainOptions),
    /// Set the log level of a running server
    LogLevel(admin::LogLevelOptions),
    /// Stop accepting sessions; exit when the last one ends
    Drain(admin::drain::DrainOptions),
    /// Replace a running server by the installed version; no call is lost
    Upgrade(admin::upgrade::UpgradeOptions),
    /// Ask the running server whether it is alive: one line, and exit code 0 or 1
    Health(admin::health::HealthOptions),
    /// Write a first configuration with a new secret; show what to open in the firewall, and what to do next
    Init(init::InitOptions),
    /// Install the server as a service of systemd on a machine without a package of it
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Print what is known about the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print completions for a shell
    #[command(after_help = completions::HELP)]
    Completions(completions::CompletionsOptions),
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Where to
        directory: PathBuf,
    },
    /// Show the version
    Version {
        /// Print JSON: what an upgrade to this program needs
        #[arg(long)]
        handover: bool,
    },
    /// Mint or verify credentials
    #[command(subcommand)]
    Credentials(CredentialsCommand),
    /// Print the lines that let another program use this server, from the configuration
    #[command(after_help = recipe::HELP)]
    Recipe(recipe::RecipeOptions),
    /// Work with usage records
    #[command(subcommand)]
    Usage(usage::UsageCommand),
}

const SERVE_HELP: &str = "Without a file the built-in defaults apply. The secret is THROUGHWAY_AUTH__SECRET, or is kept in $STATE_DIRECTORY/secret, or is shown on the terminal.\n\
Every key can also be set by a variable: THROUGHWAY_SECTION__KEY.";

#[derive(Subcommand, Debug)]
enum CredentialsCommand {
    /// Print iceServers JSON with a credential from the first secret
    Mint(MintOptions),
    /// Show which secret made a credential, or why it is refused
    Verify(VerifyOptions),
}

#[derive(Args, Debug)]
struct MintOptions {
    /// The user id that quotas and accounting count by
    #[arg(long, value_name = "ID")]
    user: String,
    /// How long it is valid, such as 30m or 12h
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    ttl: String,
    #[command(flatten)]
    limits: LimitOptions,
    /// Configuration file [default: /etc/throughway/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one line
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// In whose words it is printed
    #[arg(long, value_enum, default_value_t = MintFormat::Json)]
    format: MintFormat,
}

/// What goes into the credential; its secret must read these (claims in its table of auth.secrets).
#[derive(Args, Debug, Default)]
struct LimitOptions {
    /// Total payload that it can relay, such as 10GiB
    #[arg(long, value_name = "SIZE", help_heading = "Limits inside the credential")]
    bytes: Option<String>,
    /// Payload rate in each direction, such as 3Mbit/s
    #[arg(long, value_name = "RATE", help_heading = "Limits inside the credential")]
    bitrate: Option<String>,
    /// Allocations at the same time
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits inside the credential"
    )]
    allocations: Option<u32>,
    /// Peers that it can reach: relay, or prefixes such as 198.51.100.0/24,2001:db8::/32
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',', help_heading = "Limits inside the credential")]
    peers: Vec<String>,
    /// Transports that its client can use: udp, tcp, tls, separated by commas
    #[arg(long, value_name = "TRANSPORTS", value_delimiter = ',', help_heading = "Limits inside the credential")]
    transports: Vec<String>,
    /// Time at which its sessions are closed, such as 2026-12-31T12:00:00Z
    #[arg(long, value_name = "TIME", help_heading = "Limits inside the credential")]
    close_at: Option<String>,
    /// The tenant of the user
    #[arg(long, value_name = "NAME", help_heading = "Limits inside the credential")]
    tenant: Option<String>,
}

#[derive(Args, Debug)]
struct VerifyOptions {
    /// The username, such as 1767225600:alice
    username: String,
    /// The password, such as the base64 text that `mint` printed; other users of this machine can see it in the process
    /// list
    #[arg(required_unless_present = "password_file", conflicts_with = "password_file")]
    password: Option<String>,
    /// Read the password from the first line of this file; - is standard input
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Configuration file [default: /etc/throughway/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`], which knows its exit code.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    net::keep_to_linked_libraries();
    let is_json = arguments.command.is_json();
    let done = run_command(arguments.command);
    match &done {
        Err(failure) if is_json => print_failure(failure)?,
        Ok(()) | Err(_) => {}
    }
    done
}

/// A failure as the one JSON document of a command with `--json`; a command that has reported it by itself has printed its
/// own. `main` tells it on standard error all the same.
fn print_failure(failure: &Failure) -> io::Result<()> {
    let Some(message) = failure.message() else { return Ok(()) };
    let document = serde_json::json!({ "error": message, "exit_code": failure.exit_code() });
    let mut out = io::stdout().lock();
    writeln!(out, "{}", json_line(&document.to_string()))?;
    out.flush()
}

impl Command {
    /// Whether its output is to be one JSON document, whatever comes of it.
    const fn is_json(&self) -> bool {
        match self {
            Self::CheckConfig { json, .. } => *json,
            Self::ImportCoturn(options) => options.output.json,
            Self::ImportEturnal(options) => options.output.json,
            Self::Check(options) => options.json,
            Self::Sessions(options) => options.json,
            Self::Kick(options) => options.json,
            Self::Revoke(options) => options.json,
            Self::Limits(command) => command.is_json(),
            Self::Forgive(options) => options.json,
            Self::Reload(options) => options.json,
            Self::LogLevel(options) => options.json,
            Self::Drain(options) => options.json,
            Self::Upgrade(options) => options.json,
            Self::Credentials(CredentialsCommand::Mint(options)) => options.json,
            Self::Credentials(CredentialsCommand::Verify(options)) => options.json,
            Self::Usage(usage::UsageCommand::Report(options)) => options.json,
            Self::Demo(_)
            | Self::Serve { .. }
            | Self::Health(_)
            | Self::Init(_)
            | Self::Service(_)
            | Self::Config(_)
            | Self::Completions(_)
            | Self::Man { .. }
            | Self::Version { .. }
            | Self::Recipe(_) => false,
        }
    }
}

fn run_command(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(options) => demo::run(options),
        Command::Serve { config, take_over, or_start } => serve(config.as_deref(), take_over, or_start),
        Command::CheckConfig { file, user, json } => check_config::run(&file, user.as_deref(), json),
        Command::ImportCoturn(options) => import::import_coturn(&options),
        Command::ImportEturnal(options) => import::import_eturnal(&options),
        Command::Check(options) => check::run(options),
        Command::Sessions(options) => admin::sessions(&options),
        Command::Kick(options) => admin::kick(&options),
        Command::Revoke(options) => admin::revoke(&options),
        Command::Limits(command) => admin::limits::limits(&command),
        Command::Forgive(options) => admin::forgive(&options),
        Command::Reload(options) => admin::reload(&options),
        Command::LogLevel(options) => admin::log_level(&options),
        Command::Drain(options) => admin::drain::drain(&options),
        Command::Upgrade(options) => admin::upgrade::upgrade(&options),
        Command::Health(options) => admin::health::health(&options),
        Command::Init(options) => init::run(&options),
        Command::Service(command) => service::run(&command),
        Command::Config(command) => config::run(&command),
        Command::Completions(options) => completions::run(&options),
        Command::Man { directory } => man::write(&directory),
        Command::Version { handover } => version(handover),
        Command::Credentials(CredentialsCommand::Mint(options)) => credentials::mint(&options),
        Command::Credentials(CredentialsCommand::Verify(options)) => credentials::verify(&options),
        Command::Recipe(options) => recipe::run(&options),
        Command::Usage(usage::UsageCommand::Report(options)) => usage::report(&options),
    }
}

fn version(handover: bool) -> Result<(), Failure> {
    let release = Release::own();
    let mut out = io::stdout().lock();
    if handover {
        writeln!(out, "{}", release.to_line())?
    } else {
        writeln!(out, "throughway {}", release.version)?
    }
    out.flush()?;
    Ok(())
}

fn serve(file: Option<&Path>, take_over: Option<TakeOver>, or_start: bool) -> Result<(), Failure> {
    let take_over = match take_over {
        Some(from) if or_start => Some(from.or_start().map_err(|why| Failure::Usage(format!("--or-start {why}")))?),
        from => from,
    };
    let take_over = take_over.as_ref();
    let config = load_to_serve(file).map_err(Failure::from);
    if let (Err(failure), Some(from)) = (&config, take_over) {
        from.refuse(failure);
    }
    crate::run::serve(config?, take_over)
}

fn load_to_serve(file: Option<&Path>) -> Result<Config, ConfigError> {
    load(file, |state_directory| {
        let mut stderr = io::stderr();
        let terminal = stderr.is_terminal().then_some(&mut stderr as &mut dyn Write);
        let (secret, kept) = initial_secret(state_directory, terminal)?;
        match kept {
            Kept::Made(path) => eprintln!("No configuration: made a secret in {}", path.display()),
            Kept::Found(path) => {
                eprintln!("No configuration: using the secret in {}", path.display());
                if is_world_readable(&path) {
                    eprintln!("warning: every user of this machine can read {0}; chmod 0600 {0}", path.display());
                }
            }
            Kept::Shown => {}
        }
        Ok(secret)
    })
}

/// The configuration of a command that takes `--config`: the file named, else the default file if
/// it exists, else the defaults with the secret that `initial` finds.
fn load(
    file: Option<&Path>,
    initial: impl FnOnce(Option<&str>) -> Result<SharedSecret, ConfigError>,
) -> Result<Config, ConfigError> {
    let environment = Environment::of_process();
    match named_or_default(file)? {
        Some(path) => Config::load(path, &environment),
        None => {
            let state_directory = std::env::var("STATE_DIRECTORY").ok();
            Config::without_file(&environment, || initial(state_directory.as_deref()))
        }
    }
}

/// The same for a command that must not make a secret.
fn load_existing(file: Option<&Path>) -> Result<Config, ConfigError> {
    load(file, existing_secret)
}

/// No file that an option names is longer: the system's whole list of authorities takes a fifth of it.
pub(crate) const OPTION_FILE_BYTES_MAX: u64 = 1 << 20;

/// The text of a file that an option names; `-` is standard input. `flag` names it in errors.
fn option_file(flag: &str, file: &Path) -> Result<String, Failure> {
    let read = if file.as_os_str() == "-" {
        files::read_from(io::stdin().lock(), OPTION_FILE_BYTES_MAX)
    } else {
        files::read(file, OPTION_FILE_BYTES_MAX)
    };
    let text = read.and_then(files::text);
    text.map_err(|error| Failure::Usage(format!("{flag} {}: {error}", file.display())))
}

/// A password or token from the first line of a file; `-` is standard input. `flag` names it in errors.
fn first_line(flag: &str, file: &Path) -> Result<String, Failure> {
    let text = option_file(flag, file)?;
    // Some editors begin a file with an invisible mark.
    match text.trim_start_matches('\u{FEFF}').lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        Some(_) | None => Err(Failure::Usage(format!("{flag} {}: its first line is empty", file.display()))),
    }
}

/// Adds what the server would warn of on this machine.
fn with_advice(mut config: Config) -> Config {
    external::ask_now(&mut config);
    let advice = advice::reach(&config, &net::relay_candidates(&config));
    let warnings = advice.into_iter().map(|(key, text)| Problem::new(SourceLocation::Nowhere, key, text));
    config.warnings.extend(warnings);
    config
}

/// The same on standard error, for commands whose output is read by others.
fn warn_of_reach(config: &mut Config) {
    if config.relay.external.source().is_some() {
        external::ask_now(config);
    }
    let relays = net::relay_candidates(config);
    // One address that is reached is enough here; what could be better in the other family is for `check-config` to say.
    if advice::reaches_any(&relays) {
        return;
    }
    for (key, text) in advice::reach(config, &relays) {
        // With standard error closed there is no reader.
        let _ = writeln!(io::stderr(), "warning: {key}: {text}");
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// The commands, by their names, that have `--json`.
    fn with_json(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        if command.get_arguments().any(|argument| argument.get_long() == Some("json")) {
            found.push(path.to_owned());
        }
        for child in command.get_subcommands() {
            with_json(child, &format!("{path} {}", child.get_name()), found);
        }
    }

    #[test]
    fn each_command_with_json_fails_with_json() {
        let lines = [
            "check-config t.toml",
            "import-coturn",
            "import-eturnal",
            "check turn:t.example",
            "sessions",
            "kick 1-1",
            "revoke --list",
            "limits set --user a --allocations 1",
            "limits show",
            "limits unset --user a",
            "forgive --list",
            "reload",
            "log-level info",
            "drain",
            "upgrade",
            "credentials mint --user a",
            "credentials verify a b",
            "usage report usage.jsonl",
        ];
        let mut found = Vec::new();
        with_json(&Arguments::command(), "", &mut found);
        for name in &found {
            let of_it = |line: &&&str| line.starts_with(name.trim_start());
            let lines: Vec<_> = lines.iter().filter(of_it).collect();
            // "check" begins "check-config" too.
            let line = lines.last().unwrap_or_else(|| panic!("{name} has --json: add a line for it"));
            let parsed = |more: &[&str]| {
                let words = ["throughway"].into_iter().chain(line.split(' ')).chain(more.iter().copied());
                Arguments::try_parse_from(words).unwrap().command.is_json()
            };
            assert_eq!((parsed(&["--json"]), parsed(&[])), (true, false), "{line}");
        }
        assert_eq!(found.len(), lines.len());
    }
}
