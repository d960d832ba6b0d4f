//! What tokens are signed with, where the owner has set nothing: the same for all that share the Redis.

use super::lock::lock;
use super::process::Redis;
use super::reply::Reply;
use super::script::Script;
#[cfg(feature = "serve")]
use super::servers::is_shared;
use crate::clock::instant;
use crate::store::error::Error;
use crate::store::remote::{Reason, Remote};
use std::time::Duration;

/// Made by whoever comes first, and kept for thirty days after its last use. That is noted once a day: a CGI program asks with each
/// request, and what is written Redis has to sync, and to tell its replicas.
static SECRET: Script = Script::harmless_promise(
    "redis.call('SET', KEYS[1], ARGV[1], 'NX')
    if redis.call('PTTL', KEYS[1]) < 2505600000 then
        redis.call('PEXPIRE', KEYS[1], 2592000000)
    end
    return redis.call('GET', KEYS[1])",
);

/// A process asks again after this time: another Redis may have taken over, which has another.
const KNOWN_FOR: Duration = Duration::from_secs(5);

/// Where Redis does not answer, the secret that is known is taken after this time: what is asked next waits, too.
#[cfg(feature = "serve")]
const PATIENCE: Duration = Duration::from_millis(100);

/// HS256 wants a key as long as its hash (RFC 7518, 3.2).
const LENGTH: usize = 32;

impl Redis {
    pub async fn secret(&self) -> Result<Vec<u8>, Error> {
        let process = &self.process;
        let known = lock(&process.secret).clone();
        if let Some((secret, known_at)) = &known
            && known_at.elapsed() < KNOWN_FOR
        {
            return Ok(secret.clone());
        }
        let mut fresh = [0; LENGTH];
        getrandom::fill(&mut fresh).map_err(std::io::Error::other)?;
        let key = format!("{}:secret", process.prefix);
        let (keys, arguments) = ([key.as_str()], [&fresh[..]]);
        let asked = SECRET.run(&process.servers, &keys, &arguments);
        #[cfg(feature = "serve")]
        let asked = async {
            // Only a server has asked before.
            if known.is_none() || !is_shared() {
                return asked.await;
            }
            let slow = |_| Remote::new(Reason::Slow, "Redis does not answer in time");
            tokio::time::timeout(PATIENCE, asked).await.map_err(slow)?
        };
        let secret = match (asked.await, &known) {
            (Ok(Reply::BulkString(secret)), _) if secret.len() >= LENGTH => secret,
            (Ok(_), _) => {
                return Err(
                    Remote::new(Reason::Failed, format!("what is at the key '{key}' is none: remove it")).into()
                );
            }
            // What is asked for may be on a node of the cluster that can be asked.
            (Err(_), Some((secret, _))) => secret.clone(),
            (Err(remote), None) => return Err(remote.into()),
        };
        *lock(&process.secret) = Some((secret.clone(), instant()));
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestServer;
    use super::*;
    use crate::gateway::run_blocking;
    use crate::store::files::Files;
    use std::path::Path;

    #[test]
    fn what_is_no_secret_is_refused_by_the_name_of_its_key() {
        let Some(server) = TestServer::start(&[]) else { return };
        server.ask(&["SET", "uhst:secret", "short"]);
        let redis = Redis::elsewhere(&server.address(), Files::new(Path::new("/nowhere")));
        match run_blocking(redis.secret()) {
            Err(Error::Remote(remote)) => assert!(remote.cause.contains("'uhst:secret'"), "{}", remote.cause),
            other => panic!("{other:?}"),
        }
    }
}
