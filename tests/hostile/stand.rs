//! A server under attack, and all that is watched beside it: calls, newcomers, the watchdog, memory and files.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::attacker::{Attacker, Order};
use super::calls::{Calls, Figures, wall_clock};
use super::newcomers::{Answers, Newcomers, Question};
use test_support::e2e::server::{Directory, binary, with_open_files};
use test_support::e2e::{Server, Settings, wait_for};

/// How long the calls are watched alone, and beside an attacker who takes processor time and nothing else.
const QUIET: Duration = Duration::from_millis(700);
const CONTROL_SECONDS: f64 = 1.0;

/// Before that they must have gone on so long as ever; this is tried so often.
const SETTLE: Duration = Duration::from_millis(200);
const SETTLES: usize = 20;

/// A packet of a call is slow if it takes so much longer than 99 of 100 did before the attack.
const SLOWER: u64 = 10_000_000;

/// One packet in so many may be slow.
const SLOW_ONE_IN: usize = 100;

/// Other programs of the machine may spoil a round; what an attack does it does in each.
const ROUNDS: usize = 5;

/// What the service manager asks for; systemd would kill a server that feeds it later than that.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(3);

/// Memory and files are looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Relayed addresses are at an address of their own: ports that no other test uses.
pub(crate) fn settings(workers: u8) -> Settings {
    let mut settings = Settings::new(workers);
    settings.relay = vec![("addresses", "[\"127.77.0.8\"]")];
    settings.ports = Some(10_000..=29_999);
    settings
}

/// What a moment showed of the process.
#[derive(Clone, Copy, Default)]
struct Look {
    at: u64,
    resident: u64,
    files: u64,
}

/// What goes on beside the calls while they last.
#[derive(Default)]
struct Watch {
    stop: AtomicBool,
    looks: Mutex<Vec<Look>>,
    fed: Mutex<Vec<u64>>,
}

impl Watch {
    /// Looks at memory and files of a process.
    fn look_after(&self, pid: u32) {
        while !self.stop.load(Ordering::Relaxed) {
            let memory = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            let pages: u64 = memory.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
            let files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) as u64;
            self.looks.lock().unwrap().push(Look { at: wall_clock(), resident: pages * 4096, files });
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Hears what the service manager is told.
    fn hear(&self, manager: &UnixDatagram) {
        let mut buffer = [0; 500];
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok(len) = manager.recv(&mut buffer)
                && buffer[..len].starts_with(b"WATCHDOG=1")
            {
                self.fed.lock().unwrap().push(wall_clock());
            }
        }
    }

    /// The longest time without a message within a span, in nanoseconds.
    fn longest_hunger(&self, from: u64, to: u64) -> u64 {
        let fed = self.fed.lock().unwrap();
        let before = fed.iter().copied().rfind(|at| *at < from).unwrap_or(from);
        let mut all = vec![before];
        all.extend(fed.iter().copied().filter(|at| (from..to).contains(at)));
        all.push(to);
        all.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    fn most(&self, from: u64, to: u64) -> Look {
        let looks = self.looks.lock().unwrap();
        looks.iter().filter(|look| (from..to).contains(&look.at)).fold(Look::default(), |most, look| Look {
            at: look.at,
            resident: most.resident.max(look.resident),
            files: most.files.max(look.files),
        })
    }
}

/// A server with everything that watches it.
pub(crate) struct Stand {
    // Dropped in this order: calls end before the server.
    calls: Calls,
    newcomers: Newcomers,
    watch: Arc<Watch>,
    pub(crate) server: Server,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.watch.stop.store(true, Ordering::Relaxed);
    }
}

/// What one attack did, beside what was before it.
pub(crate) struct Round {
    /// Without attack or attacker, and beside one who takes nothing but processor time.
    quiet: Figures,
    control: Figures,
    attack: Figures,
    pub(crate) answers: Answers,
    /// The longest time that the watchdog was not fed.
    hunger: u64,
    pub(crate) resident_before: u64,
    pub(crate) resident: u64,
    pub(crate) files: u64,
    /// What the attacker counted.
    pub(crate) units: u64,
    /// How long the attack took.
    pub(crate) seconds: f64,
}

impl Round {
    /// The delay, in nanoseconds, beyond which a packet is slow.
    fn slow_from(&self) -> u64 {
        self.quiet.quantile(0.99).max(self.control.quantile(0.99)).saturating_add(SLOWER)
    }

    /// What is wrong with it; nothing if the attack did no harm.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut expect = |is_fine: bool, fault: String| {
            if !is_fine {
                faults.push(fault);
            }
        };
        let (slow_from, count) = (self.slow_from(), self.attack.count());
        let slow = self.attack.slower_than(slow_from);
        expect(self.attack.lost == 0, format!("{} packets of calls were lost", self.attack.lost));
        let share = format!("{slow} of {count} packets of calls took more than {:.1} ms", slow_from as f64 / 1e6);
        expect(slow * SLOW_ONE_IN <= count, share);
        let Answers { asked, unanswered, .. } = &self.answers;
        expect(unanswered.is_empty(), format!("of {asked} newcomers these were not answered: {unanswered:?}"));
        let hunger = format!("the watchdog was not fed for {:.1} s", self.hunger as f64 / 1e9);
        expect(u128::from(self.hunger) < WATCHDOG.as_nanos(), hunger);
        faults
    }

    fn report(&self, name: &str, workers: u8) {
        let Self { quiet, control, attack, answers, units, .. } = self;
        println!("{name}, {workers} workers: {units} units in {:.1} s", self.seconds);
        println!("  alone   {quiet}\n  control {control}\n  attack  {attack}");
        let (slow, slow_from) = (attack.slower_than(self.slow_from()), self.slow_from() as f64 / 1e6);
        println!("  {slow} slower than {slow_from:.1} ms; {} newcomers, slowest {:?}", answers.asked, answers.slowest);
        let mib = |bytes: u64| bytes >> 20;
        let (before, most, files) = (mib(self.resident_before), mib(self.resident), self.files);
        println!("  memory {before} to {most} MiB, {files} files, unfed {:.1} s", self.hunger as f64 / 1e9);
        for fault in self.faults() {
            println!("  fault: {fault}");
        }
    }
}

impl Stand {
    /// Starts the server, the calls and the watchers; the newcomers ask these questions.
    pub(crate) fn start(settings: Settings, questions: Vec<Question>) -> Self {
        Self::start_with(settings, None, |_| questions)
    }

    /// The same with a server that may open so many files, and questions that depend on where it listens.
    pub(crate) fn start_with(
        settings: Settings,
        files: Option<u32>,
        questions: impl FnOnce(&Server) -> Vec<Question>,
    ) -> Self {
        let directory = Directory::new();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(LOOK_EVERY)).unwrap();
        let server = Server::start_as(directory, settings, |config| {
            let mut command = binary(config);
            if let Some(files) = files {
                command = with_open_files(&command, files);
            }
            command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
            command
        });
        let watch = Arc::new(Watch::default());
        let (looking, hearing, pid) = (Arc::clone(&watch), Arc::clone(&watch), server.pid());
        std::thread::spawn(move || looking.look_after(pid));
        std::thread::spawn(move || hearing.hear(&manager));
        let calls = Calls::start(&server);
        let newcomers = Newcomers::start(&server, questions(&server));
        Self { server, watch, calls, newcomers }
    }

    /// Carries the attack out beside the calls: none may notice.
    #[track_caller]
    pub(crate) fn withstand(&self, order: &Order) -> Round {
        let mut faults = Vec::new();
        for _ in 0..ROUNDS {
            let round = self.round(order);
            round.report(&order.attack, self.server.settings.workers);
            faults = round.faults();
            if faults.is_empty() {
                return round;
            }
        }
        panic!("{}, {} workers: {}", order.attack, self.server.settings.workers, faults.join("; "));
    }

    /// Ends the calls, and the server by SIGTERM.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        self.calls.stop();
        self.server.signal("TERM");
        wait_for("the server's end", || (!self.server.is_running()).then_some(()));
    }

    /// Waits until the calls go on as ever: what a round did must not spoil the measure of the next.
    fn settle(&self) {
        for _ in 0..SETTLES {
            let from = wall_clock();
            std::thread::sleep(SETTLE);
            let figures = self.calls.between(from, wall_clock());
            if figures.lost == 0 && figures.quantile(0.99) < SETTLE.as_nanos() as u64 / 2 {
                return;
            }
        }
    }

    fn round(&self, order: &Order) -> Round {
        self.settle();
        let begun = wall_clock();
        std::thread::sleep(QUIET);
        let control = wall_clock();
        Attacker::start(&Order::new("burn", order.target, CONTROL_SECONDS)).finish();
        let attack = wall_clock();
        let units = Attacker::start(order).finish();
        let end = wall_clock();
        let most = self.watch.most(attack, end);
        Round {
            quiet: self.calls.between(begun, control),
            control: self.calls.between(control, attack),
            attack: self.calls.between(attack, end),
            answers: self.newcomers.between(attack, end),
            hunger: self.watch.longest_hunger(attack, end),
            resident_before: self.watch.most(begun, control).resident,
            resident: most.resident,
            files: most.files,
            units,
            seconds: (end - attack) as f64 / 1e9,
        }
    }
}
