//! What an operator sees and does: log, metrics, usage records, state.

pub mod advice;
pub mod alternates;
pub mod command;
pub mod drain;
pub mod external;
mod journal;
pub mod kept_file;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod places;
mod port_watch;
pub mod refusals;
pub mod remedy;
pub mod revocations;
pub(crate) mod service_manager;
pub mod status;
pub mod upgrades;
pub mod usage;
