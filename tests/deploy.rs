//! The alerts and the dashboard in deploy/ ask for series that a live server has, label by label.
//!
//! `scripts/test` has Prometheus itself judge the same files: syntax, queries, and alerts that fire.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;
use test_support::api::{BEARER, KEY, ask, key_table};
use test_support::e2e::server::Slice;
use test_support::e2e::tls::Authority;
use test_support::e2e::{Client, Server, Wanted, http, peer, receive, wait_for};
use throughway::wire::message::METHOD_ALLOCATE;
use yaml_rust2::{Yaml, YamlLoader};

/// What Prometheus itself adds to each series, and the one series that it makes.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];
const UP: &str = "up";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

// ---- a query, as far as names and labels go

#[derive(Debug, PartialEq)]
struct Selector {
    name: String,
    /// Label, operator, value.
    matchers: Vec<(String, String, String)>,
}

#[derive(Debug, Default, PartialEq)]
struct Query {
    selectors: Vec<Selector>,
    /// Labels in `by (...)` and its like.
    grouping: BTreeSet<String>,
}

const WORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const AGGREGATIONS: [&str; 6] = ["sum", "min", "max", "avg", "count", "group"];

/// The leading part of a text whose letters fit, and the rest.
fn take(text: &str, fits: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|letter| !fits(letter)).unwrap_or(text.len()))
}

/// What stands before the closing letter, and what behind it; strings may contain it.
fn inside(text: &str, close: char) -> (&str, &str) {
    let mut quoted = false;
    let end = text.find(|letter| {
        let is_end = letter == close && !quoted;
        quoted ^= letter == '"';
        is_end
    });
    let end = end.unwrap_or_else(|| panic!("no {close} in {text}"));
    (&text[..end], &text[end + 1..])
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'
}

fn query(text: &str) -> Query {
    let mut query = Query::default();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if first == '[' {
            rest = inside(&rest[1..], ']').1;
        } else if first.is_ascii_digit() {
            rest = take(rest, |letter| letter.is_ascii_alphanumeric() || letter == '.').1;
        } else if is_name(first) {
            let (word, behind) = take(rest, is_name);
            rest = behind.trim_start();
            if GROUPING.contains(&word) {
                let (labels, behind) = inside(rest.strip_prefix('(').expect("labels"), ')');
                query.grouping.extend(labels.split(',').map(|label| label.trim().to_owned()));
                rest = behind;
            } else if !WORDS.contains(&word) && !AGGREGATIONS.contains(&word) && !rest.starts_with('(') {
                let mut selector = Selector { name: word.to_owned(), matchers: Vec::new() };
                if let Some(matchers) = rest.strip_prefix('{') {
                    let (mut matchers, behind) = inside(matchers, '}');
                    while !matchers.is_empty() {
                        let (label, of_label) = take(matchers, is_name);
                        let (operator, value) = take(of_label, |letter| "=!~".contains(letter));
                        let (value, more) = inside(value.strip_prefix('"').expect("a string"), '"');
                        selector.matchers.push((label.to_owned(), operator.to_owned(), value.to_owned()));
                        matchers = more.trim_start_matches(',').trim_start();
                    }
                    rest = behind;
                }
                query.selectors.push(selector);
            }
        } else {
            rest = &rest[first.len_utf8()..];
        }
        rest = rest.trim_start();
    }
    query
}

// ---- what a server has

#[derive(Default)]
struct Live(BTreeMap<String, Vec<BTreeMap<String, String>>>);

impl Live {
    fn of(text: &str) -> Self {
        let mut live = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            // A series is written as it is selected.
            let [series] = &query(line.rsplit_once(' ').unwrap().0).selectors[..] else { panic!("{line}") };
            let labels = series.matchers.iter().map(|(label, _, value)| (label.clone(), value.clone()));
            live.0.entry(series.name.clone()).or_default().push(labels.collect());
        }
        live
    }

    fn values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        self.0.get(name).into_iter().flatten().filter_map(|labels| labels.get(label)).map(String::as_str).collect()
    }

    fn has_label(&self, name: &str, label: &str) -> bool {
        TARGET_LABELS.contains(&label) || !self.values(name, label).is_empty()
    }

    /// What is wrong with a query, and with the labels that a text about its result names.
    fn problems(&self, text: &str, named: &[String]) -> Vec<String> {
        let query = query(text);
        let mut problems = Vec::new();
        if query.selectors.is_empty() {
            problems.push("selects nothing".to_owned());
        }
        for Selector { name, matchers } in &query.selectors {
            if name != UP && !self.0.contains_key(name) {
                problems.push(format!("no metric {name}"));
                continue;
            }
            for (label, operator, value) in matchers.iter().filter(|(label, ..)| !TARGET_LABELS.contains(&&**label)) {
                let known = self.values(name, label);
                let wanted = if operator.contains('~') { value.split('|').collect() } else { vec![&**value] };
                for value in wanted.iter().filter(|value| !known.contains(**value)) {
                    problems.push(format!("{name} has no {label}={value:?}, only {known:?}"));
                }
            }
            // Only what Prometheus selects by the job is ours.
            let is_job = |(label, operator, value): &(String, String, String)| {
                label == "job" && operator == "=" && value == "throughway"
            };
            if !matchers.iter().any(is_job) {
                problems.push(format!("{name} is not asked for by job"));
            }
            for label in query.grouping.iter().filter(|label| !self.has_label(name, label)) {
                problems.push(format!("{name} has no label {label} to group by"));
            }
        }
        for label in named {
            let is_there = if query.grouping.is_empty() {
                query.selectors.iter().all(|selector| self.has_label(&selector.name, label))
            } else {
                query.grouping.contains(label)
            };
            if !is_there {
                problems.push(format!("the result has no label {label}"));
            }
        }
        problems.into_iter().map(|problem| format!("{problem}\n    in {text}")).collect()
    }
}

/// A server with everything switched on that has metrics of its own, after something of everything happened.
fn busy_server() -> (Server, Authority) {
    let authority = Authority::new();
    let absent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut settings = authority
        .settings(2)
        .account("file", "usage.jsonl")
        .account("webhook", format!("http://{absent}/usage"))
        .account("spool", "spool");
    let shared = format!("address = \"[::1]:0\"\nbackend = \"{absent}\"\nnames = [\"turn.example.org\"]\n");
    settings.tables = key_table("web", KEY, "") + "[[listen.shared]]\n" + &shared;
    let slice = Slice::take();
    let first = *slice.range.start();
    // Settings hold text of the program.
    let parts: &'static str = Box::leak(format!("{{ acme = \"{first}-{}\" }}", first + 7).into_boxed_str());
    settings.relay.push(("ports_by_tenant", parts));
    settings.ports = Some(slice.range.clone());
    let server = settings.start();
    let mut client = authority.client(server.tls4());
    let relayed = client.allocate();
    let peer = peer(relayed);
    client.permit(peer.local_addr().unwrap());
    client.send_to(peer.local_addr().unwrap(), b"one packet");
    assert_eq!(receive(&peer).0, b"one packet");
    let mut stranger = Client::udp(server.udp4()).user("mallory", "guessed");
    assert_eq!(stranger.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 401);
    let issued = ask(server.http(), "GET", "/v1/credentials?username=carol", &[("Host", "localhost"), BEARER], "");
    assert!(issued.json()["username"].is_string());
    wait_for("the records of the session's start", || {
        (server.scrape().sum("throughway_accounting_records_total") > 0).then_some(())
    });
    (server, authority)
}

fn live() -> Live {
    let (server, _authority) = busy_server();
    Live::of(&http::get(server.http(), "/metrics", "localhost").1)
}

/// Every `{{ ... }}` in a text, without what stands before the label's name.
fn placeholders(text: &str, before: &str) -> Vec<String> {
    let of = |part: &str| part.split("}}").next().unwrap().trim().to_owned();
    let all = text.split("{{").skip(1).map(of);
    all.filter_map(|part| part.strip_prefix(before).map(|label| take(label, is_name).0.to_owned())).collect()
}

fn rules() -> Vec<Yaml> {
    let file = YamlLoader::load_from_str(&read("deploy/prometheus/alerts.yml")).unwrap();
    let groups = file[0]["groups"].as_vec().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_vec().expect("rules").clone()).collect()
}

#[test]
fn every_alert_asks_for_series_that_a_live_server_has() {
    let live = live();
    let mut problems = Vec::new();
    let rules = rules();
    for rule in &rules {
        let (name, expression) = (rule["alert"].as_str().expect("a name"), rule["expr"].as_str().expect("an expr"));
        let summary = rule["annotations"]["summary"].as_str().unwrap_or_else(|| panic!("{name} has no summary"));
        let found = live.problems(expression, &placeholders(summary, "$labels."));
        problems.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
        assert!(rule["for"].as_str().is_some_and(|time| time.ends_with(['m', 'h'])), "{name} fires at once");
        assert!(["page", "ticket"].contains(&rule["labels"]["severity"].as_str().expect("a severity")), "{name}");
        assert!(summary.contains("instance") && summary.contains(": "), "{name} says neither where nor what to do");
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(rules.len() >= 15);
}

#[test]
fn every_alert_is_documented_and_made_to_fire() {
    let page = read("docs/reference/alerts.md");
    let tests = YamlLoader::load_from_str(&read("deploy/prometheus/alerts_test.yml")).unwrap();
    let tests = tests[0]["tests"].as_vec().expect("tests");
    let fired: BTreeSet<&str> = tests.iter().filter_map(|test| test["name"].as_str()?.split(':').next()).collect();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(fired.contains(name), "alerts_test.yml does not make {name} fire");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(
            page.contains(&format!("| `{name}` | {severity} |")),
            "docs/reference/alerts.md lacks the alert {name}"
        );
    }
    let rows = page.lines().filter(|line| line.starts_with("| `Throughway")).count();
    assert_eq!(rows, rules().len(), "docs/reference/alerts.md has alerts that do not exist");
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let all = dashboard["panels"].as_array().expect("panels");
    all.iter().filter(|panel| panel["type"] != "row")
}

#[test]
fn every_panel_asks_for_series_that_a_live_server_has() {
    let live = live();
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/throughway.json")).unwrap();
    let mut problems = Vec::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().expect("a title");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title} names somebody's data source");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title} is empty");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expression = target["expr"].as_str().expect("an expression");
            let named = placeholders(target["legendFormat"].as_str().expect("a legend"), "");
            let found = live.problems(expression, &named);
            problems.extend(found.into_iter().map(|problem| format!("{title}: {problem}")));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(panels(&dashboard).count() >= 20);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let instances = "label_values(throughway_build_info{job=\"throughway\"}, instance)";
    assert!(variables.iter().any(|variable| variable["definition"] == instances));
    assert!(live.0.contains_key("throughway_build_info"));
}

#[test]
fn panels_stand_side_by_side_and_have_numbers_of_their_own() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/throughway.json")).unwrap();
    let (mut taken, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{} has another's id", panel["title"]);
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for y in at("y")..at("y") + at("h") {
            for x in at("x")..at("x") + at("w") {
                assert!(taken.insert((x, y)), "{} lies over another panel", panel["title"]);
            }
        }
    }
}

/// The job's name is the one that alerts and dashboard expect, and the target is the default of `http.listen`.
#[test]
fn the_example_scrapes_what_the_server_listens_on() {
    let file = YamlLoader::load_from_str(&read("deploy/prometheus/prometheus.yml")).unwrap();
    let job = &file[0]["scrape_configs"][0];
    assert_eq!(job["job_name"].as_str(), Some("throughway"));
    let default = throughway::config::KEYS.iter().find(|key| key.path == "http.listen").unwrap().default;
    assert_eq!(job["static_configs"][0]["targets"][0].as_str(), Some(default.trim_matches('"')));
    assert_eq!(file[0]["rule_files"][0].as_str(), Some("alerts.yml"));
}

#[test]
fn a_query_is_taken_apart() {
    let text = "sum by (a, b) (rate(m_total{x=\"1\",y=~\"2|}3\"}[5m])) > 0.5 and on (a) n == 2 * max(o{})";
    let found = query(text);
    let names: Vec<&str> = found.selectors.iter().map(|selector| selector.name.as_str()).collect();
    assert_eq!(names, ["m_total", "n", "o"]);
    let matcher = |label: &str, operator: &str, value: &str| (label.to_owned(), operator.to_owned(), value.to_owned());
    assert_eq!(found.selectors[0].matchers, [matcher("x", "=", "1"), matcher("y", "=~", "2|}3")]);
    assert_eq!(found.grouping, ["a", "b"].map(str::to_owned).into());
}

#[test]
fn what_a_server_does_not_have_is_found() {
    let live = Live::of("# HELP m_total x\nm_total{reason=\"a\"} 1\nm_total{reason=\"b\"} 0\nn 5\n");
    let m = |matchers: &str| format!("m_total{{job=\"throughway\"{matchers}}}");
    for right in [m(""), m(",reason=\"a\""), m(",reason=~\"a|b\""), format!("sum by (reason, job) ({})", m(""))] {
        assert_eq!(live.problems(&right, &["reason".to_owned()]), Vec::<String>::new(), "{right}");
    }
    for (wrong, why) in [
        ("m{job=\"throughway\"}".to_owned(), "no metric m"),
        ("m_total".to_owned(), "not asked for by job"),
        (m(",reason=\"c\""), "no reason=\"c\""),
        (m(",reason=~\"a|c\""), "no reason=\"c\""),
        (m(",reason!=\"c\""), "no reason=\"c\""),
        (m(",cause=\"a\""), "no cause=\"a\""),
        (format!("sum by (cause) ({})", m("")), "no label cause"),
        (format!("sum by (job) ({})", m("")), "the result has no label reason"),
        ("n{job=\"throughway\"}".to_owned(), "the result has no label reason"),
        ("1 > 0".to_owned(), "selects nothing"),
    ] {
        let problems = live.problems(&wrong, &["reason".to_owned()]).join("\n");
        assert!(problems.contains(why), "{wrong}: {problems:?}");
    }
}
