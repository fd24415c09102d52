//! The system's clocks, counters and scheduling; everything about processes that is not a socket.

use std::fs;
use std::io;

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    read_clock(libc::CLOCK_MONOTONIC)
}

fn read_clock(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the write; a bad clock id is an error return, which leaves zeros.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time and context switches of the server's processes, all threads, to the nanosecond.
/// (utime and stime of /proc count jiffies: useless for a run of two seconds.)
pub struct Watch {
    server: Clocks,
    softirq: Clocks,
}

#[derive(Default)]
struct Clocks {
    pids: Vec<i32>,
    clocks: Vec<libc::clockid_t>,
}

#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub cpu_ns: u64,
    pub context_switches: u64,
    /// Of the kernel threads that receive for the server, see `and_softirq`.
    pub softirq_ns: u64,
    pub softirq_switches: u64,
    pub resident_bytes: u64,
}

impl Watch {
    pub fn new(pids: &str) -> Result<Self, String> {
        Ok(Self { server: Clocks::new("--pid", pids)?, softirq: Clocks::default() })
    }

    /// Charges kernel threads too, as a part of its own: where receiving is done outside the server's process.
    pub fn and_softirq(self, pids: &str) -> Result<Self, String> {
        Ok(Self { softirq: Clocks::new("--softirq", pids)?, ..self })
    }

    pub fn cpu_ns(&self) -> u64 {
        self.server.cpu_ns()
    }

    pub fn usage(&self) -> Usage {
        Usage {
            cpu_ns: self.server.cpu_ns(),
            context_switches: self.server.context_switches(),
            softirq_ns: self.softirq.cpu_ns(),
            softirq_switches: self.softirq.context_switches(),
            resident_bytes: self.server.resident_bytes(),
        }
    }
}

impl Clocks {
    fn new(flag: &str, pids: &str) -> Result<Self, String> {
        let mut found = Self::default();
        for word in pids.split(',').filter(|word| !word.is_empty()) {
            let pid = word.parse().map_err(|_| format!("{flag}: `{word}` is not a process id"))?;
            let mut clock = 0;
            // SAFETY: `clock` is valid for the write.
            let error = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
            if error != 0 {
                return Err(format!("{flag} {pid}: {}", io::Error::from_raw_os_error(error)));
            }
            found.pids.push(pid);
            found.clocks.push(clock);
        }
        Ok(found)
    }

    fn cpu_ns(&self) -> u64 {
        self.clocks.iter().map(|clock| read_clock(*clock)).sum()
    }

    /// Waits for something, all threads.
    fn context_switches(&self) -> u64 {
        let mut switches = 0;
        for pid in &self.pids {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                switches += line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
            }
        }
        switches
    }

    fn resident_bytes(&self) -> u64 {
        let pages = |pid: &i32| {
            let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            text.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
        };
        self.pids.iter().map(pages).sum::<u64>() * 4_096
    }
}

/// Datagrams the kernel dropped because a UDP socket's buffer was full.
#[derive(Clone, Copy, Default)]
pub struct Drops {
    pub generator: u64,
    pub listener: u64,
    /// All other sockets: the relayed ones.
    pub relayed: u64,
}

/// The drops of every UDP socket of this network namespace.
pub fn socket_drops(generator: &[u16], listener: u16) -> Drops {
    drops_in(&fs::read_to_string("/proc/self/net/udp").unwrap_or_default(), generator, listener)
}

/// Sorts the drops of every UDP socket in one or several tables, each as /proc/net/udp is.
pub fn drops_in(tables: &str, generator: &[u16], listener: u16) -> Drops {
    let mut drops = Drops::default();
    for line in tables.lines().filter(|line| !line.trim_start().starts_with("sl")) {
        let mut words = line.split_whitespace();
        let port = words.nth(1).and_then(|local| u16::from_str_radix(local.rsplit(':').next()?, 16).ok());
        let dropped = words.next_back().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match port {
            Some(port) if generator.contains(&port) => drops.generator += dropped,
            Some(port) if port == listener => drops.listener += dropped,
            _ => drops.relayed += dropped,
        }
    }
    drops
}

pub fn pin(cpu: usize) -> Result<(), String> {
    // SAFETY: an all-zero cpu_set_t is the empty set, and CPU_SET checks its bound.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    os_result(result, || format!("--cpu {cpu}"))
}

pub fn real_time() -> Result<(), String> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: `parameters` is valid for the read.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) };
    os_result(result, || "--fifo (needs root or CAP_SYS_NICE)".to_owned())
}

/// The last resort against a run that hangs: the kernel ends the process.
pub fn end_after(seconds: u32) {
    // SAFETY: no memory is involved; without a handler SIGALRM ends the process.
    unsafe { libc::alarm(seconds) };
}

pub fn raise_open_files() {
    // SAFETY: `limit` is valid for the read and the write.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

fn os_result(result: libc::c_int, what: impl Fn() -> String) -> Result<(), String> {
    if result == 0 { Ok(()) } else { Err(format!("{}: {}", what(), io::Error::last_os_error())) }
}
