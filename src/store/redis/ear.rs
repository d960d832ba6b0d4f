//! Listening: a connection on which a server tells what is new in topics.
//!
//! A program for one request has a connection for its one topic, and what it sleeps on is that socket. Under `serve` one task
//! listens to each server, for all.

use super::connection::Connection;
use super::reply::{Meaning, Reply, command, text};
use super::servers::{MOST_HOPS, Servers, TIME};
use super::topic::Topic;
use crate::clock::instant;
use crate::config::redis::Server;
use crate::store::remote::{Reason, Remote};
use crate::wake::Ready;
use std::time::{Duration, Instant};
#[cfg(feature = "serve")]
use {
    super::lock::lock,
    crate::wake::{Bell, wait},
    std::collections::{BTreeMap, VecDeque},
    std::sync::{Arc, Mutex, Weak},
};

/// How often a node says that it is there, and asks whether the server is.
pub const ROUND: Duration = Duration::from_secs(2);

/// What a server tells: of a topic's channel, what was said there. `None` for what is no message.
fn told(message: &Reply) -> Option<(&str, &str)> {
    match message {
        Reply::Array(parts) => match &parts[..] {
            [kind, channel, said] if text(kind) == Some("smessage") => Some((text(channel)?, text(said)?)),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a server that has nothing to tell is there: else nobody would notice a connection that died without a word.
struct Pulse {
    asked_at: Instant,
    unanswered: u32,
}

impl Pulse {
    fn new() -> Self {
        Self { asked_at: instant(), unanswered: 0 }
    }

    /// It has said something.
    fn hear(&mut self) {
        self.unanswered = 0;
    }

    /// What to ask it now, if anything.
    ///
    /// # Errors
    /// When it has not answered for too long.
    fn next(&mut self) -> Result<Vec<u8>, Remote> {
        /// So often: a process that was stopped itself has to ask first.
        const MOST_UNANSWERED: u32 = 2;
        let now = instant();
        if now < self.asked_at + ROUND {
            return Ok(Vec::new());
        }
        if self.unanswered == MOST_UNANSWERED {
            return Err(Remote::new(Reason::Slow, "the server that tells what is new does not answer"));
        }
        (self.unanswered, self.asked_at) = (self.unanswered + 1, now);
        Ok(command(["PING"]))
    }
}

/// A connection that listens for one topic, and to which server.
pub struct Ear {
    connection: Connection,
    server: Server,
    pulse: Pulse,
}

impl Ear {
    /// Connects, and listens to these channels, all of one slot, of which the topic is told.
    ///
    /// # Errors
    /// When it cannot in time.
    pub async fn open(servers: &Servers, channels: &[String], topic: &Topic) -> Result<Self, Remote> {
        let until = servers.until();
        for _ in 0..MOST_HOPS {
            let (server, mut connection) = servers.connect(&topic.channel, until).await?;
            let subscribe: Vec<u8> = channels.iter().flat_map(|channel| command(["SSUBSCRIBE", channel])).collect();
            let replies = connection.exchange(&subscribe, channels.len(), until).await?;
            let error = replies.iter().find_map(|reply| match reply {
                Reply::Error(error) => Some(error),
                _ => None,
            });
            let Some(error) = error else {
                topic.note_listening(true);
                return Ok(Self { connection, server, pulse: Pulse::new() });
            };
            match Meaning::of(error, &server) {
                Meaning::Moved(slot, server) => servers.learn(slot, server),
                Meaning::Later(remote) | Meaning::Error(remote) => return Err(remote),
                Meaning::Ask(_) | Meaning::NoScript => break,
            }
        }
        Err(Remote::new(Reason::NotReady, "no server tells what is new"))
    }

    /// What is ready when something was told.
    pub fn wake(&self) -> Ready<'_> {
        self.connection.wake()
    }

    /// Whether this server still has what is told. One that was stopped says nothing of that.
    pub fn is_right(&self, servers: &Servers, topic: &Topic) -> bool {
        servers.is_it(&topic.channel, &self.server)
    }

    /// Passes on what was told.
    ///
    /// # Errors
    /// When nothing will be told any more.
    pub fn hear(&mut self, topic: &Topic) -> Result<(), Remote> {
        while let Some(message) = self.connection.take()? {
            self.pulse.hear();
            match (&message, told(&message)) {
                (_, Some((_, said))) => topic.hear(said),
                (Reply::Array(parts), None) if parts.first().and_then(text) == Some("pong") => {}
                // The slot has moved to another server.
                _ => return Err(Remote::new(Reason::NotReady, "the server tells nothing more of a topic")),
            }
        }
        Ok(())
    }

    /// The same, from time to time: asks whether the server is there.
    ///
    /// # Errors
    /// The same; and when it is not.
    pub async fn tend(&mut self, topic: &Topic) -> Result<(), Remote> {
        self.hear(topic)?;
        let question = self.pulse.next()?;
        self.connection.send(&question, instant() + TIME).await
    }
}

/// Those that listen under `serve`, by server.
#[cfg(feature = "serve")]
pub struct Ears {
    servers: Arc<Servers>,
    all: Mutex<BTreeMap<Server, Arc<Wishes>>>,
}

/// What one of them is to do: to listen to a topic, or to one no more.
#[cfg(feature = "serve")]
#[derive(Default)]
struct Wishes {
    list: Mutex<Vec<Wish>>,
    bell: Bell,
}

#[cfg(feature = "serve")]
enum Wish {
    Listen(Arc<Topic>),
    Leave(String),
}

#[cfg(feature = "serve")]
impl Ears {
    pub fn new(servers: Arc<Servers>) -> Self {
        Self { servers, all: Mutex::default() }
    }

    /// Has the server that tells of the topic asked to; with each attempt, another of those that may.
    pub fn listen(self: &Arc<Self>, topic: &Arc<Topic>, attempt: usize) {
        let server = self.servers.server_of(&topic.channel, attempt);
        let mut ears = lock(&self.all);
        let new = || {
            let wishes = Arc::new(Wishes::default());
            tokio::spawn(attend(self.clone(), server.clone(), wishes.clone()));
            wishes
        };
        let wishes = ears.entry(server.clone()).or_insert_with(new);
        lock(&wishes.list).push(Wish::Listen(topic.clone()));
        wishes.bell.ring(1);
    }

    /// Nobody listens to a topic any more.
    pub fn leave(&self, channel: &str) {
        for wishes in lock(&self.all).values() {
            lock(&wishes.list).push(Wish::Leave(channel.to_owned()));
            wishes.bell.ring(1);
        }
    }
}

/// Listens to a server until that tells nothing more.
#[cfg(feature = "serve")]
async fn attend(ears: Arc<Ears>, server: Server, wishes: Arc<Wishes>) {
    let mut topics = BTreeMap::new();
    let Err(remote) = listen(&ears.servers, &server, &wishes, &mut topics).await;
    // Whoever asks for something tells the log, too, when there is no server.
    if remote.reason != Reason::NotReady && !topics.is_empty() {
        say!("uhst-relay: {server} tells nothing more, and is asked again: {}", remote.cause);
    }
    // Whoever comes now finds none, and begins anew.
    lock(&ears.all).remove(&server);
    for wish in lock(&wishes.list).drain(..) {
        if let Wish::Listen(topic) = wish {
            topic.note_listening(false);
        }
    }
    topics.values().filter_map(Weak::upgrade).for_each(|topic: Arc<Topic>| topic.note_listening(false));
}

#[cfg(feature = "serve")]
async fn listen(
    servers: &Servers,
    server: &Server,
    wishes: &Wishes,
    topics: &mut BTreeMap<String, Weak<Topic>>,
) -> Result<std::convert::Infallible, Remote> {
    let mut connection = servers.connect_to(server).await?;
    // Which topics an answer has yet to come for, in the order of the asking.
    let mut asked: VecDeque<String> = VecDeque::new();
    let mut pulse = Pulse::new();
    loop {
        let list = std::mem::take(&mut *lock(&wishes.list));
        let mut commands = Vec::new();
        for wish in list {
            match wish {
                Wish::Listen(topic) => {
                    commands.extend(command(["SSUBSCRIBE", &topic.channel]));
                    asked.push_back(topic.channel.clone());
                    topics.insert(topic.channel.clone(), Arc::downgrade(&topic));
                }
                Wish::Leave(channel) => {
                    if topics.get(&channel).is_some_and(|topic| topic.strong_count() == 0) {
                        topics.remove(&channel);
                        commands.extend(command(["SUNSUBSCRIBE", &channel]));
                    }
                }
            }
        }
        let question = pulse.next()?;
        if !question.is_empty() && pulse.unanswered > 1 {
            // It may be stopped, or cut off, and another have taken over: what it would say then is nobody's word any more.
            topics.retain(|channel, topic| {
                let is_right = servers.is_it(channel, server);
                if let (false, Some(topic)) = (is_right, topic.upgrade()) {
                    topic.note_listening(false);
                }
                is_right
            });
        }
        commands.extend(question);
        connection.send(&commands, instant() + TIME).await?;
        while let Some(message) = connection.take()? {
            pulse.hear();
            let topic = |channel: &str| topics.get(channel).and_then(Weak::upgrade);
            match &message {
                Reply::Error(error) => {
                    let channel = asked.pop_front();
                    match Meaning::of(error, server) {
                        Meaning::Moved(slot, server) => servers.learn(slot, server),
                        Meaning::Later(remote) | Meaning::Error(remote) => return Err(remote),
                        Meaning::Ask(_) | Meaning::NoScript => {}
                    }
                    if let Some(topic) = channel.as_deref().and_then(topic) {
                        topic.note_listening(false);
                    }
                }
                Reply::Array(parts) => match (parts.first().and_then(text), parts.get(1).and_then(text)) {
                    (Some("smessage"), _) => {
                        if let Some((channel, said)) = told(&message)
                            && let Some(topic) = topic(channel)
                        {
                            topic.hear(said);
                        }
                    }
                    (Some("ssubscribe"), Some(channel)) => {
                        asked.pop_front();
                        if let Some(topic) = topic(channel) {
                            topic.note_listening(true);
                        }
                    }
                    // By itself where the slot has moved to another server.
                    (Some("sunsubscribe"), Some(channel)) => {
                        if let Some(topic) = topic(channel) {
                            topic.note_listening(false);
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        wait(&mut [&mut connection.wake(), &mut Ready::to_hear(&wishes.bell)], ROUND).await;
        wishes.bell.hear();
    }
}
