//! What the documentation says about the code is true: names exist, lists are complete, the unit fits.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use throughway::api::rest::refused::IssueRefused;
use throughway::config::coturn::{CoturnOption, OPTIONS};
use throughway::protocol::reason::{DropReason, EndReason};
use throughway::protocol::reject::RejectReason;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every text between single backticks, fenced blocks aside.
fn code_spans(markdown: &str) -> Vec<String> {
    let mut spans = Vec::new();
    let mut fenced = false;
    let mut prose = String::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    for (at, part) in prose.split('`').enumerate() {
        if at % 2 == 1 {
            spans.push(part.to_owned());
        }
    }
    spans
}

fn section<'a>(markdown: &'a str, heading: &str) -> &'a str {
    let start = markdown.find(heading).unwrap_or_else(|| panic!("no section {heading:?}"));
    let body = &markdown[start + heading.len()..];
    &body[..body.find("\n## ").unwrap_or(body.len())]
}

/// The file of the longest leading part of a path that is a module, and what is left of the path.
fn module_file<'p>(path: &'p [&'p str]) -> Option<(PathBuf, &'p [&'p str])> {
    (1..=path.len()).rev().find_map(|count| {
        let module = root().join("src").join(path[..count].join("/"));
        [module.with_extension("rs"), module.join("mod.rs")]
            .into_iter()
            .find(|file| file.is_file())
            .map(|file| (file, &path[count..]))
    })
}

fn is_word_at(text: &str, at: usize, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    !text[..at].chars().next_back().is_some_and(is_part) && !text[at + word.len()..].chars().next().is_some_and(is_part)
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| is_word_at(text, at, word))
}

fn defines(text: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "const", "type", "mod"]
        .iter()
        .any(|kind| has_word(text, &format!("{kind} {name}")))
}

/// The bodies of a type's definition and of its `impl` blocks: from such a line to the next `}` at the margin.
fn blocks_of(text: &str, type_name: &str) -> String {
    let mut blocks = String::new();
    let mut inside = false;
    for line in text.lines() {
        let at_margin = !line.starts_with([' ', '}']);
        if at_margin && (line.starts_with("impl") || has_word(line, "enum") || has_word(line, "struct")) {
            let of = line.rsplit_once(" for ").map_or(line, |(_, of)| of);
            inside = has_word(of, type_name);
        }
        if inside {
            blocks.push_str(line);
            blocks.push('\n');
        }
        if line.starts_with('}') {
            inside = false;
        }
    }
    blocks
}

/// The bodies of macros that make a type of this name.
fn macros_of(text: &str, type_name: &str) -> String {
    let of_macros = text.split("\nmacro_rules!").skip(1).filter_map(|rest| rest.split("\n}\n").next());
    of_macros.filter(|body| has_word(body, &format!("enum {type_name}"))).collect()
}

/// Why a path such as `net::worker::Worker::run` names nothing; `None` if it does.
fn missing(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split("::").collect();
    let Some((file, rest)) = module_file(&parts) else { return Some(format!("{path}: no such module")) };
    let text = fs::read_to_string(&file).unwrap();
    let found = match rest {
        [] => true,
        [name] => defines(&text, name),
        [type_name, member] => {
            let blocks = blocks_of(&text, type_name) + &macros_of(&text, type_name);
            has_word(&blocks, &format!("fn {member}"))
                || blocks.lines().any(|line| {
                    line.strip_prefix("    ").is_some_and(|line| line.starts_with(member) && is_word_at(line, 0, member))
                })
                // Variants that a macro makes.
                || (text.contains(&format!("enum {type_name}")) && has_word(&text, &format!("{member} =")))
        }
        _ => false,
    };
    (!found).then(|| format!("{path}: not in {}", file.strip_prefix(root()).unwrap().display()))
}

#[test]
fn every_name_in_the_packet_walks_exists_at_that_path() {
    let text = read("docs/architecture.md");
    let walks = section(&text, "## Packet walks");
    let names: BTreeSet<String> = code_spans(walks).into_iter().filter(|span| span.contains("::")).collect();
    assert!(names.len() > 80, "the walks name only {} things", names.len());
    let missing: Vec<String> = names.iter().filter_map(|name| missing(name)).collect();
    assert!(missing.is_empty(), "docs/architecture.md names what does not exist:\n{}", missing.join("\n"));
    let walks: Vec<&str> = walks.split("\n### ").skip(1).collect();
    assert_eq!(walks.len(), 9, "nine walks");
    for walk in walks {
        let title = walk.lines().next().unwrap_or_default();
        let steps: Vec<&str> =
            walk.lines().skip(1).filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).collect();
        assert!((5..=8).contains(&steps.len()), "{title}: {} steps", steps.len());
        let numbers = steps.iter().enumerate().all(|(at, step)| step.starts_with(&format!("{}. ", at + 1)));
        assert!(numbers, "{title}: its steps are numbered in order");
    }
}

#[test]
fn the_check_of_names_can_fail() {
    assert_eq!(missing("net::worker::Worker::run"), None);
    for wrong in ["net::worker::Worker::fly", "net::worker::Queue::run", "net::wing::fly", "wire::classified"] {
        assert!(missing(wrong).is_some(), "{wrong}");
    }
}

#[test]
fn every_name_of_code_in_contributing_exists() {
    let names: BTreeSet<String> = code_spans(&read("CONTRIBUTING.md"))
        .into_iter()
        .filter(|span| span.contains("::") && !span.contains(' '))
        .collect();
    assert!(names.len() >= 8, "{names:?}");
    let missing: Vec<String> = names.iter().filter_map(|name| missing(name)).collect();
    assert!(missing.is_empty(), "CONTRIBUTING.md names what does not exist:\n{}", missing.join("\n"));
}

/// First cells of the tables in a section, without their backticks.
fn first_cells(section: &str) -> BTreeSet<String> {
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn metrics_in_the_code_and_in_the_manual_are_the_same() {
    // The last five register what they count.
    let files = [
        "src/ops/metrics.rs",
        "src/ops/metrics/process.rs",
        "src/api/mod.rs",
        "src/api/rest/counts.rs",
        "src/ops/upgrades.rs",
        "src/acme.rs",
        "src/ops/alternates.rs",
    ];
    let without_tests = |file| read(file).split("\n#[cfg(test)]\n").next().unwrap().to_owned();
    let code: String = files.map(without_tests).concat();
    let is_metric = |text: &&str| text.starts_with("throughway_") || text.starts_with("process_");
    let in_code: BTreeSet<String> = code.split('"').filter(is_metric).map(ToOwned::to_owned).collect();
    assert!(in_code.len() >= 40, "{in_code:?}");
    assert_eq!(first_cells(&read("docs/reference/metrics.md")), in_code);
}

#[test]
fn reasons_in_the_code_and_in_the_manual_are_the_same() {
    let page = read("docs/reference/reasons.md");
    let names = |names: Vec<&str>| names.into_iter().map(ToOwned::to_owned).collect::<BTreeSet<String>>();
    assert_eq!(
        first_cells(section(&page, "## Why a packet was dropped")),
        names(DropReason::ALL.iter().map(|reason| reason.name()).collect())
    );
    let refused = section(&page, "## Why a request was refused");
    assert_eq!(first_cells(refused), names(RejectReason::ALL.iter().map(|reason| reason.name()).collect()));
    for reason in RejectReason::ALL {
        let row = format!("| `{}` | {} |", reason.name(), reason.code().0);
        assert!(refused.contains(&row), "docs/reference/reasons.md lacks the row {row}");
    }
    let issuing = section(&page, "## Why no credential was issued");
    assert_eq!(first_cells(issuing), names(IssueRefused::ALL.iter().map(|refused| refused.name()).collect()));
    for refused in &IssueRefused::ALL {
        let row = format!("| `{}` | {} |", refused.name(), refused.status().as_u16());
        assert!(issuing.contains(&row), "docs/reference/reasons.md lacks the row {row}");
    }
    assert_eq!(
        first_cells(section(&page, "## Why a session ended")),
        names(EndReason::ALL.iter().map(|reason| reason.name()).collect())
    );
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Where the parenthesis closes that was open before the text; what strings hold does not count.
fn end_of_call(text: &str) -> usize {
    let (mut depth, mut quoted) = (1, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'(' if !quoted => depth += 1,
            b')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    panic!("a macro call has no end: {text:.60}");
}

/// The fixed pieces of the message of each log line from level info on, in one file.
fn log_messages(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    for level in ["error", "warn", "info"] {
        for (at, name) in text.match_indices(&format!("tracing::{level}!(")) {
            let call = &text[at + name.len()..];
            let call = &call[..end_of_call(call)];
            let Some(message) = call.split('"').rev().nth(1) else { continue };
            // A backslash at the end of a line takes the blanks that begin the next one.
            let message: String = message.split("\\\n").map(str::trim_start).collect();
            // What stands between braces is filled in.
            let pieces = message.split(['{', '}']).step_by(2);
            messages.extend(pieces.map(|piece| piece.trim().to_owned()).filter(|piece| piece.len() > 3));
        }
    }
    messages
}

#[test]
fn every_log_line_from_level_info_on_is_in_the_manual() {
    let page = read("docs/reference/log.md").replace('\n', " ");
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut seen = 0;
    for file in files.iter().filter(|file| !file.components().any(|part| part.as_os_str() == "demo")) {
        let text = fs::read_to_string(file).unwrap();
        // What a test writes is no line of the server.
        for message in log_messages(text.split("\n#[cfg(test)]\n").next().unwrap()) {
            seen += 1;
            assert!(
                page.contains(&message),
                "docs/reference/log.md lacks the log line {message:?} of {}",
                file.display()
            );
        }
    }
    assert!(seen >= 12, "only {seen} log lines were found in src");
}

fn unit_values<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_unit_starts_a_command_that_exists_and_may_bind_low_ports_and_nothing_else() {
    let unit = read("systemd/throughway.service");
    let [command] = unit_values(&unit, "ExecStart")[..] else { panic!("one ExecStart") };
    let mut words = command.split_whitespace();
    assert!(words.next().is_some_and(|binary| binary.ends_with("/throughway")));
    let arguments: Vec<&str> = words.collect();
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_throughway")).args([arguments[0], "--help"]).output().unwrap();
    assert!(output.status.success(), "`throughway {}` is no command", arguments[0]);
    let help = String::from_utf8(output.stdout).unwrap();
    for option in arguments.iter().filter(|argument| argument.starts_with("--")) {
        assert!(help.contains(option), "`throughway {}` has no {option}", arguments[0]);
    }
    for key in ["CapabilityBoundingSet", "AmbientCapabilities"] {
        assert_eq!(unit_values(&unit, key), ["CAP_NET_BIND_SERVICE"], "{key}");
    }
    let users = read("systemd/throughway.sysusers");
    for user in unit_values(&unit, "User") {
        assert!(
            users.lines().any(|line| line.starts_with(&format!("u {user} "))),
            "{user} is not in the sysusers file"
        );
    }
}

/// Every page of the repository: those at its top, and the manual with the decisions.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(PathBuf::from).into();
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    pages
}

/// The anchors of a page's headings, as mdBook and the usual forges make them.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in markdown.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        if fenced || !(1..=6).contains(&level) {
            continue;
        }
        let text = line[level..].trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        assert!(found.insert(anchor), "two headings of one page are the same: {line}");
    }
    found
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut links = 0;
    for page in pages() {
        let text = read(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            // An address is checked by the reader who clicks it.
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let path = root().join(if target.is_empty() { page.clone() } else { page.parent().unwrap().join(target) });
            assert!(path.exists(), "{} links to {target}, which does not exist", page.display());
            if !anchor.is_empty() {
                let found = anchors(&fs::read_to_string(&path).unwrap());
                assert!(found.contains(anchor), "{} links to {link}, and there are {found:?}", page.display());
            }
        }
    }
    assert!(links >= 150, "only {links} links were found");
}

/// The list of chapters has every page of the manual once; recipes and decisions have lists of their own.
#[test]
fn every_page_of_the_manual_is_a_chapter() {
    let listed = |list: &str| -> Vec<PathBuf> {
        let text = read(list);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        links.map(|link| Path::new(list).parent().unwrap().join(link)).collect()
    };
    let mut chapters = listed("docs/SUMMARY.md");
    for own in ["docs/decisions", "docs/recipes"] {
        let pages = listed(&format!("{own}/README.md")).into_iter();
        let is_of_it =
            |path: &PathBuf| path.extension().is_some_and(|of| of == "md") && !path.to_string_lossy().contains("..");
        chapters.extend(pages.filter(is_of_it));
    }
    chapters.push("docs/SUMMARY.md".into());
    chapters.sort();
    let mut pages = pages();
    pages.retain(|page| page.starts_with("docs"));
    pages.sort();
    let missing: Vec<_> = pages.iter().filter(|page| !chapters.contains(page)).collect();
    assert!(missing.is_empty(), "pages that are no chapter in docs/SUMMARY.md: {missing:?}");
    assert_eq!(chapters.len(), pages.len(), "a chapter is listed twice, or has no page: {chapters:?}");
}

/// Lines that a person reads in a terminal and in a review. Rows of tables can't be broken, nor what `throughway recipe`
/// prints for other programs.
#[test]
fn lines_of_the_manual_have_at_most_120_characters() {
    let mut long = Vec::new();
    for page in pages().iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        let mut fenced = false;
        for (number, line) in read(page).lines().enumerate() {
            fenced ^= line.starts_with("```");
            let is_printed = fenced && page.starts_with("docs/recipes");
            let can_be_broken = !is_printed && !line.starts_with('|') && line.trim_start().contains(' ');
            if line.chars().count() > 120 && can_be_broken {
                long.push(format!("{}:{}", page.display(), number + 1));
            }
        }
    }
    assert!(long.is_empty(), "longer than 120 characters:\n{}", long.join("\n"));
}

#[test]
fn every_path_over_http_is_in_the_manual() {
    let pages = read("docs/reference/http.md") + &read("docs/credentials.md");
    let paths = throughway::api::admin::paths().chain(throughway::api::rest::paths());
    let mut count = 0;
    for path in paths.chain(["/healthz", "/readyz", "/metrics"]) {
        count += 1;
        let shown =
            path.replace("/v1/sessions/{session}", "/v1/sessions/SESSION").replace("Accounts/{id}", "Accounts/{sid}");
        let is_there =
            [format!(" {shown}`"), format!(" {shown}?"), format!("`{shown}`")].iter().any(|form| pages.contains(form));
        // The older version of a path stands beside the newer one.
        let is_older = shown == "/_matrix/client/r0/voip/turnServer" && pages.contains("`/r0/`");
        assert!(is_there || is_older, "{path} is in neither page");
    }
    assert!(count > 20, "{count} paths");
}

// F-B11
#[test]
fn samples_of_the_manual_can_be_read() {
    let text = read("docs/app-server.md");
    let mut blocks =
        text.split("```").skip(1).step_by(2).filter(|block| block.starts_with("python") || block.starts_with("js"));
    assert!(blocks.clone().count() >= 3, "the samples are there");
    let golfed: Vec<&str> = blocks.by_ref().flat_map(str::lines).filter(|line| line.chars().count() > 100).collect();
    assert!(golfed.is_empty(), "lines that are too dense to read:\n{}", golfed.join("\n"));
}

// F-B11
#[test]
fn no_table_of_the_manual_is_cut_by_a_blank_line() {
    for file in pages() {
        let text = read(&file);
        let lines: Vec<&str> = text.lines().collect();
        for (at, window) in lines.windows(3).enumerate() {
            let is_cut = window[0].starts_with("| ") && window[1].is_empty() && window[2].starts_with("| ");
            // A head has its rule below it.
            let is_head = lines.get(at + 3).is_some_and(|line| line.starts_with("|---"));
            assert!(!is_cut || is_head, "{}:{}: a row without its table: {}", file.display(), at + 3, window[2]);
        }
    }
}

// F-B11
#[test]
fn nothing_stands_in_the_changelog_twice() {
    let text = read("CHANGELOG.md");
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("* ")) {
        let start: String = line.split(' ').take(6).collect::<Vec<_>>().join(" ");
        assert!(seen.insert(start.clone()), "twice: {start}");
    }
}

// F-D8
#[test]
fn a_comparison_says_with_whom() {
    for file in ["README.md", "CHANGELOG.md", "docs/performance.md"] {
        let text = read(file);
        // A sentence goes on over the ends of lines, but not into the next point of a list.
        for part in text.split("\n\n").flat_map(|paragraph| paragraph.split("\n* ")) {
            let part = part.replace('\n', " ");
            for clause in part
                .split(['.', ';', ':'])
                .filter(|clause| clause.contains("times less") || clause.contains("times cheaper"))
            {
                let is_head_of_number = clause.trim().chars().next().is_none_or(|first| first.is_ascii_digit());
                assert!(
                    is_head_of_number || clause.contains("coturn") || part.contains("than coturn"),
                    "{file}: {clause}"
                );
            }
        }
    }
}

// Of the wishes in the findings of November 2026: an operator sees what an old phone lacks.
#[test]
fn the_manual_names_every_cipher_suite() {
    let tls = read("docs/operating/certificates.md").replace('\n', " ");
    let mut count = 0;
    for suite in throughway::tls::provider().cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())) {
        let Some((exchange, cipher)) = suite.strip_prefix("TLS_").and_then(|name| name.split_once("_WITH_")) else {
            continue;
        };
        let cipher = cipher.replace("AES_", "AES").replace('_', "-");
        let cipher = cipher.strip_suffix("POLY1305-SHA256").map_or(cipher.clone(), |start| format!("{start}POLY1305"));
        let name = format!("{}-{cipher}", exchange.replace('_', "-"));
        count += 1;
        let of_ecdsa = name.replace("ECDHE-RSA", "ECDHE-ECDSA");
        assert!(
            tls.contains(&name) || (tls.contains(&of_ecdsa) && tls.contains("with `ECDHE-RSA`")),
            "{name} is not in the manual"
        );
    }
    assert_eq!(count, 6, "and no other");
}

/// A row of a table of coturn's options.
fn coturn_row(option: &CoturnOption, marks_gone: bool) -> String {
    let gone = if option.is_gone && marks_gone { " (gone)" } else { "" };
    format!("| `{}`{gone} | {} |\n", option.name, option.cell())
}

/// Both tables are made from the rows of `config::coturn`; with UPDATE_SNAPSHOTS=1 they are written anew.
#[test]
fn the_page_for_those_who_come_from_coturn_has_the_codes_table() {
    const HEAD: &str = "| option | what becomes of it |\n|---|---|\n";
    let page = read("docs/coming-from-coturn.md");
    let parts: Vec<&str> = page.split(HEAD).collect();
    let [start, frequent, all] = parts.as_slice() else { panic!("the page has two tables") };
    let (frequent, between) = frequent.split_once("\n\n").unwrap();
    let named = frequent.lines().map(|row| row.split('`').nth(1).unwrap_or_else(|| panic!("no option in {row}")));
    let option = |name: &str| OPTIONS.iter().find(|option| option.name == name).unwrap_or_else(|| panic!("{name}"));
    let frequent: String = named.map(|name| coturn_row(option(name), false)).collect();
    assert!(frequent.lines().count() >= 40);
    let rest = all.split_once("\n\n").map_or("", |(_, rest)| rest);
    let every: String = OPTIONS.iter().map(|option| coturn_row(option, true)).collect();
    let wanted = format!("{start}{HEAD}{frequent}\n{between}{HEAD}{every}{rest}");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(root().join("docs/coming-from-coturn.md"), wanted).unwrap();
        return;
    }
    for (line, wanted) in page.lines().zip(wanted.lines()) {
        assert_eq!(line, wanted, "docs/coming-from-coturn.md differs from config::coturn");
    }
    assert_eq!(page, wanted);
}

/// Language, its name in a fence, its program in examples/clients.
const CLIENTS: [(&str, &str, &str); 9] = [
    ("JavaScript", "js", "turn-credentials.mjs"),
    ("Python", "python", "turn_credentials.py"),
    ("Go", "go", "turn_credentials.go"),
    ("PHP", "php", "turn_credentials.php"),
    ("Ruby", "ruby", "turn_credentials.rb"),
    ("Java", "java", "TurnCredentials.java"),
    ("C#", "csharp", "TurnCredentials.cs"),
    ("Elixir", "elixir", "turn_credentials.exs"),
    ("Rust", "rust", "turn_credentials.rs"),
];

/// The page shows the files that tests/clients/run runs; with UPDATE_SNAPSHOTS=1 it is written anew.
#[test]
fn the_page_of_clients_shows_the_programs_that_are_tested() {
    let page = read("docs/clients.md");
    let introduction = page.split("\n## ").next().unwrap().trim_end();
    let mut wanted = introduction.to_owned() + "\n";
    for (language, fence, file) in CLIENTS {
        let program = read(format!("examples/clients/{file}"));
        let lines = program.lines().count();
        assert!(lines <= 65, "{file} has {lines} lines, more than a page");
        let too_long = program.lines().find(|line| line.chars().count() > 112);
        assert_eq!(too_long, None, "{file}: this line is too long for a page");
        wanted += &format!(
            "\n## {language}\n\n[examples/clients/{file}](../examples/clients/{file})\n\n```{fence}\n{program}```\n"
        );
    }
    let files = fs::read_dir(root().join("examples/clients")).unwrap().count();
    assert_eq!(files, CLIENTS.len(), "each program of examples/clients is on the page");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(root().join("docs/clients.md"), wanted).unwrap();
        return;
    }
    assert_eq!(page, wanted, "docs/clients.md differs from examples/clients; renew it with UPDATE_SNAPSHOTS=1");
}
