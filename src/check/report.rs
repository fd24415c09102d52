//! What was found: steps with an outcome, in sections, as text for people and JSON for monitoring.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::{Map, Value, json};

/// How a step ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, but somebody should look.
    Warn,
    /// Clients will fail here.
    Fail,
    /// Not looked at, and why.
    Skip,
}

impl Outcome {
    /// The word in both forms of the report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// One thing that was tried.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// Its name, the same in every version.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
    /// What to do about it; every failure has one.
    pub remedy: Option<String>,
    /// Figures, for the JSON form.
    pub values: Map<String, Value>,
}

impl Step {
    fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>, remedy: Option<String>) -> Self {
        Self { name, outcome, detail: detail.into(), remedy, values: Map::new() }
    }

    /// As it should be.
    #[must_use]
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Ok, detail, None)
    }

    /// Works, but should be looked at.
    #[must_use]
    pub fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Outcome::Warn, detail, Some(remedy.into()))
    }

    /// Does not work.
    #[must_use]
    pub fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Outcome::Fail, detail, Some(remedy.into()))
    }

    /// Could not or need not be looked at.
    #[must_use]
    pub fn skip(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Skip, detail, None)
    }

    /// Adds a figure.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.values.insert(key.to_owned(), value.into());
        self
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("step".into(), self.name.into());
        object.insert("outcome".into(), self.outcome.name().into());
        object.insert("detail".into(), self.detail.clone().into());
        if let Some(remedy) = &self.remedy {
            object.insert("remedy".into(), remedy.clone().into());
        }
        if !self.values.is_empty() {
            object.insert("values".into(), self.values.clone().into());
        }
        object.into()
    }
}

/// The steps of one subject: a credential endpoint, or a server at one address over one transport.
#[derive(Clone, Debug)]
pub struct Section {
    /// The URI as given.
    pub uri: String,
    /// The address that was talked to, once known.
    pub address: Option<SocketAddr>,
    /// `udp`, `tcp`, `tls`, `http` or `https`.
    pub transport: &'static str,
    /// In the order in which they were taken.
    pub steps: Vec<Step>,
}

impl Section {
    /// An empty section.
    #[must_use]
    pub fn new(uri: impl Into<String>, address: Option<SocketAddr>, transport: &'static str) -> Self {
        Self { uri: uri.into(), address, transport, steps: Vec::new() }
    }

    /// Whether no step failed.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != Outcome::Fail)
    }

    /// Whether every step was left out.
    #[must_use]
    pub fn is_untested(&self) -> bool {
        self.steps.iter().all(|step| step.outcome == Outcome::Skip)
    }

    /// Adds a failure where every step was left out: a server that nothing is known of must not look fine.
    pub fn fail_if_untested(&mut self, remedy: &str) {
        if self.is_untested() {
            self.steps.push(Step::fail("tested", "nothing could be tested", remedy));
        }
    }

    /// The step of a name.
    #[must_use]
    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }
}

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One for each subject.
    pub sections: Vec<Section>,
}

impl Report {
    fn count(&self, outcome: Outcome) -> usize {
        self.sections.iter().flat_map(|section| &section.steps).filter(|step| step.outcome == outcome).count()
    }

    /// Whether nothing failed, and something was looked at.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.count(Outcome::Fail) == 0 && self.count(Outcome::Ok) > 0
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for section in &self.sections {
            let at = section.address.map(|address| format!(" at {address}")).unwrap_or_default();
            // writing to a String can't fail
            let _ = writeln!(text, "{}{at}", section.uri);
            for step in &section.steps {
                let _ = writeln!(text, "  {:<4}  {:<15}  {}", step.outcome.name(), step.name, step.detail);
                if let Some(remedy) = &step.remedy {
                    let _ = writeln!(text, "                         remedy: {remedy}");
                }
            }
            text.push('\n');
        }
        let counts = [Outcome::Fail, Outcome::Warn, Outcome::Skip, Outcome::Ok].map(|outcome| self.count(outcome));
        let [failed, warned, skipped, fine] = counts;
        let _ = writeln!(text, "{failed} failed, {warned} to look at, {skipped} skipped, {fine} fine");
        text
    }

    /// For monitoring.
    #[must_use]
    pub fn json(&self) -> Value {
        let sections: Vec<Value> = self
            .sections
            .iter()
            .map(|section| {
                json!({
                    "uri": section.uri,
                    "address": section.address.map(|address| address.to_string()),
                    "transport": section.transport,
                    "ok": section.is_ok(),
                    "steps": section.steps.iter().map(Step::json).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "ok": self.is_ok(),
            "failed": self.count(Outcome::Fail),
            "warned": self.count(Outcome::Warn),
            "skipped": self.count(Outcome::Skip),
            "fine": self.count(Outcome::Ok),
            "subjects": sections,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(steps: Vec<Step>) -> Report {
        let address = Some("192.0.2.7:3478".parse().unwrap());
        Report { sections: vec![Section { steps, ..Section::new("turn:turn.example:3478", address, "udp") }] }
    }

    #[test]
    fn a_warning_is_fine_and_a_failure_or_an_empty_report_is_not() {
        let (ok, warn) = (Step::ok("reach", "answered"), Step::warn("rtt", "slow", "look"));
        assert!(report(vec![ok.clone(), warn, Step::skip("peer", "denied")]).is_ok());
        assert!(!report(vec![ok, Step::fail("allocate", "401", "mint again")]).is_ok());
        assert!(!report(Vec::new()).is_ok());
        assert!(!report(vec![Step::skip("dns", "nothing to do")]).is_ok());
    }

    #[test]
    fn a_server_of_which_nothing_was_tried_is_a_failure_beside_one_that_is_fine() {
        let mut report = report(vec![Step::ok("reach", "answered")]);
        for steps in [vec![Step::skip("dns", "not of the family asked for")], Vec::new()] {
            let mut untested = Section { steps, ..Section::new("turn:[2001:db8::7]", None, "udp") };
            untested.fail_if_untested("name another family");
            assert_eq!(untested.step("tested").map(|step| step.outcome), Some(Outcome::Fail));
            assert!(!untested.is_ok() && !untested.is_untested());
            report.sections.push(untested);
        }
        assert!(!report.is_ok());
        let mut tested = report.sections.remove(0);
        tested.fail_if_untested("x");
        assert!(tested.is_ok() && tested.step("tested").is_none());
    }

    #[test]
    fn text_shows_each_step_and_the_remedy_below_it() {
        let text = report(vec![Step::ok("reach", "answered"), Step::fail("allocate", "401", "mint again")]).text();
        assert_eq!(
            text,
            "turn:turn.example:3478 at 192.0.2.7:3478\n\
             \x20 ok    reach            answered\n\
             \x20 fail  allocate         401\n\
             \x20                        remedy: mint again\n\
             \n\
             1 failed, 0 to look at, 0 skipped, 1 fine\n"
        );
    }

    #[test]
    fn json_has_the_same_facts_and_the_figures() {
        let json =
            report(vec![Step::ok("rtt", "3 ms").with("median_ms", 3.0), Step::fail("allocate", "401", "x")]).json();
        assert_eq!(json["ok"], false);
        assert_eq!((&json["failed"], &json["fine"]), (&1.into(), &1.into()));
        let subject = &json["subjects"][0];
        assert_eq!((&subject["transport"], &subject["address"]), (&"udp".into(), &"192.0.2.7:3478".into()));
        assert_eq!(subject["steps"][0]["values"]["median_ms"], 3.0);
        assert_eq!(subject["steps"][1]["remedy"], "x");
        assert!(subject["steps"][0].get("remedy").is_none());
    }
}
