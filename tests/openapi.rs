//! docs/openapi.yaml is what the code does: its paths, methods, refusals and answers.
//!
//! tests/openapi/run asks a running server everything that the file promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use boon::{Compiler, Draft, Schemas};
use serde_json::{Value, json};
use throughway::acme;
use throughway::api::admin::refused::AdminRefused;
use throughway::api::rest::refused::IssueRefused;
use throughway::api::rest::shape::Shape;
use throughway::api::{admin, connectivity, health, rest};
use yaml_rust2::{Yaml, YamlLoader};

const FILE: &str = "docs/openapi.yaml";

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json_of(yaml: &Yaml) -> Value {
    match yaml {
        // A whole number that is too large for i64 comes as one of these.
        Yaml::Real(text) => text.parse::<u64>().map_or_else(|_| json!(text.parse::<f64>().unwrap()), Value::from),
        Yaml::Integer(number) => json!(number),
        Yaml::String(text) => json!(text),
        Yaml::Boolean(is_true) => json!(is_true),
        Yaml::Array(items) => items.iter().map(json_of).collect(),
        Yaml::Hash(members) => {
            members.iter().map(|(name, value)| (name.as_str().expect("a name").to_owned(), json_of(value))).collect()
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("{FILE}: an alias, which some readers do not know"),
    }
}

/// The file, and its schemas for a validator that is not ours.
struct Description {
    document: Value,
    compiler: Compiler,
    schemas: Schemas,
}

impl Description {
    fn new() -> Self {
        let document = json_of(&YamlLoader::load_from_str(&read(FILE)).expect("it is YAML")[0]);
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        compiler.add_resource("http://openapi.test/openapi.json", document.clone()).unwrap();
        Self { document, compiler, schemas: Schemas::new() }
    }

    /// The part of the document that a JSON pointer or a `$ref` names, with its pointer.
    fn at(&self, pointer: &str) -> (String, &Value) {
        let pointer = pointer.trim_start_matches('#').to_owned();
        let part = self.document.pointer(&pointer).unwrap_or_else(|| panic!("{FILE} has no {pointer}"));
        match part.get("$ref") {
            Some(target) => self.at(target.as_str().unwrap()),
            None => (pointer, part),
        }
    }

    fn members(&self, pointer: &str) -> Vec<String> {
        let (_, part) = self.at(pointer);
        part.as_object().map(|members| members.keys().cloned().collect()).unwrap_or_default()
    }

    /// What is wrong with a value by the schema at this pointer.
    fn check(&mut self, pointer: &str, value: &Value) -> Result<(), String> {
        let fragment: String =
            pointer.chars().map(|c| if "{}".contains(c) { percent(c) } else { c.to_string() }).collect();
        let index = self.compiler.compile(&format!("http://openapi.test/openapi.json#{fragment}"), &mut self.schemas);
        let index = index.unwrap_or_else(|error| panic!("{pointer} is no schema: {error:#}"));
        self.schemas.validate(value, index).map_err(|error| format!("{error:#}"))
    }

    /// Statuses of an operation.
    fn statuses(&self, path: &str, method: &str) -> BTreeSet<u16> {
        let names = self.members(&format!("/paths/{}/{method}/responses", escaped(path)));
        names.iter().map(|name| name.parse().expect("a status")).collect()
    }
}

fn percent(c: char) -> String {
    format!("%{:02X}", u32::from(c))
}

/// A name as a JSON pointer has it.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// Every path of the code with its methods.
fn code_routes() -> BTreeMap<&'static str, BTreeSet<String>> {
    let of_rest = rest::routes().map(|(path, shape)| (path, shape.methods()));
    let of_health = health::PATHS.into_iter().map(|path| (path, "GET"));
    let of_pages = connectivity::paths().map(|path| (path, "GET"));
    let all = of_rest.chain(admin::routes()).chain(of_health).chain(of_pages).chain([(acme::CHALLENGE_PATH, "GET")]);
    all.map(|(path, methods)| (path, methods.split(", ").map(str::to_lowercase).collect())).collect()
}

#[test]
fn paths_and_methods_are_those_of_the_code() {
    let description = Description::new();
    let in_code = code_routes();
    let paths = description.members("/paths");
    let in_file: BTreeSet<&str> = paths.iter().map(String::as_str).collect();
    assert_eq!(in_file, in_code.keys().copied().collect(), "{FILE} and the routes of the code");
    for (path, methods) in in_code {
        let members = description.members(&format!("/paths/{}", escaped(path)));
        let documented: BTreeSet<String> =
            members.into_iter().filter(|name| METHODS.contains(&name.as_str())).collect();
        assert_eq!(documented, methods, "methods of {path}");
    }
}

/// The routes are in tables that the test above reads; one that is not in a table would escape it.
#[test]
fn no_route_is_outside_of_the_tables() {
    let known = ["/healthz", "/readyz", "/metrics"];
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // The demo has pages of its own.
            if path.is_dir() && !path.ends_with("src/demo") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("src/demo.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("\n#[cfg(test)]\n").next().unwrap_or_default();
                // Other things have routes too.
                let text = if text.contains("axum::Router") { text } else { "" };
                for (_, rest) in text.match_indices(".route(").map(|(at, name)| text.split_at(at + name.len())) {
                    seen += 1;
                    let argument = rest.split(',').next().unwrap_or_default().trim();
                    let is_of_table = matches!(argument, "path" | "PATH");
                    let is_known = known.contains(&argument.trim_matches('"'));
                    assert!(is_of_table || is_known, "{}: the route {argument} is in no table", path.display());
                }
            }
        }
    }
    assert!(seen >= 7, "only {seen} routes were found");
}

#[test]
fn refusals_are_described_with_their_status_and_reason() {
    let description = Description::new();
    for (path, shape) in rest::routes() {
        for method in shape.methods().to_lowercase().split(", ").filter(|method| *method != "options") {
            let documented = description.statuses(path, method);
            for refused in IssueRefused::ALL {
                // A method that is not there has no place in the file; its introduction tells of it.
                let is_possible = match shape {
                    Shape::WellKnown => refused == IssueRefused::Host,
                    Shape::CloudflareRevoke => {
                        use IssueRefused::{Method, NoServers, Slow, TooLarge};
                        ![Method, NoServers, Slow, TooLarge].contains(&refused)
                    }
                    _ => refused != IssueRefused::Method,
                };
                let status = shape.status_of(&refused).as_u16();
                assert!(!is_possible || documented.contains(&status), "{method} {path} lacks {status}, {refused:?}");
            }
        }
    }
    let reasons = |schema: &str| -> BTreeSet<String> {
        let (_, reasons) = description.at(&format!("/components/schemas/{schema}/properties/reason/enum"));
        reasons.as_array().unwrap().iter().map(|reason| reason.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(reasons("Error"), IssueRefused::ALL.iter().map(|refused| refused.name().to_owned()).collect());
    assert_eq!(reasons("AdminError"), AdminRefused::NAMES.map(str::to_owned).into());
    for (path, method) in admin::routes().filter(|(path, _)| !path.starts_with("/status")) {
        let documented = description.statuses(path, &method.to_lowercase());
        let wanted: &[u16] =
            if method == "POST" { &[400, 401, 403, 408, 413, 415, 429, 503] } else { &[401, 403, 429] };
        for status in wanted {
            assert!(documented.contains(status), "{method} {path} lacks {status}");
        }
    }
}

/// Every example is what its schema says, and every schema is one.
#[test]
fn examples_fit_their_schemas() {
    let mut description = Description::new();
    let (mut checked, mut todo) = (0, vec![String::new()]);
    let mut found = Vec::new();
    while let Some(pointer) = todo.pop() {
        let Some(part) = description.document.pointer(&pointer) else { continue };
        match part {
            Value::Object(members) => {
                let is_in_schemas = pointer.starts_with("/components/schemas/") && pointer.matches('/').count() == 3;
                if members.contains_key("example") {
                    let schema = if is_in_schemas { pointer.clone() } else { format!("{pointer}/schema") };
                    found.push((schema, members["example"].clone()));
                }
                let examples = members.get("examples").and_then(Value::as_object);
                for example in examples.into_iter().flat_map(|examples| examples.values()) {
                    found.push((format!("{pointer}/schema"), example["value"].clone()));
                }
                let into = members.keys().filter(|name| !["example", "examples"].contains(&name.as_str()));
                todo.extend(into.map(|name| format!("{pointer}/{}", escaped(name))));
            }
            Value::Array(items) => todo.extend((0..items.len()).map(|at| format!("{pointer}/{at}"))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    for (schema, example) in found {
        checked += 1;
        description.check(&schema, &example).unwrap_or_else(|error| panic!("the example at {schema}: {error}"));
    }
    assert!(checked > 80, "only {checked} examples were found");
    for name in description.members("/components/schemas") {
        // Compiling is the test; an empty text is of no schema with members.
        let _ = description.check(&format!("/components/schemas/{name}"), &json!(null));
    }
    assert!(description.check("/components/schemas/Error", &json!({ "error": "x", "reason": "y" })).is_err());
}

/// The golden answers of tests/api.rs: which operation each is of.
const GOLDEN: [(&str, &str, &str); 27] = [
    ("all", "get", "/v1/credentials"),
    ("cloudflare-old", "post", "/v1/turn/keys/{id}/credentials/generate"),
    ("cloudflare", "post", "/v1/turn/keys/{id}/credentials/generate-ice-servers"),
    ("draft-janus", "post", "/turn"),
    ("draft-nextcloud", "get", "/turn/credentials"),
    ("draft", "post", "/"),
    ("ice", "get", "/ice"),
    ("matrix", "get", "/_matrix/client/v3/voip/turnServer"),
    ("metered-new", "post", "/api/v1/turn/credential"),
    ("metered", "get", "/api/v1/turn/credentials"),
    ("refused-cloudflare-get", "", ""),
    ("refused-draft-no-service", "get", "/turn"),
    ("refused-draft-wrong-key", "post", "/"),
    ("refused-matrix-no-key", "get", "/_matrix/client/v3/voip/turnServer"),
    ("refused-matrix-wrong-key", "get", "/_matrix/client/r0/voip/turnServer"),
    ("refused-metered-wrong-key", "get", "/api/v1/turn/credentials"),
    ("refused-method", "", ""),
    ("refused-nextcloud-no-key", "get", "/turn/credentials"),
    ("refused-nextcloud-wrong-key", "get", "/turn/credentials"),
    ("refused-no-key", "get", "/v1/credentials"),
    ("refused-no-servers", "get", "/turn/credentials"),
    ("refused-twilio-no-key", "post", "/2010-04-01/Accounts/{id}/Tokens.json"),
    ("refused-wrong-key", "get", "/ice"),
    ("twilio", "post", "/2010-04-01/Accounts/{id}/Tokens.json"),
    ("well-known", "get", "/.well-known/turn"),
    ("xep0215-xml", "get", "/v1/credentials"),
    ("xep0215", "get", "/v1/credentials"),
];

#[test]
fn golden_answers_fit_the_description() {
    let mut description = Description::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/rest");
    let files: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        files,
        GOLDEN.iter().map(|(name, ..)| (*name).to_owned()).collect(),
        "each golden answer has a row here"
    );
    for (name, method, path) in GOLDEN {
        let text = read(format!("tests/vectors/rest/{name}.txt"));
        let (head, body) = text.split_once("\n\n").unwrap();
        let (status, headers) = head.split_once('\n').unwrap();
        let kind = headers.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
        let kind = kind.split(';').next().unwrap();
        if method.is_empty() {
            // 405, which is the same on every path.
            let body = serde_json::from_str(body).unwrap();
            description.check("/components/schemas/Error", &body).unwrap_or_else(|error| panic!("{name}: {error}"));
            continue;
        }
        let response = format!("/paths/{}/{method}/responses/{status}", escaped(path));
        let (response, _) = description.at(&response);
        let (schema, _) = description.at(&format!("{response}/content/{}/schema", escaped(kind)));
        let body = if kind == "application/json" { serde_json::from_str(body).unwrap() } else { json!(body) };
        description.check(&schema, &body).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_description_has_the_version_of_the_program() {
    let description = Description::new();
    assert_eq!(description.at("/info/version").1, env!("CARGO_PKG_VERSION"));
}
