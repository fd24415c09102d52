//! What an operator sees and does: log, metrics, usage records, state.

pub mod log;
pub mod metrics;
pub mod status;
pub mod usage;
