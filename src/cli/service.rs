//! `service`: what a package does, for a machine without one: user, unit, directories, and the same backwards.

mod step;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand};

use self::step::Step;
use crate::config::DEFAULT_PATH;
use crate::failure::Failure;
use crate::files;
use crate::net::effective_uid;

const UNIT: &str = include_str!("../../systemd/throughway.service");
const SYSUSERS: &str = include_str!("../../systemd/throughway.sysusers");
const BEFORE_253: &str = include_str!("../../systemd/throughway-before-253.conf");

/// Where the unit looks for the program.
const BINARY: &str = "/usr/local/bin/throughway";
const UNIT_PATH: &str = "/etc/systemd/system/throughway.service";
const SYSUSERS_PATH: &str = "/etc/sysusers.d/throughway.conf";
const DROP_INS: &str = "/etc/systemd/system/throughway.service.d";
const BEFORE_253_PATH: &str = "/etc/systemd/system/throughway.service.d/before-253.conf";
const CONFIG: &str = "/etc/throughway";
const STATE: &str = "/var/lib/throughway";

/// The user that the unit runs the server as; its group reads the configuration.
const USER: &str = "throughway";

/// Where a package puts its unit.
const OF_PACKAGE: [&str; 2] = ["/usr/lib/systemd/system/throughway.service", "/lib/systemd/system/throughway.service"];

/// The first version that knows Type=notify-reload.
const NOTIFY_RELOAD: u32 = 253;

/// Commands of `service`.
#[derive(Subcommand, Debug)]
pub(super) enum ServiceCommand {
    /// Copy this program to /usr/local/bin, and make its user and its unit
    Install(InstallOptions),
    /// Stop the service, and remove what install made
    Uninstall(UninstallOptions),
}

/// Options of `service install`.
#[derive(Args, Debug)]
pub(super) struct InstallOptions {
    /// Also start it, or upgrade it if it runs
    #[arg(long)]
    now: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Options of `service uninstall`.
#[derive(Args, Debug)]
pub(super) struct UninstallOptions {
    /// Also remove configuration, state and user
    #[arg(long)]
    purge: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(command: &ServiceCommand) -> Result<(), Failure> {
    let (steps, is_dry) = match command {
        ServiceCommand::Install(options) => (install(options), options.dry_run),
        ServiceCommand::Uninstall(options) => {
            (uninstall(options, Path::new(UNIT_PATH).exists(), Unit::of_machine()), options.dry_run)
        }
    };
    let mut out = io::stdout().lock();
    if is_dry {
        for step in &steps {
            writeln!(out, "{step}")?;
        }
        out.flush()?;
        // Another user may look; whatever else would be refused is told.
        return check_system().map_err(|why| Failure::Run(format!("none of it would be done: {why}")));
    }
    check_root().and_then(|()| check_system()).map_err(Failure::Run)?;
    for step in &steps {
        let change = step.apply().map_err(|why| Failure::Run(format!("{step}\n{why}; nothing after this was done")))?;
        writeln!(out, "{step}{}", if change { "" } else { "     (was so already)" })?;
    }
    let next = match command {
        ServiceCommand::Install(_) if !files::is_there(Path::new(DEFAULT_PATH)).unwrap_or(true) => {
            "\nNext: throughway init writes a configuration"
        }
        // A server that runs already is upgraded: its calls go on.
        ServiceCommand::Install(options) if !options.now => "\nNext: systemctl reload-or-restart throughway",
        ServiceCommand::Install(_) | ServiceCommand::Uninstall(_) => "",
    };
    if !next.is_empty() {
        writeln!(out, "{next}")?;
    }
    Ok(out.flush()?)
}

fn check_root() -> Result<(), String> {
    match effective_uid() {
        0 => Ok(()),
        _ => Err("needs root: try sudo, or --dry-run to see the steps".to_owned()),
    }
}

/// Whether this machine can have the service.
fn check_system() -> Result<(), String> {
    if !Path::new("/run/systemd/system").is_dir() {
        let message =
            "systemd does not run here, so there is nothing to install into; `throughway serve` is the command to run";
        return Err(message.to_owned());
    }
    if let Some(unit) = OF_PACKAGE.into_iter().find(|unit| Path::new(unit).exists()) {
        return Err(format!("a package has installed {unit}; use the package, or remove it first"));
    }
    Ok(())
}

fn install(options: &InstallOptions) -> Vec<Step> {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut steps = vec![
        Step::Copy { from: own, to: BINARY },
        Step::Write { path: SYSUSERS_PATH, text: SYSUSERS },
        Step::Run(vec!["systemd-sysusers", SYSUSERS_PATH]),
        Step::Directory(CONFIG),
        Step::ForGroup { path: DEFAULT_PATH, group: USER },
        Step::Write { path: UNIT_PATH, text: UNIT },
    ];
    if systemd_version().is_some_and(|version| version < NOTIFY_RELOAD) {
        steps.push(Step::Directory(DROP_INS));
        steps.push(Step::Write { path: BEFORE_253_PATH, text: BEFORE_253 });
    }
    steps.push(Step::Run(vec!["systemctl", "daemon-reload"]));
    steps.push(Step::Run(vec!["systemctl", "enable", "throughway.service"]));
    if options.now {
        // A reload is an upgrade if the program is another one now: a restart would end calls.
        steps.push(Step::Run(vec!["systemctl", "reload-or-restart", "throughway.service"]));
    }
    steps
}

/// The unit, as systemd sees it whether its file is there or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// It does not run, or there is no systemd.
    Stopped,
    /// It runs, or starts.
    Running,
}

impl Unit {
    pub(super) fn of_machine() -> Self {
        let asked = Command::new("systemctl").args(["is-active", "throughway.service"]).output();
        Self::of_state(&asked.map(|output| output.stdout).unwrap_or_default())
    }

    /// What `systemctl is-active` printed; nothing if there is no systemd.
    fn of_state(printed: &[u8]) -> Self {
        match printed.trim_ascii() {
            // One that starts, or starts again and again, has read its configuration too.
            b"active" | b"activating" | b"reloading" | b"refreshing" | b"deactivating" => Self::Running,
            _ => Self::Stopped,
        }
    }
}

fn uninstall(options: &UninstallOptions, has_file: bool, unit: Unit) -> Vec<Step> {
    let mut steps = Vec::new();
    if has_file {
        steps.push(Step::Run(vec!["systemctl", "disable", "--now", "throughway.service"]));
    } else if unit == Unit::Running {
        // Without its file it can't be disabled, and runs on all the same.
        steps.push(Step::Run(vec!["systemctl", "stop", "throughway.service"]));
    }
    steps.extend([UNIT_PATH, BEFORE_253_PATH, SYSUSERS_PATH].map(Step::Remove));
    steps.push(Step::RemoveEmpty(DROP_INS));
    steps.push(Step::Run(vec!["systemctl", "daemon-reload"]));
    if options.purge {
        steps.extend([CONFIG, STATE].map(Step::RemoveAll));
        steps.push(Step::RemoveUser(USER));
    }
    steps.push(Step::Remove(BINARY));
    steps
}

/// The version of the systemd that runs; `None` if it does not say.
fn systemd_version() -> Option<u32> {
    let output = Command::new("systemctl").arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_steps_are_those_of_the_manual_in_its_order() {
        let steps = shown(&install(&InstallOptions { now: true, dry_run: true }));
        let place = |part: &str| {
            steps.iter().position(|step| step.contains(part)).unwrap_or_else(|| panic!("{part} is not in {steps:#?}"))
        };
        let order =
            [BINARY, "/etc/sysusers.d", "systemd-sysusers", "/etc/throughway", UNIT_PATH, "daemon-reload", "enable"];
        assert!(order.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{steps:#?}");
        assert!(steps.last().unwrap().contains("reload-or-restart"), "{steps:#?}");
        assert!(UNIT.contains(&format!("ExecStart={BINARY} serve")), "the unit starts what is copied");
    }

    #[test]
    fn what_a_person_wrote_is_removed_only_if_asked() {
        let of = |purge| UninstallOptions { purge, dry_run: true };
        let plain = shown(&uninstall(&of(false), true, Unit::Running)).join("\n");
        assert!(!plain.contains(CONFIG) && !plain.contains(STATE) && !plain.contains("userdel"), "{plain}");
        let purge = shown(&uninstall(&of(true), true, Unit::Stopped)).join("\n");
        for part in [CONFIG, STATE, "userdel throughway"] {
            assert!(purge.contains(part), "{purge}");
        }
    }

    #[test]
    fn a_server_whose_unit_file_is_gone_is_stopped_before_its_directories_go() {
        let options = UninstallOptions { purge: true, dry_run: false };
        assert_eq!(shown(&uninstall(&options, false, Unit::Running))[0], "systemctl stop throughway.service");
        assert!(shown(&uninstall(&options, true, Unit::Running))[0].contains("disable --now"));
        let stopped = shown(&uninstall(&options, false, Unit::Stopped)).join("\n");
        assert!(!stopped.contains("systemctl stop") && !stopped.contains("systemctl disable"), "{stopped}");
    }

    /// A server that runs goes on with its old secret until it reads the file.
    #[test]
    fn the_state_of_the_unit_is_what_systemd_says() {
        for (printed, state) in [
            ("active\n", Unit::Running),
            ("activating\n", Unit::Running),
            ("reloading\n", Unit::Running),
            ("inactive\n", Unit::Stopped),
            ("failed\n", Unit::Stopped),
            ("", Unit::Stopped),
        ] {
            assert_eq!(Unit::of_state(printed.as_bytes()), state, "{printed}");
        }
    }
}
