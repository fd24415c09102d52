//! Who may come in: realm, secrets, users, and what a database says of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{PASSWORD_BYTES_MIN, SECRETS_MAX, weakness};
use crate::credentials::published::is_published;
use crate::import::database::{Table, select};
use crate::import::draft::{Draft, quote};
use crate::import::lines::Setting;
use crate::import::source::Source;
use crate::import::verdict::{Outcome, Place};

/// Databases that are asked by coturn while it runs, and are not read here.
pub(super) const OTHER_DATABASES: [&str; 5] =
    ["psql-userdb", "sql-userdb", "mysql-userdb", "mongo-userdb", "redis-userdb"];

/// What the rest must know of those who come in.
pub(super) struct Admission {
    /// The realm, if one was named.
    pub(super) realm: Option<String>,
    /// Whether there are secrets, which users come second to.
    has_secret: bool,
    secrets: Vec<(String, Setting)>,
    /// How many of them are in the configuration.
    written: usize,
    users: BTreeSet<String>,
    /// Whether there is a `user`, which makes coturn ask for credentials.
    has_user: bool,
    /// What `user-quota` allows, as static users have no limit by it.
    quota: Option<u64>,
}

pub(super) fn carry(source: &mut Source, tables: &[Table], name: &str, draft: &mut Draft) -> Admission {
    let realm = realm(source, draft);
    let quota = source.peek_number("user-quota").filter(|quota| *quota > 0);
    let switch = source.flag("use-auth-secret", draft).into_iter().chain(source.flag("use-auth-secret-sha256", draft));
    let switches: Vec<Setting> = switch.collect();
    let secrets = source.all("static-auth-secret");
    let has_secret = !switches.is_empty() || !secrets.is_empty() || source.asks("static-auth-secret");
    let mut admission = Admission {
        realm,
        has_secret,
        secrets: Vec::new(),
        written: 0,
        users: BTreeSet::new(),
        has_user: false,
        quota,
    };
    for setting in &switches {
        let sha256 = if setting.name.ends_with("sha256") { ", with algorithm = \"sha256\" in each" } else { "" };
        draft.say(setting, Outcome::Carried, format!("[[auth.secrets]]{sha256}"));
    }
    for setting in secrets {
        admission.secrets.push((setting.value.clone().unwrap_or_default(), setting));
    }
    let users = source.all("user");
    admission.has_user = !users.is_empty();
    let name_of = |setting: &Setting| Some(setting.value.as_deref()?.split_once(':')?.0.to_owned());
    // The last one of a name counts.
    let last: BTreeMap<String, usize> =
        users.iter().enumerate().filter_map(|(at, setting)| Some((name_of(setting)?, at))).collect();
    for (at, setting) in users.iter().enumerate() {
        match name_of(setting).and_then(|name| last.get(&name)).filter(|last| **last > at) {
            Some(last) => draft.say(setting, Outcome::Dropped, format!("set again later: {}", users[*last].place)),
            None => admission.user(setting, draft),
        }
    }
    for table in tables {
        admission.table(table, draft);
    }
    let is_sha256 = switches.iter().any(|setting| setting.name.ends_with("sha256"));
    admission.write_secrets(is_sha256, draft);
    admission.tell_the_rest(source, tables, name, draft);
    admission
}

fn realm(source: &mut Source, draft: &mut Draft) -> Option<String> {
    let setting = source.last("realm", draft)?;
    let realm = setting.value.clone()?;
    draft.key("realm", quote(&realm), std::slice::from_ref(&setting.place));
    draft.say(&setting, Outcome::Carried, "realm");
    Some(realm)
}

impl Admission {
    /// One `user`, or one row of the table of users as such.
    fn user(&mut self, setting: &Setting, draft: &mut Draft) {
        if self.has_secret {
            let message = "coturn ignores users when it has a shared secret, so this user could not log in; to allow it here, add it to \
                auth.users";
            draft.say(setting, Outcome::Dropped, message);
            return;
        }
        let value = setting.value.as_deref().unwrap_or_default();
        let Some((name, password)) = value.split_once(':').filter(|(name, _)| !name.is_empty()) else {
            draft.say(setting, Outcome::NeedsYou, "is no name and password with a colon between");
            return;
        };
        let password = password.trim_start();
        if let Some(digits) = password.strip_prefix("0x") {
            match digits.get(..32).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit())) {
                Some(digits) => self.hashed_user(name, digits, setting, draft),
                None => draft.say(setting, Outcome::NeedsYou, "has no key of 32 hexadecimal digits behind 0x"),
            }
            return;
        }
        if password.is_empty() {
            draft.say(setting, Outcome::NeedsYou, "has no password");
            return;
        }
        self.write_user(name, &format!("password = {}", quote(password)), &setting.place, draft);
        let is_weak = password.len() < PASSWORD_BYTES_MIN || is_published(password.as_bytes());
        if is_weak {
            let message = format!(
                "auth.users: the password of {name} can be guessed; `openssl rand -base64 15` makes a good one"
            );
            draft.say_unsafe(setting, Outcome::Carried, message);
        } else {
            draft.say(setting, Outcome::Carried, format!("auth.users: {name}"));
        }
    }

    fn hashed_user(&mut self, name: &str, digits: &str, setting: &Setting, draft: &mut Draft) {
        self.write_user(name, &format!("key_md5 = {}", quote(&digits.to_ascii_lowercase())), &setting.place, draft);
        if self.realm.is_some() {
            draft.say(
                setting,
                Outcome::Carried,
                format!("auth.users: {name}, by key_md5, which is made with the realm"),
            );
        } else {
            let message = format!(
                "auth.users: {name}, by key_md5, which is made with a realm, and no realm is named; set realm to that of the key"
            );
            draft.say(setting, Outcome::NeedsYou, message);
        }
    }

    fn write_user(&mut self, name: &str, proof: &str, place: &Place, draft: &mut Draft) {
        self.users.insert(name.to_owned());
        let limits = self.quota.map_or_else(String::new, |quota| format!(", limits = {{ allocations = {quota} }}"));
        let from = match place {
            Place::Line(..) | Place::Argument(_) => format!("  # {place}"),
            Place::File(_) => String::new(),
        };
        draft.block("auth.users", format!("{} = {{ {proof}{limits} }}{from}\n", quote(name)));
    }

    fn table(&mut self, table: &Table, draft: &mut Draft) {
        let place = table.place();
        let mut foreign: Vec<&str> = Vec::new();
        let mut taken = 0;
        let wrong_before = draft.verdicts.len();
        for row in &table.rows {
            let realm = row.first().map(String::as_str).unwrap_or_default();
            if !self.is_ours(realm, table.name) {
                if !foreign.contains(&realm) {
                    foreign.push(realm);
                }
                continue;
            }
            taken += usize::from(self.row(table.name, row, &place, draft));
        }
        if taken > 0 && draft.verdicts.len() == wrong_before {
            let rows = if taken == 1 { "1 row".to_owned() } else { format!("{taken} rows") };
            match table.name {
                "turnusers_lt" if self.has_secret => {
                    let message =
                        format!("{rows}: coturn ignores users when it has a shared secret, so these could not log in");
                    draft.say_of(place.clone(), "", Outcome::Dropped, message);
                }
                "turnusers_lt" => {
                    draft.say_of(place.clone(), "", Outcome::Carried, format!("{rows}: auth.users, by key_md5"))
                }
                "turn_secret" if !self.has_secret => {
                    let message = format!("{rows}: without use-auth-secret coturn does not look at secrets");
                    draft.say_of(place.clone(), "", Outcome::Dropped, message);
                }
                "turn_secret" => draft.say_of(place.clone(), "", Outcome::Carried, format!("{rows}: [[auth.secrets]]")),
                _ => {}
            }
        }
        if !foreign.is_empty() {
            foreign.sort_unstable();
            let shown: Vec<&str> = foreign.iter().take(5).copied().collect();
            let ours = self.realm.as_deref().unwrap_or("none");
            let message = format!(
                "holds rows of other realms ({}) beside that of the configuration ({ours}), which alone is carried over: name the \
                 others as realm of a listener in [listen] and of their users in auth.users",
                shown.join(", ")
            );
            draft.say_of(place, "", Outcome::NeedsYou, message);
        }
    }

    /// Peers count for every realm if theirs is empty.
    fn is_ours(&self, realm: &str, table: &str) -> bool {
        let is_for_all = realm.is_empty() && table.ends_with("_peer_ip");
        is_for_all || self.realm.as_deref().unwrap_or_default() == realm
    }

    /// Returns whether the row was taken as it is.
    fn row(&mut self, table: &str, row: &[String], place: &Place, draft: &mut Draft) -> bool {
        let field = |at: usize| row.get(at).cloned().unwrap_or_default();
        let setting =
            |value: String| Setting { place: place.clone(), name: String::new(), value: Some(value), note: "" };
        match table {
            "turnusers_lt" if self.has_secret => true,
            "turnusers_lt" => {
                let (name, key) = (field(1), field(2));
                if self.users.contains(&name) {
                    draft.say_of(
                        place.clone(),
                        "",
                        Outcome::Dropped,
                        format!("{name} is in the configuration too, which comes first"),
                    );
                    return false;
                }
                if key.len() == 32 && key.bytes().all(|digit| digit.is_ascii_hexdigit()) && !name.is_empty() {
                    let proof = format!("key_md5 = {}", quote(&key.to_ascii_lowercase()));
                    self.write_user(&name, &proof, place, draft);
                    return true;
                }
                let message =
                    format!("the key of {name} is no MD5 in 32 hexadecimal digits: give this user a new password");
                draft.say_of(place.clone(), "", Outcome::NeedsYou, message);
                false
            }
            "turn_secret" if !self.has_secret => true,
            "turn_secret" => {
                self.secrets.push((field(1), setting(field(1))));
                true
            }
            "turn_realm_option" => {
                let message = format!("{} = {}: set it by the key that replaces this option", field(1), field(2));
                draft.say_of(place.clone(), "", Outcome::NeedsYou, message);
                false
            }
            "turn_origin_to_realm" => {
                draft.say_of(place.clone(), "", Outcome::Dropped, "ORIGIN is not read: a realm belongs to a listener");
                false
            }
            // Peers are carried elsewhere.
            _ => true,
        }
    }

    fn write_secrets(&mut self, is_sha256: bool, draft: &mut Draft) {
        let mut written: Vec<&str> = Vec::new();
        for (value, setting) in &self.secrets {
            // A table has one verdict for all its rows, unless one of them is odd.
            let is_of_table = setting.name.is_empty();
            if written.contains(&value.as_str()) {
                draft.say(setting, Outcome::Dropped, "this secret is there already");
            } else if let Some(weakness) = weakness(value.as_bytes()) {
                draft.say_unsafe(
                    setting,
                    Outcome::NeedsYou,
                    format!("a secret that is refused: it {weakness}, and give it to the issuers too"),
                );
                let example = "[[auth.secrets]]\nid = \"new\"\nvalue = \"the output of `openssl rand -hex 32`\"";
                draft.question(
                    "auth.secrets",
                    &setting.place,
                    "the secret there can be guessed. Give a new one to all issuers",
                    example,
                );
            } else if written.len() == SECRETS_MAX {
                let message = format!(
                    "is one more than the {SECRETS_MAX} secrets that a server may have; remove those that no issuer uses"
                );
                draft.say(setting, Outcome::NeedsYou, message);
            } else {
                written.push(value);
                let algorithm = if is_sha256 { "algorithm = \"sha256\"\n" } else { "" };
                let id = written.len();
                draft.block(
                    "auth.secrets",
                    format!(
                        "[[auth.secrets]]  # {}\nid = \"imported-{id}\"\nvalue = {}\n{algorithm}",
                        setting.place,
                        quote(value)
                    ),
                );
                if !is_of_table {
                    draft.say(setting, Outcome::Carried, format!("[[auth.secrets]], id = \"imported-{id}\""));
                }
            }
        }
        self.written = written.len();
    }

    /// What is missing, and what is different for those who come in.
    fn tell_the_rest(&self, source: &mut Source, tables: &[Table], name: &str, draft: &mut Draft) {
        let place = Place::File(name.into());
        let is_open = source.flag("no-auth", draft);
        if let Some(setting) = &is_open {
            let message = "every client could relay through the server without a credential, into your network too; here each needs one: \
                add [[auth.secrets]] or auth.users";
            draft.say_unsafe(setting, Outcome::NeedsYou, message);
        }
        let other = OTHER_DATABASES.into_iter().flat_map(|name| source.all(name)).collect::<Vec<_>>();
        for setting in &other {
            let statements: Vec<String> =
                ["turnusers_lt", "turn_secret", "allowed_peer_ip", "denied_peer_ip"].map(select).to_vec();
            let message = format!(
                "this database is not read here: print its tables as CSV with a head ({}), and import again with --csv TABLE=FILE",
                statements.join("; ")
            );
            let outcome = if tables.is_empty() { Outcome::NeedsYou } else { Outcome::Implied };
            draft.say(setting, outcome, if tables.is_empty() { message.as_str() } else { "its tables came as CSV" });
        }
        let is_asked = source.asks("static-auth-secret") || source.asks("user");
        if self.secrets.is_empty() && self.users.is_empty() && !is_asked && is_open.is_none() {
            let message = "no secret and no user was found. coturn then lets every client in; here each needs a credential: \
                add [[auth.secrets]] or auth.users. If they are in a database, import again with --database FILE";
            draft.say_of(place.clone(), "auth", Outcome::NeedsYou, message);
            let example = "[[auth.secrets]]\nid = \"main\"\nvalue = \"the output of `openssl rand -hex 32`\"";
            draft.question("auth.secrets", &place, "who may come in?", example);
        }
        let asks_for_credentials = self.has_secret || self.has_user || source.has("lt-cred-mech");
        if !asks_for_credentials && !self.users.is_empty() {
            let message = "without lt-cred-mech coturn did not ask clients for a credential; here each needs one";
            draft.say_of(place.clone(), "lt-cred-mech", Outcome::Changed, message);
        }
        if self.written > 0 || source.asks("static-auth-secret") {
            let message = "a credential that ends more than 48 hours ahead is refused here, and not by coturn: let the issuers \
                shorten their lifetime, or raise auth.max_ttl; `throughway sessions --refused USER` shows who is concerned";
            draft.say_of(place.clone(), "auth.max_ttl", Outcome::Changed, message);
            if self.quota.is_none() && !source.asks("user-quota") {
                let message = "a user id may have 100 allocations here, and any number in coturn; raise it if all clients share one";
                draft.say_of(place, "limits.allocations_per_user", Outcome::Changed, message);
            }
        }
    }
}
