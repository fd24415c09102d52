//! How a command or the whole process ends: the failure, its exit code, and what must still be done before an exit.

use std::sync::OnceLock;
use std::{fmt, io};

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Bad configuration: exit code 2.
    Config(String),
    /// Bad usage: exit code 2.
    Usage(String),
    /// Something failed at run time: exit code 1.
    Run(String),
    /// A check failed and has printed its findings: exit code as given.
    Reported(u8),
}

impl Failure {
    /// The exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) => 2,
            Self::Run(_) => 1,
            Self::Reported(code) => *code,
        }
    }

    /// What is left to say on standard error.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Reported(_) => None,
            Self::Config(_) | Self::Usage(_) | Self::Run(_) => Some(self.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(message) | Self::Usage(message) | Self::Run(message) => f.write_str(message),
            Self::Reported(code) => write!(f, "exit code {code}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // The reader of our output may stop early (`| head`): that is no failure.
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Reported(0) } else { Self::Run(error.to_string()) }
    }
}

static BEFORE_EXIT: OnceLock<fn()> = OnceLock::new();

/// Registers what [`exit`] does first; only the first registration counts. The log registers its flush.
pub fn before_exit(hook: fn()) {
    let _ = BEFORE_EXIT.set(hook);
}

/// Ends the process at once, from any thread, after the hook of [`before_exit`]. For broken assumptions only: a command
/// that fails returns a [`Failure`].
pub fn exit(code: i32) -> ! {
    if let Some(hook) = BEFORE_EXIT.get() {
        hook();
    }
    std::process::exit(code)
}

/// Ends the process by SIGABRT, from any thread, after the hook of [`before_exit`]: a core is dumped where the system wants
/// one, and a supervisor goes on.
pub fn abort() -> ! {
    if let Some(hook) = BEFORE_EXIT.get() {
        hook();
    }
    std::process::abort()
}
