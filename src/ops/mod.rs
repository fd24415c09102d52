//! What an operator sees and does: log, metrics, usage records, state.

pub mod advice;
mod journal;
pub mod drain;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod status;
pub mod usage;
