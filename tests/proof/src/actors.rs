//! Those who send and read: hosts, their clients, and the users of buses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};

use crate::history::{Connection, Heard, History, Log, Outcome, Reader, Said, Send, Sender, Time};
use crate::relay::{Door, Fate, Got, Relay, Request, Stream};

/// What everybody is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Send, and come and go.
    Storm,
    /// Send nothing more, stay, and read what there still is.
    Drain,
    /// Leave.
    Leave,
}

/// What all share.
pub struct World {
    pub relay: Relay,
    pub start: Instant,
    phase: AtomicU8,
    connected: AtomicUsize,
    /// Streams whose place was taken, and that are still there.
    older: AtomicUsize,
    senders: Mutex<Vec<String>>,
    sends: Mutex<Vec<Send>>,
    logs: Vec<Mutex<Log>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new(relay: Relay, readers: Vec<Log>) -> Self {
        Self {
            relay,
            start: Instant::now(),
            phase: AtomicU8::new(Phase::Storm as u8),
            connected: AtomicUsize::new(0),
            older: AtomicUsize::new(0),
            senders: Mutex::default(),
            sends: Mutex::default(),
            logs: readers.into_iter().map(Mutex::new).collect(),
        }
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    fn now(&self) -> Time {
        self.start.elapsed()
    }

    /// Readers that have had their first stream.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether some streams are still there although a newer one has taken their place.
    pub fn has_older(&self) -> bool {
        self.older.load(Ordering::Relaxed) > 0
    }

    /// How many messages were sent.
    pub fn sent(&self) -> usize {
        lock(&self.sends).len()
    }

    /// What a reader is called.
    pub fn name(&self, reader: Reader) -> String {
        lock(&self.logs[reader]).name.clone()
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.logs.len()
    }

    /// What has happened so far.
    pub fn history(&self) -> History {
        let readers = self.logs.iter().map(|log| lock(log).clone()).collect();
        let (senders, sends) = (lock(&self.senders).clone(), lock(&self.sends).clone());
        History { senders, sends, readers, is_remote: self.relay.is_remote() }
    }

    /// A number for somebody who sends.
    pub fn new_sender(&self, name: String) -> Sender {
        let mut senders = lock(&self.senders);
        senders.push(name);
        senders.len() - 1
    }

    /// Sends a message, and notes what has become of it. `answered` makes of the answer to a 200 what it promises.
    fn send(&self, rng: &mut Rng, letter: &Letter<'_>, answered: impl FnOnce(&Value) -> Promise) -> Option<Outcome> {
        let Letter { sender, n, path, query, everybody, longest, large } = letter;
        let pad = "x".repeat(if rng.u8(..) < *large { rng.usize(..*longest) } else { rng.usize(..200) });
        let body = json!({ "s": sender, "n": n, "pad": pad }).to_string();
        let door = if rng.bool() { Door::Cgi } else { Door::Serve };
        let begun = self.now();
        // What was never asked was never sent.
        let answer = self.relay.ask(door, &Request::post(path, query, body.as_bytes()), Fate::MayBeKilled).ok()?;
        let ended = self.now();
        let mut promise = Promise::default();
        let outcome = match answer {
            None => {
                promise.may = everybody.to_vec();
                Outcome::Unknown
            }
            Some(answer) if answer.status == 200 => {
                promise = answered(&serde_json::from_slice(&answer.body).unwrap_or_default());
                Outcome::Accepted
            }
            Some(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                if body.contains(" clients got the message") || body.contains("The relay's Redis") {
                    // A broadcast that some have and others have not, and the answer says so; or one that Redis was asked to take
                    // before it was killed.
                    promise.may = everybody.to_vec();
                }
                Outcome::Refused(answer.status)
            }
        };
        let Promise { must, may, without, id } = promise;
        lock(&self.sends).push(Send { sender: *sender, n: *n, begun, ended, outcome, must, may, without, id });
        Some(outcome)
    }
}

/// What an answer to a message says.
#[derive(Default)]
struct Promise {
    must: Vec<Reader>,
    may: Vec<Reader>,
    without: Vec<Reader>,
    id: Option<u64>,
}

impl Promise {
    fn to(readers: &[Reader]) -> Self {
        Self { must: readers.to_vec(), ..Self::default() }
    }
}

/// A message, where it goes, and who can get it at all.
struct Letter<'a> {
    sender: Sender,
    n: u32,
    path: &'a str,
    query: &'a str,
    everybody: &'a [Reader],
    /// About how long the longest are.
    longest: usize,
    /// How many of 256 are long.
    large: u8,
}

/// A few.
const FEW: u8 = 30;

/// About how long the longest broadcasts are where somebody is to be left out: on a slow machine, too, more than a queue holds is
/// sent while a client sleeps.
const CROWDING: usize = 300_000;

/// A host and its clients.
pub struct Session {
    pub host: Reader,
    pub host_token: String,
    /// Reader, token.
    pub clients: Vec<(Reader, String)>,
    /// Client ids and the host's, as closed events and broadcasts name them.
    pub ids: HashMap<String, Reader>,
    /// Response tokens that the host has been given, newest last.
    pub replies: Mutex<Vec<(Reader, String)>>,
    /// About how long its longest messages are.
    pub longest: usize,
    /// Whether its host sends so much that a client that stays and does not read is left out now and then.
    pub is_crowded: bool,
    /// Whether its host leaves for good, so that its clients' tokens are worth nothing one day.
    pub ends: bool,
}

/// A bus and those who read it.
pub struct Bus {
    pub path: String,
    pub readers: Vec<Reader>,
}

fn pause(rng: &mut Rng, ms: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(rng.u64(ms)));
}

/// A client that sends to its host.
pub fn client_sends(world: &World, session: &Session, sender: Sender, token: &str, mut rng: Rng) {
    let query = format!("token={token}");
    let everybody = [session.host];
    for n in 0.. {
        if !world.is(Phase::Storm) {
            return;
        }
        let letter =
            Letter { sender, n, path: "", query: &query, everybody: &everybody, longest: session.longest, large: FEW };
        world.send(&mut rng, &letter, |_| Promise::to(&everybody));
        pause(&mut rng, 20..400);
    }
}

/// A host that answers its clients and sends to all of them, in one order.
pub fn host_sends(world: &World, session: &Session, sender: Sender, mut rng: Rng) {
    let to_all = format!("token={}", session.host_token);
    let all: Vec<Reader> = session.clients.iter().map(|&(reader, _)| reader).collect();
    for n in 0.. {
        if !world.is(Phase::Storm) {
            return;
        }
        let reply = if rng.bool() { lock(&session.replies).pop() } else { None };
        if let Some((client, token)) = reply {
            let query = format!("token={token}");
            let letter = Letter {
                sender,
                n,
                path: "",
                query: &query,
                everybody: &[client],
                longest: session.longest,
                large: FEW,
            };
            world.send(&mut rng, &letter, |_| Promise::to(&[client]));
        } else {
            let letter = Letter {
                sender,
                n,
                path: "",
                query: &to_all,
                everybody: &all,
                longest: if session.is_crowded { CROWDING } else { session.longest },
                large: if session.is_crowded { 100 } else { FEW },
            };
            world.send(&mut rng, &letter, |answer| {
                let that_are = |given: bool| {
                    let named =
                        answer.as_object().into_iter().flatten().filter(move |(_, value)| **value == json!(given));
                    named.filter_map(|(id, _)| session.ids.get(id).copied()).collect()
                };
                let (must, without): (Vec<_>, Vec<_>) = (that_are(true), that_are(false));
                // Whoever is away gets it if it comes back in time; nobody has promised that.
                let is_other = |reader: &Reader| !must.contains(reader) && !without.contains(reader);
                let may = all.iter().copied().filter(is_other).collect();
                Promise { must, may, without, id: None }
            });
        }
        pause(&mut rng, if session.is_crowded { 5..40 } else { 20..300 });
    }
}

/// A user of a bus.
pub fn user_posts(world: &World, bus: &Bus, sender: Sender, user: u64, mut rng: Rng) {
    let query = format!("user={user}");
    for n in 0.. {
        if !world.is(Phase::Storm) {
            return;
        }
        let letter =
            Letter { sender, n, path: &bus.path, query: &query, everybody: &bus.readers, longest: 8000, large: FEW };
        world.send(&mut rng, &letter, |answer| Promise { id: answer["id"].as_u64(), ..Promise::to(&bus.readers) });
        pause(&mut rng, 50..500);
    }
}

/// How a reader behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It comes and goes, takes its own place over, sleeps, and its process may be killed at any time.
    Restless,
    /// It stays, and its process is left alone: nobody may say that it has left.
    Steady,
    /// It comes and goes, and after a few seconds leaves for good.
    Leaver,
}

/// What is read, and what is made of it.
pub struct Source<'a> {
    pub reader: Reader,
    pub path: &'a str,
    pub query: &'a str,
    pub manner: Manner,
    /// The id after which it begins, where it knows one.
    pub begin: Option<u64>,
    /// Whether its session may be over before the run is.
    pub may_end: bool,
    /// Whether there is so much to read that whoever stays and does not read is left out now and then.
    pub is_crowded: bool,
    /// Makes of an event's type and data what it said.
    pub understand: &'a dyn Fn(&str, &Value) -> Option<Said>,
}

/// What a reader does next.
enum Next {
    Leave,
    TakeOver,
    Sleep,
}

/// Reads a stream until it is time to leave, and comes back with the last id whenever it has ended.
pub fn reads(world: &World, source: &Source<'_>, mut rng: Rng) {
    let log = &world.logs[source.reader];
    let (mut last, mut last_at) = (source.begin, world.now());
    let mut is_first = true;
    let mut last_there = Instant::now();
    let leaves_at = Instant::now() + Duration::from_millis(rng.u64(2000..6000));
    let leaves = || source.manner == Manner::Leaver && Instant::now() > leaves_at;
    while !world.is(Phase::Leave) {
        let (fate, door) = match source.manner {
            Manner::Steady => (Fate::Safe, Door::Cgi),
            _ if rng.bool() => (Fate::MayBeKilled, Door::Cgi),
            _ => (Fate::MayBeKilled, Door::Serve),
        };
        let (mut resumed, mut resumed_from) = (last, last_at);
        let Some(mut stream) = open(world, source, door, last, fate, last_there) else {
            pause(&mut rng, 5..60);
            continue;
        };
        if std::mem::take(&mut is_first) {
            world.connected.fetch_add(1, Ordering::Relaxed);
        }
        let mut opened = world.now();
        let mut until = Instant::now() + Duration::from_millis(rng.u64(100..6000));
        let mut note;
        let mut older: Option<Older<'_>> = None;
        loop {
            if older.as_mut().is_some_and(|older| older.is_over(source.reader)) {
                older = None;
            }
            note = match stream.read(Duration::from_millis(200)) {
                Got::End => "it ended",
                Got::Bytes => {
                    while let Some(block) = stream.take_block() {
                        // A stream begins with the id that was asked for, which has not become younger by that.
                        if let Some(id) = hear(world, source, &block).filter(|id| last != Some(*id)) {
                            (last, last_at) = (Some(id), world.now());
                        }
                    }
                    ""
                }
                Got::Nothing => "",
            };
            if world.is(Phase::Leave) || leaves() {
                note = "it leaves for good";
            }
            if !note.is_empty() {
                break;
            }
            if (source.manner == Manner::Steady && !source.is_crowded)
                || !world.is(Phase::Storm)
                || Instant::now() < until
            {
                continue;
            }
            until = Instant::now() + Duration::from_millis(rng.u64(100..6000));
            if source.manner == Manner::Steady {
                // It does not read, and so much is sent to it meanwhile that it is left out; but what it was promised does not die,
                // because then it reads all of it.
                pause(&mut rng, 3000..5000);
                until = Instant::now() + Duration::from_millis(rng.u64(3000..6000));
                continue;
            }
            let next = [Next::Leave, Next::TakeOver, Next::Sleep];
            match next[rng.usize(..next.len())] {
                // Without an id nobody could know what it has not read when it goes.
                Next::Leave | Next::TakeOver if last.is_none() => {}
                Next::Leave => {
                    note = "it leaves";
                    break;
                }
                Next::Sleep => pause(&mut rng, 300..1500),
                Next::TakeOver => {
                    let door = if rng.bool() { Door::Cgi } else { Door::Serve };
                    // Nothing of the older stream is read from here on.
                    if let Some(newer) = open(world, source, door, last, Fate::MayBeKilled, Instant::now()) {
                        let closed = world.now();
                        let note = "it is taken over";
                        lock(log).connections.push(Connection { opened, closed, resumed, resumed_from, note });
                        let replaced = std::mem::replace(&mut stream, newer);
                        // On a bus each is a reader of its own.
                        older = lock(log).bus.is_none().then(|| Older::new(world, replaced));
                        (opened, resumed, resumed_from) = (closed, last, last_at);
                    }
                }
            }
        }
        let begun = world.now();
        // A program that is killed cannot say that it ends; one whose client leaves has to.
        if rng.bool() {
            stream.hang_up();
        } else {
            drop(stream);
        }
        last_there = Instant::now();
        let mut log = lock(log);
        log.connections.push(Connection { opened, closed: begun, resumed, resumed_from, note });
        if leaves() {
            log.left = Some(begun);
            return;
        }
        drop(log);
        if world.is(Phase::Storm) && note == "it leaves" {
            pause(&mut rng, 0..500);
        }
    }
}

/// A stream whose place was taken. What it still gives is nothing to anybody.
struct Older<'a> {
    world: &'a World,
    stream: Stream<'a>,
    since: Instant,
}

impl<'a> Older<'a> {
    fn new(world: &'a World, stream: Stream<'a>) -> Self {
        world.older.fetch_add(1, Ordering::Relaxed);
        Self { world, stream, since: Instant::now() }
    }

    /// Whether it has ended, as it must; one that stays is noted.
    fn is_over(&mut self, reader: Reader) -> bool {
        match self.stream.read(Duration::ZERO) {
            Got::End => true,
            _ if self.since.elapsed() > OUTLIVED_AFTER => {
                lock(&self.world.logs[reader]).outlived.push(self.world.now());
                true
            }
            _ => false,
        }
    }
}

impl Drop for Older<'_> {
    fn drop(&mut self) {
        self.world.older.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream is told at once that its place is taken, and looks every few seconds where nobody could tell it.
const OUTLIVED_AFTER: Duration = Duration::from_secs(10);

/// Asks for the stream; `None` when it is refused, or broke off before its head was here.
fn open<'a>(
    world: &'a World,
    source: &Source<'_>,
    door: Door,
    last: Option<u64>,
    fate: Fate,
    last_there: Instant,
) -> Option<Stream<'a>> {
    let request = Request { last_event_id: last, ..Request::get(source.path, source.query) };
    let mut stream = world.relay.open(door, &request, fate).ok()?;
    let Some(status) = stream.take_head(Duration::from_secs(60)) else {
        // The relay may have seen it come, and go.
        let (now, note) = (world.now(), "it broke off before it began");
        lock(&world.logs[source.reader]).connections.push(Connection {
            opened: now,
            closed: now,
            resumed: last,
            resumed_from: now,
            note,
        });
        return None;
    };
    if (status == 401 || status == 404) && !source.may_end {
        // Not away for as long as a session is kept: it must not be told that its session is over.
        if last_there.elapsed() < crate::LIFETIME / 2 {
            lock(&world.logs[source.reader]).turned_away.push((world.now(), status));
        }
    }
    (status == 200).then_some(stream)
}

/// Notes an event; its id.
fn hear(world: &World, source: &Source<'_>, block: &str) -> Option<u64> {
    let (mut id, mut event, mut data) = (None, "message", None);
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("id", text)) => id = text.parse().ok(),
            Some(("event", text)) => event = text,
            Some(("data", text)) => data = Some(text),
            // A comment has nothing before its colon.
            _ => {}
        }
    }
    // What begins a stream has an id and no data.
    if let Some(data) = data.and_then(|data| serde_json::from_str(data).ok()) {
        note(world, source, id, event, &data);
    }
    id
}

fn note(world: &World, source: &Source<'_>, id: Option<u64>, event: &str, data: &Value) {
    if let Some(said) = (source.understand)(event, data) {
        lock(&world.logs[source.reader]).heard.push(Heard { at: world.now(), id, said });
    }
}

/// Polls a bus until it is time to leave.
pub fn polls(world: &World, source: &Source<'_>, user: u64, begin: u64, mut rng: Rng) {
    let log = &world.logs[source.reader];
    let mut last = begin;
    world.connected.fetch_add(1, Ordering::Relaxed);
    while !world.is(Phase::Leave) {
        let door = if rng.bool() { Door::Cgi } else { Door::Serve };
        let query = format!("id={last}&user={user}&wait=2");
        let opened = world.now();
        let answer = world.relay.ask(door, &Request::get(source.path, &query), Fate::MayBeKilled);
        let Ok(Some(answer)) = answer else { continue };
        if answer.status != 200 {
            pause(&mut rng, 5..60);
            continue;
        }
        let resumed = Some(last);
        let messages: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        for message in messages.as_array().into_iter().flatten() {
            let id = message["id"].as_u64();
            last = id.unwrap_or(last);
            note(world, source, id, "message", message);
        }
        let (closed, resumed_from, note) = (world.now(), opened, "a poll");
        lock(log).connections.push(Connection { opened, closed, resumed, resumed_from, note });
    }
}

/// What an event of a bus says.
pub fn bus(event: &str, data: &Value) -> Option<Said> {
    if event == "lost" { Some(Said::Missed) } else { message(&data["data"]) }
}

/// What a message says that one of us has sent.
pub fn message(body: &Value) -> Option<Said> {
    let number = |name: &str| body[name].as_u64();
    Some(Said::Message { sender: usize::try_from(number("s")?).ok()?, n: u32::try_from(number("n")?).ok()? })
}

/// What an event of UHST says; a host keeps the means to answer.
pub fn uhst(session: &Session, event: &str, data: &Value) -> Option<Said> {
    if event == "relay_event" && data["eventType"] == "messages_lost" {
        return Some(Said::Missed);
    }
    if event == "relay_event" {
        return data["body"].as_str().and_then(|id| session.ids.get(id)).map(|&who| Said::Closed(who));
    }
    if let Some(token) = data["responseToken"].as_str()
        && let Some(client) = client_of(token).and_then(|id| session.ids.get(&id).copied())
    {
        let mut replies = lock(&session.replies);
        replies.push((client, token.to_owned()));
        let many = replies.len().saturating_sub(20);
        replies.drain(..many);
    }
    message(&data["body"])
}

/// The client that a token names.
pub fn client_of(token: &str) -> Option<String> {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let payload: Value = serde_json::from_slice(&payload).ok()?;
    payload["clientId"].as_str().map(str::to_owned)
}
