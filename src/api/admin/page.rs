//! The status page: static text without any number in it, which asks the API as everybody else does.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;

use super::refused::AdminRefused;
use super::{Admin, is_get};

/// Nothing from other origins, and in no frame of theirs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

const FILES: [(&str, &str, &str); 3] = [
    ("/status", "text/html; charset=utf-8", include_str!("page/status.html")),
    ("/status/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
    ("/status/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
];

pub(super) fn router() -> Router<Arc<Admin>> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        let handler = move |State(admin): State<Arc<Admin>>, request: Request| async move {
            if admin.hosts.check(request.headers()).is_none() {
                return AdminRefused::Host.into_response();
            }
            if !is_get(request.method()) {
                return AdminRefused::Method("GET").into_response();
            }
            file(kind, text)
        };
        router.route(path, any(handler))
    })
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let head = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (StatusCode::OK, head, text).into_response()
}
