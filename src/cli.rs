//! The command line: arguments, and one function per command.
//!
//! `main` parses and maps what comes back to an exit code: 0 fine, 1 failure at run time, 2 bad
//! usage or bad configuration. Human text on a terminal; `--json` where a script would want it.

mod admin;
mod check;
mod credentials;
mod usage;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::initial_secret::{Kept, existing_secret, initial_secret, is_world_readable};
use crate::config::{Config, ConfigError, DEFAULT_PATH, Environment};
use crate::credentials::SharedSecret;
use crate::demo;

/// A STUN/TURN relay server.
#[derive(Parser, Debug)]
#[command(name = "throughway", version, about, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run everything on this machine with a fresh secret, and a page to call yourself
    Demo(DemoOptions),
    /// Run the server
    #[command(after_help = SERVE_HELP)]
    Serve {
        /// Configuration file [default: /etc/throughway/config.toml if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Say what a configuration will do, or the exact place and remedy of each error
    CheckConfig {
        /// Configuration file
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at a running server from outside: every transport, with a remedy for each failure
    #[command(after_help = check::HELP)]
    Check(check::CheckOptions),
    /// Show the live sessions of a running server, or why requests were refused
    Sessions(admin::SessionsOptions),
    /// End live sessions; their users may come again
    Kick(admin::KickOptions),
    /// Shut a credential, a user or a tenant out, live sessions included
    Revoke(admin::RevokeOptions),
    /// Make a running server read its configuration again, and say what changed or what is wrong
    Reload(admin::PlainOptions),
    /// Set the log level of a running server
    LogLevel(admin::LogLevelOptions),
    /// Let a running server take no new sessions, and end with the last one
    Drain(admin::drain::DrainOptions),
    /// Mint or verify credentials
    #[command(subcommand)]
    Credentials(CredentialsCommand),
    /// Work with usage records
    #[command(subcommand)]
    Usage(usage::UsageCommand),
}

const SERVE_HELP: &str = "Without a file the built-in defaults hold, and the secret is \
THROUGHWAY_AUTH__SECRET, or lives in $STATE_DIRECTORY/secret, or is shown on the terminal.\n\
Every key can be set by a variable as well: THROUGHWAY_SECTION__KEY.";

/// Options of `demo`.
#[derive(Args, Clone, Copy, PartialEq, Eq, Debug)]
pub struct DemoOptions {
    /// Port for STUN and TURN, UDP and TCP
    #[arg(long, default_value_t = 3478, value_name = "PORT")]
    pub port: u16,
    /// Where the page is served
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub http: SocketAddr,
    /// Address under which browsers reach this machine, where it can't be known from inside (a container)
    #[arg(long, value_name = "ADDRESS")]
    pub lan: Option<IpAddr>,
}

#[derive(Subcommand, Debug)]
enum CredentialsCommand {
    /// Print iceServers JSON with a credential from the first secret
    Mint(MintOptions),
    /// Say which secret a credential belongs to, or why it is refused
    Verify(VerifyOptions),
}

#[derive(Args, Debug)]
struct MintOptions {
    /// The user id that quotas and accounting count by
    #[arg(long, value_name = "ID")]
    user: String,
    /// How long it is good for, such as 30m or 12h
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    ttl: String,
    #[command(flatten)]
    limits: LimitOptions,
    /// Configuration file [default: /etc/throughway/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one line
    #[arg(long)]
    json: bool,
}

/// What goes into the credential; its secret must read these (claims in its table of auth.secrets).
#[derive(Args, Debug, Default)]
struct LimitOptions {
    /// Payload that it may relay in all, such as 10GiB
    #[arg(long, value_name = "SIZE", help_heading = "Limits inside the credential")]
    bytes: Option<String>,
    /// Payload each way, such as 3Mbit/s
    #[arg(long, value_name = "RATE", help_heading = "Limits inside the credential")]
    bitrate: Option<String>,
    /// Allocations at a time
    #[arg(long, value_name = "COUNT", help_heading = "Limits inside the credential")]
    allocations: Option<u32>,
    /// Whom it may reach: relay, or prefixes such as 198.51.100.0/24,2001:db8::/32
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',', help_heading = "Limits inside the credential")]
    peers: Vec<String>,
    /// How its client may come: udp, tcp and tls, with commas between
    #[arg(long, value_name = "TRANSPORTS", value_delimiter = ',', help_heading = "Limits inside the credential")]
    transports: Vec<String>,
    /// When its sessions are closed, such as 2026-12-31T12:00:00Z
    #[arg(long, value_name = "TIME", help_heading = "Limits inside the credential")]
    close_at: Option<String>,
    /// Whose user it is for
    #[arg(long, value_name = "NAME", help_heading = "Limits inside the credential")]
    tenant: Option<String>,
}

#[derive(Args, Debug)]
struct VerifyOptions {
    /// Such as 1767225600:alice
    username: String,
    /// Such as the base64 text that was minted
    password: String,
    /// Configuration file [default: /etc/throughway/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why a command ended badly.
#[derive(Debug)]
pub enum Failure {
    /// Bad configuration: exit code 2.
    Config(ConfigError),
    /// Bad usage: exit code 2.
    Usage(String),
    /// Something failed at run time: exit code 1.
    Run(String),
    /// A check said no, and has printed why: exit code as given.
    Said(u8),
}

impl Failure {
    /// The exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) => 2,
            Self::Run(_) => 1,
            Self::Said(code) => *code,
        }
    }

    /// What is left to say on standard error.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Said(_) => None,
            Self::Config(_) | Self::Usage(_) | Self::Run(_) => Some(self.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Usage(message) | Self::Run(message) => f.write_str(message),
            Self::Said(code) => write!(f, "exit code {code}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Whoever reads our output may stop early (`| head`): that is no failure.
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Said(0) } else { Self::Run(error.to_string()) }
    }
}

/// Runs the command.
///
/// # Errors
/// [`Failure`], which knows its exit code.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Demo(options) => demo::run(options),
        Command::Serve { config } => serve(config.as_deref()),
        Command::CheckConfig { file, json } => check_config(&file, json),
        Command::Check(options) => check::run(options),
        Command::Sessions(options) => admin::sessions(&options),
        Command::Kick(options) => admin::kick(&options),
        Command::Revoke(options) => admin::revoke(&options),
        Command::Reload(options) => admin::reload(&options),
        Command::LogLevel(options) => admin::log_level(&options),
        Command::Drain(options) => admin::drain::drain(&options),
        Command::Credentials(CredentialsCommand::Mint(options)) => credentials::mint(&options),
        Command::Credentials(CredentialsCommand::Verify(options)) => credentials::verify(&options),
        Command::Usage(usage::UsageCommand::Report(options)) => usage::report(&options),
    }
}

fn serve(file: Option<&Path>) -> Result<(), Failure> {
    let config = load(file, |state_directory| {
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
    })?;
    crate::run::serve(config)
}

/// The configuration of a command that takes `--config`: the file named, else the default file if
/// it exists, else the defaults with the secret that `initial` finds.
fn load(
    file: Option<&Path>,
    initial: impl FnOnce(Option<&str>) -> Result<SharedSecret, ConfigError>,
) -> Result<Config, ConfigError> {
    let environment = Environment::of_process();
    let default = Path::new(DEFAULT_PATH);
    match file.or_else(|| default.exists().then_some(default)) {
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

fn check_config(file: &Path, json: bool) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match Config::load(file, &Environment::of_process()) {
        Ok(config) if json => writeln!(out, "{}", config.describe_json())?,
        Ok(config) => write!(out, "{} is right. The server will do this:\n\n{}", file.display(), config.describe())?,
        Err(error) if json => {
            writeln!(out, "{}", error.describe_json())?;
            return Err(Failure::Said(2));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
