//! Files and sockets that a server makes: whether it could, found before it is started. Told as warnings, since directories
//! may be made in the meantime.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use crate::config::Config;
use crate::config::checked::HttpListen;
use crate::ops::usage;

/// Directories that the unit makes when it starts the server.
const OF_UNIT: [&str; 2] = ["/run/throughway", "/var/lib/throughway"];

/// What is made at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PlaceKind {
    /// A file, which may be there already.
    File,
    /// A name in a directory that must be there.
    Name,
    /// A directory, with all above it.
    Directory,
}

/// Each place that a server with this configuration could not write to: the key, and a sentence with the remedy.
///
/// `knows_rights` tells whether this process has the rights of the server: else only what is missing is told.
#[must_use]
pub fn unwritable(config: &Config, knows_rights: bool) -> Vec<(&'static str, String)> {
    let http = &config.http;
    let listen = match &http.listen {
        Some(HttpListen::Unix(path)) => Some(path),
        Some(HttpListen::Tcp(_)) | None => None,
    };
    let accounting = &config.accounting;
    let places = [
        ("auth.revocations_file", config.admin.revocations_file.as_ref(), PlaceKind::Name),
        ("limits.file", config.admin.limits_file.as_ref(), PlaceKind::Name),
        ("accounting.file", accounting.file.as_ref().map(|file| &file.path), PlaceKind::File),
        ("accounting.spool", accounting.webhook.as_ref().map(|webhook| &webhook.spool), PlaceKind::Directory),
        ("tls.acme", config.tls.acme.as_ref().map(|acme| &acme.state), PlaceKind::Directory),
        ("upgrade.socket", config.upgrade.socket.as_ref(), PlaceKind::Name),
        ("http.admin_socket", http.admin_socket.as_ref(), PlaceKind::Name),
        ("http.chatmail_socket", http.chatmail_socket.as_ref(), PlaceKind::Name),
        ("http.listen", listen, PlaceKind::Name),
    ];
    let mut found = Vec::new();
    for (key, path, kind) in places {
        let Some(path) = path else { continue };
        let Err(error) = could_make(path, kind) else { continue };
        if !knows_rights && matches!(error.kind(), ErrorKind::PermissionDenied) {
            continue;
        }
        let shown = path.display();
        found.push((key, format!("the server could not make {shown}: {error}; {}", usage::remedy(&error))));
    }
    found
}

/// Each place where something stands that a server with this configuration could not start with: the key, and why.
#[must_use]
pub fn obstructed(config: &Config) -> Vec<(&'static str, String)> {
    let file = config.accounting.file.as_ref().map(|file| &file.path);
    let why = file.and_then(|path| Some(format!("{} {}", path.display(), usage::obstacle(path)?)));
    why.into_iter().map(|why| ("accounting.file", why)).collect()
}

/// Whether this process could make it. What only an attempt would tell counts as yes.
fn could_make(path: &Path, kind: PlaceKind) -> io::Result<()> {
    if kind == PlaceKind::File && path.is_file() {
        return OpenOptions::new().append(true).open(path).map(drop);
    }
    let above = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = match kind {
        PlaceKind::File | PlaceKind::Name => above,
        PlaceKind::Directory => path.ancestors().find(|directory| directory.is_dir()).unwrap_or(above),
    };
    if let Err(error) = fs::metadata(directory) {
        let is_made =
            error.kind() == ErrorKind::NotFound && OF_UNIT.iter().any(|of_unit| directory == Path::new(of_unit));
        return if is_made { Ok(()) } else { Err(error) };
    }
    if kind == PlaceKind::Directory && OF_UNIT.iter().any(|of_unit| path.starts_with(of_unit)) && directory != path {
        return Ok(());
    }
    // A file without a name, which is gone when it is closed: mode bits would not tell of a disk that is read-only.
    let flags = OFlags::TMPFILE.bits().cast_signed();
    match OpenOptions::new().write(true).mode(0o600).custom_flags(flags).open(directory) {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => Err(error),
        // Some kinds of disks have no such files.
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_that_can_not_be_made_is_told_by_its_key() {
        let lines = "[accounting]\nfile = \"/nonexistent/usage\"\n[upgrade]\nsocket = \"/nonexistent/u.sock\"\n\
                     [http]\nadmin_socket = \"/nonexistent/a.sock\"\nlisten = \"unix:/nonexistent/x.sock\"\n\
                     [auth]\nrevocations_file = \"/nonexistent/x\"\n";
        let config = Config::with_a_secret(lines).unwrap();
        let told = unwritable(&config, true);
        let keys: Vec<_> = told.iter().map(|(key, _)| *key).collect();
        let all = ["auth.revocations_file", "accounting.file", "upgrade.socket", "http.admin_socket", "http.listen"];
        assert_eq!(keys, all);
        assert!(
            told.iter().all(|(_, text)| text.contains("/nonexistent/") && text.contains("No such file")),
            "{told:?}"
        );
    }

    #[test]
    fn what_stands_in_the_place_of_a_file_is_told() {
        let directory = std::env::temp_dir().join(format!("throughway-places-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let place = |name: &str| directory.join(name);
        rustix::fs::mknodat(rustix::fs::CWD, place("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::os::unix::fs::symlink("/nonexistent/usage", place("link")).unwrap();
        std::os::unix::fs::symlink("/dev/null", place("device")).unwrap();
        fs::write(place("file"), "").unwrap();
        let told = |name: &str| {
            let path = if name.is_empty() { directory.clone() } else { place(name) };
            let config = Config::with_a_secret(&format!("[accounting]\nfile = {path:?}\n")).unwrap();
            obstructed(&config).pop().map(|(_, text)| text).unwrap_or_default()
        };
        assert!(told("").ends_with("is a directory; name a file in it"));
        assert!(told("pipe").contains("named pipe"));
        assert!(told("link").contains("a link to /nonexistent/usage, which is not there"));
        assert_eq!(["file", "device", "new"].map(told), ["", "", ""]);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_can_be_made_is_not_told_nor_what_the_unit_makes() {
        let directory = std::env::temp_dir();
        let lines = format!(
            "[accounting]\nfile = {:?}\n[upgrade]\nsocket = {:?}\n[http]\nadmin_socket = \"/run/throughway/admin.sock\"\n\
             [auth]\nrevocations_file = \"/var/lib/throughway/revocations\"\n",
            directory.join("usage"),
            directory.join("u.sock")
        );
        let config = Config::with_a_secret(&lines).unwrap();
        assert_eq!(unwritable(&config, false), []);
        assert!(!directory.join("usage").exists());
    }
}
