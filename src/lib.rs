//! throughway: a STUN/TURN relay server.
//!
//! A pure state machine with thin shells around it; each part uses only parts below it. [`wire`] turns bytes into typed
//! views and back. [`protocol`] is the TURN server, without socket, thread or clock. [`net`], [`api`], [`ops`] and [`demo`]
//! are shells around it; [`config`] and [`credentials`] say who may do what; [`check`] looks at a server from outside.
//! The walk of a packet: docs/architecture.md.
//!
//! # How the core is driven
//!
//! One input, then every output, then the next input. The driver of a [`protocol::Server`] owns sockets and clocks; an
//! output that asks something is answered by an input, now or later.
//!
//! ```
//! use std::sync::Arc;
//!
//! use throughway::address::{FiveTuple, Transport, Via};
//! use throughway::config::Config;
//! use throughway::net::shared::Process;
//! use throughway::protocol::border::{Input, OpenedRelay, Output};
//! use throughway::protocol::counters::Counters;
//! use throughway::protocol::ids::WorkerId;
//! use throughway::protocol::{Parts, Server};
//! use throughway::time::{Now, Ticks, UnixSeconds};
//!
//! let config = Config::from_toml("example", "auth.users = { alice = \"wonderland-wonderland\" }").unwrap();
//! let settings = Arc::new(config.settings(Default::default(), true, false).unwrap());
//! let shared = Arc::new(Process::without_addresses());
//! let parts = Parts {
//!     worker: WorkerId(0),
//!     workers: 1,
//!     shared: shared.clone(),
//!     counters: Arc::new(Counters::default()),
//!     nonce_key: Box::new([7; 32]),
//!     seed: [1; 32],
//! };
//! let mut server = Server::new(parts, settings);
//!
//! // A Binding request of a client, as it came from a socket.
//! let via = Via::Datagram(FiveTuple {
//!     client: "192.0.2.1:40000".parse::<std::net::SocketAddr>().unwrap().into(),
//!     server: "198.51.100.1:3478".parse::<std::net::SocketAddr>().unwrap().into(),
//!     transport: Transport::Udp,
//! });
//! let binding = [0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
//! let now = Now { ticks: Ticks(1_000), unix: UnixSeconds(1_800_000_000) };
//! server.handle_input(now, Input::Message { via, bytes: &binding });
//! let mut answers = Vec::new();
//! let mut replies = Vec::new();
//! loop {
//!     while let Some(output) = server.poll_output() {
//!         match output {
//!             // Send these bytes to the client.
//!             Output::Reply { bytes, .. } => replies.push(bytes),
//!             // Ask the quotas, then say what they answered.
//!             Output::Admit { allocation, purpose } => {
//!                 let (claim, limits) = server.quota_claim(allocation).unwrap();
//!                 let result = shared.admit(now, &claim, limits, purpose);
//!                 answers.push(Input::Admission { allocation, result });
//!             }
//!             // Bind a socket, then say where: here it is always this one.
//!             Output::OpenRelay { allocation, .. } => {
//!                 let relayed = "203.0.113.1:50000".parse::<std::net::SocketAddr>().unwrap().into();
//!                 answers.push(Input::RelayOpened { allocation, result: Ok(OpenedRelay { relayed, held: None }) });
//!             }
//!             // Close sockets, write records.
//!             _ => {}
//!         }
//!     }
//!     let Some(answer) = answers.pop() else { break };
//!     server.handle_input(now, answer);
//! }
//! assert_eq!(replies[0][..2], [0x01, 0x01], "a success response to Binding");
//! // When to call `handle_timeout` next; data packets take `relay_from_client` and `relay_from_peer`.
//! assert_eq!(server.poll_timeout(), None);
//! ```

// In tests a panic is the right end of a surprise; in the server it is a bug.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::wildcard_enum_match_arm, clippy::disallowed_methods))]

#[cfg(not(target_os = "linux"))]
compile_error!("throughway runs on Linux only for now; see docs/scope.md");

pub mod acme;
pub mod address;
pub mod api;
pub mod calendar;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod demo;
pub mod failure;
pub mod fault;
pub mod fetch;
pub mod files;
pub mod import;
pub mod jwt;
pub mod net;
pub mod ops;
pub mod printable;
pub mod probe;
pub mod protocol;
pub mod public_address;
pub mod run;
pub mod state;
pub mod time;
pub mod tls;
pub mod turn_uri;
pub mod wire;
