//! Pipes: two parties, a host and a guest, and a stream of bytes each way. What either of them may want.
//!
//! Whoever has the session's token is its host; anybody else who knows its id is its guest, in a secure session only with
//! the address that the host has named. Each intention finds out who wants it and does it, as one step: nobody who is sent
//! away meanwhile comes between.
//!
//! In each direction there is one receiver at a time, and several senders may wait for it. Each receiver gets one body, of
//! one sender. Nobody is kept by a killed process: a receiver or sender is there as long as its process is.

use super::error::Error;
use std::net::IpAddr;
use std::time::Duration;

/// The longest head in bytes: what a sender says of a body before it.
pub const LONGEST_HEAD: usize = 32 * 1024;

/// How much of it there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many sessions there may be. At the limit, one that nobody has met in gives way after a while.
    pub sessions: u64,
    /// How many senders may wait in one direction.
    pub senders: usize,
    /// How long a session is kept in which nobody is.
    pub lifetime: Duration,
}

/// A session that has just been made.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// By which both know it. 128 random bits, as text that a URL may contain.
    pub id: String,
    /// What makes somebody its host. It is kept nowhere.
    pub token: String,
}

/// Somebody who wants something of a session.
#[derive(Clone, Debug, Default)]
pub struct Visitor {
    /// Every token that was sent: the session's makes it the host.
    pub tokens: Vec<String>,
    /// Where it is.
    pub address: Option<IpAddr>,
}

/// Who somebody is in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Whoever has made it.
    Host,
    /// The other.
    Guest,
}

impl Role {
    /// The one to whom this one sends.
    #[must_use]
    pub fn other(self) -> Self {
        if self == Self::Host { Self::Guest } else { Self::Host }
    }
}

/// Why it is not done.
#[derive(Debug)]
pub enum Denied {
    /// There is no such session, or it is over.
    UnknownSession,
    /// The session was removed meanwhile.
    Removed,
    /// This is for the host alone.
    NotTheHost,
    /// The session is secure, and its guest is another, perhaps since a moment ago.
    NotTheGuest,
    /// No guest can be named: the session is open to everybody who knows it.
    BasicSession,
    /// Somebody receives already.
    ReceiverThere,
    /// As many wait to send as may.
    TooManySenders,
    /// The store could not do it.
    Failed(Error),
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
