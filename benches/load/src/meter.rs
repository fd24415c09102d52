//! What the server used within the measured window, and the keys that every mode reports.

use crate::histogram::Histogram;
use crate::json::Object;
use crate::sys::{self, Usage, Watch};

pub struct Meter {
    server: Watch,
    own: Option<Watch>,
    watched: bool,
    begun: Usage,
    own_begun: u64,
    begun_at: u64,
}

/// A measured window.
#[derive(Default)]
pub struct Window {
    pub nanoseconds: u64,
    pub usage: Usage,
    pub own_cpu_ns: u64,
    watched: bool,
}

impl Meter {
    /// `pids` are the server's processes; none is allowed, then nothing is charged to anybody.
    pub fn new(pids: &str) -> Result<Self, String> {
        Ok(Self {
            server: Watch::new(pids)?,
            own: Watch::new(&std::process::id().to_string()).ok(),
            watched: !pids.is_empty(),
            begun: Usage::default(),
            own_begun: 0,
            begun_at: 0,
        })
    }

    /// Charges the kernel threads that receive for the server, too.
    pub fn and_softirq(self, pids: &str) -> Result<Self, String> {
        Ok(Self { server: self.server.and_softirq(pids)?, ..self })
    }

    fn own_cpu_ns(&self) -> u64 {
        self.own.as_ref().map_or(0, Watch::cpu_ns)
    }

    pub fn begin(&mut self) {
        self.begun = self.server.usage();
        self.own_begun = self.own_cpu_ns();
        self.begun_at = sys::now();
    }

    pub fn end(&self) -> Window {
        let nanoseconds = sys::now() - self.begun_at;
        let ended = self.server.usage();
        Window {
            nanoseconds,
            usage: Usage {
                cpu_ns: ended.cpu_ns.saturating_sub(self.begun.cpu_ns),
                context_switches: ended.context_switches.saturating_sub(self.begun.context_switches),
                softirq_ns: ended.softirq_ns.saturating_sub(self.begun.softirq_ns),
                softirq_switches: ended.softirq_switches.saturating_sub(self.begun.softirq_switches),
                resident_bytes: ended.resident_bytes,
            },
            own_cpu_ns: self.own_cpu_ns().saturating_sub(self.own_begun),
            watched: self.watched,
        }
    }
}

impl Window {
    pub fn seconds(&self) -> f64 {
        self.nanoseconds as f64 / 1e9
    }

    /// Units and what they cost; a server that was not watched has no cost.
    pub fn write(&self, o: &mut Object, unit: &str, units: u64) {
        o.text("unit", unit)
            .count("units", units)
            .real("units_per_second", units as f64 / self.seconds())
            .real("seconds", self.seconds())
            .real("generator_cpu", self.own_cpu_ns as f64 / self.nanoseconds as f64);
        if self.watched {
            let cpu_ns = self.usage.cpu_ns + self.usage.softirq_ns;
            o.count("cpu_ns", cpu_ns)
                .real("cpu_ns_per_unit", cpu_ns as f64 / units as f64)
                .real("units_per_cpu_second", units as f64 * 1e9 / cpu_ns as f64)
                .real("cpu_share", cpu_ns as f64 / self.nanoseconds as f64)
                .real("switches_per_unit", self.usage.context_switches as f64 / units as f64)
                .count("resident_bytes", self.usage.resident_bytes);
        }
    }
}

/// `p50_us`, `p99_us` and `max_us`, with something before them.
pub fn write_latency(o: &mut Object, before: &str, latency: &Histogram) {
    for (name, value) in
        [("p50_us", latency.quantile(0.5)), ("p99_us", latency.quantile(0.99)), ("max_us", latency.max())]
    {
        o.real(&format!("{before}{name}"), value as f64 / 1e3);
    }
}
