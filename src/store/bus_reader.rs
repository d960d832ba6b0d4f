//! What reads a bus, in whichever home that is.

use super::buses::{BusEvent, Refused};
use super::either::{by_either, of_either};
use super::error::Error;
use super::files::bus::reader::BusReader as InFiles;
#[cfg(feature = "redis")]
use super::redis::BusReader as InRedis;
use super::sessions::Standing;
use crate::config::Settings;
use crate::wake::Ready;

/// Reads a bus.
pub enum BusReader {
    /// In files.
    Files(InFiles),
    /// In Redis.
    #[cfg(feature = "redis")]
    Redis(InRedis),
}

impl From<InFiles> for BusReader {
    fn from(reader: InFiles) -> Self {
        Self::Files(reader)
    }
}

#[cfg(feature = "redis")]
impl From<InRedis> for BusReader {
    fn from(reader: InRedis) -> Self {
        Self::Redis(reader)
    }
}

impl BusReader {
    /// Has it woken by each message from now on.
    ///
    /// # Errors
    /// Those of [`Store::subscribe`](super::Store::subscribe).
    pub fn wait_for_more(&mut self, settings: &Settings) -> impl Future<Output = Result<(), Refused>> {
        by_either!(self, reader => reader.wait_for_more(settings), reader.wait_for_more(settings))
    }

    /// Fetches what there is next, where it has to be waited for.
    ///
    /// # Errors
    /// When it cannot be read.
    #[cfg(feature = "redis")]
    pub async fn fetch(&mut self) -> Result<(), Error> {
        match self {
            Self::Files(_) => Ok(()),
            Self::Redis(reader) => reader.fetch().await,
        }
    }

    /// Gives what there is next, and was fetched, to `take`; false when there is no more for now. What is dead, or the user's own,
    /// is not given.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn next(&mut self, take: impl FnMut(BusEvent<'_>)) -> Result<bool, Error> {
        match self {
            Self::Files(reader) => reader.next(take),
            #[cfg(feature = "redis")]
            Self::Redis(reader) => Ok(reader.next(take)),
        }
    }

    /// Both, for a stream.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn fetch_next(&mut self, take: impl FnMut(BusEvent<'_>)) -> impl Future<Output = Result<bool, Error>> {
        by_either!(self, reader => reader.next(take), reader.fetch_next(take))
    }

    /// The id of the last message that was read; before the first one, the id after which it begins.
    #[must_use]
    pub fn after(&self) -> u64 {
        of_either!(self, reader => reader.after())
    }

    /// What is ready when something was posted.
    #[must_use]
    pub fn wake(&self) -> Option<Ready<'_>> {
        of_either!(self, reader => reader.wake())
    }

    /// Whether every message is sure to make [`BusReader::wake`] ready.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        of_either!(self, reader => reader.is_surely_woken())
    }

    /// To be called when [`BusReader::wake`] was ready, and from time to time where it may not be, before looking for
    /// messages.
    pub fn hear(&mut self) {
        of_either!(self, reader => reader.hear());
    }

    /// Sees to it that the next look finds everything, also what is on its way to wake it.
    #[cfg(test)]
    pub fn look_anew(&self) {
        #[cfg(feature = "redis")]
        if let Self::Redis(reader) = self {
            reader.look_anew();
        }
    }

    /// Does what has to be done from time to time: keeps the bus and the user in use, and mends what wakes it. It is over where
    /// the bus, or the user, is gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub fn tend(&mut self, settings: &Settings) -> impl Future<Output = Result<Standing, Error>> {
        by_either!(self, reader => reader.tend(settings), reader.tend())
    }
}
