//! One step of an installation: how it looks as a command, and how it is done. Each may be done twice.

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files;
use crate::net::User;

/// What is done to this machine.
#[derive(Debug)]
pub(super) enum Step {
    /// Copies a program.
    Copy { from: PathBuf, to: &'static str },
    /// Writes a file that all may read.
    Write { path: &'static str, text: &'static str },
    /// Makes a directory that all may read.
    Directory(&'static str),
    /// Lets a group read a file, and no one else, if the file is there.
    ForGroup { path: &'static str, group: &'static str },
    /// Runs a command, which must succeed.
    Run(Vec<&'static str>),
    /// Removes a file.
    Remove(&'static str),
    /// Removes a directory if nothing is in it.
    RemoveEmpty(&'static str),
    /// Removes a directory with all that is in it.
    RemoveAll(&'static str),
    /// Removes a user of this machine.
    RemoveUser(&'static str),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy { from, to } => write!(f, "install -m 0755 {} {to}", from.display()),
            Self::Write { path, text } => write!(f, "write {path} ({} lines, 0644)", text.lines().count()),
            Self::Directory(path) => write!(f, "install -d -m 0755 {path}"),
            Self::ForGroup { path, group } => write!(f, "chgrp {group} {path}; chmod 0640 {path}     (if it is there)"),
            Self::Run(words) => f.write_str(&words.join(" ")),
            Self::Remove(path) => write!(f, "rm -f {path}"),
            Self::RemoveEmpty(path) => write!(f, "rmdir --ignore-fail-on-non-empty {path}"),
            Self::RemoveAll(path) => write!(f, "rm -rf {path}"),
            Self::RemoveUser(name) => write!(f, "userdel {name}"),
        }
    }
}

impl Step {
    /// Does it; whether anything changed.
    pub(super) fn apply(&self) -> Result<bool, String> {
        let done = match self {
            Self::Copy { from, to } => fs::read(from).and_then(|bytes| place(Path::new(to), &bytes, 0o755)),
            Self::Write { path, text } => place(Path::new(path), text.as_bytes(), 0o644),
            Self::Directory(path) => directory(Path::new(path)),
            Self::ForGroup { path, group } => for_group(Path::new(path), group),
            Self::Run(words) => return run(words).map(|()| true),
            Self::Remove(path) => gone(fs::remove_file(path)),
            Self::RemoveEmpty(path) => match fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
                removed => gone(removed),
            },
            Self::RemoveAll(path) => match fs::remove_dir_all(path) {
                // A mount point can be emptied and not removed.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && is_empty(path) => Ok(true),
                removed => gone(removed),
            },
            Self::RemoveUser(name) => match User::find(name) {
                Ok(Some(_)) => return run(&["userdel", name]).map(|()| true),
                found => found.map(|_| false),
            },
        };
        done.map_err(|error| error.to_string())
    }
}

fn is_empty(directory: &str) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Removing what is not there changes nothing.
fn gone(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

fn directory(path: &Path) -> io::Result<bool> {
    let is_new = !path.is_dir();
    if is_new {
        fs::create_dir_all(path)?;
    }
    Ok(mode(path, 0o755)? || is_new)
}

/// Gives a file or directory this mode; whether it had another one.
fn mode(path: &Path, mode: u32) -> io::Result<bool> {
    let has_another = fs::metadata(path)?.permissions().mode() & 0o7777 != mode;
    if has_another {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(has_another)
}

/// What a link leads to belongs to the user who made the link.
fn for_group(path: &Path, group: &str) -> io::Result<bool> {
    let is_file = files::is_there(path)? && fs::symlink_metadata(path)?.is_file();
    let Some(group) = User::find(group)?.filter(|_| is_file) else { return Ok(false) };
    let has_another = fs::metadata(path)?.gid() != group.gid();
    if has_another {
        chown(path, None, Some(group.gid()))?;
    }
    Ok(mode(path, 0o640)? || has_another)
}

/// Puts a file in place whole: a program that runs is not changed, its name is given to the new one.
fn place(path: &Path, bytes: &[u8], mode: u32) -> io::Result<bool> {
    let is_so = |path: &Path| -> io::Result<bool> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(metadata.is_file() && metadata.permissions().mode() & 0o7777 == mode && fs::read(path)? == bytes)
    };
    if is_so(path).unwrap_or(false) {
        return Ok(false);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new.{}", std::process::id()));
    let aside = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    let placed = file
        .write_all(bytes)
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&aside, path));
    if placed.is_err() {
        // The first error is the one to tell; what is left of the file is of no use.
        let _ = fs::remove_file(&aside);
    }
    placed.map(|()| true)
}

fn run(words: &[&str]) -> Result<(), String> {
    let [program, arguments @ ..] = words else { return Err("no command".to_owned()) };
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(format!("{program} ended with {}: {said}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> &'static str {
        let path = std::env::temp_dir().join(format!("throughway-step-{name}-{}", std::process::id()));
        Box::leak(path.to_str().unwrap().to_owned().into_boxed_str())
    }

    #[test]
    fn each_step_may_be_done_twice_and_says_so() {
        let directory = path("directory");
        let inside: &'static str = Box::leak(format!("{directory}/inside").into_boxed_str());
        for (step, first) in [
            (Step::Directory(directory), true),
            (Step::Write { path: inside, text: "one\n" }, true),
            (Step::RemoveEmpty(directory), false),
            (Step::Remove(inside), true),
            (Step::RemoveEmpty(directory), true),
            (Step::RemoveAll(directory), false),
            (Step::RemoveUser("no-such-user-here"), false),
        ] {
            assert_eq!(step.apply(), Ok(first), "{step}");
            assert_eq!(step.apply(), Ok(false), "{step}, again");
        }
        assert!(!Path::new(directory).exists());
    }

    #[test]
    fn a_file_of_another_mode_or_text_is_replaced_and_nothing_stays_beside_it() {
        let directory = path("replaced");
        fs::create_dir(directory).unwrap();
        let file: &'static str = Box::leak(format!("{directory}/unit").into_boxed_str());
        fs::write(file, "old").unwrap();
        let step = Step::Write { path: file, text: "new" };
        assert_eq!((step.apply(), step.apply()), (Ok(true), Ok(false)));
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        assert_eq!((step.apply(), step.apply()), (Ok(true), Ok(false)));
        assert_eq!(fs::read_to_string(file).unwrap(), "new");
        assert_eq!(fs::read_dir(directory).unwrap().count(), 1);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn modes_are_mended_and_what_was_wrong_is_not_called_so_already() {
        let directory = path("modes");
        let file: &'static str = Box::leak(format!("{directory}/config.toml").into_boxed_str());
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, Permissions::from_mode(0o700)).unwrap();
        let step = Step::Directory(directory);
        assert_eq!((step.apply(), step.apply()), (Ok(true), Ok(false)));
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o755);
        // Root's group is there on every machine.
        let step = Step::ForGroup { path: file, group: "root" };
        assert_eq!(step.apply(), Ok(false), "nothing is there");
        fs::write(file, "").unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        if crate::net::effective_uid() == 0 {
            assert_eq!((step.apply(), step.apply()), (Ok(true), Ok(false)));
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o640);
            if let Some(nobody) = User::find("nobody").unwrap() {
                let step = Step::ForGroup { path: file, group: "nobody" };
                assert_eq!((step.apply(), step.apply()), (Ok(true), Ok(false)));
                assert_eq!(fs::metadata(file).unwrap().gid(), nobody.gid());
            }
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_command_that_fails_is_told_with_what_it_said() {
        let error = run(&["sh", "-c", "echo no way >&2; exit 3"]).unwrap_err();
        assert!(error.contains("sh ended with") && error.contains('3') && error.contains("no way"), "{error}");
        assert!(run(&["no-such-program-here"]).unwrap_err().starts_with("no-such-program-here: "));
    }
}
