//! Network namespaces of clients and peers: a socket belongs to the namespace its thread was in when it was opened.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use crate::flags::Flags;

/// Where the two sides open their sockets; `None` is the namespace the generator was started in, the relay's.
pub struct Namespaces {
    home: File,
    clients: Option<File>,
    peers: Option<File>,
}

impl Namespaces {
    pub fn parse(flags: &mut Flags) -> Result<Self, String> {
        let mut open = |flag: &str| -> Result<Option<File>, String> {
            let path: Option<String> = flags.optional(flag)?;
            path.map(|path| File::open(&path).map_err(|e| format!("--{flag} {path}: {e}"))).transpose()
        };
        let (clients, peers) = (open("client-ns")?, open("peer-ns")?);
        let home = "/proc/thread-self/ns/net";
        Ok(Self { home: File::open(home).map_err(|e| format!("{home}: {e}"))?, clients, peers })
    }

    pub fn at_clients<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        self.within(self.clients.as_ref(), "--client-ns", work)
    }

    pub fn at_peers<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        self.within(self.peers.as_ref(), "--peer-ns", work)
    }

    /// The tables of UDP sockets of all namespaces in use.
    pub fn udp_tables(&self) -> String {
        let read = || Ok(fs::read_to_string("/proc/thread-self/net/udp").unwrap_or_default());
        let mut tables = read().unwrap_or_default();
        for namespace in [&self.clients, &self.peers].into_iter().flatten() {
            tables += &self.within(Some(namespace), "namespace", read).unwrap_or_default();
        }
        tables
    }

    fn within<T>(
        &self,
        namespace: Option<&File>,
        name: &str,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let Some(namespace) = namespace else {
            return work();
        };
        enter(namespace).map_err(|e| format!("{name}: {e} (needs root)"))?;
        let result = work();
        enter(&self.home).map_err(|e| format!("the way back from {name}: {e}"))?;
        result
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call moves only this thread, and only its network namespace.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
