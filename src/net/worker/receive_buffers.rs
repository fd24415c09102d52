//! How much may wait in the kernel for a worker that can't keep up.
//!
//! A generous receive buffer carries a socket over a burst. When a worker is busy all the time it does something
//! else: hundreds of full buffers are a second of delay that no call wants, and nothing is lost less for it. So the
//! buffers of the sockets that are being read shrink then, to what can be worked off in some hundredths of a second,
//! and grow again when there is time to sleep.

use crate::net::sys;
use crate::time::Ticks;

/// Milliseconds after which is looked whether the worker slept.
const WINDOW: u64 = 50;

/// So many windows with sleep in a row end it.
const CALM_WINDOWS: u32 = 10;

/// Datagrams that a window must have had at least: a long turn of something else is no overload.
const BUSY_DATAGRAMS: u64 = 500;

/// What all sockets together may hold of a worker that is busy all the time, in bytes as SO_RCVBUF counts them.
const BUSY_BYTES: usize = 2 << 20;

/// What one socket may always hold: a handful of the largest packets of a call.
const LEAST_BYTES: usize = 8 << 10;

/// What a socket's buffer is, and whether that is still what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::net) struct ReceiveBufferState {
    setting: u8,
    window: u8,
}

/// The setting of a socket that another process had: it is set anew when it is read. As such it is never used.
const UNKNOWN: u8 = u8::MAX;

impl ReceiveBufferState {
    /// For a socket that another process read before: what its buffer is, is not known.
    pub(in crate::net) const fn unknown() -> Self {
        Self { setting: UNKNOWN, window: 0 }
    }
}

/// Watches whether a worker ever sleeps, and says how large buffers should be.
#[derive(Debug)]
pub(super) struct ReceiveBufferPolicy {
    since: Ticks,
    sleeps: u64,
    datagrams: u64,
    calm: u32,
    /// Counts the windows, to see which sockets were read in this one.
    window: u8,
    active: usize,
    /// Bytes of each socket; `None` means its usual ones.
    bytes: Option<usize>,
    /// Counts the changes of `bytes`.
    setting: u8,
}

impl ReceiveBufferPolicy {
    pub(super) fn new(now: Ticks) -> Self {
        Self {
            since: now,
            sleeps: sys::voluntary_switches(),
            datagrams: 0,
            calm: 0,
            window: 1,
            active: 0,
            bytes: None,
            setting: 0,
        }
    }

    /// Once per turn; `datagrams` are all that ever came.
    #[inline]
    pub(super) fn on_turn(&mut self, now: Ticks, datagrams: u64) {
        if now.since(self.since) >= WINDOW {
            self.close_window(now, datagrams, sys::voluntary_switches());
        }
    }

    fn close_window(&mut self, now: Ticks, datagrams: u64, sleeps: u64) {
        let is_busy = sleeps == self.sleeps && datagrams - self.datagrams >= BUSY_DATAGRAMS;
        let active = std::mem::take(&mut self.active).max(1);
        (self.since, self.sleeps, self.datagrams) = (now, sleeps, datagrams);
        self.window = self.window.wrapping_add(1);
        if is_busy {
            self.calm = 0;
            let bytes = (BUSY_BYTES / active).max(LEAST_BYTES);
            // A little more or less is not worth a system call for each socket.
            if self.bytes.is_none_or(|old| bytes > old * 2 || bytes < old / 2) {
                self.set(Some(bytes));
            }
        } else if self.bytes.is_some() {
            self.calm += 1;
            if self.calm >= CALM_WINDOWS {
                self.set(None);
            }
        }
    }

    const fn set(&mut self, bytes: Option<usize>) {
        self.bytes = bytes;
        // 0 is what every socket begins with.
        self.setting = match bytes {
            None => 0,
            Some(_) if self.setting + 1 == UNKNOWN => 1,
            Some(_) => self.setting + 1,
        };
    }

    /// A socket is read: what its buffer must be set to, if it is another than it was; `usual` is its own.
    #[inline]
    pub(super) fn on_read(&mut self, socket: &mut ReceiveBufferState, usual: usize) -> Option<usize> {
        if socket.window != self.window {
            socket.window = self.window;
            self.active += 1;
        }
        if socket.setting == self.setting {
            return None;
        }
        socket.setting = self.setting;
        Some(self.bytes.map_or(usual, |bytes| bytes.min(usual)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: usize = 1 << 20;

    fn room() -> ReceiveBufferPolicy {
        ReceiveBufferPolicy { sleeps: 0, ..ReceiveBufferPolicy::new(Ticks(0)) }
    }

    /// One window in which these sockets are read; gives what their buffers were set to.
    fn read(room: &mut ReceiveBufferPolicy, sockets: &mut [ReceiveBufferState]) -> Vec<Option<usize>> {
        sockets.iter_mut().map(|socket| room.on_read(socket, USUAL)).collect()
    }

    #[test]
    fn buffers_shrink_while_the_worker_never_sleeps_and_grow_again() {
        let mut room = room();
        let mut sockets = vec![ReceiveBufferState::default(); 64];
        assert_eq!(read(&mut room, &mut sockets), vec![None; 64]);
        room.close_window(Ticks(50), 10_000, 0);
        assert_eq!(read(&mut room, &mut sockets), vec![Some(32 << 10); 64]);
        assert_eq!(read(&mut room, &mut sockets), vec![None; 64], "told once");
        room.close_window(Ticks(100), 20_000, 0);
        assert_eq!(read(&mut room, &mut sockets), vec![None; 64], "as before");
        for window in 0..9 {
            room.close_window(Ticks(150 + window), 21_000, 1 + window);
            assert_eq!(read(&mut room, &mut sockets[..1]), [None]);
        }
        room.close_window(Ticks(200), 22_000, 99);
        assert_eq!(read(&mut room, &mut sockets), vec![Some(USUAL); 64]);
    }

    #[test]
    fn room_is_shared_by_those_who_are_read_and_never_less_than_a_few_packets() {
        let mut room = room();
        let mut sockets = vec![ReceiveBufferState::default(); 3_000];
        read(&mut room, &mut sockets[..1]);
        room.close_window(Ticks(50), 10_000, 0);
        assert_eq!(read(&mut room, &mut sockets[..1]), [Some(USUAL)], "one may have all, but not more than it had");
        read(&mut room, &mut sockets);
        room.close_window(Ticks(100), 20_000, 0);
        assert_eq!(read(&mut room, &mut sockets[..2]), [Some(LEAST_BYTES); 2]);
    }

    #[test]
    fn a_socket_that_another_process_had_is_set_when_it_is_read() {
        let mut room = room();
        let mut sockets = [ReceiveBufferState::unknown()];
        assert_eq!(read(&mut room, &mut sockets), [Some(USUAL)]);
        assert_eq!(read(&mut room, &mut sockets), [None]);
        for _ in 0..1_000 {
            room.set(Some(LEAST_BYTES));
            assert_eq!(read(&mut room, &mut [ReceiveBufferState::unknown()]), [Some(LEAST_BYTES)]);
        }
    }

    #[test]
    fn a_worker_that_slept_or_did_little_is_not_busy() {
        let mut room = room();
        let mut sockets = [ReceiveBufferState::default()];
        room.close_window(Ticks(50), 10_000, 1);
        room.close_window(Ticks(100), 10_499, 1);
        assert_eq!(read(&mut room, &mut sockets), [None]);
    }
}
