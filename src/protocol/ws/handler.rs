//! Whatever decides what happens on a connection.

use crate::config::Settings;
use crate::ws::program::{Fault, Program};
use crate::ws::{self, Handler, Visitor};

/// Whatever decides what happens on one connection.
pub(super) enum ConnectionHandler {
    /// It does only what its client wants.
    BuiltIn(Box<dyn Handler>),
    /// The application's own, in Rust.
    Own(Box<dyn Handler>),
    Program(Box<Program>),
    /// It has failed, and is told nothing any more. The fault is there until the log has it.
    Failed(Option<Fault>),
}

impl ConnectionHandler {
    /// The one that the application, or else the owner, has chosen.
    pub(super) fn new(settings: &Settings, visitor: &Visitor) -> Self {
        if let Some(own) = crate::workers::blocking(ws::own_handler) {
            return Self::Own(own);
        }
        match settings.ws_handler.first().map(String::as_str) {
            None => Self::BuiltIn(Box::new(ws::Channel)),
            Some("echo") => Self::BuiltIn(Box::new(ws::Echo)),
            Some(_) => match crate::workers::blocking(|| Program::start(settings, &visitor.environment)) {
                Ok(program) => Self::Program(Box::new(program)),
                Err(fault) => Self::Failed(Some(fault)),
            },
        }
    }

    pub(super) fn program(&mut self) -> Option<&mut Program> {
        if let Self::Program(program) = self { Some(program) } else { None }
    }
}

/// The largest message that a client may send: without a handler, one that fits on the bus.
pub(super) fn longest_message(settings: &Settings, handler: &ConnectionHandler) -> u64 {
    match handler {
        ConnectionHandler::BuiltIn(_) if settings.ws_handler.is_empty() => settings.bus_message.min(settings.max_body),
        _ => settings.max_body,
    }
}

/// Whether a program is started for each connection.
pub(super) fn is_program(settings: &Settings) -> bool {
    !ws::has_own_handler() && settings.ws_handler.first().is_some_and(|first| first != "echo")
}
