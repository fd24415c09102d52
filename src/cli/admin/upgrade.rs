//! `upgrade`: has a running server replaced by the installed version, and tells what became of that.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::ServerOptions;
use super::{print, sessions_text, text};
use crate::failure::Failure;
use crate::ops::command::{UpgradeReport, UpgradeRequest, UpgradeResult};
use crate::printable::printable_lines;

/// The server needs up to a minute to prepare, and waits for `upgrade.probation`.
const RESPONSE_TIME: Duration = Duration::from_secs(300);

/// Options of `upgrade`.
#[derive(Args, Debug)]
pub(in crate::cli) struct UpgradeOptions {
    /// Only find out whether the upgrade is possible
    #[arg(long)]
    check: bool,
    /// End sessions that use a feature that the installed version does not know; without it the upgrade is refused
    #[arg(long)]
    drop_unknown: bool,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
    #[command(flatten)]
    server: ServerOptions,
}

pub(in crate::cli) fn upgrade(options: &UpgradeOptions) -> Result<(), Failure> {
    let request = UpgradeRequest { check: options.check, drop_unknown: options.drop_unknown };
    let answer = options.server.find()?.post_within("/v1/upgrade", &json!(request), RESPONSE_TIME)?;
    let report: UpgradeReport = serde_json::from_value(answer.clone())
        .map_err(|error| Failure::Run(format!("the server's answer is not understood: {error}")))?;
    let is_done = matches!(report.result, UpgradeResult::Confirmed | UpgradeResult::Checked);
    if options.json || is_done {
        print(options.json, &answer, |out| told(out, &report))?;
    }
    match (is_done, options.json) {
        (true, _) => Ok(()),
        (false, true) => Err(Failure::Reported(failure(&report).exit_code())),
        (false, false) => Err(failure(&report)),
    }
}

/// What a person reads of a good end.
fn told(out: &mut dyn Write, report: &UpgradeReport) -> io::Result<()> {
    let (from, to) = (shown(Some(&report.from)), shown(report.to.as_ref()));
    if report.result == UpgradeResult::Checked {
        return writeln!(out, "an upgrade from {from} to {to} is possible");
    }
    writeln!(out, "upgraded from {from} to {to}")?;
    let streams = match report.streams.unwrap_or_default() {
        1 => "1 TCP or TLS connection".to_owned(),
        count => format!("{count} TCP and TLS connections"),
    };
    writeln!(out, "  {} and {streams} moved", sessions_text(&json!(report.allocations.unwrap_or_default())))?;
    if let Some(gap) = report.gap_us {
        writeln!(out, "  packets waited for {:.1} ms", gap as f64 / 1000.0)?;
    }
    match report.late {
        Some(late @ 1..) => writeln!(out, "  {late} TLS handshakes were finished by the old process"),
        Some(0) | None => Ok(()),
    }
}

fn failure(report: &UpgradeReport) -> Failure {
    let step = report.step.as_ref().map_or_else(String::new, |step| format!(" ({})", shown(Some(step))));
    // A wrong configuration has a line for each problem.
    let reason = report.reason.as_deref().map_or("-".into(), printable_lines);
    let from = shown(Some(&report.from));
    if report.is_configuration {
        return Failure::Config(format!(
            "the installed version rejects the configuration: {reason}\nno upgrade; {from} continues to serve"
        ));
    }
    let what = if report.result == UpgradeResult::RolledBack {
        "the new process failed and the upgrade was rolled back"
    } else {
        "no upgrade"
    };
    Failure::Run(format!("{what}{step}: {reason}; {from} continues to serve"))
}

fn shown(of: Option<&String>) -> String {
    text(&of.map_or(Value::Null, |text| json!(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(result: UpgradeResult) -> UpgradeReport {
        UpgradeReport { from: "0.3.0".into(), to: Some("0.4.0".into()), ..UpgradeReport::new(result) }
    }

    fn written(report: &UpgradeReport) -> String {
        let mut out = Vec::new();
        told(&mut out, report).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_good_end_tells_what_moved_and_how_long_packets_waited() {
        let done = UpgradeReport {
            allocations: Some(1),
            streams: Some(2),
            gap_us: Some(2_450),
            late: Some(0),
            ..report(UpgradeResult::Confirmed)
        };
        assert_eq!(
            written(&done),
            "upgraded from 0.3.0 to 0.4.0\n  1 session and 2 TCP and TLS connections moved\n  packets waited for 2.5 ms\n"
        );
        assert!(
            written(&UpgradeReport { late: Some(3), ..done })
                .ends_with("\n  3 TLS handshakes were finished by the old process\n")
        );
        assert_eq!(written(&report(UpgradeResult::Checked)), "an upgrade from 0.3.0 to 0.4.0 is possible\n");
    }

    #[test]
    fn a_bad_end_tells_why_and_who_serves_and_has_its_exit_code() {
        let why = |report: UpgradeReport| {
            let failure = failure(&report);
            (failure.exit_code(), failure.message().unwrap())
        };
        let refused = UpgradeReport { reason: Some("no \u{1b}memory".into()), ..report(UpgradeResult::Refused) };
        let text = "no upgrade: no \\u{1b}memory; 0.3.0 continues to serve";
        assert_eq!(why(refused.clone()), (1, text.to_owned()));
        let back =
            UpgradeReport { result: UpgradeResult::RolledBack, step: Some("probation".into()), ..refused.clone() };
        let (code, text) = why(back);
        assert!(
            code == 1 && text.starts_with("the new process failed and the upgrade was rolled back (probation): "),
            "{text}"
        );
        let (code, text) = why(UpgradeReport { is_configuration: true, ..refused });
        assert!(code == 2 && text.ends_with("no upgrade; 0.3.0 continues to serve"), "{text}");
    }
}
