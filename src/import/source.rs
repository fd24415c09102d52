//! The settings of coturn while they are carried over: each is taken once, and what is left at the end gets the verdict
//! of the table of options.

use crate::config::coturn::{self, Fate, OPTIONS};
use crate::import::draft::Draft;
use crate::import::lines::{self, Setting, Settings};
use crate::import::placeholder;
use crate::import::verdict::{Outcome, Place};

/// What to ask where a placeholder stands: option, section, example, question.
#[rustfmt::skip]
const QUESTIONS: &[(&str, &str, &str, &str)] = &[
    ("realm", "", "realm = \"turn.example.org\"", "which realm?"),
    ("listening-port", "listen", "udp = [\"0.0.0.0:3478\", \"[::]:3478\"]", "which port for UDP and TCP?"),
    ("tls-listening-port", "listen", "auto = [\"0.0.0.0:5349\", \"[::]:5349\"]", "which port for TLS?"),
    ("listening-ip", "listen", "udp = [\"192.0.2.7:3478\"]", "which address of this machine do clients come to?"),
    ("aux-server", "listen", "udp = [\"192.0.2.7:3479\"]", "which further address?"),
    ("relay-ip", "relay", "addresses = [\"192.0.2.7\"]", "which address of this machine to relay from?"),
    ("external-ip", "relay", "external = \"203.0.113.7\"", "which public address do clients get?"),
    ("min-port", "relay", "ports = \"49152-65535\"", "which is the first port of relayed traffic?"),
    ("max-port", "relay", "ports = \"49152-65535\"", "which is the last port of relayed traffic?"),
    ("cert", "tls", "certificate = \"fullchain.pem\"", "which file holds the certificate chain?"),
    ("pkey", "tls", "private_key = \"privkey.pem\"", "which file holds the private key?"),
    ("static-auth-secret", "auth.secrets", "[[auth.secrets]]\nid = \"imported-1\"\nvalue = \"...\"", "which secret do the issuers sign with?"),
    ("user", "auth.users", "alice = \"...\"", "which user with which password?"),
    ("userdb", "auth.users", "alice = \"...\"", "which database? Import again with --database FILE"),
    ("db", "auth.users", "alice = \"...\"", "which database? Import again with --database FILE"),
    ("allowed-peer-ip", "peers", "allow = [\"10.20.0.0/16\"]", "which peers to allow?"),
    ("user-quota", "limits", "allocations_per_user = 100", "how many allocations may a user have?"),
    ("total-quota", "limits", "allocations = 100000", "how many allocations at all?"),
    ("max-bps", "limits", "bandwidth_per_allocation = \"8Mbit/s\"", "which bandwidth for an allocation? The number there is bytes per second"),
    ("bps-capacity", "limits", "bandwidth = \"1Gbit/s\"", "which bandwidth for the whole server? The number there is bytes per second"),
    ("stale-nonce", "auth", "nonce_lifetime = \"1h\"", "how long is a nonce valid?"),
    ("max-allocate-lifetime", "turn", "max_lifetime = \"3600s\"", "which is the longest lifetime?"),
    ("prometheus-port", "http", "listen = \"127.0.0.1:9641\"", "which port for metrics?"),
    ("relay-threads", "", "workers = \"auto\"", "how many threads?"),
];

/// Flags that coturn switches on whatever their value is.
const ALWAYS_ON: [&str; 2] = ["use-auth-secret", "prometheus"];

/// How many unknown names are compared with the known ones: a file that is no turnserver.conf has thousands.
const COMPARED_MAX: usize = 50;

/// The settings that are not taken yet.
pub struct Source {
    settings: Vec<Setting>,
    /// Options that had a placeholder in place of a value.
    asked: Vec<&'static str>,
    /// What denies peers and has no value, or a placeholder in it.
    unread_denials: Vec<Setting>,
    /// How many unknown names were compared with the known ones.
    compared: usize,
}

impl Source {
    /// Sorts out what can't be used: unknown names, values that are missing, placeholders. Each gets its verdict.
    pub fn new(read: Vec<Settings>, draft: &mut Draft) -> Self {
        let mut source = Self { settings: Vec::new(), asked: Vec::new(), unread_denials: Vec::new(), compared: 0 };
        for Settings { settings, bad, .. } in read {
            for line in bad {
                draft.say_of(line.place, "", Outcome::NeedsYou, line.message);
            }
            settings.into_iter().for_each(|setting| source.add(setting, draft));
        }
        source
    }

    fn add(&mut self, setting: Setting, draft: &mut Draft) {
        let Some(option) = OPTIONS.iter().find(|option| option.name == setting.name) else {
            let meant = self.meant(&setting.name);
            let meant = meant.map_or_else(String::new, |name| format!("; did you mean {name}?"));
            let message = format!("no version of coturn has this option, so the line had no effect{meant}");
            draft.say(&setting, Outcome::NeedsYou, message);
            return;
        };
        let denies = ["denied-peer-ip", "stun-denied-peer-ip"].contains(&option.name);
        if option.has_value && setting.value.is_none() {
            if denies {
                self.unread_denials.push(setting.clone());
            }
            draft.say(&setting, Outcome::NeedsYou, "has no value; coturn needs one");
            return;
        }
        let becomes = matches!(option.fate, Fate::Becomes(..));
        let found = setting.value.as_deref().and_then(placeholder::find).filter(|_| becomes).map(ToOwned::to_owned);
        match found {
            Some(_) if denies => {
                draft.say(&setting, Outcome::NeedsYou, "a placeholder is not filled in: which peers to deny?");
                self.unread_denials.push(setting);
            }
            Some(found) => {
                self.ask(&setting, option.name, &found, draft);
                self.asked.push(option.name);
            }
            None => self.settings.push(setting),
        }
    }

    /// The option that an unknown name was probably meant to be.
    fn meant(&mut self, name: &str) -> Option<String> {
        if self.compared >= COMPARED_MAX {
            return None;
        }
        self.compared += 1;
        let other_spelling = coturn::find(name).map(|option| option.name.to_owned());
        other_spelling.or_else(|| crate::config::nearest(name, OPTIONS.iter().map(|option| option.name)))
    }

    fn ask(&self, setting: &Setting, name: &str, found: &str, draft: &mut Draft) {
        let known = QUESTIONS.iter().find(|(option, ..)| *option == name);
        let (section, example, question) =
            known.map_or(("", "", "what is it?"), |(_, section, example, question)| (*section, *example, *question));
        draft.question(section, &setting.place, &format!("{name} holds {found}: {question}"), example);
        draft.say(setting, Outcome::NeedsYou, format!("{found} is not filled in: {question}"));
    }

    /// Whether an option stood there with a placeholder.
    #[must_use]
    pub fn asks(&self, name: &str) -> bool {
        self.asked.contains(&name)
    }

    /// Takes what denies peers and can't be read; each has its verdict.
    pub fn unread_denials(&mut self) -> Vec<Setting> {
        std::mem::take(&mut self.unread_denials)
    }

    /// Whether an option is there and not taken yet.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.settings.iter().any(|setting| setting.name == name)
    }

    /// The number of an option that is not taken by this.
    #[must_use]
    pub fn peek_number(&self, name: &str) -> Option<u64> {
        let setting = self.settings.iter().rfind(|setting| setting.name == name)?;
        let value = setting.value.as_deref()?;
        value.find(|c: char| !c.is_ascii_digit()).map_or(value, |end| &value[..end]).parse().ok()
    }

    /// Takes every setting of an option.
    pub fn all(&mut self, name: &str) -> Vec<Setting> {
        let (taken, left) = std::mem::take(&mut self.settings).into_iter().partition(|setting| setting.name == name);
        self.settings = left;
        taken
    }

    /// Takes the setting of an option that counts: the last one.
    pub fn last(&mut self, name: &str, draft: &mut Draft) -> Option<Setting> {
        let mut all = self.all(name);
        let last = all.pop();
        if let Some(last) = &last {
            for earlier in all {
                draft.say(&earlier, Outcome::Dropped, format!("set again later: {}", last.place));
            }
        }
        last
    }

    /// Takes a flag if it is on.
    pub fn flag(&mut self, name: &str, draft: &mut Draft) -> Option<Setting> {
        let setting = self.last(name, draft)?;
        if ALWAYS_ON.contains(&name) && setting.value.is_some() {
            return Some(Setting {
                note: "coturn ignores the value of this one: it is on once it is there",
                ..setting
            });
        }
        match lines::flag(setting.value.as_deref()) {
            Some(true) => return Some(setting),
            Some(false) => draft.say(&setting, Outcome::Dropped, "it is switched off"),
            None => {
                let message = "is neither on nor off; write 1 or 0, or remove the line, and import again";
                draft.say(&setting, Outcome::NeedsYou, message);
            }
        }
        None
    }

    /// Takes a number, as coturn reads it: the digits at the start.
    pub fn number(&mut self, name: &str, draft: &mut Draft) -> Option<(Setting, u64)> {
        let setting = self.last(name, draft)?;
        let value = setting.value.as_deref().unwrap_or_default();
        let digits = value.find(|c: char| !c.is_ascii_digit()).map_or(value, |end| &value[..end]);
        if let Ok(number) = digits.parse() {
            return Some((setting, number));
        }
        draft.say(&setting, Outcome::NeedsYou, "is no number; correct it and import again");
        None
    }

    /// The same of a port.
    pub fn port(&mut self, name: &str, draft: &mut Draft) -> Option<(Setting, u16)> {
        let (setting, number) = self.number(name, draft)?;
        match u16::try_from(number) {
            Ok(port) if port > 0 => Some((setting, port)),
            Ok(_) | Err(_) => {
                draft.say(&setting, Outcome::NeedsYou, "is no port; a port is 1 to 65535");
                None
            }
        }
    }

    /// Gives all that is left the verdict of the table of options.
    pub fn finish(self, draft: &mut Draft) {
        for setting in &self.settings {
            let Some(option) = coturn::find(&setting.name) else { continue };
            let is_off = !option.has_value && lines::flag(setting.value.as_deref()) == Some(false);
            match option.fate {
                _ if is_off => draft.say(setting, Outcome::Dropped, "it is switched off"),
                Fate::Implied(reason) => draft.say(setting, Outcome::Implied, reason),
                Fate::Dropped(reason) => draft.say(setting, Outcome::Dropped, reason),
                Fate::Asks(what) => draft.say(setting, Outcome::NeedsYou, what),
                Fate::Becomes(keys, _) => draft.say(setting, Outcome::NeedsYou, format!("write {keys}")),
            }
        }
    }
}

/// The places of settings.
#[must_use]
pub fn places(settings: &[Setting]) -> Vec<Place> {
    settings.iter().map(|setting| setting.place.clone()).collect()
}
