//! The old process's side of an upgrade: it passes what it has, stops reading at one moment, and goes on if the new process
//! does not take over. The order of the whole stands in `run::upgrade`; what one worker does in `net::worker`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::handoff::Channel;
use super::listening;
use super::relay_addresses::RelayAddressEntry;
use super::running::{Current, Running};
use super::shared::{SharedChanges, SharedState};
use super::upgrade_messages::{Offer, PassedSocket, RelayAddressNote};
use super::worker::{HandOver, HandedOver, Mailbox, Message, NotSent, Outcome};
use crate::config::checked::Config;

/// How long the workers may take to tell all that they have while calls go on.
const EARLY_TIME: Duration = Duration::from_secs(60);

/// How long they may take from the last packet to their last message.
const CUT_TIME: Duration = Duration::from_secs(1);

/// How long TLS handshakes under way are waited for before the cut.
const HANDSHAKES_TIME: Duration = Duration::from_millis(300);
const HANDSHAKES_LOOK: Duration = Duration::from_millis(5);

/// While it lives, neither a reload nor a change of addresses begins.
pub struct Unchanging(OwnedMutexGuard<Current>);

impl Unchanging {
    /// The configuration that holds.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }
}

/// A relay that is being handed over. Dropped, it goes on as if nothing had been.
pub struct HandingOver {
    running: Arc<Running>,
    common: Arc<HandOver>,
    stage: Stage,
    _unchanging: Unchanging,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Calls go on.
    Telling,
    /// No worker reads.
    Stopped,
    /// The new process reads, or may read at any moment.
    Gone,
    /// The workers have ended.
    Over,
}

/// What there was when the workers stopped.
pub struct Cut {
    /// Live allocations.
    pub allocations: u64,
    /// Client streams.
    pub streams: u64,
    /// Microseconds of the monotonic clock when the first worker stopped reading.
    pub stopped_at: u64,
    /// What the workers share.
    pub shared: SharedChanges,
}

impl Running {
    /// Waits for a reload that is under way, and lets none begin.
    pub async fn keep_unchanged(&self) -> Unchanging {
        Unchanging(Arc::clone(&self.current).lock_owned().await)
    }

    /// What a new process must know before all else; the states that follow have this format.
    #[must_use]
    pub fn offer(&self, unchanging: &Unchanging, format: u32) -> Offer {
        let note = |of: &RelayAddressEntry| RelayAddressNote {
            local: of.address.local,
            advertised: of.address.advertised,
            is_serving: of.is_serving,
        };
        Offer {
            hears_life: Some(true),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format,
            workers: self.workers.len() as u32,
            realm: unchanging.0.config.realm.to_string(),
            nonce_key: self.nonce_key.to_vec(),
            relay_addresses: self.addresses.all().iter().map(note).collect(),
            listeners: listening::lock(&self.listening).notes(),
            draining_ms: None,
            generation: 0,
            pid: std::process::id(),
        }
    }

    /// Every socket that goes with the offer, but for those of HTTP, which are not ours.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn sockets(&self) -> io::Result<Vec<(PassedSocket, OwnedFd)>> {
        let streams = listening::lock(&self.listening).stream_sockets()?;
        let streams = streams.into_iter().map(|(id, socket)| (PassedSocket::Stream(id), socket));
        Ok(streams.chain(self.passed.sockets()?).collect())
    }

    /// Lets each worker tell the new process, over its channel, what it has; calls go on.
    #[must_use]
    pub fn begin_hand_over(
        self: &Arc<Self>,
        unchanging: Unchanging,
        channels: Vec<Channel>,
        format: u32,
    ) -> HandingOver {
        let common = Arc::new(HandOver::new(self.workers.len(), format));
        for (worker, channel) in self.workers.iter().zip(channels) {
            leave(&worker.mailbox, Message::HandOver(channel, Arc::clone(&common)));
        }
        HandingOver { running: Arc::clone(self), common, stage: Stage::Telling, _unchanging: unchanging }
    }

    /// What the workers share, as far as it can go early: quotas and revocations. From now on their changes are noted.
    #[must_use]
    pub fn export_shared_early(&self) -> SharedState {
        self.process.export_early()
    }
}

/// Leaves a message, however full the inbox is: a worker that does not empty it ends the upgrade by its time limits.
fn leave(mailbox: &Mailbox, mut message: Message) {
    for _ in 0..1_000 {
        match mailbox.send(message) {
            Err(NotSent::Full(back)) => message = back,
            Ok(()) | Err(NotSent::Gone(_)) => return,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl HandingOver {
    /// Waits until the workers have told everything once; gives how many allocations there were.
    ///
    /// # Errors
    /// What a worker could not tell, or that it did not in time.
    pub fn wait_until_told(&self) -> Result<u64, String> {
        let told = self.reports(EARLY_TIME, "a worker did not tell what it has")?;
        Ok(told.iter().map(|told| told.allocations).sum())
    }

    fn reports(&self, within: Duration, late: &str) -> Result<Vec<HandedOver>, String> {
        let reports = self.common.meeting.reports(within);
        let reports = reports.ok_or_else(|| format!("{late} within {} ms", within.as_millis()))?;
        reports.into_iter().collect()
    }

    /// Accepts no more streams, and waits a moment for handshakes that are under way.
    pub fn stop_accepting(&self) {
        let acceptor = &self.running.acceptor;
        acceptor.front.gate.close();
        let looks = HANDSHAKES_TIME.as_millis() / HANDSHAKES_LOOK.as_millis();
        for _ in 0..looks {
            if acceptor.front.handshakes_under_way() == 0 {
                return;
            }
            std::thread::sleep(HANDSHAKES_LOOK);
        }
    }

    /// Lets the workers stop reading, and tell the rest.
    ///
    /// # Errors
    /// What a worker could not tell, or that it did not in time; dropping this lets them go on.
    pub fn cut(&mut self) -> Result<Cut, String> {
        self.stage = Stage::Stopped;
        self.running.set_recoverable(false);
        self.running.acceptor.hold_streams();
        // What is asked of the workers from now on might be done here and be unknown there.
        self.running.is_handed_over.store(true, Ordering::Relaxed);
        for worker in &self.running.workers {
            leave(&worker.mailbox, Message::StopReading);
        }
        let told = self.reports(CUT_TIME, "a worker did not stop reading")?;
        Ok(Cut {
            allocations: told.iter().map(|told| told.allocations).sum(),
            streams: told.iter().map(|told| told.streams).sum(),
            stopped_at: self.common.stopped_at(),
            shared: self.running.process.export_changes(),
        })
    }

    /// The new process may read from now on: if it ends, streams can't go on here.
    pub const fn let_go(&mut self) {
        self.stage = Stage::Gone;
    }

    /// Streams that are established from now on go to the new process over this channel.
    pub fn give_streams(&self, channel: Channel) {
        self.running.acceptor.give_streams(channel);
    }

    /// How many did.
    #[must_use]
    pub fn passed_late(&self) -> u64 {
        self.running.acceptor.passed_late()
    }

    /// Gives connections that are passed on to web servers to the new process, which is there to stay. Blocks.
    pub fn give_passed_on(&self, channel: Channel) {
        self.running.acceptor.pass_on.give_all(channel);
    }

    /// They end with this process: the new one does not take them.
    pub fn abandon_passed_on(&self) {
        self.running.acceptor.pass_on.abandon_all();
    }

    /// The sessions are the new process's: the workers end without a word.
    pub fn end(mut self) {
        self.stage = Stage::Over;
        listening::lock(&self.running.listening).stop();
        self.common.meeting.decide(Outcome::End);
        for worker in &self.running.workers {
            if let Some(thread) = worker.take_thread() {
                // A worker that panicked has said so already.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for HandingOver {
    fn drop(&mut self) {
        match self.stage {
            Stage::Telling => {
                for worker in &self.running.workers {
                    leave(&worker.mailbox, Message::GiveUpHandOver);
                }
            }
            Stage::Stopped => self.common.meeting.decide(Outcome::GoOn),
            Stage::Gone => self.common.meeting.decide(Outcome::GoOnWithoutStreams),
            Stage::Over => return,
        }
        self.running.set_recoverable(true);
        self.running.process.end_early_export();
        self.running.is_handed_over.store(false, Ordering::Relaxed);
        self.running.acceptor.take_streams_back();
        self.running.acceptor.front.gate.open();
    }
}
