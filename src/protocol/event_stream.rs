//! An event stream, as its client asks for it and as it begins.

use super::query::Query;
use crate::gateway::{Content, Reply, Request, Status};

/// The head of a stream.
pub(super) fn stream_head() -> Reply {
    Reply::empty(Status::Ok)
        .header("Content-Type", "text/event-stream")
        // no-transform: a proxy that compresses would hold the events back (RFC 9111, 5.2.2.6).
        .header("Cache-Control", "no-cache, no-transform")
        // nginx would collect the stream otherwise.
        .header("X-Accel-Buffering", "no")
}

/// What follows a head that is asked for alone.
pub(super) fn nothing() -> Content {
    Content::Stream(Box::new(|_| Box::pin(async {})))
}

/// Where a stream wants to go on. The header is what a browser sends when it reconnects by itself; the parameters are
/// for clients that cannot set headers, and are older than it then.
pub(super) fn resume_id(query: &Query, request: &Request<'_>) -> Option<u64> {
    (request.header)("last-event-id")
        .or_else(|| {
            let names = ["lastEventId", "last_event_id", "evs_last_event_id"];
            names.iter().find_map(|name| query.get(name)).map(str::to_owned)
        })?
        .parse()
        .ok()
}
