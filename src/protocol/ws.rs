//! The `WebSocket` protocol (RFC 6455) on a bus, with the application's [event handlers](crate::ws).
//!
#![doc = include_str!("ws.md")]
//!
//! # In the code
//!
//! A channel is the bus of the same name; `/ws` is the one without a name.

use super::bus::{self, Member};
use super::options;
use super::query::Query;
use crate::config::Settings;
use crate::gateway::{Content, Incoming, Outgoing, Reply, Request, Status, stop_signal};
use crate::refusal::Refusal;
use crate::sse;
use crate::store::buses::{BusName, Refused, User};
use crate::store::{self, Store};
use crate::syntax::is_token;
use crate::ws::link::{Heard, Link, is_close_code};
use crate::ws::program::{Fault, PATIENCE, Program};
use crate::ws::{self, Action, Event, Frame, Handler, Visitor, frames};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::value::RawValue;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const METHODS: &str = "GET, POST, OPTIONS";

/// Behind the key of a handshake, it makes the answer (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How long the other end may take to answer a close.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Where more than this waits for somebody to take it, nothing is added that can wait elsewhere.
const ENOUGH: usize = 256 * 1024;

/// A peer that says nothing to so many pings has gone.
const MOST_PINGS: u32 = 3;

/// A handler's lines in the log: a hundred a second, on average over ten.
const MOST_LINES: u64 = 1000;
const LOG_TIME: Duration = Duration::from_secs(10);

/// A message takes about so much of a bus besides itself, and to post it is some work for all who hear it.
const POST_SIZE: u64 = 100;

/// A line of a handler in the log has at most so many characters.
const LOG_SIZE: usize = 1000;

/// The name of the channel at `path`; `None` where no channel can be.
pub(super) fn name(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/ws")?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/').filter(|name| !name.contains('/')) }
}

/// Whether a request wants a WebSocket.
pub(super) fn is_asked_for(request: &Request<'_>) -> bool {
    has_token(request, "upgrade", "websocket")
}

/// Whether a client has asked for a WebSocket, even where a proxy or a web server on the way has taken `Upgrade` out.
pub(super) fn is_wanted(request: &Request<'_>) -> bool {
    is_asked_for(request) || (request.header)("sec-websocket-key").is_some()
}

/// Answers a request to a channel.
pub fn answer(settings: &Settings, request: &mut Request<'_>, name: &str) -> Reply {
    let reply = match request.method.as_str() {
        "GET" => open(settings, request, name),
        "POST" => post(settings, request, name),
        "OPTIONS" => Ok(options(request, METHODS)),
        _ => Err(method_not_allowed()),
    };
    reply.unwrap_or_else(Refusal::reply)
}

fn method_not_allowed() -> Refusal {
    Refusal::new(Status::MethodNotAllowed, "A channel knows GET, for a WebSocket, and POST, for its application.")
        .field("Allow", METHODS)
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

fn wrong_key() -> Refusal {
    Refusal::new(
        Status::Forbidden,
        "The key is not this channel's: uhst-relay notify --key CHANNEL prints it, for ?key=….",
    )
}

fn bad_request(sentence: &'static str) -> Refusal {
    Refusal::new(Status::BadRequest, sentence)
}

/// Whether a header field that is a list has this in it, in whatever case.
fn has_token(request: &Request<'_>, field: &str, token: &str) -> bool {
    (request.header)(field).is_some_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
}

// ---- POST ?key=

fn post(settings: &Settings, request: &mut Request<'_>, name: &str) -> Result<Reply, Refusal> {
    let query = Query::parse(&request.query)?;
    let name = BusName::new(name).ok_or_else(bus::bad_name)?;
    let given = query.get("key").and_then(crate::hex::decode).unwrap_or_default();
    // Compared in constant time.
    keyed(settings, &name)?.verify_slice(&given).map_err(|_| wrong_key())?;
    let body = request.body.read(settings.bus_message)?;
    let text = std::str::from_utf8(&body).map_err(|_| bad_request("The body is not UTF-8: send text, or JSON."))?;
    let id = bus::notify(settings, &name, &frames::to_bus(Frame::Text(text)))?;
    Ok(Reply::json(Status::Ok, format!(r#"{{"id":{id}}}"#)).header("Cache-Control", "no-store"))
}

fn keyed(settings: &Settings, name: &BusName) -> Result<Hmac<Sha256>, store::Error> {
    let secret = match &settings.jwt_secret {
        Some(secret) => secret.as_bytes().to_vec(),
        None => Store::of(settings).secret()?,
    };
    // HMAC takes a key of any length. The first line keeps it apart from all else that the secret signs.
    let mac = Hmac::<Sha256>::new_from_slice(&secret).map_err(|_| store::Error::BadSecret)?;
    Ok(mac.chain_update("notify\n").chain_update(name.as_str()))
}

fn channel(settings: &Settings, name: &str, length: usize) -> Result<BusName, String> {
    if length as u64 > settings.bus_message {
        return Err(format!("The message is longer than {} bytes (RELAY_BUS_MESSAGE).", settings.bus_message));
    }
    BusName::new(name).ok_or_else(|| bus::bad_name().to_string())
}

/// Gives a message of the application to everybody on a channel: to handlers as a `fifo` event.
///
/// # Errors
/// A sentence that says why it could not be.
pub fn notify(settings: &Settings, name: &str, text: &str) -> Result<u64, String> {
    let name = channel(settings, name, text.len())?;
    bus::notify(settings, &name, &frames::to_bus(Frame::Text(text)))
        .map_err(|refused| Refusal::from(refused).to_string())
}

/// The key with which an application may post to a channel: 64 hexadecimal digits.
///
/// # Errors
/// A sentence that says why there is none.
pub fn key(settings: &Settings, name: &str) -> Result<String, String> {
    let name = channel(settings, name, 0)?;
    let key = keyed(settings, &name).map_err(|error| error.to_string())?.finalize().into_bytes();
    Ok(crate::hex::encode(&key))
}

// ---- GET with an upgrade

fn open(settings: &Settings, request: &Request<'_>, name: &str) -> Result<Reply, Refusal> {
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
    // Before the 101, behind which nobody can be sent elsewhere, and before anything is made for him.
    let place = Place::take(is_program(settings), most).ok_or_else(|| too_many_handlers(most))?;
    let member = Member::enter(settings, &name)?;
    let visitor = visitor(request);
    let accept = BASE64.encode(Sha1::new().chain_update(&key).chain_update(GUID).finalize());
    let talk = move |input: Incoming<'_>, out: &mut Outgoing| {
        let _place = place;
        let handler = Mind::new(member.settings(), &visitor);
        Conversation::new(input, member, handler, out.is_own()).run(out, &visitor, &key);
    };
    Ok(Reply { content: Content::Upgrade(Box::new(talk)), ..Reply::empty(Status::SwitchingProtocols) }
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Accept", accept))
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

/// Whether a program is started for each connection.
fn is_program(settings: &Settings) -> bool {
    !ws::has_own_handler() && settings.ws_handler.first().is_some_and(|first| first != "echo")
}

/// How many connections of this process have a program of their own. Of a CGI process there is one.
static PROGRAMS: AtomicU64 = AtomicU64::new(0);

/// A connection's place among them, if it needs one.
struct Place(bool);

impl Place {
    /// `None` where there are `most` already.
    fn take(is_needed: bool, most: u64) -> Option<Self> {
        if is_needed && PROGRAMS.fetch_add(1, Ordering::Relaxed) >= most {
            PROGRAMS.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self(is_needed))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0 {
            PROGRAMS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Who decides what happens.
enum Mind {
    /// It does only what its client wants.
    BuiltIn(Box<dyn Handler>),
    /// The application's own, in Rust.
    Inside(Box<dyn Handler>),
    Program(Box<Program>),
    /// It has failed, and is told nothing any more.
    Lost(Option<Fault>),
}

impl Mind {
    fn new(settings: &Settings, visitor: &Visitor) -> Self {
        if let Some(own) = ws::own_handler() {
            return Self::Inside(own);
        }
        match settings.ws_handler.first().map(String::as_str) {
            None => Self::BuiltIn(Box::new(ws::Channel)),
            Some("echo") => Self::BuiltIn(Box::new(ws::Echo)),
            Some(_) => match Program::start(settings, &visitor.environment) {
                Ok(program) => Self::Program(Box::new(program)),
                Err(fault) => Self::Lost(Some(fault)),
            },
        }
    }

    fn program(&mut self) -> Option<&mut Program> {
        if let Self::Program(program) = self { Some(program) } else { None }
    }
}

/// The largest message that a client may send: without a handler, one that fits on the bus.
fn most(settings: &Settings, mind: &Mind) -> u64 {
    match mind {
        Mind::BuiltIn(_) if settings.ws_handler.is_empty() => settings.bus_message.min(settings.max_body),
        _ => settings.max_body,
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The handler has until then to decide.
    Authenticating(Instant),
    Open,
    /// A close is on its way, and an answer to it may come until then.
    Closing(Instant),
    /// The other end has closed: what is still to be written is written until then.
    Closed(Instant),
    Gone,
}

/// How much there was of something within a span of time.
struct Span {
    begun: Instant,
    count: u64,
}

impl Span {
    fn new() -> Self {
        Self { begun: Instant::now(), count: 0 }
    }

    /// Counts so many more. False where that makes more than `most` in `time`; they are not counted then.
    fn add(&mut self, count: u64, most: u64, time: Duration) -> bool {
        if self.begun.elapsed() >= time {
            *self = Self::new();
        }
        let is_within = self.count.saturating_add(count) <= most;
        self.count += if is_within { count } else { 0 };
        is_within
    }
}

/// A connection. One loop, one sleep: whatever can happen to it ends the same `poll`.
struct Conversation<'a> {
    link: Link<'a>,
    member: Member,
    mind: Mind,
    stage: Stage,
    /// Whether nothing can be read from the client any more.
    is_broken: bool,
    /// Whether the client has closed its half with words before it that were not heard yet.
    has_last_words: bool,
    said_goodbye: bool,
    /// The subprotocols that the client has offered, and the one that the relay or the handler has chosen.
    offered: Vec<String>,
    protocol: Option<String>,
    /// When the client has been heard last, and how often it was asked since.
    heard: Instant,
    pings: u32,
    next_ping: Instant,
    /// What had gone out when the last ping was due, if more was waiting that could not.
    stuck_at: Option<u64>,
    round: Duration,
    next_round: Instant,
    next_loop: Instant,
    /// What was posted for this connection, in bytes, and what its handler has said to the log, in lines.
    posted: Span,
    logged: Span,
}

impl<'a> Conversation<'a> {
    fn new(input: Incoming<'a>, member: Member, mind: Mind, is_own: bool) -> Self {
        let now = Instant::now();
        let settings = member.settings();
        let most = most(settings, &mind);
        Self {
            link: Link::new(input, most),
            mind,
            stage: Stage::Authenticating(now + PATIENCE),
            is_broken: false,
            has_last_words: false,
            said_goodbye: false,
            offered: Vec::new(),
            protocol: None,
            heard: now,
            pings: 0,
            next_ping: now + settings.keep_alive,
            stuck_at: None,
            round: sse::round(is_own),
            next_round: now + sse::round(is_own),
            next_loop: now + settings.ws_loop.unwrap_or(settings.keep_alive),
            posted: Span::new(),
            logged: Span::new(),
            member,
        }
    }

    fn run(mut self, out: &mut Outgoing, visitor: &Visitor, key: &str) {
        self.offered.clone_from(&visitor.protocols);
        if self.offered.is_empty() {
            self.link.begin(None);
        }
        // The client's order says what it would rather speak (RFC 6455, 4.1).
        let accepted = &self.member.settings().ws_protocols;
        self.protocol = self.offered.iter().find(|protocol| accepted.contains(protocol)).cloned();
        if let Mind::Lost(fault @ Some(_)) = &mut self.mind
            && let Some(fault) = fault.take()
        {
            self.fail(&fault);
        }
        let (channel, user) = (self.member.name().as_str().to_owned(), self.member.user().0);
        self.tell(&Event::Initialize);
        self.tell(&Event::Started { channel: &channel, user, time: self.member.since() });
        self.tell(&Event::Authenticate(visitor));
        let mut is_decided = false;
        loop {
            if !is_decided && !matches!(self.stage, Stage::Authenticating(_)) {
                is_decided = true;
                self.link.begin(self.protocol.as_deref());
                if self.stage == Stage::Open {
                    self.tell(&Event::Open { key });
                }
                // What has come with the handshake is here already, and nothing will wake us for it.
                self.hear();
            }
            self.look_at_the_clock(out);
            if self.stage == Stage::Open {
                self.pass_on_what_others_said();
            }
            if self.is_over(out) {
                break;
            }
            self.sleep(out);
        }
        self.say_goodbye(1006, "");
        self.tell(&Event::AfterClose);
        self.tell(&Event::Shutdown);
        self.tell(&Event::Finalize);
        if let Mind::Program(program) = std::mem::replace(&mut self.mind, Mind::Lost(None)) {
            program.finish(|action| match action {
                Action::Broadcast(..) | Action::Log(_) => self.act(action),
                // There is nobody to send to any more.
                _ => {}
            });
        }
    }

    /// Whether the connection has ended. What can still be written is written first.
    fn is_over(&self, out: &Outgoing) -> bool {
        match self.stage {
            Stage::Gone => true,
            _ if out.is_broken() => true,
            Stage::Closed(_) => self.link.unsent() == 0,
            Stage::Closing(_) => self.is_broken && self.link.unsent() == 0,
            Stage::Authenticating(_) | Stage::Open => false,
        }
    }

    // ---- time

    fn look_at_the_clock(&mut self, out: &Outgoing) {
        let now = Instant::now();
        match self.stage {
            Stage::Authenticating(until) if now >= until => self.fail(&Fault::Silent),
            Stage::Closing(until) | Stage::Closed(until) if now >= until => self.stage = Stage::Gone,
            _ => {}
        }
        if self.mind.program().is_some_and(|program| program.deaf_at().is_some_and(|at| now >= at)) {
            self.fail(&Fault::Deaf);
        }
        if now >= self.next_ping {
            let keep_alive = self.member.settings().keep_alive;
            self.next_ping = now + keep_alive;
            let is_stuck = self.link.unsent() > 0 && !out.is_writable();
            let stuck_at = std::mem::replace(&mut self.stuck_at, is_stuck.then(|| self.link.gone()));
            // Who was full and has let more through since has read some. What is written to one who was not full proves
            // nothing: the system takes it for him.
            let has_taken = stuck_at.is_some_and(|gone| gone < self.link.gone());
            // Who may not speak yet, or only when the handler has read, cannot answer.
            let is_kept_waiting = !self.is_listening() && !self.link.has_to_write();
            if self.heard + keep_alive > now || has_taken || is_kept_waiting {
                self.pings = 0;
            } else if self.pings >= MOST_PINGS {
                self.stage = Stage::Gone;
            } else {
                self.pings += 1;
                self.link.ping();
            }
        }
        if now >= self.next_loop {
            let settings = self.member.settings();
            self.next_loop = now + settings.ws_loop.unwrap_or(settings.keep_alive);
            // A program that has not read the last one needs no other.
            if self.stage == Stage::Open && self.mind.program().is_none_or(|program| program.unread() == 0) {
                self.tell(&Event::Loop);
            }
        }
        if now >= self.next_round {
            self.next_round = now + self.round;
            match self.member.tend(!out.is_own()) {
                Ok(true) => {}
                Ok(false) => self.close(1001, "The channel was removed."),
                Err(error) => error.log(),
            }
        }
    }

    /// How long nothing needs to be done by itself.
    fn time_left(&mut self) -> Duration {
        let now = Instant::now();
        let mut until = self.next_round.min(self.next_ping);
        if self.stage == Stage::Open {
            until = until.min(self.next_loop);
        }
        if let Stage::Authenticating(at) | Stage::Closing(at) | Stage::Closed(at) = self.stage {
            until = until.min(at);
        }
        // A program that was given up is waited for no more.
        if matches!(self.stage, Stage::Authenticating(_) | Stage::Open)
            && let Some(at) = self.mind.program().and_then(|program| program.deaf_at())
        {
            until = until.min(at);
        }
        let is_surely_woken = self.member.reader().is_surely_woken();
        let tick = sse::tick(self.member.settings(), is_surely_woken, self.round);
        until.saturating_duration_since(now).min(tick)
    }

    // ---- sleeping

    /// Whether what the client says can be taken now.
    fn is_listening(&mut self) -> bool {
        match self.stage {
            _ if self.is_broken => false,
            Stage::Open => {
                self.link.unsent() < ENOUGH && self.mind.program().is_none_or(|program| program.unread() < ENOUGH)
            }
            Stage::Closing(_) => true,
            Stage::Authenticating(_) | Stage::Closed(_) | Stage::Gone => false,
        }
    }

    /// Sleeps until something happens, and does what there is to do then.
    fn sleep(&mut self, out: &mut Outgoing) {
        let left = Timespec::try_from(self.time_left()).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let is_listening = self.is_listening();
        let is_open = self.stage == Stage::Open;
        let is_ending = matches!(self.stage, Stage::Closing(_) | Stage::Closed(_));
        let mut to_client = if self.link.has_to_write() { PollFlags::OUT } else { PollFlags::empty() };
        if !is_open && out.is_own() && !is_ending && !self.has_last_words {
            // Who has gone is not waited for; what an open one has sent is read first.
            to_client |= PollFlags::RDHUP;
        }
        let nothing = PollFlags::empty();
        let wanted = |is_wanted: bool| if is_wanted { PollFlags::IN } else { nothing };
        let may_read_bus = is_open && self.link.unsent() < ENOUGH;
        let link = self.link.fd();
        let wake = self.member.reader().fd().filter(|_| may_read_bus);
        let (output, input) = match &self.mind {
            Mind::Program(program) => (program.output(), program.input()),
            _ => (None, None),
        };
        let stop = stop_signal().filter(|_| !is_ending);
        // A place for each; what is not there is the client, for nothing.
        let or_client =
            |fd: Option<_>, flags| PollFd::from_borrowed_fd(fd.unwrap_or(out.fd()), fd.map_or(nothing, |_| flags));
        let mut fds = [
            PollFd::from_borrowed_fd(out.fd(), to_client),
            or_client(Some(link).filter(|_| is_listening), wanted(is_listening)),
            or_client(wake, PollFlags::IN),
            or_client(output, PollFlags::IN),
            or_client(input, PollFlags::OUT),
            or_client(stop, PollFlags::IN),
        ];
        let is_there = [true, is_listening, wake.is_some(), output.is_some(), input.is_some(), stop.is_some()];
        // Interrupted by a signal: the next one has it in the stop pipe.
        let _ = poll(&mut fds, Some(&left));
        let mut events = [PollFlags::empty(); 6];
        for (event, (fd, is_there)) in events.iter_mut().zip(fds.iter().zip(is_there)) {
            *event = if is_there { fd.revents() } else { PollFlags::empty() };
        }
        let [client, link, wake, output, input, stop] = events;
        if !stop.is_empty() {
            self.close(1001, "The relay is being stopped.");
        }
        if client.contains(PollFlags::OUT) {
            self.link.write(out);
        }
        if !input.is_empty()
            && let Mind::Program(program) = &mut self.mind
        {
            program.write();
        }
        if !output.is_empty() {
            self.do_what_the_program_wants();
        }
        if !link.is_empty() {
            self.link.is_readable();
            self.hear();
        } else if client.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            self.stage = Stage::Gone;
        } else if client.contains(PollFlags::RDHUP) {
            // He may have closed his half behind a message, and read on.
            self.has_last_words = self.link.has_more();
            if !self.has_last_words {
                self.stage = Stage::Gone;
            }
        }
        let looks_by_itself = wake.is_empty() && may_read_bus && !self.member.reader().is_surely_woken();
        if !wake.is_empty() || looks_by_itself {
            self.member.reader().hear();
        }
        // Our own socket nearly always takes it at once, and a write to it never blocks.
        if self.link.has_to_write() && out.is_own() {
            self.link.write(out);
        }
    }

    // ---- what comes in

    /// Takes what the client has said.
    fn hear(&mut self) {
        loop {
            let heard = self.link.hear();
            if self.link.has_read() {
                // A long message is one frame, which nothing can interrupt: no answer to a ping either.
                (self.heard, self.pings) = (Instant::now(), 0);
            }
            let is_open = self.stage == Stage::Open;
            match heard {
                Heard::Text(text) if is_open => {
                    self.tell(&Event::Read(Frame::Text(text.as_str())));
                    self.tell(&Event::Text { text: text.as_str() });
                }
                Heard::Binary(bytes) if is_open => self.tell(&Event::Read(Frame::Binary(&bytes))),
                // Behind our close nothing counts but the answer to it.
                Heard::Text(_) | Heard::Binary(_) | Heard::Control => {}
                Heard::Close(code, reason) => {
                    self.say_goodbye(code, &reason);
                    self.stage = Stage::Closed(Instant::now() + CLOSE_TIME);
                    return;
                }
                Heard::Broken(code, reason) => {
                    self.is_broken = true;
                    return self.close(code, reason);
                }
                Heard::Gone => return self.stage = Stage::Gone,
                Heard::Nothing => return,
            }
            if self.stage == Stage::Gone {
                return;
            }
        }
    }

    /// Gives the client what others have posted, and the handler what the application has.
    fn pass_on_what_others_said(&mut self) {
        while self.stage == Stage::Open
            && self.link.unsent() < ENOUGH
            && self.mind.program().is_none_or(|program| program.unread() < ENOUGH)
        {
            let (link, mut told) = (&mut self.link, Vec::new());
            let has_more = self.member.next(|message| {
                if User(message.user) == User::APPLICATION {
                    told.push(message.data.to_owned());
                } else {
                    frames::from_bus(message.data, |frame| link.send(frame));
                }
            });
            for data in told {
                // It was JSON when it was posted.
                if let Ok(data) = RawValue::from_string(data) {
                    self.tell(&Event::Fifo { data: &data });
                }
            }
            match has_more {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    error.log();
                    return self.close(1011, "The channel cannot be read.");
                }
            }
        }
    }

    // ---- the handler

    fn tell(&mut self, event: &Event<'_>) {
        let (channel, user) = (self.member.name().as_str(), self.member.user().0);
        match &mut self.mind {
            Mind::Lost(_) => {}
            Mind::Program(program) => program.tell(event),
            Mind::BuiltIn(handler) | Mind::Inside(handler) => {
                let told = catch_unwind(AssertUnwindSafe(|| ws::tell(&mut **handler, event, channel, user)));
                if let Ok(actions) = told {
                    for action in actions {
                        self.act(action);
                    }
                } else {
                    self.mind = Mind::Lost(None);
                    self.fail(&Fault::Panicked);
                }
            }
        }
    }

    fn do_what_the_program_wants(&mut self) {
        let Some(program) = self.mind.program() else { return };
        let (actions, fault) = program.read();
        for action in actions {
            self.act(action);
        }
        match fault {
            None => {}
            // Its last words may have been a close, and then it may go.
            Some(Fault::Died) if matches!(self.stage, Stage::Closing(_) | Stage::Closed(_)) => {
                self.mind = Mind::Lost(None);
            }
            Some(fault) => self.fail(&fault),
        }
    }

    fn act(&mut self, action: Action) {
        match (action, self.stage) {
            (Action::Accept(is_accepted, protocol), Stage::Authenticating(_)) => self.decide(is_accepted, protocol),
            (Action::Accept(..), _) => {}
            (Action::Send(text), _) => self.send(Frame::Text(&text)),
            (Action::SendBinary(bytes), _) => self.send(Frame::Binary(&bytes)),
            (Action::Broadcast(data, size), _) => self.broadcast(&data, size),
            (Action::Close(code, reason), _) if is_close_code(code) => self.close(code, &reason),
            (Action::Close(code, _), _) => self.fail(&Fault::Nonsense(format!("nobody may close with {code}"))),
            (Action::Log(line), _) => {
                if self.logged.add(1, MOST_LINES, LOG_TIME) {
                    self.log(&line);
                } else {
                    self.fail(&Fault::Floods);
                }
            }
        }
    }

    fn decide(&mut self, is_accepted: bool, protocol: Option<String>) {
        if let Some(protocol) = protocol {
            // RFC 6455, 4.2.2: no other may be answered.
            if !self.offered.contains(&protocol) {
                let why = "it chooses a subprotocol that its client does not offer";
                return self.fail(&Fault::Nonsense(why.to_owned()));
            }
            self.protocol = Some(protocol);
        }
        if is_accepted {
            self.stage = Stage::Open;
        } else {
            self.close(1008, "The application does not let you in.");
        }
    }

    fn send(&mut self, frame: Frame<'_>) {
        self.link.send(frame);
        let is_too_much = self.link.unsent() as u64 > self.member.settings().max_queue;
        if is_too_much && !matches!(self.mind, Mind::BuiltIn(_)) {
            self.fail(&Fault::Floods);
        }
    }

    fn broadcast(&mut self, data: &str, size: usize) {
        let settings = self.member.settings();
        if size as u64 > settings.bus_message {
            return self.close(1009, "The message is too long for the channel.");
        }
        // Less than half of what may be alive on the channel is one connection's, whenever it began to flood. The others must
        // not find it full because of that.
        let share = (settings.max_queue / 4).max(settings.bus_message + POST_SIZE);
        let cost = data.len() as u64 + POST_SIZE;
        if !self.posted.add(cost, share, settings.message_lifetime) {
            return match self.mind {
                Mind::BuiltIn(_) => self.close(1013, "This is more than your share of the channel (RELAY_MAX_QUEUE)."),
                _ => self.fail(&Fault::Floods),
            };
        }
        match self.member.post(data) {
            Ok(_) => {}
            Err(Refused::NotRegistered) => self.close(1008, "On this channel only registered users may post."),
            Err(Refused::Store(store::Error::TopicFull(_))) => {
                self.close(1013, "The channel is full: try again later.");
            }
            Err(Refused::Store(error)) => {
                error.log();
                self.close(1011, "The message could not be stored.");
            }
            Err(_) => self.close(1001, "The channel was removed."),
        }
    }

    /// Ends the connection because of its handler, and nothing else.
    fn fail(&mut self, fault: &Fault) {
        if matches!(self.stage, Stage::Authenticating(_) | Stage::Open) {
            self.log(&format!("{fault}; its connection is closed"));
        }
        self.close(1011, "The application has failed.");
        if matches!(fault, Fault::Died) {
            self.mind = Mind::Lost(None);
        }
    }

    /// A line in the log that says whose it is.
    fn log(&self, line: &str) {
        let is_harmless = |c: &char| !c.is_control();
        let line: String = line.chars().take(LOG_SIZE).filter(is_harmless).collect();
        say!("uhst-relay: WebSocket {} on {:?}: {line}", self.member.user().0, self.member.name().as_str());
    }

    // ---- the end

    /// Begins to close, unless that has begun.
    fn close(&mut self, code: u16, reason: &str) {
        if matches!(self.stage, Stage::Authenticating(_) | Stage::Open) {
            self.stage = Stage::Closing(Instant::now() + CLOSE_TIME);
            self.say_goodbye(code, reason);
            self.link.close(code, reason);
        }
    }

    /// Tells the handler that the connection is about to end, once.
    fn say_goodbye(&mut self, code: u16, reason: &str) {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            self.tell(&Event::BeforeClose { code, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Framing;
    use crate::store::files::test_dir::TestDir;
    use rustix::fd::AsFd as _;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, TryRecvError, channel};
    use tungstenite::protocol::Role;
    use tungstenite::{Message, WebSocket};

    const LONG: Duration = Duration::from_secs(60);

    /// Does what a closure says when a text comes, and tells what it is told.
    struct Told<F>(std::sync::mpsc::Sender<String>, F);

    impl<F: FnMut(&mut ws::Connection<'_>, &str)> Handler for Told<F> {
        fn authenticate(&mut self, _: &mut ws::Connection<'_>, _: &Visitor) -> bool {
            true
        }

        fn open(&mut self, _: &mut ws::Connection<'_>, _: &str) {
            let _ = self.0.send("open".to_owned());
        }

        fn text(&mut self, connection: &mut ws::Connection<'_>, text: &str) {
            let _ = self.0.send(text.to_owned());
            (self.1)(connection, text);
        }

        fn before_close(&mut self, _: &mut ws::Connection<'_>, code: u16, _: &str) {
            let _ = self.0.send(format!("before_close {code}"));
        }

        fn after_close(&mut self, _: &mut ws::Connection<'_>) {
            let _ = self.0.send("after_close".to_owned());
        }
    }

    /// A text as a client sends it, with a mask of zeros.
    fn text(text: &[u8]) -> Vec<u8> {
        let length = u64::try_from(text.len()).unwrap().to_be_bytes();
        [&[0x81, 0xff], &length[..], &[0; 4], text].concat()
    }

    /// A connection on a thread of its own, on a bus of its own, with a keep-alive of 0.2 s.
    struct Running {
        _dir: TestDir,
        client: Option<UnixStream>,
        told: Receiver<String>,
    }

    impl Running {
        /// `begun` has come with the handshake.
        fn start(begun: Vec<u8>, on_text: impl FnMut(&mut ws::Connection<'_>, &str) + Send + 'static) -> Self {
            let (sender, told) = channel();
            Self::with(told, begun, move || Mind::Inside(Box::new(Told(sender, on_text))))
        }

        fn with(told: Receiver<String>, begun: Vec<u8>, mind: impl FnOnce() -> Mind + Send + 'static) -> Self {
            let dir = TestDir::new();
            let settings = Settings {
                data_dir: dir.join("data"),
                keep_alive: Duration::from_millis(200),
                max_queue: 32 << 20,
                ..Settings::default()
            };
            let (ours, client) = UnixStream::pair().unwrap();
            client.set_read_timeout(Some(LONG)).unwrap();
            std::thread::spawn(move || {
                let member = Member::enter(&settings, &BusName::new("b").unwrap()).unwrap();
                let mut out = Outgoing::new(ours.as_fd(), Framing::UntilClose, false);
                let input = Incoming { fd: ours.as_fd(), begun, head: Vec::new() };
                Conversation::new(input, member, mind(), true).run(&mut out, &Visitor::default(), "key");
            });
            // The end of the head that there is not.
            (&client).read_exact(&mut [0; 2]).unwrap();
            Self { _dir: dir, client: Some(client), told }
        }

        fn client(&mut self) -> &mut UnixStream {
            self.client.as_mut().unwrap()
        }

        #[track_caller]
        fn is_told(&self, expected: &str) {
            assert_eq!(self.told.recv_timeout(LONG).as_deref(), Ok(expected));
        }
    }

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

    #[test]
    fn a_channels_key_is_its_own() {
        let settings = Settings { jwt_secret: Some("secret".to_owned()), ..Settings::default() };
        let one = key(&settings, "a").unwrap();
        assert_eq!(one.len(), 64);
        assert_ne!(one, key(&settings, "b").unwrap());
        assert!(key(&settings, "a/b").is_err());
    }

    /// Answers with 16 MiB, which no system keeps for a client.
    fn much(connection: &mut ws::Connection<'_>, _: &str) {
        for _ in 0..256 {
            connection.send(Frame::Binary(&vec![0; 64 * 1024]));
        }
    }

    #[test]
    fn who_reads_nothing_is_dropped_as_who_says_nothing() {
        for message in [&b"much"[..], b""] {
            let mut running = Running::start(Vec::new(), |connection, text| {
                if text == "much" {
                    much(connection, text);
                }
            });
            running.is_told("open");
            running.client().write_all(&text(message)).unwrap();
            running.is_told(std::str::from_utf8(message).unwrap());
            running.is_told("before_close 1006");
            running.is_told("after_close");
        }
    }

    /// Does `act` often for 2 s, several times as long as the silent one is given, and answers no ping. Tries again where
    /// the machine has held it up for long.
    fn lives_on(mut running: impl FnMut() -> Running, mut act: impl FnMut(&mut UnixStream)) {
        loop {
            let mut running = running();
            let (start, mut last, mut gap) = (Instant::now(), Instant::now(), Duration::ZERO);
            while start.elapsed() < Duration::from_secs(2) {
                act(running.client());
                gap = gap.max(last.elapsed());
                last = Instant::now();
                std::thread::sleep(Duration::from_millis(20));
            }
            match running.told.try_recv() {
                Err(TryRecvError::Empty) => return,
                told => assert!(gap > Duration::from_millis(300), "it was dropped: {told:?}"),
            }
        }
    }

    #[test]
    fn who_reads_slowly_is_not_dropped() {
        let start = || {
            let mut running = Running::start(Vec::new(), much);
            running.is_told("open");
            running.client().write_all(&text(b"much")).unwrap();
            running.is_told("much");
            running
        };
        // 6 MiB in all at most, so there is more all the time.
        lives_on(start, |client| _ = client.read(&mut vec![0; 64 * 1024]));
    }

    #[test]
    fn who_sends_slowly_is_not_dropped() {
        let start = || {
            let mut running = Running::start(Vec::new(), |_, _| {});
            running.is_told("open");
            running.client().write_all(&text(&[b'x'; 1000])[..20]).unwrap();
            running
        };
        lives_on(start, |client| _ = client.write(b"x"));
    }

    #[test]
    fn what_comes_with_the_handshake_is_heard_at_once() {
        let running = Running::start([text(b"one"), text(b"two")].concat(), |_, _| {});
        for told in ["open", "one", "two"] {
            running.is_told(told);
        }
    }

    #[test]
    fn last_words_are_heard_by_a_handler_that_takes_its_time() {
        for begun in [text(b"last words"), Vec::new()] {
            let dir = TestDir::new();
            let file = dir.join("told");
            let script = r#"sleep 0.3; echo '{"accept":true}'; cat >"$0"; true"#;
            let command = ["sh", "-c", script, file.to_str().unwrap()].map(str::to_owned).to_vec();
            let settings = Settings { ws_handler: command, ..Settings::default() };
            let is_behind = begun.is_empty();
            let mut running = Running::with(channel().1, begun, move || {
                Mind::Program(Box::new(Program::start(&settings, &[]).unwrap()))
            });
            if is_behind {
                running.client().write_all(&text(b"last words")).unwrap();
            }
            running.client().shutdown(std::net::Shutdown::Write).unwrap();
            let start = Instant::now();
            let told = loop {
                let told = std::fs::read_to_string(&file).unwrap_or_default();
                if told.contains("finalize") {
                    break told;
                }
                assert!(start.elapsed() < LONG, "{told}");
                std::thread::sleep(Duration::from_millis(10));
            };
            assert!(told.contains(r#""text":"last words""#), "{told}");
        }
    }

    #[test]
    fn a_handler_in_rust_that_fails_closes_its_own_connection() {
        for fault in ["panics", "sends", "broadcasts", "nonsense"] {
            let mut running = Running::start(Vec::new(), |connection, text| match text {
                "panics" => panic!("as it was told"),
                "sends" => (0..33).for_each(|_| connection.send(Frame::Binary(&vec![0; 1 << 20]))),
                "broadcasts" => (0..1000).for_each(|_| connection.broadcast(Frame::Binary(&[0; 10_000]))),
                _ => connection.close(1005, ""),
            });
            running.is_told("open");
            let mut client = WebSocket::from_raw_socket(running.client.take().unwrap(), Role::Client, None);
            client.send(Message::text(fault)).unwrap();
            running.is_told(fault);
            if fault != "panics" {
                running.is_told("before_close 1011");
            }
            if fault == "sends" {
                // The close comes behind all that, if there is time.
                continue;
            }
            let code = loop {
                match client.read() {
                    Ok(Message::Close(frame)) => break frame.map(|frame| u16::from(frame.code)),
                    // Where a socket has a time limit, a process that was held up for a moment is told so (signal(7)).
                    Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    other => _ = other.unwrap(),
                }
            };
            assert_eq!(code, Some(1011), "{fault}");
        }
    }

    #[test]
    fn a_span_counts_what_it_allows() {
        let mut span = Span::new();
        assert!(span.add(3, 4, LONG) && !span.add(2, 4, LONG) && span.add(1, 4, LONG) && !span.add(1, 4, LONG));
        assert!(!span.add(u64::MAX, 4, LONG));
        span.begun = Instant::now().checked_sub(LONG).unwrap();
        assert!(span.add(4, 4, LONG) && !span.add(1, 4, LONG));
    }
}
