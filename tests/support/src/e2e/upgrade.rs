//! A server whose program is replaced while it runs, and the processes that follow each other.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::operator::give_token;
use super::server::{Directory, Server, Settings};
use super::wait_for;

/// The events that end an attempt.
pub const CONFIRMED: &str = "confirmed";
pub const REFUSED: &str = "upgrade refused: this process goes on";
pub const ROLLED_BACK: &str = "upgrade rolled back: this process goes on; client streams are closed";
const ENDS: [&str; 3] = [CONFIRMED, REFUSED, ROLLED_BACK];

/// A server whose program can be replaced.
pub struct Upgradable {
    pub server: Server,
    upgrades: usize,
    /// Attempts that have ended when the last one was begun.
    ended_before: usize,
}

/// Puts another copy of the binary in the place of the one that runs.
pub fn replace_program(directory: &Path) {
    let new = directory.join("new");
    copy(&crate::program(), &new);
    fs::rename(new, program(directory)).unwrap();
}

/// Copies a program by another process: a child that some other test starts meanwhile would keep the file open for writing,
/// and it could not be run.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// Puts a shell script in the place of the program.
pub fn replace_by_script(directory: &Path, script: &str) {
    let (text, new) = (directory.join("script"), directory.join("new"));
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
    copy(&text, &new);
    fs::rename(new, program(directory)).unwrap();
}

pub fn program(directory: &Path) -> PathBuf {
    directory.join("throughway")
}

impl Upgradable {
    pub fn start(settings: Settings) -> Self {
        Self::start_with(settings, &[])
    }

    pub fn start_with(settings: Settings, environment: &[(&str, &str)]) -> Self {
        Self::start_in(Directory::new(), settings, environment)
    }

    /// With an operator's token, and in a directory in which something may be already.
    pub fn start_in(directory: Directory, mut settings: Settings, environment: &[(&str, &str)]) -> Self {
        if !settings.tables.contains("[upgrade]") {
            settings.tables += "[upgrade]\n";
        }
        settings.tables = settings.tables.replace("[upgrade]\n", "[upgrade]\nprobation = \"1s\"\n");
        give_token(&directory, &mut settings);
        // A successor outlives the process that started it: then this one is its parent.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        replace_program(directory.path());
        let server = Server::start_as(directory, settings, |config| {
            let mut command = Command::new(program(config.parent().unwrap()));
            command.args(["serve", "--config"]).arg(config).env_clear().envs(environment.iter().copied());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            command
        });
        Self { server, upgrades: 0, ended_before: 0 }
    }

    fn ended(&self) -> usize {
        ENDS.iter().map(|end| self.server.log.events(end).len()).sum()
    }

    /// Begins an upgrade to whatever program is there.
    pub fn begin(&mut self) {
        self.ended_before = self.ended();
        self.server.signal("HUP");
    }

    /// Waits until the new process reads: it is on probation from here on.
    #[track_caller]
    pub fn wait_for_probation(&self) {
        let log = &self.server.log;
        wait_for("the cut", || (log.events("taken over").len() == self.upgrades + 1).then_some(()));
    }

    /// Waits for the end of the attempt; gives its event.
    #[track_caller]
    pub fn end(&mut self) -> Value {
        wait_for("the end of the upgrade", || (self.ended() > self.ended_before).then_some(()));
        let last = ENDS.iter().filter_map(|end| self.server.log.events(end).pop());
        last.max_by_key(|event| event["timestamp"].as_str().unwrap().to_owned()).unwrap()
    }

    /// Replaces the program and asks for an upgrade; gives the event that ended it.
    #[track_caller]
    pub fn try_upgrade(&mut self) -> Value {
        replace_program(self.server.directory());
        self.begin();
        self.end()
    }

    /// An upgrade that must succeed; gives the event of the cut.
    #[track_caller]
    pub fn upgrade(&mut self) -> Value {
        replace_program(self.server.directory());
        self.begin();
        self.follow()
    }

    /// Follows an upgrade that is under way and must succeed; gives the event of the cut.
    #[track_caller]
    pub fn follow(&mut self) -> Value {
        let log = self.server.log.clone();
        wait_for("the end of the upgrade", || {
            let refused = ENDS[1..].iter().flat_map(|end| log.events(end)).count();
            let confirmed = log.events(CONFIRMED).len();
            assert!(refused + confirmed <= self.ended_before || confirmed > self.upgrades, "{}", log.text());
            (confirmed > self.upgrades).then_some(())
        });
        self.upgrades += 1;
        self.server.take_over_by(log.events(CONFIRMED).pop().unwrap()["pid"].as_u64().unwrap() as u32);
        wait_for("the new process to serve", || (log.events("ready").len() == self.upgrades + 1).then_some(()));
        log.events("taken over").pop().unwrap()
    }

    /// A command of ours for this server, with its token.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(crate::program());
        command.args(arguments).args(["--url", &format!("http://{}", self.server.http()), "--config"]);
        command.arg(self.server.directory().join("config.toml")).env_clear();
        command
    }

    /// Exit code, standard output and standard error of a command.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        said(self.command(arguments).output().unwrap())
    }

    /// A command that is waited for later.
    pub fn spawn(&mut self, arguments: &[&str]) -> Child {
        self.ended_before = self.ended();
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Writes another configuration, which nothing is told of.
    pub fn write(&mut self, settings: Settings) {
        let text = settings.text(settings.ports.as_ref().unwrap_or(&self.server.ports.range));
        self.write_text(&text);
        self.server.settings = settings;
    }

    pub fn write_text(&self, text: &str) {
        fs::write(self.server.directory().join("config.toml"), text).unwrap();
    }
}

impl Drop for Upgradable {
    /// A test that fails leaves no process that took over behind.
    fn drop(&mut self) {
        for event in self.server.log.events("upgrading") {
            let Some(pid) = event["pid"].as_u64() else { continue };
            let runs = fs::read_link(format!("/proc/{pid}/exe"));
            if runs.is_ok_and(|program| program.starts_with(self.server.directory()))
                && let Some(pid) = Pid::from_raw(pid as i32)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Exit code, standard output and standard error.
pub fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
