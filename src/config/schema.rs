//! The JSON Schema of the configuration, made from the rows of `keys`: editors complete and check a file with it.
//!
//! It says what can be said of one value or one table: names, types, units, ranges, forms. What two keys have to do with each
//! other, and what a file or this machine holds, only `check-config` knows. Written for draft 7, with nothing that readers of
//! draft 4 would misread.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::config::external::ExternalSource;
use crate::config::keys::{Applies, ConfigKey, FIELDS, KEYS, LATER, ValueType, fields};
use crate::config::units::{self, Quantity};
use crate::credentials::claims::Claim;

const IPV4: &str = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}";
const IPV6: &str = r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*";

/// The schema of a whole file.
#[must_use]
pub fn schema() -> Value {
    let mut root = Map::new();
    for key in KEYS {
        insert(&mut root, key.path, described(key, of_type(key)));
    }
    for (path, off) in LATER {
        insert(&mut root, path, json!({ "enum": [of_toml(off)], "description": "Not in this version." }));
    }
    let mut schema = table(root);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Configuration of throughway");
    schema
}

/// A table that has these fields and no others.
fn table(properties: Map<String, Value>) -> Value {
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// Puts a key at its path: above the sections, or into its own.
fn insert(root: &mut Map<String, Value>, path: &str, schema: Value) {
    match path.split_once('.') {
        None => root.insert(path.to_owned(), schema),
        Some((section, name)) => {
            let section = root.entry(section).or_insert_with(|| table(Map::new()));
            section["properties"].as_object_mut().and_then(|section| section.insert(name.to_owned(), schema))
        }
    };
}

/// A default as JSON has it.
fn of_toml(text: &str) -> Value {
    let parsed: Option<toml::Table> = format!("value = {text}").parse().ok();
    parsed.and_then(|table| serde_json::to_value(table.get("value")?).ok()).unwrap_or(Value::Null)
}

/// With what an editor shows beside the key.
fn described(key: &ConfigKey, mut schema: Value) -> Value {
    let change = match key.applies {
        Applies::AtReload => String::new(),
        Applies::ToNew(things) => format!(" A reload applies it to new {things}."),
        Applies::ByItself => " The server watches the file itself.".to_owned(),
        Applies::AtRestart(_) => " A change needs a restart.".to_owned(),
    };
    let range = key.range().map_or_else(String::new, |range| format!(" Allowed: {range}."));
    schema["description"] = json!(format!("{}.{range}{change}", key.sentence()));
    if !key.default.is_empty() {
        schema["default"] = of_toml(key.default);
    }
    schema
}

fn of_type(key: &ConfigKey) -> Value {
    let least = u64::from(key.zero.is_none());
    match key.value_type {
        ValueType::Text => text(key.path),
        ValueType::Word(words) => json!({ "enum": words }),
        ValueType::Flag => json!({ "type": "boolean" }),
        ValueType::Count(max) => json!({ "type": "integer", "minimum": least, "maximum": max }),
        ValueType::AutoOr(max) => {
            json!({ "anyOf": [{ "enum": ["auto"] }, { "type": "integer", "minimum": 1, "maximum": max }] })
        }
        ValueType::Duration(min, max) => quantity(&units::DURATION, min, max, key.zero.is_some()),
        ValueType::Size(min) => quantity(&units::SIZE, min, u64::MAX, key.zero.is_some()),
        ValueType::Rate => quantity(&units::RATE, 1, u64::MAX, key.zero.is_some()),
        // Two sockets can't have one address; elsewhere an item may be there twice.
        ValueType::List if key.path == "listen.shared.proxy_from" => {
            json!({ "type": "array", "minItems": 1, "items": item(key.path) })
        }
        ValueType::List if key.path.starts_with("listen.") || key.path == "relay.addresses" => {
            json!({ "type": "array", "items": item(key.path), "uniqueItems": true })
        }
        ValueType::List => json!({ "type": "array", "items": item(key.path) }),
        ValueType::Addresses => {
            let one = pattern(&address());
            json!({ "anyOf": [
                pattern(&format!("^$|{}", address())),
                { "enum": ExternalSource::ALL.map(ExternalSource::name) },
                { "type": "array", "items": one },
                { "type": "object", "additionalProperties": one, "propertyNames": one },
            ] })
        }
        ValueType::Tables(_) => json!({ "type": "array", "items": fields_of(key.path) }),
        ValueType::Table(_) if key.path == "auth.users" => {
            let (password, one) = (json!({ "type": "string", "minLength": 1 }), fields_of(key.path));
            let several = json!({ "type": "array", "minItems": 1, "items": one });
            json!({ "type": "object", "additionalProperties": { "anyOf": [password, one, several] } })
        }
        ValueType::Table(_) if key.path == "relay.ports_by_tenant" => {
            json!({ "type": "object", "additionalProperties": text("relay.ports") })
        }
        ValueType::Table(_) if key.path == "tls.acme" => fields_of(key.path),
        ValueType::Table(_) => limits(key.path),
        ValueType::Instant => pattern(concat!(
            r"^[0-9]{4}-[0-9]{2}-[0-9]{2}",
            r"([Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?([Zz]|[+-][0-9]{2}:[0-9]{2}))?$"
        )),
        ValueType::Claims => {
            let words = Claim::ALL.map(Claim::name);
            json!({ "anyOf": [{ "type": "boolean" }, { "type": "array", "items": { "enum": words } }] })
        }
        ValueType::Peers => {
            json!({ "anyOf": [{ "enum": ["relay"] }, { "type": "array", "items": pattern(&prefix()) }] })
        }
    }
}

/// The table of a path, with what each of its kind must have.
fn fields_of(path: &str) -> Value {
    let properties = fields(path).map(|(name, row)| (name.to_owned(), described(row, of_type(row)))).collect();
    let mut schema = table(properties);
    let one_of = |names: &[&str]| names.iter().map(|name| json!({ "required": [name] })).collect::<Vec<_>>();
    match path {
        "tls.certificates" => schema["required"] = json!(["certificate", "private_key"]),
        "auth.users" => {
            schema["oneOf"] = json!(one_of(&["password", "file", "key_md5"]));
            schema["dependentRequired"] = json!({ "key_sha256": ["key_md5"] });
        }
        "auth.secrets" => {
            schema["required"] = json!(["id"]);
            schema["oneOf"] = json!(one_of(&["value", "file", "credential"]));
        }
        "listen.shared" => schema["required"] = json!(["address", "backend"]),
        "http.keys" => schema["required"] = json!(["name", "sha256"]),
        "turn.alternates" => schema["anyOf"] = json!(one_of(&["address", "tls"])),
        _ => {}
    }
    schema
}

/// The limits of users, secrets or keys: not each can hold all of them.
fn limits(path: &str) -> Value {
    let without: &[&str] = match path {
        "auth.users.limits" => &["bytes"],
        "http.keys.limits" => &["bytes_per_day", "packet_rate"],
        _ => &[],
    };
    let mut schema = fields_of("*.limits");
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.retain(|name, _| !without.contains(&name.as_str()));
    }
    schema
}

fn address() -> String {
    format!("^(?:{IPV4}|{IPV6})$")
}

fn address_and_port() -> String {
    format!(r"(?:{IPV4}|\[{IPV6}\]):0*{}", numbers(0, 65535))
}

fn prefix() -> String {
    format!("^(?:{IPV4}(?:/[0-9]{{1,2}})?|{IPV6}(?:/[0-9]{{1,3}})?)$")
}

fn pattern(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

/// A text whose form is known.
fn text(path: &str) -> Value {
    match path {
        "realm" | "auth.users.realm" | "listen.shared.realm" => {
            json!({ "type": "string", "minLength": 1, "maxLength": 127, "pattern": r#"^[^"\\\x00-\x1f\x7f]+$"# })
        }
        "turn.alternates.address" | "turn.alternates.tls" => pattern(&format!("^{}$", address_and_port())),
        "relay.ports" => pattern(&format!(r"^\s*0*{port}\s*-\s*0*{port}\s*$", port = numbers(1, 65535))),
        "http.listen" => {
            let port = numbers(0, 65535);
            pattern(&format!(r"^$|^unix:/.+|^(?:127(?:\.[0-9]{{1,3}}){{3}}|\[{IPV6}\]):0*{port}$"))
        }
        "listen.shared.address" | "listen.shared.backend" => pattern(&format!("^{}$", address_and_port())),
        "http.public_name" => pattern("^[0-9A-Za-z.:-]*$"),
        "http.identity_header" => pattern("^[0-9A-Za-z_-]*$"),
        "drain.alternate_domain" => pattern(r"^$|^[0-9A-Za-z-]{1,63}(?:\.[0-9A-Za-z-]{1,63})*$"),
        "http.admin_socket" => pattern("^$|^none$|^(?:unix:)?/.+"),
        "http.chatmail_socket" | "upgrade.socket" => pattern("^$|^(?:unix:)?/.+"),
        "auth.secrets.id" => pattern("^[!-~]{1,64}$"),
        // At least 16 bytes: letters that are not ASCII have more than one.
        "auth.secrets.value" => pattern(r"[^\x00-\x7f]|^[\s\S]{16}"),
        "auth.users.key_md5" => pattern("^[0-9A-Fa-f]{32}$"),
        "auth.users.key_sha256" | "http.keys.sha256" => pattern("^[0-9A-Fa-f]{64}$"),
        "http.keys.name" => pattern("^[0-9A-Za-z._-]{1,64}$"),
        _ if FIELDS.iter().any(|field| field.path == path) => json!({ "type": "string", "minLength": 1 }),
        _ => json!({ "type": "string" }),
    }
}

/// An item of a list.
fn item(path: &str) -> Value {
    match path {
        "listen.udp" | "listen.tcp" | "listen.tls" | "listen.auto" => {
            let one = pattern(&format!("^{}$", address_and_port()));
            let mut fields: Map<String, Value> = [("address".to_owned(), one.clone())].into_iter().collect();
            if path != "listen.udp" {
                let proxies = json!({ "type": "array", "minItems": 1, "items": pattern(&prefix()) });
                fields.insert("proxy_from".to_owned(), proxies);
            }
            for name in ["realm", "tenant"] {
                fields.insert(name.to_owned(), text(&format!("listen.shared.{name}")));
            }
            let mut listener = table(fields);
            listener["required"] = json!(["address"]);
            json!({ "anyOf": [one, listener] })
        }
        "drain.alternate" | "drain.alternate_tls" | "stun.discovery" => pattern(&format!("^{}$", address_and_port())),
        "relay.addresses" => pattern(&address()),
        "relay.external_servers" => pattern(r"^(?:stun:)?[0-9A-Za-z.:\[\]-]+$"),
        "peers.allow" => json!({ "type": "string", "pattern": prefix(), "not": { "enum": ["0.0.0.0/0", "::/0"] } }),
        "listen.shared.names" => pattern("^[0-9A-Za-z._-]+$"),
        "peers.deny" | "http.proxies" | "http.keys.from" | "listen.shared.proxy_from" => pattern(&prefix()),
        "http.hosts" => pattern("^[0-9A-Za-z._-]+$"),
        "http.public" => {
            let one = pattern(&format!("^(?:https?://)?{}/?$", address_and_port()));
            let proxies = json!({ "type": "array", "minItems": 1, "items": pattern(&prefix()) });
            let fields = [("address".to_owned(), one.clone()), ("proxy_from".to_owned(), proxies)];
            let mut listener = table(fields.into_iter().collect());
            listener["required"] = json!(["address"]);
            json!({ "anyOf": [one, listener] })
        }
        "http.unix_uids" | "http.admin_uids" => {
            json!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": u32::MAX }, pattern("^[0-9]{1,10}$")] })
        }
        "http.cors" => pattern(r"^https?://[a-z0-9._:\[\]-]+$"),
        "*.limits.transports" => json!({ "enum": ["udp", "tcp", "tls"] }),
        _ => json!({ "type": "string" }),
    }
}

/// A whole number with a unit, and 0 alone where it has a meaning.
fn quantity(quantity: &Quantity, min: u64, max: u64, has_zero: bool) -> Value {
    let mut with_unit = Vec::new();
    for (unit, scale) in quantity.units() {
        let (least, most) = (min.div_ceil(*scale).max(1), max / scale);
        if least <= most {
            with_unit.push(format!("{}{unit}", numbers(least, if max == u64::MAX { u64::MAX } else { most })));
        }
    }
    let some = format!("0*(?:{})", with_unit.join("|"));
    if !has_zero {
        return pattern(&format!("^{some}$"));
    }
    let names: Vec<&str> = quantity.units().iter().map(|(unit, _)| *unit).collect();
    json!({ "anyOf": [{ "enum": [0] }, pattern(&format!("^(?:0|0+(?:{})|{some})$", names.join("|")))] })
}

/// A regular expression of all numbers from `min` to `max`, without zeros in front; `u64::MAX` is no bound.
fn numbers(min: u64, max: u64) -> String {
    let (min, mut max) = (u128::from(min), u128::from(max));
    let mut parts = Vec::new();
    if max == u128::from(u64::MAX) {
        let digits = min.to_string().len();
        parts.push(format!("[1-9][0-9]{{{digits},}}"));
        max = 10_u128.pow(u32::try_from(digits).unwrap_or(0)) - 1;
    }
    // Where the pieces end whose numbers differ in nothing but ranges of digits.
    let mut ends = BTreeSet::from([max]);
    let mut size = 10;
    while min / size * size + size - 1 < max {
        ends.insert(min / size * size + size - 1);
        size *= 10;
    }
    let mut size = 10;
    while (max + 1) / size * size > min {
        ends.insert((max + 1) / size * size - 1);
        size *= 10;
    }
    let mut from = min;
    for end in ends {
        parts.push(same_digits(&from.to_string(), &end.to_string()));
        from = end + 1;
    }
    format!("(?:{})", parts.join("|"))
}

fn same_digits(from: &str, to: &str) -> String {
    let digit = |(from, to): (char, char)| match (from, to) {
        _ if from == to => from.to_string(),
        _ => format!("[{from}-{to}]"),
    };
    from.chars().zip(to.chars()).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_cut_into_pieces_of_equal_length_without_a_gap() {
        // Each piece as the numbers that it stands for: from all first digits of its ranges to all last ones.
        let pieces = |min, max| -> Vec<(u64, u64)> {
            let text = numbers(min, max);
            let parts = text.trim_start_matches("(?:").trim_end_matches(')').split('|');
            let bound = |part: &str, at: usize| -> u64 {
                let mut digits = String::new();
                let mut rest = part;
                while let Some(first) = rest.chars().next() {
                    if first == '[' {
                        digits.push(rest.as_bytes()[at] as char);
                        rest = &rest[5..];
                    } else {
                        digits.push(first);
                        rest = &rest[1..];
                    }
                }
                digits.parse().unwrap()
            };
            parts.map(|part| (bound(part, 1), bound(part, 3))).collect()
        };
        for (min, max) in
            [(1, 60), (0, 65535), (65556, 99999), (7, 7), (1, 315_360_000), (60, 1000), (10, 19), (99, 101)]
        {
            let found = pieces(min, max);
            assert_eq!(found.first().unwrap().0, min, "{min} to {max}: {found:?}");
            assert_eq!(found.last().unwrap().1, max, "{min} to {max}: {found:?}");
            assert!(found.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{min} to {max}: {found:?}");
        }
    }
}
