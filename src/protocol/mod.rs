//! The TURN server as a pure, synchronous state machine (RFC 8489, RFC 8656).
//!
//! No socket, task, lock, clock, global or random source of its own: [`border`] is all there is between it and the
//! world. One worker owns one [`Server`] and calls it with `&mut`; what spans workers is asked through [`border`].
//!
//! The list below is in order from the ground up: a file uses only files that stand before it (`tests/architecture.rs`
//! holds them to it).

// Small words.
pub mod ids;
pub mod reason;
pub mod reject;
pub mod random;
pub mod token_bucket;
pub mod network;
pub mod reply_budget;
pub mod failures;

// Containers.
mod packed;
mod hash_index;
mod small_set;
pub(crate) mod slots;
mod early_marks;
mod touched;
pub mod rows;
mod timer;

// Nouns.
mod day_bytes;
mod packet_bucket;
mod request_bucket;
pub mod additional_address;
mod mobility_ticket;
pub mod mobility;
pub mod accounting;
pub mod meter;
pub mod revocation;
pub mod overrides;
pub mod authenticated;
pub mod connection;
pub mod alternates;
pub mod pool;
pub mod peer_policy;
pub mod permission;
pub mod channel;
pub mod nonce;
pub mod discovery;
pub mod tenancy;
pub mod settings;
mod scope;
mod scope_table;
pub mod quota;
pub mod quota_state;
pub mod owner;
mod endpoint_addresses;
pub mod allocation;
mod families;
mod mobile_allocation;
pub mod paths;
mod table;

// What goes in and out.
pub mod border;
pub mod counters;
pub mod binding;
mod auth;

// The server, and the handlers of its inputs.
pub mod opening;
pub mod reservation;
pub mod review;
mod server;
mod reply;
mod discover;
mod redirect;
mod dual;
mod refresh;
mod moving;
pub mod relay;
pub mod icmp;
mod create_permission;
mod channel_bind;
pub mod connect;
mod allocate;
mod reconfigure;
pub mod export;
pub mod changes;
pub mod ledger;

pub use self::server::{CONTROL_BYTES_MAX, DEADLINES_PER_CALL, Parts, Server};
