//! The broadcast bus: all that is posted is read by all, in one order, for as long as a message lives.

use super::files::bus as files;
use super::{Error, Store};
use crate::config::Settings;
use rustix::fd::BorrowedFd;

/// The name of a bus: any text without control characters and slashes, up to 256 bytes. The default bus has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusName(String);

impl BusName {
    /// The longest name in bytes.
    pub const LONGEST: usize = 256;

    /// `None` where the text cannot be a name.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_name = text.len() <= Self::LONGEST && !text.chars().any(|c| c.is_control() || c == '/');
        is_name.then(|| Self(text.to_owned()))
    }

    /// The name as it stands in the URL, decoded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The number of a user: even for a plain one, odd for a registered one.
///
/// A bus counts from a number that is made of the time it was made (as the ids of its messages are), so that no number
/// comes again when a bus was removed and made anew, and all are below 2^53, which JavaScript reads exactly, for a century.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User(pub u64);

impl User {
    /// The application that the relay belongs to. No bus gives this number out.
    pub const APPLICATION: Self = Self(0);

    /// Whether it has a key.
    #[must_use]
    pub fn is_registered(self) -> bool {
        self.0 % 2 == 1
    }
}

/// What proves that a post is a registered user's own: a number larger than at the last one, and what was signed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof<'a> {
    /// Used up by the post, whatever becomes of it: a request that somebody has caught on its way is worth nothing.
    pub n: u64,
    /// The bytes that were signed.
    pub signed: &'a [u8],
    /// Their HMAC-SHA256 with the user's key.
    pub signature: &'a [u8],
}

/// A message on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its number: larger than those of all messages before it.
    pub id: u64,
    /// Who has posted it.
    pub user: u64,
    /// What was posted: a JSON value in one line.
    pub data: &'a str,
}

/// What a reader is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// A message.
    Message(Message<'a>),
    /// Up to this id, messages that it had not read were dropped.
    Lost(u64),
}

/// Why it cannot be done.
#[derive(Debug)]
pub enum Refused {
    /// There is no such bus.
    UnknownBus,
    /// The bus does not know the user.
    UnknownUser,
    /// Only registered users may post.
    NotRegistered,
    /// A registered user's post without a proof.
    NotSigned,
    /// The proof is not of this user.
    WrongSignature,
    /// The proof's number is not larger than this one, that of the last post.
    StaleNumber(u64),
    /// A bus that is to be for registered users only is there, and open to all.
    IsOpen,
    /// There are so many buses.
    TooManyBuses(u64),
    /// The bus has so many registered users.
    TooManyUsers(u64),
    /// So many readers wait at the bus.
    TooManyReaders(u64),
    /// The last quarter of so many bytes is for those that have said little.
    SaysTooMuch(u64),
    /// The store's reason.
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// Reads a bus.
pub enum BusReader {
    /// In files.
    Files(Box<files::BusReader>),
}

impl Store {
    /// Gives out a fresh plain user, and the id of the last message (or where the first one will begin). The bus is made
    /// if it is missing.
    ///
    /// # Errors
    /// [`Refused::TooManyBuses`].
    pub fn greet(&self, name: &BusName, settings: &Settings) -> Result<(User, u64), Refused> {
        let Self::Files(home) = self;
        home.greet(name, settings)
    }

    /// Gives out a fresh registered user, the id of the last message, and the user's key: 64 hexadecimal digits. The bus is
    /// made if it is missing. At the limit the oldest user that has never signed anything gives way.
    ///
    /// # Errors
    /// [`Refused::TooManyBuses`], [`Refused::TooManyUsers`].
    pub fn register_user(&self, name: &BusName, settings: &Settings) -> Result<(User, u64, String), Refused> {
        let Self::Files(home) = self;
        home.register_user(name, settings)
    }

    /// Makes a bus on which only registered users may post. False where it is there already.
    ///
    /// # Errors
    /// [`Refused::IsOpen`], [`Refused::TooManyBuses`].
    pub fn make_signed_bus(&self, name: &BusName, settings: &Settings) -> Result<bool, Refused> {
        let Self::Files(home) = self;
        home.make_signed_bus(name, settings)
    }

    /// Posts a message, a JSON value in one line, and tells its id. Every reader gets it within its lifetime, after all that
    /// were posted before.
    ///
    /// # Errors
    /// Those of the user and the proof; [`Refused::SaysTooMuch`]; [`Error::TopicFull`] while the bus holds its most.
    pub fn post(
        &self,
        name: &BusName,
        user: User,
        proof: Option<Proof<'_>>,
        data: &str,
        settings: &Settings,
    ) -> Result<u64, Refused> {
        let Self::Files(home) = self;
        home.post(name, user, proof, data, settings)
    }

    /// The same for a plain user whose share of the bus the caller keeps an eye on: it is never said to say too much.
    ///
    /// # Errors
    /// Those of the user; [`Refused::NotRegistered`]; [`Error::TopicFull`] while the bus holds its most.
    pub fn say(&self, name: &BusName, user: User, data: &str, settings: &Settings) -> Result<u64, Refused> {
        let Self::Files(home) = self;
        home.say(name, user, data, settings)
    }

    /// Posts a message of the application that the relay belongs to. The bus is made if it is missing.
    ///
    /// # Errors
    /// [`Refused::TooManyBuses`]; [`Error::TopicFull`] while the bus holds its most.
    pub fn notify(&self, name: &BusName, data: &str, settings: &Settings) -> Result<u64, Refused> {
        let Self::Files(home) = self;
        home.notify(name, data, settings)
    }

    /// To read what comes after the id `after`, except what the user has posted. An id that no message has reached yet is
    /// somebody's mistake, or another bus's, and means what is posted from now on.
    ///
    /// # Errors
    /// [`Refused::UnknownBus`], [`Refused::UnknownUser`].
    pub fn read(&self, name: &BusName, after: u64, user: User, settings: &Settings) -> Result<BusReader, Refused> {
        let Self::Files(home) = self;
        Ok(BusReader::Files(Box::new(home.read(name, after, user, settings)?)))
    }

    /// The same for one that is woken by each message. Whoever names no user hears all, and makes the bus if it is missing;
    /// whoever names no id hears what is posted from now on.
    ///
    /// # Errors
    /// [`Refused::UnknownBus`], [`Refused::UnknownUser`], [`Refused::TooManyBuses`], [`Refused::TooManyReaders`].
    pub fn subscribe(
        &self,
        name: &BusName,
        after: Option<u64>,
        user: Option<User>,
        settings: &Settings,
    ) -> Result<BusReader, Refused> {
        let Self::Files(home) = self;
        Ok(BusReader::Files(Box::new(home.subscribe(name, after, user, settings)?)))
    }

    /// A fresh plain user, and a reader of what others post from now on. The bus is made if it is missing.
    ///
    /// # Errors
    /// [`Refused::TooManyBuses`], [`Refused::TooManyReaders`].
    pub fn enter(&self, name: &BusName, settings: &Settings) -> Result<(User, BusReader), Refused> {
        let Self::Files(home) = self;
        let (user, reader) = home.enter_bus(name, settings)?;
        Ok((user, BusReader::Files(Box::new(reader))))
    }

    /// Whether the bus knows the user.
    ///
    /// # Errors
    /// [`Refused::UnknownBus`], [`Refused::UnknownUser`].
    pub fn check_user(&self, name: &BusName, user: User, settings: &Settings) -> Result<(), Refused> {
        let Self::Files(home) = self;
        home.check_user(name, user, settings)
    }
}

impl BusReader {
    /// Has it woken by each message from now on.
    ///
    /// # Errors
    /// Those of [`Store::subscribe`].
    pub fn wait_for_more(&mut self, settings: &Settings) -> Result<(), Refused> {
        let Self::Files(reader) = self;
        reader.wait_for_more(settings)
    }

    /// Gives what there is next to `take`; false when there is no more for now. What is dead, or the user's own, is not
    /// given.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn next(&mut self, take: impl FnMut(Heard<'_>)) -> Result<bool, Error> {
        let Self::Files(reader) = self;
        reader.next(take)
    }

    /// The id of the last message that was read; before the first one, the id after which it begins.
    #[must_use]
    pub fn after(&self) -> u64 {
        let Self::Files(reader) = self;
        reader.after()
    }

    /// What becomes readable when something was posted.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        let Self::Files(reader) = self;
        reader.fd()
    }

    /// Whether every message is sure to make [`BusReader::fd`] readable.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        let Self::Files(reader) = self;
        reader.is_surely_woken()
    }

    /// To be called when [`BusReader::fd`] was readable, and from time to time where it may not be, before looking for
    /// messages.
    pub fn hear(&mut self) {
        let Self::Files(reader) = self;
        reader.hear();
    }

    /// Does what has to be done from time to time: keeps the bus and the user in use, and mends what wakes it. False where
    /// the bus, or the user, is gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub fn tend(&mut self, settings: &Settings) -> Result<bool, Error> {
        let Self::Files(reader) = self;
        reader.tend(settings)
    }
}
