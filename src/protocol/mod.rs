//! What is said: the router, and one file a protocol, its routes first.

pub mod bus;
pub mod cama;
pub mod page;
pub mod ptth;
pub mod query;
pub mod uhst;
pub mod ws;

use crate::config::{SettingError, Settings};
use crate::gateway::{Application, Reply, Request, Status};
use crate::refusal::{Refusal, status_of as store_status};
use crate::store::{self, Store};
use query::Query;

/// The relay, as the doors see it.
pub struct Relay;

impl Application for Relay {
    fn answer(&self, settings: &Settings, request: &mut Request<'_>) -> Reply {
        answer(settings, request)
    }

    fn answer_without_settings(&self, error: &SettingError, request: &Request<'_>) -> Reply {
        if page::is_asked_for(request) {
            return page::answer(Err(error), request);
        }
        let refusal = Refusal::new(Status::InternalServerError, error.to_string());
        page::for_people(request, refusal.field("Access-Control-Allow-Origin", "*").reply())
    }

    fn refuse(&self, settings: &Settings, request: &Request<'_>, refusal: Reply) -> Reply {
        with_cors(settings, request, page::for_people(request, refusal))
    }

    fn takes_post_without_length(&self, path: &str) -> bool {
        ptth::takes_answers(path)
    }

    fn has_work(&self, settings: &Settings) -> bool {
        Store::of(settings).sweep_is_due()
    }

    fn work(&self, settings: &Settings) {
        sweep_some(settings);
    }
}

/// Answers a request: decides whose it is, and lets browsers of other origins read the answer.
fn answer(settings: &Settings, request: &mut Request<'_>) -> Reply {
    let reply = if !origin_is_allowed(settings, request) {
        Refusal::new(Status::Forbidden, "This web origin is not in the relay's RELAY_ALLOWED_ORIGINS.").reply()
    } else if let "" | "/" = request.path.as_str() {
        match page::application(request) {
            Some(application) => application,
            None if page::is_asked_for(request) => page::answer(Ok(settings), request),
            None => uhst::answer(settings, request),
        }
    } else if let Some(name) = bus::name(&request.path).map(str::to_owned) {
        if request.method == "GET" && ws::is_asked_for(request) {
            ws::answer(settings, request, &name)
        } else {
            bus::answer(settings, request, &name)
        }
    } else if let Some(name) = ws::name(&request.path).map(str::to_owned) {
        ws::answer(settings, request, &name)
    } else if let Some(id) = cama::session_of(&request.path) {
        cama::answer(settings, &id, request)
    } else if ptth::is_its_own(&request.path) {
        // What an application behind it says of other origins is its own business.
        let reply = ptth::answer(settings, request);
        return page::for_people(request, reply);
    } else {
        Refusal::new(
            Status::NotFound,
            "There is nothing at this path. After the relay's own URL there may be /bus/NAME (a bus), /cama/session (pipes), /frontend/servers/NAME/ (a server of PTTH) or /ws/CHANNEL (WebSockets).",
        )
        .reply()
    };
    with_cors(settings, request, page::for_people(request, reply))
}

/// Does a little of the sweep, after an answer has gone out.
fn sweep_some(settings: &Settings) {
    if let Err(error) = Store::of(settings).sweep_some(&uhst::policy(settings)) {
        error.log();
    }
}

/// The same, where it is time for it.
fn sweep_if_due(settings: &Settings) {
    if Store::of(settings).sweep_is_due() {
        sweep_some(settings);
    }
}

/// Does the whole sweep.
///
/// # Errors
/// The first failure.
pub fn sweep_all(settings: &Settings) -> Result<(), store::Error> {
    Store::of(settings).sweep_all(&uhst::policy(settings))
}

fn origin_is_allowed(settings: &Settings, request: &Request<'_>) -> bool {
    // A request without an origin comes from no web page.
    settings.allowed_origins.is_empty()
        || (request.header)("origin").is_none_or(|origin| settings.allowed_origins.contains(&origin))
}

/// Adds what browsers want to see before they show an answer to a page of another origin (WHATWG Fetch, 3.2).
fn with_cors(settings: &Settings, request: &Request<'_>, mut reply: Reply) -> Reply {
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
fn options(request: &Request<'_>, allow: &str) -> Reply {
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

fn stream_head() -> Reply {
    Reply::empty(Status::Ok)
        .header("Content-Type", "text/event-stream")
        // no-transform: a proxy that compresses would hold the events back (RFC 9111, 5.2.2.6).
        .header("Cache-Control", "no-cache, no-transform")
        // nginx would collect the stream otherwise.
        .header("X-Accel-Buffering", "no")
}

/// Where a stream wants to go on. The header is what a browser sends when it reconnects by itself; the parameters are
/// for clients that cannot set headers, and are older than it then.
fn resume_id(query: &Query, request: &Request<'_>) -> Option<u64> {
    (request.header)("last-event-id")
        .or_else(|| {
            let names = ["lastEventId", "last_event_id", "evs_last_event_id"];
            names.iter().find_map(|name| query.get(name)).map(str::to_owned)
        })?
        .parse()
        .ok()
}
