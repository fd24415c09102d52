//! Starts the binary with a configuration of its own and ends it with the test.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::http::{self, Scrape};
use super::log::Log;
use super::{PATIENCE, wait_for};

/// What a test may want different; the rest is loopback on ports that the kernel chooses.
#[derive(Clone)]
pub struct Settings {
    pub workers: u8,
    pub supervise: bool,
    pub udp: Vec<String>,
    pub tcp: Vec<String>,
    pub tls: Vec<String>,
    pub auto: Vec<String>,
    /// The proxies of every listener for streams.
    pub proxy_from: Vec<&'static str>,
    /// Certificate and key, the first as `tls.certificate`, the others as `[[tls.certificates]]`.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    pub users: Vec<(&'static str, &'static str)>,
    pub secrets: Vec<(&'static str, &'static str)>,
    pub allow: Vec<&'static str>,
    pub deny: Vec<&'static str>,
    pub limits: Vec<(&'static str, &'static str)>,
    pub hosts: Vec<&'static str>,
    pub ports: Option<RangeInclusive<u16>>,
    pub level: &'static str,
    pub turn: Vec<(&'static str, &'static str)>,
    pub auth: Vec<(&'static str, &'static str)>,
    /// `http.listen`.
    pub http_listen: String,
    /// Further lines of `[http]`, and tables after everything else.
    pub http: String,
    pub tables: String,
    pub relay: Vec<(&'static str, &'static str)>,
    /// Keys of `[accounting]`; paths are relative to the server's directory.
    pub accounting: Vec<(&'static str, String)>,
}

impl Settings {
    pub fn new(workers: u8) -> Self {
        let both = vec!["127.0.0.1:0".to_owned(), "[::1]:0".to_owned()];
        Self {
            workers,
            supervise: false,
            udp: both.clone(),
            tcp: both,
            tls: Vec::new(),
            auto: Vec::new(),
            proxy_from: Vec::new(),
            certificates: Vec::new(),
            users: vec![("alice", "wonderland"), ("bob", "builder")],
            secrets: vec![("main", "north-of-everything")],
            allow: vec!["127.0.0.0/8", "::1/128"],
            deny: Vec::new(),
            limits: Vec::new(),
            hosts: Vec::new(),
            ports: None,
            level: "info",
            turn: Vec::new(),
            auth: Vec::new(),
            http_listen: "127.0.0.1:0".to_owned(),
            http: String::new(),
            tables: String::new(),
            relay: Vec::new(),
            accounting: Vec::new(),
        }
    }

    /// A key of `[accounting]` and its value, which is text.
    pub fn account(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.accounting.push((key, value.into()));
        self
    }

    pub fn limit(mut self, key: &'static str, value: &'static str) -> Self {
        self.limits.retain(|(old, _)| *old != key);
        self.limits.push((key, value));
        self
    }

    /// The configuration's text.
    pub fn text(&self, ports: &RangeInclusive<u16>) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        let pairs =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
        writeln!(text, "workers = {}\nsupervise = {}", self.workers, self.supervise).unwrap();
        // A table is as the test wrote it.
        let raw = |text: &str| text.starts_with('{') || text.starts_with("[{");
        let shown = |text: &str| if raw(text) { text.to_owned() } else { format!("{text:?}") };
        let plain =
            |listeners: &[String]| format!("[{}]", listeners.iter().map(|at| shown(at)).collect::<Vec<_>>().join(", "));
        let streams = |listeners: &[String]| -> String {
            if self.proxy_from.is_empty() {
                return plain(listeners);
            }
            let from = &self.proxy_from;
            let tables = listeners.iter().map(|at| format!("{{ address = {at:?}, proxy_from = {from:?} }}"));
            format!("[{}]", tables.collect::<Vec<_>>().join(", "))
        };
        writeln!(text, "[listen]\nudp = {}\ntcp = {}", plain(&self.udp), streams(&self.tcp)).unwrap();
        writeln!(text, "tls = {}\nauto = {}", streams(&self.tls), streams(&self.auto)).unwrap();
        for (at, (certificate, key)) in self.certificates.iter().enumerate() {
            let section = if at == 0 { "[tls]" } else { "[[tls.certificates]]" };
            writeln!(text, "{section}\ncertificate = {certificate:?}\nprivate_key = {key:?}").unwrap();
        }
        let range = format!("{}-{}", ports.start(), ports.end());
        writeln!(text, "[relay]\nports = {range:?}\n{}", pairs(&self.relay)).unwrap();
        if !self.relay.iter().any(|(key, _)| *key == "addresses") {
            text.push_str("addresses = [\"127.0.0.1\", \"::1\"]\n");
        }
        writeln!(text, "[turn]\n{}", pairs(&self.turn)).unwrap();
        writeln!(text, "[peers]\nallow = {:?}\ndeny = {:?}", self.allow, self.deny).unwrap();
        writeln!(text, "[limits]\n{}", pairs(&self.limits)).unwrap();
        writeln!(text, "[http]\nlisten = {:?}\nhosts = {:?}\n{}", self.http_listen, self.hosts, self.http).unwrap();
        // Tests count the lines of sessions, whatever number a slow machine has within a minute.
        writeln!(text, "[log]\nformat = \"json\"\nlevel = {:?}\nsession_lines_per_user = 0", self.level).unwrap();
        writeln!(text, "[accounting]").unwrap();
        for (key, value) in &self.accounting {
            writeln!(text, "{key} = {value:?}").unwrap();
        }
        if !self.auth.is_empty() {
            writeln!(text, "[auth]\n{}", pairs(&self.auth)).unwrap();
        }
        writeln!(text, "[auth.users]").unwrap();
        for (name, password) in &self.users {
            writeln!(text, "{name} = {}", shown(password)).unwrap();
        }
        for (id, value) in &self.secrets {
            writeln!(text, "[[auth.secrets]]\nid = {id:?}\nvalue = {value:?}").unwrap();
        }
        text + &self.tables
    }

    pub fn start(self) -> Server {
        Server::start(self)
    }
}

/// Ports that no other test uses while this lives.
pub struct Slice {
    pub range: RangeInclusive<u16>,
    _guard: UdpSocket,
}

/// Ports of one slice; the first is bound by the test to mark the slice as taken.
const SLICE: u16 = 50;
const SLICES: RangeInclusive<u16> = 0..=59;

impl Slice {
    pub fn take() -> Self {
        let count = SLICES.len() as u16;
        let first = (std::process::id() as u16) % count;
        let found = (0..count).find_map(|offset| {
            let start = 23_000 + (first + offset) % count * SLICE;
            let guard = UdpSocket::bind(("127.0.0.1", start)).ok()?;
            Some(Self { range: start + 2..=start + SLICE - 1, _guard: guard })
        });
        found.expect("a free slice of ports within 23000 to 25999")
    }
}

/// A directory that goes away with the test.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("throughway-e2e-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The binary, ready to be started on a configuration file. $MEASURED_BINARY names another one, so that the same
/// measurement can be made of an older version.
pub fn binary(config: &Path) -> Command {
    let program = std::env::var_os("MEASURED_BINARY").unwrap_or_else(|| crate::program().into());
    let mut command = Command::new(program);
    command.args(["serve", "--config"]).arg(config).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The same command, which may open so many files and no more.
pub fn with_open_files(whole: &Command, files: u32) -> Command {
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -n {files} && exec \"$0\" \"$@\""));
    limited.arg(whole.get_program()).args(whole.get_args());
    limited.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    limited
}

/// Runs the binary to its end, which must come by itself; gives its exit code and what it said.
pub fn run_to_end(config: &Path) -> (i32, String) {
    let mut child = Killed(binary(config).spawn().unwrap());
    let (log, reader) = Log::follow(child.0.stderr.take().unwrap());
    let status = wait_for("the server to give up by itself", || child.0.try_wait().unwrap());
    reader.join().unwrap();
    (status.code().expect("an exit code"), log.text())
}

/// A child that never outlives its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that a server started in its own place; this one becomes its parent when the server has ended.
struct Successor(u32);

impl Successor {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0 as i32).expect("a process id")
    }

    /// How it ended; `None` while it runs.
    fn try_wait(&self) -> Option<ExitStatus> {
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::NOHANG).ok()??;
        Some(ExitStatus::from_raw(status.as_raw()))
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), Signal::KILL);
        let _ = waitpid(Some(self.pid()), WaitOptions::empty());
    }
}

/// A running server.
pub struct Server {
    child: Killed,
    successor: Option<Successor>,
    /// Those before it, which are on their way out.
    leaving: Vec<Successor>,
    reader: Option<JoinHandle<()>>,
    directory: Directory,
    pub settings: Settings,
    pub ports: Slice,
    pub log: Log,
    /// Where it listens: transport and address, in the order of the configuration.
    listeners: Vec<(String, SocketAddr)>,
    http: SocketAddr,
}

/// The process that serves: the one child of a supervisor.
#[track_caller]
pub fn child_of(supervisor: u32) -> Pid {
    wait_for("the supervisor's child", || {
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    })
}

impl Server {
    pub fn start(settings: Settings) -> Self {
        Self::start_in(Directory::new(), settings)
    }

    /// In a directory that an earlier server, or the test, left something in.
    pub fn start_in(directory: Directory, settings: Settings) -> Self {
        Self::start_as(directory, settings, binary)
    }

    /// A server that may open so many files and no more.
    pub fn start_with_open_files(settings: Settings, files: u32) -> Self {
        Self::start_as(Directory::new(), settings, |config| with_open_files(&binary(config), files))
    }

    pub fn start_as(directory: Directory, settings: Settings, command: impl Fn(&Path) -> Command) -> Self {
        let ports = Slice::take();
        let config = directory.path().join("config.toml");
        fs::write(&config, settings.text(settings.ports.as_ref().unwrap_or(&ports.range))).unwrap();
        let mut child = Killed(command(&config).spawn().unwrap());
        let (log, reader) = Log::follow(child.0.stderr.take().unwrap());
        // At a quieter level "ready" is not written; tests that want that lower it by SIGHUP.
        wait_for("\"ready\" in the log", || {
            assert!(child.0.try_wait().unwrap().is_none(), "the server ended:\n{}", log.text());
            (!log.events("ready").is_empty()).then_some(())
        });
        let listeners = log.events("listening").into_iter().map(|event| {
            (event["transport"].as_str().unwrap().to_owned(), event["address"].as_str().unwrap().parse().unwrap())
        });
        let listeners = listeners.collect();
        let http = log.event("metrics and health")["address"].as_str().unwrap().replace("http://", "");
        let http = http.parse().unwrap();
        Self {
            child,
            successor: None,
            leaving: Vec::new(),
            reader: Some(reader),
            directory,
            settings,
            ports,
            log,
            listeners,
            http,
        }
    }

    /// Its directory: configuration, and what it writes beside it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Kills it if it still runs; what it left behind stays.
    pub fn into_directory(self) -> Directory {
        let Self { child, directory, .. } = self;
        drop(child);
        directory
    }

    /// A server with the ordinary settings.
    pub fn ordinary(workers: u8) -> Self {
        Settings::new(workers).start()
    }

    #[track_caller]
    fn listener(&self, transport: &str, ipv4: bool) -> SocketAddr {
        let found = self.listeners.iter().find(|(name, address)| name == transport && address.is_ipv4() == ipv4);
        found.unwrap_or_else(|| panic!("no {transport} listener in {:?}", self.listeners)).1
    }

    /// Every listener of a transport, in the order of the configuration.
    pub fn all(&self, transport: &str) -> Vec<SocketAddr> {
        self.listeners.iter().filter(|(name, _)| name == transport).map(|(_, address)| *address).collect()
    }

    pub fn udp4(&self) -> SocketAddr {
        self.listener("udp", true)
    }

    pub fn udp6(&self) -> SocketAddr {
        self.listener("udp", false)
    }

    pub fn tcp4(&self) -> SocketAddr {
        self.listener("tcp", true)
    }

    pub fn tls4(&self) -> SocketAddr {
        self.listener("tls", true)
    }

    pub fn tls6(&self) -> SocketAddr {
        self.listener("tls", false)
    }

    pub fn tcp6(&self) -> SocketAddr {
        self.listener("tcp", false)
    }

    pub fn http(&self) -> SocketAddr {
        self.http
    }

    pub fn scrape(&self) -> Scrape {
        Scrape::of(self.http)
    }

    pub fn dropped(&self, reason: &str) -> u64 {
        self.scrape().value("throughway_dropped_packets_total", &[("reason", reason)])
    }

    /// What the kernel dropped at sockets of this kind.
    pub fn kernel_drops(&self, socket: &str) -> u64 {
        self.scrape().value("throughway_kernel_drops_total", &[("socket", socket)])
    }

    pub fn refused(&self, reason: &str) -> u64 {
        self.scrape().value("throughway_requests_refused_total", &[("reason", reason)])
    }

    pub fn live(&self) -> u64 {
        self.scrape().sum("throughway_allocations")
    }

    /// Does something that must be counted under one reason, so many times, neither more nor less.
    #[track_caller]
    pub fn expect_dropped<T>(&self, reason: &str, times: u64, act: impl FnOnce() -> T) -> T {
        self.expect("throughway_dropped_packets_total", reason, times, act)
    }

    #[track_caller]
    pub fn expect_refused<T>(&self, reason: &str, times: u64, act: impl FnOnce() -> T) -> T {
        self.expect("throughway_requests_refused_total", reason, times, act)
    }

    #[track_caller]
    pub fn expect<T>(&self, name: &str, reason: &str, times: u64, act: impl FnOnce() -> T) -> T {
        let value = || self.scrape().value(name, &[("reason", reason)]);
        let before = value();
        let result = act();
        let what = format!("{name} of {reason} to rise by {times}");
        wait_for(&what, || (value() >= before + times).then_some(()));
        assert_eq!(value() - before, times, "{name} of {reason}");
        result
    }

    /// The process that serves: the first one, or the last that took over.
    pub fn pid(&self) -> u32 {
        self.successor.as_ref().map_or_else(|| self.child.0.id(), |successor| successor.0)
    }

    /// The process that serves under a supervisor.
    #[track_caller]
    pub fn serving(&self) -> Pid {
        child_of(self.pid())
    }

    /// Kills the process that serves under a supervisor, and waits until the next one does.
    #[track_caller]
    pub fn crash(&self) {
        let before = self.log.events("ready").len();
        kill_process(self.serving(), Signal::KILL).unwrap();
        wait_for("the next process to serve", || (self.log.events("ready").len() == before + 1).then_some(()));
    }

    /// The number of the process that took over, to be ended with the test, as those before it.
    pub fn take_over_by(&mut self, pid: u32) {
        self.leaving.extend(self.successor.replace(Successor(pid)));
    }

    /// How the process that was started first has ended; `None` while it runs.
    pub fn first_ended(&mut self) -> Option<ExitStatus> {
        self.child.0.try_wait().unwrap()
    }

    /// Open descriptors of the process that serves.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Lets a test do something while no thread of the server runs.
    pub fn while_it_stands_still<T>(&self, act: impl FnOnce() -> T) -> T {
        self.signal("STOP");
        wait_for("the server to stand still", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T').then_some(())
        });
        let result = act();
        self.signal("CONT");
        result
    }

    /// Writes another configuration and sends SIGHUP; gives the new lines about the reload.
    pub fn reload(&mut self, settings: Settings) -> String {
        let text = settings.text(settings.ports.as_ref().unwrap_or(&self.ports.range));
        let said = self.reload_text(&text);
        self.settings = settings;
        said
    }

    /// A reload to a level at which it says nothing; over when the next session has no line.
    pub fn reload_quietly(&mut self, settings: Settings) {
        let text = settings.text(settings.ports.as_ref().unwrap_or(&self.ports.range));
        fs::write(self.directory.path().join("config.toml"), text).unwrap();
        self.signal("HUP");
        self.settings = settings;
        wait_for("a session without a line", || {
            let before = self.log.sessions().len();
            let mut client = super::Client::udp(self.udp4());
            client.allocate();
            assert_eq!(client.refresh(0).code(), 0);
            std::thread::sleep(Duration::from_millis(300));
            (self.log.sessions().len() == before).then_some(())
        });
    }

    pub fn reload_text(&self, text: &str) -> String {
        self.reload_after(|file| fs::write(file, text).unwrap())
    }

    /// Does something to the configuration file and sends SIGHUP; gives the new lines about the reload.
    pub fn reload_after(&self, change: impl FnOnce(&Path)) -> String {
        let lines = |log: &Log| log.text().lines().filter(|line| line.contains("reload: ")).count();
        let before = lines(&self.log);
        change(&self.directory.path().join("config.toml"));
        self.signal("HUP");
        wait_for("a log line about the reload", || (lines(&self.log) > before).then_some(()));
        let text = self.log.text();
        text.lines().filter(|line| line.contains("reload: ")).skip(before).collect::<Vec<_>>().join("\n")
    }

    /// Waits until the process has ended and its log is whole.
    pub fn wait(&mut self) -> ExitStatus {
        let status = wait_for("the server's end", || match &self.successor {
            Some(successor) => successor.try_wait(),
            None => self.child.0.try_wait().unwrap(),
        });
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }

    pub fn is_running(&mut self) -> bool {
        match &self.successor {
            Some(successor) => successor.try_wait().is_none(),
            None => self.child.0.try_wait().unwrap().is_none(),
        }
    }

    pub fn health(&self, path: &str) -> u16 {
        http::get(self.http, path, "localhost").0
    }
}

/// Which worker the datagrams of a client go to: the kernel is told to add address and port.
pub fn worker_of(client: SocketAddr, workers: u8) -> u8 {
    let low = match client.ip() {
        IpAddr::V4(ip) => u32::from(ip),
        IpAddr::V6(ip) => u128::from(ip) as u32,
    };
    (low.wrapping_add(u32::from(client.port())) % u32::from(workers)) as u8
}

/// Until when a wait that starts now may last.
pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// A short pause between two looks.
pub const LOOK: Duration = Duration::from_millis(5);
