//! What is kept, in the words of those who want it kept: each method of [`Store`] does one thing, whole or not at all, with
//! the limits it is given as data. How that is done, and where, is the business of its homes: `files` is the one that
//! needs nothing but a folder.
//!
//! The words stand by subject in [`sessions`], [`buses`], [`pipes`] and [`requests`]. They need nothing but
//! [each other](Error); a home needs the words, and the store, here, needs both.

mod bus_reader;
pub mod buses;
#[cfg(test)]
mod contract;
mod either;
#[cfg(feature = "redis")]
mod ends;
mod error;
pub(crate) mod files;
mod listener;
pub mod made;
pub mod pipes;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod remote;
pub mod requests;
pub mod sessions;

use crate::config::Settings;
use crate::ptth::ServerName;
use crate::token::{ClientId, HostId};
use crate::workers::at_disk;
pub use bus_reader::BusReader;
use buses::{BusName, Proof, User};
#[cfg(feature = "redis")]
pub use ends::{Answer, PendingRequest, Receiver, Sender, WaitingFarEnd, WaitingReceiver, WaitingSender};
pub use error::{Error, Full};
pub use files::node::OneNode;
pub use files::probe::{Findings, Obstacle, Place, has_no_locks};
#[cfg(not(feature = "redis"))]
pub use files::{
    ends::{Receiver, Sender},
    far_ends::{Answer, WaitingFarEnd},
    pipes::{WaitingReceiver, WaitingSender},
    requests::PendingRequest,
};
pub use listener::Listener;
use pipes::{Denied, Limits, NewSession, Visitor};
#[cfg(feature = "redis")]
pub use remote::{Condition, Reason, Remote};
use requests::{FarEnds, PtthServer, PtthServers, RequestId};
use sessions::{Claim, Party, Policy};
use std::net::IpAddr;
use std::sync::Arc;
#[cfg(feature = "redis")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whoever waits for another's bytes looks for itself that often: where they may be on another machine, it says so that it is
/// still there.
#[must_use]
pub fn look_every() -> Duration {
    #[cfg(feature = "redis")]
    if IS_FAR.load(Ordering::Relaxed) {
        return Duration::from_secs(2);
    }
    Duration::MAX
}

/// Whether this process keeps things where other machines can be.
#[cfg(feature = "redis")]
static IS_FAR: AtomicBool = AtomicBool::new(false);

/// Where things are kept.
#[derive(Clone, Debug)]
pub enum Store {
    /// In files below the data folder.
    Files(files::Files),
    /// In a Redis that several machines share.
    #[cfg(feature = "redis")]
    Redis(redis::Redis),
}

impl Store {
    /// The one that the settings name. Nothing is opened or made before it is needed.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let files = files::Files::new(&settings.data_dir);
        #[cfg(feature = "redis")]
        if let Some(address) = &settings.redis {
            IS_FAR.store(true, Ordering::Relaxed);
            return Self::Redis(redis::Redis::at(address, files));
        }
        Self::Files(files)
    }

    /// Whether the Redis can be reached, and takes what is written, where things are kept in one.
    #[cfg(feature = "redis")]
    pub async fn reach_redis(&self) -> Option<Result<Condition, Error>> {
        match self {
            Self::Files(_) => None,
            Self::Redis(redis) => Some(redis.reach().await),
        }
    }

    /// Does a little of the sweep, where it is time for it. A failure is told in the log.
    pub async fn sweep_if_due(&self, policy: &Policy<'_>) {
        if self.sweep_is_due().await
            && let Err(error) = self.sweep_some(policy).await
        {
            error.log();
        }
    }
}

/// Makes methods of [`Store`] that hand on to the method of the same name of whichever home it is, or of the data folder. In one
/// on this machine that is done at once; where there is no other, the future is handed on as it is, because a state machine
/// around each would make relay.cgi larger.
macro_rules! intentions {
    (of $homes:ident;
        $($(#[$about:meta])* pub async fn $name:ident(&self $(, $value:ident: $kind:ty)*) -> $answer:ty;)*) => {
        impl Store {
            $($(#[$about])*
            pub fn $name(&self $(, $value: $kind)*) -> impl Future<Output = $answer> {
                intentions!(@$homes self, $name, $($value),*)
            })*
        }
    };
    (@files $store:expr, $name:ident, $($value:ident),*) => {{
        let home = match $store {
            Self::Files(home) => home,
            #[cfg(feature = "redis")]
            Self::Redis(redis) => &redis.files,
        };
        at_disk(move || home.$name($($value),*))
    }};
    (@all $store:expr, $name:ident, $($value:ident),*) => {
        intentions!(@each $store, home => home.$name($($value),*), answer => answer)
    };
    (@readers $store:expr, $name:ident, $($value:ident),*) => {
        intentions!(@each $store, home => home.$name($($value),*), answer => answer.map(Into::into))
    };
    (@ends $store:expr, $name:ident, $($value:ident),*) => {
        intentions!(@either $store, $name, ($($value),*), answer => answer.map(Into::into))
    };
    (@those $store:expr, $name:ident, $($value:ident),*) => {
        intentions!(@either $store, $name, ($($value),*), answer => answer.map(|that| that.map(Into::into)))
    };
    (@either $store:expr, $name:ident, ($($value:ident),*), $answer:ident => $made:expr) => {{
        #[cfg(not(feature = "redis"))]
        {
            intentions!(@all $store, $name, $($value),*)
        }
        #[cfg(feature = "redis")]
        {
            intentions!(@each $store, home => home.$name($($value),*), $answer => $made)
        }
    }};
    (@each $store:expr, $home:ident => $do:expr, $answer:ident => $made:expr) => {{
        #[cfg(not(feature = "redis"))]
        match $store {
            Self::Files($home) => at_disk(move || {
                let $answer = $do;
                $made
            }),
        }
        #[cfg(feature = "redis")]
        async move {
            match $store {
                Self::Files($home) => {
                    let $answer = at_disk(move || $do).await;
                    $made
                }
                Self::Redis($home) => {
                    let $answer = $do.await;
                    $made
                }
            }
        }
    }};
}

// Sessions of UHST.
intentions! {
    of all;

    /// Registers a host, whose id nobody else has then. The clients of a registration before are told that their host has
    /// gone, and may still fetch what waits for them.
    ///
    /// # Errors
    /// [`sessions::Refused::Taken`], [`sessions::Refused::TooManyHosts`], [`sessions::Refused::MessagesWait`].
    pub async fn register(&self, host: &HostId, registration: &str, claim: Claim, policy: &Policy<'_>)
        -> Result<(), sessions::Refused>;

    /// Adds a client to a host that is present, and tells the registration it has joined. At the limit one that has joined
    /// long ago and was never used gives way.
    ///
    /// # Errors
    /// [`sessions::Refused::UnknownHost`], [`sessions::Refused::TooManyClients`].
    pub async fn join(&self, host: &HostId, client: &ClientId, policy: &Policy<'_>)
        -> Result<Option<String>, sessions::Refused>;

    /// Sends a message to the host, from a client. It is taken as a whole, in the order of the calls, or not at all.
    ///
    /// # Errors
    /// [`sessions::Refused::Expired`], [`sessions::Refused::HostGone`]; for a client of an application's own also
    /// [`sessions::Refused::UnknownHost`] and [`sessions::Refused::TooManyClients`]; [`Error::QueueFull`] while too much
    /// waits for the host.
    pub async fn send_to_host(&self, from: &Party, data: &str, policy: &Policy<'_>) -> Result<(), sessions::Refused>;

    /// Sends a message to one client, in the order of the calls, broadcasts among them.
    ///
    /// # Errors
    /// [`sessions::Refused::ClientGone`]; [`Error::QueueFull`] while too much waits for it.
    pub async fn send_to_client(&self, host: &HostId, client: &ClientId, data: &str, policy: &Policy<'_>)
        -> Result<(), sessions::Refused>;

    /// Sends a message to every client that is present, and tells for each whether it will get it: one that has too much
    /// waiting will not, is told so with an event in place of the message, and holds up neither the others nor the sender.
    /// The message is stored once.
    ///
    /// # Errors
    /// [`sessions::Refused::Expired`]; [`sessions::Refused::NobodyThere`]; [`Error::TopicFull`] while the clients' log holds
    /// its most.
    pub async fn broadcast(&self, from: &Party, data: &str, policy: &Policy<'_>)
        -> Result<Vec<(ClientId, bool)>, sessions::Refused>;

    /// Whether [`Store::listen`] would succeed, without taking anybody's place.
    ///
    /// # Errors
    /// The same.
    pub async fn would_listen(&self, party: &Party, resume: Option<u64>, policy: &Policy<'_>) -> Result<(), sessions::Refused>;
}

// Buses.
intentions! {
    of all;

    /// Gives out a fresh plain user, and the id of the last message (or where the first one will begin). The bus is made
    /// if it is missing.
    ///
    /// # Errors
    /// [`buses::Refused::TooManyBuses`].
    pub async fn greet(&self, name: &BusName, settings: &Settings) -> Result<(User, u64), buses::Refused>;

    /// Gives out a fresh registered user, the id of the last message, and the user's key: 64 hexadecimal digits. The bus is
    /// made if it is missing. At the limit the oldest user that has never signed anything gives way.
    ///
    /// # Errors
    /// [`buses::Refused::TooManyBuses`], [`buses::Refused::TooManyUsers`].
    pub async fn register_user(&self, name: &BusName, settings: &Settings) -> Result<(User, u64, String), buses::Refused>;

    /// Makes a bus on which only registered users may post. False where it is there already.
    ///
    /// # Errors
    /// [`buses::Refused::IsOpen`], [`buses::Refused::TooManyBuses`].
    pub async fn make_signed_bus(&self, name: &BusName, settings: &Settings) -> Result<bool, buses::Refused>;

    /// Posts a message, a JSON value in one line, and tells its id. Every reader gets it within its lifetime, after all that
    /// were posted before.
    ///
    /// # Errors
    /// Those of the user and the proof; [`buses::Refused::SaysTooMuch`]; [`Error::TopicFull`] while the bus holds its most.
    pub async fn post(&self, name: &BusName, user: User, proof: Option<Proof<'_>>, data: &str, settings: &Settings)
        -> Result<u64, buses::Refused>;

    /// The same for a plain user whose share of the bus the caller keeps an eye on: it is never said to say too much.
    ///
    /// # Errors
    /// Those of the user; [`buses::Refused::NotRegistered`]; [`Error::TopicFull`] while the bus holds its most.
    pub async fn say(&self, name: &BusName, user: User, data: &str, settings: &Settings) -> Result<u64, buses::Refused>;

    /// Posts a message of the application that the relay belongs to. The bus is made if it is missing.
    ///
    /// # Errors
    /// [`buses::Refused::TooManyBuses`]; [`Error::TopicFull`] while the bus holds its most.
    pub async fn notify(&self, name: &BusName, data: &str, settings: &Settings) -> Result<u64, buses::Refused>;

    /// Whether the bus knows the user.
    ///
    /// # Errors
    /// [`buses::Refused::UnknownBus`], [`buses::Refused::UnknownUser`].
    pub async fn check_user(&self, name: &BusName, user: User, settings: &Settings) -> Result<(), buses::Refused>;
}

// What reads a bus, or listens in a session.
intentions! {
    of readers;

    /// Begins to listen, after the event `resume` if that is named, else after what the last listener was given. A
    /// listener before is superseded. If something after `resume` is not there any more, an event says so.
    ///
    /// # Errors
    /// [`sessions::Refused::Expired`], unless something waits; [`sessions::Refused::HostGone`] for a client for which nothing
    /// waits; for one of an application's own [`sessions::Refused::UnknownHost`], [`sessions::Refused::TooManyHosts`] and
    /// [`sessions::Refused::TooManyClients`].
    pub async fn listen(&self, party: &Party, resume: Option<u64>, policy: &Policy<'_>)
        -> Result<Listener, sessions::Refused>;

    /// To read what comes after the id `after`, except what the user has posted. An id that no message has reached yet is
    /// somebody's mistake, or another bus's, and means what is posted from now on.
    ///
    /// # Errors
    /// [`buses::Refused::UnknownBus`], [`buses::Refused::UnknownUser`].
    pub async fn read(&self, name: &BusName, after: u64, user: User, settings: &Settings) -> Result<BusReader, buses::Refused>;

    /// The same for one that is woken by each message. Whoever names no user hears all, and makes the bus if it is missing;
    /// whoever names no id hears what is posted from now on.
    ///
    /// # Errors
    /// [`buses::Refused::UnknownBus`], [`buses::Refused::UnknownUser`], [`buses::Refused::TooManyBuses`],
    /// [`buses::Refused::TooManyReaders`].
    pub async fn subscribe(&self, name: &BusName, after: Option<u64>, user: Option<User>, settings: &Settings)
        -> Result<BusReader, buses::Refused>;
}

impl Store {
    /// A fresh plain user, and a reader of what others post from now on. The bus is made if it is missing.
    ///
    /// # Errors
    /// [`buses::Refused::TooManyBuses`], [`buses::Refused::TooManyReaders`].
    pub fn enter(
        &self,
        name: &BusName,
        settings: &Settings,
    ) -> impl Future<Output = Result<(User, BusReader), buses::Refused>> {
        intentions!(@each self, home => home.enter(name, settings), entered => entered.map(|(user, reader)| (user, reader.into())))
    }
}

// Pipes.
intentions! {
    of all;

    /// Makes a session; `None` where there are as many as may be.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn make_session(&self, is_secure: bool, limits: &Limits) -> Result<Option<NewSession>, Error>;

    /// Joins a session, without doing anything there: who the visitor is in it.
    ///
    /// # Errors
    /// [`Denied::UnknownSession`], [`Denied::NotTheGuest`].
    pub async fn join_session(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<pipes::Role, Denied>;

    /// Names the only guest of a secure session. Where it is another than before, the one before is sent away, whatever
    /// it is doing.
    ///
    /// # Errors
    /// [`Denied::UnknownSession`], [`Denied::NotTheHost`], [`Denied::BasicSession`].
    pub async fn permit_guest(&self, id: &str, host: &Visitor, guest: IpAddr, limits: &Limits) -> Result<(), Denied>;

    /// Removes a session. Whoever receives or sends there is woken, and finds it removed.
    ///
    /// # Errors
    /// [`Denied::UnknownSession`], [`Denied::NotTheHost`]. Where it fails, it may be tried again.
    pub async fn remove_session(&self, id: &str, host: &Visitor, limits: &Limits) -> Result<(), Denied>;
}

// What receives and what sends.
intentions! {
    of ends;

    /// Becomes the receiver of what the other party sends. Senders that wait are woken, and the first of them takes it.
    ///
    /// # Errors
    /// [`Denied::UnknownSession`], [`Denied::NotTheGuest`], [`Denied::ReceiverThere`].
    pub async fn receive(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<WaitingReceiver, Denied>;

    /// Becomes one of those that wait to send to the other party.
    ///
    /// # Errors
    /// [`Denied::UnknownSession`], [`Denied::NotTheGuest`], [`Denied::TooManySenders`].
    pub async fn wait_to_send(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<WaitingSender, Denied>;

    /// Listens for requests to a registered server.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub async fn listen_for_requests(&self, server: &ServerName) -> Result<WaitingFarEnd, Error>;
}

// PTTH.
intentions! {
    of all;

    /// The registered servers.
    ///
    /// # Errors
    /// [`Error::BadRegistry`] for a file that somebody has edited and that cannot be read now.
    pub async fn ptth_servers(&self) -> Result<Arc<PtthServers>, Error>;

    /// Registers a server; false where there is one of that name, which stays as it is.
    ///
    /// # Errors
    /// When the servers cannot be read or written; they are as they were then.
    pub async fn register_ptth_server(&self, name: &ServerName, server: &PtthServer) -> Result<bool, Error>;

    /// Removes a server; false where there is none. Its requests and far ends go with the next sweep.
    ///
    /// # Errors
    /// As for registering.
    pub async fn remove_ptth_server(&self, name: &ServerName) -> Result<bool, Error>;

    /// What is known of a server's far ends.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub async fn far_ends(&self, server: &ServerName) -> Result<FarEnds, Error>;

    /// Has claimed requests wait again, for another far end, which is woken. One whose answer has begun, or that has been
    /// claimed [as often as may be](requests::MOST_CLAIMS), is left alone.
    ///
    /// # Errors
    /// The first that cannot be given back; its client will see to the others.
    pub async fn give_back(&self, server: &ServerName, ids: &[RequestId]) -> Result<(), Error>;
}

// What asks, and what answers.
intentions! {
    of those;

    /// Asks a registered server: from now on the request waits, and a far end that listens is woken for it. `None` where
    /// `most` wait already, those of killed clients not counted.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub async fn ask(&self, server: &ServerName, id: &RequestId, request: &[u8], most: u64)
        -> Result<Option<PendingRequest>, Error>;

    /// Begins to answer a request to one of these servers, which takes it away; `None` where there is none, its client has
    /// gone, or its answer has begun. Whether the one that answers has claimed it does not matter.
    ///
    /// # Errors
    /// When that cannot be seen or noted.
    pub async fn answer_request(&self, servers: &[ServerName], id: &RequestId) -> Result<Option<Answer>, Error>;
}

// The store itself.
intentions! {
    of files;

    /// The user and the group whose the home is, if the user is not this process's: what this process would write there, the
    /// relay could not use.
    pub async fn other_owner(&self) -> Option<(u32, u32)>;

    /// Looks whether the home can do what is asked of it, for somebody at a terminal. Nothing is left behind.
    ///
    /// # Errors
    /// When it cannot be used; [`Error::Busy`] when another does not stop looking.
    pub async fn probe(&self) -> Result<Findings, Error>;

    /// The same as the relay itself and for the visitors of its page, unless somebody has looked a moment ago.
    ///
    /// # Errors
    /// The same.
    pub async fn probe_for_page(&self) -> Result<Findings, Error>;

    /// Whether the home can be used, as far as a look tells that waits for nobody.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn look(&self) -> Result<(), Error>;

    /// What keeps this process from using the home; `None` where it is nothing that permissions tell.
    pub async fn obstacle(&self) -> Option<Obstacle>;

    /// Makes all that listen in this process one listener, as long as what is returned lives: for a process with thousands of
    /// them.
    ///
    /// # Errors
    /// When what wakes it cannot be made.
    #[cfg(feature = "serve")]
    pub async fn listen_as_one(&self) -> Result<OneNode, Error>;
}

// What is dead, and what all share.
intentions! {
    of all;

    /// Makes what there has to be, and writes, so that whoever starts a server learns at once whether it can.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn prepare(&self) -> Result<(), Error>;

    /// What tokens are signed with: made of 32 random bytes by whichever process comes first.
    ///
    /// # Errors
    /// When it can neither be read nor made, or is damaged.
    pub async fn secret(&self) -> Result<Vec<u8>, Error>;

    /// Whether nobody has swept for a while, as far as a look tells that waits for nobody.
    pub async fn sweep_is_due(&self) -> bool;

    /// Removes some of what is dead, and tells the peers of those that have gone: a little of it, so that nobody waits for it.
    ///
    /// # Errors
    /// The first failure; a later sweep tries again.
    pub async fn sweep_some(&self, policy: &Policy<'_>) -> Result<(), Error>;

    /// The same with all of it.
    ///
    /// # Errors
    /// The same.
    pub async fn sweep_all(&self, policy: &Policy<'_>) -> Result<(), Error>;
}
