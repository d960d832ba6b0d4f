//! What is done in Redis: an intention is one script, which runs whole or not at all, and touches the keys of one slot.

use super::reply::{Reply, command};
use super::servers::{Kind, Servers};
use crate::hex;
use crate::store::remote::{Reason, Remote};
use sha1::{Digest as _, Sha1};
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
        #[cfg(test)]
        {
            let slots = keys.iter().map(|key| redis_protocol::redis_keyslot(key.as_bytes()));
            assert!(slots.collect::<std::collections::BTreeSet<_>>().len() == 1, "a script touches two slots");
        }
        let digest = self.digest.get_or_init(|| hex::encode(&Sha1::digest(self.text)));
        let call = |name: &str, script: &str| {
            let count = keys.len().to_string();
            let head = [name, script, &count];
            let all: Vec<&[u8]> =
                head.iter().chain(keys).map(|text| text.as_bytes()).chain(arguments.iter().copied()).collect();
            command(all)
        };
        let reply = servers.ask(keys[0], &call("EVALSHA", digest), self.kind).await?;
        if !matches!(&reply, Reply::Error(_)) {
            return Ok(reply);
        }
        match servers.ask(keys[0], &call("EVAL", self.text), self.kind).await? {
            Reply::Error(error) => Err(Remote::new(Reason::Failed, error)),
            reply => Ok(reply),
        }
    }
}
