//! PTTH, HTTP backwards: a server behind a firewall is reached through the relay, which it asks for requests.
//!
#![doc = include_str!("ptth.md")]
//!
//! # In the code
//!
//! What is in a list of requests and in the head of an answer is in [`crate::ptth`].

use super::{options, page, store_status, with_cors};
use crate::clock::is_recent;
use crate::config::Settings;
use crate::gateway::{BodyError, Client, Content, Outgoing, Reply, Request, Status, Woken, digits};
use crate::ptth::{
    Fields, HEAD_FIELD, KEY_FIELD, MAX_FIELDS, METHOD_FIELD, Method, OPTIONS, PREFIX, RequestHead, ResponseHead,
    ServerName, Tripcode, Waiting, WireError, join_list,
};
use crate::store::files::backlog::{
    Answering, Backlog, Given, Heard, Listening, LockedBacklog, Question, RequestId, Standing,
};
use crate::store::files::pipe::{Came, LONGEST_HEAD, Receiver};
use crate::store::files::ptth::PtthServer;
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

/// How long a far end may have a request before it begins to answer; then it is given away again, within two [looks](LOOK),
/// but only once: all that passes may be repeated (RFC 9110, 9.2.2), but a far end may be unable to answer it.
const PATIENCE: Duration = Duration::from_secs(7);

/// How long it may take from there to the head of the answer, which is sent at once. Then the request is asked again:
/// whoever has taken it was killed.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// How often a client looks after its request: whether the far end that was woken for it has died of it, say.
const LOOK: Duration = Duration::from_secs(1);

/// The requests that one far end is given at once; others may come for more.
const MOST_GIVEN: usize = 32;

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

/// Removes what killed processes have left behind, and everything of a server that is not registered any more.
///
/// # Errors
/// When the data folder cannot be used; a later sweep tries again.
pub fn sweep(settings: &Settings, backlog: LockedBacklog) -> Result<(), store::Error> {
    let servers = Store::of(settings).ptth_servers()?;
    let is_in_use = backlog.is_in_use()?;
    match backlog.server() {
        Some(server) if servers.contains_key(server) => Ok(()),
        // Nobody can say whose it is. It is made anew once nobody uses it.
        None if is_in_use => Ok(()),
        _ => backlog.remove(),
    }
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
            let (seen, is_listening) = self.store.far_ends(name)?;
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

    /// Has a request wait for a far end, which has been given `times` already.
    fn put(&self, name: &ServerName, head: &RequestHead, times: u8) -> Result<(RequestId, Question), Refusal> {
        let (backlog, limit) = (self.store.backlog(name), self.settings.max_clients);
        let id = RequestId::fresh()?;
        let waiting = Waiting { id: id.as_str().to_owned(), head: head.clone() }.encode();
        let question = backlog.ask(&id, &waiting, times, limit)?.ok_or(Refusal::TooManyWait(limit))?;
        backlog.ring(&id);
        Ok((id, question))
    }

    /// Has a request wait again whose far end has taken it and left without a word: nobody can take what is left of it.
    fn put_again(
        &self,
        name: &ServerName,
        head: &RequestHead,
        question: &Question,
    ) -> Result<(RequestId, Question), Refusal> {
        if question.is_given_up()? {
            return Err(Refusal::BadAnswer("its far end broke off more than once"));
        }
        self.put(name, head, question.times_given()?)
    }

    /// Waits until the answer begins: its length and its head.
    fn wait_for_answer(
        &self,
        name: &ServerName,
        head: &RequestHead,
        client: Client<'_>,
    ) -> Result<(Vec<u8>, Receiver), Refusal> {
        let (mut id, mut question) = self.put(name, head, 0)?;
        let (mut until, mut is_extended) = (Instant::now() + ANSWER_TIME, false);
        let mut next_look = Instant::now() + LOOK;
        let mut stands = None;
        loop {
            let now = Instant::now();
            if now >= next_look {
                next_look = now + LOOK;
                stands = self.look_after(name, &id, &question, stands)?;
                if stands.is_none() {
                    (id, question) = self.put_again(name, head, &question)?;
                }
            }
            let receiver = &question.receiver;
            let mut fds = vec![PollFd::from_borrowed_fd(receiver.data(), PollFlags::IN)];
            fds.extend(receiver.wake().map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
            let left = until.saturating_duration_since(now);
            match client.wait(&fds, false, left.min(next_look.saturating_duration_since(now))) {
                Woken::HungUp => return Err(Refusal::HungUp),
                Woken::Stopped => return Err(Refusal::Stopping),
                Woken::Tick if left.is_zero() && !is_extended && question.standing()? == Standing::Begins => {
                    is_extended = true;
                    // At the last moment; the head is on its way.
                    until = Instant::now() + Duration::from_secs(1);
                }
                Woken::Tick if left.is_zero() => return Err(Refusal::NobodyAnswered),
                _ => {}
            }
            // Nobody knocks at its place otherwise. Whoever answers removes it too.
            let is_removed = question.receiver.hears();
            match question.receiver.head()? {
                Came::Head(head) => return Ok((head, question.begin())),
                Came::Left => {
                    (id, question) = self.put_again(name, head, &question)?;
                    stands = None;
                }
                Came::Nothing if is_removed => return Err(Refusal::Removed),
                Came::Nothing => {}
            }
        }
    }

    /// Sees to it that a request that nobody has is taken, and one that somebody keeps is given to another. Says how it
    /// stands and since when, which is known by looking often; `None` where it has to be asked again.
    fn look_after(
        &self,
        name: &ServerName,
        id: &RequestId,
        question: &Question,
        stood: Option<(Standing, Instant)>,
    ) -> Result<Option<(Standing, Instant)>, Refusal> {
        let standing = question.standing()?;
        let stands = stood.filter(|(stood, _)| *stood == standing).unwrap_or((standing, Instant::now()));
        let elapsed = stands.1.elapsed();
        match standing {
            Standing::Begins => return Ok(Some(stands).filter(|_| elapsed < HEAD_TIME)),
            Standing::Given if elapsed < PATIENCE => return Ok(Some(stands)),
            Standing::Given | Standing::Waiting => {}
        }
        if !self.store.ptth_servers()?.contains_key(name) {
            return Err(Refusal::Removed);
        }
        let backlog = self.store.backlog(name);
        if standing == Standing::Given {
            if question.is_given_up()? {
                // Its answer may still come.
                return Ok(Some(stands));
            }
            backlog.give_back(id)?;
        }
        backlog.ring(id);
        Ok(Some(stands))
    }

    // ---- GET /7ZSFUKGV/http_listen/NAME

    fn listen(&self, name: &str, request: &Request<'_>) -> Result<Reply, Refusal> {
        let client = request.client;
        let until = Instant::now() + LISTEN_TIME;
        if client.wait(&[], false, Duration::ZERO) == Woken::HungUp {
            return Err(Refusal::HungUp);
        }
        let (mut here, mut called_for) = (None, None);
        loop {
            // Each time: the key may have been withdrawn while its far end waits, and others have another one.
            let of_key = self.servers_of_key(request)?;
            let Some(name) = of_key.into_iter().find(|server| server.as_str() == name) else {
                drop(here);
                if let Ok(name) = self.registered(name) {
                    ring_if_any_waits(&self.store.backlog(&name));
                }
                return Err(Refusal::WrongKey);
            };
            let backlog = self.store.backlog(&name);
            let listening = match here.take() {
                Some(listening) => listening,
                None => backlog.listen()?,
            };
            let given = match called_for.take() {
                Some(id) => backlog.take_one(id, listening.asked_at())?.into_iter().collect(),
                // At first, once it listens so that none comes in between, and at last.
                None => backlog.take(MOST_GIVEN, listening.asked_at())?,
            };
            if given.len() == MOST_GIVEN {
                ring_if_any_waits(&backlog);
            }
            if !given.is_empty() || Instant::now() >= until {
                return Ok(self.give(&name, given));
            }
            match wait_to_hear(&listening, client, until)? {
                Heard::Nothing => here = Some(listening),
                Heard::Request(id) => (here, called_for) = (Some(listening), Some(id)),
                Heard::Gone => {}
            }
        }
    }

    /// The answer to a far end: its requests. They are given back when it has gone meanwhile.
    fn give(&self, name: &ServerName, given: Vec<Given>) -> Reply {
        if given.is_empty() {
            return Reply::empty(Status::NoContent).header("Cache-Control", "no-store");
        }
        let (ids, requests): (Vec<_>, Vec<_>) = given.into_iter().map(|given| (given.id, given.request)).unzip();
        let list = join_list(&requests);
        let length = list.len() as u64;
        let (store, name) = (self.store.clone(), name.clone());
        let produce = move |out: &mut Outgoing<'_>| {
            let is_written = write_all(out, &list);
            // What it has not read when it hangs up, it may have lost.
            let is_there = out.wait(&[], false, Duration::ZERO) != Woken::HungUp;
            if !(is_written && is_there)
                && let Err(error) = give_back(&store, &name, &ids)
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
        let mut answering = self.begin_answer(&names, &id)?;
        let length = request.body.length.unwrap_or(UNKNOWN_LENGTH);
        let client = request.client;
        let mut feed = Feed::new(&mut request.body);
        let is_sent = feed.send_head(&answering.sender, &[&length.to_be_bytes(), value.as_bytes()].concat());
        if let Err(error) = answering.forget_request() {
            // The client has its head all the same, and a sweep will find what is left.
            error.log();
        }
        if !is_sent {
            return Err(Refusal::ClientLeft);
        }
        if let Err(error) = decoded {
            return Err(Refusal::BadHead(error));
        }
        let sender = &mut answering.sender;
        let end = feed.send(sender, None, client);
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
            End::Removed => return Err(Refusal::Removed),
            End::HungUp => return Err(Refusal::HungUp),
            End::Stopped => return Err(Refusal::Stopping),
            End::Body(error) => return Err(Refusal::Body(error)),
        }
        Ok(Reply::json(Status::Ok, "{}"))
    }

    fn begin_answer(&self, names: &[ServerName], id: &RequestId) -> Result<Answering, Refusal> {
        for name in names {
            if let Some(answering) = self.store.backlog(name).answer(id)? {
                return Ok(answering);
            }
        }
        Err(Refusal::UnknownRequest)
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

/// Waits until there is something to hear, or the time is over.
fn wait_to_hear(here: &Listening, client: Client<'_>, until: Instant) -> Result<Heard, Refusal> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match client.wait(&[PollFd::from_borrowed_fd(here.fd(), PollFlags::IN)], false, left) {
            Woken::Stopped => return Err(Refusal::Stopping),
            Woken::HungUp => return Err(Refusal::HungUp),
            Woken::Knock => match here.hear() {
                Heard::Nothing => {}
                heard => return Ok(heard),
            },
            Woken::Tick | Woken::Writable => return Ok(Heard::Nothing),
        }
    }
}

/// Tells another far end of what still waits. Where that cannot be seen, its clients see to it a moment later.
fn ring_if_any_waits(backlog: &Backlog) {
    if let Err(error) = backlog.ring_if_any_waits() {
        error.log();
    }
}

/// Has requests wait again.
fn give_back(store: &Store, name: &ServerName, ids: &[RequestId]) -> Result<(), store::Error> {
    let backlog = store.backlog(name);
    for id in ids {
        backlog.give_back(id)?;
        backlog.ring(id);
    }
    Ok(())
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
