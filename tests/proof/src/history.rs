//! What happened: what was sent and how it was answered, and what each reader has seen. Nothing here knows the relay.

use std::time::Duration;

/// Since the run began.
pub type Time = Duration;

/// Who sends: a number of its own. It sends one message after the other, and numbers them from 0.
pub type Sender = usize;

/// Who reads: a number of its own.
pub type Reader = usize;

/// How a message was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With 200.
    Accepted,
    /// With another status: it must never be seen.
    Refused(u16),
    /// Not at all, because the process that had it was killed: it may be seen, once.
    Unknown,
}

/// A message.
#[derive(Clone, Debug)]
pub struct Send {
    pub sender: Sender,
    pub n: u32,
    pub begun: Time,
    pub ended: Time,
    pub outcome: Outcome,
    /// Those that must see it once, because the answer says so.
    pub must: Vec<Reader>,
    /// Those that may see it once.
    pub may: Vec<Reader>,
    /// Those that were left out, as the answer says, because too much waits for them. They must be told that they missed something.
    pub without: Vec<Reader>,
    /// The id that the answer gives it, where it does (on a bus).
    pub id: Option<u64>,
}

/// What an event said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Message {
        sender: Sender,
        n: u32,
    },
    /// A peer has left.
    Closed(Reader),
    /// The reader has missed something.
    Missed,
}

/// An event that a reader has got whole.
#[derive(Clone, Debug)]
pub struct Heard {
    pub at: Time,
    /// Its id; `None` where the relay sends none with it.
    pub id: Option<u64>,
    pub said: Said,
}

/// A time in which a reader had a stream, from its 200 to its end.
#[derive(Clone, Debug)]
pub struct Connection {
    pub opened: Time,
    pub closed: Time,
    /// The event after which it went on.
    pub resumed: Option<u64>,
    /// When it was given that.
    pub resumed_from: Time,
    /// How it ended, for people.
    pub note: &'static str,
}

/// Everything a reader knows.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// What it is, for people.
    pub name: String,
    /// Readers of the same bus have the same number: they must agree on what has which id.
    pub bus: Option<usize>,
    pub connections: Vec<Connection>,
    pub heard: Vec<Heard>,
    /// When it was told that its session is over although it came back in time, and with what.
    pub turned_away: Vec<(Time, u16)>,
    /// When a stream was still there long after a newer one had taken its place.
    pub outlived: Vec<Time>,
    /// When it left for good, if it did.
    pub left: Option<Time>,
    /// Those that must be told when it leaves.
    pub peers: Vec<Reader>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The senders' names, for people.
    pub senders: Vec<String>,
    pub sends: Vec<Send>,
    pub readers: Vec<Log>,
    /// Whether what was asked for may be done after whoever asked was killed, because another program does it.
    pub is_remote: bool,
}
