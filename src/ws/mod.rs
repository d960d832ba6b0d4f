//! Application event handlers of the `WebSocket` protocol: what an application sees of a connection, and does on it.
//!
//! A handler is told twelve events, in this order:
//!
//! | event | when |
//! | --- | --- |
//! | `initialize`, `started` | the connection is there; nobody knows whose it is |
//! | `authenticate` | the handler decides whether to take it; only this one must be written |
//! | `open` | it was taken |
//! | `read`, then `text` if it is text | a message has come from the client |
//! | `fifo` | a message has come from the application, through [`notify`](crate::protocol::ws::notify) |
//! | `loop` | from time to time |
//! | `before_close`, `after_close` | the connection is about to end, and has ended, however it did |
//! | `shutdown`, `finalize` | nothing comes any more |
//!
//! There is a handler of its own for each connection, so that one that fails takes nobody else with it. It is written in
//! Rust, as a [`Handler`] that [`handle_with`] makes known before the relay runs, or as a [program] in any language
//! (`RELAY_WS_HANDLER`) that is told the same events.

pub(crate) mod frames;
pub(crate) mod link;
pub mod pipe;
pub mod program;

pub use frames::Frame;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::OnceLock;

/// The client that has opened a connection, before it is known whether it may.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Visitor {
    /// The cookies of its request, by name.
    pub cookies: BTreeMap<String, String>,
    /// Its browser, as that calls itself.
    pub user_agent: String,
    /// Where it is; `None` where it has come through a UNIX socket.
    pub remote_address: Option<IpAddr>,
    /// The origin of the page that opened the connection; empty where no page did.
    pub origin: String,
    /// The query of the connection's URL, raw: applications put a ticket there.
    pub query: String,
    /// The subprotocols that its page would speak, the best first (`Sec-WebSocket-Protocol`).
    pub protocols: Vec<String>,
    /// What a CGI program would find in its environment for this request. Nothing of the relay's own.
    #[serde(skip)]
    pub environment: Vec<(&'static str, String)>,
}

/// What happens to a connection. A program is told it as JSON in one line, `{"event":"text","text":"…"}`.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are the methods of Handler")]
pub enum Event<'a> {
    Initialize,
    Started { channel: &'a str, user: u64, time: u64 },
    Authenticate(&'a Visitor),
    Open { key: &'a str },
    Read(Frame<'a>),
    Text { text: &'a str },
    Fifo { data: &'a RawValue },
    Loop,
    BeforeClose { code: u16, reason: &'a str },
    AfterClose,
    Shutdown,
    Finalize,
}

/// What a handler wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// And the subprotocol that is to be spoken, if the handler chooses it.
    Accept(bool, Option<String>),
    Send(String),
    SendBinary(Vec<u8>),
    /// What the bus is to hold, and how many bytes the handler gave for it.
    Broadcast(String, usize),
    Close(u16, String),
    Log(String),
}

/// A connection, as a handler sees it: what it asks for is done as soon as it returns.
#[derive(Debug)]
pub struct Connection<'a> {
    channel: &'a str,
    user: u64,
    protocol: Option<String>,
    actions: Vec<Action>,
}

impl Connection<'_> {
    /// The name of the channel it is on.
    #[must_use]
    pub fn channel(&self) -> &str {
        self.channel
    }

    /// Its number, which no other connection on this channel has or will have.
    #[must_use]
    pub fn user(&self) -> u64 {
        self.user
    }

    /// Chooses the subprotocol that is to be spoken, one of those that the [visitor](Visitor::protocols) has offered. To be
    /// called in [`Handler::authenticate`]; otherwise the first one that `RELAY_WS_PROTOCOLS` names is spoken, or none.
    pub fn choose_protocol(&mut self, protocol: &str) {
        self.protocol = Some(protocol.to_owned());
    }

    /// Sends a message to the client.
    pub fn send(&mut self, frame: Frame<'_>) {
        self.actions.push(match frame {
            Frame::Text(text) => Action::Send(text.to_owned()),
            Frame::Binary(bytes) => Action::SendBinary(bytes.to_owned()),
        });
    }

    /// Sends a message to all others on the channel: connections, listeners and pollers.
    pub fn broadcast(&mut self, frame: Frame<'_>) {
        self.actions.push(Action::Broadcast(frames::to_bus(frame), frame.len()));
    }

    /// Closes the connection with a code (RFC 6455, 7.4: 1000, or one from 3000 to 4999) and a reason.
    pub fn close(&mut self, code: u16, reason: &str) {
        self.actions.push(Action::Close(code, reason.to_owned()));
    }

    /// Writes a line to the relay's log.
    pub fn log(&mut self, line: &str) {
        self.actions.push(Action::Log(line.to_owned()));
    }
}

/// What an application does about a connection. Each method is an event; only [`Handler::authenticate`] must be written.
///
/// A method that panics ends its own connection with 1011 (where the program was built to abort, as `deploy/build` does,
/// the connection breaks), and so does one that sends, broadcasts or logs too much, or closes with a code that nobody may use.
/// One that does not return holds its own connection, and no other.
pub trait Handler: Send {
    /// Whether this visitor may have the connection. Otherwise it is closed with 1008. Where the visitor offers subprotocols,
    /// the answer to the handshake waits for this.
    fn authenticate(&mut self, connection: &mut Connection<'_>, visitor: &Visitor) -> bool;

    /// Before anything else.
    fn initialize(&mut self) {}

    /// The connection is there, its channel and its number are known.
    fn started(&mut self, _connection: &mut Connection<'_>) {}

    /// The visitor was let in. The key is the one of the handshake.
    fn open(&mut self, _connection: &mut Connection<'_>, _key: &str) {}

    /// A message has come from the client: text or binary.
    fn read(&mut self, _connection: &mut Connection<'_>, _frame: Frame<'_>) {}

    /// A text message has come from the client; [`Handler::read`] had it too.
    fn text(&mut self, _connection: &mut Connection<'_>, _text: &str) {}

    /// A message has come from the application: [`Frame::Text`], or [`Frame::Binary`] where it was posted as such.
    fn fifo(&mut self, _connection: &mut Connection<'_>, _frame: Frame<'_>) {}

    /// From time to time (`RELAY_WS_LOOP`).
    fn on_loop(&mut self, _connection: &mut Connection<'_>) {}

    /// The connection is about to end. 1006 is one that broke, 1005 one that was closed without a code.
    fn before_close(&mut self, _connection: &mut Connection<'_>, _code: u16, _reason: &str) {}

    /// The connection has ended. What is broadcast now still reaches the others.
    fn after_close(&mut self, _connection: &mut Connection<'_>) {}

    /// The handler is about to be dropped.
    fn shutdown(&mut self, _connection: &mut Connection<'_>) {}

    /// The very last event.
    fn finalize(&mut self) {}
}

/// Makes a handler for each connection.
pub type Factory = Box<dyn Fn() -> Box<dyn Handler> + Send + Sync>;

static FACTORY: OnceLock<Factory> = OnceLock::new();

/// Has every WebSocket handled by what `factory` makes, whatever `RELAY_WS_HANDLER` says. To be called once, before the
/// relay runs. False where it was called before.
pub fn handle_with(factory: impl Fn() -> Box<dyn Handler> + Send + Sync + 'static) -> bool {
    FACTORY.set(Box::new(factory)).is_ok()
}

/// The application's own handler for a new connection.
pub(crate) fn own_handler() -> Option<Box<dyn Handler>> {
    FACTORY.get().map(|make| make())
}

/// Whether there is one.
pub(crate) fn has_own_handler() -> bool {
    FACTORY.get().is_some()
}

/// Tells a handler an event, and returns what it wants done.
pub(crate) fn tell(handler: &mut dyn Handler, event: &Event<'_>, channel: &str, user: u64) -> Vec<Action> {
    let mut connection = Connection { channel, user, protocol: None, actions: Vec::new() };
    let told = &mut connection;
    match *event {
        Event::Initialize => handler.initialize(),
        Event::Started { .. } => handler.started(told),
        Event::Authenticate(visitor) => {
            let is_accepted = handler.authenticate(told, visitor);
            // First of all: what it sends may only go out then.
            connection.actions.insert(0, Action::Accept(is_accepted, connection.protocol.take()));
        }
        Event::Open { key } => handler.open(told, key),
        Event::Read(frame) => handler.read(told, frame),
        Event::Text { text } => handler.text(told, text),
        Event::Fifo { data } => frames::from_bus(data.get(), |frame| handler.fifo(told, frame)),
        Event::Loop => handler.on_loop(told),
        Event::BeforeClose { code, reason } => handler.before_close(told, code, reason),
        Event::AfterClose => handler.after_close(told),
        Event::Shutdown => handler.shutdown(told),
        Event::Finalize => handler.finalize(),
    }
    connection.actions
}

/// What happens without a handler: the others on the channel get every message, and so does the client what comes from
/// the application.
pub(crate) struct Channel;

impl Handler for Channel {
    fn authenticate(&mut self, _: &mut Connection<'_>, _: &Visitor) -> bool {
        true
    }

    fn read(&mut self, connection: &mut Connection<'_>, frame: Frame<'_>) {
        connection.broadcast(frame);
    }

    fn fifo(&mut self, connection: &mut Connection<'_>, frame: Frame<'_>) {
        connection.send(frame);
    }
}

/// `RELAY_WS_HANDLER=echo`: the client gets every message back. For tests of conformance, and of whether all is well.
pub(crate) struct Echo;

impl Handler for Echo {
    fn authenticate(&mut self, _: &mut Connection<'_>, _: &Visitor) -> bool {
        true
    }

    fn read(&mut self, connection: &mut Connection<'_>, frame: Frame<'_>) {
        connection.send(frame);
    }

    fn fifo(&mut self, connection: &mut Connection<'_>, frame: Frame<'_>) {
        connection.send(frame);
    }
}
