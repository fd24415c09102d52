//! What a server leaves for a process that goes on when it is killed: a ledger in memory that a supervisor holds, and the
//! numbers of descriptors, which stay open because both processes have one table of them.
//!
//! The root is a row of words, each written in one call: where the latest version of something is, as the number of the
//! descriptor of a memory file. Each worker has a log of entries; from time to time it begins a new one with all that it has,
//! and changes go to both until the new one is complete. An entry that was cut short ends a log. Written by the process that
//! serves, read once by the next one; both are of one program, so nothing of it needs a version. Decision 0213.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use rustix::fs::MemfdFlags;

use super::shared::SharedChanges;
use super::sys::process::{adopt_descriptor, adopt_if, close_all_but};
use super::upgrade_messages::{Offer, PassedSocket, UpgradeTimes};
use crate::address::{FiveTuple, RelayedTransportAddress, StreamId, Via};
use crate::clock;
use crate::protocol::allocation::AllocationState;
use crate::protocol::changes::ServerChanges;
use crate::protocol::ledger::{LedgerEntry, LedgerSum, settle};
use crate::time::Ticks;

/// Bytes of a word of the root.
const WORD: u64 = 8;

/// The word that says what the process is doing.
const PHASE: u64 = 0;

/// The words of the first worker; each has two.
const WORKERS: u64 = 16;

/// As many as the configuration allows.
const WORKERS_MAX: usize = 256;

/// Where the root tells what each worker has in hand, and the room for it.
const IN_HAND: u64 = 1 << 16;
const IN_HAND_BYTES: u64 = 256;

/// The longest entry of a log that is read, in bytes.
const ENTRY_BYTES_MAX: usize = 1 << 28;

/// Bytes of changes behind what there is, and as many as that has, from which on a log is begun anew.
const LOG_BYTES: u64 = 4 << 20;

/// Bytes before each entry: its length and its checksum.
const HEAD: usize = 8;

/// Streams that may have begun after a worker's last word, so that none gets a number that was given already: with it comes
/// the session of a dead stream.
const STREAMS_AHEAD: u64 = 1 << 20;

/// How long a client is remembered whose message was in hand when a process died, in milliseconds.
const INCIDENT_MS: u64 = 60_000;

/// What the process is doing, for who finds it dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LedgerPhase {
    /// It has not served yet.
    Starting,
    /// It serves; the next one can go on.
    Serving,
    /// It takes over what a dead one left.
    Recovering,
    /// Its sessions end, or another process of an upgrade may have them: no process goes on for it.
    Leaving,
}

impl LedgerPhase {
    const ALL: [Self; 4] = [Self::Starting, Self::Serving, Self::Recovering, Self::Leaving];
}

/// What there is one of in a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cell {
    /// [`ShellNote`].
    Shell,
    /// [`SharedChanges`].
    Shared,
    /// The text of /metrics.
    Metrics,
    /// Whose messages were in hand when processes died.
    Incidents,
}

impl Cell {
    const ALL: [Self; 4] = [Self::Shell, Self::Shared, Self::Metrics, Self::Incidents];

    const fn word(self) -> u64 {
        1 + self as u64
    }
}

/// What the process is, and the sockets that belong to no worker.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub(crate) struct ShellNote {
    #[n(0)]
    pub(crate) offer: Offer,
    /// With the numbers of their descriptors.
    #[n(1)]
    pub(crate) sockets: Vec<(PassedSocket, i32)>,
    /// The text of the configuration, if it has a file.
    #[n(2)]
    pub(crate) config: Option<ByteVec>,
    #[n(3)]
    pub(crate) times: UpgradeTimes,
}

/// Somebody's message was in hand when a process died.
#[derive(Clone, Copy, PartialEq, Debug, Encode, Decode)]
pub(crate) struct Incident {
    #[n(0)]
    pub(crate) at: Ticks,
    #[n(1)]
    pub(crate) five_tuple: FiveTuple,
}

/// One entry of a worker's log.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub(super) enum LogEntry {
    /// What changed, or a slice of all there is.
    #[n(0)]
    Allocations {
        #[n(0)]
        entry: LedgerEntry,
        /// The descriptors of their relayed sockets, in the same order.
        #[n(1)]
        sockets: Vec<i32>,
        /// Those of their second ones, by what they are known by, if there are any.
        #[n(2)]
        second: Option<Vec<(u32, i32)>>,
    },
    /// What belongs to no single allocation.
    #[n(1)]
    Totals {
        #[n(0)]
        totals: Box<ServerChanges>,
        /// The last number of a client stream.
        #[n(1)]
        streams: u64,
        /// UDP listeners by their numbers: for data and, if it has one, for all else.
        #[n(2)]
        listeners: Vec<(u32, i32, Option<i32>)>,
        /// The set of descriptors that the worker waits for.
        #[n(3)]
        epoll: i32,
    },
}

/// Where a process writes what the next one needs.
#[derive(Debug)]
pub struct Ledger {
    root: File,
    /// The memory that the words name; what is replaced is closed.
    cells: Mutex<[Option<Published>; Cell::ALL.len()]>,
}

#[derive(Debug)]
struct Published {
    _memory: File,
    bytes: Vec<u8>,
    /// Whatever it names by number.
    _descriptors: Vec<OwnedFd>,
}

fn memory() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("throughway-ledger", MemfdFlags::CLOEXEC)?))
}

impl Ledger {
    /// An empty one.
    ///
    /// # Errors
    /// Of the system.
    pub fn new() -> io::Result<Self> {
        Ok(Self { root: memory()?, cells: Mutex::default() })
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; WORD as usize];
        // Beyond its end the root says nothing.
        let _ = self.root.read_at(&mut bytes, at * WORD);
        u64::from_be_bytes(bytes)
    }

    fn set_word(&self, at: u64, word: u64) -> io::Result<()> {
        self.root.write_all_at(&word.to_be_bytes(), at * WORD)
    }

    /// The descriptor that a word names.
    fn named(&self, at: u64) -> Option<RawFd> {
        self.word(at).checked_sub(1).and_then(|number| RawFd::try_from(number).ok())
    }

    fn name(&self, at: u64, file: Option<&File>) -> io::Result<()> {
        self.set_word(at, file.map_or(0, |file| file.as_raw_fd() as u64 + 1))
    }

    /// What the process was doing.
    #[must_use]
    pub fn phase(&self) -> LedgerPhase {
        LedgerPhase::ALL.get(self.word(PHASE) as usize).copied().unwrap_or(LedgerPhase::Starting)
    }

    /// What the process is doing from now on.
    pub fn set_phase(&self, phase: LedgerPhase) {
        if let Err(error) = self.set_word(PHASE, phase as u64) {
            tracing::error!(%error, "the ledger can't be written: until it can, a crash ends every call");
        }
    }

    /// Replaces a cell; `descriptors` stay open as long as it is there.
    pub(crate) fn publish(&self, cell: Cell, bytes: Vec<u8>, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut cells[cell as usize];
        if descriptors.is_empty() && known.as_ref().is_some_and(|known| known.bytes == bytes) {
            return Ok(());
        }
        let memory = memory()?;
        memory.write_all_at(&bytes, 0)?;
        self.name(cell.word(), Some(&memory))?;
        *known = Some(Published { _memory: memory, bytes, _descriptors: descriptors });
        Ok(())
    }

    /// What was in a cell.
    fn cell(&self, cell: Cell) -> Option<Vec<u8>> {
        let bytes = whole(adopt_descriptor(self.named(cell.word())?)?).ok()?;
        (!bytes.is_empty()).then_some(bytes)
    }

    /// A client's message is handled by this worker from now on.
    pub(super) fn take_in_hand(&self, worker: usize, five_tuple: &FiveTuple) {
        let mut place = [0; IN_HAND_BYTES as usize];
        let (len, room) = place.split_at_mut(1);
        let mut left = &mut *room;
        if minicbor::encode(five_tuple, &mut left).is_err() {
            return;
        }
        let used = IN_HAND_BYTES as usize - 1 - left.len();
        len[0] = used as u8;
        // Without it the next process knows one suspect less.
        let _ = self.root.write_all_at(&place[..=used], IN_HAND + worker as u64 * IN_HAND_BYTES);
    }

    /// It has been handled.
    pub(super) fn put_down(&self, worker: usize) {
        let _ = self.root.write_all_at(&[0], IN_HAND + worker as u64 * IN_HAND_BYTES);
    }

    /// Whose messages were in hand.
    fn in_hand(&self) -> Vec<FiveTuple> {
        let of_worker = |worker| {
            let mut place = [0; IN_HAND_BYTES as usize];
            let _ = self.root.read_at(&mut place, IN_HAND + worker as u64 * IN_HAND_BYTES);
            let len = usize::from(place[0]);
            (len > 0).then(|| minicbor::decode(place.get(1..=len)?).ok()).flatten()
        };
        (0..WORKERS_MAX).filter_map(of_worker).collect()
    }
}

fn whole(memory: OwnedFd) -> io::Result<Vec<u8>> {
    let memory = File::from(memory);
    let len = memory.metadata()?.len();
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    memory.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// One file of entries.
#[derive(Debug)]
struct LogFile {
    file: File,
    len: u64,
}

impl LogFile {
    fn new() -> io::Result<Self> {
        Ok(Self { file: memory()?, len: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// The log of one worker.
#[derive(Debug)]
pub(super) struct WorkerLog {
    ledger: Arc<Ledger>,
    worker: usize,
    current: Option<LogFile>,
    /// The one that will replace it.
    next: Option<LogFile>,
    /// Bytes of the current one when all was in it.
    complete_bytes: u64,
}

impl WorkerLog {
    pub(super) const fn new(ledger: Arc<Ledger>, worker: usize) -> Self {
        Self { ledger, worker, current: None, next: None, complete_bytes: 0 }
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    const fn word(&self) -> u64 {
        WORKERS + 2 * self.worker as u64
    }

    /// Begins a new file, which [`WorkerLog::append`] writes to as well.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let next = LogFile::new()?;
        self.ledger.name(self.word() + 1, Some(&next.file))?;
        self.next = Some(next);
        Ok(())
    }

    /// All is in the new file: it is the only one from now on.
    pub(super) fn complete(&mut self) -> io::Result<()> {
        let Some(next) = self.next.take() else { return Ok(()) };
        self.ledger.name(self.word(), Some(&next.file))?;
        self.ledger.name(self.word() + 1, None)?;
        self.complete_bytes = next.len;
        self.current = Some(next);
        Ok(())
    }

    /// Whether so much was written behind all that there is that it is time to begin anew.
    pub(super) fn is_long(&self) -> bool {
        self.current.as_ref().is_some_and(|log| log.len > 2 * self.complete_bytes + LOG_BYTES)
    }

    /// What is there is not to be gone on with, until all has been written anew.
    pub(super) fn give_up(&mut self) {
        for word in [self.word(), self.word() + 1] {
            // Before the files are closed, and their numbers are given to others.
            let _ = self.ledger.name(word, None);
        }
        (self.current, self.next) = (None, None);
    }

    /// Writes an entry at the end; one of the new file only is part of what there was already.
    pub(super) fn append(&mut self, entry: &LogEntry, to_next_only: bool) -> io::Result<()> {
        let mut bytes = vec![0; HEAD];
        minicbor::encode(entry, &mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
        let (head, body) = bytes.split_at_mut(HEAD);
        head[..4].copy_from_slice(&(body.len() as u32).to_be_bytes());
        head[4..].copy_from_slice(&crc32fast::hash(body).to_be_bytes());
        let current = self.current.as_mut().filter(|_| !to_next_only);
        current.into_iter().chain(&mut self.next).try_for_each(|log| log.append(&bytes))
    }
}

/// The whole entries of a log, up to its end or the first that was cut short.
fn entries(mut rest: &[u8]) -> impl Iterator<Item = LogEntry> {
    std::iter::from_fn(move || {
        let (head, body) = rest.split_at_checked(HEAD)?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let len = word(0) as usize;
        if len > ENTRY_BYTES_MAX {
            return None;
        }
        let (body, after) = body.split_at_checked(len)?;
        let is_whole = crc32fast::hash(body) == word(4);
        rest = if is_whole { after } else { &[] };
        is_whole.then(|| minicbor::decode(body).ok())?
    })
}

/// What a worker that is gone has left.
pub(crate) struct LeftWorker {
    pub(super) sockets: LeftSockets,
    pub(super) totals: ServerChanges,
    /// The last number of a client stream.
    pub(super) streams: u64,
}

/// What it had open.
pub(super) struct LeftSockets {
    /// The set of descriptors that it waited for.
    pub(super) epoll: OwnedFd,
    pub(super) listeners: Vec<(u32, OwnedFd, Option<OwnedFd>)>,
    /// Each with the sockets that are bound to its relayed transport addresses, in the order of
    /// [`AllocationState::sockets`].
    pub(super) allocations: Vec<(AllocationState, Vec<OwnedFd>)>,
}

/// What a process that is gone has left.
pub(crate) struct Left {
    pub(crate) offer: Offer,
    pub(crate) sockets: Vec<(PassedSocket, OwnedFd)>,
    pub(crate) shared: SharedChanges,
    pub(crate) metrics: Vec<u8>,
    pub(crate) workers: Vec<LeftWorker>,
    /// The text of its configuration.
    pub(crate) config: Option<String>,
    pub(crate) times: UpgradeTimes,
}

/// Over whose messages processes died within the last minute.
#[derive(Clone, Debug, Default)]
pub(crate) struct Incidents {
    /// The last death's among them.
    pub(crate) all: Vec<Incident>,
    /// Those for which it was not the first time.
    pub(crate) silenced: Vec<FiveTuple>,
    /// Whether a message was in hand at the last death.
    pub(crate) is_new: bool,
}

impl Ledger {
    /// Takes out what a process of this ledger left, and closes every other descriptor but the first three and those to
    /// `keep`. Must be called before this process opens anything. `counts` says whether a message in hand may be the reason of
    /// the last death.
    ///
    /// # Errors
    /// Why there is nothing to go on with; then all is closed.
    pub(crate) fn take_left(&self, keep: &[RawFd], counts: bool) -> (Result<Left, String>, Incidents) {
        let (incidents, left) = (self.incidents(counts), self.left());
        let kept = left.as_ref().map(Left::numbers).unwrap_or_default();
        close_all_but(kept.into_iter().chain(keep.iter().copied()).chain([self.root.as_raw_fd()]).collect());
        // What was named is closed, or has an owner.
        Cell::ALL.iter().for_each(|cell| drop(self.set_word(cell.word(), 0)));
        for word in WORKERS..WORKERS + 2 * WORKERS_MAX as u64 {
            let _ = self.set_word(word, 0);
        }
        (0..WORKERS_MAX).for_each(|worker| self.put_down(worker));
        (left, incidents)
    }

    fn incidents(&self, last_counts: bool) -> Incidents {
        let known = self.cell(Cell::Incidents).unwrap_or_default();
        let mut all: Vec<Incident> = minicbor::decode(&known).unwrap_or_default();
        let now = clock::now().ticks;
        all.retain(|incident| now.since(incident.at) < INCIDENT_MS);
        let in_hand = if last_counts { self.in_hand() } else { Vec::new() };
        all.extend(in_hand.iter().map(|five_tuple| Incident { at: now, five_tuple: *five_tuple }));
        let times = |five_tuple| all.iter().filter(|incident| incident.five_tuple == five_tuple).count();
        let silenced = in_hand.iter().copied().filter(|five_tuple| times(*five_tuple) > 1).collect();
        Incidents { is_new: !in_hand.is_empty(), silenced, all }
    }

    fn left(&self) -> Result<Left, String> {
        let unreadable = |what: &str| format!("its {what} can't be read");
        let shell = self.cell(Cell::Shell).ok_or("it had not written what it is")?;
        let ShellNote { offer, sockets, config, times } =
            minicbor::decode(&shell).map_err(|_| unreadable("description"))?;
        let shared = self.cell(Cell::Shared).ok_or("it had not written what its workers share")?;
        let shared = minicbor::decode(&shared).map_err(|_| unreadable("shared state"))?;
        let workers = (0..offer.workers as usize).map(|worker| self.left_worker(worker, &offer));
        Ok(Left {
            sockets: sockets.into_iter().filter_map(|(what, number)| Some((what, adopt_descriptor(number)?))).collect(),
            metrics: self.cell(Cell::Metrics).unwrap_or_default(),
            workers: workers.collect::<Result<_, _>>()?,
            config: config.and_then(|text| String::from_utf8(text.into()).ok()),
            times,
            offer,
            shared,
        })
    }

    fn left_worker(&self, worker: usize, offer: &Offer) -> Result<LeftWorker, String> {
        let word = WORKERS + 2 * worker as u64;
        let logs = [word, word + 1].into_iter().filter_map(|word| whole(adopt_descriptor(self.named(word)?)?).ok());
        let mut sum = LedgerSum::default();
        let mut last = None;
        for log in logs {
            for entry in entries(&log) {
                match entry {
                    LogEntry::Allocations { entry, sockets, second } => {
                        let second = second.unwrap_or_default();
                        let of = |allocation: &AllocationState| {
                            let (socket, _) = allocation.sockets().nth(1)?;
                            second.iter().find(|(slot, _)| *slot == socket.index).map(|(_, number)| *number)
                        };
                        let second: Vec<Option<i32>> = entry.allocations.iter().map(of).collect();
                        sum.add(entry, sockets.into_iter().zip(second));
                    }
                    LogEntry::Totals { totals, streams, listeners, epoll } => {
                        last = Some((totals, streams, listeners, epoll));
                    }
                }
            }
        }
        let (totals, streams, listeners, epoll) = last.ok_or_else(|| format!("worker {worker} had written nothing"))?;
        let epoll = adopt_descriptor(epoll).ok_or_else(|| format!("what worker {worker} waited for is closed"))?;
        let mut totals = *totals;
        // What belongs to no worker is written as soon as a drain begins.
        totals.draining |= offer.draining_ms.is_some();
        let socket = |relayed: RelayedTransportAddress, number: i32| {
            // One at an address that was not told of yet can't be gone on with; the others can.
            let (ip, port) = (relayed.ip(), relayed.port());
            let notes = &offer.relay_addresses;
            notes.iter().find(|note| note.advertised == ip)?;
            // It may have been opened at a local address that has had this public address before.
            let is_others = |local: IpAddr| notes.iter().any(|note| note.local == local && note.advertised != ip);
            let is_own = |local: IpAddr| notes.iter().any(|note| note.local == local && note.advertised == ip);
            let fits = |bound: SocketAddr| bound.port() == port && (is_own(bound.ip()) || !is_others(bound.ip()));
            adopt_if(number, fits)
        };
        let with_sockets = |(mut allocation, (own, second)): (AllocationState, (i32, Option<i32>))| {
            let mut sockets = vec![socket(allocation.relayed, own)?];
            let other = allocation.sockets().nth(1).map(|(_, relayed)| relayed);
            match other.and_then(|relayed| socket(relayed, second?)) {
                Some(second) => sockets.push(second),
                None => allocation.lose_second_socket(),
            }
            Some((allocation, sockets))
        };
        let allocations: Vec<_> = sum.finish().into_iter().filter_map(with_sockets).collect();
        settle(&mut totals, allocations.iter().map(|(allocation, _)| allocation));
        let listener = |(id, data, control): (u32, i32, Option<i32>)| {
            let bound = offer.listeners.iter().find(|note| note.id == id)?.bound;
            Some((id, adopt_if(data, |of| of == bound)?, control.and_then(|number| adopt_if(number, |of| of == bound))))
        };
        let listeners = listeners.into_iter().filter_map(listener).collect();
        let number = |(allocation, _): &(AllocationState, Vec<OwnedFd>)| match allocation.via {
            Via::Stream(StreamId(number), _) => number,
            Via::Datagram(_) => 0,
        };
        let streams = allocations.iter().map(number).fold(streams, u64::max) + STREAMS_AHEAD;
        Ok(LeftWorker { sockets: LeftSockets { epoll, listeners, allocations }, totals, streams })
    }
}

impl Left {
    fn numbers(&self) -> Vec<RawFd> {
        let of_worker = |worker: &LeftWorker| {
            let LeftSockets { epoll, listeners, allocations } = &worker.sockets;
            let listeners = listeners.iter().flat_map(|(_, data, control)| [Some(data), control.as_ref()]);
            let relays = allocations.iter().flat_map(|(_, sockets)| sockets);
            let all = listeners.flatten().chain(relays).chain([epoll]);
            all.map(AsRawFd::as_raw_fd).collect::<Vec<RawFd>>()
        };
        let sockets = self.sockets.iter().map(|(_, socket)| socket.as_raw_fd());
        sockets.chain(self.workers.iter().flat_map(of_worker)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddress, ServerAddress, Transport};

    fn five_tuple(port: u16) -> FiveTuple {
        FiveTuple {
            client: ClientAddress::new("2001:db8::1".parse().unwrap(), port),
            server: ServerAddress::new("2001:db8::2".parse().unwrap(), 3478),
            transport: Transport::Udp,
        }
    }

    fn entry(slots: &[u32]) -> LogEntry {
        let entry = LedgerEntry { allocations: Vec::new(), free: slots.to_vec() };
        LogEntry::Allocations { entry, sockets: Vec::new(), second: None }
    }

    fn all_of(bytes: &[u8]) -> Vec<LogEntry> {
        entries(bytes).collect()
    }

    fn bytes_of(log: &WorkerLog) -> Vec<u8> {
        let file = &log.current.as_ref().unwrap().file;
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_log_ends_at_the_first_entry_that_was_cut_short_or_changed() {
        let mut log = WorkerLog::new(Arc::new(Ledger::new().unwrap()), 0);
        log.begin().unwrap();
        log.append(&entry(&[1]), true).unwrap();
        log.complete().unwrap();
        log.append(&entry(&[2, 3]), false).unwrap();
        log.begin().unwrap();
        log.append(&entry(&[4]), true).unwrap();
        log.append(&entry(&[5]), false).unwrap();
        let bytes = bytes_of(&log);
        let all = [entry(&[1]), entry(&[2, 3]), entry(&[5])];
        assert_eq!(all_of(&bytes), all, "what is for the new file only is not in the old one");
        let first = bytes.len() - entries_len(&all[1..]);
        for len in 0..bytes.len() {
            let whole = if len < first { 0 } else { 1 + usize::from(len >= first + entries_len(&all[1..2])) };
            assert_eq!(all_of(&bytes[..len]), all[..whole], "{len} bytes");
        }
        for at in first..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(all_of(&changed).len() < 3 && all_of(&changed)[0] == all[0], "byte {at}");
        }
        log.complete().unwrap();
        assert_eq!(all_of(&bytes_of(&log)), [entry(&[4]), entry(&[5])]);
        log.begin().unwrap();
        let (ledger, word) = (Arc::clone(&log.ledger), log.word());
        assert!(ledger.named(word).is_some() && ledger.named(word + 1).is_some());
        log.give_up();
        assert_eq!((ledger.named(word), ledger.named(word + 1)), (None, None));
        log.append(&entry(&[6]), false).unwrap();
        log.begin().unwrap();
        log.append(&entry(&[7]), true).unwrap();
        log.complete().unwrap();
        assert_eq!(all_of(&bytes_of(&log)), [entry(&[7])], "all is written anew");
    }

    fn entries_len(entries: &[LogEntry]) -> usize {
        entries.iter().map(|entry| HEAD + minicbor::to_vec(entry).unwrap().len()).sum()
    }

    #[test]
    fn cells_and_phases_are_replaced_and_messages_in_hand_are_known() {
        let ledger = Ledger::new().unwrap();
        assert_eq!((ledger.phase(), ledger.word(Cell::Metrics.word())), (LedgerPhase::Starting, 0));
        for phase in LedgerPhase::ALL {
            ledger.set_phase(phase);
            assert_eq!(ledger.phase(), phase);
        }
        ledger.publish(Cell::Metrics, b"one".to_vec(), Vec::new()).unwrap();
        let first = ledger.word(Cell::Metrics.word());
        ledger.publish(Cell::Metrics, b"one".to_vec(), Vec::new()).unwrap();
        assert_eq!(ledger.word(Cell::Metrics.word()), first, "nothing has changed");
        ledger.publish(Cell::Metrics, b"two".to_vec(), Vec::new()).unwrap();
        let number = ledger.named(Cell::Metrics.word()).unwrap();
        let copy = std::fs::read(format!("/proc/self/fd/{number}")).unwrap();
        assert_eq!(copy, b"two");
        assert_eq!(ledger.in_hand(), []);
        ledger.take_in_hand(2, &five_tuple(7));
        ledger.take_in_hand(0, &five_tuple(8));
        assert_eq!(ledger.in_hand(), [five_tuple(8), five_tuple(7)]);
        ledger.put_down(0);
        assert_eq!(ledger.in_hand(), [five_tuple(7)]);
    }

    #[test]
    fn an_empty_ledger_is_nothing_to_go_on_with() {
        assert_eq!(Ledger::new().unwrap().left().err().as_deref(), Some("it had not written what it is"));
    }
}
