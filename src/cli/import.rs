//! `import-coturn` and `import-eturnal`: read, convert, write the result and the verdicts.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::config::Config;
use crate::failure::Failure;
use crate::import::coturn::Input;
use crate::import::database::{self, Table};
use crate::import::draft::Draft;
use crate::import::verdict::Verdict;
use crate::import::{coturn, eturnal, lines};
use crate::printable::printable;

/// Where a person must look.
const NEEDS_A_PERSON: u8 = 3;

/// Where coturn is configured if nothing else is said.
const COTURN_FILE: &str = "/etc/turnserver.conf";

/// Where eturnal is.
const ETURNAL_FILE: &str = "/etc/eturnal.yml";

pub(super) const HELP: &str = "The configuration goes to standard output, a verdict on each line of the old one to standard error:\n\
carried, implied (it is so in any case), dropped, changed (on purpose), or needs you. Secrets are in the configuration only.\n\
Exit code: 0, or 3 if a person must look at something, or 2 if the input can't be read.";

#[derive(Args, Debug)]
pub(super) struct CoturnOptions {
    /// The configuration of coturn; - is standard input [default: /etc/turnserver.conf, unless a command line is given]
    file: Option<PathBuf>,
    /// The command line that coturn is started with
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
    /// Read this SQLite database instead of the one that the configuration names
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
    /// Read this table from CSV, such as turn_secret=secrets.csv; can be repeated
    #[arg(long, value_name = "TABLE=FILE")]
    csv: Vec<String>,
    /// Make log.level = "debug" of coturn's verbose
    #[arg(long)]
    keep_verbose: bool,
    #[command(flatten)]
    pub(super) output: OutputOptions,
}

#[derive(Args, Debug)]
pub(super) struct EturnalOptions {
    /// The configuration of eturnal; - is standard input [default: /etc/eturnal.yml]
    file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: OutputOptions,
}

#[derive(Args, Debug)]
pub(super) struct OutputOptions {
    /// Write the configuration to this new file, readable for its user and group only
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Check the result as check-config does
    #[arg(long)]
    check: bool,
    /// Print JSON: the configuration and the verdicts
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn import_coturn(options: &CoturnOptions) -> Result<(), Failure> {
    let named = lines::of_arguments(&options.arguments).file_named.map(PathBuf::from);
    let default = options.arguments.is_empty().then(|| PathBuf::from(COTURN_FILE));
    let path = options.file.clone().or(named).or(default);
    let bytes = path.as_deref().map_or(Ok(Vec::new()), read).map_err(Failure::Usage)?;
    let name = path.as_deref().map_or_else(|| "command line".to_owned(), name_of);
    let tables = tables(options)?;
    let input =
        Input { name: &name, file: &bytes, arguments: &options.arguments, tables, keep_verbose: options.keep_verbose };
    let directory = path.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
    let draft = coturn::import(input, &|database| read_database(&directory.join(database)));
    finish(draft, &name, &options.output)
}

pub(super) fn import_eturnal(options: &EturnalOptions) -> Result<(), Failure> {
    let path = options.file.clone().unwrap_or_else(|| PathBuf::from(ETURNAL_FILE));
    let shown = path.display();
    let bytes = read(&path).map_err(Failure::Usage)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::Usage(format!("{shown}: is not UTF-8 text; save it as UTF-8")))?;
    let name = name_of(&path);
    let draft = eturnal::import(&name, &text).map_err(|error| Failure::Usage(format!("{shown}: {error}")))?;
    finish(draft, &name, &options.output)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    if path.as_os_str() == "-" { lines::read_stdin() } else { lines::read_file(path) }
}

fn name_of(path: &Path) -> String {
    match path.file_name() {
        // It stands in comments of the result.
        Some(name) if path.as_os_str() != "-" => printable(&name.to_string_lossy()).into_owned(),
        Some(_) | None => "standard input".to_owned(),
    }
}

/// The tables that the command names.
fn tables(options: &CoturnOptions) -> Result<Vec<Table>, Failure> {
    let mut tables = Vec::new();
    if let Some(path) = &options.database {
        let read = read_database(path).map_err(|error| format!("{}: {error}", path.display()));
        tables.extend(read.map_err(Failure::Usage)?);
    }
    for named in &options.csv {
        let (table, path) = named.split_once('=').ok_or_else(|| {
            Failure::Usage(format!("--csv {named}: expected TABLE=FILE, such as turn_secret=secrets.csv"))
        })?;
        let bytes = lines::read_file(Path::new(path)).map_err(Failure::Usage)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::Usage(format!("{path}: is not UTF-8 text; print it as UTF-8")))?;
        let name = name_of(Path::new(path));
        tables.push(database::of_csv(&name, table, &text).map_err(|error| Failure::Usage(format!("{path}: {error}")))?);
    }
    Ok(tables)
}

fn read_database(path: &Path) -> Result<Vec<Table>, String> {
    // What stands beside the file is not in it yet.
    for (end, remedy) in [("-wal", "PRAGMA wal_checkpoint(TRUNCATE)"), ("-journal", "SELECT 1 FROM sqlite_schema")] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(end);
        if std::fs::metadata(&beside).is_ok_and(|beside| beside.len() > 0) {
            let shown = path.display();
            return Err(format!(
                "has changes beside it ({end}) that are not in it: stop coturn and run `sqlite3 {shown} \"{remedy}\"`"
            ));
        }
    }
    let bytes = lines::read_database(path)?;
    database::of_sqlite(&name_of(path), &bytes)
}

/// Writes the result and the verdicts, and tells by the exit code whether a person must look.
fn finish(mut draft: Draft, name: &str, options: &OutputOptions) -> Result<(), Failure> {
    let at = options.output.as_deref().map_or_else(|| "config.toml".into(), Path::to_string_lossy);
    let checked = options.check.then(|| draft.check(name, &at));
    let text = draft.text(name);
    let verdicts = draft.sorted();
    if let Some(path) = &options.output {
        write_new(path, &text).map_err(|error| {
            let is_there = error.kind() == io::ErrorKind::AlreadyExists;
            let remedy = if is_there { "; no file is replaced: give another name, or remove it first" } else { "" };
            Failure::Usage(format!("--output {}: {error}{remedy}", path.display()))
        })?;
    }
    let mut out = io::stdout().lock();
    if options.json {
        let list: Vec<_> = verdicts.iter().map(Verdict::to_json).collect();
        let answer =
            json!({ "config": text, "verdicts": list, "needs_you": verdicts.iter().any(Verdict::needs_a_person) });
        writeln!(out, "{answer}")?;
    } else {
        if options.output.is_none() {
            out.write_all(text.as_bytes())?;
        }
        out.flush()?;
        tell(&verdicts, checked.as_ref())?;
    }
    out.flush()?;
    if verdicts.iter().any(Verdict::needs_a_person) { Err(Failure::Reported(NEEDS_A_PERSON)) } else { Ok(()) }
}

fn tell(verdicts: &[Verdict], checked: Option<&Result<Config, String>>) -> io::Result<()> {
    let mut err = io::stderr().lock();
    for verdict in verdicts {
        writeln!(err, "{}", printable(&verdict.to_string()))?;
    }
    if let Some(Ok(config)) = checked {
        write!(err, "\nThe result is valid. The server will do this:\n\n{}", config.describe())?;
    }
    Ok(())
}

/// Writes a file that was not there.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
