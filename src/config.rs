//! What the operator says: the file, the environment, the defaults.

pub mod checked;
pub mod error;

pub use checked::Config;
pub use error::ConfigError;
