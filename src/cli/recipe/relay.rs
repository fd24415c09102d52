//! What the configuration says about this server, as another program must be told it.

use std::net::IpAddr;

use crate::address::Transport;
use crate::cli::mint_format::endpoint;
use crate::config::{Config, DURATION};
use crate::credentials::{Algorithm, SharedSecret};
use crate::protocol::settings::StaticKey;
use crate::turn_uri::TurnUri;

/// What stands for a secret that is not shown.
const MASK: &str = "********";

/// A static user.
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: String,
}

/// This server.
pub(super) struct Relay<'a> {
    config: &'a Config,
    /// At most four, UDP first.
    pub(super) servers: Vec<TurnUri>,
    now: u64,
    show_secret: bool,
    notes: Vec<String>,
}

impl<'a> Relay<'a> {
    pub(super) fn new(config: &'a Config, servers: Vec<TurnUri>, now: u64, show_secret: bool) -> Result<Self, String> {
        if servers.is_empty() {
            return Err("no listener has an address that clients can reach; give --host, or set http.public_name or \
                        relay.external"
                .to_owned());
        }
        Ok(Self { config, servers, now, show_secret, notes: Vec::new() })
    }

    /// Something to look at beside the lines.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Addresses in the lines that were found from this machine's routes.
    pub(super) fn note_addresses(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        for ip in addresses {
            self.note(format!(
                "{ip} is an address of this machine, found from its routes; if clients use another one, or a name, give \
                 --host or set http.public_name"
            ));
        }
    }

    pub(super) fn into_notes(self) -> Vec<String> {
        self.notes
    }

    /// The first server of a transport.
    pub(super) fn first(&self, transport: Transport) -> Option<TurnUri> {
        self.servers.iter().find(|server| server.transport == transport).cloned()
    }

    /// All URIs.
    pub(super) fn urls(&self) -> Vec<String> {
        self.servers.iter().map(ToString::to_string).collect()
    }

    /// The server for STUN.
    pub(super) fn stun(&self) -> Option<TurnUri> {
        self.servers.iter().find_map(TurnUri::as_stun)
    }

    fn masked(&mut self, what: &str, value: &[u8]) -> Result<String, String> {
        if !self.show_secret {
            self.note(format!("{what} is shown as {MASK}; --show-secret prints it"));
            return Ok(MASK.to_owned());
        }
        std::str::from_utf8(value)
            .map(ToOwned::to_owned)
            .map_err(|_| format!("{what} is no text, so it can't be printed; use one made with `openssl rand -hex 32`"))
    }

    /// The secret for a program that mints with HMAC-SHA1, as all of them do: the one that mints here, else another.
    pub(super) fn secret(&mut self) -> Result<String, String> {
        let fits = |secret: &&SharedSecret| secret.algorithm == Algorithm::Sha1 && !secret.is_retired(self.now);
        let secrets = &self.config.auth.secrets;
        let found = secrets.iter().filter(fits).min_by_key(|secret| secret.verify_only);
        let secret = found.ok_or_else(|| match secrets.first() {
            None => "the program makes its credentials with a secret, and the configuration has none: add [[auth.secrets]] with \
                     id and value"
                .to_owned(),
            Some(other) => format!(
                "the program makes its credentials with HMAC-SHA1, and no secret that is in use has algorithm = \"sha1\" (\"{}\" \
                 has \"{}\"): add one to auth.secrets",
                other.id,
                other.algorithm.name()
            ),
        })?;
        if secret.verify_only {
            self.note(format!("the secret \"{}\" is verify_only: it may be about to be removed", secret.id));
        }
        self.masked(&format!("the secret \"{}\"", secret.id), secret.value.expose())
    }

    /// The static user for a program that can't mint: the one named after it, else the first by name.
    pub(super) fn user(&mut self, program: &str) -> Result<User, String> {
        let users = &self.config.auth.users;
        #[allow(clippy::disallowed_methods, reason = "the least of the names does not depend on the order")]
        let first = || users.keys().min().cloned();
        let named = users.contains_key(program).then(|| program.into());
        let name: Box<str> = named.or_else(first).ok_or_else(|| {
            format!(
                "this program knows static users only, and auth.users has none: add one, such as users = {{ {} = \"the output of \
                 `openssl rand -base64 15`\" }}",
                crate::config::quote(program)
            )
        })?;
        let password = match users.get(&name).map(|user| &user.key) {
            Some(StaticKey::Password { given: password, .. }) => {
                self.masked(&format!("the password of \"{name}\""), password.expose())?
            }
            Some(StaticKey::Keys { .. }) | None => {
                self.note(format!("the configuration has no password of \"{name}\", only its key_md5: fill it in"));
                MASK.to_owned()
            }
        };
        Ok(User { name: name.into(), password })
    }

    /// A lifetime that the program lets us choose.
    pub(super) fn ttl(&self, wanted: u64) -> u64 {
        wanted.min(self.config.auth.max_ttl)
    }

    /// A lifetime that is fixed in the program.
    pub(super) fn fixed_ttl(&mut self, seconds: u64) {
        let max = self.config.auth.max_ttl;
        if seconds > max {
            self.note(format!(
                "the program makes credentials for {}, but auth.max_ttl = \"{}\", so the server refuses them: raise it",
                DURATION.show(seconds),
                DURATION.show(max)
            ));
        }
    }

    /// Where its credential API answers, without the path.
    pub(super) fn endpoint(&self) -> Result<String, String> {
        let (options, base) = endpoint(self.config)?;
        if !options.is_empty() {
            return Err(
                "the program can't ask over a unix socket: set http.listen to 127.0.0.1:8080, or add http.public"
                    .to_owned(),
            );
        }
        Ok(base)
    }

    /// Whether a caller with an API key may ask, and the name of the key.
    pub(super) fn api_key(&self, program: &str) -> Option<String> {
        let keys = &self.config.http.issuing.keys;
        let key = keys.iter().find(|key| &*key.name == program).or_else(|| keys.first())?;
        Some(key.name.to_string())
    }

    /// `http.chatmail_socket`.
    pub(super) fn chatmail_socket(&self) -> Option<String> {
        self.config.http.chatmail_socket.as_ref().map(|path| path.display().to_string())
    }
}
