//! The keys above the sections, `[turn]`, `[peers]` and `[log]`.

use std::path::PathBuf;

use ipnet::IpNet;

use crate::config::check::Check;
use crate::config::document::Value;
use crate::protocol::peer_policy::{LocalAddresses, PeerPolicy};
use crate::wire::channel_data::{CHANNEL_NUMBER_MAX, CHANNEL_NUMBER_MAX_RFC8656};

/// How many threads relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workers {
    /// One up to two cores, else one per core.
    Auto,
    /// So many, 1 to 256.
    Count(u16),
}

/// `[turn]`, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// Granted to a client that asks for less or for nothing.
    pub default: u32,
    /// The longest granted; at least `default`.
    pub max: u32,
}

/// `turn.channels`: the channel numbers that may be bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelNumbers {
    /// 0x4000 to 0x7FFE (RFC 5766 section 11).
    Rfc5766,
    /// 0x4000 to 0x4FFF (RFC 8656 section 12).
    Rfc8656,
}

impl ChannelNumbers {
    /// The highest one.
    #[must_use]
    pub const fn max(self) -> u16 {
        match self {
            Self::Rfc5766 => CHANNEL_NUMBER_MAX,
            Self::Rfc8656 => CHANNEL_NUMBER_MAX_RFC8656,
        }
    }
}

/// `[peers]`; every entry is one that [`PeerPolicy::new`] takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeersConfig {
    /// Opened.
    pub allow: Vec<IpNet>,
    /// Closed.
    pub deny: Vec<IpNet>,
}

/// `[log]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// The journal's socket.
    pub journal: Option<PathBuf>,
    /// What is worth a line.
    pub level: LogLevel,
    /// Lines of ended sessions a minute for each user; no limit without.
    pub session_lines_per_user: Option<u32>,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For the journal if it is standard error; else text on a terminal, and JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
    /// Fields for `journalctl`.
    Journal,
}

/// What is worth a log line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// We can't go on.
    Error,
    /// An operator should look.
    Warn,
    /// Start, end, one line per session.
    Info,
    /// Refusals and addresses.
    Debug,
    /// Per packet.
    Trace,
}

impl LogLevel {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The name in the configuration, which `tracing` knows too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Check {
    /// `realm`.
    pub(crate) fn realm(&mut self) -> Box<str> {
        let node = self.get("realm");
        let Value::Text(text) = &node.value else { return Box::default() };
        self.realm_of(&node, text, "the host name of this server is a good realm").unwrap_or_default()
    }

    pub(crate) fn workers(&self) -> Workers {
        match self.limit("workers") {
            Some(count) => Workers::Count(count),
            None => Workers::Auto,
        }
    }

    pub(crate) fn channel_numbers(&self) -> ChannelNumbers {
        match self.word_of("turn.channels") {
            "rfc8656" => ChannelNumbers::Rfc8656,
            _ => ChannelNumbers::Rfc5766,
        }
    }

    pub(crate) fn lifetimes(&mut self) -> Lifetimes {
        let lifetimes =
            Lifetimes { default: self.number("turn.default_lifetime"), max: self.number("turn.max_lifetime") };
        if lifetimes.default > lifetimes.max && !self.has_problem_with("turn.") {
            let (default, max) = (self.get("turn.default_lifetime"), self.get("turn.max_lifetime"));
            // The line to blame is the one that was written.
            if default.is_default() {
                self.wrong(&max, format!("is below turn.default_lifetime = {}", default.render()));
            } else {
                self.wrong(&default, format!("is above turn.max_lifetime = {}", max.render()));
            }
        }
        lifetimes
    }

    pub(crate) fn peers(&mut self) -> PeersConfig {
        let allow = self.each("peers.allow", |check, node| {
            let net = check.net(node)?;
            check.ok(node, PeerPolicy::new(&[net], &[], LocalAddresses::default()).map(|_| net))
        });
        PeersConfig { allow, deny: self.each("peers.deny", Self::net) }
    }

    pub(crate) fn log(&mut self) -> LogConfig {
        let format = match self.word_of("log.format") {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            "journal" => LogFormat::Journal,
            _ => LogFormat::Auto,
        };
        let level = self.word_of("log.level");
        let journal = self.path_of("log.journal");
        if format == LogFormat::Journal && journal.is_none() {
            let node = self.get("log.format");
            self.wrong(&node, "needs the journal's socket in log.journal, which is empty");
        }
        LogConfig {
            format,
            journal,
            level: LogLevel::ALL.into_iter().find(|known| known.name() == level).unwrap_or(LogLevel::Info),
            session_lines_per_user: self.limit("log.session_lines_per_user"),
        }
    }
}
