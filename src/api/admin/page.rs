//! The status page: static text without any number in it, which asks the API as everybody else does.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::any;

use super::refused::AdminRefused;
use super::{Admin, is_get};
use crate::api::connectivity;
use crate::api::page::{self, HEAD, HTML, PageFile, THEME};

const FILES: [PageFile; 4] = [
    ("/status", HTML, &[HEAD, include_str!("page/status.html")]),
    ("/status/page.js", page::SCRIPT, &[include_str!("page/page.js")]),
    ("/status/page.css", page::STYLE, &[THEME, include_str!("page/page.css"), connectivity::STYLE]),
    ("/status/test.js", page::SCRIPT, &[connectivity::SCRIPT]),
];

pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    FILES.into_iter().map(|(path, ..)| path)
}

pub(super) fn router() -> Router<Arc<Admin>> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, parts)| {
        let handler = move |State(admin): State<Arc<Admin>>, request: Request| async move {
            if admin.hosts.check(request.headers()).is_none() {
                return AdminRefused::Host.into_response();
            }
            if !is_get(request.method()) {
                return AdminRefused::Method("GET").into_response();
            }
            page::file(kind, parts)
        };
        router.route(path, any(handler))
    })
}
