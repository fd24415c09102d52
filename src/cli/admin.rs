//! Commands that talk to a running server: sessions, kick, revoke, limits, forgive, reload, log-level, drain, upgrade, health.

pub(super) mod client;
pub(super) mod drain;
pub(super) mod health;
pub(super) mod limits;
pub(super) mod upgrade;

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use self::client::ServerOptions;
use crate::failure::Failure;
use crate::printable::{json_line, printable};

/// Sessions asked for at once.
const PAGE: u64 = 1000;

/// Options of `sessions`.
#[derive(Args, Debug)]
pub(super) struct SessionsOptions {
    /// One session, by its name in the log and in usage records
    #[arg(value_name = "SESSION", conflicts_with_all = ["user", "tenant", "client", "refused"])]
    session: Option<String>,
    /// Sessions of this user id
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Sessions of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Sessions of clients at this address or in this prefix
    #[arg(long, value_name = "ADDRESS")]
    client: Option<String>,
    /// Instead show the latest refused requests of this user or address, with a remedy for each
    #[arg(long, value_name = "USER|ADDRESS", conflicts_with_all = ["user", "tenant", "client"])]
    refused: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 1000, value_name = "COUNT")]
    limit: u64,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Options of `kick`.
#[derive(Args, Debug)]
pub(super) struct KickOptions {
    /// The session to end
    #[arg(value_name = "SESSION", conflicts_with_all = ["user", "credential", "tenant"])]
    session: Option<String>,
    #[command(flatten)]
    whose: SubjectOptions,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Options of `revoke`.
#[derive(Args, Debug)]
pub(super) struct RevokeOptions {
    #[command(flatten)]
    whose: SubjectOptions,
    /// Remove the block
    #[arg(long)]
    undo: bool,
    /// Show what is blocked, and until when
    #[arg(long, conflicts_with_all = ["user", "credential", "tenant", "undo"])]
    list: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Options of `forgive`.
#[derive(Args, Debug)]
pub(super) struct ForgiveOptions {
    /// An address or a prefix; 0.0.0.0/0 and ::/0 are all of them
    #[arg(value_name = "NETWORK", required_unless_present = "list")]
    network: Option<String>,
    /// Show which networks get no answer to wrong passwords, and until when
    #[arg(long, conflicts_with = "network")]
    list: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Whose sessions or credentials are meant.
#[derive(Args, Debug)]
struct SubjectOptions {
    /// A user id; with --tenant, of that tenant only
    #[arg(long, value_name = "ID", conflicts_with = "credential")]
    user: Option<String>,
    /// One credential, by its username
    #[arg(long, value_name = "USERNAME", conflicts_with = "tenant")]
    credential: Option<String>,
    /// A tenant with all its users
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
}

/// Options of `reload`.
#[derive(Args, Debug)]
pub(super) struct PlainOptions {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Options of `log-level`.
#[derive(Args, Debug)]
pub(super) struct LogLevelOptions {
    /// The level to use until the next reload
    #[arg(value_enum)]
    level: Level,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl SubjectOptions {
    fn body(&self) -> Map<String, Value> {
        let fields = [("user", &self.user), ("credential", &self.credential), ("tenant", &self.tenant)];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect()
    }
}

pub(super) fn sessions(options: &SessionsOptions) -> Result<(), Failure> {
    let client = options.server.find()?;
    if let Some(of) = &options.refused {
        let target =
            format!("/v1/refusals?{}", query(&[("of", of), ("limit", &options.limit.clamp(1, PAGE).to_string())]));
        let answer = client.get(&target)?;
        return print(options.json, &answer, |out| refusals(out, of, &answer));
    }
    if let Some(session) = &options.session {
        check_session(session)?;
        let answer = client.get(&format!("/v1/sessions/{session}"))?;
        return print(options.json, &answer, |out| one_session(out, &answer));
    }
    let limit = options.limit.max(1);
    let mut found: Vec<Value> = Vec::new();
    let mut next: Option<String> = None;
    let more = loop {
        let count = (limit - found.len() as u64).min(PAGE).to_string();
        let mut parameters = vec![("limit", count.as_str())];
        let filters =
            [("user", &options.user), ("tenant", &options.tenant), ("client", &options.client), ("after", &next)];
        parameters.extend(filters.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))));
        let mut answer = client.get(&format!("/v1/sessions?{}", query(&parameters)))?;
        if let Some(Value::Array(sessions)) = answer.get_mut("sessions").map(Value::take) {
            found.extend(sessions);
        }
        next = answer["next"].as_str().map(ToOwned::to_owned);
        if next.is_none() || found.len() as u64 >= limit {
            break next.is_some();
        }
    };
    found.sort_by(|a, b| b["started"].as_str().cmp(&a["started"].as_str()));
    let answer = json!({ "sessions": found, "more": more });
    print(options.json, &answer, |out| sessions_table(out, &found, more))
}

pub(super) fn kick(options: &KickOptions) -> Result<(), Failure> {
    let mut body = options.whose.body();
    if let Some(session) = &options.session {
        check_session(session)?;
        body.insert("session".to_owned(), json!(session));
    }
    if body.is_empty() {
        return Err(Failure::Usage("kick: name a session, or --user, --credential or --tenant".to_owned()));
    }
    let answer = options.server.find()?.post("/v1/kick", &Value::Object(body))?;
    print(options.json, &answer, |out| writeln!(out, "ended {}", sessions_text(&answer["ended"])))
}

pub(super) fn revoke(options: &RevokeOptions) -> Result<(), Failure> {
    let client = options.server.find();
    if options.list {
        let answer = client?.get("/v1/revocations")?;
        return print(options.json, &answer, |out| revocations(out, &answer));
    }
    let mut body = options.whose.body();
    if body.is_empty() {
        return Err(Failure::Usage("revoke: name --user, --credential or --tenant, or ask for the --list".to_owned()));
    }
    if options.undo {
        body.insert("undo".to_owned(), json!(true));
    }
    let answer = client?.post("/v1/revoke", &Value::Object(body))?;
    print(options.json, &answer, |out| {
        if options.undo {
            return writeln!(out, "let in again");
        }
        let ended = sessions_text(&answer["ended"]);
        match answer["until"].as_str() {
            Some(until) => writeln!(out, "revoked until {until}; ended {ended}")?,
            None => writeln!(out, "that credential has expired already; ended {ended}")?,
        }
        if answer["file"].is_null() && answer["until"].is_string() {
            writeln!(out, "kept in memory only: a restart removes it, unless auth.revocations_file is set")?;
        }
        Ok(())
    })
}

pub(super) fn forgive(options: &ForgiveOptions) -> Result<(), Failure> {
    let client = options.server.find()?;
    let Some(network) = &options.network else {
        let answer = client.get(&format!("/v1/refusals?{}", query(&[("limit", &PAGE.to_string())])))?;
        let silenced = json!({ "silenced": answer["silenced"] });
        return print(options.json, &silenced, |out| {
            if silenced_networks(out, &answer)? { Ok(()) } else { writeln!(out, "no network is silenced") }
        });
    };
    let answer = client.post("/v1/forgive", &json!({ "network": network }))?;
    print(options.json, &answer, |out| {
        strings(&answer["forgiven"]).try_for_each(|network| writeln!(out, "forgiven: {}", printable(network)))
    })
}

pub(super) fn reload(options: &PlainOptions) -> Result<(), Failure> {
    let answer = options.server.find()?.post("/v1/reload", &json!({}))?;
    print(options.json, &answer, |out| {
        let is_changed = ["changed", "needs_restart"].iter().any(|name| strings(&answer[*name]).next().is_some());
        writeln!(out, "{}", if is_changed { "reloaded" } else { "reloaded: nothing changed" })?;
        for line in strings(&answer["changed"]) {
            writeln!(out, "  {}", printable(line))?;
        }
        for key in strings(&answer["needs_restart"]) {
            writeln!(out, "  {}: takes effect at the next start only", printable(key))?;
        }
        Ok(())
    })
}

pub(super) fn log_level(options: &LogLevelOptions) -> Result<(), Failure> {
    let level = options.level.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let answer = options.server.find()?.post("/v1/log-level", &json!({ "level": level }))?;
    print(options.json, &answer, |out| {
        writeln!(out, "the log is at level {level} until the next reload; it was {}", text(&answer["was"]))
    })
}

fn print(json: bool, answer: &Value, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if json {
        // The same JSON, which a terminal can show: a user's name must not steer it.
        writeln!(out, "{}", json_line(&answer.to_string()))?;
    } else {
        write(&mut out)?;
    }
    out.flush()?;
    Ok(())
}

/// What stands in a path must be a session's name and nothing else.
fn check_session(session: &str) -> Result<(), Failure> {
    if session.contains('-') && session.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{}: a session's name looks like 1f2e3d4c5b6a7988-1a; for a user's sessions there is --user",
        printable(session)
    )))
}

fn query(parameters: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text).into_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn sessions_text(count: &Value) -> String {
    match count.as_u64() {
        Some(1) => "1 session".to_owned(),
        Some(count) => format!("{count} sessions"),
        None => "no session".to_owned(),
    }
}

/// Seconds as people read them.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Bytes as people read them, in powers of 1000 as they are billed.
fn bytes(count: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

fn table(out: &mut dyn Write, heads: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let heads: Vec<String> = heads.iter().map(ToString::to_string).collect();
    let lines = || std::iter::once(&heads).chain(rows);
    let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    for line in lines() {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn sessions_table(out: &mut dyn Write, sessions: &[Value], more: bool) -> io::Result<()> {
    if sessions.is_empty() {
        return writeln!(out, "no sessions");
    }
    // Columns that say something of a few servers only.
    let with_tenant = sessions.iter().any(|session| session["tenant"].is_string());
    let with_realm = sessions.iter().any(|session| session["realm"] != sessions[0]["realm"]);
    let with_tcp = sessions.iter().any(|session| session["relay_transport"] == "tcp");
    let columns: Vec<(&str, &str)> = [
        (true, "SESSION", "session"),
        (true, "USER", "user"),
        (with_tenant, "TENANT", "tenant"),
        (with_realm, "REALM", "realm"),
        (true, "CLIENT", "client"),
        (true, "BY", "transport"),
        (true, "RELAYED", "relayed"),
        (with_tcp, "AS", "relay_transport"),
    ]
    .into_iter()
    .filter_map(|(is_shown, head, field)| is_shown.then_some((head, field)))
    .collect();
    let mut heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
    heads.extend(["AGE", "FROM CLIENT", "TO CLIENT"]);
    let rows = sessions.iter().map(|session| {
        let number = |name: &str| session[name].as_u64().unwrap_or(0);
        let mut row: Vec<String> = columns.iter().map(|(_, field)| text(&session[*field])).collect();
        row.extend([age(number("duration_s")), bytes(number("bytes_from_client")), bytes(number("bytes_to_client"))]);
        row
    });
    table(out, &heads, &rows.collect::<Vec<_>>())?;
    if more {
        writeln!(out, "and more: see --limit, or --user, --tenant and --client")?;
    }
    Ok(())
}

fn one_session(out: &mut dyn Write, session: &Value) -> io::Result<()> {
    for (name, value) in session.as_object().into_iter().flatten() {
        writeln!(out, "{:<20} {}", name, text(value))?;
    }
    Ok(())
}

/// Tells whether there are any.
fn silenced_networks(out: &mut dyn Write, answer: &Value) -> io::Result<bool> {
    let all = answer["silenced"].as_array().map(Vec::as_slice).unwrap_or_default();
    for silenced in all {
        let network = text(&silenced["network"]);
        writeln!(
            out,
            "{network}  too many wrong passwords or user names: none is answered until {}, {} up to now\n    \
             right passwords are; `throughway forgive {network}` answers the others too",
            text(&silenced["until"]),
            text(&silenced["unanswered"])
        )?;
    }
    Ok(!all.is_empty())
}

fn refusals(out: &mut dyn Write, of: &str, answer: &Value) -> io::Result<()> {
    silenced_networks(out, answer)?;
    let all = answer["refusals"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return writeln!(
            out,
            "the server remembers no refused request of {}; if the client can't connect, its requests do not reach the server: see `throughway check`",
            printable(of)
        );
    }
    for refusal in all {
        let times = match refusal["times"].as_u64() {
            Some(times) if times > 1 => format!(", {times} times since {}", text(&refusal["first"])),
            Some(_) | None => String::new(),
        };
        writeln!(
            out,
            "{}  {} ({}){times}\n    client {}, username {}\n    {}",
            text(&refusal["time"]),
            text(&refusal["reason"]),
            text(&refusal["code"]),
            text(&refusal["client"]),
            text(&refusal["username"]),
            text(&refusal["remedy"])
        )?;
    }
    if answer["more"] == true {
        writeln!(out, "and more: see --limit")?;
    }
    Ok(())
}

fn revocations(out: &mut dyn Write, answer: &Value) -> io::Result<()> {
    let all = answer["revocations"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = all.iter().map(|entry| {
        let (kind, name) = match (&entry["credential"], &entry["user"]) {
            (Value::Null, Value::Null) => ("tenant", &entry["tenant"]),
            (Value::Null, user) => ("user", user),
            (credential, _) => ("credential", credential),
        };
        let of = if kind == "user" { text(&entry["tenant"]) } else { "-".to_owned() };
        vec![kind.to_owned(), text(name), of, text(&entry["until"])]
    });
    if all.is_empty() {
        writeln!(out, "nothing is revoked")?;
    } else {
        table(out, &["KIND", "NAME", "OF TENANT", "UNTIL"], &rows.collect::<Vec<_>>())?;
    }
    if answer["file"].is_null() {
        writeln!(out, "kept in memory only: a restart removes them, unless auth.revocations_file is set")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0, 59, 60, 3599, 3600, 90_061].map(age), ["0s", "59s", "1m00s", "59m59s", "1h00m", "25h01m"]);
        let sizes = [0, 999, 1000, 999_949, 999_950, 1_500_000_000, 5_000_000_000_000_000];
        assert_eq!(sizes.map(bytes), ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.5 GB", "5000.0 TB"]);
    }

    #[test]
    fn a_name_does_not_steer_the_terminal_and_columns_stand_in_line() {
        let session = |user: &str, tenant: Value| {
            json!({ "session": "1-1", "user": user, "tenant": tenant, "client": "192.0.2.1:5", "transport": "udp",
                    "relayed": "192.0.2.2:6", "duration_s": 61, "bytes_from_client": 1, "bytes_to_client": 2000 })
        };
        let all = [session("a\u{1b}[2Jb", Value::Null), session("bob", Value::Null)];
        let text = written(|out| sessions_table(out, &all, true));
        assert!(!text.contains('\u{1b}') && text.contains("a\\u{1b}[2Jb") && text.ends_with("--client\n"), "{text}");
        let column = |line: &str| line.find("192.0.2.1").or_else(|| line.find("CLIENT"));
        assert!(
            text.lines().take(3).map(column).collect::<Vec<_>>().windows(2).all(|pair| pair[0] == pair[1]),
            "{text}"
        );
        assert!(!["TENANT", "REALM", " AS "].iter().any(|head| text.contains(head)), "{text}");
        let mut two = [session("bob", Value::Null), session("eve", Value::Null)];
        (two[0]["realm"], two[1]["realm"]) = (json!("a.example"), json!("b.example"));
        (two[0]["relay_transport"], two[1]["relay_transport"]) = (json!("udp"), json!("tcp"));
        let text = written(|out| sessions_table(out, &two, false));
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0][..7], ["SESSION", "USER", "REALM", "CLIENT", "BY", "RELAYED", "AS"], "{text}");
        assert_eq!(words[2][..7], ["1-1", "eve", "b.example", "192.0.2.1:5", "udp", "192.0.2.2:6", "tcp"], "{text}");
        let text = written(|out| sessions_table(out, &[session("bob", json!("acme"))], false));
        assert!(
            text.contains("TENANT") && text.contains("acme") && text.contains("1m01s") && text.contains("2.0 kB"),
            "{text}"
        );
    }

    #[test]
    fn revocations_are_listed_by_kind() {
        let answer = json!({ "file": null, "revocations": [
            { "credential": "9:a", "until": "x" }, { "user": "b", "until": "x" }, { "user": "b", "tenant": "t", "until": "x" },
            { "tenant": "t", "until": "x" } ] });
        let text = written(|out| revocations(out, &answer));
        let words: Vec<Vec<&str>> =
            text.lines().skip(1).take(4).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            words,
            [
                ["credential", "9:a", "-", "x"],
                ["user", "b", "-", "x"],
                ["user", "b", "t", "x"],
                ["tenant", "t", "-", "x"]
            ]
        );
        assert!(text.contains("memory only"), "{text}");
    }

    #[test]
    fn only_a_name_of_a_session_goes_into_a_path() {
        assert!(check_session("000000000000001f-1a").is_ok());
        for wrong in ["bob", "1f", "../kick", "1f-1a?x", ""] {
            assert!(check_session(wrong).is_err(), "{wrong}");
        }
    }
}
