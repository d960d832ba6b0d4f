//! A member of a session: a host, or a client, as its line of the table says.

use super::super::log::Address;
use super::super::members::{Entry, Line};
use super::super::node::Alive;
use super::super::topic::is_for;
use super::super::{Error, hash_name};
use crate::clock::has_passed_by;
use crate::token::ClientId;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::time::Duration;

/// What a line of the table says of a host or a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub key: String,
    /// The generations it belongs to, the first and the last: one, but all that come for an application's own client.
    pub generations: (u32, u32),
    /// The id up to which the log says nothing to it.
    pub from: u64,
    /// The number of its latest stream; 0 before the first.
    pub stream: u32,
    /// Where that began.
    pub begin: u64,
    /// The node on which it listens, or did; none where it is known to have gone.
    pub node: String,
    /// When a client was used last without listening (ms since 1970).
    pub used: u64,
    /// When the latest stream ended (for that of a killed process: when that was noticed).
    pub ended: Option<u64>,
    /// Whether the peers know of that end, or that there will never be a stream.
    pub told: bool,
}

impl Line for Member {
    fn key(&self) -> &str {
        &self.key
    }
}

/// Clients and registrations of the host stand in one table.
pub(super) fn client_key(client: &ClientId) -> String {
    format!("c{}", client.as_str())
}

pub(super) fn host_key(registration: Option<&str>) -> String {
    // An application may choose what stands in its tokens.
    format!("h{}", registration.map(hash_name).unwrap_or_default())
}

impl Member {
    pub fn client(&self) -> Option<ClientId> {
        ClientId::new(self.key.strip_prefix('c')?)
    }

    pub fn is_host(&self) -> bool {
        self.key.starts_with('h')
    }

    /// Whether it listens, as far as its line says.
    pub fn says_it_listens(&self) -> bool {
        self.stream > 0 && self.ended.is_none()
    }

    pub fn generations(&self) -> RangeInclusive<u32> {
        self.generations.0..=self.generations.1
    }
}

impl Entry<Member> {
    /// The id up to which its latest stream was given the log.
    pub fn position(&self) -> u64 {
        let Member { stream, begin, from, .. } = self.line;
        // What another stream has written was written too late.
        let position = if self.cursor.stream == stream { self.cursor.position } else { begin };
        position.max(from)
    }

    pub fn wants(&self) -> impl Fn(&Address) -> bool + use<> {
        let (slot, generations) = (self.slot, self.line.generations());
        move |to| is_for(to, slot, &generations)
    }
}

/// Whether a member is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It has not listened yet.
    Waiting,
    /// It listens.
    Listening,
    /// Its latest stream has ended.
    Ended {
        /// In milliseconds since 1970; now, where nobody has noticed yet.
        at: u64,
        /// Whether its peers know.
        told: bool,
    },
}

impl Presence {
    /// Whether it has ended, longer than the grace ago, and its peers do not know.
    pub fn is_news(self, now: u64, grace: Duration) -> bool {
        matches!(self, Self::Ended { at, told: false } if has_passed_by(now, at, grace))
    }

    /// Whether it counts as there: also within the grace after its end.
    pub fn is_there(self, now: u64, grace: Duration) -> bool {
        match self {
            Self::Waiting | Self::Listening => true,
            Self::Ended { at, told } => !told && !has_passed_by(now, at, grace),
        }
    }
}

pub(super) fn presence(line: &Member, alive: &mut Alive<'_>, now: u64) -> Result<Presence, Error> {
    let told = line.told;
    Ok(match line.ended {
        Some(at) => Presence::Ended { at, told },
        None if line.stream == 0 => Presence::Waiting,
        None if !line.node.is_empty() && alive.is(&line.node)? => Presence::Listening,
        // What was sent to it in this millisecond was sent before.
        None => Presence::Ended { at: now + 1, told },
    })
}
