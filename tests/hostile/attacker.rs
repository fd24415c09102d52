//! The attacker: this test binary once more, as a process of its own at the lowest priority.
//!
//! Attacker, server and calls share the machine's cores. What an attack costs the attacker must not be charged to the
//! server, so the attacker runs only while the other threads are idle.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::attacks;

/// The environment variable that makes the test `attacker` one.
const ORDER: &str = "HOSTILE_ORDER";

/// What precedes the result on the attacker's standard output.
const RESULT: &str = "hostile-result ";

/// Where attackers come from, so that a share per source can tell them from the innocent at 127.0.0.1.
pub(crate) const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));

/// An attacker that hangs ends by itself so long after its time.
const HANGS: Duration = Duration::from_secs(10);

/// What to do, to which server, for how long.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) attack: String,
    pub(crate) target: SocketAddr,
    /// Another listener of the server, where an attack needs two.
    pub(crate) other: SocketAddr,
    pub(crate) seconds: f64,
    /// Connections, or what else an attack has many of.
    pub(crate) count: usize,
    /// Of those, or of packets, a second; 0: at once.
    pub(crate) rate: u32,
    pub(crate) username: String,
    pub(crate) password: String,
}

impl Order {
    pub(crate) fn new(attack: &str, target: SocketAddr, seconds: f64) -> Self {
        Self {
            attack: attack.to_owned(),
            target,
            other: target,
            seconds,
            count: 1,
            rate: 0,
            username: "alice".to_owned(),
            password: "wonderland".to_owned(),
        }
    }

    pub(crate) fn count(self, count: usize) -> Self {
        Self { count, ..self }
    }

    pub(crate) fn rate(self, rate: u32) -> Self {
        Self { rate, ..self }
    }

    pub(crate) fn other(self, other: SocketAddr) -> Self {
        Self { other, ..self }
    }

    /// As this user.
    pub(crate) fn user(self, username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: password.to_owned(), ..self }
    }

    pub(crate) fn until(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.seconds)
    }
}

/// A running attacker.
pub(crate) struct Attacker(Child);

impl Attacker {
    #[allow(unsafe_code)]
    pub(crate) fn start(order: &Order) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "attacker", "--nocapture"]).env(ORDER, serde_json::to_string(order).unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        // SAFETY: two system calls, which are safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // As low as it goes from where this process stands.
                let _ = libc::nice(19);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Self(command.spawn().unwrap())
    }

    /// Waits for its end; how many of its units it did.
    pub(crate) fn finish(mut self) -> u64 {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let result = lines.map_while(Result::ok).filter_map(|line| {
            let (_, units) = line.split_once(RESULT)?;
            units.trim().parse().ok()
        });
        let units = result.last();
        assert!(self.0.wait().unwrap().success(), "the attacker failed");
        units.expect("the attacker says what it did")
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Carries out the order in the environment, if there is one.
pub(crate) fn main() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let order: Order = serde_json::from_str(&order).unwrap();
    let end = Duration::from_secs_f64(order.seconds) + HANGS;
    std::thread::spawn(move || {
        std::thread::sleep(end);
        eprintln!("the attacker hangs");
        std::process::exit(3);
    });
    throughway::net::raise_file_limit().unwrap();
    println!("\n{RESULT}{}", attacks::run(&order));
}
