//! What a payload carries, and the check of every payload that arrives.

use crate::histogram::Histogram;

/// Bytes in front of the pattern; the smallest payload.
pub const HEADER: usize = 32;
pub const PAYLOAD_MAX: usize = 65_000;
const MAGIC: u32 = 0x7477_4C44;
const STARTS: usize = 4_096;
/// Packets a flow may be out of order by before a straggler can't be told from a duplicate.
const WINDOW: u64 = 4_096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    ToPeer = 0,
    ToClient = 1,
}

pub const WAYS: [Way; 2] = [Way::ToPeer, Way::ToClient];

/// Pseudo-random bytes made once; a payload's tail is a slice of them that depends on flow and sequence.
#[derive(Clone, Copy)]
pub struct Pattern(&'static [u8]);

impl Pattern {
    pub fn new() -> Self {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let bytes = (0..STARTS + PAYLOAD_MAX).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        });
        Self(Vec::leak(bytes.collect()))
    }

    pub fn tail(&self, session: u32, sequence: u64, length: usize) -> &'static [u8] {
        let start = (u64::from(session) * 37 + sequence * 5) as usize % STARTS;
        &self.0[start..start + length]
    }
}

pub struct Stamp {
    pub session: u32,
    pub way: Way,
    pub measured: bool,
    pub sequence: u64,
    pub sent_at: u64,
    pub length: u16,
}

impl Stamp {
    pub fn write(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.session.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sent_at.to_le_bytes());
        bytes[24] = self.way as u8;
        bytes[25] = u8::from(self.measured);
        bytes[26..28].copy_from_slice(&self.length.to_le_bytes());
        let sum = checksum(&bytes[..28]);
        bytes[28..32].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(0) != MAGIC || word(28) != checksum(&head[..28]) {
            return None;
        }
        Some(Self {
            session: word(4),
            way: if head[24] == 0 { Way::ToPeer } else { Way::ToClient },
            measured: head[25] == 1,
            sequence: long(8),
            sent_at: long(16),
            length: u16::from_le_bytes([head[26], head[27]]),
        })
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = 0x811C_9DC5_u32;
    for four in bytes.chunks_exact(4) {
        let word = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        sum = (sum ^ word).wrapping_mul(0x0100_0193).rotate_left(7);
    }
    sum
}

/// One direction of one session.
struct Flow {
    next: u64,
    highest: u64,
    any: bool,
    seen: Box<[u64; (WINDOW / 64) as usize]>,
}

enum Arrival {
    New,
    Reordered,
    Duplicate,
}

impl Flow {
    fn new() -> Self {
        Self { next: 0, highest: 0, any: false, seen: Box::new([0; (WINDOW / 64) as usize]) }
    }

    fn arrive(&mut self, sequence: u64) -> Arrival {
        let reordered = self.any && sequence < self.highest;
        if reordered && self.highest - sequence >= WINDOW {
            return Arrival::Duplicate;
        }
        if !reordered {
            let first = if self.any { self.highest + 1 } else { 0 };
            if self.any && sequence == self.highest {
                return Arrival::Duplicate;
            }
            if sequence - first >= WINDOW {
                self.seen.fill(0);
            } else {
                (first..=sequence).for_each(|n| self.seen[(n % WINDOW / 64) as usize] &= !(1 << (n % 64)));
            }
            self.highest = sequence;
            self.any = true;
        }
        let (word, bit) = ((sequence % WINDOW / 64) as usize, 1 << (sequence % 64));
        if self.seen[word] & bit != 0 {
            return Arrival::Duplicate;
        }
        self.seen[word] |= bit;
        if reordered { Arrival::Reordered } else { Arrival::New }
    }
}

/// Counts of one direction, or of both.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub sent: u64,
    pub received: u64,
    /// Of the packets sent within the measured window.
    pub sent_measured: u64,
    pub received_measured: u64,
    pub not_sent: u64,
}

#[derive(Default)]
pub struct Faults {
    pub duplicates: u64,
    pub reordered: u64,
    pub corrupt: u64,
    /// A sound payload at the wrong session, from the wrong address, or under the wrong channel or peer.
    pub misdelivered: u64,
    /// Neither a payload nor anything this phase should bring.
    pub unexpected: u64,
}

/// Numbers payloads on their way out and checks them on their way in.
pub struct Ledger {
    pattern: Pattern,
    flows: [Vec<Flow>; 2],
    payload: usize,
    pub measured: bool,
    pub counts: [Counts; 2],
    pub faults: Faults,
    pub latency: Histogram,
}

impl Ledger {
    pub fn new(sessions: usize, payload: usize) -> Self {
        let flows = || (0..sessions).map(|_| Flow::new()).collect();
        Self {
            pattern: Pattern::new(),
            flows: [flows(), flows()],
            payload,
            measured: false,
            counts: Default::default(),
            faults: Faults::default(),
            latency: Histogram::new(),
        }
    }

    /// The next payload of a flow: its header and the pattern behind it.
    pub fn next(&mut self, session: usize, way: Way, now: u64) -> ([u8; HEADER], &'static [u8]) {
        let flow = &mut self.flows[way as usize][session];
        let sequence = flow.next;
        flow.next += 1;
        let counts = &mut self.counts[way as usize];
        counts.sent += 1;
        counts.sent_measured += u64::from(self.measured);
        let stamp = Stamp {
            session: session as u32,
            way,
            measured: self.measured,
            sequence,
            sent_at: now,
            length: self.payload as u16,
        };
        (stamp.write(), self.pattern.tail(session as u32, sequence, self.payload - HEADER))
    }

    /// The system did not take packets that `next` has numbered: they are no loss of the server's.
    pub fn not_sent(&mut self, way: Way, packets: u64) {
        let counts = &mut self.counts[way as usize];
        counts.not_sent += packets;
        counts.sent -= packets;
        if self.measured {
            counts.sent_measured -= packets;
        }
    }

    /// Checks a payload that came out at the far side. `addressed_well` is what the addresses around it say.
    pub fn arrived(&mut self, session: usize, way: Way, payload: &[u8], addressed_well: bool, now: u64) {
        let Some(stamp) = Stamp::read(payload) else {
            self.faults.corrupt += 1;
            return;
        };
        if payload.len() != self.payload || usize::from(stamp.length) != self.payload {
            self.faults.corrupt += 1;
            return;
        }
        if payload[HEADER..] != *self.pattern.tail(stamp.session, stamp.sequence, payload.len() - HEADER) {
            self.faults.corrupt += 1;
            return;
        }
        if stamp.session as usize != session || stamp.way != way || !addressed_well {
            self.faults.misdelivered += 1;
            return;
        }
        let flow = &mut self.flows[way as usize][session];
        if stamp.sequence >= flow.next {
            self.faults.corrupt += 1;
            return;
        }
        match flow.arrive(stamp.sequence) {
            Arrival::New => {}
            Arrival::Reordered => self.faults.reordered += 1,
            Arrival::Duplicate => {
                self.faults.duplicates += 1;
                return;
            }
        }
        let counts = &mut self.counts[way as usize];
        counts.received += 1;
        if stamp.measured {
            counts.received_measured += 1;
            self.latency.record(now.saturating_sub(stamp.sent_at));
        }
    }

    pub fn received(&self) -> u64 {
        self.counts.iter().map(|c| c.received).sum()
    }

    pub fn sent(&self) -> u64 {
        self.counts.iter().map(|c| c.sent).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(ledger: &mut Ledger, session: usize, way: Way) -> Vec<u8> {
        let (head, tail) = ledger.next(session, way, 100);
        [&head, tail].concat()
    }

    #[test]
    fn a_payload_is_counted_once_and_its_copy_is_a_duplicate() {
        let mut ledger = Ledger::new(2, 160);
        ledger.measured = true;
        let packet = payload(&mut ledger, 1, Way::ToPeer);
        ledger.arrived(1, Way::ToPeer, &packet, true, 600);
        ledger.arrived(1, Way::ToPeer, &packet, true, 600);
        assert_eq!((ledger.received(), ledger.faults.duplicates), (1, 1));
        assert_eq!(ledger.latency.max(), 500);
    }

    #[test]
    fn every_changed_byte_is_corruption() {
        let mut ledger = Ledger::new(1, 200);
        let packet = payload(&mut ledger, 0, Way::ToClient);
        for at in 0..packet.len() {
            let mut changed = packet.clone();
            changed[at] ^= 0x10;
            ledger.arrived(0, Way::ToClient, &changed, true, 0);
            assert_eq!(ledger.faults.corrupt, at as u64 + 1, "byte {at}");
        }
        ledger.arrived(0, Way::ToClient, &packet[..199], true, 0);
        assert_eq!((ledger.faults.corrupt, ledger.received()), (201, 0));
    }

    #[test]
    fn a_payload_at_another_session_is_misdelivered() {
        let mut ledger = Ledger::new(2, 160);
        let packet = payload(&mut ledger, 0, Way::ToPeer);
        ledger.arrived(1, Way::ToPeer, &packet, true, 0);
        ledger.arrived(0, Way::ToClient, &packet, true, 0);
        ledger.arrived(0, Way::ToPeer, &packet, false, 0);
        assert_eq!((ledger.faults.misdelivered, ledger.received()), (3, 0));
    }

    #[test]
    fn late_packets_count_and_gaps_are_left_open() {
        let mut ledger = Ledger::new(1, 64);
        let packets: Vec<_> = (0..10_000).map(|_| payload(&mut ledger, 0, Way::ToPeer)).collect();
        for n in [0, 2, 1, 1, 5_000, 4_999, 5_000, 9_999, 2] {
            ledger.arrived(0, Way::ToPeer, &packets[n], true, 0);
        }
        assert_eq!(ledger.received(), 6);
        assert_eq!((ledger.faults.reordered, ledger.faults.duplicates), (2, 3));
    }
}
