//! `limits`: limits of a named user or tenant, set while the server runs.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::client::ServerOptions;
use super::{print, query, table, text};
use crate::failure::Failure;
use crate::ops::limits::{parse, show as show_limit};
use crate::protocol::overrides::{LimitName, RunTimeLimit};

/// What is to be done with them.
#[derive(Subcommand, Debug)]
pub(in crate::cli) enum LimitsCommand {
    /// Set limits of a user or a tenant in place of the configured ones; live sessions follow at once
    #[command(after_help = SET_HELP)]
    Set(SetOptions),
    /// Show the limits that are set, all of them or those of a user or a tenant
    Show(ShowOptions),
    /// Take limits back: the configured ones hold again
    Unset(UnsetOptions),
}

const SET_HELP: &str = "Each limit is a number, or none for no limit. What is not named stays as it is.\n\
A limit inside a credential, or of the user's entry in auth.users, still narrows it.\n\
Over a lower count no session is ended: new ones are refused until there are fewer.";

/// Whose limits.
#[derive(Args, Debug)]
struct OwnerOptions {
    /// A user id; with --tenant, of that tenant only
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// A tenant, all its users together
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
}

/// Options of `limits set`.
#[derive(Args, Debug)]
pub(in crate::cli) struct SetOptions {
    #[command(flatten)]
    whose: OwnerOptions,
    /// Allocations at the same time
    #[arg(long, value_name = "COUNT")]
    allocations: Option<String>,
    /// Bandwidth, each way, such as 2Mbit/s
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<String>,
    /// Packets per second, each way
    #[arg(long, value_name = "COUNT")]
    packet_rate: Option<String>,
    /// Bytes per day (UTC), both ways together, such as 10GiB; of users only
    #[arg(long, value_name = "SIZE")]
    bytes_per_day: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Options of `limits show`.
#[derive(Args, Debug)]
pub(in crate::cli) struct ShowOptions {
    /// Of this user id
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Of this tenant and its users
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Options of `limits unset`; without the name of a limit all of them are meant.
#[derive(Args, Debug)]
pub(in crate::cli) struct UnsetOptions {
    #[command(flatten)]
    whose: OwnerOptions,
    /// Only the limit of allocations
    #[arg(long)]
    allocations: bool,
    /// Only the limit of bandwidth
    #[arg(long)]
    bandwidth: bool,
    /// Only the limit of packets per second
    #[arg(long)]
    packet_rate: bool,
    /// Only the limit of bytes per day
    #[arg(long)]
    bytes_per_day: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

impl LimitsCommand {
    /// Whether its output is to be one JSON document.
    pub(in crate::cli) const fn is_json(&self) -> bool {
        match self {
            Self::Set(options) => options.json,
            Self::Show(options) => options.json,
            Self::Unset(options) => options.json,
        }
    }
}

pub(in crate::cli) fn limits(command: &LimitsCommand) -> Result<(), Failure> {
    match command {
        LimitsCommand::Set(options) => set(options),
        LimitsCommand::Show(options) => show(options),
        LimitsCommand::Unset(options) => unset(options),
    }
}

/// The option of a limit.
fn option(name: LimitName) -> String {
    format!("--{}", name.name().replace('_', "-"))
}

impl OwnerOptions {
    fn body(&self, command: &str) -> Result<Map<String, Value>, Failure> {
        if self.user.is_none() && self.tenant.is_none() {
            return Err(Failure::Usage(format!("limits {command}: name --user or --tenant")));
        }
        let fields = [("user", &self.user), ("tenant", &self.tenant)];
        Ok(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect())
    }
}

impl SetOptions {
    fn body(&self) -> Result<Map<String, Value>, Failure> {
        let mut body = self.whose.body("set")?;
        let values = [&self.allocations, &self.bandwidth, &self.packet_rate, &self.bytes_per_day];
        let mut is_any_set = false;
        for (name, value) in LimitName::ALL.into_iter().zip(values) {
            let Some(value) = value else { continue };
            let limit =
                parse(name, value).map_err(|why| Failure::Usage(format!("{} {value:?}: {why}", option(name))))?;
            if name == LimitName::BytesPerDay && self.whose.user.is_none() {
                let why = "a tenant has no such limit; set it for its users with --user and --tenant";
                return Err(Failure::Usage(format!("{}: {why}", option(name))));
            }
            body.insert(name.name().to_owned(), json!(limit));
            is_any_set = true;
        }
        if !is_any_set {
            let all = LimitName::ALL.map(option).join(", ");
            return Err(Failure::Usage(format!("limits set: name a limit, one or more of {all}")));
        }
        Ok(body)
    }
}

fn set(options: &SetOptions) -> Result<(), Failure> {
    let body = options.body()?;
    let answer = options.server.find()?.post("/v1/limits/set", &Value::Object(body))?;
    print(options.json, &answer, |out| changed(out, "set", &answer))
}

fn unset(options: &UnsetOptions) -> Result<(), Failure> {
    let mut body = options.whose.body("unset")?;
    let flags = [options.allocations, options.bandwidth, options.packet_rate, options.bytes_per_day];
    let named = LimitName::ALL.into_iter().zip(flags).filter(|(_, is_named)| *is_named);
    body.insert("limits".to_owned(), named.map(|(name, _)| name.name()).collect());
    let answer = options.server.find()?.post("/v1/limits/unset", &Value::Object(body))?;
    print(options.json, &answer, |out| changed(out, "unset", &answer))
}

fn show(options: &ShowOptions) -> Result<(), Failure> {
    let filters = [("user", &options.user), ("tenant", &options.tenant)];
    let parameters: Vec<(&str, &str)> =
        filters.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    let target =
        if parameters.is_empty() { "/v1/limits".to_owned() } else { format!("/v1/limits?{}", query(&parameters)) };
    let answer = options.server.find()?.get(&target)?;
    print(options.json, &answer, |out| limits_table(out, &answer))
}

/// A limit as people read it; "-" where the configured one holds.
fn limit_text(name: LimitName, entry: &Value) -> String {
    match serde_json::from_value::<Option<RunTimeLimit>>(entry[name.name()].clone()) {
        Ok(Some(RunTimeLimit::At(number))) => show_limit(name, number),
        Ok(Some(RunTimeLimit::None)) => "none".to_owned(),
        Ok(None) => "-".to_owned(),
        // Of a server of another release.
        Err(_) => text(&entry[name.name()]),
    }
}

fn changed(out: &mut dyn Write, what: &str, answer: &Value) -> io::Result<()> {
    let entry = &answer["limits"];
    let now: Vec<String> = LimitName::ALL
        .into_iter()
        .filter(|name| !entry[name.name()].is_null())
        .map(|name| format!("{} {}", name.name(), limit_text(name, entry)))
        .collect();
    let now = if now.is_empty() { "the configured limits hold".to_owned() } else { now.join(", ") };
    writeln!(out, "{what}; now {now}; live sessions that follow: {}", text(&answer["sessions"]))?;
    in_memory_only(out, answer)
}

fn in_memory_only(out: &mut dyn Write, answer: &Value) -> io::Result<()> {
    if answer["file"].is_null() {
        writeln!(out, "kept in memory only: a restart removes them, unless limits.file is set")?;
    }
    Ok(())
}

fn limits_table(out: &mut dyn Write, answer: &Value) -> io::Result<()> {
    let all = answer["limits"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        writeln!(out, "no limit is set at run time")?;
        return in_memory_only(out, answer);
    }
    let rows = all.iter().map(|entry| {
        let mut row = vec![text(&entry["user"]), text(&entry["tenant"])];
        row.extend(LimitName::ALL.map(|name| limit_text(name, entry)));
        row.push(text(&entry["issued"]));
        row
    });
    let heads = ["USER", "TENANT", "ALLOCATIONS", "BANDWIDTH", "PACKET RATE", "BYTES PER DAY", "SINCE"];
    table(out, &heads, &rows.collect::<Vec<_>>())?;
    in_memory_only(out, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(limits: [Option<&str>; 4]) -> SetOptions {
        let [allocations, bandwidth, packet_rate, bytes_per_day] = limits.map(|limit| limit.map(str::to_owned));
        SetOptions {
            whose: OwnerOptions { user: None, tenant: Some("acme".to_owned()) },
            allocations,
            bandwidth,
            packet_rate,
            bytes_per_day,
            json: false,
            server: ServerOptions::default(),
        }
    }

    #[test]
    fn a_bad_value_names_the_option_the_value_and_the_remedy() {
        let body = options([Some("4"), Some("2Mbit/s"), Some("none"), None]).body().unwrap();
        let expected = json!({ "tenant": "acme", "allocations": 4, "bandwidth": 2_000_000, "packet_rate": "none" });
        assert_eq!(Value::Object(body), expected);
        for (limits, parts) in [
            ([None, Some("2Mb"), None, None], ["--bandwidth \"2Mb\"", "3Mbit/s"]),
            ([Some("0"), None, None, None], ["--allocations \"0\"", "`throughway revoke`"]),
            ([None, None, Some("\u{1b}x"), None], ["--packet-rate \"\\u{1b}x\"", "a whole number"]),
            ([None, None, None, Some("1GiB")], ["--bytes-per-day", "set it for its users"]),
            ([None, None, None, None], ["name a limit", "--packet-rate"]),
        ] {
            let Failure::Usage(error) = options(limits).body().unwrap_err() else { panic!("it is bad usage") };
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn limits_are_shown_with_their_units() {
        let answer = json!({ "file": null, "limits": [
            { "user": "a\u{1b}b", "tenant": "t", "allocations": 4, "bandwidth": 2_000_000, "packet_rate": "none",
              "bytes_per_day": null, "issued": "x" },
            { "tenant": "t", "allocations": null, "bandwidth": null, "packet_rate": 7, "bytes_per_day": 1024, "issued": "x" }
        ] });
        let mut out = Vec::new();
        limits_table(&mut out, &answer).unwrap();
        let shown = String::from_utf8(out).unwrap();
        let words: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["a\\u{1b}b", "t", "4", "2Mbit/s", "none", "-", "x"]);
        assert_eq!(words[2], ["-", "t", "-", "-", "7", "1KiB", "x"]);
        assert!(shown.contains("memory only"), "{shown}");
    }
}
