//! `[auth]`: users, secrets and their files. No message here shows a value.

use std::io::ErrorKind;

use hashbrown::HashMap;
use precis_profiles::OpaqueString;
use precis_profiles::precis_core::profile::Profile as _;

use crate::config::check::{CREDENTIAL, Check};
use crate::config::diff::digest_of;
use crate::config::document::{self, Node, TableEntry, Value};
use crate::config::environment::{self, Environment};
use crate::config::error::{Problem, SourceLocation};
use crate::config::initial_secret::is_world_readable;
use crate::credentials::claims::Grant;
use crate::credentials::published::is_published;
use crate::credentials::{Algorithm, Secret, SharedSecret, USERNAME_BYTES_MAX};
use crate::files;
use crate::protocol::settings::{AuthSettings, NameForms, OnExpiry, RealmUsers, Sha256Offer, StaticKey, StaticUser};

/// Each secret costs an HMAC per request with an unknown key, so the list is short.
pub(crate) const SECRETS_MAX: usize = 8;

/// An attacker who has seen one credential can try secrets against it offline, millions a second; fewer bytes are found so.
pub(crate) const SECRET_BYTES_MIN: usize = 16;

/// A static user's password with fewer bytes gets a warning only: some devices take no longer ones.
pub(crate) const PASSWORD_BYTES_MIN: usize = 12;

/// No key, password or secret is longer.
pub(crate) const FILE_BYTES_MAX: u64 = 4096;

/// The id of the secret that a variable gives.
const ENVIRONMENT_ID: &str = "environment";

/// Those of `auth.users`: of the server's own realm, and of the realms that are named.
#[derive(Default)]
struct Users {
    users: HashMap<Box<str>, StaticUser>,
    realms: Vec<RealmUsers>,
}

impl Users {
    fn of_realm(&mut self, realm: Option<Box<str>>) -> &mut HashMap<Box<str>, StaticUser> {
        let Some(realm) = realm else { return &mut self.users };
        let at = self.realms.iter().position(|of| of.realm == realm).unwrap_or_else(|| {
            self.realms.push(RealmUsers { realm, ..RealmUsers::default() });
            self.realms.len() - 1
        });
        &mut self.realms[at].users
    }
}

/// Of these a user has exactly one.
const USER_PROOFS: [&str; 3] = ["password", "file", "key_md5"];

impl Check {
    /// `[auth]`, with at least one user or one secret: this server never is an open relay. `initial` is the secret of a
    /// server that was given none.
    pub(crate) fn auth(&mut self, environment: &Environment, initial: Option<&SharedSecret>) -> AuthSettings {
        let Users { users, realms } = self.users();
        let mut secrets: Vec<SharedSecret> = self.environment_secret(environment).into_iter().collect();
        self.secrets(&mut secrets);
        let has_users = !users.is_empty() || !realms.is_empty();
        if secrets.is_empty() && !has_users {
            secrets.extend(initial.cloned());
        }
        let failed = self.has_problem_with("auth.users") || self.has_problem_with("auth.secret");
        if !has_users && secrets.is_empty() && !failed {
            let message = format!(
                "has neither users nor secrets, so no client could relay (a relay open to all is not offered): \
                 add [[auth.secrets]] with id = \"main\" and value = the output of `openssl rand -hex 32`, \
                 or users = {{ alice = \"...\" }} under [auth], or set {} or {}",
                environment::SECRET,
                environment::SECRET_FILE
            );
            self.problems.push(Problem::new(self.whole(), "auth", message));
        }
        let sha256 = self.sha256_offer(std::iter::once(&users).chain(realms.iter().map(|of| &of.users)));
        let on_expiry = match self.word_of("auth.on_expiry") {
            "deny_new" => OnExpiry::DenyNew,
            "close" => OnExpiry::Close { grace: self.number("auth.expiry_grace") },
            _ => OnExpiry::Keep,
        };
        AuthSettings {
            users,
            realms,
            secrets,
            max_ttl: self.number("auth.max_ttl"),
            nonce_lifetime: self.number("auth.nonce_lifetime"),
            on_expiry,
            max_session: self.limit("auth.max_session"),
            sha256,
            // Of the realm that is in force in the end, which a reload does not change.
            forms: NameForms::default(),
        }
    }

    /// Where SHA-256 is offered. A client that is offered it takes it, so it is offered only if every user can be
    /// recognised by it.
    fn sha256_offer<'u>(&mut self, users: impl Iterator<Item = &'u HashMap<Box<str>, StaticUser>>) -> Sha256Offer {
        let offer = match self.word_of("auth.sha256") {
            "always" => Sha256Offer::Always,
            "never" => return Sha256Offer::Never,
            _ => Sha256Offer::Streams,
        };
        #[allow(clippy::disallowed_methods, reason = "the first in order is taken")]
        let first = users.flatten().filter(|(_, user)| user.is_md5_only()).map(|(name, _)| name).min();
        let Some(name) = first else { return offer };
        let message = format!(
            "clients are not offered SHA-256: \"{name}\" of auth.users has key_md5 alone and could not log in by it; \
             add key_sha256, or give the password, or write sha256 = \"never\""
        );
        let node = self.get("auth.sha256");
        self.notes.push(Problem::new(node.location, "auth.sha256", message));
        Sha256Offer::Never
    }

    fn users(&mut self) -> Users {
        let node = self.get("auth.users");
        let Value::Table(entries) = &node.value else { return Users::default() };
        let own_realm = self.get("realm").text().unwrap_or_default().to_owned();
        let mut users = Users::default();
        let mut weak = Vec::new();
        let mut forms: HashMap<(Box<str>, Box<str>), &String> = HashMap::new();
        for TableEntry { name, location, node } in entries {
            if name.is_empty() || name.len() > USERNAME_BYTES_MAX || name.chars().any(char::is_control) {
                let message = format!("a user name has 1 to {USERNAME_BYTES_MAX} bytes and no control characters");
                self.problems.push(Problem::new(location.clone(), &node.key, message));
                continue;
            }
            let each = match &node.value {
                Value::List(items) => items.as_slice(),
                Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::Table(_) => std::slice::from_ref(node),
            };
            if each.is_empty() {
                self.wrong(node, "is an empty list; give the user a password, or take the name out");
            }
            for of in each {
                if matches!(node.value, Value::List(_)) && !matches!(of.value, Value::Table(_)) {
                    self.wrong(
                        of,
                        "a list has a table for each realm, such as { password = \"...\", realm = \"...\" }",
                    );
                    continue;
                }
                let Some((user, is_weak, realm)) = self.user(of) else { continue };
                let in_realm: Box<str> = realm.as_deref().unwrap_or(&own_realm).into();
                // Clients that compare names by RFC 8265 could mean either.
                let form = opaque_string(name).unwrap_or_else(|| name.as_str().into());
                if let Some(first) = forms.insert((in_realm.clone(), form), name) {
                    let message = if first == name {
                        format!(
                            "is there twice for the realm \"{in_realm}\"; give each another realm, or keep one of them"
                        )
                    } else {
                        format!(
                            "is to clients the same name as \"{first}\" (RFC 8265, OpaqueString): keep one of the two"
                        )
                    };
                    self.problems.push(Problem::new(location.clone(), &node.key, message));
                    continue;
                }
                if is_weak {
                    weak.push((name, location));
                }
                users.of_realm(realm).insert(name.as_str().into(), user);
            }
        }
        users.realms.sort_by(|a, b| a.realm.cmp(&b.realm));
        self.warn_of_passwords(&weak);
        users
    }

    /// One warning for all whose password can be guessed, however many they are.
    fn warn_of_passwords(&mut self, weak: &[(&String, &SourceLocation)]) {
        let Some((_, first)) = weak.first() else { return };
        let named: Vec<_> = weak.iter().take(3).map(|(name, _)| document::bare_or_quoted(name)).collect();
        let more = weak.len() - named.len();
        let and_more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let message = format!(
            "passwords that can be guessed, with fewer than {PASSWORD_BYTES_MIN} bytes or printed in guides: {}{and_more}; \
             `openssl rand -base64 15` makes a good one",
            named.join(", ")
        );
        self.notes.push(Problem::new((*first).clone(), "auth.users", message));
    }

    /// A user, whether the password can be guessed, and the realm if one is named.
    fn user(&mut self, node: &Node) -> Option<(StaticUser, bool, Option<Box<str>>)> {
        let by_password = |secret: Secret| {
            let is_weak = secret.expose().len() < PASSWORD_BYTES_MIN || is_published(secret.expose());
            let given = std::str::from_utf8(secret.expose()).unwrap_or_default();
            let opaque = opaque_string(given).filter(|form| **form != *given).map(|form| Secret::new(form.as_bytes()));
            let key = StaticKey::Password { given: secret, opaque };
            (StaticUser { key, tenant: None, grant: Grant::default() }, is_weak)
        };
        if let Value::Text(password) = &node.value {
            let (user, is_weak) = self.non_empty(node, password).map(by_password)?;
            return Some((user, is_weak, None));
        }
        let of = self.table(node, "auth.users")?;
        let given: Vec<_> = USER_PROOFS.iter().filter_map(|name| Some((*name, of.text(name)?))).collect();
        let [(proof, (at, text))] = given.as_slice() else {
            let text = if given.is_empty() && of.text("key_sha256").is_some() {
                "has key_sha256 alone, which clients that know only MD5 can't use: add key_md5, or give the password"
            } else {
                "needs exactly one of password, file and key_md5"
            };
            return self.lacks(&of, text);
        };
        let sha256 = match of.text("key_sha256") {
            Some((at, _)) if *proof != "key_md5" => {
                self.wrong(at, "stands beside key_md5 only: both keys are made of the password where that is given");
                return None;
            }
            Some((at, text)) => Some(self.key_of(at, text, 32, "SHA-256")?),
            None => None,
        };
        let realm = match of.text("realm") {
            Some((at, text)) => Some(self.realm_of(at, text, "leave it out for the realm of the server")?),
            None => None,
        };
        let tenant = self.tenant(&of);
        let grant = self.grant(&of);
        if let (Some(_), Some(limits)) = (grant.bytes, of.get("limits")) {
            let message = "bytes would be used up for good, as a user of auth.users never expires; use bytes_per_day";
            self.wrong(limits, message);
        }
        let (user, is_weak) = match *proof {
            "password" => self.non_empty(at, text).map(by_password),
            "file" => self.secret_file(at, text).map(by_password),
            // The password can't be judged by its digest.
            _ => self.key_of(at, text, 16, "MD5").map(|md5| (StaticUser::keys(md5, sha256), false)),
        }?;
        Some((StaticUser { tenant, grant, ..user }, is_weak, realm))
    }

    /// A key that was made elsewhere, of so many bytes.
    fn key_of(&mut self, at: &Node, text: &str, bytes: usize, by: &str) -> Option<Secret> {
        let digest = hex(text).filter(|digest| digest.len() == bytes);
        let digits = 2 * bytes;
        let digest =
            digest.ok_or_else(|| format!("expected {digits} hexadecimal digits: {by} of \"name:realm:password\""));
        self.ok(at, digest).map(Secret::new)
    }

    fn environment_secret(&mut self, environment: &Environment) -> Option<SharedSecret> {
        let node = |key: &str, name: &str| Node {
            key: key.to_owned(),
            location: SourceLocation::Variable(name.into()),
            value: Value::Text(String::new()),
        };
        let of_file = node("auth.secret_file", environment::SECRET_FILE);
        let secret = match (environment.get(environment::SECRET), environment.get(environment::SECRET_FILE)) {
            (Some(_), Some(_)) => {
                self.wrong(&of_file, format!("set either this or {}, not both", environment::SECRET));
                None
            }
            (Some(value), None) => {
                let node = node("auth.secret", environment::SECRET);
                self.note_stray_bytes(&node, "the value", value.as_bytes());
                let secret = self.non_empty(&node, value)?;
                self.unguessable(&node, secret)
            }
            (None, Some(path)) => {
                let secret = self.secret_file(&of_file, path)?;
                self.unguessable(&of_file, secret)
            }
            (None, None) => None,
        }?;
        Some(SharedSecret::new(ENVIRONMENT_ID, secret, Algorithm::Sha1))
    }

    fn secrets(&mut self, secrets: &mut Vec<SharedSecret>) {
        let mut ids: Vec<String> = secrets.iter().map(|secret| secret.id.to_string()).collect();
        for item in self.list("auth.secrets") {
            if secrets.len() == SECRETS_MAX {
                let message = format!(
                    "is more than {SECRETS_MAX} secrets (with that of a variable); remove those that minted nothing within auth.max_ttl"
                );
                self.wrong(&item, message);
                return;
            }
            // Also if one of the two is wrong in another way, so that both are heard of at once.
            let id = id_of(&item);
            let is_second = id.is_some_and(|id| ids.iter().any(|other| other == id));
            let secret = self.secret(&item);
            if let Some(id) = id {
                if is_second {
                    self.wrong(&item, format!("the id \"{id}\" is used twice"));
                    continue;
                }
                ids.push(id.to_owned());
            }
            secrets.extend(secret);
        }
    }

    fn secret(&mut self, node: &Node) -> Option<SharedSecret> {
        let of = self.table(node, "auth.secrets")?;
        let Some((id_node, id)) = of.text("id") else {
            return self.lacks(&of, "has no id; logs and metrics name the secret by it, such as id = \"2026-11\"");
        };
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_graphic()) {
            let message = "an id is 1 to 64 printable ASCII characters without spaces, such as \"2026-11\"";
            self.wrong(id_node, message);
            return None;
        }
        let (at, value) = match (of.text("value"), of.text("file"), of.text("credential")) {
            (Some((at, text)), None, None) => (at, self.non_empty(at, text)?),
            (None, Some((at, path)), None) => (at, self.secret_file(at, path)?),
            (None, None, Some((at, _))) => (at, self.credential(at)?),
            _ => return self.lacks(&of, "needs exactly one of value, file and credential"),
        };
        let value = self.unguessable(at, value)?;
        let named = |known: &Algorithm| of.text("algorithm").is_some_and(|(_, name)| name == known.name());
        let algorithm = Algorithm::ALL.into_iter().find(named).unwrap_or_default();
        Some(SharedSecret {
            tenant: self.tenant(&of),
            claims: self.claims(&of),
            grant: self.grant(&of),
            not_after: of.number("not_after"),
            verify_only: of.flag("verify_only"),
            ..SharedSecret::new(id, value, algorithm)
        })
    }

    fn non_empty(&mut self, node: &Node, text: &str) -> Option<Secret> {
        if text.is_empty() {
            self.wrong(node, "must not be empty; `openssl rand -hex 32` makes a good one");
            return None;
        }
        self.holds_secrets |= matches!(node.location, SourceLocation::File(..));
        Some(Secret::new(text.as_bytes()))
    }

    /// Refuses a secret, token or key that can be guessed: with it an attacker makes credentials. [8489-16.1.1-1]
    pub(crate) fn unguessable(&mut self, node: &Node, secret: Secret) -> Option<Secret> {
        let weakness = weakness(secret.expose());
        self.ok(node, weakness.map_or(Ok(secret), Err))
    }

    /// Warns of invisible bytes, such as those that editors and shells add: all of them count as part of the secret.
    fn note_stray_bytes(&mut self, node: &Node, of: &str, bytes: &[u8]) {
        let marks: [&[u8]; 3] = [b"\xEF\xBB\xBF", b"\xFF\xFE", b"\xFE\xFF"];
        let what = if marks.iter().any(|mark| bytes.starts_with(mark)) {
            "begins with a byte order mark"
        } else if matches!(bytes.last(), Some(b'\n' | b'\r')) {
            "ends with a newline too many"
        } else if bytes.contains(&b'\n') {
            "has more than one line"
        } else {
            return;
        };
        let message =
            format!("{of} {what}, which is part of the secret then; remove it unless the issuer signs with it too");
        self.note_of_secret(node, message);
    }

    /// What LoadCredential= of the unit gave us under a name.
    pub(crate) fn credential(&mut self, node: &Node) -> Option<Secret> {
        let name = self.text(node)?;
        self.secret_file(node, &format!("{CREDENTIAL}{name}"))
    }

    /// What is in the file that a key names, if it names one.
    pub(crate) fn secret_of(&mut self, path: &str) -> Option<Secret> {
        let (path, node) = self.text_of(path)?;
        let secret = self.secret_file(&node, &path)?;
        self.unguessable(&node, secret)
    }

    /// What is in a file, without its last newline: editors add one, issuers never sign with it.
    pub(crate) fn secret_file(&mut self, node: &Node, path: &str) -> Option<Secret> {
        let path = self.file(node, path)?;
        let shown = path.display().to_string();
        let read = files::read(&path, FILE_BYTES_MAX).map_err(|error| {
            let remedy = if error.kind() == ErrorKind::PermissionDenied {
                let uid = rustix::process::geteuid().as_raw();
                format!("; this runs as the user with id {uid}, which must be allowed to read it")
            } else {
                String::new()
            };
            format!("can't read {shown}: {error}{remedy}")
        });
        let mut bytes = self.ok(node, read)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        if is_world_readable(&path) {
            self.note_of_secret(node, format!("every user of this machine can read {shown}; chmod 0640 it"));
        }
        if bytes.is_empty() {
            self.wrong(node, format!("{shown} is empty"));
            return None;
        }
        self.note_stray_bytes(node, &shown, &bytes);
        self.contents.insert(node.key.clone(), digest_of(&bytes));
        Some(Secret::new(bytes))
    }
}

/// A text as both sides compare it (OpaqueString, RFC 8265 section 4.2); `None` for one that the profile refuses, such as
/// an empty one.
pub(crate) fn opaque_string(text: &str) -> Option<Box<str>> {
    OpaqueString::new().enforce(text).ok().map(|form| form.as_ref().into())
}

/// The id in a table of `auth.secrets`, if it has one.
fn id_of(item: &Node) -> Option<&str> {
    let Value::Table(fields) = &item.value else { return None };
    match &document::field(fields, "id")?.value {
        Value::Text(id) => Some(id),
        Value::Integer(..) | Value::Other(_) | Value::List(_) | Value::Table(_) => None,
    }
}

/// Why a secret can be guessed, with the remedy.
pub(crate) fn weakness(secret: &[u8]) -> Option<String> {
    let what = if is_published(secret) {
        "is a value that guides print as an example, or a placeholder, so attackers try it first; take another"
            .to_owned()
    } else if secret.len() < SECRET_BYTES_MIN {
        format!("holds {} bytes; at least {SECRET_BYTES_MIN} are needed", secret.len())
    } else {
        return None;
    };
    Some(format!("{what}, `openssl rand -hex 32` makes a good one"))
}

pub(crate) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
