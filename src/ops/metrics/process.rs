//! The process itself, under the names that Prometheus gives these in every program.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::text::Text;
use crate::clock;

/// What the system tells about this process; a line that it does not tell is left out.
pub(super) fn publish(text: &mut Text, started: u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    text.gauge("process_start_time_seconds", "Start time of the process, in seconds since 1970").value(started);
    text.real_counter("process_cpu_seconds_total", "Processor time of the process, including system time")
        .value(clock::processor_nanoseconds() as f64 / 1e9);
    let gauges = [
        ("process_resident_memory_bytes", "Resident memory of the process", kilobytes(&status, "VmRSS:")),
        ("process_virtual_memory_bytes", "Virtual memory of the process", kilobytes(&status, "VmSize:")),
        ("process_threads", "Threads of the process", word(&status, "Threads:", 0)),
        ("process_open_fds", "Open file descriptors", open_files()),
        ("process_max_fds", "Limit of open file descriptors", word(&limits, "Max open files", 0)),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            text.gauge(name, help).value(value);
        }
    }
}

/// A number behind the start of a line.
fn word(text: &str, start: &str, at: usize) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(start))?.split_whitespace().nth(at)?.parse().ok()
}

fn kilobytes(text: &str, start: &str) -> Option<u64> {
    Some(word(text, start, 0)? * 1024)
}

/// The size of the directory of descriptors is their number since Linux 6.2; before, they must be counted.
fn open_files() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    let size = fs::metadata(DIRECTORY).map_or(0, |directory| directory.size());
    // The one that reads the directory is among them.
    if size > 0 { Some(size) } else { Some(fs::read_dir(DIRECTORY).ok()?.count().saturating_sub(1) as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_all_of_them() {
        let mut text = Text::default();
        publish(&mut text, 1_800_000_000);
        let text = text.into_string();
        let value = |name: &str| {
            let line = text.lines().find(|line| line.split(' ').next() == Some(name));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert_eq!(value("process_start_time_seconds"), 1.8e9);
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1.0);
        assert!((3.0..=value("process_max_fds")).contains(&value("process_open_fds")));
    }

    #[test]
    fn lines_that_are_not_there_give_nothing() {
        assert_eq!(word("VmRSS:\t  12 kB\n", "VmRSS:", 0), Some(12));
        assert_eq!(kilobytes("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12 * 1024));
        for text in ["", "VmRSS:", "VmRSS: unlimited"] {
            assert_eq!(word(text, "VmRSS:", 0), None, "{text}");
        }
    }
}
