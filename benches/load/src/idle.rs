//! Thousands of allocations that do nothing: what each keeps of the server's memory, and what they cost to hold.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::flags::Flags;
use crate::histogram::Histogram;
use crate::holders::Holders;
use crate::json::Object;
use crate::meter::{Meter, write_latency};
use crate::plan::{Basics, Places, SESSIONS_MAX};

/// Allocations live for 600 s unless refreshed: opening and holding must stay well below.
const HOLD_MAX: f64 = 400.0;

pub fn main(mut flags: Flags) -> Result<(), String> {
    let basics = Basics::parse(&mut flags, 2.0)?;
    let places = Places::parse(&mut flags, "server")?;
    let sessions: usize = flags.or("sessions", 10_000)?;
    let hold: f64 = flags.or("hold", 5.0)?;
    let settle: f64 = flags.or("settle", 3.0)?;
    let prime: usize = flags.or("prime", 0)?;
    flags.finish()?;
    if !(1..=SESSIONS_MAX).contains(&sessions) || prime > sessions {
        return Err(format!("--sessions {sessions}: allowed are 1 to {SESSIONS_MAX}, and --prime up to that"));
    }
    if !(0.0..=HOLD_MAX).contains(&hold) || !(0.0..=60.0).contains(&settle) {
        return Err(format!("--hold is at most {HOLD_MAX} s, --settle at most 60 s"));
    }
    if basics.pids.is_empty() {
        return Err("--pid is needed: whose memory is to be read?".to_owned());
    }
    basics.settle((hold + settle) as u32 + 150)?;
    let mut meter = Meter::new(&basics.pids)?;
    let mut idle = Holders::new(places, places.client_port, sessions, &basics.account())?;
    idle.open_first(prime);
    idle.release_all();
    thread::sleep(Duration::from_secs_f64(if prime > 0 { settle } else { 0.0 }));
    idle.allocate = Histogram::new();

    let before = Memory::of(&basics.pids)?;
    meter.begin();
    idle.open_first(sessions);
    let opening = meter.end();
    let open = idle.open();
    let refused = idle.failures.text();
    // the server's own clean-up after the last Allocate is not idling
    thread::sleep(Duration::from_secs_f64(settle.min(1.0)));
    let while_open = Memory::of(&basics.pids)?;
    meter.begin();
    thread::sleep(Duration::from_secs_f64(hold));
    let holding = meter.end();
    let after_hold = Memory::of(&basics.pids)?;
    meter.begin();
    idle.release_all();
    let closing = meter.end();
    thread::sleep(Duration::from_secs_f64(settle));
    let after = Memory::of(&basics.pids)?;
    if open < sessions {
        return Err(format!("{open} of {sessions} allocations were opened; refused: {refused}"));
    }

    let each = |open: u64, before: u64| (open as f64 - before as f64) / sessions as f64;
    let mut o = Object::new();
    o.text("mode", "idle").count("sessions", sessions as u64).count("primed", prime as u64);
    holding.write(&mut o, "allocation", sessions as u64);
    o.real("bytes_per_allocation", each(while_open.private_dirty, before.private_dirty))
        .real("rss_bytes_per_allocation", each(while_open.rss, before.rss))
        .real("pss_bytes_per_allocation", each(while_open.pss, before.pss))
        .real("bytes_per_allocation_kept", each(after.private_dirty, before.private_dirty));
    for (name, memory) in [("before", &before), ("open", &while_open), ("after_hold", &after_hold), ("after", &after)] {
        o.count(&format!("rss_{name}"), memory.rss)
            .count(&format!("pss_{name}"), memory.pss)
            .count(&format!("private_dirty_{name}"), memory.private_dirty);
    }
    o.real("idle_cpu_percent", holding.usage.cpu_ns as f64 * 100.0 / holding.nanoseconds as f64)
        .real("idle_switches_per_second", holding.usage.context_switches as f64 / holding.seconds())
        .real("open_seconds", opening.seconds())
        .real("open_cpu_us_per_allocation", opening.usage.cpu_ns as f64 / 1e3 / sessions as f64)
        .real("close_seconds", closing.seconds())
        .real("close_cpu_us_per_allocation", closing.usage.cpu_ns as f64 / 1e3 / sessions as f64);
    write_latency(&mut o, "allocate_", &idle.allocate);
    o.count("failures", idle.failures.total())
        .text("failure_reasons", &idle.failures.text())
        .count("retransmissions", idle.fleet.counts.retransmissions)
        .count("unmatched", idle.fleet.counts.unmatched);
    println!("{}", o.finish());
    Ok(())
}

/// What the kernel says of the memory of the watched processes, in bytes.
#[derive(Default)]
struct Memory {
    rss: u64,
    pss: u64,
    private_dirty: u64,
}

impl Memory {
    fn of(pids: &str) -> Result<Self, String> {
        let mut sum = Self::default();
        for pid in pids.split(',').filter(|pid| !pid.is_empty()) {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
            let memory = Self::read(&text).ok_or_else(|| format!("{path}: no Rss, Pss or Private_Dirty in it"))?;
            sum.rss += memory.rss;
            sum.pss += memory.pss;
            sum.private_dirty += memory.private_dirty;
        }
        Ok(sum)
    }

    fn read(text: &str) -> Option<Self> {
        let kilobytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        Some(Self {
            rss: kilobytes("Rss:")? * 1_024,
            pss: kilobytes("Pss:")? * 1_024,
            private_dirty: kilobytes("Private_Dirty:")? * 1_024,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes_and_never_guessed() {
        let text = "5581-7ffd ---p 00000000 00:00 0   [rollup]\nRss:    1764 kB\nPss:     400 kB\nPss_Dirty: 9 kB\n\
                    Private_Clean: 7 kB\nPrivate_Dirty:  120 kB\n";
        let memory = Memory::read(text).expect("complete");
        assert_eq!((memory.rss, memory.pss, memory.private_dirty), (1_806_336, 409_600, 122_880));
        assert!(Memory::read(&text.replace("Private_Dirty", "Other")).is_none());
        assert!(Memory::of(&std::process::id().to_string()).expect("our own").rss > 100_000);
    }
}
