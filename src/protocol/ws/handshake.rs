//! The handshake (RFC 6455, 4): who wants a connection, and whether it can have one.

use super::conversation::Conversation;
use super::handler::{ConnectionHandler, is_program};
use crate::config::Settings;
use crate::gateway::{Content, Reply, Request, Status, Talker};
use crate::protocol::bus::{self, Member};
use crate::refusal::Refusal;
use crate::store::buses::BusName;
use crate::syntax::is_token;
use crate::ws::Visitor;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest as _, Sha1};
use std::sync::atomic::{AtomicU64, Ordering};

/// Appended to the key of a handshake, it makes the answer (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a request wants a WebSocket.
pub(in crate::protocol) fn is_asked_for(request: &Request<'_>) -> bool {
    has_token(request, "upgrade", "websocket")
}

/// Whether a client has asked for a WebSocket, even where a proxy or a web server on the way has taken `Upgrade` out.
pub(in crate::protocol) fn is_wanted(request: &Request<'_>) -> bool {
    is_asked_for(request) || (request.header)("sec-websocket-key").is_some()
}

/// Whether a header field that is a list has this in it, in whatever case.
fn has_token(request: &Request<'_>, field: &str, token: &str) -> bool {
    (request.header)(field).is_some_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
}

/// Answers a GET: the connection becomes a WebSocket's.
pub(super) async fn answer(settings: &'static Settings, request: &Request<'_>, name: &str) -> Result<Reply, Refusal> {
    if !is_asked_for(request) {
        return Err(upgrade_required(
            "This is the address of a WebSocket: open it with one, and let every proxy on the way pass Upgrade on.",
        ));
    }
    if (request.header)("sec-websocket-version").as_deref() != Some("13") {
        return Err(upgrade_required("Only version 13 of the WebSocket protocol is spoken here (RFC 6455)."));
    }
    let key = (request.header)("sec-websocket-key").unwrap_or_default();
    if !BASE64.decode(&key).is_ok_and(|bytes| bytes.len() == 16) {
        return Err(bad_request("Sec-WebSocket-Key must be 16 bytes in base64 (RFC 6455, 4.1)."));
    }
    if !request.can_upgrade {
        return Err(cannot_upgrade());
    }
    if !has_token(request, "connection", "upgrade") {
        return Err(bad_request("The handshake has no 'Connection: Upgrade': a proxy on the way must pass it on."));
    }
    let name = BusName::new(name).ok_or_else(bus::bad_name)?;
    let most = settings.max_handlers;
    // Before the 101, after which no client can be sent elsewhere, and before anything is made for it.
    let slot = Slot::take(is_program(settings), most).ok_or_else(|| too_many_handlers(most))?;
    let member = Member::enter(settings, &name).await?;
    let visitor = visitor(request);
    let accept = BASE64.encode(Sha1::new().chain_update(&key).chain_update(GUID).finalize());
    let talk: Talker = Box::new(move |input, mut out| {
        Box::pin(async move {
            let _slot = slot;
            let handler = ConnectionHandler::new(settings, &visitor);
            Conversation::new(input, member, handler, out.is_own()).run(&mut *out, &visitor, &key).await;
        })
    });
    Ok(Reply { content: Content::Upgrade(talk), ..Reply::empty(Status::SwitchingProtocols) }
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Accept", accept))
}

/// The handshake has to be another one (RFC 9110, 15.5.22, and RFC 6455, 4.4).
fn upgrade_required(sentence: &'static str) -> Refusal {
    Refusal::new(Status::UpgradeRequired, sentence)
        // Upgrade is for this connection, which Connection has to say (RFC 9110, 7.8).
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade")
        .field("Sec-WebSocket-Version", "13")
}

fn cannot_upgrade() -> Refusal {
    Refusal::new(
        Status::NotImplemented,
        "This web server gives no connection to a CGI program: let it pass this path on to uhst-relay serve on the same data folder, see deploy/README.md.",
    )
}

fn too_many_handlers(most: u64) -> Refusal {
    Refusal::new(
        Status::ServiceUnavailable,
        format!("There are {most} handlers of WebSockets already (RELAY_MAX_HANDLERS); try again later."),
    )
}

fn bad_request(sentence: &'static str) -> Refusal {
    Refusal::new(Status::BadRequest, sentence)
}

fn visitor(request: &Request<'_>) -> Visitor {
    let header = |name| (request.header)(name).unwrap_or_default();
    let query = String::from_utf8_lossy(&request.query).into_owned();
    let mut environment = vec![
        ("GATEWAY_INTERFACE", "CGI/1.1".to_owned()),
        ("SERVER_PROTOCOL", "HTTP/1.1".to_owned()),
        ("SERVER_SOFTWARE", concat!("uhst-relay/", env!("CARGO_PKG_VERSION")).to_owned()),
        ("REQUEST_METHOD", request.method.clone()),
        ("SCRIPT_NAME", request.mount.clone()),
        ("PATH_INFO", request.path.clone()),
        ("QUERY_STRING", query.clone()),
        ("REMOTE_ADDR", request.remote.map(|address| address.to_string()).unwrap_or_default()),
    ];
    if request.is_https {
        environment.push(("HTTPS", "on".to_owned()));
    }
    for (name, field) in [
        ("HTTP_HOST", "host"),
        ("HTTP_ORIGIN", "origin"),
        ("HTTP_COOKIE", "cookie"),
        ("HTTP_USER_AGENT", "user-agent"),
        ("HTTP_ACCEPT_LANGUAGE", "accept-language"),
        ("HTTP_X_FORWARDED_FOR", "x-forwarded-for"),
    ] {
        environment.extend((request.header)(field).map(|value| (name, value)));
    }
    // No program could be started with one.
    environment.retain(|(_, value)| !value.contains('\0'));
    let offered = header("sec-websocket-protocol");
    let offered = offered.split(',').map(str::trim).filter(|protocol| is_token(protocol));
    let cookie = header("cookie");
    let cookies = cookie.split(';').filter_map(|pair| pair.trim().split_once('='));
    Visitor {
        cookies: cookies.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        user_agent: header("user-agent"),
        remote_address: request.remote,
        origin: header("origin"),
        query,
        protocols: offered.map(str::to_owned).collect(),
        environment,
    }
}

/// How many connections of this process have a program of their own. Of a CGI process there is one.
static PROGRAMS: AtomicU64 = AtomicU64::new(0);

/// A connection's place among them; false where it needs none.
struct Slot(bool);

impl Slot {
    /// `None` where there are `most` already.
    fn take(is_needed: bool, most: u64) -> Option<Self> {
        if is_needed && PROGRAMS.fetch_add(1, Ordering::Relaxed) >= most {
            PROGRAMS.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self(is_needed))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.0 {
            PROGRAMS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
