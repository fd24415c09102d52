//! The answer for a path that is none: what there is instead.

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use crate::config::nearest;

/// A longer path is no typing mistake; comparing takes time by length.
const COMPARED_BYTES_MAX: usize = 80;

/// Shows of a path at most so much.
const SHOWN_CHARS_MAX: usize = 80;

/// Adds the answer to a listener's routes, which are these. It tells of no other listener's.
pub fn with_fallback(router: Router, paths: impl IntoIterator<Item = &'static str>) -> Router {
    let mut paths: Vec<&'static str> = paths.into_iter().collect();
    paths.sort_unstable();
    router.fallback(move |request: Request| std::future::ready(answer(request.uri().path(), &paths)))
}

fn answer(path: &str, paths: &[&'static str]) -> Response {
    let near = (path.len() <= COMPARED_BYTES_MAX).then(|| nearest(path, paths.iter().copied())).flatten();
    let meant = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    let shown: String = path.chars().take(SHOWN_CHARS_MAX).collect();
    let error = format!("there is no {shown} here{meant}");
    let body = json!({ "error": error, "reason": "not_found", "paths": paths });
    let head = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (StatusCode::NOT_FOUND, head, body.to_string()).into_response()
}
