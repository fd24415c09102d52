//! The TURN server as a pure, synchronous state machine.

pub mod address;
pub mod peer_policy;
pub mod settings;
pub mod time;
