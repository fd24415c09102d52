//! What one worker of a process that was killed would have told its successor, out of its ledger.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use super::handoff::{Channel, HandoffError, to_memory};
use super::ledger::LeftWorker;
use super::shared::SharedState;
use super::stream_state::StreamsState;
use super::sys::Epoll;
use super::upgrade_messages::WorkerPart;
use crate::address::FiveTuple;
use crate::protocol::allocation::AllocationState;
use crate::protocol::authenticated::AuthenticatedCountsState;
use crate::protocol::changes::EarlyAllocations;
use crate::protocol::quota_state::QuotasState;
use crate::state::{self, FORMAT, State};

/// Allocations told at once: for a moment each has two descriptors, and there may be few left.
const ALLOCATIONS_AT_ONCE: usize = 24;

/// How long a message may wait.
const WITHIN: Duration = Duration::from_secs(60);

/// What the workers share, before anything of it is told.
pub(crate) fn empty_shared() -> SharedState {
    SharedState {
        quotas: QuotasState::default(),
        revocations: Vec::new(),
        authenticated: AuthenticatedCountsState::default(),
        resting_ports: Vec::new(),
    }
}

/// Speaks for one worker.
pub(crate) struct WorkerVoice {
    channel: Channel,
    left: LeftWorker,
}

fn memory_of(state: &impl State) -> Result<std::os::fd::OwnedFd, HandoffError> {
    let bytes = state::write(state, FORMAT).map_err(|error| HandoffError::Unreadable(error.to_string()))?;
    Ok(to_memory(&bytes)?)
}

impl WorkerVoice {
    pub(crate) const fn new(channel: Channel, left: LeftWorker) -> Self {
        Self { channel, left }
    }

    /// Tells what was there when the process was killed. Our descriptors are closed: those that went along are the same sockets.
    ///
    /// # Errors
    /// [`HandoffError`].
    pub(crate) fn tell_early(&mut self, silenced: &[FiveTuple]) -> Result<(), HandoffError> {
        let Self { channel, left } = self;
        let epoll = Epoll::adopted(left.epoll.try_clone()?);
        channel.send(&WorkerPart::Recovered(silenced.to_vec()), &[left.epoll.as_fd()], WITHIN)?;
        for (id, data, control) in left.listeners.drain(..) {
            let sockets: Vec<BorrowedFd<'_>> =
                [Some(data.as_fd()), control.as_ref().map(|of| of.as_fd())].into_iter().flatten().collect();
            // They are waited for under their new numbers.
            sockets.iter().for_each(|socket| epoll.remove(*socket));
            channel.send(&WorkerPart::Listener(id), &sockets, WITHIN)?;
        }
        while !left.allocations.is_empty() {
            let rest = left.allocations.split_off(ALLOCATIONS_AT_ONCE.min(left.allocations.len()));
            let (allocations, sockets): (Vec<AllocationState>, Vec<_>) =
                std::mem::replace(&mut left.allocations, rest).into_iter().unzip();
            let memory = memory_of(&EarlyAllocations { worker: left.totals.worker, allocations })?;
            let descriptors: Vec<BorrowedFd<'_>> =
                [memory.as_fd()].into_iter().chain(sockets.iter().map(|of| of.as_fd())).collect();
            channel.send(&WorkerPart::Early, &descriptors, WITHIN)?;
        }
        channel.send(&WorkerPart::EarlyEnd, &[], WITHIN)
    }

    /// Tells what belongs to no single allocation: the last message.
    ///
    /// # Errors
    /// [`HandoffError`].
    pub(crate) fn tell_rest(&mut self) -> Result<(), HandoffError> {
        let streams = StreamsState { next_id: self.left.streams, streams: Vec::new() };
        let (changes, streams) = (memory_of(&self.left.totals)?, memory_of(&streams)?);
        self.channel.send(&WorkerPart::Changes, &[changes.as_fd(), streams.as_fd()], WITHIN)
    }
}
