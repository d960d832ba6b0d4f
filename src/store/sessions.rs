//! Sessions of the UHST relay: a host, the clients that have joined it, and what is said between them.
//!
//! A host, or a client, is *present* while it listens, before it listens for the first time, and for `RELAY_GRACE` after
//! it has stopped. Nothing is sent to one that is not present, and its peers are told once that it has gone. It may come
//! back for as long as the session lifetime.
//!
//! A message that was taken is kept for the message lifetime, whatever else has ended by then, and is given, once, to the
//! recipient that comes back with the id of the last event that it has.

use super::error::Error;
use super::made::Made;
use crate::config::Settings;
use crate::token::{ClientId, HostId};

/// The limits and times of sessions, and what the relay itself says in them.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// All limits and times.
    pub settings: &'a Settings,
    /// The relay's own events.
    pub words: &'static Words,
}

/// The relay's own events: their type, and the JSON that stands before the id of whom they are about, after which comes `}`.
#[derive(Debug)]
pub struct Words {
    /// The type of all of them.
    pub event: &'static str,
    /// To clients: their host has gone.
    pub host_closed: &'static str,
    /// To a host: a client has gone.
    pub client_closed: &'static str,
    /// To whoever has lagged too far, or comes back too late: something was dropped before it was read.
    pub messages_lost: &'static str,
}

impl Words {
    /// One of the events, about this id.
    #[must_use]
    pub fn of(&self, event: &str, id: &str) -> String {
        format!("{event}{}}}", serde_json::Value::from(id))
    }
}

/// A host or a client, as its token names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The host, or the client's.
    pub host: HostId,
    /// The client; `None` for the host.
    pub client: Option<ClientId>,
    /// The registration of the host that the token belongs to; `None` for a token that an application has minted.
    pub registration: Option<String>,
}

/// Why it cannot be done.
#[derive(Debug)]
pub enum Refused {
    /// Another host has the id.
    Taken,
    /// There is no such host, or it is not present.
    UnknownHost,
    /// The token's registration, or its client, is over.
    Expired,
    /// The host is not present.
    HostGone,
    /// The client is not present.
    ClientGone,
    /// Neither the host nor a client is present.
    NobodyThere,
    /// Messages for earlier registrations of the host wait, and leave no room for one more.
    MessagesWait,
    /// There are so many hosts.
    TooManyHosts(u64),
    /// The host has so many clients.
    TooManyClients(u64),
    /// The store's reason.
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// Whose id may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// One that is free, or whose host is not present: somebody knows whom it wants to be.
    Chosen,
    /// One that no host has, present or not: it was drawn at random.
    Drawn,
}

/// An event of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// What the recipient comes back with. Increases from event to event.
    pub id: u64,
    /// Its type; `message` for what others have sent.
    pub event: &'a str,
    /// Its data, in one line.
    pub data: &'a str,
    /// What is made of it, where others of this process are given it too.
    pub made: Option<&'a Made>,
}

/// What has become of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It listens.
    Listening,
    /// A newer one has taken its place.
    Superseded,
    /// Its session is gone.
    Over,
}
