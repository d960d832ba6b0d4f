//! One message to many readers, again and again.
//!
//! What a server delivers to a thousand readers is more than this program can parse on the core that is left to it. So an event
//! is no more here than a line that begins with `data:`, and the nth of a reader is the nth message: enough to see what is
//! lost or doubled.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use rustix::event::epoll;
use serde_json::{Value, json};

use crate::client::{Client, PATIENCE, Result};
use crate::figures::{Times, rate};
use crate::http::{AnswerReader, Target};
use crate::relay::{self, Message};
use crate::turns::{Stop, cpu_time};

/// What is done in one measurement.
pub struct Plan {
    /// Messages that are answered, and not yet with all readers; the next is sent when there are fewer.
    pub ahead: usize,
    pub stop: Stop,
    /// Messages before the measurement begins.
    pub warmup: usize,
    pub size: usize,
}

pub struct FanOut {
    target: Target,
    /// What makes a POST a message to all.
    query: String,
    epoll: OwnedFd,
    readers: Vec<Reader>,
    publisher: Option<TcpStream>,
    answer: AnswerReader,
    messages: Vec<Sent>,
    /// Messages that are not yet with all readers.
    open: usize,
    twice: usize,
    buffer: Vec<u8>,
    data: Finder<'static>,
    /// The stream of the host: the relay says what its clients do, and nobody reads it.
    _client: Client,
}

struct Reader {
    socket: TcpStream,
    got: usize,
    cut: Cut,
}

struct Sent {
    begun: Instant,
    /// So many readers do not have it yet.
    waits_for: usize,
}

/// The key of the publisher's connection; those of the readers are their numbers.
const PUBLISHER: u64 = u64::MAX;

impl FanOut {
    /// Opens the streams of the readers: a host's clients (`uhst`), or listeners of what the client's URL names (`bus`, `nchan`).
    /// Where there is another node, half of them are there.
    pub fn new(mut client: Client, other: Option<Client>, to: &str, readers: usize) -> Result<Self> {
        let (query, readers_queries) = match to {
            "uhst" => {
                let host = relay::register(&mut client, 1)?.remove(0);
                relay::listen(&mut client, &[&host.host_token])?;
                let tokens = relay::join(&mut client, &vec![host.host_id.as_str(); readers])?;
                (format!("token={}", host.host_token), tokens.iter().map(|token| format!("token={token}")).collect())
            }
            "bus" | "nchan" => {
                let query = if to == "bus" { format!("user={}", relay::greet(&mut client)?) } else { String::new() };
                (query, vec!["events".to_owned(); readers])
            }
            _ => return Err(format!("--to {to}: not uhst, bus or nchan")),
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| error.to_string())?;
        let mut streams = Vec::with_capacity(readers);
        let mut open = |client: &mut Client, queries: &[String]| {
            for key in relay::open(client, queries)? {
                let socket = client.release(key)?;
                watch(&epoll, &socket, streams.len() as u64)?;
                streams.push(Reader { socket, got: 0, cut: Cut::default() });
            }
            Ok::<_, String>(())
        };
        let (there, here) = readers_queries.split_at(if other.is_some() { readers / 2 } else { 0 });
        open(&mut client, here)?;
        if let Some(mut other) = other {
            open(&mut other, there)?;
        }
        Ok(Self {
            target: client.target.clone(),
            query,
            epoll,
            readers: streams,
            publisher: None,
            answer: AnswerReader::new(),
            messages: Vec::new(),
            open: 0,
            twice: 0,
            buffer: vec![0; Cut::ROOM + 256 * 1024],
            data: Finder::new(Cut::DATA),
            _client: client,
        })
    }

    /// Warms up, measures, and reports. A stream that has ended ends the measurement, and is an error.
    pub fn run(&mut self, plan: &Plan) -> Result<Value> {
        let mut errors = Vec::new();
        // Since the last time, the server may have closed it.
        self.publisher = None;
        if let Err(error) = self.round(plan, Stop::Count(plan.warmup), &mut Round::default()) {
            errors.push(error);
        }
        let (first, start, cpu) = (self.messages.len(), Instant::now(), cpu_time());
        let mut round = Round::default();
        if let Err(error) = self.round(plan, plan.stop, &mut round) {
            errors.push(error);
        }
        errors.append(&mut round.errors);
        if round.whole.count() == 0 {
            errors.push("nothing has arrived".to_owned());
            return Err(errors.swap_remove(0));
        }
        let load = (cpu_time() - cpu) / start.elapsed().as_secs_f64();
        let took = round.last.map_or(Duration::ZERO, |last| last - start);
        Ok(json!({
            "readers": self.readers.len(),
            "ahead": plan.ahead,
            "sent": self.messages.len() - first,
            "count": round.whole.count(),
            "seconds": took.as_secs_f64(),
            "rate": rate(round.whole.count(), took),
            "delivered": round.delivered,
            "delivery_rate": rate(round.delivered, took),
            "delivery_ms": round.whole.percentiles(),
            "lost": self.messages.iter().map(|message| message.waits_for).sum::<usize>(),
            "twice": self.twice,
            "errors": errors.len(),
            "first_error": errors.first(),
            "load_cores": (load * 1000.0).round() / 1000.0,
        }))
    }

    /// Sends, and waits until all readers have all of it or nothing comes any more.
    fn round(&mut self, plan: &Plan, stop: Stop, round: &mut Round) -> Result<()> {
        let mut ready = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 512];
        let (first, start) = (self.messages.len(), Instant::now());
        let (mut busy, mut heard) = (false, start);
        loop {
            let more = match stop {
                Stop::After(time) => start.elapsed() < time,
                Stop::Count(count) => self.messages.len() - first < count,
            };
            if more && !busy && self.open < plan.ahead {
                self.publish(plan.size)?;
                busy = true;
            } else if !more && !busy && self.open == 0 {
                return Ok(());
            }
            // Often enough to see that the time is over.
            let limit = rustix::time::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let count =
                epoll::wait(&self.epoll, &mut ready, Some(&limit)).map_err(|error| format!("epoll: {error}"))?;
            if count > 0 {
                heard = Instant::now();
            } else if heard.elapsed() > PATIENCE {
                return Err("nothing came any more, with messages under way".to_owned());
            }
            for event in &ready[..count] {
                match event.data.u64() {
                    PUBLISHER => busy = !self.answered(round)?,
                    key => self.read(key, round)?,
                }
            }
        }
    }

    fn publish(&mut self, size: usize) -> Result<()> {
        let body = Message { from: 0, n: self.messages.len() }.body(size);
        let request = self.target.post(&self.query, &body);
        self.messages.push(Sent { begun: Instant::now(), waits_for: self.readers.len() });
        self.open += usize::from(!self.readers.is_empty());
        self.answer.next();
        let publisher = match &mut self.publisher {
            Some(publisher) => publisher,
            publisher => {
                let socket = TcpStream::connect(self.target.address).map_err(|error| error.to_string())?;
                socket.set_nodelay(true).map_err(|error| error.to_string())?;
                watch(&self.epoll, &socket, PUBLISHER)?;
                publisher.insert(socket)
            }
        };
        publisher.write_all(&request).map_err(|error| format!("the publisher: {error}"))
    }

    /// Whether the answer is whole.
    fn answered(&mut self, round: &mut Round) -> Result<bool> {
        let publisher = self.publisher.as_mut().ok_or("an answer to nothing")?;
        let count = publisher.read(&mut self.buffer).map_err(|error| format!("the publisher: {error}"))?;
        if count == 0 {
            return Err("the server closed the publisher's connection".to_owned());
        }
        self.answer.take(&self.buffer[..count])?;
        if !self.answer.whole() {
            return Ok(false);
        }
        if !(200..300).contains(&self.answer.status) {
            round.errors.push(relay::refusal(self.answer.status, &self.answer.body));
        }
        if self.answer.close {
            self.publisher = None;
        }
        Ok(true)
    }

    fn read(&mut self, key: u64, round: &mut Round) -> Result<()> {
        let key = usize::try_from(key).map_err(|error| error.to_string())?;
        let reader = &mut self.readers[key];
        let count =
            reader.socket.read(&mut self.buffer[Cut::ROOM..]).map_err(|error| format!("reader {key}: {error}"))?;
        if count == 0 {
            return Err(format!("the stream of reader {key} has ended"));
        }
        for _ in 0..reader.cut.count(&self.data, &mut self.buffer[..Cut::ROOM + count]) {
            let Some(message) = self.messages.get_mut(reader.got) else {
                self.twice += 1;
                continue;
            };
            reader.got += 1;
            round.delivered += 1;
            message.waits_for -= 1;
            if message.waits_for == 0 {
                let now = Instant::now();
                self.open -= 1;
                round.whole.add(now - message.begun);
                round.last = Some(now);
            }
        }
        Ok(())
    }
}

/// The epoll tells when there is something to read.
fn watch(epoll: &OwnedFd, socket: &TcpStream, key: u64) -> Result<()> {
    epoll::add(epoll, socket, epoll::EventData::new_u64(key), epoll::EventFlags::IN).map_err(|error| error.to_string())
}

/// What came of some messages.
#[derive(Default)]
struct Round {
    delivered: usize,
    /// From the begin of a message's POST until its last reader has it.
    whole: Times,
    last: Option<Instant>,
    errors: Vec<String>,
}

/// Counts events in a stream that comes in pieces: the end of a piece may be the begin of a line that counts.
struct Cut([u8; Self::ROOM]);

impl Default for Cut {
    /// What comes first is the begin of a line.
    fn default() -> Self {
        Self(*b"\0\0\0\0\n")
    }
}

impl Cut {
    const DATA: &str = "\ndata:";
    /// What a piece has to leave free at its begin for the end of the one before it.
    const ROOM: usize = Self::DATA.len() - 1;

    /// The events that have begun in a piece, after its free room.
    fn count(&mut self, data: &Finder, piece: &mut [u8]) -> usize {
        piece[..Self::ROOM].copy_from_slice(&self.0);
        self.0.copy_from_slice(&piece[piece.len() - Self::ROOM..]);
        data.find_iter(piece).count()
    }
}

#[cfg(test)]
mod tests {
    use super::{Cut, Finder};

    #[test]
    fn events_are_counted_wherever_a_stream_is_cut() {
        let wire = b"data: 1\n\n: data: of a comment\n\n5\r\nid: 7\ndata:\n\nevent: x\r\ndata: \"data:\"\r\n\r\n";
        let data = Finder::new(Cut::DATA);
        for first in 0..=wire.len() {
            for second in first..=wire.len() {
                let mut cut = Cut::default();
                let pieces = [&wire[..first], &wire[first..second], &wire[second..]];
                let counted = pieces.map(|piece| cut.count(&data, &mut [&[b'\n'; Cut::ROOM], piece].concat()));
                assert_eq!(counted.iter().sum::<usize>(), 3, "cut at {first} and {second}");
            }
        }
    }
}
