//! The new process of an upgrade: the program that is started, and what is heard of it.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::NotUpgraded;
use crate::failure;
use crate::net::effective_uid;
use crate::net::handoff::{Channel, HandoffError};
use crate::net::upgrade_messages::{FromNew, FromOld};

/// How long a message to it may wait.
const SEND_TIME: Duration = Duration::from_secs(10);

/// How long it may take to say why it does not listen any more.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How long a process that has closed its channel, or was killed, may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const ENDS_LOOK: Duration = Duration::from_millis(10);

/// The variables that are for this very process.
const OWN_VARIABLES: [&str; 4] = ["WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// What names a file that may be replaced: device, inode, and when it was written, in nanoseconds.
type FileIdentity = (u64, u64, i64);

/// The program of this process, and how it was started: found at the start, before the file is replaced.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    identity: Option<FileIdentity>,
    arguments: Vec<OsString>,
}

impl Program {
    /// `file` is the configuration that it read. The next process must read the same one: if it were told no name, and
    /// found none at the default path, it would take over with the defaults and a new secret.
    pub(crate) fn of_process(file: Option<&Path>) -> std::io::Result<Self> {
        let path = std::env::current_exe()?;
        let mut arguments = Vec::new();
        let is_named = std::env::args_os().any(|argument| {
            let argument = argument.to_string_lossy();
            argument == "--config" || argument.starts_with("--config=")
        });
        let mut given = std::env::args_os().skip(1);
        while let Some(argument) = given.next() {
            if argument == "--take-over" {
                given.next();
            } else if !argument.to_string_lossy().starts_with("--take-over=") {
                arguments.push(argument);
            }
        }
        if let Some(file) = file.filter(|_| !is_named) {
            arguments.extend(["--config".into(), file.as_os_str().to_owned()]);
        }
        Ok(Self { identity: identity(&path), path, arguments })
    }

    /// Whether the file at the own path is another one than at the start.
    pub(crate) fn has_changed(&self) -> bool {
        let now = identity(&self.path);
        now.is_some() && now != self.identity
    }

    /// Whether what is there may be run with this process's rights: it belongs to root or to this user, and only they
    /// can change it.
    fn check_owner(&self) -> Result<(), String> {
        let path = self.path.display();
        let data = std::fs::metadata(&self.path).map_err(|error| format!("{path}: {error}"))?;
        check_owner(data.uid(), data.mode(), effective_uid()).map_err(|why| format!("{path} {why}"))
    }

    /// Starts it as the successor of this process.
    pub(super) fn start(&self) -> Result<NewProcess, String> {
        self.check_owner()?;
        let failed = |error: std::io::Error| format!("can't start {}: {error}", self.path.display());
        let (own, its) = Channel::pair().map_err(failed)?;
        let mut command = Command::new(&self.path);
        // It gets its end of the channel as standard input, standard output and error, and no other descriptor.
        command.args(&self.arguments).args(["--take-over", "0"]).stdin(Stdio::from(OwnedFd::from(its)));
        for name in OWN_VARIABLES {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(|error| {
            let remedy = match error.raw_os_error() {
                Some(libc::EACCES) => "; give it mode 0755",
                Some(libc::ENOEXEC) => "; it is no program of this machine: install it once more",
                Some(_) | None => "",
            };
            format!("{}{remedy}", failed(error))
        })?;
        Ok(NewProcess::new(Some(child), None, own))
    }
}

fn identity(path: &Path) -> Option<FileIdentity> {
    let data = std::fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.mtime().wrapping_mul(1_000_000_000).wrapping_add(data.mtime_nsec())))
}

/// Whether a program with this owner and mode is as trustworthy as the user that this process runs as.
fn check_owner(owner: u32, mode: u32, own: u32) -> Result<(), String> {
    if owner != 0 && owner != own {
        return Err(format!("belongs to user {owner}: it must be root's, or that of user {own}"));
    }
    if mode & 0o022 != 0 {
        return Err("can be changed by others: chmod go-w".to_owned());
    }
    Ok(())
}

/// The new process. Dropped before it has proved itself it is ended, and waited for if it may read: never do two read. Whatever connected
/// to `upgrade.socket` and did not say that it is a server is left alone.
pub(super) struct NewProcess {
    /// One that this process started.
    child: Option<Child>,
    /// One that came over `upgrade.socket`, if it is in this PID namespace.
    peer: Option<Pid>,
    channel: Channel,
    /// It is a server that wants to take over: nothing is told to any other.
    has_said_hello: bool,
    /// It says that it lives while it is on probation.
    tells_life: bool,
    /// It takes connections that are passed on to web servers.
    takes_passed_on: bool,
    /// It was told to read packets, or may have been.
    may_read: bool,
    has_proved_itself: bool,
}

impl NewProcess {
    /// One that connected by itself.
    pub(super) fn connected(channel: Channel) -> Self {
        Self::new(None, channel.peer(), channel)
    }

    const fn new(child: Option<Child>, peer: Option<Pid>, channel: Channel) -> Self {
        Self {
            child,
            peer,
            channel,
            has_said_hello: false,
            tells_life: false,
            takes_passed_on: false,
            may_read: false,
            has_proved_itself: false,
        }
    }

    /// Whether this process started it.
    pub(super) const fn is_child(&self) -> bool {
        self.child.is_some()
    }

    /// A way to it for another thread.
    pub(super) fn channel(&self) -> Result<Channel, String> {
        self.channel.try_clone().map_err(|error| error.to_string())
    }

    /// Whether it says that it lives while it is on probation.
    pub(super) const fn tells_life(&self) -> bool {
        self.tells_life
    }

    /// Whether it takes connections that are passed on to web servers.
    pub(super) const fn takes_passed_on(&self) -> bool {
        self.takes_passed_on
    }

    /// Its number here; `None` for one of another PID namespace.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed())).or(self.peer)
    }

    pub(super) fn tell(&self, message: &FromOld, descriptors: &[BorrowedFd<'_>]) -> Result<(), String> {
        self.channel.send(message, descriptors, SEND_TIME).map_err(|error| error.to_string())
    }

    /// It may read packets from now on, and this process may not until it has ended.
    pub(super) fn let_read(&mut self) -> Result<(), String> {
        self.may_read = true;
        self.tell(&FromOld::Go, &[])
    }

    /// The next thing that it says; that it can't take over is an error.
    pub(super) fn hear(&mut self, step: &'static str, within: Duration) -> Result<FromNew, NotUpgraded> {
        let failed = NotUpgraded::at(step);
        match self.channel.receive::<FromNew>(within) {
            Ok((FromNew::Refused { reason, is_configuration }, _)) => {
                Err(NotUpgraded { is_configuration, ..failed(reason) })
            }
            Ok((said, _)) => {
                if let FromNew::Hello(hello) = &said {
                    (self.has_said_hello, self.tells_life) = (true, hello.tells_life == Some(true));
                    self.takes_passed_on = hello.takes_passed_on == Some(true);
                }
                Ok(said)
            }
            Err(HandoffError::Closed) => Err(failed(self.how_it_ended())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Why something could not be told to it: its own word for that, if it has said one.
    pub(super) fn why(&mut self, step: &'static str, reason: String) -> NotUpgraded {
        let failed = NotUpgraded::at(step);
        match self.channel.receive::<FromNew>(LAST_WORD) {
            Ok((FromNew::Refused { reason, is_configuration }, _)) => {
                NotUpgraded { is_configuration, ..failed(reason) }
            }
            Err(HandoffError::Closed) => failed(self.how_it_ended()),
            // Its silence is no reason.
            Ok(_) | Err(_) => failed(reason),
        }
    }

    fn how_it_ended(&mut self) -> String {
        let status = self.child.as_mut().and_then(|child| {
            // It has closed its channel, so its end is near.
            (0..ENDS_WITHIN.as_millis() / ENDS_LOOK.as_millis()).find_map(|_| {
                let status = child.try_wait().ok().flatten();
                if status.is_none() {
                    std::thread::sleep(ENDS_LOOK);
                }
                status
            })
        });
        match status {
            Some(status) => format!("the new process ended ({status}); its own lines in the log say why"),
            None => "the new process has closed its channel".to_owned(),
        }
    }

    /// It hears that there is nothing to take over, and lives on. One that has gone needs no answer.
    pub(super) fn send_away(self) {
        let _ = self.tell(&FromOld::Stop, &[]);
        self.let_live();
    }

    /// It lives on when this process is gone.
    pub(super) fn let_live(mut self) {
        self.has_proved_itself = true;
    }

    fn kill_peer(&self) {
        if let Some(pid) = self.peer {
            // It may have ended.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Ends one that is not a child of this process and may read, and waits for its end.
    fn end_peer(&mut self) {
        self.kill_peer();
        // One that can't be killed from here must hear that this process goes on. A channel that only ends would say that this
        // process has ended, and that the sessions are its own; so it stays open if that can't be told.
        if self.tell(&FromOld::Stop, &[]).is_ok() {
            self.channel.shut_down();
        }
        self.wait_until_closed();
    }

    /// Waits until no process has the other end of the channel.
    fn wait_until_closed(&mut self) {
        loop {
            match self.channel.receive::<FromNew>(ENDS_WITHIN) {
                Ok(_) | Err(HandoffError::Unreadable(_)) => {}
                Err(HandoffError::Closed) => return,
                Err(error) => {
                    tracing::error!(%error, "the new process does not end, and two must not serve the same sessions: this one ends");
                    failure::exit(1);
                }
            }
        }
    }
}

impl Drop for NewProcess {
    fn drop(&mut self) {
        match self.child.take() {
            // The service manager, or init, waits for it when this process is gone.
            Some(_) | None if self.has_proved_itself => {}
            Some(mut child) => {
                let _ = child.kill();
                let _ = child.wait();
                if self.may_read {
                    // What was started may have been a supervisor, whose server ends with it, but a moment later.
                    self.wait_until_closed();
                }
            }
            None if self.may_read => self.end_peer(),
            // It was not told to read, and ends when it sees that the channel has ended: nothing has to wait for that.
            None if self.has_said_hello => self.kill_peer(),
            // Whatever has connected there, it got nothing.
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_of_root_or_this_user_that_no_other_can_change_is_run() {
        for (owner, mode) in [(0, 0o100_755), (7, 0o100_755), (7, 0o100_700)] {
            assert_eq!(check_owner(owner, mode, 7), Ok(()));
        }
        assert!(check_owner(8, 0o100_755, 7).unwrap_err().contains("belongs to user 8"));
        for mode in [0o100_775, 0o100_757] {
            assert!(check_owner(0, mode, 7).unwrap_err().contains("chmod go-w"));
        }
    }

    #[test]
    fn another_file_at_the_same_path_is_another_program() {
        let path = std::env::temp_dir().join(format!("throughway-program-{}", std::process::id()));
        std::fs::write(&path, "one").unwrap();
        let program = Program { identity: identity(&path), path: path.clone(), arguments: Vec::new() };
        assert!(!program.has_changed());
        std::fs::remove_file(&path).unwrap();
        assert!(!program.has_changed(), "a file that is gone can't be started");
        std::fs::write(path.with_extension("new"), "two").unwrap();
        std::fs::rename(path.with_extension("new"), &path).unwrap();
        assert!(program.has_changed());
        std::fs::remove_file(&path).unwrap();
    }
}
