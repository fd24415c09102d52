//! `docs/rfc.md`: which rule of which RFC is kept where, which test proves it, and which one is not kept and why.
//!
//! The rules stand in `tests/rfc/*.toml`, one file for each RFC, in our own words. A comment in code or before a test
//! cites them by number: `[8656-7.2-5]` is the fifth rule of section 7.2, `[8656-7.2-5, -6]` are two. This test reads
//! both and makes the page; decision 0228.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

const PAGE: &str = "docs/rfc.md";

/// Levels of RFC 2119, and `says` for what an RFC states of a server without one of its words.
const LEVELS: [&str; 7] = ["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "RECOMMENDED", "NOT RECOMMENDED", "says"];

/// No longer than a line or two: a rule is named, not copied.
const TEXT_CHARACTERS_MAX: usize = 200;

const LINE_CHARACTERS_MAX: usize = 118;

// ---- the rules ----

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    level: String,
    text: String,
    /// Why it is not kept.
    not: Option<String>,
    /// What of it is not kept, or is kept in another way.
    but: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rfc {
    number: u16,
    title: String,
    /// Which sections were read for the table.
    read: String,
    /// Which were not.
    unread: String,
    /// By section, and by number inside it.
    #[serde(default)]
    rules: BTreeMap<String, BTreeMap<String, Rule>>,
}

/// `8656-7.2-5`: sorted as a reader expects.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Id {
    rfc: u16,
    section: Vec<u16>,
    number: u16,
}

impl Id {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (rfc, section, number) = (parts.next()?, parts.next()?, parts.next()?);
        if rfc.len() != 4 || parts.next().is_some() {
            return None;
        }
        let section: Option<Vec<u16>> = section.split('.').map(|part| part.parse().ok()).collect();
        Some(Self { rfc: rfc.parse().ok()?, section: section?, number: number.parse().ok()? })
    }

    fn section(&self) -> String {
        self.section.iter().map(u16::to_string).collect::<Vec<_>>().join(".")
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.rfc, self.section(), self.number)
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rfcs() -> Vec<Rfc> {
    let files = fs::read_dir(root().join("tests/rfc")).expect("tests/rfc").map(|entry| entry.expect("a file").path());
    let mut rfcs: Vec<Rfc> = files
        .map(|path| {
            let text = fs::read_to_string(&path).expect("readable");
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect();
    // The two that all others extend come first.
    rfcs.sort_by_key(|rfc| (rfc.number != 8489, rfc.number != 8656, rfc.number));
    rfcs
}

fn rules_of(rfc: &Rfc) -> BTreeMap<Id, &Rule> {
    let rules =
        rfc.rules.iter().flat_map(|(section, rules)| rules.iter().map(move |(number, rule)| (section, number, rule)));
    rules
        .map(|(section, number, rule)| {
            let text = format!("{}-{section}-{number}", rfc.number);
            (Id::parse(&text).unwrap_or_else(|| panic!("{text} is no number of a rule")), rule)
        })
        .collect()
}

// ---- what cites them ----

/// The ids in one line of comment, or the text in brackets that looks like one and is none.
fn cited(line: &str) -> Result<Vec<Id>, String> {
    let mut found = Vec::new();
    for part in line.split('[').skip(1) {
        let Some((group, _)) = part.split_once(']') else { continue };
        let is_citation =
            group.len() > 5 && group.as_bytes()[4] == b'-' && group[..4].bytes().all(|c| c.is_ascii_digit());
        if !is_citation {
            continue;
        }
        for item in group.split(", ") {
            let id = match (item.strip_prefix('-'), found.last()) {
                (Some(number), Some(Id { rfc, section, .. })) => {
                    number.parse().ok().map(|number| Id { rfc: *rfc, section: section.clone(), number })
                }
                _ => Id::parse(item),
            };
            found.push(id.ok_or_else(|| group.to_owned())?);
        }
    }
    Ok(found)
}

/// Who keeps or proves a rule: an item of code, or a test.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    is_test: bool,
    /// Below `src` or `tests`.
    file: String,
    /// `None` is the whole file.
    item: Option<String>,
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// Kind and name of the item whose head a line is: `fn`, `check_allocate`.
fn item_head(line: &str) -> Option<(&str, &str)> {
    let modifiers = ["pub", "pub(super)", "pub(crate)", "const", "async", "unsafe", "extern", "default"];
    let mut words = line.split_whitespace().peekable();
    let mut last = "";
    while words.peek().is_some_and(|word| modifiers.contains(word)) {
        last = words.next().unwrap_or_default();
    }
    let kinds = ["fn", "struct", "enum", "trait", "mod", "static", "type", "impl"];
    let name_of = |word: &str| word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
    let first = words.next()?;
    if last == "const" && first.ends_with(':') {
        return Some(("const", first.trim_end_matches(':')));
    }
    let kind = kinds.into_iter().find(|kind| first == *kind || (*kind == "impl" && first.starts_with("impl<")))?;
    if kind == "impl" {
        let of = line
            .split_once(" for ")
            .map_or_else(|| line.trim_start().split_once(' ').map(|(_, of)| of), |(_, of)| Some(of))?;
        return Some((kind, &of[..name_of(of)]));
    }
    let name = words.next()?;
    Some((kind, &name[..name_of(name)]))
}

/// The line with the head of the item around a line, and of all items around that.
fn around(lines: &[&str], at: usize) -> Option<usize> {
    let mut limit = indent(lines[at]);
    (0..at).rev().find(|above| {
        let line = lines[*above];
        if line.trim().is_empty() || is_comment(line) || indent(line) >= limit {
            return false;
        }
        if item_head(line).is_some() {
            return true;
        }
        // The end of a head that began above at the same margin: its beginning is still to come.
        let is_end = line.trim_start().starts_with([')', '}', '{']) || line.trim() == "where";
        limit = indent(line) + usize::from(is_end);
        false
    })
}

/// The item that a comment speaks of: the one whose head follows, or else the one around it.
fn item_at(lines: &[&str], comment: usize) -> Option<usize> {
    let is_between = |line: &&&str| is_comment(line) || line.trim_start().starts_with("#[");
    let next = comment + lines[comment..].iter().take_while(is_between).count();
    let is_head = lines.get(next).is_some_and(|line| item_head(line).is_some());
    if is_head { Some(next) } else { around(lines, comment) }
}

fn is_test_function(lines: &[&str], head: usize, text: &str) -> bool {
    let above = lines[..head].iter().rev().take_while(|line| is_comment(line) || line.trim_start().starts_with("#["));
    let mut attributes = above.filter(|line| !is_comment(line));
    let in_macro = || lines[head].ends_with("(workers: u8) {") && text.contains("with_one_and_three_workers! {");
    attributes.any(|line| line.trim() == "#[test]") || in_macro()
}

/// Every citation of a source file; what is wrong with those that are none.
fn citations(folder: &str, file: &str, text: &str, wrong: &mut Vec<String>) -> Vec<(Id, Place)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_comment(line)) {
        let ids = cited(line).unwrap_or_else(|group| {
            wrong.push(format!("{folder}/{file}:{}: [{group}] is no number of a rule", at + 1));
            Vec::new()
        });
        if ids.is_empty() {
            continue;
        }
        let head = item_at(&lines, at).filter(|_| !line.starts_with("//!"));
        let is_test = head.is_some_and(|head| is_test_function(&lines, head, text));
        if folder == "tests" && !is_test {
            wrong.push(format!("{folder}/{file}:{}: a citation stands before no test", at + 1));
        }
        let item = head.and_then(|head| {
            let (kind, name) = item_head(lines[head])?;
            let owner =
                around(&lines, head).and_then(|around| item_head(lines[around])).filter(|(kind, _)| *kind == "impl");
            Some(match owner {
                Some((_, owner)) if kind == "fn" => format!("{owner}::{name}"),
                _ => name.to_owned(),
            })
        });
        found.extend(ids.into_iter().map(|id| (id, Place { is_test, file: file.to_owned(), item: item.clone() })));
    }
    found
}

fn all_citations(wrong: &mut Vec<String>) -> BTreeMap<Id, BTreeSet<Place>> {
    let mut found: BTreeMap<Id, BTreeSet<Place>> = BTreeMap::new();
    for folder in ["src", "tests"] {
        let base = root().join(folder);
        let mut open = vec![base.clone()];
        while let Some(next) = open.pop() {
            if next.is_dir() {
                open.extend(fs::read_dir(&next).expect("a folder").map(|entry| entry.expect("an entry").path()));
                continue;
            }
            let file = next.strip_prefix(&base).expect("inside").to_string_lossy().into_owned();
            // This file's own examples cite nothing.
            if !is_rust(&next) || file == "rfc_table.rs" {
                continue;
            }
            let text = fs::read_to_string(&next).expect("a readable source");
            for (id, place) in citations(folder, &file, &text, wrong) {
                found.entry(id).or_default().insert(place);
            }
        }
    }
    found
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

// ---- what is wrong ----

fn problems(id: &Id, rule: &Rule, places: &BTreeSet<Place>) -> Vec<String> {
    let mut wrong = Vec::new();
    if !LEVELS.contains(&&*rule.level) {
        wrong.push(format!("{id}: {:?} is no level; there are {LEVELS:?}", rule.level));
    }
    if rule.text.is_empty() || rule.text.chars().count() > TEXT_CHARACTERS_MAX {
        wrong.push(format!("{id}: its text has no character or more than {TEXT_CHARACTERS_MAX}"));
    }
    if [&rule.not, &rule.but].into_iter().flatten().any(String::is_empty) {
        wrong.push(format!("{id}: a reason says nothing"));
    }
    match (&rule.not, places.is_empty()) {
        (None, true) => wrong.push(format!("{id}: neither code nor test cites it, and no reason says why (`not`)")),
        (Some(_), false) => wrong.push(format!("{id}: is cited and has `not`; what is kept in part has `but`")),
        (None, false) | (Some(_), true) => {}
    }
    if rule.not.is_some() && rule.but.is_some() {
        wrong.push(format!("{id}: has `not` and `but`"));
    }
    wrong
}

// ---- the page ----

/// `file.rs`: `one`, `two`; ...
fn places(of: &BTreeSet<Place>, is_test: bool) -> String {
    let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for place in of.iter().filter(|place| place.is_test == is_test) {
        files.entry(&place.file).or_default().extend(place.item.as_deref());
    }
    let file = |(file, items): (&&str, &Vec<&str>)| {
        let items: Vec<String> = items.iter().map(|item| format!("`{item}`")).collect();
        if items.is_empty() { format!("`{file}`") } else { format!("`{file}`: {}", items.join(", ")) }
    };
    files.iter().map(file).collect::<Vec<_>>().join("; ")
}

fn row(page: &mut String, id: &Id, rule: &Rule, of: &BTreeSet<Place>) {
    let or = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
    let but = rule.but.as_ref().map_or_else(String::new, |but| format!(" *But:* {but}"));
    let (code, tests) = match &rule.not {
        Some(reason) => (format!("*not kept:* {reason}"), "–".to_owned()),
        None => (or(places(of, false), "no place of its own"), or(places(of, true), "no test")),
    };
    let _ =
        writeln!(page, "| {}-{} | {} | {}{but} | {code} | {tests} |", id.section(), id.number, rule.level, rule.text);
}

const HEAD: &str = "\
# RFCs, rule by rule

This table is made from the source by `tests/rfc_table.rs`: do not edit it. It has each rule of the RFCs below that
concerns a server, in our own words, with the code that keeps it and the tests that prove it, or with the reason why
it is not kept. Rules for clients and for authors of other RFCs are left out. *says* marks what an RFC states without
a word such as MUST. Files of code are below `src`, files of tests below `tests`, or below `src` if a test stands
beside its code. A rule's number is its section and its place there: 7.2-5 of RFC 8656 is cited as `[8656-7.2-5]` in
comments.

";

/// In lines of a page, the later ones with this before them.
fn wrapped(text: &str, hanging: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("the first");
        if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > LINE_CHARACTERS_MAX {
            lines.push(format!("{hanging}{word}"));
        } else {
            let space = if line.is_empty() { "" } else { " " };
            line.push_str(space);
            line.push_str(word);
        }
    }
    lines.join("\n")
}

fn page(rfcs: &[Rfc], cited: &BTreeMap<Id, BTreeSet<Place>>) -> String {
    let none = BTreeSet::new();
    let mut page = HEAD.to_owned();
    page.push_str("| RFC | rules | kept and tested | kept, no test | not kept |\n|---|---|---|---|---|\n");
    for rfc in rfcs {
        let rules = rules_of(rfc);
        let not = rules.values().filter(|rule| rule.not.is_some()).count();
        let has_test = |id: &Id| cited.get(id).is_some_and(|places| places.iter().any(|place| place.is_test));
        let tested = rules.keys().filter(|id| has_test(id)).count();
        let (all, untested) = (rules.len(), rules.len() - not - tested);
        let _ = writeln!(page, "| [{0}](#rfc-{0}) | {all} | {tested} | {untested} | {not} |", rfc.number);
    }
    for rfc in rfcs {
        let _ = writeln!(page, "\n## RFC {}\n\n{}", rfc.number, wrapped(&format!("{}.", rfc.title), ""));
        for (of, sections) in [("Read", &rfc.read), ("Not read", &rfc.unread)] {
            let _ = write!(page, "\n{}", wrapped(&format!("* {of}: {sections}."), "  "));
        }
        page.push('\n');
        let rules = rules_of(rfc);
        if rules.is_empty() {
            continue;
        }
        page.push_str("\n| rule | level | what it asks | kept by | proved by |\n|---|---|---|---|---|\n");
        for (id, rule) in rules {
            row(&mut page, &id, rule, cited.get(&id).unwrap_or(&none));
        }
    }
    page
}

#[test]
fn every_rule_is_kept_somewhere_or_has_a_reason() {
    let mut wrong = Vec::new();
    let cited = all_citations(&mut wrong);
    let rfcs = rfcs();
    let rules: BTreeMap<Id, &Rule> = rfcs.iter().flat_map(rules_of).collect();
    let none = BTreeSet::new();
    wrong.extend(rules.iter().flat_map(|(id, rule)| problems(id, rule, cited.get(id).unwrap_or(&none))));
    for (id, places) in cited.iter().filter(|(id, _)| !rules.contains_key(id)) {
        let files: BTreeSet<&str> = places.iter().map(|place| &*place.file).collect();
        wrong.push(format!("{id}: cited by {files:?}, but tests/rfc has no such rule"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rules.len() > 200, "only {} rules", rules.len());
}

/// With UPDATE_SNAPSHOTS=1 the page is written anew.
#[test]
fn the_page_of_rules_is_made_from_the_source() {
    let path = root().join(PAGE);
    let wanted = page(&rfcs(), &all_citations(&mut Vec::new()));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, wanted).expect("writable");
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted, "{PAGE} is stale; run again with UPDATE_SNAPSHOTS=1");
    }
    assert!(found == wanted, "{PAGE} is stale; run again with UPDATE_SNAPSHOTS=1");
}

// ---- the check can fail ----

#[test]
fn rules_without_a_place_or_a_reason_are_found() {
    let rule = |not: Option<&str>, but: Option<&str>| Rule {
        level: "MUST".to_owned(),
        text: "a rule".to_owned(),
        not: not.map(str::to_owned),
        but: but.map(str::to_owned),
    };
    let id = Id::parse("8656-7.2-5").unwrap();
    let kept = BTreeSet::from([Place { is_test: false, file: "a.rs".to_owned(), item: None }]);
    let none = BTreeSet::new();
    let count = |rule: &Rule, places| problems(&id, rule, places).len();
    assert_eq!(count(&rule(None, None), &kept), 0);
    assert_eq!(count(&rule(Some("later"), None), &none), 0);
    assert_eq!(count(&rule(None, Some("not all")), &kept), 0);
    assert_eq!(count(&rule(None, None), &none), 1, "neither");
    assert_eq!(count(&rule(None, Some("not all")), &none), 1, "a part of nothing");
    assert_eq!(count(&rule(Some("later"), None), &kept), 1, "both");
    assert_eq!(count(&rule(Some(""), None), &none), 1, "a reason that says nothing");
    assert_eq!(count(&Rule { level: "OUGHT".to_owned(), ..rule(None, None) }, &kept), 1);
    assert_eq!(count(&Rule { text: "x".repeat(201), ..rule(None, None) }, &kept), 1);
}

#[test]
fn citations_are_read_with_the_item_that_they_stand_at() {
    let text = "\
//! A file. [8656-1-1]

/// A lifetime. [8656-9-1]
pub const LIFETIME: u64 = 300;

impl<'a> Writer<'a> {
    /// Ends it. [8489-14-1, -2]
    #[must_use]
    pub fn finish(
        &mut self,
    ) -> Option<usize> {
        if self.is_long() {
            // Too long. [8489-5-4]
            return None;
        } else {
            // [2026-99] [see 8656-7.2-5] [`link`]
        }
        let text = \"[8656-9-9]\";
    }
}

#[cfg(test)]
mod tests {
    // RFC 8489 §14.1 [8489-14.1-1]
    #[test]
    fn it_ends() {}
}
";
    let mut wrong = Vec::new();
    let found = citations("src", "wire/writer.rs", text, &mut wrong);
    let found: Vec<String> = found
        .iter()
        .map(|(id, place)| format!("{id} {} {}", place.item.as_deref().unwrap_or("-"), place.is_test))
        .collect();
    assert_eq!(
        found,
        [
            "8656-1-1 - false",
            "8656-9-1 LIFETIME false",
            "8489-14-1 Writer::finish false",
            "8489-14-2 Writer::finish false",
            "8489-5-4 Writer::finish false",
            "8489-14.1-1 it_ends true",
        ]
    );
    assert_eq!(wrong, ["src/wire/writer.rs:16: [2026-99] is no number of a rule"]);
}

#[test]
fn a_citation_in_tests_stands_before_a_test() {
    let text = "\
// RFC 8656 §9 [8656-9-1]
fn helper() {}

with_one_and_three_workers! {
    /// RFC 8656 §9 [8656-9-2]
    fn it_is_so(workers: u8) {
    }
}
";
    let mut wrong = Vec::new();
    let found = citations("tests", "e2e_relay.rs", text, &mut wrong);
    assert_eq!(found.iter().map(|(_, place)| place.is_test).collect::<Vec<_>>(), [false, true]);
    assert_eq!(wrong, ["tests/e2e_relay.rs:1: a citation stands before no test"]);
}
