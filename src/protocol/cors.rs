//! What pages of other origins may see (WHATWG Fetch, 3.2).

use crate::config::Settings;
use crate::gateway::{Reply, Request, Status};

/// Whether the request comes from a page that may use the relay, or from no page.
pub(super) fn origin_is_allowed(settings: &Settings, request: &Request<'_>) -> bool {
    // A request without an origin comes from no web page.
    settings.allowed_origins.is_empty()
        || (request.header)("origin").is_none_or(|origin| settings.allowed_origins.contains(&origin))
}

/// Adds what browsers want to see before they show an answer to a page of another origin.
pub(super) fn with_cors(settings: &Settings, request: &Request<'_>, mut reply: Reply) -> Reply {
    const EXPOSE: &str = "Access-Control-Expose-Headers";
    // What else a protocol wants its pages to see.
    match reply.headers.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case(EXPOSE)) {
        Some((_, list)) => list.extend_from_slice(b", Retry-After"),
        None => reply = reply.header(EXPOSE, "Retry-After"),
    }
    if settings.allowed_origins.is_empty() {
        return reply.header("Access-Control-Allow-Origin", "*");
    }
    let reply = reply.header("Vary", "Origin");
    match (request.header)("origin").filter(|origin| settings.allowed_origins.contains(origin)) {
        Some(origin) => reply.header("Access-Control-Allow-Origin", origin),
        None => reply,
    }
}

/// Answers a preflight, or a plain OPTIONS (RFC 9110, 9.3.7).
pub(super) fn options(request: &Request<'_>, allow: &str) -> Reply {
    // What a page wants to send is fine, as long as it is a list of header names.
    let asked = (request.header)("access-control-request-headers").filter(|list| {
        list.len() <= 1000 && list.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_, ".contains(&byte))
    });
    Reply::empty(Status::NoContent)
        .header("Allow", allow)
        .header("Access-Control-Allow-Methods", allow)
        .header("Access-Control-Allow-Headers", asked.unwrap_or_else(|| "Content-Type, Last-Event-ID".to_owned()))
        .header("Access-Control-Max-Age", "86400")
}
