//! Packets of strangers beside the calls: none of them has credentials, all come from addresses of their own.

use crate::account::Account;
use crate::flags::Flags;
use crate::json::Object;
use crate::plan::{Basics, Places};
use crate::stun::{self, Builder, Message};
use crate::traffic::Pattern;
use crate::udp::{BATCH, ManyAddresses};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Allocate without credentials: a 401 for each.
    Allocate,
    Binding,
    /// Random bytes of 20 to 219.
    Garbage,
    /// ChannelData of five-tuples that have no allocation.
    Channel,
    /// Allocate with MESSAGE-INTEGRITY under a nonce that no server gave out.
    Forged,
}

const MIXED: [Kind; 4] = [Kind::Allocate, Kind::Binding, Kind::Garbage, Kind::Channel];

pub struct Orders {
    rate: f64,
    name: String,
    kinds: Vec<Kind>,
    port: u16,
    addresses: usize,
    read: bool,
}

impl Orders {
    /// None when `--flood` is not given.
    pub fn parse(flags: &mut Flags) -> Result<Option<Self>, String> {
        let Some(rate) = flags.optional::<f64>("flood")? else {
            return Ok(None);
        };
        let name = flags.or("flood-kind", "mixed".to_owned())?;
        let kinds = match name.as_str() {
            "allocate" => vec![Kind::Allocate],
            "binding" => vec![Kind::Binding],
            "garbage" => vec![Kind::Garbage],
            "channel" => vec![Kind::Channel],
            "forged" => vec![Kind::Forged],
            "mixed" => MIXED.to_vec(),
            other => {
                return Err(format!(
                    "--flood-kind: `{other}` is none of allocate, binding, garbage, channel, forged and mixed"
                ));
            }
        };
        let orders = Self {
            rate,
            name,
            kinds,
            port: flags.or("flood-port", 43_000)?,
            addresses: flags.or("flood-addresses", 1_000)?,
            read: !flags.switch("flood-ignore"),
        };
        if !(1.0..=1e6).contains(&rate) || !(1..=30_000).contains(&orders.addresses) {
            return Err("--flood is 1 to 1000000 packets per second, --flood-addresses 1 to 30000".to_owned());
        }
        Ok(Some(orders))
    }
}

pub struct Flood<'a> {
    orders: &'a Orders,
    socket: ManyAddresses,
    places: Places,
    /// The addresses behind those of the calls' clients.
    first: usize,
    pattern: Pattern,
    forged: &'static [u8],
    began: Option<u64>,
    /// Since `began`: what was due, sent or not.
    offered: u64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    not_sent: u64,
    /// Sent and answered since the measured window began.
    sent: u64,
    answers: u64,
    successes: u64,
    challenges: u64,
    /// What no packet of the flood should bring.
    unexpected: u64,
}

impl<'a> Flood<'a> {
    pub fn open(orders: &'a Orders, basics: &Basics, places: Places, first: usize) -> Result<Self, String> {
        let stranger = Account::new(&basics.user, "a guess");
        let request = Builder::new(stun::ALLOCATE, [0x46; 12]).attribute(stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        Ok(Self {
            orders,
            socket: ManyAddresses::open(orders.port, 256)?,
            places,
            first,
            pattern: Pattern::new(),
            forged: Vec::leak(stranger.sign_with_nonce(request, b"a nonce that nobody gave out")),
            began: None,
            offered: 0,
            counts: Counts::default(),
        })
    }

    pub fn port(&self) -> u16 {
        self.orders.port
    }

    /// Sends what is due by now and reads answers, a batch of each.
    pub fn turn(&mut self, now: u64) {
        let began = *self.began.get_or_insert(now);
        let due = (now.saturating_sub(began) as f64 * self.orders.rate / 1e9) as u64;
        let packets = due.saturating_sub(self.offered).min(BATCH as u64);
        for _ in 0..packets {
            self.send();
        }
        if packets > 0 {
            self.counts.not_sent += self.socket.flush();
        }
        if self.orders.read {
            self.read();
        }
    }

    fn send(&mut self) {
        let n = self.offered;
        self.offered += 1;
        self.counts.sent += 1;
        let from = *self.places.client(self.first + n as usize % self.orders.addresses).ip();
        let mut id = [0x46; 12];
        id[..8].copy_from_slice(&n.to_be_bytes());
        let mut head = [0; 28];
        let (head, tail) = match self.orders.kinds[n as usize % self.orders.kinds.len()] {
            Kind::Allocate => {
                head[..20].copy_from_slice(&stun::head(stun::ALLOCATE, 8, id));
                head[20..22].copy_from_slice(&stun::REQUESTED_TRANSPORT.to_be_bytes());
                head[22..28].copy_from_slice(&[0, 4, 17, 0, 0, 0]);
                (&head[..], &[][..])
            }
            Kind::Binding => {
                head[..20].copy_from_slice(&stun::head(stun::BINDING, 0, id));
                (&head[..20], &[][..])
            }
            Kind::Garbage => (&[][..], self.pattern.tail(n as u32, n / 7, 20 + (n % 200) as usize)),
            Kind::Channel => {
                head[..4].copy_from_slice(&[0x40, 0, 0, 160]);
                (&head[..4], self.pattern.tail(0, n, 160))
            }
            Kind::Forged => (&[][..], self.forged),
        };
        if self.socket.push(from, self.places.server, &[head], tail, 0) {
            self.counts.not_sent += self.socket.flush();
        }
    }

    fn read(&mut self) {
        let Self { socket, counts, places, .. } = self;
        socket.receive(|from, _, bytes| {
            counts.answers += 1;
            match Message::parse(bytes).filter(|_| from == places.server) {
                Some(message) if matches!(message.error_code(), Some(401 | 438)) => counts.challenges += 1,
                Some(message) if message.kind() == stun::BINDING | stun::SUCCESS => counts.successes += 1,
                _ => counts.unexpected += 1,
            }
        });
    }

    pub fn begin_window(&mut self) {
        self.counts = Counts::default();
    }

    pub fn write(&self, o: &mut Object, seconds: f64) {
        let counts = &self.counts;
        o.text("flood_kind", &self.orders.name)
            .real("flood_offered_pps", self.orders.rate)
            .real("flood_sent_pps", (counts.sent - counts.not_sent) as f64 / seconds)
            .count("flood_addresses", self.orders.addresses as u64)
            .count("flood_answers_read", u64::from(self.orders.read))
            .real("flood_answers_pps", counts.answers as f64 / seconds)
            .count("flood_sent", counts.sent - counts.not_sent)
            .count("flood_not_sent", counts.not_sent)
            .count("flood_answers", counts.answers)
            .count("flood_challenges", counts.challenges)
            .count("flood_binding_answers", counts.successes)
            .count("flood_unexpected", counts.unexpected);
    }
}
