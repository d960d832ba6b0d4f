//! What reads a bus, in whichever home that is.

use super::buses::{BusEvent, Refused};
use super::error::Error;
use super::files::bus::reader::BusReader as InFiles;
#[cfg(feature = "redis")]
use super::redis::BusReader as InRedis;
use crate::config::Settings;
use crate::wake::Ready;
use crate::workers::stream_at_disk;

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

/// The same of whichever it is.
macro_rules! of {
    ($self:expr, $reader:ident => $do:expr) => {
        match $self {
            Self::Files($reader) => $do,
            #[cfg(feature = "redis")]
            Self::Redis($reader) => $do,
        }
    };
}

impl BusReader {
    /// Has it woken by each message from now on.
    ///
    /// # Errors
    /// Those of [`Store::subscribe`](super::Store::subscribe).
    pub async fn wait_for_more(&mut self, settings: &Settings) -> Result<(), Refused> {
        match self {
            Self::Files(reader) => stream_at_disk(|| reader.wait_for_more(settings)).await,
            #[cfg(feature = "redis")]
            Self::Redis(reader) => reader.wait_for_more(settings).await,
        }
    }

    /// Gives what there is next to `take`; false when there is no more for now. What is dead, or the user's own, is not
    /// given.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn next(&mut self, take: impl FnMut(BusEvent<'_>)) -> Result<bool, Error> {
        match self {
            Self::Files(reader) => stream_at_disk(|| reader.next(take)).await,
            #[cfg(feature = "redis")]
            Self::Redis(reader) => reader.next(take).await,
        }
    }

    /// The id of the last message that was read; before the first one, the id after which it begins.
    #[must_use]
    pub fn after(&self) -> u64 {
        of!(self, reader => reader.after())
    }

    /// What is ready when something was posted.
    #[must_use]
    pub fn wake(&self) -> Option<Ready<'_>> {
        of!(self, reader => reader.wake())
    }

    /// Whether every message is sure to make [`BusReader::wake`] ready.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        of!(self, reader => reader.is_surely_woken())
    }

    /// To be called when [`BusReader::wake`] was ready, and from time to time where it may not be, before looking for
    /// messages.
    pub fn hear(&mut self) {
        of!(self, reader => reader.hear());
    }

    /// Sees to it that the next look finds everything, also what is on its way to wake it.
    #[cfg(test)]
    pub fn look_anew(&self) {
        #[cfg(feature = "redis")]
        if let Self::Redis(reader) = self {
            reader.look_anew();
        }
    }

    /// Does what has to be done from time to time: keeps the bus and the user in use, and mends what wakes it. False where
    /// the bus, or the user, is gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub async fn tend(&mut self, settings: &Settings) -> Result<bool, Error> {
        match self {
            Self::Files(reader) => stream_at_disk(|| reader.tend(settings)).await,
            #[cfg(feature = "redis")]
            Self::Redis(reader) => reader.tend().await,
        }
    }
}
