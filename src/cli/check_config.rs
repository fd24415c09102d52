//! `check-config`: what a configuration will do, read with the rights that the server will have.

use std::io::{self, Write as _};
use std::path::Path;

use crate::config::error::{ConfigError, Problem, SourceLocation};
use crate::config::{Config, Environment};
use crate::failure::Failure;
use crate::files;
use crate::net::{User, effective_uid, give_back};
use crate::ops::places;

/// The user that the unit runs the server as.
const UNIT_USER: &str = "throughway";

/// With whose rights the files were read.
struct ConfigReader {
    /// Another user than the one who asked.
    other: Option<String>,
    /// These are the rights that the server will have.
    is_server: bool,
    /// Why the server could not read the file itself.
    unreadable: Option<Problem>,
}

pub(super) fn run(file: &Path, user: Option<&str>, json: bool) -> Result<(), Failure> {
    // Read first: what is wrong inside is told also where the server's user can't go.
    let text = Config::read(file);
    let reader = become_reader(file, user)?;
    let checked = text.and_then(|text| Config::of_text(file, &text, &Environment::of_process()));
    let checked = match (checked, reader.unreadable) {
        (checked, None) => checked,
        (Ok(_), Some(problem)) => Err(problem.into()),
        (Err(mut error), Some(problem)) => {
            error.problems.push(problem);
            Err(error)
        }
    };
    let checked = checked.map(super::with_advice).and_then(|mut config| {
        let obstructed = places::obstructed(&config);
        if !obstructed.is_empty() {
            let problem = |(key, text)| Problem::new(SourceLocation::Nowhere, key, text);
            return Err(ConfigError { problems: obstructed.into_iter().map(problem).collect() });
        }
        let places = places::unwritable(&config, reader.is_server);
        let warnings = places.into_iter().map(|(key, text)| Problem::new(SourceLocation::Nowhere, key, text));
        config.warnings.extend(warnings);
        Ok(config)
    });
    let mut out = io::stdout().lock();
    match checked {
        Ok(config) if json => {
            let mut answer = config.describe_json();
            answer["checked_as"] = reader.other.as_deref().into();
            writeln!(out, "{answer}")?;
        }
        Ok(config) => {
            let name = file.display();
            write!(out, "{name} is valid. The server will do this:\n\n{}", config.describe())?;
            if let Some(user) = &reader.other {
                writeln!(
                    out,
                    "{:<11} as the user {user}, as in the unit; --as root checks with all rights",
                    "checked"
                )?;
            }
        }
        Err(error) if json => {
            writeln!(out, "{}", error.describe_json())?;
            return Err(Failure::Reported(2));
        }
        Err(error) => {
            if let Some(user) = &reader.other {
                let name = file.display();
                return Err(Failure::Usage(format!(
                    "{error}\n{name}: checked as the user {user}, as in the unit; --as root checks with all rights"
                )));
            }
            return Err(error.into());
        }
    }
    Ok(())
}

/// Takes the rights of the user who was named, or of the unit's if root asks.
fn become_reader(file: &Path, user: Option<&str>) -> Result<ConfigReader, Failure> {
    let is_root = effective_uid() == 0;
    // Without a unit the one who asks may be the one who starts the server.
    let unit = User::find(UNIT_USER).ok().flatten();
    let is_unit = |uid: u32| unit.as_ref().is_none_or(|unit| unit.uid() == uid);
    let name = match user {
        Some(name) => name,
        None if is_root => UNIT_USER,
        None => return Ok(ConfigReader { other: None, is_server: is_unit(effective_uid()), unreadable: None }),
    };
    let wrong = |what: String| Failure::Usage(format!("--as {name}: {what}"));
    let found = User::find(name).map_err(|error| wrong(error.to_string()))?;
    let Some(found) = found else {
        // Without the unit's user there is no unit: a container, or a first try.
        let own = ConfigReader { other: None, is_server: true, unreadable: None };
        return if user.is_none() { Ok(own) } else { Err(wrong("there is no such user".to_owned())) };
    };
    if user.is_some() && !is_root && found.uid() != effective_uid() {
        return Err(wrong("only root can check with the rights of another user; try sudo".to_owned()));
    }
    found.take_rights().map_err(|error| wrong(error.to_string()))?;
    let other = (!is_root || found.uid() != 0).then(|| name.to_owned());
    let is_server = found.uid() != 0 || is_unit(0);
    let error = match files::open(file) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !files::is_passed(file) => error,
        // Whatever else it is was told when it was read.
        Ok(_) | Err(_) => return Ok(ConfigReader { other, is_server, unreadable: None }),
    };
    let remedy = format!("chgrp {name} {0}; chmod 0640 {0}, in a directory that {name} can enter", file.display());
    if user.is_some() {
        return Err(Failure::Usage(format!("{}: the user {name} can't read it: {error}; {remedy}", file.display())));
    }
    give_back().map_err(|error| wrong(error.to_string()))?;
    let message = format!(
        "the user {name} can't read it, so the unit can't start with it: {remedy}. For a draft that lies elsewhere: --as root"
    );
    let unreadable = Problem::new(SourceLocation::WholeFile(file.to_owned()), "", message);
    Ok(ConfigReader { other: None, is_server: false, unreadable: Some(unreadable) })
}
