//! The page itself: static text, part of the binary, no asset from anywhere else.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::DemoState;
use crate::api::connectivity;
use crate::api::page::{HEAD, HTML, PageFile, SCRIPT, STYLE, THEME};

const FILES: [PageFile; 14] = [
    ("/", HTML, &[HEAD, include_str!("page/index.html")]),
    ("/style.css", STYLE, &[THEME, include_str!("page/style.css"), connectivity::STYLE]),
    ("/app.js", SCRIPT, &[include_str!("page/app.js")]),
    ("/cards.js", SCRIPT, &[include_str!("page/cards.js")]),
    ("/call.js", SCRIPT, &[include_str!("page/call.js")]),
    ("/diagnosis.js", SCRIPT, &[include_str!("page/diagnosis.js")]),
    ("/files.js", SCRIPT, &[include_str!("page/files.js")]),
    ("/format.js", SCRIPT, &[include_str!("page/format.js")]),
    ("/picture.js", SCRIPT, &[include_str!("page/picture.js")]),
    ("/sha256.js", SCRIPT, &[include_str!("page/sha256.js")]),
    ("/signalling.js", SCRIPT, &[include_str!("page/signalling.js")]),
    ("/stats.js", SCRIPT, &[include_str!("page/stats.js")]),
    ("/test.js", SCRIPT, &[connectivity::SCRIPT]),
    ("/ticker.js", SCRIPT, &[include_str!("page/ticker.js")]),
];

/// One route per file.
pub(super) fn routes() -> Router<Arc<DemoState>> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, parts)| {
        router.route(path, get(move || async move { ([(header::CONTENT_TYPE, kind)], parts.concat()).into_response() }))
    })
}
