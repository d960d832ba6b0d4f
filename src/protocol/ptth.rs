//! PTTH, HTTP backwards: a server behind a firewall is reached through the relay, which it asks for requests.
//!
#![doc = include_str!("ptth.md")]
//!
//! # In the code
//!
//! What is in a list of requests and in the head of an answer is in [`crate::ptth`].

use super::cors::{options, with_cors};
use super::page;
use crate::clock::is_recent;
use crate::config::Settings;
use crate::gateway::{BodyError, Client, Content, Outgoing, Reply, Request, Status, Woken, digits};
use crate::ptth::{
    Fields, HEAD_FIELD, KEY_FIELD, MAX_FIELDS, METHOD_FIELD, Method, OPTIONS, PREFIX, RequestHead, ResponseHead,
    ServerName, Tripcode, Waiting, WireError, join_list,
};
use crate::refusal::status_of as store_status;
use crate::store::pipes::{LONGEST_HEAD, Receiver};
use crate::store::requests::{Claimed, FarEnds, Patience, Progress, PtthServer, RequestId, WaitingFarEnd};
use crate::store::{self, Store};
use crate::transfer::{self, End, Ending, Feed};
use rustix::event::{PollFd, PollFlags};
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const FRONTEND: &str = "frontend";
const METHODS: &str = "GET, HEAD, OPTIONS";

/// How long a far end waits for a request, and a client for the beginning of its answer.
const LISTEN_TIME: Duration = Duration::from_secs(25);
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// A client looks after its request every second. A far end that has had it for 7 s loses it to another within two looks,
/// but only once: all that passes may be repeated (RFC 9110, 9.2.2), but a far end may be unable to answer it. The head of an
/// answer is sent at once: where none has come for 5 s, whoever has begun the answer was killed.
const PATIENCE: Patience =
    Patience { look: Duration::from_secs(1), claim: Duration::from_secs(7), head: Duration::from_secs(5) };

/// The requests that one far end is given at once; others may come for more.
const MOST_CLAIMED: usize = 32;

/// The longest head of a request in bytes: path, query and header fields.
const LONGEST_REQUEST: usize = 16 * 1024;

/// A far end that asked last so long ago counts as connected: it will ask again once it has its requests.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(5);

/// A body of so many bytes is kept in memory, if it is there with its head.
const SHORT: u64 = 4096;

/// The length of an answer's body stands before its head, in so many bytes.
const LENGTH_SIZE: usize = 8;
const UNKNOWN_LENGTH: u64 = u64::MAX;

/// Whether a path is one of this protocol's.
#[must_use]
pub fn is_its_own(path: &str) -> bool {
    path.split('/').nth(1).is_some_and(|first| first == PREFIX || first == FRONTEND)
}

/// Whether answers of far ends come to a path.
#[must_use]
pub fn takes_answers(path: &str) -> bool {
    path.strip_prefix('/')
        .and_then(|path| path.strip_prefix(PREFIX))
        .is_some_and(|path| path.starts_with("/http_response/"))
}

/// Answers a request to a path that [is its own](is_its_own), with what pages of other origins want to see, unless a server
/// behind the relay has answered.
pub fn answer(settings: &Settings, request: &mut Request<'_>) -> Reply {
    let relay = Relay { settings, store: Store::of(settings) };
    let path = request.raw_path.clone();
    let answer = match to_server(&path) {
        // Any other protocol may be ignored, as curl's h2c is (RFC 9110, 7.8); a page instead of this one would be a riddle.
        Some(_) if super::ws::is_wanted(request) => Err(Refusal::NoUpgrade),
        Some((name, rest)) => match relay.ask(&name, rest, request) {
            // It says for itself which origins may read it; nothing is added.
            Ok(reply) => return reply,
            Err(refusal) => Err(refusal),
        },
        None => relay.route(&path, request),
    };
    let reply = answer.unwrap_or_else(|refusal| {
        // A body that nobody wants may be endless, and the answer should not wait for its end.
        request.body.reader.give_time(Duration::from_secs(1));
        refusal.reply()
    });
    with_cors(settings, request, reply)
}

/// Why a request is refused.
#[derive(Debug)]
enum Refusal {
    NoKey,
    WrongKey,
    UnknownServer,
    NothingHere,
    MethodNotAllowed(&'static str),
    BadQuery,
    NoUpgrade,
    HeadTooLong,
    TooManyWait(u64),
    UnknownRequest,
    NoHead,
    BadHead(WireError),
    NobodyAnswered,
    Loop,
    BadAnswer(&'static str),
    ClientLeft,
    Removed,
    Stopping,
    /// The client has gone; nobody will read this.
    HungUp,
    Body(BodyError),
    Store(store::Error),
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Refusal {
    fn status(&self) -> Status {
        match self {
            Self::BadQuery | Self::UnknownRequest | Self::NoHead | Self::BadHead(_) | Self::HungUp => {
                Status::BadRequest
            }
            Self::WrongKey => Status::Unauthorized,
            Self::NoKey => Status::Forbidden,
            Self::UnknownServer | Self::NothingHere => Status::NotFound,
            Self::MethodNotAllowed(_) => Status::MethodNotAllowed,
            Self::NoUpgrade => Status::NotImplemented,
            Self::ClientLeft => Status::Gone,
            Self::HeadTooLong => Status::RequestHeaderFieldsTooLarge,
            Self::BadAnswer(_) => Status::BadGateway,
            Self::TooManyWait(_) | Self::Removed | Self::Stopping => Status::ServiceUnavailable,
            Self::NobodyAnswered => Status::GatewayTimeout,
            Self::Loop => Status::LoopDetected,
            Self::Body(error) => error.status(),
            Self::Store(error) => store_status(error),
        }
    }

    fn reply(&self) -> Reply {
        if let Self::Store(error) = self {
            error.log();
        }
        let reply = Reply::error(self.status(), &self.to_string());
        match self {
            Self::MethodNotAllowed(allow) => reply.header("Allow", *allow),
            _ if self.status() == Status::ServiceUnavailable => reply.header("Retry-After", "5"),
            _ => reply,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => write!(f, "The server's key is missing: send it in the header field {KEY_FIELD}."),
            Self::WrongKey => f.write_str("There is no such server with this key: register it at the relay."),
            Self::UnknownServer => f.write_str("There is no such server at this relay."),
            Self::NothingHere => f.write_str("There is nothing at this path: a server is at /frontend/servers/NAME/."),
            Self::MethodNotAllowed(allow) => write!(f, "This method is not allowed here. Use one of these: {allow}."),
            Self::BadQuery => f.write_str("The query is not ASCII: percent-encode it."),
            Self::NoUpgrade => {
                f.write_str("No WebSocket passes through PTTH: the application's own are at this relay's /ws/CHANNEL.")
            }
            Self::HeadTooLong => {
                write!(f, "Path, query and header fields have more than {LONGEST_REQUEST} bytes: send fewer.")
            }
            Self::TooManyWait(limit) => {
                write!(f, "{limit} requests wait for this server already (RELAY_MAX_CLIENTS): try again later.")
            }
            Self::UnknownRequest => {
                f.write_str("There is no such request: its client has gone, or it has been answered already.")
            }
            Self::NoHead => write!(f, "The head of the answer is missing: send it in the header field {HEAD_FIELD}."),
            Self::BadHead(error) => write!(f, "The head of the answer cannot be used. {error}"),
            Self::NobodyAnswered => f.write_str("The server did not answer in time: it may not be connected."),
            Self::Loop => f.write_str(
                "The request has come back to where it was: what the server passes it on to is this server itself.",
            ),
            Self::BadAnswer(what) => write!(f, "The server's answer cannot be passed on: {what}."),
            Self::ClientLeft => f.write_str("The client has gone before it had all of the answer."),
            Self::Removed => f.write_str("The server has just been removed from this relay."),
            Self::Stopping => f.write_str("The relay is being stopped: try again in a moment."),
            Self::HungUp => f.write_str("You have gone."),
            Self::Body(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}

struct Relay<'a> {
    settings: &'a Settings,
    store: Store,
}

impl Relay<'_> {
    fn route(&self, path: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let ([first, second, third], rest) = parts(path);
        match (first.as_str(), second.as_str(), third.as_str(), rest) {
            (PREFIX, "http_listen", name, None) if !name.is_empty() => {
                of_methods(request, "GET")?;
                self.listen(name, request)
            }
            (PREFIX, "http_response", id, None) if !id.is_empty() => {
                of_methods(request, "POST")?;
                self.respond(id, request)
            }
            (FRONTEND, "servers", "", None) => read_only(request, |request| self.list(request)),
            (FRONTEND, "servers", _, None) if super::ws::is_wanted(request) => Err(Refusal::NoUpgrade),
            (FRONTEND, "servers", name, None) => read_only(request, |request| {
                let name = self.registered(name)?;
                // So that links in what is there lead below it.
                Ok(Reply::empty(Status::Passed(307)).header("Location", format!("{}/", base(request, &name))))
            }),
            (FRONTEND, "relay_up_check", "", None) => {
                read_only(request, |_| Ok(Reply::json(Status::Ok, "{}").header("Cache-Control", "no-store")))
            }
            _ => Err(Refusal::NothingHere),
        }
    }

    fn server(&self, name: &str) -> Result<(ServerName, PtthServer), Refusal> {
        let name = ServerName::new(name).ok_or(Refusal::UnknownServer)?;
        let server = self.store.ptth_servers()?.get(&name).cloned().ok_or(Refusal::UnknownServer)?;
        Ok((name, server))
    }

    fn registered(&self, name: &str) -> Result<ServerName, Refusal> {
        self.server(name).map(|(name, _)| name)
    }

    /// The servers whose key was sent. All are looked at, and tripcodes are compared in constant time, so that the time it
    /// takes tells nothing.
    fn servers_of_key(&self, request: &Request<'_>) -> Result<Vec<ServerName>, Refusal> {
        let key = (request.header)(&KEY_FIELD.to_ascii_lowercase()).ok_or(Refusal::NoKey)?;
        let tripcode = Tripcode::of(&key);
        let servers = self.store.ptth_servers()?;
        let of_key = servers.iter().filter(|(_, server)| server.tripcode == tripcode);
        Ok(of_key.map(|(name, _)| name.clone()).collect())
    }

    // ---- GET /frontend/servers/

    fn list(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        let mut listed = Vec::new();
        for (name, server) in self.store.ptth_servers()?.iter().filter(|(_, server)| server.listed) {
            let FarEnds { seen, is_listening } = self.store.far_ends(name)?;
            let display_name = server.display_name.clone().unwrap_or_else(|| name.to_string());
            let is_connected = is_listening || seen.is_some_and(|seen| is_recent(seen, BETWEEN_QUESTIONS));
            let (url, name) = (base(request, name) + "/", name.clone());
            listed.push(Listed { name, url, display_name, seen, is_connected });
        }
        let is_browser = (request.header)("accept").is_some_and(|accept| page::names_html(&accept));
        let reply = if is_browser {
            page::document(Status::Ok, "Servers", &html(&listed))
        } else {
            let listed: Vec<_> = listed.iter().map(Listed::json).collect();
            Reply::json(Status::Ok, format!(r#"{{"servers":[{}]}}"#, listed.join(",")))
                .header("Cache-Control", "no-store")
        };
        Ok(reply.header("Vary", "Accept"))
    }

    // ---- GET /frontend/servers/NAME/PATH

    fn ask(&self, name: &str, rest: &str, request: &Request<'_>) -> Result<Reply, Refusal> {
        of_methods(request, METHODS)?;
        let (name, server) = self.server(name)?;
        let pseudonym = server.tripcode.pseudonym(&name);
        let mut fields = fields_for_server(request);
        if names_in_via(&fields, &pseudonym) {
            return Err(Refusal::Loop);
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
            return Err(Refusal::HeadTooLong);
        }
        let (answer, receiver) = self.wait_for_answer(&name, &head, request.client)?;
        pass_on(&answer, method, &base(request, &name), &pseudonym, receiver)
    }

    /// Waits until the answer begins: its length and its head.
    fn wait_for_answer(
        &self,
        name: &ServerName,
        head: &RequestHead,
        client: Client<'_>,
    ) -> Result<(Vec<u8>, Receiver), Refusal> {
        let limit = self.settings.max_clients;
        let (id, request) = numbered(head)?;
        let mut pending = self.store.ask(name, &id, &request, limit)?.ok_or(Refusal::TooManyWait(limit))?;
        let (mut until, mut is_extended) = (Instant::now() + ANSWER_TIME, false);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match client.wait(&pending.awaited(), false, left.min(PATIENCE.look)) {
                Woken::HungUp => return Err(Refusal::HungUp),
                Woken::Stopped => return Err(Refusal::Stopping),
                Woken::Tick if left.is_zero() && !is_extended && pending.is_being_answered()? => {
                    is_extended = true;
                    // At the last moment; the head is on its way.
                    until = Instant::now() + Duration::from_secs(1);
                }
                Woken::Tick if left.is_zero() => return Err(Refusal::NobodyAnswered),
                _ => {}
            }
            match pending.look(&PATIENCE)? {
                Progress::Waits => {}
                Progress::Begins(head) => return Ok((head, pending.begin())),
                Progress::BrokenOff => {
                    let (id, request) = numbered(head)?;
                    pending = pending.ask_again(&id, &request, limit)?.ok_or(Refusal::TooManyWait(limit))?;
                }
                Progress::GivenUp => return Err(Refusal::BadAnswer("its far end broke off more than once")),
                Progress::ServerRemoved => return Err(Refusal::Removed),
            }
        }
    }

    // ---- GET /7ZSFUKGV/http_listen/NAME

    fn listen(&self, name: &str, request: &Request<'_>) -> Result<Reply, Refusal> {
        let client = request.client;
        let until = Instant::now() + LISTEN_TIME;
        if client.wait(&[], false, Duration::ZERO) == Woken::HungUp {
            return Err(Refusal::HungUp);
        }
        let mut far_end: Option<WaitingFarEnd> = None;
        loop {
            // Each time: the key may have been withdrawn while its far end waits, and others have another one.
            let of_key = self.servers_of_key(request)?;
            let Some(name) = of_key.into_iter().find(|server| server.as_str() == name) else {
                if let Some(far_end) = far_end {
                    far_end.leave();
                }
                return Err(Refusal::WrongKey);
            };
            let here = match &mut far_end {
                Some(here) => here,
                none => none.insert(self.store.listen_for_requests(&name)?),
            };
            // At first, once it listens so that none comes in between, when it is called, and at last.
            let claimed = here.claim(MOST_CLAIMED)?;
            if !claimed.is_empty() || Instant::now() >= until {
                return Ok(self.give(&name, claimed));
            }
            wait_for_call(here, client, until)?;
        }
    }

    /// The answer to a far end: its requests. They are given back when it has gone meanwhile.
    fn give(&self, name: &ServerName, claimed: Vec<Claimed>) -> Reply {
        if claimed.is_empty() {
            return Reply::empty(Status::NoContent).header("Cache-Control", "no-store");
        }
        let (ids, requests): (Vec<_>, Vec<_>) =
            claimed.into_iter().map(|claimed| (claimed.id, claimed.request)).unzip();
        let list = join_list(&requests);
        let length = list.len() as u64;
        let (store, name) = (self.store.clone(), name.clone());
        let produce = move |out: &mut Outgoing<'_>| {
            let is_written = write_all(out, &list);
            // What it has not read when it hangs up, it may have lost.
            let is_there = out.wait(&[], false, Duration::ZERO) != Woken::HungUp;
            if !(is_written && is_there)
                && let Err(error) = store.give_back(&name, &ids)
            {
                error.log();
            }
        };
        Reply { content: Content::Sized(length, Box::new(produce)), ..Reply::empty(Status::Ok) }
            .header("Content-Type", "application/octet-stream")
            .header("Cache-Control", "no-store")
    }

    // ---- POST /7ZSFUKGV/http_response/ID

    fn respond(&self, id: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let names = self.servers_of_key(request)?;
        if names.is_empty() {
            return Err(Refusal::WrongKey);
        }
        let id = RequestId::parse(id).ok_or(Refusal::UnknownRequest)?;
        let value = (request.header)(&HEAD_FIELD.to_ascii_lowercase()).ok_or(Refusal::NoHead)?;
        // One that is too large, or well formed but cannot be passed on, is an answer, if a bad one: the client is told.
        let (value, decoded) = if value.len() > LONGEST_HEAD - LENGTH_SIZE {
            (String::new(), Err(WireError::TooLarge))
        } else {
            let decoded = ResponseHead::decode(&value);
            (value, decoded)
        };
        if let Err(error @ (WireError::NotBase64 | WireError::Malformed)) = decoded {
            return Err(Refusal::BadHead(error));
        }
        let answer = self.store.answer_request(&names, &id)?.ok_or(Refusal::UnknownRequest)?;
        let length = request.body.length.unwrap_or(UNKNOWN_LENGTH);
        let client = request.client;
        let mut feed = Feed::new(&mut request.body);
        let is_sent = feed.send_head(answer.sender(), &[&length.to_be_bytes(), value.as_bytes()].concat());
        let mut sender = answer.begin();
        if !is_sent {
            return Err(Refusal::ClientLeft);
        }
        if let Err(error) = decoded {
            return Err(Refusal::BadHead(error));
        }
        let end = feed.send(&mut sender, None, client);
        let taken = sender.taken()?;
        let has_all = taken == Some(feed.given());
        match end {
            End::ReceiverLeft if has_all && sender.data().is_none() => {}
            End::ReceiverLeft if has_all && feed.given() == 0 => {
                // An answer without a body. A far end that has announced one all the same may never send it.
                request.body.reader.give_time(Duration::ZERO);
            }
            End::ReceiverLeft | End::ReceiverStuck => {
                feed.drop_rest();
                return Err(Refusal::ClientLeft);
            }
            End::SentAway => return Err(Refusal::Removed),
            End::HungUp => return Err(Refusal::HungUp),
            End::Stopped => return Err(Refusal::Stopping),
            End::Body(error) => return Err(Refusal::Body(error)),
        }
        Ok(Reply::json(Status::Ok, "{}"))
    }
}

/// The first parts of a path, decoded, and the rest as it came.
fn parts(path: &str) -> ([String; 3], Option<&str>) {
    let mut parts = path.splitn(5, '/').skip(1);
    let mut part = || parts.next().and_then(|part| urlencoding::decode(part).ok()).unwrap_or_default().into_owned();
    let first = [part(), part(), part()];
    (first, parts.next())
}

/// The server to which a path belongs, and the path there.
fn to_server(path: &str) -> Option<(String, &str)> {
    let ([first, second, name], rest) = parts(path);
    rest.filter(|_| first == FRONTEND && second == "servers" && !name.is_empty()).map(|rest| (name, rest))
}

fn read_only(
    request: &Request<'_>,
    answer: impl FnOnce(&Request<'_>) -> Result<Reply, Refusal>,
) -> Result<Reply, Refusal> {
    if request.method == "OPTIONS" {
        return Ok(options(request, METHODS));
    }
    of_methods(request, METHODS)?;
    answer(request)
}

fn of_methods(request: &Request<'_>, methods: &'static str) -> Result<(), Refusal> {
    if methods.split(", ").any(|method| method == request.method) {
        Ok(())
    } else {
        Err(Refusal::MethodNotAllowed(methods))
    }
}

/// Waits until the far end is called, or the time is over.
fn wait_for_call(far_end: &mut WaitingFarEnd, client: Client<'_>, until: Instant) -> Result<(), Refusal> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match client.wait(&[PollFd::from_borrowed_fd(far_end.fd(), PollFlags::IN)], false, left) {
            Woken::Stopped => return Err(Refusal::Stopping),
            Woken::HungUp => return Err(Refusal::HungUp),
            Woken::Knock if !far_end.is_called() => {}
            Woken::Knock | Woken::Tick | Woken::Writable => return Ok(()),
        }
    }
}

/// False when the client has gone before it had all.
fn write_all(out: &mut Outgoing<'_>, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        // Our own socket takes it at once nearly always, and does not block where it does not.
        let written = if out.is_own() { out.write(bytes) } else { 0 };
        if written > 0 {
            bytes = &bytes[written..];
            continue;
        }
        match out.wait(&[], true, transfer::IDLE) {
            Woken::Writable => bytes = &bytes[out.write(bytes)..],
            Woken::Knock => {}
            Woken::HungUp | Woken::Tick | Woken::Stopped => return false,
        }
    }
    true
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
    let query = std::str::from_utf8(query).ok().filter(|query| query.is_ascii()).ok_or(Refusal::BadQuery)?;
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
    const NO_ANSWER: &str = "it is damaged";
    let (length, head) = answer.split_first_chunk::<LENGTH_SIZE>().ok_or(Refusal::BadAnswer(NO_ANSWER))?;
    let sent = Some(u64::from_be_bytes(*length)).filter(|length| *length != UNKNOWN_LENGTH);
    let head = std::str::from_utf8(head).map_err(|_| Refusal::BadAnswer(NO_ANSWER))?;
    let ResponseHead { status, fields } = ResponseHead::decode(head).map_err(|error| match error {
        WireError::BadField => Refusal::BadAnswer("it has a header field that HTTP does not allow"),
        _ => Refusal::BadAnswer("its head is too large"),
    })?;
    let said = match fields.iter().find(|(name, _)| *name == "content-length") {
        Some((_, text)) => Some(digits(text).ok_or(Refusal::BadAnswer("its Content-Length is no number"))?),
        None => None,
    };
    let has_body = method != Method::Head && !matches!(status.code(), 204 | 304);
    if has_body && said.is_some() && sent.is_some() && said != sent {
        return Err(Refusal::BadAnswer("its Content-Length is not that of its body"));
    }
    let mut reply = Reply { content: Content::Absent, ..Reply::empty(Status::Passed(status.code())) };
    let mut fields = fields_for_client(fields, status.code());
    let _ = fields.add("via", format!("1.1 {pseudonym}").as_bytes());
    for (name, value) in fields.iter() {
        let value = if name == "set-cookie" { confined(value, base) } else { value.to_vec() };
        reply = reply.header(name.to_owned(), value);
    }
    let length = sent.or(said);
    if !has_body || length == Some(0) {
        if has_body {
            reply.content = Content::Whole(Vec::new());
        } else if let Some(said) = said.filter(|_| status.code() != 204) {
            reply = reply.header("Content-Length", said.to_string());
        }
        // That is all. Noted before the head goes out: a web server may end its program once it has that.
        if let Err(error) = receiver.took(0) {
            error.log();
        }
        return Ok(reply);
    }
    if let Some(length) = length.filter(|length| *length <= SHORT)
        && let Some(body) = receiver.take_at_once(length)?
    {
        // Here the receiver's end waits until the client has its answer.
        let produce = Box::new(move |out: &mut Outgoing<'_>| {
            write_all(out, &body);
            drop(receiver);
        });
        return Ok(Reply { content: Content::Sized(length, produce), ..reply });
    }
    // nginx passes it on as it comes.
    reply = reply.header("X-Accel-Buffering", "no");
    let produce = Box::new(move |out: &mut Outgoing<'_>| transfer::deliver(out, receiver, length, Ending::Told));
    let content = match length {
        Some(length) => Content::Sized(length, produce),
        None => Content::Stream(produce),
    };
    Ok(Reply { content, ..reply })
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

/// Where a server is.
fn base(request: &Request<'_>, name: &ServerName) -> String {
    format!("{}/{FRONTEND}/servers/{name}", request.mount)
}

// ---- the list

struct Listed {
    name: ServerName,
    url: String,
    display_name: String,
    seen: Option<SystemTime>,
    is_connected: bool,
}

impl Listed {
    fn json(&self) -> String {
        let since = self.seen.and_then(|seen| seen.duration_since(UNIX_EPOCH).ok());
        format!(
            r#"{{"name":"{}","displayName":{},"lastSeen":{},"connected":{}}}"#,
            self.name,
            serde_json::Value::from(self.display_name.as_str()),
            since.map_or_else(|| "null".to_owned(), |since| since.as_millis().to_string()),
            self.is_connected
        )
    }
}

fn html(listed: &[Listed]) -> String {
    let mut rows = String::new();
    for Listed { url, display_name, seen, is_connected, .. } in listed {
        let seen = seen.map_or_else(|| "never".to_owned(), |seen| httpdate::HttpDate::from(seen).to_string());
        let _ = writeln!(
            rows,
            "<tr><td><a href=\"{}\">{}</a></td><td>{}</td><td>{seen}</td></tr>",
            page::escape(url),
            page::escape(display_name),
            if *is_connected { "connected" } else { "not connected" },
        );
    }
    let table = if rows.is_empty() {
        "<p>No server is listed.</p>".to_owned()
    } else {
        format!(
            "<table>\n<thead><tr><th>Server</th><th>State</th><th>Last seen</th></tr></thead>\n\
             <tbody>\n{rows}</tbody>\n</table>"
        )
    };
    format!("<section><h2>Servers</h2>{table}</section>")
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

    #[test]
    fn a_path_is_its_own_by_its_first_part() {
        for path in ["/7ZSFUKGV/x", "/frontend", "/frontend/", "/frontend/servers/a/b"] {
            assert!(is_its_own(path), "{path}");
        }
        for path in ["", "/", "frontend", "/frontends/", "/x/frontend/", "/7zsfukgv/"] {
            assert!(!is_its_own(path), "{path}");
        }
    }

    #[test]
    fn a_length_is_digits_and_nothing_else() {
        assert_eq!(digits(b"12"), Some(12));
        for wrong in [&b""[..], b"+1", b"-1", b"1,2", b"99999999999999999999", b"\xff"] {
            assert_eq!(digits(wrong), None, "{wrong:?}");
        }
    }
}
