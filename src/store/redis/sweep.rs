//! The sweep: what Redis itself removes when its time to live is over goes earlier, and peers are told of those that have gone.

use super::lock::lock;
use super::process::Redis;
use super::reply::{Reply, command, text};
use crate::store::error::Error;
use crate::store::sessions::Policy;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// How many of each kind are looked at in a sweep for which somebody waits.
const SOME: usize = 16;

/// The last that was looked at, of each kind.
static LAST: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

impl Redis {
    /// The few of a kind that go soonest, by their hashes.
    pub(super) async fn soonest_of(&self, kind: &str, most: usize) -> Result<Vec<String>, Error> {
        let command = command(["ZRANGE", kind, "0", &(most - 1).to_string()]);
        let Reply::Array(some) = self.process.servers.call(kind, &command).await? else { return Ok(Vec::new()) };
        Ok(some.iter().filter_map(text).map(str::to_owned).collect())
    }

    /// The next few of a kind, or all, by their hashes.
    async fn next_of(&self, kind: &str, most: usize) -> Result<Vec<String>, Error> {
        let Reply::Array(all) = self.process.servers.call(kind, &command(["ZRANGE", kind, "0", "-1"])).await? else {
            return Ok(Vec::new());
        };
        let mut all: Vec<_> = all.iter().filter_map(text).map(str::to_owned).collect();
        all.sort_unstable();
        if most < all.len() {
            let mut last = lock(&LAST);
            let last = last.entry(kind.to_owned()).or_default();
            let start = all.partition_point(|hash| hash <= last);
            let length = all.len();
            all.rotate_left(start % length);
            all.truncate(most);
            if let Some(now) = all.last() {
                last.clone_from(now);
            }
        }
        Ok(all)
    }

    async fn sweep(&self, policy: &Policy<'_>, most: usize) -> Result<(), Error> {
        for hash in self.next_of(&self.process.buses(), most).await? {
            self.sweep_bus(hash, policy).await?;
        }
        for hash in self.next_of(&self.process.hosts(), most).await? {
            self.sweep_session(hash, policy).await?;
        }
        for hash in self.next_of(&self.process.all_pipes(), most).await? {
            self.sweep_pipes(hash, policy).await?;
        }
        Ok(())
    }

    pub async fn sweep_some(&self, policy: &Policy<'_>) -> Result<(), Error> {
        self.sweep(policy, SOME).await?;
        self.files.sweep_some(policy)
    }

    pub async fn sweep_all(&self, policy: &Policy<'_>) -> Result<(), Error> {
        self.sweep(policy, usize::MAX).await?;
        self.files.sweep_all(policy)
    }
}
