//! A connection, from its handshake to its end.

use super::handler::{ConnectionHandler, longest_message};
use crate::gateway::{Incoming, Outgoing, Switching, Woken};
use crate::protocol::bus::Member;
use crate::sse;
use crate::store;
use crate::store::buses::{Refused, User};
use crate::store::sessions::Standing;
use crate::wake::Ready;
use crate::ws::link::{Link, Received, is_close_code};
use crate::ws::program::{Fault, PATIENCE, Program};
use crate::ws::{self, Action, Event, Frame, Handler, Visitor, frames};
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long the other end may take to answer a close.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Where more than this waits for somebody to take it, nothing is added that can wait elsewhere.
const ENOUGH: usize = 256 * 1024;

/// A peer that says nothing to so many pings has gone.
const MOST_PINGS: u32 = 3;

/// A handler's lines in the log: a hundred a second, on average over ten.
const MOST_LINES: u64 = 1000;

const LOG_TIME: Duration = Duration::from_secs(10);

/// A message takes about so much of a bus besides itself, and to post it is some work for all that hear it.
const POST_SIZE: u64 = 100;

/// A line of a handler in the log has at most so many characters.
const LOG_SIZE: usize = 1000;

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

/// What a wait is over for: why, and which of the wakes that has come.
struct Came {
    woken: Woken,
    /// How far the connection was when the wait began.
    stage: Stage,
    bus: bool,
    output: bool,
    input: bool,
}

/// A connection. One loop, one wait: whatever can happen to it ends that.
pub(super) struct Conversation {
    link: Link,
    member: Member,
    handler: ConnectionHandler,
    stage: Stage,
    /// Whether nothing can be read from the client any more.
    is_broken: bool,
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
    /// What is to be posted once the handler has had its say.
    to_post: VecDeque<String>,
}

impl Conversation {
    pub(super) fn new(input: Box<dyn Incoming>, member: Member, handler: ConnectionHandler, is_own: bool) -> Self {
        let now = Instant::now();
        let settings = member.settings();
        let most = longest_message(settings, &handler);
        Self {
            link: Link::new(input, most),
            handler,
            stage: Stage::Authenticating(now + PATIENCE),
            is_broken: false,
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
            to_post: VecDeque::new(),
            member,
        }
    }

    /// Talks until the connection has ended.
    pub(super) async fn run(mut self, out: &mut dyn Switching, visitor: &Visitor, key: &str) {
        self.offered.clone_from(&visitor.protocols);
        if self.offered.is_empty() {
            self.link.begin(out, None);
        }
        // The client's order says what it would rather speak (RFC 6455, 4.1).
        let accepted = &self.member.settings().ws_protocols;
        self.protocol = self.offered.iter().find(|protocol| accepted.contains(protocol)).cloned();
        if let ConnectionHandler::Failed(fault @ Some(_)) = &mut self.handler
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
                self.link.begin(out, self.protocol.as_deref());
                if self.stage == Stage::Open {
                    self.tell(&Event::Open { key });
                }
                // What has come early is here already, and nothing will wake us for it.
                self.hear().await;
            }
            self.look_at_the_clock(out);
            self.tend().await;
            while self.has_room_for_others() {
                #[cfg(feature = "redis")]
                if let Err(error) = self.member.fetch().await {
                    self.note_unread(&error);
                    break;
                }
                if !self.pass_on_what_others_said() {
                    break;
                }
            }
            self.post().await;
            if self.is_over(out) {
                break;
            }
            let came = self.wait(out).await;
            self.take(&came, out).await;
        }
        self.say_goodbye(1006, "");
        self.tell(&Event::AfterClose);
        self.tell(&Event::Shutdown);
        self.tell(&Event::Finalize);
        if let ConnectionHandler::Program(program) =
            std::mem::replace(&mut self.handler, ConnectionHandler::Failed(None))
        {
            let act = |action| match action {
                Action::Broadcast(..) | Action::Log(_) => self.act(action),
                // There is nobody to send to any more.
                _ => {}
            };
            program.finish(act).await;
        }
        self.post().await;
    }

    /// Whether the connection has ended. What can still be written is written first.
    fn is_over(&self, out: &dyn Outgoing) -> bool {
        match self.stage {
            Stage::Gone => true,
            _ if out.is_broken() => true,
            Stage::Closed(_) => self.link.unsent() == 0,
            Stage::Closing(_) => self.is_broken && self.link.unsent() == 0,
            Stage::Authenticating(_) | Stage::Open => false,
        }
    }

    // ---- time

    fn look_at_the_clock(&mut self, out: &dyn Outgoing) {
        let now = Instant::now();
        match self.stage {
            Stage::Authenticating(until) if now >= until => self.fail(&Fault::Silent),
            Stage::Closing(until) | Stage::Closed(until) if now >= until => self.stage = Stage::Gone,
            _ => {}
        }
        if self.handler.program().is_some_and(|program| program.deaf_at().is_some_and(|at| now >= at)) {
            self.fail(&Fault::Deaf);
        }
        if now >= self.next_ping {
            let keep_alive = self.member.settings().keep_alive;
            self.next_ping = now + keep_alive;
            let is_stuck = self.link.unsent() > 0 && !out.is_writable();
            let stuck_at = std::mem::replace(&mut self.stuck_at, is_stuck.then(|| self.link.gone()));
            // A client that was full and has let more through since has read some. What is written to one that was not full
            // proves nothing: the system takes it for the client.
            let has_taken = stuck_at.is_some_and(|gone| gone < self.link.gone());
            // A client that may not speak yet, or only when the handler has read, cannot answer.
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
            if self.stage == Stage::Open && self.handler.program().is_none_or(|program| program.unread() == 0) {
                self.tell(&Event::Loop);
            }
        }
    }

    /// What has to be done for the member from time to time.
    async fn tend(&mut self) {
        let now = Instant::now();
        if now >= self.next_round {
            self.next_round = now + self.round;
            match self.member.tend().await {
                Ok(Standing::Over) => self.close(1001, "The channel was removed."),
                Ok(_) => {}
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
            && let Some(at) = self.handler.program().and_then(|program| program.deaf_at())
        {
            until = until.min(at);
        }
        let is_surely_woken = self.member.reader().is_surely_woken();
        let tick = sse::tick(self.member.settings(), is_surely_woken, self.round);
        until.saturating_duration_since(now).min(tick)
    }

    // ---- waiting

    /// Whether what the client says can be taken now.
    fn is_listening(&mut self) -> bool {
        match self.stage {
            _ if self.is_broken => false,
            Stage::Open => {
                self.link.unsent() < ENOUGH && self.handler.program().is_none_or(|program| program.unread() < ENOUGH)
            }
            Stage::Closing(_) => true,
            Stage::Authenticating(_) | Stage::Closed(_) | Stage::Gone => false,
        }
    }

    /// Waits until something happens.
    async fn wait(&mut self, out: &mut dyn Outgoing) -> Came {
        let (time_left, to_write) = (self.time_left(), self.link.has_to_write());
        let is_early = matches!(self.stage, Stage::Authenticating(_)) && self.link.has_room_for_early();
        let is_listening = self.is_listening();
        let hears_bus = self.stage == Stage::Open && self.link.unsent() < ENOUGH;
        let mut bus = self.member.reader().wake().filter(|_| hears_bus);
        let program = self.handler.program().map(|program| &*program);
        let mut output = program.and_then(Program::output).map(Ready::to_read);
        let mut input = program.and_then(Program::input).map(Ready::to_write);
        let mut client = (is_early || is_listening).then(|| self.link.wake());
        let woken = out.wait(&mut [&mut client, &mut bus, &mut output, &mut input], to_write, time_left).await;
        let is_ready = |ready: Option<Ready<'_>>| woken == Woken::Knock && ready.is_some_and(|ready| ready.is_ready());
        Came { woken, stage: self.stage, bus: is_ready(bus), output: is_ready(output), input: is_ready(input) }
    }

    /// Does what there is to do then.
    async fn take(&mut self, came: &Came, out: &mut dyn Outgoing) {
        if came.bus || !self.member.reader().is_surely_woken() {
            self.member.reader().hear();
        }
        if came.input
            && let Some(program) = self.handler.program()
        {
            program.write();
        }
        if came.output {
            self.do_what_the_program_wants();
        }
        match (came.woken, self.stage) {
            (Woken::Stopped, _) => self.close(1001, "The relay is being stopped."),
            (Woken::Knock, Stage::Authenticating(_)) if !self.link.read_early() => self.stage = Stage::Gone,
            // One that has just been let in is told first that it is open.
            (Woken::Knock, _) if came.stage == self.stage && self.is_listening() => _ = self.hear().await,
            // What it has said before it went is heard first.
            (Woken::HungUp, _) => {
                let hears = self.is_listening() && (came.stage != self.stage || self.hear().await);
                if !hears {
                    self.stage = Stage::Gone;
                }
            }
            _ => {}
        }
        if self.link.has_to_write() && (came.woken == Woken::Writable || out.is_writable()) {
            self.link.write(out);
        }
    }

    // ---- what comes in

    /// Takes what the client has said: what came early, and what is read at once. Whether there was anything.
    async fn hear(&mut self) -> bool {
        self.link.let_read();
        let mut has_come = false;
        while self.stage != Stage::Gone {
            let heard = self.link.hear();
            if self.link.has_read() {
                has_come = true;
                // A long message is one frame, which nothing can interrupt: no answer to a ping either.
                (self.heard, self.pings) = (Instant::now(), 0);
            }
            let is_open = self.stage == Stage::Open;
            match heard {
                Received::Text(text) if is_open => {
                    self.tell(&Event::Read(Frame::Text(text.as_str())));
                    self.tell(&Event::Text { text: text.as_str() });
                }
                Received::Binary(bytes) if is_open => self.tell(&Event::Read(Frame::Binary(&bytes))),
                // After our close nothing counts but the answer to it.
                Received::Text(_) | Received::Binary(_) | Received::Control => {}
                Received::Close(code, reason) => {
                    self.say_goodbye(code, &reason);
                    self.stage = Stage::Closed(Instant::now() + CLOSE_TIME);
                    break;
                }
                Received::Broken(code, reason) => {
                    self.is_broken = true;
                    self.close(code, reason);
                    break;
                }
                Received::Gone => self.stage = Stage::Gone,
                Received::Nothing => break,
            }
            self.post().await;
        }
        has_come
    }

    /// Whether there is room for what others have posted.
    fn has_room_for_others(&mut self) -> bool {
        self.stage == Stage::Open
            && self.link.unsent() < ENOUGH
            && self.handler.program().is_none_or(|program| program.unread() < ENOUGH)
    }

    /// Gives the client what others have posted, and the handler what the application has, of what there is next. Whether there
    /// is more. Inlined, it would make relay.cgi larger.
    #[inline(never)]
    fn pass_on_what_others_said(&mut self) -> bool {
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
        has_more.unwrap_or_else(|error| {
            self.note_unread(&error);
            false
        })
    }

    /// What others have posted cannot be read.
    fn note_unread(&mut self, error: &store::Error) {
        error.log();
        // One that passes is looked for again within a round.
        if !error.passes() {
            self.close(1011, "The channel cannot be read.");
        }
    }

    // ---- the handler

    fn tell(&mut self, event: &Event<'_>) {
        let (channel, user) = (self.member.name().as_str(), self.member.user().0);
        let tell =
            |handler: &mut dyn Handler| catch_unwind(AssertUnwindSafe(|| ws::tell(handler, event, channel, user)));
        let told = match &mut self.handler {
            ConnectionHandler::Failed(_) => return,
            ConnectionHandler::Program(program) => return program.tell(event),
            ConnectionHandler::BuiltIn(handler) => tell(&mut **handler),
            ConnectionHandler::Own(handler) => crate::workers::blocking(|| tell(&mut **handler)),
        };
        if let Ok(actions) = told {
            for action in actions {
                self.act(action);
            }
        } else {
            self.handler = ConnectionHandler::Failed(None);
            self.fail(&Fault::Panicked);
        }
    }

    fn do_what_the_program_wants(&mut self) {
        let Some(program) = self.handler.program() else { return };
        let (actions, fault) = program.read();
        for action in actions {
            self.act(action);
        }
        match fault {
            None => {}
            // Its last words may have been a close, and then it may go.
            Some(Fault::Died) if matches!(self.stage, Stage::Closing(_) | Stage::Closed(_)) => {
                self.handler = ConnectionHandler::Failed(None);
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
            (Action::Broadcast(data, size), _) => self.broadcast(data, size),
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
        if is_too_much && !matches!(self.handler, ConnectionHandler::BuiltIn(_)) {
            self.fail(&Fault::Floods);
        }
    }

    fn broadcast(&mut self, data: String, size: usize) {
        let settings = self.member.settings();
        if size as u64 > settings.bus_message {
            return self.close(1009, "The message is too long for the channel.");
        }
        // Less than half of what may be alive on the channel is one connection's, whenever it began to flood. The others must
        // not find it full because of that.
        let share = (settings.max_queue / 4).max(settings.bus_message + POST_SIZE);
        let cost = data.len() as u64 + POST_SIZE;
        if !self.posted.add(cost, share, settings.message_lifetime) {
            return match self.handler {
                ConnectionHandler::BuiltIn(_) => {
                    self.close(1013, "This is more than your share of the channel (RELAY_MAX_QUEUE).");
                }
                _ => self.fail(&Fault::Floods),
            };
        }
        self.to_post.push_back(data);
    }

    /// Posts what the handler has broadcast.
    async fn post(&mut self) {
        while let Some(data) = self.to_post.pop_front() {
            match self.member.post(&data).await {
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
    }

    /// Ends the connection because of its handler, and nothing else.
    fn fail(&mut self, fault: &Fault) {
        if matches!(self.stage, Stage::Authenticating(_) | Stage::Open) {
            self.log(&format!("{fault}; its connection is closed"));
        }
        self.close(1011, "The application has failed.");
        if matches!(fault, Fault::Died) {
            self.handler = ConnectionHandler::Failed(None);
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
mod tests;
