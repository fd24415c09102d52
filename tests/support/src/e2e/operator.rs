//! A server that an operator may ask by HTTP, with a token.

use std::fs;

use serde_json::Value;

use super::server::{Directory, Server, Settings};
use crate::api::{Answer, JSON, ask};

/// What an operator's requests are allowed by.
pub const TOKEN: &str = "0123456789abcdef-of-the-operator";
pub const AUTHORIZED: (&str, &str) = ("Authorization", "Bearer 0123456789abcdef-of-the-operator");
/// The name that the admin API is asked under.
pub const HOST: (&str, &str) = ("Host", "localhost");

/// Writes the token beside the configuration, which will name it.
pub fn give_token(directory: &Directory, settings: &mut Settings) {
    fs::write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
    settings.http = format!("admin_token_file = \"token\"\n{}", settings.http);
}

pub fn start(settings: Settings) -> Server {
    start_in(Directory::new(), settings)
}

pub fn start_in(directory: Directory, mut settings: Settings) -> Server {
    give_token(&directory, &mut settings);
    Server::start_in(directory, settings)
}

/// What the admin API answers.
#[track_caller]
pub fn get(server: &Server, target: &str) -> Value {
    let answer = ask(server.http(), "GET", target, &[HOST, AUTHORIZED], "");
    assert_eq!(answer.status, 200, "{target}: {answer:?}");
    answer.json()
}

pub fn post(server: &Server, target: &str, body: Value) -> Answer {
    ask(server.http(), "POST", target, &[HOST, AUTHORIZED, JSON], &body.to_string())
}
