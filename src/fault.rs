//! Panics, deaths and stand-stills that tests ask for, in builds for debugging only.
//!
//! `TEST_FAULTS=1` in the environment arms the places that call [`at`]; the bytes in hand say which of them panics.
//! A release build has none of it.

/// What the bytes must hold, before the name of the place.
#[cfg(debug_assertions)]
const MARK: &str = "throughway-fault:";

/// Panics if faults are armed and the bytes ask for one at this place.
#[cfg(debug_assertions)]
pub fn at(place: &str, bytes: &[u8]) {
    static ARMED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    if !*ARMED.get_or_init(|| std::env::var_os("TEST_FAULTS").is_some()) {
        return;
    }
    if asks_for(place, bytes) {
        panic!("a fault at \"{place}\", as a test asked for");
    }
    if place == "message" && asks_for("kill", bytes) {
        std::process::abort();
    }
    if place == "message" && asks_for("stuck", bytes) {
        std::thread::sleep(std::time::Duration::from_secs(600));
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn at(_place: &str, _bytes: &[u8]) {}

#[cfg(debug_assertions)]
fn asks_for(place: &str, bytes: &[u8]) -> bool {
    let wanted = [MARK.as_bytes(), place.as_bytes(), b";"].concat();
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// What a test asks of a process that takes over, at a step of that: `TEST_FAULTS_UPGRADE` is `step=exit`, `step=kill`,
/// `step=hang` or `step=lie`. `true` if it shall say something wrong.
///
/// # Panics
/// Never; it may end the process, or not come back for ten minutes.
#[cfg(debug_assertions)]
#[must_use]
pub fn at_step(step: &str) -> bool {
    let asked = std::env::var("TEST_FAULTS_UPGRADE").unwrap_or_default();
    match asked.split_once('=').filter(|(at, _)| *at == step) {
        Some((_, "exit")) => crate::failure::exit(3),
        Some((_, "kill")) => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::thread::sleep(std::time::Duration::from_secs(10));
        }
        Some((_, "hang")) => std::thread::sleep(std::time::Duration::from_secs(600)),
        Some((_, "lie")) => return true,
        _ => {}
    }
    false
}

/// Does nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
#[must_use]
pub const fn at_step(_step: &str) -> bool {
    false
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn the_mark_names_one_place() {
        assert!(asks_for("request", b"xx throughway-fault:request; yy"));
        assert!(!asks_for("request", b"throughway-fault:requests;"));
        assert!(!asks_for("deadline", b"throughway-fault:request;"));
        at("request", b"throughway-fault:request;");
    }
}
