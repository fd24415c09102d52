//! A load generator that speaks TURN itself, and the bare forwarder it is compared with.
//!
//! `throughway-load run` opens sessions on a TURN server, sends numbered and timestamped payloads both ways
//! and checks every one that arrives. `cycles`, `bindings`, `idle` and `overload` load what a server does besides;
//! README.md has every flag and key. `throughway-load forward` is the floor: a fixed mapping with one
//! `recvmsg` and one send per packet and no TURN at all. All stop by themselves.

mod account;
mod bindings;
mod cycles;
mod exchange;
mod flags;
mod fleet;
mod flood;
mod forward;
mod forward_gso;
mod forward_uring;
mod histogram;
mod holders;
mod idle;
mod json;
mod meter;
mod namespace;
mod overload;
mod plan;
mod run;
mod session;
mod stream;
mod stun;
mod sys;
mod tls;
mod traffic;
mod udp;

use std::process::ExitCode;

const USAGE: &str = "\
throughway-load run      open sessions on a TURN server and drive traffic through them; JSON on stdout
  --server 127.0.0.1:3478   --transport udp|tcp|tls    --protocol turn|bare     --framing channel|indication
  --user NAME --password P  --sessions 200             --payload 160            --burst 1
  --rate 50                 packets per second, session and direction (open loop), or
  --in-flight 256           packets on their way in all (closed loop)
  --warm-up 0.5             --measure 2                seconds
  --pid N[,N]               processes whose CPU time is charged to the relayed packets
  --softirq N[,N]           kernel threads that receive for them, charged too
  --client-ns PATH          --peer-ns PATH             network namespaces the two sides' sockets are opened in
  --first-client 127.1.0.1  --first-peer 127.2.0.1     addresses of session 0; the others follow
  --steps                   say `open` and `drained` on stderr, and wait for a line on stdin each time
  --cpu N                   pin the generator          --fifo                   real-time priority 1
  --client-port 40000       --peer-port 41000          --relay-base 42000       (bare: first relay port)
  --bare-relay 127.0.0.1    (bare: relay address)
  --ca FILE --tls-name NAME --tls-version any          (tls; without --ca any certificate will do)
  --pairs                   two sessions each are each other's peers
  --segment                 bursts leave in one piece, and the kernel cuts them
  --flood PPS               strangers beside the calls --flood-kind mixed|allocate|binding|garbage|channel|forged
  --flood-addresses 1000    --flood-port 43000         --flood-ignore           (their answers stay unread)
throughway-load cycles   lives of allocations, one after the other
  --clients 32              --addresses 0              --no-permission          --reuse-nonce
throughway-load bindings a closed loop of Binding requests
  --in-flight 64
throughway-load idle     memory of allocations that do nothing, and the CPU time of holding them
  --sessions 10000          --hold 5                   --settle 3               --prime 0
throughway-load overload a multiple of what the server can carry, with Refreshes beside it; takes flags of run
  --factor 2                --total-rate PPS           --maximum PPS            --calibrate 2
  --recover 3               --control-clients 100      --control-interval 0.25  --control-port 44000
throughway-load forward  the bare forwarder, until SIGTERM or --seconds
  --listen 127.0.0.1:3478   --transport udp|tcp        --sessions 200           --seconds 60
  --client-port 40000       --peer-port 41000          --relay-base 42000
  --first-client 127.1.0.1  --first-peer 127.2.0.1     --bare-relay 127.0.0.1
  --batch | --gso           several packets a system call | and coalesced receives, segmented sends
  --uring multishot|epoll   on io_uring, UDP only        --min-wait 0              microseconds, multishot only
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let result = match words.next().as_deref() {
        Some("run") => flags::Flags::parse(words).and_then(run::main),
        Some("forward") => flags::Flags::parse(words).and_then(forward::main),
        Some("cycles") => flags::Flags::parse(words).and_then(cycles::main),
        Some("bindings") => flags::Flags::parse(words).and_then(bindings::main),
        Some("overload") => flags::Flags::parse(words).and_then(overload::main),
        Some("idle") => flags::Flags::parse(words).and_then(idle::main),
        Some("-h" | "--help" | "help") => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughway-load: {error}");
            ExitCode::FAILURE
        }
    }
}
