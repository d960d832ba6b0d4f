//! Why a Redis could not do what was wanted.

use std::fmt;

/// Why it could not. [`fmt::Display`] is the sentence for whoever sent the request; it names no server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// What it comes down to.
    pub reason: Reason,
    /// The cause, for the log. It has no password and no message in it.
    pub cause: String,
}

/// What it comes down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no connection, or it broke. Whether what was asked for has been done is not known then.
    Away,
    /// There was no answer in time. The same.
    Slow,
    /// The user, or its password, is refused.
    Login,
    /// TLS with it fails, mostly because its certificate is not trusted.
    Tls,
    /// Its memory is full.
    Full,
    /// It is loading its data, cannot write them to its disk, is a replica that will take over, or misses nodes of its cluster.
    NotReady,
    /// Too few replicas have what was written. It may get lost, or not.
    TooFewReplicas,
    /// Any other failure.
    Failed,
}

/// What a look at a Redis finds that works. `None` is what it does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether what is in it outlives its end.
    pub keeps: Option<bool>,
    /// Whether it drops what is in it when it is full.
    pub evicts: Option<bool>,
}

impl Reason {
    /// Why it is refused, in a sentence without its beginning.
    fn sentence(self) -> &'static str {
        match self {
            Self::Away => "cannot be reached: try again in a moment.",
            Self::Slow => "does not answer in time: try again in a moment.",
            Self::Login => "refuses the relay's user or password.",
            Self::Tls => "cannot be reached with TLS: the relay's error log has the cause.",
            Self::Full => "is full: try again once older messages are gone.",
            Self::NotReady => "is not ready: try again in a moment.",
            Self::TooFewReplicas => "has too few replicas that answer: try again in a moment.",
            Self::Failed => "failed: the relay's error log has the cause.",
        }
    }

    /// What the owner can do about it.
    #[must_use]
    pub fn cure(self) -> &'static str {
        match self {
            Self::Away | Self::Slow => {
                "Start it, or correct `RELAY_STORE`; the relay's user must be able to reach it, also from a chroot."
            }
            Self::Login => {
                "Correct the user and the password in `RELAY_STORE`; the user needs all commands for the keys and channels `uhst*`."
            }
            Self::Tls => {
                "Set `RELAY_REDIS_CA` to the file of the authority that has signed its certificate, which must be for the name in `RELAY_STORE`. It must want none of the relay: `tls-auth-clients no`."
            }
            Self::Full => "Give it more memory: `maxmemory` in its configuration.",
            Self::NotReady => {
                "Wait until it has loaded its data. If it stays like this, its disk may be full: look at it with `redis-cli info` and `redis-cli cluster info`."
            }
            Self::TooFewReplicas => {
                "Start its replica, and look at it with `redis-cli info replication`; or do without, and remove `RELAY_REDIS_REPLICAS`."
            }
            Self::Failed => "The relay needs Redis 7, or Valkey; the error log has what it has answered.",
        }
    }
}

impl Remote {
    /// For the log this cause.
    #[must_use]
    pub fn new(reason: Reason, cause: impl Into<String>) -> Self {
        Self { reason, cause: cause.into() }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The relay's Redis {}", self.reason.sentence())
    }
}
