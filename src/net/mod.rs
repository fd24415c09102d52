//! Sockets, threads and clocks around the pure core.
//!
//! A shell may read and send bytes, open and close sockets, tell the time and pass messages; it decides
//! nothing that a client could notice. [`start()`] binds everything, then starts one thread per worker;
//! accepting TCP is left to the control runtime, which hands established streams over.
//!
//! The list below is in order from the ground up: a file uses only files that stand before it, but for the three of the
//! worker (`tests/architecture.rs` holds them to it).

// The kernel, and what it tells.
mod sys;
mod kernel;
pub(crate) mod files;
pub mod interfaces;
mod rtnetlink;
pub mod upgrade_messages;
pub mod passed;

// Containers and counts.
pub(crate) mod fair_limit;
pub(crate) mod fair_map;
pub(crate) mod tls_resumption;
pub(crate) mod gate;
mod half_open;
mod overflow;
pub mod counters;
mod events;
pub mod handoff;
mod meeting;
mod payload_rings;
mod ports;
mod port_plan;
mod relay_addresses;
mod suspects;
pub mod shared;
pub mod ledger;

// What carries bytes.
mod listen;
mod udp;
pub mod record;
pub mod stream_state;
mod handshake;
pub mod proxy_header;
pub mod client_hello;
mod pass_on;
mod tls_session;
pub(crate) mod tls_stream;
pub(crate) mod front;
mod send_queue;
mod tcp;

// The worker, its streams and its relayed sockets, which name each other.
mod peers;
mod relay_socket;
mod streams;
mod worker;

// What hands streams and listeners to workers.
mod accept;
pub(crate) mod listener_plan;
mod listening;

// The whole, and what is asked of it and changes it.
mod running;
mod ask;
mod addresses;
mod reconfigure;
mod sessions;
mod start;
pub mod hand_over;
pub mod take_over;
pub(crate) mod memory;

pub(crate) use self::addresses::follow as follow_addresses;
pub use self::addresses::{NO_RELAY_ADDRESS, advertisable, relay_candidates, routed_addresses};
pub use self::events::EventReceivers;
pub use self::files::raise_file_limit;
pub use self::listen::BindError;
pub(crate) use self::listen::lacks_family;
pub use self::listen::{granted_receive_buffer, has_ipv6};
pub use self::overflow::SocketKind;
pub use self::pass_on::BackendState;
pub use self::ports::{PortCounts, RestingPort};
pub use self::reconfigure::Prepared;
pub use self::relay_addresses::RelayAddress;
pub use self::running::Running;
pub use self::sessions::Cursor;
pub(crate) use self::start::worker_count;
pub use self::start::{KeptSets, StartError, start};
pub(crate) use self::sys::keep_to_linked_libraries;
pub(crate) use self::sys::process as processes;
pub use self::sys::user::{User, effective_uid, give_back};
pub use self::worker::{DatagramSettings, ShellSettings, TcpLimits};
