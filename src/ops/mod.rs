//! What an operator sees and does: log, metrics, signals, state.

pub mod advice;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod status;
