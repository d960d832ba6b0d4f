//! The cama protocol: two parties, a host and a guest, and a stream of bytes each way, one body at a time.
//!
#![doc = include_str!("cama.md")]
//!
//! # In the code
//!
//! Whoever has the session's token is its host, anybody else who knows its id its guest; in a secure session, anybody
//! else with the address that the host has named. A cookie carries the token, or a header field or parameter `token`,
//! where there are no cookies. Each header field of the protocol has a parameter beside it, and `method=` one for the
//! method of a POST, for web servers that pass few of them on.

use super::query::{NotUtf8, Query};
use super::{options, store_status};
use crate::clock::is_recent;
use crate::config::Settings;
use crate::gateway::{BodyError, Client, Content, Outgoing, Reply, Request, Status, Woken};
use crate::store::files::duplex::{Direction, Duplex, DuplexRecord};
use crate::store::files::pipe::{Came, Place, Receiver, Sender};
use crate::store::{self, Store};
use crate::transfer::{self, End, Ending, Feed};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant, SystemTime};

const SESSIONS: &str = "/cama/session";
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS";
const METHODS_OF_ALL: &str = "PUT, POST, OPTIONS";

/// What a page of another origin wants to see of an answer.
const EXPOSED: &str = "Location, Token, X-Type, X-Bytes-Delivered, X-Bytes-Relayed";

/// The longest time that a client may choose with `X-Timeout`.
const LONGEST_TIMEOUT: u64 = 300;

/// The senders that may wait in one direction. Each is a process or a thread.
const MOST_SENDERS: usize = 16;

/// What a sender says of its body besides the `Content-Type` (RFC 9110, 8), and its receiver is told.
const PASSED_ON: [&str; 4] = ["Content-Disposition", "Content-Encoding", "Content-Language", "Last-Modified"];

/// The longest value of such a field that is passed on.
const LONGEST_VALUE: usize = 1024;

/// The session that a path names, empty for all of them; `None` where the path is not this protocol's.
#[must_use]
pub fn session_of(path: &str) -> Option<String> {
    let rest = path.strip_prefix(SESSIONS)?;
    let id = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
    Some(id.to_owned())
}

/// Answers a request to the session `id`, or to all of them where it is empty.
pub fn answer(settings: &Settings, id: &str, request: &mut Request<'_>) -> Reply {
    let relay = Relay { settings, store: Store::of(settings) };
    let answered = relay.route(id, request);
    if answered.is_err() {
        // A body that nobody wants may be endless, and the answer should not wait for its end.
        request.body.reader.give_time(Duration::from_secs(1));
    }
    let reply = answered.unwrap_or_else(|refusal| refusal.reply());
    reply.header("Access-Control-Expose-Headers", EXPOSED)
}

/// Removes a session whose lifetime is over, and what killed processes have left behind in others.
///
/// # Errors
/// When the data folder cannot be used; a later sweep tries again.
pub fn sweep(settings: &Settings, duplex: Duplex) -> Result<(), store::Error> {
    let in_use = duplex.is_in_use()?;
    if !in_use && (duplex.record().is_none() || !is_recent(duplex.touched()?, settings.pipe_lifetime)) {
        return duplex.remove();
    }
    Ok(())
}

/// Why a request is refused.
#[derive(Debug)]
enum Refusal {
    BadQuery(NotUtf8),
    MethodNotAllowed(&'static str),
    BadType,
    BadTimeout,
    BadAddress,
    BasicSession,
    NotTheHost,
    NotTheGuest,
    UnknownSession,
    ReceiverThere,
    TooManySenders,
    TooManySessions(u64),
    Removed,
    NobodyCame,
    Stopping,
    /// The client has gone; nobody will read this.
    HungUp,
    /// The body that was being sent broke off. So many bytes of it were delivered.
    Body(BodyError, u64),
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
            Self::BadQuery(_)
            | Self::BadType
            | Self::BadTimeout
            | Self::BadAddress
            | Self::BasicSession
            | Self::HungUp => Status::BadRequest,
            Self::NotTheHost | Self::NotTheGuest => Status::Forbidden,
            Self::UnknownSession => Status::NotFound,
            Self::MethodNotAllowed(_) => Status::MethodNotAllowed,
            Self::ReceiverThere => Status::Conflict,
            Self::Removed => Status::Gone,
            Self::TooManySenders => Status::TooManyRequests,
            Self::TooManySessions(_) | Self::Stopping => Status::ServiceUnavailable,
            Self::NobodyCame => Status::GatewayTimeout,
            Self::Body(error, _) => error.status(),
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
            Self::TooManySenders => reply.header("Retry-After", "1"),
            Self::TooManySessions(_) => reply.header("Retry-After", "30"),
            Self::Stopping => reply.header("Retry-After", "5"),
            Self::Body(_, delivered) => reply.header("X-Bytes-Delivered", delivered.to_string()),
            _ => reply,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadQuery(error) => error.fmt(f),
            Self::MethodNotAllowed(allow) => write!(f, "This method is not allowed here. Use one of these: {allow}."),
            Self::BadType => f.write_str("There is no such X-Type: use basic or secure."),
            Self::BadTimeout => {
                write!(f, "The X-Timeout cannot be used: take whole seconds from 1 to {LONGEST_TIMEOUT}.")
            }
            Self::BadAddress => {
                f.write_str("The X-Peer-Address is not an IP address, such as 192.0.2.1 or 2001:db8::1.")
            }
            Self::BasicSession => {
                f.write_str("The session is basic, and open to everybody who knows it: make one with X-Type: secure.")
            }
            Self::NotTheHost => {
                f.write_str("Only the session's host may do this: send the token that came with the session.")
            }
            Self::NotTheGuest => {
                f.write_str("The session is secure, and not for you: its host has to PUT your X-Peer-Address first.")
            }
            Self::UnknownSession => f.write_str("There is no such session: it was never made, or it is over."),
            Self::ReceiverThere => f.write_str("Somebody else is receiving already on this side of the session."),
            Self::TooManySenders => write!(f, "{MOST_SENDERS} others wait to send the same way: try again later."),
            Self::TooManySessions(limit) => {
                write!(f, "The relay has its {limit} sessions (RELAY_MAX_PIPES): try again later.")
            }
            Self::Removed => f.write_str("The session has been deleted."),
            Self::NobodyCame => {
                f.write_str("The other side did not come in time: try again, or wait longer (X-Timeout).")
            }
            Self::Stopping => f.write_str("The relay is being stopped: try again in a moment."),
            Self::HungUp => f.write_str("You have gone."),
            Self::Body(error, _) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}

/// What precedes a body in the pipe.
#[derive(Serialize, Deserialize)]
struct Head {
    content_type: Option<String>,
    /// Those of [`PASSED_ON`] that the sender gave.
    #[serde(default)]
    fields: Vec<(String, String)>,
    /// `None` for a chunked one.
    length: Option<u64>,
}

/// Who somebody is in a session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Party {
    Host,
    Guest,
}

impl Party {
    fn receives(self) -> Direction {
        if self == Self::Host { Direction::ToHost } else { Direction::ToGuest }
    }

    fn sends(self) -> Direction {
        if self == Self::Host { Direction::ToGuest } else { Direction::ToHost }
    }
}

/// What the header fields and parameters of a request say.
struct Said<'a, 'r> {
    request: &'a Request<'r>,
    query: &'a Query,
}

impl Said<'_, '_> {
    fn header_or(&self, header: &str, parameter: &str) -> Option<String> {
        (self.request.header)(header).or_else(|| self.query.get(parameter).map(str::to_owned))
    }

    fn method(&self) -> String {
        let method = self.request.method.as_str();
        let instead =
            self.query.get("method").filter(|instead| method == "POST" && matches!(*instead, "DELETE" | "PUT"));
        instead.unwrap_or(method).to_owned()
    }

    fn location(&self, id: &str) -> String {
        format!("{}{SESSIONS}/{id}", self.request.mount)
    }

    /// What the receiver is told of the body.
    fn head(&self, length: Option<u64>) -> Head {
        let passed_on = |value: &String| value.len() <= LONGEST_VALUE;
        let field = |name: &str| {
            let name = name.to_ascii_lowercase();
            self.header_or(&name, &name).filter(passed_on)
        };
        let fields = PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), field(name)?))).collect();
        Head { content_type: (self.request.header)("content-type").filter(passed_on), fields, length }
    }

    fn is_secure(&self) -> Result<bool, Refusal> {
        match self.header_or("x-type", "type").as_deref() {
            None | Some("basic") => Ok(false),
            Some("secure") => Ok(true),
            Some(_) => Err(Refusal::BadType),
        }
    }

    fn timeout(&self, settings: &Settings) -> Result<Duration, Refusal> {
        let Some(text) = self.header_or("x-timeout", "timeout") else { return Ok(settings.pipe_timeout) };
        // `parse` would take a sign.
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(seconds) if is_number && (1..=LONGEST_TIMEOUT).contains(&seconds) => Ok(Duration::from_secs(seconds)),
            _ => Err(Refusal::BadTimeout),
        }
    }

    fn peer_address(&self) -> Option<Result<IpAddr, Refusal>> {
        let text = self.header_or("x-peer-address", "peer-address")?;
        Some(bare_address(text.trim()).ok_or(Refusal::BadAddress))
    }

    /// Every token that was sent. A browser may have cookies of that name from elsewhere on the site as well.
    fn tokens(&self) -> Vec<String> {
        let cookies = (self.request.header)("cookie").unwrap_or_default();
        let cookies = cookies.split(';').filter_map(|pair| pair.trim().strip_prefix("token="));
        let cookies = cookies.map(|value| value.trim_matches('"').to_owned());
        cookies.chain((self.request.header)("token")).chain(self.query.get("token").map(str::to_owned)).collect()
    }
}

/// `SameSite=Lax`: who follows a link to his own session from elsewhere is still its host, while a form or a script of
/// another site cannot act as him.
fn cookie(id: &str, token: &str, lifetime: Duration, said: &Said<'_, '_>) -> String {
    let secure = if said.request.is_https { "; Secure" } else { "" };
    // Some clients know only the date.
    let expires = if lifetime.is_zero() { SystemTime::UNIX_EPOCH } else { SystemTime::now() + lifetime };
    format!(
        "token=\"{token}\"; Path={}; Expires={}; HttpOnly; SameSite=Lax{secure}",
        said.location(id),
        httpdate::HttpDate::from(expires)
    )
}

/// An address without a port. A long one may have brackets around it, as in a URL (RFC 3986, 3.2.2).
fn bare_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let long: Ipv6Addr = text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    Some(IpAddr::V6(long).to_canonical())
}

struct Relay<'a> {
    settings: &'a Settings,
    store: Store,
}

impl Relay<'_> {
    fn route(&self, id: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let query = Query::parse(&request.query).map_err(Refusal::BadQuery)?;
        let said = Said { request, query: &query };
        let method = said.method();
        if method == "OPTIONS" {
            return Ok(options(request, if id.is_empty() { METHODS_OF_ALL } else { METHODS }));
        }
        if id.is_empty() {
            return match method.as_str() {
                "PUT" | "POST" => self.allocate(&said),
                _ => Err(Refusal::MethodNotAllowed(METHODS_OF_ALL)),
            };
        }
        match method.as_str() {
            "GET" => {
                let (party, timeout) = (self.party(id, &said)?.1, said.timeout(self.settings)?);
                self.receive(id, party, timeout, request)
            }
            "HEAD" => self.party(id, &said).map(|_| Reply::empty(Status::Ok)),
            "PUT" if said.peer_address().is_some() => self.permit(id, &said),
            "PUT" | "POST" => {
                let (party, timeout) = (self.party(id, &said)?.1, said.timeout(self.settings)?);
                let head = said.head(request.body.length);
                self.send(id, party, timeout, &head, request)
            }
            "DELETE" => self.delete(id, &said),
            _ => Err(Refusal::MethodNotAllowed(METHODS)),
        }
    }

    /// Locks a session that is not over.
    fn session(&self, id: &str) -> Result<(Duplex, DuplexRecord), Refusal> {
        let duplex = self.store.duplex(id)?.ok_or(Refusal::UnknownSession)?;
        let record = duplex.record().cloned().ok_or(Refusal::UnknownSession)?;
        if is_recent(duplex.touched()?, self.settings.pipe_lifetime) || duplex.is_in_use()? {
            Ok((duplex, record))
        } else {
            Err(Refusal::UnknownSession)
        }
    }

    /// Locks a session, and finds out who asks for it.
    fn party(&self, id: &str, said: &Said<'_, '_>) -> Result<(Duplex, Party), Refusal> {
        let (duplex, record) = self.session(id)?;
        if is_host(&record, said) {
            return Ok((duplex, Party::Host));
        }
        let is_guest = !record.is_secure || said.request.remote.is_some_and(|address| record.guest == Some(address));
        if is_guest { Ok((duplex, Party::Guest)) } else { Err(Refusal::NotTheGuest) }
    }

    fn as_host(&self, id: &str, said: &Said<'_, '_>) -> Result<(Duplex, DuplexRecord), Refusal> {
        let (duplex, record) = self.session(id)?;
        if is_host(&record, said) { Ok((duplex, record)) } else { Err(Refusal::NotTheHost) }
    }

    // ---- PUT /cama/session

    fn allocate(&self, said: &Said<'_, '_>) -> Result<Reply, Refusal> {
        let is_secure = said.is_secure()?;
        let (id, token) = (random()?, random()?);
        let record = DuplexRecord { token_hash: hash(&token), is_secure, guest: None, has_met: false };
        let limit = self.settings.max_pipes;
        self.store.new_duplex(&id, record, limit)?.ok_or(Refusal::TooManySessions(limit))?;
        Ok(Reply::empty(Status::Created)
            .header("Location", said.location(&id))
            .header("Set-Cookie", cookie(&id, &token, self.settings.pipe_lifetime, said))
            // A page of another origin sees no cookie, and cannot send one where browsers refuse those of third parties.
            .header("Token", token)
            .header("X-Type", if is_secure { "secure" } else { "basic" })
            .header("Cache-Control", "no-store"))
    }

    // ---- PUT /cama/session/ID with X-Peer-Address

    fn permit(&self, id: &str, said: &Said<'_, '_>) -> Result<Reply, Refusal> {
        let (mut duplex, record) = self.as_host(id, said)?;
        let address = said.peer_address().ok_or(Refusal::BadAddress)??;
        if !record.is_secure {
            return Err(Refusal::BasicSession);
        }
        let is_another = record.guest.is_some_and(|guest| guest != address);
        if is_another {
            // The one before may be waiting, or in the middle of something. Before the new one is named: where this fails, the
            // host tries again, and it is another one still.
            duplex.pipe(Party::Guest.receives()).send_receiver_away()?;
            duplex.pipe(Party::Guest.sends()).send_senders_away()?;
        }
        duplex.set_record(DuplexRecord { guest: Some(address), ..record })?;
        Ok(Reply::empty(Status::Ok))
    }

    /// Why somebody has lost his place.
    fn sent_away(&self, id: &str) -> Result<Refusal, Refusal> {
        Ok(if self.store.duplex(id)?.is_some() { Refusal::NotTheGuest } else { Refusal::Removed })
    }

    // ---- DELETE /cama/session/ID

    fn delete(&self, id: &str, said: &Said<'_, '_>) -> Result<Reply, Refusal> {
        let (duplex, _) = self.as_host(id, said)?;
        duplex.remove()?;
        Ok(Reply::empty(Status::Ok).header("Set-Cookie", cookie(id, "", Duration::ZERO, said)))
    }

    // ---- GET /cama/session/ID

    fn receive(&self, id: &str, party: Party, timeout: Duration, request: &Request<'_>) -> Result<Reply, Refusal> {
        let pipe = party.receives();
        let mut receiver = {
            let (duplex, _) = self.session(id)?;
            duplex.touch()?;
            duplex.pipe(pipe).receive()?.ok_or(Refusal::ReceiverThere)?
        };
        let (mut until, mut is_extended) = (Instant::now() + timeout, false);
        let head = loop {
            match receiver.head()? {
                Came::Head(head) => break head,
                Came::Left => {
                    let duplex = self.store.duplex(id)?.ok_or(Refusal::Removed)?;
                    duplex.pipe(pipe).receive_again(&mut receiver)?;
                    continue;
                }
                Came::Nothing => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = vec![PollFd::from_borrowed_fd(receiver.data(), PollFlags::IN)];
            fds.extend(receiver.wake().map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
            match request.client.wait(&fds, false, left) {
                Woken::HungUp => return Err(Refusal::HungUp),
                Woken::Stopped => return Err(Refusal::Stopping),
                Woken::Tick if left.is_zero() && receiver.is_taken() && !is_extended => {
                    // At the last moment; the head is on its way.
                    until = Instant::now() + Duration::from_secs(1);
                    is_extended = true;
                }
                Woken::Tick if left.is_zero() => return Err(Refusal::NobodyCame),
                Woken::Knock if receiver.is_gone() => return Err(self.sent_away(id)?),
                _ => {}
            }
        };
        let head: Head = serde_json::from_slice(&head).map_err(|error| store::Error::Io(error.into()))?;
        Ok(body_reply(head, receiver))
    }

    // ---- POST /cama/session/ID

    fn send(
        &self,
        id: &str,
        party: Party,
        timeout: Duration,
        head: &Head,
        request: &mut Request<'_>,
    ) -> Result<Reply, Refusal> {
        let pipe = party.sends();
        let place = {
            let (duplex, _) = self.session(id)?;
            duplex.touch()?;
            duplex.pipe(pipe).wait_to_send(MOST_SENDERS)?.ok_or(Refusal::TooManySenders)?
        };
        let head_bytes = serde_json::to_vec(head).map_err(|error| store::Error::Io(error.into()))?;
        let client = request.client;
        let until = Instant::now() + timeout;
        let mut feed = Feed::new(&mut request.body);
        let delivered = loop {
            let mut sender = self.meet(id, pipe, &place, client, until)?;
            // Without the body, which another receiver has to get if this one has not begun.
            if !sender.send_head(&head_bytes, b"") {
                continue;
            }
            let end = feed.send(&mut sender, Some(&place), client);
            if let End::Body(_) = end {
                transfer::settle(&mut sender);
            }
            let taken = sender.taken()?;
            let delivered = taken.unwrap_or(0);
            match end {
                // It had not even begun: another one may come.
                End::ReceiverLeft if taken.is_none() && feed.given() == 0 => {}
                End::ReceiverLeft | End::ReceiverStuck => break delivered,
                End::Removed => return Err(self.sent_away(id)?),
                End::HungUp => return Err(Refusal::HungUp),
                End::Stopped => return Err(Refusal::Stopping),
                End::Body(error) => return Err(Refusal::Body(error, delivered)),
            }
        };
        feed.drop_rest();
        drop(place);
        // The body is delivered, whatever becomes of this note.
        if let Err(error) = self.store.duplex(id).and_then(|duplex| duplex.map_or(Ok(()), |duplex| duplex.touch())) {
            error.log();
        }
        let delivered = delivered.to_string();
        // The second is for chunked bodies, but a web server may have made a whole one of those.
        Ok(Reply::empty(Status::Ok).header("X-Bytes-Delivered", delivered.clone()).header("X-Bytes-Relayed", delivered))
    }

    /// Waits for a receiver.
    fn meet(
        &self,
        id: &str,
        pipe: Direction,
        place: &Place,
        client: Client<'_>,
        until: Instant,
    ) -> Result<Sender, Refusal> {
        loop {
            let mut duplex = self.store.duplex(id)?.ok_or(Refusal::Removed)?;
            if let Some(sender) = duplex.pipe(pipe).take_receiver()? {
                // The two have each other, whatever becomes of this note.
                if let Err(error) = duplex.set_met() {
                    error.log();
                }
                return Ok(sender);
            }
            drop(duplex);
            let left = until.saturating_duration_since(Instant::now());
            match client.wait(&[PollFd::from_borrowed_fd(place.wake(), PollFlags::IN)], false, left) {
                Woken::HungUp => return Err(Refusal::HungUp),
                Woken::Stopped => return Err(Refusal::Stopping),
                Woken::Tick if left.is_zero() => return Err(Refusal::NobodyCame),
                Woken::Knock if place.is_gone() => return Err(self.sent_away(id)?),
                _ => {}
            }
        }
    }
}

/// The answer to a `GET`: the other's body, as it comes.
fn body_reply(head: Head, mut receiver: Receiver) -> Reply {
    let mut reply = Reply::empty(Status::Ok)
        .header("Content-Type", head.content_type.unwrap_or_else(|| "application/octet-stream".to_owned()))
        // no-transform: a proxy that compresses would hold the bytes back (RFC 9111, 5.2.2.6).
        .header("Cache-Control", "no-store, no-transform")
        // What strangers send is shown under the relay's origin: it must not run there.
        .header("X-Content-Type-Options", "nosniff")
        .header("Content-Security-Policy", "sandbox")
        // nginx passes it on as it comes.
        .header("X-Accel-Buffering", "no");
    for (name, value) in head.fields {
        reply = reply.header(name, value);
    }
    let content: Content = match head.length {
        Some(0) => {
            if let Err(error) = receiver.took(0) {
                error.log();
            }
            Content::Whole(Vec::new())
        }
        Some(length) => Content::Sized(length, Box::new(move |out| deliver(out, receiver, Some(length)))),
        None => Content::Stream(Box::new(move |out| deliver(out, receiver, None))),
    };
    Reply { content, ..reply }
}

fn deliver(out: &mut Outgoing<'_>, receiver: Receiver, length: Option<u64>) {
    transfer::deliver(out, receiver, length, Ending::Any);
}

fn is_host(record: &DuplexRecord, said: &Said<'_, '_>) -> bool {
    said.tokens().iter().any(|token| is_same(&hash(token), &record.token_hash))
}

fn hash(token: &str) -> String {
    BASE64URL.encode(Sha256::digest(token.as_bytes()))
}

/// Takes as long wherever they differ.
fn is_same(one: &str, other: &str) -> bool {
    let differences = one.bytes().zip(other.bytes()).fold(0, |differences, (a, b)| differences | (a ^ b));
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

/// 128 random bits, for a URL or a cookie.
fn random() -> Result<String, store::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| store::Error::Io(std::io::Error::other(error)))?;
    Ok(BASE64URL.encode(bytes))
}
