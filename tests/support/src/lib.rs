//! What several tests share, compiled once and not with each of them: the rule tests' [`harness`], the real binary with
//! what talks to it ([`e2e`]), the credential endpoint in the test's own process ([`api`]), and readers of our sources
//! ([`source_text`]) and of the configuration's schema ([`json_schema`]).

pub mod api;
pub mod e2e;
pub mod harness;
pub mod json_schema;
pub mod source_text;

use std::path::PathBuf;

/// The program of the same build: cargo puts a test into `deps` beside it.
///
/// Cargo tells integration tests where it is as `CARGO_BIN_EXE_throughway`, when it compiles them; this crate is
/// compiled before the program.
///
/// # Panics
///
/// If it is not there: only `cargo test` builds it, and no bench does.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let program = test.ancestors().nth(2).expect("a build directory around this test's").join("throughway");
    assert!(program.is_file(), "{} is not there: build it, or run this test by cargo test", program.display());
    program
}
