//! What is done in Redis: an intention is one script, which runs whole or not at all, and touches the keys of one slot.

use super::reply::{Reply, command};
use super::servers::{Kind, Servers};
use crate::hex;
use crate::store::remote::{Reason, Remote};
use sha1::{Digest as _, Sha1};
use std::borrow::Cow;
use std::sync::OnceLock;

/// A script in Lua.
pub struct Script {
    text: &'static str,
    /// Its SHA-1, by which a server knows it that has been told it once.
    digest: OnceLock<String>,
    kind: Kind,
}

impl Script {
    pub const fn new(text: &'static str) -> Self {
        Self::of(text, false, false)
    }

    /// One by which somebody is promised something.
    pub const fn promise(text: &'static str) -> Self {
        Self::of(text, true, false)
    }

    /// The same for one that may as well be run twice, or in vain. A program for one request sends it with its login.
    pub const fn harmless_promise(text: &'static str) -> Self {
        Self::of(text, true, true)
    }

    const fn of(text: &'static str, is_promise: bool, is_harmless: bool) -> Self {
        Self { text, digest: OnceLock::new(), kind: Kind { is_promise, is_harmless } }
    }

    /// Runs it with these keys, all of one slot, and these arguments.
    ///
    /// # Errors
    /// When it has not run, or it is not known whether it has.
    pub async fn run(&self, servers: &Servers, keys: &[&str], arguments: &[&[u8]]) -> Result<Reply, Remote> {
        let digest = self.digest.get_or_init(|| hex::encode(&Sha1::digest(self.text().as_bytes())));
        let call = |name: &str, script: &str| {
            let count = keys.len().to_string();
            let head = [name, script, &count];
            let all: Vec<&[u8]> =
                head.iter().chain(keys).map(|text| text.as_bytes()).chain(arguments.iter().copied()).collect();
            command(all)
        };
        let reply = self.ask(servers, keys[0], &call("EVALSHA", digest)).await?;
        if !matches!(&reply, Reply::Error(_)) {
            return Ok(reply);
        }
        match self.ask(servers, keys[0], &call("EVAL", &self.text())).await? {
            Reply::Error(error) => Err(Remote::new(Reason::Failed, error)),
            reply => Ok(reply),
        }
    }

    async fn ask(&self, servers: &Servers, key: &str, command: &[u8]) -> Result<Reply, Remote> {
        let reply = servers.ask(key, command, self.kind).await;
        #[cfg(test)]
        assert!(!matches!(&reply, Err(remote) if remote.cause.contains("is in another slot")), "{reply:?}");
        reply
    }

    /// In tests it may not touch the keys of two slots, also where there is no cluster, and where it makes them itself.
    fn text(&self) -> Cow<'static, str> {
        #[cfg(not(test))]
        return Cow::Borrowed(self.text);
        // In the first line, so that errors name the others as they are.
        #[cfg(test)]
        return Cow::Owned(include_str!("watched.lua").replace('\n', " ") + self.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::run_blocking;
    use crate::store::redis::testing::TestServer;

    fn run(text: &'static str, keys: &[&str]) -> Option<Result<Reply, Remote>> {
        let server = TestServer::start(&[])?;
        let script = Script::new(text);
        Some(run_blocking(script.run(&Servers::new(server.address()), keys, &[])))
    }

    #[test]
    fn what_a_script_makes_of_its_key_is_in_the_same_slot() {
        let made = "redis.call('TIME') redis.call('DEL', KEYS[1], '{a}b') return redis.call('EXISTS', KEYS[1] .. ':c')";
        if let Some(ran) = run(made, &["x:{a}"]) {
            assert_eq!(ran, Ok(Reply::Integer(0)));
        }
    }

    #[test]
    fn a_script_that_touches_two_slots_is_found_out() {
        for (text, keys) in [
            ("return redis.call('GET', 'x:{b}')", &["x:{a}"][..]),
            ("return redis.call('DEL', KEYS[1], 'x')", &["x:{a}"]),
            ("return redis.call('SPUBLISH', KEYS[1] .. ':b', '')", &["x"]),
            ("return 1", &["x:{a}", "x:{b}"]),
        ] {
            let ran = std::panic::catch_unwind(|| run(text, keys));
            assert!(matches!(ran, Err(_) | Ok(None)), "{text}: {ran:?}");
        }
    }
}
