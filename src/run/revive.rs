//! Speaks for a process that was killed, out of its ledger, to the one that goes on: the old process's side of an upgrade, without
//! one that could go on itself.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::supervise::Death;
use crate::net::handoff::{Channel, DESCRIPTORS_MAX, HandoffError, to_memory};
use crate::net::ledger::{Incidents, Left, LeftWorker};
use crate::net::revive::{WorkerVoice, empty_shared};
use crate::net::upgrade_messages::{FromNew, FromOld};
use crate::state::{self, FORMAT, State};

/// How long one message may wait, and the next answer may take: the other side is a thread of this process.
const WITHIN: Duration = Duration::from_secs(60);

/// What a process that was killed left, and how that came.
pub(crate) struct Recovery {
    pub(super) left: Left,
    pub(super) incidents: Incidents,
    pub(super) death: Death,
}

impl Recovery {
    /// Tells all of it over the channel; gives when both sides are done. Blocks.
    ///
    /// # Errors
    /// What the other side could not take.
    pub(super) fn speak(self, mut channel: Channel) -> Result<(), String> {
        let Self { left, incidents, death } = self;
        let Left { mut offer, sockets, shared, metrics, workers } = left;
        let FromNew::Hello(_) = hear(&mut channel)? else { return Err(unexpected()) };
        offer.format = FORMAT;
        tell(&channel, &FromOld::Offer(offer), &[])?;
        for (what, socket) in sockets {
            tell(&channel, &FromOld::Socket(what), &[socket.as_fd()])?;
        }
        tell(&channel, &FromOld::Listeners, &[])?;
        let FromNew::Planned { .. } = hear(&mut channel)? else { return Err(unexpected()) };
        tell(&channel, &FromOld::Early, &[memory_of(&empty_shared())?.as_fd()])?;
        let voices = give_channels(&channel, workers)?;
        let mut voices: Vec<WorkerVoice> = voices.into_iter().map(|(own, left)| WorkerVoice::new(own, left)).collect();
        // Each has a thread at the other side that listens.
        std::thread::scope(|scope| {
            let silenced = &incidents.silenced;
            let speaking: Vec<_> =
                voices.iter_mut().map(|voice| scope.spawn(move || voice.tell_early(silenced))).collect();
            speaking
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| unexpected())?.map_err(|error| error.to_string()))
        })?;
        let FromNew::Prepared { allocations } = hear(&mut channel)? else { return Err(unexpected()) };
        for voice in &mut voices {
            voice.tell_rest().map_err(|error| error.to_string())?;
        }
        tell(&channel, &FromOld::Cut { allocations, streams: 0 }, &[memory_of(&shared)?.as_fd()])?;
        let FromNew::Ready = hear(&mut channel)? else { return Err(unexpected()) };
        tell(&channel, &FromOld::Go, &[])?;
        let FromNew::TakenOver { at } = hear(&mut channel)? else { return Err(unexpected()) };
        let FromNew::Confirm = hear(&mut channel)? else { return Err(unexpected()) };
        let metrics = to_memory(&metrics).map_err(|error| error.to_string())?;
        let gap_us = at.saturating_sub(death.at);
        tell(&channel, &FromOld::Written { chain: None, gap_us, prepare_us: 0 }, &[metrics.as_fd()])
    }
}

/// A channel for each worker of the other side; gives our ends with what the workers left.
fn give_channels(channel: &Channel, workers: Vec<LeftWorker>) -> Result<Vec<(Channel, LeftWorker)>, String> {
    let pairs = workers.iter().map(|_| Channel::pair()).collect::<Result<Vec<_>, _>>();
    let (own, its): (Vec<Channel>, Vec<Channel>) = pairs.map_err(|error| error.to_string())?.into_iter().unzip();
    let mut left = its.len();
    for channels in its.chunks(DESCRIPTORS_MAX) {
        left -= channels.len();
        let descriptors: Vec<BorrowedFd<'_>> = channels.iter().map(|channel| channel.as_fd()).collect();
        tell(channel, &FromOld::Workers { more: left > 0 }, &descriptors)?;
    }
    Ok(own.into_iter().zip(workers).collect())
}

fn tell(channel: &Channel, message: &FromOld, descriptors: &[BorrowedFd<'_>]) -> Result<(), String> {
    channel.send(message, descriptors, WITHIN).map_err(|error| error.to_string())
}

fn hear(channel: &mut Channel) -> Result<FromNew, String> {
    match channel.receive::<FromNew>(WITHIN) {
        Ok((FromNew::Refused { reason, .. }, _)) => Err(reason),
        Ok((said, _)) => Ok(said),
        Err(HandoffError::Closed) => Err("it was given up".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn unexpected() -> String {
    "both sides of a recovery disagree".to_owned()
}

fn memory_of(state: &impl State) -> Result<OwnedFd, String> {
    let bytes = state::write(state, FORMAT).map_err(|error| error.to_string())?;
    to_memory(&bytes).map_err(|error| error.to_string())
}
