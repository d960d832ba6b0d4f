//! What listens in a session, in whichever home that is.

use super::either::{by_either, of_either};
use super::error::Error;
use super::files::session::listener::Listener as InFiles;
#[cfg(feature = "redis")]
use super::redis::Listener as InRedis;
use super::sessions::{Event, Policy, Standing};
use crate::wake::Ready;

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

impl Listener {
    /// The id after which the next event comes.
    #[must_use]
    pub fn position(&self) -> u64 {
        of_either!(self, listener => listener.position())
    }

    /// What is ready when there may be something new.
    #[must_use]
    pub fn wake(&self) -> Option<Ready<'_>> {
        of_either!(self, listener => listener.wake())
    }

    /// Whether everything new is sure to make [`Listener::wake`] ready.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        of_either!(self, listener => listener.is_surely_woken())
    }

    /// To be called when [`Listener::wake`] was ready, and from time to time where it may not be, before looking for events.
    /// Whether another stream has come to take the place.
    pub fn hear(&mut self) -> bool {
        of_either!(self, listener => listener.hear())
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
    pub fn next(&mut self, take: impl FnMut(Event<'_>)) -> impl Future<Output = Result<bool, Error>> {
        by_either!(self, listener => listener.next(take), listener.next(take))
    }

    /// Notes that everything [`Listener::next`] has given was written to the stream.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn delivered(&mut self) -> impl Future<Output = Result<(), Error>> {
        by_either!(self, listener => listener.delivered(), listener.delivered())
    }

    /// What has become of the place: a look, and nothing more.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn standing(&mut self) -> impl Future<Output = Result<Standing, Error>> {
        by_either!(self, listener => listener.standing(), listener.standing())
    }

    /// Does what has to be done from time to time: looks what has become of the place, takes it back where somebody has
    /// removed it, looks for events that nobody has knocked for, and tells of peers that have gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub fn tend(&mut self, policy: Policy<'_>) -> impl Future<Output = Result<Standing, Error>> {
        by_either!(self, listener => listener.tend(&policy), listener.tend())
    }

    /// Ends the listening, and tells the peers unless the recipient may still come back unnoticed.
    ///
    /// # Errors
    /// When that cannot be written; it is then noticed as the end of a killed process.
    pub fn end(&mut self, policy: &Policy<'_>) -> impl Future<Output = Result<(), Error>> {
        by_either!(self, listener => listener.end(policy), listener.end())
    }
}
