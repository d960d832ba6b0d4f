//! What is written into the FIFO of a [node](super::node).

use super::members::Slot;
use std::collections::BTreeSet;

/// Why somebody is woken; the number is what is added to its [`Bell`](crate::wake::Bell).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Cause {
    /// There is something new in the log.
    News = 1,
    /// Another stream has taken the member's place. No bell is rung for news so often, before it is heard, that they become that.
    Takeover = 1 << 32,
}

/// Whom a knock is for: the listeners of a topic, or the one of them that stands in a slot of its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Knock {
    /// The node on which it listens.
    pub node: String,
    /// The name of the topic's files.
    pub topic: String,
    /// `None` for all of them.
    pub slot: Option<Slot>,
    /// Why.
    pub cause: Cause,
}

/// The bytes of a topic's name, and of a whole knock in a FIFO.
const TOPIC: usize = 40;
const SLOT: usize = 10;
pub(super) const MESSAGE: usize = 1 + TOPIC + SLOT + 1;

/// The topic that knocks name which are for a [sleeper](super::sleeper).
pub(super) const SLEEPERS: &str = "----------------------------------------";

impl Knock {
    /// For all listeners of a topic, which are on these nodes: one a node.
    pub fn all<'n>(topic: &str, nodes: impl Iterator<Item = &'n str>) -> impl Iterator<Item = Self> {
        let mut nodes: Vec<&str> = nodes.collect();
        // Mostly they are all the same.
        nodes.dedup();
        let nodes: BTreeSet<&str> = nodes.into_iter().collect();
        nodes.into_iter().map(|node| Self {
            node: node.to_owned(),
            topic: topic.to_owned(),
            slot: None,
            cause: Cause::News,
        })
    }

    /// For the one that has this number in its node.
    pub fn to_sleeper(node: String, number: u32) -> Self {
        Self { node, topic: SLEEPERS.to_owned(), slot: Some(number), cause: Cause::News }
    }

    /// What is written into the node's FIFO.
    pub fn message(&self) -> String {
        let cause = match self.cause {
            Cause::News => '!',
            Cause::Takeover => '>',
        };
        let slot = self.slot.map_or_else(|| "*".repeat(SLOT), |slot| format!("{slot:0SLOT$}"));
        format!("{cause}{}{slot}\n", self.topic)
    }

    /// The topic, the slot and the cause that a message names.
    pub fn parse(message: &[u8]) -> Option<(&str, Option<Slot>, Cause)> {
        let text = std::str::from_utf8(message).ok()?.strip_suffix('\n')?;
        let cause = if text.starts_with('>') { Cause::Takeover } else { Cause::News };
        let (topic, slot) = text.get(1..)?.split_at_checked(TOPIC)?;
        Some((topic, slot.parse().ok(), cause))
    }
}
