//! The simulated world: a virtual network and clock around real `Server`s, and a shadow model beside them.
//!
//! `packet` says what clients put on the wire, `config` what the operator decided, `model` what must come of
//! it, `world` carries the packets and compares, `actions` thinks of things to do.

pub mod actions;
pub mod config;
pub mod model;
pub mod packet;
pub mod quota;
pub mod rng;
pub mod world;
