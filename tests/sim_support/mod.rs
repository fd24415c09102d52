//! The simulated world: a virtual network and clock around real `Server`s, and a shadow model beside them.
//!
//! `packet` says what clients put on the wire, `config` what the operator decided, `model` what must come of
//! it, `terms` who may how much, `world` is clock and network, `control`, `lanes` and `shell` hand the servers their inputs and compare what comes
//! out, `actions` thinks of things to do.

pub mod accounts;
pub mod actions;
pub mod config;
pub mod connections;
pub mod control;
pub mod hand_over;
pub mod ledger;
pub mod lanes;
pub mod model;
pub mod packet;
pub mod quota;
pub mod restart;
pub mod rng;
pub mod shell;
pub mod terms;
pub mod world;
