//! Files of web pages that are part of the binary: no asset from anywhere else, and nothing of theirs runs elsewhere.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};

/// Nothing from other origins, and in no frame of theirs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(crate) const HTML: &str = "text/html; charset=utf-8";
pub(crate) const SCRIPT: &str = "text/javascript; charset=utf-8";
pub(crate) const STYLE: &str = "text/css; charset=utf-8";

/// What every page begins with, up to its title.
pub(crate) const HEAD: &str = include_str!("page/head.html");
/// What every style begins with: colours, fonts, and the parts that all pages have.
pub(crate) const THEME: &str = include_str!("page/theme.css");

/// Path, media type, and the content in parts, so that pages can share some.
pub(crate) type PageFile = (&'static str, &'static str, &'static [&'static str]);

/// The answer that is one of these files.
pub(super) fn file(kind: &'static str, parts: &[&str]) -> Response {
    let head = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (StatusCode::OK, head, parts.concat()).into_response()
}
