//! The signals that a server follows.

use tokio::signal::unix::{self, SignalKind};

use crate::failure::Failure;
use crate::net::processes;

/// What a signal asks for.
pub(crate) enum Signal {
    Reload,
    Stop(&'static str),
}

impl Signal {
    pub(super) const TERMINATE: &'static str = "SIGTERM";
}

/// SIGHUP, SIGTERM and SIGINT.
pub(crate) struct Signals {
    hangup: unix::Signal,
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| unix::signal(kind).map_err(|error| Failure::Run(format!("can't listen for signals: {error}")));
        let signals = Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        };
        let kinds = [SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt(), SignalKind::child()];
        processes::hear(&kinds.map(|kind| kind.as_raw_value()))?;
        Ok(signals)
    }

    /// The next of them.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.terminate.recv() => Signal::Stop(Signal::TERMINATE),
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
        }
    }
}
