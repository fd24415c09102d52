//! Both ends of a TLS connection without a handshake.

use throughway::net::record::{DirectionState, RecordLayer, RecordState};

/// The server's layer, and what a client would have.
pub fn pair(suite: u16) -> (RecordLayer, RecordLayer) {
    let secret_bytes = match suite {
        0x1302 => 48,
        0xC02B | 0xC02F => 16,
        _ => 32,
    };
    let direction = |byte| DirectionState { secret: vec![byte; secret_bytes], iv: [byte; 12], number: 0 };
    let state = |reading, writing| RecordState::new(suite, reading, writing);
    [(1, 2), (2, 1)]
        .map(|(read, write)| RecordLayer::from_state(&state(direction(read), direction(write))).expect("a right state"))
        .into()
}
