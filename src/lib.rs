//! throughway: a STUN/TURN relay server.

pub mod cli;
pub mod config;
pub mod credentials;
pub mod net;
pub mod protocol;
pub mod wire;
