//! What the real binary tells a service manager, over a notify socket of the test's own.

mod e2e_support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use e2e_support::log::Log;
use e2e_support::server::{Directory, Slice, binary};
use e2e_support::{PATIENCE, Settings, wait_for};
use throughway::credentials::claims::Claims;
use throughway::credentials::{Algorithm, Secret, SharedSecret, mint};
use throughway::net::clock::{monotonic_microseconds, unix_seconds};

/// How often the watchdog wants to hear; short, so that the test is.
const WATCHDOG: Duration = Duration::from_millis(600);

/// The server under a service manager that is this test.
struct Managed {
    child: Child,
    log: Log,
    socket: UnixDatagram,
    _ports: Slice,
    _directory: Directory,
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Managed {
    fn start(workers: u8) -> Self {
        let (ports, directory) = (Slice::take(), Directory::new());
        let config = directory.path().join("config.toml");
        fs::write(&config, Settings::new(workers).text(&ports.range)).unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = binary(&config);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        let mut child = command.spawn().unwrap();
        let (log, _) = Log::follow(child.stderr.take().unwrap());
        Self { child, log, socket, _ports: ports, _directory: directory }
    }

    fn hear(&self) -> String {
        let mut buffer = [0; 500];
        let len = self.socket.recv(&mut buffer).expect("a message in time");
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    /// The next message of a kind; what comes before it must be of the watchdog.
    #[track_caller]
    fn expect(&self, start: &str) -> String {
        loop {
            let heard = self.hear();
            if heard.starts_with(start) {
                return heard;
            }
            assert!(heard.starts_with("WATCHDOG=1\n"), "{heard:?} instead of {start:?}");
        }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// The thread of a worker.
    fn thread(&self, name: &str) -> i32 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let mut of_name = tasks
            .map(|task| task.unwrap())
            .filter(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim_end() == name);
        of_name.next().unwrap_or_else(|| panic!("no thread {name}")).file_name().to_str().unwrap().parse().unwrap()
    }
}

/// Holds one thread of a child still while it lives, as a bug would.
struct Stuck(i32);

#[allow(unsafe_code)]
impl Stuck {
    fn new(thread: i32) -> Self {
        // SAFETY: neither request reads or writes memory of ours.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, thread, 0, 0), 0, "{}", std::io::Error::last_os_error());
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0), 0, "{}", std::io::Error::last_os_error());
            // It must have stopped before it can be let go.
            assert_eq!(libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL), thread);
        }
        Self(thread)
    }
}

#[allow(unsafe_code)]
impl Drop for Stuck {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

#[test]
fn start_reload_and_stop_are_told_in_order() {
    let mut server = Managed::start(1);
    assert_eq!(server.expect("READY=1"), "READY=1\nSTATUS=serving");
    wait_for("the log to say so too", || (!server.log.events("ready").is_empty()).then_some(()));
    let before = monotonic_microseconds();
    server.signal("HUP");
    let reloading = server.expect("RELOADING=1\n");
    let time: u64 = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap().parse().unwrap();
    assert!((before..=monotonic_microseconds()).contains(&time), "{before} {time}");
    server.expect("READY=1\nSTATUS=serving");
    server.signal("TERM");
    server.expect("STOPPING=1\n");
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_reload_that_fails_ends_as_well() {
    let server = Managed::start(1);
    server.expect("READY=1");
    fs::write(server._directory.path().join("config.toml"), "[nonsense").unwrap();
    server.signal("HUP");
    server.expect("RELOADING=1\n");
    server.expect("READY=1\nSTATUS=serving");
    wait_for("the reason in the log", || server.log.text().contains("the old one stays").then_some(()));
}

#[test]
fn the_watchdog_is_fed_only_while_every_worker_answers() {
    let server = Managed::start(3);
    server.expect("READY=1");
    let started = Instant::now();
    for _ in 0..4 {
        assert_eq!(server.hear(), "WATCHDOG=1\nSTATUS=0 allocations");
    }
    assert!(started.elapsed() < WATCHDOG * 4, "fed more often than it must be");
    let stuck = Stuck::new(server.thread("worker-1"));
    wait_for("the stuck worker to be told of", || (server.hear() == "STATUS=stuck: worker 1").then_some(()));
    let until = Instant::now() + WATCHDOG * 2;
    while Instant::now() < until {
        assert_eq!(server.hear(), "STATUS=stuck: worker 1", "not fed any more");
    }
    wait_for("the warning", || server.log.text().contains("the watchdog is not fed").then_some(()));
    drop(stuck);
    wait_for("the watchdog to be fed again", || server.hear().starts_with("WATCHDOG=1\n").then_some(()));
}

#[test]
fn a_notify_socket_that_can_be_none_is_refused() {
    let (ports, directory) = (Slice::take(), Directory::new());
    let config = directory.path().join("config.toml");
    fs::write(&config, Settings::new(1).text(&ports.range)).unwrap();
    let output = binary(&config).env("NOTIFY_SOCKET", "relative").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("NOTIFY_SOCKET"));
}

#[test]
fn a_secret_comes_from_the_credentials_directory() {
    let directory = Directory::new();
    let config = directory.path().join("config.toml");
    fs::write(&config, "[[auth.secrets]]\nid = \"main\"\ncredential = \"turn-secret\"\n").unwrap();
    fs::write(directory.path().join("turn-secret"), "north-of-everything\n").unwrap();
    let verify = |credentials: Option<&std::path::Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        let key = SharedSecret::new("x", Secret::new(&b"north-of-everything"[..]), Algorithm::Sha1);
        let minted = mint(&key, unix_seconds().0, "carol", 600, &Claims::default()).unwrap();
        command
            .args(["credentials", "verify", &minted.username, &minted.password, "--config"])
            .arg(&config)
            .env_clear();
        if let Some(path) = credentials {
            command.env("CREDENTIALS_DIRECTORY", path);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(verify(Some(directory.path())).0, Some(0));
    let (code, said) = verify(None);
    assert_eq!(code, Some(2));
    assert!(said.contains("LoadCredential=turn-secret:") && said.contains("auth.secrets[0].credential"), "{said}");
    fs::remove_file(directory.path().join("turn-secret")).unwrap();
    let (code, said) = verify(Some(directory.path()));
    assert_eq!(code, Some(2));
    assert!(said.contains("can't read") && said.contains("turn-secret"), "{said}");
    fs::write(&config, "[[auth.secrets]]\nid = \"main\"\ncredential = \"../shadow\"\n").unwrap();
    assert!(verify(Some(directory.path())).1.contains("the name of a credential"));
}
