//! The log's own thread: the only one that writes to standard error or to the journal's socket once the log has begun.
//!
//! Every other thread leaves a finished line in a bounded queue and goes on; a pipe without a reader, a stopped terminal
//! and a journal that stands still hold up this thread alone. What finds no room
//! is lost and counted, and once the output takes lines again one line says how many were.
//! Decision: docs/decisions/0155-the-log-has-a-thread-and-may-lose-lines.md.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::clock;
use crate::ops::journal::{Journal, JournalEntry};
use crate::printable::{json_line, text_line};
use crate::time::Ticks;

/// What lines of sessions are logged under, so that they can be told from all others.
pub(crate) const SESSION_TARGET: &str = "throughway::sessions";

/// Bytes that may wait; the kernel's buffers come on top.
const BYTES_MAX: usize = 4 << 20;

/// What one line takes besides its text.
const LINE_BYTES: usize = 64;

/// Lines that the queue has room for all the time.
const USUAL_LINES: usize = 256;

/// How long the end of the process waits for an output that takes nothing at all, and on the whole.
const FLUSH_PROGRESS: Duration = Duration::from_secs(1);
const FLUSH_TIME: Duration = Duration::from_secs(5);

/// An output that is slow but not stuck hears of its losses so often, in milliseconds.
const SAY_AGAIN_MS: u64 = 60_000;

/// A descriptor that somebody made non-blocking is tried again so often.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Which lines give way first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LineClass {
    /// A session began or ended, a request was refused: clients cause these.
    Session,
    /// What else is worth a line.
    Ordinary,
    /// Warnings and errors.
    Urgent,
}

impl LineClass {
    pub(crate) fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            Level::ERROR | Level::WARN => Self::Urgent,
            _ if metadata.target() == SESSION_TARGET => Self::Session,
            _ => Self::Ordinary,
        }
    }

    /// How full the queue may be for such a line: clients can't fill what is kept for the others.
    const fn bytes_max(self) -> usize {
        match self {
            Self::Session => BYTES_MAX / 2,
            Self::Ordinary => BYTES_MAX / 4 * 3,
            Self::Urgent => BYTES_MAX,
        }
    }
}

/// A finished line.
enum LogLine {
    /// For standard error, with its line feed.
    Text(Box<[u8]>),
    /// For the journal; the text is for standard error if the journal does not take it.
    Entry(JournalEntry, Box<str>),
}

impl LogLine {
    fn bytes(&self) -> usize {
        LINE_BYTES
            + match self {
                Self::Text(text) => text.len(),
                Self::Entry(entry, text) => entry.len() + text.len(),
            }
    }
}

/// Lines that wait for the thread.
#[derive(Default)]
struct WaitingLines {
    lines: VecDeque<LogLine>,
    /// Of the line that is being written too.
    bytes: usize,
    /// A newer one takes its place, so it needs no bound.
    progress: Option<String>,
    is_writing: bool,
}

/// Between those who log and the thread.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<WaitingLines>,
    came: Condvar,
    went: Condvar,
    written: AtomicU64,
    /// Found no room.
    overflowed: AtomicU64,
    /// The output refused them.
    refused: AtomicU64,
}

impl Queue {
    pub(crate) const fn new() -> Self {
        let waiting = WaitingLines { lines: VecDeque::new(), bytes: 0, progress: None, is_writing: false };
        Self {
            waiting: Mutex::new(waiting),
            came: Condvar::new(),
            went: Condvar::new(),
            written: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingLines> {
        // Whole after each statement, so a panic elsewhere leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, class: LineClass, line: LogLine) {
        let bytes = line.bytes();
        {
            let mut waiting = self.waiting();
            if waiting.bytes + bytes > class.bytes_max() {
                drop(waiting);
                self.overflowed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            waiting.bytes += bytes;
            waiting.lines.push_back(line);
        }
        self.came.notify_one();
    }

    /// Text that is finished already, with its line feed.
    pub(crate) fn push_text(&self, class: LineClass, text: String) {
        self.push(class, LogLine::Text(text.into_bytes().into()));
    }

    pub(crate) fn push_progress(&self, text: &str) {
        self.waiting().progress = Some(text.to_owned());
        self.came.notify_one();
    }

    pub(crate) fn push_entry(&self, class: LineClass, entry: JournalEntry, text: String) {
        self.push(class, LogLine::Entry(entry, text.into()));
    }

    /// Lines that found no room, and lines that the output refused.
    pub(crate) fn lost(&self) -> [u64; 2] {
        [self.overflowed.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed)]
    }

    /// Waits until all is written, but not for an output that takes nothing.
    #[allow(clippy::disallowed_methods, reason = "the end of the process is bounded by real time")]
    pub(crate) fn flush(&self) {
        let started = std::time::Instant::now();
        let mut waiting = self.waiting();
        while !waiting.lines.is_empty() || waiting.is_writing {
            let before = self.written.load(Ordering::Relaxed);
            let (guard, waited) =
                self.went.wait_timeout(waiting, FLUSH_PROGRESS).unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
            let is_stuck = waited.timed_out() && self.written.load(Ordering::Relaxed) == before;
            if is_stuck || started.elapsed() >= FLUSH_TIME {
                return;
            }
        }
    }

    /// The next line, or the newest line of progress if no other waits.
    fn next(&self) -> (Option<LogLine>, Option<String>) {
        let mut waiting = self.waiting();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.is_writing = true;
                return (Some(line), None);
            }
            if let Some(progress) = waiting.progress.take() {
                waiting.is_writing = true;
                return (None, Some(progress));
            }
            // Room for a burst of lines goes back when the burst is over.
            if waiting.lines.capacity() > USUAL_LINES {
                waiting.lines = VecDeque::new();
            }
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What [`Queue::next`] gave is dealt with; whether nothing else waits.
    fn done(&self, bytes: usize) -> bool {
        let mut waiting = self.waiting();
        waiting.bytes -= bytes;
        waiting.is_writing = false;
        let is_empty = waiting.lines.is_empty();
        drop(waiting);
        self.went.notify_all();
        is_empty
    }

    /// Writes for as long as the process lives.
    pub(crate) fn write_to(&self, mut output: Output<impl Write>) {
        let (mut said, mut said_at) = (0, None::<Ticks>);
        loop {
            let (line, progress) = self.next();
            let bytes = line.as_ref().map_or(0, LogLine::bytes);
            let result = match (&line, progress) {
                (Some(line), _) => output.write(line),
                (None, progress) => output.show(&progress.unwrap_or_default()),
            };
            match (result, line) {
                (Ok(()), Some(_)) => _ = self.written.fetch_add(1, Ordering::Relaxed),
                (Err(_), Some(_)) => _ = self.refused.fetch_add(1, Ordering::Relaxed),
                // Another line of progress follows.
                (_, None) => {}
            }
            let is_empty = self.done(bytes);
            let lost = self.lost().iter().sum::<u64>();
            let now = clock::now().ticks;
            let is_due = is_empty || said_at.is_none_or(|at| now.since(at) >= SAY_AGAIN_MS);
            if lost > said && output.works && is_due {
                tracing::warn!(
                    lines = lost - said,
                    "log lines were lost because the output was too slow; usage records and counters still have the sessions' traffic"
                );
                (said, said_at) = (lost, Some(now));
            }
        }
    }
}

/// Where lines go.
pub(crate) struct Output<W> {
    journal: Option<Journal>,
    text: W,
    /// The last line on the terminal is one of progress, which the next line takes the place of.
    is_progress_shown: bool,
    /// The last write ended inside a line.
    is_cut: bool,
    /// Whether the last line was taken.
    works: bool,
}

const ERASE_LINE: &[u8] = b"\r\x1b[K";

impl<W: Write> Output<W> {
    pub(crate) const fn new(journal: Option<Journal>, text: W) -> Self {
        Self { journal, text, is_progress_shown: false, is_cut: false, works: true }
    }

    fn write(&mut self, line: &LogLine) -> io::Result<()> {
        let result = match (line, &mut self.journal) {
            (LogLine::Text(text), _) => self.write_text(text),
            (LogLine::Entry(entry, text), Some(journal)) => match journal.hand_over(entry) {
                Ok(()) => Ok(()),
                // Better a line without fields than none; who does not read standard error either has chosen so.
                Err(_) => self.write_text(format!("{text}\n").as_bytes()),
            },
            (LogLine::Entry(_, text), None) => self.write_text(format!("{text}\n").as_bytes()),
        };
        self.works = result.is_ok();
        result
    }

    fn write_text(&mut self, text: &[u8]) -> io::Result<()> {
        if std::mem::take(&mut self.is_progress_shown) {
            write_all(&mut self.text, ERASE_LINE).1?;
        }
        if self.is_cut {
            write_all(&mut self.text, b"\n").1?;
            self.is_cut = false;
        }
        let (written, result) = write_all(&mut self.text, text);
        self.is_cut = result.is_err() && written > 0;
        result
    }

    fn show(&mut self, progress: &str) -> io::Result<()> {
        self.is_progress_shown = true;
        write_all(&mut self.text, ERASE_LINE).1?;
        write_all(&mut self.text, progress.as_bytes()).1
    }
}

/// Writes everything and tells how much it was; waits where the descriptor itself does not.
fn write_all(to: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TRY_AGAIN),
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Makes lines of what `tracing_subscriber` formats: one call of [`Write::write`] per line.
#[derive(Clone, Copy)]
pub(crate) struct LineMaker {
    pub(crate) queue: &'static Queue,
    pub(crate) is_json: bool,
}

/// For one line.
pub(crate) struct LineWriter(LineMaker, LineClass);

impl<'w> MakeWriter<'w> for LineMaker {
    type Writer = LineWriter;

    fn make_writer(&'w self) -> LineWriter {
        LineWriter(*self, LineClass::Ordinary)
    }

    fn make_writer_for(&'w self, metadata: &Metadata<'_>) -> LineWriter {
        LineWriter(*self, LineClass::of(metadata))
    }
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Self(maker, class) = self;
        let text = String::from_utf8_lossy(line);
        let text = if maker.is_json { json_line(&text) } else { text_line(&text) };
        maker.queue.push_text(*class, text.into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    fn text(line: &str) -> LogLine {
        LogLine::Text(line.as_bytes().into())
    }

    // F-A4: a queue that is full drops, counts, and keeps room for what an operator must see.
    #[test]
    fn sessions_fill_half_and_warnings_find_room_until_all_is_full() {
        let queue = Queue::new();
        let line = "x".repeat(1000 - LINE_BYTES);
        let fit = |class| {
            let before = queue.lost()[0];
            let pushed = 10_000;
            (0..pushed).for_each(|_| queue.push(class, text(&line)));
            pushed - (queue.lost()[0] - before) as usize
        };
        let classes = [LineClass::Session, LineClass::Ordinary, LineClass::Urgent].map(fit);
        assert_eq!(classes[0], BYTES_MAX / 2 / 1000);
        assert_eq!(classes[0] + classes[1], BYTES_MAX / 4 * 3 / 1000);
        assert_eq!(classes.iter().sum::<usize>(), BYTES_MAX / 1000);
    }

    /// Takes some bytes of each write, and nothing at all for some of them.
    struct Choppy(mpsc::Sender<Vec<u8>>, u32);

    impl Write for Choppy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 % 5 {
                1 => Err(io::ErrorKind::WouldBlock.into()),
                2 => Err(io::ErrorKind::Interrupted.into()),
                4 => Err(io::ErrorKind::StorageFull.into()),
                _ => {
                    let some = bytes.len().min(7);
                    let _ = self.0.send(bytes[..some].to_vec());
                    Ok(some)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_is_written_or_counted_and_a_cut_one_ends_before_the_next() {
        let queue: &'static Queue = Box::leak(Box::default());
        let (sender, written) = mpsc::channel();
        std::thread::spawn(|| queue.write_to(Output::new(None, Choppy(sender, 0))));
        for _ in 0..10 {
            queue.push(LineClass::Ordinary, text("0123456789\n"));
        }
        queue.flush();
        let all = String::from_utf8(written.try_iter().flatten().collect()).unwrap();
        let whole = all.lines().filter(|line| *line == "0123456789").count() as u64;
        let [overflowed, refused] = queue.lost();
        assert_eq!(
            (overflowed, queue.written.load(Ordering::Relaxed) + refused, whole),
            (0, 10, 10 - refused),
            "{all}"
        );
        assert!(refused > 0 && all.lines().all(|line| "0123456789".starts_with(line)), "{all}");
    }

    #[test]
    fn the_end_does_not_wait_for_an_output_that_takes_nothing() {
        struct Never(Arc<Mutex<()>>);
        impl Write for Never {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                drop(self.0.lock());
                Ok(0)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let queue: &'static Queue = Box::leak(Box::default());
        let output = Output::new(None, Never(Arc::clone(&gate)));
        std::thread::spawn(|| queue.write_to(output));
        queue.push(LineClass::Ordinary, text("line\n"));
        queue.flush();
        assert_eq!(queue.written.load(Ordering::Relaxed), 0);
        drop(closed);
    }
}
