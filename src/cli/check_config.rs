//! `check-config`: what a configuration will do, read with the rights that the server will have.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::config::{Config, ConfigError, Environment};
use crate::failure::Failure;
use crate::net::{User, effective_uid, give_back};

/// The user that the unit runs the server as.
const UNIT_USER: &str = "throughway";

/// With whose rights the files were read.
struct ConfigReader {
    /// Another user than the one who asked.
    other: Option<String>,
    /// What to tell besides.
    warning: Option<String>,
}

pub(super) fn run(file: &Path, user: Option<&str>, json: bool) -> Result<(), Failure> {
    // Read first: root may check a draft that lies where the server's user can't go.
    let text = Config::read(file);
    let reader = become_reader(file, user)?;
    let checked: Result<Config, ConfigError> =
        text.and_then(|text| Config::of_text(file, &text, &Environment::of_process())).map(super::with_advice);
    let mut out = io::stdout().lock();
    match checked {
        Ok(config) if json => {
            let mut answer = config.describe_json();
            answer["checked_as"] = reader.other.as_deref().into();
            if let (Some(warning), Some(list)) = (&reader.warning, answer["warnings"].as_array_mut()) {
                list.push(serde_json::json!({ "file": file, "message": warning }));
            }
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
            if let Some(warning) = &reader.warning {
                writeln!(out, "{:<11} {name}: {warning}", "warning")?;
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
    let own = ConfigReader { other: None, warning: None };
    let name = match user {
        Some(name) => name,
        None if is_root => UNIT_USER,
        None => return Ok(own),
    };
    let wrong = |what: String| Failure::Usage(format!("--as {name}: {what}"));
    let found = User::find(name).map_err(|error| wrong(error.to_string()))?;
    let Some(found) = found else {
        // Without the unit's user there is no unit: a container, or a first try.
        return if user.is_none() { Ok(own) } else { Err(wrong("there is no such user".to_owned())) };
    };
    if user.is_some() && !is_root && found.uid() != effective_uid() {
        return Err(wrong("only root can check with the rights of another user; try sudo".to_owned()));
    }
    found.take_rights().map_err(|error| wrong(error.to_string()))?;
    let other = (!is_root || found.uid() != 0).then(|| name.to_owned());
    let Err(error) = File::open(file) else { return Ok(ConfigReader { other, warning: None }) };
    let remedy = format!("chgrp {name} {0}; chmod 0640 {0}, in a directory that {name} can enter", file.display());
    if user.is_some() {
        return Err(Failure::Usage(format!("{}: the user {name} can't read it: {error}; {remedy}", file.display())));
    }
    give_back().map_err(|error| wrong(error.to_string()))?;
    let warning = format!(
        "the user {name} can't read it, so the unit could not start with it: {remedy}. Checked with all rights"
    );
    Ok(ConfigReader { other: None, warning: Some(warning) })
}
