//! What is said: the router, and one file a protocol, its routes first.

pub mod bus;
pub mod cama;
pub mod page;
pub mod ptth;
pub mod query;
pub mod uhst;
pub mod ws;

use crate::config::Settings;
use crate::gateway::{Reply, Request, Status};
use crate::store::files::sweep::Unswept;
use crate::store::{self, Lifetimes, Store};
use query::Query;

/// Answers a request: decides whose it is, and lets browsers of other origins read the answer.
pub fn answer(settings: &Settings, request: &mut Request<'_>) -> Reply {
    let reply = if !origin_is_allowed(settings, request) {
        Reply::error(Status::Forbidden, "This web origin is not in the relay's RELAY_ALLOWED_ORIGINS.")
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
        Reply::error(
            Status::NotFound,
            "There is nothing at this path. After the relay's own URL there may be /bus/NAME (a bus), /cama/session (pipes), /frontend/servers/NAME/ (a server of PTTH) or /ws/CHANNEL (WebSockets).",
        )
    };
    with_cors(settings, request, page::for_people(request, reply))
}

/// Whether it is time to sweep.
#[must_use]
pub fn sweep_is_due(settings: &Settings) -> bool {
    Store::of(settings).sweep_is_due()
}

/// Does a little of the sweep, after an answer has gone out.
pub fn sweep_some(settings: &Settings) {
    // Half a lifetime a round: as long as there are requests or streams, nothing dead stays for much longer than one and
    // a half.
    let round = settings.session_lifetime / 2;
    let swept = Store::of(settings).sweep_some(round, &Lifetimes::of(settings), |found| sweep(settings, found));
    if let Err(error) = swept {
        error.log();
    }
}

/// Does the whole sweep.
///
/// # Errors
/// The first failure.
pub fn sweep_all(settings: &Settings) -> Result<(), store::Error> {
    Store::of(settings).sweep_all(&Lifetimes::of(settings), |found| sweep(settings, found))
}

/// Removes it if it is dead.
fn sweep(settings: &Settings, found: Unswept) -> Result<(), store::Error> {
    match found {
        Unswept::Session(session) => uhst::sweep(settings, session),
        Unswept::Bus(bus) => bus::sweep(settings, bus),
    }
}

fn origin_is_allowed(settings: &Settings, request: &Request<'_>) -> bool {
    // A request without an origin comes from no web page.
    settings.allowed_origins.is_empty()
        || (request.header)("origin").is_none_or(|origin| settings.allowed_origins.contains(&origin))
}

/// Adds what browsers want to see before they show an answer to a page of another origin (WHATWG Fetch, 3.2).
#[must_use]
pub fn with_cors(settings: &Settings, request: &Request<'_>, mut reply: Reply) -> Reply {
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

/// The status of a failure of the store, as every protocol gives it.
fn store_status(error: &store::Error) -> Status {
    match error {
        store::Error::DiskFull(_) => Status::InsufficientStorage,
        store::Error::QueueFull(_) => Status::TooManyRequests,
        store::Error::Busy | store::Error::NoDescriptors(_) => Status::ServiceUnavailable,
        store::Error::Unusable(_) | store::Error::Io(_) | store::Error::BadSecret | store::Error::BadRegistry(_) => {
            Status::InternalServerError
        }
    }
}

/// A refusal, and when it is worth another try: soon where somebody only has to read, later where somebody has to leave.
fn refuse(status: Status, sentence: &str) -> Reply {
    let reply = Reply::error(status, sentence);
    match status {
        Status::TooManyRequests => reply.header("Retry-After", "1"),
        Status::ServiceUnavailable => reply.header("Retry-After", "30"),
        _ => reply,
    }
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
