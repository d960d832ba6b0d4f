//! What a load says to a relay: registering, joining, listening, and messages that can be told apart.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::client::{Client, Key, PATIENCE, Result, What};
use crate::sse::Event;

/// Requests and streams begun at once while a test is set up. Enough to keep a server busy, too few to overrun its backlog.
const AT_ONCE: usize = 16;

/// A stream that has not begun after this time is waited for later.
const SOON: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    pub host_id: String,
    pub host_token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Joined {
    client_token: String,
}

#[derive(Deserialize)]
struct Hello {
    user: u64,
}

/// A message says who sent it and the how manyeth of this sender it is; the rest fills it up to size.
#[derive(Deserialize, Serialize, Clone, Copy)]
pub struct Message {
    pub from: usize,
    pub n: usize,
}

impl Message {
    /// The body of a POST, of `size` bytes or as few as it takes.
    pub fn body(self, size: usize) -> Vec<u8> {
        let bare = format!(r#"{{"from":{},"n":{},"pad":""}}"#, self.from, self.n);
        let pad = "x".repeat(size.saturating_sub(bare.len()));
        format!(r#"{{"from":{},"n":{},"pad":"{pad}"}}"#, self.from, self.n).into_bytes()
    }
}

/// The data of a message event.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    pub body: Message,
    pub response_token: Option<String>,
}

/// Reads the events of several streams, and sees to it that the ids of each grow, where a relay sends ids.
#[derive(Default)]
pub struct Inbox(HashMap<Key, u64>);

impl Inbox {
    /// The message in `event`, or nothing when the event is the relay's own.
    pub fn read(&mut self, key: Key, event: &Event) -> Result<Option<Delivery>> {
        if let Some(text) = &event.id {
            let id = text.parse().map_err(|_| format!("not a number as id of an event: {text}"))?;
            if self.0.insert(key, id).is_some_and(|last| last >= id) {
                return Err(format!("event id {id} does not follow the one before it"));
            }
        }
        if event.name.is_some() {
            return Ok(None);
        }
        serde_json::from_str(&event.data).map(Some).map_err(|error| format!("event {}: {error}", event.data))
    }
}

/// Registers hosts, with ids of our own: the reference may choose the same one twice before its host listens.
pub fn register(client: &mut Client, count: usize) -> Result<Vec<Host>> {
    let me = std::process::id();
    let requests = (0..count).map(|n| client.target.post(&format!("action=host&hostId=load-{me}-{n}"), b"")).collect();
    ask(client, requests)?.iter().map(|body| parse(body)).collect()
}

/// Joins a client to each host named; their tokens.
pub fn join(client: &mut Client, host_ids: &[&str]) -> Result<Vec<String>> {
    let requests = host_ids.iter().map(|id| client.target.post(&format!("action=join&hostId={id}"), b"")).collect();
    ask(client, requests)?.iter().map(|body| parse(body).map(|joined: Joined| joined.client_token)).collect()
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| format!("{}: {error}", String::from_utf8_lossy(body)))
}

/// Gets the bodies of the answers to all requests, in their order. Each must be 200.
fn ask(client: &mut Client, requests: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let mut answers: Vec<Option<Vec<u8>>> = requests.iter().map(|_| None).collect();
    let mut waiting = requests.into_iter().enumerate();
    let mut asked = HashMap::new();
    for (number, request) in waiting.by_ref().take(AT_ONCE) {
        let key = client.line();
        asked.insert(key, number);
        client.send(key, request);
    }
    while !asked.is_empty() {
        let happening = client.next(Instant::now() + PATIENCE)?.ok_or("no answer in time")?;
        match happening.what {
            What::Answer { status: 200, body } => {
                let number = asked.remove(&happening.key).ok_or("an answer to nothing")?;
                answers[number] = Some(body);
                if let Some((number, request)) = waiting.next() {
                    asked.insert(happening.key, number);
                    client.send(happening.key, request);
                }
            }
            What::Answer { status, body } => return Err(refusal(status, &body)),
            What::Failed(why) => return Err(why),
            What::Opened | What::Event(_) => {}
        }
    }
    Ok(answers.into_iter().flatten().collect())
}

/// Says hello to the bus that the client's URL names; the user that it has become.
pub fn greet(client: &mut Client) -> Result<u64> {
    let hello = client.target.request("GET", "", b"");
    parse(&ask(client, vec![hello])?[0]).map(|hello: Hello| hello.user)
}

/// Opens the streams of all tokens, and waits until each has begun.
pub fn listen(client: &mut Client, tokens: &[&str]) -> Result<Vec<Key>> {
    open(client, &tokens.iter().map(|token| format!("token={token}")).collect::<Vec<_>>())
}

/// Opens a stream with each query, and waits until each has begun.
///
/// A few at a time; but the reference sends the head of a stream with its first keep-alive, seconds later,
/// so that a few which do not begin at once do not hold up the others.
pub fn open(client: &mut Client, queries: &[String]) -> Result<Vec<Key>> {
    let mut keys = Vec::with_capacity(queries.len());
    let (mut opened, mut under_way) = (0, 0);
    while opened < queries.len() {
        while keys.len() < queries.len() && under_way < AT_ONCE {
            keys.push(client.listen(&queries[keys.len()]));
            under_way += 1;
        }
        let more = keys.len() < queries.len();
        let patience = if more { SOON } else { PATIENCE };
        let Some(happening) = client.next(Instant::now() + patience)? else {
            if more {
                under_way = 0;
                continue;
            }
            return Err("a stream does not begin".to_owned());
        };
        match happening.what {
            What::Opened => {
                opened += 1;
                under_way = usize::saturating_sub(under_way, 1);
            }
            What::Event(_) => {}
            What::Answer { status, body } => return Err(refusal(status, &body)),
            What::Failed(why) => return Err(why),
        }
    }
    Ok(keys)
}

/// A sentence about an answer that should have been another.
pub fn refusal(status: u16, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    format!("answered {status} {}", body.chars().take(200).collect::<String>())
}
