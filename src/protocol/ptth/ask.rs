//! What a client asks of a server behind the relay: how the request goes there, and the answer comes back.

use super::super::cors::options;
use super::super::partner::Wait;
use super::head::AnswerHead;
use crate::config::Settings;
use crate::gateway::{Client, Content, Outgoing, Reply, Request, Status, digits};
use crate::ptth::{
    Fields, HEAD_FIELD, KEY_FIELD, MAX_FIELDS, METHOD_FIELD, Method, OPTIONS, RequestHead, ResponseHead, ServerName,
    Waiting, WireError,
};
use crate::refusal::Refusal;
use crate::store::requests::{Patience, Progress, PtthServer, RequestId};
use crate::store::{Receiver, Store};
use crate::transfer::{self, Ending};
use std::time::Duration;

/// The first part of the paths of servers.
pub(super) const FRONTEND: &str = "frontend";
pub(super) const METHODS: &str = "GET, HEAD, OPTIONS";

/// How long a client waits for the beginning of its answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// A client looks after its request every second. A far end that has had it for 7 s loses it to another within two looks,
/// but only once: all that passes may be repeated (RFC 9110, 9.2.2), but a far end may be unable to answer it. The head of an
/// answer is sent at once: where none has come for 5 s, whoever has begun the answer was killed.
const PATIENCE: Patience =
    Patience { look: Duration::from_secs(1), claim: Duration::from_secs(7), head: Duration::from_secs(5) };

/// The longest head of a request in bytes: path, query and header fields.
const LONGEST_REQUEST: usize = 16 * 1024;

/// A body of so many bytes is kept in memory, if it is there with its head.
const SHORT: u64 = 4096;

/// Where a server is.
pub(super) fn base(request: &Request<'_>, name: &ServerName) -> String {
    format!("{}/{FRONTEND}/servers/{name}", request.mount)
}

/// A registered server.
pub(super) async fn server(store: &Store, name: &str) -> Result<(ServerName, PtthServer), Refusal> {
    let unknown = || Refusal::new(Status::NotFound, "There is no such server at this relay.");
    let name = ServerName::new(name).ok_or_else(unknown)?;
    let server = store.ptth_servers().await?.get(&name).cloned().ok_or_else(unknown)?;
    Ok((name, server))
}

fn bad_answer(what: &str) -> Refusal {
    Refusal::new(Status::BadGateway, format!("The server's answer cannot be passed on: {what}."))
}

/// Asks the server of this name for what is at `rest`.
pub(super) async fn ask(
    settings: &Settings,
    store: &Store,
    name: &str,
    rest: &str,
    request: &mut Request<'_>,
) -> Result<Reply, Refusal> {
    let (name, server) = server(store, name).await?;
    let pseudonym = server.tripcode.pseudonym(&name);
    let mut fields = fields_for_server(request);
    if names_in_via(&fields, &pseudonym) {
        return Err(Refusal::new(
            Status::LoopDetected,
            "The request has come back to where it was: what the server passes it on to is this server itself.",
        ));
    }
    // It is well formed.
    let _ = fields.add("via", format!("1.1 {pseudonym}").as_bytes());
    if request.method == OPTIONS && !may_go_on(&mut fields) {
        return Ok(options(request, METHODS));
    }
    let method = Method::named(&request.method).unwrap_or_else(|| {
        let _ = fields.add(METHOD_FIELD, request.method.as_bytes());
        Method::Get
    });
    let head = RequestHead { method, uri: uri(rest, &request.query)?, fields };
    let size: usize = head.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    // A far end takes no more, and would refuse the requests beside it in its list too.
    if head.uri.len() + size > LONGEST_REQUEST || head.fields.iter().count() > MAX_FIELDS {
        return Err(Refusal::new(
            Status::RequestHeaderFieldsTooLarge,
            format!("Path, query and header fields have more than {LONGEST_REQUEST} bytes: send fewer."),
        ));
    }
    let (answer, receiver) = wait_for_answer(store, &name, &head, settings.max_clients, request.client).await?;
    pass_on(&answer, method, &base(request, &name), &pseudonym, receiver)
}

/// Waits until the answer begins: its head.
async fn wait_for_answer(
    store: &Store,
    name: &ServerName,
    head: &RequestHead,
    limit: u64,
    client: &mut dyn Client,
) -> Result<(Vec<u8>, Receiver), Refusal> {
    let not_now = |sentence| Refusal::new(Status::ServiceUnavailable, sentence).field("Retry-After", "5");
    let too_many =
        || not_now(format!("{limit} requests wait for this server already (RELAY_MAX_CLIENTS): try again later."));
    let mut wait = Wait::begin(ANSWER_TIME);
    let (id, request) = numbered(head)?;
    let mut pending = store.ask(name, &id, &request, limit).await?.ok_or_else(too_many)?;
    loop {
        let is_over = {
            let [mut data, mut call] = pending.awaited();
            !wait.sleep(client, &mut [&mut data, &mut call], PATIENCE.look).await?
        };
        if is_over && !(pending.is_being_answered().await? && wait.extend()) {
            return Err(Refusal::new(
                Status::GatewayTimeout,
                "The server did not answer in time: it may not be connected.",
            ));
        }
        match pending.look(&PATIENCE).await? {
            Progress::Waits => {}
            Progress::Begins(head) => return Ok((head, pending.begin())),
            Progress::BrokenOff => {
                let (id, request) = numbered(head)?;
                pending = pending.ask_again(&id, &request, limit).await?.ok_or_else(too_many)?;
            }
            Progress::GivenUp => return Err(bad_answer("its far end broke off more than once")),
            Progress::ServerRemoved => {
                return Err(not_now("The server has just been removed from this relay.".to_owned()));
            }
        }
    }
}

// ---- what passes from the client to the server

/// A request under a new id, as it stands in a far end's list.
fn numbered(head: &RequestHead) -> Result<(RequestId, Vec<u8>), Refusal> {
    let id = RequestId::fresh()?;
    let request = Waiting { id: id.as_str().to_owned(), head: head.clone() }.encode();
    Ok((id, request))
}

/// Path and query as the server sees them.
fn uri(rest: &str, query: &[u8]) -> Result<String, Refusal> {
    let query = std::str::from_utf8(query)
        .ok()
        .filter(|query| query.is_ascii())
        .ok_or_else(|| Refusal::new(Status::BadRequest, "The query is not ASCII: percent-encode it."))?;
    Ok(if query.is_empty() { format!("/{rest}") } else { format!("/{rest}?{query}") })
}

/// The header fields of a request, without what is between the client and the relay alone.
fn fields_for_server(request: &Request<'_>) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in (request.headers)() {
        let value = if name == "cookie" { cookies_for_server(&value) } else { value };
        if !value.is_empty() {
            // What cannot be a field is none.
            let _ = fields.add(&name, value.as_bytes());
        }
    }
    fields.remove_hop_by_hop();
    let own = [KEY_FIELD, HEAD_FIELD, METHOD_FIELD].map(str::to_ascii_lowercase);
    for name in own.iter().map(String::as_str).chain(["content-length", "expect"]) {
        fields.remove(name);
    }
    forward(&mut fields, request);
    fields
}

/// Says who has asked, as the relay has seen it. What the client itself has to say of that may be a lie.
fn forward(fields: &mut Fields, request: &Request<'_>) {
    // To many an application (RFC 3875, 4.1.18) an underscore is the same.
    let is_claim = |name: &str| {
        let name = name.replace('_', "-");
        name.starts_with("x-forwarded-") || ["forwarded", "x-real-ip"].contains(&name.as_str())
    };
    let claims: Vec<_> = fields.iter().map(|(name, _)| name.to_owned()).filter(|name| is_claim(name)).collect();
    for name in &claims {
        fields.remove(name);
    }
    let proto = if request.is_https { "https" } else { "http" };
    let seen = [
        ("x-forwarded-for", request.remote.map(|address| address.to_string())),
        ("x-forwarded-proto", Some(proto.to_owned())),
        ("x-forwarded-host", fields.get("host").map(str::to_owned)),
    ];
    for (name, value) in seen {
        if let Some(value) = value {
            let _ = fields.add(name, value.as_bytes());
        }
    }
}

/// Whether a request has been where that name is given in `Via` (RFC 9110, 7.6.3).
fn names_in_via(fields: &Fields, pseudonym: &str) -> bool {
    fields.get("via").is_some_and(|via| via.split([',', ' ', '\t']).any(|part| part == pseudonym))
}

/// Counts an OPTIONS down. False where it is to be answered here (RFC 9110, 7.6.2).
fn may_go_on(fields: &mut Fields) -> bool {
    const NAME: &str = "max-forwards";
    let Some(left) = fields.get(NAME).and_then(|left| digits(left.as_bytes())) else { return true };
    fields.remove(NAME);
    let rest = left.checked_sub(1);
    if let Some(rest) = rest {
        let _ = fields.add(NAME, rest.to_string().as_bytes());
    }
    rest.is_some()
}

/// Without the cookie that makes somebody the host of a pipe's session.
fn cookies_for_server(value: &str) -> String {
    let is_own = |pair: &str| pair.split('=').next().is_some_and(|name| name.trim_end() == "token");
    let others: Vec<_> = value.split(';').map(str::trim).filter(|pair| !is_own(pair)).collect();
    others.join("; ")
}

// ---- what passes from the server to the client

/// The answer to the client.
fn pass_on(
    answer: &[u8],
    method: Method,
    base: &str,
    pseudonym: &str,
    mut receiver: Receiver,
) -> Result<Reply, Refusal> {
    let AnswerHead { length: sent, head } = AnswerHead::decode(answer).ok_or_else(|| bad_answer("it is damaged"))?;
    let ResponseHead { status, fields } = ResponseHead::decode(head).map_err(|error| match error {
        WireError::BadField => bad_answer("it has a header field that HTTP does not allow"),
        _ => bad_answer("its head is too large"),
    })?;
    let said = match fields.iter().find(|(name, _)| *name == "content-length") {
        Some((_, text)) => Some(digits(text).ok_or_else(|| bad_answer("its Content-Length is no number"))?),
        None => None,
    };
    let has_body = method != Method::Head && !matches!(status.code(), 204 | 304);
    if has_body && said.is_some() && sent.is_some() && said != sent {
        return Err(bad_answer("its Content-Length is not that of its body"));
    }
    let mut reply = Reply::empty(Status::Passed(status.code()));
    let mut fields = fields_for_client(fields, status.code());
    let _ = fields.add("via", format!("1.1 {pseudonym}").as_bytes());
    for (name, value) in fields.iter() {
        let value = if name == "set-cookie" { confined(value, base) } else { value.to_vec() };
        reply = reply.header(name.to_owned(), value);
    }
    if !has_body && let Some(said) = said.filter(|_| status.code() != 204) {
        reply = reply.header("Content-Length", said.to_string());
    }
    let length = if has_body { sent.or(said) } else { Some(0) };
    if let Some(length) = length.filter(|length| (1..=SHORT).contains(length))
        && let Some(body) = receiver.take_at_once(length)?
    {
        // Here the receiver's end waits until the client has its answer.
        let produce = async move |out: &mut dyn Outgoing| {
            transfer::write_all(out, &body).await;
            drop(receiver);
        };
        return Ok(Reply { content: Content::Sized(length, Box::new(move |out| Box::pin(produce(out)))), ..reply });
    }
    if length != Some(0) {
        // nginx passes it on as it comes.
        reply = reply.header("X-Accel-Buffering", "no");
    }
    let content = transfer::content(receiver, length, Ending::Told);
    Ok(Reply { content: if has_body { content } else { Content::Absent }, ..reply })
}

/// The header fields of an answer, without what is between the server and the relay alone, what the relay says itself, and
/// what a web server would take for an order of its CGI program's: to send a file of its own, say.
fn fields_for_client(mut fields: Fields, status: u16) -> Fields {
    const ORDERS: [&str; 4] = ["x-accel-", "x-sendfile", "x-lighttpd-", "x-litespeed-"];
    fields.remove_hop_by_hop();
    let own = [KEY_FIELD, HEAD_FIELD].map(str::to_ascii_lowercase);
    for name in own.iter().map(String::as_str).chain(["content-length", "date", "server", "status"]) {
        fields.remove(name);
    }
    // With another status, a web server may take it for the place where it finds the answer (RFC 3875, 6.3.2).
    if status != 201 && !(300..400).contains(&status) {
        fields.remove("location");
    }
    let names: Vec<_> = fields.iter().map(|(name, _)| name.to_owned()).collect();
    for name in names.iter().filter(|name| ORDERS.iter().any(|order| name.starts_with(order))) {
        fields.remove(name);
    }
    fields
}

/// A cookie that comes back to the same server only: all servers share the relay's host.
fn confined(cookie: &[u8], base: &str) -> Vec<u8> {
    let mut parts = cookie.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let mut confined = parts.next().unwrap_or_default().to_vec();
    let mut path = &b"/"[..];
    for part in parts {
        let (name, value) = part.split_at(part.iter().position(|byte| *byte == b'=').unwrap_or(part.len()));
        let value = value.strip_prefix(b"=").unwrap_or_default().trim_ascii();
        if name.trim_ascii().eq_ignore_ascii_case(b"path") {
            path = if value.starts_with(b"/") { value } else { b"/" };
        } else if !name.trim_ascii().eq_ignore_ascii_case(b"domain") {
            confined.extend_from_slice(&[b"; ", part].concat());
        }
    }
    confined.extend_from_slice(&[b"; Path=", base.as_bytes(), path].concat());
    confined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in pairs {
            fields.add(name, value.as_bytes()).unwrap();
        }
        fields
    }

    #[test]
    fn a_cookie_of_one_server_is_not_sent_to_another() {
        for (cookie, expected) in [
            ("a=b", "a=b; Path=/m/frontend/servers/n/"),
            ("a=b; path=/; DOMAIN=x.org;Secure", "a=b; Secure; Path=/m/frontend/servers/n/"),
            ("a=b; Path=/x; Path=y", "a=b; Path=/m/frontend/servers/n/"),
            ("a=b; Path=/x", "a=b; Path=/m/frontend/servers/n/x"),
            ("", "; Path=/m/frontend/servers/n/"),
        ] {
            let confined = confined(cookie.as_bytes(), "/m/frontend/servers/n");
            assert_eq!(confined, expected.as_bytes(), "{cookie}");
        }
        assert_eq!(confined(b"a=\xe4; Domain", "/n"), b"a=\xe4; Path=/n/");
        assert_eq!(cookies_for_server("a=b;token=x; tokens=1;token"), "a=b; tokens=1");
        assert_eq!(cookies_for_server("token=\"x\""), "");
        assert_eq!(cookies_for_server("a=b; token =x;token\t= y"), "a=b");
    }

    #[test]
    fn a_server_gives_the_relays_web_server_no_orders() {
        let all = fields(&[
            ("x-sendfile", "/etc/passwd"),
            ("x-accel-redirect", "/secret"),
            ("x-lighttpd-send-file", "/etc/passwd"),
            ("x-litespeed-location", "/secret"),
            ("status", "200"),
            ("location", "/secret"),
            ("x-api", "kept"),
        ]);
        assert_eq!(fields_for_client(all.clone(), 200), fields(&[("x-api", "kept")]));
        assert_eq!(fields_for_client(all, 302).get("location"), Some("/secret"));
    }
}
