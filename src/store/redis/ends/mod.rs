//! The two ends of a stream of bytes: from one request to another, as they come, wherever the two are.
//!
//! What is under way stands in Redis in pieces, eight at most. An end moves bytes between its own
//! memory and there when it is [told to](Receiver::exchange), so that all else it does is done at once; what may have been done,
//! but was not answered, is asked for again in the same words, and is not done twice. Each says at least every 2 s that it is there.
//! While Redis is away, both wait.

pub mod receiver;
pub mod sender;

use super::ear::ROUND;
use super::process::Process;
use super::reply::Values;
use super::script::Script;
use super::subscription::{Care, Caring, Subscription};
use super::topic::Topic;
use crate::clock::instant;
use crate::gateway::run_blocking;
use crate::store::error::Error;
use crate::store::pipes::Denied;
use crate::store::remote::Remote;
use crate::wake::Ready;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

macro_rules! script {
    ($kind:ident $name:literal) => {
        $crate::store::redis::script::Script::$kind(concat!(
            include_str!("../time.lua"),
            include_str!("../ends/begin.lua"),
            include_str!($name)
        ))
    };
}
pub(super) use script;

static HERE: Script = script!(new "here.lua");

/// So many bytes are sent at once, and kept in memory at each end.
const PIECE: usize = 64 * 1024;

/// What streams of bytes belong to, and who does something there.
#[derive(Clone)]
pub struct Way {
    pub process: Arc<Process>,
    /// With which all keys begin.
    pub base: String,
    /// By which it is known who was sent away. Nobody is who has none.
    pub ticket: String,
    away: Arc<OnceLock<Away>>,
}

/// Why somebody was sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// What the stream belongs to was removed, or lost.
    Removed,
    /// Another is the guest.
    NotTheGuest,
}

impl From<Away> for Denied {
    fn from(away: Away) -> Self {
        match away {
            Away::Removed => Self::Removed,
            Away::NotTheGuest => Self::NotTheGuest,
        }
    }
}

impl Way {
    pub fn new(process: &Arc<Process>, base: String) -> Self {
        Self { process: process.clone(), base, ticket: String::new(), away: Arc::default() }
    }

    /// Why whoever this is was sent away, if so.
    pub fn away(&self) -> Option<Away> {
        self.away.get().copied()
    }

    /// Notes what a script says of that.
    pub fn note(&self, outcome: &str) {
        let away = match outcome {
            "removed" => Away::Removed,
            "not the guest" => Away::NotTheGuest,
            _ => return,
        };
        let _ = self.away.set(away);
    }

    /// Runs a script. What it answers is several values.
    pub async fn run(&self, script: &Script, arguments: &[&[u8]]) -> Result<Values, Remote> {
        Values::of(script.run(&self.process.servers, &[&self.base], arguments).await?)
    }

    /// Runs a script for somebody who has no time to wait for that: as a task, where there are tasks. Whoever cannot say that it
    /// leaves is known to be gone within seconds.
    pub fn run_last(&self, script: &'static Script, arguments: Vec<Vec<u8>>) {
        let way = self.clone();
        last(async move {
            let arguments: Vec<_> = arguments.iter().map(Vec::as_slice).collect();
            let _ = way.run(script, &arguments).await;
        });
    }
}

/// Does what is left to do for somebody who has gone.
pub fn last(work: impl Future<Output = ()> + Send + 'static) {
    #[cfg(feature = "serve")]
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(work);
        return;
    }
    run_blocking(work);
}

/// Somebody who can be called, and says that it is there.
pub struct End {
    pub way: Way,
    pub name: String,
    subscription: Subscription,
    asked_at: Instant,
    is_in_trouble: bool,
}

/// Under `serve` nobody asks a receiver for more while its client takes nothing: so somebody else says that it is there. The
/// others do so themselves.
struct Beside {
    way: Way,
    receiver: Option<String>,
}

impl Care for Beside {
    fn tend<'a>(&'a self, _: &'a Topic) -> Caring<'a, Result<(), Error>> {
        Box::pin(async move {
            if let Some(receiver) = &self.receiver {
                self.way.run(&HERE, &[receiver.as_bytes()]).await?;
            }
            Ok(())
        })
    }

    fn leave(&self, _: usize) -> Caring<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl End {
    /// One of this name, which nobody else has. From now on it is called.
    pub async fn begin(way: Way, name: String) -> Result<Self, Error> {
        Self::with(way, name, None).await
    }

    /// The same for a receiver.
    pub async fn receiving(way: Way, name: String) -> Result<Self, Error> {
        let receiver = name.clone();
        Self::with(way, name, Some(receiver)).await
    }

    async fn with(way: Way, name: String, receiver: Option<String>) -> Result<Self, Error> {
        let beside = Beside { way: way.clone(), receiver };
        let channel = format!("{}:{name}", way.base);
        let place = way.process.topics.enter(&channel, "");
        let subscription = Subscription::begin(&way.process, place, vec![channel], Arc::new(beside)).await?;
        Ok(Self { way, name, subscription, asked_at: instant(), is_in_trouble: false })
    }

    /// What is ready when it was called.
    pub fn awaited(&self) -> Ready<'_> {
        // While there is no connection, nothing is told.
        self.subscription.wake().unwrap_or_else(|| self.subscription.place.sleeper.wake())
    }

    /// Whether there is a reason to ask: it was called, or has not said for a while that it is there.
    pub async fn has_reason(&mut self) -> bool {
        let is_due = instant() >= self.asked_at + ROUND;
        if is_due && self.subscription.wake().is_none() {
            let tended = self.subscription.tend(&self.way.process).await;
            self.note_trouble(tended);
        }
        self.subscription.is_called() || is_due
    }

    /// Runs a script. `None` where Redis is away: the next time tries again.
    pub async fn ask<T>(
        &mut self,
        script: &Script,
        arguments: &[&[u8]],
        read: impl FnOnce(Values) -> Result<T, Remote>,
    ) -> Option<T> {
        self.asked_at = instant();
        let answer = self.way.run(script, arguments).await.and_then(read);
        self.note_trouble(answer.map_err(Error::from))
    }

    /// Tells trouble in the log, once as long as it lasts.
    fn note_trouble<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        let was_there = std::mem::replace(&mut self.is_in_trouble, outcome.is_err());
        if let (Err(error), false) = (&outcome, was_there) {
            error.log();
        }
        outcome.ok()
    }
}
