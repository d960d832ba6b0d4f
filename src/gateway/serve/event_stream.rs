//! An event stream over HTTP/1 without TLS, which is taken from hyper once it is asked for.
//!
//! Nothing else comes on its connection, so nothing has to be parsed or framed any more: what is written goes to the socket as
//! it is, and ends where the connection does (RFC 9112, 6.3). Thousands of them cost what their sockets and their place in the
//! store cost.

use super::listening::Socket;
use super::waiting::Waiting;
use crate::gateway::client::{Client, Outgoing, Woken};
use crate::gateway::reply::Producer;
use crate::wake::Wake;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use std::io;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};
use tokio::io::AsyncWriteExt as _;

/// Whoever has been given so much at once waits for its turn.
const PIECE: usize = 16 * 1024;

/// A stream that has not begun.
pub(super) struct EventStream {
    head: Vec<u8>,
    produce: Producer,
}

impl EventStream {
    /// With these fields, which end where they end: no name and no value of this type has a line break.
    pub fn new(status: StatusCode, fields: &HeaderMap, produce: Producer) -> Self {
        let date = httpdate::HttpDate::from(SystemTime::now());
        let mut head = format!("HTTP/1.1 {status}\r\nDate: {date}\r\nConnection: close\r\n").into_bytes();
        for (name, value) in fields {
            // In the letters that hyper writes for other answers.
            for word in name.as_str().split_inclusive('-') {
                head.push(word.as_bytes()[0].to_ascii_uppercase());
                head.extend_from_slice(&word.as_bytes()[1..]);
            }
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        Self { head, produce }
    }

    /// Writes it, until it is over or the client has gone.
    pub async fn run(self, mut socket: Socket) {
        // Also where the client has gone already: what stands in the store for it has to be ended.
        let state = if socket.write_all(&self.head).await.is_ok() { State::Free } else { State::Broken };
        let waiting = Waiting::new(Some(socket.clone()));
        (self.produce)(&mut Way { socket, waiting, state }).await;
    }
}

enum State {
    Free,
    /// The socket takes nothing at the moment.
    Full,
    /// The client has gone.
    Broken,
}

/// The way to its client.
struct Way {
    socket: Socket,
    waiting: Waiting,
    state: State,
}

impl Client for Way {
    fn poll_wait(
        &mut self,
        cx: &mut Context<'_>,
        wakes: &mut [&mut dyn Wake],
        to_write: bool,
        until: Instant,
    ) -> Poll<Woken> {
        match self.state {
            State::Broken => return Poll::Ready(Woken::HungUp),
            State::Full if to_write && self.socket.poll_writable(cx) => self.state = State::Free,
            _ => {}
        }
        self.waiting.poll(cx, wakes, to_write && self.is_writable(), until)
    }
}

impl Outgoing for Way {
    fn is_own(&self) -> bool {
        true
    }

    fn is_broken(&self) -> bool {
        matches!(self.state, State::Broken)
    }

    fn is_writable(&self) -> bool {
        matches!(self.state, State::Free)
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() || !self.is_writable() {
            return 0;
        }
        match self.socket.write_some(bytes) {
            Ok(written) => {
                // Between two pieces of a backlog tokio has others go on.
                if written >= PIECE {
                    self.state = State::Full;
                }
                written
            }
            Err(error) => {
                self.state = if error.kind() == io::ErrorKind::WouldBlock { State::Full } else { State::Broken };
                0
            }
        }
    }

    fn cut(&mut self) {
        self.state = State::Broken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_begins_with_the_fields_that_it_was_given() {
        let fields = [("server", "uhst-relay"), ("x-accel-buffering", "no"), ("vary", "Origin")]
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let stream = EventStream::new(StatusCode::OK, &fields.into_iter().collect(), Box::new(|_| Box::pin(async {})));
        let head = String::from_utf8(stream.head).unwrap();
        let (begin, rest) = head.split_once("Date: ").unwrap();
        let (date, rest) = rest.split_once("\r\n").unwrap();
        assert_eq!(begin, "HTTP/1.1 200 OK\r\n");
        assert!(date.ends_with(" GMT"), "{date}");
        assert_eq!(rest, "Connection: close\r\nServer: uhst-relay\r\nX-Accel-Buffering: no\r\nVary: Origin\r\n\r\n");
    }
}
