//! What an operator sees and does: log, metrics, signals, state.

pub mod log;
pub mod metrics;
pub mod status;
