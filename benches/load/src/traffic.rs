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
pub enum Direction {
    ToPeer = 0,
    ToClient = 1,
}

pub const WAYS: [Direction; 2] = [Direction::ToPeer, Direction::ToClient];

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
    pub way: Direction,
    /// Number of the measured window it was sent in, 0 outside of any.
    pub window: u8,
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
        bytes[25] = self.window;
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
            way: if head[24] == 0 { Direction::ToPeer } else { Direction::ToClient },
            window: head[25],
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
    /// Whether what is sent now counts in the window.
    pub measured: bool,
    window: u8,
    pub slots: Option<Slots>,
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
            window: 1,
            slots: None,
            counts: Default::default(),
            faults: Faults::default(),
            latency: Histogram::new(),
        }
    }

    /// What is sent from now on counts in a new window, and what was sent before counts no more.
    pub fn begin_window(&mut self) {
        for counts in &mut self.counts {
            (counts.sent_measured, counts.received_measured) = (0, 0);
        }
        self.latency = Histogram::new();
        self.window += 1;
        self.measured = true;
    }

    /// The next payload of a flow: its header and the pattern behind it.
    pub fn next(&mut self, session: usize, way: Direction, now: u64) -> ([u8; HEADER], &'static [u8]) {
        let flow = &mut self.flows[way as usize][session];
        let sequence = flow.next;
        flow.next += 1;
        let counts = &mut self.counts[way as usize];
        counts.sent += 1;
        counts.sent_measured += u64::from(self.measured);
        if let Some(slots) = &mut self.slots {
            slots.sent(now);
        }
        let stamp = Stamp {
            session: session as u32,
            way,
            window: if self.measured { self.window } else { 0 },
            sequence,
            sent_at: now,
            length: self.payload as u16,
        };
        (stamp.write(), self.pattern.tail(session as u32, sequence, self.payload - HEADER))
    }

    /// The system did not take packets that `next` has numbered: they are no loss of the server's.
    pub fn not_sent(&mut self, way: Direction, packets: u64) {
        let counts = &mut self.counts[way as usize];
        counts.not_sent += packets;
        counts.sent -= packets;
        if self.measured {
            counts.sent_measured -= packets;
        }
    }

    /// Checks a payload that came out at the far side. `addressed_well` is what the addresses around it say.
    pub fn arrived(&mut self, session: usize, way: Direction, payload: &[u8], addressed_well: bool, now: u64) {
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
        if let Some(slots) = &mut self.slots {
            slots.arrived(stamp.sent_at, now);
        }
        if stamp.window == self.window {
            counts.received_measured += 1;
            self.latency.record(now.saturating_sub(stamp.sent_at));
        }
    }

    /// Both ways together.
    pub fn window_counts(&self) -> Counts {
        let [one, other] = self.counts;
        Counts {
            sent: one.sent + other.sent,
            received: one.received + other.received,
            sent_measured: one.sent_measured + other.sent_measured,
            received_measured: one.received_measured + other.received_measured,
            not_sent: one.not_sent + other.not_sent,
        }
    }

    pub fn received(&self) -> u64 {
        self.counts.iter().map(|c| c.received).sum()
    }

    pub fn sent(&self) -> u64 {
        self.counts.iter().map(|c| c.sent).sum()
    }
}

/// Ten milliseconds.
const SLOT_NS: u64 = 10_000_000;
/// So many normal slots in a row, and the server has recovered.
const NORMAL_SLOTS: usize = 10;

/// Loss and latency by the time of sending.
pub struct Slots {
    start: u64,
    slots: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    sent: u64,
    /// In nanoseconds, in the order of arrival.
    latencies: Vec<u32>,
}

impl Slots {
    pub fn new(start: u64, nanoseconds: u64) -> Self {
        Self { start, slots: (0..nanoseconds.div_ceil(SLOT_NS)).map(|_| Slot::default()).collect() }
    }

    fn at(&mut self, time: u64) -> Option<&mut Slot> {
        self.slots.get_mut((time.checked_sub(self.start)? / SLOT_NS) as usize)
    }

    fn sent(&mut self, now: u64) {
        if let Some(slot) = self.at(now) {
            slot.sent += 1;
        }
    }

    fn arrived(&mut self, sent_at: u64, now: u64) {
        if let Some(slot) = self.at(sent_at) {
            slot.latencies.push(u32::try_from(now.saturating_sub(sent_at)).unwrap_or(u32::MAX));
        }
    }

    /// Milliseconds from the start to the first slot of a run of normal ones: at most one packet in a hundred lost,
    /// and the median no higher than this.
    pub fn recovered(&mut self, median_max: u64) -> Option<f64> {
        let normal: Vec<bool> = self.slots.iter_mut().map(|slot| slot.is_normal(median_max)).collect();
        let first = normal.windows(NORMAL_SLOTS).position(|run| run.iter().all(|normal| *normal))?;
        Some(first as f64 * SLOT_NS as f64 / 1e6)
    }

    /// Packets sent and packets lost in all slots.
    pub fn totals(&self) -> (u64, u64) {
        let sent: u64 = self.slots.iter().map(|slot| slot.sent).sum();
        let arrived: usize = self.slots.iter().map(|slot| slot.latencies.len()).sum();
        (sent, sent.saturating_sub(arrived as u64))
    }
}

impl Slot {
    /// A slot in which the generator sent nothing says nothing against the server.
    fn is_normal(&mut self, median_max: u64) -> bool {
        if self.sent == 0 {
            return true;
        }
        if (self.latencies.len() as u64) * 100 < self.sent * 99 {
            return false;
        }
        let middle = self.latencies.len() / 2;
        let median = *self.latencies.select_nth_unstable(middle).1;
        u64::from(median) <= median_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(ledger: &mut Ledger, session: usize, way: Direction) -> Vec<u8> {
        let (head, tail) = ledger.next(session, way, 100);
        [&head, tail].concat()
    }

    #[test]
    fn a_payload_is_counted_once_and_its_copy_is_a_duplicate() {
        let mut ledger = Ledger::new(2, 160);
        ledger.measured = true;
        let packet = payload(&mut ledger, 1, Direction::ToPeer);
        ledger.arrived(1, Direction::ToPeer, &packet, true, 600);
        ledger.arrived(1, Direction::ToPeer, &packet, true, 600);
        assert_eq!((ledger.received(), ledger.faults.duplicates), (1, 1));
        assert_eq!(ledger.latency.max(), 500);
    }

    #[test]
    fn every_changed_byte_is_corruption() {
        let mut ledger = Ledger::new(1, 200);
        let packet = payload(&mut ledger, 0, Direction::ToClient);
        for at in 0..packet.len() {
            let mut changed = packet.clone();
            changed[at] ^= 0x10;
            ledger.arrived(0, Direction::ToClient, &changed, true, 0);
            assert_eq!(ledger.faults.corrupt, at as u64 + 1, "byte {at}");
        }
        ledger.arrived(0, Direction::ToClient, &packet[..199], true, 0);
        assert_eq!((ledger.faults.corrupt, ledger.received()), (201, 0));
    }

    #[test]
    fn a_payload_at_another_session_is_misdelivered() {
        let mut ledger = Ledger::new(2, 160);
        let packet = payload(&mut ledger, 0, Direction::ToPeer);
        ledger.arrived(1, Direction::ToPeer, &packet, true, 0);
        ledger.arrived(0, Direction::ToClient, &packet, true, 0);
        ledger.arrived(0, Direction::ToPeer, &packet, false, 0);
        assert_eq!((ledger.faults.misdelivered, ledger.received()), (3, 0));
    }

    #[test]
    fn late_packets_count_and_gaps_are_left_open() {
        let mut ledger = Ledger::new(1, 64);
        let packets: Vec<_> = (0..10_000).map(|_| payload(&mut ledger, 0, Direction::ToPeer)).collect();
        for n in [0, 2, 1, 1, 5_000, 4_999, 5_000, 9_999, 2] {
            ledger.arrived(0, Direction::ToPeer, &packets[n], true, 0);
        }
        assert_eq!(ledger.received(), 6);
        assert_eq!((ledger.faults.reordered, ledger.faults.duplicates), (2, 3));
    }

    #[test]
    fn a_window_counts_only_what_was_sent_in_it() {
        let mut ledger = Ledger::new(1, 160);
        let before = payload(&mut ledger, 0, Direction::ToPeer);
        ledger.begin_window();
        let first = payload(&mut ledger, 0, Direction::ToPeer);
        let lost = payload(&mut ledger, 0, Direction::ToPeer);
        ledger.arrived(0, Direction::ToPeer, &before, true, 900);
        ledger.arrived(0, Direction::ToPeer, &first, true, 300);
        let counts = ledger.counts[0];
        assert_eq!((counts.sent_measured, counts.received_measured, ledger.latency.max()), (2, 1, 200));
        ledger.begin_window();
        ledger.arrived(0, Direction::ToPeer, &lost, true, 300);
        assert_eq!((ledger.counts[0].sent_measured, ledger.counts[0].received_measured), (0, 0));
    }

    /// Slots of 100 packets: the first `bad` are late or lost, the others take 50 microseconds.
    fn slots(bad: u64, latency: u64, lost: u64) -> Slots {
        let mut slots = Slots::new(1_000, 40 * SLOT_NS);
        for n in 0..40 {
            let sent_at = 1_000 + n * SLOT_NS + 7;
            for packet in 0..100 {
                slots.sent(sent_at);
                let (latency, lost) = if n < bad { (latency, packet < lost) } else { (50_000, false) };
                if !lost {
                    slots.arrived(sent_at, sent_at + latency);
                }
            }
        }
        slots
    }

    #[test]
    fn recovery_is_where_loss_and_latency_are_normal_for_good() {
        assert_eq!(slots(0, 0, 0).recovered(100_000), Some(0.0));
        assert_eq!(slots(3, 5_000_000, 0).recovered(100_000), Some(30.0));
        assert_eq!(slots(4, 50_000, 2).recovered(100_000), Some(40.0));
        assert_eq!(slots(4, 50_000, 1).recovered(100_000), Some(0.0));
        assert_eq!(slots(35, 5_000_000, 0).recovered(100_000), None);
        assert_eq!(slots(4, 50_000, 2).totals(), (4_000, 8));
    }

    #[test]
    fn packets_of_before_and_after_belong_to_no_slot() {
        let mut slots = Slots::new(SLOT_NS, SLOT_NS);
        for time in [0, SLOT_NS - 1, 2 * SLOT_NS, u64::MAX] {
            slots.sent(time);
            slots.arrived(time, time);
        }
        assert_eq!(slots.totals(), (0, 0));
    }
}
