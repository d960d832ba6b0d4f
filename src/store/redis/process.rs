//! What all of one process share that use one Redis.

use super::ear::Ear;
#[cfg(feature = "serve")]
use super::ear::Ears;
use super::lock::lock;
use super::reply::{Reply, Values, command};
use super::script::Script;
use super::servers::Servers;
use super::topic::{Place, Topics};
use crate::clock::{has_passed_by, instant};
use crate::config::redis::Address;
use crate::hex;
use crate::store::error::Error;
use crate::store::files::Files;
use crate::store::remote::{Condition, Reason, Remote};
use crate::store::requests::PtthServers;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Writes something, tells it, and reads it again; and whether it has a file for that, and what it does when it is full.
static REACH: Script = Script::new(
    "redis.call('SET', KEYS[1], ARGV[1], 'PX', 5000)
    redis.call('SPUBLISH', KEYS[1], '')
    local function info(about, pattern)
        return string.match(redis.call('INFO', about), pattern) or ''
    end
    return {redis.call('GET', KEYS[1]), info('persistence', 'aof_enabled:(%d)'), info('memory', 'maxmemory_policy:(%S+)')}",
);

static RESERVE: Script = Script::new(include_str!("reserve.lua"));

/// What stands for an id in a key, and for a token: of one length, and nothing in it that means something there.
pub fn hash(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..20])
}

/// As scripts have times.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> 11)
}

/// The Redis; and the data folder, for what belongs to this machine.
#[derive(Clone)]
pub struct Redis {
    /// What is not in Redis.
    pub files: Files,
    pub(super) process: Arc<Process>,
}

/// What all of this process share that use one Redis.
pub struct Process {
    pub servers: Arc<Servers>,
    /// How all keys begin. Channels are the same in all databases, so that their names have to tell these apart.
    pub prefix: String,
    /// What others know it by.
    node: OnceLock<String>,
    /// How many bytes of memory Redis may use, as scripts have it: nothing for as many as it has.
    pub max_data: String,
    pub topics: Topics,
    #[cfg(feature = "serve")]
    pub ears: Arc<Ears>,
    /// What tokens are signed with, and since when it is known.
    pub secret: Mutex<Option<(Vec<u8>, Instant)>>,
    /// The registered servers of PTTH, and as of which change.
    pub ptth_servers: Mutex<(String, Arc<PtthServers>)>,
    /// What time it was in Redis, and when.
    clock: Mutex<Option<(u64, Instant)>>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redis")
    }
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
        new.process.servers.begin_request();
        all.push((address.clone(), new.process.clone()));
        new
    }

    /// The same as another process has it.
    pub fn elsewhere(address: &Address, files: Files) -> Self {
        let prefix = if address.database == 0 { "uhst".to_owned() } else { format!("uhst{}", address.database) };
        let servers = Arc::new(Servers::new(address.clone()));
        let process = Process {
            prefix,
            max_data: address.max_data.map(|limit| limit.to_string()).unwrap_or_default(),
            node: OnceLock::new(),
            topics: Topics::default(),
            #[cfg(feature = "serve")]
            ears: Arc::new(Ears::new(servers.clone())),
            servers,
            secret: Mutex::default(),
            ptth_servers: Mutex::default(),
            clock: Mutex::default(),
        };
        Self { files, process: Arc::new(process) }
    }
}

impl Redis {
    /// Whether it can be reached, tells what is new, and takes what is written.
    ///
    /// # Errors
    /// Why not.
    pub async fn reach(&self) -> Result<Condition, Error> {
        let (word, key) = (hex::random(8)?, format!("{}:reach", self.process.prefix));
        // A script that may write, but not tell what it has written, would write all the same.
        Ear::open(&self.process.servers, std::slice::from_ref(&key), &Place::alone(&key, "").topic).await?;
        let mut answer = Values::of(REACH.run(&self.process.servers, &[&key], &[word.as_bytes()]).await?)?;
        if answer.text()? != word {
            return Err(Remote::new(Reason::Failed, "what was written is not what was read").into());
        }
        let (has_file, policy) = (answer.text()?, answer.text()?);
        let told = |told: &str, is: bool| (!told.is_empty()).then_some(is);
        Ok(Condition { keeps: told(&has_file, has_file == "1"), evicts: told(&policy, policy != "noeviction") })
    }

    /// Makes what there has to be on this machine. A Redis that cannot be reached yet is told in the log: it may come.
    pub async fn prepare(&self) -> Result<(), Error> {
        if let Err(error) = self.reach().await {
            error.log();
        }
        self.files.prepare()
    }
}

impl Process {
    pub fn node(&self) -> Result<&str, Error> {
        if self.node.get().is_none() {
            let _ = self.node.set(hex::random(8)?);
        }
        Ok(self.node.get().map_or("", String::as_str))
    }

    /// Takes a place for somebody among those of a kind, for so long, or keeps it; false where there are as many as may be.
    pub async fn reserve(&self, kind: &str, who: &str, most: u64, time: u64) -> Result<bool, Error> {
        let (most, time) = (most.to_string(), time.to_string());
        let arguments = [who.as_bytes(), most.as_bytes(), time.as_bytes()];
        Ok(RESERVE.run(&self.servers, &[kind], &arguments).await? != Reply::Integer(0))
    }

    /// Gives up somebody's place.
    pub async fn give_up(&self, kind: &str, who: &str) -> Result<(), Error> {
        self.servers.call(kind, &command(["ZREM", kind, who])).await?;
        Ok(())
    }

    /// What time it was in Redis when that was noted last (ms since 1970).
    pub fn noted_time(&self) -> Option<u64> {
        lock(&self.clock).map(|(now, _)| now)
    }

    /// What time it is in Redis (ms since 1970), as far as is known.
    pub fn now(&self) -> u64 {
        let Some((now, at)) = *lock(&self.clock) else { return 0 };
        now.saturating_add(u64::try_from(instant().saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX))
    }

    /// Notes what time it is in Redis (ms since 1970).
    pub fn note_time(&self, now: u64) {
        *lock(&self.clock) = Some((now, instant()));
    }

    /// Whether a record of this number is older than `lifetime`, by Redis's clock.
    pub fn is_dead(&self, id: u64, lifetime: Duration) -> bool {
        has_passed_by(self.now().max(id / 1024), id / 1024, lifetime)
    }
}
