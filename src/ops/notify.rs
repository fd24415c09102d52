//! What systemd is told: ready, reloading, stopping, a line of status, and that the workers are alive.
//!
//! The protocol of sd_notify(3), by hand: lines of text in one datagram to the socket that $NOTIFY_SOCKET names.
//! Without that variable nothing is sent. Called by `run`.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::clock;
use crate::net::Running;

/// How often the status is renewed where no watchdog wants to hear more often.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// What the status says while there is no address to relay from.
pub const WAITS: &str = "; waiting for an address to relay from";

/// How long the manager may take to read what a process says at its end.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// So much of a reason is shown: a manager drops messages of more than 4096 bytes.
const REASON_CHARACTERS: usize = 300;

/// The service manager's socket, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// The process that the manager takes for the service's main one: this one, or its supervisor.
    main: u32,
    /// A drain tells the status then.
    is_draining: AtomicBool,
    is_upgrading: AtomicBool,
    /// Why the last upgrade did not take place, as the end of the status.
    not_upgraded: Mutex<String>,
    /// What the manager waits for and had no room for, the oldest first.
    untold: Mutex<VecDeque<String>>,
}

/// More changes of a service's state wait only for a manager that reads nothing for minutes; the oldest ones are over then.
const UNTOLD_MAX: usize = 16;

impl Notifier {
    /// The socket that the variable names; `main` is the service's main process.
    ///
    /// # Errors
    /// When it names something that can't be a socket.
    pub fn new(socket: Option<&OsStr>, main: u32) -> io::Result<Self> {
        let Some(name) = socket.filter(|name| !name.is_empty()) else { return Ok(Self { main, ..Self::default() }) };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::other("neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        // The manager reads at once; should it not, we don't wait for it.
        socket.set_nonblocking(true)?;
        Ok(Self { manager: Some((socket, address)), main, ..Self::default() })
    }

    /// Whether the service's main process is this one, and no supervisor of it.
    pub(crate) fn is_main(&self) -> bool {
        self.main == std::process::id()
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

    /// The same for what the manager waits for: where its queue is full, each tick tries again.
    fn send_until_heard(&self, text: &str) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.len() == UNTOLD_MAX {
            untold.pop_front();
        }
        untold.push_back(text.to_owned());
        self.tell_untold(&mut untold);
    }

    fn tell_untold(&self, untold: &mut VecDeque<String>) {
        while let (Some(text), Some((socket, address))) = (untold.front(), &self.manager) {
            match socket.send_to_addr(text.as_bytes(), address) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One that does not listen waits for nothing.
                Ok(_) | Err(_) => drop(untold.pop_front()),
            }
        }
        untold.clear();
    }

    /// Started, or reloaded.
    pub fn ready(&self, status: &str) {
        if self.is_draining.load(Ordering::Relaxed) {
            return self.send_until_heard("READY=1");
        }
        self.send_until_heard(&format!("READY=1\nSTATUS={status}"));
    }

    /// A reload begins; `ready` ends it. The time lets the manager tell this reload from an older one.
    pub fn reloading(&self) {
        self.begin_reload("reloading");
    }

    /// An upgrade begins, which is a reload for the manager; the new process's `ready` ends it, or `not_upgraded`.
    pub fn upgrading(&self) {
        self.is_upgrading.store(true, Ordering::Relaxed);
        self.begin_reload("upgrading");
    }

    /// A reload was asked for, and can't be now: the manager, which waits for its end, hears that this is it.
    pub fn reload_refused(&self, why: &str) {
        self.send_until_heard(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_microseconds()));
        self.send_until_heard(&format!("READY=1\nSTATUS={why}"));
    }

    fn begin_reload(&self, status: &str) {
        self.not_upgraded.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let time = clock::monotonic_microseconds();
        self.send_until_heard(&format!("RELOADING=1\nMONOTONIC_USEC={time}\nSTATUS={status}"));
    }

    /// No other process has taken over: the main one is as before, and ready. The status shows why until the next reload.
    pub fn not_upgraded(&self, why: &str) {
        self.is_upgrading.store(false, Ordering::Relaxed);
        let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARACTERS).collect();
        let main = format!("READY=1\nMAINPID={}", self.main);
        if self.is_draining.load(Ordering::Relaxed) {
            self.send_until_heard(&main);
        } else {
            self.send_until_heard(&format!("{main}\nSTATUS=serving; {why}"));
        }
        *self.not_upgraded.lock().unwrap_or_else(PoisonError::into_inner) = format!("; {why}");
    }

    /// Calls end by themselves while no new sessions begin. systemd would kill the server after TimeoutStopSec, so each
    /// message asks for more time; one that hangs sends none and is killed.
    pub fn draining(&self, status: &str, until_next: Duration) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.send(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={status}", until_next.as_micros()));
    }

    /// Another process is the service's main one from now on; it will say that it is ready. Blocks if the manager is busy.
    pub fn main_process(&self, pid: u32) {
        self.tell_surely(|manager| manager.send(format!("MAINPID={pid}").as_bytes()).map(drop));
    }

    /// Waits until the manager has read all that this process said: what a process said that has ended since, the manager
    /// can't assign to a service. Blocks, but not for long.
    pub fn wait_until_heard(&self) {
        self.tell_surely(|manager| {
            let (ours, its) = io::pipe()?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptor = [its.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&descriptor));
            sendmsg(manager, &[IoSlice::new(b"BARRIER=1")], &mut control, SendFlags::NOSIGNAL)?;
            drop(its);
            // The manager closes the other end, or its kernel does if it takes no descriptors.
            let within = Timespec::try_from(HEARD_WITHIN).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&within))? {
                0 => Err(io::ErrorKind::TimedOut.into()),
                _ => Ok(()),
            }
        });
    }

    /// Another process has the sessions, which the manager did not start; this one only waits for its end.
    pub fn handed_over(&self) {
        self.send_until_heard("READY=1\nSTATUS=the sessions are another process's");
    }

    /// Does something with a socket that waits, within bounds, while the manager's queue is full.
    fn tell_surely(&self, tell: impl FnOnce(&UnixDatagram) -> io::Result<()>) {
        let Some((_, address)) = &self.manager else { return };
        let told = UnixDatagram::unbound().and_then(|socket| {
            socket.connect_addr(address)?;
            socket.set_write_timeout(Some(HEARD_WITHIN))?;
            tell(&socket)
        });
        if let Err(error) = told {
            tracing::warn!(%error, "the service manager does not read what it is told: it may restart the service");
        }
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
            self.tell_untold(&mut self.untold.lock().unwrap_or_else(PoisonError::into_inner));
            let silent = running.silent_workers(every / 2).await;
            if silent.is_empty() {
                let fed = if watchdog.is_some() { "WATCHDOG=1\n" } else { "" };
                if self.is_draining.load(Ordering::Relaxed) {
                    self.send(fed.trim_end());
                } else if self.is_upgrading.load(Ordering::Relaxed) {
                    self.send(&format!("{fed}STATUS=upgrading"));
                } else {
                    let waits = if running.has_relay_address() { "" } else { WAITS };
                    let why = self.not_upgraded.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    self.send(&format!("{fed}STATUS={} allocations{waits}{why}", running.usage().0));
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
    fn what_a_full_queue_has_no_room_for_is_told_when_there_is_some() {
        let name = format!("throughway-notify-full-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))), 7).unwrap();
        (0..1_000).for_each(|_| notifier.send("STATUS=of no importance"));
        notifier.reloading();
        notifier.ready("serving");
        let mut buffer = [0; 200];
        let mut heard = || {
            let len = manager.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..len].to_vec()).unwrap())
        };
        while let Some(said) = heard() {
            assert_eq!(said, "STATUS=of no importance", "the queue was full");
        }
        notifier.tell_untold(&mut notifier.untold.lock().unwrap());
        assert!(heard().unwrap().starts_with("RELOADING=1\n"));
        assert_eq!(heard().unwrap(), "READY=1\nSTATUS=serving");
        assert_eq!(heard(), None, "each is told once");
        // Nothing is kept for a manager that is gone.
        drop(manager);
        (0..100).for_each(|_| notifier.ready("serving"));
        assert!(notifier.untold.lock().unwrap().is_empty());
    }

    #[test]
    fn an_abstract_socket_hears_each_message_and_no_socket_is_fine() {
        let name = format!("throughway-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))), 7).unwrap();
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
        Notifier::new(None, 7).unwrap().ready("there is no manager");
        assert!(Notifier::new(Some(OsStr::new("relative")), 7).is_err());
    }
}
