//! throughway: a STUN/TURN relay server.
//!
//! Three layers, knowledge pointing inwards only. [`wire`] turns bytes into typed views and back. [`protocol`]
//! is the TURN server as a pure state machine. [`net`], [`api`], [`ops`] and [`demo`] are thin shells around
//! it; [`config`] and [`credentials`] say who may do what; [`check`] looks at a server from outside. The walk of a packet: docs/architecture.md.

// In tests a panic is the right end of a surprise; in the server it is a bug.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::wildcard_enum_match_arm, clippy::disallowed_methods))]

#[cfg(not(target_os = "linux"))]
compile_error!("throughway runs on Linux only for now; see docs/scope.md");

pub mod api;
pub mod calendar;
pub mod check;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod demo;
pub mod fetch;
pub mod jwt;
pub mod net;
pub mod ops;
pub mod protocol;
pub mod run;
pub mod tls;
pub mod wire;
