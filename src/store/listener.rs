//! What listens in a session, in whichever home that is.

use super::error::Error;
use super::files::session::listener::Listener as InFiles;
#[cfg(feature = "redis")]
use super::redis::Listener as InRedis;
use super::sessions::{Event, Policy, Standing};
use crate::wake::Ready;
use crate::workers::stream_at_disk;

/// A recipient that listens. As long as this lives, it is present.
#[derive(Debug)]
pub enum Listener {
    /// In files.
    Files(InFiles),
    /// In Redis.
    #[cfg(feature = "redis")]
    Redis(InRedis),
}

impl From<InFiles> for Listener {
    fn from(listener: InFiles) -> Self {
        Self::Files(listener)
    }
}

#[cfg(feature = "redis")]
impl From<InRedis> for Listener {
    fn from(listener: InRedis) -> Self {
        Self::Redis(listener)
    }
}

/// The same of whichever it is.
macro_rules! of {
    ($self:expr, $listener:ident => $do:expr) => {
        match $self {
            Self::Files($listener) => $do,
            #[cfg(feature = "redis")]
            Self::Redis($listener) => $do,
        }
    };
}

impl Listener {
    /// The id after which the next event comes.
    #[must_use]
    pub fn position(&self) -> u64 {
        of!(self, listener => listener.position())
    }

    /// What is ready when there may be something new.
    #[must_use]
    pub fn wake(&self) -> Option<Ready<'_>> {
        of!(self, listener => listener.wake())
    }

    /// Whether everything new is sure to make [`Listener::wake`] ready.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        of!(self, listener => listener.is_surely_woken())
    }

    /// To be called when [`Listener::wake`] was ready, and from time to time where it may not be, before looking for events.
    /// Whether another stream has come to take the place.
    pub fn hear(&mut self) -> bool {
        of!(self, listener => listener.hear())
    }

    /// Sees to it that the next look finds everything, also what is on its way to wake it.
    #[cfg(test)]
    pub fn look_anew(&self) {
        #[cfg(feature = "redis")]
        if let Self::Redis(listener) = self {
            listener.look_anew();
        }
    }

    /// Gives the next events to `take`; false when there are no more than these for now.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn next(&mut self, take: impl FnMut(Event<'_>)) -> Result<bool, Error> {
        match self {
            Self::Files(listener) => stream_at_disk(|| listener.next(take)).await,
            #[cfg(feature = "redis")]
            Self::Redis(listener) => listener.next(take).await,
        }
    }

    /// Notes that everything [`Listener::next`] has given was written to the stream.
    ///
    /// # Errors
    /// When that cannot be written.
    pub async fn delivered(&mut self) -> Result<(), Error> {
        match self {
            Self::Files(listener) => stream_at_disk(|| listener.delivered()).await,
            #[cfg(feature = "redis")]
            Self::Redis(listener) => listener.delivered().await,
        }
    }

    /// What has become of the place: a look, and nothing more.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub async fn standing(&mut self) -> Result<Standing, Error> {
        match self {
            Self::Files(listener) => stream_at_disk(|| listener.standing()).await,
            #[cfg(feature = "redis")]
            Self::Redis(listener) => listener.standing().await,
        }
    }

    /// Does what has to be done from time to time: looks what has become of the place, takes it back where somebody has
    /// removed it, looks for events that nobody has knocked for, and tells of peers that have gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub async fn tend(&mut self, policy: &Policy<'_>) -> Result<Standing, Error> {
        match self {
            Self::Files(listener) => stream_at_disk(|| listener.tend(policy)).await,
            #[cfg(feature = "redis")]
            Self::Redis(listener) => listener.tend().await,
        }
    }

    /// Ends the listening, and tells the peers unless the recipient may still come back unnoticed.
    ///
    /// # Errors
    /// When that cannot be written; it is then noticed as the end of a killed process.
    pub async fn end(&mut self, policy: &Policy<'_>) -> Result<(), Error> {
        match self {
            Self::Files(listener) => stream_at_disk(|| listener.end(policy)).await,
            #[cfg(feature = "redis")]
            Self::Redis(listener) => listener.end().await,
        }
    }
}
