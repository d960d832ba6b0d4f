//! The broadcast bus: whoever is on it posts JSON, and everybody else gets it, in one order. Users poll, or listen.
//!
#![doc = include_str!("bus.md")]
//!
//! # In the code
//!
//! A bus is made by a GET without a query, by a listener that names no user, by `?register` and `?create=signed`, and by whatever
//! the application says on it.

use super::cors::options;
use super::event_stream::{nothing, resume_id, stream_head};
use super::query::Query;
use crate::clock::now_ms;
use crate::config::Settings;
use crate::gateway::{Client, Content, Outgoing, Reply, Request, Status, Woken};
use crate::hex;
use crate::json::compact;
use crate::refusal::Refusal;
use crate::sse::{self, Events, Unsent};
use crate::store::buses::{BusEvent, BusName, Message, Proof, Refused, User};
use crate::store::made::Made;
use crate::store::sessions::Standing;
use crate::store::{self, BusReader, Store};
use crate::wake::Ready;
use std::io::Write as _;
use std::time::{Duration, Instant};

const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// A poll waits no longer than this: web servers and proxies give up on a silent program after a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(50);

/// An answer to a poll is made and given in pieces of about this size.
const PIECE: usize = 8 * 1024;

/// It is given for as long as messages live, but no longer and no shorter than this.
const SHORTEST_ANSWER: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: Duration = Duration::from_secs(600);

/// The name of the bus at `path`; `None` where no bus can be.
pub(super) fn name(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/bus")?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/').filter(|name| !name.contains('/')) }
}

/// Answers a request to a bus.
pub async fn answer(settings: &'static Settings, request: &mut Request<'_>, name: &str) -> Reply {
    let desk = Desk { settings, store: Store::of(settings) };
    match desk.route(request, name).await.unwrap_or_else(Refusal::reply) {
        // A poll is a GET, and the next one is another matter.
        reply @ Reply { content: Content::Whole(_), .. } => reply.header("Cache-Control", "no-store"),
        stream => stream,
    }
}

// ---- what is refused

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::UnknownBus => {
                Self::new(Status::NotFound, "There is no such bus, or not any more: GET without a query makes it.")
            }
            Refused::UnknownUser => unknown_user(),
            Refused::NotRegistered => {
                Self::new(Status::Forbidden, "On this bus only registered users may post: POST to ?register first.")
            }
            Refused::NotSigned => Self::new(
                Status::Forbidden,
                "A registered user's post must be signed: add &n=… and &signature=…, see the manual of the bus, src/protocol/bus.md.",
            ),
            Refused::WrongSignature => Self::new(
                Status::Forbidden,
                "The signature is not this user's: it is the HMAC-SHA256, in hexadecimal digits, of NAME, user and n, each with a line end, and the body.",
            ),
            Refused::StaleNumber(last) => Self::new(
                Status::Forbidden,
                format!("The n is used up: it must be larger than at this user's last post, {last}. Sign again."),
            ),
            Refused::IsOpen => Self::new(
                Status::Conflict,
                "The bus exists already, and is open to unsigned posts: choose another name.",
            ),
            Refused::TooManyBuses(limit) => Self::new(
                Status::ServiceUnavailable,
                format!("The relay has its {limit} buses (RELAY_MAX_BUSES): try again later."),
            ),
            Refused::TooManyUsers(limit) => Self::new(
                Status::ServiceUnavailable,
                format!("The bus has its {limit} registered users (RELAY_MAX_CLIENTS): try again later."),
            ),
            Refused::TooManyReaders(limit) => Self::new(
                Status::ServiceUnavailable,
                format!(
                    "{limit} readers wait at this bus already (RELAY_MAX_CLIENTS): try again later, or poll without waiting."
                ),
            ),
            Refused::SaysTooMuch(limit) => Self::new(
                Status::TooManyRequests,
                format!(
                    "The last quarter of the {limit} bytes of a bus (RELAY_MAX_QUEUE) is for those who have said little: wait until older messages are gone."
                ),
            ),
            Refused::Store(store::Error::TopicFull(full)) => {
                let sentence = format!(
                    "The bus holds its {} bytes (RELAY_MAX_QUEUE): wait until older messages are gone.",
                    full.limit
                );
                Self::from(store::Error::TopicFull(full)).worded(sentence)
            }
            Refused::Store(error) => error.into(),
        }
    }
}

fn unknown_user() -> Refusal {
    Refusal::new(Status::NotFound, "This bus does not know the user: GET without a query gives out a new one.")
}

pub(super) fn bad_name() -> Refusal {
    let sentence =
        format!("A bus cannot have this name: take up to {} bytes without control characters.", BusName::LONGEST);
    Refusal::new(Status::NotFound, sentence)
}

fn unknown_call() -> Refusal {
    Refusal::new(
        Status::NotFound,
        "There is no such call: GET without a query, GET ?id=…&user=… or POST ?user=…, with whole numbers.",
    )
}

/// The id after which somebody wants to read. What is no whole number makes no call that we know; one of any size does.
fn id(query: &Query) -> Result<Option<u64>, Refusal> {
    let Some(text) = query.get("id") else { return Ok(None) };
    text.parse().map(Some).or_else(|error: std::num::ParseIntError| match error.kind() {
        std::num::IntErrorKind::PosOverflow => Ok(Some(u64::MAX)),
        _ => Err(unknown_call()),
    })
}

/// A user's number. What is none is no user.
fn user(query: &Query) -> Result<Option<User>, Refusal> {
    query.get("user").map(|text| text.parse().map(User).map_err(|_| unknown_user())).transpose()
}

/// How long a poll waits: any number of seconds.
fn wait(query: &Query) -> Result<Duration, Refusal> {
    let Some(text) = query.get("wait") else { return Ok(Duration::ZERO) };
    match text.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 => Ok(Duration::from_secs_f64(seconds.min(LONGEST_WAIT.as_secs_f64()))),
        _ => Err(unknown_call()),
    }
}

/// Whether the list of media ranges names an event stream (RFC 9110, 12.5.1), as every `EventSource` does.
fn accepts_events(request: &Request<'_>) -> bool {
    (request.header)("accept").is_some_and(|accept| accept.to_ascii_lowercase().contains("text/event-stream"))
}

fn write_message(out: &mut Vec<u8>, Message { id, user, data, .. }: Message<'_>) {
    // Writing to memory does not fail.
    let _ = write!(out, r#"{{"id":{id},"user":{user},"data":{data}}}"#);
}

struct Desk {
    settings: &'static Settings,
    store: Store,
}

impl Desk {
    async fn route(&self, request: &mut Request<'_>, name: &str) -> Result<Reply, Refusal> {
        let method = request.method.as_str();
        if method == "OPTIONS" {
            return Ok(options(request, METHODS));
        }
        let name = &BusName::new(name).ok_or_else(bad_name)?;
        let query = &Query::parse(&request.query)?;
        let is_head = method == "HEAD";
        match method {
            "GET" | "HEAD" if query.has("events") || accepts_events(request) => {
                let after = match resume_id(query, request) {
                    Some(id) => Some(id),
                    None => id(query)?,
                };
                self.listen(name, after, user(query)?, is_head).await
            }
            "GET" | "HEAD" => match (id(query)?, user(query)?) {
                (Some(after), Some(user)) => {
                    let wait = if is_head { Duration::ZERO } else { wait(query)? };
                    self.poll(name, after, user, wait, request.client).await
                }
                (None, None) if request.query.is_empty() => self.greet(name, is_head).await,
                _ => Err(unknown_call()),
            },
            "POST" if query.has("register") => self.register(name).await,
            "POST" if query.get("create") == Some("signed") => self.create_signed(name).await,
            "POST" => match user(query)? {
                Some(user) => self.post(name, user, query, request).await,
                None => Err(unknown_call()),
            },
            _ => Err(unknown_call()),
        }
    }

    // ---- GET without a query

    async fn greet(&self, name: &BusName, is_head: bool) -> Result<Reply, Refusal> {
        if is_head {
            // Nobody is made who would not hear its number.
            return Ok(Reply { content: nothing(), ..Reply::json(Status::Ok, "") });
        }
        let (user, end) = self.store.greet(name, self.settings).await?;
        Ok(Reply::json(Status::Ok, format!(r#"{{"user":{},"id":{end}}}"#, user.0)))
    }

    // ---- GET ?id=&user=

    async fn poll(
        &self,
        name: &BusName,
        after: u64,
        user: User,
        wait: Duration,
        client: &mut dyn Client,
    ) -> Result<Reply, Refusal> {
        let mut reader = self.store.read(name, after, user, self.settings).await?;
        let mut array = vec![b'['];
        let mut has_more = take_some(&mut reader, &mut array).await?;
        if array.len() == 1 && !wait.is_zero() {
            reader.wait_for_more(self.settings).await?;
            has_more = self.await_message(&mut reader, &mut array, wait, client).await?;
        }
        if !has_more {
            array.push(b']');
            return Ok(Reply::json(Status::Ok, array));
        }
        // What is older than that by then is dead.
        let time = self.settings.message_lifetime.clamp(SHORTEST_ANSWER, LONGEST_ANSWER);
        let rest = async move |out: &mut dyn Outgoing| give(out, reader, array, time).await;
        Ok(Reply { content: Content::Stream(Box::new(|out| Box::pin(rest(out)))), ..Reply::json(Status::Ok, "") }
            .header("Cache-Control", "no-store"))
    }

    /// Sleeps until there is a message, the time is up, or the client has gone. Whether there is more than it has taken.
    async fn await_message(
        &self,
        reader: &mut BusReader,
        array: &mut Vec<u8>,
        wait: Duration,
        client: &mut dyn Client,
    ) -> Result<bool, store::Error> {
        let until = Instant::now() + wait;
        loop {
            // First of all: what was posted before there was somebody to knock for.
            let has_more = take_some(reader, array).await?;
            let left = until.saturating_duration_since(Instant::now());
            if !array.ends_with(b"[") || left.is_zero() {
                return Ok(has_more);
            }
            let tick = sse::tick(self.settings, reader.is_surely_woken(), sse::ROUND);
            let woken = client.wait(&mut [&mut reader.wake()], false, left.min(tick)).await;
            match woken {
                Woken::HungUp | Woken::Stopped => return Ok(false),
                Woken::Knock | Woken::Tick | Woken::Writable => reader.hear(),
            }
        }
    }

    // ---- GET ?events

    async fn listen(
        &self,
        name: &BusName,
        after: Option<u64>,
        user: Option<User>,
        is_head: bool,
    ) -> Result<Reply, Refusal> {
        if is_head {
            if let Some(user) = user {
                self.store.check_user(name, user, self.settings).await?;
            }
            return Ok(Reply { content: nothing(), ..stream_head() });
        }
        let reader = self.store.subscribe(name, after, user, self.settings).await?;
        let settings = self.settings;
        let stream = async move |out: &mut dyn Outgoing| {
            // Where it really begins: a client that comes back with an id that no message has reached yet would begin later.
            let mut unsent = Unsent::after(reader.after());
            sse::feed(out, &mut Stream { reader, settings }, &mut unsent, settings).await;
        };
        Ok(Reply { content: Content::Events(Box::new(|out| Box::pin(stream(out)))), ..stream_head() })
    }

    // ---- POST ?user=

    async fn post(
        &self,
        name: &BusName,
        user: User,
        query: &Query,
        request: &mut Request<'_>,
    ) -> Result<Reply, Refusal> {
        // Everybody knows this number: whoever is somewhere else does not hold its user up with a body that does not come.
        let from = request.remote;
        request.client.turn_of(|| format!("{} {from:?} {}", user.0, name.as_str())).await;
        let body = request.body.read(self.settings.bus_message).await?;
        let no_body = || Refusal::new(Status::BadRequest, "There is no body: send one JSON value in UTF-8.");
        let data = compact(&body)?.ok_or_else(no_body)?;
        let n: Option<u64> = query.get("n").and_then(|n| n.parse().ok());
        // What is no signature is nobody's.
        let signature = query.get("signature").map(|signature| hex::decode(signature).unwrap_or_default());
        let signed = n.map(|n| [format!("{}\n{}\n{n}\n", name.as_str(), user.0).as_bytes(), &body].concat());
        let proof = match (n, &signed, &signature) {
            (Some(n), Some(signed), Some(signature)) => Some(Proof { n, signed, signature }),
            _ => None,
        };
        let id = self.store.post(name, user, proof, &data, self.settings).await?;
        Ok(Reply::json(Status::Ok, format!(r#"{{"user":{},"id":{id}}}"#, user.0)))
    }

    // ---- POST ?register, ?create=signed

    async fn register(&self, name: &BusName) -> Result<Reply, Refusal> {
        let (user, end, key) = self.store.register_user(name, self.settings).await?;
        Ok(Reply::json(Status::Ok, format!(r#"{{"user":{},"id":{end},"key":"{key}"}}"#, user.0)))
    }

    async fn create_signed(&self, name: &BusName) -> Result<Reply, Refusal> {
        let is_new = self.store.make_signed_bus(name, self.settings).await?;
        Ok(Reply::json(if is_new { Status::Created } else { Status::Ok }, "{}"))
    }
}

/// Gives some of what there is next to `array`, whose beginning is there or written. Whether there is more.
#[cfg_attr(not(feature = "redis"), allow(clippy::unused_async, reason = "nothing is waited for there"))]
async fn take_some(reader: &mut BusReader, array: &mut Vec<u8>) -> Result<bool, store::Error> {
    let mut has_more = true;
    while has_more && array.len() < PIECE {
        // It would make relay.cgi larger.
        #[cfg(feature = "redis")]
        reader.fetch().await?;
        has_more = add_next(reader, array)?;
    }
    Ok(has_more)
}

/// The same with what was fetched.
fn add_next(reader: &mut BusReader, array: &mut Vec<u8>) -> Result<bool, store::Error> {
    reader.next(|heard| {
        // A poll that comes too late sees it by the numbers.
        let BusEvent::Message(message) = heard else { return };
        if array.last() != Some(&b'[') {
            array.push(b',');
        }
        write_message(array, message);
    })
}

/// Gives a whole array from this piece of it on: as fast as the client takes it, but for no longer than there is time.
async fn give(out: &mut dyn Outgoing, mut reader: BusReader, mut array: Vec<u8>, time: Duration) {
    out.give_time(time);
    let (until, mut has_more) = (Instant::now() + time, true);
    loop {
        let mut rest = &array[..];
        while !rest.is_empty() {
            match out.wait(&mut [], true, until.saturating_duration_since(Instant::now())).await {
                Woken::Writable => rest = &rest[out.write(&rest[..rest.len().min(PIECE)])..],
                Woken::HungUp => return,
                Woken::Tick => return out.cut(),
                // Whoever is being given something gets it.
                Woken::Knock | Woken::Stopped => {}
            }
        }
        if !has_more {
            return;
        }
        array.clear();
        has_more = match take_some(&mut reader, &mut array).await {
            Ok(has_more) => has_more,
            Err(error) => {
                error.log();
                return out.cut();
            }
        };
        if !has_more {
            array.push(b']');
        }
    }
}

/// Posts to a bus as the application that the relay belongs to, and makes the bus if it is missing. The message's id.
///
/// # Errors
/// When it cannot be posted.
pub(super) async fn notify(settings: &Settings, name: &BusName, data: &str) -> Result<u64, Refused> {
    Store::of(settings).notify(name, data, settings).await
}

/// Somebody who stays on a bus: it posts as one user and hears all others, on whatever connection.
pub(super) struct Member {
    settings: &'static Settings,
    name: BusName,
    user: User,
    /// In ms since 1970: it hears what is said from then on.
    since: u64,
    reader: BusReader,
}

impl Member {
    /// A fresh user of the bus, who hears what comes from now on. The bus is made if it is missing.
    pub(super) async fn enter(settings: &'static Settings, name: &BusName) -> Result<Self, Refused> {
        let (user, reader) = Store::of(settings).enter(name, settings).await?;
        // Not before it was there.
        let since = now_ms() + 1;
        Ok(Self { settings, name: name.clone(), user, since, reader })
    }

    pub(super) fn settings(&self) -> &'static Settings {
        self.settings
    }

    pub(super) fn name(&self) -> &BusName {
        &self.name
    }

    pub(super) fn user(&self) -> User {
        self.user
    }

    /// In ms since 1970: it hears what is said from then on, and none of what was said long before.
    pub(super) fn since(&self) -> u64 {
        self.since
    }

    /// What others have posted.
    pub(super) fn reader(&mut self) -> &mut BusReader {
        &mut self.reader
    }

    /// Fetches what others have posted next, where it has to be waited for.
    #[cfg(feature = "redis")]
    pub(super) fn fetch(&mut self) -> impl Future<Output = Result<(), store::Error>> {
        self.reader.fetch()
    }

    /// Gives what others have posted next to `take`; false when there is no more for now.
    pub(super) fn next(&mut self, mut take: impl FnMut(Message<'_>)) -> Result<bool, store::Error> {
        self.reader.next(|heard| {
            if let BusEvent::Message(message) = heard {
                take(message);
            }
        })
    }

    /// Posts a JSON value in one line.
    pub(super) async fn post(&self, data: &str) -> Result<u64, Refused> {
        Store::of(self.settings).say(&self.name, self.user, data, self.settings).await
    }

    /// To be called every [few seconds](sse::ROUND). What has become of the bus.
    pub(super) fn tend(&mut self) -> impl Future<Output = Result<Standing, store::Error>> {
        self.reader.tend(self.settings)
    }
}

/// A bus as an event stream.
struct Stream {
    reader: BusReader,
    settings: &'static Settings,
}

impl Events for Stream {
    fn wake(&self) -> Option<Ready<'_>> {
        self.reader.wake()
    }

    fn is_surely_woken(&self) -> bool {
        self.reader.is_surely_woken()
    }

    fn hear(&mut self) -> bool {
        self.reader.hear();
        // There is a place for every reader.
        false
    }

    fn write_next(&mut self, out: &mut Vec<u8>) -> impl Future<Output = Result<bool, store::Error>> + Send {
        self.reader.fetch_next(|heard| match heard {
            BusEvent::Lost(id) => sse::write_event(out, id, "lost", "{}"),
            BusEvent::Message(message) => Made::write(message.made, out, |out| {
                // Writing to memory does not fail.
                let _ = write!(out, "id: {}\ndata: ", message.id);
                write_message(out, message);
                out.extend_from_slice(b"\n\n");
            }),
        })
    }

    /// What a reader has been given is not its to remember.
    async fn delivered(&mut self) -> Result<(), store::Error> {
        Ok(())
    }

    async fn standing(&mut self) -> Result<Standing, store::Error> {
        Ok(Standing::Listening)
    }

    fn tend(&mut self) -> impl Future<Output = Result<Standing, store::Error>> + Send {
        self.reader.tend(self.settings)
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
}
