//! throughway: a STUN/TURN relay server.

pub mod credentials;
pub mod protocol;
pub mod wire;
