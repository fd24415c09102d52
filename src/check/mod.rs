//! `throughway check`: a server looked at from outside, as its clients see it, with a remedy for each failure.
//!
//! Owns the order of the steps and what their results mean; speaks through `wire` over sockets of its own, and once
//! through `turn::client`. Knows nothing of our server, so it checks any TURN server. Called by the command line.

pub mod answer;
mod client;
pub mod endpoint;
mod foreign;
mod link;
mod relay;
pub mod remedy;
pub mod report;
mod server;
pub mod skew;
mod tls;
pub mod traffic;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};

use crate::address::{Family, Transport};
use crate::fetch::Url;
use crate::turn_uri::{self, TurnUri};

use answer::Login;
use report::{Outcome, Report, Section, Step};
use server::{Server, unix_now};
use skew::Minter;
use tls::Trust;
use traffic::Burst;

/// How many servers, each URI at each of its addresses, are looked at; an endpoint must not send us further.
const SERVERS_MAX: usize = 24;

/// The remedy where a family was asked for that a server has no address of.
const OTHER_FAMILY: &str = "leave --ipv4 or --ipv6 out, or name a server of that family";

/// What to look at and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// `turn:` and `stun:` URIs, or http(s) URLs of credential endpoints.
    pub subjects: Vec<String>,
    /// For the URIs among them; an endpoint gives its own.
    pub login: Option<Login>,
    /// What made that login, where it was minted.
    pub minter: Option<Minter>,
    /// Further HTTP header lines for the endpoints.
    pub headers: Vec<String>,
    /// Further trusted certificates, PEM.
    pub ca: Option<PathBuf>,
    /// How long each answer may take.
    pub timeout: Duration,
    /// The burst, or no time for none.
    pub burst: Burst,
    /// Only addresses of this family.
    pub family: Option<Family>,
    /// Whether a line on standard error tells where it is.
    pub is_progress_shown: bool,
}

/// The line that tells where it is.
pub(crate) struct Progress {
    is_shown: bool,
    subject: String,
}

impl Progress {
    fn start(&mut self, subject: String) {
        self.subject = subject;
    }

    fn show(&self, step: &str) {
        if self.is_shown {
            // A terminal that went away changes nothing.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}: {step} ...", self.subject);
        }
    }

    fn clear(&self) {
        if self.is_shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

enum CheckSubject {
    Endpoint(String, Url),
    Server(TurnUri),
}

fn parse(text: &str) -> Result<CheckSubject, String> {
    match endpoint::parse_url(text) {
        Some(url) => Ok(CheckSubject::Endpoint(text.to_owned(), url?)),
        None => Ok(CheckSubject::Server(turn_uri::parse(text)?)),
    }
}

/// Looks at everything and reports.
///
/// # Errors
/// What is wrong with the options, or that this machine gives no runtime.
pub fn run(options: &Options) -> Result<Report, String> {
    if options.subjects.is_empty() {
        return Err(
            "nothing to check: name a server, such as turn:turn.example.org:3478, or a credential endpoint".to_owned()
        );
    }
    let subjects = options.subjects.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    let trust = Trust::new(options.ca.as_deref())?;
    let header = |line: &String| {
        endpoint::parse_header(line).ok_or_else(|| format!("--header {line:?}: expected \"Name: value\""))
    };
    let headers = options.headers.iter().map(header).collect::<Result<Vec<_>, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    Ok(runtime.block_on(look(options, subjects, &headers, &trust)))
}

async fn look(
    options: &Options,
    subjects: Vec<CheckSubject>,
    headers: &[(HeaderName, HeaderValue)],
    trust: &Trust,
) -> Report {
    let mut report = Report::default();
    let mut progress = Progress { is_shown: options.is_progress_shown, subject: String::new() };
    let mut wanted: Vec<(TurnUri, Option<Login>)> = Vec::new();
    // What was asked for by name must be tested; an endpoint may name servers of both families.
    let mut named: Vec<TurnUri> = Vec::new();
    for subject in subjects {
        match subject {
            CheckSubject::Endpoint(text, url) => {
                progress.start(text.clone());
                progress.show("credentials");
                let (section, mut found) = ask_endpoint(&text, &url, options, headers, trust).await;
                report.sections.push(section);
                wanted.append(&mut found);
            }
            CheckSubject::Server(uri) => {
                named.push(uri.clone());
                wanted.push((uri, options.login.clone()));
            }
        }
    }
    let mut unique: Vec<(TurnUri, Option<Login>)> = Vec::new();
    for one in wanted {
        if !unique.contains(&one) {
            unique.push(one);
        }
    }
    let mut count = 0;
    let first = report.sections.len();
    for (uri, login) in &unique {
        progress.start(uri.to_string());
        progress.show("names");
        let (step, addresses) = resolve(&uri.host, uri.port, options.family).await;
        if let Some(step) = step {
            let mut section = Section::new(uri.to_string(), None, uri.transport.name());
            section.steps.push(step);
            if named.contains(uri) {
                section.fail_if_untested(OTHER_FAMILY);
            }
            report.sections.push(section);
        }
        for address in addresses {
            count += 1;
            if count > SERVERS_MAX {
                let mut section = Section::new(uri.to_string(), Some(address), uri.transport.name());
                section.steps.push(Step::skip("reach", format!("only the first {SERVERS_MAX} servers are looked at")));
                if named.contains(uri) {
                    section.fail_if_untested("check it by itself, or name fewer servers beside it");
                }
                report.sections.push(section);
                continue;
            }
            progress.start(format!("{uri} at {address}"));
            let server = Server { uri, address, login: login.as_ref(), options, trust };
            report.sections.push(server.check(&mut progress).await);
        }
    }
    progress.clear();
    let servers = &mut report.sections[first..];
    if servers.iter().all(Section::is_untested) {
        servers.iter_mut().for_each(|section| section.fail_if_untested(OTHER_FAMILY));
    }
    compare(&mut report);
    report
}

/// All addresses of a host; the step is missing where there was nothing to look up.
async fn resolve(host: &str, port: u16, family: Option<Family>) -> (Option<Step>, Vec<SocketAddr>) {
    const NAME: &str = "dns";
    if let Ok(ip) = host.parse::<IpAddr>() {
        if family.is_some_and(|family| family != Family::of(ip)) {
            return (Some(Step::skip(NAME, format!("{ip} is not of the family asked for"))), Vec::new());
        }
        return (None, vec![SocketAddr::new(ip, port)]);
    }
    let remedy = "give the name an A record (IPv4) and, where the server has IPv6, an AAAA record; check its spelling";
    let found = match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found,
        Err(error) => return (Some(Step::fail(NAME, format!("{host}: {error}"), remedy)), Vec::new()),
    };
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    let (v4, v6): (Vec<SocketAddr>, Vec<_>) = all.iter().partition(|address| address.is_ipv4());
    let names = all.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
    let step = match (v4.len(), v6.len()) {
        (0, 0) => return (Some(Step::fail(NAME, format!("{host} has no address"), remedy)), Vec::new()),
        (0, _) => Step::warn(
            NAME,
            format!("{host} is {names}: IPv6 only"),
            "clients without IPv6 can't reach it: add an A record",
        ),
        (_, 0) => Step::ok(NAME, format!("{host} is {names} (IPv4 only)")),
        (_, _) => Step::ok(NAME, format!("{host} is {names}")),
    };
    let step = step.with("addresses", all.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>());
    all.retain(|address| family.is_none_or(|family| family == Family::of(address.ip())));
    if all.is_empty() {
        // A report in which nothing was tried must not look fine.
        return (Some(Step::fail(NAME, format!("{host} is {names}: no address of the family asked for"), remedy)), all);
    }
    (Some(step), all)
}

/// A credential endpoint: its answer, its clock, and the servers that it names.
async fn ask_endpoint(
    text: &str,
    url: &Url,
    options: &Options,
    headers: &[(HeaderName, HeaderValue)],
    trust: &Trust,
) -> (Section, Vec<(TurnUri, Option<Login>)>) {
    let mut section = Section::new(text, None, if url.is_https() { "https" } else { "http" });
    let (step, addresses) = resolve(url.host(), url.port(), options.family).await;
    section.steps.extend(step);
    let mut reply = None;
    let mut tried = Vec::new();
    for address in addresses.into_iter().take(4) {
        section.address = Some(address);
        let (got, steps) = endpoint::get(url, address, headers, trust, options.timeout, unix_now()).await;
        tried = steps;
        reply = got;
        if reply.is_some() {
            break;
        }
    }
    section.steps.append(&mut tried);
    let Some(reply) = reply else { return (section, Vec::new()) };
    let now = unix_now();
    let answer = match answer::read(&String::from_utf8_lossy(&reply.body)) {
        Ok(answer) => answer,
        Err(error) => {
            let remedy =
                "the endpoint should answer {\"iceServers\": [...]} or {\"username\", \"password\", \"ttl\", \"uris\"}";
            section.steps.push(Step::fail("answer", error, remedy));
            return (section, Vec::new());
        }
    };
    let login = answer.servers.iter().find_map(|server| server.login.as_ref());
    let step = Step::ok(
        "answer",
        format!("shape {}, ttl {}", answer.shape, answer.ttl.map_or("not given".into(), |ttl| format!("{ttl} s"))),
    );
    section.steps.push(step);
    section.steps.push(judge_clock(endpoint::date(&reply.headers), login, answer.ttl, now));
    let mut found = Vec::new();
    for server in &answer.servers {
        for text in &server.urls {
            match turn_uri::parse(text) {
                Ok(uri) => found.push((uri, server.login.clone())),
                Err(error) => {
                    let remedy =
                        "browsers refuse the whole answer for one wrong URI: correct it in the endpoint's settings";
                    section.steps.push(Step::fail("uri", remedy::printable(&error), remedy));
                }
            }
        }
    }
    (section, found)
}

/// What Date and expiry say about clocks.
fn judge_clock(date: Option<u64>, login: Option<&Login>, ttl: Option<u64>, now: u64) -> Step {
    const NAME: &str = "clock";
    let by_date = date.and_then(|date| i64::try_from(date).ok()?.checked_sub(i64::try_from(now).ok()?));
    let by_expiry = login.zip(ttl).and_then(|(login, ttl)| remedy::issuer_ahead(&login.username, ttl, now));
    let Some(ahead) = by_expiry.or(by_date) else {
        return Step::skip(
            NAME,
            "the answer has neither a Date nor an expiry with a ttl, so the issuer's clock is unknown",
        );
    };
    let remedy =
        "synchronise the clocks of issuer and relay (NTP): a credential's expiry is judged by the relay's clock";
    let step = if ahead.unsigned_abs() > remedy::SKEW_SECONDS_MAX {
        let side = if ahead > 0 { "ahead of" } else { "behind" };
        Step::fail(NAME, format!("the issuer's clock is {} s {side} this machine's", ahead.unsigned_abs()), remedy)
    } else {
        Step::ok(NAME, format!("the issuer's clock is within {} s of this machine's", ahead.unsigned_abs().max(1)))
    };
    step.with("seconds_ahead", ahead)
}

/// Says more where one transport tells about another.
fn compare(report: &mut Report) {
    let host = |section: &Section| section.address.map(|address| address.ip());
    let answers = |section: &Section| section.step("reach").is_some_and(|step| step.outcome == Outcome::Ok);
    let alive: Vec<IpAddr> = report
        .sections
        .iter()
        .filter(|section| section.transport != Transport::Udp.name() && answers(section))
        .filter_map(host)
        .collect();
    for section in &mut report.sections {
        let Some(address) = section.address.filter(|address| alive.contains(&address.ip())) else { continue };
        if section.transport != Transport::Udp.name() {
            continue;
        }
        for step in section.steps.iter_mut().filter(|step| step.name == "reach" && step.outcome == Outcome::Fail) {
            if step.detail == link::NoAnswer::Silence.text() {
                step.remedy = Some(remedy::silent_udp(address.port(), true));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_silence_beside_tcp_that_answers_means_a_firewall() {
        let section = |transport, step| {
            let mut section = Section::new("turn:t.example", Some("192.0.2.7:3478".parse().unwrap()), transport);
            section.steps.push(step);
            section
        };
        let silent = || section("udp", Step::fail("reach", "no answer", "open UDP"));
        let mut report = Report { sections: vec![silent(), section("tcp", Step::ok("reach", "TCP connects"))] };
        compare(&mut report);
        let remedy = report.sections[0].steps[0].remedy.clone().unwrap();
        assert!(remedy.contains("a firewall drops UDP"), "{remedy}");
        let mut alone = Report { sections: vec![silent(), section("tcp", Step::fail("reach", "refused", "x"))] };
        compare(&mut alone);
        assert_eq!(alone.sections[0].steps[0].remedy.as_deref(), Some("open UDP"));
    }

    #[test]
    fn a_clock_an_hour_off_is_named_by_expiry_and_by_date() {
        let login = |expiry: u64| Login { username: format!("{expiry}:alice"), password: String::new() };
        let now = 1_700_000_000;
        for (date, login, ttl, outcome, ahead) in [
            (Some(now), Some(login(now + 3600)), Some(3600), Outcome::Ok, 0),
            (None, Some(login(now)), Some(3600), Outcome::Fail, -3600),
            (Some(now + 3600), None, None, Outcome::Fail, 3600),
            (Some(now - 20), Some(login(now)), None, Outcome::Ok, -20),
        ] {
            let step = judge_clock(date, login.as_ref(), ttl, now);
            assert_eq!((step.outcome, &step.values["seconds_ahead"]), (outcome, &ahead.into()), "{step:?}");
        }
        assert_eq!(judge_clock(None, None, None, now).outcome, Outcome::Skip);
    }
}
