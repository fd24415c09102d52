//! Whether the service manager would follow an upgrade: it must learn that another process is the service's main one, or it ends the
//! service together with the old process, and the new one with it.
//!
//! systemd does not tell whether it listens, so this looks at what decides that: the socket that a service is given, and the unit's
//! file, without which no message of the service is read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Where systemd reads what its services say.
const NOTIFY_SOCKET: &str = "/run/systemd/notify";

/// Where unit files lie, the first one first (systemd.unit(5), "System Unit Search Path").
const UNIT_DIRECTORIES: [&str; 13] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];

/// One of these is on each system with systemd.
const SYSTEMS_OWN: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];

/// What a process knows of the manager that started it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started<'e> {
    /// `NOTIFY_SOCKET`.
    pub(crate) socket: Option<&'e OsStr>,
    /// `SYSTEMD_EXEC_PID`: the process that systemd started, and none of its children.
    pub(crate) started: Option<&'e OsStr>,
    /// This process.
    pub(crate) pid: u32,
    /// `/proc/self/cgroup`.
    pub(crate) groups: &'e str,
}

/// Asks something of what this process itself knows.
pub(crate) fn of_process<T>(ask: impl FnOnce(Started<'_>) -> T) -> T {
    let (socket, started) = (std::env::var_os("NOTIFY_SOCKET"), std::env::var_os("SYSTEMD_EXEC_PID"));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let pid = std::process::id();
    ask(Started { socket: socket.as_deref(), started: started.as_deref(), pid, groups: &groups })
}

impl Started<'_> {
    /// Whether the manager would learn of another main process.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(crate) fn is_followed(&self, root: &Path) -> Result<(), String> {
        let Some(socket) = self.socket.filter(|socket| !socket.is_empty()) else {
            // A terminal or a script that systemd started passes the variable on to processes that it did not start.
            let is_main = self.started.and_then(OsStr::to_str) == Some(self.pid.to_string().as_str());
            return if is_main { Err(NO_SOCKET.to_owned()) } else { Ok(()) };
        };
        let Some(unit) = unit_of(self.groups).filter(|_| socket == NOTIFY_SOCKET) else { return Ok(()) };
        if !SYSTEMS_OWN.iter().any(|place| root.join(place.trim_start_matches('/')).is_dir()) {
            // Another root (RootDirectory=), in which no unit can be seen.
            return Ok(());
        }
        match file_of(root, unit) {
            Some(path) if is_mask(&path) => Err(format!(
                "the unit {unit} is masked, so systemd would not learn of the new process and would end the service: \
                 systemctl unmask {unit}"
            )),
            Some(_) => Ok(()),
            None => Err(format!(
                "the unit {unit} has no file any more, so systemd would not learn of the new process and would end the service: \
                 install the unit, then systemctl daemon-reload"
            )),
        }
    }

    /// Whether the manager reads what a child of the service's main process says, as far as the unit's files tell.
    ///
    /// # Errors
    /// What to do if not.
    pub(crate) fn hears_children(&self, root: &Path) -> Result<(), String> {
        let unit = unit_of(self.groups).filter(|_| self.socket == Some(OsStr::new(NOTIFY_SOCKET)));
        let Some((unit, file)) = unit.and_then(|unit| Some((unit, file_of(root, unit)?))) else { return Ok(()) };
        let access =
            std::iter::once(file).chain(drop_ins(root, unit)).filter_map(|path| notify_access(&path)).next_back();
        match access.as_deref() {
            Some("all") => Ok(()),
            other => Err(format!(
                "systemd reads nothing of the supervised server, so it will end this start after a while: the unit {unit} has \
                 NotifyAccess={}; install systemd/throughway-supervise.conf as /etc/systemd/system/{unit}.d/supervise.conf, then \
                 systemctl daemon-reload",
                other.unwrap_or("main")
            )),
        }
    }
}

const NO_SOCKET: &str = "the unit gives the service no way to tell systemd of a new main process, so systemd would end the service: \
                         use the unit that comes with throughway, or set Type=notify (or NotifyAccess=main), then restart once";

/// The service in whose control group this process is.
fn unit_of(groups: &str) -> Option<&str> {
    // Version 2 of control groups, or systemd's own hierarchy of version 1; both can be there.
    let paths = groups.lines().filter_map(|line| {
        line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path))
    });
    paths.flat_map(|path| path.split('/').rev()).find(|part| part.ends_with(".service"))
}

/// The unit's own file, or that of its template.
fn file_of(root: &Path, unit: &str) -> Option<PathBuf> {
    let template = unit.split_once('@').map(|(name, _)| format!("{name}@.service"));
    [Some(unit), template.as_deref()].into_iter().flatten().find_map(|name| {
        let places = UNIT_DIRECTORIES.iter().map(|place| root.join(place.trim_start_matches('/')).join(name));
        places.into_iter().find(|path| path.symlink_metadata().is_ok())
    })
}

/// What is added to a unit, in the order in which it counts: by the names of the files, of which an earlier directory hides a
/// later one's.
fn drop_ins(root: &Path, unit: &str) -> Vec<PathBuf> {
    let mut by_name = BTreeMap::new();
    for place in UNIT_DIRECTORIES {
        let directory = root.join(place.trim_start_matches('/')).join(format!("{unit}.d"));
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "conf") {
                by_name.entry(entry.file_name()).or_insert(path);
            }
        }
    }
    by_name.into_values().collect()
}

/// The last `NotifyAccess=` of a file.
fn notify_access(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut values =
        text.lines().filter_map(|line| line.trim().strip_prefix("NotifyAccess")?.trim_start().strip_prefix('='));
    values.next_back().map(|value| value.trim().to_owned())
}

/// A mask is a link to /dev/null, or an empty file.
fn is_mask(path: &Path) -> bool {
    std::fs::read_link(path).is_ok_and(|target| target == Path::new("/dev/null"))
        || path.metadata().is_ok_and(|file| file.is_file() && file.len() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const GROUPS: &str = "0::/system.slice/throughway.service\n";

    fn systemd(groups: &str) -> Started<'_> {
        Started { socket: Some(OsStr::new(NOTIFY_SOCKET)), started: Some(OsStr::new("7")), pid: 7, groups }
    }

    fn unit_in(root: &Path, place: &str, name: &str) -> PathBuf {
        let directory = root.join(place);
        std::fs::create_dir_all(&directory).unwrap();
        directory.join(name)
    }

    #[test]
    fn a_unit_whose_messages_are_not_read_is_told() {
        let root = std::env::temp_dir().join(format!("throughway-manager-{}", std::process::id()));
        assert_eq!(systemd(GROUPS).is_followed(&root), Ok(()), "a root of its own, without units");
        std::fs::create_dir_all(root.join("usr/lib/systemd/system")).unwrap();
        let gone = systemd(GROUPS).is_followed(&root).unwrap_err();
        assert!(gone.contains("throughway.service has no file any more"), "{gone}");
        std::fs::write(unit_in(&root, "usr/lib/systemd/system", "throughway.service"), "[Service]\n").unwrap();
        assert_eq!(systemd(GROUPS).is_followed(&root), Ok(()));
        let mask = unit_in(&root, "etc/systemd/system", "throughway.service");
        symlink("/dev/null", &mask).unwrap();
        let masked = systemd(GROUPS).is_followed(&root).unwrap_err();
        assert!(masked.contains("systemctl unmask throughway.service"), "{masked}");
        std::fs::remove_file(&mask).unwrap();
        std::fs::write(&mask, "").unwrap();
        assert!(systemd(GROUPS).is_followed(&root).is_err(), "an empty file is a mask too");
        std::fs::write(unit_in(&root, "lib/systemd/system", "turn@.service"), "[Service]\n").unwrap();
        assert_eq!(systemd("0::/system.slice/system-turn.slice/turn@a.service/x\n").is_followed(&root), Ok(()));
        assert!(systemd("0::/system.slice/other@a.service\n").is_followed(&root).is_err());
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_unit_that_does_not_hear_the_supervised_server_is_told() {
        let root = std::env::temp_dir().join(format!("throughway-hears-{}", std::process::id()));
        assert_eq!(systemd(GROUPS).hears_children(&root), Ok(()), "no unit can be seen");
        let unit = unit_in(&root, "usr/lib/systemd/system", "throughway.service");
        std::fs::write(&unit, "[Service]\nType=notify\nNotifyAccess=main\n").unwrap();
        let told = systemd(GROUPS).hears_children(&root).unwrap_err();
        assert!(told.contains("NotifyAccess=main") && told.contains("throughway.service.d/supervise.conf"), "{told}");
        let own = unit_in(&root, "etc/systemd/system/throughway.service.d", "supervise.conf");
        std::fs::write(&own, "[Service]\n# NotifyAccess=main\n NotifyAccess = all\n").unwrap();
        assert_eq!(systemd(GROUPS).hears_children(&root), Ok(()));
        // Of two files of one name the one that counts is the administrator's; of two names the later one.
        let hidden = unit_in(&root, "usr/lib/systemd/system/throughway.service.d", "supervise.conf");
        std::fs::write(&hidden, "[Service]\nNotifyAccess=none\n").unwrap();
        assert_eq!(systemd(GROUPS).hears_children(&root), Ok(()));
        let later = unit_in(&root, "run/systemd/system/throughway.service.d", "zz.conf");
        std::fs::write(&later, "[Service]\nNotifyAccess=none\n").unwrap();
        assert!(systemd(GROUPS).hears_children(&root).unwrap_err().contains("NotifyAccess=none"));
        assert_eq!(Started { socket: None, ..systemd(GROUPS) }.hears_children(&root), Ok(()), "not started by systemd");
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn what_systemd_did_not_start_needs_no_unit() {
        let root = Path::new("/nonexistent");
        assert_eq!(systemd("0::/user.slice/user-0.slice/session-1.scope\n").is_followed(root), Ok(()), "no service");
        let other = Started { socket: Some(OsStr::new("/run/user/1000/systemd/notify")), ..systemd(GROUPS) };
        assert_eq!(other.is_followed(root), Ok(()), "another manager");
        let none = Started { socket: None, ..systemd(GROUPS) };
        assert!(none.is_followed(root).unwrap_err().contains("Type=notify"));
        assert_eq!(Started { pid: 8, ..none }.is_followed(root), Ok(()), "a child of what systemd started");
        assert_eq!(Started { started: None, ..none }.is_followed(root), Ok(()));
    }

    #[test]
    fn the_unit_is_in_the_control_group() {
        assert_eq!(unit_of("1:name=systemd:/system.slice/a.service\n2:cpu:/\n"), Some("a.service"));
        assert_eq!(
            unit_of("2:name=systemd:/\n1:cpu:/\n0::/system.slice/a.service\n"),
            Some("a.service"),
            "both versions"
        );
        assert_eq!(unit_of("0::/\n"), None);
        assert_eq!(unit_of(""), None);
    }
}
