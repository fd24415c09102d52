//! `[auth]`: users, secrets and their files. No message here shows a value.

use std::path::Path;

use hashbrown::HashMap;

use crate::config::check::{CREDENTIAL, Check, is_zero};
use crate::config::checked::AuthConfig;
use crate::config::diff::digest_of;
use crate::config::document::{self, Entry, Node, Value};
use crate::config::environment::{self, Environment};
use crate::config::error::{Place, Problem};
use crate::config::initial_secret::is_world_readable;
use crate::credentials::claims::Grant;
use crate::credentials::{Algorithm, Secret, SharedSecret, USERNAME_BYTES_MAX};
use crate::protocol::settings::{OnExpiry, StaticUser};

/// Each secret costs an HMAC per request with an unknown key, so the list is short.
pub(crate) const SECRETS_MAX: usize = 8;

/// Fewer bytes would be worth guessing.
const NONCE_KEY_BYTES_MIN: usize = 16;

/// No key, password or secret is longer.
const FILE_BYTES_MAX: u64 = 4096;

/// The id of the secret that a variable gives.
const ENVIRONMENT_ID: &str = "environment";

/// Of these a user has exactly one.
const USER_PROOFS: [&str; 3] = ["password", "file", "key_md5"];
const USER_FIELDS: [&str; 5] = ["password", "file", "key_md5", "tenant", "limits"];
const SECRET_FIELDS: [&str; 10] =
    ["id", "value", "file", "credential", "algorithm", "tenant", "limits", "not_after", "claims", "verify_only"];

impl Check {
    /// `[auth]`; `initial` is the secret of a server that was given none.
    pub(crate) fn auth(&mut self, environment: &Environment, initial: Option<&SharedSecret>) -> AuthConfig {
        let users = self.users();
        let mut secrets: Vec<SharedSecret> = self.environment_secret(environment).into_iter().collect();
        self.secrets(&mut secrets);
        if secrets.is_empty() && users.is_empty() {
            secrets.extend(initial.cloned());
        }
        let max_ttl = self.seconds("auth.max_ttl", 1..=315_360_000);
        let nonce_lifetime = self.seconds("auth.nonce_lifetime", 1..=86_400);
        let nonce_key = self.nonce_key();
        let on_expiry = self.on_expiry();
        let max_session = self.optional_seconds("auth.max_session", 315_360_000);
        let failed = self.has_problem_with("auth.users") || self.has_problem_with("auth.secret");
        if users.is_empty() && secrets.is_empty() && !failed {
            self.report(Problem::new(
                self.whole(),
                "auth",
                format!(
                    "neither users nor secrets, so nobody could relay (and a relay open to all is not offered): \
                     add [[auth.secrets]] with id = \"main\" and value = the output of `openssl rand -hex 32`, \
                     or users = {{ alice = \"...\" }} under [auth], or set {}",
                    environment::SECRET
                ),
            ));
        }
        AuthConfig { users, secrets, max_ttl, nonce_lifetime, nonce_key, on_expiry, max_session }
    }

    fn on_expiry(&mut self) -> OnExpiry {
        let node = self.get("auth.on_expiry");
        let grace = self.optional_seconds("auth.expiry_grace", 315_360_000).unwrap_or(0);
        let words = [("keep", OnExpiry::Keep), ("deny_new", OnExpiry::DenyNew), ("close", OnExpiry::Close { grace })];
        self.word(&node, "auth.on_expiry", &words)
    }

    /// A duration, or 0 for none.
    fn optional_seconds(&mut self, path: &'static str, max: u64) -> Option<u64> {
        if is_zero(&self.get(path)) { None } else { Some(self.seconds(path, 1..=max)) }
    }

    fn users(&mut self) -> HashMap<Box<str>, StaticUser> {
        let path = "auth.users";
        let node = self.get(path);
        let Value::Table(entries) = &node.value else {
            self.wrong(&node, path, format!("expected a table such as {{ alice = \"...\" }}, found {}", node.kind()));
            return HashMap::new();
        };
        let mut users = HashMap::new();
        for entry in entries {
            let key = format!("{path}.{}", document::bare_or_quoted(&entry.key));
            if entry.key.is_empty() || entry.key.len() > USERNAME_BYTES_MAX || entry.key.chars().any(char::is_control) {
                self.report(Problem::new(
                    entry.place.clone(),
                    &key,
                    format!("a user name has 1 to {USERNAME_BYTES_MAX} bytes and no control characters"),
                ));
                continue;
            }
            if let Some(user) = self.user(&entry.node, &key) {
                users.insert(entry.key.as_str().into(), user);
            }
        }
        users
    }

    fn user(&mut self, node: &Node, key: &str) -> Option<StaticUser> {
        let fields = match &node.value {
            Value::Text(password) => return self.non_empty(node, key, password.as_bytes()).map(StaticUser::password),
            Value::Table(fields) => fields,
            Value::Integer(..) | Value::Other(_) | Value::List(_) => {
                let message = format!(
                    "expected a password in quotes or a table of password, file or key_md5, found {}",
                    node.kind()
                );
                self.wrong(node, key, message);
                return None;
            }
        };
        let all_known = self.fields(fields, key, &USER_FIELDS, &[]);
        let given: Vec<&Entry> = fields.iter().filter(|field| USER_PROOFS.contains(&field.key.as_str())).collect();
        let [field] = given.as_slice() else {
            if all_known {
                self.wrong(node, key, "needs exactly one of password, file and key_md5");
            }
            return None;
        };
        let other = |name: &str| fields.iter().find(|field| field.key == name).map(|field| &field.node);
        let tenant = other("tenant").and_then(|node| self.tenant(node, &format!("{key}.tenant")));
        let grant = other("limits").map(|node| (node, self.grant(node, &format!("{key}.limits"))));
        if let Some((node, Grant { bytes: Some(_), .. })) = &grant {
            let message =
                "bytes would be used up once and for all: a user of auth.users never expires; use bytes_per_day";
            self.wrong(node, &format!("{key}.limits"), message);
        }
        let key = format!("{key}.{}", field.key);
        let text = self.text(&field.node, &key)?;
        let user = match field.key.as_str() {
            "password" => self.non_empty(&field.node, &key, text.as_bytes()).map(StaticUser::password),
            "file" => self.secret_file(&field.node, &key, &text).map(StaticUser::password),
            _ => {
                let digest = hex(&text).filter(|bytes| bytes.len() == 16);
                if digest.is_none() {
                    self.wrong(&field.node, &key, "expected 32 hexadecimal digits: MD5 of \"name:realm:password\"");
                }
                digest.map(|bytes| StaticUser::key_md5(Secret::new(bytes)))
            }
        }?;
        Some(StaticUser { tenant, grant: grant.map(|(_, grant)| grant).unwrap_or_default(), ..user })
    }

    fn environment_secret(&mut self, environment: &Environment) -> Option<SharedSecret> {
        let make = |value| SharedSecret::new(ENVIRONMENT_ID, value, Algorithm::Sha1);
        let node = |name: &str| Node { place: Place::Variable(name.into()), value: Value::Text(String::new()) };
        match (environment.get(environment::SECRET), environment.get(environment::SECRET_FILE)) {
            (Some(_), Some(_)) => {
                let message = format!("set either this or {}, not both", environment::SECRET);
                self.wrong(&node(environment::SECRET_FILE), "auth.secret_file", message);
                None
            }
            (Some(value), None) => {
                self.non_empty(&node(environment::SECRET), "auth.secret", value.as_bytes()).map(make)
            }
            (None, Some(path)) => self.secret_file(&node(environment::SECRET_FILE), "auth.secret_file", path).map(make),
            (None, None) => None,
        }
    }

    fn secrets(&mut self, secrets: &mut Vec<SharedSecret>) {
        let path = "auth.secrets";
        let node = self.get(path);
        let Value::List(items) = &node.value else {
            self.wrong(
                &node,
                path,
                "expected tables: write [[auth.secrets]] and below it id = \"...\" and value = \"...\"",
            );
            return;
        };
        for (index, item) in items.iter().enumerate() {
            let key = format!("{path}[{index}]");
            if secrets.len() == SECRETS_MAX {
                let message = format!(
                    "is more than {SECRETS_MAX} secrets (a variable's included); remove those that nothing was minted with for auth.max_ttl"
                );
                self.wrong(item, &key, message);
                return;
            }
            let Some(secret) = self.secret(item, &key) else { continue };
            if secrets.iter().any(|other| other.id == secret.id) {
                self.wrong(item, &key, format!("the id \"{}\" stands there twice", secret.id));
            } else {
                secrets.push(secret);
            }
        }
    }

    fn secret(&mut self, node: &Node, key: &str) -> Option<SharedSecret> {
        let Value::Table(fields) = &node.value else {
            self.wrong(node, key, "expected a table of id and value, file or credential");
            return None;
        };
        let all_known = self.fields(fields, key, &SECRET_FIELDS, &[]);
        let field = |name: &str| fields.iter().find(|field| field.key == name).map(|field| &field.node);
        let id = match field("id") {
            Some(id_node) => {
                let id_key = format!("{key}.id");
                let id = self.text(id_node, &id_key)?;
                if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_graphic()) {
                    self.wrong(
                        id_node,
                        &id_key,
                        "an id is 1 to 64 printable ASCII characters without spaces, such as \"2026-11\"",
                    );
                    return None;
                }
                id
            }
            None => {
                if !all_known {
                    return None;
                }
                self.wrong(node, key, "has no id; logs and metrics name the secret by it, such as id = \"2026-11\"");
                return None;
            }
        };
        let value = match (field("value"), field("file"), field("credential")) {
            (Some(value), None, None) => {
                let value_key = format!("{key}.value");
                let text = self.text(value, &value_key)?;
                self.non_empty(value, &value_key, text.as_bytes())?
            }
            (None, Some(file), None) => {
                let file_key = format!("{key}.file");
                let path = self.text(file, &file_key)?;
                self.secret_file(file, &file_key, &path)?
            }
            (None, None, Some(name)) => self.credential(name, &format!("{key}.credential"))?,
            _ => {
                if all_known {
                    self.wrong(node, key, "needs exactly one of value, file and credential");
                }
                return None;
            }
        };
        let algorithms = [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512].map(|known| (known.name(), known));
        let algorithm = match field("algorithm") {
            Some(name) => self.word(name, &format!("{key}.algorithm"), &algorithms),
            None => Algorithm::default(),
        };
        Some(SharedSecret {
            tenant: field("tenant").and_then(|node| self.tenant(node, &format!("{key}.tenant"))),
            claims: field("claims").map(|node| self.claims(node, &format!("{key}.claims"))).unwrap_or_default(),
            grant: field("limits").map(|node| self.grant(node, &format!("{key}.limits"))).unwrap_or_default(),
            not_after: field("not_after").and_then(|node| self.instant(node, &format!("{key}.not_after"))),
            verify_only: field("verify_only").is_some_and(|node| self.flag(node, &format!("{key}.verify_only"))),
            ..SharedSecret::new(id, value, algorithm)
        })
    }

    /// Reports fields that a table of users or secrets does not have.
    ///
    /// Returns whether all are known; if not, a field that seems missing was probably misspelt.
    pub(crate) fn fields(&mut self, fields: &[Entry], key: &str, known: &[&str], later: &[&str]) -> bool {
        let mut all_known = true;
        for field in fields.iter().filter(|field| !known.contains(&field.key.as_str())) {
            let path = format!("{key}.{}", document::bare_or_quoted(&field.key));
            self.report(if later.contains(&field.key.as_str()) {
                Problem::new(field.place.clone(), path, "not in this version; leave it out")
            } else {
                all_known = false;
                let nearest = document::nearest(&field.key, known.iter().copied());
                Problem::new(field.place.clone(), path, format!("unknown field; known are {}", known.join(", ")))
                    .with_suggestion(nearest.map(|name| format!("`{name}`")))
            });
        }
        all_known
    }

    fn non_empty(&mut self, node: &Node, key: &str, bytes: &[u8]) -> Option<Secret> {
        if bytes.is_empty() {
            self.wrong(node, key, "must not be empty; `openssl rand -hex 32` makes a good one");
            return None;
        }
        self.holds_secrets |= matches!(node.place, Place::File(..));
        Some(Secret::new(bytes))
    }

    /// What LoadCredential= of the unit gave us under a name.
    pub(crate) fn credential(&mut self, node: &Node, key: &str) -> Option<Secret> {
        let name = self.text(node, key)?;
        self.secret_file(node, key, &format!("{CREDENTIAL}{name}"))
    }

    /// What is in a file, without its last newline: editors add one, issuers never sign with it.
    pub(crate) fn secret_file(&mut self, node: &Node, key: &str, path: &str) -> Option<Secret> {
        let path = self.file(node, key, path)?;
        let mut bytes = match read_at_most(&path, FILE_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.wrong(node, key, format!("can't read {}: {error}", path.display()));
                return None;
            }
        };
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        if is_world_readable(&path) {
            let message = format!("every user of this machine can read {}; chmod 0640 it", path.display());
            self.notes.push(Problem::new(node.place.clone(), key, message));
        }
        if bytes.is_empty() {
            self.wrong(node, key, format!("{} is empty", path.display()));
            return None;
        }
        self.contents.push((key.to_owned(), digest_of(&bytes)));
        Some(Secret::new(bytes))
    }

    fn nonce_key(&mut self) -> Option<Secret> {
        let key = "auth.nonce_key_file";
        let node = self.get(key);
        let path = self.text(&node, key).filter(|path| !path.is_empty())?;
        let secret = self.secret_file(&node, key, &path)?;
        if secret.expose().len() < NONCE_KEY_BYTES_MIN {
            let message = format!(
                "holds {} bytes; at least {NONCE_KEY_BYTES_MIN} are needed, `openssl rand -hex 32` makes a good one",
                secret.expose().len()
            );
            self.wrong(&node, key, message);
        }
        Some(secret)
    }
}

pub(crate) fn read_at_most(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(std::io::Error::other(format!("longer than {most} bytes")));
    }
    Ok(bytes)
}

pub(crate) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
