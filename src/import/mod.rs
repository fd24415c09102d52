//! From the configuration of another relay to one of ours: turnserver.conf and its command line, or eturnal.yml.
//!
//! No server runs here: text goes in, the text of a config.toml and a verdict on each line come out. `lines` and
//! `yaml` read, `placeholder` finds values that are not filled in, `coturn` and `eturnal` decide, with a file for each subject
//! between them, and `draft` holds the result. All that is read is bounded, and no verdict shows a secret.

pub mod coturn;
pub mod database;
pub mod draft;
pub mod eturnal;
pub mod lines;
pub mod peers;
pub mod placeholder;
pub mod ranges;
pub mod source;
pub mod sqlite;
pub mod verdict;
pub mod yaml;

mod admission;
mod binding;
mod limits;
mod listeners;
mod relay;
