//! What `init` asks on a terminal: each question with its default, asked again until its answer is good.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use super::{Certificate, InitOptions, Plan};
use crate::failure::Failure;

/// Asks for what no option said. `check` says what is wrong with a plan.
pub(super) fn ask(
    plan: &mut Plan,
    options: &InitOptions,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    check: &dyn Fn(&Plan) -> Result<(), String>,
) -> Result<(), Failure> {
    let mut person = Person { input, output, check };
    if options.host.is_none() {
        let question = "Host name of this server, such as turn.example.org (empty: clients use its address)";
        person.ask(plan, question, |plan, answer| {
            plan.host = Some(answer.to_owned());
            Ok(())
        })?;
    }
    if let Some(local) = plan.hidden(true) {
        let question = format!(
            "Public IPv4 address; this machine has {local}, which the internet does not reach (empty: not on the internet)"
        );
        person.ask(plan, &question, |plan, answer| {
            plan.external.push(answer.parse().map_err(|_| "expected an address such as 203.0.113.7".to_owned())?);
            Ok(())
        })?;
    }
    if plan.relay_ports == super::RELAY_PORTS {
        let question = format!("UDP ports for relayed traffic (empty: {})", plan.relay_ports);
        person.ask(plan, &question, |plan, answer| {
            plan.relay_ports = answer.to_owned();
            Ok(())
        })?;
    }
    if plan.tls.is_none() && plan.has_domain() {
        let question = "E-mail address for a certificate from Let's Encrypt, whose terms you accept by this \
             (empty: none from there)";
        person.ask(plan, question, |plan, answer| {
            plan.tls = Some(Certificate::of_authority(answer, &options.config));
            Ok(())
        })?;
    }
    if plan.tls.is_none() {
        let question = "PEM file of a certificate chain for TLS (empty: no TLS yet)";
        let mut chain = None;
        person.ask(plan, question, |_, answer| {
            chain = Some(answer.into());
            Ok(())
        })?;
        if let Some(chain) = chain {
            person.ask(plan, "PEM file of its private key", |plan, answer| {
                plan.tls = Some(Certificate::Files { chain: PathBuf::clone(&chain), key: answer.into() });
                Ok(())
            })?;
        }
    }
    if plan.tls.is_some() && options.tls_port.is_none() {
        let question = format!("Port for clients over TLS; 443 passes most firewalls (empty: {})", plan.tls_port);
        person.ask(plan, &question, |plan, answer| {
            let port = answer.parse().ok().filter(|port| *port > 0);
            plan.tls_port = port.ok_or_else(|| format!("{answer}: expected a port, 1 to 65535"))?;
            Ok(())
        })?;
    }
    Ok(())
}

struct Person<'p> {
    input: &'p mut dyn BufRead,
    output: &'p mut dyn Write,
    check: &'p dyn Fn(&Plan) -> Result<(), String>,
}

impl Person<'_> {
    /// One question. An empty answer changes nothing, and a wrong one is told and asked again.
    fn ask(
        &mut self,
        plan: &mut Plan,
        question: &str,
        mut set: impl FnMut(&mut Plan, &str) -> Result<(), String>,
    ) -> Result<(), Failure> {
        loop {
            write!(self.output, "{question}: ")?;
            self.output.flush()?;
            let mut line = String::new();
            if self.input.read_line(&mut line)? == 0 {
                let ended = io::Error::new(io::ErrorKind::UnexpectedEof, "no answer; nothing was written");
                return Err(ended.into());
            }
            let answer = line.trim();
            if answer.is_empty() {
                return Ok(());
            }
            let mut next = plan.clone();
            match set(&mut next, answer).and_then(|()| (self.check)(&next)) {
                Ok(()) => {
                    *plan = next;
                    return Ok(());
                }
                Err(why) => writeln!(self.output, "{why}")?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: InitOptions,
    }

    fn options(arguments: &[&str]) -> InitOptions {
        Line::parse_from([&["init"], arguments].concat()).options
    }

    fn asked(arguments: &[&str], answers: &str) -> (Result<Plan, Failure>, String) {
        let options = options(arguments);
        let mut plan = Plan { local: vec!["10.0.0.5".parse().unwrap()], ..super::super::plan(&options).unwrap() };
        let mut output = Vec::new();
        let check = |plan: &Plan| plan.check(std::path::Path::new("/nowhere/c.toml"));
        let asked = ask(&mut plan, &options, &mut answers.as_bytes(), &mut output, &check);
        (asked.map(|()| plan), String::from_utf8(output).unwrap())
    }

    #[test]
    fn a_wrong_answer_is_told_and_asked_again() {
        let answers = "https://turn.example.org/\nturn.example.org\n10.0.0.300\n45.0.0.7\n9-8\n50000-50100\n\n\n";
        let (plan, said) = asked(&[], answers);
        let plan = plan.unwrap();
        assert_eq!(plan.host.as_deref(), Some("turn.example.org"), "{said}");
        assert_eq!(plan.external, ["45.0.0.7".parse::<std::net::IpAddr>().unwrap()], "{said}");
        assert_eq!((&*plan.relay_ports, &plan.tls), ("50000-50100", &None), "{said}");
        for why in ["without scheme", "expected an address", "write \"8-9\""] {
            assert!(said.contains(why), "{said}\nlacks {why}");
        }
        assert_eq!(said.matches("Host name").count(), 2, "{said}");
    }

    #[test]
    fn what_an_option_says_is_not_asked() {
        let arguments = ["--host", "turn.example.org", "--external", "45.0.0.7", "--relay-ports", "50000-50100"];
        let (plan, said) = asked(&arguments, "\n\n");
        assert_eq!(plan.unwrap().host.as_deref(), Some("turn.example.org"));
        assert_eq!(said.matches("E-mail").count() + said.matches("PEM").count(), 2, "{said}");
        assert!(!["Host", "IPv4", "UDP ports", "Port for"].iter().any(|asked| said.contains(asked)), "{said}");
        let (plan, said) = asked(&[&arguments[..], &["--email", "ops@example.org", "--tls-port", "443"]].concat(), "");
        assert!(matches!(plan.unwrap().tls, Some(Certificate::Authority { .. })) && said.is_empty(), "{said}");
    }

    #[test]
    fn a_name_and_an_email_are_a_certificate_and_a_port() {
        let arguments = ["--host", "turn.example.org", "--external", "45.0.0.7", "--relay-ports", "50000-50100"];
        let (plan, said) = asked(&arguments, "ops\nops@example.org\n0\nhttps\n3478\n443\n");
        let plan = plan.unwrap();
        let wanted = Certificate::of_authority("ops@example.org", &options(&arguments).config);
        assert_eq!((plan.tls, plan.tls_port), (Some(wanted), 443), "{said}");
        for why in ["is not an e-mail address", "0: expected a port", "https: expected a port", "3478"] {
            assert!(said.contains(why), "{said}\nlacks {why}");
        }
        assert!(!said.contains("PEM"), "{said}");
        // For an address or a local name no authority has one.
        for host in ["192.0.2.7", "turn"] {
            let (plan, said) = asked(&["--host", host, "--external", "45.0.0.7"], "\n\n");
            assert!(plan.unwrap().tls.is_none() && !said.contains("E-mail"), "{said}");
        }
    }

    #[test]
    fn a_port_for_tls_that_was_said_is_not_asked_and_needs_a_certificate() {
        let arguments =
            ["--host", "turn", "--external", "45.0.0.7", "--relay-ports", "50000-50100", "--tls-port", "5349"];
        let (plan, said) = asked(&arguments, "\n");
        let wrong = plan.unwrap().check_tls_port(&options(&arguments)).unwrap_err();
        assert!(wrong.contains("--tls-port 5349: there is no certificate"), "{wrong}");
        let (plan, said_too) = asked(&arguments, "chain.pem\nkey.pem\n");
        // Neither file is there, which is told when they are asked for.
        assert!(plan.is_err() && said_too.contains("chain.pem"), "{said_too}");
        assert!(!said.contains("Port for clients") && !said_too.contains("Port for clients"), "{said}{said_too}");
    }

    #[test]
    fn an_option_that_says_nothing_is_refused() {
        let names = [
            "--host",
            "--email",
            "--stun",
            "--relay-ports",
            "--config",
            "--certificate",
            "--private-key",
            "--external",
        ];
        for name in names {
            for empty in ["", " \t"] {
                let said = Line::try_parse_from(["init", name, empty]).err().map(|error| error.to_string());
                let is_told = |said: &str| said.contains("is empty") || said.contains("invalid IP address");
                assert!(said.as_deref().is_some_and(is_told), "{name} {empty:?}: {said:?}");
            }
        }
    }

    #[test]
    fn a_host_that_is_a_url_is_refused_where_it_was_given() {
        for host in ["https://turn.example.org", "turn.example.org:443", "turn.example.org/", "-x"] {
            let said = Line::try_parse_from(["init", &format!("--host={host}")])
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(said.contains("--host") && said.contains("without scheme"), "{host}: {said}");
        }
    }

    #[test]
    fn an_end_of_answers_writes_nothing() {
        let (plan, _) = asked(&[], "turn.example.org\n");
        assert!(plan.unwrap_err().to_string().contains("nothing was written"));
    }
}
