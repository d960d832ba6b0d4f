//! The sweep: what Redis itself removes when its time to live is over goes earlier, and peers are told of those that have gone.

use super::process::Redis;
use super::reply::{Reply, command, text};
use crate::store::error::Error;
use crate::store::sessions::Policy;

/// How many of each kind are looked at in a sweep for which somebody waits.
const SOME: usize = 16;

impl Redis {
    /// The few of a kind that go soonest, by their hashes.
    pub(super) async fn soonest_of(&self, kind: &str, most: usize) -> Result<Vec<String>, Error> {
        self.hashes(kind, &["ZRANGE", kind, "0", &(most - 1).to_string()]).await
    }

    /// Those of a kind: all, or any few. Whoever sweeps again and again comes to each, however many there are, and nobody needs to
    /// know what others have swept.
    async fn any_of(&self, kind: &str, most: Option<usize>) -> Result<Vec<String>, Error> {
        match most {
            Some(most) => self.hashes(kind, &["ZRANDMEMBER", kind, &most.to_string()]).await,
            None => self.hashes(kind, &["ZRANGE", kind, "0", "-1"]).await,
        }
    }

    async fn hashes(&self, kind: &str, arguments: &[&str]) -> Result<Vec<String>, Error> {
        let Reply::Array(some) = self.process.servers.call(kind, &command(arguments)).await? else {
            return Ok(Vec::new());
        };
        Ok(some.iter().filter_map(text).map(str::to_owned).collect())
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

    pub async fn sweep_some(&self, policy: &Policy<'_>) -> Result<(), Error> {
        self.sweep(policy, Some(SOME)).await?;
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
