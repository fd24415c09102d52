//! What the real binary tells a service manager, and what it takes from one: sockets and credentials. The manager is
//! the test; tests/systemd has a real one.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use socket2::{Domain, Socket, Type};
use test_support::e2e::log::Log;
use test_support::e2e::server::{Directory, Slice, binary};
use test_support::e2e::tls::Authority;
use test_support::e2e::{Client, Origin, PATIENCE, Settings, http, peer, receive, wait_for};
use test_support::with_one_and_three_workers;
use throughway::clock::{monotonic_microseconds, unix_seconds};
use throughway::credentials::claims::Claims;
use throughway::credentials::{Algorithm, Secret, SharedSecret, mint};

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

/// The same for a server that upgrades: so long that a busy machine is in time, and shorter than the probation.
const WATCHDOG_OF_UPGRADES: Duration = Duration::from_millis(1_200);

/// A message as a manager takes it: who sent it, and what came with it.
struct Heard {
    from: u32,
    text: String,
    descriptors: Vec<OwnedFd>,
}

/// A server whose program can be replaced, and the process that took its place.
struct ManagedUpgrade {
    server: Managed,
    successor: Option<Pid>,
}

impl Drop for ManagedUpgrade {
    fn drop(&mut self) {
        if let Some(pid) = self.successor {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

impl ManagedUpgrade {
    fn start(fault: &str) -> Self {
        Self::start_with(fault, Settings::new(2))
    }

    fn start_with(fault: &str, mut settings: Settings) -> Self {
        // A successor outlives the process that started it: then this one is its parent.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let (ports, directory) = (Slice::take(), Directory::new());
        let config = directory.path().join("config.toml");
        settings.tables += "[upgrade]\nprobation = \"2s\"\n";
        fs::write(&config, settings.text(&ports.range)).unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        rustix::net::sockopt::set_socket_passcred(&socket, true).unwrap();
        Self::replace_program(&directory);
        let mut command = Command::new("sh");
        // The shell becomes the server, so its number is the server's.
        command.args(["-c", "WATCHDOG_PID=$$ exec \"$0\" serve --config \"$1\""]);
        command.arg(directory.path().join("throughway")).arg(&config).env_clear().env("TEST_FAULTS_UPGRADE", fault);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", WATCHDOG_OF_UPGRADES.as_micros().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (log, _) = Log::follow(child.stderr.take().unwrap());
        let server = Managed { child, log, socket, _ports: ports, _directory: directory };
        Self { server, successor: None }
    }

    /// Puts another copy of the binary in the place of the one that runs.
    fn replace_program(directory: &Directory) {
        let new = directory.path().join("new");
        fs::copy(env!("CARGO_BIN_EXE_throughway"), &new).unwrap();
        fs::rename(new, directory.path().join("throughway")).unwrap();
    }

    fn pid(&self) -> u32 {
        self.server.child.id()
    }

    fn hear(&self) -> Heard {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut buffer)];
        // The end of another test's child interrupts it.
        let mut receive = || recvmsg(&self.server.socket, &mut into, &mut control, RecvFlags::empty());
        let received = std::iter::repeat_with(&mut receive).find(|received| !matches!(received, Err(Errno::INTR)));
        let len = received.unwrap().expect("a message in time").bytes;
        let (mut from, mut descriptors) = (0, Vec::new());
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmCredentials(sender) => from = sender.pid.as_raw_nonzero().get() as u32,
                RecvAncillaryMessage::ScmRights(passed) => descriptors.extend(passed),
                _ => panic!("something else came with a message"),
            }
        }
        Heard { from, text: String::from_utf8(buffer[..len].to_vec()).unwrap(), descriptors }
    }

    /// The next message that starts like this; what comes before it must feed the watchdog, and in time.
    #[track_caller]
    fn expect(&self, from: u32, start: &str) -> Heard {
        let until = Instant::now() + PATIENCE;
        loop {
            let begun = Instant::now();
            assert!(begun < until, "only the watchdog was fed, and no {start:?} came");
            let heard = self.hear();
            assert!(begun.elapsed() < WATCHDOG_OF_UPGRADES, "{:?} after silence of {:?}", heard.text, begun.elapsed());
            assert_eq!(heard.from, from, "who sent {:?}", heard.text);
            if heard.text.starts_with(start) {
                return heard;
            }
            assert!(heard.text.starts_with("WATCHDOG=1\n"), "{:?} instead of {start:?}", heard.text);
        }
    }
}

/// Each message comes from the process that is the main one then: a manager takes no others.
#[test]
fn an_upgrade_is_a_reload_with_another_main_process_at_its_end() {
    let mut own = ManagedUpgrade::start("");
    let old = own.pid();
    own.expect(old, "READY=1\nSTATUS=serving");
    ManagedUpgrade::replace_program(&own.server._directory);
    let before = monotonic_microseconds();
    own.server.signal("HUP");
    let reloading = own.expect(old, "RELOADING=1\n").text;
    let time: u64 = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap().parse().unwrap();
    assert!((before..=monotonic_microseconds()).contains(&time), "{before} {time}");
    assert!(reloading.ends_with("\nSTATUS=upgrading"), "{reloading}");
    let main = own.expect(old, "MAINPID=").text;
    let new: u32 = main["MAINPID=".len()..].parse().unwrap();
    own.successor = Pid::from_raw(new as i32);
    assert_ne!(new, old);
    // The new process and the barrier of the old one, in any order.
    let (mut ready, mut barrier) = (None, None);
    while ready.is_none() || barrier.is_none() {
        let heard = own.hear();
        match heard.text.as_str() {
            "READY=1\nSTATUS=serving" if heard.from == new => ready = Some(()),
            "BARRIER=1" if heard.from == old => barrier = Some(heard.descriptors),
            _ => assert!(
                heard.from == new && heard.text.starts_with("WATCHDOG=1\n"),
                "{:?} of {}",
                heard.text,
                heard.from
            ),
        }
    }
    let barrier = barrier.unwrap();
    assert_eq!(barrier.len(), 1);
    std::thread::sleep(Duration::from_millis(200));
    assert!(own.server.child.try_wait().unwrap().is_none(), "it waits until the manager has read everything");
    drop(barrier);
    wait_for("the end of the old process", || own.server.child.try_wait().unwrap().filter(|status| status.success()));
    for _ in 0..3 {
        own.expect(new, "WATCHDOG=1\nSTATUS=0 allocations");
    }
}

#[test]
fn a_manager_that_reads_nothing_keeps_no_process_from_its_end() {
    let mut own = ManagedUpgrade::start("");
    ManagedUpgrade::replace_program(&own.server._directory);
    wait_for("ready", || (!own.server.log.events("ready").is_empty()).then_some(()));
    own.server.signal("HUP");
    let confirmed = own.server.log.event("confirmed");
    own.successor = Pid::from_raw(confirmed["pid"].as_i64().unwrap() as i32);
    wait_for("the end of the old process", || own.server.child.try_wait().unwrap().filter(|status| status.success()));
    assert!(own.server.log.text().contains("the service manager does not read what it is told"));
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_process_the_main_one_and_the_status_says_why() {
    for (fault, why) in [
        ("plan=exit", "upgrade refused in step plan: the new process ended"),
        ("probation=exit", "upgrade rolled back in step probation: the new process ended"),
    ] {
        let own = ManagedUpgrade::start(fault);
        let old = own.pid();
        own.expect(old, "READY=1\nSTATUS=serving");
        ManagedUpgrade::replace_program(&own.server._directory);
        own.server.signal("HUP");
        own.expect(old, "RELOADING=1\n");
        let ready = own.expect(old, "READY=1\n").text;
        assert!(ready.starts_with(&format!("READY=1\nMAINPID={old}\nSTATUS=serving; {why}")), "{ready}");
        // It stays there, while the watchdog is fed as before, until the next reload.
        for _ in 0..3 {
            own.expect(old, &format!("WATCHDOG=1\nSTATUS=0 allocations; {why}"));
        }
    }
}

/// With a supervisor that is the main process, whatever its server says: else the end of the server would be the service's.
#[test]
fn an_upgrade_that_fails_leaves_the_supervisor_the_main_process() {
    for fault in ["plan=exit", "probation=exit"] {
        let own = ManagedUpgrade::start_with(fault, Settings { supervise: true, ..Settings::new(2) });
        let said = |start: &str| {
            let heard = (0..1000).map(|_| own.hear().text).find(|text| text.starts_with(start));
            heard.unwrap_or_else(|| panic!("no {start:?}"))
        };
        said("READY=1\nSTATUS=serving");
        ManagedUpgrade::replace_program(&own.server._directory);
        own.server.signal("HUP");
        said("RELOADING=1\n");
        let (ready, main) = (said("READY=1\n"), own.pid());
        assert!(ready.starts_with(&format!("READY=1\nMAINPID={main}\nSTATUS=serving; upgrade ")), "{ready} of {main}");
    }
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
    wait_for("the warning", || server.log.text().contains("systemd's watchdog gets no keep-alive").then_some(()));
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

/// Every key that names a file to be read takes a credential, and says what is missing if there is none.
#[test]
fn a_credential_may_stand_wherever_a_file_is_named() {
    let (directory, authority) = (Directory::new(), Authority::new());
    let (chain, key) = authority.issue(&["turn.example.org"], 2100);
    let jwks = "{\"keys\":[{\"kty\":\"oct\",\"alg\":\"HS256\",\"k\":\"YS1rZXktb2YtdGhlLWxvZ2luLW9mLTMyLWJ5dGVzISE\"}]}"
        .to_owned();
    let credentials = directory.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    for (name, text) in [("chain", chain.as_str()), ("key", &key), ("jwks", &jwks), ("secret", "north-of-everything")] {
        fs::write(credentials.join(name), text).unwrap();
    }
    let config = directory.path().join("config.toml");
    let text = "[listen]\nudp = []\ntcp = []\ntls = [\"127.0.0.1:0\"]\n\
        [tls]\ncertificate = \"credential:chain\"\nprivate_key = \"credential:key\"\n\
        [auth]\nnonce_key_file = \"credential:secret\"\nusers.alice.file = \"credential:secret\"\n\
        [http]\njwt_keys = \"credential:jwks\"\njwt_audience = \"us\"\n\
        [accounting]\nfile = \"usage\"\nsign_key_file = \"credential:secret\"\nwebhook_token_file = \"credential:secret\"\n\
        [[auth.secrets]]\nid = \"main\"\nfile = \"credential:secret\"\n\
        [[auth.secrets]]\nid = \"next\"\ncredential = \"secret\"\n";
    fs::write(&config, text).unwrap();
    let check = |directory: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
        command.arg("check-config").arg(&config).env_clear();
        if let Some(directory) = directory {
            command.env("CREDENTIALS_DIRECTORY", directory);
        }
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, said) = check(Some(&credentials));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = check(None);
    assert_eq!(code, Some(2));
    let keys = [
        "tls.certificate",
        "tls.private_key",
        "auth.nonce_key_file",
        "auth.users.alice.file",
        "http.jwt_keys",
        "accounting.sign_key_file",
        "accounting.webhook_token_file",
        "auth.secrets[0].file",
        "auth.secrets[1].credential",
    ];
    for key in keys {
        let told = said.lines().any(|line| line.contains(key) && line.contains("CREDENTIALS_DIRECTORY"));
        assert!(told, "{key} is not named in\n{said}");
    }
    fs::write(&config, text.replace("credential:jwks", "credential:../jwks")).unwrap();
    let (_, said) = check(Some(&credentials));
    assert!(said.contains("http.jwt_keys") && said.contains("the name of a credential"), "{said}");
}

/// What a socket unit opens.
fn udp_socket(address: &str, reuse_port: bool) -> OwnedFd {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.set_reuse_port(reuse_port).unwrap();
    socket.bind(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.into()
}

fn address_of(socket: &OwnedFd) -> SocketAddr {
    UdpSocket::from(socket.try_clone().unwrap()).local_addr().unwrap()
}

/// The server with sockets as its descriptors from 3 on, as a service manager starts it.
#[allow(unsafe_code)]
fn with_passed(config: &Path, sockets: &[OwnedFd], pid: &str) -> Command {
    let whole = binary(config);
    let mut command = Command::new("sh");
    // The shell becomes the server, so its number is the server's.
    command.arg("-c").arg(format!("LISTEN_PID={pid} exec \"$0\" \"$@\""));
    command.arg(whole.get_program()).args(whole.get_args()).env_clear();
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", "throughway.socket:second");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Above the places where they go, so that none is overwritten before it was copied.
    let above = |socket: &OwnedFd| {
        // SAFETY: no pointers; a copy of a descriptor that is open, which has no other owner.
        unsafe { OwnedFd::from_raw_fd(libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100)) }
    };
    let copies: Vec<OwnedFd> = sockets.iter().map(above).collect();
    // SAFETY: dup2 is async-signal-safe, and nothing is allocated between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for (at, copy) in copies.iter().enumerate() {
                if libc::dup2(copy.as_raw_fd(), 3 + at as i32) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command
}

struct Passed {
    server: Child,
    log: Log,
    directory: Directory,
    ports: Slice,
}

impl Drop for Passed {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Passed {
    fn start(settings: &Settings, sockets: &[OwnedFd]) -> Self {
        let (ports, directory) = (Slice::take(), Directory::new());
        let config = directory.path().join("config.toml");
        fs::write(&config, settings.text(&ports.range)).unwrap();
        let mut server = with_passed(&config, sockets, "$$").spawn().unwrap();
        let (log, _) = Log::follow(server.stderr.take().unwrap());
        wait_for("ready", || (!log.events("ready").is_empty()).then_some(()));
        Self { server, log, directory, ports }
    }

    /// Sockets that the kernel has of an address.
    fn sockets_at(&self, address: SocketAddr) -> usize {
        let SocketAddr::V4(v4) = address else { panic!("IPv4") };
        let place = format!(" {:08X}:{:04X} ", u32::from_ne_bytes(v4.ip().octets()), v4.port());
        fs::read_to_string("/proc/net/udp").unwrap().lines().filter(|line| line.contains(&place)).count()
    }

    fn reload(&self, settings: &Settings) {
        let lines = || self.log.text().lines().filter(|line| line.contains("reload: ")).count();
        let before = lines();
        fs::write(self.directory.path().join("config.toml"), settings.text(&self.ports.range)).unwrap();
        assert!(Command::new("kill").args(["-s", "HUP", &self.server.id().to_string()]).status().unwrap().success());
        wait_for("the reload", || (lines() > before).then_some(()));
    }
}

fn call(mut client: Client) {
    let relayed = client.allocate();
    let peer = peer(relayed);
    client.bind(0x4001, peer.local_addr().unwrap());
    client.send_channel(0x4001, b"over a passed socket");
    assert_eq!(receive(&peer), (b"over a passed socket".to_vec(), relayed));
    peer.send_to(b"back", relayed).unwrap();
    client.expect_data(Origin::Channel(0x4001), b"back");
    assert_eq!(client.refresh(0).code(), 0);
}

with_one_and_three_workers! {
    /// One socket for each worker, a stream listener and an HTTP listener: all are used, and steered as our own are.
    fn passed_sockets_are_the_listeners_of_their_addresses(workers: u8) {
        let mut sockets = vec![udp_socket("127.0.0.1:0", true)];
        let udp = address_of(&sockets[0]);
        sockets.extend((1..workers).map(|_| udp_socket(&udp.to_string(), true)));
        let streams = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let [tcp, http] = [0, 1].map(|at: usize| streams[at].local_addr().unwrap());
        sockets.extend(streams.map(OwnedFd::from));
        let mut settings = Settings::new(workers);
        (settings.udp, settings.tcp) = (vec![udp.to_string()], vec![tcp.to_string()]);
        settings.http_listen = http.to_string();
        let server = Passed::start(&settings, &sockets);
        assert_eq!(server.log.event("using the sockets that were passed by the service manager")["sockets"], u64::from(workers) + 2);
        assert_eq!(server.sockets_at(udp), usize::from(workers), "none was opened besides");
        for worker in 0..workers {
            call(Client::udp_on_worker(udp, worker, workers));
        }
        call(Client::tcp(tcp));
        assert_eq!(http::get(http, "/readyz", "localhost").0, 200);
        // A reload may take such a listener out and bring it back.
        let without = Settings { udp: vec!["127.0.0.1:0".to_owned()], ..settings.clone() };
        server.reload(&without);
        wait_for("the listener to close", || server.log.events("listener closed: its last session has ended").pop());
        server.reload(&settings);
        for worker in 0..workers {
            call(Client::udp_on_worker(udp, worker, workers));
        }
        assert!(!server.log.text().contains("another process has it"), "{}", server.log.text());
        assert!(!server.log.text().contains("fewer sockets"), "{}", server.log.text());
    }

    /// One socket and several workers: others join if it was made for that; else one worker reads it, and the log says so.
    fn one_passed_socket_serves_several_workers(workers: u8) {
        for reuse_port in [true, false] {
            let sockets = [udp_socket("127.0.0.1:0", reuse_port)];
            let udp = address_of(&sockets[0]);
            let mut settings = Settings::new(workers);
            (settings.udp, settings.tcp) = (vec![udp.to_string()], Vec::new());
            let server = Passed::start(&settings, &sockets);
            let joined = if reuse_port { workers } else { 1 };
            assert_eq!(server.sockets_at(udp), usize::from(joined));
            for worker in 0..workers {
                call(Client::udp_on_worker(udp, worker, workers));
            }
            assert_eq!(server.log.text().contains("fewer sockets were passed"), joined < workers);
        }
    }
}

/// What would not be read is an error that names it, and so is a socket that takes IPv4 as IPv6.
#[test]
fn a_passed_socket_that_fits_no_listener_is_refused() {
    let directory = Directory::new();
    let config = directory.path().join("config.toml");
    let settings = Settings::new(1);
    fs::write(&config, settings.text(&(23_000..=23_001))).unwrap();
    let stray = udp_socket("127.0.0.1:0", false);
    let address = address_of(&stray).to_string();
    let both = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    both.set_only_v6(false).unwrap();
    both.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let file = OwnedFd::from(fs::File::open(&config).unwrap());
    for (socket, parts) in [
        (stray, ["fits no listener", address.as_str(), "throughway.socket"]),
        (both.into(), ["BindIPv6Only=ipv6-only", "[::]:", "throughway.socket"]),
        (file, ["LISTEN_FDS", "descriptor 3", "is no socket"]),
    ] {
        let output = with_passed(&config, &[socket], "$$").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
    }
    // Meant for another process: not ours.
    let mut other = with_passed(&config, &[udp_socket("127.0.0.1:0", false)], "1").spawn().unwrap();
    let (log, _) = Log::follow(other.stderr.take().unwrap());
    let started = std::panic::catch_unwind(|| wait_for("ready", || (!log.events("ready").is_empty()).then_some(())));
    let _ = other.kill();
    let _ = other.wait();
    assert!(started.is_ok() && log.events("using the sockets that were passed by the service manager").is_empty());
}
