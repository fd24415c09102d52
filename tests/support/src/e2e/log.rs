//! The log of a running server, read as it is written.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::server::LOOK;
use super::wait_for;

/// Every line that the server wrote so far.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>, Arc<AtomicBool>);

impl Log {
    /// Reads until the server closes its end.
    pub fn follow(from: impl Read + Send + 'static) -> (Self, std::thread::JoinHandle<()>) {
        let log = Self::default();
        let (lines, rests) = (Arc::clone(&log.0), Arc::clone(&log.1));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
                while rests.load(Ordering::Relaxed) {
                    std::thread::sleep(LOOK);
                }
            }
        });
        (log, reader)
    }

    /// From the next line on nothing is read until this is taken back, as by a log collector that hangs.
    pub fn rest(&self, rests: bool) {
        self.1.store(rests, Ordering::Relaxed);
    }

    pub fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }

    /// The first line with this message, awaited: the log has a thread of its own, so a line may come after the answer
    /// to what caused it.
    #[track_caller]
    pub fn event(&self, message: &str) -> Value {
        wait_for(&format!("the log line {message:?}"), || self.events(message).into_iter().next())
    }

    /// The lines that are JSON objects with this message so far: to count them, or to see that there is none. For one
    /// that must be there see [`Log::event`].
    pub fn events(&self, message: &str) -> Vec<Value> {
        let lines = self.0.lock().unwrap();
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.filter(|event| event["message"].as_str() == Some(message)).collect()
    }

    /// Lines of ended sessions.
    pub fn sessions(&self) -> Vec<Value> {
        self.events("session ended")
    }

    /// The first ended session of a user.
    #[track_caller]
    pub fn wait_for_session(&self, user: &str) -> Value {
        wait_for(&format!("the session line of {user}"), || {
            self.sessions().into_iter().find(|session| session["user"] == user)
        })
    }

    /// The first line that contains a text.
    #[track_caller]
    pub fn wait_for_line(&self, part: &str) -> String {
        wait_for(&format!("a log line with {part:?}"), || {
            self.0.lock().unwrap().iter().find(|line| line.contains(part)).cloned()
        })
    }
}
