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

/// As whom the unit runs the server; its group reads the configuration.
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
        ServiceCommand::Uninstall(options) => (uninstall(options), options.dry_run),
    };
    let mut out = io::stdout().lock();
    if is_dry {
        for step in &steps {
            writeln!(out, "{step}")?;
        }
        return Ok(out.flush()?);
    }
    check_machine()?;
    for step in &steps {
        let change = step.apply().map_err(|why| Failure::Run(format!("{step}\n{why}; nothing after this was done")))?;
        writeln!(out, "{step}{}", if change { "" } else { "     (was so already)" })?;
    }
    let next = match command {
        ServiceCommand::Install(_) if !files::is_there(Path::new(DEFAULT_PATH)).unwrap_or(true) => {
            "\nNext: throughway init writes a configuration"
        }
        ServiceCommand::Install(options) if !options.now => "\nNext: systemctl start throughway",
        ServiceCommand::Install(_) | ServiceCommand::Uninstall(_) => "",
    };
    if !next.is_empty() {
        writeln!(out, "{next}")?;
    }
    Ok(out.flush()?)
}

/// Whether this machine can have the service, and we may give it.
fn check_machine() -> Result<(), Failure> {
    if effective_uid() != 0 {
        return Err(Failure::Run("needs root: try sudo, or --dry-run to see the steps".to_owned()));
    }
    if !Path::new("/run/systemd/system").is_dir() {
        let message =
            "systemd does not run here, so there is nothing to install into; `throughway serve` is the command to run";
        return Err(Failure::Run(message.to_owned()));
    }
    if let Some(unit) = OF_PACKAGE.into_iter().find(|unit| Path::new(unit).exists()) {
        return Err(Failure::Run(format!("a package has installed {unit}; use the package, or remove it first")));
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

fn uninstall(options: &UninstallOptions) -> Vec<Step> {
    let mut steps = Vec::new();
    if options.dry_run || Path::new(UNIT_PATH).exists() {
        steps.push(Step::Run(vec!["systemctl", "disable", "--now", "throughway.service"]));
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
        let plain = shown(&uninstall(&UninstallOptions { purge: false, dry_run: true })).join("\n");
        assert!(!plain.contains(CONFIG) && !plain.contains(STATE) && !plain.contains("userdel"), "{plain}");
        let purge = shown(&uninstall(&UninstallOptions { purge: true, dry_run: true })).join("\n");
        for part in [CONFIG, STATE, "userdel throughway"] {
            assert!(purge.contains(part), "{purge}");
        }
    }
}
