//! PTTH: the servers that are registered, the requests that wait for them, and the far ends that wait for requests. What
//! the clients of a server, its far ends and the relay's operator may want.
//!
//! A request is there as long as its client's process is. It waits until a far end claims it, which only one can; it may be
//! given back, and be claimed again, but not for ever: a far end that dies with it should not be its end, but one that cannot
//! answer it should not have it again and again. Whoever begins to answer it takes it away.

use super::error::Error;
use crate::clock::now_ms;
use crate::hex;
use crate::ptth::{ServerName, Tripcode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// How often a request is claimed. Whoever began to listen before the request came has it for nothing, after the first: a
/// web server may notice only then that it has died long since, and each listens only once.
pub const MOST_CLAIMS: u8 = 2;

/// What a request is known by: the time in milliseconds since 1970, so that the oldest comes first, and 128 random bits,
/// all in hexadecimal digits. So it is a part of a path as it is. It is never used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// How many digits it has.
    pub const LENGTH: usize = 12 + 32;

    /// A new one.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn fresh() -> Result<Self, Error> {
        Ok(Self(format!("{:012x}{}", now_ms() & 0xFFFF_FFFF_FFFF, hex::random(16)?)))
    }

    /// `None` for what cannot be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == Self::LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_id.then(|| Self(text.to_owned()))
    }

    /// When it was made, in milliseconds since 1970.
    #[must_use]
    pub fn made_at(&self) -> u64 {
        u64::from_str_radix(&self.0[..12], 16).unwrap_or_default()
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How a client looks after its request.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How often: whether the far end that was woken for it has died of it, say.
    pub look: Duration,
    /// How long a far end may have it before it begins to answer. Then it is given back.
    pub claim: Duration,
    /// How long it may take from there to the head of the answer. Then whoever has begun it was killed.
    pub head: Duration,
}

/// What has become of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is no answer yet.
    Waits,
    /// The answer begins with this head.
    Begins(Vec<u8>),
    /// Whoever began to answer has left without a word, and has taken the request away: it is to be
    /// [asked again](super::PendingRequest::ask_again).
    BrokenOff,
    /// The same, and no far end may claim it any more.
    GivenUp,
    /// The server is not registered any more.
    ServerRemoved,
}

/// A request that a far end has claimed.
#[derive(Debug, PartialEq, Eq)]
pub struct Claimed {
    /// What its answer is known by.
    pub id: RequestId,
    /// What its client has asked.
    pub request: Vec<u8>,
}

/// What is known of the far ends of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarEnds {
    /// When one came or went last; `None` if none ever has.
    pub seen: Option<SystemTime>,
    /// Whether one waits now.
    pub is_listening: bool,
}

/// A registered server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PtthServer {
    /// What its key is known by. The key itself is nowhere.
    pub tripcode: Tripcode,
    /// What it is called where servers are listed; its name, if nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Whether it is listed for everybody who asks.
    #[serde(default)]
    pub listed: bool,
}

/// The registered servers by name.
pub type PtthServers = BTreeMap<ServerName, PtthServer>;
