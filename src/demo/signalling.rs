//! Signalling over WebSocket: carries offers, answers and candidates between the two tabs of a
//! room.
//!
//! Which members may talk to each other is decided by `rooms`; this file is the socket around it: the bound on a
//! message, the keep-alive, the end. A connection that ends is no drama, the page opens a new one
//! under the same name.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::DemoState;
use super::rooms::{Membership, Notice};
use crate::api::host::same_origin;

/// A session description is below 10 KiB in both browsers.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// How often a quiet connection is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(10);
/// A connection this silent is dead, and its place free.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// A member that does not take a message for this long is gone.
const SEND_MAX: Duration = Duration::from_secs(5);
/// Connections at a time, in rooms or on their way in.
pub(super) const CONNECTIONS_MAX: usize = 600;
/// "Try again later" (RFC 6455 section 7.4.1 leaves 4000 and up to applications).
const CLOSE_REFUSED: u16 = 4000;

#[derive(Deserialize)]
pub(super) struct Join {
    room: String,
    member: String,
}

/// `GET /signal?room=R&member=M`
pub(super) async fn connect(
    State(state): State<Arc<DemoState>>,
    Query(join): Query<Join>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if !same_origin(&headers) {
        return (
            StatusCode::FORBIDDEN,
            "signalling is only for the demo's own page: the Origin header names another site\n",
        )
            .into_response();
    }
    let Ok(permit) = Arc::clone(&state.connections).try_acquire_owned() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("already {CONNECTIONS_MAX} signalling connections; close some tabs\n"),
        )
            .into_response();
    };
    upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX).on_upgrade(move |socket| async move {
        serve(&state, socket, &join).await;
        drop(permit);
    })
}

/// `POST /leave?room=R&member=M`: a tab says goodbye while it closes (`navigator.sendBeacon`), so that the other one need
/// not wait for it to come back.
pub(super) async fn leave(
    State(state): State<Arc<DemoState>>,
    Query(join): Query<Join>,
    headers: HeaderMap,
) -> StatusCode {
    if !same_origin(&headers) {
        return StatusCode::FORBIDDEN;
    }
    state.rooms.leave(&join.room, &join.member);
    StatusCode::NO_CONTENT
}

async fn serve(state: &DemoState, mut socket: WebSocket, join: &Join) {
    let (membership, mut notices) = match state.rooms.join(&join.room, &join.member, &state.boot) {
        Ok(joined) => joined,
        Err(error) => {
            let reason = error.to_string();
            if send(&mut socket, &Notice::Refused { reason: reason.clone() }).await.is_ok() {
                close(&mut socket, reason).await;
            }
            return;
        }
    };

    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard_at = Instant::now();
    loop {
        tokio::select! {
            notice = notices.recv() => {
                let Some(notice) = notice else {
                    close(&mut socket, "another connection took your place, or you read too slowly".to_owned()).await;
                    return;
                };
                if send(&mut socket, &notice).await.is_err() {
                    return;
                }
            }
            received = socket.recv() => {
                let Some(Ok(message)) = received else {
                    return;
                };
                heard_at = Instant::now();
                if matches!(message, Message::Close(_)) {
                    membership.say_goodbye();
                    return;
                }
                if hear(&membership, message).is_err() {
                    close(&mut socket, "a signalling message is a JSON object in a text frame".to_owned()).await;
                    return;
                }
            }
            _ = ping.tick() => {
                if heard_at.elapsed() > SILENCE_MAX
                    || timed(socket.send(Message::Ping(Default::default()))).await.is_err()
                {
                    return;
                }
            }
        }
    }
}

/// What a member says must be a JSON object; its content is the two tabs' own business.
fn hear(membership: &Membership, message: Message) -> Result<(), ()> {
    match message {
        Message::Text(text) => match serde_json::from_str::<Value>(&text) {
            Ok(data @ Value::Object(_)) => {
                membership.say(data);
                Ok(())
            }
            Ok(_) | Err(_) => Err(()),
        },
        Message::Binary(_) => Err(()),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(()),
    }
}

async fn send(socket: &mut WebSocket, notice: &Notice) -> Result<(), ()> {
    let text = serde_json::to_string(notice).map_err(|_| ())?;
    timed(socket.send(Message::Text(Utf8Bytes::from(text)))).await
}

async fn close(socket: &mut WebSocket, reason: String) {
    let frame = CloseFrame { code: CLOSE_REFUSED, reason: reason.into() };
    // the connection ends either way
    let _ = timed(socket.send(Message::Close(Some(frame)))).await;
}

async fn timed(sent: impl Future<Output = Result<(), axum::Error>>) -> Result<(), ()> {
    match timeout(SEND_MAX, sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(()),
    }
}
