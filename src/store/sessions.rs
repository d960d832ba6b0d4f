//! Sessions of the UHST relay: a host, the clients that have joined it, and what is said between them.
//!
//! A host, or a client, is *present* while it listens, before it listens for the first time, and for `RELAY_GRACE` after
//! it has stopped. Nothing is sent to one that is not present, and its peers are told once that it has gone. It may come
//! back for as long as the session lifetime.
//!
//! A message that was taken is kept for the message lifetime, whatever else has ended by then, and is given, once, to the
//! recipient that comes back with the id of the last event that it has.

use super::files::session as files;
use super::{Error, Store};
use crate::config::Settings;
use crate::token::{ClientId, HostId};
use rustix::fd::BorrowedFd;
use std::fmt;

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

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// A recipient that listens. As long as this lives, it is present.
pub enum Listener {
    /// In files.
    Files(Box<files::Listener>),
}

impl Store {
    /// Registers a host, whose id nobody else has then. The clients of a registration before are told that their host has
    /// gone, and may still fetch what waits for them.
    ///
    /// # Errors
    /// [`Refused::Taken`], [`Refused::TooManyHosts`], [`Refused::MessagesWait`].
    pub fn register(
        &self,
        host: &HostId,
        registration: &str,
        claim: Claim,
        policy: &Policy<'_>,
    ) -> Result<(), Refused> {
        let Self::Files(home) = self;
        home.register(host, registration, claim, policy)
    }

    /// Adds a client to a host that is present, and tells the registration it has joined. At the limit one that has joined
    /// long ago and was never used gives way.
    ///
    /// # Errors
    /// [`Refused::UnknownHost`], [`Refused::TooManyClients`].
    pub fn join(&self, host: &HostId, client: &ClientId, policy: &Policy<'_>) -> Result<Option<String>, Refused> {
        let Self::Files(home) = self;
        home.join(host, client, policy)
    }

    /// Sends a message to the host, from a client. It is taken as a whole, in the order of the calls, or not at all.
    ///
    /// # Errors
    /// [`Refused::Expired`], [`Refused::HostGone`]; for a client of an application's own also [`Refused::UnknownHost`] and
    /// [`Refused::TooManyClients`]; [`Error::QueueFull`] while too much waits for the host.
    pub fn send_to_host(&self, from: &Party, data: &str, policy: &Policy<'_>) -> Result<(), Refused> {
        let Self::Files(home) = self;
        home.send_to_host(from, data, policy)
    }

    /// Sends a message to one client, in the order of the calls, broadcasts among them.
    ///
    /// # Errors
    /// [`Refused::ClientGone`]; [`Error::QueueFull`] while too much waits for it.
    pub fn send_to_client(
        &self,
        host: &HostId,
        client: &ClientId,
        data: &str,
        policy: &Policy<'_>,
    ) -> Result<(), Refused> {
        let Self::Files(home) = self;
        home.send_to_client(host, client, data, policy)
    }

    /// Sends a message to every client that is present, and tells for each whether it will get it: one that has too much
    /// waiting will not, is told so with an event in place of the message, and holds up neither the others nor the sender.
    /// The message is stored once.
    ///
    /// # Errors
    /// [`Refused::Expired`]; [`Refused::NobodyThere`]; [`Error::TopicFull`] while the clients' log holds its most.
    pub fn broadcast(&self, from: &Party, data: &str, policy: &Policy<'_>) -> Result<Vec<(ClientId, bool)>, Refused> {
        let Self::Files(home) = self;
        home.broadcast(from, data, policy)
    }

    /// Begins to listen, after the event `resume` if that is named, else after what the last listener was given. A
    /// listener before is superseded. If something after `resume` is not there any more, an event says so.
    ///
    /// # Errors
    /// [`Refused::Expired`], unless something waits; [`Refused::HostGone`] for a client for which nothing waits; for one of an
    /// application's own [`Refused::UnknownHost`], [`Refused::TooManyHosts`] and [`Refused::TooManyClients`].
    pub fn listen(&self, who: &Party, resume: Option<u64>, policy: &Policy<'_>) -> Result<Listener, Refused> {
        let Self::Files(home) = self;
        Ok(Listener::Files(Box::new(home.listen(who, resume, policy)?)))
    }

    /// Whether [`Store::listen`] would succeed, without taking anybody's place.
    ///
    /// # Errors
    /// The same.
    pub fn would_listen(&self, who: &Party, resume: Option<u64>, policy: &Policy<'_>) -> Result<(), Refused> {
        let Self::Files(home) = self;
        home.would_listen(who, resume, policy)
    }
}

impl Listener {
    /// The id after which the next event comes.
    #[must_use]
    pub fn position(&self) -> u64 {
        let Self::Files(listener) = self;
        listener.position()
    }

    /// What becomes readable when there may be something new.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        let Self::Files(listener) = self;
        listener.fd()
    }

    /// Whether everything new is sure to make [`Listener::fd`] readable.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        let Self::Files(listener) = self;
        listener.is_surely_woken()
    }

    /// To be called when [`Listener::fd`] was readable, and from time to time where it may not be, before looking for events.
    /// Whether another stream has come to take the place.
    pub fn hear(&mut self) -> bool {
        let Self::Files(listener) = self;
        listener.hear()
    }

    /// Gives the next events to `take`; false when there are no more than these for now.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn next(&mut self, take: impl FnMut(Event<'_>)) -> Result<bool, Error> {
        let Self::Files(listener) = self;
        listener.next(take)
    }

    /// Notes that everything [`Listener::next`] has given was written to the stream.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn delivered(&mut self) -> Result<(), Error> {
        let Self::Files(listener) = self;
        listener.delivered()
    }

    /// What has become of the place: a look, and nothing more.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn standing(&mut self) -> Result<Standing, Error> {
        let Self::Files(listener) = self;
        listener.standing()
    }

    /// Does what has to be done from time to time: looks what has become of the place, takes it back where somebody has
    /// removed its files, looks for events that nobody has knocked for, and tells of peers that have gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub fn tend(&mut self, policy: &Policy<'_>) -> Result<Standing, Error> {
        let Self::Files(listener) = self;
        listener.tend(policy)
    }

    /// Ends the listening, and tells the peers unless the recipient may still come back unnoticed.
    ///
    /// # Errors
    /// When that cannot be written; it is then noticed as the end of a killed process.
    pub fn end(&mut self, policy: &Policy<'_>) -> Result<(), Error> {
        let Self::Files(listener) = self;
        listener.end(policy)
    }
}
