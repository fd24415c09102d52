//! What an idle allocation costs the process, and that it is given back: measured at the real binary.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use test_support::e2e::tls::Authority;
use test_support::e2e::{Client, Server, Settings, wait_for};
use throughway::credentials::claims::Claims;
use throughway::credentials::{Algorithm, Secret, SharedSecret, mint};

/// What one idle allocation may cost, in bytes of the process's own memory.
const BYTES_MAX: usize = 400;

/// And a user of its own: his entry in the table of quotas.
const USER_BYTES_MAX: usize = 120;

const CLIENT_PORT: u16 = 40_404;

/// A server with room for many, whose relayed addresses are at an address of its own.
fn server(users: Users) -> Server {
    let mut settings = Settings::new(1);
    let relay = match users {
        Users::One => "[\"127.77.0.1\"]",
        Users::EachItsOwn => "[\"127.77.0.2\"]",
    };
    settings.relay = vec![("addresses", relay)];
    settings.ports = Some(10_000..=59_999);
    let mut settings = settings.limit("allocations_per_user", "20000").limit("allocations_per_user_per_minute", "0");
    let mut server = settings.clone().start();
    // A line of the log for each end waits in memory that is not the allocation's, and bounded on its own.
    settings.level = "warn";
    server.reload_quietly(settings);
    server
}

/// Whose allocations they are.
#[derive(Clone, Copy)]
enum Users {
    One,
    EachItsOwn,
}

/// Clients of one server, by number.
struct Clients {
    server: SocketAddr,
    users: Users,
    secret: SharedSecret,
    minted_at: u64,
}

impl Clients {
    fn of(server: &Server, users: Users) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let secret = SharedSecret::new("main", Secret::new(*b"north-of-everything"), Algorithm::Sha1);
        Self { server: server.udp4(), users, secret, minted_at: now.as_secs() }
    }

    /// From an address of its own, so that thousands need no thousand sockets at once.
    fn client(&self, number: u16) -> Client {
        let [high, low] = number.to_be_bytes();
        let (network, user) = match self.users {
            Users::One => (78, "somebody".to_owned()),
            Users::EachItsOwn => (80, format!("user-{number:05}")),
        };
        let socket = UdpSocket::bind((Ipv4Addr::new(127, network, high, low), CLIENT_PORT)).unwrap();
        let minted = mint(&self.secret, self.minted_at, &user, 3600, &Claims::default()).expect("a plain user id");
        Client::udp_by(socket, self.server).user(&minted.username, &minted.password)
    }

    /// Opens allocations with one permission each; the clients go away, the allocations stay.
    fn open(&self, numbers: std::ops::Range<u16>) {
        let peer: SocketAddr = "127.79.0.1:9".parse().unwrap();
        for number in numbers {
            let mut client = self.client(number);
            client.allocate();
            client.permit(peer);
        }
    }

    fn close(&self, numbers: std::ops::Range<u16>) {
        for number in numbers {
            assert_eq!(self.client(number).refresh(0).code(), 0, "{number}");
        }
    }
}

/// Memory that is this process's alone and in use, in bytes.
fn private_bytes(server: &Server) -> usize {
    let path = format!("/proc/{}/smaps_rollup", server.pid());
    let text = std::fs::read_to_string(&path).unwrap();
    let of = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    };
    // Pages of the program itself are clean: they come with the first use of a function, not with an allocation.
    of("Private_Dirty:")
}

/// What each of so many costs beside some that were there before; at their end most of it must be given back.
fn cost(users: Users, first: u16, count: u16) -> usize {
    let server = server(users);
    let clients = Clients::of(&server, users);
    // What a process needs once, for its first session, scrape and end of a session, is no session's cost.
    let warm = first + count;
    clients.open(warm..warm + 200);
    clients.close(warm..warm + 200);
    wait_for("the first to be over", || (server.live() == 0).then_some(()));
    clients.open(0..first);
    let before = private_bytes(&server);
    clients.open(first..first + count);
    let grown = private_bytes(&server) - before;
    clients.close(first..first + count);
    wait_for("all to be over", || (server.live() == u64::from(first)).then_some(()));
    let kept = || private_bytes(&server).saturating_sub(before);
    wait_for(&format!("half of {grown} bytes to be given back; {} are kept", kept()), || {
        (kept() <= grown / 2).then_some(())
    });
    // The last look may still be ahead.
    std::thread::sleep(Duration::from_secs(2));
    let each = grown / usize::from(count);
    eprintln!("{count} after {first}: {each} B each; {} of {grown} B kept", kept());
    each
}

#[test]
fn an_idle_allocation_costs_little_and_is_given_back() {
    let each = cost(Users::One, 1000, 3000);
    assert!(each <= BYTES_MAX, "{each} B of memory for each idle allocation");
}

#[test]
fn a_user_of_its_own_costs_an_allocation_an_entry_in_the_table_of_quotas() {
    let each = cost(Users::EachItsOwn, 1000, 3000);
    assert!(each <= BYTES_MAX + USER_BYTES_MAX, "{each} B of memory for each idle allocation with a user of its own");
}

/// What an idle TLS connection with its allocation may cost, in bytes of the process's own memory.
const TLS_BYTES_MAX: usize = 4096;

/// An allocation and a permission over TLS, and then silence.
#[test]
fn an_idle_tls_client_costs_little() {
    const FIRST: usize = 60;
    const COUNT: usize = 300;
    let authority = Authority::new();
    let mut settings = authority.settings(1);
    settings.relay = vec![("addresses", "[\"127.77.0.3\"]")];
    settings.ports = Some(10_000..=59_999);
    settings.limits = vec![("allocations_per_user", "20000"), ("allocations_per_user_per_minute", "0")];
    let server = settings.start();
    let open = |count: usize| -> Vec<Client> {
        let open_one = |_| {
            let mut client = authority.client(server.tls4());
            client.allocate();
            client.permit("127.79.0.1:9".parse().unwrap());
            client
        };
        (0..count).map(open_one).collect()
    };
    let early = open(FIRST);
    let before = private_bytes(&server);
    let clients = open(COUNT);
    let each = (private_bytes(&server) - before) / COUNT;
    eprintln!("{COUNT} after {FIRST}: {each} B each");
    assert!(each <= TLS_BYTES_MAX, "{each} B of memory for each idle TLS client");
    drop((early, clients));
}
