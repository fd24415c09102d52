//! The connectivity test: a script that the status page, the demo and a page of its own have in common.
//!
//! Owns the page on `http.public`, which users open by a link. Nothing on it is secret: the credential is in the link,
//! behind the `#`, and [`crate::api::admin`] makes both.

use axum::Router;
use axum::routing::get;

use super::page::{self, HEAD, HTML, PageFile, THEME};

/// What tests, for a page that imports it.
pub const SCRIPT: &str = include_str!("connectivity/test.js");
/// How it looks, in the colours of that page.
pub const STYLE: &str = include_str!("connectivity/test.css");

/// Where users find the page.
pub const PATH: &str = "/connectivity";

const FILES: [PageFile; 4] = [
    (PATH, HTML, &[HEAD, include_str!("connectivity/page.html")]),
    ("/connectivity/page.js", page::SCRIPT, &[include_str!("connectivity/page.js")]),
    ("/connectivity/page.css", page::STYLE, &[THEME, STYLE]),
    ("/connectivity/test.js", page::SCRIPT, &[SCRIPT]),
];

/// Every path of the page.
pub fn paths() -> impl Iterator<Item = &'static str> {
    FILES.into_iter().map(|(path, ..)| path)
}

/// The page for users, for `http.public`.
pub fn public_router() -> Router {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, parts)| {
        router.route(path, get(move || std::future::ready(page::file(kind, parts))))
    })
}
