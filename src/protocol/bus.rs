//! The broadcast bus: whoever is on it posts JSON, and everybody else gets it, in one order. Users poll, or listen.
//!
#![doc = include_str!("bus.md")]
//!
//! # In the code
//!
//! A bus is made by a GET without a query, by a listener that names no user, by `?register` and `?create=signed`, and by whatever
//! the application says on it.

use super::query::{NotUtf8, Query};
use super::{options, resume_id, store_status, stream_head};
use crate::clock::{is_recent, now_ms};
use crate::config::Settings;
use crate::gateway::{BodyError, Client, Content, Outgoing, Reply, Request, Status, Woken};
use crate::hex;
use crate::json::{BadJson, compact};
use crate::sse::{self, Care, Events, Given, Unsent};
use crate::store::files::UNUSED_TIME;
use crate::store::files::bus::{Bell, Bus, BusName, BusReader, Message, Registered, User};
use crate::store::files::mailbox::Standing;
use crate::store::{self, Store};
use hmac::{Hmac, Mac};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::BorrowedFd;
use sha2::Sha256;
use std::fmt;
use std::io::Write as _;
use std::time::{Duration, Instant};

const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// A poll waits no longer than this: web servers and proxies give up on a silent program after a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(50);

/// A bus without a record may be one that is being made.
const MAKING_TIME: Duration = Duration::from_secs(10);

/// The name of the bus at `path`; `None` where no bus can be.
pub(super) fn name(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/bus")?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/').filter(|name| !name.contains('/')) }
}

/// Answers a request to a bus.
pub fn answer(settings: &Settings, request: &mut Request<'_>, name: &str) -> Reply {
    let desk = Desk { settings, store: Store::of(settings) };
    match desk.route(request, name).unwrap_or_else(Refusal::reply) {
        // A poll is a GET, and the next one is another matter.
        reply @ Reply { content: Content::Whole(_), .. } => reply.header("Cache-Control", "no-store"),
        stream => stream,
    }
}

/// Removes what is dead on a bus, and the bus itself when nobody has used it for its lifetime.
///
/// # Errors
/// When the data folder cannot be used; a later sweep tries again.
pub fn sweep(settings: &Settings, mut bus: Bus) -> Result<(), store::Error> {
    let is_unused = bus.is_unused()?;
    let lifetime = match (bus.is_made(), is_unused && !bus.is_special()) {
        (false, _) => MAKING_TIME,
        (true, true) => settings.bus_lifetime.min(UNUSED_TIME),
        (true, false) => settings.bus_lifetime,
    };
    let message_is_kept = !is_unused && bus.last_message()?.is_some_and(|at| is_recent(at, settings.message_lifetime));
    if is_recent(bus.touched()?, lifetime) || (bus.is_made() && message_is_kept) {
        // Whoever is away may come for the messages as long as there are any.
        bus.tidy(settings.message_lifetime, settings.bus_lifetime.max(settings.message_lifetime))
    } else {
        bus.remove()
    }
}

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    BadQuery(NotUtf8),
    BadName,
    UnknownCall,
    UnknownBus,
    UnknownUser,
    NotRegistered,
    NotSigned,
    WrongSignature,
    StaleNumber(u64),
    IsOpen,
    TooManyBuses(u64),
    TooManyUsers(u64),
    TooManyReaders(u64),
    SaysTooMuch(u64),
    BadJson(BadJson),
    NoBody,
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
            Self::BadQuery(_) | Self::BadJson(_) | Self::NoBody => Status::BadRequest,
            Self::BadName | Self::UnknownCall | Self::UnknownBus | Self::UnknownUser => Status::NotFound,
            Self::NotRegistered | Self::NotSigned | Self::WrongSignature | Self::StaleNumber(_) => Status::Forbidden,
            Self::IsOpen => Status::Conflict,
            Self::TooManyBuses(_) | Self::TooManyUsers(_) | Self::TooManyReaders(_) => Status::ServiceUnavailable,
            Self::SaysTooMuch(_) => Status::TooManyRequests,
            Self::Body(error) => error.status(),
            Self::Store(error) => store_status(error),
        }
    }

    fn reply(self) -> Reply {
        crate::refusal::Refusal::from(self).reply()
    }
}

impl From<Refusal> for crate::refusal::Refusal {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Store(store::Error::QueueFull(_)) => Self::new(refusal.status(), refusal.to_string()),
            Refusal::Store(error) => error.into(),
            _ => Self::new(refusal.status(), refusal.to_string()),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadQuery(error) => error.fmt(f),
            Self::BadName => write!(
                f,
                "A bus cannot have this name: take up to {} bytes without control characters.",
                BusName::LONGEST
            ),
            Self::UnknownCall => f.write_str(
                "There is no such call: GET without a query, GET ?id=…&user=… or POST ?user=…, with whole numbers.",
            ),
            Self::UnknownBus => f.write_str("There is no such bus, or not any more: GET without a query makes it."),
            Self::UnknownUser => {
                f.write_str("This bus does not know the user: GET without a query gives out a new one.")
            }
            Self::NotRegistered => f.write_str("On this bus only registered users may post: POST to ?register first."),
            Self::NotSigned => {
                f.write_str("A registered user's post must be signed: add &n=… and &signature=…, see the manual of the bus, src/protocol/bus.md.")
            }
            Self::WrongSignature => f.write_str(
                "The signature is not this user's: it is the HMAC-SHA256, in hexadecimal digits, of NAME, user and n, each with a line end, and the body.",
            ),
            Self::StaleNumber(last) => {
                write!(f, "The n is used up: it must be larger than at this user's last post, {last}. Sign again.")
            }
            Self::IsOpen => f.write_str("The bus exists already, and is open to unsigned posts: choose another name."),
            Self::TooManyBuses(limit) => {
                write!(f, "The relay has its {limit} buses (RELAY_MAX_BUSES): try again later.")
            }
            Self::TooManyUsers(limit) => {
                write!(f, "The bus has its {limit} registered users (RELAY_MAX_CLIENTS): try again later.")
            }
            Self::TooManyReaders(limit) => write!(
                f,
                "{limit} readers wait at this bus already (RELAY_MAX_CLIENTS): try again later, or poll without waiting."
            ),
            Self::SaysTooMuch(limit) => write!(
                f,
                "The last quarter of the {limit} bytes of a bus (RELAY_MAX_QUEUE) is for those who have said little: wait until older messages are gone."
            ),
            Self::BadJson(error) => error.fmt(f),
            Self::NoBody => f.write_str("There is no body: send one JSON value in UTF-8."),
            Self::Body(error) => error.fmt(f),
            Self::Store(store::Error::QueueFull(full)) => {
                write!(f, "The bus holds its {} bytes (RELAY_MAX_QUEUE): wait until older messages are gone.", full.limit)
            }
            Self::Store(error) => error.fmt(f),
        }
    }
}

/// The id behind which somebody wants to read. What is no whole number makes no call that we know; one of any size does.
fn id(query: &Query) -> Result<Option<u64>, Refusal> {
    let Some(text) = query.get("id") else { return Ok(None) };
    text.parse().map(Some).or_else(|error: std::num::ParseIntError| match error.kind() {
        std::num::IntErrorKind::PosOverflow => Ok(Some(u64::MAX)),
        _ => Err(Refusal::UnknownCall),
    })
}

/// A user's number. What is none is no user.
fn user(query: &Query) -> Result<Option<User>, Refusal> {
    query.get("user").map(|text| text.parse().map(User).map_err(|_| Refusal::UnknownUser)).transpose()
}

/// How long a poll waits: any number of seconds.
fn wait(query: &Query) -> Result<Duration, Refusal> {
    let Some(text) = query.get("wait") else { return Ok(Duration::ZERO) };
    match text.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 => Ok(Duration::from_secs_f64(seconds.min(LONGEST_WAIT.as_secs_f64()))),
        _ => Err(Refusal::UnknownCall),
    }
}

/// Whether the list of media ranges names an event stream (RFC 9110, 12.5.1), as every `EventSource` does.
fn accepts_events(request: &Request<'_>) -> bool {
    (request.header)("accept").is_some_and(|accept| accept.to_ascii_lowercase().contains("text/event-stream"))
}

fn write_message(out: &mut Vec<u8>, Message { id, user, data }: Message<'_>) {
    // Writing to memory does not fail.
    let _ = write!(out, r#"{{"id":{id},"user":{user},"data":{data}}}"#);
}

struct Desk<'a> {
    settings: &'a Settings,
    store: Store,
}

impl Desk<'_> {
    fn route(&self, request: &mut Request<'_>, name: &str) -> Result<Reply, Refusal> {
        let method = request.method.as_str();
        if method == "OPTIONS" {
            return Ok(options(request, METHODS));
        }
        let name = &BusName::new(name).ok_or(Refusal::BadName)?;
        let query = &Query::parse(&request.query).map_err(Refusal::BadQuery)?;
        let is_head = method == "HEAD";
        match method {
            "GET" | "HEAD" if query.has("events") || accepts_events(request) => {
                let after = match resume_id(query, request) {
                    Some(id) => Some(id),
                    None => id(query)?,
                };
                self.listen(name, after, user(query)?, is_head)
            }
            "GET" | "HEAD" => match (id(query)?, user(query)?) {
                (Some(after), Some(user)) => {
                    let wait = if is_head { Duration::ZERO } else { wait(query)? };
                    self.poll(name, after, user, wait, request.client)
                }
                (None, None) if request.query.is_empty() => self.greet(name, is_head),
                _ => Err(Refusal::UnknownCall),
            },
            "POST" if query.has("register") => self.register(name),
            "POST" if query.get("create") == Some("signed") => self.create_signed(name),
            "POST" => match user(query)? {
                Some(user) => self.post(name, user, query, request),
                None => Err(Refusal::UnknownCall),
            },
            _ => Err(Refusal::UnknownCall),
        }
    }

    // ---- GET without a query

    fn greet(&self, name: &BusName, is_head: bool) -> Result<Reply, Refusal> {
        if is_head {
            // Nobody is made who would not hear his number.
            return Ok(Reply { content: Content::Stream(Box::new(|_| ())), ..Reply::json(Status::Ok, "") });
        }
        let mut bus = self.bus_or_new(name)?;
        let user = bus.new_user()?;
        Ok(Reply::json(Status::Ok, format!(r#"{{"user":{},"id":{}}}"#, user.0, bus.end()?)))
    }

    // ---- GET ?id=&user=

    fn poll(
        &self,
        name: &BusName,
        after: u64,
        user: User,
        wait: Duration,
        client: Client<'_>,
    ) -> Result<Reply, Refusal> {
        let mut reader = {
            let bus = self.bus_of(name, user)?;
            bus.reader(after, Some(user), self.settings.message_lifetime)?
        };
        let mut array = Vec::new();
        take_all(&mut reader, &mut array)?;
        if array.is_empty() && !wait.is_zero() {
            self.wake(&self.bus_of(name, user)?, &mut reader)?;
            self.await_message(&mut reader, &mut array, wait, client)?;
        }
        array.insert(0, b'[');
        array.push(b']');
        Ok(Reply::json(Status::Ok, array))
    }

    /// Sleeps until there is a message, the time is up, or the client has gone.
    fn await_message(
        &self,
        reader: &mut BusReader,
        array: &mut Vec<u8>,
        wait: Duration,
        client: Client<'_>,
    ) -> Result<(), store::Error> {
        let until = Instant::now() + wait;
        loop {
            // First of all: what was posted before there was somebody to knock for.
            take_all(reader, array)?;
            let left = until.saturating_duration_since(Instant::now());
            if !array.is_empty() || left.is_zero() {
                return Ok(());
            }
            let tick = sse::tick(self.settings, reader.is_surely_woken(), sse::ROUND);
            let knock = reader.fd().map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN));
            match client.wait(knock.as_slice(), false, left.min(tick)) {
                Woken::HungUp | Woken::Stopped => return Ok(()),
                Woken::Knock | Woken::Tick | Woken::Writable => reader.hear(),
            }
        }
    }

    // ---- GET ?events

    fn listen(
        &self,
        name: &BusName,
        after: Option<u64>,
        except: Option<User>,
        is_head: bool,
    ) -> Result<Reply, Refusal> {
        let bus = match except {
            Some(user) => self.bus_of(name, user)?,
            None if is_head => return Ok(Reply { content: Content::Stream(Box::new(|_| ())), ..stream_head() }),
            None => self.bus_or_new(name)?,
        };
        if is_head {
            return Ok(Reply { content: Content::Stream(Box::new(|_| ())), ..stream_head() });
        }
        let after = match after {
            Some(id) => id,
            None => bus.end()?,
        };
        let mut reader = bus.reader(after, except, self.settings.message_lifetime)?;
        self.wake(&bus, &mut reader)?;
        drop(bus);
        let (settings, name) = (self.settings.clone(), name.clone());
        let stream = move |out: &mut Outgoing| {
            let desk = Desk { store: Store::of(&settings), settings: &settings };
            let mut listening = Listening { desk: &desk, name: &name, user: except, sweeps: !out.is_own() };
            // Where it really begins: a client that comes back with an id that no message has reached yet would begin later.
            let mut unsent = Unsent::after(reader.after());
            sse::feed(out, &mut Feed(reader), &mut unsent, &mut listening, &settings);
        };
        Ok(Reply { content: Content::Stream(Box::new(stream)), ..stream_head() })
    }

    fn wake(&self, bus: &Bus, reader: &mut BusReader) -> Result<(), Refusal> {
        let limit = self.settings.max_clients;
        if bus.wake(reader, limit)? { Ok(()) } else { Err(Refusal::TooManyReaders(limit)) }
    }

    // ---- POST ?user=

    fn post(&self, name: &BusName, user: User, query: &Query, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let body = request.body.read(self.settings.bus_message).map_err(Refusal::Body)?;
        let data = compact(&body).map_err(Refusal::BadJson)?.ok_or(Refusal::NoBody)?;
        let mut bus = self.bus_of(name, user)?;
        if user.is_registered() {
            let mut registered = bus.registered(user)?.ok_or(Refusal::UnknownUser)?;
            check_signature(name, user, query, &body, &mut registered)?;
        } else if bus.is_signed_only() {
            return Err(Refusal::NotRegistered);
        }
        let (limit, lifetime) = (self.settings.max_queue, self.settings.message_lifetime);
        if bus.is_crowded_by(user, limit, lifetime)? {
            return Err(Refusal::SaysTooMuch(limit));
        }
        let (id, bell): (u64, Bell) = bus.post(user, &data, limit, lifetime)?;
        drop(bus);
        drop(bell);
        Ok(Reply::json(Status::Ok, format!(r#"{{"user":{},"id":{id}}}"#, user.0)))
    }

    // ---- POST ?register, ?create=signed

    fn register(&self, name: &BusName) -> Result<Reply, Refusal> {
        let limit = self.settings.max_clients;
        let mut bus = self.bus_or_new(name)?;
        // What may fail first: the key is told only once.
        let end = bus.end()?;
        let (user, key) = bus.register(limit)?.ok_or(Refusal::TooManyUsers(limit))?;
        Ok(Reply::json(Status::Ok, format!(r#"{{"user":{},"id":{end},"key":"{key}"}}"#, user.0)))
    }

    fn create_signed(&self, name: &BusName) -> Result<Reply, Refusal> {
        let limit = self.settings.max_buses;
        let (bus, is_new) = self.store.bus_or_new(name, true, limit)?.ok_or(Refusal::TooManyBuses(limit))?;
        if !bus.is_signed_only() {
            return Err(Refusal::IsOpen);
        }
        self.keep(&bus)?;
        Ok(Reply::json(if is_new { Status::Created } else { Status::Ok }, "{}"))
    }

    // ---- who is who

    fn bus_or_new(&self, name: &BusName) -> Result<Bus, Refusal> {
        let limit = self.settings.max_buses;
        let (bus, _) = self.store.bus_or_new(name, false, limit)?.ok_or(Refusal::TooManyBuses(limit))?;
        self.keep(&bus)?;
        Ok(bus)
    }

    /// The bus, if it knows the user; both count as used.
    fn bus_of(&self, name: &BusName, user: User) -> Result<Bus, Refusal> {
        let bus = self.store.bus(name)?.ok_or(Refusal::UnknownBus)?;
        if !bus.knows(user)? {
            return Err(Refusal::UnknownUser);
        }
        self.keep(&bus)?;
        if let Some(registered) = bus.registered(user)?
            && !self.is_fresh(registered.touched()?)
        {
            registered.touch()?;
        }
        Ok(bus)
    }

    /// Makes a bus count as used, unless it was a while ago.
    fn keep(&self, bus: &Bus) -> Result<(), store::Error> {
        if self.is_fresh(bus.touched()?) { Ok(()) } else { bus.touch() }
    }

    fn is_fresh(&self, touched: std::time::SystemTime) -> bool {
        // Often enough for a bus that is forgotten soon where nobody reads it.
        is_recent(touched, self.settings.bus_lifetime.min(UNUSED_TIME) / 4)
    }
}

/// Gives what there is to `array`, without its brackets.
fn take_all(reader: &mut BusReader, array: &mut Vec<u8>) -> Result<(), store::Error> {
    while reader.next(|message| {
        if !array.is_empty() {
            array.push(b',');
        }
        write_message(array, message);
    })? {}
    Ok(())
}

/// Whether a post is the user's own: signed with his key, and no repetition. The number it is signed with is then used up,
/// whatever becomes of the post: a request that somebody has caught on its way is worth nothing.
fn check_signature(
    name: &BusName,
    user: User,
    query: &Query,
    body: &[u8],
    registered: &mut Registered,
) -> Result<(), Refusal> {
    let (Some(n), Some(signature)) = (query.get("n"), query.get("signature")) else { return Err(Refusal::NotSigned) };
    let n: u64 = n.parse().map_err(|_| Refusal::NotSigned)?;
    let signature = hex::decode(signature).ok_or(Refusal::WrongSignature)?;
    if !signs(registered.key(), name, user, n, body, &signature) {
        return Err(Refusal::WrongSignature);
    }
    if n <= registered.last() {
        return Err(Refusal::StaleNumber(registered.last()));
    }
    Ok(registered.set_last(n)?)
}

/// Compared in constant time.
fn signs(key: &str, name: &BusName, user: User, n: u64, body: &[u8], signature: &[u8]) -> bool {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return false };
    mac.update(format!("{}\n{}\n{n}\n", name.as_str(), user.0).as_bytes());
    mac.update(body);
    mac.verify_slice(signature).is_ok()
}

/// Posts to a bus as the application that the relay belongs to, and makes the bus if it is missing. The message's id.
///
/// # Errors
/// When it cannot be posted.
pub(super) fn notify(settings: &Settings, name: &BusName, data: &str) -> Result<u64, Refusal> {
    let desk = Desk { settings, store: Store::of(settings) };
    let mut bus = desk.bus_or_new(name)?;
    let (id, bell) = bus.post(User::APPLICATION, data, settings.max_queue, settings.message_lifetime)?;
    drop(bus);
    drop(bell);
    Ok(id)
}

/// Somebody who stays on a bus: he posts as one user and hears all others, on whatever connection.
pub(super) struct Member {
    settings: Settings,
    name: BusName,
    user: User,
    /// In ms since 1970: he hears what is said from then on.
    since: u64,
    feed: Feed,
}

/// Why a member's message was not posted.
#[derive(Debug)]
pub(super) enum Unposted {
    /// Only registered users may post.
    Signed,
    /// The bus, or its memory of the member, is gone.
    Gone,
    /// The store's reason.
    Store(store::Error),
}

impl Member {
    /// A fresh user of the bus, who hears what comes from now on. The bus is made if it is missing.
    pub(super) fn enter(settings: &Settings, name: &BusName) -> Result<Self, Refusal> {
        let desk = Desk { settings, store: Store::of(settings) };
        let mut bus = desk.bus_or_new(name)?;
        let user = bus.new_user()?;
        let mut reader = bus.reader(bus.end()?, Some(user), settings.message_lifetime)?;
        desk.wake(&bus, &mut reader)?;
        drop(bus);
        // Not before he was there.
        let since = now_ms() + 1;
        Ok(Self { settings: settings.clone(), name: name.clone(), user, since, feed: Feed(reader) })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn name(&self) -> &BusName {
        &self.name
    }

    pub(super) fn user(&self) -> User {
        self.user
    }

    /// In ms since 1970: he hears what is said from then on, and none of what was said long before.
    pub(super) fn since(&self) -> u64 {
        self.since
    }

    /// What others have posted.
    pub(super) fn reader(&mut self) -> &mut BusReader {
        &mut self.feed.0
    }

    /// Posts a JSON value in one line.
    pub(super) fn post(&self, data: &str) -> Result<(), Unposted> {
        let desk = Desk { settings: &self.settings, store: Store::of(&self.settings) };
        let mut bus = match desk.bus_of(&self.name, self.user) {
            Ok(bus) if bus.is_signed_only() => return Err(Unposted::Signed),
            Ok(bus) => bus,
            Err(Refusal::Store(error)) => return Err(Unposted::Store(error)),
            Err(_) => return Err(Unposted::Gone),
        };
        let (_, bell) = bus
            .post(self.user, data, self.settings.max_queue, self.settings.message_lifetime)
            .map_err(Unposted::Store)?;
        drop(bus);
        drop(bell);
        Ok(())
    }

    /// To be called every [few seconds](sse::ROUND), with whether to sweep a little. `Ok(false)` where the bus is gone.
    pub(super) fn round(&mut self, sweeps: bool) -> Result<bool, store::Error> {
        let desk = Desk { settings: &self.settings, store: Store::of(&self.settings) };
        let standing = self.feed.standing()?;
        Listening { desk: &desk, name: &self.name, user: Some(self.user), sweeps }.round(&mut self.feed, standing)
    }
}

/// A bus as an event stream.
struct Feed(BusReader);

impl Events for Feed {
    fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }

    fn is_surely_woken(&self) -> bool {
        self.0.is_surely_woken()
    }

    fn hear(&mut self) -> bool {
        self.0.hear();
        // There is a place for every reader.
        false
    }

    fn write_next(&mut self, out: &mut Vec<u8>) -> Result<Given, store::Error> {
        let mut count = 0;
        let has_more = self.0.next(|message| {
            count += 1;
            // Writing to memory does not fail.
            let _ = write!(out, "id: {}\ndata: ", message.id);
            write_message(out, message);
            out.extend_from_slice(b"\n\n");
        })?;
        Ok(Given { count, has_more })
    }

    /// What a reader has been given is not his to remember.
    fn delivered(&mut self) -> Result<(), store::Error> {
        Ok(())
    }

    fn has_grown_beyond(&self, _: u64) -> bool {
        false
    }

    fn standing(&mut self) -> Result<Standing, store::Error> {
        Ok(if self.0.has_lost_wake()? { Standing::Lost } else { Standing::Listening })
    }
}

/// What a stream does besides delivering.
struct Listening<'a> {
    desk: &'a Desk<'a>,
    name: &'a BusName,
    user: Option<User>,
    /// Whether it sweeps now and then: not where the process has a thread for that.
    sweeps: bool,
}

impl Care<Feed> for Listening<'_> {
    fn round(&mut self, feed: &mut Feed, standing: Standing) -> Result<bool, store::Error> {
        let Desk { settings, store } = self.desk;
        let lacks_wake = feed.0.lacks_wake();
        // A look without the lock, at what is nearly always the case. A registered user has a lifetime of his own.
        let is_kept = standing == Standing::Listening
            && !lacks_wake
            && !self.user.is_some_and(User::is_registered)
            && store.bus_touched(self.name)?.is_some_and(|touched| self.desk.is_fresh(touched));
        if !is_kept {
            let bus = match self.user {
                Some(user) => self.desk.bus_of(self.name, user),
                None => store.bus(self.name).map_err(Refusal::from).and_then(|bus| bus.ok_or(Refusal::UnknownBus)),
            };
            match bus {
                Ok(bus) => {
                    self.desk.keep(&bus)?;
                    if standing == Standing::Lost {
                        say!("uhst-relay: the FIFO of a running stream was removed; it is made anew");
                    }
                    if standing == Standing::Lost || lacks_wake {
                        bus.wake(&mut feed.0, u64::MAX)?;
                    }
                }
                Err(Refusal::Store(error)) => return Err(error),
                // The bus, or the user, is gone.
                Err(_) => return Ok(false),
            }
        }
        if self.sweeps && store.sweep_is_due() {
            super::sweep_some(settings);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_bus_is_at_one_name_below_bus() {
        for (path, expected) in [
            ("/bus", Some("")),
            ("/bus/", Some("")),
            ("/bus/a", Some("a")),
            ("/bus/..", Some("..")),
            ("/bus/a/b", None),
            ("/bus/a/", None),
            ("/bus//a", None),
            ("/buses", None),
            ("/BUS", None),
            ("bus", None),
        ] {
            assert_eq!(name(path), expected, "{path}");
        }
    }

    #[test]
    fn a_wait_has_an_end() {
        for (text, seconds) in
            [("", 0.0), ("wait=0.25", 0.25), ("wait=3", 3.0), ("wait=1e300", 50.0), ("wait=inf", 50.0)]
        {
            assert_eq!(wait(&query(text)).unwrap(), Duration::from_secs_f64(seconds), "{text}");
        }
        for text in ["wait=-1", "wait=x", "wait=NaN"] {
            assert!(wait(&query(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_signature_is_of_all_that_makes_a_post() {
        // By `printf 'news\n7\n1\n"hi"' | openssl dgst -sha256 -hmac key`.
        let signature = hex::decode("414d96bd3bb152e64350cf3adb5776e4a2d7717ca19b71c62a3bb0185b5cddc1").unwrap();
        let name = |text| BusName::new(text).unwrap();
        assert!(signs("key", &name("news"), User(7), 1, b"\"hi\"", &signature));
        assert!(!signs("yek", &name("news"), User(7), 1, b"\"hi\"", &signature));
        assert!(!signs("key", &name("new"), User(7), 1, b"\"hi\"", &signature));
        assert!(!signs("key", &name("news"), User(9), 1, b"\"hi\"", &signature));
        assert!(!signs("key", &name("news"), User(7), 2, b"\"hi\"", &signature));
        assert!(!signs("key", &name("news"), User(7), 1, b"\"ho\"", &signature));
        assert!(!signs("key", &name("news"), User(7), 1, b"\"hi\"", &signature[..31]));
        assert!(!signs("key", &name("news"), User(7), 1, b"\"hi\"", b""));
    }
}
