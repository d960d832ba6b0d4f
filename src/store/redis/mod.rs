//! The home of the store in a Redis, or Valkey, that several machines share.
//!
//! ```text
//! uhst:buses                 the buses, by when they go (a sorted set)
//! uhst:bus:{HASH}            a broadcast bus: its record. HASH is of its name
//! uhst:bus:{HASH}:log        its messages (a stream), and the channel on which each is told to those who wait
//! uhst:bus:{HASH}:users      its registered users
//! uhst:bus:{HASH}:nodes      the nodes on which readers wait, by when these are gone unless they say more (a sorted set)
//! uhst:bus:{HASH}:waiting    how many wait on each
//! ```
//!
//! Each intention is one [script](script): Redis runs it whole or not at all, one after the other. It touches the keys of one
//! slot only (those with the same `{HASH}`), so that a cluster can have them. What needs another slot is another step: before a
//! bus is made, it takes its place among all buses, which it loses again if it is not made then.
//!
//! Everything has a time to live: a Redis that the relay has left empties itself. The only clock is Redis's own. The number of a
//! record is made of it, and larger than all before: so numbers never come again, also where records were lost.
//!
//! A *node* is a process that listens. It says every [`ROUND`] in each topic that it listens to that it is there, because a script
//! could not see a node's own key, which is in another slot; a killed one is noticed within 5 s.

mod bus;
mod connection;
mod ear;
mod reply;
mod script;
mod servers;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod topic;

use super::error::Error;
use super::files::Files;
use crate::clock::{has_passed_by, instant};
use crate::config::redis::Address;
use crate::hex;
pub use bus::reader::BusReader;
use reply::Reply;
use script::Script;
use servers::Servers;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use topic::Topics;

/// How often a node says that it is there.
const ROUND: Duration = Duration::from_secs(2);

static RESERVE: Script = Script::new(include_str!("reserve.lua"));

/// The Redis; and the data folder, for all but buses.
#[derive(Clone)]
pub struct Redis {
    /// What is not in Redis.
    pub files: Files,
    process: Arc<Process>,
}

/// What all of this process share that use one Redis.
struct Process {
    servers: Servers,
    /// How all keys begin. Channels are the same in all databases, so that their names have to tell these apart.
    prefix: String,
    /// What others know it by.
    node: OnceLock<String>,
    topics: Topics,
    #[cfg(feature = "serve")]
    ears: ear::Ears,
    /// What time it was in Redis, and when.
    clock: Mutex<Option<(u64, Instant)>>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redis")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Redis {
    /// The one at this address. Nothing is connected before it is needed.
    pub fn at(address: &Address, files: Files) -> Self {
        static ALL: Mutex<Vec<(Address, Arc<Process>)>> = Mutex::new(Vec::new());
        let mut all = lock(&ALL);
        if let Some((_, process)) = all.iter().find(|(other, _)| other == address) {
            return Self { files, process: process.clone() };
        }
        let new = Self::elsewhere(address, files);
        all.push((address.clone(), new.process.clone()));
        new
    }

    /// The same as another process has it.
    pub fn elsewhere(address: &Address, files: Files) -> Self {
        let prefix = if address.database == 0 { "uhst".to_owned() } else { format!("uhst{}", address.database) };
        let process = Process {
            prefix,
            servers: Servers::new(address.clone()),
            node: OnceLock::new(),
            topics: Topics::default(),
            #[cfg(feature = "serve")]
            ears: ear::Ears::default(),
            clock: Mutex::default(),
        };
        Self { files, process: Arc::new(process) }
    }
}

impl Process {
    fn node(&self) -> Result<&str, Error> {
        if self.node.get().is_none() {
            let _ = self.node.set(hex::random(8)?);
        }
        Ok(self.node.get().map_or("", String::as_str))
    }

    /// Takes a place for somebody among those of a kind, for so long, or keeps it; false where there are as many as may be.
    async fn reserve(&self, kind: &str, who: &str, most: u64, time: u64) -> Result<bool, Error> {
        let (most, time) = (most.to_string(), time.to_string());
        let arguments = [who.as_bytes(), most.as_bytes(), time.as_bytes()];
        Ok(RESERVE.run(&self.servers, &[kind], &arguments).await? != Reply::Integer(0))
    }

    /// Notes what time it is in Redis (ms since 1970).
    fn note_time(&self, now: u64) {
        *lock(&self.clock) = Some((now, instant()));
    }

    /// Whether a record of this number is older than `lifetime`, by Redis's clock.
    fn is_dead(&self, id: u64, lifetime: Duration) -> bool {
        let Some((now, at)) = *lock(&self.clock) else { return false };
        let now = now.saturating_add(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        has_passed_by(now.max(id / 1024), id / 1024, lifetime)
    }
}
