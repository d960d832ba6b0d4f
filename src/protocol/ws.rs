//! The `WebSocket` protocol (RFC 6455) on a bus, with the application's [event handlers](crate::ws).
//!
#![doc = include_str!("ws.md")]
//!
//! # In the code
//!
//! A channel is the bus of the same name; `/ws` is the one without a name.

mod conversation;
mod handler;
mod handshake;
mod notify;

use super::cors::options;
use crate::config::Settings;
use crate::gateway::{Reply, Request, Status};
use crate::refusal::Refusal;
pub(super) use handshake::{is_asked_for, is_wanted};
pub use notify::{key, notify};

const METHODS: &str = "GET, POST, OPTIONS";

/// The name of the channel at `path`; `None` where no channel can be.
pub(super) fn name(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/ws")?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/').filter(|name| !name.contains('/')) }
}

/// Answers a request to a channel.
pub async fn answer(settings: &'static Settings, request: &mut Request<'_>, name: &str) -> Reply {
    let reply = match request.method.as_str() {
        "GET" => handshake::answer(settings, request, name).await,
        "POST" => notify::answer(settings, request, name).await,
        "OPTIONS" => Ok(options(request, METHODS)),
        _ => Err(method_not_allowed()),
    };
    reply.unwrap_or_else(Refusal::reply)
}

fn method_not_allowed() -> Refusal {
    Refusal::new(Status::MethodNotAllowed, "A channel knows GET, for a WebSocket, and POST, for its application.")
        .field("Allow", METHODS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_at_one_name_below_ws() {
        for (path, expected) in [
            ("/ws", Some("")),
            ("/ws/", Some("")),
            ("/ws/a", Some("a")),
            ("/ws/a/b", None),
            ("/wsa", None),
            ("/", None),
        ] {
            assert_eq!(name(path), expected, "{path}");
        }
    }
}
