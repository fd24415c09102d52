//! What is known of the kernel's willingness to cut one message into several datagrams (UDP_SEGMENT).
//!
//! A refusal concerns the destination that it was met with: one client behind a narrow path, or one that forged an
//! address that can't be sent to, must not slow down the others. And nothing is known for good: each refusal is
//! forgotten after a minute. Decision 0191.

use std::io;
use std::net::SocketAddr;

use crate::time::Ticks;

/// The largest datagram that every path carries (RFC 8200 section 5: 1,280 bytes), without its headers.
const SURE_BYTES: usize = 1_232;

/// Milliseconds after which a refusal is forgotten.
const FORGOTTEN_AFTER: u64 = 60_000;

/// Destinations that a listener remembers; the one that was refused first makes room.
const REMEMBERED: usize = 16;

/// Refusals to so many destinations, with no message taken in between, are no fault of theirs.
const SUSPICIOUS: u8 = 8;

/// What EIO weighs: the device can't compute checksums, which concerns all that leaves through it.
const DEVICE_WEIGHT: u8 = 4;

/// How large datagrams may be that are handed to the kernel together.
pub(in crate::net) trait Segmentation {
    /// Forgets what was learned too long ago; called before each batch.
    fn refresh(&mut self, now: Ticks);

    /// The largest datagram, in bytes, of which several may go to this destination in one message; 0 for none.
    fn largest(&self, to: &SocketAddr) -> usize;

    /// The kernel refused a message of several datagrams of this size: whether they may still go one by one.
    fn on_refused(&mut self, to: &SocketAddr, error: &io::Error, segment: usize) -> bool;

    /// The kernel took one.
    fn on_taken(&mut self);
}

/// The largest datagram that may still be sent with others after a refusal; `None` if the error has another cause.
///
/// EIO: the device can't (no checksums of its own). EINVAL: the socket can't, or in older kernels the size does not
/// fit the path. EMSGSIZE: the size does not fit the path.
fn largest_after(error: &io::Error, segment: usize) -> Option<usize> {
    match error.raw_os_error() {
        Some(libc::EIO) => Some(0),
        Some(libc::EINVAL) if segment <= SURE_BYTES => Some(0),
        Some(libc::EINVAL | libc::EMSGSIZE) => Some(segment - 1),
        _ => None,
    }
}

/// Each datagram for itself.
#[derive(Clone, Copy, Debug)]
pub(in crate::net) struct Unsegmented;

impl Segmentation for Unsegmented {
    fn refresh(&mut self, _now: Ticks) {}

    fn largest(&self, _to: &SocketAddr) -> usize {
        0
    }

    fn on_refused(&mut self, _to: &SocketAddr, _error: &io::Error, _segment: usize) -> bool {
        false
    }

    fn on_taken(&mut self) {}
}

/// Of a relayed socket: one client's, so one limit for all its peers. Two bytes, because there is one per allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::net) struct RelaySegmentation {
    /// In units of [`UNIT`] bytes.
    largest: u8,
    /// When it was last unlimited, in units of [`TICK`]; it wraps around every 17 minutes.
    at: u8,
}

/// Bytes.
const UNIT: usize = 256;

/// Milliseconds.
const TICK: u64 = 4_096;

impl Default for RelaySegmentation {
    fn default() -> Self {
        Self { largest: u8::MAX, at: 0 }
    }
}

impl Segmentation for RelaySegmentation {
    #[inline]
    fn refresh(&mut self, now: Ticks) {
        let tick = (now.0 / TICK) as u8;
        if u64::from(tick.wrapping_sub(self.at)) * TICK > FORGOTTEN_AFTER {
            self.largest = u8::MAX;
        }
        if self.largest == u8::MAX {
            self.at = tick;
        }
    }

    #[inline]
    fn largest(&self, _to: &SocketAddr) -> usize {
        if self.largest == u8::MAX { usize::MAX } else { usize::from(self.largest) * UNIT }
    }

    fn on_refused(&mut self, _to: &SocketAddr, error: &io::Error, segment: usize) -> bool {
        let largest = largest_after(error, segment);
        if let Some(largest) = largest {
            self.largest = self.largest.min((largest / UNIT).min(usize::from(u8::MAX) - 1) as u8);
        }
        largest.is_some()
    }

    fn on_taken(&mut self) {}
}

/// What was refused to one destination.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    to: SocketAddr,
    largest: usize,
    at: Ticks,
}

/// Of a listener, which sends to many clients.
#[derive(Clone, Debug, Default)]
pub(in crate::net) struct ListenerSegmentation {
    now: Ticks,
    refusals: Vec<Refusal>,
    /// Weight of the refusals since the kernel took a message.
    in_a_row: u8,
    off_until: Ticks,
}

impl Segmentation for ListenerSegmentation {
    #[inline]
    fn refresh(&mut self, now: Ticks) {
        self.now = now;
        if !self.refusals.is_empty() {
            self.refusals.retain(|refusal| now.since(refusal.at) <= FORGOTTEN_AFTER);
        }
    }

    #[inline]
    fn largest(&self, to: &SocketAddr) -> usize {
        if self.now < self.off_until {
            return 0;
        }
        let known = self.refusals.iter().find(|refusal| refusal.to == *to);
        known.map_or(usize::MAX, |refusal| refusal.largest)
    }

    fn on_refused(&mut self, to: &SocketAddr, error: &io::Error, segment: usize) -> bool {
        let Some(largest) = largest_after(error, segment) else { return false };
        match self.refusals.iter_mut().find(|refusal| refusal.to == *to) {
            Some(refusal) => refusal.largest = refusal.largest.min(largest),
            None => {
                if self.refusals.len() >= REMEMBERED {
                    self.refusals.remove(0);
                }
                self.refusals.push(Refusal { to: *to, largest, at: self.now });
                let is_device = error.raw_os_error() == Some(libc::EIO);
                self.in_a_row = self.in_a_row.saturating_add(if is_device { DEVICE_WEIGHT } else { 1 });
            }
        }
        if self.in_a_row >= SUSPICIOUS {
            self.in_a_row = 0;
            self.off_until = Ticks(self.now.0 + FORGOTTEN_AFTER);
        }
        true
    }

    #[inline]
    fn on_taken(&mut self) {
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    fn client(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 1_000))
    }

    #[test]
    fn what_an_error_says_about_later_messages() {
        assert_eq!(largest_after(&error(libc::EIO), 1_400), Some(0));
        assert_eq!(largest_after(&error(libc::EINVAL), 1_232), Some(0));
        assert_eq!(largest_after(&error(libc::EINVAL), 1_400), Some(1_399));
        assert_eq!(largest_after(&error(libc::EMSGSIZE), 9_000), Some(8_999));
        assert_eq!(largest_after(&error(libc::ENOBUFS), 100), None);
    }

    /// F-A5: one client's refusals are that client's.
    #[test]
    fn a_refusal_concerns_its_destination_and_is_forgotten() {
        let mut listener = ListenerSegmentation::default();
        listener.refresh(Ticks(1_000));
        for _ in 0..1_000 {
            assert!(listener.on_refused(&client(1), &error(libc::EINVAL), 100));
            assert!(listener.on_refused(&client(2), &error(libc::EMSGSIZE), 1_400));
        }
        assert_eq!([1, 2, 3].map(|of| listener.largest(&client(of))), [0, 1_399, usize::MAX]);
        listener.refresh(Ticks(61_001));
        assert_eq!(listener.largest(&client(1)), usize::MAX);
    }

    #[test]
    fn a_device_that_refuses_everybody_is_left_alone_for_a_minute() {
        let mut listener = ListenerSegmentation::default();
        listener.refresh(Ticks(5));
        for number in 0..SUSPICIOUS {
            assert_eq!(listener.largest(&client(99)), usize::MAX);
            listener.on_refused(&client(number), &error(libc::EINVAL), 100);
        }
        assert_eq!(listener.largest(&client(99)), 0);
        listener.refresh(Ticks(60_005));
        assert_eq!(listener.largest(&client(99)), usize::MAX);
        for number in 0..3 * SUSPICIOUS {
            listener.on_refused(&client(number), &error(libc::EIO), 100);
            listener.on_taken();
        }
        assert_eq!(listener.largest(&client(99)), usize::MAX, "others are served all the while");
        assert!(listener.refusals.len() <= REMEMBERED);
    }

    #[test]
    fn a_relayed_socket_tries_again_after_a_minute() {
        let mut relay = RelaySegmentation::default();
        relay.refresh(Ticks(10_000_000));
        assert_eq!(relay.largest(&client(1)), usize::MAX);
        assert!(relay.on_refused(&client(1), &error(libc::EMSGSIZE), 1_400));
        assert_eq!(relay.largest(&client(2)), 1_280);
        relay.refresh(Ticks(10_050_000));
        assert_eq!(relay.largest(&client(2)), 1_280);
        relay.refresh(Ticks(10_070_000));
        assert_eq!(relay.largest(&client(2)), usize::MAX);
        assert!(!relay.on_refused(&client(1), &error(libc::ENOBUFS), 1_400));
    }
}
