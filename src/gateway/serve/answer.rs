//! A request, from what hyper hands on to what it takes back.
//!
//! hyper decides where a request begins and ends. What it leaves open is decided here: which hosts and targets there are,
//! and that nothing follows a body whose length a proxy may have seen otherwise.

use super::event_stream::EventStream;
use super::incoming::RequestBody;
use super::limits::{DRAIN_TIME, TARGET_SIZE, WORTH_DRAINING, send_buffer, silence_of_stream};
use super::listening::Socket;
use super::order::Turn;
use super::outgoing::AnswerBody;
use super::server::{Counted, Server};
use super::switching;
use super::waiting::{Asking, Waiting, is_stopping};
use crate::gateway::body::{Body, Incoming as _};
use crate::gateway::forwarded::Asker;
use crate::gateway::reply::{Content, Reply};
use crate::gateway::request::Request;
use crate::gateway::status::Status;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::ext::Protocol;
use hyper::header::{CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, Version};
use std::fmt::Write as _;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::SystemTime;

/// A connection, as far as its requests have to know it.
pub(super) struct Connection {
    pub socket: Socket,
    pub peer: Option<IpAddr>,
    /// Whether it speaks TLS.
    pub is_https: bool,
    /// Whether a request has come on it.
    pub is_asked: AtomicBool,
    /// Whether it was handed over to another protocol.
    pub is_switched: AtomicBool,
    /// The event stream that is all that is to come on it.
    pub taken: Mutex<Option<EventStream>>,
}

impl Connection {
    fn waiting(&self, version: Version) -> Waiting {
        Waiting::new((version != Version::HTTP_2).then(|| self.socket.clone()))
    }

    /// What was [taken](EventStream) from hyper.
    pub fn taken(&self) -> MutexGuard<'_, Option<EventStream>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A WebSocket's key where its handshake has none (RFC 8441, 5).
const NO_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAA==";

/// Why a request is refused before the application is asked. The connection is closed after it.
type Malformed = (Status, &'static str);

fn refuse((status, sentence): Malformed) -> Reply {
    Reply::error(status, sentence).header("Access-Control-Allow-Origin", "*")
}

/// Answers one request of a connection.
pub(super) async fn answer(
    server: &'static Server,
    connection: &Connection,
    mut request: hyper::Request<Incoming>,
    turn: Arc<Turn>,
) -> hyper::Response<AnswerBody> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, frames) = request.into_parts();
    if head.method != Method::POST {
        turn.give_up();
    }
    // RFC 8441: over HTTP/2, what wants a WebSocket is no GET. The application is shown one.
    let is_websocket = head.method == Method::CONNECT
        && head.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket");
    let header = |name: &str| match name {
        "upgrade" if is_websocket => Some("websocket".to_owned()),
        "connection" if is_websocket => Some("Upgrade".to_owned()),
        "sec-websocket-key" if is_websocket => Some(NO_KEY.to_owned()),
        _ => field(&head.headers, name),
    };
    let asker = Asker { address: connection.peer, is_https: connection.is_https }
        .behind(&server.settings.trusted_proxies, &header);
    // RFC 9112, 6.1: after a body in chunks that may have had a length too, another server may see another request.
    let mut keep_alive = !head.headers.contains_key(TRANSFER_ENCODING) && head.method != Method::CONNECT;
    let length = frames.size_hint().exact();
    let mut body = RequestBody::new(frames);
    let reply = match check(&head) {
        Ok((path, raw_path)) => {
            let expects = head.headers.contains_key(EXPECT);
            let mut request = Request {
                method: if is_websocket { "GET" } else { head.method.as_str() }.to_owned(),
                path,
                raw_path,
                query: head.uri.query().unwrap_or_default().into(),
                // RFC 9110, 7.8: a server must ignore the wish for another protocol in HTTP/1.0.
                header: &|name| header(name).filter(|_| head.version != Version::HTTP_10 || name != "upgrade"),
                headers: &|| fields(&head.headers),
                mount: String::new(),
                server: "uhst-relay".to_owned(),
                remote: asker.address,
                is_https: asker.is_https,
                can_upgrade: head.version == Version::HTTP_11 || is_websocket,
                takes_trailers: head.version != Version::HTTP_10 && header("te").is_some_and(|te| names_trailers(&te)),
                client: &mut Asking { waiting: connection.waiting(head.version), turn: Arc::clone(&turn) },
                body: Body { length, is_awaited: !expects, reader: &mut body },
            };
            let reply = turn.hold(server.application.answer(server.settings, &mut request)).await;
            // Where the body ends, the next request begins; so it must be read. A client that still waits for our word may
            // send it or not (RFC 9110, 10.1.1): the place of the next request is unknown.
            if !body.is_read() && (!expects || body.is_asked_for) {
                // Whoever is slower than that cannot have the connection kept.
                body.give_time(DRAIN_TIME);
                let most = server.settings.max_body.max(WORTH_DRAINING);
                Body { length, is_awaited: true, reader: &mut body }.drain(most).await;
            }
            keep_alive &= body.is_read();
            match reply.content {
                // Also where the protocol has not looked at it, as for a ping (RFC 9112, 7.1).
                Content::Whole(_) if body.is_malformed() && reply.status < Status::BadRequest => {
                    refuse((Status::BadRequest, "The chunks of the body are malformed."))
                }
                _ => reply,
            }
        }
        Err(malformed) => {
            keep_alive = false;
            refuse(malformed)
        }
    };
    let size = match &reply.content {
        Content::Whole(body) if head.method != Method::HEAD => body.len(),
        _ => 0,
    };
    log(server, asker.address, || request_line(&head), reply.status, size);
    if matches!(reply.content, Content::Whole(_) | Content::Absent) {
        connection.socket.seat().is_free();
    }
    give(server, connection, &head, reply, keep_alive && !is_stopping(), upgrade).await
}

/// Makes of a reply what hyper takes.
async fn give(
    server: &'static Server,
    connection: &Connection,
    head: &Parts,
    reply: Reply,
    keep_alive: bool,
    upgrade: hyper::upgrade::OnUpgrade,
) -> hyper::Response<AnswerBody> {
    let mut headers = checked(&reply);
    let is_2 = head.version == Version::HTTP_2;
    if !matches!(reply.content, Content::Whole(_) | Content::Absent) {
        connection.socket.set_silence(silence_of_stream(server.settings.keep_alive));
    }
    let is_events = matches!(reply.content, Content::Events(_));
    if is_events {
        connection.socket.set_send_buffer(send_buffer(server.settings.max_queue));
    }
    let mut status = StatusCode::from_u16(reply.status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = match reply.content {
        Content::Whole(body) => AnswerBody::Whole(body.into()),
        Content::Absent => AnswerBody::Whole(Bytes::new()),
        Content::Stream(_) | Content::Events(_) | Content::Sized(..) if head.method == Method::HEAD => AnswerBody::Head,
        Content::Events(produce) if !is_2 && !connection.is_https => {
            *connection.taken() = Some(EventStream::new(status, &headers, produce));
            return std::future::pending().await;
        }
        Content::Stream(produce) | Content::Events(produce) => {
            AnswerBody::stream(produce, None, connection.waiting(head.version), &connection.socket)
        }
        Content::Sized(length, produce) => {
            AnswerBody::stream(produce, Some(length), connection.waiting(head.version), &connection.socket)
        }
        Content::Upgrade(talk) => {
            let (input, output, answered) = switching::ways(upgrade);
            let talking = talk(Box::new(input), Box::new(output));
            // hyper lets go of the connection as soon as it is handed over.
            let counted = Counted::new(&server.connections);
            let own = (!is_2).then(|| connection.socket.clone());
            tokio::spawn(async move {
                talking.await;
                if let Some(socket) = own {
                    Box::pin(socket.linger()).await;
                }
                drop(counted);
            });
            let mut answered = pin!(answered);
            // With the receiver gone, whoever talks knows that the client has.
            let answer = poll_fn(|cx| match answered.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer.ok()),
                Poll::Pending if !is_2 && connection.socket.poll_hung_up(cx) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            if let Some(protocol) = answer.await {
                if is_2 {
                    // The stream is switched, and its connection is not (RFC 8441, 5).
                    status = StatusCode::OK;
                    headers.remove("upgrade");
                    headers.remove("sec-websocket-accept");
                } else {
                    connection.is_switched.store(true, Ordering::Relaxed);
                    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                }
                let protocol = protocol.and_then(|protocol| HeaderValue::try_from(protocol).ok());
                headers.extend(protocol.map(|protocol| (HeaderName::from_static("sec-websocket-protocol"), protocol)));
            } else {
                // It has ended before it began.
                status = StatusCode::INTERNAL_SERVER_ERROR;
            }
            AnswerBody::Whole(Bytes::new())
        }
    };
    if let AnswerBody::Stream { left: Some(length), .. } = &body {
        headers.insert("content-length", HeaderValue::from(*length));
    }
    if !is_2 && !keep_alive && !headers.contains_key(CONNECTION) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let mut response = hyper::Response::new(body);
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}

/// The fields of a reply, without those that HTTP does not allow: names are ours or have been checked, and values have no
/// control characters, but an application may make a reply by itself.
fn checked(reply: &Reply) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(reply.headers.len() + 2);
    fields.insert("server", HeaderValue::from_static("uhst-relay"));
    for (name, value) in &reply.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_bytes()), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    }
    fields
}

/// RFC 9110, 10.1.4.
fn names_trailers(te: &str) -> bool {
    te.split(',').any(|coding| coding.trim_matches(OWS).eq_ignore_ascii_case("trailers"))
}

// ---- the head of a request

/// Optional white space (RFC 9110, 5.6.3). What `trim` takes for white space too, such as U+00A0, belongs to the value:
/// a proxy may not see a length or a coding in it.
const OWS: [char; 2] = [' ', '\t'];

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).trim_matches(OWS).to_owned()
}

/// A field's value by its lower-case name. RFC 9110, 5.3: several lines of a field are one list; RFC 9113, 8.2.3, of cookies.
fn field(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = headers.get_all(name).iter().map(text);
    let first = values.next()?;
    let separator = if name == "cookie" { "; " } else { ", " };
    Some(values.fold(first, |list, value| list + separator + &value)).filter(|value| !value.is_empty())
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// What the head asks for, if that is something that can be asked for: a path, decoded and as it came.
fn check(head: &Parts) -> Result<(String, String), Malformed> {
    check_host(head)?;
    if head.headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err((Status::ExpectationFailed, "The only expectation is 100-continue."));
    }
    // RFC 9112, 6.1 and 7.1: no other, and not twice.
    let is_chunked = |codings: String| codings.eq_ignore_ascii_case("chunked");
    if head.headers.contains_key(TRANSFER_ENCODING)
        && !field(&head.headers, "transfer-encoding").is_some_and(is_chunked)
    {
        return Err((Status::NotImplemented, "The only transfer coding is chunked, once."));
    }
    target(head)
}

/// RFC 9112, 3.2: exactly one Host in HTTP/1.1, at most one in HTTP/1.0, and nothing in it that no host has. HTTP/2 has
/// `:authority` for it.
fn check_host(head: &Parts) -> Result<(), Malformed> {
    let hosts: Vec<_> = head.headers.get_all(HOST).iter().map(text).collect();
    match &hosts[..] {
        [] if head.version != Version::HTTP_11 => Ok(()),
        // It is empty where the target has no authority.
        [host] if host.is_empty() || is_authority(host) => Ok(()),
        [_] => Err((Status::BadRequest, "Host is not a host.")),
        _ => Err((Status::BadRequest, "There must be one Host.")),
    }
}

/// `uri-host [ ":" port ]` (RFC 9110, 4.2), without the commas that would make it a list. `http::uri::Authority` takes those,
/// users, and hosts without a name.
fn is_authority(text: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let (host, _) = text.rsplit_once(':').filter(|(_, port)| is_port(port)).unwrap_or((text, ""));
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte);
    !host.is_empty() && host.bytes().all(is_name_byte)
}

/// Path and query: origin form, or absolute form (RFC 9112, 3.2.2), or `*`.
fn target(head: &Parts) -> Result<(String, String), Malformed> {
    let uri = &head.uri;
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > TARGET_SIZE) {
        return Err((Status::UriTooLong, "The URL is too long."));
    }
    let is_known_scheme = uri.scheme_str().is_none_or(|scheme| matches!(scheme, "http" | "https"));
    // RFC 9110, 4.2.1 and 4.2.4: neither an empty host nor a user.
    if !is_known_scheme || uri.authority().is_some_and(|authority| !is_authority(authority.as_str())) {
        return Err((Status::BadRequest, "The target's host is not a host."));
    }
    let path = match uri.path() {
        "*" if head.method == Method::OPTIONS => "",
        path if path.starts_with('/') => path,
        _ => return Err((Status::BadRequest, "The target is not a path.")),
    };
    match urlencoding::decode(path) {
        Ok(decoded) if !decoded.contains('\0') => Ok((decoded.into_owned(), path.to_owned())),
        _ => Err((Status::BadRequest, "The path is not UTF-8.")),
    }
}

// ---- the log

/// The request line as the log may show it: a token is a secret.
fn request_line(head: &Parts) -> String {
    let path = head.uri.path();
    // Whoever knows the id of a pipe's session may use it.
    let mut text = match path.rfind("/cama/session/") {
        Some(at) => format!("{}/cama/session/-", &path[..at]),
        None => path.to_owned(),
    };
    let query = head.uri.query().unwrap_or_default();
    for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        // Only what is known to be harmless; `%74oken` is a token too, and so is one whose name was forgotten.
        match pair.split_once('=') {
            Some(("action" | "hostId" | "timestamp", _)) => text.push_str(pair),
            Some((name @ ("token" | "lastEventId" | "last_event_id" | "evs_last_event_id"), _)) => {
                let _ = write!(text, "{name}=-");
            }
            _ => text.push('-'),
        }
    }
    let text: String = text.chars().map(|c| if c.is_control() || c == '"' || c == '\\' { '_' } else { c }).collect();
    format!("{} {text} {:?}", head.method, head.version)
}

/// The common log format, which log analysers read.
pub(super) fn log(server: &Server, from: Option<IpAddr>, line: impl FnOnce() -> String, status: Status, size: usize) {
    if server.quiet {
        return;
    }
    // `Sat, 21 Nov 2026 03:46:30 GMT` has all that is needed, in another order.
    let date = httpdate::HttpDate::from(SystemTime::now()).to_string();
    let parts: Vec<_> = date.split([' ', ',']).filter(|part| !part.is_empty()).collect();
    let [_, day, month, year, time, _] = parts[..] else { return };
    let from = from.map_or_else(|| "-".to_owned(), |from| from.to_string());
    say!("{from} - - [{day}/{month}/{year}:{time} +0000] \"{}\" {} {size}", line(), status.code());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(method: &str, target: &str) -> Option<Parts> {
        Some(hyper::Request::builder().method(method).uri(target).header("host", "a").body(()).ok()?.into_parts().0)
    }

    #[test]
    fn no_field_of_a_reply_becomes_two() {
        let mut reply = Reply::empty(Status::Ok).header("Vary", "Origin\r\nX: 1").header("Set-Cookie", "a=1");
        reply.headers.push(("X".into(), b"1\r\nSet-Cookie: b=2".to_vec()));
        reply.headers.push(("X: 1\r\nY".into(), b"2".to_vec()));
        let fields = checked(&reply);
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(fields, [("server", "uhst-relay"), ("vary", "OriginX: 1"), ("set-cookie", "a=1")]);
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for right in ["a", "a:", "a:80", "127.0.0.1:1", "[::1]", "[::ffff:1.2.3.4]:80", "a_b.c-d~%20", "a;b=c"] {
            assert!(is_authority(right), "{right}");
        }
        for wrong in
            ["", ":80", "a:b", "a:8:0", "a b", "me@a", "a,b", "a/", "[", "[::1", "[]", "[::1]x", "[a]", "\u{e9}"]
        {
            assert!(!is_authority(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_target_is_seen_through_all_its_forms() {
        let target = |text: &str| {
            let head = head("OPTIONS", text)?;
            let (path, raw_path) = target(&head).ok()?;
            Some((path, raw_path, head.uri.query().unwrap_or_default().to_owned()))
        };
        let to = |path: &str, query: &str| Some((path.to_owned(), path.to_owned(), query.to_owned()));
        assert_eq!(target("/a%20b?c%20d"), Some(("/a b".into(), "/a%20b".into(), "c%20d".into())));
        assert_eq!(target("http://a"), to("/", ""));
        assert_eq!(target("HTTP://a?b"), to("/", "b"));
        assert_eq!(target("https://a:1/b?c"), to("/b", "c"));
        assert_eq!(target("*"), to("", ""));
        assert_eq!(target("/?x=http://me@b"), to("/", "x=http://me@b"));
        for wrong in ["a", "?b", "ftp://a/", "http:///", "http://me@a/", "http://a:b/", "/%00", "/%ff", "*x", "a:80"] {
            assert_eq!(target(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_log_shows_no_token() {
        let shown = |target: &str| request_line(&head("GET", target).expect(target));
        assert_eq!(shown("/?action=join&hostId=1"), "GET /?action=join&hostId=1 HTTP/1.1");
        assert_eq!(shown("/?token=secret&lastEventId=7"), "GET /?token=-&lastEventId=- HTTP/1.1");
        assert_eq!(shown("/x/cama/session/secret"), "GET /x/cama/session/- HTTP/1.1");
        for target in ["/?%74oken=secret", "/?Token=secret", "/?secret", "/?secret=", "/?a=secret", "/?&&secret&&"] {
            assert!(!shown(target).contains("secret"), "{target}");
        }
        assert!(!shown("http://me:secret@a/").contains("secret"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_is_asked_for_can_be_logged(target in "[ -~\u{80}-\u{ff}]{1,60}") {
            if let Some(head) = head("GET", &target).or_else(|| head("GET", &format!("/{target}"))) {
                let _ = check(&head);
                let line = request_line(&head);
                prop_assert!(!line.contains(['\r', '\n', '"', '\\']), "{}", line);
            }
        }
    }
}
