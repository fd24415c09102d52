//! A turnserver.conf and its command line become a configuration.

use crate::import::admission::{self, OTHER_DATABASES};
use crate::import::binding;
use crate::import::database::Table;
use crate::import::draft::Draft;
use crate::import::limits;
use crate::import::lines::{self, Setting};
use crate::import::listeners;
use crate::import::peers::{self, Peers};
use crate::import::relay;
use crate::import::source::Source;
use crate::import::verdict::{Outcome, Place};

/// What is imported.
#[derive(Default)]
pub struct Input<'i> {
    /// How the file is called in verdicts.
    pub name: &'i str,
    /// What is in it; empty without a file.
    pub file: &'i [u8],
    /// The command line.
    pub arguments: &'i [String],
    /// Tables that were given in other ways than by the configuration.
    pub tables: Vec<Table>,
    /// Whether `verbose` becomes the level debug.
    pub keep_verbose: bool,
}

/// Reads the database of a path that the configuration names.
pub type ReadDatabase<'r> = &'r dyn Fn(&str) -> Result<Vec<Table>, String>;

/// Makes a configuration of it. `read` is asked for the database that it names.
#[must_use]
pub fn import(input: Input<'_>, read: ReadDatabase<'_>) -> Draft {
    let mut draft = Draft::default();
    // What stands on the command line counts after the file, and so wins.
    let read_settings = vec![lines::of_file(input.name, input.file), lines::of_arguments(input.arguments)];
    let mut source = Source::new(read_settings, &mut draft);
    let mut tables = input.tables;
    database(&mut source, &mut tables, input.name, read, &mut draft);
    for table in &tables {
        for why in &table.skipped {
            draft.say_of(table.place(), "", Outcome::NeedsYou, format!("{why}; it is not carried over"));
        }
    }
    let listeners = listeners::carry(&mut source, &mut draft);
    let own = relay::carry(&mut source, &listeners, &mut draft);
    let admission = admission::carry(&mut source, &tables, input.name, &mut draft);
    limits::carry(&mut source, input.keep_verbose, &mut draft);
    binding::carry(&mut source, &mut draft);
    let peers = peers(&mut source, &tables, admission.realm.as_deref(), &mut draft);
    peers::carry(peers, &own, input.name, &mut draft);
    source.finish(&mut draft);
    draft
}

fn database(source: &mut Source, tables: &mut Vec<Table>, name: &str, read: ReadDatabase<'_>, draft: &mut Draft) {
    let mut named: Vec<Setting> = ["userdb", "db"].into_iter().filter_map(|name| source.last(name, draft)).collect();
    named.sort_by(|a, b| a.place.cmp(&b.place));
    let last = named.pop();
    for (earlier, last) in named.iter().zip(&last) {
        draft.say(earlier, Outcome::Dropped, format!("set again later: {}", last.place));
    }
    let Some(setting) = last else {
        let is_elsewhere = OTHER_DATABASES.iter().any(|name| source.has(name)) || source.asks("userdb");
        if tables.is_empty() && !is_elsewhere {
            let message = "coturn also looks into its default database, which is /var/lib/turn/turndb on Debian: if `turnadmin` wrote \
                into it, import again with --database FILE";
            draft.say_of(Place::File(name.into()), "userdb", Outcome::Changed, message);
        }
        return;
    };
    let path = setting.value.clone().unwrap_or_default();
    if !tables.is_empty() {
        draft.say(&setting, Outcome::Dropped, "tables were given with --database or --csv, so it was not read");
        return;
    }
    match read(&path) {
        Ok(found) => {
            let rows: usize = found.iter().map(|table| table.rows.len()).sum();
            draft.say(&setting, Outcome::Carried, format!("read: {rows} rows in {} tables", found.len()));
            tables.extend(found);
        }
        Err(message) => {
            let message =
                format!("{path}: {message}; import again with --database FILE, or without this line if it is empty");
            draft.say(&setting, Outcome::NeedsYou, message);
        }
    }
}

fn peers(source: &mut Source, tables: &[Table], realm: Option<&str>, draft: &mut Draft) -> Peers {
    let mut peers = Peers::default();
    if let Some(setting) = source.flag("allow-loopback-peers", draft) {
        let nets = ["127.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a prefix"));
        peers.loopback.push((setting, nets.to_vec()));
    }
    if let Some(setting) = source.flag("no-multicast-peers", draft) {
        peers.denies_multicast = true;
        draft.say(&setting, Outcome::Implied, "multicast peers are always denied");
    }
    let of_tables = |name: &str| -> Vec<Setting> {
        let found = tables.iter().filter(|table| table.name == name);
        found.flat_map(|table| table.rows.iter().filter_map(|row| of_row(table, row, realm))).collect()
    };
    let allowed = [source.all("allowed-peer-ip"), of_tables("allowed_peer_ip")].concat();
    allowed.into_iter().for_each(|setting| peers.read(setting, true, draft));
    let denied =
        [source.all("denied-peer-ip"), source.all("stun-denied-peer-ip"), of_tables("denied_peer_ip")].concat();
    denied.into_iter().for_each(|setting| peers.read(setting, false, draft));
    peers.unread.extend(source.unread_denials());
    for table in tables.iter().filter(|table| table.name == "denied_peer_ip" && !table.skipped.is_empty()) {
        let value = Some(format!("{} rows", table.skipped.len()));
        peers.unread.push(Setting { place: table.place(), name: table.name.to_owned(), value, note: "" });
    }
    peers
}

/// A row of a table of peers as a setting, if it is for this realm.
fn of_row(table: &Table, row: &[String], realm: Option<&str>) -> Option<Setting> {
    let [of, range] = row else { return None };
    (of.is_empty() || Some(of.as_str()) == realm).then(|| Setting {
        place: table.place(),
        name: range.clone(),
        value: Some(range.clone()),
        note: "",
    })
}
