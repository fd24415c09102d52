//! What systemd is told: ready, reloading, stopping, a line of status, and that the workers are alive.
//!
//! The protocol of sd_notify(3), by hand: lines of text in one datagram to the socket that $NOTIFY_SOCKET names.
//! Without that variable nothing is sent. Called by `run`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock;
use crate::net::Running;

/// How often the status is renewed where no watchdog wants to hear more often.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// What the status says while there is no address to relay from.
pub const WAITS: &str = "; waiting for an address to relay from";

/// The service manager's socket, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// A drain tells the status then.
    is_draining: AtomicBool,
}

impl Notifier {
    /// The socket that the variable names.
    ///
    /// # Errors
    /// When it names something that can't be a socket.
    pub fn new(socket: Option<&OsStr>) -> io::Result<Self> {
        let Some(name) = socket.filter(|name| !name.is_empty()) else { return Ok(Self::default()) };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::other("neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        // The manager reads at once; should it not, we don't wait for it.
        socket.set_nonblocking(true)?;
        Ok(Self { manager: Some((socket, address)), is_draining: AtomicBool::new(false) })
    }

    fn send(&self, text: &str) {
        if text.is_empty() {
            return;
        }
        if let Some((socket, address)) = &self.manager {
            // A manager that does not listen is its own problem; the next tick tells it again.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }

    /// Started, or reloaded.
    pub fn ready(&self, status: &str) {
        if self.is_draining.load(Ordering::Relaxed) {
            return self.send("READY=1");
        }
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// A reload begins; `ready` ends it. The time lets the manager tell this reload from an older one.
    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=reloading", clock::monotonic_microseconds()));
    }

    /// Calls end by themselves while no new sessions begin. systemd would kill the server after TimeoutStopSec, so each
    /// message asks for more time; one that hangs sends none and is killed.
    pub fn draining(&self, status: &str, until_next: Duration) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.send(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={status}", until_next.as_micros()));
    }

    /// Another process is the service's main one from now on; it will say that it is ready.
    pub fn main_process(&self, pid: u32) {
        self.send(&format!("MAINPID={pid}"));
    }

    /// The end begins.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=ending every session");
    }

    /// Renews the status and, while every worker's loop turns, feeds the watchdog; never returns.
    pub(crate) async fn follow(self: Arc<Self>, running: Arc<Running>, watchdog: Option<Duration>) {
        if self.manager.is_none() {
            return;
        }
        // A third of the time: one tick may come late and the watchdog is still fed in time.
        let every = watchdog.map_or(STATUS_EVERY, |watchdog| watchdog / 3).min(STATUS_EVERY);
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let silent = running.silent_workers(every / 2).await;
            if silent.is_empty() {
                let fed = if watchdog.is_some() { "WATCHDOG=1\n" } else { "" };
                if self.is_draining.load(Ordering::Relaxed) {
                    self.send(fed.trim_end());
                } else {
                    let waits = if running.has_relay_address() { "" } else { WAITS };
                    self.send(&format!("{fed}STATUS={} allocations{waits}", running.usage().0));
                }
            } else {
                let workers = silent.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                tracing::warn!(workers, "stuck: these workers don't answer, so systemd's watchdog gets no keep-alive");
                self.send(&format!("STATUS=stuck: worker {workers}"));
            }
        }
    }
}

/// How often the watchdog wants to be fed, from $WATCHDOG_USEC and $WATCHDOG_PID.
#[must_use]
pub fn watchdog(microseconds: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        return None;
    }
    let microseconds = microseconds?.parse().ok().filter(|microseconds| *microseconds > 0)?;
    Some(Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        assert_eq!(watchdog(Some("3000000"), None, 7), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(Some("3000000"), Some("7"), 7), Some(Duration::from_secs(3)));
        for (microseconds, pid) in [(Some("3000000"), Some("8")), (Some("0"), None), (Some("x"), None), (None, None)] {
            assert_eq!(watchdog(microseconds, pid, 7), None, "{microseconds:?} {pid:?}");
        }
    }

    #[test]
    fn an_abstract_socket_hears_each_message_and_no_socket_is_fine() {
        let name = format!("throughway-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}")))).unwrap();
        let mut buffer = [0; 200];
        let mut heard = || {
            let len = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        notifier.ready("serving");
        assert_eq!(heard(), "READY=1\nSTATUS=serving");
        notifier.reloading();
        let reloading = heard();
        let time = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!(reloading.starts_with("RELOADING=1\n") && time.parse::<u64>().unwrap() > 0, "{reloading}");
        notifier.stopping();
        assert!(heard().starts_with("STOPPING=1\n"));
        Notifier::new(None).unwrap().ready("nobody hears it");
        assert!(Notifier::new(Some(OsStr::new("relative"))).is_err());
    }
}
