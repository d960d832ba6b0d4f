//! The sweep: what Redis itself removes when its time to live is over goes earlier, and peers are told of those that have gone.

use super::process::{Process, Redis};
use super::reply::{Reply, command, text};
use crate::store::error::Error;
use crate::store::sessions::Policy;
use std::future::{Ready, ready};

/// How many of each kind are looked at in a sweep for which somebody waits.
const SOME: usize = 16;

/// Whoever wants to sweep says so for this time (ms), in which nobody else does.
const PAUSE: &str = "250";

/// One in so many requests that have used Redis looks whether it is time for a sweep.
const ONE_IN: u64 = 8;

impl Process {
    /// The few of a kind that go soonest, by their hashes.
    pub(super) async fn soonest_of(&self, kind: &str, most: usize) -> Result<Vec<String>, Error> {
        self.hashes(kind, &["ZRANGE", kind, "0", &(most - 1).to_string()]).await
    }

    async fn hashes(&self, kind: &str, arguments: &[&str]) -> Result<Vec<String>, Error> {
        let Reply::Array(some) = self.servers.call(kind, &command(arguments)).await? else { return Ok(Vec::new()) };
        Ok(some.iter().filter_map(text).map(str::to_owned).collect())
    }
}

impl Redis {
    /// Those of a kind: all, or any few. Whoever sweeps again and again comes to each, however many there are, and nobody needs to
    /// know what others have swept.
    async fn any_of(&self, kind: &str, most: Option<usize>) -> Result<Vec<String>, Error> {
        match most {
            Some(most) => self.process.hashes(kind, &["ZRANDMEMBER", kind, &most.to_string()]).await,
            None => self.process.hashes(kind, &["ZRANGE", kind, "0", "-1"]).await,
        }
    }

    async fn sweep(&self, policy: &Policy<'_>, most: Option<usize>) -> Result<(), Error> {
        for hash in self.any_of(&self.process.buses(), most).await? {
            self.sweep_bus(hash, policy).await?;
        }
        for hash in self.any_of(&self.process.hosts(), most).await? {
            self.sweep_session(hash, most.is_some(), policy).await?;
        }
        for hash in self.any_of(&self.process.all_pipes(), most).await? {
            self.sweep_pipes(hash, policy).await?;
        }
        Ok(())
    }

    /// Whether a sweep may be due. That is not asked of Redis, so that it costs nothing: a machine whose data folder nobody uses
    /// leaves it to chance, to what the clock of Redis showed last. It is the same until Redis is used again.
    pub fn sweep_is_due(&self) -> Ready<bool> {
        ready(self.files.sweep_is_due() || self.process.noted_time().is_some_and(|now| now % ONE_IN == 0))
    }

    pub async fn sweep_some(&self, policy: &Policy<'_>) -> Result<(), Error> {
        let key = format!("{}:swept", self.process.prefix);
        let claim = command(["SET", &key, "1", "NX", "PX", PAUSE]);
        if self.process.servers.call(&key, &claim).await? == Reply::SimpleString(b"OK".to_vec()) {
            self.sweep(policy, Some(SOME)).await?;
        }
        self.files.sweep_some(policy)
    }

    pub async fn sweep_all(&self, policy: &Policy<'_>) -> Result<(), Error> {
        self.sweep(policy, None).await?;
        self.files.sweep_all(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestServer;
    use super::*;
    use crate::config::Settings;
    use crate::gateway::run_blocking;
    use crate::protocol::uhst::policy;
    use crate::store::files::Files;
    use crate::store::sessions::Claim;
    use crate::token::HostId;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn a_sweep_looks_at_few_and_comes_to_all() {
        let Some(server) = TestServer::start(&[]) else { return };
        let redis = Redis::elsewhere(&server.address(), Files::new(Path::new("/nowhere")));
        run_blocking(async {
            let kind = redis.process.hosts();
            for number in 0..300 {
                assert!(redis.process.reserve(&kind, &number.to_string(), 300, 600_000).await.unwrap());
            }
            let mut seen = BTreeSet::new();
            for round in 0.. {
                assert!(round < 10_000, "it does not come to all");
                let some = redis.any_of(&kind, Some(SOME)).await.unwrap();
                assert_eq!(some.iter().collect::<BTreeSet<_>>().len(), SOME);
                seen.extend(some);
                if seen.len() == 300 {
                    break;
                }
            }
            assert_eq!(server.calls("zrange"), 0, "nobody reads them all");
        });
    }

    #[test]
    fn a_machine_that_keeps_nothing_in_its_data_folder_sweeps_too_and_not_with_others_at_once() {
        let Some(server) = TestServer::start(&[]) else { return };
        let redis = Redis::elsewhere(&server.address(), Files::new(Path::new("/nowhere")));
        let settings = Settings::default();
        let policy = policy(&settings);
        run_blocking(async {
            assert!(!redis.sweep_is_due().await, "it has nothing to do with Redis yet");
            let mut requests = 0;
            while !redis.sweep_is_due().await {
                requests += 1;
                assert!(requests < 1000, "it is never due");
                let id = HostId::new(&requests.to_string()).unwrap();
                redis.register(&id, "one", Claim::Drawn, &policy).await.unwrap();
            }
            redis.sweep_some(&policy).await.unwrap();
            let swept = server.calls("zrandmember");
            assert!(swept > 0);
            assert_eq!(server.immortal(), [""; 0]);
            server.ask(&["SET", "uhst:swept", "1"]);
            redis.sweep_some(&policy).await.unwrap();
            assert_eq!(server.calls("zrandmember"), swept);
        });
    }

    #[test]
    fn what_somebody_has_just_swept_is_not_looked_at_again_unless_it_is_asked_for() {
        let Some(server) = TestServer::start(&[]) else { return };
        let redis = Redis::elsewhere(&server.address(), Files::new(Path::new("/nowhere")));
        let settings = Settings::default();
        let policy = policy(&settings);
        run_blocking(async {
            redis.register(&HostId::new("h").unwrap(), "one", Claim::Drawn, &policy).await.unwrap();
            let looks = async |most| {
                let before = server.calls("hgetall");
                redis.sweep(&policy, most).await.unwrap();
                server.calls("hgetall") - before
            };
            let all = looks(None).await;
            assert!(all > 0 && looks(None).await == all);
            assert_eq!(looks(Some(SOME)).await, 0);
            let record = server.keys().into_iter().find(|key| key.ends_with('}')).unwrap();
            server.ask(&["HSET", &record, "swept", "1"]);
            assert_eq!(looks(Some(SOME)).await, all);
        });
    }
}
